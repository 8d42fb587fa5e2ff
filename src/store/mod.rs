//! The durable store: the spool, which holds records that a bus has not acknowledged yet, and the dead letters.
//!
//! # What it promises
//!
//! - [`Store::keep`] returns when everything is on the disk, or when nothing is known to be stored.
//! - After a crash or a power failure, everything is there that was on the disk before. SQLite's own recovery does this;
//!   the store never edits SQLite's files.
//! - After a failed fsync, or when SQLite reports damage, the content is copied into a new file before anything more is
//!   stored (`recover`).
//! - Spool and dead letters are bounded in bytes. Nothing old is deleted to make room for something new. A full disk can
//!   be drained (`space`).
//! - A record that was changed on the disk is never published. It becomes a dead letter.
//!
//! One thread writes (`writer`); any number of readers read next to it. A folder belongs to one process (`lock`). The
//! promise does not cover media errors, which change what was written: what can be read is kept, and the loss is
//! counted.

pub mod database;
mod error;
mod examine;
mod failing;
mod files;
mod folder;
mod lane;
mod lock;
mod offline;
mod reader;
mod record;
mod recover;
mod salvage;
mod settings;
mod shared;
mod space;
mod writer;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::telemetry::metrics::Metrics;
use shared::{NONE, Shared, set};
use writer::{Job, Totals, Work, Writer};

pub use error::{FailureKind, StoreError};
pub use failing::{FailingLane, FailingLanes};
pub use files::{file, set_aside};
pub use folder::OpenError;
pub use lane::{Lane, LaneFailure, OutputLanes};
pub use lock::{LockError, is_running};
pub use offline::{Imported, Offline};
pub use reader::Reader;
pub(crate) use record::now;
pub use record::{
    AWAITS_DEAD_LETTERS, Backlog, DAMAGED, DeadLetter, DeadLetterFilter, DeadLetterRow, NOT_A_CALLBACK, Retained,
    Settled, SettledLetter, SpoolRecord, Spooled,
};
pub use settings::{StoreBounds, StoreSettings};
pub use space::Volume;

/// How long one write may take, in milliseconds, until new events are refused at once. Callbacks do not wait longer.
const STUCK: i64 = 2500;

/// The states of a lane: the label `state` of metrics.
pub const LANE_STATES: [&str; 2] = ["waiting", "failing"];

/// The store of a running bridge. Dropping it without [`Store::close`] loses nothing that was kept.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    writer: Mutex<Option<JoinHandle<()>>>,
    newest_dead_letter: Option<i64>,
}

/// Whether a store takes records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It does.
    Ok,
    /// A record was refused because there was no room, and no record has left since.
    Full,
    /// The last write failed, or the present one takes too long.
    Failing,
}

impl Store {
    /// Opens the store of a folder. Creates the folder if it is missing, and takes its lock; waits for the lock until
    /// `lock_until`, if that is given. Copies a damaged database into a new file. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`OpenError`]. Nothing was changed then, and the next call begins anew.
    pub fn open(settings: StoreSettings, lock_until: Option<Instant>, metrics: &Metrics) -> Result<Store, OpenError> {
        let shown = settings.path.display().to_string();
        let start = Instant::now();
        let (lock, database, verified) = folder::open(&settings.path, lock_until)?;
        let unusable = |error| OpenError::Unusable { folder: settings.path.clone(), error };
        let (totals, backlogs) = Totals::of(&database).map_err(unusable)?;
        let newest_dead_letter = database.newest_dead_letter().map_err(unusable)?;
        tracing::info!(
            path = %shown,
            records = totals.records,
            dead_letters = totals.dead_letters,
            checked = if verified.is_complete { "all" } else { "in part" },
            took = ?start.elapsed(),
            "the spool is open"
        );
        if !verified.damaged.is_empty() {
            tracing::error!(
                records = verified.damaged.len(),
                "records in the spool are damaged; they become dead letters"
            );
        }
        for old in set_aside(&settings.path) {
            tracing::warn!(
                database = %old.display(),
                "a damaged database is kept; `apsara-bridge spool import` reads it again. It can be deleted"
            );
        }
        for kind in FailureKind::ALL {
            metrics.spool_failures_total.with_label_values(&[kind.as_str()]);
        }
        let shared = Arc::new(Shared::new(settings, metrics));
        let (jobs, incoming) = channel();
        shared.lanes.set(&backlogs);
        let writer = Writer::new(shared.clone(), incoming, database, totals, lock);
        let writer = std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || writer.run())
            .map_err(OpenError::Thread)?;
        Ok(Store { shared, jobs, writer: Mutex::new(Some(writer)), newest_dead_letter })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.shared.folder
    }

    /// What the spool holds for an output, by topic.
    pub fn lanes(&self, output: &str) -> Arc<OutputLanes> {
        self.shared.lanes.of(output)
    }

    /// Waits until records were added to lanes, and returns those lanes, each once. The first call returns all lanes with
    /// records. One caller at a time. May be cancelled: no lane is lost.
    pub async fn filled(&self) -> Vec<Arc<Lane>> {
        self.shared.lanes.filled().await
    }

    /// Outputs with records in the spool, and how many.
    pub fn backlogs(&self) -> Vec<(String, u64)> {
        let outputs = self.shared.lanes.outputs().into_iter();
        outputs.map(|(output, lanes)| (output, lanes.records())).filter(|(_, records)| *records > 0).collect()
    }

    /// The lanes that a person should see first: those that fail, and then those with the most records. At most so
    /// many; and how many more there are.
    pub fn first_lanes(&self, most: usize) -> (Vec<Arc<Lane>>, usize) {
        self.shared.lanes.first(most)
    }

    /// Numbers of lanes of an output with records on the disk: those that wait, and those whose last attempt failed.
    pub fn lane_states(&self, output: &str) -> (u64, u64) {
        self.shared.lanes.of(output).states()
    }

    /// When the newest dead letter was last received, in Unix milliseconds, of those that were there when the store was
    /// opened.
    pub fn newest_dead_letter(&self) -> Option<i64> {
        self.newest_dead_letter
    }

    /// Whether records can be stored.
    pub fn condition(&self) -> Condition {
        if !self.shared.is_writable.load(Ordering::Relaxed) || self.is_stuck() {
            Condition::Failing
        } else if self.shared.is_full.load(Ordering::Relaxed) {
            Condition::Full
        } else {
            Condition::Ok
        }
    }

    /// Whether the present write takes too long.
    fn is_stuck(&self) -> bool {
        let busy_since = self.shared.busy_since.load(Ordering::Relaxed);
        busy_since != NONE && now().saturating_sub(busy_since) > STUCK
    }

    /// Changes the bounds. What is stored beyond smaller ones stays; new records are refused until there is room.
    pub fn set_bounds(&self, bounds: StoreBounds) {
        self.shared.set_bounds(bounds);
    }

    /// Whether a record would probably be stored now: the last write succeeded, and there is room.
    pub fn has_room(&self) -> bool {
        self.shared.is_writable.load(Ordering::Relaxed) && !self.shared.is_full.load(Ordering::Relaxed)
    }

    /// Keeps records and dead letters: when this returns, all of them are on the disk, or none is. A cancelled call may
    /// have kept them all the same. The caller decides about trying again.
    ///
    /// # Errors
    /// Why nothing is known to be stored. After [`FailureKind::SyncFailed`] and [`FailureKind::Io`] the records may be in
    /// the store all the same, and are published later, as repeats with the same id.
    pub async fn keep(&self, records: Vec<SpoolRecord>, letters: Vec<DeadLetter>) -> Result<(), StoreError> {
        self.keep_within(records, letters, |_| false).await
    }

    /// As [`Store::keep`], but a topic of an output that `is_up` gets no more than its share of the spool. The share does
    /// not apply to announcements of dead letters.
    ///
    /// # Errors
    /// Those of [`Store::keep`], and [`FailureKind::LaneFull`].
    pub async fn keep_within(
        &self,
        records: Vec<SpoolRecord>,
        letters: Vec<DeadLetter>,
        is_up: impl Fn(&str) -> bool,
    ) -> Result<(), StoreError> {
        if self.is_stuck() {
            // Jobs for which nobody waits must not fill the memory.
            return Err(StoreError::new(FailureKind::Io, "the disk does not answer"));
        }
        // A full topic of announcements must not prevent the letters from being kept.
        let is_bound = |record: &SpoolRecord| !record.route.is_empty() && is_up(&record.output);
        let claim = self.shared.lanes.claim(&records, self.shared.bounds().lane_max_bytes, is_bound);
        let _pending = claim.inspect_err(|error| {
            self.shared.metrics.spool_failures_total.with_label_values(&[error.kind.as_str()]).inc();
        })?;
        self.work(Work::Keep(records, letters)).await.map(|_| ())
    }

    /// Removes records that were published or became dead letters. Returns the records that stay. Repeating it changes
    /// nothing. A cancelled call may have removed them.
    ///
    /// # Errors
    /// Why they are still in the spool.
    pub async fn settle(&self, settled: Vec<Settled>) -> Result<Retained, StoreError> {
        self.work(Work::Settle(settled)).await
    }

    /// Writes the results of replays: the number of each letter, and why it was not replayed. Letters without an error are
    /// removed. Repeating it changes nothing.
    ///
    /// # Errors
    /// Why they still count as requested.
    pub async fn end_replays(&self, ended: Vec<(i64, Option<String>)>) -> Result<(), StoreError> {
        self.work(Work::EndReplays(ended)).await.map(|_| ())
    }

    async fn work(&self, work: Work) -> Result<Retained, StoreError> {
        let closed = || {
            self.shared.is_writable.store(false, Ordering::Relaxed);
            writer::closed()
        };
        let (done, answer) = oneshot::channel();
        self.jobs.send(Job::Work(work, done)).map_err(|_| closed())?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// A reader of the spool and the dead letters. It blocks.
    pub fn reader(&self) -> Reader {
        Reader { shared: self.shared.clone(), jobs: self.jobs.clone(), open: None }
    }

    /// Waits until a command has requested replays.
    pub async fn replays_requested(&self) {
        self.shared.replays.notified().await;
    }

    /// Updates the metrics that change with time: ages, and states of lanes.
    pub fn observe(&self) {
        let oldest = self.shared.oldest.load(Ordering::Relaxed);
        let age = if oldest == NONE { 0 } else { now().saturating_sub(oldest).max(0) };
        let metrics = &self.shared.metrics;
        metrics.spool_oldest_seconds.set(Duration::from_millis(age.unsigned_abs()).as_secs_f64());
        for (output, lanes) in self.shared.lanes.outputs() {
            let (waiting, failing) = lanes.states();
            for (state, lanes) in LANE_STATES.into_iter().zip([waiting, failing]) {
                set(&metrics.spool_lanes.with_label_values(&[&output, state]), lanes);
            }
        }
    }

    /// Writes what was handed over before, and closes the database. Later calls fail.
    pub async fn close(&self) {
        let _ = self.jobs.send(Job::Stop);
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
    }
}

#[cfg(test)]
mod tests;
