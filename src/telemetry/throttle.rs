//! Log messages that do not repeat too often.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many different texts are remembered.
const TEXTS: usize = 16;

/// Lets a message through if it is new or was last logged some time ago. For messages that could repeat all night.
#[derive(Debug)]
pub struct LogThrottle {
    every: Duration,
    /// The texts that were let through, and when.
    recent: Mutex<Vec<(Instant, String)>>,
}

impl LogThrottle {
    /// Lets the same text through once in the given time.
    pub fn every(every: Duration) -> LogThrottle {
        LogThrottle { every, recent: Mutex::default() }
    }

    /// Whether to log it now.
    pub fn is_due(&self, text: &str) -> bool {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|(said, _)| said.elapsed() < self.every);
        if recent.iter().any(|(_, known)| known == text) {
            return false;
        }
        if recent.len() == TEXTS {
            recent.remove(0);
        }
        recent.push((Instant::now(), text.to_owned()));
        true
    }

    /// Forgets all messages: their cause is gone.
    pub fn reset(&self) {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_alternate_are_each_let_through_once() {
        let throttle = LogThrottle::every(Duration::from_secs(60));
        let due: Vec<bool> = ["a", "b", "a", "b", "c", "a"].iter().map(|text| throttle.is_due(text)).collect();
        assert_eq!(due, [true, true, false, false, true, false]);
        throttle.reset();
        assert!(throttle.is_due("a"));
        assert!(LogThrottle::every(Duration::ZERO).is_due("a"));
    }
}
