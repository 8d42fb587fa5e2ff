//! The format of the database file: its marks, its tables, its pages.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::{Database, inode, noted};
use crate::store::error::{FailureKind, StoreError};
use crate::store::files;

/// Marks a file of this program: `apbr`.
const APPLICATION_ID: i32 = 0x6170_6272;

/// The version of the tables. A program rejects a file with a higher version than its own. A new index needs no new
/// version, because SQLite maintains it for programs that do not know it.
pub const FORMAT: i32 = 1;

/// Bytes of a page. Rows hold callbacks of a few kilobytes twice; in SQLite's usual pages of 4 KiB a third of the room
/// would be unused.
pub const PAGE_BYTES: u32 = 16 << 10;

/// Memory of a connection for pages, in KiB: SQLite's default.
const CACHE_KIB: i64 = 2 << 10;

/// How long a connection waits for the transaction of another, for example of a command that deletes dead letters.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const TABLES: &str = "
CREATE TABLE spool (
    seq INTEGER PRIMARY KEY,
    output TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    spooled_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    mode TEXT,
    route TEXT NOT NULL,
    topic TEXT NOT NULL,
    record_key TEXT,
    envelope BLOB NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX spool_by_output ON spool (output, topic, seq, bytes);
CREATE TABLE dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    fingerprint BLOB NOT NULL UNIQUE,
    bytes INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    first_at INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    count INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    replay_requested INTEGER NOT NULL DEFAULT 0,
    replay_error TEXT,
    reason TEXT NOT NULL,
    code TEXT NOT NULL,
    input TEXT,
    route TEXT,
    output TEXT,
    topic TEXT,
    record_key TEXT,
    event_id TEXT,
    event_type TEXT,
    subject TEXT,
    region TEXT,
    account_id TEXT,
    envelope BLOB,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX dead_letters_by_bytes ON dead_letters (bytes);
CREATE INDEX dead_letters_to_replay ON dead_letters (id) WHERE replay_requested <> 0;
";

/// Indexes that files of earlier versions do not have. They are created when such a file is opened.
const LATER_INDEXES: &str = "
CREATE INDEX IF NOT EXISTS dead_letters_by_age ON dead_letters (last_at);
CREATE INDEX IF NOT EXISTS dead_letters_not_callbacks ON dead_letters (bytes) WHERE reason = 'not_a_callback';
";

/// Adds the topic to an index of earlier versions. The index keeps its name, because earlier versions use it by name.
const INDEX_WITH_TOPIC: &str = "
BEGIN IMMEDIATE;
DROP INDEX spool_by_output;
CREATE INDEX spool_by_output ON spool (output, topic, seq, bytes);
COMMIT;
";

/// What a connection may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything. Only for the process that holds the lock of the folder.
    Owner,
    /// Write next to the owner: for commands that change dead letters.
    Shared,
    /// Only read.
    Read,
}

impl Database {
    /// Opens an existing database by its file, which must not be a symbolic link.
    ///
    /// The log is moved into the database only by [`Database::checkpoint`], never when a connection is closed, because after
    /// a failed fsync the old file must not change until its content was copied.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`] when the first pages are damaged, [`FailureKind::Foreign`] for a file of another program or
    /// of a newer version, and SQLite's.
    pub fn open_file(path: &Path, access: Access) -> Result<Database, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let inode = if access == Access::Shared { inode(path) } else { None };
        let database = Database { connection: connect(path, flags)?, path: path.to_owned(), inode };
        let (application, format) = (database.number("application_id")?, database.number("user_version")?);
        if application != APPLICATION_ID {
            let message = format!("{} is not a spool of apsara-bridge", path.display());
            // A file of this program whose first page was damaged has no mark.
            let kind = if application == 0 { FailureKind::Damaged } else { FailureKind::Foreign };
            return Err(StoreError::new(kind, message));
        }
        if format > FORMAT {
            let message = format!(
                "{} was written by a newer apsara-bridge; its format is {format}, this program knows up to {FORMAT}",
                path.display()
            );
            return Err(StoreError::new(FailureKind::Foreign, message));
        }
        let connection = &database.connection;
        // SQLite silently opens a file that it cannot write.
        if access != Access::Read && connection.is_readonly("main")? {
            let message = format!(
                "{} cannot be written by this user; the folder and its files must belong to the user of the bridge",
                path.display()
            );
            return Err(StoreError::new(FailureKind::ReadOnly, message));
        }
        connection.pragma_update(None, "synchronous", "FULL")?;
        match access {
            Access::Owner => {
                connection.pragma_update(None, "journal_mode", "WAL")?;
                connection.pragma_update(None, "wal_autocheckpoint", 0)?;
                match database.make_later_indexes().map_err(|error| noted(path, error)) {
                    // Without the indexes everything works, only slower.
                    Err(error) if error.kind == FailureKind::DiskFull => {}
                    made => made?,
                }
            }
            Access::Shared => {
                // SQLite would hide the errors of an automatic checkpoint.
                connection.pragma_update(None, "wal_autocheckpoint", 0)?;
            }
            Access::Read => connection.pragma_update(None, "query_only", true)?,
        }
        Ok(database)
    }

    fn make_later_indexes(&self) -> rusqlite::Result<()> {
        self.connection.execute_batch(LATER_INDEXES)?;
        let columns = "SELECT count(*) FROM pragma_index_info('spool_by_output') WHERE name = 'topic'";
        if self.connection.query_row(columns, [], |row| row.get::<_, i64>(0))? > 0 {
            return Ok(());
        }
        let made = self.connection.execute_batch(INDEX_WITH_TOPIC);
        if made.is_err() && !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        made
    }

    /// Opens a database for reading, also one that SQLite would reject as a whole because of one damaged part, for example
    /// because the file is too short.
    ///
    /// # Errors
    /// Those of [`Database::open_file`].
    pub fn open_damaged(path: &Path) -> Result<Database, StoreError> {
        let refused = match Database::open_file(path, Access::Read) {
            Err(error) if error.kind == FailureKind::Damaged => error,
            opened => return opened,
        };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = open(path, flags)?;
        // With it SQLite reports damage only for the damaged part. It must be set before anything is read.
        connection.pragma_update(None, "writable_schema", true)?;
        connection.pragma_update(None, "query_only", true)?;
        let database = Database { connection, path: path.to_owned(), inode: None };
        match database.number("application_id") {
            Ok(APPLICATION_ID) => Ok(database),
            _ => Err(refused),
        }
    }

    /// Creates an empty database in a new file, for [`Database::finish_new`]. It has no journal, because an unfinished file
    /// is deleted.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(path: &Path) -> Result<Database, StoreError> {
        // SQLite would create a file that everyone can read. It gives the log and the index the mode of the database.
        files::options()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|error| StoreError::io(format!("{} cannot be created", path.display()), &error))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = connect(path, flags)?;
        connection.pragma_update(None, "page_size", PAGE_BYTES)?;
        connection.pragma_update(None, "journal_mode", "OFF")?;
        connection.pragma_update(None, "synchronous", "OFF")?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(TABLES)?;
        transaction.execute_batch(LATER_INDEXES)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", FORMAT)?;
        transaction.commit()?;
        Ok(Database { connection, path: path.to_owned(), inode: None })
    }

    /// Finishes a new database and syncs it. Its name is not durable yet.
    ///
    /// # Errors
    /// When the file cannot be written or synced. It must not be used then.
    pub fn finish_new(self) -> Result<(), StoreError> {
        let Database { connection, path, .. } = self;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if mode != "wal" {
            return Err(StoreError::new(
                FailureKind::Io,
                format!("the file system does not support shared memory: {mode}"),
            ));
        }
        connection.close().map_err(|(_, error)| error)?;
        std::fs::File::open(&path).and_then(|file| file.sync_all()).map_err(|error| {
            StoreError::new(FailureKind::SyncFailed, format!("{} cannot be synced: {error}", path.display()))
        })
    }

    /// Whether a file is a database without tables and without a mark. False if it cannot be read.
    pub fn is_blank(path: &Path) -> bool {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let Ok(connection) = connect(path, flags) else { return false };
        let database = Database { connection, path: path.to_owned(), inode: None };
        let tables = "SELECT count(*) FROM sqlite_schema";
        let tables = database.connection.query_row(tables, [], |row| row.get::<_, i64>(0));
        tables.is_ok_and(|tables| tables == 0)
            && ["application_id", "user_version"].into_iter().all(|mark| database.number(mark) == Ok(0))
    }

    fn number(&self, name: &str) -> Result<i32, StoreError> {
        Ok(self.connection.pragma_query_value(None, name, |row| row.get(0))?)
    }
}

fn open(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(files::without_links(path)?, flags | OpenFlags::SQLITE_OPEN_NOFOLLOW)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(connection)
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let connection = open(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    Ok(connection)
}
