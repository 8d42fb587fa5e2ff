//! Compares what was found on the bus with what was answered with 200.
//!
//! Promises: an event counts as arrived only with an id that all of its copies share and no other event has. Before
//! each run, [`prove`] tests that every kind of error is found.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::support::read::{Bus, Record};

/// How many examples of an error are shown.
const EXAMPLES: usize = 5;

/// The events of one load that were found.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    /// The ids of each event, with how many copies there are of each.
    ids: BTreeMap<usize, BTreeMap<String, usize>>,
    /// Records that are not an event of this load.
    strangers: Vec<String>,
}

/// The result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Events that were answered with 200.
    pub accepted: usize,
    /// Events that were found.
    pub found: usize,
    /// Copies beyond the first.
    pub repeats: usize,
    /// Events that were answered with 200 and were not found.
    pub missing: Vec<usize>,
    /// Events that have several ids.
    several_ids: Vec<usize>,
    /// Ids that several events have.
    shared_ids: usize,
    strangers: Vec<String>,
}

impl Arrivals {
    /// Reads the records of a load whose media ids begin with `prefix`.
    pub fn of(prefix: &str, records: &[Record]) -> Arrivals {
        let mut arrivals = Arrivals::default();
        for record in records {
            match event(prefix, record) {
                Some((number, id)) => *arrivals.ids.entry(number).or_default().entry(id).or_default() += 1,
                None => arrivals.strangers.push(record.place()),
            }
        }
        arrivals
    }

    /// How many events were found.
    pub fn found(&self) -> usize {
        self.ids.len()
    }

    /// Judges the arrivals, given for each sent event whether it was answered with 200.
    pub fn verdict(&self, accepted: &[bool]) -> Verdict {
        let copies = |ids: &BTreeMap<String, usize>| ids.values().sum::<usize>();
        let is_missing = |number: &usize| accepted[*number] && !self.ids.contains_key(number);
        let all_ids: Vec<&String> = self.ids.values().flat_map(BTreeMap::keys).collect();
        let distinct: BTreeSet<&String> = all_ids.iter().copied().collect();
        // Events that were never sent do not belong to the load either.
        let unsent =
            self.ids.keys().filter(|&&number| number >= accepted.len()).map(|number| format!("event {number}"));
        Verdict {
            accepted: accepted.iter().filter(|&&accepted| accepted).count(),
            found: self.ids.len(),
            repeats: self.ids.values().map(|ids| copies(ids) - 1).sum(),
            missing: (0..accepted.len()).filter(is_missing).collect(),
            several_ids: self.ids.iter().filter(|(_, ids)| ids.len() > 1).map(|(&number, _)| number).collect(),
            shared_ids: all_ids.len() - distinct.len(),
            strangers: self.strangers.iter().cloned().chain(unsent).collect(),
        }
    }
}

impl Verdict {
    /// Descriptions of what happened although it must not.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.accepted == 0 {
            faults.push("no callback was answered with 200: the scenario proves nothing".to_owned());
        }
        if !self.missing.is_empty() {
            let examples = &self.missing[..self.missing.len().min(EXAMPLES)];
            let missing = self.missing.len();
            faults.push(format!(
                "{missing} callbacks were answered with 200 and are not on the bus, for example {examples:?}"
            ));
        }
        if !self.several_ids.is_empty() {
            faults.push(format!("{} events have several ids", self.several_ids.len()));
        }
        if self.shared_ids > 0 {
            faults.push(format!("{} ids are shared by different events", self.shared_ids));
        }
        if let Some(first) = self.strangers.first() {
            faults
                .push(format!("{} records are not an event that was sent, for example {first}", self.strangers.len()));
        }
        faults
    }
}

/// The number and the id of the event in a record.
fn event(prefix: &str, record: &Record) -> Option<(usize, String)> {
    let envelope: Value = serde_json::from_slice(&record.body).ok()?;
    let number: usize = envelope["mediaid"].as_str()?.strip_prefix(prefix)?.strip_prefix('-')?.parse().ok()?;
    let is_whole = envelope["data"]["size"].as_u64() == Some(number as u64);
    let id = envelope["id"].as_str().filter(|id| !id.is_empty() && is_whole)?;
    Some((number, id.to_owned()))
}

/// Tests each error that must be found, and a repeat, which is not an error. A run that cannot fail proves nothing.
///
/// # Panics
/// An error is not found.
pub fn prove() {
    let record = |number: usize, id: &str| Record {
        bus: Bus::Nats,
        topic: "topic".to_owned(),
        partition: None,
        offset: 0,
        key: None,
        headers: Vec::new(),
        body: serde_json::json!({ "id": id, "mediaid": format!("some-{number}"), "data": { "size": number } })
            .to_string()
            .into_bytes(),
    };
    let judge = |records: &[Record]| Arrivals::of("some", records).verdict(&[true, true, false]);
    let sound = [record(0, "a"), record(1, "b"), record(1, "b")];
    let verdict = judge(&sound);
    assert_eq!((verdict.faults(), verdict.accepted, verdict.found, verdict.repeats), (Vec::new(), 2, 2, 1));
    assert_eq!(judge(&sound[..1]).missing, [1]);
    let faults_with = |more: Record| judge(&[&sound[..], &[more]].concat()).faults().len();
    assert_eq!(faults_with(record(2, "c")), 0, "an event without a 200 may arrive");
    assert_eq!(faults_with(record(1, "c")), 1, "several ids");
    assert_eq!(faults_with(record(2, "a")), 1, "a shared id");
    assert_eq!(faults_with(record(3, "d")), 1, "never sent");
    assert_eq!(faults_with(Record { body: b"{}".to_vec(), ..record(0, "a") }), 1, "not an event");
    assert_eq!(Arrivals::of("some", &[]).verdict(&[false]).faults().len(), 1, "nothing accepted");
}
