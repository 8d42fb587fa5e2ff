//! The lease of a message: extended while the bridge works on it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use prometheus::IntCounter;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::answer::{Message, MnsError};
use super::client::Queue;

/// Longest lease (Alibaba's page on ChangeMessageVisibility).
pub(super) const MAX_VISIBILITY: Duration = Duration::from_secs(43_200);

/// Shortest time between two extensions, which limits the requests for a lease that is nearly over.
const SHORTEST_EXTENSION: Duration = Duration::from_millis(100);

/// Extends leases.
#[derive(Debug)]
pub(super) struct Leases {
    pub(super) input: Arc<str>,
    pub(super) queue: Arc<Queue>,
    /// What a lease is extended to.
    pub(super) visibility: Duration,
    /// `deadline` of the input: how long publishing a message may take.
    pub(super) deadline: Duration,
    pub(super) extensions: IntCounter,
}

impl Leases {
    /// Runs a future. While it runs, the lease of a message is extended each time when half of it is over. Returns the
    /// result of the future and the latest handle of the message.
    pub(super) async fn keep_while<T>(
        &self,
        message: &Message,
        received: Instant,
        work: impl Future<Output = T>,
    ) -> (T, String) {
        let mut work = std::pin::pin!(work);
        let mut handle = message.receipt_handle.clone();
        let mut lease = self.length(message.next_visible, received);
        let mut extend_at = received + lease / 2;
        let mut extension = std::pin::pin!(OptionFuture::from(None));
        let mut is_extending = false;
        let mut finished = None;
        loop {
            if !is_extending && let Some(outcome) = finished.take() {
                return (outcome, handle);
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
                            self.extensions.inc();
                            handle = new;
                            lease = self.length(next_visible, now);
                            extend_at = now + lease / 2;
                        }
                        Err(error) => {
                            tracing::debug!(input = %self.input, message = message.id, %error, "cannot extend a lease");
                            // A lost lease stays lost. The queue delivers the message again, as a duplicate.
                            let rest = if MnsError::is_final(&error) { self.deadline } else { lease / 8 };
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
    }

    /// How long a lease lasts at least, from the given moment. The server's date has whole seconds, so the difference
    /// of the clocks is uncertain by one second.
    fn length(&self, next_visible: Option<i64>, from: Instant) -> Duration {
        let known = next_visible.and_then(|end| {
            let server = OffsetDateTime::now_utc() + self.queue.clock.offset();
            let left = i128::from(end) - server.unix_timestamp_nanos() / 1_000_000;
            let passed = i128::try_from(from.elapsed().as_millis()).ok()?;
            u64::try_from(left + passed).ok().map(Duration::from_millis)
        });
        let known = known.unwrap_or(self.visibility).min(MAX_VISIBILITY);
        known.saturating_sub(Duration::from_secs(1)).max(known / 2).max(SHORTEST_EXTENSION)
    }
}
