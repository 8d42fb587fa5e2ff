//! The Kafka protocol binding of CloudEvents 1.0.2.
//!
//! Structured records repeat the attributes as `ce_` headers, which the binding allows, so that a consumer can
//! filter without reading the value. In binary records, `datacontenttype` is the header `content-type`.

use std::borrow::Cow;

use bytes::Bytes;

use crate::event::{Attribute, Event, Mode};

/// Content type of a structured record.
const STRUCTURED_CONTENT_TYPE: &str = "application/cloudevents+json; charset=UTF-8";

/// The headers of a record, in order. Values are UTF-8 without control characters, which [`Event`] guarantees.
pub(super) fn headers(event: &Event, mode: Mode) -> Vec<(&'static str, Cow<'_, str>)> {
    let content_type = match mode {
        Mode::Structured => STRUCTURED_CONTENT_TYPE,
        Mode::Binary => event.get(Attribute::DataContentType).unwrap_or("application/json"),
    };
    let mut headers = Vec::with_capacity(20);
    headers.push(("content-type", Cow::Borrowed(content_type)));
    let attributes = event.attributes().filter(|(attribute, _)| *attribute != Attribute::DataContentType);
    headers.extend(attributes.map(|(attribute, value)| (attribute.ce_underscore_header(), Cow::Borrowed(value))));
    headers
}

/// The value of a record.
pub(super) fn payload(event: &Event, mode: Mode) -> Bytes {
    match mode {
        Mode::Structured => event.to_json().into(),
        Mode::Binary => event.data().clone(),
    }
}
