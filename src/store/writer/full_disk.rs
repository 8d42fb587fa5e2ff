//! Draining the spool although the disk is full.

use super::Writer;
use super::job::{Answer, Jobs, Work};
use crate::store::error::{FailureKind, StoreError};
use crate::store::record::{Retained, Settled};

/// Records that one transaction removes on a full disk. If that fails, fewer are removed together.
const FULL_DISK_PIECE: usize = 64;

impl Writer {
    /// Removes records although the disk is full: in small pieces, and with the room of the reserve if that is needed.
    pub(super) fn write_on_full_disk(&mut self, jobs: Jobs) {
        for (work, done) in jobs {
            let result = match work {
                Work::Settle(settled) => self.settle_in_pieces(settled),
                work => self.attempt_with_reserve(&work),
            };
            if let Err(error) = &result {
                self.failed(error, 1);
            }
            let _ = done.send(result);
        }
        self.copy_if_due();
    }

    fn settle_in_pieces(&mut self, mut settled: Vec<Settled>) -> Answer {
        let mut retained = Retained::new();
        let mut size = FULL_DISK_PIECE;
        while !settled.is_empty() {
            let rest = settled.split_off(size.min(settled.len()));
            let piece = Work::Settle(settled);
            match self.attempt_with_reserve(&piece) {
                Ok(mut of_piece) => {
                    retained.append(&mut of_piece);
                    settled = rest;
                }
                Err(error) if error.kind == FailureKind::DiskFull && size > 1 => {
                    size /= 4;
                    let Work::Settle(again) = piece else { return Err(error) };
                    settled = again;
                    settled.extend(rest);
                }
                // The caller may ask again for what was removed so far.
                Err(error) => return Err(error),
            }
        }
        Ok(retained)
    }

    /// If the disk is full, moves the log into the database, so that its room can be used again. If that is not enough,
    /// gives up the reserve.
    fn attempt_with_reserve(&mut self, work: &Work) -> Answer {
        let is_full =
            |result: &Result<_, StoreError>| result.as_ref().is_err_and(|error| error.kind == FailureKind::DiskFull);
        let mut result = self.attempt(&[work]);
        if is_full(&result) && self.empty_log() {
            result = self.attempt(&[work]);
        }
        if is_full(&result) && self.room.reserve.give_up() {
            tracing::warn!("the disk is full; the reserve of the spool is released to drain it");
            result = self.attempt(&[work]);
        }
        result.and_then(|results| results.into_iter().next().unwrap_or_else(|| Ok(Retained::new())))
    }
}
