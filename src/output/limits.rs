//! What `doctor` says about the limits of any bus: the size of messages, and how long they are kept.

use std::time::Duration;

use super::Needs;
use crate::common::findings::Findings;
use crate::common::units::{Size, Span};

/// A bus that keeps messages for less loses them when a consumer is down for a night.
const LEAST_KEPT: Duration = Duration::from_secs(24 * 3600);

/// An event is never smaller.
const SMALLEST_EVENT: u64 = 256;

/// Bytes that an event can have in addition to its callback.
const ENVELOPE: u64 = 4096;

/// Compares the largest message of a bus with what can arrive. `what` is the subject of a sentence.
pub(super) fn size(what: &str, limit: u64, needs: &Needs, remedy: &str, findings: &Findings) {
    let seen = format!("{what} accepts at most {}", Size(limit));
    let largest = needs.largest_body.saturating_add(ENVELOPE);
    if limit < SMALLEST_EVENT {
        findings.problem("message size", format!("{seen}: no event fits"), remedy);
    } else if needs.largest_body > 0 && limit < largest {
        let seen = format!(
            "{seen}, but inputs accept callbacks of {}, and an event has up to {} more: larger ones are refused",
            Size(needs.largest_body),
            Size(ENVELOPE)
        );
        findings.warning("message size", seen, remedy);
    }
}

/// Compares how long a bus keeps messages with the shortest time that is enough. `what` is the subject of a sentence.
pub(super) fn kept(what: &str, time: Duration, remedy: &str, findings: &Findings) {
    if time < LEAST_KEPT {
        let seen = format!(
            "{what} deletes events after {}, also unread ones; less than {} is reported, because a consumer can be \
             down for a night",
            Span(time),
            Span(LEAST_KEPT)
        );
        findings.warning("retention", seen, remedy);
    }
}
