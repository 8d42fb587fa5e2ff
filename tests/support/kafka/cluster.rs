//! Kafka brokers that form a cluster: each is broker and controller, and topics have a copy on each of them.
//!
//! Promises: started means that all brokers know each other. A call that changes a broker returns when the change is
//! done, and a start returns when that broker answers. The clients of this support code use only brokers that should
//! answer. A cluster of one is a single broker.

use std::sync::Mutex;

use futures_util::future::join_all;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;
use serde_json::Value;

use super::{Kafka, KafkaOptions, Member, consumer, create_topic, internal_config};
use crate::support::wait::{CHANGE, RETRY, SETTLED};
use crate::support::{blocking, eventually, free_port, wait_for};

/// Timeouts of the quorum. With the defaults it takes seconds to notice that a controller has failed.
const QUORUM: [(&str, &str); 2] =
    [("controller.quorum.election.timeout.ms", "1000"), ("controller.quorum.fetch.timeout.ms", "2000")];

/// The ports of a proxy between clients and one broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proxied {
    /// The port of the proxy, which the broker advertises to its clients.
    pub proxy: u16,
    /// The port of the broker.
    pub broker: u16,
}

/// The brokers.
#[derive(Debug)]
pub struct KafkaCluster {
    brokers: Vec<Kafka>,
    /// Whether each broker should answer.
    answers: Mutex<Vec<bool>>,
    proxied: Vec<Proxied>,
}

impl KafkaCluster {
    /// Starts this many brokers.
    pub async fn start(size: usize, mut options: KafkaOptions) -> KafkaCluster {
        if size > 1 {
            options.properties.extend(QUORUM.map(|(key, value)| (key.to_owned(), value.to_owned())));
        }
        let controllers: Vec<u16> = (0..size).map(|_| free_port()).collect();
        let proxied: Vec<Proxied> = (0..size).map(|_| Proxied { proxy: free_port(), broker: free_port() }).collect();
        let starting = (1..).zip(&proxied).map(|(id, ports)| {
            let member = Member { id, controllers: controllers.clone(), proxied: Some((ports.broker, ports.proxy)) };
            let options = options.clone();
            // In parallel: none is ready before most of them are.
            blocking(move || Kafka::start_member(options, &member))
        });
        let brokers = join_all(starting).await;
        let cluster = KafkaCluster { answers: Mutex::new(vec![true; brokers.len()]), brokers, proxied };
        cluster.complete().await;
        cluster
    }

    /// The brokers, in the order of their numbers, which begin with 1.
    pub fn brokers(&self) -> &[Kafka] {
        &self.brokers
    }

    /// `host:port` of all brokers, for clients.
    pub fn bootstrap(&self) -> Vec<String> {
        self.brokers.iter().map(|broker| broker.brokers().to_owned()).collect()
    }

    /// `host:port` of all brokers for clients in other network namespaces, if [`KafkaOptions::reached_at`] is set.
    pub fn reached_at(&self) -> Vec<String> {
        let reached = self.brokers.iter().zip(&self.proxied);
        reached.filter_map(|(broker, ports)| Some(format!("{}:{}", broker.options.reached_at?, ports.broker))).collect()
    }

    /// `host:port` of the proxies. Clients that connect there use the proxies from then on.
    pub fn proxied_bootstrap(&self) -> Vec<String> {
        self.proxied.iter().map(|ports| format!("127.0.0.1:{}", ports.proxy)).collect()
    }

    /// The ports of the proxies and the brokers.
    pub fn proxied(&self) -> &[Proxied] {
        &self.proxied
    }

    /// The settings of a client of this support code.
    pub fn client_config(&self) -> ClientConfig {
        internal_config(&self.reachable())
    }

    /// Creates a topic with a copy on each broker, and returns when all its partitions have a leader.
    pub async fn create_topic(&self, name: &str, partitions: i32, configs: &[(&str, &str)]) {
        let copies = i32::try_from(self.brokers.len()).expect("a few");
        create_topic(&self.reachable(), name, partitions, copies, configs).await;
    }

    /// Sets the configuration of a topic. Keys that are not given get their defaults.
    ///
    /// # Errors
    /// The error of the cluster.
    pub async fn configure_topic(&self, name: &str, configs: &[(&str, &str)]) -> Result<(), String> {
        let admin: AdminClient<DefaultClientContext> = self.client_config().create().expect("the settings are valid");
        let mut change = AlterConfig::new(ResourceSpecifier::Topic(name));
        for (key, value) in configs {
            change = change.set(key, value);
        }
        let options = AdminOptions::new().request_timeout(Some(CHANGE));
        let results = admin.alter_configs([&change], &options).await.map_err(|error| error.to_string())?;
        let refused = results.into_iter().find_map(Result::err);
        refused.map_or(Ok(()), |(_, code): (_, RDKafkaErrorCode)| Err(format!("topic {name}: {code}")))
    }

    /// The indexes in [`brokers`](Self::brokers) of the leaders of a topic's partitions, without those that have none.
    pub async fn leaders(&self, topic: &str) -> Vec<Option<usize>> {
        self.partitions(topic, |partition| usize::try_from(partition.leader() - 1).ok()).await
    }

    /// The index of the broker that is the active controller, according to the metadata of the brokers.
    pub fn controller(&self) -> Option<usize> {
        let states = self.brokers.iter().filter_map(|broker| {
            let file = broker.folder.path().join("data/__cluster_metadata-0/quorum-state");
            serde_json::from_slice::<Value>(&std::fs::read(file).ok()?).ok()
        });
        let latest = states.max_by_key(|state| state["leaderEpoch"].as_i64())?;
        usize::try_from(latest["leaderId"].as_i64()? - 1).ok()
    }

    /// Kills a broker with SIGKILL.
    pub async fn kill(&self, place: usize) {
        self.set_answers(place, false);
        tokio::task::block_in_place(|| self.brokers[place].kill());
    }

    /// Stops a broker with SIGTERM, and returns when it has ended.
    pub async fn shut_down(&self, place: usize) {
        self.set_answers(place, false);
        tokio::task::block_in_place(|| self.brokers[place].shut_down());
    }

    /// Starts a broker that is not running.
    pub async fn start_again(&self, place: usize) {
        self.brokers[place].restart().await;
        self.set_answers(place, true);
    }

    /// Freezes a broker: connections stay open, nothing answers.
    pub async fn freeze(&self, place: usize) {
        self.set_answers(place, false);
        tokio::task::block_in_place(|| self.brokers[place].stop());
    }

    /// Lets a frozen broker continue.
    pub async fn thaw(&self, place: usize) {
        self.brokers[place].cont();
        self.set_answers(place, true);
    }

    /// Waits until every broker sees all of them.
    pub async fn complete(&self) {
        for broker in &self.brokers {
            let (internal, size) = (broker.internal.clone(), self.brokers.len());
            blocking(move || {
                let consumer = consumer(&internal);
                wait_for(&format!("broker {internal} to see {size} brokers"), SETTLED, || {
                    let metadata = consumer.fetch_metadata(None, RETRY).ok()?;
                    (metadata.brokers().len() == size).then_some(())
                });
            })
            .await;
        }
    }

    /// Waits until every partition of a topic has a leader and copies that have caught up on all brokers.
    pub async fn in_sync(&self, topic: &str) {
        let size = self.brokers.len();
        eventually(&format!("all copies of topic {topic} to have caught up"), SETTLED, async || {
            let partitions = self.partitions(topic, move |each| each.leader() >= 0 && each.isr().len() == size).await;
            (!partitions.is_empty() && partitions.iter().all(|&is_whole| is_whole)).then_some(())
        })
        .await;
    }

    /// Something about each partition of a topic; nothing if the cluster does not answer.
    async fn partitions<T: Send + 'static>(
        &self,
        topic: &str,
        look: impl Fn(&rdkafka::metadata::MetadataPartition) -> T + Send + 'static,
    ) -> Vec<T> {
        let (reachable, topic) = (self.reachable(), topic.to_owned());
        blocking(move || {
            let metadata = consumer(&reachable).fetch_metadata(Some(&topic), RETRY);
            let topics = metadata.iter().flat_map(|metadata| metadata.topics());
            topics.flat_map(|topic| topic.partitions()).map(look).collect()
        })
        .await
    }

    fn reachable(&self) -> String {
        let answers = self.answers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let brokers = self.brokers.iter().zip(answers.iter()).filter(|(_, answers)| **answers);
        brokers.map(|(broker, _)| broker.internal.as_str()).collect::<Vec<_>>().join(",")
    }

    fn set_answers(&self, place: usize, value: bool) {
        self.answers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())[place] = value;
    }
}
