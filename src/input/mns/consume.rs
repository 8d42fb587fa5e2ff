//! The way of a message: received, handed to the bridge, its lease kept meanwhile, deleted.
//!
//! Receivers poll in parallel, each with room for what it may get, so that polling pauses when the bridge is full. A
//! message is a task of its own. Deletes are gathered for a moment and sent in batches; a message counts as in flight
//! until its delete is answered. A lease that ends before that costs nothing but a repeat, which has the same id.
//!
//! Stopping ends the polls that have brought nothing yet; what is in flight is finished and deleted, within the time
//! that the service gives; the rest is left to its lease.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::{Message, MnsError, MnsErrorKind};
use super::client::{BATCH, Clock, Queue};
use super::credentials::Credentials;
use super::{MnsSettings, body};
use crate::bridge::{Bridge, Callback, Outcome, Sender};
use crate::http::Http;
use crate::setting::jittered;
use crate::telemetry::Seldom;
use crate::telemetry::metrics::Metrics;

/// The words of the label `result` of receives: messages or none came, or the kind of error.
pub const RECEIVE_RESULTS: [&str; 5] = ["messages", "empty", "misconfigured", "throttled", "unavailable"];

/// The word in `not_accepted_total` for a body that is not the one that was sent.
const WRONG_MD5: &str = "md5_mismatch";

/// How long deletes are gathered when there are fewer than a batch.
const GATHER: Duration = Duration::from_millis(10);

/// Pause after an error that may pass by itself: doubles from the first to the second, half of it random.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Pause after an error that a person must mend.
const MISCONFIGURED_PAUSE: Duration = Duration::from_secs(15);

/// How often an error that lasts is told again.
const REMIND: Duration = Duration::from_secs(300);

/// How often the queue is asked how many messages it has.
const COUNT_EVERY: Duration = Duration::from_secs(60);

/// How far the clocks may be apart before it is told. From 15 minutes on the service refuses (Alibaba's page on common
/// parameters).
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// How often a delete is tried whose request failed.
const DELETE_TRIES: u32 = 5;

/// Shortest time between two extensions of a lease: one that is nearly over isn't worth more requests.
const SHORTEST_EXTENSION: Duration = Duration::from_millis(100);

/// An MNS input, ready to run.
#[derive(Debug)]
pub struct MnsInput {
    settings: MnsSettings,
    http: Http,
}

impl MnsInput {
    /// Prepares the connections; none is made yet.
    ///
    /// # Errors
    /// When the system has no authorities to trust.
    pub fn new(settings: MnsSettings) -> Result<MnsInput, String> {
        Ok(MnsInput { http: Http::new()?, settings })
    }

    /// Name of the queue.
    pub fn queue(&self) -> &str {
        self.settings.queue()
    }

    /// Consumes the queue until `stopping`. Messages run in `tasks`, which the caller waits for; returns when the
    /// receivers have ended.
    pub async fn run(self, bridge: Arc<Bridge>, stopping: CancellationToken, tasks: TaskTracker) {
        let MnsInput { settings, http } = self;
        let metrics = bridge.metrics().clone();
        let name = settings.name.as_str();
        bridge.init_input_series(name);
        metrics.not_accepted_total.with_label_values(&[name, WRONG_MD5]);
        let queue = settings.place.queue.clone();
        for result in RECEIVE_RESULTS {
            metrics.mns_receives_total.with_label_values(&[queue.as_str(), result]);
        }
        let clock = Clock::new(metrics.mns_clock_offset_seconds.with_label_values(&[queue.as_str()]));
        let credentials = Credentials::new(settings.credentials, http.clone());
        let (deletes, gathered) = mpsc::unbounded_channel();
        let consumer = Arc::new(Consumer {
            input: name.into(),
            queue: Queue { place: settings.place, credentials, http, clock },
            sender: settings.sender,
            wait: settings.wait,
            visibility: settings.visibility,
            deadline: settings.deadline,
            max_receives: settings.max_receives,
            max_in_flight: settings.max_in_flight,
            room: Arc::new(Semaphore::new(settings.max_in_flight)),
            deletes,
            stopping,
            tasks,
            bridge,
            metrics,
            said: Seldom::every(REMIND),
            said_of_clock: Seldom::every(REMIND),
        });
        // Ends when the last message has let go of the consumer, or with the runtime.
        tokio::spawn(gather(Arc::downgrade(&consumer), gathered));
        let receivers = (0..settings.receivers).map(|_| consumer.clone().receive());
        let count = consumer.clone().count();
        futures_util::future::join(futures_util::future::join_all(receivers), count).await;
    }
}

/// A message whose outcome is known, and who waits for its delete.
type Delete = (String, oneshot::Sender<()>);

struct Consumer {
    input: Arc<str>,
    queue: Queue,
    sender: Arc<Sender>,
    wait: Duration,
    visibility: Duration,
    deadline: Duration,
    max_receives: u32,
    max_in_flight: usize,
    room: Arc<Semaphore>,
    deletes: mpsc::UnboundedSender<Delete>,
    stopping: CancellationToken,
    tasks: TaskTracker,
    bridge: Arc<Bridge>,
    metrics: Metrics,
    said: Seldom,
    said_of_clock: Seldom,
}

impl Consumer {
    /// One long poll after the other.
    async fn receive(self: Arc<Self>) {
        // Whoever drains waits for what a poll has brought, too.
        let _receiver = self.tasks.token();
        let batch = BATCH.min(self.max_in_flight);
        let mut pause = PAUSE.0;
        loop {
            let room = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                room = self.room.clone().acquire_many_owned(batch as u32) => room,
            };
            // The semaphore is never closed.
            let Ok(mut room) = room else { return };
            let Some(received) = self.queue.receive(batch, self.wait, &self.stopping).await else { return };
            let at = Instant::now();
            self.count_receive(&received);
            match received {
                Ok(messages) => {
                    pause = PAUSE.0;
                    self.is_well();
                    for message in messages {
                        // More than was asked for would be a fault of the server's, and still be wanted.
                        let permit = room.split(1);
                        self.tasks.spawn(self.clone().handle(message, at, permit));
                    }
                }
                Err(error) => {
                    drop(room);
                    let rest = self.is_unwell(&error, &mut pause);
                    tokio::select! {
                        () = self.stopping.cancelled() => return,
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
        self.metrics.mns_receives_total.with_label_values(&[self.queue.place.queue.as_str(), result]).inc();
        let offset = self.queue.clock.offset();
        if offset.unsigned_abs() > CLOCK_TOLERANCE && self.said_of_clock.is_due("clock") {
            tracing::warn!(
                input = %self.input,
                seconds = offset.whole_seconds(),
                "the clock here is off from Alibaba's; from 15 minutes on requests are refused"
            );
        }
    }

    fn is_well(&self) {
        self.said.reset();
        if self.bridge.set_trouble(&self.input, false) {
            tracing::info!(input = %self.input, "the queue can be received from again");
        }
    }

    /// Tells an error, and how long to rest after it.
    fn is_unwell(&self, error: &MnsError, pause: &mut Duration) -> Duration {
        let queue = self.queue.place.queue.as_str();
        let is_due = self.said.is_due(&error.message);
        if error.kind == MnsErrorKind::Misconfigured {
            self.bridge.set_trouble(&self.input, true);
            if is_due {
                tracing::error!(
                    input = %self.input,
                    queue,
                    error = error.message,
                    "the queue can't be received from until somebody changes something"
                );
            }
            return jittered(MISCONFIGURED_PAUSE);
        }
        if is_due {
            tracing::warn!(
                input = %self.input,
                queue,
                kind = error.kind.as_str(),
                error = error.message,
                "the queue can't be received from; trying goes on"
            );
        }
        let rest = jittered(*pause);
        *pause = (*pause * 2).min(PAUSE.1);
        rest
    }

    /// Asks from time to time how many messages the queue has.
    async fn count(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => return,
                counted = self.queue.attributes() => match counted {
                    Ok(attributes) => {
                        let states =
                            [("active", attributes.active), ("inactive", attributes.inactive), ("delayed", attributes.delayed)];
                        for (state, count) in states {
                            let labels = [self.queue.place.queue.as_str(), state];
                            self.metrics.mns_messages.with_label_values(&labels).set(count as f64);
                        }
                    }
                    Err(error) => tracing::debug!(input = %self.input, %error, "the queue's messages can't be counted"),
                },
            }
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(COUNT_EVERY) => {}
            }
        }
    }

    /// Takes a message to its end.
    async fn handle(self: Arc<Self>, message: Message, received: Instant, _permit: Option<OwnedSemaphorePermit>) {
        if !message.is_sound() {
            self.metrics.not_accepted_total.with_label_values(&[&*self.input, WRONG_MD5]).inc();
            tracing::warn!(
                input = %self.input,
                message = message.id,
                md5 = message.body_md5,
                "the body of a message is not the one that was sent; it is left in the queue"
            );
            return;
        }
        let body = body::decode(&message.body);
        let mut admission = self.bridge.admit();
        if let Err(full) = admission.grow(body.len(), received + self.deadline).await {
            tracing::debug!(input = %self.input, message = message.id, %full, "left in the queue");
            return;
        }
        let callback = Callback {
            input: self.input.clone(),
            admission,
            body,
            received: OffsetDateTime::now_utc(),
            arrived: received,
            sender: self.sender.clone(),
            traceparent: message.traceparent.clone(),
            max_publish_time: Some(self.deadline),
            is_last_try: message.dequeue_count > self.max_receives,
        };
        let (outcome, handle) = self.keep_lease(&message, received, self.bridge.accept(callback)).await;
        match outcome {
            Outcome::Refused(_) | Outcome::NotACallback { is_kept: false, .. } => {
                tracing::debug!(input = %self.input, message = message.id, outcome = outcome.label(), "left in the queue");
            }
            Outcome::Published
            | Outcome::Spooled
            | Outcome::Duplicate
            | Outcome::Dropped
            | Outcome::DeadLettered(_)
            | Outcome::NotACallback { is_kept: true, .. } => {
                let (done, deleted) = oneshot::channel();
                if self.deletes.send((handle, done)).is_ok() {
                    // An error here is the end of the runtime.
                    let _ = deleted.await;
                }
            }
        }
    }

    /// Runs a future and extends the lease of a message meanwhile, each time when half of it is over. Returns what
    /// came out, and the handle that the message has by then.
    async fn keep_lease<T>(&self, message: &Message, received: Instant, work: impl Future<Output = T>) -> (T, String) {
        let mut work = std::pin::pin!(work);
        let mut handle = message.receipt_handle.clone();
        let mut lease = self.lease(message.next_visible, received);
        let mut extend_at = received + lease / 2;
        let mut extension = std::pin::pin!(OptionFuture::from(None));
        let mut is_extending = false;
        let mut finished = None;
        loop {
            if finished.is_some() && !is_extending {
                break;
            }
            tokio::select! {
                biased;
                outcome = &mut work, if finished.is_none() => finished = Some(outcome),
                Some(extended) = &mut extension, if is_extending => {
                    extension.set(OptionFuture::from(None));
                    is_extending = false;
                    let now = Instant::now();
                    match extended {
                        Ok((new, next_visible)) => {
                            self.metrics.mns_lease_extensions_total.inc();
                            handle = new;
                            lease = self.lease(next_visible, now);
                            extend_at = now + lease / 2;
                        }
                        Err(error) => {
                            tracing::debug!(input = %self.input, message = message.id, %error, "a lease can't be extended");
                            // One that is lost stays so; the message comes again, as a duplicate.
                            let rest = if is_final(&error) { self.deadline } else { lease / 8 };
                            extend_at = now + rest.max(SHORTEST_EXTENSION);
                        }
                    }
                }
                () = tokio::time::sleep_until(extend_at), if finished.is_none() && !is_extending => {
                    let handle = handle.clone();
                    let extend = async move { self.queue.change_visibility(&handle, self.visibility).await };
                    extension.set(OptionFuture::from(Some(extend)));
                    is_extending = true;
                }
            }
        }
        match finished {
            Some(outcome) => (outcome, handle),
            // The loop ends by the other way only when there is an outcome.
            None => unreachable!("the loop ends with an outcome"),
        }
    }

    /// How long a lease lasts from a moment on, at least. The server's date has whole seconds, so that a second of
    /// the difference may be ours.
    fn lease(&self, next_visible: Option<i64>, from: Instant) -> Duration {
        let known = next_visible.and_then(|end| {
            let server = OffsetDateTime::now_utc() + self.queue.clock.offset();
            let left = i128::from(end) - server.unix_timestamp_nanos() / 1_000_000;
            let passed = i128::try_from(from.elapsed().as_millis()).ok()?;
            u64::try_from(left + passed).ok().map(Duration::from_millis)
        });
        let known = known.unwrap_or(self.visibility).min(super::MAX_VISIBILITY);
        known.saturating_sub(Duration::from_secs(1)).max(known / 2).max(SHORTEST_EXTENSION)
    }

    /// Deletes a batch, trying again while that can help.
    async fn delete(&self, batch: Vec<Delete>) {
        let (handles, waiting): (Vec<String>, Vec<oneshot::Sender<()>>) = batch.into_iter().unzip();
        let mut pause = PAUSE.0;
        for attempt in 1..=DELETE_TRIES {
            match self.queue.delete(&handles).await {
                Ok(failed) => {
                    for (handle, code) in failed {
                        self.metrics.mns_late_deletes_total.inc();
                        tracing::debug!(input = %self.input, handle, code, "deleted too late; the message comes again");
                    }
                    break;
                }
                Err(error) if is_final(&error) || attempt == DELETE_TRIES => {
                    self.metrics.mns_late_deletes_total.inc_by(handles.len() as u64);
                    tracing::warn!(
                        input = %self.input,
                        messages = handles.len(),
                        %error,
                        "messages can't be deleted; they come again, as duplicates"
                    );
                    break;
                }
                Err(_) => {
                    tokio::time::sleep(jittered(pause)).await;
                    pause *= 2;
                }
            }
        }
        for waiting in waiting {
            let _ = waiting.send(());
        }
    }
}

/// Whether trying the same again soon is of no use.
fn is_final(error: &MnsError) -> bool {
    matches!(error.kind, MnsErrorKind::Gone | MnsErrorKind::Misconfigured)
}

/// Gathers deletes into batches.
async fn gather(consumer: std::sync::Weak<Consumer>, mut gathered: mpsc::UnboundedReceiver<Delete>) {
    while let Some(first) = gathered.recv().await {
        let mut batch = vec![first];
        let deadline = Instant::now() + GATHER;
        while batch.len() < BATCH {
            match tokio::time::timeout_at(deadline, gathered.recv()).await {
                Ok(Some(next)) => batch.push(next),
                Ok(None) | Err(_) => break,
            }
        }
        let Some(consumer) = consumer.upgrade() else { return };
        tokio::spawn(async move { consumer.delete(batch).await });
    }
}
