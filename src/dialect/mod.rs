//! From the bytes of a callback to an [`Event`]: a pure function, the same for every transport.
//!
//! 1. The body is read as JSON ([`crate::event::json`]) and told apart by its shape: an object under `MessageBody`
//!    is IMS, a flat object with `EventType` and `EventTime` is VOD, all else is [`NotACallback`].
//! 2. Keys get one spelling (`keys`), values one type (`values`), as the [`Catalogue`] says; what it doesn't know
//!    is kept, key respelled, value untouched.
//! 3. The outcome (`status`) and the ids become attributes; the id of the event is a hash of the callback's
//!    content, so that a retry has the same id and any other callback another.

mod catalogue;
mod keys;
mod status;
mod transform;
mod values;

use std::borrow::Cow;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::event::json::{Json, JsonError, Members, write_string};
use crate::event::{Attribute, Event};
pub use catalogue::{Catalogue, CatalogueError, Dialect, ErrorFields, EventType};
pub use status::{Status, StatusRule};

/// Fields that give the attribute `jobid`, first choice first.
const JOB_ID: [&str; 3] = ["jobId", "parentJobId", "mediaRefreshJobId"];

/// What is known of a callback beside its body.
#[derive(Clone, Debug)]
pub struct Origin<'a> {
    /// When its last byte arrived.
    pub received: OffsetDateTime,
    /// Region of the Alibaba service, from the configuration.
    pub region: Option<&'a str>,
    /// Account, from the configuration; the `UserId` of IMS goes before it.
    pub account_id: Option<&'a str>,
    /// W3C trace context of the sender.
    pub traceparent: Option<&'a str>,
    /// The dialects taken here; empty takes both.
    pub dialects: &'a [Dialect],
}

impl Origin<'static> {
    /// An origin of which nothing is known but the time.
    pub fn at(received: OffsetDateTime) -> Self {
        Origin { received, region: None, account_id: None, traceparent: None, dialects: &[] }
    }
}

/// Why a body is no callback of a known dialect. The text names what is wrong and where; it quotes no more of the
/// body than a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotACallback {
    /// No JSON, or JSON that the bridge doesn't read.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// JSON, but no object.
    #[error("the body is {0}; expected a JSON object with `EventType`")]
    NotAnObject(&'static str),
    /// An object of neither shape.
    #[error("neither a VOD nor an IMS callback: {0}")]
    UnknownDialect(String),
    /// A callback whose dialect is not taken here.
    #[error("a callback of dialect {0}, which is not among the `dialects` taken here")]
    DialectNotTaken(Dialect),
}

/// A callback as normalized, with what metrics want to know of it.
#[derive(Clone, Debug)]
pub struct Normalized {
    /// The envelope.
    pub event: Event,
    /// Its dialect.
    pub dialect: Dialect,
    /// The EventType's name where the catalogue knows it.
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
    names: Vec<(Arc<str>, Arc<str>)>,
}

impl Normalizer {
    /// A normalizer for a catalogue; every `type` starts with the prefix.
    pub fn new(catalogue: Catalogue, type_prefix: impl Into<String>) -> Normalizer {
        let type_prefix = type_prefix.into();
        let names = catalogue
            .events()
            .iter()
            .map(|event| {
                let name = format!("{type_prefix}{}", event.name);
                (name.into(), dataschema(event.dialect, &event.name).into())
            })
            .collect();
        Normalizer { catalogue, type_prefix, names }
    }

    /// The catalogue it works by.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// What every `type` starts with.
    pub fn type_prefix(&self) -> &str {
        &self.type_prefix
    }

    /// The event of a callback's body.
    ///
    /// Never panics, needs memory in proportion to the body, and takes no time that depends on anything but its
    /// size.
    ///
    /// # Errors
    /// [`NotACallback`] tells what keeps the body from being a callback of a known dialect.
    pub fn normalize(&self, body: &[u8], origin: &Origin<'_>) -> Result<Normalized, NotACallback> {
        let text = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
        let json = Json::parse(text)?;
        let id_of = |dialect: Dialect| {
            let mut canonical = Vec::with_capacity(text.len() + 3);
            canonical.extend_from_slice(dialect.as_str().as_bytes());
            json.write_canonical(&mut canonical);
            hex(&Sha256::digest(&canonical)[..16])
        };
        let dialect = tell_apart(&json)?;
        if !origin.dialects.is_empty() && !origin.dialects.contains(&dialect) {
            return Err(NotACallback::DialectNotTaken(dialect));
        }
        let id = id_of(dialect);
        let Callback { event_type, event_time, user_id, payload } = unwrap(dialect, json);

        let known = self.catalogue.find(dialect, &event_type);
        let (index, entry) = known.map_or((None, None), |(index, entry)| (Some(index), Some(entry)));
        let transform::Data { mut members, status } = transform::data(&self.catalogue, entry, payload);

        let time = match values::time(event_time) {
            Json::String(text) if values::rfc3339(&text).is_some() => Some(text),
            odd => {
                transform::insert(&mut members, "eventTime", odd);
                None
            }
        };
        let (r#type, dataschema) = match index {
            Some(index) => self.names[index].clone(),
            None => {
                let name = format!("{}{event_type}", self.type_prefix);
                (name.into(), dataschema(dialect, &event_type).into())
            }
        };
        // An alias, or a name that no attribute can hold as it is, is not lost.
        let is_own_name = entry.is_some_and(|entry| entry.name == event_type);
        if !is_own_name && (index.is_some() || crate::event::clean(Cow::Borrowed(&r#type)) != *r#type) {
            transform::insert(&mut members, "eventType", Json::String(event_type.clone()));
        }

        let field = |name: &str| -> Option<&str> {
            let (_, value) = members.iter().find(|(key, _)| key == name)?;
            value.as_text().map(str::trim).filter(|text| !text.is_empty())
        };
        let own_subject = entry.map(|entry| entry.subject.as_slice()).unwrap_or_default();
        let subject = own_subject
            .iter()
            .find_map(|name| field(name))
            .or_else(|| catalogue::DEFAULT_SUBJECT.iter().find_map(|name| field(name)));
        let account_id = user_id.as_deref().or(origin.account_id);
        let media = field("mediaId");

        let mut event = Event::new(write(&members, body.len()));
        event.set(Attribute::Id, id);
        match source(dialect, origin.region, account_id) {
            Cow::Borrowed(short) => event.set_static(Attribute::Source, short),
            Cow::Owned(long) => event.set(Attribute::Source, long),
        }
        event.set_shared(Attribute::Type, &r#type);
        let shared_subject: Arc<str> = subject.unwrap_or_default().into();
        event.set_shared(Attribute::Subject, &shared_subject);
        event.set(Attribute::Time, time.as_deref().unwrap_or_default());
        event.set_shared(Attribute::DataSchema, &dataschema);
        event.set_static(Attribute::Dialect, dialect.as_str());
        event.set_static(Attribute::Status, status.as_str());
        if media == subject {
            event.set_shared(Attribute::MediaId, &shared_subject);
        } else {
            event.set(Attribute::MediaId, media.unwrap_or_default());
        }
        event.set(Attribute::JobId, JOB_ID.iter().find_map(|name| field(name)).unwrap_or_default());
        event.set(Attribute::AccountId, account_id.unwrap_or_default());
        event.set(Attribute::AppId, field("appId").unwrap_or_default());
        event.set_shared(Attribute::PartitionKey, &shared_subject);
        event.set(Attribute::RecordedTime, milliseconds(origin.received));
        event.set(Attribute::Traceparent, origin.traceparent.unwrap_or_default());
        Ok(Normalized { event, dialect, event_type: index, status })
    }
}

/// A callback taken out of the shape of its dialect.
struct Callback<'a> {
    event_type: Cow<'a, str>,
    event_time: Json<'a>,
    user_id: Option<Cow<'a, str>>,
    /// All other members, those of `MessageBody` first.
    payload: Members<'a>,
}

/// Finds a member by its key, blanks at its ends aside.
fn member<'j, 'a>(members: &'j Members<'a>, key: &str) -> Option<&'j Json<'a>> {
    members.iter().find(|(name, _)| name == key || name.trim() == key).map(|(_, value)| value)
}

fn article(json: &Json<'_>) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

/// Tells the dialect by the shape alone: many EventTypes exist in both.
fn tell_apart(json: &Json<'_>) -> Result<Dialect, NotACallback> {
    let Json::Object(members) = json else {
        return Err(NotACallback::NotAnObject(article(json)));
    };
    let unknown = |message: String| Err(NotACallback::UnknownDialect(message));
    match member(members, "EventType") {
        Some(Json::String(text)) if !text.trim().is_empty() => {}
        Some(Json::String(_)) => return unknown("`EventType` is empty".to_owned()),
        Some(other) => return unknown(format!("`EventType` is {}; expected a string", article(other))),
        None => return unknown(format!("`EventType` is missing{}", look_alike(members))),
    }
    if member(members, "EventTime").is_none() {
        return unknown(format!("`EventTime` is missing{}", look_alike(members)));
    }
    match member(members, "MessageBody") {
        Some(Json::Object(_)) => Ok(Dialect::Ims),
        Some(Json::String(text)) if matches!(Json::parse(text.as_bytes()), Ok(Json::Object(_))) => Ok(Dialect::Ims),
        Some(other) => unknown(format!("`MessageBody` is {}; expected an object", article(other))),
        None if is_volcengine(members) => unknown(
            "`Version`, `RequestId` and the object `Data` beside `EventType` are the shape of Volcengine's callbacks"
                .to_owned(),
        ),
        None => Ok(Dialect::Vod),
    }
}

/// Volcengine's VOD uses VOD's own header names and an `EventType` too, but wraps its fields in `Data`.
fn is_volcengine(members: &Members<'_>) -> bool {
    ["Version", "RequestId"].iter().all(|key| member(members, key).is_some())
        && matches!(member(members, "Data"), Some(Json::Object(_)))
}

/// Names the service whose message a foreign body resembles.
fn look_alike(members: &Members<'_>) -> &'static str {
    let has = |key: &str| member(members, key).is_some();
    if has("specversion") {
        "; the body is a CloudEvent, as EventBridge sends it"
    } else if (has("State") || has("state")) && (has("JobId") || has("jobId"))
        || has("MediaWorkflowExecution")
        || has("RunId")
    {
        "; the body looks like a message of ApsaraVideo Media Processing (MPS), which is another service"
    } else if members.iter().any(|(key, value)| key.ends_with("Event") && matches!(value, Json::Object(_))) {
        "; the body looks like a callback of Tencent Cloud VOD"
    } else if has("TopicOwner") || has("SubscriptionName") {
        "; the body looks like the notification of an MNS topic"
    } else {
        ""
    }
}

/// Takes a callback whose shape was told apart out of that shape.
fn unwrap(dialect: Dialect, json: Json<'_>) -> Callback<'_> {
    let mut callback =
        Callback { event_type: Cow::Borrowed(""), event_time: Json::Null, user_id: None, payload: Vec::new() };
    let mut siblings = Vec::new();
    let members = if let Json::Object(members) = json { members } else { Vec::new() };
    for (key, value) in members {
        match (key.trim(), value) {
            ("EventType", Json::String(text)) if callback.event_type.is_empty() => {
                callback.event_type = match text {
                    Cow::Borrowed(text) => Cow::Borrowed(text.trim()),
                    Cow::Owned(text) => Cow::Owned(text.trim().to_owned()),
                };
            }
            ("EventTime", value) if callback.event_time == Json::Null => callback.event_time = value,
            ("UserId", Json::Number(text) | Json::String(text))
                if dialect == Dialect::Ims && callback.user_id.is_none() =>
            {
                let id = text.trim();
                if !id.is_empty() {
                    callback.user_id = Some(Cow::Owned(id.to_owned()));
                }
                // What the attribute can't hold as it is stays in the data too.
                if crate::event::clean(Cow::Borrowed(id)) != text {
                    siblings.push((key, Json::String(text)));
                }
            }
            ("MessageBody", Json::Object(body)) if dialect == Dialect::Ims => callback.payload = body,
            ("MessageBody", Json::String(text)) if dialect == Dialect::Ims => {
                match Json::parse(text.as_bytes()).map(Json::into_owned) {
                    Ok(Json::Object(body)) => callback.payload = body,
                    _ => siblings.push((key, Json::String(text))),
                }
            }
            (_, value) => siblings.push((key, value)),
        }
    }
    callback.payload.append(&mut siblings);
    callback
}

fn source(dialect: Dialect, region: Option<&str>, account_id: Option<&str>) -> Cow<'static, str> {
    let short = match dialect {
        Dialect::Vod => "acs:vod",
        Dialect::Ims => "acs:ims",
    };
    // The source is a URI reference; an account that is none of Alibaba's numbers must not break it.
    let account_id = account_id.filter(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    match (region, account_id) {
        (Some(region), Some(account_id)) => Cow::Owned(format!("{short}:{region}:{account_id}")),
        _ => Cow::Borrowed(short),
    }
}

/// Name of the shape of `data`: a URN, so that it holds no character that a URI doesn't.
fn dataschema(dialect: Dialect, event_type: &str) -> String {
    let mut name = String::with_capacity(event_type.len());
    for byte in crate::event::cut(event_type, 256).bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    format!("urn:apsara-bridge:schema:{dialect}:{name}:1")
}

fn write(members: &Members<'_>, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(capacity + 64);
    out.push(b'{');
    for (index, (key, value)) in members.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_string(key, &mut out);
        out.push(b':');
        value.write(&mut out);
    }
    out.push(b'}');
    out
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

/// The moment in RFC 3339, UTC, to the millisecond.
fn milliseconds(moment: OffsetDateTime) -> String {
    let utc = moment.to_offset(time::UtcOffset::UTC);
    let mut text = String::with_capacity(24);
    let mut digits = |number: u32, width: u32, behind: char| {
        for place in (0..width).rev() {
            text.push(char::from_digit(number / 10u32.pow(place) % 10, 10).unwrap_or('0'));
        }
        text.push(behind);
    };
    digits(u32::try_from(utc.year()).unwrap_or(0), 4, '-');
    digits(u8::from(utc.month()).into(), 2, '-');
    digits(utc.day().into(), 2, 'T');
    digits(utc.hour().into(), 2, ':');
    digits(utc.minute().into(), 2, ':');
    digits(utc.second().into(), 2, '.');
    digits(utc.millisecond().into(), 3, 'Z');
    text
}
