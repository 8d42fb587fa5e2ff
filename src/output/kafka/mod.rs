//! Kafka, through librdkafka.
//!
//! The producer is idempotent with `acks=all`; a record is published when its delivery report says so. The deadline
//! of delivery is ours: it is librdkafka's `message.timeout.ms`, so that a record that was answered with 503 is not
//! sent minutes later. librdkafka reconnects and retries by itself inside that time. A full queue is waited for.
//!
//! Two more producers are made when they are needed first. Records that have more time, those that failed before, go by
//! a patient one: a topic that makes a broker wait must not delay the others, which share a connection. A record whose
//! batch was too large for its topic is sent again by one that sends every record in a batch of its own.

mod binding;
mod company;
mod config;
mod errors;

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
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use schemars::JsonSchema;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use company::Company;
pub use config::{KafkaConfig, KafkaSettings};
use config::{PresentSecrets, rejected};
use errors::{is_of_the_batch, kind_of};

use super::{
    ErrorKind, Health, MAX_PUBLISH_TIME, Output, OutputKind, OutputSettings, PublishError, Record, Rendered,
    SECRETS_CHECK,
};
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

/// How long to wait for room in the queue before trying again: a batch leaves it about so often.
const QUEUE_RETRY: Duration = Duration::from_millis(5);

/// How long a broker may take to answer the question whether it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a topic that was not there is taken to be missing, before a record is tried on it again.
const MISSING_FOR: Duration = Duration::from_secs(5);

/// How many topics that did not answer are remembered.
const MAX_UNANSWERED: usize = 10_000;

/// How many topics are asked for at a time.
const ASKS: usize = 8;

/// How often a broker that is down is asked.
const PROBE_EVERY: Duration = Duration::from_secs(1);

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
    /// For records that have [`MAX_PUBLISH_TIME`].
    Patient,
    /// For records that must be alone in their batch.
    Alone,
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
        tracing::debug!(target: "librdkafka", output = self.0.health.name(), ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", output = self.0.health.name(), %error, "{reason}");
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.0.health.down(&self.0.complaint());
            // Without traffic nobody else would ask whether they are back.
            self.0.health.request_probe();
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
    fn start(settings: KafkaSettings, metrics: &Metrics) -> Result<Kafka, KafkaError> {
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
    fn renew(&self) -> Result<PresentSecrets, KafkaError> {
        let (client, secrets) = self.settings.present();
        let producer = client.create_with_context(Context(self.status.clone()))?;
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
            client.set("message.timeout.ms", MAX_PUBLISH_TIME.as_millis().to_string());
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
        let rendered = self.settings.render(record);
        let mut headers = OwnedHeaders::new_with_capacity(rendered.headers.len());
        for (key, value) in &rendered.headers {
            headers = headers.insert(Header { key, value: Some(&**value) });
        }
        let mut message: FutureRecord<'_, [u8], [u8]> =
            FutureRecord::to(&record.topic).payload(rendered.payload.as_ref()).headers(headers);
        if let Some(key) = rendered.key {
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
                self.status.health.request_probe();
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
async fn watch(shared: Arc<Shared>, mut secrets: PresentSecrets) {
    let Status { health, complaint } = &*shared.status;
    loop {
        let Some(producer) = shared.producer() else { return };
        // A name that no topic can have, so that asking for it neither creates a topic nor lists all of them.
        let ask = move || producer.client().fetch_metadata(Some("!"), PROBE_TIMEOUT).map(|_| ());
        match tokio::task::spawn_blocking(ask).await {
            Ok(Ok(())) => {
                complaint.lock().unwrap_or_else(PoisonError::into_inner).clear();
                health.up();
                while health.is_up()
                    && !health.probe_requested(SECRETS_CHECK).await
                    && shared.settings.secrets() == secrets
                {}
            }
            Ok(Err(error)) => {
                tracing::debug!(output = shared.settings.name, %error, "no metadata");
                health.down(&shared.status.complaint());
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
                    // Tried again when the secret changes again.
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

    fn render<'r>(&self, record: &'r Record) -> Rendered<'r> {
        let mode = record.mode.unwrap_or(self.mode);
        Rendered {
            mode,
            key: record.key.as_deref(),
            headers: binding::headers(&record.event, mode),
            payload: binding::payload(&record.event, mode),
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
