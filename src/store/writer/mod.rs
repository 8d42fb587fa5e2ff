//! The thread that writes.
//!
//! Jobs that arrive while a transaction is being synced share the next transaction, so that many callbacks share one
//! fsync. Each job is answered when it is durable. A failure is reported to every waiting job and never panics. What
//! follows depends on its kind:
//!
//! - No room: new records are refused. Records that leave the spool are removed in transactions of their own, with the
//!   room of the reserve if that is needed (`full_disk`).
//! - A failed fsync, or damage: nothing is written until the database was copied into a new file. The copy is tried at
//!   once, and again after growing pauses.
//! - Anything else: the database is opened again. Once a second a write is tried (`upkeep`).

mod full_disk;
mod job;
mod room;
mod upkeep;

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::database::{Database, FILE, PAGE_BYTES, inode};
use super::error::{FailureKind, StoreError};
use super::files;
use super::lane::Changes;
use super::lock::FolderLock;
use super::record::now;
use super::recover::{self, Cause};
use super::shared::{NONE, Shared, set};
use crate::telemetry::LogThrottle;
use job::{Answer, Jobs, Pending, no_room};
pub(super) use job::{Job, Totals, Work, closed};
use room::Room;

/// How often the writer checks whether a failure is over, and whether a command requested a replay.
const TICK: Duration = Duration::from_secs(1);

/// Most jobs of one transaction. More of them gain nothing from sharing an fsync.
const MAX_JOBS: usize = 1024;

/// How often a failure that lasts is logged again.
const REMIND: Duration = Duration::from_secs(60);

/// Pause between two copies of the database: doubles from the first to the second. A copy writes up to a gigabyte.
const COPY_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// How long after a copy a failure still counts as the same one, so that the pauses keep growing.
const SAME_FAILURE: Duration = Duration::from_secs(60);

/// Whether the database can be written.
#[derive(Debug)]
enum State {
    /// The last write succeeded.
    Writable,
    /// The last write failed; it is tried again every second.
    Failing(StoreError),
    /// Nothing may be written until the database was copied into a new file.
    Untrusted { cause: Cause, error: StoreError, next_try: Instant, pause: Duration },
}

/// The state of the thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    incoming: Receiver<Job>,
    /// None while it cannot be opened.
    database: Option<Database>,
    state: State,
    totals: Totals,
    data_version: i64,
    throttle: LogThrottle,
    room: Room,
    /// When the database was copied last, and the pause before the next copy.
    copied: Option<(Instant, Duration)>,
    /// The file that is open.
    inode: Option<u64>,
    /// When dead letters that are too old were looked for last, and none was found.
    expired: Option<Instant>,
    /// Released when the thread ends, not before.
    _lock: FolderLock,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        incoming: Receiver<Job>,
        database: Database,
        totals: Totals,
        lock: FolderLock,
    ) -> Writer {
        let room = Room::new(&shared);
        let shared_path = shared.folder.join(FILE);
        let mut writer = Writer {
            shared,
            incoming,
            database: None,
            state: State::Writable,
            totals: Totals::default(),
            data_version: 0,
            throttle: LogThrottle::every(REMIND),
            room,
            copied: None,
            inode: inode(&shared_path),
            expired: None,
            _lock: lock,
        };
        let _ = database.limit_log(2 * writer.room.log_bytes);
        writer.database = Some(database);
        writer.publish(totals);
        writer
    }

    pub(super) fn run(mut self) {
        let mut ticked = Instant::now();
        // For what a command requested while no bridge ran.
        self.shared.replays.notify_one();
        loop {
            let mut jobs: Jobs = Vec::new();
            let mut is_over = false;
            match self.incoming.recv_timeout(TICK.saturating_sub(ticked.elapsed())) {
                Ok(Job::Work(work, done)) => jobs.push((work, done)),
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => is_over = true,
                Err(RecvTimeoutError::Timeout) => {}
            }
            while jobs.len() < MAX_JOBS && !jobs.is_empty() {
                match self.incoming.try_recv() {
                    Ok(Job::Work(work, done)) => jobs.push((work, done)),
                    Ok(Job::Stop) => is_over = true,
                    Err(_) => break,
                }
            }
            if !jobs.is_empty() {
                self.shared.busy_since.store(now(), Ordering::Relaxed);
                self.write(jobs);
                self.shared.busy_since.store(NONE, Ordering::Relaxed);
            }
            if is_over {
                return self.close();
            }
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.shared.busy_since.store(now(), Ordering::Relaxed);
                self.tick();
                self.shared.busy_since.store(NONE, Ordering::Relaxed);
            }
        }
    }

    fn close(self) {
        if let (Some(database), State::Writable) = (self.database, &self.state)
            && let Err(error) = database.close()
        {
            // What was stored is in the log.
            tracing::debug!(%error, "the log of the spool cannot be moved into the database");
        }
    }

    /// Writes jobs and answers them.
    fn write(&mut self, mut jobs: Jobs) {
        self.copy_if_due();
        // Nobody waits for these: their callbacks were refused, or published directly.
        jobs.retain(|(work, done)| !(work.is_new() && done.is_closed()));
        let jobs = match &self.state {
            State::Writable => jobs,
            State::Untrusted { error, .. } => {
                let error = error.clone();
                self.count_failures(&error, jobs.len());
                return refuse(jobs, &error);
            }
            // New events are refused at once. Once a second a write is tried.
            State::Failing(error) => {
                let error = error.clone();
                let (new, others): (Jobs, Jobs) = jobs.into_iter().partition(|(work, _)| work.is_new());
                self.count_failures(&error, new.len());
                refuse(new, &error);
                others
            }
        };
        if !jobs.is_empty() {
            self.write_together(jobs);
        }
    }

    fn write_together(&mut self, jobs: Jobs) {
        let start = Instant::now();
        let result = self.attempt(&works(&jobs));
        self.shared.metrics.spool_write_duration_seconds.observe(start.elapsed().as_secs_f64());
        match result {
            Ok(results) => self.answer(jobs, results),
            Err(error) if error.kind == FailureKind::DiskFull => {
                let (new, others): (Jobs, Jobs) = jobs.into_iter().partition(|(work, _)| work.is_new());
                self.failed(&error, new.len());
                refuse(new, &error);
                self.write_on_full_disk(others);
            }
            // The connection is still open, so that the commit did not fail and nothing of the jobs was written.
            Err(error) if error.kind == FailureKind::Damaged && self.database.is_some() => {
                self.failed(&error, 0);
                self.copy_if_due();
                match self.attempt(&works(&jobs)) {
                    Ok(results) => self.answer(jobs, results),
                    Err(error) => self.give_back(jobs, &error),
                }
            }
            Err(error) => self.give_back(jobs, &error),
        }
    }

    /// Answers jobs that failed. They are not tried again here, because they may have been written.
    fn give_back(&mut self, jobs: Jobs, error: &StoreError) {
        self.failed(error, jobs.len());
        refuse(jobs, error);
        self.copy_if_due();
    }

    fn answer(&mut self, jobs: Jobs, results: Vec<Answer>) {
        for ((_, done), result) in jobs.into_iter().zip(results) {
            match &result {
                Err(error) => self.had_no_room(error),
                Ok(retained) if !retained.is_empty() => {
                    self.count_failures(&no_room(FailureKind::DeadLettersFull), retained.len());
                }
                Ok(_) => {}
            }
            // The asker may be gone. What was kept is kept.
            let _ = done.send(result);
        }
    }

    /// Writes jobs in one transaction. The error is that of the transaction; the answers are those of the single jobs.
    fn attempt(&mut self, jobs: &[&Work]) -> Result<Vec<Answer>, StoreError> {
        self.trusted()?;
        for work in jobs {
            if let Work::Repair(generation, error) = work
                && *generation == self.shared.generation.load(Ordering::Acquire)
            {
                return Err(error.clone());
            }
        }
        let bounds = self.shared.bounds();
        self.open()?;
        let Some(database) = &mut self.database else { return Err(closed()) };
        let new: u64 = jobs.iter().map(|work| work.new_bytes()).sum();
        if new > 0 {
            self.room.limit(database, &self.shared, new)?;
        } else {
            self.room.lift(database)?;
        }
        let mut pending = Pending { totals: self.totals, lanes: Changes::default() };
        let writing = database.begin()?;
        let mut answers = Vec::with_capacity(jobs.len());
        for work in jobs {
            answers.push(job::apply(work, &writing, &mut pending, &bounds)?);
        }
        if let Err(error) = writing.commit() {
            // It may have been written all the same. Only a new connection can tell.
            self.database = None;
            return Err(error);
        }
        let oldest = database.oldest();
        let Pending { mut totals, lanes } = pending;
        totals.oldest = oldest.clone().unwrap_or(totals.oldest);
        if totals.bytes < self.totals.bytes {
            self.shared.is_full.store(false, Ordering::Relaxed);
        }
        self.shared.lanes.change(&lanes);
        self.publish(totals);
        self.succeeded();
        match oldest {
            Ok(_) => self.checkpoint(),
            // What was committed stays committed.
            Err(error) => self.failed(&error, 0),
        }
        Ok(answers)
    }

    /// Whether the file may be written: it need not be copied first, and no command of another process has found a failed
    /// fsync.
    fn trusted(&self) -> Result<(), StoreError> {
        if let State::Untrusted { error, .. } = &self.state {
            return Err(error.clone());
        }
        if files::is_unsynced(&self.shared.folder) {
            return Err(StoreError::new(FailureKind::SyncFailed, "an fsync of the database failed"));
        }
        Ok(())
    }

    /// Moves the log into the database when it is long enough. What was committed is durable even if this fails.
    fn checkpoint(&mut self) {
        let Some(database) = &self.database else { return };
        let moved = database.log().and_then(|log| {
            let is_due = log.total.saturating_sub(log.moved) * u64::from(PAGE_BYTES) >= self.room.log_bytes;
            if is_due { database.checkpoint().map(drop) } else { Ok(()) }
        });
        match moved {
            Ok(()) => {}
            // The log stays and grows until there is room.
            Err(error) if error.kind == FailureKind::DiskFull => {
                tracing::debug!(%error, "the log of the spool cannot be moved into the database");
            }
            Err(error) => {
                self.failed(&error, 0);
                self.copy_if_due();
            }
        }
    }

    /// Moves the log into the database, however short it is. Returns false if a reader needs a part of it, or if it fails.
    fn empty_log(&mut self) -> bool {
        if self.open().is_err() {
            return false;
        }
        let moved = self.database.as_ref().map(Database::checkpoint);
        moved.is_some_and(|moved| moved.is_ok_and(|log| log.total > 0 && log.moved == log.total))
    }

    /// Opens the database if it is closed, and counts what is in it.
    fn open(&mut self) -> Result<(), StoreError> {
        if self.database.is_some() {
            return Ok(());
        }
        let database = recover::open_synced(&self.shared.folder)?;
        database.limit_log(2 * self.room.log_bytes)?;
        self.room.is_limited = false;
        let (mut totals, backlogs) = Totals::of(&database)?;
        // A position is never used twice, because a reader may remember it.
        totals.next_seq = totals.next_seq.max(self.totals.next_seq);
        self.database = Some(database);
        self.inode = inode(&self.shared.folder.join(FILE));
        self.shared.lanes.set(&backlogs);
        self.publish(totals);
        Ok(())
    }

    /// Copies a database that is not trusted into a new file and opens the copy, if the next try is due.
    fn copy_if_due(&mut self) {
        let State::Untrusted { cause, next_try, pause, .. } = &self.state else { return };
        if Instant::now() < *next_try {
            return;
        }
        let (cause, pause) = (cause.clone(), *pause);
        self.database = None;
        let shared = self.shared.clone();
        let swapping = shared.swapping.write().unwrap_or_else(PoisonError::into_inner);
        let copied = recover::rebuild(&shared.folder, &cause, self.totals.records);
        shared.generation.fetch_add(1, Ordering::AcqRel);
        let opened = copied.and_then(|_| self.open());
        drop(swapping);
        match opened {
            Ok(()) => {
                self.copied = Some((Instant::now(), pause));
                self.succeeded();
            }
            Err(error) => {
                self.failed(&error, 0);
                let next_try = Instant::now() + pause;
                self.state = State::Untrusted { cause, error, next_try, pause: (pause * 2).min(COPY_PAUSE.1) };
            }
        }
    }

    /// Replaces the totals, and updates the metrics.
    fn publish(&mut self, totals: Totals) {
        let metrics = &self.shared.metrics;
        set(&metrics.spool_events, totals.records);
        set(&metrics.spool_bytes, totals.bytes);
        set(&metrics.dead_letters_stored, totals.dead_letters);
        set(&metrics.dead_letters_stored_bytes, totals.dead_letter_bytes);
        self.shared.oldest.store(totals.oldest.unwrap_or(NONE), Ordering::Relaxed);
        self.totals = totals;
    }

    fn succeeded(&mut self) {
        self.shared.is_writable.store(true, Ordering::Relaxed);
        if !matches!(std::mem::replace(&mut self.state, State::Writable), State::Writable) {
            self.throttle.reset();
            tracing::info!(path = %self.shared.folder.display(), "the spool can be written again");
        }
    }

    /// Handles the failure of a whole transaction.
    fn failed(&mut self, error: &StoreError, jobs: usize) {
        self.count_failures(error, jobs.max(1));
        if self.throttle.is_due(error.kind.as_str()) {
            tracing::error!(
                path = %self.shared.folder.display(),
                reason = error.kind.as_str(),
                %error,
                "the spool cannot be written; events are published directly, or refused if that fails too"
            );
        }
        // If the database has no room, the connection is still good, and records can be removed.
        if error.kind == FailureKind::DiskFull && self.database.is_some() {
            self.shared.is_full.store(true, Ordering::Relaxed);
            return;
        }
        self.shared.is_writable.store(false, Ordering::Relaxed);
        self.database = None;
        if matches!(self.state, State::Untrusted { .. }) {
            return;
        }
        let (wait, pause) = match self.copied {
            Some((at, pause)) if at.elapsed() < SAME_FAILURE => (pause, (pause * 2).min(COPY_PAUSE.1)),
            _ => (Duration::ZERO, COPY_PAUSE.0),
        };
        let untrusted =
            |cause| State::Untrusted { cause, error: error.clone(), next_try: Instant::now() + wait, pause };
        self.state = match error.kind {
            FailureKind::SyncFailed => untrusted(Cause::SyncFailed),
            FailureKind::Damaged => untrusted(Cause::Damaged(error.clone())),
            _ => State::Failing(error.clone()),
        };
    }

    fn count_failures(&self, error: &StoreError, jobs: usize) {
        self.shared.metrics.spool_failures_total.with_label_values(&[error.kind.as_str()]).inc_by(jobs as u64);
    }

    /// Counts and logs a job that had no room.
    fn had_no_room(&self, error: &StoreError) {
        self.count_failures(error, 1);
        if error.kind == FailureKind::SpoolFull {
            self.shared.is_full.store(true, Ordering::Relaxed);
        }
        if self.throttle.is_due(error.kind.as_str()) {
            tracing::error!(reason = error.kind.as_str(), "{error}");
        }
    }
}

fn works(jobs: &Jobs) -> Vec<&Work> {
    jobs.iter().map(|(work, _)| work).collect()
}

fn refuse(jobs: Jobs, error: &StoreError) {
    for (_, done) in jobs {
        let _ = done.send(Err(error.clone()));
    }
}
