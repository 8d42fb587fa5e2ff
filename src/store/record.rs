//! What the store keeps: records of the spool and dead letters. Times are Unix milliseconds.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::event::Mode;

/// What a row takes next to its texts: columns, index entries, its share of unused space in pages.
const ROW_BYTES: usize = 256;

/// A record that its output has not acknowledged yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolRecord {
    /// Name of the output. Empty: an event that waits for room among the dead letters; `topic` has the reason then.
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
    /// The body of the callback; empty for the publication of a dead letter, because the dead letter has it.
    pub body: Bytes,
}

/// The `output` of records that wait for room among the dead letters.
pub const AWAITS_DEAD_LETTERS: &str = "";

impl SpoolRecord {
    /// What it counts against `spool.max_bytes`.
    pub fn bytes(&self) -> u64 {
        let texts = self.route.len() + self.topic.len() + self.key.as_ref().map_or(0, String::len);
        (ROW_BYTES + texts + self.envelope.len() + self.body.len()) as u64
    }

    /// Tells whether a stored record is still as it was written. Covers every column that matters.
    pub(super) fn checksum(&self, seq: i64) -> i64 {
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
    /// Its position in the order, the same for as long as it is in the spool.
    pub seq: i64,
    /// The record.
    pub record: SpoolRecord,
    /// Whether it is as it was written.
    pub is_sound: bool,
}

/// An event or a body that cannot be published as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetter {
    /// Why, a word of [`crate::bridge::DeadLetterReason`].
    pub reason: String,
    /// The error in the words of the bus, or of the reader of callbacks.
    pub code: String,
    /// How often publishing was tried.
    pub attempts: u32,
    /// The input that received the callback.
    pub input: Option<String>,
    /// The route that named the destination or asked for a dead letter.
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
    /// The body, as it was received.
    pub body: Bytes,
    /// When.
    pub at: i64,
}

impl DeadLetter {
    /// What it counts against `dead_letters.max_bytes`.
    pub fn bytes(&self) -> u64 {
        (ROW_BYTES + self.code.len() + self.envelope.as_ref().map_or(0, Bytes::len) + self.body.len()) as u64
    }

    /// Tells whether a stored dead letter is still as it was written, in what a replay uses.
    pub(super) fn checksum(&self) -> i64 {
        let mut hash = Sha256::new();
        for part in [self.envelope.as_deref().unwrap_or_default(), &self.body] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        first_bytes(hash)
    }

    /// The same for every retry of the same body that fails for the same destination.
    pub(super) fn fingerprint(&self) -> [u8; 16] {
        let mut hash = Sha256::new();
        match &self.event {
            Some((id, ..)) => hash.update(id),
            None => {
                hash.update([0]);
                hash.update(&self.body);
                // Of a record that was changed on the disk the envelope may be all that is left.
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
    /// Whether envelope and body are as they were written; true where they were not read.
    pub is_sound: bool,
    /// What was kept; its time is that of the last copy received.
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
}

/// What the spool holds for one topic of one output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Name of the output.
    pub output: String,
    /// The topic.
    pub topic: String,
    /// Records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest was spooled.
    pub oldest: Option<i64>,
}

/// Which dead letters are meant: all conditions hold.
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
