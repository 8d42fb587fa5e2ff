//! Why a record was not published, and what this means for the record.

use std::fmt;

use crate::common::words::words;

words! {
    /// Why a record was not published, in a closed list: the label `kind` of metrics, and the reason of dead letters.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum ErrorKind {
        /// Not connected, or the bus says that it cannot accept the record at the moment: a limit, a quota, an election,
        /// not enough replicas.
        Unavailable = "unavailable",
        /// No answer before the deadline; the record may have arrived.
        TimedOut = "timed_out",
        /// The client's queue stayed full until the deadline.
        QueueFull = "queue_full",
        /// No such topic, or no stream for the subject.
        NoSuchDestination = "no_such_destination",
        /// The bus does not accept the login, or the user lacks a permission.
        Unauthorized = "unauthorized",
        /// Refused because of a setting of the client or the bus.
        Misconfigured = "misconfigured",
        /// Larger than the bus accepts.
        TooLarge = "too_large",
        /// Refused because of the content of the record.
        Rejected = "rejected",
    }
}

/// What an error means for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The bus will accept the record later. No action is needed: the record is retried for as long as that takes.
    Transient,
    /// The record is valid. The bus accepts it after an operator has fixed something, or after an election. It is
    /// retried, and becomes a dead letter after `delivery.give_up_after`.
    Operator,
    /// The bus will never accept the record: it becomes a dead letter at once.
    Permanent,
}

impl ErrorKind {
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
            ErrorKind::NoSuchDestination => {
                "create the topic, stream or endpoint, or fix its name in the configuration"
            }
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
    /// The message of the client or the bus.
    pub message: String,
}

impl PublishError {
    /// An error of a kind, with the message of its cause.
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> PublishError {
        PublishError { kind, message: message.to_string() }
    }
}
