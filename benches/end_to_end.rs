//! The whole service compared with the raw [`forwarder`]: the same load, the same broker, in turns.
//!
//! For each bus, a real broker and the services are started: the bridge's own binary, which checks signatures and has
//! one route to one topic, and the forwarder with the system's allocator and with that of the bridge. 64 connections load
//! the services in turns. Before that the broker is warmed up, because a Kafka JVM needs about 40 s of load before its
//! figures settle. The figures are medians over the rounds. The ratios are medians of the rounds' ratios to the forwarder
//! with the system's allocator.
//!
//! After these rounds there are rounds at 500 requests per second, at which a service batches little and needs more CPU
//! per event. A bridge without the window of ids is loaded in the same way, then by 512 connections, and then left alone:
//! its memory is measured after each. On Kafka, a bridge that publishes to 350 topics is compared with one that publishes
//! to one.
//!
//! [`goals`] has the goals. An answer other than 200 fails the run; a missed goal does not.
//!
//! Environment: BENCH_ROUNDS (5), BENCH_SECONDS of each turn (6), BENCH_WARMUP seconds for each bus (default: 40 for
//! Kafka, 15 for JetStream), BENCH_CONNECTIONS (64), BENCH_RATE (500), the requests per second in the slow rounds.
//! BENCH_BASELINE: another build of the program, which then takes its turns too. `cargo bench --bench end_to_end --
//! kafka` measures one bus.
//!
//! With `-- profile`, it prints instead where the CPU time of the services goes; see [`profile`]. With `-- watched`, it
//! compares bridges whose event stream is read by `tail`, and by `tail` and the page, with a bridge that nobody watches;
//! and that with BENCH_BASELINE.

// Benchmarks fail with a panic and print their figures; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

mod bridge;
mod broker;
mod forwarder;
mod goals;
mod load;
mod observe;
mod profile;
#[path = "../tests/support/mod.rs"]
mod support;

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bridge::{Bridge, Watcher};
use broker::{Broker, Bus};
use goals::{Bound, Goal, report, row};
use load::{Figures, Load, drive};
use observe::{cpu_time, median, memory, number, peak_memory, run_time, seconds};
use profile::Budget;
use support::config::Config;
use support::free_port;
use support::process::Process;
use support::wait::START;

/// Length of a turn in the warm-up. Turns are short, so both services warm up too.
const WARM_UP_TURN: Duration = Duration::from_secs(5);

/// The argument that asks for the profile.
const PROFILE: &str = "profile";

/// The argument that asks for the comparison of bridges that are watched.
const WATCHED: &str = "watched";

/// Connections of the burst, and how long it lasts.
const BURST: (usize, Duration) = (512, Duration::from_secs(5));

/// How long memory may take to come back after the burst.
const SETTLED: Duration = Duration::from_secs(10);

/// The number of topics that a bridge publishes to at once.
const TOPICS: u64 = 350;

/// Duration and load of the run.
#[derive(Clone, Copy, Debug)]
struct Plan {
    rounds: usize,
    turn: Duration,
    warm_up: Option<Duration>,
    connections: usize,
    rate: u32,
}

impl Plan {
    fn from_environment() -> Plan {
        Plan {
            rounds: number("BENCH_ROUNDS").unwrap_or(5).max(1),
            turn: seconds("BENCH_SECONDS").unwrap_or(Duration::from_secs(6)),
            warm_up: seconds("BENCH_WARMUP"),
            connections: number("BENCH_CONNECTIONS").unwrap_or(64).max(1),
            rate: number("BENCH_RATE").map_or(500, |rate| u32::try_from(rate.max(1)).expect("a rate within 32 bits")),
        }
    }

    fn warm_up(self, bus: Bus) -> Duration {
        self.warm_up.unwrap_or(Duration::from_secs(match bus {
            Bus::Kafka => 40,
            Bus::Jetstream => 15,
        }))
    }

    fn full(self) -> Load {
        Load::of(self.connections)
    }

    fn slow(self) -> Load {
        Load { rate: Some(self.rate), ..self.full() }
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
    let asks = |word: &str| arguments.iter().any(|argument| argument == word);
    let is_filter = |argument: &&String| !argument.starts_with('-') && ![PROFILE, WATCHED].contains(&argument.as_str());
    let filters: Vec<&String> = arguments.iter().filter(is_filter).collect();
    let is_wanted = |bus: &Bus| {
        let name = format!("end_to_end/{}", bus.name());
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let plan = Plan::from_environment();
    let mut failed = 0;
    for bus in Bus::ALL.into_iter().filter(is_wanted) {
        failed += match () {
            () if asks(PROFILE) => profile_all(bus, plan),
            () if asks(WATCHED) => compare_watched(bus, plan),
            () => measure(bus, plan),
        };
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

/// Runs a turn of load, and counts requests that failed.
struct Driver {
    runtime: tokio::runtime::Runtime,
    failed: usize,
}

impl Driver {
    fn turn(&mut self, service: &Service, load: Load, time: Duration) -> Figures {
        // The finer clock does not know threads that have ended. A turn with a few thousand events needs it.
        let clock = |id| if load.rate.is_some() { run_time(id) } else { cpu_time(id) };
        let before = clock(service.process.id());
        let tally = self.runtime.block_on(drive(service.address, load, time));
        let cpu = clock(service.process.id()) - before;
        if let Some(reason) = &tally.first_failure {
            eprintln!("{}: {} requests failed, the first with: {reason}", service.name, tally.failed);
            eprintln!("{}", service.process.log_tail());
        }
        self.failed += tally.failed;
        Figures::new(&tally, cpu)
    }

    /// Loads the services in turns until the figures have settled.
    fn warm_up(&mut self, services: &[Service], bus: Bus, plan: Plan) {
        let warm_up = plan.warm_up(bus);
        eprintln!("{}: warming up for {} s", bus.name(), warm_up.as_secs());
        let turns = warm_up.as_secs().div_ceil(WARM_UP_TURN.as_secs());
        for service in services.iter().cycle().take(turns as usize) {
            let figures = self.turn(service, plan.full(), WARM_UP_TURN);
            eprintln!("  {:<12}{:>8.0} requests/s", service.name, figures.requests_per_second);
        }
    }

    /// The figures of all services in alternating turns, a list for each service.
    fn rounds(&mut self, services: &[Service], load: Load, plan: Plan) -> Vec<Vec<Figures>> {
        let mut rounds = vec![Vec::new(); services.len()];
        for round in 0..plan.rounds {
            eprintln!("round {} of {}", round + 1, plan.rounds);
            // The order alternates, because the first service leaves work for the broker that affects the second.
            let mut order: Vec<usize> = (0..services.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for index in order {
                let figures = self.turn(&services[index], load, plan.turn);
                eprintln!("  {:<12}{figures}", services[index].name);
                rounds[index].push(figures);
            }
        }
        rounds
    }
}

/// Measures the services on a bus and prints the results. Returns how many requests failed.
fn measure(bus: Bus, plan: Plan) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("the folder for temporary files is writable");
    eprintln!("{}: starting the broker and the services", bus.name());
    let broker = Broker::start(bus, &runtime, &["bridge", "forwarder"]);
    let start = |name, program: &Path, config| start_bridge(name, program, &folder.path().join(name), config, &[]);
    let to_one = || bridge::publish(broker.output());
    // The order does not matter: the services that wait use no CPU.
    let mut services = vec![
        start("bridge", Path::new(PROGRAM), to_one()),
        start_forwarder(
            "forwarder",
            &std::env::current_exe().expect("a program knows its path"),
            &broker,
            folder.path(),
        ),
        start_forwarder("jemalloc", &forwarder_with_our_allocator(), &broker, folder.path()),
    ];
    if let Some(baseline) = std::env::var_os("BENCH_BASELINE") {
        services.push(start("baseline", Path::new(&baseline), to_one()));
    }
    let mut driver = Driver { runtime, failed: 0 };
    driver.warm_up(&services, bus, plan);
    let full = driver.rounds(&services, plan.full(), plan);
    let slow = driver.rounds(&services, plan.slow(), plan);
    println!(
        "\n{}: {} connections, bodies of {} bytes, {} rounds of {} s; medians\n",
        bus.name(),
        plan.connections,
        load::body_bytes(),
        plan.rounds,
        plan.turn.as_secs()
    );
    let peaks: Vec<f64> = services.iter().map(|service| peak_memory(&service.process)).collect();
    print_table(&services, &full, &peaks);
    println!("\nat {} requests/s\n", plan.rate);
    print_table(&services, &slow, &peaks);
    println!();
    let title = title(bus);
    let ratios = |rounds: &[Vec<Figures>], service: usize, read: Read| -> Vec<f64> {
        rounds[service].iter().zip(&rounds[1]).map(|(ours, floor)| read(ours) / read(floor)).collect()
    };
    report(&format!("{title}: CPU per event, ×"), &ratios(&full, 0, CPU));
    report(&format!("{title}: CPU per event of the forwarder with our allocator, ×"), &ratios(&full, 2, CPU));
    report(&format!("{title}: requests per second, ×"), &ratios(&full, 0, RATE));
    report(&format!("{title}: p99, ×"), &ratios(&full, 0, P99));
    report(&format!("{title}: CPU per event at 500 events/s, ×"), &ratios(&slow, 0, CPU));
    drop(services);

    let lean = start("lean", Path::new(PROGRAM), to_one().set(NO_IDS));
    driver.turn(&lean, plan.full(), plan.turn * 2);
    let peak = peak_memory(&lean.process);
    driver.turn(&lean, Load::of(BURST.0), BURST.1);
    report(&format!("{title}: peak memory without the window of ids, MiB"), &[peak]);
    report(&format!("{title}: memory after a burst, MiB"), &[settled_memory(&lean.process, peak)]);
    if let Broker::Kafka(kafka) = &broker {
        // Bodies of both widths of ids.
        let ids = TOPICS / 2;
        for id in 0..ids {
            for topic in [format!("bench.topic.{id:015}"), format!("bench.topic.{id:032}")] {
                driver.runtime.block_on(kafka.create_topic(&topic, 1, &[]));
            }
        }
        let to_many = broker.output().to("bus", "bench.topic.{subject}").set(NO_IDS);
        let many = start("topics", Path::new(PROGRAM), to_many);
        let pair = [many, lean];
        let few_ids = Load { ids: Some(ids), ..plan.full() };
        // A producer and its broker need about half a minute to learn so many topics.
        for _ in 0..6 {
            driver.turn(&pair[0], few_ids, WARM_UP_TURN);
        }
        let rounds = driver.rounds(&pair, few_ids, plan);
        let ratios: Vec<f64> = rounds[0].iter().zip(&rounds[1]).map(|(many, one)| CPU(many) / CPU(one)).collect();
        report("Kafka: CPU per event with 350 topics against 1", &ratios);
    }
    driver.failed
}

/// The name of a bus in the table of goals.
fn title(bus: Bus) -> &'static str {
    match bus {
        Bus::Kafka => "Kafka",
        Bus::Jetstream => "JetStream",
    }
}

/// Compares bridges that are watched with one that nobody watches. Returns how many requests failed.
fn compare_watched(bus: Bus, plan: Plan) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("the folder for temporary files is writable");
    let broker = Broker::start(bus, &runtime, &["bridge"]);
    let start = |name, program: &Path, watchers: &[Watcher]| {
        start_bridge(name, program, &folder.path().join(name), bridge::publish(broker.output()), watchers)
    };
    let own = Path::new(PROGRAM);
    let mut services = vec![
        start("nobody", own, &[]),
        start("tail", own, &[Watcher::Tail]),
        start("tail, page", own, &[Watcher::Tail, Watcher::Page]),
    ];
    if let Some(baseline) = std::env::var_os("BENCH_BASELINE") {
        services.push(start("baseline", Path::new(&baseline), &[]));
    }
    let mut driver = Driver { runtime, failed: 0 };
    driver.warm_up(&services, bus, plan);
    let full = driver.rounds(&services, plan.full(), plan);
    let ratios = |one: usize, other: usize| -> Vec<f64> {
        full[one].iter().zip(&full[other]).map(|(one, other)| CPU(one) / CPU(other)).collect()
    };
    let title = title(bus);
    report(&format!("{title}: CPU per event with one `tail` against nobody, ×"), &ratios(1, 0));
    report(&format!("{title}: CPU per event with one `tail` and the page against nobody, ×"), &ratios(2, 0));
    if services.len() > 3 {
        let goal = Goal { name: "CPU per event with nobody against the baseline, ×", bound: Bound::Any };
        print!("{}", row(&goal, &ratios(0, 3)));
    }
    driver.failed
}

/// Prints where the CPU time of the services goes. Returns how many requests failed.
fn profile_all(bus: Bus, plan: Plan) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("the folder for temporary files is writable");
    let broker = Broker::start(bus, &runtime, &["bridge", "forwarder"]);
    let own = std::env::current_exe().expect("a program knows its path");
    let start = |name, program: &Path| {
        start_bridge(name, program, &folder.path().join(name), bridge::publish(broker.output()), &[])
    };
    let mut services =
        vec![start("bridge", Path::new(PROGRAM)), start_forwarder("forwarder", &own, &broker, folder.path())];
    if let Some(baseline) = std::env::var_os("BENCH_BASELINE") {
        services.push(start("baseline", Path::new(&baseline)));
    }
    let mut driver = Driver { runtime, failed: 0 };
    for service in services.iter().cycle().take((plan.warm_up(bus).as_secs() / WARM_UP_TURN.as_secs()) as usize) {
        driver.turn(service, plan.full(), WARM_UP_TURN);
    }
    let mut budgets = Vec::new();
    for service in &services {
        // Recording takes time too, so the CPU time is that of turns without it.
        let cpus: Vec<f64> =
            (0..plan.rounds).map(|_| driver.turn(service, plan.full(), plan.turn).cpu_per_event).collect();
        let file = folder.path().join(service.name).with_extension("perf");
        let recording = profile::record(service.process.id(), plan.turn, &file);
        driver.turn(service, plan.full(), plan.turn + Duration::from_secs(1));
        recording.wait();
        budgets.push(Budget { name: service.name, shares: profile::shares(&file), cpu: median(cpus) });
    }
    println!("\n{}\n", bus.name());
    print!("{}", profile::table(&budgets));
    driver.failed
}

/// Waits until memory is back at its peak before a burst or does not fall any more, and returns it.
fn settled_memory(process: &Process, peak: f64) -> f64 {
    let start = Instant::now();
    while memory(process) > peak && start.elapsed() < SETTLED {
        // What is measured is the time itself.
        std::thread::sleep(Duration::from_millis(100));
    }
    memory(process)
}

/// Reads a figure.
type Read = fn(&Figures) -> f64;

const RATE: Read = |figures| figures.requests_per_second;
const CPU: Read = |figures| figures.cpu_per_event;
const P99: Read = |figures| figures.p99;

/// Prints the medians of all services.
fn print_table(services: &[Service], rounds: &[Vec<Figures>], peaks: &[f64]) {
    print!("{:<20}", "");
    services.iter().for_each(|service| print!("{:>12}", service.name));
    println!();
    for (name, read) in
        [("requests/s", RATE), ("CPU µs per event", CPU), ("p50 ms", |figures: &Figures| figures.p50), ("p99 ms", P99)]
    {
        print!("{name:<20}");
        rounds.iter().for_each(|rounds| print!("{:>12.2}", median(rounds.iter().map(read).collect())));
        println!();
    }
    print!("{:<20}", "peak memory MiB");
    peaks.iter().for_each(|peak| print!("{peak:>12.1}"));
    println!();
}

// --- the parts of a run -------------------------------------------------------------------------------------------

/// The program of this build.
const PROGRAM: &str = env!("CARGO_BIN_EXE_apsara-bridge");

/// No window of ids.
const NO_IDS: &str = "dedupe.window = '0s'";

fn start_bridge(name: &'static str, program: &Path, folder: &Path, config: Config, watchers: &[Watcher]) -> Service {
    std::fs::create_dir_all(folder).expect("the folder for temporary files is writable");
    let bridge = Bridge::start_program(program, folder, config);
    bridge.wait_direct();
    watchers.iter().for_each(|watcher| bridge.watch(*watcher));
    Service { name, address: bridge.input, process: bridge.process }
}

/// The newest build of the other forwarder. Cargo puts it next to this program, under a name that it chooses.
fn forwarder_with_our_allocator() -> PathBuf {
    let own = std::env::current_exe().expect("a program knows its path");
    let files = std::fs::read_dir(own.parent().expect("a folder")).expect("the folder can be read").flatten();
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("forwarder_with_our_allocator-") && path.extension().is_none()
    };
    let modified = |path: &PathBuf| path.metadata().and_then(|metadata| metadata.modified()).ok();
    files.map(|file| file.path()).filter(is_it).max_by_key(modified).expect("`cargo bench --no-run` builds it")
}

fn start_forwarder(name: &'static str, program: &Path, broker: &Broker, folder: &Path) -> Service {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let command = forwarder::command(program, broker.bus(), broker.address(), "bench.forwarder", address);
    let process = Process::start(name, &command, &folder.join(format!("{name}.log")), None);
    process.wait_ready(START, || TcpStream::connect(address).ok());
    Service { name, address, process }
}
