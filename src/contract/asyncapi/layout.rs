//! The headers of records, found by rendering events whose values are known. So the description cannot differ from what
//! an output publishes.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::common::text::sentence;
use crate::contract::schema::attribute_schema;
use crate::dialect::{Dialect, EventType, Normalizer};
use crate::event::{Attribute, Event, Mode, percent_encode};
use crate::output::{Bus, OutputSettings, Record};

/// How an output lays out records.
#[derive(Debug, PartialEq)]
pub(super) struct Layout {
    pub(super) mode: Mode,
    headers: Vec<(&'static str, Content)>,
}

#[derive(Debug, PartialEq)]
enum Content {
    /// The same in every record.
    Constant(String),
    /// The value of an attribute, percent-encoded or as it is.
    Attribute(Attribute, Encoding),
    /// Something else.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Encoding {
    None,
    Percent,
}

impl Encoding {
    fn apply(self, value: &str) -> String {
        match self {
            Encoding::None => value.to_owned(),
            Encoding::Percent => percent_encode(value).into_owned(),
        }
    }
}

impl Layout {
    /// The layout of an output in a mode, or in its own.
    pub(super) fn of(settings: &dyn OutputSettings, mode: Option<Mode>) -> Layout {
        // Each needs percent-encoding, and no two values are alike.
        let value = |attribute: Attribute, round: u8| format!("{attribute} {round}");
        let rendered = |round: u8| {
            let mut event = Event::new("{}");
            for attribute in Attribute::ALL {
                event.set(*attribute, value(*attribute, round));
            }
            let record = Record { event: Arc::new(event), topic: "topic".to_owned(), key: None, mode };
            let rendered = settings.render(&record);
            let headers = rendered.headers.into_iter().map(|(name, value)| (name, value.into_owned()));
            (rendered.mode, headers.collect::<Vec<_>>())
        };
        let (mode, first) = rendered(1);
        let (_, second) = rendered(2);
        let headers = first.into_iter().map(|(name, text)| {
            let attribute = Attribute::ALL.iter().find_map(|attribute| {
                let mut encodings = [Encoding::None, Encoding::Percent].into_iter();
                let encoding = encodings.find(|encoding| encoding.apply(&value(*attribute, 1)) == text)?;
                Some(Content::Attribute(*attribute, encoding))
            });
            let is_constant = second.iter().any(|(other, same)| *other == name && *same == text);
            let content = match attribute {
                Some(attribute) => attribute,
                None if is_constant => Content::Constant(text),
                None => Content::Other,
            };
            (name, content)
        });
        Layout { mode, headers: headers.collect() }
    }

    /// Whether a header is the same in every record of an event. Others can depend on the topic.
    pub(super) fn follows_from_event(&self, header: &str) -> bool {
        self.headers.iter().any(|(name, content)| *name == header && *content != Content::Other)
    }

    /// Media type of the payload.
    pub(super) fn content_type(&self) -> &'static str {
        match self.mode {
            Mode::Structured => "application/cloudevents+json",
            Mode::Binary => "application/json",
        }
    }

    /// The schema of the headers of any event; none if there are no headers.
    pub(super) fn headers(&self, bus: &Bus, normalizer: &Normalizer) -> Option<Value> {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for (name, content) in self.headers.iter().filter(|(_, content)| !content.is_of_dead_letters()) {
            let schema = match content {
                Content::Constant(text) => json!({ "type": "string", "const": text }),
                Content::Attribute(attribute, encoding) => {
                    of_attribute(*attribute, *encoding, attribute_schema(*attribute, normalizer, None, None))
                }
                Content::Other => {
                    let known = bus.other_headers.iter().find(|(known, _)| known == name);
                    let description = known.map_or("It is not an attribute.", |(_, description)| *description);
                    json!({ "type": "string", "description": description })
                }
            };
            properties.insert((*name).to_owned(), schema);
            let is_always_there = match content {
                Content::Constant(_) => true,
                Content::Attribute(attribute, _) => Attribute::ALWAYS.contains(attribute),
                Content::Other => false,
            };
            if is_always_there {
                required.push(*name);
            }
        }
        let schema = json!({ "type": "object", "properties": properties, "required": required });
        (!self.headers.is_empty()).then_some(schema)
    }

    /// The properties of the headers that differ from those of any event.
    pub(super) fn own_headers(&self, subject: &Subject<'_>) -> Map<String, Value> {
        let own = self.headers.iter().filter_map(|(name, content)| {
            let Content::Attribute(attribute, encoding) = content else { return None };
            let mut schema = subject.own_schema(*attribute)?;
            if let Some(text) = schema["const"].as_str() {
                schema["const"] = encoding.apply(text).into();
            }
            if let Some(texts) = schema.pointer_mut("/not/enum").and_then(Value::as_array_mut) {
                let encoded = texts.iter().filter_map(Value::as_str).map(|text| encoding.apply(text).into());
                *texts = encoded.collect();
            }
            Some(((*name).to_owned(), schema))
        });
        own.collect()
    }

    /// The schema of what a dead letter has in addition; none if its headers are those of any event.
    pub(super) fn dead_letter_headers(&self, normalizer: &Normalizer) -> Option<Value> {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for (name, content) in &self.headers {
            let Content::Attribute(attribute, encoding) = content else { continue };
            if !Attribute::OF_DEAD_LETTERS.contains(attribute) {
                continue;
            }
            let schema = of_attribute(*attribute, *encoding, attribute_schema(*attribute, normalizer, None, None));
            properties.insert((*name).to_owned(), schema);
            if ALWAYS_IN_DEAD_LETTERS.contains(attribute) {
                required.push(*name);
            }
        }
        let schema = json!({ "properties": properties, "required": required });
        (!properties.is_empty()).then_some(schema)
    }
}

/// The attributes that every dead letter has, and no other event.
pub(super) const ALWAYS_IN_DEAD_LETTERS: [Attribute; 2] = [Attribute::DlqReason, Attribute::DlqAttempts];

impl Content {
    fn is_of_dead_letters(&self) -> bool {
        matches!(self, Content::Attribute(attribute, _) if Attribute::OF_DEAD_LETTERS.contains(attribute))
    }
}

/// What a schema is about: an event type of the catalogue, or all other types of a dialect.
#[derive(Debug)]
pub(super) struct Subject<'n> {
    pub(super) normalizer: &'n Normalizer,
    pub(super) event: Option<&'n EventType>,
    pub(super) dialect: Dialect,
    /// Every `type` of the dialect that the catalogue knows.
    pub(super) known_types: Vec<String>,
}

impl Subject<'_> {
    /// The schema of an attribute, if it differs from that of any event.
    pub(super) fn own_schema(&self, attribute: Attribute) -> Option<Value> {
        if attribute == Attribute::Type && self.event.is_none() {
            return Some(json!({ "not": { "enum": self.known_types } }));
        }
        let own = attribute_schema(attribute, self.normalizer, self.event, Some(self.dialect));
        (own != attribute_schema(attribute, self.normalizer, None, None)).then_some(own)
    }
}

/// The schema of a header that holds an attribute.
fn of_attribute(attribute: Attribute, encoding: Encoding, mut schema: Value) -> Value {
    let mut description = sentence(attribute.description());
    if encoding == Encoding::Percent {
        if let Some(schema) = schema.as_object_mut() {
            // It counts bytes before they are encoded.
            schema.remove("maxLength");
        }
        if schema.get("minLength").is_some() {
            description.push_str(" Percent-encoded.");
        }
    }
    schema["description"] = description.into();
    schema
}
