//! Callbacks by HTTP POST.
//!
//! A request is taken when its path is an endpoint's, its signature holds ([`signature`]), its body fits the caps,
//! and there is room; from then on a sender that hangs up cancels nothing. The answer
//! is 200 with an empty body when the callback is kept, and a problem document ([`problem`]) otherwise: Alibaba takes
//! exactly 200 as success and tries all else again, twice, a second apart.

mod connection;
pub mod problem;
pub mod signature;
mod tls;

use std::collections::HashSet;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, HOST};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bridge::{Admission, Bridge, Callback, Outcome, Sender};
use crate::dialect::Dialect;
use crate::setting::{Mistake, Secret, SecretSource, Size, Span, one_or_many};
use crate::telemetry::metrics::Metrics;
use problem::Problem;
use signature::Verifier;
use tls::Tls;
pub use tls::TlsFiles;

/// Settings of an HTTP input.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Address to listen on, as `host:port`.
    pub listen: String,
    /// Largest body that is taken.
    pub max_body: Size,
    /// Requests that may be in flight at once; more are refused.
    pub max_in_flight: usize,
    /// Connections that may be open at once; more are refused.
    pub max_connections: usize,
    /// Longest time for the head of a request.
    pub header_timeout: Span,
    /// Longest time for the body of a request.
    pub body_timeout: Span,
    /// Certificate, to take HTTPS.
    pub tls: Option<TlsFiles>,
    /// The paths that callbacks come to.
    pub endpoints: Vec<EndpointConfig>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            listen: "127.0.0.1:8080".to_owned(),
            max_body: Size(256 << 10),
            max_in_flight: 2048,
            max_connections: 4096,
            header_timeout: Span(Duration::from_secs(5)),
            body_timeout: Span(Duration::from_secs(5)),
            tls: None,
            endpoints: Vec::new(),
        }
    }
}

/// Settings of one path.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointConfig {
    /// The path of the request.
    pub path: String,
    /// The URLs as typed at Alibaba: the text that it signs.
    #[serde(deserialize_with = "one_or_many")]
    pub urls: Vec<String>,
    /// The keys that are taken; several while a key is being changed.
    #[serde(deserialize_with = "one_or_many")]
    pub keys: Vec<SecretSource>,
    /// Farthest a signature's timestamp may lie from now.
    pub max_age: Span,
    /// Whether callbacks without a signature are taken.
    pub allow_unsigned: bool,
    /// The dialects that are taken; empty takes both.
    #[serde(deserialize_with = "one_or_many")]
    pub dialects: Vec<Dialect>,
    /// Region of the Alibaba service: part of `source`.
    pub region: Option<String>,
    /// Account: part of `source`.
    pub account_id: Option<String>,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        EndpointConfig {
            path: "/callbacks".to_owned(),
            urls: Vec::new(),
            keys: Vec::new(),
            max_age: Span(Duration::from_secs(300)),
            allow_unsigned: false,
            dialects: Vec::new(),
            region: None,
            account_id: None,
        }
    }
}

impl HttpConfig {
    /// Checks the settings and reads keys and certificate.
    ///
    /// # Errors
    /// Key below the input and what is wrong with it, for every mistake.
    pub fn validate(&self, name: &str) -> Result<HttpSettings, Vec<Mistake>> {
        let mut errors: Vec<Mistake> = Vec::new();
        let mut wrong = |key: String, message: String| errors.push((key, message));
        let addresses: Vec<SocketAddr> = match self.listen.to_socket_addrs() {
            Ok(addresses) => addresses.collect(),
            Err(error) => {
                wrong("listen".to_owned(), format!("`{}` is no host:port: {error}", self.listen));
                Vec::new()
            }
        };
        let local = addresses.iter().all(|address| address.ip().is_loopback());
        for (key, value) in [("max_in_flight", self.max_in_flight), ("max_connections", self.max_connections)] {
            if value == 0 || value > Semaphore::MAX_PERMITS {
                wrong(key.to_owned(), format!("{value} is out of range; expected at least 1"));
            }
        }
        for (key, span) in [("header_timeout", self.header_timeout), ("body_timeout", self.body_timeout)] {
            if span.0.is_zero() {
                wrong(key.to_owned(), "expected more than 0s".to_owned());
            }
        }
        if self.max_body.0 == 0 {
            wrong("max_body".to_owned(), "expected more than 0B".to_owned());
        }
        let tls = self.tls.as_ref().and_then(|files| match Tls::read(files) {
            Ok(tls) => Some(tls),
            Err(error) => {
                wrong("tls".to_owned(), error);
                None
            }
        });
        if self.endpoints.is_empty() {
            wrong("endpoints".to_owned(), "expected at least one, with its path".to_owned());
        }
        let mut paths = HashSet::new();
        let mut endpoints = Vec::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let key = |field: &str| format!("endpoints[{index}].{field}");
            if !endpoint.path.starts_with('/') || endpoint.path.contains(['?', '#', ' ']) {
                wrong(key("path"), format!("`{}` is no path; expected one as /callbacks", endpoint.path));
            }
            if !paths.insert(&endpoint.path) {
                wrong(key("path"), format!("`{}` is the path of two endpoints", endpoint.path));
            }
            for url in &endpoint.urls {
                let scheme = url.parse::<Uri>().ok().and_then(|uri| uri.scheme_str().map(str::to_owned));
                if !matches!(scheme.as_deref(), Some("http" | "https")) {
                    wrong(key("urls"), format!("`{url}` is no http or https url"));
                }
            }
            if endpoint.keys.is_empty() && !endpoint.allow_unsigned && !local {
                wrong(
                    key("keys"),
                    format!(
                        "{} is reachable from other machines: set keys, or allow_unsigned = true to take callbacks \
                         from anyone",
                        self.listen
                    ),
                );
            }
            if !endpoint.keys.is_empty() && endpoint.urls.is_empty() {
                wrong(key("urls"), "needed beside keys: Alibaba signs the url as it was typed there".to_owned());
            }
            let mut keys = Vec::new();
            for (position, source) in endpoint.keys.iter().enumerate() {
                match Secret::read(source) {
                    Ok(secret) => keys.push(secret),
                    Err(error) => wrong(key(&format!("keys[{position}]")), error),
                }
            }
            let verifier = Verifier {
                urls: endpoint.urls.clone(),
                keys,
                max_age: endpoint.max_age.0,
                allow_unsigned: endpoint.allow_unsigned,
            };
            let sender = Sender {
                region: endpoint.region.clone(),
                account_id: endpoint.account_id.clone(),
                dialects: endpoint.dialects.clone(),
            };
            endpoints.push(Endpoint { path: endpoint.path.clone(), verifier, sender: Arc::new(sender) });
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(HttpSettings {
            name: name.to_owned(),
            listen: addresses,
            max_body: self.max_body,
            max_in_flight: self.max_in_flight,
            max_connections: self.max_connections,
            header_timeout: self.header_timeout.0,
            body_timeout: self.body_timeout.0,
            tls,
            endpoints,
        })
    }
}

/// Checked settings of an HTTP input.
#[derive(Debug)]
pub struct HttpSettings {
    name: String,
    listen: Vec<SocketAddr>,
    max_body: Size,
    max_in_flight: usize,
    max_connections: usize,
    header_timeout: Duration,
    body_timeout: Duration,
    tls: Option<Tls>,
    endpoints: Vec<Endpoint>,
}

impl HttpSettings {
    /// Name of the input.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The addresses, of which one is bound.
    pub fn listen(&self) -> &[SocketAddr] {
        &self.listen
    }

    /// Path of each endpoint, and what is known of who sends there.
    pub fn endpoints(&self) -> impl Iterator<Item = (&str, &Sender)> {
        self.endpoints.iter().map(|endpoint| (endpoint.path.as_str(), &*endpoint.sender))
    }
}

/// The endpoints of an input that runs; they can be replaced while it does.
#[derive(Clone, Debug)]
pub struct Endpoints {
    current: Arc<RwLock<Arc<Vec<Endpoint>>>>,
}

impl Endpoints {
    fn current(&self) -> Arc<Vec<Endpoint>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts the endpoints of other settings in the place of the present ones; the rest of the settings is left alone.
    /// Requests under way end by the old ones.
    pub fn replace(&self, settings: HttpSettings, metrics: &Metrics) {
        introduce(&settings.endpoints, metrics);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings.endpoints);
    }
}

/// Makes the series of endpoints, before their first request.
fn introduce(endpoints: &[Endpoint], metrics: &Metrics) {
    for problem in Problem::ALL.iter().filter(|problem| problem.status() == StatusCode::UNAUTHORIZED) {
        for endpoint in endpoints {
            metrics.unauthorized_total.with_label_values(&[endpoint.path.as_str(), &problem.label()]);
        }
    }
}

#[derive(Debug)]
struct Endpoint {
    path: String,
    verifier: Verifier,
    sender: Arc<Sender>,
}

/// An HTTP input that is bound to its address and ready to run.
#[derive(Debug)]
pub struct HttpInput {
    settings: HttpSettings,
    endpoints: Endpoints,
    listener: TcpListener,
    address: SocketAddr,
}

impl HttpInput {
    /// Binds the address.
    ///
    /// # Errors
    /// The system's word on why the address can't be had.
    pub async fn bind(mut settings: HttpSettings) -> std::io::Result<HttpInput> {
        let listener = TcpListener::bind(settings.listen.as_slice()).await?;
        let address = listener.local_addr()?;
        let current = Arc::new(RwLock::new(Arc::new(std::mem::take(&mut settings.endpoints))));
        let endpoints = Endpoints { current };
        Ok(HttpInput { settings, endpoints, listener, address })
    }

    /// Its endpoints.
    pub fn endpoints(&self) -> Endpoints {
        self.endpoints.clone()
    }

    /// The address it is bound to: the port it got where it asked for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `closed`. From `stopping` on requests get 503 and connections are closed behind their answers,
    /// while those under way are finished. Callbacks run in `tasks`, which the caller waits for.
    pub async fn run(
        self,
        bridge: Arc<Bridge>,
        stopping: CancellationToken,
        closed: CancellationToken,
        tasks: TaskTracker,
    ) {
        let HttpSettings { name, max_body, max_in_flight, max_connections, header_timeout, body_timeout, tls, .. } =
            self.settings;
        bridge.init_input_series(&name);
        introduce(&self.endpoints.current(), bridge.metrics());
        for problem in Problem::ALL.iter().filter(|problem| **problem != Problem::Refused) {
            let label = problem.label();
            bridge.metrics().not_accepted_total.with_label_values(&[name.as_str(), &label]);
        }
        let service = Arc::new(Service {
            name: name.into(),
            endpoints: self.endpoints,
            max_body: max_body.as_usize(),
            body_timeout,
            room: Arc::new(Semaphore::new(max_in_flight)),
            stopping: stopping.clone(),
            bridge,
            tasks,
        });
        let limits = connection::Limits { max_connections, header_timeout };
        connection::serve(self.listener, tls, service, limits, stopping, closed).await;
    }
}

/// Answers requests.
#[derive(Debug)]
struct Service {
    name: Arc<str>,
    endpoints: Endpoints,
    max_body: usize,
    body_timeout: Duration,
    room: Arc<Semaphore>,
    stopping: CancellationToken,
    bridge: Arc<Bridge>,
    tasks: TaskTracker,
}

type Answer = Response<Full<Bytes>>;

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        // Whoever drains waits for requests whose body is still on its way, too. Counted before it is asked whether
        // callbacks are still accepted: a request that is, is waited for.
        let _request = self.tasks.token();
        match self.take(request).await {
            Ok(outcome) => self.answer_outcome(&outcome),
            Err((problem, detail)) => {
                self.count_not_accepted(problem);
                problem.response(&detail)
            }
        }
    }

    fn answer_outcome(&self, outcome: &Outcome) -> Answer {
        match outcome {
            Outcome::Published
            | Outcome::Spooled
            | Outcome::Duplicate
            | Outcome::Dropped
            | Outcome::DeadLettered(_) => Response::new(Full::default()),
            Outcome::Refused(refusal) => Problem::Refused.response(&refusal.to_string()),
            Outcome::NotACallback { error, .. } => {
                self.count_reason(Problem::NotACallback);
                Problem::NotACallback.response(&error.to_string())
            }
        }
    }

    fn count_not_accepted(&self, problem: Problem) {
        let metrics = self.bridge.metrics();
        metrics.callbacks_total.with_label_values(&[&*self.name, "not_accepted"]).inc();
        self.count_reason(problem);
        tracing::debug!(input = %self.name, problem = problem.slug(), "request not accepted");
    }

    /// Counts why; what became of it is counted by whoever decided that.
    fn count_reason(&self, problem: Problem) {
        let labels = [&*self.name, &problem.label()];
        self.bridge.metrics().not_accepted_total.with_label_values(&labels).inc();
    }

    /// Takes a request to its outcome, or to the problem that keeps it from being a callback.
    async fn take(&self, request: Request<Incoming>) -> Result<Outcome, (Problem, String)> {
        if self.stopping.is_cancelled() {
            return Err((Problem::Stopping, "another instance may take it".to_owned()));
        }
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let endpoints = self.endpoints.current();
        let Some(endpoint) = endpoints.iter().find(|endpoint| endpoint.path == path) else {
            return Err((Problem::NoSuchPath, "expected the `path` of an endpoint".to_owned()));
        };
        if head.method != Method::POST {
            return Err((Problem::MethodNotAllowed, format!("the method is {}; expected POST", head.method)));
        }
        if let Err((problem, detail)) = verify(&endpoints, endpoint, &head.headers, &head.uri) {
            let labels = [endpoint.path.as_str(), &problem.label()];
            self.bridge.metrics().unauthorized_total.with_label_values(&labels).inc();
            tracing::debug!(input = %self.name, endpoint = endpoint.path, detail, "request not authorized");
            return Err((problem, detail));
        }
        if let Some(encoding) = head.headers.get(CONTENT_ENCODING).filter(|value| *value != "identity") {
            let encoding = encoding.to_str().unwrap_or("unreadable");
            return Err((Problem::EncodingNotSupported, format!("content-encoding is {encoding}; expected none")));
        }
        let Ok(room) = self.room.clone().try_acquire_owned() else {
            return Err((Problem::TooManyRequests, "as many requests as may be in flight are in flight".to_owned()));
        };
        let (body, admission, waited) = self.read(body).await?;
        let callback = Callback {
            input: self.name.clone(),
            admission,
            body,
            received: OffsetDateTime::now_utc(),
            // Waiting for memory is part of the time that the sender waits; sending the body is not.
            arrived: Instant::now().checked_sub(waited).unwrap_or_else(Instant::now),
            sender: endpoint.sender.clone(),
            traceparent: traceparent(&head.headers),
            max_publish_time: None,
            is_last_try: false,
        };
        let bridge = self.bridge.clone();
        let accepted = async move {
            let _room = room;
            bridge.accept(callback).await
        };
        Ok(Unstoppable::new(self.tasks.track_future(accepted)).await)
    }

    async fn read(&self, body: Incoming) -> Result<(Bytes, Admission, Duration), (Problem, String)> {
        if body.size_hint().lower() > self.max_body as u64 {
            return Err(self.too_large());
        }
        tokio::time::timeout(self.body_timeout, self.collect(body)).await.unwrap_or_else(|_| {
            let limit = humantime::format_duration(self.body_timeout);
            Err((Problem::RequestTimeout, format!("the body took longer than {limit}")))
        })
    }

    /// Reads a body into one buffer. The memory for it is asked for first, because bodies that are half there would
    /// wait for each other; without a declared length it is asked for as the pieces arrive.
    async fn collect(&self, mut body: Incoming) -> Result<(Bytes, Admission, Duration), (Problem, String)> {
        let mut admission = self.bridge.admit();
        let declared = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
        let mut waited = self.grow(&mut admission, declared.unwrap_or_default()).await?;
        let (mut first, mut all) = (Bytes::new(), BytesMut::new());
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return Err((Problem::BodyUnreadable, "the connection ended, or its framing is broken".to_owned()));
            };
            let Ok(piece) = frame.into_data() else { continue };
            if first.len().max(all.len()) + piece.len() > self.max_body {
                return Err(self.too_large());
            }
            if declared.is_none() {
                waited += self.grow(&mut admission, piece.len()).await?;
            }
            if first.is_empty() && all.is_empty() {
                first = piece;
                continue;
            }
            all.reserve(declared.unwrap_or_default().saturating_sub(all.len()));
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&piece);
        }
        Ok((if all.is_empty() { first } else { all.freeze() }, admission, waited))
    }

    /// Asks for memory, and returns how long that was waited for.
    async fn grow(&self, admission: &mut Admission, bytes: usize) -> Result<Duration, (Problem, String)> {
        let start = Instant::now();
        let until = start + self.bridge.deadline() / 2;
        admission.grow(bytes, until).await.map_err(|full| (Problem::TooManyRequests, full.to_string()))?;
        Ok(start.elapsed())
    }

    fn too_large(&self) -> (Problem, String) {
        (Problem::BodyTooLarge, format!("expected at most {}", Size(self.max_body as u64)))
    }
}

/// Checks the signature of a request to one of the endpoints.
fn verify(
    endpoints: &[Endpoint],
    endpoint: &Endpoint,
    headers: &HeaderMap,
    uri: &Uri,
) -> Result<(), (Problem, String)> {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let path = uri.path_and_query().map_or(uri.path(), |path| path.as_str());
    let as_requested = ["https", "http"].into_iter().map(|scheme| format!("{scheme}://{host}{path}"));
    let configured = endpoints.iter().flat_map(|endpoint| &endpoint.verifier.urls);
    let nearly = configured.flat_map(|url| {
        let other_scheme = match url.strip_prefix("https://") {
            Some(rest) => format!("http://{rest}"),
            None => format!("https://{}", url.trim_start_matches("http://")),
        };
        let other_end = url.strip_suffix('/').map_or_else(|| format!("{url}/"), str::to_owned);
        [url.clone(), other_scheme, other_end]
    });
    endpoint.verifier.verify(headers, now, as_requested.chain(nearly))
}

/// A future that is finished even if it is dropped: a sender that hangs up must not cancel its publish. It runs where
/// it is awaited, and moves to a task of its own only then.
struct Unstoppable<F: Future + Send + 'static>(Option<Pin<Box<F>>>);

impl<F: Future + Send + 'static> Unstoppable<F> {
    fn new(future: F) -> Unstoppable<F> {
        Unstoppable(Some(Box::pin(future)))
    }
}

impl<F: Future + Send + 'static> Future for Unstoppable<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(future) = &mut self.0 else { return Poll::Pending };
        let polled = future.as_mut().poll(context);
        if polled.is_ready() {
            self.0 = None;
        }
        polled
    }
}

impl<F: Future + Send + 'static> Drop for Unstoppable<F> {
    fn drop(&mut self) {
        // Without a runtime the process is ending, and with it the publish.
        if let (Some(future), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(async move { drop(future.await) });
        }
    }
}

/// The trace context of a request, where it has the form of W3C Trace Context level 1.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let parts: Vec<&str> = text.split('-').collect();
    let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let valid = lengths == [2, 32, 16, 2]
        && parts.iter().all(|part| is_hex(part))
        && parts[0] != "ff"
        && !is_zero(parts[1])
        && !is_zero(parts[2]);
    valid.then(|| text.to_owned())
}
