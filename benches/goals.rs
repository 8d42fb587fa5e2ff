//! The goals of the benchmarks. This one table has the rows of `make bench`, in their order.
//!
//! Each benchmark reports the rows that it measures. If BENCH_ROWS names a file, they are also written there, for the
//! table that `cargo bench --bench table` prints.

#![allow(dead_code)] // each benchmark that includes this reports its own rows

use std::fmt::Write as _;
use std::io::Write as _;

/// A row. Its value is a median, over rounds or over repeated comparisons.
pub(crate) struct Goal {
    pub(crate) name: &'static str,
    pub(crate) bound: Bound,
}

/// What a value must be.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// It has no goal.
    Any,
}

use Bound::{Any, AtLeast, AtMost};

/// The rows of the table. "×" is a multiple of the forwarder with the system's allocator.
#[rustfmt::skip]
pub(crate) const GOALS: &[Goal] = &[
    Goal { name: "Kafka: CPU per event, ×", bound: AtMost(1.4) },
    Goal { name: "Kafka: CPU per event of the forwarder with our allocator, ×", bound: Any },
    Goal { name: "Kafka: requests per second, ×", bound: AtLeast(0.85) },
    Goal { name: "Kafka: p99, ×", bound: AtMost(1.2) },
    Goal { name: "Kafka: CPU per event at 500 events/s, ×", bound: AtMost(1.3) },
    Goal { name: "Kafka: peak memory without the window of ids, MiB", bound: AtMost(32.0) },
    Goal { name: "Kafka: memory after a burst, MiB", bound: AtMost(32.0) },
    Goal { name: "Kafka: CPU per event with 350 topics against 1", bound: Any },
    Goal { name: "JetStream: CPU per event, ×", bound: AtMost(1.0) },
    Goal { name: "JetStream: CPU per event of the forwarder with our allocator, ×", bound: Any },
    Goal { name: "JetStream: requests per second, ×", bound: AtLeast(0.85) },
    Goal { name: "JetStream: p99, ×", bound: AtMost(1.2) },
    Goal { name: "JetStream: CPU per event at 500 events/s, ×", bound: AtMost(1.3) },
    Goal { name: "JetStream: peak memory without the window of ids, MiB", bound: AtMost(32.0) },
    Goal { name: "JetStream: memory after a burst, MiB", bound: AtMost(32.0) },
    Goal { name: "normalizing 0.5 KB against serde_json::Value, VOD", bound: AtMost(1.3) },
    Goal { name: "normalizing 0.5 KB against serde_json::Value, IMS", bound: AtMost(1.3) },
    Goal { name: "normalizing 1 KB against serde_json::Value, VOD", bound: AtMost(1.1) },
    Goal { name: "normalizing 1 KB against serde_json::Value, IMS", bound: AtMost(1.1) },
    Goal { name: "normalizing 4 KB against serde_json::Value, VOD", bound: AtMost(1.0) },
    Goal { name: "normalizing 4 KB against serde_json::Value, IMS", bound: AtMost(1.0) },
    Goal { name: "normalizing 64 KB against serde_json::Value, VOD", bound: AtMost(1.0) },
    Goal { name: "normalizing 64 KB against serde_json::Value, IMS", bound: AtMost(1.0) },
    Goal { name: "1,000 routes with a filter `any` against 10", bound: AtMost(1.2) },
    Goal { name: "MNS: CPU per message against version 8023ad4", bound: AtMost(0.7) },
    Goal { name: "MNS: CPU per message against HTTP", bound: AtMost(1.3) },
    Goal { name: "Kafka: CPU per event with one `tail` against nobody, ×", bound: AtMost(1.05) },
    Goal { name: "Kafka: CPU per event with one `tail` and the page against nobody, ×", bound: AtMost(1.05) },
    Goal { name: "JetStream: CPU per event with one `tail` against nobody, ×", bound: AtMost(1.05) },
    Goal { name: "JetStream: CPU per event with one `tail` and the page against nobody, ×", bound: AtMost(1.05) },
    Goal { name: "idle with a Kafka output, % of a core", bound: AtMost(0.2) },
];

impl Bound {
    /// Whether a value keeps it. None without a goal.
    fn is_kept(self, value: f64) -> Option<bool> {
        match self {
            AtMost(most) => Some(value <= most),
            AtLeast(least) => Some(value >= least),
            Any => None,
        }
    }

    fn text(self) -> String {
        match self {
            AtMost(most) => format!("≤ {most}"),
            AtLeast(least) => format!("≥ {least}"),
            Any => "–".to_owned(),
        }
    }
}

/// Reports the measured values of a row.
pub(crate) fn report(name: &str, values: &[f64]) {
    let goal = GOALS.iter().find(|goal| goal.name == name).unwrap_or_else(|| panic!("{name} is not in the table"));
    print!("{}", row(goal, values));
    if let Some(file) = std::env::var_os("BENCH_ROWS") {
        let values: Vec<String> = values.iter().map(f64::to_string).collect();
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(file).expect("the file of rows");
        writeln!(file, "{name}\t{}", values.join(" ")).expect("the file of rows can be written");
    }
}

/// A row in Markdown: name, goal, median, the smallest and the largest value, verdict.
pub(crate) fn row(goal: &Goal, values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (least, median, most) = (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
    let verdict = match goal.bound.is_kept(median) {
        Some(true) => "pass",
        Some(false) => "**miss**",
        None => "",
    };
    let mut row = String::new();
    let Goal { name, bound } = goal;
    let _ = writeln!(row, "| {name} | {} | {median:.2} | {least:.2} to {most:.2} | {verdict} |", bound.text());
    row
}
