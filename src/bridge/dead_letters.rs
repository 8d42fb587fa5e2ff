//! Dead letters: what cannot be published as it is. Every letter is built, announced and counted here.
//!
//! A letter is stored in the database, if there is one. If `dead_letters.to` is set it is also published there: its
//! *announcement*. Without a store the announcement is the only place, so that its failure refuses the callback.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::time::Instant;

use super::publish::{Addressed, Failure, Pace, spool_record};
use super::{Bridge, Callback, DeadLetterReason, Refusal, Rules};
use crate::dialect::NotACallback;
use crate::event::{Attribute, Event};
use crate::output::{PublishError, Record};
use crate::store::{self, AWAITS_DEAD_LETTERS, DeadLetter, SpoolRecord, Spooled};

/// The letter of a body that is not a callback.
pub(super) fn of_body(callback: &Callback, error: &NotACallback) -> DeadLetter {
    DeadLetter {
        reason: DeadLetterReason::NotACallback.as_str().to_owned(),
        code: error.to_string(),
        input: Some(callback.input.name().to_owned()),
        sender: (callback.sender.region.clone(), callback.sender.account_id.clone()),
        body: callback.body.clone(),
        at: store::now(),
        ..DeadLetter::default()
    }
}

/// The letter of an event that no route matched, or that a route made a dead letter.
pub(super) fn of_event(
    reason: DeadLetterReason,
    callback: &Callback,
    event: &Event,
    route: Option<&str>,
) -> DeadLetter {
    DeadLetter {
        reason: reason.as_str().to_owned(),
        code: code(reason, route),
        input: Some(callback.input.name().to_owned()),
        route: route.map(str::to_owned),
        event: Some(names(event)),
        sender: (callback.sender.region.clone(), callback.sender.account_id.clone()),
        envelope: Some(event.to_json().into()),
        body: callback.body.clone(),
        at: store::now(),
        ..DeadLetter::default()
    }
}

/// The letter of an event that a destination will never accept.
pub(super) fn of_failure(
    reason: DeadLetterReason,
    failure: &Failure,
    callback: &Callback,
    event: &Event,
) -> DeadLetter {
    DeadLetter {
        code: failure.error.message.clone(),
        attempts: failure.attempts,
        output: Some(failure.output.clone()),
        topic: Some(failure.record.topic.clone()),
        key: failure.record.key.clone(),
        ..of_event(reason, callback, event, Some(&failure.route))
    }
}

/// The letter of a record of the spool that its destination will never accept. `attempts` are those since the record was
/// read from the spool.
pub(super) fn of_record(event: &Event, record: SpoolRecord, error: &PublishError, attempts: u32) -> DeadLetter {
    DeadLetter {
        reason: DeadLetterReason::Publish(error.kind).as_str().to_owned(),
        code: error.message.clone(),
        attempts: record.attempts.saturating_add(attempts),
        route: Some(record.route),
        output: Some(record.output),
        topic: Some(record.topic),
        key: record.key,
        event: Some(names(event)),
        envelope: Some(record.envelope),
        body: record.body,
        at: store::now(),
        ..DeadLetter::default()
    }
}

/// The record that waits in the spool until the dead letters have room for an event without a destination.
fn waiting_record(reason: DeadLetterReason, letter: &DeadLetter, body: Bytes) -> SpoolRecord {
    SpoolRecord {
        output: AWAITS_DEAD_LETTERS.to_owned(),
        route: letter.route.clone().unwrap_or_default(),
        topic: reason.as_str().to_owned(),
        key: None,
        mode: None,
        attempts: 0,
        spooled_at: store::now(),
        envelope: letter.envelope.clone().unwrap_or_default(),
        body,
    }
}

/// The letter of a record of [`waiting_record`].
pub(super) fn of_waiting_record(spooled: Spooled) -> DeadLetter {
    let Spooled { record, is_sound, .. } = spooled;
    let event = Event::from_json(&record.envelope).ok().filter(|_| is_sound);
    let Some(event) = event else { return DeadLetter::of_damaged(record) };
    let route = (!record.route.is_empty()).then_some(record.route);
    let reason = DeadLetterReason::all().find(|reason| reason.as_str() == record.topic);
    DeadLetter {
        code: reason.map_or_else(String::new, |reason| code(reason, route.as_deref())),
        reason: record.topic,
        route,
        event: Some(names(&event)),
        envelope: Some(record.envelope),
        body: record.body,
        at: store::now(),
        ..DeadLetter::default()
    }
}

/// The code of a letter without an error of a bus.
fn code(reason: DeadLetterReason, route: Option<&str>) -> String {
    match reason {
        DeadLetterReason::Routed => format!("route {}", route.unwrap_or_default()),
        DeadLetterReason::Unrouted => "no route matched the event".to_owned(),
        _ => String::new(),
    }
}

/// Id, type and subject.
fn names(event: &Event) -> (String, String, Option<String>) {
    let text = |attribute| event.get(attribute).map(str::to_owned);
    (event.id().to_owned(), text(Attribute::Type).unwrap_or_default(), text(Attribute::Subject))
}

/// A dead letter that is to be kept.
#[derive(Debug)]
pub(super) struct PendingLetter {
    pub(super) reason: DeadLetterReason,
    pub(super) letter: DeadLetter,
    /// The destination that failed, if there is one.
    pub(super) failure: Option<Box<Failure>>,
    /// Whether the destination of dead letters has acknowledged it.
    pub(super) is_announced: bool,
}

impl PendingLetter {
    /// The record that waits in the spool until there is room among the dead letters. It is for the letter's own
    /// destination, where publishing is tried again, or for none.
    pub(super) fn spool_record(&self, body: Bytes) -> SpoolRecord {
        match &self.failure {
            Some(failure) => failure.spool_record(body),
            None => waiting_record(self.reason, &self.letter, body),
        }
    }
}

/// The record that publishes a dead letter.
pub(super) struct Announcement {
    output: String,
    record: Record,
}

impl Announcement {
    /// The announcement of a letter; none if `dead_letters.to` is not set. It keeps the key that the event would have had.
    pub(super) fn new(rules: &Rules, event: &Event, letter: &DeadLetter) -> Option<Announcement> {
        let destination = rules.dead_letters.as_ref()?;
        let mut event = Event::clone(event);
        event.set(Attribute::DlqReason, letter.reason.as_str());
        event.set(Attribute::DlqCode, letter.code.as_str());
        event.set(Attribute::DlqAttempts, letter.attempts.to_string());
        if let (Some(output), Some(topic)) = (&letter.output, &letter.topic) {
            event.set(Attribute::DlqDestination, format!("{output}/{topic}"));
        }
        let mut record = rules.record(&Arc::new(event), destination);
        if letter.key.is_some() {
            record.key.clone_from(&letter.key);
        }
        Some(Announcement { output: destination.output.clone(), record })
    }

    /// The record for the spool. It has no body, because the letter has it.
    pub(super) fn spool_record(&self) -> SpoolRecord {
        spool_record("", &self.output, &self.record, 0, Bytes::new())
    }
}

/// What became of an announcement.
pub(super) enum Announced {
    /// The destination of dead letters has acknowledged it.
    Published,
    /// This record publishes it later.
    Later(SpoolRecord),
    /// There is no such destination, or it does not accept the letter. The database has it.
    No,
}

impl Bridge {
    /// Publishes the announcement of a letter.
    ///
    /// # Errors
    /// There is no store, so that the announcement is the only place, and it is not configured or failed. The loss is
    /// counted and logged.
    pub(super) async fn announce(
        &self,
        rules: &Rules,
        event: &Event,
        reason: DeadLetterReason,
        letter: &DeadLetter,
        deadline: Instant,
    ) -> Result<Announced, Refusal> {
        let has_store = self.store.is_some();
        let Some(Announcement { output, record }) = Announcement::new(rules, event, letter) else {
            if has_store {
                return Ok(Announced::No);
            }
            let error = "there is no spool and dead_letters.to is not set; set one of them, or fix the cause";
            log_unannounced(event, letter, error, "a dead letter cannot be published and is not kept");
            self.dead_letter_not_kept(reason);
            return Err(Refusal::NoDeadLetters(reason));
        };
        // It is tried once even if the deadline is over, because without a store the letter has no other place.
        let to = Addressed { route: "", output: &output, record };
        match self.publish(to, Some(Pace::Prompt(deadline))).await {
            Ok(()) => Ok(Announced::Published),
            Err(failure) if has_store && failure.error.kind.is_retriable() => {
                Ok(Announced::Later(failure.spool_record(Bytes::new())))
            }
            Err(failure) if has_store => {
                let error = failure.error.to_string();
                log_unannounced(event, letter, &error, "a dead letter cannot be published; only the database has it");
                Ok(Announced::No)
            }
            Err(failure) => {
                let error = failure.error.to_string();
                log_unannounced(event, letter, &error, "a dead letter cannot be published and is not kept");
                self.dead_letter_not_kept(reason);
                Err(Refusal::NoDeadLetters(reason))
            }
        }
    }

    /// Counts and logs a dead letter that was kept.
    pub(super) fn dead_letter_kept(&self, letter: &DeadLetter) {
        self.metrics.dead_letters_total.with_label_values(&[letter.reason.as_str()]).inc();
        self.newest_dead_letter.fetch_max(letter.at, Ordering::Relaxed);
        let (id, event_type, subject) = match &letter.event {
            Some((id, event_type, subject)) => (Some(id), Some(event_type), subject.as_ref()),
            None => (None, None, None),
        };
        tracing::warn!(
            id,
            r#type = event_type,
            subject,
            output = letter.output,
            topic = letter.topic,
            reason = letter.reason,
            cause = letter.code,
            "dead letter"
        );
    }

    /// Counts a dead letter that could not be kept.
    pub(super) fn dead_letter_not_kept(&self, reason: DeadLetterReason) {
        self.metrics.dead_letters_not_kept_total.with_label_values(&[reason.as_str()]).inc();
    }
}

fn log_unannounced(event: &Event, letter: &DeadLetter, error: &str, message: &'static str) {
    tracing::error!(
        id = event.id(),
        r#type = event.get(Attribute::Type),
        subject = event.get(Attribute::Subject),
        source = event.get(Attribute::Source),
        output = letter.output,
        topic = letter.topic,
        reason = letter.reason,
        cause = letter.code,
        error,
        "{message}"
    );
}
