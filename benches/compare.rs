//! Compares the times of two pieces of work in one run.
//!
//! They take turns in batches of a few milliseconds, so anything that slows the machine slows both. The result is the
//! ratio of their medians. Criterion would measure them minutes apart, on a machine that others use too.

use std::time::{Duration, Instant};

/// How long a batch lasts: much longer than reading the clock takes, and short enough to be rarely preempted.
const BATCH: Duration = Duration::from_millis(4);

/// Batches of each side.
const BATCHES: usize = 61;

/// The median time of one run of each side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compared {
    /// Time of the work in question.
    pub(crate) subject: Duration,
    /// Time of the work that it is compared with.
    pub(crate) baseline: Duration,
}

impl Compared {
    /// The subject's time as a multiple of the baseline's.
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

/// Whether cargo asks for measurements; `cargo test --benches` does not.
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
        // Doubling also warms caches and branch predictors.
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
