//! A summary of a run on one line, for people and as JSON.

use std::fmt;
use std::io::Write as _;

use serde_json::{Value, json};

use crate::count::{OnBus, Verdict};
use crate::events::Run;
use crate::plan::Action;
use crate::stage::{Counter, Stage};

/// The figures of a run.
#[derive(Clone, Debug)]
pub struct Summary(Value);

impl Summary {
    pub fn new(run: &Run, stage: &Stage, verdict: &Verdict, dead_letters: u64, faults: usize) -> Summary {
        let done = stage.done();
        let times = |action: &Action| (action.name().to_owned(), json!(done.get(action).copied().unwrap_or_default()));
        let sum = |value: fn(&OnBus) -> u64| verdict.buses.iter().map(value).sum::<u64>();
        Summary(json!({
            "mode": run.mode.name(),
            "bus": run.servers.name(),
            "seed": run.seed,
            "seconds": run.length.as_secs(),
            "rate": run.rate,
            "sent": run.total(),
            "answered_for": verdict.answered_for,
            "arrived": verdict.buses.iter().map(|on_bus| on_bus.found).min(),
            "repeats": sum(|on_bus| on_bus.repeats),
            "missing": sum(|on_bus| on_bus.missing.len() as u64),
            "dead_letters": dead_letters,
            "spooled": stage.counted(Counter::Spooled),
            "failed_publishes": stage.counted(Counter::Failures),
            "disk_full": stage.counted(Counter::DiskFull),
            "faults": faults,
            "done": Action::ALL.iter().map(times).collect::<serde_json::Map<_, _>>(),
        }))
    }

    /// Appends a line of JSON to the file CHAOS_LOG, if that is set.
    pub fn log(&self) {
        let Some(file) = std::env::var_os("CHAOS_LOG") else { return };
        let opened = std::fs::File::options().create(true).append(true).open(&file);
        let written = opened.and_then(|mut log| writeln!(log, "{}", self.0));
        written.unwrap_or_else(|error| panic!("CHAOS_LOG={}: cannot be written: {error}", file.display()));
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "chaos sum: ")?;
        let fields = self.0.as_object().into_iter().flatten().filter(|(name, _)| *name != "done");
        for (name, value) in fields {
            write!(formatter, "{name} {}, ", value.as_str().map_or_else(|| value.to_string(), str::to_owned))?;
        }
        let done = self.0["done"].as_object().into_iter().flatten();
        let done: Vec<String> = done.map(|(name, times)| format!("{name} {times}")).collect();
        write!(formatter, "done: {}", done.join("; "))
    }
}
