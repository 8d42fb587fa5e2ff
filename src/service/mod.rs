//! The running service: its parts are put together, started, reloaded, and stopped.
//!
//! Stopping has phases (`shutdown`): the service is not ready; after `shutdown.delay` it accepts no more callbacks;
//! callbacks in flight have `shutdown.drain` to finish; events that no bus has confirmed by then go to the spool; then
//! it ends and reports how many callbacks had no outcome.

mod drain;
mod reload;
mod shutdown;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

pub use drain::{Drained, drain_spool};
pub use reload::{Candidate, Load, LoadAttempt, RELOADABLE, Reloader, is_reloadable, restart_keys};

use crate::admin::{Admin, AdminSettings};
use crate::bridge::{Bridge, Delivery, InputFacts, Parts, Rules};
use crate::common::validation::FieldError;
use crate::dialect::{Catalogue, Normalizer};
use crate::input::{CheckedInput, Input, InputHandle, Misconfigured};
use crate::output::{CheckedOutput, Output};
use crate::route::{Destination, Router};
use crate::store::{Store, StoreSettings};
use crate::telemetry::logs::Format;
use crate::telemetry::metrics::Metrics;
use shutdown::{Phase, Shutdown};

/// Everything a service is built from, checked.
#[derive(Debug)]
pub struct Settings {
    /// Inputs.
    pub inputs: Vec<CheckedInput>,
    /// Outputs.
    pub outputs: Vec<CheckedOutput>,
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
    /// The admin listener.
    pub admin: AdminSettings,
    /// Format and filter of the logs.
    pub log: (Format, String),
    /// Time between "not ready" and "not accepting".
    pub shutdown_delay: Duration,
    /// Longest time for callbacks in flight.
    pub shutdown_drain: Duration,
}

/// How long the writes to the spool at the end may take, beyond the drain time.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// How long a batch that is being published from the spool has to be confirmed when all callbacks have ended. A bus that
/// answers needs less. For one that does not answer nobody should wait, because the batch is still in the spool.
const LAST_BATCH: Duration = Duration::from_secs(1);

/// What a stop may take beyond its configured times. Writing unconfirmed events takes at most [`LAST_WRITES`] of it; the
/// rest is for a busy machine.
const STOP_RESERVE: Duration = Duration::from_secs(12);

impl Settings {
    /// The longest time from the signal to the end, for whoever kills the process after a time.
    pub fn longest_stop(&self) -> Duration {
        self.shutdown_delay + self.shutdown_drain + STOP_RESERVE
    }
}

/// Opens the store without blocking the runtime.
async fn open_store(
    settings: StoreSettings,
    lock_until: Option<std::time::Instant>,
    metrics: &Metrics,
) -> Result<Store, FieldError> {
    let metrics = metrics.clone();
    let opened = tokio::task::spawn_blocking(move || Store::open(settings, lock_until, &metrics)).await;
    let wrong = |message: String| FieldError { key: "spool.path".to_owned(), message };
    opened.map_err(|error| wrong(error.to_string()))?.map_err(|error| wrong(error.to_string()))
}

fn new_metrics() -> Result<Metrics, FieldError> {
    Metrics::new().map_err(|error| FieldError { key: "metrics".to_owned(), message: error.to_string() })
}

/// Starts outputs, which connect in the background.
fn start_outputs(outputs: Vec<CheckedOutput>, metrics: &Metrics) -> Result<Vec<Arc<dyn Output>>, FieldError> {
    outputs.into_iter().map(|output| output.settings.start(metrics)).collect()
}

/// A service that is bound to its addresses and ready to run. Outputs connect in the background from the start on.
#[derive(Debug)]
pub struct Service {
    bridge: Arc<Bridge>,
    output_kinds: BTreeMap<String, &'static str>,
    inputs: Vec<(String, Box<dyn Input>)>,
    misconfigured: Misconfigured,
    admin: Admin,
    shutdown: Shutdown,
    shutdown_delay: Duration,
    shutdown_drain: Duration,
}

/// How a service ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Callbacks without an outcome. Their senders got no answer and try again elsewhere.
    pub without_outcome: usize,
    /// Inputs that ended by themselves and could not hand over everything, each with what was wrong.
    pub failed_inputs: Vec<String>,
}

impl Service {
    /// Starts outputs and binds addresses. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// The first part that cannot start.
    pub async fn start(settings: Settings) -> Result<Service, FieldError> {
        let metrics = new_metrics()?;
        let shutdown = Shutdown::default();
        let store = match settings.store {
            Some(store) => Some(open_store(store, None, &metrics).await?),
            None => None,
        };
        let output_kinds: BTreeMap<String, &'static str> =
            settings.outputs.iter().map(|output| (output.name.clone(), output.kind)).collect();
        let outputs = start_outputs(settings.outputs, &metrics)?;
        let normalizer = Normalizer::new(settings.catalogue, settings.type_prefix);
        let rules = Rules::new(normalizer, settings.router, settings.dead_letters, &metrics);
        let cancel_in_flight = shutdown.token(Phase::CancellingInFlight);
        let bridge = Arc::new(Bridge::new(rules, outputs, settings.delivery, store, cancel_in_flight, metrics));
        let (mut inputs, mut facts) = (Vec::new(), Vec::new());
        for input in settings.inputs {
            let (kind, places) = (input.kind, input.places());
            let opened = input.settings.open().await?;
            facts.push(InputFacts { name: input.name.clone(), kind, origin: opened.origin(), places });
            inputs.push((input.name, opened));
        }
        bridge.describe(Parts { inputs: facts, output_kinds: output_kinds.clone() });
        let misconfigured = Misconfigured::default();
        let admin = Admin::bind(&settings.admin, bridge.clone(), misconfigured.clone());
        let admin = admin.map_err(|error| {
            let addresses = settings.admin.listen.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ");
            FieldError { key: "admin.listen".to_owned(), message: format!("{addresses} cannot be bound: {error}") }
        })?;
        Ok(Service {
            bridge,
            output_kinds,
            inputs,
            misconfigured,
            admin,
            shutdown,
            shutdown_delay: settings.shutdown_delay,
            shutdown_drain: settings.shutdown_drain,
        })
    }

    /// The bridge, for tests and benchmarks.
    pub fn bridge(&self) -> &Arc<Bridge> {
        &self.bridge
    }

    /// What changes it while it runs.
    pub fn reloader(&self) -> Reloader {
        let inputs = self.inputs.iter().filter_map(|(name, input)| Some((name.clone(), input.reload()?))).collect();
        Reloader::new(self.bridge.clone(), self.output_kinds.clone(), inputs, self.admin.page().clone())
    }

    /// The address of an input.
    pub fn input_address(&self, name: &str) -> Option<SocketAddr> {
        self.inputs.iter().find(|(known, _)| known == name).and_then(|(_, input)| input.address())
    }

    /// The address of the admin listener.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// Runs until `stop`, or until every input has ended by itself; then stops in phases. `now` ends it at once.
    pub async fn run(self, stop: impl Future<Output = ()>, now: impl Future<Output = ()>) -> Ended {
        let shutdown = self.shutdown;
        let (not_accepting, closed) = (shutdown.token(Phase::NotAccepting), shutdown.token(Phase::Closed));
        let callbacks = TaskTracker::new();
        let mut background = [
            tokio::spawn(self.bridge.clone().drain(not_accepting.clone())),
            tokio::spawn(self.bridge.clone().replay(not_accepting.clone())),
        ];
        let _history = AbortOnDropHandle::new(tokio::spawn(self.bridge.clone().keep_history()));
        tracing::info!(address = %self.admin.address(), page = self.admin.page_address(), "serving metrics and probes");
        let admin = tokio::spawn(self.admin.run(shutdown.token(Phase::NotReady), closed.clone()));
        let handle = |name: &str| {
            let (bridge, misconfigured) = (self.bridge.clone(), self.misconfigured.clone());
            InputHandle::new(name, bridge, misconfigured, not_accepting.clone(), closed.clone(), callbacks.clone())
        };
        let mut inputs = JoinSet::new();
        for (name, input) in self.inputs {
            tracing::info!(input = name, origin = input.origin(), "accepting callbacks");
            let running = input.run(handle(&name));
            inputs.spawn(async move { running.await.map_err(|error| format!("input `{name}`: {error}")) });
        }
        let mut failed_inputs = Vec::new();
        let mut inputs_have_ended = false;
        tokio::select! {
            () = stop => {}
            () = all_ended(&mut inputs, &mut failed_inputs) => {
                inputs_have_ended = true;
                tracing::info!("every input has ended");
            }
        }
        shutdown.enter(Phase::NotReady);
        tracing::info!("stopping: not ready any more");
        let gently = async {
            if !inputs_have_ended {
                tokio::time::sleep(self.shutdown_delay).await;
            }
            shutdown.enter(Phase::NotAccepting);
            tracing::info!("stopping: accepting no more callbacks");
            callbacks.close();
            let deadline = Instant::now() + self.shutdown_drain;
            if tokio::time::timeout_at(deadline, callbacks.wait()).await.is_err() {
                tracing::warn!("stopping: events that are still being published go to the spool");
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
        let without_outcome = self.bridge.in_flight();
        shutdown.enter(Phase::Closed);
        for task in background {
            // The next start publishes again what is cut off here.
            task.abort();
        }
        if !inputs_have_ended {
            let _ = tokio::time::timeout(LAST_WRITES, all_ended(&mut inputs, &mut failed_inputs)).await;
        }
        let _ = tokio::time::timeout(LAST_WRITES, admin).await;
        // Everything kept is on disk already; this only saves the next start some work.
        let _ = tokio::time::timeout(LAST_WRITES, self.bridge.close()).await;
        if without_outcome == 0 {
            tracing::info!("stopped");
        } else {
            tracing::error!(callbacks = without_outcome, "stopped before these callbacks had an outcome");
        }
        Ended { without_outcome, failed_inputs }
    }
}

/// Waits until all inputs have ended, and collects what went wrong. May be cancelled and called again.
async fn all_ended(inputs: &mut JoinSet<Result<(), String>>, failed: &mut Vec<String>) {
    while let Some(ended) = inputs.join_next().await {
        if let Err(error) = ended.map_err(|error| error.to_string()).flatten() {
            tracing::error!(error, "an input has ended with an error");
            failed.push(error);
        }
    }
}
