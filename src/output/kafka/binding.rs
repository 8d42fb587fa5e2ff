//! The Kafka protocol binding of CloudEvents 1.0.2.
//!
//! Structured records can repeat attributes as `ce_` headers, which the binding allows, so that a consumer can filter
//! without reading the value. In binary records, `datacontenttype` is the header `content-type`.

use std::borrow::Cow;

use bytes::Bytes;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::words::words;
use crate::event::{Attribute, Event, Mode};

/// Content type of a structured record.
const STRUCTURED_CONTENT_TYPE: &str = "application/cloudevents+json; charset=UTF-8";

words! {
    /// Which attributes a structured record repeats as headers. Each header costs time and memory in the client.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
    #[serde(rename_all = "lowercase", expecting = "one of none, routing, all")]
    pub enum RepeatedHeaders {
        /// None.
        None = "none",
        /// Those that consumers usually route by.
        Routing = "routing",
        /// All of them.
        All = "all",
    }
}

impl RepeatedHeaders {
    /// Whether an attribute becomes a header. Those of dead letters always do, because dead letters are read by people.
    fn include(self, attribute: Attribute) -> bool {
        match attribute {
            Attribute::DlqReason | Attribute::DlqCode | Attribute::DlqAttempts | Attribute::DlqDestination => true,
            Attribute::Id
            | Attribute::Source
            | Attribute::Type
            | Attribute::Subject
            | Attribute::Status
            | Attribute::Verdict
            | Attribute::Dialect => self != RepeatedHeaders::None,
            Attribute::SpecVersion
            | Attribute::Time
            | Attribute::DataContentType
            | Attribute::DataSchema
            | Attribute::MediaId
            | Attribute::JobId
            | Attribute::AccountId
            | Attribute::AppId
            | Attribute::PartitionKey
            | Attribute::RecordedTime
            | Attribute::Traceparent => self == RepeatedHeaders::All,
        }
    }
}

/// The headers of a record, in order. `repeated` is about structured records. Values are UTF-8 without control
/// characters, which [`Event`] guarantees.
pub(super) fn headers(event: &Event, mode: Mode, repeated: RepeatedHeaders) -> Vec<(&'static str, Cow<'_, str>)> {
    let content_type = match mode {
        Mode::Structured => STRUCTURED_CONTENT_TYPE,
        Mode::Binary => event.get(Attribute::DataContentType).unwrap_or("application/json"),
    };
    let mut headers = Vec::with_capacity(20);
    headers.push(("content-type", Cow::Borrowed(content_type)));
    let is_header = |attribute: Attribute| {
        attribute != Attribute::DataContentType && (mode == Mode::Binary || repeated.include(attribute))
    };
    let attributes = event.attributes().filter(|(attribute, _)| is_header(*attribute));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn names(mode: Mode, repeated: RepeatedHeaders, with_reason: bool) -> String {
        let mut event = Event::new("{}");
        event.set(Attribute::Id, "1");
        event.set(Attribute::Verdict, "pass");
        event.set(Attribute::MediaId, "m");
        if with_reason {
            event.set(Attribute::DlqReason, "rejected");
        }
        let names = headers(&event, mode, repeated).into_iter().map(|(name, _)| name);
        names.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn structured_records_repeat_what_is_configured_and_binary_ones_have_everything() {
        use RepeatedHeaders::{All, None, Routing};
        assert_eq!(names(Mode::Structured, None, false), "content-type");
        assert_eq!(names(Mode::Structured, None, true), "content-type ce_dlqreason");
        assert_eq!(names(Mode::Structured, Routing, true), "content-type ce_id ce_verdict ce_dlqreason");
        let all = "content-type ce_specversion ce_id ce_verdict ce_mediaid";
        assert_eq!(names(Mode::Structured, All, false), all);
        for repeated in [None, Routing, All] {
            assert_eq!(names(Mode::Binary, repeated, false), all);
        }
    }
}
