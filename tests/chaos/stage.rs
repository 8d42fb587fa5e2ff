//! The processes of a run: the servers of Kafka and NATS, the bridge (two if there is a queue), a disk for the spools,
//! and the queue, if the mode has one.
//!
//! Promises: the metrics of the bridges are added up over all restarts. A bridge that ends by itself, or ends wrongly
//! after SIGTERM, is a fault.
//!
//! `actions` has what is done to them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::task::block_in_place;

use crate::events::{KAFKA_TOPIC, Mode, NATS_SUBJECT, Run, STATUSES, Servers};
use crate::plan::Action;
use crate::queue::Queue;
use crate::support::config::{Config, Route};
use crate::support::disk::Disk;
use crate::support::kafka::KafkaOptions;
use crate::support::kafka::cluster::KafkaCluster;
use crate::support::nats::cluster::NatsCluster;
use crate::support::program::Program;
use crate::support::wait::{STOPPED, try_eventually};

/// Partitions of each topic.
pub const PARTITIONS: i32 = 4;

/// The time within which the bridge promises to answer.
pub const DEADLINE: Duration = Duration::from_secs(1);

/// Size of the disk for the spools: their largest contents, logs and copies, several times.
const DISK: &str = "192m";

/// How long it may take until the queue is empty, after everything works again; and then until the spool is.
const DRAINED: Duration = Duration::from_secs(180);

/// The name of a route that is only in one form of the routes.
const FIRST_OF_SPLIT: &str = "to-kafka";

/// How many of the messages left in a queue are printed.
const LEFT_SHOWN: usize = 10;

/// The metrics that are added up over all bridges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    /// Callbacks that were stored in the spool before they were answered.
    Spooled,
    /// Publishes that failed.
    Failures,
    /// Writes that found the disk full.
    DiskFull,
    LeaseExtensions,
    LateDeletes,
}

impl Counter {
    pub const ALL: [Counter; 5] =
        [Counter::Spooled, Counter::Failures, Counter::DiskFull, Counter::LeaseExtensions, Counter::LateDeletes];

    /// Its description.
    pub fn name(self) -> &'static str {
        match self {
            Counter::Spooled => "spooled",
            Counter::Failures => "failed publishes",
            Counter::DiskFull => "writes without room",
            Counter::LeaseExtensions => "lease extensions",
            Counter::LateDeletes => "late deletes",
        }
    }

    /// The metric and its labels.
    fn metric(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Counter::Spooled => ("callbacks_total", &["outcome=\"spooled\""]),
            Counter::Failures => ("publish_failures_total", &[]),
            Counter::DiskFull => ("spool_failures_total", &["reason=\"disk_full\""]),
            Counter::LeaseExtensions => ("mns_lease_extensions_total", &[]),
            Counter::LateDeletes => ("mns_late_deletes_total", &[]),
        }
    }
}

/// The topics of a run's events. They are created before, and no others are created, so an event in a wrong topic is
/// reported as missing.
pub fn kafka_topics() -> [String; 2] {
    STATUSES.map(|status| format!("{KAFKA_TOPIC}.{status}"))
}

/// The streams, one for each status, so that one can refuse while the other does not.
pub fn streams() -> [String; 2] {
    STATUSES.map(|status| format!("CHAOS_{}", status.to_uppercase()))
}

/// The configuration of a topic. After SIGKILL a broker reads its last segment. With small segments, its start after an
/// hour is as fast as at the beginning.
pub fn topic_settings(copies: &str) -> [(&'static str, &str); 2] {
    [("segment.bytes", "67108864"), ("min.insync.replicas", copies)]
}

/// All processes of a run.
#[derive(Debug)]
pub struct Stage {
    pub servers: Servers,
    pub kafka: KafkaCluster,
    pub nats: NatsCluster,
    /// Only in the mode `queue`.
    pub queue: Option<Arc<Queue>>,
    pub bridges: Vec<Program>,
    /// None if the machine does not allow it.
    pub disk: Option<Arc<Disk>>,
    pub started: Instant,
    folder: PathBuf,
    done: Mutex<BTreeMap<Action, u32>>,
    faults: Mutex<Vec<String>>,
    counted: Mutex<BTreeMap<Counter, u64>>,
}

impl Stage {
    /// Starts everything, with the bridges' files in `folder`.
    pub async fn start(folder: &Path, run: &Run) -> Stage {
        let options = KafkaOptions { auto_create_topics: false, ..KafkaOptions::default() };
        let size = run.servers.count();
        let (kafka, nats) = tokio::join!(KafkaCluster::start(size, options), NatsCluster::start(size));
        for topic in kafka_topics() {
            kafka.create_topic(&topic, PARTITIONS, &topic_settings(safe_copies(run.servers))).await;
        }
        for (stream, status) in streams().iter().zip(STATUSES) {
            nats.create_stream(stream, &[&format!("{NATS_SUBJECT}.*.{status}")], |_| {}).await;
        }
        let queue = (run.mode == Mode::Queue).then(|| Arc::new(Queue::start()));
        let disk = block_in_place(|| Disk::new(folder, DISK)).map(Arc::new);
        let spools = disk.as_ref().map_or(folder, |disk| disk.mount());
        let mut bridges = Vec::new();
        for number in 1..=run.mode.bridges() {
            let config = config(&kafka, &nats).spool(spools.join(format!("spool-{number}")));
            let config = config.set("spool.max_bytes = '1GiB'");
            let config = queue.iter().fold(config, |config, queue| queue.input(config));
            let folder = folder.join(format!("bridge-{number}"));
            bridges.push(block_in_place(|| Program::start_on(disk.as_deref(), &folder, config)));
        }
        for bridge in &bridges {
            bridge.ready().await;
        }
        Stage {
            servers: run.servers,
            kafka,
            nats,
            queue,
            bridges,
            disk,
            started: Instant::now(),
            folder: folder.to_owned(),
            done: Mutex::default(),
            faults: Mutex::default(),
            counted: Mutex::default(),
        }
    }

    /// Prints a message with its time.
    pub fn tell(&self, what: &str) {
        println!("{:>9.1} s  {what}", self.started.elapsed().as_secs_f64());
    }

    /// Records a fault, and prints it.
    pub fn fault(&self, what: String) {
        self.tell(&format!("FAULT: {what}"));
        lock(&self.faults).push(what);
    }

    /// The recorded faults.
    pub fn faults(&self) -> Vec<String> {
        lock(&self.faults).clone()
    }

    /// Counts an action.
    pub fn count_deed(&self, action: Action) {
        *lock(&self.done).entry(action).or_default() += 1;
    }

    /// How often each action was done.
    pub fn done(&self) -> BTreeMap<Action, u32> {
        lock(&self.done).clone()
    }

    /// The total of a counter, without the last moments of each bridge.
    pub fn counted(&self, counter: Counter) -> u64 {
        lock(&self.counted).get(&counter).copied().unwrap_or_default()
    }

    /// Stops a bridge with SIGTERM.
    pub async fn stop_bridge(&self, bridge: &Program) {
        self.before_end(bridge).await;
        let code = block_in_place(|| {
            let process = bridge.process();
            process.signal("TERM");
            process.wait(STOPPED)
        });
        self.ended(bridge, code, &[0], STOPPED);
    }

    /// Judges the exit code of a bridge after its stop.
    pub fn ended(&self, bridge: &Program, code: Option<i32>, allowed: &[i32], limit: Duration) {
        match code {
            Some(code) if allowed.contains(&code) => {}
            Some(code) => self.fault(format!("the bridge ended with exit code {code} after SIGTERM")),
            None => {
                self.fault(format!("the bridge still ran {limit:?} after SIGTERM"));
                block_in_place(|| bridge.process().kill());
            }
        }
    }

    /// Records a fault if a bridge has ended by itself. Keeps its counters.
    pub async fn before_end(&self, bridge: &Program) {
        if let Ok(metrics) = bridge.metrics().await {
            let mut counted = lock(&self.counted);
            for counter in Counter::ALL {
                let (name, labels) = counter.metric();
                *counted.entry(counter).or_default() += metrics.sum(name, labels);
            }
        }
        if let Some(code) = bridge.process().exit_code() {
            self.fault(format!("the bridge has ended by itself, with exit code {code}"));
        }
    }

    /// Waits until all servers work, and all copies have caught up.
    pub async fn settled(&self) {
        self.kafka.complete().await;
        for topic in kafka_topics() {
            self.kafka.in_sync(&topic).await;
        }
        self.nats.complete().await;
        for stream in streams() {
            self.nats.in_sync(&stream).await;
        }
    }

    /// Waits until the bridges have deleted all messages from the queue, if there is one. Otherwise it is a fault.
    pub async fn emptied(&self) {
        let Some(queue) = &self.queue else { return };
        self.tell(&format!("{} messages are in the queue", queue.left()));
        if try_eventually(DRAINED, async || (queue.left() == 0).then_some(())).await.is_none() {
            let (left, examples) = (queue.left(), queue.examples(LEFT_SHOWN).join("\n"));
            return self.fault(format!(
                "{DRAINED:?} after everything worked again, {left} messages are in the queue:\n{examples}\n{}",
                self.log_tails()
            ));
        }
        self.tell("the queue is empty");
    }

    /// Waits until the spools of the bridges are empty. Otherwise it is a fault. Dead letters are faults too.
    pub async fn drained(&self) -> u64 {
        let deadline = Instant::now() + DRAINED;
        let mut dead_letters = 0;
        for bridge in &self.bridges {
            let mut state = String::new();
            let stored = try_eventually(deadline.saturating_duration_since(Instant::now()), async || {
                let metrics = match bridge.metrics().await {
                    Ok(metrics) => metrics,
                    Err(error) => {
                        state = format!("/metrics cannot be read: {error}");
                        return None;
                    }
                };
                let (spooled, up) = (metrics.values("spool_events", &[]), metrics.values("output_up", &[]));
                state = format!("spool_events {spooled:?}, output_up {up:?}");
                let is_empty = !spooled.is_empty() && spooled.iter().all(|&events| events == 0.0);
                (is_empty && up == [1.0, 1.0]).then(|| metrics.sum("dead_letters_stored", &[]))
            });
            let Some(stored) = stored.await else {
                let tails = self.log_tails();
                self.fault(format!(
                    "{DRAINED:?} after everything worked again, the spool is not empty: {state}\n{tails}"
                ));
                return dead_letters;
            };
            dead_letters += stored;
        }
        self.tell("the spool is empty");
        dead_letters
    }

    /// Keeps the logs of the brokers, and the spools, next to the bridges' own logs.
    pub fn keep_evidence(&self) {
        let kafka = self.kafka.brokers().iter().map(|broker| ("kafka", broker.log_file()));
        let nats = self.nats.servers().iter().map(|server| ("nats", server.log_file()));
        let kept = kafka.chain(nats).enumerate().map(|(number, (bus, log))| (log, format!("{bus}-{number}.log")));
        let spools = (1..=self.bridges.len()).flat_map(|number| {
            let folder = self.disk.as_ref()?.path(&format!("spool-{number}"));
            let files = std::fs::read_dir(folder).ok()?.flatten();
            Some(files.map(move |file| (file.path(), format!("{number}-{}", file.file_name().display()))))
        });
        for (file, name) in kept.chain(spools.flatten()) {
            if let Err(error) = std::fs::copy(&file, self.folder.join(name)) {
                eprintln!("{} cannot be kept: {error}", file.display());
            }
        }
    }

    fn log_tails(&self) -> String {
        self.bridges.iter().map(|bridge| bridge.process().log_tail()).collect::<Vec<_>>().join("\n--\n")
    }
}

/// How many copies must be written. With three brokers, one may be lost.
pub fn safe_copies(servers: Servers) -> &'static str {
    match servers {
        Servers::Single => "1",
        Servers::Cluster => "2",
    }
}

/// The routes in one of two equivalent forms. A reload changes the form.
pub fn routes(is_split: bool) -> Vec<Route> {
    let (topic, subject) = (format!("{KAFKA_TOPIC}.{{status}}"), format!("{NATS_SUBJECT}.{{dialect}}.{{status}}"));
    if is_split {
        let to_kafka = Route::new(FIRST_OF_SPLIT).set("continue = true").to("kafka", &topic);
        return vec![to_kafka, Route::new("to-nats").to("nats", &subject)];
    }
    vec![Route::new("everything").to("kafka", &topic).to("nats", &subject)]
}

/// Whether a configuration has the routes that are split.
pub fn is_split(config: &Config) -> bool {
    config.to_string().contains(FIRST_OF_SPLIT)
}

fn config(kafka: &KafkaCluster, nats: &NatsCluster) -> Config {
    Config::http()
        .output("kafka", "kafka", &kafka.bootstrap())
        .output("nats", "nats", &nats.urls())
        .routes(routes(false))
        .set(&format!("delivery.deadline = '{}ms'", DEADLINE.as_millis()))
        .set("dedupe.window = '15m'\nshutdown.drain = '5s'\nlog = { format = 'text', filter = 'info' }")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // After a panic elsewhere, this must still work while the run ends.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
