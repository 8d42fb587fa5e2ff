//! Builds the catalogue from what was read: resolves types, units, paths and names. The first mistake ends it. Where two
//! declarations contradict each other, the error is at the one that came later, because that one must change.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;
use toml::Spanned;

use super::file::{Builder, CatalogueError, Declared, DeclaredEvent, FileField, FileMeaning, Located, Position};
use super::model::{Catalogue, EventType, Field, Kind, Object, Path, Shape, ShapeId, Unit};
use crate::common::suggest::did_you_mean;
use crate::dialect::keys::respell;

/// Where the subject is when an event type names no path of its own, or when its own have no value.
const DEFAULT_SUBJECT: [&str; 8] = [
    "mediaId",
    "input.media",
    "taskInput.media",
    "outFileMeta.fileBasicInfo.mediaId",
    "jobId",
    "parentJobId",
    "mediaRefreshJobId",
    "taskId",
];

/// Where verdicts are in events of a type without an entry.
const DEFAULT_VERDICT: [&str; 3] = ["auditStatus", "suggestion", "data.suggestion"];

/// Name of the field that stands for all others of an object.
const OTHERS: &str = "*";

/// The types that are not objects.
const SIMPLE_TYPES: [&str; 9] = ["any", "string", "id", "number", "boolean", "time", "list", "verbatim", "json"];

/// Members of a callback that become attributes, and therefore cannot be the origin of a field.
const ATTRIBUTES: [&str; 4] = ["EventType", "EventTime", "UserId", "MessageBody"];

/// Fields that errors become, at every depth.
const RESERVED_NAMES: [&str; 4] = ["error", "errorCode", "errorMessage", "errorInfo"];

/// Fields of the top level that the program adds.
const RESERVED_FIELDS: [&str; 2] = ["eventType", "eventTime"];

/// Most brackets of a type.
const MAX_TYPE_DEPTH: usize = 8;

/// Most characters of a wrong text that an error repeats.
const MAX_SHOWN: usize = 64;

/// A field of a shape that is being built.
struct ShapeField<'f> {
    name: &'f str,
    kind: Kind,
    /// Names that are renamed to it.
    from: &'f [String],
    /// Names in the order in which they get the name of the field.
    origins: &'f [String],
    position: &'f Position,
}

impl<'f> ShapeField<'f> {
    fn all(fields: &'f BTreeMap<String, Field>, declared: &'f BTreeMap<String, Declared>) -> Vec<ShapeField<'f>> {
        let field = |(name, field): (&'f String, &'f Field)| ShapeField {
            name,
            kind: field.kind.clone(),
            from: &field.from,
            origins: &field.from,
            position: &declared[name].position,
        };
        fields.iter().map(field).collect()
    }
}

impl Builder {
    fn kind(&self, text: &str, depth: usize) -> Option<Kind> {
        if depth > MAX_TYPE_DEPTH {
            return None;
        }
        let within = |open: char, close: char| text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close));
        if let Some(inner) = within('[', ']') {
            return Some(Kind::Array(Box::new(self.kind(inner, depth + 1)?)));
        }
        if let Some(inner) = within('{', '}') {
            return Some(Kind::Map(Box::new(self.kind(inner, depth + 1)?)));
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

    /// A unit. `position` is anywhere in its file.
    fn unit(&self, unit: &Spanned<String>, position: &Position) -> Result<Unit, CatalogueError> {
        Unit::from_word(unit.get_ref()).ok_or_else(|| {
            let known = Unit::ALL.map(Unit::as_str);
            let hint = did_you_mean(unit.get_ref(), known.into_iter());
            let message = format!("unknown unit `{}`; expected one of {}{hint}", unit.get_ref(), known.join(", "));
            self.error(&Position { file: position.file, offset: unit.span().start }, message)
        })
    }

    /// The name of a field must be normalized.
    fn check_name(&self, name: &str, position: &Position) -> Result<(), CatalogueError> {
        let respelled = respell(name);
        let message = match self.synonyms.get(respelled.as_ref()) {
            Some((_, at)) if at.file > position.file => {
                return Err(self.error(at, format!("synonym `{respelled}`: a field has this name")));
            }
            Some((synonym, _)) => format!("field `{name}` is not normalized; write `{synonym}`"),
            None if name.is_empty() || respelled != name => {
                format!("field `{name}` is not normalized; write `{respelled}`")
            }
            None if RESERVED_NAMES.contains(&name) => {
                format!("field `{name}`: this name is reserved for the error of a failure")
            }
            None => return Ok(()),
        };
        Err(self.error(position, message))
    }

    /// The field with its own meaning, and where that is silent, the meaning of its name.
    fn field(
        &self,
        name: &str,
        declared: &Declared,
        shared: Option<&(FileMeaning, Position)>,
    ) -> Result<Field, CatalogueError> {
        let Declared { field: FileField { r#type, loose, meaning }, position } = declared;
        if name != OTHERS {
            self.check_name(name, position)?;
        } else if meaning.from.is_some() {
            return Err(self.error(position, "field `*`: `from` is for fields with a name"));
        }
        let kind = self.kind(r#type, 0).ok_or_else(|| {
            let inner = r#type.trim_matches(['[', ']', '{', '}']);
            let known = SIMPLE_TYPES.into_iter().chain(self.objects.keys().map(String::as_str));
            let hint = if inner.len() <= MAX_SHOWN { did_you_mean(inner, known) } else { String::new() };
            let shown: String = r#type.chars().take(MAX_SHOWN).collect();
            let message = format!(
                "field `{name}`: unknown type `{shown}`; expected {}, the name of an object in [objects], [T] for an \
                 array of T, or {{T}} for a map of T{hint}",
                SIMPLE_TYPES.join(", "),
            );
            self.error(position, message)
        })?;
        // Each with a position in its file.
        let meanings: Vec<(&FileMeaning, &Position)> =
            [(meaning, position)].into_iter().chain(shared.map(|(meaning, at)| (meaning, at))).collect();
        let first = |of: fn(&FileMeaning) -> &Option<Spanned<String>>| {
            meanings.iter().find_map(|(meaning, at)| Some((of(meaning).as_ref()?, *at)))
        };
        let unit = first(|meaning| &meaning.unit);
        if let Some((_, at)) = unit
            && !matches!(kind.item(), Kind::Number)
            // Otherwise the type of the field contradicts other events, which is reported later.
            && (meaning.unit.is_some() || at.file > position.file)
        {
            let message = format!("field `{name}`: a unit is for numbers, but the type is `{}`", r#type);
            return Err(self.error(at, message));
        }
        let unit = unit.map(|(unit, at)| self.unit(unit, at)).transpose()?;
        let values = meanings.iter().find_map(|(meaning, _)| meaning.values.clone()).unwrap_or_default();
        if !values.is_empty() && !matches!(kind.item(), Kind::String | Kind::Id | Kind::List) {
            let message = format!("field `{name}`: `values` is for texts, but the type is `{}`", r#type);
            return Err(self.error(position, message));
        }
        let kind = match first(|meaning| &meaning.sent_unit) {
            None => kind,
            Some((sent, at)) => {
                let in_seconds = unit == Some(Unit::Seconds) && sent.get_ref() == "milliseconds";
                in_seconds.then(|| from_milliseconds(&kind)).flatten().ok_or_else(|| {
                    let at = Position { file: at.file, offset: sent.span().start };
                    let message = format!(
                        "field `{name}`: invalid sent_unit `{}`; the only one is `milliseconds`, for numbers whose unit is \
                         `seconds`",
                        sent.get_ref()
                    );
                    self.error(&at, message)
                })?
            }
        };
        let from = meanings.iter().find_map(|(meaning, at)| Some((meaning.from.clone()?, *at)));
        let (from, at) = from.unwrap_or((Vec::new(), position));
        let is_origin = |text: &String| !text.trim().is_empty() && !ATTRIBUTES.contains(&text.as_str());
        if let Some(wrong) = from.iter().find(|text| !is_origin(text)) {
            let message = format!(
                "field `{name}`: invalid origin `{wrong}`; expected Alibaba's name of a field, and not one of {}",
                ATTRIBUTES.join(", ")
            );
            return Err(self.error(at, message));
        }
        Ok(Field {
            kind,
            type_name: r#type.clone(),
            description: meanings.iter().find_map(|(meaning, _)| meaning.description.clone()).unwrap_or_default(),
            unit,
            from,
            values,
            loose: *loose,
        })
    }

    /// The shape of fields: their types, and all names that they arrive with.
    fn shape(&self, fields: &[ShapeField<'_>], fallback: Option<ShapeId>) -> Result<Shape, CatalogueError> {
        let mut shape = Shape {
            fields: BTreeMap::new(),
            spellings: FxHashMap::default(),
            renamed: FxHashMap::default(),
            origins: FxHashMap::default(),
            others: Kind::Any,
            fallback,
        };
        let named = |name: &str| fields.iter().find(|field| field.name == name);
        for field in fields {
            if field.name == OTHERS {
                shape.others = field.kind.clone();
                continue;
            }
            for alibabas in field.from {
                let respelled = respell(alibabas).into_owned();
                // Another field can have this name, have it as a synonym, or come from it too.
                let synonym = self.synonyms.get(&respelled).map(|(target, _)| target.as_str());
                let renamed = shape.renamed.get(&respelled).map(String::as_str);
                let others = [Some(respelled.as_str()), synonym, renamed].into_iter().flatten();
                if let Some(other) = others.filter(|other| *other != field.name).find_map(named) {
                    let at = if field.position.file >= other.position.file { field.position } else { other.position };
                    let message = format!(
                        "`{alibabas}` is the origin of field `{}`, but it is also a name of `{}`",
                        field.name, other.name
                    );
                    return Err(self.error(at, message));
                }
                if respelled != field.name && synonym != Some(field.name) {
                    shape.renamed.insert(respelled, field.name.to_owned());
                }
            }
            shape.fields.insert(field.name.to_owned(), field.kind.clone());
            if !field.origins.is_empty() {
                shape.origins.insert(field.name.to_owned(), field.origins.to_vec());
            }
        }
        // Alibaba returns the customer's own data at any depth.
        shape.fields.entry("userData".to_owned()).or_insert(Kind::Verbatim);
        // Only LiveRecordTaskStatus has an `errorInfo`. It can be JSON in a string.
        shape.fields.entry("errorInfo".to_owned()).or_insert(Kind::Json);
        for (name, kind) in &shape.fields {
            let synonyms = self.synonyms.iter().filter(|(_, (target, _))| target == name).map(|(synonym, _)| synonym);
            let synonyms = synonyms.filter(|synonym| !shape.renamed.contains_key(*synonym));
            let renamed = shape.renamed.iter().filter(|(_, target)| *target == name).map(|(old, _)| old);
            for spelling in synonyms.chain(renamed).chain([name]).flat_map(|name| spellings(name)) {
                shape.spellings.insert(spelling, (name.clone(), kind.clone()));
            }
        }
        for field in fields {
            for alibabas in field.from {
                shape.spellings.insert(alibabas.clone(), (field.name.to_owned(), field.kind.clone()));
            }
        }
        Ok(shape)
    }

    /// Builds the catalogue.
    ///
    /// # Errors
    /// The first mistake that was found.
    pub(super) fn build(mut self) -> Result<Catalogue, CatalogueError> {
        let mut objects = Vec::new();
        for (name, (fields, _)) in &self.objects {
            let fields = fields
                .iter()
                .map(|(name, declared)| Ok((name.clone(), self.field(name, declared, None)?)))
                .collect::<Result<_, CatalogueError>>()?;
            objects.push(Object { name: name.clone(), fields });
        }
        self.refuse_cycles(&objects)?;
        let mut events = std::mem::take(&mut self.events);
        for event in &mut events {
            self.resolve_fields(event)?;
        }
        let known = known_fields(&events);
        for event in &events {
            self.check_named(event, &known)?;
        }
        for (name, (_, at)) in &self.meanings {
            if !events.iter().any(|event| event.fields.contains_key(name)) {
                return Err(self.error(at, format!("no event has a field `{name}`; add it to the fields of an event")));
            }
        }
        self.refuse_taken_aliases(&events)?;
        // In the order of `Catalogue::TOP`, `Catalogue::OPEN` and `Catalogue::FIRST_DECLARED`.
        let mut shapes = vec![self.top(&events, &objects)?, self.shape(&[], None)?];
        for object in &objects {
            let (declared, _) = &self.objects[&object.name];
            shapes.push(self.shape(&ShapeField::all(&object.fields, declared), None)?);
        }
        for event in &mut events {
            let mut fields = ShapeField::all(&event.entry.fields, &event.fields);
            for field in &mut fields {
                // An entry that is silent about the origin has that of the shared meaning.
                let is_silent = event.fields[field.name].field.meaning.from.is_none();
                if let Some((_, at)) = self.meanings.get(field.name).filter(|_| is_silent) {
                    field.position = at;
                }
            }
            let shape = self.shape(&fields, Some(Catalogue::TOP))?;
            event.entry.shape = ShapeId(shapes.len());
            shapes.push(shape);
        }
        let mut catalogue = Catalogue {
            events: Vec::new(),
            by_name: [FxHashMap::default(), FxHashMap::default()],
            words: std::mem::take(&mut self.words),
            verdicts: std::mem::take(&mut self.verdicts),
            synonyms: self.synonyms.iter().map(|(name, (target, _))| (name.clone(), target.clone())).collect(),
            objects,
            differences: std::mem::take(&mut self.differences),
            default_subject: DEFAULT_SUBJECT.into_iter().map(default_path).collect(),
            default_verdict: DEFAULT_VERDICT.into_iter().map(default_path).collect(),
            shapes,
        };
        for (index, event) in events.into_iter().enumerate() {
            let DeclaredEvent { mut entry, subject, verdict, .. } = event;
            entry.subject = self.paths(&catalogue, &known, &entry, subject)?;
            entry.verdict = self.paths(&catalogue, &known, &entry, verdict)?;
            for name in entry.aliases.iter().chain([&entry.name]) {
                catalogue.by_name[entry.dialect as usize].insert(name.clone(), index);
            }
            catalogue.events.push(entry);
        }
        Ok(catalogue)
    }

    /// The fields of an event type, and those that its other keys name.
    fn resolve_fields(&self, event: &mut DeclaredEvent) -> Result<(), CatalogueError> {
        for (name, declared) in &event.fields {
            if name == OTHERS {
                let message = "field `*`: only objects can have it; list the fields of an event";
                return Err(self.error(&declared.position, message));
            }
            if RESERVED_FIELDS.contains(&name.as_str()) {
                return Err(self.error(&declared.position, format!("field `{name}`: this name is reserved")));
            }
            event.entry.fields.insert(name.clone(), self.field(name, declared, self.meanings.get(name))?);
        }
        Ok(())
    }

    /// What the keys of an event name must be fields: its own, or those of another event, which it can have too.
    fn check_named(&self, event: &DeclaredEvent, known: &BTreeMap<String, Field>) -> Result<(), CatalogueError> {
        for (key, (name, at)) in &event.named {
            let own = event.entry.fields.get(name);
            if own.or(known.get(name)).is_none() {
                let message = format!("{key}: no event has a field `{name}`; add it to the fields of this event");
                return Err(self.error(at, message));
            }
            if *key == "lift" && !own.is_some_and(|field| matches!(field.kind, Kind::Object(_))) {
                let message = format!("lift: `{name}` is not an object among the fields of this event");
                return Err(self.error(at, message));
            }
        }
        Ok(())
    }

    /// An alias must not be the name or an alias of another entry.
    fn refuse_taken_aliases(&self, events: &[DeclaredEvent]) -> Result<(), CatalogueError> {
        for event in events {
            for (alias, at) in &event.aliases {
                let is_other = |other: &&DeclaredEvent| {
                    other.entry.dialect == event.entry.dialect
                        && other.entry.name != event.entry.name
                        && (other.entry.name == *alias || other.entry.aliases.contains(alias))
                };
                if let Some(other) = events.iter().find(is_other) {
                    return Err(self.error(at, format!("alias `{alias}` is already a name of {}", other.entry.name)));
                }
            }
        }
        Ok(())
    }

    /// The shape of the top level of `data` for what no entry declares. A name has one type in all entries; only the shapes
    /// of objects may differ.
    fn top(&self, events: &[DeclaredEvent], objects: &[Object]) -> Result<Shape, CatalogueError> {
        let mut top: BTreeMap<&str, (&Position, &Field, Kind)> = BTreeMap::new();
        for event in events {
            // Members that move to the top level are fields there too.
            let lifted = event.entry.lift.iter().filter_map(|name| innermost(&event.entry.fields[name].kind));
            let lifted = lifted.map(|ShapeId(shape)| &objects[shape - Catalogue::FIRST_DECLARED]);
            let lifted = lifted.flat_map(|object| {
                let (declared, _) = &self.objects[&object.name];
                object.fields.iter().map(|(name, field)| (name, field, &declared[name].position))
            });
            let own = event.entry.fields.iter().map(|(name, field)| (name, field, &event.fields[name].position));
            for (name, field, position) in own.chain(lifted) {
                let Some((_, first, kind)) = top.get_mut(name.as_str()) else {
                    top.insert(name, (position, field, field.kind.clone()));
                    continue;
                };
                if without_units(&first.kind) == without_units(&field.kind) {
                    continue;
                }
                if !(has_shape(&first.kind) && has_shape(&field.kind)) {
                    let message = format!(
                        "field `{name}` of {} {} is declared `{}`, but elsewhere `{}`; a name has one type in all entries",
                        event.entry.dialect, event.entry.name, field.type_name, first.type_name
                    );
                    return Err(self.error(position, message));
                }
                *kind = Kind::Json;
            }
        }
        let fields: Vec<ShapeField<'_>> = top
            .iter()
            .map(|(name, (position, _, kind))| {
                let shared = self.meanings.get(*name);
                ShapeField {
                    name,
                    // What one entry says about units holds for its events only.
                    kind: if innermost(kind).is_some() && converts(kind, objects) {
                        Kind::Json
                    } else {
                        without_units(kind)
                    },
                    // Names are renamed only in events that declare the field.
                    from: &[],
                    origins: shared.and_then(|(meaning, _)| meaning.from.as_deref()).unwrap_or_default(),
                    position: shared.map_or(*position, |(_, at)| at),
                }
            })
            .collect();
        self.shape(&fields, None)
    }

    /// The paths of an event type. Each must lead to a declared field.
    fn paths(
        &self,
        catalogue: &Catalogue,
        known: &BTreeMap<String, Field>,
        entry: &EventType,
        paths: Vec<Located>,
    ) -> Result<Vec<Path>, CatalogueError> {
        let resolve = |(path, position): Located| {
            let names: Vec<String> = path.split('.').map(str::to_owned).collect();
            let mut object: Option<&Object> = None;
            let mut field: Option<&Field> = None;
            for (index, name) in names.iter().enumerate() {
                let found = match index {
                    0 => entry.fields.get(name).or(known.get(name)),
                    _ => object.and_then(|object| object.fields.get(name)),
                };
                let Some(found) = found else {
                    let at = object.map(|object| &self.objects[&object.name].1).filter(|at| at.file > position.file);
                    let place = match object {
                        Some(object) => format!("object `{}` has no", object.name),
                        None => "no event has a".to_owned(),
                    };
                    let message = format!(
                        "path `{path}` of {} {}: {place} field `{name}`; expected names of fields, joined by dots",
                        entry.dialect, entry.name
                    );
                    return Err(self.error(at.unwrap_or(&position), message));
                };
                field = Some(found);
                object = if matches!(found.kind, Kind::Map(_)) { None } else { catalogue.object_of(found) };
            }
            Ok(Path { is_media: field.is_some_and(|field| field.kind == Kind::Id), names })
        };
        paths.into_iter().map(resolve).collect()
    }

    /// Objects that contain themselves have no end in a schema.
    fn refuse_cycles(&self, objects: &[Object]) -> Result<(), CatalogueError> {
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
                if let Some(ShapeId(next)) = innermost(&field.kind) {
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
                let position = &self.objects[&objects[object].name].0[field].position;
                let message = format!("object `{}` contains itself: {}", names[0], names.join(" → "));
                return Err(self.error(position, message));
            }
        }
        Ok(())
    }
}

/// The fields that some event has, by name.
fn known_fields(events: &[DeclaredEvent]) -> BTreeMap<String, Field> {
    let fields = events.iter().rev().flat_map(|event| event.entry.fields.iter());
    fields.map(|(name, field)| (name.clone(), field.clone())).collect()
}

/// A path of [`DEFAULT_SUBJECT`] or [`DEFAULT_VERDICT`]. Its names say whether it leads to a media, because an event without
/// an entry declares no types.
fn default_path(path: &str) -> Path {
    let names: Vec<String> = path.split('.').map(str::to_owned).collect();
    let is_media = names.last().is_some_and(|name| name == "mediaId" || name == "media");
    Path { names, is_media }
}

/// Whether two different types of this form are allowed for one name: both are JSON of some shape.
fn has_shape(kind: &Kind) -> bool {
    match kind {
        Kind::Object(_) | Kind::Json => true,
        Kind::Array(inner) | Kind::Map(inner) => has_shape(inner),
        _ => false,
    }
}

/// The object that a type is, or that its items or values are.
fn innermost(kind: &Kind) -> Option<ShapeId> {
    match kind.item() {
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

/// Whether a type converts units, at any depth.
fn converts(kind: &Kind, objects: &[Object]) -> bool {
    match kind {
        Kind::SecondsFromMilliseconds => true,
        Kind::Array(inner) | Kind::Map(inner) => converts(inner, objects),
        Kind::Object(ShapeId(shape)) => {
            objects[shape - Catalogue::FIRST_DECLARED].fields.values().any(|field| converts(&field.kind, objects))
        }
        _ => false,
    }
}

/// A type with numbers as they arrive.
fn without_units(kind: &Kind) -> Kind {
    match kind {
        Kind::SecondsFromMilliseconds => Kind::Number,
        Kind::Array(inner) => Kind::Array(Box::new(without_units(inner))),
        Kind::Map(inner) => Kind::Map(Box::new(without_units(inner))),
        kind => kind.clone(),
    }
}

/// A normalized name with a capital letter at its start.
pub(super) fn pascal_case(name: &str) -> String {
    let mut characters = name.chars();
    characters.next().map(|first| format!("{}{}", first.to_ascii_uppercase(), characters.as_str())).unwrap_or_default()
}

/// The spellings in which a normalized name is likely to arrive. [`respell`] maps each of them to the name.
fn spellings(name: &str) -> Vec<String> {
    const ACRONYMS: [&str; 5] = ["Url", "Urls", "Id", "Ids", "Dna"];
    let pascal = pascal_case(name);
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
