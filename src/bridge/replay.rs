//! Replays: publishing dead letters again when a command has requested it.
//!
//! * A replay uses the present routes, keeps the id of the event, and ignores the dedupe window on purpose.
//! * It is published within `delivery.deadline` and never spooled. The letter is removed when every destination has
//!   acknowledged the event; otherwise it stays, with the error next to it.
//! * A bridge that is killed may replay a letter again, with the same id.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::common::backoff::Backoff;
use crate::dialect::{NotACallback, Origin, Sender};
use crate::event::{Attribute, Event, NotAnEvent};

use super::Bridge;
use crate::store::{DAMAGED, DeadLetterRow, Store};

/// Most letters that are replayed at once.
const AT_ONCE: usize = 64;

/// The values of the label `result`.
pub(super) const RESULTS: [&str; 2] = ["success", "failure"];

/// Pause before the database is read again after a failure: doubles from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

impl Bridge {
    /// Replays the dead letters that commands request, for as long as the bridge runs. After `stopping` no replay begins;
    /// the requested ones run at the next start. May be cancelled.
    pub async fn replay(self: Arc<Self>, stopping: CancellationToken) {
        let Some(store) = &self.store else { return };
        let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
        let mut is_done = true;
        loop {
            let pause = if is_done { Duration::ZERO } else { backoff.pause() };
            tokio::select! {
                () = stopping.cancelled() => return,
                () = store.replays_requested() => {}
                () = tokio::time::sleep(pause), if !is_done => {}
            }
            is_done = self.replay_all(store, &stopping).await;
            if is_done {
                backoff.reset();
            }
        }
    }

    /// Replays what is requested. Returns false if the database failed, so that some may remain.
    async fn replay_all(&self, store: &Store, stopping: &CancellationToken) -> bool {
        let mut reader = store.reader();
        let mut after = 0;
        while !stopping.is_cancelled() {
            let read = tokio::task::spawn_blocking(move || {
                let read = reader.dead_letters_to_replay(after, AT_ONCE);
                (reader, read)
            });
            let letters = match read.await {
                Ok((back, Ok(letters))) => {
                    reader = back;
                    letters
                }
                Ok((_, Err(error))) => {
                    tracing::warn!(%error, "dead letters cannot be read");
                    return false;
                }
                Err(_) => return false,
            };
            let Some(last) = letters.last().map(|letter| letter.id) else { return true };
            let results = join_all(letters.iter().map(|letter| self.replay_one(letter))).await;
            let error = |result: Result<(), ReplayError>| result.err().map(|error| error.to_string());
            let ended: Vec<(i64, Option<String>)> =
                letters.iter().zip(results).map(|(letter, result)| (letter.id, error(result))).collect();
            for (id, error) in &ended {
                let result = RESULTS[usize::from(error.is_some())];
                self.metrics.dead_letters_replayed_total.with_label_values(&[result]).inc();
                match error {
                    None => tracing::info!(letter = id, "dead letter replayed"),
                    Some(error) => tracing::warn!(letter = id, error, "dead letter not replayed"),
                }
            }
            // Until that is written they count as requested, and would be published again.
            let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
            while let Err(error) = store.end_replays(ended.clone()).await {
                tracing::warn!(%error, "the results of replays cannot be written; trying again");
                tokio::select! {
                    () = stopping.cancelled() => return false,
                    () = tokio::time::sleep(backoff.pause()) => {}
                }
            }
            after = last;
        }
        true
    }

    /// Publishes one letter to every destination of the present routes.
    async fn replay_one(&self, letter: &DeadLetterRow) -> Result<(), ReplayError> {
        if !letter.is_sound || letter.letter.reason == DAMAGED {
            return Err(ReplayError::Damaged);
        }
        let rules = self.rules();
        let event = match &letter.letter.envelope {
            Some(envelope) => {
                let mut event = Event::from_json(envelope)?;
                Attribute::OF_DEAD_LETTERS.into_iter().for_each(|attribute| event.remove(attribute));
                event
            }
            None => {
                let (region, account_id) = letter.letter.sender.clone();
                let sender = Sender { region, account_id, ..Sender::default() };
                let received = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(letter.first_at) * 1_000_000);
                let origin =
                    Origin { sender: &sender, ..Origin::at(received.unwrap_or(time::OffsetDateTime::UNIX_EPOCH)) };
                rules.normalizer.normalize(&letter.letter.body, &origin)?.event
            }
        };
        let event = Arc::new(event);
        let decision = rules.router.decide(&event);
        if decision.is_unrouted() {
            return Err(ReplayError::Unrouted);
        }
        if let Some(route) = decision.dead_letter_by {
            return Err(ReplayError::Routed(route.name.clone()));
        }
        let deadline = Instant::now() + self.deadline;
        let publish = decision.destinations.iter().map(async |(_, destination)| {
            let record = rules.record(&event, destination);
            let place = format!("{}/{}", destination.output, record.topic);
            let Some(output) = self.outputs.get(&destination.output) else {
                return Err(format!("{place}: no such output"));
            };
            output.attempt(&record, deadline).await.map_err(|error| format!("{place}: {error}"))
        });
        let failed: Vec<String> = join_all(publish).await.into_iter().filter_map(Result::err).collect();
        if !failed.is_empty() {
            return Err(ReplayError::NotPublished(failed.join("; ")));
        }
        rules.count_matches(&decision);
        self.window.accept(&event);
        tracing::debug!(id = event.id(), r#type = event.get(Attribute::Type), "replayed");
        Ok(())
    }
}

/// Why a dead letter was not replayed. `dead-letters list` shows the text.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error("it was changed on the disk; `dead-letters show` prints what is left of it")]
    Damaged,
    #[error(transparent)]
    NotAnEvent(#[from] NotAnEvent),
    #[error("it is still not a callback: {0}")]
    NotACallback(#[from] NotACallback),
    #[error("no route matches it")]
    Unrouted,
    #[error("route {0} makes it a dead letter")]
    Routed(String),
    #[error("{0}")]
    NotPublished(String),
}
