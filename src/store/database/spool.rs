//! The rows of the spool.

use rusqlite::{OptionalExtension, Row, params};

use super::{Database, Writing, integer, lossy, raw, unsigned};
use crate::event::Mode;
use crate::store::error::StoreError;
use crate::store::record::{Backlog, SpoolRecord, Spooled};

/// Columns of a record, in the order in which [`spooled`] reads them.
const SELECT: &str = "SELECT seq, spooled_at, attempts, checksum, output, mode, route, topic, record_key, envelope, \
    body FROM spool";

impl Database {
    /// What the spool holds, by output and topic.
    ///
    /// # Errors
    /// SQLite's.
    pub fn backlogs(&self) -> Result<Vec<Backlog>, StoreError> {
        let mut statement = self.connection.prepare(
            "SELECT output, topic, records, bytes, (SELECT spooled_at FROM spool WHERE spool.seq = totals.first) \
             FROM (SELECT output, topic, count(*) AS records, sum(bytes) AS bytes, min(seq) AS first \
                   FROM spool INDEXED BY spool_by_output GROUP BY output, topic) AS totals ORDER BY output, topic",
        )?;
        let rows = statement.query_map([], |row| {
            Ok(Backlog {
                output: row.get(0)?,
                topic: row.get(1)?,
                records: unsigned(row, 2)?,
                bytes: unsigned(row, 3)?,
                oldest: row.get(4)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// When the oldest record was spooled.
    ///
    /// # Errors
    /// SQLite's.
    pub fn oldest(&self) -> Result<Option<i64>, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT spooled_at FROM spool ORDER BY seq LIMIT 1")?;
        Ok(statement.query_row([], |row| row.get(0)).optional()?)
    }

    /// The highest position in the spool; 0 if it is empty.
    ///
    /// # Errors
    /// SQLite's.
    pub fn last_seq(&self) -> Result<i64, StoreError> {
        Ok(self.connection.query_row("SELECT coalesce(max(seq), 0) FROM spool", [], |row| row.get(0))?)
    }

    /// The next records of an output, or of one of its topics, after a position, in order. Returns at most `records`, and at
    /// most one record beyond `bytes`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn read(
        &self,
        output: &str,
        topic: Option<&str>,
        after: i64,
        records: usize,
        bytes: u64,
    ) -> Result<Vec<Spooled>, StoreError> {
        let of_topic = if topic.is_some() { "AND topic = ?4" } else { "AND ?4 IS NULL" };
        let sql = format!("{SELECT} WHERE output = ?1 {of_topic} AND seq > ?2 ORDER BY seq LIMIT ?3");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params![output, after, i64::try_from(records).unwrap_or(i64::MAX), topic])?;
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

    /// Visits every record in order, until `visit` returns false.
    ///
    /// # Errors
    /// SQLite's.
    pub fn each_record(&self, mut visit: impl FnMut(Spooled) -> bool) -> Result<(), StoreError> {
        let mut statement = self.connection.prepare(&format!("{SELECT} ORDER BY seq"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if !visit(spooled(row)?) {
                break;
            }
        }
        Ok(())
    }

    /// The record at a position. Uses the table alone, because an index may be damaged.
    ///
    /// # Errors
    /// SQLite's.
    pub fn record(&self, seq: i64) -> Result<Option<Spooled>, StoreError> {
        let sql = SELECT.replace("FROM spool", "FROM spool NOT INDEXED");
        let mut statement = self.connection.prepare_cached(&format!("{sql} WHERE seq = ?1"))?;
        Ok(statement.query_row([seq], spooled).optional()?)
    }

    /// Visits the positions after one, in order, until `visit` returns false. Uses the table alone.
    ///
    /// # Errors
    /// SQLite's.
    pub fn seqs(&self, after: i64, visit: impl FnMut(i64) -> bool) -> Result<(), StoreError> {
        self.numbers("SELECT seq FROM spool NOT INDEXED WHERE seq > ?1 ORDER BY seq", after, visit)
    }

    /// Visits the positions in the order of the index, until `visit` returns false. Uses the index alone.
    ///
    /// # Errors
    /// SQLite's.
    pub fn indexed_seqs(&self, mut visit: impl FnMut(i64) -> bool) -> Result<(), StoreError> {
        let mut statement =
            self.connection.prepare("SELECT seq FROM spool INDEXED BY spool_by_output WHERE output >= ''")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if !visit(integer(row, 0)?) {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn numbers(&self, sql: &str, after: i64, mut visit: impl FnMut(i64) -> bool) -> Result<(), StoreError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query([after])?;
        while let Some(row) = rows.next()? {
            if !visit(row.get(0)?) {
                break;
            }
        }
        Ok(())
    }
}

/// A record. Damaged values are replaced, and the checksum shows it.
fn spooled(row: &Row<'_>) -> rusqlite::Result<Spooled> {
    let seq: i64 = row.get(0)?;
    let mode = lossy(row, 5)?;
    let known = mode.as_deref().map(Mode::from_word);
    let record = SpoolRecord {
        spooled_at: integer(row, 1)?,
        attempts: u32::try_from(integer(row, 2)?).unwrap_or(u32::MAX),
        output: lossy(row, 4)?.unwrap_or_default(),
        route: lossy(row, 6)?.unwrap_or_default(),
        topic: lossy(row, 7)?.unwrap_or_default(),
        key: lossy(row, 8)?,
        mode: known.flatten(),
        envelope: raw(row, 9)?.unwrap_or_default(),
        body: raw(row, 10)?.unwrap_or_default(),
    };
    let is_sound = record.checksum(seq) == integer(row, 3)?;
    Ok(Spooled { seq, record, is_sound })
}

impl Writing<'_> {
    /// Appends a record at a free position.
    ///
    /// # Errors
    /// SQLite's.
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

    /// Whether there is a record at a position.
    ///
    /// # Errors
    /// SQLite's.
    pub fn has(&self, seq: i64) -> Result<bool, StoreError> {
        Ok(self.transaction.prepare_cached("SELECT 1 FROM spool WHERE seq = ?1")?.exists([seq])?)
    }

    /// Removes a record. Returns its output, topic and bytes; none if it was not there.
    ///
    /// # Errors
    /// SQLite's.
    pub fn remove(&self, seq: i64) -> Result<Option<(String, String, u64)>, StoreError> {
        let sql = "DELETE FROM spool WHERE seq = ?1 RETURNING output, topic, bytes";
        let mut delete = self.transaction.prepare_cached(sql)?;
        Ok(delete.query_row([seq], |row| Ok((row.get(0)?, row.get(1)?, unsigned(row, 2)?))).optional()?)
    }

    /// Replaces the destination of a record. Its position stays.
    ///
    /// # Errors
    /// SQLite's.
    pub fn redirect(&self, seq: i64, record: &SpoolRecord) -> Result<(), StoreError> {
        let mut update = self
            .transaction
            .prepare_cached("UPDATE spool SET output = ?2, topic = ?3, bytes = ?4, checksum = ?5 WHERE seq = ?1")?;
        let bytes = i64::try_from(record.bytes()).unwrap_or(i64::MAX);
        update.execute(params![seq, record.output, record.topic, bytes, record.checksum(seq)])?;
        Ok(())
    }
}
