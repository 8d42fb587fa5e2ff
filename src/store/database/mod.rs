//! The SQLite database with the spool and the dead letters, and all SQL.
//!
//! Everything here blocks. One connection writes at a time: that of the writer thread, or of a command. Any number of
//! connections read, also in other processes. After a crash, SQLite's own recovery decides what is there.

mod dead_letters;
mod schema;
mod spool;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, RowIndex, Transaction, TransactionBehavior};

use super::error::{FailureKind, StoreError};
pub use dead_letters::Kept;
pub use schema::{Access, FORMAT, PAGE_BYTES};

pub use super::files::FILE;

/// A connection to the database.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    path: PathBuf,
    /// The inode of the opened file, if the owner of the folder may replace the file.
    inode: Option<u64>,
}

/// The inode of a file. It stays the same when the file is renamed.
pub(super) fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|file| std::os::unix::fs::MetadataExt::ino(&file))
}

/// The result of a check of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Records that were read.
    pub records: u64,
    /// Positions of records that were changed on the disk.
    pub damaged: Vec<i64>,
    /// Whether all of it was checked.
    pub is_complete: bool,
}

/// The length of the log, and how much of it is in the database already, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPages {
    /// Pages in the log.
    pub total: u64,
    /// Pages of the log that are in the database.
    pub moved: u64,
}

impl Database {
    /// Opens the database of a folder, as [`Database::open_file`] does. If it belongs to this user, other users cannot read
    /// it after that.
    ///
    /// # Errors
    /// Those of [`Database::open_file`].
    pub fn open(folder: &Path, access: Access) -> Result<Database, StoreError> {
        let file = folder.join(FILE);
        super::files::secure_database(&file)?;
        Database::open_file(&file, access)
    }

    /// Begins a transaction that writes.
    ///
    /// # Errors
    /// SQLite's.
    pub fn begin(&mut self) -> Result<Writing<'_>, StoreError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        Ok(Writing { transaction, path: &self.path, inode: self.inode })
    }

    /// A number that changes when another connection, of any process, has changed the database since the last call.
    ///
    /// # Errors
    /// SQLite's.
    pub fn data_version(&self) -> Result<i64, StoreError> {
        Ok(self.connection.pragma_query_value(None, "data_version", |row| row.get(0))?)
    }

    /// Moves the log into the database, except the part that a reader needs, and syncs the database.
    ///
    /// # Errors
    /// SQLite's. What was committed is still in the log.
    pub fn checkpoint(&self) -> Result<LogPages, StoreError> {
        self.log_pages("PRAGMA wal_checkpoint(PASSIVE)")
    }

    /// The length of the log.
    ///
    /// # Errors
    /// SQLite's.
    pub fn log(&self) -> Result<LogPages, StoreError> {
        self.log_pages("PRAGMA wal_checkpoint(NOOP)")
    }

    fn log_pages(&self, sql: &str) -> Result<LogPages, StoreError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        statement
            .query_row([], |row| Ok(LogPages { total: unsigned(row, 1)?, moved: unsigned(row, 2)? }))
            .map_err(|error| noted(&self.path, error))
    }

    /// Limits the size of the log file after the log was moved into the database.
    ///
    /// # Errors
    /// SQLite's.
    pub fn limit_log(&self, bytes: u64) -> Result<(), StoreError> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.connection.pragma_update_and_check(None, "journal_size_limit", bytes, |_| Ok(()))?;
        Ok(())
    }

    /// Limits the database to a number of pages. An insert that needs more fails as [`FailureKind::DiskFull`] and changes
    /// nothing. A number below the present one means the present one.
    ///
    /// # Errors
    /// SQLite's.
    pub fn limit_pages(&self, pages: u64) -> Result<(), StoreError> {
        let pages = pages.clamp(1, 0xFFFF_FFFE);
        let pages = i64::try_from(pages).unwrap_or(i64::MAX);
        self.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
        Ok(())
    }

    /// Number of pages of the database, including those that are only in the log.
    ///
    /// # Errors
    /// SQLite's.
    pub fn pages(&self) -> Result<u64, StoreError> {
        Ok(self.connection.pragma_query_value(None, "page_count", |row| unsigned(row, 0))?)
    }

    /// Moves the whole log into the database and closes it. Deletes the log and its index if nobody else reads.
    ///
    /// # Errors
    /// SQLite's. What was committed is still in the log.
    pub fn close(self) -> Result<(), StoreError> {
        self.log_pages("PRAGMA wal_checkpoint(TRUNCATE)")?;
        self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        Ok(self.connection.close().map_err(|(_, error)| error)?)
    }

    /// Checks for damage: SQLite's own check of the structure, then the checksum of every record. Ends at the first damage
    /// of the structure, and when the time is over.
    ///
    /// # Errors
    /// Damage of the structure as [`FailureKind::Damaged`], or why the check cannot run.
    pub fn verify(&mut self, at_most: Option<Duration>) -> Result<Verified, StoreError> {
        let start = Instant::now();
        let is_late = move || at_most.is_some_and(|at_most| start.elapsed() >= at_most);
        self.connection.progress_handler(10_000, Some(is_late))?;
        let checked = self.connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0));
        self.connection.progress_handler(0, None::<fn() -> bool>)?;
        let mut verified = Verified { records: 0, damaged: Vec::new(), is_complete: false };
        match checked {
            Ok(word) if word == "ok" => {}
            Ok(words) => return Err(StoreError::new(FailureKind::Damaged, words)),
            Err(rusqlite::Error::SqliteFailure(failure, _)) if failure.code == ErrorCode::OperationInterrupted => {
                return Ok(verified);
            }
            Err(error) => return Err(error.into()),
        }
        self.each_record(|spooled| {
            verified.records += 1;
            if !spooled.is_sound {
                verified.damaged.push(spooled.seq);
            }
            !is_late()
        })?;
        verified.is_complete = !is_late();
        Ok(verified)
    }
}

/// A transaction. Dropping it without [`Writing::commit`] changes nothing.
#[derive(Debug)]
pub struct Writing<'c> {
    transaction: Transaction<'c>,
    path: &'c Path,
    inode: Option<u64>,
}

/// An error of a write. A failed fsync is marked in the folder, so that the next program that opens the file copies it.
fn noted(path: &Path, error: rusqlite::Error) -> StoreError {
    let error = StoreError::from(error);
    if error.kind == FailureKind::SyncFailed
        && let Some(folder) = path.parent()
    {
        super::files::mark_unsynced(folder);
    }
    error
}

impl Writing<'_> {
    /// Makes the transaction durable: it is on the disk when this returns.
    ///
    /// # Errors
    /// SQLite's. The transaction may have been written all the same; only opening the database again shows it.
    pub fn commit(self) -> Result<(), StoreError> {
        let Writing { transaction, path, inode: opened } = self;
        transaction.commit().map_err(|error| noted(path, error))?;
        if opened.is_some() && opened != inode(path) {
            let message = "the bridge has replaced the database in the meantime; run the command again";
            return Err(StoreError::new(FailureKind::Io, message));
        }
        Ok(())
    }

    /// Writes to the disk without changing anything, to find out whether writing succeeds.
    ///
    /// # Errors
    /// SQLite's.
    pub fn touch(&self) -> Result<(), StoreError> {
        let format: i32 = self.transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        Ok(self.transaction.pragma_update(None, "user_version", format)?)
    }
}

/// A count. SQLite stores it as a signed number.
fn unsigned(row: &rusqlite::Row<'_>, column: impl RowIndex) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(|number| u64::try_from(number).unwrap_or(0))
}

/// Text of a column that may be damaged. Invalid UTF-8 is replaced, and other types give none.
fn lossy(row: &rusqlite::Row<'_>, column: impl RowIndex) -> rusqlite::Result<Option<String>> {
    use rusqlite::types::ValueRef;
    Ok(match row.get_ref(column)? {
        ValueRef::Text(text) | ValueRef::Blob(text) => Some(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Null | ValueRef::Real(_) => None,
    })
}

/// Bytes of a column that may be damaged. Other types give none.
fn raw(row: &rusqlite::Row<'_>, column: impl RowIndex) -> rusqlite::Result<Option<bytes::Bytes>> {
    use rusqlite::types::ValueRef;
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes::Bytes::copy_from_slice(bytes)),
        ValueRef::Integer(_) | ValueRef::Null | ValueRef::Real(_) => None,
    })
}

/// A number of a column that may be damaged. Other types give 0.
fn integer(row: &rusqlite::Row<'_>, column: impl RowIndex) -> rusqlite::Result<i64> {
    use rusqlite::types::ValueRef;
    Ok(match row.get_ref(column)? {
        ValueRef::Integer(number) => number,
        ValueRef::Null | ValueRef::Real(_) | ValueRef::Text(_) | ValueRef::Blob(_) => 0,
    })
}
