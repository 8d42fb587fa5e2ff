//! Opens the database of a folder: creates it if there is none, and copies it into a new file if it cannot be trusted.
//!
//! A new database is written under a temporary name, synced, and renamed to a name that says that it is complete. Then
//! the old one is moved aside, and the new one takes its place. Each of these steps can be interrupted, and the next start
//! continues:
//!
//! | file | meaning at a start |
//! |---|---|
//! | `spool.db.building` | not finished; it is removed and built again |
//! | `spool.db.ready` | complete; it takes the place of `spool.db` |
//! | `spool.db.ready-in-part` | the same, but not everything could be read from the old one, which is kept |
//! | `spool.db.superseded` | an old database from which everything was read; it is removed |
//! | `spool.db.unsynced` | an fsync of `spool.db` failed; its content is copied into a new file |
//! | `spool.db.damaged-TIME` | an old database from which not everything could be read |
//!
//! The old database is only read, never changed. In a folder with old databases but without `spool.db`, the newest of them
//! is copied.

mod copy;
mod swap;

use std::path::Path;
use std::time::Duration;

use super::database::{Access, Database, PAGE_BYTES, Verified};
use super::error::{FailureKind, StoreError};
use super::files::{FILE, LOG, is_unsynced, remove_parts, rename, set_aside, sync, with_suffix};
use super::salvage;
use super::space::{Reserve, Volume};
pub(super) use copy::Copied;
use copy::copy;
use swap::{BUILDING, SUPERSEDED, continue_swap, finish};

/// Free bytes below which a start releases the reserve when the database cannot be opened.
const NO_SPACE: u64 = 1 << 20;

/// Why a database is copied into a new file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// An fsync failed: what was written may be missing on the disk, although it can be read now.
    SyncFailed,
    /// SQLite reported damage.
    Damaged(StoreError),
}

/// Opens the database of a folder whose lock the caller holds. Creates or repairs it if needed, and checks it for at most
/// the given time.
pub(super) fn open(folder: &Path, check: Duration) -> Result<(Database, Verified), StoreError> {
    match attempt(folder, check) {
        Err(error)
            if Volume::of(folder).is_ok_and(|volume| volume.free < NO_SPACE) && Reserve::new(folder).give_up() =>
        {
            tracing::warn!(path = %folder.display(), %error, "the disk is full; the reserve of the spool is released");
            attempt(folder, check)
        }
        result => result,
    }
}

fn attempt(folder: &Path, check: Duration) -> Result<(Database, Verified), StoreError> {
    let path = folder.join(FILE);
    remove_parts(&folder.join(BUILDING));
    continue_swap(folder)?;
    if path.exists() {
        remove_parts(&folder.join(SUPERSEDED));
    }
    if is_blank(&path) {
        std::fs::remove_file(&path)
            .map_err(|error| StoreError::io(format!("{} cannot be removed", path.display()), &error))?;
    }
    if !path.exists() {
        make(folder)?;
    }
    if is_unsynced(folder) {
        rebuild(folder, &Cause::SyncFailed, 0)?;
    }
    let opened = open_synced(folder).and_then(|mut database| {
        let verified = database.verify(Some(check))?;
        // SQLite's check ignores the encoding of texts, and may have ended before it reached the index.
        database.backlogs()?;
        Ok((database, verified))
    });
    let cause = match opened {
        Err(error) if error.kind == FailureKind::Damaged => Cause::Damaged(error),
        Err(error) if error.kind == FailureKind::SyncFailed => Cause::SyncFailed,
        opened => return opened,
    };
    rebuild(folder, &cause, 0)?;
    let mut database = open_synced(folder)?;
    let verified = database.verify(Some(check))?;
    Ok((database, verified))
}

/// Opens the database of a folder as its owner, with a log whose name is durable. SQLite syncs the folder when it creates
/// a log, but ignores whether that succeeds.
pub(super) fn open_synced(folder: &Path) -> Result<Database, StoreError> {
    let database = Database::open(folder, Access::Owner)?;
    sync(folder)?;
    Ok(database)
}

/// Whether the file has no tables, because an earlier program was interrupted when it had just created the file.
fn is_blank(path: &Path) -> bool {
    let size = |path: &Path| std::fs::metadata(path).map(|file| file.len()).ok();
    match (size(path), size(&with_suffix(path, LOG)).unwrap_or(0)) {
        // SQLite deletes a log next to an empty file. Without the file, the operator is asked about the log.
        (Some(0), _) => true,
        (Some(bytes), 0) => bytes <= u64::from(PAGE_BYTES) && Database::is_blank(path),
        _ => false,
    }
}

/// Creates the database of a folder that has none.
fn make(folder: &Path) -> Result<(), StoreError> {
    let path = folder.join(FILE);
    if let Some(newest) = set_aside(folder).last() {
        tracing::error!(
            from = %newest.display(),
            "spool.db is missing next to a database that was set aside; its content is copied"
        );
        let (log, its_log) = (with_suffix(&path, LOG), with_suffix(newest, LOG));
        if log.exists() && !its_log.exists() {
            // An earlier program was interrupted after it had renamed the first of them.
            rename(&log, &its_log)?;
            sync(folder)?;
        }
        let cause = StoreError::new(FailureKind::Damaged, "spool.db is missing");
        let copied = copy(folder, newest, &Cause::Damaged(cause), 0)?;
        if copied.loss.is_some_and(salvage::Loss::is_none) {
            remove_parts(newest);
        }
        return Ok(());
    }
    if std::fs::metadata(with_suffix(&path, LOG)).is_ok_and(|log| log.len() > 0) {
        return Err(StoreError::new(
            FailureKind::Foreign,
            format!(
                "{} is missing, but its log {FILE}{LOG} is there; put the file back, or remove the log if its events \
                 are not needed",
                path.display()
            ),
        ));
    }
    let building = folder.join(BUILDING);
    Database::create(&building)?.finish_new().inspect_err(|_| remove_parts(&building))?;
    finish(folder, true)
}

/// Copies the database of a folder into a new one, which takes its place. No connection may write during the copy; those
/// that read keep the old file. `expected` is the least number of records that the database is known to hold.
///
/// # Errors
/// When the copy cannot be made. The old database is unchanged then, and this can be called again.
pub(super) fn rebuild(folder: &Path, cause: &Cause, expected: u64) -> Result<Copied, StoreError> {
    let path = folder.join(FILE);
    if continue_swap(folder)? {
        return Ok(Copied::default());
    }
    match cause {
        Cause::SyncFailed => {
            tracing::warn!(database = %path.display(), "an fsync failed; the spool is copied into a new file");
        }
        Cause::Damaged(error) => {
            tracing::error!(database = %path.display(), %error, "the spool is damaged; it is copied into a new file");
        }
    }
    copy(folder, &path, cause, expected)
}
