//! What is kept on the disk: the spool, records that a bus has yet to take, and the dead letters.
//!
//! One thread writes. It takes what has gathered while its last transaction was on its way to the disk into the next
//! one, so that many callbacks share one fsync; each waits until its own is durable. Readers have connections of
//! their own. Both kinds of rows are bounded in bytes. A failure is told to whoever waits and never panics; while
//! there is one, the thread tries every second whether it is over. A database that turns out to be damaged is set
//! aside, and what can be read of it is taken over into a new one.
//!
//! A folder belongs to one bridge, by a lock that ends with the process.

pub mod database;
mod recover;
mod wal;

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use time::OffsetDateTime;
use tokio::sync::{Notify, oneshot};

use crate::telemetry::Seldom;
use crate::telemetry::metrics::Metrics;
use database::{
    Access, Backlog, Database, FILE, FailureKind, Letter, LetterKept, NewLetter, SpoolRecord, Spooled, StoreError,
    Writing,
};

/// Name of the file whose lock says that a bridge has the folder.
const LOCK: &str = "lock";

/// How often the writer looks whether a failure is over, and whether a command asked for a replay.
const TICK: Duration = Duration::from_secs(1);

/// How long the database is checked at the start; what is not reached by then is checked when it is read.
const CHECK_AT_START: Duration = Duration::from_secs(1);

/// Most jobs of one transaction: what waits longer gains nothing more from sharing an fsync.
const MAX_JOBS: usize = 1024;

/// How often a failure that lasts is told again.
const REMIND: Duration = Duration::from_secs(60);

/// Where the store lies, and its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// The folder.
    pub path: PathBuf,
    /// Bound of the spool, in bytes of what its records hold.
    pub spool_max_bytes: u64,
    /// Bound of the dead letters, likewise.
    pub dead_letters_max_bytes: u64,
}

/// The present time in Unix milliseconds.
pub fn now() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// A dead letter that a record became, and the record that publishes it.
pub type BecameLetter = (NewLetter, Option<SpoolRecord>);

/// A record that was published, or became a dead letter, and leaves the spool.
#[derive(Clone, Debug)]
pub struct Settled {
    pub seq: i64,
    pub letter: Option<BecameLetter>,
}

/// Places of records that stay in the spool, for their dead letters found no room.
type Stayed = Vec<i64>;

/// Something to write.
#[derive(Debug)]
enum Work {
    /// All of it or nothing.
    Keep(Vec<SpoolRecord>, Vec<NewLetter>),
    /// Each on its own: a record whose dead letter has no room stays.
    Settle(Vec<Settled>),
    /// Replays that ended: without an error the letter is taken out.
    EndReplays(Vec<(i64, Option<String>)>),
    /// A reader met damage in the database of a generation.
    Mend(u64, StoreError),
}

#[derive(Debug)]
enum Job {
    Work(Work, oneshot::Sender<Result<Stayed, StoreError>>),
    Stop,
}

/// The spool of one output.
#[derive(Debug, Default)]
pub struct Lane {
    /// Records on the disk.
    spooled: AtomicU64,
    /// Records on their way there.
    coming: AtomicU64,
    /// Rings when there are more records on the disk.
    pub filled: Notify,
}

impl Lane {
    /// Whether records of the output lie in the spool or are on their way there: later ones queue up behind them.
    pub fn has_backlog(&self) -> bool {
        self.spooled() > 0 || self.coming.load(Ordering::Acquire) > 0
    }

    /// Records on the disk.
    pub fn spooled(&self) -> u64 {
        self.spooled.load(Ordering::Acquire)
    }
}

/// What writer, readers and askers share.
#[derive(Debug)]
struct Shared {
    settings: StoreSettings,
    metrics: Metrics,
    lanes: Mutex<FxHashMap<String, Arc<Lane>>>,
    /// Counts databases: another one when a damaged one was replaced.
    generation: AtomicU64,
    /// Whether the last write went well.
    is_well: AtomicBool,
    /// Whether a record was turned away for want of room, and none has left since.
    is_full: AtomicBool,
    /// When the oldest record was spooled; [`NONE`] without any.
    oldest: AtomicI64,
    /// Rings when a command has asked for replays.
    replays: Notify,
}

const NONE: i64 = i64::MAX;

impl Shared {
    fn lane(&self, output: &str) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        match lanes.get(output) {
            Some(lane) => lane.clone(),
            None => lanes.entry(output.to_owned()).or_default().clone(),
        }
    }
}

/// The store of a running bridge. Dropped without [`Store::close`], it loses nothing that it said was kept.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens the store of a folder, which is made where it is missing, and takes the folder's lock. A damaged
    /// database is set aside. Blocks for as long as that takes.
    ///
    /// # Errors
    /// A sentence: the folder can't be used, belongs to another bridge that runs, or holds a newer database.
    pub fn open(settings: StoreSettings, metrics: &Metrics) -> Result<Store, String> {
        let folder = settings.path.clone();
        let shown = folder.display();
        std::fs::create_dir_all(&folder).map_err(|error| {
            format!("{shown} can't be made: {error}; name a folder that can be written, or set spool.enabled = false")
        })?;
        let lock = lock(&folder)?;
        let start = Instant::now();
        let checked = recover::check_log(&folder)
            .and_then(|()| Database::open(&folder, Access::Own))
            .and_then(|mut database| database.verify(Some(CHECK_AT_START)).map(|verified| (database, verified)));
        let (database, verified) = match checked {
            Ok(sound) => sound,
            Err(error) if error.kind == FailureKind::Damaged => {
                let mut database = recover::set_aside(&folder, &error).map_err(|error| error.to_string())?;
                let verified = database.verify(Some(CHECK_AT_START)).map_err(|error| error.to_string())?;
                (database, verified)
            }
            Err(error) if error.kind == FailureKind::Foreign => return Err(error.to_string()),
            Err(error) => return Err(format!("{shown} can't be used: {error}")),
        };
        let unusable = |error: StoreError| format!("{shown} can't be used: {error}");
        let totals = Totals::of(&database).map_err(unusable)?;
        tracing::info!(
            path = %shown,
            records = totals.records(),
            dead_letters = totals.letters,
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
        for kind in FailureKind::ALL {
            metrics.spool_failures_total.with_label_values(&[kind.as_str()]);
        }
        set(&metrics.spool_max_bytes, settings.spool_max_bytes);
        set(&metrics.dead_letters_max_bytes, settings.dead_letters_max_bytes);
        let shared = Arc::new(Shared {
            settings,
            metrics: metrics.clone(),
            lanes: Mutex::default(),
            generation: AtomicU64::new(0),
            is_well: AtomicBool::new(true),
            is_full: AtomicBool::new(false),
            oldest: AtomicI64::new(NONE),
            replays: Notify::new(),
        });
        let (jobs, incoming) = channel();
        let mut writer = Writer {
            shared: shared.clone(),
            incoming,
            database: Some(database),
            totals: Totals::default(),
            data_version: 0,
            said: Seldom::every(REMIND),
            _lock: lock,
        };
        writer.publish(totals);
        let writer = std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| format!("no thread for the spool: {error}"))?;
        Ok(Store { shared, jobs, writer: Mutex::new(Some(writer)) })
    }

    /// The spool of an output.
    pub fn lane(&self, output: &str) -> Arc<Lane> {
        self.shared.lane(output)
    }

    /// Outputs that records lie in the spool for, and how many.
    pub fn backlogs(&self) -> Vec<(String, u64)> {
        let lanes = self.shared.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let spooled = lanes.iter().map(|(output, lane)| (output.clone(), lane.spooled()));
        spooled.filter(|(_, records)| *records > 0).collect()
    }

    /// Whether a record would be taken now, as far as is known.
    pub fn has_room(&self) -> bool {
        self.shared.is_well.load(Ordering::Relaxed) && !self.shared.is_full.load(Ordering::Relaxed)
    }

    /// Keeps records and dead letters: all of them, durably, when this returns, or none. Not to be cancelled by
    /// whoever answers a sender: a future that is dropped may have kept them all the same.
    pub async fn keep(&self, records: Vec<SpoolRecord>, letters: Vec<NewLetter>) -> Result<(), StoreError> {
        let lanes: Vec<Arc<Lane>> = records.iter().map(|record| self.lane(&record.output)).collect();
        for lane in &lanes {
            lane.coming.fetch_add(1, Ordering::AcqRel);
        }
        let _coming = Coming(lanes);
        self.work(Work::Keep(records, letters)).await.map(|_| ())
    }

    /// Takes records out of the spool that were published or became dead letters. Returns the places of those that
    /// stay, for their dead letters had no room.
    pub async fn settle(&self, settled: Vec<Settled>) -> Result<Stayed, StoreError> {
        self.work(Work::Settle(settled)).await
    }

    /// Notes how replays ended.
    pub async fn end_replays(&self, ended: Vec<(i64, Option<String>)>) -> Result<(), StoreError> {
        self.work(Work::EndReplays(ended)).await.map(|_| ())
    }

    async fn work(&self, work: Work) -> Result<Stayed, StoreError> {
        let gone = |()| {
            self.shared.is_well.store(false, Ordering::Relaxed);
            StoreError::new(FailureKind::Io, "the spool is closed")
        };
        let (done, answer) = oneshot::channel();
        self.jobs.send(Job::Work(work, done)).map_err(|_| gone(()))?;
        answer.await.unwrap_or_else(|_| Err(gone(())))
    }

    /// A reader of the spool and the dead letters.
    pub fn reader(&self) -> Reader {
        Reader { shared: self.shared.clone(), jobs: self.jobs.clone(), open: None }
    }

    /// Waits until a command has asked for replays.
    pub async fn replays_wanted(&self) {
        self.shared.replays.notified().await;
    }

    /// Brings the metrics that change with time up to date.
    pub fn observe(&self) {
        let oldest = self.shared.oldest.load(Ordering::Relaxed);
        let age = if oldest == NONE { 0 } else { now().saturating_sub(oldest).max(0) };
        self.shared.metrics.spool_oldest_seconds.set(Duration::from_millis(age.unsigned_abs()).as_secs_f64());
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

/// Counts records as on their way until it is dropped.
struct Coming(Vec<Arc<Lane>>);

impl Drop for Coming {
    fn drop(&mut self) {
        for lane in &self.0 {
            lane.coming.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Takes the lock of a folder: held by the file for as long as that is open, and let go by the system when the
/// process ends in whatever way.
fn lock(folder: &Path) -> Result<File, String> {
    let path = folder.join(LOCK);
    let usable = |error: std::io::Error| format!("{} can't be used: {error}", path.display());
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(usable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = file.read_to_string(&mut owner);
            let owner = owner.trim();
            let owner = if owner.is_empty() { String::new() } else { format!(" ({owner})") };
            return Err(format!("{} belongs to another bridge that is running{owner}", folder.display()));
        }
        Err(TryLockError::Error(error)) => return Err(usable(error)),
    }
    file.set_len(0).map_err(usable)?;
    // The name of the process is for people; the lock is what counts.
    let _ = writeln!(file, "process {}", std::process::id());
    Ok(file)
}

/// Whether a bridge that runs has the folder.
pub fn is_running(folder: &Path) -> bool {
    File::options()
        .read(true)
        .open(folder.join(LOCK))
        .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Reads beside the writer. Blocks.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    open: Option<(u64, Database)>,
}

impl Reader {
    /// The next records of an output; see [`Database::read`].
    pub fn read(
        &mut self,
        output: &str,
        after: i64,
        records: usize,
        bytes: u64,
    ) -> Result<Vec<Spooled>, StoreError> {
        self.with(|database| database.read(output, after, records, bytes))
    }

    /// The dead letters to replay; see [`Database::letters_to_replay`].
    pub fn letters_to_replay(&mut self, after: i64, limit: usize) -> Result<Vec<Letter>, StoreError> {
        self.with(|database| database.letters_to_replay(after, limit))
    }

    fn with<T>(&mut self, read: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let generation = self.shared.generation.load(Ordering::Acquire);
        let result = match self.open.take().filter(|(opened, _)| *opened == generation) {
            Some((_, database)) => Ok(database),
            None => Database::open(&self.shared.settings.path, Access::Read),
        }
        .and_then(|database| {
            let found = read(&database)?;
            self.open = Some((generation, database));
            Ok(found)
        });
        if let Err(error) = &result
            && error.kind == FailureKind::Damaged
        {
            let (done, _) = oneshot::channel();
            let _ = self.jobs.send(Job::Work(Work::Mend(generation, error.clone()), done));
        }
        result
    }
}

/// What lies in the store. Kept beside the rows, for counting a million of them takes long.
#[derive(Clone, Debug, Default)]
struct Totals {
    by_output: FxHashMap<String, u64>,
    bytes: u64,
    oldest: Option<i64>,
    letters: u64,
    letter_bytes: u64,
    next_seq: i64,
}

impl Totals {
    fn of(database: &Database) -> Result<Totals, StoreError> {
        let backlogs: Vec<Backlog> = database.backlogs()?;
        let (letters, letter_bytes) = database.letter_totals()?;
        Ok(Totals {
            bytes: backlogs.iter().map(|backlog| backlog.bytes).sum(),
            by_output: backlogs.into_iter().map(|backlog| (backlog.output, backlog.records)).collect(),
            oldest: database.oldest()?,
            letters,
            letter_bytes,
            next_seq: database.last_seq()? + 1,
        })
    }

    fn records(&self) -> u64 {
        self.by_output.values().sum()
    }
}

fn set(gauge: &prometheus::IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// The thread that writes.
struct Writer {
    shared: Arc<Shared>,
    incoming: Receiver<Job>,
    /// None while it can't be opened.
    database: Option<Database>,
    totals: Totals,
    data_version: i64,
    said: Seldom,
    /// Let go when the thread ends, not before.
    _lock: File,
}

type Answers = Vec<(Work, oneshot::Sender<Result<Stayed, StoreError>>)>;

impl Writer {
    fn run(mut self) {
        let mut ticked = Instant::now();
        // What a command asked for while nothing ran.
        self.shared.replays.notify_one();
        loop {
            let mut jobs: Answers = Vec::new();
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
                self.write(jobs);
            }
            if is_over {
                return;
            }
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.tick();
            }
        }
    }

    /// Writes jobs in one transaction and answers them.
    fn write(&mut self, jobs: Answers) {
        let start = Instant::now();
        let mut results = self.attempt(&jobs);
        if let Err(error) = &results
            && error.kind == FailureKind::Damaged
        {
            let error = error.clone();
            results = self.recover(&error).and_then(|()| self.attempt(&jobs));
        }
        self.shared.metrics.spool_write_duration_seconds.observe(start.elapsed().as_secs_f64());
        match results {
            Ok(results) => {
                self.worked();
                for ((_, done), result) in jobs.into_iter().zip(results) {
                    if let Err(error) = &result {
                        self.turned_away(error);
                    }
                    // Whoever asked may have gone; what was kept is kept.
                    let _ = done.send(result);
                }
            }
            Err(error) => {
                self.failed(&error, jobs.len());
                for (_, done) in jobs {
                    let _ = done.send(Err(error.clone()));
                }
            }
        }
    }

    /// One transaction. The outer error is that of the transaction, the inner ones are those of single jobs.
    fn attempt(&mut self, jobs: &Answers) -> Result<Vec<Result<Stayed, StoreError>>, StoreError> {
        for (work, _) in jobs {
            if let Work::Mend(generation, error) = work
                && *generation == self.shared.generation.load(Ordering::Acquire)
            {
                return Err(error.clone());
            }
        }
        let (spool, letters) = (self.shared.settings.spool_max_bytes, self.shared.settings.dead_letters_max_bytes);
        let mut totals = self.totals.clone();
        let database = self.database()?;
        let writing = database.begin()?;
        let mut results = Vec::with_capacity(jobs.len());
        for (work, _) in jobs {
            results.push(match work {
                Work::Keep(records, new) => keep(&writing, &mut totals, records, new, (spool, letters))?,
                Work::Settle(settled) => Ok(settle(&writing, &mut totals, settled, letters)?),
                Work::EndReplays(ended) => Ok(end_replays(&writing, &mut totals, ended)?),
                Work::Mend(..) => Ok(Stayed::new()),
            });
        }
        writing.commit()?;
        totals.oldest = database.oldest()?;
        if totals.bytes < self.totals.bytes {
            self.shared.is_full.store(false, Ordering::Relaxed);
        }
        self.publish(totals);
        Ok(results)
    }

    fn database(&mut self) -> Result<&mut Database, StoreError> {
        match &mut self.database {
            Some(database) => Ok(database),
            closed => Ok(closed.insert(Database::open(&self.shared.settings.path, Access::Own)?)),
        }
    }

    /// Makes totals those that everybody sees.
    fn publish(&mut self, totals: Totals) {
        let metrics = &self.shared.metrics;
        set(&metrics.spool_events, totals.records());
        set(&metrics.spool_bytes, totals.bytes);
        set(&metrics.dead_letters_stored, totals.letters);
        set(&metrics.dead_letters_stored_bytes, totals.letter_bytes);
        self.shared.oldest.store(totals.oldest.unwrap_or(NONE), Ordering::Relaxed);
        for (output, records) in &totals.by_output {
            let lane = self.shared.lane(output);
            if lane.spooled.swap(*records, Ordering::AcqRel) < *records {
                lane.filled.notify_one();
            }
        }
        self.totals = totals;
    }

    fn worked(&mut self) {
        if !self.shared.is_well.swap(true, Ordering::Relaxed) {
            self.said.reset();
            tracing::info!(path = %self.shared.settings.path.display(), "the spool can be written again");
        }
    }

    /// The whole transaction failed.
    fn failed(&mut self, error: &StoreError, jobs: usize) {
        self.shared.is_well.store(false, Ordering::Relaxed);
        let failures = self.shared.metrics.spool_failures_total.with_label_values(&[error.kind.as_str()]);
        failures.inc_by(jobs.max(1) as u64);
        if self.said.is_due(error.kind.as_str()) {
            tracing::error!(
                path = %self.shared.settings.path.display(),
                reason = error.kind.as_str(),
                %error,
                "the spool can't be written; what a bus doesn't take is refused until it can"
            );
        }
        if !matches!(error.kind, FailureKind::DiskFull) {
            // A connection that met a failing disk may remember what isn't there: a new one looks for itself.
            self.database = None;
        }
    }

    /// A job found no room.
    fn turned_away(&self, error: &StoreError) {
        self.shared.metrics.spool_failures_total.with_label_values(&[error.kind.as_str()]).inc();
        if error.kind == FailureKind::SpoolFull {
            self.shared.is_full.store(true, Ordering::Relaxed);
        }
        if self.said.is_due(error.kind.as_str()) {
            tracing::error!(reason = error.kind.as_str(), "{error}");
        }
    }

    fn recover(&mut self, error: &StoreError) -> Result<(), StoreError> {
        self.database = None;
        let folder = &self.shared.settings.path;
        self.shared.metrics.spool_failures_total.with_label_values(&[FailureKind::Damaged.as_str()]).inc();
        let database = recover::set_aside(folder, error)?;
        let mut totals = Totals::of(&database)?;
        // An output that has nothing left has no row to say so.
        for output in self.totals.by_output.keys() {
            totals.by_output.entry(output.clone()).or_insert(0);
        }
        self.database = Some(database);
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        self.publish(totals);
        Ok(())
    }

    /// Looks whether a failure is over, and what other processes have changed.
    fn tick(&mut self) {
        let result = if self.shared.is_well.load(Ordering::Relaxed) {
            self.look()
        } else {
            let touched = self.database().and_then(|database| {
                let writing = database.begin()?;
                writing.touch()?;
                writing.commit()
            });
            touched.inspect(|()| self.worked()).and_then(|()| self.look())
        };
        if let Err(error) = result {
            if error.kind == FailureKind::Damaged && self.recover(&error).is_ok() {
                return;
            }
            self.failed(&error, 0);
        }
    }

    fn look(&mut self) -> Result<(), StoreError> {
        let version = self.database()?.data_version()?;
        if version == self.data_version {
            return Ok(());
        }
        self.data_version = version;
        let (letters, letter_bytes) = self.database()?.letter_totals()?;
        let totals = Totals { letters, letter_bytes, ..self.totals.clone() };
        self.publish(totals);
        self.shared.replays.notify_one();
        Ok(())
    }
}

/// Keeps all or nothing of a job; the inner error says that there is no room.
fn keep(
    writing: &Writing<'_>,
    totals: &mut Totals,
    records: &[SpoolRecord],
    letters: &[NewLetter],
    (spool_max, letters_max): (u64, u64),
) -> Result<Result<Stayed, StoreError>, StoreError> {
    let bytes: u64 = records.iter().map(SpoolRecord::bytes).sum();
    if totals.bytes + bytes > spool_max && !records.is_empty() {
        return Ok(Err(no_room(FailureKind::SpoolFull)));
    }
    let mut after = totals.clone();
    // Of several letters the second may find no room: those before it are taken back.
    let mut undo = Vec::new();
    for letter in letters {
        match writing.keep(letter, letters_max.saturating_sub(after.letter_bytes))? {
            LetterKept::New(id) => {
                after.letters += 1;
                after.letter_bytes += letter.bytes();
                undo.push(id);
            }
            LetterKept::Again => {}
            LetterKept::NoRoom => {
                for id in undo {
                    writing.remove_letter(id)?;
                }
                return Ok(Err(no_room(FailureKind::DeadLettersFull)));
            }
        }
    }
    *totals = after;
    append(writing, totals, records)?;
    Ok(Ok(Stayed::new()))
}

fn no_room(kind: FailureKind) -> StoreError {
    let message = match kind {
        FailureKind::DeadLettersFull => {
            "the dead letters are full (dead_letters.max_bytes): replay or delete some; what can't be published is refused"
        }
        _ => "the spool is full (spool.max_bytes): events are refused until a bus takes some of it",
    };
    StoreError::new(kind, message)
}

fn append(writing: &Writing<'_>, totals: &mut Totals, records: &[SpoolRecord]) -> Result<(), StoreError> {
    for record in records {
        writing.append(totals.next_seq, record)?;
        totals.next_seq += 1;
        totals.bytes += record.bytes();
        match totals.by_output.get_mut(&record.output) {
            Some(count) => *count += 1,
            None => drop(totals.by_output.insert(record.output.clone(), 1)),
        }
    }
    Ok(())
}

fn settle(
    writing: &Writing<'_>,
    totals: &mut Totals,
    settled: &[Settled],
    letters_max: u64,
) -> Result<Stayed, StoreError> {
    let mut stayed = Stayed::new();
    for Settled { seq, letter } in settled {
        if let Some((letter, published)) = letter {
            match writing.keep(letter, letters_max.saturating_sub(totals.letter_bytes))? {
                LetterKept::New(_) => {
                    totals.letters += 1;
                    totals.letter_bytes += letter.bytes();
                }
                LetterKept::Again => {}
                LetterKept::NoRoom => {
                    stayed.push(*seq);
                    continue;
                }
            }
            // Its place is taken by the record that leaves, so that no bound is asked.
            append(writing, totals, published.as_slice())?;
        }
        if let Some((output, bytes)) = writing.remove(*seq)? {
            totals.bytes = totals.bytes.saturating_sub(bytes);
            if let Some(count) = totals.by_output.get_mut(&output) {
                *count = count.saturating_sub(1);
            }
        }
    }
    Ok(stayed)
}

fn end_replays(
    writing: &Writing<'_>,
    totals: &mut Totals,
    ended: &[(i64, Option<String>)],
) -> Result<Stayed, StoreError> {
    for (id, error) in ended {
        match error {
            Some(error) => writing.replay_failed(*id, error)?,
            None => {
                if let Some(bytes) = writing.remove_letter(*id)? {
                    totals.letters = totals.letters.saturating_sub(1);
                    totals.letter_bytes = totals.letter_bytes.saturating_sub(bytes);
                }
            }
        }
    }
    Ok(Stayed::new())
}

/// Where a database is: for the commands.
pub fn file(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path) -> Store {
        let settings =
            StoreSettings { path: folder.to_owned(), spool_max_bytes: 1 << 20, dead_letters_max_bytes: 1 << 20 };
        Store::open(settings, &Metrics::new()).expect("it opens")
    }

    fn record(output: &str, topic: &str, spooled_at: i64) -> SpoolRecord {
        SpoolRecord {
            output: output.to_owned(),
            route: "all".to_owned(),
            topic: topic.to_owned(),
            key: None,
            mode: Some(crate::event::Mode::Binary),
            attempts: 1,
            spooled_at,
            envelope: "{}".into(),
            body: "{}".into(),
        }
    }

    fn topics(store: &Store, output: &str) -> Vec<String> {
        let read = store.reader().read(output, 0, 100, 1 << 20).expect("readable");
        assert!(read.iter().all(|spooled| spooled.is_sound));
        read.into_iter().map(|spooled| spooled.record.topic).collect()
    }

    /// The order is that of coming, whatever the clock says, and an age is never below zero.
    #[tokio::test]
    async fn a_clock_that_steps_back_changes_no_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(folder.path());
        let hour = 3_600_000;
        for (topic, at) in [("first", now() + hour), ("second", now() - hour), ("third", now())] {
            store.keep(vec![record("kafka", topic, at)], Vec::new()).await.expect("kept");
        }
        assert_eq!(topics(&store, "kafka"), ["first", "second", "third"]);
        store.observe();
        assert_eq!(store.shared.metrics.spool_oldest_seconds.get(), 0.0);
        store.close().await;
        assert_eq!(topics(&open(folder.path()), "kafka"), ["first", "second", "third"]);
    }

    #[tokio::test]
    async fn places_are_not_given_twice_while_a_reader_remembers_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(folder.path());
        let mut last = 0;
        for round in 0..3 {
            store.keep(vec![record("kafka", &format!("round-{round}"), now())], Vec::new()).await.expect("kept");
            let read = store.reader().read("kafka", last, 10, 1 << 20).expect("readable");
            assert_eq!(read.len(), 1);
            last = read[0].seq;
            store.settle(vec![Settled { seq: last, letter: None }]).await.expect("settled");
            assert!(!store.lane("kafka").has_backlog());
        }
    }

    #[tokio::test]
    async fn all_of_a_job_is_kept_or_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(folder.path());
        let letter = |body: usize| NewLetter {
            reason: "unrouted".to_owned(),
            body: vec![b'x'; body].into(),
            ..NewLetter::default()
        };
        let kept = store.keep(vec![record("kafka", "a", now())], vec![letter(10), letter(2 << 20)]).await;
        assert_eq!(kept.expect_err("no room").kind, FailureKind::DeadLettersFull);
        assert!(topics(&store, "kafka").is_empty());
        assert_eq!(store.shared.metrics.dead_letters_stored.get(), 0);
        store.keep(vec![record("kafka", "a", now())], vec![letter(10)]).await.expect("kept");
        assert_eq!((topics(&store, "kafka").len(), store.shared.metrics.dead_letters_stored.get()), (1, 1));
    }
}
