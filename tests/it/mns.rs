//! Callbacks from a queue: the outcome of each message, how its lease is extended, and every kind of failure of the
//! queue.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tempfile::TempDir;

use crate::page;
use crate::support::bridge::{Client, TestBridge, callback};
use crate::support::config::{Config, Route};
use crate::support::eventually;
use crate::support::kafka::{Kafka, KafkaOptions, mock};
use crate::support::mns::queue::{Put, QueueAttributes};
use crate::support::mns::signature::{Key, SignatureVersion};
use crate::support::mns::{Fault, Mns, MnsOptions, Operation};
use crate::support::program::{self, Program};
use crate::support::wait::SOON;

/// An address on which nothing listens.
const NOWHERE: &str = "127.0.0.1:9";

const QUEUE: &str = "ice-callback-media";

fn queue(visibility: Duration) -> Mns {
    let mns = Mns::start(MnsOptions::default());
    mns.create_queue(QUEUE, QueueAttributes { visibility_timeout: visibility, ..QueueAttributes::default() });
    mns
}

/// A configuration that publishes messages of the queue and callbacks by HTTP to a topic of the output `kafka`.
fn config(mns: &Mns, brokers: &str, topic: &str) -> Config {
    Config::http().mns(mns, QUEUE).kafka(brokers).to("kafka", topic)
}

fn spool(folder: &TempDir) -> PathBuf {
    folder.path().join("spool")
}

/// The outcomes of the messages.
fn outcome(bridge: &TestBridge, outcome: &str) -> f64 {
    bridge.outcomes("queue", outcome)
}

fn receives(bridge: &TestBridge, result: &str) -> f64 {
    bridge.metric(&format!(r#"apsara_bridge_mns_receives_total{{queue="{QUEUE}",result="{result}"}}"#))
}

async fn emptied(mns: &Mns) {
    eventually("the queue is empty", SOON, async || mns.left(QUEUE).is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_published_and_deleted_in_batches_with_both_signatures() {
    let kafka = Kafka::shared().await;
    for (version, more) in
        [(SignatureVersion::V1, ""), (SignatureVersion::V4, "signature = 'v4'\nregion = 'cn-shanghai'")]
    {
        let topic = format!("mns.{version:?}");
        kafka.create_topic(&topic, 1, &[]).await;
        let mns = queue(Duration::from_secs(30));
        let config = config(&mns, kafka.brokers(), &topic).set(&format!("[inputs.queue]\n{more}"));
        let bridge = TestBridge::start_connected(&config).await;
        mns.put_all(QUEUE, (0..100).map(|number| callback(&format!("v{number}"))));
        emptied(&mns).await;
        assert_eq!(kafka.consume(&topic, 100, SOON).await.len(), 100);
        assert_eq!(outcome(&bridge, "published"), 100.0);
        let requests = mns.requests();
        assert!(requests.iter().all(|request| request.signed == Some((Mns::KEY_ID.to_owned(), version))));
        let deletes = mns.count(Operation::BatchDeleteMessage) + mns.count(Operation::DeleteMessage);
        assert!(deletes < 40, "{deletes} requests for 100 deletes");
        assert!(mns.connections() < 30, "{} connections for {} requests", mns.connections(), requests.len());
        assert!(bridge.metric(r#"apsara_bridge_last_event_timestamp_seconds{input="queue"}"#) > 1.7e9);
        assert_eq!(bridge.stop().await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_event_by_http_and_by_queue_in_every_shape_is_published_once() {
    let kafka = Kafka::shared().await;
    kafka.create_topic("mns.once", 1, &[]).await;
    let mns = queue(Duration::from_secs(30));
    let bridge = TestBridge::start_connected(&config(&mns, kafka.brokers(), "mns.once")).await;
    let plain = callback("once");
    assert_eq!(bridge.post(plain.clone()).await.status.as_u16(), 200);
    let quoted = serde_json::to_string(&plain).expect("JSON");
    let shapes = [
        plain.clone(),
        STANDARD.encode(&plain),
        format!(r#"{{"TopicOwner":"1","TopicName":"t","SubscriptionName":"s","Message":{quoted}}}"#),
        format!("<Notification xmlns='u'><TopicName>t</TopicName><Message>{plain}</Message></Notification>"),
    ];
    mns.put_all(QUEUE, shapes);
    emptied(&mns).await;
    assert_eq!(outcome(&bridge, "duplicate"), 4.0);
    let other = STANDARD.encode(callback("other"));
    mns.put(QUEUE, other);
    emptied(&mns).await;
    assert_eq!(bridge.post(callback("other")).await.status.as_u16(), 200);
    let records = kafka.consume("mns.once", 2, SOON).await;
    assert_eq!(records.len(), 2);
    assert_eq!(bridge.metric(r#"apsara_bridge_published_total{output="kafka"}"#), 2.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_extended_while_the_bus_is_down() {
    let mns = queue(Duration::from_secs(2));
    let kafka = Kafka::start(KafkaOptions::default()).await;
    kafka.create_topic("mns.lease", 1, &[]).await;
    let config = config(&mns, kafka.brokers(), "mns.lease").set("inputs.queue.visibility = '2s'");
    let bridge = TestBridge::start_connected(&config).await;
    kafka.kill();
    bridge.disconnected().await;
    let ids = mns.put_all(QUEUE, (0..20).map(|number| callback(&format!("v{number}"))));
    // Longer than three leases.
    bridge.wait_metric("apsara_bridge_mns_lease_extensions_total", |value| value >= 100.0).await;
    kafka.restart().await;
    emptied(&mns).await;
    let received = mns.received(QUEUE);
    assert!(ids.iter().all(|id| received[id] == 1), "no lease has ended: {received:?}");
    assert_eq!(kafka.consume("mns.lease", 20, SOON).await.len(), 20);
    assert_eq!(bridge.metric("apsara_bridge_mns_late_deletes_total"), 0.0);
    assert_eq!(bridge.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_is_down_does_not_slow_the_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let mns = queue(Duration::from_secs(30));
    let cluster = mock(&["one"]);
    let config = Config::http()
        .mns(&mns, QUEUE)
        .set("inputs.queue.max_in_flight = 16")
        .kafka(&cluster.bootstrap_servers())
        .output("away", "kafka", &[NOWHERE])
        .route(Route::new("all").to("kafka", "one").to("away", "other"))
        .spool(spool(&folder));
    let bridge = TestBridge::start(&config).await;
    bridge.wait_metric(r#"apsara_bridge_output_up{output="kafka"}"#, |value| value == 1.0).await;
    mns.put_all(QUEUE, (0..200).map(|number| callback(&format!("v{number}"))));
    emptied(&mns).await;
    assert_eq!(bridge.metric(r#"apsara_bridge_published_total{output="kafka"}"#), 200.0);
    assert_eq!(bridge.metric("apsara_bridge_spool_events"), 200.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_pauses_when_the_bridge_is_full() {
    let mns = queue(Duration::from_secs(30));
    let cluster = mock(&["full"]);
    let config = config(&mns, &cluster.bootstrap_servers(), "full").set("inputs.queue.max_in_flight = 32");
    let bridge = TestBridge::start_connected(&config).await;
    cluster.broker_down(1).expect("down");
    mns.put_all(QUEUE, (0..200).map(|number| callback(&format!("v{number}"))));
    bridge.wait_metric("apsara_bridge_in_flight", |value| value == 32.0).await;
    let counts = mns.counts(QUEUE);
    assert_eq!((counts.inactive, counts.active), (32, 168));
    cluster.broker_up(1).expect("up");
    emptied(&mns).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_queue_costs_one_request_per_receiver_and_poll() {
    let mns = queue(Duration::from_secs(30));
    let cluster = mock(&[]);
    let bridge = TestBridge::start_connected(&config(&mns, &cluster.bootstrap_servers(), "idle")).await;
    eventually("both poll", SOON, async || (mns.waiting() == 2).then_some(())).await;
    for round in 1..=3 {
        mns.advance(Duration::from_secs(30));
        eventually("both poll again", SOON, async || {
            (mns.waiting() == 2 && mns.count(Operation::BatchReceiveMessage) == 2 + 2 * round).then_some(())
        })
        .await;
    }
    assert_eq!(receives(&bridge, "empty"), 6.0);
    assert!(mns.count(Operation::GetQueueAttributes) >= 1);
    // A long poll without an answer does not delay the stop.
    let start = Instant::now();
    assert_eq!(bridge.stop().await, 0);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_not_a_callback_becomes_a_dead_letter_and_a_corrupted_body_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let mns = queue(Duration::from_secs(1));
    let cluster = mock(&["odd"]);
    let config = config(&mns, &cluster.bootstrap_servers(), "odd").spool(spool(&folder));
    let bridge = TestBridge::start_connected(&config).await;
    mns.put(QUEUE, "not a callback");
    emptied(&mns).await;
    assert_eq!(outcome(&bridge, "dead_lettered"), 1.0);
    assert_eq!(bridge.metric(r#"apsara_bridge_dead_letters_total{reason="not_a_callback"}"#), 1.0);
    let broken = mns.put(QUEUE, callback("broken"));
    mns.set_wrong_md5(QUEUE, &broken, true);
    let counter = r#"apsara_bridge_not_accepted_total{input="queue",reason="md5_mismatch"}"#;
    // The message may have been received before it was corrupted. Then it is published, which is also correct.
    eventually("seen", SOON, async || (bridge.metric(counter) >= 2.0 || mns.left(QUEUE).is_empty()).then_some(()))
        .await;
    mns.set_wrong_md5(QUEUE, &broken, false);
    emptied(&mns).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_not_callbacks_and_have_no_room_are_deleted_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let mns = queue(Duration::from_secs(30));
    let config = config(&mns, NOWHERE, "junk").spool(spool(&folder)).set("dead_letters.max_bytes = '100KiB'");
    let bridge = TestBridge::start(&config).await;
    for number in 0..5 {
        mns.put(QUEUE, format!("{number} is not a callback {}", "x".repeat(8 << 10)));
    }
    emptied(&mns).await;
    let of = |metric: &str| bridge.metric(&format!(r#"apsara_bridge_{metric}{{reason="not_a_callback"}}"#));
    assert_eq!((of("dead_letters_total"), of("dead_letters_not_kept_total")), (1.0, 4.0));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_received_too_often_becomes_a_dead_letter() {
    let folder = tempfile::tempdir().expect("a folder");
    let mns = queue(Duration::from_secs(1));
    // The spool has no room, so the message is refused the first time.
    let config = config(&mns, NOWHERE, "exhausted")
        .set("inputs.queue = { deadline = '1s', max_receives = 1, visibility = '1s' }")
        .spool(spool(&folder))
        .set("spool.max_bytes = '300B'");
    let bridge = TestBridge::start(&config).await;
    mns.put(QUEUE, callback("exhausted"));
    emptied(&mns).await;
    assert_eq!(bridge.metric(r#"apsara_bridge_dead_letters_total{reason="exhausted"}"#), 1.0);
    assert_eq!((outcome(&bridge, "refused"), outcome(&bridge, "dead_lettered")), (1.0, 1.0));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_messages_stay_in_the_queue_and_spooled_ones_do_not() {
    let mns = queue(Duration::from_secs(1));
    let config = config(&mns, NOWHERE, "refused").set("inputs.queue = { deadline = '1s', visibility = '1s' }");
    let bridge = TestBridge::start(&config).await;
    mns.put(QUEUE, callback("refused"));
    eventually("refused twice", SOON, async || (outcome(&bridge, "refused") >= 2.0).then_some(())).await;
    assert_eq!((mns.left(QUEUE).len(), mns.deleted(QUEUE).len()), (1, 0));
    bridge.stop().await;
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = TestBridge::start(&config.spool(spool(&folder))).await;
    emptied(&mns).await;
    assert_eq!(outcome(&bridge, "spooled"), 1.0);
    assert_eq!(bridge.metric("apsara_bridge_spool_events"), 1.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_service_are_counted_and_survived() {
    let kafka = Kafka::shared().await;
    kafka.create_topic("mns.errors", 1, &[]).await;
    let mns = queue(Duration::from_secs(30));
    let config = config(&mns, kafka.brokers(), "mns.errors").set("inputs.queue.receivers = 1");
    let bridge = TestBridge::start_connected(&config).await;
    eventually("it polls", SOON, async || (mns.waiting() == 1).then_some(())).await;
    let faults = [Fault::throttled(), Fault::bad_gateway(), Fault::code("InternalError"), Fault::Reset];
    for fault in faults {
        mns.fail_next(Operation::RECEIVES, 1, fault);
    }
    mns.put(QUEUE, callback("after-errors"));
    mns.advance(Duration::from_secs(30));
    emptied(&mns).await;
    eventually("all errors occurred", SOON, async || {
        mns.advance(Duration::from_secs(30));
        (receives(&bridge, "throttled") == 1.0 && receives(&bridge, "unavailable") == 3.0).then_some(())
    })
    .await;
    // Deletes: an answer that is lost, and a handle that the service does not accept.
    mns.fail_next(Operation::DELETES, 1, Fault::LoseAnswer);
    mns.put(QUEUE, callback("delete-answer-lost"));
    emptied(&mns).await;
    let late = mns.put_all(QUEUE, ["late-1", "late-2", "late-3"].map(callback));
    mns.fail_deletes(QUEUE, &late[1], 1, "ReceiptHandleError");
    eventually("the others are deleted", SOON, async || (mns.left(QUEUE).len() <= 1).then_some(())).await;
    mns.advance(Duration::from_secs(31));
    emptied(&mns).await;
    assert!(bridge.metric("apsara_bridge_mns_late_deletes_total") >= 1.0);
    assert_eq!(
        kafka.consume("mns.errors", 5, SOON).await.len(),
        5,
        "each one is published once, however often it was received"
    );
    // An outage of the service.
    mns.down();
    mns.up();
    mns.put(QUEUE, callback("after-outage"));
    emptied(&mns).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn misconfiguration_makes_the_bridge_unready() {
    let mns = queue(Duration::from_secs(30));
    let cluster = mock(&["mend"]);
    for code in ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "QueueNotExist"] {
        mns.fail_next(Operation::RECEIVES, usize::MAX, Fault::code(code));
        let config = config(&mns, &cluster.bootstrap_servers(), "mend");
        let bridge = TestBridge::start_connected(&config).await;
        let mut admin = Client::connect(bridge.admin).await;
        eventually("not ready", SOON, async || {
            let ready = admin.request("GET", "/readyz", "", &[]).await;
            (ready.status.as_u16() == 503 && ready.body.starts_with(b"misconfigured inputs: queue")).then_some(())
        })
        .await;
        assert!(receives(&bridge, "misconfigured") >= 1.0);
        let says_why = |state: &Value| {
            let inputs = state["inputs"].as_array().expect("a list");
            let input = inputs.iter().find(|input| input["state"] == "misconfigured");
            input.is_some_and(|input| input["message"].as_str().is_some_and(|why| why.contains(code)))
        };
        page::state_with(bridge.admin, "the reason of an input", says_why).await;
        let requests = mns.count(Operation::BatchReceiveMessage);
        assert!(requests < 20, "retried slowly: {requests}");
        mns.heal();
        bridge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_keys_are_sent_with_their_token_and_a_wrong_clock_is_reported() {
    let kafka = Kafka::shared().await;
    kafka.create_topic("mns.token", 1, &[]).await;
    let mns = queue(Duration::from_secs(30));
    mns.set_keys(&[Key::with_token("STS.1", "secret", "a+token/=")]);
    mns.set_clock_offset(120);
    let credentials = "{ access_key_id = 'STS.1', access_key_secret = 'secret', security_token = 'a+token/=' }";
    let config = config(&mns, kafka.brokers(), "mns.token").set(&format!("inputs.queue.credentials = {credentials}"));
    let bridge = TestBridge::start_connected(&config).await;
    mns.put(QUEUE, callback("token"));
    emptied(&mns).await;
    let offset = bridge.metric(&format!(r#"apsara_bridge_mns_clock_offset_seconds{{queue="{QUEUE}"}}"#));
    assert!((115.0..=121.0).contains(&offset), "{offset}");
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_and_deletes_messages_in_flight() {
    let mns = queue(Duration::from_secs(30));
    let cluster = mock(&["stop"]);
    let config = config(&mns, &cluster.bootstrap_servers(), "stop");
    let mut bridge = TestBridge::start_connected(&config).await;
    mns.put(QUEUE, callback("first"));
    emptied(&mns).await;
    cluster.broker_round_trip_time(1, Duration::from_millis(500)).expect("set");
    let ids = mns.put_all(QUEUE, (0..16).map(|number| callback(&format!("v{number}"))));
    bridge.wait_metric("apsara_bridge_in_flight", |value| value > 0.0).await;
    bridge.begin_stop();
    assert_eq!(bridge.stop().await, 0);
    let received = mns.received(QUEUE);
    let deleted = mns.deleted(QUEUE);
    for id in ids {
        assert_eq!(
            deleted.contains(&id),
            received.contains_key(&id),
            "received messages are deleted, the others are still there"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chain_finds_keys_of_the_environment_a_service_account_and_an_instance() {
    use axum::routing::{get, put};
    let folder = tempfile::tempdir().expect("a folder");
    let token = folder.path().join("token");
    std::fs::write(&token, "the-token\n").expect("written");
    let key = |id: &str| {
        serde_json::json!({
            "AccessKeyId": id, "AccessKeySecret": "secret", "SecurityToken": "session", "Code": "Success",
            "Expiration": "2999-01-01T00:00:00Z",
        })
    };
    let (oidc, instance) =
        (serde_json::json!({ "Credentials": key("STS.oidc") }).to_string(), key("STS.instance").to_string());
    let services = axum::Router::new()
        .route("/", get(move || async move { oidc }))
        .route("/latest/api/token", put(|| async { "metadata" }))
        .route("/latest/meta-data/ram/security-credentials/", get(|| async { "role" }))
        .route("/latest/meta-data/ram/security-credentials/role", get(move || async move { instance }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, services).await });
    let token = token.display().to_string();
    let ways: [(&str, Vec<(&str, &str)>); 3] = [
        (
            "STS.env",
            vec![
                ("ALIBABA_CLOUD_ACCESS_KEY_ID", "STS.env"),
                ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret"),
                ("ALIBABA_CLOUD_SECURITY_TOKEN", "session"),
            ],
        ),
        (
            "STS.oidc",
            vec![
                ("ALIBABA_CLOUD_ROLE_ARN", "acs:ram::1:role/bridge"),
                ("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "acs:ram::1:oidc-provider/ack"),
                ("ALIBABA_CLOUD_OIDC_TOKEN_FILE", &token),
                ("ALIBABA_CLOUD_STS_ENDPOINT", &address),
            ],
        ),
        ("STS.instance", vec![("ALIBABA_CLOUD_ECS_METADATA_SERVICE_ENDPOINT", &address)]),
    ];
    for (id, variables) in ways {
        let mns = queue(Duration::from_secs(30));
        mns.set_keys(&[Key::with_token(id, "secret", "session")]);
        mns.put(QUEUE, callback("chain"));
        let config = Config::new()
            .mns(&mns, QUEUE)
            .without("inputs.queue.credentials")
            .output("console", "console", &[""; 0])
            .route(Route::new("all").set("to = { output = 'console' }"));
        let bridge = Program::launch(None, &folder.path().join(id), config, |command| {
            let known = ["ACCESS_KEY_ID", "ACCESS_KEY_SECRET", "SECURITY_TOKEN", "ROLE_ARN", "OIDC_PROVIDER_ARN"];
            for name in known {
                command.env_remove(format!("ALIBABA_CLOUD_{name}"));
            }
            command.envs(variables);
        });
        emptied(&mns).await;
        let log = bridge.process().log();
        assert!(log.contains(r#""subject":"chain""#), "{log}");
        bridge.stop();
    }
}

#[test]
fn check_reports_errors_with_key_and_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("bridge.toml");
    let text = "[inputs.queue]\nkind = 'mns'\nendpoint = 'mns.aliyuncs.com/queues'\nqueue = '-media_'\nwait = '31s'\n\
                visibility = '1s'\nreceivers = 0\nsignature = 'v4'\n\
                credentials = { access_key_id = 'id', access_key_secret = { env = 'APSARA_TEST_UNSET' } }\n\
                [outputs.console]\nkind = 'console'\n[[routes]]\nname = 'all'\nto = { output = 'console' }\n\
                [delivery]\ndeadline = '2s'\n";
    std::fs::write(&file, text).expect("written");
    let mut command = program::command(&["check", "--config"]);
    command.arg(&file).env("ALIBABA_CLOUD_ROLE_ARN", "acs:ram::1:role/bridge");
    let (code, _, told) = program::run(command);
    assert_eq!(code, 2);
    for expected in [
        "inputs.queue.endpoint: invalid endpoint `mns.aliyuncs.com/queues`",
        "inputs.queue.queue: invalid name `-media_`",
        "inputs.queue.wait: 31s is out of range: expected whole seconds from 1s to 30s",
        "inputs.queue.visibility: 1s is shorter than delivery.deadline (2s)",
        "inputs.queue.receivers: 0 is out of range",
        "inputs.queue.region: needed for signature = \"v4\"",
        "inputs.queue.credentials: set here and by ALIBABA_CLOUD_ROLE_ARN in the environment",
        "inputs.queue.credentials.access_key_secret: environment variable APSARA_TEST_UNSET of a secret is not set",
    ] {
        assert!(told.contains(expected), "{expected}\nis not in\n{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_context_of_a_message_is_passed_on() {
    let kafka = Kafka::shared().await;
    kafka.create_topic("mns.trace", 1, &[]).await;
    let mns = queue(Duration::from_secs(30));
    let bridge = TestBridge::start_connected(&config(&mns, kafka.brokers(), "mns.trace")).await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let extra = format!(
        "<SystemProperties><SystemPropertyValue><Name>traceparent</Name><Type>STRING</Type>\
         <Value>{traceparent}</Value></SystemPropertyValue></SystemProperties>"
    );
    mns.put(QUEUE, Put { extra, ..Put::from(callback("trace").as_str()) });
    emptied(&mns).await;
    let records = kafka.consume("mns.trace", 1, SOON).await;
    let envelope = records[0].payload.as_deref().expect("a value");
    let event: serde_json::Value = serde_json::from_slice(envelope).expect("JSON");
    assert_eq!(event["traceparent"], traceparent);
    bridge.stop().await;
}
