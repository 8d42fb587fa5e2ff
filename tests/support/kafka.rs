//! A real Apache Kafka broker (KRaft) with its own ports, and its data in a folder that is removed with it: alone, or
//! as part of a [`cluster`].
//!
//! Promises: started means that a metadata request is answered. [`Kafka::restart`] keeps the ports and the data.
//! Reading ([`Kafka::consume`]) starts at the beginning, leaves no trace on the broker, and never returns fewer records
//! than requested without an error.
//!
//! The listener for clients has the security of [`KafkaOptions::security`]. The clients of this support code use their
//! own plaintext listener, so a test of TLS or SASL tests only the client under test.

pub mod cluster;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tempfile::TempDir;

use super::certificates::Certificates;
use super::process::Process;
use super::wait::{CHANGE, RETRY, SOON, START};
use super::{blocking, free_port, installed, tool, wait_for};

/// The user of SASL listeners.
pub const USER: &str = "bridge";
/// Its password. The space and the equals sign are difficult for code that parses settings carelessly.
pub const PASSWORD: &str = "correct horse=battery";

/// A cluster of one broker that librdkafka simulates in this process, with topics of one partition. A test chooses how
/// it fails.
pub fn mock(topics: &[&str]) -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    for topic in topics {
        cluster.create_topic(topic, 1, 1).expect("a topic");
    }
    cluster
}

/// The security of the clients' listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    /// Plaintext, without a login.
    #[default]
    Plaintext,
    /// TLS, the server shows a certificate.
    Tls,
    /// TLS, both sides show certificates.
    MutualTls,
    /// SASL over plaintext.
    Sasl(Mechanism),
    /// SASL over TLS.
    SaslTls(Mechanism),
}

/// The SASL mechanisms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// PLAIN.
    Plain,
    /// SCRAM-SHA-512.
    ScramSha512,
}

impl Mechanism {
    /// The registered name, the value of `sasl.mechanism`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub struct KafkaOptions {
    /// The security of the listener that [`Kafka::brokers`] names.
    pub security: Security,
    /// Whether writing to or asking for an unknown topic creates it. Default: true.
    pub auto_create_topics: bool,
    /// The largest record batch that the broker accepts; `None` is Kafka's own default of 1 MiB.
    pub message_max_bytes: Option<u32>,
    /// The address where clients in other network namespaces reach it, which has a plaintext listener of its own. Default:
    /// none.
    pub reached_at: Option<IpAddr>,
    /// For benchmarks: the full compiler, more memory, and the timeouts of a real broker.
    pub bench: bool,
    /// Further lines of the broker's configuration. They override the generated ones.
    pub properties: Vec<(String, String)>,
}

impl Default for KafkaOptions {
    fn default() -> Self {
        Self {
            security: Security::Plaintext,
            auto_create_topics: true,
            message_max_bytes: None,
            reached_at: None,
            bench: false,
            properties: Vec::new(),
        }
    }
}

/// One record, as it is stored in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The partition.
    pub partition: i32,
    /// The offset in the partition.
    pub offset: i64,
    /// The key, if there is one.
    pub key: Option<Vec<u8>>,
    /// The headers in their order. A header may have no value.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// The value; `None` is a tombstone.
    pub payload: Option<Vec<u8>>,
}

impl Received {
    /// The value of the first header of that name, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(header, _)| header == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }
}

/// The position of a broker in its cluster.
#[derive(Debug, Clone)]
struct Member {
    /// Its number, from 1.
    id: u16,
    /// The ports of all controllers, in the order of their numbers.
    controllers: Vec<u16>,
    /// The port of a further listener, and the port of the proxy through which its clients reach it.
    proxied: Option<(u16, u16)>,
}

impl Member {
    fn alone() -> Member {
        Member { id: 1, controllers: vec![free_port()], proxied: None }
    }
}

/// A broker. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct Kafka {
    options: KafkaOptions,
    brokers: String,
    internal: String,
    certificates: Option<Certificates>,
    process: Mutex<Process>, // before the folder: the broker must be dead before its data is removed
    folder: TempDir,
}

impl Kafka {
    /// The broker of this test process: plaintext, default options, started by the first caller. Tests use different
    /// topics, and leave it running.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        blocking(|| SHARED.get_or_init(|| Self::start_blocking(KafkaOptions::default()))).await
    }

    /// Starts a broker for the caller alone.
    pub async fn start(options: KafkaOptions) -> Self {
        blocking(|| Self::start_blocking(options)).await
    }

    /// [`start`](Self::start) for code that is not async.
    pub fn start_blocking(options: KafkaOptions) -> Self {
        Self::start_member(options, &Member::alone())
    }

    fn start_member(options: KafkaOptions, member: &Member) -> Self {
        let folder =
            tempfile::Builder::new().prefix("kafka-").tempdir().expect("the folder for temporary files is writable");
        let certificates = options.security.tls().then(|| Certificates::make(&folder.path().join("tls")));
        let client = free_port();
        let internal = if options.security == Security::Plaintext { client } else { free_port() };
        let properties = properties(&options, member, certificates.as_ref(), folder.path(), client, internal);
        let file = folder.path().join("server.properties");
        std::fs::write(&file, properties).expect("the temporary folder is writable");
        format(&options, folder.path());
        let internal = format!("127.0.0.1:{internal}");
        let process = run(&options, folder.path(), &internal);
        Self {
            brokers: format!("127.0.0.1:{client}"),
            internal,
            certificates,
            process: Mutex::new(process),
            options,
            folder,
        }
    }

    /// `host:port` of the listener for clients.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// The settings with which a librdkafka client connects to [`brokers`](Self::brokers), including the addresses.
    pub fn client_settings(&self) -> Vec<(String, String)> {
        let mut settings = vec![("bootstrap.servers".to_owned(), self.brokers.clone())];
        let mut set = |key: &str, value: &str| settings.push((key.to_owned(), value.to_owned()));
        set("security.protocol", &self.options.security.protocol().to_lowercase());
        if let Some(certificates) = &self.certificates {
            set("ssl.ca.location", &certificates.authority.to_string_lossy());
            if self.options.security == Security::MutualTls {
                set("ssl.certificate.location", &certificates.client.to_string_lossy());
                set("ssl.key.location", &certificates.client_key.to_string_lossy());
            }
        }
        if let Some(mechanism) = self.options.security.mechanism() {
            set("sasl.mechanism", mechanism.name());
            set("sasl.username", USER);
            set("sasl.password", PASSWORD);
        }
        settings
    }

    /// [`client_settings`](Self::client_settings) as rdkafka's configuration.
    pub fn client_config(&self) -> ClientConfig {
        self.client_settings().into_iter().collect()
    }

    /// Creates a topic, and returns when all its partitions have a leader.
    ///
    /// # Panics
    /// The broker refuses, for example because the topic exists.
    pub async fn create_topic(&self, name: &str, partitions: i32, configs: &[(&str, &str)]) {
        create_topic(&self.internal, name, partitions, 1, configs).await;
    }

    /// Reads `topic` from the beginning, until it has reached the end and has at least `at_least` records. They are in
    /// the order of partition and offset. With `at_least` 0 it reads what is there; a missing topic has no records.
    ///
    /// # Panics
    /// `timeout` passes first.
    pub async fn consume(&self, topic: &str, at_least: usize, timeout: Duration) -> Vec<Received> {
        let (internal, topic) = (self.internal.clone(), topic.to_owned());
        blocking(move || read(&internal, &topic, at_least, timeout)).await
    }

    /// Freezes the broker with SIGSTOP: connections stay open, nothing answers.
    pub fn stop(&self) {
        self.process().stop();
    }

    /// Lets a frozen broker continue.
    pub fn cont(&self) {
        self.process().cont();
    }

    /// Kills the broker with SIGKILL: connections break, and its port refuses new ones.
    pub fn kill(&self) {
        self.process().kill();
    }

    /// Kills the broker if it still runs and starts it again, with the same ports and data.
    pub async fn restart(&self) {
        self.kill();
        let (options, folder, internal) = (self.options.clone(), self.folder.path().to_owned(), self.internal.clone());
        let process = blocking(move || run(&options, &folder, &internal)).await;
        *self.process() = process;
    }

    /// Stops the broker with SIGTERM, as an operator does: it hands over its leaderships, and ends.
    ///
    /// # Panics
    /// It does not end.
    pub fn shut_down(&self) {
        let process = self.process();
        process.signal("TERM");
        assert!(process.wait(START).is_some(), "Kafka does not end after SIGTERM:\n{}", process.log_tail());
    }

    /// The broker's log file.
    pub fn log_file(&self) -> PathBuf {
        self.process().log_file().to_owned()
    }

    /// The broker's process id.
    pub fn id(&self) -> u32 {
        self.process().id()
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Security {
    fn protocol(self) -> &'static str {
        match self {
            Self::Plaintext => "PLAINTEXT",
            Self::Tls | Self::MutualTls => "SSL",
            Self::Sasl(_) => "SASL_PLAINTEXT",
            Self::SaslTls(_) => "SASL_SSL",
        }
    }

    fn tls(self) -> bool {
        matches!(self, Self::Tls | Self::MutualTls | Self::SaslTls(_))
    }

    fn mechanism(self) -> Option<Mechanism> {
        match self {
            Self::Sasl(mechanism) | Self::SaslTls(mechanism) => Some(mechanism),
            _ => None,
        }
    }
}

/// The broker's configuration file.
fn properties(
    options: &KafkaOptions,
    member: &Member,
    certificates: Option<&Certificates>,
    folder: &std::path::Path,
    client: u16,
    internal: u16,
) -> String {
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut set = |key: &str, value: &str| lines.push((key.to_owned(), value.to_owned()));
    let mut listeners = format!("CLIENT://127.0.0.1:{client}");
    if internal != client {
        write!(listeners, ",INTERNAL://127.0.0.1:{internal}").expect("writing to a string cannot fail");
    }
    let mut advertised = listeners.clone();
    if let Some((listen, proxy)) = member.proxied {
        // A client that reaches the address itself needs no proxy.
        let (address, proxy) = match options.reached_at {
            Some(address) => (address, listen),
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), proxy),
        };
        write!(listeners, ",PROXIED://{address}:{listen}").expect("writing to a string cannot fail");
        write!(advertised, ",PROXIED://{address}:{proxy}").expect("writing to a string cannot fail");
    }
    let controllers = member.controllers.iter().zip(1..);
    let voters: Vec<String> = controllers.map(|(port, id)| format!("{id}@127.0.0.1:{port}")).collect();
    let controller = member.controllers[usize::from(member.id) - 1];
    set("process.roles", "broker,controller");
    set("node.id", &member.id.to_string());
    set("controller.quorum.voters", &voters.join(","));
    set("controller.listener.names", "CONTROLLER");
    set("listeners", &format!("{listeners},CONTROLLER://127.0.0.1:{controller}"));
    set("advertised.listeners", &advertised);
    set("inter.broker.listener.name", if internal == client { "CLIENT" } else { "INTERNAL" });
    let protocol = options.security.protocol();
    let protocols = format!("CLIENT:{protocol},INTERNAL:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT");
    set("listener.security.protocol.map", &protocols);
    set("log.dirs", &folder.join("data").to_string_lossy());
    set("auto.create.topics.enable", &options.auto_create_topics.to_string());
    // One node cannot have the three copies that Kafka's own topics need by default, and creating fifty partitions of
    // each
    // is slow.
    for topic in ["offsets.topic", "transaction.state.log", "share.coordinator.state.topic"] {
        set(&format!("{topic}.replication.factor"), "1");
        set(&format!("{topic}.num.partitions"), "1");
    }
    set("transaction.state.log.min.isr", "1");
    set("share.coordinator.state.topic.min.isr", "1");
    set("group.initial.rebalance.delay.ms", "0");
    // The memory that compaction reserves at the start. The default is a quarter of our heap.
    set("log.cleaner.dedupe.buffer.size", "4194304");
    if !options.bench {
        // A killed broker can register again only after its former session has ended. By default, this makes a restart
        // take 11 s.
        set("broker.session.timeout.ms", "1500");
        set("broker.heartbeat.interval.ms", "150");
    }
    if let Some(bytes) = options.message_max_bytes {
        set("message.max.bytes", &bytes.to_string());
    }
    if let Some(certificates) = certificates {
        // Kafka needs the key and the certificate in one file.
        let read = |path| std::fs::read_to_string(path).expect("the certificates were just created");
        let key_store = folder.join("tls/key-store.pem");
        let pem = read(&certificates.server_key) + &read(&certificates.server);
        std::fs::write(&key_store, pem).expect("the temporary folder is writable");
        set("listener.name.client.ssl.keystore.type", "PEM");
        set("listener.name.client.ssl.keystore.location", &key_store.to_string_lossy());
        set("listener.name.client.ssl.truststore.type", "PEM");
        set("listener.name.client.ssl.truststore.location", &certificates.authority.to_string_lossy());
        let client_auth = if options.security == Security::MutualTls { "required" } else { "none" };
        set("listener.name.client.ssl.client.auth", client_auth);
    }
    if let Some(mechanism) = options.security.mechanism() {
        let login = match mechanism {
            Mechanism::Plain => {
                format!("org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";")
            }
            // The users of SCRAM are stored in the broker's metadata: see `format`.
            _ => "org.apache.kafka.common.security.scram.ScramLoginModule required;".to_owned(),
        };
        let name = mechanism.name();
        set("listener.name.client.sasl.enabled.mechanisms", name);
        set(&format!("listener.name.client.{}.sasl.jaas.config", name.to_lowercase()), &login);
    }
    lines.extend(options.properties.iter().cloned());
    // If a key has two lines, the later one counts.
    lines.iter().fold(String::new(), |text, (key, value)| text + &format!("{key}={value}\n"))
}

/// Java with the broker's jars, ready for a main class.
fn java(options: &KafkaOptions) -> Command {
    let libs = installed("kafka/libs", "kafka");
    let mut java = Command::new(tool("java", "kafka"));
    if options.bench {
        java.args(["-Xms1g", "-Xmx1g", "-XX:+UseG1GC"]);
    } else {
        // A test's broker runs for seconds, so it must start fast and be small.
        java.args(["-Xmx400m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
    }
    java.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Djava.awt.headless=true"]);
    java.arg("-cp").arg(libs.join("*"));
    java
}

/// Prepares the data folder, with the SCRAM users if there are any.
fn format(options: &KafkaOptions, folder: &std::path::Path) {
    let mut java = java(options);
    // The cluster's id: any 16 bytes in base64.
    java.args(["kafka.tools.StorageTool", "format", "-t", "YXBzYXJhLWJyaWRnZS10ZQ", "-c"]);
    java.arg(folder.join("server.properties"));
    if let Some(mechanism @ Mechanism::ScramSha512) = options.security.mechanism() {
        java.arg("--add-scram").arg(format!("{}=[name={USER},password=\"{PASSWORD}\"]", mechanism.name()));
    }
    let output = java.output().expect("java runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "Kafka's data folder cannot be formatted:\n{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

/// Starts the broker on a formatted folder, and returns when it answers.
fn run(options: &KafkaOptions, folder: &std::path::Path, internal: &str) -> Process {
    let mut command = java(options);
    command.arg("kafka.Kafka").arg(folder.join("server.properties"));
    let process = Process::start("Kafka", &command, &folder.join("kafka.log"), Some(folder));
    // A refused client waits before it tries again, so it is created when the broker listens.
    process.wait_ready(START, || TcpStream::connect(internal).ok());
    let consumer = consumer(internal);
    process.wait_ready(START, || {
        let metadata = consumer.fetch_metadata(None, RETRY).ok()?;
        (!metadata.brokers().is_empty()).then_some(())
    });
    process
}

fn internal_config(internal: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", internal);
    config.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "200");
    config
}

fn consumer(internal: &str) -> BaseConsumer {
    let mut config = internal_config(internal);
    // librdkafka requires a group even if partitions are assigned explicitly. No consumer joins it.
    config.set("group.id", "support").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
    // The end of an empty partition must be reported at once, not after the half second of a fetch.
    config.set("allow.auto.create.topics", "false").set("fetch.wait.max.ms", "10");
    config.create().expect("the settings are valid")
}

/// Creates a topic, and returns when all its partitions have a leader.
async fn create_topic(internal: &str, name: &str, partitions: i32, replicas: i32, configs: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> = internal_config(internal).create().expect("the settings are valid");
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replicas));
    for (key, value) in configs {
        topic = topic.set(key, value);
    }
    let results = admin
        .create_topics([&topic], &AdminOptions::new().operation_timeout(Some(CHANGE)))
        .await
        .unwrap_or_else(|error| panic!("topic {name} cannot be created: {error}"));
    for result in results {
        result.unwrap_or_else(|(topic, code)| panic!("topic {topic} cannot be created: {code}"));
    }
    let (internal, name) = (internal.to_owned(), name.to_owned());
    blocking(move || {
        let consumer = consumer(&internal);
        wait_for(&format!("leaders of topic {name}"), SOON, || partitions_of(&consumer, &name));
    })
    .await;
}

/// The partitions of `topic`, if each has a leader; otherwise, or if there is no such topic, `None`.
fn partitions_of(consumer: &BaseConsumer, topic: &str) -> Option<Vec<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), RETRY).ok()?;
    let topic = metadata.topics().first()?;
    let partitions = topic.partitions();
    let led = topic.error().is_none() && !partitions.is_empty() && partitions.iter().all(|each| each.leader() >= 0);
    led.then(|| partitions.iter().map(|each| each.id()).collect())
}

/// Whether the broker says that there is no such topic, and not only that it does not know at the moment.
fn is_unknown(consumer: &BaseConsumer, topic: &str) -> bool {
    let unknown = RDKafkaErrorCode::UnknownTopicOrPartition;
    consumer.fetch_metadata(Some(topic), RETRY).is_ok_and(|metadata| {
        metadata.topics().first().is_some_and(|topic| topic.error().map(RDKafkaErrorCode::from) == Some(unknown))
    })
}

fn read(internal: &str, topic: &str, at_least: usize, timeout: Duration) -> Vec<Received> {
    let deadline = Instant::now() + timeout;
    let consumer = consumer(internal);
    let partitions = wait_for(&format!("topic {topic}"), timeout, || {
        if at_least == 0 && is_unknown(&consumer, topic) {
            return Some(Vec::new());
        }
        partitions_of(&consumer, topic)
    });
    let mut assignment = TopicPartitionList::new();
    for partition in &partitions {
        assignment.add_partition_offset(topic, *partition, Offset::Beginning).expect("an offset that is allowed");
    }
    consumer.assign(&assignment).expect("partitions can be assigned by hand");
    let mut at_end = HashSet::new();
    let mut received = Vec::new();
    while received.len() < at_least || at_end.len() < partitions.len() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => received.push(Received {
                partition: message.partition(),
                offset: message.offset(),
                key: message.key().map(<[u8]>::to_vec),
                headers: message
                    .headers()
                    .map(|headers| headers.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect())
                    .unwrap_or_default(),
                payload: message.payload().map(<[u8]>::to_vec),
            }),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(at_end.insert(partition)),
            // librdkafka retries all other errors by itself, for example when the broker is unavailable. The deadline
            // limits that.
            Some(Err(_)) | None => {}
        }
        assert!(
            Instant::now() < deadline || received.len() >= at_least && at_end.len() == partitions.len(),
            "topic {topic} had {} of {at_least} records within {timeout:?}",
            received.len()
        );
    }
    received.sort_by_key(|each| (each.partition, each.offset));
    received
}
