//! The configuration as it is written, before it is checked: the names of the keys and their defaults. The settings of
//! inputs and outputs are in the folders of their kinds.
//!
//! The doc comments of the fields are the descriptions in the JSON Schema. Their readers write configurations: what a
//! key does, its limits, and what happens at the limit. The schema adds the default and whether a change needs a restart.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;

use super::schema;
use crate::admin::Page;
use crate::common::units::{Size, Span, at_least_one_schema, one_or_many, one_or_many_schema};
use crate::common::words::words;
use crate::dialect::Status;
use crate::event::{DEFAULT_TYPE_PREFIX, Mode};
use crate::route::{FilterConfig, attributes_schema, match_schema};
use crate::telemetry::logs::Format;

/// A complete configuration of apsara-bridge. The files, the environment and the flags of one bridge are merged. A file
/// with a part of the configuration is not valid by this schema alone.
#[derive(Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["inputs", "outputs", "routes"]))]
pub struct Raw {
    /// The inputs: where callbacks come from. Each has a name of your choice: letters, digits, `-` and `_`. Metrics and
    /// logs show the name. Environment variables can only set inputs whose names have no capital letters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::inputs")]
    pub inputs: BTreeMap<String, figment::value::Value>,
    /// The outputs: where events are published. Each has a name of your choice: letters, digits, `-` and `_`. Metrics and
    /// logs show the name. Environment variables can only set outputs whose names have no capital letters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::outputs")]
    pub outputs: BTreeMap<String, figment::value::Value>,
    /// The routes: which events are published where. They are tried in order. The first route that matches an event
    /// decides, unless it has `continue = true`. An event that no route matches becomes a dead letter. A destination that
    /// several routes name gets the event once.
    #[schemars(length(min = 1))]
    pub routes: Vec<RawRoute>,
    /// The CloudEvents envelope.
    pub event: RawEvent,
    /// The event types that are known.
    pub catalogue: RawCatalogue,
    /// Limits for callbacks on their way from the inputs to the outputs.
    pub delivery: RawDelivery,
    /// The spool: events on disk that could not be published yet.
    pub spool: RawSpool,
    /// Dead letters: callbacks and events that could not be published.
    pub dead_letters: RawDeadLetters,
    /// The memory of accepted events, by which repeats are recognized.
    pub dedupe: RawDedupe,
    /// The listener for metrics, probes, the page and the event stream.
    pub admin: RawAdmin,
    /// The log, on standard error.
    pub log: RawLog,
    /// What happens after SIGTERM or SIGINT.
    pub shutdown: RawShutdown,
    /// Tests of the routes, which `apsara-bridge test` runs. A running bridge ignores them. They can also be in files of
    /// their own.
    // What is wrong with a test must not stop a bridge.
    #[serde(skip_serializing)]
    #[schemars(with = "Vec<RawTest>")]
    pub tests: IgnoredAny,
}

impl fmt::Debug for Raw {
    // Only the names of inputs and outputs, because their sections may contain secrets.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Raw { inputs, outputs, routes, .. } = self;
        let (inputs, outputs) = (inputs.keys().collect::<Vec<_>>(), outputs.keys().collect::<Vec<_>>());
        let mut shown = formatter.debug_struct("Raw");
        shown.field("inputs", &inputs).field("outputs", &outputs).field("routes", routes).finish_non_exhaustive()
    }
}

/// A route. It has exactly one of `to`, `drop = true` and `dead_letter = true`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name"], "oneOf" = [
    { "required": ["to"], "properties": { "to": { "type": ["object", "array"], "minItems": 1 } } },
    { "required": ["drop"], "properties": { "drop": { "const": true } } },
    { "required": ["dead_letter"], "properties": { "dead_letter": { "const": true } } },
]))]
pub struct RawRoute {
    /// The name of the route. It must be unique. Metrics and logs show it.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Attributes of the event and the values that they must have. All of them must match. For each attribute there is a
    /// text, a pattern, or a list of which one must match. In a pattern, `*` stands for any text, `?` for one character,
    /// `[ab]` for one of several characters, and `{a,b}` for one of several texts. `type` can be written without
    /// `event.type_prefix`. A route without `match` and `filter` matches every event.
    #[serde(rename = "match", deserialize_with = "patterns", skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "match_schema")]
    pub matches: BTreeMap<String, Vec<String>>,
    /// Filters of CloudEvents Subscriptions, which must hold in addition to `match`: one filter, or a list of which all
    /// must hold. Here `type` is written in full, with `event.type_prefix`.
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "one_or_many_schema::<FilterConfig>")]
    pub filter: Vec<FilterConfig>,
    /// Where the event is published: one destination or a list of them.
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "one_or_many_schema::<RawDestination>")]
    pub to: Vec<RawDestination>,
    /// Answer the callback with 200 and do not publish the event.
    #[serde(skip_serializing_if = "is_false")]
    #[schemars(extend("default" = false))]
    pub drop: bool,
    /// Make the event a dead letter.
    #[serde(skip_serializing_if = "is_false")]
    #[schemars(extend("default" = false))]
    pub dead_letter: bool,
    /// Also try the routes after this one.
    #[serde(rename = "continue", skip_serializing_if = "is_false")]
    #[schemars(extend("default" = false))]
    pub continue_matching: bool,
}

/// A destination.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawDestination {
    /// The name of an output.
    pub output: String,
    /// The topic of Kafka or the subject of NATS. Attributes in braces are replaced by their values, for example
    /// `media.{status}`. A topic must start with a text, not with an attribute. In a value, every character except
    /// letters, digits, `-` and `_` becomes `_`, the value is cut off after 64 characters, and a missing value becomes
    /// `none`. Outputs without topics need none.
    pub topic: Option<String>,
    /// The key of the Kafka record, at most 1024 bytes. Attributes in braces are replaced by their whole values, for
    /// example `{mediaid}`. Default: `{partitionkey}`, the id of the media, or else of the job or the task.
    pub key: Option<String>,
    /// The layout of the record. Default: the `mode` of the output.
    pub mode: Option<Mode>,
}

/// The envelope.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawEvent {
    /// The start of every `type`, before the EventType of Alibaba: letters, digits, `.`, `-` and `_`.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]+$"))]
    pub type_prefix: String,
}

impl Default for RawEvent {
    fn default() -> Self {
        RawEvent { type_prefix: DEFAULT_TYPE_PREFIX.to_owned() }
    }
}

/// The catalogue of event types.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawCatalogue {
    /// Files with event types in addition to the built-in ones, which `apsara-bridge catalogue` lists. Their format is
    /// that of `src/dialect/catalogue.toml`.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(schema_with = "one_or_many_schema::<PathBuf>")]
    pub files: Vec<PathBuf>,
}

/// Delivery.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDelivery {
    /// The longest time from the receipt of a callback to its answer: more than 0s, at most 2900ms. IMS waits 3s for an
    /// answer, VOD 5s.
    pub deadline: Span,
    /// How long a topic may fail with errors that an operator has to fix: the topic or stream does not exist, the bridge
    /// has no permission, settings are wrong. After this time, events that have waited at least as long become dead
    /// letters. Younger events stay in the spool and are retried. A success, any other error and a restart of the bridge
    /// start the time again. More than 0s.
    pub give_up_after: Span,
    /// How many callbacks can be in delivery at the same time, for all inputs together: at least 1. Further callbacks
    /// wait, at most until their deadline.
    #[schemars(range(min = 1))]
    pub max_in_flight: usize,
    /// How many bytes of bodies and envelopes can be in memory at the same time, for all inputs together: more than 0B.
    /// Bodies count twice, because the envelope repeats them. Further callbacks wait until their deadline and then get
    /// 503. At this limit the process takes up to twice as much memory, in addition to what it takes at rest.
    pub max_in_flight_bytes: Size,
}

impl Default for RawDelivery {
    fn default() -> Self {
        RawDelivery {
            deadline: Span(Duration::from_secs(1)),
            give_up_after: Span(Duration::from_secs(3600)),
            max_in_flight: 8192,
            max_in_flight_bytes: Size(64 << 20),
        }
    }
}

/// The spool.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawSpool {
    /// Store events that could not be published before the deadline on disk, and publish them later, in order. Without a
    /// spool their callbacks get 503, and Alibaba drops an event after three tries.
    pub enabled: bool,
    /// The folder of the spool and of the dead letters. It is created if it is missing. It belongs to one bridge, and must
    /// be on a disk that remains when the bridge is replaced. A network file system gives a warning. Do not change its
    /// files. Only `spool.db.damaged-…`, a damaged database that was replaced, may be moved or deleted.
    #[schemars(length(min = 1))]
    pub path: PathBuf,
    /// How many bytes of events the spool can store: more than 0B. An event counts as its envelope, its body and 256
    /// bytes. At the limit, events are published directly while their output is connected; otherwise their callbacks get
    /// 503. The volume needs 1.25 times the sum of this and `dead_letters.max_bytes`, 64MiB for the log, and a reserve of
    /// 1/16 of the volume, at most 32MiB. A smaller volume gives a warning.
    pub max_bytes: Size,
    /// The part of `max_bytes` that one topic can use while its output is connected: more than 0, at most 1. A topic that
    /// fails leaves the rest to other topics. Events beyond it are published directly, or their callbacks get 503. A topic
    /// of an output that is down can fill the whole spool.
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub lane_share: f64,
}

impl Default for RawSpool {
    fn default() -> Self {
        RawSpool { enabled: true, path: "/var/lib/apsara-bridge".into(), max_bytes: Size(1 << 30), lane_share: 0.5 }
    }
}

/// Dead letters.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDeadLetters {
    /// How many bytes of dead letters the database of the spool can store: more than 0B. At the limit, events wait in the
    /// spool until there is room, and bodies that are not callbacks are not kept. Old dead letters are not deleted to make
    /// room.
    pub max_bytes: Size,
    /// The part of `max_bytes` for bodies that are not callbacks: more than 0 and at most 1. Whoever can send callbacks can
    /// send such bodies too, and must not take the room of events. At the limit, and beyond 10 per second of the inputs
    /// `http` and `mns`, such bodies are only answered or deleted, and counted.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub not_a_callback_share: f64,
    /// The age at which a dead letter is deleted, counted from the last copy that was received: more than 0s. Each
    /// deletion is counted and logged. Default: dead letters are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
    /// Where dead letters that are events are also published. Their attributes `dlqreason`, `dlqcode`, `dlqattempts` and
    /// `dlqdestination` say why. Without a spool, this is the only place for dead letters; without both, callbacks get
    /// 503. Default: nowhere.
    pub to: Option<RawDestination>,
}

impl Default for RawDeadLetters {
    fn default() -> Self {
        RawDeadLetters { max_bytes: Size(256 << 20), not_a_callback_share: 0.1, max_age: None, to: None }
    }
}

/// The window of ids.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDedupe {
    /// How long the id of an accepted event is remembered. A repeat in this time is answered with 200 and not published
    /// again. The ids are in the memory of each bridge. With `0s` nothing is remembered.
    pub window: Span,
    /// How many ids are remembered: at least 1. The oldest are forgotten first. An id takes about 60 bytes.
    #[schemars(range(min = 1))]
    pub max_ids: usize,
}

impl Default for RawDedupe {
    fn default() -> Self {
        RawDedupe { window: Span(Duration::from_secs(900)), max_ids: 1_000_000 }
    }
}

/// The admin listener.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawAdmin {
    /// The address of the page at `/`, of `/metrics`, `/healthz`, `/readyz` and `/events`, as `host:port`. They are
    /// never reachable through an input.
    pub listen: String,
    /// Who may see the page at `/`, and read the event stream at `/events`, which the page shows and `apsara-bridge
    /// tail` prints. `local`: everybody on this machine, over loopback, which includes `kubectl port-forward`. `all`:
    /// everybody who can reach the address. `off`: nobody.
    pub page: Page,
    /// Show the data of events, and bodies that are not callbacks, on the page and in the event stream.
    pub show_payloads: bool,
}

impl Default for RawAdmin {
    fn default() -> Self {
        RawAdmin { listen: "127.0.0.1:9464".to_owned(), page: Page::Local, show_payloads: false }
    }
}

/// Logs.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLog {
    /// The format of the lines.
    pub format: Format,
    /// What is logged: `off`, `error`, `warn`, `info`, `debug` or `trace`, or a level for each module, for example
    /// `info,apsara_bridge=debug`. With `debug` every callback has a line. The module of the Kafka client is `librdkafka`.
    pub filter: String,
}

impl Default for RawLog {
    fn default() -> Self {
        RawLog { format: Format::Auto, filter: "info".to_owned() }
    }
}

/// Stopping.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawShutdown {
    /// How long callbacks are still accepted after `/readyz` began to answer 503, so that a load balancer can notice.
    pub delay: Span,
    /// How long callbacks in flight have after that. What is not acknowledged then is stored in the spool.
    pub drain: Span,
}

impl Default for RawShutdown {
    fn default() -> Self {
        RawShutdown { delay: Span(Duration::ZERO), drain: Span(Duration::from_secs(20)) }
    }
}

/// A test of the routes: a callback or the attributes of an event, and what must happen to it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name", "expect"], "oneOf" = [
    { "required": ["callback"], "properties": { "callback": { "type": ["string", "object"] } } },
    { "required": ["event"], "properties": { "event": { "type": "object" } } },
]))]
pub struct RawTest {
    /// The name of the test. No other test of the file has it.
    #[schemars(length(min = 1))]
    pub name: String,
    /// A callback as Alibaba sends it: its JSON as a text, or a file that contains it.
    pub callback: Option<RawCallback>,
    /// The attributes of an event, instead of a callback. An attribute that is left out is absent. `type` can be written
    /// without `event.type_prefix`.
    #[schemars(schema_with = "event_schema")]
    pub event: Option<BTreeMap<String, String>>,
    /// What must happen to the event: a table about its records, or a word. `dropped` means that a route drops it,
    /// `dead_letter` that a route makes it a dead letter, and `unrouted` that no route matches it.
    pub expect: Option<RawExpect>,
}

/// A callback of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawCallback {
    /// Its text.
    Text(String),
    /// A file that contains it.
    File(PathBuf),
}

impl<'de> Deserialize<'de> for RawCallback {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = RawCallback;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("JSON as a text, or { file = \"…\" }")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawCallback, E> {
                Ok(RawCallback::Text(text.to_owned()))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<RawCallback, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct InFile {
                    file: PathBuf,
                }
                let InFile { file } = InFile::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(RawCallback::File(file))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for RawCallback {
    fn schema_name() -> Cow<'static, str> {
        "Callback".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "description": "The JSON of the callback.", "type": "string", "minLength": 1 },
            {
                "type": "object",
                "properties": {
                    "file": {
                        "description": "A file that contains the callback. Its path is relative to the folder of the file \
                            that has the test.",
                        "type": "string",
                        "minLength": 1,
                    },
                },
                "required": ["file"],
                "additionalProperties": false,
            },
        ] })
    }
}

/// What a test expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawExpect {
    /// That nothing is published, and why.
    Word(ExpectedWord),
    /// What is published.
    Records(RawExpectedRecords),
}

words! {
    /// What can happen to an event apart from being published.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum ExpectedWord {
        /// A route drops it.
        Dropped = "dropped",
        /// A route makes it a dead letter.
        DeadLetter = "dead_letter",
        /// No route matches it.
        Unrouted = "unrouted",
    }
}

/// What a test expects of an event and its records. A key that is left out is not checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("minProperties" = 1))]
pub struct RawExpectedRecords {
    /// The attribute `status`.
    #[schemars(schema_with = "status_schema")]
    pub status: Option<String>,
    /// All destinations of the event and no others, each as `output/topic`: one or a list. An output of kind `http` has no
    /// topics, so it is `output` alone. For the console it is `output/console`.
    #[serde(deserialize_with = "some_or_many")]
    #[schemars(schema_with = "at_least_one_schema::<String>")]
    pub to: Option<Vec<String>>,
    /// The key of the Kafka records.
    #[schemars(length(min = 1))]
    pub key: Option<String>,
    /// That a route makes the event a dead letter. `to` then has what earlier routes with `continue` publish.
    pub dead_letter: bool,
}

impl<'de> Deserialize<'de> for RawExpect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = RawExpect;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                let words = ExpectedWord::ALL.map(|word| format!("\"{}\"", word.as_str())).join(", ");
                write!(formatter, "a table with status, to, key or dead_letter, or one of {words}")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawExpect, E> {
                ExpectedWord::deserialize(de::value::StrDeserializer::new(text)).map(RawExpect::Word)
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<RawExpect, A::Error> {
                let records = RawExpectedRecords::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(RawExpect::Records(records))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for RawExpect {
    fn schema_name() -> Cow<'static, str> {
        "Expect".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let records = generator.subschema_for::<RawExpectedRecords>();
        let words = ExpectedWord::ALL.map(ExpectedWord::as_str);
        json_schema!({ "anyOf": [{ "type": "string", "enum": words }, records] })
    }
}

/// The schema of the attributes of an event.
fn event_schema(_: &mut SchemaGenerator) -> Schema {
    let mut schema = attributes_schema(&json!({ "type": "string", "minLength": 1 }));
    schema.remove("minProperties");
    schema.insert("type".to_owned(), json!(["object", "null"]));
    schema
}

fn status_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "null"], "enum": Status::ALL.map(|status| Some(status.as_str())) })
}

/// Reads a list that may be left out. A single item counts as a list of one.
fn some_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    one_or_many(deserializer).map(Some)
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Attributes with one pattern or a list of them.
fn patterns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    struct Patterns(#[serde(deserialize_with = "one_or_many")] Vec<String>);
    let patterns = BTreeMap::<String, Patterns>::deserialize(deserializer)?;
    Ok(patterns.into_iter().map(|(name, Patterns(texts))| (name, texts)).collect())
}
