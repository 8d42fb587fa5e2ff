//! A client for HTTP and HTTPS: connections kept alive, TLS with the authorities that the system trusts, no answer
//! larger than a bound. Errors are phrases.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer that is read: 16 messages of a queue, of 64 KiB each, whose every character is escaped.
const MAX_ANSWER: usize = 8 << 20;

/// The client; its copies share connections.
#[derive(Clone, Debug)]
pub struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Http {
    /// Makes a client, which has no connection yet.
    ///
    /// # Errors
    /// When the system has no authorities to trust, which HTTPS needs.
    pub fn new() -> Result<Http, String> {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|error| format!("no authorities to trust: {error}"))?
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        Ok(Http(Client::builder(TokioExecutor::new()).build(connector)))
    }

    /// Sends a request; the answer's head has come when this returns. Sets no time: the caller drops it.
    ///
    /// # Errors
    /// What went wrong on the way.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        self.0.request(request).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{error}{cause}")
        })
    }

    /// Reads the rest of an answer.
    ///
    /// # Errors
    /// When it breaks off, or is too large.
    pub async fn read(answer: Response<Incoming>) -> Result<Response<Bytes>, String> {
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|error| format!("the answer broke off: {error}"))?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}
