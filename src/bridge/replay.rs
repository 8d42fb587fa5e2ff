//! Dead letters on their way again, when a command has asked for it.
//!
//! A replay goes by the routes as they are now, keeps the id of the event, and passes the window of ids on purpose.
//! It is published within the delivery deadline and never spooled: the letter is taken out when every destination has
//! acknowledged, and stays otherwise, with the reason beside it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dialect::Origin;
use crate::event::{Attribute, Event};

use super::Bridge;
use crate::store::{DAMAGED, DeadLetterRow, Store};

/// Letters that are replayed at once.
const AT_ONCE: usize = 64;

/// The words of the label `result`.
pub(super) const RESULTS: [&str; 2] = ["success", "failure"];

/// Pause before the database is asked again after it failed; doubles from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

impl Bridge {
    /// Replays the dead letters that commands ask for, for as long as the bridge runs. From `stopping` on none is
    /// begun; those that were requested are replayed at the next start.
    pub async fn replay(self: Arc<Self>, stopping: CancellationToken) {
        let Some(store) = &self.store else { return };
        let mut pause = PAUSE.0;
        let mut is_done = true;
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = store.replays_requested() => {}
                () = tokio::time::sleep(pause), if !is_done => {}
            }
            is_done = self.replay_all(store, &stopping).await;
            pause = if is_done { PAUSE.0 } else { (pause * 2).min(PAUSE.1) };
        }
    }

    /// Replays what is requested; false if the database failed, so that some may be left.
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
            let ended: Vec<(i64, Option<String>)> =
                letters.iter().zip(results).map(|(letter, result)| (letter.id, result.err())).collect();
            for (id, error) in &ended {
                let result = RESULTS[usize::from(error.is_some())];
                self.metrics.dead_letters_replayed_total.with_label_values(&[result]).inc();
                match error {
                    None => tracing::info!(letter = id, "dead letter replayed"),
                    Some(error) => tracing::warn!(letter = id, error, "dead letter not replayed"),
                }
            }
            // Until that is written they count as requested, and would be published once more.
            let mut pause = PAUSE.0;
            while let Err(error) = store.end_replays(ended.clone()).await {
                tracing::warn!(%error, "the end of replays cannot be written; trying again");
                tokio::select! {
                    () = stopping.cancelled() => return false,
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE.1),
                }
            }
            after = last;
        }
        true
    }

    /// Publishes one letter to every destination that the routes give it.
    async fn replay_one(&self, letter: &DeadLetterRow) -> Result<(), String> {
        if !letter.is_sound || letter.letter.reason == DAMAGED {
            return Err("it was changed on the disk; `dead-letters show` prints what is left of it".to_owned());
        }
        let rules = self.rules();
        let event = match &letter.letter.envelope {
            Some(envelope) => {
                let mut event = Event::from_json(envelope).map_err(|error| error.to_string())?;
                for attribute in
                    [Attribute::DlqReason, Attribute::DlqCode, Attribute::DlqAttempts, Attribute::DlqDestination]
                {
                    event.remove(attribute);
                }
                event
            }
            None => {
                let (region, account_id) = &letter.letter.sender;
                let received = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(letter.first_at) * 1_000_000);
                let origin = Origin {
                    region: region.as_deref(),
                    account_id: account_id.as_deref(),
                    ..Origin::at(received.unwrap_or(time::OffsetDateTime::UNIX_EPOCH))
                };
                let normalized = rules.normalizer.normalize(&letter.letter.body, &origin);
                normalized.map_err(|error| format!("it is still no callback: {error}"))?.event
            }
        };
        let event = Arc::new(event);
        let decision = rules.router.decide(&event);
        if decision.is_unrouted() {
            return Err("no route takes it".to_owned());
        }
        if let Some(route) = decision.dead_letter_by {
            return Err(format!("route {} makes it a dead letter", route.name));
        }
        let deadline = Instant::now() + self.delivery.deadline;
        let publish = decision.destinations.iter().map(async |(_, destination)| {
            let record = self.record(&rules, &event, destination);
            let place = format!("{}/{}", destination.output, record.topic);
            let Some(target) = self.outputs.get(&destination.output) else {
                return Err(format!("{place}: no such output"));
            };
            target.attempt(&record, deadline).await.map_err(|error| format!("{place}: {error}"))
        });
        let failed: Vec<String> = join_all(publish).await.into_iter().filter_map(Result::err).collect();
        if !failed.is_empty() {
            return Err(failed.join("; "));
        }
        for index in &decision.matched {
            rules.route_matches[*index].inc();
        }
        self.window.accept(&event);
        tracing::debug!(id = event.id(), r#type = event.get(Attribute::Type), "replayed");
        Ok(())
    }
}
