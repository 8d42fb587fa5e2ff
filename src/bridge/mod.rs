//! The middle: one callback in, one [`Outcome`] out.
//!
//! Inputs know [`Bridge::accept`] and nothing behind it; outputs know records and nothing before them. The answer to
//! the sender is made from the outcome, so that nothing can be acknowledged by forgetting. Every callback ends in
//! exactly one outcome, which is counted once and logged with the event's id.

mod deliver;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus::{Histogram, IntCounter, IntGauge};
use rustc_hash::FxHashMap;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::dialect::{Dialect, Normalized, Normalizer, NotACallback, Origin};
use crate::event::{Event, SUBJECT, TIME, TYPE};
use crate::output::{ErrorKind, Output};
use crate::route::{Destination, Router};
use crate::telemetry::metrics::{Metrics, set_to_now};
use deliver::Failure;

/// A callback as an input received it.
#[derive(Clone, Debug)]
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
    /// A route said to drop it.
    Dropped,
    /// It can't be published as it is, and the dead-letter destination's bus has acknowledged it.
    DeadLettered(DeadLetterReason),
    /// Nothing is kept; the sender should try again.
    Refused(Refusal),
    /// It is no callback that is taken here; trying again can't help.
    NotACallback(NotACallback),
}

impl Outcome {
    /// The words that outcomes have in metrics and logs.
    pub const LABELS: &[&str] = &["published", "dropped", "dead_lettered", "refused", "not_accepted"];

    /// The word in metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Outcome::Published => "published",
            Outcome::Dropped => "dropped",
            Outcome::DeadLettered(_) => "dead_lettered",
            Outcome::Refused(_) => "refused",
            Outcome::NotACallback(_) => "not_accepted",
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
    /// A bus will never take it.
    Publish(ErrorKind),
}

impl DeadLetterReason {
    /// Every reason.
    pub fn all() -> impl Iterator<Item = DeadLetterReason> {
        let publish = ErrorKind::ALL.into_iter().filter(|kind| !kind.is_retriable()).map(DeadLetterReason::Publish);
        [DeadLetterReason::Unrouted, DeadLetterReason::Routed].into_iter().chain(publish)
    }

    /// The word in metrics and in the attribute `dlqreason`.
    pub fn as_str(self) -> &'static str {
        match self {
            DeadLetterReason::Unrouted => "unrouted",
            DeadLetterReason::Routed => "routed",
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
    /// As many callbacks as may be in flight are in flight.
    TooManyInFlight,
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
            Refusal::TooManyInFlight => formatter.write_str("as many callbacks as may be in flight are in flight"),
        }
    }
}

/// How callbacks are delivered.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Longest time from receipt to outcome.
    pub deadline: Duration,
    /// Callbacks that may be in delivery at once; more wait, which is back-pressure.
    pub max_in_flight: usize,
    /// Where dead letters are published.
    pub dead_letters: Option<Destination>,
}

/// An output with its counters.
#[derive(Debug)]
struct Target {
    output: Arc<dyn Output>,
    published: IntCounter,
    failures: Vec<(ErrorKind, IntCounter)>,
    duration: Histogram,
}

impl Target {
    fn new(output: Arc<dyn Output>, metrics: &Metrics) -> Target {
        let name = output.name();
        let failures = |kind: ErrorKind| metrics.publish_failures_total.with_label_values(&[name, kind.as_str()]);
        Target {
            published: metrics.published_total.with_label_values(&[name]),
            failures: ErrorKind::ALL.into_iter().map(|kind| (kind, failures(kind))).collect(),
            duration: metrics.publish_duration_seconds.with_label_values(&[name]),
            output,
        }
    }
}

/// The middle of the service.
#[derive(Debug)]
pub struct Bridge {
    normalizer: Normalizer,
    router: Router,
    outputs: FxHashMap<String, Target>,
    /// Counters of the routes, in their order.
    route_matches: Vec<IntCounter>,
    delivery: Delivery,
    room: Semaphore,
    metrics: Metrics,
}

impl Bridge {
    /// Puts the middle together. Every output that routes or dead letters name must be among the outputs; a record
    /// for one that isn't fails as misconfigured.
    pub fn new(
        normalizer: Normalizer,
        router: Router,
        outputs: Vec<Arc<dyn Output>>,
        delivery: Delivery,
        metrics: Metrics,
    ) -> Bridge {
        // Series that are there from the start can be alerted on before the first of their kind.
        let outputs = outputs.into_iter().map(|output| (output.name().to_owned(), Target::new(output, &metrics)));
        let route_matches = router
            .routes()
            .iter()
            .map(|route| metrics.route_matches_total.with_label_values(&[route.name.as_str()]))
            .collect();
        for reason in DeadLetterReason::all() {
            metrics.dead_letters_total.with_label_values(&[reason.as_str()]);
        }
        Bridge {
            normalizer,
            router,
            outputs: outputs.collect(),
            route_matches,
            room: Semaphore::new(delivery.max_in_flight),
            delivery,
            metrics,
        }
    }

    /// Makes the series of an input, before its first callback.
    pub fn introduce_input(&self, name: &str) {
        for outcome in Outcome::LABELS {
            self.metrics.callbacks_total.with_label_values(&[name, outcome]);
        }
    }

    /// The metrics it counts in.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whether every output has connected and is not known to be down.
    pub fn is_connected(&self) -> bool {
        self.outputs.values().all(|target| target.output.health().is_up())
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

    /// Takes a callback to its end: normalizes it, routes it, publishes it, within the delivery deadline.
    ///
    /// Dropping the future gives the callback up, so that a caller whose own caller may hang up runs it as a task.
    pub async fn accept(&self, callback: Callback) -> Outcome {
        let _in_flight = InFlight::enter(&self.metrics);
        let input = callback.input.clone();
        let arrived = callback.arrived;
        let outcome = self.outcome(callback).await;
        self.metrics.callbacks_total.with_label_values(&[&*input, outcome.label()]).inc();
        self.metrics.callback_duration_seconds.with_label_values(&[&*input]).observe(arrived.elapsed().as_secs_f64());
        outcome
    }

    async fn outcome(&self, callback: Callback) -> Outcome {
        let origin = Origin {
            received: callback.received,
            region: callback.sender.region.as_deref(),
            account_id: callback.sender.account_id.as_deref(),
            traceparent: callback.traceparent.as_deref(),
            dialects: &callback.sender.dialects,
        };
        let normalized = match self.normalizer.normalize(&callback.body, &origin) {
            Ok(normalized) => normalized,
            Err(error) => {
                tracing::warn!(input = %callback.input, bytes = callback.body.len(), %error, "no callback");
                return Outcome::NotACallback(error);
            }
        };
        self.count(&callback, &normalized);
        let Normalized { event, dialect, .. } = normalized;
        let event = Arc::new(event);
        let deadline = callback.arrived + self.delivery.deadline;
        let room = match self.room.try_acquire() {
            Ok(room) => Some(room),
            Err(_) => tokio::time::timeout_at(deadline, self.room.acquire()).await.ok().and_then(Result::ok),
        };
        let Some(_room) = room else {
            tracing::warn!(
                id = event.id(),
                r#type = event.get(&TYPE),
                subject = event.get(&SUBJECT),
                "refused: as many callbacks as may be in flight are in flight; see delivery.max_in_flight"
            );
            return Outcome::Refused(Refusal::TooManyInFlight);
        };
        let outcome = self.route(&event, deadline).await;
        if outcome == Outcome::Published {
            self.observe_age(&event, dialect);
        }
        log_end(&event, &outcome);
        outcome
    }

    async fn route(&self, event: &Arc<Event>, deadline: Instant) -> Outcome {
        let decision = self.router.decide(event);
        for index in &decision.taken_by {
            self.route_matches[*index].inc();
        }
        let delivered = self.deliver(event, &decision.destinations, deadline).await;
        let mut letters: Vec<(DeadLetterReason, Failure)> = Vec::new();
        let mut refused = Vec::new();
        for failure in delivered {
            if failure.error.kind.is_retriable() {
                refused.push(failure.output.clone());
            } else {
                letters.push((DeadLetterReason::Publish(failure.error.kind), failure));
            }
        }
        if decision.is_unrouted() {
            letters.push((DeadLetterReason::Unrouted, Failure::none()));
        } else if let Some(route) = decision.dead_letter_by {
            letters.push((DeadLetterReason::Routed, Failure::of_route(&route.name)));
        }
        let mut outcome = if decision.destinations.is_empty() { Outcome::Dropped } else { Outcome::Published };
        for (reason, failure) in letters {
            outcome = match self.dead_letter(event, reason, &failure, deadline).await {
                Ok(()) => Outcome::DeadLettered(reason),
                Err(()) => return Outcome::Refused(Refusal::NoDeadLetters(reason)),
            };
        }
        if !refused.is_empty() {
            let (failed, destinations) = (refused.len(), decision.destinations.len());
            refused.sort_unstable();
            refused.dedup();
            return Outcome::Refused(Refusal::NotPublished { outputs: refused, failed, destinations });
        }
        outcome
    }

    fn count(&self, callback: &Callback, normalized: &Normalized) {
        let catalogue = self.normalizer.catalogue();
        let r#type = normalized.event_type.map_or("other", |index| catalogue.events()[index].name.as_str());
        self.metrics
            .events_total
            .with_label_values(&[normalized.dialect.as_str(), r#type, normalized.status.as_str()])
            .inc();
        set_to_now(&self.metrics.last_event_timestamp_seconds.with_label_values(&[&*callback.input]));
    }

    fn observe_age(&self, event: &Event, dialect: Dialect) {
        let time = event
            .get(&TIME)
            .and_then(|text| OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok());
        if let Some(time) = time {
            let age = (OffsetDateTime::now_utc() - time).as_seconds_f64().max(0.0);
            self.metrics.event_age_seconds.with_label_values(&[dialect.as_str()]).observe(age);
        }
    }
}

/// Counts a callback that is in flight for as long as it is, however it ends.
struct InFlight(IntGauge);

impl InFlight {
    fn enter(metrics: &Metrics) -> InFlight {
        metrics.in_flight.inc();
        InFlight(metrics.in_flight.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn log_end(event: &Event, outcome: &Outcome) {
    tracing::debug!(
        id = event.id(),
        r#type = event.get(&TYPE),
        subject = event.get(&SUBJECT),
        outcome = outcome.label(),
        "callback ended"
    );
}
