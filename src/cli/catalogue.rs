//! `catalogue`: the known event types and their fields.

use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::{Value, json};

use super::ConfigArgs;
use super::terminal::{fail, print, table};
use crate::dialect::{Dialect, EventType, FieldRow, Normalizer};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  apsara-bridge catalogue
  apsara-bridge catalogue TranscodeComplete
  apsara-bridge catalogue --json | jq -r '.[] | select(.fields[].unit == \"bytes\").type'
")]
pub(super) struct List {
    /// Show the fields of this event type at every depth, for each dialect that has it.
    #[arg(value_name = "EVENT_TYPE")]
    event_type: Option<String>,
    /// Only the event types of this dialect.
    #[arg(long, value_name = "DIALECT", value_parser = dialect())]
    dialect: Option<Dialect>,
    /// Print the event types with their rules and fields, as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Reads the name of a dialect.
pub(super) fn dialect() -> impl TypedValueParser<Value = Dialect> {
    let words = PossibleValuesParser::new(Dialect::ALL.map(Dialect::as_str));
    words.try_map(|word| Dialect::from_word(&word).ok_or("unknown dialect"))
}

/// The EventType in a name: the prefix of `type` may come before it.
pub(super) fn event_type<'n>(name: &'n str, normalizer: &Normalizer) -> &'n str {
    name.strip_prefix(normalizer.type_prefix()).unwrap_or(name)
}

impl List {
    pub(super) fn run(self) -> ExitCode {
        let normalizer = match self.config.normalizer() {
            Ok(normalizer) => normalizer,
            Err(code) => return code,
        };
        let catalogue = normalizer.catalogue();
        let of_dialect = |event: &&EventType| self.dialect.is_none_or(|dialect| event.dialect == dialect);
        let found: Vec<&EventType> = match &self.event_type {
            None => catalogue.events().iter().filter(of_dialect).collect(),
            Some(name) => match catalogue.named(event_type(name, &normalizer), self.dialect) {
                Ok(found) => found,
                Err(error) => return fail(error),
            },
        };
        if self.json {
            let events: Vec<Value> = found.into_iter().map(|event| to_json(&normalizer, event)).collect();
            print(format!("{:#}\n", Value::from(events)));
        } else if self.event_type.is_none() {
            print(overview(&found));
        } else {
            let details: Vec<String> = found.into_iter().map(|event| detail(&normalizer, event)).collect();
            print(details.join("\n"));
        }
        ExitCode::SUCCESS
    }
}

fn overview(events: &[&EventType]) -> String {
    let rows =
        events.iter().map(|event| vec![event.dialect.to_string(), event.name.clone(), event.description.clone()]);
    table(&rows.collect::<Vec<_>>())
}

fn detail(normalizer: &Normalizer, event: &EventType) -> String {
    let catalogue = normalizer.catalogue();
    let mut head = vec![event.description.clone()];
    head.extend((!event.when.is_empty()).then(|| event.when.clone()));
    head.extend(event.notes.iter().map(|note| format!("Note: {note}")));
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    if !event.subject.is_empty() {
        row("subject", paths(&event.subject).join(", else "));
    }
    row("status", event.status.describe());
    if !event.verdict.is_empty() {
        row("verdict", format!("the worst of {}", paths(&event.verdict).join(", ")));
    }
    if !event.aliases.is_empty() {
        row("also sent as", event.aliases.join(", "));
    }
    if !event.source.is_empty() {
        row("source", event.source.clone());
    }
    row("dataschema", normalizer.dataschema(event));
    let titles = ["field", "type", "unit", "from", "meaning"].map(str::to_owned).to_vec();
    let fields: Vec<Vec<String>> = [titles].into_iter().chain(catalogue.rows(event).iter().map(field_row)).collect();
    format!("{} {}\n{}\n\n{}\n{}", event.dialect, event.name, head.join("\n"), table(&rows), table(&fields))
}

fn paths(paths: &[crate::dialect::Path]) -> Vec<String> {
    paths.iter().map(|path| format!("data.{path}")).collect()
}

fn field_row(row: &FieldRow<'_>) -> Vec<String> {
    let path = format!("data.{}", row.path);
    vec![
        path,
        row.field.type_for_readers(),
        row.field.unit_for_readers(),
        row.origin.clone(),
        row.field.description.clone(),
    ]
}

fn to_json(normalizer: &Normalizer, event: &EventType) -> Value {
    let fields: Vec<Value> = normalizer
        .catalogue()
        .rows(event)
        .iter()
        .map(|row| {
            let field = row.field;
            let mut json = json!({
                "path": row.path,
                "type": field.type_name,
                "origin": row.origin,
                "description": field.description,
            });
            if let Some(unit) = field.unit {
                json["unit"] = unit.as_str().into();
            }
            if field.is_sent_in_milliseconds() {
                json["sent_unit"] = "milliseconds".into();
            }
            if !field.values.is_empty() {
                json["values"] = field.values.clone().into();
            }
            if field.loose {
                json["loose"] = true.into();
            }
            json
        })
        .collect();
    let texts = |paths: &[crate::dialect::Path]| paths.iter().map(ToString::to_string).collect::<Vec<_>>();
    let words = event.status.words.iter().map(|(word, status)| (word.clone(), Value::from(status.as_str())));
    json!({
        "dataschema": normalizer.dataschema(event),
        "dialect": event.dialect.as_str(),
        "type": event.name,
        "aliases": event.aliases,
        "description": event.description,
        "when": event.when,
        "notes": event.notes,
        "source": event.source,
        "subject": texts(&event.subject),
        "verdict": texts(&event.verdict),
        "status": {
            "field": event.status.field,
            "sent": event.status.sent,
            "words": Value::Object(words.collect()),
            "also": event.status.also,
            "parts": event.status.parts,
            "default": event.status.default.map(|status| status.as_str()),
            "rule": event.status.describe(),
        },
        "error": { "code": event.error.code, "message": event.error.message },
        "lift": event.lift,
        "fields": fields,
    })
}
