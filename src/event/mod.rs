//! The envelope: a CloudEvents 1.0 event, its attributes, and its JSON.
//!
//! * [`Event`] holds validated attributes and the data as JSON text.
//! * [`Attribute`] is the one table of attributes; routes and templates can name these and no others.
//! * [`Mode`] and [`percent_encode`] are what the bindings of the outputs share.

pub mod json;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::words::words;

/// The prefix of `type` unless `event.type_prefix` sets another.
pub const DEFAULT_TYPE_PREFIX: &str = "com.aliyun.media.";

/// Most bytes of an attribute value. Longer values are cut at a character.
///
/// Attributes travel as headers, and brokers and proxies expect short headers. `data` keeps the whole value.
pub const MAX_ATTRIBUTE_BYTES: usize = 1024;

macro_rules! attributes {
    ($($variant:ident = $name:literal: $description:literal,)*) => {
        /// An attribute that an event can have. Routes and templates can name these and no others.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Attribute {
            $(#[doc = $description] $variant,)*
        }

        impl Attribute {
            /// Every attribute.
            pub const ALL: &'static [Attribute] = &[$(Attribute::$variant,)*];

            /// Name by the CloudEvents rules: lower-case letters and digits.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Attribute::$variant => $name,)*
                }
            }

            /// The attribute of a name.
            pub fn from_name(name: &str) -> Option<Attribute> {
                match name {
                    $($name => Some(Attribute::$variant),)*
                    _ => None,
                }
            }

            /// Header of bindings whose headers start with `ce_`.
            pub const fn ce_underscore_header(self) -> &'static str {
                match self {
                    $(Attribute::$variant => concat!("ce_", $name),)*
                }
            }

            /// Header of bindings whose headers start with `ce-`.
            pub const fn ce_dash_header(self) -> &'static str {
                match self {
                    $(Attribute::$variant => concat!("ce-", $name),)*
                }
            }

            /// What the value is, for people.
            pub const fn description(self) -> &'static str {
                match self {
                    $(Attribute::$variant => $description,)*
                }
            }
        }
    };
}

attributes! {
    SpecVersion = "specversion": "version of CloudEvents, `1.0`",
    Id = "id": "hash of the callback's content: the same for every retry and for both transports",
    Source = "source": "`acs:vod` or `acs:ims`, with `:region:account` when both are known",
    Type = "type": "the type prefix and the EventType",
    Subject = "subject": "id of the thing the event is about: media, else job, else task",
    Time = "time": "when it happened, from Alibaba's EventTime",
    DataContentType = "datacontenttype": "`application/json`",
    DataSchema = "dataschema": "URN of the schema of `data`",
    Dialect = "dialect": "`vod` or `ims`",
    Status = "status": "outcome: success, partial, failure, canceled, skipped, progress or unknown",
    Verdict = "verdict": "result of a review: pass, review or block, on events that carry one",
    MediaId = "mediaid": "id of the media, when known",
    JobId = "jobid": "id of the job, when known",
    AccountId = "accountid": "id of the Alibaba Cloud account, when known",
    AppId = "appid": "id of the VOD application, when known",
    PartitionKey = "partitionkey": "the subject; key of the Kafka record by default",
    RecordedTime = "recordedtime": "when the bridge received the callback",
    Traceparent = "traceparent": "W3C trace context, when the sender gave one",
    DlqReason = "dlqreason": "dead letters only: why the event could not be published",
    DlqCode = "dlqcode": "dead letters only: the error message of the bus",
    DlqAttempts = "dlqattempts": "dead letters only: number of attempts to publish",
    DlqDestination = "dlqdestination": "dead letters only: output and topic the event was meant for",
}

impl Attribute {
    /// Those that every event has.
    pub const ALWAYS: [Attribute; 9] = [
        Attribute::SpecVersion,
        Attribute::Id,
        Attribute::Source,
        Attribute::Type,
        Attribute::DataContentType,
        Attribute::DataSchema,
        Attribute::Dialect,
        Attribute::Status,
        Attribute::RecordedTime,
    ];

    /// Those that only dead letters have.
    pub const OF_DEAD_LETTERS: [Attribute; 4] =
        [Attribute::DlqReason, Attribute::DlqCode, Attribute::DlqAttempts, Attribute::DlqDestination];
}

impl fmt::Display for Attribute {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

words! {
    /// How an event is laid out in a record.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Mode {
        /// The whole envelope as JSON in the value of the record.
        #[default]
        Structured = "structured",
        /// The attributes in headers, and the data alone in the value of the record.
        Binary = "binary",
    }
}

/// The value of an attribute. Values that are the same in many events, or in several attributes of one event, are not
/// copied.
#[derive(Clone, Debug)]
enum Value {
    Static(&'static str),
    Shared(Arc<str>),
    Own(String),
}

impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Value {}

impl Value {
    fn as_str(&self) -> &str {
        match self {
            Value::Static(text) => text,
            Value::Shared(text) => text,
            Value::Own(text) => text,
        }
    }
}

/// A CloudEvents event whose data is JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    attributes: Vec<(Attribute, Value)>,
    /// A bit for each attribute that it has. Building an event sets twenty, and each would search the others.
    present: u32,
    data: Bytes,
}

/// A bit for each attribute fits.
const _: () = assert!(Attribute::ALL.len() <= u32::BITS as usize);

impl Event {
    /// An event with `specversion`, `datacontenttype` and the given data, which must be JSON text.
    pub fn new(data: impl Into<Bytes>) -> Event {
        let mut event = Event { attributes: Vec::with_capacity(20), present: 0, data: data.into() };
        event.set_static(Attribute::SpecVersion, "1.0");
        event.set_static(Attribute::DataContentType, "application/json");
        event
    }

    /// Sets an attribute. [`clean`] makes the value valid. An empty value is left out.
    pub fn set<'v>(&mut self, attribute: Attribute, value: impl Into<Cow<'v, str>>) {
        let value = clean(value.into());
        if !value.is_empty() {
            self.put(attribute, Value::Own(value.into_owned()));
        }
    }

    /// Sets an attribute to a text of the program, which must be valid and not empty.
    pub fn set_static(&mut self, attribute: Attribute, value: &'static str) {
        self.put(attribute, Value::Static(value));
    }

    /// Sets an attribute to a text that other events or attributes share. [`clean`] makes it valid.
    pub fn set_shared(&mut self, attribute: Attribute, value: &Arc<str>) {
        match clean(Cow::Borrowed(value)) {
            Cow::Borrowed(same) if same.len() == value.len() && !same.is_empty() => {
                self.put(attribute, Value::Shared(value.clone()));
            }
            other => self.set(attribute, other),
        }
    }

    fn put(&mut self, attribute: Attribute, value: Value) {
        let bit = 1 << attribute as u32;
        if self.present & bit == 0 {
            self.present |= bit;
            self.attributes.push((attribute, value));
        } else if let Some((_, old)) = self.attributes.iter_mut().find(|(known, _)| *known == attribute) {
            *old = value;
        }
    }

    /// The value of an attribute, if the event has it.
    pub fn get(&self, attribute: Attribute) -> Option<&str> {
        if self.present & (1 << attribute as u32) == 0 {
            return None;
        }
        self.attributes.iter().find(|(known, _)| *known == attribute).map(|(_, value)| value.as_str())
    }

    /// The attributes the event has.
    pub fn attributes(&self) -> impl Iterator<Item = (Attribute, &str)> {
        self.attributes.iter().map(|(attribute, value)| (*attribute, value.as_str()))
    }

    /// The event's id.
    pub fn id(&self) -> &str {
        self.get(Attribute::Id).unwrap_or_default()
    }

    /// The data as JSON text.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Reads an envelope that [`Event::to_json`] wrote. Unknown attributes are left out.
    ///
    /// # Errors
    /// When the text is not such an envelope.
    pub fn from_json(text: &[u8]) -> Result<Event, NotAnEvent> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Event;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("the envelope of an event")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Event, A::Error> {
                let mut event = Event { attributes: Vec::with_capacity(20), present: 0, data: Bytes::new() };
                while let Some(name) = map.next_key::<&str>()? {
                    if name == "data" {
                        let data: &serde_json::value::RawValue = map.next_value()?;
                        event.data = Bytes::copy_from_slice(data.get().as_bytes());
                    } else {
                        let value: String = map.next_value()?;
                        if let Some(attribute) = Attribute::from_name(name) {
                            event.set(attribute, value);
                        }
                    }
                }
                Ok(event)
            }
        }
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        let event = serde::Deserializer::deserialize_map(&mut deserializer, Visitor)?;
        deserializer.end()?;
        Ok(event)
    }

    /// Removes an attribute.
    pub fn remove(&mut self, attribute: Attribute) {
        self.attributes.retain(|(known, _)| *known != attribute);
        self.present &= !(1 << attribute as u32);
    }

    /// The envelope as compact JSON (CloudEvents JSON event format).
    pub fn to_json(&self) -> Vec<u8> {
        let attributes: usize = self.attributes().map(|(known, value)| known.name().len() + value.len() + 6).sum();
        let mut out = Vec::with_capacity(attributes + self.data.len() + 16);
        out.push(b'{');
        for (attribute, value) in self.attributes() {
            out.push(b'"');
            out.extend_from_slice(attribute.name().as_bytes());
            out.extend_from_slice(b"\":");
            json::write_string(value, &mut out);
            out.push(b',');
        }
        out.extend_from_slice(b"\"data\":");
        out.extend_from_slice(&self.data);
        out.push(b'}');
        out
    }
}

/// Why a text is not an event that [`Event::to_json`] wrote.
#[derive(Debug, thiserror::Error)]
#[error("not an event of this program: {0}")]
pub struct NotAnEvent(#[from] serde_json::Error);

/// Makes a text valid as the value of a CloudEvents attribute: control characters and noncharacters become U+FFFD, and
/// the text is cut at [`MAX_ATTRIBUTE_BYTES`].
pub fn clean(text: Cow<'_, str>) -> Cow<'_, str> {
    // Without an early end the compiler compares many bytes at once.
    let is_printable_ascii = text.bytes().fold(true, |all, byte| all & matches!(byte, b' '..=b'~'));
    let text = if is_printable_ascii || !text.chars().any(is_forbidden) {
        text
    } else {
        Cow::Owned(text.chars().map(|c| if is_forbidden(c) { char::REPLACEMENT_CHARACTER } else { c }).collect())
    };
    if text.len() <= MAX_ATTRIBUTE_BYTES {
        return text;
    }
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(cut(text, MAX_ATTRIBUTE_BYTES)),
        Cow::Owned(text) => Cow::Owned(cut(&text, MAX_ATTRIBUTE_BYTES).to_owned()),
    }
}

/// The longest start of the text that has at most `bytes` bytes and ends at a character.
pub fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// Percent-encodes what is not allowed in a header value (CloudEvents HTTP binding 1.0.2 §3.1.3.2): space, `"`, `%` and
/// everything outside U+0021 to U+007E.
pub fn percent_encode(value: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'%';
    if value.bytes().all(plain) {
        return Cow::Borrowed(value);
    }
    let mut encoded = String::with_capacity(value.len() + 16);
    for byte in value.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            encoded.push('%');
            encoded.push(char::from(HEX[usize::from(byte >> 4)]));
            encoded.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    Cow::Owned(encoded)
}

/// CloudEvents 1.0.2 §Type System forbids these characters in a String.
fn is_forbidden(c: char) -> bool {
    let code = c as u32;
    c.is_control() || (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_value_is_always_a_valid_string() {
        assert_eq!(clean(Cow::Borrowed("a\u{0}b\u{85}c\u{FFFE}d")), "a\u{FFFD}b\u{FFFD}c\u{FFFD}d");
        assert_eq!(clean(Cow::Borrowed("é")), "é");
        let long = "é".repeat(1000);
        assert_eq!(clean(Cow::Borrowed(&long)).len(), MAX_ATTRIBUTE_BYTES);
    }

    #[test]
    fn names_follow_the_cloudevents_rules() {
        for attribute in Attribute::ALL {
            let name = attribute.name();
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
            assert!(name.len() <= 20 && name != "data");
            assert_eq!(Attribute::from_name(name), Some(*attribute));
        }
    }

    #[test]
    fn an_empty_value_is_an_absent_attribute() {
        let mut event = Event::new("{}");
        event.set(Attribute::Subject, "");
        event.set(Attribute::Id, "1");
        event.set(Attribute::Id, "2");
        assert_eq!(event.get(Attribute::Subject), None);
        assert_eq!(
            String::from_utf8(event.to_json()).expect("UTF-8"),
            r#"{"specversion":"1.0","datacontenttype":"application/json","id":"2","data":{}}"#
        );
    }

    #[test]
    fn header_values_are_encoded_as_the_binding_shows() {
        assert_eq!(percent_encode("Euro € 😀"), "Euro%20%E2%82%AC%20%F0%9F%98%80");
        assert_eq!(percent_encode("100%\"\r\n"), "100%25%22%0D%0A");
        assert_eq!(percent_encode("com.aliyun.media.X"), "com.aliyun.media.X");
    }
}
