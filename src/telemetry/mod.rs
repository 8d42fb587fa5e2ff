//! What the bridge tells of itself: metrics ([`metrics`]) and logs ([`logs`]).

pub mod logs;
pub mod metrics;

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Lets a message through that is new, or was not said for a while: for what would otherwise repeat all night.
#[derive(Debug)]
pub struct Seldom {
    every: Duration,
    last: Mutex<Option<(Instant, String)>>,
}

impl Seldom {
    /// Lets the same text through once in the given time.
    pub fn every(every: Duration) -> Seldom {
        Seldom { every, last: Mutex::new(None) }
    }

    /// Whether to say it now.
    pub fn is_due(&self, text: &str) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.as_ref().is_none_or(|(said, known)| known != text || said.elapsed() >= self.every);
        if due {
            *last = Some((Instant::now(), text.to_owned()));
        }
        due
    }

    /// Forgets what was said: the trouble is over.
    pub fn reset(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
