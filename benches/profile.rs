//! Where the CPU time of a service goes: by thread, and in user mode by what the functions do. It needs `perf` of Linux.
//!
//! A sample counts for the innermost function. Generic functions of the standard library that several parts use are a
//! group of their own.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Samples per second.
const FREQUENCY: &str = "1999";

/// Groups of functions by parts of their names. The first that fits counts.
const GROUPS: &[(&str, &[&str])] = &[
    ("reading the clock", &["clock_gettime", "[vdso]"]),
    ("allocator", &["rjem", "malloc", "allocx", "calloc", "realloc", "tcache", "free", "RawVec"]),
    ("copying and comparing memory", &["memmove", "memcpy", "memcmp", "memset", "memchr"]),
    ("id of the event (SHA-256)", &["sha256", "sha2", "digest"]),
    ("signature (MD5)", &["md5", "signature"]),
    ("normalizing", &["apsara_bridge::dialect", "event::json", "hifijson", "bumpalo"]),
    ("event and envelope", &["apsara_bridge::event"]),
    ("metrics", &["prometheus", "observe"]),
    ("routing", &["apsara_bridge::route"]),
    ("window of ids", &["dedupe", "hashbrown"]),
    ("delivery", &["apsara_bridge::bridge", "input::handle"]),
    ("outputs", &["apsara_bridge::output"]),
    ("HTTP input", &["apsara_bridge::input", "apsara_bridge::common"]),
    ("hyper and axum", &["hyper", "httparse", "http::", "axum", "tower", "matchit"]),
    ("librdkafka", &["rd_", "rdk_", "rdkafka", "crc32", "librdkafka"]),
    ("async-nats", &["async_nats"]),
    ("timers", &["tokio::time", "runtime::time", "Timeout", "Sleep"]),
    ("tokio and futures", &["tokio", "mio::", "futures", "PollFn", "bytes::"]),
];

/// A recording that runs for a while.
pub(crate) struct Recording(Child);

/// Begins to record a process.
pub(crate) fn record(process: u32, time: Duration, file: &Path) -> Recording {
    let (id, seconds) = (process.to_string(), time.as_secs_f64().to_string());
    let mut command = Command::new("perf");
    command.args(["record", "-F", FREQUENCY, "-p", &id, "-o"]).arg(file).args(["--", "sleep", &seconds]);
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    Recording(command.spawn().expect("`perf` runs; Debian has it in the package linux-perf"))
}

impl Recording {
    /// Waits for its end.
    pub(crate) fn wait(mut self) {
        assert!(
            self.0.wait().expect("a child").success(),
            "`perf record` failed; it needs root or perf_event_paranoid"
        );
    }
}

/// Shares of all samples in percent, by thread and group.
pub(crate) type Shares = BTreeMap<(&'static str, &'static str), f64>;

/// Reads a recording.
pub(crate) fn shares(file: &Path) -> Shares {
    let mut command = Command::new("perf");
    command.args(["report", "--no-children", "--sort=comm,dso,symbol", "--stdio", "-t", "|", "-i"]).arg(file);
    let output = command.stderr(Stdio::null()).output().expect("`perf` runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut shares = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.splitn(4, '|').map(str::trim).collect();
        let [share, thread, object, symbol] = fields[..] else { continue };
        let Ok(share) = share.trim_end_matches('%').parse::<f64>() else { continue };
        let thread = match thread {
            name if name.starts_with("tokio") => "tokio workers",
            name if name.starts_with("rdk") => "librdkafka",
            _ => "others",
        };
        *shares.entry((thread, group(object, symbol))).or_default() += share;
    }
    assert!(!shares.is_empty(), "`perf report` has nothing");
    shares
}

fn group(object: &str, symbol: &str) -> &'static str {
    if object.contains("kernel") {
        return "kernel";
    }
    let fits = |parts: &[&str]| parts.iter().any(|part| symbol.contains(part) || object.contains(part));
    GROUPS.iter().find(|(_, parts)| fits(parts)).map_or("the rest, mostly generic code", |(name, _)| name)
}

/// Where the time of a service goes: its name, its shares, and its µs of CPU per event.
pub(crate) struct Budget {
    pub(crate) name: &'static str,
    pub(crate) shares: Shares,
    pub(crate) cpu: f64,
}

/// The budgets in Markdown: µs per event of every service, the largest group of the first service first.
pub(crate) fn table(budgets: &[Budget]) -> String {
    let mut rows: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for (index, Budget { shares, cpu, .. }) in budgets.iter().enumerate() {
        let all: f64 = shares.values().sum();
        for ((thread, group), share) in shares {
            rows.entry((thread, group)).or_insert_with(|| vec![0.0; budgets.len()])[index] = share / all * cpu;
        }
    }
    let mut rows: Vec<_> = rows.into_iter().filter(|(_, costs)| costs.iter().any(|cost| *cost >= 0.05)).collect();
    rows.sort_by(|(_, one), (_, other)| other[0].total_cmp(&one[0]));
    let line = |thread: &str, group: &str, costs: &[f64]| {
        let costs: String = costs.iter().map(|cost| format!(" {cost:.2} |")).collect();
        format!("| {thread} | {group} |{costs}\n")
    };
    let names: String = budgets.iter().map(|budget| format!(" {}, µs |", budget.name)).collect();
    let mut text = format!("| thread | what |{names}\n|---|---|{}\n", "---|".repeat(budgets.len()));
    text += &line("all", "all", &budgets.iter().map(|budget| budget.cpu).collect::<Vec<_>>());
    rows.iter().for_each(|((thread, group), costs)| text += &line(thread, group, costs));
    text
}
