//! Publishing one batch of a lane.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::bridge::deliver::{Failure, spool_record};
use crate::bridge::{Bridge, DeadLetterReason, Target};
use crate::event::{Attribute, Event};
use crate::output::{ErrorClass, ErrorKind, PublishError, Record};
use crate::store::{AWAITS_DEAD_LETTERS, DeadLetter, Lane, Settled, SpoolRecord, Spooled, damaged_record, now};

/// Records of one lane, in order.
pub(super) struct Batch {
    pub(super) lane: Arc<Lane>,
    pub(super) records: Vec<Spooled>,
    /// Whether events that come now may follow the batch without waiting for the disk.
    pub(super) is_followed: bool,
    /// How long each may take.
    pub(super) time: Duration,
    /// Attempts since the first failure.
    pub(super) attempts: u32,
    /// Records spooled before this time, in Unix milliseconds, become dead letters when an operator's error prevents
    /// them from being published.
    pub(super) give_up_before: Option<i64>,
}

/// What became of a batch.
#[derive(Default)]
pub(super) struct Published {
    /// Acknowledged, or dead letters now.
    pub(super) settled: Vec<Settled>,
    /// Position and error of the first record that has to be tried again.
    pub(super) failed: Option<(i64, PublishError)>,
    /// Whether records were given up because they were too old.
    pub(super) has_given_up: bool,
    pub(super) took: Duration,
}

impl Published {
    /// Nobody knows what became of the batch that begins at a position: all of it is tried again.
    pub(super) fn lost(first: i64, error: &tokio::task::JoinError) -> Published {
        let error = PublishError::new(ErrorKind::Unavailable, format!("publishing ended: {error}"));
        Published { failed: Some((first, error)), ..Published::default() }
    }
}

/// What became of a record.
enum Attempt {
    Acknowledged,
    /// It is not as it was written, or no event.
    Damaged(SpoolRecord),
    Failed(Arc<Event>, SpoolRecord, PublishError),
}

impl Batch {
    /// Bytes of its records.
    pub(super) fn bytes(records: &[Spooled]) -> u64 {
        records.iter().map(|spooled| spooled.record.bytes()).sum()
    }

    /// Publishes all of it at once; the clients keep the order in which they are handed the records.
    pub(super) async fn publish(self, bridge: Arc<Bridge>) -> Published {
        let start = Instant::now();
        let mut published = Published::default();
        let output = self.lane.output();
        if output == AWAITS_DEAD_LETTERS {
            published.settled = self.records.into_iter().map(waiting_letter).collect();
            return published;
        }
        let Some(target) = bridge.outputs.get(output) else { return published };
        let deadline = start + self.time;
        let count = self.records.len() as u64;
        let attempts = self
            .records
            .into_iter()
            .map(async |spooled| (spooled.seq, attempt(&bridge, target, spooled, deadline).await));
        let mut attempts = pin!(join_all(attempts));
        // Polled once, each has handed its record over.
        let first = poll_fn(|context| Poll::Ready(attempts.as_mut().poll(context))).await;
        if self.is_followed {
            self.lane.attempted(count);
        }
        let ended = match first {
            Poll::Ready(ended) => ended,
            Poll::Pending => attempts.await,
        };
        let mut to_retry = 0;
        for (seq, attempt) in ended {
            let letter = match attempt {
                Attempt::Acknowledged => None,
                Attempt::Damaged(record) => Some(Box::new((damaged_record(record), None))),
                Attempt::Failed(event, record, error) => {
                    let is_too_old = self.give_up_before.is_some_and(|before| record.spooled_at < before);
                    match error.kind.class() {
                        ErrorClass::Permanent => {}
                        ErrorClass::Operator if is_too_old => published.has_given_up = true,
                        ErrorClass::Operator | ErrorClass::Transient => {
                            published.failed.get_or_insert((seq, error));
                            to_retry += 1;
                            continue;
                        }
                    }
                    letter(&bridge, &event, record, error, self.attempts)
                }
            };
            published.settled.push(Settled { seq, letter });
        }
        if self.is_followed {
            self.lane.must_retry(to_retry);
        } else {
            // They are still on the disk, but done.
            self.lane.attempted(published.settled.len() as u64);
        }
        published.took = start.elapsed();
        published
    }
}

async fn attempt(bridge: &Bridge, target: &Target, spooled: Spooled, deadline: Instant) -> Attempt {
    let Spooled { record, is_sound, .. } = spooled;
    let event = Event::from_json(&record.envelope).ok().filter(|_| is_sound).map(Arc::new);
    let Some(event) = event else { return Attempt::Damaged(record) };
    let publish =
        Record { event: event.clone(), topic: record.topic.clone(), key: record.key.clone(), mode: record.mode };
    match target.attempt(&publish, deadline).await {
        Ok(()) => {
            bridge.observe_age(&event);
            Attempt::Acknowledged
        }
        Err(error) => Attempt::Failed(event, record, error),
    }
}

/// The dead letter of a record, and the record that publishes that one. A dead letter that its own destination does
/// not accept makes no other: it is in the database already.
fn letter(
    bridge: &Bridge,
    event: &Event,
    record: SpoolRecord,
    error: PublishError,
    attempts: u32,
) -> Option<Box<(DeadLetter, Option<SpoolRecord>)>> {
    if event.get(Attribute::DlqReason).is_some() {
        tracing::warn!(
            id = event.id(),
            output = record.output,
            topic = record.topic,
            cause = error.message,
            "a dead letter cannot be published; it is in the database only"
        );
        return None;
    }
    let letter = DeadLetter {
        reason: DeadLetterReason::Publish(error.kind).as_str().to_owned(),
        code: error.message.clone(),
        attempts: record.attempts.saturating_add(attempts).saturating_add(1),
        route: Some(record.route),
        output: Some(record.output),
        topic: Some(record.topic),
        key: record.key,
        event: Some(names(event)),
        envelope: Some(record.envelope),
        body: record.body,
        at: now(),
        ..DeadLetter::default()
    };
    let announcement = bridge.announcement(&bridge.rules(), event, &letter).map(|(output, record)| {
        let failure = Failure { route: String::new(), record, output, attempts: 0, error };
        spool_record(&failure, Bytes::new())
    });
    Some(Box::new((letter, announcement)))
}

/// The dead letter of an event that waited for room.
fn waiting_letter(spooled: Spooled) -> Settled {
    let Spooled { seq, record, is_sound } = spooled;
    let event = Event::from_json(&record.envelope).ok().filter(|_| is_sound);
    let Some(event) = event else {
        return Settled { seq, letter: Some(Box::new((damaged_record(record), None))) };
    };
    let reason = DeadLetterReason::all().find(|reason| reason.as_str() == record.topic);
    let route = (!record.route.is_empty()).then_some(record.route);
    let letter = DeadLetter {
        code: reason.map_or_else(String::new, |reason| reason.code(route.as_deref().unwrap_or_default())),
        reason: record.topic,
        route,
        event: Some(names(&event)),
        envelope: Some(record.envelope),
        body: record.body,
        at: now(),
        ..DeadLetter::default()
    };
    Settled { seq, letter: Some(Box::new((letter, None))) }
}

/// Id, type and subject.
fn names(event: &Event) -> (String, String, Option<String>) {
    let text = |attribute| event.get(attribute).map(str::to_owned);
    (event.id().to_owned(), text(Attribute::Type).unwrap_or_default(), text(Attribute::Subject))
}
