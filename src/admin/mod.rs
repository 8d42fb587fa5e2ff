//! The admin listener. It is separate from the listener for callbacks, and cannot be reached through it.
//!
//! * `GET /metrics`: the metrics, for Prometheus.
//! * `GET /healthz`: 200 while the process answers.
//! * `GET /readyz`: 200 when events can be accepted and the service is not stopping: every output is connected, or the
//!   spool has room for events that cannot be published, and no input is misconfigured. Otherwise 503 with the reasons.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::bridge::Bridge;
use crate::input::Misconfigured;

/// Connections at once: a few scrapers and probes.
const MAX_CONNECTIONS: usize = 64;

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
    pub async fn bind(
        listen: &[SocketAddr],
        bridge: Arc<Bridge>,
        misconfigured: Misconfigured,
    ) -> std::io::Result<Admin> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        Ok(Admin { listener, address, bridge, misconfigured })
    }

    /// The address it is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `closed`. After `not_ready`, `/readyz` answers with 503.
    pub async fn run(self, not_ready: CancellationToken, closed: CancellationToken) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let permit = tokio::select! {
                () = closed.cancelled() => return,
                permit = room.clone().acquire_owned() => permit,
            };
            let accepted = tokio::select! {
                () = closed.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            };
            let (bridge, misconfigured) = (self.bridge.clone(), self.misconfigured.clone());
            let not_ready = not_ready.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let answer = service_fn(|request: Request<Incoming>| {
                    let response = answer(&request, &bridge, &misconfigured.names(), not_ready.is_cancelled());
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection =
                    http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), answer);
                let _ = connection.await;
            });
        }
    }
}

fn answer(
    request: &Request<Incoming>,
    bridge: &Bridge,
    misconfigured: &[String],
    stopping: bool,
) -> Response<Full<Bytes>> {
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
