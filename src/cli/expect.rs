//! What the surroundings of a bridge depend on, for `check`: a Service needs a port, a pod has so much time to stop.

use std::time::Duration;

use crate::common::units::Span;
use crate::config::Loaded;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Expectations {
    /// Fail unless this key has this value, written as `check` prints it, without quotes.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    expect: Vec<(String, String)>,
    /// Fail if the bridge may take longer than this to stop, for example 37s.
    #[arg(long, value_name = "TIME", value_parser = super::span)]
    max_stop: Option<Duration>,
}

impl Expectations {
    /// A sentence for each that a configuration does not meet.
    pub(super) fn unmet(&self, loaded: &Loaded) -> Vec<String> {
        let mut unmet = Vec::new();
        for (key, expected) in &self.expect {
            match loaded.effective.text(key) {
                Some(found) if found == *expected => {}
                Some(found) => unmet.push(format!("{key}: found `{found}`; expected `{expected}`, by --expect")),
                None => unmet.push(format!("{key}: missing; expected `{expected}`, by --expect")),
            }
        }
        let longest = loaded.settings.longest_stop();
        if let Some(max) = self.max_stop.filter(|max| longest > *max) {
            unmet.push(format!(
                "shutdown: stopping may take {} (shutdown.delay, shutdown.drain and a reserve); expected at most {}, by \
                 --max-stop",
                Span(longest),
                Span(max)
            ));
        }
        unmet
    }
}

/// Reads `key=value`.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("expected section.key=value".to_owned()),
    }
}
