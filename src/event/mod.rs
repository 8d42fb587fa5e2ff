//! The envelope: a CloudEvents 1.0 event, its attributes, and its JSON.
//!
//! * [`Event`] holds validated attributes and the data as JSON text.
//! * [`ATTRIBUTES`] is the one table of attribute names; routes and templates may name these and no others.
//! * [`Mode`] and [`percent_encode`] are what the bindings of the outputs share.

pub mod json;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The prefix of `type` unless `event.type_prefix` sets another.
pub const DEFAULT_TYPE_PREFIX: &str = "com.aliyun.media.";

/// The longest attribute value, in bytes; longer ones are cut at a character.
///
/// Attributes travel as headers, which brokers and proxies expect to be short; what was cut stays whole in `data`.
pub const MAX_ATTRIBUTE_BYTES: usize = 1024;

/// One attribute that an event can have.
#[derive(Debug, PartialEq, Eq)]
pub struct Attribute {
    /// Name by the CloudEvents rules: lower-case letters and digits.
    pub name: &'static str,
    /// Header that carries it on Kafka.
    pub kafka_header: &'static str,
    /// Header that carries it on NATS.
    pub nats_header: &'static str,
    /// What the value is, for people.
    pub description: &'static str,
}

macro_rules! attributes {
    ($($constant:ident = $name:literal: $description:literal,)*) => {
        $(
            #[doc = $description]
            pub static $constant: Attribute = Attribute {
                name: $name,
                kafka_header: concat!("ce_", $name),
                nats_header: concat!("ce-", $name),
                description: $description,
            };
        )*

        /// Every attribute an event can have.
        pub static ATTRIBUTES: &[&Attribute] = &[$(&$constant,)*];
    };
}

attributes! {
    SPECVERSION = "specversion": "version of CloudEvents, `1.0`",
    ID = "id": "hash of the callback's content: the same for every retry and either transport",
    SOURCE = "source": "`acs:vod` or `acs:ims`, with `:region:account` when both are known",
    TYPE = "type": "the type prefix and the EventType",
    SUBJECT = "subject": "id of the thing the event is about: media, else job, else task",
    TIME = "time": "when it happened, by Alibaba's EventTime",
    DATACONTENTTYPE = "datacontenttype": "`application/json`",
    DATASCHEMA = "dataschema": "name of the shape of `data`",
    DIALECT = "dialect": "`vod` or `ims`",
    STATUS = "status": "outcome: success, partial, failure, canceled, skipped, progress or unknown",
    MEDIAID = "mediaid": "id of the media, when known",
    JOBID = "jobid": "id of the job, when known",
    ACCOUNTID = "accountid": "id of the Alibaba Cloud account, when known",
    APPID = "appid": "id of the VOD application, when known",
    PARTITIONKEY = "partitionkey": "the subject; key of the Kafka record by default",
    RECORDEDTIME = "recordedtime": "when the bridge received the callback",
    TRACEPARENT = "traceparent": "W3C trace context, when the sender gave one",
    DLQREASON = "dlqreason": "dead letters only: why the event could not be published",
    DLQCODE = "dlqcode": "dead letters only: the error in the words of the bus",
    DLQATTEMPTS = "dlqattempts": "dead letters only: how often publishing was tried",
    DLQDESTINATION = "dlqdestination": "dead letters only: output and topic the event was meant for",
}

/// Looks an attribute up by name.
pub fn attribute(name: &str) -> Option<&'static Attribute> {
    ATTRIBUTES.iter().copied().find(|attribute| attribute.name == name)
}

/// How an event is laid out in a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The whole envelope as JSON in the record's value.
    #[default]
    Structured,
    /// Attributes in headers, the data alone in the record's value.
    Binary,
}

impl Mode {
    /// The word in configurations and in the spool.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Structured => "structured",
            Mode::Binary => "binary",
        }
    }

    /// The mode of a word.
    pub fn parse(word: &str) -> Option<Mode> {
        [Mode::Structured, Mode::Binary].into_iter().find(|mode| mode.as_str() == word)
    }
}

/// The value of an attribute. Most values are the same in many events, or in several attributes of one: those are
/// not copied.
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
    attributes: Vec<(&'static Attribute, Value)>,
    data: Bytes,
}

impl Event {
    /// An event with `specversion`, `datacontenttype` and the given data, which must be JSON text.
    pub fn new(data: impl Into<Bytes>) -> Event {
        let mut event = Event { attributes: Vec::with_capacity(20), data: data.into() };
        event.set_static(&SPECVERSION, "1.0");
        event.set_static(&DATACONTENTTYPE, "application/json");
        event
    }

    /// Sets an attribute; the value is made valid by [`clean`], and an empty one is left out.
    pub fn set<'v>(&mut self, attribute: &'static Attribute, value: impl Into<Cow<'v, str>>) {
        let value = clean(value.into());
        if !value.is_empty() {
            self.put(attribute, Value::Own(value.into_owned()));
        }
    }

    /// Sets an attribute to a text of the program's own, which must be valid and not empty.
    pub fn set_static(&mut self, attribute: &'static Attribute, value: &'static str) {
        self.put(attribute, Value::Static(value));
    }

    /// Sets an attribute to a text that other events or attributes have too; made valid as by [`Event::set`].
    pub fn set_shared(&mut self, attribute: &'static Attribute, value: &Arc<str>) {
        match clean(Cow::Borrowed(value)) {
            Cow::Borrowed(same) if same.len() == value.len() && !same.is_empty() => {
                self.put(attribute, Value::Shared(value.clone()));
            }
            other => self.set(attribute, other),
        }
    }

    fn put(&mut self, attribute: &'static Attribute, value: Value) {
        match self.attributes.iter_mut().find(|(known, _)| std::ptr::eq(*known, attribute)) {
            Some((_, old)) => *old = value,
            None => self.attributes.push((attribute, value)),
        }
    }

    /// The value of an attribute, if the event has it.
    pub fn get(&self, attribute: &'static Attribute) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| std::ptr::eq(*known, attribute)).map(|(_, value)| value.as_str())
    }

    /// The attributes the event has.
    pub fn attributes(&self) -> impl Iterator<Item = (&'static Attribute, &str)> {
        self.attributes.iter().map(|(attribute, value)| (*attribute, value.as_str()))
    }

    /// The event's id.
    pub fn id(&self) -> &str {
        self.get(&ID).unwrap_or_default()
    }

    /// The data: JSON text.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The event that [`Event::to_json`] wrote. Attributes that are not in [`ATTRIBUTES`] are left out.
    ///
    /// # Errors
    /// When the text is no such envelope.
    pub fn from_json(text: &[u8]) -> Result<Event, NotAnEvent> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Event;
            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("the envelope of an event")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Event, A::Error> {
                let mut event = Event { attributes: Vec::with_capacity(20), data: Bytes::new() };
                while let Some(name) = map.next_key::<&str>()? {
                    if name == "data" {
                        let data: &serde_json::value::RawValue = map.next_value()?;
                        event.data = Bytes::copy_from_slice(data.get().as_bytes());
                    } else {
                        let value: String = map.next_value()?;
                        if let Some(attribute) = attribute(name) {
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

    /// Takes an attribute away.
    pub fn remove(&mut self, attribute: &'static Attribute) {
        self.attributes.retain(|(known, _)| !std::ptr::eq(*known, attribute));
    }

    /// The envelope as compact JSON (CloudEvents JSON event format).
    pub fn to_json(&self) -> Vec<u8> {
        let attributes: usize = self.attributes().map(|(known, value)| known.name.len() + value.len() + 6).sum();
        let mut out = Vec::with_capacity(attributes + self.data.len() + 16);
        out.push(b'{');
        for (attribute, value) in self.attributes() {
            out.push(b'"');
            out.extend_from_slice(attribute.name.as_bytes());
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

/// Makes a text valid as the value of a CloudEvents attribute: control characters and noncharacters become
/// U+FFFD, and what is over [`MAX_ATTRIBUTE_BYTES`] is cut.
pub fn clean(text: Cow<'_, str>) -> Cow<'_, str> {
    let text = if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) || !text.chars().any(is_forbidden) {
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
        for attribute in ATTRIBUTES {
            assert!(attribute.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
            assert!(attribute.name.len() <= 20 && attribute.name != "data");
        }
    }

    #[test]
    fn an_empty_value_is_an_absent_attribute() {
        let mut event = Event::new("{}");
        event.set(&SUBJECT, "");
        event.set(&ID, "1");
        event.set(&ID, "2");
        assert_eq!(event.get(&SUBJECT), None);
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
