//! Why the store could not do something: a kind from a closed list, and the words of whoever said so.

use std::fmt;

use crate::common::words::words;

words! {
    /// Kinds of failures: the label `reason` of metrics.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum FailureKind {
        /// `spool.max_bytes` is reached.
        SpoolFull = "spool_full",
        /// One topic of an output that is up has its share of the spool, `spool.lane_share`.
        LaneFull = "lane_full",
        /// `dead_letters.max_bytes` is reached.
        DeadLettersFull = "dead_letters_full",
        /// The disk is full, or so full that the rest is needed to drain the spool.
        DiskFull = "disk_full",
        /// The disk, the folder or the file cannot be written.
        ReadOnly = "read_only",
        /// An fsync failed. What the file holds may be missing on the disk although it can still be read, so that nothing
        /// more is acknowledged from this file until its content was copied into a new one.
        SyncFailed = "sync_failed",
        /// Another error of the disk, or no answer from it.
        Io = "io",
        /// SQLite reports that the structure of the database is damaged.
        Damaged = "damaged",
        /// The file belongs to another program or to a newer version.
        Foreign = "foreign",
    }
}

/// Why the store could not do something. Nothing was stored, unless the documentation of the call says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError {
    /// The kind, which decides what to do.
    pub kind: FailureKind,
    /// The words of SQLite or of the system.
    pub message: String,
}

impl StoreError {
    /// An error of a kind.
    pub fn new(kind: FailureKind, message: impl fmt::Display) -> StoreError {
        StoreError { kind, message: message.to_string() }
    }

    /// An error of the system about a file, with what was being done.
    pub(crate) fn io(what: impl fmt::Display, error: &std::io::Error) -> StoreError {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => FailureKind::DiskFull,
            std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied => FailureKind::ReadOnly,
            _ => FailureKind::Io,
        };
        StoreError::new(kind, format!("{what}: {error}"))
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for StoreError {}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        let kind = match &error {
            rusqlite::Error::SqliteFailure(failure, _) => kind_of(failure),
            // A table that is missing, or a value of a type that its column cannot have: the file breaks rules that
            // SQLite enforces when it writes.
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..)
            | rusqlite::Error::SqlInputError { .. } => FailureKind::Damaged,
            _ => FailureKind::Io,
        };
        let message = match &error {
            rusqlite::Error::SqliteFailure(failure, Some(message)) => {
                format!("{message} (sqlite error {})", failure.extended_code)
            }
            other => other.to_string(),
        };
        StoreError { kind, message }
    }
}

fn kind_of(failure: &rusqlite::ffi::Error) -> FailureKind {
    use rusqlite::ErrorCode as Code;
    use rusqlite::ffi::{SQLITE_ERROR, SQLITE_IOERR_DIR_FSYNC, SQLITE_IOERR_FSYNC, SQLITE_IOERR_SHMSIZE};
    match (failure.code, failure.extended_code) {
        (_, SQLITE_IOERR_FSYNC | SQLITE_IOERR_DIR_FSYNC) => FailureKind::SyncFailed,
        // The index of the log is a file too, and this is its way to say that the disk is full.
        (_, SQLITE_IOERR_SHMSIZE) | (Code::DiskFull, _) => FailureKind::DiskFull,
        (Code::ReadOnly | Code::CannotOpen | Code::PermissionDenied, _) => FailureKind::ReadOnly,
        // The last is how a table or an index is missed that every file of ours has. Out of memory is what SQLite says
        // when a damaged length makes it ask for gigabytes: ours are small.
        (Code::DatabaseCorrupt | Code::NotADatabase | Code::OutOfMemory, _) | (_, SQLITE_ERROR) => FailureKind::Damaged,
        _ => FailureKind::Io,
    }
}
