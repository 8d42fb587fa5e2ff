//! One queue: its messages, their leases and receipt handles. It has no clock and no network.
//!
//! Promises: a receiver holds a message until its visibility time-out is over or changed. Each receive and each change
//! issues a handle, and only the newest handle is valid. When a lease ends, the message can be received again. A handle
//! that is no longer valid and a handle that was never issued give different errors. Messages are delivered by
//! priority, then in the order in which they were sent.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};

/// The most messages in one call.
pub const MAX_BATCH: usize = 16;
/// The longest poll, in seconds.
pub const MAX_WAIT: u64 = 30;
/// The range of a lease, in seconds.
pub const VISIBILITY: RangeInclusive<u64> = 1..=43_200;
/// The range of a delay, in seconds.
pub const DELAY: RangeInclusive<u64> = 0..=604_800;

/// The start of all handles: `++//`. Some handles of the service contain these characters. Here every handle does, so a
/// test always covers how a client encodes and signs them.
const HANDLE_START: [u8; 3] = [0xfb, 0xef, 0xff];
/// The bytes in a handle: the start, the queue, the message, the lease, and a checksum. It is not a multiple of three,
/// so the text ends with `=`.
const HANDLE_BYTES: usize = HANDLE_START.len() + 4 + 8 + 8 + 8;

/// A moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The clock of leases.
    pub instant: Instant,
    /// The clock that clients see, in milliseconds since 1970.
    pub millis: i64,
}

/// The attributes of a queue. The defaults are the service's.
///
/// Over HTTP all times are in whole seconds. A queue that is created from Rust may have shorter ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueAttributes {
    /// How long a receiver holds a message. Default: 30 s.
    pub visibility_timeout: Duration,
    /// How long a receive waits if it does not say so. Default: not at all.
    pub polling_wait: Duration,
    /// How long a message is invisible at first if it does not say so. Default: not at all.
    pub delay: Duration,
    /// How long a message is kept. Default: 7 days.
    pub retention: Duration,
    /// The largest body as it is transferred, in bytes. Default: 65,536.
    pub maximum_message_size: usize,
    /// Stored and returned, without effect. Default: false.
    pub logging: bool,
}

impl Default for QueueAttributes {
    fn default() -> Self {
        Self {
            visibility_timeout: Duration::from_secs(30),
            polling_wait: Duration::ZERO,
            delay: Duration::ZERO,
            retention: Duration::from_secs(7 * 24 * 3600),
            maximum_message_size: 65_536,
            logging: false,
        }
    }
}

/// A message to put into a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// The body as it is transferred. The caller encodes it if Base64 is wanted.
    pub body: String,
    /// 1 (first) to 16 (last). Default: 8.
    pub priority: u8,
    /// How long it is invisible at first. Default: the delay of the queue.
    pub delay: Option<Duration>,
    /// XML that is added to the elements of the message, for example `<SystemProperties>`.
    pub extra: String,
}

impl From<String> for Put {
    fn from(body: String) -> Self {
        Self { body, priority: 8, delay: None, extra: String::new() }
    }
}

impl From<&str> for Put {
    fn from(body: &str) -> Self {
        body.to_owned().into()
    }
}

/// How many messages a queue has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Messages that can be received.
    pub active: usize,
    /// Messages that are leased.
    pub inactive: usize,
    /// Messages that cannot be received yet for the first time.
    pub delayed: usize,
}

/// The state of a message in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It can be received.
    Active,
    /// It is leased.
    Inactive,
    /// It cannot be received yet.
    Delayed,
}

/// A message that is still in a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Its id.
    pub id: String,
    /// The body as it is transferred.
    pub body: String,
    /// How often it was received.
    pub dequeue_count: u32,
    /// Its state.
    pub standing: Standing,
}

/// A message that was sent.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) id: String,
    pub(super) body_md5: String,
    /// Only for a delayed message.
    pub(super) handle: Option<String>,
}

/// A message that is delivered.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) id: String,
    pub(super) body: String,
    pub(super) body_md5: String,
    pub(super) enqueued: i64,
    pub(super) first_dequeued: i64,
    pub(super) dequeue_count: u32,
    pub(super) priority: u8,
    pub(super) extra: String,
    /// The handle, and when the message can be received again. None for a peek.
    pub(super) lease: Option<(String, i64)>,
}

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) attributes: QueueAttributes,
    /// Seconds since 1970.
    pub(super) created: i64,
    /// Seconds since 1970.
    pub(super) modified: i64,
    number: u32,
    check: RandomState,
    next_message: u64,
    next_lease: u64,
    messages: BTreeMap<u64, Message>,
    /// The messages that can be received, in the order of delivery.
    ready: BTreeSet<(u8, u64)>,
    /// The others, by the time at which they can be received.
    hidden: BTreeSet<(Instant, u64)>,
    deleted: Vec<String>,
    lapsed: Vec<String>,
    /// By message id, also of messages that were deleted.
    received: HashMap<String, u32>,
    wrong_md5: HashSet<String>,
    /// By message id: how many more deletes fail, and with which code.
    undeletable: HashMap<String, (usize, &'static str)>,
}

#[derive(Debug)]
struct Message {
    id: String,
    put: Put,
    body_md5: String,
    since: Instant,
    enqueued: i64,
    first_dequeued: Option<i64>,
    dequeue_count: u32,
    lease: Option<Lease>,
}

#[derive(Debug)]
struct Lease {
    number: u64,
    until: Instant,
}

impl Queue {
    pub(super) fn new(number: u32, attributes: QueueAttributes, now: Now) -> Self {
        Self {
            attributes,
            created: now.millis / 1000,
            modified: now.millis / 1000,
            number,
            check: RandomState::new(),
            next_message: 1,
            next_lease: 1,
            messages: BTreeMap::new(),
            ready: BTreeSet::new(),
            hidden: BTreeSet::new(),
            deleted: Vec::new(),
            lapsed: Vec::new(),
            received: HashMap::new(),
            wrong_md5: HashSet::new(),
            undeletable: HashMap::new(),
        }
    }

    pub(super) fn put(&mut self, now: Now, put: Put) -> Sent {
        let number = self.next_message;
        self.next_message += 1;
        let id = format!("{:016X}{number:016X}", self.check.hash_one(self.number));
        let body_md5 = md5(&put.body);
        let delay = put.delay.unwrap_or(self.attributes.delay);
        let lease = (!delay.is_zero()).then(|| self.lease(number, now.instant + delay));
        if lease.is_none() {
            self.ready.insert((put.priority, number));
        }
        let handle = lease.as_ref().map(|lease| self.handle(number, lease.number));
        self.received.insert(id.clone(), 0);
        let message = Message {
            id: id.clone(),
            put,
            body_md5: body_md5.clone(),
            since: now.instant,
            enqueued: now.millis,
            first_dequeued: None,
            dequeue_count: 0,
            lease,
        };
        self.messages.insert(number, message);
        Sent { id, body_md5, handle }
    }

    /// Leases up to `max` messages.
    pub(super) fn receive(&mut self, now: Now, max: usize) -> Vec<Received> {
        self.settle(now);
        let mut received = Vec::new();
        while received.len() < max
            && let Some((_, number)) = self.ready.pop_first()
        {
            let until = now.instant + self.attributes.visibility_timeout;
            let lease = self.lease(number, until);
            let handle = self.handle(number, lease.number);
            let message = self.messages.get_mut(&number).expect("a ready message exists");
            message.lease = Some(lease);
            message.dequeue_count += 1;
            message.first_dequeued.get_or_insert(now.millis);
            *self.received.get_mut(&message.id).expect("entered when it was put") += 1;
            let visible = now.millis + millis(until - now.instant);
            received.push(self.show(number, Some((handle, visible))));
        }
        received
    }

    /// The messages that would be received.
    pub(super) fn peek(&mut self, now: Now, max: usize) -> Vec<Received> {
        self.settle(now);
        self.ready.iter().take(max).map(|&(_, number)| self.show(number, None)).collect()
    }

    pub(super) fn delete(&mut self, now: Now, handle: &str) -> Result<(), &'static str> {
        let number = self.find(now, handle)?;
        let message = &self.messages[&number];
        if let Some((times, code)) = self.undeletable.get_mut(&message.id)
            && *times > 0
        {
            *times -= 1;
            return Err(code);
        }
        let message = self.remove(number);
        self.deleted.push(message.id);
        Ok(())
    }

    /// The new handle, and when the message can be received again.
    pub(super) fn change_visibility(
        &mut self,
        now: Now,
        handle: &str,
        timeout: Duration,
    ) -> Result<(String, i64), &'static str> {
        let number = self.find(now, handle)?;
        let lease = self.lease(number, now.instant + timeout);
        let handle = self.handle(number, lease.number);
        let message = self.messages.get_mut(&number).expect("it was found");
        let old = message.lease.replace(lease).expect("a message with a valid handle is leased");
        self.hidden.remove(&(old.until, number));
        Ok((handle, now.millis + millis(timeout)))
    }

    pub(super) fn counts(&mut self, now: Now) -> Counts {
        self.settle(now);
        let is_delayed = |number| self.messages[number].standing() == Standing::Delayed;
        let delayed = self.hidden.iter().filter(|(_, number)| is_delayed(number)).count();
        Counts { active: self.ready.len(), inactive: self.hidden.len() - delayed, delayed }
    }

    /// When the next message becomes receivable.
    pub(super) fn next_visible(&self) -> Option<Instant> {
        self.hidden.first().map(|&(until, _)| until)
    }

    pub(super) fn left(&mut self, now: Now) -> Vec<Left> {
        self.settle(now);
        let left = self.messages.values().map(|message| Left {
            id: message.id.clone(),
            body: message.put.body.clone(),
            dequeue_count: message.dequeue_count,
            standing: message.standing(),
        });
        left.collect()
    }

    pub(super) fn deleted(&self) -> &[String] {
        &self.deleted
    }

    pub(super) fn lapsed(&mut self, now: Now) -> &[String] {
        self.settle(now);
        &self.lapsed
    }

    pub(super) fn received(&self) -> &HashMap<String, u32> {
        &self.received
    }

    pub(super) fn set_wrong_md5(&mut self, id: &str, wrong: bool) {
        if wrong {
            self.wrong_md5.insert(id.to_owned());
        } else {
            self.wrong_md5.remove(id);
        }
    }

    pub(super) fn set_undeletable(&mut self, id: &str, times: usize, code: &'static str) {
        self.undeletable.insert(id.to_owned(), (times, code));
    }

    /// Makes messages receivable whose lease or delay is over, and drops those whose retention time is over.
    fn settle(&mut self, now: Now) {
        while let Some(&(until, number)) = self.hidden.first()
            && until <= now.instant
        {
            self.hidden.pop_first();
            let message = self.messages.get_mut(&number).expect("a hidden message exists");
            message.lease = None;
            self.ready.insert((message.put.priority, number));
        }
        while let Some((&number, message)) = self.messages.first_key_value()
            && message.since + self.attributes.retention <= now.instant
        {
            let message = self.remove(number);
            self.lapsed.push(message.id);
        }
    }

    fn remove(&mut self, number: u64) -> Message {
        let message = self.messages.remove(&number).expect("the number was found");
        match &message.lease {
            Some(lease) => self.hidden.remove(&(lease.until, number)),
            None => self.ready.remove(&(message.put.priority, number)),
        };
        message
    }

    fn lease(&mut self, message: u64, until: Instant) -> Lease {
        let number = self.next_lease;
        self.next_lease += 1;
        self.hidden.insert((until, message));
        Lease { number, until }
    }

    fn show(&self, number: u64, lease: Option<(String, i64)>) -> Received {
        let message = &self.messages[&number];
        let body_md5 =
            if self.wrong_md5.contains(&message.id) { md5(&message.body_md5) } else { message.body_md5.clone() };
        Received {
            id: message.id.clone(),
            body: message.put.body.clone(),
            body_md5,
            enqueued: message.enqueued,
            // The answer of the service about a message that was never received is not documented.
            first_dequeued: message.first_dequeued.unwrap_or(message.enqueued),
            dequeue_count: message.dequeue_count,
            priority: message.put.priority,
            extra: message.put.extra.clone(),
            lease,
        }
    }

    fn handle(&self, message: u64, lease: u64) -> String {
        let mut bytes = Vec::with_capacity(HANDLE_BYTES);
        bytes.extend(HANDLE_START);
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(message.to_be_bytes());
        bytes.extend(lease.to_be_bytes());
        bytes.extend(self.check.hash_one((self.number, message, lease)).to_be_bytes());
        format!("1-{}", STANDARD.encode(bytes))
    }

    /// The message of a valid handle. The codes are those of the service: `ReceiptHandleError` for a handle that this
    /// queue never issued, `MessageNotExist` for one that is no longer valid or whose message was deleted.
    fn find(&mut self, now: Now, handle: &str) -> Result<u64, &'static str> {
        self.settle(now);
        let (message, lease) = self.minted(handle).ok_or("ReceiptHandleError")?;
        let held = self.messages.get(&message).and_then(|message| message.lease.as_ref());
        if held.is_some_and(|held| held.number == lease) { Ok(message) } else { Err("MessageNotExist") }
    }

    /// The message and the lease for which this queue issued `handle`. They are encoded in the handle, so the queue
    /// need not remember handles.
    fn minted(&self, handle: &str) -> Option<(u64, u64)> {
        let bytes: [u8; HANDLE_BYTES] = STANDARD.decode(handle.strip_prefix("1-")?).ok()?.try_into().ok()?;
        let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let (message, lease) = (number(7), number(15));
        (self.handle(message, lease) == handle).then_some((message, lease))
    }
}

impl Message {
    fn standing(&self) -> Standing {
        match (&self.lease, self.dequeue_count) {
            (None, _) => Standing::Active,
            (Some(_), 0) => Standing::Delayed,
            (Some(_), _) => Standing::Inactive,
        }
    }
}

/// The MD5 of a text in upper-case hexadecimal digits.
pub fn md5(text: &str) -> String {
    super::signature::hex(&Md5::digest(text)).to_uppercase()
}

fn millis(duration: Duration) -> i64 {
    duration.as_millis().try_into().expect("a lease is not that long")
}
