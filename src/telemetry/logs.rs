//! Logs: text on a terminal, JSON lines otherwise, on standard error.
//!
//! ERROR means that data was lost or an operator is needed, WARN that something is wrong but nothing lost. Nothing
//! is logged per event at INFO.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Checks a filter, as `info` or `apsara_bridge=debug,info`.
///
/// # Errors
/// A phrase with what is wrong.
pub fn check_filter(filter: &str) -> Result<(), String> {
    EnvFilter::try_new(filter).map(|_| ()).map_err(|error| format!("`{filter}` is no log filter: {error}"))
}

/// Starts logging for the process; a second call changes nothing.
pub fn start(format: Format, filter: &str) {
    let terminal = std::io::stderr().is_terminal();
    // async-nats logs every attempt to connect, failures as ERROR; the output reports an outage itself, and seldom.
    let filter = EnvFilter::try_new(format!("async_nats=off,{filter}")).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let json = format == Format::Json || format == Format::Auto && !terminal;
    // The only error is that a subscriber is set already.
    let _ = if json {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    } else {
        builder.with_ansi(terminal && std::env::var_os("NO_COLOR").is_none()).try_init()
    };
}
