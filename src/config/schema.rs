//! The JSON Schema of the configuration, for editors.
//!
//! It is built from the same types that read the configuration: doc comments are descriptions, `Default` gives the
//! defaults, and each kind of input and output brings the schema of its section. Subschemas are written out in place and
//! not referred to, because some editors ignore a description next to a reference.

use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::raw::Raw;
use crate::common::kind::SectionSchema;
use crate::service::is_reloadable;
use crate::{input, output};

/// Names the schema, for tools that store several.
const ID: &str = "urn:apsara-bridge:config-schema:1";

/// The schema as an object of JSON Schema 2020-12.
pub fn json_schema() -> Value {
    let settings = SchemaSettings::draft2020_12().for_deserialize().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Raw>().to_value();
    clean(&mut schema);
    if let Value::Object(root) = &mut schema {
        root.insert("$id".to_owned(), json!(ID));
        root.insert("title".to_owned(), json!("Configuration of apsara-bridge"));
        note_reloads(root, &mut Vec::new(), None);
    }
    schema
}

/// The schema of the inputs.
pub(super) fn inputs(generator: &mut SchemaGenerator) -> Schema {
    let kinds = input::KINDS.iter().map(|kind| (kind.name, kind.schema)).collect::<Vec<_>>();
    named(generator, &kinds)
}

/// The schema of the outputs.
pub(super) fn outputs(generator: &mut SchemaGenerator) -> Schema {
    let kinds = output::KINDS.iter().map(|kind| (kind.name, kind.schema)).collect::<Vec<_>>();
    named(generator, &kinds)
}

/// A table of names. The section of each name has the schema of its kind.
fn named(generator: &mut SchemaGenerator, kinds: &[(&str, SectionSchema)]) -> Schema {
    let sections = kinds.iter().map(|(name, schema)| {
        let mut section = schema(generator);
        let of_kind = section.get("description").and_then(Value::as_str).unwrap_or_default();
        let kind = json!({ "description": of_kind, "const": name, "type": "string" });
        let object = section.ensure_object();
        if let Value::Object(properties) = object.entry("properties").or_insert_with(|| json!({})) {
            properties.insert("kind".to_owned(), kind);
        }
        if let Value::Array(required) = object.entry("required").or_insert_with(|| json!([])) {
            required.insert(0, json!("kind"));
        }
        section
    });
    json_schema!({
        "type": "object",
        "minProperties": 1,
        "propertyNames": { "pattern": "^[A-Za-z0-9_-]+$" },
        "additionalProperties": { "oneOf": sections.collect::<Vec<_>>() },
    })
}

/// Makes what `schemars` writes fit for readers.
fn clean(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::String(text)) = object.get_mut("description") {
                *text =
                    text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
            }
            // Names of Rust types, as `uint32`, are unknown to validators.
            if object.get("format").is_some_and(Value::is_string) {
                object.remove("format");
            }
            // A required key has no default, and the default of a section is that of its keys.
            let required = object.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
            if let Some(Value::Object(properties)) = object.get_mut("properties") {
                for (name, property) in properties {
                    let Value::Object(property) = property else { continue };
                    let is_none =
                        property.get("default").is_some_and(|default| default.is_null() || default.is_object());
                    if is_none || required.contains(&json!(name)) {
                        property.remove("default");
                    }
                }
            }
            object.values_mut().for_each(clean);
        }
        Value::Array(items) => items.iter_mut().for_each(clean),
        _ => {}
    }
}

/// Adds to the description of each key whether a running bridge takes over a change. `kind` is the kind of the input
/// that `schema` is a part of.
fn note_reloads(schema: &mut Map<String, Value>, path: &mut Vec<String>, kind: Option<&str>) {
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        for (name, property) in properties {
            let Value::Object(property) = property else { continue };
            path.push(name.clone());
            // A running bridge ignores tests.
            let is_test = path.first().is_some_and(|section| section == "tests");
            if name != "kind" && path.len() > 1 && !is_test {
                note_reload(property, path, kind);
            }
            // What is below these are attributes, not keys.
            if name != "match" && name != "filter" {
                note_reloads(property, path, kind);
            }
            path.pop();
        }
    }
    if let Some(Value::Object(items)) = schema.get_mut("items") {
        note_reloads(items, path, kind);
    }
    for keyword in ["anyOf", "oneOf"] {
        let Some(Value::Array(choices)) = schema.get_mut(keyword) else { continue };
        choices.iter_mut().filter_map(Value::as_object_mut).for_each(|choice| note_reloads(choice, path, kind));
    }
    let names = schema.get_mut("additionalProperties").and_then(|any| any.get_mut("oneOf"));
    for section in names.and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        let kind =
            section.get("properties").and_then(|keys| keys["kind"]["const"].as_str()).unwrap_or_default().to_owned();
        path.push("name".to_owned());
        note_reloads(section, path, Some(&kind));
        path.pop();
    }
}

fn note_reload(property: &mut Map<String, Value>, path: &[String], kind: Option<&str>) {
    let Some(Value::String(description)) = property.get_mut("description") else { return };
    let note =
        if is_reloadable(path, |_| kind) { "A running bridge applies a change." } else { "A change needs a restart." };
    *description = format!("{description} {note}");
}
