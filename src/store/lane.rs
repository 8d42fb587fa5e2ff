//! What others see of an output's records in the spool.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// The spool of one output.
#[derive(Debug, Default)]
pub struct Lane {
    /// Records on the disk.
    spooled: AtomicU64,
    /// Records that are being written.
    pending: AtomicU64,
    filled: Notify,
}

impl Lane {
    /// Whether records of the output are in the spool or are being written to it: later ones queue up behind them.
    pub fn has_backlog(&self) -> bool {
        self.spooled() > 0 || self.pending.load(Ordering::Acquire) > 0
    }

    /// Records on the disk.
    pub fn spooled(&self) -> u64 {
        self.spooled.load(Ordering::Acquire)
    }

    /// Waits until records are added to those on the disk.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    pub(super) fn set_spooled(&self, records: u64) {
        if self.spooled.swap(records, Ordering::AcqRel) < records {
            self.filled.notify_one();
        }
    }
}

/// Counts records as being written until it is dropped.
pub(super) struct PendingGuard(Vec<Arc<Lane>>);

impl PendingGuard {
    pub(super) fn new(lanes: Vec<Arc<Lane>>) -> PendingGuard {
        for lane in &lanes {
            lane.pending.fetch_add(1, Ordering::AcqRel);
        }
        PendingGuard(lanes)
    }
}

impl Drop for PendingGuard {
    fn drop(&mut self) {
        for lane in &self.0 {
            lane.pending.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
