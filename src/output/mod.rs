//! Outputs: the places that records are published to.
//!
//! An output kind is one constant in [`KINDS`] and one folder. Nothing outside the folder names the kind. The way from
//! the configuration to a running output:
//!
//! 1. [`OutputKind::read`] reads the section of the configuration into an [`OutputConfig`].
//! 2. [`OutputConfig::validate`] checks it, reads its secrets, and gives [`OutputSettings`].
//! 3. [`OutputSettings::start`] gives the running [`Output`], which connects in the background.

pub mod console;
mod error;
mod health;
pub mod http;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(any(feature = "kafka", feature = "nats"))]
mod limits;
#[cfg(feature = "nats")]
pub mod nats;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use figment::value::Value;
use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

pub use error::{ErrorClass, ErrorKind, PublishError};
pub use health::{Connection, Health, Trouble};

use crate::common::findings::Findings;
use crate::common::kind::{KindKeys, ReadSection, SectionSchema};
use crate::common::validation::{FieldError, Validation};
use crate::event::{Event, Mode};
use crate::route::Destination;
use crate::telemetry::metrics::Metrics;

/// Every kind of output, except those whose feature is off.
pub const KINDS: &[OutputKind] = &[
    #[cfg(feature = "kafka")]
    kafka::KIND,
    #[cfg(feature = "nats")]
    nats::KIND,
    http::KIND,
    console::KIND,
];

/// How often an output compares the secrets it logged in with to the present ones. The values are in memory.
#[cfg(feature = "kafka")]
const SECRETS_CHECK: Duration = Duration::from_secs(1);

/// The longest time for one publish when no sender waits for an answer. A bus that takes seconds for each record must
/// still be able to empty the spool. It also bounds how long a request to a server that stopped answering delays a
/// topic that another server leads by now.
pub const MAX_PUBLISH_TIME: Duration = Duration::from_secs(10);

/// A kind of output, as `kind` names it in the configuration.
#[derive(Debug)]
pub struct OutputKind {
    /// Its name.
    pub name: &'static str,
    /// The keys that a deployment must know about.
    pub keys: KindKeys,
    /// Reads the section of an output, without `kind`.
    pub read: ReadSection<dyn OutputConfig>,
    /// The schema of the section, without `kind`.
    pub schema: SectionSchema,
}

/// Reads a section into the settings of a kind.
fn read<T: OutputConfig + DeserializeOwned + 'static>(
    section: &Value,
) -> Result<Box<dyn OutputConfig>, Box<figment::Error>> {
    Ok(Box::new(section.deserialize::<T>()?))
}

/// What an output's settings are checked against.
#[derive(Clone, Copy, Debug)]
pub struct OutputContext<'a> {
    /// The name of the output.
    pub name: &'a str,
    /// `delivery.deadline`.
    pub deadline: Duration,
}

/// The settings of an output as they are written.
pub trait OutputConfig: fmt::Debug {
    /// Checks the settings and reads secrets. Reports everything that is wrong; gives settings only if nothing is.
    fn validate(&self, context: OutputContext<'_>, validation: &mut Validation) -> Option<Box<dyn OutputSettings>>;

    /// What a destination on this output may say.
    fn destination_rules(&self) -> DestinationRules;

    /// What is valid but looks like a mistake, or is weak. A setting that only this machine can reach is not weak. `topics`
    /// are the topics that events go to, attributes in braces.
    fn warnings(&self, name: &str, topics: &[String]) -> Vec<String> {
        let _ = (name, topics);
        Vec::new()
    }

    /// The settings with their defaults, secrets hidden.
    ///
    /// # Errors
    /// When a value has no form in TOML.
    fn effective(&self) -> Result<toml::Table, toml::ser::Error>;
}

/// What a destination on an output may say.
#[derive(Clone, Copy, Debug)]
pub struct DestinationRules {
    /// Whether records have keys.
    pub has_keys: bool,
    /// Its topics.
    pub topic: TopicRule,
}

/// What a destination says about its topic.
#[derive(Clone, Copy, Debug)]
pub enum TopicRule {
    /// It must name one.
    Required(TopicSyntax),
    /// It may name one, for people to read. Without one it is this word.
    Optional(&'static str),
    /// The output has no topics. Its one lane has this name.
    None(&'static str),
}

/// Which topics are legal.
#[derive(Clone, Copy, Debug)]
pub struct TopicSyntax {
    /// Whether a character is legal.
    pub is_legal: fn(char) -> bool,
    /// The legal characters in words.
    pub legal: &'static str,
    /// The longest topic, in bytes.
    pub max_bytes: Option<usize>,
    /// What is wrong with a topic as a whole, attributes in braces.
    pub fault: fn(&str) -> Option<&'static str>,
}

/// Checked settings of an output.
pub trait OutputSettings: Send + fmt::Debug {
    /// Starts the output, which connects in the background. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// What the client library refuses, at a key below the output.
    fn start(self: Box<Self>, metrics: &Metrics) -> Result<Arc<dyn Output>, FieldError>;

    /// Checks for real what a newcomer gets wrong, without a change anywhere: nothing is published or created. May be
    /// cancelled. Must run inside a tokio runtime.
    fn examine<'a>(&'a self, needs: &'a Needs, findings: &'a Findings) -> BoxFuture<'a, ()>;

    /// Whether the bus acknowledges what is published. Otherwise a publish that succeeds says only that it was sent.
    fn has_acknowledgements(&self) -> bool {
        true
    }

    /// A record as it goes over the wire. The running output publishes what this gives.
    fn render<'r>(&self, record: &'r Record) -> Rendered<'r>;

    /// Where subscribers find the events; none for an output that nobody can subscribe to.
    fn bus(&self) -> Option<Bus> {
        None
    }
}

/// What the routes need of an output.
#[derive(Debug, Default)]
pub struct Needs {
    /// The topics that events can arrive at, in the order in which routes name them.
    pub topics: Vec<NeededTopic>,
    /// Bytes of the largest callback that an input accepts; 0 if that is unknown.
    pub largest_body: u64,
}

/// A topic that events can arrive at.
#[derive(Debug)]
pub struct NeededTopic {
    /// As the configuration has it, attributes in braces.
    pub written: String,
    /// What leads there, for people.
    pub from: Vec<String>,
    /// The topics that it becomes for known event types.
    pub names: BTreeSet<String>,
    /// Why it can become others.
    pub others: Option<OtherTopics>,
    /// The topic with `*` in the place of values.
    pub pattern: String,
}

/// Why a destination can have more topics than those that are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherTopics {
    /// Senders choose a part of it.
    OfSenders,
    /// Events whose type the catalogue does not have can lead to others.
    OfOtherTypes,
    /// There are too many to list them.
    TooMany,
}

impl OtherTopics {
    /// The reason, for people.
    pub fn reason(self) -> &'static str {
        match self {
            OtherTopics::OfSenders => "senders choose a part of it",
            OtherTopics::OfOtherTypes => "event types that the catalogue does not know can lead to other topics",
            OtherTopics::TooMany => "there are too many",
        }
    }
}

/// Where subscribers find the events of an output, in the words of AsyncAPI. It has no secrets: no logins, no paths, no
/// queries.
#[derive(Debug)]
pub struct Bus {
    /// The addresses that the bridge connects to first, without a scheme: at least one.
    pub hosts: Vec<String>,
    /// The protocol.
    pub protocol: &'static str,
    /// What else subscribers must know, in sentences.
    pub notes: Vec<String>,
    /// What the headers mean that are not attributes: name and a sentence.
    pub other_headers: &'static [(&'static str, &'static str)],
    /// The bindings of a message whose key has the given schema.
    pub message_bindings: fn(key: &serde_json::Value) -> Option<serde_json::Value>,
    /// The bindings of a channel.
    pub channel_bindings: Option<serde_json::Value>,
    /// The bindings of the operation that sends messages.
    pub operation_bindings: Option<serde_json::Value>,
}

/// A record as it goes over the wire.
#[derive(Debug)]
pub struct Rendered<'r> {
    /// Its layout.
    pub mode: Mode,
    /// Its key, where the bus has keys.
    pub key: Option<&'r str>,
    /// Its headers, in order.
    pub headers: Vec<(&'static str, Cow<'r, str>)>,
    /// Its payload.
    pub payload: Bytes,
}

/// An output whose settings are checked.
#[derive(Debug)]
pub struct CheckedOutput {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// What its destinations may say.
    pub rules: DestinationRules,
    /// Its settings.
    pub settings: Box<dyn OutputSettings>,
}

/// What is published: an event and where it goes.
#[derive(Clone, Debug)]
pub struct Record {
    /// The event.
    pub event: Arc<Event>,
    /// Topic or subject.
    pub topic: String,
    /// Key, where the bus has keys.
    pub key: Option<String>,
    /// Layout, where the destination names one.
    pub mode: Option<Mode>,
}

impl Record {
    /// The record of an event for a destination.
    pub fn new(event: &Arc<Event>, destination: &Destination, type_prefix: &str) -> Record {
        Record {
            topic: destination.topic.topic(event, type_prefix),
            key: destination.key.key(event),
            mode: destination.mode,
            event: event.clone(),
        }
    }
}

/// A running output.
///
/// [`publish`](Output::publish) returns when the bus holds the record durably, or with an error whose [`ErrorKind`]
/// says whether another attempt can help. The caller decides about other attempts. An output repeats one only inside
/// the deadline, where its client library does so by itself. At the deadline it returns [`ErrorKind::TimedOut`]: the
/// record may still arrive. The future may be dropped: nobody waits for the record then, but it may still arrive.
/// Several run at once. A full queue inside is waited for, as back-pressure.
pub trait Output: Send + Sync + fmt::Debug {
    /// The name that the configuration gave it.
    fn name(&self) -> &str;

    /// Publishes a record.
    fn publish<'a>(&'a self, record: &'a Record, deadline: Instant) -> BoxFuture<'a, Result<(), PublishError>>;

    /// Whether it is connected.
    fn health(&self) -> &Health;
}
