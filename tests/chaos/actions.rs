//! What is done to the servers, the bridges, their disk and the queue.
//!
//! Promises: after [`play`] everything runs and works again. Each action is printed with its time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::task::block_in_place;
use tokio::time::sleep_until;

use crate::plan::{Action, Step, Target};
use crate::stage::{Stage, is_split, kafka_topics, routes, safe_copies, streams, topic_settings};
use crate::support::program::Program;
use crate::support::wait::{AT_ONCE, SETTLED, let_pass, try_eventually};
use crate::support::{eventually, on_thread};

/// How long the bridge may take to read its configuration again.
const RELOADED: Duration = Duration::from_secs(20);

/// The time between two signals.
const SECOND_SIGNAL: Duration = Duration::from_millis(200);

/// The file that fills the disk.
const BALLAST: &str = "ballast";

/// Performs the steps, in order for each target, until the run is over.
pub async fn play(stage: Arc<Stage>, steps: Vec<Step>, length: Duration) {
    let started = stage.started;
    let actors = Target::ALL.map(|target| {
        let steps: Vec<Step> = steps.iter().copied().filter(|step| step.action.target() == target).collect();
        let stage = stage.clone();
        on_thread(move || async move {
            for step in steps {
                // The plan defines the time.
                sleep_until((started + step.at).into()).await;
                // A slow machine skips late steps when nothing is sent any more.
                if started.elapsed() >= length {
                    break;
                }
                perform(&stage, step).await;
            }
        })
    });
    for actor in actors {
        actor.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    }
}

/// Performs a step and undoes it.
async fn perform(stage: &Stage, step: Step) {
    let Step { action, lasting, .. } = step;
    if action == Action::FillDisk && stage.disk.is_none() {
        return;
    }
    stage.count_deed(action);
    if lasting.is_zero() {
        stage.tell(action.name());
    } else {
        stage.tell(&format!("{} for {:.1} s", action.name(), lasting.as_secs_f64()));
    }
    let back = match action.target() {
        Target::Kafka => {
            to_kafka(stage, step).await;
            "Kafka is back"
        }
        Target::Nats => {
            to_nats(stage, step).await;
            "NATS is back"
        }
        Target::Bridge => {
            to_bridge(stage, step).await;
            "bridge is back"
        }
        Target::Disk => {
            fill_disk(stage, lasting).await;
            "the disk has room"
        }
        Target::Mns => {
            let queue = stage.queue.as_ref().expect("the plan has this action only with a queue");
            block_in_place(|| queue.down());
            let_pass(lasting).await;
            block_in_place(|| queue.up());
            "MNS is back"
        }
    };
    stage.tell(back);
}

async fn to_kafka(stage: &Stage, step: Step) {
    let kafka = &stage.kafka;
    let place = step.which % kafka.brokers().len();
    match step.action {
        Action::KillKafka => {
            kafka.kill(place).await;
            let_pass(step.lasting).await;
            kafka.start_again(place).await;
        }
        Action::FreezeKafka => {
            kafka.freeze(place).await;
            let_pass(step.lasting).await;
            kafka.thaw(place).await;
        }
        Action::KillAllKafka => {
            join_all((0..kafka.brokers().len()).map(|place| kafka.kill(place))).await;
            let_pass(step.lasting).await;
            join_all((0..kafka.brokers().len()).map(|place| kafka.start_again(place))).await;
        }
        Action::RefuseKafka => {
            let topic = &kafka_topics()[step.which % kafka_topics().len()];
            let all = kafka.brokers().len().to_string();
            configure(stage, topic, &all).await;
            kafka.kill(place).await;
            let_pass(step.lasting).await;
            configure(stage, topic, safe_copies(stage.servers)).await;
            kafka.start_again(place).await;
        }
        other => unreachable!("{other:?} is not an action on Kafka"),
    }
}

/// Sets how many copies of a topic must be written.
async fn configure(stage: &Stage, topic: &str, copies: &str) {
    eventually(&format!("topic {topic} to be configured"), SETTLED, async || {
        stage.kafka.configure_topic(topic, &topic_settings(copies)).await.ok()
    })
    .await;
}

async fn to_nats(stage: &Stage, step: Step) {
    let nats = &stage.nats;
    let place = step.which % nats.servers().len();
    let stream = &streams()[step.which % streams().len()];
    match step.action {
        Action::KillNats => {
            nats.kill(place).await;
            let_pass(step.lasting).await;
            nats.start_again(place).await;
        }
        Action::FreezeNats => {
            nats.freeze(place).await;
            let_pass(step.lasting).await;
            nats.thaw(place).await;
        }
        Action::KillAllNats => {
            join_all((0..nats.servers().len()).map(|place| nats.kill(place))).await;
            let_pass(step.lasting).await;
            join_all((0..nats.servers().len()).map(|place| nats.start_again(place))).await;
        }
        Action::StepDownNats => {
            eventually(&format!("the leader of {stream} to step down"), SETTLED, async || {
                nats.step_down(stream).await.then_some(())
            })
            .await;
        }
        Action::RefuseNats => {
            limit(stage, stream, true).await;
            let_pass(step.lasting).await;
            limit(stage, stream, false).await;
        }
        other => unreachable!("{other:?} is not an action on NATS"),
    }
}

/// Limits a stream to its current size, so it refuses new messages; or gives it room.
async fn limit(stage: &Stage, stream: &str, is_full: bool) {
    eventually(&format!("stream {stream} to be changed"), SETTLED, async || stage.nats.set_full(stream, is_full).await)
        .await;
}

async fn to_bridge(stage: &Stage, step: Step) {
    let bridge = &stage.bridges[step.which % stage.bridges.len()];
    match step.action {
        Action::KillBridge => {
            stage.before_end(bridge).await;
            block_in_place(|| bridge.process().kill());
            block_in_place(|| bridge.start_again());
        }
        Action::StopBridge => {
            stage.stop_bridge(bridge).await;
            block_in_place(|| bridge.start_again());
        }
        Action::StopBridgeTwice => {
            stop_twice(stage, bridge).await;
            block_in_place(|| bridge.start_again());
        }
        Action::FreezeBridge => {
            block_in_place(|| bridge.process().stop());
            let_pass(step.lasting).await;
            bridge.process().cont();
        }
        Action::ReloadBridge => reload(stage, bridge).await,
        other => unreachable!("{other:?} is not an action on the bridge"),
    }
}

/// Sends two signals. Callbacks without an outcome cause exit code 1. Their sender got no 200.
async fn stop_twice(stage: &Stage, bridge: &Program) {
    stage.before_end(bridge).await;
    bridge.process().signal("TERM");
    // The first signal has started the stop by then, but has not finished it.
    let_pass(SECOND_SIGNAL).await;
    let begun = Instant::now();
    let code = block_in_place(|| {
        let process = bridge.process();
        process.signal("TERM");
        process.wait(AT_ONCE)
    });
    stage.ended(bridge, code, &[0, 1], begun.elapsed());
}

/// Changes the routes to equivalent ones.
async fn reload(stage: &Stage, bridge: &Program) {
    let reloads = async |result: &str| {
        let metrics = bridge.metrics().await.ok()?;
        Some(metrics.sum("config_reloads_total", &[&format!("result=\"{result}\"")]))
    };
    let before = eventually("the metrics of the bridge", RELOADED, async || reloads("success").await).await;
    let config = bridge.configuration();
    let is_split = is_split(&config);
    bridge.reload(&config.routes(routes(!is_split)).to_string());
    let reloaded = async || reloads("success").await.filter(|&times| times != before);
    if try_eventually(RELOADED, reloaded).await.is_none() {
        let log = bridge.process().log_tail();
        stage.fault(format!("the configuration was not reloaded within {RELOADED:?} after SIGHUP:\n{log}"));
    }
}

/// Fills the disk of the spools, and frees it again.
async fn fill_disk(stage: &Stage, lasting: Duration) {
    let disk = stage.disk.as_ref().expect("checked before");
    block_in_place(|| disk.fill(BALLAST));
    let_pass(lasting).await;
    std::fs::remove_file(disk.path(BALLAST)).expect("the ballast is there");
}
