//! The examples of consumers, run for real: bridges with the example configurations publish signed callbacks to a real
//! Kafka and a real NATS, and the programs of `examples/consumers` read them.
//!
//! On each bus are events of both dialects, each of them twice, because two bridges published it; types that the
//! examples do not know; and messages that are not CloudEvents. One of the bridges also got each callback twice.
//!
//! An example must
//! - handle each event once, and do what its type, status and verdict ask for;
//! - report, and acknowledge, each event of a type that it does not know and each message that is not a CloudEvent;
//! - run until SIGTERM, and then end without an error;
//! - commit a record only after it was handled, and handle after a restart only what is new;
//! - lose nothing when it is killed in the middle.
//!
//! # Layout
//!
//! - [`traffic`]: what is on the bus, and what the examples have to print about it
//! - [`example`]: the programs
//! - here: the tests, one for each bus

// Tests fail with a panic; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

mod example;
#[path = "../support/mod.rs"]
mod support;
mod traffic;

use std::path::Path;

use async_nats::jetstream;
use example::{Example, Run};
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;
use tempfile::TempDir;
use tokio::task::block_in_place;
use traffic::{Event, FOREIGN, REVIEWED, Report};

use support::bridge::{TestBridge, URL, signed_headers};
use support::config::{Config, Route};
use support::kafka::{Kafka, KafkaOptions};
use support::nats::{Nats, NatsOptions};
use support::wait::{ANSWER, SOON};
use support::{eventually, repository_text};

/// The topics of the example configuration.
const TOPICS: [&str; 2] = ["media.vod", "media.ims"];
const PARTITIONS: i32 = 2;

/// How often a consumer is frozen to see whether it has committed more than it has handled.
const SAMPLES: usize = 10;

/// The stream of the example configuration.
const STREAM: &str = "MEDIA";

/// An example configuration, with this machine's addresses and the key of the tests.
fn configuration(name: &str, key: &str, address: &str) -> Config {
    let config: Config = repository_text(&format!("config/examples/{name}.toml")).parse().expect("TOML");
    let endpoint = format!("{{ path = '/callbacks', urls = ['{URL}'], keys = ['{}'] }}", support::bridge::KEY);
    config
        .set(&format!("[outputs.{name}]\n{key} = ['{address}']"))
        .set(&format!("[inputs.http]\nlisten = '127.0.0.1:0'\nendpoints = [{endpoint}]"))
        .set("admin.listen = '127.0.0.1:0'\nspool.enabled = false")
}

/// Posts callbacks, each of them `times` times.
async fn post(bridge: &TestBridge, callbacks: &[traffic::Callback], times: usize) {
    for callback in callbacks {
        for _ in 0..times {
            let answer =
                bridge.post_with(callback.body.clone(), &signed_headers(callback.dialect.header_family())).await;
            assert_eq!(answer.status.as_u16(), 200, "{callback:?}");
        }
    }
}

/// Checks what an example printed.
fn check(name: &str, report: &Report, expected: &Report) {
    assert!(report == expected, "{name} printed\n{report:#?}\nexpected\n{expected:#?}");
}

/// Checks that an event is there exactly twice.
fn is_there_twice(events: &[Event]) {
    for event in events.iter().filter(|event| !event.is_own()) {
        let copies = events.iter().filter(|other| other.id == event.id).count();
        assert_eq!(copies, 2, "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_for_kafka_handle_each_event_once() {
    let kafka = Kafka::start(KafkaOptions::default()).await;
    for topic in TOPICS {
        kafka.create_topic(topic, PARTITIONS, &[]).await;
    }
    let structured = configuration("kafka", "brokers", kafka.brokers());
    let binary = structured.clone().set("outputs.kafka.mode = 'binary'");
    let callbacks = traffic::callbacks();
    let bridge = TestBridge::start_connected(&structured).await;
    post(&bridge, &callbacks, 2).await;
    bridge.stop().await;
    let bridge = TestBridge::start_connected(&binary).await;
    post(&bridge, &callbacks, 1).await;
    produce_others(&kafka).await;
    let (events, foreign) = on_topics(&kafka).await;
    is_there_twice(&events);
    assert_eq!(foreign, FOREIGN.len() * TOPICS.len());
    let mut expected = Report::expected(&events, foreign);

    let folder = TempDir::new().expect("the folder for temporary files is writable");
    let start = |example: Example, step: &str, group: &str| {
        let group = format!("{group}-{}", example.name());
        let database = folder.path().join(&group);
        let environment = [
            ("KAFKA_BROKERS", kafka.brokers()),
            ("KAFKA_GROUP", &group),
            ("DATABASE", database.to_str().expect("UTF-8")),
        ];
        Run::start(example, &folder.path().join(format!("{}-{step}.log", example.name())), &environment)
    };
    let start_all = |step: &str, group: &str| Example::KAFKA.map(|example| start(example, step, group));
    let caught_up = |runs: &[Run], group: &str| {
        for run in runs {
            run.wait(|| has_committed_all(&kafka, &format!("{group}-{}", run.name())).then_some(()));
        }
    };

    block_in_place(|| {
        let runs = start_all("first", "example");
        caught_up(&runs, "example");
        runs.iter().for_each(|run| check(run.name(), &run.stop(), &expected));
    });

    let new = traffic::new_callbacks("after the restart");
    post(&bridge, &new, 1).await;
    let (events, foreign) = on_topics(&kafka).await;
    let all = Report::expected(&events, foreign);
    let added = all.without(&expected);
    assert_eq!(added.handled.len(), new.len());
    block_in_place(|| {
        let runs = start_all("restarted", "example");
        caught_up(&runs, "example");
        runs.iter().for_each(|run| check(run.name(), &run.stop(), &added));
    });
    expected = all;

    // All of it comes again. The example with a database knows it although it was restarted.
    bridge.stop().await;
    let bridge = TestBridge::start_connected(&binary).await;
    post(&bridge, &callbacks, 1).await;
    bridge.stop().await;
    block_in_place(|| {
        let runs = [start(Example::Python, "again", "example")];
        caught_up(&runs, "example");
        let report = runs[0].stop();
        assert!(report.handled.is_empty(), "handled again: {:?}", report.handled);
        assert!(report.repeats > 0);
    });

    block_in_place(|| {
        let killed = Example::KAFKA.map(|example| {
            let run = start(example, "killed", "killed");
            for _ in 0..SAMPLES {
                let printed = run.report().total();
                run.wait(|| (run.report().total() > printed).then_some(()));
                run.freeze();
                let (committed, printed) = (committed(&kafka, &format!("killed-{}", run.name())), run.report().total());
                assert!(committed <= printed, "{}: {committed} committed, {printed} printed", run.name());
                run.cont();
            }
            run.kill()
        });
        // The broker waits for a killed consumer until its session has timed out.
        let runs = start_all("after-kill", "killed");
        caught_up(&runs, "killed");
        for (run, killed) in runs.iter().zip(killed) {
            println!("{}: {} events were handled before it was killed", run.name(), killed.handled.len());
            let both = killed.and(run.stop());
            if run.example() == Example::Python {
                // It prints after its transaction, so a line may be missing.
                assert_eq!(rows(&folder.path().join("killed-python")), expected.handled.values().sum::<usize>());
                assert_eq!(both.handled_again(&expected), [""; 0]);
            } else {
                assert_eq!(both.lacks(&expected), [""; 0], "{}", run.name());
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_for_jetstream_handles_each_event_once() {
    let nats = Nats::start(NatsOptions::default()).await;
    let first = configuration("nats", "servers", nats.url());
    // Its events have other subjects, so the stream does not drop them as repeats.
    let second = first.clone().routes([Route::new("again").to("nats", "media.{dialect}.again")]);
    let [first, second] = [TestBridge::start_connected(&first).await, TestBridge::start_connected(&second).await];

    let folder = TempDir::new().expect("the folder for temporary files is writable");
    let start = |step: &str, durable: &str| {
        let environment = [("NATS_URL", nats.url()), ("NATS_DURABLE", durable)];
        Run::start(Example::Go, &folder.path().join(format!("go-{step}.log")), &environment)
    };
    let caught_up = async |run: &Run, durable: &str| {
        let jetstream = nats.jetstream().await;
        eventually("all messages to be acknowledged", SOON, async || {
            assert_eq!(run.exit_code(), None, "{}", run.log());
            let consumer: jetstream::consumer::PullConsumer =
                jetstream.get_stream(STREAM).await.ok()?.get_consumer(durable).await.ok()?;
            let info = consumer.cached_info();
            (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
        })
        .await;
    };

    // It is killed while events arrive.
    let callbacks = traffic::callbacks();
    let killing = start("killed", "killed");
    let posting = async {
        post(&first, &callbacks, 2).await;
        post(&second, &callbacks, 1).await;
    };
    let handling = eventually("an event to be handled", SOON, async || {
        (!killing.report().handled.is_empty()).then(|| killing.kill())
    });
    let (killed, ()) = tokio::join!(handling, posting);
    publish_others(&nats).await;
    let (events, foreign) = in_stream(&nats).await;
    is_there_twice(&events);
    assert_eq!(foreign, FOREIGN.len());
    let expected = Report::expected(&events, foreign);
    assert!(!killed.handled.is_empty() && killed.handled.len() < expected.handled.len());
    println!("go: {} events were handled before it was killed", killed.handled.len());
    let run = start("after-kill", "killed");
    caught_up(&run, "killed").await;
    assert_eq!(killed.and(block_in_place(|| run.stop())).lacks(&expected), [""; 0]);

    let run = start("first", "example");
    caught_up(&run, "example").await;
    check("go", &block_in_place(|| run.stop()), &expected);

    let new = traffic::new_callbacks("after the restart");
    post(&first, &new, 1).await;
    let (events, foreign) = in_stream(&nats).await;
    let added = Report::expected(&events, foreign).without(&expected);
    assert_eq!(added.handled.len(), new.len());
    let run = start("restarted", "example");
    caught_up(&run, "example").await;
    check("go", &block_in_place(|| run.stop()), &added);
    first.stop().await;
    second.stop().await;
}

/// How many events a database of the example in Python has.
fn rows(database: &Path) -> usize {
    let database = rusqlite::Connection::open(database).expect("a database");
    let count: i64 = database.query_row("SELECT count(*) FROM seen_events", [], |row| row.get(0)).expect("a count");
    usize::try_from(count).expect("not negative")
}

/// Puts onto each topic what no bridge publishes.
async fn produce_others(kafka: &Kafka) {
    let producer: FutureProducer = kafka.client_config().create().expect("the settings are valid");
    for topic in TOPICS {
        for (content_type, body) in FOREIGN {
            let header = Header { key: "content-type", value: Some(content_type) };
            let headers = OwnedHeaders::new().insert(header);
            let mut record = FutureRecord::<(), [u8]>::to(topic).headers(headers);
            record.payload = body.map(str::as_bytes);
            producer.send(record, Timeout::Never).await.expect("the broker stores it");
        }
    }
    let json = OwnedHeaders::new().insert(Header { key: "content-type", value: Some("application/json") });
    for event in REVIEWED {
        let body = event.data().to_string();
        let headers = event.attributes().into_iter().fold(json.clone(), |headers, (name, value)| {
            headers.insert(Header { key: &format!("ce_{name}"), value: Some(&value) })
        });
        let record = FutureRecord::<(), String>::to(TOPICS[0]).headers(headers).payload(&body);
        producer.send(record, Timeout::Never).await.expect("the broker stores it");
    }
}

/// All events on the topics, and the number of other records.
async fn on_topics(kafka: &Kafka) -> (Vec<Event>, usize) {
    let mut records = Vec::new();
    for topic in TOPICS {
        records.extend(kafka.consume(topic, 0, SOON).await);
    }
    let events: Vec<Event> = records.iter().filter_map(Event::from_kafka).collect();
    let foreign = records.len() - events.len();
    (events, foreign)
}

/// How many records a group has committed.
fn committed(kafka: &Kafka, group: &str) -> usize {
    let offsets = offsets(kafka, group).into_iter().map(|(committed, _)| committed);
    usize::try_from(offsets.sum::<i64>()).expect("not negative")
}

/// Whether a group has committed the end of each partition.
fn has_committed_all(kafka: &Kafka, group: &str) -> bool {
    offsets(kafka, group).into_iter().all(|(committed, end)| committed == end)
}

/// For each partition, what a group has committed, and the end.
fn offsets(kafka: &Kafka, group: &str) -> Vec<(i64, i64)> {
    let mut config = kafka.client_config();
    let consumer: BaseConsumer = config.set("group.id", group).create().expect("the settings are valid");
    let mut partitions = TopicPartitionList::new();
    for topic in TOPICS {
        partitions.add_partition_range(topic, 0, PARTITIONS - 1);
    }
    let committed = consumer.committed_offsets(partitions, ANSWER).expect("the broker answers");
    let partitions = committed.elements().into_iter().map(|partition| {
        let end = consumer.fetch_watermarks(partition.topic(), partition.partition(), ANSWER);
        (partition.offset().to_raw().map_or(0, |offset| offset.max(0)), end.expect("the broker answers").1)
    });
    partitions.collect()
}

/// Puts into the stream what no bridge publishes.
async fn publish_others(nats: &Nats) {
    let jetstream = nats.jetstream().await;
    for (_, body) in FOREIGN {
        let body = body.unwrap_or_default();
        jetstream.publish("media.vod.other", body.into()).await.expect("sent").await.expect("stored");
    }
    for event in REVIEWED {
        let mut envelope = serde_json::Map::new();
        envelope.extend(event.attributes().into_iter().map(|(name, value)| (name.to_owned(), value.into())));
        envelope.insert("data".to_owned(), event.data());
        let body = serde_json::Value::Object(envelope).to_string();
        jetstream.publish("media.vod.other", body.into()).await.expect("sent").await.expect("stored");
    }
}

/// All events in the stream, and the number of other messages.
async fn in_stream(nats: &Nats) -> (Vec<Event>, usize) {
    let messages = nats.messages(STREAM, 1, SOON).await;
    let events: Vec<Event> = messages.iter().filter_map(|message| Event::from_json(&message.payload)).collect();
    let foreign = messages.len() - events.len();
    (events, foreign)
}
