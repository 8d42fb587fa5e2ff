//! The way of a line: received, handed to the bridge, tried again while it is refused.
//!
//! Lines are handed over one after the other, each as far as it gets without waiting: to the first attempt to publish
//! it. Only then it becomes a task and the next line follows. So first attempts are in the order of the lines while the
//! buses are up.

use std::any::Any;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::config::StdinSettings;
use super::lines::{Line, TooLong, read_stdin};
use super::progress::Progress;
use crate::bridge::{Admission, Callback, Kept, Outcome, Sender};
use crate::common::backoff::Backoff;
use crate::common::limit::Limit;
use crate::dialect::NotACallback;
use crate::input::{Input, InputError, InputHandle, InputReload, InputSettings};
use crate::telemetry::LogThrottle;
use crate::telemetry::metrics::Metrics;

/// The reasons in `not_accepted_total`: the line is not a callback, or it is longer than `max_line`.
const REASONS: [&str; 2] = ["not_a_callback", "line_too_long"];

/// Pause before a refused line is tried again: doubles from the first to the second. The buses had the time of
/// `deadline` already, so that a longer pause would only be felt when they are back.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// How often it is logged again that lines are refused.
const REMIND: Duration = Duration::from_secs(60);

/// A standard input that is ready to run.
#[derive(Debug)]
pub(super) struct StdinInput {
    sender: Arc<Sender>,
    deadline: Duration,
    current: Arc<Current>,
}

/// The reloadable settings that are in use.
#[derive(Debug)]
struct Current {
    max_line: AtomicUsize,
    room: Limit,
}

impl InputReload for Current {
    fn apply(&self, settings: Box<dyn InputSettings>, _: &Metrics) {
        if let Ok(settings) = (settings as Box<dyn Any>).downcast::<StdinSettings>() {
            self.max_line.store(settings.max_line.as_usize(), Ordering::Relaxed);
            self.room.resize(settings.max_in_flight);
        }
    }
}

impl StdinInput {
    pub(super) fn new(settings: StdinSettings) -> StdinInput {
        let current = Current {
            max_line: AtomicUsize::new(settings.max_line.as_usize()),
            room: Limit::new(settings.max_in_flight),
        };
        StdinInput { sender: settings.sender, deadline: settings.deadline, current: Arc::new(current) }
    }
}

impl Input for StdinInput {
    fn origin(&self) -> String {
        "standard input".to_owned()
    }

    fn reload(&self) -> Option<Arc<dyn InputReload>> {
        Some(self.current.clone())
    }

    /// Returns when every line has an outcome, or when no more may be accepted.
    ///
    /// # Errors
    /// That lines are not callbacks, or have no outcome, or could not be read.
    fn run(self: Box<Self>, handle: InputHandle) -> BoxFuture<'static, Result<(), InputError>> {
        Box::pin(async move {
            let StdinInput { sender, deadline, current } = *self;
            for reason in REASONS {
                handle.metrics().not_accepted_total.with_label_values(&[handle.name(), reason]);
            }
            let of_line = current.clone();
            let lines = read_stdin(move || of_line.max_line.load(Ordering::Relaxed))
                .map_err(|error| InputError(format!("cannot start a thread: {error}")))?;
            let consumer = Arc::new(Consumer {
                handle,
                sender,
                deadline,
                room: current,
                progress: Progress::default(),
                throttle: LogThrottle::every(REMIND),
            });
            let tasks = TaskTracker::new();
            let stopped = consumer.hand_over(lines, &tasks).await.err();
            tasks.close();
            tokio::select! {
                biased;
                () = tasks.wait() => {}
                () = consumer.handle.closed().cancelled() => {}
            }
            consumer.report(stopped.as_deref()).map_err(InputError)
        })
    }
}

struct Consumer {
    handle: InputHandle,
    sender: Arc<Sender>,
    deadline: Duration,
    room: Arc<Current>,
    progress: Progress,
    throttle: LogThrottle,
}

impl Consumer {
    /// Hands lines to the bridge in their order. Returns when all have been read; they may still be in flight.
    ///
    /// # Errors
    /// Why there may be more lines.
    async fn hand_over(
        self: &Arc<Self>,
        mut lines: mpsc::Receiver<io::Result<Option<Line>>>,
        tasks: &TaskTracker,
    ) -> Result<(), String> {
        // Stopping also waits for the line that is being handed over.
        let _token = self.handle.callbacks().token();
        loop {
            let next = tokio::select! {
                biased;
                () = self.handle.not_accepting().cancelled() => return Err("stopped before the end".to_owned()),
                next = self.next(&mut lines) => next?,
            };
            let Some((line, share, permit)) = next else { return Ok(()) };
            let mut ended = Box::pin(self.clone().process(line, share, permit));
            // A task's budget of steps must not end this first one early: the next line would overtake it.
            let first = poll_fn(|context| Poll::Ready(ended.as_mut().poll(context).is_ready()));
            if !tokio::task::unconstrained(first).await {
                tasks.spawn(self.handle.callbacks().track_future(ended));
            }
        }
    }

    /// The next line, with room for it; none at the end.
    async fn next(
        &self,
        lines: &mut mpsc::Receiver<io::Result<Option<Line>>>,
    ) -> Result<Option<(Line, Admission, Option<OwnedSemaphorePermit>)>, String> {
        // The semaphore is never closed.
        let permit = self.room.room.semaphore().clone().acquire_owned().await.ok();
        let line = match lines.recv().await {
            Some(Ok(Some(line))) => line,
            Some(Ok(None)) => return Ok(None),
            Some(Err(error)) => return Err(format!("standard input cannot be read: {error}")),
            None => return Err("the thread that reads standard input has failed".to_owned()),
        };
        self.progress.received(line.number);
        let mut share = self.handle.admit();
        let mut bytes = line.text.len();
        while share.grow(std::mem::take(&mut bytes), self.deadline).await.is_err() {}
        Ok(Some((line, share, permit)))
    }

    /// Processes a line to its outcome, or until the input is stopped. Its share of the memory is its own until then,
    /// also between attempts.
    async fn process(self: Arc<Self>, line: Line, _share: Admission, _permit: Option<OwnedSemaphorePermit>) {
        let received = OffsetDateTime::now_utc();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let outcome = self.attempt(&line, received).await;
            let (refusal, outputs) = match &outcome {
                Outcome::Refused(refusal) => (refusal.to_string(), refusal.outputs()),
                // A full or failing disk is not the end of a line.
                Outcome::NotACallback { kept: Kept::No, error } if self.handle.keeps_dead_letters() => {
                    (format!("the dead letter could not be stored ({error})"), None)
                }
                _ => {
                    self.observe(&line, &outcome);
                    self.progress.ended(line.number, &outcome);
                    return;
                }
            };
            if self.throttle.is_due("refused") {
                let (input, line) = (self.handle.name(), line.number);
                tracing::warn!(%input, line, refusal, outputs, "lines are refused; they are tried again");
            }
            tokio::select! {
                biased;
                () = self.handle.not_accepting().cancelled() => return,
                () = tokio::time::sleep(backoff.pause()) => {}
            }
        }
    }

    async fn attempt(&self, line: &Line, received: OffsetDateTime) -> Outcome {
        let callback = Callback {
            input: self.handle.series().clone(),
            // The line has its share already.
            admission: self.handle.admit(),
            body: line.text.clone(),
            received,
            arrived: Instant::now(),
            sender: self.sender.clone(),
            signature: None,
            traceparent: None,
            max_publish_time: Some(self.deadline),
            is_last_try: false,
            is_from_anyone: false,
        };
        match line.too_long {
            None => self.handle.accept(&callback).await,
            Some(TooLong { bytes, limit }) => {
                let kept = line.text.len() as u64;
                self.handle.reject(&callback, NotACallback::TooLarge { bytes, limit, kept }).await
            }
        }
    }

    /// Counts and logs a line that is not a callback. The bridge reports the other outcomes.
    fn observe(&self, line: &Line, outcome: &Outcome) {
        let Outcome::NotACallback { error, kept } = outcome else { return };
        let input = self.handle.name();
        let reason = REASONS[usize::from(line.too_long.is_some())];
        self.handle.metrics().not_accepted_total.with_label_values(&[input, reason]).inc();
        let bytes = line.too_long.map_or(line.text.len() as u64, |too_long| too_long.bytes);
        let line = line.number;
        if *kept == Kept::Yes {
            tracing::warn!(%input, line, bytes, reason, %error, "a line is kept as a dead letter");
        } else {
            tracing::error!(%input, line, bytes, reason, %error, "a line is not kept");
        }
    }

    /// Logs what became of the lines.
    fn report(&self, stopped: Option<&str>) -> Result<(), String> {
        let (input, counts) = (self.handle.name(), self.progress.now());
        tracing::info!(
            %input,
            lines = counts.lines,
            published = counts.of("published"),
            spooled = counts.of("spooled"),
            duplicate = counts.of("duplicate"),
            dropped = counts.of("dropped"),
            dead_lettered = counts.of("dead_lettered"),
            not_accepted = counts.of("not_accepted"),
            "done with standard input"
        );
        let result = counts.result(stopped);
        if let Err(error) = &result {
            tracing::error!(%input, error, "not every line of standard input was accepted");
        }
        result
    }
}
