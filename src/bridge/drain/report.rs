//! What is said about lanes: in the log, and in the file that `spool status` reads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::lane::{Failing, LaneDrain, NAMED_AFTER, REPORTED_AFTER};
use crate::output::ErrorClass;
use crate::store::{FailingLane, FailingLanes, Lane, Retained};
use crate::telemetry::LogThrottle;

/// How often a lane that still fails is reported again.
const REMIND: Duration = Duration::from_secs(600);

/// How many lanes are reported one by one, in each of these times. Of more lanes only their number is said.
const SAID: (u32, Duration) = (20, Duration::from_secs(60));

/// How often it is logged that the spool cannot be read, or that dead letters are full.
const SELDOM: Duration = Duration::from_secs(60);

/// How often the file is written while something changes, and with many lanes in it.
const WRITE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// From how many lanes on it is written that seldom.
const MANY: usize = 500;

/// How many lanes the file names.
const NAMED: usize = 10_000;

pub(super) struct Reports {
    folder: PathBuf,
    is_changed: bool,
    written: Instant,
    pause: Duration,
    writing: Option<JoinHandle<()>>,
    /// Since when lanes are counted, how many were said since, and how many were not.
    said: (Instant, u32, u32),
    unreadable: LogThrottle,
    full: LogThrottle,
}

impl Reports {
    pub(super) fn new(folder: &Path) -> Reports {
        let now = Instant::now();
        Reports {
            folder: folder.to_owned(),
            // What a bridge that ran before has left there is old.
            is_changed: true,
            written: now,
            pause: WRITE.0,
            writing: None,
            said: (now, 0, 0),
            unreadable: LogThrottle::every(SELDOM),
            full: LogThrottle::every(SELDOM),
        }
    }

    /// A lane failed, or fails still.
    pub(super) fn failed(&mut self, lane: &mut LaneDrain, give_up_after: Duration) {
        self.is_changed = true;
        let (output, topic, records) = (lane.lane.output(), lane.lane.topic(), lane.lane.records());
        let Some(failing) = &mut lane.failing else { return };
        let error = &failing.error;
        let failing_for = failing.since.elapsed();
        tracing::debug!(output, topic, %error, attempts = failing.attempts, "the lane cannot be drained");
        let is_error = failing_for >= REPORTED_AFTER && error.kind.class() == ErrorClass::Operator;
        let is_due = match failing.reported {
            Some(reported) => reported.elapsed() >= REMIND,
            None => failing_for >= REPORTED_AFTER || failing_for >= NAMED_AFTER && !failing.is_named,
        };
        if !is_due {
            return;
        }
        failing.is_named = true;
        if failing_for >= REPORTED_AFTER {
            failing.reported = Some(Instant::now());
        }
        let failing_for = humantime::format_duration(Duration::from_secs(failing_for.as_secs()));
        let Some(unsaid) = self.may_say() else { return };
        let unsaid = (unsaid > 0).then_some(unsaid);
        let remedy = Some(error.kind.remedy()).filter(|remedy| !remedy.is_empty());
        if is_error {
            tracing::error!(
                output,
                topic,
                records,
                %error,
                %failing_for,
                remedy,
                dead_letters_after = %humantime::format_duration(give_up_after),
                other_topics_not_named = unsaid,
                "events for a topic cannot be published until somebody fixes this; they are stored in the spool"
            );
        } else {
            tracing::warn!(
                output,
                topic,
                records,
                %error,
                %failing_for,
                remedy,
                other_topics_not_named = unsaid,
                "events for a topic cannot be published; they are stored in the spool and retried"
            );
        }
    }

    /// Whether one more lane may be named, and how many were not named since the last one.
    fn may_say(&mut self) -> Option<u32> {
        let (since, said, unsaid) = &mut self.said;
        if since.elapsed() >= SAID.1 {
            (*since, *said) = (Instant::now(), 0);
        }
        if *said >= SAID.0 {
            *unsaid += 1;
            return None;
        }
        *said += 1;
        Some(std::mem::take(unsaid))
    }

    /// Something else is to be written into the file.
    pub(super) fn changed(&mut self) {
        self.is_changed = true;
    }

    /// A lane that failed does so no more.
    pub(super) fn recovered(&mut self, lane: &Lane, failing: &Failing) {
        self.is_changed = true;
        if failing.is_named && self.may_say().is_some() {
            let failed_for = humantime::format_duration(Duration::from_secs(failing.since.elapsed().as_secs()));
            tracing::info!(output = lane.output(), topic = lane.topic(), %failed_for, "events for a topic are published again");
        }
    }

    pub(super) fn unreadable(&self, output: &str, error: &str) {
        if self.unreadable.is_due(error) {
            tracing::warn!(output, error, "the spool cannot be read; its events wait");
        }
    }

    /// Records stay in the spool, because their dead letters found no room.
    pub(super) fn retained(&self, retained: &Retained) {
        if !retained.is_empty() && self.full.is_due("") {
            tracing::warn!(
                records = retained.len(),
                "events wait in the spool because the dead letters are full: replay or delete some"
            );
        }
    }

    /// When to write the file next; none while nothing changes.
    pub(super) fn next_write(&self) -> Option<Instant> {
        let is_free = self.writing.as_ref().is_none_or(JoinHandle::is_finished);
        // While the disk does not answer, that is looked at as often.
        let last = if is_free { self.written } else { Instant::now() };
        self.is_changed.then(|| last + self.pause)
    }

    /// Writes the file. That it cannot be written is not worth a word: the store says that the disk fails.
    pub(super) fn write<'l>(&mut self, lanes: impl Iterator<Item = &'l LaneDrain>) {
        if self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        (self.is_changed, self.written) = (false, Instant::now());
        let mut failing: Vec<FailingLane> = lanes.filter_map(failing_lane).collect();
        self.pause = if failing.len() > MANY { WRITE.1 } else { WRITE.0 };
        failing
            .sort_by(|a, b| b.records.cmp(&a.records).then_with(|| (&a.output, &a.topic).cmp(&(&b.output, &b.topic))));
        let not_named = failing.len().saturating_sub(NAMED);
        failing.truncate(NAMED);
        let folder = self.folder.clone();
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let _ = FailingLanes { lanes: failing, not_named }.write(&folder);
        }));
    }
}

fn failing_lane(drain: &LaneDrain) -> Option<FailingLane> {
    let failing = drain.failing.as_ref()?;
    Some(FailingLane {
        output: drain.lane.output().to_owned(),
        topic: drain.lane.topic().to_owned(),
        records: drain.lane.records(),
        since: OffsetDateTime::now_utc().unix_timestamp()
            - i64::try_from(failing.since.elapsed().as_secs()).unwrap_or(0),
        attempts: failing.attempts,
        reason: failing.error.kind.as_str().to_owned(),
        error: failing.error.message.clone(),
        remedy: failing.error.kind.remedy().to_owned(),
    })
}
