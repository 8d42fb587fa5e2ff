//! The bridge in this process, from a configuration as a user writes it, and a client that sends as Alibaba does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use apsara_bridge::bridge::Bridge;
use apsara_bridge::config::{self, Layer};
use apsara_bridge::input::http::signature::sign;
use apsara_bridge::service::Service;
use apsara_bridge::telemetry::logs;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::eventually;
use super::wait::SOON;

/// The URL that callbacks of the tests are signed for.
pub const URL: &str = "https://media.example.com/callbacks?from=alibaba";

/// The key they are signed with.
pub const KEY: &str = "TestKey123";

/// A running bridge with one HTTP input named `http`.
pub struct TestBridge {
    /// Address of the input.
    pub input: SocketAddr,
    /// Address of the admin listener.
    pub admin: SocketAddr,
    /// The middle.
    pub bridge: Arc<Bridge>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<usize>,
}

/// An HTTP input on a port of the system's choice that takes signed callbacks on `/callbacks`.
pub fn http_input(more: &str) -> String {
    format!(
        "[inputs.http]\nkind = 'http'\nlisten = '127.0.0.1:0'\n{more}\n\
         [[inputs.http.endpoints]]\npath = '/callbacks'\nurls = ['{URL}']\nkeys = ['{KEY}']\n"
    )
}

impl TestBridge {
    /// Starts with the given configuration, to which an admin listener is added, and that there is no spool if it
    /// says nothing of one.
    pub async fn start(configuration: &str) -> TestBridge {
        TestBridge::try_start(configuration).await.unwrap_or_else(|error| panic!("the service starts: {error}"))
    }

    /// Starts, or tells why a configuration that is valid can't be run.
    pub async fn try_start(configuration: &str) -> Result<TestBridge, String> {
        if let Ok(filter) = std::env::var("TEST_LOG") {
            logs::start(logs::Format::Text, &filter);
        }
        let spool = if configuration.contains("[spool]") { "" } else { "[spool]\nenabled = false\n" };
        let text = format!("{configuration}\n{spool}[admin]\nlisten = '127.0.0.1:0'\n");
        let loaded = config::load(&[Layer::Text("test".to_owned(), text)]).unwrap_or_else(|errors| {
            panic!("{}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        });
        let service = Service::start(loaded.settings).await.map_err(|error| error.to_string())?;
        let (input, admin) = (service.input_address("http").expect("an input"), service.admin_address());
        let bridge = service.bridge().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(service.run(async { drop(stopped.await) }, std::future::pending()));
        Ok(TestBridge { input, admin, bridge, stop: Some(stop), running })
    }

    /// Starts, and waits until every output is connected.
    pub async fn start_connected(configuration: &str) -> TestBridge {
        let bridge = TestBridge::start(configuration).await;
        bridge.connected().await;
        bridge
    }

    /// Waits until every output is connected.
    pub async fn connected(&self) {
        eventually("all outputs connected", SOON, async || self.bridge.is_connected().then_some(())).await;
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

    /// The value of one metric, 0 where it is not there.
    pub fn metric(&self, name_and_labels: &str) -> f64 {
        let text = self.metrics();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name_and_labels} ")));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Tells it to stop and goes on.
    pub fn begin_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Stops it and gives back how many callbacks were left without an outcome.
    pub async fn stop(mut self) -> usize {
        self.begin_stop();
        tokio::time::timeout(SOON, self.running).await.expect("it stops").expect("without panic")
    }
}

/// The headers of a signature made now.
pub fn signed_headers(family: &str) -> Vec<(String, String)> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    headers_signed_at(family, URL, now, KEY)
}

/// The headers of a signature made at a time.
pub fn headers_signed_at(family: &str, url: &str, time: u64, key: &str) -> Vec<(String, String)> {
    let time = time.to_string();
    let signature = sign(url, &time, key);
    vec![(format!("X-{family}-TIMESTAMP"), time), (format!("X-{family}-SIGNATURE"), signature)]
}

/// A callback with an id of its own.
pub fn callback(id: &str) -> String {
    format!(
        r#"{{"EventType":"FileUploadComplete","EventTime":"2026-01-01T00:00:00Z","Status":"success","VideoId":"{id}","Size":"42"}}"#
    )
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

/// One connection to the bridge.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects by TCP.
    pub async fn connect(address: SocketAddr) -> Client {
        Client::over(TcpStream::connect(address).await.expect("the bridge listens")).await
    }

    /// Speaks HTTP over a stream.
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Client {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("a connection");
        tokio::spawn(connection);
        Client { sender }
    }

    /// Posts on the same connection as before.
    pub async fn post(&mut self, path: &str, body: impl Into<Bytes>, headers: &[(String, String)]) -> Answer {
        self.request("POST", path, body, headers).await
    }

    /// Sends a request on the same connection as before.
    pub async fn request(
        &mut self,
        method: &str,
        path: &str,
        body: impl Into<Bytes>,
        headers: &[(String, String)],
    ) -> Answer {
        self.sender.ready().await.expect("the connection is open");
        let mut request = Request::builder().method(method).uri(path).header("host", "media.example.com");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        let response = self.sender.send_request(request).await.expect("an answer");
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        Answer { status: head.status, headers: head.headers, body }
    }
}

/// Sends text as it is and reads until the connection is closed.
pub async fn raw(address: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("the bridge listens");
    stream.write_all(text.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    // A connection that is reset has said all that it will.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}
