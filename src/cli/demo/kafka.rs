//! The embedded Kafka of the demo: librdkafka's mock cluster inside this process.

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{Found, MAX_WAIT, TOPICS};

/// What topics begin with.
pub(super) const PREFIX: &str = "media.";

/// How many partitions each topic has.
const PARTITIONS: i32 = 3;

/// A cluster with the topics of the demo. It ends when it is dropped.
pub(super) struct Cluster(MockCluster<'static, DefaultProducerContext>);

impl Cluster {
    /// Starts a cluster.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn start() -> Result<Cluster, String> {
        let cluster = MockCluster::new(1).map_err(|error| format!("the mock cluster cannot be started: {error}"))?;
        for topic in topics() {
            let created = cluster.create_topic(&topic, PARTITIONS, 1);
            created.map_err(|error| format!("topic {topic} cannot be created: {error}"))?;
        }
        Ok(Cluster(cluster))
    }

    /// Its addresses.
    pub(super) fn brokers(&self) -> String {
        self.0.bootstrap_servers()
    }

    /// The output that publishes to it, as a user would write it.
    pub(super) fn output(&self) -> String {
        format!("kind = \"kafka\"\nbrokers = [\"{}\"]", self.brokers())
    }
}

fn topics() -> impl Iterator<Item = String> {
    TOPICS.iter().map(|topic| format!("{PREFIX}{topic}"))
}

/// Reads all topics from their start until the expected number of records has arrived. Blocks.
///
/// # Errors
/// A sentence.
pub(super) fn read_back(brokers: &str, expected: usize) -> Result<Vec<Found>, String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "apsara-bridge-demo")
        .set("enable.auto.commit", "false")
        .create()
        .map_err(|error| format!("the consumer cannot be created: {error}"))?;
    let mut assignment = TopicPartitionList::new();
    for topic in topics() {
        for partition in 0..PARTITIONS {
            assignment
                .add_partition_offset(&topic, partition, Offset::Beginning)
                .map_err(|error| format!("{topic}: {error}"))?;
        }
    }
    consumer.assign(&assignment).map_err(|error| format!("topics cannot be read: {error}"))?;
    let (start, mut found) = (Instant::now(), Vec::new());
    while found.len() < expected && start.elapsed() < MAX_WAIT {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        let id = message
            .headers()
            .and_then(|headers| headers.iter().find(|header| header.key == "ce_id").and_then(|header| header.value));
        found.push(Found {
            id: String::from_utf8_lossy(id.unwrap_or_default()).into_owned(),
            topic: message.topic().to_owned(),
            place: format!("partition {}, offset {}", message.partition(), message.offset()),
        });
    }
    Ok(found)
}
