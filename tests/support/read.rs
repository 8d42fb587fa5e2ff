//! Reads what is on a bus, from the beginning to the end, one record at a time, because a million do not fit into
//! memory.
//!
//! Promises: the end is determined first. Everything before it is read, or the result is an error. Nothing is left on
//! the broker. The bridge must not run any more, because it could publish after the end was determined.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures_util::StreamExt;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::kafka::cluster::KafkaCluster;
use super::nats::cluster::NatsCluster;
use super::wait::{RETRY, SETTLED};
use super::wait_for;

/// Where an event must be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    Kafka,
    Nats,
}

impl Bus {
    pub const ALL: [Bus; 2] = [Bus::Kafka, Bus::Nats];

    pub fn name(self) -> &'static str {
        match self {
            Bus::Kafka => "Kafka",
            Bus::Nats => "NATS",
        }
    }
}

/// A structured record or message, as it is on a bus.
#[derive(Clone, Debug)]
pub struct Record {
    pub bus: Bus,
    /// Topic or subject.
    pub topic: String,
    /// Kafka's partition.
    pub partition: Option<i32>,
    /// Offset, or sequence in the stream.
    pub offset: u64,
    /// Kafka's key.
    pub key: Option<Vec<u8>>,
    /// Names and values in the order of the bus.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Record {
    /// Its position, for people.
    pub fn place(&self) -> String {
        let partition = self.partition.map_or_else(String::new, |partition| format!("[{partition}]"));
        format!("{} {}{partition} at {}", self.bus.name(), self.topic, self.offset)
    }
}

/// Reads topics, each given with its number of partitions. Blocks the thread.
///
/// # Errors
/// What could not be read.
pub fn kafka(kafka: &KafkaCluster, topics: &[(&str, i32)], mut take: impl FnMut(Record)) -> Result<(), String> {
    let mut config = kafka.client_config();
    // librdkafka requires a group even if partitions are assigned explicitly. No consumer joins it. Fetching little
    // ahead is enough on one machine.
    config.set("group.id", "reader").set("enable.auto.commit", "false").set("queued.max.messages.kbytes", "16384");
    let consumer: BaseConsumer = config.create().expect("the settings are valid");
    let mut ends = HashMap::new();
    let mut assignment = TopicPartitionList::new();
    for &(topic, partitions) in topics {
        for partition in 0..partitions {
            let (low, high) = wait_for(&format!("the end of {topic}[{partition}]"), SETTLED, || {
                let ends = consumer.fetch_watermarks(topic, partition, RETRY).ok();
                if ends.is_none() {
                    // The leader that it knows may have been killed, and it does not look for another one by itself.
                    let _ = consumer.fetch_metadata(Some(topic), RETRY);
                }
                ends
            });
            if low != 0 {
                return Err(format!("Kafka has deleted what was in {topic}[{partition}] before {low}"));
            }
            if high > 0 {
                assignment.add_partition_offset(topic, partition, Offset::Beginning).expect("an allowed offset");
                ends.insert((topic.to_owned(), partition), high);
            }
        }
    }
    consumer.assign(&assignment).expect("partitions can be assigned by hand");
    let mut last_record = Instant::now();
    while !ends.is_empty() {
        // librdkafka retries errors by itself, for example when a broker is unavailable. The time limit ends that.
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else {
            if last_record.elapsed() > SETTLED {
                return Err(format!(
                    "Kafka sent nothing for {SETTLED:?}; still to read, up to these offsets: {ends:?}"
                ));
            }
            continue;
        };
        last_record = Instant::now();
        let place = (message.topic().to_owned(), message.partition());
        if ends.get(&place).is_some_and(|&end| message.offset() + 1 >= end) {
            ends.remove(&place);
        }
        let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
        let headers = message.headers().map(|headers| {
            headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect::<Vec<_>>()
        });
        take(Record {
            bus: Bus::Kafka,
            partition: Some(place.1),
            topic: place.0,
            offset: u64::try_from(message.offset()).expect("a record's offset"),
            key: message.key().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
            body: message.payload().unwrap_or_default().to_vec(),
        });
    }
    Ok(())
}

/// Reads a stream.
///
/// # Errors
/// What could not be read.
pub async fn nats(nats: &NatsCluster, stream: &str, mut take: impl FnMut(Record)) -> Result<(), String> {
    let name = stream;
    let failed = |error: &dyn std::fmt::Display| format!("stream {name} cannot be read: {error}");
    let mut stream = nats.jetstream().await.get_stream(stream).await.map_err(|error| failed(&error))?;
    let state = stream.info().await.map_err(|error| failed(&error))?.state.clone();
    if state.messages == 0 {
        return Ok(());
    }
    let consumer = stream.create_consumer(OrderedConfig::default()).await.map_err(|error| failed(&error))?;
    let mut messages = consumer.messages().await.map_err(|error| failed(&error))?;
    let mut count = 0;
    loop {
        let next = tokio::time::timeout(SETTLED, messages.next()).await;
        let next = next.map_err(|_| format!("NATS sent nothing for {SETTLED:?} after {count} messages"))?;
        let message = next.ok_or_else(|| failed(&"it ended"))?.map_err(|error| failed(&error))?;
        let info = message.info().map_err(|error| failed(&error))?;
        // "Nothing is pending" is not the condition, because more messages may have arrived since.
        let (sequence, is_last) = (info.stream_sequence, info.stream_sequence >= state.last_sequence);
        let headers = message.headers.iter().flat_map(|headers| headers.iter());
        let headers =
            headers.flat_map(|(name, values)| values.iter().map(|value| (name.to_string(), value.to_string())));
        count += 1;
        take(Record {
            bus: Bus::Nats,
            topic: message.subject.to_string(),
            partition: None,
            offset: sequence,
            key: None,
            headers: headers.collect(),
            body: message.payload.to_vec(),
        });
        if is_last {
            break;
        }
    }
    if count == state.messages && state.first_sequence == 1 {
        return Ok(());
    }
    Err(format!("NATS sent {count} of {} messages, from {} on", state.messages, state.first_sequence))
}
