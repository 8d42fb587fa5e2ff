//! The admin listener. It is separate from the listener for callbacks, and cannot be reached through it.
//!
//! * `GET /metrics`: the metrics, for Prometheus.
//! * `GET /healthz`: 200 while the process answers.
//! * `GET /readyz`: 200 when events can be accepted and the service is not stopping: every output is connected, or the
//!   spool has room for events that cannot be published, and no input is misconfigured. Otherwise 503 with the reasons.
//!
//! A new connection always gets a place: when all are taken, the one that has been idle longest is closed. So nobody who
//! holds connections can keep probes out. The listener has a thread of its own, so that it also answers while the others
//! are busy with callbacks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::bridge::Bridge;
use crate::common::server::{self, Bounds, Connection, Loss, Serve, has_valid_host};
use crate::input::Misconfigured;

/// Connections at once: a few scrapers and probes.
const MAX_CONNECTIONS: usize = 64;

/// The longest time for the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The name of the listener in metrics and logs.
const NAME: &str = "admin";

/// The admin listener, bound and ready to run.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    bridge: Arc<Bridge>,
    misconfigured: Misconfigured,
}

impl Admin {
    /// Binds the address.
    ///
    /// # Errors
    /// Why the system cannot bind the address.
    pub fn bind(listen: &[SocketAddr], bridge: Arc<Bridge>, misconfigured: Misconfigured) -> std::io::Result<Admin> {
        let listener = server::bind(listen)?;
        let address = listener.local_addr()?;
        Ok(Admin { listener, address, bridge, misconfigured })
    }

    /// The address it is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
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
        let Admin { listener, bridge, misconfigured, .. } = self;
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
        let service = Arc::new(Service { bridge, misconfigured, not_ready });
        // Probes are answered until the end.
        server::serve(listener, || None, service, bounds, CancellationToken::new(), closed).await;
    }
}

struct Service {
    bridge: Arc<Bridge>,
    misconfigured: Misconfigured,
    not_ready: CancellationToken,
}

impl Serve for Service {
    fn name(&self) -> &str {
        NAME
    }

    async fn answer(&self, request: Request<Incoming>, _: &Connection) -> Response<Full<Bytes>> {
        answer(&request, &self.bridge, &self.misconfigured.names(), self.not_ready.is_cancelled())
    }

    /// Anybody may ask here, so that no connection is better than another one.
    fn is_accepted(&self, _: &Response<Full<Bytes>>) -> bool {
        false
    }

    fn lost(&self, loss: Loss) -> String {
        self.bridge.metrics().connections_lost_total.with_label_values(&[NAME, loss.as_str()]).inc();
        match loss {
            Loss::HeadLate => "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            _ => "",
        }
        .to_owned()
    }

    fn count(&self, connections: usize) {
        let connections = i64::try_from(connections).unwrap_or(i64::MAX);
        self.bridge.metrics().connections.with_label_values(&[NAME]).set(connections);
    }
}

fn answer(
    request: &Request<Incoming>,
    bridge: &Bridge,
    misconfigured: &[String],
    stopping: bool,
) -> Response<Full<Bytes>> {
    if !has_valid_host(request) {
        return text(StatusCode::BAD_REQUEST, "expected one `host` header\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "expected GET\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" if stopping => text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
        "/readyz" if !misconfigured.is_empty() => {
            let inputs = misconfigured.join(", ");
            text(StatusCode::SERVICE_UNAVAILABLE, format!("misconfigured inputs: {inputs}; see the log\n"))
        }
        "/readyz" => match bridge.disconnected().as_slice() {
            [] => text(StatusCode::OK, "ready\n"),
            outputs if bridge.can_spool() => {
                text(StatusCode::OK, format!("ready; spooling for outputs not connected: {}\n", outputs.join(", ")))
            }
            outputs => {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("outputs not connected: {}\n", outputs.join(", ")))
            }
        },
        "/metrics" => match bridge.metrics_text() {
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
        },
        _ => text(StatusCode::NOT_FOUND, "expected /metrics, /healthz or /readyz\n"),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
