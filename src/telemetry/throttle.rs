//! Log messages that do not repeat too often.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets a message through if it is new or was last logged some time ago. For messages that could repeat all night.
#[derive(Debug)]
pub struct LogThrottle {
    every: Duration,
    last: Mutex<Option<(Instant, String)>>,
}

impl LogThrottle {
    /// Lets the same text through once in the given time.
    pub fn every(every: Duration) -> LogThrottle {
        LogThrottle { every, last: Mutex::new(None) }
    }

    /// Whether to log it now.
    pub fn is_due(&self, text: &str) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.as_ref().is_none_or(|(said, known)| known != text || said.elapsed() >= self.every);
        if due {
            *last = Some((Instant::now(), text.to_owned()));
        }
        due
    }

    /// Forgets the last message: its cause is gone.
    pub fn reset(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
