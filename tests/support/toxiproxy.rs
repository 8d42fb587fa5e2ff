//! Toxiproxy: a real proxy between the program and a broker, which delays, slows down, resets or stalls connections.
//!
//! Promises: started means that its API answers. A toxic applies to open and to new connections; [`Toxiproxy::clear`]
//! removes all toxics. The proxies listen on ports that the caller chooses, because a broker must advertise them.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::bridge::Client;
use super::process::Process;
use super::wait::START;
use super::{blocking, free_port, installed};

/// What happens to the bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toxic {
    /// Each piece is delayed by `milliseconds`, plus or minus up to `jitter`. In both directions.
    Latency { milliseconds: u32, jitter: u32 },
    /// At most this many kilobytes per second to the broker.
    Bandwidth { kilobytes: u32 },
    /// Connections are reset at once, new ones too.
    Reset,
    /// Nothing passes in either direction, but connections stay open, like half-open ones.
    Hang,
}

impl Toxic {
    /// Toxiproxy's name for it, its attributes and the streams it is added to.
    fn parts(self) -> (&'static str, Value, &'static [&'static str]) {
        const BOTH: &[&str] = &["upstream", "downstream"];
        match self {
            Toxic::Latency { milliseconds, jitter } => {
                ("latency", json!({ "latency": milliseconds, "jitter": jitter }), BOTH)
            }
            Toxic::Bandwidth { kilobytes } => ("bandwidth", json!({ "rate": kilobytes }), &["upstream"]),
            Toxic::Reset => ("reset_peer", json!({ "timeout": 0 }), &["downstream"]),
            Toxic::Hang => ("timeout", json!({ "timeout": 0 }), BOTH),
        }
    }
}

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub struct Toxiproxy {
    api: SocketAddr,
    process: Process,
    _folder: TempDir,
}

impl Toxiproxy {
    /// Starts one without proxies.
    pub async fn start() -> Toxiproxy {
        blocking(|| {
            let folder = tempfile::Builder::new().prefix("toxiproxy-").tempdir();
            let folder = folder.expect("the folder for temporary files is writable");
            let port = free_port();
            let mut command = Command::new(installed("bin/toxiproxy-server", "toxiproxy"));
            command.args(["-host", "127.0.0.1", "-port", &port.to_string()]);
            let process =
                Process::start("toxiproxy", &command, &folder.path().join("toxiproxy.log"), Some(folder.path()));
            let api = SocketAddr::from(([127, 0, 0, 1], port));
            process.wait_ready(START, || TcpStream::connect(api).ok());
            Toxiproxy { api, process, _folder: folder }
        })
        .await
    }

    /// Creates a proxy that listens on one port and forwards to another.
    pub async fn add_proxy(&self, name: &str, listen: u16, upstream: u16) {
        let address = |port: u16| format!("127.0.0.1:{port}");
        let proxy = json!({ "name": name, "listen": address(listen), "upstream": address(upstream), "enabled": true });
        self.call("POST", "/proxies", &proxy, 201).await;
    }

    /// Adds a toxic to a proxy.
    pub async fn add(&self, proxy: &str, toxic: Toxic) {
        let (kind, attributes, streams) = toxic.parts();
        for stream in streams {
            let toxic = json!({ "type": kind, "stream": stream, "attributes": attributes });
            self.call("POST", &format!("/proxies/{proxy}/toxics"), &toxic, 200).await;
        }
    }

    /// Removes all toxics of all proxies.
    pub async fn clear(&self) {
        self.call("POST", "/reset", &Value::Null, 204).await;
    }

    async fn call(&self, method: &str, path: &str, body: &Value, expected: u16) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = Client::connect(self.api).await.request(method, path, body.clone(), &[]).await;
        assert_eq!(
            answer.status.as_u16(),
            expected,
            "toxiproxy answers {method} {path} {body} with {}:\n{}",
            String::from_utf8_lossy(&answer.body),
            self.process.log_tail()
        );
    }
}
