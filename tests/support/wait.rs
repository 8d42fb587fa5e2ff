//! Waiting for an event: the polling loop, and the longest times that tests wait.
//!
//! Promises: a condition is checked at once, and then after growing pauses up to [`POLL`]. Every wait has a limit. A
//! limit that passes is reported with what the test waited for.
//!
//! A limit only affects a test that fails: other tests stop waiting as soon as the event has happened. So the limits
//! are few and long, because the machine may be busy. A limit that is part of a single scenario is defined there.

#![allow(dead_code)] // each binary that includes this uses its own part of it

use std::time::{Duration, Instant};

/// The longest pause between two checks: short compared with the start of a broker, long compared with a check.
const POLL: Duration = Duration::from_millis(20);

/// The pause after the first check; each later one is twice as long. Most events happen within milliseconds.
const FIRST_POLL: Duration = Duration::from_millis(1);

/// Limit for events within seconds: a log line, a metric, an answer, an arrival on a bus, the end of a process. It is
/// longer than librdkafka's connection timeout, because a process that was started in the meantime can keep a
/// connection open that the mock cluster has closed.
pub const SOON: Duration = Duration::from_secs(90);

/// Limit for the start of a server, and for its end after SIGTERM. Both take seconds, but much longer on a busy
/// machine.
pub const START: Duration = Duration::from_secs(120);

/// Limit for an election of leaders, and until all copies in a cluster have caught up, while servers start.
pub const SETTLED: Duration = Duration::from_secs(90);

/// Limit for one answer of a running server.
pub const ANSWER: Duration = Duration::from_secs(5);

/// Limit for one answer of a server that may just have failed. The request is then repeated, maybe to another server.
pub const RETRY: Duration = Duration::from_secs(2);

/// Limit for one request that changes something on the servers of a cluster, for example a new topic.
pub const CHANGE: Duration = Duration::from_secs(10);

/// Limit for the end of the bridge after SIGTERM: its drain time, which is shorter, and the last writes.
pub const STOPPED: Duration = Duration::from_secs(20);

/// Limit for the end of the bridge after a second signal: answers in progress may be written first.
pub const AT_ONCE: Duration = Duration::from_secs(8);

/// Limit for an event to reach a working destination while another one fails.
pub const ARRIVED: Duration = Duration::from_secs(5);

/// Calls `look` until it returns something, and returns that; `None` if `limit` passes first. Blocks the thread.
pub fn try_wait_for<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let mut pauses = Pauses::until(limit);
    loop {
        let found = look();
        if found.is_some() {
            return found;
        }
        // The poll loop itself, for threads.
        std::thread::sleep(pauses.next()?);
    }
}

/// Calls `look` until it returns something, and returns that; `None` if `limit` passes first.
pub async fn try_eventually<T>(limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let mut pauses = Pauses::until(limit);
    loop {
        let found = look().await;
        if found.is_some() {
            return found;
        }
        // The poll loop itself, for tasks.
        tokio::time::sleep(pauses.next()?).await;
    }
}

/// Calls `look` until it returns something, and returns that. Blocks the thread; async code uses [`eventually`].
///
/// # Panics
/// `limit` passes first. The message contains `what`.
pub fn wait_for<T>(what: &str, limit: Duration, look: impl FnMut() -> Option<T>) -> T {
    try_wait_for(limit, look).unwrap_or_else(|| panic!("timed out after {limit:?} waiting for {what}"))
}

/// Looks until `look` returns something, and returns that.
///
/// # Panics
/// `limit` passes first. The message contains `what`.
pub async fn eventually<T>(what: &str, limit: Duration, look: impl AsyncFnMut() -> Option<T>) -> T {
    try_eventually(limit, look).await.unwrap_or_else(|| panic!("timed out after {limit:?} waiting for {what}"))
}

/// Lets time pass if the time itself is what a test is about: a fault lasts that long, or nothing may happen for that
/// long. There is no event to wait for.
pub async fn let_pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// The pauses between checks, until a limit has passed.
struct Pauses {
    end: Instant,
    pause: Duration,
}

impl Pauses {
    fn until(limit: Duration) -> Pauses {
        Pauses { end: Instant::now() + limit, pause: FIRST_POLL }
    }

    fn next(&mut self) -> Option<Duration> {
        let pause = self.pause;
        self.pause = (pause * 2).min(POLL);
        (Instant::now() < self.end).then_some(pause)
    }
}
