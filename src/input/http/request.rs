//! A request: checks it, reads it, passes it to the bridge, and derives the answer from the outcome.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, HOST};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use time::OffsetDateTime;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Current;
use super::config::Endpoint;
use super::problem::Problem;
use crate::bridge::{Arriving, Callback, NoRoom, Outcome, Signature};
use crate::common::server::{Connection, Loss, Serve, has_valid_host};
use crate::common::units::Size;
use crate::input::InputHandle;

/// A body that has arrived.
struct Arrived {
    body: Bytes,
    /// Held until the body has its share as a complete one.
    share: Arriving,
    /// How long it has waited for memory.
    waited: Duration,
}

/// Answers requests.
#[derive(Debug)]
pub(super) struct Service {
    /// Each callback holds it until its outcome.
    pub(super) handle: Arc<InputHandle>,
    pub(super) current: Arc<Current>,
    pub(super) header_timeout: Duration,
    pub(super) body_timeout: Duration,
}

type Answer = Response<Full<Bytes>>;

impl Serve for Service {
    fn name(&self) -> &str {
        self.handle.name()
    }

    /// May be cancelled: a callback whose body was read is still processed to its end.
    async fn answer(&self, request: Request<Incoming>, connection: &Connection) -> Answer {
        // Stopping also waits for requests whose body is still arriving. The token is taken before the check whether
        // callbacks are still accepted, so that no accepted request is missed.
        let token = self.handle.callbacks().token();
        let (head, body) = request.into_parts();
        match self.accept(&head, body, connection, token).await {
            Ok(outcome) => self.answer_outcome(&outcome),
            Err((problem, detail)) => {
                self.not_accepted(problem, &detail, Some(head.uri.path()));
                problem.response(&detail)
            }
        }
    }

    fn is_accepted(&self, answer: &Answer) -> bool {
        answer.status() == StatusCode::OK
    }

    fn lost(&self, loss: Loss) -> String {
        let labels = [self.name(), loss.as_str()];
        self.handle.metrics().connections_lost_total.with_label_values(&labels).inc();
        let (problem, detail) = match loss {
            Loss::NoRoom => (Problem::TooManyRequests, "connection limit reached".to_owned()),
            Loss::NoRoomForAddress => (Problem::TooManyRequests, "connection limit of this address reached".to_owned()),
            Loss::HeadLate => {
                let limit = humantime::format_duration(self.header_timeout);
                (Problem::RequestTimeout, format!("the head of the request took longer than {limit}"))
            }
            Loss::Unreadable => (Problem::BodyUnreadable, String::new()),
            // Nobody waits for an answer here.
            Loss::Evicted | Loss::HandshakeFailed | Loss::AnswerNotRead => return String::new(),
        };
        self.not_accepted(problem, &detail, None);
        problem.raw_response(&detail)
    }

    fn count(&self, connections: usize) {
        let connections = i64::try_from(connections).unwrap_or(i64::MAX);
        self.handle.metrics().connections.with_label_values(&[self.name()]).set(connections);
    }
}

impl Service {
    fn answer_outcome(&self, outcome: &Outcome) -> Answer {
        match outcome {
            Outcome::Published
            | Outcome::Spooled
            | Outcome::Duplicate
            | Outcome::Dropped
            | Outcome::DeadLettered(_) => Response::new(Full::default()),
            Outcome::Refused(refusal) => Problem::Refused.response(&refusal.to_string()),
            Outcome::NotACallback { error, .. } => {
                self.count_reason(&Problem::NotACallback.label());
                Problem::NotACallback.response(&error.to_string())
            }
        }
    }

    fn not_accepted(&self, problem: Problem, detail: &str, path: Option<&str>) {
        let metrics = self.handle.metrics();
        metrics.callbacks_total.with_label_values(&[self.name(), "not_accepted"]).inc();
        let reason = problem.label();
        self.count_reason(&reason);
        self.handle.rejected(&reason, detail, path);
        tracing::debug!(input = self.name(), problem = problem.slug(), "request not accepted");
    }

    /// Counts a request that is not accepted, by reason. The bridge counts outcomes.
    fn count_reason(&self, reason: &str) {
        self.handle.metrics().not_accepted_total.with_label_values(&[self.name(), reason]).inc();
    }

    /// Processes a request to its outcome, or to the reason why it is not accepted. Holds the token until then, also if
    /// this future is dropped.
    async fn accept(
        &self,
        head: &Parts,
        body: Incoming,
        connection: &Connection,
        token: TaskTrackerToken,
    ) -> Result<Outcome, (Problem, String)> {
        if self.handle.not_accepting().is_cancelled() {
            return Err((Problem::Stopping, "another instance may accept it".to_owned()));
        }
        if !has_valid_host(&head.headers, head.version) {
            return Err((Problem::HostInvalid, "expected one `host` header".to_owned()));
        }
        let path = head.uri.path();
        let endpoints = self.current.endpoints();
        let Some(endpoint) = endpoints.iter().find(|endpoint| endpoint.path == path) else {
            return Err((Problem::NoSuchPath, "expected the `path` of an endpoint".to_owned()));
        };
        if head.method != Method::POST {
            return Err((Problem::MethodNotAllowed, format!("the method is {}; expected POST", head.method)));
        }
        let signature = match verify(&endpoints, endpoint, &head.headers, &head.uri) {
            Ok(signature) => signature,
            Err((problem, detail)) => {
                let labels = [endpoint.path.as_str(), &problem.label()];
                self.handle.metrics().unauthorized_total.with_label_values(&labels).inc();
                tracing::debug!(input = self.name(), endpoint = endpoint.path, detail, "request not authorized");
                return Err((problem, detail));
            }
        };
        if let Some(encoding) = head.headers.get(CONTENT_ENCODING).filter(|value| *value != "identity") {
            let encoding = encoding.to_str().unwrap_or("unreadable");
            return Err((Problem::EncodingNotSupported, format!("content-encoding is {encoding}; expected none")));
        }
        let Arrived { body, share, waited } = self.read(body).await?;
        connection.is_delivering();
        // Only now, so that whoever sends slowly takes nothing from those whose callbacks are complete.
        let Some(place) = self.current.enter() else {
            return Err((Problem::TooManyRequests, "in-flight limit reached".to_owned()));
        };
        let mut admission = self.handle.admit();
        let longest = self.handle.deadline() / 2;
        let waited = waited + admission.grow(body.len(), longest).await.map_err(no_room)?;
        drop(share);
        let callback = Callback {
            input: self.handle.series().clone(),
            admission,
            body,
            received: OffsetDateTime::now_utc(),
            // The time spent waiting for memory counts against the deadline; the time to send the body does not.
            arrived: Instant::now().checked_sub(waited).unwrap_or_else(Instant::now),
            sender: endpoint.sender.clone(),
            signature: Some(signature),
            traceparent: traceparent(&head.headers),
            max_publish_time: None,
            is_last_try: false,
            is_from_anyone: true,
        };
        let handle = self.handle.clone();
        let accepted = async move {
            let _held = (place, token);
            handle.accept(&callback).await
        };
        Ok(Unstoppable::new(accepted).await)
    }

    /// Reads a body.
    async fn read(&self, body: Incoming) -> Result<Arrived, (Problem, String)> {
        if body.size_hint().lower() > self.current.max_body() as u64 {
            return Err(self.too_large());
        }
        let mut collected = pin!(self.collect(body));
        // Most bodies have come with their heads. They need no timer.
        if let Poll::Ready(arrived) = futures_util::poll!(&mut collected) {
            return arrived;
        }
        tokio::time::timeout(self.body_timeout, collected).await.unwrap_or_else(|_| {
            let limit = humantime::format_duration(self.body_timeout);
            Err((Problem::RequestTimeout, format!("the body took longer than {limit}")))
        })
    }

    /// Reads a body into one buffer. Room for all of a large body is made when so much of it has arrived that it needs
    /// room, because bodies that are half read would wait for each other. Without a declared length, room is made piece by
    /// piece.
    async fn collect(&self, mut body: Incoming) -> Result<Arrived, (Problem, String)> {
        let mut share = self.handle.arriving();
        let declared = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or_default();
        let mut waited = Duration::ZERO;
        let (mut first, mut all) = (Bytes::new(), BytesMut::new());
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return Err((Problem::BodyUnreadable, "the connection ended, or its framing is broken".to_owned()));
            };
            let Ok(piece) = frame.into_data() else { continue };
            let length = first.len().max(all.len()) + piece.len();
            if length > self.current.max_body() {
                return Err(self.too_large());
            }
            waited += share.grow_to(length, declared, self.handle.deadline() / 2).await.map_err(no_room)?;
            if first.is_empty() && all.is_empty() {
                first = piece;
                continue;
            }
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&piece);
        }
        Ok(Arrived { body: if all.is_empty() { first } else { all.freeze() }, share, waited })
    }

    fn too_large(&self) -> (Problem, String) {
        (Problem::BodyTooLarge, format!("expected at most {}", Size(self.current.max_body() as u64)))
    }
}

fn no_room(full: NoRoom) -> (Problem, String) {
    (Problem::TooManyRequests, full.to_string())
}

/// Checks the signature of a request to one of the endpoints.
fn verify(
    endpoints: &[Endpoint],
    endpoint: &Endpoint,
    headers: &HeaderMap,
    uri: &Uri,
) -> Result<Signature, (Problem, String)> {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let path = uri.path_and_query().map_or(uri.path(), |path| path.as_str());
    let as_requested = ["https", "http"].into_iter().map(|scheme| format!("{scheme}://{host}{path}"));
    let configured = endpoints.iter().flat_map(|endpoint| &endpoint.verifier.urls);
    let nearly = configured.flat_map(|url| {
        let other_scheme = match url.strip_prefix("https://") {
            Some(rest) => format!("http://{rest}"),
            None => format!("https://{}", url.trim_start_matches("http://")),
        };
        let other_end = url.strip_suffix('/').map_or_else(|| format!("{url}/"), str::to_owned);
        [url.clone(), other_scheme, other_end]
    });
    endpoint.verifier.verify(headers, now, as_requested.chain(nearly))
}

/// A future that runs to its end even if it is dropped: a sender that hangs up must not cancel its publish. It runs
/// where it is awaited. When it is dropped, it moves to its own task.
struct Unstoppable<F: Future + Send + 'static>(Option<Pin<Box<F>>>);

impl<F: Future + Send + 'static> Unstoppable<F> {
    fn new(future: F) -> Unstoppable<F> {
        Unstoppable(Some(Box::pin(future)))
    }
}

impl<F: Future + Send + 'static> Future for Unstoppable<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(future) = &mut self.0 else { return Poll::Pending };
        let polled = future.as_mut().poll(context);
        if polled.is_ready() {
            self.0 = None;
        }
        polled
    }
}

impl<F: Future + Send + 'static> Drop for Unstoppable<F> {
    fn drop(&mut self) {
        // Without a runtime the process is ending, and the publish ends with it.
        if let (Some(future), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(async move { drop(future.await) });
        }
    }
}

/// The trace context of a request, if it has the form of W3C Trace Context level 1.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let parts: Vec<&str> = text.split('-').collect();
    let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let valid = lengths == [2, 32, 16, 2]
        && parts.iter().all(|part| is_hex(part))
        && parts[0] != "ff"
        && !is_zero(parts[1])
        && !is_zero(parts[2]);
    valid.then(|| text.to_owned())
}
