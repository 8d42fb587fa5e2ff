//! `explain`: what would happen to a callback, and why.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use time::OffsetDateTime;

use super::ConfigArgs;
use super::terminal::{fail, pretty, print, read, shown, table};
use crate::bridge::Sender;
use crate::dialect::{Normalized, Normalizer, Origin};
use crate::event::{Attribute, Event};
use crate::output::{Record, TopicRule};
use crate::route::{Action, Decision, Destination, Fate, Router};
use crate::service::Settings;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Connects to nothing and publishes nothing. Without a configuration there are no
routes.

Examples:
  apsara-bridge explain callback.json --config bridge.toml
  curl -s example.com/callback.json | apsara-bridge explain --config bridge.toml
")]
pub(super) struct Explain {
    /// File with one callback. `-` is standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// Path of the HTTP endpoint, or name of the queue, that would receive the callback. Default: the first one.
    #[arg(long, value_name = "PATH")]
    endpoint: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Explain {
    pub(super) fn run(self) -> ExitCode {
        let body = match read(&self.file) {
            Ok(body) => body,
            Err(error) => return fail(format!("{} cannot be read: {error}", shown(&self.file))),
        };
        let mut settings = None;
        if self.config.is_given() {
            match self.config.load() {
                Ok(loaded) => settings = Some(loaded.settings),
                Err(code) => return code,
            }
        }
        let normalizer = match self.config.normalizer() {
            Ok(normalizer) => normalizer,
            Err(code) => return code,
        };
        let inputs = settings.iter().flat_map(|settings| &settings.inputs);
        let endpoints: Vec<(&str, &Sender)> = inputs
            .flat_map(|input| {
                let senders = input.settings.senders();
                // The name of an input stands for its first sender.
                let by_name = senders.first().map(|(_, sender)| (input.name.as_str(), *sender));
                senders.into_iter().chain(by_name)
            })
            .collect();
        let sender = match &self.endpoint {
            Some(path) => match endpoints.iter().find(|(known, _)| known == path) {
                Some((_, sender)) => Some(*sender),
                None => return fail(format!("the configuration has no endpoint or queue {path}")),
            },
            None => endpoints.first().map(|(_, sender)| *sender),
        };
        let mut origin = Origin::at(OffsetDateTime::now_utc());
        if let Some(sender) = sender {
            origin.sender = sender;
        }
        let normalized = match normalizer.normalize(&body, &origin) {
            Ok(normalized) => normalized,
            Err(error) => return fail(format!("{}: {error}", shown(&self.file))),
        };
        let mut text = head(&normalizer, &normalized);
        match &settings {
            Some(settings) => explain_routes(settings, &normalized.event, &mut text),
            None => text.push_str("\nRoutes: none, because there is no configuration; set one with --config\n"),
        }
        print(text);
        ExitCode::SUCCESS
    }
}

fn head(normalizer: &Normalizer, normalized: &Normalized) -> String {
    let Normalized { event, dialect, event_type, status } = normalized;
    let known = match event_type {
        Some(index) => normalizer.catalogue().events()[*index].description.clone(),
        None => "unknown to the catalogue; normalized by the general rules".to_owned(),
    };
    let rows = [
        vec!["Dialect".to_owned(), dialect.to_string()],
        vec!["Type".to_owned(), event.get(Attribute::Type).unwrap_or_default().to_owned()],
        vec![String::new(), known],
        vec!["Status".to_owned(), status.as_str().to_owned()],
    ];
    let envelope = String::from_utf8_lossy(&pretty(&event.to_json())).into_owned();
    format!("{}\nEnvelope:\n{envelope}\n", table(&rows))
}

/// Whether the route at a position matches an event, and why not.
pub(super) fn verdict(router: &Router, decision: &Decision<'_>, position: usize, event: &Event) -> String {
    let route = &router.routes()[position];
    let last = decision.matched.last().map(|last| (*last, &router.routes()[*last]));
    match last {
        Some((last, by)) if last < position && !by.continue_matching => {
            return format!("not tried: `{}` matches and does not continue", by.name);
        }
        _ => {}
    }
    if let Err(why) = route.try_match(event) {
        return format!("no: {why}");
    }
    let action = match &route.action {
        Action::To(_) => "yes",
        Action::Drop => "yes: drops it",
        Action::DeadLetter => "yes: makes it a dead letter",
    };
    format!("{action}{}", if route.continue_matching { ", and continues" } else { "" })
}

fn explain_routes(settings: &Settings, event: &Event, text: &mut String) {
    let decision = settings.router.decide(event);
    let verdict = |position| verdict(&settings.router, &decision, position, event);
    let routes = settings.router.routes().iter().enumerate();
    let rows: Vec<Vec<String>> =
        routes.map(|(position, route)| vec![format!("  {}", route.name), verdict(position)]).collect();
    let _ = write!(text, "\nRoutes:\n{}", table(&rows));
    for (route, destination) in &decision.destinations {
        let _ = write!(text, "\nRecord by route `{}`:\n", route.name);
        record(settings, event, destination, text);
    }
    if matches!(decision.fate(), Fate::Unrouted | Fate::DeadLetter(_)) {
        match &settings.dead_letters {
            Some(destination) => {
                text.push_str("\nDead letter (it also has dlqreason, dlqcode and dlqattempts):\n");
                record(settings, event, destination, text);
            }
            None if settings.store.is_some() => text.push_str("\nDead letter, kept in the database of the spool\n"),
            None => text.push_str(
                "\nDead letter: there is no spool and dead_letters.to is not set, so the answer is 503 and nothing is kept\n",
            ),
        }
    }
}

fn record(settings: &Settings, event: &Event, destination: &Destination, text: &mut String) {
    // Routes only name outputs that exist.
    let Some(output) = settings.outputs.iter().find(|output| output.name == destination.output) else { return };
    let record = Record::new(&Arc::new(event.clone()), destination, &settings.type_prefix);
    let rendered = output.settings.render(&record);
    let mut rows = vec![vec!["  output".to_owned(), format!("{} ({})", output.name, output.kind)]];
    if !matches!(output.rules.topic, TopicRule::None(_)) {
        rows.push(vec!["  topic".to_owned(), record.topic.clone()]);
    }
    if output.rules.has_keys {
        rows.push(vec!["  key".to_owned(), rendered.key.unwrap_or("(none)").to_owned()]);
    }
    rows.push(vec!["  mode".to_owned(), rendered.mode.as_str().to_owned()]);
    for (name, value) in &rendered.headers {
        rows.push(vec!["  header".to_owned(), format!("{name}: {value}")]);
    }
    text.push_str(&table(&rows));
}
