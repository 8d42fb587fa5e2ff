//! From the bytes of a callback to an [`Event`]: a pure function, the same for every transport.
//!
//! 1. The body is read as JSON ([`crate::event::json`]). Its shape determines the dialect (`shape`): an object with
//!    `MessageBody` is IMS, a flat object with `EventType` and `EventTime` is VOD, and everything else is
//!    [`NotACallback`].
//! 2. Keys get one spelling (`keys`) and values one type (`values`), as the [`Catalogue`] says. Fields that it does not
//!    know are kept, with the key respelled and the value untouched.
//! 3. The outcome (`status`), the verdict of a review and the ids become attributes. The id of the event is a hash of the
//!    callback's content, so that a retry has the same id and every other callback a different one.

mod catalogue;
mod keys;
mod origin;
mod path;
mod samples;
mod shape;
mod status;
mod transform;
mod values;

use std::borrow::Cow;

use bumpalo::Bump;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::common::text::trim;
use crate::event::json::{Json, Members, find, write_members};
use crate::event::{Attribute, Event};
pub use catalogue::{
    Catalogue, CatalogueError, Dialect, Difference, ErrorFields, EventType, Field, FieldRow, Kind, Object, Path,
    ShapeId, Unit,
};
pub use origin::{Origin, Sender};
pub use samples::SAMPLES;
pub use shape::NotACallback;
pub use status::{Status, StatusRule, Verdict};

/// Fields of the attribute `jobid`, first choice first.
const JOB_ID: [&str; 3] = ["jobId", "parentJobId", "mediaRefreshJobId"];

/// Bytes of the arena for each byte of a callback. It is enough for most callbacks, so that they take one allocation.
const ARENA_BYTES: usize = 6;

/// A normalized callback, with the labels of its metrics.
#[derive(Clone, Debug)]
pub struct Normalized {
    /// The envelope.
    pub event: Event,
    /// Its dialect.
    pub dialect: Dialect,
    /// Position of its event type in the catalogue; none for an EventType that the catalogue does not know.
    pub event_type: Option<usize>,
    /// The outcome.
    pub status: Status,
}

/// Turns callbacks into events.
#[derive(Debug)]
pub struct Normalizer {
    catalogue: Catalogue,
    type_prefix: String,
    /// `type` and `dataschema` of every entry of the catalogue.
    names: Vec<(String, String)>,
}

impl Normalizer {
    /// A normalizer for a catalogue. Every `type` starts with the prefix.
    pub fn new(catalogue: Catalogue, type_prefix: impl Into<String>) -> Normalizer {
        let type_prefix = type_prefix.into();
        let names = catalogue
            .events()
            .iter()
            .map(|event| {
                let name = format!("{type_prefix}{}", event.name);
                (name, dataschema(event.dialect, &event.name, event.version))
            })
            .collect();
        Normalizer { catalogue, type_prefix, names }
    }

    /// The catalogue that it uses.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The prefix of every `type`.
    pub fn type_prefix(&self) -> &str {
        &self.type_prefix
    }

    /// The event of a callback's body.
    ///
    /// Never panics. Memory and time grow in proportion to the size of the body.
    ///
    /// # Errors
    /// [`NotACallback`] when the body is not a callback of a dialect that the sender's configuration accepts.
    pub fn normalize(&self, body: &[u8], origin: &Origin<'_>) -> Result<Normalized, NotACallback> {
        let arena = Bump::with_capacity(ARENA_BYTES * body.len());
        let json = Json::parse(body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body), &arena)?;
        let dialect = shape::dialect_of(json, &arena)?;
        let accepted = &origin.sender.dialects;
        if !accepted.is_empty() && !accepted.contains(&dialect) {
            return Err(NotACallback::DialectNotAccepted(dialect));
        }
        let mut text = Vec::with_capacity(body.len() + 64);
        let id = id_of(dialect, json, body, &mut text);
        let shape::Parts { event_type, event_time, user_id, payload } = shape::unwrap(dialect, json, &arena);

        let known = self.catalogue.find(dialect, event_type);
        let (index, entry) = known.map_or((None, None), |(index, entry)| (Some(index), Some(entry)));
        let transform::Data { mut members, status } = transform::data(&self.catalogue, entry, &payload, &arena);

        let time = time_of(event_time, &mut members, &arena);
        let (r#type, dataschema) = self.names_of(index, dialect, event_type);
        // The data keeps an alias, and a name that an attribute cannot hold as it is.
        let is_own_name = entry.is_some_and(|entry| entry.name == event_type);
        if !is_own_name && (index.is_some() || crate::event::clean(Cow::Borrowed(&r#type)) != *r#type) {
            transform::insert(&mut members, "eventType", Json::String(event_type));
        }

        let field =
            |name: &str| -> Option<&str> { find(&members, name)?.as_text().map(trim).filter(|text| !text.is_empty()) };
        let mut ids = self.catalogue.subject(entry).filter_map(|path| Some((path, path.first(&members)?)));
        let (subject_path, subject) = ids.next().unzip();
        let account_id = user_id.or(origin.sender.account_id.as_deref());
        // The subject is the media if there is one. An own path of the event type can lead to it.
        let media = subject.filter(|_| subject_path.is_some_and(Path::is_media));
        let job = JOB_ID.iter().find_map(|name| field(name));
        let job = job.or_else(|| subject.filter(|_| subject_path.is_some_and(Path::is_job)));
        let verdict = self
            .catalogue
            .verdict_paths(entry)
            .iter()
            .flat_map(|path| path.all(&members))
            .filter_map(|word| self.catalogue.verdict(word))
            .max();

        // The text of the id is not needed any more.
        text.clear();
        write_members(&members, body, &mut text);
        let mut event = Event::new(text);
        event.set(Attribute::Id, ascii(&id));
        event.set(Attribute::Source, source(dialect, origin.sender.region.as_deref(), account_id));
        event.set(Attribute::Type, r#type);
        event.set(Attribute::Subject, subject.unwrap_or_default());
        event.set(Attribute::Time, time.unwrap_or_default());
        event.set(Attribute::DataSchema, dataschema);
        event.set(Attribute::Dialect, dialect.as_str());
        event.set(Attribute::Status, status.as_str());
        event.set(Attribute::Verdict, verdict.map_or("", Verdict::as_str));
        event.set(Attribute::MediaId, media.unwrap_or_default());
        event.set(Attribute::JobId, job.unwrap_or_default());
        event.set(Attribute::AccountId, account_id.unwrap_or_default());
        event.set(Attribute::AppId, field("appId").unwrap_or_default());
        event.set(Attribute::PartitionKey, subject.unwrap_or_default());
        event.set(Attribute::RecordedTime, ascii(&milliseconds(origin.received)));
        event.set(Attribute::Traceparent, origin.traceparent.unwrap_or_default());
        Ok(Normalized { event, dialect, event_type: index, status })
    }

    /// The `dataschema` of the events of a type.
    pub fn dataschema(&self, event: &EventType) -> String {
        dataschema(event.dialect, &event.name, event.version)
    }

    /// The type and the data schema of an event.
    fn names_of(&self, index: Option<usize>, dialect: Dialect, event_type: &str) -> (Cow<'_, str>, Cow<'_, str>) {
        match index {
            Some(index) => {
                let (r#type, dataschema) = &self.names[index];
                (Cow::Borrowed(r#type), Cow::Borrowed(dataschema))
            }
            None => {
                let name = format!("{}{event_type}", self.type_prefix);
                (Cow::Owned(name), Cow::Owned(dataschema(dialect, event_type, 1)))
            }
        }
    }
}

/// The id of an event: a hash of the callback's content. `input` is what the value was read from. `canonical` is empty, and
/// gets what is hashed.
fn id_of(dialect: Dialect, json: Json<'_>, input: &[u8], canonical: &mut Vec<u8>) -> [u8; 32] {
    canonical.extend_from_slice(dialect.as_str().as_bytes());
    json.write_canonical(input, canonical);
    let digest = Sha256::digest(canonical);
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    hex(&half)
}

/// The time of an event in RFC 3339. A time that has no such form is added to the data.
fn time_of<'a>(event_time: Json<'a>, members: &mut Members<'a>, arena: &'a Bump) -> Option<&'a str> {
    let time = values::time_text(event_time, arena);
    if time.is_none() {
        transform::insert(members, "eventTime", event_time);
    }
    time
}

fn source(dialect: Dialect, region: Option<&str>, account_id: Option<&str>) -> Cow<'static, str> {
    let short = dialect.source();
    // The source is a URI reference. A malformed account id must not make it invalid.
    let account_id = account_id.filter(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    match (region, account_id) {
        (Some(region), Some(account_id)) => Cow::Owned(format!("{short}:{region}:{account_id}")),
        _ => Cow::Borrowed(short),
    }
}

/// URN of the schema of `data`. Characters that a URI does not allow are percent-encoded.
fn dataschema(dialect: Dialect, event_type: &str, version: u32) -> String {
    let mut name = String::with_capacity(event_type.len());
    for byte in crate::event::cut(event_type, 256).bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    schema_urn(&format!("{dialect}:{name}:{version}"))
}

/// The URN of a schema.
pub(crate) fn schema_urn(name: &str) -> String {
    format!("urn:apsara-bridge:schema:{name}")
}

/// The bytes in hexadecimal digits.
fn hex(bytes: &[u8; 16]) -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [0; 32];
    for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = [byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)]);
    }
    digits
}

/// The time in RFC 3339, UTC, to the millisecond.
fn milliseconds(moment: OffsetDateTime) -> [u8; 24] {
    let utc = moment.to_offset(time::UtcOffset::UTC);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut digits = |end: usize, mut number: u32| {
        let mut at = end;
        while number > 0 && at > 0 {
            at -= 1;
            text[at] = b'0' + (number % 10) as u8;
            number /= 10;
        }
    };
    digits(4, u32::try_from(utc.year()).unwrap_or(0));
    digits(7, u8::from(utc.month()).into());
    digits(10, utc.day().into());
    digits(13, utc.hour().into());
    digits(16, utc.minute().into());
    digits(19, utc.second().into());
    digits(23, utc.millisecond().into());
    text
}

/// Digits and signs as a text.
fn ascii(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}
