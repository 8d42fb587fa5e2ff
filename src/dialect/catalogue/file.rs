//! Reads the catalogue from TOML: the built-in file first, then the user's.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use rustc_hash::FxHashMap;
use serde::Deserialize;
use toml::Spanned;

use super::model::{Catalogue, Dialect, ErrorFields, EventType, Kind, Shape, ShapeId};
use crate::dialect::keys::respell;
use crate::dialect::status::{Status, StatusRule};

/// The built-in catalogue.
const BUILT_IN: &str = include_str!("../catalogue.toml");

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

/// A position in a file, for errors that are found only when all files have been read.
#[derive(Clone)]
struct Position {
    file: usize,
    offset: usize,
}

/// A declared field: its type as the file writes it, and its position.
struct Declared {
    kind: String,
    position: Position,
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
    fn new() -> Result<Builder, CatalogueError> {
        let mut builder = Builder::default();
        builder.add("catalogue.toml (built in)", BUILT_IN)?;
        Ok(builder)
    }

    fn error(&self, position: &Position, message: impl Into<String>) -> CatalogueError {
        let (file, text) = &self.files[position.file];
        let line = 1 + text.as_bytes()[..position.offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count();
        CatalogueError { file: file.clone(), line, message: message.into() }
    }

    fn status(&self, position: &Position, word: &str) -> Result<Status, CatalogueError> {
        Status::from_word(word).ok_or_else(|| {
            let known = Status::ALL.map(Status::as_str).join(", ");
            self.error(position, format!("unknown status `{word}`; expected one of {known}"))
        })
    }

    fn add(&mut self, name: &str, text: &str) -> Result<(), CatalogueError> {
        let file = self.files.len();
        self.files.push((name.to_owned(), text.to_owned()));
        let position = |offset: usize| Position { file, offset };
        let parsed: File = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            self.error(&position(offset), error.message().replace('\n', " "))
        })?;
        for (status, words) in parsed.status_words {
            let known = self.status(&position(status.span().start), status.get_ref())?;
            self.words.extend(words.into_iter().map(|word| (word.to_ascii_lowercase(), known)));
        }
        self.synonyms.extend(parsed.synonyms);
        let declared = |fields: BTreeMap<Spanned<String>, Spanned<String>>| -> BTreeMap<String, Declared> {
            fields
                .into_iter()
                .map(|(field, kind)| {
                    let position = position(field.span().start);
                    (field.into_inner(), Declared { kind: kind.into_inner(), position })
                })
                .collect()
        };
        for (object, fields) in parsed.objects {
            self.objects.insert(object, declared(fields));
        }
        for event in parsed.events {
            let at = position(event.r#type.span().start);
            let name = event.r#type.into_inner();
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                return Err(self.error(&at, format!("invalid EventType `{name}`; expected letters and digits only")));
            }
            let mut rule = StatusRule { also: event.status.also, parts: event.status.parts, ..StatusRule::default() };
            if let Some(field) = event.status.field {
                rule.field = field;
            }
            for (word, status) in event.status.words {
                rule.words.push((word, self.status(&position(status.span().start), status.get_ref())?));
            }
            if let Some(status) = event.status.default {
                rule.default = Some(self.status(&position(status.span().start), status.get_ref())?);
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
            name => Kind::Object(ShapeId(
                Catalogue::FIRST_DECLARED + objects.iter().position(|object| object.as_str() == name)?,
            )),
        })
    }

    fn known_kind(&self, name: &str, declared: &Declared) -> Result<Kind, CatalogueError> {
        let objects: Vec<&String> = self.objects.keys().collect();
        self.kind(&declared.kind, &objects).ok_or_else(|| {
            self.error(
                &declared.position,
                format!(
                    "field `{name}`: unknown type `{}`; expected any, string, id, number, boolean, time, list, \
                     verbatim, json, the name of an object in [objects], or [T] for an array of T",
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
                return Err(
                    self.error(&declared.position, format!("field `{name}` is not normalized; write `{one_name}`"))
                );
            }
            shape.fields.insert(name.clone(), self.known_kind(name, declared)?);
        }
        // Alibaba returns the customer's own data at any depth.
        for name in ["extend", "userData"] {
            shape.fields.entry(name.to_owned()).or_insert(Kind::Verbatim);
        }
        // Only LiveRecordTaskStatus has an `errorInfo`. It can be JSON in a string.
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
                            &declared.position,
                            format!(
                                "field `{name}` of {} {} is declared `{}`, but elsewhere `{}`; a name has one type in all entries",
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
        // In the order of `Catalogue::TOP`, `Catalogue::OPEN` and `Catalogue::FIRST_DECLARED`.
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

/// The spellings in which a normalized name is likely to arrive. [`respell`] maps each of them to the name.
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
    fn the_built_in_catalogue_has_every_event_of_both_dialects() {
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
    fn a_users_entry_is_added_and_its_mistakes_are_reported_with_their_line() {
        let good = "[[events]]\ndialect = \"ims\"\ntype = \"NewComplete\"\ndescription = \"New.\"\n";
        let catalogue = load(good).expect("valid");
        assert!(catalogue.find(Dialect::Ims, "NewComplete").is_some());
        assert!(catalogue.find(Dialect::Vod, "NewComplete").is_none());
        for (text, expected) in [
            ("[[events]]\ndialect = \"mps\"", "mine.toml: line 2: unknown variant `mps`, expected `vod` or `ims`"),
            (
                &format!("{good}[events.fields]\nsize = \"numbr\""),
                "mine.toml: line 6: field `size`: unknown type `numbr`; expected any, string, id, number, boolean, \
                 time, list, verbatim, json, the name of an object in [objects], or [T] for an array of T",
            ),
            (
                &format!("{good}[events.fields]\nsize = \"string\""),
                "mine.toml: line 6: field `size` of ims NewComplete is declared `string`, but elsewhere \
                 `number`; a name has one type in all entries",
            ),
            (
                &format!("{good}[events.fields]\nFooURL = \"string\""),
                "mine.toml: line 6: field `FooURL` is not normalized; write `fooUrl`",
            ),
            (
                &format!("{good}status = {{ default = \"good\" }}"),
                "mine.toml: line 5: unknown status `good`; expected one of success, skipped, progress, \
                 unknown, partial, canceled, failure",
            ),
            (&format!("{good}colour = 1"), "mine.toml: line 5: unknown field `colour`"),
        ] {
            let error = load(text).expect_err("must be refused");
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
