//! What became of a callback, and why.

use std::fmt;

use crate::dialect::NotACallback;
use crate::output::{ErrorClass, ErrorKind};
use crate::store::{FailureKind, NOT_A_CALLBACK};

/// What became of a callback. The input derives its answer to the sender from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every destination's bus has acknowledged the event.
    Published,
    /// The event is on the disk. The destinations that have not acknowledged it get it later.
    Spooled,
    /// The same event was accepted before, within the dedupe window.
    Duplicate,
    /// A route dropped the event.
    Dropped,
    /// The event cannot be published as it is. It is stored with the reason.
    DeadLettered(DeadLetterReason),
    /// Nothing is stored. The sender should try again.
    Refused(Refusal),
    /// The body is not a callback that the input accepts. Trying again cannot help.
    NotACallback {
        /// What is wrong with the body.
        error: NotACallback,
        /// Whether it is stored as a dead letter.
        kept: Kept,
    },
}

/// Whether a body that is not a callback is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is a dead letter.
    Yes,
    /// No: such bodies have used their share of the dead letters, or come too fast. Nothing is gained by trying again.
    OverBudget,
    /// No: there is no store, or it could not take it.
    No,
}

impl Outcome {
    /// The label `outcome` of metrics, every value.
    pub const LABELS: &[&str] =
        &["published", "spooled", "duplicate", "dropped", "dead_lettered", "refused", "not_accepted"];

    /// The word in metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Outcome::Published => "published",
            Outcome::Spooled => "spooled",
            Outcome::Duplicate => "duplicate",
            Outcome::Dropped => "dropped",
            Outcome::DeadLettered(_) | Outcome::NotACallback { kept: Kept::Yes, .. } => "dead_lettered",
            Outcome::Refused(_) => "refused",
            Outcome::NotACallback { .. } => "not_accepted",
        }
    }
}

/// Why an event became a dead letter: a closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeadLetterReason {
    /// No route matched it.
    Unrouted,
    /// A route with `dead_letter = true` matched it.
    Routed,
    /// It is not a callback of a known dialect.
    NotACallback,
    /// It was changed on the disk.
    Damaged,
    /// The queue delivered it too often, and it could not be published.
    Exhausted,
    /// The bus will never accept it, or an operator's error lasted longer than `delivery.give_up_after`.
    Publish(ErrorKind),
}

impl DeadLetterReason {
    /// Every reason.
    pub fn all() -> impl Iterator<Item = DeadLetterReason> {
        let publish = ErrorKind::ALL
            .into_iter()
            .filter(|kind| kind.class() != ErrorClass::Transient)
            .map(DeadLetterReason::Publish);
        let others = [
            DeadLetterReason::Unrouted,
            DeadLetterReason::Routed,
            DeadLetterReason::NotACallback,
            DeadLetterReason::Damaged,
            DeadLetterReason::Exhausted,
        ];
        others.into_iter().chain(publish)
    }

    /// The word in metrics and in the attribute `dlqreason`.
    pub fn as_str(self) -> &'static str {
        match self {
            DeadLetterReason::Unrouted => "unrouted",
            DeadLetterReason::Routed => "routed",
            DeadLetterReason::NotACallback => NOT_A_CALLBACK,
            DeadLetterReason::Damaged => "damaged",
            DeadLetterReason::Exhausted => "exhausted",
            DeadLetterReason::Publish(kind) => kind.as_str(),
        }
    }
}

/// Why nothing was stored. The text goes to the sender, so that it names no output, no topic and no error of a bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not every destination acknowledged the event in time, and there is no spool.
    NotPublished {
        /// Outputs of the destinations that did not acknowledge it, each once, sorted.
        outputs: Vec<String>,
        /// Number of destinations that did not acknowledge it.
        failed: usize,
        /// Number of destinations.
        destinations: usize,
    },
    /// The event belongs to the dead letters. There is no spool, and `dead_letters.to` is not set or did not accept it.
    NoDeadLetters(DeadLetterReason),
    /// The event could not be published, and the store could not take it.
    NotKept(FailureKind),
}

impl Refusal {
    /// Outputs of the destinations that did not acknowledge the event, where they are the reason: for the log.
    pub fn outputs(&self) -> Option<String> {
        match self {
            Refusal::NotPublished { outputs, .. } => Some(outputs.join(", ")),
            Refusal::NoDeadLetters(_) | Refusal::NotKept(_) => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotPublished { failed, destinations, .. } => write!(
                formatter,
                "{failed} of {destinations} destination{} did not acknowledge the event in time",
                if *destinations == 1 { "" } else { "s" }
            ),
            Refusal::NoDeadLetters(reason) => {
                write!(formatter, "the event cannot be published ({}) and no dead letter was kept", reason.as_str())
            }
            Refusal::NotKept(kind) => formatter.write_str(match kind {
                FailureKind::SpoolFull => "not every destination acknowledged the event in time, and the spool is full",
                FailureKind::LaneFull => {
                    "not every destination acknowledged the event in time, and its topic has used its share of the spool"
                }
                FailureKind::DeadLettersFull => {
                    "the event cannot be published, and neither the dead letters nor the spool have room for it"
                }
                _ => "not every destination acknowledged the event in time, and it could not be written to the disk",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_outputs_only_in_the_log() {
        let outputs = vec!["kafka".to_owned(), "nats".to_owned()];
        let refusal = Refusal::NotPublished { outputs, failed: 2, destinations: 3 };
        assert_eq!(refusal.to_string(), "2 of 3 destinations did not acknowledge the event in time");
        assert_eq!(refusal.outputs().as_deref(), Some("kafka, nats"));
    }
}
