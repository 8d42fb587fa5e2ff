//! The HTTP protocol binding of CloudEvents 1.0.2.

use std::borrow::Cow;

use bytes::Bytes;

use crate::event::{Attribute, Event, Mode, percent_encode};

/// Content type of a structured request. The specification writes `UTF-8` and means the same; the SDK for JavaScript
/// accepts only these letters.
const STRUCTURED_CONTENT_TYPE: &str = "application/cloudevents+json; charset=utf-8";

/// The headers of a request, in order. Values are printable ASCII.
pub(super) fn headers(event: &Event, mode: Mode) -> Vec<(&'static str, Cow<'_, str>)> {
    match mode {
        Mode::Structured => vec![("content-type", Cow::Borrowed(STRUCTURED_CONTENT_TYPE))],
        Mode::Binary => {
            let content_type = event.get(Attribute::DataContentType).unwrap_or("application/json");
            let mut headers = Vec::with_capacity(20);
            headers.push(("content-type", Cow::Borrowed(content_type)));
            let attributes = event.attributes().filter(|(attribute, _)| *attribute != Attribute::DataContentType);
            headers.extend(attributes.map(|(attribute, value)| (attribute.ce_dash_header(), percent_encode(value))));
            headers
        }
    }
}

/// The body of a request.
pub(super) fn payload(event: &Event, mode: Mode) -> Bytes {
    match mode {
        Mode::Structured => event.to_json().into(),
        Mode::Binary => event.data().clone(),
    }
}
