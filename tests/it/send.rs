//! `send`: which callbacks it posts, how it tries them as Alibaba does, loads, and queues.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::bridge::{KEY, TestBridge, URL};
use crate::support::config::Config;
use crate::support::http_receiver::{Receiver, Reply};
use crate::support::kafka::mock;
use crate::support::mns::queue::QueueAttributes;
use crate::support::mns::{Mns, MnsOptions, Operation};
use crate::support::program::{self, command};
use crate::support::wait::SOON;
use crate::support::{blocking, eventually, free_port};

type Ended = (i32, String, String);

/// Runs `send`, with the callback key and an access key in the environment.
async fn send(arguments: &[&str]) -> Ended {
    send_with_secret(Mns::KEY_SECRET, arguments).await
}

async fn send_with_secret(secret: &str, arguments: &[&str]) -> Ended {
    let mut command = command(&["send"]);
    command.args(arguments).env("CALLBACK_KEY", KEY);
    command.env("ALIBABA_CLOUD_ACCESS_KEY_ID", Mns::KEY_ID).env("ALIBABA_CLOUD_ACCESS_KEY_SECRET", secret);
    command.stdin(std::process::Stdio::null());
    blocking(move || program::run(command)).await
}

async fn bridge(topic: &str) -> (TestBridge, impl Sized) {
    let cluster = mock(&[topic]);
    let config = Config::http().kafka(&cluster.bootstrap_servers()).to("kafka", topic);
    (TestBridge::start_connected(&config).await, cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_of_a_type_and_outcome_is_posted_with_an_id_of_its_own() {
    let receiver = Receiver::start().await;
    receiver.answer(Reply::status(200));
    let url = receiver.url();
    let (code, out, error) = send(&[&url, "--type", "ProduceMediaComplete", "--status", "failure"]).await;
    assert_eq!((code, out.as_str(), error.as_str()), (0, "answered with 200\n", ""));
    let ims = ["--type", "FileUploadComplete", "--dialect", "ims", "--key-env", "CALLBACK_KEY"];
    assert_eq!(send(&[&[url.as_str()], &ims[..]].concat()).await.0, 0);
    assert_eq!(send(&[&url, "--fixture", "vod-SnapshotComplete-docs2021"]).await.0, 0);
    let events = receiver.events();
    let body = |index: usize| serde_json::from_slice::<Value>(&events[index].body).expect("JSON");
    let is_new = |id: &Value| id.as_str().is_some_and(|id| id.starts_with("apsara-bridge-send-"));
    assert_eq!((&body(0)["EventType"], &body(0)["Status"]), (&"ProduceMediaComplete".into(), &"fail".into()));
    assert!(is_new(&body(0)["MediaId"]), "{}", body(0));
    assert!(events[0].header("x-vod-signature").is_none(), "without a key there is no signature");
    assert!(is_new(&body(1)["MessageBody"]["MediaId"]), "{}", body(1));
    assert!(events[1].header("x-ice-signature").is_some() && events[1].header("x-ice-timestamp").is_some());
    assert_eq!(body(2)["EventType"], "SnapshotComplete");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_together_is_wrong_usage() {
    let local = format!("http://127.0.0.1:{}/callbacks", free_port());
    let remote = "https://media.example.com/callbacks";
    for (arguments, expected) in [
        (&[local.as_str(), "--type", "TranscodComplete"][..], "did you mean TranscodeComplete?"),
        (
            &[&local, "--type", "TranscodeComplete", "--status", "canceled"],
            "TranscodeComplete has no status canceled; it has success, partial, failure",
        ),
        (&[&local, "--status", "failed"], "possible values: success, skipped, progress, "),
        (&[&local, "--dialect", "mps"], "possible values: vod, ims"),
        (&[&local, "--fixture", "vod-Transcode"], "there is no sample `vod-Transcode`"),
        (&[&local, "callback.json", "--type", "TranscodeComplete"], "cannot be used with"),
        (&["127.0.0.1:8080"], "invalid target `127.0.0.1:8080`: expected http://, https:// or mns://"),
        (&[remote, "--count", "2"], "media.example.com is not this machine: add --allow-remote"),
        (&[remote, "--rate", "1"], "add --allow-remote"),
        (&["mns://1.mns.cn-shanghai.aliyuncs.com/q", "--count", "2"], "add --allow-remote"),
        (&[&local, "--rate", "0"], "expected a number from 0.001 to 1000000"),
        (&[&local, "--count", "0"], "0 is not in 1.."),
        (&[&local, "--concurrency", "2"], "--concurrency needs --count or --rate"),
        (&["mns://127.0.0.1:1/q", "--key-env", "CALLBACK_KEY"], "--key-env is for targets with http://"),
        (&["mns://127.0.0.1:1"], "expected mns://HOST/QUEUE"),
        (&["http://127.0.0.1:99999/callbacks"], "invalid port in `127.0.0.1:99999`"),
        (&["http://bridge.localhost:1/", "--count", "2"], "add --allow-remote"),
        (&[&local, "--metrics", "https://127.0.0.1:1/metrics"], "expected http://host:port/metrics"),
        (&[&local, "--metrics", "http://127.0.0.1:99999/metrics"], "invalid port"),
        (&[&local, "--key-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
        (&[&local, "--key-file", "/nonexistent"], "/nonexistent"),
        (&[&local, "nonexistent.json"], "nonexistent.json cannot be read"),
    ] {
        let (code, out, error) = send(arguments).await;
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {error}");
        assert!(error.contains(expected), "{expected} is not in\n{error}");
    }
}

/// When a request came, and its body.
type Received = (Instant, Vec<u8>);

/// Answers one connection after the other: with a status, or not at all. Gives the bodies and when they came.
fn answers(statuses: Vec<Option<u16>>) -> (String, JoinHandle<Vec<Received>>) {
    let listener = TcpListener::bind(("127.0.0.1", free_port())).expect("the port is free");
    let url = format!("http://{}/callbacks", listener.local_addr().expect("bound"));
    let thread = std::thread::spawn(move || {
        let mut unanswered: Vec<TcpStream> = Vec::new();
        let answer = |status: Option<u16>| {
            let (mut stream, _) = listener.accept().expect("a connection");
            let came = Instant::now();
            let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
            let lines = reader.by_ref().lines().map(|line| line.expect("a head"));
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let length =
                head.iter().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            let mut body = vec![0; length.expect("a length")];
            reader.read_exact(&mut body).expect("a body");
            match status {
                Some(status) => {
                    let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                    stream.write_all(answer.as_bytes()).expect("written");
                }
                None => unanswered.push(stream),
            }
            (came, body)
        };
        statuses.into_iter().map(answer).collect()
    });
    (url, thread)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_is_tried_as_alibaba_does() {
    let (url, received) = answers(vec![Some(503), None, Some(200)]);
    let (code, out, error) = send(&[&url, "--dialect", "ims", "--retry"]).await;
    assert_eq!((code, out.as_str()), (0, "answered with 200\n"), "{error}");
    let tries: Vec<&str> = error.lines().collect();
    let no_answer = format!("try 2: {url}: no answer in time");
    assert_eq!(tries, ["try 1: answered with 503 Service Unavailable", &no_answer, "try 3: answered with 200"]);
    let received = received.join().expect("three requests");
    let [(first, body), (second, again), (third, _)] = &received[..] else { panic!("{} requests", received.len()) };
    assert_eq!(body, again, "a retry repeats the callback");
    assert!(second.duration_since(*first) >= Duration::from_secs(1));
    assert!(third.duration_since(*second) >= Duration::from_secs(4), "IMS waits 3 s for an answer, and 1 s more");

    let (url, received) = answers(vec![Some(301), Some(204), Some(500)]);
    let (code, out, error) = send(&[&url, "--retry"]).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        error.contains("try 2: answered with 204") && error.ends_with("answered with 500 Internal Server Error\n"),
        "{error}"
    );
    assert_eq!(received.join().expect("three requests").len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_posts_different_callbacks_and_reports_answers_and_latencies() {
    let (bridge, _cluster) = bridge("load").await;
    let target = format!("http://{}/callbacks", bridge.input);
    let metrics = format!("http://{}/metrics", bridge.admin);
    let signed = [target.as_str(), "--url", URL, "--key-env", "CALLBACK_KEY", "--metrics", &metrics];
    let load = ["--count", "200", "--concurrency", "8", "--type", "TranscodeComplete"];
    let (code, out, error) = send(&[&signed[..], &load].concat()).await;
    assert_eq!((code, error.as_str()), (0, ""), "no progress without a terminal");
    for expected in ["200 callbacks in ", "\n200     200\n", "latency", "99.9%", "and counted: 0 before, 200 after\n"] {
        assert!(out.contains(expected), "{expected:?} is not in\n{out}");
    }
    assert_eq!(bridge.outcomes("http", "published"), 200.0, "none was a repeat");

    let started = Instant::now();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/dialect/samples/ims-SmartJobComplete.json");
    let (code, out, error) = send(&[&signed[..5], &[file, "--rate", "50", "--count", "51"]].concat()).await;
    assert_eq!(code, 0, "{error}");
    assert!(started.elapsed() >= Duration::from_secs(1) && out.contains("51 callbacks in "), "{out}");
    assert_eq!(bridge.outcomes("http", "published"), 251.0, "copies of a file differ too");

    let (code, out, error) = send(&[&target, "--count", "3"]).await;
    assert_eq!((code, error.as_str()), (1, "apsara-bridge: 3 of 3 callbacks were not accepted\n"));
    assert!(out.contains("\n401     3          answered with 401 Unauthorized: {"), "{out}");
    let closed = format!("http://127.0.0.1:{}/", free_port());
    let (code, out, _) = send(&[&closed, "--count", "2"]).await;
    assert!(code == 1 && out.contains("no connection  2 "), "{out}");
    assert_eq!(bridge.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_load_with_its_report() {
    let receiver = Receiver::start().await;
    receiver.answer(Reply::status(200));
    let mut command = command(&["send", &receiver.url(), "--rate", "100"]);
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("send.log");
    command.stdin(std::process::Stdio::null());
    let process = crate::support::process::Process::start("send", &command, &log, None);
    eventually("callbacks", SOON, async || (receiver.events().len() > 20).then_some(())).await;
    process.signal("INT");
    assert_eq!(process.wait(SOON), Some(130), "{}", process.log());
    let report = process.log();
    assert!(report.contains(" callbacks in ") && report.contains("latency"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_counts_what_was_under_way() {
    let (url, _received) = answers(vec![None; 4]);
    let mut command = command(&["send", &url, "--count", "9", "--concurrency", "3"]);
    let folder = tempfile::tempdir().expect("a folder");
    command.stdin(std::process::Stdio::null());
    let process = crate::support::process::Process::start("send", &command, &folder.path().join("send.log"), None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    process.signal("INT");
    assert_eq!(process.wait(SOON), Some(130), "{}", process.log());
    assert!(process.log().contains("\nnot answered  3"), "{}", process.log());
}

/// Answers everything with 503 and a long text that controls a terminal.
fn rude() -> String {
    let listener = TcpListener::bind(("127.0.0.1", free_port())).expect("the port is free");
    let url = format!("http://{}/callbacks", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut head = BufReader::new(stream.try_clone().expect("a handle")).lines();
            let _ = head.find(|line| line.as_ref().is_ok_and(String::is_empty));
            let text = format!("\u{1b}]0;title\u{7}\u{1b}[2J{}", "A".repeat(5_000));
            let head = format!("HTTP/1.1 503 x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", text.len());
            let _ = stream.write_all((head + &text).as_bytes());
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_shortened_and_cannot_control_the_terminal() {
    let (code, out, error) = send(&[&rude(), "--retry"]).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(error.matches("503 Service Unavailable: \\u{1b}]0;title\\u{7}").count(), 4, "{error}");
    assert_eq!(error.matches("… (5014 bytes)\n").count(), 4, "{error}");
    assert!(!error.contains('\u{1b}') && error.len() < 10_000, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_of_a_load_is_printed_whatever_the_metrics_say() {
    let receiver = Receiver::start().await;
    receiver.answer(Reply::status(200));
    // The counters of a bridge that was restarted between the two requests for its metrics.
    let listener = TcpListener::bind(("127.0.0.1", free_port())).expect("the port is free");
    let metrics = format!("http://{}/metrics", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for count in [500, 3] {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut head = BufReader::new(stream.try_clone().expect("a handle")).lines();
            let _ = head.find(|line| line.as_ref().is_ok_and(String::is_empty));
            let text = format!("apsara_bridge_callbacks_total{{input=\"http\",outcome=\"published\"}} {count}\n");
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", text.len());
            stream.write_all((head + &text).as_bytes()).expect("written");
        }
    });
    let (code, out, error) = send(&[&receiver.url(), "--count", "3", "--metrics", &metrics]).await;
    assert!(code == 1 && out.contains("\n200     3\n") && out.contains("latency"), "{out}");
    assert!(error.contains("500 before, 3 after, and a bridge has restarted in between"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn callbacks_are_put_into_a_queue() {
    let mns = Mns::start(MnsOptions::default());
    mns.create_queue("media", QueueAttributes::default());
    let target = mns.endpoint().replace("http://", "mns://") + "/media";
    let cluster = mock(&["queued"]);
    let config = Config::http().mns(&mns, "media").kafka(&cluster.bootstrap_servers()).to("kafka", "queued");
    let bridge = TestBridge::start_connected(&config).await;
    let (code, out, error) = send(&[&target, "--type", "TranscodeComplete"]).await;
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(out.starts_with("put into the queue as message "), "{out}");
    let (code, out, error) = send(&[&target, "--count", "20"]).await;
    assert!(code == 0 && out.contains("in the queue  20"), "{out}{error}");
    eventually("the events", SOON, async || (bridge.outcomes("queue", "published") == 21.0).then_some(())).await;
    assert_eq!(mns.count(Operation::SendMessage), 21);

    let (code, _, error) = send_with_secret("another", &[&target]).await;
    assert!(code == 1 && error.contains("not put into the queue: SignatureDoesNotMatch (403)"), "{error}");
    assert!(!error.contains("another"));
    let (code, _, error) = send(&[&target.replace("/media", "/other")]).await;
    assert!(code == 1 && error.contains("QueueNotExist (404)"), "{error}");
    assert_eq!(bridge.stop().await, 0);
}
