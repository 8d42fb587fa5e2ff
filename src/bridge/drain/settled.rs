//! Settled records that are still on the disk: published, or to become dead letters.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::LaneId;
use crate::common::backoff::Backoff;
use crate::store::{Retained, Settled, StoreError};

/// Most records that are removed together. More of them gain nothing from sharing an fsync.
const TOGETHER: usize = 4096;

/// Pause after a failure of the disk: doubles from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Bytes of dead letters in memory that cannot be written. Beyond them nothing more is published.
const LETTERS_HELD: u64 = 16 << 20;

/// Settled records that are still on the disk.
pub(super) struct Unremoved {
    records: BTreeMap<i64, (LaneId, Settled)>,
    letter_bytes: u64,
    /// When removing them is tried again.
    next_try: Instant,
    backoff: Backoff,
}

impl Unremoved {
    pub(super) fn new() -> Unremoved {
        Unremoved {
            records: BTreeMap::new(),
            letter_bytes: 0,
            next_try: Instant::now(),
            backoff: Backoff::new(PAUSE.0, PAUSE.1),
        }
    }

    pub(super) fn add(&mut self, lane: LaneId, settled: Vec<Settled>) {
        for settled in settled {
            self.letter_bytes += letter_bytes(&settled);
            if let Some((_, before)) = self.records.insert(settled.seq, (lane, settled)) {
                self.letter_bytes -= letter_bytes(&before);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(super) fn contains(&self, seq: i64) -> bool {
        self.records.contains_key(&seq)
    }

    /// Whether so many dead letters wait in memory that nothing more should be published.
    pub(super) fn is_full(&self) -> bool {
        self.letter_bytes > LETTERS_HELD
    }

    /// When to remove the next records; none if there are none.
    pub(super) fn next_try(&self) -> Option<Instant> {
        (!self.is_empty()).then_some(self.next_try)
    }

    /// The records to remove now.
    pub(super) fn due(&self) -> Vec<(LaneId, Settled)> {
        if Instant::now() < self.next_try {
            return Vec::new();
        }
        self.records.values().take(TOGETHER).cloned().collect()
    }

    /// Records were removed, except those whose dead letters had no room; or the disk failed.
    pub(super) fn tried(&mut self, tried: &[(LaneId, Settled)], result: &Result<Retained, StoreError>) {
        match result {
            Ok(_) => {
                for (_, settled) in tried {
                    if let Some((_, gone)) = self.records.remove(&settled.seq) {
                        self.letter_bytes -= letter_bytes(&gone);
                    }
                }
                self.next_try = Instant::now();
                self.backoff.reset();
            }
            Err(error) => {
                tracing::debug!(%error, "published records cannot be removed from the disk");
                self.next_try = Instant::now() + self.backoff.pause();
            }
        }
    }
}

fn letter_bytes(settled: &Settled) -> u64 {
    settled.letter.as_ref().map_or(0, |became| became.letter.bytes())
}
