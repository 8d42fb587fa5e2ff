//! Clusters: the bridge's own program under the load of a sender like Alibaba, with three nats-servers or three Kafka
//! brokers. Their leaders step down, servers are killed, frozen and restarted, and the network fails.
//!
//! The run fails unless, after each scenario:
//! - each callback that was answered with 200 is on the bus with one id, and no two have the same id;
//! - there is no dead letter, and the spool is empty within a time limit;
//! - the bridge ends only after SIGTERM, with exit code 0;
//! - the fault had an effect: a scenario in which nothing was spooled, no leader was elected and nothing was slow
//!   proves nothing, and is an error of the test.
//!
//! One line of figures is printed for each scenario. Repeats are allowed, and counted.
//!
//! Environment: CLUSTERS_FORM, short (default; under 100 s) or full (under 20 minutes); CLUSTERS_ONLY, a part of the
//! names of the scenarios to run (default: all). After a failure the log, configuration and spool of the bridge and the
//! logs of the servers are kept below `target/tmp`. The last line names the folder.
//!
//! # Layout
//!
//! - [`side`]: a bus, its servers and what can be done to them
//! - [`fault`]: the table of scenarios, and how each fault is caused
//! - [`stage`]: one scenario: a bridge, its load and its end; [`verdict`]: what was found on the bus
//! - [`sick`] and [`typo`]: destinations that do not work next to one that does
//! - here: the run

// Tests fail with a panic; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

mod fault;
mod sick;
mod side;
mod stage;
#[path = "../support/mod.rs"]
mod support;
mod typo;
mod verdict;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use side::Side;
use stage::{Report, Stage};
use support::on_thread;
use support::read::Bus;

/// The length of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    Short,
    Full,
}

/// Longer than any scenario takes. A scenario that hangs is reported, and the next one runs.
const LONGEST: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let form = match std::env::var("CLUSTERS_FORM").as_deref() {
        Err(_) | Ok("short") => Form::Short,
        Ok("full") => Form::Full,
        Ok(other) => panic!("CLUSTERS_FORM={other}: expected short or full"),
    };
    let only = std::env::var("CLUSTERS_ONLY").unwrap_or_default();
    verdict::prove();
    let folder = tempfile::Builder::new().prefix("clusters-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
    let folder = folder.expect("cargo creates the folder for the files of tests");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let started = Instant::now();
    let faults = runtime.block_on(run(form, &only, folder.path()));
    // This also ends the tasks that a panic left behind, and their processes.
    drop(runtime);
    println!("clusters: {:.0} s", started.elapsed().as_secs_f64());
    if faults.is_empty() {
        println!("clusters: passed");
        return ExitCode::SUCCESS;
    }
    println!("\nfaults:");
    faults.iter().for_each(|fault| println!("  {fault}"));
    println!("kept: {}", folder.keep().display());
    println!("clusters: FAILED");
    ExitCode::FAILURE
}

/// Runs all scenarios of a form. Returns the faults.
async fn run(form: Form, only: &str, folder: &std::path::Path) -> Vec<String> {
    let scenarios: Vec<Scenario> = scenarios().into_iter().filter(|scenario| scenario.is_in(form, only)).collect();
    assert!(!scenarios.is_empty(), "CLUSTERS_ONLY={only}: no scenario of this form has this in its name");
    // Kafka takes many seconds to start: the scenarios of NATS run in the meantime.
    let [nats, kafka] = [Bus::Nats, Bus::Kafka].map(|bus| {
        let is_wanted = scenarios.iter().any(|scenario| scenario.bus == bus);
        on_thread(move || async move { if is_wanted { Some(Side::start(bus).await) } else { None } })
    });
    let mut faults = Vec::new();
    for (bus, starting) in [(Bus::Nats, nats), (Bus::Kafka, kafka)] {
        let side = match starting.await {
            Ok(None) => continue,
            Ok(Some(side)) => Arc::new(side),
            Err(_) => {
                faults.push(format!("{}: the cluster did not start: see the panic above", bus.name()));
                continue;
            }
        };
        for scenario in scenarios.iter().filter(|scenario| scenario.bus == bus) {
            faults.extend(scenario.run(&side, folder).await);
        }
        if !faults.is_empty() {
            side.keep_logs(folder);
        }
    }
    faults
}

/// The kind of a scenario.
#[derive(Clone, Copy, Debug)]
enum Play {
    Fault(&'static fault::Scenario),
    Sick,
    Typo,
}

/// One scenario on one bus.
#[derive(Clone, Copy, Debug)]
struct Scenario {
    name: &'static str,
    bus: Bus,
    form: Form,
    play: Play,
}

/// All scenarios, those of one bus in the order in which they run.
fn scenarios() -> Vec<Scenario> {
    let faults = fault::SCENARIOS.iter().flat_map(|fault| {
        fault.on.iter().map(|&(bus, form)| Scenario { name: fault.name, bus, form, play: Play::Fault(fault) })
    });
    let others = [("sick topic", Play::Sick), ("topic with a typo", Play::Typo)];
    let others =
        others.into_iter().flat_map(|(name, play)| Bus::ALL.map(|bus| Scenario { name, bus, form: Form::Full, play }));
    faults.chain(others).collect()
}

impl Scenario {
    fn is_in(&self, form: Form, only: &str) -> bool {
        // A scenario that is selected by name runs in any form.
        if only.is_empty() { self.form <= form } else { self.title().contains(only) }
    }

    fn title(&self) -> String {
        format!("{} {}", self.bus.name(), self.name)
    }

    /// Runs it and prints its line. Returns the faults.
    async fn run(self, side: &Arc<Side>, folder: &std::path::Path) -> Vec<String> {
        let begun = Instant::now();
        let place = self.title().to_lowercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
        let stage = Stage::new(side.clone(), place.clone(), folder.join(&place));
        // A panic in this thread is one more fault. Its message is already printed.
        let playing = on_thread(move || async move {
            let play = async {
                match self.play {
                    Play::Fault(scenario) => fault::play(stage, scenario).await,
                    Play::Sick => sick::play(stage).await,
                    Play::Typo => typo::play(stage).await,
                }
            };
            let late = Report::broken(&format!("still running after {LONGEST:?}"));
            tokio::time::timeout(LONGEST, play).await.unwrap_or(late)
        });
        let report = playing.await.unwrap_or_else(|_| Report::broken("aborted: see the panic above"));
        let title = self.title();
        println!("{title:<38}{}  {:.1} s", report.figures, begun.elapsed().as_secs_f64());
        report.faults.iter().for_each(|fault| println!("    FAULT: {fault}"));
        if report.is_broken {
            // Otherwise servers that an aborted scenario left frozen or killed would let all others fail too.
            side.repair().await;
        }
        report.faults.into_iter().map(|fault| format!("{title}: {fault} (log: {place}/bridge.log)")).collect()
    }
}
