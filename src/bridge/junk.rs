//! How fast bodies that are not callbacks may become dead letters.
//!
//! Whoever has one captured signature, or can write to the queue, can send such bodies without end. A person looks at a
//! few of them; the rest is only counted.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::telemetry::LogThrottle;

/// One such body is kept in this time, in the long run.
const EVERY: Duration = Duration::from_millis(100);

/// So many are kept at once, after a quiet time.
const BURST: u32 = 100;

/// How often bodies that are not kept are logged.
const REMIND: Duration = Duration::from_secs(60);

/// The rate at which they came.
#[derive(Debug)]
pub(super) struct JunkRate {
    /// When all that was let through would have been due at the steady rate.
    due: Mutex<Option<Instant>>,
    pub(super) throttle: LogThrottle,
}

impl Default for JunkRate {
    fn default() -> Self {
        JunkRate { due: Mutex::default(), throttle: LogThrottle::every(REMIND) }
    }
}

impl JunkRate {
    /// Whether one more may be kept. It counts then.
    pub(super) fn is_within_rate(&self) -> bool {
        let now = Instant::now();
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let next = due.unwrap_or(now).max(now) + EVERY;
        let is_within = next <= now + EVERY * BURST;
        if is_within {
            *due = Some(next);
        }
        is_within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_kept_and_then_one_at_a_time() {
        let rate = JunkRate::default();
        let kept = |count: usize| (0..count).filter(|_| rate.is_within_rate()).count();
        assert_eq!(kept(1_000), 100);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(kept(1_000), 10);
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert_eq!(kept(1_000), 100);
    }
}
