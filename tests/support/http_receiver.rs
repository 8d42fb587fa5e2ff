//! A server that events are posted to. It keeps what it received and answers as the test says.
//!
//! Promises: a request is kept when all of it has arrived, before it is answered; a receiver that is stopped has no
//! connection left, and comes back on the same port.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_util::task::AbortOnDropHandle;

use super::certificates::Certificates;
use super::free_port;

/// The server.
#[derive(Debug)]
pub struct Receiver {
    port: u16,
    scheme: &'static str,
    shared: Arc<Shared>,
    running: Mutex<Option<AbortOnDropHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Requests that are being answered, and the most there ever were.
    active: AtomicUsize,
    most: AtomicUsize,
    connections: AtomicUsize,
}

#[derive(Debug)]
struct State {
    to_events: Reply,
    to_questions: Reply,
    events: Vec<Request>,
    questions: usize,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Path and query.
    pub target: String,
    /// The headers in order, their names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

impl Request {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// How requests are answered.
#[derive(Clone, Debug)]
pub enum Reply {
    /// With a status, headers and a body.
    Status(u16, Vec<(&'static str, String)>, &'static str),
    /// With a status, after some time.
    Late(u16, Duration),
    /// Not at all.
    Never,
    /// The first request of each connection with 200; at the second the connection ends.
    OncePerConnection,
}

impl Reply {
    /// Only a status.
    pub fn status(status: u16) -> Reply {
        Reply::Status(status, Vec::new(), "")
    }

    /// A status with `Retry-After`.
    pub fn retry_after(status: u16, value: impl ToString) -> Reply {
        Reply::Status(status, vec![("retry-after", value.to_string())], "")
    }
}

impl Receiver {
    /// Starts without TLS. Events are answered with 202, OPTIONS with 405.
    pub async fn start() -> Receiver {
        let receiver = Receiver {
            port: free_port(),
            scheme: "http",
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    to_events: Reply::status(202),
                    to_questions: Reply::status(405),
                    events: Vec::new(),
                    questions: 0,
                }),
                active: AtomicUsize::new(0),
                most: AtomicUsize::new(0),
                connections: AtomicUsize::new(0),
            }),
            running: Mutex::new(None),
        };
        receiver.restart().await;
        receiver
    }

    /// Starts with TLS, for clients that show a certificate of the same authority.
    pub async fn start_tls(certificates: &Certificates) -> Receiver {
        let mut receiver = Receiver::start().await;
        receiver.stop().await;
        receiver.scheme = "https";
        receiver.restart_tls(certificates).await;
        receiver
    }

    /// Its URL, with a path.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}/events?tenant=a", self.scheme, self.port)
    }

    /// Changes how events are answered.
    pub fn answer(&self, reply: Reply) {
        self.shared.state().to_events = reply;
    }

    /// Changes how OPTIONS is answered.
    pub fn answer_questions(&self, reply: Reply) {
        self.shared.state().to_questions = reply;
    }

    /// The events that were posted.
    pub fn events(&self) -> Vec<Request> {
        self.shared.state().events.clone()
    }

    /// How often OPTIONS was asked.
    pub fn questions(&self) -> usize {
        self.shared.state().questions
    }

    /// How many events were being answered at once, at most.
    pub fn most_at_once(&self) -> usize {
        self.shared.most.load(Ordering::Relaxed)
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Stops listening and ends all connections.
    pub async fn stop(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(running) = running {
            running.abort();
            let _ = running.await;
        }
    }

    /// Listens again, without TLS.
    pub async fn restart(&self) {
        self.run(None).await;
    }

    /// Listens again, with TLS.
    pub async fn restart_tls(&self, certificates: &Certificates) {
        self.run(Some(acceptor(certificates))).await;
    }

    async fn run(&self, tls: Option<TlsAcceptor>) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.expect("the port is free");
        let task = AbortOnDropHandle::new(tokio::spawn(listen(listener, tls, self.shared.clone())));
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn acceptor(certificates: &Certificates) -> TlsAcceptor {
    fn chain(path: &Path) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(path).expect("a file").collect::<Result<_, _>>().expect("PEM")
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(chain(&certificates.authority));
    let provider = Arc::new(ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(clients.build().expect("an authority"))
        .with_single_cert(
            chain(&certificates.server),
            PrivateKeyDer::from_pem_file(&certificates.server_key).expect("a key"),
        );
    TlsAcceptor::from(Arc::new(config.expect("a pair")))
}

async fn listen(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    // Ends with this task, and with it all connections.
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection can be accepted");
        stream.set_nodelay(true).expect("an open connection");
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let (tls, shared) = (tls.clone(), shared.clone());
        connections.spawn(async move {
            match tls {
                None => serve(stream, shared).await,
                // A client that is refused may try again.
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, shared).await;
                    }
                }
            }
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let served = AtomicUsize::new(0);
    let service = service_fn(|request| answer(&shared, &served, request));
    // It also ends with an error when the client ends it.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// The connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("ended on demand")]
struct Ends;

async fn answer(
    shared: &Shared,
    served: &AtomicUsize,
    request: hyper::Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Ends> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Ends)?.to_bytes();
    let is_question = head.method == Method::OPTIONS;
    let text = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let before = served.fetch_add(1, Ordering::Relaxed);
    let reply = {
        let mut state = shared.state();
        if is_question {
            state.questions += 1;
            state.to_questions.clone()
        } else {
            let reply = state.to_events.clone();
            if matches!(reply, Reply::OncePerConnection) && before > 0 {
                return Err(Ends);
            }
            assert_eq!(head.method, Method::POST);
            state.events.push(Request {
                target: head.uri.to_string(),
                headers: head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
                body,
            });
            reply
        }
    };
    let _active = (!is_question).then(|| Active::new(shared));
    let (status, headers, body) = match reply {
        Reply::Status(status, headers, body) => (status, headers, body),
        Reply::Late(status, time) => {
            // The lateness is what a test is about.
            tokio::time::sleep(time).await;
            (status, Vec::new(), "")
        }
        Reply::Never => std::future::pending().await,
        Reply::OncePerConnection => (200, Vec::new(), ""),
    };
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    Ok(response.body(Full::new(body.into())).expect("headers of printable characters"))
}

/// An event that is being answered.
struct Active<'s>(&'s Shared);

impl Active<'_> {
    fn new(shared: &Shared) -> Active<'_> {
        let active = shared.active.fetch_add(1, Ordering::Relaxed) + 1;
        shared.most.fetch_max(active, Ordering::Relaxed);
        Active(shared)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}
