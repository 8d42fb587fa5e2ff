//! Callbacks to a real Kafka: what arrives there, checked by independent readers, and every kind of failure. Failures
//! that a real broker cannot produce on demand are tested with librdkafka's mock cluster.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::support::bridge::{Client, TestBridge, callback, large_callback, signed_headers};
use crate::support::config::{Config, Route};
use crate::support::judges::{self, Message, Mode};
use crate::support::kafka::{Kafka, KafkaOptions, Mechanism, Received, Security, mock};
use crate::support::wait::SOON;
use crate::support::{eventually, samples, tool};

fn config(brokers: &str, topic: &str) -> Config {
    Config::http().kafka(brokers).to("kafka", topic)
}

async fn bridge_to(brokers: &str, topic: &str) -> TestBridge {
    TestBridge::start_connected(&config(brokers, topic)).await
}

/// The fields of an envelope that must be the same in both modes.
fn essence(record: &Received) -> (Mode, String, String, serde_json::Value) {
    let event = judges::accepted(&Message::kafka(record));
    let attribute = |name: &str| event.attribute(name).unwrap_or_else(|| panic!("{name}")).to_owned();
    assert_eq!(attribute("partitionkey").as_bytes(), record.key.as_deref().expect("a key"));
    (event.mode, attribute("id"), attribute("subject"), event.data.expect("data"))
}

#[tokio::test(flavor = "multi_thread")]
async fn independent_readers_see_the_same_event_in_both_modes() {
    let kafka = Kafka::shared().await;
    for topic in ["modes.structured", "modes.binary"] {
        kafka.create_topic(topic, 3, &[]).await;
    }
    let config = Config::http().kafka(kafka.brokers()).set("dedupe.window = '0s'").route(
        Route::new("both").to("kafka", "modes.structured").destination("kafka", "modes.binary", "mode = 'binary'"),
    );
    let bridge = TestBridge::start_connected(&config).await;
    let mut client = Client::connect(bridge.input).await;
    let bodies = samples();
    let count = bodies.len();
    for body in bodies {
        assert_eq!(client.post("/callbacks", body, &signed_headers("ICE")).await.status.as_u16(), 200);
    }
    let mut structured = kafka.consume("modes.structured", count, SOON).await;
    let mut binary = kafka.consume("modes.binary", count, SOON).await;
    assert_eq!((structured.len(), binary.len()), (count, count));
    assert_eq!(structured[0].header("content-type"), Some("application/cloudevents+json; charset=UTF-8"));
    assert_eq!(binary[0].header("content-type"), Some("application/json"));
    let named =
        |record: &Received| -> BTreeSet<String> { record.headers.iter().map(|(name, _)| name.clone()).collect() };
    let routing = ["id", "source", "type", "subject", "status", "verdict", "dialect"].map(|name| format!("ce_{name}"));
    for record in &structured {
        let attributes: BTreeSet<String> = named(record).into_iter().filter(|name| name.starts_with("ce_")).collect();
        let allowed: BTreeSet<String> = routing.clone().into();
        assert!(attributes.is_subset(&allowed) && attributes.contains("ce_type"), "{attributes:?}");
    }
    let with_verdict = structured.iter().filter(|record| record.header("ce_verdict").is_some()).count();
    assert!(with_verdict > 0, "a verdict is a header too");
    let printed = std::process::Command::new(tool("kcat", "kcat"))
        .args(["-b", kafka.brokers(), "-C", "-t", "modes.structured", "-e", "-q", "-f", "%k\t%h\t%s\n"])
        .output()
        .expect("kcat runs");
    let printed = String::from_utf8(printed.stdout).expect("UTF-8");
    assert_eq!(printed.lines().filter(|line| line.contains("ce_type=com.aliyun.media.")).count(), count, "{printed}");
    let key = |record: &Received| record.header("ce_id").expect("an id").to_owned();
    structured.sort_by_key(key);
    binary.sort_by_key(key);
    for (structured, binary) in structured.iter().zip(&binary) {
        let (one, other) = (essence(structured), essence(binary));
        assert_eq!((one.0, other.0), (Mode::Structured, Mode::Binary));
        assert_eq!((one.1, one.2, one.3), (other.1, other.2, other.3));
    }
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_choose_the_topic_and_the_key_follows_the_media() {
    let kafka = Kafka::shared().await;
    for topic in ["routed.success", "routed.failure", "routed.failed"] {
        kafka.create_topic(topic, 4, &[]).await;
    }
    let failures = Route::new("failures").when("status = ['failure', 'partial']").set("continue = true").destination(
        "kafka",
        "routed.failed",
        "key = '{dialect}/{mediaid}'",
    );
    let config = Config::http()
        .kafka(kafka.brokers())
        .set("dedupe.window = '0s'")
        .route(failures)
        .to("kafka", "routed.{status}");
    let bridge = TestBridge::start_connected(&config).await;
    for id in ["a", "b", "a"] {
        assert_eq!(bridge.post(callback(id)).await.status.as_u16(), 200);
    }
    let failed = callback("a").replace("success", "fail");
    assert_eq!(bridge.post(failed).await.status.as_u16(), 200);
    let records = kafka.consume("routed.success", 3, SOON).await;
    let partitions: Vec<i32> =
        records.iter().filter(|record| record.key.as_deref() == Some(b"a")).map(|record| record.partition).collect();
    assert!(partitions.len() == 2 && partitions[0] == partitions[1], "{records:?}");
    assert_eq!(kafka.consume("routed.failure", 1, SOON).await.len(), 1);
    let failed = kafka.consume("routed.failed", 1, SOON).await;
    assert_eq!(failed[0].key.as_deref(), Some(&b"vod/a"[..]));
    assert_eq!(bridge.metric(r#"apsara_bridge_route_matches_total{route="failures"}"#), 1.0);
    assert_eq!(bridge.metric(r#"apsara_bridge_published_total{output="kafka"}"#), 5.0);
    let events = r#"apsara_bridge_events_total{dialect="vod",status="success",type="FileUploadComplete"}"#;
    assert_eq!(bridge.metric(events), 3.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_sasl_are_configured_by_librdkafka_properties() {
    for security in [Security::MutualTls, Security::SaslTls(Mechanism::ScramSha512)] {
        let kafka = Kafka::start(KafkaOptions { security, ..Default::default() }).await;
        kafka.create_topic("secured", 1, &[]).await;
        let mut config = config(kafka.brokers(), "secured");
        for (name, value) in kafka.client_settings() {
            if name != "bootstrap.servers" {
                config = config.set(&format!("outputs.kafka.client.{name:?} = {value:?}"));
            }
        }
        let bridge = TestBridge::start_connected(&config).await;
        assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
        assert_eq!(kafka.consume("secured", 1, SOON).await.len(), 1);
        bridge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_broker_rejects_becomes_a_dead_letter_or_a_503() {
    let kafka = Kafka::shared().await;
    kafka.create_topic("small", 1, &[("max.message.bytes", "2000")]).await;
    kafka.create_topic("small.dead", 1, &[]).await;
    let long = |id: &str| large_callback(id, 4000);

    let without = bridge_to(kafka.brokers(), "small").await;
    let answer = without.post(long("lost")).await;
    let (problem, detail) = answer.problem();
    assert_eq!((answer.status.as_u16(), problem.as_str()), (503, "refused"));
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(detail, "the event cannot be published (too_large) and no dead letter was kept");
    assert_eq!(without.metric(r#"apsara_bridge_callbacks_total{input="http",outcome="refused"}"#), 1.0);
    without.stop().await;

    let config = config(kafka.brokers(), "small").dead_letters_to("kafka", "small.dead");
    let with = TestBridge::start_connected(&config).await;
    assert_eq!(with.post(long("kept")).await.status.as_u16(), 200);
    assert_eq!(with.post(callback("fits")).await.status.as_u16(), 200);
    let letters = kafka.consume("small.dead", 1, SOON).await;
    let letter = judges::accepted(&Message::kafka(&letters[0]));
    let attribute = |name: &str| letter.attribute(name).unwrap_or_else(|| panic!("{name}"));
    assert_eq!(letters[0].key.as_deref(), Some(&b"kept"[..]), "the key of the original record");
    assert_eq!((attribute("dlqreason"), attribute("dlqattempts")), ("too_large", "1"));
    assert_eq!(attribute("dlqdestination"), "kafka/small");
    assert!(attribute("dlqcode").to_lowercase().contains("size"), "{}", attribute("dlqcode"));
    assert_eq!(kafka.consume("small", 1, SOON).await.len(), 1);
    assert_eq!(with.metric(r#"apsara_bridge_dead_letters_total{reason="too_large"}"#), 1.0);
    assert_eq!(with.metric(r#"apsara_bridge_publish_failures_total{kind="too_large",output="kafka"}"#), 1.0);
    with.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_no_route_matches_becomes_a_dead_letter_or_a_503() {
    let kafka = Kafka::shared().await;
    kafka.create_topic("unrouted.dead", 1, &[]).await;
    let config = Config::http()
        .kafka(kafka.brokers())
        .route(Route::new("ims").when("dialect = 'ims'").set("drop = true"))
        .route(Route::new("audits").when("type = '*Audit*'").set("dead_letter = true"));
    let without = TestBridge::start_connected(&config).await;
    let (_, detail) = without.post(callback("a")).await.problem();
    assert_eq!(detail, "the event cannot be published (unrouted) and no dead letter was kept");
    without.stop().await;
    let with = TestBridge::start_connected(&config.dead_letters_to("kafka", "unrouted.dead")).await;
    assert_eq!(with.post(callback("a")).await.status.as_u16(), 200);
    let audit = callback("b").replace("FileUploadComplete", "CreateAuditComplete");
    assert_eq!(with.post(audit).await.status.as_u16(), 200);
    let letters = kafka.consume("unrouted.dead", 2, SOON).await;
    let reasons: Vec<Option<&str>> = letters.iter().map(|letter| letter.header("ce_dlqreason")).collect();
    assert_eq!(reasons, [Some("unrouted"), Some("routed")]);
    with.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_dies_means_503_until_it_is_back() {
    let kafka = Kafka::start(KafkaOptions::default()).await;
    kafka.create_topic("outage", 1, &[]).await;
    let bridge = bridge_to(kafka.brokers(), "outage").await;
    assert_eq!(bridge.post(callback("before")).await.status.as_u16(), 200);

    // A frozen broker accepts connections and never answers, so the deadline applies.
    kafka.stop();
    let start = Instant::now();
    let answer = bridge.post(callback("frozen")).await;
    let (problem, detail) = answer.problem();
    assert_eq!((answer.status.as_u16(), problem.as_str()), (503, "refused"));
    assert_eq!(detail, "1 of 1 destination did not acknowledge the event in time");
    assert!(start.elapsed() < Duration::from_secs(3), "longer than IMS waits: {:?}", start.elapsed());
    kafka.cont();
    bridge.connected().await;

    kafka.kill();
    eventually("known to be down", SOON, async || {
        let answer = bridge.post(callback("dead")).await;
        assert_eq!(answer.status.as_u16(), 503);
        (!bridge.bridge.is_connected()).then_some(())
    })
    .await;
    assert_eq!(bridge.metric(r#"apsara_bridge_output_up{output="kafka"}"#), 0.0);
    let mut admin = Client::connect(bridge.admin).await;
    let ready = admin.request("GET", "/readyz", "", &[]).await;
    assert_eq!((ready.status.as_u16(), ready.body.as_ref()), (503, &b"outputs not connected: kafka\n"[..]));
    kafka.restart().await;
    bridge.connected().await;
    // A broker that has just restarted may be slower than the deadline.
    bridge.accepted("after").await;
    // The same without traffic: the output must detect it by itself.
    kafka.kill();
    bridge.disconnected().await;
    kafka.restart().await;
    bridge.connected().await;
    let keys: Vec<_> = kafka.consume("outage", 2, SOON).await.into_iter().filter_map(|record| record.key).collect();
    assert!(keys.contains(&b"before".to_vec()) && keys.contains(&b"after".to_vec()), "{keys:?}");
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_was_never_there_does_not_stop_the_service() {
    let bridge = TestBridge::start(&config("no-such-host.invalid:9092", "anything")).await;
    let answer = bridge.post(callback("a")).await;
    assert_eq!((answer.status.as_u16(), answer.problem().0.as_str()), (503, "refused"));
    assert!(!bridge.bridge.is_connected());
    assert_eq!(bridge.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_detected_within_alibabas_attempts() {
    let kafka = Kafka::start(KafkaOptions { auto_create_topics: false, ..Default::default() }).await;
    let bridge = bridge_to(kafka.brokers(), "missing.topic").await;
    // Alibaba tries three times.
    for _ in 0..3 {
        assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 503);
    }
    assert!(bridge.metric(r#"apsara_bridge_publish_failures_total{kind="no_such_destination",output="kafka"}"#) >= 1.0);
    kafka.create_topic("missing.topic", 1, &[]).await;
    bridge.accepted("b").await;
    let keys: Vec<_> =
        kafka.consume("missing.topic", 1, SOON).await.into_iter().filter_map(|record| record.key).collect();
    // A try that was answered 503 may still arrive, for example while the new topic has no leader.
    assert!(keys.iter().all(|key| key == b"b"), "{keys:?}");
    assert_eq!(bridge.metric(r#"apsara_bridge_dead_letters_total{reason="no_such_destination"}"#), 0.0);
    bridge.stop().await;
}

/// Librdkafka creates batches of up to a megabyte. A topic may accept less.
#[tokio::test(flavor = "multi_thread")]
async fn small_records_in_a_batch_that_is_too_large_do_not_become_dead_letters() {
    let folder = tempfile::tempdir().expect("a folder");
    let kafka = Kafka::shared().await;
    kafka.create_topic("batches", 1, &[("max.message.bytes", "4000")]).await;
    let config = config(kafka.brokers(), "batches")
        .set("outputs.kafka.client = { 'linger.ms' = 50 }")
        .spool(folder.path().join("spool"));
    let bridge = TestBridge::start_connected(&config).await;
    let posts = (0..64).map(async |number| bridge.post(callback(&format!("v{number}"))).await.status.as_u16());
    let answers = futures_util::future::join_all(posts).await;
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    let received = kafka.consume("batches", 64, SOON).await;
    let ids: BTreeSet<&str> = received.iter().filter_map(|record| record.header("ce_id")).collect();
    assert_eq!(ids.len(), 64);
    assert_eq!(bridge.metric(r#"apsara_bridge_dead_letters_total{reason="too_large"}"#), 0.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_broker_are_reported_by_kind() {
    let cluster = mock(&["faulty.unauthorized", "faulty.too_large", "faulty.rejected", "faulty.retried"]);
    // A long deadline for busy machines: a late answer of the broker would count as no answer.
    let config = config(&cluster.bootstrap_servers(), "faulty.{mediaid}").set("delivery.deadline = '2900ms'");
    let bridge = TestBridge::start_connected(&config).await;
    use RDKafkaRespErr as Answer;
    let for_good = |kind| format!("the event cannot be published ({kind}) and no dead letter was kept");
    let for_now = || "1 of 1 destination did not acknowledge the event in time".to_owned();
    let cases = [
        (Answer::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, "unauthorized", for_now()),
        (Answer::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, "too_large", for_good("too_large")),
        (Answer::RD_KAFKA_RESP_ERR_INVALID_RECORD, "rejected", for_good("rejected")),
    ];
    for (error, kind, detail) in cases {
        cluster.request_errors(RDKafkaApiKey::Produce, &[error; 1000]);
        let answer = bridge.post(callback(kind)).await;
        assert_eq!((answer.status.as_u16(), answer.problem().1), (503, detail));
        let failures = format!(r#"apsara_bridge_publish_failures_total{{kind="{kind}",output="kafka"}}"#);
        assert!(bridge.metric(&failures) >= 1.0);
        cluster.clear_request_errors(RDKafkaApiKey::Produce);
    }
    // Retries of the client library do not count as failures.
    cluster.request_errors(RDKafkaApiKey::Produce, &[Answer::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION]);
    assert_eq!(bridge.post(callback("retried")).await.status.as_u16(), 200);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_waits_for_a_slow_broker_until_the_deadline_and_no_longer() {
    let cluster = mock(&["slow"]);
    let config = config(&cluster.bootstrap_servers(), "slow").set("delivery.deadline = '800ms'");
    let bridge = TestBridge::start_connected(&config).await;
    assert_eq!(bridge.post(callback("first")).await.status.as_u16(), 200);
    cluster.broker_round_trip_time(1, Duration::from_millis(300)).expect("set");
    assert_eq!(bridge.post(callback("slow")).await.status.as_u16(), 200);
    cluster.broker_round_trip_time(1, Duration::from_secs(5)).expect("set");
    let start = Instant::now();
    assert_eq!(bridge.post(callback("too slow")).await.status.as_u16(), 503);
    assert!(start.elapsed() >= Duration::from_millis(700) && start.elapsed() < Duration::from_millis(2500));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_hangs_up_cancels_nothing() {
    let cluster = mock(&["hangup"]);
    let bridge = bridge_to(&cluster.bootstrap_servers(), "hangup").await;
    assert_eq!(bridge.post(callback("first")).await.status.as_u16(), 200);
    cluster.broker_round_trip_time(1, Duration::from_millis(500)).expect("set");
    let impatient = tokio::time::timeout(Duration::from_millis(100), bridge.post(callback("gone"))).await;
    assert!(impatient.is_err(), "the sender hangs up before the answer");
    bridge
        .wait_metric(r#"apsara_bridge_callbacks_total{input="http",outcome="published"}"#, |value| value == 2.0)
        .await;
    assert_eq!(bridge.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_what_is_being_published() {
    let cluster = mock(&["drain"]);
    let mut bridge = bridge_to(&cluster.bootstrap_servers(), "drain").await;
    assert_eq!(bridge.post(callback("first")).await.status.as_u16(), 200);
    cluster.broker_round_trip_time(1, Duration::from_millis(400)).expect("set");
    let mut client = Client::connect(bridge.input).await;
    let under_way =
        tokio::spawn(async move { client.post("/callbacks", callback("last"), &signed_headers("VOD")).await });
    bridge.wait_metric("apsara_bridge_in_flight", |value| value == 1.0).await;
    bridge.begin_stop();
    assert_eq!(under_way.await.expect("answered").status.as_u16(), 200);
    assert_eq!(bridge.stop().await, 0);
}
