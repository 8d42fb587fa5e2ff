//! Standard output as an output: one envelope a line, for trying out.

use std::io::Write;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{ErrorKind, Health, Output, PublishError, Record};
use crate::telemetry::metrics::Metrics;

/// Settings: none.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleConfig {}

/// Writes envelopes to standard output.
#[derive(Debug)]
pub struct Console {
    name: String,
    health: Health,
}

impl Console {
    /// A console under a name.
    pub fn new(name: &str, metrics: &Metrics) -> Console {
        let console = Console { name: name.to_owned(), health: Health::new(name, metrics) };
        console.health.up();
        console
    }
}

impl Output for Console {
    fn name(&self) -> &str {
        &self.name
    }

    fn publish<'a>(&'a self, record: &'a Record, _: Instant) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(async move {
            let mut line = record.event.to_json();
            line.push(b'\n');
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
