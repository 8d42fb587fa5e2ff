//! The messages that are queued or wait for their acknowledgements: one slot each, found by its number.
//!
//! Promises:
//! - Numbers increase and are never used twice. A late or repeated acknowledgement therefore cannot be mistaken for
//!   that of another message. It is ignored.
//! - A slot ends with its outcome, or when the future that waits for it is dropped. This frees its index and its
//!   message. The number of slots is bounded, so memory does not grow while acknowledgements are missing.
//! - A slot without an outcome ends at its deadline, never earlier and at most [`SWEEP`] and a wake-up later. One task
//!   watches all deadlines; there is no timer per message.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_nats::Subject;
use async_nats::message::OutboundMessage;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::errors;
use crate::output::PublishError;

/// The shortest time between two checks of the deadlines. Many messages that were published at about the same time
/// share one check.
pub(super) const SWEEP: Duration = Duration::from_millis(20);

/// The low bits of a number are the index of its slot. The others count uses: enough for 178 years at 50,000 messages
/// per second.
const PLACE_BITS: u32 = 16;

type Outcome = Result<(), PublishError>;

/// All slots of one connection.
#[derive(Debug)]
pub(super) struct Slots {
    state: Mutex<State>,
    /// Free slots. Waiting for one is the back-pressure.
    room: Semaphore,
    /// Notified when a message was queued.
    queued: Notify,
    /// Notified when a new deadline is earlier than the next check.
    sooner: Notify,
}

#[derive(Debug, Default)]
struct State {
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    uses: u64,
    /// Numbers of the slots whose messages were not passed to the client yet, oldest first.
    queue: VecDeque<u64>,
    next_look: Option<Instant>,
    /// The largest message that a stream has acknowledged. A message of at most this size is not too large.
    largest_stored: usize,
}

#[derive(Debug)]
struct Slot {
    number: u64,
    deadline: Instant,
    subject: Subject,
    size: usize,
    /// The message, until it is passed to the client.
    message: Option<OutboundMessage>,
    /// Number of the connection that it was passed to, counted from 1.
    connection: u64,
    /// A client other than JetStream answered.
    has_stray_answer: bool,
    outcome: Option<Outcome>,
    waker: Option<Waker>,
}

impl State {
    fn slot(&mut self, number: u64) -> Option<&mut Slot> {
        let place = usize::try_from(number & ((1 << PLACE_BITS) - 1)).ok()?;
        self.slots.get_mut(place)?.as_mut().filter(|slot| slot.number == number)
    }

    /// Frees a slot. The caller drops it after releasing the lock, because dropping a waker may run foreign code.
    fn remove(&mut self, number: u64) -> Option<Slot> {
        let is_queued = self.slot(number)?.message.is_some();
        if is_queued {
            self.queue.retain(|queued| *queued != number);
        }
        let place = usize::try_from(number & ((1 << PLACE_BITS) - 1)).ok()?;
        self.free.push(place);
        self.slots[place].take()
    }

    /// Ends slots with an outcome and returns the wakers to call. Their messages will not be sent.
    fn end_all(&mut self, mut outcome: impl FnMut(&Slot) -> Option<Outcome>) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let mut has_queued = false;
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.outcome.is_none()) {
            let Some(outcome) = outcome(slot) else { continue };
            has_queued |= slot.message.take().is_some();
            slot.outcome = Some(outcome);
            wakers.extend(slot.waker.take());
        }
        if has_queued {
            let mut queue = std::mem::take(&mut self.queue);
            queue.retain(|number| self.slot(*number).is_some_and(|slot| slot.message.is_some()));
            self.queue = queue;
        }
        wakers
    }
}

impl Slots {
    /// Slots for at most this many messages.
    pub(super) fn new(capacity: usize) -> Slots {
        debug_assert!(capacity <= 1 << PLACE_BITS);
        Slots { state: Mutex::default(), room: Semaphore::new(capacity), queued: Notify::new(), sooner: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message in a new slot. `make` gets the slot's number and creates the message.
    ///
    /// # Errors
    /// No slot became free before the deadline.
    pub(super) async fn open(
        self: &Arc<Self>,
        deadline: Instant,
        size: usize,
        make: impl FnOnce(u64) -> OutboundMessage,
    ) -> Result<Ticket, PublishError> {
        let permit = match self.room.try_acquire() {
            Ok(permit) => permit,
            Err(_) => match tokio::time::timeout_at(deadline, self.room.acquire()).await {
                Ok(Ok(permit)) => permit,
                _ => return Err(errors::queue_full()),
            },
        };
        // The ticket returns the permit.
        permit.forget();
        let mut state = self.state();
        let place = state.free.pop().unwrap_or(state.slots.len());
        state.uses += 1;
        let number = state.uses << PLACE_BITS | place as u64;
        let message = make(number);
        let slot = Slot {
            number,
            deadline,
            subject: message.subject.clone(),
            size,
            message: Some(message),
            connection: 0,
            has_stray_answer: false,
            outcome: None,
            waker: None,
        };
        match state.slots.get_mut(place) {
            Some(free) => *free = Some(slot),
            None => state.slots.push(Some(slot)),
        }
        state.queue.push_back(number);
        let is_sooner = state.next_look.is_none_or(|look| deadline < look);
        drop(state);
        self.queued.notify_one();
        if is_sooner {
            self.sooner.notify_one();
        }
        Ok(Ticket { slots: self.clone(), number, has_ended: false })
    }

    fn free(&self, mut state: MutexGuard<'_, State>, number: u64) {
        let slot = state.remove(number);
        drop(state);
        drop(slot);
        self.room.add_permits(1);
    }

    /// Waits until a message is queued.
    pub(super) async fn queued(&self) {
        self.queued.notified().await;
    }

    /// Takes the oldest queued message with its number. From now on it waits for its acknowledgement.
    pub(super) fn take_next(&self, connection: u64) -> Option<(u64, OutboundMessage)> {
        let mut state = self.state();
        let number = state.queue.pop_front()?;
        let slot = state.slot(number)?;
        slot.connection = connection;
        slot.message.take().map(|message| (number, message))
    }

    /// Ends a slot with its outcome. Does nothing if it has one, or if nobody waits for it any more.
    pub(super) fn settle(&self, number: u64, outcome: Outcome) {
        let mut state = self.state();
        let Some(slot) = state.slot(number).filter(|slot| slot.outcome.is_none()) else { return };
        let stored = if outcome.is_ok() { slot.size } else { 0 };
        slot.outcome = Some(outcome);
        let waker = slot.waker.take();
        state.largest_stored = state.largest_stored.max(stored);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends a slot with an error that names its subject.
    pub(super) fn refuse(&self, number: u64, error: impl FnOnce(&str) -> PublishError) {
        let subject = self.state().slot(number).map(|slot| slot.subject.clone());
        if let Some(subject) = subject {
            self.settle(number, Err(error(&subject)));
        }
    }

    /// Remembers that a client other than JetStream answered. JetStream's own answer may still arrive.
    pub(super) fn note_stray_answer(&self, number: u64) {
        if let Some(slot) = self.state().slot(number) {
            slot.has_stray_answer = true;
        }
    }

    /// Ends the slots of connections before the given one. Without a connection, ends all slots.
    pub(super) fn end_lost(&self, connection: Option<u64>) {
        let wakers = self.state().end_all(|slot| {
            let is_lost = match connection {
                Some(connection) => slot.message.is_none() && slot.connection < connection,
                None => true,
            };
            is_lost.then(|| Err(errors::connection_lost()))
        });
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Ends the slots of a subject with an error.
    pub(super) fn end_subject(&self, subject: &str, error: &PublishError) {
        let is_it = |slot: &Slot| slot.subject.as_str() == subject;
        let wakers = self.state().end_all(|slot| is_it(slot).then(|| Err(error.clone())));
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Ends all slots with an error.
    pub(super) fn end_all(&self, error: &PublishError) {
        let wakers = self.state().end_all(|_| Some(Err(error.clone())));
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Ends the largest message that was passed to the client, if no message of its size was ever stored. The server
    /// reports that a message is too large, but not which.
    pub(super) fn end_largest(&self, error: &PublishError) {
        let state = self.state();
        let sent = state.slots.iter().flatten().filter(|slot| slot.message.is_none() && slot.outcome.is_none());
        let largest = sent.max_by_key(|slot| slot.size).filter(|slot| slot.size > state.largest_stored);
        let largest = largest.map(|slot| slot.number);
        drop(state);
        if let Some(number) = largest {
            self.settle(number, Err(error.clone()));
        }
    }

    /// Ends all slots whose deadlines have passed. Returns when to check again.
    fn end_due(&self, now: Instant) -> Option<Instant> {
        let mut state = self.state();
        let mut next: Option<Instant> = None;
        let wakers = state.end_all(|slot| {
            if slot.deadline > now {
                next = Some(next.map_or(slot.deadline, |next| next.min(slot.deadline)));
                return None;
            }
            Some(Err(match slot.has_stray_answer {
                true => errors::not_an_acknowledgement(&slot.subject),
                false => errors::timed_out(),
            }))
        });
        state.next_look = next.map(|next| next.max(now + SWEEP));
        let next = state.next_look;
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        next
    }

    /// Watches the deadlines, forever.
    pub(super) async fn sweep(&self) {
        loop {
            match self.end_due(Instant::now()) {
                Some(next) => {
                    // A new earlier deadline changes the time of the next check.
                    let _ = tokio::time::timeout_at(next, self.sooner.notified()).await;
                }
                None => self.sooner.notified().await,
            }
        }
    }

    /// The numbers of slots in use and of messages in the queue.
    #[cfg(test)]
    pub(super) fn lengths(&self) -> (usize, usize) {
        let state = self.state();
        (state.slots.iter().flatten().count(), state.queue.len())
    }
}

/// Waits for the outcome of a slot, and frees the slot then. Dropping it frees the slot too; a message that is still queued
/// is not sent.
#[derive(Debug)]
pub(super) struct Ticket {
    slots: Arc<Slots>,
    number: u64,
    has_ended: bool,
}

impl Future for Ticket {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let Ticket { slots, number, has_ended } = self.get_mut();
        let mut state = slots.state();
        // A poll after the outcome is a mistake, but it must not wait forever.
        let Some(slot) = state.slot(*number) else { return Poll::Ready(Err(errors::timed_out())) };
        if let Some(outcome) = slot.outcome.take() {
            *has_ended = true;
            slots.free(state, *number);
            return Poll::Ready(outcome);
        }
        let is_known = slot.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
        let earlier = if is_known { None } else { slot.waker.replace(context.waker().clone()) };
        drop(state);
        drop(earlier);
        Poll::Pending
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.has_ended {
            self.slots.free(self.slots.state(), self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ErrorKind;

    const LONG: Duration = Duration::from_secs(60);

    fn message(number: u64) -> OutboundMessage {
        let reply = Some(Subject::from(number.to_string()));
        OutboundMessage { subject: "media".into(), reply, payload: "x".into(), headers: None }
    }

    async fn open(slots: &Arc<Slots>, after: Duration) -> Ticket {
        slots.open(Instant::now() + after, 1, message).await.expect("a free slot")
    }

    fn kind(outcome: Outcome) -> ErrorKind {
        outcome.expect_err("must fail").kind
    }

    #[tokio::test]
    async fn a_late_or_repeated_answer_is_not_mistaken_for_that_of_another_message() {
        let slots = Arc::new(Slots::new(1));
        let first = open(&slots, LONG).await;
        let (number, _) = slots.take_next(1).expect("queued");
        drop(first);
        let second = open(&slots, LONG).await;
        assert!(second.number > number, "numbers increase");
        // Same index, another use.
        assert_eq!(second.number & 0xff, number & 0xff);
        slots.settle(number, Err(errors::connection_lost()));
        slots.settle(second.number, Ok(()));
        slots.settle(second.number, Err(errors::connection_lost()));
        assert_eq!(second.await, Ok(()));
        assert_eq!(slots.lengths(), (0, 0));
    }

    #[tokio::test]
    async fn a_dropped_future_frees_its_slot_and_its_message() {
        let slots = Arc::new(Slots::new(2));
        for _ in 0..1000 {
            let (queued, sent) = (open(&slots, LONG).await, open(&slots, LONG).await);
            drop(queued);
            assert_eq!(slots.take_next(1).map(|(number, _)| number), Some(sent.number));
            assert_eq!(slots.lengths(), (1, 0));
        }
        assert_eq!(slots.lengths(), (0, 0));
        assert!(slots.state().slots.len() <= 2, "slots must not accumulate");
    }

    #[tokio::test(start_paused = true)]
    async fn each_slot_ends_at_its_own_deadline() {
        let slots = Arc::new(Slots::new(100));
        let sweeper = tokio::spawn({
            let slots = slots.clone();
            async move { slots.sweep().await }
        });
        let start = Instant::now();
        // The later deadline comes first: the sweeper must reschedule its check.
        let waiting = [3000, 1000, 1007, 250].map(|millis| {
            let slots = slots.clone();
            tokio::spawn(async move {
                let deadline = start + Duration::from_millis(millis);
                let ticket = slots.open(deadline, 1, message).await.expect("a free slot");
                assert_eq!(kind(ticket.await), ErrorKind::TimedOut);
                Instant::now().checked_duration_since(deadline).expect("not before the deadline")
            })
        });
        for late in waiting {
            let late = late.await.expect("no panic");
            assert!(late <= SWEEP + Duration::from_millis(2), "{late:?}");
        }
        assert_eq!(slots.lengths(), (0, 0));
        sweeper.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn publishing_waits_for_a_full_queue_until_the_deadline() {
        let slots = Arc::new(Slots::new(1));
        let first = open(&slots, LONG).await;
        let start = Instant::now();
        let refused = slots.open(start + Duration::from_secs(1), 1, message).await;
        assert_eq!(refused.expect_err("no room").kind, ErrorKind::QueueFull);
        assert!(start.elapsed() >= Duration::from_secs(1));
        let waiting = tokio::spawn({
            let slots = slots.clone();
            async move { open(&slots, LONG).await.number }
        });
        tokio::task::yield_now().await;
        let number = first.number;
        drop(first);
        assert!(waiting.await.expect("no panic") > number);
    }

    #[tokio::test]
    async fn a_lost_connection_ends_only_its_own_messages() {
        let slots = Arc::new(Slots::new(10));
        let old = open(&slots, LONG).await;
        slots.take_next(1).expect("queued");
        let new = open(&slots, LONG).await;
        slots.take_next(2).expect("queued");
        let queued = open(&slots, LONG).await;
        slots.end_lost(Some(2));
        assert_eq!(kind(old.await), ErrorKind::Unavailable);
        assert_eq!(slots.lengths(), (2, 1));
        slots.end_lost(None);
        assert_eq!((kind(new.await), kind(queued.await)), (ErrorKind::Unavailable, ErrorKind::Unavailable));
        assert!(slots.take_next(3).is_none(), "an ended message is not sent");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_waited_past_its_deadline_is_not_sent() {
        let slots = Arc::new(Slots::new(10));
        let ticket = open(&slots, Duration::from_secs(1)).await;
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(slots.end_due(Instant::now()), None);
        assert!(slots.take_next(1).is_none());
        assert_eq!(kind(ticket.await), ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stray_answer_does_not_end_the_wait_but_explains_the_error() {
        let slots = Arc::new(Slots::new(10));
        let (first, second) = (open(&slots, LONG).await, open(&slots, LONG).await);
        slots.note_stray_answer(first.number);
        slots.note_stray_answer(second.number);
        slots.settle(first.number, Ok(()));
        assert_eq!(first.await, Ok(()));
        slots.end_due(Instant::now() + LONG);
        assert_eq!(kind(second.await), ErrorKind::Misconfigured);
    }

    #[tokio::test]
    async fn errors_of_a_subject_and_of_the_largest_message_end_only_those() {
        let slots = Arc::new(Slots::new(10));
        let deadline = Instant::now() + LONG;
        let other = |number| OutboundMessage { subject: "other".into(), ..message(number) };
        let (small, large) = (open(&slots, LONG).await, slots.open(deadline, 1000, message).await.expect("room"));
        let elsewhere = slots.open(deadline, 10, other).await.expect("room");
        (0..3).for_each(|_| assert!(slots.take_next(1).is_some()));
        slots.end_largest(&errors::too_large("too large"));
        assert_eq!(kind(large.await), ErrorKind::TooLarge);
        slots.end_subject("media", &PublishError::new(ErrorKind::Unauthorized, "no"));
        assert_eq!(kind(small.await), ErrorKind::Unauthorized);
        slots.settle(elsewhere.number, Ok(()));
        assert_eq!(elsewhere.await, Ok(()));
    }
}
