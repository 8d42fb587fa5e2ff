//! The durable store: the spool, which holds records that a bus has not acknowledged yet, and the dead letters.
//!
//! # What it promises
//!
//! - [`Store::keep`] returns when all of it is on the disk, or none of it is stored as far as is known.
//! - After a crash or a power failure everything is there that was on the disk before; SQLite's own recovery sees to
//!   it. Nothing here edits SQLite's files.
//! - After a failed fsync, or when SQLite reports damage, the content is copied into a new file before anything more
//!   is stored (`recover`).
//! - Both kinds of rows are bounded in bytes; nothing old is deleted for something new. A full disk can be drained
//!   (`space`).
//! - A record that is not as it was written is never published; it becomes a dead letter.
//!
//! One thread writes (`writer`), any number of readers read next to it. A folder belongs to one process (`lock`).
//! Media errors, which change what was written, are outside the promise: what can be read is kept, and the loss is
//! counted.

pub mod database;
mod error;
mod failing;
mod lane;
mod lock;
mod offline;
mod reader;
mod record;
mod recover;
mod salvage;
mod space;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::{Notify, oneshot};

use crate::telemetry::metrics::Metrics;
use database::{Database, FILE};
use lane::Lanes;
use writer::{Job, Totals, Work, Writer};

pub use error::{FailureKind, StoreError};
pub use failing::{FailingLane, FailingLanes};
pub use lane::{Lane, OutputLanes};
pub use lock::is_running;
pub use offline::{Imported, Offline};
pub use reader::Reader;
pub use record::{AWAITS_DEAD_LETTERS, Backlog, DeadLetter, DeadLetterFilter, DeadLetterRow, SpoolRecord, Spooled};
pub use recover::DAMAGED;
pub(crate) use recover::damaged_record;
pub use space::Volume;

/// How long the database is checked at the start; what is not reached by then is checked when it is read.
const CHECK_AT_START: Duration = Duration::from_secs(1);

/// How long the writer may be at work, in milliseconds, until new events are refused at once. Callbacks do not wait
/// longer for it.
const STUCK: i64 = 2500;

/// Where the store is, and its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// The folder.
    pub path: PathBuf,
    /// Bound of the spool, in bytes of what its records hold.
    pub spool_max_bytes: u64,
    /// Bound of one topic of an output that is up, likewise.
    pub lane_max_bytes: u64,
    /// Bound of the dead letters, likewise.
    pub dead_letters_max_bytes: u64,
    /// Age from which on dead letters are deleted; none keeps them.
    pub dead_letters_max_age: Option<Duration>,
}

impl StoreSettings {
    /// What is questionable about the volume of the folder, a sentence each. The folder need not exist yet.
    pub fn warnings(&self) -> Vec<String> {
        let Some(there) = self.path.ancestors().find(|folder| folder.exists()) else { return Vec::new() };
        let Ok(volume) = Volume::of(there) else { return Vec::new() };
        let shown = self.path.display();
        let mut warnings = Vec::new();
        let needed = volume.needed(self.spool_max_bytes, self.dead_letters_max_bytes);
        if volume.total < needed {
            warnings.push(format!(
                "spool.path: the volume of {shown} has {} MiB; spool.max_bytes and dead_letters.max_bytes need {} MiB \
                 with the log and a reserve",
                volume.total >> 20,
                needed.div_ceil(1 << 20)
            ));
        }
        if let Some(protocol) = volume.network {
            warnings.push(format!(
                "spool.path: {shown} is on a network file system ({protocol}); locks and fsync may not hold there, so \
                 that events can be lost: use a local disk or a block volume"
            ));
        }
        warnings
    }
}

/// What a lane can be in: the label `state` of metrics.
pub const LANE_STATES: [&str; 2] = ["waiting", "failing"];

/// The present time in Unix milliseconds.
pub(crate) fn now() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// A record that was published, or became a dead letter, and leaves the spool.
#[derive(Clone, Debug)]
pub struct Settled {
    /// Its position.
    pub seq: i64,
    /// The dead letter that it became, and the record that publishes that one.
    pub letter: Option<Box<(DeadLetter, Option<SpoolRecord>)>>,
}

/// Positions of records that stay in the spool, because their dead letters found no room.
pub type Retained = Vec<i64>;

/// What writer, readers and askers share.
#[derive(Debug)]
struct Shared {
    settings: StoreSettings,
    metrics: Metrics,
    lanes: Lanes,
    /// Counts databases: another one when one was copied into a new file.
    generation: AtomicU64,
    /// Whether the last write succeeded.
    is_well: AtomicBool,
    /// Whether a record was refused because there was no room, and none has left since.
    is_full: AtomicBool,
    /// When the oldest record was spooled; [`NONE`] without any.
    oldest: AtomicI64,
    /// Rings when a command has requested replays.
    replays: Notify,
    /// Held by the writer while one database takes the place of another, and by readers while they open one: a
    /// connection must not pair the old file with the new log.
    swapping: RwLock<()>,
    /// Since when the writer is at work, in Unix milliseconds; [`NONE`] while it waits.
    busy_since: AtomicI64,
}

const NONE: i64 = i64::MAX;

/// The store of a running bridge. Dropped without [`Store::close`], it loses nothing that it said was kept.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens the store of a folder, which is made where it is missing, and takes the folder's lock, for which it waits
    /// until the deadline, if there is one. A damaged database is copied into a new file. Blocks for as long as that
    /// takes.
    ///
    /// # Errors
    /// A sentence: the folder cannot be used, belongs to another bridge that runs, holds a newer database, or there is
    /// no room for a copy. Nothing was changed then, and the next call begins anew.
    pub fn open(settings: StoreSettings, lock_until: Option<Instant>, metrics: &Metrics) -> Result<Store, String> {
        let shown = settings.path.display().to_string();
        let start = Instant::now();
        let (lock, database, verified) = open_folder(&settings.path, lock_until)?;
        let (totals, backlogs) = Totals::of(&database).map_err(|error| format!("{shown} cannot be used: {error}"))?;
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
        for old in recover::set_aside(&settings.path) {
            tracing::warn!(
                database = %old.display(),
                "a damaged database is kept here; `apsara-bridge spool import` reads it again, and it can be deleted"
            );
        }
        for kind in FailureKind::ALL {
            metrics.spool_failures_total.with_label_values(&[kind.as_str()]);
        }
        set(&metrics.spool_max_bytes, settings.spool_max_bytes);
        set(&metrics.dead_letters_max_bytes, settings.dead_letters_max_bytes);
        let shared = Arc::new(Shared {
            settings,
            metrics: metrics.clone(),
            lanes: Lanes::default(),
            generation: AtomicU64::new(0),
            is_well: AtomicBool::new(true),
            is_full: AtomicBool::new(false),
            oldest: AtomicI64::new(NONE),
            replays: Notify::new(),
            swapping: RwLock::new(()),
            busy_since: AtomicI64::new(NONE),
        });
        let (jobs, incoming) = channel();
        shared.lanes.set(&backlogs);
        let writer = Writer::new(shared.clone(), incoming, database, totals, lock);
        let writer = std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| format!("no thread for the spool: {error}"))?;
        Ok(Store { shared, jobs, writer: Mutex::new(Some(writer)) })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.shared.settings.path
    }

    /// What the spool holds for an output, by topic.
    pub fn lanes(&self, output: &str) -> Arc<OutputLanes> {
        self.shared.lanes.of(output)
    }

    /// Waits until records were added to lanes, and gives those lanes, each once: at first all that have records. One
    /// caller at a time; a future that is dropped takes nothing away.
    pub async fn filled(&self) -> Vec<Arc<Lane>> {
        self.shared.lanes.filled().await
    }

    /// Outputs for which the spool holds records, and how many.
    pub fn backlogs(&self) -> Vec<(String, u64)> {
        let outputs = self.shared.lanes.outputs().into_iter();
        outputs.map(|(output, lanes)| (output, lanes.records())).filter(|(_, records)| *records > 0).collect()
    }

    /// Whether a record would be stored now, as far as is known.
    pub fn has_room(&self) -> bool {
        self.shared.is_well.load(Ordering::Relaxed) && !self.shared.is_full.load(Ordering::Relaxed)
    }

    /// Keeps records and dead letters: all of them, durably, when this returns, or none. A future that is dropped may
    /// have kept them all the same.
    ///
    /// # Errors
    /// Why nothing is known to be stored. After [`FailureKind::SyncFailed`] and [`FailureKind::Io`] they may be found
    /// in the store later, as a repeat with the same id.
    pub async fn keep(&self, records: Vec<SpoolRecord>, letters: Vec<DeadLetter>) -> Result<(), StoreError> {
        self.keep_within(records, letters, |_| false).await
    }

    /// As [`Store::keep`], but a topic of an output that `is_up` gets no more than its share of the spool. Publications of
    /// dead letters are not bound.
    ///
    /// # Errors
    /// As there, and [`FailureKind::LaneFull`].
    pub async fn keep_within(
        &self,
        records: Vec<SpoolRecord>,
        letters: Vec<DeadLetter>,
        is_up: impl Fn(&str) -> bool,
    ) -> Result<(), StoreError> {
        let busy_since = self.shared.busy_since.load(Ordering::Relaxed);
        if busy_since != NONE && now().saturating_sub(busy_since) > STUCK {
            // What nobody waits for must not gather in memory.
            return Err(StoreError::new(FailureKind::Io, "the disk does not answer"));
        }
        // The publication of a dead letter must not prevent that the letter is kept.
        let is_bound = |record: &SpoolRecord| !record.route.is_empty() && is_up(&record.output);
        let claim = self.shared.lanes.claim(&records, self.shared.settings.lane_max_bytes, is_bound);
        let _pending = claim.inspect_err(|error| {
            self.shared.metrics.spool_failures_total.with_label_values(&[error.kind.as_str()]).inc();
        })?;
        self.work(Work::Keep(records, letters)).await.map(|_| ())
    }

    /// Removes records that were published or became dead letters. Doing it again changes nothing.
    ///
    /// # Errors
    /// Why they are still in the spool.
    pub async fn settle(&self, settled: Vec<Settled>) -> Result<Retained, StoreError> {
        self.work(Work::Settle(settled)).await
    }

    /// Notes how replays ended. Doing it again changes nothing.
    ///
    /// # Errors
    /// Why they still count as requested.
    pub async fn end_replays(&self, ended: Vec<(i64, Option<String>)>) -> Result<(), StoreError> {
        self.work(Work::EndReplays(ended)).await.map(|_| ())
    }

    async fn work(&self, work: Work) -> Result<Retained, StoreError> {
        let closed = || {
            self.shared.is_well.store(false, Ordering::Relaxed);
            writer::closed()
        };
        let (done, answer) = oneshot::channel();
        self.jobs.send(Job::Work(work, done)).map_err(|_| closed())?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// A reader of the spool and the dead letters.
    pub fn reader(&self) -> Reader {
        Reader { shared: self.shared.clone(), jobs: self.jobs.clone(), open: None }
    }

    /// Waits until a command has requested replays.
    pub async fn replays_requested(&self) {
        self.shared.replays.notified().await;
    }

    /// Updates the metrics that change with time.
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

    /// Writes what was handed over and closes the database. What comes later is refused.
    pub async fn close(&self) {
        let _ = self.jobs.send(Job::Stop);
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
    }
}

/// Makes a folder where it is missing, takes its lock, and opens its database.
fn open_folder(
    folder: &Path,
    lock_until: Option<Instant>,
) -> Result<(lock::FolderLock, Database, database::Verified), String> {
    let shown = folder.display();
    let is_new = !folder.exists();
    let made = std::fs::create_dir_all(folder).and_then(|()| match folder.parent() {
        Some(parent) if is_new && !parent.as_os_str().is_empty() => std::fs::File::open(parent)?.sync_all(),
        _ => Ok(()),
    });
    made.map_err(|error| {
        format!("{shown} cannot be made: {error}; name a folder that can be written, or set spool.enabled = false")
    })?;
    let lock = lock::lock(folder, lock_until)?;
    let (database, verified) = recover::open(folder, CHECK_AT_START).map_err(|error| match error.kind {
        FailureKind::Foreign => error.to_string(),
        _ => format!("{shown} cannot be used: {error}"),
    })?;
    Ok((lock, database, verified))
}

fn set(gauge: &prometheus::IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Where the database of a folder is.
pub fn file(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// Old databases in a folder that were set aside because they were damaged, the oldest first.
pub fn set_aside(folder: &Path) -> Vec<PathBuf> {
    recover::set_aside(folder)
}

#[cfg(test)]
mod tests;
