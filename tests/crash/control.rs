//! The control: SQLite alone, in its safest mode, with the same simulator. It must never lose what it acknowledged. If
//! it does, the simulator is harsher than the disks that SQLite supports, and its findings prove nothing.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use rusqlite::{Connection, params};

use crate::check::Found;
use crate::random::Random;

/// How many processes use the database one after the other; the last one closes it.
pub const PHASES: usize = 3;

fn content(number: u64) -> Vec<u8> {
    let mut random = Random::new(number);
    let words = 20 + random.below(if number.is_multiple_of(9) { 10_000 } else { 400 });
    (0..words).flat_map(|_| random.next().to_le_bytes()).collect()
}

fn open(folder: &Path) -> rusqlite::Result<Connection> {
    let database = Connection::open(folder.join(crate::workload::FILE))?;
    database.pragma_update(None, "page_size", 16 << 10)?;
    database.pragma_update(None, "journal_mode", "WAL")?;
    database.pragma_update(None, "synchronous", "FULL")?;
    // About 2 MiB: the log is merged into the database many times.
    database.pragma_update(None, "wal_autocheckpoint", 128)?;
    let schema = "CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, content BLOB);
        CREATE INDEX IF NOT EXISTS by_length ON events (length(content), number);";
    database.execute_batch(schema)?;
    Ok(database)
}

/// The part that runs in the child.
pub fn run(phase: usize, folder: &Path, seed: u64) -> rusqlite::Result<()> {
    let marks = File::options().create(true).append(true).open(folder.join("acknowledged"));
    let mut marks = marks.expect("marks can be written");
    let mut mark = |line: String| marks.write_all(line.as_bytes()).expect("marks can be written");
    let mut random = Random::new(seed + phase as u64);
    let mut next = 1_000_000 * (phase as u64 + 1);
    let mut database = open(folder)?;
    for _ in 0..120 {
        let numbers: Vec<u64> = (next..).take(1 + random.below(5)).collect();
        next += numbers.len() as u64;
        let words = numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        mark(format!("keep {words}\n"));
        let transaction = database.transaction()?;
        for number in &numbers {
            transaction.execute("INSERT INTO events VALUES (?1, ?2)", params![*number as i64, content(*number)])?;
        }
        transaction.commit()?;
        mark(format!("kept {words}\n"));
        let sql = "SELECT max(number) FROM (SELECT number FROM events ORDER BY number LIMIT max(0, (SELECT count(*) \
            FROM events) - 60))";
        let last: Option<i64> = database.query_row(sql, [], |row| row.get(0))?;
        if let Some(last) = last.filter(|_| random.permille(200)) {
            let mut numbers = database.prepare("SELECT number FROM events WHERE number <= ?1")?;
            let numbers: Vec<i64> = numbers.query_map([last], |row| row.get(0))?.collect::<Result<_, _>>()?;
            let words = numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(" ");
            mark(format!("settle {words}\n"));
            database.execute("DELETE FROM events WHERE number <= ?1", [last])?;
            mark(format!("settled {words}\n"));
        }
        if random.permille(20) {
            drop(database);
            database = open(folder)?;
        }
    }
    if phase + 1 < PHASES {
        std::process::exit(0);
    }
    Ok(())
}

/// Opens the database and reads all of it.
pub fn inspect(folder: &Path) -> Result<Found, String> {
    let start = Instant::now();
    let read = || {
        let database = open(folder)?;
        let mut found = Found { opened_in: start.elapsed(), ..Found::default() };
        let checked: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        if checked != "ok" {
            found.wrong.push(checked);
        }
        let mut events = database.prepare("SELECT number, content FROM events")?;
        let mut rows = events.query([])?;
        while let Some(row) = rows.next()? {
            let (number, stored) = (row.get::<_, i64>(0)?.unsigned_abs(), row.get::<_, Vec<u8>>(1)?);
            match stored == content(number) {
                true => found.events.push(number),
                false => found.wrong.push(format!("event {number} differs from what was submitted")),
            }
        }
        Ok(found)
    };
    read().map_err(|error: rusqlite::Error| error.to_string())
}
