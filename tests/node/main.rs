//! The image and the chart on a real Kubernetes node.
//!
//! First the image that `make image` built is examined, and its program is run in it. Then the chart is installed, and
//! everything that happens to a release in its life is played while a sender that behaves like Alibaba posts 100
//! callbacks per second to the Service: see [`scenarios`]. At the end the bus is read and the events are counted. At
//! last, an engine for NetworkPolicies is started: see [`policies`].
//!
//! The run fails unless:
//! - every callback that was answered with 200, and every message of the queue, is on the bus;
//! - no callback is given up by the sender, except while the only node was down, or nothing was installed. Those are
//!   counted apart;
//! - every scenario ends as it must.
//!
//! It needs root, and runs in namespaces of its own, so nothing of it is left on the machine:
//! see [`support::node`]. Where the machine does not allow that, it says so, and fails unless NOT_RUN_FILE is set.
//!
//! Environment: IMAGE, the archive (target/image/apsara-bridge.tar); NODE_MODE=stay starts only the node, with the
//! image, and waits for Ctrl-C. After a failure the logs are in `target/tmp/node`.

// Tests fail with a panic; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

mod image;
mod load;
mod policies;
mod scenarios;
mod stage;
#[path = "../support/mod.rs"]
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use load::{Load, RATE, given_up};
use stage::{FULL_NAME, RELEASE, Stage};
use support::kubernetes::kubeconfig;
use support::node::{self, Node};
use support::{installed, not_run, tool};

fn main() -> ExitCode {
    if let Some(reason) = node::refusal() {
        not_run(&reason);
        return if std::env::var_os("NOT_RUN_FILE").is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    node::enclose();
    let begun = Instant::now();
    if std::env::var("NODE_MODE").is_ok_and(|mode| mode == "stay") {
        stay();
        return ExitCode::SUCCESS;
    }
    load::prove();
    println!("image: {}", image::examine());
    let node = Node::start();
    println!("node: ready after {:.0} s", begun.elapsed().as_secs_f64());
    node.load(&image::archive());
    image::try_it(&node);
    println!("image: send, health, check, serve and demo run in it");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let stage = runtime.block_on(Stage::new(node));
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(run(&stage))));
    let ended = ended.and_then(|faults| catch_unwind(AssertUnwindSafe(|| policies::try_them(&stage))).map(|()| faults));
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("node");
    let faults = match ended {
        Ok(faults) if faults.is_empty() => {
            println!("node: passed in {:.0} s", begun.elapsed().as_secs_f64());
            return ExitCode::SUCCESS;
        }
        Ok(faults) => faults,
        Err(panic) => {
            stage.node.keep_logs(&logs);
            println!("logs: {}", logs.display());
            resume_unwind(panic);
        }
    };
    stage.node.keep_logs(&logs);
    faults.iter().for_each(|fault| println!("fault: {fault}"));
    println!("logs: {}", logs.display());
    println!("node: FAILED after {:.0} s", begun.elapsed().as_secs_f64());
    ExitCode::FAILURE
}

/// The life of the release. Returns the faults.
async fn run(stage: &Stage) -> Vec<String> {
    scenarios::install(stage);
    let load = Load::start(stage.service(FULL_NAME));
    let played = scenarios::play(stage, &load).await;
    let (sender, accepted) = load.stop().await;
    stage.emptied();
    stage.helm_release(&["uninstall", RELEASE, "--wait"]).succeeded();

    let found = stage.found().await;
    let mut faults = Vec::new();
    let ranges: Vec<_> = played.without_a_pod.iter().map(|(_, range)| range.clone()).collect();
    let (excused, given_up) = given_up(&accepted, &ranges);
    if !given_up.is_empty() {
        let seconds = |number: &usize| format!("{:.1} s", *number as f64 / f64::from(RATE));
        let times: Vec<String> = given_up.iter().take(10).map(seconds).collect();
        faults.push(format!("{} callbacks were given up, due at {}", given_up.len(), times.join(", ")));
    }
    println!();
    let line = |name: &str, value: String| println!("{name:<36}{value}");
    for (series, accepted) in scenarios::series(&accepted, &played) {
        let missing = found.missing(series, accepted);
        let taken = accepted.iter().filter(|accepted| **accepted).count();
        let (lost, repeats) = (missing.len(), found.repeats(series));
        let of = accepted.len();
        line(&format!("{series}: sent, accepted"), format!("{of}, {taken}"));
        line(&format!("{series}: lost, repeated"), format!("{lost}, {repeats}"));
        if lost > 0 {
            let first = &missing[..missing.len().min(10)];
            faults.push(format!("{lost} accepted events of {series} are not on the bus, for example {first:?}"));
        }
    }
    line("given up", given_up.len().to_string());
    line("given up without a pod", excused.to_string());
    for (why, range) in &played.without_a_pod {
        let failed = accepted[range.start..range.end.min(accepted.len())].iter().filter(|accepted| !**accepted).count();
        line(&format!("  {why}"), format!("{failed} of {}", range.len()));
    }
    let (tally, times) = (sender.tally(), sender.answer_times(0));
    line("answers by status", format!("{:?}", tally.statuses));
    line("tries without an answer", format!("{:?}", tally.unanswered));
    let seconds = |share: f64| format!("{:.3} s", times.percentile(share).as_secs_f64());
    line("answer times p50, p99, longest", format!("{}, {}, {}", seconds(0.5), seconds(0.99), seconds(1.0)));
    println!();
    faults
}

/// A node for a person.
fn stay() {
    let node = Node::start();
    let archive = image::archive();
    if archive.is_file() {
        node.load(&archive);
        println!("the image is loaded: {}", image::NAME);
    } else {
        println!("there is no image: run `make image` before");
    }
    // The first process of the namespaces, as others see it.
    let outside = std::fs::read_to_string(node::folder().join("outside")).unwrap_or_default();
    let enter = format!("nsenter --target {} --net --mount --pid", outside.trim());
    let config = kubeconfig(node.kubernetes().folder());
    let (kubectl, config) = (installed("kubernetes/kubectl", "kubernetes"), config.display().to_string());
    println!("the node is ready. In another terminal, as root:");
    println!("    {enter} --wd=$PWD env KUBECONFIG={config} bash");
    println!("    {} get nodes", kubectl.display());
    println!("    {} install media charts/apsara-bridge --values …", tool("helm", "chart").display());
    println!("Pods reach servers that listen on {} there. Ctrl-C ends the node and removes it.", node::ADDRESS);
    loop {
        std::thread::sleep(Duration::from_secs(3_600));
    }
}
