//! The catalogue in memory: event types, the shapes of objects, words of outcomes, synonyms of fields.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use bumpalo::Bump;
use rustc_hash::FxHashMap;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::suggest::similar;
use crate::common::text::trim;
use crate::common::words::words;
use crate::dialect::keys::respell;
use crate::dialect::status::{Status, StatusRule, Verdict};

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

impl Dialect {
    /// The start of `source`. It is the whole `source` if the region or the account is not known.
    pub const fn source(self) -> &'static str {
        match self {
            Dialect::Vod => "acs:vod",
            Dialect::Ims => "acs:ims",
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The type that a field's value is converted to. A value that does not fit stays as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not converted.
    Any,
    /// A string; a number becomes its text.
    String,
    /// An id: a string. An id can also arrive as JSON in a string, as the member `media`.
    Id,
    /// A number; a string of digits becomes one.
    Number,
    /// A number of seconds that arrives in milliseconds.
    SecondsFromMilliseconds,
    /// A boolean; `"true"`, `"false"`, 0 and 1 become one.
    Boolean,
    /// A time in RFC 3339.
    Time,
    /// An array of strings; a comma-separated string becomes one.
    List,
    /// The customer's own data: decoded once where it is JSON, its keys and values untouched.
    Verbatim,
    /// JSON of any shape, also inside a string.
    Json,
    /// An object of a declared shape, also inside a string.
    Object(ShapeId),
    /// An array whose items have this type, also inside a string.
    Array(Box<Kind>),
    /// An object whose keys are ids or names that somebody chose, also inside a string. Its values have this type.
    Map(Box<Kind>),
}

impl Kind {
    /// The type itself, or that of the items or values at its end.
    pub(super) fn item(&self) -> &Kind {
        match self {
            Kind::Array(inner) | Kind::Map(inner) => inner.item(),
            kind => kind,
        }
    }
}

/// Index of the shape of an object in its catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShapeId(pub(super) usize);

/// The fields of one kind of object, as normalizing needs them.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) fields: BTreeMap<String, Kind>,
    /// The likely spellings of each field, so that a known key costs one look-up.
    pub(super) spellings: FxHashMap<String, (String, Kind)>,
    /// Normalized names by another name that Alibaba uses here, respelled.
    pub(super) renamed: FxHashMap<String, String>,
    /// Alibaba's names for a field, the first choice first.
    pub(super) origins: FxHashMap<String, Vec<String>>,
    /// The type of all other fields.
    pub(super) others: Kind,
    /// The shape that knows the other fields, for the top level of an event type.
    pub(super) fallback: Option<ShapeId>,
}

words! {
    /// The unit of a number: one for each kind of fact.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Unit {
        /// Sizes of files.
        Bytes = "bytes",
        /// Durations, and positions in a media.
        Seconds = "seconds",
        /// Bit rates; a kilobit is 1,000 bits.
        KilobitsPerSecond = "kbit/s",
        /// Widths and heights of pictures.
        Pixels = "pixels",
        /// Frame rates.
        FramesPerSecond = "frames/s",
        /// Sample rates.
        Hertz = "Hz",
        /// Speech rates.
        WordsPerMinute = "words/min",
        /// Shares from 0 to 100.
        Percent = "percent",
        /// Shares from 0 to 1.
        Ratio = "ratio",
        /// Counts.
        Pieces = "pieces",
    }
}

/// What the catalogue says about a field of `data`.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its type.
    pub kind: Kind,
    /// Its type as the file writes it.
    pub type_name: String,
    /// What it means, in one sentence; empty if the file does not say it.
    pub description: String,
    /// Unit of a number.
    pub unit: Option<Unit>,
    /// Alibaba's names for it, exactly as sent.
    pub from: Vec<String>,
    /// Known values. Alibaba can send others.
    pub values: Vec<String>,
    /// Whether values of other types are known to occur.
    pub loose: bool,
}

/// A nested object.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its name in the catalogue.
    pub name: String,
    /// Its fields by normalized name. `*` stands for all others.
    pub fields: BTreeMap<String, Field>,
}

/// The place of a value in `data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Names of fields from the outside in. An array on the way stands for its items.
    pub(in crate::dialect) names: Vec<String>,
    /// Whether the value is the id of a media.
    pub(in crate::dialect) is_media: bool,
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.names.join("."))
    }
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
    /// Number of the schema of its `data`. An incompatible change of the envelope raises it.
    pub version: u32,
    /// What it reports, in one sentence.
    pub description: String,
    /// When it is sent; empty if the file does not say it.
    pub when: String,
    /// What this entry rests on: a page with its date, a sample; empty if the file does not say it.
    pub source: String,
    /// What a subscriber must know.
    pub notes: Vec<String>,
    /// Where the id of the thing is that it is about, first choice first: media, else job, else task.
    pub subject: Vec<Path>,
    /// Where verdicts on the content are. The worst one counts.
    pub verdict: Vec<Path>,
    /// Where its outcome is found.
    pub status: StatusRule,
    /// Fields that hold the error of a failure, in addition to `ErrorCode` and `ErrorMessage`.
    pub error: ErrorFields,
    /// Object fields whose members move to the top level of `data`.
    pub lift: Vec<String>,
    /// Its fields by normalized name.
    pub fields: BTreeMap<String, Field>,
    pub(in crate::dialect) shape: ShapeId,
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

impl Default for ErrorFields {
    fn default() -> Self {
        ErrorFields { code: "code".to_owned(), message: "message".to_owned() }
    }
}

/// A fact whose place or name still differs between the dialects.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// The fact.
    pub fact: String,
    /// Where VOD has it.
    pub vod: String,
    /// Where IMS has it.
    pub ims: String,
    /// Why they are not unified.
    pub why: String,
}

/// The known event types, with the words and shapes they share.
#[derive(Clone, Debug)]
pub struct Catalogue {
    pub(super) events: Vec<EventType>,
    /// Positions of the event types by name and alias, for each dialect in the order of [`Dialect::ALL`].
    pub(super) by_name: [FxHashMap<String, usize>; 2],
    pub(super) words: FxHashMap<String, Status>,
    pub(super) verdicts: FxHashMap<String, Verdict>,
    pub(super) synonyms: FxHashMap<String, String>,
    pub(super) objects: Vec<Object>,
    pub(super) differences: Vec<Difference>,
    pub(super) default_subject: Vec<Path>,
    pub(super) default_verdict: Vec<Path>,
    pub(super) shapes: Vec<Shape>,
}

impl Catalogue {
    /// Shape of the top level of `data` for event types without an entry, and for fields that an entry does not declare: the
    /// fields of all entries together. Only what an entry itself says renames its fields or converts their units.
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

    /// The event types of a name or alias, of one dialect or of both.
    ///
    /// # Errors
    /// A text that says what is unknown, with the nearest known name.
    pub fn named(&self, name: &str, dialect: Option<Dialect>) -> Result<Vec<&EventType>, String> {
        let is_meant = |event: &&EventType| event.name == name || event.aliases.iter().any(|alias| alias == name);
        let both: Vec<&EventType> = self.events.iter().filter(is_meant).collect();
        let found: Vec<&EventType> =
            both.iter().copied().filter(|event| dialect.is_none_or(|wanted| event.dialect == wanted)).collect();
        match (found.is_empty(), both.first(), dialect) {
            (false, ..) => Ok(found),
            (true, Some(other), Some(dialect)) => {
                Err(format!("{dialect} has no event type {name}; {} has it", other.dialect))
            }
            _ => {
                let names = || self.events.iter().map(|event| event.name.as_str());
                let contains = |known: &&str| known.to_lowercase().contains(&name.to_lowercase());
                let mut near = similar(name, names());
                if near.is_empty() && !name.is_empty() {
                    near = names().filter(contains).collect();
                    near.sort_unstable();
                    near.dedup();
                    near.truncate(3);
                }
                if near.is_empty() {
                    let alike = |known: &&str| strsim::jaro_winkler(&name.to_lowercase(), &known.to_lowercase());
                    near = names().filter(|known| alike(known) > 0.88).collect();
                    near.sort_unstable_by(|one, other| alike(other).total_cmp(&alike(one)).then(one.cmp(other)));
                    near.dedup();
                    near.truncate(3);
                }
                let hint = match near[..] {
                    [] => String::new(),
                    ref near => format!("; did you mean {}?", near.join(" or ")),
                };
                Err(format!("the catalogue has no event type {name}{hint}"))
            }
        }
    }

    /// The nested object that a [`Kind::Object`] names.
    pub fn object(&self, shape: ShapeId) -> &Object {
        &self.objects[shape.0 - Self::FIRST_DECLARED]
    }

    /// Facts whose place or name differs between the dialects.
    pub fn differences(&self) -> &[Difference] {
        &self.differences
    }

    /// The outcome that one of Alibaba's words means, in any case; none for an unknown word.
    pub fn word(&self, word: &str) -> Option<Status> {
        lower_case(&self.words, word)
    }

    /// The verdict that one of Alibaba's words means, in any case; none for an unknown word.
    pub(in crate::dialect) fn verdict(&self, word: &str) -> Option<Verdict> {
        lower_case(&self.verdicts, word)
    }

    /// The normalized name and the type of a field as it was sent.
    pub(in crate::dialect) fn field<'a>(
        &'a self,
        shape: ShapeId,
        key: &'a str,
        arena: &'a Bump,
    ) -> (&'a str, &'a Kind) {
        let shape = &self.shapes[shape.0];
        if let Some((name, kind)) = shape.spellings.get(key) {
            return (name, kind);
        }
        let respelled = match respell(key) {
            Cow::Borrowed(same) => same,
            Cow::Owned(respelled) => arena.alloc_str(&respelled),
        };
        let renamed = shape.renamed.get(respelled).or_else(|| self.synonyms.get(respelled));
        let name = renamed.map_or(respelled, String::as_str);
        match (shape.fields.get(name), shape.fallback) {
            (Some(kind), _) => (name, kind),
            (None, Some(fallback)) => self.field(fallback, key, arena),
            (None, None) => (name, &shape.others),
        }
    }

    /// Which of several members gets a name that all of them want: the one with the lowest rank. What an entry says about
    /// the origin of a field comes before the spelling, so that a new field of Alibaba cannot take a name over.
    pub(in crate::dialect) fn rank(&self, shape: ShapeId, name: &str, key: &str) -> usize {
        let origins = self.shapes[shape.0].origins.get(name).map(Vec::as_slice).unwrap_or_default();
        match origins.iter().position(|origin| origin == key.trim()) {
            Some(position) => position,
            None if name == key => origins.len(),
            None if respell(key) == name => origins.len() + 1,
            None => origins.len() + 2,
        }
    }

    /// Where to look for the subject of an event type: media before others, its own paths before those of all types.
    pub(in crate::dialect) fn subject<'c>(&'c self, entry: Option<&'c EventType>) -> impl Iterator<Item = &'c Path> {
        let own = entry.map(|entry| entry.subject.as_slice()).unwrap_or_default();
        let all = move || own.iter().chain(&self.default_subject);
        all().filter(|path| path.is_media).chain(all().filter(|path| !path.is_media))
    }

    /// Where to look for verdicts: an entry says it for its event type.
    pub(in crate::dialect) fn verdict_paths<'c>(&'c self, entry: Option<&'c EventType>) -> &'c [Path] {
        entry.map_or(&self.default_verdict, |entry| &entry.verdict)
    }
}

fn lower_case<T: Copy>(words: &FxHashMap<String, T>, word: &str) -> Option<T> {
    let word = trim(word);
    match words.get(word) {
        Some(known) => Some(*known),
        None => words.get(&word.to_ascii_lowercase()).copied(),
    }
}
