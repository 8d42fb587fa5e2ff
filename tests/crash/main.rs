//! Crash states: what the store reported as kept survives failing calls, and a power failure at any point, whatever
//! part of the unsynced writes reached the disk.
//!
//! A workload runs in a child process with a recorder (`shim.c`) that logs every call that changes or syncs a file of
//! the store. From that log, a simulated disk ([`disk`]) builds states that a power failure may leave. The real store
//! opens each state, and the judge ([`check`]) verifies that:
//! - an event that was acknowledged, and whose removal was not requested, is there and unchanged;
//! - every event that is there was submitted, is unchanged, and is there once;
//! - opening takes less than two seconds;
//! - an unfinished write is not treated as damage.
//!
//! The steps, in this order:
//! - states: states of a long workload, with restarts, a log that is merged into the database, and a damaged database
//!   that is copied into a new one; some are opened under the recorder, and the power fails again;
//! - kills: the process is killed before each call of such a copy;
//! - failing calls: runs in which an fsync, a write or a rename fails;
//! - sabotage: without syncs, the judge must find losses; otherwise the test proves nothing.
//!
//! Environment: CRASH_STATES, states of the long workload (500); CRASH_FAULTS, runs in which a call fails (40), or
//! `all`; CRASH_SECONDS, continue with new seeds for this time; CRASH_SEED (from the clock); CRASH_ONLY, one of the
//! four steps. CRASH_ONLY=sensitivity leaves out each sync of a short workload, one per run, and prints those whose
//! absence no state reveals. CRASH_CONTROL=sqlite tests the simulator itself: see [`control`].
//!
//! After a fault its recording is kept below `target/tmp`, and a command is printed that builds and judges exactly that
//! state. The seed is not enough for this, because the threads of the store and the workload never run in the same
//! order twice.
//!
//! Needs Linux with the GNU C library, and a C compiler.
//!
//! # Layout
//!
//! - [`workload`]: what is done to the store, and how it is read; [`recording`]: the log of it
//! - [`points`]: where the power fails; [`disk`]: the state that this leaves
//! - [`inspector`]: processes that open a state; [`check`]: the judge; [`stage`]: runs workloads and judges states
//! - here: the steps

// Tests fail with a panic; no other crate sees their items.
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

use check::{Fault, FaultKind, Reported, Seen};
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

/// How often the log of the long workload must have been restarted for the states to prove something.
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

/// The part that runs in a child process.
fn child(role: &str) -> ExitCode {
    let recorded = || {
        let folder = PathBuf::from(std::env::var_os("CRASH_FOLDER").expect("a child has a folder"));
        let seed = number("CRASH_SEED").expect("a child has a seed");
        match (Role::parse(role), role.strip_prefix("sqlite").and_then(|phase| phase.parse().ok())) {
            (Some(role), _) => workload::run(role, folder, seed),
            (None, Some(phase)) => control::run(phase, &folder, seed).map_err(|error| error.to_string()),
            (None, None) => Err(format!("unknown role {role}")),
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

/// A test of the simulator.
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
        stage.fault(&run, FaultKind::Workload, "the log is rarely merged into the database: more must be written");
    }
    let copying = many / 5;
    let mut all = picks(Part::Any, seed, many - copying);
    all.extend(picks(Part::Copying, seed ^ 1, copying));
    stage.judge(&run, all);

    // A second power failure, while the store recovers from the first.
    let mut first = picks(Part::Copying, seed ^ 2, many / 40);
    first.extend(picks(Part::Any, seed ^ 3, (many / 40).div_ceil(2)));
    let mut disk = Disk::new(0);
    let states = run.ordered(first).into_iter().map(|(point, pick)| {
        let state = run.state(&mut disk, point, pick);
        (pick, Reported::at(&run.recording, point), state)
    });
    stage.parallel(1, states, |(pick, reported, state)| {
        let how = How { from: Some((&state, &reported)), ..How::default() };
        let Some(second) = stage.record(&[Role::Reopen.name()], pick.seed, STORE, how) else { return };
        stage.judge_here(&second, picks(Part::Any, pick.seed ^ 4, 4));
        stage.forget(second);
    });
    stage.forget(run);
}

/// The process is killed before every call while it copies a damaged database. After this, or after a power failure at
/// the same moment, the next start must continue the copy.
fn kills(stage: &Stage, seed: u64) {
    let Some(run) = stage.record(&[Role::Small.name()], seed, STORE, How::default()) else { return };
    // The damage is on the disk when the first sync after the mark has ended, and the store has not reacted yet.
    let ops = &run.recording.ops;
    let damage = run.recording.find("damage").expect("the small workload damages the database");
    let synced = ops[damage..].iter().position(|op| matches!(op, Op::SyncEnd { .. }));
    let point = damage + synced.expect("the damage is synced") + 1;
    let reported = Reported::at(&run.recording, point);
    let mut disk = Disk::new(0);
    disk.advance(&run.recording, point);
    let state = disk.seen();

    let is_over = AtomicBool::new(false);
    let killed = AtomicUsize::new(0);
    let calls = (1..).take_while(|_| !is_over.load(Ordering::Relaxed));
    stage.parallel(1, calls, |call: usize| {
        let variables = [("CRASH_KILL", call.to_string())];
        let how = How { variables: &variables, from: Some((&state, &reported)) };
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

    // Runs differ a little, so also look a little after the last call.
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
        // Each kind has its share, although there are few renames and many writes.
        let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
        all.retain(|(kind, ..)| {
            let taken = taken.entry(kind).or_default();
            *taken += 1;
            *taken <= if *kind == "rename" { wanted / 5 } else { wanted * 2 / 5 }
        });
    }
    // Some failures last: later calls of the same kind fail too.
    let all: Vec<_> = all.into_iter().map(|call| (call, if random.permille(300) { 4 } else { 1 })).collect();
    let (runs, failed) = (all.len(), AtomicUsize::new(0));
    // Such runs mostly wait.
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
                let message =
                    format!("without syncs ({swallowed}) no loss is found in {many} states: this test finds nothing");
                stage.fault(&run, FaultKind::Workload, &message);
            }
        }
        stage.forget(run);
    }
}

/// Leaves out each sync, and prints those whose absence is not noticed. This is not a fault: some syncs protect against
/// something that the states of this test do not contain, or are done twice to be safe.
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
            // If the removal of events is lost, they exist again.
            let differs = |judged: Result<Seen, Fault>| match judged {
                Ok(seen) => (seen.again > 0).then_some(()),
                Err(fault) => (fault.kind != FaultKind::Slow).then_some(()),
            };
            let is_missed = stage.find(&run, states, differs).is_some();
            let mut missed = missed.lock().expect("no panic while it is locked");
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
    let (found, not_found) = missed.into_inner().expect("no panic while it is locked");
    println!("{syncs} syncs were left out, one per run; the absence of {found} was noticed, but not of these:");
    not_found.iter().for_each(|(name, numbers)| println!("  {name}: {numbers:?}"));
}
