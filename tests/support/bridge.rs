//! The bridge in this process, and a client that sends as Alibaba does.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use apsara_bridge::bridge::Bridge;
use apsara_bridge::config::{self, Layer};
use apsara_bridge::input::http::signature::sign;
use apsara_bridge::service::{Candidate, Ended, LoadAttempt, Service};
use apsara_bridge::telemetry::logs;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::config::Config;
use super::eventually;
use super::wait::SOON;

/// The URL for which the callbacks of the tests are signed.
pub const URL: &str = "https://media.example.com/callbacks?from=alibaba";

/// The key they are signed with.
pub const KEY: &str = "TestKey123";

/// A running bridge with one HTTP input named `http`.
pub struct TestBridge {
    /// Address of the input.
    pub input: SocketAddr,
    /// Address of the admin listener.
    pub admin: SocketAddr,
    /// The bridge behind the inputs.
    pub bridge: Arc<Bridge>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Ended>,
    /// Dropping it ends the watching of files.
    _reload: mpsc::Sender<()>,
}

/// Loads a configuration again.
fn load(layers: &[Layer]) -> LoadAttempt {
    let config::Attempt { result, files } = config::load_with_files(layers);
    let result = result.map_err(|errors| errors.iter().map(ToString::to_string).collect());
    let result = result.map(|loaded| Candidate {
        settings: loaded.settings,
        restart_keys: Vec::new(),
        warnings: loaded.warnings,
        rereads: loaded.rereads,
    });
    LoadAttempt { result, files }
}

impl TestBridge {
    /// Starts with a configuration that has an HTTP input.
    pub async fn start(config: &Config) -> TestBridge {
        TestBridge::try_start(config).await.unwrap_or_else(|error| panic!("the service does not start: {error}"))
    }

    /// Starts, or returns why a valid configuration cannot be run.
    pub async fn try_start(config: &Config) -> Result<TestBridge, String> {
        let filter = std::env::var("TEST_LOG").unwrap_or_else(|_| "off".to_owned());
        let log_filter = logs::start(logs::Format::Text, &filter);
        let layers = [Layer::Text("test".to_owned(), config.to_string())];
        let config::Attempt { result, files } = config::load_with_files(&layers);
        let loaded = result.unwrap_or_else(|errors| {
            panic!("{}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        });
        let service = Service::start(loaded.settings).await.map_err(|error| error.to_string())?;
        let (input, admin) = (service.input_address("http").expect("an input"), service.admin_address());
        let bridge = service.bridge().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (reload, requests) = mpsc::channel(1);
        let load = Arc::new(move || load(&layers));
        tokio::spawn(service.reloader().run(load, log_filter, files, loaded.rereads, requests));
        let running = tokio::spawn(service.run(async { drop(stopped.await) }, std::future::pending()));
        Ok(TestBridge { input, admin, bridge, stop: Some(stop), running, _reload: reload })
    }

    /// Starts, and waits until every output is connected.
    pub async fn start_connected(config: &Config) -> TestBridge {
        let bridge = TestBridge::start(config).await;
        bridge.connected().await;
        bridge
    }

    /// Waits until every output is connected.
    pub async fn connected(&self) {
        eventually("all outputs to be connected", SOON, async || self.bridge.is_connected().then_some(())).await;
    }

    /// Waits until an output is down.
    pub async fn disconnected(&self) {
        eventually("an output to be down", SOON, async || (!self.bridge.is_connected()).then_some(())).await;
    }

    /// Waits until a metric has a value that meets a condition.
    pub async fn wait_metric(&self, name_and_labels: &str, fits: impl Fn(f64) -> bool) {
        eventually(&format!("a value of {name_and_labels}"), SOON, async || {
            fits(self.metric(name_and_labels)).then_some(())
        })
        .await;
    }

    /// Waits until the spool has this many records.
    pub async fn spooled(&self, records: f64) {
        self.wait_metric("apsara_bridge_spool_events", |value| value == records).await;
    }

    /// Waits until a callback with this id is answered with 200.
    pub async fn accepted(&self, id: &str) {
        eventually("a callback to be answered with 200", SOON, async || {
            (self.post(callback(id)).await.status == StatusCode::OK).then_some(())
        })
        .await;
    }

    /// Posts a body with a valid signature of VOD's.
    pub async fn post(&self, body: impl Into<Bytes>) -> Answer {
        self.post_with(body, &signed_headers("VOD")).await
    }

    /// Posts a body with the given headers.
    pub async fn post_with(&self, body: impl Into<Bytes>, headers: &[(String, String)]) -> Answer {
        Client::connect(self.input).await.post("/callbacks", body, headers).await
    }

    /// The text of the metrics.
    pub fn metrics(&self) -> String {
        self.bridge.metrics_text().expect("metrics can be written")
    }

    /// The value of one metric; 0 if it does not exist.
    pub fn metric(&self, name_and_labels: &str) -> f64 {
        metric(&self.metrics(), name_and_labels)
    }

    /// How many callbacks of an input had this outcome.
    pub fn outcomes(&self, input: &str, outcome: &str) -> f64 {
        self.metric(&format!(r#"apsara_bridge_callbacks_total{{input="{input}",outcome="{outcome}"}}"#))
    }

    /// Starts stopping it, and does not wait.
    pub fn begin_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Stops it, and returns how many callbacks were left without an outcome.
    pub async fn stop(mut self) -> usize {
        self.begin_stop();
        tokio::time::timeout(SOON, self.running).await.expect("it stops").expect("without panic").without_outcome
    }
}

/// The value of one metric in a text of metrics; 0 if it does not exist.
pub fn metric(text: &str, name_and_labels: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name_and_labels)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().expect("a number"))
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

/// The headers of a signature with the current time.
pub fn signed_headers(family: &str) -> Vec<(String, String)> {
    headers_signed_at(family, URL, now(), KEY)
}

/// The headers of a signature with the given time.
pub fn headers_signed_at(family: &str, url: &str, time: u64, key: &str) -> Vec<(String, String)> {
    let time = time.to_string();
    let signature = sign(url, &time, key);
    vec![(format!("X-{family}-TIMESTAMP"), time), (format!("X-{family}-SIGNATURE"), signature)]
}

/// The text of a signed request, up to its last header.
pub fn signed_head() -> String {
    let headers = signed_headers("VOD").into_iter().map(|(name, value)| format!("{name}: {value}\r\n"));
    format!("POST /callbacks HTTP/1.1\r\nhost: x\r\n{}", headers.collect::<String>())
}

/// A callback about a media.
pub fn callback(id: &str) -> String {
    callback_with(id, "42")
}

/// One of several different callbacks about the same media.
pub fn callback_with(id: &str, size: impl Display) -> String {
    format!(
        r#"{{"EventType":"FileUploadComplete","EventTime":"2026-01-01T00:00:00Z","Status":"success","VideoId":"{id}","Size":"{size}"}}"#
    )
}

/// A callback with a few more bytes than given.
pub fn large_callback(id: &str, bytes: usize) -> String {
    callback_with(id, "4".repeat(bytes))
}

/// An answer of the bridge.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The last part of the problem's `type`, and its `detail`.
    pub fn problem(&self) -> (String, String) {
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let document: serde_json::Value = serde_json::from_slice(&self.body).expect("a problem document");
        assert_eq!(document["status"], self.status.as_u16());
        let field = |name: &str| document[name].as_str().expect("a string").to_owned();
        assert!(!field("title").is_empty());
        (field("type").trim_start_matches("urn:apsara-bridge:problem:").to_owned(), field("detail"))
    }
}

/// A client of the bridge. It keeps its connection for as long as the bridge does, and then opens another one.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    address: Option<SocketAddr>,
    is_closed: bool,
}

impl Client {
    /// Connects by TCP.
    pub async fn connect(address: SocketAddr) -> Client {
        let client = Client::over(TcpStream::connect(address).await.expect("the bridge listens")).await;
        Client { address: Some(address), ..client }
    }

    /// Speaks HTTP over a stream.
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Client {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("a connection");
        tokio::spawn(connection);
        Client { sender, address: None, is_closed: false }
    }

    /// Posts.
    pub async fn post(&mut self, path: &str, body: impl Into<Bytes>, headers: &[(String, String)]) -> Answer {
        self.request("POST", path, body, headers).await
    }

    /// Sends a request.
    pub async fn request(
        &mut self,
        method: &str,
        path: &str,
        body: impl Into<Bytes>,
        headers: &[(String, String)],
    ) -> Answer {
        if let (true, Some(address)) = (self.is_closed, self.address) {
            *self = Client::connect(address).await;
        }
        self.sender.ready().await.expect("the connection is open");
        let mut request = Request::builder().method(method).uri(path).header("host", "media.example.com");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        let response = self.sender.send_request(request).await.expect("an answer");
        let (head, body) = response.into_parts();
        self.is_closed = head.headers.get("connection").is_some_and(|value| value == "close");
        let body = body.collect().await.expect("a body").to_bytes();
        Answer { status: head.status, headers: head.headers, body }
    }
}

/// Sends text unchanged and reads until the connection is closed.
pub async fn raw(address: SocketAddr, text: &str) -> String {
    try_raw(address, text).await.expect("the bridge listens and reads")
}

/// The same with a bridge that may refuse the connection.
///
/// # Errors
/// It cannot be connected to, or does not read all of the text.
pub async fn try_raw(address: SocketAddr, text: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(text.as_bytes()).await?;
    let mut answer = Vec::new();
    // After a reset, the answer is what was read before it.
    let _ = stream.read_to_end(&mut answer).await;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
