//! The Kafka protocol binding of CloudEvents 1.0.2.
//!
//! Structured records repeat the attributes as `ce_` headers, which the binding allows, so that a consumer can
//! filter without reading the value. Binary records carry `datacontenttype` as `content-type`.

use bytes::Bytes;

use super::{Attribute, Event, Mode};

/// Content type of a structured record.
pub const STRUCTURED_CONTENT_TYPE: &str = "application/cloudevents+json; charset=UTF-8";

/// The headers of a record, in order. Values are UTF-8 without control characters: [`Event`] holds no others.
pub fn headers(event: &Event, mode: Mode) -> impl Iterator<Item = (&'static str, &str)> {
    let content_type = match mode {
        Mode::Structured => STRUCTURED_CONTENT_TYPE,
        Mode::Binary => event.get(Attribute::DataContentType).unwrap_or("application/json"),
    };
    let attributes = event
        .attributes()
        .filter(|(attribute, _)| *attribute != Attribute::DataContentType)
        .map(|(attribute, value)| (attribute.kafka_header(), value));
    std::iter::once(("content-type", content_type)).chain(attributes)
}

/// The value of a record.
pub fn payload(event: &Event, mode: Mode) -> Bytes {
    match mode {
        Mode::Structured => event.to_json().into(),
        Mode::Binary => event.data().clone(),
    }
}
