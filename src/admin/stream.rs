//! The pieces of the event stream: server-sent events, with a greeting, signs of life, and an end.

use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Health;
use crate::bridge::Seen;
use crate::bridge::feed::{EndEntry, EndReason, Entry, FORMAT, Hello, Listener};

/// How often entries are sent. Sending each of them at once would take as much time as the rest of its way.
const SEND_EVERY: Duration = Duration::from_millis(100);

/// How often it is said how many entries are missing.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// How often the state of the bridge is sent to whoever shows it.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// How long nothing may come before a comment shows that the bridge is alive.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// A stream that is being sent.
struct Sending {
    listener: Listener,
    showing: Option<Showing>,
    ticks: Interval,
    sent: Instant,
    counted: Instant,
    closed: CancellationToken,
    is_over: bool,
}

/// The states of the bridge that are sent.
struct Showing {
    health: Health,
    seen: Seen,
    shown: Option<Instant>,
}

impl Showing {
    /// The next state, if it is due.
    fn next(&mut self) -> Option<Vec<u8>> {
        if self.shown.is_some_and(|shown| shown.elapsed() < SHOW_EVERY) {
            return None;
        }
        self.shown = Some(Instant::now());
        let Health { bridge, .. } = &self.health;
        let state = bridge.state(&mut self.seen, self.health.readiness());
        Some(Entry::State(Box::new(state)).message())
    }
}

/// What a listener gets, until the bridge is `closed` or a reload of its configuration ends the stream. With a health,
/// that is the state of the bridge too, and what was kept before.
pub(super) fn pieces(
    listener: Listener,
    health: Option<Health>,
    type_prefix: String,
    closed: CancellationToken,
) -> impl Stream<Item = Bytes> {
    let hello = Hello { format: FORMAT, version: env!("CARGO_PKG_VERSION").to_owned(), type_prefix };
    let mut hello = Some(Entry::Hello(hello).message());
    let mut ticks = interval(SEND_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let now = Instant::now();
    let showing = health.map(|health| Showing { health, seen: Seen::default(), shown: None });
    let sending = Sending { listener, showing, ticks, sent: now, counted: now, closed, is_over: false };
    unfold(sending, move |mut sending| {
        let hello = hello.take();
        async move {
            let piece = match hello {
                Some(mut hello) => {
                    hello.extend(sending.showing.as_mut().and_then(Showing::next).unwrap_or_default());
                    hello.append(&mut sending.listener.past());
                    hello
                }
                None => sending.next().await?,
            };
            sending.sent = Instant::now();
            Some((piece.into(), sending))
        }
    })
}

impl Sending {
    async fn next(&mut self) -> Option<Vec<u8>> {
        if self.is_over {
            return None;
        }
        loop {
            let is_closed = tokio::select! {
                biased;
                () = self.closed.cancelled() => true,
                _ = self.ticks.tick() => false,
            };
            let end = match (is_closed, self.listener.is_reloaded()) {
                (true, _) => Some(EndReason::Stopping),
                (false, true) => Some(EndReason::Reloaded),
                (false, false) => None,
            };
            let mut piece = self.listener.take();
            let mut last = match (&mut self.showing, end) {
                (Some(showing), None) => showing.next().unwrap_or_default(),
                _ => Vec::new(),
            };
            if end.is_some() || self.counted.elapsed() >= COUNT_EVERY {
                self.counted = Instant::now();
                last.extend(
                    self.listener.skipped().map(|skipped| Entry::Skipped(skipped).message()).unwrap_or_default(),
                );
            }
            if let Some(reason) = end {
                self.is_over = true;
                last.extend(Entry::End(EndEntry { reason }).message());
            } else if piece.is_empty() && last.is_empty() && self.sent.elapsed() >= SIGN_OF_LIFE {
                last.extend(b": alive\n\n");
            }
            // Otherwise a few bytes more would double the memory of a large piece.
            piece.reserve_exact(last.len());
            piece.append(&mut last);
            if !piece.is_empty() {
                return Some(piece);
            }
        }
    }
}
