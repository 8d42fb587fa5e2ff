//! Reads the catalogue from TOML: the built-in file first, then the user's. `resolve` builds the catalogue from what was
//! read.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::LazyLock;

use rustc_hash::FxHashMap;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use toml::Spanned;

use super::model::{Catalogue, Dialect, Difference, ErrorFields, EventType};
use crate::dialect::keys::respell;
use crate::dialect::status::{Status, StatusRule, Verdict};

/// The built-in catalogue.
const BUILT_IN: &str = include_str!("../catalogue.toml");

/// Names that no object of a file can have, because schemas have definitions of these names.
const RESERVED_OBJECTS: [&str; 1] = ["Error"];

/// A mistake in a catalogue file.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{file}: line {line}: {message}")]
pub struct CatalogueError {
    /// The name of the file, as it was given.
    pub file: String,
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong and what was expected.
    pub message: String,
}

impl Catalogue {
    /// The built-in catalogue.
    ///
    /// # Errors
    /// None in a build whose tests pass: they load it.
    pub fn built_in() -> Result<Catalogue, CatalogueError> {
        // Reading it takes longer than reading a whole configuration.
        static READ: LazyLock<Result<Catalogue, CatalogueError>> = LazyLock::new(|| Builder::new()?.build());
        READ.clone()
    }

    /// The built-in catalogue with the user's files, each given as its name and its text. A later entry replaces an
    /// earlier one of the same dialect and type.
    ///
    /// # Errors
    /// The first mistake, with its file and line. Files are read in order.
    pub fn load(files: &[(String, String)]) -> Result<Catalogue, CatalogueError> {
        if files.is_empty() {
            return Catalogue::built_in();
        }
        let mut builder = Builder::new()?;
        for (name, text) in files {
            builder.add(name, text)?;
        }
        builder.build()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    status_words: BTreeMap<Spanned<String>, Vec<String>>,
    #[serde(default)]
    verdict_words: BTreeMap<Spanned<String>, Vec<String>>,
    #[serde(default)]
    synonyms: BTreeMap<Spanned<String>, String>,
    #[serde(default)]
    fields: BTreeMap<Spanned<String>, FileMeaning>,
    #[serde(default)]
    objects: BTreeMap<Spanned<String>, BTreeMap<Spanned<String>, FileField>>,
    #[serde(default)]
    events: Vec<FileEvent>,
    #[serde(default)]
    differences: Vec<Difference>,
}

/// What a name means at the top level of `data`, in all events.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct FileMeaning {
    pub(super) description: Option<String>,
    pub(super) unit: Option<Spanned<String>>,
    pub(super) sent_unit: Option<Spanned<String>>,
    pub(super) from: Option<Vec<String>>,
    pub(super) values: Option<Vec<String>>,
}

/// A field: its type alone, or a table.
#[derive(Default)]
pub(super) struct FileField {
    pub(super) r#type: String,
    pub(super) loose: bool,
    pub(super) meaning: FileMeaning,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileFieldTable {
    r#type: String,
    #[serde(default)]
    loose: bool,
    description: Option<String>,
    unit: Option<Spanned<String>>,
    sent_unit: Option<Spanned<String>>,
    from: Option<Vec<String>>,
    values: Option<Vec<String>>,
}

impl<'de> Deserialize<'de> for FileField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = FileField;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("the type of the field, or a table with `type`")
            }
            fn visit_str<E>(self, text: &str) -> Result<FileField, E> {
                Ok(FileField { r#type: text.to_owned(), ..FileField::default() })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FileField, A::Error> {
                let table = FileFieldTable::deserialize(MapAccessDeserializer::new(map))?;
                let FileFieldTable { r#type, loose, description, unit, sent_unit, from, values } = table;
                Ok(FileField { r#type, loose, meaning: FileMeaning { description, unit, sent_unit, from, values } })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct FileEvent {
    dialect: Dialect,
    r#type: Spanned<String>,
    #[serde(default)]
    aliases: Vec<Spanned<String>>,
    #[serde(default = "first_version")]
    version: NonZeroU32,
    description: String,
    #[serde(default)]
    when: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    notes: Vec<String>,
    #[serde(default)]
    subject: Vec<Spanned<String>>,
    #[serde(default)]
    verdict: Vec<Spanned<String>>,
    #[serde(default)]
    status: FileStatus,
    error: Option<Spanned<ErrorFields>>,
    #[serde(default)]
    lift: Vec<Spanned<String>>,
    #[serde(default)]
    fields: BTreeMap<Spanned<String>, FileField>,
}

fn first_version() -> NonZeroU32 {
    NonZeroU32::MIN
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct FileStatus {
    field: Option<Spanned<String>>,
    #[serde(default)]
    sent: Vec<String>,
    #[serde(default)]
    words: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    also: Vec<Spanned<String>>,
    #[serde(default)]
    parts: bool,
    default: Option<Spanned<String>>,
}

/// A position in a file, for errors that are found only when all files have been read.
#[derive(Clone)]
pub(super) struct Position {
    pub(super) file: usize,
    pub(super) offset: usize,
}

/// A text with its position.
pub(super) type Located = (String, Position);

/// A declared field and its position.
pub(super) struct Declared {
    pub(super) field: FileField,
    pub(super) position: Position,
}

/// The declared fields of an object or an event, by name.
pub(super) type Fields = BTreeMap<String, Declared>;

/// An event type of which the types of fields and the paths are not resolved yet.
pub(super) struct DeclaredEvent {
    pub(super) entry: EventType,
    pub(super) fields: Fields,
    pub(super) aliases: Vec<Located>,
    pub(super) subject: Vec<Located>,
    pub(super) verdict: Vec<Located>,
    /// Names that must be fields of the event, each with the key that names it.
    pub(super) named: Vec<(&'static str, Located)>,
}

/// What was read so far.
#[derive(Default)]
pub(super) struct Builder {
    /// Name and text of each file.
    files: Vec<(String, String)>,
    pub(super) words: FxHashMap<String, Status>,
    pub(super) verdicts: FxHashMap<String, Verdict>,
    /// Each with its target, and where it is declared.
    pub(super) synonyms: BTreeMap<String, Located>,
    pub(super) meanings: BTreeMap<String, (FileMeaning, Position)>,
    pub(super) objects: BTreeMap<String, (Fields, Position)>,
    pub(super) events: Vec<DeclaredEvent>,
    pub(super) differences: Vec<Difference>,
}

impl Builder {
    fn new() -> Result<Builder, CatalogueError> {
        let mut builder = Builder::default();
        builder.add("catalogue.toml (built in)", BUILT_IN)?;
        Ok(builder)
    }

    pub(super) fn error(&self, position: &Position, message: impl Into<String>) -> CatalogueError {
        let (file, text) = &self.files[position.file];
        let line = 1 + text.as_bytes()[..position.offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count();
        CatalogueError { file: file.clone(), line, message: message.into() }
    }

    fn status(&self, (word, position): &Located) -> Result<Status, CatalogueError> {
        Status::from_word(word).ok_or_else(|| {
            let known = Status::ALL.map(Status::as_str).join(", ");
            self.error(position, format!("unknown status `{word}`; expected one of {known}"))
        })
    }

    fn add(&mut self, name: &str, text: &str) -> Result<(), CatalogueError> {
        let file = self.files.len();
        self.files.push((name.to_owned(), text.to_owned()));
        let position = |offset: usize| Position { file, offset };
        let located = |text: Spanned<String>| -> Located {
            let at = position(text.span().start);
            (text.into_inner(), at)
        };
        let parsed: File = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            self.error(&position(offset), in_words(error.message()))
        })?;
        let mut listed = HashSet::new();
        for (status, words) in parsed.status_words {
            let status = located(status);
            let known = self.status(&status)?;
            for word in words {
                let word = word.to_ascii_lowercase();
                if !listed.insert(word.clone()) {
                    let message = format!("the word `{word}` is listed for two outcomes; expected one");
                    return Err(self.error(&status.1, message));
                }
                self.words.insert(word, known);
            }
        }
        for (verdict, words) in parsed.verdict_words {
            let (word, at) = located(verdict);
            let known = Verdict::from_word(&word).ok_or_else(|| {
                let known = Verdict::ALL.map(Verdict::as_str).join(", ");
                self.error(&at, format!("unknown verdict `{word}`; expected one of {known}"))
            })?;
            self.verdicts.extend(words.into_iter().map(|word| (word.to_ascii_lowercase(), known)));
        }
        for (name, target) in parsed.synonyms {
            let (name, at) = located(name);
            for text in [&name, &target] {
                if text.is_empty() || respell(text) != text.as_str() {
                    let message =
                        format!("synonym `{name}`: `{text}` is not a normalized name; write `{}`", respell(text));
                    return Err(self.error(&at, message));
                }
            }
            self.synonyms.insert(name, (target, at));
        }
        for (name, (target, at)) in &self.synonyms {
            if let Some((_, other)) = self.synonyms.get(target) {
                let message = format!("synonym `{name}`: its target `{target}` is a synonym too; write the last name");
                return Err(self.error(if at.file >= other.file { at } else { other }, message));
            }
        }
        for (name, meaning) in parsed.fields {
            let (name, at) = located(name);
            self.meanings.insert(name, (meaning, at));
        }
        let declared = |fields: BTreeMap<Spanned<String>, FileField>| -> Fields {
            let declared = |(name, field)| {
                let (name, position) = located(name);
                (name, Declared { field, position })
            };
            fields.into_iter().map(declared).collect()
        };
        for (object, fields) in parsed.objects {
            let (name, at) = located(object);
            let is_name = name.starts_with(|c: char| c.is_ascii_uppercase())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
                && !RESERVED_OBJECTS.contains(&name.as_str());
            if !is_name {
                let message = format!(
                    "invalid name of an object `{name}`; expected a capital letter, then letters and digits, and not {}",
                    RESERVED_OBJECTS.join(", ")
                );
                return Err(self.error(&at, message));
            }
            self.objects.insert(name, (declared(fields), at));
        }
        let mut seen = HashSet::new();
        for event in parsed.events {
            let (name, at) = located(event.r#type);
            let aliases: Vec<Located> = event.aliases.into_iter().map(located).collect();
            for (name, at) in aliases.iter().map(|(alias, at)| (alias, at)).chain([(&name, &at)]) {
                if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                    let message = format!("invalid EventType `{name}`; expected letters and digits only");
                    return Err(self.error(at, message));
                }
            }
            if !seen.insert((event.dialect, name.clone())) {
                return Err(self.error(&at, format!("{} {name} has two entries in this file", event.dialect)));
            }
            let mut rule = StatusRule { sent: event.status.sent, parts: event.status.parts, ..StatusRule::default() };
            let mut named = Vec::new();
            for field in event.status.also {
                let (field, at) = located(field);
                rule.also.push(field.clone());
                named.push(("status.also", (field, at)));
            }
            if let Some(field) = event.status.field {
                let (field, at) = located(field);
                rule.field.clone_from(&field);
                named.push(("status.field", (field, at)));
            }
            for (word, status) in event.status.words {
                rule.words.push((word, self.status(&located(status))?));
            }
            if let Some(status) = event.status.default {
                rule.default = Some(self.status(&located(status))?);
            }
            let mut lift = Vec::new();
            for field in event.lift {
                let (field, at) = located(field);
                lift.push(field.clone());
                named.push(("lift", (field, at)));
            }
            let error = event.error.map(|error| (position(error.span().start), error.into_inner()));
            if let Some((at, ErrorFields { code, message })) = &error {
                named.extend([code, message].map(|field| ("error", (field.clone(), at.clone()))));
            }
            let entry = EventType {
                dialect: event.dialect,
                name,
                aliases: aliases.iter().map(|(alias, _)| alias.clone()).collect(),
                version: event.version.get(),
                description: event.description,
                when: event.when,
                source: event.source,
                notes: event.notes,
                subject: Vec::new(),
                verdict: Vec::new(),
                status: rule,
                error: error.map(|(_, error)| error).unwrap_or_default(),
                lift,
                fields: BTreeMap::new(),
                shape: Catalogue::TOP,
            };
            let known =
                self.events.iter().position(|old| old.entry.dialect == entry.dialect && old.entry.name == entry.name);
            let event = DeclaredEvent {
                entry,
                fields: declared(event.fields),
                aliases,
                subject: event.subject.into_iter().map(located).collect(),
                verdict: event.verdict.into_iter().map(located).collect(),
                named,
            };
            match known {
                Some(position) => self.events[position] = event,
                None => self.events.push(event),
            }
        }
        self.differences.extend(parsed.differences);
        Ok(())
    }
}

/// The message of a TOML error in the words of a catalogue file.
fn in_words(message: &str) -> String {
    let words = [
        ("unknown field", "unknown key"),
        ("missing field", "missing key"),
        ("unknown variant", "unknown value"),
        ("invalid type: sequence", "invalid value: a list"),
        ("invalid type: map", "invalid value: a table"),
        ("expected a sequence", "expected a list"),
        ("expected a map", "expected a table"),
        ("a nonzero u32", "a number from 1 on"),
        ("\n", " "),
    ];
    words.iter().fold(message.to_owned(), |message, (from, to)| message.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Catalogue, String> {
        Catalogue::load(&[("mine.toml".to_owned(), text.to_owned())]).map_err(|error| error.to_string())
    }

    #[test]
    fn the_built_in_catalogue_has_every_event_of_both_dialects() {
        let catalogue = Catalogue::built_in().expect("valid");
        let count = |dialect| catalogue.events().iter().filter(|event| event.dialect == dialect).count();
        assert_eq!((count(Dialect::Vod), count(Dialect::Ims)), (24, 29));
        let (_, event) = catalogue
            .find(Dialect::Ims, "ApsaraVideoForMediaProcessingOutputGroupComplete")
            .expect("the alias is known");
        assert_eq!(event.name, "MediaConvertOutputGroupComplete");
        for event in catalogue.events() {
            for name in event.subject.iter().map(|path| &path.names[0]).chain(&event.status.also) {
                assert!(event.fields.contains_key(name), "{} {}: {name}", event.dialect, event.name);
            }
        }
    }

    /// A file with one entry, whose first line is the second one of the text.
    fn entry(rest: &str) -> String {
        format!("[[events]]\ndialect = \"ims\"\ntype = \"NewComplete\"\ndescription = \"New.\"\n{rest}")
    }

    #[test]
    fn a_users_entry_is_added() {
        let catalogue = load(&entry("")).expect("valid");
        assert!(catalogue.find(Dialect::Ims, "NewComplete").is_some());
        assert!(catalogue.find(Dialect::Vod, "NewComplete").is_none());
        assert!(load("").is_ok());
    }

    /// Each with the line of the mistake, what is wrong and what was expected.
    #[test]
    fn mistakes_of_a_users_file_are_reported_with_their_line() {
        let long = format!("x = \"{}string{}\"", "[".repeat(100_000), "]".repeat(100_000));
        let mut wrong = String::new();
        let field = |text: &str| entry(&format!("[events.fields]\n{text}"));
        for (text, expected) in [
            ("[[events]]\ndialect = \"mps\"".to_owned(), "line 2: unknown value `mps`, expected `vod` or `ims`"),
            (entry("colour = 1"), "line 5: unknown key `colour`"),
            (entry("version = 0"), "line 5: invalid value: integer `0`, expected a number from 1 on"),
            (entry("status = 5"), "line 5: invalid type: integer `5`, expected a table"),
            (entry("notes = 5"), "line 5: invalid type: integer `5`, expected a list"),
            (
                field("size = \"numbr\""),
                "line 6: field `size`: unknown type `numbr`; expected any, string, id, number, boolean, time, list, \
                 verbatim, json, the name of an object in [objects], [T] for an array of T, or {T} for a map of T; \
                 did you mean `number`?",
            ),
            (field(&long), "line 6: field `x`: unknown type `[[[[[[[["),
            (
                field("size = \"string\""),
                "line 6: field `size` of ims NewComplete is declared `string`, but elsewhere `number`; a name has one \
                 type in all entries",
            ),
            (field("FooURL = \"string\""), "line 6: field `FooURL` is not normalized; write `fooUrl`"),
            (field("videoId = \"string\""), "line 6: field `videoId` is not normalized; write `mediaId`"),
            (field("\"\" = \"string\""), "line 6: field `` is not normalized"),
            (field("error = \"string\""), "line 6: field `error`: this name is reserved"),
            (field("\"*\" = \"string\""), "line 6: field `*`: only objects can have it"),
            (field("a = { type = \"string\", from = [\"\"] }"), "line 6: field `a`: invalid origin ``"),
            (field("a = { type = \"string\", from = [\"UserId\"] }"), "line 6: field `a`: invalid origin `UserId`"),
            (
                field("a = { type = \"string\", from = [\"B\"] }\nb = \"string\""),
                "line 6: `B` is the origin of field `a`, but it is also a name of `b`",
            ),
            (
                field("a = { type = \"string\", from = [\"C\"] }\nb = { type = \"string\", from = [\"C\"] }"),
                "line 7: `C` is the origin of field `b`, but it is also a name of `a`",
            ),
            (
                field("a = { type = \"number\", unit = \"metres\" }"),
                "line 6: unknown unit `metres`; expected one of bytes, seconds, kbit/s, pixels, frames/s, Hz, words/min, \
                 percent, ratio, pieces",
            ),
            (field("a = { type = \"number\", unit = \"second\" }"), "line 6: unknown unit `second`; expected"),
            (
                field("a = { type = \"number\", unit = \"bytes\", sent_unit = \"milliseconds\" }"),
                "line 6: field `a`: invalid sent_unit `milliseconds`; the only one is `milliseconds`, for numbers whose \
                 unit is `seconds`",
            ),
            (
                field("a = { type = \"boolean\", unit = \"bytes\" }"),
                "line 6: field `a`: a unit is for numbers, but the type is `boolean`",
            ),
            (
                field("a = { type = \"number\", values = [\"1\"] }"),
                "line 6: field `a`: `values` is for texts, but the type is `number`",
            ),
            (
                entry("lift = [\"a\"]\n[events.fields]\na = \"A\"\n[objects.A]\nsize = \"string\""),
                "line 9: field `size` of ims NewComplete is declared `string`, but elsewhere `number`; a name has one \
                 type in all entries",
            ),
            (field("a = { type = \"number\", units = \"seconds\" }"), "line 6: unknown key `units`, expected one of"),
            (
                "[objects.A]\nb = \"[B]\"\n[objects.B]\nname = \"string\"\na = \"{A}\"\n".to_owned(),
                "line 5: object `A` contains itself: A → B → A",
            ),
            (field("errorCode = \"string\""), "line 6: field `errorCode`: this name is reserved"),
            (field("eventType = \"string\""), "line 6: field `eventType`: this name is reserved"),
            (
                "[objects.A]\n\"*\" = { type = \"number\", from = [\"b\"] }".to_owned(),
                "line 2: field `*`: `from` is for fields with a name",
            ),
            (
                "[status_words]\nsuccess = [\"dup\"]\nfailure = [\"Dup\"]".to_owned(),
                "line 2: the word `dup` is listed for two outcomes; expected one",
            ),
            ("[objects.string]\na = \"any\"".to_owned(), "line 1: invalid name of an object `string`"),
            ("[objects.Error]\na = \"any\"".to_owned(), "line 1: invalid name of an object `Error`"),
            ("[objects.\"A b\"]\na = \"any\"".to_owned(), "line 1: invalid name of an object `A b`"),
            (
                "[objects.AuditData]\nfoo = \"string\"".to_owned(),
                "line 1: path `data.suggestion` of vod AIMediaAuditComplete: object `AuditData` has no field `suggestion`",
            ),
            (
                entry("subject = [\"medium\"]"),
                "line 5: path `medium` of ims NewComplete: no event has a field `medium`",
            ),
            (
                entry("subject = [\"input.medium\"]\n[events.fields]\ninput = \"MediaInput\""),
                "line 5: path `input.medium` of ims NewComplete: object `MediaInput` has no field `medium`",
            ),
            (entry("status = { default = \"good\" }"), "line 5: unknown status `good`; expected one of success"),
            (entry("status = { field = \"events\" }"), "line 5: status.field: no event has a field `events`"),
            (entry("status = { also = [\"zzz\"] }"), "line 5: status.also: no event has a field `zzz`"),
            (entry("error = { code = \"a\", message = \"b\" }"), "line 5: error: no event has a field `a`"),
            (entry("lift = [\"a\"]\n[events.fields]\na = \"string\""), "line 5: lift: `a` is not an object"),
            (entry("aliases = [\"a b\"]"), "line 5: invalid EventType `a b`; expected letters and digits only"),
            (
                entry("aliases = [\"FileUploadComplete\"]"),
                "line 5: alias `FileUploadComplete` is already a name of FileUploadComplete",
            ),
            (entry(&entry("")), "line 7: ims NewComplete has two entries in this file"),
            ("[fields.nosuch]\nunit = \"byte\"".to_owned(), "line 1: no event has a field `nosuch`"),
            ("[fields.size]\nunit = \"bits\"".to_owned(), "line 2: unknown unit `bits`"),
            ("[fields.size]\nsent_unit = \"hours\"".to_owned(), "line 2: field `size`: invalid sent_unit `hours`"),
            (
                "[fields.size]\nfrom = [\"FileUrl\"]".to_owned(),
                "line 1: `FileUrl` is the origin of field `size`, but it is also a name of `fileUrl`",
            ),
            ("[synonyms]\nsize = \"fileSize\"".to_owned(), "line 2: synonym `size`: a field has this name"),
            (
                "[synonyms]\nFoo = \"bar\"".to_owned(),
                "line 2: synonym `Foo`: `Foo` is not a normalized name; write `foo`",
            ),
            (
                "[synonyms]\nmediaId = \"other\"".to_owned(),
                "line 2: synonym `attachedMediaId`: its target `mediaId` is a synonym",
            ),
            ("[synonyms]\na = \"\"".to_owned(), "line 2: synonym `a`: `` is not a normalized name"),
            ("[synonyms]\na = \"b\"\nb = \"a\"".to_owned(), "line 2: synonym `a`: its target `b` is a synonym too"),
            (
                "[verdict_words]\nfine = [\"ok\"]".to_owned(),
                "line 2: unknown verdict `fine`; expected one of pass, review, block",
            ),
        ] {
            let error = load(&text).err().unwrap_or_else(|| "accepted".to_owned());
            let expected = format!("mine.toml: {expected}");
            if !error.starts_with(&expected) {
                wrong.push_str(&format!("{}\n{error}\nexpected\n{expected}\n\n", &text[..text.len().min(300)]));
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
    }
}
