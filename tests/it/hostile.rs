//! A stranger at the ports of the real program. Meanwhile, signed callbacks get 200 within the three seconds that IMS
//! waits, and probes are answered within their time-out. Afterwards descriptors and memory are given back.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::support::bridge::{TestBridge, callback, large_callback, signed_head, try_raw};
use crate::support::config::{Config, Route};
use crate::support::http_receiver::{Receiver, Reply};
use crate::support::memory_limit::MemoryLimit;
use crate::support::program::{self, Program};
use crate::support::wait::SOON;
use crate::support::{blocking, eventually, not_run};

/// How long IMS waits for an answer.
const SENDER_WAITS: Duration = Duration::from_secs(3);

/// The time-out of the chart's probes.
const PROBE_WAITS: Duration = Duration::from_secs(3);

/// Descriptors that may be more than before: the spool's, while it writes.
const SOME_DESCRIPTORS: usize = 8;

/// Connections of an attack.
const MANY: usize = 300;

/// The program under attack. It drops all events, which is answered with 200.
struct Victim {
    program: Program,
    descriptors: usize,
    _folder: TempDir,
}

impl Victim {
    async fn start(http: &str) -> Victim {
        Victim::launch(http, |_| {}).await
    }

    async fn launch(http: &str, change: impl FnOnce(&mut Command) + Send + 'static) -> Victim {
        let config = Config::http()
            .set(&format!("[inputs.http]\n{http}"))
            .output("console", "console", &[""; 0])
            .route(Route::new("all").set("drop = true"));
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_owned();
        let program = blocking(move || {
            let program = Program::launch(None, &path, config, change);
            program.wait_listening();
            program
        })
        .await;
        program.ready().await;
        let descriptors = descriptors(&program);
        Victim { program, descriptors, _folder: folder }
    }

    /// A signed callback and a probe, on new connections.
    async fn serves(&self, id: &str) {
        let start = Instant::now();
        let answer = tokio::time::timeout(SENDER_WAITS, self.program.post(callback(id))).await;
        let answer = answer.unwrap_or_else(|_| panic!("{id}: no answer within {SENDER_WAITS:?}"));
        assert_eq!(answer.status.as_u16(), 200, "{id}, after {:?}: {answer:?}", start.elapsed());
        let probe = tokio::time::timeout(PROBE_WAITS, self.program.ask("/healthz")).await;
        let probe = probe.expect("the probe is answered in time").expect("an answer");
        assert!(probe.starts_with("HTTP/1.1 200 "), "{id}: {probe}");
    }

    /// Waits until the descriptors are given back.
    async fn recovers(&self) {
        eventually("descriptors to be given back", SOON, async || {
            (descriptors(&self.program) <= self.descriptors + SOME_DESCRIPTORS).then_some(())
        })
        .await;
        self.serves("afterwards").await;
    }

    async fn lost(&self, listener: &str, reason: &str) -> f64 {
        let labels = format!(r#"{{listener="{listener}",reason="{reason}"}}"#);
        self.program.metric(&format!("apsara_bridge_connections_lost_total{labels}")).await
    }

    async fn stop(self) {
        blocking(move || self.program.stop()).await;
    }
}

fn descriptors(program: &Program) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", program.process().id())).expect("the program runs").count()
}

/// A line of `/proc/PID/status` in KiB.
fn memory(program: &Program, line: &str) -> u64 {
    let status = format!("/proc/{}/status", program.process().id());
    let status = std::fs::read_to_string(status).expect("the program runs");
    let value = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':')).expect("the line");
    value.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// A connection that sends a text as fast as it is taken, and reads nothing.
struct Held {
    answers: OwnedReadHalf,
    _sending: AbortOnDropHandle<()>,
}

async fn holding(address: SocketAddr, count: usize, text: &str) -> Vec<Held> {
    let text: Arc<str> = text.into();
    let mut streams = Vec::new();
    for _ in 0..count {
        let socket = TcpSocket::new_v4().expect("a socket");
        // The smallest that the system allows, so that answers that are not read stay with the program.
        socket.set_recv_buffer_size(1).expect("set");
        let Ok(stream) = socket.connect(address).await else { continue };
        let (answers, mut requests) = stream.into_split();
        let text = text.clone();
        let sending = async move {
            // The program may end the connection.
            let _ = requests.write_all(text.as_bytes()).await;
            // The writing side stays open.
            std::future::pending::<()>().await;
        };
        streams.push(Held { answers, _sending: AbortOnDropHandle::new(tokio::spawn(sending)) });
    }
    streams
}

/// Connections to both ports that send requests without end, and do not read the answers. One captured signature is enough
/// for any number of accepted requests.
async fn unread(victim: &Victim, callbacks: usize, probes: usize) -> Vec<Held> {
    let body = callback("pipelined");
    let request = format!("{}content-length: {}\r\n\r\n{body}", signed_head(), body.len());
    let probe = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut held = holding(victim.program.input, callbacks, &request.repeat(20_000)).await;
    held.extend(holding(victim.program.admin, probes, &probe.repeat(2_000)).await);
    held
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let victim = Victim::start("max_connections = 100").await;
    let silent = (holding(victim.program.input, MANY, "").await, holding(victim.program.admin, MANY, "").await);
    victim.serves("silent").await;
    let started =
        (holding(victim.program.input, MANY, "POST /call").await, holding(victim.program.admin, MANY, "GET /").await);
    victim.serves("heads that do not end").await;
    assert!(victim.lost("http", "evicted").await > 0.0 && victim.lost("admin", "evicted").await > 0.0);
    drop((silent, started));
    victim.recovers().await;
    victim.stop().await;
}

#[tokio::test]
async fn memory_goes_back_after_a_burst() {
    const HEADS: usize = 2_000;
    let victim = Victim::start("").await;
    let before = memory(&victim.program, "VmRSS");
    let head = format!("POST /callbacks HTTP/1.1\r\nhost: x\r\nx: {}", "y".repeat(15_000));
    let heads = holding(victim.program.input, HEADS, &head).await;
    // 16 KiB each, at least.
    let taken = (HEADS as u64) << 4;
    eventually("the heads to be in memory", SOON, async || {
        (memory(&victim.program, "VmHWM") > before + taken).then_some(())
    })
    .await;
    drop(heads);
    eventually("memory to be given back", SOON, async || {
        (memory(&victim.program, "VmRSS") < before + taken / 2).then_some(())
    })
    .await;
    victim.recovers().await;
    victim.stop().await;
}

#[tokio::test]
async fn requests_that_are_refused_do_not_keep_their_connection() {
    let victim = Victim::start("max_connections = 100").await;
    let refused = holding(victim.program.input, 100, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    victim.serves("refused").await;
    for mut held in refused {
        let mut answer = String::new();
        held.answers.read_to_string(&mut answer).await.expect("the answer, and then the end");
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("connection: close"), "{answer}");
    }
    victim.recovers().await;
    victim.stop().await;
}

#[tokio::test]
async fn answers_that_are_not_read_hold_nothing() {
    let victim = Victim::start("max_connections = 50").await;
    let held = unread(&victim, 60, 80).await;
    victim.serves("unread answers").await;
    drop(held);
    victim.recovers().await;
    victim.stop().await;
}

#[tokio::test]
async fn who_does_not_read_its_answers_loses_its_connection() {
    let victim = Victim::start("").await;
    let held = unread(&victim, 4, 4).await;
    eventually("the connections to be ended", SOON, async || {
        let lost = (victim.lost("http", "answer_not_read").await, victim.lost("admin", "answer_not_read").await);
        (lost == (4.0, 4.0)).then_some(())
    })
    .await;
    victim.recovers().await;
    drop(held);
    victim.stop().await;
}

#[tokio::test]
async fn withheld_bodies_keep_nobody_out() {
    let victim = Victim::start("max_connections = 400\nmax_in_flight = 4").await;
    let head = format!("{}content-length: 200000\r\n\r\n", signed_head());
    let withheld = holding(victim.program.input, MANY, &head).await;
    victim.serves("withheld").await;
    let begun = holding(victim.program.input, MANY, &format!("{head}{}", "x".repeat(10_000))).await;
    victim.serves("begun").await;
    drop((withheld, begun));
    victim.recovers().await;
    victim.stop().await;
}

#[tokio::test]
async fn descriptors_never_end() {
    // A hard limit below the limit of connections, and a soft limit that the program has to raise.
    let victim = Victim::launch("", |command| {
        let program = std::mem::replace(command, Command::new("sh"));
        command.args(["-c", "ulimit -Sn 64 && ulimit -Hn 600 && exec \"$@\"", "sh"]);
        command.arg(program.get_program()).args(program.get_args());
    })
    .await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", victim.program.process().id())).expect("it runs");
    let limit = limits.lines().find(|line| line.starts_with("Max open files")).expect("the limit");
    assert_eq!(limit.split_whitespace().nth(3), Some("600"), "{limit}");
    let silent = holding(victim.program.input, 1_000, "").await;
    victim.serves("descriptors").await;
    assert!(descriptors(&victim.program) < 500, "some are left for others");
    assert!(!victim.program.process().log().contains("cannot accept connections"));
    drop(silent);
    victim.recovers().await;
    victim.stop().await;
}

#[tokio::test]
async fn a_body_in_tiny_pieces_takes_no_more_memory_than_a_whole_one() {
    const BODIES: usize = 16;
    const BYTES: usize = 200 << 10;
    let victim = Victim::start("").await;
    let before = memory(&victim.program, "VmHWM");
    let pieces = format!("{}transfer-encoding: chunked\r\n\r\n{}", signed_head(), "1\r\nx\r\n".repeat(BYTES));
    let mut tasks = JoinSet::new();
    for _ in 0..BODIES {
        let (address, pieces) = (victim.program.input, pieces.clone());
        tasks.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("the bridge listens");
            // The bridge may give up first.
            let _ = stream.write_all(pieces.as_bytes()).await;
            stream
        });
    }
    let streams = tasks.join_all().await;
    let grown = (memory(&victim.program, "VmHWM") - before) << 10;
    assert!(grown < (4 * BODIES * BYTES) as u64, "{BODIES} bodies of {BYTES} bytes took {grown}");
    drop(streams);
    victim.recovers().await;
    victim.stop().await;
}

#[tokio::test]
async fn junk_leaves_the_dead_letters_to_events() {
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = TestBridge::start(
        &Config::http()
            .spool(folder.path())
            .set("dead_letters.max_bytes = '1MiB'")
            .output("console", "console", &[""; 0])
            .route(Route::new("none").when("status = 'partial'").set("drop = true")),
    )
    .await;
    let junk = |number: usize| format!("{number}{}", "x".repeat(20 << 10));
    for number in 0..40 {
        assert_eq!(bridge.post(junk(number)).await.status.as_u16(), 400);
    }
    let share = (1 << 20) as f64 * 0.1;
    let stored = bridge.metric("apsara_bridge_dead_letters_stored_bytes");
    assert!(stored > share / 2.0 && stored <= share, "{stored} bytes");
    let kept = bridge.metric(r#"apsara_bridge_dead_letters_total{reason="not_a_callback"}"#);
    let not_kept = bridge.metric(r#"apsara_bridge_dead_letters_not_kept_total{reason="not_a_callback"}"#);
    assert_eq!((kept, not_kept), (5.0, 35.0));
    assert_eq!(bridge.metric(r#"apsara_bridge_not_accepted_total{input="http",reason="not_a_callback"}"#), 40.0);
    assert_eq!(bridge.metric(r#"apsara_bridge_spool_failures_total{reason="not_a_callback_full"}"#), 35.0);
    assert_eq!(bridge.post(callback("unrouted")).await.status.as_u16(), 200, "an event still has room");
    assert_eq!(bridge.metric(r#"apsara_bridge_dead_letters_total{reason="unrouted"}"#), 1.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_bounds_it_answers_503_and_is_not_killed() {
    const CONNECTIONS: usize = 400;
    const SENDERS: usize = 200;
    let folder = tempfile::tempdir().expect("a folder");
    let receiver = Receiver::start().await;
    receiver.answer(Reply::Never);
    let config = Config::http()
        .spool(folder.path().join("spool"))
        .set(&format!("[inputs.http]\nmax_connections = {CONNECTIONS}"))
        .set("[delivery]\nmax_in_flight_bytes = '16MiB'\n[dedupe]\nmax_ids = 10000")
        .set("[spool]\nmax_bytes = '16MiB'")
        .http_output("web", &receiver.url())
        .route(Route::new("all").set("to = { output = 'web' }"));
    let file = folder.path().join("check.toml");
    config.clone().write(&file);
    let (_, _, checked) = program::run(program::command(&["check", "--config", file.to_str().expect("UTF-8")]));
    let bounds = checked.lines().find_map(|line| line.strip_prefix("at its bounds the bridge takes about "));
    let bounds: u64 = bounds.and_then(|text| text.strip_suffix(" MiB of memory")?.parse().ok()).expect("the bound");
    let limit = match MemoryLimit::new(bounds << 20) {
        Ok(limit) => Arc::new(limit),
        Err(reason) => return not_run(&format!("the limit on memory: {reason}")),
    };
    let (path, limited) = (folder.path().to_owned(), limit.clone());
    let program = blocking(move || {
        let program = Program::launch(None, &path, config, |command| limited.apply(command));
        program.wait_listening();
        program
    })
    .await;
    let program = Arc::new(program);
    // Heads that do not end, of which some go for those that send callbacks.
    let heads = holding(program.input, CONNECTIONS, &format!("{}x: {}", signed_head(), "y".repeat(15_000))).await;
    let mut senders = JoinSet::new();
    for sender in 0..SENDERS {
        let input = program.input;
        senders.spawn(async move {
            let mut statuses = Vec::new();
            for number in 0..4 {
                let body = large_callback(&format!("{sender}-{number}"), 250_000);
                let head = signed_head();
                let request = format!("{head}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                let answer = try_raw(input, &request).await.unwrap_or_default();
                statuses.push(answer.get("HTTP/1.1 ".len()..).and_then(|rest| rest.get(..3)?.parse().ok()));
            }
            statuses
        });
    }
    let statuses: Vec<Option<u16>> = senders.join_all().await.concat();
    drop(heads);
    let count = |status: u16| statuses.iter().filter(|&&found| found == Some(status)).count();
    let peak = limit.peak().map_or(0, |peak| peak >> 20);
    println!("limit {bounds} MiB, peak {peak} MiB, {} answers 200, {} answers 503", count(200), count(503));
    let exit_code = program.process().exit_code();
    assert_eq!(exit_code, None, "it was killed");
    assert_eq!(count(200) + count(503), statuses.len(), "{statuses:?}");
    assert!(count(503) > 0, "it was not at its bounds");
    blocking(move || program.stop()).await;
}
