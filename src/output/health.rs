//! Whether an output is connected: written by the output, read by readiness and by delivery, exported as `output_up`.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::Gauge;
use time::OffsetDateTime;
use tokio::sync::Notify;

use crate::event::cut;
use crate::telemetry::LogThrottle;
use crate::telemetry::metrics::Metrics;

/// How often an output that stays down is logged again.
const REMIND: Duration = Duration::from_secs(300);

/// Most bytes of a reason that are kept.
const MAX_REASON: usize = 512;

const CONNECTING: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;

/// Whether an output is connected.
#[derive(Debug)]
pub struct Health {
    name: String,
    state: AtomicU8,
    gauge: Gauge,
    throttle: LogThrottle,
    probe_request: Notify,
    came_up: Notify,
    closed: AtomicBool,
    trouble: Mutex<Option<Trouble>>,
}

/// Why an output is not connected.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// When it was reported first.
    pub since: OffsetDateTime,
    /// When it was reported last.
    pub at: OffsetDateTime,
    /// The last reason.
    pub reason: String,
}

/// Whether an output is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// It has never connected.
    Connecting,
    /// It is.
    Up,
    /// It was.
    Down,
}

impl Health {
    /// The health of an output that has not connected yet.
    pub fn new(name: &str, metrics: &Metrics) -> Health {
        let gauge = metrics.output_up.with_label_values(&[name]);
        gauge.set(0.0);
        Health {
            name: name.to_owned(),
            state: AtomicU8::new(CONNECTING),
            gauge,
            throttle: LogThrottle::every(REMIND),
            probe_request: Notify::new(),
            came_up: Notify::new(),
            closed: AtomicBool::new(false),
            trouble: Mutex::default(),
        }
    }

    /// The name of the output.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has connected and is not down.
    pub fn is_up(&self) -> bool {
        self.state.load(Ordering::Relaxed) == UP
    }

    /// Whether it is connected, or was.
    pub fn connection(&self) -> Connection {
        match self.state.load(Ordering::Relaxed) {
            UP => Connection::Up,
            DOWN => Connection::Down,
            _ => Connection::Connecting,
        }
    }

    /// Why it is not connected; none while it is, or while no reason is known.
    pub fn trouble(&self) -> Option<Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|_| !self.is_up())
    }

    /// Reports that the bus answered.
    pub fn up(&self) {
        if self.state.load(Ordering::Relaxed) != UP && self.state.swap(UP, Ordering::Relaxed) != UP {
            self.gauge.set(1.0);
            self.throttle.reset();
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.came_up.notify_waiters();
            tracing::info!(output = %self.name, "output is connected");
        }
    }

    /// Waits until it is up.
    pub async fn wait_until_up(&self) {
        loop {
            // Subscribe before reading the state, or a change in between would be missed.
            let came_up = self.came_up.notified();
            if self.is_up() {
                return;
            }
            came_up.await;
        }
    }

    /// Reports that the bus does not answer, and why. Logged at once, then every five minutes.
    pub fn down(&self, reason: &str) {
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        let now = OffsetDateTime::now_utc();
        let reported = Trouble { since: now, at: now, reason: cut(reason, MAX_REASON).to_owned() };
        {
            let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            let since = trouble.take().map_or(now, |trouble| trouble.since);
            *trouble = Some(Trouble { since, ..reported });
        }
        let before = self.state.load(Ordering::Relaxed);
        // An output that has never connected keeps its state, but the reason is logged.
        if before == UP {
            self.state.store(DOWN, Ordering::Relaxed);
            self.gauge.set(0.0);
        }
        if self.throttle.is_due("down") {
            tracing::warn!(output = %self.name, reason, "output is down; reconnecting");
        }
    }

    /// Asks the output's task to check the connection, because of how a publish failed.
    pub fn request_probe(&self) {
        self.probe_request.notify_one();
    }

    /// Waits for a request to check the connection, at most the given time. True if there was one. May be cancelled.
    pub async fn probe_requested(&self, at_most: Duration) -> bool {
        tokio::time::timeout(at_most, self.probe_request.notified()).await.is_ok()
    }

    /// Reports that the output is being closed. Connections that end from now on are not logged.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.gauge.set(0.0);
    }
}
