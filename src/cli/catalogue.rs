//! `catalogue`: the known event types.

use std::process::ExitCode;

use super::{ConfigArgs, fail, print, table};
use crate::common::suggest::nearest;
use crate::dialect::{Catalogue, EventType};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  apsara-bridge catalogue
  apsara-bridge catalogue TranscodeComplete
")]
pub(super) struct List {
    /// Show the fields of this event type, for each dialect that has it.
    #[arg(value_name = "EVENT_TYPE")]
    event_type: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl List {
    pub(super) fn run(self) -> ExitCode {
        let normalizer = match self.config.normalizer() {
            Ok(normalizer) => normalizer,
            Err(code) => return code,
        };
        let catalogue = normalizer.catalogue();
        let Some(name) = &self.event_type else {
            print(overview(catalogue));
            return ExitCode::SUCCESS;
        };
        let is_meant = |event: &&EventType| event.name == *name || event.aliases.contains(name);
        let found: Vec<&EventType> = catalogue.events().iter().filter(is_meant).collect();
        if found.is_empty() {
            let hint = nearest(name, catalogue.events().iter().map(|event| event.name.as_str()))
                .map_or_else(String::new, |name| format!("; did you mean {name}?"));
            return fail(format!("the catalogue has no event type {name}{hint}"));
        }
        let details: Vec<String> = found.into_iter().map(detail).collect();
        print(details.join("\n"));
        ExitCode::SUCCESS
    }
}

fn overview(catalogue: &Catalogue) -> String {
    let rows = catalogue
        .events()
        .iter()
        .map(|event| vec![event.dialect.to_string(), event.name.clone(), event.description.clone()]);
    table(&rows.collect::<Vec<_>>())
}

fn detail(event: &EventType) -> String {
    let mut rows = vec![vec!["subject".to_owned(), event.subject.join(", else ")]];
    let rule = &event.status;
    let mut status = format!("from `{}`", rule.field);
    if !rule.also.is_empty() {
        status.push_str(&format!(" and `{}`, the worst of them", rule.also.join("`, `")));
    }
    if rule.parts {
        status.push_str(", weighed with its parts");
    }
    if let Some(default) = rule.default {
        status.push_str(&format!(", else {}", default.as_str()));
    }
    rows.push(vec!["status".to_owned(), status]);
    if !event.aliases.is_empty() {
        rows.push(vec!["also sent as".to_owned(), event.aliases.join(", ")]);
    }
    rows.extend(event.fields.iter().map(|(name, kind)| vec![format!("  data.{name}"), kind.clone()]));
    format!("{} {}\n{}\n{}", event.dialect, event.name, event.description, table(&rows))
}
