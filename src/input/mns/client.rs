//! The calls to a queue. Each is signed and tried once; retrying is up to the caller.

use std::borrow::Cow;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HOST};
use hyper::{Method, Request, Response};
use prometheus::Gauge;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::answer::{Attributes, Element, Message, MnsError, MnsErrorKind, NOT_READ, failed_deletes};
use super::credentials::Credentials;
use super::signature::{Key, Signable, SignatureVersion, http_date};
use crate::common::clock;
use crate::common::http::{HttpClient, HttpError};

/// Version of the protocol.
const VERSION: &str = "2015-06-06";

const XML: &str = "text/xml;charset=UTF-8";

/// How long an answer may take, in addition to the time that the server was asked to wait.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Most messages of one call.
pub(super) const BATCH: usize = 16;

/// Where the queue is.
#[derive(Clone, Debug)]
pub(super) struct QueueAddress {
    /// `http` or `https`, and the host with its port.
    pub(super) scheme: String,
    pub(super) authority: String,
    pub(super) queue: String,
    pub(super) signature: SignatureVersion,
    /// Signed by V4.
    pub(super) region: String,
}

/// How far the server's clock is from ours.
#[derive(Debug, Default)]
pub(super) struct Clock {
    offset_ms: AtomicI64,
    /// Where it is exported, if it is.
    gauge: Option<Gauge>,
}

impl Clock {
    pub(super) fn exported(gauge: Gauge) -> Clock {
        Clock { gauge: Some(gauge), ..Clock::default() }
    }

    /// What to add to our time to get the server's.
    pub(super) fn offset(&self) -> time::Duration {
        time::Duration::milliseconds(self.offset_ms.load(Ordering::Relaxed))
    }

    fn learn(&self, answer: &Response<impl Sized>) {
        let Some(offset) = clock::ahead(answer.headers()) else { return };
        let offset = i64::try_from(offset.whole_milliseconds()).unwrap_or(0);
        self.offset_ms.store(offset, Ordering::Relaxed);
        if let Some(gauge) = &self.gauge {
            gauge.set(offset as f64 / 1000.0);
        }
    }
}

/// A queue.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) address: QueueAddress,
    pub(super) credentials: Credentials,
    pub(super) http: HttpClient,
    pub(super) clock: Clock,
}

/// What an answer shows that is a success but does not come from MNS.
pub(super) const NOT_MNS: &str = "not an MNS endpoint";

type Query<'q> = [(&'q str, Cow<'q, str>)];

/// The start of every document that is sent.
const DOCUMENT: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

/// The namespace of its root.
const NAMESPACE: &str = "http://mns.aliyuncs.com/doc/v1/";

impl Queue {
    /// Receives at most `messages`; the server waits for the first one. An empty queue gives none. Returns
    /// `None` when `stopping` came before the server began to answer; an answer that has begun is read.
    pub(super) async fn receive(
        &self,
        messages: usize,
        wait: Duration,
        stopping: &CancellationToken,
    ) -> Option<Result<Vec<Message>, MnsError>> {
        let mut query = vec![("waitseconds", Cow::Owned(wait.as_secs().to_string()))];
        if messages > 1 {
            query.insert(0, ("numOfMessages", Cow::Owned(messages.min(BATCH).to_string())));
        }
        let timeout = wait + TIMEOUT;
        let answer = tokio::select! {
            answer = self.begin(Method::GET, "/messages", &query, None, timeout) => answer,
            () = stopping.cancelled() => return None,
        };
        Some(match self.finish(answer).await {
            Ok(answer) => read_messages(&answer),
            Err(error) if error.code == "MessageNotExist" => Ok(Vec::new()),
            Err(error) => Err(error),
        })
    }

    /// Deletes messages by their handles. Returns those that could not be deleted, with the code of each.
    pub(super) async fn delete(&self, handles: &[String]) -> Result<Vec<(String, String)>, MnsError> {
        if let [handle] = handles {
            return self.delete_one(handle).await;
        }
        let mut body = format!("{DOCUMENT}<ReceiptHandles xmlns=\"{NAMESPACE}\">");
        for handle in handles {
            body.push_str("<ReceiptHandle>");
            body.push_str(&quick_xml::escape::escape(handle.as_str()));
            body.push_str("</ReceiptHandle>");
        }
        body.push_str("</ReceiptHandles>");
        let begun = self.begin(Method::DELETE, "/messages", &[], Some(body), TIMEOUT).await;
        let answer = self.read(begun).await?;
        if answer.status().is_success() {
            return Ok(Vec::new());
        }
        let text = String::from_utf8_lossy(answer.body());
        if let Some(failed) = failed_deletes(&text) {
            return Ok(failed);
        }
        let error = MnsError::read(answer.status().as_u16(), &text);
        if !matches!(error.code.as_str(), "InvalidArgument" | "MalformedXML") {
            return Err(self.failed(error).await);
        }
        // One bad handle must not prevent the deletion of the others.
        let mut failed = Vec::new();
        for handle in handles {
            failed.extend(self.delete_one(handle).await?);
        }
        Ok(failed)
    }

    async fn delete_one(&self, handle: &str) -> Result<Vec<(String, String)>, MnsError> {
        let query = [("ReceiptHandle", Cow::Borrowed(handle))];
        let begun = self.begin(Method::DELETE, "/messages", &query, None, TIMEOUT).await;
        match self.finish(begun).await {
            Ok(_) => Ok(Vec::new()),
            Err(error) if error.kind == MnsErrorKind::Gone => Ok(vec![(handle.to_owned(), error.code)]),
            Err(error) => Err(error),
        }
    }

    /// Extends a lease to `visibility` from now. Returns the new handle, which replaces the old one, and the end of the
    /// lease in Unix milliseconds of the server's clock.
    pub(super) async fn change_visibility(
        &self,
        handle: &str,
        visibility: Duration,
    ) -> Result<(String, Option<i64>), MnsError> {
        let seconds = visibility.as_secs().to_string();
        let query = [("ReceiptHandle", Cow::Borrowed(handle)), ("VisibilityTimeout", Cow::Owned(seconds))];
        let begun = self.begin(Method::PUT, "/messages", &query, None, TIMEOUT).await;
        let answer = self.finish(begun).await?;
        let changed = Element::parse(&answer).ok_or_else(|| MnsError::unavailable(NOT_READ))?;
        let handle = changed.text_of("ReceiptHandle").unwrap_or(handle).trim().to_owned();
        Ok((handle, changed.text_of("NextVisibleTime").and_then(|time| time.trim().parse().ok())))
    }

    /// Puts a message with this body into the queue. Returns its id. The body is sent in Base64, as the SDKs do, because
    /// XML cannot contain every character.
    pub(super) async fn send(&self, body: &[u8]) -> Result<String, MnsError> {
        let body = STANDARD.encode(body);
        let document = format!("{DOCUMENT}<Message xmlns=\"{NAMESPACE}\"><MessageBody>{body}</MessageBody></Message>");
        let begun = self.begin(Method::POST, "/messages", &[], Some(document), TIMEOUT).await;
        let answer = self.finish(begun).await?;
        let message = Element::parse(&answer).ok_or_else(|| MnsError::unavailable(NOT_READ))?;
        Ok(message.text_of("MessageId").unwrap_or_default().trim().to_owned())
    }

    /// Whether the key may look at messages. Looks at one, which is not received by that.
    pub(super) async fn peek(&self) -> Result<(), MnsError> {
        let query = [("peekonly", Cow::Borrowed("true"))];
        let begun = self.begin(Method::GET, "/messages", &query, None, TIMEOUT).await;
        match self.finish(begun).await {
            Err(error) if error.code != "MessageNotExist" => Err(error),
            _ => Ok(()),
        }
    }

    /// Asks for the attributes of the queue.
    pub(super) async fn attributes(&self) -> Result<Attributes, MnsError> {
        let begun = self.begin(Method::GET, "", &[], None, TIMEOUT).await;
        let answer = self.finish(begun).await?;
        let queue = Element::parse(&answer).ok_or_else(|| MnsError::unavailable(NOT_READ))?;
        Attributes::read(&queue).ok_or_else(|| {
            let root: String = queue.name.chars().take(40).collect();
            MnsError::unavailable(format!("{NOT_MNS}: found `{root}`; expected the attributes of a queue"))
        })
    }

    /// Sends a request and waits for the head of its answer.
    async fn begin(
        &self,
        method: Method,
        below: &str,
        query: &Query<'_>,
        body: Option<String>,
        timeout: Duration,
    ) -> Result<Response<hyper::body::Incoming>, MnsError> {
        let key = self.credentials.key().await?;
        let QueueAddress { scheme, authority, queue, signature, region } = &self.address;
        let path = format!("/queues/{queue}{below}");
        let date = OffsetDateTime::now_utc();
        let mut headers = vec![("x-mns-version", VERSION)];
        if body.is_some() {
            headers.push(("content-type", XML));
        }
        let signable = Signable { method: method.as_str(), path: &path, query, headers: &headers, date };
        let authorization = signature.authorization(&signable, Key { id: &key.id, secret: &key.secret }, region);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{scheme}://{authority}{}", signature.target(&path, query)))
            .header(HOST, authority)
            .header(DATE, http_date(date))
            .header("x-mns-version", VERSION)
            .header(AUTHORIZATION, authorization);
        if body.is_some() {
            request = request.header(CONTENT_TYPE, XML);
        }
        if let Some(token) = &key.token {
            request = request.header("security-token", &**token);
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| MnsError::unavailable(format!("invalid request: {error}")))?;
        let answer = tokio::time::timeout(timeout, self.http.send(request)).await;
        let answer = answer.unwrap_or(Err(HttpError::TimedOut)).map_err(MnsError::unavailable)?;
        self.clock.learn(&answer);
        Ok(answer)
    }

    async fn read(
        &self,
        begun: Result<Response<hyper::body::Incoming>, MnsError>,
    ) -> Result<Response<Bytes>, MnsError> {
        let read = tokio::time::timeout(TIMEOUT, HttpClient::read(begun?)).await;
        read.unwrap_or(Err(HttpError::TimedOut)).map_err(MnsError::unavailable)
    }

    /// The body of a success as text, otherwise the error.
    async fn finish(&self, begun: Result<Response<hyper::body::Incoming>, MnsError>) -> Result<String, MnsError> {
        let answer = self.read(begun).await?;
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        if answer.status().is_success() {
            return Ok(text);
        }
        Err(self.failed(MnsError::read(answer.status().as_u16(), &text)).await)
    }

    /// A key that is refused may have been revoked: the next request fetches it again.
    async fn failed(&self, error: MnsError) -> MnsError {
        if error.kind == MnsErrorKind::Misconfigured && error.code != "QueueNotExist" {
            self.credentials.forget().await;
        }
        error
    }
}

pub(super) fn read_messages(answer: &str) -> Result<Vec<Message>, MnsError> {
    let root = Element::parse(answer).ok_or_else(|| MnsError::unavailable(NOT_READ))?;
    let elements = if root.name == "Message" { std::slice::from_ref(&root) } else { root.children.as_slice() };
    Ok(elements.iter().filter(|element| element.name == "Message").filter_map(Message::read).collect())
}
