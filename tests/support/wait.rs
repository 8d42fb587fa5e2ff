//! Waiting for an event: the one loop that looks again and again, and the longest times that tests wait.
//!
//! Promises: whoever waits looks at once, and then at growing pauses up to [`POLL`]; nothing is waited for without a limit;
//! a limit that passes is reported with what was waited for.
//!
//! A limit only matters to a test that fails: one that passes stops waiting as soon as the event has happened. So the limits
//! are few and long, because the machine may be busy. A limit that a single scenario is judged by is defined next to it.

#![allow(dead_code)] // each binary that includes this uses its own part of it

use std::time::{Duration, Instant};

/// The longest pause between two looks. Short compared with the start of a broker, long compared with one look.
const POLL: Duration = Duration::from_millis(20);

/// The pause after the first look; each later one is twice as long. Most events have happened or happen within milliseconds.
const FIRST_POLL: Duration = Duration::from_millis(1);

/// Bounds what happens within seconds: a log line, a metric, an answer, an arrival on a bus, the end of a process. Longer
/// than librdkafka's connection timeout: a connection that the mock cluster closes can be held open by a process that was
/// started in the meantime.
pub const SOON: Duration = Duration::from_secs(90);

/// Bounds the start of a server, and its end by SIGTERM. Both take seconds; with other starts on a busy machine, many times
/// that.
pub const START: Duration = Duration::from_secs(120);

/// Bounds an election of leaders, and the time until all copies in a cluster have caught up, while servers start.
pub const SETTLED: Duration = Duration::from_secs(90);

/// Bounds one answer of a server that runs.
pub const ANSWER: Duration = Duration::from_secs(5);

/// Bounds one answer of a server that may just have failed: then the question is asked again, maybe of another server.
pub const RETRY: Duration = Duration::from_secs(2);

/// Bounds one request that changes something on the servers of a cluster, such as a new topic.
pub const CHANGE: Duration = Duration::from_secs(10);

/// Bounds the end of the bridge after SIGTERM: its drain time, which is shorter, and writing down what is left.
pub const STOPPED: Duration = Duration::from_secs(20);

/// Bounds the end of the bridge after a second signal: what is being answered may be written first.
pub const AT_ONCE: Duration = Duration::from_secs(8);

/// Bounds the way of an event to a destination that works, while another one fails.
pub const ARRIVED: Duration = Duration::from_secs(5);

/// Looks until `look` returns something, and returns that; `None` when `limit` passes first. Blocks the thread.
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

/// Looks until `look` returns something, and returns that; `None` when `limit` passes first.
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

/// Looks until `look` returns something, and returns that. Blocks the thread: async code uses [`eventually`].
///
/// # Panics
/// When `limit` passes first, with `what` in the message.
pub fn wait_for<T>(what: &str, limit: Duration, look: impl FnMut() -> Option<T>) -> T {
    try_wait_for(limit, look).unwrap_or_else(|| panic!("waited {limit:?} in vain for {what}"))
}

/// Looks until `look` returns something, and returns that.
///
/// # Panics
/// When `limit` passes first, with `what` in the message.
pub async fn eventually<T>(what: &str, limit: Duration, look: impl AsyncFnMut() -> Option<T>) -> T {
    try_eventually(limit, look).await.unwrap_or_else(|| panic!("waited {limit:?} in vain for {what}"))
}

/// Lets time pass that a test is about: a fault lasts that long, or nothing must happen for that long. There is no event to
/// wait for.
pub async fn let_pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// The pauses between looks, until a limit has passed.
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
