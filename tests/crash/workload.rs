//! What is done to the store, and how its content is read. All use of the store's API is in this file.
//!
//! The test starts itself again as a child process, with the recorder loaded, in one of the [`Role`]s. The child writes
//! marks about its requests to the store and the answers; see [`crate::check::Reported`].
//!
//! An event is a number, and its content follows from the number. So it can be checked whether an event is unchanged.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use apsara_bridge::event::Mode;
use apsara_bridge::store::database::{Access, Database};
use apsara_bridge::store::{
    DeadLetter, DeadLetterFilter, LockError, OpenError, Settled, SettledLetter, SpoolRecord, Store, StoreBounds,
    StoreSettings,
};
use apsara_bridge::telemetry::metrics::Metrics;
use bytes::Bytes;
use futures_util::future::join_all;
use rusqlite::{Connection, OpenFlags};

use crate::check::Found;
use crate::random::Random;
use crate::wait::try_eventually;

/// Name of the store's file, and the bytes of a page of it.
pub const FILE: &str = "spool.db";
const PAGE: u64 = 16 << 10;

/// How long a failed store may take to work again.
const WORKS_AGAIN: Duration = Duration::from_secs(20);

const OUTPUTS: [&str; 2] = ["kafka", "nats"];

/// The work of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// One of [`PHASES`] processes that use the same folder one after the other. The last one closes the store, the
    /// others end like after a kill.
    Full(usize),
    /// A little of everything, in one process. Failures are retried.
    Small,
    /// Opens the store, keeps one event and closes it. Failures are retried.
    Reopen,
}

/// How many processes the full workload takes.
pub const PHASES: usize = 4;

impl Role {
    pub fn parse(text: &str) -> Option<Role> {
        match text {
            "small" => Some(Role::Small),
            "reopen" => Some(Role::Reopen),
            text => text.strip_prefix("full").and_then(|phase| phase.parse().ok()).map(Role::Full),
        }
    }

    pub fn name(self) -> String {
        match self {
            Role::Full(phase) => format!("full{phase}"),
            Role::Small => "small".to_owned(),
            Role::Reopen => "reopen".to_owned(),
        }
    }
}

/// Random bytes from which contents are taken.
static POOL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::new(7);
    (0..1 << 17).flat_map(|_| random.next().to_le_bytes()).collect()
});

/// The bytes of an event, beginning with its number. `part` distinguishes envelope and body.
fn content(number: u64, part: u64, bytes: usize) -> Bytes {
    let mut content = format!("{number:020}").into_bytes();
    let from = Random::new(number * 2 + part).below(POOL.len() - bytes);
    content.extend_from_slice(&POOL[from..from + bytes]);
    content.into()
}

/// The event that the content claims to belong to.
fn number_of(content: &[u8]) -> Option<u64> {
    std::str::from_utf8(content.get(..20)?).ok()?.parse().ok()
}

/// Some events are dead letters from the start.
fn is_letter(number: u64) -> bool {
    number % 32 == 5
}

fn record(number: u64) -> SpoolRecord {
    let mut random = Random::new(number);
    let bytes = match random.below(20) {
        0..12 => 200 + random.below(2_000),
        12..19 => 2_000 + random.below(20_000),
        _ => 20_000 + random.below(180_000),
    };
    SpoolRecord {
        output: OUTPUTS[random.below(2)].to_owned(),
        route: "all".to_owned(),
        topic: format!("topic-{}", number % 7),
        key: random.permille(500).then(|| number.to_string()),
        mode: random.permille(500).then_some(Mode::Binary),
        attempts: random.below(4) as u32,
        spooled_at: number as i64,
        envelope: content(number, 0, bytes / 2),
        body: content(number, 1, bytes - bytes / 2),
    }
}

/// The dead letter of an event.
fn letter(number: u64) -> DeadLetter {
    let record = record(number);
    DeadLetter {
        reason: "rejected".to_owned(),
        code: format!("event {number}"),
        route: Some(record.route),
        output: Some(record.output),
        topic: Some(record.topic),
        key: record.key,
        envelope: Some(record.envelope),
        body: record.body,
        at: i64::MAX / 2,
        ..DeadLetter::default()
    }
}

fn open(folder: &Path) -> Result<Store, OpenError> {
    let settings = StoreSettings {
        path: folder.to_owned(),
        bounds: StoreBounds {
            spool_max_bytes: 1 << 30,
            lane_max_bytes: 1 << 30,
            dead_letters_max_bytes: 1 << 30,
            not_a_callback_max_bytes: 1 << 30,
            dead_letters_max_age: None,
        },
    };
    Store::open(settings, None, &Metrics::new().expect("a valid table"))
}

/// Opens the store of a folder and reads all of it.
pub fn inspect(folder: &Path) -> Result<Found, String> {
    let start = Instant::now();
    let store = open(folder).map_err(|error| format!("the store does not open: {error}"))?;
    let mut found = Found { opened_in: start.elapsed(), ..Found::default() };
    let read = read(&store, folder, &mut found);
    runtime().block_on(store.close());
    read.map(|()| found)
}

fn read(store: &Store, folder: &Path, found: &mut Found) -> Result<(), String> {
    let unreadable = |error| format!("the store cannot be read: {error}");
    let mut reader = store.reader();
    for output in OUTPUTS {
        let mut after = 0;
        loop {
            let some = reader.read(output, None, after, 100, 4 << 20).map_err(unreadable)?;
            let Some(last) = some.last() else { break };
            after = last.seq;
            for spooled in some {
                let number = number_of(&spooled.record.envelope);
                match number.filter(|number| spooled.is_sound && spooled.record == record(*number)) {
                    Some(number) => found.events.push(number),
                    None => found
                        .wrong
                        .push(format!("a record that claims to be event {number:?} differs from what was submitted")),
                }
            }
        }
    }
    let database = Database::open(folder, Access::Read).map_err(unreadable)?;
    let mut after = 0;
    loop {
        let some = database.dead_letters(&DeadLetterFilter::default(), after, 100, true).map_err(unreadable)?;
        let Some(last) = some.last() else { return Ok(()) };
        after = last.id;
        for kept in some {
            let number = number_of(&kept.letter.body);
            let is_as_submitted = |number: &u64| {
                let submitted = letter(*number);
                kept.is_sound && kept.letter == DeadLetter { at: kept.letter.at, ..submitted }
            };
            match number.filter(is_as_submitted) {
                Some(number) => found.events.push(number),
                None => found.wrong.push(format!(
                    "a dead letter ({}) that claims to be event {number:?} differs from what was submitted",
                    kept.letter.reason
                )),
            }
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The part that runs in the child.
pub fn run(role: Role, folder: PathBuf, seed: u64) -> Result<(), String> {
    let marks = File::options().create(true).append(true).open(folder.join("acknowledged"));
    let first = match role {
        Role::Full(phase) => phase as u64 * 1_000_000 + 1_000_000,
        Role::Small => 1,
        Role::Reopen => 900_000_000 + (seed % 1_000_000) * 32,
    };
    let mut run = Run {
        marks: marks.map_err(|error| format!("marks cannot be written: {error}"))?,
        random: Random::new(seed ^ first),
        is_tolerant: !matches!(role, Role::Full(_)),
        next: first,
        folder,
        store: None,
    };
    runtime().block_on(async {
        match role {
            Role::Full(phase) => run.full(phase).await,
            Role::Small => run.small().await,
            Role::Reopen => run.reopen().await,
        }
    })
}

struct Run {
    folder: PathBuf,
    marks: File,
    random: Random,
    /// Whether failures are retried.
    is_tolerant: bool,
    /// The next event.
    next: u64,
    store: Option<Store>,
}

impl Run {
    async fn full(&mut self, phase: usize) -> Result<(), String> {
        self.open().await?;
        match phase {
            0 => {
                self.rounds(20, 30).await?;
                self.restart().await?;
                self.rounds(20, 40).await?;
            }
            // The log is merged into the database several times.
            1 => {
                self.rounds(420, 60).await?;
                self.drop_store();
                self.open().await?;
                self.rounds(20, 60).await?;
            }
            2 => {
                self.rounds(15, 40).await?;
                self.damage().await?;
                self.rounds(15, 40).await?;
            }
            _ => {
                self.rounds(20, 20).await?;
                self.close().await;
                return Ok(());
            }
        }
        // The store is not closed before its process ends.
        std::process::exit(0)
    }

    async fn small(&mut self) -> Result<(), String> {
        self.open().await?;
        self.rounds(12, 8).await?;
        self.restart().await?;
        self.rounds(8, 8).await?;
        self.drop_store();
        self.open().await?;
        self.rounds(8, 8).await?;
        self.damage().await?;
        self.rounds(8, 8).await?;
        self.recovered().await?;
        self.close().await;
        Ok(())
    }

    async fn reopen(&mut self) -> Result<(), String> {
        self.open().await?;
        self.recovered().await?;
        self.close().await;
        Ok(())
    }

    fn mark(&self, what: &str, numbers: &[u64]) {
        let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
        let line = format!("{what} {}\n", numbers.join(" "));
        (&self.marks).write_all(line.as_bytes()).expect("marks can be written");
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("the store is open")
    }

    async fn open(&mut self) -> Result<(), String> {
        let mut error = String::new();
        let opened = try_eventually(WORKS_AGAIN, async || {
            match open(&self.folder) {
                Ok(store) => Some(Ok(store)),
                Err(failure) => {
                    // The store that was just dropped may still have the folder locked.
                    let is_held = matches!(failure, OpenError::Lock(LockError::InUse { .. }));
                    error = format!("the store does not open: {failure}");
                    (!(self.is_tolerant || is_held)).then(|| Err(error.clone()))
                }
            }
        });
        self.store = Some(opened.await.unwrap_or(Err(error))?);
        Ok(())
    }

    async fn close(&mut self) {
        if let Some(store) = self.store.take() {
            store.close().await;
        }
    }

    /// Like the end of the process: the store is not closed.
    fn drop_store(&mut self) {
        self.store = None;
    }

    async fn restart(&mut self) -> Result<(), String> {
        self.close().await;
        self.open().await
    }

    /// Keeps events and settles others this many times, so about `stay` events remain.
    async fn rounds(&mut self, rounds: usize, stay: usize) -> Result<(), String> {
        for _ in 0..rounds {
            let groups = match self.random.below(10) {
                0..4 => vec![1],
                4..6 => vec![self.random.below(4) + 2],
                _ => (0..self.random.below(7) + 2).map(|_| self.random.below(2) + 1).collect(),
            };
            self.keep(&groups).await?;
            let spooled: u64 = self.store().backlogs().iter().map(|(_, records)| records).sum();
            if spooled > stay as u64 {
                let many = 1 + self.random.below(stay / 2);
                self.settle(many).await?;
            }
        }
        Ok(())
    }

    /// Keeps groups of events at the same time, to let them share commits.
    async fn keep(&mut self, groups: &[usize]) -> Result<(), String> {
        let groups: Vec<Vec<u64>> = groups.iter().map(|events| self.numbers(*events)).collect();
        self.mark("keep", &groups.concat());
        let this = &*self;
        let keeping = groups.iter().map(async |numbers| {
            let (letters, records): (Vec<u64>, Vec<u64>) = numbers.iter().partition(|number| is_letter(**number));
            let (records, letters) = (records.into_iter().map(record), letters.into_iter().map(letter));
            let kept = this.store().keep(records.collect(), letters.collect()).await;
            // At once, because the next commit, which is already in progress, could hide an error of this one.
            kept.map(|()| this.mark("kept", numbers))
        });
        let error = join_all(keeping).await.into_iter().find_map(Result::err);
        self.bear(error.map(|error| format!("events are not kept: {error}"))).await
    }

    fn numbers(&mut self, many: usize) -> Vec<u64> {
        let numbers = (self.next..).take(many).collect();
        self.next += many as u64;
        numbers
    }

    /// Settles the oldest events, some of them as dead letters.
    async fn settle(&mut self, many: usize) -> Result<(), String> {
        let mut error = None;
        for output in OUTPUTS {
            let read = self.store().reader().read(output, None, 0, many.div_ceil(2), 1 << 20);
            let spooled = match read {
                Ok(spooled) if spooled.is_empty() => continue,
                Ok(spooled) => spooled,
                Err(failure) => {
                    error = Some(format!("the spool cannot be read: {failure}"));
                    continue;
                }
            };
            let (mut gone, mut settled) = (Vec::new(), Vec::new());
            for one in spooled {
                let number = number_of(&one.record.envelope).ok_or("a record without its number")?;
                let is_dead = self.random.permille(30);
                if !is_dead {
                    gone.push(number);
                }
                settled.push(Settled {
                    seq: one.seq,
                    letter: is_dead.then(|| Box::new(SettledLetter { letter: letter(number), announcement: None })),
                });
            }
            self.mark("settle", &gone);
            match self.store().settle(settled).await {
                Ok(_) => self.mark("settled", &gone),
                Err(failure) => error = Some(format!("events are not settled: {failure}")),
            }
        }
        self.bear(error).await
    }

    /// Waits after a failure until the store works again, if failures are retried.
    async fn bear(&mut self, error: Option<String>) -> Result<(), String> {
        match error {
            None => Ok(()),
            Some(_) if self.is_tolerant => self.recovered().await,
            Some(error) => Err(error),
        }
    }

    /// Waits until an event is kept.
    async fn recovered(&mut self) -> Result<(), String> {
        let mut error = String::new();
        let kept = try_eventually(WORKS_AGAIN, async || {
            let numbers = self.numbers(1);
            self.mark("keep", &numbers);
            let (records, letters) = match is_letter(numbers[0]) {
                true => (Vec::new(), vec![letter(numbers[0])]),
                false => (vec![record(numbers[0])], Vec::new()),
            };
            match self.store().keep(records, letters).await {
                Ok(()) => {
                    self.mark("kept", &numbers);
                    Some(())
                }
                Err(failure) => {
                    error = format!("the store does not work again after a failure: {failure}");
                    None
                }
            }
        });
        kept.await.ok_or(error)
    }

    /// Closes the store, damages an index of its database, and opens it again. The store must copy all events from the
    /// table.
    async fn damage(&mut self) -> Result<(), String> {
        self.close().await;
        let path = self.folder.join(FILE);
        let root = root_page(&path);
        self.mark("damage", &[]);
        match root {
            Ok(page) => {
                let file = File::options().write(true).open(&path).expect("the database is there");
                // The random bytes are not a valid page, and neither are zeros.
                let done = file.write_all_at(&POOL[..PAGE as usize], (page - 1) * PAGE).and_then(|()| file.sync_all());
                if let (Err(error), false) = (done, self.is_tolerant) {
                    return Err(format!("the database cannot be damaged: {error}"));
                }
            }
            // After a failure the tables may only be in the log.
            Err(_) if self.is_tolerant => {}
            Err(error) => return Err(format!("the index is not found: {error}")),
        }
        let inode = |path: &Path| std::fs::metadata(path).map(|file| file.ino()).ok();
        let old = inode(&path);
        self.open().await?;
        if !self.is_tolerant && inode(&path) == old {
            return Err("the store did not copy the damaged database when it was opened".to_owned());
        }
        self.mark("repaired", &[]);
        Ok(())
    }
}

/// The first page of the index that the workload damages.
fn root_page(path: &Path) -> rusqlite::Result<u64> {
    // With `immutable`, the database is opened without its log.
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let database = Connection::open_with_flags(format!("file:{}?immutable=1", path.display()), flags)?;
    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = 'spool_by_output'";
    database.query_row(sql, [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}
