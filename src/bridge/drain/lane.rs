//! The drain of one lane: which record is next, when it is tried, and why it fails.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::common::backoff::jittered;
use crate::event::cut;
use crate::output::{ErrorClass, PublishError};
use crate::store::{self, Lane, LaneFailure, Spooled};

/// Pause after a failure: doubles from the first to the second. Half of it is random, so that replicas do not retry at the
/// same moment.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// The longest pause while a failure is young. An election or a restart is over in seconds, and events should not wait
/// much longer.
const YOUNG_PAUSE: Duration = Duration::from_secs(2);

/// Records of the first batch, and the most of any batch. Kafka's client has room for 100 000 records and 64 MiB.
const BATCH: (usize, usize) = (64, 2048);

/// After a batch that took longer, the next one is smaller.
const SLOW_BATCH: Duration = Duration::from_millis(250);

/// Most bytes of the message of a bus that are kept for each lane.
const MAX_MESSAGE: usize = 512;

/// How long a lane fails before the log names it. Most elections are over sooner.
pub(super) const NAMED_AFTER: Duration = Duration::from_secs(5);

/// How long a lane fails before it is reported as an error that a person should look at.
pub(super) const REPORTED_AFTER: Duration = Duration::from_secs(60);

/// What a lane is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Everything was read.
    Idle,
    /// It is to be read.
    Queued,
    /// It is being read.
    Reading,
    /// It waits for a time, or for its output.
    Waiting,
    /// As idle, with records whose dead letters had no room. They are read again at a time.
    Resting,
}

/// Why a lane fails, since when, and how often.
#[derive(Clone, Debug)]
pub(super) struct Failing {
    pub(super) error: PublishError,
    /// The first failure since the last success.
    pub(super) since: Instant,
    /// The first operator's error since which there were only operator's errors.
    pub(super) operator_since: Option<Instant>,
    pub(super) attempts: u32,
    /// Whether it was named in the log.
    pub(super) is_named: bool,
    /// When it was reported last as an error.
    pub(super) reported: Option<Instant>,
    pause: Duration,
}

impl Failing {
    /// Whether old records become dead letters.
    pub(super) fn is_given_up(&self, give_up_after: Duration) -> bool {
        self.operator_since.is_some_and(|since| since.elapsed() >= give_up_after)
    }
}

/// The drain of one lane.
#[derive(Debug)]
pub(super) struct LaneDrain {
    pub(super) lane: Arc<Lane>,
    pub(super) phase: Phase,
    /// Position of the last record that was read.
    pub(super) after: i64,
    /// Records that were added while it was being read.
    pub(super) has_more: bool,
    /// Whether a batch is being published.
    pub(super) is_publishing: bool,
    /// The next batch, and whether it was read when the lane was apart.
    pub(super) ahead: Option<(Vec<Spooled>, bool)>,
    /// Records that were settled and are still on the disk.
    pub(super) unremoved: usize,
    pub(super) failing: Option<Failing>,
    /// Whether records are not acknowledged in the usual time. They get more time, apart from other lanes.
    is_slow: bool,
    /// Whether the last batch was acknowledged.
    is_flowing: bool,
    batch: usize,
    /// When records first stayed because there was no room for their dead letters.
    pub(super) retained: Option<Instant>,
    /// Increases when the result of an older read must be ignored.
    pub(super) turn: u64,
}

impl LaneDrain {
    pub(super) fn new(lane: Arc<Lane>) -> LaneDrain {
        LaneDrain {
            lane,
            phase: Phase::Idle,
            after: 0,
            has_more: false,
            is_publishing: false,
            ahead: None,
            unremoved: 0,
            failing: None,
            is_slow: false,
            is_flowing: false,
            batch: BATCH.0,
            retained: None,
            turn: 0,
        }
    }

    /// Whether its records are published apart from healthy lanes, with more time.
    pub(super) fn is_apart(&self) -> bool {
        self.is_slow || self.failing.is_some()
    }

    /// Whether events that arrive now may follow a batch directly, without the disk. Only after a batch was acknowledged:
    /// otherwise they would wait for a bus that does not answer.
    pub(super) fn is_followed(&self) -> bool {
        self.is_flowing && !self.is_apart()
    }

    /// Number of records to read next.
    pub(super) fn wanted(&self) -> usize {
        self.batch
    }

    /// Everything after a position must be read again.
    pub(super) fn reread(&mut self, after: i64) {
        self.after = after;
        self.ahead = None;
        self.turn += 1;
    }

    /// All records of a batch were acknowledged, or became dead letters. `deadline` is the usual time. Returns the failure
    /// that has ended.
    pub(super) fn succeeded(&mut self, took: Duration, deadline: Duration) -> Option<Failing> {
        self.lane.succeeded();
        self.is_flowing = true;
        self.is_slow &= took > deadline / 2;
        self.batch = if took > SLOW_BATCH { (self.batch / 2).max(1) } else { (self.batch * 2).min(BATCH.1) };
        self.failing.take()
    }

    /// All records of a batch were given up. This is not a success.
    pub(super) fn gave_up(&mut self) {
        self.batch = BATCH.0;
    }

    /// The output is down, which resets the clock of operator's errors.
    pub(super) fn output_is_down(&mut self) {
        if let Some(failing) = &mut self.failing {
            failing.operator_since = None;
        }
    }

    /// A record was not acknowledged. Returns how long to wait: not at all after old records were given up.
    pub(super) fn failed(&mut self, error: PublishError, has_given_up: bool) -> Duration {
        self.is_flowing = false;
        self.is_slow |= error.kind == crate::output::ErrorKind::TimedOut;
        let class = error.kind.class();
        let now = Instant::now();
        let failing = self.failing.get_or_insert_with(|| Failing {
            error: error.clone(),
            since: now,
            operator_since: None,
            attempts: 0,
            is_named: false,
            reported: None,
            pause: PAUSE.0,
        });
        failing.error = error;
        failing.attempts = failing.attempts.saturating_add(1);
        let at = store::now();
        self.lane.failed(LaneFailure {
            since: at.saturating_sub_unsigned(u64::try_from(failing.since.elapsed().as_millis()).unwrap_or(0)),
            at,
            kind: failing.error.kind.as_str(),
            message: cut(&failing.error.message, MAX_MESSAGE).to_owned(),
            attempts: failing.attempts,
            remedy: failing.error.kind.remedy(),
        });
        failing.operator_since = match class {
            ErrorClass::Operator => failing.operator_since.or(Some(now)),
            ErrorClass::Transient | ErrorClass::Permanent => None,
        };
        if has_given_up {
            self.batch = BATCH.0;
            return Duration::ZERO;
        }
        self.batch = 1;
        let pause = failing.pause;
        let is_young = failing.since.elapsed() < REPORTED_AFTER;
        failing.pause = (pause * 2).min(if is_young { YOUNG_PAUSE } else { PAUSE.1 });
        jittered(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ErrorKind;

    const SECOND: Duration = Duration::from_secs(1);

    fn lane() -> LaneDrain {
        LaneDrain::new(Arc::new(Lane::new("kafka", "media")))
    }

    fn error(kind: ErrorKind) -> PublishError {
        PublishError::new(kind, "as the bus said")
    }

    #[tokio::test(start_paused = true)]
    async fn only_operators_errors_run_the_clock() {
        let hour = Duration::from_secs(3600);
        let mut lane = lane();
        let given_up = |lane: &LaneDrain| lane.failing.as_ref().is_some_and(|failing| failing.is_given_up(hour));
        for interruption in [ErrorKind::TimedOut, ErrorKind::Unavailable, ErrorKind::QueueFull] {
            lane.failed(error(ErrorKind::NoSuchDestination), false);
            tokio::time::advance(hour - Duration::from_secs(1)).await;
            lane.failed(error(ErrorKind::Unauthorized), false);
            assert!(!given_up(&lane));
            lane.failed(error(interruption), false);
            tokio::time::advance(hour).await;
            assert!(!given_up(&lane), "{interruption:?} resets the clock");
        }
        lane.failed(error(ErrorKind::Misconfigured), false);
        tokio::time::advance(hour).await;
        assert!(given_up(&lane));
        assert!(lane.succeeded(Duration::ZERO, SECOND).is_some());
        assert!(lane.failing.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn retries_start_within_a_second_and_back_off_to_half_a_minute() {
        let mut lane = lane();
        let mut waits = Vec::new();
        for _ in 0..60 {
            let wait = lane.failed(error(ErrorKind::NoSuchDestination), false);
            tokio::time::advance(wait).await;
            waits.push(wait);
        }
        assert!(waits[0] <= Duration::from_millis(100), "{waits:?}");
        assert!(waits.iter().take_while(|wait| **wait <= Duration::from_secs(1)).count() >= 3, "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= PAUSE.1), "{waits:?}");
        assert!(waits[59] >= PAUSE.1 / 2, "{waits:?}");
        let sums = waits.iter().scan(Duration::ZERO, |sum, wait| {
            *sum += *wait;
            Some((*sum, *wait))
        });
        for (sum, wait) in sums {
            assert!(sum > REPORTED_AFTER || wait <= YOUNG_PAUSE, "{waits:?}");
        }
    }

    #[test]
    fn a_failure_shrinks_the_batch_and_success_enlarges_it_again() {
        let mut lane = lane();
        assert_eq!(lane.wanted(), BATCH.0);
        for _ in 0..10 {
            lane.succeeded(Duration::ZERO, SECOND);
        }
        assert_eq!(lane.wanted(), BATCH.1);
        lane.succeeded(SECOND, SECOND);
        assert_eq!(lane.wanted(), BATCH.1 / 2);
        lane.failed(error(ErrorKind::TimedOut), false);
        assert_eq!(lane.wanted(), 1);
        assert!(lane.is_apart());
        lane.succeeded(SECOND, SECOND);
        assert!(lane.is_apart(), "it is still slow");
        lane.succeeded(Duration::ZERO, SECOND);
        assert!(!lane.is_apart());
    }
}
