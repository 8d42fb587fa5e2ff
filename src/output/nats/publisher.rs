//! Publishes messages to JetStream and matches the acknowledgements, on the public API of async-nats.
//!
//! This is our own code instead of the library's `jetstream::Context::send_publish`, for two reasons:
//! - **CPU.** The library creates an inbox, a map entry, a permit and two timers for each message, and writes each
//!   message separately. Here one subscription receives all acknowledgements, a slot is found by its number, one task
//!   watches all deadlines, and messages that are queued at the same time share one write. A prototype used 0.73 times
//!   the CPU.
//! - **Memory.** The library keeps an entry for each request that is never answered. While acknowledgements are
//!   missing, its memory grows for as long as messages are published. Here the number of slots is bounded.
//!
//! Promises:
//! - [`Publisher::publish`] returns when a stream acknowledged (a duplicate is acknowledged too), or with an error, or
//!   at the deadline, at most a few tens of milliseconds late and never early. See [`super::slots`].
//! - A message is passed to the library only while it is connected, and only before its deadline. The library's own
//!   queue is short ([`HANDED_OVER`]). Messages that are in it when a connection breaks are sent after reconnecting,
//!   with the same `Nats-Msg-Id`.
//! - When the connection is lost, messages that were sent over it fail with
//!   [`ErrorKind::Unavailable`](crate::output::ErrorKind) at once, because no acknowledgement can arrive any more.
//! - Dropping the future of a publish stops waiting. A message that was not sent yet is not sent.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_nats::client::traits::Publisher as _;
use async_nats::connection::State;
use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Deserialize;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::errors::{self, ApiError};
use super::slots::Slots;
use crate::output::PublishError;

/// The most messages that are queued or wait for their acknowledgements: the default of `delivery.max_in_flight`.
/// Further messages wait for a free slot.
const SLOTS: usize = 8192;

/// The most messages in the library's own queue. It is enough to fill a write, and few messages are sent late when a
/// connection breaks.
pub(super) const HANDED_OVER: usize = 256;

/// Bytes of a header block without its headers: `NATS/1.0` and two line ends.
const HEADER_BLOCK: usize = 12;

/// A publisher for one client. Dropping it ends its tasks; publishes that still wait then end at their deadlines.
#[derive(Debug)]
pub(super) struct Publisher {
    slots: Arc<Slots>,
    /// Prefix of the subjects for acknowledgements, up to the dot before the number.
    inbox: String,
    tasks: [JoinHandle<()>; 3],
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.slots.end_lost(None);
    }
}

/// Slots for the messages of one client.
pub(super) fn slots() -> Arc<Slots> {
    Arc::new(Slots::new(SLOTS))
}

impl Publisher {
    /// Subscribes to the acknowledgements. If the server does not permit this, an event of the client reports it later.
    ///
    /// # Errors
    /// When the client has ended.
    pub(super) async fn start(client: &Client, slots: Arc<Slots>) -> Result<Publisher, String> {
        let inbox = format!("{}.", client.new_inbox());
        let acknowledgements =
            client.subscribe(format!("{inbox}*")).await.map_err(|error| format!("cannot subscribe: {error}"))?;
        let tasks = [
            tokio::spawn(hand_over(client.clone(), slots.clone())),
            tokio::spawn(take_acknowledgements(acknowledgements, inbox.len(), slots.clone())),
            tokio::spawn({
                let slots = slots.clone();
                async move { slots.sweep().await }
            }),
        ];
        Ok(Publisher { slots, inbox, tasks })
    }

    /// Publishes a message and waits for its acknowledgement.
    pub(super) async fn publish(
        &self,
        subject: Subject,
        headers: HeaderMap,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        // The server counts the header block too. Each of its lines has a colon, a space and a line end.
        let headers_len: usize = headers
            .iter()
            .flat_map(|(name, values)| {
                values.iter().map(|value| AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4)
            })
            .sum();
        let size = payload.len() + headers_len + HEADER_BLOCK;
        let mut reply = String::with_capacity(self.inbox.len() + 20);
        reply.push_str(&self.inbox);
        let make = |number: u64| {
            let _ = write!(reply, "{number}");
            OutboundMessage { subject, reply: Some(Subject::from(reply)), payload, headers: Some(headers) }
        };
        self.slots.open(deadline, size, make).await?.await
    }

    /// Ends the publishes that were sent over lost connections.
    pub(super) fn end_lost(&self, client: &Client) {
        self.slots.end_lost(connection(client));
    }
}

/// The number of the present connection, counted from 1, if there is one.
fn connection(client: &Client) -> Option<u64> {
    let is_connected = client.connection_state() == State::Connected;
    is_connected.then(|| client.statistics().connects.load(Ordering::Relaxed))
}

/// Passes queued messages to the client, as many as possible at a time.
async fn hand_over(client: Client, slots: Arc<Slots>) {
    loop {
        slots.queued().await;
        // Let all tasks that can run now queue their messages first, because those then share one write.
        tokio::task::yield_now().await;
        loop {
            let Some(connection) = connection(&client) else {
                // In the client's queue they would wait for the next connection, beyond their deadlines.
                slots.end_lost(None);
                break;
            };
            let Some((number, message)) = slots.take_next(connection) else { break };
            if let Err(error) = client.publish_message(message).await {
                slots.settle(number, Err(errors::not_sent(&error)));
            }
        }
    }
}

/// Passes acknowledgements to the publishes that wait for them.
async fn take_acknowledgements(mut acknowledgements: Subscriber, prefix: usize, slots: Arc<Slots>) {
    while let Some(message) = acknowledgements.next().await {
        let number = message.subject.get(prefix..).and_then(|digits| digits.parse().ok());
        let Some(number) = number else { continue };
        match read(&message) {
            Answer::Stored => slots.settle(number, Ok(())),
            Answer::Refused(error) => slots.settle(number, Err(error)),
            Answer::NoResponders => slots.refuse(number, errors::no_responders),
            Answer::Stray => slots.note_stray_answer(number),
        }
    }
}

/// What an answer to a publish says.
#[derive(Debug, PartialEq)]
enum Answer {
    /// The stream has stored the message, now or before.
    Stored,
    Refused(PublishError),
    NoResponders,
    /// Not from JetStream.
    Stray,
}

fn read(message: &Message) -> Answer {
    #[derive(Deserialize)]
    struct Acknowledgement<'a> {
        #[serde(borrow)]
        stream: Option<Cow<'a, str>>,
        seq: Option<u64>,
        error: Option<ApiError>,
    }
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Answer::NoResponders;
    }
    match serde_json::from_slice(&message.payload) {
        Ok(Acknowledgement { error: Some(error), .. }) => Answer::Refused(errors::refused(&error)),
        Ok(Acknowledgement { stream: Some(stream), seq: Some(1..), .. }) if !stream.is_empty() => Answer::Stored,
        _ => Answer::Stray,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ErrorKind;

    fn answer(payload: &str, status: Option<StatusCode>) -> Answer {
        read(&Message {
            subject: "_INBOX.x.1".into(),
            reply: None,
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            headers: None,
            status,
            description: None,
            length: 0,
        })
    }

    #[test]
    fn only_a_stream_and_a_sequence_without_an_error_are_an_acknowledgement() {
        assert_eq!(answer(r#"{"stream":"S","seq":7}"#, None), Answer::Stored);
        assert_eq!(answer(r#"{"stream":"S","seq":7,"duplicate":true,"domain":"d"}"#, None), Answer::Stored);
        for stray in ["", "+OK", "{}", r#"{"stream":"S"}"#, r#"{"stream":"S","seq":0}"#, r#"{"stream":"","seq":1}"#] {
            assert_eq!(answer(stray, None), Answer::Stray, "{stray}");
        }
        let full =
            r#"{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"},"stream":"S","seq":0}"#;
        let Answer::Refused(error) = answer(full, None) else { panic!("an error") };
        assert_eq!((error.kind, error.message.contains("10077")), (ErrorKind::Unavailable, true));
        assert_eq!(answer("", Some(StatusCode::NO_RESPONDERS)), Answer::NoResponders);
    }
}
