//! The last 15 minutes in steps, from counters that are counted anyway: callbacks pay nothing for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};
use time::OffsetDateTime;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::feed::state::{HistoryState, Step, Totals};
use super::feed::timestamp;
use super::{Bridge, Rules};
use crate::telemetry::metrics::{Metrics, each_series};

/// The length of a step.
const STEP: Duration = Duration::from_secs(10);

/// Steps in the history.
const STEPS: usize = 90;

/// Every how many steps the counts of the routes are noted.
const ROUTES_EVERY: u64 = 6;

/// Counts of a route that are noted.
const ROUTE_COUNTS: usize = STEPS / ROUTES_EVERY as usize;

/// The history.
#[derive(Debug)]
pub(super) struct History(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    steps: VecDeque<Step>,
    /// The number of steps since the start.
    ended: u64,
    last: Sample,
    taken: Instant,
    /// Counts of each route at some times of the last 15 minutes, the oldest first. Of removed routes, the last one.
    routes: FxHashMap<String, VecDeque<u64>>,
}

/// Counters at one time.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sample {
    totals: Totals,
    durations: Durations,
}

/// The histogram of the time from arrival to outcome, of all inputs.
#[derive(Clone, Debug, Default, PartialEq)]
struct Durations {
    callbacks: u64,
    /// Upper bounds in seconds, and how many callbacks did not exceed each.
    buckets: Vec<(f64, u64)>,
}

/// The counters of callbacks at present.
pub(super) fn totals(metrics: &Metrics) -> Totals {
    let mut totals = Totals::default();
    each_series(&metrics.callbacks_total, |series| {
        totals.outcomes.add(series.label("outcome"), series.count());
    });
    each_series(&metrics.not_accepted_total, |series| totals.rejected += series.count());
    totals
}

impl Durations {
    fn of(metrics: &Metrics) -> Durations {
        let mut durations = Durations::default();
        each_series(&metrics.callback_duration_seconds, |series| {
            let (callbacks, buckets) = series.histogram();
            durations.callbacks += callbacks;
            if durations.buckets.is_empty() {
                durations.buckets = buckets.collect();
            } else {
                durations.buckets.iter_mut().zip(buckets).for_each(|(sum, bucket)| sum.1 += bucket.1);
            }
        });
        durations
    }

    /// What came since earlier ones.
    fn since(&self, earlier: &Durations) -> Durations {
        let before = |index: usize| earlier.buckets.get(index).map_or(0, |(_, callbacks)| *callbacks);
        let buckets = self.buckets.iter().enumerate();
        let buckets = buckets.map(|(index, (bound, callbacks))| (*bound, callbacks.saturating_sub(before(index))));
        Durations { callbacks: self.callbacks.saturating_sub(earlier.callbacks), buckets: buckets.collect() }
    }

    /// The time that a share of the callbacks did not exceed, in milliseconds, interpolated within its bucket. A time
    /// above the last bound counts as that bound.
    fn quantile(&self, share: f64) -> Option<f64> {
        if self.callbacks == 0 {
            return None;
        }
        let rank = share * self.callbacks as f64;
        let (mut low, mut below) = (0.0, 0);
        for (bound, callbacks) in self.buckets.iter().copied().filter(|(bound, _)| bound.is_finite()) {
            if callbacks as f64 >= rank && callbacks > below {
                let within = (rank - below as f64) / (callbacks - below) as f64;
                return Some(rounded((low + (bound - low) * within) * 1e3));
            }
            (low, below) = (bound, callbacks);
        }
        Some(rounded(low * 1e3))
    }
}

/// A number with three decimals.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

impl Sample {
    fn of(metrics: &Metrics) -> Sample {
        Sample { totals: totals(metrics), durations: Durations::of(metrics) }
    }

    fn step(&self, last: &Sample, took: Duration, ended: OffsetDateTime) -> Step {
        let durations = self.durations.since(&last.durations);
        Step {
            time: timestamp(ended),
            seconds: rounded(took.as_secs_f64()),
            outcomes: self.totals.outcomes.since(last.totals.outcomes),
            rejected: self.totals.rejected.saturating_sub(last.totals.rejected),
            p50_ms: durations.quantile(0.5),
            p99_ms: durations.quantile(0.99),
        }
    }
}

impl Default for History {
    fn default() -> Self {
        History(Mutex::new(Inner {
            steps: VecDeque::new(),
            ended: 0,
            last: Sample::default(),
            taken: Instant::now(),
            routes: FxHashMap::default(),
        }))
    }
}

impl History {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a step.
    fn end_step(&self, sample: Sample, rules: &Rules, ended: OffsetDateTime) {
        let mut inner = self.lock();
        let now = Instant::now();
        let step = sample.step(&inner.last, now - inner.taken, ended);
        if inner.steps.len() >= STEPS {
            inner.steps.pop_front();
        }
        inner.steps.push_back(step);
        (inner.last, inner.taken) = (sample, now);
        inner.ended += 1;
        if inner.ended.is_multiple_of(ROUTES_EVERY) {
            let routes = &mut inner.routes;
            // A counter goes on when a route with the name of a removed one is added, so the last count of each stays.
            let present: FxHashSet<&str> = rules.router.routes().iter().map(|route| route.name.as_str()).collect();
            for (_, counts) in routes.iter_mut().filter(|(name, _)| !present.contains(name.as_str())) {
                counts.drain(..counts.len().saturating_sub(1));
            }
            for (name, matched) in rules.matches() {
                let counts = match routes.get_mut(name) {
                    Some(counts) => counts,
                    None => routes.entry(name.to_owned()).or_insert_with(|| VecDeque::from([0])),
                };
                if counts.len() >= ROUTE_COUNTS {
                    counts.pop_front();
                }
                counts.push_back(matched);
            }
        }
    }

    /// The steps since the first so many. Sets that number to the present one.
    pub(super) fn since(&self, seen: &mut u64) -> HistoryState {
        let inner = self.lock();
        let new = usize::try_from(inner.ended.saturating_sub(*seen)).unwrap_or(usize::MAX).min(inner.steps.len());
        *seen = inner.ended;
        HistoryState {
            step_seconds: STEP.as_secs(),
            steps: inner.steps.range(inner.steps.len() - new..).cloned().collect(),
        }
    }

    /// For routes with their counts: how many events each matched in about the last 15 minutes.
    pub(super) fn recent<'r>(&self, routes: impl Iterator<Item = (&'r str, u64)>) -> Vec<u64> {
        let inner = self.lock();
        let before = |name: &str| inner.routes.get(name).and_then(|counts| counts.front().copied()).unwrap_or(0);
        routes.map(|(name, matched)| matched.saturating_sub(before(name))).collect()
    }
}

impl Bridge {
    /// Keeps the history of the last 15 minutes, forever. May be cancelled.
    pub async fn keep_history(self: Arc<Self>) {
        let mut ticks = interval(STEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one comes at once.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            self.history.end_step(Sample::of(&self.metrics), &self.rules(), OffsetDateTime::now_utc());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::feed::state::Outcomes;
    use super::*;
    use crate::dialect::{Catalogue, Normalizer};
    use crate::event::DEFAULT_TYPE_PREFIX;
    use crate::route::{Action, Route, Router};

    fn rules(metrics: &Metrics, routes: &[&str]) -> Rules {
        let route = |name: &str| Route {
            name: name.to_owned(),
            matches: Vec::new(),
            filter: None,
            action: Action::Drop,
            continue_matching: true,
        };
        let router = Router::new(routes.iter().map(|name| route(name)).collect()).expect("valid routes");
        let normalizer = Normalizer::new(Catalogue::built_in().expect("a catalogue"), DEFAULT_TYPE_PREFIX);
        Rules::new(normalizer, router, None, metrics)
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_is_what_came_in_it() {
        let metrics = Metrics::new().expect("a valid table");
        let (rules, history) = (rules(&metrics, &["a", "b"]), History::default());
        let end = |at: i64| {
            let time = OffsetDateTime::from_unix_timestamp(at).expect("a time");
            history.end_step(Sample::of(&metrics), &rules, time);
        };
        let count = |input: &str, outcome: &str, callbacks: u64| {
            metrics.callbacks_total.with_label_values(&[input, outcome]).inc_by(callbacks);
        };
        let durations = |input: &str| metrics.callback_duration_seconds.with_label_values(&[input]);
        count("one", "published", 3);
        count("two", "published", 2);
        count("two", "refused", 1);
        metrics.not_accepted_total.with_label_values(&["one", "no_such_path"]).inc_by(4);
        (0..98).for_each(|_| durations("one").observe(0.002));
        (0..2).for_each(|_| durations("two").observe(0.2));
        tokio::time::advance(STEP).await;
        end(10);
        count("one", "published", 7);
        tokio::time::advance(STEP * 2).await;
        end(30);
        let mut seen = 0;
        let steps = history.since(&mut seen).steps;
        assert_eq!((steps.len(), seen), (2, 2));
        let outcomes = Outcomes { published: 5, refused: 1, ..Outcomes::default() };
        assert_eq!((steps[0].outcomes, steps[0].rejected, steps[0].seconds), (outcomes, 4, 10.0));
        assert_eq!(steps[0].time, "1970-01-01T00:00:10.000Z");
        // 50 of the 98 between 1 and 2.5 ms; the 99th is the first of the two between 100 and 250 ms.
        assert_eq!((steps[0].p50_ms, steps[0].p99_ms), (Some(1.765), Some(175.0)));
        assert_eq!((steps[1].outcomes.published, steps[1].outcomes.refused, steps[1].rejected), (7, 0, 0));
        assert_eq!((steps[1].p50_ms, steps[1].seconds), (None, 20.0));
        assert!(history.since(&mut seen).steps.is_empty());
        end(40);
        assert_eq!((history.since(&mut seen).steps.len(), seen), (1, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn the_history_is_bounded_and_routes_have_recent_counts() {
        let metrics = Metrics::new().expect("a valid table");
        let (rules, history) = (rules(&metrics, &["a", "b"]), History::default());
        let matched = metrics.route_matches_total.with_label_values(&["a"]);
        let recent = || history.recent(rules.matches());
        matched.inc_by(5);
        assert_eq!(recent(), [5, 0]);
        for _ in 0..STEPS * 3 {
            history.end_step(Sample::of(&metrics), &rules, OffsetDateTime::UNIX_EPOCH);
        }
        assert_eq!((history.since(&mut 0).steps.len(), history.since(&mut 269).steps.len()), (STEPS, 1));
        assert_eq!(recent(), [0, 0], "that was long ago");
        matched.inc_by(2);
        assert_eq!(recent(), [2, 0]);
    }

    #[test]
    fn a_route_that_is_added_again_has_no_recent_counts_of_its_first_life() {
        let metrics = Metrics::new().expect("a valid table");
        let (both, one, history) = (rules(&metrics, &["a", "b"]), rules(&metrics, &["b"]), History::default());
        let end_minutes = |rules: &Rules, minutes: u64| {
            for _ in 0..minutes * ROUTES_EVERY {
                history.end_step(Sample::of(&metrics), rules, OffsetDateTime::UNIX_EPOCH);
            }
        };
        metrics.route_matches_total.with_label_values(&["a"]).inc_by(5);
        end_minutes(&both, 2);
        end_minutes(&one, 60);
        assert_eq!(history.recent(both.matches()), [0, 0]);
        metrics.route_matches_total.with_label_values(&["a"]).inc_by(2);
        end_minutes(&both, 1);
        assert_eq!(history.recent(both.matches()), [2, 0]);
    }

    #[test]
    fn a_quantile_is_within_the_bounds_of_its_bucket() {
        let durations = |callbacks, buckets: &[(f64, u64)]| Durations { callbacks, buckets: buckets.to_vec() };
        let some = durations(10, &[(0.001, 0), (0.01, 10), (5.0, 10), (f64::INFINITY, 10)]);
        assert_eq!((some.quantile(0.5), some.quantile(1.0)), (Some(5.5), Some(10.0)));
        let slow = durations(4, &[(0.001, 1), (5.0, 1)]);
        assert_eq!((slow.quantile(0.99), slow.quantile(0.25)), (Some(5000.0), Some(1.0)));
        assert_eq!(durations(0, &[(5.0, 0)]).quantile(0.5), None);
    }
}
