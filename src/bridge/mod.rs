//! The middle: one callback in, one [`Outcome`] out.
//!
//! Inputs know [`Bridge::accept`] and nothing behind it; outputs know records and nothing before them. The answer to
//! the sender is made from the outcome, so that nothing can be acknowledged by forgetting. Every callback ends in
//! exactly one outcome, which is counted once and logged with the event's id.
//!
//! What a bus doesn't take before the deadline goes to the spool, from which [`Bridge::drain`] publishes it in order;
//! what it will never take becomes a dead letter, which a person looks at and [replays](Bridge::replay). Both lie in
//! one [`store`] on the disk.

mod admission;
mod dedupe;
mod deliver;
mod drain;
mod replay;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use prometheus::{Histogram, IntCounter};
use rustc_hash::FxHashMap;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dialect::{Dialect, Normalized, Normalizer, NotACallback, Origin};
use crate::event::{DIALECT, Event, SOURCE, SUBJECT, TIME, TYPE};
use crate::output::{ErrorClass, ErrorKind, Output};
use crate::route::{Action, Destination, Router};
use crate::store::{self, AWAITS_DEAD_LETTERS, DeadLetter, FailureKind, OutputLanes, Store};
use crate::telemetry::metrics::{Metrics, set_to_now};
use admission::InFlightBytes;
pub use admission::{Admission, NoRoom};
pub use dedupe::DedupeSettings;
use dedupe::{Claim, Window};
use deliver::{Delivered, STORE_ANSWERS, in_time};

/// A callback as an input received it.
#[derive(Debug)]
pub struct Callback {
    /// Name of the input.
    pub input: Arc<str>,
    /// The body, as it came.
    pub body: Bytes,
    /// When its last byte arrived, by the clock.
    pub received: OffsetDateTime,
    /// When it arrived, for the deadline.
    pub arrived: Instant,
    /// What the configuration knows of its sender.
    pub sender: Arc<Sender>,
    /// W3C trace context of the sender.
    pub traceparent: Option<String>,
    /// How long the buses have before it is spooled, where its input keeps it meanwhile; none is the delivery
    /// deadline. Within this time an output that is down is waited for.
    pub patience: Option<Duration>,
    /// Whether it becomes a dead letter if it cannot be published now, because it was received too often.
    pub is_last_try: bool,
    /// Its share of `delivery.max_in_flight_bytes`, see [`Bridge::admit`].
    pub admission: Admission,
}

/// What the configuration knows of the sender of callbacks.
#[derive(Clone, Debug, Default)]
pub struct Sender {
    /// Region of the Alibaba service.
    pub region: Option<String>,
    /// Account.
    pub account_id: Option<String>,
    /// Dialects that are taken; empty takes both.
    pub dialects: Vec<Dialect>,
}

/// What became of a callback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every destination's bus has acknowledged it.
    Published,
    /// It is on the disk; the destinations that have not acknowledged it get it later.
    Spooled,
    /// The same event was accepted before, within the window.
    Duplicate,
    /// A route said to drop it.
    Dropped,
    /// It can't be published as it is, and is kept with the reason.
    DeadLettered(DeadLetterReason),
    /// Nothing is kept; the sender should try again.
    Refused(Refusal),
    /// It is no callback that is taken here; trying again can't help.
    NotACallback {
        /// Why it is none.
        error: NotACallback,
        /// Whether it is kept as a dead letter.
        is_kept: bool,
    },
}

impl Outcome {
    /// The words that outcomes have in metrics and logs.
    pub const LABELS: &[&str] =
        &["published", "spooled", "duplicate", "dropped", "dead_lettered", "refused", "not_accepted"];

    /// The word in metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Outcome::Published => "published",
            Outcome::Spooled => "spooled",
            Outcome::Duplicate => "duplicate",
            Outcome::Dropped => "dropped",
            Outcome::DeadLettered(_) | Outcome::NotACallback { is_kept: true, .. } => "dead_lettered",
            Outcome::Refused(_) => "refused",
            Outcome::NotACallback { is_kept: false, .. } => "not_accepted",
        }
    }
}

/// Why an event became a dead letter, in a closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeadLetterReason {
    /// No route took it.
    Unrouted,
    /// A route said so.
    Routed,
    /// It is no callback of a known dialect.
    NotACallback,
    /// It was changed on the disk.
    Damaged,
    /// It came from a queue as often as may be, and could not be published.
    Exhausted,
    /// A bus will never take it.
    Publish(ErrorKind),
}

impl DeadLetterReason {
    /// Every reason.
    pub fn all() -> impl Iterator<Item = DeadLetterReason> {
        let publish = ErrorKind::ALL
            .into_iter()
            .filter(|kind| kind.class() != ErrorClass::Transient)
            .map(DeadLetterReason::Publish);
        let others = [
            DeadLetterReason::Unrouted,
            DeadLetterReason::Routed,
            DeadLetterReason::NotACallback,
            DeadLetterReason::Damaged,
            DeadLetterReason::Exhausted,
        ];
        others.into_iter().chain(publish)
    }

    /// What is said of it where no bus has said anything.
    pub(crate) fn code(self, route: &str) -> String {
        match self {
            DeadLetterReason::Routed => format!("route {route}"),
            DeadLetterReason::Unrouted => "no route took the event".to_owned(),
            _ => String::new(),
        }
    }

    /// The word in metrics and in the attribute `dlqreason`.
    pub fn as_str(self) -> &'static str {
        match self {
            DeadLetterReason::Unrouted => "unrouted",
            DeadLetterReason::Routed => "routed",
            DeadLetterReason::NotACallback => "not_a_callback",
            DeadLetterReason::Damaged => "damaged",
            DeadLetterReason::Exhausted => "exhausted",
            DeadLetterReason::Publish(kind) => kind.as_str(),
        }
    }
}

/// Why nothing was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not every destination has acknowledged it in time.
    NotPublished {
        /// Outputs of the destinations that have not, each once.
        outputs: Vec<String>,
        /// How many have not.
        failed: usize,
        /// Of how many.
        destinations: usize,
    },
    /// It should become a dead letter, but there is no place for those, or that place doesn't take it.
    NoDeadLetters(DeadLetterReason),
    /// What could not be published could not be kept either.
    NotKept(FailureKind),
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotPublished { outputs, failed, destinations } => write!(
                formatter,
                "{failed} of {destinations} destination{} did not acknowledge the event in time: {}",
                if *destinations == 1 { "" } else { "s" },
                outputs.join(", ")
            ),
            Refusal::NoDeadLetters(reason) => {
                write!(formatter, "the event can't be published ({}) and no dead letter was kept", reason.as_str())
            }
            Refusal::NotKept(kind) => formatter.write_str(match kind {
                FailureKind::SpoolFull => "not every destination acknowledged the event in time, and the spool is full",
                FailureKind::LaneFull => {
                    "not every destination acknowledged the event in time, and its topic has its share of the spool"
                }
                FailureKind::DeadLettersFull => {
                    "the event cannot be published, and neither the dead letters nor the spool have room for it"
                }
                _ => "not every destination acknowledged the event in time, and it could not be written to the disk",
            }),
        }
    }
}

/// How callbacks are delivered.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Longest time from receipt to outcome.
    pub deadline: Duration,
    /// How long a topic may have nothing but operator's errors until its older records become dead letters.
    pub give_up_after: Duration,
    /// Callbacks that may be in delivery at once; more wait, which is back-pressure.
    pub max_in_flight: usize,
    /// Bytes of bodies and envelopes that may be in memory at once.
    pub max_in_flight_bytes: u64,
    /// The window of ids.
    pub dedupe: DedupeSettings,
}

/// What callbacks are made into and where they go: the part of the configuration that can change while the bridge
/// runs.
#[derive(Debug)]
pub struct Rules {
    normalizer: Normalizer,
    router: Router,
    /// Counters of the routes, in their order.
    route_matches: Vec<IntCounter>,
    /// Where dead letters are published.
    dead_letters: Option<Destination>,
}

impl Rules {
    /// Puts the rules together. Every output they name must be among the bridge's.
    pub fn new(normalizer: Normalizer, router: Router, dead_letters: Option<Destination>, metrics: &Metrics) -> Rules {
        let counter = |name: &str| metrics.route_matches_total.with_label_values(&[name]);
        let route_matches = router.routes().iter().map(|route| counter(&route.name)).collect();
        Rules { normalizer, router, route_matches, dead_letters }
    }

    /// Names of the outputs that events may go to.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        let destinations = self.router.routes().iter().flat_map(|route| match &route.action {
            Action::To(destinations) => destinations.as_slice(),
            Action::Drop | Action::DeadLetter => &[],
        });
        destinations.chain(&self.dead_letters).map(|destination| destination.output.as_str())
    }
}

/// An output with its counters.
#[derive(Debug)]
struct Target {
    output: Arc<dyn Output>,
    published: IntCounter,
    failures: Vec<(ErrorKind, IntCounter)>,
    duration: Histogram,
    /// What of the spool is for it.
    lanes: Option<Arc<OutputLanes>>,
}

impl Target {
    fn new(output: Arc<dyn Output>, store: Option<&Store>, metrics: &Metrics) -> Target {
        let name = output.name();
        let failures = |kind: ErrorKind| metrics.publish_failures_total.with_label_values(&[name, kind.as_str()]);
        Target {
            published: metrics.published_total.with_label_values(&[name]),
            failures: ErrorKind::ALL.into_iter().map(|kind| (kind, failures(kind))).collect(),
            duration: metrics.publish_duration_seconds.with_label_values(&[name]),
            lanes: store.map(|store| store.lanes(name)),
            output,
        }
    }
}

/// The middle of the service.
#[derive(Debug)]
pub struct Bridge {
    rules: RwLock<Arc<Rules>>,
    outputs: FxHashMap<String, Target>,
    delivery: Delivery,
    window: Window,
    store: Option<Store>,
    room: Semaphore,
    bytes: InFlightBytes,
    /// Ends what is being published: it goes to the spool then.
    cancel_in_flight: CancellationToken,
    /// Callbacks between receipt and outcome.
    in_flight: AtomicUsize,
    metrics: Metrics,
}

impl Bridge {
    /// Puts the middle together. Every output that the rules name must be among the outputs; a record for one that
    /// isn't fails as misconfigured. Without a store what cannot be published is refused. What is being published goes to
    /// the spool when `cancel_in_flight` is cancelled.
    pub fn new(
        rules: Rules,
        outputs: Vec<Arc<dyn Output>>,
        delivery: Delivery,
        store: Option<Store>,
        cancel_in_flight: CancellationToken,
        metrics: Metrics,
    ) -> Bridge {
        // Series that are there from the start can be alerted on before the first of their kind.
        let outputs =
            outputs.into_iter().map(|output| (output.name().to_owned(), Target::new(output, store.as_ref(), &metrics)));
        for reason in DeadLetterReason::all() {
            metrics.dead_letters_total.with_label_values(&[reason.as_str()]);
            metrics.dead_letters_not_kept_total.with_label_values(&[reason.as_str()]);
        }
        let outputs: FxHashMap<String, Target> = outputs.collect();
        for (output, records) in store.iter().flat_map(Store::backlogs) {
            if output != AWAITS_DEAD_LETTERS && !outputs.contains_key(&output) {
                tracing::warn!(
                    output,
                    records,
                    "the spool has records for an output that is not configured; they stay. `apsara-bridge spool move` gives them to another output"
                );
            }
        }
        for result in replay::RESULTS {
            metrics.dead_letters_replayed_total.with_label_values(&[result]);
        }
        Bridge {
            rules: RwLock::new(Arc::new(rules)),
            outputs,
            room: Semaphore::new(delivery.max_in_flight),
            bytes: InFlightBytes::new(delivery.max_in_flight_bytes),
            window: Window::new(delivery.dedupe, metrics.dedupe_ids.clone()),
            delivery,
            store,
            cancel_in_flight,
            in_flight: AtomicUsize::new(0),
            metrics,
        }
    }

    fn rules(&self) -> Arc<Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other rules in the place of the present ones. Callbacks that are under way end by the old ones.
    ///
    /// # Errors
    /// The first output that they name and the bridge doesn't have; nothing has changed then.
    pub fn change_rules(&self, rules: Rules) -> Result<(), String> {
        if let Some(unknown) = rules.outputs().find(|name| !self.outputs.contains_key(*name)) {
            return Err(unknown.to_owned());
        }
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        Ok(())
    }

    /// The metrics it counts in.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The text that Prometheus reads; see [`Metrics::text`].
    ///
    /// # Errors
    /// As there.
    pub fn metrics_text(&self) -> prometheus::Result<String> {
        if let Some(store) = &self.store {
            store.observe();
        }
        self.metrics.text()
    }

    /// Begins a callback's share of `delivery.max_in_flight_bytes`, which its input enlarges as the body arrives.
    pub fn admit(&self) -> Admission {
        self.bytes.begin()
    }

    /// The longest time from receipt to answer, unless the callback brings another one.
    pub fn deadline(&self) -> Duration {
        self.delivery.deadline
    }

    /// Whether events that a bus doesn't take would be spooled now.
    pub fn can_spool(&self) -> bool {
        self.store.as_ref().is_some_and(Store::has_room)
    }

    /// What is in the spool: outputs, each with its number of records. Empty without a spool.
    pub fn backlogs(&self) -> Vec<(String, u64)> {
        self.store.as_ref().map(Store::backlogs).unwrap_or_default()
    }

    /// Callbacks between receipt and outcome.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Closes the store, when nothing is in flight any more.
    pub async fn close(&self) {
        if let Some(store) = &self.store {
            store.close().await;
        }
    }

    /// Whether every output has connected and is not known to be down.
    pub fn is_connected(&self) -> bool {
        self.outputs.values().all(|target| target.output.health().is_up())
    }

    /// Whether an output has connected and is not known to be down.
    fn is_up(&self, output: &str) -> bool {
        self.outputs.get(output).is_some_and(|target| target.output.health().is_up())
    }

    /// Names of the outputs that are not connected.
    pub fn disconnected(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .outputs
            .iter()
            .filter(|(_, target)| !target.output.health().is_up())
            .map(|(name, _)| name.as_str())
            .collect();
        names.sort_unstable();
        names
    }

    /// Takes a callback to its end: normalizes it, routes it, publishes it, keeps what could not be published. Takes
    /// at most the delivery deadline and the time of one durable write.
    ///
    /// Dropping the future gives the callback up, so that a caller whose own caller may hang up runs it as a task.
    pub async fn accept(&self, callback: Callback) -> Outcome {
        let _in_flight = InFlight::enter(self);
        let outcome = self.outcome(&callback).await;
        let input = &*callback.input;
        self.metrics.callbacks_total.with_label_values(&[input, outcome.label()]).inc();
        let took = callback.arrived.elapsed();
        self.metrics.callback_duration_seconds.with_label_values(&[input]).observe(took.as_secs_f64());
        outcome
    }

    async fn outcome(&self, callback: &Callback) -> Outcome {
        let rules = self.rules();
        let origin = Origin {
            received: callback.received,
            region: callback.sender.region.as_deref(),
            account_id: callback.sender.account_id.as_deref(),
            traceparent: callback.traceparent.as_deref(),
            dialects: &callback.sender.dialects,
        };
        let normalized = match rules.normalizer.normalize(&callback.body, &origin) {
            Ok(normalized) => normalized,
            Err(error) => return self.not_a_callback(callback, error).await,
        };
        self.count(&rules, callback, &normalized);
        let event = Arc::new(normalized.event);
        let deadline = callback.arrived + callback.patience.unwrap_or(self.delivery.deadline);
        let outcome = match self.window.claim(&event, deadline).await {
            Claim::Duplicate => Outcome::Duplicate,
            Claim::Late => self.take(&rules, callback, &event).await.outcome,
            Claim::First(claimed) => {
                let Delivered { outcome, is_delivered } = self.take(&rules, callback, &event).await;
                if is_delivered {
                    claimed.accepted();
                }
                outcome
            }
        };
        if outcome == Outcome::Published {
            self.observe_age(&event);
        }
        log_end(&event, &outcome);
        outcome
    }

    /// Keeps what is no callback, for a person to look at.
    async fn not_a_callback(&self, callback: &Callback, error: NotACallback) -> Outcome {
        let reason = DeadLetterReason::NotACallback;
        let letter = DeadLetter {
            reason: reason.as_str().to_owned(),
            code: error.to_string(),
            input: Some(callback.input.to_string()),
            sender: (callback.sender.region.clone(), callback.sender.account_id.clone()),
            body: callback.body.clone(),
            at: store::now(),
            ..DeadLetter::default()
        };
        let is_kept = match &self.store {
            Some(store) => {
                let until = callback.arrived + STORE_ANSWERS;
                in_time(until, store.keep(Vec::new(), vec![letter])).await.is_ok()
            }
            None => false,
        };
        let counter =
            if is_kept { &self.metrics.dead_letters_total } else { &self.metrics.dead_letters_not_kept_total };
        counter.with_label_values(&[reason.as_str()]).inc();
        tracing::warn!(input = %callback.input, bytes = callback.body.len(), %error, is_kept, "no callback");
        Outcome::NotACallback { error, is_kept }
    }

    fn count(&self, rules: &Rules, callback: &Callback, normalized: &Normalized) {
        let catalogue = rules.normalizer.catalogue();
        let r#type = normalized.event_type.map_or("other", |index| catalogue.events()[index].name.as_str());
        self.metrics
            .events_total
            .with_label_values(&[normalized.dialect.as_str(), r#type, normalized.status.as_str()])
            .inc();
        set_to_now(&self.metrics.last_event_timestamp_seconds.with_label_values(&[&*callback.input]));
    }

    fn observe_age(&self, event: &Event) {
        let Some(dialect) = event.get(&DIALECT) else { return };
        let time = event
            .get(&TIME)
            .and_then(|text| OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok());
        if let Some(time) = time {
            let age = (OffsetDateTime::now_utc() - time).as_seconds_f64().max(0.0);
            self.metrics.event_age_seconds.with_label_values(&[dialect]).observe(age);
        }
    }
}

/// Counts a callback that is in flight for as long as it is, however it ends.
struct InFlight<'b>(&'b Bridge);

impl InFlight<'_> {
    fn enter(bridge: &Bridge) -> InFlight<'_> {
        bridge.in_flight.fetch_add(1, Ordering::Relaxed);
        bridge.metrics.in_flight.inc();
        InFlight(bridge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.in_flight.dec();
    }
}

fn log_end(event: &Event, outcome: &Outcome) {
    if let Outcome::Refused(refusal) = outcome {
        tracing::warn!(
            id = event.id(),
            r#type = event.get(&TYPE),
            subject = event.get(&SUBJECT),
            source = event.get(&SOURCE),
            %refusal,
            "refused"
        );
        return;
    }
    tracing::debug!(
        id = event.id(),
        r#type = event.get(&TYPE),
        subject = event.get(&SUBJECT),
        outcome = outcome.label(),
        "callback ended"
    );
}
