//! The window of ids: which events were accepted lately, and which are being accepted now.
//!
//! An id enters the window only when its event is accepted, so that a copy of a refused one is tried for real. It
//! leaves after `dedupe.window`, by a clock that nobody can set, or when `dedupe.max_ids` later ones have entered.
//! The window is memory: it is empty after a restart, and each replica has its own. An id takes 41 bytes of it at
//! least and 87 at most, depending on how far the tables have grown beyond it.

use std::collections::VecDeque;
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
    /// How long an id is remembered; zero remembers none.
    pub window: Duration,
    /// How many are remembered at most; the oldest give way.
    pub max_ids: usize,
}

/// What tells events apart: `source` and `id`. The id is a hash already, so that its bytes are enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key(u64, u64);

impl Key {
    fn of(event: &Event) -> Key {
        let mut source = FxHasher::default();
        event.get(Attribute::Source).hash(&mut source);
        let id = event.id();
        match u128::from_str_radix(id, 16) {
            Ok(number) => Key((number >> 64) as u64 ^ source.finish(), number as u64),
            // No id of ours, as in an event that was kept by another version.
            Err(_) => {
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
    settings: DedupeSettings,
    state: Mutex<State>,
    started: Instant,
    ids: IntGauge,
}

#[derive(Debug, Default)]
struct State {
    accepted: FxHashSet<Key>,
    /// The same ids in the order of their coming, with milliseconds since the window was made.
    order: VecDeque<(Key, u64)>,
    /// Those being accepted now. The sender is dropped when that has ended, in whatever way.
    current: FxHashMap<Key, watch::Receiver<()>>,
}

/// Whether an event is new.
#[derive(Debug)]
pub(super) enum Claim<'w> {
    /// It was accepted within the window.
    Duplicate,
    /// It is this caller's to accept; copies wait until the claim is dropped.
    First(Claimed<'w>),
    /// A copy is still being accepted, and this one can't wait any longer.
    Late,
}

/// The claim on an event that is being accepted.
#[derive(Debug)]
pub(super) struct Claimed<'w> {
    window: &'w Window,
    key: Key,
    _ended: watch::Sender<()>,
}

impl Window {
    pub(super) fn new(settings: DedupeSettings, ids: IntGauge) -> Window {
        Window { settings, state: Mutex::default(), started: Instant::now(), ids }
    }

    /// Claims an event. A copy of one that is being accepted waits for that one's end, and is then a duplicate, or
    /// the first to be tried again; but it waits no longer than its own deadline, for the other may be one that has
    /// more time.
    pub(super) async fn claim(&self, event: &Event, deadline: Instant) -> Claim<'_> {
        let key = Key::of(event);
        loop {
            let mut other = {
                let mut state = self.state();
                self.forget(&mut state);
                if state.accepted.contains(&key) {
                    return Claim::Duplicate;
                }
                match state.current.get(&key) {
                    Some(other) => other.clone(),
                    None => {
                        let (ended, other) = watch::channel(());
                        state.current.insert(key, other);
                        return Claim::First(Claimed { window: self, key, _ended: ended });
                    }
                }
            };
            // Nothing is ever sent: this ends with an error, when the sender is dropped.
            if tokio::time::timeout_at(deadline, other.changed()).await.is_err() {
                return Claim::Late;
            }
        }
    }

    /// Takes an event into the window, whether it is in it or not.
    pub(super) fn accept(&self, event: &Event) {
        self.enter(Key::of(event));
    }

    fn enter(&self, key: Key) {
        if self.settings.window.is_zero() {
            return;
        }
        let mut state = self.state();
        let now = self.now();
        if state.accepted.insert(key) {
            state.order.push_back((key, now));
        }
        self.forget(&mut state);
    }

    /// Lets go of what is too old or too many.
    fn forget(&self, state: &mut State) {
        let window = u64::try_from(self.settings.window.as_millis()).unwrap_or(u64::MAX);
        let now = self.now();
        while let Some((key, entered)) = state.order.front() {
            if state.order.len() <= self.settings.max_ids && now - entered < window {
                break;
            }
            state.accepted.remove(key);
            state.order.pop_front();
        }
        // What a burst made them grow is given back when it is over.
        if state.order.capacity() > 4096 && state.order.capacity() / 8 > state.order.len() {
            state.order.shrink_to(state.order.len() * 2);
            state.accepted.shrink_to(state.order.len() * 2);
        }
        self.ids.set(i64::try_from(state.order.len()).unwrap_or(i64::MAX));
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claimed<'_> {
    /// The event is accepted: later copies are duplicates.
    pub(super) fn accepted(self) {
        self.window.enter(self.key);
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.window.state().current.remove(&self.key);
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
        match window.claim(&event(number), soon()).await {
            Claim::Late => panic!("nobody else has it"),
            Claim::Duplicate => false,
            Claim::First(claimed) => {
                claimed.accepted();
                true
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_id_is_remembered_for_the_window_and_no_longer() {
        let window = window(10, 100);
        assert!(is_new(&window, 1).await);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(!is_new(&window, 1).await, "a repeat doesn't prolong the window");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(is_new(&window, 1).await);
        assert_eq!(window.ids.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_ids_give_way_to_too_many() {
        let window = window(10, 2);
        for number in 1..=3 {
            assert!(is_new(&window, number).await);
        }
        assert!(!is_new(&window, 3).await);
        assert!(!is_new(&window, 2).await);
        assert!(is_new(&window, 1).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_waits_for_the_first_and_is_tried_when_that_was_refused() {
        let (window, event) = (window(10, 100), event(1));
        let Claim::First(first) = window.claim(&event, soon()).await else { panic!("it is new") };
        let mut second = std::pin::pin!(window.claim(&event, soon()));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        let Claim::First(second) = second.await else { panic!("the first was refused") };
        let mut third = std::pin::pin!(window.claim(&event, soon()));
        assert!(futures_util::poll!(&mut third).is_pending());
        second.accepted();
        assert!(matches!(third.await, Claim::Duplicate));
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_waits_no_longer_than_its_own_deadline() {
        let (window, event) = (window(10, 100), event(1));
        let Claim::First(_first) = window.claim(&event, soon()).await else { panic!("it is new") };
        let start = Instant::now();
        assert!(matches!(window.claim(&event, soon()).await, Claim::Late));
        assert_eq!(start.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_id_of_another_source_is_another_event() {
        let window = window(10, 100);
        assert!(is_new(&window, 1).await);
        let mut other = event(1);
        other.set(Attribute::Source, "acs:vod:cn-shanghai:2");
        assert!(matches!(window.claim(&other, soon()).await, Claim::First(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_of_no_time_remembers_nothing() {
        let window = window(0, 100);
        assert!(is_new(&window, 1).await && is_new(&window, 1).await);
    }
}
