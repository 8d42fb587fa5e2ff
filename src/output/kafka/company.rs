//! Whether a record was alone in its batch.
//!
//! A broker refuses whole batches. A record that was certainly alone is to blame itself; any other is sent again alone.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::output::MAX_PUBLISH_TIME;

/// Counts records, to know whether one can have shared its batch with others.
#[derive(Default)]
pub(super) struct Company(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    handed_over: u64,
    in_flight: u64,
    /// Until when a record that nobody waits for any more may be in the queue of a producer.
    abandoned_until: Option<Instant>,
}

/// A record that is in flight.
pub(super) struct Member<'c> {
    company: &'c Company,
    number: u64,
    was_alone: bool,
    has_ended: bool,
}

impl Company {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(&self) -> Member<'_> {
        let mut counts = self.lock();
        let is_abandoned = counts.abandoned_until.is_some_and(|until| Instant::now() < until);
        let was_alone = counts.in_flight == 0 && !is_abandoned;
        counts.in_flight += 1;
        counts.handed_over += 1;
        Member { company: self, number: counts.handed_over, was_alone, has_ended: false }
    }
}

impl Member<'_> {
    /// The producer has reported what became of it. Whether no other record was in flight from its start until now.
    pub(super) fn ended_alone(&mut self) -> bool {
        self.has_ended = true;
        self.was_alone && self.company.lock().handed_over == self.number
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        let mut counts = self.company.lock();
        counts.in_flight -= 1;
        if !self.has_ended {
            counts.abandoned_until = Some(Instant::now() + MAX_PUBLISH_TIME);
        }
    }
}
