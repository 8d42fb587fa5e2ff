//! The queue as an input, compared with HTTP and with another build: the same callbacks to the same warm Kafka, in turns.
//!
//! - `throughput`: messages per second from a full queue to Kafka with acknowledgements, until the last message is
//!   deleted, and the bridge's CPU time for each; compared with 64 connections that post by HTTP, and with the program
//!   that BENCH_BASELINE names, if it is set. The queue's server runs on its own thread in this process. Its CPU time is
//!   measured separately, because it shares the two cores with the bridge and the broker.
//! - `idle`: the bridge's CPU time while it polls an empty queue, and that of a bridge without that input.
//!
//! Figures are medians over the rounds, ratios are medians of the rounds' ratios. [`goals`] has the goals.
//!
//! Environment: BENCH_ROUNDS (5), BENCH_SECONDS of a turn by HTTP (6), BENCH_WARMUP seconds for Kafka (40),
//! BENCH_CONNECTIONS (64), BENCH_MESSAGES in a turn of the queue (100000), BENCH_IDLE seconds (10).

// Benchmarks fail with a panic and print their figures; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

mod bridge;
mod broker;
mod goals;
mod load;
mod observe;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use bridge::{Bridge, publish};
use broker::{Broker, Bus};
use goals::report;
use load::{Figures, Load, drive};
use observe::{cpu_time, median, number, run_time, seconds, thread_times};
use support::config::Config;
use support::mns::queue::QueueAttributes;
use support::mns::{Mns, MnsOptions};

const QUEUE: &str = "ice-callback-bench";

/// How long a queue may take to become empty.
const EMPTIED: Duration = Duration::from_secs(300);

/// Events per second and CPU µs per event of one turn.
type Turn = (f64, f64);

/// How long a bridge settles before its idle time is measured.
const SETTLE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("queue measures under `cargo bench` only");
        return ExitCode::SUCCESS;
    }
    let runtime = Runtime::new().expect("a runtime");
    throughput(&runtime);
    idle(&runtime);
    ExitCode::SUCCESS
}

/// CPU time of the server's thread so far.
fn server_time() -> Duration {
    thread_times(std::process::id()).remove("mns").expect("the server's thread runs")
}

/// What a bridge makes of a full queue; and the CPU µs that the queue's server takes for a message.
fn empty(mns: &Mns, queue: &str, bridge: &Bridge, messages: usize) -> (Turn, f64) {
    let bodies: Vec<String> = (0..messages).map(|_| load::body()).collect();
    let (start, before, server_before) = (Instant::now(), cpu_time(bridge.process.id()), server_time());
    mns.put_all(queue, bodies);
    support::wait_for("the queue to be empty", EMPTIED, || {
        let counts = mns.counts(queue);
        (counts.active + counts.inactive == 0).then_some(())
    });
    let cpu = cpu_time(bridge.process.id()) - before;
    let turn = (messages as f64 / start.elapsed().as_secs_f64(), per(cpu, messages));
    (turn, per(server_time() - server_before, messages))
}

fn throughput(runtime: &Runtime) {
    let rounds = number("BENCH_ROUNDS").unwrap_or(5).max(1);
    let turn = seconds("BENCH_SECONDS").unwrap_or(Duration::from_secs(6));
    let warm_up = seconds("BENCH_WARMUP").unwrap_or(Duration::from_secs(40));
    let load = Load::of(number("BENCH_CONNECTIONS").unwrap_or(64).max(1));
    let messages = number("BENCH_MESSAGES").unwrap_or(100_000).max(1);
    let kafka = Broker::start(Bus::Kafka, runtime, &["bridge"]);
    let mns = Mns::start(MnsOptions::default());
    let folder = tempfile::tempdir().expect("a folder");
    let start = |program: &Path, name: &str| {
        let queue = format!("{QUEUE}-{name}");
        mns.create_queue(&queue, QueueAttributes { visibility_timeout: EMPTIED, ..QueueAttributes::default() });
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).expect("the folder for temporary files is writable");
        let bridge = Bridge::start_program(program, &folder, publish(kafka.output()).mns(&mns, &queue));
        bridge.wait_direct();
        (queue, bridge)
    };
    let (queue, bridge) = start(Path::new(env!("CARGO_BIN_EXE_apsara-bridge")), "own");
    let baseline = std::env::var_os("BENCH_BASELINE").map(|program| start(Path::new(&program), "baseline"));
    runtime.block_on(drive(bridge.input, load, warm_up));
    if let Some((queue, bridge)) = &baseline {
        empty(&mns, queue, bridge, messages);
    }
    let (mut http, mut own, mut before, mut server) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut failed = 0;
    for round in 0..rounds {
        eprintln!("throughput: round {} of {rounds}", round + 1);
        // The order alternates, because the first leaves work for the broker that affects the next.
        for kind in if round % 2 == 0 { [0, 1, 2] } else { [2, 1, 0] } {
            match (kind, &baseline) {
                (0, _) => {
                    let (figures, of_server) = empty(&mns, &queue, &bridge, messages);
                    own.push(figures);
                    server.push(of_server);
                }
                (1, Some((queue, bridge))) => before.push(empty(&mns, queue, bridge, messages).0),
                (1, None) => {}
                _ => {
                    let cpu_before = cpu_time(bridge.process.id());
                    let tally = runtime.block_on(drive(bridge.input, load, turn));
                    failed += tally.failed;
                    let figures = Figures::new(&tally, cpu_time(bridge.process.id()) - cpu_before);
                    http.push((figures.requests_per_second, figures.cpu_per_event));
                }
            }
        }
    }
    let late = bridge.metrics().value("mns_late_deletes_total");
    bridge.stop();
    println!(
        "\nthroughput: {messages} messages of {} bytes, {} connections by HTTP, {rounds} rounds",
        load::body_bytes(),
        load.connections
    );
    for (name, turns) in [("queue", &own), ("queue, baseline", &before), ("HTTP", &http)] {
        if !turns.is_empty() {
            let rate = median(turns.iter().map(|turn| turn.0).collect());
            let cpu = median(turns.iter().map(|turn| turn.1).collect());
            println!("{name:<34}{rate:>12.0} per second{cpu:>12.1} µs of CPU");
        }
    }
    println!("{:<34}{:>12.1} µs of CPU", "the queue's server", median(server));
    println!("{:<34}{late:>12.0}", "deleted too late");
    let ratios = |other: &[Turn]| own.iter().zip(other).map(|(own, other)| own.1 / other.1).collect::<Vec<_>>();
    if baseline.is_some() {
        report("MNS: CPU per message against version 8023ad4", &ratios(&before));
    }
    report("MNS: CPU per message against HTTP", &ratios(&http));
    assert_eq!(failed, 0, "a request by HTTP was not answered with 200, so the figures mean nothing");
}

fn idle(runtime: &Runtime) {
    let time = seconds("BENCH_IDLE").unwrap_or(Duration::from_secs(10));
    let kafka = Broker::start(Bus::Kafka, runtime, &["bridge"]);
    let mns = Mns::start(MnsOptions::default());
    mns.create_queue(QUEUE, QueueAttributes::default());
    // % of a core, three times.
    let shares = |config: Config| {
        let folder = tempfile::tempdir().expect("a folder");
        let bridge = Bridge::start(folder.path(), config);
        bridge.wait_direct();
        // The time itself is measured, so there is no event to wait for.
        std::thread::sleep(SETTLE);
        let share = |_| {
            let (start, before) = (Instant::now(), run_time(bridge.process.id()));
            std::thread::sleep(time);
            (run_time(bridge.process.id()) - before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0
        };
        let shares: Vec<f64> = (0..3).map(share).collect();
        bridge.stop();
        shares
    };
    let (without, with) = (shares(publish(kafka.output())), shares(publish(kafka.output()).mns(&mns, QUEUE)));
    println!("\nidle, with an empty queue and two receivers: {:.3}% of a core", median(with));
    report("idle with a Kafka output, % of a core", &without);
}

fn per(time: Duration, events: usize) -> f64 {
    time.as_secs_f64() * 1e6 / events as f64
}
