//! The judge: what a program was told before the power failed, and what is found afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::recording::Recording;

/// How long opening may take.
const OPENING: Duration = Duration::from_secs(2);

/// What was said about an event, in the order in which it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It was submitted; no answer yet, or an error.
    Keep,
    /// It is said to be kept.
    Kept,
    /// It is to be removed; no answer yet, or an error.
    Settle,
    /// It is said to be removed.
    Settled,
}

impl Stage {
    fn parse(word: &str) -> Option<Stage> {
        match word {
            "keep" => Some(Stage::Keep),
            "kept" => Some(Stage::Kept),
            "settle" => Some(Stage::Settle),
            "settled" => Some(Stage::Settled),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Stage::Keep => "keep",
            Stage::Kept => "kept",
            Stage::Settle => "settle",
            Stage::Settled => "settled",
        }
    }
}

/// What was said until a point.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub events: BTreeMap<u64, Stage>,
    /// Whether the database may be copied into a new one: it was damaged on purpose, or a call failed.
    pub may_copy: bool,
}

impl Told {
    pub fn at(recording: &Recording, point: usize) -> Told {
        let mut told = Told::default();
        for mark in recording.marks(point) {
            let mut words = mark.split_whitespace();
            match words.next() {
                Some("damage") => told.may_copy = true,
                Some("repaired") => told.may_copy = false,
                Some(word) => {
                    let Some(stage) = Stage::parse(word) else { continue };
                    // Only what is whole counts.
                    told.events.extend(words.filter_map(|number| number.parse().ok()).map(|number| (number, stage)));
                }
                None => {}
            }
        }
        told.may_copy |= recording.first_fault().is_some_and(|fault| fault < point);
        told
    }

    /// Marks that say the same.
    pub fn marks(&self) -> Vec<String> {
        let mut marks: Vec<String> =
            self.events.iter().map(|(number, stage)| format!("{} {number}\n", stage.word())).collect();
        if self.may_copy {
            marks.push("damage\n".to_owned());
        }
        marks
    }
}

/// What is found in a folder.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Events that are as they were submitted.
    pub events: Vec<u64>,
    /// What isn't.
    pub wrong: Vec<String>,
    pub opened_in: Duration,
}

/// What was seen of a state that is no fault.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub must_be_there: usize,
    /// Events that are there again although the store said that they were removed: they are published twice.
    pub again: usize,
    /// Whether the store copied its database into a new one.
    pub is_copied: bool,
    pub opened_in: Duration,
}

/// A fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// An event that was acknowledged isn't there.
    Lost,
    /// An event is there that wasn't submitted, or it was altered, or it is there twice.
    Wrong,
    /// The store can't be opened or read.
    Unusable,
    /// Opening takes too long.
    Slow,
    /// The store takes an unfinished write for damage.
    FalseAlarm,
    /// The workload itself met what must not happen.
    Workload,
}

/// Judges a folder, which is changed by that.
pub fn check(folder: &Path, told: &Told, inspect: impl FnOnce(&Path) -> Result<Found, String>) -> Result<Seen, Fault> {
    let fault = |kind, message: String| Err(Fault { kind, message });
    let before = database(folder);
    let aside = set_aside(folder);
    let found = inspect(folder).map_err(|message| Fault { kind: FaultKind::Unusable, message })?;
    if !found.wrong.is_empty() {
        return fault(FaultKind::Wrong, some("", &found.wrong));
    }
    let events: BTreeSet<u64> = found.events.iter().copied().collect();
    let must_be_there = told.events.iter().filter(|(_, stage)| **stage == Stage::Kept);
    let lost: Vec<u64> =
        must_be_there.clone().map(|(event, _)| *event).filter(|event| !events.contains(event)).collect();
    if !lost.is_empty() {
        return fault(FaultKind::Lost, some(&format!("{} acknowledged events are lost:", lost.len()), &lost));
    }
    let invented: Vec<u64> = events.iter().copied().filter(|event| !told.events.contains_key(event)).collect();
    if !invented.is_empty() {
        return fault(FaultKind::Wrong, some("events that nobody submitted:", &invented));
    }
    if events.len() < found.events.len() {
        return fault(FaultKind::Wrong, format!("{} events are there twice", found.events.len() - events.len()));
    }
    let is_copied = before.is_some_and(|before| database(folder).is_none_or(|(inode, _)| inode != before.0))
        || set_aside(folder).difference(&aside).next().is_some();
    if is_copied && !told.may_copy {
        return fault(FaultKind::FalseAlarm, "the store takes an unfinished write for damage".to_owned());
    }
    if found.opened_in > OPENING {
        return fault(FaultKind::Slow, format!("opening takes {:?}", found.opened_in));
    }
    let again = events.iter().filter(|event| told.events[event] == Stage::Settled).count();
    Ok(Seen { must_be_there: must_be_there.count(), again, is_copied, opened_in: found.opened_in })
}

fn some<T: std::fmt::Display>(what: &str, all: &[T]) -> String {
    let shown: Vec<String> = all.iter().take(5).map(T::to_string).collect();
    format!("{what} {}{}", shown.join(", "), if all.len() > 5 { ", …" } else { "" })
}

/// Inode and length of the database, if there is one with tables.
fn database(folder: &Path) -> Option<(u64, u64)> {
    let path = folder.join(crate::workload::FILE);
    let file = std::fs::metadata(&path).ok()?;
    // A database that was just begun may be begun anew.
    (file.len() > 16 << 10).then_some((file.ino(), file.len()))
}

/// Old databases that the store keeps for people.
fn set_aside(folder: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("spool.db.damaged-")).collect()
}
