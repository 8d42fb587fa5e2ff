//! A client for HTTP and HTTPS. Connections are kept alive, TLS trusts the certificate authorities of the system, and
//! the size of an answer is bounded.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// How long opening a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer that is read: 16 messages of a queue, each with 64 KiB in which every character is escaped.
const MAX_ANSWER: usize = 8 << 20;

/// The client. Its clones share connections.
#[derive(Clone, Debug)]
pub struct HttpClient(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The system has no certificates of authorities. HTTPS needs them.
    #[error("the system has no certificates of authorities: {0}")]
    NoAuthorities(std::io::Error),
    /// No connection, or it ended before the head of the answer arrived.
    #[error("{0}")]
    NoAnswer(String),
    /// No complete answer within the time.
    #[error("no answer in time")]
    TimedOut,
    /// The answer ended early or is too large.
    #[error("the answer could not be read: {0}")]
    Unreadable(Box<dyn std::error::Error + Send + Sync>),
}

impl HttpClient {
    /// Creates a client that has no connection yet.
    ///
    /// # Errors
    /// [`HttpError::NoAuthorities`].
    pub fn new() -> Result<HttpClient, HttpError> {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(HttpError::NoAuthorities)?
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        Ok(HttpClient(Client::builder(TokioExecutor::new()).build(connector)))
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
    /// # Errors
    /// [`HttpError::NoAnswer`].
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, HttpError> {
        self.0.request(request).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            HttpError::NoAnswer(format!("{error}{cause}"))
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
