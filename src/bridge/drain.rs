//! The way out of the spool: for each output, its records in order, in batches, while the output is up.
//!
//! A batch is published at once and then removed from the disk, so that a bridge that is killed in between publishes
//! some of it again, with the same ids. When the bus does not acknowledge all of it, what it acknowledged is removed,
//! and the rest is tried again after a pause that doubles, beginning with a single record. What the bus will never
//! accept becomes a dead letter and stops nothing. Records that cannot be removed, because the disk is full or fails,
//! are remembered and not published again before a restart.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::event::{Event, SUBJECT, TYPE};
use crate::output::{PATIENCE, PublishError, Record};
use crate::setting::jittered;
use crate::store::{
    AWAITS_DEAD_LETTERS, DeadLetter, Lane, Reader, Settled, SpoolRecord, Spooled, Store, damaged_record, now,
};

use crate::telemetry::Seldom;

use super::deliver::{Failure, spool_record};
use super::{Bridge, DeadLetterReason, Target};

/// Largest batch. Kafka's client takes a hundred thousand records and 64 MiB into its queue.
const BATCH: (usize, u64) = (2048, 8 << 20);

/// Pause after a failure: doubles from the first to the second, and half of it is random, so that replicas do not
/// come back all at once.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// How often it is logged that the spool cannot be read.
const REMIND: Duration = Duration::from_secs(60);

/// Bytes of dead letters that cannot be written from which on nothing more is published: they are in memory.
const LETTERS_HELD: u64 = 16 << 20;

/// How long records whose dead letters had no room are left alone.
const RETAINED_FOR: Duration = Duration::from_secs(30);

impl Bridge {
    /// Publishes what is stored in the spool, for as long as the bridge runs. From `stopping` on no batch is begun;
    /// one that is being published is finished, unless the future is dropped.
    pub async fn drain(self: Arc<Self>, stopping: CancellationToken) {
        let Some(store) = &self.store else { return };
        let drains = self.outputs.iter().filter_map(|(output, target)| {
            let lane = target.lane.clone()?;
            Some(Drain::new(&self, store, output, target, lane).run(stopping.clone()))
        });
        tokio::join!(join_all(drains), self.move_to_dead_letters(store, &stopping));
    }

    /// Makes dead letters of the events that wait for room among them.
    async fn move_to_dead_letters(&self, store: &Store, stopping: &CancellationToken) {
        let lane = store.lane(AWAITS_DEAD_LETTERS);
        loop {
            while lane.spooled() == 0 {
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = lane.filled() => {}
                }
            }
            let (_, read) = read_records(store, None, AWAITS_DEAD_LETTERS, 0, BATCH.0).await;
            let settled: Vec<Settled> = read.unwrap_or_default().into_iter().map(waiting_letter).collect();
            let wanted = settled.len();
            let is_moved = match store.settle(settled.clone()).await {
                Ok(retained) => {
                    self.letters_kept(&settled, &retained);
                    wanted > 0 && retained.len() < wanted
                }
                Err(_) => false,
            };
            if !is_moved {
                tracing::warn!(
                    records = lane.spooled(),
                    "events wait in the spool because the dead letters are full: replay or delete some"
                );
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(RETAINED_FOR) => {}
                }
            }
        }
    }

    /// Counts and logs the dead letters that records became.
    fn letters_kept(&self, settled: &[Settled], retained: &[i64]) {
        for settled in settled.iter().filter(|settled| !retained.contains(&settled.seq)) {
            if let Some(became) = &settled.letter {
                self.letter_kept(&became.0);
            }
        }
    }
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
    (event.id().to_owned(), text(&TYPE).unwrap_or_default(), text(&SUBJECT))
}

/// Reads records without blocking the runtime.
async fn read_records(
    store: &Store,
    reader: Option<Reader>,
    output: &str,
    after: i64,
    records: usize,
) -> (Option<Reader>, Result<Vec<Spooled>, String>) {
    let mut reader = reader.unwrap_or_else(|| store.reader());
    let output = output.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let read = reader.read(&output, after, records, BATCH.1);
        (reader, read)
    });
    match read.await {
        Ok((reader, read)) => (Some(reader), read.map_err(|error| error.to_string())),
        Err(error) => (None, Err(error.to_string())),
    }
}

/// The spool of one output on its way out.
struct Drain<'b> {
    bridge: &'b Bridge,
    store: &'b Store,
    output: &'b str,
    target: &'b Target,
    lane: Arc<Lane>,
    /// Published, or to become dead letters, and still on the disk.
    settled: BTreeMap<i64, Settled>,
    /// When removing them is tried again, and the pause after that.
    remove_at: (Instant, Duration),
    /// When records that were left, because their dead letters had no room, are read again.
    look_again: Option<Instant>,
    unreadable: Seldom,
}

/// What became of a batch.
struct Outcome {
    settled: Vec<Settled>,
    /// Position and error of the first record that has to be tried again.
    failed: Option<(i64, PublishError)>,
}

impl<'b> Drain<'b> {
    fn new(bridge: &'b Bridge, store: &'b Store, output: &'b str, target: &'b Target, lane: Arc<Lane>) -> Drain<'b> {
        let (settled, remove_at) = (BTreeMap::new(), (Instant::now(), PAUSE.0));
        Drain {
            bridge,
            store,
            output,
            target,
            lane,
            settled,
            remove_at,
            look_again: None,
            unreadable: Seldom::every(REMIND),
        }
    }

    async fn run(mut self, stopping: CancellationToken) {
        let mut reader = Some(self.store.reader());
        let mut after = 0;
        let mut batch = BATCH.0;
        let mut ahead: Option<Result<Vec<Spooled>, String>> = None;
        let mut pause = PAUSE.0;
        let mut tries = 0;
        let mut began: Option<(Instant, u64)> = None;
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                () = self.wait() => {}
            }
            self.remove().await;
            if !self.target.output.health().is_up() || self.letter_bytes() > LETTERS_HELD {
                continue;
            }
            if self.look_again.is_some_and(|at| Instant::now() >= at) {
                (after, ahead, self.look_again) = (0, None, None);
            }
            let read = match ahead.take() {
                Some(read) => read,
                None => {
                    let (back, read) = read_records(self.store, reader.take(), self.output, after, batch).await;
                    reader = back;
                    read
                }
            };
            let mut spooled = match read {
                Ok(spooled) => spooled,
                Err(error) => {
                    if self.unreadable.is_due(&error) {
                        tracing::warn!(output = self.output, error, "the spool cannot be read; its events wait");
                    }
                    rest(&mut pause, &stopping).await;
                    continue;
                }
            };
            let Some(last) = spooled.last().map(|spooled| spooled.seq) else {
                // An open connection would hold a file that was replaced.
                reader = None;
                if self.lane.spooled() == 0 || self.is_time_to_look_again(&stopping).await {
                    after = 0;
                }
                continue;
            };
            spooled.retain(|spooled| !self.settled.contains_key(&spooled.seq));
            let (_, count) = began.get_or_insert_with(|| {
                tracing::info!(output = self.output, records = self.lane.spooled(), "draining the spool");
                (Instant::now(), 0)
            });
            // The next batch is read while this one is published.
            let next = (batch * 2).clamp(1, BATCH.0);
            let (outcome, (back, read)) = tokio::join!(
                self.publish(spooled, tries),
                read_records(self.store, reader.take(), self.output, last, next)
            );
            reader = back;
            *count += outcome.settled.len() as u64;
            self.settled.extend(outcome.settled.into_iter().map(|settled| (settled.seq, settled)));
            self.remove().await;
            match outcome.failed {
                None => {
                    after = last;
                    // An empty batch is asked for again: more may be there by then.
                    ahead = Some(read).filter(|read| read.as_ref().is_ok_and(|read| !read.is_empty()));
                    batch = next;
                    pause = PAUSE.0;
                    tries = 0;
                }
                Some((seq, error)) => {
                    tracing::debug!(output = self.output, %error, "the spool cannot be drained");
                    after = seq - 1;
                    batch = 1;
                    tries += 1;
                    rest(&mut pause, &stopping).await;
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

    /// Waits until there is something to publish and the output is up, or something to remove.
    async fn wait(&self) {
        while self.lane.spooled() == 0 {
            self.lane.filled().await;
        }
        let is_up = self.target.output.health().wait_until_up();
        if self.settled.is_empty() {
            return is_up.await;
        }
        if self.letter_bytes() > LETTERS_HELD {
            return tokio::time::sleep_until(self.remove_at.0).await;
        }
        tokio::select! {
            () = is_up => {}
            () = tokio::time::sleep_until(self.remove_at.0) => {}
        }
    }

    /// Waits for records behind those that were read, or for the time to remove what is settled; true when it is time to
    /// read from the beginning.
    async fn is_time_to_look_again(&mut self, stopping: &CancellationToken) -> bool {
        let look_again = *self.look_again.get_or_insert_with(|| Instant::now() + RETAINED_FOR);
        let until = if self.settled.is_empty() { look_again } else { self.remove_at.0.min(look_again) };
        tokio::select! {
            () = stopping.cancelled() => {}
            () = tokio::time::sleep_until(until) => {}
            () = self.lane.filled() => {}
        }
        let is_time = Instant::now() >= look_again;
        if is_time {
            self.look_again = None;
        }
        is_time
    }

    /// Bytes of the dead letters that could not be written yet.
    fn letter_bytes(&self) -> u64 {
        self.settled.values().filter_map(|settled| settled.letter.as_ref()).map(|became| became.0.bytes()).sum()
    }

    /// Publishes a batch, all of it at once; the clients keep the order in which they are handed the records.
    async fn publish(&self, batch: Vec<Spooled>, tries: u32) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        let published = join_all(batch.into_iter().map(async |Spooled { seq, record, is_sound }| {
            let event = Event::from_json(&record.envelope).ok().filter(|_| is_sound).map(Arc::new);
            let Some(event) = event else {
                return (seq, Err((None, record, None)));
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
                Err(error) => (seq, Err((Some(event), record, Some(error)))),
            }
        }))
        .await;
        let mut outcome = Outcome { settled: Vec::with_capacity(published.len()), failed: None };
        for (seq, result) in published {
            let letter = match result {
                Ok(()) => None,
                Err((Some(_), _, Some(error))) if error.kind.is_retriable() => {
                    outcome.failed.get_or_insert((seq, error));
                    continue;
                }
                Err((Some(event), record, Some(error))) => self.letter(&event, record, error, tries),
                Err((_, record, _)) => Some(Box::new((damaged_record(record), None))),
            };
            outcome.settled.push(Settled { seq, letter });
        }
        outcome
    }

    /// The dead letter of a record, and the record that publishes that one. A dead letter that its own destination
    /// does not accept makes no other: it is in the database already.
    fn letter(
        &self,
        event: &Event,
        record: SpoolRecord,
        error: PublishError,
        tries: u32,
    ) -> Option<Box<(DeadLetter, Option<SpoolRecord>)>> {
        if event.get(&crate::event::DLQREASON).is_some() {
            tracing::warn!(
                id = event.id(),
                output = self.output,
                topic = record.topic,
                cause = error.message,
                "a dead letter cannot be published; it is in the database only"
            );
            return None;
        }
        let letter = DeadLetter {
            reason: DeadLetterReason::Publish(error.kind).as_str().to_owned(),
            code: error.message.clone(),
            attempts: record.attempts + tries + 1,
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
        let announcement = self.bridge.announcement(&self.bridge.rules(), event, &letter).map(|(output, record)| {
            let failure = Failure { route: String::new(), record, output, attempts: 0, error };
            spool_record(&failure, Bytes::new())
        });
        Some(Box::new((letter, announcement)))
    }

    /// Removes what is settled from the disk, if it is time to try.
    async fn remove(&mut self) {
        if self.settled.is_empty() || Instant::now() < self.remove_at.0 {
            return;
        }
        let settled: Vec<Settled> = self.settled.values().take(BATCH.0 * 2).cloned().collect();
        match self.store.settle(settled.clone()).await {
            Ok(retained) => {
                for settled in &settled {
                    self.settled.remove(&settled.seq);
                }
                self.remove_at = (Instant::now(), PAUSE.0);
                self.bridge.letters_kept(&settled, &retained);
                if !retained.is_empty() {
                    self.look_again.get_or_insert_with(|| Instant::now() + RETAINED_FOR);
                    tracing::warn!(
                        output = self.output,
                        records = retained.len(),
                        "records that cannot be published stay in the spool, because the dead letters are full"
                    );
                }
            }
            Err(error) => {
                tracing::debug!(output = self.output, %error, "what was published cannot be removed from the disk");
                let pause = self.remove_at.1;
                self.remove_at = (Instant::now() + jittered(pause), (pause * 2).min(PAUSE.1));
            }
        }
    }
}

async fn rest(pause: &mut Duration, stopping: &CancellationToken) {
    tokio::select! {
        () = stopping.cancelled() => {}
        () = tokio::time::sleep(jittered(*pause)) => {}
    }
    *pause = (*pause * 2).min(PAUSE.1);
}
