//! Jobs of the writer, and what each changes in a transaction.

use tokio::sync::oneshot;

use crate::store::database::{Database, Kept, Writing};
use crate::store::error::{FailureKind, StoreError};
use crate::store::lane::{Change, Changes};
use crate::store::record::{Backlog, DeadLetter, Retained, Settled, SettledLetter, SpoolRecord};
use crate::store::settings::StoreBounds;

/// Something to write.
#[derive(Debug)]
pub(in crate::store) enum Work {
    /// Keeps all of it or nothing.
    Keep(Vec<SpoolRecord>, Vec<DeadLetter>),
    /// Removes each record on its own. A record whose dead letter has no room stays.
    Settle(Vec<Settled>),
    /// Replays that ended: without an error the dead letter is removed.
    EndReplays(Vec<(i64, Option<String>)>),
    /// A reader found damage in the database of a generation.
    Repair(u64, StoreError),
}

impl Work {
    /// Whether it can be refused, because its sender still has the event.
    pub(super) fn is_new(&self) -> bool {
        matches!(self, Work::Keep(..))
    }

    /// Bytes that it adds.
    pub(super) fn new_bytes(&self) -> u64 {
        let Work::Keep(records, letters) = self else { return 0 };
        let records: u64 = records.iter().map(SpoolRecord::bytes).sum();
        records + letters.iter().map(DeadLetter::bytes).sum::<u64>()
    }
}

/// The answer to one job.
pub(super) type Answer = Result<Retained, StoreError>;

type Done = oneshot::Sender<Answer>;

/// A message to the writer.
#[derive(Debug)]
pub(in crate::store) enum Job {
    Work(Work, Done),
    /// Ends the thread after what was handed over before.
    Stop,
}

pub(super) type Jobs = Vec<(Work, Done)>;

/// What the store holds. Counted in memory, because counting a million rows takes long.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::store) struct Totals {
    pub(in crate::store) records: u64,
    pub(super) bytes: u64,
    pub(super) oldest: Option<i64>,
    pub(in crate::store) dead_letters: u64,
    pub(super) dead_letter_bytes: u64,
    /// The position of the next record.
    pub(super) next_seq: i64,
}

impl Totals {
    /// Counts all rows.
    pub(in crate::store) fn of(database: &Database) -> Result<(Totals, Vec<Backlog>), StoreError> {
        let backlogs: Vec<Backlog> = database.backlogs()?;
        let (dead_letters, dead_letter_bytes) = database.dead_letter_totals()?;
        let totals = Totals {
            records: backlogs.iter().map(|backlog| backlog.records).sum(),
            bytes: backlogs.iter().map(|backlog| backlog.bytes).sum(),
            oldest: database.oldest()?,
            dead_letters,
            dead_letter_bytes,
            next_seq: database.last_seq()?.saturating_add(1),
        };
        Ok((totals, backlogs))
    }
}

/// What the jobs of one transaction change.
pub(super) struct Pending {
    pub(super) totals: Totals,
    pub(super) lanes: Changes,
}

impl Pending {
    fn added(&mut self, output: &str, topic: &str, bytes: u64) {
        self.totals.records += 1;
        self.totals.bytes += bytes;
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.lanes.add(output, topic, Change { added: 1, removed: 0, bytes });
    }

    fn removed(&mut self, output: &str, topic: &str, bytes: u64) {
        self.totals.records = self.totals.records.saturating_sub(1);
        self.totals.bytes = self.totals.bytes.saturating_sub(bytes);
        let bytes = -i64::try_from(bytes).unwrap_or(i64::MAX);
        self.lanes.add(output, topic, Change { added: 0, removed: 1, bytes });
    }
}

/// Applies one job to a transaction.
///
/// # Errors
/// The outer error is that of the transaction, of which nothing may be committed then. The inner one says that the job
/// has no room: it changed nothing, and the transaction can go on with the others.
pub(super) fn apply(
    work: &Work,
    writing: &Writing<'_>,
    pending: &mut Pending,
    bounds: &StoreBounds,
) -> Result<Answer, StoreError> {
    match work {
        Work::Keep(records, letters) => keep(writing, pending, records, letters, bounds),
        Work::Settle(settled) => settle(writing, pending, settled, bounds.dead_letters_max_bytes).map(Ok),
        Work::EndReplays(ended) => end_replays(writing, &mut pending.totals, ended).map(|()| Ok(Retained::new())),
        Work::Repair(..) => Ok(Ok(Retained::new())),
    }
}

fn keep(
    writing: &Writing<'_>,
    pending: &mut Pending,
    records: &[SpoolRecord],
    letters: &[DeadLetter],
    bounds: &StoreBounds,
) -> Result<Answer, StoreError> {
    let bytes: u64 = records.iter().map(SpoolRecord::bytes).sum();
    if pending.totals.bytes + bytes > bounds.spool_max_bytes && !records.is_empty() {
        return Ok(Err(no_room(FailureKind::SpoolFull)));
    }
    let mut after = pending.totals;
    // If a later dead letter has no room, the earlier ones are removed again.
    let mut undo = Vec::new();
    for letter in letters {
        let mut room = bounds.dead_letters_max_bytes.saturating_sub(after.dead_letter_bytes);
        let mut full = FailureKind::DeadLettersFull;
        if letter.is_not_a_callback() {
            let share = bounds.not_a_callback_max_bytes.saturating_sub(writing.not_a_callback_bytes()?);
            if share < room {
                (room, full) = (share, FailureKind::NotACallbackFull);
            }
        }
        match writing.keep(letter, room)? {
            Kept::New(id) => {
                after.dead_letters += 1;
                after.dead_letter_bytes += letter.bytes();
                undo.push(id);
            }
            Kept::Again => {}
            Kept::NoRoom => {
                for id in undo {
                    writing.remove_dead_letter(id)?;
                }
                return Ok(Err(no_room(full)));
            }
        }
    }
    pending.totals = after;
    append(writing, pending, records)?;
    Ok(Ok(Retained::new()))
}

pub(super) fn no_room(kind: FailureKind) -> StoreError {
    let message = match kind {
        FailureKind::DeadLettersFull => {
            "the dead letters are full (dead_letters.max_bytes): replay or delete some; until then such events are \
             stored in the spool"
        }
        FailureKind::NotACallbackFull => {
            "bodies that are not callbacks have used their share of the dead letters \
             (dead_letters.not_a_callback_share): delete some; until then further ones are only counted"
        }
        _ => "the spool is full (spool.max_bytes): events are refused until some of its records are published",
    };
    StoreError::new(kind, message)
}

fn append(writing: &Writing<'_>, pending: &mut Pending, records: &[SpoolRecord]) -> Result<(), StoreError> {
    for record in records {
        writing.append(pending.totals.next_seq, record)?;
        pending.totals.next_seq += 1;
        pending.added(&record.output, &record.topic, record.bytes());
    }
    Ok(())
}

fn settle(
    writing: &Writing<'_>,
    pending: &mut Pending,
    settled: &[Settled],
    letters_max: u64,
) -> Result<Retained, StoreError> {
    let mut retained = Retained::new();
    for Settled { seq, letter } in settled {
        // A record that is gone was settled before, and its dead letter was kept.
        if let Some(became) = letter.as_ref().filter(|_| writing.has(*seq).unwrap_or(true)) {
            let SettledLetter { letter, announcement } = &**became;
            match writing.keep(letter, letters_max.saturating_sub(pending.totals.dead_letter_bytes))? {
                Kept::New(_) => {
                    pending.totals.dead_letters += 1;
                    pending.totals.dead_letter_bytes += letter.bytes();
                }
                Kept::Again => {}
                Kept::NoRoom => {
                    retained.push(*seq);
                    continue;
                }
            }
            // No bound applies, because the record that leaves makes room for it.
            append(writing, pending, announcement.as_slice())?;
        }
        if let Some((output, topic, bytes)) = writing.remove(*seq)? {
            pending.removed(&output, &topic, bytes);
        }
    }
    Ok(retained)
}

fn end_replays(writing: &Writing<'_>, totals: &mut Totals, ended: &[(i64, Option<String>)]) -> Result<(), StoreError> {
    for (id, error) in ended {
        match error {
            Some(error) => writing.replay_failed(*id, error)?,
            None => {
                if let Some(bytes) = writing.remove_dead_letter(*id)? {
                    totals.dead_letters = totals.dead_letters.saturating_sub(1);
                    totals.dead_letter_bytes = totals.dead_letter_bytes.saturating_sub(bytes);
                }
            }
        }
    }
    Ok(())
}

pub(in crate::store) fn closed() -> StoreError {
    StoreError::new(FailureKind::Io, "the spool is closed")
}
