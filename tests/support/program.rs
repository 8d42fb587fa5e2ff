//! The bridge's own program as a child process, with its files in a folder that the caller keeps or removes.
//!
//! Promises: started means that the admin listener accepts connections; a start after a kill
//! has the same ports, configuration and spool. Nothing removes the folder when this process is killed: it is evidence.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::disk::Disk;
use super::process::Process;
use super::wait::{ANSWER, START};
use super::{eventually, free_port};

/// The bridge.
#[derive(Debug)]
pub struct Program {
    /// Address of the HTTP input, should the configuration have one.
    pub input: SocketAddr,
    admin: SocketAddr,
    folder: PathBuf,
    disk: Option<Arc<Disk>>,
    process: Mutex<Process>,
}

impl Program {
    /// Starts it with the configuration that `configuration` makes for the addresses of its input and its admin listener.
    /// With a disk, it runs where that disk can be seen. Blocks the thread.
    pub fn start(
        folder: &Path,
        disk: Option<Arc<Disk>>,
        configuration: impl FnOnce(SocketAddr, SocketAddr) -> String,
    ) -> Program {
        let [input, admin] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        std::fs::create_dir_all(folder).expect("the temporary folder is writable");
        write_configuration(folder, &configuration(input, admin));
        let process = Mutex::new(run(folder, disk.as_deref(), admin));
        Program { input, admin, folder: folder.to_owned(), disk, process }
    }

    /// Starts it again, after it has ended. Blocks the thread.
    pub fn start_again(&self) {
        let process = run(&self.folder, self.disk.as_deref(), self.admin);
        *self.process() = process;
    }

    /// Its process: the latest one.
    pub fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The folder of its configuration and its log.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Changes the configuration file and sends SIGHUP.
    pub fn reload(&self, change: impl FnOnce(String) -> String) {
        let text = std::fs::read_to_string(self.folder.join(CONFIGURATION)).expect("written at the start");
        write_configuration(&self.folder, &change(text));
        self.process().signal("HUP");
    }

    /// What the admin listener answers, head and body.
    ///
    /// # Errors
    /// When it cannot be reached, or does not answer in time.
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

    /// Its metrics now.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn metrics(&self) -> std::io::Result<Metrics> {
        self.ask("/metrics").await.map(Metrics)
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&self) {
        eventually("the bridge to be connected to all outputs", START, async || {
            let answer = self.ask("/readyz").await.ok()?;
            answer.starts_with("HTTP/1.1 200").then_some(())
        })
        .await;
    }
}

/// What the admin listener says on `/metrics`.
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

    /// The sum of those.
    pub fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        self.values(name, labels).iter().sum::<f64>() as u64
    }
}

const CONFIGURATION: &str = "bridge.toml";

fn write_configuration(folder: &Path, text: &str) {
    std::fs::write(folder.join(CONFIGURATION), text).expect("the temporary folder is writable");
}

fn run(folder: &Path, disk: Option<&Disk>, admin: SocketAddr) -> Process {
    let program = env!("CARGO_BIN_EXE_apsara-bridge");
    let mut command = disk.map_or_else(|| Command::new(program), |disk| disk.command(program));
    command.arg("serve").arg("--config").arg(folder.join(CONFIGURATION));
    let process = Process::start("the bridge", &command, &folder.join("bridge.log"), None);
    process.wait_ready(START, || TcpStream::connect(admin).ok());
    process
}
