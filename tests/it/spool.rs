//! The spool: events that could not be published are stored on the disk, and published later, in order and once per
//! destination. Also every kind of failure of the disk.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use apsara_bridge::output::ErrorKind;
use apsara_bridge::store::database::{Access, Database, FILE};
use async_nats::jetstream::stream::DiscardPolicy;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tempfile::TempDir;

use crate::support::bridge::{Client, TestBridge, callback, large_callback, signed_head, signed_headers};
use crate::support::config::{Config, Route};
use crate::support::disk::Disk;
use crate::support::eventually;
use crate::support::kafka::{Kafka, KafkaOptions, mock};
use crate::support::nats::{Nats, NatsOptions};
use crate::support::process::Process;
use crate::support::program::{self, Program};
use crate::support::wait::SOON;

/// An address on which nothing listens.
const NOWHERE: &str = "127.0.0.1:9";

fn spool(folder: &TempDir) -> PathBuf {
    folder.path().join("spool")
}

/// Everything goes to a topic of the output `kafka`, and through the spool if necessary.
fn config(brokers: &str, topic: &str, folder: &TempDir) -> Config {
    Config::http().kafka(brokers).to("kafka", topic).spool(spool(folder))
}

/// How many callbacks by HTTP had this outcome.
fn outcomes(bridge: &TestBridge, outcome: &str) -> f64 {
    bridge.outcomes("http", outcome)
}

/// Posts callbacks with these ids, all of which must be answered with 200.
async fn post_all(bridge: &TestBridge, ids: impl IntoIterator<Item = String>) {
    let mut client = Client::connect(bridge.input).await;
    for id in ids {
        let answer = client.post("/callbacks", callback(&id), &signed_headers("VOD")).await;
        assert_eq!(answer.status.as_u16(), 200, "{id}: {answer:?}");
    }
}

fn numbered(range: std::ops::Range<u32>) -> impl Iterator<Item = String> {
    range.map(|number| format!("v{number:04}"))
}

fn keys(records: &[crate::support::kafka::Received]) -> Vec<String> {
    records.iter().map(|record| String::from_utf8(record.key.clone().expect("a key")).expect("UTF-8")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_bridged_in_order_across_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let kafka = Kafka::start(KafkaOptions::default()).await;
    kafka.create_topic("bridged", 1, &[]).await;
    let settings = config(kafka.brokers(), "bridged", &folder);
    let bridge = TestBridge::start_connected(&settings).await;
    post_all(&bridge, numbered(0..10)).await;
    assert_eq!(outcomes(&bridge, "published"), 10.0);

    kafka.kill();
    post_all(&bridge, numbered(10..300)).await;
    bridge.disconnected().await;
    // A callback does not wait for an output that is down.
    let start = Instant::now();
    post_all(&bridge, numbered(300..310)).await;
    assert!(start.elapsed() < Duration::from_millis(900 * 10), "{:?}", start.elapsed());
    assert_eq!(outcomes(&bridge, "published") + outcomes(&bridge, "spooled"), 310.0);
    assert_eq!(bridge.metric("apsara_bridge_spool_events"), outcomes(&bridge, "spooled"));
    assert!(bridge.metric("apsara_bridge_spool_bytes") > 310.0 * 500.0);
    assert!(bridge.metric("apsara_bridge_spool_oldest_seconds") > 0.0);
    let mut admin = Client::connect(bridge.admin).await;
    let ready = admin.request("GET", "/readyz", "", &[]).await;
    assert_eq!(ready.status.as_u16(), 200);
    assert_eq!(ready.body.as_ref(), b"ready; spooling for outputs not connected: kafka\n");
    drop(admin);
    assert_eq!(bridge.stop().await, 0);

    let bridge = TestBridge::start(&settings).await;
    assert!(bridge.metric("apsara_bridge_spool_events") > 200.0, "spooled records are still there after a restart");
    post_all(&bridge, numbered(310..320)).await;
    kafka.restart().await;
    bridge.spooled(0.0).await;
    post_all(&bridge, numbered(320..321)).await;
    assert_eq!(outcomes(&bridge, "published"), 1.0, "with an empty spool, events are published directly");
    assert_eq!(bridge.metric("apsara_bridge_spool_oldest_seconds"), 0.0);
    let mut found = keys(&kafka.consume("bridged", 321, SOON).await);
    let repeats = found.len() - 321;
    assert!(repeats <= 2, "only records in flight when the broker died may be there twice, not {repeats}");
    found.dedup();
    let mut in_order = found.clone();
    in_order.sort();
    in_order.dedup();
    assert_eq!(in_order, numbered(0..321).collect::<Vec<_>>(), "nothing is lost");
    // The few records in flight when the broker died may be out of order. Spooled records are in order.
    assert_eq!(found[found.len() - 300..], in_order[in_order.len() - 300..]);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_destination_that_failed_gets_the_event_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (kafka, nats) = (Kafka::shared().await, Nats::start(NatsOptions::default()).await);
    kafka.create_topic("pair", 1, &[]).await;
    let config = Config::http()
        .kafka(kafka.brokers())
        .nats(nats.url())
        .stream("PAIR", "pair.>")
        .route(Route::new("both").to("kafka", "pair").to("nats", "pair.all"))
        .spool(spool(&folder));
    let bridge = TestBridge::start_connected(&config).await;
    nats.kill();
    post_all(&bridge, numbered(0..5)).await;
    assert_eq!(outcomes(&bridge, "spooled"), 5.0);
    assert_eq!(bridge.metric("apsara_bridge_spool_events"), 5.0, "a record for NATS, none for Kafka");
    nats.restart().await;
    bridge.spooled(0.0).await;
    assert_eq!(nats.messages("PAIR", 5, SOON).await.len(), 5);
    assert_eq!(kafka.consume("pair", 5, SOON).await.len(), 5, "the destination that had it does not get it again");
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_never_takes_longer_than_the_deadline_and_one_write() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = mock(&["late"]);
    let settings = config(&cluster.bootstrap_servers(), "late", &folder).set("delivery.deadline = '700ms'");
    let bridge = TestBridge::start_connected(&settings).await;
    post_all(&bridge, numbered(0..1)).await;
    // The broker is slow by seconds. One acknowledgement arrives after the deadline.
    cluster.broker_round_trip_time(1, Duration::from_millis(1500)).expect("set");
    let start = Instant::now();
    post_all(&bridge, numbered(1..2)).await;
    let took = start.elapsed();
    assert!(took > Duration::from_millis(500) && took < Duration::from_millis(1400), "{took:?}");
    assert_eq!(outcomes(&bridge, "spooled"), 1.0);
    // The next callback does not wait for the first.
    let start = Instant::now();
    post_all(&bridge, numbered(2..3)).await;
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    // The spool becomes empty even if the bus needs seconds for each record.
    bridge.spooled(0.0).await;
    assert_eq!(bridge.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_after_the_deadline_causes_at_most_a_repeat_with_the_same_id() {
    let folder = tempfile::tempdir().expect("a folder");
    let kafka = Kafka::start(KafkaOptions::default()).await;
    kafka.create_topic("repeat", 1, &[]).await;
    let bridge = TestBridge::start_connected(&config(kafka.brokers(), "repeat", &folder)).await;
    kafka.stop();
    post_all(&bridge, numbered(0..3)).await;
    assert_eq!(outcomes(&bridge, "spooled"), 3.0);
    kafka.cont();
    bridge.spooled(0.0).await;
    let records = kafka.consume("repeat", 3, SOON).await;
    let mut ids: Vec<(Vec<u8>, String)> = records
        .iter()
        .map(|record| (record.key.clone().expect("a key"), record.header("ce_id").expect("an id").to_owned()))
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3, "one id per event, however often it was published: {records:?}");
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_bus_rejects_becomes_a_dead_letter_and_stops_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = mock(&["poison"]);
    let bridge = TestBridge::start_connected(&config(&cluster.bootstrap_servers(), "poison", &folder)).await;
    post_all(&bridge, numbered(0..1)).await;
    cluster.broker_down(1).expect("down");
    post_all(&bridge, numbered(1..4)).await;
    bridge.spooled(3.0).await;
    // The whole first batch is refused for good; later records are not.
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD]);
    cluster.broker_up(1).expect("up");
    bridge.spooled(0.0).await;
    let letters = bridge.metric("apsara_bridge_dead_letters_stored");
    assert!(letters >= 1.0);
    // They are counted just after they have left the spool.
    bridge.wait_metric(r#"apsara_bridge_dead_letters_total{reason="rejected"}"#, |value| value == letters).await;
    assert_eq!(bridge.metric(r#"apsara_bridge_published_total{output="kafka"}"#) + letters, 4.0);
    post_all(&bridge, numbered(4..5)).await;
    assert_eq!(outcomes(&bridge, "published"), 2.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_dead_letter_has_no_room_stays_and_is_not_counted_as_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = mock(&["stays"]);
    let settings = config(&cluster.bootstrap_servers(), "stays", &folder).set("dead_letters.max_bytes = '100B'");
    let bridge = TestBridge::start_connected(&settings).await;
    post_all(&bridge, numbered(0..1)).await;
    cluster.broker_down(1).expect("down");
    post_all(&bridge, numbered(1..2)).await;
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD]);
    cluster.broker_up(1).expect("up");
    eventually("refused for good", SOON, async || {
        let failures = r#"apsara_bridge_publish_failures_total{kind="rejected",output="kafka"}"#;
        (bridge.metric(failures) == 1.0).then_some(())
    })
    .await;
    let middle = bridge.bridge.clone();
    assert_eq!(bridge.stop().await, 0);
    let metrics = middle.metrics_text().expect("metrics can be written");
    assert!(metrics.contains("apsara_bridge_dead_letters_total{reason=\"rejected\"} 0\n"), "{metrics}");
    let bridge = TestBridge::start(&settings).await;
    bridge.spooled(0.0).await;
    assert_eq!(
        bridge.metric(r#"apsara_bridge_published_total{output="kafka"}"#),
        1.0,
        "it stayed in the spool and is published now"
    );
    bridge.stop().await;
}

/// "Dead letter" is logged when one is kept, not each time that there is no room for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_without_room_is_not_logged_as_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = mock(&["anything"]);
    let settings = config(&cluster.bootstrap_servers(), "anything", &folder).set("dead_letters.max_bytes = '100B'");
    let bridge = Program::start(folder.path(), settings);
    bridge.ready().await;
    cluster.broker_down(1).expect("down");
    assert_eq!(bridge.post(callback("v1")).await.status.as_u16(), 200);
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD]);
    cluster.broker_up(1).expect("up");
    bridge.process().wait_log("events wait in the spool because the dead letters are full", SOON);
    let log = bridge.process().log();
    assert!(!log.contains("\"message\":\"dead letter\""), "{log}");
    assert_eq!(bridge.metric("apsara_bridge_spool_events").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_kafkas_errors_ends_in_the_spool_or_in_a_dead_letter() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = mock(&[]);
    // Each kind has its own topic, because the client remembers for a while that a topic is not allowed.
    for kind in ErrorKind::ALL {
        cluster.create_topic(&format!("kinds.{}", kind.as_str()), 1, 1).expect("created");
    }
    // The queue has room for one record, so the second finds it full.
    let settings = config(&cluster.bootstrap_servers(), "kinds.{mediaid}", &folder)
        .set("delivery.deadline = '500ms'")
        .set("outputs.kafka.client = { 'queue.buffering.max.messages' = 1 }");
    let bridge = TestBridge::start_connected(&settings).await;
    use RDKafkaRespErr as Answer;
    for (answer, kind) in [
        (Answer::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, "too_large"),
        (Answer::RD_KAFKA_RESP_ERR_INVALID_RECORD, "rejected"),
    ] {
        cluster.request_errors(RDKafkaApiKey::Produce, &[answer]);
        post_all(&bridge, [kind.to_owned()]).await;
        assert_eq!(bridge.metric(&format!(r#"apsara_bridge_dead_letters_total{{reason="{kind}"}}"#)), 1.0, "{kind}");
    }
    assert_eq!(bridge.metric("apsara_bridge_spool_events"), 0.0);
    // An operator's error: the event is spooled, and published after the error is fixed.
    for (answer, kind) in [
        (Answer::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, "unauthorized"),
        (Answer::RD_KAFKA_RESP_ERR_INVALID_REQUIRED_ACKS, "misconfigured"),
    ] {
        cluster.request_errors(RDKafkaApiKey::Produce, &[answer; 1000]);
        let before = outcomes(&bridge, "spooled");
        post_all(&bridge, [kind.to_owned()]).await;
        assert_eq!(outcomes(&bridge, "spooled"), before + 1.0, "{kind}");
        eventually("it fails", SOON, async || {
            bridge.metric(r#"apsara_bridge_spool_lanes{output="kafka",state="failing"}"#).eq(&1.0).then_some(())
        })
        .await;
        let failures = format!(r#"apsara_bridge_publish_failures_total{{kind="{kind}",output="kafka"}}"#);
        assert!(bridge.metric(&failures) >= 1.0, "{kind}");
        cluster.clear_request_errors(RDKafkaApiKey::Produce);
        bridge.spooled(0.0).await;
        assert_eq!(bridge.metric(&format!(r#"apsara_bridge_dead_letters_total{{reason="{kind}"}}"#)), 0.0, "{kind}");
    }
    // No answer in time, and no room in the queue during that time.
    cluster.broker_round_trip_time(1, Duration::from_secs(2)).expect("set");
    let post = async |id: &str| bridge.post(callback(id)).await.status.as_u16();
    assert_eq!(tokio::join!(post("timed_out"), post("queue_full")), (200, 200));
    for kind in ["timed_out", "queue_full"] {
        let failures = format!(r#"apsara_bridge_publish_failures_total{{kind="{kind}",output="kafka"}}"#);
        assert!(bridge.metric(&failures) >= 1.0, "{kind}");
    }
    assert_eq!(outcomes(&bridge, "spooled"), 4.0);
    cluster.broker_round_trip_time(1, Duration::from_millis(1)).expect("set");
    bridge.spooled(0.0).await;
    cluster.broker_down(1).expect("down");
    post_all(&bridge, ["unavailable".to_owned()]).await;
    assert_eq!(outcomes(&bridge, "spooled"), 5.0);
    cluster.broker_up(1).expect("up");
    bridge.spooled(0.0).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_natss_errors_ends_in_the_spool_or_in_a_dead_letter() {
    let folder = tempfile::tempdir().expect("a folder");
    let nats = Nats::start(NatsOptions { max_payload: Some(4000), ..NatsOptions::default() }).await;
    let mut stream = nats
        .create_stream_with("KINDS", &["kinds.>"], |config| {
            config.max_messages = 2;
            config.discard = DiscardPolicy::New;
        })
        .await;
    let config = Config::http()
        .nats(nats.url())
        .route(Route::new("elsewhere").when("mediaid = 'elsewhere'").to("nats", "no.stream.has.this"))
        .to("nats", "kinds.{status}")
        .spool(spool(&folder));
    let bridge = TestBridge::start_connected(&config).await;
    let long = large_callback("long", 6000);
    assert_eq!(bridge.post(long).await.status.as_u16(), 200);
    assert_eq!(bridge.metric(r#"apsara_bridge_dead_letters_total{reason="too_large"}"#), 1.0);
    // No stream has the subject: the event waits until one does, and delays no other subject.
    post_all(&bridge, ["elsewhere".to_owned()]).await;
    assert_eq!(outcomes(&bridge, "spooled"), 1.0);
    assert!(bridge.metric(r#"apsara_bridge_publish_failures_total{kind="no_such_destination",output="nats"}"#) >= 1.0);
    // The stream is full: the third message waits until there is room.
    post_all(&bridge, numbered(0..3)).await;
    assert_eq!(outcomes(&bridge, "spooled"), 2.0);
    stream.purge().await.expect("purged");
    bridge.spooled(1.0).await;
    let mut late = nats.create_stream("ELSEWHERE", &["no.stream.has.>"]).await;
    bridge.spooled(0.0).await;
    assert_eq!(late.info().await.expect("an answer").state.messages, 1);
    assert_eq!(stream.info().await.expect("an answer").state.messages, 1);
    // The server accepts connections and never answers, and then it is down.
    nats.stop();
    post_all(&bridge, ["frozen".to_owned()]).await;
    nats.cont();
    bridge.spooled(0.0).await;
    nats.kill();
    bridge.disconnected().await;
    post_all(&bridge, ["gone".to_owned()]).await;
    nats.restart().await;
    bridge.connected().await;
    stream.purge().await.expect("purged");
    bridge.spooled(0.0).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_means_503_until_there_is_room() {
    let folder = tempfile::tempdir().expect("a folder");
    let kafka = Kafka::start(KafkaOptions::default()).await;
    kafka.create_topic("full", 1, &[]).await;
    let settings = config(kafka.brokers(), "full", &folder).set("spool.max_bytes = '20KiB'");
    let bridge = TestBridge::start_connected(&settings).await;
    kafka.kill();
    let mut taken = 0;
    let refused = loop {
        let answer = bridge.post(callback(&format!("v{taken:04}"))).await;
        match answer.status.as_u16() {
            200 => taken += 1,
            _ => break answer,
        }
        assert!(taken < 100, "20 KiB have no room for a hundred of them");
    };
    assert!(taken > 5, "{taken}");
    let (problem, detail) = refused.problem();
    assert_eq!((refused.status.as_u16(), problem.as_str()), (503, "refused"));
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(detail, "not every destination acknowledged the event in time, and the spool is full");
    assert!(bridge.metric("apsara_bridge_spool_bytes") <= 20.0 * 1024.0);
    assert_eq!(bridge.metric("apsara_bridge_spool_max_bytes"), 20.0 * 1024.0);
    assert!(bridge.metric(r#"apsara_bridge_spool_failures_total{reason="spool_full"}"#) >= 1.0);
    let mut admin = Client::connect(bridge.admin).await;
    assert_eq!(admin.request("GET", "/readyz", "", &[]).await.status.as_u16(), 503);
    kafka.restart().await;
    bridge.spooled(0.0).await;
    assert_eq!(admin.request("GET", "/readyz", "", &[]).await.status.as_u16(), 200);
    post_all(&bridge, [format!("v{taken:04}")]).await;
    assert!(kafka.consume("full", taken + 1, SOON).await.len() > taken);
    bridge.stop().await;
}

/// Everything goes to the topic `anything`, with a spool on the disk.
fn on_disk(brokers: &str, disk: &Disk) -> Config {
    Config::http().kafka(brokers).to("kafka", "anything").spool(disk.mount().join("spool"))
}

/// Starts a bridge that ends with exit code 1 because of its disk, and returns its log.
fn ends_by_itself(disk: &Disk, folder: &Path) -> String {
    let bridge = Program::launch(Some(disk), folder, on_disk(NOWHERE, disk), |_| {});
    let process = bridge.process();
    assert_eq!(process.wait(SOON), Some(1), "{}", process.log_tail());
    process.log()
}

/// Posts a callback about a media, of this many bytes.
async fn post(bridge: &Program, id: &str, bytes: usize) -> u16 {
    bridge.post(large_callback(id, bytes)).await.status.as_u16()
}

/// Posts until the answer is not 200, and returns how many answers were 200.
async fn post_until_full(bridge: &Program, prefix: &str) -> usize {
    for taken in 0..2000 {
        match post(bridge, &format!("{prefix}{taken}"), 20_000).await {
            200 => {}
            503 => return taken,
            other => panic!("{other}"),
        }
    }
    panic!("the disk should be full by now");
}

/// The spool itself filled the disk. When the bus is back it drains, and events are accepted again. No action is
/// needed. This happens more than once, because the database keeps its size, and also with a bridge that starts on the
/// full disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_the_spool_filled_drains_by_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let kafka = Kafka::start(KafkaOptions::default()).await;
    kafka.create_topic("anything", 1, &[]).await;
    let Some(disk) = Disk::new(folder.path(), "40m") else { return };
    let bridge = Program::start_on(Some(&disk), folder.path(), on_disk(kafka.brokers(), &disk));
    let mut sent = 0;
    for round in 0..3 {
        bridge.ready().await;
        kafka.kill();
        let taken = post_until_full(&bridge, &format!("r{round}-")).await;
        assert!(taken > 500, "{taken} callbacks of 20 KB, stored twice, on a disk of 40 MB");
        sent += taken;
        assert!(!bridge.is_ready().await);
        let reason = r#"apsara_bridge_spool_failures_total{reason="disk_full"}"#;
        assert!(bridge.metric(reason).await >= 1.0, "{}", bridge.process().log_tail());
        if round == 1 {
            bridge.process().kill();
            bridge.start_again();
        }
        kafka.restart().await;
        bridge.drained().await;
        eventually("a callback to be answered with 200", SOON, async || {
            (post(&bridge, &format!("again{round}"), 20_000).await == 200).then_some(())
        })
        .await;
        sent += 1;
        bridge.drained().await;
    }
    bridge.stop();
    let mut found = keys(&kafka.consume("anything", sent, SOON).await);
    found.sort();
    found.dedup();
    assert_eq!(found.len(), sent, "every event is published");
}

/// The same on small disks with many small records: removing them must be possible with the space that is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_disk_full_of_small_records_drains() {
    let kafka = Kafka::start(KafkaOptions::default()).await;
    kafka.create_topic("anything", 1, &[]).await;
    for (size, bytes) in [("3m", 2000), ("10m", 2), ("10m", 2000), ("24m", 2000)] {
        let folder = tempfile::tempdir().expect("a folder");
        let Some(disk) = Disk::new(folder.path(), size) else { return };
        let bridge = Program::start_on(Some(&disk), folder.path(), on_disk(kafka.brokers(), &disk));
        bridge.ready().await;
        kafka.kill();
        let mut client = Client::connect(bridge.input).await;
        let body = |number: usize| large_callback(&format!("{size}-{bytes}-{number}"), bytes);
        let mut taken = 0;
        while client.post("/callbacks", body(taken), &signed_headers("VOD")).await.status.as_u16() == 200 {
            taken += 1;
            assert!(taken < 20_000, "the disk should be full by now");
        }
        assert!(taken > 100, "{size}: {taken}");
        kafka.restart().await;
        bridge.drained().await;
        eventually("a callback to be answered with 200", SOON, async || {
            (post(&bridge, "again", 2000).await == 200).then_some(())
        })
        .await;
    }
}

/// Something else filled the disk. While the bus is up, events are published directly, even if older events are in the
/// spool. Records that were published but cannot be removed are not published again.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_something_else_filled_does_not_stop_publishing() {
    let folder = tempfile::tempdir().expect("a folder");
    let kafka = Kafka::start(KafkaOptions::default()).await;
    kafka.create_topic("anything", 1, &[]).await;
    let Some(disk) = Disk::new(folder.path(), "40m") else { return };
    let bridge = Program::start_on(Some(&disk), folder.path(), on_disk(kafka.brokers(), &disk));
    bridge.ready().await;
    kafka.kill();
    for number in 0..20 {
        assert_eq!(post(&bridge, &format!("before{number}"), 20_000).await, 200);
    }
    disk.fill("ballast");
    // The reserve of the write-ahead log has room for a few.
    let taken = post_until_full(&bridge, "full").await;
    kafka.restart().await;
    eventually("published", SOON, async || {
        (bridge.metric(r#"apsara_bridge_published_total{output="kafka"}"#).await >= 20.0 + taken as f64).then_some(())
    })
    .await;
    for number in 0..200 {
        assert_eq!(post(&bridge, &format!("after{number}"), 20_000).await, 200, "{}", bridge.process().log_tail());
    }
    std::fs::remove_file(disk.path("ballast")).expect("the ballast is there");
    bridge.drained().await;
    bridge.ready().await;
    let all = 20 + taken + 200;
    let mut found = keys(&kafka.consume("anything", all, SOON).await);
    let repeats = found.len() - all;
    assert!(repeats <= 1, "published once each: {repeats} repeats");
    found.sort();
    found.dedup();
    assert_eq!(found.len(), all);
    bridge.stop();
}

/// A copy needs room. Without room, the bridge does not start, reports this, and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_spool_without_room_for_a_copy_is_not_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(disk) = Disk::new(folder.path(), "40m") else { return };
    let bridge = Program::start_on(Some(&disk), folder.path(), on_disk(NOWHERE, &disk));
    for number in 0..200 {
        assert_eq!(post(&bridge, &format!("v{number}"), 20_000).await, 200);
    }
    bridge.stop();
    let file = disk.path("spool").join(FILE);
    let page = index_page(&file);
    let spoiled = std::fs::OpenOptions::new().write(true).open(&file).expect("there");
    std::os::unix::fs::FileExt::write_all_at(&spoiled, &[0xA5; 16 << 10], page).expect("written");
    disk.fill("ballast");
    for attempt in ["first", "second"] {
        let log = ends_by_itself(&disk, &folder.path().join(attempt));
        assert!(log.contains("there is no room to copy"), "{log}");
        assert_eq!(files(&disk.path("spool"), "spool.db."), Vec::<String>::new());
    }
    std::fs::remove_file(disk.path("ballast")).expect("the ballast is there");
    bridge.start_again();
    assert_eq!(bridge.metric("apsara_bridge_spool_events").await, 200.0);
    assert!(bridge.process().log().contains("everything was copied"), "{}", bridge.process().log_tail());
}

/// The position in the file of the root page of the index of records.
fn index_page(file: &Path) -> u64 {
    // The path into the other mount namespace is a link, which SQLite would resolve.
    let copy = tempfile::NamedTempFile::new().expect("a file");
    std::fs::copy(file, copy.path()).expect("copied");
    let connection = rusqlite::Connection::open(copy.path()).expect("it opens");
    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = 'spool_by_output'";
    let page: u32 = connection.query_row(sql, [], |row| row.get(0)).expect("it is there");
    u64::from(page - 1) * (16 << 10)
}

/// A disk that is full at the first or at a later start is reported.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(disk) = Disk::new(folder.path(), "2m") else { return };
    std::fs::create_dir(disk.path("spool")).expect("made");
    disk.fill("ballast");
    let log = ends_by_itself(&disk, &folder.path().join("refused"));
    assert!(log.contains("spool.path: ") && log.contains("full"), "{log}");
    std::fs::remove_file(disk.path("ballast")).expect("the ballast is there");
    let bridge = Program::start_on(Some(&disk), folder.path(), on_disk(NOWHERE, &disk));
    assert_eq!(post(&bridge, "one", 2).await, 200);
    bridge.process().kill();
    disk.fill("ballast");
    // With the reserve, a bridge that has events to publish can start.
    bridge.start_again();
    assert_eq!(bridge.metric("apsara_bridge_spool_events").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_cannot_be_written_is_reported_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(disk) = Disk::new(folder.path(), "2m,ro") else { return };
    let log = ends_by_itself(&disk, folder.path());
    assert!(log.contains("spool.path: ") && log.contains("Read-only file system"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_answered_with_200_survive_kill_9() {
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = Program::start(folder.path(), config(NOWHERE, "anything", &folder));
    for number in 0..20 {
        assert_eq!(post(&bridge, &format!("v{number}"), 2).await, 200);
    }
    bridge.process().kill();
    let database = Database::open(&spool(&folder), Access::Read).expect("it can be read");
    assert_eq!(database.backlogs().expect("readable")[0].records, 20);
}

/// Names of the files in the spool's folder that begin with this prefix.
fn files(path: &Path, beginning: &str) -> Vec<String> {
    let names = std::fs::read_dir(path).expect("readable").map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.into_string().expect("UTF-8"));
    names.filter(|name| name.starts_with(beginning)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_read_of_a_damaged_database_is_copied() {
    // Damage to the header page, without which SQLite reads nothing; to the root of the tree of records, below which
    // nothing can be found; and to the records.
    for (place, at_least) in [(0usize, 0), (8000, 200), (16 << 10, 0), (200_000, 150), (0xF0F0F, 150)] {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = config(NOWHERE, "damaged", &folder);
        let bridge = TestBridge::start(&settings).await;
        let mut client = Client::connect(bridge.input).await;
        for number in 0..200 {
            let body = large_callback(&format!("v{number}"), 3000);
            assert_eq!(client.post("/callbacks", body, &signed_headers("VOD")).await.status.as_u16(), 200);
        }
        drop(client);
        assert_eq!(bridge.stop().await, 0);
        let path = folder.path().join("spool");
        let file = path.join(FILE);
        let mut bytes = std::fs::read(&file).expect("readable");
        bytes[place..place + 600].fill(0xA5);
        std::fs::write(&file, bytes).expect("written");

        let bridge = TestBridge::start(&settings).await;
        let left = bridge.metric("apsara_bridge_spool_events");
        let letters = bridge.metric("apsara_bridge_dead_letters_stored");
        let aside = files(&path, "spool.db.damaged-");
        assert!(
            !aside.is_empty() || left + letters == 200.0,
            "{place}: the file is kept, or nothing is missing: {left} {letters}"
        );
        assert!(left >= f64::from(at_least), "{place}: {left} copied");
        post_all(&bridge, numbered(500..501)).await;
        assert_eq!(bridge.metric("apsara_bridge_spool_events"), left + 1.0, "the service continues");
        bridge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_ends_at_its_first_damaged_frame_and_nothing_is_invented() {
    // The bridge is killed before the log is merged into the database, like in most crashes.
    for place in [4, 100, 40_000, 300_000] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = spool(&folder);
        let bridge = Program::start(folder.path(), config(NOWHERE, "anything", &folder));
        for number in 0..60 {
            assert_eq!(post(&bridge, &format!("v{number}"), 3000).await, 200);
        }
        bridge.process().kill();
        let log = path.join(FILE).with_extension("db-wal");
        let mut bytes = std::fs::read(&log).expect("the log is there");
        bytes[place] ^= 0x55;
        std::fs::write(&log, bytes).expect("written");
        let bridge = TestBridge::start(&config(NOWHERE, "damaged", &folder)).await;
        let mut found = Vec::new();
        let database = Database::open(&path, Access::Read).expect("it can be read");
        let visit = |spooled: apsara_bridge::store::Spooled| {
            assert!(spooled.is_sound);
            found.push(spooled.record.key.expect("a key"));
            true
        };
        database.each_record(visit).expect("readable");
        let sent: Vec<String> = (0..found.len()).map(|number| format!("v{number}")).collect();
        assert_eq!(found, sent, "byte {place}: the first records, in order");
        assert!(files(&path, "spool.db.damaged-").is_empty(), "byte {place}: this is not damage");
        bridge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_while_the_service_runs_is_repaired_without_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = config(NOWHERE, "damaged", &folder);
    let bridge = TestBridge::start(&settings).await;
    post_all(&bridge, numbered(0..50)).await;
    let file = folder.path().join("spool").join(FILE);
    // The write-ahead log and the database are overwritten.
    for (path, length) in [(file.with_extension("db-wal"), 64 << 10), (file.clone(), 64 << 10)] {
        let bytes = vec![0xA5; length];
        let target = std::fs::OpenOptions::new().write(true).open(path).expect("there");
        std::os::unix::fs::FileExt::write_all_at(&target, &bytes, 0).expect("written");
    }
    eventually("the service continues", SOON, async || {
        let answer = bridge.post(callback(&format!("after-{:?}", Instant::now()))).await;
        (answer.status.as_u16() == 200).then_some(())
    })
    .await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_changed_on_the_disk_is_not_published() {
    let folder = tempfile::tempdir().expect("a folder");
    let kafka = Kafka::start(KafkaOptions::default()).await;
    kafka.create_topic("changed", 1, &[]).await;
    kafka.kill();
    let settings = config(kafka.brokers(), "changed", &folder);
    let bridge = TestBridge::start(&settings).await;
    post_all(&bridge, numbered(0..3)).await;
    bridge.stop().await;
    let file = folder.path().join("spool").join(FILE);
    let mut bytes = std::fs::read(&file).expect("readable");
    let place = bytes.windows(5).position(|bytes| bytes == b"v0001").expect("the record is in the file");
    bytes[place + 4] = b'7';
    std::fs::write(&file, bytes).expect("written");
    let bridge = TestBridge::start(&settings).await;
    kafka.restart().await;
    bridge.spooled(0.0).await;
    assert_eq!(keys(&kafka.consume("changed", 2, SOON).await), ["v0000", "v0002"]);
    bridge.wait_metric(r#"apsara_bridge_dead_letters_total{reason="damaged"}"#, |value| value == 1.0).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_database_is_refused_and_not_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = config(NOWHERE, "newer", &folder);
    TestBridge::start(&settings).await.stop().await;
    let path = folder.path().join("spool");
    let connection = rusqlite::Connection::open(path.join(FILE)).expect("opened");
    connection.pragma_update(None, "user_version", 99).expect("set");
    drop(connection);
    let error = TestBridge::try_start(&settings).await.err().expect("refused");
    assert!(error.starts_with("spool.path: "), "{error}");
    assert!(error.ends_with("its format is 99, this program knows up to 1"), "{error}");
    assert!(files(&path, "spool.db.damaged-").is_empty(), "nothing is set aside");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_in_flight_when_the_drain_time_ends_go_to_the_spool() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = mock(&["hurry"]);
    let settings = config(&cluster.bootstrap_servers(), "hurry", &folder)
        .set("delivery.deadline = '2900ms'")
        .set("shutdown.drain = '300ms'");
    let mut bridge = TestBridge::start_connected(&settings).await;
    post_all(&bridge, numbered(0..1)).await;
    cluster.broker_round_trip_time(1, Duration::from_secs(10)).expect("set");
    let mut client = Client::connect(bridge.input).await;
    let answer = tokio::spawn(async move { client.post("/callbacks", callback("last"), &signed_headers("VOD")).await });
    bridge.wait_metric("apsara_bridge_in_flight", |value| value == 1.0).await;
    let start = Instant::now();
    bridge.begin_stop();
    assert_eq!(answer.await.expect("answered").status.as_u16(), 200);
    assert_eq!(bridge.stop().await, 0);
    assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
    let database = Database::open(&folder.path().join("spool"), Access::Read).expect("it can be read");
    assert_eq!(database.backlogs().expect("readable")[0].records, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_bus_that_hangs_while_the_spool_drains() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = mock(&["hangs"]);
    let settings = config(&cluster.bootstrap_servers(), "hangs", &folder).set("delivery.deadline = '500ms'");
    let bridge = TestBridge::start_connected(&settings).await;
    post_all(&bridge, numbered(0..1)).await;
    cluster.broker_round_trip_time(1, Duration::from_secs(20)).expect("set");
    post_all(&bridge, numbered(1..5)).await;
    assert_eq!(outcomes(&bridge, "spooled"), 4.0);
    let start = Instant::now();
    assert_eq!(bridge.stop().await, 0);
    assert!(start.elapsed() < Duration::from_secs(10), "the drain time is 20 s: {:?}", start.elapsed());
    let database = Database::open(&folder.path().join("spool"), Access::Read).expect("it can be read");
    assert_eq!(database.backlogs().expect("readable")[0].records, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_read_the_spool_with_and_without_the_service() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("spool");
    let run = |arguments: &[&str]| {
        let mut command = program::command(&["spool"]);
        command.args(arguments).arg("--path").arg(&path);
        program::run(command)
    };
    let (code, _, error) = run(&["status"]);
    assert!(code == 1 && error.contains("there is no spool at"), "{error}");
    let mut bridge = Some(TestBridge::start(&config(NOWHERE, "status", &folder)).await);
    post_all(bridge.as_ref().expect("it runs"), numbered(0..7)).await;
    for is_running in [true, false] {
        let (code, out, error) = run(&["status", "--json"]);
        assert_eq!(code, 0, "{error}");
        let status: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!((&status["records"], &status["outputs"][0]["output"]), (&7.into(), &"kafka".into()));
        assert_eq!(status["bridge_is_running"], is_running);
        let (code, out, _) = run(&["status"]);
        assert!(code == 0 && out.contains("7 records"), "{out}");
        assert_eq!(run(&["verify"]).1, "sound: 7 records\n");
        if let Some(bridge) = bridge.take() {
            bridge.stop().await;
        }
    }
    let file = path.join(FILE);
    let mut bytes = std::fs::read(&file).expect("readable");
    let place = bytes.windows(5).position(|bytes| bytes == b"v0003").expect("the record is in the file");
    bytes[place] = b'w';
    std::fs::write(&file, bytes).expect("written");
    let (code, _, error) = run(&["verify"]);
    assert!(code == 1 && error.contains("1 of 7 records were changed on the disk"), "{error}");
}

#[test]
fn a_spool_is_in_use_only_while_its_lock_is_held() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("lock"), "process 1\n").expect("written");
    assert!(!apsara_bridge::store::is_running(folder.path()), "a lock file without a lock does not count");
}

/// Files of version 0.1.0, after a stop and after a kill: three events for a topic and a dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_of_an_earlier_version_is_read() {
    for stored in ["0.1-stopped", "0.1-killed"] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("spool");
        std::fs::create_dir(&path).expect("made");
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/spool").join(stored);
        for name in files(&fixture, "") {
            std::fs::copy(fixture.join(&name), path.join(&name)).expect("copied");
        }
        let cluster = mock(&["media.success"]);
        let bridge = TestBridge::start(&config(&cluster.bootstrap_servers(), "any", &folder)).await;
        bridge.spooled(0.0).await;
        assert_eq!(bridge.metric(r#"apsara_bridge_published_total{output="kafka"}"#), 3.0, "{stored}");
        assert_eq!(bridge.metric("apsara_bridge_dead_letters_stored"), 1.0, "{stored}");
        bridge.stop().await;
        assert!(files(&path, "spool.db.damaged-").is_empty(), "{stored}");
    }
}

/// Half of a large body reserves memory for all of it. When no memory is left, other requests are answered with 503.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_in_flight_are_bounded() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let folder = tempfile::tempdir().expect("a folder");
    let settings =
        config(NOWHERE, "bytes", &folder).set("delivery = { max_in_flight_bytes = '64KiB', deadline = '300ms' }");
    let bridge = TestBridge::start(&settings).await;
    let large = |id: &str| large_callback(id, 20_000);
    let body = large("slow");
    let mut slow = tokio::net::TcpStream::connect(bridge.input).await.expect("it listens");
    let head = format!("{}content-length: {}\r\n\r\n", signed_head(), body.len());
    let (first, rest) = body.split_at(19_000);
    slow.write_all(format!("{head}{first}").as_bytes()).await.expect("sent");
    let refused = eventually("refused", SOON, async || {
        let answer = bridge.post(large("other")).await;
        (answer.status.as_u16() == 503).then_some(answer)
    })
    .await;
    let (problem, detail) = refused.problem();
    assert_eq!(problem, "too-many-requests");
    assert_eq!(detail, "in-flight limit reached (delivery.max_in_flight_bytes)");
    // A small body still fits.
    assert_eq!(bridge.post(callback("small")).await.status.as_u16(), 200);
    slow.write_all(rest.as_bytes()).await.expect("sent");
    let mut answer = [0; 12];
    slow.read_exact(&mut answer).await.expect("answered");
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert_eq!(bridge.post(large("other")).await.status.as_u16(), 200);
    bridge.stop().await;
}

/// The effect of `delivery.max_in_flight_bytes` on the memory of the process, with many large bodies at once and a bus
/// that does not answer.
#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_by_the_bytes_in_flight() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = mock(&["anything"]);
    let bridge = Program::start(folder.path(), config(&cluster.bootstrap_servers(), "anything", &folder));
    bridge.ready().await;
    assert_eq!(post(&bridge, "first", 2).await, 200);
    cluster.broker_round_trip_time(1, Duration::from_secs(10)).expect("set");
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", bridge.process().id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the field exists");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") >> 10
    };
    let before = peak();
    let posts = (0..1000).map(|number| {
        let (input, id) = (bridge.input, format!("large{number}"));
        tokio::spawn(async move {
            let body = large_callback(&id, 250_000);
            Client::connect(input).await.post("/callbacks", body, &signed_headers("VOD")).await.status.as_u16()
        })
    });
    let posts: Vec<_> = posts.collect();
    let mut answers = std::collections::BTreeMap::new();
    for post in posts {
        // 0: a refusal that is sent before the body was read can be lost with its connection.
        *answers.entry(post.await.unwrap_or(0)).or_insert(0) += 1;
    }
    assert!(answers.keys().all(|status| [0, 200, 503].contains(status)), "{answers:?}");
    assert!(answers[&200] >= 100, "{answers:?}");
    let grown = peak() - before;
    eprintln!("{grown} MiB more than the {before} MiB before, {answers:?}");
    assert!(grown < 5 * 64, "{grown} MiB more than the {before} MiB before, with 64 MiB in flight");
}

/// A store that does not answer must not use up the 3 s that IMS waits. Here another process has locked the database.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_answer_is_not_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = TestBridge::start(&config(NOWHERE, "held", &folder)).await;
    post_all(&bridge, ["before".to_owned()]).await;
    let other = rusqlite::Connection::open(folder.path().join("spool").join(FILE)).expect("it opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("locked");
    let start = Instant::now();
    assert_eq!(bridge.post(callback("held")).await.status.as_u16(), 503);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    other.execute_batch("ROLLBACK").expect("released");
    bridge.accepted("after").await;
    bridge.stop().await;
}

/// While another process has locked the database, the end of a published replay cannot be written. This is done later,
/// automatically, and nothing is published twice.
#[tokio::test(flavor = "multi_thread")]
async fn replays_whose_end_cannot_be_written_are_completed_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = mock(&["replayed"]);
    let settings = config(&cluster.bootstrap_servers(), "replayed", &folder);
    let narrow = settings.clone().routes([Route::new("all").when("mediaid = 'nothing'").to("kafka", "replayed")]);
    let bridge = TestBridge::start_connected(&narrow).await;
    post_all(&bridge, ["letter".to_owned()]).await;
    bridge.stop().await;
    let path = folder.path().join("spool");
    let bridge = TestBridge::start_connected(&settings).await;
    // After this the client knows the topic.
    post_all(&bridge, ["warm".to_owned()]).await;
    // This leaves time to lock the database between the request and its end.
    cluster.broker_round_trip_time(1, Duration::from_millis(700)).expect("set");
    let other = rusqlite::Connection::open(path.join(FILE)).expect("it opens");
    let request = "UPDATE dead_letters SET replay_requested = 1; BEGIN IMMEDIATE";
    other.execute_batch(request).expect("requested and locked");
    let replayed = r#"apsara_bridge_dead_letters_replayed_total{result="success"}"#;
    bridge.wait_metric(replayed, |value| value == 1.0).await;
    // Longer than a connection waits for a lock.
    let failures = r#"apsara_bridge_spool_failures_total{reason="io"}"#;
    bridge.wait_metric(failures, |value| value >= 1.0).await;
    other.execute_batch("ROLLBACK").expect("released");
    let stored = "apsara_bridge_dead_letters_stored";
    bridge.wait_metric(stored, |value| value == 0.0).await;
    assert_eq!(bridge.metric(replayed), 1.0);
    assert_eq!(bridge.metric(r#"apsara_bridge_published_total{output="kafka"}"#), 2.0);
    bridge.stop().await;
}

/// Runs the commands that change many records, with a configuration file.
struct Commands {
    folder: TempDir,
}

impl Commands {
    fn run(&self, config: &Config, arguments: &[&str]) -> (i32, String, String) {
        let file = self.folder.path().join("commands.toml");
        config.write(&file);
        let mut command = program::command(&["spool"]);
        command.args(arguments).arg("--config").arg(&file);
        program::run(command)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_is_drained_without_its_bridge() {
    let commands = Commands { folder: tempfile::tempdir().expect("a folder") };
    let cluster = mock(&["drained"]);
    let away = config(NOWHERE, "drained", &commands.folder);
    // The inputs are not used, so their secrets may be missing.
    let there = config(&cluster.bootstrap_servers(), "drained", &commands.folder).keys("[{ file = '/nowhere/key' }]");
    let bridge = TestBridge::start(&away).await;
    post_all(&bridge, numbered(0..5)).await;
    let (code, _, error) = commands.run(&there, &["drain", "--timeout", "1s"]);
    assert!(code == 1 && error.contains("belongs to another bridge that is running"), "{error}");
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| commands.run(&there, &["drain", "--timeout", "90s"]));
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(bridge.stop());
        });
        waiting.join().expect("no panic")
    });
    assert_eq!((waiting.0, waiting.1.as_str()), (0, "the spool is empty\n"), "{}", waiting.2);
    let bridge = TestBridge::start(&away).await;
    post_all(&bridge, numbered(5..8)).await;
    bridge.stop().await;
    let (code, _, error) = commands.run(&away, &["drain", "--timeout", "500ms"]);
    assert!(code == 1 && error.contains("3 records left in the spool (kafka: 3)"), "{error}");
    let renamed = there
        .clone()
        .without("outputs.kafka")
        .output("other", "kafka", &[cluster.bootstrap_servers()])
        .routes([Route::new("all").to("other", "drained")]);
    let (code, _, error) = commands.run(&renamed, &["drain"]);
    assert!(code == 1 && error.contains("output `kafka` is not configured: `spool move --from kafka"), "{error}");
    let (code, out, error) = commands.run(&there, &["drain"]);
    assert_eq!((code, out.as_str()), (0, "the spool is empty\n"), "{error}");
}

/// The first process of a container ignores a signal without a handler, and would hold the volume until it is killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_at_a_signal_also_while_it_waits_for_the_lock() {
    let folder = tempfile::tempdir().expect("a folder");
    let away = config(NOWHERE, "drained", &folder);
    let bridge = TestBridge::start(&away).await;
    post_all(&bridge, numbered(0..3)).await;
    let file = folder.path().join("drain.toml");
    away.write(&file);
    let drain = || {
        let mut command = program::command(&["spool", "drain", "--config"]);
        command.arg(&file);
        let drain = Process::start("drain", &command, &folder.path().join("drain.log"), None);
        drain.wait_ready(SOON, || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", drain.id())).ok()?;
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?.trim().to_owned();
            (u64::from_str_radix(&caught, 16).ok()? & 1 << (15 - 1) != 0).then_some(())
        });
        drain.signal("TERM");
        assert_eq!(drain.wait(SOON), Some(1));
        assert!(drain.log().contains("stopped by a signal; what is left stays in the spool"), "{}", drain.log());
    };
    drain();
    bridge.stop().await;
    drain();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_moved_to_another_output() {
    let commands = Commands { folder: tempfile::tempdir().expect("a folder") };
    let settings = config(NOWHERE, "old.topic", &commands.folder);
    let bridge = TestBridge::start(&settings).await;
    post_all(&bridge, numbered(0..5)).await;
    let (code, _, error) = commands.run(&settings, &["move", "--from", "kafka", "--to", "kafka2"]);
    assert!(code == 2 && error.contains("there is no output `kafka2`; did you mean `kafka`?"), "{error}");
    let cluster = mock(&["new.topic"]);
    let new = Config::http()
        .output("bus", "kafka", &[cluster.bootstrap_servers()])
        .to("bus", "new.topic")
        .spool(spool(&commands.folder));
    let (code, _, error) = commands.run(&new, &["move", "--from", "kafka", "--to", "bus"]);
    assert!(code == 1 && error.contains("belongs to another bridge that is running"), "{error}");
    bridge.stop().await;
    let (code, out, _) = commands.run(&new, &["status"]);
    assert!(code == 0 && out.contains("this output is not configured: see `spool move`"), "{out}");
    let (code, _, error) = commands.run(&new, &["move", "--from", "nothing", "--to", "bus"]);
    assert!(code == 1 && error.contains("no records for output `nothing`"), "{error}");
    let (code, _, error) = commands.run(&new, &["move", "--from", "kafka", "--to", "bus", "--topic", "no good"]);
    assert!(code == 2 && error.contains("--topic: "), "{error}");
    let (code, _, error) = commands.run(&new, &["move", "--from", "kafka", "--to", "bus", "--topic", "{mediaid}"]);
    assert!(code == 2 && error.contains("--topic: "), "{error}");
    let (code, out, error) = commands.run(&new, &["move", "--from", "kafka", "--to", "bus", "--topic", "new.topic"]);
    assert_eq!((code, out.as_str()), (0, "5 records moved from kafka to bus\n"), "{error}");
    let bridge = TestBridge::start(&new).await;
    bridge.spooled(0.0).await;
    assert_eq!(bridge.metric(r#"apsara_bridge_published_total{output="bus"}"#), 5.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_spools_file_is_imported() {
    let commands = Commands { folder: tempfile::tempdir().expect("a folder") };
    let settings = config(NOWHERE, "imported", &commands.folder);
    let bridge = TestBridge::start(&settings).await;
    post_all(&bridge, numbered(0..3)).await;
    bridge.stop().await;
    let path = commands.folder.path().join("spool");
    let aside = path.join("spool.db.damaged-20260101T000000");
    std::fs::copy(path.join(FILE), &aside).expect("copied");
    let (code, out, _) = commands.run(&settings, &["status"]);
    assert!(code == 0 && out.contains("spool.db.damaged-20260101T000000: damaged; see `spool import`"), "{out}");
    let file = aside.to_str().expect("UTF-8");
    let (code, out, error) = commands.run(&settings, &["import", file]);
    assert_eq!(code, 0, "{error}");
    assert!(out.starts_with("imported 0 records and 0 dead letters; 3 existed already"), "{out}");
    let (code, _, error) = commands.run(&settings, &["import", "/nowhere/spool.db"]);
    assert!(code == 1 && error.contains("/nowhere/spool.db cannot be opened"), "{error}");
    std::fs::write(&aside, "not a database, but long enough to be read").expect("written");
    let (code, _, error) = commands.run(&settings, &["import", file]);
    assert!(code == 1 && error.contains("cannot be read as a spool of apsara-bridge"), "{error}");
}
