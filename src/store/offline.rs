//! The store of a bridge that is not running, for commands that change many records. Everything here blocks.

use std::path::Path;
use std::time::Instant;

use rustc_hash::FxHashSet;
use sha2::{Digest, Sha256};

use super::database::Database;
use super::error::{FailureKind, StoreError};
use super::lock::FolderLock;
use super::record::{DeadLetter, DeadLetterRow, SpoolRecord, Spooled};
use super::{OpenError, StoreSettings, folder, salvage};
use crate::event::Event;

/// Most records of one transaction. Bounds the length of the log.
const CHUNK: usize = 1000;

/// Most bytes of them, for the same reason.
const CHUNK_BYTES: u64 = 8 << 20;

/// The database of a folder whose lock is held.
#[derive(Debug)]
pub struct Offline {
    settings: StoreSettings,
    database: Database,
    _lock: FolderLock,
}

/// What was imported from another database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Records that are new here.
    pub records: u64,
    /// Dead letters that are new here.
    pub dead_letters: u64,
    /// Records and dead letters that were already here.
    pub repeats: u64,
    /// Records that were changed on the disk, and are dead letters now.
    pub damaged: u64,
    /// Rows that are known to exist and could not be read.
    pub lost: u64,
    /// Whether more rows may be lost.
    pub may_be_more: bool,
    /// Rows for which there was no room.
    pub left: u64,
}

impl Offline {
    /// Opens the store of a folder, as [`super::Store::open`] does.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(settings: StoreSettings, lock_until: Option<Instant>) -> Result<Offline, OpenError> {
        let (lock, database, _) = folder::open(&settings.path, lock_until)?;
        Ok(Offline { settings, database, _lock: lock })
    }

    /// Topics of the records of an output, each once, and how many records there are.
    ///
    /// # Errors
    /// SQLite's.
    pub fn topics(&self, output: &str) -> Result<(FxHashSet<String>, u64), StoreError> {
        let (mut topics, mut records) = (FxHashSet::default(), 0);
        for backlog in self.database.backlogs()?.into_iter().filter(|backlog| backlog.output == output) {
            records += backlog.records;
            topics.insert(backlog.topic);
        }
        Ok((topics, records))
    }

    /// Moves the records of an output to another one, to another topic if one is named. Their order does not change. After
    /// an interruption some records were moved; repeating the call moves the rest. Records that were changed on the disk
    /// stay. Returns the number of moved records.
    ///
    /// # Errors
    /// SQLite's.
    pub fn move_records(&mut self, from: &str, to: &str, topic: Option<&str>) -> Result<u64, StoreError> {
        let (mut after, mut moved) = (0, 0);
        loop {
            let read = self.database.read(from, None, after, CHUNK, CHUNK_BYTES)?;
            let Some(last) = read.last() else { break };
            after = last.seq;
            let writing = self.database.begin()?;
            for spooled in read.into_iter().filter(|spooled| spooled.is_sound) {
                let mut record = spooled.record;
                to.clone_into(&mut record.output);
                if let Some(topic) = topic {
                    topic.clone_into(&mut record.topic);
                }
                writing.redirect(spooled.seq, &record)?;
                moved += 1;
            }
            writing.commit()?;
            self.database.checkpoint()?;
        }
        Ok(moved)
    }

    /// Adds the records and dead letters of another database file, which is only read. Those that are already here are
    /// counted and not added; a record is already here if its id, output and topic are. After an interruption, or when
    /// there was no room, repeating the call adds the rest.
    ///
    /// # Errors
    /// When the file is not a spool, or SQLite's.
    pub fn import(&mut self, file: &Path) -> Result<Imported, StoreError> {
        // The links that lead to the file are the operator's.
        let real = file
            .canonicalize()
            .map_err(|error| StoreError::io(format!("{} cannot be opened", file.display()), &error))?;
        let source = Database::open_damaged(&real).map_err(|error| match error.kind {
            FailureKind::Damaged | FailureKind::Foreign => StoreError::new(
                FailureKind::Foreign,
                format!("{} cannot be read as a spool of apsara-bridge: {error}", file.display()),
            ),
            _ => StoreError::new(error.kind, format!("{} cannot be opened: {error}", file.display())),
        })?;
        let mut known = FxHashSet::default();
        self.database.each_record(|spooled| {
            known.insert(identity(&spooled.record));
            true
        })?;
        let bytes: u64 = self.database.backlogs()?.iter().map(|backlog| backlog.bytes).sum();
        let (_, letter_bytes) = self.database.dead_letter_totals()?;
        let mut import = Import {
            known,
            room: self.settings.bounds.spool_max_bytes.saturating_sub(bytes),
            letter_room: self.settings.bounds.dead_letters_max_bytes.saturating_sub(letter_bytes),
            last_seq: self.database.last_seq()?,
            database: &mut self.database,
            records: Vec::new(),
            letters: Vec::new(),
            imported: Imported::default(),
        };
        let loss = salvage::read(&source, &mut import)?;
        import.write()?;
        Ok(Imported { lost: loss.rows, may_be_more: loss.is_open, ..import.imported })
    }
}

/// Writes rows into the database of the folder.
struct Import<'a> {
    database: &'a mut Database,
    known: FxHashSet<[u8; 16]>,
    room: u64,
    letter_room: u64,
    last_seq: i64,
    /// Not written yet.
    records: Vec<SpoolRecord>,
    /// Not written yet.
    letters: Vec<DeadLetterRow>,
    imported: Imported,
}

impl Import<'_> {
    fn write_if_due(&mut self) -> Result<(), StoreError> {
        if self.records.len() + self.letters.len() < CHUNK { Ok(()) } else { self.write() }
    }

    fn write(&mut self) -> Result<(), StoreError> {
        let writing = self.database.begin()?;
        for record in &self.records {
            self.last_seq += 1;
            writing.append(self.last_seq, record)?;
        }
        let mut new = 0;
        for row in &self.letters {
            new += u64::from(writing.insert_dead_letter(None, row)?);
        }
        writing.commit()?;
        self.database.checkpoint()?;
        self.imported.records += self.records.len() as u64;
        self.imported.dead_letters += new;
        self.imported.repeats += self.letters.len() as u64 - new;
        self.records.clear();
        self.letters.clear();
        Ok(())
    }

    fn letter(&mut self, row: DeadLetterRow) -> Result<(), StoreError> {
        if self.database.has_dead_letter(&row.letter)? {
            self.imported.repeats += 1;
            return Ok(());
        }
        let Some(rest) = self.letter_room.checked_sub(row.letter.bytes()) else {
            self.imported.left += 1;
            return Ok(());
        };
        self.letter_room = rest;
        self.letters.push(row);
        self.write_if_due()
    }
}

impl salvage::Sink for Import<'_> {
    fn record(&mut self, spooled: Spooled) -> Result<(), StoreError> {
        if !spooled.is_sound {
            self.imported.damaged += 1;
            let letter = DeadLetter::of_damaged(spooled.record);
            return self.letter(DeadLetterRow::new(letter));
        }
        if !self.known.insert(identity(&spooled.record)) {
            self.imported.repeats += 1;
            return Ok(());
        }
        let Some(rest) = self.room.checked_sub(spooled.record.bytes()) else {
            self.imported.left += 1;
            return Ok(());
        };
        self.room = rest;
        self.records.push(spooled.record);
        self.write_if_due()
    }

    fn dead_letter(&mut self, row: DeadLetterRow) -> Result<(), StoreError> {
        self.imported.damaged += u64::from(!row.is_sound);
        self.letter(row.marked_if_damaged())
    }
}

/// Equal for two records that are the same.
fn identity(record: &SpoolRecord) -> [u8; 16] {
    let mut hash = Sha256::new();
    let event = Event::from_json(&record.envelope).ok();
    let id = event.as_ref().map_or(&record.envelope[..], |event| event.id().as_bytes());
    for part in [id, record.output.as_bytes(), record.topic.as_bytes()] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut identity = [0; 16];
    identity.copy_from_slice(&hash.finalize()[..16]);
    identity
}
