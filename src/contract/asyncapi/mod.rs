//! An AsyncAPI 3.0.0 document of a configuration: where subscribers find which events, and what these look like.
//!
//! * A server is an output that has a bus. A channel is a topic template of an output. Its messages are the events that can
//!   arrive there by the routes ([`super::reach`]).
//! * Every record that the bridge sends fits one message of its channel and no other, by headers and payload. An exception
//!   are events with a value that does not fit its type: see [`super::of_event`].
//! * Everything is derived: the messages from routes and catalogue, the headers from what the outputs render (`layout`).
//! * It has no secrets.
//!
//! AsyncAPI's schemas are those of JSON Schema draft 7 with additions. There, keywords next to `$ref` are ignored.

mod layout;
mod names;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::reach::{self, Channel, Type};
use super::schema::{Definitions, RECORDED, attribute_schema, envelope};
use crate::common::text::sentence;
use crate::dialect::{EventType, Normalizer, Origin, SAMPLES};
use crate::event::{Attribute, Event, Mode};
use crate::output::{Bus, CheckedOutput, Record, TopicRule};
use crate::route::{ABSENT, Destination, MAX_KEY_BYTES, MAX_TOPIC_VALUE_BYTES, Template, Values};
use crate::service::Settings;
use layout::{ALWAYS_IN_DEAD_LETTERS, Layout, Subject};
use names::Components;

const SCHEMAS: &str = "#/components/schemas/";

const DESCRIPTION: &str = "\
The events that this bridge publishes: callbacks of Alibaba's ApsaraVideo VOD and Intelligent Media Services (IMS) as \
CloudEvents 1.0.

* An event arrives at least once, unless its server says otherwise. Repeats have the same `source` and `id`.
* Fields of `data` that the schemas do not list can occur, and any field can be missing. New event types can occur. \
Ignore what you do not know.
* A value that does not fit its type is published as it came. Such an event does not fit its schema.
* The bridge sends. A subscriber generates its code with the action `receive`.";

/// The document of a configuration.
pub fn asyncapi(settings: &Settings) -> Value {
    let normalizer = Normalizer::new(settings.catalogue.clone(), settings.type_prefix.clone());
    let mut document = Document::new(&normalizer);
    let mut channels = Components::default();
    let mut operations = Map::new();
    let output = |name: &str| settings.outputs.iter().find(|output| output.name == name);
    let mode = |to: &Destination| {
        output(&to.output).map_or_else(Mode::default, |output| Layout::of(&*output.settings, to.mode).mode)
    };
    for channel in reach::channels(settings, &normalizer, mode) {
        // Routes only name outputs that exist.
        let Some(output) = output(channel.output) else { continue };
        let Some(bus) = output.settings.bus() else { continue };
        let has_topics = !matches!(output.rules.topic, TopicRule::None(_));
        let name = if has_topics { format!("{}.{}", output.name, channel.topic) } else { output.name.clone() };
        let key = channels.add(&name, document.channel(output, &bus, &channel, has_topics));
        let mut operation = json!({
            "action": "send",
            "channel": { "$ref": format!("#/channels/{key}") },
            "summary": "The bridge sends events to this channel. A subscriber receives them.",
        });
        if let Some(bindings) = bus.operation_bindings {
            operation["bindings"] = bindings;
        }
        operations.insert(format!("send.{key}"), operation);
    }
    let mut json = json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Events of apsara-bridge",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": { "name": env!("CARGO_PKG_LICENSE") },
        },
        "defaultContentType": "application/cloudevents+json",
        "servers": servers(&settings.outputs),
        "channels": channels.into_json(),
        "operations": operations,
        "components": { "schemas": document.schemas(), "messages": document.messages.into_json() },
    });
    for_draft_7(&mut json["components"]["schemas"], &document.object_keys);
    json
}

/// The outputs that subscribers can connect to.
fn servers(outputs: &[CheckedOutput]) -> Map<String, Value> {
    let servers = outputs.iter().filter_map(|output| {
        let bus = output.settings.bus()?;
        let mut notes = vec![format!("The output `{}` of the bridge.", output.name)];
        let mut server = json!({ "protocol": bus.protocol });
        match bus.hosts.as_slice() {
            [host] => server["host"] = host.as_str().into(),
            hosts => {
                notes.push("The bridge knows several addresses of it.".to_owned());
                server["host"] = "{host}".into();
                server["variables"] = json!({
                    "host": { "enum": hosts, "default": hosts.first(), "description": "One of the addresses." },
                });
            }
        }
        notes.extend(bus.notes);
        server["description"] = notes.join(" ").into();
        Some((output.name.clone(), server))
    });
    servers.collect()
}

/// The parts of a document that channels share.
struct Document<'s> {
    normalizer: &'s Normalizer,
    definitions: Definitions<'s>,
    schemas: Components,
    /// The schemas of the envelope and of `data` by their type.
    by_type: BTreeMap<Type, (String, String)>,
    /// The keys of the schemas of objects by the names of the objects.
    object_keys: BTreeMap<String, String>,
    messages: Components,
    /// The events of the samples by the position of their type.
    samples: BTreeMap<usize, Vec<Event>>,
}

impl<'s> Document<'s> {
    fn new(normalizer: &'s Normalizer) -> Document<'s> {
        let mut samples: BTreeMap<usize, Vec<Event>> = BTreeMap::new();
        for (_, body) in SAMPLES {
            let Ok(normalized) = normalizer.normalize(body, &Origin::at(RECORDED)) else { continue };
            if let Some(index) = normalized.event_type {
                samples.entry(index).or_default().push(normalized.event);
            }
        }
        Document {
            normalizer,
            definitions: Definitions::new(normalizer, SCHEMAS),
            schemas: Components::default(),
            by_type: BTreeMap::new(),
            object_keys: BTreeMap::new(),
            messages: Components::default(),
            samples,
        }
    }

    /// All schemas. Those of objects get keys that no other schema has.
    fn schemas(&mut self) -> Map<String, Value> {
        for (name, schema) in std::mem::take(&mut self.definitions.schemas) {
            let key = self.schemas.add(&name, schema);
            self.object_keys.insert(format!("{SCHEMAS}{name}"), format!("{SCHEMAS}{key}"));
        }
        std::mem::take(&mut self.schemas).into_json()
    }

    fn channel(&mut self, output: &CheckedOutput, bus: &Bus, channel: &Channel<'_>, has_topics: bool) -> Value {
        let mut notes = Vec::new();
        if !channel.routes.is_empty() {
            let routes: Vec<String> = channel.routes.iter().map(|route| format!("`{route}`")).collect();
            let noun = if routes.len() == 1 { "the route" } else { "the routes" };
            notes.push(format!("Events by {noun} {}.", routes.join(", ")));
        }
        if channel.arrivals.iter().any(|arrivals| arrivals.are_dead_letters) {
            notes.push(
                "Dead letters: events that could not be published, that no route matches, or that a route sends here, with the reason in `dlqreason`."
                    .to_owned(),
            );
        }
        let mut messages = Map::new();
        for arrivals in &channel.arrivals {
            let layout = Layout::of(&*output.settings, Some(arrivals.mode));
            // A message must differ from every other message of its channel.
            let others = channel.arrivals.iter().filter(|other| other.are_dead_letters != arrivals.are_dead_letters);
            let is_among_others = others.count() > 0;
            for (r#type, keys) in &arrivals.types {
                let form = Form {
                    output,
                    bus,
                    layout: &layout,
                    keys,
                    is_dead_letter: arrivals.are_dead_letters,
                    is_among_others,
                };
                let key = self.message(&form, *r#type);
                messages.insert(key.clone(), json!({ "$ref": format!("#/components/messages/{key}") }));
            }
        }
        let mut json = json!({
            "address": has_topics.then(|| channel.topic.to_string()),
            "description": notes.join(" "),
            "servers": [{ "$ref": format!("#/servers/{}", output.name) }],
            "messages": messages,
        });
        if let Some(bindings) = &bus.channel_bindings {
            json["bindings"] = bindings.clone();
        }
        if has_topics && !channel.parameters.is_empty() {
            let parameters = channel.parameters.iter().map(|(attribute, values)| {
                let values = values.as_ref().map(|values| values.iter().map(String::as_str).collect());
                (attribute.name().to_owned(), self.parameter(*attribute, values))
            });
            json["parameters"] = Value::Object(parameters.collect());
        }
        json
    }

    /// A parameter of a topic. `values` are those that can be inserted, if no sender can add one.
    fn parameter(&self, attribute: Attribute, values: Option<Vec<&str>>) -> Value {
        let mut description = format!("The attribute `{attribute}`: {}.", attribute.description());
        let mut parameter = Map::new();
        match values {
            Some(values) => drop(parameter.insert("enum".to_owned(), values.into())),
            None => {
                description.push_str(&format!(
                    " Characters other than letters, digits, `-` and `_` are replaced by `_`, and the value is cut at \
                     {MAX_TOPIC_VALUE_BYTES} characters. `{ABSENT}` if the event does not have it."
                ));
                let known = Values::of(attribute, self.normalizer.catalogue(), self.normalizer.type_prefix());
                if let Values::Known(_) = known {
                    description.push_str(" Its values are not a closed list.");
                }
            }
        }
        parameter.insert("description".to_owned(), description.into());
        Value::Object(parameter)
    }

    /// Adds a message. Returns its key.
    fn message(&mut self, form: &Form<'_>, r#type: Type) -> String {
        let subject = self.subject(r#type);
        let name = subject.event.map_or("unknown", |event| &event.name);
        let (envelope, data) = self.schemas_of(r#type, &subject);
        let payload = match (form.layout.mode, form.is_dead_letter, form.is_among_others) {
            (Mode::Binary, ..) => reference(&data),
            (Mode::Structured, true, _) => {
                let letter = self.dead_letter_schema();
                json!({ "allOf": [reference(&envelope), reference(&letter)] })
            }
            (Mode::Structured, false, true) => {
                json!({ "allOf": [reference(&envelope), { "not": { "required": [Attribute::DlqReason.name()] } }] })
            }
            (Mode::Structured, false, false) => reference(&envelope),
        };
        let prefix = self.normalizer.type_prefix();
        let (type_name, title) = match subject.event {
            Some(event) => (format!("{prefix}{}", event.name), format!("{} {}", event.dialect, event.name)),
            None => (format!("{prefix}*"), format!("{} event of an unknown type", r#type.dialect)),
        };
        let mut message = json!({
            "name": type_name,
            "title": if form.is_dead_letter { format!("dead letter: {title}") } else { title },
            "contentType": form.layout.content_type(),
            "payload": payload,
        });
        match subject.event {
            Some(event) => describe(event, &mut message),
            None => {
                message["summary"] = "An event whose type the catalogue of the bridge does not know.".into();
            }
        }
        if let Some(headers) = self.headers(form, &subject) {
            message["headers"] = headers;
        }
        let key_schema = if form.output.rules.has_keys { form.key_schema() } else { Value::Null };
        if let Some(bindings) = (form.bus.message_bindings)(&key_schema) {
            message["bindings"] = bindings;
        }
        let sample = r#type.known.and_then(|index| self.samples.get(&index)?.first());
        if let Some(sample) = sample.filter(|_| !form.is_dead_letter) {
            message["examples"] = json!([form.example(sample)]);
        }
        self.messages.add(&format!("{}.{}.{name}", form.name(), r#type.dialect), message)
    }

    fn subject(&self, r#type: Type) -> Subject<'s> {
        let catalogue = self.normalizer.catalogue();
        let events = catalogue.events().iter().filter(|event| event.dialect == r#type.dialect);
        let names = events.map(|event| format!("{}{}", self.normalizer.type_prefix(), event.name));
        Subject {
            normalizer: self.normalizer,
            event: r#type.known.map(|index| &catalogue.events()[index]),
            dialect: r#type.dialect,
            known_types: if r#type.known.is_none() { names.collect() } else { Vec::new() },
        }
    }

    /// Adds the schemas of the envelope and of `data`. Returns their keys.
    fn schemas_of(&mut self, r#type: Type, subject: &Subject<'_>) -> (String, String) {
        if let Some(keys) = self.by_type.get(&r#type) {
            return keys.clone();
        }
        let data = match subject.event {
            Some(event) => {
                let samples = r#type.known.and_then(|index| self.samples.get(&index));
                let samples = samples.into_iter().flatten();
                let samples: Vec<Value> =
                    samples.filter_map(|event| serde_json::from_slice(&event.to_json()).ok()).collect();
                self.definitions.data(event, &samples)
            }
            None => {
                json!({ "type": "object", "description": "The callback's own content.", "additionalProperties": true })
            }
        };
        let name = format!("{}.{}", r#type.dialect, subject.event.map_or("unknown", |event| &event.name));
        let data = self.schemas.add(&format!("{name}.data"), data);
        let any = self.any_event();
        let own = Attribute::ALL.iter().filter_map(|attribute| {
            let schema = subject.own_schema(*attribute)?;
            Some((attribute.name().to_owned(), schema))
        });
        let mut properties: Map<String, Value> = own.collect();
        properties.insert("data".to_owned(), reference(&data));
        let mut schema = json!({ "type": "object", "allOf": [reference(&any)], "properties": properties });
        if let Some(event) = subject.event {
            schema["description"] = event.description.as_str().into();
        }
        let envelope = self.schemas.add(&name, schema);
        self.by_type.insert(r#type, (envelope.clone(), data.clone()));
        (envelope, data)
    }

    /// The envelope of any event that is not a dead letter.
    fn any_event(&mut self) -> String {
        let mut schema = envelope(self.normalizer, None, None, json!({ "type": "object" }));
        if let Some(properties) = schema["properties"].as_object_mut() {
            properties.retain(|name, _| Attribute::OF_DEAD_LETTERS.iter().all(|attribute| attribute.name() != name));
        }
        schema["description"] = "What every event has, whatever its type.".into();
        self.schemas.add("event", schema)
    }

    /// What a dead letter has in addition.
    fn dead_letter_schema(&mut self) -> String {
        let properties = Attribute::OF_DEAD_LETTERS.iter().map(|attribute| {
            let mut schema = attribute_schema(*attribute, self.normalizer, None, None);
            schema["description"] = sentence(attribute.description()).into();
            (attribute.name().to_owned(), schema)
        });
        let schema = json!({
            "type": "object",
            "description": "What a dead letter has in addition to its event.",
            "properties": properties.collect::<Map<String, Value>>(),
            "required": ALWAYS_IN_DEAD_LETTERS.map(Attribute::name),
        });
        self.schemas.add("dead-letter", schema)
    }

    /// The schema of the headers of a message; none if it has none.
    fn headers(&mut self, form: &Form<'_>, subject: &Subject<'_>) -> Option<Value> {
        let any = form.layout.headers(form.bus, self.normalizer)?;
        let any = self.schemas.add(&format!("{}.{}.headers", form.output.kind, form.layout.mode.as_str()), any);
        let mut parts = vec![reference(&any)];
        if let Some(letter) = form.layout.dead_letter_headers(self.normalizer) {
            if form.is_dead_letter {
                parts.push(reference(&self.schemas.add(&format!("{}.headers", form.name()), letter)));
            } else if form.is_among_others {
                parts.push(json!({ "not": { "required": letter["required"] } }));
            }
        }
        let own = form.layout.own_headers(subject);
        if own.is_empty() && parts.len() == 1 {
            return Some(reference(&any));
        }
        let mut headers = json!({ "type": "object", "allOf": parts });
        if !own.is_empty() {
            headers["properties"] = own.into();
        }
        Some(headers)
    }
}

/// The form in which an event arrives at a channel.
struct Form<'a> {
    output: &'a CheckedOutput,
    bus: &'a Bus,
    layout: &'a Layout,
    /// The templates of its key.
    keys: &'a [&'a Template],
    is_dead_letter: bool,
    /// Whether both dead letters and other events arrive. A message must differ from every other message of its channel.
    is_among_others: bool,
}

impl Form<'_> {
    fn name(&self) -> String {
        let letter = if self.is_dead_letter { ".dead-letter" } else { "" };
        format!("{}.{}{letter}", self.output.kind, self.layout.mode.as_str())
    }

    /// The schema of the key of a record.
    fn key_schema(&self) -> Value {
        if let [template] = self.keys
            && template.attributes().next().is_none()
            && !self.is_dead_letter
        {
            return json!({ "type": "string", "const": template.to_string() });
        }
        let templates: Vec<String> = self.keys.iter().map(|template| format!("`{template}`")).collect();
        let mut description = format!(
            "{}, with the values of the attributes in braces, cut at {MAX_KEY_BYTES} bytes. An event that has none of them \
             has no key.",
            templates.join(" or ")
        );
        if self.is_dead_letter {
            description
                .push_str(" If its destination did not accept the event, the key is the one for this destination.");
        }
        json!({ "type": "string", "description": description })
    }

    /// A sample as it is sent.
    fn example(&self, event: &Event) -> Value {
        let record =
            Record { event: Arc::new(event.clone()), topic: String::new(), key: None, mode: Some(self.layout.mode) };
        let rendered = self.output.settings.render(&record);
        let headers = rendered.headers.iter().filter(|(name, _)| self.layout.follows_from_event(name));
        let headers: Map<String, Value> =
            headers.map(|(name, value)| ((*name).to_owned(), value.as_ref().into())).collect();
        let payload: Value = serde_json::from_slice(&rendered.payload).unwrap_or_default();
        let mut example = json!({ "payload": payload });
        if !headers.is_empty() {
            example["headers"] = headers.into();
        }
        example
    }
}

fn describe(event: &EventType, message: &mut Value) {
    message["summary"] = event.description.as_str().into();
    let notes = [event.when.as_str()].into_iter().chain(event.notes.iter().map(String::as_str));
    let description = notes.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ");
    if !description.is_empty() {
        message["description"] = description.into();
    }
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("{SCHEMAS}{schema}") })
}

/// Rewrites schemas for draft 7, which ignores what is next to a `$ref`. References to objects get the keys of these.
fn for_draft_7(json: &mut Value, keys: &BTreeMap<String, String>) {
    match json {
        Value::Object(members) => {
            if let Some(Value::String(target)) = members.get_mut("$ref") {
                if let Some(key) = keys.get(target) {
                    target.clone_from(key);
                }
                if members.len() > 1
                    && let Some(reference) = members.remove("$ref")
                {
                    members.insert("allOf".to_owned(), json!([{ "$ref": reference }]));
                }
            }
            for (keyword, schema) in members {
                if !matches!(keyword.as_str(), "examples" | "enum" | "const") {
                    for_draft_7(schema, keys);
                }
            }
        }
        Value::Array(schemas) => schemas.iter_mut().for_each(|schema| for_draft_7(schema, keys)),
        _ => {}
    }
}
