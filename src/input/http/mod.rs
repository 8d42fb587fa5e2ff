//! Callbacks by HTTP POST.
//!
//! A request is accepted when its path is that of an endpoint, its signature is valid ([`signature`]), its body is not
//! too large, and there is room. From then on a sender that hangs up cancels nothing. The answer is 200 with an empty
//! body when the callback is stored or published, else a problem document ([`problem`]). Alibaba counts only 200 as
//! success and repeats everything else twice, one second apart.
//!
//! # Layout
//!
//! - `config`: settings and their checks
//! - `connection`: accepts connections and bounds them
//! - `request`: one request to its answer
//! - [`signature`], [`problem`], `tls`

mod config;
mod connection;
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
use tokio::sync::Semaphore;

use config::{Endpoint, HttpSettings, RELOADABLE, Reloadable};
pub use config::{EndpointConfig, HttpConfig};
use problem::Problem;
use request::Service;
pub use tls::TlsFiles;

use super::{Input, InputHandle, InputKind, InputReload, InputSettings};
use crate::bridge::Sender;
use crate::common::kind::KindKeys;
use crate::common::limit::Limit;
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
    room: Limit,
}

impl Current {
    fn new(settings: Reloadable) -> Current {
        Current {
            endpoints: RwLock::new(Arc::new(settings.endpoints)),
            max_body: AtomicUsize::new(settings.max_body.as_usize()),
            room: Limit::new(settings.max_in_flight),
        }
    }

    fn endpoints(&self) -> Arc<Vec<Endpoint>> {
        self.endpoints.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn max_body(&self) -> usize {
        self.max_body.load(Ordering::Relaxed)
    }

    fn room(&self) -> Arc<Semaphore> {
        self.room.semaphore().clone()
    }
}

impl InputReload for Current {
    fn apply(&self, settings: Box<dyn InputSettings>, metrics: &Metrics) {
        let Ok(settings) = (settings as Box<dyn Any>).downcast::<HttpSettings>() else { return };
        let Reloadable { endpoints, max_body, max_in_flight } = settings.reloadable;
        init_series(&endpoints, metrics);
        *self.endpoints.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(endpoints);
        self.max_body.store(max_body.as_usize(), Ordering::Relaxed);
        self.room.resize(max_in_flight);
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
    limits: connection::Limits,
    body_timeout: std::time::Duration,
    tls: Option<Arc<tls::Tls>>,
    current: Arc<Current>,
    listener: TcpListener,
    address: SocketAddr,
}

impl HttpInput {
    async fn bind(settings: HttpSettings) -> std::io::Result<HttpInput> {
        let listener = TcpListener::bind(settings.listen.as_slice()).await?;
        let address = listener.local_addr()?;
        Ok(HttpInput {
            limits: connection::Limits {
                max_connections: settings.max_connections,
                header_timeout: settings.header_timeout,
            },
            body_timeout: settings.body_timeout,
            tls: settings.tls,
            current: Arc::new(Current::new(settings.reloadable)),
            listener,
            address,
        })
    }
}

impl InputSettings for HttpSettings {
    fn senders(&self) -> Vec<(&str, &Sender)> {
        self.reloadable.endpoints.iter().map(|endpoint| (endpoint.path.as_str(), &*endpoint.sender)).collect()
    }

    fn open(self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Input>, FieldError>> {
        Box::pin(async move {
            let key = format!("inputs.{}.listen", self.name);
            let addresses = self.listen.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ");
            match HttpInput::bind(*self).await {
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
    fn run(self: Box<Self>, handle: InputHandle) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async move {
            init_series(&self.current.endpoints(), handle.metrics());
            for problem in Problem::ALL.iter().filter(|problem| **problem != Problem::Refused) {
                handle.metrics().not_accepted_total.with_label_values(&[&**handle.name(), &problem.label()]);
            }
            let service = Arc::new(Service { handle, current: self.current, body_timeout: self.body_timeout });
            connection::serve(self.listener, self.tls, service, self.limits).await;
            Ok(())
        })
    }
}
