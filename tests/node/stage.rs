//! The node, the bus, and the release, with what scenarios do to them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::load::Found;
use crate::support::bridge::{KEY, URL};
use crate::support::kafka::KafkaOptions;
use crate::support::kafka::cluster::KafkaCluster;
use crate::support::kubernetes::{Kubernetes, Ran};
use crate::support::node::{ADDRESS, Node, folder};
use crate::support::{blocking, read, repository, wait_for};

/// The name of the release under load.
pub const RELEASE: &str = "media";

/// The names of its objects.
pub const FULL_NAME: &str = "media-apsara-bridge";

/// The name of the Secret of each release.
pub const SECRET: &str = "keys";

/// The topics, with one partition each.
const TOPICS: [&str; 6] = ["media.vod", "media.ims", "moved.vod", "moved.ims", "queue.vod", "queue.ims"];

/// Limit for everything that takes seconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The same for helm.
const TIMEOUT: &str = "--timeout=5m";

/// All of it.
#[derive(Debug)]
pub struct Stage {
    pub node: Node,
    pub kafka: KafkaCluster,
    /// Of the release.
    pub namespace: String,
    values: PathBuf,
    begun: Instant,
}

/// A pod as the scenarios see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    pub uid: String,
    pub restarts: u64,
    pub address: Option<IpAddr>,
}

impl Stage {
    /// Starts the bus, and creates the namespace with the Secret of the release.
    pub async fn new(node: Node) -> Stage {
        let kafka = KafkaCluster::start(1, KafkaOptions { reached_at: Some(ADDRESS), ..KafkaOptions::default() }).await;
        for topic in TOPICS {
            kafka.create_topic(topic, 1, &[]).await;
        }
        let namespace = node.kubernetes().namespace("media");
        let stage = Stage { values: folder().join("values"), node, kafka, namespace, begun: Instant::now() };
        std::fs::create_dir_all(&stage.values).expect("the folder can be written to");
        stage.secret(&stage.namespace, &[("key", KEY)]);
        stage
    }

    /// Creates the Secret of a release.
    pub fn secret(&self, namespace: &str, content: &[(&str, &str)]) {
        let content: Vec<String> = content.iter().map(|(key, value)| format!("--from-literal={key}={value}")).collect();
        let content: Vec<&str> = content.iter().map(String::as_str).collect();
        let arguments = ["create", "secret", "generic", SECRET, "--namespace", namespace];
        self.kubernetes().kubectl(&[&arguments[..], &content].concat()).succeeded();
    }

    pub fn kubernetes(&self) -> &Kubernetes {
        self.node.kubernetes()
    }

    /// Prints a line with the time.
    pub fn tell(&self, what: &str) {
        println!("{:7.1} s  {what}", self.begun.elapsed().as_secs_f64());
    }

    /// The values of a release that takes callbacks, with changes.
    pub fn values(&self, changes: Value) -> Value {
        let endpoint = json!({
            "path": "/callbacks",
            "urls": [URL],
            "keys": [{ "file": "/run/secrets/apsara-bridge/callback/key" }],
        });
        let mut values = json!({
            "config": {
                "inputs": { "http": { "kind": "http", "endpoints": [endpoint] } },
                "outputs": { "kafka": { "kind": "kafka", "brokers": self.kafka.reached_at() } },
                "routes": [{ "name": "everything", "to": { "output": "kafka", "topic": "media.{dialect}" } }],
            },
            "secrets": { "callback": { "existingSecret": SECRET, "keys": ["key"] } },
        });
        merge(&mut values, changes);
        values
    }

    /// Runs `helm install` or `helm upgrade`, with values. It waits for the pods.
    pub fn helm(&self, command: &str, release: &str, namespace: &str, values: &Value) -> Ran {
        let file = self.values.join(format!("{release}.json"));
        std::fs::write(&file, values.to_string()).expect("the folder can be written to");
        let (chart, file) = (repository("charts/apsara-bridge"), file.to_string_lossy().into_owned());
        let chart = chart.to_string_lossy();
        let arguments = [command, release, &chart, "--namespace", namespace, "--values", &file, "--wait", TIMEOUT];
        self.kubernetes().helm(&arguments)
    }

    /// Runs another command of helm for the release. It waits too.
    pub fn helm_release(&self, words: &[&str]) -> Ran {
        let arguments = [words, &["--namespace", &self.namespace, TIMEOUT]].concat();
        self.kubernetes().helm(&arguments)
    }

    /// The number of the last revision of the release.
    pub fn revision(&self) -> String {
        let arguments = ["history", RELEASE, "--namespace", &self.namespace, "--output=json"];
        let history: Value = serde_json::from_str(&self.kubernetes().helm(&arguments).succeeded().out).expect("JSON");
        let last = history.as_array().and_then(|history| history.last()).expect("a revision");
        last["revision"].to_string()
    }

    /// An object of the release's namespace.
    pub fn object(&self, kind: &str, name: &str) -> Value {
        let arguments = ["get", kind, name, "--namespace", &self.namespace, "--output=json"];
        serde_json::from_str(&self.kubernetes().kubectl(&arguments).succeeded().out).expect("JSON")
    }

    /// The pods of a release that are not being deleted, in the order of their names.
    pub fn pods_of(&self, release: &str, namespace: &str, component: &str) -> Vec<Pod> {
        let labels = format!("app.kubernetes.io/instance={release},app.kubernetes.io/component={component}");
        let arguments = ["get", "pods", "--namespace", namespace, "--selector", &labels, "--output=json"];
        let pods = Kubernetes::read(&self.kubernetes().kubectl(&arguments).succeeded().out).expect("JSON");
        let is_there = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        let mut pods: Vec<Pod> = pods
            .iter()
            .filter(is_there)
            .map(|pod| Pod {
                name: pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
                uid: pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
                restarts: pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default(),
                address: pod["status"]["podIP"].as_str().and_then(|address| address.parse().ok()),
            })
            .collect();
        pods.sort_by(|one, other| one.name.cmp(&other.name));
        pods
    }

    /// The pods of the release under load.
    pub fn pods(&self) -> Vec<Pod> {
        self.pods_of(RELEASE, &self.namespace, "bridge")
    }

    /// Waits until no pod of the release is there, not even one that is ending.
    pub fn pods_gone(&self) {
        let labels = format!("app.kubernetes.io/instance={RELEASE}");
        let wait = ["wait", "--for=delete", "pod", "--selector", &labels, "--timeout=5m"];
        self.kubernetes().kubectl(&[&wait[..], &["--namespace", &self.namespace]].concat()).succeeded();
    }

    /// Waits until all pods of the release are new enough, and ready.
    pub fn rolled_out(&self) {
        let set = format!("statefulset/{FULL_NAME}");
        let arguments = ["rollout", "status", &set, "--namespace", &self.namespace, "--timeout=5m"];
        self.kubernetes().kubectl(&arguments).succeeded();
    }

    /// The address of the Service of a release.
    pub fn service(&self, name: &str) -> SocketAddr {
        let service = self.object("service", name);
        let address = service["spec"]["clusterIP"].as_str().and_then(|address| address.parse().ok());
        SocketAddr::new(address.expect("an address"), 80)
    }

    /// A metric of a pod; 0 without labels that the pod does not have yet, none if the pod does not answer.
    pub fn metric(&self, pod: &str, name: &str) -> Option<f64> {
        let path = format!("/api/v1/namespaces/{}/pods/{pod}:9464/proxy/metrics", self.namespace);
        let ran = self.kubernetes().kubectl(&["get", "--raw", &path]);
        let samples = ran.out.lines().filter_map(|line| line.rsplit_once(' '));
        let values = samples.filter(|(sample, _)| sample.split('{').next() == Some(name));
        (ran.code == 0).then(|| values.filter_map(|(_, value)| value.parse::<f64>().ok()).sum())
    }

    /// The records in the spools of all pods, or none if one does not answer.
    pub fn spooled(&self) -> Option<f64> {
        self.pods().iter().map(|pod| self.metric(&pod.name, "apsara_bridge_spool_events")).sum()
    }

    /// Waits until all spools are empty.
    pub fn emptied(&self) {
        wait_for("empty spools", PATIENCE, || self.spooled().is_some_and(|records| records == 0.0).then_some(()));
    }

    /// The bus is not there any more.
    pub async fn bus_down(&self) {
        self.kafka.kill(0).await;
    }

    /// The bus is there again, with all that it had.
    pub async fn bus_up(&self) {
        self.kafka.start_again(0).await;
    }

    /// What is on the bus.
    pub async fn found(&self) -> Found {
        let topics = TOPICS.map(|topic| (topic, 1));
        tokio::task::block_in_place(|| {
            let mut found = Found::default();
            read::kafka(&self.kafka, &topics, |record| found.add(&record)).expect("the bus can be read");
            found
        })
    }

    /// How many records a topic has.
    pub async fn length(&self, topic: &'static str) -> i64 {
        let mut config = self.kafka.client_config();
        config.set("group.id", "length");
        blocking(move || {
            use rdkafka::consumer::{BaseConsumer, Consumer as _};
            let consumer: BaseConsumer = config.create().expect("the settings are valid");
            consumer.fetch_watermarks(topic, 0, Duration::from_secs(10)).map_or(0, |(_, high)| high)
        })
        .await
    }
}

/// Overrides what `changes` has.
fn merge(values: &mut Value, changes: Value) {
    match (values, changes) {
        (Value::Object(values), Value::Object(changes)) => {
            for (key, change) in changes {
                merge(values.entry(key).or_insert(Value::Null), change);
            }
        }
        (values, changes) => *values = changes,
    }
}
