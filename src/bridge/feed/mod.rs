//! What passes through the bridge, for people who watch: `tail`, the page, and everybody else who reads the event
//! stream.
//!
//! * Without a listener it costs one relaxed load for each callback that does not fail.
//! * A listener gets at most [`RATE`] events in each second. Its condition is tested before that, so that rare events are
//!   seen among many others. What is left out is counted, and the listener gets the number.
//! * Nothing waits for a listener. What it does not take is bounded in bytes; more is dropped and counted.
//!
//! An entry is written once, however many listeners get it, by the task that brings the callback to its outcome.
//!
//! The last failures and rejections are kept also without a listener (`past`). Whoever shows the state of the bridge
//! gets them first.

mod entry;
mod past;
pub mod state;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

pub use entry::{
    Attributes, CallbackEntry, DeadLetterEntry, DestinationEntry, DestinationResult, EndEntry, EndReason, Entry,
    FORMAT, Hello, PublishedEntry, RejectionEntry, RouteEntry, SkippedEntry,
};
use entry::{attributes, milliseconds, payload, payload_of_body};
pub(super) use entry::{short, timestamp};
use past::{Past, Place};
use state::{PastState, RejectionState};

use super::publish::{Addressed, Failure};
use super::{Callback, DeadLetterReason, Outcome, Rules};
use crate::event::{Attribute, Event};
use crate::output::PublishError;
use crate::route::Condition;
use crate::store::{DeadLetter, SpoolRecord};

/// Most listeners at once.
pub const MAX_LISTENERS: usize = 8;

/// Most events in a second that a listener gets.
pub const RATE: u64 = 1000;

/// Bytes of entries for a listener that are not sent yet: a second of them at [`RATE`].
const MAX_PENDING: usize = 2 << 20;

/// Most routes that an entry lists. Explaining each of a thousand routes would take longer than the event itself.
const MAX_ROUTES: usize = 32;

/// Most publications from the spool in a second that a listener gets. A drain is much faster, and must not take the place of
/// what happens now.
const DRAIN_RATE: u64 = 200;

/// Most entries in a second that are not about events. Strangers can cause them, and must not take the place of events.
const OTHERS_RATE: u64 = 100;

/// All listeners.
#[derive(Debug)]
pub struct Feed {
    /// Number of listeners.
    open: AtomicUsize,
    seats: RwLock<Vec<Arc<Seat>>>,
    shows_payloads: AtomicBool,
    started: Instant,
    past: Past,
}

/// How many entries were given in the present second.
#[derive(Debug, Default)]
struct Window {
    /// The second since the start of the feed, and in the last bits the number of entries in it.
    state: AtomicU64,
    /// Entries beyond the rate.
    left_out: AtomicU64,
}

impl Window {
    const COUNT: u64 = 0xFFFF;

    /// Whether one more entry can be given. It counts then.
    fn has_room(&self, second: u64, rate: u64) -> bool {
        let second = second << Self::COUNT.count_ones();
        let counted =
            self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| match state & Self::COUNT {
                _ if state & !Self::COUNT < second => Some(second | 1),
                count if count < rate => Some(state + 1),
                _ => None,
            });
        if counted.is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        counted.is_ok()
    }
}

/// What the bridge keeps for a listener.
#[derive(Debug)]
struct Seat {
    condition: Condition,
    /// Whether the listener shows the state of the bridge: it gets what is not about events in any case.
    shows_state: bool,
    since: Instant,
    events: Window,
    drained: Window,
    others: Window,
    reader_slow: AtomicU64,
    is_reloaded: AtomicBool,
    pending: Mutex<Pending>,
}

/// Entries for a listener that are not sent yet.
#[derive(Debug, Default)]
struct Pending {
    messages: Vec<u8>,
    /// Bytes that the listener has taken and is sending.
    taken: usize,
}

/// What an entry is about.
#[derive(Clone, Copy)]
enum About<'e> {
    /// An event with its outcome.
    Event(&'e Event),
    /// An event that the drain of the spool has published.
    Drained(&'e Event),
    /// Something else.
    Other,
}

/// All places are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSeat;

/// A listener. Dropping it ends the listening.
#[derive(Debug)]
pub struct Listener {
    feed: Arc<Feed>,
    seat: Arc<Seat>,
    /// What was kept before it came.
    past: Vec<u8>,
}

impl Listener {
    /// The failures and rejections that were kept before it came, as messages, if it shows the state of the bridge. The
    /// first call returns them.
    pub fn past(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.past)
    }

    /// The entries since the last call, as messages of server-sent events. Those of the last call must have been sent.
    pub fn take(&self) -> Vec<u8> {
        let mut pending = self.seat.pending();
        let messages = std::mem::take(&mut pending.messages);
        pending.taken = messages.len();
        messages
    }

    /// What was left out since the last call; none if nothing was.
    pub fn skipped(&self) -> Option<SkippedEntry> {
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        let skipped = SkippedEntry {
            events_over_rate: take(&self.seat.events.left_out),
            published_over_rate: take(&self.seat.drained.left_out),
            others_over_rate: take(&self.seat.others.left_out),
            reader_slow: take(&self.seat.reader_slow),
        };
        (skipped != SkippedEntry::default()).then_some(skipped)
    }

    /// Whether a reload of the configuration ends what the listener gets.
    pub fn is_reloaded(&self) -> bool {
        self.seat.is_reloaded.load(Ordering::Relaxed)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut seats = self.feed.seats.write().unwrap_or_else(PoisonError::into_inner);
        seats.retain(|seat| !Arc::ptr_eq(seat, &self.seat));
        self.feed.open.store(seats.len(), Ordering::Relaxed);
    }
}

impl Seat {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the listener gets an entry about this. Who sets a condition asks for events.
    fn wants(&self, about: About<'_>, second: u64) -> bool {
        match about {
            About::Event(event) => self.condition.holds(event) && self.events.has_room(second, RATE),
            About::Drained(event) => self.condition.holds(event) && self.drained.has_room(second, DRAIN_RATE),
            About::Other => {
                (self.shows_state || self.condition.is_empty()) && self.others.has_room(second, OTHERS_RATE)
            }
        }
    }

    fn give(&self, message: &[u8]) {
        let Pending { messages, taken } = &mut *self.pending();
        let room = MAX_PENDING.saturating_sub(*taken + messages.len());
        if message.len() > room {
            self.reader_slow.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if messages.capacity() - messages.len() < message.len() {
            // It doubles, but not beyond the bound.
            messages.reserve_exact(messages.len().max(message.len()).min(room));
        }
        messages.extend_from_slice(message);
    }
}

/// What is noted about a callback while it is delivered, for the listeners that get it.
#[derive(Debug)]
pub(super) struct Trace {
    seats: Vec<Arc<Seat>>,
    /// Whether it counts among what is kept already.
    is_claimed: bool,
    destinations: Mutex<Vec<TracedDestination>>,
}

#[derive(Debug)]
struct TracedDestination {
    entry: DestinationEntry,
    is_retriable: bool,
}

/// A destination that is being published to.
pub(super) struct Publishing {
    entry: DestinationEntry,
    start: Instant,
}

impl Trace {
    fn destinations(&self) -> MutexGuard<'_, Vec<TracedDestination>> {
        self.destinations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishing to a destination begins.
    pub(super) fn begin(&self, to: &Addressed<'_>) -> Box<Publishing> {
        let entry = published(to.route, to.output, &to.record.topic);
        Box::new(Publishing { entry, start: Instant::now() })
    }

    /// A destination that has acknowledged the event, and was not noted when that happened.
    pub(super) fn add_published(&mut self, route: &str, output: &str, topic: &str) {
        let entry = published(route, output, topic);
        self.destinations().push(TracedDestination { entry, is_retriable: true });
    }

    /// A destination that has failed, and was not noted when that happened.
    pub(super) fn add_failed(&mut self, failure: &Failure) {
        let mut entry = published(&failure.route, &failure.output, &failure.record.topic);
        note_error(&mut entry, &failure.error);
        self.destinations().push(TracedDestination { entry, is_retriable: failure.error.kind.is_retriable() });
    }

    /// Notes what publishing to a destination gave.
    pub(super) fn end(&self, publishing: Publishing, published: &Result<(), Box<Failure>>) {
        let Publishing { mut entry, start } = publishing;
        entry.took_ms = Some(milliseconds(start.elapsed()));
        let error = published.as_ref().err().map(|failure| &failure.error);
        if let Some(error) = error {
            note_error(&mut entry, error);
        }
        let is_retriable = error.is_none_or(|error| error.kind.is_retriable());
        self.destinations().push(TracedDestination { entry, is_retriable });
    }

    /// Notes what became of the destinations that have failed: of those that can be tried again, and of those that
    /// cannot.
    pub(super) fn settle(&self, retriable: DestinationResult, permanent: DestinationResult) {
        for traced in self.destinations().iter_mut().filter(|traced| traced.entry.error.is_some()) {
            traced.entry.result = if traced.is_retriable { retriable } else { permanent };
        }
    }
}

/// A destination that has acknowledged the event.
fn published(route: &str, output: &str, topic: &str) -> DestinationEntry {
    DestinationEntry {
        route: route.to_owned(),
        output: output.to_owned(),
        topic: topic.to_owned(),
        result: DestinationResult::Published,
        took_ms: None,
        error: None,
        message: None,
    }
}

fn note_error(entry: &mut DestinationEntry, error: &PublishError) {
    entry.error = Some(error.kind.as_str().to_owned());
    entry.message = Some(short(&error.message));
}

impl Default for Feed {
    fn default() -> Self {
        Feed {
            open: AtomicUsize::new(0),
            seats: RwLock::default(),
            shows_payloads: AtomicBool::new(false),
            started: Instant::now(),
            past: Past::default(),
        }
    }
}

impl Feed {
    /// Adds a listener to events that meet a condition, and, without a condition, to everything else too. One that
    /// shows the state of the bridge gets everything else in any case, and what was kept before it came.
    ///
    /// # Errors
    /// [`NoSeat`] if there are [`MAX_LISTENERS`].
    pub fn listen(self: &Arc<Feed>, condition: Condition, shows_state: bool) -> Result<Listener, NoSeat> {
        if !shows_state {
            return self.sit(condition, false, Vec::new());
        }
        self.past.with(&condition.clone(), |past| self.sit(condition, true, past))
    }

    fn sit(self: &Arc<Feed>, condition: Condition, shows_state: bool, past: Vec<u8>) -> Result<Listener, NoSeat> {
        let seat = Arc::new(Seat {
            condition,
            shows_state,
            since: Instant::now(),
            events: Window::default(),
            drained: Window::default(),
            others: Window::default(),
            reader_slow: AtomicU64::new(0),
            is_reloaded: AtomicBool::new(false),
            pending: Mutex::default(),
        });
        let mut seats = self.seats.write().unwrap_or_else(PoisonError::into_inner);
        if seats.len() >= MAX_LISTENERS {
            return Err(NoSeat);
        }
        seats.push(seat.clone());
        self.open.store(seats.len(), Ordering::Relaxed);
        Ok(Listener { feed: self.clone(), seat, past })
    }

    /// Whether somebody listens.
    fn has_listeners(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    /// Whether entries have payloads.
    pub fn has_payloads(&self) -> bool {
        self.shows_payloads.load(Ordering::Relaxed)
    }

    /// How many failures and rejections are kept.
    pub fn past(&self) -> PastState {
        self.past.state()
    }

    /// Adds the newest rejection of an input for a reason to what is known about it.
    pub(super) fn describe_rejection(&self, input: &str, rejection: &mut RejectionState) {
        self.past.describe(input, rejection);
    }

    /// Sets whether entries have payloads. Returns whether that has changed.
    pub fn show_payloads(&self, shows: bool) -> bool {
        self.shows_payloads.swap(shows, Ordering::Relaxed) != shows
    }

    /// Ends what every listener gets, because a reload of the configuration has changed what it may get, or what a pattern
    /// means.
    pub fn reloaded(&self) {
        for seat in self.seats.read().unwrap_or_else(PoisonError::into_inner).iter() {
            seat.is_reloaded.store(true, Ordering::Relaxed);
        }
    }

    /// The listeners that get an entry about this. None if there are none.
    fn seats_for(&self, about: About<'_>, at: impl FnOnce() -> Instant) -> Option<Vec<Arc<Seat>>> {
        if !self.has_listeners() {
            return None;
        }
        let second = at().duration_since(self.started).as_secs();
        let seats = self.seats.read().unwrap_or_else(PoisonError::into_inner);
        let wanted: Vec<Arc<Seat>> = seats.iter().filter(|seat| seat.wants(about, second)).cloned().collect();
        (!wanted.is_empty()).then_some(wanted)
    }

    fn payload(&self, payload: impl FnOnce() -> Option<Box<RawValue>>) -> Option<Box<RawValue>> {
        self.has_payloads().then(payload).flatten()
    }

    /// Whether an entry is kept for later. It counts then.
    fn keeps(&self, place: Place<'_>) -> bool {
        self.past.claims(place, self.started.elapsed().as_secs())
    }

    /// Keeps an entry for later. Whoever shows the state, came after `began` and is not among those who got it gets it
    /// too.
    fn keep(&self, place: Place<'_>, entry: Entry, event: Option<&Event>, began: Instant, got: &[Arc<Seat>]) {
        self.past.keep(place, entry, |message| {
            let seats = self.seats.read().unwrap_or_else(PoisonError::into_inner);
            let has_got = |seat: &Arc<Seat>| got.iter().any(|other| Arc::ptr_eq(other, seat));
            let late = seats.iter().filter(|seat| seat.shows_state && seat.since > began && !has_got(seat));
            late.filter(|seat| event.is_none_or(|event| seat.condition.holds(event)))
                .for_each(|seat| seat.give(message));
        });
    }

    /// Begins the entry of an event; none if no listener gets it.
    pub(super) fn trace(&self, event: &Event, arrived: Instant) -> Option<Box<Trace>> {
        let seats = self.seats_for(About::Event(event), || arrived)?;
        Some(Box::new(Trace { seats, is_claimed: false, destinations: Mutex::default() }))
    }

    /// Begins the entry of an event that has failed and for which nobody listens; none if it is not kept.
    pub(super) fn late_trace(&self, outcome: &Outcome) -> Option<Box<Trace>> {
        place(outcome).filter(|place| self.keeps(*place))?;
        Some(Box::new(Trace { seats: Vec::new(), is_claimed: true, destinations: Mutex::default() }))
    }

    /// Ends the entry of an event.
    pub(super) fn callback(
        &self,
        trace: Trace,
        rules: &Rules,
        callback: &Callback,
        event: &Event,
        outcome: &Outcome,
        ended: Instant,
    ) {
        let (mut routes, mut more_routes) = (Vec::new(), 0);
        // A duplicate was not routed.
        for (route, result) in rules.router.tried(event).filter(|_| *outcome != Outcome::Duplicate) {
            if routes.len() < MAX_ROUTES || result.is_ok() {
                let why = result.as_ref().err().map(|why| short(why.to_string()));
                routes.push(RouteEntry { name: route.name.clone(), matched: result.is_ok(), why });
            } else {
                more_routes += 1;
            }
        }
        let Trace { seats, is_claimed, destinations } = trace;
        let destinations = destinations.into_inner().unwrap_or_else(PoisonError::into_inner);
        let payload = || self.payload(|| payload(event.data()));
        let entry = Entry::Callback(CallbackEntry {
            attributes: attributes(event),
            routes,
            more_routes,
            destinations: destinations.into_iter().map(|traced| traced.entry).collect(),
            payload: (!seats.is_empty()).then(payload).flatten(),
            ..of_callback(callback, outcome, ended)
        });
        give(&seats, &entry);
        if let Some(place) = place(outcome).filter(|place| is_claimed || self.keeps(*place)) {
            self.keep(place, entry, Some(event), callback.arrived, &seats);
        }
    }

    /// A body that is not a callback.
    pub(super) fn body(&self, callback: &Callback, outcome: &Outcome) {
        let now = Instant::now();
        let seats = self.seats_for(About::Other, || now).unwrap_or_default();
        let place = Place::Rejection(callback.input.name(), DeadLetterReason::NotACallback.as_str());
        let is_kept = self.keeps(place);
        if seats.is_empty() && !is_kept {
            return;
        }
        let payload = || self.payload(|| payload_of_body(&callback.body));
        let payload = (!seats.is_empty()).then(payload).flatten();
        let entry = Entry::Callback(CallbackEntry { payload, ..of_callback(callback, outcome, now) });
        give(&seats, &entry);
        if is_kept {
            self.keep(place, entry, None, now, &seats);
        }
    }

    /// A bus has acknowledged a record of the spool.
    pub(super) fn published(&self, event: &Event, record: &SpoolRecord) {
        let Some(seats) = self.seats_for(About::Drained(event), Instant::now) else { return };
        let now = OffsetDateTime::now_utc();
        let received = event.get(Attribute::RecordedTime).and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        let entry = PublishedEntry {
            time: timestamp(now),
            route: Some(record.route.clone()).filter(|route| !route.is_empty()),
            output: record.output.clone(),
            topic: record.topic.clone(),
            latency_ms: received.map(|received| milliseconds((now - received).try_into().unwrap_or_default())),
            attributes: attributes(event),
        };
        give(&seats, &Entry::Published(entry));
    }

    /// A record of the spool became a dead letter.
    pub(super) fn dead_letter(&self, letter: &DeadLetter) {
        let now = Instant::now();
        let place = Place::Failure(DEAD_LETTER, &letter.reason);
        let is_kept = self.keeps(place);
        if !is_kept && !self.has_listeners() {
            return;
        }
        let event = letter.envelope.as_ref().and_then(|envelope| Event::from_json(envelope).ok());
        let about = event.as_ref().map_or(About::Other, About::Event);
        let seats = self.seats_for(about, || now).unwrap_or_default();
        if seats.is_empty() && !is_kept {
            return;
        }
        let entry = Entry::DeadLetter(DeadLetterEntry {
            time: timestamp(OffsetDateTime::now_utc()),
            reason: letter.reason.clone(),
            message: short(&letter.code),
            attempts: letter.attempts,
            route: letter.route.clone(),
            output: letter.output.clone(),
            topic: letter.topic.clone(),
            attributes: event.as_ref().map(attributes).unwrap_or_default(),
            past: false,
        });
        give(&seats, &entry);
        if is_kept {
            self.keep(place, entry, event.as_ref(), now, &seats);
        }
    }

    /// Something was not accepted as a callback, for a reason and with what the sender is told.
    pub fn rejection(&self, input: &str, reason: &str, message: &str, path: Option<&str>) {
        let now = Instant::now();
        let seats = self.seats_for(About::Other, || now).unwrap_or_default();
        let place = Place::Rejection(input, reason);
        let is_kept = self.keeps(place);
        if seats.is_empty() && !is_kept {
            return;
        }
        let entry = Entry::Rejection(RejectionEntry {
            time: timestamp(OffsetDateTime::now_utc()),
            input: input.to_owned(),
            reason: reason.to_owned(),
            message: (!message.is_empty()).then(|| short(message)),
            path: path.map(short),
            past: false,
        });
        give(&seats, &entry);
        if is_kept {
            self.keep(place, entry, None, now, &seats);
        }
    }
}

/// The sort of dead letters that come from the spool.
const DEAD_LETTER: &str = "dead_letter";

/// Where the entry of an event is kept; none if it has not failed.
fn place(outcome: &Outcome) -> Option<Place<'static>> {
    let reason = match outcome {
        Outcome::Spooled | Outcome::Refused(_) => "",
        Outcome::DeadLettered(reason) => reason.as_str(),
        Outcome::Published | Outcome::Duplicate | Outcome::Dropped | Outcome::NotACallback { .. } => return None,
    };
    Some(Place::Failure(outcome.label(), reason))
}

fn give(seats: &[Arc<Seat>], entry: &Entry) {
    if seats.is_empty() {
        return;
    }
    let message = entry.message();
    seats.iter().for_each(|seat| seat.give(&message));
}

/// The part of an entry that every callback has.
fn of_callback(callback: &Callback, outcome: &Outcome, ended: Instant) -> CallbackEntry {
    CallbackEntry {
        time: timestamp(callback.received),
        input: callback.input.name().to_owned(),
        signature: callback.signature.map(|signature| signature.as_str().to_owned()),
        outcome: outcome.label().to_owned(),
        reason: match outcome {
            Outcome::DeadLettered(reason) => Some(reason.as_str().to_owned()),
            Outcome::Refused(refusal) => Some(short(refusal.to_string())),
            Outcome::NotACallback { error, .. } => {
                Some(short(format!("{}: {error}", DeadLetterReason::NotACallback.as_str())))
            }
            Outcome::Published | Outcome::Spooled | Outcome::Duplicate | Outcome::Dropped => None,
        },
        latency_ms: milliseconds(ended - callback.arrived),
        attributes: Default::default(),
        routes: Vec::new(),
        more_routes: 0,
        destinations: Vec::new(),
        more_destinations: 0,
        payload: None,
        past: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::DEFAULT_TYPE_PREFIX;
    use crate::route::ConditionConfig;

    fn listen(feed: &Arc<Feed>, query: &str) -> Listener {
        let config = ConditionConfig::from_query(query).expect("a query");
        feed.listen(Condition::compile(&config, DEFAULT_TYPE_PREFIX).expect("valid"), false).expect("a seat")
    }

    fn event(subject: &str) -> Event {
        let mut event = Event::new("{}");
        event.set(Attribute::Subject, subject);
        event
    }

    #[test]
    fn without_a_listener_nothing_is_noted() {
        let feed = Arc::new(Feed::default());
        assert!(feed.trace(&event("a"), Instant::now()).is_none());
        let listener = listen(&feed, "subject=b");
        assert!(feed.trace(&event("a"), Instant::now()).is_none() && feed.trace(&event("b"), Instant::now()).is_some());
        feed.rejection("http", "not_signed", "", None);
        assert!(listener.take().is_empty(), "who sets a condition asks for events");
        drop(listener);
        assert!(feed.trace(&event("b"), Instant::now()).is_none() && !feed.has_listeners());
    }

    #[test]
    fn who_comes_later_gets_what_was_kept_once() {
        let feed = Arc::new(Feed::default());
        feed.rejection("http", "not_signed", "before", None);
        let mut shown = feed.listen(Condition::default(), true).expect("a seat");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        let past = text(shown.past());
        assert!(past.contains("before") && past.contains("\"past\":true"), "{past}");
        assert!(shown.past().is_empty() && shown.take().is_empty());
        feed.rejection("http", "not_signed", "after", None);
        let live = text(shown.take());
        assert!(live.contains("after") && !live.contains("past") && live.matches("data:").count() == 1, "{live}");
        // It began before the listener came, and ends only now.
        let began = feed.started;
        let end = |got: &[Arc<Seat>]| {
            feed.keep(Place::Failure("spooled", ""), Entry::Skipped(SkippedEntry::default()), None, began, got);
        };
        end(&[]);
        assert_eq!(text(shown.take()).matches("data:").count(), 1);
        end(&[shown.seat.clone()]);
        assert!(shown.take().is_empty(), "it has got it already");
        assert!(listen(&feed, "").past().is_empty(), "only who shows the state gets it");
    }

    #[test]
    fn who_shows_the_state_sees_rejections_with_any_condition() {
        let feed = Arc::new(Feed::default());
        let config = ConditionConfig::from_query("subject=b").expect("a query");
        let condition = Condition::compile(&config, DEFAULT_TYPE_PREFIX).expect("valid");
        let shown = feed.listen(condition, true).expect("a seat");
        feed.rejection("http", "not_signed", "", None);
        assert!(!shown.take().is_empty() && feed.trace(&event("a"), Instant::now()).is_none());
    }

    #[test]
    fn a_place_is_given_back() {
        let feed = Arc::new(Feed::default());
        let mut listeners: Vec<Listener> = (0..MAX_LISTENERS).map(|_| listen(&feed, "")).collect();
        assert_eq!(feed.listen(Condition::default(), true).err(), Some(NoSeat));
        listeners.pop();
        assert!(feed.listen(Condition::default(), true).is_ok());
    }

    #[test]
    fn a_second_has_so_many_entries_and_the_rest_is_counted() {
        let window = Window::default();
        let given = |second| (0..5).filter(|_| window.has_room(second, 3)).count();
        assert_eq!((given(0), given(0), given(1), given(7)), (3, 0, 3, 3));
        assert_eq!(window.left_out.load(Ordering::Relaxed), 2 + 5 + 2 + 2);
    }

    #[test]
    fn rare_events_are_found_among_many_and_strangers_take_nothing_from_events() {
        let feed = Arc::new(Feed::default());
        let (all, needle) = (listen(&feed, ""), listen(&feed, "subject=needle"));
        for _ in 0..RATE + OTHERS_RATE {
            feed.rejection("http", "no_such_path", "", Some("/x"));
        }
        for _ in 0..RATE * 3 {
            feed.trace(&event("hay"), Instant::now());
        }
        let trace = feed.trace(&event("needle"), Instant::now()).expect("a listener");
        assert!(trace.seats.iter().any(|seat| Arc::ptr_eq(seat, &needle.seat)));
        // The clock may have entered another second meanwhile.
        let skipped = all.skipped().expect("some");
        assert!(skipped.events_over_rate >= RATE - 1 && skipped.others_over_rate >= RATE - OTHERS_RATE, "{skipped:?}");
        assert_eq!((needle.skipped(), all.skipped()), (None, None));
    }

    #[test]
    fn a_drain_takes_nothing_from_what_happens_now() {
        let feed = Arc::new(Feed::default());
        let listener = listen(&feed, "");
        let at = || feed.started;
        let drained = (0..DRAIN_RATE + 5).filter(|_| feed.seats_for(About::Drained(&event("old")), at).is_some());
        assert_eq!(drained.count() as u64, DRAIN_RATE);
        assert!(feed.trace(&event("new"), feed.started).is_some());
        let skipped = SkippedEntry { published_over_rate: 5, ..SkippedEntry::default() };
        assert_eq!(listener.skipped(), Some(skipped));
    }

    #[test]
    fn what_is_not_sent_is_bounded_and_counted() {
        let feed = Arc::new(Feed::default());
        let listener = listen(&feed, "");
        let message = vec![b'x'; 1000];
        let give_many = || (0..3000).for_each(|_| listener.seat.give(&message));
        give_many();
        let taken = listener.take();
        assert!(taken.len() <= MAX_PENDING && taken.len() > MAX_PENDING - 1000 && taken.capacity() <= MAX_PENDING);
        let left_out = listener.skipped().expect("some").reader_slow;
        assert_eq!(taken.len() as u64 / 1000 + left_out, 3000);
        // It is still being sent.
        give_many();
        assert_eq!(listener.skipped().expect("all").reader_slow, 3000);
        assert!(listener.take().is_empty());
        give_many();
        assert_eq!(listener.take().len(), taken.len());
    }

    #[test]
    fn a_listener_that_has_gone_leaves_nothing_behind() {
        let feed = Arc::new(Feed::default());
        let listener = listen(&feed, "");
        let trace = feed.trace(&event("a"), Instant::now());
        listener.seat.give(b"data: {}\n\n");
        let seat = Arc::downgrade(&listener.seat);
        drop((listener, trace));
        assert!(seat.upgrade().is_none() && !feed.has_listeners());
    }
}
