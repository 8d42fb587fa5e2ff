//! The running service: its parts put together, started, and drained.
//!
//! Stopping goes in steps: not ready; after `shutdown.delay` no more callbacks are taken; what is in flight has
//! `shutdown.drain` to finish; then it ends, and tells how much had no outcome by then.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::bridge::{Bridge, Delivery};
use crate::dialect::{Catalogue, Normalizer};
use crate::input::http::{HttpInput, HttpSettings};
use crate::output::Output;
use crate::output::console::Console;
use crate::output::kafka::{Kafka, KafkaSettings};
use crate::output::nats::{Nats, NatsSettings};
use crate::route::Router;
use crate::telemetry::logs::Format;
use crate::telemetry::metrics::Metrics;

/// Everything a service is built from, checked.
#[derive(Debug)]
pub struct Settings {
    /// Inputs.
    pub inputs: Vec<InputSettings>,
    /// Outputs.
    pub outputs: Vec<OutputSettings>,
    /// Routes.
    pub router: Router,
    /// Event types.
    pub catalogue: Catalogue,
    /// What every `type` starts with.
    pub type_prefix: String,
    /// Delivery.
    pub delivery: Delivery,
    /// Addresses of the admin listener, of which one is bound.
    pub admin_listen: Vec<SocketAddr>,
    /// Form and filter of the logs.
    pub log: (Format, String),
    /// Time between not being ready and taking no more.
    pub shutdown_delay: Duration,
    /// Longest time for what is in flight.
    pub shutdown_drain: Duration,
}

/// Checked settings of an input.
#[derive(Debug)]
pub enum InputSettings {
    /// By HTTP.
    Http(HttpSettings),
}

/// Checked settings of an output.
#[derive(Debug)]
pub enum OutputSettings {
    /// To Kafka.
    Kafka(KafkaSettings),
    /// To NATS.
    Nats(NatsSettings),
    /// To standard output, under a name.
    Console(String),
}

impl OutputSettings {
    /// Name of the output.
    pub fn name(&self) -> &str {
        match self {
            OutputSettings::Kafka(kafka) => kafka.name(),
            OutputSettings::Nats(nats) => nats.name(),
            OutputSettings::Console(name) => name,
        }
    }
}

fn shown(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
}

/// Why a service doesn't start: the key and the reason.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct StartError {
    /// The key of the configuration that it is about.
    pub key: String,
    /// What is wrong.
    pub reason: String,
}

/// A service that is bound to its addresses and ready to run. Outputs connect in the background from the start on.
#[derive(Debug)]
pub struct Service {
    bridge: Arc<Bridge>,
    inputs: Vec<(String, HttpInput)>,
    admin: Admin,
    shutdown_delay: Duration,
    shutdown_drain: Duration,
}

impl Service {
    /// Starts outputs and binds addresses. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// The first part that can't start.
    pub async fn start(settings: Settings) -> Result<Service, StartError> {
        let metrics = Metrics::new();
        let mut outputs: Vec<Arc<dyn Output>> = Vec::new();
        for output in settings.outputs {
            outputs.push(match output {
                OutputSettings::Kafka(kafka) => {
                    let key = format!("outputs.{}", kafka.name());
                    Arc::new(Kafka::start(kafka, &metrics).map_err(|reason| StartError { key, reason })?)
                }
                OutputSettings::Nats(nats) => Arc::new(Nats::start(nats, &metrics)),
                OutputSettings::Console(name) => Arc::new(Console::new(&name, &metrics)),
            });
        }
        let normalizer = Normalizer::new(settings.catalogue, settings.type_prefix);
        let bridge = Arc::new(Bridge::new(normalizer, settings.router, outputs, settings.delivery, metrics));
        let mut inputs = Vec::new();
        for InputSettings::Http(http) in settings.inputs {
            let name = http.name().to_owned();
            let address = shown(http.listen());
            let bound = HttpInput::bind(http).await.map_err(|error| StartError {
                key: format!("inputs.{name}.listen"),
                reason: format!("{address} can't be had: {error}"),
            })?;
            inputs.push((name, bound));
        }
        let admin = Admin::bind(&settings.admin_listen, bridge.clone()).await.map_err(|error| StartError {
            key: "admin.listen".to_owned(),
            reason: format!("{} can't be had: {error}", shown(&settings.admin_listen)),
        })?;
        Ok(Service {
            bridge,
            inputs,
            admin,
            shutdown_delay: settings.shutdown_delay,
            shutdown_drain: settings.shutdown_drain,
        })
    }

    /// The middle, for those who want to look.
    pub fn bridge(&self) -> &Arc<Bridge> {
        &self.bridge
    }

    /// The address of an input.
    pub fn input_address(&self, name: &str) -> Option<SocketAddr> {
        self.inputs.iter().find(|(known, _)| known == name).map(|(_, input)| input.address())
    }

    /// The address of the admin listener.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// Runs until `stop`, then drains; `now` cuts the draining short. Returns how many callbacks were left without
    /// an outcome: their senders got no answer and try again elsewhere.
    pub async fn run(self, stop: impl Future<Output = ()>, now: impl Future<Output = ()>) -> usize {
        let stopping = CancellationToken::new();
        let closed = CancellationToken::new();
        let callbacks = TaskTracker::new();
        let listeners = TaskTracker::new();
        for (name, input) in &self.inputs {
            tracing::info!(input = name, address = %input.address(), "taking callbacks");
        }
        tracing::info!(address = %self.admin.address(), "serving metrics and probes");
        for (_, input) in self.inputs {
            listeners.spawn(input.run(self.bridge.clone(), stopping.clone(), closed.clone(), callbacks.clone()));
        }
        let unready = self.admin.stopping();
        listeners.spawn(self.admin.run(closed.clone()));

        stop.await;
        unready.store(true, Ordering::Relaxed);
        tracing::info!("stopping: not ready any more");
        let drain = async {
            tokio::time::sleep(self.shutdown_delay).await;
            stopping.cancel();
            tracing::info!("stopping: taking no more callbacks");
            callbacks.close();
            let _ = tokio::time::timeout(self.shutdown_drain, callbacks.wait()).await;
        };
        tokio::select! {
            () = drain => {}
            () = now => tracing::warn!("stopping at once"),
        }
        let left = usize::try_from(self.bridge.metrics().in_flight.get()).unwrap_or(0);
        closed.cancel();
        listeners.close();
        listeners.wait().await;
        if left == 0 {
            tracing::info!("stopped");
        } else {
            tracing::error!(callbacks = left, "stopped before these callbacks had an outcome");
        }
        left
    }
}
