//! The rows of the dead letters.

use rusqlite::{OptionalExtension, Row, params};

use super::{Database, Writing, integer, lossy, raw, unsigned};
use crate::store::error::StoreError;
use crate::store::record::{DeadLetter, DeadLetterFilter, DeadLetterRow};

/// Columns of a dead letter except the two large ones.
const COLUMNS: &str = "id, first_at, last_at, count, attempts, replay_requested, replay_error, reason, code, input, \
    route, output, topic, record_key, event_id, event_type, subject, region, account_id, checksum";

impl Database {
    /// Number of dead letters, and their bytes.
    ///
    /// # Errors
    /// SQLite's.
    pub fn dead_letter_totals(&self) -> Result<(u64, u64), StoreError> {
        let sql = "SELECT count(*), coalesce(sum(bytes), 0) FROM dead_letters INDEXED BY dead_letters_by_bytes";
        Ok(self.connection.query_row(sql, [], |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)))?)
    }

    /// When the newest dead letter was last received.
    ///
    /// # Errors
    /// SQLite's.
    pub fn newest_dead_letter(&self) -> Result<Option<i64>, StoreError> {
        let sql = "SELECT max(last_at) FROM dead_letters INDEXED BY dead_letters_by_age";
        Ok(self.connection.query_row(sql, [], |row| row.get(0))?)
    }

    /// The dead letters after a number that a filter selects, in the order of their numbers, at most `limit`. Envelope and
    /// body are read only if `whole`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: i64,
        limit: usize,
        whole: bool,
    ) -> Result<Vec<DeadLetterRow>, StoreError> {
        let blobs = if whole { "envelope, body" } else { "NULL AS envelope, NULL AS body" };
        let (condition, mut values) = filter.sql();
        let sql =
            format!("SELECT {COLUMNS}, {blobs} FROM dead_letters WHERE id > ? AND {condition} ORDER BY id LIMIT ?");
        values.insert(0, Box::new(after));
        values.push(Box::new(i64::try_from(limit).unwrap_or(i64::MAX)));
        let mut statement = self.connection.prepare(&sql)?;
        let values = rusqlite::params_from_iter(values.iter().map(|value| &**value));
        let rows = statement.query_map(values, |row| dead_letter(row, whole))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The dead letters after a number whose replay was requested, in the order of their numbers, at most `limit`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn dead_letters_to_replay(&self, after: i64, limit: usize) -> Result<Vec<DeadLetterRow>, StoreError> {
        let mut statement = self.connection.prepare(&format!(
            "SELECT {COLUMNS}, envelope, body FROM dead_letters WHERE replay_requested <> 0 AND id > ?1 ORDER BY id \
             LIMIT ?2"
        ))?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![after, limit], |row| dead_letter(row, true))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// One dead letter. Uses the table alone, because an index may be damaged.
    ///
    /// # Errors
    /// SQLite's.
    pub fn dead_letter(&self, id: i64) -> Result<Option<DeadLetterRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS}, envelope, body FROM dead_letters NOT INDEXED WHERE id = ?1");
        let mut statement = self.connection.prepare_cached(&sql)?;
        Ok(statement.query_row([id], |row| dead_letter(row, true)).optional()?)
    }

    /// Visits the numbers of dead letters after one, in order, until `visit` returns false. Uses the table alone.
    ///
    /// # Errors
    /// SQLite's.
    pub fn dead_letter_ids(&self, after: i64, visit: impl FnMut(i64) -> bool) -> Result<(), StoreError> {
        self.numbers("SELECT id FROM dead_letters NOT INDEXED WHERE id > ?1 ORDER BY id", after, visit)
    }
}

impl Database {
    /// Whether a dead letter of the same content for the same destination is stored.
    ///
    /// # Errors
    /// SQLite's.
    pub fn has_dead_letter(&self, letter: &DeadLetter) -> Result<bool, StoreError> {
        let mut select = self.connection.prepare_cached("SELECT 1 FROM dead_letters WHERE fingerprint = ?1")?;
        Ok(select.exists([letter.fingerprint()])?)
    }
}

/// A dead letter. Damaged values are replaced, and the checksum shows it.
fn dead_letter(row: &Row<'_>, is_whole: bool) -> rusqlite::Result<DeadLetterRow> {
    let event_id = lossy(row, "event_id")?;
    let event_type = lossy(row, "event_type")?.unwrap_or_default();
    let subject = lossy(row, "subject")?;
    let letter = DeadLetter {
        at: integer(row, "last_at")?,
        attempts: u32::try_from(integer(row, "attempts")?).unwrap_or(u32::MAX),
        reason: lossy(row, "reason")?.unwrap_or_default(),
        code: lossy(row, "code")?.unwrap_or_default(),
        input: lossy(row, "input")?,
        route: lossy(row, "route")?,
        output: lossy(row, "output")?,
        topic: lossy(row, "topic")?,
        key: lossy(row, "record_key")?,
        event: event_id.map(|id| (id, event_type, subject)),
        sender: (lossy(row, "region")?, lossy(row, "account_id")?),
        envelope: raw(row, "envelope")?,
        body: raw(row, "body")?.unwrap_or_default(),
    };
    Ok(DeadLetterRow {
        id: row.get("id")?,
        first_at: integer(row, "first_at")?,
        count: unsigned_or_zero(integer(row, "count")?),
        replay_requested: integer(row, "replay_requested")? != 0,
        replay_error: lossy(row, "replay_error")?,
        is_sound: !is_whole || letter.checksum() == integer(row, "checksum")?,
        letter,
    })
}

fn unsigned_or_zero(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

impl DeadLetterFilter {
    /// The SQL condition with its values.
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

/// The result of [`Writing::keep`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is new, with this number.
    New(i64),
    /// It was there already, and is counted once more.
    Again,
    /// There is no room for it.
    NoRoom,
}

impl Writing<'_> {
    /// Bytes of the dead letters that are not callbacks. Reads one index, which has few entries: their number is limited by
    /// their rate and their share.
    ///
    /// # Errors
    /// SQLite's.
    pub fn not_a_callback_bytes(&self) -> Result<u64, StoreError> {
        let sql = "SELECT coalesce(sum(bytes), 0) FROM dead_letters WHERE reason = 'not_a_callback'";
        let mut statement = self.transaction.prepare_cached(sql)?;
        Ok(statement.query_row([], |row| unsigned(row, 0))?)
    }

    /// Keeps a dead letter if it fits into `room` bytes. A dead letter that is there already is counted once more, which
    /// needs no room. If its stored content is damaged, the new content replaces it.
    ///
    /// # Errors
    /// SQLite's.
    pub fn keep(&self, letter: &DeadLetter, room: u64) -> Result<Kept, StoreError> {
        let fingerprint = letter.fingerprint();
        let mut select = self
            .transaction
            .prepare_cached("SELECT id, checksum, envelope, body FROM dead_letters WHERE fingerprint = ?1")?;
        let known = select
            .query_row([fingerprint], |row| {
                let stored = DeadLetter {
                    envelope: raw(row, 2)?,
                    body: raw(row, 3)?.unwrap_or_default(),
                    ..DeadLetter::default()
                };
                Ok((row.get::<_, i64>(0)?, stored.checksum() == integer(row, 1)?))
            })
            .optional()?;
        let Some((id, is_sound)) = known else {
            if letter.bytes() > room {
                return Ok(Kept::NoRoom);
            }
            let row = DeadLetterRow::new(letter.clone());
            self.insert_dead_letter(None, &row)?;
            return Ok(Kept::New(self.transaction.last_insert_rowid()));
        };
        self.transaction.execute(
            "UPDATE dead_letters SET count = count + 1, last_at = max(last_at, ?2), attempts = attempts + ?3, \
                 reason = ?4, code = ?5, route = ?6 WHERE id = ?1",
            params![id, letter.at, letter.attempts, letter.reason, letter.code, letter.route],
        )?;
        if !is_sound {
            self.transaction.execute(
                "UPDATE dead_letters SET envelope = ?2, body = ?3, checksum = ?4 WHERE id = ?1",
                params![id, letter.envelope.as_deref(), &letter.body[..], letter.checksum()],
            )?;
        }
        Ok(Kept::Again)
    }

    /// Inserts a row as it is, with the given number or the next free one. Returns false if a dead letter of the same content
    /// for the same destination is there; that one stays as it is.
    ///
    /// # Errors
    /// SQLite's.
    pub fn insert_dead_letter(&self, id: Option<i64>, row: &DeadLetterRow) -> Result<bool, StoreError> {
        let letter = &row.letter;
        let (event_id, event_type, subject) = match &letter.event {
            Some((id, event_type, subject)) => (Some(id), Some(event_type), subject.as_ref()),
            None => (None, None, None),
        };
        let inserted = self.transaction.execute(
            "INSERT INTO dead_letters (id, fingerprint, bytes, checksum, first_at, last_at, count, attempts, \
                 replay_requested, replay_error, reason, code, input, route, output, topic, record_key, event_id, \
                 event_type, subject, region, account_id, envelope, body) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, \
                 ?22, ?23, ?24) ON CONFLICT (fingerprint) DO NOTHING",
            params![
                id,
                letter.fingerprint(),
                i64::try_from(letter.bytes()).unwrap_or(i64::MAX),
                letter.checksum(),
                row.first_at,
                letter.at,
                i64::try_from(row.count).unwrap_or(i64::MAX),
                letter.attempts,
                row.replay_requested,
                row.replay_error,
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
        Ok(inserted > 0)
    }

    /// Removes a dead letter. Returns its bytes; none if it was not there.
    ///
    /// # Errors
    /// SQLite's.
    pub fn remove_dead_letter(&self, id: i64) -> Result<Option<u64>, StoreError> {
        let sql = "DELETE FROM dead_letters WHERE id = ?1 RETURNING bytes";
        Ok(self.transaction.query_row(sql, [id], |row| unsigned(row, 0)).optional()?)
    }

    /// Removes dead letters that were last received before a time, at most `limit`, except those whose replay is requested.
    /// Returns their number and their bytes.
    ///
    /// # Errors
    /// SQLite's.
    pub fn expire(&self, before: i64, limit: usize) -> Result<(u64, u64), StoreError> {
        let mut statement = self.transaction.prepare_cached(
            "DELETE FROM dead_letters WHERE id IN (SELECT id FROM dead_letters WHERE last_at < ?1 \
                 AND replay_requested = 0 ORDER BY last_at LIMIT ?2) RETURNING bytes",
        )?;
        let mut rows = statement.query(params![before, i64::try_from(limit).unwrap_or(i64::MAX)])?;
        let (mut letters, mut bytes) = (0, 0);
        while let Some(row) = rows.next()? {
            letters += 1;
            bytes += unsigned(row, 0)?;
        }
        Ok((letters, bytes))
    }

    /// Requests the replay of dead letters. The running bridge does it, or the next one that starts.
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

    /// Stores that a replay failed, and why.
    ///
    /// # Errors
    /// SQLite's.
    pub fn replay_failed(&self, id: i64, error: &str) -> Result<(), StoreError> {
        let sql = "UPDATE dead_letters SET replay_requested = 0, replay_error = ?2 WHERE id = ?1";
        self.transaction.execute(sql, params![id, error])?;
        Ok(())
    }
}
