//! Publishing one batch of a lane. The caller removes what is settled from the disk, and retries what failed.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::bridge::Bridge;
use crate::bridge::dead_letters::{self, Announcement};
use crate::bridge::output_handle::OutputHandle;
use crate::event::{Attribute, Event};
use crate::output::{ErrorClass, ErrorKind, PublishError, Record};
use crate::store::{AWAITS_DEAD_LETTERS, DeadLetter, Lane, Settled, SettledLetter, SpoolRecord, Spooled};

/// Records of one lane, in order.
pub(super) struct Batch {
    pub(super) lane: Arc<Lane>,
    pub(super) records: Vec<Spooled>,
    /// Whether events that arrive while it is published may follow it directly, without the disk.
    pub(super) is_followed: bool,
    /// How long each record may take.
    pub(super) time: Duration,
    /// Attempts of the lane since its first failure.
    pub(super) attempts: u32,
    /// Records spooled before this time, in Unix milliseconds, become dead letters when an operator's error prevents
    /// them from being published.
    pub(super) give_up_before: Option<i64>,
}

/// What became of a batch.
#[derive(Default)]
pub(super) struct Published {
    /// Acknowledged, or dead letters.
    pub(super) settled: Vec<Settled>,
    /// Position and error of the first record that has to be tried again.
    pub(super) failed: Option<(i64, PublishError)>,
    /// Whether records were given up because they were too old.
    pub(super) has_given_up: bool,
    pub(super) took: Duration,
}

impl Published {
    /// The task of a batch ended without a result: all of the batch, which begins at a position, is tried again.
    pub(super) fn lost(first: i64, error: &tokio::task::JoinError) -> Published {
        let error = PublishError::new(ErrorKind::Unavailable, format!("publishing ended: {error}"));
        Published { failed: Some((first, error)), ..Published::default() }
    }
}

/// What became of a record.
enum Attempt {
    Acknowledged,
    /// Its checksum is wrong, or it is not an event.
    Damaged(SpoolRecord),
    Failed(Arc<Event>, SpoolRecord, PublishError),
}

impl Batch {
    /// Bytes of its records.
    pub(super) fn bytes(records: &[Spooled]) -> u64 {
        records.iter().map(|spooled| spooled.record.bytes()).sum()
    }

    /// Publishes all records at once. The clients of the buses keep the order in which they get the records.
    pub(super) async fn publish(self, bridge: Arc<Bridge>) -> Published {
        let start = Instant::now();
        let mut published = Published::default();
        let output = self.lane.output();
        if output == AWAITS_DEAD_LETTERS {
            let letter = |spooled: Spooled| {
                let seq = spooled.seq;
                let letter = dead_letters::of_waiting_record(spooled);
                Settled { seq, letter: Some(Box::new(SettledLetter { letter, announcement: None })) }
            };
            published.settled = self.records.into_iter().map(letter).collect();
            return published;
        }
        let Some(handle) = bridge.outputs.get(output) else { return published };
        let deadline = start + self.time;
        let count = self.records.len() as u64;
        let attempts = self
            .records
            .into_iter()
            .map(async |spooled| (spooled.seq, attempt(&bridge, handle, spooled, deadline).await));
        let mut attempts = pin!(join_all(attempts));
        // After one poll, each attempt has handed its record to the client.
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
                Attempt::Damaged(record) => {
                    Some(Box::new(SettledLetter { letter: DeadLetter::of_damaged(record), announcement: None }))
                }
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
                    letter(&bridge, &event, record, &error, self.attempts)
                }
            };
            published.settled.push(Settled { seq, letter });
        }
        if self.is_followed {
            self.lane.must_retry(to_retry);
        } else {
            // They are still on the disk, but events that arrive now do not have to wait for them.
            self.lane.attempted(published.settled.len() as u64);
        }
        published.took = start.elapsed();
        published
    }
}

async fn attempt(bridge: &Bridge, handle: &OutputHandle, spooled: Spooled, deadline: Instant) -> Attempt {
    let Spooled { record, is_sound, .. } = spooled;
    let event = Event::from_json(&record.envelope).ok().filter(|_| is_sound).map(Arc::new);
    let Some(event) = event else { return Attempt::Damaged(record) };
    let publish =
        Record { event: event.clone(), topic: record.topic.clone(), key: record.key.clone(), mode: record.mode };
    match handle.attempt(&publish, deadline).await {
        Ok(()) => {
            bridge.observe_age(&event);
            bridge.observe_late_delivery(&event);
            bridge.feed.published(&event, &record);
            Attempt::Acknowledged
        }
        Err(error) => Attempt::Failed(event, record, error),
    }
}

/// The dead letter of a record, and the record that announces it. None for an announcement itself: its letter is in the
/// database already.
fn letter(
    bridge: &Bridge,
    event: &Event,
    record: SpoolRecord,
    error: &PublishError,
    attempts: u32,
) -> Option<Box<SettledLetter>> {
    if event.get(Attribute::DlqReason).is_some() {
        tracing::warn!(
            id = event.id(),
            output = record.output,
            topic = record.topic,
            cause = error.message,
            "a dead letter cannot be published; only the database has it"
        );
        return None;
    }
    let letter = dead_letters::of_record(event, record, error, attempts.saturating_add(1));
    let announcement = Announcement::new(&bridge.rules(), event, &letter);
    let announcement = announcement.map(|announcement| announcement.spool_record());
    Some(Box::new(SettledLetter { letter, announcement }))
}
