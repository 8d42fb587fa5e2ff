//! The NATS protocol binding of CloudEvents, by the text that follows 1.0.2 (spec pull request 1016): 1.0.2 itself
//! knows structured messages without headers only.
//!
//! A structured message always says so in `Content-Type`; a binary one carries every attribute, `datacontenttype`
//! included, as a `ce-` header whose value is percent-encoded once.

use std::borrow::Cow;

use bytes::Bytes;

use crate::event::{Event, Mode, percent_encode};

/// Content type of a structured message.
const STRUCTURED_CONTENT_TYPE: &str = "application/cloudevents+json";

/// The headers of a message, in order; values are printable ASCII.
pub(super) fn headers(event: &Event, mode: Mode) -> Vec<(&'static str, Cow<'_, str>)> {
    match mode {
        Mode::Structured => vec![("Content-Type", Cow::Borrowed(STRUCTURED_CONTENT_TYPE))],
        Mode::Binary => {
            event.attributes().map(|(attribute, value)| (attribute.nats_header, percent_encode(value))).collect()
        }
    }
}

/// The payload of a message.
pub(super) fn payload(event: &Event, mode: Mode) -> Bytes {
    match mode {
        Mode::Structured => event.to_json().into(),
        Mode::Binary => event.data().clone(),
    }
}
