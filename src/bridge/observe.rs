//! What is counted and logged about callbacks and events.

use std::sync::atomic::Ordering;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Bridge, Callback, DeadLetterReason, Kept, Outcome, Rules};
use crate::dialect::{Normalized, NotACallback};
use crate::event::{Attribute, Event};
use crate::telemetry::metrics::set_to_now;

/// Counts a callback as in flight until it is dropped.
pub(super) struct InFlight<'b>(&'b Bridge);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.in_flight.dec();
    }
}

impl Bridge {
    pub(super) fn enter_in_flight(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.metrics.in_flight.inc();
        InFlight(self)
    }

    pub(super) fn observe_outcome(&self, callback: &Callback, outcome: &Outcome) {
        let input = &*callback.input;
        self.metrics.callbacks_total.with_label_values(&[input, outcome.label()]).inc();
        let took = callback.arrived.elapsed();
        self.metrics.callback_duration_seconds.with_label_values(&[input]).observe(took.as_secs_f64());
    }

    /// Counts a callback by what it reports. Event types that the catalogue does not know are counted as `other`, so that
    /// no callback can invent a label.
    pub(super) fn observe_event(&self, rules: &Rules, callback: &Callback, normalized: &Normalized) {
        let catalogue = rules.normalizer.catalogue();
        let r#type = normalized.event_type.map_or("other", |index| catalogue.events()[index].name.as_str());
        let labels = [normalized.dialect.as_str(), r#type, normalized.status.as_str()];
        self.metrics.events_total.with_label_values(&labels).inc();
        set_to_now(&self.metrics.last_event_timestamp_seconds.with_label_values(&[&*callback.input]));
    }

    /// Counts and logs a body that is not a callback.
    pub(super) fn observe_body(&self, callback: &Callback, error: &NotACallback, kept: Kept) {
        let metrics = &self.metrics;
        let is_kept = kept == Kept::Yes;
        let counter = if is_kept { &metrics.dead_letters_total } else { &metrics.dead_letters_not_kept_total };
        counter.with_label_values(&[DeadLetterReason::NotACallback.as_str()]).inc();
        let (input, bytes) = (&callback.input, callback.body.len());
        if kept != Kept::OverBudget {
            tracing::warn!(%input, bytes, %error, is_kept, "not a callback");
        } else if self.junk.throttle.is_due("over budget") {
            tracing::warn!(
                %input,
                bytes,
                %error,
                "not a callback, and not kept: such bodies come too fast or have used their share of the dead letters; \
                 they are only counted"
            );
        }
    }

    /// Observes how old an event is when its bus has acknowledged it.
    pub(super) fn observe_age(&self, event: &Event) {
        let Some(dialect) = event.get(Attribute::Dialect) else { return };
        let time = event.get(Attribute::Time).and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        if let Some(time) = time {
            let age = (OffsetDateTime::now_utc() - time).as_seconds_f64().max(0.0);
            self.metrics.event_age_seconds.with_label_values(&[dialect]).observe(age);
        }
    }
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
