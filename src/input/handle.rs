//! What an input knows of the rest: where callbacks go, how long it runs, and where it reports.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bridge::{Admission, Arriving, Bridge, Callback, InputSeries, Outcome};
use crate::dialect::NotACallback;
use crate::telemetry::metrics::Metrics;

/// The inputs that receive nothing until a person changes something, and why.
#[derive(Clone, Debug, Default)]
pub struct Misconfigured(Arc<Mutex<BTreeMap<String, String>>>);

impl Misconfigured {
    /// Their names, and why.
    pub fn reasons(&self) -> BTreeMap<String, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, input: &str, why: Option<&str>) -> bool {
        let mut reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => reasons.insert(input.to_owned(), why.to_owned()).is_none(),
            None => reasons.remove(input).is_some(),
        }
    }
}

/// The handle of one input.
#[derive(Debug)]
pub struct InputHandle {
    series: Arc<InputSeries>,
    bridge: Arc<Bridge>,
    misconfigured: Misconfigured,
    not_accepting: CancellationToken,
    closed: CancellationToken,
    callbacks: TaskTracker,
}

impl InputHandle {
    /// The handle of an input with this name. Initializes the series of its callbacks, so that they exist before the
    /// first callback.
    pub fn new(
        name: &str,
        bridge: Arc<Bridge>,
        misconfigured: Misconfigured,
        not_accepting: CancellationToken,
        closed: CancellationToken,
        callbacks: TaskTracker,
    ) -> InputHandle {
        let series = Arc::new(InputSeries::new(name, bridge.metrics()));
        InputHandle { series, bridge, misconfigured, not_accepting, closed, callbacks }
    }

    /// The name of the input.
    pub fn name(&self) -> &str {
        self.series.name()
    }

    /// What its callbacks say about where they came from.
    pub fn series(&self) -> &Arc<InputSeries> {
        &self.series
    }

    /// Processes a callback to its outcome; see [`Bridge::accept`].
    pub async fn accept(&self, callback: &Callback) -> Outcome {
        self.bridge.accept(callback).await
    }

    /// Ends a callback whose body is not a callback, as the input knows already; see [`Bridge::reject`].
    pub async fn reject(&self, callback: &Callback, error: NotACallback) -> Outcome {
        self.bridge.reject(callback, error).await
    }

    /// Shows in the event stream that something was not accepted as a callback: the reason as in the metrics, what the
    /// sender is told, and the path of the request.
    pub fn rejected(&self, reason: &str, message: &str, path: Option<&str>) {
        self.bridge.feed().rejection(self.name(), reason, message, path);
    }

    /// Begins a callback's share of the memory; see [`Bridge::admit`].
    pub fn admit(&self) -> Admission {
        self.bridge.admit()
    }

    /// Begins the share of a body that is arriving; see [`Bridge::arriving`].
    pub fn arriving(&self) -> Arriving {
        self.bridge.arriving()
    }

    /// Whether there is a place for dead letters on the disk, which may be full.
    pub fn keeps_dead_letters(&self) -> bool {
        self.bridge.has_store()
    }

    /// The longest time from receipt to answer.
    pub fn deadline(&self) -> Duration {
        self.bridge.deadline()
    }

    /// The metrics.
    pub fn metrics(&self) -> &Metrics {
        self.bridge.metrics()
    }

    /// Reports why the input receives nothing until a person changes something, if that is so. Returns whether it was
    /// otherwise before.
    pub fn set_misconfigured(&self, why: Option<&str>) -> bool {
        self.misconfigured.set(self.name(), why)
    }

    /// Cancelled when no more callbacks may be accepted. Those in flight are finished.
    pub fn not_accepting(&self) -> &CancellationToken {
        &self.not_accepting
    }

    /// Cancelled when everything ends.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// The callbacks that stopping waits for. An input runs each of its callbacks in it, and holds a token of it
    /// while a callback may be on its way.
    pub fn callbacks(&self) -> &TaskTracker {
        &self.callbacks
    }
}
