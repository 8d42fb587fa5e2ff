//! The running service: its parts put together, started, and drained.
//!
//! Stopping goes in steps: not ready; after `shutdown.delay` no more callbacks are taken; what is in flight has
//! `shutdown.drain` to finish; what a bus has not confirmed by then goes to the spool; then it ends, and tells how much
//! had no outcome.

mod drain;
mod shutdown;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

pub use drain::{Drained, drain_spool};

use crate::admin::Admin;
use crate::bridge::{Bridge, Delivery, Rules};
use crate::dialect::{Catalogue, Normalizer};
use crate::input::http::{Endpoints, HttpInput, HttpSettings};
use crate::input::mns::{MnsInput, MnsSettings};
use crate::output::Output;
use crate::output::console::Console;
use crate::output::kafka::{Kafka, KafkaSettings};
use crate::output::nats::{Nats, NatsSettings};
use crate::route::{Destination, Router};
use crate::store::{Store, StoreSettings};
use crate::telemetry::logs::Format;
use crate::telemetry::metrics::Metrics;
use shutdown::{Phase, Shutdown};

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
    /// Where dead letters are published.
    pub dead_letters: Option<Destination>,
    /// The spool and the dead letters; none keeps nothing.
    pub store: Option<StoreSettings>,
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
    Http(Box<HttpSettings>),
    /// From an MNS queue.
    Mns(Box<MnsSettings>),
}

/// Checked settings of an output.
#[derive(Debug)]
pub enum OutputSettings {
    /// To Kafka.
    Kafka(KafkaSettings),
    /// To NATS.
    Nats(Box<NatsSettings>),
    /// To standard output, under a name.
    Console(String),
}

impl OutputSettings {
    /// Its kind, as `kind` names it.
    pub fn kind(&self) -> &'static str {
        match self {
            OutputSettings::Kafka(_) => "kafka",
            OutputSettings::Nats(_) => "nats",
            OutputSettings::Console(_) => "console",
        }
    }

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

/// How long what goes to the spool at the end may take, beyond the drain time.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// How long a batch that is on its way out of the spool has to be confirmed, when all callbacks have ended. A bus that
/// answers needs less; for one that doesn't nobody should wait, for the batch is still in the spool.
const LAST_BATCH: Duration = Duration::from_secs(1);

/// Changes what of a running service can be changed: routes, the catalogue and the prefix of types, the destination
/// of dead letters, and the endpoints of HTTP inputs with their keys.
#[derive(Clone, Debug)]
pub struct Reloader {
    bridge: Arc<Bridge>,
    endpoints: Vec<(String, Endpoints)>,
}

impl Reloader {
    /// Takes over what can be changed from settings for the same service: all of it or nothing. The rest of them is
    /// left alone.
    ///
    /// # Errors
    /// A sentence, when the routes need an output that doesn't run.
    pub fn apply(&self, settings: Settings) -> Result<(), String> {
        let normalizer = Normalizer::new(settings.catalogue, settings.type_prefix);
        let rules = Rules::new(normalizer, settings.router, settings.dead_letters, self.bridge.metrics());
        self.bridge
            .change_rules(rules)
            .map_err(|output| format!("events are to go to output `{output}`, which is not running: restart"))?;
        for input in settings.inputs {
            if let InputSettings::Http(http) = input
                && let Some((_, endpoints)) = self.endpoints.iter().find(|(name, _)| name == http.name())
            {
                endpoints.replace(*http, self.bridge.metrics());
            }
        }
        Ok(())
    }

    /// Counts a reload.
    pub fn count(&self, is_success: bool) {
        let result = RELOAD_RESULTS[usize::from(!is_success)];
        self.bridge.metrics().config_reloads_total.with_label_values(&[result]).inc();
    }
}

/// The words of the label `result` of reloads.
const RELOAD_RESULTS: [&str; 2] = ["success", "failure"];

/// Opens the store without blocking the runtime.
async fn open_store(
    settings: StoreSettings,
    lock_until: Option<std::time::Instant>,
    metrics: &Metrics,
) -> Result<Store, StartError> {
    let metrics = metrics.clone();
    let opened = tokio::task::spawn_blocking(move || Store::open(settings, lock_until, &metrics)).await;
    let opened = opened.map_err(|error| error.to_string()).flatten();
    opened.map_err(|reason| StartError { key: "spool.path".to_owned(), reason })
}

fn new_metrics() -> Result<Metrics, StartError> {
    Metrics::new().map_err(|error| StartError { key: "metrics".to_owned(), reason: error.to_string() })
}

/// Starts outputs; they connect in the background.
fn start_outputs(settings: Vec<OutputSettings>, metrics: &Metrics) -> Result<Vec<Arc<dyn Output>>, StartError> {
    let mut outputs: Vec<Arc<dyn Output>> = Vec::new();
    for output in settings {
        outputs.push(match output {
            OutputSettings::Kafka(kafka) => {
                let key = format!("outputs.{}", kafka.name());
                Arc::new(Kafka::start(kafka, metrics).map_err(|reason| StartError { key, reason })?)
            }
            OutputSettings::Nats(nats) => Arc::new(Nats::start(*nats, metrics)),
            OutputSettings::Console(name) => Arc::new(Console::new(&name, metrics)),
        });
    }
    Ok(outputs)
}

/// A service that is bound to its addresses and ready to run. Outputs connect in the background from the start on.
#[derive(Debug)]
pub struct Service {
    bridge: Arc<Bridge>,
    inputs: Vec<(String, HttpInput)>,
    queues: Vec<(String, MnsInput)>,
    admin: Admin,
    shutdown: Shutdown,
    shutdown_delay: Duration,
    shutdown_drain: Duration,
}

impl Service {
    /// Starts outputs and binds addresses. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// The first part that can't start.
    pub async fn start(settings: Settings) -> Result<Service, StartError> {
        let metrics = new_metrics()?;
        let shutdown = Shutdown::default();
        let store = match settings.store {
            Some(store) => Some(open_store(store, None, &metrics).await?),
            None => None,
        };
        let outputs = start_outputs(settings.outputs, &metrics)?;
        let normalizer = Normalizer::new(settings.catalogue, settings.type_prefix);
        for result in RELOAD_RESULTS {
            metrics.config_reloads_total.with_label_values(&[result]);
        }
        let rules = Rules::new(normalizer, settings.router, settings.dead_letters, &metrics);
        let bridge = {
            let cancel_in_flight = shutdown.token(Phase::CancellingInFlight);
            Arc::new(Bridge::new(rules, outputs, settings.delivery, store, cancel_in_flight, metrics))
        };
        let (mut inputs, mut queues) = (Vec::new(), Vec::new());
        for input in settings.inputs {
            let http = match input {
                InputSettings::Http(http) => http,
                InputSettings::Mns(mns) => {
                    let name = mns.name().to_owned();
                    let key = format!("inputs.{name}.endpoint");
                    queues.push((name, MnsInput::new(*mns).map_err(|reason| StartError { key, reason })?));
                    continue;
                }
            };
            let name = http.name().to_owned();
            let address = shown(http.listen());
            let bound = HttpInput::bind(*http).await.map_err(|error| StartError {
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
            queues,
            admin,
            shutdown,
            shutdown_delay: settings.shutdown_delay,
            shutdown_drain: settings.shutdown_drain,
        })
    }

    /// The middle, for those who want to look.
    pub fn bridge(&self) -> &Arc<Bridge> {
        &self.bridge
    }

    /// What changes it while it runs.
    pub fn reloader(&self) -> Reloader {
        let endpoints = self.inputs.iter().map(|(name, input)| (name.clone(), input.endpoints())).collect();
        Reloader { bridge: self.bridge.clone(), endpoints }
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
        let shutdown = self.shutdown;
        let (not_accepting, closed) = (shutdown.token(Phase::NotAccepting), shutdown.token(Phase::Closed));
        let callbacks = TaskTracker::new();
        let listeners = TaskTracker::new();
        let mut background = [
            tokio::spawn(self.bridge.clone().drain(not_accepting.clone())),
            tokio::spawn(self.bridge.clone().replay(not_accepting.clone())),
        ];
        for (name, input) in &self.inputs {
            tracing::info!(input = name, address = %input.address(), "taking callbacks");
        }
        tracing::info!(address = %self.admin.address(), "serving metrics and probes");
        for (_, input) in self.inputs {
            listeners.spawn(input.run(self.bridge.clone(), not_accepting.clone(), closed.clone(), callbacks.clone()));
        }
        for (name, input) in self.queues {
            tracing::info!(input = name, queue = input.queue(), "taking callbacks");
            listeners.spawn(input.run(self.bridge.clone(), not_accepting.clone(), callbacks.clone()));
        }
        listeners.spawn(self.admin.run(shutdown.token(Phase::NotReady), closed));

        stop.await;
        shutdown.enter(Phase::NotReady);
        tracing::info!("stopping: not ready any more");
        let gently = async {
            tokio::time::sleep(self.shutdown_delay).await;
            shutdown.enter(Phase::NotAccepting);
            tracing::info!("stopping: taking no more callbacks");
            callbacks.close();
            let deadline = Instant::now() + self.shutdown_drain;
            if tokio::time::timeout_at(deadline, callbacks.wait()).await.is_err() {
                tracing::warn!("stopping: what is still being published goes to the spool");
                shutdown.enter(Phase::CancellingInFlight);
                let _ = tokio::time::timeout(LAST_WRITES, callbacks.wait()).await;
            }
            let deadline = deadline.min(Instant::now() + LAST_BATCH);
            for task in &mut background {
                let _ = tokio::time::timeout_at(deadline, task).await;
            }
        };
        tokio::select! {
            () = gently => {}
            () = now => tracing::warn!(during = ?shutdown.phase(), "stopping at once"),
        }
        let left = self.bridge.in_flight();
        shutdown.enter(Phase::Closed);
        for task in background {
            // What of the spool is cut off here is published again by the next start.
            task.abort();
        }
        listeners.close();
        let _ = tokio::time::timeout(LAST_WRITES, listeners.wait()).await;
        // All that was kept is on the disk already; this only spares the next start some work.
        let _ = tokio::time::timeout(LAST_WRITES, self.bridge.close()).await;
        if left == 0 {
            tracing::info!("stopped");
        } else {
            tracing::error!(callbacks = left, "stopped before these callbacks had an outcome");
        }
        left
    }
}
