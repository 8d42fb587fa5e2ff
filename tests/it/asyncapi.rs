//! The AsyncAPI document of a configuration: the official parser accepts it, it describes exactly what the bridge sends,
//! and it has no secrets.

use std::collections::{BTreeMap, BTreeSet};

use std::sync::Arc;

use apsara_bridge::config::{self, Layer};
use apsara_bridge::contract;
use apsara_bridge::dialect::{Normalizer, Origin, Verdict};
use apsara_bridge::event::{Attribute, Event};
use apsara_bridge::output::Record;
use apsara_bridge::route::{Destination, inserted};
use apsara_bridge::service::Settings;
use jsonschema::{Draft, Registry, Validator};
use serde_json::{Map, Value, json};

use crate::support::judges;
use crate::support::program::{command, run};
use crate::support::{repository, samples};

/// What the parser reports and why it does not matter.
const IGNORED: &[(&str, &str)] = &[(
    "asyncapi-latest-version",
    "3.0.0 is the version that the draft of CloudEvents for AsyncAPI uses; tools know it",
)];

/// A configuration with everything that is hard to describe.
const NASTY: &str = r#"
event.type_prefix = "org.example-1.media_x."
catalogue.files = ["<folder>/catalogue.toml"]
dead_letters.to = { output = "K-2_x", topic = "media.all", mode = "structured", key = "{dlqreason}" }

[outputs.k1]
kind = "kafka"
brokers = ["SASL_SSL://kafka-1.example.com:9093", "kafka-2.example.com", "[2001:db8::1]:9093"]
client = { "security.protocol" = "sasl_ssl", "sasl.mechanism" = "PLAIN", "sasl.username" = "u", "sasl.password" = "p" }
[outputs.K-2_x]
kind = "kafka"
mode = "binary"
[outputs.nats]
kind = "nats"
mode = "binary"
servers = ["tls://nats-1.example.com", "nats://[2001:db8::2]:4333"]
[outputs.core]
kind = "nats"
delivery = "core"
[outputs.hook]
kind = "http"
url = "http://127.0.0.1:8080/path"
mode = "binary"
[outputs.hook-2]
kind = "http"
url = "https://events.example.com"
[outputs.console]
kind = "console"

[[routes]]
name = "v1.übel/`~ \"quoted\""
match = { status = ["failure", "partial"] }
to = [
    { output = "k1", topic = "media.mixed.{status}", mode = "binary", key = "{mediaid}" },
    { output = "k1", topic = "media.mixed.{status}", mode = "structured" },
    { output = "console" },
    { output = "nats", topic = "a#b?c.{verdict}.x/y" },
    { output = "core", topic = "a#b?c.{verdict}.x/y" },
]
continue = true

[[routes]]
name = "other key"
match = { type = ["TranscodeComplete", "Own", "Unheard*"] }
to = [
    { output = "k1", topic = "media.mixed.{status}", mode = "structured", key = "a constant" },
    { output = "K-2_x", topic = "media.all" },
    { output = "K-2_x", topic = "media.{dialect}-{dialect}.dialect-dialect" },
    { output = "K-2_x", topic = "media.dialect-dialect.dialect-dialect" },
    { output = "hook" },
    { output = "hook-2" },
]
continue = true

[[routes]]
name = "letters"
filter = { all = [{ exact = { dialect = "ims" } }, { prefix = { type = "org.example-1.media_x.Media" } }] }
dead_letter = true

[[routes]]
name = "noise"
match = { dialect = "vod", type = "Snapshot*" }
drop = true

[[routes]]
name = "every attribute"
to = { output = "nats", topic = "all.<attributes>" }
"#;

/// A catalogue whose names are hard to write as keys or to tell apart from others.
const CATALOGUE: &str = r#"
[objects."OddName2"]
a = "string"
[objects."Event"]
b = "string"
[objects."DeadLetter"]
c = "OddName2"
[[events]]
dialect = "vod"
type = "Own"
aliases = ["OwnAlias"]
description = "An event of my own"
fields = { one = "OddName2", two = "Event", three = { type = "[DeadLetter]", description = "Several." } }
[[events]]
dialect = "ims"
type = "unknown"
description = "It has a name that the document uses too"
"#;

/// Callbacks that are not among the samples: of an unknown type, of the catalogue above, with an alias.
fn callbacks() -> Vec<Vec<u8>> {
    let more = [
        r#"{"EventType":"Unheard","EventTime":"2026-01-01T00:00:00Z","Status":"fail"}"#,
        r#"{"EventType":"Own","EventTime":"2026-01-01T00:00:00Z","One":{"A":"x"},"Two":{"B":"x"},"Three":[{"C":{"A":"y"}}]}"#,
        r#"{"EventType":"OwnAlias","EventTime":"2026-01-01T00:00:00Z","Status":"fail"}"#,
        r#"{"EventType":"MediaUnheard","EventTime":"2026-01-01T00:00:00Z","MessageBody":{"Status":"fail"}}"#,
        r#"{"EventType":"unknown","EventTime":"2026-01-01T00:00:00Z","MessageBody":{}}"#,
    ];
    samples().into_iter().chain(more.map(|text| text.as_bytes().to_vec())).collect()
}

/// The settings of a configuration in TOML. Inputs are not needed.
fn settings(text: &str) -> Settings {
    let layers = [Layer::Text("test".to_owned(), text.to_owned())];
    let loaded = config::load_without_inputs(&layers).unwrap_or_else(|errors| panic!("{errors:?}"));
    loaded.settings
}

fn nasty() -> Settings {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("catalogue.toml"), CATALOGUE).expect("written");
    let attributes: Vec<String> = Attribute::ALL.iter().map(|attribute| format!("{{{attribute}}}")).collect();
    let text = NASTY.replace("<folder>", folder.path().to_str().expect("UTF-8"));
    settings(&text.replace("<attributes>", &attributes.join(".")))
}

/// Named configurations: the reference, the examples, and difficult ones.
fn configurations() -> Vec<(String, Settings)> {
    let examples = std::fs::read_dir(repository("config/examples")).expect("the examples");
    let mut files: Vec<_> = examples.map(|file| file.expect("a file").path()).collect();
    files.push(repository("config/apsara-bridge.toml"));
    files.sort();
    let from_file = |file: &std::path::PathBuf| {
        let loaded = config::load_without_inputs(&[Layer::File(file.clone())]);
        (file.display().to_string(), loaded.unwrap_or_else(|errors| panic!("{errors:?}")).settings)
    };
    let mut found: Vec<_> = files.iter().map(from_file).collect();
    assert!(found.len() > 5);
    found.push(("nasty".to_owned(), nasty()));
    for (kind, mode) in [("kafka", "structured"), ("kafka", "binary"), ("nats", "binary"), ("http", "structured")] {
        let topic = if kind == "http" { "" } else { ", topic = 'all'" };
        let text = format!(
            "[outputs.o]\nkind = '{kind}'\nmode = '{mode}'\n{}\n[[routes]]\nname = 'all'\nto = {{ output = 'o'{topic} }}\n\
             [dead_letters]\nto = {{ output = 'o'{topic} }}",
            if kind == "http" { "url = 'http://127.0.0.1/'" } else { "" }
        );
        found.push((format!("dead letters among {mode} events of {kind}"), settings(&text)));
    }
    let nothing = "[outputs.console]\nkind = 'console'\n[[routes]]\nname = 'all'\nto = { output = 'console' }";
    found.push(("without a bus".to_owned(), settings(nothing)));
    found
}

#[test]
fn the_official_parser_accepts_every_document() {
    let configurations = configurations();
    let mut documents: Vec<Value> = configurations.iter().map(|(_, settings)| contract::asyncapi(settings)).collect();
    let mut broken = documents[0].clone();
    broken["channels"]["x y"] =
        json!({ "address": "a.{b}", "parameters": {}, "servers": [{ "$ref": "#/servers/none" }] });
    documents.push(broken);
    let mut reports = judges::asyncapi(&documents);
    assert_eq!(reports.len(), documents.len());
    let of_broken = reports.pop().expect("a report");
    assert!(
        of_broken.iter().any(|report| report["severity"] == "error"),
        "the parser accepts everything: {of_broken:?}"
    );
    for ((name, _), report) in configurations.iter().zip(reports) {
        let is_ignored = |report: &&Value| IGNORED.iter().any(|(code, _)| report["code"] == *code);
        let serious: Vec<&Value> = report.iter().filter(|report| !is_ignored(report)).collect();
        assert!(serious.is_empty(), "{name}: {serious:#?}");
        for (code, reason) in IGNORED {
            assert!(report.iter().any(|report| report["code"] == *code), "{code} ({reason}) is not reported any more");
        }
    }
}

/// A document with the validators of its messages.
struct Checked {
    document: Value,
    /// The schemas of headers and payload by the key of the message.
    messages: BTreeMap<String, (Option<Validator>, Validator)>,
}

impl Checked {
    fn new(settings: &Settings) -> Checked {
        let document = contract::asyncapi(settings);
        let mut resource = document.clone();
        resource["$schema"] = "http://json-schema.org/draft-07/schema#".into();
        let registry = Registry::new().draft(Draft::Draft7);
        let registry = registry.add("urn:asyncapi", resource).expect("a resource").prepare().expect("it is complete");
        let validator = |pointer: String| {
            let options = jsonschema::options().with_draft(Draft::Draft7).with_registry(&registry);
            let options = options.should_validate_formats(true);
            options.build(&json!({ "$ref": format!("urn:asyncapi#{pointer}") })).expect("a valid schema")
        };
        let messages = document["components"]["messages"].as_object().expect("messages");
        let messages = messages.iter().map(|(key, message)| {
            let place = format!("/components/messages/{key}");
            let headers = message.get("headers").map(|_| validator(format!("{place}/headers")));
            (key.clone(), (headers, validator(format!("{place}/payload"))))
        });
        Checked { messages: messages.collect(), document }
    }

    /// The channel of a destination, by its server and its address.
    fn channel(&self, output: &str, address: Option<&str>) -> Option<&Value> {
        let channels = self.document["channels"].as_object().expect("channels");
        let mut found = channels.values().filter(|channel| {
            channel["servers"] == json!([{ "$ref": format!("#/servers/{output}") }])
                && channel["address"].as_str() == address
        });
        let channel = found.next();
        assert!(found.next().is_none(), "two channels for {address:?} of {output}");
        channel
    }

    /// The keys of the messages of a channel.
    fn messages_of(&self, channel: &Value) -> Vec<&str> {
        let messages = channel["messages"].as_object().expect("messages");
        let target = |message: &Value| message["$ref"].as_str().map(str::to_owned);
        for (key, message) in messages {
            assert_eq!(target(message), Some(format!("#/components/messages/{key}")));
        }
        messages.keys().map(|key| self.messages.get_key_value(key).expect("a component").0.as_str()).collect()
    }

    fn fits(&self, message: &str, headers: &Value, payload: &Value) -> bool {
        let (of_headers, of_payload) = &self.messages[message];
        of_headers.as_ref().is_none_or(|validator| validator.is_valid(headers)) && of_payload.is_valid(payload)
    }

    /// What a message says against headers and payload.
    fn errors(&self, message: &str, headers: &Value, payload: &Value) -> Vec<String> {
        let (of_headers, of_payload) = &self.messages[message];
        let of_headers = of_headers.iter().flat_map(|validator| validator.iter_errors(headers));
        let errors = of_headers.chain(of_payload.iter_errors(payload));
        errors.map(|error| format!("{}: {error}", error.instance_path())).collect()
    }
}

/// Checks that a record is exactly one of the messages of its channel. Returns the key of the message.
fn check_record(checked: &Checked, settings: &Settings, event: &Event, to: &Destination) -> Option<String> {
    let output = settings.outputs.iter().find(|output| output.name == to.output).expect("an output");
    let is_http = output.kind == "http";
    let address = to.topic.to_string();
    let channel = checked.channel(&to.output, (!is_http).then_some(&address));
    if output.kind == "console" {
        assert!(channel.is_none(), "the console has a channel");
        return None;
    }
    let about = format!("{} on {address} of {}", event.get(Attribute::Type).unwrap_or_default(), to.output);
    let channel = channel.unwrap_or_else(|| panic!("{about}: no channel"));
    for attribute in to.topic.attributes() {
        let parameter = &channel["parameters"][attribute.name()];
        let value = inserted(attribute, event.get(attribute), &settings.type_prefix);
        let values = parameter["enum"].as_array();
        assert!(values.is_none_or(|values| values.contains(&json!(value))), "{about}: {attribute} = {value}");
        assert!(parameter["description"].is_string());
    }
    let record = Record {
        event: Arc::new(event.clone()),
        topic: to.topic.topic(event, &settings.type_prefix),
        key: to.key.key(event),
        mode: to.mode,
    };
    let rendered = output.settings.render(&record);
    let headers: Map<String, Value> =
        rendered.headers.iter().map(|(name, value)| ((*name).to_owned(), value.as_ref().into())).collect();
    let headers = Value::Object(headers);
    let payload: Value = serde_json::from_slice(&rendered.payload).expect("JSON");
    let messages = checked.messages_of(channel);
    let fitting: Vec<&str> =
        messages.iter().copied().filter(|message| checked.fits(message, &headers, &payload)).collect();
    let [fitting] = fitting[..] else {
        let name =
            event.get(Attribute::Type).and_then(|name| name.strip_prefix(&settings.type_prefix)).unwrap_or_default();
        let near = messages.iter().filter(|message| message.ends_with(&format!(".{name}")));
        let errors: Vec<_> = near.map(|message| (message, checked.errors(message, &headers, &payload))).collect();
        panic!("{about} is {fitting:?}, {errors:#?}");
    };
    let message = &checked.document["components"]["messages"][fitting];
    let is_structured = rendered.mode.as_str() == "structured";
    assert_eq!(message["contentType"], if is_structured { "application/cloudevents+json" } else { "application/json" });
    if output.kind == "kafka" {
        let schema = &message["bindings"]["kafka"]["key"];
        assert!(schema["const"].is_null() || schema["const"].as_str() == rendered.key, "{about}: {schema}");
        assert_eq!(schema["type"], "string");
    }
    Some(fitting.to_owned())
}

/// The events of all callbacks, also with other statuses and verdicts.
fn events(settings: &Settings) -> Vec<Event> {
    let normalizer = Normalizer::new(settings.catalogue.clone(), settings.type_prefix.clone());
    let mut origin = Origin::at(time::OffsetDateTime::now_utc());
    origin.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let mut events = Vec::new();
    for callback in callbacks() {
        let normalized = normalizer.normalize(&callback, &origin).expect("a callback");
        let can_have_verdict =
            normalized.event_type.is_none_or(|index| !settings.catalogue.events()[index].verdict.is_empty());
        let event = normalized.event;
        for (status, verdict) in
            [("success", Verdict::Pass), ("failure", Verdict::Block), ("progress", Verdict::Review)]
        {
            let mut other = event.clone();
            other.set(Attribute::Status, status);
            if can_have_verdict {
                other.set(Attribute::Verdict, verdict.as_str());
            }
            events.push(other);
        }
        events.push(event);
    }
    events
}

/// A dead letter of an event, as the bridge publishes it.
fn dead_letter(event: &Event, reason: &str, destination: Option<&str>) -> Event {
    let mut letter = event.clone();
    letter.set(Attribute::DlqReason, reason);
    letter.set(Attribute::DlqAttempts, "3");
    if let Some(destination) = destination {
        letter.set(Attribute::DlqCode, "Broker: Message \"size\" too large €");
        letter.set(Attribute::DlqDestination, destination);
    }
    letter
}

#[test]
fn every_record_is_one_message_of_its_channel() {
    for (name, settings) in configurations() {
        let checked = Checked::new(&settings);
        let mut used = BTreeSet::new();
        for event in events(&settings) {
            let decision = settings.router.decide(&event);
            for (_, to) in &decision.destinations {
                used.extend(check_record(&checked, &settings, &event, to));
                if let Some(letters) = &settings.dead_letters {
                    let letter = dead_letter(&event, "too_large", Some(&format!("{}/{}", to.output, to.topic)));
                    used.extend(check_record(&checked, &settings, &letter, letters));
                }
            }
            let reason = if decision.is_unrouted() { "unrouted" } else { "routed" };
            if let Some(letters) =
                settings.dead_letters.as_ref().filter(|_| decision.is_unrouted() || decision.dead_letter_by.is_some())
            {
                used.extend(check_record(&checked, &settings, &dead_letter(&event, reason, None), letters));
            }
        }
        // The document does not list what cannot arrive. Of the unknown types, there are callbacks of a few only.
        let unused = checked.messages.keys().filter(|key| !used.contains(*key) && !key.contains(".unknown"));
        assert_eq!(unused.collect::<Vec<_>>(), Vec::<&String>::new(), "{name}");
        assert!(used.len() > 50 || name == "without a bus", "{name}: only {} messages", used.len());
    }
}

#[test]
fn every_example_fits_its_message() {
    for (name, settings) in configurations() {
        let checked = Checked::new(&settings);
        let messages = checked.document["components"]["messages"].as_object().expect("messages");
        let mut count = 0;
        for (key, message) in messages {
            for example in message["examples"].as_array().into_iter().flatten() {
                let errors = checked.errors(key, &example["headers"], &example["payload"]);
                assert!(errors.is_empty(), "{name}: {key}: {errors:?}");
                count += 1;
            }
        }
        assert!(count > 50 || name == "without a bus", "{name}: {count} examples");
    }
}

/// The names of the types of the messages of a channel, with their dialects.
fn types(document: &Value, channel: &str) -> BTreeSet<String> {
    let messages = document["channels"][channel]["messages"].as_object();
    let messages = messages.unwrap_or_else(|| panic!("no channel {channel}"));
    let name = |key: &String| key.splitn(3, '.').nth(2).expect("a kind, a mode and a name").to_owned();
    messages.keys().map(name).collect()
}

fn values(document: &Value, channel: &str, parameter: &str) -> Vec<String> {
    let values = document["channels"][channel]["parameters"][parameter]["enum"].as_array();
    let values = values.unwrap_or_else(|| panic!("{channel}: {parameter} is open")).iter();
    values.map(|value| value.as_str().expect("a text").to_owned()).collect()
}

#[test]
fn a_channel_lists_only_what_can_arrive() {
    let document = contract::asyncapi(&settings(
        "
        dead_letters.to = { output = 'k', topic = 'letters.{dlqreason}.{dlqdestination}' }
        [outputs.k]
        kind = 'kafka'
        [[routes]]
        name = 'one'
        match = { type = 'TranscodeComplete', dialect = 'vod', status = ['failure', 'partial'] }
        to = { output = 'k', topic = 'one.{status}.{type}' }
        [[routes]]
        name = 'filtered'
        filter = { all = [{ exact = { dialect = 'ims' } }, { not = { exact = { status = 'success' } } }, { suffix = { type = 'AuditComplete' } }] }
        to = { output = 'k', topic = 'filtered.{dialect}.{status}.{verdict}' }
        [[routes]]
        name = 'by a value that nobody knows'
        match = { mediaid = 'a*', dialect = 'ims', type = '*AuditComplete' }
        to = { output = 'k', topic = 'unknown.{status}.{mediaid}' }
        [[routes]]
        name = 'all of ims'
        match = { dialect = 'ims' }
        drop = true
        [[routes]]
        name = 'never'
        match = { dialect = 'ims' }
        to = { output = 'k', topic = 'never' }
        [[routes]]
        name = 'reviews'
        match = { verdict = ['block', 'review'] }
        to = { output = 'k', topic = 'reviews.{verdict}' }
        [[routes]]
        name = 'success'
        match = { status = 'success', type = ['Snapshot*', 'Own'] }
        to = { output = 'k', topic = 'success.{dialect}.{verdict}' }
        ",
    ));
    let channels: Vec<&String> = document["channels"].as_object().expect("channels").keys().collect();
    let expected = [
        "k.filtered.dialect.status.verdict",
        "k.letters.dlqreason.dlqdestination",
        "k.one.status.type",
        "k.reviews.verdict",
        "k.success.dialect.verdict",
        "k.unknown.status.mediaid",
    ];
    assert_eq!(channels, expected);
    assert_eq!(types(&document, "k.one.status.type"), BTreeSet::from(["vod.TranscodeComplete".to_owned()]));
    assert_eq!(values(&document, "k.one.status.type", "status"), ["failure", "partial"]);
    assert_eq!(values(&document, "k.one.status.type", "type"), ["com.aliyun.media.TranscodeComplete"]);
    let audits = ["ims.AIMediaAuditComplete", "ims.CreateAuditComplete", "ims.unknown"].map(str::to_owned);
    let filtered = "k.filtered.dialect.status.verdict";
    assert_eq!(types(&document, filtered), BTreeSet::from(audits.clone()));
    assert_eq!(values(&document, filtered, "dialect"), ["ims"]);
    assert!(!values(&document, filtered, "status").contains(&"success".to_owned()));
    assert_eq!(values(&document, filtered, "verdict"), ["block", "none", "pass", "review"]);
    assert_eq!(types(&document, "k.unknown.status.mediaid"), BTreeSet::from(audits));
    // The audits that are no success never come so far.
    assert!(document["channels"]["k.unknown.status.mediaid"]["parameters"]["mediaid"].get("enum").is_none());
    assert_eq!(values(&document, "k.reviews.verdict", "verdict"), ["block", "review"]);
    let reviews = ["vod.AIMediaAuditComplete", "vod.AIVideoCensorComplete", "vod.CreateAuditComplete", "vod.unknown"];
    assert_eq!(types(&document, "k.reviews.verdict"), BTreeSet::from(reviews.map(str::to_owned)));
    let success = BTreeSet::from(["vod.SnapshotComplete".to_owned(), "vod.unknown".to_owned()]);
    assert_eq!(types(&document, "k.success.dialect.verdict"), success);
    assert_eq!(values(&document, "k.success.dialect.verdict", "verdict"), ["none", "pass"]);
    let letters = "k.letters.dlqreason.dlqdestination";
    assert_eq!(document["channels"][letters]["address"], "letters.{dlqreason}.{dlqdestination}");
    let reasons = values(&document, letters, "dlqreason");
    assert!(reasons.contains(&"unrouted".to_owned()) && reasons.contains(&"too_large".to_owned()), "{reasons:?}");
    for missing in ["routed", "damaged", "not_a_callback"] {
        assert!(!reasons.contains(&missing.to_owned()), "{missing} in {reasons:?}");
    }
    let letters = types(&document, letters);
    assert!(letters.contains("dead-letter.vod.SnapshotComplete"), "{letters:?}");
    assert!(!letters.contains("dead-letter.ims.SnapshotComplete"), "it is always dropped");
}

#[test]
fn servers_say_how_to_connect() {
    let document = contract::asyncapi(&nasty());
    let servers = document["servers"].as_object().expect("servers");
    assert_eq!(servers.keys().collect::<Vec<_>>(), ["K-2_x", "core", "hook", "hook-2", "k1", "nats"]);
    let server = |name: &str| (servers[name]["protocol"].as_str(), servers[name]["host"].as_str());
    assert_eq!(server("K-2_x"), (Some("kafka"), Some("127.0.0.1:9092")));
    assert_eq!(server("core"), (Some("nats"), Some("127.0.0.1:4222")));
    assert_eq!(server("hook"), (Some("http"), Some("127.0.0.1:8080")));
    assert_eq!(server("hook-2"), (Some("https"), Some("events.example.com")));
    assert_eq!(server("k1"), (Some("kafka-secure"), Some("{host}")));
    let bindings = |of: &str, bus: &str| {
        let all = document[of].as_object().expect("an object").values();
        all.filter(|each| each["bindings"][bus]["bindingVersion"].is_string()).count()
    };
    assert!(bindings("channels", "kafka") > 0 && bindings("operations", "nats") > 0, "bindings of the buses");
    let hosts = |name: &str| servers[name]["variables"]["host"]["enum"].clone();
    let expected = ["kafka-1.example.com:9093", "kafka-2.example.com", "[2001:db8::1]:9093"];
    assert_eq!(hosts("k1"), json!(expected));
    assert_eq!(hosts("nats"), json!(["nats-1.example.com:4222", "[2001:db8::2]:4333"]));
    let description = servers["nats"]["description"].as_str().expect("a description");
    assert!(description.contains("use TLS") && description.contains("JetStream"), "{description}");
    for (key, operation) in document["operations"].as_object().expect("operations") {
        assert_eq!(operation["action"], "send", "{key}");
    }
    assert_eq!(document["operations"]["send.hook"]["bindings"]["http"]["method"], "POST");
}

#[test]
fn the_document_has_no_secrets() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("hunter2.key");
    std::fs::write(&secret, "hunter2-from-a-file").expect("written");
    let document = contract::asyncapi(&settings(&format!(
        "
        [outputs.kafka]
        kind = 'kafka'
        client = {{ 'security.protocol' = 'SASL_PLAINTEXT', 'sasl.mechanism' = 'SCRAM-SHA-512', \
            'sasl.username' = 'hunter2-user', 'sasl.password' = {{ file = {secret:?} }} }}
        [outputs.nats]
        kind = 'nats'
        user = 'hunter2-user'
        password = 'hunter2'
        inbox_prefix = '_HUNTER2'
        [outputs.token]
        kind = 'nats'
        token = 'hunter2'
        [outputs.hook]
        kind = 'http'
        url = 'https://events.example.com/hunter2?token=hunter2'
        request_headers = {{ authorization = 'Bearer hunter2', x-hunter2 = 'x' }}
        [[routes]]
        name = 'all'
        to = [{{ output = 'kafka', topic = 'a' }}, {{ output = 'nats', topic = 'a' }}, {{ output = 'token', topic = 'a' }}, {{ output = 'hook' }}]
        "
    )));
    let text = document.to_string().to_lowercase();
    assert!(!text.contains("hunter2"), "{}", &text[text.find("hunter2").unwrap_or(0).saturating_sub(200)..]);
    assert_eq!(document["servers"]["hook"]["host"], "events.example.com");
    assert_eq!(document["channels"]["hook"]["address"], Value::Null);
    assert_eq!(document["channels"].as_object().expect("channels").len(), 4);
}

#[test]
fn the_command_prints_the_document_or_every_error() {
    let asyncapi = |more: &[&str]| {
        let mut command = command(&["asyncapi"]);
        command.args(more).env_remove("CALLBACK_KEY");
        run(command)
    };
    let example = repository("config/examples/nats.toml");
    let example = example.to_str().expect("UTF-8");
    // The keys of the inputs are not needed.
    let (code, out, error) = asyncapi(&["--config", example]);
    assert_eq!((code, error.as_str()), (0, ""));
    let document: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(document["asyncapi"], "3.0.0");
    assert_eq!(document["channels"]["nats.media.dialect.status"]["address"], "media.{dialect}.{status}");
    let (code, out, _) = asyncapi(&["--config", example, "--set", "event.type_prefix=org.example."]);
    assert!(code == 0 && out.contains("\"org.example.TranscodeComplete\""));
    assert_eq!(asyncapi(&["--config", example]).1, asyncapi(&["--config", example]).1, "it is always the same");

    let (code, out, error) =
        asyncapi(&["--config", example, "--set", "event.type_prefix= ", "--set", "outputs.nats.mode=xml"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(error.contains("event.type_prefix") && error.contains("outputs.nats.mode"), "{error}");
    let (code, _, error) = asyncapi(&[]);
    assert!(code == 2 && error.contains("routes: expected at least one"), "{error}");
}
