//! Copies what can be read of a database into a new one.

use std::path::Path;

use super::super::database::{Database, Writing};
use super::super::error::{FailureKind, StoreError};
use super::super::files::remove_parts;
use super::super::record::{DeadLetter, DeadLetterRow, Spooled};
use super::super::salvage;
use super::super::space::Reserve;
use super::Cause;
use super::swap::{BUILDING, finish, keep_newest};

/// Copies what can be read of a database into a new one, which becomes that of the folder. `expected` is the least number
/// of records that the database is known to hold.
///
/// # Errors
/// When the copy cannot be made. The old database is unchanged then.
pub(super) fn copy(folder: &Path, from: &Path, cause: &Cause, expected: u64) -> Result<Copied, StoreError> {
    let building = folder.join(BUILDING);
    let copied = match read_into(from, &building) {
        Err(error) if error.kind == FailureKind::DiskFull && Reserve::new(folder).give_up() => {
            read_into(from, &building)
        }
        copied => copied,
    };
    let mut copied = copied.map_err(|error| {
        remove_parts(&building);
        let size = std::fs::metadata(from).map_or(0, |file| file.len()).div_ceil(1 << 20);
        match error.kind {
            FailureKind::DiskFull => StoreError::new(
                FailureKind::DiskFull,
                format!(
                    "there is no room to copy {} (up to {size} MiB); free space on the disk. Nothing was changed",
                    from.display()
                ),
            ),
            _ => error,
        }
    })?;
    let found = copied.records + copied.damaged;
    if let Some(loss) = &mut copied.loss {
        loss.rows = loss.rows.max(expected.saturating_sub(found));
    }
    let is_complete = copied.loss.is_some_and(salvage::Loss::is_none);
    finish(folder, is_complete)?;
    let Copied { records, dead_letters, damaged, loss } = copied;
    match loss {
        Some(loss) if loss.is_none() && *cause == Cause::SyncFailed => {
            tracing::info!(records, dead_letters, damaged, "the spool was copied into a new file");
        }
        Some(loss) if loss.is_none() => {
            tracing::warn!(records, dead_letters, damaged, "everything was copied from the damaged database");
        }
        Some(loss) => tracing::error!(
            records,
            dead_letters,
            damaged,
            lost = loss.rows,
            or_more = loss.is_open,
            "not everything could be read from the damaged database; it is kept"
        ),
        None => tracing::error!("nothing could be read from the damaged database; it is kept"),
    }
    if !is_complete {
        keep_newest(folder);
    }
    Ok(copied)
}

/// How much was copied.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::store) struct Copied {
    pub(in crate::store) records: u64,
    dead_letters: u64,
    /// Records and dead letters that were changed on the disk. They are dead letters now.
    damaged: u64,
    /// What could not be read; none if nothing could be read.
    pub(in crate::store) loss: Option<salvage::Loss>,
}

fn read_into(from: &Path, building: &Path) -> Result<Copied, StoreError> {
    remove_parts(building);
    let source = match Database::open_damaged(from) {
        Ok(source) => Some(source),
        Err(error) if error.kind == FailureKind::Damaged => {
            tracing::error!(database = %from.display(), %error, "the database cannot be opened");
            None
        }
        Err(error) => return Err(error),
    };
    let mut database = Database::create(building)?;
    let mut copied = Copied::default();
    if let Some(source) = source {
        let writing = database.begin()?;
        let mut into = Into { writing: &writing, copied: &mut copied };
        let loss = salvage::read(&source, &mut into)?;
        writing.commit()?;
        copied.loss = Some(loss);
    }
    database.finish_new()?;
    Ok(copied)
}

/// Writes rows into a new database.
struct Into<'a> {
    writing: &'a Writing<'a>,
    copied: &'a mut Copied,
}

impl salvage::Sink for Into<'_> {
    fn record(&mut self, spooled: Spooled) -> Result<(), StoreError> {
        if spooled.is_sound {
            self.copied.records += 1;
            return self.writing.append(spooled.seq, &spooled.record);
        }
        self.copied.damaged += 1;
        self.writing.keep(&DeadLetter::of_damaged(spooled.record), u64::MAX).map(drop)
    }

    fn dead_letter(&mut self, row: DeadLetterRow) -> Result<(), StoreError> {
        self.copied.dead_letters += 1;
        self.copied.damaged += u64::from(!row.is_sound);
        self.writing.insert_dead_letter(Some(row.id), &row.marked_if_damaged()).map(drop)
    }
}
