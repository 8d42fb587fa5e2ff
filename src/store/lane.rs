//! Lanes: what the spool holds for one topic of one output.
//!
//! A lane is in memory only while it has records on the disk, or records are being written. It says whether new events must
//! wait behind older ones, how many records there are, and whether they fail.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use super::error::{FailureKind, StoreError};
use super::record::{AWAITS_DEAD_LETTERS, Backlog, SpoolRecord, now};
use super::shared::NONE;

/// The spool of one topic of one output.
#[derive(Debug)]
pub struct Lane {
    output: String,
    topic: String,
    /// Records on the disk.
    records: AtomicU64,
    /// Their bytes.
    bytes: AtomicU64,
    /// Records of these that were handed to their output and have not failed since.
    attempted: AtomicU64,
    /// Records that are being written.
    pending: AtomicU64,
    /// Their bytes.
    pending_bytes: AtomicU64,
    /// Whether [`Lanes::filled`] returns it next.
    is_announced: AtomicBool,
    /// Whether its last attempt failed.
    is_failing: AtomicBool,
    /// Why it is failing.
    failure: Mutex<Option<LaneFailure>>,
    /// When its oldest record was spooled; [`NONE`] if there is none.
    oldest: AtomicI64,
}

/// Why the records of a lane cannot be published. Times are Unix milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneFailure {
    /// The first failure since the last success.
    pub since: i64,
    /// The last one.
    pub at: i64,
    /// The word of its kind.
    pub kind: &'static str,
    /// What the bus said.
    pub message: String,
    /// Failures since the last success.
    pub attempts: u32,
    /// What a person can do about it; empty if that is nothing.
    pub remedy: &'static str,
}

impl Lane {
    /// An empty lane.
    pub(crate) fn new(output: &str, topic: &str) -> Lane {
        Lane {
            output: output.to_owned(),
            topic: topic.to_owned(),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            attempted: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            pending_bytes: AtomicU64::new(0),
            is_announced: AtomicBool::new(false),
            is_failing: AtomicBool::new(false),
            failure: Mutex::default(),
            oldest: AtomicI64::new(NONE),
        }
    }

    /// Name of the output.
    pub fn output(&self) -> &str {
        &self.output
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Records on the disk.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Acquire)
    }

    /// Records were handed to their output. Events that arrive now may follow them directly, without the disk.
    pub fn attempted(&self, records: u64) {
        self.attempted.fetch_add(records, Ordering::AcqRel);
    }

    /// Records that were handed to their output must be tried again. Events that arrive now wait behind them.
    pub fn must_retry(&self, records: u64) {
        let lowered = |attempted: u64| Some(attempted.saturating_sub(records));
        let _ = self.attempted.fetch_update(Ordering::AcqRel, Ordering::Acquire, lowered);
    }

    /// Whether there are records whose first attempt has not started, or must be repeated.
    fn has_backlog(&self) -> bool {
        let waiting = self.records() + self.pending.load(Ordering::Acquire);
        waiting > self.attempted.load(Ordering::Acquire)
    }

    /// The last attempt to publish one of its records failed.
    pub fn failed(&self, failure: LaneFailure) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
        self.is_failing.store(true, Ordering::Relaxed);
    }

    /// The last attempt to publish one of its records succeeded.
    pub fn succeeded(&self) {
        if self.is_failing.swap(false, Ordering::Relaxed) {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Why its last attempt failed; none if it did not.
    pub fn failure(&self) -> Option<LaneFailure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When its oldest record was spooled, in Unix milliseconds; none without records. While it is drained, this can be
    /// that of a record that was published a moment ago.
    pub fn oldest(&self) -> Option<i64> {
        Some(self.oldest.load(Ordering::Relaxed)).filter(|oldest| *oldest != NONE)
    }

    /// Its oldest record was read, and was spooled then.
    pub fn set_oldest(&self, oldest: i64) {
        self.oldest.store(oldest, Ordering::Relaxed);
    }

    /// Bytes of its records on the disk.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Bytes of its records, including those that are being written.
    fn all_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire) + self.pending_bytes.load(Ordering::Acquire)
    }

    fn is_unused(&self) -> bool {
        self.records() == 0 && self.pending.load(Ordering::Acquire) == 0
    }
}

/// Most lanes of an output. Each takes memory for as long as it has records, and senders may choose topics.
const MAX_LANES: u64 = 20_000;

type ByTopic = FxHashMap<String, Arc<Lane>>;

/// The lanes of one output.
#[derive(Debug, Default)]
pub struct OutputLanes {
    by_topic: Mutex<ByTopic>,
    /// Number of lanes, so that the check for each event needs no lock while the spool is empty.
    count: AtomicU64,
}

impl OutputLanes {
    /// Whether records for the topic, in the spool or being written to it, wait for their attempt. Later ones wait behind
    /// them.
    pub fn has_backlog(&self, topic: &str) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.lock().get(topic).is_some_and(|lane| lane.has_backlog())
    }

    /// Records on the disk.
    pub fn records(&self) -> u64 {
        self.lock().values().map(|lane| lane.records()).sum()
    }

    /// Number of lanes with records on the disk: those that wait, and those whose last attempt failed.
    pub(super) fn states(&self) -> (u64, u64) {
        let (mut waiting, mut failing) = (0, 0);
        for lane in self.lock().values().filter(|lane| lane.records() > 0) {
            *(if lane.is_failing.load(Ordering::Relaxed) { &mut failing } else { &mut waiting }) += 1;
        }
        (waiting, failing)
    }

    /// The lanes with records on the disk.
    fn with_records(&self) -> Vec<Arc<Lane>> {
        self.lock().values().filter(|lane| lane.records() > 0).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, ByTopic> {
        self.by_topic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls a function with a lane, which is created if there is none. Removes the lane if it is empty then.
    fn with<T>(&self, output: &str, topic: &str, with: impl FnOnce(&Arc<Lane>) -> T) -> T {
        let mut by_topic = self.lock();
        let lane = match by_topic.get(topic) {
            Some(lane) => lane.clone(),
            None => by_topic.entry(topic.to_owned()).or_insert_with(|| Arc::new(Lane::new(output, topic))).clone(),
        };
        let result = with(&lane);
        if lane.is_unused() {
            by_topic.remove(topic);
        }
        self.count.store(by_topic.len() as u64, Ordering::Release);
        result
    }
}

/// How the records of a lane change in one transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) added: u64,
    pub(super) removed: u64,
    pub(super) bytes: i64,
}

/// Changes by output and by topic.
#[derive(Debug, Default)]
pub(super) struct Changes(FxHashMap<String, FxHashMap<String, Change>>);

impl Changes {
    /// Adds to the change of a lane.
    pub(super) fn add(&mut self, output: &str, topic: &str, change: Change) {
        // Looked up first, because most records of a transaction are for the same lane, and its names need no copy then.
        let Some(by_topic) = self.0.get_mut(output) else {
            self.0.insert(output.to_owned(), FxHashMap::from_iter([(topic.to_owned(), change)]));
            return;
        };
        match by_topic.get_mut(topic) {
            Some(sum) => {
                sum.added += change.added;
                sum.removed += change.removed;
                sum.bytes += change.bytes;
            }
            None => drop(by_topic.insert(topic.to_owned(), change)),
        }
    }
}

/// All lanes of a store.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    outputs: RwLock<FxHashMap<String, Arc<OutputLanes>>>,
    announced: Mutex<Vec<Arc<Lane>>>,
    bell: Notify,
}

impl Lanes {
    pub(super) fn of(&self, output: &str) -> Arc<OutputLanes> {
        if let Some(lanes) = self.outputs.read().unwrap_or_else(PoisonError::into_inner).get(output) {
            return lanes.clone();
        }
        self.outputs.write().unwrap_or_else(PoisonError::into_inner).entry(output.to_owned()).or_default().clone()
    }

    /// Every output that has lanes or had some.
    pub(super) fn outputs(&self) -> Vec<(String, Arc<OutputLanes>)> {
        let outputs = self.outputs.read().unwrap_or_else(PoisonError::into_inner);
        outputs.iter().map(|(output, lanes)| (output.clone(), lanes.clone())).collect()
    }

    /// The lanes that a person should see first: those that fail, and then those with the most records. At most so
    /// many; and how many more there are. Without what waits for room among the dead letters.
    pub(super) fn first(&self, most: usize) -> (Vec<Arc<Lane>>, usize) {
        let outputs = self.outputs().into_iter().filter(|(output, _)| output != AWAITS_DEAD_LETTERS);
        let lanes = outputs.flat_map(|(_, lanes)| lanes.with_records());
        // The keys are read once, because they change meanwhile.
        type Keyed = ((bool, Reverse<u64>), Arc<Lane>);
        let key = |lane: &Lane| (!lane.is_failing.load(Ordering::Relaxed), Reverse(lane.records()));
        let mut keyed: Vec<Keyed> = lanes.map(|lane| (key(&lane), lane)).collect();
        let more = keyed.len().saturating_sub(most);
        let order = |one: &Keyed, other: &Keyed| {
            let (a, b) = (&one.1, &other.1);
            one.0.cmp(&other.0).then_with(|| (&a.output, &a.topic).cmp(&(&b.output, &b.topic)))
        };
        if more > 0 {
            keyed.select_nth_unstable_by(most, order);
            keyed.truncate(most);
        }
        keyed.sort_by(order);
        (keyed.into_iter().map(|(_, lane)| lane).collect(), more)
    }

    /// Waits until records were added to lanes, and returns those lanes, each once. One caller at a time.
    pub(super) async fn filled(&self) -> Vec<Arc<Lane>> {
        loop {
            let announced = std::mem::take(&mut *self.announced());
            if !announced.is_empty() {
                for lane in &announced {
                    lane.is_announced.store(false, Ordering::Release);
                }
                return announced;
            }
            self.bell.notified().await;
        }
    }

    fn announced(&self) -> MutexGuard<'_, Vec<Arc<Lane>>> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self, lane: &Arc<Lane>) {
        if !lane.is_announced.swap(true, Ordering::AcqRel) {
            self.announced().push(lane.clone());
            self.bell.notify_one();
        }
    }

    /// Applies what a transaction has changed.
    pub(super) fn change(&self, changes: &Changes) {
        for (output, by_topic) in &changes.0 {
            let lanes = self.of(output);
            for (topic, change) in by_topic {
                lanes.with(output, topic, |lane| {
                    // Removed records were attempted. In this order no waiting record is overlooked in between.
                    lane.must_retry(change.removed);
                    if lane.records() == 0 {
                        lane.set_oldest(now());
                    }
                    lane.records.fetch_add(change.added, Ordering::AcqRel);
                    lane.records.store(lane.records().saturating_sub(change.removed), Ordering::Release);
                    let bytes = lane.bytes.load(Ordering::Acquire).saturating_add_signed(change.bytes);
                    lane.bytes.store(bytes, Ordering::Release);
                    if change.added > 0 {
                        self.announce(lane);
                    }
                });
            }
        }
    }

    /// Sets all lanes to a count of all rows.
    pub(super) fn set(&self, backlogs: &[Backlog]) {
        let counted: FxHashMap<(&str, &str), &Backlog> =
            backlogs.iter().map(|backlog| ((backlog.output.as_str(), backlog.topic.as_str()), backlog)).collect();
        let mut topics: Vec<(String, String)> = Vec::new();
        for (output, lanes) in self.outputs() {
            let gone = |topic: &&String| !counted.contains_key(&(output.as_str(), topic.as_str()));
            topics.extend(lanes.lock().keys().filter(gone).map(|topic| (output.clone(), topic.clone())));
        }
        topics.extend(backlogs.iter().map(|backlog| (backlog.output.clone(), backlog.topic.clone())));
        for (output, topic) in topics {
            let (records, bytes, oldest) = counted
                .get(&(output.as_str(), topic.as_str()))
                .map_or((0, 0, None), |counted| (counted.records, counted.bytes, counted.oldest));
            self.of(&output).with(&output, &topic, |lane| {
                lane.records.store(records, Ordering::Release);
                lane.bytes.store(bytes, Ordering::Release);
                lane.set_oldest(oldest.unwrap_or(NONE));
                if records > 0 {
                    self.announce(lane);
                }
            });
        }
    }

    /// Counts records as being written. The lane of a record that `is_bound` may hold `max_bytes` at most, and an output
    /// has at most [`MAX_LANES`] lanes.
    ///
    /// # Errors
    /// [`FailureKind::LaneFull`]. Nothing is counted then.
    pub(super) fn claim<'l>(
        &'l self,
        records: &[SpoolRecord],
        max_bytes: u64,
        is_bound: impl Fn(&SpoolRecord) -> bool,
    ) -> Result<PendingGuard<'l>, StoreError> {
        let mut guard = PendingGuard { lanes: self, claimed: Vec::with_capacity(records.len()) };
        for record in records {
            let (output, bytes) = (&record.output, record.bytes());
            let lanes = self.of(output);
            let is_crowded = lanes.count.load(Ordering::Acquire) >= MAX_LANES;
            let mut is_one_too_many = false;
            let has_room = lanes.with(output, &record.topic, |lane| {
                is_one_too_many = is_crowded && lane.is_unused();
                if is_one_too_many {
                    return false;
                }
                if is_bound(record) && lane.all_bytes() + bytes > max_bytes {
                    return false;
                }
                lane.pending.fetch_add(1, Ordering::AcqRel);
                lane.pending_bytes.fetch_add(bytes, Ordering::AcqRel);
                guard.claimed.push((lane.clone(), bytes));
                true
            });
            if is_one_too_many {
                let message = format!(
                    "output {output} has records for {MAX_LANES} topics in the spool; those for further topics are refused"
                );
                return Err(StoreError::new(FailureKind::LaneFull, message));
            }
            if !has_room {
                let message = format!(
                    "topic `{}` of output {output} has used its share of the spool (spool.lane_share)",
                    record.topic
                );
                return Err(StoreError::new(FailureKind::LaneFull, message));
            }
        }
        Ok(guard)
    }
}

/// Counts records as being written until it is dropped.
pub(super) struct PendingGuard<'l> {
    lanes: &'l Lanes,
    claimed: Vec<(Arc<Lane>, u64)>,
}

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        for (lane, bytes) in &self.claimed {
            // The lane is still that of its topic, because a lane with pending records is not removed.
            self.lanes.of(&lane.output).with(&lane.output, &lane.topic, |lane| {
                lane.pending.fetch_sub(1, Ordering::AcqRel);
                lane.pending_bytes.fetch_sub(*bytes, Ordering::AcqRel);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(output: &str, topic: String) -> Vec<SpoolRecord> {
        vec![SpoolRecord {
            output: output.to_owned(),
            route: String::new(),
            topic,
            key: None,
            mode: None,
            attempts: 0,
            spooled_at: 0,
            envelope: "{}".into(),
            body: "{}".into(),
        }]
    }

    #[test]
    fn an_output_has_a_limited_number_of_lanes() {
        let lanes = Lanes::default();
        let claim = |output: &str, topic: u64| lanes.claim(&record(output, topic.to_string()), 0, |_| false);
        let held: Vec<_> = (0..MAX_LANES).map(|topic| claim("bus", topic).expect("room")).collect();
        assert_eq!(claim("bus", MAX_LANES).err().expect("too many").kind, FailureKind::LaneFull);
        claim("bus", 7).expect("a lane that exists");
        claim(AWAITS_DEAD_LETTERS, MAX_LANES).expect("another output");
        drop(held);
        claim("bus", MAX_LANES).expect("room again");
    }

    #[test]
    fn lanes_that_fail_come_first_and_then_the_longest() {
        let lanes = Lanes::default();
        let backlog = |topic: u64| Backlog {
            output: "bus".to_owned(),
            topic: format!("topic{topic:04}"),
            records: topic,
            bytes: 1,
            oldest: Some(5),
        };
        let mut backlogs: Vec<Backlog> = (1..=5000).map(backlog).collect();
        backlogs.push(Backlog { output: AWAITS_DEAD_LETTERS.to_owned(), ..backlog(9000) });
        lanes.set(&backlogs);
        let failure =
            LaneFailure { since: 1, at: 2, kind: "timed_out", message: String::new(), attempts: 1, remedy: "" };
        lanes.of("bus").with("bus", "topic0007", |lane| lane.failed(failure.clone()));
        let (first, more) = lanes.first(3);
        let topics: Vec<&str> = first.iter().map(|lane| lane.topic()).collect();
        assert_eq!((topics, more), (vec!["topic0007", "topic5000", "topic4999"], 4997));
        assert_eq!((first[0].failure(), first[1].failure(), first[0].oldest()), (Some(failure), None, Some(5)));
        first[0].succeeded();
        assert_eq!((lanes.first(1).0[0].topic(), first[0].failure()), ("topic5000", None));
        lanes.set(&[]);
        assert!(lanes.first(3).0.is_empty());
    }
}
