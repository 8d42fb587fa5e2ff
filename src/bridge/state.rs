//! How the bridge is, for those who watch. It is put together from what is counted and kept anyway, when somebody asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use time::OffsetDateTime;

use super::feed::state::{
    DeadLettersState, DownState, InputState, LaneErrorState, LaneState, OutputState, RejectionState, RouteDefinition,
    RouteDestination, RouteState, SpoolState, StateEntry,
};
use super::feed::{short, timestamp};
use super::history::{rounded, totals};
use super::output_handle::OutputHandle;
use super::{Bridge, Rules};
use crate::output::Connection;
use crate::route::{Action, Pattern, Route};
use crate::store::{AWAITS_DEAD_LETTERS, Condition, LANE_STATES, Lane, Store, now};
use crate::telemetry::metrics::{Metrics, each_series};

/// Most routes of a state.
const MAX_ROUTES: usize = 1000;

/// Most destinations of a route.
const MAX_DESTINATIONS: usize = 32;

/// Most outputs, most inputs, and most lanes of a state.
const MAX_LISTED: usize = 100;

/// Most places of an input.
const MAX_PLACES: usize = 32;

/// What an input is, for those who watch.
#[derive(Clone, Debug)]
pub struct InputFacts {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// Where callbacks come from: an address, a queue.
    pub origin: String,
    /// The paths of its endpoints, or the name of its queue.
    pub places: Vec<String>,
}

/// What the bridge is made of, for those who watch.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// The inputs, in the order of the configuration.
    pub inputs: Vec<InputFacts>,
    /// The kinds of the outputs, by their names.
    pub output_kinds: BTreeMap<String, &'static str>,
}

/// What somebody who gets one state after the other has got before.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The rules whose routes were defined.
    rules: Option<Arc<Rules>>,
    steps: u64,
}

/// What only the service knows.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// Whether it is ready.
    pub is_ready: bool,
    /// That, or why not, in words.
    pub words: String,
    /// The inputs that receive nothing until a person changes something, and why.
    pub misconfigured: BTreeMap<String, String>,
}

impl Bridge {
    /// How the bridge is at present. Bounded, however many routes, topics and events there are.
    pub fn state(&self, seen: &mut Seen, readiness: Readiness) -> StateEntry {
        let rules = self.rules();
        let metrics = &self.metrics;
        // A reload can have changed the routes, and whoever shows them knows them by their position.
        let whole = !seen.rules.as_ref().is_some_and(|defined| Arc::ptr_eq(defined, &rules));
        if whole {
            *seen = Seen { rules: Some(rules.clone()), steps: 0 };
        }
        let (parts, backlogs) = (self.parts(), self.backlogs().into_iter().collect());
        let (routes, more_routes) = self.route_states(&rules, whole);
        let (outputs, more_outputs) = listed(self.output_states(&parts, &backlogs));
        let (lanes, more_lanes) = match &self.store {
            Some(store) => store.first_lanes(MAX_LISTED),
            None => (Vec::new(), 0),
        };
        let (inputs, more_inputs) = listed(self.input_states(&parts, &readiness.misconfigured));
        StateEntry {
            time: timestamp(OffsetDateTime::now_utc()),
            started: timestamp(self.started),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            type_prefix: rules.normalizer.type_prefix().to_owned(),
            whole,
            ready: readiness.is_ready,
            readiness: readiness.words,
            show_payloads: self.feed.has_payloads(),
            in_flight: self.in_flight() as u64,
            totals: totals(metrics),
            history: self.history.since(&mut seen.steps),
            routes,
            more_routes,
            outputs,
            more_outputs,
            lanes: lanes.iter().map(|lane| lane_state(lane)).collect(),
            more_lanes,
            spool: self.store.as_ref().map(|store| spool_state(store, metrics)),
            dead_letters: self.dead_letters_state(&backlogs),
            inputs,
            more_inputs,
            past: self.feed.past(),
        }
    }

    fn route_states(&self, rules: &Rules, has_definitions: bool) -> (Vec<RouteState>, usize) {
        let recent = self.history.recent(rules.matches());
        let routes = rules.router.routes().iter().zip(rules.matches()).zip(recent).take(MAX_ROUTES);
        let routes = routes.map(|((route, (name, matched)), recent)| RouteState {
            name: name.to_owned(),
            matched,
            recent,
            definition: has_definitions.then(|| definition(route)),
        });
        (routes.collect(), rules.router.routes().len().saturating_sub(MAX_ROUTES))
    }

    fn output_states(&self, parts: &Parts, backlogs: &BTreeMap<String, u64>) -> Vec<OutputState> {
        let backlog = |name: &str| backlogs.get(name).copied().unwrap_or(0);
        let lane_states = |name: &str| self.store.as_ref().map_or((0, 0), |store| store.lane_states(name));
        let mut states: Vec<OutputState> = Vec::with_capacity(self.outputs.len());
        for (name, output) in &self.outputs {
            let kind = parts.output_kinds.get(name).map(|kind| (*kind).to_owned());
            states.push(output_state(name, kind, output, backlog(name), lane_states(name)));
        }
        let is_gone = |name: &&String| *name != AWAITS_DEAD_LETTERS && !self.outputs.contains_key(*name);
        for name in backlogs.keys().filter(is_gone) {
            let (lanes_waiting, lanes_failing) = lane_states(name);
            states.push(OutputState {
                name: name.clone(),
                output_kind: None,
                state: "not_configured".to_owned(),
                down: None,
                published: 0,
                failures: BTreeMap::new(),
                last_error: None,
                backlog: backlog(name),
                lanes_waiting,
                lanes_failing,
            });
        }
        states.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        states
    }

    fn dead_letters_state(&self, backlogs: &BTreeMap<String, u64>) -> DeadLettersState {
        let metrics = &self.metrics;
        let newest = self.newest_dead_letter.load(Ordering::Relaxed);
        let events = unsigned(metrics.dead_letters_stored.get());
        let is_known = newest > 0 && (events > 0 || self.store.is_none());
        DeadLettersState {
            events,
            bytes: unsigned(metrics.dead_letters_stored_bytes.get()),
            max_bytes: unsigned(metrics.dead_letters_max_bytes.get()),
            newest: is_known.then(|| milliseconds_text(newest)),
            reasons: counts(&metrics.dead_letters_total, "reason"),
            not_kept: counts(&metrics.dead_letters_not_kept_total, "reason"),
            expired: metrics.dead_letters_expired_total.get(),
            waiting: backlogs.get(AWAITS_DEAD_LETTERS).copied().unwrap_or(0),
        }
    }

    fn input_states(&self, parts: &Parts, misconfigured: &BTreeMap<String, String>) -> Vec<InputState> {
        let mut states: Vec<InputState> = parts.inputs.iter().map(|input| input_state(input, misconfigured)).collect();
        let metrics = &self.metrics;
        let of = |states: &mut Vec<InputState>, name: &str| states.iter().position(|state| state.name == name);
        each_series(&metrics.callbacks_total, |series| {
            if let Some(index) = of(&mut states, series.label("input")) {
                states[index].outcomes.add(series.label("outcome"), series.count());
            }
        });
        each_series(&metrics.last_event_timestamp_seconds, |series| {
            if let Some(index) = of(&mut states, series.label("input")) {
                states[index].last_event = Some(milliseconds_text((series.gauge() * 1e3) as i64));
            }
        });
        each_series(&metrics.not_accepted_total, |series| {
            let count = series.count();
            if let Some(index) = of(&mut states, series.label("input"))
                && count > 0
            {
                let reason = series.label("reason").to_owned();
                let mut rejection = RejectionState { reason, count, time: None, message: None, path: None };
                self.feed.describe_rejection(&states[index].name, &mut rejection);
                states[index].rejections.push(rejection);
            }
        });
        for state in &mut states {
            state.rejections.sort_by(|one, other| (&other.time, &one.reason).cmp(&(&one.time, &other.reason)));
        }
        states
    }
}

fn listed<T>(mut items: Vec<T>) -> (Vec<T>, usize) {
    let more = items.len().saturating_sub(MAX_LISTED);
    items.truncate(MAX_LISTED);
    (items, more)
}

fn definition(route: &Route) -> RouteDefinition {
    let matches = route.matches.iter().map(|(attribute, patterns)| {
        let patterns: Vec<&str> = patterns.iter().map(Pattern::as_str).collect();
        short(format!("{attribute} = {}", patterns.join(" or ")))
    });
    let destinations = route.destinations();
    RouteDefinition {
        matches: matches.collect(),
        filter: route.filter.as_ref().map(|filter| short(filter.to_string())),
        action: match route.action {
            Action::To(_) => "publish",
            Action::Drop => "drop",
            Action::DeadLetter => "dead_letter",
        }
        .to_owned(),
        continues: route.continue_matching,
        destinations: destinations
            .iter()
            .take(MAX_DESTINATIONS)
            .map(|destination| RouteDestination {
                output: destination.output.clone(),
                topic: short(destination.topic.to_string()),
                key: short(destination.key.to_string()),
            })
            .collect(),
        more_destinations: destinations.len().saturating_sub(MAX_DESTINATIONS),
    }
}

fn output_state(
    name: &str,
    output_kind: Option<String>,
    output: &OutputHandle,
    backlog: u64,
    (lanes_waiting, lanes_failing): (u64, u64),
) -> OutputState {
    let (published, failures) = output.counts();
    let health = output.health();
    OutputState {
        name: name.to_owned(),
        output_kind,
        state: match health.connection() {
            Connection::Connecting => "connecting",
            Connection::Up => "up",
            Connection::Down => "down",
        }
        .to_owned(),
        down: health.trouble().map(|trouble| DownState {
            since: timestamp(trouble.since),
            time: timestamp(trouble.at),
            message: trouble.reason,
        }),
        published,
        failures: failures
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| (kind.as_str().to_owned(), count))
            .collect(),
        last_error: output.last_error(),
        backlog,
        lanes_waiting,
        lanes_failing,
    }
}

fn lane_state(lane: &Lane) -> LaneState {
    let failure = lane.failure();
    LaneState {
        output: lane.output().to_owned(),
        topic: lane.topic().to_owned(),
        state: LANE_STATES[usize::from(failure.is_some())].to_owned(),
        backlog: lane.records(),
        bytes: lane.bytes(),
        oldest_seconds: lane.oldest().map(|oldest| rounded(now().saturating_sub(oldest).max(0) as f64 / 1e3)),
        error: failure.map(|failure| LaneErrorState {
            time: milliseconds_text(failure.at),
            since: milliseconds_text(failure.since),
            error: failure.kind.to_owned(),
            message: failure.message,
            attempts: failure.attempts,
            remedy: failure.remedy.to_owned(),
        }),
    }
}

fn spool_state(store: &Store, metrics: &Metrics) -> SpoolState {
    store.observe();
    SpoolState {
        state: match store.condition() {
            Condition::Ok => "ok",
            Condition::Full => "full",
            Condition::Failing => "failing",
        }
        .to_owned(),
        events: unsigned(metrics.spool_events.get()),
        bytes: unsigned(metrics.spool_bytes.get()),
        max_bytes: unsigned(metrics.spool_max_bytes.get()),
        oldest_seconds: rounded(metrics.spool_oldest_seconds.get()),
        failures: counts(&metrics.spool_failures_total, "reason"),
    }
}

fn input_state(input: &InputFacts, misconfigured: &BTreeMap<String, String>) -> InputState {
    let message = misconfigured.get(&input.name);
    InputState {
        name: input.name.clone(),
        input_kind: input.kind.to_owned(),
        state: if message.is_some() { "misconfigured" } else { "accepting" }.to_owned(),
        message: message.map(short),
        origin: short(&input.origin),
        places: input.places.iter().take(MAX_PLACES).map(short).collect(),
        last_event: None,
        outcomes: Default::default(),
        rejections: Vec::new(),
    }
}

/// The counts of a metric by one of its labels, without zeros.
fn counts(metric: &prometheus::IntCounterVec, label: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    each_series(metric, |series| {
        if series.count() > 0 {
            *counts.entry(series.label(label).to_owned()).or_insert(0) += series.count();
        }
    });
    counts
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A time in Unix milliseconds as a text.
fn milliseconds_text(at: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1_000_000);
    time.map(timestamp).unwrap_or_default()
}
