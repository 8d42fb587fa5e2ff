//! The configuration as it is written, before it is checked: the names of the keys and their defaults. The settings
//! of inputs and outputs lie with those.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::common::units::{Size, Span, one_or_many};
use crate::event::{DEFAULT_TYPE_PREFIX, Mode};
use crate::route::FilterConfig;
use crate::telemetry::logs::Format;

/// The root.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// Inputs by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, figment::value::Value>,
    /// Outputs by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, figment::value::Value>,
    /// Routes in order.
    pub routes: Vec<RawRoute>,
    /// The envelope.
    pub event: RawEvent,
    /// The catalogue of event types.
    pub catalogue: RawCatalogue,
    /// Delivery.
    pub delivery: RawDelivery,
    /// The spool.
    pub spool: RawSpool,
    /// Dead letters.
    pub dead_letters: RawDeadLetters,
    /// The window of ids.
    pub dedupe: RawDedupe,
    /// The admin listener.
    pub admin: RawAdmin,
    /// Logs.
    pub log: RawLog,
    /// Stopping.
    pub shutdown: RawShutdown,
}

/// A route.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRoute {
    /// Its name.
    pub name: String,
    /// Attributes and the patterns they must fit.
    #[serde(rename = "match", deserialize_with = "patterns", skip_serializing_if = "BTreeMap::is_empty")]
    pub matches: BTreeMap<String, Vec<String>>,
    /// Filters that must all hold.
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub filter: Vec<FilterConfig>,
    /// Destinations.
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<RawDestination>,
    /// Whether what it takes is dropped.
    #[serde(skip_serializing_if = "is_false")]
    pub drop: bool,
    /// Whether what it takes becomes a dead letter.
    #[serde(skip_serializing_if = "is_false")]
    pub dead_letter: bool,
    /// Whether later routes are tried too.
    #[serde(rename = "continue", skip_serializing_if = "is_false")]
    pub goes_on: bool,
}

/// A destination.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawDestination {
    /// Name of the output.
    pub output: String,
    /// Template of the topic.
    pub topic: Option<String>,
    /// Template of the key.
    pub key: Option<String>,
    /// Layout, in place of the output's.
    pub mode: Option<Mode>,
}

/// The envelope.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawEvent {
    /// What every `type` starts with.
    pub type_prefix: String,
}

impl Default for RawEvent {
    fn default() -> Self {
        RawEvent { type_prefix: DEFAULT_TYPE_PREFIX.to_owned() }
    }
}

/// The catalogue of event types.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawCatalogue {
    /// Files with entries of the user's.
    #[serde(deserialize_with = "one_or_many")]
    pub files: Vec<PathBuf>,
}

/// Delivery.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDelivery {
    /// Longest time from receipt to answer.
    pub deadline: Span,
    /// How long a topic may have nothing but operator's errors until its older records become dead letters.
    pub give_up_after: Span,
    /// Callbacks in delivery at once.
    pub max_in_flight: usize,
    /// Bytes of bodies and envelopes of callbacks at once.
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
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawSpool {
    /// Whether there is one.
    pub enabled: bool,
    /// Its folder, where the dead letters lie, too.
    pub path: PathBuf,
    /// Bound of what its records hold.
    pub max_bytes: Size,
    /// Part of it that one topic of an output that is up may have.
    pub lane_share: f64,
}

impl Default for RawSpool {
    fn default() -> Self {
        RawSpool { enabled: true, path: "/var/lib/apsara-bridge".into(), max_bytes: Size(1 << 30), lane_share: 0.5 }
    }
}

/// Dead letters.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDeadLetters {
    /// Bound of what they hold.
    pub max_bytes: Size,
    /// Age from which on they are deleted; none keeps them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
    /// Where they are published as well.
    pub to: Option<RawDestination>,
}

impl Default for RawDeadLetters {
    fn default() -> Self {
        RawDeadLetters { max_bytes: Size(256 << 20), max_age: None, to: None }
    }
}

/// The window of ids.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDedupe {
    /// How long an id is remembered.
    pub window: Span,
    /// How many are remembered at most.
    pub max_ids: usize,
}

impl Default for RawDedupe {
    fn default() -> Self {
        RawDedupe { window: Span(Duration::from_secs(900)), max_ids: 1_000_000 }
    }
}

/// The admin listener.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawAdmin {
    /// Its address, as `host:port`.
    pub listen: String,
}

impl Default for RawAdmin {
    fn default() -> Self {
        RawAdmin { listen: "127.0.0.1:9464".to_owned() }
    }
}

/// Logs.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLog {
    /// How lines look.
    pub format: Format,
    /// What is logged.
    pub filter: String,
}

impl Default for RawLog {
    fn default() -> Self {
        RawLog { format: Format::Auto, filter: "info".to_owned() }
    }
}

/// Stopping.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawShutdown {
    /// Time between not being ready and taking no more.
    pub delay: Span,
    /// Longest time for what is in flight.
    pub drain: Span,
}

impl Default for RawShutdown {
    fn default() -> Self {
        RawShutdown { delay: Span(Duration::ZERO), drain: Span(Duration::from_secs(20)) }
    }
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
