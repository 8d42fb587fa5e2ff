//! The catalogue: every EventType of both dialects, its fields, and where its outcome stands. Data, not code.
//!
//! The built-in entries lie in `catalogue.toml` beside this file, whose head explains the form; a user's files of
//! the same form add entries or replace them. One name has one type in all entries, so that a field means the
//! same in both dialects; a file that breaks this, or names a type that isn't there, is an error with its line.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use rustc_hash::FxHashMap;
use serde::Deserialize;
use toml::Spanned;

use super::keys::respell;
use super::status::{Status, StatusRule};

/// The built-in catalogue.
const BUILT_IN: &str = include_str!("catalogue.toml");

/// Fields tried for the subject of events that name none of their own, or whose own are absent: media, else job,
/// else task.
pub(super) const DEFAULT_SUBJECT: [&str; 5] = ["mediaId", "jobId", "parentJobId", "mediaRefreshJobId", "taskId"];

/// Which of Alibaba's two products sent the callback, and so how it is shaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// ApsaraVideo VOD: flat JSON.
    Vod,
    /// Intelligent Media Services: nested under `MessageBody`.
    Ims,
}

impl Dialect {
    /// Both, for tables and labels.
    pub const ALL: [Dialect; 2] = [Dialect::Vod, Dialect::Ims];

    /// The value of the attribute `dialect`.
    pub fn as_str(self) -> &'static str {
        match self {
            Dialect::Vod => "vod",
            Dialect::Ims => "ims",
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The type a field is brought to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Untouched.
    Any,
    /// A string, also where a number came.
    String,
    /// An id: a string, also where it came as JSON in a string that holds it as `media`.
    Id,
    /// A number, also where it came as a string.
    Number,
    /// A boolean, also where it came as a string or 0 and 1.
    Boolean,
    /// A time in RFC 3339.
    Time,
    /// An array, also where it came as a comma list.
    List,
    /// The customer's own data: decoded where it is JSON, its keys and values untouched.
    Verbatim,
    /// JSON of an open shape, also where it came inside a string.
    Json,
    /// An object of a declared shape, also where it came inside a string.
    Object(ShapeId),
    /// An array of such, also where it came inside a string.
    Array(Box<Kind>),
}

/// Index of a [`Shape`] in its catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeId(usize);

/// The fields of one kind of object.
#[derive(Debug, Default)]
pub struct Shape {
    fields: BTreeMap<String, Kind>,
    /// The likely spellings of each field, so that a known key costs one look-up.
    spellings: FxHashMap<String, (String, Kind)>,
}

/// One event type of one dialect.
#[derive(Debug)]
pub struct EventType {
    /// Who sends it.
    pub dialect: Dialect,
    /// Its name, as it stands in the attribute `type` behind the prefix.
    pub name: String,
    /// Other names it is sent under.
    pub aliases: Vec<String>,
    /// What it tells, in one line.
    pub description: String,
    /// Fields that hold the id of the thing it is about, first choice first.
    pub subject: Vec<String>,
    /// Where its outcome stands.
    pub status: StatusRule,
    /// Fields that are the error of a failure, beside `ErrorCode` and `ErrorMessage`.
    pub error: Option<ErrorFields>,
    /// Its fields by their normalized names, with their types as the file writes them.
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

/// A catalogue file that can't be taken.
#[derive(Debug, thiserror::Error)]
#[error("{file}: line {line}: {message}")]
pub struct CatalogueError {
    /// The file, as it was named.
    pub file: String,
    /// 1-based line.
    pub line: usize,
    /// What is wrong and what was expected.
    pub message: String,
}

/// The event types that are known, with the words and shapes they share.
#[derive(Debug)]
pub struct Catalogue {
    events: Vec<EventType>,
    /// Positions of the event types by name and alias, for each dialect in the order of [`Dialect::ALL`].
    by_name: [FxHashMap<String, usize>; 2],
    words: FxHashMap<String, Status>,
    synonyms: FxHashMap<String, String>,
    shapes: Vec<Shape>,
}

impl Catalogue {
    /// Shape of the top of `data`: the fields of all event types together.
    pub(super) const TOP: ShapeId = ShapeId(0);
    /// Shape of objects that no entry describes.
    pub(super) const OPEN: ShapeId = ShapeId(1);

    /// The built-in catalogue.
    ///
    /// # Errors
    /// None in a build whose tests pass: they load it.
    pub fn built_in() -> Result<Catalogue, CatalogueError> {
        Catalogue::load(&[])
    }

    /// The built-in catalogue with the user's files, given as name and text; a later entry replaces an earlier one.
    ///
    /// # Errors
    /// The first [`CatalogueError`] of each file that has one is told; files are checked in order.
    pub fn load(files: &[(String, String)]) -> Result<Catalogue, CatalogueError> {
        let mut builder = Builder::default();
        builder.add("catalogue.toml (built in)", BUILT_IN)?;
        for (name, text) in files {
            builder.add(name, text)?;
        }
        builder.build()
    }

    /// Every event type, in the order of the files.
    pub fn events(&self) -> &[EventType] {
        &self.events
    }

    /// The event type of a dialect, by its name or an alias.
    pub fn find(&self, dialect: Dialect, name: &str) -> Option<(usize, &EventType)> {
        let index = *self.by_name[dialect as usize].get(name)?;
        Some((index, &self.events[index]))
    }

    /// The outcome that a word of Alibaba's stands for.
    pub fn word(&self, word: &str) -> Option<Status> {
        let word = word.trim();
        match self.words.get(word) {
            Some(status) => Some(*status),
            None => self.words.get(&word.to_ascii_lowercase()).copied(),
        }
    }

    /// The normalized name and type of a field as it was sent; no name where the key stays as it is.
    pub(super) fn field(&self, shape: ShapeId, key: &str) -> (Option<Cow<'_, str>>, &Kind) {
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    status_words: BTreeMap<Spanned<String>, Vec<String>>,
    #[serde(default)]
    synonyms: BTreeMap<String, String>,
    #[serde(default)]
    objects: BTreeMap<String, BTreeMap<Spanned<String>, Spanned<String>>>,
    #[serde(default)]
    events: Vec<FileEvent>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEvent {
    dialect: Dialect,
    r#type: Spanned<String>,
    #[serde(default)]
    aliases: Vec<String>,
    description: String,
    #[serde(default)]
    subject: Vec<String>,
    #[serde(default)]
    status: FileStatus,
    error: Option<ErrorFields>,
    #[serde(default)]
    fields: BTreeMap<Spanned<String>, Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileStatus {
    field: Option<String>,
    #[serde(default)]
    words: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    also: Vec<String>,
    #[serde(default)]
    parts: bool,
    default: Option<Spanned<String>>,
}

/// Where a text of a file stands, for errors that come up only when all files are read.
#[derive(Clone)]
struct Place {
    file: usize,
    offset: usize,
}

/// A declared field: its type as written, and where.
struct Declared {
    kind: String,
    place: Place,
}

#[derive(Default)]
struct Builder {
    files: Vec<(String, String)>,
    words: FxHashMap<String, Status>,
    synonyms: FxHashMap<String, String>,
    objects: BTreeMap<String, BTreeMap<String, Declared>>,
    events: Vec<(EventType, BTreeMap<String, Declared>)>,
}

impl Builder {
    fn error(&self, place: &Place, message: impl Into<String>) -> CatalogueError {
        let (file, text) = &self.files[place.file];
        let line = 1 + text.as_bytes()[..place.offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count();
        CatalogueError { file: file.clone(), line, message: message.into() }
    }

    fn status(&self, place: &Place, word: &str) -> Result<Status, CatalogueError> {
        Status::from_word(word).ok_or_else(|| {
            let known = Status::ALL.map(Status::as_str).join(", ");
            self.error(place, format!("`{word}` is no status; known are {known}"))
        })
    }

    fn add(&mut self, name: &str, text: &str) -> Result<(), CatalogueError> {
        let file = self.files.len();
        self.files.push((name.to_owned(), text.to_owned()));
        let place = |offset: usize| Place { file, offset };
        let parsed: File = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            self.error(&place(offset), error.message().replace('\n', " "))
        })?;
        for (status, words) in parsed.status_words {
            let known = self.status(&place(status.span().start), status.get_ref())?;
            self.words.extend(words.into_iter().map(|word| (word.to_ascii_lowercase(), known)));
        }
        self.synonyms.extend(parsed.synonyms);
        let declared = |fields: BTreeMap<Spanned<String>, Spanned<String>>| -> BTreeMap<String, Declared> {
            fields
                .into_iter()
                .map(|(field, kind)| {
                    let place = place(field.span().start);
                    (field.into_inner(), Declared { kind: kind.into_inner(), place })
                })
                .collect()
        };
        for (object, fields) in parsed.objects {
            self.objects.insert(object, declared(fields));
        }
        for event in parsed.events {
            let at = place(event.r#type.span().start);
            let name = event.r#type.into_inner();
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                return Err(self.error(&at, format!("`{name}` is no EventType: letters and digits were expected")));
            }
            let mut rule = StatusRule { also: event.status.also, parts: event.status.parts, ..StatusRule::default() };
            if let Some(field) = event.status.field {
                rule.field = field;
            }
            for (word, status) in event.status.words {
                rule.words.push((word, self.status(&place(status.span().start), status.get_ref())?));
            }
            if let Some(status) = event.status.default {
                rule.default = Some(self.status(&place(status.span().start), status.get_ref())?);
            }
            let fields = declared(event.fields);
            let entry = EventType {
                dialect: event.dialect,
                name,
                aliases: event.aliases,
                description: event.description,
                subject: event.subject,
                status: rule,
                error: event.error,
                fields: fields.iter().map(|(field, declared)| (field.clone(), declared.kind.clone())).collect(),
            };
            let known = self.events.iter().position(|(old, _)| old.dialect == entry.dialect && old.name == entry.name);
            match known {
                Some(position) => self.events[position] = (entry, fields),
                None => self.events.push((entry, fields)),
            }
        }
        Ok(())
    }

    fn kind(&self, text: &str, objects: &[&String]) -> Option<Kind> {
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return Some(Kind::Array(Box::new(self.kind(inner, objects)?)));
        }
        Some(match text {
            "any" => Kind::Any,
            "string" => Kind::String,
            "id" => Kind::Id,
            "number" => Kind::Number,
            "boolean" => Kind::Boolean,
            "time" => Kind::Time,
            "list" => Kind::List,
            "verbatim" => Kind::Verbatim,
            "json" => Kind::Json,
            // Two shapes stand before the declared ones: see `Catalogue::TOP` and `Catalogue::OPEN`.
            name => Kind::Object(ShapeId(2 + objects.iter().position(|object| object.as_str() == name)?)),
        })
    }

    fn known_kind(&self, name: &str, declared: &Declared) -> Result<Kind, CatalogueError> {
        let objects: Vec<&String> = self.objects.keys().collect();
        self.kind(&declared.kind, &objects).ok_or_else(|| {
            self.error(
                &declared.place,
                format!(
                    "field `{name}`: `{}` is no type; known are any, string, id, number, boolean, time, list, \
                     verbatim, json, the name of an object of [objects], and [T] for an array of T",
                    declared.kind
                ),
            )
        })
    }

    fn shape(&self, fields: &BTreeMap<String, &Declared>) -> Result<Shape, CatalogueError> {
        let mut shape = Shape::default();
        for (name, declared) in fields {
            let respelled = respell(name);
            let one_name = self.synonyms.get(respelled.as_ref()).map_or(respelled.as_ref(), String::as_str);
            if one_name != name {
                return Err(self.error(
                    &declared.place,
                    format!("field `{name}` never occurs: its normalized name is `{one_name}`"),
                ));
            }
            shape.fields.insert(name.clone(), self.known_kind(name, declared)?);
        }
        // What the customer put in comes back at any depth.
        for name in ["extend", "userData"] {
            shape.fields.entry(name.to_owned()).or_insert(Kind::Verbatim);
        }
        // Alibaba has no `errorInfo` but the one of LiveRecordTaskStatus; it may come as JSON in a string.
        shape.fields.entry("errorInfo".to_owned()).or_insert(Kind::Json);
        for (name, kind) in &shape.fields {
            let synonyms = self.synonyms.iter().filter(|(_, target)| *target == name).map(|(synonym, _)| synonym);
            for spelling in synonyms.chain([name]).flat_map(|name| spellings(name)) {
                shape.spellings.insert(spelling, (name.clone(), kind.clone()));
            }
        }
        Ok(shape)
    }

    fn build(self) -> Result<Catalogue, CatalogueError> {
        let mut top: BTreeMap<String, &Declared> = BTreeMap::new();
        for (event, fields) in &self.events {
            for (name, declared) in fields {
                self.known_kind(name, declared)?;
                match top.get(name) {
                    Some(other) if other.kind != declared.kind => {
                        return Err(self.error(
                            &declared.place,
                            format!(
                                "field `{name}` of {} {} is declared `{}`, elsewhere `{}`; a name has one type",
                                event.dialect, event.name, declared.kind, other.kind
                            ),
                        ));
                    }
                    _ => {
                        top.insert(name.clone(), declared);
                    }
                }
            }
        }
        let mut shapes = vec![self.shape(&top)?, self.shape(&BTreeMap::new())?];
        for fields in self.objects.values() {
            shapes.push(self.shape(&fields.iter().map(|(name, declared)| (name.clone(), declared)).collect())?);
        }
        let mut by_name = [FxHashMap::default(), FxHashMap::default()];
        for (index, (event, _)) in self.events.iter().enumerate() {
            for name in event.aliases.iter().chain([&event.name]) {
                by_name[event.dialect as usize].insert(name.clone(), index);
            }
        }
        Ok(Catalogue {
            events: self.events.into_iter().map(|(event, _)| event).collect(),
            by_name,
            words: self.words,
            synonyms: self.synonyms,
            shapes,
        })
    }
}

/// The spellings a normalized name is likely to arrive in, each of which [`respell`] takes back to it.
fn spellings(name: &str) -> Vec<String> {
    const ACRONYMS: [&str; 5] = ["Url", "Urls", "Id", "Ids", "Dna"];
    let mut pascal = name.to_owned();
    pascal[..1].make_ascii_uppercase();
    let mut acronym = pascal.clone();
    for word in ACRONYMS {
        if let Some(head) = pascal.strip_suffix(word) {
            let shout = word.strip_suffix('s').unwrap_or(word).to_ascii_uppercase();
            acronym = format!("{head}{shout}{}", if word.ends_with('s') { "s" } else { "" });
        }
    }
    let snake: String = name
        .chars()
        .flat_map(|c| c.is_ascii_uppercase().then_some('_').into_iter().chain([c.to_ascii_lowercase()]))
        .collect();
    let mut all = vec![name.to_owned(), pascal, acronym, snake];
    all.retain(|spelling| respell(spelling) == name);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Catalogue, String> {
        Catalogue::load(&[("mine.toml".to_owned(), text.to_owned())]).map_err(|error| error.to_string())
    }

    #[test]
    fn the_built_in_catalogue_holds_every_event_of_both_dialects() {
        let catalogue = Catalogue::built_in().expect("valid");
        let count = |dialect| catalogue.events().iter().filter(|event| event.dialect == dialect).count();
        assert_eq!((count(Dialect::Vod), count(Dialect::Ims)), (21, 29));
        let (_, event) = catalogue
            .find(Dialect::Ims, "ApsaraVideoForMediaProcessingOutputGroupComplete")
            .expect("the alias is known");
        assert_eq!(event.name, "MediaConvertOutputGroupComplete");
        for event in catalogue.events() {
            for name in event.subject.iter().chain(&event.status.also) {
                assert!(event.fields.contains_key(name), "{} {}: {name}", event.dialect, event.name);
            }
        }
    }

    #[test]
    fn a_users_entry_is_added_and_its_mistakes_are_told_by_line() {
        let good = "[[events]]\ndialect = \"ims\"\ntype = \"NewComplete\"\ndescription = \"New.\"\n";
        let catalogue = load(good).expect("valid");
        assert!(catalogue.find(Dialect::Ims, "NewComplete").is_some());
        assert!(catalogue.find(Dialect::Vod, "NewComplete").is_none());
        for (text, expected) in [
            ("[[events]]\ndialect = \"mps\"", "mine.toml: line 2: unknown variant `mps`, expected `vod` or `ims`"),
            (
                &format!("{good}[events.fields]\nsize = \"numbr\""),
                "mine.toml: line 6: field `size`: `numbr` is no type; known are any, string, id, number, boolean, \
                 time, list, verbatim, json, the name of an object of [objects], and [T] for an array of T",
            ),
            (
                &format!("{good}[events.fields]\nsize = \"string\""),
                "mine.toml: line 6: field `size` of ims NewComplete is declared `string`, elsewhere `number`; \
                 a name has one type",
            ),
            (
                &format!("{good}[events.fields]\nFooURL = \"string\""),
                "mine.toml: line 6: field `FooURL` never occurs: its normalized name is `fooUrl`",
            ),
            (
                &format!("{good}status = {{ default = \"good\" }}"),
                "mine.toml: line 5: `good` is no status; known are success, partial, failure, canceled, skipped, \
                 progress, unknown",
            ),
            (&format!("{good}colour = 1"), "mine.toml: line 5: unknown field `colour`"),
        ] {
            let error = load(text).expect_err("must be refused");
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
