//! The bridge's own program: run to its end, or as a child process that serves, with its files in a folder that the
//! caller keeps or removes.
//!
//! Promises: started means that the admin listener and the HTTP input accept connections. A start after a kill uses the
//! same ports, configuration and spool. When this process is killed, the folder stays, because it is evidence.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::bridge::{Answer, Client, metric, signed_headers};
use super::config::Config;
use super::disk::Disk;
use super::free_port;
use super::process::Process;
use super::wait::{ANSWER, SOON, START, eventually, try_eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_apsara-bridge");

/// The program with its arguments.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments);
    command
}

/// Runs a command to its end. Returns exit code, standard output and standard error. Blocks the thread.
pub fn run(mut command: Command) -> (i32, String, String) {
    ended(command.output().expect("the program runs"))
}

/// Exit code, standard output and standard error of a program that has ended.
pub fn ended(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("no signal"), text(output.stdout), text(output.stderr))
}

/// A bridge that serves.
#[derive(Debug)]
pub struct Program {
    /// Address of the HTTP input, if the configuration has one.
    pub input: SocketAddr,
    /// Address of the admin listener.
    pub admin: SocketAddr,
    folder: PathBuf,
    command: Command,
    process: Mutex<Process>,
}

impl Program {
    /// Starts it. Blocks the thread.
    pub fn start(folder: &Path, config: Config) -> Program {
        Program::start_on(None, folder, config)
    }

    /// Starts it with access to a disk. Blocks the thread.
    pub fn start_on(disk: Option<&Disk>, folder: &Path, config: Config) -> Program {
        let program = Program::launch(disk, folder, config, |_| {});
        program.wait_listening();
        program
    }

    /// Starts it with a changed command, and does not wait, because it may end by itself.
    pub fn launch(disk: Option<&Disk>, folder: &Path, config: Config, change: impl FnOnce(&mut Command)) -> Program {
        let [input, admin] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        std::fs::create_dir_all(folder).expect("the temporary folder is writable");
        let file = folder.join(CONFIGURATION);
        config.listen(input, admin).write(&file);
        let mut command = disk.map_or_else(|| Command::new(PROGRAM), |disk| disk.command(PROGRAM));
        command.arg("serve").arg("--config").arg(file);
        change(&mut command);
        let process = Mutex::new(run_in(folder, &command));
        Program { input, admin, folder: folder.to_owned(), command, process }
    }

    /// Starts it again, after it has ended. Blocks the thread.
    pub fn start_again(&self) {
        *self.process() = run_in(&self.folder, &self.command);
        self.wait_listening();
    }

    /// Waits until it listens. Blocks the thread.
    pub fn wait_listening(&self) {
        self.process().wait_ready(START, || TcpStream::connect(self.admin).ok());
    }

    /// Its latest process.
    pub fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Its configuration file.
    pub fn configuration_file(&self) -> PathBuf {
        self.folder.join(CONFIGURATION)
    }

    /// The contents of its configuration file.
    pub fn configuration(&self) -> Config {
        let text = std::fs::read_to_string(self.configuration_file()).expect("written at the start");
        text.parse().expect("it was written as TOML")
    }

    /// Writes another configuration, valid or not, and sends SIGHUP.
    pub fn reload(&self, text: &str) {
        std::fs::write(self.configuration_file(), text).expect("the temporary folder is writable");
        self.process().signal("HUP");
    }

    /// Posts a body with a valid signature of VOD's.
    pub async fn post(&self, body: String) -> Answer {
        Client::connect(self.input).await.post("/callbacks", body, &signed_headers("VOD")).await
    }

    /// The head and the body of an answer of the admin listener.
    ///
    /// # Errors
    /// It cannot be reached, or does not answer in time.
    pub async fn ask(&self, path: &str) -> std::io::Result<String> {
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect(self.admin).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        timeout(ANSWER, exchange).await?
    }

    /// Its current metrics.
    ///
    /// # Errors
    /// Like [`ask`](Self::ask).
    pub async fn metrics(&self) -> std::io::Result<Metrics> {
        self.ask("/metrics").await.map(Metrics)
    }

    /// The value of one metric; 0 if it does not exist.
    ///
    /// # Panics
    /// The admin listener does not answer.
    pub async fn metric(&self, name_and_labels: &str) -> f64 {
        metric(&self.ask("/metrics").await.expect("the admin listener answers"), name_and_labels)
    }

    /// Whether it reports that it is ready.
    pub async fn is_ready(&self) -> bool {
        self.ask("/readyz").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// Waits until it reports that it is ready.
    pub async fn ready(&self) {
        eventually("the bridge to be ready", START, async || self.is_ready().await.then_some(())).await;
    }

    /// Waits until its spool is empty.
    ///
    /// # Panics
    /// It takes too long. The message contains the end of the log.
    pub async fn drained(&self) {
        let look = async || (self.metric("apsara_bridge_spool_events").await == 0.0).then_some(());
        let is_empty = try_eventually(SOON, look).await.is_some();
        assert!(is_empty, "the spool is not empty:\n{}", self.process().log_tail());
    }

    /// Stops it with SIGTERM. Blocks the thread.
    ///
    /// # Panics
    /// It does not end with exit code 0. The message contains the end of the log.
    pub fn stop(&self) {
        let process = self.process();
        process.signal("TERM");
        assert_eq!(process.wait(SOON), Some(0), "{}", process.log_tail());
    }
}

/// The answer of the admin listener on `/metrics`.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// The values of a metric whose labels contain all of these, each written `name="value"`. `name` is without the
    /// prefix of all metrics.
    pub fn values(&self, name: &str, labels: &[&str]) -> Vec<f64> {
        let samples = self.0.lines().filter_map(|line| line.strip_prefix("apsara_bridge_")?.strip_prefix(name));
        let of_metric = samples.filter(|rest| rest.starts_with([' ', '{']));
        let of_labels = of_metric.filter(|rest| labels.iter().all(|label| rest.contains(label)));
        of_labels.filter_map(|rest| rest.rsplit(' ').next()?.parse().ok()).collect()
    }

    /// Whether a text occurs anywhere.
    pub fn contains(&self, text: &str) -> bool {
        self.0.contains(text)
    }

    /// The sum of these values.
    pub fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        self.values(name, labels).iter().sum::<f64>() as u64
    }
}

const CONFIGURATION: &str = "bridge.toml";

fn run_in(folder: &Path, command: &Command) -> Process {
    Process::start("the bridge", command, &folder.join("bridge.log"), None)
}
