//! How much of the volume the database may take.

use std::time::Instant;

use super::TICK;
use crate::store::database::{Database, FILE, PAGE_BYTES};
use crate::store::error::StoreError;
use crate::store::shared::Shared;
use crate::store::space::{Reserve, Volume};

/// Length from which on the log is moved into the database; half of the reserve on a small volume. Draining a spool on a
/// full disk needs room for the log a second time while it is moved.
const LOG_BYTES: u64 = 16 << 20;

/// Free space above which the volume is measured only once a second.
const AMPLE: u64 = 256 << 20;

/// The volume, the reserve, and how much new records can take.
pub(super) struct Room {
    pub(super) reserve: Reserve,
    pub(super) volume: Option<Volume>,
    measured: Option<Instant>,
    /// Bytes that can be written before the volume is measured again.
    left: u64,
    /// Whether the number of pages is limited.
    pub(super) is_limited: bool,
    /// Length from which on the log is moved into the database.
    pub(super) log_bytes: u64,
}

impl Room {
    pub(super) fn new(shared: &Shared) -> Room {
        let mut room = Room {
            reserve: Reserve::new(&shared.folder),
            volume: None,
            measured: None,
            left: 0,
            is_limited: false,
            log_bytes: LOG_BYTES,
        };
        room.measure(shared);
        room
    }

    /// Measures the volume, and creates the reserve if there is room for it.
    pub(super) fn measure(&mut self, shared: &Shared) {
        self.measured = Some(Instant::now());
        self.volume = Volume::of(&shared.folder).ok();
        let Some(volume) = &self.volume else { return };
        self.log_bytes = LOG_BYTES.min(volume.reserve() / 2).max(u64::from(PAGE_BYTES) * 8);
        if let Err(error) = self.reserve.take(volume) {
            tracing::debug!(%error, "no room for the reserve of the spool");
        }
    }

    /// Bounds the growth of the database: the volume must keep room for the log and the reserve.
    pub(super) fn limit(&mut self, database: &Database, shared: &Shared, bytes: u64) -> Result<(), StoreError> {
        let is_recent = self.measured.is_some_and(|measured| measured.elapsed() < TICK);
        if is_recent && self.left >= AMPLE.saturating_add(bytes) {
            // Twice, because the log and the database both take it.
            self.left = self.left.saturating_sub(bytes.saturating_mul(2));
            return Ok(());
        }
        self.measure(shared);
        let Some(volume) = &self.volume else { return Ok(()) };
        let path = shared.folder.join(FILE);
        let size = |path| std::fs::metadata(path).map_or(0, |file| file.len());
        let log = size(path.with_file_name(format!("{FILE}-wal")));
        let pages = database.pages()?;
        let page = u64::from(PAGE_BYTES);
        // Pages that are only in the log take room in the database later.
        let pending = (pages * page).saturating_sub(size(path));
        let reserve = if self.reserve.is_held() { 0 } else { volume.reserve() };
        let wanted = pending + (2 * self.log_bytes).saturating_sub(log) + reserve;
        self.left = volume.free.saturating_sub(wanted);
        if self.left < AMPLE {
            database.limit_pages(pages + self.left / page)?;
            self.is_limited = true;
        } else {
            self.lift(database)?;
        }
        Ok(())
    }

    /// Removes the limit.
    pub(super) fn lift(&mut self, database: &Database) -> Result<(), StoreError> {
        if std::mem::take(&mut self.is_limited) { database.limit_pages(u64::MAX) } else { Ok(()) }
    }
}
