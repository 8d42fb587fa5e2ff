//! Lanes: a topic that fails delays no other, is visible, and recovers automatically. After `delivery.give_up_after`
//! its records become dead letters.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream::DiscardPolicy;
use tempfile::TempDir;

use crate::support::bridge::{Client, TestBridge, callback, callback_with, large_callback, signed_headers};
use crate::support::config::Config;
use crate::support::eventually;
use crate::support::kafka::{Kafka, KafkaOptions};
use crate::support::nats::{Nats, NatsOptions};
use crate::support::program;
use crate::support::wait::{SOON, let_pass};

/// Publishes to `lanes.` and the media id of the callback, with an output named `bus`.
fn config(folder: &TempDir, kind: &str, address: &str) -> Config {
    Config::http()
        .output("bus", kind, &[address])
        .to("bus", "lanes.{mediaid}")
        .set("delivery.deadline = '300ms'")
        .spool(folder.path().join("spool"))
}

/// A bridge with that configuration and NATS.
async fn bridge(folder: &TempDir, nats: &Nats) -> TestBridge {
    TestBridge::start_connected(&config(folder, "nats", nats.url())).await
}

async fn post(bridge: &TestBridge, id: &str) -> u16 {
    bridge.post(callback(id)).await.status.as_u16()
}

fn lanes(bridge: &TestBridge, state: &str) -> f64 {
    bridge.metric(&format!(r#"apsara_bridge_spool_lanes{{output="bus",state="{state}"}}"#))
}

fn spooled(bridge: &TestBridge) -> f64 {
    bridge.metric("apsara_bridge_spool_events")
}

fn dead_letters(bridge: &TestBridge) -> f64 {
    bridge.metric(r#"apsara_bridge_dead_letters_total{reason="no_such_destination"}"#)
}

fn status(folder: &TempDir, more: &[&str]) -> String {
    let mut command = program::command(&["spool", "status", "--path"]);
    command.arg(folder.path().join("spool")).args(more);
    program::run(command).1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_that_refuses_delays_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let nats = Nats::start(NatsOptions::default()).await;
    let sick = nats
        .create_stream_with("SICK", &["lanes.sick"], |config| {
            config.max_messages = 1;
            config.discard = DiscardPolicy::New;
        })
        .await;
    nats.create_stream("HEALTHY", &["lanes.healthy"]).await;
    let bridge = bridge(&folder, &nats).await;
    let mut client = Client::connect(bridge.input).await;
    let mut send = async |id: &str, number: usize| {
        let body = callback_with(id, number);
        client.post("/callbacks", body, &signed_headers("VOD")).await.status.as_u16()
    };
    for number in 0..4 {
        assert_eq!(send("sick", number).await, 200);
    }
    eventually("it fails", SOON, async || (lanes(&bridge, "failing") == 1.0).then_some(())).await;
    for number in 0..100 {
        assert_eq!(send("healthy", number).await, 200);
    }
    assert_eq!(nats.messages("HEALTHY", 100, SOON).await.len(), 100);
    assert_eq!((spooled(&bridge), bridge.outcomes("http", "spooled")), (3.0, 3.0), "none of the healthy ones");
    assert_eq!((lanes(&bridge, "waiting"), lanes(&bridge, "failing")), (0.0, 1.0));
    for left in (0..3).rev() {
        sick.purge().await.expect("purged");
        eventually("one more has arrived", SOON, async || (spooled(&bridge) <= f64::from(left)).then_some(())).await;
    }
    assert_eq!((lanes(&bridge, "waiting"), lanes(&bridge, "failing")), (0.0, 0.0));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_a_typo_is_named_with_its_fix_and_recovers() {
    let folder = tempfile::tempdir().expect("a folder");
    let kafka = Kafka::start(KafkaOptions { auto_create_topics: false, ..Default::default() }).await;
    kafka.create_topic("lanes.right", 1, &[]).await;
    let bridge = TestBridge::start_connected(&config(&folder, "kafka", kafka.brokers())).await;
    for _ in 0..2 {
        assert_eq!(post(&bridge, "typo").await, 200);
    }
    assert_eq!(post(&bridge, "right").await, 200);
    let named = "bus/lanes.typo: 1 record, ";
    let status_text = eventually("it is named", SOON, async || {
        Some(status(&folder, &[])).filter(|text| text.contains(named) && text.contains("no_such_destination"))
    })
    .await;
    assert!(
        status_text.contains("create the topic, stream or endpoint, or fix its name in the configuration"),
        "{status_text}"
    );
    let status: serde_json::Value = serde_json::from_str(&status(&folder, &["--json"])).expect("JSON");
    assert_eq!(status["lanes"][0]["state"], "failing", "{status}");
    assert_eq!(status["lanes"][0]["failing"]["reason"], "no_such_destination", "{status}");
    assert_eq!(kafka.consume("lanes.right", 1, SOON).await.len(), 1);
    kafka.create_topic("lanes.typo", 1, &[]).await;
    bridge.spooled(0.0).await;
    assert_eq!((kafka.consume("lanes.typo", 1, SOON).await.len(), dead_letters(&bridge)), (1, 0.0));
    eventually("nothing fails any more", SOON, async || {
        (!folder.path().join("spool/failing-lanes.json").exists()).then_some(())
    })
    .await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_waited_too_long_are_given_up_and_younger_ones_are_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let nats = Nats::start(NatsOptions::default()).await;
    let config = config(&folder, "nats", nats.url()).set("delivery.give_up_after = '5s'");
    let bridge = TestBridge::start_connected(&config).await;
    let body = |number: usize| callback_with("nowhere", number);
    for number in 0..100 {
        assert_eq!(bridge.post(body(number)).await.status.as_u16(), 200);
    }
    let posted = Instant::now();
    // Nothing may be given up during this time, and the next event is younger by this time.
    let_pass(Duration::from_secs(3)).await;
    assert_eq!((spooled(&bridge), dead_letters(&bridge)), (100.0, 0.0));
    assert_eq!(bridge.post(body(100)).await.status.as_u16(), 200);
    eventually("the old ones are given up", SOON, async || (dead_letters(&bridge) >= 100.0).then_some(())).await;
    // They become dead letters together, not one after another.
    assert!(posted.elapsed() < Duration::from_secs(15), "{:?}", posted.elapsed());
    assert_eq!((spooled(&bridge), dead_letters(&bridge)), (1.0, 100.0));
    nats.create_stream("LATER", &["lanes.>"]).await;
    bridge.spooled(0.0).await;
    assert_eq!((nats.messages("LATER", 1, SOON).await.len(), dead_letters(&bridge)), (1, 100.0));
    bridge.stop().await;
}

/// An outage is not a misconfiguration: the time to give up starts again after it.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_restarts_the_time_to_give_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let nats = Nats::start(NatsOptions::default()).await;
    let config = config(&folder, "nats", nats.url()).set("delivery.give_up_after = '6s'");
    let bridge = TestBridge::start_connected(&config).await;
    assert_eq!(post(&bridge, "nowhere").await, 200);
    eventually("it fails", SOON, async || (lanes(&bridge, "failing") == 1.0).then_some(())).await;
    nats.kill();
    bridge.disconnected().await;
    // An outage longer than `delivery.give_up_after`.
    let_pass(Duration::from_secs(7)).await;
    nats.restart().await;
    bridge.connected().await;
    let back = Instant::now();
    eventually("it is given up", SOON, async || (dead_letters(&bridge) >= 1.0).then_some(())).await;
    assert!(back.elapsed() > Duration::from_secs(4), "{:?} after the output was up again", back.elapsed());
    bridge.stop().await;
}

/// A record without room for its dead letter does not block its topic.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_dead_letter_has_no_room_delays_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let nats = Nats::start(NatsOptions { max_payload: Some(4000), ..NatsOptions::default() }).await;
    nats.create_stream("ALL", &["lanes.>"]).await;
    let config = config(&folder, "nats", nats.url()).set("dead_letters.max_bytes = '100B'");
    let bridge = TestBridge::start_connected(&config).await;
    let long = large_callback("one", 6000);
    assert_eq!(bridge.post(long).await.status.as_u16(), 200);
    let body = |number: usize| callback_with("one", number);
    for number in 0..20 {
        let start = Instant::now();
        assert_eq!(bridge.post(body(number)).await.status.as_u16(), 200);
        nats.messages("ALL", number + 1, SOON).await;
        assert!(start.elapsed() < Duration::from_secs(10), "{number}: {:?}", start.elapsed());
    }
    // A record that was too slow for its deadline leaves the spool again.
    bridge.spooled(1.0).await;
    bridge.stop().await;
}

/// While events keep coming, a topic is published directly again as soon as its backlog is published.
#[tokio::test(flavor = "multi_thread")]
async fn under_steady_load_the_spool_becomes_empty_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let nats = Nats::start(NatsOptions::default()).await;
    nats.create_stream("ALL", &["lanes.>"]).await;
    let bridge = bridge(&folder, &nats).await;
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let load = async |topic: usize| {
        let mut client = Client::connect(bridge.input).await;
        let mut sent = 0;
        while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
            let body = callback_with(&format!("topic{topic}"), format!("{topic}-{sent}"));
            let answer = client.post("/callbacks", body, &signed_headers("VOD")).await;
            assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
            sent += 1;
        }
    };
    let outage = async {
        eventually("load", SOON, async || (bridge.outcomes("http", "published") > 100.0).then_some(())).await;
        nats.kill();
        bridge.wait_metric("apsara_bridge_spool_events", |value| value > 100.0).await;
        nats.restart().await;
        bridge.connected().await;
        let back = Instant::now();
        bridge.spooled(0.0).await;
        assert!(back.elapsed() < Duration::from_secs(15), "{:?}", back.elapsed());
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    tokio::join!(outage, load(0), load(1), load(2), load(3), load(4), load(5));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_given_up_stays_spooled_while_the_dead_letters_are_full() {
    let folder = tempfile::tempdir().expect("a folder");
    let nats = Nats::start(NatsOptions::default()).await;
    let config =
        config(&folder, "nats", nats.url()).set("delivery.give_up_after = '1s'").set("dead_letters.max_bytes = '100B'");
    let bridge = TestBridge::start_connected(&config).await;
    assert_eq!(post(&bridge, "nowhere").await, 200);
    eventually("it was tried after `give_up_after`", SOON, async || {
        let status = status(&folder, &["--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).ok()?;
        (status["lanes"][0]["oldest_seconds"].as_f64()? > 3.0).then_some(())
    })
    .await;
    assert_eq!((spooled(&bridge), dead_letters(&bridge), lanes(&bridge, "failing")), (1.0, 0.0, 1.0));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_fails_leaves_room_for_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let nats = Nats::start(NatsOptions::default()).await;
    nats.create_stream("HEALTHY", &["lanes.healthy"]).await;
    let config = config(&folder, "nats", nats.url())
        .set("delivery.deadline = '100ms'")
        .set("spool = { max_bytes = '60KiB', lane_share = 0.2 }");
    let bridge = TestBridge::start_connected(&config).await;
    let body = |number: usize| callback_with("sick", number);
    let mut taken = 0;
    let refused = loop {
        let answer = bridge.post(body(taken)).await;
        if answer.status.as_u16() != 200 {
            break answer;
        }
        taken += 1;
        assert!(taken < 60, "its share is 12 KiB");
    };
    let detail = refused.problem().1;
    assert!(detail.contains("its topic has used its share of the spool"), "{detail}");
    assert!(bridge.metric(r#"apsara_bridge_spool_failures_total{reason="lane_full"}"#) >= 1.0);
    assert!(bridge.metric("apsara_bridge_spool_bytes") <= 12.0 * 1024.0);
    assert_eq!(post(&bridge, "healthy").await, 200);
    assert_eq!(post(&bridge, "another-sick-one").await, 200);
    // With the output down, the share does not count.
    nats.kill();
    bridge.disconnected().await;
    assert_eq!(bridge.post(body(taken)).await.status.as_u16(), 200);
    nats.restart().await;
    nats.create_stream("LATER", &["lanes.sick", "lanes.another-sick-one"]).await;
    bridge.spooled(0.0).await;
    assert_eq!(nats.messages("LATER", taken + 2, SOON).await.len(), taken + 2);
    bridge.stop().await;
}
