//! Runs workloads under the recorder, and judges the states of their recordings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::check::{Fault, FaultKind, Reported, Seen, check};
use crate::disk::{Disk, State};
use crate::inspector::Inspector;
use crate::points::{Part, Pick, Points};
use crate::random::Random;
use crate::recording::{self, Op, Recording};
use crate::wait::try_wait_for;

/// This test's own program, even if it was built again in the meantime.
pub const ITSELF: &str = "/proc/self/exe";

/// Roles of the processes that open states.
pub const STORE: &str = "inspect-store";
pub const SQLITE: &str = "inspect-sqlite";

/// How long a child under the recorder may take.
const CHILD_ENDS: Duration = Duration::from_secs(120);

/// How often a state that was opened too slowly is opened again.
const SLOW_AGAIN: usize = 2;

/// Faults that are printed, and of those, how many recordings are kept.
const SHOWN: usize = 24;
const KEPT: usize = 8;

/// The results.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    states: usize,
    must_be_there: usize,
    again: usize,
    copied: usize,
    slowest: Duration,
    pub faults: usize,
    by_kind: BTreeMap<FaultKind, usize>,
}

/// A run of children, and its log.
pub struct Run {
    pub recording: Recording,
    pub points: Points,
    /// Whether the recorder killed a process, as requested.
    pub was_killed: bool,
    log: PathBuf,
    /// The role that opens its states.
    inspector: &'static str,
    /// A description of what is special about it.
    label: String,
    /// Where the log is kept, if a fault was found in it.
    kept: Mutex<Option<PathBuf>>,
}

/// How children are run.
#[derive(Clone, Copy, Debug, Default)]
pub struct How<'a> {
    /// Further variables for the recorder.
    pub variables: &'a [(&'a str, String)],
    /// A state to start from, and what was reported before.
    pub from: Option<(&'a State, &'a Reported)>,
}

pub struct Stage {
    /// The folder for temporary files.
    base: tempfile::TempDir,
    shim: PathBuf,
    tally: Mutex<Tally>,
    /// Idle processes.
    inspectors: Mutex<Vec<(&'static str, Inspector)>>,
    folders: AtomicUsize,
    workers: usize,
}

impl Stage {
    pub fn new() -> Stage {
        let base = temporary();
        let shim = base.path().join("shim.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/shim.c");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let mut compile = Command::new(compiler);
        compile.args(["-shared", "-fPIC", "-O1", "-o"]).args([&shim, &source]).arg("-lpthread");
        let compiled = compile.status().expect("there is a C compiler");
        assert!(compiled.success(), "the recorder cannot be compiled");
        Stage {
            base,
            shim,
            tally: Mutex::default(),
            inspectors: Mutex::default(),
            folders: AtomicUsize::new(0),
            workers: std::thread::available_parallelism().map_or(2, |workers| workers.get().min(8)),
        }
    }

    pub fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }

    /// Runs a step, and prints the result.
    pub fn step(&self, name: &str, step: impl FnOnce()) {
        let (start, before) = (Instant::now(), self.tally());
        lock(&self.tally).slowest = Duration::ZERO;
        step();
        let now = self.tally();
        let found = now.by_kind.iter().map(|(kind, faults)| (kind, faults - before.by_kind.get(kind).unwrap_or(&0)));
        let found: Vec<String> =
            found.filter(|(_, faults)| *faults > 0).map(|(kind, faults)| format!("{faults} {kind:?}")).collect();
        println!(
            "{name}: {} states, in which {} acknowledged events were found and {} that had been removed; {} databases \
             were copied; slowest start {:.2} s; faults: {}; {:.1} s",
            now.states - before.states,
            now.must_be_there - before.must_be_there,
            now.again - before.again,
            now.copied - before.copied,
            now.slowest.as_secs_f64(),
            if found.is_empty() { "none".to_owned() } else { found.join(", ") },
            start.elapsed().as_secs_f64()
        );
    }

    /// An empty folder.
    fn folder(&self) -> PathBuf {
        let folder = self.base.path().join(self.folders.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&folder).expect("a folder can be created");
        folder
    }

    /// Runs children one after the other in a new folder, with one log. A child that fails is a fault.
    pub fn record(&self, roles: &[String], seed: u64, inspector: &'static str, how: How<'_>) -> Option<Run> {
        let (folder, log) = (self.folder(), self.base.path().join("log"));
        let log = log.with_extension(folder.file_name().expect("the folder has a name"));
        if let Some((state, reported)) = how.from {
            state.write(&folder).expect("a state can be written");
            let marks: Vec<u8> = reported.marks().iter().flat_map(|text| recording::mark(text)).collect();
            std::fs::write(&log, marks).expect("a log can be written");
        }
        let said = folder.with_extension("said");
        let mut failure = None;
        let mut was_killed = false;
        for role in roles {
            let mut command = Command::new(ITSELF);
            let variables = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CRASH_"));
            variables.for_each(|(name, _)| _ = command.env_remove(name));
            command.env("CRASH_ROLE", role).env("CRASH_SEED", seed.to_string()).env("LD_PRELOAD", &self.shim);
            command.env("CRASH_FOLDER", &folder).env("CRASH_LOG", &log);
            command.envs(how.variables.iter().map(|(name, value)| (name, value)));
            if how.from.is_some() {
                command.env("CRASH_EXISTING", "1");
            }
            command.stderr(std::fs::File::create(&said).expect("a file can be created"));
            let status = wait(command.spawn().expect("the test can start itself"));
            match status.and_then(|status| status.code()) {
                Some(0) => {}
                Some(137) => was_killed = true,
                _ => {
                    let said = std::fs::read_to_string(&said).unwrap_or_default();
                    let status = status.map_or("it hangs".to_owned(), |status| status.to_string());
                    failure = Some(format!("the workload {role} failed: {status}: {}", said.trim()));
                    break;
                }
            }
        }
        let _ = (std::fs::remove_dir_all(&folder), std::fs::remove_file(&said));
        let recording = Recording::read(&log).unwrap_or_else(|error| panic!("{error}"));
        let points = Points::of(&recording);
        let label = how.variables.iter().map(|(name, value)| format!("{name}={value}, ")).collect();
        let run = Run { recording, points, was_killed, log, inspector, label, kept: Mutex::default() };
        match failure {
            None => Some(run),
            Some(message) => {
                self.fault(&run, FaultKind::Workload, &message);
                self.forget(run);
                None
            }
        }
    }

    /// Removes the log of a run.
    pub fn forget(&self, run: Run) {
        let _ = std::fs::remove_file(run.log);
    }

    /// Judges states of a run with as many threads as there are processors.
    pub fn judge(&self, run: &Run, picks: Vec<Pick>) {
        let mut disk = Disk::new(0);
        let states =
            run.ordered(picks).into_iter().map(|(point, pick)| (point, pick, run.state(&mut disk, point, pick)));
        self.parallel(1, states, |(point, pick, state)| self.judge_state(run, point, pick, &state));
    }

    /// Judges states of a short run in this thread. The fate of blocks whose sync failed differs between them.
    pub fn judge_here(&self, run: &Run, picks: Vec<Pick>) {
        for pick in picks {
            let point = run.point(pick);
            let state = run.state(&mut Disk::new(pick.seed), point, pick);
            self.judge_state(run, point, pick, &state);
        }
    }

    /// The first state with this judgement, and its message. Its faults are not counted.
    pub fn find<T>(
        &self,
        run: &Run,
        picks: Vec<Pick>,
        wanted: impl Fn(Result<Seen, Fault>) -> Option<T>,
    ) -> Option<(usize, T)> {
        picks.into_iter().enumerate().find_map(|(count, pick)| {
            let point = run.point(pick);
            let state = run.state(&mut Disk::new(pick.seed), point, pick);
            let judged = self.try_state(run, &state, &Reported::at(&run.recording, point));
            wanted(judged).map(|said| (count + 1, said))
        })
    }

    fn judge_state(&self, run: &Run, point: usize, pick: Pick, state: &State) {
        let reported = Reported::at(&run.recording, point);
        let mut judged = self.try_state(run, state, &reported);
        for _ in 0..SLOW_AGAIN {
            if !matches!(&judged, Err(fault) if fault.kind == FaultKind::Slow) {
                break;
            }
            // The machine may have been busy, also with other runs of this test.
            std::thread::sleep(Duration::from_secs(1));
            judged = self.try_state(run, state, &reported);
        }
        lock(&self.tally).states += 1;
        match judged {
            Ok(seen) => {
                let mut tally = lock(&self.tally);
                tally.must_be_there += seen.must_be_there;
                tally.again += seen.again;
                tally.copied += usize::from(seen.is_copied);
                tally.slowest = tally.slowest.max(seen.opened_in);
            }
            Err(fault) => self.note(run, Some(pick), &format!("operation {point}, {}", state.mode), &fault),
        }
    }

    fn try_state(&self, run: &Run, state: &State, reported: &Reported) -> Result<Seen, Fault> {
        let folder = self.folder();
        state.write(&folder).expect("a state can be written");
        let mut process = self.inspector(run.inspector);
        let mut is_alive = true;
        let judged = check(&folder, reported, |folder| {
            process.inspect(folder).unwrap_or_else(|error| {
                is_alive = false;
                Err(error)
            })
        });
        if is_alive {
            lock(&self.inspectors).push((run.inspector, process));
        }
        let _ = std::fs::remove_dir_all(folder);
        judged
    }

    /// An idle process, or a new one.
    fn inspector(&self, role: &'static str) -> Inspector {
        let mut idle = lock(&self.inspectors);
        match idle.iter().position(|(of, _)| *of == role) {
            Some(at) => idle.swap_remove(at).1,
            None => Inspector::start(role),
        }
    }

    /// A fault of a run as a whole.
    pub fn fault(&self, run: &Run, kind: FaultKind, message: &str) {
        self.note(run, None, "", &Fault { kind, message: message.to_owned() });
    }

    /// Records a fault, and keeps what is needed to reproduce it.
    fn note(&self, run: &Run, pick: Option<Pick>, place: &str, fault: &Fault) {
        let count = {
            let mut tally = lock(&self.tally);
            tally.faults += 1;
            *tally.by_kind.entry(fault.kind).or_default() += 1;
            tally.faults
        };
        if count > SHOWN {
            return;
        }
        let mut kept = lock(&run.kept);
        if kept.is_none() && count <= KEPT {
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("crash-{}", std::process::id()));
            let to = folder.join(format!("{count}.log"));
            match std::fs::create_dir_all(&folder).and_then(|()| std::fs::copy(&run.log, &to)) {
                Ok(_) => *kept = Some(to),
                Err(error) => println!("the recording cannot be kept: {error}"),
            }
        }
        let again = match (&*kept, pick) {
            (Some(log), Some(pick)) => {
                let control = if run.inspector == SQLITE { "CRASH_CONTROL=sqlite " } else { "" };
                format!("\n  again: {control}CRASH_REPLAY={} CRASH_STATE={pick} cargo test --test crash", log.display())
            }
            (Some(log), None) => format!("\n  its recording: {}", log.display()),
            (None, _) => String::new(),
        };
        println!("FAULT {:?}: {} [{}{place}]{again}", fault.kind, fault.message, run.label);
    }

    /// Judges one state of a recording that was kept, and keeps that state.
    pub fn replay(&self, log: &Path) {
        let pick: Pick = std::env::var("CRASH_STATE").expect("CRASH_STATE names the state").parse().expect("a state");
        let recording = Recording::read(log).expect("a recording");
        let run = Run {
            points: Points::of(&recording),
            recording,
            was_killed: false,
            log: log.to_owned(),
            inspector: if std::env::var_os("CRASH_CONTROL").is_some() { SQLITE } else { STORE },
            label: String::new(),
            kept: Mutex::new(Some(log.to_owned())),
        };
        let point = run.point(pick);
        let state = run.state(&mut Disk::new(pick.seed), point, pick);
        let folder = log.with_extension("state");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder for the state");
        state.write(&folder).expect("a state can be written");
        let ops = &run.recording.ops;
        println!("operation {point} of {}, {}; the state is in {}", ops.len(), state.mode, folder.display());
        println!("what was done before it:");
        for op in &ops[point.saturating_sub(20)..point] {
            println!("  {}", format!("{op:?}").chars().take(150).collect::<String>());
        }
        self.judge_state(&run, point, pick, &state);
    }

    /// Does work in several threads, `times` for each processor.
    pub fn parallel<Item: Send>(
        &self,
        times: usize,
        items: impl Iterator<Item = Item> + Send,
        work: impl Fn(Item) + Sync,
    ) {
        let items = Mutex::new(items);
        std::thread::scope(|scope| {
            for _ in 0..self.workers * times {
                scope.spawn(|| {
                    loop {
                        let item = lock(&items).next();
                        match item {
                            Some(item) => work(item),
                            None => return,
                        }
                    }
                });
            }
        });
    }
}

impl Run {
    pub fn point(&self, pick: Pick) -> usize {
        self.points.point(pick.part, &mut Random::new(pick.seed))
    }

    /// Picks in the order of their points, because a disk only advances.
    pub fn ordered(&self, picks: Vec<Pick>) -> Vec<(usize, Pick)> {
        let mut ordered: Vec<(usize, Pick)> = picks.into_iter().map(|pick| (self.point(pick), pick)).collect();
        ordered.sort_by_key(|(point, _)| *point);
        ordered
    }

    /// Advances a disk to a point, and builds a state.
    pub fn state(&self, disk: &mut Disk, point: usize, pick: Pick) -> State {
        disk.advance(&self.recording, point);
        match pick.part {
            Part::Killed => disk.seen(),
            _ => disk.state(&mut Random::new(pick.seed ^ 7)),
        }
    }

    /// A description of its contents.
    pub fn described(&self) -> String {
        let Points { log_syncs, other_syncs, names, log_restarts, .. } = &self.points;
        format!(
            "{} events, {} calls that wrote {} MiB; {} syncs of logs, which were begun anew {log_restarts} times, and \
             {} of other files; {} changes of names and lengths",
            Reported::at(&self.recording, self.recording.ops.len()).events.len(),
            self.recording.ops.len(),
            self.recording.written() >> 20,
            log_syncs.len(),
            other_syncs.len(),
            names.len()
        )
    }

    /// How many calls can fail: syncs, writes and renames.
    pub fn failable(&self) -> [usize; 3] {
        let count = |is: fn(&Op) -> bool| self.recording.ops.iter().filter(|op| is(op)).count();
        [
            count(|op| matches!(op, Op::SyncEnd { .. })),
            count(|op| matches!(op, Op::Write { .. } | Op::Truncate { .. } | Op::Allocate { .. })),
            count(|op| matches!(op, Op::Rename { .. })),
        ]
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a child; one that takes too long is killed.
fn wait(mut child: Child) -> Option<ExitStatus> {
    let status = try_wait_for(CHILD_ENDS, || child.try_wait().expect("a child can be waited for"));
    if status.is_some() {
        return status;
    }
    child.kill().expect("a child can be killed");
    child.wait().expect("a child can be waited for");
    None
}

/// A folder for temporary files: in memory, if there is enough, because much is written.
fn temporary() -> tempfile::TempDir {
    let free = Command::new("df").args(["-Pk", "/dev/shm"]).output().ok().and_then(|output| {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.lines().nth(1)?.split_whitespace().nth(3)?.parse::<u64>().ok()
    });
    let mut builder = tempfile::Builder::new();
    let folder = match free {
        Some(kib) if kib > 2 << 20 => builder.prefix("crash-").tempdir_in("/dev/shm"),
        _ => builder.prefix("crash-").tempdir_in(env!("CARGO_TARGET_TMPDIR")),
    };
    folder.expect("a folder for temporary files")
}
