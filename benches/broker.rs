//! The real brokers that the benchmarks publish to. Each has a topic or stream for every service.

#![allow(dead_code)] // each benchmark that includes this uses its own part of it

use tokio::runtime::Runtime;

use crate::support::config::Config;
use crate::support::kafka::{Kafka, KafkaOptions};
use crate::support::nats::{Nats, NatsOptions};

/// How much a topic or stream keeps, because the runs write gigabytes that nobody reads.
const KEPT_BYTES: i64 = 512 << 20;

/// The buses measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bus {
    /// Apache Kafka.
    Kafka,
    /// NATS JetStream.
    Jetstream,
}

impl Bus {
    pub(crate) const ALL: [Bus; 2] = [Bus::Kafka, Bus::Jetstream];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Bus::Kafka => "kafka",
            Bus::Jetstream => "jetstream",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Bus> {
        Bus::ALL.into_iter().find(|bus| bus.name() == name)
    }
}

/// A broker of a bus.
pub(crate) enum Broker {
    Kafka(Kafka),
    Nats(Nats),
}

impl Broker {
    /// Starts a broker with the topics `bench.NAME`.
    pub(crate) fn start(bus: Bus, runtime: &Runtime, names: &[&str]) -> Broker {
        match bus {
            Bus::Kafka => {
                let properties = vec![("log.retention.check.interval.ms".to_owned(), "5000".to_owned())];
                let kafka = Kafka::start_blocking(KafkaOptions { bench: true, properties, ..KafkaOptions::default() });
                let kept = KEPT_BYTES.to_string();
                let segment = (KEPT_BYTES / 4).to_string();
                let config = [("retention.bytes", kept.as_str()), ("segment.bytes", segment.as_str())];
                for name in names {
                    // With several partitions, records without a key, like the forwarder's, would be batched better.
                    runtime.block_on(kafka.create_topic(&format!("bench.{name}"), 1, &config));
                }
                Broker::Kafka(kafka)
            }
            Bus::Jetstream => {
                let nats = Nats::start_blocking(NatsOptions::default());
                for name in names {
                    runtime.block_on(create_stream(&nats, name));
                }
                Broker::Nats(nats)
            }
        }
    }

    /// Makes a topic forget the ids of its messages, if the bus remembers ids.
    pub(crate) fn forget(&self, runtime: &Runtime, name: &str) {
        if let Broker::Nats(nats) = self {
            runtime.block_on(async {
                nats.jetstream().await.delete_stream(name).await.expect("the stream was created here");
                create_stream(nats, name).await;
            });
        }
    }

    pub(crate) fn bus(&self) -> Bus {
        match self {
            Broker::Kafka(_) => Bus::Kafka,
            Broker::Nats(_) => Bus::Jetstream,
        }
    }

    pub(crate) fn address(&self) -> &str {
        match self {
            Broker::Kafka(kafka) => kafka.brokers(),
            Broker::Nats(nats) => nats.url(),
        }
    }

    /// The configuration of a bridge whose output `bus` is this broker.
    pub(crate) fn output(&self) -> Config {
        match self {
            Broker::Kafka(kafka) => Config::http().output("bus", "kafka", &[kafka.brokers()]),
            Broker::Nats(nats) => Config::http().output("bus", "nats", &[nats.url()]),
        }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        match self {
            Broker::Kafka(kafka) => kafka.id(),
            Broker::Nats(nats) => nats.id(),
        }
    }
}

async fn create_stream(nats: &Nats, name: &str) {
    let subjects = [format!("bench.{name}"), format!("bench.{name}.>")];
    nats.create_stream_with(name, &[&subjects[0], &subjects[1]], |config| config.max_bytes = KEPT_BYTES).await;
}
