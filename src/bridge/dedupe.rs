//! The dedupe window: the ids of events that were accepted recently, or are being accepted now.
//!
//! * An id enters the window only when its event is accepted, so that a copy of a refused event is published.
//! * It leaves the window after `dedupe.window`, by a monotonic clock, or when `dedupe.max_ids` later ids have entered.
//! * The window is in memory: it is empty after a restart, and each replica has its own. An id takes 41 to 87 bytes,
//!   depending on how full the tables are.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntGauge;
use rustc_hash::{FxHashMap, FxHashSet, FxHasher};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::event::{Attribute, Event};

/// Bounds of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DedupeSettings {
    /// How long an id is remembered. Zero remembers none.
    pub window: Duration,
    /// Most ids that are remembered. The oldest are forgotten first.
    pub max_ids: usize,
}

/// Identifies an event by `source` and `id`. The id is a hash, so that its bytes are used as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key(u64, u64);

impl Key {
    fn of(event: &Event) -> Key {
        let mut source = FxHasher::default();
        event.get(Attribute::Source).hash(&mut source);
        let id = event.id();
        let halves = id.split_at_checked(16).filter(|(_, second)| second.len() == 16);
        let number = |half| u64::from_str_radix(half, 16).ok();
        match halves.and_then(|(first, second)| Some((number(first)?, number(second)?))) {
            Some((first, second)) => Key(first ^ source.finish(), second),
            // Not an id of this version, for example in an event that another version has stored.
            None => {
                let mut hash = FxHasher::default();
                id.hash(&mut hash);
                Key(hash.finish() ^ source.finish(), id.len() as u64)
            }
        }
    }
}

/// The window.
#[derive(Debug)]
pub(super) struct Window {
    state: Mutex<State>,
    started: Instant,
    ids: IntGauge,
}

#[derive(Debug)]
struct State {
    settings: DedupeSettings,
    /// The keys in `order` and in `current`. It is large, and no cache of the processor has the place of a key, so that an
    /// event that is new and accepted looks into it only once, when it is claimed.
    known: FxHashSet<Key>,
    /// Events in the window, each once, in the order in which they entered, with milliseconds since the start of the window.
    order: VecDeque<(Key, u64)>,
    /// Events that are being accepted now.
    current: FxHashMap<Key, Current>,
}

/// An event that is being accepted.
#[derive(Debug, Default)]
struct Current {
    /// Whether it is in the window all the same, because a copy was published apart from this.
    is_in_window: bool,
    /// If copies wait. It is dropped when the acceptance ends, however it ends.
    copies: Option<watch::Sender<()>>,
}

/// Whether an event is new.
#[derive(Debug)]
pub(super) enum Claim<'w> {
    /// It was accepted within the window.
    Duplicate,
    /// It is new. Copies of it wait until the claim is dropped.
    First(Claimed<'w>),
    /// A copy is still being accepted, and the deadline of this one is over.
    Late,
}

/// The claim on an event that is being accepted.
#[derive(Debug)]
pub(super) struct Claimed<'w> {
    window: &'w Window,
    key: Key,
    has_ended: bool,
}

impl Window {
    pub(super) fn new(settings: DedupeSettings, ids: IntGauge) -> Window {
        let state =
            State { settings, known: FxHashSet::default(), order: VecDeque::new(), current: FxHashMap::default() };
        Window { state: Mutex::new(state), started: Instant::now(), ids }
    }

    /// Changes the bounds. Ids beyond smaller ones are forgotten at once.
    pub(super) fn set_bounds(&self, settings: DedupeSettings) {
        let mut state = self.state();
        state.settings = settings;
        self.forget(&mut state, self.time(Instant::now()));
    }

    /// Claims an event that arrived then. A copy of an event that is being accepted waits for its end. Then it is a
    /// duplicate, or the next one to be tried. It waits no longer than its own deadline, because the other may have more
    /// time.
    pub(super) async fn claim(&self, event: &Event, arrived: Instant, deadline: Instant) -> Claim<'_> {
        let key = Key::of(event);
        loop {
            let mut other = {
                let mut state = self.state();
                self.forget(&mut state, self.time(arrived));
                let State { known, current, .. } = &mut *state;
                match current.entry(key) {
                    Entry::Occupied(entry) if entry.get().is_in_window => return Claim::Duplicate,
                    // Copies at the same time are rare, so a channel is created only for them.
                    Entry::Occupied(entry) => {
                        entry.into_mut().copies.get_or_insert_with(|| watch::channel(()).0).subscribe()
                    }
                    Entry::Vacant(entry) => {
                        if !known.insert(key) {
                            return Claim::Duplicate;
                        }
                        entry.insert(Current::default());
                        return Claim::First(Claimed { window: self, key, has_ended: false });
                    }
                }
            };
            // Nothing is sent. This ends with an error when the sender is dropped.
            if Box::pin(tokio::time::timeout_at(deadline, other.changed())).await.is_err() {
                return Claim::Late;
            }
        }
    }

    /// Adds an event to the window. An event that is in it already keeps its time.
    pub(super) fn accept(&self, event: &Event) {
        let (key, now) = (Key::of(event), self.time(Instant::now()));
        let mut state = self.state();
        let is_in_window = match state.current.get_mut(&key) {
            Some(current) => std::mem::replace(&mut current.is_in_window, true),
            None => !state.known.insert(key),
        };
        if !is_in_window {
            state.order.push_back((key, now));
        }
        self.forget(&mut state, now);
    }

    /// Removes ids that are too old or too many, and all if the window is zero.
    fn forget(&self, state: &mut State, now: u64) {
        let window = u64::try_from(state.settings.window.as_millis()).unwrap_or(u64::MAX);
        while let Some((key, entered)) = state.order.front() {
            if state.order.len() <= state.settings.max_ids && now.saturating_sub(*entered) < window {
                break;
            }
            match state.current.get_mut(key) {
                Some(current) => current.is_in_window = false,
                None => drop(state.known.remove(key)),
            }
            state.order.pop_front();
        }
        // Returns the memory of a burst when the burst is over.
        if state.order.capacity() > 4096 && state.order.capacity() / 8 > state.order.len() {
            state.order.shrink_to(state.order.len() * 2);
            state.known.shrink_to(state.order.len() * 2);
        }
        self.ids.set(i64::try_from(state.order.len()).unwrap_or(i64::MAX));
    }

    fn time(&self, moment: Instant) -> u64 {
        u64::try_from(moment.duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claimed<'_> {
    /// The event was accepted then: later copies are duplicates.
    pub(super) fn accepted(mut self, ended: Instant) {
        let now = self.window.time(ended);
        let mut state = self.window.state();
        if state.current.remove(&self.key).is_some_and(|current| !current.is_in_window) {
            state.order.push_back((self.key, now));
        }
        self.window.forget(&mut state, now);
        self.has_ended = true;
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let mut state = self.window.state();
            if state.current.remove(&self.key).is_some_and(|current| !current.is_in_window) {
                state.known.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Attribute;

    fn window(seconds: u64, max_ids: usize) -> Window {
        let ids = IntGauge::new("ids", "ids").expect("a gauge");
        Window::new(DedupeSettings { window: Duration::from_secs(seconds), max_ids }, ids)
    }

    fn event(number: u32) -> Event {
        let mut event = Event::new("{}");
        event.set(Attribute::Id, format!("{number:032x}"));
        event
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    async fn is_new(window: &Window, number: u32) -> bool {
        match window.claim(&event(number), Instant::now(), soon()).await {
            Claim::Late => panic!("no copy is being accepted"),
            Claim::Duplicate => false,
            Claim::First(claimed) => {
                claimed.accepted(Instant::now());
                true
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_id_is_remembered_for_the_window_and_no_longer() {
        let window = window(10, 100);
        assert!(is_new(&window, 1).await);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(!is_new(&window, 1).await, "a repeat does not extend the time");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(is_new(&window, 1).await);
        assert_eq!(window.ids.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn smaller_bounds_apply_to_the_ids_that_are_there() {
        let window = window(10, 100);
        assert!(is_new(&window, 1).await && is_new(&window, 2).await);
        window.set_bounds(DedupeSettings { window: Duration::from_secs(10), max_ids: 1 });
        assert_eq!(window.ids.get(), 1);
        assert!(!is_new(&window, 2).await);
        window.set_bounds(DedupeSettings { window: Duration::ZERO, max_ids: 1 });
        assert!(is_new(&window, 2).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_ids_are_forgotten_first() {
        let window = window(10, 2);
        for number in 1..=3 {
            assert!(is_new(&window, number).await);
        }
        assert!(!is_new(&window, 3).await);
        assert!(!is_new(&window, 2).await);
        assert!(is_new(&window, 1).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_waits_for_the_first_and_is_tried_if_that_was_refused() {
        let (window, event) = (window(10, 100), event(1));
        let Claim::First(first) = window.claim(&event, Instant::now(), soon()).await else { panic!("it is new") };
        let mut second = std::pin::pin!(window.claim(&event, Instant::now(), soon()));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        let Claim::First(second) = second.await else { panic!("the first was refused") };
        let mut third = std::pin::pin!(window.claim(&event, Instant::now(), soon()));
        assert!(futures_util::poll!(&mut third).is_pending());
        second.accepted(Instant::now());
        assert!(matches!(third.await, Claim::Duplicate));
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_waits_no_longer_than_its_own_deadline() {
        let (window, event) = (window(10, 100), event(1));
        let Claim::First(_first) = window.claim(&event, Instant::now(), soon()).await else { panic!("it is new") };
        let start = Instant::now();
        assert!(matches!(window.claim(&event, Instant::now(), soon()).await, Claim::Late));
        assert_eq!(start.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_id_of_another_source_is_another_event() {
        let window = window(10, 100);
        assert!(is_new(&window, 1).await);
        let mut other = event(1);
        other.set(Attribute::Source, "acs:vod:cn-shanghai:2");
        assert!(matches!(window.claim(&other, Instant::now(), soon()).await, Claim::First(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_published_apart_while_it_is_being_accepted_stays_in_the_window() {
        let (window, event) = (window(10, 100), event(1));
        let Claim::First(first) = window.claim(&event, Instant::now(), soon()).await else { panic!("it is new") };
        window.accept(&event);
        assert!(!is_new(&window, 1).await);
        drop(first);
        assert!(!is_new(&window, 1).await, "the other one was not refused");
        tokio::time::advance(Duration::from_secs(10)).await;
        let Claim::First(first) = window.claim(&event, Instant::now(), soon()).await else { panic!("forgotten") };
        window.accept(&event);
        tokio::time::advance(Duration::from_secs(10)).await;
        window.accept(&self::event(2));
        first.accepted(Instant::now());
        assert!(!is_new(&window, 1).await, "its copy was forgotten, but it was accepted after that");
        assert_eq!(window.ids.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_of_zero_remembers_nothing() {
        let window = window(0, 100);
        assert!(is_new(&window, 1).await && is_new(&window, 1).await);
    }
}
