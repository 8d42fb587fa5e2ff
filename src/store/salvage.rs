//! Reads a damaged database: every row that can be read, and a count of the rows that cannot.
//!
//! SQLite shows which page is damaged only by failing there. So rows are visited by their numbers. Where that fails, the
//! next number after the unreadable page is searched. Every step returns a higher number than the one before, so that
//! reading ends even if pages point at each other.

use rustc_hash::FxHashSet;

use super::database::{Database, PAGE_BYTES};
use super::error::{FailureKind, StoreError};
use super::record::{DeadLetterRow, Spooled};

/// Numbers that one query reads.
const BATCH: usize = 4096;

/// Receives rows.
pub(super) trait Sink {
    /// Receives a record.
    fn record(&mut self, spooled: Spooled) -> Result<(), StoreError>;

    /// Receives a dead letter.
    fn dead_letter(&mut self, row: DeadLetterRow) -> Result<(), StoreError>;
}

/// What could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    /// Rows that are known to exist or to have existed, and could not be read.
    pub(super) rows: u64,
    /// Whether more rows may be lost.
    pub(super) is_open: bool,
}

impl Loss {
    /// Whether everything was read.
    pub(super) fn is_none(self) -> bool {
        self.rows == 0 && !self.is_open
    }
}

/// Hands the dead letters and then the records to the sink, each kind in order. The dead letters come first, because they
/// keep their numbers, and damaged records become new dead letters.
pub(super) fn read(source: &Database, sink: &mut impl Sink) -> Result<Loss, StoreError> {
    let mut lost = 0;
    let are_letters_whole = walk(
        |after, visit| source.dead_letter_ids(after, visit),
        |id| {
            match readable(source.dead_letter(id))? {
                Some(row) => sink.dead_letter(row)?,
                None => lost += 1,
            }
            Ok(())
        },
    )?;
    let mut seen = FxHashSet::default();
    let is_spool_whole = walk(
        |after, visit| source.seqs(after, visit),
        |seq| {
            seen.insert(seq);
            match readable(source.record(seq))? {
                Some(spooled) => sink.record(spooled)?,
                None => lost += 1,
            }
            Ok(())
        },
    )?;
    let (unseen, is_index_whole) = unseen(source, &seen)?;
    for seq in unseen {
        match readable(source.record(seq))? {
            Some(spooled) => sink.record(spooled)?,
            // Counted as lost although the index may be wrong, because a stale page of the table looks sound.
            None => lost += 1,
        }
    }
    Ok(Loss { rows: lost, is_open: !are_letters_whole || !(is_spool_whole || is_index_whole) })
}

/// What was read; none if a page is damaged.
fn readable<T>(read: Result<Option<T>, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Err(error) if error.kind == FailureKind::Damaged => Ok(None),
        read => read,
    }
}

/// Positions that are in the index and were not found in the table, and whether all of the index could be read.
fn unseen(source: &Database, seen: &FxHashSet<i64>) -> Result<(Vec<i64>, bool), StoreError> {
    let mut unseen = Vec::new();
    // Pages that point at each other would make an index endless. No entry is shorter than eight bytes.
    let mut left = source.pages().unwrap_or(0).saturating_mul(PAGE_BYTES.into()) / 8;
    let listed = source.indexed_seqs(|seq| {
        left = left.saturating_sub(1);
        if !seen.contains(&seq) {
            unseen.push(seq);
        }
        left > 0
    });
    let is_whole = match listed {
        Err(error) if error.kind != FailureKind::Damaged => return Err(error),
        listed => listed.is_ok() && left > 0,
    };
    unseen.sort_unstable();
    unseen.dedup();
    Ok((unseen, is_whole))
}

/// Lists the numbers of a table after a number, in order, until the visitor returns false.
trait Numbers: Fn(i64, &mut dyn FnMut(i64) -> bool) -> Result<(), StoreError> {}

impl<F: Fn(i64, &mut dyn FnMut(i64) -> bool) -> Result<(), StoreError>> Numbers for F {}

/// Visits the numbers of a table in order, and skips what cannot be read. Returns whether nothing was skipped.
fn walk(numbers: impl Numbers, mut visit: impl FnMut(i64) -> Result<(), StoreError>) -> Result<bool, StoreError> {
    let (mut after, mut is_sound) = (i64::MIN, true);
    loop {
        let mut batch: Vec<i64> = Vec::new();
        let mut is_ordered = true;
        let listed = numbers(after, &mut |number| {
            is_ordered = number > batch.last().copied().unwrap_or(after);
            if is_ordered {
                batch.push(number);
            }
            is_ordered && batch.len() < BATCH
        });
        for number in &batch {
            visit(*number)?;
        }
        after = batch.last().copied().unwrap_or(after);
        match listed {
            Ok(()) if is_ordered && batch.len() < BATCH => return Ok(is_sound),
            Ok(()) if is_ordered => continue,
            Err(error) if error.kind != FailureKind::Damaged => return Err(error),
            _ => is_sound = false,
        }
        match behind_damage(&numbers, after)? {
            Some(next) => after = next,
            None => return Ok(false),
        }
    }
}

/// The result of a search for the next number.
#[derive(PartialEq, Eq)]
enum Next {
    Number,
    End,
    Damage,
}

fn next(numbers: &impl Numbers, after: i64) -> Result<Next, StoreError> {
    let mut found = None;
    match numbers(after, &mut |number| {
        found = Some(number);
        false
    }) {
        Ok(()) => Ok(match found {
            None => Next::End,
            Some(number) if number > after => Next::Number,
            Some(_) => Next::Damage,
        }),
        Err(error) if error.kind == FailureKind::Damaged => Ok(Next::Damage),
        Err(error) => Err(error),
    }
}

/// The lowest number after damage from which a search finds a row; none if there is no such number. It is found by doubling
/// the distance and then halving it. Rows between two damaged pages may be skipped; the index finds those.
fn behind_damage(numbers: &impl Numbers, after: i64) -> Result<Option<i64>, StoreError> {
    let mut bad = after.max(0);
    if bad != after && next(numbers, bad)? == Next::Number {
        return Ok(Some(bad));
    }
    let mut distance = 1_i64;
    let mut good = loop {
        let Some(probe) = bad.checked_add(distance) else { return Ok(None) };
        if next(numbers, probe)? != Next::Damage {
            break probe;
        }
        bad = probe;
        distance = distance.saturating_mul(2);
    };
    while good - bad > 1 {
        let middle = bad + (good - bad) / 2;
        if next(numbers, middle)? == Next::Damage { bad = middle } else { good = middle }
    }
    Ok((next(numbers, good)? == Next::Number).then_some(good))
}
