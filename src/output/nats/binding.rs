//! The NATS protocol binding of CloudEvents, in the version after 1.0.2 (spec pull request 1016). 1.0.2 itself only has
//! structured messages without headers.
//!
//! A structured message always has `Content-Type`. In a binary message, every attribute, `datacontenttype` included, is
//! a `ce-` header whose value is percent-encoded once.

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
            event.attributes().map(|(attribute, value)| (attribute.ce_dash_header(), percent_encode(value))).collect()
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
