//! Errors of the store: a kind from a closed list, and a message of SQLite, of the system, or of the store.

use std::fmt;

use crate::common::words::words;

words! {
    /// Kinds of failures: the label `reason` of metrics.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum FailureKind {
        /// `spool.max_bytes` is reached.
        SpoolFull = "spool_full",
        /// One topic of an output that is up has used its share of the spool, `spool.lane_share`.
        LaneFull = "lane_full",
        /// `dead_letters.max_bytes` is reached.
        DeadLettersFull = "dead_letters_full",
        /// Bodies that are not callbacks have used their share of the dead letters, `dead_letters.not_a_callback_share`.
        NotACallbackFull = "not_a_callback_full",
        /// The disk is full, except for the room that draining the spool needs.
        DiskFull = "disk_full",
        /// The disk, the folder or the file cannot be written.
        ReadOnly = "read_only",
        /// An fsync failed. The content of the file can still be read, but may be missing on the disk. Nothing more is
        /// acknowledged from this file until its content was copied into a new one.
        SyncFailed = "sync_failed",
        /// Another error of the disk, or the disk does not answer.
        Io = "io",
        /// SQLite reports that the structure of the database is damaged.
        Damaged = "damaged",
        /// The file belongs to another program or to a newer version.
        Foreign = "foreign",
    }
}

/// An error of the store. Nothing was stored, unless the documentation of the call says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError {
    /// The kind. The caller decides by it what to do.
    pub kind: FailureKind,
    /// The message of SQLite, of the system, or of the store.
    pub message: String,
}

impl StoreError {
    /// An error of a kind.
    pub fn new(kind: FailureKind, message: impl fmt::Display) -> StoreError {
        StoreError { kind, message: message.to_string() }
    }

    /// An error of the system. `what` says what failed, with the file.
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
            // A missing table, or a value whose type its column does not allow: SQLite never writes such a file.
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
        // The index of the log is a file too. SQLite reports a full disk for it in this way.
        (_, SQLITE_IOERR_SHMSIZE) | (Code::DiskFull, _) => FailureKind::DiskFull,
        (Code::ReadOnly | Code::CannotOpen | Code::PermissionDenied, _) => FailureKind::ReadOnly,
        // SQLITE_ERROR means that a table or an index is missing, which every sound file has. Out of memory means that a
        // damaged length made SQLite ask for gigabytes; sound rows are small.
        (Code::DatabaseCorrupt | Code::NotADatabase | Code::OutOfMemory, _) | (_, SQLITE_ERROR) => FailureKind::Damaged,
        _ => FailureKind::Io,
    }
}
