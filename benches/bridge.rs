//! The bridge's own program as the benchmarks start it: signatures checked, one route, its spool in a folder.

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

/// Adds one that publishes to a topic for each media id, of which each event has its own.
pub(crate) fn publish_by_id(config: Config) -> Config {
    config.to("bus", "bench.bridge.{mediaid}")
}

/// The database inside the folder that a bridge is started with.
pub(crate) const DATABASE: &str = "spool/spool.db";

/// How often a bridge that starts is asked whether it is ready: a start is timed by that.
const ASK_EVERY: Duration = Duration::from_millis(1);

/// A bridge that runs; dropped, it is killed.
pub(crate) struct Bridge {
    pub(crate) input: SocketAddr,
    pub(crate) process: Process,
    /// From its start until it was ready.
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
            assert!(!is_over, "the bridge isn't ready:\n{}", process.log_tail());
            // Not the shared loop: the time of the start is measured, and its pauses grow.
            std::thread::sleep(ASK_EVERY);
        }
        Bridge { input, process, took: start.elapsed(), admin, database: folder.join(DATABASE) }
    }

    /// Waits until its output is connected and its spool empty: from then on it publishes directly.
    pub(crate) fn wait_direct(&self) {
        wait_for("the bridge to publish directly", START, || {
            let metrics = self.metrics();
            (metrics.value("output_up{output=\"bus\"}") == 1.0 && metrics.value("spool_events") == 0.0).then_some(())
        });
    }

    /// Its metrics as they are now.
    pub(crate) fn metrics(&self) -> Metrics {
        Metrics(get(self.admin, "/metrics").expect("a bridge that runs tells its metrics"))
    }

    /// Stops it, and waits until it has ended.
    pub(crate) fn stop(self) {
        self.process.signal("TERM");
        let code = self.process.wait(START);
        assert_eq!(code, Some(0), "the bridge didn't stop well:\n{}", self.process.log_tail());
        // What was in the log next to the database is in it now, so that the file alone can be copied.
        assert!(!self.database.with_extension("db-wal").exists(), "a stop closes the database");
    }
}

/// The text of the metrics.
pub(crate) struct Metrics(String);

impl Metrics {
    /// A value by its name, which stands without the prefix and with the labels; 0 where there is none.
    pub(crate) fn value(&self, name: &str) -> f64 {
        let line = self.0.lines().find_map(|line| line.strip_prefix("apsara_bridge_")?.strip_prefix(name));
        line.and_then(|rest| rest.strip_prefix(' ')).map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Callbacks that ended so.
    pub(crate) fn outcomes(&self, outcome: &str) -> f64 {
        self.value(&format!("callbacks_total{{input=\"http\",outcome=\"{outcome}\"}}"))
    }
}

/// What the admin listener answers, if that is 200.
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
