//! The way out of the spool: for each output, its records in order, in batches, while the output is up.
//!
//! A batch is published at once and then taken off the disk, so that a bridge that is killed in between publishes
//! some of it again, with the same ids. When the bus doesn't take all of it, what it took is taken off, and the rest
//! is tried again after a pause that doubles, beginning with a single record. What it will never take becomes a dead
//! letter and stops nothing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::event::{Event, SUBJECT, TYPE};
use crate::output::{ErrorKind, PATIENCE, PublishError, Record};
use crate::setting::jittered;

use super::deliver::{Failure, spool_record};
use crate::store::database::{FailureKind, NewLetter, SpoolRecord, Spooled};
use crate::store::{BecameLetter, Lane, Reader, Settled, Store, now};
use super::{Bridge, DeadLetterReason, Target};

/// Largest batch. Kafka's client takes a hundred thousand records and 64 MiB into its queue.
const BATCH: (usize, u64) = (2048, 8 << 20);

/// Pause after a failure: doubles from the first to the second, and half of it is random, so that replicas don't
/// come back all at once.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// How long records whose dead letters had no room are left alone.
const SKIPPED_FOR: Duration = Duration::from_secs(30);

impl Bridge {
    /// Publishes what lies in the spool, for as long as the bridge runs. From `stopping` on no batch is begun; one
    /// under way is finished, unless the future is dropped.
    pub async fn drain(self: Arc<Self>, stopping: CancellationToken) {
        let Some(store) = &self.store else { return };
        let drains = self.outputs.iter().filter_map(|(output, target)| {
            let lane = target.lane.clone()?;
            Some(Drain { bridge: &self, store, output, target, lane }.run(stopping.clone()))
        });
        join_all(drains).await;
    }
}

/// The spool of one output on its way out.
struct Drain<'b> {
    bridge: &'b Bridge,
    store: &'b Store,
    output: &'b str,
    target: &'b Target,
    lane: Arc<Lane>,
}

/// What became of a batch.
struct Outcome {
    settled: Vec<Settled>,
    /// Place and error of the first record that has to be tried again.
    failed: Option<(i64, PublishError)>,
}

impl Drain<'_> {
    async fn run(self, stopping: CancellationToken) {
        let mut reader = Some(self.store.reader());
        let mut after = 0;
        let mut batch = BATCH.0;
        let mut pause = PAUSE.0;
        let mut tries = 0;
        let mut began: Option<(Instant, u64)> = None;
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                () = self.wait() => {}
            }
            let (back, read) = self.read(reader.take(), after, batch).await;
            reader = back;
            let spooled = match read {
                Ok(spooled) => spooled,
                Err(error) => {
                    tracing::debug!(output = self.output, %error, "the spool can't be read");
                    self.rest(&mut pause, &stopping).await;
                    continue;
                }
            };
            let Some(last) = spooled.last().map(|spooled| spooled.seq) else {
                if after > 0 && self.lane.spooled() > 0 {
                    // What was skipped lies before.
                    tokio::select! {
                        () = stopping.cancelled() => return,
                        () = tokio::time::sleep(SKIPPED_FOR) => {}
                        () = self.lane.filled.notified() => {}
                    }
                }
                after = 0;
                continue;
            };
            let (_, count) = began.get_or_insert_with(|| {
                tracing::info!(output = self.output, records = self.lane.spooled(), "draining the spool");
                (Instant::now(), 0)
            });
            let outcome = self.publish(spooled, tries).await;
            *count += outcome.settled.len() as u64;
            let failed = outcome.failed;
            self.settle(outcome.settled, &stopping).await;
            match failed {
                None => {
                    after = last;
                    batch = (batch * 2).clamp(1, BATCH.0);
                    pause = PAUSE.0;
                    tries = 0;
                }
                Some((seq, error)) => {
                    tracing::debug!(output = self.output, %error, "the spool can't be drained");
                    after = seq - 1;
                    batch = 1;
                    tries += 1;
                    self.rest(&mut pause, &stopping).await;
                }
            }
            if self.lane.spooled() == 0
                && let Some((start, records)) = began.take()
            {
                after = 0;
                tracing::info!(output = self.output, records, took = ?start.elapsed(), "the spool is drained");
            }
        }
    }

    /// Waits until there is something for the output and the output is up.
    async fn wait(&self) {
        while self.lane.spooled() == 0 {
            self.lane.filled.notified().await;
        }
        self.target.output.health().wait_until_up().await;
    }

    async fn rest(&self, pause: &mut Duration, stopping: &CancellationToken) {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = tokio::time::sleep(jittered(*pause)) => {}
        }
        *pause = (*pause * 2).min(PAUSE.1);
    }

    async fn read(
        &self,
        reader: Option<Reader>,
        after: i64,
        records: usize,
    ) -> (Option<Reader>, Result<Vec<Spooled>, String>) {
        let mut reader = reader.unwrap_or_else(|| self.store.reader());
        let output = self.output.to_owned();
        let read = tokio::task::spawn_blocking(move || {
            let read = reader.read(&output, after, records, BATCH.1);
            (reader, read)
        });
        match read.await {
            Ok((reader, read)) => (Some(reader), read.map_err(|error| error.to_string())),
            Err(error) => (None, Err(error.to_string())),
        }
    }

    /// Publishes a batch, all of it at once; the clients keep the order in which they are handed the records.
    async fn publish(&self, batch: Vec<Spooled>, tries: u32) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        let published = join_all(batch.into_iter().map(async |Spooled { seq, record, is_sound }| {
            let event = Event::from_json(&record.envelope).ok().filter(|_| is_sound).map(Arc::new);
            let Some(event) = event else {
                let error = PublishError::new(ErrorKind::Rejected, "the record was changed on the disk");
                return (seq, Err((None, record, error)));
            };
            let publish = Record {
                event: event.clone(),
                topic: record.topic.clone(),
                key: record.key.clone(),
                mode: record.mode,
            };
            match self.target.attempt(&publish, deadline).await {
                Ok(()) => {
                    self.bridge.observe_age(&event);
                    (seq, Ok(()))
                }
                Err(error) => (seq, Err((Some(event), record, error))),
            }
        }))
        .await;
        let mut outcome = Outcome { settled: Vec::with_capacity(published.len()), failed: None };
        for (seq, result) in published {
            match result {
                Ok(()) => outcome.settled.push(Settled { seq, letter: None }),
                Err((Some(_), _, error)) if error.kind.is_retriable() => {
                    outcome.failed.get_or_insert((seq, error));
                }
                Err((event, record, error)) => {
                    let letter = self.letter(event.as_deref(), record, error, tries);
                    outcome.settled.push(Settled { seq, letter });
                }
            }
        }
        outcome
    }

    /// The dead letter of a record, and the record that publishes that one. A dead letter that its own destination
    /// doesn't take makes no other: it is in the database already.
    fn letter(
        &self,
        event: Option<&Event>,
        record: SpoolRecord,
        error: PublishError,
        tries: u32,
    ) -> Option<BecameLetter> {
        let is_letter = event.is_some_and(|event| event.get(&crate::event::DLQREASON).is_some());
        let reason = match event {
            Some(_) => DeadLetterReason::Publish(error.kind),
            None => DeadLetterReason::Damaged,
        };
        let words =
            if is_letter { "a dead letter can't be published; it is in the database only" } else { "dead letter" };
        tracing::warn!(
            id = event.map(Event::id),
            r#type = event.and_then(|event| event.get(&TYPE)),
            subject = event.and_then(|event| event.get(&SUBJECT)),
            output = self.output,
            topic = record.topic,
            reason = reason.as_str(),
            cause = error.message,
            "{words}"
        );
        if is_letter {
            return None;
        }
        let text = |attribute| event.and_then(|event| event.get(attribute)).map(str::to_owned);
        let letter = NewLetter {
            reason: reason.as_str().to_owned(),
            code: error.message.clone(),
            attempts: record.attempts + tries + 1,
            route: Some(record.route.clone()),
            output: Some(record.output.clone()),
            topic: Some(record.topic.clone()),
            key: record.key.clone(),
            event: event.map(|event| (event.id().to_owned(), text(&TYPE).unwrap_or_default(), text(&SUBJECT))),
            envelope: Some(record.envelope.clone()),
            body: record.body.clone(),
            at: now(),
            ..NewLetter::default()
        };
        let announcement = event.and_then(|event| {
            let (output, publish) = self.bridge.announcement(&self.bridge.rules(), event, &letter)?;
            let failure = Failure { route: String::new(), record: publish, output, attempts: 0, error };
            Some(spool_record(&failure, Bytes::new()))
        });
        Some((letter, announcement))
    }

    /// Takes what is settled off the disk. While that fails nothing else is published: it would be published again.
    async fn settle(&self, settled: Vec<Settled>, stopping: &CancellationToken) {
        let mut pause = PAUSE.0;
        while !settled.is_empty() {
            match self.store.settle(settled.clone()).await {
                Ok(stayed) => {
                    let kept = settled.iter().filter(|settled| !stayed.contains(&settled.seq));
                    for (letter, _) in kept.filter_map(|settled| settled.letter.as_ref()) {
                        self.bridge.metrics.dead_letters_total.with_label_values(&[letter.reason.as_str()]).inc();
                    }
                    if !stayed.is_empty() {
                        tracing::warn!(
                            output = self.output,
                            records = stayed.len(),
                            "records that can't be published stay in the spool, for the dead letters are full"
                        );
                    }
                    return;
                }
                Err(error) => {
                    tracing::debug!(output = self.output, %error, "what was published can't be taken off the disk");
                    if error.kind == FailureKind::Damaged || stopping.is_cancelled() {
                        return;
                    }
                    self.rest(&mut pause, stopping).await;
                }
            }
        }
    }
}
