//! What subscribers get: the schemas, the reference and the catalogue agree with each other and with every sample.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::LazyLock;

use apsara_bridge::contract;
use apsara_bridge::dialect::{Catalogue, Dialect, EventType, Normalizer, Origin, SAMPLES, Status};
use apsara_bridge::event::json::Json;
use apsara_bridge::event::{Attribute, DEFAULT_TYPE_PREFIX, Event};
use bumpalo::Bump;
use serde_json::{Map, Value, json};
use time::macros::datetime;

use crate::support::judges::{ajv, jsonschema_errors};
use crate::support::{generated, repository};

/// The committed schemas, so that a subscriber needs no program.
const SCHEMAS: &str = "docs/schemas";

static NORMALIZER: LazyLock<Normalizer> =
    LazyLock::new(|| Normalizer::new(Catalogue::built_in().expect("valid"), DEFAULT_TYPE_PREFIX));

fn events() -> &'static [EventType] {
    NORMALIZER.catalogue().events()
}

/// A sample, with the event type that it is of.
struct Sample {
    name: &'static str,
    body: &'static [u8],
    entry: &'static EventType,
    event: Event,
}

impl Sample {
    fn envelope(&self) -> Value {
        serde_json::from_slice(&self.event.to_json()).expect("JSON")
    }
}

fn samples() -> Vec<Sample> {
    let origin = Origin::at(datetime!(2026-01-02 03:04:05.678 UTC));
    let read = |(name, body): &(&'static str, &'static [u8])| {
        let normalized = NORMALIZER.normalize(body, &origin).expect("a callback");
        let entry = &events()[normalized.event_type.unwrap_or_else(|| panic!("{name} is of no known type"))];
        Sample { name, body, entry, event: normalized.event }
    };
    SAMPLES.iter().map(read).collect()
}

fn samples_of(entry: &EventType) -> Vec<Sample> {
    samples().into_iter().filter(|sample| std::ptr::eq(sample.entry, entry)).collect()
}

#[test]
fn every_event_type_has_a_sample_and_is_described() {
    let with_sample: BTreeSet<(Dialect, &str)> =
        samples().iter().map(|sample| (sample.entry.dialect, sample.entry.name.as_str())).collect();
    let mut missing = String::new();
    for entry in events() {
        let mut miss = |what: &str| writeln!(missing, "{} {}: {what}", entry.dialect, entry.name).expect("a String");
        if !with_sample.contains(&(entry.dialect, entry.name.as_str())) {
            miss("no sample");
        }
        for (what, text) in [("description", &entry.description), ("when", &entry.when), ("source", &entry.source)] {
            if text.is_empty() {
                miss(what);
            }
        }
        for row in NORMALIZER.catalogue().rows(entry) {
            if row.field.description.is_empty() && !row.path.ends_with("(others)") {
                miss(&format!("no description of {}", row.path));
            }
        }
        for word in &entry.status.sent {
            let own = entry.status.words.iter().any(|(own, _)| own.eq_ignore_ascii_case(word));
            if !own && NORMALIZER.catalogue().word(word).is_none() {
                miss(&format!("the outcome of `{word}` is not known"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing}");
}

#[test]
fn generated_every_event_type_has_its_schema_in_a_file() {
    let mut files = BTreeSet::new();
    let mut check = |name: &str, schema: &Value| {
        jsonschema::draft202012::meta::validate(schema).unwrap_or_else(|error| panic!("{name}: {error}"));
        std::fs::create_dir_all(repository(SCHEMAS).join(name).parent().expect("a folder")).expect("created");
        generated::check(&format!("{SCHEMAS}/{name}"), &format!("{schema:#}\n"));
        files.insert(name.to_owned());
    };
    check("event.json", &contract::general(&NORMALIZER, None));
    for entry in events() {
        check(&format!("{}/{}.json", entry.dialect, entry.name), &contract::of_event(&NORMALIZER, entry));
    }
    for dialect in Dialect::ALL {
        for file in std::fs::read_dir(repository(SCHEMAS).join(dialect.as_str())).expect("the schemas") {
            let name = file.expect("a file").file_name().to_string_lossy().into_owned();
            assert!(files.contains(&format!("{dialect}/{name}")), "{SCHEMAS}/{dialect}/{name} is of no event type");
        }
    }
}

/// What both validators say about documents: for each of them whether it is valid.
fn verdicts(schema: &Value, documents: &[Value]) -> Vec<(Option<String>, Option<String>)> {
    jsonschema_errors(schema, documents).into_iter().zip(ajv(schema, documents)).collect()
}

#[test]
fn the_envelope_of_every_sample_fits_its_schema() {
    let general = contract::general(&NORMALIZER, None);
    let all: Vec<Value> = samples().iter().map(Sample::envelope).collect();
    for (envelope, verdict) in all.iter().zip(verdicts(&general, &all)) {
        assert_eq!(verdict, (None, None), "{envelope}");
    }
    for entry in events() {
        let samples = samples_of(entry);
        let schema = contract::of_event(&NORMALIZER, entry);
        let envelopes: Vec<Value> = samples.iter().map(Sample::envelope).collect();
        for (sample, verdict) in samples.iter().zip(verdicts(&schema, &envelopes)) {
            assert_eq!(verdict, (None, None), "{}", sample.name);
        }
        for envelope in &envelopes {
            assert_eq!(envelope["dataschema"], schema["$id"]);
        }
        // In binary mode, `data` travels alone.
        let data: Vec<Value> = envelopes.iter().map(|envelope| envelope["data"].clone()).collect();
        let mut alone = json!({ "$schema": schema["$schema"], "$ref": "#/$defs/data" });
        alone["$defs"] = schema["$defs"].clone();
        assert!(jsonschema_errors(&alone, &data).iter().all(Option::is_none), "{}", entry.name);
    }
    let both = contract::of_events(
        &NORMALIZER,
        &NORMALIZER.catalogue().named("SnapshotComplete", None).expect("in both dialects"),
    );
    let of_both: Vec<Value> =
        samples().iter().filter(|sample| sample.entry.name == "SnapshotComplete").map(Sample::envelope).collect();
    assert!(of_both.len() >= 2);
    assert!(verdicts(&both, &of_both).iter().all(|verdict| *verdict == (None, None)));
    assert!(verdicts(&both, &all[..1]).iter().all(|verdict| verdict.0.is_some() && verdict.1.is_some()));
}

/// Changes that make an envelope wrong, each with its name.
fn wrong(envelope: &Value, schema: &Value) -> Vec<(String, Value)> {
    let mut wrong = Vec::new();
    let mut change = |name: String, pointer: &str, value: Value| {
        let mut changed = envelope.clone();
        *changed.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} of {envelope}")) = value;
        wrong.push((name, changed));
    };
    for (name, value) in [
        ("specversion", json!("0.3")),
        ("id", json!("1")),
        ("source", json!("acs:mps")),
        ("type", json!("com.aliyun.media.Other")),
        ("dataschema", json!("urn:apsara-bridge:schema:vod:Other:1")),
        ("dialect", json!("mps")),
        ("status", json!("failed")),
        ("recordedtime", json!("yesterday")),
        ("data", json!("{}")),
        ("datacontenttype", json!("text/plain")),
    ] {
        change(format!("{name} is {value}"), &format!("/{name}"), value);
    }
    // Every value whose schema has a type, as a value of another type.
    let mut places = Vec::new();
    typed_places(&envelope["data"], &schema["$defs"]["data"], schema, "/data", &mut places);
    for (pointer, kind) in places {
        let value = if kind == "string" { json!(7) } else { json!("text") };
        change(format!("{pointer} is {value} instead of {kind}"), &pointer, value);
    }
    for name in schema["required"].as_array().expect("a list") {
        let mut changed = envelope.clone();
        changed.as_object_mut().expect("an object").remove(name.as_str().expect("a name"));
        wrong.push((format!("{name} is missing"), changed));
    }
    wrong
}

/// The values of `data` whose schema has a type, and that type.
fn typed_places(value: &Value, schema: &Value, root: &Value, pointer: &str, places: &mut Vec<(String, String)>) {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => &root["$defs"][reference.strip_prefix("#/$defs/").expect("a definition")],
        None => schema,
    };
    let Some(kind) = schema["type"].as_str() else { return };
    if pointer != "/data" {
        places.push((pointer.to_owned(), kind.to_owned()));
    }
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let schema = schema["properties"].get(name).unwrap_or(&schema["additionalProperties"]);
                let name = name.replace('~', "~0").replace('/', "~1");
                typed_places(member, schema, root, &format!("{pointer}/{name}"), places);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                typed_places(item, &schema["items"], root, &format!("{pointer}/{index}"), places);
            }
        }
        _ => {}
    }
}

#[test]
fn an_envelope_with_one_mistake_does_not_fit_its_schema() {
    let mut tried = 0;
    for entry in events() {
        let schema = contract::of_event(&NORMALIZER, entry);
        let wrong: Vec<(String, Value)> =
            samples_of(entry).iter().flat_map(|sample| wrong(&sample.envelope(), &schema)).collect();
        let documents: Vec<Value> = wrong.iter().map(|(_, document)| document.clone()).collect();
        for ((name, document), (ours, theirs)) in wrong.iter().zip(verdicts(&schema, &documents)) {
            assert!(ours.is_some(), "jsonschema accepts {} {}: {name}\n{document}", entry.dialect, entry.name);
            assert!(theirs.is_some(), "Ajv accepts {} {}: {name}\n{document}", entry.dialect, entry.name);
        }
        tried += wrong.len();
    }
    assert!(tried > 1500, "only {tried} mistakes were tried");
}

/// A schema that allows only the fields it names.
fn closed(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if members.get("additionalProperties") == Some(&json!(true)) {
                members.insert("additionalProperties".to_owned(), json!(false));
            }
            members.values_mut().for_each(closed);
        }
        Value::Array(items) => items.iter_mut().for_each(closed),
        _ => {}
    }
}

#[test]
fn every_field_of_every_sample_is_in_the_catalogue() {
    for entry in events() {
        let mut schema = contract::of_event(&NORMALIZER, entry);
        closed(&mut schema);
        for sample in samples_of(entry) {
            let errors = jsonschema_errors(&schema, &[sample.envelope()]);
            assert_eq!(errors, [None], "{}", sample.name);
        }
    }
}

/// The places of all values in a callback: names joined by dots, `[]` for the items of an array. JSON inside strings is
/// looked into.
fn places(json: &Json<'_>, place: &str, out: &mut BTreeSet<String>) {
    match json {
        Json::Object(members) => {
            for (key, value) in *members {
                let dot = if place.is_empty() { "" } else { "." };
                let inner = format!("{place}{dot}{}", key.trim());
                out.insert(inner.clone());
                places(value, &inner, out);
            }
        }
        Json::Array(items) => items.iter().for_each(|item| places(item, &format!("{place}[]"), out)),
        Json::String(text) if text.trim_start().starts_with(['{', '[']) => {
            if let Ok(inner) = Json::parse(text.trim().as_bytes(), &Bump::new()) {
                places(&inner, place, out);
            }
        }
        _ => {}
    }
}

/// All places that an origin such as `A or B[].C` stands for.
fn origins(origin: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    for part in origin.split('.') {
        let (names, array) = part.strip_suffix("[]").map_or((part, ""), |names| (names, "[]"));
        let dotted = |all: &String, name: &str| format!("{all}{}{name}{array}", if all.is_empty() { "" } else { "." });
        all = names.split(" or ").flat_map(|name| all.iter().map(move |all| dotted(all, name))).collect();
    }
    all
}

/// The names in the column "from" of the reference must be those that really arrive.
#[test]
fn the_catalogue_names_every_field_of_a_sample_as_alibaba_does() {
    // They become attributes or `error`, or their content is the customer's.
    let elsewhere = ["EventType", "EventTime", "UserId", "MessageBody", "ErrorCode", "ErrorMessage", "error_info"];
    let mut unnamed = BTreeSet::new();
    for sample in samples() {
        let mut found = BTreeSet::new();
        places(&Json::parse(sample.body, &Bump::new()).expect("JSON"), "", &mut found);
        let rows = NORMALIZER.catalogue().rows(sample.entry);
        let known: BTreeSet<String> = rows.iter().flat_map(|row| origins(&row.origin)).collect();
        let opaque: Vec<String> = rows
            .iter()
            .filter(|row| {
                ["verbatim", "json", "any", "id"].contains(&row.field.type_name.as_str()) || row.path.contains("{}")
            })
            .flat_map(|row| origins(row.origin.split("{}").next().expect("a part")))
            .collect();
        for place in found {
            let last = place.rsplit('.').next().expect("a name");
            let is_inside = opaque
                .iter()
                .any(|opaque| place.starts_with(&format!("{opaque}.")) || place.starts_with(&format!("{opaque}[]")));
            // The object of fields that move to the top level has no row of its own.
            let has_fields = known.iter().any(|known| known.starts_with(&format!("{place}.")));
            if !elsewhere.contains(&last) && !is_inside && !has_fields && !known.contains(&place) {
                unnamed.insert(format!("{}: {place}", sample.name));
            }
        }
    }
    let unnamed: Vec<String> = unnamed.into_iter().collect();
    assert!(unnamed.is_empty(), "the catalogue does not have these names:\n{}", unnamed.join("\n"));
}

#[test]
fn generated_the_reference_has_every_event() {
    generated::check_part("docs/events.md", &reference());
}

/// The generated part of docs/events.md.
fn reference() -> String {
    let mut text = String::new();
    text.push_str("## Index\n\n| event | reports |\n|---|---|\n");
    for entry in events() {
        let heading = heading(entry);
        let anchor = heading.to_lowercase().replace(' ', "-");
        let _ = writeln!(text, "| [{heading}](#{anchor}) | {} |", entry.description);
    }
    text.push_str("\n## What differs between the dialects\n\n| fact | VOD | IMS | why |\n|---|---|---|---|\n");
    for row in NORMALIZER.catalogue().differences() {
        let _ = writeln!(text, "| {} | {} | {} | {} |", row.fact, row.vod, row.ims, row.why);
    }
    for (dialect, product) in [(Dialect::Vod, "ApsaraVideo VOD"), (Dialect::Ims, "Intelligent Media Services (IMS)")] {
        let _ = writeln!(text, "\n## Events of {product}");
        events().iter().filter(|entry| entry.dialect == dialect).for_each(|entry| push_event(&mut text, entry));
    }
    text.push('\n');
    text
}

fn heading(entry: &EventType) -> String {
    format!("{} {}", entry.dialect, entry.name)
}

fn push_event(text: &mut String, entry: &EventType) {
    let _ = write!(text, "\n### {}\n\n{}\n\n**When:** {}\n", heading(entry), entry.description, entry.when);
    if !entry.notes.is_empty() {
        text.push('\n');
        entry.notes.iter().for_each(|note| {
            let _ = writeln!(text, "- {note}");
        });
    }
    text.push_str("\n| | |\n|---|---|\n");
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "| {name} | {value} |");
    };
    let names = |paths: Vec<String>| paths.iter().map(|path| format!("`{path}`")).collect::<Vec<_>>().join(", else ");
    row(
        "`subject`",
        match entry.subject.is_empty() {
            true => "the first of the ids that it has".to_owned(),
            false => names(entry.subject.iter().map(ToString::to_string).collect()),
        },
    );
    row("`status`", statuses(entry));
    if !entry.verdict.is_empty() {
        let paths: Vec<String> = entry.verdict.iter().map(|path| format!("`{path}`")).collect();
        row("`verdict`", format!("the worst of {}", paths.join(", ")));
    }
    if !entry.aliases.is_empty() {
        row("also sent as", entry.aliases.join(", "));
    }
    row("rests on", entry.source.clone());
    row("schema", format!("[{0}/{1}.json](schemas/{0}/{1}.json)", entry.dialect, entry.name));
    text.push_str("\n| field of `data` | type | unit | from | |\n|---|---|---|---|---|\n");
    for row in NORMALIZER.catalogue().rows(entry) {
        let field = row.field;
        let unit = field.unit_for_readers();
        let mut description = field.description.clone();
        if !field.values.is_empty() {
            let values: Vec<String> = field.values.iter().map(|value| format!("`{value}`")).collect();
            let _ = write!(description, " Known values: {}.", values.join(", "));
        }
        if field.loose {
            description.push_str(" Other forms occur.");
        }
        let (path, kind) = (row.path.replace("(others)", "…"), field.type_for_readers());
        let origin = row.origin.replace("(others)", "…").replace("MessageBody.", "");
        let description = description.replace('|', "\\|");
        let _ = writeln!(text, "| `{path}` | {kind} | {unit} | `{origin}` | {} |", description.trim());
    }
    let samples = samples_of(entry);
    let is_success = |sample: &&Sample| sample.event.get(Attribute::Status) == Some(Status::Success.as_str());
    let sample = samples.iter().find(is_success).or(samples.first()).expect("every event type has a sample");
    let origin = match sample.name.ends_with("-built") {
        true => "built from the list of fields, because no sample of Alibaba is known",
        false => "from Alibaba's pages",
    };
    let (callback, envelope) = (pretty(sample.body), pretty(&sample.event.to_json()));
    let _ = write!(
        text,
        "\n<details><summary>A callback ({origin}) and its event</summary>\n\n```json\n{callback}\n```\n\n```json\n{envelope}\n```\n\n</details>\n",
    );
}

fn pretty(json: &[u8]) -> String {
    let mut out = Vec::new();
    Json::parse_within(json, usize::MAX, &Bump::new()).expect("JSON").write_pretty(0, &mut out);
    String::from_utf8(out).expect("UTF-8")
}

/// Where the status comes from, with the meaning of each of Alibaba's words.
fn statuses(entry: &EventType) -> String {
    let rule = &entry.status;
    let meaning = |word: &String| {
        let own = rule.words.iter().find(|(own, _)| own.eq_ignore_ascii_case(word)).map(|(_, status)| *status);
        let status = own.or_else(|| NORMALIZER.catalogue().word(word)).expect("another test checks it");
        format!("`{word}` is {}", status.as_str())
    };
    let words: Vec<String> = rule.sent.iter().map(meaning).collect();
    let mut text = match words.is_empty() {
        true => format!("the word in `{}`", rule.field),
        false => format!("the word in `{}`: {}", rule.field, words.join(", ")),
    };
    rule.also.iter().for_each(|field| {
        let _ = write!(text, "; the worse of it and `{field}`");
    });
    let assumed: Vec<String> = rule
        .words
        .iter()
        .filter(|(word, _)| !rule.sent.contains(word))
        .map(|(word, status)| format!("`{word}` is {}", status.as_str()))
        .collect();
    if !assumed.is_empty() {
        let _ = write!(text, "; assumed: {}", assumed.join(", "));
    }
    if rule.parts {
        text.push_str("; partial if some of the parts failed");
    }
    if let Some(default) = rule.default {
        let _ = write!(text, "; without a word {}", default.as_str());
    }
    text
}

/// The form of a schema that compatibility is about: the types of all places, and what is required or closed.
fn form(schema: &Value) -> BTreeMap<String, Value> {
    let mut form = BTreeMap::new();
    for name in schema["required"].as_array().expect("names") {
        form.insert(format!("required {name}"), json!(true));
    }
    for (name, property) in schema["properties"].as_object().expect("attributes") {
        form.insert(format!("attribute {name}"), constraint(property));
    }
    // The schema of every event has none.
    if let Some(definitions) = schema["$defs"].as_object() {
        push_form(&definitions["data"], definitions, "data", &mut form);
    }
    form
}

/// What a schema demands of a value, without texts for people.
fn constraint(schema: &Value) -> Value {
    let ignored = ["description", "examples", "properties", "items", "additionalProperties", "anyOf"];
    let Value::Object(members) = schema else { return schema.clone() };
    // A loose field: the first form is what is known about it.
    if schema["anyOf"][1] == json!(true) {
        return json!({ "loose": constraint(&schema["anyOf"][0]) });
    }
    members
        .iter()
        .filter(|(name, _)| !ignored.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn push_form(schema: &Value, definitions: &Map<String, Value>, place: &str, form: &mut BTreeMap<String, Value>) {
    if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix("#/$defs/")) {
        return push_form(&definitions[name], definitions, place, form);
    }
    let mut constraint = constraint(schema);
    // A change of the unit is a change of the value.
    let description = schema["description"].as_str().unwrap_or_default();
    if let Some((_, unit)) = description.split_once("Unit: ") {
        constraint["unit"] = unit.split('.').next().into();
    }
    if description.contains("Alibaba sends milliseconds") {
        constraint["sent_unit"] = "milliseconds".into();
    }
    if schema["additionalProperties"] == json!(false) {
        constraint["additionalProperties"] = json!(false);
    }
    form.insert(place.to_owned(), constraint);
    if schema["anyOf"][1] == json!(true) {
        push_form(&schema["anyOf"][0], definitions, &format!("{place}?"), form);
    }
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        push_form(member, definitions, &format!("{place}.{name}"), form);
    }
    if schema["items"].is_object() {
        push_form(&schema["items"], definitions, &format!("{place}[]"), form);
    }
    if schema["additionalProperties"].is_object() {
        push_form(&schema["additionalProperties"], definitions, &format!("{place}{{}}"), form);
    }
}

/// The forms of all schemas as they were at the last release. It is written when a release is made.
const RELEASED: &str = "tests/fixtures/released-schemas.json";

/// Differences that break a subscriber of the old form: a place is gone, or demands something else. New places are
/// allowed.
fn breaking(old: &BTreeMap<String, Value>, new: &BTreeMap<String, Value>) -> Vec<String> {
    old.iter()
        .filter_map(|(place, was)| match new.get(place) {
            None => Some(format!("{place} is gone")),
            Some(is) if is == was => None,
            Some(is) => Some(format!("{place} was {was} and is {is}")),
        })
        .collect()
}

/// The forms by `dataschema`.
fn forms() -> BTreeMap<String, BTreeMap<String, Value>> {
    let schemas = events().iter().map(|entry| contract::of_event(&NORMALIZER, entry));
    let schemas = schemas.chain([contract::general(&NORMALIZER, None)]);
    schemas.map(|schema| (schema["$id"].as_str().expect("a URN").to_owned(), form(&schema))).collect()
}

#[test]
fn no_schema_breaks_the_subscribers_of_the_last_release() {
    let now = forms();
    if std::env::var_os("RELEASE_SCHEMAS").is_some() {
        let text = serde_json::to_string_pretty(&now).expect("JSON");
        std::fs::write(repository(RELEASED), text + "\n").expect("written");
        return;
    }
    let text = std::fs::read_to_string(repository(RELEASED)).expect("the forms of the last release");
    let released: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_str(&text).expect("JSON");
    assert!(released.len() >= 53, "only {} schemas were released", released.len());
    let mut broken = String::new();
    for (id, old) in &released {
        // A new number of the same event type is the announced way to break it.
        let (name, number) = id.rsplit_once(':').expect("a number");
        let number: u32 = number.parse().expect("a number");
        let is_newer = |other: &&String| {
            let (other_name, other) = other.rsplit_once(':').expect("a number");
            other_name == name && other.parse::<u32>().expect("a number") > number
        };
        match now.get(id) {
            Some(new) => breaking(old, new).iter().for_each(|what| {
                let _ = writeln!(broken, "{id}: {what}");
            }),
            None if now.keys().any(|other| is_newer(&other)) => {}
            None => {
                let _ = writeln!(broken, "{id} is gone");
            }
        }
    }
    assert!(broken.is_empty(), "raise `version` of these event types in the catalogue, or keep their form:\n{broken}");
}

#[test]
fn every_kind_of_breaking_change_is_noticed() {
    let entry = &NORMALIZER.catalogue().named("TranscodeComplete", Some(Dialect::Vod)).expect("known")[0];
    let schema = contract::of_event(&NORMALIZER, entry);
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut schema = schema.clone();
        change(&mut schema);
        breaking(&form(&contract::of_event(&NORMALIZER, entry)), &form(&schema))
    };
    let stream = "/$defs/StreamInfo/properties";
    let at = |pointer: String| {
        move |schema: &mut Value| *schema.pointer_mut(&pointer).expect("it exists") = json!({"type": "string"})
    };
    assert_eq!(changed(&|_| {}), Vec::<String>::new());
    assert_eq!(changed(&at(format!("{stream}/size"))).len(), 1, "another type");
    let removed = changed(&|schema: &mut Value| {
        schema.pointer_mut(stream).and_then(Value::as_object_mut).expect("an object").remove("size");
    });
    assert_eq!(removed, ["data.streamInfos[].size is gone"]);
    let entry_of = |name: &str, dialect| NORMALIZER.catalogue().named(name, Some(dialect)).expect("known")[0];
    for (entry, of) in [
        (entry_of("SnapshotComplete", Dialect::Ims), "/$defs/TemplateConfig/properties/time/description"),
        (entry_of("AIProduceComplete", Dialect::Ims), "/$defs/AiResult/properties/score/type"),
    ] {
        let old = contract::of_event(&NORMALIZER, entry);
        let mut new = old.clone();
        *new.pointer_mut(of).expect("it exists") = json!("Position. Unit: seconds.");
        assert_eq!(breaking(&form(&old), &form(&new)).len(), 1, "{of}");
    }
    let unit = changed(&|schema: &mut Value| {
        schema.pointer_mut(stream).expect("it exists")["duration"]["description"] = json!("Length. Unit: pieces.");
    });
    assert_eq!(unit.len(), 1, "another unit: {unit:?}");
    let open = changed(&at("/$defs/data/properties/userData".to_owned()));
    assert_eq!(open.len(), 1, "a type for what had any: {open:?}");
    let word = changed(&|schema: &mut Value| {
        schema["properties"]["status"]["enum"].as_array_mut().expect("words").push(json!("paused"));
    });
    assert_eq!(word.len(), 1, "another word of a closed list: {word:?}");
    let required = changed(&|schema: &mut Value| {
        schema["required"].as_array_mut().expect("names").retain(|name| name != "id");
    });
    assert_eq!(required.len(), 1, "an attribute that may be missing: {required:?}");
    let closed = changed(&|schema: &mut Value| schema["$defs"]["data"]["additionalProperties"] = json!(false));
    assert_eq!(closed.len(), 1, "no other fields: {closed:?}");
    let added = changed(&|schema: &mut Value| {
        schema["$defs"]["data"]["properties"]["new"] = json!({ "type": "string" });
        schema["properties"]["new"] = json!({ "type": "string" });
        schema["required"].as_array_mut().expect("names").push(json!("new"));
    });
    assert_eq!(added, Vec::<String>::new(), "a new field is compatible");
}
