//! What the integration tests and the benchmarks use: real brokers, independent readers, child processes.
//!
//! Promises:
//! - Nothing is skipped. A missing tool causes a panic with the command that installs it (`tests/support/setup PART`).
//!   A test that the machine does not allow is reported ([`not_run`]).
//! - No child process outlives the test process, however that ends: see [`process`].
//! - No test sleeps if it can wait for an event: see [`wait`].
//! - Nothing is shared unless the name says so (`Kafka::shared`, `Nats::shared`, the judges). A test that stops, kills
//!   or restarts a broker starts its own.
//!
//! Tests and benchmarks include it with `#[path = "../support/mod.rs"] mod support;`, so it needs no crate.
//!
//! # Layout
//!
//! - [`process`]: child processes that end with the test process
//! - [`kafka`] and [`nats`]: the brokers, alone or as clusters of three; [`toxiproxy`]: a bad network
//! - [`mns`]: a server that simulates Alibaba's queue; [`http_receiver`]: a server that events are posted to
//! - [`kubernetes`]: an API server with its clients; [`node`]: with a node, on which pods run
//! - [`disk`]: a disk that can be filled; [`certificates`]: TLS material
//! - [`config`]: configurations of the bridge; [`bridge`] and [`program`]: the bridge, in this or in its own process
//! - [`sender`]: a load like Alibaba's; [`read`]: reads what is on the buses
//! - [`judges`]: the CloudEvents SDKs of other languages
//! - [`leaves`]: whether an event says everything that its callback says
//! - [`generated`]: files that are generated from the code
//! - [`wait`]: waiting, and the limits for it
//! - here: ports and tools

#![allow(dead_code)] // each binary that includes this uses its own part of it

pub mod bridge;
pub mod certificates;
pub mod config;
pub mod disk;
pub mod generated;
pub mod http_receiver;
pub mod judges;
pub mod kafka;
pub mod kubernetes;
pub mod leaves;
pub mod memory_limit;
pub mod mns;
pub mod nats;
pub mod node;
pub mod process;
pub mod program;
pub mod read;
pub mod sender;
pub mod toxiproxy;
pub mod wait;

use std::collections::HashSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

pub use wait::{eventually, wait_for};

/// A TCP port on 127.0.0.1 that nothing listens on. Each one is returned once in this process.
///
/// It is below the range that the kernel uses for outgoing connections. A port in that range could be assigned to any
/// client while its broker is down, and the broker could not use it again. A client that keeps connecting to the port
/// could even be assigned this port and be connected to itself.
pub fn free_port() -> u16 {
    static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    const LOWEST: u16 = 10_000;
    let end = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|&end| end > LOWEST + 1_000)
        .unwrap_or(32_768);
    let mut taken = TAKEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let taken = taken.get_or_insert_default();
    // Test processes that run in parallel start at different ports, so they rarely compete for one.
    let span = u32::from(end - LOWEST);
    let start = std::process::id().wrapping_mul(7_919) % span;
    (0..span)
        .map(|step| LOWEST + u16::try_from((start + step) % span).expect("below the span of a u16"))
        .find(|port| !taken.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok() && taken.insert(*port))
        .expect("no free TCP port below the ephemeral range: see `ss -ltn` for who listens on all of them")
}

/// Reports that a test cannot run because the machine does not allow something. `.ci/run` prints this at its end.
pub fn not_run(what: &str) {
    use std::io::Write;
    eprintln!("NOT RUN: {what}");
    let Some(file) = std::env::var_os("NOT_RUN_FILE") else { return };
    let file = std::fs::File::options().create(true).append(true).open(file);
    file.and_then(|mut file| writeln!(file, "{what}")).expect("NOT_RUN_FILE can be written");
}

/// A file or folder of this repository.
pub fn repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The text of a file of this repository.
pub fn repository_text(name: &str) -> String {
    std::fs::read_to_string(repository(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The bodies of Alibaba's sample callbacks, and one with characters that need care in headers and JSON.
pub fn samples() -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(repository("src/dialect/samples")).expect("the samples");
    let samples = files.map(|file| std::fs::read(file.expect("a file").path()).expect("readable"));
    let odd = r#"{"EventType":"Ünïcode 100%","EventTime":"2026-01-01T00:00:00Z","VideoId":"Euro € 😀 \"x\"\n"}"#;
    samples.chain([odd.into()]).collect()
}

/// Where `tests/support/setup` installs tools.
pub fn tools() -> PathBuf {
    repository(".tools")
}

/// The program `name`, from `.tools/bin` or otherwise from PATH.
///
/// # Panics
/// It is in neither. The message names the `part` of `tests/support/setup` that installs it.
pub fn tool(name: &str, part: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(tools().join("bin"))
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: run `tests/support/setup {part}`"))
}

/// The folder or file `name` below `.tools`.
///
/// # Panics
/// It does not exist. The message names the `part` of `tests/support/setup` that installs it.
pub fn installed(name: &str, part: &str) -> PathBuf {
    let path = tools().join(name);
    assert!(path.exists(), "{} is missing: run `tests/support/setup {part}`", path.display());
    path
}

/// Runs blocking code on a thread for such code. A panic in it becomes a panic of the caller.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Runs async code on its own thread, and returns its result, or an error when it panics. The compiler cannot
/// prove that futures with async closures may move between threads, so they cannot be spawned as tasks.
pub fn on_thread<T, F>(work: impl FnOnce() -> F + Send + 'static) -> tokio::task::JoinHandle<T>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || runtime.block_on(work()))
}
