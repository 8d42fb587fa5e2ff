//! Whether a record was alone in its batch.
//!
//! A broker refuses whole batches. When a record was certainly alone in its batch, the refusal is about that record.
//! Any other record is sent again alone.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::output::MAX_PUBLISH_TIME;

/// Counts records in flight, to know whether a record may have shared its batch with others.
#[derive(Default)]
pub(super) struct InFlight(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    handed_over: u64,
    in_flight: u64,
    /// Until when an abandoned record, which nobody waits for any more, may be in the queue of a producer.
    abandoned_until: Option<Instant>,
}

/// A record that is in flight.
pub(super) struct InFlightRecord<'f> {
    in_flight: &'f InFlight,
    number: u64,
    was_alone: bool,
    has_ended: bool,
}

impl InFlight {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn start(&self) -> InFlightRecord<'_> {
        let mut counts = self.lock();
        let is_abandoned = counts.abandoned_until.is_some_and(|until| Instant::now() < until);
        let was_alone = counts.in_flight == 0 && !is_abandoned;
        counts.in_flight += 1;
        counts.handed_over += 1;
        InFlightRecord { in_flight: self, number: counts.handed_over, was_alone, has_ended: false }
    }
}

impl InFlightRecord<'_> {
    /// Ends the record: the producer has reported its outcome. Returns whether no other record was in flight from its
    /// start until now.
    pub(super) fn ended_alone(&mut self) -> bool {
        self.has_ended = true;
        self.was_alone && self.in_flight.lock().handed_over == self.number
    }
}

impl Drop for InFlightRecord<'_> {
    fn drop(&mut self) {
        let mut counts = self.in_flight.lock();
        counts.in_flight -= 1;
        if !self.has_ended {
            counts.abandoned_until = Some(Instant::now() + MAX_PUBLISH_TIME);
        }
    }
}
