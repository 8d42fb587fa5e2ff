//! Dead letters: they are kept with their reason, and listed, replayed and deleted while the service runs. Also repeats
//! and reloading.

use std::path::PathBuf;
use std::time::Duration;

use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::blocking;
use crate::support::bridge::{
    Client, KEY, TestBridge, URL, callback, headers_signed_at, large_callback, now, signed_headers,
};
use crate::support::config::{Config, Route};
use crate::support::eventually;
use crate::support::judges::{self, Message};
use crate::support::kafka::{Kafka, KafkaOptions, mock};
use crate::support::program::{self, Program};
use crate::support::wait::SOON;

/// A folder with the spool of a test, and the program run on it.
struct Letters {
    folder: TempDir,
}

impl Letters {
    fn new() -> Letters {
        Letters { folder: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("spool")
    }

    /// A configuration with the spool and one output, `kafka`.
    fn config(&self, brokers: &str) -> Config {
        Config::http().kafka(brokers).spool(self.path())
    }

    /// Runs `dead-letters`. Returns exit code, standard output and standard error.
    async fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = program::command(&["dead-letters"]);
        command.args(arguments).arg("--path").arg(self.path());
        blocking(move || program::run(command)).await
    }

    async fn list(&self, conditions: &[&str]) -> Vec<Value> {
        let (code, out, error) = self.run(&[&["list", "--json"], conditions].concat()).await;
        assert_eq!(code, 0, "{error}");
        serde_json::from_str(&out).expect("a JSON array")
    }
}

/// Only events of IMS are published; audits become dead letters by a route, everything else because no route matches.
fn to_ims() -> [Route; 2] {
    [
        Route::new("ims").when("dialect = 'ims'").to("kafka", "ims"),
        Route::new("audits").when("type = '*Audit*'").set("dead_letter = true"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_is_kept_with_its_details_and_repeats_are_counted() {
    let letters = Letters::new();
    let cluster = mock(&["ims"]);
    let config = letters.config(&cluster.bootstrap_servers()).routes(to_ims());
    let bridge = TestBridge::start_connected(&config).await;
    // No route, three times; a route that makes dead letters; two bodies that are not callbacks, one of them twice.
    for _ in 0..3 {
        assert_eq!(bridge.post(callback("nowhere")).await.status.as_u16(), 200);
    }
    let audit = callback("audit").replace("FileUploadComplete", "CreateAuditComplete");
    assert_eq!(bridge.post(audit).await.status.as_u16(), 200);
    for body in [&b"no \xFF JSON"[..], b"{}", b"{}"] {
        assert_eq!(bridge.post(body.to_vec()).await.status.as_u16(), 400);
    }
    // A record that a bus refuses for good.
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD]);
    let ims = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/dialect/samples/ims-FileUploadComplete.json"
    ))
    .expect("a fixture");
    assert_eq!(bridge.post(ims.clone()).await.status.as_u16(), 200);
    // Requests that are not authorized are not kept.
    let forged = headers_signed_at("VOD", URL, 1_700_000_000, KEY);
    assert_eq!(bridge.post_with("forged", &forged).await.status.as_u16(), 401);

    let listed = letters.list(&[]).await;
    let told: Vec<(&str, &Value)> =
        listed.iter().map(|letter| (letter["reason"].as_str().expect("a reason"), &letter["count"])).collect();
    let (one, two, three) = (Value::from(1), Value::from(2), Value::from(3));
    assert_eq!(
        told,
        [
            ("unrouted", &three),
            ("routed", &one),
            ("not_a_callback", &one),
            ("not_a_callback", &two),
            ("rejected", &one)
        ]
    );
    assert_eq!(bridge.metric(r#"apsara_bridge_callbacks_total{input="http",outcome="dead_lettered"}"#), 8.0);
    assert_eq!(bridge.metric(r#"apsara_bridge_dead_letters_total{reason="not_a_callback"}"#), 3.0);
    assert_eq!(bridge.metric("apsara_bridge_dead_letters_stored"), 5.0);

    let rejected = &listed[4];
    for (field, value) in [
        ("route", "ims"),
        ("output", "kafka"),
        ("topic", "ims"),
        ("input", "http"),
        ("type", "com.aliyun.media.FileUploadComplete"),
    ] {
        assert_eq!(rejected[field], value, "{rejected}");
    }
    assert_eq!(rejected["attempts"], 1);
    assert!(rejected["code"].as_str().expect("the message of the bus").contains("InvalidRecord"), "{rejected}");
    let (code, out, _) = letters.run(&["show", "5", "--json"]).await;
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, shown["body"].as_str()), (0, Some(ims.as_str())), "the body is unchanged");
    assert_eq!(shown["envelope"]["id"], rejected["event_id"]);
    let (_, out, _) = letters.run(&["show", "3", "--json"]).await;
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&shown["envelope"], &shown["body_is_text"]), (&Value::Null, &false.into()));
    assert!(shown["code"].as_str().expect("why").contains("byte"), "{shown}");
    let (_, out, _) = letters.run(&["list"]).await;
    assert!(out.starts_with("ID") && out.lines().count() == 6, "{out}");
    let (_, out, _) = letters.run(&["show", "1"]).await;
    assert!(out.contains("Envelope:\n{") && out.contains("Body:\n{"), "{out}");

    assert_eq!(letters.list(&["--reason", "not_a_callback"]).await.len(), 2);
    assert_eq!(letters.list(&["--type", "FileUploadComplete"]).await.len(), 2);
    assert_eq!(letters.list(&["--type", "com.aliyun.media.CreateAuditComplete"]).await.len(), 1);
    assert_eq!(letters.list(&["--since", "1h"]).await.len(), 5);
    assert_eq!(letters.list(&["--before", "1h"]).await.len(), 0);
    assert_eq!(letters.list(&["--before", "2999-01-01T00:00:00Z", "--reason", "routed"]).await.len(), 1);
    let (code, _, error) = letters.run(&["list", "--reason", "unroted"]).await;
    assert!(code == 2 && error.contains("a similar value exists: 'unrouted'"), "{error}");

    let (code, out, _) = letters.run(&["delete", "--reason", "not_a_callback"]).await;
    assert_eq!((code, out.as_str()), (0, "2 dead letters deleted\n"));
    let (code, _, error) = letters.run(&["delete"]).await;
    assert!(code == 2 && error.contains("expected numbers, --all"), "{error}");
    let (code, _, error) = letters.run(&["delete", "1", "99"]).await;
    assert!(code == 1 && error.contains("there is no such dead letter: 99"), "{error}");
    bridge.wait_metric("apsara_bridge_dead_letters_stored", |value| value == 3.0).await;
    bridge.stop().await;
}

/// What a sender writes into a callback cannot control the terminal of a person who looks at the dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_terminal_would_obey_is_escaped() {
    let letters = Letters::new();
    let config = letters.config("127.0.0.1:9").routes(to_ims());
    let bridge = TestBridge::start(&config).await;
    let evil = "evil\u{1b}[2J\u{9b}31m\u{7f}\u{202e}\u{2066}";
    let body = callback("evil").replace("\"evil\"", &format!("\"{}\"", evil.replace('\u{1b}', "\\u001b")));
    assert_eq!(bridge.post(body.clone()).await.status.as_u16(), 200);
    assert_eq!(bridge.post("\u{1b}[2J\u{9b}31m\r\n\u{202e}\u{2066}\u{7f}").await.status.as_u16(), 400);
    let is_clean = |text: &str| !text.chars().any(|c| c.is_control() && c != '\n' || "\u{202e}\u{2066}".contains(c));
    for (arguments, expected) in [
        (&["list"][..], "evil\u{fffd}[2J\u{fffd}31m\u{fffd}\\u{202e}\\u{2066}"),
        (&["list", "--json"], "evil\u{fffd}[2J\u{fffd}31m\u{fffd}\\u202e\\u2066"),
        (&["show", "1"], "Envelope:\n{\n  \"specversion\""),
        (&["show", "1", "--json"], "evil\\u001b[2J\\u009b31m\\u007f\\u202e\\u2066"),
        (&["show", "2"], "Body:\n\\u{1b}[2J\\u{9b}31m\\u{d}\n\\u{202e}\\u{2066}\\u{7f}\n"),
        (&["show", "2", "--json"], "\\u001b[2J\\u009b31m\\r\\n\\u202e\\u2066\\u007f"),
    ] {
        let (code, out, _) = letters.run(arguments).await;
        assert!(code == 0 && is_clean(&out) && out.contains(expected), "{arguments:?}: {out:?}");
    }
    let (_, out, _) = letters.run(&["show", "1", "--json"]).await;
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&shown["body"], &shown["envelope"]["data"]["mediaId"]), (&body.as_str().into(), &evil.into()));
    let (_, out, _) = letters.run(&["show", "1", "--body"]).await;
    assert_eq!(out, body, "for a program the body is exact");
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_uses_the_current_routes_and_the_same_id_and_ignores_the_window() {
    let letters = Letters::new();
    let kafka = Kafka::shared().await;
    kafka.create_topic("replayed", 1, &[]).await;
    let bridge = TestBridge::start_connected(&letters.config(kafka.brokers()).routes(to_ims())).await;
    for id in ["a", "b"] {
        assert_eq!(bridge.post(callback(id)).await.status.as_u16(), 200);
    }
    assert_eq!(bridge.post("{}").await.status.as_u16(), 400);
    let (code, out, error) = letters.run(&["replay", "--all"]).await;
    assert_eq!((code, out.as_str()), (1, "0 dead letters replayed\n"));
    assert!(error.contains("dead letter 1: not replayed: no route matches it"), "{error}");
    assert!(error.contains("dead letter 3: not replayed: it is still not a callback: "), "{error}");
    let kept = letters.list(&[]).await;
    assert_eq!(kept[0]["replay_error"], "no route matches it");
    bridge.stop().await;

    // Without a running bridge, a replay waits for one.
    let (code, out, _) = letters.run(&["replay", "1"]).await;
    assert_eq!((code, out.as_str()), (0, "1 dead letter: no bridge is running; they are replayed when one starts\n"));
    let bridge = TestBridge::start_connected(&letters.config(kafka.brokers()).to("kafka", "replayed")).await;
    let (code, out, error) = letters.run(&["replay", "--reason", "unrouted"]).await;
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    let records = kafka.consume("replayed", 2, SOON).await;
    let event = judges::accepted(&Message::kafka(&records[0]));
    assert_eq!(event.attribute("id"), kept[0]["event_id"].as_str(), "the id is the same");
    assert_eq!((event.attribute("dlqreason"), event.attribute("subject")), (None, Some("a")));
    assert_eq!(letters.list(&[]).await.len(), 1, "only the body that is not a callback is left");
    // The event counts as accepted now, so a repeat of the callback is a duplicate.
    assert_eq!(bridge.post(callback("b")).await.status.as_u16(), 200);
    assert_eq!(bridge.metric(r#"apsara_bridge_callbacks_total{input="http",outcome="duplicate"}"#), 1.0);
    assert!(bridge.metric(r#"apsara_bridge_dead_letters_replayed_total{result="success"}"#) >= 2.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_in_an_outage_keeps_the_dead_letter() {
    let letters = Letters::new();
    let kafka = Kafka::start(KafkaOptions { message_max_bytes: Some(2000), ..Default::default() }).await;
    kafka.create_topic("outage", 1, &[]).await;
    let bridge = TestBridge::start_connected(&letters.config(kafka.brokers()).to("kafka", "outage")).await;
    let long = large_callback("long", 4000);
    assert_eq!(bridge.post(long).await.status.as_u16(), 200);
    assert_eq!(letters.list(&[]).await[0]["reason"], "too_large");
    kafka.kill();
    bridge.disconnected().await;
    let (code, _, error) = letters.run(&["replay", "1"]).await;
    assert!(code == 1 && error.contains("kafka/outage: unavailable"), "{error}");
    assert_eq!(letters.list(&[]).await.len(), 1);
    assert_eq!(bridge.metric("apsara_bridge_spool_events"), 0.0, "a replay is not spooled");
    kafka.restart().await;
    bridge.connected().await;
    let (code, _, error) = letters.run(&["replay", "1"]).await;
    assert!(code == 1 && error.contains("kafka/outage: too_large"), "{error}");
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_wait_in_the_spool_while_the_dead_letters_are_full() {
    let letters = Letters::new();
    let cluster = mock(&[]);
    let config = letters.config(&cluster.bootstrap_servers()).routes(to_ims()).set("dead_letters.max_bytes = '4KiB'");
    let bridge = TestBridge::start_connected(&config).await;
    let unrouted = r#"apsara_bridge_dead_letters_total{reason="unrouted"}"#;
    let mut kept = 0.0;
    while bridge.metric("apsara_bridge_spool_events") == 0.0 {
        assert_eq!(bridge.post(callback(&format!("v{kept}"))).await.status.as_u16(), 200);
        kept += 1.0;
        assert!(kept < 20.0, "4 KiB have no room for twenty of them");
    }
    kept -= 1.0;
    assert!(kept >= 2.0, "{kept}");
    assert_eq!(bridge.metric(unrouted), kept, "a waiting dead letter is not counted as kept");
    assert_eq!(bridge.metric(r#"apsara_bridge_callbacks_total{input="http",outcome="spooled"}"#), 1.0);
    assert_eq!(bridge.post(vec![b'x'; 4000]).await.status.as_u16(), 400);
    assert_eq!(bridge.metric(r#"apsara_bridge_dead_letters_not_kept_total{reason="not_a_callback"}"#), 1.0);
    // A repeat of a kept one is counted and needs no room; nothing old was deleted.
    assert_eq!(bridge.post(callback("v0")).await.status.as_u16(), 200);
    let listed = letters.list(&[]).await;
    assert_eq!((listed.len() as f64, &listed[0]["count"]), (kept, &2.into()));
    letters.run(&["delete", "1"]).await;
    // When there is room again, it becomes a dead letter automatically. A restart checks this at once.
    bridge.stop().await;
    let bridge = TestBridge::start(&config).await;
    bridge.spooled(0.0).await;
    // It is counted just after it has left the spool.
    bridge.wait_metric(unrouted, |value| value == 1.0).await;
    let listed = letters.list(&[]).await;
    assert_eq!((listed.len() as f64, &listed[1]["reason"]), (kept, &"unrouted".into()));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_room_anywhere_is_refused() {
    let letters = Letters::new();
    let cluster = mock(&[]);
    let config = letters
        .config(&cluster.bootstrap_servers())
        .routes(to_ims())
        .set("dead_letters.max_bytes = '100B'\nspool.max_bytes = '100B'");
    let bridge = TestBridge::start_connected(&config).await;
    let (problem, detail) = bridge.post(callback("more")).await.problem();
    assert_eq!(problem, "refused");
    assert_eq!(detail, "the event cannot be published, and neither the dead letters nor the spool have room for it");
    assert_eq!(bridge.metric(r#"apsara_bridge_dead_letters_not_kept_total{reason="unrouted"}"#), 1.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_also_published_at_once_or_later() {
    let letters = Letters::new();
    let kafka = Kafka::start(KafkaOptions::default()).await;
    kafka.create_topic("letters", 1, &[]).await;
    let config = letters.config(kafka.brokers()).routes(to_ims()).dead_letters_to("kafka", "letters");
    let bridge = TestBridge::start_connected(&config).await;
    assert_eq!(bridge.post(callback("at-once")).await.status.as_u16(), 200);
    kafka.kill();
    assert_eq!(bridge.post(callback("later")).await.status.as_u16(), 200);
    assert_eq!(bridge.metric("apsara_bridge_spool_events"), 1.0);
    assert_eq!(letters.list(&[]).await.len(), 2, "in the database in any case");
    kafka.restart().await;
    let records = kafka.consume("letters", 2, SOON).await;
    for (record, key) in records.iter().zip(["at-once", "later"]) {
        let event = judges::accepted(&Message::kafka(record));
        assert_eq!(event.attribute("dlqreason"), Some("unrouted"));
        assert_eq!(event.attribute("dlqattempts"), Some("0"));
        assert_eq!(record.key.as_deref(), Some(key.as_bytes()));
    }
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_copies_are_published_once_and_get_the_same_answer() {
    let letters = Letters::new();
    let cluster = mock(&["copies"]);
    // A long deadline for busy machines: spooled events would not count as published.
    let config = letters.config(&cluster.bootstrap_servers()).to("kafka", "copies").set("delivery.deadline = '2900ms'");
    let bridge = TestBridge::start_connected(&config).await;
    cluster.broker_round_trip_time(1, Duration::from_millis(200)).expect("set");
    let post = async |body: &str| bridge.post(body.to_owned()).await.status.as_u16();
    let spaced = callback("a").replace("\":\"", "\" : \"");
    let plain = callback("a");
    assert_eq!(tokio::join!(post(&plain), post(&plain), post(&spaced)), (200, 200, 200));
    assert_eq!((bridge.outcomes("http", "published"), bridge.outcomes("http", "duplicate")), (1.0, 2.0));
    assert_eq!(bridge.metric("apsara_bridge_dedupe_ids"), 1.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_refused_callback_is_published() {
    let cluster = mock(&["refused"]);
    // Without a spool, the callback is refused.
    let config = Config::http().kafka(&cluster.bootstrap_servers()).to("kafka", "refused");
    let bridge = TestBridge::start_connected(&config).await;
    cluster.broker_round_trip_time(1, Duration::from_secs(3)).expect("set");
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 503);
    cluster.broker_round_trip_time(1, Duration::from_millis(1)).expect("set");
    bridge.accepted("a").await;
    assert_eq!(bridge.metric(r#"apsara_bridge_callbacks_total{input="http",outcome="published"}"#), 1.0);
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
    assert_eq!(bridge.metric(r#"apsara_bridge_callbacks_total{input="http",outcome="duplicate"}"#), 1.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_applies_routes_and_keys_all_or_nothing() {
    let letters = Letters::new();
    let cluster = mock(&["one", "two"]);
    let config = letters.config(&cluster.bootstrap_servers()).to("kafka", "one");
    let bridge = Program::start(letters.folder.path(), config);
    eventually("the output to be connected", SOON, async || {
        (bridge.metric(r#"apsara_bridge_output_up{output="kafka"}"#).await == 1.0).then_some(())
    })
    .await;
    let mut client = Client::connect(bridge.input).await;
    let with_new_key = || headers_signed_at("VOD", URL, now(), "AnotherKey1");
    assert_eq!(client.post("/callbacks", callback("a"), &signed_headers("VOD")).await.status.as_u16(), 200);
    assert_eq!(client.post("/callbacks", callback("b"), &with_new_key()).await.status.as_u16(), 401);

    let to = |topic| [Route::new("all").to("kafka", topic)];
    let changed = bridge
        .configuration()
        .keys(&format!("['{KEY}', 'AnotherKey1']"))
        .routes(to("two"))
        .set("inputs.http.max_body = '1KiB'\ninputs.http.header_timeout = '6s'");
    bridge.reload(&changed.to_string());
    bridge.process().wait_log("the configuration was reloaded", SOON);
    bridge.process().wait_log("inputs.http.header_timeout", SOON);
    assert_eq!(client.post("/callbacks", callback("b"), &with_new_key()).await.status.as_u16(), 200);
    let long = callback("long").replace("42", &"4".repeat(2000));
    assert_eq!(client.post("/callbacks", long, &signed_headers("VOD")).await.status.as_u16(), 413);
    // The bridge closes the connection after it answers without reading the body.
    let mut client = Client::connect(bridge.input).await;

    // One error: nothing of the new configuration is applied.
    let changed = bridge.configuration().keys("['ThirdKey1']").without("inputs.http.max_body");
    bridge.reload(&changed.clone().routes(to("{status}")).to_string());
    bridge.process().wait_log("nothing has changed", SOON);
    assert!(bridge.process().log().contains("starts with an attribute"), "{}", bridge.process().log());
    assert_eq!(client.post("/callbacks", callback("c"), &with_new_key()).await.status.as_u16(), 200);
    // A route cannot use an output that is not running.
    let changed = changed
        .without("outputs.kafka")
        .output("other", "kafka", &[cluster.bootstrap_servers()])
        .routes([Route::new("all").to("other", "two")]);
    bridge.reload(&changed.to_string());
    bridge.process().wait_log("events are to go to output `other`, which is not running: restart to add it", SOON);
    for (metric, value) in [
        (r#"apsara_bridge_config_reloads_total{result="success"}"#, 1.0),
        (r#"apsara_bridge_config_reloads_total{result="failure"}"#, 2.0),
        (r#"apsara_bridge_published_total{output="kafka"}"#, 3.0),
    ] {
        assert_eq!(bridge.metric(metric).await, value, "{metric}");
    }
    bridge.stop();
}
