//! The entry `state`: how the bridge is. The page shows it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::entry::is_zero;
use crate::bridge::Outcome;

/// How the bridge is.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct StateEntry {
    /// When this was, in UTC.
    pub time: String,
    /// When the bridge was started, in UTC.
    pub started: String,
    /// The version of the bridge.
    pub version: String,
    /// What every `type` starts with.
    pub type_prefix: String,
    /// Whether this is the first state of the stream, or the first one after a reload of the configuration. Only those
    /// have the definitions of the routes and the whole history. Everything else is complete in every state.
    pub whole: bool,
    /// Whether `/readyz` answers with 200.
    pub ready: bool,
    /// What `/readyz` says.
    pub readiness: String,
    /// Whether entries have payloads: `admin.show_payloads`.
    pub show_payloads: bool,
    /// The number of callbacks between arrival and outcome.
    pub in_flight: u64,
    /// Counts since the start.
    pub totals: Totals,
    /// Counts of the last 15 minutes.
    pub history: HistoryState,
    /// The routes in order. They are the same until the next whole state.
    pub routes: Vec<RouteState>,
    /// The number of routes that are not listed, because there are more than 1,000.
    pub more_routes: usize,
    /// The outputs by name.
    pub outputs: Vec<OutputState>,
    /// The number of outputs that are not listed, because there are more than 100.
    pub more_outputs: usize,
    /// The topics with events in the spool: those that fail first, and then those with the most events.
    pub lanes: Vec<LaneState>,
    /// The number of topics with events in the spool that are not listed, because there are more than 100.
    pub more_lanes: usize,
    /// The spool. Missing if there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub spool: Option<SpoolState>,
    /// The dead letters.
    pub dead_letters: DeadLettersState,
    /// The inputs.
    pub inputs: Vec<InputState>,
    /// The number of inputs that are not listed, because there are more than 100.
    pub more_inputs: usize,
    /// The entries that are kept for whoever looks later.
    pub past: PastState,
}

/// Numbers of callbacks by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
pub struct Outcomes {
    /// Every bus has acknowledged the event.
    pub published: u64,
    /// The event went to the spool.
    pub spooled: u64,
    /// The event was accepted before.
    pub duplicate: u64,
    /// A route dropped the event.
    pub dropped: u64,
    /// The event, or the body that is not a callback, became a dead letter.
    pub dead_lettered: u64,
    /// Nothing was kept, and the sender should try again.
    pub refused: u64,
    /// The request or the message was not accepted as a callback.
    pub not_accepted: u64,
}

impl Outcomes {
    /// Adds to the number of an outcome, by the word of the metric `callbacks_total`.
    pub fn add(&mut self, outcome: &str, callbacks: u64) {
        if let Some((_, field)) = Outcome::LABELS.iter().zip(self.fields()).find(|(label, _)| **label == outcome) {
            *field += callbacks;
        }
    }

    /// The numbers since earlier ones.
    pub fn since(mut self, mut earlier: Outcomes) -> Outcomes {
        for (number, earlier) in self.fields().into_iter().zip(earlier.fields()) {
            *number = number.saturating_sub(*earlier);
        }
        self
    }

    /// In the order of [`Outcome::LABELS`].
    fn fields(&mut self) -> [&mut u64; 7] {
        let Outcomes { published, spooled, duplicate, dropped, dead_lettered, refused, not_accepted } = self;
        [published, spooled, duplicate, dropped, dead_lettered, refused, not_accepted]
    }
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
pub struct Totals {
    /// The callbacks by outcome.
    pub outcomes: Outcomes,
    /// What was not accepted as a callback: the metric `not_accepted_total`, with bodies that are not callbacks.
    pub rejected: u64,
}

/// Counts of the last 15 minutes.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
pub struct HistoryState {
    /// The usual length of a step, in seconds.
    pub step_seconds: u64,
    /// The steps, the oldest first: in a whole state at most 90, and in others those that are new since the state
    /// before.
    pub steps: Vec<Step>,
}

/// One step of the history.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema, Serialize)]
pub struct Step {
    /// The end of the step, in UTC.
    pub time: String,
    /// Its length, in seconds.
    pub seconds: f64,
    /// The callbacks that ended in it.
    #[serde(flatten)]
    pub outcomes: Outcomes,
    /// What was not accepted as a callback, with bodies that are not callbacks.
    pub rejected: u64,
    /// The median of the time from arrival to outcome, in milliseconds, interpolated within the buckets of the metric
    /// `callback_duration_seconds`. Null without callbacks.
    pub p50_ms: Option<f64>,
    /// The time that 99 of 100 callbacks did not exceed, likewise. Times above 5 s count as 5 s.
    pub p99_ms: Option<f64>,
}

/// A route.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct RouteState {
    /// Its name.
    pub name: String,
    /// The events that it matched since the start.
    pub matched: u64,
    /// The events that it matched in about the last 15 minutes.
    pub recent: u64,
    /// What it does. Only in a whole state.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub definition: Option<RouteDefinition>,
}

/// What a route does.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct RouteDefinition {
    /// Its `match`: a text for each attribute, for example `status = failure or partial`. All of them must hold.
    #[serde(rename = "match")]
    pub matches: Vec<String>,
    /// Its `filter` in words.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub filter: Option<String>,
    /// `publish`, `drop` or `dead_letter`.
    pub action: String,
    /// Whether later routes are tried after it has matched.
    pub continues: bool,
    /// Where it publishes to.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub destinations: Vec<RouteDestination>,
    /// The number of destinations that are not listed, because there are more than 32.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub more_destinations: usize,
}

/// A destination of a route.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct RouteDestination {
    /// The output.
    pub output: String,
    /// The topic, with attributes in braces. Empty for an output without topics.
    pub topic: String,
    /// The key, with attributes in braces.
    pub key: String,
}

/// An output.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct OutputState {
    /// Its name.
    pub name: String,
    /// Its kind, as in the configuration. Missing if it is not configured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub output_kind: Option<String>,
    /// `up`, `connecting` (it has not connected yet), `down`, or `not_configured` (the spool has events for it).
    pub state: String,
    /// Why it is not connected.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub down: Option<DownState>,
    /// The records that its bus has acknowledged since the start.
    pub published: u64,
    /// The attempts that failed since the start, by the word of the metric `publish_failures_total`. Without zeros.
    pub failures: BTreeMap<String, u64>,
    /// The last attempt that failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_error: Option<ErrorState>,
    /// The events for it in the spool.
    pub backlog: u64,
    /// The topics with events in the spool that wait.
    pub lanes_waiting: u64,
    /// The topics with events in the spool whose last attempt failed.
    pub lanes_failing: u64,
}

/// Why an output is not connected.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct DownState {
    /// When this was reported first, in UTC.
    pub since: String,
    /// When it was reported last, in UTC.
    pub time: String,
    /// Why, in words.
    pub message: String,
}

/// An attempt to publish that failed.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct ErrorState {
    /// When, in UTC.
    pub time: String,
    /// The kind of the error, with the word of the metric `publish_failures_total`.
    pub error: String,
    /// The error in words.
    pub message: String,
    /// The topic.
    pub topic: String,
}

/// A topic with events in the spool.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct LaneState {
    /// The output.
    pub output: String,
    /// The topic. An output without topics has a word here.
    pub topic: String,
    /// `waiting`, or `failing` if the last attempt failed.
    pub state: String,
    /// The number of events.
    pub backlog: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The age of the oldest one, in seconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub oldest_seconds: Option<f64>,
    /// Why it fails.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<LaneErrorState>,
}

/// Why a topic fails.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct LaneErrorState {
    /// When the last attempt failed, in UTC.
    pub time: String,
    /// When the first attempt failed since the last success, in UTC.
    pub since: String,
    /// The kind of the error, with the word of the metric `publish_failures_total` or `spool_failures_total`.
    pub error: String,
    /// The error in words.
    pub message: String,
    /// The attempts that failed since the last success.
    pub attempts: u32,
    /// What a person can do.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub remedy: String,
}

/// The spool.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct SpoolState {
    /// `ok`, `full` (an event was refused, and none has left since), or `failing` (the disk does not take or answer the
    /// last write).
    pub state: String,
    /// The number of events, once for each destination.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The limit of the bytes.
    pub max_bytes: u64,
    /// The age of the oldest event, in seconds. 0 without events.
    pub oldest_seconds: f64,
    /// The writes that failed or found no room since the start, by the word of the metric `spool_failures_total`.
    /// Without zeros.
    pub failures: BTreeMap<String, u64>,
}

/// The dead letters.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct DeadLettersState {
    /// The number of dead letters in the database.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The limit of the bytes.
    pub max_bytes: u64,
    /// When the newest one was received, in UTC.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub newest: Option<String>,
    /// The callbacks that became dead letters since the start, by the word of the metric `dead_letters_total`. Without
    /// zeros.
    pub reasons: BTreeMap<String, u64>,
    /// The dead letters that were not kept since the start, by the word of the metric `dead_letters_not_kept_total`.
    /// Without zeros.
    pub not_kept: BTreeMap<String, u64>,
    /// The dead letters that were deleted since the start, because they were too old.
    pub expired: u64,
    /// The events in the spool that wait for room among the dead letters.
    pub waiting: u64,
}

/// An input.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct InputState {
    /// Its name.
    pub name: String,
    /// Its kind, as in the configuration.
    pub input_kind: String,
    /// `accepting`, or `misconfigured` if it receives nothing until a person changes something.
    pub state: String,
    /// Why it is misconfigured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<String>,
    /// The address or the queue that callbacks come from.
    pub origin: String,
    /// The paths of its endpoints, or the name of its queue.
    pub places: Vec<String>,
    /// When the last callback arrived that became an event, in UTC.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_event: Option<String>,
    /// Its callbacks by outcome since the start.
    pub outcomes: Outcomes,
    /// What was not accepted as a callback since the start, by reason, the newest first.
    pub rejections: Vec<RejectionState>,
}

/// What was not accepted as a callback for one reason.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct RejectionState {
    /// The reason, with the word of the metric `not_accepted_total`.
    pub reason: String,
    /// How often this happened since the start.
    pub count: u64,
    /// When it happened last, in UTC.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub time: Option<String>,
    /// Why, in words, as the sender was told then.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<String>,
    /// The path of that request, without its query.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<String>,
}

/// The entries that are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
pub struct PastState {
    /// The number of failures of events that are kept, at most 100.
    pub failures: u64,
    /// The number of rejections and of bodies that are not callbacks that are kept, at most 100.
    pub rejections: u64,
    /// The number of those that were never kept, because there were more than 200 of their sort in a second.
    pub left_out: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_number() {
        let mut outcomes = Outcomes::default();
        for (number, label) in (1..).zip(Outcome::LABELS) {
            outcomes.add(label, number);
        }
        let json = serde_json::to_value(outcomes).expect("JSON");
        for (number, label) in (1_u64..).zip(Outcome::LABELS) {
            assert_eq!(json[*label], number, "{label}");
        }
        assert_eq!(json.as_object().map(serde_json::Map::len), Some(Outcome::LABELS.len()));
        let earlier = Outcomes { published: 1, refused: 9, ..Outcomes::default() };
        let since = outcomes.since(earlier);
        assert_eq!((since.published, since.spooled, since.refused), (0, 2, 0));
    }
}
