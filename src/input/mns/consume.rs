//! The path of a message: it is received, passed to the bridge while its lease is extended, and deleted.
//!
//! Receivers poll in parallel. Each first reserves room for what it may get, so polling pauses while the bridge is
//! full. Each message has its own task, and counts as in flight until its delete is answered. If its lease ends before
//! that, the queue delivers the message again with the same id: a duplicate.
//!
//! Stopping cancels polls that have no answer yet. Messages in flight are finished and deleted, within the time that
//! the service allows; the queue delivers the others again when their lease ends.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use time::OffsetDateTime;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::answer::{Message, MnsError, MnsErrorKind};
use super::body;
use super::client::{BATCH, Clock, Queue};
use super::config::MnsSettings;
use super::credentials::Credentials;
use super::delete::Deletes;
use super::examine::examine;
use super::lease::Leases;
use crate::bridge::{Callback, Kept, Outcome, Sender};
use crate::common::backoff::{Backoff, jittered};
use crate::common::clock;
use crate::common::findings::Findings;
use crate::common::http::{HttpClient, HttpError};
use crate::common::limit::Limit;
use crate::common::validation::FieldError;
use crate::input::{Input, InputError, InputHandle, InputReload, InputSettings};
use crate::telemetry::LogThrottle;
use crate::telemetry::metrics::Metrics;

/// The values of the label `result` of receives: messages, an empty answer, or the kind of error.
pub const RECEIVE_RESULTS: [&str; 5] = ["messages", "empty", "misconfigured", "throttled", "unavailable"];

/// The reason in `not_accepted_total` for a body that differs from the one that was sent.
const WRONG_MD5: &str = "md5_mismatch";

/// Pause after an error that may pass by itself: doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Pause after an error that a person must fix.
const MISCONFIGURED_PAUSE: Duration = Duration::from_secs(15);

/// How often an error that lasts is logged again.
const REMIND: Duration = Duration::from_secs(300);

/// How often the queue is asked how many messages it has.
const COUNT_EVERY: Duration = Duration::from_secs(60);

/// An MNS input that is ready to run.
#[derive(Debug)]
pub(super) struct MnsInput {
    settings: MnsSettings,
    http: HttpClient,
    room: Arc<Room>,
}

/// How many messages may be in the bridge: the reloadable setting that is in use.
#[derive(Debug)]
struct Room(Limit);

impl InputReload for Room {
    fn apply(&self, settings: Box<dyn InputSettings>, _: &Metrics) {
        if let Ok(settings) = (settings as Box<dyn Any>).downcast::<MnsSettings>() {
            self.0.resize(settings.max_in_flight);
        }
    }
}

impl MnsInput {
    /// Prepares the client, which has no connection yet.
    pub(super) fn new(settings: MnsSettings) -> Result<MnsInput, HttpError> {
        let room = Arc::new(Room(Limit::new(settings.max_in_flight)));
        let http = HttpClient::new()?;
        if settings.address.scheme == "https" {
            http.check_https()?;
        }
        Ok(MnsInput { http, settings, room })
    }
}

impl InputSettings for MnsSettings {
    fn senders(&self) -> Vec<(&str, &Sender)> {
        vec![(self.address.queue.as_str(), &*self.sender)]
    }

    fn examine<'a>(&'a self, findings: &'a Findings) -> BoxFuture<'a, ()> {
        Box::pin(examine(self, findings))
    }

    fn open(self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Input>, FieldError>> {
        Box::pin(async move {
            let key = format!("inputs.{}.endpoint", self.name);
            match MnsInput::new(*self) {
                Ok(input) => Ok(Box::new(input) as Box<dyn Input>),
                Err(error) => Err(FieldError { key, message: error.to_string() }),
            }
        })
    }
}

impl Input for MnsInput {
    fn origin(&self) -> String {
        format!("queue {}", self.settings.address.queue)
    }

    fn reload(&self) -> Option<Arc<dyn InputReload>> {
        Some(self.room.clone())
    }

    /// Returns when the receivers have ended. Messages in flight are tracked by the handle, like all callbacks.
    fn run(self: Box<Self>, handle: InputHandle) -> BoxFuture<'static, Result<(), InputError>> {
        Box::pin(async move {
            let MnsInput { settings, http, room } = *self;
            let metrics = handle.metrics().clone();
            let (input, name): (Arc<str>, _) = (handle.name().into(), settings.address.queue.clone());
            metrics.not_accepted_total.with_label_values(&[&*input, WRONG_MD5]);
            for result in RECEIVE_RESULTS {
                metrics.mns_receives_total.with_label_values(&[name.as_str(), result]);
            }
            let clock = Clock::exported(metrics.mns_clock_offset_seconds.with_label_values(&[name.as_str()]));
            let credentials = Credentials::new(settings.credentials, http.clone());
            let queue = Arc::new(Queue { address: settings.address, credentials, http, clock });
            let consumer = Arc::new(Consumer {
                deletes: Deletes::start(input.clone(), queue.clone(), metrics.mns_late_deletes_total.clone()),
                leases: Leases {
                    input,
                    queue: queue.clone(),
                    visibility: settings.visibility,
                    deadline: settings.deadline,
                    extensions: metrics.mns_lease_extensions_total.clone(),
                },
                queue,
                sender: settings.sender,
                wait: settings.wait,
                deadline: settings.deadline,
                max_receives: settings.max_receives,
                room,
                handle,
                metrics,
                throttle: LogThrottle::every(REMIND),
                clock_throttle: LogThrottle::every(REMIND),
            });
            let receivers = (0..settings.receivers).map(|_| consumer.clone().receive());
            let count = consumer.clone().count();
            futures_util::future::join(futures_util::future::join_all(receivers), count).await;
            Ok(())
        })
    }
}

struct Consumer {
    handle: InputHandle,
    queue: Arc<Queue>,
    leases: Leases,
    deletes: Deletes,
    sender: Arc<Sender>,
    wait: Duration,
    deadline: Duration,
    max_receives: u32,
    room: Arc<Room>,
    metrics: Metrics,
    throttle: LogThrottle,
    clock_throttle: LogThrottle,
}

impl Consumer {
    /// One long poll after the other.
    async fn receive(self: Arc<Self>) {
        // Stopping also waits for the messages of a poll that has ended.
        let _receiver = self.handle.callbacks().token();
        let stopping = self.handle.not_accepting();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let room = tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                room = self.room.0.acquire(BATCH) => room,
            };
            let Some(mut room) = room else { return };
            let batch = room.num_permits();
            let Some(received) = self.queue.receive(batch, self.wait, stopping).await else { return };
            let at = Instant::now();
            self.count_receive(&received);
            match received {
                Ok(messages) => {
                    backoff.reset();
                    self.report_success();
                    for message in messages {
                        // A server that sends more than was asked for is wrong, but its messages are processed.
                        let permit = room.split(1);
                        self.handle.callbacks().spawn(self.clone().process(message, at, permit));
                    }
                }
                Err(error) => {
                    drop(room);
                    let rest = self.report_error(&error, &mut backoff);
                    tokio::select! {
                        () = self.handle.not_accepting().cancelled() => return,
                        () = tokio::time::sleep(rest) => {}
                    }
                }
            }
        }
    }

    fn count_receive(&self, received: &Result<Vec<Message>, MnsError>) {
        let result = match received {
            Ok(messages) if messages.is_empty() => "empty",
            Ok(_) => "messages",
            Err(error) if error.kind == MnsErrorKind::Gone => MnsErrorKind::Unavailable.as_str(),
            Err(error) => error.kind.as_str(),
        };
        self.metrics.mns_receives_total.with_label_values(&[self.queue.address.queue.as_str(), result]).inc();
        let offset = self.queue.clock.offset();
        if offset.unsigned_abs() > clock::TOLERANCE && self.clock_throttle.is_due("clock") {
            tracing::warn!(
                input = %self.handle.name(),
                seconds = offset.whole_seconds(),
                "the clock of this machine differs from Alibaba's; from 15 minutes on, requests are refused"
            );
        }
    }

    fn report_success(&self) {
        self.throttle.reset();
        if self.handle.set_misconfigured(None) {
            tracing::info!(input = %self.handle.name(), "receiving from the queue works again");
        }
    }

    /// Reports an error, and returns how long to pause after it.
    fn report_error(&self, error: &MnsError, backoff: &mut Backoff) -> Duration {
        let queue = self.queue.address.queue.as_str();
        let is_due = self.throttle.is_due(&error.message);
        if error.kind == MnsErrorKind::Misconfigured {
            self.handle.set_misconfigured(Some(&error.message));
            if is_due {
                tracing::error!(
                    input = %self.handle.name(),
                    queue,
                    error = error.message,
                    "cannot receive from the queue; the configuration or the queue must be fixed"
                );
            }
            return jittered(MISCONFIGURED_PAUSE);
        }
        if is_due {
            tracing::warn!(
                input = %self.handle.name(),
                queue,
                kind = error.kind.as_str(),
                error = error.message,
                "cannot receive from the queue; trying again"
            );
        }
        backoff.pause()
    }

    /// Asks once a minute how many messages the queue has.
    async fn count(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.handle.not_accepting().cancelled() => return,
                counted = self.queue.attributes() => match counted {
                    Ok(attributes) => {
                        let states =
                            [("active", attributes.active), ("inactive", attributes.inactive), ("delayed", attributes.delayed)];
                        for (state, count) in states {
                            let labels = [self.queue.address.queue.as_str(), state];
                            self.metrics.mns_messages.with_label_values(&labels).set(count as f64);
                        }
                    }
                    Err(error) => tracing::debug!(input = %self.handle.name(), %error, "cannot count the messages of the queue"),
                },
            }
            tokio::select! {
                () = self.handle.not_accepting().cancelled() => return,
                () = tokio::time::sleep(COUNT_EVERY) => {}
            }
        }
    }

    /// Processes a message to its end.
    async fn process(self: Arc<Self>, message: Message, received: Instant, _permit: Option<OwnedSemaphorePermit>) {
        if !message.is_sound() {
            self.metrics.not_accepted_total.with_label_values(&[self.handle.name(), WRONG_MD5]).inc();
            self.handle.rejected(WRONG_MD5, "the body of the message differs from the one that was sent", None);
            tracing::warn!(
                input = %self.handle.name(),
                message = message.id,
                md5 = message.body_md5,
                "the body of a message differs from the one that was sent; it is left in the queue"
            );
            return;
        }
        let body = body::decode(&message.body);
        let mut admission = self.handle.admit();
        if let Err(full) = admission.grow(body.len(), (received + self.deadline).duration_since(Instant::now())).await {
            tracing::debug!(input = %self.handle.name(), message = message.id, %full, "left in the queue");
            return;
        }
        let callback = Callback {
            input: self.handle.series().clone(),
            admission,
            body,
            received: OffsetDateTime::now_utc(),
            arrived: received,
            sender: self.sender.clone(),
            signature: None,
            traceparent: message.traceparent.clone(),
            max_publish_time: Some(self.deadline),
            is_from_anyone: true,
            is_last_try: message.dequeue_count > self.max_receives,
        };
        let accepted = self.handle.accept(&callback);
        let (outcome, handle) = self.leases.keep_while(&message, received, accepted).await;
        match outcome {
            Outcome::Refused(_) | Outcome::NotACallback { kept: Kept::No, .. } => {
                tracing::debug!(input = %self.handle.name(), message = message.id, outcome = outcome.label(), "left in the queue");
            }
            Outcome::Published
            | Outcome::Spooled
            | Outcome::Duplicate
            | Outcome::Dropped
            | Outcome::DeadLettered(_)
            | Outcome::NotACallback { kept: Kept::Yes | Kept::OverBudget, .. } => {
                self.deletes.delete(handle).await;
            }
        }
    }
}
