//! The part of the configuration that can change while the bridge runs: how callbacks become events and where they go.

use std::sync::Arc;

use prometheus::IntCounter;

use super::observe::EventSeries;
use crate::dialect::Normalizer;
use crate::event::Event;
use crate::output::Record;
use crate::route::{Decision, Destination, Router};
use crate::telemetry::metrics::Metrics;

/// How callbacks become events, and where events go.
#[derive(Debug)]
pub struct Rules {
    pub(super) normalizer: Normalizer,
    pub(super) router: Router,
    /// Counters of the routes, in their order.
    route_matches: Vec<IntCounter>,
    pub(super) event_series: EventSeries,
    /// Where dead letters are published.
    pub(super) dead_letters: Option<Destination>,
}

impl Rules {
    /// Puts the rules together. The bridge must have every output that they name.
    pub fn new(normalizer: Normalizer, router: Router, dead_letters: Option<Destination>, metrics: &Metrics) -> Rules {
        let counter = |name: &str| metrics.route_matches_total.with_label_values(&[name]);
        let route_matches = router.routes().iter().map(|route| counter(&route.name)).collect();
        let event_series = EventSeries::new(normalizer.catalogue(), metrics);
        Rules { normalizer, router, route_matches, event_series, dead_letters }
    }

    /// Counts the routes that matched an event.
    pub(super) fn count_matches(&self, decision: &Decision<'_>) {
        for index in &decision.matched {
            self.route_matches[*index].inc();
        }
    }

    /// The routes in order, each with the number of events that it matched since the start.
    pub(super) fn matches(&self) -> impl Iterator<Item = (&str, u64)> {
        let routes = self.router.routes().iter().zip(&self.route_matches);
        routes.map(|(route, matched)| (route.name.as_str(), matched.get()))
    }

    /// The record of an event for a destination.
    pub(super) fn record(&self, event: &Arc<Event>, destination: &Destination) -> Record {
        Record::new(event, destination, self.normalizer.type_prefix())
    }
}
