//! A load of events: each is sent by a [`Sender`] at a fixed rate, whatever happens to earlier ones.
//!
//! [`Alibaba`] posts them as Alibaba does. A run is judged by what the sender reports about each event.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::bridge::signed_headers;

/// How often Alibaba tries, and the time between two attempts.
const TRIES: usize = 3;
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// One event as it is sent: the same bytes in each attempt.
#[derive(Clone, Debug)]
pub struct Callback {
    pub dialect: Dialect,
    pub body: Bytes,
    /// Whether it is sent twice at the same time, like by a sender that did not get the answer.
    pub is_twin: bool,
}

/// The service that sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Vod,
    Ims,
}

impl Dialect {
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Vod => "vod",
            Dialect::Ims => "ims",
        }
    }

    /// Its name in the headers of the signature.
    pub fn header_family(self) -> &'static str {
        match self {
            Dialect::Vod => "VOD",
            Dialect::Ims => "ICE",
        }
    }

    /// How long Alibaba waits for an answer.
    pub fn answer_timeout(self) -> Duration {
        Duration::from_secs(match self {
            Dialect::Vod => 5,
            Dialect::Ims => 3,
        })
    }
}

/// A way in which events reach the bridge.
pub trait Sender: Send + Sync + 'static {
    /// Delivers an event as often as Alibaba does. Returns whether it was accepted. An accepted event must be on both
    /// buses in the end; other events may be there or not.
    fn deliver(&self, callback: &Callback) -> impl Future<Output = bool> + Send;
}

/// Sends `rate` events per second until `next` returns none. Returns for each event whether it was accepted. `next` is
/// called with the number of the event when it is due.
///
/// The rate does not depend on the answers: a sender that waits for them would send least when the bridge has most to
/// do.
pub async fn send_all(
    sender: Arc<impl Sender>,
    rate: u32,
    mut next: impl FnMut(usize) -> Option<Callback> + Send,
) -> Vec<bool> {
    let mut ticker = interval(Duration::from_secs(1) / rate);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut answered_for = Vec::new();
    let mut deliveries = JoinSet::new();
    loop {
        ticker.tick().await;
        let number = answered_for.len();
        let Some(callback) = next(number) else { break };
        answered_for.push(false);
        let sender = sender.clone();
        deliveries.spawn(async move {
            if !callback.is_twin {
                return (number, sender.deliver(&callback).await);
            }
            let (one, other) = tokio::join!(sender.deliver(&callback), sender.deliver(&callback));
            (number, one || other)
        });
        while let Some(delivered) = deliveries.try_join_next() {
            let (number, is_answered_for) = delivered.expect("a delivery does not panic");
            answered_for[number] = is_answered_for;
        }
    }
    while let Some(delivered) = deliveries.join_next().await {
        let (number, is_answered_for) = delivered.expect("a delivery does not panic");
        answered_for[number] = is_answered_for;
    }
    answered_for
}

/// Posts as Alibaba does: three attempts, each with a new signature; only 200 is a success.
#[derive(Debug)]
pub struct Alibaba {
    input: Mutex<SocketAddr>,
    /// Idle connections, which wait for the next request.
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
    tally: Mutex<Tally>,
}

/// The results of the attempts.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Answers by their status.
    pub statuses: BTreeMap<u16, u64>,
    /// Attempts without an answer, by reason.
    pub unanswered: BTreeMap<&'static str, u64>,
    /// The time from the start of each answered attempt to its answer, in microseconds. With four bytes each, an hour's
    /// run fits into memory without buckets.
    answer_times: Vec<u32>,
}

impl Alibaba {
    pub fn new(input: SocketAddr) -> Alibaba {
        Alibaba { input: Mutex::new(input), idle: Mutex::default(), tally: Mutex::default() }
    }

    /// From now on, the name that it posts to stands for another address.
    pub fn moved(&self, input: SocketAddr) {
        *self.input.lock().expect("no panic while it is locked") = input;
        self.lock_idle().clear();
    }

    /// The results of the attempts so far.
    pub fn tally(&self) -> Tally {
        self.lock_tally().clone()
    }

    /// The number of answers so far.
    pub fn answers(&self) -> usize {
        self.lock_tally().answer_times.len()
    }

    /// The number of answers with 200.
    pub fn accepted(&self) -> usize {
        let accepted = self.lock_tally().statuses.get(&200).copied().unwrap_or_default();
        usize::try_from(accepted).expect("as many as memory holds")
    }

    /// The times of the answers after the first `skipped`, sorted.
    pub fn answer_times(&self, skipped: usize) -> Times {
        let mut times = self.lock_tally().answer_times.get(skipped..).unwrap_or_default().to_vec();
        times.sort_unstable();
        Times(times)
    }

    async fn attempt(&self, callback: &Callback) -> bool {
        let begun = Instant::now();
        let answered =
            timeout(callback.dialect.answer_timeout(), self.post(callback)).await.unwrap_or(Err("timed out"));
        let mut tally = self.lock_tally();
        match answered {
            Ok(status) => {
                *tally.statuses.entry(status.as_u16()).or_default() += 1;
                tally.answer_times.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
                status == StatusCode::OK
            }
            Err(reason) => {
                *tally.unanswered.entry(reason).or_default() += 1;
                false
            }
        }
    }

    async fn post(&self, callback: &Callback) -> Result<StatusCode, &'static str> {
        let mut connection = self.connection().await.map_err(|_| "no connection")?;
        let mut request = Request::post("/callbacks")
            .header("host", "media.example.com")
            .header("user-agent", "Aliyun")
            .header("content-type", "application/json");
        for (name, value) in signed_headers(callback.dialect.header_family()) {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(callback.body.clone())).expect("the headers are right");
        let response = connection.send_request(request).await.map_err(|_| "broken off")?;
        let (head, body) = response.into_parts();
        body.collect().await.map_err(|_| "broken off")?;
        self.lock_idle().push(connection);
        Ok(head.status)
    }

    /// An idle connection that is still open, or a new one.
    async fn connection(&self) -> std::io::Result<SendRequest<Full<Bytes>>> {
        loop {
            let Some(mut connection) = self.take_idle() else { break };
            if connection.ready().await.is_ok() {
                return Ok(connection);
            }
        }
        let input = *self.input.lock().expect("no panic while it is locked");
        let stream = TcpStream::connect(input).await?;
        stream.set_nodelay(true)?;
        let (connection, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        tokio::spawn(driver);
        Ok(connection)
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        self.lock_idle().pop()
    }

    fn lock_idle(&self) -> MutexGuard<'_, Vec<SendRequest<Full<Bytes>>>> {
        self.idle.lock().expect("no panic while it is locked")
    }

    fn lock_tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().expect("no panic while it is locked")
    }
}

impl Sender for Alibaba {
    async fn deliver(&self, callback: &Callback) -> bool {
        for attempt in 0..TRIES {
            if attempt > 0 {
                // Alibaba makes this pause in any case.
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            if self.attempt(callback).await {
                return true;
            }
        }
        false
    }
}

/// Some answer times, sorted.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<u32>);

impl Times {
    /// The percentile of the answer times for a share of all answers.
    pub fn percentile(&self, share: f64) -> Duration {
        let last = self.0.len().saturating_sub(1);
        let index = (last as f64 * share).round() as usize;
        Duration::from_micros(self.0.get(index).copied().unwrap_or_default().into())
    }

    /// How many answers took longer.
    pub fn slower_than(&self, limit: Duration) -> usize {
        let limit = u32::try_from(limit.as_micros()).unwrap_or(u32::MAX);
        self.0.len() - self.0.partition_point(|&time| time <= limit)
    }
}
