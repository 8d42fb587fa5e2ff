//! Where the power fails: mostly where the order of operations is critical, otherwise anywhere.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::random::Random;
use crate::recording::{FileId, Op, Recording, Synced};

/// The part of a recording from which a point is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Anywhere.
    Any,
    /// While a damaged database is copied.
    Copying,
    /// After the first call that failed.
    AfterFault,
    /// Shortly after the first call that failed.
    JustAfterFault,
    /// At the end.
    End,
    /// At the end, and the power stays on: only the process was killed.
    Killed,
}

const PARTS: [(Part, &str); 6] = [
    (Part::Any, "any"),
    (Part::Copying, "copying"),
    (Part::AfterFault, "after-fault"),
    (Part::JustAfterFault, "just-after-fault"),
    (Part::End, "end"),
    (Part::Killed, "killed"),
];

/// Identifies one state of a recording completely.
#[derive(Clone, Copy, Debug)]
pub struct Pick {
    pub part: Part,
    pub seed: u64,
}

impl fmt::Display for Pick {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = PARTS.iter().find(|(part, _)| *part == self.part).map_or("any", |(_, name)| name);
        write!(formatter, "{name}:{}", self.seed)
    }
}

impl FromStr for Pick {
    type Err = String;

    fn from_str(text: &str) -> Result<Pick, String> {
        let parts = text.split_once(':').and_then(|(name, seed)| {
            let (part, _) = PARTS.iter().find(|(_, known)| *known == name)?;
            Some(Pick { part: *part, seed: seed.parse().ok()? })
        });
        parts.ok_or_else(|| format!("invalid state {text}: expected one like any:123"))
    }
}

/// States of a part, from a seed.
pub fn picks(part: Part, seed: u64, many: usize) -> Vec<Pick> {
    let mut random = Random::new(seed);
    (0..many).map(|_| Pick { part, seed: random.next() >> 16 }).collect()
}

/// The critical points of a recording.
pub struct Points {
    pub all: Range<usize>,
    /// While a damaged database is copied.
    pub copying: Option<Range<usize>>,
    first_fault: usize,
    /// Syncs of the log of a database, and of other files.
    pub log_syncs: Vec<usize>,
    pub other_syncs: Vec<usize>,
    /// Changes of names and lengths.
    pub names: Vec<usize>,
    /// How often a log was restarted, after it was merged into its database.
    pub log_restarts: usize,
}

impl Points {
    pub fn of(recording: &Recording) -> Points {
        let mut logs: BTreeSet<FileId> = BTreeSet::new();
        let mut begun: BTreeSet<FileId> = BTreeSet::new();
        let (mut log_syncs, mut other_syncs, mut names) = (Vec::new(), Vec::new(), Vec::new());
        let mut log_restarts = 0;
        for (at, op) in recording.ops.iter().enumerate() {
            match op {
                Op::Existing { file, name, .. } | Op::Create { file, name } => {
                    if name.ends_with("-wal") {
                        logs.insert(*file);
                    }
                    names.push(at);
                }
                Op::SyncEnd { of: Synced::File(file), .. } if logs.contains(file) => log_syncs.push(at),
                Op::Write { file, offset: 0, .. } if logs.contains(file) => {
                    log_restarts += usize::from(!begun.insert(*file));
                }
                Op::SyncEnd { of: Synced::File(_), .. } => other_syncs.push(at),
                Op::SyncEnd { of: Synced::Folder, .. }
                | Op::Rename { .. }
                | Op::Unlink { .. }
                | Op::Truncate { .. }
                | Op::Allocate { .. } => names.push(at),
                _ => {}
            }
        }
        let copying = recording.find("damage").map(|damage| {
            let repaired = recording.find("repaired").unwrap_or(recording.ops.len());
            damage..repaired.max(damage)
        });
        let is_before = |op: &Op| matches!(op, Op::Existing { .. } | Op::Mark(_) | Op::Start);
        let first = recording.ops.iter().position(|op| !is_before(op)).unwrap_or(recording.ops.len());
        Points {
            all: first..recording.ops.len(),
            copying,
            first_fault: recording.first_fault().unwrap_or(0),
            log_syncs,
            other_syncs,
            names,
            log_restarts,
        }
    }

    /// A point: everything before it was done.
    pub fn point(&self, part: Part, random: &mut Random) -> usize {
        let within = match part {
            Part::End | Part::Killed => return self.all.end,
            Part::Any => self.all.clone(),
            Part::Copying => self.copying.clone().unwrap_or(self.all.clone()),
            Part::AfterFault => self.first_fault + 1..self.all.end,
            Part::JustAfterFault => {
                // Nearer points are more likely.
                let far = random.below(9);
                return (self.first_fault + 1 + random.below(1 << far)).min(self.all.end);
            }
        };
        let worth = match random.below(10) {
            0..3 => &self.log_syncs,
            3..6 => &self.other_syncs,
            6..8 => &self.names,
            _ => &Vec::new(),
        };
        let from = worth.partition_point(|at| *at < within.start);
        let to = worth.partition_point(|at| *at < within.end);
        match random.pick(&worth[from.min(to)..to]) {
            // Just before it, just after it, or a little later.
            Some(at) => (at + [0, 0, 0, 1, 1, 2, 4][random.below(7)]).clamp(within.start, within.end),
            None => within.start + random.below(within.len() + 1),
        }
    }
}
