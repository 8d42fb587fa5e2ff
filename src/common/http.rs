//! A client for HTTP and HTTPS: connections are kept alive, TLS trusts the authorities of the system or those that the
//! caller names, and the size of an answer is bounded.

use std::error::Error;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::http::uri::Scheme;
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio_rustls::rustls::ClientConfig;

use super::tls::{self, TlsError};

/// How long opening a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection without a request is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// Largest answer that is read: 16 messages of a queue, of 64 KiB each, whose every character is escaped.
const MAX_ANSWER: usize = 8 << 20;

type Connections = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// The client. Its clones share connections.
#[derive(Clone, Debug)]
pub struct HttpClient {
    connections: Connections,
    /// Those for HTTPS, if they trust the authorities of the system. The first request over HTTPS reads the authorities,
    /// so that HTTP works where there are none.
    trusting_system: Option<Arc<OnceLock<Connections>>>,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// HTTPS cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No connection.
    #[error("{0}")]
    NotConnected(String),
    /// The connection ended before the head of the answer arrived.
    #[error("{0}")]
    NoAnswer(String),
    /// No complete answer within the time.
    #[error("no answer in time")]
    TimedOut,
    /// The answer ended early or is too large.
    #[error("the answer could not be read: {0}")]
    Unreadable(Box<dyn Error + Send + Sync>),
}

impl HttpClient {
    /// Creates a client that trusts the authorities of the system. It has no connection yet.
    ///
    /// # Errors
    /// [`HttpError::Tls`].
    pub fn new() -> Result<HttpClient, HttpError> {
        let connections = connections(tls::trusting_nobody()?, IDLE_TIMEOUT);
        Ok(HttpClient { connections, trusting_system: Some(Arc::default()) })
    }

    /// Creates a client with TLS settings of its own. It closes a connection that had no request for so long. It has no
    /// connection yet.
    pub fn with(tls: ClientConfig, idle_timeout: Duration) -> HttpClient {
        HttpClient { connections: connections(tls, idle_timeout), trusting_system: None }
    }

    /// Whether HTTPS can be used.
    ///
    /// # Errors
    /// [`HttpError::Tls`] if the system has no authorities.
    pub fn check_https(&self) -> Result<(), HttpError> {
        self.secure_connections().map(drop)
    }

    fn secure_connections(&self) -> Result<&Connections, HttpError> {
        let Some(secure) = &self.trusting_system else { return Ok(&self.connections) };
        if let Some(secure) = secure.get() {
            return Ok(secure);
        }
        let created = connections(tls::trusting_system()?, IDLE_TIMEOUT);
        Ok(secure.get_or_init(|| created))
    }

    /// Sends a request and reads the answer, both within the timeout. May be cancelled.
    ///
    /// # Errors
    /// Why there is no complete answer.
    pub async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Response<Bytes>, HttpError> {
        let exchange = async { HttpClient::read(self.send(request).await?).await };
        tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(HttpError::TimedOut))
    }

    /// Sends a request, and returns when the head of the answer has arrived. Has no time limit of its own; the caller
    /// may drop the future.
    ///
    /// A request that meets a kept connection which the server has closed is sent over another one, as long as nothing of
    /// it was written.
    ///
    /// # Errors
    /// [`HttpError::NotConnected`], [`HttpError::NoAnswer`], and [`HttpError::Tls`] for HTTPS without authorities.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, HttpError> {
        let is_secure = request.uri().scheme() == Some(&Scheme::HTTPS);
        let connections = if is_secure { self.secure_connections()? } else { &self.connections };
        connections.request(request).await.map_err(|error| {
            let words = causes(&error);
            if error.is_connect() { HttpError::NotConnected(words) } else { HttpError::NoAnswer(words) }
        })
    }

    /// Reads the rest of an answer.
    ///
    /// # Errors
    /// [`HttpError::Unreadable`].
    pub async fn read(answer: Response<Incoming>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(HttpError::Unreadable)?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}

/// Connections with these TLS settings, which are closed after so long without a request.
fn connections(tls: ClientConfig, idle_timeout: Duration) -> Connections {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_nodelay(true);
    connector.enforce_http(false);
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(connector);
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_idle_timeout(idle_timeout).pool_timer(TokioTimer::new());
    builder.build(connector)
}

/// What caused an error of the client, whose own words say nothing more.
fn causes(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    let mut words: Vec<String> = Vec::new();
    for cause in causes.map(ToString::to_string) {
        if words.last().is_none_or(|outer| !outer.ends_with(&cause)) {
            words.push(cause);
        }
    }
    if words.is_empty() { error.to_string() } else { words.join(": ") }
}
