//! The state that the writer, the readers and the store share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64};
use std::sync::{PoisonError, RwLock};

use tokio::sync::Notify;

use super::lane::Lanes;
use super::settings::{StoreBounds, StoreSettings};
use crate::telemetry::metrics::Metrics;

/// The state that the writer, the readers and the [`Store`](super::Store) share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) folder: PathBuf,
    bounds: RwLock<StoreBounds>,
    pub(super) metrics: Metrics,
    pub(super) lanes: Lanes,
    /// Increases when the database was copied into a new file.
    pub(super) generation: AtomicU64,
    /// Whether the last write succeeded.
    pub(super) is_writable: AtomicBool,
    /// Whether a record was refused because there was no room, and no record has left since.
    pub(super) is_full: AtomicBool,
    /// When the oldest record was spooled; [`NONE`] if there is none.
    pub(super) oldest: AtomicI64,
    /// Notified when a command has requested replays.
    pub(super) replays: Notify,
    /// Held by the writer while one database replaces another, and by readers while they open one, because a connection
    /// must not combine the old file with the new log.
    pub(super) swapping: RwLock<()>,
    /// Start of the present write in Unix milliseconds; [`NONE`] between writes.
    pub(super) busy_since: AtomicI64,
}

impl Shared {
    pub(super) fn new(settings: StoreSettings, metrics: &Metrics) -> Shared {
        let shared = Shared {
            folder: settings.path,
            bounds: RwLock::new(settings.bounds),
            metrics: metrics.clone(),
            lanes: Lanes::default(),
            generation: AtomicU64::new(0),
            is_writable: AtomicBool::new(true),
            is_full: AtomicBool::new(false),
            oldest: AtomicI64::new(NONE),
            replays: Notify::new(),
            swapping: RwLock::new(()),
            busy_since: AtomicI64::new(NONE),
        };
        shared.set_bounds(settings.bounds);
        shared
    }

    pub(super) fn bounds(&self) -> StoreBounds {
        *self.bounds.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_bounds(&self, bounds: StoreBounds) {
        set(&self.metrics.spool_max_bytes, bounds.spool_max_bytes);
        set(&self.metrics.dead_letters_max_bytes, bounds.dead_letters_max_bytes);
        *self.bounds.write().unwrap_or_else(PoisonError::into_inner) = bounds;
    }
}

/// No time.
pub(super) const NONE: i64 = i64::MAX;

/// Sets a gauge.
pub(super) fn set(gauge: &prometheus::IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}
