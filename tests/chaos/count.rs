//! The judge: compares what was read from the buses with the accepted events.
//!
//! Promises: it remembers a few hashes of an event, so a million fit into memory. Two copies are equal only if
//! envelope, headers, key and topic are equal, except `recordedtime` and `traceparent`, which belong to a delivery.
//! Copies on different buses are equal if their envelopes are. Apart from collisions of the 64-bit hashes, it finds
//! every error: [`prove`] tests that before each run.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde_json::{Value, json};

use crate::events::{Mode, Run, Servers};
use crate::support::read::{Bus, Record};

/// Attributes that may differ between two deliveries of one event.
const OF_THE_DELIVERY: [&str; 2] = ["recordedtime", "traceparent"];

/// How many examples of one error are kept. A few are enough to find the cause, and a run that lost everything must
/// still end.
pub const EXAMPLES: usize = 1_000;

/// Everything that was found.
#[derive(Debug)]
pub struct Count {
    run: Run,
    events: Vec<Found>,
    /// Events found with different ids.
    two_ids: BTreeSet<usize>,
    /// Events found with one id and different content.
    differing: BTreeSet<usize>,
    /// Records that are not an event of this run as it was sent, and descriptions of the first few.
    wrong: Vec<String>,
    wrong_count: usize,
}

/// What is remembered of an event: hashes of its first copy, and the number of copies.
#[derive(Clone, Debug, Default)]
struct Found {
    id: u64,
    envelope: u64,
    packing: [u64; Bus::ALL.len()],
    copies: [u16; Bus::ALL.len()],
}

/// What is read from one record.
struct Reading {
    number: usize,
    id: u64,
    envelope: u64,
    packing: u64,
}

/// The result.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub answered_for: usize,
    /// How many events that were not accepted arrived on any bus.
    pub arrived_anyway: usize,
    pub buses: [OnBus; Bus::ALL.len()],
    /// Events found with different ids.
    pub two_ids: usize,
    /// Events found with one id and different content.
    pub differing: usize,
    /// Pairs of events that share an id.
    pub shared_ids: usize,
    /// Records that are not an event of this run as it was sent.
    pub wrong: usize,
    /// Descriptions of the first few of them.
    pub wrong_examples: Vec<String>,
}

/// The result for one bus.
#[derive(Clone, Debug, Default)]
pub struct OnBus {
    /// Events that were found.
    pub found: usize,
    /// Accepted events that were not found.
    pub missing: Vec<usize>,
    /// Copies beyond the first of an event.
    pub repeats: u64,
}

impl Count {
    pub fn new(run: &Run) -> Count {
        let events = vec![Found::default(); run.total()];
        let (two_ids, differing) = (BTreeSet::new(), BTreeSet::new());
        Count { run: run.clone(), events, two_ids, differing, wrong: Vec::new(), wrong_count: 0 }
    }

    /// Adds one record, in any order.
    pub fn add(&mut self, record: &Record) {
        let reading = match read(&self.run, record) {
            Ok(reading) => reading,
            Err(reason) => {
                self.wrong_count += 1;
                if self.wrong.len() < EXAMPLES {
                    self.wrong.push(format!("{}: {reason}", record.place()));
                }
                return;
            }
        };
        let event = &mut self.events[reading.number];
        let bus = record.bus as usize;
        if event.copies.iter().all(|&copies| copies == 0) {
            (event.id, event.envelope) = (reading.id, reading.envelope);
        }
        if event.copies[bus] == 0 {
            event.packing[bus] = reading.packing;
        }
        event.copies[bus] = event.copies[bus].saturating_add(1);
        if event.id != reading.id {
            self.two_ids.insert(reading.number);
        } else if event.envelope != reading.envelope || event.packing[bus] != reading.packing {
            self.differing.insert(reading.number);
        }
    }

    /// The event of a record, if its copies differ. Those are reported.
    pub fn disputed(&self, record: &Record) -> Option<usize> {
        let number = read(&self.run, record).ok()?.number;
        (self.two_ids.contains(&number) || self.differing.contains(&number)).then_some(number)
    }

    /// Whether there are events whose copies differ.
    pub fn has_disputed(&self) -> bool {
        !self.two_ids.is_empty() || !self.differing.is_empty()
    }

    /// Judges the records, given for each event whether it was accepted.
    pub fn verdict(&self, answered_for: &[bool]) -> Verdict {
        let mut verdict = Verdict {
            two_ids: self.two_ids.len(),
            differing: self.differing.len(),
            wrong: self.wrong_count,
            wrong_examples: self.wrong.clone(),
            ..Verdict::default()
        };
        let mut ids = Vec::new();
        for (number, (event, &is_answered_for)) in self.events.iter().zip(answered_for).enumerate() {
            verdict.answered_for += usize::from(is_answered_for);
            let is_found = event.copies.iter().any(|&copies| copies > 0);
            verdict.arrived_anyway += usize::from(is_found && !is_answered_for);
            for (on_bus, &copies) in verdict.buses.iter_mut().zip(&event.copies) {
                on_bus.found += usize::from(copies > 0);
                on_bus.repeats += u64::from(copies.saturating_sub(1));
                if is_answered_for && copies == 0 {
                    on_bus.missing.push(number);
                }
            }
            ids.extend(is_found.then_some(event.id));
        }
        ids.sort_unstable();
        verdict.shared_ids = ids.windows(2).filter(|pair| pair[0] == pair[1]).count();
        verdict
    }
}

impl Verdict {
    /// Descriptions of what happened although it must not.
    pub fn faults(&self) -> Vec<String> {
        let lost = Bus::ALL.iter().zip(&self.buses).filter(|(_, on_bus)| !on_bus.missing.is_empty());
        let lost =
            lost.map(|(bus, on_bus)| format!("{} accepted events are not on {}", on_bus.missing.len(), bus.name()));
        let others = [
            (self.two_ids, "events were found with different ids"),
            (self.differing, "events were found with one id and different content"),
            (self.shared_ids, "ids are shared by different events"),
            (self.wrong, "records are not an event as it was sent"),
        ];
        let others = others.into_iter().filter(|(count, _)| *count > 0);
        lost.chain(others.map(|(count, what)| format!("{count} {what}"))).collect()
    }
}

/// Reads a record, and compares it with what was sent.
fn read(run: &Run, record: &Record) -> Result<Reading, String> {
    let mut envelope: Value =
        serde_json::from_slice(&record.body).map_err(|error| format!("not an envelope: {error}"))?;
    let media_id = envelope["mediaid"].as_str().unwrap_or_default().to_owned();
    let number = run.number(&media_id).ok_or_else(|| format!("media id `{media_id}` was not sent in this run"))?;
    let id = envelope["id"].as_str().unwrap_or_default();
    let holds = [
        ("id", !id.is_empty()),
        ("dialect", envelope["dialect"] == Run::dialect(number).name()),
        ("status", envelope["status"] == run.status(number)),
        ("subject", envelope["subject"] == media_id.as_str()),
        ("data.mediaId", envelope["data"]["mediaId"] == media_id.as_str()),
        ("data.size", envelope["data"]["size"].as_u64() == Some(number as u64)),
        ("topic", record.topic == run.topic(record.bus, number)),
        ("key", record.bus == Bus::Nats || record.key.as_deref() == Some(media_id.as_bytes())),
    ];
    if let Some((what, _)) = holds.iter().find(|(_, holds)| !holds) {
        return Err(format!("`{what}` is not that of `{media_id}`"));
    }
    let id = hash(id);
    if let Some(attributes) = envelope.as_object_mut() {
        attributes.retain(|name, _| !OF_THE_DELIVERY.contains(&name.as_str()));
    }
    let mut headers: Vec<&(String, String)> =
        record.headers.iter().filter(|(name, _)| !of_the_delivery(name)).collect();
    headers.sort_unstable();
    let packing = hash(&(headers, &record.key, record.partition));
    Ok(Reading { number, id, envelope: hash(&envelope.to_string()), packing })
}

/// Whether a header contains an attribute that may differ.
fn of_the_delivery(header: &str) -> bool {
    let attribute = header.strip_prefix("ce_").or_else(|| header.strip_prefix("ce-"));
    attribute.is_some_and(|attribute| OF_THE_DELIVERY.contains(&attribute))
}

fn hash(value: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

// --- a test of the judge ------------------------------------------------------------------------------------------

/// Tests the judge with every error that it must find, and with some differences that are not errors. A run that cannot
/// fail proves nothing.
///
/// # Panics
/// The judge is wrong.
pub fn prove() {
    let run = Run { mode: Mode::Http, servers: Servers::Single, seed: 7, length: Duration::from_secs(1), rate: 4 };
    let sound: Vec<Record> =
        (0..run.total()).flat_map(|number| Bus::ALL.map(|bus| sample(&run, bus, number))).collect();
    let judge = |records: &[Record]| {
        let mut count = Count::new(&run);
        records.iter().for_each(|record| count.add(record));
        count.verdict(&[true, true, true, false])
    };
    let with = |more: Record| judge(&[&sound[..], &[more]].concat());
    let changed = |name: &str, value: Value| with(rewritten(&sound[0], |envelope| envelope[name] = value));

    let verdict = judge(&sound);
    assert_eq!((verdict.faults(), verdict.answered_for, verdict.arrived_anyway), (Vec::new(), 3, 1));
    for bus in Bus::ALL {
        let lost: Vec<Record> =
            sound.iter().filter(|record| record.bus != bus || record.offset != 1).cloned().collect();
        let verdict = judge(&lost);
        assert_eq!((verdict.buses[bus as usize].missing.as_slice(), verdict.faults().len()), (&[1][..], 1));
        let unanswered: Vec<Record> =
            sound.iter().filter(|record| record.bus != bus || record.offset != 3).cloned().collect();
        assert!(judge(&unanswered).faults().is_empty());
    }
    let verdict = changed("recordedtime", json!("later"));
    assert_eq!((verdict.buses[Bus::Kafka as usize].repeats, verdict.faults()), (1, Vec::new()));
    assert_eq!(changed("id", json!("another")).two_ids, 1);
    assert_eq!(changed("time", json!("another")).differing, 1);
    assert_eq!(changed("status", json!("another")).wrong, 1);
    assert_eq!(changed("data", json!({})).wrong, 1);
    let mut repacked = sound[0].clone();
    repacked.headers[0].1 = "another".to_owned();
    assert_eq!(with(repacked).differing, 1);
    let mut redated = sound[0].clone();
    redated.headers[1].1 = "another".to_owned();
    assert!(with(redated).faults().is_empty());
    let mut across = sound.clone();
    across[1] = rewritten(&across[1], |envelope| envelope["time"] = json!("another"));
    assert_eq!(judge(&across).differing, 1);
    let same_ids: Vec<Record> =
        sound.iter().map(|record| rewritten(record, |envelope| envelope["id"] = json!("one"))).collect();
    assert_eq!(judge(&same_ids).shared_ids, run.total() - 1);
}

fn sample(run: &Run, bus: Bus, number: usize) -> Record {
    let media_id = run.media_id(number);
    let envelope = json!({
        "id": format!("id-{number}"),
        "time": "2026-01-01T00:00:00Z",
        "subject": media_id,
        "mediaid": media_id,
        "dialect": Run::dialect(number).name(),
        "status": run.status(number),
        "recordedtime": "2026-01-01T00:00:01Z",
        "data": { "mediaId": media_id, "size": number },
    });
    Record {
        bus,
        topic: run.topic(bus, number),
        partition: (bus == Bus::Kafka).then_some(0),
        offset: number as u64,
        key: (bus == Bus::Kafka).then(|| media_id.into_bytes()),
        headers: ["ce_type", "ce_recordedtime"].map(|name| (name.to_owned(), "value".to_owned())).to_vec(),
        body: envelope.to_string().into_bytes(),
    }
}

fn rewritten(record: &Record, change: impl FnOnce(&mut Value)) -> Record {
    let mut envelope = serde_json::from_slice(&record.body).expect("created here");
    change(&mut envelope);
    Record { body: envelope.to_string().into_bytes(), ..record.clone() }
}
