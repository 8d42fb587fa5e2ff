//! Standard output as an output: one envelope a line, for trying out. What a terminal would obey is escaped.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    DestinationRules, ErrorKind, Health, Needs, Output, OutputConfig, OutputContext, OutputKind, OutputSettings,
    PublishError, Record, Rendered, TopicRule,
};
use crate::common::findings::Findings;
use crate::common::kind::KindKeys;
use crate::common::validation::{FieldError, Validation};
use crate::common::visible;
use crate::event::Mode;
use crate::telemetry::metrics::Metrics;

/// The kind.
pub(super) const KIND: OutputKind = OutputKind {
    name: "console",
    keys: KindKeys::NONE,
    read: super::read::<ConsoleConfig>,
    schema: <ConsoleConfig as JsonSchema>::json_schema,
};

/// Standard output, one envelope per line, for trying out. It has no other keys.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleConfig {}

impl OutputConfig for ConsoleConfig {
    fn validate(&self, context: OutputContext<'_>, _: &mut Validation) -> Option<Box<dyn OutputSettings>> {
        Some(Box::new(ConsoleSettings { name: context.name.to_owned() }))
    }

    fn destination_rules(&self) -> DestinationRules {
        DestinationRules { has_keys: false, topic: TopicRule::Optional("console") }
    }

    fn effective(&self) -> Result<toml::Table, toml::ser::Error> {
        toml::Table::try_from(self)
    }
}

/// Checked settings: the name.
#[derive(Debug)]
struct ConsoleSettings {
    name: String,
}

impl OutputSettings for ConsoleSettings {
    fn start(self: Box<Self>, metrics: &Metrics) -> Result<Arc<dyn Output>, FieldError> {
        let console = Console { health: Health::new(&self.name, metrics), settings: *self };
        console.health.up();
        Ok(Arc::new(console))
    }

    fn examine<'a>(&'a self, _: &'a Needs, findings: &'a Findings) -> BoxFuture<'a, ()> {
        findings.ok("output", "events are printed, for trying out");
        Box::pin(std::future::ready(()))
    }

    fn render<'r>(&self, record: &'r Record) -> Rendered<'r> {
        let mut line = visible::json(&record.event.to_json()).into_owned();
        line.push(b'\n');
        Rendered { mode: Mode::Structured, key: None, headers: Vec::new(), payload: Bytes::from(line) }
    }
}

/// Writes envelopes to standard output.
#[derive(Debug)]
struct Console {
    settings: ConsoleSettings,
    health: Health,
}

impl Output for Console {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn publish<'a>(&'a self, record: &'a Record, _: Instant) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(async move {
            let line = self.settings.render(record).payload;
            let mut out = std::io::stdout().lock();
            out.write_all(&line)
                .and_then(|()| out.flush())
                .map_err(|error| PublishError::new(ErrorKind::Unavailable, error))
        })
    }

    fn health(&self) -> &Health {
        &self.health
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    #[test]
    fn a_line_cannot_control_the_terminal() {
        let data = "{\"a\":\"\u{9b}31m\u{202e}\"}";
        let record = Record { event: Arc::new(Event::new(data)), topic: "t".to_owned(), key: None, mode: None };
        let line = ConsoleSettings { name: "console".to_owned() }.render(&record).payload;
        let line = std::str::from_utf8(&line).expect("text");
        assert!(line.contains(r#""data":{"a":"\u009b31m\u202e"}"#) && line.ends_with("}\n"), "{line:?}");
    }
}
