//! The event stream on the admin port, and `tail`, which prints it.

use std::fmt::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use apsara_bridge::bridge::feed::{Entry, MAX_LISTENERS, RATE};
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::support::bridge::{Client, TestBridge, callback, raw, signed_headers};
use crate::support::config::{Config, Route};
use crate::support::http_receiver::{Receiver, Reply};
use crate::support::process::Process;
use crate::support::program::{Program, command, run};
use crate::support::wait::{ANSWER, SOON, let_pass};
use crate::support::{blocking, eventually, free_port, generated, not_run};

/// The promise: who watches sees an event within a second.
const SEEN: Duration = Duration::from_secs(1);

/// The promise: who reads nothing for so long loses the connection.
const NOT_READ: Duration = Duration::from_secs(10);

/// A bridge that drops all events.
fn dropping() -> Config {
    Config::http().output("console", "console", &[""; 0]).route(Route::new("all").set("drop = true"))
}

/// A reader of the stream.
pub struct Reader {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Reader {
    /// Opens a stream, and reads its greeting.
    pub async fn open(admin: SocketAddr, query: &str) -> Reader {
        Reader::over(TcpStream::connect(admin).await.expect("the bridge listens"), query).await
    }

    async fn over(mut stream: TcpStream, query: &str) -> Reader {
        let request = format!("GET /events{query} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut reader = Reader { stream, unread: Vec::new() };
        let head = reader.until(b"\r\n\r\n").await.expect("a head");
        let head = String::from_utf8(head).expect("UTF-8");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        for header in ["content-type: text/event-stream", "cache-control: no-store", "connection: close"] {
            assert!(head.contains(&format!("\r\n{header}\r\n")), "{head}");
        }
        let hello = reader.next().await.expect("a greeting");
        let expected = json!({
            "kind": "hello", "format": 1, "version": env!("CARGO_PKG_VERSION"), "type_prefix": "com.aliyun.media.",
        });
        assert_eq!(hello, expected);
        reader
    }

    async fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.unread.windows(end.len()).position(|window| window == end) {
                return Some(self.unread.drain(..at + end.len()).collect());
            }
            let read = self.stream.read_buf(&mut self.unread);
            let bytes = tokio::time::timeout(SOON, read).await.expect("a sign of life").unwrap_or(0);
            if bytes == 0 {
                return None;
            }
        }
    }

    /// The next entry; none at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            let message = String::from_utf8(self.until(b"\n\n").await?).expect("UTF-8");
            if let Some(data) = message.strip_prefix("data: ") {
                return Some(serde_json::from_str(data.trim_end()).expect("JSON on one line"));
            }
            assert!(message.starts_with(':'), "{message}");
        }
    }
}

/// The status and the body of an answer that is not a stream.
pub async fn refused(admin: SocketAddr, head: &str) -> (u16, String) {
    let answer = tokio::time::timeout(ANSWER, raw(admin, &format!("{head}connection: close\r\n\r\n"))).await;
    let answer = answer.expect("not a stream");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head[9..12].parse().expect("a status"), body.trim_end().to_owned())
}

#[tokio::test]
async fn an_entry_says_what_happened_to_an_event_and_why() {
    let receiver = Receiver::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = TestBridge::start_connected(
        &Config::http()
            .spool(folder.path())
            .http_output("web", &receiver.url())
            .route(Route::new("failures").when("status = 'failure'").set("drop = true"))
            .route(Route::new("copy").set("to = { output = 'web' }\ncontinue = true"))
            .route(Route::new("rest").set("to = [{ output = 'web' }, { output = 'web', mode = 'binary' }]"))
            .route(Route::new("never").set("drop = true")),
    )
    .await;
    let mut reader = Reader::open(bridge.admin, "").await;
    let start = Instant::now();
    assert_eq!(bridge.post(callback("m1")).await.status.as_u16(), 200);
    let entry = reader.next().await.expect("an entry");
    assert!(start.elapsed() < SEEN + ANSWER);
    assert_eq!(
        (&entry["kind"], &entry["input"], &entry["signature"]),
        (&json!("callback"), &json!("http"), &json!("valid"))
    );
    assert_eq!((&entry["outcome"], entry.get("reason"), entry.get("payload")), (&json!("published"), None, None));
    let attributes = &entry["attributes"];
    assert_eq!(attributes["type"], "com.aliyun.media.FileUploadComplete");
    assert_eq!((&attributes["subject"], &attributes["dialect"]), (&json!("m1"), &json!("vod")));
    assert_eq!((&attributes["recordedtime"], attributes["id"].as_str().map(str::len)), (&entry["time"], Some(32)));
    assert_eq!(
        entry["routes"],
        json!([
            { "name": "failures", "matched": false, "why": "status is success, not failure" },
            { "name": "copy", "matched": true },
            { "name": "rest", "matched": true },
        ]),
        "the last route is not tried"
    );
    let destinations = entry["destinations"].as_array().expect("a list");
    assert_eq!(destinations.len(), 2, "each once: {entry}");
    for destination in destinations {
        assert_eq!((&destination["output"], &destination["result"]), (&json!("web"), &json!("published")));
        assert!(destination["took_ms"].as_f64().expect("a number") <= entry["latency_ms"].as_f64().expect("a number"));
    }
    assert_eq!((&destinations[0]["route"], &destinations[1]["route"]), (&json!("copy"), &json!("rest")));

    bridge.post(callback("m1")).await;
    let repeat = reader.next().await.expect("an entry");
    assert_eq!((&repeat["outcome"], repeat.get("routes")), (&json!("duplicate"), None));
    assert_eq!(repeat["attributes"]["id"], attributes["id"]);

    receiver.answer(Reply::Status(400, Vec::new(), ""));
    bridge.post(callback("m2")).await;
    let letter = reader.next().await.expect("an entry");
    assert_eq!((&letter["outcome"], &letter["reason"]), (&json!("dead_lettered"), &json!("rejected")));
    assert_eq!(
        (&letter["destinations"][0]["result"], &letter["destinations"][0]["error"]),
        (&json!("dead_lettered"), &json!("rejected"))
    );

    receiver.stop().await;
    bridge.post(callback("m3")).await;
    let spooled = reader.next().await.expect("an entry");
    assert_eq!(spooled["outcome"], "spooled");
    assert_eq!(
        (&spooled["destinations"][0]["result"], &spooled["destinations"][0]["error"]),
        (&json!("spooled"), &json!("unavailable"))
    );
    // What was spooled can become a dead letter later.
    receiver.restart().await;
    bridge.post(callback("m4")).await;
    let mut kinds = Vec::new();
    while !kinds.contains(&"dead_letter".to_owned()) {
        let entry = reader.next().await.expect("an entry");
        if entry["kind"] == "dead_letter" {
            assert_eq!((&entry["reason"], &entry["output"]), (&json!("rejected"), &json!("web")));
            assert!(["m3", "m4"].contains(&entry["attributes"]["subject"].as_str().expect("a subject")), "{entry}");
        }
        kinds.push(entry["kind"].as_str().expect("a word").to_owned());
    }
    bridge.stop().await;
}

#[tokio::test]
async fn what_the_spool_publishes_later_is_shown() {
    let receiver = Receiver::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = TestBridge::start_connected(
        &Config::http()
            .spool(folder.path())
            .http_output("web", &receiver.url())
            .route(Route::new("all").set("to = { output = 'web' }")),
    )
    .await;
    receiver.stop().await;
    let mut reader = Reader::open(bridge.admin, "").await;
    let mut filtered = Reader::open(bridge.admin, "?subject=m2").await;
    let mut ids = Vec::new();
    for subject in ["m1", "m2"] {
        bridge.post(callback(subject)).await;
        let entry = reader.next().await.expect("an entry");
        assert_eq!((&entry["kind"], &entry["outcome"]), (&json!("callback"), &json!("spooled")));
        ids.push(entry["attributes"]["id"].clone());
    }
    receiver.restart().await;
    for id in &ids {
        let entry = reader.next().await.expect("an entry");
        assert_eq!((&entry["kind"], &entry["attributes"]["id"]), (&json!("published"), id));
        assert_eq!((&entry["route"], &entry["output"]), (&json!("all"), &json!("web")));
        assert!(entry["topic"].is_string() && entry["latency_ms"].as_f64().expect("a number") > 0.0, "{entry}");
    }
    for kind in ["callback", "published"] {
        let entry = filtered.next().await.expect("an entry");
        assert_eq!((&entry["kind"], &entry["attributes"]["id"]), (&json!(kind), &ids[1]));
    }
    bridge.stop().await;
}

#[tokio::test]
async fn what_is_not_accepted_is_shown_with_its_reason() {
    let bridge = TestBridge::start(&dropping()).await;
    let mut reader = Reader::open(bridge.admin, "").await;
    let mut filtered = Reader::open(bridge.admin, "?subject=wanted").await;
    bridge.post_with(callback("a"), &[]).await;
    let entry = reader.next().await.expect("an entry");
    assert_eq!(
        (&entry["kind"], &entry["reason"], &entry["path"]),
        (&json!("rejection"), &json!("not_signed"), &json!("/callbacks"))
    );
    assert!(entry["message"].as_str().expect("a text").contains("X-VOD-SIGNATURE"), "{entry}");
    Client::connect(bridge.input).await.request("POST", "/wrong?secret=1", "", &[]).await;
    let entry = reader.next().await.expect("an entry");
    assert_eq!((&entry["reason"], &entry["path"]), (&json!("no_such_path"), &json!("/wrong")), "without the query");
    bridge.post("no JSON").await;
    let entry = reader.next().await.expect("an entry");
    assert_eq!(
        (&entry["kind"], &entry["outcome"], entry.get("attributes")),
        (&json!("callback"), &json!("not_accepted"), None)
    );
    assert!(entry["reason"].as_str().expect("a text").starts_with("not_a_callback: "), "{entry}");
    assert_eq!(entry.get("payload"), None);
    bridge.post(callback("wanted")).await;
    assert_eq!(filtered.next().await.expect("an entry")["attributes"]["subject"], "wanted", "and nothing before it");
    bridge.stop().await;
}

#[tokio::test]
async fn payloads_are_shown_only_if_that_is_configured() {
    let bridge = TestBridge::start(&dropping().set("admin.show_payloads = true")).await;
    let mut reader = Reader::open(bridge.admin, "").await;
    bridge.post(callback("m1").replace(r#""42""#, "1.10")).await;
    let entry = reader.next().await.expect("an entry");
    assert_eq!((&entry["payload"]["mediaId"], entry["payload"]["size"].to_string()), (&json!("m1"), "1.1".to_owned()));
    bridge.post("a\nb\u{1b}").await;
    assert_eq!(reader.next().await.expect("an entry")["payload"], "a\nb\u{1b}");
    bridge.post(callback(&"x".repeat(70_000))).await;
    let large = reader.next().await.expect("an entry");
    assert_eq!(large.get("payload"), None);
    assert_eq!(large["attributes"]["subject"].as_str().map(str::len), Some(1024));
    bridge.stop().await;
}

#[tokio::test]
async fn only_this_machine_may_read_and_no_web_site() {
    let bridge = TestBridge::start(&dropping().set("admin.listen = '0.0.0.0:0'")).await;
    let local = SocketAddr::from(([127, 0, 0, 1], bridge.admin.port()));
    let get = "GET /events HTTP/1.1\r\n";
    for host in ["localhost:9090", "127.0.0.1", "[::1]:9464", "LOCALHOST"] {
        let mut stream = TcpStream::connect(local).await.expect("it listens");
        stream.write_all(format!("{get}host: {host}\r\n\r\n").as_bytes()).await.expect("written");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200", "{host}");
    }
    for headers in [
        "host: evil.example\r\n",
        "host: localhost.evil.example:9464\r\n",
        "host: localhost\r\norigin: http://evil.example\r\n",
        "host: localhost\r\nsec-fetch-site: cross-site\r\n",
        "host: localhost\r\nx-forwarded-for: 10.0.0.1\r\n",
    ] {
        let (status, why) = refused(local, &format!("{get}{headers}")).await;
        assert!(status == 403 && !why.is_empty(), "{headers}: {status} {why}");
    }
    assert_eq!(refused(local, get).await.0, 400, "no host");
    assert_eq!(refused(local, "GET /events HTTP/1.0\r\n").await.0, 403, "HTTP/1.0 needs no host, the stream does");
    assert_eq!(refused(local, &format!("{get}host: localhost\r\nhost: localhost\r\n")).await.0, 400);
    assert_eq!(refused(local, "GET http://evil.example/events HTTP/1.1\r\nhost: localhost\r\n").await.0, 403);
    let (status, why) = refused(local, "GET /events?staus=x HTTP/1.1\r\nhost: localhost\r\n").await;
    assert_eq!((status, why.as_str()), (400, "`staus`: unknown attribute; did you mean `status`?"));
    assert_eq!(refused(local, "POST /events HTTP/1.1\r\nhost: localhost\r\n").await.0, 405);
    let head =
        Client::connect(local).await.request("HEAD", "/events", "", &[("host".into(), "localhost".into())]).await;
    assert_eq!(head.status.as_u16(), 400, "two hosts");
    // No packet is sent by this; it finds the address of this machine in its network.
    let own = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    match own {
        Ok(own) => {
            let remote = SocketAddr::new(own.ip(), local.port());
            let (status, why) = refused(remote, &format!("{get}host: localhost\r\n")).await;
            assert!(status == 403 && why.contains("kubectl port-forward"), "{status} {why}");
            // So do sidecars of service meshes connect, for peers elsewhere.
            let sidecar = TcpSocket::new_v4().expect("a socket");
            sidecar.bind(([127, 0, 0, 6], 0).into()).expect("bound");
            match sidecar.connect(remote).await {
                Ok(mut stream) => {
                    stream.write_all(format!("{get}host: localhost\r\n\r\n").as_bytes()).await.expect("written");
                    let mut answer = [0; 12];
                    stream.read_exact(&mut answer).await.expect("an answer");
                    assert_eq!(&answer, b"HTTP/1.1 403");
                }
                Err(error) => not_run(&format!("a sidecar of a service mesh: {error}")),
            }
        }
        Err(error) => not_run(&format!("a peer that is not on loopback: {error}")),
    }
    bridge.stop().await;
}

#[tokio::test]
async fn a_reload_that_changes_nothing_for_readers_ends_no_stream() {
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = started(folder.path(), dropping()).await;
    let mut reader = Reader::open(bridge.admin, "").await;
    let text = bridge.configuration().to_string();
    let reloads = r#"apsara_bridge_config_reloads_total{result="success"}"#;
    for (number, text) in
        [text.clone(), bridge.configuration().set("delivery.deadline = '2s'").to_string()].iter().enumerate()
    {
        bridge.reload(text);
        eventually("a reload", SOON, async || (bridge.metric(reloads).await > number as f64).then_some(())).await;
        bridge.post(callback(&format!("m{number}"))).await;
        assert_eq!(reader.next().await.expect("an entry")["attributes"]["subject"], format!("m{number}"));
    }
    bridge.reload(&bridge.configuration().set("admin.show_payloads = true").to_string());
    assert_eq!(reader.next().await, Some(json!({ "kind": "end", "reason": "reloaded" })));
    blocking(move || bridge.stop()).await;
}

#[tokio::test]
async fn page_decides_who_may_read() {
    let bridge = TestBridge::start(&dropping().set("admin.page = 'off'")).await;
    let (status, why) = refused(bridge.admin, "GET /events HTTP/1.1\r\nhost: localhost\r\n").await;
    assert_eq!((status, why.as_str()), (403, "the page and the event stream are switched off: admin.page is \"off\""));
    bridge.stop().await;
    let bridge = TestBridge::start(&dropping().set("admin.page = 'all'")).await;
    let mut stream = TcpStream::connect(bridge.admin).await.expect("it listens");
    let request = b"GET /events HTTP/1.1\r\nhost: bridge.example\r\nx-forwarded-for: 10.0.0.1\r\n\r\n";
    stream.write_all(request).await.expect("written");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200");
    bridge.stop().await;
}

#[tokio::test]
async fn eight_streams_are_open_and_a_place_is_free_at_once() {
    let bridge = TestBridge::start(&dropping()).await;
    let mut readers = Vec::new();
    for _ in 0..MAX_LISTENERS {
        readers.push(Reader::open(bridge.admin, "").await);
    }
    let (status, why) = refused(bridge.admin, "GET /events HTTP/1.1\r\nhost: localhost\r\n").await;
    assert!(status == 503 && why.starts_with("8 event streams are open"), "{status} {why}");
    for _ in 0..3 {
        drop(readers.pop());
        eventually("the place of a reader that has gone", ANSWER, async || {
            let mut stream = TcpStream::connect(bridge.admin).await.expect("it listens");
            stream.write_all(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("written");
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.expect("an answer");
            (&answer == b"HTTP/1.1 200").then_some(())
        })
        .await;
    }
    bridge.post(callback("a")).await;
    for reader in &mut readers {
        assert_eq!(reader.next().await.expect("an entry")["attributes"]["subject"], "a");
    }
    bridge.stop().await;
}

/// A reader that asks and reads nothing, with the smallest buffer that the system allows.
async fn stuck(admin: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(1).expect("set");
    let mut stream = socket.connect(admin).await.expect("it listens");
    stream.write_all(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("written");
    stream
}

/// Posts this many callbacks over a few connections.
async fn post_many(bridge: &TestBridge, count: usize, body: impl Fn(usize) -> String + Clone + Send + 'static) {
    const CONNECTIONS: usize = 8;
    let mut senders = JoinSet::new();
    for sender in 0..CONNECTIONS {
        let (input, body) = (bridge.input, body.clone());
        senders.spawn(async move {
            let mut client = Client::connect(input).await;
            let headers = signed_headers("VOD");
            for number in (sender..count).step_by(CONNECTIONS) {
                let answer = client.post("/callbacks", body(number), &headers).await;
                assert_eq!(answer.status.as_u16(), 200);
            }
        });
    }
    senders.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_do_not_read_delay_nobody_and_lose_their_place() {
    const LONG: usize = 1000;
    let bridge = TestBridge::start(&dropping()).await;
    // Some read nothing at all, and others stop after the greeting.
    let mut all = Vec::new();
    for number in 0..MAX_LISTENERS {
        let stream = stuck(bridge.admin);
        all.push(if number % 2 == 0 { stream.await } else { Reader::open(bridge.admin, "").await.stream });
    }
    eventually("all places to be taken", ANSWER, async || {
        let (status, _) = refused(bridge.admin, "GET /events HTTP/1.1\r\nhost: localhost\r\n").await;
        (status == 503).then_some(())
    })
    .await;
    // Each entry has several kilobytes, so that all buffers are full soon.
    post_many(&bridge, 2_000, |number| callback(&format!("{number}{}", "x".repeat(LONG)))).await;
    for path in ["/healthz", "/readyz", "/metrics"] {
        let start = Instant::now();
        let answer = Client::connect(bridge.admin).await.request("GET", path, "", &[]).await;
        assert!(answer.status.as_u16() == 200 && start.elapsed() < ANSWER, "{path}");
    }
    let lost = r#"apsara_bridge_connections_lost_total{listener="admin",reason="answer_not_read"}"#;
    let start = Instant::now();
    bridge.wait_metric(lost, |count| count == MAX_LISTENERS as f64).await;
    assert!(start.elapsed() < NOT_READ + ANSWER, "{:?}", start.elapsed());
    let mut readers = Vec::new();
    for _ in 0..MAX_LISTENERS {
        readers.push(Reader::open(bridge.admin, "").await);
    }
    bridge.stop().await;
}

/// Reads all entries up to the event of a subject, after which nothing is missing. Returns how many events came, and how
/// many are said to be missing.
async fn read_to(reader: &mut Reader, last: &str, total: u64) -> (u64, u64) {
    let (mut shown, mut missing) = (0, 0);
    let mut is_over = false;
    while !is_over || shown + missing < total {
        let entry = reader.next().await.expect("an entry");
        match entry["kind"].as_str() {
            Some("callback") => {
                shown += 1;
                is_over |= entry["attributes"]["subject"] == last;
            }
            Some("skipped") => {
                let count = |name: &str| entry[name].as_u64().expect("a number");
                assert_eq!(count("others_over_rate"), 0);
                missing += count("events_over_rate") + count("reader_slow");
            }
            _ => panic!("{entry}"),
        }
    }
    (shown, missing)
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_thousand_in_a_second_are_sampled_and_counted() {
    const MANY: usize = 4_000;
    let bridge = TestBridge::start(&dropping()).await;
    let mut reader = Reader::open(bridge.admin, "").await;
    let mut needle = Reader::open(bridge.admin, "?subject=needle").await;
    let start = Instant::now();
    post_many(&bridge, MANY, |number| {
        callback(&if number == MANY / 2 { "needle".to_owned() } else { format!("m{number}") })
    })
    .await;
    let seconds = start.elapsed().as_secs() + 2;
    assert_eq!(needle.next().await.expect("an entry")["attributes"]["subject"], "needle");
    // The last one is in a second of its own, so that it is not left out.
    let_pass(Duration::from_millis(1_100)).await;
    bridge.post(callback("last")).await;
    let (shown, missing) = read_to(&mut reader, "last", MANY as u64 + 1).await;
    assert_eq!(shown + missing, MANY as u64 + 1, "each is shown or counted");
    assert!(shown <= RATE * (seconds + 2), "{shown} in {seconds} s");
    if seconds < 4 {
        assert!(missing > 0, "{MANY} in {seconds} s");
    }
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_learns_how_much_it_missed() {
    const MANY: usize = 1_200;
    let bridge = TestBridge::start(&dropping()).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(1).expect("set");
    let mut reader = Reader::over(socket.connect(bridge.admin).await.expect("it listens"), "").await;
    post_many(&bridge, MANY, |number| callback(&format!("{number}{}", "x".repeat(1000)))).await;
    let_pass(Duration::from_millis(1_100)).await;
    let reading = tokio::spawn(async move { read_to(&mut reader, "last", MANY as u64 + 1).await });
    // It may still be too slow for the first of these.
    let found = async {
        loop {
            bridge.post(callback("last")).await;
            let_pass(Duration::from_millis(50)).await;
            if reading.is_finished() {
                return reading.await.expect("no panic");
            }
        }
    };
    let (shown, missing) = tokio::time::timeout(SOON, found).await.expect("in time");
    assert!(shown > 100 && missing > 100, "{shown} shown, {missing} missing");
    bridge.stop().await;
}

#[tokio::test]
async fn a_stop_ends_streams_and_does_not_wait_for_them() {
    let mut bridge = TestBridge::start(&dropping()).await;
    let mut reader = Reader::open(bridge.admin, "").await;
    let mut stuck_ones = Vec::new();
    for _ in 0..7 {
        stuck_ones.push(stuck(bridge.admin).await);
    }
    bridge.post(callback("a")).await;
    bridge.begin_stop();
    assert_eq!(reader.next().await.expect("an entry")["attributes"]["subject"], "a");
    assert_eq!(reader.next().await, Some(json!({ "kind": "end", "reason": "stopping" })));
    assert_eq!(reader.next().await, None);
    let start = Instant::now();
    bridge.stop().await;
    assert!(start.elapsed() < ANSWER);
}

/// `tail` in its own process.
struct Tail {
    process: Process,
    _folder: tempfile::TempDir,
}

impl Tail {
    async fn start(arguments: &[&str]) -> Tail {
        let folder = tempfile::tempdir().expect("a folder");
        let command = command(&[&["tail"], arguments].concat());
        let log = folder.path().join("tail.log");
        let process = blocking(move || Process::start("tail", &command, &log, None)).await;
        Tail { process, _folder: folder }
    }

    /// Waits until it has printed a text. Returns the line.
    async fn line(&self, text: &str) -> String {
        let what = format!("tail to print `{text}`");
        let look = async || self.process.log().lines().find(|line| line.contains(text)).map(str::to_owned);
        eventually(&what, SOON, look).await
    }

    fn ends(&self) -> Option<i32> {
        self.process.wait(SOON)
    }
}

async fn has_listener(bridge: &Program) {
    // Nothing else holds a connection of the admin address for longer than an answer.
    eventually("a listener", SOON, async || {
        (bridge.metric(r#"apsara_bridge_connections{listener="admin"}"#).await >= 2.0).then_some(())
    })
    .await;
}

async fn started(folder: &Path, config: Config) -> Program {
    let folder = folder.to_owned();
    blocking(move || Program::start(&folder, config)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_prints_a_line_for_each_event_and_survives_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = started(folder.path(), dropping()).await;
    let file = bridge.configuration_file();
    let tail = Tail::start(&["--config", file.to_str().expect("UTF-8")]).await;
    let json = Tail::start(&["--admin", &bridge.admin.to_string(), "--match", "subject=m2", "--json", "-n", "2"]).await;
    // The first line may come before it is connected.
    eventually("a line", SOON, async || {
        bridge.post(callback("m1")).await;
        tail.process.log().contains("m1").then_some(())
    })
    .await;
    let line = tail.line("duplicate").await;
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(&cells[2..], ["FileUploadComplete", "success", "m1", "-", "-", "duplicate", cells[8], "ms"], "{line}");
    assert!(cells[0].len() == 13 && cells[0].ends_with('Z') && cells[1].len() == 32, "{line}");
    eventually("two lines of JSON", SOON, async || {
        bridge.post(callback("m2")).await;
        json.process.exit_code()
    })
    .await;
    assert_eq!(json.ends(), Some(0));
    let log = json.process.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(lines.len() == 2 && lines.iter().all(|line| line["attributes"]["subject"] == "m2"), "{log}");

    let changed = bridge.configuration().set("event.type_prefix = 'org.example.'");
    changed.write(&file);
    bridge.process().signal("HUP");
    tail.line("the bridge has reloaded its configuration").await;
    eventually("a line after the reload", SOON, async || {
        bridge.post(callback("m3")).await;
        tail.process.log().contains("m3").then_some(())
    })
    .await;
    assert!(tail.line("m3").await.contains("  FileUploadComplete "), "the new prefix is left out too");

    let bridge = blocking(move || {
        bridge.stop();
        bridge
    })
    .await;
    tail.line("the bridge is stopping; connecting again").await;
    let bridge = blocking(move || {
        bridge.start_again();
        bridge
    })
    .await;
    eventually("a line after the restart", SOON, async || {
        bridge.post(callback("m4")).await;
        tail.process.log().contains("m4").then_some(())
    })
    .await;
    bridge.process().kill();
    tail.line("the connection has ended; connecting again").await;
    tail.line("is the bridge running?; trying again").await;
    assert_eq!(tail.process.log().matches("connected again; events in between may be missing").count(), 2);
    assert_eq!(tail.process.log().matches("connecting again").count(), 2, "once for each: {}", tail.process.log());
    assert!(!tail.process.log().contains('\u{1b}'), "no colours in a file");
    tail.process.signal("INT");
    assert_eq!(tail.ends(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_ends_when_nobody_reads_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = started(folder.path(), dropping()).await;
    let program = command(&[]).get_program().to_owned();
    let pipe = |reader: &str| {
        let mut shell = Command::new("sh");
        let script = format!("{{ \"$0\" tail --admin {} ; echo \"code $?\" >&2; }} | {reader}", bridge.admin);
        shell.args(["-c", &script]).arg(&program);
        shell
    };
    // Without any event.
    let closed = pipe("true");
    let (_, out, error) = blocking(move || run(closed)).await;
    assert_eq!((out.as_str(), error.as_str()), ("", "code 0\n"));
    let head = pipe("head -n 1");
    let head = tokio::spawn(blocking(move || run(head)));
    has_listener(&bridge).await;
    for number in 0..100 {
        bridge.post(callback(&format!("m{number}"))).await;
    }
    let (_, out, error) = head.await.expect("no panic");
    assert!(out.lines().count() == 1 && out.contains("  dropped  "), "{out}");
    assert_eq!(error, "code 0\n");
    blocking(move || bridge.stop()).await;
}

/// A server that gives one answer to everybody.
async fn answering(answer: &'static str) -> (String, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address").to_string();
    let serving = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, AbortOnDropHandle::new(serving))
}

async fn tail_fails(arguments: &[&str]) -> (i32, String) {
    let command = command(&[&["tail"], arguments].concat());
    let (code, out, error) = tokio::time::timeout(SOON, blocking(move || run(command))).await.expect("it ends");
    assert_eq!(out, "");
    assert_eq!(error.lines().count(), 1, "one sentence: {error}");
    (code, error)
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_says_why_it_cannot_follow() {
    let nobody = format!("127.0.0.1:{}", free_port());
    let (code, error) = tail_fails(&["--admin", &nobody]).await;
    assert!(code == 1 && error.contains("Connection refused") && error.contains("is the bridge running?"), "{error}");
    for (answer, expected) in [
        (
            "HTTP/1.1 404 Not Found\r\ncontent-length: 8\r\n\r\nexpected",
            "404 Not Found: expected; is it another version",
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "is this the admin address of a bridge?"),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {\"kind\":\"hello\",\"format\":2,\"version\":\
             \"9.0.0\",\"type_prefix\":\"\",\"more\":[]}\n\n",
            "the bridge has version 9.0.0 and sends format 2",
        ),
        ("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {}\n\n", "does not begin like that of"),
        (
            "HTTP/1.1 404 Not Found\r\ncontent-type: text/html\r\ncontent-length: 110\r\n\r\n<!DOCTYPE html>\n<html>\n\
             <head><title>Another program</title></head>\n\
             <body>\n<h1>Nothing is here.</h1>\n</body>\n</html>\n   ",
            "404 Not Found: <!DOCTYPE html> <html> <head><title>Another program</title></head> <body> <h1>No…; is it",
        ),
        ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy", "503 Service Unavailable: busy"),
        ("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", "the connection has ended"),
        ("SSH-2.0-OpenSSH\r\n", "http://127.0.0.1:"),
        ("HTTP/1.1 403 Forbidden\r\ncontent-length: 5\r\n\r\n\u{1b}[2Jx", "403 Forbidden: \\u{1b}[2Jx"),
    ] {
        let (address, _serving) = answering(answer).await;
        let (code, error) = tail_fails(&["--admin", &address]).await;
        assert!(code == 1 && error.contains(expected), "{code}: {error}");
    }
    let off = TestBridge::start(&dropping().set("admin.page = 'off'")).await;
    let (code, error) = tail_fails(&["--admin", &off.admin.to_string()]).await;
    assert!(code == 1 && error.contains("admin.page is \"off\""), "{error}");
    off.stop().await;
    let full = TestBridge::start(&dropping()).await;
    let mut readers = Vec::new();
    for _ in 0..MAX_LISTENERS {
        readers.push(Reader::open(full.admin, "").await);
    }
    let (code, error) = tail_fails(&["--admin", &format!("http://{}/", full.admin)]).await;
    assert!(code == 1 && error.contains("8 event streams are open"), "{error}");
    full.stop().await;
    for (arguments, expected) in [
        (&["--admin", "nowhere"][..], "--admin nowhere: expected host:port"),
        (&["--admin", "https://localhost:9464"], "expected host:port"),
        (&["--match", "staus=failure"], "did you mean `status`?"),
        (&["--match", "status=[\"failure\", partial]"], "expected a list of quoted texts, for example status = ["),
        (&["--filter", "exact = {}"], "`exact` is empty"),
        (&["--set", "admin.listn=x"], "did you mean `listen`?"),
        (&["--config", "missing.toml"], "missing.toml: cannot be read"),
    ] {
        let (code, error) = tail_fails(arguments).await;
        assert!(code == 2 && error.contains(expected), "{code}: {error}");
    }
}

/// The first entry of a stream.
const HELLO: &str = "{\"kind\":\"hello\",\"format\":1,\"version\":\"9\",\"type_prefix\":\"com.aliyun.media.\"}";

/// A server whose streams begin with a piece, and then have another one again and again. Counts its connections.
async fn streaming(start: &'static str, more: &'static str) -> (String, Arc<AtomicUsize>, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address").to_string();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let serving = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            counted.fetch_add(1, Ordering::Relaxed);
            connections.spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(start.as_bytes()).await;
                while !more.is_empty() && stream.write_all(more.as_bytes()).await.is_ok() {
                    let_pass(Duration::from_millis(100)).await;
                }
            });
        }
    });
    (address, count, AbortOnDropHandle::new(serving))
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_waits_for_a_greeting_for_a_limited_time() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
    let (address, _, _serving) = streaming(head, ": alive\n\n").await;
    let (code, error) = tail_fails(&["--admin", &address]).await;
    assert!(code == 1 && error.contains("no entry in time"), "{code}: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_reads_every_form_of_a_stream_and_does_not_hammer_a_server() {
    const REJECTION: &str = "{\"kind\":\"rejection\",\"time\":\"T1\",\"input\":\"x\",\"reason\":\"shown\"}";
    let head = "HTTP/1.1 200 OK\r\ncontent-type: Text/Event-Stream; charset=utf-8\r\n\r\n";
    let start = format!("{head}data:{HELLO}\r\n\r\ndata:{REJECTION}\r\n\r\n").leak();
    let (address, _, _serving) = streaming(start, ": alive\n\n").await;
    let text = Tail::start(&["--admin", &address, "-n", "1"]).await;
    let json = Tail::start(&["--admin", &address, "-n", "1", "--json"]).await;
    assert_eq!((text.ends(), json.ends()), (Some(0), Some(0)));
    assert_eq!(text.process.log(), "1  rejected by x: shown\n");
    assert_eq!(json.process.log(), format!("{REJECTION}\n"));

    let start = format!("{head}data: {HELLO}\n\ndata: {{\"kind\":\"end\",\"reason\":\"reloaded\"}}\n\n").leak();
    let (address, count, _serving) = streaming(start, "").await;
    let tail = Tail::start(&["--admin", &address]).await;
    tail.line("connected again").await;
    let before = count.load(Ordering::Relaxed);
    let_pass(Duration::from_secs(1)).await;
    let connections = count.load(Ordering::Relaxed) - before;
    assert!(connections <= 8, "{connections} in a second");
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_warns_about_what_no_known_event_has_and_says_why_it_waits() {
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = started(folder.path(), dropping().set("event.type_prefix = 'org.example.'")).await;
    let condition = ["--match", "status=Failure", "--filter", "prefix = { type = \"Transcode\" }"];
    let tail = Tail::start(&[&["--admin", &bridge.admin.to_string()], &condition[..]].concat()).await;
    tail.line("warning: the condition matches status = `Failure`, but no known event has it; did you mean `failure`?")
        .await;
    tail.line("type = `Transcode`, but no known event has it; did you mean `org.example.Transcode`?").await;
    blocking(move || bridge.stop()).await;
    drop(tail);

    let stream = format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {HELLO}\n\n");
    let full = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\nconnection: close\r\n\r\nfull".to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let tail = Tail::start(&["--admin", &listener.local_addr().expect("an address").to_string()]).await;
    for answer in [&stream, &full, &full, &stream] {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        assert!(stream.read(&mut [0; 4096]).await.expect("a request") > 0);
        stream.write_all(answer.as_bytes()).await.expect("written");
    }
    tail.line("connected again; events in between may be missing").await;
    assert_eq!(tail.process.log().matches("503 Service Unavailable: full; trying again\n").count(), 1);
}

/// Many requests for the metrics, of which nobody reads the answers, do not keep probes out.
#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered_while_metrics_are_asked_for() {
    let bridge = TestBridge::start(&dropping()).await;
    let requests = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(200);
    let mut strangers = Vec::new();
    for _ in 0..64 {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(1).expect("set");
        let mut stream = socket.connect(bridge.admin).await.expect("it listens");
        stream.write_all(requests.as_bytes()).await.expect("written");
        strangers.push(stream);
    }
    for _ in 0..5 {
        let start = Instant::now();
        let answer = Client::connect(bridge.admin).await.request("GET", "/healthz", "", &[]).await;
        assert!(answer.status.as_u16() == 200 && start.elapsed() < ANSWER, "{:?}", start.elapsed());
    }
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn senders_cannot_write_to_the_terminal_of_tail() {
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = started(folder.path(), dropping().set("admin.show_payloads = true")).await;
    let text = Tail::start(&["--admin", &bridge.admin.to_string()]).await;
    let json = Tail::start(&["--admin", &bridge.admin.to_string(), "--json"]).await;
    let hostile =
        r#"{"EventType":"\u001b[2J\u009b","EventTime":"2026-01-01T00:00:00Z","VideoId":"\u202Eab\u001b]0;x\u0007"}"#;
    eventually("both to print it", SOON, async || {
        bridge.post(hostile.to_owned()).await;
        (text.process.log().contains("duplicate") && json.process.log().contains("duplicate")).then_some(())
    })
    .await;
    for log in [text.process.log(), json.process.log()] {
        assert!(!log.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}'), "{log:?}");
    }
    assert!(text.process.log().contains("\\u{202e}ab") && json.process.log().contains("\\u202e"));
    blocking(move || bridge.stop()).await;
}

#[tokio::test]
async fn switching_the_stream_off_ends_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = started(folder.path(), dropping()).await;
    let mut reader = Reader::open(bridge.admin, "").await;
    let tail = Tail::start(&["--admin", &bridge.admin.to_string()]).await;
    eventually("tail to follow", SOON, async || {
        bridge.post(callback("a")).await;
        tail.process.log().contains("duplicate").then_some(())
    })
    .await;
    bridge.reload(&bridge.configuration().set("admin.page = 'off'").to_string());
    tail.line("admin.page is \"off\"").await;
    assert_eq!(tail.ends(), Some(1));
    while let Some(entry) = reader.next().await {
        assert!(entry["kind"] == "callback" || entry == json!({ "kind": "end", "reason": "reloaded" }), "{entry}");
    }
    assert_eq!(refused(bridge.admin, "GET /events HTTP/1.1\r\nhost: localhost\r\n").await.0, 403);
    blocking(move || bridge.stop()).await;
}

/// Adds the fields of an object of a schema to a table.
fn push_fields(rows: &mut String, schema: &Value, prefix: &str) {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().expect("an object") {
        let description = field["description"].as_str().filter(|_| name != "kind");
        let Some(description) = description else { continue };
        let words = field.get("oneOf").and_then(Value::as_array).into_iter().flatten().map(|word| {
            let name = word["const"].as_str().expect("a word");
            format!(" `{name}`: {}", word["description"].as_str().expect("described").replace('\n', " "))
        });
        let words: String = words.collect();
        let always = if required.contains(&name.as_str()) { "yes" } else { "" };
        writeln!(rows, "| `{prefix}{name}` | {always} | {}{words} |", description.replace('\n', " "))
            .expect("a String");
        let has_fields = |schema: &&Value| schema.get("properties").is_some();
        if let Some(items) = field.get("items").filter(has_fields) {
            push_fields(rows, items, &format!("{prefix}{name}[]."));
        }
        // An object that can be missing has `null` next to it.
        let object = field.get("anyOf").and_then(|any| any.get(0)).unwrap_or(field);
        if has_fields(&object) {
            push_fields(rows, object, &format!("{prefix}{name}."));
        }
    }
}

/// docs/watching.md is generated from the types that the stream is written by.
#[test]
fn generated_the_docs_describe_every_field_of_an_entry() {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<Entry>().to_value();
    let mut text = String::new();
    for entry in schema["oneOf"].as_array().expect("kinds") {
        let kind = entry["properties"]["kind"]["const"].as_str().expect("a word");
        let description = entry["description"].as_str().expect("described").replace('\n', " ");
        write!(text, "\n`{kind}`: {description}\n\n| field | always | meaning |\n|---|---|---|\n").expect("a String");
        push_fields(&mut text, entry, "");
    }
    generated::check_part("docs/watching.md", &format!("{text}\n"));
}
