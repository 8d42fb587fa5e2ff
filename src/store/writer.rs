//! The thread that writes.
//!
//! It takes the jobs that gathered while its last transaction was being synced into the next one, so that many
//! callbacks share one fsync; each waits until its own is durable. A failure is reported to whoever waits and never
//! panics. What follows depends on its kind:
//!
//! - No room: new records are refused, and records that leave the spool are removed in a transaction of their own,
//!   for which the reserve is given up if it must be.
//! - A failed fsync, or damage: nothing is written until the database was copied into a new file. That is tried at
//!   once, and again with growing pauses.
//! - Anything else: the database is opened again, and once a second it is tried whether it can be written.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::database::{Database, FILE, Kept, PAGE_BYTES, Writing, inode};
use super::error::{FailureKind, StoreError};
use super::lane::{Change, Changes};
use super::lock::FolderLock;
use super::record::{Backlog, DeadLetter, SpoolRecord};
use super::recover::{self, Cause};
use super::space::{Reserve, Volume};
use super::{NONE, Retained, Settled, Shared, now, set};
use crate::telemetry::LogThrottle;

/// How often the writer looks whether a failure is over, and whether a command requested a replay.
const TICK: Duration = Duration::from_secs(1);

/// Most jobs of one transaction: what waits longer gains nothing more from sharing an fsync.
const MAX_JOBS: usize = 1024;

/// How often a failure that lasts is logged again.
const REMIND: Duration = Duration::from_secs(60);

/// Pause between two tries to copy the database, from the first to the longest. A copy writes up to a gigabyte.
const COPY_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// How long after a copy a failure still counts as the same one, so that the pauses grow on.
const SAME_FAILURE: Duration = Duration::from_secs(60);

/// The log is moved into the database when it is this long, or half of the reserve on a small volume: a spool that is
/// drained on a full disk needs room for the log once more while it is moved.
const LOG_BYTES: u64 = 16 << 20;

/// Free space from which on the volume is measured once a second only.
const AMPLE: u64 = 256 << 20;

/// How many records are removed together on a full disk; fewer, if that is still too many.
const FULL_DISK_PIECE: usize = 64;

/// How often dead letters that are too old are looked for, and how many of them one transaction removes.
const EXPIRE: (Duration, usize) = (Duration::from_secs(10), 500);

/// Something to write.
#[derive(Debug)]
pub(super) enum Work {
    /// All of it or nothing.
    Keep(Vec<SpoolRecord>, Vec<DeadLetter>),
    /// Each on its own: a record whose dead letter has no room stays.
    Settle(Vec<Settled>),
    /// Replays that ended: without an error the dead letter is removed.
    EndReplays(Vec<(i64, Option<String>)>),
    /// A reader met damage in the database of a generation.
    Repair(u64, StoreError),
}

impl Work {
    /// Whether it may be refused: its sender still has the event.
    fn is_new(&self) -> bool {
        matches!(self, Work::Keep(..))
    }

    /// Bytes of what is new in it.
    fn new_bytes(&self) -> u64 {
        let Work::Keep(records, letters) = self else { return 0 };
        let records: u64 = records.iter().map(SpoolRecord::bytes).sum();
        records + letters.iter().map(DeadLetter::bytes).sum::<u64>()
    }
}

type Done = oneshot::Sender<Result<Retained, StoreError>>;

#[derive(Debug)]
pub(super) enum Job {
    Work(Work, Done),
    Stop,
}

type Jobs = Vec<(Work, Done)>;

/// What the store holds. Kept next to the rows, because counting a million of them takes long.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) records: u64,
    bytes: u64,
    oldest: Option<i64>,
    pub(super) dead_letters: u64,
    dead_letter_bytes: u64,
    next_seq: i64,
}

impl Totals {
    /// Counts all rows.
    pub(super) fn of(database: &Database) -> Result<(Totals, Vec<Backlog>), StoreError> {
        let backlogs: Vec<Backlog> = database.backlogs()?;
        let (dead_letters, dead_letter_bytes) = database.dead_letter_totals()?;
        let totals = Totals {
            records: backlogs.iter().map(|backlog| backlog.records).sum(),
            bytes: backlogs.iter().map(|backlog| backlog.bytes).sum(),
            oldest: database.oldest()?,
            dead_letters,
            dead_letter_bytes,
            next_seq: database.last_seq()?.saturating_add(1),
        };
        Ok((totals, backlogs))
    }
}

/// What the jobs of one transaction change.
struct Pending {
    totals: Totals,
    lanes: Changes,
}

impl Pending {
    fn added(&mut self, output: &str, topic: &str, bytes: u64) {
        self.totals.records += 1;
        self.totals.bytes += bytes;
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.lanes.add(output, topic, Change { added: 1, removed: 0, bytes });
    }

    fn removed(&mut self, output: &str, topic: &str, bytes: u64) {
        self.totals.records = self.totals.records.saturating_sub(1);
        self.totals.bytes = self.totals.bytes.saturating_sub(bytes);
        let bytes = -i64::try_from(bytes).unwrap_or(i64::MAX);
        self.lanes.add(output, topic, Change { added: 0, removed: 1, bytes });
    }
}

/// What the store can do.
#[derive(Debug)]
enum State {
    /// The last write succeeded.
    Well,
    /// The last write failed; it is tried again every second.
    Failing(StoreError),
    /// Nothing may be written before the database was copied into a new file.
    Untrusted { cause: Cause, error: StoreError, next_try: Instant, pause: Duration },
}

/// The thread's own.
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
    /// When the last look for dead letters that are too old found none.
    expired: Option<Instant>,
    /// Released when the thread ends, not before.
    _lock: FolderLock,
}

/// How much of the volume new records may take.
struct Room {
    reserve: Reserve,
    volume: Option<Volume>,
    measured: Option<Instant>,
    /// Bytes that may still be written before it is measured again.
    left: u64,
    is_limited: bool,
    log_bytes: u64,
}

impl Room {
    fn new(shared: &Shared) -> Room {
        let mut room = Room {
            reserve: Reserve::new(&shared.settings.path),
            volume: None,
            measured: None,
            left: 0,
            is_limited: false,
            log_bytes: LOG_BYTES,
        };
        room.look(shared);
        room
    }

    /// Measures the volume, and takes the reserve if there is room for it.
    fn look(&mut self, shared: &Shared) {
        self.measured = Some(Instant::now());
        self.volume = Volume::of(&shared.settings.path).ok();
        let Some(volume) = &self.volume else { return };
        self.log_bytes = LOG_BYTES.min(volume.reserve() / 2).max(u64::from(PAGE_BYTES) * 8);
        if let Err(error) = self.reserve.take(volume) {
            tracing::debug!(%error, "no room for the reserve of the spool");
        }
    }

    /// Bounds the growth of the database by what the volume can give without the log and the reserve.
    fn limit(&mut self, database: &Database, shared: &Shared, bytes: u64) -> Result<(), StoreError> {
        let is_recent = self.measured.is_some_and(|measured| measured.elapsed() < TICK);
        if is_recent && self.left >= AMPLE.saturating_add(bytes) {
            // Twice: the log and the database both take it.
            self.left = self.left.saturating_sub(bytes.saturating_mul(2));
            return Ok(());
        }
        self.look(shared);
        let Some(volume) = &self.volume else { return Ok(()) };
        let path = shared.settings.path.join(FILE);
        let size = |path| std::fs::metadata(path).map_or(0, |file| file.len());
        let log = size(path.with_file_name(format!("{FILE}-wal")));
        let pages = database.pages()?;
        let page = u64::from(PAGE_BYTES);
        // Pages that are in the log only take room in the database later.
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

    fn lift(&mut self, database: &Database) -> Result<(), StoreError> {
        if std::mem::take(&mut self.is_limited) { database.limit_pages(u64::MAX) } else { Ok(()) }
    }
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
        let shared_path = shared.settings.path.join(FILE);
        let mut writer = Writer {
            shared,
            incoming,
            database: None,
            state: State::Well,
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
        // What a command requested while nothing ran.
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
        if let (Some(database), State::Well) = (self.database, &self.state)
            && let Err(error) = database.close()
        {
            // What was stored is in the log.
            tracing::debug!(%error, "the log of the spool cannot be moved into the database");
        }
    }

    /// Writes jobs and answers them.
    fn write(&mut self, mut jobs: Jobs) {
        self.copy_if_due();
        // Nobody waits for them any more: they were refused, or published in another way.
        jobs.retain(|(work, done)| !(work.is_new() && done.is_closed()));
        let jobs = match &self.state {
            State::Well => jobs,
            State::Untrusted { error, .. } => {
                let error = error.clone();
                self.count_failures(&error, jobs.len());
                return refuse(jobs, &error);
            }
            // Whoever has a new event gets an answer at once; it is tried once a second whether it can be another one.
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
            // The connection is there, so that this was not the commit, and nothing of the jobs was written.
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

    /// Answers jobs that failed. Whether they were written may not be known, so that they are not tried again here.
    fn give_back(&mut self, jobs: Jobs, error: &StoreError) {
        self.failed(error, jobs.len());
        refuse(jobs, error);
        self.copy_if_due();
    }

    /// Removes records although the disk is full: in small pieces, and with the reserve, if it must be.
    fn write_on_full_disk(&mut self, jobs: Jobs) {
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

    fn settle_in_pieces(&mut self, mut settled: Vec<Settled>) -> Result<Retained, StoreError> {
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
                // What was removed so far may be asked for again.
                Err(error) => return Err(error),
            }
        }
        Ok(retained)
    }

    /// On a full disk the log is moved into the database, so that its room can be used again; then the reserve is given
    /// up.
    fn attempt_with_reserve(&mut self, work: &Work) -> Result<Retained, StoreError> {
        let is_full =
            |result: &Result<_, StoreError>| result.as_ref().is_err_and(|error| error.kind == FailureKind::DiskFull);
        let mut result = self.attempt(&[work]);
        if is_full(&result) && self.empty_log() {
            result = self.attempt(&[work]);
        }
        if is_full(&result) && self.room.reserve.give_up() {
            tracing::warn!("the disk is full; the reserve of the spool is given up to drain it");
            result = self.attempt(&[work]);
        }
        result.and_then(|results| results.into_iter().next().unwrap_or_else(|| Ok(Retained::new())))
    }

    fn answer(&mut self, jobs: Jobs, results: Vec<Result<Retained, StoreError>>) {
        for ((_, done), result) in jobs.into_iter().zip(results) {
            match &result {
                Err(error) => self.turned_away(error),
                Ok(retained) if !retained.is_empty() => {
                    self.count_failures(&no_room(FailureKind::DeadLettersFull), retained.len());
                }
                Ok(_) => {}
            }
            // Whoever asked may be gone; what was kept is kept.
            let _ = done.send(result);
        }
    }

    /// One transaction. The outer error is that of the transaction, the inner ones are those of single jobs.
    fn attempt(&mut self, jobs: &[&Work]) -> Result<Vec<Result<Retained, StoreError>>, StoreError> {
        self.trusted()?;
        for work in jobs {
            if let Work::Repair(generation, error) = work
                && *generation == self.shared.generation.load(Ordering::Acquire)
            {
                return Err(error.clone());
            }
        }
        let (spool, letters) = (self.shared.settings.spool_max_bytes, self.shared.settings.dead_letters_max_bytes);
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
        let mut results = Vec::with_capacity(jobs.len());
        for work in jobs {
            results.push(match work {
                Work::Keep(records, new) => keep(&writing, &mut pending, records, new, (spool, letters))?,
                Work::Settle(settled) => Ok(settle(&writing, &mut pending, settled, letters)?),
                Work::EndReplays(ended) => Ok(end_replays(&writing, &mut pending.totals, ended)?),
                Work::Repair(..) => Ok(Retained::new()),
            });
        }
        if let Err(error) = writing.commit() {
            // It may have been written all the same: only a new connection knows.
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
            // What was committed stays so.
            Err(error) => self.failed(&error, 0),
        }
        Ok(results)
    }

    /// Whether the file may be written: it need not be copied first, nor did another process, a command, meet a failed
    /// fsync.
    fn trusted(&self) -> Result<(), StoreError> {
        if let State::Untrusted { error, .. } = &self.state {
            return Err(error.clone());
        }
        if recover::is_unsynced(&self.shared.settings.path) {
            return Err(StoreError::new(FailureKind::SyncFailed, "an fsync of the database failed"));
        }
        Ok(())
    }

    /// Moves the log into the database when it is long enough. What was committed is durable whatever comes of it.
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

    /// Moves the log into the database, however short it is. False while a reader needs a part of it, or if that fails.
    fn empty_log(&mut self) -> bool {
        if self.open().is_err() {
            return false;
        }
        let moved = self.database.as_ref().map(Database::checkpoint);
        moved.is_some_and(|moved| moved.is_ok_and(|log| log.total > 0 && log.moved == log.total))
    }

    /// Opens the database where it is closed, and counts what is in it.
    fn open(&mut self) -> Result<(), StoreError> {
        if self.database.is_some() {
            return Ok(());
        }
        let database = recover::open_synced(&self.shared.settings.path)?;
        database.limit_log(2 * self.room.log_bytes)?;
        self.room.is_limited = false;
        let (mut totals, backlogs) = Totals::of(&database)?;
        // A position that was given is not given again: a reader may remember it.
        totals.next_seq = totals.next_seq.max(self.totals.next_seq);
        self.database = Some(database);
        self.inode = inode(&self.shared.settings.path.join(FILE));
        self.shared.lanes.set(&backlogs);
        self.publish(totals);
        Ok(())
    }

    /// Copies a database that is not trusted into a new file and opens that, if it is time to.
    fn copy_if_due(&mut self) {
        let State::Untrusted { cause, next_try, pause, .. } = &self.state else { return };
        if Instant::now() < *next_try {
            return;
        }
        let (cause, pause) = (cause.clone(), *pause);
        self.database = None;
        let shared = self.shared.clone();
        let swapping = shared.swapping.write().unwrap_or_else(PoisonError::into_inner);
        let copied = recover::rebuild(&shared.settings.path, &cause, self.totals.records);
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

    /// Makes totals those that everybody sees.
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
        self.shared.is_well.store(true, Ordering::Relaxed);
        if !matches!(std::mem::replace(&mut self.state, State::Well), State::Well) {
            self.throttle.reset();
            tracing::info!(path = %self.shared.settings.path.display(), "the spool can be written again");
        }
    }

    /// A whole transaction failed.
    fn failed(&mut self, error: &StoreError, jobs: usize) {
        self.count_failures(error, jobs.max(1));
        if self.throttle.is_due(error.kind.as_str()) {
            tracing::error!(
                path = %self.shared.settings.path.display(),
                reason = error.kind.as_str(),
                %error,
                "the spool cannot be written; events are published directly, and refused if that fails too"
            );
        }
        // Without room in the database its connection is still good, and records can be removed.
        if error.kind == FailureKind::DiskFull && self.database.is_some() {
            self.shared.is_full.store(true, Ordering::Relaxed);
            return;
        }
        self.shared.is_well.store(false, Ordering::Relaxed);
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

    /// A job found no room.
    fn turned_away(&self, error: &StoreError) {
        self.count_failures(error, 1);
        if error.kind == FailureKind::SpoolFull {
            self.shared.is_full.store(true, Ordering::Relaxed);
        }
        if self.throttle.is_due(error.kind.as_str()) {
            tracing::error!(reason = error.kind.as_str(), "{error}");
        }
    }

    /// Looks whether a failure is over, what other processes changed, and which dead letters are too old.
    fn tick(&mut self) {
        self.copy_if_due();
        let result = match &self.state {
            State::Untrusted { .. } => return,
            State::Well => self.trusted(),
            State::Failing(_) => self.trusted().and_then(|()| self.touch()),
        };
        if let Err(error) = result.and_then(|()| self.look()).and_then(|()| self.expire()) {
            self.failed(&error, 0);
            self.copy_if_due();
        }
    }

    /// Writes, to see whether that succeeds.
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

    fn look(&mut self) -> Result<(), StoreError> {
        let is_full = self.shared.is_full.load(Ordering::Relaxed);
        if is_full || !self.room.reserve.is_held() {
            self.room.look(&self.shared);
            let has_room = self.room.volume.is_some_and(|volume| volume.free > volume.reserve());
            if is_full && has_room && self.totals.bytes < self.shared.settings.spool_max_bytes {
                self.shared.is_full.store(false, Ordering::Relaxed);
            }
        }
        if inode(&self.shared.settings.path.join(FILE)) != self.inode {
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
        let Some(max_age) = self.shared.settings.dead_letters_max_age else { return Ok(()) };
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
            // There is time.
            Err(error) if error.kind == FailureKind::DiskFull => return Ok(()),
            expired => expired?,
        };
        if let Err(error) = writing.commit() {
            self.database = None;
            return Err(error);
        }
        // There may be more.
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

fn works(jobs: &Jobs) -> Vec<&Work> {
    jobs.iter().map(|(work, _)| work).collect()
}

fn refuse(jobs: Jobs, error: &StoreError) {
    for (_, done) in jobs {
        let _ = done.send(Err(error.clone()));
    }
}

pub(super) fn closed() -> StoreError {
    StoreError::new(FailureKind::Io, "the spool is closed")
}

/// Keeps all or nothing of a job; the inner error says that there is no room.
fn keep(
    writing: &Writing<'_>,
    pending: &mut Pending,
    records: &[SpoolRecord],
    letters: &[DeadLetter],
    (spool_max, letters_max): (u64, u64),
) -> Result<Result<Retained, StoreError>, StoreError> {
    let bytes: u64 = records.iter().map(SpoolRecord::bytes).sum();
    if pending.totals.bytes + bytes > spool_max && !records.is_empty() {
        return Ok(Err(no_room(FailureKind::SpoolFull)));
    }
    let mut after = pending.totals;
    // Of several dead letters the second may find no room: those before it are removed again.
    let mut undo = Vec::new();
    for letter in letters {
        match writing.keep(letter, letters_max.saturating_sub(after.dead_letter_bytes))? {
            Kept::New(id) => {
                after.dead_letters += 1;
                after.dead_letter_bytes += letter.bytes();
                undo.push(id);
            }
            Kept::Again => {}
            Kept::NoRoom => {
                for id in undo {
                    writing.remove_dead_letter(id)?;
                }
                return Ok(Err(no_room(FailureKind::DeadLettersFull)));
            }
        }
    }
    pending.totals = after;
    append(writing, pending, records)?;
    Ok(Ok(Retained::new()))
}

fn no_room(kind: FailureKind) -> StoreError {
    let message = match kind {
        FailureKind::DeadLettersFull => {
            "the dead letters are full (dead_letters.max_bytes): replay or delete some; until then such events are \
             stored in the spool"
        }
        _ => "the spool is full (spool.max_bytes): events are refused until some of it was published",
    };
    StoreError::new(kind, message)
}

fn append(writing: &Writing<'_>, pending: &mut Pending, records: &[SpoolRecord]) -> Result<(), StoreError> {
    for record in records {
        writing.append(pending.totals.next_seq, record)?;
        pending.totals.next_seq += 1;
        pending.added(&record.output, &record.topic, record.bytes());
    }
    Ok(())
}

fn settle(
    writing: &Writing<'_>,
    pending: &mut Pending,
    settled: &[Settled],
    letters_max: u64,
) -> Result<Retained, StoreError> {
    let mut retained = Retained::new();
    for Settled { seq, letter } in settled {
        // One that is gone was settled before, and its dead letter kept.
        if let Some(became) = letter.as_ref().filter(|_| writing.has(*seq).unwrap_or(true)) {
            let (letter, published) = &**became;
            match writing.keep(letter, letters_max.saturating_sub(pending.totals.dead_letter_bytes))? {
                Kept::New(_) => {
                    pending.totals.dead_letters += 1;
                    pending.totals.dead_letter_bytes += letter.bytes();
                }
                Kept::Again => {}
                Kept::NoRoom => {
                    retained.push(*seq);
                    continue;
                }
            }
            // The record that leaves makes room for it, so that no bound is asked.
            append(writing, pending, published.as_slice())?;
        }
        if let Some((output, topic, bytes)) = writing.remove(*seq)? {
            pending.removed(&output, &topic, bytes);
        }
    }
    Ok(retained)
}

fn end_replays(
    writing: &Writing<'_>,
    totals: &mut Totals,
    ended: &[(i64, Option<String>)],
) -> Result<Retained, StoreError> {
    for (id, error) in ended {
        match error {
            Some(error) => writing.replay_failed(*id, error)?,
            None => {
                if let Some(bytes) = writing.remove_dead_letter(*id)? {
                    totals.dead_letters = totals.dead_letters.saturating_sub(1);
                    totals.dead_letter_bytes = totals.dead_letter_bytes.saturating_sub(bytes);
                }
            }
        }
    }
    Ok(Retained::new())
}
