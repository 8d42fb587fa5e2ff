//! The spool: what accepting events costs while the bus is down, how fast the spool drains when the bus is back, and
//! how much space and memory a million events need.
//!
//! Seven parts, each with a table. `cargo bench --bench spool -- drain` runs those whose name contains the word:
//!
//! - `accept`: callbacks stored durably with the bus down, next to the direct path to a warm Kafka, in turns.
//! - `outage`: the answers in an outage, from its first moment on, at a moderate rate: Kafka frozen, and killed. The
//!   load is open (a late answer delays no other request) and includes the second that is spent on the deadline.
//! - `drain`: draining a spool to a warm Kafka and to JetStream, and where the time is spent. The bridge restarts here,
//!   not the broker, because otherwise the start of a JVM would be measured.
//! - `topics`: draining the same number of events to JetStream, for one topic, and each event for its own topic.
//! - `full`: what storing an event costs with a million spooled ones, compared with an empty spool; the same for memory
//!   and for the time until the bridge is ready; the size of the file. The million is sent by HTTP.
//! - `ids`: memory of the window of ids. A route drops the events, so nothing else grows.
//! - `baseline`: the figures that must not get worse, compared with those of another build of the program, in turns.
//!   Only if BENCH_BASELINE names that program, which must read the same spool.
//!
//! "Down" is a port that nobody listens on, in all parts except `outage`. Figures are medians over the rounds, ratios
//! are medians of the rounds' ratios, percentiles of an outage are those of all rounds together. A missed goal is
//! marked; an answer other than 200 fails the run. The speed of the disk limits everything: all files are in the folder
//! for temporary files (TMPDIR), which should not be in memory. They need up to 5 GB.
//!
//! Environment: BENCH_ROUNDS (5), BENCH_SECONDS of each turn (8), BENCH_WARMUP seconds for Kafka (40),
//! BENCH_CONNECTIONS (64), BENCH_RATE of requests per second in an outage (500), BENCH_OUTAGE in seconds (10),
//! BENCH_DRAINED events (200000), BENCH_TOPICS (10000), BENCH_SPOOLED events (1000000), BENCH_IDS (1000000).

// Benchmarks fail with a panic and print their figures; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

mod bridge;
mod broker;
mod load;
mod observe;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::Runtime;

use bridge::{Bridge, DATABASE, publish, publish_by_id};
use broker::{Broker, Bus};
use load::{Figures, Load, Tally, drive};
use observe::{cpu_time, idle_time, median, memory, number, peak_memory, seconds, thread_times};
use support::config::{Config, Route};
use support::free_port;
use support::kafka::Kafka;

/// The name of the topic that the bridge publishes to, as [`Broker::start`] wants it.
const TOPIC: &str = "bridge";

/// No window of ids, because its memory would be counted as the spool's.
const NO_IDS: &str = "dedupe.window = '0s'";

/// How long the disk is measured.
const DISK: Duration = Duration::from_secs(2);

/// Turns in the warm-up.
const WARM_UP_TURN: Duration = Duration::from_secs(5);

/// Steady load before an outage.
const LEAD_IN: Duration = Duration::from_secs(2);

/// How often a draining bridge is asked how much is left. This costs it a fraction of a millisecond.
const LOOK: Duration = Duration::from_millis(10);

/// How long a spool may take to become empty.
const DRAINED: Duration = Duration::from_secs(300);

/// Longest piece of load while a spool is being filled. The next piece is shortened by the result of the last.
const FILL: Duration = Duration::from_secs(1);

/// Number of ids from which the growth of memory counts. What grows before that belongs to the service.
const FIRST_IDS: usize = 20_000;

/// By how much memory may grow and still count as flat. An allocator keeps a megabyte or two of what the check at the
/// start used.
const FLAT: f64 = 1.2;

/// Duration and load of the run.
#[derive(Clone, Copy, Debug)]
struct Plan {
    rounds: usize,
    turn: Duration,
    warm_up: Duration,
    connections: usize,
    rate: u32,
    outage: Duration,
    drained: usize,
    topics: usize,
    spooled: usize,
    ids: usize,
}

impl Plan {
    fn from_environment() -> Plan {
        Plan {
            rounds: number("BENCH_ROUNDS").unwrap_or(5).max(1),
            turn: seconds("BENCH_SECONDS").unwrap_or(Duration::from_secs(8)),
            warm_up: seconds("BENCH_WARMUP").unwrap_or(Duration::from_secs(40)),
            connections: number("BENCH_CONNECTIONS").unwrap_or(64).max(1),
            rate: u32::try_from(number("BENCH_RATE").unwrap_or(500).max(1)).expect("a rate within 32 bits"),
            outage: seconds("BENCH_OUTAGE").unwrap_or(Duration::from_secs(10)),
            drained: number("BENCH_DRAINED").unwrap_or(200_000).max(1),
            topics: number("BENCH_TOPICS").unwrap_or(10_000).max(1),
            spooled: number("BENCH_SPOOLED").unwrap_or(1_000_000).max(10),
            ids: number("BENCH_IDS").unwrap_or(1_000_000).max(2 * FIRST_IDS),
        }
    }

    /// Connections of an open load: enough for each connection to have its answer before its next turn, if the goals
    /// are met.
    fn open_connections(self) -> usize {
        (self.rate as usize * 5).div_ceil(4)
    }
}

/// Measures one thing and prints it.
type Part = fn(&mut Bench);

/// Each part with the name that selects it.
const PARTS: [(&str, Part); 7] = [
    ("accept", Bench::accept),
    ("outage", Bench::outage),
    ("drain", Bench::drain),
    ("topics", Bench::topics),
    ("full", Bench::full),
    ("ids", Bench::ids),
    ("baseline", Bench::baseline),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("spool measures under `cargo bench` only");
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| {
        let name = format!("spool/{name}");
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let mut bench = Bench {
        plan: Plan::from_environment(),
        runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"),
        kafka: None,
        is_compared: false,
        failed: 0,
        missed: 0,
    };
    introduce(folder().path());
    for (_, part) in PARTS.iter().filter(|(name, _)| is_wanted(name)) {
        part(&mut bench);
    }
    println!("\ngoals missed: {}", bench.missed);
    if bench.failed == 0 {
        return ExitCode::SUCCESS;
    }
    eprintln!("FAILED: {} requests did not end as they should, so the figures mean nothing", bench.failed);
    ExitCode::FAILURE
}

/// A run and its findings.
struct Bench {
    plan: Plan,
    runtime: Runtime,
    /// The warm broker, once a part has needed it.
    kafka: Option<Rc<Broker>>,
    /// Whether the last column of the current table is a ratio. Goals then apply to it.
    is_compared: bool,
    failed: usize,
    missed: usize,
}

// --- the parts ----------------------------------------------------------------------------------------------------

impl Bench {
    fn accept(&mut self) {
        let Plan { rounds, turn, connections, .. } = self.plan;
        let kafka = self.kafka();
        let direct_folder = folder();
        let direct = Bridge::start(direct_folder.path(), publish(kafka.output()));
        direct.wait_direct();
        let (mut down, mut up, mut shared) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            eprintln!("accept: round {} of {rounds}", round + 1);
            // The order alternates, because the first leaves work for the disk that affects the second.
            for is_down in if round % 2 == 0 { [true, false] } else { [false, true] } {
                write_out();
                if is_down {
                    let folder = folder();
                    let bridge = Bridge::start(folder.path(), publish(nowhere()));
                    down.push(self.turn(&bridge, turn, "spooled"));
                    let metrics = bridge.metrics();
                    shared.push(metrics.value("spool_events") / metrics.value(WRITES));
                } else {
                    up.push(self.turn(&direct, turn, "published"));
                    direct.wait_direct();
                }
            }
        }
        self.heading(
            &format!(
                "accept: {connections} connections, bodies of {} bytes, {rounds} rounds of {} s each",
                load::body_bytes(),
                turn.as_secs()
            ),
            &["bus down", "bus up", "ratio"],
        );
        self.compared("accepted durably/s", &down, &up, |f| f.requests_per_second, Goal::AtLeast(0.5));
        self.compared("CPU µs per event", &down, &up, |f| f.cpu_per_event, Goal::None);
        self.compared("p50 ms", &down, &up, |f| f.p50, Goal::None);
        self.compared("p99 ms", &down, &up, |f| f.p99, Goal::None);
        self.line("events per durable write", &[median(shared), f64::NAN, f64::NAN], Goal::None);
    }

    fn outage(&mut self) {
        let Plan { rounds, rate, outage, .. } = self.plan;
        let connections = self.plan.open_connections();
        let kafka = self.kafka();
        let Broker::Kafka(broker) = &*kafka else { unreachable!("Kafka was asked for") };
        let folder = folder();
        let bridge = Bridge::start(folder.path(), publish(kafka.output()));
        type Action = fn(&Kafka);
        let actions: [(&str, Action); 2] = [("frozen", Kafka::stop), ("killed", Kafka::kill)];
        let mut columns = Vec::new();
        for (name, action) in actions {
            let mut latencies = Vec::new();
            for round in 0..rounds {
                bridge.wait_direct();
                self.drive(&bridge, connections, LEAD_IN, Some(rate));
                let tally = std::thread::scope(|scope| {
                    scope.spawn(|| action(broker));
                    self.drive(&bridge, connections, outage, Some(rate))
                });
                eprintln!(
                    "outage: {name}, round {} of {rounds}: p50 {:.1}, p99 {:.1}, p99.9 {:.1} ms, {:.0} left behind",
                    round + 1,
                    milliseconds(&tally, 0.5),
                    milliseconds(&tally, 0.99),
                    milliseconds(&tally, 0.999),
                    bridge.metrics().value("spool_events"),
                );
                latencies.extend(tally.latencies);
                match name {
                    "frozen" => broker.cont(),
                    _ => self.runtime.block_on(broker.restart()),
                }
            }
            latencies.sort_unstable();
            columns.push(Tally { latencies, ..Tally::default() });
        }
        bridge.wait_direct();
        self.heading(
            &format!("outage: {rate} requests/s, {rounds} times its first {} s, deadline 1000 ms", outage.as_secs()),
            &["Kafka frozen", "killed"],
        );
        for (name, share, goal) in [
            ("p50 ms", 0.5, Goal::None),
            ("p99 ms", 0.99, Goal::AtMost(1200.0)),
            ("p99.9 ms", 0.999, Goal::AtMost(1500.0)),
            ("longest ms", 1.0, Goal::None),
        ] {
            let cells: Vec<f64> = columns.iter().map(|tally| milliseconds(tally, share)).collect();
            self.line(name, &cells, goal);
        }
    }

    fn drain(&mut self) {
        let Plan { rounds, drained: events, .. } = self.plan;
        let filled = folder();
        let bridge = Bridge::start(filled.path(), publish(nowhere()));
        self.fill(&bridge, events);
        let events = bridge.metrics().value("spool_events");
        bridge.stop();
        let mut columns = Vec::new();
        for bus in Bus::ALL {
            let broker = match bus {
                Bus::Kafka => self.kafka(),
                Bus::Jetstream => Rc::new(Broker::start(bus, &self.runtime, &[TOPIC])),
            };
            let mut drains = Vec::new();
            // The first round warms up the broker.
            for round in 0..=rounds {
                broker.forget(&self.runtime, TOPIC);
                let drain = drain_once(Path::new(PROGRAM), &broker, filled.path());
                eprintln!("drain: {}, round {round} of {rounds}: {:.0} records/s", bus.name(), drain.rate);
                drains.extend((round > 0).then_some(drain));
            }
            columns.push(drains);
        }
        self.heading(&format!("drain: {events} events, {rounds} rounds"), &["Kafka", "JetStream"]);
        type Read = fn(&Drain) -> f64;
        let rows: [(&str, Read, Goal); 7] = [
            ("records/s", |drain| drain.rate, Goal::AtLeast(20_000.0)),
            ("bridge's CPU µs per record", |drain| drain.bridge_cpu / drain.records * 1e6, Goal::None),
            ("broker's CPU µs per record", |drain| drain.broker_cpu / drain.records * 1e6, Goal::None),
            ("cores busy: bridge", |drain| drain.bridge_cpu / drain.seconds, Goal::None),
            ("cores busy: broker", |drain| drain.broker_cpu / drain.seconds, Goal::None),
            ("cores idle, whole machine", |drain| drain.idle / drain.seconds, Goal::None),
            ("  of them waiting for a disk", |drain| drain.waiting / drain.seconds, Goal::None),
        ];
        let of = |drains: &[Drain], read: &dyn Fn(&Drain) -> f64| median(drains.iter().map(read).collect());
        for (name, read, goal) in rows {
            let cells: Vec<f64> = columns.iter().map(|drains| of(drains, &read)).collect();
            self.line(name, &cells, goal);
        }
        let cells: Vec<f64> = columns.iter().map(|drains| of(drains, &|drain| drain.writing / drain.seconds)).collect();
        self.line("share of time in durable writes", &cells, Goal::None);
        // Shows which thread of the bridge is the bottleneck.
        let mut threads: Vec<(&String, Vec<f64>)> = columns
            .iter()
            .flatten()
            .flat_map(|drain| drain.threads.keys())
            .map(|name| {
                let share = |drain: &Drain| drain.threads.get(name).copied().unwrap_or_default() / drain.seconds;
                (name, columns.iter().map(|drains| of(drains, &share)).collect())
            })
            .collect();
        let busiest = |cells: &[f64]| cells.iter().copied().fold(0.0, f64::max);
        threads.sort_by(|(a, x), (b, y)| busiest(y).total_cmp(&busiest(x)).then(a.cmp(b)));
        threads.dedup_by_key(|(name, _)| *name);
        for (name, cells) in threads.iter().filter(|(_, cells)| busiest(cells) >= 0.01) {
            self.line(&format!("  cores busy: threads {name}"), cells, Goal::None);
        }
    }

    fn topics(&mut self) {
        let Plan { rounds, topics, .. } = self.plan;
        let broker = Broker::start(Bus::Jetstream, &self.runtime, &[TOPIC]);
        let filled = [publish, publish_by_id].map(|route| {
            let folder = folder();
            let bridge = Bridge::start(folder.path(), route(nowhere()));
            self.fill(&bridge, topics);
            bridge.stop();
            folder
        });
        let mut drains = [Vec::new(), Vec::new()];
        for round in 0..=rounds {
            for side in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                broker.forget(&self.runtime, TOPIC);
                let drain = drain_once(Path::new(PROGRAM), &broker, filled[side].path());
                // The first round warms up the broker.
                drains[side].extend((round > 0).then_some(drain));
            }
        }
        let [many, one] = [&drains[1], &drains[0]];
        self.heading(&format!("topics: {topics} events, {rounds} rounds"), &["a topic each", "one topic", "ratio"]);
        self.compared("records/s", many, one, |drain| drain.rate, Goal::None);
        self.compared("CPU µs per record", many, one, |drain| drain.bridge_cpu / drain.records * 1e6, Goal::None);
        self.compared("peak memory MiB", many, one, |drain| drain.peak_memory, Goal::None);
    }

    fn full(&mut self) {
        let Plan { rounds, turn, spooled, .. } = self.plan;
        let filled = folder();
        let bridge = Bridge::start(filled.path(), publish(nowhere()).set(NO_IDS));
        self.fill(&bridge, spooled / 10);
        let a_tenth = memory(&bridge.process);
        self.fill(&bridge, spooled);
        let all = memory(&bridge.process);
        let (events, bytes) = (bridge.metrics().value("spool_events"), bridge.metrics().value("spool_bytes"));
        let log = size(&filled.path().join(DATABASE).with_extension("db-wal"));
        bridge.stop();
        let file = size(&filled.path().join(DATABASE));

        // For both sizes of the spool: the bridge is started, loaded and stopped, in turns.
        let (mut full, mut empty) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            eprintln!("full: round {} of {rounds}", round + 1);
            for is_full in if round % 2 == 0 { [true, false] } else { [false, true] } {
                write_out();
                let new = folder();
                if !is_full {
                    // Restart the empty one too: in the run that creates the file, SQLite uses more memory for its
                    // pages.
                    Bridge::start(new.path(), publish(nowhere()).set(NO_IDS)).stop();
                }
                let folder = if is_full { filled.path() } else { new.path() };
                let bridge = Bridge::start(folder, publish(nowhere()).set(NO_IDS));
                let took = bridge.took.as_secs_f64();
                let started = memory(&bridge.process);
                let figures = self.turn(&bridge, turn, "spooled");
                let (loaded, peak) = (memory(&bridge.process), peak_memory(&bridge.process));
                eprintln!(
                    "    ready after {took:.3} s, {started:.1} MiB then, {loaded:.1} after the load, {peak:.1} at most"
                );
                bridge.stop();
                let visit = Visit { figures, took, started, loaded, peak };
                if is_full { &mut full } else { &mut empty }.push(visit);
            }
        }
        // Read the file from the disk, as after a restart of the machine.
        let cold: Vec<f64> = (0..rounds)
            .filter_map(|_| {
                forget_pages(&filled.path().join(DATABASE))?;
                let bridge = Bridge::start(filled.path(), publish(nowhere()).set(NO_IDS));
                let took = bridge.took.as_secs_f64();
                bridge.stop();
                Some(took)
            })
            .collect();

        self.heading(
            &format!("full: {events} events spooled compared with none, {rounds} rounds of {} s each", turn.as_secs()),
            &["spooled", "empty", "ratio"],
        );
        self.compared("CPU µs per event", &full, &empty, |visit| visit.figures.cpu_per_event, Goal::AtMost(1.1));
        let rate = |visit: &Visit| visit.figures.requests_per_second;
        self.compared("accepted durably/s", &full, &empty, rate, Goal::AtLeast(0.9));
        self.compared("p99 ms", &full, &empty, |visit| visit.figures.p99, Goal::None);
        self.compared("memory MiB: ready", &full, &empty, |visit| visit.started, Goal::AtMost(FLAT));
        self.compared("memory MiB: after the load", &full, &empty, |visit| visit.loaded, Goal::AtMost(FLAT));
        self.compared("memory MiB: peak", &full, &empty, |visit| visit.peak, Goal::AtMost(FLAT));
        self.line("memory MiB: all, a tenth taken", &[all, a_tenth, all / a_tenth], Goal::AtMost(FLAT));
        self.heading(&format!("full: starting with {events} events spooled"), &["spooled", "empty"]);
        let seconds = |visits: &[Visit]| median(visits.iter().map(|visit| visit.took).collect());
        self.line("seconds to ready", &[seconds(&full), seconds(&empty)], Goal::AtMost(2.0));
        if cold.is_empty() {
            println!("not measured from a cold disk: GNU dd is needed to drop a file from the page cache");
        } else {
            self.line("seconds to ready, file not in memory", &[median(cold)], Goal::AtMost(2.0));
        }
        self.heading("full: bytes per event", &["on the disk", "counted", "ratio"]);
        self.line("the database", &[file / events, bytes / events, file / bytes], Goal::None);
        self.line("the write-ahead log, in total MiB", &[log / f64::from(1 << 20), f64::NAN, f64::NAN], Goal::None);
    }

    fn ids(&mut self) {
        let ids = self.plan.ids;
        let folder = folder();
        let config = nowhere()
            .route(Route::new("all").set("drop = true"))
            .set(&format!("dedupe = {{ window = '1d', max_ids = {} }}", 2 * ids));
        let bridge = Bridge::start(folder.path(), config);
        let mut fill = |target: usize| {
            self.load_until(&bridge, target, |metrics| metrics.value("dedupe_ids"));
            let metrics = bridge.metrics();
            if metrics.outcomes("dropped") != metrics.value("dedupe_ids") {
                eprintln!("not every callback was dropped and remembered");
                self.failed += 1;
            }
            (metrics.value("dedupe_ids"), memory(&bridge.process), peak_memory(&bridge.process))
        };
        let (first, before, _) = fill(FIRST_IDS);
        // The tables double while the old ones still exist.
        let (all, after, peak) = fill(ids);
        let bytes = |mebibytes: f64| mebibytes * f64::from(1 << 20) / (all - first);
        self.heading(&format!("ids: from {first} to {all} remembered ids"), &["then", "at most"]);
        self.line("bytes per id", &[bytes(after - before), bytes(peak - before)], Goal::None);
        self.line("memory MiB", &[after, peak], Goal::None);
    }
}

impl Bench {
    fn baseline(&mut self) {
        let Some(baseline) = std::env::var_os("BENCH_BASELINE").map(std::path::PathBuf::from) else {
            eprintln!("baseline: not measured; set BENCH_BASELINE to another build of the program");
            return;
        };
        let Plan { rounds, turn, drained, spooled, .. } = self.plan;
        let programs = [Path::new(PROGRAM), &baseline];
        let kafka = self.kafka();
        let (drainable, large) = (folder(), folder());
        // Written by the other program, because both can read its file: a later version adapts the indexes.
        for (folder, events) in [(&drainable, drained), (&large, spooled)] {
            let bridge = Bridge::start_program(&baseline, folder.path(), publish(nowhere()).set(NO_IDS));
            self.fill(&bridge, events);
            bridge.stop();
        }
        let mut accepts = [Vec::new(), Vec::new()];
        let mut drains = [Vec::new(), Vec::new()];
        let mut starts = [Vec::new(), Vec::new()];
        for round in 0..=rounds {
            eprintln!("baseline: round {round} of {rounds}");
            for side in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                write_out();
                let folder = folder();
                let bridge = Bridge::start_program(programs[side], folder.path(), publish(nowhere()));
                let figures = self.turn(&bridge, turn, "spooled");
                bridge.stop();
                kafka.forget(&self.runtime, TOPIC);
                let drain = drain_once(programs[side], &kafka, drainable.path());
                eprintln!("  drained {:.0} records/s", drain.rate);
                let bridge = Bridge::start_program(programs[side], large.path(), publish(nowhere()).set(NO_IDS));
                let start = (bridge.took.as_secs_f64(), memory(&bridge.process));
                bridge.stop();
                // The first round warms up the broker.
                if round > 0 {
                    accepts[side].push(figures);
                    drains[side].push(drain);
                    starts[side].push(start);
                }
            }
        }
        let title = format!("baseline: {rounds} rounds, {drained} events drained, {spooled} spooled at a start");
        self.heading(&title, &["this", "baseline", "ratio"]);
        let [ours, theirs] = &accepts;
        self.compared("accepted durably/s", ours, theirs, |f| f.requests_per_second, Goal::AtLeast(0.9));
        self.compared("CPU µs per event accepted", ours, theirs, |f| f.cpu_per_event, Goal::None);
        self.compared("p99 ms", ours, theirs, |f| f.p99, Goal::None);
        let [ours, theirs] = &drains;
        self.compared("drained/s to Kafka", ours, theirs, |drain| drain.rate, Goal::AtLeast(1.0));
        let [ours, theirs] = &starts;
        self.compared("seconds to ready", ours, theirs, |start| start.0, Goal::None);
        self.compared("memory MiB then", ours, theirs, |start| start.1, Goal::AtMost(FLAT));
    }
}

/// The program of this build.
const PROGRAM: &str = env!("CARGO_BIN_EXE_apsara-bridge");

/// The count of durable writes.
const WRITES: &str = "spool_write_duration_seconds_count";

/// A bridge's run on a spool of some size.
struct Visit {
    figures: Figures,
    /// Seconds until it was ready.
    took: f64,
    /// Memory in MiB at that time, after the load, and the peak.
    started: f64,
    loaded: f64,
    peak: f64,
}

/// The figures of a draining spool; times in seconds.
struct Drain {
    records: f64,
    seconds: f64,
    rate: f64,
    bridge_cpu: f64,
    broker_cpu: f64,
    /// Idle time of all cores.
    idle: f64,
    /// The part of it in which a disk was busy.
    waiting: f64,
    /// Time of the durable writes.
    writing: f64,
    /// CPU time of the bridge by the names of its threads.
    threads: BTreeMap<String, f64>,
    peak_memory: f64,
}

/// All counters at one moment, to compute differences.
struct Moment {
    at: Instant,
    spooled: f64,
    writing: f64,
    bridge: Duration,
    broker: Duration,
    machine: (Duration, Duration),
    threads: BTreeMap<String, Duration>,
}

impl Moment {
    fn now(bridge: &Bridge, broker: &Broker) -> Moment {
        let (at, metrics) = (Instant::now(), bridge.metrics());
        Moment {
            at,
            spooled: metrics.value("spool_events"),
            writing: metrics.value("spool_write_duration_seconds_sum"),
            bridge: cpu_time(bridge.process.id()),
            broker: cpu_time(broker.id()),
            machine: idle_time(),
            threads: thread_times(bridge.process.id()),
        }
    }
}

/// Starts a bridge on a copy of a spool and watches it until that is empty.
fn drain_once(program: &Path, broker: &Broker, filled: &Path) -> Drain {
    let folder = folder();
    let database = folder.path().join(DATABASE);
    std::fs::create_dir(database.parent().expect("the database has a folder"))
        .expect("the temporary folder is writable");
    std::fs::copy(filled.join(DATABASE), &database).expect("there is room for a copy");
    write_out();
    let bridge = Bridge::start_program(program, folder.path(), publish(broker.output()));
    let mut first = Moment::now(&bridge, broker);
    let deadline = Instant::now() + DRAINED;
    let last = loop {
        let now = Moment::now(&bridge, broker);
        if now.spooled == first.spooled {
            // The output is not connected yet.
            first = now;
        } else if now.spooled == 0.0 {
            break now;
        }
        assert!(Instant::now() < deadline, "{} records are left:\n{}", first.spooled, bridge.process.log_tail());
        // The shared waiting loop is not precise enough to measure the end: its pauses grow.
        std::thread::sleep(LOOK);
    };
    let published = bridge.metrics().value("published_total{output=\"bus\"}");
    if published < first.spooled {
        panic!("{published} records were published of {}", first.spooled);
    }
    let seconds = (last.at - first.at).as_secs_f64();
    let thread = |(name, time): (&String, &Duration)| {
        let before = first.threads.get(name).copied().unwrap_or_default();
        (name.clone(), time.saturating_sub(before).as_secs_f64())
    };
    Drain {
        records: first.spooled,
        seconds,
        rate: first.spooled / seconds,
        bridge_cpu: (last.bridge - first.bridge).as_secs_f64(),
        broker_cpu: (last.broker - first.broker).as_secs_f64(),
        idle: (last.machine.0.saturating_sub(first.machine.0)).as_secs_f64(),
        waiting: (last.machine.1.saturating_sub(first.machine.1)).as_secs_f64(),
        writing: last.writing - first.writing,
        threads: last.threads.iter().map(thread).collect(),
        peak_memory: peak_memory(&bridge.process),
    }
}

// --- load ---------------------------------------------------------------------------------------------------------

impl Bench {
    /// Kafka. The first caller waits until it is warm.
    fn kafka(&mut self) -> Rc<Broker> {
        if let Some(kafka) = &self.kafka {
            return kafka.clone();
        }
        let warm_up = self.plan.warm_up;
        eprintln!("kafka: starting and warming up for {} s", warm_up.as_secs());
        let kafka = Rc::new(Broker::start(Bus::Kafka, &self.runtime, &[TOPIC]));
        let folder = folder();
        let bridge = Bridge::start(folder.path(), publish(kafka.output()));
        bridge.wait_direct();
        for _ in 0..warm_up.as_secs().div_ceil(WARM_UP_TURN.as_secs()) {
            let tally = self.drive(&bridge, self.plan.connections, WARM_UP_TURN, None);
            eprintln!("  {:.0} requests/s", tally.answered as f64 / tally.elapsed.as_secs_f64());
        }
        bridge.wait_direct();
        self.kafka.insert(kafka).clone()
    }

    /// Loads a bridge for a while with as much as it accepts. All callbacks except a few must have the given outcome.
    fn turn(&mut self, bridge: &Bridge, time: Duration, outcome: &str) -> Figures {
        let before = (cpu_time(bridge.process.id()), bridge.metrics().outcomes(outcome));
        let tally = self.drive(bridge, self.plan.connections, time, None);
        let figures = Figures::new(&tally, cpu_time(bridge.process.id()) - before.0);
        eprintln!("  {outcome:<10}{figures}");
        let others = tally.answered as f64 - (bridge.metrics().outcomes(outcome) - before.1);
        if others != 0.0 {
            eprintln!("  {others} of them had another outcome");
        }
        // While a broker collects garbage for a second, a few callbacks miss the deadline.
        if others.abs() > tally.answered as f64 / 100.0 {
            self.failed += 1;
        }
        figures
    }

    fn drive(&mut self, bridge: &Bridge, connections: usize, time: Duration, rate: Option<u32>) -> Tally {
        let tally = self.runtime.block_on(drive(bridge.input, Load { rate, ..Load::of(connections) }, time));
        if let Some(reason) = &tally.first_failure {
            eprintln!("{} requests failed, the first with: {reason}", tally.failed);
            eprintln!("{}", bridge.process.log_tail());
        }
        self.failed += tally.failed;
        tally
    }

    /// Loads a bridge whose bus is down until at least this many events are spooled.
    fn fill(&mut self, bridge: &Bridge, events: usize) {
        self.load_until(bridge, events, |metrics| metrics.value("spool_events"));
    }

    fn load_until(&mut self, bridge: &Bridge, target: usize, read: impl Fn(&bridge::Metrics) -> f64) {
        let target = target as f64;
        let start = Instant::now();
        let first = read(&bridge.metrics());
        let (mut reached, mut piece) = (first, FILL / 20);
        while reached < target {
            let tally = self.drive(bridge, self.plan.connections, piece, None);
            let now = read(&bridge.metrics());
            assert!(
                tally.answered > 0 && now > reached,
                "the load does not fill the spool:\n{}",
                bridge.process.log_tail()
            );
            let rest = (target - now).max(0.0) / (now - reached) * tally.elapsed.as_secs_f64();
            piece = Duration::from_secs_f64(rest).clamp(FILL / 100, FILL);
            reached = now;
        }
        let took = start.elapsed().as_secs_f64();
        eprintln!("filled from {first} to {reached} in {took:.1} s, {:.0}/s", (reached - first) / took);
    }
}

// --- tables -------------------------------------------------------------------------------------------------------

/// The goal for a figure.
#[derive(Clone, Copy)]
enum Goal {
    None,
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn is_missed_by(self, value: f64) -> bool {
        match self {
            Goal::None => false,
            Goal::AtLeast(least) => value < least,
            Goal::AtMost(most) => value > most,
        }
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Goal::None => formatter.pad("–"),
            Goal::AtLeast(least) => formatter.pad(&format!("≥ {}", rounded(*least))),
            Goal::AtMost(most) => formatter.pad(&format!("≤ {}", rounded(*most))),
        }
    }
}

impl Bench {
    /// Begins a table.
    fn heading(&mut self, title: &str, columns: &[&str]) {
        self.is_compared = columns.last() == Some(&"ratio");
        print!("\n{title}\n\n{:<36}", "");
        for column in columns {
            print!("{column:>13}");
        }
        println!("{:>11}", "goal");
    }

    /// A line of the table. The goal applies to the ratio if there is one, otherwise to all cells.
    fn line(&mut self, name: &str, cells: &[f64], goal: Goal) {
        print!("{name:<36}");
        for cell in cells {
            print!("{:>13}", rounded(*cell));
        }
        let judged = if self.is_compared { &cells[cells.len() - 1..] } else { cells };
        let is_missed = judged.iter().any(|cell| goal.is_missed_by(*cell));
        self.missed += usize::from(is_missed);
        println!("{goal:>11}{}", if is_missed { " missed" } else { "" });
    }

    /// A line of two sides that took turns.
    fn compared<T>(&mut self, name: &str, ours: &[T], theirs: &[T], read: impl Fn(&T) -> f64, goal: Goal) {
        let of = |side: &[T]| median(side.iter().map(&read).collect());
        let ratio = median(ours.iter().zip(theirs).map(|(ours, theirs)| read(ours) / read(theirs)).collect());
        self.line(name, &[of(ours), of(theirs), ratio], goal);
    }
}

/// Three digits or more.
fn rounded(value: f64) -> String {
    match value.abs() {
        size if size.is_nan() => "–".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn milliseconds(tally: &Tally, share: f64) -> f64 {
    tally.percentile(share).as_secs_f64() * 1e3
}

// --- the disk -----------------------------------------------------------------------------------------------------

/// Prints what all figures depend on: the load of the machine, and the speed of the disk for small appends that are
/// each made durable.
fn introduce(folder: &Path) {
    let mut file = File::create(folder.join("appended")).expect("the temporary folder is writable");
    let piece = [b'x'; 4096];
    let start = Instant::now();
    let mut latencies = Vec::new();
    while start.elapsed() < DISK {
        let before = Instant::now();
        file.write_all(&piece).and_then(|()| file.sync_data()).expect("the disk accepts the write");
        latencies.push(before.elapsed());
    }
    latencies.sort_unstable();
    let tally = Tally { answered: latencies.len(), elapsed: start.elapsed(), latencies, ..Tally::default() };
    let load = std::fs::read_to_string("/proc/loadavg").expect("/proc/loadavg can be read");
    println!(
        "\nthe machine: {} cores, load average {} before the start",
        std::thread::available_parallelism().map_or(0, usize::from),
        load.split(' ').next().unwrap_or_default()
    );
    println!(
        "the disk: 4 KiB appended with fdatasync {:.0} times a second, p50 {:.2} ms, p99 {:.2} ms",
        tally.answered as f64 / tally.elapsed.as_secs_f64(),
        milliseconds(&tally, 0.5),
        milliseconds(&tally, 0.99)
    );
}

/// Makes the system write its buffers, which the next turn would otherwise wait for.
fn write_out() {
    let _ = Command::new("sync").status();
}

/// Drops a file from the page cache; none if this is not possible.
fn forget_pages(file: &Path) -> Option<()> {
    let mut dd = Command::new("dd");
    dd.arg(format!("of={}", file.display())).args(["oflag=nocache", "conv=notrunc,fdatasync", "count=0"]);
    let status = dd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
    status.success().then_some(())
}

fn size(file: &Path) -> f64 {
    std::fs::metadata(file).map_or(0.0, |metadata| metadata.len() as f64)
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("spool-").tempdir().expect("the folder for temporary files is writable")
}

/// An output whose bus is down.
fn nowhere() -> Config {
    Config::http().output("bus", "kafka", &[format!("127.0.0.1:{}", free_port())])
}
