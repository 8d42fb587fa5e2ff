//! What is counted and logged about callbacks and events.

use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use super::{Bridge, Callback, DeadLetterReason, Kept, Outcome, Rules};
use crate::dialect::{Catalogue, Dialect, Normalized, NotACallback, Status};
use crate::event::{Attribute, Event};
use crate::store;
use crate::telemetry::metrics::Metrics;

// Finding a series by its labels hashes them, takes a lock and counts a reference. Each callback has five of them, so that
// they are found once and kept here. A series that is exported only from its first value on is found then.

/// An input: its name and its series.
#[derive(Debug)]
pub struct InputSeries {
    name: Box<str>,
    outcomes: Vec<(&'static str, IntCounter)>,
    duration: OnceLock<Histogram>,
    last_event: OnceLock<Gauge>,
}

impl InputSeries {
    /// The series of the input with this name. Those of its callbacks exist from now on.
    pub fn new(name: &str, metrics: &Metrics) -> InputSeries {
        let counter = |outcome| (outcome, metrics.callbacks_total.with_label_values(&[name, outcome]));
        InputSeries {
            name: name.into(),
            outcomes: Outcome::LABELS.iter().map(|outcome| counter(*outcome)).collect(),
            duration: OnceLock::new(),
            last_event: OnceLock::new(),
        }
    }

    /// The name of the input.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn count(&self, outcome: &str) {
        if let Some((_, counter)) = self.outcomes.iter().find(|(label, _)| *label == outcome) {
            counter.inc();
        }
    }
}

/// The series of events by what they report: by the position of their type in the catalogue and, for types that it does
/// not know, by their dialect; and by their status.
#[derive(Debug)]
pub(super) struct EventSeries {
    events_total: IntCounterVec,
    by_type: Vec<[OnceLock<IntCounter>; Status::ALL.len()]>,
    others: [[OnceLock<IntCounter>; Status::ALL.len()]; Dialect::ALL.len()],
}

impl EventSeries {
    pub(super) fn new(catalogue: &Catalogue, metrics: &Metrics) -> EventSeries {
        EventSeries {
            events_total: metrics.events_total.clone(),
            by_type: catalogue.events().iter().map(|_| Default::default()).collect(),
            others: Default::default(),
        }
    }

    /// Counts an event. Types that the catalogue does not know are counted as `other`, so that no callback can invent a
    /// label.
    fn count(&self, catalogue: &Catalogue, event: &Normalized) {
        let (r#type, of_type) = match event.event_type {
            Some(index) => (catalogue.events()[index].name.as_str(), &self.by_type[index]),
            None => ("other", &self.others[event.dialect as usize]),
        };
        let labels = [event.dialect.as_str(), r#type, event.status.as_str()];
        of_type[event.status as usize].get_or_init(|| self.events_total.with_label_values(&labels)).inc();
    }
}

/// The series of the ages of events, by dialect.
pub(super) type AgeSeries = [OnceLock<Histogram>; Dialect::ALL.len()];

/// Counts a callback as in flight until it is dropped.
pub(super) struct InFlight<'b>(&'b Bridge);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.metrics.in_flight.dec();
    }
}

impl Bridge {
    pub(super) fn enter_in_flight(&self) -> InFlight<'_> {
        self.metrics.in_flight.inc();
        InFlight(self)
    }

    /// Counts a callback that ended then.
    pub(super) fn observe_outcome(&self, callback: &Callback, outcome: &Outcome, ended: Instant) {
        let input = &callback.input;
        input.count(outcome.label());
        let duration = || self.metrics.callback_duration_seconds.with_label_values(&[input.name()]);
        input.duration.get_or_init(duration).observe((ended - callback.arrived).as_secs_f64());
    }

    /// Counts a callback by what it reports.
    pub(super) fn observe_event(&self, rules: &Rules, callback: &Callback, normalized: &Normalized) {
        rules.event_series.count(rules.normalizer.catalogue(), normalized);
        let input = &callback.input;
        let last_event = || self.metrics.last_event_timestamp_seconds.with_label_values(&[input.name()]);
        let received = callback.received.unix_timestamp_nanos() as f64 / 1e9;
        input.last_event.get_or_init(last_event).set(received);
    }

    /// Counts and logs a body that is not a callback.
    pub(super) fn observe_body(&self, callback: &Callback, error: &NotACallback, kept: Kept) {
        let metrics = &self.metrics;
        let is_kept = kept == Kept::Yes;
        let counter = if is_kept { &metrics.dead_letters_total } else { &metrics.dead_letters_not_kept_total };
        counter.with_label_values(&[DeadLetterReason::NotACallback.as_str()]).inc();
        if is_kept {
            self.newest_dead_letter.fetch_max(store::now(), Ordering::Relaxed);
        }
        let (input, bytes) = (callback.input.name(), callback.body.len());
        if kept != Kept::OverBudget {
            tracing::warn!(input, bytes, %error, is_kept, "not a callback");
        } else if self.junk.throttle.is_due("over budget") {
            tracing::warn!(
                input,
                bytes,
                %error,
                "not a callback, and not kept: such bodies come too fast or have used their share of the dead letters; \
                 they are only counted"
            );
        }
    }

    /// Observes how old an event is when its bus has acknowledged it.
    pub(super) fn observe_age(&self, event: &Event) {
        let Some(dialect) = event.get(Attribute::Dialect).and_then(Dialect::from_word) else { return };
        if let Some(age) = seconds_since(event, Attribute::Time) {
            let series = || self.metrics.event_age_seconds.with_label_values(&[dialect.as_str()]);
            self.age_series[dialect as usize].get_or_init(series).observe(age);
        }
    }

    /// Observes how long ago the callback of an event arrived that was published from the spool. The publication of a
    /// dead letter is not the delivery of its event.
    pub(super) fn observe_late_delivery(&self, event: &Event) {
        if event.get(Attribute::DlqReason).is_some() {
            return;
        }
        if let Some(seconds) = seconds_since(event, Attribute::RecordedTime) {
            self.metrics.delivery_duration_seconds.observe(seconds);
        }
    }
}

/// Seconds since the time in an attribute, 0 if it is in the future.
fn seconds_since(event: &Event, attribute: Attribute) -> Option<f64> {
    let time = event.get(attribute).and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok())?;
    Some((OffsetDateTime::now_utc() - time).as_seconds_f64().max(0.0))
}

/// Logs how an event ended: a refusal as a warning, everything else for debugging.
pub(super) fn log_outcome(event: &Event, outcome: &Outcome) {
    match outcome {
        Outcome::Refused(refusal) => tracing::warn!(
            id = event.id(),
            r#type = event.get(Attribute::Type),
            subject = event.get(Attribute::Subject),
            source = event.get(Attribute::Source),
            %refusal,
            outputs = refusal.outputs(),
            "refused"
        ),
        _ => tracing::debug!(
            id = event.id(),
            r#type = event.get(Attribute::Type),
            subject = event.get(Attribute::Subject),
            outcome = outcome.label(),
            "callback ended"
        ),
    }
}
