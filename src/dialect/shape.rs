//! The shapes of the two dialects: tells them apart, and takes a callback out of its shape.

use std::borrow::Cow;

use bumpalo::Bump;

use super::Dialect;
use crate::common::text::trim;
use crate::event::json::{Json, JsonError, Member, Members};

/// Why a body is not a callback of a known dialect. The text says what is wrong and where. It quotes nothing of the body
/// except a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotACallback {
    /// Invalid JSON, or JSON beyond the limits of the reader.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// JSON, but not an object.
    #[error("the body is {0}; expected a JSON object with `EventType`")]
    NotAnObject(&'static str),
    /// An object of neither shape.
    #[error("neither a VOD nor an IMS callback: {0}")]
    UnknownDialect(String),
    /// A callback of a dialect that the sender's `dialects` do not list.
    #[error("a callback of dialect {0}; the `dialects` of this input do not include it")]
    DialectNotAccepted(Dialect),
    /// A body that is larger than its input reads.
    #[error("the body has {bytes} bytes; expected at most {limit}; it was cut to its first {kept}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The largest size that the input reads.
        limit: u64,
        /// How many bytes of it the input kept.
        kept: u64,
    },
}

/// The parts of a callback, without the shape of its dialect.
pub(super) struct Parts<'a> {
    pub(super) event_type: &'a str,
    pub(super) event_time: Json<'a>,
    pub(super) user_id: Option<&'a str>,
    /// All other members, those of `MessageBody` first.
    pub(super) payload: Members<'a>,
}

/// Finds a member by its key. Blanks around the key are ignored.
fn member<'a>(members: &[Member<'a>], key: &str) -> Option<Json<'a>> {
    let is_it = |name: &str| name == key || (name.len() > key.len() && name.trim() == key);
    members.iter().find(|(name, _)| is_it(name)).map(|(_, value)| *value)
}

fn article(json: Json<'_>) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

impl Dialect {
    /// The dialect of a callback's body; none if the body is not a callback.
    pub fn of(body: &[u8]) -> Option<Dialect> {
        let arena = Bump::new();
        dialect_of(Json::parse(body, &arena).ok()?, &arena).ok()
    }
}

/// Determines the dialect from the shape alone, because many EventTypes exist in both dialects.
pub(super) fn dialect_of<'a>(json: Json<'a>, arena: &'a Bump) -> Result<Dialect, NotACallback> {
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
    match member(members, "EventTime") {
        None | Some(Json::Null) => return unknown(format!("`EventTime` is missing{}", look_alike(members))),
        Some(Json::String(text)) if text.trim().is_empty() => return unknown("`EventTime` is empty".to_owned()),
        Some(_) => {}
    }
    match member(members, "MessageBody") {
        Some(Json::Object(_)) => Ok(Dialect::Ims),
        Some(Json::String(text)) if matches!(Json::parse(text.as_bytes(), arena), Ok(Json::Object(_))) => {
            Ok(Dialect::Ims)
        }
        Some(other) => unknown(format!("`MessageBody` is {}; expected an object", article(other))),
        None if is_tencent(members) => unknown("the body looks like a callback of Tencent Cloud VOD".to_owned()),
        None if is_volcengine(members) => unknown(
            "`RequestId` and the object `Data` next to `EventType` are the shape of Volcengine's callbacks".to_owned(),
        ),
        None => Ok(Dialect::Vod),
    }
}

/// Whether a body has an id or a status at its top level, as events of VOD have. Those of other vendors have them deeper.
fn has_fields_of_vod(members: &[Member<'_>]) -> bool {
    ["Status", "JobId", "MediaId", "VideoId"].iter().any(|key| member(members, key).is_some())
}

/// Volcengine's VOD uses the header names of Alibaba's VOD and an `EventType` too, but its fields are in `Data`. Alibaba's
/// reviews have an object `Data` too, next to an id or a status.
fn is_volcengine(members: &[Member<'_>]) -> bool {
    member(members, "RequestId").is_some()
        && matches!(member(members, "Data"), Some(Json::Object(_)))
        && !has_fields_of_vod(members)
}

/// The fields of Tencent Cloud VOD are in an object whose name ends with `Event`.
fn is_tencent(members: &[Member<'_>]) -> bool {
    has_event_object(members) && !has_fields_of_vod(members)
}

fn has_event_object(members: &[Member<'_>]) -> bool {
    members.iter().any(|(key, value)| key.ends_with("Event") && matches!(value, Json::Object(_)))
}

/// The service whose message the body resembles, as the end of an error.
fn look_alike(members: &[Member<'_>]) -> &'static str {
    let has = |key: &str| member(members, key).is_some();
    if has("specversion") {
        "; the body is a CloudEvent, for example from EventBridge"
    } else if (has("State") || has("state")) && (has("JobId") || has("jobId"))
        || has("MediaWorkflowExecution")
        || has("RunId")
    {
        "; the body looks like a message of ApsaraVideo Media Processing (MPS), which is another service"
    } else if has_event_object(members) {
        "; the body looks like a callback of Tencent Cloud VOD"
    } else if has("TopicOwner") || has("SubscriptionName") {
        "; the body looks like a notification of an MNS topic"
    } else {
        ""
    }
}

/// Takes a callback out of the shape of its dialect, which [`dialect_of`] has found.
pub(super) fn unwrap<'a>(dialect: Dialect, json: Json<'a>, arena: &'a Bump) -> Parts<'a> {
    // With blanks around a name it can occur twice. The first one counts, and the others are siblings.
    let (mut event_type, mut event_time, mut user_id, mut body) = ("", None, None, None);
    let members: &[Member<'_>] = if let Json::Object(members) = json { members } else { &[] };
    let mut siblings = Members::with_capacity_in(members.len(), arena);
    for &(key, value) in members {
        match (trim(key), value) {
            ("EventType", Json::String(text)) if event_type.is_empty() => event_type = text.trim(),
            ("EventTime", value) if event_time.is_none() => event_time = Some(value),
            ("UserId", Json::Number(text) | Json::String(text)) if user_id.is_none() => {
                let id = text.trim();
                if !id.is_empty() {
                    user_id = Some(id);
                }
                // An id that the attribute cannot hold as it is stays in the data too.
                if crate::event::clean(Cow::Borrowed(id)) != text {
                    siblings.push((key, Json::String(text)));
                }
            }
            ("MessageBody", Json::Object(members)) if dialect == Dialect::Ims && body.is_none() => body = Some(members),
            ("MessageBody", Json::String(text)) if dialect == Dialect::Ims && body.is_none() => {
                match Json::parse(text.as_bytes(), arena) {
                    Ok(Json::Object(members)) => body = Some(members),
                    _ => siblings.push((key, value)),
                }
            }
            _ => siblings.push((key, value)),
        }
    }
    let payload = match body {
        None => siblings,
        Some(body) => {
            let mut payload = Members::with_capacity_in(body.len() + siblings.len(), arena);
            payload.extend_from_slice_copy(body);
            payload.extend_from_slice_copy(&siblings);
            payload
        }
    };
    Parts { event_type, event_time: event_time.unwrap_or(Json::Null), user_id, payload }
}
