//! The admin listener. It is separate from the listener for callbacks, and cannot be reached through it.
//!
//! * `GET /metrics`: the metrics, for Prometheus.
//! * `GET /healthz`: 200 while the process answers.
//! * `GET /readyz`: 200 when events can be accepted and the service is not stopping: every output is connected, or the
//!   spool has room for events that cannot be published, and no input is misconfigured. Otherwise 503 with the reasons.
//! * `GET /events`: what passes through the bridge, as server-sent events ([`feed`](crate::bridge::feed)), for those who may
//!   read it (`access`). The query is a condition for events, and says whether the state of the bridge is sent too. At
//!   most [`MAX_LISTENERS`] streams are open, which leaves most connections to probes and scrapers.
//! * `GET /`: the page (`page`), for those who may read the stream, which it shows.
//!
//! A new connection always gets a place: when all are taken, the one that has been idle longest is closed. So nobody who
//! holds connections can keep probes out. The listener has a thread of its own, so that it also answers while the others
//! are busy with callbacks.

mod access;
mod page;
mod stream;

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, oneshot};
use tokio_util::sync::CancellationToken;

pub use access::Page;
pub use stream::SIGN_OF_LIFE;

use crate::bridge::feed::{MAX_LISTENERS, NoSeat};
use crate::bridge::{Bridge, Readiness};
use crate::common::address::reachable;
use crate::common::server::{self, Bounds, Connection, Loss, Serve, has_valid_host};
use crate::input::Misconfigured;
use crate::route::{Condition, ConditionConfig};

/// Connections at once: a few scrapers and probes, and event streams.
const MAX_CONNECTIONS: usize = 64;

/// The longest time for the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The name of the listener in metrics and logs.
const NAME: &str = "admin";

/// The path of the metrics.
const METRICS: &str = "/metrics";

/// The path of the event stream.
pub const EVENTS: &str = "/events";

/// The parameter that asks for the state of the bridge in the event stream.
const WITH_STATE: &str = "state=true";

/// The media type of server-sent events.
pub const EVENT_STREAM: &str = "text/event-stream";

/// The seconds after which somebody who found no place for a stream may ask again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("5");

/// Settings of the admin listener.
#[derive(Clone, Debug)]
pub struct AdminSettings {
    /// Addresses, of which one is bound.
    pub listen: Vec<SocketAddr>,
    /// Who may see the page and read the event stream.
    pub page: Page,
    /// Whether the event stream has payloads.
    pub show_payloads: bool,
}

/// Who may see the page and read the event stream at present. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct CurrentPage(Arc<RwLock<Page>>);

impl CurrentPage {
    /// Who may at present.
    pub fn get(&self) -> Page {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets it. Returns whether it was another one.
    pub fn set(&self, page: Page) -> bool {
        std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), page) != page
    }
}

/// The admin listener, bound and ready to run.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    page: CurrentPage,
    bridge: Arc<Bridge>,
    misconfigured: Misconfigured,
}

impl Admin {
    /// Binds the address.
    ///
    /// # Errors
    /// Why the system cannot bind the address.
    pub fn bind(settings: &AdminSettings, bridge: Arc<Bridge>, misconfigured: Misconfigured) -> std::io::Result<Admin> {
        let listener = server::bind(&settings.listen)?;
        let address = listener.local_addr()?;
        let page = CurrentPage::default();
        page.set(settings.page);
        bridge.feed().show_payloads(settings.show_payloads);
        Ok(Admin { listener, address, page, bridge, misconfigured })
    }

    /// What changes who may see the page and read the event stream.
    pub fn page(&self) -> &CurrentPage {
        &self.page
    }

    /// The address it is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the page for a browser on this machine; none if the page is switched off.
    pub fn page_address(&self) -> Option<String> {
        let is_on = self.page.get() != Page::Off;
        is_on.then(|| format!("http://{}/", reachable(&self.address.to_string())))
    }

    /// Serves until `closed`, on a thread of its own. After `not_ready`, `/readyz` answers with 503.
    pub async fn run(self, not_ready: CancellationToken, closed: CancellationToken) {
        let (ended, end) = oneshot::channel();
        let thread = std::thread::Builder::new().name(NAME.to_owned()).spawn(move || {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(self.serve(not_ready, closed)),
                Err(error) => tracing::error!(%error, "metrics and probes are not served: no runtime"),
            }
            let _ = ended.send(());
        });
        match thread {
            Ok(_) => drop(end.await),
            Err(error) => tracing::error!(%error, "metrics and probes are not served: no thread"),
        }
    }

    async fn serve(self, not_ready: CancellationToken, closed: CancellationToken) {
        let Admin { listener, page, bridge, misconfigured, .. } = self;
        for loss in Loss::ALL {
            bridge.metrics().connections_lost_total.with_label_values(&[NAME, loss.as_str()]);
        }
        let bounds = Bounds {
            max_connections: MAX_CONNECTIONS,
            max_per_address: None,
            header_timeout: HEADER_TIMEOUT,
            spared_descriptors: 0,
        };
        // It was bound by another runtime.
        let listener = match listener.into_std().and_then(TcpListener::from_std) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "metrics and probes are not served"),
        };
        let health = Health { bridge, misconfigured, not_ready };
        let service = Arc::new(Service { page, health, closed: closed.clone(), writes_metrics: Mutex::default() });
        // Probes are answered until the end.
        server::serve(listener, || None, service, bounds, CancellationToken::new(), closed).await;
    }
}

struct Service {
    page: CurrentPage,
    health: Health,
    closed: CancellationToken,
    /// Held by the request whose metrics are written.
    writes_metrics: Mutex<()>,
}

/// The bridge, and whether it is ready.
#[derive(Clone)]
struct Health {
    bridge: Arc<Bridge>,
    misconfigured: Misconfigured,
    not_ready: CancellationToken,
}

impl Health {
    fn readiness(&self) -> Readiness {
        let misconfigured = self.misconfigured.reasons();
        let disconnected = self.bridge.disconnected().join(", ");
        let (is_ready, words) = if self.not_ready.is_cancelled() {
            (false, "stopping".to_owned())
        } else if !misconfigured.is_empty() {
            let names: Vec<&str> = misconfigured.keys().map(String::as_str).collect();
            (false, format!("misconfigured inputs: {}; see the log", names.join(", ")))
        } else if disconnected.is_empty() {
            (true, "ready".to_owned())
        } else if self.bridge.can_spool() {
            (true, format!("ready; spooling for outputs not connected: {disconnected}"))
        } else {
            (false, format!("outputs not connected: {disconnected}"))
        };
        Readiness { is_ready, words, misconfigured }
    }
}

impl Serve for Service {
    fn name(&self) -> &str {
        NAME
    }

    async fn answer(&self, request: Request<Incoming>, connection: &Connection) -> Response<Full<Bytes>> {
        if !has_valid_host(request.headers(), request.version()) {
            return text(StatusCode::BAD_REQUEST, "expected one `host` header\n");
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "expected GET\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return response;
        }
        let path = request.uri().path();
        // Of many requests that somebody sends at once, one is answered after each turn of the other connections. Metrics
        // take long, so that only one connection gets them in a turn.
        let _turn = if path == METRICS { Some(self.writes_metrics.lock().await) } else { None };
        tokio::task::yield_now().await;
        match path {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => self.readiness(),
            METRICS => self.metrics(),
            EVENTS => self.events(&request, connection).unwrap_or_else(|(status, why)| {
                let mut response = text(status, format!("{why}\n"));
                if status == StatusCode::SERVICE_UNAVAILABLE {
                    response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
                }
                response
            }),
            "/" => self.page(&request, connection),
            _ => text(StatusCode::NOT_FOUND, "expected /, /metrics, /healthz, /readyz or /events\n"),
        }
    }

    /// Anybody may ask here, so that no connection is better than another one.
    fn is_accepted(&self, _: &Response<Full<Bytes>>) -> bool {
        false
    }

    fn lost(&self, loss: Loss) -> String {
        self.health.bridge.metrics().connections_lost_total.with_label_values(&[NAME, loss.as_str()]).inc();
        match loss {
            Loss::HeadLate => "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            _ => "",
        }
        .to_owned()
    }

    fn count(&self, connections: usize) {
        let connections = i64::try_from(connections).unwrap_or(i64::MAX);
        self.health.bridge.metrics().connections.with_label_values(&[NAME]).set(connections);
    }
}

impl Service {
    fn readiness(&self) -> Response<Full<Bytes>> {
        let Readiness { is_ready, words, .. } = self.health.readiness();
        let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        text(status, format!("{words}\n"))
    }

    fn page(&self, request: &Request<Incoming>, connection: &Connection) -> Response<Full<Bytes>> {
        match access::check(self.page.get(), connection.peer(), connection.local(), request) {
            Ok(()) => page::response()
                .unwrap_or_else(|| text(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be written\n")),
            Err(why) => text(StatusCode::FORBIDDEN, format!("{why}\n")),
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        match self.health.bridge.metrics_text() {
            Ok(metrics) => {
                let mut response = text(StatusCode::OK, metrics);
                let exposition = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, exposition);
                response
            }
            Err(error) => {
                tracing::warn!(%error, "the metrics could not be encoded");
                text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be encoded\n")
            }
        }
    }

    /// Begins an event stream.
    ///
    /// # Errors
    /// Status and sentence for somebody who gets none.
    fn events(
        &self,
        request: &Request<Incoming>,
        connection: &Connection,
    ) -> Result<Response<Full<Bytes>>, (StatusCode, String)> {
        let check = || {
            let checked = access::check(self.page.get(), connection.peer(), connection.local(), request);
            checked.map_err(|why| (StatusCode::FORBIDDEN, why.to_owned()))
        };
        check()?;
        let type_prefix = self.health.bridge.type_prefix();
        let (shows_state, query) = shows_state(request.uri().query().unwrap_or_default());
        let condition = ConditionConfig::from_query(&query)
            .and_then(|config| Condition::compile(&config, &type_prefix))
            .map_err(|why| (StatusCode::BAD_REQUEST, why))?;
        if request.method() == Method::GET {
            let listener = self.health.bridge.feed().listen(condition, shows_state).map_err(|NoSeat| {
                let why = "event streams are open, which is the most; end one of them, for example another page or \
                           `tail`";
                (StatusCode::SERVICE_UNAVAILABLE, format!("{MAX_LISTENERS} {why}"))
            })?;
            // A reload may have changed who may read it, or the prefix, just before there was a listener to be ended by it.
            check()?;
            if self.health.bridge.type_prefix() != type_prefix {
                let why = "the configuration was reloaded at this moment; ask again";
                return Err((StatusCode::SERVICE_UNAVAILABLE, why.to_owned()));
            }
            let health = shows_state.then(|| self.health.clone());
            connection.stream(stream::pieces(listener, health, type_prefix, self.closed.clone()));
        }
        let mut response = text(StatusCode::OK, "");
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
        page::protect(headers);
        Ok(response)
    }
}

/// Whether a query asks for the state of the bridge, and the rest of it, which is a condition. No attribute has the
/// name of the parameter.
fn shows_state(query: &str) -> (bool, String) {
    let (asks, rest): (Vec<&str>, Vec<&str>) = query.split('&').partition(|parameter| *parameter == WITH_STATE);
    (!asks.is_empty(), rest.join("&"))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
