//! Publishing a record to one destination: when to try, how often, and for how long.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Instant;

use super::Bridge;
use super::feed::Trace;
use super::output_handle::OutputHandle;
use crate::common::backoff::Backoff;
use crate::event::Attribute;
use crate::output::{ErrorClass, ErrorKind, MAX_PUBLISH_TIME, PublishError, Record};
use crate::store::{self, SpoolRecord};

/// Pause before a record is tried again within the deadline: doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));

/// How long publishing may take, and whether it waits for outputs that are down.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// The sender waits for the answer. Outputs that are down are not waited for.
    Prompt(Instant),
    /// The input keeps the callback until it has an outcome. Outputs that are down are waited for.
    Patient(Instant),
}

impl Pace {
    pub(super) fn deadline(self) -> Instant {
        match self {
            Pace::Prompt(deadline) | Pace::Patient(deadline) => deadline,
        }
    }
}

/// A record, its output, and the route that sends it there. The route is empty for the publication of a dead letter.
#[derive(Debug)]
pub(super) struct Addressed<'a> {
    pub(super) route: &'a str,
    pub(super) output: &'a str,
    pub(super) record: Record,
}

/// A destination that did not acknowledge a record.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) route: String,
    pub(super) output: String,
    pub(super) record: Record,
    /// Attempts to publish.
    pub(super) attempts: u32,
    pub(super) error: PublishError,
}

impl Failure {
    /// The record for the spool, with the body of the callback.
    pub(super) fn spool_record(&self, body: Bytes) -> SpoolRecord {
        spool_record(&self.route, &self.output, &self.record, self.attempts, body)
    }
}

/// A record for the spool. `body` is the callback's, and is empty for the publication of a dead letter.
pub(super) fn spool_record(route: &str, output: &str, record: &Record, attempts: u32, body: Bytes) -> SpoolRecord {
    SpoolRecord {
        output: output.to_owned(),
        route: route.to_owned(),
        topic: record.topic.clone(),
        key: record.key.clone(),
        mode: record.mode,
        attempts,
        spooled_at: store::now(),
        envelope: record.event.to_json().into(),
        body,
    }
}

impl Bridge {
    /// Publishes to one destination. Tries again within the deadline while that can help.
    ///
    /// - [`Pace::Prompt`] waits neither for an output that is down nor for a topic that has older records in the spool.
    ///   The caller then puts the record behind those.
    /// - [`Pace::Patient`] with a spool waits only while no output is up, because waiting occupies a place in the input
    ///   that events for other outputs need.
    /// - [`Pace::Patient`] without a spool waits for its output. From the second attempt on, an attempt may take
    ///   [`MAX_PUBLISH_TIME`]; the output publishes such records apart from the others.
    /// - Without a pace nothing is tried, because the in-flight limit is reached.
    ///
    /// # Errors
    /// The record and its last error.
    pub(super) async fn publish(&self, to: Addressed<'_>, pace: Option<Pace>) -> Result<(), Box<Failure>> {
        let failed = |to: Addressed<'_>, attempts, error| {
            let Addressed { route, output, record } = to;
            Err(Box::new(Failure { route: route.to_owned(), output: output.to_owned(), record, attempts, error }))
        };
        let Some(output) = self.outputs.get(to.output) else {
            return failed(to, 0, PublishError::new(ErrorKind::Misconfigured, "no such output"));
        };
        let Some(mut pace) = pace else {
            return failed(to, 0, PublishError::new(ErrorKind::QueueFull, "in-flight limit reached"));
        };
        let mut attempts = 0;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let error = loop {
            if let Pace::Patient(deadline) = pace {
                pace = Box::pin(self.wait_for_output(output, deadline)).await;
            }
            let deadline = pace.deadline();
            if output.has_backlog(&to.record.topic) {
                let error = PublishError::new(ErrorKind::Unavailable, "older events wait in the spool");
                return failed(to, attempts, error);
            }
            attempts += 1;
            let attempt_until = match pace {
                // It is at most `self.deadline` away.
                Pace::Prompt(deadline) if attempts == 1 => deadline,
                _ => {
                    let longest = if attempts == 1 { self.deadline } else { MAX_PUBLISH_TIME };
                    deadline.min(Instant::now() + longest)
                }
            };
            let tried = tokio::select! {
                // In this order, an attempt that has ended does not look at the token once more, which takes locks.
                biased;
                tried = output.attempt(&to.record, attempt_until) => tried,
                () = self.cancel_in_flight.cancelled() => {
                    Err(PublishError::new(ErrorKind::TimedOut, "the bridge is stopping"))
                }
            };
            let Err(error) = tried else { return Ok(()) };
            let pause = backoff.pause();
            let is_over = Instant::now() + pause >= deadline || self.cancel_in_flight.is_cancelled();
            let can_retry = match error.kind.class() {
                ErrorClass::Permanent => false,
                // The drain of the spool retries just as soon, without a caller that waits.
                ErrorClass::Operator if self.can_spool() => false,
                _ => matches!(pace, Pace::Patient(_)) || output.is_up(),
            };
            if !can_retry || is_over {
                break error;
            }
            tokio::time::sleep(pause).await;
        };
        let event = &to.record.event;
        tracing::debug!(
            id = event.id(),
            r#type = event.get(Attribute::Type),
            subject = event.get(Attribute::Subject),
            source = event.get(Attribute::Source),
            output = to.output,
            topic = to.record.topic,
            kind = error.kind.as_str(),
            error = error.message,
            attempts,
            "not published"
        );
        failed(to, attempts, error)
    }

    /// Publishes to one destination, and notes it for those who watch.
    ///
    /// # Errors
    /// Those of [`publish`](Bridge::publish).
    pub(super) fn publish_traced<'f>(
        &'f self,
        to: Addressed<'f>,
        pace: Option<Pace>,
        trace: Option<&'f Trace>,
    ) -> impl Future<Output = Result<(), Box<Failure>>> {
        let publishing = trace.map(|trace| (trace, trace.begin(&to)));
        // An async function would keep the record twice.
        self.publish(to, pace).map(|published| {
            if let Some((trace, publishing)) = publishing {
                trace.end(*publishing, &published);
            }
            published
        })
    }

    /// Waits until an attempt makes sense. Returns how long that attempt may take.
    async fn wait_for_output(&self, output: &OutputHandle, deadline: Instant) -> Pace {
        let can_spool = self.can_spool();
        let is_up = async {
            if can_spool {
                let up = self.outputs.values().map(|output| Box::pin(output.health().wait_until_up()));
                futures_util::future::select_all(up).await;
            } else {
                output.health().wait_until_up().await;
            }
        };
        tokio::select! {
            biased;
            () = is_up => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = self.cancel_in_flight.cancelled() => {}
        }
        if can_spool { Pace::Prompt(Instant::now() + self.deadline) } else { Pace::Patient(deadline) }
    }

    /// Publishes a record past older ones of its output, because the store cannot take it. Tries until the deadline.
    pub(super) async fn publish_past_backlog(&self, failure: &Failure, deadline: Instant) -> bool {
        let Some(output) = self.outputs.get(&failure.output) else { return false };
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            if !output.is_up() || Instant::now() >= deadline || self.cancel_in_flight.is_cancelled() {
                return false;
            }
            match output.attempt(&failure.record, deadline).await {
                Ok(()) => {
                    let id = failure.record.event.id();
                    tracing::debug!(
                        id,
                        output = failure.output,
                        "the spool cannot take the event; it was published directly"
                    );
                    return true;
                }
                Err(error) if !error.kind.is_retriable() => return false,
                Err(_) => tokio::time::sleep_until(deadline.min(Instant::now() + backoff.pause())).await,
            }
        }
    }
}
