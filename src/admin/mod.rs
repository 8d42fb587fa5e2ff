//! The admin listener, apart from the one for callbacks and never reachable through it.
//!
//! * `GET /metrics`: the metrics, for Prometheus.
//! * `GET /healthz`: 200 while the process answers.
//! * `GET /readyz`: 200 when events can be taken and the service isn't stopping: every output has connected and is not
//!   known to be down, or the spool takes what they don't, and no input is set up wrongly; 503 with the reasons otherwise.

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

/// Connections at once: a few scrapers and probes.
const MAX_CONNECTIONS: usize = 64;

/// The admin listener, bound and ready to run.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    bridge: Arc<Bridge>,
}

impl Admin {
    /// Binds the address.
    ///
    /// # Errors
    /// The system's word on why the address can't be had.
    pub async fn bind(listen: &[SocketAddr], bridge: Arc<Bridge>) -> std::io::Result<Admin> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        Ok(Admin { listener, address, bridge })
    }

    /// The address it is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `closed`; from `not_ready` on `/readyz` says no.
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
            let (bridge, not_ready) = (self.bridge.clone(), not_ready.clone());
            tokio::spawn(async move {
                let _permit = permit;
                let answer = service_fn(|request: Request<Incoming>| {
                    let response = answer(&request, &bridge, not_ready.is_cancelled());
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection =
                    http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), answer);
                let _ = connection.await;
            });
        }
    }
}

fn answer(request: &Request<Incoming>, bridge: &Bridge, stopping: bool) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" if stopping => text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
        "/readyz" if !bridge.troubled().is_empty() => {
            let inputs = bridge.troubled().join(", ");
            text(StatusCode::SERVICE_UNAVAILABLE, format!("inputs that somebody must mend: {inputs}; see the log\n"))
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
                tracing::warn!(%error, "metrics can't be written");
                text(StatusCode::INTERNAL_SERVER_ERROR, "metrics can't be written\n")
            }
        },
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
