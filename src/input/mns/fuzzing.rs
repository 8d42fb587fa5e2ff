//! What fuzz/ reaches of the formats of the protocol. It exists only with `--cfg fuzzing`, which cargo-fuzz sets.

#![allow(missing_docs)]

use bytes::Bytes;

use super::answer::{Attributes, Element, Message, MnsError, failed_deletes};
use super::{body, client};

/// The messages of a successful receive, as those that are sound are passed on: their bodies, and everything else that
/// was kept of them.
pub fn received(answer: &str) -> Option<Vec<(Bytes, String)>> {
    let messages = client::read_messages(answer).ok()?;
    let kept = |message: Message| {
        let Message { id, receipt_handle, body_md5, traceparent, .. } = &message;
        let rest = format!("{id}{receipt_handle}{body_md5}{}", traceparent.as_deref().unwrap_or_default());
        (if message.is_sound() { body::decode(&message.body) } else { Bytes::new() }, rest)
    };
    Some(messages.into_iter().map(kept).collect())
}

/// The callback in the body of a message.
pub fn body(text: &str) -> Bytes {
    body::decode(text)
}

/// An answer that is not a success.
pub fn error(status: u16, answer: &str) -> MnsError {
    MnsError::read(status, answer)
}

/// The handles that a batch delete could not delete.
pub fn not_deleted(answer: &str) -> Option<Vec<(String, String)>> {
    failed_deletes(answer)
}

/// The counts of a queue.
pub fn counts(answer: &str) -> Option<[u64; 3]> {
    let Attributes { active, inactive, delayed, .. } = Attributes::read(&Element::parse(answer)?)?;
    Some([active, inactive, delayed])
}
