//! A producer whose delivery reports complete futures.
//!
//! rdkafka's `FutureProducer` does the same. Its thread wakes up ten times per second for as long as it lives, which was
//! most of the CPU time of an idle bridge. This one sleeps until there is a report, and wakes up once per second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use tokio::sync::oneshot;

use super::Context;

/// How long the thread sleeps without a report. A dropped producer is closed after that time at the latest.
const POLL: Duration = Duration::from_secs(1);

/// The outcome of a record; an error of the channel if the producer was closed before.
pub(super) type Delivery = oneshot::Receiver<Result<(), KafkaError>>;

/// A record that waits to be sent.
pub(super) type Outgoing<'r> = BaseRecord<'r, [u8], [u8], Box<oneshot::Sender<Result<(), KafkaError>>>>;

/// A handle of a producer. The producer is closed after its last handle was dropped; records that it still has then are
/// given up.
#[derive(Clone)]
pub(super) struct Producer(Arc<Handle>);

struct Handle {
    producer: Arc<BaseProducer<Reports>>,
    is_closing: Arc<AtomicBool>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.is_closing.store(true, Ordering::Relaxed);
    }
}

impl Producer {
    /// Creates a producer, which connects in the background.
    ///
    /// # Errors
    /// librdkafka does not accept the combination of properties.
    pub(super) fn new(config: &ClientConfig, context: Context) -> Result<Producer, KafkaError> {
        let producer: Arc<BaseProducer<Reports>> = Arc::new(config.create_with_context(Reports(context))?);
        let is_closing = Arc::new(AtomicBool::new(false));
        let (polled, is_over) = (producer.clone(), is_closing.clone());
        let thread = std::thread::Builder::new().name("kafka reports".to_owned());
        let started = thread.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                polled.poll(POLL);
            }
        });
        started.map_err(|error| KafkaError::ClientCreation(format!("no thread for delivery reports: {error}")))?;
        Ok(Producer(Arc::new(Handle { producer, is_closing })))
    }

    /// The client of the producer.
    pub(super) fn client(&self) -> &Client<impl ClientContext + use<>> {
        self.0.producer.client()
    }

    /// A record for [`Producer::send`], and the future of its delivery report.
    pub(super) fn record<'r>(
        topic: &'r str,
        key: Option<&'r [u8]>,
        payload: &'r [u8],
        headers: OwnedHeaders,
    ) -> (Outgoing<'r>, Delivery) {
        let (sender, delivery) = oneshot::channel();
        let record = BaseRecord::with_opaque_to(topic, Box::new(sender)).payload(payload).headers(headers);
        let record = match key {
            Some(key) => record.key(key),
            None => record,
        };
        (record, delivery)
    }

    /// Passes a record to librdkafka.
    ///
    /// # Errors
    /// The record again, for example when the queue is full.
    #[expect(clippy::result_large_err, reason = "the caller tries the same record again")]
    pub(super) fn send<'r>(&self, record: Outgoing<'r>) -> Result<(), (KafkaError, Outgoing<'r>)> {
        self.0.producer.send(record)
    }
}

/// Passes on what librdkafka reports.
struct Reports(Context);

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<oneshot::Sender<Result<(), KafkaError>>>;

    fn delivery(&self, report: &DeliveryResult<'_>, sender: Self::DeliveryOpaque) {
        let outcome = report.as_ref().map(|_| ()).map_err(|(error, _)| error.clone());
        // A publish that reached its deadline does not wait any more.
        let _ = sender.send(outcome);
    }
}
