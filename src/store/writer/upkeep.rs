//! What the writer does once a second.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::job::{Totals, closed};
use super::{State, Writer};
use crate::store::database::{FILE, inode};
use crate::store::error::{FailureKind, StoreError};
use crate::store::record::now;

/// How often dead letters that are too old are removed, and how many of them one transaction removes.
const EXPIRE: (Duration, usize) = (Duration::from_secs(10), 500);

impl Writer {
    /// Checks whether a failure is over and what other processes changed, and removes dead letters that are too old.
    pub(super) fn tick(&mut self) {
        self.copy_if_due();
        let result = match &self.state {
            State::Untrusted { .. } => return,
            State::Writable => self.trusted(),
            State::Failing(_) => self.trusted().and_then(|()| self.touch()),
        };
        if let Err(error) = result.and_then(|()| self.look()).and_then(|()| self.expire()) {
            self.failed(&error, 0);
            self.copy_if_due();
        }
    }

    /// Writes, to find out whether that succeeds.
    fn touch(&mut self) -> Result<(), StoreError> {
        self.open()?;
        let Some(database) = &mut self.database else { return Err(closed()) };
        self.room.lift(database)?;
        let writing = database.begin()?;
        writing.touch()?;
        writing.commit()?;
        self.succeeded();
        Ok(())
    }

    /// Checks the volume, the file, and what other processes changed.
    fn look(&mut self) -> Result<(), StoreError> {
        let is_full = self.shared.is_full.load(Ordering::Relaxed);
        if is_full || !self.room.reserve.is_held() {
            self.room.measure(&self.shared);
            let has_room = self.room.volume.is_some_and(|volume| volume.free > volume.reserve());
            if is_full && has_room && self.totals.bytes < self.shared.bounds().spool_max_bytes {
                self.shared.is_full.store(false, Ordering::Relaxed);
            }
        }
        if inode(&self.shared.folder.join(FILE)) != self.inode {
            let message = "spool.db was removed or replaced while the bridge runs: put it back, or restart the bridge";
            return Err(StoreError::new(FailureKind::Io, message));
        }
        self.open()?;
        let Some(database) = &self.database else { return Err(closed()) };
        let version = database.data_version()?;
        if version == self.data_version {
            return Ok(());
        }
        self.data_version = version;
        let (dead_letters, dead_letter_bytes) = database.dead_letter_totals()?;
        let totals = Totals { dead_letters, dead_letter_bytes, ..self.totals };
        self.publish(totals);
        self.shared.replays.notify_one();
        Ok(())
    }

    /// Removes dead letters that are too old.
    fn expire(&mut self) -> Result<(), StoreError> {
        let Some(max_age) = self.shared.bounds().dead_letters_max_age else { return Ok(()) };
        if self.expired.is_some_and(|looked| looked.elapsed() < EXPIRE.0) {
            return Ok(());
        }
        let before = now().saturating_sub(i64::try_from(max_age.as_millis()).unwrap_or(i64::MAX));
        let Some(database) = &mut self.database else { return Ok(()) };
        self.room.lift(database)?;
        let looked = self.expired.replace(Instant::now());
        let writing = database.begin()?;
        let (letters, bytes) = match writing.expire(before, EXPIRE.1) {
            Ok((0, _)) => return Ok(()),
            // It can wait.
            Err(error) if error.kind == FailureKind::DiskFull => return Ok(()),
            expired => expired?,
        };
        if let Err(error) = writing.commit() {
            self.database = None;
            return Err(error);
        }
        // There may be more: look again at the next tick.
        self.expired = looked;
        let totals = Totals {
            dead_letters: self.totals.dead_letters.saturating_sub(letters),
            dead_letter_bytes: self.totals.dead_letter_bytes.saturating_sub(bytes),
            ..self.totals
        };
        self.publish(totals);
        self.shared.metrics.dead_letters_expired_total.inc_by(letters);
        tracing::info!(dead_letters = letters, "dead letters older than dead_letters.max_age were deleted");
        Ok(())
    }
}
