//! JSON Schemas (2020-12) of events.
//!
//! * The schema of an event type describes its envelope. `$defs.data` describes `data` alone, as it travels in binary
//!   mode. Its `$id` is the event's `dataschema`.
//! * Fields that a schema does not list are allowed, because Alibaba adds fields without notice. No field of `data` is
//!   required, because Alibaba leaves out fields without notice.
//! * A value that does not fit its type is kept as it came. Such an event does not fit its schema.
//! * Units are in the descriptions.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::common::text::sentence;
use crate::dialect::{
    Dialect, EventType, Field, Kind, Normalizer, Object, Origin, SAMPLES, Status, Verdict, schema_urn,
};
use crate::event::{Attribute, MAX_ATTRIBUTE_BYTES};

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// `recordedtime` of examples.
pub(super) const RECORDED: OffsetDateTime = time::macros::datetime!(2026-01-02 03:04:05.678 UTC);

/// Most examples of a field.
const MAX_EXAMPLES: usize = 2;

/// Most characters of an example of a field.
const MAX_EXAMPLE_LENGTH: usize = 120;

/// The schema of an event type.
pub fn of_event(normalizer: &Normalizer, event: &EventType) -> Value {
    let samples = envelopes(normalizer, event);
    let mut definitions = Definitions::new(normalizer, "#/$defs/");
    let data = definitions.data(event, &samples);
    let mut document = envelope(normalizer, Some(event), Some(event.dialect), json!({ "$ref": "#/$defs/data" }));
    document["$schema"] = DRAFT.into();
    document["$id"] = normalizer.dataschema(event).into();
    document["title"] = format!("{} {}", event.dialect, event.name).into();
    document["description"] = [event.description.as_str(), &event.when]
        .into_iter()
        .chain(event.notes.iter().map(String::as_str))
        .filter(|text| !text.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
        .into();
    if !samples.is_empty() {
        document["examples"] = samples.into();
    }
    definitions.schemas.insert("data".to_owned(), data);
    document["$defs"] = Value::Object(definitions.schemas.into_iter().collect());
    document
}

/// One schema for several event types: an event of any of them fits it.
pub fn of_events(normalizer: &Normalizer, events: &[&EventType]) -> Value {
    if let [event] = events {
        return of_event(normalizer, event);
    }
    let schemas = events.iter().map(|event| (event.dialect.to_string(), of_event(normalizer, event)));
    let name = events.first().map_or("", |event| event.name.as_str());
    let version = events.iter().map(|event| event.version).max().unwrap_or(1);
    json!({
        "$schema": DRAFT,
        "$id": schema_urn(&format!("{name}:{version}")),
        "title": name,
        "description": "The event of either dialect.",
        "oneOf": events.iter().map(|event| json!({ "$ref": normalizer.dataschema(event) })).collect::<Vec<_>>(),
        "$defs": Value::Object(schemas.collect()),
    })
}

/// The schema that every event fits, also of an event type that the catalogue does not know.
pub fn general(normalizer: &Normalizer, dialect: Option<Dialect>) -> Value {
    let data = json!({
        "type": "object",
        "description": "The callback's own content. The schema that `dataschema` names describes it for known types.",
    });
    let mut document = envelope(normalizer, None, dialect, data);
    document["$schema"] = DRAFT.into();
    document["$id"] = match dialect {
        Some(dialect) => schema_urn(&format!("{dialect}:1")).into(),
        None => schema_urn("1").into(),
    };
    document["title"] = "event of apsara-bridge".into();
    document["description"] = "What every event has, whatever its type. New types can appear at any time.".into();
    document
}

/// The schema of an envelope: of one event type, of one dialect, or of all.
pub(super) fn envelope(
    normalizer: &Normalizer,
    event: Option<&EventType>,
    dialect: Option<Dialect>,
    data: Value,
) -> Value {
    let mut properties = Map::new();
    for attribute in Attribute::ALL {
        let mut schema = attribute_schema(*attribute, normalizer, event, dialect);
        schema["description"] = sentence(attribute.description()).into();
        properties.insert(attribute.name().to_owned(), schema);
    }
    properties.insert("data".to_owned(), data);
    let required: Vec<&str> = Attribute::ALWAYS.map(Attribute::name).into_iter().chain(["data"]).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": true })
}

/// The schema of an attribute.
pub(super) fn attribute_schema(
    attribute: Attribute,
    normalizer: &Normalizer,
    event: Option<&EventType>,
    dialect: Option<Dialect>,
) -> Value {
    let text = || json!({ "type": "string", "minLength": 1, "maxLength": MAX_ATTRIBUTE_BYTES });
    let constant = |value: &str| json!({ "type": "string", "const": value });
    match attribute {
        Attribute::SpecVersion => constant("1.0"),
        Attribute::DataContentType => constant("application/json"),
        Attribute::Id => json!({ "type": "string", "pattern": "^[0-9a-f]{32}$" }),
        Attribute::Source => {
            let dialects = dialect.map_or("(vod|ims)", Dialect::as_str);
            json!({ "type": "string", "pattern": format!("^acs:{dialects}(:[^:]+:[0-9A-Za-z]+)?$") })
        }
        Attribute::Type => match event {
            Some(event) => constant(&format!("{}{}", normalizer.type_prefix(), event.name)),
            None => text(),
        },
        Attribute::DataSchema => match event {
            Some(event) => constant(&normalizer.dataschema(event)),
            None => {
                let dialects = dialect.map_or("(vod|ims)", Dialect::as_str);
                json!({ "type": "string", "pattern": format!("^{}$", schema_urn(&format!("{dialects}:.+:[0-9]+"))) })
            }
        },
        Attribute::Dialect => match dialect {
            Some(dialect) => constant(dialect.as_str()),
            None => json!({ "type": "string", "enum": Dialect::ALL.map(Dialect::as_str) }),
        },
        Attribute::Status => json!({ "type": "string", "enum": Status::ALL.map(Status::as_str) }),
        Attribute::Verdict => json!({ "type": "string", "enum": Verdict::ALL.map(Verdict::as_str) }),
        Attribute::Time | Attribute::RecordedTime => json!({ "type": "string", "format": "date-time" }),
        Attribute::DlqAttempts => json!({ "type": "string", "pattern": "^[0-9]+$" }),
        Attribute::Subject
        | Attribute::MediaId
        | Attribute::JobId
        | Attribute::AccountId
        | Attribute::AppId
        | Attribute::PartitionKey
        | Attribute::Traceparent
        | Attribute::DlqReason
        | Attribute::DlqCode
        | Attribute::DlqDestination => text(),
    }
}

/// The envelopes of the samples of an event type.
pub(super) fn envelopes(normalizer: &Normalizer, event: &EventType) -> Vec<Value> {
    let wanted = |body: &&[u8]| {
        let normalized = normalizer.normalize(body, &Origin::at(RECORDED)).ok()?;
        let index = normalized.event_type?;
        let found = &normalizer.catalogue().events()[index];
        let is_it = found.dialect == event.dialect && found.name == event.name;
        is_it.then(|| serde_json::from_slice(&normalized.event.to_json()).ok()).flatten()
    };
    // Normalizing all samples for each event type would be most of the work of a document.
    let is_named = |body: &&[u8]| {
        let text = String::from_utf8_lossy(body);
        event.aliases.iter().chain([&event.name]).any(|name| text.contains(name.as_str()))
    };
    SAMPLES.iter().map(|(_, body)| *body).filter(is_named).filter_map(|body| wanted(&body)).collect()
}

/// Schemas that others refer to, by name.
pub(super) struct Definitions<'n> {
    normalizer: &'n Normalizer,
    /// What a reference starts with.
    prefix: &'static str,
    pub(super) schemas: BTreeMap<String, Value>,
}

impl<'n> Definitions<'n> {
    pub(super) fn new(normalizer: &'n Normalizer, prefix: &'static str) -> Definitions<'n> {
        Definitions { normalizer, prefix, schemas: BTreeMap::new() }
    }

    /// The schema of the `data` of an event type. The objects in it become definitions.
    pub(super) fn data(&mut self, event: &EventType, samples: &[Value]) -> Value {
        let samples: Vec<&Value> = samples.iter().map(|envelope| &envelope["data"]).collect();
        let catalogue = self.normalizer.catalogue();
        let lifted = event.lift.iter().filter_map(|name| catalogue.object_of(&event.fields[name]));
        let lifted = lifted.flat_map(|object| object.fields.iter());
        let own = event.fields.iter().filter(|(name, _)| !event.lift.contains(name));
        let fields: BTreeMap<&String, &Field> = own.chain(lifted).collect();
        let mut properties = self.properties(fields.into_iter(), &samples);
        properties.insert("error".to_owned(), self.error());
        if !event.aliases.is_empty() {
            let names = event.aliases.join(", ");
            let description = format!("The EventType as it came, if it was another name of this one: {names}.");
            properties.insert("eventType".to_owned(), json!({ "type": "string", "description": description }));
        }
        json!({
            "type": "object",
            "description": "The callback's own content. Fields that are not listed here can occur.",
            "properties": properties,
            "additionalProperties": true,
        })
    }

    fn properties<'f>(
        &mut self,
        fields: impl Iterator<Item = (&'f String, &'f Field)>,
        samples: &[&Value],
    ) -> Map<String, Value> {
        fields
            .filter(|(name, _)| *name != "*")
            .map(|(name, field)| {
                let samples: Vec<&Value> = samples.iter().filter_map(|sample| sample.get(name)).collect();
                (name.clone(), self.field(field, &samples))
            })
            .collect()
    }

    fn reference(&self, name: &str) -> Value {
        json!({ "$ref": format!("{}{name}", self.prefix) })
    }

    fn error(&mut self) -> Value {
        self.schemas.entry("Error".to_owned()).or_insert_with(|| {
            json!({
                "type": "object",
                "description": "Why it failed. `status` decides whether it did: a success can have an error too.",
                "properties": {
                    "code": { "type": "string", "description": "Alibaba's code of the error." },
                    "message": { "type": "string", "description": "Alibaba's explanation." },
                },
                "additionalProperties": true,
            })
        });
        self.reference("Error")
    }

    fn field(&mut self, field: &Field, samples: &[&Value]) -> Value {
        let mut schema = if field.loose { self.loose(&field.kind, samples) } else { self.kind(&field.kind, samples) };
        let mut description = sentence(&field.description);
        let mut add = |text: String| {
            if !description.is_empty() {
                description.push(' ');
            }
            description.push_str(&text);
        };
        if let Some(unit) = field.unit {
            add(format!("Unit: {}.", unit.as_str()));
        }
        if field.is_sent_in_milliseconds() {
            add("Alibaba sends milliseconds.".to_owned());
        }
        if field.kind == Kind::Verbatim {
            add("Any JSON, or text.".to_owned());
        }
        if field.loose {
            add("Other forms occur, so this schema does not check it.".to_owned());
        }
        if !field.values.is_empty() && !field.loose {
            add("Alibaba can send other values than the listed ones.".to_owned());
            let text = match schema.get_mut("items") {
                Some(items) => items,
                None => &mut schema,
            };
            text["anyOf"] = json!([{ "enum": field.values }, { "type": "string" }]);
        }
        if !description.is_empty() {
            schema["description"] = description.into();
        }
        let mut examples: Vec<Value> = Vec::new();
        for sample in samples.iter().filter(|sample| !sample.is_object() && !sample.is_array()) {
            let is_short = sample.to_string().len() <= MAX_EXAMPLE_LENGTH;
            if is_short && !examples.contains(sample) && examples.len() < MAX_EXAMPLES {
                examples.push((*sample).clone());
            }
        }
        if !examples.is_empty() && !field.loose {
            schema["examples"] = examples.into();
        }
        schema
    }

    /// A schema that only names what is known about a value of many forms.
    fn loose(&mut self, kind: &Kind, samples: &[&Value]) -> Value {
        json!({ "anyOf": [self.kind(kind, samples), true] })
    }

    fn kind(&mut self, kind: &Kind, samples: &[&Value]) -> Value {
        match kind {
            Kind::Any | Kind::Verbatim | Kind::Json => json!({}),
            Kind::String | Kind::Id => json!({ "type": "string" }),
            Kind::Number | Kind::SecondsFromMilliseconds => json!({ "type": "number" }),
            Kind::Boolean => json!({ "type": "boolean" }),
            Kind::Time => json!({ "type": "string", "format": "date-time" }),
            Kind::List => json!({ "type": "array", "items": { "type": "string" } }),
            Kind::Object(shape) => self.object(self.normalizer.catalogue().object(*shape), samples),
            Kind::Array(inner) => {
                let items: Vec<&Value> = samples.iter().filter_map(|value| value.as_array()).flatten().collect();
                json!({ "type": "array", "items": self.kind(inner, &items) })
            }
            Kind::Map(inner) => {
                let values: Vec<&Value> =
                    samples.iter().filter_map(|value| value.as_object()).flat_map(Map::values).collect();
                json!({ "type": "object", "additionalProperties": self.kind(inner, &values) })
            }
        }
    }

    fn object(&mut self, object: &Object, samples: &[&Value]) -> Value {
        // The first use gives the examples.
        if !self.schemas.contains_key(&object.name) {
            let mut properties = self.properties(object.fields.iter(), samples);
            if object.fields.contains_key("status") {
                properties.insert("error".to_owned(), self.error());
            }
            let others = match object.fields.get("*") {
                Some(field) => self.field(field, &[]),
                None => true.into(),
            };
            let schema = json!({ "type": "object", "properties": properties, "additionalProperties": others });
            self.schemas.insert(object.name.clone(), schema);
        }
        self.reference(&object.name)
    }
}
