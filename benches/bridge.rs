//! The bridge's own program, as the benchmarks start it: it checks signatures, and has one route and a spool in a
//! folder.

#![allow(dead_code)] // each benchmark that includes this uses its own part of it

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::config::Config;
use crate::support::process::Process;
use crate::support::wait::START;
use crate::support::{free_port, wait_for};

/// Adds a route that publishes to the topic of [`crate::broker::Broker::start`].
pub(crate) fn publish(config: Config) -> Config {
    config.to("bus", "bench.bridge")
}

/// Adds a route with a topic for each media id. Each event has its own media id.
pub(crate) fn publish_by_id(config: Config) -> Config {
    config.to("bus", "bench.bridge.{mediaid}")
}

/// The database inside the folder that a bridge is started with.
pub(crate) const DATABASE: &str = "spool/spool.db";

/// How often a starting bridge is asked whether it is ready. This is the precision of measured start times.
const ASK_EVERY: Duration = Duration::from_millis(1);

/// Who reads the event stream of a bridge.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Watcher {
    /// `tail`: events only.
    Tail,
    /// The page: the state of the bridge too.
    Page,
}

/// A running bridge. Dropping it kills it.
pub(crate) struct Bridge {
    pub(crate) input: SocketAddr,
    pub(crate) process: Process,
    /// The time from its start until it was ready.
    pub(crate) took: Duration,
    admin: SocketAddr,
    database: PathBuf,
}

impl Bridge {
    /// Starts a bridge with a spool in a folder, and waits until it is ready.
    pub(crate) fn start(folder: &Path, config: Config) -> Bridge {
        Bridge::start_program(Path::new(env!("CARGO_BIN_EXE_apsara-bridge")), folder, config)
    }

    /// The same with the program of another build.
    pub(crate) fn start_program(program: &Path, folder: &Path, config: Config) -> Bridge {
        let [input, admin] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let file = folder.join("bridge.toml");
        let config = config.spool(folder.join("spool")).set("spool.max_bytes = '8GiB'\nlog.filter = 'warn'");
        config.listen(input, admin).write(&file);
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(&file);
        let start = Instant::now();
        let process = Process::start("the bridge", &command, &folder.join("bridge.log"), None);
        while get(admin, "/readyz").is_none() {
            let is_over = process.exit_code().is_some() || start.elapsed() > START;
            assert!(!is_over, "the bridge is not ready:\n{}", process.log_tail());
            // The shared waiting loop is not precise enough to measure the start, because its pauses grow.
            std::thread::sleep(ASK_EVERY);
        }
        Bridge { input, process, took: start.elapsed(), admin, database: folder.join(DATABASE) }
    }

    /// Waits until its output is connected and its spool is empty. From then on it publishes directly.
    pub(crate) fn wait_direct(&self) {
        wait_for("the bridge to publish directly", START, || {
            let metrics = self.metrics();
            (metrics.value("output_up{output=\"bus\"}") == 1.0 && metrics.value("spool_events") == 0.0).then_some(())
        });
    }

    /// Its current metrics.
    pub(crate) fn metrics(&self) -> Metrics {
        Metrics(get(self.admin, "/metrics").expect("a running bridge serves its metrics"))
    }

    /// Reads its event stream for as long as it runs.
    pub(crate) fn watch(&self, watcher: Watcher) {
        let query = match watcher {
            Watcher::Tail => "",
            Watcher::Page => "?state=true",
        };
        let mut stream = TcpStream::connect(self.admin).expect("a running bridge listens");
        write!(stream, "GET /events{query} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("a running bridge reads");
        std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
    }

    /// Stops it, and waits until it has ended.
    pub(crate) fn stop(self) {
        self.process.signal("TERM");
        let code = self.process.wait(START);
        assert_eq!(code, Some(0), "the bridge did not stop cleanly:\n{}", self.process.log_tail());
        // The write-ahead log has been merged into the database, so copying this file is enough.
        assert!(!self.database.with_extension("db-wal").exists(), "a stop closes the database");
    }
}

/// The text of the metrics.
pub(crate) struct Metrics(String);

impl Metrics {
    /// A value by its name with labels, without the prefix. 0 if there is none.
    pub(crate) fn value(&self, name: &str) -> f64 {
        let line = self.0.lines().find_map(|line| line.strip_prefix("apsara_bridge_")?.strip_prefix(name));
        line.and_then(|rest| rest.strip_prefix(' ')).map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// The number of callbacks with this outcome.
    pub(crate) fn outcomes(&self, outcome: &str) -> f64 {
        self.value(&format!("callbacks_total{{input=\"http\",outcome=\"{outcome}\"}}"))
    }
}

/// The answer of the admin listener, if it is 200.
fn get(admin: SocketAddr, path: &str) -> Option<String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(admin)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().ok().filter(|answer| answer.starts_with("HTTP/1.1 200"))
}
