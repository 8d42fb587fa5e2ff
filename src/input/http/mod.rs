//! Callbacks by HTTP POST.
//!
//! A request is accepted when its path is that of an endpoint, its signature is valid ([`signature`]), its body is not
//! too large, and there is room. From then on a sender that hangs up cancels nothing. The bounds of connections are those
//! of [`server`]. The answer is 200 with an empty
//! body when the callback is stored or published, else a problem document ([`problem`]). Alibaba counts only 200 as
//! success and repeats everything else twice, one second apart.
//!
//! # Layout
//!
//! - `config`: settings and their checks
//! - `examine`: what `doctor` checks
//! - `request`: one request to its answer
//! - [`signature`], [`problem`], `tls`

mod config;
mod examine;
pub mod problem;
mod request;
pub mod signature;
mod tls;

use std::any::Any;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::future::BoxFuture;
use hyper::StatusCode;
use schemars::JsonSchema;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use config::{Endpoint, HttpSettings, RELOADABLE, Reloadable};
pub use config::{EndpointConfig, HttpConfig};
use problem::Problem;
use request::Service;
pub use tls::TlsFiles;

use super::{ConnectionBounds, Input, InputError, InputHandle, InputKind, InputReload, InputSettings};
use crate::bridge::Sender;
use crate::common::descriptors;
use crate::common::findings::Findings;
use crate::common::kind::KindKeys;
use crate::common::server::{self, Bounds, Loss};
use crate::common::tls::Tls;
use crate::common::validation::FieldError;
use crate::telemetry::metrics::Metrics;

/// The kind.
pub(super) const KIND: InputKind = InputKind {
    name: "http",
    keys: KindKeys { listeners: &["listen"], secrets: &["endpoints[].keys[]"], ..KindKeys::NONE },
    reloadable: RELOADABLE,
    read: super::read::<HttpConfig>,
    schema: <HttpConfig as JsonSchema>::json_schema,
};

/// The reloadable settings that are in use.
#[derive(Debug)]
struct Current {
    endpoints: RwLock<Arc<Vec<Endpoint>>>,
    max_body: AtomicUsize,
    max_in_flight: AtomicUsize,
    /// Requests whose bodies have arrived and that wait for their answers.
    in_flight: AtomicUsize,
    /// Whether the bound address is reachable only from this machine.
    is_local: bool,
}

impl Current {
    fn new(settings: Reloadable, is_local: bool) -> Current {
        Current {
            endpoints: RwLock::new(Arc::new(settings.endpoints)),
            max_body: AtomicUsize::new(settings.max_body.as_usize()),
            max_in_flight: AtomicUsize::new(settings.max_in_flight),
            in_flight: AtomicUsize::new(0),
            is_local,
        }
    }

    fn endpoints(&self) -> Arc<Vec<Endpoint>> {
        self.endpoints.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn max_body(&self) -> usize {
        self.max_body.load(Ordering::Relaxed)
    }

    /// A place among the requests in flight, if there is one. A full input waits for nothing, so that a count is enough.
    fn enter(self: &Arc<Current>) -> Option<Place> {
        let present = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.clone());
        (present < self.max_in_flight.load(Ordering::Relaxed)).then_some(place)
    }
}

/// The place of a request in flight. Dropping it gives it back.
#[derive(Debug)]
struct Place(Arc<Current>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl InputReload for Current {
    /// The address stays as it is, whatever the new settings say. So keys are needed if it can be reached from outside.
    fn check(&self, settings: &dyn InputSettings) -> Result<(), FieldError> {
        let settings: &dyn Any = settings;
        let Some(settings) = settings.downcast_ref::<HttpSettings>() else { return Ok(()) };
        let is_open = |endpoint: &Endpoint| endpoint.verifier.keys.is_empty() && !endpoint.verifier.allow_unsigned;
        match settings.reloadable.endpoints.iter().position(is_open) {
            Some(index) if !self.is_local => Err(FieldError {
                key: format!("inputs.{}.endpoints[{index}].keys", settings.name),
                message: "the running input is reachable from other machines: set keys, or allow_unsigned = true, or \
                          restart"
                    .to_owned(),
            }),
            _ => Ok(()),
        }
    }

    fn apply(&self, settings: Box<dyn InputSettings>, metrics: &Metrics) {
        let Ok(settings) = (settings as Box<dyn Any>).downcast::<HttpSettings>() else { return };
        let Reloadable { endpoints, max_body, max_in_flight } = settings.reloadable;
        init_series(&endpoints, metrics);
        *self.endpoints.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(endpoints);
        self.max_body.store(max_body.as_usize(), Ordering::Relaxed);
        self.max_in_flight.store(max_in_flight, Ordering::Relaxed);
    }
}

/// Creates the series of endpoints, so that they exist before the first request.
fn init_series(endpoints: &[Endpoint], metrics: &Metrics) {
    for problem in Problem::ALL.iter().filter(|problem| problem.status() == StatusCode::UNAUTHORIZED) {
        for endpoint in endpoints {
            metrics.unauthorized_total.with_label_values(&[endpoint.path.as_str(), &problem.label()]);
        }
    }
}

/// An HTTP input that is bound to its address and ready to run.
#[derive(Debug)]
struct HttpInput {
    bounds: Bounds,
    body_timeout: std::time::Duration,
    tls: Option<Arc<Tls<TlsFiles>>>,
    current: Arc<Current>,
    listener: TcpListener,
    address: SocketAddr,
}

impl HttpInput {
    fn bind(settings: HttpSettings) -> std::io::Result<HttpInput> {
        let listener = server::bind(&settings.listen)?;
        let address = listener.local_addr()?;
        Ok(HttpInput {
            bounds: Bounds {
                max_connections: settings.max_connections,
                max_per_address: settings.max_connections_per_address,
                header_timeout: settings.header_timeout,
                spared_descriptors: descriptors::FOR_OTHERS,
            },
            body_timeout: settings.body_timeout,
            tls: settings.tls,
            current: Arc::new(Current::new(settings.reloadable, address.ip().is_loopback())),
            listener,
            address,
        })
    }
}

impl InputSettings for HttpSettings {
    fn senders(&self) -> Vec<(&str, &Sender)> {
        self.reloadable.endpoints.iter().map(|endpoint| (endpoint.path.as_str(), &*endpoint.sender)).collect()
    }

    fn listen(&self) -> &[SocketAddr] {
        &self.listen
    }

    fn bounds(&self) -> ConnectionBounds {
        let memory = if self.tls.is_some() { server::TLS_CONNECTION_MEMORY } else { server::CONNECTION_MEMORY };
        ConnectionBounds {
            connections: self.max_connections,
            memory: memory.saturating_mul(self.max_connections as u64),
            max_body: self.reloadable.max_body.0,
        }
    }

    fn examine<'a>(&'a self, findings: &'a Findings) -> BoxFuture<'a, ()> {
        Box::pin(examine::examine(self, findings))
    }

    fn open(self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Input>, FieldError>> {
        Box::pin(async move {
            let key = format!("inputs.{}.listen", self.name);
            let addresses = self.listen.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ");
            match HttpInput::bind(*self) {
                Ok(input) => Ok(Box::new(input) as Box<dyn Input>),
                Err(error) => Err(FieldError { key, message: format!("{addresses} cannot be bound: {error}") }),
            }
        })
    }
}

impl Input for HttpInput {
    fn origin(&self) -> String {
        self.address.to_string()
    }

    fn address(&self) -> Option<SocketAddr> {
        Some(self.address)
    }

    fn reload(&self) -> Option<Arc<dyn InputReload>> {
        Some(self.current.clone())
    }

    /// From "not accepting" on, requests get 503 and their connections are closed; requests in flight are finished.
    fn run(self: Box<Self>, handle: InputHandle) -> BoxFuture<'static, Result<(), InputError>> {
        Box::pin(async move {
            init_series(&self.current.endpoints(), handle.metrics());
            for problem in Problem::ALL.iter().filter(|problem| **problem != Problem::Refused) {
                handle.metrics().not_accepted_total.with_label_values(&[handle.name(), &problem.label()]);
            }
            for loss in Loss::ALL {
                handle.metrics().connections_lost_total.with_label_values(&[handle.name(), loss.as_str()]);
            }
            let (stopping, closed) = (handle.not_accepting().clone(), handle.closed().clone());
            let service = Arc::new(Service {
                handle: Arc::new(handle),
                current: self.current,
                header_timeout: self.bounds.header_timeout,
                body_timeout: self.body_timeout,
            });
            let acceptor = || self.tls.as_ref().map(|tls| TlsAcceptor::from(tls.config()));
            server::serve(self.listener, acceptor, service, self.bounds, stopping, closed).await;
            Ok(())
        })
    }
}
