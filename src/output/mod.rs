//! Outputs: the buses that records are published to.
//!
//! A new output is one file with its settings and its [`Output`], and one line in [`KINDS`].

pub mod console;
pub mod kafka;
pub mod nats;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use prometheus::Gauge;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::event::{Event, Mode};
use crate::route::Template;
use crate::telemetry::Seldom;
use crate::telemetry::metrics::Metrics;

/// The kinds of outputs, as `kind` names them.
pub const KINDS: &[&str] = &["kafka", "nats", "console"];

/// How often it is looked whether the secrets that an output logs in with have changed.
const SECRETS_CHECK: Duration = Duration::from_secs(5);

/// The longest time that a record is given to be published, when nobody waits for an answer: a bus that takes seconds
/// for each record must still be able to take what has gathered. It is also how long a request to a server that stopped
/// answering holds up a topic, although another server may have taken over.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How often an output that stays down says so again.
const REMIND: Duration = Duration::from_secs(300);

/// What is published: an event and where it goes.
#[derive(Clone, Debug)]
pub struct Record {
    /// The event.
    pub event: Arc<Event>,
    /// Topic or subject.
    pub topic: String,
    /// Key, where the bus has keys.
    pub key: Option<String>,
    /// Layout, where the destination names one.
    pub mode: Option<Mode>,
}

/// A bus.
///
/// `publish` returns when the bus holds the record durably, or with an error whose [`ErrorKind`] says whether trying
/// again can help. The caller decides about trying again; an output does so only inside the deadline, where its
/// client library does it by itself. At the deadline it returns [`ErrorKind::TimedOut`]: the record may arrive all
/// the same. The future may be dropped, which gives up waiting but not necessarily the record. Several run at once;
/// a full queue inside is waited for, as back-pressure.
pub trait Output: Send + Sync + fmt::Debug {
    /// The name the configuration gave it.
    fn name(&self) -> &str;

    /// Publishes a record.
    fn publish<'a>(&'a self, record: &'a Record, deadline: Instant) -> BoxFuture<'a, Result<(), PublishError>>;

    /// Whether it is connected.
    fn health(&self) -> &Health;
}

/// Why a record was not published, in a closed list: the label `kind` of metrics, and the reason of dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Not connected, or the bus says that it cannot take the record at the moment: a limit, a quota, an election, not
    /// enough replicas.
    Unavailable,
    /// No answer before the deadline; the record may have arrived.
    TimedOut,
    /// The client's queue stayed full until the deadline.
    QueueFull,
    /// No such topic, or no stream for the subject.
    NoSuchDestination,
    /// Refused because of who we are.
    Unauthorized,
    /// Refused because of how the client or the bus is set up.
    Misconfigured,
    /// Larger than the bus accepts.
    TooLarge,
    /// Refused because of what the record is.
    Rejected,
}

/// What an error means for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The bus will accept the record later, without anybody's help: it is retried for as long as that takes.
    Transient,
    /// The record is fine; the bus accepts it when somebody has fixed something, or when an election is over. It is
    /// retried, and becomes a dead letter after `delivery.give_up_after`.
    Operator,
    /// The bus will never accept the record: it becomes a dead letter at once.
    Permanent,
}

impl ErrorKind {
    /// Every kind.
    pub const ALL: [ErrorKind; 8] = [
        ErrorKind::Unavailable,
        ErrorKind::TimedOut,
        ErrorKind::QueueFull,
        ErrorKind::NoSuchDestination,
        ErrorKind::Unauthorized,
        ErrorKind::Misconfigured,
        ErrorKind::TooLarge,
        ErrorKind::Rejected,
    ];

    /// The word in metrics and dead letters.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::TimedOut => "timed_out",
            ErrorKind::QueueFull => "queue_full",
            ErrorKind::NoSuchDestination => "no_such_destination",
            ErrorKind::Unauthorized => "unauthorized",
            ErrorKind::Misconfigured => "misconfigured",
            ErrorKind::TooLarge => "too_large",
            ErrorKind::Rejected => "rejected",
        }
    }

    /// What it means for the record.
    pub fn class(self) -> ErrorClass {
        match self {
            ErrorKind::Unavailable | ErrorKind::TimedOut | ErrorKind::QueueFull => ErrorClass::Transient,
            ErrorKind::NoSuchDestination | ErrorKind::Unauthorized | ErrorKind::Misconfigured => ErrorClass::Operator,
            ErrorKind::TooLarge | ErrorKind::Rejected => ErrorClass::Permanent,
        }
    }

    /// Whether the bus may accept the same record later.
    pub fn is_retriable(self) -> bool {
        self.class() != ErrorClass::Permanent
    }

    /// What a person can do about an operator's error; empty for the others.
    pub fn remedy(self) -> &'static str {
        match self {
            ErrorKind::NoSuchDestination => "create the topic or stream, or fix its name in the route",
            ErrorKind::Unauthorized => "give the user of the output the right to publish there",
            ErrorKind::Misconfigured => "compare the settings of the output with those of the bus",
            _ => "",
        }
    }
}

/// Why a record was not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", kind.as_str())]
pub struct PublishError {
    /// What to do about it.
    pub kind: ErrorKind,
    /// The words of the client or the bus.
    pub message: String,
}

impl PublishError {
    /// An error of a kind with the cause's own words.
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> PublishError {
        PublishError { kind, message: message.to_string() }
    }
}

const CONNECTING: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;

/// Whether an output is connected: read by readiness, written by the output, shown as `output_up`.
#[derive(Debug)]
pub struct Health {
    name: String,
    state: AtomicU8,
    gauge: Gauge,
    said: Seldom,
    doubt: Notify,
    came_up: Notify,
    closed: AtomicBool,
}

impl Health {
    /// The health of an output that has not connected yet.
    pub fn new(name: &str, metrics: &Metrics) -> Health {
        let gauge = metrics.output_up.with_label_values(&[name]);
        gauge.set(0.0);
        Health {
            name: name.to_owned(),
            state: AtomicU8::new(CONNECTING),
            gauge,
            said: Seldom::every(REMIND),
            doubt: Notify::new(),
            came_up: Notify::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// Whether it has connected and is not known to be down.
    pub fn is_up(&self) -> bool {
        self.state.load(Ordering::Relaxed) == UP
    }

    /// It answered.
    pub fn up(&self) {
        if self.state.load(Ordering::Relaxed) != UP && self.state.swap(UP, Ordering::Relaxed) != UP {
            self.gauge.set(1.0);
            self.said.reset();
            self.came_up.notify_waiters();
            tracing::info!(output = %self.name, "output is connected");
        }
    }

    /// Waits until it is up.
    pub async fn wait_until_up(&self) {
        loop {
            // Asked for before looking, so that no change in between is missed.
            let came_up = self.came_up.notified();
            if self.is_up() {
                return;
            }
            came_up.await;
        }
    }

    /// It doesn't answer, and why: said at once when new, and then seldom.
    pub fn down(&self, reason: &str) {
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        let before = self.state.load(Ordering::Relaxed);
        // An output that never was connected is still connecting, but its trouble is told.
        if before == UP {
            self.state.store(DOWN, Ordering::Relaxed);
            self.gauge.set(0.0);
        }
        if self.said.is_due("down") {
            tracing::warn!(output = %self.name, reason, "output is down; connecting goes on");
        }
    }

    /// Something points to trouble: whoever watches the output should look.
    pub fn suspect(&self) {
        self.doubt.notify_one();
    }

    /// Waits until the output is suspected, at most the given time; true when it is.
    pub async fn suspected(&self, at_most: Duration) -> bool {
        tokio::time::timeout(at_most, self.doubt.notified()).await.is_ok()
    }

    /// It is being closed on purpose: that its connections end now is no news.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.gauge.set(0.0);
    }
}

/// Checks the topic of a destination against the rules of an output's kind.
///
/// # Errors
/// A phrase with the rule that is broken.
pub fn check_topic(kind: &str, topic: &Template, type_prefix: &str) -> Result<(), String> {
    match kind {
        "kafka" => kafka::check_topic(topic, type_prefix),
        "nats" => nats::check_topic(topic),
        _ => Ok(()),
    }
}
