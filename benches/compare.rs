//! Two pieces of work timed against each other in one run.
//!
//! They take turns in batches of a few milliseconds, so that whatever slows the machine slows both, and what counts
//! is the ratio of their medians. Criterion times one after the other, minutes apart on a machine that others use.

use std::time::{Duration, Instant};

/// How long a batch lasts: long against the clock's own cost, short against the scheduler's other guests.
const BATCH: Duration = Duration::from_millis(4);

/// Batches of each side.
const BATCHES: usize = 61;

/// The median time of one run of either side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compared {
    /// Of the one asked about.
    pub(crate) subject: Duration,
    /// Of the one it is held against.
    pub(crate) baseline: Duration,
}

impl Compared {
    /// How many times the baseline's time the subject takes.
    pub(crate) fn ratio(self) -> f64 {
        self.subject.as_secs_f64() / self.baseline.as_secs_f64()
    }
}

/// Times both.
pub(crate) fn compare(mut subject: impl FnMut(), mut baseline: impl FnMut()) -> Compared {
    let (subject_runs, baseline_runs) = (runs_per_batch(&mut subject), runs_per_batch(&mut baseline));
    let (mut subject_times, mut baseline_times) = (Vec::new(), Vec::new());
    for _ in 0..BATCHES {
        subject_times.push(batch(&mut subject, subject_runs));
        baseline_times.push(batch(&mut baseline, baseline_runs));
    }
    Compared { subject: median(subject_times), baseline: median(baseline_times) }
}

/// Whether cargo asks for measurements: `cargo test --benches` doesn't.
pub(crate) fn is_asked_for() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

fn runs_per_batch(work: &mut impl FnMut()) -> u32 {
    let mut runs = 1;
    loop {
        let time = batch(work, runs) * runs;
        if time >= BATCH {
            return runs;
        }
        // Doubling warms caches and branch predictors on the way.
        runs *= 2;
    }
}

fn batch(work: &mut impl FnMut(), runs: u32) -> Duration {
    let start = Instant::now();
    for _ in 0..runs {
        work();
    }
    start.elapsed() / runs
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
