//! Chaos: the bridge's own program under a steady load, with a real Kafka and a real NATS of one or three servers.
//! Servers and bridge are killed, frozen, stopped and restarted at random. A topic refuses, the disk of the spool is
//! full, and the configuration is reloaded. Then both buses are read to their end, and the events are counted.
//!
//! The run fails unless:
//! - every event that was answered with 200, or put into the queue, is on both buses, and there are no dead letters;
//! - an event has one id everywhere, no two events share one, and copies of an event, on one bus or on both, are equal
//!   except `recordedtime` and `traceparent`; each is the event that was sent, in the right topic;
//! - the bridge never ends by itself, and ends with exit code 0 after SIGTERM; a second signal ends it at once; it
//!   answers valid callbacks with 200, 503 or 408;
//! - the queue is empty three minutes after everything works again, and the spool three minutes later;
//! - a run of a minute or more has killed the bridge at least twice and has used the spool, because otherwise it proves
//!   little.
//!
//! The report has the number of repeats, the number of events that the sender gave up, and the answer times. The line
//! before the last is a summary. It is also appended as a line of JSON to the file CHAOS_LOG, if that is set.
//!
//! The sender behaves like Alibaba: it posts events ([`support::sender`]), or puts them into an MNS queue ([`queue`]),
//! which two bridges read and which can be unreachable too. The actions are a pure function of the seed, the mode and
//! the number of servers ([`plan`]). A failed run can be repeated with the same plan, but the timing of the machine
//! differs.
//!
//! Environment: CHAOS_MODE, http or queue (http); CHAOS_BUS, single or cluster (single); CHAOS_SECONDS (3600);
//! CHAOS_RATE, events per second (300); CHAOS_SEED (from the clock); CHAOS_LOG. An hour at that rate needs about 4 GB
//! for temporary files, three times that with clusters. After a failure the logs, configurations and spools of the
//! bridges, the logs of the brokers, and lists of missing or different events are kept below `target/tmp`. The last
//! line names the folder.
//!
//! # Layout
//!
//! - [`events`]: what is sent; [`queue`]: the queue
//! - [`plan`]: when something is done; [`actions`]: how it is done; [`stage`]: the processes
//! - [`count`]: the judge; [`summary`]: the summary line
//! - here: the run and its report

// Tests fail with a panic; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

mod actions;
mod count;
mod events;
mod plan;
mod queue;
mod stage;
mod summary;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::block_in_place;

use count::{Count, EXAMPLES, OnBus, Verdict};
use events::{Mode, Run};
use plan::Action;
use queue::Messages;
use stage::{Counter, DEADLINE, PARTITIONS, Stage, kafka_topics, streams};
use summary::Summary;
use support::on_thread;
use support::read::{self, Bus, Record};
use support::sender::{Alibaba, send_all};

/// Answers that a valid callback may get. 408 happens on a machine that is too busy to deliver a body in time.
const EXPECTED_STATUSES: [u16; 3] = [200, 408, 503];

/// Answers that take longer than the deadline plus this are counted.
const GRACE: Duration = Duration::from_millis(500);

/// A run of at least this length must have killed the bridge twice and used the spool.
const PROVES: Duration = Duration::from_secs(60);

/// How often such a run must have killed the bridge.
const KILLS: u32 = 2;

/// How many examples of an error the report shows.
const SHOWN: usize = 10;

fn main() -> ExitCode {
    let run = Run::from_environment();
    println!("chaos: {run}");
    count::prove();
    plan::prove();
    let folder = tempfile::Builder::new().prefix("chaos-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
    let folder = folder.expect("cargo creates the folder for the files of tests");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    // A panic in this thread is one more fault. Its message is already printed.
    let faults = runtime.block_on(async {
        let (run, folder) = (run.clone(), folder.path().to_owned());
        let playing = on_thread(move || chaos(run, folder));
        playing.await.unwrap_or_else(|_| vec!["the run was aborted: see the panic above".to_owned()])
    });
    // This also ends the tasks that a panic left behind, and their processes.
    drop(runtime);
    if faults.is_empty() {
        println!("chaos: passed");
        return ExitCode::SUCCESS;
    }
    println!("\nfaults:");
    faults.iter().for_each(|fault| println!("  {fault}"));
    println!("kept: {}", folder.keep().display());
    println!("chaos: FAILED (repeat with {run})");
    ExitCode::FAILURE
}

/// The whole run. Returns the faults.
async fn chaos(run: Run, folder: PathBuf) -> Vec<String> {
    let stage = Arc::new(Stage::start(&folder, &run).await);
    let sender = Arc::new(Alibaba::new(stage.bridges[0].input));
    let (playing, steps, length) = (stage.clone(), plan::plan(&run), run.length);
    let playing = on_thread(move || actions::play(playing, steps, length));
    let (events, total) = (run.clone(), run.total());
    let next = move |number| (number < total).then(|| events.callback(number));
    let sending = match &stage.queue {
        None => tokio::spawn(send_all(sender.clone(), run.rate, next)),
        Some(queue) => tokio::spawn(send_all(queue.clone(), run.rate, next)),
    };
    // A panic in any of them ends the run at once.
    let ended = tokio::try_join!(sending, playing);
    let (answered_for, ()) = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    stage.settled().await;
    stage.tell("everything is sent and works again");
    stage.emptied().await;
    let dead_letters = stage.drained().await;
    for bridge in &stage.bridges {
        stage.stop_bridge(bridge).await;
    }

    let mut count = Count::new(&run);
    if let Err(error) = read_both(&stage, |record| count.add(&record)).await {
        stage.fault(error);
    }
    let verdict = count.verdict(&answered_for);
    let mut faults = stage.faults();
    faults.extend(verdict.faults());
    faults.extend(too_little(&run, &stage, &verdict));
    if dead_letters > 0 {
        faults.push(format!("{dead_letters} dead letters: expected none"));
    }
    let odd = sender.tally().statuses.into_iter().filter(|(status, _)| !EXPECTED_STATUSES.contains(status));
    faults.extend(odd.map(|(status, times)| format!("{times} answers had status {status}")));
    print!("{}", report(&run, &stage, &sender, &verdict));
    let summary = Summary::new(&run, &stage, &verdict, dead_letters, faults.len());
    println!("{summary}");
    summary.log();
    if !faults.is_empty() {
        stage.keep_evidence();
        if let Err(error) = keep_evidence(&folder, &run, &stage, &count, &verdict).await {
            eprintln!("not all evidence could be kept: {error}");
        }
    }
    faults
}

/// Reasons why a run proves too little.
fn too_little(run: &Run, stage: &Stage, verdict: &Verdict) -> Vec<String> {
    let mut faults = Vec::new();
    // If almost nothing was accepted, almost nothing could be lost.
    if verdict.answered_for * 2 < run.total() {
        faults.push("fewer than half of the events were accepted: the run proves little".to_owned());
    }
    if run.length < PROVES {
        return faults;
    }
    let kills = stage.done().get(&Action::KillBridge).copied().unwrap_or_default();
    if kills < KILLS {
        faults.push(format!("the bridge was killed {kills} times: expected {KILLS} or more in {PROVES:?}"));
    }
    if stage.counted(Counter::Spooled) == 0 {
        faults.push("the spool was never used: the run proves little".to_owned());
    }
    faults
}

/// Reads both buses to their end.
async fn read_both(stage: &Stage, mut take: impl FnMut(Record) + Send) -> Result<(), String> {
    let topics = kafka_topics();
    let topics: Vec<(&str, i32)> = topics.iter().map(|topic| (topic.as_str(), PARTITIONS)).collect();
    block_in_place(|| read::kafka(&stage.kafka, &topics, &mut take))?;
    for stream in streams() {
        read::nats(&stage.nats, &stream, &mut take).await?;
    }
    Ok(())
}

/// The table at the end.
fn report(run: &Run, stage: &Stage, sender: &Alibaba, verdict: &Verdict) -> String {
    let (tally, times) = (sender.tally(), sender.answer_times(0));
    let total = run.total();
    let twins = (0..total).filter(|&number| run.is_twin(number)).count();
    let done: BTreeMap<&str, u32> = stage.done().into_iter().map(|(action, times)| (action.name(), times)).collect();
    let mut text = "\n".to_owned();
    let mut line =
        |name: &str, value: String| writeln!(text, "{name:<28}{value}").expect("writing to a string cannot fail");
    line("chaos", run.to_string());
    line("done", counts(&done));
    line("events sent", format!("{total}, {twins} of them twice"));
    let answered_for = match run.mode {
        Mode::Http => "answered with 200",
        Mode::Queue => "put into the queue",
    };
    line(answered_for, verdict.answered_for.to_string());
    let given_up = total - verdict.answered_for;
    line("given up by the sender", format!("{given_up}, {} of them arrived anyway", verdict.arrived_anyway));
    let on_both = |value: fn(&OnBus) -> String| {
        verdict.buses.iter().map(|on_bus| format!("{:>12}", value(on_bus))).collect::<String>()
    };
    line("", Bus::ALL.map(|bus| format!("{:>12}", bus.name())).concat());
    line("found", on_both(|on_bus| on_bus.found.to_string()));
    line(&format!("{answered_for}, missing"), on_both(|on_bus| on_bus.missing.len().to_string()));
    line("repeats", on_both(|on_bus| on_bus.repeats.to_string()));
    line("with different ids", verdict.two_ids.to_string());
    line("with different content", verdict.differing.to_string());
    line("with an id of another", verdict.shared_ids.to_string());
    line("not as sent", verdict.wrong.to_string());
    match &stage.queue {
        None => {
            line("tries answered", counts(&tally.statuses));
            line("tries not answered", counts(&tally.unanswered));
            let seconds = |share: f64| format!("{:.3} s", times.percentile(share).as_secs_f64());
            let [p50, p99, p999, longest] = [0.5, 0.99, 0.999, 1.0].map(seconds);
            line("answer times", format!("p50 {p50}, p99 {p99}, p99.9 {p999}, longest {longest}"));
            let limit = DEADLINE + GRACE;
            line(&format!("answers over {limit:?}"), times.slower_than(limit).to_string());
        }
        Some(queue) => {
            let Messages { put, longest, deleted, lapsed, receives } = queue.messages();
            line("messages put", put.to_string());
            line("messages deleted", format!("{deleted}, dropped by the queue {lapsed}"));
            let again: usize = receives.iter().filter(|(times, _)| **times > 1).map(|(_, messages)| messages).sum();
            let by_times = receives.iter().map(|(times, messages)| (format!("{times} times"), messages)).collect();
            line("received more than once", format!("{again} ({})", counts(&by_times)));
            line("longest queue", longest.to_string());
        }
    }
    for counter in Counter::ALL {
        line(counter.name(), stage.counted(counter).to_string());
    }
    for (bus, on_bus) in Bus::ALL.iter().zip(&verdict.buses) {
        for &number in on_bus.missing.iter().take(SHOWN) {
            line(&format!("missing on {}", bus.name()), missing(run, number));
        }
    }
    for example in verdict.wrong_examples.iter().take(SHOWN) {
        line("not as sent", example.clone());
    }
    text
}

/// `name count, name count`.
fn counts<Name: std::fmt::Display, Times: std::fmt::Display>(counts: &BTreeMap<Name, Times>) -> String {
    let counts: Vec<String> = counts.iter().map(|(name, times)| format!("{name} {times}")).collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}

/// A missing event, with the time at which it was due. What was done at that time is printed above.
fn missing(run: &Run, number: usize) -> String {
    format!(
        "{} of {}, due at {:.1} s",
        run.media_id(number),
        Run::dialect(number).name(),
        run.due(number).as_secs_f64()
    )
}

/// Writes what is too long for the report: the missing events, and all copies of events that differ.
async fn keep_evidence(
    folder: &Path,
    run: &Run,
    stage: &Stage,
    count: &Count,
    verdict: &Verdict,
) -> Result<(), Box<dyn std::error::Error>> {
    for (bus, on_bus) in Bus::ALL.iter().zip(&verdict.buses).filter(|(_, on_bus)| !on_bus.missing.is_empty()) {
        let lines = on_bus.missing.iter().map(|&number| missing(run, number) + "\n").collect::<String>();
        std::fs::write(folder.join(format!("missing-on-{}.txt", bus.name())), lines)?;
    }
    if !verdict.wrong_examples.is_empty() {
        std::fs::write(folder.join("not-as-sent.txt"), verdict.wrong_examples.join("\n"))?;
    }
    if count.has_disputed() {
        // Only hashes of the first copies were kept, so both buses are read again.
        let mut copies = Vec::new();
        read_both(stage, |record| {
            if let Some(number) = count.disputed(&record).filter(|_| copies.len() < EXAMPLES) {
                copies.push((number, record));
            }
        })
        .await?;
        // Copies of one event next to each other.
        copies.sort_by_key(|(number, _)| *number);
        let mut file = std::fs::File::create(folder.join("disputed.txt"))?;
        for (_, record) in copies {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (place, key, body) = (record.place(), record.key.as_deref().map(text), text(&record.body));
            writeln!(file, "{place}\nkey {key:?}\nheaders {:?}\n{body}\n", record.headers)?;
        }
    }
    Ok(())
}
