//! The load: signed callbacks on connections that stay open. Each connection waits for the answer before the next
//! request.
//!
//! It shares the machine with the measured service, so it does little: a request is a prepared buffer in which an id
//! changes, and only the status and the length of an answer are read.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use apsara_bridge::dialect::Dialect;
use apsara_bridge::input::http::signature::signed_headers;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::bridge::{KEY, URL};

/// The callbacks: Alibaba's samples of both dialects, 0.3 to 1.1 KB, with the id in each. Every request changes its id, so
/// no two events are the same.
const BODIES: [(Dialect, &str, &str); 5] = [
    (Dialect::Vod, include_str!("../src/dialect/samples/vod-TranscodeComplete.json"), "43q9fjsh73f****"),
    (
        Dialect::Ims,
        include_str!("../src/dialect/samples/ims-VideoAnalysisComplete.json"),
        "4c3a4a30041b71edbfc96732b68f****",
    ),
    (Dialect::Vod, include_str!("../src/dialect/samples/vod-FileUploadComplete-docs2026.json"), "43q91jdh7df****"),
    (
        Dialect::Ims,
        include_str!("../src/dialect/samples/ims-DynamicImageComplete.json"),
        "11a32131403478e92cc01399855****",
    ),
    (
        Dialect::Ims,
        include_str!("../src/dialect/samples/ims-FileUploadComplete.json"),
        "c321b3a0041a71eda1590674a2ce****",
    ),
];

/// The load on a service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) connections: usize,
    /// Requests per second over all connections. None sends as fast as the service answers.
    pub(crate) rate: Option<u32>,
    /// How many ids there are. None changes the id with every request.
    pub(crate) ids: Option<u64>,
}

impl Load {
    /// As fast as the service answers, with an id of its own in every request.
    pub(crate) fn of(connections: usize) -> Load {
        Load { connections, rate: None, ids: None }
    }

    fn next_id(self) -> u64 {
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        self.ids.map_or(id, |ids| id % ids)
    }
}

/// Ids used so far, in all rounds together.
static IDS: AtomicU64 = AtomicU64::new(0);

/// The results of a round.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Requests that were answered with 200.
    pub(crate) answered: usize,
    /// Requests with another result.
    pub(crate) failed: usize,
    /// The first failure.
    pub(crate) first_failure: Option<String>,
    /// The time from the first request to the last answer.
    pub(crate) elapsed: Duration,
    /// Times from request to answer, sorted.
    pub(crate) latencies: Vec<Duration>,
}

impl Tally {
    /// The latency that a share of all requests stays below.
    pub(crate) fn percentile(&self, share: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let index = (last as f64 * share).round() as usize;
        self.latencies.get(index).copied().unwrap_or_default()
    }

    fn fail(&mut self, reason: String) {
        self.failed += 1;
        self.first_failure.get_or_insert(reason);
    }

    fn add(&mut self, other: Tally) {
        self.answered += other.answered;
        self.failed += other.failed;
        self.first_failure = self.first_failure.take().or(other.first_failure);
        self.latencies.extend(other.latencies);
    }
}

/// The figures of one turn of load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) requests_per_second: f64,
    pub(crate) cpu_per_event: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Figures {
    /// Computes the figures from the results of the load and the CPU time of the service.
    pub(crate) fn new(tally: &Tally, cpu: Duration) -> Figures {
        let milliseconds = |share| tally.percentile(share).as_secs_f64() * 1e3;
        Figures {
            requests_per_second: tally.answered as f64 / tally.elapsed.as_secs_f64(),
            cpu_per_event: cpu.as_secs_f64() * 1e6 / tally.answered.max(1) as f64,
            p50: milliseconds(0.50),
            p99: milliseconds(0.99),
        }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Figures { requests_per_second, cpu_per_event, p50, p99 } = self;
        write!(
            formatter,
            "{requests_per_second:>8.0} requests/s {cpu_per_event:>7.1} µs CPU {p50:>7.2} ms p50 {p99:>7.2} ms p99"
        )
    }
}

/// The mean size of a body.
pub(crate) fn body_bytes() -> usize {
    BODIES.iter().map(|(_, body, _)| body.len()).sum::<usize>() / BODIES.len()
}

/// A body with its own id.
#[allow(dead_code)] // one benchmark puts bodies into a queue
pub(crate) fn body() -> String {
    let number = IDS.fetch_add(1, Ordering::Relaxed);
    let (_, body, id) = BODIES[number as usize % BODIES.len()];
    body.replace(id, &format!("{number:0width$}", width = id.len()))
}

/// Drives a service for a while.
pub(crate) async fn drive(address: SocketAddr, load: Load, time: Duration) -> Tally {
    let requests: Vec<Request> = BODIES.iter().map(Request::signed_now).collect();
    let pause = load.rate.map_or(Duration::ZERO, |rate| Duration::from_secs(load.connections as u64) / rate);
    let start = Instant::now();
    let tasks: Vec<_> = (0..load.connections)
        .map(|index| {
            let mut requests = requests.clone();
            let first = index % requests.len();
            requests.rotate_left(first);
            // Connections start one after the other, which spreads the load evenly.
            let pace = Pace { first: start + pause * index as u32 / load.connections as u32, pause, end: start + time };
            tokio::spawn(converse(address, requests, load, pace))
        })
        .collect();
    let mut tally = Tally::default();
    for task in tasks {
        tally.add(task.await.expect("the task of a connection does not panic"));
    }
    tally.elapsed = start.elapsed();
    tally.latencies.sort_unstable();
    tally
}

/// The bytes of a request, and the position of its id.
#[derive(Clone)]
struct Request {
    bytes: Vec<u8>,
    id_at: usize,
    id_width: usize,
}

impl Request {
    fn signed_now((dialect, body, id): &(Dialect, &str, &str)) -> Request {
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let signed: String = signed_headers(*dialect, URL, now, KEY)
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        // The headers that Alibaba sends, without a proxy.
        let head = format!(
            "POST /callbacks HTTP/1.1\r\nHost: media.example.com\r\nUser-Agent: Aliyun\r\nAccept: */*\r\n\
             Content-Type: application/json\r\n{signed}Content-Length: {}\r\n\r\n",
            body.len()
        );
        let id_at = head.len() + body.find(id).expect("the sample has the id");
        Request { bytes: [head.as_bytes(), body.as_bytes()].concat(), id_at, id_width: id.len() }
    }

    fn set_id(&mut self, id: u64) {
        let width = self.id_width;
        self.bytes[self.id_at..self.id_at + width].copy_from_slice(format!("{id:0width$}").as_bytes());
    }
}

/// When a connection sends.
#[derive(Clone, Copy)]
struct Pace {
    first: Instant,
    /// From one request to the next, unless the answer takes longer.
    pause: Duration,
    end: Instant,
}

async fn converse(address: SocketAddr, mut requests: Vec<Request>, load: Load, pace: Pace) -> Tally {
    let mut tally = Tally::default();
    let mut stream = match TcpStream::connect(address).await {
        Ok(stream) => stream,
        Err(error) => {
            tally.fail(format!("no connection: {error}"));
            return tally;
        }
    };
    // Otherwise the kernel would delay the end of a request until earlier bytes are acknowledged.
    let _ = stream.set_nodelay(true);
    let mut turn = 0;
    let mut answer = Vec::with_capacity(4096);
    let mut next = pace.first;
    loop {
        if !pace.pause.is_zero() {
            tokio::time::sleep_until(next.into()).await;
        }
        let start = Instant::now();
        if start >= pace.end {
            return tally;
        }
        next = (next + pace.pause).max(start);
        let request = &mut requests[turn];
        request.set_id(load.next_id());
        turn = (turn + 1) % BODIES.len();
        let exchanged = async {
            stream.write_all(&request.bytes).await.map_err(|error| error.to_string())?;
            read_answer(&mut stream, &mut answer).await
        };
        match exchanged.await {
            Ok(()) if answer.starts_with(b"HTTP/1.1 200 ") => {
                tally.answered += 1;
                tally.latencies.push(start.elapsed());
            }
            Ok(()) => tally.fail(String::from_utf8_lossy(&answer).into_owned()),
            Err(reason) => {
                tally.fail(format!("the connection broke: {reason}"));
                return tally;
            }
        }
    }
}

/// Reads one answer. Its head must contain the length.
async fn read_answer(stream: &mut TcpStream, answer: &mut Vec<u8>) -> Result<(), String> {
    answer.clear();
    let mut length = None;
    loop {
        if length.is_none() {
            length = length_of(answer)?;
        }
        match length {
            Some(length) if answer.len() == length => return Ok(()),
            Some(length) if answer.len() > length => return Err("more bytes than the answer has".to_owned()),
            _ => {}
        }
        if stream.read_buf(answer).await.map_err(|error| error.to_string())? == 0 {
            return Err("closed by the service".to_owned());
        }
    }
}

/// The length of an answer with its head, once the head is complete.
fn length_of(answer: &[u8]) -> Result<Option<usize>, String> {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&answer[..end]);
    let body = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    body.map(|body| Some(end + 4 + body)).ok_or_else(|| format!("no content-length: {head}"))
}
