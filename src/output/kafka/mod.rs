//! Kafka, through librdkafka.
//!
//! The producer is idempotent with `acks=all`; a record is published when its delivery report says so. The deadline
//! of delivery is ours: it is librdkafka's `message.timeout.ms`, so that a record that was answered with 503 is not
//! sent minutes later. librdkafka reconnects and retries by itself inside that time. A full queue is waited for.
//!
//! Two more producers are made when they are needed first. Records that have more time, those that failed before, go by
//! a patient one: a topic that makes a broker wait must not delay the others, which share a connection. A record whose
//! batch was too large for its topic is sent again by one that sends every record in a batch of its own.

mod errors;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use figment::value::{Dict, Value};
use futures_util::future::BoxFuture;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, DeliveryResult, FutureProducer, FutureRecord, Producer, ProducerContext};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use errors::{is_of_the_batch, kind_of};

use super::{ErrorKind, Health, Output, PATIENCE, PublishError, Record, SECRETS_CHECK};
use crate::event::{Mode, kafka};
use crate::route::Template;
use crate::setting::{Mistake, Secret, SecretSource, one_or_many};
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

/// How long a topic that was not there is taken to be missing, before a record is tried on it again.
const MISSING_FOR: Duration = Duration::from_secs(5);

/// How many topics that did not answer are remembered.
const MAX_UNANSWERED: usize = 10_000;

/// The shortest time that a broker may wait for the replicas of a record.
const LEAST_REQUEST_TIMEOUT: Duration = Duration::from_millis(500);

/// How many topics are asked for at a time.
const ASKS: usize = 8;

/// How often a broker that is down is asked.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Properties that are the bridge's to set, and where their value comes from.
const RESERVED: &[(&str, &str)] = &[
    ("bootstrap.servers", "set `brokers`"),
    ("metadata.broker.list", "set `brokers`"),
    ("message.timeout.ms", "it is `delivery.deadline`"),
    ("delivery.timeout.ms", "it is `delivery.deadline`"),
    ("delivery.report.only.error", "the bridge waits for the reports of success"),
    ("transactional.id", "the bridge publishes without transactions"),
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
    /// librdkafka's own properties by their own names; any value may be a secret. Tables inside are names with dots.
    #[serde(deserialize_with = "properties", serialize_with = "shown_properties")]
    pub client: BTreeMap<String, SecretSource>,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        KafkaConfig { brokers: vec!["127.0.0.1:9092".to_owned()], mode: Mode::Structured, client: BTreeMap::new() }
    }
}

/// Properties whose name holds one of these are secrets wherever their value stands.
const SECRET_WORDS: [&str; 5] = ["password", "secret", "token", "pem", "jaas"];

/// Reads properties. From the environment and from flags, and from TOML without quotes, a name with dots arrives as
/// tables in tables.
fn properties<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, SecretSource>, D::Error> {
    fn flatten(name: String, value: Value, out: &mut BTreeMap<String, SecretSource>) -> Result<(), String> {
        let is_secret = |table: &Dict| {
            let source = |key: &str| matches!(table.get(key), Some(Value::String(..)));
            table.len() == 1 && (source("file") || source("env"))
        };
        match value {
            Value::Dict(_, table) if !is_secret(&table) => {
                table.into_iter().try_for_each(|(below, value)| flatten(format!("{name}.{below}"), value, out))
            }
            value => {
                out.insert(name, value.deserialize().map_err(|error| error.kind.to_string())?);
                Ok(())
            }
        }
    }
    let mut properties = BTreeMap::new();
    for (name, value) in BTreeMap::<String, Value>::deserialize(deserializer)? {
        flatten(name, value, &mut properties).map_err(serde::de::Error::custom)?;
    }
    Ok(properties)
}

/// Shows properties, secrets hidden.
fn shown_properties<S: Serializer>(
    properties: &BTreeMap<String, SecretSource>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(properties.iter().map(|(name, source)| match source {
        SecretSource::Inline(value) if !SECRET_WORDS.iter().any(|word| name.contains(word)) => {
            (name, Shown::Plain(value))
        }
        source => (name, Shown::Source(source)),
    }))
}

#[derive(Serialize)]
#[serde(untagged)]
enum Shown<'a> {
    Plain(&'a str),
    Source(&'a SecretSource),
}

impl KafkaConfig {
    /// Checks the settings, librdkafka's properties included, and reads secrets.
    ///
    /// # Errors
    /// Key below the output and what is wrong with it, for every mistake.
    pub fn validate(&self, name: &str, deadline: Duration) -> Result<KafkaSettings, Vec<Mistake>> {
        let mut errors = Vec::new();
        if self.brokers.is_empty() {
            errors.push(("brokers".to_owned(), "expected at least one host:port".to_owned()));
        }
        for broker in &self.brokers {
            if broker.is_empty() || broker.contains([',', ' ']) {
                errors.push(("brokers".to_owned(), format!("`{broker}` is no host:port")));
            }
        }
        let mut secrets = Vec::new();
        let mut client = ClientConfig::new();
        client
            .set("client.id", "apsara-bridge")
            .set("queue.buffering.max.kbytes", QUEUE_KBYTES.to_string())
            .set("reconnect.backoff.max.ms", "2000")
            .set("log.connection.close", "false")
            // A broker answers the requests of a connection one after the other. One that waits for replicas holds up
            // all topics of the connection; by default for 30 s.
            .set("request.timeout.ms", deadline.max(LEAST_REQUEST_TIMEOUT).as_millis().to_string())
            .set("linger.ms", "1")
            .set_log_level(RDKafkaLogLevel::Info);
        for (property, source) in &self.client {
            let key = format!("client.\"{property}\"");
            if let Some((_, instead)) = RESERVED.iter().find(|(reserved, _)| reserved == property) {
                errors.push((key, format!("is not set here: {instead}")));
                continue;
            }
            let secret = match Secret::read(source) {
                Ok(secret) => secret,
                Err(error) => {
                    errors.push((key, error));
                    continue;
                }
            };
            let value = secret.value();
            match property.as_str() {
                "acks" | "request.required.acks" if value != "all" && value != "-1" => errors
                    .push((key, "must stay `all`: what was answered with 200 could be lost with a broker".to_owned())),
                "sasl.mechanism" | "sasl.mechanisms" if value.eq_ignore_ascii_case("OAUTHBEARER") => {
                    let reason = "OAUTHBEARER is not supported: nothing here obtains tokens; use PLAIN or SCRAM";
                    errors.push((key, reason.to_owned()));
                }
                "enable.idempotence" if value != "true" => {
                    errors.push((key, "must stay true: retries could double and reorder records".to_owned()));
                }
                _ => {
                    // One at a time, so that each property has its own error.
                    if let Err(error) = ClientConfig::new().set(property, &value).create_native_config() {
                        errors.push((key, property_error(&error, &value)));
                    }
                    client.set(property, value);
                    if !matches!(source, SecretSource::Inline(_)) {
                        secrets.push((property.clone(), secret));
                    }
                }
            }
        }
        client
            .set("bootstrap.servers", self.brokers.join(","))
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", deadline.as_millis().max(1).to_string());
        if errors.is_empty()
            && let Err(error) = refused_together(&client)
        {
            errors.push(("client".to_owned(), error));
        }
        if errors.is_empty() {
            Ok(KafkaSettings { name: name.to_owned(), mode: self.mode, client, secrets, deadline })
        } else {
            Err(errors)
        }
    }
}

/// What librdkafka refuses of properties that are fine each alone, as a certificate that can't be read: a client is
/// made of them and thrown away. It has no brokers, so that it connects to nothing.
fn refused_together(client: &ClientConfig) -> Result<(), String> {
    let mut without_brokers = client.clone();
    without_brokers.remove("bootstrap.servers");
    let made: Result<BaseProducer<Silent>, KafkaError> = without_brokers.create_with_context(Silent);
    made.map(|_| ()).map_err(|error| match error {
        KafkaError::ClientCreation(words) => format!("librdkafka refuses the properties: {words}"),
        other => format!("librdkafka refuses the properties: {other}"),
    })
}

/// A context for clients that are not to be heard.
struct Silent;

impl ClientContext for Silent {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext for Silent {
    type DeliveryOpaque = ();
    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// librdkafka's complaint about one property, without its value, which may be a secret.
fn property_error(error: &KafkaError, value: &str) -> String {
    match error {
        KafkaError::ClientConfig(_, message, _, _) if message.contains("No such configuration property") => {
            "librdkafka has no such property".to_owned()
        }
        KafkaError::ClientConfig(_, message, _, _) if !value.is_empty() => {
            format!("librdkafka refuses the value: {}", message.replace(value, "…"))
        }
        _ => "librdkafka refuses the value".to_owned(),
    }
}

/// Checked settings of a Kafka output.
pub struct KafkaSettings {
    name: String,
    mode: Mode,
    client: ClientConfig,
    /// Properties that lie in files or variables, and may change.
    secrets: Vec<(String, Secret)>,
    /// The deadline of delivery.
    deadline: Duration,
}

impl KafkaSettings {
    /// The properties with the secrets as they are now, and those secrets.
    fn present(&self) -> (ClientConfig, Vec<String>) {
        let mut client = self.client.clone();
        let values: Vec<String> = self.secrets.iter().map(|(_, secret)| secret.value()).collect();
        for ((property, _), value) in self.secrets.iter().zip(&values) {
            client.set(property, value);
        }
        (client, values)
    }

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
    if matches!(topic.to_string().as_str(), "." | "..") {
        return Err(format!("`{topic}` is no name that Kafka allows"));
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
    shared: Arc<Shared>,
    watch: tokio::task::JoinHandle<()>,
}

impl fmt::Debug for Kafka {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Kafka").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.shared.status.health.close();
        self.watch.abort();
    }
}

struct Shared {
    settings: KafkaSettings,
    status: Arc<Status>,
    /// None only while the first producer is being made.
    producer: RwLock<Option<BridgeProducer>>,
    /// The producers for special cases, by [`Spare`]; each is made when it is needed first.
    spares: Mutex<[Option<BridgeProducer>; 2]>,
    /// Topics that the brokers were found not to have, and when.
    missing: Mutex<HashMap<String, Instant>>,
    /// Topics whose last record was not acknowledged in time: they may be missing.
    unanswered: Mutex<HashSet<String>>,
    /// Whether a topic is being asked for in the background.
    asking: AtomicBool,
    /// How many topics may be asked for at a time, each with a thread that waits.
    asks: Semaphore,
    company: Company,
}

/// A producer for a special case.
#[derive(Clone, Copy)]
enum Spare {
    /// For records that have [`PATIENCE`].
    Patient,
    /// For records that must be alone in their batch.
    Alone,
}

/// Counts records, to know whether one can have shared its batch with others.
#[derive(Default)]
struct Company(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    handed_over: u64,
    in_flight: u64,
    /// Until when a record that nobody waits for any more may be in the queue of a producer.
    abandoned_until: Option<Instant>,
}

/// A record that is in flight.
struct Member<'c> {
    company: &'c Company,
    number: u64,
    was_alone: bool,
    has_ended: bool,
}

impl Company {
    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> Member<'_> {
        let mut counts = self.lock();
        let is_abandoned = counts.abandoned_until.is_some_and(|until| Instant::now() < until);
        let was_alone = counts.in_flight == 0 && !is_abandoned;
        counts.in_flight += 1;
        counts.handed_over += 1;
        Member { company: self, number: counts.handed_over, was_alone, has_ended: false }
    }
}

impl Member<'_> {
    /// The producer has reported what became of it. Whether no other record was in flight from its start until now.
    fn ended_alone(&mut self) -> bool {
        self.has_ended = true;
        self.was_alone && self.company.lock().handed_over == self.number
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        let mut counts = self.company.lock();
        counts.in_flight -= 1;
        if !self.has_ended {
            counts.abandoned_until = Some(Instant::now() + PATIENCE);
        }
    }
}

/// Why a record was not published.
enum SendError {
    /// By the brokers, which may mean the batch that it was part of.
    OfTheBatch(PublishError),
    OfTheRecord(PublishError),
}

impl From<SendError> for PublishError {
    fn from(error: SendError) -> PublishError {
        match error {
            SendError::OfTheBatch(error) | SendError::OfTheRecord(error) => error,
        }
    }
}

/// What librdkafka's own threads tell: apart from the producer, which holds it.
#[derive(Debug)]
struct Status {
    health: Health,
    /// librdkafka's last complaint: it says why a time-out happened.
    complaint: Mutex<String>,
}

impl Status {
    fn complaint(&self) -> String {
        let complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        if complaint.is_empty() { "no broker answered".to_owned() } else { complaint.clone() }
    }
}

#[derive(Clone)]
struct Context(Arc<Status>);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", output = %self.0.health.name, ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", output = %self.0.health.name, %error, "{reason}");
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.0.health.down(&self.0.complaint());
            // Without traffic nobody else would ask whether they are back.
            self.0.health.suspect();
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
        let health = Health::new(&settings.name, metrics);
        let status = Arc::new(Status { health, complaint: Mutex::new(String::new()) });
        let shared = Arc::new(Shared {
            settings,
            status,
            producer: RwLock::new(None),
            spares: Mutex::default(),
            missing: Mutex::default(),
            unanswered: Mutex::default(),
            asking: AtomicBool::new(false),
            asks: Semaphore::new(ASKS),
            company: Company::default(),
        });
        let secrets = shared.renew()?;
        let watch = tokio::spawn(watch(shared.clone(), secrets));
        Ok(Kafka { shared, watch })
    }
}

impl Shared {
    fn producer(&self) -> Option<BridgeProducer> {
        self.producer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a new producer, with the secrets as they are now, which it gives back. Records that the old one holds
    /// are finished by it.
    fn renew(&self) -> Result<Vec<String>, String> {
        let (client, secrets) = self.settings.present();
        let producer = client
            .create_with_context(Context(self.status.clone()))
            .map_err(|error| format!("librdkafka refuses the properties: {error}"))?;
        *self.producer.write().unwrap_or_else(PoisonError::into_inner) = Some(producer);
        *self.spares.lock().unwrap_or_else(PoisonError::into_inner) = [None, None];
        Ok(secrets)
    }

    fn spare(&self, spare: Spare) -> Option<BridgeProducer> {
        let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        let made = &mut spares[spare as usize];
        if made.is_none() {
            let (mut client, _) = self.settings.present();
            // The same for all records, whichever comes first. Each is waited for until its own deadline.
            client.set("message.timeout.ms", PATIENCE.as_millis().to_string());
            if let Spare::Alone = spare {
                client.set("batch.num.messages", "1");
            }
            match client.create_with_context(Context(self.status.clone())) {
                Ok(producer) => *made = Some(producer),
                Err(error) => tracing::error!(output = self.settings.name, %error, "a producer cannot be made"),
            }
        }
        made.clone()
    }

    /// An idempotent producer that met a fatal error takes no more records: a new one takes its place.
    fn replace_failed(&self) {
        let spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let producers = [self.producer()].into_iter().chain(spares).flatten();
        let failed = producers.filter_map(|producer| producer.client().fatal_error()).next();
        if let Some((code, reason)) = failed {
            let output = &self.settings.name;
            tracing::warn!(output, ?code, reason, "the producer failed for good; starting a new one");
            if let Err(error) = self.renew() {
                tracing::error!(output, error, "no new producer");
            }
        }
    }

    fn failed(&self, error: &KafkaError) -> PublishError {
        let code = error.rdkafka_error_code();
        let kind = code.map_or(ErrorKind::Unavailable, kind_of);
        if matches!(kind, ErrorKind::TimedOut | ErrorKind::Unavailable) {
            self.status.health.suspect();
        }
        let words = code.map_or_else(|| error.to_string(), |code| code.to_string());
        PublishError::new(kind, words)
    }
}

impl Shared {
    /// Whether the brokers were found not to have the topic, not long ago.
    fn is_missing(&self, topic: &str) -> bool {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.get(topic).is_some_and(|found| found.elapsed() < MISSING_FOR)
    }

    fn is_unanswered(&self, topic: &str) -> bool {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner).contains(topic)
    }

    /// A record of the topic was acknowledged, or was not in time.
    fn set_unanswered(&self, topic: &str, is_unanswered: bool) {
        let mut unanswered = self.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_unanswered {
            unanswered.remove(topic);
        } else if unanswered.insert(topic.to_owned()) && unanswered.len() > MAX_UNANSWERED {
            unanswered.clear();
        }
    }

    /// Asks whether the brokers have the topic: librdkafka itself waits half a minute before it says so. False if they
    /// do not answer. Where brokers create topics by themselves, asking creates it. Blocks for up to
    /// [`PROBE_TIMEOUT`].
    fn ask(&self, producer: &BridgeProducer, topic: &str) -> bool {
        let answer = producer.client().fetch_metadata(Some(topic), PROBE_TIMEOUT);
        let is_missing = answer.is_ok_and(|metadata| {
            metadata.topics().iter().any(|found| {
                found.error().map(RDKafkaErrorCode::from) == Some(RDKafkaErrorCode::UnknownTopicOrPartition)
            })
        });
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.retain(|_, found| found.elapsed() < MISSING_FOR);
        if is_missing {
            missing.insert(topic.to_owned(), Instant::now());
        }
        is_missing
    }

    /// Notes that a record of the topic was not acknowledged in time, and asks in the background whether the topic is
    /// there, for the records that come next.
    fn unanswered(self: &Arc<Self>, topic: &str) {
        self.set_unanswered(topic, true);
        let Some(producer) = self.producer() else { return };
        if !self.status.health.is_up() || self.asking.swap(true, Ordering::Relaxed) {
            return;
        }
        let (shared, topic) = (self.clone(), topic.to_owned());
        tokio::task::spawn_blocking(move || {
            shared.ask(&producer, &topic);
            shared.asking.store(false, Ordering::Relaxed);
        });
    }

    /// Whether a topic that did not answer is missing, by the brokers' word. One record waits for it, so that an error
    /// that somebody must fix is not taken for a slow broker.
    async fn is_found_missing(self: &Arc<Self>, producer: &BridgeProducer, topic: &str) -> bool {
        if !self.is_unanswered(topic) {
            return false;
        }
        let Ok(_ask) = self.asks.acquire().await else { return false };
        let (shared, producer, topic) = (self.clone(), producer.clone(), topic.to_owned());
        tokio::task::spawn_blocking(move || shared.ask(&producer, &topic)).await.unwrap_or(false)
    }

    /// Hands a record to a producer and waits for the report.
    async fn send(
        self: &Arc<Self>,
        producer: &BridgeProducer,
        record: &Record,
        deadline: Instant,
    ) -> Result<(), SendError> {
        let mode = record.mode.unwrap_or(self.settings.mode);
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
        let mut member = self.company.enter();
        let of_the_record = |kind, words: &str| Err(SendError::OfTheRecord(PublishError::new(kind, words)));
        let delivery = loop {
            match producer.send_result(message) {
                Ok(delivery) => break delivery,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    if Instant::now() + QUEUE_RETRY >= deadline {
                        return of_the_record(ErrorKind::QueueFull, "the producer's queue stayed full");
                    }
                    message = back;
                    tokio::time::sleep(QUEUE_RETRY).await;
                }
                Err((error, _)) => return Err(SendError::OfTheRecord(self.failed(&error))),
            }
        };
        let reported = tokio::time::timeout_at(deadline, delivery).await;
        let was_alone = reported.is_ok() && member.ended_alone();
        match reported {
            Ok(Ok(Ok(_))) => {
                self.status.health.up();
                Ok(())
            }
            Ok(Ok(Err((error, _)))) => {
                let failed = self.failed(&error);
                match error.rdkafka_error_code() {
                    Some(code) if is_of_the_batch(code) && !was_alone => Err(SendError::OfTheBatch(failed)),
                    _ => Err(SendError::OfTheRecord(failed)),
                }
            }
            Ok(Err(_)) => of_the_record(ErrorKind::Unavailable, "the producer was closed"),
            Err(_) => {
                self.status.health.suspect();
                of_the_record(ErrorKind::TimedOut, "no acknowledgement before the deadline")
            }
        }
    }

    async fn publish(self: &Arc<Self>, record: &Record, deadline: Instant) -> Result<(), PublishError> {
        let topic = &record.topic;
        let missing = || Err(PublishError::new(ErrorKind::NoSuchDestination, "the brokers have no such topic"));
        if self.is_missing(topic) {
            return missing();
        }
        let is_patient = deadline.saturating_duration_since(Instant::now()) > self.settings.deadline;
        let producer = if is_patient { self.spare(Spare::Patient) } else { self.producer() };
        let none = || PublishError::new(ErrorKind::Unavailable, "there is no producer");
        let producer = producer.ok_or_else(none)?;
        if is_patient && self.is_found_missing(&producer, topic).await {
            return missing();
        }
        let mut sent = self.send(&producer, record, deadline).await;
        if let Err(SendError::OfTheBatch(_)) = sent {
            sent = self.send(&self.spare(Spare::Alone).ok_or_else(none)?, record, deadline).await;
        }
        let result = sent.map_err(PublishError::from);
        match &result {
            Err(error) if error.kind == ErrorKind::TimedOut => self.unanswered(topic),
            Ok(()) if is_patient => self.set_unanswered(topic, false),
            _ => {}
        }
        result
    }
}

/// Asks the brokers whether they are there: until they answer, and whenever a publish makes that doubtful. Makes a
/// new producer when the old one failed for good or logs in with a secret that has changed.
async fn watch(shared: Arc<Shared>, mut secrets: Vec<String>) {
    let Status { health, complaint } = &*shared.status;
    loop {
        let Some(producer) = shared.producer() else { return };
        // A name that no topic can have, so that asking for it neither creates a topic nor lists all of them.
        let ask = move || producer.client().fetch_metadata(Some("!"), PROBE_TIMEOUT).map(|_| ());
        match tokio::task::spawn_blocking(ask).await {
            Ok(Ok(())) => {
                complaint.lock().unwrap_or_else(PoisonError::into_inner).clear();
                health.up();
                while health.is_up() && !health.suspected(SECRETS_CHECK).await && shared.settings.present().1 == secrets
                {
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(output = shared.settings.name, %error, "no metadata");
                health.down(&shared.status.complaint());
                health.suspected(PROBE_EVERY).await;
            }
            // The runtime is ending.
            Err(_) => return,
        }
        shared.replace_failed();
        if shared.settings.present().1 != secrets {
            tracing::info!(output = shared.settings.name, "a secret has changed; logging in with it");
            match shared.renew() {
                Ok(present) => secrets = present,
                Err(error) => tracing::error!(output = shared.settings.name, error, "no new producer"),
            }
        }
    }
}

impl Output for Kafka {
    fn name(&self) -> &str {
        &self.shared.settings.name
    }

    fn publish<'a>(&'a self, record: &'a Record, deadline: Instant) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(self.shared.publish(record, deadline))
    }

    fn health(&self) -> &Health {
        &self.shared.status.health
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
            "acks = 1\n\"enable.idempotence\" = false\n\"message.timeout.ms\" = 5\n\"linger.sm\" = 1\n\"linger.ms\" = \"soon\"\n\
             \"delivery.report.only.error\" = true\n\"transactional.id\" = \"t\"\n\"sasl.mechanism\" = \"OAUTHBEARER\"",
        );
        let told: Vec<String> = told.into_iter().map(|(key, error)| format!("{key}: {error}")).collect();
        assert_eq!(
            told,
            [
                "client.\"acks\": must stay `all`: what was answered with 200 could be lost with a broker",
                "client.\"delivery.report.only.error\": is not set here: the bridge waits for the reports of success",
                "client.\"enable.idempotence\": must stay true: retries could double and reorder records",
                "client.\"linger.ms\": librdkafka refuses the value: Invalid value for configuration property \"queue.buffering.max.ms\"",
                "client.\"linger.sm\": librdkafka has no such property",
                "client.\"message.timeout.ms\": is not set here: it is `delivery.deadline`",
                "client.\"sasl.mechanism\": OAUTHBEARER is not supported: nothing here obtains tokens; use PLAIN or SCRAM",
                "client.\"transactional.id\": is not set here: the bridge publishes without transactions",
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
