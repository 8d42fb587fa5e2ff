//! Publishing an event to its destinations; what can't be published now goes to the spool, and what can't be
//! published at all to the dead letters.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::event::{DLQATTEMPTS, DLQCODE, DLQDESTINATION, DLQREASON, Event, SOURCE, SUBJECT, TYPE};
use crate::output::{ErrorClass, ErrorKind, MAX_PUBLISH_TIME, PublishError, Record};
use crate::route::Destination;

use super::{Bridge, Callback, DeadLetterReason, Outcome, Refusal, Rules, Target};
use crate::store;
use crate::store::{AWAITS_DEAD_LETTERS, DeadLetter, FailureKind, SpoolRecord, StoreError};

/// Pause before a record is tried again inside the deadline: doubles up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));

/// How long after its receipt a callback waits for the store: IMS waits 3 s for an answer (Alibaba's page on IMS
/// callbacks).
pub(super) const STORE_ANSWERS: Duration = Duration::from_millis(2500);

/// The time for publishing what the store could not take, when the deadline is over.
const LAST_TRY: Duration = Duration::from_millis(400);

/// How long after its receipt a callback is answered at the latest, for the same reason.
const LATEST_ANSWER: Duration = Duration::from_millis(2900);

/// How long a delivery may take, and whether it waits for outputs that are down.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// Somebody waits for the answer.
    Prompt(Instant),
    /// The input keeps the callback meanwhile.
    Patient(Instant),
}

impl Pace {
    fn deadline(self) -> Instant {
        match self {
            Pace::Prompt(deadline) | Pace::Patient(deadline) => deadline,
        }
    }
}

/// A record and where it goes.
struct Addressed<'a> {
    route: &'a str,
    output: &'a str,
    record: Record,
}

/// A destination that didn't take the event.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) route: String,
    pub(super) record: Record,
    pub(super) output: String,
    pub(super) attempts: u32,
    pub(super) error: PublishError,
}

/// What could not be published of one callback, and is to be kept.
#[derive(Debug, Default)]
struct Undelivered {
    /// To be published later.
    failures: Vec<Failure>,
    /// Not publishable as it is.
    letters: Vec<PendingLetter>,
}

/// A dead letter that is to be kept.
#[derive(Debug)]
struct PendingLetter {
    reason: DeadLetterReason,
    letter: DeadLetter,
    /// The destination that failed, if there is one.
    failure: Option<Box<Failure>>,
    /// Whether the destination of dead letters has acknowledged it.
    is_announced: bool,
}

impl PendingLetter {
    fn new(reason: DeadLetterReason, letter: DeadLetter, failure: Option<Box<Failure>>) -> PendingLetter {
        PendingLetter { reason, letter, failure, is_announced: false }
    }

    /// The record that waits in the spool until there is room among the dead letters: for its own destination, where
    /// publishing is tried again, or for none.
    fn record(&self, body: &Bytes) -> SpoolRecord {
        match &self.failure {
            Some(failure) => spool_record(failure, body.clone()),
            None => SpoolRecord {
                output: AWAITS_DEAD_LETTERS.to_owned(),
                route: self.letter.route.clone().unwrap_or_default(),
                topic: self.reason.as_str().to_owned(),
                key: None,
                mode: None,
                attempts: 0,
                spooled_at: store::now(),
                envelope: self.letter.envelope.clone().unwrap_or_default(),
                body: body.clone(),
            },
        }
    }
}

/// Where what could not be published went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeptIn {
    /// Records are in the spool, dead letters among those.
    Places,
    /// The dead letters are full: all of it is in the spool.
    SpoolOnly,
    /// The store failed; the buses have it after all.
    Buses,
}

/// What became of an event, and whether a destination has it: then a repeat of it is a duplicate.
pub(super) struct Delivered {
    pub(super) outcome: Outcome,
    pub(super) is_delivered: bool,
}

impl Bridge {
    /// Routes an event, publishes it, and keeps what is left of it.
    pub(super) async fn take(&self, rules: &Rules, callback: &Callback, event: &Arc<Event>) -> Delivered {
        let decision = rules.router.decide(event);
        let addressed = decision.destinations.iter().map(|(route, destination)| Addressed {
            route: &route.name,
            output: &destination.output,
            record: self.record(rules, event, destination),
        });
        let addressed: Vec<Addressed<'_>> = addressed.collect();
        let pace = self.pace(callback);
        let deadline = pace.deadline();
        for index in &decision.taken_by {
            rules.route_matches[*index].inc();
        }
        let destinations = addressed.len();
        let failures = self.deliver(addressed, pace).await;
        let published = destinations - failures.len();
        let mut undelivered = Undelivered::default();
        for failure in failures {
            let reason = match failure.error.kind {
                kind if !kind.is_retriable() => DeadLetterReason::Publish(kind),
                _ if callback.is_last_try => DeadLetterReason::Exhausted,
                _ => {
                    undelivered.failures.push(*failure);
                    continue;
                }
            };
            let letter = letter_of(reason, &failure, callback, event);
            undelivered.letters.push(PendingLetter::new(reason, letter, Some(failure)));
        }
        if decision.is_unrouted() {
            let reason = DeadLetterReason::Unrouted;
            let letter = letter(reason, callback, event, None, reason.code(""));
            undelivered.letters.push(PendingLetter::new(reason, letter, None));
        } else if let Some(route) = decision.dead_letter_by {
            let reason = DeadLetterReason::Routed;
            let letter = letter(reason, callback, event, Some(&route.name), reason.code(&route.name));
            undelivered.letters.push(PendingLetter::new(reason, letter, None));
        }
        let is_spooled = !undelivered.failures.is_empty();
        let outcome = match (undelivered.letters.first(), is_spooled) {
            (Some(first), _) => Outcome::DeadLettered(first.reason),
            (None, true) => Outcome::Spooled,
            (None, false) if destinations == 0 => Outcome::Dropped,
            (None, false) => return Delivered { outcome: Outcome::Published, is_delivered: true },
        };
        let is_delivered = published > 0 || is_spooled || outcome == Outcome::Dropped;
        match self.keep(rules, callback, event, undelivered, destinations, deadline).await {
            Ok(KeptIn::Places) => Delivered { outcome, is_delivered },
            Ok(KeptIn::SpoolOnly) => Delivered { outcome: Outcome::Spooled, is_delivered: true },
            Ok(KeptIn::Buses) if outcome == Outcome::Spooled => {
                Delivered { outcome: Outcome::Published, is_delivered: true }
            }
            Ok(KeptIn::Buses) => Delivered { outcome, is_delivered },
            Err(refusal) => Delivered { outcome: Outcome::Refused(refusal), is_delivered: false },
        }
    }

    /// How long a callback may take. One that its input keeps meanwhile, for example a queue, has more time.
    fn pace(&self, callback: &Callback) -> Pace {
        match callback.patience {
            None => Pace::Prompt(callback.arrived + self.delivery.deadline),
            Some(patience) => Pace::Patient(callback.arrived + patience),
        }
    }

    /// Publishes to all destinations at once and gives back those that failed.
    async fn deliver(&self, mut addressed: Vec<Addressed<'_>>, pace: Pace) -> Vec<Box<Failure>> {
        let room = match self.room.try_acquire() {
            Ok(room) => Some(room),
            Err(_) => {
                tokio::select! {
                    room = self.room.acquire() => room.ok(),
                    () = tokio::time::sleep_until(pace.deadline()) => None,
                    () = self.cancel_in_flight.cancelled() => None,
                }
            }
        };
        let pace = room.is_some().then_some(pace);
        let publish = async |to: Addressed<'_>| self.publish(to.route, to.output, to.record, pace).await;
        if addressed.len() == 1
            && let Some(only) = addressed.pop()
        {
            return publish(only).await.err().into_iter().collect();
        }
        join_all(addressed.into_iter().map(publish)).await.into_iter().filter_map(Result::err).collect()
    }

    pub(super) fn record(&self, rules: &Rules, event: &Arc<Event>, destination: &Destination) -> Record {
        Record {
            topic: destination.topic.topic(event, rules.normalizer.type_prefix()),
            key: destination.key.key(event),
            mode: destination.mode,
            event: event.clone(),
        }
    }

    /// Publishes to one destination, trying again inside the deadline while that can help. A prompt one does not wait
    /// for an output that is down, nor for a topic that has older records in the spool: it queues up behind them.
    ///
    /// A patient one waits for its output. With a spool it waits only while no output is up: meanwhile it occupies a place
    /// in its input, which events for other outputs and topics need. Without a spool its attempts have more time from
    /// the second one on; an output publishes those apart from the rest. `pace` is none when the in-flight limit is
    /// reached: then nothing is tried.
    pub(super) async fn publish(
        &self,
        route: &str,
        output: &str,
        record: Record,
        pace: Option<Pace>,
    ) -> Result<(), Box<Failure>> {
        let mut attempts = 0;
        let failed = |record, attempts, error| {
            Err(Box::new(Failure { route: route.to_owned(), output: output.to_owned(), record, attempts, error }))
        };
        let Some(target) = self.outputs.get(output) else {
            return failed(record, 0, PublishError::new(ErrorKind::Misconfigured, "no such output"));
        };
        let Some(mut pace) = pace else {
            let error = PublishError::new(ErrorKind::QueueFull, "as many callbacks as may be in flight are in flight");
            return failed(record, 0, error);
        };
        let mut pause = RETRY.0;
        let error = loop {
            if let Pace::Patient(deadline) = pace {
                pace = self.wait_patiently(target, deadline).await;
            }
            let deadline = pace.deadline();
            if target.has_backlog(&record.topic) {
                let error = PublishError::new(ErrorKind::Unavailable, "older events wait in the spool");
                return failed(record, attempts, error);
            }
            attempts += 1;
            let longest = if attempts == 1 { self.delivery.deadline } else { MAX_PUBLISH_TIME };
            let tried = tokio::select! {
                tried = target.attempt(&record, deadline.min(Instant::now() + longest)) => tried,
                () = self.cancel_in_flight.cancelled() => Err(PublishError::new(ErrorKind::TimedOut, "the bridge is stopping")),
            };
            let Err(error) = tried else { return Ok(()) };
            let is_over = Instant::now() + pause >= deadline || self.cancel_in_flight.is_cancelled();
            let is_waited_for = match error.kind.class() {
                ErrorClass::Permanent => false,
                // The drain of the spool retries it just as soon, and no caller waits for that.
                ErrorClass::Operator if self.can_spool() => false,
                _ => matches!(pace, Pace::Patient(_)) || target.output.health().is_up(),
            };
            if !is_waited_for || is_over {
                break error;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        };
        tracing::debug!(
            id = record.event.id(),
            r#type = record.event.get(&TYPE),
            subject = record.event.get(&SUBJECT),
            source = record.event.get(&SOURCE),
            output,
            topic = record.topic,
            kind = error.kind.as_str(),
            error = error.message,
            attempts,
            "not published"
        );
        failed(record, attempts, error)
    }

    /// Waits until an attempt makes sense; what it may take then.
    async fn wait_patiently(&self, target: &Target, deadline: Instant) -> Pace {
        let can_spool = self.can_spool();
        let is_up = async {
            if can_spool {
                let up = self.outputs.values().map(|target| Box::pin(target.output.health().wait_until_up()));
                futures_util::future::select_all(up).await;
            } else {
                target.output.health().wait_until_up().await;
            }
        };
        tokio::select! {
            biased;
            () = is_up => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = self.cancel_in_flight.cancelled() => {}
        }
        if can_spool { Pace::Prompt(Instant::now() + self.delivery.deadline) } else { Pace::Patient(deadline) }
    }

    /// Keeps what is left of an event: all of it, or nothing. Order yields to loss: what the store cannot take is
    /// published past older events, if its output is up.
    async fn keep(
        &self,
        rules: &Rules,
        callback: &Callback,
        event: &Arc<Event>,
        undelivered: Undelivered,
        destinations: usize,
        deadline: Instant,
    ) -> Result<KeptIn, Refusal> {
        let Undelivered { failures, mut letters } = undelivered;
        let mut announcements = Vec::new();
        for pending in &mut letters {
            match self.announce(rules, event, pending.reason, &pending.letter, deadline).await? {
                Announced::Published => pending.is_announced = true,
                Announced::Later(record) => announcements.push(record),
                Announced::No => {}
            }
        }
        let Some(store) = &self.store else {
            return match failures.is_empty() {
                true => {
                    letters.iter().for_each(|pending| self.letter_kept(&pending.letter));
                    Ok(KeptIn::Places)
                }
                false => Err(not_published(&failures, destinations)),
            };
        };
        if failures.is_empty() && letters.is_empty() {
            return Ok(KeptIn::Places);
        }
        let records = || failures.iter().map(|failure| spool_record(failure, callback.body.clone()));
        let wanted: Vec<SpoolRecord> = records().chain(announcements.iter().cloned()).collect();
        let rows = letters.iter().map(|pending| pending.letter.clone()).collect();
        let until = (callback.arrived + STORE_ANSWERS).max(Instant::now() + STORE_ANSWERS / 2).max(deadline);
        let is_up = |output: &str| self.is_up(output);
        let error = match in_time(until, store.keep_within(wanted, rows, is_up)).await {
            Ok(()) => {
                letters.iter().for_each(|pending| self.letter_kept(&pending.letter));
                return Ok(KeptIn::Places);
            }
            Err(error) => error,
        };
        if error.kind == FailureKind::DeadLettersFull {
            let waiting = letters.iter().map(|pending| pending.record(&callback.body));
            let records = records().chain(waiting).chain(announcements).collect();
            let spooled = in_time(until, store.keep_within(records, Vec::new(), is_up)).await;
            if spooled.is_ok() {
                return Ok(KeptIn::SpoolOnly);
            }
        }
        let last = deadline.max((Instant::now() + LAST_TRY).min(callback.arrived + LATEST_ANSWER));
        let tries = failures.iter().map(|failure| self.publish_past(failure, last));
        let is_published = join_all(tries).await.into_iter().all(|is_published| is_published);
        if is_published && letters.iter().all(|pending| pending.is_announced) {
            letters.iter().for_each(|pending| self.letter_kept(&pending.letter));
            return Ok(KeptIn::Buses);
        }
        for pending in &letters {
            self.metrics.dead_letters_not_kept_total.with_label_values(&[pending.reason.as_str()]).inc();
        }
        Err(Refusal::NotKept(error.kind))
    }

    /// Publishes a record past older ones of its output, because the store cannot take it; tries until the deadline.
    async fn publish_past(&self, failure: &Failure, deadline: Instant) -> bool {
        let Some(target) = self.outputs.get(&failure.output) else { return false };
        let mut pause = RETRY.0;
        loop {
            if !target.output.health().is_up() || Instant::now() >= deadline || self.cancel_in_flight.is_cancelled() {
                return false;
            }
            let published = target.attempt(&failure.record, deadline).await;
            let id = failure.record.event.id();
            match published {
                Ok(()) => {
                    tracing::debug!(
                        id,
                        output = failure.output,
                        "the spool cannot take the event; it was published directly"
                    );
                    return true;
                }
                Err(error) if !error.kind.is_retriable() => return false,
                Err(_) => tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await,
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Counts and logs a dead letter that was kept.
    pub(super) fn letter_kept(&self, letter: &DeadLetter) {
        self.metrics.dead_letters_total.with_label_values(&[letter.reason.as_str()]).inc();
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

    /// Publishes a dead letter to the destination for those, if there is one; it keeps the key the event would have
    /// had. Gives back the record when that destination has not acknowledged it yet.
    ///
    /// # Errors
    /// When there is no store, so that the destination is the only place, and it doesn't take the letter.
    async fn announce(
        &self,
        rules: &Rules,
        event: &Event,
        reason: DeadLetterReason,
        letter: &DeadLetter,
        deadline: Instant,
    ) -> Result<Announced, Refusal> {
        let lost = |error: &str| {
            let place = if self.store.is_some() { "and is kept in the database only" } else { "and is not kept" };
            tracing::error!(
                id = event.id(),
                r#type = event.get(&TYPE),
                subject = event.get(&SUBJECT),
                source = event.get(&SOURCE),
                output = letter.output,
                topic = letter.topic,
                reason = reason.as_str(),
                cause = letter.code,
                error,
                "a dead letter can't be published {place}"
            );
        };
        let Some((output, record)) = self.announcement(rules, event, letter) else {
            if self.store.is_some() {
                return Ok(Announced::No);
            }
            lost("there is no spool and dead_letters.to is not set; set one of them, or fix the cause");
            self.metrics.dead_letters_not_kept_total.with_label_values(&[reason.as_str()]).inc();
            return Err(Refusal::NoDeadLetters(reason));
        };
        // Even late, it is tried once: the letter has nowhere else to go without a store.
        match self.publish("", &output, record, Some(Pace::Prompt(deadline))).await {
            Ok(()) => Ok(Announced::Published),
            Err(failure) if self.store.is_some() && failure.error.kind.is_retriable() => {
                Ok(Announced::Later(spool_record(&failure, Bytes::new())))
            }
            Err(failure) => {
                lost(&failure.error.to_string());
                if self.store.is_some() {
                    return Ok(Announced::No);
                }
                self.metrics.dead_letters_not_kept_total.with_label_values(&[reason.as_str()]).inc();
                Err(Refusal::NoDeadLetters(reason))
            }
        }
    }

    /// The record that publishes a dead letter, and its output.
    pub(super) fn announcement(&self, rules: &Rules, event: &Event, letter: &DeadLetter) -> Option<(String, Record)> {
        let destination = rules.dead_letters.as_ref()?;
        let mut event = Event::clone(event);
        event.set(&DLQREASON, letter.reason.as_str());
        event.set(&DLQCODE, letter.code.as_str());
        event.set(&DLQATTEMPTS, letter.attempts.to_string());
        if let (Some(output), Some(topic)) = (&letter.output, &letter.topic) {
            event.set(&DLQDESTINATION, format!("{output}/{topic}"));
        }
        let mut record = self.record(rules, &Arc::new(event), destination);
        if letter.key.is_some() {
            record.key.clone_from(&letter.key);
        }
        Some((destination.output.clone(), record))
    }
}

impl Target {
    /// Whether records for a topic of it are in the spool.
    fn has_backlog(&self, topic: &str) -> bool {
        self.lanes.as_ref().is_some_and(|lanes| lanes.has_backlog(topic))
    }

    /// Publishes once, and counts it.
    pub(super) async fn attempt(&self, record: &Record, deadline: Instant) -> Result<(), PublishError> {
        let result = if self.output.health().is_up() {
            let start = Instant::now();
            let result = self.output.publish(record, deadline).await;
            self.duration.observe(start.elapsed().as_secs_f64());
            result
        } else {
            Err(PublishError::new(ErrorKind::Unavailable, "the output is not connected"))
        };
        match &result {
            Ok(()) => self.published.inc(),
            Err(error) => {
                if let Some((_, failures)) = self.failures.iter().find(|(kind, _)| *kind == error.kind) {
                    failures.inc();
                }
            }
        }
        result
    }
}

/// The record of a failure, for the spool.
pub(super) fn spool_record(failure: &Failure, body: Bytes) -> SpoolRecord {
    SpoolRecord {
        output: failure.output.clone(),
        route: failure.route.clone(),
        topic: failure.record.topic.clone(),
        key: failure.record.key.clone(),
        mode: failure.record.mode,
        attempts: failure.attempts,
        spooled_at: store::now(),
        envelope: failure.record.event.to_json().into(),
        body,
    }
}

fn letter(
    reason: DeadLetterReason,
    callback: &Callback,
    event: &Event,
    route: Option<&str>,
    code: impl Into<String>,
) -> DeadLetter {
    let text = |attribute| event.get(attribute).map(str::to_owned);
    DeadLetter {
        reason: reason.as_str().to_owned(),
        code: code.into(),
        input: Some(callback.input.to_string()),
        route: route.map(str::to_owned),
        event: Some((event.id().to_owned(), text(&TYPE).unwrap_or_default(), text(&SUBJECT))),
        sender: (callback.sender.region.clone(), callback.sender.account_id.clone()),
        envelope: Some(event.to_json().into()),
        body: callback.body.clone(),
        at: store::now(),
        ..DeadLetter::default()
    }
}

fn letter_of(reason: DeadLetterReason, failure: &Failure, callback: &Callback, event: &Event) -> DeadLetter {
    DeadLetter {
        attempts: failure.attempts,
        output: Some(failure.output.clone()),
        topic: Some(failure.record.topic.clone()),
        key: failure.record.key.clone(),
        ..letter(reason, callback, event, Some(&failure.route), failure.error.message.clone())
    }
}

/// What became of the publication of a dead letter.
enum Announced {
    /// The destination of dead letters has acknowledged it.
    Published,
    /// It is published by this record, later.
    Later(SpoolRecord),
    /// There is no such destination, or it does not take it.
    No,
}

/// Waits for the store no longer than somebody waits for the answer.
pub(super) async fn in_time(
    until: Instant,
    kept: impl Future<Output = Result<(), StoreError>>,
) -> Result<(), StoreError> {
    let late = |_| Err(StoreError::new(FailureKind::Io, "the disk did not answer in time"));
    tokio::time::timeout_at(until, kept).await.unwrap_or_else(late)
}

fn not_published(failures: &[Failure], destinations: usize) -> Refusal {
    let mut outputs: Vec<String> = failures.iter().map(|failure| failure.output.clone()).collect();
    outputs.sort_unstable();
    outputs.dedup();
    Refusal::NotPublished { outputs, failed: failures.len(), destinations }
}
