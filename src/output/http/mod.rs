//! CloudEvents over HTTP: each event is a POST to one URL.
//!
//! The contract:
//! - An event is published when the receiver answers with a status of 2xx. What the receiver does with the event after
//!   that is its own affair.
//! - A publish returns at its deadline at the latest. A request that was given up may still arrive.
//! - A connection can end at the moment in which a request is sent over it. Such a request is sent once more, over
//!   another connection: the receiver may get the event twice.
//! - Redirects are not followed.
//! - A receiver that answers with a transient status and `Retry-After` gets no event until then.
//! - The output is up while the receiver answers requests. It is asked by OPTIONS, which by RFC 9110 changes nothing:
//!   at the start, when an event got no answer or 502, 503 or 504, and every second while it is down. Any answer except
//!   those three shows that it is there. An open connection alone would not show that: a gateway accepts connections
//!   for a receiver that is gone.
//! - `request_headers` and TLS files are used as they are at the time of a request.
//!
//! # Layout
//!
//! - `config`: settings and their checks
//! - `binding`: headers and body of a request
//! - `answers`: what each answer means
//! - `examine`: what `doctor` checks

mod answers;
mod binding;
mod config;
mod examine;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::http::response::Parts;
use hyper::{Method, Request, Response, StatusCode};
use schemars::JsonSchema;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::rustls::ClientConfig;

pub use config::{HttpConfig, HttpSettings};

use super::{Bus, ErrorKind, Health, Needs, Output, OutputKind, OutputSettings, PublishError, Record, Rendered};
use crate::common::backoff::jittered;
use crate::common::findings::Findings;
use crate::common::http::{HttpClient, HttpError};
use crate::common::kind::{AddressKey, KindKeys};
use crate::common::tls::{TlsError, trusting_nobody};
use crate::common::validation::FieldError;
use crate::telemetry::metrics::Metrics;

/// The kind.
pub(super) const KIND: OutputKind = OutputKind {
    name: "http",
    keys: KindKeys {
        addresses: &[AddressKey { key: "url", port: 443 }],
        secrets: &["request_headers.*"],
        ..KindKeys::NONE
    },
    read: super::read::<HttpConfig>,
    schema: <HttpConfig as JsonSchema>::json_schema,
};

/// What requests say about their sender, unless `request_headers` says something else.
const AGENT: &str = concat!("apsara-bridge/", env!("CARGO_PKG_VERSION"));

/// How long a connection without a request is kept. Many servers close it after five seconds; a request should not meet
/// that moment.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// How long the start of a body may take to arrive after the head, which decides.
const BODY_TIME: Duration = Duration::from_millis(200);

/// How long the receiver may take to answer the question whether it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// The shortest time between two such questions.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// How long to wait for a request to look before waiting anew.
const WAIT: Duration = Duration::from_secs(3600);

/// Posts events to a URL. Dropping it ends its watch.
pub struct Http {
    shared: Arc<Shared>,
    watch: tokio::task::JoinHandle<()>,
}

impl fmt::Debug for Http {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Http").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.shared.health.close();
        self.watch.abort();
    }
}

struct Shared {
    settings: HttpSettings,
    health: Health,
    client: RwLock<Client>,
    /// A request holds one until its answer.
    permits: Semaphore,
    /// The receiver asked to get no event until then, and why.
    pause: Mutex<Option<(Instant, String)>>,
    /// Why it is down.
    reason: Mutex<String>,
}

/// A client, and the TLS settings that it was built from.
struct Client {
    http: HttpClient,
    tls: Arc<ClientConfig>,
}

impl Client {
    fn new(tls: Arc<ClientConfig>) -> Client {
        Client { http: HttpClient::with((*tls).clone(), IDLE_TIMEOUT), tls }
    }
}

impl Http {
    /// Starts to ask the receiver whether it is there, in the background.
    fn start(settings: HttpSettings, metrics: &Metrics) -> Result<Http, TlsError> {
        let shared = Arc::new(Shared::new(settings, metrics)?);
        let watch = tokio::spawn(watch(shared.clone()));
        Ok(Http { shared, watch })
    }
}

impl Shared {
    fn new(settings: HttpSettings, metrics: &Metrics) -> Result<Shared, TlsError> {
        let tls = match &settings.tls {
            Some(tls) => tls.config(),
            None => Arc::new(trusting_nobody()?),
        };
        Ok(Shared {
            health: Health::new(&settings.name, metrics),
            client: RwLock::new(Client::new(tls)),
            permits: Semaphore::new(settings.max_in_flight),
            pause: Mutex::default(),
            reason: Mutex::new("the receiver has not answered yet".to_owned()),
            settings,
        })
    }

    /// The client with the TLS files as they are now. Requests that have begun keep their connection.
    fn client(&self) -> HttpClient {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner);
        let Some(tls) = self.settings.tls.as_ref().map(|tls| tls.config()) else { return client.http.clone() };
        if Arc::ptr_eq(&tls, &client.tls) {
            return client.http.clone();
        }
        drop(client);
        let mut client = self.client.write().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&tls, &client.tls) {
            tracing::info!(output = self.settings.name, "TLS files have changed; connecting with them");
            *client = Client::new(tls);
        }
        client.http.clone()
    }

    /// The headers that the configuration adds, with their present values.
    fn added_headers(&self) -> Result<HeaderMap, PublishError> {
        let mut headers = HeaderMap::with_capacity(self.settings.headers.len());
        for (name, secret) in &self.settings.headers {
            let value = config::header_value(&secret.value());
            headers.insert(name, value.ok_or_else(|| not_a_value(&format!("request_headers.{name}")))?);
        }
        Ok(headers)
    }

    fn request(&self, method: Method, headers: HeaderMap, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.settings.url.clone();
        *request.headers_mut() = headers;
        request.headers_mut().entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
        request
    }

    fn event_request(&self, record: &Record, added: &HeaderMap) -> Result<Request<Full<Bytes>>, PublishError> {
        let rendered = self.settings.render(record);
        let mut headers = added.clone();
        for (name, value) in &rendered.headers {
            let value = HeaderValue::from_str(value).map_err(|_| not_a_value(name))?;
            headers.insert(HeaderName::from_static(name), value);
        }
        Ok(self.request(Method::POST, headers, rendered.payload))
    }

    /// Sends a request, once more if its connection ended.
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, HttpError> {
        let client = self.client();
        match client.send(request.clone()).await {
            Err(HttpError::NoAnswer(_)) => client.send(request).await,
            sent => sent,
        }
    }

    /// An error if the output is down, or if the receiver asked to get no event now.
    fn check_open(&self) -> Result<(), PublishError> {
        if !self.health.is_up() {
            let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
            return Err(PublishError::new(ErrorKind::Unavailable, format!("not connected: {reason}")));
        }
        match self.pause() {
            None => Ok(()),
            Some((left, why)) => {
                let seconds = left.as_secs() + 1;
                Err(PublishError::new(ErrorKind::Unavailable, format!("{why}; the next request is in {seconds}s")))
            }
        }
    }

    /// How long the receiver wants to get no event, and why.
    fn pause(&self) -> Option<(Duration, String)> {
        let mut pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, why) = pause.as_ref()?;
        match until.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Some((left, why.clone())),
            _ => {
                *pause = None;
                None
            }
        }
    }

    /// Notes a pause that an answer asks for.
    fn note_pause(&self, status: StatusCode, headers: &HeaderMap) {
        let Some(pause) = answers::pause(status, headers, SystemTime::now()) else { return };
        let until = Instant::now() + pause;
        let mut known = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|(known, _)| *known < until) {
            *known = Some((until, format!("the receiver answered {} and asked to wait", answers::words(status))));
        }
    }

    async fn publish(&self, record: &Record, deadline: Instant) -> Result<(), PublishError> {
        self.check_open()?;
        let full = |_| PublishError::new(ErrorKind::QueueFull, "max_in_flight requests wait for their answers");
        let permit = tokio::time::timeout_at(deadline, self.permits.acquire()).await.map_err(full)?;
        let _permit = permit.map_err(|_| PublishError::new(ErrorKind::Unavailable, "the output was closed"))?;
        // Others may have had their answers in the meantime.
        self.check_open()?;
        let added = self.added_headers()?;
        let request = self.event_request(record, &added)?;
        let sent = tokio::time::timeout_at(deadline, self.send(request)).await;
        let (head, body) = match sent.unwrap_or(Err(HttpError::TimedOut)) {
            Ok(answer) => answer.into_parts(),
            Err(error) => {
                self.health.request_probe();
                let kind = match error {
                    HttpError::TimedOut => ErrorKind::TimedOut,
                    _ => ErrorKind::Unavailable,
                };
                return Err(PublishError::new(kind, error));
            }
        };
        // A connection is used again only if the body was read. The head has said all that counts.
        let until = deadline.min(Instant::now() + BODY_TIME);
        let body = tokio::time::timeout_at(until, read_start(body)).await.unwrap_or_default();
        if answers::is_unavailable(head.status) {
            self.health.request_probe();
        } else {
            self.health.up();
        }
        self.note_pause(head.status, &head.headers);
        if head.status.is_success() {
            return Ok(());
        }
        Err(answers::refusal(head.status, &head.headers, &body, &added))
    }

    /// Asks the receiver whether it is there. Returns the head of its answer.
    async fn ask(&self) -> Result<Parts, String> {
        let added = self.added_headers().map_err(|error| error.message)?;
        let request = self.request(Method::OPTIONS, added, Bytes::new());
        let sent = tokio::time::timeout(PROBE_TIMEOUT, self.send(request)).await;
        let (head, body) = sent.unwrap_or(Err(HttpError::TimedOut)).map_err(|error| error.to_string())?.into_parts();
        let _ = tokio::time::timeout(PROBE_TIMEOUT, read_start(body)).await;
        if answers::is_unavailable(head.status) {
            self.note_pause(head.status, &head.headers);
            return Err(format!("the receiver answered {}", answers::words(head.status)));
        }
        Ok(head)
    }

    fn down(&self, reason: String) {
        self.health.down(&reason);
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

fn not_a_value(header: &str) -> PublishError {
    PublishError::new(ErrorKind::Misconfigured, format!("{header}: {}", config::NOT_A_VALUE))
}

/// The first bytes of a body, as many as are there and wanted. A short body is read to its end.
async fn read_start(mut body: Incoming) -> Bytes {
    let mut start = BytesMut::new();
    while start.len() < answers::MAX_REASON
        && let Some(Ok(frame)) = body.frame().await
    {
        if let Some(data) = frame.data_ref() {
            start.extend_from_slice(data);
        }
    }
    start.freeze()
}

/// Asks the receiver: until it answers, and whenever a publish makes that doubtful.
async fn watch(shared: Arc<Shared>) {
    loop {
        let asked = Instant::now();
        match shared.ask().await {
            Ok(_) => {
                shared.health.up();
                while !shared.health.probe_requested(WAIT).await {}
                tokio::time::sleep_until(asked + PROBE_EVERY).await;
            }
            Err(reason) => {
                shared.down(reason);
                let asked_for = shared.pause().map_or(Duration::ZERO, |(left, _)| left);
                tokio::time::sleep(asked_for.max(jittered(PROBE_EVERY))).await;
            }
        }
    }
}

impl OutputSettings for HttpSettings {
    fn start(self: Box<Self>, metrics: &Metrics) -> Result<Arc<dyn Output>, FieldError> {
        let key = format!("outputs.{}.url", self.name);
        match Http::start(*self, metrics) {
            Ok(http) => Ok(Arc::new(http)),
            Err(error) => Err(FieldError { key, message: error.to_string() }),
        }
    }

    fn examine<'a>(&'a self, _: &'a Needs, findings: &'a Findings) -> BoxFuture<'a, ()> {
        Box::pin(examine::examine(self, findings))
    }

    fn render<'r>(&self, record: &'r Record) -> Rendered<'r> {
        let mode = record.mode.unwrap_or(self.mode);
        Rendered {
            mode,
            key: None,
            headers: binding::headers(&record.event, mode),
            payload: binding::payload(&record.event, mode),
        }
    }

    fn bus(&self) -> Option<Bus> {
        Some(HttpSettings::bus(self))
    }
}

impl Output for Http {
    fn name(&self) -> &str {
        &self.shared.settings.name
    }

    fn publish<'a>(&'a self, record: &'a Record, deadline: Instant) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(self.shared.publish(record, deadline))
    }

    fn health(&self) -> &Health {
        &self.shared.health
    }
}
