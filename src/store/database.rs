//! The file: one SQLite database with the spool and the dead letters, and the SQL that touches it.
//!
//! Everything here blocks. One connection writes (the store's writer thread); any number read beside it, those of the
//! commands in other processes too. Times are Unix milliseconds.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use sha2::{Digest, Sha256};

use crate::event::Mode;

/// Name of the file in the spool's folder.
pub const FILE: &str = "spool.db";

/// Marks the file as ours: `apbr`.
const APPLICATION_ID: i32 = 0x6170_6272;

/// The form of the tables. A program refuses a file whose number is higher than its own.
pub const FORMAT: i32 = 1;

/// Rows are callbacks of a few kilobytes, twice: in pages of SQLite's usual 4 KiB a third would be waste.
pub const PAGE_BYTES: u32 = 16 << 10;

/// Memory of a connection for pages, in KiB: SQLite's own default, which it takes for pages of 4 KiB.
const CACHE_KIB: i64 = 2 << 10;

/// How long a connection waits for another's transaction, as when a command deletes dead letters.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// What a row takes beside its texts: columns, index, its share of the pages' waste.
const ROW_BYTES: usize = 256;

const SCHEMA: &str = "
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
CREATE INDEX spool_by_output ON spool (output, seq, bytes);
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

/// A record that its output has yet to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolRecord {
    /// Name of the output.
    pub output: String,
    /// Route that named the destination; empty for the destination of dead letters.
    pub route: String,
    /// Topic or subject.
    pub topic: String,
    /// Key, where the bus has keys.
    pub key: Option<String>,
    /// Layout, where the destination names one.
    pub mode: Option<Mode>,
    /// How often publishing was tried.
    pub attempts: u32,
    /// When it was spooled.
    pub spooled_at: i64,
    /// The event as JSON.
    pub envelope: Bytes,
    /// The callback's body; empty where the dead letter that this is published of has it.
    pub body: Bytes,
}

impl SpoolRecord {
    /// What it counts against `spool.max_bytes`.
    pub fn bytes(&self) -> u64 {
        let texts = self.route.len() + self.topic.len() + self.key.as_ref().map_or(0, String::len);
        (ROW_BYTES + texts + self.envelope.len() + self.body.len()) as u64
    }

    /// Tells a record that was changed on the disk from one that was written so. Every column that matters is in it.
    fn checksum(&self, seq: i64) -> i64 {
        let mut hash = Sha256::new();
        hash.update(seq.to_le_bytes());
        hash.update(self.spooled_at.to_le_bytes());
        hash.update(self.attempts.to_le_bytes());
        let parts: [&[u8]; 7] = [
            self.output.as_bytes(),
            self.route.as_bytes(),
            self.topic.as_bytes(),
            self.key.as_deref().unwrap_or("\0").as_bytes(),
            self.mode.map_or("", Mode::as_str).as_bytes(),
            &self.envelope,
            &self.body,
        ];
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        first_bytes(hash)
    }
}

fn first_bytes(hash: Sha256) -> i64 {
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize()[..8]);
    i64::from_le_bytes(first)
}

/// A record as it was read from the spool.
#[derive(Clone, Debug)]
pub struct Spooled {
    /// Its place in the order.
    pub seq: i64,
    /// The record.
    pub record: SpoolRecord,
    /// Whether it is as it was written.
    pub is_sound: bool,
}

/// What can't be published as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewLetter {
    /// Why, a word of [`crate::bridge::DeadLetterReason`].
    pub reason: String,
    /// The error in the words of the bus, or of the reader of callbacks.
    pub code: String,
    /// How often publishing was tried.
    pub attempts: u32,
    /// The input the callback came by.
    pub input: Option<String>,
    /// The route that named the destination or made it a dead letter.
    pub route: Option<String>,
    /// The output it was meant for.
    pub output: Option<String>,
    /// The topic it was meant for.
    pub topic: Option<String>,
    /// The key it had.
    pub key: Option<String>,
    /// Id, type and subject of the event, when it is one.
    pub event: Option<(String, String, Option<String>)>,
    /// Region and account that the configuration gave its sender.
    pub sender: (Option<String>, Option<String>),
    /// The event as JSON, when it is one.
    pub envelope: Option<Bytes>,
    /// The body, as it came.
    pub body: Bytes,
    /// When.
    pub at: i64,
}

impl NewLetter {
    /// What it counts against `dead_letters.max_bytes`.
    pub fn bytes(&self) -> u64 {
        (ROW_BYTES + self.code.len() + self.envelope.as_ref().map_or(0, Bytes::len) + self.body.len()) as u64
    }

    /// Tells a dead letter that was changed on the disk from one that was written so, in what a replay makes use of.
    fn checksum(&self) -> i64 {
        let mut hash = Sha256::new();
        for part in [self.envelope.as_deref().unwrap_or_default(), &self.body] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        first_bytes(hash)
    }

    /// The same for every retry of the same body that fails at the same place.
    fn fingerprint(&self) -> [u8; 16] {
        let mut hash = Sha256::new();
        match &self.event {
            Some((id, ..)) => hash.update(id),
            None => {
                hash.update([0]);
                hash.update(&self.body);
            }
        }
        for part in [&self.output, &self.topic] {
            hash.update([0]);
            hash.update(part.as_deref().unwrap_or_default());
        }
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&hash.finalize()[..16]);
        fingerprint
    }
}

/// A dead letter as it lies in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Its number.
    pub id: i64,
    /// When it came first.
    pub first_at: i64,
    /// How often it came.
    pub count: u64,
    /// Why the last replay failed.
    pub replay_error: Option<String>,
    /// Whether a replay was asked for and has not ended.
    pub replay_requested: bool,
    /// Whether envelope and body are as they were written; true where they were not read.
    pub is_sound: bool,
    /// What was kept; its time is that of the last coming.
    pub letter: NewLetter,
}

/// What lies in the spool for one output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Name of the output.
    pub output: String,
    /// Records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest was spooled.
    pub oldest: Option<i64>,
}

/// Which dead letters are meant: all conditions hold.
#[derive(Clone, Debug, Default)]
pub struct LetterFilter {
    /// Numbers; empty means any.
    pub ids: Vec<i64>,
    /// Reason.
    pub reason: Option<String>,
    /// Type, in full or without its prefix.
    pub event_type: Option<String>,
    /// Last came at this time or later.
    pub since: Option<i64>,
    /// Last came before this time.
    pub before: Option<i64>,
}

/// Why the database can't be used, in a closed list: the label `reason` of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// `spool.max_bytes` is reached.
    SpoolFull,
    /// `dead_letters.max_bytes` is reached.
    DeadLettersFull,
    /// The disk is full.
    DiskFull,
    /// The disk or the file can't be written.
    ReadOnly,
    /// The disk fails.
    Io,
    /// The file is damaged.
    Damaged,
    /// The file is another program's, or a newer version's.
    Foreign,
}

impl FailureKind {
    /// Every kind.
    pub const ALL: [FailureKind; 7] = [
        FailureKind::SpoolFull,
        FailureKind::DeadLettersFull,
        FailureKind::DiskFull,
        FailureKind::ReadOnly,
        FailureKind::Io,
        FailureKind::Damaged,
        FailureKind::Foreign,
    ];

    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureKind::SpoolFull => "spool_full",
            FailureKind::DeadLettersFull => "dead_letters_full",
            FailureKind::DiskFull => "disk_full",
            FailureKind::ReadOnly => "read_only",
            FailureKind::Io => "io",
            FailureKind::Damaged => "damaged",
            FailureKind::Foreign => "foreign",
        }
    }
}

/// Why the database can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError {
    /// What to do about it.
    pub kind: FailureKind,
    /// SQLite's words.
    pub message: String,
}

impl StoreError {
    /// An error of a kind.
    pub fn new(kind: FailureKind, message: impl fmt::Display) -> StoreError {
        StoreError { kind, message: message.to_string() }
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
        use rusqlite::ErrorCode as Code;
        let kind = match &error {
            rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
                Code::DiskFull => FailureKind::DiskFull,
                Code::ReadOnly | Code::CannotOpen | Code::PermissionDenied => FailureKind::ReadOnly,
                // A table that is gone, or a rule that the file itself breaks, is damage too.
                Code::DatabaseCorrupt | Code::NotADatabase | Code::ConstraintViolation | Code::Unknown => {
                    FailureKind::Damaged
                }
                _ => FailureKind::Io,
            },
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..)
            | rusqlite::Error::SqlInputError { .. } => FailureKind::Damaged,
            _ => FailureKind::Io,
        };
        let message = match &error {
            rusqlite::Error::SqliteFailure(_, Some(message)) => {
                let code = error.sqlite_error().map(|failure| failure.extended_code).unwrap_or_default();
                format!("{message} (sqlite error {code})")
            }
            other => other.to_string(),
        };
        StoreError { kind, message }
    }
}

/// How a database is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// By the bridge that owns the folder: created where it is missing.
    Own,
    /// Beside it, by a command that changes dead letters.
    Beside,
    /// Only to read.
    Read,
}

/// A connection to the database.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    path: PathBuf,
}

impl Database {
    /// Opens the database of a folder.
    ///
    /// # Errors
    /// When it can't be had, is damaged in what is read first, or is [`FailureKind::Foreign`].
    pub fn open(folder: &Path, access: Access) -> Result<Database, StoreError> {
        Database::open_file(&folder.join(FILE), access)
    }

    /// Opens a database by its file.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub fn open_file(path: &Path, access: Access) -> Result<Database, StoreError> {
        let create = if access == Access::Own { OpenFlags::SQLITE_OPEN_CREATE } else { OpenFlags::empty() };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | create;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        let mut database = Database { connection, path: path.to_owned() };
        database.prepare(access)?;
        Ok(database)
    }

    fn prepare(&mut self, access: Access) -> Result<(), StoreError> {
        let number = |connection: &Connection, name: &str| {
            connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0)).map_err(StoreError::from)
        };
        let (application, format) =
            (number(&self.connection, "application_id")?, number(&self.connection, "user_version")?);
        let tables: i64 = self.connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables == 0 && application == 0 && access == Access::Own {
            // Both hold for a file that has no page yet.
            self.connection.pragma_update(None, "page_size", PAGE_BYTES)?;
            self.connection.pragma_update(None, "journal_mode", "WAL")?;
            self.connection.pragma_update(None, "synchronous", "FULL")?;
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", FORMAT)?;
            transaction.commit()?;
            sync_folder(&self.path)?;
            return Ok(());
        }
        if application != APPLICATION_ID {
            let message = format!("{} is no spool of apsara-bridge", self.path.display());
            // A file of ours whose first page was damaged has no mark, and no other one either.
            let kind = if application == 0 { FailureKind::Damaged } else { FailureKind::Foreign };
            return Err(StoreError::new(kind, message));
        }
        if format > FORMAT {
            let message = format!(
                "{} was written by a newer apsara-bridge: its format is {format}, this program knows up to {FORMAT}",
                self.path.display()
            );
            return Err(StoreError::new(FailureKind::Foreign, message));
        }
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        if access == Access::Own {
            self.connection.pragma_update(None, "journal_mode", "WAL")?;
        }
        if access == Access::Read {
            self.connection.pragma_update(None, "query_only", true)?;
        }
        Ok(())
    }

    /// Begins a transaction that writes.
    ///
    /// # Errors
    /// SQLite's.
    pub fn begin(&mut self) -> Result<Writing<'_>, StoreError> {
        Ok(Writing { transaction: self.connection.transaction_with_behavior(TransactionBehavior::Immediate)? })
    }

    /// Whether a change by another connection, be it of another process, can be seen since this was asked last: the
    /// number is another one then.
    ///
    /// # Errors
    /// SQLite's.
    pub fn data_version(&self) -> Result<i64, StoreError> {
        Ok(self.connection.pragma_query_value(None, "data_version", |row| row.get(0))?)
    }

    /// What lies in the spool, by output.
    ///
    /// # Errors
    /// SQLite's.
    pub fn backlogs(&self) -> Result<Vec<Backlog>, StoreError> {
        let mut statement = self.connection.prepare(
            "SELECT output, records, bytes, (SELECT spooled_at FROM spool WHERE spool.seq = totals.first) \
             FROM (SELECT output, count(*) AS records, sum(bytes) AS bytes, min(seq) AS first \
                   FROM spool INDEXED BY spool_by_output GROUP BY output) AS totals ORDER BY output",
        )?;
        let rows = statement.query_map([], |row| {
            Ok(Backlog {
                output: row.get(0)?,
                records: unsigned(row, 1)?,
                bytes: unsigned(row, 2)?,
                oldest: row.get(3)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// When the oldest record was spooled.
    ///
    /// # Errors
    /// SQLite's.
    pub fn oldest(&self) -> Result<Option<i64>, StoreError> {
        let sql = "SELECT spooled_at FROM spool ORDER BY seq LIMIT 1";
        Ok(self.connection.query_row(sql, [], |row| row.get(0)).optional()?)
    }

    /// The highest place taken in the spool.
    ///
    /// # Errors
    /// SQLite's.
    pub fn last_seq(&self) -> Result<i64, StoreError> {
        Ok(self.connection.query_row("SELECT coalesce(max(seq), 0) FROM spool", [], |row| row.get(0))?)
    }

    /// The next records of an output behind a place, in order: at most so many, and no more than one beyond so many
    /// bytes.
    ///
    /// # Errors
    /// SQLite's.
    pub fn read(&self, output: &str, after: i64, records: usize, bytes: u64) -> Result<Vec<Spooled>, StoreError> {
        let mut statement = self
            .connection
            .prepare(&format!("{SELECT_SPOOLED} WHERE output = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3"))?;
        let mut rows = statement.query(params![output, after, i64::try_from(records).unwrap_or(i64::MAX)])?;
        let mut read = Vec::new();
        let mut size = 0;
        while let Some(row) = rows.next()? {
            let spooled = spooled(row)?;
            size += spooled.record.bytes();
            read.push(spooled);
            if size >= bytes {
                break;
            }
        }
        Ok(read)
    }

    /// How many dead letters there are, and their bytes.
    ///
    /// # Errors
    /// SQLite's.
    pub fn letter_totals(&self) -> Result<(u64, u64), StoreError> {
        let sql = "SELECT count(*), coalesce(sum(bytes), 0) FROM dead_letters INDEXED BY dead_letters_by_bytes";
        Ok(self.connection.query_row(sql, [], |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)))?)
    }

    /// The dead letters that a filter takes, by their numbers, behind a number, at most so many; without envelope
    /// and body unless `whole`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn letters(
        &self,
        filter: &LetterFilter,
        after: i64,
        limit: usize,
        whole: bool,
    ) -> Result<Vec<Letter>, StoreError> {
        let blobs = if whole { "envelope, body" } else { "NULL, NULL" };
        let (condition, values) = filter.sql();
        let sql = format!(
            "SELECT id, first_at, last_at, count, attempts, replay_requested, replay_error, reason, code, input, route, \
                 output, topic, record_key, event_id, event_type, subject, region, account_id, checksum, {blobs} \
             FROM dead_letters WHERE id > ? AND {condition} ORDER BY id LIMIT ?"
        );
        let mut values = values;
        values.insert(0, Box::new(after));
        values.push(Box::new(i64::try_from(limit).unwrap_or(i64::MAX)));
        let mut statement = self.connection.prepare(&sql)?;
        let rows = statement.query_map(rusqlite::params_from_iter(values.iter().map(|value| &**value)), letter)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The dead letters whose replay was asked for, behind a number.
    ///
    /// # Errors
    /// SQLite's.
    pub fn letters_to_replay(&self, after: i64, limit: usize) -> Result<Vec<Letter>, StoreError> {
        let mut statement = self.connection.prepare(
            "SELECT id, first_at, last_at, count, attempts, replay_requested, replay_error, reason, code, input, route, \
                 output, topic, record_key, event_id, event_type, subject, region, account_id, checksum, envelope, body \
             FROM dead_letters WHERE replay_requested <> 0 AND id > ?1 ORDER BY id LIMIT ?2",
        )?;
        let rows = statement.query_map(params![after, i64::try_from(limit).unwrap_or(i64::MAX)], letter)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Looks for damage: SQLite's own check of the file's structure, then the checksum of every record. Ends at the
    /// first damage, and without a finding when the time is over.
    ///
    /// # Errors
    /// The damage, or why it can't be looked for.
    pub fn verify(&mut self, at_most: Option<Duration>) -> Result<Verified, StoreError> {
        let start = Instant::now();
        let is_late = move || at_most.is_some_and(|at_most| start.elapsed() >= at_most);
        self.connection.progress_handler(10_000, Some(is_late))?;
        let checked = self.connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0));
        self.connection.progress_handler(0, None::<fn() -> bool>)?;
        match checked {
            Ok(word) if word == "ok" => {}
            Ok(words) => return Err(StoreError::new(FailureKind::Damaged, words)),
            Err(rusqlite::Error::SqliteFailure(failure, _))
                if failure.code == rusqlite::ErrorCode::OperationInterrupted =>
            {
                return Ok(Verified { records: 0, damaged: Vec::new(), is_complete: false });
            }
            Err(error) => return Err(error.into()),
        }
        let mut verified = Verified { records: 0, damaged: Vec::new(), is_complete: true };
        let mut statement = self.connection.prepare(&format!("{SELECT_SPOOLED} ORDER BY seq"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let spooled = spooled(row)?;
            verified.records += 1;
            if !spooled.is_sound {
                verified.damaged.push(spooled.seq);
            }
            if is_late() {
                verified.is_complete = false;
                break;
            }
        }
        Ok(verified)
    }

    /// Everything that can still be read of a damaged database, row by row where it must be, handed over in order:
    /// records with their places, then dead letters. Returns how many rows are known to be lost.
    pub fn salvage(
        &self,
        mut keep_record: impl FnMut(i64, SpoolRecord) -> Result<(), StoreError>,
        mut keep_letter: impl FnMut(Letter) -> Result<(), StoreError>,
    ) -> Result<u64, StoreError> {
        let last = |sql: &str| self.connection.query_row(sql, [], |row| row.get::<_, Option<i64>>(0)).ok().flatten();
        let last_seq = last("SELECT seq FROM spool ORDER BY seq DESC LIMIT 1")
            .max(last("SELECT max(seq) FROM spool INDEXED BY spool_by_output"));
        let select = format!("{SELECT_SPOOLED} WHERE seq > ?1 ORDER BY seq LIMIT 1");
        let mut lost = walk(last_seq.unwrap_or(0), |after| {
            match self.connection.query_row(&select, [after], spooled_or_place).optional()? {
                None => Ok(None),
                Some((seq, Some(spooled))) if spooled.is_sound => {
                    keep_record(seq, spooled.record)?;
                    Ok(Some((seq, true)))
                }
                Some((seq, _)) => Ok(Some((seq, false))),
            }
        })?;
        let last_id = last("SELECT id FROM dead_letters ORDER BY id DESC LIMIT 1");
        let any = LetterFilter::default();
        lost += walk(last_id.unwrap_or(0), |after| match self.letters(&any, after, 1, true)?.pop() {
            None => Ok(None),
            Some(letter) => {
                let (id, is_sound) = (letter.id, letter.is_sound);
                if is_sound {
                    keep_letter(letter)?;
                }
                Ok(Some((id, is_sound)))
            }
        })?;
        Ok(lost)
    }
}

/// How far behind the last row that could be read another one is looked for, where the highest number isn't known.
const SEARCH: i64 = 10_000;

/// Visits the rows of a table in the order of their numbers, stepping over what can't be read. `visit` takes the row
/// behind a number and gives its own number and whether it is good. Returns how many are not.
fn walk(last: i64, mut visit: impl FnMut(i64) -> Result<Option<(i64, bool)>, StoreError>) -> Result<u64, StoreError> {
    let (mut after, mut end, mut lost) = (0, last.max(SEARCH), 0);
    loop {
        match visit(after) {
            Ok(None) => return Ok(lost),
            Ok(Some((number, is_good))) => {
                lost += u64::from(!is_good);
                after = number;
                end = last.max(number.saturating_add(SEARCH));
            }
            Err(error) if error.kind == FailureKind::Damaged => {
                // The page that the next number lies on can't be read; a later one may.
                after += 1;
                lost += u64::from(after <= last);
                if after >= end {
                    return Ok(lost);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// What a check of the whole database found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Records that were read.
    pub records: u64,
    /// Places of those that are not as they were written.
    pub damaged: Vec<i64>,
    /// Whether all of it was looked at.
    pub is_complete: bool,
}

/// Columns of a record.
const SELECT_SPOOLED: &str = "SELECT seq, output, bytes, spooled_at, attempts, checksum, mode, route, topic, record_key, \
    envelope, body FROM spool";

fn spooled(row: &Row<'_>) -> rusqlite::Result<Spooled> {
    let seq: i64 = row.get(0)?;
    let mode: Option<String> = row.get(6)?;
    let known = mode.as_deref().map(Mode::parse);
    let record = SpoolRecord {
        output: row.get(1)?,
        route: row.get(7)?,
        topic: row.get(8)?,
        key: row.get(9)?,
        mode: known.flatten(),
        attempts: row.get(4)?,
        spooled_at: row.get(3)?,
        envelope: row.get::<_, Vec<u8>>(10)?.into(),
        body: row.get::<_, Vec<u8>>(11)?.into(),
    };
    let checksum: i64 = row.get(5)?;
    let is_sound = record.checksum(seq) == checksum;
    Ok(Spooled { seq, record, is_sound })
}

/// A record, or its place alone when its columns can't be read.
fn spooled_or_place(row: &Row<'_>) -> rusqlite::Result<(i64, Option<Spooled>)> {
    Ok((row.get(0)?, spooled(row).ok()))
}

fn letter(row: &Row<'_>) -> rusqlite::Result<Letter> {
    let id: Option<String> = row.get(14)?;
    let event_type: Option<String> = row.get(15)?;
    let subject = row.get(16)?;
    let body: Option<Vec<u8>> = row.get(21)?;
    let is_whole = body.is_some();
    let letter = NewLetter {
        at: row.get(2)?,
        attempts: row.get(4)?,
        reason: row.get(7)?,
        code: row.get(8)?,
        input: row.get(9)?,
        route: row.get(10)?,
        output: row.get(11)?,
        topic: row.get(12)?,
        key: row.get(13)?,
        event: id.map(|id| (id, event_type.unwrap_or_default(), subject)),
        sender: (row.get(17)?, row.get(18)?),
        envelope: row.get::<_, Option<Vec<u8>>>(20)?.map(Bytes::from),
        body: body.unwrap_or_default().into(),
    };
    Ok(Letter {
        id: row.get(0)?,
        first_at: row.get(1)?,
        count: unsigned(row, 3)?,
        replay_requested: row.get(5)?,
        replay_error: row.get(6)?,
        is_sound: !is_whole || letter.checksum() == row.get::<_, i64>(19)?,
        letter,
    })
}

/// A count, which SQLite keeps as a signed number.
fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(|number| u64::try_from(number).unwrap_or(0))
}

impl LetterFilter {
    /// The condition with its values.
    fn sql(&self) -> (String, Vec<Box<dyn rusqlite::ToSql>>) {
        let mut conditions = vec!["1".to_owned()];
        let mut values: Vec<Box<dyn rusqlite::ToSql>> = Vec::new();
        if !self.ids.is_empty() {
            let ids: Vec<String> = self.ids.iter().map(i64::to_string).collect();
            conditions.push(format!("id IN ({})", ids.join(",")));
        }
        if let Some(reason) = &self.reason {
            conditions.push("reason = ?".to_owned());
            values.push(Box::new(reason.clone()));
        }
        if let Some(event_type) = &self.event_type {
            conditions.push("(event_type = ? OR substr(event_type, -length(?) - 1) = '.' || ?)".to_owned());
            values.extend((0..3).map(|_| Box::new(event_type.clone()) as Box<dyn rusqlite::ToSql>));
        }
        if let Some(since) = self.since {
            conditions.push("last_at >= ?".to_owned());
            values.push(Box::new(since));
        }
        if let Some(before) = self.before {
            conditions.push("last_at < ?".to_owned());
            values.push(Box::new(before));
        }
        (conditions.join(" AND "), values)
    }
}

/// What became of a dead letter that was to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterKept {
    /// It is a new one, under this number.
    New(i64),
    /// It is counted with the one that was there.
    Again,
    /// There is no room for it.
    NoRoom,
}

/// A transaction; dropped without [`Writing::commit`], it was none.
#[derive(Debug)]
pub struct Writing<'c> {
    transaction: Transaction<'c>,
}

impl Writing<'_> {
    /// Makes what was written durable: it is on the disk when this returns.
    ///
    /// # Errors
    /// SQLite's; nothing was written then.
    pub fn commit(self) -> Result<(), StoreError> {
        Ok(self.transaction.commit()?)
    }

    /// Appends a record at a place behind all others.
    pub fn append(&self, seq: i64, record: &SpoolRecord) -> Result<(), StoreError> {
        let mut insert = self.transaction.prepare_cached(
            "INSERT INTO spool (seq, output, bytes, spooled_at, attempts, checksum, mode, route, topic, record_key, \
                 envelope, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?;
        insert.execute(params![
            seq,
            record.output,
            i64::try_from(record.bytes()).unwrap_or(i64::MAX),
            record.spooled_at,
            record.attempts,
            record.checksum(seq),
            record.mode.map(Mode::as_str),
            record.route,
            record.topic,
            record.key,
            &record.envelope[..],
            &record.body[..],
        ])?;
        Ok(())
    }

    /// Takes a record out. Returns its output and bytes, if it was there.
    pub fn remove(&self, seq: i64) -> Result<Option<(String, u64)>, StoreError> {
        let sql = "DELETE FROM spool WHERE seq = ?1 RETURNING output, bytes";
        let mut delete = self.transaction.prepare_cached(sql)?;
        Ok(delete.query_row([seq], |row| Ok((row.get(0)?, unsigned(row, 1)?))).optional()?)
    }

    /// Keeps a dead letter, if it fits into the room that is left; one that was there is counted once more, and
    /// needs none.
    pub fn keep(&self, letter: &NewLetter, room: u64) -> Result<LetterKept, StoreError> {
        let fingerprint = letter.fingerprint();
        let again = self.transaction.execute(
            "UPDATE dead_letters SET count = count + 1, last_at = max(last_at, ?2), attempts = attempts + ?3, \
                 reason = ?4, code = ?5, route = ?6 WHERE fingerprint = ?1",
            params![fingerprint, letter.at, letter.attempts, letter.reason, letter.code, letter.route],
        )?;
        if again > 0 {
            return Ok(LetterKept::Again);
        }
        if letter.bytes() > room {
            return Ok(LetterKept::NoRoom);
        }
        self.insert_letter(
            None,
            &Letter {
                id: 0,
                first_at: letter.at,
                count: 1,
                replay_error: None,
                replay_requested: false,
                is_sound: true,
                letter: letter.clone(),
            },
        )?;
        Ok(LetterKept::New(self.transaction.last_insert_rowid()))
    }

    /// Puts a dead letter in as it is, under a number of its own if it has one.
    pub fn insert_letter(&self, id: Option<i64>, kept: &Letter) -> Result<(), StoreError> {
        let letter = &kept.letter;
        let (event_id, event_type, subject) = match &letter.event {
            Some((id, event_type, subject)) => (Some(id), Some(event_type), subject.as_ref()),
            None => (None, None, None),
        };
        self.transaction.execute(
            "INSERT INTO dead_letters (id, fingerprint, bytes, checksum, first_at, last_at, count, attempts, \
                 replay_requested, replay_error, reason, code, input, route, output, topic, record_key, event_id, \
                 event_type, subject, region, account_id, envelope, body) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, \
                 ?22, ?23, ?24)",
            params![
                id,
                letter.fingerprint(),
                i64::try_from(letter.bytes()).unwrap_or(i64::MAX),
                letter.checksum(),
                kept.first_at,
                letter.at,
                i64::try_from(kept.count).unwrap_or(i64::MAX),
                letter.attempts,
                kept.replay_requested,
                kept.replay_error,
                letter.reason,
                letter.code,
                letter.input,
                letter.route,
                letter.output,
                letter.topic,
                letter.key,
                event_id,
                event_type,
                subject,
                letter.sender.0,
                letter.sender.1,
                letter.envelope.as_deref(),
                &letter.body[..],
            ],
        )?;
        Ok(())
    }

    /// Takes a dead letter out. Returns its bytes, if it was there.
    ///
    /// # Errors
    /// SQLite's.
    pub fn remove_letter(&self, id: i64) -> Result<Option<u64>, StoreError> {
        let sql = "DELETE FROM dead_letters WHERE id = ?1 RETURNING bytes";
        Ok(self.transaction.query_row(sql, [id], |row| unsigned(row, 0)).optional()?)
    }

    /// Asks for the replay of dead letters, which the running bridge does, or the next one to start.
    ///
    /// # Errors
    /// SQLite's.
    pub fn request_replay(&self, ids: &[i64]) -> Result<(), StoreError> {
        let sql = "UPDATE dead_letters SET replay_requested = 1, replay_error = NULL WHERE id = ?1";
        let mut statement = self.transaction.prepare(sql)?;
        for id in ids {
            statement.execute([id])?;
        }
        Ok(())
    }

    /// Notes that a replay ended without success.
    pub fn replay_failed(&self, id: i64, error: &str) -> Result<(), StoreError> {
        let sql = "UPDATE dead_letters SET replay_requested = 0, replay_error = ?2 WHERE id = ?1";
        self.transaction.execute(sql, params![id, error])?;
        Ok(())
    }

    /// Writes to the disk without changing anything: finds out whether it can be written.
    pub fn touch(&self) -> Result<(), StoreError> {
        let format: i32 = self.transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        Ok(self.transaction.pragma_update(None, "user_version", format)?)
    }
}

/// Makes the entry of a new file durable: the file's own fsync doesn't.
fn sync_folder(file: &Path) -> Result<(), StoreError> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| StoreError::new(FailureKind::Io, format!("{} can't be synced: {error}", folder.display())))
}
