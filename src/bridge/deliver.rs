//! From an event to its outcome: route it, publish it to all destinations at once, keep what was not acknowledged.
//!
//! What can be published later goes to the spool, and what cannot be published at all to the dead letters: all of it, or
//! nothing. If the store cannot take it, it is published past older events, because losing an event is worse than
//! changing the order.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::dead_letters::{self, Announced, PendingLetter};
use super::feed::{DestinationResult, Trace};
use super::publish::{Addressed, Failure, Pace};
use super::{Bridge, Callback, DeadLetterReason, Outcome, Refusal, Rules};
use crate::event::Event;
use crate::route::{Decision, Fate};
use crate::store::{FailureKind, SpoolRecord, Store, StoreError};

/// How long after its arrival a callback waits for the store. IMS waits 3 s for an answer (Alibaba's page on IMS
/// callbacks).
pub(super) const STORE_DEADLINE: Duration = Duration::from_millis(2500);

/// The time for publishing what the store could not take, when the deadline is over.
const LAST_TRY: Duration = Duration::from_millis(400);

/// How long after its arrival a callback is answered at the latest, for the same reason.
const LATEST_ANSWER: Duration = Duration::from_millis(2900);

/// What became of an event.
pub(super) struct Delivered {
    pub(super) outcome: Outcome,
    /// What is noted about it because it has failed, if nothing was noted before.
    pub(super) trace: Option<Box<Trace>>,
    /// Whether a destination or the spool has it, or a route dropped it. A repeat of it is a duplicate then.
    pub(super) is_accepted: bool,
}

/// What was not acknowledged of one event, and must be kept.
#[derive(Debug)]
struct Undelivered {
    /// To be published later.
    failures: Vec<Failure>,
    /// Cannot be published as they are.
    letters: Vec<PendingLetter>,
    /// Destinations of the event, with those that have acknowledged it.
    destinations: usize,
}

/// Where what was not acknowledged is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeptIn {
    /// Records are in the spool, and dead letters in their table or at their destination.
    Store,
    /// The dead letters are full: everything is in the spool.
    SpoolOnly,
    /// The store failed, and every bus has acknowledged it after all.
    Buses,
}

impl Bridge {
    /// Routes an event, publishes it, and keeps what was not acknowledged.
    pub(super) async fn deliver(
        &self,
        rules: &Rules,
        callback: &Callback,
        event: &Arc<Event>,
        trace: Option<&Trace>,
    ) -> Delivered {
        let decision = rules.router.decide(event);
        let addressed = decision.destinations.iter().map(|(route, destination)| Addressed {
            route: &route.name,
            output: &destination.output,
            record: rules.record(event, destination),
        });
        let addressed: Vec<Addressed<'_>> = addressed.collect();
        rules.count_matches(&decision);
        let pace = self.pace(callback);
        let destinations = addressed.len();
        let failures = self.publish_all(addressed, pace, trace).await;
        let is_published_somewhere = failures.len() < destinations;
        let mut undelivered = Undelivered { failures: Vec::new(), letters: Vec::new(), destinations };
        for failure in failures {
            let reason = match failure.error.kind {
                kind if !kind.is_retriable() => DeadLetterReason::Publish(kind),
                _ if callback.is_last_try => DeadLetterReason::Exhausted,
                _ => {
                    undelivered.failures.push(*failure);
                    continue;
                }
            };
            let letter = dead_letters::of_failure(reason, &failure, callback, event);
            undelivered.letters.push(PendingLetter { reason, letter, failure: Some(failure), is_announced: false });
        }
        let routed = match decision.fate() {
            Fate::Unrouted => Some((DeadLetterReason::Unrouted, None)),
            Fate::DeadLetter(route) => Some((DeadLetterReason::Routed, Some(route.name.as_str()))),
            Fate::Dropped(_) | Fate::Published => None,
        };
        if let Some((reason, route)) = routed {
            let letter = dead_letters::of_event(reason, callback, event, route);
            undelivered.letters.push(PendingLetter { reason, letter, failure: None, is_announced: false });
        }
        let is_spooled = !undelivered.failures.is_empty();
        let outcome = match (undelivered.letters.first(), is_spooled) {
            (Some(first), _) => Outcome::DeadLettered(first.reason),
            (None, true) => Outcome::Spooled,
            (None, false) if destinations == 0 => Outcome::Dropped,
            (None, false) => return Delivered { outcome: Outcome::Published, trace: None, is_accepted: true },
        };
        let is_accepted = is_published_somewhere || is_spooled || outcome == Outcome::Dropped;
        let kept = Box::pin(self.keep(rules, callback, event, &mut undelivered, pace.deadline())).await;
        let (retriable, permanent) = results(&kept, callback);
        let (outcome, is_accepted) = match kept {
            Ok(KeptIn::Store) => (outcome, is_accepted),
            Ok(KeptIn::SpoolOnly) => (Outcome::Spooled, true),
            Ok(KeptIn::Buses) if outcome == Outcome::Spooled => (Outcome::Published, true),
            Ok(KeptIn::Buses) => (outcome, is_accepted),
            Err(refusal) => (Outcome::Refused(refusal), false),
        };
        let late = match trace {
            Some(_) => None,
            None => self.late_trace(rules, event, &decision, &undelivered, &outcome),
        };
        if let Some(trace) = trace.or(late.as_deref()) {
            trace.settle(retriable, permanent);
        }
        Delivered { outcome, trace: late, is_accepted }
    }

    /// Notes what became of an event that has failed, afterwards.
    fn late_trace(
        &self,
        rules: &Rules,
        event: &Arc<Event>,
        decision: &Decision<'_>,
        undelivered: &Undelivered,
        outcome: &Outcome,
    ) -> Option<Box<Trace>> {
        let mut trace = self.feed.late_trace(outcome)?;
        let letters = undelivered.letters.iter().filter_map(|pending| pending.failure.as_deref());
        let mut failures: Vec<&Failure> = undelivered.failures.iter().chain(letters).collect();
        for (route, destination) in &decision.destinations {
            let topic = destination.topic.topic(event, rules.normalizer.type_prefix());
            let is_it = |failure: &&Failure| {
                (&failure.route, &failure.output, &failure.record.topic) == (&route.name, &destination.output, &topic)
                    && failure.record.mode == destination.mode
            };
            match failures.iter().position(is_it) {
                Some(position) => trace.add_failed(failures.swap_remove(position)),
                None => trace.add_published(&route.name, &destination.output, &topic),
            }
        }
        Some(trace)
    }

    fn pace(&self, callback: &Callback) -> Pace {
        match callback.max_publish_time {
            None => Pace::Prompt(callback.arrived + self.deadline),
            Some(time) => Pace::Patient(callback.arrived + time),
        }
    }

    /// Publishes to all destinations at once. Returns those that failed.
    async fn publish_all(
        &self,
        mut addressed: Vec<Addressed<'_>>,
        pace: Pace,
        trace: Option<&Trace>,
    ) -> Vec<Box<Failure>> {
        let permit = match self.in_flight_permits.semaphore().try_acquire() {
            Ok(permit) => Some(permit),
            Err(_) => {
                tokio::select! {
                    permit = self.in_flight_permits.semaphore().acquire() => permit.ok(),
                    () = tokio::time::sleep_until(pace.deadline()) => None,
                    () = self.cancel_in_flight.cancelled() => None,
                }
            }
        };
        let pace = permit.is_some().then_some(pace);
        if addressed.len() == 1
            && let Some(only) = addressed.pop()
        {
            return self.publish_traced(only, pace, trace).await.err().into_iter().collect();
        }
        let publish = addressed.into_iter().map(|to| self.publish_traced(to, pace, trace));
        join_all(publish).await.into_iter().filter_map(Result::err).collect()
    }

    /// Keeps what was not acknowledged: all of it, or nothing.
    async fn keep(
        &self,
        rules: &Rules,
        callback: &Callback,
        event: &Arc<Event>,
        undelivered: &mut Undelivered,
        deadline: Instant,
    ) -> Result<KeptIn, Refusal> {
        let mut announcements = Vec::new();
        for pending in &mut undelivered.letters {
            match self.announce(rules, event, pending.reason, &pending.letter, deadline).await? {
                Announced::Published => pending.is_announced = true,
                Announced::Later(record) => announcements.push(record),
                Announced::No => {}
            }
        }
        let Some(store) = &self.store else {
            if !undelivered.failures.is_empty() {
                return Err(not_published(undelivered));
            }
            // The letters were announced; otherwise `announce` would have refused the callback.
            self.letters_kept(undelivered);
            return Ok(KeptIn::Store);
        };
        match self.store_undelivered(store, callback, undelivered, announcements, deadline).await {
            Ok(KeptIn::SpoolOnly) => Ok(KeptIn::SpoolOnly),
            Ok(kept_in) => {
                self.letters_kept(undelivered);
                Ok(kept_in)
            }
            Err(error) => self.publish_past_store(callback, undelivered, error, deadline).await,
        }
    }

    /// Stores records, letters and announcements in one transaction. If the dead letters are full, all of it waits in the
    /// spool.
    ///
    /// # Errors
    /// Why nothing is known to be stored.
    async fn store_undelivered(
        &self,
        store: &Store,
        callback: &Callback,
        undelivered: &Undelivered,
        announcements: Vec<SpoolRecord>,
        deadline: Instant,
    ) -> Result<KeptIn, StoreError> {
        let Undelivered { failures, letters, .. } = undelivered;
        if failures.is_empty() && letters.is_empty() {
            return Ok(KeptIn::Store);
        }
        let records = || failures.iter().map(|failure| failure.spool_record(callback.body.clone()));
        let wanted: Vec<SpoolRecord> = records().chain(announcements.iter().cloned()).collect();
        let rows = letters.iter().map(|pending| pending.letter.clone()).collect();
        let until = (callback.arrived + STORE_DEADLINE).max(Instant::now() + STORE_DEADLINE / 2).max(deadline);
        let is_up = |output: &str| self.is_up(output);
        let error = match in_time(until, store.keep_within(wanted, rows, is_up)).await {
            Ok(()) => return Ok(KeptIn::Store),
            Err(error) => error,
        };
        if error.kind == FailureKind::DeadLettersFull {
            let waiting = letters.iter().map(|pending| pending.spool_record(callback.body.clone()));
            let records = records().chain(waiting).chain(announcements).collect();
            if in_time(until, store.keep_within(records, Vec::new(), is_up)).await.is_ok() {
                return Ok(KeptIn::SpoolOnly);
            }
        }
        Err(error)
    }

    /// Publishes what the store could not take, past older records of the spool.
    async fn publish_past_store(
        &self,
        callback: &Callback,
        undelivered: &Undelivered,
        error: StoreError,
        deadline: Instant,
    ) -> Result<KeptIn, Refusal> {
        let Undelivered { failures, letters, .. } = undelivered;
        let last = deadline.max((Instant::now() + LAST_TRY).min(callback.arrived + LATEST_ANSWER));
        let tries = failures.iter().map(|failure| self.publish_past_backlog(failure, last));
        let is_published = join_all(tries).await.into_iter().all(|is_published| is_published);
        if is_published && letters.iter().all(|pending| pending.is_announced) {
            self.letters_kept(undelivered);
            return Ok(KeptIn::Buses);
        }
        for pending in letters {
            self.dead_letter_not_kept(pending.reason);
        }
        Err(Refusal::NotKept(error.kind))
    }

    fn letters_kept(&self, undelivered: &Undelivered) {
        undelivered.letters.iter().for_each(|pending| self.dead_letter_kept(&pending.letter));
    }
}

/// What became of the destinations that have failed: of those that can be tried again, and of those that cannot.
fn results(kept: &Result<KeptIn, Refusal>, callback: &Callback) -> (DestinationResult, DestinationResult) {
    use DestinationResult::{DeadLettered, Published, Refused, Spooled};
    match kept {
        Ok(KeptIn::Store) if callback.is_last_try => (DeadLettered, DeadLettered),
        Ok(KeptIn::Store) => (Spooled, DeadLettered),
        Ok(KeptIn::SpoolOnly) => (Spooled, Spooled),
        Ok(KeptIn::Buses) => (Published, DeadLettered),
        Err(_) => (Refused, Refused),
    }
}

fn not_published(undelivered: &Undelivered) -> Refusal {
    let mut outputs: Vec<String> = undelivered.failures.iter().map(|failure| failure.output.clone()).collect();
    outputs.sort_unstable();
    outputs.dedup();
    Refusal::NotPublished { outputs, failed: undelivered.failures.len(), destinations: undelivered.destinations }
}

/// Waits for the store until a time. What is stored after that is found in the spool later, as a repeat with the same id.
///
/// # Errors
/// The store's, and [`FailureKind::Io`] when the time is over.
pub(super) async fn in_time(
    until: Instant,
    kept: impl Future<Output = Result<(), StoreError>>,
) -> Result<(), StoreError> {
    let late = |_| Err(StoreError::new(FailureKind::Io, "the disk did not answer in time"));
    tokio::time::timeout_at(until, kept).await.unwrap_or_else(late)
}
