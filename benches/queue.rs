//! The queue as an input, compared with HTTP: the same callbacks to the same warm Kafka, in turns.
//!
//! - `throughput`: messages per second from a full queue to Kafka with acknowledgements, until the last message is
//!   deleted, and the bridge's CPU time for each; compared with 64 connections that post by HTTP. The queue's server
//!   runs on its own thread in this process. Its CPU time is measured separately, because it shares the two cores with
//!   the bridge and the broker.
//! - `idle`: the bridge's CPU time while it polls an empty queue, compared with a bridge without that input.
//!
//! Figures are medians over the rounds, ratios are medians of the rounds' ratios. A missed goal is marked.
//!
//! Environment: BENCH_ROUNDS (5), BENCH_SECONDS of a turn by HTTP (8), BENCH_WARMUP seconds for Kafka (40),
//! BENCH_CONNECTIONS (64), BENCH_MESSAGES in a turn of the queue (100000), BENCH_IDLE seconds (30).

// Benchmarks fail with a panic and print their figures; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

mod bridge;
mod broker;
mod load;
mod observe;
#[path = "../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use bridge::{Bridge, publish};
use broker::{Broker, Bus};
use load::{Figures, drive};
use observe::{cpu_time, median, number, run_time, seconds, thread_times};
use support::config::Config;
use support::mns::queue::QueueAttributes;
use support::mns::{Mns, MnsOptions};

const QUEUE: &str = "ice-callback-bench";

/// How long a queue may take to become empty.
const EMPTIED: Duration = Duration::from_secs(300);

/// Events per second and CPU µs per event of one turn; and a function that selects one of them.
type Turn = (f64, f64);
type Column = fn(&Turn) -> f64;

/// How long a bridge settles before its idle time is measured.
const SETTLE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("queue measures under `cargo bench` only");
        return ExitCode::SUCCESS;
    }
    let runtime = Runtime::new().expect("a runtime");
    let mut missed = throughput(&runtime);
    missed += idle(&runtime);
    println!("\ngoals missed: {missed}");
    ExitCode::SUCCESS
}

/// CPU time of the server's thread so far.
fn server_time() -> Duration {
    thread_times(std::process::id()).remove("mns").expect("the server's thread runs")
}

fn throughput(runtime: &Runtime) -> usize {
    let rounds = number("BENCH_ROUNDS").unwrap_or(5).max(1);
    let turn = seconds("BENCH_SECONDS").unwrap_or(Duration::from_secs(8));
    let warm_up = seconds("BENCH_WARMUP").unwrap_or(Duration::from_secs(40));
    let connections = number("BENCH_CONNECTIONS").unwrap_or(64).max(1);
    let messages = number("BENCH_MESSAGES").unwrap_or(100_000).max(1);
    let kafka = Broker::start(Bus::Kafka, runtime, &["bridge"]);
    let mns = Mns::start(MnsOptions::default());
    mns.create_queue(QUEUE, QueueAttributes { visibility_timeout: EMPTIED, ..QueueAttributes::default() });
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = Bridge::start(folder.path(), publish(kafka.output()).mns(&mns, QUEUE));
    bridge.wait_direct();
    runtime.block_on(drive(bridge.input, connections, warm_up, None));
    let (mut http, mut queue, mut server) = (Vec::new(), Vec::new(), Vec::new());
    let mut failed = 0;
    for round in 0..rounds {
        eprintln!("throughput: round {} of {rounds}", round + 1);
        // The order alternates, because the first leaves work for the broker that affects the second.
        for is_queue in if round % 2 == 0 { [true, false] } else { [false, true] } {
            let before = cpu_time(bridge.process.id());
            if is_queue {
                let bodies: Vec<String> = (0..messages).map(|_| load::body()).collect();
                let (start, server_before) = (Instant::now(), server_time());
                mns.put_all(QUEUE, bodies);
                support::wait_for("the queue to be empty", EMPTIED, || {
                    let counts = mns.counts(QUEUE);
                    (counts.active + counts.inactive == 0).then_some(())
                });
                let cpu = cpu_time(bridge.process.id()) - before;
                queue.push((messages as f64 / start.elapsed().as_secs_f64(), per(cpu, messages)));
                server.push(per(server_time() - server_before, messages));
            } else {
                let tally = runtime.block_on(drive(bridge.input, connections, turn, None));
                failed += tally.failed;
                let figures = Figures::new(&tally, cpu_time(bridge.process.id()) - before);
                http.push((figures.requests_per_second, figures.cpu_per_event));
            }
        }
    }
    let late = bridge.metrics().value("mns_late_deletes_total");
    bridge.stop();
    let ratios =
        |column: Column| median(queue.iter().zip(&http).map(|(queue, http)| column(queue) / column(http)).collect());
    let column = |rows: &[Turn], column: Column| median(rows.iter().map(column).collect());
    let (rate, cpu): (Column, Column) = (|row| row.0, |row| row.1);
    println!(
        "\nthroughput: {messages} messages of {} bytes, {connections} connections by HTTP, {rounds} rounds",
        load::body_bytes()
    );
    println!("{:<34}{:>12}{:>12}{:>12}", "", "queue", "HTTP", "ratio");
    let per_second = column(&queue, rate);
    let ratio = ratios(cpu);
    println!(
        "{:<34}{per_second:>12.0}{:>12.0}{:>12.2}{}",
        "per second",
        column(&http, rate),
        ratios(rate),
        goal(per_second >= 10_000.0, "at least 10000")
    );
    println!(
        "{:<34}{:>12.1}{:>12.1}{ratio:>12.2}{}",
        "CPU µs of the bridge",
        column(&queue, cpu),
        column(&http, cpu),
        goal(ratio <= 1.3, "at most 1.3")
    );
    println!("{:<34}{:>12.1}", "CPU µs of the queue's server", median(server));
    println!("{:<34}{late:>12.0}", "deleted too late");
    assert_eq!(failed, 0, "a request by HTTP was not answered with 200, so the figures mean nothing");
    usize::from(per_second < 10_000.0) + usize::from(ratio > 1.3)
}

fn idle(runtime: &Runtime) -> usize {
    let time = seconds("BENCH_IDLE").unwrap_or(Duration::from_secs(30));
    let kafka = Broker::start(Bus::Kafka, runtime, &["bridge"]);
    let mns = Mns::start(MnsOptions::default());
    mns.create_queue(QUEUE, QueueAttributes::default());
    let share = |config: Config| {
        let folder = tempfile::tempdir().expect("a folder");
        let bridge = Bridge::start(folder.path(), config);
        bridge.wait_direct();
        // The time itself is measured, so there is no event to wait for.
        std::thread::sleep(SETTLE);
        let (start, before) = (Instant::now(), run_time(bridge.process.id()));
        std::thread::sleep(time);
        let share = (run_time(bridge.process.id()) - before).as_secs_f64() / start.elapsed().as_secs_f64();
        bridge.stop();
        share * 100.0
    };
    let (without, with) = (share(publish(kafka.output())), share(publish(kafka.output()).mns(&mns, QUEUE)));
    let polling = (with - without).max(0.0);
    println!("\nidle: {} s, an empty queue, two receivers", time.as_secs());
    println!("{:<34}{with:>12.3}", "% of a core, with the queue");
    println!("{:<34}{without:>12.3}", "% of a core, without");
    println!("{:<34}{polling:>12.3}{}", "% of a core for the queue", goal(polling < 0.1, "below 0.1"));
    usize::from(polling >= 0.1)
}

fn per(time: Duration, events: usize) -> f64 {
    time.as_secs_f64() * 1e6 / events as f64
}

fn goal(is_met: bool, words: &str) -> String {
    format!("   goal: {words}{}", if is_met { "" } else { "  MISSED" })
}
