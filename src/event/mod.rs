//! The envelope: a CloudEvents 1.0 event, its attributes, and its JSON.
//!
//! * [`Event`] holds validated attributes and the data as JSON text.
//! * [`Attribute`] is the one table of attributes; routes and templates can name these and no others.
//! * [`Mode`] and [`percent_encode`] are what the bindings of the outputs share.

pub mod json;

use std::borrow::Cow;
use std::fmt;

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

            /// The start of the member in the envelope, up to the value.
            const fn head(self) -> &'static str {
                match self {
                    $(Attribute::$variant => concat!("\"", $name, "\":"),)*
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

/// A CloudEvents event whose data is JSON.
#[derive(Clone, Debug)]
pub struct Event {
    /// In the order in which they were set.
    attributes: Vec<Value>,
    /// A bit for each attribute that it has. Building an event sets twenty, and each would search the others.
    present: u32,
    /// The values of all attributes in one text, because a text for each takes most of the time of building an event.
    values: String,
    data: Bytes,
}

/// A bit for each attribute fits.
const _: () = assert!(Attribute::ALL.len() <= u32::BITS as usize);

/// Where the value of an attribute is in the text of all values.
#[derive(Clone, Copy, Debug)]
struct Value {
    attribute: Attribute,
    /// Whether JSON has it as it is, between quotation marks.
    is_plain: bool,
    start: usize,
    end: usize,
}

impl PartialEq for Event {
    fn eq(&self, other: &Event) -> bool {
        self.data == other.data && self.attributes().eq(other.attributes())
    }
}

impl Eq for Event {}

impl Event {
    /// An event with `specversion`, `datacontenttype` and the given data, which must be JSON text.
    pub fn new(data: impl Into<Bytes>) -> Event {
        let mut event = Event::empty(data.into());
        event.set(Attribute::SpecVersion, "1.0");
        event.set(Attribute::DataContentType, "application/json");
        event
    }

    fn empty(data: Bytes) -> Event {
        Event { attributes: Vec::with_capacity(20), present: 0, values: String::with_capacity(512), data }
    }

    /// Sets an attribute. [`clean`] makes the value valid. An empty value is left out.
    pub fn set(&mut self, attribute: Attribute, value: impl AsRef<str>) {
        let value = value.as_ref();
        let is_plain = value.len() <= MAX_ATTRIBUTE_BYTES && is_plain_ascii(value);
        let start = self.values.len();
        if is_plain {
            self.values.push_str(value);
        } else {
            self.values.push_str(&clean(Cow::Borrowed(value)));
        }
        let value = Value { attribute, is_plain, start, end: self.values.len() };
        if value.end == start {
            return;
        }
        let bit = 1 << attribute as u32;
        if self.present & bit == 0 {
            self.present |= bit;
            self.attributes.push(value);
        } else if let Some(old) = self.attributes.iter_mut().find(|old| old.attribute == attribute) {
            *old = value;
        }
    }

    /// The value of an attribute, if the event has it.
    pub fn get(&self, attribute: Attribute) -> Option<&str> {
        if self.present & (1 << attribute as u32) == 0 {
            return None;
        }
        self.attributes.iter().find(|value| value.attribute == attribute).map(|value| self.text(value))
    }

    fn text(&self, value: &Value) -> &str {
        &self.values[value.start..value.end]
    }

    /// The attributes the event has.
    pub fn attributes(&self) -> impl Iterator<Item = (Attribute, &str)> {
        self.attributes.iter().map(|value| (value.attribute, self.text(value)))
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
                let mut event = Event::empty(Bytes::new());
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
        self.attributes.retain(|value| value.attribute != attribute);
        self.present &= !(1 << attribute as u32);
    }

    /// The envelope as compact JSON (CloudEvents JSON event format).
    pub fn to_json(&self) -> Vec<u8> {
        let attributes: usize = self.attributes.iter().map(|value| value.attribute.head().len() + 3).sum();
        let mut out = Vec::with_capacity(attributes + self.values.len() + self.data.len() + 16);
        out.push(b'{');
        for value in &self.attributes {
            out.extend_from_slice(value.attribute.head().as_bytes());
            match self.text(value) {
                text if value.is_plain => json::write_plain(text, &mut out),
                text => json::write_string(text, &mut out),
            }
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
    let text = if is_plain_ascii(&text) || !text.chars().any(is_forbidden) {
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

/// Whether a text is printable ASCII without a quotation mark and a backslash.
fn is_plain_ascii(text: &str) -> bool {
    // Without an early end the compiler compares many bytes at once.
    text.bytes().fold(true, |all, byte| all & matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\'))
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
