//! Publishing an event to its destinations, and to the dead letters what can't be published.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::event::{DLQATTEMPTS, DLQCODE, DLQDESTINATION, DLQREASON, Event, SOURCE, SUBJECT, TYPE};
use crate::output::{ErrorKind, PublishError, Record};
use crate::route::{Destination, Route};

use super::{Bridge, DeadLetterReason};

/// Pause before a record is tried again inside the deadline: doubles up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));

/// A destination that didn't take the event.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) output: String,
    topic: String,
    key: Option<String>,
    attempts: u32,
    pub(super) error: PublishError,
}

impl Failure {
    /// For an event without a destination.
    pub(super) fn none() -> Failure {
        Failure::of_route("")
    }

    /// What there is of a destination.
    fn named<'f>(&self, part: &'f str) -> Option<&'f str> {
        (!self.output.is_empty()).then_some(part)
    }

    /// For an event that a route made a dead letter.
    pub(super) fn of_route(route: &str) -> Failure {
        let message = if route.is_empty() { "no route took the event".to_owned() } else { format!("route {route}") };
        Failure {
            output: String::new(),
            topic: String::new(),
            key: None,
            attempts: 0,
            error: PublishError::new(ErrorKind::Rejected, message),
        }
    }
}

impl Bridge {
    /// Publishes to all destinations at once and gives back those that failed.
    pub(super) async fn deliver(
        &self,
        event: &Arc<Event>,
        destinations: &[(&Route, &Destination)],
        deadline: Instant,
    ) -> Vec<Failure> {
        let publish = |destination| self.publish(event, destination, deadline);
        match destinations {
            [(_, only)] => publish(only).await.err().into_iter().collect(),
            several => {
                let results = join_all(several.iter().map(|(_, destination)| publish(destination))).await;
                results.into_iter().filter_map(Result::err).collect()
            }
        }
    }

    /// Publishes to one destination, trying again inside the deadline while that can help. An output known to be
    /// down is not waited for.
    async fn publish(&self, event: &Arc<Event>, destination: &Destination, deadline: Instant) -> Result<(), Failure> {
        let record = Record {
            event: event.clone(),
            topic: destination.topic.topic(event, self.normalizer.type_prefix()),
            key: destination.key.key(event),
            mode: destination.mode,
        };
        let mut attempts = 0;
        let mut pause = RETRY.0;
        let error = loop {
            attempts += 1;
            let error = match self.attempt(&destination.output, &record, deadline).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let up = self.outputs.get(&destination.output).is_some_and(|target| target.output.health().is_up());
            if !error.kind.is_retriable() || !up || Instant::now() + pause >= deadline {
                break error;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        };
        tracing::warn!(
            id = event.id(),
            r#type = event.get(&TYPE),
            subject = event.get(&SUBJECT),
            source = event.get(&SOURCE),
            output = destination.output,
            topic = record.topic,
            kind = error.kind.as_str(),
            error = error.message,
            attempts,
            "not published"
        );
        let Record { topic, key, .. } = record;
        Err(Failure { output: destination.output.clone(), topic, key, attempts, error })
    }

    async fn attempt(&self, name: &str, record: &Record, deadline: Instant) -> Result<(), PublishError> {
        let Some(target) = self.outputs.get(name) else {
            return Err(PublishError::new(ErrorKind::Misconfigured, "no such output"));
        };
        let result = if target.output.health().is_up() {
            let start = Instant::now();
            let result = target.output.publish(record, deadline).await;
            target.duration.observe(start.elapsed().as_secs_f64());
            result
        } else {
            Err(PublishError::new(ErrorKind::Unavailable, "the output is not connected"))
        };
        match &result {
            Ok(()) => target.published.inc(),
            Err(error) => {
                if let Some((_, failures)) = target.failures.iter().find(|(kind, _)| *kind == error.kind) {
                    failures.inc();
                }
            }
        }
        result
    }

    /// Publishes an event to the dead letters, with why it is one; it keeps the key it would have had.
    ///
    /// # Errors
    /// When there is no destination for dead letters, or it doesn't take this one; the loss is logged.
    pub(super) async fn dead_letter(
        &self,
        event: &Arc<Event>,
        reason: DeadLetterReason,
        failure: &Failure,
        deadline: Instant,
    ) -> Result<(), ()> {
        let lost = |error: &str| {
            tracing::error!(
                id = event.id(),
                r#type = event.get(&TYPE),
                subject = event.get(&SUBJECT),
                source = event.get(&SOURCE),
                output = failure.named(&failure.output),
                topic = failure.named(&failure.topic),
                reason = reason.as_str(),
                cause = failure.error.message,
                error,
                "event can't be published and is not kept"
            );
        };
        let Some(destination) = &self.delivery.dead_letters else {
            lost("dead_letters.to is not set; set it, or mend the cause");
            return Err(());
        };
        let mut letter = Event::clone(event);
        letter.set(&DLQREASON, reason.as_str());
        letter.set(&DLQCODE, failure.error.message.as_str());
        letter.set(&DLQATTEMPTS, failure.attempts.to_string());
        if !failure.output.is_empty() {
            letter.set(&DLQDESTINATION, format!("{}/{}", failure.output, failure.topic));
        }
        let record = Record {
            topic: destination.topic.topic(&letter, self.normalizer.type_prefix()),
            key: failure.key.clone().or_else(|| destination.key.key(&letter)),
            mode: destination.mode,
            event: Arc::new(letter),
        };
        match self.attempt(&destination.output, &record, deadline).await {
            Ok(()) => {
                self.metrics.dead_letters_total.with_label_values(&[reason.as_str()]).inc();
                tracing::warn!(
                    id = event.id(),
                    r#type = event.get(&TYPE),
                    subject = event.get(&SUBJECT),
                    reason = reason.as_str(),
                    cause = failure.error.message,
                    "dead letter"
                );
                Ok(())
            }
            Err(error) => {
                lost(&error.to_string());
                Err(())
            }
        }
    }
}
