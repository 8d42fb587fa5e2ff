//! Crash states: what the store said was kept survives a power failure at any point, whatever part of the unsynced
//! writes reached the disk, and calls that fail.
//!
//! A workload runs in a child process with a recorder (`shim.c`) that logs every call which changes or syncs a file of
//! the store. From that log, a simulated disk ([`disk`]) builds states that a power failure may leave behind; each is
//! opened by the real store, and judged ([`check`]):
//! - an event whose keeping was acknowledged, and whose removal wasn't asked for, is there, unaltered;
//! - every event that is there was submitted, is unaltered, and is there once;
//! - opening takes less than two seconds;
//! - an unfinished write isn't taken for damage.
//!
//! What is done, in this order:
//! - states: those of a long workload, with restarts, a log that is moved into the database, and a damaged database
//!   that is copied into a new one; some are opened under the recorder, and the power fails once more;
//! - kills: the process is killed before each call of such a copying;
//! - failing calls: runs in which an fsync, a write or a rename fails;
//! - sabotage: with syncs that aren't done the judge must find losses, else the test is worth nothing.
//!
//! Environment: CRASH_STATES, states of the long workload (500); CRASH_FAULTS, runs in which a call fails (40), or
//! `all`; CRASH_SECONDS, go on with new seeds for so long; CRASH_SEED (the clock's); CRASH_ONLY, one of the four steps.
//! CRASH_ONLY=sensitivity leaves out each sync of a short workload, one a run, and tells which of them no state misses.
//! CRASH_CONTROL=sqlite tries the simulator itself: see [`control`].
//!
//! After a fault its recording is kept below `target/tmp`, and a command is printed that builds and judges exactly that
//! state. A seed alone can't do that: the store's thread and the workload's don't meet in the same way twice.
//!
//! Needs Linux with the GNU C library, and a C compiler.
//!
//! Layout: [`workload`] what is done to the store, and how it is read; [`recording`] the log of it; [`points`] where the
//! power fails; [`disk`] what it leaves; [`inspector`] processes that open that; [`check`] the judge; [`stage`] runs and
//! judges; here, the plan.

// Tests fail by a panic; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

mod check;
mod control;
mod disk;
mod inspector;
mod points;
mod random;
mod recording;
mod stage;
#[path = "../support/wait.rs"]
mod wait;
mod workload;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use check::{Fault, FaultKind, Seen, Told};
use disk::Disk;
use points::{Part, Pick, picks};
use random::Random;
use recording::Op;
use stage::{How, SQLITE, STORE, Stage};
use workload::Role;

/// Errors that calls fail with: EIO and ENOSPC.
const ERRORS: [i32; 2] = [5, 28];

/// Kinds of calls that fail.
const KINDS: [&str; 3] = ["fsync", "write", "rename"];

/// How often the log of the long workload must have been begun anew for the states to prove something.
const LOG_RESTARTS: usize = 3;

fn main() -> ExitCode {
    if let Ok(role) = std::env::var("CRASH_ROLE") {
        return child(&role);
    }
    let stage = Stage::new();
    let start = Instant::now();
    if let Ok(log) = std::env::var("CRASH_REPLAY") {
        stage.replay(Path::new(&log));
    } else {
        let seconds = number("CRASH_SECONDS").map(Duration::from_secs);
        let seed = number("CRASH_SEED").unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(now.as_millis()).unwrap_or_default()
        });
        for round in 0.. {
            println!("crash: CRASH_SEED={}", seed + round);
            once(&stage, seed + round);
            if seconds.is_none_or(|seconds| start.elapsed() >= seconds) {
                break;
            }
        }
    }
    let faults = stage.tally().faults;
    match faults {
        0 => println!("crash: passed in {:.0} s", start.elapsed().as_secs_f64()),
        faults => println!("crash: FAILED with {faults} faults in {:.0} s", start.elapsed().as_secs_f64()),
    }
    ExitCode::from(u8::from(faults > 0))
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

/// What a child process does.
fn child(role: &str) -> ExitCode {
    let recorded = || {
        let folder = PathBuf::from(std::env::var_os("CRASH_FOLDER").expect("a child has a folder"));
        let seed = number("CRASH_SEED").expect("a child has a seed");
        match (Role::parse(role), role.strip_prefix("sqlite").and_then(|phase| phase.parse().ok())) {
            (Some(role), _) => workload::run(role, folder, seed),
            (None, Some(phase)) => control::run(phase, &folder, seed).map_err(|error| error.to_string()),
            (None, None) => Err(format!("there is no role {role}")),
        }
    };
    let done = match role {
        STORE => inspector::run(workload::inspect),
        SQLITE => inspector::run(control::inspect),
        _ => recorded(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Everything, with one seed.
fn once(stage: &Stage, seed: u64) {
    let many = number("CRASH_STATES").unwrap_or(500) as usize;
    if let Ok(what) = std::env::var("CRASH_CONTROL") {
        assert_eq!(what, "sqlite", "the only control is sqlite");
        return stage.step("control", || controlled(stage, seed, many));
    }
    let only = std::env::var("CRASH_ONLY").ok();
    let is_wanted = |name: &str| only.as_ref().is_none_or(|only| name.starts_with(only.as_str()));
    if is_wanted("states") {
        stage.step("states", || states(stage, seed, many));
    }
    if is_wanted("kills") {
        stage.step("kills", || kills(stage, seed));
    }
    if is_wanted("failing calls") {
        stage.step("failing calls", || failing_calls(stage, seed));
    }
    if is_wanted("sabotage") {
        stage.step("sabotage", || sabotage(stage, seed, many));
    }
    if only.as_deref() == Some("sensitivity") {
        stage.step("sensitivity", || sensitivity(stage, seed, many));
    }
}

/// The simulator's own trial.
fn controlled(stage: &Stage, seed: u64, many: usize) {
    let roles: Vec<String> = (0..control::PHASES).map(|phase| format!("sqlite{phase}")).collect();
    let Some(run) = stage.record(&roles, seed, SQLITE, How::default()) else { return };
    println!("recorded: {}", run.described());
    stage.judge(&run, picks(Part::Any, seed, many));
    stage.forget(run);
}

/// States of the long workload.
fn states(stage: &Stage, seed: u64, many: usize) {
    let start = Instant::now();
    let roles: Vec<String> = (0..workload::PHASES).map(|phase| Role::Full(phase).name()).collect();
    let Some(run) = stage.record(&roles, seed, STORE, How::default()) else { return };
    println!("recorded: {}; {:.1} s", run.described(), start.elapsed().as_secs_f64());
    if run.points.log_restarts < LOG_RESTARTS {
        stage.fault(&run, FaultKind::Workload, "the log is hardly ever moved into the database: more must be written");
    }
    let copying = many / 5;
    let mut all = picks(Part::Any, seed, many - copying);
    all.extend(picks(Part::Copying, seed ^ 1, copying));
    stage.judge(&run, all);

    // Once more, while the store comes back from the first time.
    let mut first = picks(Part::Copying, seed ^ 2, many / 40);
    first.extend(picks(Part::Any, seed ^ 3, (many / 40).div_ceil(2)));
    let mut disk = Disk::new(0);
    let states = run.ordered(first).into_iter().map(|(point, pick)| {
        let state = run.state(&mut disk, point, pick);
        (pick, Told::at(&run.recording, point), state)
    });
    stage.parallel(1, states, |(pick, told, state)| {
        let how = How { from: Some((&state, &told)), ..How::default() };
        let Some(second) = stage.record(&[Role::Reopen.name()], pick.seed, STORE, how) else { return };
        stage.judge_here(&second, picks(Part::Any, pick.seed ^ 4, 4));
        stage.forget(second);
    });
    stage.forget(run);
}

/// The process is killed before every call while it copies a damaged database. Then, or when the power fails in the
/// same moment, the next start must get on with it.
fn kills(stage: &Stage, seed: u64) {
    let Some(run) = stage.record(&[Role::Small.name()], seed, STORE, How::default()) else { return };
    // The damage is there as soon as the first sync after the mark has ended, and nothing was done about it yet.
    let ops = &run.recording.ops;
    let damage = run.recording.find("damage").expect("the small workload damages the database");
    let synced = ops[damage..].iter().position(|op| matches!(op, Op::SyncEnd { .. }));
    let point = damage + synced.expect("the damage is synced") + 1;
    let told = Told::at(&run.recording, point);
    let mut disk = Disk::new(0);
    disk.advance(&run.recording, point);
    let state = disk.seen();

    let is_over = AtomicBool::new(false);
    let killed = AtomicUsize::new(0);
    let calls = (1..).take_while(|_| !is_over.load(Ordering::Relaxed));
    stage.parallel(1, calls, |call: usize| {
        let variables = [("CRASH_KILL", call.to_string())];
        let how = How { variables: &variables, from: Some((&state, &told)) };
        let recorded = stage.record(&[Role::Reopen.name()], seed, STORE, how);
        let Some(run) = recorded.filter(|run| run.was_killed) else { return is_over.store(true, Ordering::Relaxed) };
        killed.fetch_add(1, Ordering::Relaxed);
        let seed = seed + call as u64;
        stage.judge_here(&run, vec![Pick { part: Part::Killed, seed }, Pick { part: Part::End, seed }]);
        stage.forget(run);
    });
    println!("killed before {} calls", killed.into_inner());
    stage.forget(run);
}

/// Runs in which calls fail.
fn failing_calls(stage: &Stage, seed: u64) {
    let Some(clean) = stage.record(&[Role::Small.name()], seed, STORE, How::default()) else { return };
    let counted = clean.failable();
    println!("recorded: {}; {counted:?} of {KINDS:?} can fail", clean.described());
    stage.forget(clean);

    // A run isn't quite like the other: look a little behind the last call.
    let calls = KINDS.iter().zip(counted).flat_map(|(kind, calls)| (1..=calls + 2).map(move |call| (*kind, call)));
    let mut all: Vec<(&str, usize, i32)> =
        calls.flat_map(|(kind, call)| ERRORS.map(|error| (kind, call, error))).collect();
    let mut random = Random::new(seed ^ 5);
    let wanted = std::env::var("CRASH_FAULTS").unwrap_or_else(|_| "40".to_owned());
    if wanted != "all" {
        let wanted: usize = wanted.parse().expect("CRASH_FAULTS is a number, or all");
        for at in (1..all.len()).rev() {
            all.swap(at, random.below(at + 1));
        }
        // Each kind has its share, though there are few renames and many writes.
        let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
        all.retain(|(kind, ..)| {
            let taken = taken.entry(kind).or_default();
            *taken += 1;
            *taken <= if *kind == "rename" { wanted / 5 } else { wanted * 2 / 5 }
        });
    }
    // Some failures last: the calls of the same kind that follow fail as well.
    let all: Vec<_> = all.into_iter().map(|call| (call, if random.permille(300) { 4 } else { 1 })).collect();
    let (runs, failed) = (all.len(), AtomicUsize::new(0));
    // Such runs wait most of their time.
    stage.parallel(4, all.into_iter(), |((kind, call, error), times)| {
        let variables = [("CRASH_FAIL", format!("{kind}:{call}:{error}:{times}"))];
        let how = How { variables: &variables, from: None };
        let Some(run) = stage.record(&[Role::Small.name()], seed, STORE, how) else { return };
        if run.recording.first_fault().is_some() {
            failed.fetch_add(1, Ordering::Relaxed);
            let seed = seed ^ (call as u64) << 8;
            let mut all = picks(Part::AfterFault, seed, 2);
            all.push(Pick { part: Part::End, seed });
            all.push(Pick { part: Part::Killed, seed });
            stage.judge_here(&run, all);
        }
        stage.forget(run);
    });
    println!("{runs} runs, in {} of them calls failed", failed.into_inner());
}

/// Without syncs, losses must be found.
fn sabotage(stage: &Stage, seed: u64, many: usize) {
    for swallowed in ["all", "wal"] {
        let variables = [("CRASH_SWALLOW", swallowed.to_owned())];
        let how = How { variables: &variables, from: None };
        let Some(run) = stage.record(&[Role::Small.name()], seed, STORE, how) else { continue };
        let lost = |judged: Result<_, Fault>| Some(judged.err().filter(|fault| fault.kind == FaultKind::Lost)?.message);
        match stage.find(&run, picks(Part::Any, seed ^ 6, many), lost) {
            Some((count, message)) => println!("without syncs ({swallowed}), state {count}: {message}"),
            None => {
                let message = format!(
                    "without syncs ({swallowed}) no loss is found in {many} states: this test can't find what it is for"
                );
                stage.fault(&run, FaultKind::Workload, &message);
            }
        }
        stage.forget(run);
    }
}

/// Leaves out each sync, and tells which of them isn't missed. That is no fault: some syncs protect what the states of
/// this test don't show, or are done twice for good measure.
fn sensitivity(stage: &Stage, seed: u64, many: usize) {
    let Some(clean) = stage.record(&[Role::Small.name()], seed, STORE, How::default()) else { return };
    let [syncs, ..] = clean.failable();
    stage.forget(clean);
    let missed = Mutex::new((0, BTreeMap::<String, Vec<usize>>::new()));
    stage.parallel(1, 1..=syncs, |number| {
        let variables = [("CRASH_SWALLOW", number.to_string())];
        let how = How { variables: &variables, from: None };
        let Some(run) = stage.record(&[Role::Small.name()], seed, STORE, how) else { return };
        let swallowed = run.recording.ops.iter().enumerate().find_map(|(at, op)| match op {
            Op::Swallowed(name) => Some((at, name.clone())),
            _ => None,
        });
        if let Some((at, name)) = swallowed {
            let states = picks(Part::JustAfterFault, seed ^ 6, many.div_ceil(4));
            // Where the removal of events is what is forgotten, they come back.
            let differs = |judged: Result<Seen, Fault>| match judged {
                Ok(seen) => (seen.again > 0).then_some(()),
                Err(fault) => (fault.kind != FaultKind::Slow).then_some(()),
            };
            let is_missed = stage.find(&run, states, differs).is_some();
            let mut missed = missed.lock().expect("nobody panics here");
            match is_missed {
                true => missed.0 += 1,
                false => {
                    let name = if name.is_empty() { "the folder".to_owned() } else { name };
                    let copying = run.points.copying.as_ref().is_some_and(|copying| copying.contains(&at));
                    let name = if copying { format!("{name} while copying") } else { name };
                    missed.1.entry(name).or_default().push(number);
                }
            }
        }
        stage.forget(run);
    });
    let (found, not_found) = missed.into_inner().expect("nobody panics here");
    println!("{syncs} syncs were left out, one a run; {found} of them are missed; these aren't:");
    not_found.iter().for_each(|(name, numbers)| println!("  {name}: {numbers:?}"));
}
