//! `doctor` against real brokers, and against what a newcomer gets wrong. It must not change anything.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{DiscardPolicy, StorageType};
use serde_json::Value;

use crate::support::bridge::{TestBridge, callback};
use crate::support::certificates::Certificates;
use crate::support::config::{Config, Route};
use crate::support::disk::Disk;
use crate::support::http_receiver::{Receiver, Reply};
use crate::support::kafka::cluster::KafkaCluster;
use crate::support::kafka::{Kafka, KafkaOptions, Mechanism, Security, USER};
use crate::support::mns::queue::QueueAttributes;
use crate::support::mns::signature::Key;
use crate::support::mns::{Fault, Mns, MnsOptions, Operation};
use crate::support::nats::{Auth, Nats, NatsOptions, TOKEN};
use crate::support::program::{self, command};
use crate::support::wait::{SETTLED, SOON};
use crate::support::{blocking, eventually, free_port};

/// It promises about ten seconds. The rest is a margin for busy machines.
const LONGEST: Duration = Duration::from_secs(20);

/// What it found.
struct Diagnosis {
    code: i32,
    json: Value,
    text: String,
}

impl Diagnosis {
    /// Verdict, sentence and remedy of the first check of this name with this verdict, or else of this name.
    #[track_caller]
    fn has(&self, part: &str, check: &str, verdict: &str, seen: &str) -> String {
        let checks = self.json["checks"].as_array().expect("an array").iter();
        let mut found =
            checks.filter(|found| found["part"] == part && found["check"] == check && found["verdict"] == verdict);
        let is_meant = |found: &&Value| found["seen"].as_str().is_some_and(|text| text.contains(seen));
        let found = found
            .find(is_meant)
            .unwrap_or_else(|| panic!("{part}: {check}: {verdict}: {seen}\nis not in {}", self.text));
        found["remedy"].as_str().unwrap_or_default().to_owned()
    }

    /// The parts and checks that are warnings or problems.
    fn bad(&self) -> Vec<String> {
        let checks = self.json["checks"].as_array().expect("an array").iter();
        let bad = checks.filter(|found| found["verdict"] == "warning" || found["verdict"] == "problem");
        bad.map(|found| format!("{}: {}: {}", found["part"], found["check"], found["seen"])).collect()
    }
}

async fn diagnose(config: &Config, more: &[&str]) -> Diagnosis {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("bridge.toml");
    config.write(&file);
    let mut command = command(&["doctor", "--json", "--config"]);
    command.arg(&file).args(more).env_remove("ALIBABA_CLOUD_ACCESS_KEY_ID");
    let started = Instant::now();
    let (code, text, error) = blocking(move || program::run(command)).await;
    assert!(started.elapsed() < LONGEST, "it took {:?}\n{text}", started.elapsed());
    let json = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{code}: {text}{error}"));
    Diagnosis { code, json, text }
}

/// A configuration whose routes need `{topic}.vod` and `{topic}.ims`.
fn kafka_config(brokers: &str, topic: &str) -> Config {
    Config::http().kafka(brokers).to("kafka", &format!("{topic}.{{dialect}}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_right_is_said_and_nothing_is_changed() {
    let kafka = Kafka::shared().await;
    for topic in ["doctor.right.vod", "doctor.right.ims"] {
        kafka.create_topic(topic, 2, &[]).await;
    }
    let config = kafka_config(kafka.brokers(), "doctor.right");
    let found = diagnose(&config, &[]).await;
    assert_eq!((found.code, found.bad()), (0, Vec::<String>::new()), "{}", found.text);
    found.has("configuration", "configuration", "ok", "valid");
    found.has("output kafka", "login", "ok", "1 broker answer");
    found.has("output kafka", "topic doctor.right.{dialect}", "ok", "all its topics exist (route `all`)");
    found.has("output kafka", "replicas", "ok", "the brokers are on this machine");
    found.has("output kafka", "write", "not_checked", "does not ask whether the user may write");
    found.has("process", "descriptors", "ok", "at most 4352 are needed");
    found.has("input http", "listen", "ok", "is free");
    found.has("spool", "spool", "not_checked", "it is off");
    found.has("clock", "clock", "not_checked", "no server has said its time");
    assert_eq!(kafka.consume("doctor.right.vod", 0, SOON).await, []);

    let found = diagnose(&config, &["--publish-test", "kafka/doctor.right.vod"]).await;
    assert_eq!(found.code, 0, "{}", found.text);
    found.has("publish test", "publish", "ok", "kafka/doctor.right.vod has acknowledged the event");
    let found = diagnose(&config, &["--publish-test", "doctor.right.vod"]).await;
    found.has("publish test", "publish", "ok", "kafka/doctor.right.vod has acknowledged the event");
    let records = kafka.consume("doctor.right.vod", 2, SOON).await;
    assert_eq!(records[0].header("ce_type"), Some("com.aliyun.media.ApsaraBridgeDoctor"));

    // For people.
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("bridge.toml");
    config.write(&file);
    let mut command = command(&["doctor", "--config"]);
    command.arg(&file);
    let (code, text, error) = blocking(move || program::run(command)).await;
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(
        text.contains("\noutput kafka\n  ok           login: ") && text.contains("\n0 problems, 0 warnings, "),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_topics_are_named_and_not_created() {
    let options = KafkaOptions { auto_create_topics: false, ..KafkaOptions::default() };
    let kafka = Kafka::start(options).await;
    kafka.create_topic("doctor.vod", 1, &[("min.insync.replicas", "2")]).await;
    let config = kafka_config(kafka.brokers(), "doctor")
        .dead_letters_to("kafka", "doctor.dead")
        .route(Route::new("media").when("dialect = 'vod'").to("kafka", "doctor.by-{mediaid}"));
    let found = diagnose(
        &config.routes([
            Route::new("media").when("dialect = 'vod'").to("kafka", "doctor.by-{mediaid}").set("continue = true"),
            Route::new("all").to("kafka", "doctor.{dialect}"),
        ]),
        &["--publish-test", "kafka/doctor.ims"],
    )
    .await;
    assert_eq!(found.code, 1);
    let remedy =
        found.has("output kafka", "topic doctor.{dialect}", "problem", "does not exist (route `all`): doctor.ims");
    assert!(remedy.contains("--create --topic doctor.ims --partitions 3 --replication-factor 1"), "{remedy}");
    found.has("output kafka", "topic doctor.dead", "problem", "does not exist (dead_letters.to): doctor.dead");
    found.has(
        "output kafka",
        "topic doctor.by-{mediaid}",
        "not_checked",
        "senders choose a part of it (route `media`)",
    );
    // This broker counts it as 1.
    found.has("output kafka", "replicas", "warning", "min.insync.replicas is more than there are replicas");
    let published = found.has("publish test", "publish", "problem", "kafka/doctor.ims has not acknowledged the event");
    found.has("publish test", "publish", "problem", "does not exist (route `all`): doctor.ims");
    assert!(published.contains("--create --topic doctor.ims"), "{published}");
    assert_eq!(kafka.consume("doctor.ims", 0, SOON).await, []);

    // A broker that creates topics by itself.
    let shared = Kafka::shared().await;
    let found = diagnose(&kafka_config(shared.brokers(), "doctor.created"), &[]).await;
    let seen = "do not exist (route `all`): doctor.created.ims, doctor.created.vod; the brokers create a missing topic";
    found.has("output kafka", "topic doctor.created.{dialect}", "warning", seen);
    let again = diagnose(&kafka_config(shared.brokers(), "doctor.created"), &[]).await;
    again.has("output kafka", "topic doctor.created.{dialect}", "warning", "do not exist");
}

fn login(config: Config, password: &str) -> Config {
    config.set(&format!(
        "[outputs.kafka.client]\n'security.protocol' = 'sasl_plaintext'\n'sasl.mechanism' = 'PLAIN'\n\
         'sasl.username' = '{USER}'\n'sasl.password' = '{password}'"
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_login_that_is_refused_and_missing_rights_are_told_apart() {
    let password = crate::support::kafka::PASSWORD;
    let properties = [
        ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
        // The connections of the broker and of the tests. The user of the bridge may do nothing.
        ("super.users", "User:ANONYMOUS"),
    ];
    let kafka = Kafka::start(KafkaOptions {
        security: Security::Sasl(Mechanism::Plain),
        properties: properties.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
        ..KafkaOptions::default()
    })
    .await;
    kafka.create_topic("doctor.vod", 1, &[]).await;
    kafka.create_topic("doctor.ims", 1, &[]).await;
    let config = kafka_config(kafka.brokers(), "doctor");
    let found = diagnose(&login(config.clone(), "hunter2"), &[]).await;
    let remedy = found.has("output kafka", "login", "problem", "uthentication");
    assert!(remedy.contains("check sasl.username, sasl.password"), "{remedy}");
    assert!(!found.text.contains("hunter2"), "{}", found.text);
    let found = diagnose(&config, &[]).await;
    found.has("output kafka", "login", "problem", "");
    let found = diagnose(&login(config, password), &["--publish-test", "kafka/doctor.vod"]).await;
    assert_eq!(found.code, 1);
    found.has("output kafka", "login", "ok", "1 broker answer");
    let seen = "doctor.ims, doctor.vod, or the user may not see them";
    let remedy = found.has("output kafka", "topic doctor.{dialect}", "problem", seen);
    assert!(remedy.contains("grant the user Describe and Write"), "{remedy}");
    assert!(remedy.contains(" --command-config FILE "), "{remedy}");
    found.has("output kafka", "write", "problem", "the brokers refuse this producer");
    found.has("publish test", "publish", "problem", "");
    assert!(!found.text.contains(password), "{}", found.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_lose_or_refuse_events_are_told() {
    let kafka = Kafka::shared().await;
    for (topic, configs) in [
        ("doctor.limits.compacted", &[("cleanup.policy", "compact")]),
        ("doctor.limits.short", &[("retention.ms", "60000")]),
        ("doctor.limits.small", &[("max.message.bytes", "2000")]),
        ("doctor.limits.tiny", &[("max.message.bytes", "100")]),
    ] {
        kafka.create_topic(topic, 1, configs).await;
    }
    let topics = ["compacted", "short", "small", "tiny"].map(|name| format!("doctor.limits.{name}"));
    let route = topics.iter().fold(Route::new("all"), |route, topic| route.to("kafka", topic));
    let config = Config::http().kafka(kafka.brokers()).route(route);
    let found = diagnose(&config, &["--publish-test", "kafka/doctor.limits.compacted"]).await;
    let part = "output kafka";
    let remedy = found.has(part, "cleanup.policy", "warning", "only the last one is kept: doctor.limits.compacted");
    assert!(remedy.contains("--add-config cleanup.policy=delete") && !remedy.contains("FILE"), "{remedy}");
    found.has(part, "retention", "warning", "retention.ms of doctor.limits.short deletes events after 1m, also unread");
    found.has(part, "message size", "warning", "max.message.bytes of doctor.limits.small accepts at most 2000B, but");
    found.has(
        part,
        "message size",
        "problem",
        "max.message.bytes of doctor.limits.tiny accepts at most 100B: no event",
    );
    assert_eq!(found.bad().len(), 4, "{:?}", found.bad());
    // A compacted topic refuses records without a key.
    found.has("publish test", "publish", "ok", "has acknowledged the event");
    let records = kafka.consume("doctor.limits.compacted", 1, SOON).await;
    assert!(records[0].key.as_ref().is_some_and(|key| key.starts_with(b"apsara-bridge-doctor-")));
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_are_asked_at_the_addresses_that_they_advertise() {
    // A broker that is killed stays in the list of the others for so long.
    let properties = vec![("broker.session.timeout.ms".to_owned(), "5000".to_owned())];
    let options = KafkaOptions { auto_create_topics: false, properties, ..KafkaOptions::default() };
    let cluster = KafkaCluster::start(3, options).await;
    cluster.create_topic("doctor.vod", 1, &[("min.insync.replicas", "3")]).await;
    cluster.create_topic("doctor.ims", 1, &[("min.insync.replicas", "2")]).await;
    for topic in ["doctor.vod", "doctor.ims"] {
        cluster.in_sync(topic).await;
    }
    let part = "output kafka";
    // Nothing listens on the addresses that these listeners advertise.
    let ports = cluster.proxied();
    let config = kafka_config(&format!("127.0.0.1:{}", ports[0].broker), "doctor");
    // A cluster that has just started can take longer to list its brokers than doctor waits.
    let found = eventually("the brokers to be listed", SETTLED, async || {
        let found = diagnose(&config, &[]).await;
        found.text.contains("which cannot be reached from here").then_some(found)
    })
    .await;
    let remedy = found.has(part, "advertised addresses", "problem", "which cannot be reached from here");
    found.has(part, "advertised addresses", "problem", &format!("127.0.0.1:{}", ports[1].proxy));
    assert!(remedy.contains("set advertised.listeners") && found.code == 1, "{remedy}");
    assert!(!found.text.contains("broker answers") && !found.text.contains("brokers answer"), "{}", found.text);

    let config = kafka_config(cluster.brokers()[0].brokers(), "doctor").dead_letters_to("kafka", "doctor.dead");
    let found = diagnose(&config, &[]).await;
    found.has(part, "login", "ok", "3 brokers answer: ");
    found.has(part, "replicas", "ok", "topics that survive the loss of one broker: 1");
    found.has(part, "replicas", "warning", "min.insync.replicas is the number of replicas");
    cluster.kill(2).await;
    let found = diagnose(&config, &[]).await;
    found.has(part, "login", "ok", "2 brokers answer: ");
    found.has(part, "advertised addresses", "warning", cluster.brokers()[2].brokers());
    let refuses = |found: &Diagnosis| found.text.contains("every record is refused now");
    let found = eventually("the replicas to be out of sync", SETTLED, async || {
        Some(diagnose(&config, &[]).await).filter(refuses)
    })
    .await;
    let seen = "2 of 3 replicas are in sync and min.insync.replicas asks for 3: doctor.vod";
    found.has(part, "replicas in sync", "problem", seen);
    found.has(part, "replicas in sync", "warning", "some replicas are not in sync: doctor.ims");
    assert!(!found.text.contains("survive the loss"), "{}", found.text);
    let remedy = found.has(part, "topic doctor.dead", "problem", "does not exist");
    assert!(remedy.contains("--replication-factor 3 --config min.insync.replicas=2"), "{remedy}");
}

fn nats_config(nats: &Nats, more: &str) -> Config {
    Config::http().nats(nats.url()).set(more).to("nats", "doctor.{dialect}.{status}")
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_nats_are_compared_with_the_routes() {
    let nats = Nats::start(NatsOptions { auth: Auth::Token, ..NatsOptions::default() }).await;
    let token = format!("outputs.nats.token = '{TOKEN}'");
    let config = nats_config(&nats, &token);
    let part = "output nats";
    let found = diagnose(&nats_config(&nats, "outputs.nats.token = 'hunter2'"), &[]).await;
    let remedy = found.has(part, "login", "problem", "");
    assert!(found.code == 1 && remedy.contains("check the login") && !found.text.contains("hunter2"), "{}", found.text);

    let found = diagnose(&config, &[]).await;
    found.has(part, "login", "ok", "answers, version ");
    found.has(part, "jetstream", "ok", "");
    let subject = "subject doctor.{dialect}.{status}";
    found.has(part, subject, "problem", "no stream accepts doctor.ims.canceled, doctor.ims.failure, ");
    let stream = format!(
        "{token}\noutputs.nats.stream = {{ name = 'DOCTOR', subjects = ['doctor.>'], create = true, replicas = 1 }}"
    );
    let planned = nats_config(&nats, &stream);
    let found = diagnose(&planned, &[]).await;
    found.has(part, "stream", "ok", "`DOCTOR` does not exist yet; the bridge creates it when it starts");
    found.has(part, subject, "ok", "accepted by stream `DOCTOR` (route `all`)");
    assert!(found.code == 0, "{}", found.text);
    let found = diagnose(&planned.clone().set("outputs.nats.stream.create = false"), &[]).await;
    found.has(part, "stream", "problem", "`DOCTOR` does not exist");
    assert!(nats.jetstream().await.get_stream("DOCTOR").await.is_err(), "it creates nothing");

    nats.create_stream_with("DOCTOR", &["doctor.vod.*"], |config| {
        config.storage = StorageType::Memory;
        config.duplicate_window = Duration::from_secs(30);
    })
    .await;
    let found = diagnose(&planned, &[]).await;
    found.has(part, "stream", "warning", "keeps its messages in memory only");
    found.has(part, "stream", "warning", "does not accept `doctor.>`");
    found.has(part, "duplicate window", "warning", "`DOCTOR` recognizes a repeat only for 30s");
    found.has(part, "replicas", "ok", "on this machine");
    found.has(part, subject, "problem", "no stream accepts doctor.ims.canceled");
    nats.create_stream("REST", &["doctor.ims.>"]).await;
    let found = diagnose(&config, &["--publish-test", "nats/doctor.vod.test"]).await;
    found.has(part, subject, "ok", "accepted by stream `DOCTOR`, `REST`");
    found.has(part, "duplicate window", "ok", "`REST` recognizes a repeat for 2m");
    found.has(part, "stream", "warning", "stream `DOCTOR` keeps its messages in memory only");
    found.has("publish test", "publish", "ok", "nats/doctor.vod.test has acknowledged");
    assert_eq!(nats.messages("DOCTOR", 1, SOON).await.len(), 1, "only the test was published");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_server_without_jetstream_and_a_user_without_rights_are_told() {
    let nats = Nats::start(NatsOptions { jetstream: false, ..NatsOptions::default() }).await;
    let found = diagnose(&nats_config(&nats, ""), &[]).await;
    let remedy = found.has("output nats", "jetstream", "problem", "JetStream does not answer");
    assert!(remedy.contains("switch JetStream on"), "{remedy}");
    let found = diagnose(&nats_config(&nats, "outputs.nats.delivery = 'core'"), &[]).await;
    found.has("output nats", "stream", "ok", "core NATS has no streams");
    found.has("configuration", "setting", "warning", "at most once");
    let core = nats_config(&nats, "outputs.nats.delivery = 'core'");
    let found = diagnose(&core, &["--publish-test", "nats/doctor.vod.test"]).await;
    found.has("publish test", "publish", "ok", "was sent to nats/doctor.vod.test; nobody acknowledges it");
    let limited = "authorization { users = [ { user: u, password: p, permissions: { publish: 'doctor.>', subscribe: '_INBOX.>' } } ] }";
    let nats = Nats::start(NatsOptions { config: limited.to_owned(), ..NatsOptions::default() }).await;
    let found = diagnose(&nats_config(&nats, "outputs.nats.user = 'u'\noutputs.nats.password = 'p'"), &[]).await;
    found.has("output nats", "permissions", "problem", "may not publish on \"$JS.API.INFO\"");
}

/// Accounts with limits, and a user who may do only what the bridge needs.
const LIMITED: &str = r#"
accounts { A: {
    jetstream: { max_file: 67108864, max_streams: 10 }
    users: [
        { user: admin, password: p }
        { user: least, password: p, permissions: {
            publish: ["$JS.API.INFO", "$JS.API.STREAM.NAMES", "doctor.>"], subscribe: "_INBOX.>"
        } }
    ]
} }
no_auth_user: admin
"#;

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_lose_or_refuse_or_cannot_be_created_are_told() {
    let nats = Nats::start(NatsOptions { config: LIMITED.to_owned(), ..NatsOptions::default() }).await;
    let part = "output nats";
    nats.create_stream("OTHER", &["doctor.a.>"]).await;

    // What the bridge cannot create.
    let planned = |more: &str| {
        Config::http().nats(nats.url()).to("nats", "doctor.x").set(&format!(
            "outputs.nats.stream = {{ name = 'PLANNED', subjects = ['doctor.x'], create = true, replicas = 1, {more} }}"
        ))
    };
    let found = diagnose(&planned("duplicate_window = '30s'").set("outputs.nats.stream.replicas = 3"), &[]).await;
    let remedy = found.has(part, "stream", "problem", "it needs 3 replicas, and the server is not part of a cluster");
    assert!(remedy.contains("stream.replicas = 1"), "{remedy}");
    let remedy =
        found.has(part, "duplicate window", "warning", "the planned stream `PLANNED` recognizes a repeat only");
    assert!(remedy.contains("set `stream.duplicate_window = \"2m\"`"), "{remedy}");
    found.has(part, "replicas", "ok", "the planned stream `PLANNED` gets 3 replicas");
    let overlapping = planned("max_bytes = '1GiB'").set("outputs.nats.stream.subjects = ['doctor.*.b', 'doctor.x']");
    let found = diagnose(&overlapping, &[]).await;
    found.has(part, "stream", "problem", "its subject `doctor.*.b` overlaps those of stream `OTHER`");
    found.has(part, "stream", "problem", "the account may have 64MiB in streams");
    let found = diagnose(&planned("max_bytes = '1MiB'"), &[]).await;
    found.has(part, "stream", "ok", "the bridge creates it when it starts");
    assert_eq!((found.code, found.bad()), (0, vec![]));

    // The user who may do only what the bridge needs.
    let least = "outputs.nats.user = 'least'\noutputs.nats.password = 'p'";
    let to_other = Config::http().nats(nats.url()).to("nats", "doctor.a.x");
    let found = diagnose(&to_other.clone().set(least), &["--publish-test", "nats/doctor.a.x"]).await;
    assert_eq!((found.code, found.bad()), (0, vec![]), "{}", found.text);
    found.has(part, "subject doctor.a.x", "ok", "accepted by stream `OTHER`");
    let remedy =
        found.has(part, "stream", "not_checked", "the user may not ask for the configuration of stream `OTHER`");
    assert_eq!(remedy, "to check it, let the user publish on $JS.API.STREAM.INFO.OTHER");
    let with_stream = to_other.clone().set(least).set("outputs.nats.stream.name = 'OTHER'");
    let remedy = diagnose(&with_stream, &[]).await.has(part, "permissions", "problem", "STREAM.INFO.OTHER");
    assert!(remedy.starts_with("let the user publish on $JS.API.STREAM.INFO.OTHER;"), "{remedy}");

    // Logins that the client refuses.
    let malformed = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(malformed.path(), "-----BEGIN NATS USER JWT-----\n").expect("written");
    for login in [format!("credentials_file = {:?}", malformed.path()), "nkey = 'SUNOTANKEY'".to_owned()] {
        let found = diagnose(&to_other.clone().set(&format!("[outputs.nats]\n{login}")), &[]).await;
        let remedy = found.has(part, "login", "problem", "");
        assert!(remedy.contains("check the login of the output"), "{login}: {}", found.text);
    }

    // Streams that exist.
    let minute = Duration::from_secs(60);
    nats.create_stream_with("FULL", &["doctor.full"], |config| {
        (config.max_messages, config.discard) = (1, DiscardPolicy::New);
    })
    .await;
    nats.jetstream().await.publish("doctor.full", "x".into()).await.expect("sent").await.expect("stored");
    nats.create_stream_with("SMALL", &["doctor.small"], |config| config.max_message_size = 100).await;
    nats.create_stream_with("YOUNG", &["doctor.young"], |config| {
        (config.max_age, config.duplicate_window) = (minute, minute);
    })
    .await;
    nats.create_stream_with("SILENT", &["doctor.silent"], |config| config.no_ack = true).await;
    let subjects = ["full", "small", "young", "silent"].map(|name| format!("doctor.{name}"));
    let route = subjects.iter().fold(Route::new("all"), |route, subject| route.to("nats", subject));
    let found = diagnose(&Config::http().nats(nats.url()).route(route), &[]).await;
    found.has(part, "room", "problem", "stream `FULL` is full (1 messages");
    found.has(part, "message size", "problem", "max_msg_size of stream `SMALL` accepts at most 100B: no event fits");
    found.has(part, "retention", "warning", "stream `YOUNG` deletes events after 1m");
    let remedy = found.has(part, "duplicate window", "warning", "stream `YOUNG` recognizes a repeat only for 1m");
    assert!(remedy.starts_with("nats stream edit YOUNG --max-age 7d, then "), "{remedy}");
    found.has(part, "stream", "problem", "stream `SILENT` acknowledges nothing (no_ack)");
    assert_eq!(found.bad().len(), 5, "{:?}", found.bad());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_is_asked_and_gets_no_event() {
    let receiver = Receiver::start().await;
    let config = Config::http()
        .http_output("webhook", &receiver.url())
        .set("[[routes]]\nname = 'all'\nto = { output = 'webhook' }")
        .set("[outputs.unused]\nkind = 'console'");
    let found = diagnose(&config, &[]).await;
    let part = "output webhook";
    found.has(part, "receiver", "ok", "answers OPTIONS with 405");
    found.has("output unused", "routes", "warning", "no event can arrive at it");
    found.has("clock", "clock", "ok", "0 s ");
    assert!(!found.text.contains("tenant=a"), "a query may be a secret");
    receiver.answer_questions(Reply::status(401));
    diagnose(&config, &[]).await.has(part, "receiver", "warning", "with 401 Unauthorized; it may answer events");
    assert!(receiver.events().is_empty());
    let found = diagnose(&config, &["--publish-test", "webhook"]).await;
    found.has("publish test", "publish", "ok", "webhook has acknowledged the event");
    assert_eq!(receiver.events().len(), 1);
    receiver.stop().await;
    diagnose(&config, &[]).await.has(part, "receiver", "problem", "onnection refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_and_the_rights_of_its_key_are_checked_without_a_message() {
    let mns = Mns::start(MnsOptions::default());
    let retention = Duration::from_secs(3600);
    mns.create_queue("media", QueueAttributes { retention, ..QueueAttributes::default() });
    let id = mns.put("media", callback("v"));
    let config = Config::new()
        .mns(&mns, "media")
        .output("console", "console", &[""; 0])
        .set("[[routes]]\nname = 'all'\nto = { output = 'console' }");
    let part = "input queue";
    let found = diagnose(&config, &[]).await;
    found.has(part, "queue", "ok", "media exists, with 1 messages");
    found.has(part, "retention", "warning", "keeps messages for 1h");
    found.has(part, "receive", "ok", "none was received");
    found.has(part, "delete", "ok", "DeleteMessage");
    found.has(part, "extend leases", "ok", "ChangeMessageVisibility");
    found.has("clock", "clock", "ok", "0 s ");
    assert_eq!((mns.counts("media").active, mns.received("media")[&id], mns.deleted("media").len()), (1, 0, 0));

    mns.fail_next(Operation::DELETES, usize::MAX, Fault::code("AccessDenied"));
    mns.fail_next(&[Operation::PeekMessage], usize::MAX, Fault::code("AccessDenied"));
    mns.set_clock_offset(-120);
    let found = diagnose(&config, &[]).await;
    let remedy = found.has(part, "delete", "problem", "AccessDenied (403)");
    assert_eq!(remedy, "grant the key DeleteMessage on the queue");
    found.has(part, "receive", "not_checked", "PeekMessage");
    found.has(part, "extend leases", "ok", "");
    found.has("clock", "clock", "warning", "behind this machine's");
    mns.heal();
    mns.set_clock_offset(-3600);
    let found = diagnose(&config, &[]).await;
    let remedy = found.has("clock", "clock", "problem", " s behind this machine's: Alibaba refuses requests");
    assert!(remedy.contains("set the clock"), "{remedy}");
    found.has(part, "queue", "not_checked", "TimeExpired");
    mns.set_clock_offset(0);

    let missing = config.clone().set("inputs.queue.queue = 'other'");
    diagnose(&missing, &[]).await.has(part, "queue", "problem", "QueueNotExist (404)");
    mns.set_keys(&[Key::new(Mns::KEY_ID, "another")]);
    let found = diagnose(&config, &[]).await;
    let remedy = found.has(part, "queue", "problem", "SignatureDoesNotMatch (403)");
    assert!(found.code == 1 && remedy.contains("the secret of the access key"), "{remedy}");
    assert!(!found.text.contains(Mns::KEY_SECRET), "{}", found.text);
    mns.set_keys(&[]);
    diagnose(&config, &[]).await.has(part, "queue", "problem", "InvalidAccessKeyId");
}

/// Any web server answers 200, some with XML.
#[tokio::test(flavor = "multi_thread")]
async fn a_web_server_is_not_a_queue() {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let place = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.expect("a connection");
            let _ = connection.read(&mut [0; 4096]);
            let page = "<html><body><h1>It works!</h1></body></html>";
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", page.len());
            let _ = connection.write_all(format!("{head}{page}").as_bytes());
        }
    });
    let config = Config::new()
        .output("console", "console", &[""; 0])
        .set(&format!(
            "[inputs.queue]\nkind = 'mns'\nendpoint = 'http://{place}'\nqueue = 'media'\n\
             credentials = {{ access_key_id = 'a', access_key_secret = 'b' }}"
        ))
        .set("[[routes]]\nname = 'all'\nto = { output = 'console' }");
    let found = diagnose(&config, &[]).await;
    let seen = "not an MNS endpoint: found `html`; expected the attributes of a queue";
    let remedy = found.has("input queue", "endpoint", "problem", seen);
    assert!(remedy.contains("`endpoint`"), "{remedy}");
    found.has("clock", "clock", "not_checked", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_must_have_the_names_of_the_urls() {
    let folder = tempfile::tempdir().expect("a folder");
    let Certificates { server, server_key, authority, .. } = Certificates::make(folder.path());
    let with = |more: &str| {
        let tls = format!("cert_file = '{}', key_file = '{}'{more}", server.display(), server_key.display());
        Config::http()
            .output("console", "console", &[""; 0])
            .set("[[routes]]\nname = 'all'\nto = { output = 'console' }")
            .set(&format!(
                "inputs.http.tls = {{ {tls} }}\n[[inputs.http.endpoints]]\npath = '/callbacks'\nkeys = ['TestKey123']\n\
                 urls = ['https://media.example.invalid/callbacks', 'https://localhost:1/callbacks', \
                 'https://127.0.0.1:1/callbacks']"
            ))
    };
    let wrong = |found: Diagnosis| -> Vec<String> {
        found.bad().into_iter().filter(|line| line.contains("certificate") && line.contains(" is not for ")).collect()
    };
    let told = wrong(diagnose(&with(""), &[]).await);
    assert!(told.len() == 1 && told[0].contains("server.pem is not for media.example.invalid"), "{told:?}");
    // Behind a proxy that shows a certificate.
    let told = wrong(diagnose(&with(&format!(", client_ca_file = '{}'", authority.display())), &[]).await);
    assert!(told.is_empty(), "{told:?}");
}

/// Outputs of every kind that has a server, and a queue, all at one place.
fn everything_at(config: Config, place: &str) -> Config {
    config
        .kafka(place)
        .nats(&format!("nats://{place}"))
        .http_output("webhook", &format!("http://{place}/"))
        .set(&format!(
            "[inputs.queue]\nkind = 'mns'\nendpoint = 'http://{place}'\nqueue = 'media'\n\
             credentials = {{ access_key_id = 'a', access_key_secret = 'b' }}"
        ))
        .route(Route::new("all").to("kafka", "doctor").to("nats", "doctor"))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_network_each_part_has_a_sentence() {
    let port = free_port();
    let config = everything_at(Config::http(), &format!("127.0.0.1:{port}"))
        .set("[[inputs.http.endpoints]]\npath = '/callbacks'\nurls = ['https://nowhere.invalid/callbacks']\nkeys = ['TestKey123']");
    let found = diagnose(&config, &["--publish-test", "kafka/doctor"]).await;
    assert_eq!(found.code, 1);
    found.has("output kafka", "login", "problem", "Connection refused");
    found.has("output nats", "login", "problem", "onnection refused");
    found.has("output webhook", "receiver", "problem", "onnection refused");
    found.has("input queue", "endpoint", "problem", "onnection refused");
    found.has("input http", "url https://nowhere.invalid/callbacks", "not_checked", "nowhere.invalid");
    found.has("publish test", "publish", "problem", "did not connect");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_never_answer_do_not_hold_it() {
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let config = everything_at(Config::new(), &silent.local_addr().expect("bound").to_string());
    let found = diagnose(&config, &["--publish-test", "nats/doctor"]).await;
    found.has("output kafka", "login", "problem", "");
    found.has("output nats", "login", "problem", "timed out");
    found.has("output webhook", "receiver", "problem", "no answer in time");
    found.has("input queue", "answers", "problem", "no answer within 9s");
    found.has("publish test", "publish", "problem", "did not connect");
}

#[tokio::test(flavor = "multi_thread")]
async fn urls_are_asked_whether_a_bridge_is_behind_them() {
    let port = free_port();
    let with_url = |url: &str| {
        Config::http().output("console", "console", &[""; 0]).set("[[routes]]\nname = 'all'\nto = { output = 'console' }").set(
            &format!("inputs.http.listen = '127.0.0.1:{port}'\n[[inputs.http.endpoints]]\npath = '/callbacks'\nurls = ['{url}']\nkeys = ['TestKey123']"),
        )
    };
    let right = format!("http://127.0.0.1:{port}/callbacks");
    let part = "input http";
    let check = format!("url {right}");
    diagnose(&with_url(&right), &[]).await.has(part, &check, "not_checked", "no bridge is running");
    let bridge = TestBridge::start_connected(&with_url(&right)).await;
    let found = diagnose(&with_url(&right), &[]).await;
    found.has(part, "listen", "ok", "a bridge is running on");
    found.has(part, &check, "ok", "an endpoint of a bridge answers");
    let wrong = format!("http://127.0.0.1:{port}/callback");
    let found = diagnose(&with_url(&wrong), &[]).await;
    found.has(
        part,
        &format!("url {wrong}"),
        "warning",
        "its path is /callback, and the path of the endpoint /callbacks",
    );
    found.has(part, &format!("url {wrong}"), "problem", "no endpoint at the path that arrives");
    let elsewhere = Receiver::start().await;
    elsewhere.answer_questions(Reply::status(200));
    let other = elsewhere.url().split('?').next().expect("a url").replace("/events", "/callbacks");
    let found = diagnose(&with_url(&other), &[]).await;
    let is_told = ["warning", "not_checked"].iter().any(|verdict| {
        found.json["checks"]
            .as_array()
            .expect("an array")
            .iter()
            .any(|check| check["check"] == format!("url {other}") && check["verdict"] == *verdict)
    });
    assert!(is_told, "{}", found.text);
    let private = "http://10.255.255.1:9/callbacks";
    diagnose(&with_url(private), &[]).await.has(part, &format!("url {private}"), "warning", "is a private address");
    assert_eq!(bridge.stop().await, 0);

    // Another program has the ports.
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = taken.local_addr().expect("bound");
    let found = diagnose(&with_url(&right).set(&format!("admin.listen = '{address}'")), &[]).await;
    found.has("process", "admin.listen", "problem", "in use by another program");
    let found = diagnose(&with_url(&right).set(&format!("inputs.http.listen = '{address}'")), &[]).await;
    found.has(part, "listen", "problem", "in use by another program");
    let config = with_url(&right).keys("['alllowercase']");
    diagnose(&config, &[]).await.has(part, "keys", "warning", "cannot be one of Alibaba");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_of_the_spool_is_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = Config::http()
        .output("console", "console", &[""; 0])
        .set("[[routes]]\nname = 'all'\nto = { output = 'console' }");
    let spool = folder.path().join("spool");
    let found =
        diagnose(&base.clone().spool(&spool).set("spool.max_bytes = '1MiB'\ndead_letters.max_bytes = '1MiB'"), &[])
            .await;
    found.has("spool", "folder", "ok", "does not exist yet; the bridge creates it");
    found.has("spool", "room", "ok", "MiB are free for the spool");
    assert!(!spool.exists());
    // A relative path, as the README has it.
    base.clone().spool("spool").set("spool.max_bytes = '1MiB'").write(&folder.path().join("bridge.toml"));
    let mut command = command(&["doctor", "--config", "bridge.toml"]);
    command.current_dir(folder.path());
    let (_, text, _) = blocking(move || program::run(command)).await;
    assert!(text.contains("spool does not exist yet") && text.contains("an fsync takes "), "{text}");

    let config = base.clone().spool(&spool).set("spool.max_bytes = '1MiB'\ndead_letters.max_bytes = '1MiB'");
    let bridge = TestBridge::start(&config).await;
    let files = || {
        let files = std::fs::read_dir(&spool).expect("readable").map(|file| file.expect("readable").file_name());
        files.collect::<std::collections::BTreeSet<_>>()
    };
    let before = files();
    let found = diagnose(&config, &[]).await;
    found.has("spool", "folder", "ok", "a bridge is running with");
    found.has("spool", "fsync", "ok", "an fsync takes ");
    assert_eq!(files(), before);
    assert_eq!(bridge.stop().await, 0);

    let Some(disk) = Disk::new(folder.path(), "8m") else { return };
    let file = folder.path().join("bridge.toml");
    base.spool(disk.mount().join("spool")).write(&file);
    let mut command = disk.command(env!("CARGO_BIN_EXE_apsara-bridge"));
    command.args(["doctor", "--config"]).arg(&file);
    let (code, text, error) = blocking(move || program::run(command)).await;
    assert_eq!((code, error.as_str()), (1, ""));
    for expected in ["is on tmpfs: it is memory", "8 MiB are free for the spool, which needs up to", "an fsync takes "]
    {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    assert!(!disk.path("spool").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_has_a_sentence_and_its_exit_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("bridge.toml");
    let config = Config::http().kafka("127.0.0.1:1").to("kafka", "doctor");
    config.http_output("webhook", "http://127.0.0.1:1/").write(&file);
    let file = file.to_str().expect("UTF-8");
    for (arguments, expected) in [
        (&["--publish-test", "kafak/x"][..], "there is no output `kafak`; did you mean `kafka`?"),
        (&["--publish-test", "bus/x"], "there is no output `bus`; outputs are kafka, webhook"),
        (
            &["--publish-test", "bus"],
            "there is no output `bus`, and no route leads to such a topic; outputs are kafka, webhook",
        ),
        (&["--publish-test", "kafka"], "expected kafka/TOPIC"),
        (&["--publish-test", "kafka/"], "kafka/: expected kafka/TOPIC"),
        (&["--publish-test", "kafka/a b"], "invalid characters in `a b`"),
        (&["--publish-test", "kafka/m.{status}"], "expected one topic, found the template `m.{status}`"),
        (&["--publish-test", "webhook/x"], "`webhook` has no topics: expected webhook"),
        (&["--set", "delivery.deadlin=1s"], "unknown key; did you mean `deadline`?"),
        (&["--set", "routes=[]"], "expected at least one"),
        (&["--config", "no-such-file"], "no-such-file: cannot be read"),
    ] {
        let mut command = command(&["doctor", "--config", file]);
        command.args(arguments);
        let (code, out, error) = blocking(move || program::run(command)).await;
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {error}");
        assert!(error.contains(expected), "{expected} is not in\n{error}");
    }
}
