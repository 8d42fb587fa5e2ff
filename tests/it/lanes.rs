//! Lanes: a topic that fails delays no other, is visible, recovers without help, and is given up in the end.

use std::process::Command;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{Config, DiscardPolicy};
use tempfile::TempDir;

use crate::support::bridge::{Client, TestBridge, callback, http_input, signed_headers};
use crate::support::eventually;
use crate::support::kafka::{Kafka, KafkaOptions};
use crate::support::nats::{Nats, NatsOptions};
use crate::support::wait::SOON;

/// A bridge that publishes to `lanes.` and the media id of the callback.
async fn bridge(folder: &TempDir, output: &str, more: &str) -> TestBridge {
    let path = folder.path().join("spool");
    TestBridge::start_connected(&format!(
        "{}{output}[[routes]]\nname = 'all'\nto = {{ output = 'bus', topic = 'lanes.{{mediaid}}' }}\n\
         [delivery]\ndeadline = '300ms'\n{more}[spool]\npath = '{}'\n",
        http_input(""),
        path.display()
    ))
    .await
}

fn nats_output(nats: &Nats) -> String {
    format!("[outputs.bus]\nkind = 'nats'\nservers = ['{}']\n", nats.url())
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

async fn empty(bridge: &TestBridge) {
    eventually("the spool is empty", SOON, async || (spooled(bridge) == 0.0).then_some(())).await;
}

fn status(folder: &TempDir, more: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_apsara-bridge"));
    command.args(["spool", "status", "--path"]).arg(folder.path().join("spool")).args(more);
    String::from_utf8(command.output().expect("it runs").stdout).expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_that_refuses_delays_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let nats = Nats::start(NatsOptions::default()).await;
    let jetstream = nats.jetstream().await;
    let full = Config {
        name: "SICK".to_owned(),
        subjects: vec!["lanes.sick".to_owned()],
        max_messages: 1,
        discard: DiscardPolicy::New,
        ..Config::default()
    };
    let sick = jetstream.create_stream(full).await.expect("created");
    nats.create_stream("HEALTHY", &["lanes.healthy"]).await;
    let bridge = bridge(&folder, &nats_output(&nats), "").await;
    let mut client = Client::connect(bridge.input).await;
    let mut send = async |id: &str, number: usize| {
        let body = callback(id).replace("\"42\"", &format!("\"{number}\""));
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
    let spooled_at_all = r#"apsara_bridge_callbacks_total{input="http",outcome="spooled"}"#;
    assert_eq!((spooled(&bridge), bridge.metric(spooled_at_all)), (3.0, 3.0), "none of the healthy ones");
    assert_eq!((lanes(&bridge, "waiting"), lanes(&bridge, "failing")), (0.0, 1.0));
    for left in (0..3).rev() {
        sick.purge().await.expect("purged");
        eventually("one more has arrived", SOON, async || (spooled(&bridge) <= f64::from(left)).then_some(())).await;
    }
    assert_eq!((lanes(&bridge, "waiting"), lanes(&bridge, "failing")), (0.0, 0.0));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_a_typo_is_named_with_its_remedy_and_recovers() {
    let folder = tempfile::tempdir().expect("a folder");
    let kafka = Kafka::start(KafkaOptions { auto_create_topics: false, ..Default::default() }).await;
    kafka.create_topic("lanes.right", 1, &[]).await;
    let output = format!("[outputs.bus]\nkind = 'kafka'\nbrokers = ['{}']\n", kafka.brokers());
    let bridge = bridge(&folder, &output, "").await;
    for _ in 0..2 {
        assert_eq!(post(&bridge, "typo").await, 200);
    }
    assert_eq!(post(&bridge, "right").await, 200);
    let named = "bus/lanes.typo: 1 record, ";
    let status_text = eventually("it is named", SOON, async || {
        Some(status(&folder, &[])).filter(|text| text.contains(named) && text.contains("no_such_destination"))
    })
    .await;
    assert!(status_text.contains("create the topic or stream, or fix its name in the route"), "{status_text}");
    let status: serde_json::Value = serde_json::from_str(&status(&folder, &["--json"])).expect("JSON");
    assert_eq!(status["lanes"][0]["state"], "failing", "{status}");
    assert_eq!(status["lanes"][0]["failing"]["reason"], "no_such_destination", "{status}");
    assert_eq!(kafka.consume("lanes.right", 1, SOON).await.len(), 1);
    kafka.create_topic("lanes.typo", 1, &[]).await;
    empty(&bridge).await;
    assert_eq!((kafka.consume("lanes.typo", 1, SOON).await.len(), dead_letters(&bridge)), (1, 0.0));
    eventually("nothing fails any more", SOON, async || {
        (!folder.path().join("spool/failing-lanes.json").exists()).then_some(())
    })
    .await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_too_long_for_somebody_is_given_up_and_younger_events_are_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let nats = Nats::start(NatsOptions::default()).await;
    let bridge = bridge(&folder, &nats_output(&nats), "give_up_after = '5s'\n").await;
    let body = |number: usize| callback("nowhere").replace("\"42\"", &format!("\"{number}\""));
    for number in 0..100 {
        assert_eq!(bridge.post(body(number)).await.status.as_u16(), 200);
    }
    let posted = Instant::now();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((spooled(&bridge), dead_letters(&bridge)), (100.0, 0.0));
    assert_eq!(bridge.post(body(100)).await.status.as_u16(), 200);
    eventually("the old ones are given up", SOON, async || (dead_letters(&bridge) >= 100.0).then_some(())).await;
    // All together: not one in each of these times.
    assert!(posted.elapsed() < Duration::from_secs(15), "{:?}", posted.elapsed());
    assert_eq!((spooled(&bridge), dead_letters(&bridge)), (1.0, 100.0));
    nats.create_stream("LATER", &["lanes.>"]).await;
    empty(&bridge).await;
    assert_eq!((nats.messages("LATER", 1, SOON).await.len(), dead_letters(&bridge)), (1, 100.0));
    bridge.stop().await;
}

/// An outage is nobody's mistake: the time begins anew after it.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_begins_the_time_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let nats = Nats::start(NatsOptions::default()).await;
    let bridge = bridge(&folder, &nats_output(&nats), "give_up_after = '6s'\n").await;
    assert_eq!(post(&bridge, "nowhere").await, 200);
    eventually("it fails", SOON, async || (lanes(&bridge, "failing") == 1.0).then_some(())).await;
    nats.kill();
    eventually("the output is down", SOON, async || (!bridge.bridge.is_connected()).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    nats.restart().await;
    bridge.connected().await;
    let back = Instant::now();
    eventually("it is given up", SOON, async || (dead_letters(&bridge) >= 1.0).then_some(())).await;
    assert!(back.elapsed() > Duration::from_secs(4), "{:?} after the output was up again", back.elapsed());
    bridge.stop().await;
}

/// A record whose dead letter finds no room does not hold up its topic.
#[tokio::test(flavor = "multi_thread")]
async fn what_stays_for_want_of_room_delays_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let nats = Nats::start(NatsOptions { max_payload: Some(4000), ..NatsOptions::default() }).await;
    nats.create_stream("ALL", &["lanes.>"]).await;
    let bridge = bridge(&folder, &nats_output(&nats), "[dead_letters]\nmax_bytes = '100B'\n").await;
    let long = callback("one").replace("\"42\"", &format!("\"{}\"", "4".repeat(6000)));
    assert_eq!(bridge.post(long).await.status.as_u16(), 200);
    let body = |number: usize| callback("one").replace("\"42\"", &format!("\"{number}\""));
    for number in 0..20 {
        let start = Instant::now();
        assert_eq!(bridge.post(body(number)).await.status.as_u16(), 200);
        nats.messages("ALL", number + 1, SOON).await;
        assert!(start.elapsed() < Duration::from_secs(10), "{number}: {:?}", start.elapsed());
    }
    assert_eq!(spooled(&bridge), 1.0);
    bridge.stop().await;
}

/// While events keep coming, a topic leaves the spool as soon as its backlog is handed over.
#[tokio::test(flavor = "multi_thread")]
async fn under_steady_load_the_spool_is_left_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let nats = Nats::start(NatsOptions::default()).await;
    nats.create_stream("ALL", &["lanes.>"]).await;
    let bridge = bridge(&folder, &nats_output(&nats), "").await;
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let load = async |topic: usize| {
        let mut client = Client::connect(bridge.input).await;
        let mut sent = 0;
        while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
            let body = callback(&format!("topic{topic}")).replace("\"42\"", &format!("\"{topic}-{sent}\""));
            let answer = client.post("/callbacks", body, &signed_headers("VOD")).await;
            assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
            sent += 1;
        }
    };
    let outage = async {
        let published = || bridge.metric(r#"apsara_bridge_callbacks_total{input="http",outcome="published"}"#);
        eventually("load", SOON, async || (published() > 100.0).then_some(())).await;
        nats.kill();
        eventually("events are spooled", SOON, async || (spooled(&bridge) > 100.0).then_some(())).await;
        nats.restart().await;
        bridge.connected().await;
        let back = Instant::now();
        eventually("nothing is left in the spool", SOON, async || (spooled(&bridge) == 0.0).then_some(())).await;
        assert!(back.elapsed() < Duration::from_secs(15), "{:?}", back.elapsed());
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    tokio::join!(outage, load(0), load(1), load(2), load(3), load(4), load(5));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_stays_while_there_is_no_room_for_dead_letters() {
    let folder = tempfile::tempdir().expect("a folder");
    let nats = Nats::start(NatsOptions::default()).await;
    let more = "give_up_after = '1s'\n[dead_letters]\nmax_bytes = '100B'\n";
    let bridge = bridge(&folder, &nats_output(&nats), more).await;
    assert_eq!(post(&bridge, "nowhere").await, 200);
    eventually("it was tried after its time", SOON, async || {
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
    let path = folder.path().join("spool");
    let bridge = TestBridge::start_connected(&format!(
        "{}{}[[routes]]\nname = 'all'\nto = {{ output = 'bus', topic = 'lanes.{{mediaid}}' }}\n\
         [delivery]\ndeadline = '100ms'\n[spool]\npath = '{}'\nmax_bytes = '60KiB'\nlane_share = 0.2\n",
        http_input(""),
        nats_output(&nats),
        path.display()
    ))
    .await;
    let body = |number: usize| callback("sick").replace("\"42\"", &format!("\"{number}\""));
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
    assert!(detail.contains("its topic has its share of the spool"), "{detail}");
    assert!(bridge.metric(r#"apsara_bridge_spool_failures_total{reason="lane_full"}"#) >= 1.0);
    assert!(bridge.metric("apsara_bridge_spool_bytes") <= 12.0 * 1024.0);
    assert_eq!(post(&bridge, "healthy").await, 200);
    assert_eq!(post(&bridge, "another-sick-one").await, 200);
    // With the output down, the share does not count.
    nats.kill();
    eventually("the output is down", SOON, async || (!bridge.bridge.is_connected()).then_some(())).await;
    assert_eq!(bridge.post(body(taken)).await.status.as_u16(), 200);
    nats.restart().await;
    nats.create_stream("LATER", &["lanes.sick", "lanes.another-sick-one"]).await;
    empty(&bridge).await;
    assert_eq!(nats.messages("LATER", taken + 2, SOON).await.len(), taken + 2);
    bridge.stop().await;
}
