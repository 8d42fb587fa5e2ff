//! The catalogue in memory: event types, the shapes of objects, words of outcomes, synonyms of fields.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use rustc_hash::FxHashMap;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::words::words;
use crate::dialect::keys::respell;
use crate::dialect::status::{Status, StatusRule};

/// Fields tried for the subject when an event type names none of its own, or when its own are absent: media, else job,
/// else task.
pub(in crate::dialect) const DEFAULT_SUBJECT: [&str; 5] =
    ["mediaId", "jobId", "parentJobId", "mediaRefreshJobId", "taskId"];

words! {
    /// The Alibaba product that sent a callback. It determines the shape of the callback.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, JsonSchema, serde::Serialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Dialect {
        /// ApsaraVideo VOD. Its callbacks are flat JSON.
        Vod = "vod",
        /// Intelligent Media Services (IMS). Its callbacks are nested under `MessageBody`.
        Ims = "ims",
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The type that a field's value is converted to. A value that does not fit stays as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::dialect) enum Kind {
    /// Not converted.
    Any,
    /// A string; a number becomes its text.
    String,
    /// An id: a string. An id can also arrive as JSON in a string, as the member `media`.
    Id,
    /// A number; a string of digits becomes one.
    Number,
    /// A boolean; `"true"`, `"false"`, 0 and 1 become one.
    Boolean,
    /// A time in RFC 3339.
    Time,
    /// An array; a comma-separated string becomes one.
    List,
    /// The customer's own data: decoded where it is JSON, its keys and values untouched.
    Verbatim,
    /// JSON of any shape, also inside a string.
    Json,
    /// An object of a declared shape, also inside a string.
    Object(ShapeId),
    /// An array whose items have this type, also inside a string.
    Array(Box<Kind>),
}

/// Index of a [`Shape`] in its catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dialect) struct ShapeId(pub(super) usize);

/// The fields of one kind of object.
#[derive(Clone, Debug, Default)]
pub(super) struct Shape {
    pub(super) fields: BTreeMap<String, Kind>,
    /// The likely spellings of each field, so that a known key costs one look-up.
    pub(super) spellings: FxHashMap<String, (String, Kind)>,
}

/// One event type of one dialect.
#[derive(Clone, Debug)]
pub struct EventType {
    /// The product that sends it.
    pub dialect: Dialect,
    /// Its name: the attribute `type` without its prefix.
    pub name: String,
    /// Other names under which it arrives.
    pub aliases: Vec<String>,
    /// What it reports, in one line.
    pub description: String,
    /// Fields that hold the id of the thing it is about, first choice first.
    pub subject: Vec<String>,
    /// Where its outcome is found.
    pub status: StatusRule,
    /// Fields that hold the error of a failure, in addition to `ErrorCode` and `ErrorMessage`.
    pub error: Option<ErrorFields>,
    /// Its fields by normalized name, each with the type as the file writes it.
    pub fields: BTreeMap<String, String>,
}

/// Names of the fields that hold an error.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorFields {
    /// Field of the code.
    pub code: String,
    /// Field of the message.
    pub message: String,
}

/// The known event types, with the words and shapes they share.
#[derive(Clone, Debug)]
pub struct Catalogue {
    pub(super) events: Vec<EventType>,
    /// Positions of the event types by name and alias, for each dialect in the order of [`Dialect::ALL`].
    pub(super) by_name: [FxHashMap<String, usize>; 2],
    pub(super) words: FxHashMap<String, Status>,
    pub(super) synonyms: FxHashMap<String, String>,
    pub(super) shapes: Vec<Shape>,
}

impl Catalogue {
    /// Shape of the top level of `data`: the fields of all event types together.
    pub(in crate::dialect) const TOP: ShapeId = ShapeId(0);
    /// Shape of objects that no entry describes.
    pub(in crate::dialect) const OPEN: ShapeId = ShapeId(1);
    /// Index of the first shape of `[objects]`.
    pub(super) const FIRST_DECLARED: usize = 2;

    /// Every event type, in the order of the files.
    pub fn events(&self) -> &[EventType] {
        &self.events
    }

    /// The event type of a dialect by its name or an alias, and its position in [`Catalogue::events`].
    pub fn find(&self, dialect: Dialect, name: &str) -> Option<(usize, &EventType)> {
        let index = *self.by_name[dialect as usize].get(name)?;
        Some((index, &self.events[index]))
    }

    /// The outcome that one of Alibaba's words means, in any case; none for an unknown word.
    pub fn word(&self, word: &str) -> Option<Status> {
        let word = word.trim();
        match self.words.get(word) {
            Some(status) => Some(*status),
            None => self.words.get(&word.to_ascii_lowercase()).copied(),
        }
    }

    /// The normalized name and the type of a field as it was sent. The name is none where the key is already normalized.
    pub(in crate::dialect) fn field(&self, shape: ShapeId, key: &str) -> (Option<Cow<'_, str>>, &Kind) {
        let shape = &self.shapes[shape.0];
        if let Some((name, kind)) = shape.spellings.get(key) {
            return (Some(Cow::Borrowed(name.as_str())), kind);
        }
        let respelled = respell(key);
        let name = self.synonyms.get(respelled.as_ref()).map_or(respelled.as_ref(), String::as_str);
        let kind = shape.fields.get(name).unwrap_or(&Kind::Any);
        (if name == key { None } else { Some(Cow::Owned(name.to_owned())) }, kind)
    }
}
