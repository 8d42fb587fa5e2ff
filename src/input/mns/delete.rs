//! Deletes messages, in batches.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::client::{BATCH, Queue};
use crate::common::backoff::Backoff;

/// How long deletes are collected while a batch is not full.
const COLLECT: Duration = Duration::from_millis(10);

/// How many times a delete is tried when its request fails.
const ATTEMPTS: u32 = 5;

/// Pause between these attempts: doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));

/// The handle of a message to delete, and the channel to report to.
type Delete = (String, oneshot::Sender<()>);

/// Deletes messages of one queue. Its task ends when this is dropped.
#[derive(Debug)]
pub(super) struct Deletes(mpsc::Sender<Delete>);

impl Deletes {
    /// Starts the task that sends batches. `late` counts messages that could not be deleted before their lease ended.
    pub(super) fn start(input: Arc<str>, queue: Arc<Queue>, late: IntCounter) -> Deletes {
        let (sender, receiver) = mpsc::channel(BATCH);
        tokio::spawn(collect(Arc::new(Batches { input, queue, late }), receiver));
        Deletes(sender)
    }

    /// Deletes a message by its handle, and returns when the request was answered or has failed for good. If it
    /// is cancelled, the message may come again.
    pub(super) async fn delete(&self, handle: String) {
        let (done, deleted) = oneshot::channel();
        // Both fail only when the runtime ends. Then the queue delivers the message again.
        if self.0.send((handle, done)).await.is_ok() {
            let _ = deleted.await;
        }
    }
}

/// Collects deletes into batches.
async fn collect(batches: Arc<Batches>, mut receiver: mpsc::Receiver<Delete>) {
    while let Some(first) = receiver.recv().await {
        let mut batch = vec![first];
        let deadline = Instant::now() + COLLECT;
        while batch.len() < BATCH {
            match tokio::time::timeout_at(deadline, receiver.recv()).await {
                Ok(Some(next)) => batch.push(next),
                Ok(None) | Err(_) => break,
            }
        }
        let batches = batches.clone();
        tokio::spawn(async move { batches.send(batch).await });
    }
}

/// Sends batches.
#[derive(Debug)]
struct Batches {
    input: Arc<str>,
    queue: Arc<Queue>,
    late: IntCounter,
}

impl Batches {
    /// Deletes a batch, and retries while that can help.
    async fn send(&self, batch: Vec<Delete>) {
        let (handles, waiting): (Vec<String>, Vec<oneshot::Sender<()>>) = batch.into_iter().unzip();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        for attempt in 1..=ATTEMPTS {
            match self.queue.delete(&handles).await {
                Ok(failed) => {
                    for (handle, code) in failed {
                        self.late.inc();
                        tracing::debug!(input = %self.input, handle, code, "deleted too late; it will be redelivered");
                    }
                    break;
                }
                Err(error) if error.is_final() || attempt == ATTEMPTS => {
                    self.late.inc_by(handles.len() as u64);
                    tracing::warn!(
                        input = %self.input,
                        messages = handles.len(),
                        %error,
                        "messages cannot be deleted; the queue delivers them again, as duplicates"
                    );
                    break;
                }
                Err(_) => {
                    tokio::time::sleep(backoff.pause()).await;
                }
            }
        }
        for waiting in waiting {
            let _ = waiting.send(());
        }
    }
}
