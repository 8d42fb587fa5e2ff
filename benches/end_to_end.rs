//! The whole service compared with the raw [`forwarder`]: the same load, the same broker, in turns.
//!
//! For each bus, a real broker and both services are started: the bridge's own binary, which checks signatures and has
//! one route to one topic, and the forwarder. 64 connections load the two services in turns. Before that the broker is
//! warmed up, because a Kafka JVM needs about 40 s of load before its figures settle. The figures are medians over the
//! rounds. The ratios are medians of the rounds' ratios.
//!
//! Goals: at most 1.3 times the forwarder's CPU per event, 1.5 times its p99, 2 times its memory. A missed goal is
//! marked; an answer other than 200 fails the run.
//!
//! Environment: BENCH_ROUNDS (5), BENCH_SECONDS of each turn (8), BENCH_WARMUP seconds for each bus (default: 40 for
//! Kafka, 15 for JetStream), BENCH_CONNECTIONS (64), BENCH_RATE of requests per second in the rounds (default: as many
//! as are answered). At a lower rate a service batches less and needs more CPU per event, so the ratios differ.
//! BENCH_BASELINE: another build of the program, which then takes its turns too and is compared in a second table.
//! `cargo bench --bench end_to_end -- kafka` measures one bus.

// Benchmarks fail with a panic and print their figures; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

mod bridge;
mod broker;
mod forwarder;
mod load;
mod observe;
#[path = "../tests/support/mod.rs"]
mod support;

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use bridge::Bridge;
use broker::{Broker, Bus};
use load::{Figures, drive};
use observe::{cpu_time, median, number, peak_memory, seconds};
use support::free_port;
use support::process::Process;
use support::wait::START;

/// Length of a turn in the warm-up. Turns are short, so both services warm up too.
const WARM_UP_TURN: Duration = Duration::from_secs(5);

/// Duration and load of the run.
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

/// One of the services.
struct Service {
    name: &'static str,
    address: SocketAddr,
    process: Process,
}

/// Measures both services on a bus and prints the results. Returns how many requests failed.
fn measure(bus: Bus, plan: Plan) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("the folder for temporary files is writable");
    eprintln!("{}: starting the broker and the services", bus.name());
    let broker = Broker::start(bus, &runtime, &["bridge", "forwarder"]);
    // The order does not matter: the services that wait use no CPU.
    let mut services = vec![
        start_bridge("bridge", Path::new(PROGRAM), &broker, &folder.path().join("bridge")),
        start_forwarder(bus, broker.address(), folder.path()),
    ];
    if let Some(baseline) = std::env::var_os("BENCH_BASELINE") {
        services.push(start_bridge("baseline", Path::new(&baseline), &broker, &folder.path().join("baseline")));
    }
    let mut failed = 0;
    let mut turn = |service: &Service, time: Duration, rate: Option<u32>| {
        let before = cpu_time(service.process.id());
        let tally = runtime.block_on(drive(service.address, plan.connections, time, rate));
        let cpu = cpu_time(service.process.id()) - before;
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
        let service = &services[index as usize % services.len()];
        let figures = turn(service, WARM_UP_TURN, None);
        eprintln!("  {:<10}{:>8.0} requests/s", service.name, figures.requests_per_second);
    }
    let mut rounds = vec![Vec::new(); services.len()];
    for round in 0..plan.rounds {
        eprintln!("{}: round {} of {}", bus.name(), round + 1, plan.rounds);
        // The order alternates, because the first service leaves work for the broker that affects the second.
        let mut order: Vec<usize> = (0..services.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let figures = turn(&services[index], plan.turn, plan.rate);
            eprintln!("  {:<10}{figures}", services[index].name);
            rounds[index].push(figures);
        }
    }
    print_head(bus, plan);
    let peaks: Vec<f64> = services.iter().map(|service| peak_memory(&service.process)).collect();
    for other in 1..services.len() {
        let has_goals = services[other].name == "forwarder";
        print_table(services[other].name, [&rounds[0], &rounds[other]], [peaks[0], peaks[other]], has_goals);
    }
    failed
}

fn print_head(bus: Bus, plan: Plan) {
    println!(
        "\n{}: {} connections{}, bodies of {} bytes, {} rounds of {} s each; medians\n",
        bus.name(),
        plan.connections,
        plan.rate.map_or_else(String::new, |rate| format!(" at {rate} requests/s")),
        load::body_bytes(),
        plan.rounds,
        plan.turn.as_secs()
    );
}

/// Prints the bridge's figures next to those of another service.
fn print_table(other: &str, [bridge, theirs]: [&[Figures]; 2], peaks: [f64; 2], has_goals: bool) {
    println!("{:<20}{:>10}{:>12}{:>9}{:>8}", "", "bridge", other, "ratio", "goal");
    let line = |name: &str, ours: f64, theirs: f64, ratio: f64, goal: Option<f64>| {
        let goal = goal.filter(|_| has_goals);
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
        let ratios = bridge.iter().zip(theirs).map(|(ours, theirs)| read(ours) / read(theirs)).collect();
        let of = |figures: &[Figures]| median(figures.iter().map(read).collect());
        line(name, of(bridge), of(theirs), median(ratios), goal);
    }
    let [ours, theirs] = peaks;
    line("peak memory MiB", ours, theirs, ours / theirs, Some(2.0));
    println!();
}

// --- the parts of a run -------------------------------------------------------------------------------------------

/// The program of this build.
const PROGRAM: &str = env!("CARGO_BIN_EXE_apsara-bridge");

fn start_bridge(name: &'static str, program: &Path, broker: &Broker, folder: &Path) -> Service {
    std::fs::create_dir_all(folder).expect("the folder for temporary files is writable");
    let bridge = Bridge::start_program(program, folder, bridge::publish(broker.output()));
    bridge.wait_direct();
    Service { name, address: bridge.input, process: bridge.process }
}

fn start_forwarder(bus: Bus, bus_address: &str, folder: &Path) -> Service {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let command = forwarder::command(bus, bus_address, "bench.forwarder", address);
    let process = Process::start("the forwarder", &command, &folder.join("forwarder.log"), None);
    process.wait_ready(START, || TcpStream::connect(address).ok());
    Service { name: "forwarder", address, process }
}
