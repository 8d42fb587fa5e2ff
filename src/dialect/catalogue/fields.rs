//! The fields of an event at every depth, for people and for documents.

use super::model::{Catalogue, Dialect, EventType, Field, Kind, Object};
use super::resolve::pascal_case;

/// One field of an event, at any depth.
#[derive(Clone, Debug)]
pub struct FieldRow<'c> {
    /// Its place in `data`: `[]` stands for the items of an array, `{}` for the values of a map.
    pub path: String,
    /// Its place in the callback, with Alibaba's names.
    pub origin: String,
    /// What the catalogue says about it.
    pub field: &'c Field,
}

impl Field {
    /// The type for readers: that of its values in JSON.
    pub fn type_for_readers(&self) -> String {
        fn text(kind: &Kind) -> String {
            match kind {
                Kind::Any => "any JSON".to_owned(),
                Kind::String | Kind::Id => "string".to_owned(),
                Kind::Number | Kind::SecondsFromMilliseconds => "number".to_owned(),
                Kind::Boolean => "boolean".to_owned(),
                Kind::Time => "time".to_owned(),
                Kind::List => "array of string".to_owned(),
                Kind::Verbatim => "the customer's own JSON or text".to_owned(),
                Kind::Json => "JSON of any shape".to_owned(),
                Kind::Object(_) => "object".to_owned(),
                Kind::Array(inner) => format!("array of {}", text(inner)),
                Kind::Map(inner) => format!("map of {}", text(inner)),
            }
        }
        text(&self.kind)
    }

    /// The unit for readers, and whether Alibaba sends another one; empty without a unit.
    pub fn unit_for_readers(&self) -> String {
        match self.unit {
            Some(unit) if self.is_sent_in_milliseconds() => format!("{} (sent in ms)", unit.as_str()),
            Some(unit) => unit.as_str().to_owned(),
            None => String::new(),
        }
    }

    /// Whether the values are converted from milliseconds.
    pub fn is_sent_in_milliseconds(&self) -> bool {
        *self.kind.item() == Kind::SecondsFromMilliseconds
    }

    /// Alibaba's names for it.
    fn origins(&self, name: &str) -> Vec<String> {
        if self.from.is_empty() {
            return vec![pascal_case(name)];
        }
        self.from.clone()
    }
}

impl Catalogue {
    /// The fields of an event at every depth, each object before its members.
    pub fn rows<'c>(&'c self, event: &'c EventType) -> Vec<FieldRow<'c>> {
        let mut rows = Vec::new();
        let start = if event.dialect == Dialect::Ims { "MessageBody." } else { "" };
        for (name, field) in &event.fields {
            let lifted =
                |object: &str| self.object_of(&event.fields[object]).is_some_and(|it| it.fields.contains_key(name));
            if event.lift.iter().any(|object| lifted(object)) {
                continue;
            }
            if event.lift.contains(name) {
                if let Some(object) = self.object_of(field) {
                    let origin = format!("{start}{}.", field.origins(name).join(" or "));
                    self.push_members(object, "", &origin, &mut rows);
                }
                continue;
            }
            self.push(name, field, "", start, &mut rows);
        }
        rows.sort_by(|a, b| a.path.split(['.', '[', '{']).next().cmp(&b.path.split(['.', '[', '{']).next()));
        rows
    }

    /// The object that a field is, or that its items or values are.
    pub fn object_of(&self, field: &Field) -> Option<&Object> {
        match field.kind.item() {
            Kind::Object(shape) => Some(self.object(*shape)),
            _ => None,
        }
    }

    fn push<'c>(&'c self, name: &str, field: &'c Field, path: &str, origin: &str, rows: &mut Vec<FieldRow<'c>>) {
        let names = match name {
            "*" => "(others)".to_owned(),
            name => field.origins(name).join(" or "),
        };
        let name = if name == "*" { "(others)" } else { name };
        let (path, origin) = (format!("{path}{name}"), format!("{origin}{names}"));
        rows.push(FieldRow { path: path.clone(), origin: origin.clone(), field });
        if let Some(object) = self.object_of(field) {
            let step = steps(&field.kind);
            self.push_members(object, &format!("{path}{step}."), &format!("{origin}{step}."), rows);
        }
    }

    fn push_members<'c>(&'c self, object: &'c Object, path: &str, origin: &str, rows: &mut Vec<FieldRow<'c>>) {
        for (name, field) in &object.fields {
            self.push(name, field, path, origin, rows);
        }
    }
}

/// How the path continues into the items or values of a type.
fn steps(kind: &Kind) -> String {
    match kind {
        Kind::Array(inner) => format!("[]{}", steps(inner)),
        Kind::Map(inner) => format!("{{}}{}", steps(inner)),
        _ => String::new(),
    }
}
