//! The last failures and rejections, for whoever looks later.
//!
//! * They are kept also while nobody listens. Only what fails or is rejected costs anything.
//! * Failures of events, and what is not accepted as a callback, have [`MOST`] places each, so that strangers cannot
//!   push out failures.
//! * What fails for the same reason is of one sort. When there is no place, the oldest entry of the largest sort goes.
//!   So an outage cannot push out a rare dead letter, nor a scan for paths a wrong signature.
//! * An entry is at most [`MAX_ENTRY`] bytes, without its payload. Of each sort, at most [`RATE`] are noted in a
//!   second.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::entry::{Attributes, CallbackEntry, DestinationEntry, Entry};
use super::state::{PastState, RejectionState};
use crate::event::{Attribute, Event, cut};
use crate::route::Condition;

/// Most entries of each shelf.
const MOST: usize = 100;

/// Largest entry, in bytes.
const MAX_ENTRY: usize = 8 << 10;

/// Most entries of a sort that are noted in a second. With more, noting would take a share of what it should show.
const RATE: u64 = 200;

/// How an entry that is too long is shortened: routes, destinations, bytes of a text.
const SHORTER: [(usize, usize, usize); 2] = [(8, 8, 128), (2, 2, 48)];

/// Where an entry belongs: its shelf, and its sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place<'p> {
    /// An event that failed: its outcome or kind, and the reason.
    Failure(&'p str, &'p str),
    /// What was not accepted: the input, and the reason.
    Rejection(&'p str, &'p str),
}

/// The entries that are kept.
#[derive(Debug, Default)]
pub(super) struct Past {
    failures: Mutex<Shelf>,
    rejections: Mutex<Shelf>,
    left_out: AtomicU64,
    /// The number of the next entry.
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Shelf {
    sorts: Vec<Sort>,
    entries: usize,
}

#[derive(Debug)]
struct Sort {
    name: (String, String),
    /// The second of the last claim, and the claims in it.
    claimed: (u64, u64),
    kept: VecDeque<Kept>,
    newest: Option<Newest>,
}

#[derive(Debug)]
struct Kept {
    number: u64,
    message: Box<[u8]>,
}

/// The newest rejection of a sort.
#[derive(Clone, Debug)]
struct Newest {
    time: String,
    message: Option<String>,
    path: Option<String>,
}

impl Shelf {
    /// Sorts are few: their names are words of this program, and names of inputs.
    fn sort(&mut self, (first, second): (&str, &str)) -> &mut Sort {
        let known = self.sorts.iter().position(|sort| sort.name.0 == first && sort.name.1 == second);
        let index = known.unwrap_or_else(|| {
            let name = (first.to_owned(), second.to_owned());
            self.sorts.push(Sort { name, claimed: (0, 0), kept: VecDeque::new(), newest: None });
            self.sorts.len() - 1
        });
        &mut self.sorts[index]
    }

    fn keep(&mut self, name: (&str, &str), kept: Kept, newest: Option<Newest>) {
        if self.entries >= MOST
            && let Some(largest) = self
                .sorts
                .iter_mut()
                .max_by_key(|sort| (sort.kept.len(), Reverse(sort.kept.front().map(|oldest| oldest.number))))
            && largest.kept.pop_front().is_some()
        {
            self.entries -= 1;
        }
        let sort = self.sort(name);
        sort.kept.push_back(kept);
        sort.newest = newest;
        self.entries += 1;
    }
}

impl Past {
    fn shelf<'s, 'p>(&'s self, place: Place<'p>) -> (MutexGuard<'s, Shelf>, (&'p str, &'p str)) {
        let (shelf, name) = match place {
            Place::Failure(outcome, reason) => (&self.failures, (outcome, reason)),
            Place::Rejection(input, reason) => (&self.rejections, (input, reason)),
        };
        (shelf.lock().unwrap_or_else(PoisonError::into_inner), name)
    }

    /// Whether an entry of this second is kept. It counts then.
    pub(super) fn claims(&self, place: Place<'_>, second: u64) -> bool {
        let (mut shelf, name) = self.shelf(place);
        let claimed = &mut shelf.sort(name).claimed;
        if claimed.0 != second {
            *claimed = (second, 0);
        }
        claimed.1 += 1;
        let has_room = claimed.1 <= RATE;
        if !has_room {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    /// Keeps an entry, as one from the past. `also` gets its message before anybody else can take what is kept.
    pub(super) fn keep(&self, place: Place<'_>, mut entry: Entry, also: impl FnOnce(&[u8])) {
        let newest = match &entry {
            Entry::Rejection(rejection) => Some(Newest {
                time: rejection.time.clone(),
                message: rejection.message.clone(),
                path: rejection.path.clone(),
            }),
            Entry::Callback(body) if matches!(place, Place::Rejection(..)) => {
                Some(Newest { time: body.time.clone(), message: body.reason.clone(), path: None })
            }
            _ => None,
        };
        let Some(message) = message(&mut entry) else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (mut shelf, name) = self.shelf(place);
        also(&message);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        shelf.keep(name, Kept { number, message: message.into() }, newest);
    }

    /// Calls a function while nothing is kept, with what is kept, the oldest first: all of it that is not about an
    /// event, and the events that meet a condition.
    pub(super) fn with<T>(&self, condition: &Condition, with: impl FnOnce(Vec<u8>) -> T) -> T {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let rejections = self.rejections.lock().unwrap_or_else(PoisonError::into_inner);
        let sorts = failures.sorts.iter().chain(&rejections.sorts);
        let mut kept: Vec<&Kept> = sorts.flat_map(|sort| &sort.kept).collect();
        kept.sort_unstable_by_key(|kept| kept.number);
        let wanted = kept.iter().filter(|kept| condition.is_empty() || is_wanted(&kept.message, condition));
        let messages: Vec<&[u8]> = wanted.map(|kept| &*kept.message).collect();
        with(messages.concat())
    }

    /// How many are kept.
    pub(super) fn state(&self) -> PastState {
        let count = |shelf: &Mutex<Shelf>| shelf.lock().unwrap_or_else(PoisonError::into_inner).entries as u64;
        PastState {
            failures: count(&self.failures),
            rejections: count(&self.rejections),
            left_out: self.left_out.load(Ordering::Relaxed),
        }
    }

    /// Adds the newest rejection of an input for a reason.
    pub(super) fn describe(&self, input: &str, rejection: &mut RejectionState) {
        let shelf = self.rejections.lock().unwrap_or_else(PoisonError::into_inner);
        let sort = shelf.sorts.iter().find(|sort| sort.name.0 == input && sort.name.1 == rejection.reason);
        if let Some(newest) = sort.and_then(|sort| sort.newest.clone()) {
            rejection.time = Some(newest.time);
            (rejection.message, rejection.path) = (newest.message, newest.path);
        }
    }
}

/// Whether somebody who set a condition wants an entry.
fn is_wanted(message: &[u8], condition: &Condition) -> bool {
    let json = message.strip_prefix(b"data: ").unwrap_or(message);
    let attributes = match serde_json::from_slice::<Entry>(json) {
        Ok(Entry::Callback(entry)) => entry.attributes,
        Ok(Entry::DeadLetter(entry)) => entry.attributes,
        _ => return true,
    };
    attributes.is_empty() || condition.holds(&event(&attributes))
}

/// An event with these attributes.
fn event(attributes: &Attributes) -> Event {
    let mut event = Event::new("{}");
    for (name, value) in attributes {
        if let Some(attribute) = Attribute::from_name(name) {
            event.set(attribute, value);
        }
    }
    event
}

/// The message of an entry from the past, shortened if it is too long. None if that does not help.
fn message(entry: &mut Entry) -> Option<Vec<u8>> {
    match entry {
        Entry::Callback(callback) => (callback.past, callback.payload) = (true, None),
        Entry::Rejection(rejection) => rejection.past = true,
        Entry::DeadLetter(letter) => letter.past = true,
        _ => {}
    }
    let mut shorter = SHORTER.into_iter();
    loop {
        let message = entry.message();
        if message.len() <= MAX_ENTRY {
            return Some(message);
        }
        shorten(entry, shorter.next()?);
    }
}

fn shorten(entry: &mut Entry, (routes, destinations, bytes): (usize, usize, usize)) {
    let shorten = |text: &mut String| text.truncate(cut(text, bytes).len());
    match entry {
        Entry::Callback(callback) => {
            let CallbackEntry { routes: listed, more_routes, destinations: to, more_destinations, .. } = callback;
            let before = listed.len();
            // Those that matched say where the event went.
            listed.sort_by_key(|route| !route.matched);
            listed.truncate(routes);
            *more_routes += before - listed.len();
            *more_destinations += to.len().saturating_sub(destinations);
            to.truncate(destinations);
            for route in listed {
                shorten(&mut route.name);
                route.why.iter_mut().for_each(shorten);
            }
            for DestinationEntry { route, output, topic, message, .. } in to {
                [route, output, topic].into_iter().for_each(shorten);
                message.iter_mut().for_each(shorten);
            }
            callback.reason.iter_mut().for_each(shorten);
            callback.attributes.values_mut().for_each(shorten);
        }
        Entry::Rejection(rejection) => {
            rejection.message.iter_mut().for_each(shorten);
            rejection.path.iter_mut().for_each(shorten);
        }
        Entry::DeadLetter(letter) => {
            shorten(&mut letter.message);
            [&mut letter.route, &mut letter.output, &mut letter.topic].into_iter().flatten().for_each(shorten);
            letter.attributes.values_mut().for_each(shorten);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::{DestinationResult, RejectionEntry, RouteEntry};
    use super::*;
    use crate::event::DEFAULT_TYPE_PREFIX;
    use crate::route::ConditionConfig;

    fn rejection(number: usize) -> Entry {
        Entry::Rejection(RejectionEntry {
            time: number.to_string(),
            input: "http".to_owned(),
            reason: "reason".to_owned(),
            message: Some("m".repeat(512)),
            path: Some("/\u{1}".repeat(256)),
            past: false,
        })
    }

    fn callback(subject: &str) -> CallbackEntry {
        let text = serde_json::json!({
            "time": "t", "input": "http", "outcome": "spooled", "latency_ms": 1.0,
            "attributes": { "id": "0".repeat(32), "subject": subject },
        });
        serde_json::from_value(text).expect("an entry")
    }

    fn taken(past: &Past, query: &str) -> Vec<serde_json::Value> {
        let config = ConditionConfig::from_query(query).expect("a query");
        let condition = Condition::compile(&config, DEFAULT_TYPE_PREFIX).expect("valid");
        let text = String::from_utf8(past.with(&condition, |text| text)).expect("UTF-8");
        let data = text.split_terminator("\n\n").map(|message| message.strip_prefix("data: ").expect("data"));
        data.map(|data| serde_json::from_str(data).expect("JSON")).collect()
    }

    #[test]
    fn the_last_ones_are_kept_and_no_sort_pushes_out_another() {
        let past = Past::default();
        past.keep(Place::Rejection("http", "signature_wrong"), rejection(0), |_| {});
        past.keep(Place::Failure("dead_lettered", "unrouted"), Entry::Callback(callback("rare")), |_| {});
        for number in 1..=MOST * 3 {
            past.keep(Place::Rejection("http", "no_such_path"), rejection(number), |_| {});
            past.keep(Place::Failure("spooled", ""), Entry::Callback(callback(&number.to_string())), |_| {});
        }
        let state = past.state();
        assert_eq!((state.failures, state.rejections, state.left_out), (MOST as u64, MOST as u64, 0));
        let all = taken(&past, "");
        assert!(all.iter().all(|entry| entry["past"] == true));
        let times: Vec<usize> = all.iter().filter_map(|entry| entry["time"].as_str()?.parse().ok()).collect();
        let kept: Vec<usize> = std::iter::once(0).chain(MOST * 2 + 2..=MOST * 3).collect();
        assert_eq!(times, kept, "the oldest of the large sort have gone");
        let subjects: Vec<&str> = all.iter().filter_map(|entry| entry["attributes"]["subject"].as_str()).collect();
        assert_eq!((subjects.len(), subjects[0], subjects[MOST - 1]), (MOST, "rare", "300"));
    }

    #[test]
    fn a_condition_selects_events_and_nothing_else() {
        let past = Past::default();
        past.keep(Place::Rejection("http", "no_such_path"), rejection(1), |_| {});
        for subject in ["a", "b"] {
            past.keep(Place::Failure("spooled", ""), Entry::Callback(callback(subject)), |_| {});
        }
        let kinds: Vec<String> = taken(&past, "subject=b").iter().map(|entry| entry["kind"].to_string()).collect();
        assert_eq!(kinds, ["\"rejection\"", "\"callback\""]);
    }

    #[test]
    fn a_sort_has_so_many_in_a_second() {
        let past = Past::default();
        let claimed = |place, second| (0..RATE + 5).filter(|_| past.claims(place, second)).count() as u64;
        let (one, other) = (Place::Rejection("http", "a"), Place::Rejection("http", "b"));
        assert_eq!((claimed(one, 0), claimed(other, 0), claimed(one, 1)), (RATE, RATE, RATE));
        assert_eq!((past.state().left_out, past.state().rejections), (15, 0));
    }

    #[test]
    fn an_entry_is_never_long() {
        let past = Past::default();
        let hostile = "\u{1}\"\u{2028}".repeat(300);
        let mut long = callback(&hostile);
        for attribute in Attribute::ALL {
            long.attributes.insert(attribute.name().into(), hostile.clone());
        }
        for index in 0..1000 {
            let matched = index % 100 == 99;
            let why = (!matched).then(|| hostile.clone());
            long.routes.push(RouteEntry { name: format!("route{index}"), matched, why });
            long.destinations.push(DestinationEntry {
                route: hostile.clone(),
                output: hostile.clone(),
                topic: hostile.clone(),
                result: DestinationResult::Spooled,
                took_ms: None,
                error: None,
                message: Some(hostile.clone()),
            });
        }
        past.keep(Place::Failure("spooled", ""), Entry::Callback(long), |message| assert!(message.len() <= MAX_ENTRY));
        let entry = taken(&past, "").pop().expect("it is kept");
        assert!(entry["routes"].as_array().expect("a list").iter().all(|route| route["matched"] == true), "{entry}");
        let more = |name: &str| entry[name].as_u64().expect("a number") as usize;
        let listed = |name: &str| entry[name].as_array().expect("a list").len();
        assert_eq!(more("more_routes") + listed("routes"), 1000);
        assert_eq!(more("more_destinations") + listed("destinations"), 1000);
    }

    #[test]
    fn the_newest_rejection_of_a_reason_is_known() {
        let past = Past::default();
        for number in 0..3 {
            past.keep(Place::Rejection("http", "no_such_path"), rejection(number), |_| {});
        }
        let mut state =
            RejectionState { reason: "no_such_path".to_owned(), count: 3, time: None, message: None, path: None };
        past.describe("other", &mut state);
        assert_eq!(state.time, None);
        past.describe("http", &mut state);
        assert_eq!((state.time.as_deref(), state.path.is_some()), (Some("2"), true));
    }
}
