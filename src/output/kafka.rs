//! Kafka, through librdkafka.
//!
//! The producer is idempotent with `acks=all`; a record is published when its delivery report says so. The deadline
//! of delivery is ours: it is librdkafka's `message.timeout.ms`, so that a record that was answered with 503 is not
//! sent minutes later. librdkafka reconnects and retries by itself inside that time. A full queue is waited for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use serde::{Deserialize, Deserializer, Serialize};
use tokio::time::Instant;

use super::{ErrorKind, Health, Output, PublishError, Record};
use crate::event::{Mode, kafka};
use crate::route::Template;
use crate::setting::{Secret, SecretSource, one_or_many};
use crate::telemetry::metrics::Metrics;

/// Kafka's limit on the length of a topic's name.
const MAX_TOPIC_BYTES: usize = 249;

/// Bound of librdkafka's own queue. Records wait there no longer than the delivery deadline, so that this is memory
/// for bursts; its default of 1 GiB would let a slow broker take the machine.
const QUEUE_KBYTES: u32 = 65_536;

/// How long to wait for room in the queue before trying again: a batch leaves it about so often.
const QUEUE_RETRY: Duration = Duration::from_millis(5);

/// How long a broker may take to answer the question whether it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a broker that is down is asked.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Properties that are the bridge's to set, and where their value comes from.
const RESERVED: &[(&str, &str)] = &[
    ("bootstrap.servers", "set `brokers`"),
    ("metadata.broker.list", "set `brokers`"),
    ("message.timeout.ms", "it is `delivery.deadline`"),
    ("delivery.timeout.ms", "it is `delivery.deadline`"),
];

/// Settings of a Kafka output.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaConfig {
    /// Brokers to connect to first, as `host:port`.
    #[serde(deserialize_with = "one_or_many")]
    pub brokers: Vec<String>,
    /// How events are laid out.
    pub mode: Mode,
    /// librdkafka's own properties by their own names; any value may be a secret.
    pub client: BTreeMap<String, ClientProperty>,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        KafkaConfig { brokers: vec!["127.0.0.1:9092".to_owned()], mode: Mode::Structured, client: BTreeMap::new() }
    }
}

/// The value of a librdkafka property.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientProperty(SecretSource);

impl fmt::Debug for ClientProperty {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl Serialize for ClientProperty {
    // Which properties are secrets is librdkafka's to know, and it learns new ones: values are shown by none.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ClientProperty {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        SecretSource::deserialize(deserializer).map(ClientProperty)
    }
}

impl KafkaConfig {
    /// Checks the settings, librdkafka's properties included, and reads secrets.
    ///
    /// # Errors
    /// Key below the output and what is wrong with it, for every mistake.
    pub fn validate(&self, name: &str, deadline: Duration) -> Result<KafkaSettings, Vec<(String, String)>> {
        let mut errors = Vec::new();
        if self.brokers.is_empty() {
            errors.push(("brokers".to_owned(), "expected at least one host:port".to_owned()));
        }
        for broker in &self.brokers {
            if broker.trim().is_empty() || broker.contains(',') {
                errors.push(("brokers".to_owned(), format!("`{broker}` is no host:port")));
            }
        }
        let mut client = ClientConfig::new();
        client
            .set("client.id", "apsara-bridge")
            .set("queue.buffering.max.kbytes", QUEUE_KBYTES.to_string())
            .set("reconnect.backoff.max.ms", "2000")
            .set("log.connection.close", "false")
            .set("linger.ms", "1")
            .set_log_level(RDKafkaLogLevel::Info);
        for (property, value) in &self.client {
            let key = format!("client.\"{property}\"");
            if let Some((_, instead)) = RESERVED.iter().find(|(reserved, _)| reserved == property) {
                errors.push((key, format!("is not set here: {instead}")));
                continue;
            }
            let value = match Secret::read(&value.0) {
                Ok(secret) => secret.value(),
                Err(error) => {
                    errors.push((key, error));
                    continue;
                }
            };
            match property.as_str() {
                "acks" | "request.required.acks" if value != "all" && value != "-1" => errors
                    .push((key, "must stay `all`: what was answered with 200 could be lost with a broker".to_owned())),
                "enable.idempotence" if value != "true" => {
                    errors.push((key, "must stay true: retries could double and reorder records".to_owned()));
                }
                _ => {
                    // One at a time, so that each property has its own error.
                    if let Err(error) = ClientConfig::new().set(property, &value).create_native_config() {
                        errors.push((key, property_error(&error)));
                    }
                    client.set(property, value);
                }
            }
        }
        client
            .set("bootstrap.servers", self.brokers.join(","))
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", deadline.as_millis().max(1).to_string());
        if errors.is_empty() {
            Ok(KafkaSettings { name: name.to_owned(), mode: self.mode, client })
        } else {
            Err(errors)
        }
    }
}

/// The part of librdkafka's complaint that says what is wrong; never the value, which may be a secret.
fn property_error(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, message, _, _) if message.contains("No such configuration property") => {
            "librdkafka has no such property".to_owned()
        }
        KafkaError::ClientConfig(result, ..) => format!("librdkafka refuses the value: {result:?}"),
        _ => "librdkafka refuses the value".to_owned(),
    }
}

/// Checked settings of a Kafka output.
#[derive(Clone)]
pub struct KafkaSettings {
    name: String,
    mode: Mode,
    client: ClientConfig,
}

impl KafkaSettings {
    /// Name of the output.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How events are laid out where a destination says nothing else.
    pub fn mode(&self) -> Mode {
        self.mode
    }
}

impl fmt::Debug for KafkaSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("KafkaSettings")
            .field("name", &self.name)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// Checks what stands between the attributes of a topic, and its longest length.
pub(super) fn check_topic(topic: &Template, type_prefix: &str) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(literal) = topic.literals().find(|literal| !literal.chars().all(legal)) {
        return Err(format!("`{literal}` can't stand in a Kafka topic: letters, digits, `.`, `_` and `-` can"));
    }
    let longest = topic.longest_topic(type_prefix);
    if longest > MAX_TOPIC_BYTES {
        return Err(format!("`{topic}` could become {longest} bytes long; Kafka allows {MAX_TOPIC_BYTES}"));
    }
    Ok(())
}

type BridgeProducer = FutureProducer<Context>;

/// Publishes to Kafka. Dropping it ends its watch.
pub struct Kafka {
    name: String,
    mode: Mode,
    client: ClientConfig,
    shared: Arc<Shared>,
    producer: RwLock<BridgeProducer>,
    watch: tokio::task::JoinHandle<()>,
}

impl fmt::Debug for Kafka {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Kafka").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

#[derive(Debug)]
struct Shared {
    health: Health,
    /// librdkafka's last complaint: it says why a time-out happened.
    complaint: Mutex<String>,
}

impl Shared {
    fn complaint(&self) -> String {
        let complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        if complaint.is_empty() { "no broker answered".to_owned() } else { complaint.clone() }
    }
}

#[derive(Clone)]
struct Context(Arc<Shared>);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", output = %self.0.health.name, ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", output = %self.0.health.name, %error, "{reason}");
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.0.health.down(&self.0.complaint());
        } else {
            reason.clone_into(&mut self.0.complaint.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl Kafka {
    /// Creates the producer, which connects in the background.
    ///
    /// # Errors
    /// What librdkafka refuses of the properties together.
    pub fn start(settings: KafkaSettings, metrics: &Metrics) -> Result<Kafka, String> {
        let KafkaSettings { name, mode, client } = settings;
        let shared = Arc::new(Shared { health: Health::new(&name, metrics), complaint: Mutex::new(String::new()) });
        let producer: BridgeProducer = client
            .create_with_context(Context(shared.clone()))
            .map_err(|error| format!("librdkafka refuses the properties: {error}"))?;
        let watch = tokio::spawn(watch(producer.clone(), shared.clone()));
        Ok(Kafka { name, mode, client, shared, producer: RwLock::new(producer), watch })
    }

    fn producer(&self) -> BridgeProducer {
        self.producer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An idempotent producer that met a fatal error takes no more records: a new one takes its place.
    fn replace(&self, failed: &BridgeProducer) {
        if failed.client().fatal_error().is_none() {
            return;
        }
        let mut current = self.producer.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((code, reason)) = current.client().fatal_error() {
            tracing::warn!(output = %self.name, ?code, reason, "the producer failed for good; starting a new one");
            match self.client.create_with_context(Context(self.shared.clone())) {
                Ok(producer) => *current = producer,
                Err(error) => tracing::error!(output = %self.name, %error, "no new producer"),
            }
        }
    }
}

/// Asks the brokers whether they are there: until they answer, and whenever a publish makes that doubtful.
async fn watch(producer: BridgeProducer, shared: Arc<Shared>) {
    loop {
        let asked = producer.clone();
        // A name that no topic can have, so that asking for it neither creates a topic nor lists all of them.
        let answer = tokio::task::spawn_blocking(move || asked.client().fetch_metadata(Some("!"), PROBE_TIMEOUT)).await;
        match answer {
            Ok(Ok(_)) => {
                shared.complaint.lock().unwrap_or_else(PoisonError::into_inner).clear();
                shared.health.up();
                shared.health.suspected(Duration::MAX).await;
            }
            Ok(Err(error)) => {
                tracing::debug!(output = %shared.health.name, %error, "no metadata");
                shared.health.down(&shared.complaint());
                shared.health.suspected(PROBE_EVERY).await;
            }
            Err(_) => return,
        }
    }
}

impl Output for Kafka {
    fn name(&self) -> &str {
        &self.name
    }

    fn publish<'a>(&'a self, record: &'a Record, deadline: Instant) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(async move {
            let mode = record.mode.unwrap_or(self.mode);
            let payload = kafka::payload(&record.event, mode);
            let mut headers = OwnedHeaders::new_with_capacity(20);
            for (key, value) in kafka::headers(&record.event, mode) {
                headers = headers.insert(Header { key, value: Some(value) });
            }
            let mut message: FutureRecord<'_, [u8], [u8]> =
                FutureRecord::to(&record.topic).payload(payload.as_ref()).headers(headers);
            if let Some(key) = &record.key {
                message = message.key(key.as_bytes());
            }
            let producer = self.producer();
            let delivery = loop {
                match producer.send_result(message) {
                    Ok(delivery) => break delivery,
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                        if Instant::now() + QUEUE_RETRY >= deadline {
                            return Err(PublishError::new(ErrorKind::QueueFull, "the producer's queue stayed full"));
                        }
                        message = back;
                        tokio::time::sleep(QUEUE_RETRY).await;
                    }
                    Err((error, _)) => return Err(self.failed(&error, &producer)),
                }
            };
            match tokio::time::timeout_at(deadline, delivery).await {
                Ok(Ok(Ok(_))) => {
                    self.shared.health.up();
                    Ok(())
                }
                Ok(Ok(Err((error, _)))) => Err(self.failed(&error, &producer)),
                Ok(Err(_)) => Err(PublishError::new(ErrorKind::Unavailable, "the producer was closed")),
                Err(_) => {
                    self.shared.health.suspect();
                    Err(PublishError::new(ErrorKind::TimedOut, "no acknowledgement before the deadline"))
                }
            }
        })
    }

    fn health(&self) -> &Health {
        &self.shared.health
    }
}

impl Kafka {
    fn failed(&self, error: &KafkaError, producer: &BridgeProducer) -> PublishError {
        let code = error.rdkafka_error_code();
        let kind = code.map_or(ErrorKind::Unavailable, kind_of);
        match kind {
            ErrorKind::TimedOut | ErrorKind::Unavailable => self.shared.health.suspect(),
            _ => {}
        }
        self.replace(producer);
        let words = code.map_or_else(|| error.to_string(), |code| code.to_string());
        PublishError::new(kind, words)
    }
}

/// What an error of librdkafka or a broker means for the record.
fn kind_of(code: RDKafkaErrorCode) -> ErrorKind {
    use RDKafkaErrorCode as Code;
    match code {
        Code::MessageTimedOut | Code::RequestTimedOut | Code::OperationTimedOut | Code::TimedOutQueue => {
            ErrorKind::TimedOut
        }
        Code::QueueFull => ErrorKind::QueueFull,
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => ErrorKind::TooLarge,
        Code::InvalidRecord
        | Code::InvalidMessage
        | Code::PolicyViolation
        | Code::InvalidTimestamp
        | Code::UnsupportedForMessageFormat
        | Code::BadMessage => ErrorKind::Rejected,
        Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::SaslAuthenticationFailed
        | Code::Authentication => ErrorKind::Unauthorized,
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::InvalidTopic | Code::UnknownPartition => {
            ErrorKind::NoSuchDestination
        }
        Code::InvalidConfig | Code::InvalidRequiredAcks | Code::UnsupportedVersion | Code::UnsupportedSASLMechanism => {
            ErrorKind::Misconfigured
        }
        _ => ErrorKind::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(client: &str) -> Vec<(String, String)> {
        let config: KafkaConfig = toml::from_str(&format!("[client]\n{client}")).expect("the form is right");
        config.validate("kafka", Duration::from_secs(1)).expect_err("must be refused")
    }

    #[test]
    fn durability_cannot_be_turned_off_and_mistakes_are_told() {
        let told = errors(
            "acks = 1\n\"enable.idempotence\" = false\n\"message.timeout.ms\" = 5\n\"linger.sm\" = 1\n\"linger.ms\" = \"soon\"",
        );
        let told: Vec<String> = told.into_iter().map(|(key, error)| format!("{key}: {error}")).collect();
        assert_eq!(
            told,
            [
                "client.\"acks\": must stay `all`: what was answered with 200 could be lost with a broker",
                "client.\"enable.idempotence\": must stay true: retries could double and reorder records",
                "client.\"linger.ms\": librdkafka refuses the value: RD_KAFKA_CONF_INVALID",
                "client.\"linger.sm\": librdkafka has no such property",
                "client.\"message.timeout.ms\": is not set here: it is `delivery.deadline`",
            ]
        );
    }

    #[test]
    fn topics_follow_kafkas_rules() {
        let check = |topic: &str| check_topic(&Template::parse_topic(topic).expect("valid"), "com.aliyun.media.");
        assert_eq!(check("media.{status}"), Ok(()));
        assert!(check("media/{status}").is_err());
        assert!(check("m.{status}.{type}.{subject}.{mediaid}").is_err(), "it could grow too long");
    }
}
