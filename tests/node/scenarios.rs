//! What happens to a release in its life, one after the other, while callbacks come in.
//!
//! A scenario panics when something is not as it must be. Whether events were lost is judged at the end.

use std::ops::Range;

use serde_json::{Value, json};

use crate::load::{Load, STEADY, post};
use crate::stage::{FULL_NAME, PATIENCE, Pod, RELEASE, SECRET, Stage};
use crate::support::mns::queue::{Counts, QueueAttributes};
use crate::support::mns::{Mns, MnsOptions};
use crate::support::node::ADDRESS;
use crate::support::wait::try_wait_for;
use crate::support::{eventually, wait_for};

/// How many records are in the spool of the pod that is removed.
const STRANDED: usize = 5_000;

/// The series of those callbacks.
pub const BURST: &str = "burst";

/// How many of them are sent per second.
const BURST_RATE: u32 = 200;

/// The series that comes from a queue, and how many messages it has.
pub const QUEUED: &str = "queued";
const MESSAGES: usize = 2_000;

/// What is known only afterwards.
#[derive(Debug, Default)]
pub struct Played {
    /// The callbacks of the steady series during which no pod could run, and why.
    pub without_a_pod: Vec<(&'static str, Range<usize>)>,
    /// Whether each callback of the burst was accepted.
    pub burst: Vec<bool>,
}

/// The values of the release as they are now: scenarios change them and leave them so.
struct Release<'a> {
    stage: &'a Stage,
    changes: Value,
}

impl Release<'_> {
    /// Upgrades it with a change that stays.
    fn upgrade(&mut self, path: &str, value: Value) {
        self.set(path, value);
        let values = self.stage.values(self.changes.clone());
        self.stage.helm("upgrade", RELEASE, &self.stage.namespace, &values).succeeded();
    }

    fn set(&mut self, path: &str, value: Value) {
        let place = path.split('.').fold(&mut self.changes, |place, key| &mut place[key]);
        *place = value;
    }
}

/// The installation, without a load: there is no address yet.
pub fn install(stage: &Stage) {
    stage.helm("install", RELEASE, &stage.namespace, &stage.values(json!({}))).succeeded();
    let pods = stage.pods();
    assert_eq!(pods.len(), 2, "{pods:?}");
    stage.tell("installed, with two pods in a namespace that enforces \"restricted\"");
}

/// All of them, under the load.
pub async fn play(stage: &Stage, load: &Load) -> Played {
    let mut played = Played::default();
    let mut release = Release { stage, changes: json!({}) };
    is_accepting(stage, load).await;
    helm_test(stage);
    rolling_upgrade(&mut release);
    routes_without_a_restart(&mut release).await;
    deleted_pod(stage, &[]);
    deleted_pod(stage, &["--force", "--grace-period=0"]);
    node_restart(stage, load, &mut played);
    is_accepting(stage, load).await;
    bus_down_during_a_rollout(&mut release).await;
    wrong_configuration(&release);
    played.burst = scaled_down(&mut release).await;
    rollback(&mut release).await;
    reinstall(&release, load, &mut played).await;
    is_accepting(stage, load).await;
    queue_only(stage).await;
    played
}

/// Waits until callbacks are accepted.
async fn is_accepting(stage: &Stage, load: &Load) {
    let before = load.sender().accepted();
    eventually("answers with 200", PATIENCE, async || (load.sender().accepted() > before + 100).then_some(())).await;
    stage.tell("callbacks are accepted");
}

fn helm_test(stage: &Stage) {
    stage.helm_release(&["test", RELEASE]).succeeded();
    stage.tell("helm test passed");
}

fn rolling_upgrade(release: &mut Release<'_>) {
    let stage = release.stage;
    let before = stage.pods();
    release.upgrade("podAnnotations", json!({ "upgrade": "first" }));
    let after = stage.pods();
    assert_eq!(after.len(), 2);
    assert!(replaced(&before, &after), "pods were not replaced: {before:?} {after:?}");
    stage.tell("rolling upgrade");
}

fn replaced(before: &[Pod], after: &[Pod]) -> bool {
    after.iter().all(|pod| before.iter().all(|old| old.uid != pod.uid))
}

/// What identifies pods, without a restart between two looks.
fn same(pods: &[Pod]) -> Vec<(&str, &str, u64)> {
    pods.iter().map(|pod| (pod.name.as_str(), pod.uid.as_str(), pod.restarts)).collect()
}

async fn routes_without_a_restart(release: &mut Release<'_>) {
    let stage = release.stage;
    let before = stage.pods();
    assert_eq!(stage.length("moved.vod").await, 0);
    let route = json!([{ "name": "moved", "to": { "output": "kafka", "topic": "moved.{dialect}" } }]);
    release.upgrade("config", json!({ "routes": route }));
    eventually("events on the new topic", PATIENCE, async || (stage.length("moved.vod").await > 0).then_some(())).await;
    // Both pods apply it, and not at the same time.
    eventually("no events on the old topic", PATIENCE, async || {
        let (old, new) = (stage.length("media.vod").await, stage.length("moved.vod").await);
        eventually("more events", PATIENCE, async || (stage.length("moved.vod").await > new + 200).then_some(())).await;
        (stage.length("media.vod").await == old).then_some(())
    })
    .await;
    assert_eq!(same(&before), same(&stage.pods()), "pods were restarted");
    stage.tell("routes changed, no pod restarted");
}

fn deleted_pod(stage: &Stage, flags: &[&str]) {
    let before = stage.pods();
    let pod = &before[0].name;
    let arguments = [&["delete", "pod", pod, "--namespace", &stage.namespace], flags].concat();
    stage.kubernetes().kubectl(&arguments).succeeded();
    wait_for("a new pod", PATIENCE, || {
        let after = stage.pods();
        (after.len() == 2 && after[0].uid != before[0].uid).then_some(())
    });
    stage.rolled_out();
    stage.tell(if flags.is_empty() { "pod deleted and replaced" } else { "pod killed by force and replaced" });
}

fn node_restart(stage: &Stage, load: &Load, played: &mut Played) {
    let (from, before) = (load.still_trying(), stage.pods());
    stage.node.restart();
    wait_for("restarted containers", PATIENCE, || {
        let after = stage.pods();
        let is_restarted = |pod: &Pod| {
            before.iter().any(|old| old.name == pod.name && (old.uid != pod.uid || old.restarts < pod.restarts))
        };
        (after.len() == 2 && after.iter().all(is_restarted)).then_some(())
    });
    stage.rolled_out();
    played.without_a_pod.push(("the only node was down", from..load.begun() + 1));
    stage.tell("node restarted: kubelet, containerd and all containers");
}

async fn bus_down_during_a_rollout(release: &mut Release<'_>) {
    let stage = release.stage;
    let before = stage.pods();
    stage.bus_down().await;
    wait_for("records in the spools", PATIENCE, || stage.spooled().is_some_and(|records| records > 0.0).then_some(()));
    release.upgrade("podAnnotations", json!({ "upgrade": "without the bus" }));
    assert!(replaced(&before, &stage.pods()));
    let records = stage.spooled();
    assert!(records.is_some_and(|records| records > 0.0), "{records:?} records in the spools");
    stage.bus_up().await;
    stage.emptied();
    stage.tell(&format!("rollout without the bus, {} records were in the spools", records.unwrap_or_default()));
}

/// A configuration that the schema of the values accepts and the program refuses.
fn wrong_configuration(release: &Release<'_>) {
    let stage = release.stage;
    let (pods, config) = (stage.pods(), stage.object("configmap", FULL_NAME)["data"].clone());
    let mut changes = release.changes.clone();
    changes["config"]["routes"] =
        json!([{ "name": "wrong", "to": { "output": "kafka", "topic": "moved.{no_such_attribute}" } }]);
    let ran = stage.helm("upgrade", RELEASE, &stage.namespace, &stage.values(changes));
    let said = ran.refused().expect("a wrong configuration is refused");
    assert!(said.contains("pre-upgrade"), "not stopped by the Job: {said}");
    assert_eq!(same(&pods), same(&stage.pods()), "pods were restarted");
    assert_eq!(stage.object("configmap", FULL_NAME)["data"], config, "the configuration has changed");
    stage.tell("wrong configuration stopped, nothing changed");
}

/// The volume of the removed pod has events, and the bus is down. They are published when it is back, by the drain Job
/// and not by a new pod.
async fn scaled_down(release: &mut Release<'_>) -> Vec<bool> {
    let stage = release.stage;
    let removed = stage.pods().pop().expect("two pods");
    stage.bus_down().await;
    let address = std::net::SocketAddr::new(removed.address.expect("it runs"), 8080);
    let accepted = post(BURST, address, BURST_RATE, STRANDED).await;
    let sent = accepted.iter().filter(|accepted| **accepted).count();
    assert_eq!(sent, STRANDED, "of {STRANDED} callbacks to {address}, {sent} were accepted");
    let records = stage.metric(&removed.name, "apsara_bridge_spool_events").expect("it runs");
    assert!(records >= STRANDED as f64, "{records} records in the spool of {}", removed.name);

    release.upgrade("replicaCount", json!(1));
    wait_for("one pod", PATIENCE, || (stage.pods().len() == 1).then_some(()));
    let (selector, namespace) = ("app.kubernetes.io/component=drain", stage.namespace.as_str());
    let jobs = ["get", "jobs", "--namespace", namespace, "--selector", selector, "--output=name"];
    let jobs = stage.kubernetes().kubectl(&jobs).succeeded().out;
    let jobs: Vec<&str> = jobs.lines().collect();
    assert_eq!(jobs.len(), 1, "one claim has no pod");
    let complete = |limit: &str| {
        let wait = ["wait", "--for=condition=complete", jobs[0], "--namespace", namespace, limit];
        stage.kubernetes().kubectl(&wait)
    };
    assert_ne!(complete("--timeout=5s").code, 0, "the Job ended although the bus is down");
    stage.bus_up().await;
    complete("--timeout=5m").succeeded();
    let found = stage.found().await;
    let missing = found.missing(BURST, &accepted).len();
    assert_eq!(missing, 0, "{missing} of {sent} events are not on the bus after the Job");
    stage.tell(&format!("scaled from 2 to 1 without the bus: the Job published {records} records"));

    release.upgrade("replicaCount", json!(2));
    assert_eq!(stage.pods().len(), 2);
    stage.emptied();
    stage.tell("scaled back to 2");
    accepted
}

async fn rollback(release: &mut Release<'_>) {
    let stage = release.stage;
    let (revision, before) = (stage.revision(), stage.pods());
    let kept = release.changes.clone();
    release.upgrade("podAnnotations", json!({ "upgrade": "rolled back" }));
    stage.helm_release(&["rollback", RELEASE, &revision, "--wait"]).succeeded();
    stage.rolled_out();
    release.changes = kept;
    let set = stage.object("statefulset", FULL_NAME);
    let annotation = &set["spec"]["template"]["metadata"]["annotations"]["upgrade"];
    assert_eq!(*annotation, release.changes["podAnnotations"]["upgrade"]);
    assert!(replaced(&before, &stage.pods()));
    stage.tell("rolled back");
}

async fn reinstall(release: &Release<'_>, load: &Load, played: &mut Played) {
    let stage = release.stage;
    let volumes = || -> Vec<(String, String)> {
        let volume = |number: usize| {
            let name = format!("spool-{FULL_NAME}-{number}");
            let claim = stage.object("persistentvolumeclaim", &name);
            (name, claim["spec"]["volumeName"].as_str().expect("bound").to_owned())
        };
        (0..2).map(volume).collect()
    };
    let before = volumes();
    stage.bus_down().await;
    let wanted = 500.0;
    wait_for("records in the spools", PATIENCE, || {
        stage.spooled().is_some_and(|records| records > wanted).then_some(())
    });
    let from = load.still_trying();
    stage.helm_release(&["uninstall", RELEASE, "--wait"]).succeeded();
    stage.pods_gone();
    stage.bus_up().await;
    let on_the_bus = stage.length("moved.vod").await;
    stage.helm("install", RELEASE, &stage.namespace, &stage.values(release.changes.clone())).succeeded();
    assert_eq!(volumes(), before);
    load.sender().moved(stage.service(FULL_NAME));
    stage.emptied();
    assert!(stage.length("moved.vod").await > on_the_bus);
    stage.tell("uninstalled with records in the spools, and installed again on the old volumes");
    played.without_a_pod.push(("nothing was installed", from..load.begun() + 1));
}

/// A second release, which has only a queue.
async fn queue_only(stage: &Stage) {
    const QUEUE: &str = "media";
    const OTHER: &str = "queue";
    let mns = Mns::start(MnsOptions { address: ADDRESS, ..MnsOptions::default() });
    mns.create_queue(QUEUE, QueueAttributes::default());
    mns.put_all(
        QUEUE,
        (0..MESSAGES)
            .map(|number| String::from_utf8(crate::load::callback(QUEUED, number).body.to_vec()).expect("JSON")),
    );
    let (namespace, id, secret) = (stage.kubernetes().namespace("queue"), Mns::KEY_ID, Mns::KEY_SECRET);
    stage.secret(&namespace, &[("id", id), ("secret", secret)]);
    let values = json!({
        "config": {
            "inputs": { "queue": {
                "kind": "mns",
                "endpoint": mns.endpoint(),
                "queue": QUEUE,
                "credentials": {
                    "access_key_id": { "file": "/run/secrets/apsara-bridge/queue/id" },
                    "access_key_secret": { "file": "/run/secrets/apsara-bridge/queue/secret" },
                },
            } },
            "outputs": { "kafka": { "kind": "kafka", "brokers": stage.kafka.reached_at() } },
            "routes": [{ "name": "everything", "to": { "output": "kafka", "topic": "queue.{dialect}" } }],
        },
        "secrets": { "queue": { "existingSecret": SECRET, "keys": ["id", "secret"] } },
    });
    stage.helm("install", OTHER, &namespace, &values).succeeded();
    let left = try_wait_for(PATIENCE, || {
        let Counts { active, inactive, delayed } = mns.counts(QUEUE);
        (active + inactive + delayed == 0).then_some(())
    });
    assert!(left.is_some(), "left in the queue: {:?}", mns.counts(QUEUE));
    assert_eq!(mns.deleted(QUEUE).len(), MESSAGES);
    // What was deleted is on the bus or in a spool. The end of the pods does not publish the spools.
    eventually("the messages on the bus", PATIENCE, async || {
        stage.found().await.missing(QUEUED, &[true; MESSAGES]).is_empty().then_some(())
    })
    .await;
    let arguments = ["uninstall", OTHER, "--namespace", &namespace, "--wait"];
    stage.kubernetes().helm(&arguments).succeeded();
    stage.tell(&format!("a queue as the only input: {MESSAGES} messages published and deleted"));
}

/// The series that must be on the bus, by what was accepted.
pub fn series<'a>(steady: &'a [bool], played: &'a Played) -> [(&'static str, &'a [bool]); 3] {
    [(STEADY, steady), (BURST, &played.burst), (QUEUED, &[true; MESSAGES])]
}
