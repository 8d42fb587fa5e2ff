//! `demo`: the whole path of a callback, without anything installed.
//!
//! The broker is librdkafka's mock cluster inside this process; everything else is real: the service with its HTTP
//! input and signatures, and the consumer that reads the topics back.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use time::OffsetDateTime;
use tokio::net::TcpStream;

use super::terminal::{fail, print, table};
use crate::config::{self, Layer};
use crate::dialect::{Catalogue, Dialect, Normalizer, Origin, SAMPLES};
use crate::event::{Attribute, DEFAULT_TYPE_PREFIX};
use crate::input::http::signature::signed_headers;
use crate::service::Service;
use crate::telemetry::logs;

/// The URL as it would be entered at Alibaba. It is signed; the request goes to another address.
const URL: &str = "https://media.example.com/callbacks";

/// The key as it would be entered at Alibaba.
const KEY: &str = "DemoKey123";

/// The topics, and how many partitions each has.
const TOPICS: [&str; 3] = ["media.vod", "media.ims", "media.failed"];
const PARTITIONS: i32 = 3;

/// The longest time to connect, and to read the records.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Runs until Ctrl-C, so that you can read the topics with any Kafka client.

Examples:
  apsara-bridge demo
  apsara-bridge demo --once      exit after the table, with 0 if all events arrived
")]
pub(super) struct Demo {
    /// Exit after the table. The exit code is 0 if all events arrived.
    #[arg(long)]
    once: bool,
}

impl Demo {
    pub(super) fn run(self) -> ExitCode {
        logs::start(logs::Format::Text, "warn");
        let runtime = match tokio::runtime::Runtime::new() {
            Ok(runtime) => runtime,
            Err(error) => return fail(format!("the runtime cannot be started: {error}")),
        };
        let cluster = match MockCluster::new(1) {
            Ok(cluster) => cluster,
            Err(error) => return fail(format!("the mock cluster cannot be started: {error}")),
        };
        for topic in TOPICS {
            if let Err(error) = cluster.create_topic(topic, PARTITIONS, 1) {
                return fail(format!("topic {topic} cannot be created: {error}"));
            }
        }
        match runtime.block_on(show(&cluster.bootstrap_servers(), self.once)) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => fail("not every callback arrived"),
            Err(error) => fail(error),
        }
    }
}

/// The configuration of the demo, as a user would write it.
fn configuration(brokers: &str) -> String {
    format!(
        r#"
        [inputs.http]
        kind = "http"
        listen = "127.0.0.1:0"
        [[inputs.http.endpoints]]
        path = "/callbacks"
        urls = ["{URL}"]
        keys = ["{KEY}"]

        [outputs.kafka]
        kind = "kafka"
        brokers = ["{brokers}"]

        [[routes]]
        name = "failures"
        match = {{ status = ["failure", "partial"] }}
        to = {{ output = "kafka", topic = "media.failed" }}
        continue = true

        [[routes]]
        name = "everything"
        to = {{ output = "kafka", topic = "media.{{dialect}}" }}

        [spool]
        enabled = false

        [admin]
        listen = "127.0.0.1:0"
        "#
    )
}

/// What a sample should become.
struct Expected {
    name: &'static str,
    id: String,
    r#type: String,
    status: String,
    subject: String,
    answer: StatusCode,
    took: Duration,
}

/// Where a record was found.
struct Found {
    topic: String,
    partition: i32,
    offset: i64,
}

/// Runs the demo; true when every sample arrived.
async fn show(brokers: &str, once: bool) -> Result<bool, String> {
    let layer = Layer::Text("demo".to_owned(), configuration(brokers));
    let loaded = config::load(&[layer])
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let service = Service::start(loaded.settings).await.map_err(|error| error.to_string())?;
    let input = service.input_address("http").ok_or("the demo has no input")?;
    let admin = service.admin_address();
    let bridge = service.bridge().clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(service.run(async { drop(stopped.await) }, std::future::pending()));
    let start = Instant::now();
    while !bridge.is_connected() {
        if start.elapsed() > MAX_WAIT {
            return Err("the producer does not find the mock cluster".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    eprintln!("Posting {} sample callbacks, signed, to http://{input}/callbacks …\n", SAMPLES.len());
    let posted = post_samples(input).await?;
    let expected: usize = posted.iter().map(|sample| 1 + usize::from(goes_to_failed(&sample.status))).sum();
    let brokers_to_read = brokers.to_owned();
    let mut found = tokio::task::spawn_blocking(move || read_back(&brokers_to_read, expected))
        .await
        .map_err(|error| error.to_string())??;
    let (text, arrived) = report(&posted, &mut found);
    print(text);
    let all = arrived == posted.len();
    print(format!("\n{arrived} of {} callbacks arrived on {}.\n", posted.len(), TOPICS.join(", ")));
    if !once {
        print(look_further(brokers, input, admin));
        let _ = tokio::signal::ctrl_c().await;
    }
    let _ = stop.send(());
    running.await.map_err(|error| error.to_string())?;
    Ok(all)
}

fn goes_to_failed(status: &str) -> bool {
    matches!(status, "failure" | "partial")
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Posts the samples as Alibaba does, one after the other on one connection.
async fn post_samples(input: SocketAddr) -> Result<Vec<Expected>, String> {
    let catalogue = Catalogue::built_in().map_err(|error| error.to_string())?;
    let normalizer = Normalizer::new(catalogue, DEFAULT_TYPE_PREFIX);
    let mut sender = connect(input).await?;
    let mut posted = Vec::new();
    for (name, body) in SAMPLES {
        let now = OffsetDateTime::now_utc();
        let event = normalizer.normalize(body, &Origin::at(now)).map_err(|error| format!("{name}: {error}"))?.event;
        let dialect = Dialect::of(body).ok_or_else(|| format!("{name}: not a callback"))?;
        let mut request =
            Request::post("/callbacks").header("host", "media.example.com").header("content-type", "application/json");
        for (name, value) in signed_headers(dialect, URL, now.unix_timestamp(), KEY) {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from_static(body))).map_err(|error| error.to_string())?;
        let start = Instant::now();
        sender.ready().await.map_err(|error| format!("{name}: {error}"))?;
        let response = sender.send_request(request).await.map_err(|error| format!("{name}: {error}"))?;
        let answer = response.status();
        let detail = response.into_body().collect().await.map_err(|error| format!("{name}: {error}"))?.to_bytes();
        let took = start.elapsed();
        if answer != StatusCode::OK {
            eprintln!("{name}: {answer} {}", String::from_utf8_lossy(&detail));
        }
        let attribute = |attribute| event.get(attribute).unwrap_or("-").to_owned();
        posted.push(Expected {
            name,
            id: event.id().to_owned(),
            r#type: attribute(Attribute::Type).trim_start_matches(DEFAULT_TYPE_PREFIX).to_owned(),
            status: attribute(Attribute::Status),
            subject: attribute(Attribute::Subject),
            answer,
            took,
        });
    }
    Ok(posted)
}

/// Reads all topics from their start until the expected number of records has arrived. Gives the records by event id.
fn read_back(brokers: &str, expected: usize) -> Result<HashMap<String, Vec<Found>>, String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "apsara-bridge-demo")
        .set("enable.auto.commit", "false")
        .create()
        .map_err(|error| format!("the consumer cannot be created: {error}"))?;
    let mut assignment = TopicPartitionList::new();
    for topic in TOPICS {
        for partition in 0..PARTITIONS {
            assignment
                .add_partition_offset(topic, partition, Offset::Beginning)
                .map_err(|error| format!("{topic}: {error}"))?;
        }
    }
    consumer.assign(&assignment).map_err(|error| format!("topics cannot be read: {error}"))?;
    let mut found: HashMap<String, Vec<Found>> = HashMap::new();
    let (start, mut count) = (Instant::now(), 0);
    while count < expected && start.elapsed() < MAX_WAIT {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        let id = message
            .headers()
            .and_then(|headers| headers.iter().find(|header| header.key == "ce_id").and_then(|header| header.value));
        count += 1;
        found.entry(String::from_utf8_lossy(id.unwrap_or_default()).into_owned()).or_default().push(Found {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
        });
    }
    // Samples with the same content have the same id. Their offsets distinguish them.
    for records in found.values_mut() {
        records.sort_by_key(|record| (record.topic == "media.failed", record.offset));
    }
    Ok(found)
}

/// The table of the records, and how many callbacks arrived at all of their topics.
fn report(posted: &[Expected], found: &mut HashMap<String, Vec<Found>>) -> (String, usize) {
    let header = ["callback", "type", "status", "subject", "topic", "partition", "offset", "answered in"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let mut arrived = 0;
    for sample in posted {
        let mut topics = vec![if sample.name.starts_with("vod") { "media.vod" } else { "media.ims" }];
        if goes_to_failed(&sample.status) {
            topics.push("media.failed");
        }
        let mut complete = sample.answer == StatusCode::OK;
        let records = found.entry(sample.id.clone()).or_default();
        for (line, topic) in topics.iter().enumerate() {
            let record = records.iter().position(|record| record.topic == *topic).map(|index| records.remove(index));
            complete &= record.is_some();
            let mut row = match line {
                0 => vec![sample.name.to_owned(), sample.r#type.clone(), sample.status.clone(), sample.subject.clone()],
                _ => vec![String::new(); 4],
            };
            row.extend(match record {
                Some(record) => [record.topic, record.partition.to_string(), record.offset.to_string()],
                None => [(*topic).to_owned(), "MISSING".to_owned(), String::new()],
            });
            if line == 0 {
                row.push(format!("{:.1} ms", sample.took.as_secs_f64() * 1000.0));
            }
            rows.push(row);
        }
        arrived += usize::from(complete);
    }
    (table(&rows), arrived)
}

fn look_further(brokers: &str, input: SocketAddr, admin: SocketAddr) -> String {
    let mut text = String::from("\nWhile this runs, you can look further:\n\n");
    let _ = write!(
        text,
        "  kcat -b {brokers} -C -t media.failed -e -f '%k  %h\\n%s\\n\\n'\n\n  \
         t=$(date +%s); curl -i http://{input}/callbacks -H \"X-VOD-TIMESTAMP: $t\" \\\n    \
         -H \"X-VOD-SIGNATURE: $(printf %s \"{URL}|$t|{KEY}\" | md5sum | cut -c1-32)\" \\\n    \
         -d '{{\"EventType\":\"FileUploadComplete\",\"EventTime\":\"2026-01-01T00:00:00Z\",\"VideoId\":\"my-video\",\"Size\":\"42\"}}'\n\n  \
         curl http://{admin}/metrics\n\nCtrl-C stops it.\n"
    );
    text
}
