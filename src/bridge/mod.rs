//! The middle of the service: one callback in, one [`Outcome`] out.
//!
//! * Inputs know [`Bridge::accept`] and nothing behind it. Outputs know records and nothing before them.
//! * Every callback ends in exactly one outcome. It is counted once and logged with the id of the event. The input derives
//!   its answer from the outcome, so that nothing can be acknowledged by accident.
//! * What a bus does not acknowledge before the deadline goes to the spool; [`Bridge::drain`] publishes it in order. What
//!   a bus will never accept becomes a dead letter, which a person looks at and [replays](Bridge::replay). Both are in one
//!   [`store`](crate::store) on the disk.
//!
//! `accept` calls `dedupe`, then `deliver`, which calls `publish`, `dead_letters` and the store. None of them calls back.
//!
//! Futures of what is rare are boxed. While a bus is being waited for, thousands of other events pass through the caches of
//! the processor. The smaller the future of a callback is, the less of it must be read from memory again.

mod admission;
mod callback;
mod dead_letters;
mod dedupe;
mod deliver;
mod drain;
pub mod feed;
mod history;
mod junk;
mod observe;
mod outcome;
mod output_handle;
mod publish;
mod replay;
mod rules;
mod state;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustc_hash::FxHashMap;
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::common::limit::Limit;
use crate::dialect::NotACallback;
pub use crate::dialect::Sender;
use crate::output::Output;
use crate::store::{AWAITS_DEAD_LETTERS, FailureKind, Store, StoreBounds};
use crate::telemetry::metrics::Metrics;
use admission::InFlightBytes;
pub use admission::{Admission, Arriving, NoRoom};
pub use callback::{Callback, Signature};
pub use dedupe::DedupeSettings;
use dedupe::{Claim, Window};
use deliver::{Delivered, STORE_DEADLINE, in_time};
use feed::Feed;
use history::History;
use junk::JunkRate;
use observe::AgeSeries;
pub use observe::InputSeries;
pub use outcome::{DeadLetterReason, Kept, Outcome, Refusal};
use output_handle::OutputHandle;
pub use rules::Rules;
pub use state::{InputFacts, Parts, Readiness, Seen};

/// How callbacks are delivered.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Longest time from the arrival of a callback to its outcome.
    pub deadline: Duration,
    /// How long a topic may have only operator's errors before its older records become dead letters.
    pub give_up_after: Duration,
    /// Most callbacks that are published at once. Further ones wait, which is back-pressure.
    pub max_in_flight: usize,
    /// Most bytes of bodies and envelopes in memory.
    pub max_in_flight_bytes: u64,
    /// The dedupe window.
    pub dedupe: DedupeSettings,
}

/// The middle of the service.
#[derive(Debug)]
pub struct Bridge {
    rules: RwLock<Arc<Rules>>,
    outputs: FxHashMap<String, OutputHandle>,
    /// `delivery.deadline`.
    deadline: Duration,
    /// `delivery.give_up_after`, in milliseconds.
    give_up_after: AtomicU64,
    window: Window,
    store: Option<Store>,
    /// Permits of `delivery.max_in_flight`.
    in_flight_permits: Limit,
    in_flight_bytes: InFlightBytes,
    junk: JunkRate,
    /// Ends what is being published. It then goes to the spool.
    cancel_in_flight: CancellationToken,
    feed: Arc<Feed>,
    metrics: Metrics,
    age_series: AgeSeries,
    started: OffsetDateTime,
    history: History,
    /// When the newest dead letter was received, in Unix milliseconds; 0 if none is known.
    newest_dead_letter: AtomicI64,
    parts: RwLock<Arc<Parts>>,
}

impl Bridge {
    /// Puts the middle together.
    ///
    /// * A record for an output that does not exist fails as misconfigured.
    /// * Without a store, a callback that cannot be published is refused.
    /// * Cancelling `cancel_in_flight` ends what is being published; it then goes to the spool.
    pub fn new(
        rules: Rules,
        outputs: Vec<Arc<dyn Output>>,
        delivery: Delivery,
        store: Option<Store>,
        cancel_in_flight: CancellationToken,
        metrics: Metrics,
    ) -> Bridge {
        // Series that exist from the start can be alerted on before their first event.
        for reason in DeadLetterReason::all() {
            metrics.dead_letters_total.with_label_values(&[reason.as_str()]);
            metrics.dead_letters_not_kept_total.with_label_values(&[reason.as_str()]);
        }
        for result in replay::RESULTS {
            metrics.dead_letters_replayed_total.with_label_values(&[result]);
        }
        let handle =
            |output: Arc<dyn Output>| (output.name().to_owned(), OutputHandle::new(output, store.as_ref(), &metrics));
        let outputs: FxHashMap<String, OutputHandle> = outputs.into_iter().map(handle).collect();
        for (output, records) in store.iter().flat_map(Store::backlogs) {
            if output != AWAITS_DEAD_LETTERS && !outputs.contains_key(&output) {
                tracing::warn!(
                    output,
                    records,
                    "the spool has records for an output that is not configured; they stay in the spool. \
                     `apsara-bridge spool move` moves them to another output"
                );
            }
        }
        let newest_dead_letter = store.as_ref().and_then(Store::newest_dead_letter).unwrap_or(0);
        Bridge {
            rules: RwLock::new(Arc::new(rules)),
            outputs,
            in_flight_permits: Limit::new(delivery.max_in_flight),
            in_flight_bytes: InFlightBytes::new(delivery.max_in_flight_bytes),
            junk: JunkRate::default(),
            window: Window::new(delivery.dedupe, metrics.dedupe_ids.clone()),
            deadline: delivery.deadline,
            give_up_after: AtomicU64::new(milliseconds(delivery.give_up_after)),
            store,
            cancel_in_flight,
            feed: Arc::default(),
            metrics,
            age_series: AgeSeries::default(),
            started: OffsetDateTime::now_utc(),
            history: History::default(),
            newest_dead_letter: AtomicI64::new(newest_dead_letter),
            parts: RwLock::default(),
        }
    }

    fn rules(&self) -> Arc<Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over what can change while the bridge runs: the rules; of `delivery` everything but the deadline; the bounds
    /// of the store. Callbacks that were accepted before end by the old rules. Must run inside a tokio runtime. The caller
    /// has checked that the bridge has every output that the rules name.
    pub fn reconfigure(&self, rules: Rules, delivery: &Delivery, bounds: Option<StoreBounds>) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        self.in_flight_permits.resize(delivery.max_in_flight);
        self.in_flight_bytes.resize(delivery.max_in_flight_bytes);
        self.give_up_after.store(milliseconds(delivery.give_up_after), Ordering::Relaxed);
        self.window.set_bounds(delivery.dedupe);
        if let (Some(store), Some(bounds)) = (&self.store, bounds) {
            store.set_bounds(bounds);
        }
    }

    fn parts(&self) -> Arc<Parts> {
        self.parts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what the bridge is made of, for those who watch.
    pub fn describe(&self, parts: Parts) {
        *self.parts.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(parts);
    }

    /// Replaces the places of inputs, by their names.
    pub fn describe_places(&self, places: impl Iterator<Item = (String, Vec<String>)>) {
        let mut parts = Parts::clone(&self.parts());
        for (name, places) in places {
            if let Some(input) = parts.inputs.iter_mut().find(|input| input.name == name) {
                input.places = places;
            }
        }
        self.describe(parts);
    }

    fn give_up_after(&self) -> Duration {
        Duration::from_millis(self.give_up_after.load(Ordering::Relaxed))
    }

    /// The metrics in which the bridge counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What every `type` starts with at present.
    pub fn type_prefix(&self) -> String {
        self.rules().normalizer.type_prefix().to_owned()
    }

    /// What passes through the bridge, for those who watch.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// The text that Prometheus reads; see [`Metrics::text`].
    ///
    /// # Errors
    /// Those of [`Metrics::text`].
    pub fn metrics_text(&self) -> prometheus::Result<String> {
        if let Some(store) = &self.store {
            store.observe();
        }
        self.metrics.text()
    }

    /// Begins a callback's share of `delivery.max_in_flight_bytes`. Its input enlarges it by the complete body.
    pub fn admit(&self) -> Admission {
        self.in_flight_bytes.begin()
    }

    /// Begins a share for a body whose sender decides how fast it arrives: a quarter of `delivery.max_in_flight_bytes` in
    /// addition, which only bodies over 16 KiB need.
    pub fn arriving(&self) -> Arriving {
        self.in_flight_bytes.arriving()
    }

    /// The longest time from arrival to answer of a callback without its own.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Whether there is a spool, which may be full.
    pub fn has_store(&self) -> bool {
        self.store.is_some()
    }

    /// Whether an event that a bus does not acknowledge would be spooled now.
    pub fn can_spool(&self) -> bool {
        self.store.as_ref().is_some_and(Store::has_room)
    }

    /// Outputs with records in the spool, each with their number. Empty without a spool.
    pub fn backlogs(&self) -> Vec<(String, u64)> {
        self.store.as_ref().map(Store::backlogs).unwrap_or_default()
    }

    /// Number of callbacks between arrival and outcome.
    pub fn in_flight(&self) -> usize {
        usize::try_from(self.metrics.in_flight.get()).unwrap_or_default()
    }

    /// Closes the store. Call it when nothing is in flight: later callbacks that cannot be published are refused.
    pub async fn close(&self) {
        if let Some(store) = &self.store {
            store.close().await;
        }
    }

    /// Whether every output has connected and is not known to be down.
    pub fn is_connected(&self) -> bool {
        self.outputs.values().all(OutputHandle::is_up)
    }

    /// Whether an output has connected and is not known to be down.
    fn is_up(&self, output: &str) -> bool {
        self.outputs.get(output).is_some_and(OutputHandle::is_up)
    }

    /// Names of the outputs that are not connected.
    pub fn disconnected(&self) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.outputs.iter().filter(|(_, output)| !output.is_up()).map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// Brings a callback to its outcome: normalizes it, routes it, publishes it, and keeps what could not be published.
    /// Takes at most the deadline of the callback and the time of one durable write.
    ///
    /// Cancelling it gives the callback up: nothing is acknowledged, and a copy of the event may have been published or
    /// stored. A caller that may be cancelled runs it as a task.
    pub async fn accept(&self, callback: &Callback) -> Outcome {
        let _in_flight = self.enter_in_flight();
        let (outcome, ended) = self.outcome(callback).await;
        self.observe_outcome(callback, &outcome, ended);
        outcome
    }

    /// Ends a callback whose body its input could not read as one. What there is of the body is kept as
    /// [`accept`](Bridge::accept) keeps a body that is not a callback, without another look at it: the beginning of a
    /// body can look like a callback.
    pub async fn reject(&self, callback: &Callback, error: NotACallback) -> Outcome {
        let _in_flight = self.enter_in_flight();
        let outcome = self.keep_body(callback, error).await;
        self.observe_outcome(callback, &outcome, Instant::now());
        outcome
    }

    /// The outcome, and when it was known.
    async fn outcome(&self, callback: &Callback) -> (Outcome, Instant) {
        let rules = self.rules();
        let normalized = match rules.normalizer.normalize(&callback.body, &callback.origin()) {
            Ok(normalized) => normalized,
            Err(error) => return (Box::pin(self.keep_body(callback, error)).await, Instant::now()),
        };
        self.observe_event(&rules, callback, &normalized);
        let event = Arc::new(normalized.event);
        let trace = self.feed.trace(&event, callback.arrived);
        let deadline = callback.arrived + callback.max_publish_time.unwrap_or(self.deadline);
        let claim = self.window.claim(&event, callback.arrived, deadline).await;
        let Delivered { outcome, trace: late, is_accepted } = match claim {
            Claim::Duplicate => Delivered { outcome: Outcome::Duplicate, trace: None, is_accepted: false },
            Claim::Late | Claim::First(_) => self.deliver(&rules, callback, &event, trace.as_deref()).await,
        };
        let ended = Instant::now();
        match claim {
            Claim::First(claimed) if is_accepted => claimed.accepted(ended),
            _ => drop(claim),
        }
        if outcome == Outcome::Published {
            self.observe_age(&event);
            self.metrics.delivery_duration_seconds.observe((ended - callback.arrived).as_secs_f64());
        }
        observe::log_outcome(&event, &outcome);
        if let Some(trace) = trace.or(late) {
            self.feed.callback(*trace, &rules, callback, &event, &outcome, ended);
        }
        (outcome, ended)
    }

    /// Stores a body that is not a callback, so that a person can look at it.
    async fn keep_body(&self, callback: &Callback, error: NotACallback) -> Outcome {
        let kept = match &self.store {
            None => Kept::No,
            Some(_) if callback.is_from_anyone && !self.junk.is_within_rate() => Kept::OverBudget,
            Some(store) => {
                let letter = dead_letters::of_body(callback, &error);
                let until = callback.arrived + STORE_DEADLINE;
                match in_time(until, store.keep(Vec::new(), vec![letter])).await {
                    Ok(()) => Kept::Yes,
                    Err(error) if error.kind == FailureKind::NotACallbackFull => Kept::OverBudget,
                    Err(_) => Kept::No,
                }
            }
        };
        self.observe_body(callback, &error, kept);
        let outcome = Outcome::NotACallback { error, kept };
        self.feed.body(callback, &outcome);
        outcome
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
