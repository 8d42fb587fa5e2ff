//! Kafka, through librdkafka.
//!
//! The producer is idempotent with `acks=all`. A record is published when its delivery report says so. librdkafka's
//! `message.timeout.ms` is the deadline of delivery. A record that was answered with 503 is therefore not sent minutes
//! later. librdkafka reconnects and retries by itself within that time. While its queue is full, publishing waits.
//!
//! Two more producers are created on demand:
//! - Records that failed before have a longer deadline and their own producer. A topic that makes a broker wait must
//!   not delay other topics, which share the connection.
//! - A record whose batch was too large for its topic is sent again by a producer whose batches have one record.

mod binding;
mod config;
mod errors;
mod examine;
mod in_flight;
mod producer;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use schemars::JsonSchema;
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use binding::RepeatedHeaders;
pub use config::{KafkaConfig, KafkaSettings};
use config::{PresentSecrets, rejected};
use errors::{is_about_the_batch, kind_of};
use in_flight::InFlight;
use producer::Producer;

use super::{
    Bus, ErrorKind, Health, MAX_PUBLISH_TIME, Needs, Output, OutputKind, OutputSettings, PublishError, Record,
    Rendered, SECRETS_CHECK,
};
use crate::common::findings::Findings;
use crate::common::kind::{AddressKey, KindKeys};
use crate::common::validation::FieldError;
use crate::telemetry::metrics::Metrics;

/// The kind.
pub(super) const KIND: OutputKind = OutputKind {
    name: "kafka",
    keys: KindKeys {
        addresses: &[AddressKey { key: "brokers[]", port: 9092 }],
        secrets: config::SECRET_KEYS,
        ..KindKeys::NONE
    },
    read: super::read::<KafkaConfig>,
    schema: <KafkaConfig as JsonSchema>::json_schema,
};

/// How long to wait for room in the queue before trying again: about the time after which a batch leaves it.
const QUEUE_RETRY: Duration = Duration::from_millis(5);

/// How long a broker may take to answer a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a topic counts as missing after the brokers did not have it. Then a record is tried again.
const MISSING_FOR: Duration = Duration::from_secs(5);

/// Most topics that are remembered as unanswered.
const MAX_UNANSWERED: usize = 10_000;

/// Most topics that are looked up at the same time.
const MAX_LOOKUPS: usize = 8;

/// How often a broker that is down is probed.
const PROBE_EVERY: Duration = Duration::from_secs(1);

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
    /// None only until the first producer is created.
    producer: RwLock<Option<Producer>>,
    /// The producers for special cases, by [`ExtraProducer`]; each is created on demand.
    extra_producers: Mutex<[Option<Producer>; 2]>,
    /// Topics that the brokers do not have, and when this was found.
    missing: Mutex<HashMap<String, Instant>>,
    /// Whether there may be one, so that records take no lock to learn that there is none.
    has_missing: AtomicBool,
    /// Topics whose last record was not acknowledged in time: they may be missing.
    unanswered: Mutex<HashSet<String>>,
    /// Whether a topic is being looked up in the background.
    is_looking_up: AtomicBool,
    /// Permits to look up topics. Each lookup blocks a thread.
    lookups: Semaphore,
    in_flight: InFlight,
}

/// A producer for a special case.
#[derive(Clone, Copy)]
enum ExtraProducer {
    /// For records that have [`MAX_PUBLISH_TIME`].
    LongDeadline,
    /// For records that must be alone in their batch.
    OneRecordBatches,
}

/// Why a record was not published.
enum SendError {
    /// The brokers refused the batch that the record was part of.
    Batch(PublishError),
    Record(PublishError),
}

impl From<SendError> for PublishError {
    fn from(error: SendError) -> PublishError {
        match error {
            SendError::Batch(error) | SendError::Record(error) => error,
        }
    }
}

/// What librdkafka's threads report. It is separate from the producer because the producer owns it.
#[derive(Debug)]
struct Status {
    health: Health,
    /// librdkafka's last error, which explains a time-out.
    last_error: Mutex<Option<PublishError>>,
}

impl Status {
    fn new(name: &str, metrics: &Metrics) -> Arc<Status> {
        Arc::new(Status { health: Health::new(name, metrics), last_error: Mutex::default() })
    }

    fn last_error(&self) -> PublishError {
        let last_error = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        last_error.clone().unwrap_or_else(|| PublishError::new(ErrorKind::Unavailable, "no broker answered"))
    }

    fn forget_error(&self) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[derive(Clone)]
struct Context(Arc<Status>);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", output = self.0.health.name(), ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", output = self.0.health.name(), %error, "{reason}");
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.0.health.down(&self.0.last_error().message);
            // Without traffic, nothing else would notice that they are back.
            self.0.health.request_probe();
        } else {
            let kind = error.rdkafka_error_code().map_or(ErrorKind::Unavailable, kind_of);
            let mut last_error = self.0.last_error.lock().unwrap_or_else(PoisonError::into_inner);
            *last_error = Some(PublishError::new(kind, reason));
        }
    }
}

impl Kafka {
    /// Creates the producer, which connects in the background.
    ///
    /// # Errors
    /// librdkafka does not accept the combination of properties.
    fn start(settings: KafkaSettings, metrics: &Metrics) -> Result<Kafka, KafkaError> {
        let status = Status::new(&settings.name, metrics);
        let shared = Arc::new(Shared {
            settings,
            status,
            producer: RwLock::new(None),
            extra_producers: Mutex::default(),
            missing: Mutex::default(),
            has_missing: AtomicBool::new(false),
            unanswered: Mutex::default(),
            is_looking_up: AtomicBool::new(false),
            lookups: Semaphore::new(MAX_LOOKUPS),
            in_flight: InFlight::default(),
        });
        let secrets = shared.renew()?;
        let watch = tokio::spawn(watch(shared.clone(), secrets));
        Ok(Kafka { shared, watch })
    }
}

impl Shared {
    fn producer(&self) -> Option<Producer> {
        self.producer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Creates a new producer with the present secrets, and returns those. The old producer finishes the records that
    /// it has.
    fn renew(&self) -> Result<PresentSecrets, KafkaError> {
        let (client, secrets) = self.settings.present();
        let producer = Producer::new(&client, Context(self.status.clone()))?;
        *self.producer.write().unwrap_or_else(PoisonError::into_inner) = Some(producer);
        *self.extra_producers.lock().unwrap_or_else(PoisonError::into_inner) = [None, None];
        Ok(secrets)
    }

    fn extra_producer(&self, extra_producer: ExtraProducer) -> Option<Producer> {
        let mut extra_producers = self.extra_producers.lock().unwrap_or_else(PoisonError::into_inner);
        let producer = &mut extra_producers[extra_producer as usize];
        if producer.is_none() {
            let (mut client, _) = self.settings.present();
            // One timeout for all records. Each publish stops waiting at its own deadline.
            client.set("message.timeout.ms", MAX_PUBLISH_TIME.as_millis().to_string());
            if let ExtraProducer::OneRecordBatches = extra_producer {
                client.set("batch.num.messages", "1");
            }
            match Producer::new(&client, Context(self.status.clone())) {
                Ok(created) => *producer = Some(created),
                Err(error) => tracing::error!(output = self.settings.name, %error, "a producer could not be created"),
            }
        }
        producer.clone()
    }

    /// Replaces an idempotent producer that had a fatal error: it accepts no more records.
    fn replace_failed(&self) {
        let extra_producers = self.extra_producers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let producers = [self.producer()].into_iter().chain(extra_producers).flatten();
        let failed = producers.filter_map(|producer| producer.client().fatal_error()).next();
        if let Some((code, reason)) = failed {
            let output = &self.settings.name;
            tracing::warn!(output, ?code, reason, "the producer failed for good; starting a new one");
            if let Err(error) = self.renew() {
                tracing::error!(output, %error, "no new producer could be created");
            }
        }
    }

    fn failed(&self, error: &KafkaError) -> PublishError {
        let code = error.rdkafka_error_code();
        let kind = code.map_or(ErrorKind::Unavailable, kind_of);
        if matches!(kind, ErrorKind::TimedOut | ErrorKind::Unavailable) {
            self.status.health.request_probe();
        }
        let words = code.map_or_else(|| error.to_string(), |code| code.to_string());
        PublishError::new(kind, words)
    }
}

impl Shared {
    /// Whether the brokers recently did not have the topic.
    fn is_missing(&self, topic: &str) -> bool {
        if !self.has_missing.load(Ordering::Acquire) {
            return false;
        }
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.get(topic).is_some_and(|found| found.elapsed() < MISSING_FOR)
    }

    fn is_unanswered(&self, topic: &str) -> bool {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner).contains(topic)
    }

    /// Remembers whether the last record of the topic stayed without an acknowledgement.
    fn set_unanswered(&self, topic: &str, is_unanswered: bool) {
        let mut unanswered = self.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_unanswered {
            unanswered.remove(topic);
        } else if unanswered.insert(topic.to_owned()) && unanswered.len() > MAX_UNANSWERED {
            unanswered.clear();
        }
    }

    /// Asks the brokers for the topic. True if they do not have it, false if they have it or do not answer. librdkafka
    /// itself waits half a minute before it reports a missing topic. Brokers that create topics automatically create
    /// this one. Blocks for up to [`PROBE_TIMEOUT`].
    fn look_up(&self, producer: &Producer, topic: &str) -> bool {
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
        self.has_missing.store(!missing.is_empty(), Ordering::Release);
        is_missing
    }

    /// Remembers that a record of the topic was not acknowledged in time, and looks the topic up in the background, for
    /// the next records.
    fn unanswered(self: &Arc<Self>, topic: &str) {
        self.set_unanswered(topic, true);
        let Some(producer) = self.producer() else { return };
        if !self.status.health.is_up() || self.is_looking_up.swap(true, Ordering::Relaxed) {
            return;
        }
        let (shared, topic) = (self.clone(), topic.to_owned());
        tokio::task::spawn_blocking(move || {
            shared.look_up(&producer, &topic);
            shared.is_looking_up.store(false, Ordering::Relaxed);
        });
    }

    /// Whether the brokers say that an unanswered topic is missing. The record waits for this lookup, because a missing
    /// topic must not be reported as a slow broker.
    async fn is_found_missing(self: &Arc<Self>, producer: &Producer, topic: &str) -> bool {
        if !self.is_unanswered(topic) {
            return false;
        }
        let Ok(_lookup) = self.lookups.acquire().await else { return false };
        let (shared, producer, topic) = (self.clone(), producer.clone(), topic.to_owned());
        tokio::task::spawn_blocking(move || shared.look_up(&producer, &topic)).await.unwrap_or(false)
    }

    /// Passes a record to a producer and waits for the delivery report.
    async fn send(self: &Arc<Self>, producer: &Producer, record: &Record, deadline: Instant) -> Result<(), SendError> {
        let rendered = self.settings.render(record);
        let mut headers = OwnedHeaders::new_with_capacity(rendered.headers.len());
        for (key, value) in &rendered.headers {
            headers = headers.insert(Header { key, value: Some(&**value) });
        }
        let key = rendered.key.map(str::as_bytes);
        let (mut message, delivery) = Producer::record(&record.topic, key, &rendered.payload, headers);
        let mut in_flight = self.in_flight.start();
        let record_error = |kind, words: &str| Err(SendError::Record(PublishError::new(kind, words)));
        loop {
            match producer.send(message) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    if Instant::now() + QUEUE_RETRY >= deadline {
                        return record_error(ErrorKind::QueueFull, "the producer's queue stayed full");
                    }
                    message = back;
                    tokio::time::sleep(QUEUE_RETRY).await;
                }
                Err((error, _)) => return Err(SendError::Record(self.failed(&error))),
            }
        }
        let reported = tokio::time::timeout_at(deadline, delivery).await;
        let was_alone = reported.is_ok() && in_flight.ended_alone();
        match reported {
            Ok(Ok(Ok(()))) => {
                self.status.health.up();
                Ok(())
            }
            Ok(Ok(Err(error))) => {
                let failed = self.failed(&error);
                match error.rdkafka_error_code() {
                    Some(code) if is_about_the_batch(code) && !was_alone => Err(SendError::Batch(failed)),
                    _ => Err(SendError::Record(failed)),
                }
            }
            Ok(Err(_)) => record_error(ErrorKind::Unavailable, "the producer was closed"),
            Err(_) => {
                self.status.health.request_probe();
                record_error(ErrorKind::TimedOut, "no acknowledgement before the deadline")
            }
        }
    }

    async fn publish(self: &Arc<Self>, record: &Record, deadline: Instant) -> Result<(), PublishError> {
        let topic = &record.topic;
        let missing = || Err(PublishError::new(ErrorKind::NoSuchDestination, "the brokers have no such topic"));
        if self.is_missing(topic) {
            return missing();
        }
        let has_long_deadline = deadline.saturating_duration_since(Instant::now()) > self.settings.deadline;
        let producer =
            if has_long_deadline { self.extra_producer(ExtraProducer::LongDeadline) } else { self.producer() };
        let no_producer = || PublishError::new(ErrorKind::Unavailable, "no producer could be created");
        let producer = producer.ok_or_else(no_producer)?;
        if has_long_deadline && self.is_found_missing(&producer, topic).await {
            return missing();
        }
        let mut sent = self.send(&producer, record, deadline).await;
        if let Err(SendError::Batch(_)) = sent {
            sent = self
                .send(&self.extra_producer(ExtraProducer::OneRecordBatches).ok_or_else(no_producer)?, record, deadline)
                .await;
        }
        let result = sent.map_err(PublishError::from);
        match &result {
            Err(error) if error.kind == ErrorKind::TimedOut => self.unanswered(topic),
            Ok(()) if has_long_deadline => self.set_unanswered(topic, false),
            _ => {}
        }
        result
    }
}

/// Probes the brokers until they answer, and again on request. Creates a new producer when the old one has failed for
/// good, or when a secret has changed.
async fn watch(shared: Arc<Shared>, mut secrets: PresentSecrets) {
    let health = &shared.status.health;
    loop {
        let Some(producer) = shared.producer() else { return };
        // With a name that no topic can have, the request neither creates a topic nor lists all of them.
        let request = move || producer.client().fetch_metadata(Some("!"), PROBE_TIMEOUT).map(|_| ());
        match tokio::task::spawn_blocking(request).await {
            Ok(Ok(())) => {
                shared.status.forget_error();
                health.up();
                while health.is_up()
                    && !health.probe_requested(SECRETS_CHECK).await
                    && shared.settings.secrets() == secrets
                {}
            }
            Ok(Err(error)) => {
                tracing::debug!(output = shared.settings.name, %error, "the brokers did not answer a probe");
                health.down(&shared.status.last_error().message);
                health.probe_requested(PROBE_EVERY).await;
            }
            // The runtime is ending.
            Err(_) => return,
        }
        shared.replace_failed();
        if shared.settings.secrets() != secrets {
            tracing::info!(output = shared.settings.name, "a secret has changed; logging in with it");
            match shared.renew() {
                Ok(present) => secrets = present,
                Err(error) => {
                    tracing::error!(output = shared.settings.name, %error, "no new producer could be created");
                    // The next attempt follows the next change of a secret.
                    secrets = shared.settings.secrets();
                }
            }
        }
    }
}

impl OutputSettings for KafkaSettings {
    fn start(self: Box<Self>, metrics: &Metrics) -> Result<Arc<dyn Output>, FieldError> {
        let key = format!("outputs.{}.client", self.name);
        match Kafka::start(*self, metrics) {
            Ok(kafka) => Ok(Arc::new(kafka)),
            Err(error) => Err(FieldError { key, message: rejected(&error) }),
        }
    }

    fn examine<'a>(&'a self, needs: &'a Needs, findings: &'a Findings) -> BoxFuture<'a, ()> {
        Box::pin(examine::examine(self, needs, findings))
    }

    fn render<'r>(&self, record: &'r Record) -> Rendered<'r> {
        let mode = record.mode.unwrap_or(self.mode);
        Rendered {
            mode,
            key: record.key.as_deref(),
            headers: binding::headers(&record.event, mode, self.headers),
            payload: binding::payload(&record.event, mode),
        }
    }

    fn bus(&self) -> Option<Bus> {
        Some(KafkaSettings::bus(self))
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
