//! What is known about a callback apart from its body.

use time::OffsetDateTime;

use super::Dialect;

/// What the configuration says about the sender of callbacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sender {
    /// Region of the Alibaba service.
    pub region: Option<String>,
    /// Account. The `UserId` of an IMS callback takes precedence.
    pub account_id: Option<String>,
    /// Accepted dialects; empty accepts both.
    pub dialects: Vec<Dialect>,
}

impl Sender {
    /// A sender about which the configuration says nothing.
    pub const UNKNOWN: &Sender = &Sender { region: None, account_id: None, dialects: Vec::new() };
}

/// What is known about a callback apart from its body.
#[derive(Clone, Debug)]
pub struct Origin<'a> {
    /// When its last byte arrived.
    pub received: OffsetDateTime,
    /// Its sender.
    pub sender: &'a Sender,
    /// W3C trace context of the sender.
    pub traceparent: Option<&'a str>,
}

impl Origin<'static> {
    /// An origin of which only the time is known.
    pub fn at(received: OffsetDateTime) -> Self {
        Origin { received, sender: Sender::UNKNOWN, traceparent: None }
    }
}
