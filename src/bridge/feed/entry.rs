//! The entries of the event stream. These types are its format: the stream writes them, `tail` reads them, and the table
//! in docs/watching.md is generated from them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::macros::format_description;

use super::state::StateEntry;
use crate::event::{Event, cut};

/// The version of the format. A reader understands only its own. New fields and new kinds of entries do not change it,
/// because readers ignore what they do not know.
pub const FORMAT: u32 = 1;

/// Most bytes of a text that is not an attribute, for example an error. Longer ones are cut.
const MAX_TEXT: usize = 512;

/// Largest payload that an entry has, in bytes.
const MAX_PAYLOAD: usize = 64 << 10;

/// The attributes of an event by their names.
pub type Attributes = BTreeMap<Cow<'static, str>, String>;

/// An entry.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Entry {
    /// The first entry of a stream.
    Hello(Hello),
    /// A callback with its outcome.
    Callback(CallbackEntry),
    /// A request or a message that was not accepted as a callback.
    Rejection(RejectionEntry),
    /// A bus has acknowledged an event of the spool. Its callback had an entry `callback` before.
    Published(PublishedEntry),
    /// An event of the spool that became a dead letter. A callback that becomes one at once has an entry `callback`.
    DeadLetter(DeadLetterEntry),
    /// How the bridge is. Only for whoever asks for it with `state=true`: after the greeting, and then once a second.
    State(Box<StateEntry>),
    /// Entries that are missing here, at most one such entry in a second.
    Skipped(SkippedEntry),
    /// The last entry of a stream that the bridge ends.
    End(EndEntry),
    /// An entry of a later version.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Who writes the stream.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Hello {
    /// The version of the format.
    pub format: u32,
    /// The version of the bridge.
    pub version: String,
    /// What every `type` starts with.
    pub type_prefix: String,
}

/// A callback with its outcome.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct CallbackEntry {
    /// When the callback was received, in UTC.
    pub time: String,
    /// The input that received it.
    pub input: String,
    /// HTTP inputs only: `valid`, `missing` (a signature is not required), or `not_checked` (the endpoint has no keys).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signature: Option<String>,
    /// The outcome, with the word of the metric `callbacks_total`.
    pub outcome: String,
    /// Why it was dead-lettered, refused or not accepted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// The time from its arrival to its outcome, in milliseconds.
    pub latency_ms: f64,
    /// The attributes of the event. Empty if the body is not a callback.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub attributes: Attributes,
    /// The routes that were tried, in order, by the rules of that moment. Routes after the one that decides were not
    /// tried. A duplicate is not routed.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub routes: Vec<RouteEntry>,
    /// The number of routes that were tried and are not listed, because there are too many.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub more_routes: usize,
    /// The destinations.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub destinations: Vec<DestinationEntry>,
    /// The number of destinations that are not listed, because there are too many for an entry of the past.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub more_destinations: usize,
    /// The data of the event, or the body that is not a callback as a text. Only with `admin.show_payloads = true`, and
    /// only up to 64 KiB.
    #[serde(skip_serializing_if = "Option::is_none", skip_deserializing)]
    #[schemars(with = "serde_json::Value")]
    pub payload: Option<Box<RawValue>>,
    /// Whether this happened before the stream began. Only whoever asked for the state gets such entries, without
    /// payload, and shortened if they were long.
    #[serde(skip_serializing_if = "is_false", default)]
    pub past: bool,
}

/// A route that was tried.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct RouteEntry {
    /// Its name.
    pub name: String,
    /// Whether it matched.
    pub matched: bool,
    /// Why it did not match.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
}

/// A destination of an event.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct DestinationEntry {
    /// The route that names it first.
    pub route: String,
    /// The output.
    pub output: String,
    /// The topic. An output without topics has a word here.
    pub topic: String,
    /// What became of the event here.
    pub result: DestinationResult,
    /// How long publishing took, in milliseconds, with all attempts. Missing in entries of the past for which nobody
    /// was listening.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub took_ms: Option<f64>,
    /// The kind of the last error, with the word of the metric `publish_failures_total`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// The last error in words.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<String>,
}

/// What became of an event at one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationResult {
    /// The bus has acknowledged it.
    Published,
    /// It is in the spool, and is published later.
    Spooled,
    /// It is a dead letter.
    DeadLettered,
    /// Nothing was kept. The sender should try again.
    Refused,
    /// A result of a later version.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

impl DestinationResult {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            DestinationResult::Published => "published",
            DestinationResult::Spooled => "spooled",
            DestinationResult::DeadLettered => "dead_lettered",
            DestinationResult::Refused => "refused",
            DestinationResult::Unknown => "unknown",
        }
    }
}

/// A request or a message that was not accepted as a callback.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct RejectionEntry {
    /// When it was rejected, in UTC.
    pub time: String,
    /// The input.
    pub input: String,
    /// Why, with the word of the metric `not_accepted_total`.
    pub reason: String,
    /// Why, in words, as the sender is told.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<String>,
    /// The path of the request, without its query.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<String>,
    /// Whether this happened before the stream began. Only whoever asked for the state gets such entries, without
    /// payload, and shortened if they were long.
    #[serde(skip_serializing_if = "is_false", default)]
    pub past: bool,
}

/// A bus has acknowledged an event of the spool.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct PublishedEntry {
    /// When it was acknowledged, in UTC.
    pub time: String,
    /// The route that sent it there. Missing if it is the publication of a dead letter.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub route: Option<String>,
    /// The output.
    pub output: String,
    /// The topic. An output without topics has a word here.
    pub topic: String,
    /// The time since its callback was received, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub latency_ms: Option<f64>,
    /// The attributes of the event.
    pub attributes: Attributes,
}

/// An event of the spool that became a dead letter.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct DeadLetterEntry {
    /// When it became one, in UTC.
    pub time: String,
    /// Why, with the word of the metric `dead_letters_total`.
    pub reason: String,
    /// Why, in words.
    pub message: String,
    /// The number of attempts to publish it.
    pub attempts: u32,
    /// The route that sent it there.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub route: Option<String>,
    /// The output.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub output: Option<String>,
    /// The topic.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub topic: Option<String>,
    /// The attributes of the event. Empty if it was damaged on the disk.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub attributes: Attributes,
    /// Whether this happened before the stream began. Only whoever asked for the state gets such entries, without
    /// payload, and shortened if they were long.
    #[serde(skip_serializing_if = "is_false", default)]
    pub past: bool,
}

/// Entries that are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
pub struct SkippedEntry {
    /// The number of events that were left out because there were more than 1,000 in a second.
    pub events_over_rate: u64,
    /// The number of publications from the spool that were left out because there were more than 200 in a second.
    pub published_over_rate: u64,
    /// The number of rejections and of bodies that are not callbacks that were left out because there were more than 100
    /// in a second.
    pub others_over_rate: u64,
    /// The number of entries that were left out because 2 MiB of them were waiting to be read.
    pub reader_slow: u64,
}

/// Why the bridge ends a stream.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct EndEntry {
    /// The reason.
    pub reason: EndReason,
}

/// Why the bridge ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The bridge stops.
    Stopping,
    /// The bridge has reloaded its configuration, and `admin.page`, `admin.show_payloads` or `event.type_prefix` has
    /// changed: who may read, what is shown, or what a pattern means. Entries are missing until the reader is connected
    /// again.
    Reloaded,
    /// A reason of a later version.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

impl Entry {
    /// The entry as one message of server-sent events.
    pub fn message(&self) -> Vec<u8> {
        let mut message = Vec::with_capacity(2048);
        message.extend_from_slice(b"data: ");
        // Only a map whose keys are not texts could fail.
        let _ = serde_json::to_writer(&mut message, self);
        message.extend_from_slice(b"\n\n");
        message
    }
}

/// The attributes of an event.
pub(super) fn attributes(event: &Event) -> Attributes {
    event.attributes().map(|(attribute, value)| (attribute.name().into(), value.to_owned())).collect()
}

/// A text that is not too long.
pub(in crate::bridge) fn short(text: impl AsRef<str>) -> String {
    cut(text.as_ref(), MAX_TEXT).to_owned()
}

/// JSON text as a payload. None if it is too long.
pub(super) fn payload(json: &[u8]) -> Option<Box<RawValue>> {
    let json = Some(json).filter(|json| json.len() <= MAX_PAYLOAD)?;
    RawValue::from_string(String::from_utf8(json.to_vec()).ok()?).ok()
}

/// A body that is not a callback as a payload. None if it is too long.
pub(super) fn payload_of_body(body: &[u8]) -> Option<Box<RawValue>> {
    let body = Some(body).filter(|body| body.len() <= MAX_PAYLOAD)?;
    serde_json::value::to_raw_value(&String::from_utf8_lossy(body)).ok()
}

/// A time in RFC 3339, UTC, to the millisecond.
pub(in crate::bridge) fn timestamp(time: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    time.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_default()
}

/// Milliseconds with three decimals.
pub(super) fn milliseconds(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

pub(super) fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_version_adds_is_ignored() {
        let read = |text: &str| serde_json::from_str::<Entry>(text).expect("an entry");
        assert!(matches!(read(r#"{"kind":"new","a":1}"#), Entry::Unknown));
        let Entry::End(end) = read(r#"{"kind":"end","reason":"new","more":[]}"#) else { panic!("an end") };
        assert_eq!(end.reason, EndReason::Unknown);
        let text = r#"{"kind":"callback","time":"t","input":"i","outcome":"new","latency_ms":1,"payload":{"a":1.10}}"#;
        let Entry::Callback(callback) = read(text) else { panic!("a callback") };
        assert!(callback.payload.is_none() && callback.destinations.is_empty());
    }

    #[test]
    fn a_payload_keeps_its_digits_and_is_on_one_line() {
        let payload = payload(br#"{"n":1.10,"t":"a\nb","u":"\u2028"}"#).expect("JSON");
        assert_eq!(payload.get(), r#"{"n":1.10,"t":"a\nb","u":"\u2028"}"#);
        assert_eq!(payload_of_body(b"a\nb\xff\r").expect("a text").get(), "\"a\\nb\u{fffd}\\r\"");
        assert!(
            super::payload(&[b'1'; MAX_PAYLOAD + 1]).is_none() && payload_of_body(&[b'1'; MAX_PAYLOAD + 1]).is_none()
        );
    }

    #[test]
    fn a_time_has_three_decimals() {
        let time = OffsetDateTime::from_unix_timestamp_nanos(1_767_225_600_100_000_000).expect("a time");
        assert_eq!(timestamp(time), "2026-01-01T00:00:00.100Z");
        assert_eq!(milliseconds(std::time::Duration::from_nanos(1_234_567)), 1.235);
    }
}
