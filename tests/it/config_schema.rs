//! The JSON Schema of the configuration: it agrees with the loader, with its defaults, and with the files in `config/`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use apsara_bridge::config::raw::{Raw, RawTest};
use apsara_bridge::config::{self, Layer};
use apsara_bridge::event::Attribute;
use apsara_bridge::{input, output};
use figment::Figment;
use figment::providers::{Format as _, Yaml};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::config::documented;
use crate::support::config::Config;
use crate::support::judges::{ajv, jsonschema_errors};
use crate::support::kubernetes::helm;
use crate::support::{generated, repository};

/// The committed schema, for the `#:schema` lines.
const FILE: &str = "config/apsara-bridge.schema.json";

fn toml_value(text: &str) -> Value {
    toml::from_str(text).unwrap_or_else(|error| panic!("{text}\nis not TOML: {error}"))
}

/// What both validators say about named documents that should be valid, or invalid.
fn assert_verdicts(documents: &[(String, Value)], valid: bool) {
    let schema = config::json_schema();
    let values: Vec<Value> = documents.iter().map(|(_, value)| value.clone()).collect();
    for (validator, verdicts) in [("jsonschema", jsonschema_errors(&schema, &values)), ("Ajv", ajv(&schema, &values))] {
        assert_eq!(verdicts.len(), documents.len());
        let mut wrong = String::new();
        for ((name, _), verdict) in documents.iter().zip(verdicts) {
            match verdict {
                Some(errors) if valid => wrong.push_str(&format!("{name} is refused: {errors}\n")),
                None if !valid => wrong.push_str(&format!("{name} is accepted\n")),
                _ => {}
            }
        }
        assert!(wrong.is_empty(), "{validator}:\n{wrong}");
    }
}

#[test]
fn generated_the_schema_is_valid_and_in_a_file() {
    let schema = config::json_schema();
    jsonschema::draft202012::meta::validate(&schema).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    generated::check(FILE, &format!("{}\n", serde_json::to_string_pretty(&schema).expect("JSON")));
}

#[test]
fn the_reference_the_examples_and_the_configurations_of_the_chart_are_valid() {
    let mut documents = vec![];
    let (_, with_every_key) = documented();
    documents.push(("the reference with every key".to_owned(), toml_value(&with_every_key)));
    let examples = std::fs::read_dir(repository("config/examples")).expect("the examples");
    let mut files: Vec<PathBuf> = examples.map(|file| file.expect("a file").path()).collect();
    files.push(repository("config/apsara-bridge.toml"));
    for file in files {
        let text = std::fs::read_to_string(&file).expect("readable");
        // The line leads from the file to the schema.
        let line = text.lines().next().and_then(|line| line.strip_prefix("#:schema "));
        let schema = line.unwrap_or_else(|| panic!("{} has no #:schema line", file.display()));
        let schema = file.parent().expect("a folder").join(schema).canonicalize().expect("the schema exists");
        assert_eq!(schema, repository(FILE).canonicalize().expect("it exists"));
        documents.push((file.display().to_string(), toml_value(&text)));
    }
    let chart = repository("charts/apsara-bridge");
    let values = std::fs::read_dir(chart.join("ci")).expect("values of the chart");
    for file in values.map(|file| file.expect("a file").path()) {
        // Only a part of its configuration is in the values.
        if file.ends_with("existing-config-values.yaml") {
            continue;
        }
        let (chart, values) = (chart.to_str().expect("UTF-8"), file.to_str().expect("UTF-8"));
        let arguments = ["template", "media", chart, "--values", values, "--show-only", "templates/configmap.yaml"];
        let rendered = helm(&arguments).quietly().unwrap_or_else(|error| panic!("{error}"));
        let map: BTreeMap<String, Value> = Figment::from(Yaml::string(&rendered.out)).extract().expect("a ConfigMap");
        // The bridge reads both files, `chart.yaml` over `bridge.yaml`.
        let text = |name: &str| Yaml::string(map["data"][name].as_str().unwrap_or_default());
        let merged = Figment::from(text("bridge.yaml")).merge(text("chart.yaml")).extract().expect("YAML");
        documents.push((values.to_owned(), merged));
    }
    assert!(documents.len() > 15, "only {} configurations", documents.len());
    assert_verdicts(&documents, true);
}

fn base() -> Config {
    Config::http().kafka("127.0.0.1:9092").to("kafka", "media")
}

/// Configurations whose form is wrong, as changes of a valid one.
const WRONG: &[&str] = &[
    "colour = 'blue'",
    "inputs = 'http'",
    "inputs.'a b' = { kind = 'http', endpoints = [{}] }",
    "inputs.other = {}",
    "inputs.other.kind = 'htp'",
    "inputs.other = { kind = 'kafka' }",
    "inputs.http.max_bdy = '1KiB'",
    "inputs.http.max_body = 1024",
    "inputs.http.max_body = '1024'",
    "inputs.http.max_body = '1 parsec'",
    "inputs.http.max_body = '-1KiB'",
    "inputs.http.listen = 8080",
    "inputs.http.header_timeout = 5",
    "inputs.http.header_timeout = '5'",
    "inputs.http.header_timeout = '5 parsecs'",
    "inputs.http.header_timeout = '5s and 2'",
    "inputs.http.header_timeout = 'soon'",
    "inputs.http.header_timeout = ''",
    "inputs.http.header_timeout = '-5s'",
    "inputs.http.max_in_flight = 'many'",
    "inputs.http.max_in_flight = 0",
    "inputs.http.max_in_flight = -1",
    "inputs.http.max_in_flight = 1.5",
    "inputs.http.tls = 'file.pem'",
    "inputs.http.tls = { cert_file = 'file.pem' }",
    "inputs.http.queue = 'media'",
    "inputs.http.endpoints = []",
    "inputs.http.endpoints = '/callbacks'",
    "inputs.http.endpoints = [{ pth = '/callbacks' }]",
    "inputs.http.endpoints = [{ path = 'callbacks' }]",
    "inputs.http.endpoints = [{ keys = [{ file = 'a', env = 'b' }] }]",
    "inputs.http.endpoints = [{ keys = [{ vault = 'a' }] }]",
    "inputs.http.endpoints = [{ keys = [''] }]",
    "inputs.http.endpoints = [{ urls = 5 }]",
    "inputs.http.endpoints = [{ dialects = ['vod', 'mps'] }]",
    "inputs.http.endpoints = [{ dialects = 'mps' }]",
    "inputs.http.endpoints = [{ allow_unsigned = 'yes' }]",
    "inputs.http.endpoints = [{ account_id = 1833220977560000 }]",
    "inputs.queue.kind = 'mns'",
    "inputs.queue = { kind = 'mns', endpoint = 'mns.example.com', queue = 'media' }",
    "inputs.queue = { kind = 'mns', endpoint = 'https://mns.example.com', queue = 'me dia' }",
    "inputs.queue = { kind = 'mns', endpoint = 'https://mns.example.com', queue = 'media', signature = 'v2' }",
    "inputs.queue = { kind = 'mns', endpoint = 'https://mns.example.com', queue = 'media', receivers = 65 }",
    "inputs.queue = { kind = 'mns', endpoint = 'https://mns.example.com', queue = 'media', credentials = { access_key_id = 'a' } }",
    "outputs.kafka.servers = ['nats://127.0.0.1:4222']",
    "outputs.kafka.brokers = []",
    "outputs.kafka.brokers = 9092",
    "outputs.kafka.mode = 'xml'",
    "outputs.kafka.client = 'linger.ms=5'",
    "outputs.kafka.client = { 'linger.ms' = [5] }",
    "outputs.console = { kind = 'console', mode = 'binary' }",
    "outputs.nats = { kind = 'nats', delivery = 'twice' }",
    "outputs.nats = { kind = 'nats', password = 5.5, tls = true }",
    "outputs.nats = { kind = 'nats', stream = { create = false } }",
    "outputs.nats = { kind = 'nats', stream = { name = 'ME.DIA' } }",
    "outputs.nats = { kind = 'nats', stream = { name = 'MEDIA', replicas = 6 } }",
    "outputs.nats = { kind = 'nats', stream = { name = 'MEDIA', storage = 'tape' } }",
    "outputs.nats = { kind = 'nats', stream = { name = 'MEDIA', max_age = 'forever' } }",
    "routes = []",
    "routes = { name = 'all', drop = true }",
    "routes = [{ drop = true }]",
    "routes = [{ name = 'all' }]",
    "routes = [{ name = '', drop = true }]",
    "routes = [{ name = 'all', drop = true, dead_letter = true }]",
    "routes = [{ name = 'all', drop = false }]",
    "routes = [{ name = 'all', to = [] }]",
    "routes = [{ name = 'all', drop = true, continue = 'yes' }]",
    "routes = [{ name = 'all', drop = true, match = 'failure' }]",
    "routes = [{ name = 'all', drop = true, match = { stauts = 'failure' } }]",
    "routes = [{ name = 'all', drop = true, match = { status = 5 } }]",
    "routes = [{ name = 'all', drop = true, match = { status = [] } }]",
    "routes = [{ name = 'all', drop = true, filter = {} }]",
    "routes = [{ name = 'all', drop = true, filter = { exact = {} } }]",
    "routes = [{ name = 'all', drop = true, filter = { exact = { typ = 'x' } } }]",
    "routes = [{ name = 'all', drop = true, filter = { exact = { type = '' } } }]",
    "routes = [{ name = 'all', drop = true, filter = { all = [] } }]",
    "routes = [{ name = 'all', drop = true, filter = { not = { nor = [] } } }]",
    "routes = [{ name = 'all', drop = true, filter = { not = { not = { exact = { typ = 'x' } } } } }]",
    "routes = [{ name = 'all', to = { topic = 'media' } }]",
    "routes = [{ name = 'all', to = { output = 'kafka', topc = 'media' } }]",
    "routes = [{ name = 'all', to = { output = 'kafka', topic = 'media', mode = 'xml' } }]",
    "event.type_prefix = 'with blank '",
    "catalogue.files = 5",
    "delivery.deadlin = '1s'",
    "delivery.max_in_flight = 0",
    "spool.enabled = 'no'",
    "spool.lane_share = 0",
    "spool.lane_share = 1.5",
    "spool.lane_share = '0.5'",
    "dead_letters.max_age = 30",
    "dead_letters.to = 'kafka'",
    "dead_letters.to = [{ output = 'kafka', topic = 'media' }]",
    "dedupe.max_ids = 0",
    "admin.listen = 9464",
    "admin.page = 'everybody'",
    "admin.show_payloads = 'yes'",
    "log.format = 'xml'",
    "log.filter = 5",
    "shutdown.drain = '20'",
];

#[test]
fn a_wrong_form_is_refused_by_the_loader_and_by_the_schema() {
    let mut cases: Vec<(String, Config)> = WRONG.iter().map(|text| ((*text).to_owned(), base().set(text))).collect();
    for key in ["inputs", "outputs", "routes", "inputs.http.kind", "inputs.http.endpoints", "outputs.kafka.kind"] {
        cases.push((format!("without {key}"), base().without(key)));
    }
    for (name, config) in &cases {
        let loaded = config::load(&[Layer::Text("test".to_owned(), config.to_string())]);
        assert!(loaded.is_err(), "the loader accepts {name}");
    }
    let documents: Vec<_> =
        cases.iter().map(|(name, config)| (name.clone(), toml_value(&config.to_string()))).collect();
    assert_verdicts(&documents, false);
}

/// Changes of a valid configuration that are valid too.
const RIGHT: &[&str] = &[
    "",
    "dedupe.window = '0s'\ndelivery.deadline = '1s 500ms'\nshutdown = { delay = '1h30m', drain = '1.5 minutes' }",
    "inputs.http.max_body = '1 MiB'\ndead_letters.max_bytes = '1.5GiB'\nspool.max_bytes = '500mb'",
    "dead_letters.max_age = '1month 2weeks 3days 4hours 5min'\ndelivery.max_in_flight_bytes = '64M'",
    "inputs.http.endpoints = [{ urls = 'http://x/', keys = 'ExampleKey1', dialects = 'vod' }]",
    "inputs.http.endpoints = [{ urls = ['http://x/'], keys = [{ env = 'PATH' }, 'ExampleKey1'], dialects = ['vod', 'ims'] }]",
    "inputs.http.endpoints = [{ urls = ['http://x/'], keys = { file = '/proc/self/cmdline' } }]",
    "outputs.kafka = { brokers = 'kafka-1:9092', mode = 'binary' }",
    "outputs.kafka.client = { 'linger.ms' = 5, 'sasl.password' = { env = 'PATH' }, 'log.connection.close' = false }",
    "outputs.kafka.client.linger.ms = '5'",
    "outputs.console.kind = 'console'",
    "outputs.nats = { kind = 'nats', servers = 'nats://x:4222', user = 'me', password = { env = 'PATH' }, delivery = 'core' }",
    "outputs.nats = { kind = 'nats', stream = { name = 'MEDIA', subjects = 'media.>', max_bytes = '10GB' } }",
    "routes = [{ name = 'all', dead_letter = true, drop = false }]",
    "routes = [{ name = 'all', match = {}, to = [{ output = 'kafka', topic = 'media', key = '{id}', mode = 'binary' }] }]",
    "routes = [{ name = 'all', drop = true, match = { type = ['A*', 'B'], status = 'failure' }, continue = true }]",
    "routes = [{ name = 'all', drop = true, filter = { any = [{ not = { exact = { status = 'x' } } }, { suffix = { type = 'y' } }] } }]",
    "routes = [{ name = 'all', drop = true, filter = [{ prefix = { type = 'x' } }, { all = [{ exact = { id = 'y' } }] }] }]",
    "spool.lane_share = 1",
    "dead_letters.to = { output = 'kafka', topic = 'media.dead-letters' }",
    "log = { format = 'json', filter = 'info,apsara_bridge=debug' }",
];

#[test]
fn other_forms_are_accepted_by_the_loader_and_by_the_schema() {
    let cases: Vec<Config> = RIGHT.iter().map(|text| base().set(text)).collect();
    for config in &cases {
        let loaded = config::load(&[Layer::Text("test".to_owned(), config.to_string())]);
        loaded.unwrap_or_else(|errors| panic!("{config}: {errors:?}"));
    }
    let mut documents: Vec<_> =
        RIGHT.iter().zip(&cases).map(|(text, config)| ((*text).to_owned(), toml_value(&config.to_string()))).collect();

    // In YAML a key without a value is null, which is the same as no key.
    let yaml = "
        inputs: { http: { kind: http, listen: '127.0.0.1:0', tls: , endpoints: [{ region: ~ }] } }
        outputs: { nats: { kind: nats, password: , stream: } }
        routes: [{ name: all, to: { output: nats, topic: media, mode: } }]
        dead_letters: { max_age: , to: }
    ";
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("bridge.yaml");
    std::fs::write(&file, yaml).expect("written");
    config::load(&[Layer::File(file)]).unwrap_or_else(|errors| panic!("{errors:?}"));
    documents.push(("YAML".to_owned(), Figment::from(Yaml::string(yaml)).extract().expect("YAML")));
    assert_verdicts(&documents, true);
}

/// Tests of a form that only `test` refuses, because a bridge ignores them.
const WRONG_TESTS: &[&str] = &[
    "5",
    "{}",
    "{ name = 'x', event = {} }",
    "{ event = {}, expect = 'dropped' }",
    "{ name = 'x', expect = 'dropped' }",
    "{ name = '', event = {}, expect = 'dropped' }",
    "{ name = 5, event = {}, expect = 'dropped' }",
    "{ name = 'x', event = {}, expect = 'dropped', colour = 'blue' }",
    "{ name = 'x', event = {}, callback = '{}', expect = 'dropped' }",
    "{ name = 'x', event = 'x', expect = 'dropped' }",
    "{ name = 'x', event = { staus = 'success' }, expect = 'dropped' }",
    "{ name = 'x', event = { status = 5 }, expect = 'dropped' }",
    "{ name = 'x', event = { subject = '' }, expect = 'dropped' }",
    "{ name = 'x', callback = 5, expect = 'dropped' }",
    "{ name = 'x', callback = '', expect = 'dropped' }",
    "{ name = 'x', callback = {}, expect = 'dropped' }",
    "{ name = 'x', callback = { file = '' }, expect = 'dropped' }",
    "{ name = 'x', callback = { file = 'x', text = 'y' }, expect = 'dropped' }",
    "{ name = 'x', event = {}, expect = 'droped' }",
    "{ name = 'x', event = {}, expect = 5 }",
    "{ name = 'x', event = {}, expect = [] }",
    "{ name = 'x', event = {}, expect = {} }",
    "{ name = 'x', event = {}, expect = { status = 'failed' } }",
    "{ name = 'x', event = {}, expect = { to = [] } }",
    "{ name = 'x', event = {}, expect = { to = 5 } }",
    "{ name = 'x', event = {}, expect = { key = '' } }",
    "{ name = 'x', event = {}, expect = { status = 'success', keys = 'x' } }",
];

const RIGHT_TESTS: &[&str] = &[
    "{ name = 'x', event = {}, expect = 'unrouted' }",
    "{ name = 'x', event = { type = 'A', status = 'success', mediaid = '1' }, expect = 'dead_letter' }",
    "{ name = 'x', callback = '{}', expect = { status = 'success' } }",
    "{ name = 'x', callback = { file = 'x.json' }, expect = { to = 'kafka/x' } }",
    "{ name = 'x', event = {}, expect = { status = 'failure', to = ['kafka/x', 'kafka/y'], key = 'k' } }",
];

#[test]
fn tests_have_the_form_that_their_loader_and_the_schema_accept() {
    let case = |test: &str| (test.to_owned(), base().set(&format!("tests = [{test}]")));
    for (tests, valid) in [(WRONG_TESTS, false), (RIGHT_TESTS, true)] {
        let cases: Vec<(String, Config)> = tests.iter().map(|test| case(test)).collect();
        for (test, config) in &cases {
            let layers = [Layer::Text("test".to_owned(), config.to_string())];
            config::load(&layers).unwrap_or_else(|errors| panic!("a test stops the bridge: {test}: {errors:?}"));
            let loaded = config::load_route_tests(&layers, &[]);
            // An empty text is no callback.
            let is_found_later = test.contains("callback = ''");
            assert_eq!(loaded.is_ok(), valid || is_found_later, "{test}: {loaded:?}");
        }
        let documents: Vec<_> =
            cases.iter().map(|(name, config)| (name.clone(), toml_value(&config.to_string()))).collect();
        assert_verdicts(&documents, valid);
    }
}

/// Reads a section as the loader does. Gives it with its defaults.
type Read<'a> = Box<dyn Fn(&Value) -> Result<Value, Box<figment::Error>> + 'a>;

/// Every section with its schema: the root, and one for each kind.
fn sections() -> Vec<(String, Value, Read<'static>)> {
    fn figment(value: &Value) -> figment::value::Value {
        figment::value::Value::serialize(value).expect("a value of figment")
    }
    fn json(table: Result<toml::Table, toml::ser::Error>) -> Value {
        serde_json::to_value(table.expect("TOML")).expect("JSON")
    }
    let of_kind = |section: &str, name: &str| {
        let schema = config::json_schema();
        let kinds = schema["properties"][section]["additionalProperties"]["oneOf"].as_array().cloned();
        let mut kinds = kinds.expect("a schema for each kind").into_iter();
        let mut schema = kinds.find(|schema| schema["properties"]["kind"]["const"] == name).expect("one of this kind");
        assert_eq!(schema["required"][0], "kind");
        schema["properties"].as_object_mut().expect("properties").remove("kind");
        schema
    };
    let mut root = config::json_schema();
    let test = root["properties"]["tests"]["items"].clone();
    for separate in ["inputs", "outputs", "tests"] {
        root["properties"].as_object_mut().expect("properties").remove(separate);
    }
    let read: Read<'static> = Box::new(|section| {
        let raw = Raw::deserialize(&figment(section))?;
        Ok(json(toml::Table::try_from(&raw)))
    });
    let read_test: Read<'static> = Box::new(|section| {
        let mut section = section.clone();
        if section.get("expect").is_some() {
            section["expect"] = json!("dropped");
        }
        RawTest::deserialize(&figment(&section))?;
        Ok(json!({}))
    });
    let mut sections = vec![("root".to_owned(), root, read), ("test".to_owned(), test, read_test)];
    for kind in input::KINDS {
        let read: Read<'static> = Box::new(|section| Ok(json((kind.read)(&figment(section))?.effective())));
        sections.push((format!("inputs of kind {}", kind.name), of_kind("inputs", kind.name), read));
    }
    for kind in output::KINDS {
        let read: Read<'static> = Box::new(|section| Ok(json((kind.read)(&figment(section))?.effective())));
        sections.push((format!("outputs of kind {}", kind.name), of_kind("outputs", kind.name), read));
    }
    sections
}

/// The table with known keys that a value can be, itself or in a list. None for secrets, which can also be a text, and for
/// tables of attributes.
fn table_in(schema: &Value) -> Option<&Value> {
    if let Some(properties) = schema["properties"].as_object() {
        return (!properties.contains_key("specversion") && !properties.contains_key("exact")).then_some(schema);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let is_text = choices.iter().any(|choice| choice["type"] == "string");
        return if is_text { None } else { choices.iter().find_map(table_in) };
    }
    table_in(schema.get("items")?)
}

/// A section in which every table is present, with its required keys. At the place `path` it has a key that nobody knows.
fn section_with(schema: &Value, stranger: Option<&[&str]>) -> Value {
    let mut section = Map::new();
    if stranger.is_some_and(<[&str]>::is_empty) {
        section.insert("?".to_owned(), json!(true));
    }
    for (name, property) in schema["properties"].as_object().expect("a table") {
        if let Some(table) = table_in(property) {
            let below = stranger.and_then(|path| path.split_first()).filter(|(first, _)| *first == name);
            let inner = section_with(table, below.map(|(_, rest)| rest));
            section.insert(name.clone(), if property["type"] == "array" { json!([inner]) } else { inner });
        } else if schema["required"].as_array().is_some_and(|required| required.contains(&json!(name))) {
            section.insert(name.clone(), json!("x"));
        }
    }
    Value::Object(section)
}

/// Every table of a section, with the path to it.
fn tables<'s>(schema: &'s Value, path: &[&'s str]) -> Vec<(Vec<&'s str>, &'s Value)> {
    let mut found = vec![(path.to_vec(), schema)];
    for (name, property) in schema["properties"].as_object().expect("a table") {
        if let Some(table) = table_in(property) {
            found.extend(tables(table, &[path, &[name.as_str()]].concat()));
        }
    }
    found
}

#[test]
fn the_schema_knows_the_keys_of_the_loader_and_no_others() {
    for (section, schema, read) in sections() {
        for (path, table) in tables(&schema, &[]) {
            let error = read(&section_with(&schema, Some(&path))).expect_err("an unknown key");
            let figment::error::Kind::UnknownField(name, known) = &error.kind else {
                panic!("{section}, {path:?}: {error}")
            };
            assert_eq!(name, "?");
            let mut known: BTreeSet<&str> = known.iter().copied().collect();
            if section == "root" && path.is_empty() {
                known.retain(|key| !["inputs", "outputs", "tests"].contains(key));
            }
            let keys: BTreeSet<&str> =
                table["properties"].as_object().expect("a table").keys().map(String::as_str).collect();
            assert_eq!(keys, known, "{section}, {path:?}");
            assert_eq!(table["additionalProperties"], false, "{section}, {path:?}");
        }
    }
    let schema = config::json_schema();
    let attributes = schema["properties"]["routes"]["items"]["properties"]["match"]["properties"].as_object();
    let names: BTreeSet<&str> = attributes.expect("attributes").keys().map(String::as_str).collect();
    assert_eq!(names, Attribute::ALL.iter().map(|attribute| attribute.name()).collect());
}

/// Differences between the defaults in a schema and the values of a section that sets only what it must.
fn compare_defaults(schema: &Value, values: &Value, path: &str, wrong: &mut Vec<String>) {
    for (name, property) in schema["properties"].as_object().expect("a table") {
        let value = match values.get(name) {
            Some(Value::Array(items)) if property["type"] == "array" || table_in(property).is_some() => {
                items.first().unwrap_or(&Value::Null)
            }
            Some(value) => value,
            None => &Value::Null,
        };
        let path = format!("{path}.{name}");
        match (table_in(property), property.get("default")) {
            (Some(table), None) => compare_defaults(table, value, &path, wrong),
            // The loader leaves out a value that is false.
            (_, Some(Value::Bool(false))) if value.is_null() => {}
            (_, Some(default)) if values.get(name) == Some(default) => {}
            // A required key, which has no default, or one that the loader has no value for.
            (None, None) if value.is_null() || *value == "x" || *value == "<hidden>" || *value == json!({}) => {}
            (_, default) => wrong.push(format!("{path}: the schema says {default:?}, the loader {value}")),
        }
    }
}

#[test]
fn the_defaults_of_the_schema_are_those_of_the_loader() {
    for (section, schema, read) in sections() {
        let values = read(&section_with(&schema, None)).unwrap_or_else(|error| panic!("{section}: {error}"));
        let mut wrong = Vec::new();
        compare_defaults(&schema, &values, &section, &mut wrong);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// Every key in a schema, with its own schema.
fn every_key<'s>(schema: &'s Value, path: &str, found: &mut Vec<(String, &'s Value)>) {
    match schema {
        Value::Object(object) => {
            for (keyword, value) in object {
                // The conditions of a route repeat keys without their descriptions.
                let is_condition = |choice: &Value| keyword == "oneOf" && choice.get("type").is_none();
                if keyword != "properties" {
                    if !value.as_array().is_some_and(|choices| choices.iter().any(is_condition)) {
                        every_key(value, path, found);
                    }
                    continue;
                }
                for (name, property) in value.as_object().expect("properties") {
                    let path = format!("{path}.{name}");
                    found.push((path.clone(), property));
                    every_key(property, &path, found);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| every_key(item, path, found)),
        _ => {}
    }
}

#[test]
fn every_key_has_a_description_in_sentences() {
    let schema = config::json_schema();
    let mut keys = Vec::new();
    every_key(&schema, "", &mut keys);
    assert!(keys.len() > 100, "only {} keys", keys.len());
    for (path, property) in keys {
        let description = property["description"].as_str().unwrap_or_else(|| panic!("{path} has no description"));
        let is_sentence =
            description.ends_with('.') && description.starts_with(|first: char| first.is_uppercase() || first == '`');
        assert!(
            is_sentence && !description.contains('\n') && !description.contains("[`") && !description.contains("  "),
            "{path}: {description}"
        );
    }
}
