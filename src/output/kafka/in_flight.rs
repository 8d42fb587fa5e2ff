//! Whether a record was alone in its batch.
//!
//! A broker refuses whole batches. When a record was certainly alone in its batch, the refusal is about that record.
//! Any other record is sent again alone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::output::MAX_PUBLISH_TIME;

/// Counts records in flight, to know whether a record may have shared its batch with others.
#[derive(Default)]
pub(super) struct InFlight {
    /// The number of records in flight in the low half, and the number of records that were ever handed over in the high
    /// half, where it may overflow. They are one atomic number, because every record changes both.
    counts: AtomicU64,
    /// Until when an abandoned record, which nobody waits for any more, may be in the queue of a producer.
    abandoned_until: Mutex<Option<Instant>>,
}

/// A record that was handed over, and is in flight.
const STARTED: u64 = (1 << 32) + 1;

/// A record that is in flight.
pub(super) struct InFlightRecord<'f> {
    in_flight: &'f InFlight,
    number: u64,
    was_alone: bool,
    has_ended: bool,
}

impl InFlight {
    pub(super) fn start(&self) -> InFlightRecord<'_> {
        let before = self.counts.fetch_add(STARTED, Ordering::SeqCst);
        let was_alone = before as u32 == 0 && !self.has_abandoned();
        InFlightRecord {
            in_flight: self,
            number: handed_over(before.wrapping_add(STARTED)),
            was_alone,
            has_ended: false,
        }
    }

    fn has_abandoned(&self) -> bool {
        let until = *self.abandoned_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }
}

fn handed_over(counts: u64) -> u64 {
    counts >> 32
}

impl InFlightRecord<'_> {
    /// Ends the record: the producer has reported its outcome. Returns whether no other record was in flight from its
    /// start until now.
    pub(super) fn ended_alone(&mut self) -> bool {
        self.has_ended = true;
        self.was_alone && handed_over(self.in_flight.counts.load(Ordering::SeqCst)) == self.number
    }
}

impl Drop for InFlightRecord<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let mut until = self.in_flight.abandoned_until.lock().unwrap_or_else(PoisonError::into_inner);
            *until = Some(Instant::now() + MAX_PUBLISH_TIME);
        }
        // Only now, so that no record starts in between and believes that it is alone.
        self.in_flight.counts.fetch_sub(1, Ordering::SeqCst);
    }
}
