//! Any record, written to the spool and read back, and then read again after one of its columns was changed.
//!
//! What must hold: nothing panics. A record is read back equal and sound. After a change the record is not sound, or it
//! is still the record that was written.

#![no_main]

use apsara_bridge::event::{Event, Mode};
use apsara_bridge::store::database::Database;
use apsara_bridge::store::{FailureKind, SpoolRecord};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, params};

#[derive(Debug, Arbitrary)]
struct Case {
    seq: i64,
    output: String,
    route: String,
    topic: String,
    key: Option<String>,
    is_binary: Option<bool>,
    attempts: u32,
    spooled_at: i64,
    envelope: Vec<u8>,
    body: Vec<u8>,
    column: Column,
    change: Change,
}

#[derive(Clone, Copy, Debug, Arbitrary)]
enum Column {
    SpooledAt,
    Attempts,
    Checksum,
    Output,
    Mode,
    Route,
    Topic,
    RecordKey,
    Envelope,
    Body,
}

impl Column {
    fn name(self) -> &'static str {
        match self {
            Column::SpooledAt => "spooled_at",
            Column::Attempts => "attempts",
            Column::Checksum => "checksum",
            Column::Output => "output",
            Column::Mode => "mode",
            Column::Route => "route",
            Column::Topic => "topic",
            Column::RecordKey => "record_key",
            Column::Envelope => "envelope",
            Column::Body => "body",
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Change {
    Bit(u16),
    Cut(u16),
    Append(Vec<u8>),
    Replace(Vec<u8>),
    Null,
}

impl Change {
    /// The bytes of a column after the change.
    fn apply(&self, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        match self {
            Change::Bit(bit) => {
                let length = bytes.len();
                let byte = bytes.get_mut(usize::from(bit / 8) % length.max(1))?;
                *byte ^= 1 << (bit % 8);
            }
            Change::Cut(at) => bytes.truncate(usize::from(*at) % bytes.len().max(1)),
            Change::Append(more) => bytes.extend_from_slice(more),
            Change::Replace(other) => bytes.clone_from(other),
            Change::Null => return None,
        }
        Some(bytes)
    }
}

struct Spool {
    database: Database,
    other: Connection,
}

impl Spool {
    fn new() -> Spool {
        let file = std::env::temp_dir().join(format!("apsara-bridge-fuzz-{}.db", std::process::id()));
        let database = Database::create(&file).expect("the temporary folder is writable");
        let other = Connection::open(&file).expect("it was just created");
        other.execute_batch("PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF").expect("pragmas");
        Spool { database, other }
    }

    fn change(&self, seq: i64, column: Column, change: &Change) {
        let name = column.name();
        let (old, is_text) = self
            .other
            .prepare_cached(&format!("SELECT {name} FROM spool WHERE seq = ?1"))
            .expect("a column")
            .query_row([seq], |row| {
                Ok(match row.get_ref(0)? {
                    ValueRef::Integer(number) => (number.to_le_bytes().to_vec(), None),
                    ValueRef::Blob(bytes) => (bytes.to_vec(), Some(false)),
                    ValueRef::Text(bytes) => (bytes.to_vec(), Some(true)),
                    ValueRef::Null | ValueRef::Real(_) => (Vec::new(), Some(true)),
                })
            })
            .expect("the record is there");
        let number = |mut bytes: Vec<u8>| {
            bytes.resize(8, 0);
            i64::from_le_bytes(bytes.try_into().expect("eight bytes"))
        };
        let new = match (change.apply(old), is_text) {
            (None, _) => Value::Null,
            (Some(bytes), None) => Value::Integer(number(bytes)),
            (Some(bytes), Some(_)) => Value::Blob(bytes),
        };
        // Text that is not UTF-8 can be stored only this way.
        let value = if is_text == Some(true) { "CAST(?2 AS TEXT)" } else { "?2" };
        let update = format!("UPDATE spool SET {name} = {value} WHERE seq = ?1");
        // Most columns refuse NULL.
        let _ = self.other.prepare_cached(&update).expect("an update").execute(params![seq, new]);
    }
}

thread_local! {
    static SPOOL: std::cell::RefCell<Spool> = std::cell::RefCell::new(Spool::new());
}

fuzz_target!(|case: Case| {
    let record = SpoolRecord {
        output: case.output,
        route: case.route,
        topic: case.topic,
        key: case.key,
        mode: case.is_binary.map(|is_binary| if is_binary { Mode::Binary } else { Mode::Structured }),
        attempts: case.attempts,
        spooled_at: case.spooled_at,
        envelope: case.envelope.into(),
        body: case.body.into(),
    };
    SPOOL.with_borrow_mut(|spool| {
        let writing = spool.database.begin().expect("nobody else writes");
        writing.append(case.seq, &record).expect("the position is free");
        writing.commit().expect("committed");

        let read = spool.database.record(case.seq).expect("readable").expect("it is there");
        assert!(read.is_sound && read.seq == case.seq);
        assert_eq!(read.record, record);
        let listed = spool.database.read(&record.output, Some(&record.topic), i64::MIN, 10, 1 << 20).expect("readable");
        assert!(case.seq == i64::MIN || listed.iter().any(|other| other.is_sound && other.record == record));

        spool.change(case.seq, case.column, &case.change);
        let read = spool.database.record(case.seq).expect("readable").expect("it is there");
        assert!(!read.is_sound || read.record == record, "the change is not seen: {:?}", read.record);
        let _ = Event::from_json(&read.record.envelope);
        spool.database.each_record(|_| true).expect("readable");
        if let Err(error) = spool.database.backlogs() {
            assert_eq!(error.kind, FailureKind::Damaged, "the store repairs only this kind: {error}");
        }
        spool.other.execute("DELETE FROM spool", []).expect("removed");
    });
});
