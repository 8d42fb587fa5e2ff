//! What the store keeps: records of the spool and dead letters. Times are Unix milliseconds.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use time::OffsetDateTime;

use crate::event::Mode;

/// The present time in Unix milliseconds.
pub(crate) fn now() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// The reason of dead letters whose content was changed on the disk.
pub const DAMAGED: &str = "damaged";

/// The reason of a body that is not a callback. An index of the database names it.
pub const NOT_A_CALLBACK: &str = "not_a_callback";

/// Bytes of a row in addition to its texts: columns, index entries, its share of unused space in pages.
const ROW_BYTES: usize = 256;

/// A record that its output has not acknowledged yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolRecord {
    /// Name of the output. [`AWAITS_DEAD_LETTERS`] for an event that waits for room among the dead letters; `topic` is the
    /// reason then.
    pub output: String,
    /// Route that names the destination; empty for the destination of dead letters.
    pub route: String,
    /// Topic or subject.
    pub topic: String,
    /// Key, where the bus has keys.
    pub key: Option<String>,
    /// Layout; none means the output's own.
    pub mode: Option<Mode>,
    /// Number of attempts to publish it.
    pub attempts: u32,
    /// When it was spooled.
    pub spooled_at: i64,
    /// The event as JSON.
    pub envelope: Bytes,
    /// The body of the callback; empty for the publication of a dead letter, because the dead letter has it.
    pub body: Bytes,
}

/// The `output` of records that wait for room among the dead letters.
pub const AWAITS_DEAD_LETTERS: &str = "";

impl SpoolRecord {
    /// Bytes that it counts against `spool.max_bytes`.
    pub fn bytes(&self) -> u64 {
        let texts = self.route.len() + self.topic.len() + self.key.as_ref().map_or(0, String::len);
        (ROW_BYTES + texts + self.envelope.len() + self.body.len()) as u64
    }

    /// Shows whether a stored record was changed on the disk. Covers every column that is published.
    pub(super) fn checksum(&self, seq: i64) -> i64 {
        let mut hash = Sha256::new();
        hash.update(seq.to_le_bytes());
        hash.update(self.spooled_at.to_le_bytes());
        hash.update(self.attempts.to_le_bytes());
        let parts: [&[u8]; 7] = [
            self.output.as_bytes(),
            self.route.as_bytes(),
            self.topic.as_bytes(),
            self.key.as_deref().unwrap_or(NO_KEY).as_bytes(),
            self.mode.map_or("", Mode::as_str).as_bytes(),
            &self.envelope,
            &self.body,
        ];
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        if self.key.as_deref() == Some(NO_KEY) {
            hash.update([1]);
        }
        first_bytes(hash)
    }
}

/// What the checksum covers in place of a missing key.
const NO_KEY: &str = "\0";

fn first_bytes(hash: Sha256) -> i64 {
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize()[..8]);
    i64::from_le_bytes(first)
}

/// A record as it was read from the spool.
#[derive(Clone, Debug)]
pub struct Spooled {
    /// Its position in the order. It does not change while the record is in the spool.
    pub seq: i64,
    /// The record.
    pub record: SpoolRecord,
    /// Whether its checksum is right.
    pub is_sound: bool,
}

/// An event or a body that cannot be published as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetter {
    /// Why: a word of [`crate::bridge::DeadLetterReason`].
    pub reason: String,
    /// The error message of the bus, or of the reader of callbacks.
    pub code: String,
    /// Number of attempts to publish it.
    pub attempts: u32,
    /// The input that received the callback.
    pub input: Option<String>,
    /// The route that names the destination or makes a dead letter.
    pub route: Option<String>,
    /// The output it was meant for.
    pub output: Option<String>,
    /// The topic it was meant for.
    pub topic: Option<String>,
    /// The key it had.
    pub key: Option<String>,
    /// Id, type and subject of the event, when it is one.
    pub event: Option<(String, String, Option<String>)>,
    /// Region and account of its sender, from the configuration.
    pub sender: (Option<String>, Option<String>),
    /// The event as JSON, when it is one.
    pub envelope: Option<Bytes>,
    /// The body, as it was received.
    pub body: Bytes,
    /// When it was last received.
    pub at: i64,
}

impl DeadLetter {
    /// The dead letter of a record that was changed on the disk.
    pub(crate) fn of_damaged(record: SpoolRecord) -> DeadLetter {
        DeadLetter {
            reason: DAMAGED.to_owned(),
            code: "the record was changed on the disk".to_owned(),
            attempts: record.attempts,
            route: Some(record.route),
            output: Some(record.output),
            topic: Some(record.topic),
            key: record.key,
            envelope: Some(record.envelope),
            body: record.body,
            at: now(),
            ..DeadLetter::default()
        }
    }

    /// Whether it counts against `dead_letters.not_a_callback_share`.
    pub(super) fn is_not_a_callback(&self) -> bool {
        self.reason == NOT_A_CALLBACK
    }

    /// Bytes that it counts against `dead_letters.max_bytes`.
    pub fn bytes(&self) -> u64 {
        (ROW_BYTES + self.code.len() + self.envelope.as_ref().map_or(0, Bytes::len) + self.body.len()) as u64
    }

    /// Shows whether a stored dead letter was changed on the disk. Covers what a replay uses.
    pub(super) fn checksum(&self) -> i64 {
        let mut hash = Sha256::new();
        for part in [self.envelope.as_deref().unwrap_or_default(), &self.body] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        first_bytes(hash)
    }

    /// Equal for every retry of the same body that fails for the same destination.
    pub(super) fn fingerprint(&self) -> [u8; 16] {
        let mut hash = Sha256::new();
        match &self.event {
            Some((id, ..)) => hash.update(id),
            None => {
                hash.update([0]);
                hash.update(&self.body);
                // Of a record that was changed on the disk, only the envelope may be left.
                hash.update(self.envelope.as_deref().unwrap_or_default());
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

/// A dead letter as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterRow {
    /// Its number.
    pub id: i64,
    /// When it was first stored.
    pub first_at: i64,
    /// How often it was received.
    pub count: u64,
    /// Why the last replay failed.
    pub replay_error: Option<String>,
    /// Whether a replay was requested and has not ended.
    pub replay_requested: bool,
    /// Whether the checksum of envelope and body is right; true if they were not read.
    pub is_sound: bool,
    /// What was kept. Its time is that of the last copy received.
    pub letter: DeadLetter,
}

impl DeadLetterRow {
    /// The row of a dead letter that is stored for the first time.
    pub(super) fn new(letter: DeadLetter) -> DeadLetterRow {
        DeadLetterRow {
            id: 0,
            first_at: letter.at,
            count: 1,
            replay_error: None,
            replay_requested: false,
            is_sound: true,
            letter,
        }
    }

    /// The row with the reason [`DAMAGED`], if its content was changed on the disk.
    pub(super) fn marked_if_damaged(self) -> DeadLetterRow {
        if self.is_sound || self.letter.reason == DAMAGED {
            return self;
        }
        let DeadLetter { reason, code, .. } = &self.letter;
        let code = format!("the dead letter was changed on the disk; it was {reason}: {code}");
        DeadLetterRow { letter: DeadLetter { reason: DAMAGED.to_owned(), code, ..self.letter }, ..self }
    }
}

/// A record that leaves the spool, because it was published or became a dead letter.
#[derive(Clone, Debug)]
pub struct Settled {
    /// Its position.
    pub seq: i64,
    /// The dead letter that it became; none if it was published.
    pub letter: Option<Box<SettledLetter>>,
}

/// The dead letter that a record became.
#[derive(Clone, Debug)]
pub struct SettledLetter {
    /// The dead letter.
    pub letter: DeadLetter,
    /// The record that publishes it; none if dead letters are not published.
    pub announcement: Option<SpoolRecord>,
}

/// Positions of records that stay in the spool, because there is no room for their dead letters.
pub type Retained = Vec<i64>;

/// What the spool holds for one topic of one output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Name of the output.
    pub output: String,
    /// The topic.
    pub topic: String,
    /// Number of records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest was spooled.
    pub oldest: Option<i64>,
}

/// Selects dead letters for which all conditions hold.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterFilter {
    /// Numbers; empty means any.
    pub ids: Vec<i64>,
    /// Reason.
    pub reason: Option<String>,
    /// Type, in full or without its prefix.
    pub event_type: Option<String>,
    /// Last received at this time or later.
    pub since: Option<i64>,
    /// Last received before this time.
    pub before: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_covers_whether_there_is_a_key() {
        let with = |key: Option<&str>| SpoolRecord {
            output: "kafka".to_owned(),
            route: "all".to_owned(),
            topic: "t".to_owned(),
            key: key.map(str::to_owned),
            mode: None,
            attempts: 1,
            spooled_at: 1,
            envelope: "{}".into(),
            body: "{}".into(),
        };
        let checksums = [None, Some(""), Some("\0"), Some("\0\0")].map(|key| with(key).checksum(1));
        assert_eq!(std::collections::HashSet::from(checksums).len(), 4);
    }
}
