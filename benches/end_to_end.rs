//! The whole service beside the raw [`forwarder`]: the same load, the same broker, one after the other in rounds.
//!
//! Per bus, a real broker is started and both services in front of it: the bridge's own binary, signatures checked,
//! one route to one topic, and the forwarder. 64 connections drive one of the two at a time, taking turns. First the
//! broker is warmed up: a Kafka JVM needs about 40 s of load before its figures settle. The figures are medians over
//! the rounds, the ratios medians of the rounds' ratios.
//!
//! Goals: at most 1.3 times the forwarder's CPU per event, 1.5 times its p99, 2 times its memory. A goal that is
//! missed is marked; an answer other than 200 fails the run.
//!
//! Environment: BENCH_ROUNDS (5), BENCH_SECONDS of each turn (8), BENCH_WARMUP seconds for either bus (by default 40
//! for Kafka, 15 for JetStream), BENCH_CONNECTIONS (64), BENCH_RATE of requests per second in the rounds (none: as
//! many as are answered; an idle service batches less and pays more for each, so the ratios differ). `cargo bench --bench end_to_end -- kafka` takes one bus.

mod forwarder;
mod load;
#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use async_nats::jetstream::stream;
use tokio::runtime::Runtime;

use load::{Tally, drive};
use support::free_port;
use support::kafka::{Kafka, KafkaOptions};
use support::nats::{Nats, NatsOptions};
use support::process::Process;

/// Turns in the warm-up: short, so that both services are warm, too.
const WARM_UP_TURN: Duration = Duration::from_secs(5);

/// How much a topic or stream keeps. The runs write gigabytes that nobody reads.
const KEPT_BYTES: i64 = 512 << 20;

/// How long a service may take to be ready.
const START: Duration = Duration::from_secs(20);

/// Linux counts a process's CPU time in hundredths of a second, on every architecture.
const TICK: Duration = Duration::from_millis(10);

/// The buses measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bus {
    /// Apache Kafka.
    Kafka,
    /// NATS JetStream.
    Jetstream,
}

impl Bus {
    const ALL: [Bus; 2] = [Bus::Kafka, Bus::Jetstream];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Bus::Kafka => "kafka",
            Bus::Jetstream => "jetstream",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Bus> {
        Bus::ALL.into_iter().find(|bus| bus.name() == name)
    }
}

/// How long and how hard.
#[derive(Clone, Copy, Debug)]
struct Plan {
    rounds: usize,
    turn: Duration,
    warm_up: Option<Duration>,
    connections: usize,
    rate: Option<u32>,
}

impl Plan {
    fn from_environment() -> Plan {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            Some(text.parse::<usize>().unwrap_or_else(|_| panic!("{name}={text}: expected a whole number")))
        };
        let seconds = |name: &str| number(name).map(|seconds| Duration::from_secs(seconds as u64));
        Plan {
            rounds: number("BENCH_ROUNDS").unwrap_or(5).max(1),
            turn: seconds("BENCH_SECONDS").unwrap_or(Duration::from_secs(8)),
            warm_up: seconds("BENCH_WARMUP"),
            connections: number("BENCH_CONNECTIONS").unwrap_or(64).max(1),
            rate: number("BENCH_RATE").map(|rate| u32::try_from(rate.max(1)).expect("a rate within 32 bits")),
        }
    }

    fn warm_up(self, bus: Bus) -> Duration {
        self.warm_up.unwrap_or(Duration::from_secs(match bus {
            Bus::Kafka => 40,
            Bus::Jetstream => 15,
        }))
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == forwarder::ARGUMENT) {
        forwarder::run(&arguments[1..]);
        return ExitCode::SUCCESS;
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("end_to_end measures under `cargo bench` only");
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |bus: &Bus| {
        let name = format!("end_to_end/{}", bus.name());
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let plan = Plan::from_environment();
    let mut failed = 0;
    for bus in Bus::ALL.into_iter().filter(is_wanted) {
        failed += measure(bus, plan);
    }
    if failed == 0 {
        return ExitCode::SUCCESS;
    }
    eprintln!("FAILED: {failed} requests were not answered with 200, so the figures mean nothing");
    ExitCode::FAILURE
}

/// One of the two services.
struct Service {
    name: &'static str,
    address: SocketAddr,
    process: Process,
}

/// Measures both services on a bus and prints what came of it. Gives back how many requests failed.
fn measure(bus: Bus, plan: Plan) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("the folder for temporary files is writable");
    eprintln!("{}: starting the broker and both services", bus.name());
    let broker = Broker::start(bus, &runtime);
    // The order doesn't matter: the one that waits costs nothing.
    let bridge = start_bridge(bus, broker.address(), folder.path());
    let forwarder = start_forwarder(bus, broker.address(), folder.path());
    let services = [&bridge, &forwarder];
    let mut failed = 0;
    let mut turn = |service: &Service, time: Duration, rate: Option<u32>| {
        let before = cpu_time(&service.process);
        let tally = runtime.block_on(drive(service.address, plan.connections, time, rate));
        let cpu = cpu_time(&service.process) - before;
        if let Some(reason) = &tally.first_failure {
            eprintln!("{}: {} requests failed, the first with: {reason}", service.name, tally.failed);
            eprintln!("{}", service.process.log_tail());
        }
        failed += tally.failed;
        Figures::new(&tally, cpu)
    };

    let warm_up = plan.warm_up(bus);
    eprintln!("{}: warming up for {} s", bus.name(), warm_up.as_secs());
    let turns = warm_up.as_secs().div_ceil(WARM_UP_TURN.as_secs());
    for index in 0..turns {
        let figures = turn(services[index as usize % 2], WARM_UP_TURN, None);
        eprintln!("  {:<10}{:>8.0} requests/s", services[index as usize % 2].name, figures.requests_per_second);
    }
    let mut rounds: [Vec<Figures>; 2] = [Vec::new(), Vec::new()];
    for round in 0..plan.rounds {
        eprintln!("{}: round {} of {}", bus.name(), round + 1, plan.rounds);
        // Who goes first changes, so that neither always has the other's leftovers.
        for index in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            let figures = turn(services[index], plan.turn, plan.rate);
            eprintln!("  {:<10}{figures}", services[index].name);
            rounds[index].push(figures);
        }
    }
    let peaks = services.map(|service| peak_memory(&service.process));
    print_table(bus, plan, &rounds, peaks);
    failed
}

/// What is read off one turn.
#[derive(Clone, Copy, Debug)]
struct Figures {
    requests_per_second: f64,
    cpu_per_event: f64,
    p50: f64,
    p99: f64,
}

impl Figures {
    fn new(tally: &Tally, cpu: Duration) -> Figures {
        let milliseconds = |share| tally.percentile(share).as_secs_f64() * 1e3;
        Figures {
            requests_per_second: tally.answered as f64 / tally.elapsed.as_secs_f64(),
            cpu_per_event: cpu.as_secs_f64() * 1e6 / tally.answered.max(1) as f64,
            p50: milliseconds(0.50),
            p99: milliseconds(0.99),
        }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Figures { requests_per_second, cpu_per_event, p50, p99 } = self;
        write!(
            formatter,
            "{requests_per_second:>8.0} requests/s {cpu_per_event:>7.1} µs CPU {p50:>7.2} ms p50 {p99:>7.2} ms p99"
        )
    }
}

fn print_table(bus: Bus, plan: Plan, [bridge, forwarder]: &[Vec<Figures>; 2], peaks: [f64; 2]) {
    println!(
        "\n{}: {} connections{}, bodies of {} bytes, {} rounds of {} s each; medians\n",
        bus.name(),
        plan.connections,
        plan.rate.map_or_else(String::new, |rate| format!(" at {rate} requests/s")),
        load::body_bytes(),
        plan.rounds,
        plan.turn.as_secs()
    );
    println!("{:<20}{:>10}{:>12}{:>9}{:>8}", "", "bridge", "forwarder", "ratio", "goal");
    let line = |name: &str, ours: f64, theirs: f64, ratio: f64, goal: Option<f64>| {
        let goal_text = goal.map_or_else(|| "–".to_owned(), |goal| format!("{goal:.2}"));
        let verdict = if goal.is_some_and(|goal| ratio > goal) { "over" } else { "" };
        println!("{name:<20}{ours:>10.2}{theirs:>12.2}{ratio:>9.2}{goal_text:>8} {verdict}");
    };
    type Read = fn(&Figures) -> f64;
    let rows: [(&str, Read, Option<f64>); 4] = [
        ("requests/s", |figures| figures.requests_per_second, None),
        ("CPU µs per event", |figures| figures.cpu_per_event, Some(1.3)),
        ("p50 ms", |figures| figures.p50, None),
        ("p99 ms", |figures| figures.p99, Some(1.5)),
    ];
    for (name, read, goal) in rows {
        let ratios = bridge.iter().zip(forwarder).map(|(ours, theirs)| read(ours) / read(theirs)).collect();
        let of = |figures: &[Figures]| median(figures.iter().map(read).collect());
        line(name, of(bridge), of(forwarder), median(ratios), goal);
    }
    let [ours, theirs] = peaks;
    line("peak memory MiB", ours, theirs, ours / theirs, Some(2.0));
    println!();
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

// --- the parts of a run -------------------------------------------------------------------------------------------

/// A broker with a topic for each service.
enum Broker {
    Kafka(Kafka),
    Nats(Nats),
}

impl Broker {
    fn start(bus: Bus, runtime: &Runtime) -> Broker {
        match bus {
            Bus::Kafka => {
                let properties = vec![("log.retention.check.interval.ms".to_owned(), "5000".to_owned())];
                let kafka = Kafka::start_blocking(KafkaOptions { bench: true, properties, ..KafkaOptions::default() });
                let kept = KEPT_BYTES.to_string();
                let segment = (KEPT_BYTES / 4).to_string();
                let config = [("retention.bytes", kept.as_str()), ("segment.bytes", segment.as_str())];
                // One partition: records without a key, as the forwarder's, would otherwise be batched better.
                runtime.block_on(kafka.create_topic("bench.bridge", 1, &config));
                runtime.block_on(kafka.create_topic("bench.forwarder", 1, &config));
                Broker::Kafka(kafka)
            }
            Bus::Jetstream => {
                let nats = Nats::start_blocking(NatsOptions::default());
                let streams = async {
                    for name in ["bridge", "forwarder"] {
                        let config = stream::Config {
                            name: name.to_owned(),
                            subjects: vec![format!("bench.{name}")],
                            max_bytes: KEPT_BYTES,
                            ..stream::Config::default()
                        };
                        nats.jetstream().await.create_stream(config).await.expect("a stream can be made");
                    }
                };
                runtime.block_on(streams);
                Broker::Nats(nats)
            }
        }
    }

    fn address(&self) -> &str {
        match self {
            Broker::Kafka(kafka) => kafka.brokers(),
            Broker::Nats(nats) => nats.url(),
        }
    }
}

fn start_bridge(bus: Bus, bus_address: &str, folder: &Path) -> Service {
    let [address, admin] = [loopback(), loopback()];
    let output = match bus {
        Bus::Kafka => format!("kind = 'kafka'\nbrokers = ['{bus_address}']"),
        Bus::Jetstream => format!("kind = 'nats'\nservers = ['{bus_address}']"),
    };
    let (url, key) = (load::URL, load::KEY);
    let config = format!(
        "[inputs.http]\nkind = 'http'\nlisten = '{address}'\n\
         [[inputs.http.endpoints]]\npath = '/callbacks'\nurls = ['{url}']\nkeys = ['{key}']\n\
         [outputs.bus]\n{output}\n\
         [[routes]]\nname = 'all'\nto = {{ output = 'bus', topic = 'bench.bridge' }}\n\
         [admin]\nlisten = '{admin}'\n\
         [log]\nfilter = 'warn'\n"
    );
    let file = folder.join("bridge.toml");
    std::fs::write(&file, config).expect("the temporary folder is writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_apsara-bridge"));
    command.arg("serve").arg("--config").arg(&file);
    let process = Process::start("the bridge", &command, &folder.join("bridge.log"), None);
    process.wait_ready(START, || is_ready(admin).then_some(()));
    Service { name: "bridge", address, process }
}

fn start_forwarder(bus: Bus, bus_address: &str, folder: &Path) -> Service {
    let address = loopback();
    let command = forwarder::command(bus, bus_address, "bench.forwarder", address);
    let process = Process::start("the forwarder", &command, &folder.join("forwarder.log"), None);
    process.wait_ready(START, || TcpStream::connect(address).ok());
    Service { name: "forwarder", address, process }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

fn is_ready(admin: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(admin)?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok(answer == *b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}

/// The CPU time of a process so far, in user and system mode.
fn cpu_time(process: &Process) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("the process still runs");
    // The fields behind the program's name, which may hold blanks itself; utime and stime are 14th and 15th of all.
    let (_, fields) = stat.rsplit_once(") ").expect("the name stands in parentheses");
    let ticks: u32 = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u32>().expect("a count")).sum();
    TICK * ticks
}

/// The most memory a process had resident, in MiB.
fn peak_memory(process: &Process) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).expect("the process still runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells the peak");
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kilobytes / 1024.0
}
