//! The operations: requests are parsed, carried out on the queues, and answered in XML.
//!
//! Promises: the operation follows from the method, path, query and root element, whatever else is wrong with the
//! request. An argument out of range is refused before anything is changed. A receive ends as soon as there is a
//! message, and otherwise when its own waiting time, or else that of its queue, is over.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::queue::{DELAY, MAX_BATCH, MAX_WAIT, Now, Put, Queue, QueueAttributes, Received, Sent, VISIBILITY};
use super::signature::{Signable, decode};
use super::xml::{Element, document, leaf};
use super::{Operation, Shared, State, message_of};

/// Longest name of a queue.
const MAX_NAME: usize = 120;

/// Why a request is refused: an MNS code.
pub(super) type Refused = &'static str;

/// A parsed request.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) operation: Operation,
    pub(super) queue: Option<String>,
    /// The parameters of the query, by lower-case name, because the SDKs use different cases.
    query: Vec<(String, String)>,
    /// The body, if it is XML.
    xml: Option<Element>,
}

impl Call {
    pub(super) fn new(request: &Signable, body: &[u8]) -> Self {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        let query: Vec<(String, String)> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (decode(name).to_lowercase(), decode(value)))
            .collect();
        let has = |name: &str| query.iter().any(|(known, _)| known == name);
        let xml = std::str::from_utf8(body).ok().and_then(Element::parse);
        let root = xml.as_ref().map_or("", |root| root.name.as_str());
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (queue, operation) = match (request.method.as_str(), &parts[..]) {
            ("GET", ["queues"]) => (None, Operation::ListQueue),
            ("GET", ["queues", queue]) => (Some(*queue), Operation::GetQueueAttributes),
            ("PUT", ["queues", queue]) if has("metaoverride") => (Some(*queue), Operation::SetQueueAttributes),
            ("PUT", ["queues", queue]) => (Some(*queue), Operation::CreateQueue),
            ("DELETE", ["queues", queue]) => (Some(*queue), Operation::DeleteQueue),
            (method, ["queues", queue, "messages"]) => {
                let is_batch = has("numofmessages");
                let operation = match method {
                    "POST" if root == "Messages" => Operation::BatchSendMessage,
                    "POST" => Operation::SendMessage,
                    "GET" if has("peekonly") && is_batch => Operation::BatchPeekMessage,
                    "GET" if has("peekonly") => Operation::PeekMessage,
                    "GET" if is_batch => Operation::BatchReceiveMessage,
                    "GET" => Operation::ReceiveMessage,
                    "PUT" => Operation::ChangeMessageVisibility,
                    "DELETE" if root == "ReceiptHandles" => Operation::BatchDeleteMessage,
                    "DELETE" => Operation::DeleteMessage,
                    _ => Operation::Unknown,
                };
                (Some(*queue), operation)
            }
            _ => (None, Operation::Unknown),
        };
        Self { operation, queue: queue.map(decode), query, xml }
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Refused> {
        self.parameter(name).map(|text| text.parse().map_err(|_| "InvalidQueryString")).transpose()
    }

    fn handle(&self) -> Result<&str, Refused> {
        self.parameter("receipthandle").filter(|handle| !handle.is_empty()).ok_or("MissingReceiptHandle")
    }

    fn batch(&self) -> Result<usize, Refused> {
        let count = self.number("numofmessages")?.unwrap_or(1);
        usize::try_from(count).ok().filter(|count| (1..=MAX_BATCH).contains(count)).ok_or("InvalidArgument")
    }

    fn root(&self, name: &str) -> Result<&Element, Refused> {
        self.xml.as_ref().filter(|root| root.name == name).ok_or("MalformedXML")
    }

    fn queue_name(&self) -> Result<&str, Refused> {
        let name = self.queue.as_deref().ok_or("InvalidRequestURL")?;
        if name.len() > MAX_NAME {
            return Err("QueueNameLengthError");
        }
        let is_allowed = |character: char| character.is_ascii_alphanumeric() || character == '-';
        if name.starts_with('-') || !name.chars().all(is_allowed) {
            return Err("InvalidQueueName");
        }
        Ok(name)
    }
}

/// An answer that is being built.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: String,
    pub(super) is_text: bool,
    pub(super) location: Option<String>,
    pub(super) closes: bool,
    pub(super) messages: usize,
    pub(super) code: Option<String>,
    /// Set last: the request's id, and the time that clients see.
    pub(super) request_id: String,
    pub(super) date: String,
}

impl Reply {
    pub(super) fn new(status: u16, body: String) -> Self {
        Self { status, body, ..Self::default() }
    }
}

/// Carries out a request.
pub(super) async fn carry_out(shared: &Shared, signable: &Signable, call: &Call) -> Result<Reply, Refused> {
    if matches!(call.operation, Operation::ReceiveMessage | Operation::BatchReceiveMessage) {
        return receive(shared, call).await;
    }
    // Clients use the part before the path as their endpoint again.
    let base = format!("http://{}", signable.header("host").unwrap_or_default());
    let state = &mut *shared.lock();
    let reply = match call.operation {
        Operation::Unknown => Err("InvalidRequestURL"),
        Operation::ListQueue => list_queue(state, signable, &base),
        Operation::CreateQueue => create_queue(state, call, &base),
        Operation::DeleteQueue => {
            state.queues.remove(call.queue_name()?).ok_or("QueueNotExist").map(|_| Reply::new(204, String::new()))
        }
        _ => {
            let now = state.now();
            let queue = state.queues.get_mut(call.queue_name()?).ok_or("QueueNotExist")?;
            match call.operation {
                Operation::GetQueueAttributes => {
                    let mut content = String::new();
                    describe(&mut content, call.queue_name()?, queue, now);
                    Ok(Reply::new(200, document("Queue", &content)))
                }
                Operation::SetQueueAttributes => {
                    queue.attributes = attributes(call.root("Queue")?, queue.attributes.clone())?;
                    queue.modified = now.millis / 1000;
                    Ok(Reply::new(204, String::new()))
                }
                Operation::SendMessage => {
                    let sent = queue.put(now, message(call.root("Message")?, queue)?);
                    let mut content = String::new();
                    describe_sent(&mut content, sent);
                    Ok(Reply::new(201, document("Message", &content)))
                }
                Operation::BatchSendMessage => batch_send(call, queue, now),
                Operation::PeekMessage => show(queue.peek(now, 1), false),
                Operation::BatchPeekMessage => show(queue.peek(now, call.batch()?), true),
                Operation::DeleteMessage => queue.delete(now, call.handle()?).map(|()| Reply::new(204, String::new())),
                Operation::BatchDeleteMessage => batch_delete(call, queue, now),
                Operation::ChangeMessageVisibility => {
                    let handle = call.handle()?;
                    let seconds = call.number("visibilitytimeout")?.ok_or("MissingVisibilityTimeout")?;
                    if !VISIBILITY.contains(&seconds) {
                        return Err("InvalidArgument");
                    }
                    let (handle, visible) = queue.change_visibility(now, handle, Duration::from_secs(seconds))?;
                    let mut content = String::new();
                    leaf(&mut content, "ReceiptHandle", handle);
                    leaf(&mut content, "NextVisibleTime", visible);
                    Ok(Reply::new(200, document("ChangeVisibility", &content)))
                }
                other => unreachable!("{other:?} is handled above"),
            }
        }
    };
    // A message was sent or made visible earlier, or its queue was deleted.
    shared.changed.notify_waiters();
    reply
}

/// Counts a receive as waiting while this exists.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(polls: &'a AtomicUsize) -> Self {
        polls.fetch_add(1, Ordering::Relaxed);
        Self(polls)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn receive(shared: &Shared, call: &Call) -> Result<Reply, Refused> {
    let is_batch = call.operation == Operation::BatchReceiveMessage;
    let max = call.batch()?;
    let wait = call.number("waitseconds")?;
    if wait.is_some_and(|wait| wait > MAX_WAIT) {
        return Err("InvalidArgument");
    }
    let mut deadline = None;
    let mut waiting = None;
    loop {
        // Subscribe before checking, or a change in between would be missed.
        let changed = shared.changed.notified();
        let sleep = {
            let mut state = shared.lock();
            let now = state.now();
            let queue = state.queues.get_mut(call.queue_name()?).ok_or("QueueNotExist")?;
            let received = queue.receive(now, max);
            let wait = wait.map_or(queue.attributes.polling_wait, Duration::from_secs);
            let deadline = *deadline.get_or_insert(now.instant + wait);
            if !received.is_empty() || deadline <= now.instant {
                return show(received, is_batch);
            }
            queue.next_visible().map_or(deadline, |next| next.min(deadline)) - now.instant
        };
        waiting.get_or_insert_with(|| Waiting::new(&shared.polls));
        tokio::select! {
            () = changed => {}
            // Wait until the long poll or a lease ends.
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

/// The answer of a receive or peek.
fn show(messages: Vec<Received>, is_batch: bool) -> Result<Reply, Refused> {
    let count = messages.len();
    let mut content = String::new();
    for message in messages {
        if is_batch {
            content += "<Message>\n";
        }
        leaf(&mut content, "MessageId", message.id);
        leaf(&mut content, "MessageBodyMD5", message.body_md5);
        leaf(&mut content, "MessageBody", message.body);
        let visible = message.lease.map(|(handle, visible)| {
            leaf(&mut content, "ReceiptHandle", handle);
            visible
        });
        leaf(&mut content, "EnqueueTime", message.enqueued);
        leaf(&mut content, "FirstDequeueTime", message.first_dequeued);
        if let Some(visible) = visible {
            leaf(&mut content, "NextVisibleTime", visible);
        }
        leaf(&mut content, "DequeueCount", message.dequeue_count);
        leaf(&mut content, "Priority", message.priority);
        content += &message.extra;
        if is_batch {
            content += "</Message>\n";
        }
    }
    if count == 0 {
        return Err("MessageNotExist");
    }
    let body = document(if is_batch { "Messages" } else { "Message" }, &content);
    Ok(Reply { messages: count, ..Reply::new(200, body) })
}

fn batch_send(call: &Call, queue: &mut Queue, now: Now) -> Result<Reply, Refused> {
    let messages = &call.root("Messages")?.children;
    if !(1..=MAX_BATCH).contains(&messages.len()) {
        return Err("InvalidArgument");
    }
    // All or none. The real service may accept a part of a batch, but the status of that answer is unknown.
    let puts: Result<Vec<Put>, Refused> = messages.iter().map(|element| message(element, queue)).collect();
    let mut content = String::new();
    for put in puts? {
        content += "<Message>\n";
        describe_sent(&mut content, queue.put(now, put));
        content += "</Message>\n";
    }
    Ok(Reply::new(201, document("Messages", &content)))
}

fn batch_delete(call: &Call, queue: &mut Queue, now: Now) -> Result<Reply, Refused> {
    let handles = &call.root("ReceiptHandles")?.children;
    if !(1..=MAX_BATCH).contains(&handles.len()) {
        return Err("InvalidArgument");
    }
    let mut content = String::new();
    let mut first = None;
    for handle in handles {
        let Err(code) = queue.delete(now, &handle.text) else { continue };
        first.get_or_insert(code);
        content += "<Error>\n";
        leaf(&mut content, "ErrorCode", code);
        leaf(&mut content, "ErrorMessage", message_of(code));
        leaf(&mut content, "ReceiptHandle", &handle.text);
        content += "</Error>\n";
    }
    let Some(code) = first else { return Ok(Reply::new(204, String::new())) };
    let body = document("Errors", &content);
    Ok(Reply { closes: true, code: Some(code.to_owned()), ..Reply::new(404, body) })
}

fn describe_sent(content: &mut String, sent: Sent) {
    leaf(content, "MessageId", sent.id);
    leaf(content, "MessageBodyMD5", sent.body_md5);
    if let Some(handle) = sent.handle {
        leaf(content, "ReceiptHandle", handle);
    }
}

/// A message as a client sends it. Parts that a queue does not use, for example its properties, are dropped.
fn message(element: &Element, queue: &Queue) -> Result<Put, Refused> {
    let body = element.text_of("MessageBody").filter(|body| !body.is_empty()).ok_or("MalformedXML")?;
    if element.name != "Message" {
        return Err("MalformedXML");
    }
    if body.len() > queue.attributes.maximum_message_size {
        return Err("InvalidArgument");
    }
    let number = |name| number_in(element, name);
    let priority = number("Priority")?.unwrap_or(8);
    let priority = u8::try_from(priority).ok().filter(|priority| (1..=16).contains(priority));
    let delay = number("DelaySeconds")?;
    if delay.is_some_and(|delay| !DELAY.contains(&delay)) {
        return Err("InvalidArgument");
    }
    Ok(Put {
        body: body.to_owned(),
        priority: priority.ok_or("InvalidArgument")?,
        delay: delay.map(Duration::from_secs),
        extra: String::new(),
    })
}

fn number_in(element: &Element, name: &str) -> Result<Option<u64>, Refused> {
    element.text_of(name).map(|text| text.trim().parse().map_err(|_| "InvalidArgument")).transpose()
}

fn create_queue(state: &mut State, call: &Call, base: &str) -> Result<Reply, Refused> {
    let name = call.queue_name()?;
    let attributes = attributes(call.root("Queue")?, QueueAttributes::default())?;
    let status = match state.queues.get(name) {
        Some(queue) if queue.attributes != attributes => return Err("QueueAlreadyExist"),
        Some(_) => 204,
        None => {
            state.create(name, attributes);
            201
        }
    };
    Ok(Reply { location: Some(format!("{base}/queues/{name}")), ..Reply::new(status, String::new()) })
}

/// The attributes in a document, and those of `otherwise` for the rest.
fn attributes(element: &Element, otherwise: QueueAttributes) -> Result<QueueAttributes, Refused> {
    let number = |name, range: RangeInclusive<u64>| match number_in(element, name)? {
        Some(number) if !range.contains(&number) => Err("InvalidArgument"),
        number => Ok(number),
    };
    let seconds =
        |name, range, otherwise| number(name, range).map(|seconds| seconds.map_or(otherwise, Duration::from_secs));
    let size = number("MaximumMessageSize", 1_024..=65_536)?;
    Ok(QueueAttributes {
        visibility_timeout: seconds("VisibilityTimeout", VISIBILITY, otherwise.visibility_timeout)?,
        polling_wait: seconds("PollingWaitSeconds", 0..=MAX_WAIT, otherwise.polling_wait)?,
        delay: seconds("DelaySeconds", DELAY, otherwise.delay)?,
        retention: seconds("MessageRetentionPeriod", 60..=604_800, otherwise.retention)?,
        maximum_message_size: size
            .map_or(otherwise.maximum_message_size, |size| usize::try_from(size).expect("within its range")),
        logging: element.text_of("LoggingEnabled").map_or(otherwise.logging, |text| text.eq_ignore_ascii_case("true")),
    })
}

fn describe(content: &mut String, name: &str, queue: &mut Queue, now: Now) {
    let counts = queue.counts(now);
    let QueueAttributes { visibility_timeout, polling_wait, delay, retention, maximum_message_size, logging } =
        queue.attributes.clone();
    leaf(content, "QueueName", name);
    leaf(content, "CreateTime", queue.created);
    leaf(content, "LastModifyTime", queue.modified);
    leaf(content, "DelaySeconds", whole_seconds(delay));
    leaf(content, "MaximumMessageSize", maximum_message_size);
    leaf(content, "MessageRetentionPeriod", whole_seconds(retention));
    leaf(content, "VisibilityTimeout", whole_seconds(visibility_timeout));
    leaf(content, "PollingWaitSeconds", whole_seconds(polling_wait));
    leaf(content, "ActiveMessages", counts.active);
    leaf(content, "InactiveMessages", counts.inactive);
    leaf(content, "DelayMessages", counts.delayed);
    leaf(content, "LoggingEnabled", if logging { "True" } else { "False" });
}

/// Rounded up, because a queue that is created from Rust may have shorter times than the service allows.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

fn list_queue(state: &mut State, signable: &Signable, base: &str) -> Result<Reply, Refused> {
    let prefix = signable.header("x-mns-prefix").unwrap_or_default();
    let marker = signable.header("x-mns-marker").unwrap_or_default();
    let most = signable.header("x-mns-ret-number").map_or(Ok(1_000), str::parse).map_err(|_| "InvalidArgument")?;
    let with_meta = signable.header("x-mns-with-meta").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let now = state.now();
    // The marker is opaque to clients. Here it is the name to continue with.
    let mut names = state.queues.iter_mut().filter(|(name, _)| name.starts_with(prefix) && name.as_str() >= marker);
    let mut content = String::new();
    for (name, queue) in names.by_ref().take(most) {
        content += "<Queue>\n";
        leaf(&mut content, "QueueURL", format!("{base}/queues/{name}"));
        if with_meta {
            describe(&mut content, name, queue, now);
        }
        content += "</Queue>\n";
    }
    if let Some((next, _)) = names.next() {
        leaf(&mut content, "NextMarker", next);
    }
    Ok(Reply::new(200, document("Queues", &content)))
}
