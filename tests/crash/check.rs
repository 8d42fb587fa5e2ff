//! The judge: compares what the store reported before the power failed with what is found afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::recording::Recording;

/// How long opening may take.
const OPENING: Duration = Duration::from_secs(2);

/// What was reported about an event, in the order in which it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It was submitted; no answer yet, or an error.
    Keep,
    /// It was reported as kept.
    Kept,
    /// Its removal was requested; no answer yet, or an error.
    Settle,
    /// It was reported as removed.
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

/// Everything that was reported up to a point.
#[derive(Clone, Debug, Default)]
pub struct Reported {
    pub events: BTreeMap<u64, Stage>,
    /// Whether the database may be copied into a new one: it was damaged on purpose, or a call failed.
    pub may_copy: bool,
}

impl Reported {
    pub fn at(recording: &Recording, point: usize) -> Reported {
        let mut reported = Reported::default();
        for mark in recording.marks(point) {
            let mut words = mark.split_whitespace();
            match words.next() {
                Some("damage") => reported.may_copy = true,
                Some("repaired") => reported.may_copy = false,
                Some(word) => {
                    let Some(stage) = Stage::parse(word) else { continue };
                    // Only complete lines count.
                    reported
                        .events
                        .extend(words.filter_map(|number| number.parse().ok()).map(|number| (number, stage)));
                }
                None => {}
            }
        }
        reported.may_copy |= recording.first_fault().is_some_and(|fault| fault < point);
        reported
    }

    /// The equivalent marks.
    pub fn marks(&self) -> Vec<String> {
        let mut marks: Vec<String> =
            self.events.iter().map(|(number, stage)| format!("{} {number}\n", stage.word())).collect();
        if self.may_copy {
            marks.push("damage\n".to_owned());
        }
        marks
    }
}

/// The contents of a folder.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Events that are unchanged.
    pub events: Vec<u64>,
    /// Descriptions of everything else.
    pub wrong: Vec<String>,
    pub opened_in: Duration,
}

/// Observations about a state that are not faults.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub must_be_there: usize,
    /// Events that exist although the store reported their removal. They will be published twice.
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
    /// An acknowledged event is missing.
    Lost,
    /// An event was never submitted, or it was changed, or it exists twice.
    Wrong,
    /// The store cannot be opened or read.
    Unusable,
    /// Opening takes too long.
    Slow,
    /// The store treats an unfinished write as damage.
    FalseAlarm,
    /// Something happened in the workload that must not happen.
    Workload,
}

/// Judges a folder. This changes the folder.
pub fn check(
    folder: &Path,
    reported: &Reported,
    inspect: impl FnOnce(&Path) -> Result<Found, String>,
) -> Result<Seen, Fault> {
    let fault = |kind, message: String| Err(Fault { kind, message });
    let before = database(folder);
    let aside = set_aside(folder);
    let found = inspect(folder).map_err(|message| Fault { kind: FaultKind::Unusable, message })?;
    if !found.wrong.is_empty() {
        return fault(FaultKind::Wrong, some("", &found.wrong));
    }
    let events: BTreeSet<u64> = found.events.iter().copied().collect();
    let must_be_there = reported.events.iter().filter(|(_, stage)| **stage == Stage::Kept);
    let lost: Vec<u64> =
        must_be_there.clone().map(|(event, _)| *event).filter(|event| !events.contains(event)).collect();
    if !lost.is_empty() {
        return fault(FaultKind::Lost, some(&format!("{} acknowledged events are lost:", lost.len()), &lost));
    }
    let invented: Vec<u64> = events.iter().copied().filter(|event| !reported.events.contains_key(event)).collect();
    if !invented.is_empty() {
        return fault(FaultKind::Wrong, some("events that were never submitted:", &invented));
    }
    if events.len() < found.events.len() {
        return fault(FaultKind::Wrong, format!("{} events exist twice", found.events.len() - events.len()));
    }
    let is_copied = before.is_some_and(|before| database(folder).is_none_or(|(inode, _)| inode != before.0))
        || set_aside(folder).difference(&aside).next().is_some();
    if is_copied && !reported.may_copy {
        return fault(FaultKind::FalseAlarm, "the store treats an unfinished write as damage".to_owned());
    }
    if found.opened_in > OPENING {
        return fault(FaultKind::Slow, format!("opening takes {:?}", found.opened_in));
    }
    let again = events.iter().filter(|event| reported.events[event] == Stage::Settled).count();
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
    // A database that was just created may be created again.
    (file.len() > 16 << 10).then_some((file.ino(), file.len()))
}

/// Old databases that the store keeps for operators.
fn set_aside(folder: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("spool.db.damaged-")).collect()
}
