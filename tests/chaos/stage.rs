//! What the run plays on: a Kafka, a nats-server, the bridge's own program and, where the mode has one, a queue; and
//! what is done to them.
//!
//! Promises: after [`play`] everything runs again; each deed is printed with its time; a bridge that ends by itself, or
//! ends otherwise than with 0 when it is told to stop, is a fault.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::{sleep, sleep_until, timeout};

use crate::events::{KAFKA_TOPIC, Mode, NATS_SUBJECT, STATUSES};
use crate::plan::{Deed, Step, Target};
use crate::queue::Queue;
use crate::support::bridge::{KEY, URL};
use crate::support::free_port;
use crate::support::kafka::{Kafka, KafkaOptions};
use crate::support::nats::{Nats, NatsOptions};
use crate::support::process::Process;

/// The stream that all subjects lie in.
pub const STREAM: &str = "CHAOS";

/// Partitions of each topic.
pub const PARTITIONS: i32 = 4;

/// The bridge's promise of when it answers.
pub const DEADLINE: Duration = Duration::from_secs(1);

/// How long the bridge may take to listen, with a spool of whatever size, beside a broker that starts as well.
const START: Duration = Duration::from_secs(30);

/// How long it may take to stop: its drain and time to write down what is left.
const STOP: Duration = Duration::from_secs(20);

/// How long it may take until the queue is empty, when all is back, and then the spool.
const DRAINED: Duration = Duration::from_secs(180);

/// How many messages are told that are left in a queue.
const LEFT_TOLD: usize = 10;

/// How often the bridge is asked while something is awaited of it.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Counters of the bridge that the report tells.
pub const TOLD_COUNTERS: [(&str, &str); 2] = [
    ("lease extensions", "apsara_bridge_mns_lease_extensions_total"),
    ("late deletes", "apsara_bridge_mns_late_deletes_total"),
];

/// The topics that a run's events go to. They are made beforehand and no others come to be, so that an event which
/// lands elsewhere is missed.
pub fn kafka_topics() -> [String; 2] {
    STATUSES.map(|status| format!("{KAFKA_TOPIC}.{status}"))
}

/// All of it.
#[derive(Debug)]
pub struct Stage {
    pub kafka: Kafka,
    pub nats: Nats,
    /// Only in the mode of that name.
    pub queue: Option<Arc<Queue>>,
    pub bridge: Bridge,
    started: Instant,
    done: Mutex<BTreeMap<Deed, u32>>,
    faults: Mutex<Vec<String>>,
    /// What [`TOLD_COUNTERS`] were at the ends of the bridge's lives, summed up.
    counted: Mutex<[u64; TOLD_COUNTERS.len()]>,
}

/// The bridge's program; it comes back with the same ports, configuration and spool.
#[derive(Debug)]
pub struct Bridge {
    pub input: SocketAddr,
    admin: SocketAddr,
    folder: PathBuf,
    process: Mutex<Process>,
}

impl Stage {
    /// Starts all of it, with the bridge's files in `folder`.
    pub async fn start(folder: &Path, mode: Mode) -> Stage {
        let options = KafkaOptions { auto_create_topics: false, ..KafkaOptions::default() };
        let (kafka, nats) = tokio::join!(Kafka::start(options), Nats::start(NatsOptions::default()));
        for topic in kafka_topics() {
            // After SIGKILL a broker reads through what it has written to the last segment. Small ones keep its start
            // as fast after an hour as in the beginning.
            kafka.create_topic(&topic, PARTITIONS, &[("segment.bytes", "67108864")]).await;
        }
        nats.create_stream(STREAM, &[&format!("{NATS_SUBJECT}.>")]).await;
        let queue = (mode == Mode::Queue).then(|| Arc::new(Queue::start()));
        let bridge = block_in_place(|| Bridge::start(&kafka, &nats, queue.as_deref(), folder));
        let deadline = Instant::now() + START;
        while !bridge.ask("/readyz").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            assert!(Instant::now() < deadline, "the bridge isn't connected to both buses after {START:?}");
            sleep(LOOK_AGAIN).await;
        }
        let (done, faults, counted) = (Mutex::default(), Mutex::default(), Mutex::default());
        Stage { kafka, nats, queue, bridge, started: Instant::now(), done, faults, counted }
    }

    /// Tells something with its time.
    pub fn tell(&self, what: &str) {
        println!("{:>9.1} s  {what}", self.started.elapsed().as_secs_f64());
    }

    /// Remembers what must not happen, and tells it.
    pub fn fault(&self, what: String) {
        self.tell(&format!("FAULT: {what}"));
        lock(&self.faults).push(what);
    }

    /// What was remembered.
    pub fn faults(&self) -> Vec<String> {
        lock(&self.faults).clone()
    }

    /// How often each deed was done.
    pub fn done(&self) -> BTreeMap<Deed, u32> {
        lock(&self.done).clone()
    }

    /// What [`TOLD_COUNTERS`] came to. What the bridge counted in its last moments is not in it.
    pub fn counted(&self) -> [u64; TOLD_COUNTERS.len()] {
        *lock(&self.counted)
    }

    /// Performs a step and undoes it.
    async fn perform(&self, step: Step) {
        let Step { deed, lasting, .. } = step;
        *lock(&self.done).entry(deed).or_default() += 1;
        match deed.target() {
            Target::Bridge => self.tell(deed.name()),
            _ => self.tell(&format!("{} for {:.1} s", deed.name(), lasting.as_secs_f64())),
        }
        match deed {
            Deed::KillKafka => {
                block_in_place(|| self.kafka.kill());
                sleep(lasting).await;
                self.kafka.restart().await;
            }
            Deed::FreezeKafka => {
                block_in_place(|| self.kafka.stop());
                sleep(lasting).await;
                self.kafka.cont();
            }
            Deed::KillNats => {
                block_in_place(|| self.nats.kill());
                sleep(lasting).await;
                self.nats.restart().await;
            }
            Deed::FreezeNats => {
                block_in_place(|| self.nats.stop());
                sleep(lasting).await;
                self.nats.cont();
            }
            Deed::KillBridge => {
                self.before_end().await;
                block_in_place(|| {
                    lock(&self.bridge.process).kill();
                    self.bridge.start_again();
                });
            }
            Deed::StopBridge => {
                self.stop_bridge().await;
                block_in_place(|| self.bridge.start_again());
            }
            Deed::CutOffMns => {
                let queue = self.queue.as_ref().expect("the plan knows that there is one");
                block_in_place(|| queue.down());
                sleep(lasting).await;
                block_in_place(|| queue.up());
            }
        }
        let back = match deed.target() {
            Target::Kafka => "Kafka is back",
            Target::Nats => "NATS is back",
            Target::Bridge => "bridge is back",
            Target::Mns => "MNS is back",
        };
        self.tell(back);
    }

    /// Stops the bridge by SIGTERM.
    pub async fn stop_bridge(&self) {
        self.before_end().await;
        let code = block_in_place(|| {
            let process = lock(&self.bridge.process);
            process.signal("TERM");
            process.wait(STOP)
        });
        match code {
            Some(0) => {}
            Some(code) => self.fault(format!("told to stop, the bridge ended with exit code {code}")),
            None => {
                self.fault(format!("told to stop, the bridge still ran after {STOP:?}"));
                block_in_place(|| lock(&self.bridge.process).kill());
            }
        }
    }

    /// A bridge that has ended before anybody did something to it is a fault. Keeps what it has counted.
    async fn before_end(&self) {
        if self.queue.is_some()
            && let Ok(metrics) = self.bridge.ask("/metrics").await
        {
            let mut counted = lock(&self.counted);
            for (sum, (_, name)) in counted.iter_mut().zip(TOLD_COUNTERS) {
                *sum += values(&metrics, name).iter().sum::<f64>() as u64;
            }
        }
        if let Some(code) = lock(&self.bridge.process).exit_code() {
            self.fault(format!("the bridge has ended by itself, with exit code {code}"));
        }
    }

    /// Waits until the bridge has deleted all messages from the queue, if there is one; if it doesn't, that is a fault.
    pub async fn emptied(&self) {
        let Some(queue) = &self.queue else { return };
        self.tell(&format!("{} messages are in the queue", queue.left()));
        let deadline = Instant::now() + DRAINED;
        while queue.left() > 0 {
            if Instant::now() >= deadline {
                let (left, examples) = (queue.left(), queue.examples(LEFT_TOLD).join("\n"));
                let log = lock(&self.bridge.process).log_tail();
                self.fault(format!(
                    "{DRAINED:?} after all was back {left} messages are in the queue:\n{examples}\n{log}"
                ));
                return;
            }
            sleep(LOOK_AGAIN).await;
        }
        self.tell("the queue is empty");
    }

    /// Waits until the bridge has sent what lay in its spool; if it can't, that is a fault.
    pub async fn drained(&self) {
        let deadline = Instant::now() + DRAINED;
        loop {
            let state = match self.bridge.ask("/metrics").await {
                Ok(metrics) => {
                    let spooled = values(&metrics, "apsara_bridge_spool_events");
                    let up = values(&metrics, "apsara_bridge_output_up");
                    if !spooled.is_empty() && spooled.iter().all(|&events| events == 0.0) && up == [1.0, 1.0] {
                        self.tell("the spool is empty");
                        return;
                    }
                    format!("apsara_bridge_spool_events {spooled:?}, apsara_bridge_output_up {up:?}")
                }
                Err(error) => format!("/metrics can't be read: {error}"),
            };
            if Instant::now() >= deadline {
                let log = lock(&self.bridge.process).log_tail();
                self.fault(format!("{DRAINED:?} after all was back the spool isn't empty: {state}\n{log}"));
                return;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Keeps the brokers' logs beside the bridge's own.
    pub fn keep_logs(&self) {
        for (log, name) in [(self.kafka.log_file(), "kafka.log"), (self.nats.log_file(), "nats.log")] {
            if let Err(error) = std::fs::copy(&log, self.bridge.folder.join(name)) {
                eprintln!("{} can't be kept: {error}", log.display());
            }
        }
    }
}

/// Performs the steps, each target's in their order, until the run's length is over.
pub async fn play(stage: Arc<Stage>, steps: Vec<Step>, length: Duration) {
    let started = stage.started;
    let mut actors = JoinSet::new();
    for target in Target::ALL {
        let steps: Vec<Step> = steps.iter().copied().filter(|step| step.deed.target() == target).collect();
        let stage = stage.clone();
        actors.spawn(async move {
            for step in steps {
                sleep_until((started + step.at).into()).await;
                // Late steps of a slow machine don't go on when nothing is sent any more.
                if started.elapsed() >= length {
                    break;
                }
                stage.perform(step).await;
            }
        });
    }
    while let Some(actor) = actors.join_next().await {
        actor.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    }
}

impl Bridge {
    fn start(kafka: &Kafka, nats: &Nats, queue: Option<&Queue>, folder: &Path) -> Bridge {
        let [input, admin] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let spool = folder.join("spool");
        std::fs::create_dir(&spool).expect("the temporary folder is writable");
        let queue = queue.map(Queue::input).unwrap_or_default();
        let config = configuration(input, admin, kafka.brokers(), nats.url(), &spool) + &queue;
        std::fs::write(folder.join("bridge.toml"), config).expect("the temporary folder is writable");
        let process = Mutex::new(run(folder, input));
        Bridge { input, admin, folder: folder.to_owned(), process }
    }

    fn start_again(&self) {
        let process = run(&self.folder, self.input);
        *lock(&self.process) = process;
    }

    /// What the admin listener answers, head and body.
    async fn ask(&self, path: &str) -> std::io::Result<String> {
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect(self.admin).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        timeout(Duration::from_secs(5), exchange).await?
    }
}

/// Starts the program on its folder, and returns when it listens.
///
/// Nobody removes the folder should this process be killed: it is the evidence.
fn run(folder: &Path, input: SocketAddr) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_apsara-bridge"));
    command.arg("serve").arg("--config").arg(folder.join("bridge.toml"));
    let process = Process::start("the bridge", &command, &folder.join("bridge.log"), None);
    process.wait_ready(START, || TcpStream::connect(input).ok());
    process
}

fn configuration(input: SocketAddr, admin: SocketAddr, brokers: &str, nats: &str, spool: &Path) -> String {
    let deadline = DEADLINE.as_millis();
    // A string of JSON is one of TOML.
    let spool = serde_json::to_string(spool).expect("a path that is Unicode");
    format!(
        "[inputs.http]\nkind = 'http'\nlisten = '{input}'\n\
         [[inputs.http.endpoints]]\npath = '/callbacks'\nurls = ['{URL}']\nkeys = ['{KEY}']\n\
         [outputs.kafka]\nkind = 'kafka'\nbrokers = ['{brokers}']\n\
         [outputs.nats]\nkind = 'nats'\nservers = ['{nats}']\n\
         [[routes]]\nname = 'everything'\n\
         to = [{{ output = 'kafka', topic = '{KAFKA_TOPIC}.{{status}}' }}, \
         {{ output = 'nats', topic = '{NATS_SUBJECT}.{{dialect}}.{{status}}' }}]\n\
         [spool]\nenabled = true\npath = {spool}\nmax_bytes = '1GiB'\n\
         [delivery]\ndeadline = '{deadline}ms'\n\
         [dedupe]\nwindow = '15m'\n\
         [shutdown]\ndrain = '5s'\n\
         [admin]\nlisten = '{admin}'\n\
         [log]\nformat = 'text'\nfilter = 'info'\n"
    )
}

/// The values of a metric, whatever its labels.
fn values(metrics: &str, name: &str) -> Vec<f64> {
    let of_metric = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse().ok());
    metrics.lines().filter(of_metric).filter_map(value).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere ends the run, and on its way out this must still work.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
