//! An output with its counters and its lanes of the spool.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{Histogram, IntCounter};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::feed::state::ErrorState;
use super::feed::{short, timestamp};
use crate::output::{ErrorKind, Health, Output, PublishError, Record};
use crate::store::{OutputLanes, Store};
use crate::telemetry::metrics::Metrics;

/// An output as the bridge uses it.
#[derive(Debug)]
pub(super) struct OutputHandle {
    output: Arc<dyn Output>,
    published: IntCounter,
    failures: Vec<(ErrorKind, IntCounter)>,
    duration: Histogram,
    /// What the spool holds for it; none without a spool.
    lanes: Option<Arc<OutputLanes>>,
    /// The last attempt that failed while the output was connected.
    last_error: Mutex<Option<ErrorState>>,
}

impl OutputHandle {
    pub(super) fn new(output: Arc<dyn Output>, store: Option<&Store>, metrics: &Metrics) -> OutputHandle {
        let name = output.name();
        let failures = |kind: ErrorKind| metrics.publish_failures_total.with_label_values(&[name, kind.as_str()]);
        OutputHandle {
            published: metrics.published_total.with_label_values(&[name]),
            failures: ErrorKind::ALL.into_iter().map(|kind| (kind, failures(kind))).collect(),
            duration: metrics.publish_duration_seconds.with_label_values(&[name]),
            lanes: store.map(|store| store.lanes(name)),
            last_error: Mutex::default(),
            output,
        }
    }

    /// The last attempt that failed while the output was connected.
    pub(super) fn last_error(&self) -> Option<ErrorState> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Numbers of records that the bus has acknowledged, and of attempts that failed, by kind.
    pub(super) fn counts(&self) -> (u64, impl Iterator<Item = (ErrorKind, u64)>) {
        (self.published.get(), self.failures.iter().map(|(kind, failures)| (*kind, failures.get())))
    }

    pub(super) fn health(&self) -> &Health {
        self.output.health()
    }

    /// Whether the output has connected and is not known to be down.
    pub(super) fn is_up(&self) -> bool {
        self.health().is_up()
    }

    /// Whether the spool has records for a topic that must be published first.
    pub(super) fn has_backlog(&self, topic: &str) -> bool {
        self.lanes.as_ref().is_some_and(|lanes| lanes.has_backlog(topic))
    }

    fn note(&self, error: &PublishError, record: &Record) {
        let noted = ErrorState {
            time: timestamp(OffsetDateTime::now_utc()),
            error: error.kind.as_str().to_owned(),
            message: short(&error.message),
            topic: record.topic.clone(),
        };
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(noted);
    }

    /// Makes one attempt to publish a record, and counts it. Fails at once if the output is down. May be cancelled; the
    /// record may arrive all the same.
    pub(super) async fn attempt(&self, record: &Record, deadline: Instant) -> Result<(), PublishError> {
        let result = if self.is_up() {
            let start = Instant::now();
            let result = self.output.publish(record, deadline).await;
            self.duration.observe(start.elapsed().as_secs_f64());
            result.inspect_err(|error| self.note(error, record))
        } else {
            Err(PublishError::new(ErrorKind::Unavailable, "the output is not connected"))
        };
        match &result {
            Ok(()) => self.published.inc(),
            Err(error) => {
                if let Some((_, failures)) = self.failures.iter().find(|(kind, _)| *kind == error.kind) {
                    failures.inc();
                }
            }
        }
        result
    }
}
