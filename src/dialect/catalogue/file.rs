//! Reads the catalogue from TOML: the built-in file first, then the user's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use rustc_hash::FxHashMap;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use toml::Spanned;

use super::model::{
    Catalogue, Dialect, Difference, ErrorFields, EventType, Field, Kind, Object, Path, Shape, ShapeId, Unit,
};
use crate::common::suggest::did_you_mean;
use crate::dialect::keys::respell;
use crate::dialect::status::{Status, StatusRule, Verdict};

/// The built-in catalogue.
const BUILT_IN: &str = include_str!("../catalogue.toml");

/// Where the subject is when an event type names no path of its own, or when its own have no value.
const DEFAULT_SUBJECT: [&str; 5] = ["mediaId", "jobId", "parentJobId", "mediaRefreshJobId", "taskId"];

/// Where verdicts are when an event type names no path of its own.
const DEFAULT_VERDICT: [&str; 3] = ["auditStatus", "suggestion", "data.suggestion"];

/// Name of the field that stands for all others of an object.
const OTHERS: &str = "*";

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
    synonyms: BTreeMap<String, String>,
    #[serde(default)]
    fields: BTreeMap<String, FileMeaning>,
    #[serde(default)]
    objects: BTreeMap<String, BTreeMap<Spanned<String>, FileField>>,
    #[serde(default)]
    events: Vec<FileEvent>,
    #[serde(default)]
    differences: Vec<Difference>,
}

/// What a name means at the top level of `data`, in all events.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMeaning {
    description: Option<String>,
    unit: Option<Spanned<String>>,
    sent_unit: Option<Spanned<String>>,
    from: Option<Vec<String>>,
    values: Option<Vec<String>>,
}

/// A field: its type alone, or a table.
#[derive(Default)]
struct FileField {
    r#type: String,
    loose: bool,
    meaning: FileMeaning,
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
#[serde(deny_unknown_fields)]
struct FileEvent {
    dialect: Dialect,
    r#type: Spanned<String>,
    #[serde(default)]
    aliases: Vec<String>,
    #[serde(default = "first_version")]
    version: u32,
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
    error: Option<ErrorFields>,
    #[serde(default)]
    lift: Vec<String>,
    #[serde(default)]
    fields: BTreeMap<Spanned<String>, FileField>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileStatus {
    field: Option<String>,
    #[serde(default)]
    sent: Vec<String>,
    #[serde(default)]
    words: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    also: Vec<String>,
    #[serde(default)]
    parts: bool,
    default: Option<Spanned<String>>,
}

fn first_version() -> u32 {
    1
}

/// A position in a file, for errors that are found only when all files have been read.
#[derive(Clone)]
struct Position {
    file: usize,
    offset: usize,
}

/// A declared field and its position.
struct Declared {
    field: FileField,
    position: Position,
}

/// The declared fields of an object or an event, by name.
type Fields = BTreeMap<String, Declared>;

/// An event type of which the types of fields and the paths are not resolved yet.
struct DeclaredEvent {
    entry: EventType,
    position: Position,
    fields: Fields,
    subject: Vec<(String, Position)>,
    verdict: Vec<(String, Position)>,
}

#[derive(Default)]
struct Builder {
    files: Vec<(String, String)>,
    words: FxHashMap<String, Status>,
    verdicts: FxHashMap<String, Verdict>,
    synonyms: FxHashMap<String, String>,
    meanings: BTreeMap<String, FileMeaning>,
    objects: BTreeMap<String, Fields>,
    events: Vec<DeclaredEvent>,
    differences: Vec<Difference>,
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
        for (verdict, words) in parsed.verdict_words {
            let known = Verdict::from_word(verdict.get_ref()).ok_or_else(|| {
                let known = Verdict::ALL.map(Verdict::as_str).join(", ");
                let message = format!("unknown verdict `{}`; expected one of {known}", verdict.get_ref());
                self.error(&position(verdict.span().start), message)
            })?;
            self.verdicts.extend(words.into_iter().map(|word| (word.to_ascii_lowercase(), known)));
        }
        self.synonyms.extend(parsed.synonyms);
        self.meanings.extend(parsed.fields);
        let declared = |fields: BTreeMap<Spanned<String>, FileField>| -> Fields {
            let declared = |(name, field): (Spanned<String>, FileField)| {
                let position = position(name.span().start);
                (name.into_inner(), Declared { field, position })
            };
            fields.into_iter().map(declared).collect()
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
            let mut rule = StatusRule {
                sent: event.status.sent,
                also: event.status.also,
                parts: event.status.parts,
                ..StatusRule::default()
            };
            if let Some(field) = event.status.field {
                rule.field = field;
            }
            for (word, status) in event.status.words {
                rule.words.push((word, self.status(&position(status.span().start), status.get_ref())?));
            }
            if let Some(status) = event.status.default {
                rule.default = Some(self.status(&position(status.span().start), status.get_ref())?);
            }
            let entry = EventType {
                dialect: event.dialect,
                name,
                aliases: event.aliases,
                version: event.version,
                description: event.description,
                when: event.when,
                source: event.source,
                notes: event.notes,
                subject: Vec::new(),
                verdict: Vec::new(),
                status: rule,
                error: event.error.unwrap_or_default(),
                lift: event.lift,
                fields: BTreeMap::new(),
                shape: Catalogue::TOP,
            };
            let known =
                self.events.iter().position(|old| old.entry.dialect == entry.dialect && old.entry.name == entry.name);
            let located = |paths: Vec<Spanned<String>>| -> Vec<(String, Position)> {
                let located = |path: Spanned<String>| {
                    let at = position(path.span().start);
                    (path.into_inner(), at)
                };
                paths.into_iter().map(located).collect()
            };
            let event = DeclaredEvent {
                entry,
                position: at,
                fields: declared(event.fields),
                subject: located(event.subject),
                verdict: located(event.verdict),
            };
            match known {
                Some(position) => self.events[position] = event,
                None => self.events.push(event),
            }
        }
        self.differences.extend(parsed.differences);
        Ok(())
    }

    fn kind(&self, text: &str) -> Option<Kind> {
        let within = |open: char, close: char| text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close));
        if let Some(inner) = within('[', ']') {
            return Some(Kind::Array(Box::new(self.kind(inner)?)));
        }
        if let Some(inner) = within('{', '}') {
            return Some(Kind::Map(Box::new(self.kind(inner)?)));
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
                Catalogue::FIRST_DECLARED + self.objects.keys().position(|object| object.as_str() == name)?,
            )),
        })
    }

    fn unit(&self, position: &Position, unit: &Spanned<String>) -> Result<Unit, CatalogueError> {
        let at = Position { file: position.file, offset: unit.span().start };
        Unit::from_word(unit.get_ref()).ok_or_else(|| {
            let known = Unit::ALL.map(Unit::as_str);
            let hint = did_you_mean(unit.get_ref(), known.into_iter());
            let message = format!("unknown unit `{}`; expected one of {}{hint}", unit.get_ref(), known.join(", "));
            self.error(&at, message)
        })
    }

    /// The field with its own meaning, and where that is silent, the meaning of its name.
    fn field(&self, name: &str, declared: &Declared, shared: Option<&FileMeaning>) -> Result<Field, CatalogueError> {
        let Declared { field: FileField { r#type, loose, meaning }, position } = declared;
        if name != OTHERS {
            let respelled = respell(name);
            let one_name = self.synonyms.get(respelled.as_ref()).map_or(respelled.as_ref(), String::as_str);
            if one_name != name {
                return Err(self.error(position, format!("field `{name}` is not normalized; write `{one_name}`")));
            }
        }
        let mut kind = self.kind(r#type).ok_or_else(|| {
            let simple = ["any", "string", "id", "number", "boolean", "time", "list", "verbatim", "json"];
            let inner = r#type.trim_matches(['[', ']', '{', '}']);
            let known = simple.into_iter().chain(self.objects.keys().map(String::as_str));
            let hint = did_you_mean(inner, known);
            self.error(
                position,
                format!(
                    "field `{name}`: unknown type `{}`; expected {}, the name of an object in [objects], [T] for an \
                     array of T, or {{T}} for a map of T{hint}",
                    r#type,
                    simple.join(", "),
                ),
            )
        })?;
        let unit_of = |meaning: &FileMeaning| -> Result<Option<Unit>, CatalogueError> {
            meaning.unit.as_ref().map(|unit| self.unit(position, unit)).transpose()
        };
        let unit = match (unit_of(meaning)?, shared) {
            (None, Some(shared)) => unit_of(shared)?,
            (own, _) => own,
        };
        if let Some(sent) = meaning.sent_unit.as_ref().or_else(|| shared?.sent_unit.as_ref()) {
            let in_seconds = unit == Some(Unit::Seconds) && sent.get_ref() == "milliseconds";
            kind = in_seconds.then(|| from_milliseconds(&kind)).flatten().ok_or_else(|| {
                let at = Position { file: position.file, offset: sent.span().start };
                let message = format!(
                    "field `{name}`: invalid sent_unit `{}`; expected `milliseconds`, for a number with the unit `seconds`",
                    sent.get_ref()
                );
                self.error(&at, message)
            })?;
        }
        let texts = |own: &Option<Vec<String>>, shared: Option<&Option<Vec<String>>>| -> Vec<String> {
            own.as_ref().or_else(|| shared?.as_ref()).cloned().unwrap_or_default()
        };
        Ok(Field {
            kind,
            type_name: r#type.clone(),
            description: meaning.description.clone().or_else(|| shared?.description.clone()).unwrap_or_default(),
            unit,
            from: texts(&meaning.from, shared.map(|shared| &shared.from)),
            values: texts(&meaning.values, shared.map(|shared| &shared.values)),
            loose: *loose,
        })
    }

    /// The shape of fields: their types, and all names that they arrive with.
    fn shape<'f>(
        &self,
        fields: impl Iterator<Item = (&'f str, Kind, Vec<&'f [String]>)>,
        position: &dyn Fn(&str) -> Position,
    ) -> Result<Shape, CatalogueError> {
        let mut shape = Shape {
            fields: BTreeMap::new(),
            spellings: FxHashMap::default(),
            renamed: FxHashMap::default(),
            others: Kind::Any,
        };
        let mut sent: Vec<(String, String)> = Vec::new();
        for (name, kind, from) in fields {
            if name == OTHERS {
                shape.others = kind;
                continue;
            }
            for alibabas in from.into_iter().flatten() {
                let respelled = respell(alibabas).into_owned();
                if respelled != name && self.synonyms.get(&respelled).map(String::as_str) != Some(name) {
                    match shape.renamed.get(&respelled) {
                        Some(other) if other != name => {
                            let message =
                                format!("`{alibabas}` is the origin of field `{name}`, but elsewhere of `{other}`");
                            return Err(self.error(&position(name), message));
                        }
                        _ => shape.renamed.insert(respelled, name.to_owned()),
                    };
                }
                sent.push((alibabas.clone(), name.to_owned()));
            }
            shape.fields.insert(name.to_owned(), kind);
        }
        let own = sent.iter().find(|(alibabas, name)| {
            let respelled = respell(alibabas);
            respelled != *name && shape.fields.contains_key(respelled.as_ref())
        });
        if let Some((alibabas, name)) = own {
            let own = respell(alibabas);
            let message =
                format!("`{alibabas}` is the origin of field `{name}`, but `{own}` is also a field of its own");
            return Err(self.error(&position(name), message));
        }
        // Alibaba returns the customer's own data at any depth.
        shape.fields.entry("userData".to_owned()).or_insert(Kind::Verbatim);
        // Only LiveRecordTaskStatus has an `errorInfo`. It can be JSON in a string.
        shape.fields.entry("errorInfo".to_owned()).or_insert(Kind::Json);
        for (name, kind) in &shape.fields {
            let synonyms = self.synonyms.iter().filter(|(_, target)| *target == name).map(|(synonym, _)| synonym);
            let renamed = shape.renamed.iter().filter(|(_, target)| *target == name).map(|(old, _)| old);
            for spelling in synonyms.chain(renamed).chain([name]).flat_map(|name| spellings(name)) {
                shape.spellings.insert(spelling, (name.clone(), kind.clone()));
            }
        }
        for (alibabas, name) in sent {
            let kind = shape.fields[&name].clone();
            shape.spellings.insert(alibabas, (name, kind));
        }
        Ok(shape)
    }

    fn build(mut self) -> Result<Catalogue, CatalogueError> {
        let mut objects = Vec::new();
        for (name, fields) in &self.objects {
            let fields = fields
                .iter()
                .map(|(name, declared)| Ok((name.clone(), self.field(name, declared, None)?)))
                .collect::<Result<_, CatalogueError>>()?;
            objects.push(Object { name: name.clone(), fields });
        }
        self.refuse_cycles(&objects)?;
        let mut events = std::mem::take(&mut self.events);
        for event in &mut events {
            for (name, declared) in &event.fields {
                let shared = self.meanings.get(name);
                event.entry.fields.insert(name.clone(), self.field(name, declared, shared)?);
            }
        }
        let top = self.top(&events)?;
        // In the order of `Catalogue::TOP`, `Catalogue::OPEN` and `Catalogue::FIRST_DECLARED`.
        let mut shapes = vec![self.shape_of_top(&top, None)?, self.shape(std::iter::empty(), &|_| self.start())?];
        for object in &objects {
            let declared = &self.objects[&object.name];
            let fields = object
                .fields
                .iter()
                .map(|(name, field)| (name.as_str(), field.kind.clone(), vec![field.from.as_slice()]));
            shapes.push(self.shape(fields, &|name| declared[name].position.clone())?);
        }
        let differs = |(name, field): (&String, &Field)| top[name.as_str()].kind != field.kind;
        let mut own_shapes = Vec::new();
        for (index, event) in events.iter().enumerate() {
            if event.entry.fields.iter().any(differs) {
                own_shapes.push((index, ShapeId(shapes.len())));
                shapes.push(self.shape_of_top(&top, Some(&event.entry))?);
            }
        }
        for (index, shape) in own_shapes {
            events[index].entry.shape = shape;
        }
        let mut catalogue = Catalogue {
            events: Vec::new(),
            by_name: [FxHashMap::default(), FxHashMap::default()],
            words: std::mem::take(&mut self.words),
            verdicts: std::mem::take(&mut self.verdicts),
            synonyms: self.synonyms.clone(),
            objects,
            differences: std::mem::take(&mut self.differences),
            default_subject: Vec::new(),
            default_verdict: Vec::new(),
            shapes,
        };
        for (index, event) in events.into_iter().enumerate() {
            let DeclaredEvent { mut entry, position, subject, verdict, .. } = event;
            entry.subject = self.paths(&catalogue, entry.shape, subject)?;
            entry.verdict = self.paths(&catalogue, entry.shape, verdict)?;
            for name in &entry.lift {
                if !matches!(entry.fields.get(name), Some(Field { kind: Kind::Object(_), .. })) {
                    let message = format!("lift: `{name}` is not an object among the fields of this event");
                    return Err(self.error(&position, message));
                }
            }
            for name in entry.aliases.iter().chain([&entry.name]) {
                catalogue.by_name[entry.dialect as usize].insert(name.clone(), index);
            }
            catalogue.events.push(entry);
        }
        let located = |paths: &[&str]| paths.iter().map(|path| ((*path).to_owned(), self.start())).collect();
        catalogue.default_subject = self.paths(&catalogue, Catalogue::TOP, located(&DEFAULT_SUBJECT))?;
        let plain = |path: &str| Path { names: path.split('.').map(str::to_owned).collect(), is_media: false };
        catalogue.default_verdict = DEFAULT_VERDICT.into_iter().map(plain).collect();
        Ok(catalogue)
    }

    /// The start of the built-in file: the position of errors that no user can cause.
    fn start(&self) -> Position {
        Position { file: 0, offset: 0 }
    }

    /// The fields of all event types together.
    fn top<'e>(&self, events: &'e [DeclaredEvent]) -> Result<BTreeMap<&'e str, TopField<'e>>, CatalogueError> {
        let mut top: BTreeMap<&str, TopField<'_>> = BTreeMap::new();
        for event in events {
            for (name, field) in &event.entry.fields {
                let Some(known) = top.get_mut(name.as_str()) else {
                    let position = &event.fields[name].position;
                    let (kind, from) = (field.kind.clone(), vec![field.from.as_slice()]);
                    top.insert(name, TopField { kind, type_name: &field.type_name, from, position });
                    continue;
                };
                known.from.push(&field.from);
                if known.kind == field.kind {
                    continue;
                }
                if !(has_shape(&known.kind) && has_shape(&field.kind)) {
                    let message = format!(
                        "field `{name}` of {} {} is declared `{}`, but elsewhere `{}`; a name has one type in all entries",
                        event.entry.dialect, event.entry.name, field.type_name, known.type_name
                    );
                    return Err(self.error(&event.fields[name].position, message));
                }
                known.kind = Kind::Json;
            }
        }
        Ok(top)
    }

    /// The shape of the top level of `data`, for all event types, or for one whose objects differ.
    fn shape_of_top(
        &self,
        top: &BTreeMap<&str, TopField<'_>>,
        entry: Option<&EventType>,
    ) -> Result<Shape, CatalogueError> {
        let own = |name: &str| Some(entry?.fields.get(name)?.kind.clone());
        let meanings = |name: &str| self.meanings.get(name).and_then(|meaning| meaning.from.as_deref());
        let fields = top.iter().map(|(name, field)| {
            let kind = own(name).unwrap_or_else(|| field.kind.clone());
            (*name, kind, field.from.iter().copied().chain(meanings(name)).collect())
        });
        self.shape(fields, &|name| top[name].position.clone())
    }

    /// The paths of an event type. Each must lead to a declared field.
    fn paths(
        &self,
        catalogue: &Catalogue,
        top: ShapeId,
        paths: Vec<(String, Position)>,
    ) -> Result<Vec<Path>, CatalogueError> {
        let resolve = |(path, position): (String, Position)| {
            let names: Vec<String> = path.split('.').map(str::to_owned).collect();
            let mut shape = Some(top);
            let mut kind = &Kind::Any;
            for name in &names {
                let declared = shape.and_then(|shape| catalogue.shapes[shape.0].fields.get(name));
                kind = declared.ok_or_else(|| {
                    let message = format!(
                        "path `{path}`: `{name}` is not a declared field; expected names of fields, joined by dots"
                    );
                    self.error(&position, message)
                })?;
                shape = match kind {
                    Kind::Array(inner) => shape_id(inner),
                    kind => shape_id(kind),
                };
            }
            Ok(Path { is_media: *kind == Kind::Id, names })
        };
        paths.into_iter().map(resolve).collect()
    }

    /// Objects that contain themselves have no end in a schema.
    fn refuse_cycles(&self, objects: &[Object]) -> Result<(), CatalogueError> {
        fn inner(kind: &Kind) -> Option<ShapeId> {
            match kind {
                Kind::Array(item) | Kind::Map(item) => inner(item),
                kind => shape_id(kind),
            }
        }
        // Depth first; `way` has the objects that are open, and the field that leads out of each.
        fn visit<'o>(
            objects: &'o [Object],
            at: usize,
            way: &mut Vec<(usize, &'o str)>,
            done: &mut [bool],
        ) -> Result<(), usize> {
            if let Some(start) = way.iter().position(|(open, _)| *open == at) {
                return Err(start);
            }
            if done[at] {
                return Ok(());
            }
            for (name, field) in &objects[at].fields {
                if let Some(ShapeId(next)) = inner(&field.kind) {
                    way.push((at, name));
                    visit(objects, next - Catalogue::FIRST_DECLARED, way, done)?;
                    way.pop();
                }
            }
            done[at] = true;
            Ok(())
        }
        let mut done = vec![false; objects.len()];
        for at in 0..objects.len() {
            let mut way = Vec::new();
            if let Err(start) = visit(objects, at, &mut way, &mut done) {
                let cycle = &way[start..];
                let names: Vec<&str> =
                    cycle.iter().chain(&cycle[..1]).map(|(open, _)| objects[*open].name.as_str()).collect();
                // The last field is the one that closes the cycle.
                let (object, field) = cycle[cycle.len() - 1];
                let position = &self.objects[&objects[object].name][field].position;
                let message = format!("object `{}` contains itself: {}", names[0], names.join(" → "));
                return Err(self.error(position, message));
            }
        }
        Ok(())
    }
}

/// A field of the top level, in all event types together.
struct TopField<'e> {
    kind: Kind,
    type_name: &'e str,
    from: Vec<&'e [String]>,
    /// Where it is declared first.
    position: &'e Position,
}

/// Whether two different types of this form are allowed for one name: both are JSON of some shape.
fn has_shape(kind: &Kind) -> bool {
    match kind {
        Kind::Object(_) | Kind::Json => true,
        Kind::Array(inner) | Kind::Map(inner) => has_shape(inner),
        _ => false,
    }
}

fn shape_id(kind: &Kind) -> Option<ShapeId> {
    match kind {
        Kind::Object(shape) => Some(*shape),
        _ => None,
    }
}

/// The type of a number, or of numbers in arrays, that arrives in milliseconds.
fn from_milliseconds(kind: &Kind) -> Option<Kind> {
    match kind {
        Kind::Number => Some(Kind::SecondsFromMilliseconds),
        Kind::Array(inner) => Some(Kind::Array(Box::new(from_milliseconds(inner)?))),
        _ => None,
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
                 time, list, verbatim, json, the name of an object in [objects], [T] for an array of T, or {T} for a \
                 map of T; did you mean `number`?",
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
            (
                &format!("{good}[events.fields]\nlength = {{ type = \"number\", unit = \"metres\" }}"),
                "mine.toml: line 6: unknown unit `metres`; expected one of bytes, seconds, kbit/s, pixels, frames/s, Hz, \
                 words/min, percent, ratio, pieces",
            ),
            (
                &format!("{good}[events.fields]\nlength = {{ type = \"number\", unit = \"second\" }}"),
                "mine.toml: line 6: unknown unit `second`; expected one of bytes, seconds, kbit/s, pixels, frames/s, Hz, \
                 words/min, percent, ratio, pieces; did you mean `seconds`?",
            ),
            (
                &format!(
                    "{good}[events.fields]\nlength = {{ type = \"string\", unit = \"seconds\", sent_unit = \"milliseconds\" }}"
                ),
                "mine.toml: line 6: field `length`: invalid sent_unit `milliseconds`; expected `milliseconds`, for a \
                 number with the unit `seconds`",
            ),
            (
                &format!("{good}[events.fields]\nlength = {{ type = \"number\", units = \"seconds\" }}"),
                "mine.toml: line 6: unknown field `units`, expected one of `type`, `loose`",
            ),
            (
                "[objects.A]\nb = \"[B]\"\n[objects.B]\nname = \"string\"\na = \"{A}\"\n",
                "mine.toml: line 5: object `A` contains itself: A → B → A",
            ),
            (
                &format!("{good}subject = [\"mediaId\", \"input.medium\"]"),
                "mine.toml: line 5: path `input.medium`: `medium` is not a declared field",
            ),
            (
                "[verdict_words]\nfine = [\"ok\"]",
                "mine.toml: line 2: unknown verdict `fine`; expected one of pass, review, block",
            ),
            (
                &format!("{good}[events.fields]\nfooId = {{ type = \"string\", from = [\"JobId\"] }}"),
                "mine.toml: line 6: `JobId` is the origin of field `fooId`, but `jobId` is also a field of its own",
            ),
        ] {
            let error = load(text).expect_err("must be refused");
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
