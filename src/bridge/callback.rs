//! What an input hands to [`Bridge::accept`](super::Bridge::accept).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{Admission, InputSeries};
use crate::common::words::words;
use crate::dialect::{Origin, Sender};

words! {
    /// What an input found out about the signature of a callback that it accepts.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Signature {
        /// There is one, and it is right.
        Valid = "valid",
        /// There is none, and none is required.
        Missing = "missing",
        /// There are no keys to check one with.
        NotChecked = "not_checked",
    }
}

/// A callback as an input received it.
#[derive(Debug)]
pub struct Callback {
    /// The input.
    pub input: Arc<InputSeries>,
    /// The body as it came.
    pub body: Bytes,
    /// When its last byte arrived, by the wall clock.
    pub received: OffsetDateTime,
    /// When it arrived, by the clock of the deadline.
    pub arrived: Instant,
    /// What the configuration says about its sender.
    pub sender: Arc<Sender>,
    /// What is known about its signature. None where callbacks have none.
    pub signature: Option<Signature>,
    /// W3C trace context of the sender.
    pub traceparent: Option<String>,
    /// For an input that keeps the callback until it has an outcome, for example a queue: the longest time from arrival
    /// until the callback is spooled. Within this time the bridge waits for outputs that are down. None means
    /// `delivery.deadline`, without waiting for outputs that are down.
    pub max_publish_time: Option<Duration>,
    /// Whether it becomes a dead letter if it cannot be published now, because the queue delivered it too often.
    pub is_last_try: bool,
    /// Whether strangers may be able to send such callbacks, so that bodies which are not callbacks are kept only up to a
    /// rate.
    pub is_from_anyone: bool,
    /// Its share of `delivery.max_in_flight_bytes`, see [`Bridge::admit`](super::Bridge::admit).
    pub admission: Admission,
}

impl Callback {
    pub(super) fn origin(&self) -> Origin<'_> {
        Origin { received: self.received, sender: &self.sender, traceparent: self.traceparent.as_deref() }
    }
}
