//! Records that left the spool as far as the buses are concerned, until they have left the disk too.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::LaneId;
use crate::common::backoff::jittered;
use crate::store::{Retained, Settled, StoreError};

/// Most records that are removed together: more gain nothing from sharing an fsync.
const TOGETHER: usize = 4096;

/// Pause after the disk failed: doubles from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Bytes of dead letters that cannot be written from which on nothing more is published: they are in memory.
const LETTERS_HELD: u64 = 16 << 20;

/// Published, or to become dead letters, and still on the disk.
pub(super) struct Unremoved {
    records: BTreeMap<i64, (LaneId, Settled)>,
    letter_bytes: u64,
    /// When removing them is tried again, and the pause after that.
    next_try: (Instant, Duration),
}

impl Unremoved {
    pub(super) fn new() -> Unremoved {
        Unremoved { records: BTreeMap::new(), letter_bytes: 0, next_try: (Instant::now(), PAUSE.0) }
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

    /// Whether so many dead letters wait that nothing more should be published.
    pub(super) fn is_full(&self) -> bool {
        self.letter_bytes > LETTERS_HELD
    }

    /// When to remove the next of them; none without any.
    pub(super) fn next_try(&self) -> Option<Instant> {
        (!self.is_empty()).then_some(self.next_try.0)
    }

    /// Those to remove now.
    pub(super) fn due(&self) -> Vec<(LaneId, Settled)> {
        if Instant::now() < self.next_try.0 {
            return Vec::new();
        }
        self.records.values().take(TOGETHER).cloned().collect()
    }

    /// They were removed, but for those that found no room among the dead letters; or the disk failed.
    pub(super) fn tried(&mut self, tried: &[(LaneId, Settled)], result: &Result<Retained, StoreError>) {
        match result {
            Ok(_) => {
                for (_, settled) in tried {
                    if let Some((_, gone)) = self.records.remove(&settled.seq) {
                        self.letter_bytes -= letter_bytes(&gone);
                    }
                }
                self.next_try = (Instant::now(), PAUSE.0);
            }
            Err(error) => {
                tracing::debug!(%error, "what was published cannot be removed from the disk");
                let pause = self.next_try.1;
                self.next_try = (Instant::now() + jittered(pause), (pause * 2).min(PAUSE.1));
            }
        }
    }
}

fn letter_bytes(settled: &Settled) -> u64 {
    settled.letter.as_ref().map_or(0, |became| became.0.bytes())
}
