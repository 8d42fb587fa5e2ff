//! A server that simulates MNS (Alibaba's message queue, also called SMQ), in this process.
//!
//! Promises:
//! - It serves HTTP on a port of 127.0.0.1, or of another address of this machine, and answers like the service: signatures V1 and V4 are verified, leases
//!   end, receipt handles become invalid, a long poll ends as soon as there is a message, errors have their code,
//!   status and XML. The evidence is that Alibaba's own SDKs work with it ([`sdk`], tests/it/support_mns.rs).
//! - A test can see what was deleted, how often a message was received, and every request.
//! - A test can cause the failures of the service: [`Fault`], wrong MD5s, a wrong clock, an outage.
//! - It runs on its own thread, named `mns`. A test may block, and a benchmark can measure its CPU time separately.
//!   Time is real, but [`Mns::advance`] lets leases and polls end early.
//! - It implements all queue operations, but no topics.
//!
//! If the documentation does not define something, the code says that it guesses.
//!
//! # Layout
//!
//! - here: the server as a test sees it
//! - [`http`]: connections, faults and the log; [`operations`]: what requests do
//! - [`queue`]: messages and leases; [`signature`]: both signatures; [`xml`]: reading and writing
//! - [`sdk`]: Alibaba's SDKs, used from a test

mod http;
mod operations;
pub mod queue;
pub mod sdk;
pub mod signature;
pub mod xml;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::{Notify, mpsc as tokio_mpsc};

use self::queue::{Counts, Left, Now, Put, Queue, QueueAttributes};
use self::signature::{Key, Rules, SignatureVersion};
use super::free_port;

/// The errors of the service: code, status, and a text. The texts are our own, so a client must only read the code.
const ERRORS: &[(&str, u16, &str)] = &[
    ("InvalidArgument", 400, "an argument is out of its range"),
    ("InvalidAuthorizationHeader", 400, "the header Authorization is malformed"),
    ("InvalidDateHeader", 400, "the header Date is malformed"),
    ("InvalidDegist", 400, "Content-MD5 does not match the body"), // spelt so by the service
    ("InvalidQueryString", 400, "the query is malformed"),
    ("InvalidQueueName", 400, "a queue cannot have this name"),
    ("InvalidRequestURL", 400, "nothing is at this path"),
    ("MalformedXML", 400, "the body is not the expected XML"),
    ("MissingAuthorizationHeader", 400, "the header Authorization is missing"),
    ("MissingDateHeader", 400, "the header Date is missing"),
    ("MissingReceiptHandle", 400, "the receipt handle is missing"),
    ("MissingVersionHeader", 400, "the header x-mns-version is missing"),
    ("MissingVisibilityTimeout", 400, "the visibility timeout is missing"),
    ("QueueNameLengthError", 400, "the queue's name is too long"),
    ("ReceiptHandleError", 400, "the receipt handle was never issued"),
    ("AccessDenied", 403, "this key has no permission for that"),
    ("InvalidAccessKeyId", 403, "the key is unknown"),
    ("SignatureDoesNotMatch", 403, "the signature differs from the one computed here"),
    ("MessageNotExist", 404, "the message does not exist"),
    ("QueueNotExist", 404, "the queue does not exist"),
    ("TimeExpired", 408, "the request's date is too far from the time here"),
    ("QueueAlreadyExist", 409, "the queue exists with other attributes"),
    ("InternalError", 500, "internal error"),
];

/// The operation of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the service's own names
pub enum Operation {
    SendMessage,
    BatchSendMessage,
    ReceiveMessage,
    BatchReceiveMessage,
    PeekMessage,
    BatchPeekMessage,
    DeleteMessage,
    BatchDeleteMessage,
    ChangeMessageVisibility,
    CreateQueue,
    DeleteQueue,
    GetQueueAttributes,
    SetQueueAttributes,
    ListQueue,
    /// An unknown one.
    Unknown,
}

impl Operation {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::SendMessage,
        Self::BatchSendMessage,
        Self::ReceiveMessage,
        Self::BatchReceiveMessage,
        Self::PeekMessage,
        Self::BatchPeekMessage,
        Self::DeleteMessage,
        Self::BatchDeleteMessage,
        Self::ChangeMessageVisibility,
        Self::CreateQueue,
        Self::DeleteQueue,
        Self::GetQueueAttributes,
        Self::SetQueueAttributes,
        Self::ListQueue,
        Self::Unknown,
    ];
    /// Both ways to receive.
    pub const RECEIVES: &'static [Self] = &[Self::ReceiveMessage, Self::BatchReceiveMessage];
    /// Both ways to delete.
    pub const DELETES: &'static [Self] = &[Self::DeleteMessage, Self::BatchDeleteMessage];
}

/// A failure of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is not carried out; the answer is an error in XML.
    Error {
        /// The HTTP status.
        status: u16,
        /// The code.
        code: String,
    },
    /// It is not carried out; the answer is not XML, like that of a proxy.
    Text {
        /// The HTTP status.
        status: u16,
        /// The body.
        body: String,
    },
    /// It is not carried out; the connection is reset.
    Reset,
    /// It is carried out, but the connection is reset instead of an answer.
    LoseAnswer,
    /// It is carried out at once, and answered after this time.
    Delay(Duration),
}

impl Fault {
    /// The error with this code and its status.
    ///
    /// # Panics
    /// The status of the code is unknown. Then the test must give it with [`Fault::Error`].
    pub fn code(code: &str) -> Self {
        let status = status_of(code).unwrap_or_else(|| panic!("the status of {code} is unknown"));
        Self::Error { status, code: code.to_owned() }
    }

    /// Too many requests. The code is known, but its status is not: 403 is the guess that is most easily mistaken
    /// for another error.
    pub fn throttled() -> Self {
        Self::Error { status: 403, code: "QpsLimitExceeded".to_owned() }
    }

    /// The answer of a proxy in front of the service when the service is down.
    pub fn bad_gateway() -> Self {
        Self::Text { status: 502, body: "<html><body><h1>502 Bad Gateway</h1><hr>".to_owned() }
    }
}

/// A request that arrived.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its operation.
    pub operation: Operation,
    /// The queue that it names.
    pub queue: Option<String>,
    /// Path and query as they were sent.
    pub target: String,
    /// The key that signed it and the version, if the signature was verified.
    pub signed: Option<(String, SignatureVersion)>,
    /// How it ended. None while it is being answered, and forever if the client disconnected.
    pub answer: Option<Answer>,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// How long it took.
    pub after: Duration,
    /// The HTTP status; 0 when the connection was reset instead.
    pub status: u16,
    /// The MNS code of an error, or of the first error in a batch.
    pub code: Option<String>,
    /// How many messages it had.
    pub messages: usize,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct MnsOptions {
    /// The account that owns the queues. Only errors contain it, because the address is not the service's.
    pub account: String,
    /// The region, which is part of V4 signatures. Default: cn-shanghai.
    pub region: String,
    /// The keys. Default: [`Mns::KEY_ID`] with [`Mns::KEY_SECRET`].
    pub keys: Vec<Key>,
    /// The signatures that are accepted. Default: both.
    pub versions: Vec<SignatureVersion>,
    /// Where it listens. Default: 127.0.0.1.
    pub address: IpAddr,
}

impl Default for MnsOptions {
    fn default() -> Self {
        Self {
            account: "1234567890123456".to_owned(),
            region: "cn-shanghai".to_owned(),
            keys: vec![Key::new(Mns::KEY_ID, Mns::KEY_SECRET)],
            versions: vec![SignatureVersion::V1, SignatureVersion::V4],
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }
}

/// The server. Dropping it removes it with all its queues.
#[derive(Debug)]
pub struct Mns {
    shared: Arc<Shared>,
    address: SocketAddr,
    commands: Option<tokio_mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// What a test and the server's thread share.
#[derive(Debug)]
struct Shared {
    account: String,
    state: Mutex<State>,
    /// Notified when something happened that affects waiting receives.
    changed: Notify,
    polls: AtomicUsize,
    connections: AtomicUsize,
}

#[derive(Debug)]
struct State {
    rules: Rules,
    queues: BTreeMap<String, Queue>,
    queues_made: u32,
    /// Each fault with its operations and how many more times it applies.
    faults: Vec<(Vec<Operation>, usize, Fault)>,
    requests: Vec<Request>,
    /// How many requests came before those in the log.
    forgotten: usize,
    /// How far the clock that clients see is ahead, in seconds.
    clock_offset: i64,
    /// How far leases and polls are ahead.
    skipped: Duration,
}

/// Commands to the server's thread, each with a channel to report that it is done.
#[derive(Debug)]
enum Command {
    Down(mpsc::Sender<()>),
    Up(mpsc::Sender<()>),
}

impl Mns {
    /// The id of the default key.
    pub const KEY_ID: &'static str = "LTAI5tTestsOfTheBridge00";
    /// Its secret.
    pub const KEY_SECRET: &'static str = "a/Secret+with=signs00000000000";

    /// Starts a server without queues. It listens when this returns.
    pub fn start(options: MnsOptions) -> Self {
        let address = SocketAddr::new(options.address, free_port());
        let shared = Arc::new(Shared {
            account: options.account,
            state: Mutex::new(State {
                rules: Rules { keys: options.keys, region: options.region, versions: options.versions },
                queues: BTreeMap::new(),
                queues_made: 0,
                faults: Vec::new(),
                requests: Vec::new(),
                forgotten: 0,
                clock_offset: 0,
                skipped: Duration::ZERO,
            }),
            changed: Notify::new(),
            polls: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        });
        let (commands, received) = tokio_mpsc::unbounded_channel();
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("mns".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime can be created").block_on(http::run(for_thread, address, received));
            })
            .expect("a thread can be started");
        let mns = Self { shared, address, commands: Some(commands), thread: Some(thread) };
        mns.up();
        mns
    }

    /// `http://address:port`, without a path.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The region of V4 signatures.
    pub fn region(&self) -> String {
        self.lock().rules.region.clone()
    }

    /// Replaces all keys with these, as when credentials are renewed or revoked.
    pub fn set_keys(&self, keys: &[Key]) {
        self.lock().rules.keys = keys.to_vec();
    }

    // === queues and messages ===

    /// Creates a queue.
    pub fn create_queue(&self, name: &str, attributes: QueueAttributes) {
        let mut state = self.lock();
        assert!(!state.queues.contains_key(name), "queue {name} already exists");
        state.create(name, attributes);
    }

    /// Removes a queue with all its messages.
    pub fn delete_queue(&self, name: &str) {
        self.lock().queues.remove(name).unwrap_or_else(|| panic!("there is no queue {name}"));
        self.shared.changed.notify_waiters();
    }

    /// Puts a message into a queue. Returns its id.
    pub fn put(&self, queue: &str, message: impl Into<Put>) -> String {
        self.put_all(queue, [message]).remove(0)
    }

    /// Puts messages into a queue at once, so one receive can get all of them. Returns their ids.
    pub fn put_all<M: Into<Put>>(&self, queue: &str, messages: impl IntoIterator<Item = M>) -> Vec<String> {
        let ids = self.with(queue, |queue, now| {
            let mut put = |message: Put| {
                let allowed = xml::is_writable(&message.body);
                assert!(allowed, "MNS has no body that XML cannot contain: {:?}", message.body);
                queue.put(now, message).id
            };
            messages.into_iter().map(|message| put(message.into())).collect()
        });
        self.shared.changed.notify_waiters();
        ids
    }

    /// How many messages a queue has.
    pub fn counts(&self, queue: &str) -> Counts {
        self.with(queue, |queue, now| queue.counts(now))
    }

    /// The messages that are still in a queue, in the order in which they were sent.
    pub fn left(&self, queue: &str) -> Vec<Left> {
        self.with(queue, |queue, now| queue.left(now))
    }

    /// The ids of the messages that were deleted from a queue, in order.
    pub fn deleted(&self, queue: &str) -> Vec<String> {
        self.with(queue, |queue, _| queue.deleted().to_vec())
    }

    /// The ids of the messages that the queue has dropped because their retention time has passed.
    pub fn lapsed(&self, queue: &str) -> Vec<String> {
        self.with(queue, |queue, now| queue.lapsed(now).to_vec())
    }

    /// How often each message that was ever in the queue was received, by id.
    pub fn received(&self, queue: &str) -> HashMap<String, u32> {
        self.with(queue, |queue, _| queue.received().clone())
    }

    // === requests ===

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    /// Forgets every request so far, also those that are still being answered. This is for long tests.
    pub fn forget_requests(&self) {
        let state = &mut *self.lock();
        state.forgotten += state.requests.len();
        state.requests = Vec::new();
    }

    /// How many requests an operation had.
    pub fn count(&self, operation: Operation) -> usize {
        self.lock().requests.iter().filter(|request| request.operation == operation).count()
    }

    /// How many receives are waiting for a message at this moment.
    pub fn waiting(&self) -> usize {
        self.shared.polls.load(Ordering::Relaxed)
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    // === faults ===

    /// Lets the next `times` requests for any of `operations` fail, after earlier faults are used up. `usize::MAX`
    /// times means until [`heal`](Self::heal).
    pub fn fail_next(&self, operations: &[Operation], times: usize, fault: Fault) {
        self.lock().faults.push((operations.to_vec(), times, fault));
    }

    /// Ends all faults of [`fail_next`](Self::fail_next).
    pub fn heal(&self) {
        self.lock().faults.clear();
    }

    /// Lets the next `times` deletes of a message fail with `code`, alone or in a batch.
    pub fn fail_deletes(&self, queue: &str, message: &str, times: usize, code: &'static str) {
        self.with(queue, |queue, _| queue.set_undeletable(message, times, code));
    }

    /// Whether a message is delivered with an MD5 that does not match its body.
    pub fn set_wrong_md5(&self, queue: &str, message: &str, wrong: bool) {
        self.with(queue, |queue, _| queue.set_wrong_md5(message, wrong));
    }

    /// Sets the clock that clients see (the header Date, all times of a message, the age of a request) ahead of the
    /// real one.
    pub fn set_clock_offset(&self, seconds: i64) {
        self.lock().clock_offset = seconds;
    }

    /// Lets this much time pass for leases, delays, retention and polls.
    pub fn advance(&self, time: Duration) {
        self.lock().skipped += time;
        self.shared.changed.notify_waiters();
    }

    /// Breaks all connections and refuses new ones.
    pub fn down(&self) {
        self.command(Command::Down);
    }

    /// Ends an outage, on the same port and with the same contents.
    pub fn up(&self) {
        self.command(Command::Up);
    }

    fn command(&self, command: impl FnOnce(mpsc::Sender<()>) -> Command) {
        let (done, wait) = mpsc::channel();
        let commands = self.commands.as_ref().expect("there until dropped");
        commands.send(command(done)).expect("the thread runs until dropped");
        wait.recv().expect("the thread of the server has ended; see above for the reason");
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }

    fn with<T>(&self, queue: &str, work: impl FnOnce(&mut Queue, Now) -> T) -> T {
        let mut state = self.lock();
        let now = state.now();
        work(state.queues.get_mut(queue).unwrap_or_else(|| panic!("there is no queue {queue}")), now)
    }
}

impl Drop for Mns {
    fn drop(&mut self) {
        self.commands = None;
        let ended = self.thread.take().map(JoinHandle::join);
        // Standard error already shows a panic there. Another panic here, while a test fails, would hide it.
        if ended.is_some_and(|ended| ended.is_err()) && !std::thread::panicking() {
            panic!("the server that simulates MNS has panicked; see above for the reason");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    fn now(&self) -> Now {
        let millis = self.time().unix_timestamp_nanos() / 1_000_000;
        Now {
            instant: Instant::now() + self.skipped,
            millis: i64::try_from(millis).expect("milliseconds of a year with four digits"),
        }
    }

    /// The time that clients see.
    fn time(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + time::Duration::seconds(self.clock_offset)
    }

    fn create(&mut self, name: &str, attributes: QueueAttributes) {
        self.queues_made += 1;
        let queue = Queue::new(self.queues_made, attributes, self.now());
        self.queues.insert(name.to_owned(), queue);
    }

    /// Logs a request. Returns its number.
    fn log(&mut self, request: Request) -> usize {
        self.requests.push(request);
        self.forgotten + self.requests.len() - 1
    }

    /// The request with that number, unless it was forgotten.
    fn logged(&mut self, number: usize) -> Option<&mut Request> {
        self.requests.get_mut(number.checked_sub(self.forgotten)?)
    }

    /// The fault for this request, if there is one.
    fn fault(&mut self, operation: Operation) -> Option<Fault> {
        let fault = self.faults.iter_mut().find(|(operations, times, _)| *times > 0 && operations.contains(&operation));
        let (_, times, fault) = fault?;
        if *times != usize::MAX {
            *times -= 1;
        }
        Some(fault.clone())
    }
}

/// The status of an error, if it is known.
fn status_of(code: &str) -> Option<u16> {
    ERRORS.iter().find(|(known, ..)| *known == code).map(|&(_, status, _)| status)
}

fn message_of(code: &str) -> &'static str {
    ERRORS.iter().find(|(known, ..)| *known == code).map_or("a fault that a test requested", |&(.., message)| message)
}
