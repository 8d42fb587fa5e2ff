//! Whether an output is connected: written by the output, read by readiness and by delivery, exported as `output_up`.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use prometheus::Gauge;
use tokio::sync::Notify;

use crate::telemetry::LogThrottle;
use crate::telemetry::metrics::Metrics;

/// How often an output that stays down is logged again.
const REMIND: Duration = Duration::from_secs(300);

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

    /// Reports that the bus answered.
    pub fn up(&self) {
        if self.state.load(Ordering::Relaxed) != UP && self.state.swap(UP, Ordering::Relaxed) != UP {
            self.gauge.set(1.0);
            self.throttle.reset();
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
