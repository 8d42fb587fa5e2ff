//! A bus under test: its three servers, what can be done to them, and the proxies that simulate a bad network.
//!
//! Promise: both buses have the same functions, so a scenario is written once.

use std::path::Path;
use std::sync::Mutex;

use crate::support::kafka::KafkaOptions;
use crate::support::kafka::cluster::KafkaCluster;
use crate::support::nats::cluster::NatsCluster;
use crate::support::read::{self, Bus, Record};
use crate::support::toxiproxy::{Toxic, Toxiproxy};
use crate::support::wait::SETTLED;
use crate::support::{eventually, free_port};

/// How many servers there are.
pub const SERVERS: usize = 3;

/// Partitions of each topic: the leaders are spread over all brokers.
const PARTITIONS: i32 = 3;

/// The name under which the bridge connects to NATS.
const CLIENT: &str = "apsara-bridge";

/// The configuration of a Kafka topic that allows the loss of one broker.
pub const SAFE: [(&str, &str); 1] = [("min.insync.replicas", "2")];

#[derive(Debug)]
enum Cluster {
    Nats(NatsCluster),
    Kafka(KafkaCluster),
}

/// The state of a server, as far as scenarios have changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Frozen,
    Ended,
}

/// A bus.
#[derive(Debug)]
pub struct Side {
    cluster: Cluster,
    toxiproxy: Toxiproxy,
    /// The proxies, if the bridge reaches the servers through them.
    proxied: Vec<String>,
    states: Mutex<[State; SERVERS]>,
}

impl Side {
    /// Starts its servers and the proxies in front of them.
    pub async fn start(bus: Bus) -> Side {
        let toxiproxy = Toxiproxy::start().await;
        let (cluster, proxied) = match bus {
            Bus::Nats => {
                let nats = NatsCluster::start(SERVERS).await;
                let mut proxied = Vec::new();
                for (place, upstream) in nats.ports().into_iter().enumerate() {
                    let listen = free_port();
                    toxiproxy.add_proxy(&proxy(place), listen, upstream).await;
                    proxied.push(format!("nats://127.0.0.1:{listen}"));
                }
                (Cluster::Nats(nats), proxied)
            }
            Bus::Kafka => {
                let options = KafkaOptions { auto_create_topics: false, ..KafkaOptions::default() };
                let kafka = KafkaCluster::start(SERVERS, options).await;
                for (place, ports) in kafka.proxied().iter().enumerate() {
                    toxiproxy.add_proxy(&proxy(place), ports.proxy, ports.broker).await;
                }
                let proxied = kafka.proxied_bootstrap();
                (Cluster::Kafka(kafka), proxied)
            }
        };
        Side { cluster, toxiproxy, proxied, states: Mutex::new([State::Running; SERVERS]) }
    }

    /// Which bus it is.
    pub fn bus(&self) -> Bus {
        match self.cluster {
            Cluster::Nats(_) => Bus::Nats,
            Cluster::Kafka(_) => Bus::Kafka,
        }
    }

    /// The servers, if this is NATS.
    pub fn nats(&self) -> Option<&NatsCluster> {
        if let Cluster::Nats(nats) = &self.cluster { Some(nats) } else { None }
    }

    /// The brokers, if this is Kafka.
    pub fn kafka(&self) -> Option<&KafkaCluster> {
        if let Cluster::Kafka(kafka) = &self.cluster { Some(kafka) } else { None }
    }

    /// The kind and the addresses of an output that publishes here.
    pub fn output(&self, is_proxied: bool) -> (&'static str, Vec<String>) {
        let (kind, direct) = match &self.cluster {
            Cluster::Nats(nats) => ("nats", nats.urls()),
            Cluster::Kafka(kafka) => ("kafka", kafka.bootstrap()),
        };
        (kind, if is_proxied { self.proxied.clone() } else { direct })
    }

    /// Creates a topic, or a stream of one subject, with a copy on each server.
    pub async fn create(&self, name: &str) {
        match &self.cluster {
            Cluster::Nats(nats) => {
                nats.create_stream(&stream(name), &[name], |_| {}).await;
                nats.in_sync(&stream(name)).await;
            }
            Cluster::Kafka(kafka) => {
                kafka.create_topic(name, PARTITIONS, &SAFE).await;
                kafka.in_sync(name).await;
            }
        }
    }

    /// The server that leads a stream, or the first partition of a topic.
    pub async fn leader(&self, name: &str) -> usize {
        eventually(&format!("a leader of {name}"), SETTLED, async || match &self.cluster {
            Cluster::Nats(nats) => nats.leader(&stream(name)).await,
            Cluster::Kafka(kafka) => kafka.leaders(name).await.first().copied().flatten(),
        })
        .await
    }

    /// The server that leads JetStream, or the active controller.
    pub async fn controller(&self) -> usize {
        eventually("a leader of the cluster", SETTLED, async || match &self.cluster {
            Cluster::Nats(nats) => nats.meta_leader().await,
            Cluster::Kafka(kafka) => kafka.controller(),
        })
        .await
    }

    /// A server that the bridge uses: the one that it is connected to, or one that leads a partition and is not the
    /// controller.
    pub async fn used(&self, name: &str) -> usize {
        eventually("a server that the bridge uses", SETTLED, async || match &self.cluster {
            Cluster::Nats(nats) => nats.servers_of(CLIENT).await.first().copied(),
            Cluster::Kafka(kafka) => {
                let controller = kafka.controller()?;
                kafka.leaders(name).await.into_iter().flatten().find(|&leader| leader != controller)
            }
        })
        .await
    }

    /// Asks the leader of a stream to step down. True if one did. Kafka has no such request.
    pub async fn step_down(&self, name: &str) -> bool {
        let nats = self.nats().expect("only scenarios of NATS ask for it");
        nats.step_down(&stream(name)).await
    }

    /// Asks the leader of JetStream to step down. True if one did.
    pub async fn step_down_controller(&self) -> bool {
        self.nats().expect("only scenarios of NATS ask for it").step_down_meta().await
    }

    /// Kills a server with SIGKILL.
    pub async fn kill(&self, place: usize) {
        self.set(place, State::Ended);
        match &self.cluster {
            Cluster::Nats(nats) => nats.kill(place).await,
            Cluster::Kafka(kafka) => kafka.kill(place).await,
        }
    }

    /// Stops a server with SIGTERM.
    pub async fn shut_down(&self, place: usize) {
        self.set(place, State::Ended);
        match &self.cluster {
            Cluster::Nats(nats) => nats.shut_down(place).await,
            Cluster::Kafka(kafka) => kafka.shut_down(place).await,
        }
    }

    /// Starts a server that has ended.
    pub async fn start_again(&self, place: usize) {
        match &self.cluster {
            Cluster::Nats(nats) => nats.start_again(place).await,
            Cluster::Kafka(kafka) => kafka.start_again(place).await,
        }
        self.set(place, State::Running);
    }

    /// Freezes a server.
    pub async fn freeze(&self, place: usize) {
        self.set(place, State::Frozen);
        match &self.cluster {
            Cluster::Nats(nats) => nats.freeze(place).await,
            Cluster::Kafka(kafka) => kafka.freeze(place).await,
        }
    }

    /// Lets a frozen server continue.
    pub async fn thaw(&self, place: usize) {
        match &self.cluster {
            Cluster::Nats(nats) => nats.thaw(place).await,
            Cluster::Kafka(kafka) => kafka.thaw(place).await,
        }
        self.set(place, State::Running);
    }

    /// Adds a toxic to the connections between the bridge and all servers.
    pub async fn add_toxic(&self, toxic: Toxic) {
        for place in 0..SERVERS {
            self.toxiproxy.add(&proxy(place), toxic).await;
        }
    }

    /// Removes all toxics.
    pub async fn clear_toxics(&self) {
        self.toxiproxy.clear().await;
    }

    /// Waits until all servers work and all copies of a destination have caught up.
    pub async fn settled(&self, name: &str) {
        match &self.cluster {
            Cluster::Nats(nats) => {
                nats.complete().await;
                nats.in_sync(&stream(name)).await;
            }
            Cluster::Kafka(kafka) => {
                kafka.complete().await;
                kafka.in_sync(name).await;
            }
        }
    }

    /// Undoes what an aborted scenario has left behind.
    pub async fn repair(&self) {
        self.clear_toxics().await;
        let states = *self.lock();
        let broken = (0..SERVERS).map(async |place| match states[place] {
            State::Running => {}
            State::Frozen => self.thaw(place).await,
            State::Ended => self.start_again(place).await,
        });
        futures_util::future::join_all(broken).await;
    }

    /// Reads a destination from its beginning to its end.
    pub async fn read(&self, name: &str) -> Result<Vec<Record>, String> {
        let mut records = Vec::new();
        match &self.cluster {
            Cluster::Nats(nats) => read::nats(nats, &stream(name), |record| records.push(record)).await?,
            Cluster::Kafka(kafka) => tokio::task::block_in_place(|| {
                read::kafka(kafka, &[(name, PARTITIONS)], |record| records.push(record))
            })?,
        }
        Ok(records)
    }

    /// Keeps the logs of the servers in a folder.
    pub fn keep_logs(&self, folder: &Path) {
        let logs: Vec<_> = match &self.cluster {
            Cluster::Nats(nats) => nats.servers().iter().map(|server| server.log_file()).collect(),
            Cluster::Kafka(kafka) => kafka.brokers().iter().map(|broker| broker.log_file()).collect(),
        };
        for (log, number) in logs.iter().zip(1..) {
            let kept = folder.join(format!("{}-{number}.log", self.bus().name().to_lowercase()));
            if let Err(error) = std::fs::copy(log, &kept) {
                eprintln!("{} cannot be kept: {error}", log.display());
            }
        }
    }

    fn set(&self, place: usize, state: State) {
        self.lock()[place] = state;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, [State; SERVERS]> {
        self.states.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The stream of a subject.
pub fn stream(subject: &str) -> String {
    subject.to_uppercase().replace('.', "_")
}

fn proxy(place: usize) -> String {
    format!("server-{}", place + 1)
}
