//! Logs: text on a terminal, JSON lines otherwise, on standard error.
//!
//! ERROR means that data was lost or that an operator must act. WARN means that something is wrong, but no
//! accepted event was lost. Nothing is logged per event at INFO.

use std::fmt;
use std::io::IsTerminal;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text on a terminal, otherwise JSON.
    #[default]
    Auto,
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Why a filter is invalid.
#[derive(Debug, thiserror::Error)]
#[error("invalid filter `{filter}`: {error}; expected for example info, or apsara_bridge=debug,info")]
pub struct InvalidFilter {
    filter: String,
    error: tracing_subscriber::filter::ParseError,
}

/// Checks a filter, for example `info` or `apsara_bridge=debug,info`.
///
/// # Errors
/// What is wrong with it.
pub fn check_filter(filter: &str) -> Result<(), InvalidFilter> {
    EnvFilter::try_new(filter).map(|_| ()).map_err(|error| InvalidFilter { filter: filter.to_owned(), error })
}

/// async-nats logs every attempt to connect, failures as ERROR. The output reports an outage itself, once.
fn env_filter(filter: &str) -> EnvFilter {
    EnvFilter::try_new(format!("async_nats=off,{filter}")).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Changes the filter of the running process.
pub struct LogFilter(Box<dyn Fn(EnvFilter) + Send + Sync>);

impl fmt::Debug for LogFilter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("LogFilter")
    }
}

impl LogFilter {
    /// Sets the filter, which must be valid.
    pub fn set(&self, filter: &str) {
        (self.0)(env_filter(filter));
    }
}

/// Starts logging for the process. A second call has no effect, and the filter that it returns has none either.
pub fn start(format: Format, filter: &str) -> LogFilter {
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr);
    let json = format == Format::Json || format == Format::Auto && !terminal;
    // `try_init` fails only if a subscriber is already set, `reload` only if the subscriber no longer exists.
    if json {
        let builder = builder.json().flatten_event(true).with_current_span(false).with_span_list(false);
        let builder = builder.with_env_filter(env_filter(filter)).with_filter_reloading();
        let handle = builder.reload_handle();
        let _ = builder.try_init();
        LogFilter(Box::new(move |filter| drop(handle.reload(filter))))
    } else {
        let builder = builder.with_ansi(terminal && std::env::var_os("NO_COLOR").is_none());
        let builder = builder.with_env_filter(env_filter(filter)).with_filter_reloading();
        let handle = builder.reload_handle();
        let _ = builder.try_init();
        LogFilter(Box::new(move |filter| drop(handle.reload(filter))))
    }
}
