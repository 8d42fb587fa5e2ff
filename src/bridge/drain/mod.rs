//! The drain of the spool.
//!
//! * A lane is one topic of one output. Each lane is drained alone and in order: a batch is read, published and removed
//!   from the disk, while the next batch is being read. Lanes take turns.
//! * A lane that fails delays no other. It is tried again after a pause that doubles, with a single record at first, apart
//!   from healthy lanes (`lane`). A lane of an output that is down waits for the output.
//! * A bridge that is killed publishes again what was published and not removed yet, with the same ids. Records that
//!   cannot be removed, because the disk is full or fails, are remembered and not published again before a restart
//!   (`settled`).
//! * Records that a bus will never accept, and records older than `delivery.give_up_after` in a lane that has failed with
//!   operator's errors for that long, become dead letters.

mod batch;
mod lane;
mod report;
mod settled;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Bridge;
use crate::output::MAX_PUBLISH_TIME;
use crate::store::{
    AWAITS_DEAD_LETTERS, FailureKind, Lane, LaneFailure, Reader, Retained, Settled, Spooled, Store, StoreError, now,
};
use batch::{Batch, Published};
use lane::{LaneDrain, Phase};
use report::Reports;
use settled::Unremoved;

/// Most lanes that one read covers.
const READ_TOGETHER: usize = 64;

/// Pause of a lane that cannot be read.
const UNREADABLE: Duration = Duration::from_secs(1);

/// Pause before records are tried again whose dead letters had no room.
const RETAINED_FOR: Duration = Duration::from_secs(30);

/// Bounds of the memory, for healthy lanes and for those apart: bytes of all batches, number of batches, bytes of one
/// batch. One record beyond a bound may be read, so that every record can be read.
///
/// The number of batches is enough for a few thousand lanes whose bus does not answer. Each of them holds its place until
/// its time is over, and further lanes wait.
const BOUNDS: [(u64, usize, u64); 2] = [(16 << 20, 4096, 8 << 20), (8 << 20, 4096, 1 << 20)];

/// Identifies a lane: its address.
type LaneId = usize;

fn id_of(lane: &Arc<Lane>) -> LaneId {
    Arc::as_ptr(lane).addr()
}

impl Bridge {
    /// Publishes what is stored in the spool, for as long as the bridge runs. After `stopping` no batch begins, and batches
    /// that are being published are finished. May be cancelled: what was published and not removed yet is published again
    /// at the next start.
    pub async fn drain(self: Arc<Self>, stopping: CancellationToken) {
        if let Some(store) = &self.store {
            Drain::new(&self, store).run(stopping).await;
        }
    }
}

/// Lanes of one kind, healthy or apart, that are to be read, and the memory that they use.
#[derive(Default)]
struct Queue {
    ready: VecDeque<LaneId>,
    bytes: u64,
    batches: usize,
}

/// One read of several lanes.
struct Read {
    reader: Reader,
    found: Vec<Found>,
}

struct Found {
    request: Request,
    /// None if there was no room for its records.
    records: Option<Result<Vec<Spooled>, StoreError>>,
}

struct Request {
    id: LaneId,
    turn: u64,
    lane: Arc<Lane>,
    after: i64,
    records: usize,
    bytes: u64,
    is_apart: bool,
}

/// A batch that ended.
struct Ended {
    id: LaneId,
    is_apart: bool,
    bytes: u64,
    published: Published,
}

type Removed = (Vec<(LaneId, Settled)>, Result<Retained, StoreError>);

/// Progress of an output.
struct Progress {
    lanes: usize,
    began: Instant,
    records: u64,
    is_said: bool,
}

struct Drain<'b> {
    bridge: &'b Arc<Bridge>,
    store: &'b Store,
    lanes: FxHashMap<LaneId, LaneDrain>,
    queues: [Queue; 2],
    /// Lanes that wait for their output.
    parked: FxHashMap<String, Vec<LaneId>>,
    came_up: FuturesUnordered<BoxFuture<'b, String>>,
    /// When waiting lanes are to be read. Void if the turn of the lane has changed.
    alarms: BinaryHeap<Reverse<(Instant, LaneId, u64)>>,
    reader: Option<Reader>,
    reading: Option<AbortOnDropHandle<Read>>,
    publishing: FuturesUnordered<BoxFuture<'b, Ended>>,
    unremoved: Unremoved,
    /// Positions that were removed since the present read began. The read may still find them.
    just_removed: FxHashSet<i64>,
    removing: Option<BoxFuture<'b, Removed>>,
    progress: FxHashMap<String, Progress>,
    reports: Reports,
    is_stopping: bool,
}

impl<'b> Drain<'b> {
    fn new(bridge: &'b Arc<Bridge>, store: &'b Store) -> Drain<'b> {
        Drain {
            bridge,
            store,
            lanes: FxHashMap::default(),
            queues: Default::default(),
            parked: FxHashMap::default(),
            came_up: FuturesUnordered::new(),
            alarms: BinaryHeap::new(),
            reader: None,
            reading: None,
            publishing: FuturesUnordered::new(),
            unremoved: Unremoved::new(),
            just_removed: FxHashSet::default(),
            removing: None,
            progress: FxHashMap::default(),
            reports: Reports::new(store.path()),
            is_stopping: false,
        }
    }

    async fn run(mut self, stopping: CancellationToken) {
        loop {
            self.start_reading();
            self.start_removing();
            let alarm = self.alarms.peek().map(|Reverse((at, ..))| *at);
            let retry = if self.removing.is_none() { self.unremoved.next_try() } else { None };
            let report = self.reports.next_write();
            tokio::select! {
                biased;
                () = stopping.cancelled() => break,
                lanes = self.store.filled() => lanes.into_iter().for_each(|lane| self.filled(lane)),
                Some(ended) = self.publishing.next() => self.ended(ended),
                removed = done(&mut self.removing) => self.removed(removed),
                read = done(&mut self.reading) => self.read(read),
                Some(output) = self.came_up.next() => self.output_came_up(&output),
                () = at(alarm) => self.alarm(),
                () = at(retry) => {}
                () = at(report) => self.reports.write(self.lanes.values()),
            }
        }
        self.finish().await;
    }

    /// Waits for what is being published, and removes it at once. The future may be dropped at any time, and what is still
    /// on the disk then is published again.
    async fn finish(mut self) {
        self.is_stopping = true;
        loop {
            self.start_removing();
            let is_failing = self.removing.is_none() && !self.unremoved.is_empty();
            if self.publishing.is_empty() && (self.removing.is_none() || is_failing) {
                return;
            }
            tokio::select! {
                Some(ended) = self.publishing.next() => self.ended(ended),
                removed = done(&mut self.removing) => self.removed(removed),
            }
        }
    }

    /// Records were added to a lane.
    fn filled(&mut self, lane: Arc<Lane>) {
        let id = id_of(&lane);
        let output = lane.output();
        if output != AWAITS_DEAD_LETTERS && !self.bridge.outputs.contains_key(output) {
            return;
        }
        if !self.lanes.contains_key(&id) {
            let new = || Progress { lanes: 0, began: Instant::now(), records: 0, is_said: false };
            self.progress.entry(output.to_owned()).or_insert_with(new).lanes += 1;
        }
        let lane = self.lanes.entry(id).or_insert_with(|| LaneDrain::new(lane));
        lane.has_more = true;
        if matches!(lane.phase, Phase::Idle | Phase::Resting) && lane.ahead.is_none() {
            self.enqueue(id);
        }
    }

    fn enqueue(&mut self, id: LaneId) {
        if let Some(lane) = self.lanes.get_mut(&id).filter(|_| !self.is_stopping) {
            lane.phase = Phase::Queued;
            self.queues[usize::from(lane.is_apart())].ready.push_back(id);
        }
    }

    fn is_up(&self, output: &str) -> bool {
        output == AWAITS_DEAD_LETTERS || self.bridge.is_up(output)
    }

    /// Makes a lane wait until its output is up.
    fn park(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        lane.phase = Phase::Waiting;
        lane.output_is_down();
        let output = lane.lane.output().to_owned();
        let parked = self.parked.entry(output.clone()).or_default();
        if parked.is_empty()
            && let Some(handle) = self.bridge.outputs.get(&output)
        {
            self.came_up.push(Box::pin(async move {
                handle.health().wait_until_up().await;
                output
            }));
        }
        parked.push(id);
    }

    fn output_came_up(&mut self, output: &str) {
        for id in self.parked.remove(output).unwrap_or_default() {
            if self.lanes.get(&id).is_some_and(|lane| lane.phase == Phase::Waiting) {
                self.enqueue(id);
            }
        }
    }

    /// Reads a lane later.
    fn wait(&mut self, id: LaneId, phase: Phase, time: Duration) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        lane.phase = phase;
        lane.turn += 1;
        self.alarms.push(Reverse((Instant::now() + time, id, lane.turn)));
    }

    fn alarm(&mut self) {
        while let Some(Reverse((at, id, turn))) = self.alarms.peek().copied() {
            if Instant::now() < at {
                return;
            }
            self.alarms.pop();
            let Some(lane) = self.lanes.get_mut(&id).filter(|lane| lane.turn == turn) else { continue };
            match lane.phase {
                Phase::Waiting => self.enqueue(id),
                Phase::Resting => self.read_again(id),
                Phase::Idle | Phase::Queued | Phase::Reading => {}
            }
        }
    }

    /// Starts to read the next lanes, if no read is running and there is room for their records.
    fn start_reading(&mut self) {
        if self.reading.is_some() || self.unremoved.is_full() || self.is_stopping {
            return;
        }
        let mut requests = Vec::new();
        let mut room = [0; 2];
        for is_apart in [false, true] {
            let (bytes, batches, batch_bytes) = BOUNDS[usize::from(is_apart)];
            let queue = &self.queues[usize::from(is_apart)];
            room[usize::from(is_apart)] = bytes.saturating_sub(queue.bytes);
            let mut free = batches.saturating_sub(queue.batches).min(READ_TOGETHER);
            while free > 0
                && room[usize::from(is_apart)] > 0
                && let Some(id) = self.queues[usize::from(is_apart)].ready.pop_front()
            {
                let Some(lane) = self.lanes.get(&id).filter(|lane| lane.phase == Phase::Queued) else { continue };
                if lane.is_apart() != is_apart {
                    self.enqueue(id);
                } else if !self.is_up(lane.lane.output()) {
                    self.park(id);
                } else if let Some(lane) = self.lanes.get_mut(&id) {
                    requests.push(lane.request(id, batch_bytes));
                    free -= 1;
                }
            }
        }
        if !requests.is_empty() {
            let reader = self.reader.take().unwrap_or_else(|| self.store.reader());
            let read = tokio::task::spawn_blocking(move || read(reader, requests, room));
            self.reading = Some(AbortOnDropHandle::new(read));
        }
    }

    fn read(&mut self, read: Result<Read, tokio::task::JoinError>) {
        let Ok(Read { reader, found }) = read else {
            let being_read = self.lanes.iter().filter(|(_, lane)| lane.phase == Phase::Reading);
            let being_read: Vec<LaneId> = being_read.map(|(id, _)| *id).collect();
            return being_read.into_iter().for_each(|id| self.wait(id, Phase::Waiting, UNREADABLE));
        };
        self.reader = Some(reader);
        for Found { request, records } in found {
            let id = request.id;
            let Some(lane) = self.lanes.get_mut(&id).filter(|lane| lane.turn == request.turn) else { continue };
            match records {
                None => self.enqueue(id),
                Some(Ok(records)) => {
                    lane.has_more |= records.len() == request.records || Batch::bytes(&records) >= request.bytes;
                    lane.phase = Phase::Idle;
                    self.found(id, records);
                }
                Some(Err(error)) => {
                    self.reports.unreadable(lane.lane.output(), &error);
                    self.wait(id, Phase::Waiting, UNREADABLE);
                }
            }
        }
        self.just_removed.clear();
        if self.publishing.is_empty() && self.queues.iter().all(|queue| queue.ready.is_empty()) {
            // An open connection would keep a file that was replaced.
            self.reader = None;
        }
    }

    /// The next records of a lane were read.
    fn found(&mut self, id: LaneId, mut records: Vec<Spooled>) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let Some(last) = records.last().map(|spooled| spooled.seq) else { return self.idle(id) };
        lane.after = last;
        records.retain(|spooled| !self.unremoved.contains(spooled.seq) && !self.just_removed.contains(&spooled.seq));
        if records.is_empty() {
            lane.has_more = true;
            return self.idle(id);
        }
        let queue = &mut self.queues[usize::from(lane.is_apart())];
        queue.bytes += Batch::bytes(&records);
        queue.batches += 1;
        if lane.is_publishing {
            lane.ahead = Some((records, lane.is_apart()));
        } else {
            let is_apart = lane.is_apart();
            self.publish(id, records, is_apart);
        }
    }

    /// Starts to publish a batch. The next batch of a healthy lane is read at the same time.
    fn publish(&mut self, id: LaneId, records: Vec<Spooled>, is_apart: bool) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        lane.is_publishing = true;
        let give_up_after = self.bridge.give_up_after();
        let is_given_up = lane.failing.as_ref().is_some_and(|failing| failing.is_given_up(give_up_after));
        let bytes = Batch::bytes(&records);
        let output = lane.lane.output().to_owned();
        if let Some(progress) = self.progress.get_mut(&output)
            && !std::mem::replace(&mut progress.is_said, true)
        {
            progress.began = Instant::now();
            tracing::info!(output, records = self.store.lanes(&output).records(), "draining the spool");
        }
        let batch = Batch {
            lane: lane.lane.clone(),
            records,
            is_followed: lane.is_followed(),
            time: if lane.is_apart() { MAX_PUBLISH_TIME } else { self.bridge.deadline },
            attempts: lane.failing.as_ref().map_or(0, |failing| failing.attempts),
            give_up_before: is_given_up.then(|| now().saturating_sub_unsigned(millis(give_up_after))),
        };
        let first = batch.records.first().map_or(0, |spooled| {
            batch.lane.set_oldest(spooled.record.spooled_at);
            spooled.seq
        });
        let publishing = AbortOnDropHandle::new(tokio::spawn(batch.publish(self.bridge.clone())));
        self.publishing.push(Box::pin(async move {
            let published = publishing.await.unwrap_or_else(|error| Published::lost(first, &error));
            Ended { id, is_apart, bytes, published }
        }));
        if lane.has_more && !lane.is_apart() {
            self.enqueue(id);
        }
    }

    fn ended(&mut self, ended: Ended) {
        let Ended { id, is_apart, bytes, published } = ended;
        self.left_memory(is_apart, bytes);
        let is_up = self.lanes.get(&id).is_some_and(|lane| self.is_up(lane.lane.output()));
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        lane.is_publishing = false;
        lane.unremoved += published.settled.len();
        let took = published.took;
        self.unremoved.add(id, published.settled);
        let ahead = lane.ahead.take();
        let Some((seq, error)) = published.failed else {
            if published.has_given_up {
                lane.gave_up();
            } else if let Some(failing) = lane.succeeded(took, self.bridge.deadline) {
                self.reports.recovered(&lane.lane, &failing);
            }
            return match ahead {
                Some((records, is_apart)) if self.is_stopping => self.left_memory(is_apart, Batch::bytes(&records)),
                Some((records, is_apart)) => self.publish(id, records, is_apart),
                None if lane.phase == Phase::Idle => self.idle(id),
                None => {}
            };
        };
        lane.reread(seq - 1);
        if is_up {
            let pause = lane.failed(error, published.has_given_up);
            self.reports.failed(lane, self.bridge.give_up_after());
            self.wait(id, Phase::Waiting, pause);
        } else {
            tracing::debug!(output = lane.lane.output(), topic = lane.lane.topic(), %error, "the output went down");
            self.park(id);
        }
        if let Some((records, is_apart)) = ahead {
            self.left_memory(is_apart, Batch::bytes(&records));
        }
    }

    fn left_memory(&mut self, is_apart: bool, bytes: u64) {
        let queue = &mut self.queues[usize::from(is_apart)];
        queue.bytes = queue.bytes.saturating_sub(bytes);
        queue.batches = queue.batches.saturating_sub(1);
    }

    /// Nothing is running for a lane: reads on, waits for what is being removed, or ends the lane.
    fn idle(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        if lane.is_publishing {
            return;
        }
        if lane.has_more {
            return self.enqueue(id);
        }
        // It is looked at again when the removal has ended.
        if lane.unremoved > 0 {
            return;
        }
        if lane.lane.records() == 0 {
            return self.end(id);
        }
        let rest = match lane.retained {
            // There was no room for their dead letters.
            Some(since) => RETAINED_FOR.saturating_sub(since.elapsed()),
            None => UNREADABLE,
        };
        if rest.is_zero() { self.read_again(id) } else { self.wait(id, Phase::Resting, rest) }
    }

    /// Reads a lane from its beginning.
    fn read_again(&mut self, id: LaneId) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.retained = None;
            lane.reread(0);
            self.enqueue(id);
        }
    }

    /// A lane is empty.
    fn end(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.remove(&id) else { return };
        if lane.failing.is_some() {
            // All of its records became dead letters, or a command removed them.
            self.reports.changed();
        }
        let output = lane.lane.output();
        let Some(progress) = self.progress.get_mut(output) else { return };
        progress.lanes -= 1;
        if progress.lanes == 0 {
            let (records, took) = (progress.records, progress.began.elapsed());
            if progress.is_said {
                tracing::info!(output, records, ?took, "the spool is drained");
            }
            self.progress.remove(output);
        }
    }

    fn start_removing(&mut self) {
        if self.removing.is_some() {
            return;
        }
        let due = self.unremoved.due();
        if !due.is_empty() {
            let store = self.store;
            self.removing = Some(Box::pin(async move {
                let settled = due.iter().map(|(_, settled)| settled.clone()).collect();
                let result = store.settle(settled).await;
                (due, result)
            }));
        }
    }

    fn removed(&mut self, (tried, result): Removed) {
        self.unremoved.tried(&tried, &result);
        let Ok(retained) = result else { return };
        self.reports.retained(&retained);
        for (id, settled) in tried {
            let is_retained = retained.contains(&settled.seq);
            if self.reading.is_some() {
                self.just_removed.insert(settled.seq);
            }
            if let Some(became) = settled.letter.filter(|_| !is_retained) {
                self.bridge.dead_letter_kept(&became.letter);
                self.bridge.feed.dead_letter(&became.letter);
            }
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            lane.unremoved = lane.unremoved.saturating_sub(1);
            if is_retained {
                lane.retained.get_or_insert_with(Instant::now);
                lane.lane.failed(no_room_for_letters(lane.lane.failure()));
                lane.lane.must_retry(1);
            }
            if let Some(progress) = self.progress.get_mut(lane.lane.output()) {
                progress.records += u64::from(!is_retained);
            }
            if lane.unremoved == 0 && lane.phase == Phase::Idle {
                self.idle(id);
            }
        }
    }
}

impl LaneDrain {
    fn request(&mut self, id: LaneId, bytes: u64) -> Request {
        self.phase = Phase::Reading;
        self.has_more = false;
        Request {
            id,
            turn: self.turn,
            lane: self.lane.clone(),
            after: self.after,
            records: self.wanted(),
            bytes,
            is_apart: self.is_apart(),
        }
    }
}

/// Why a lane stands still when there was no room for its dead letters.
fn no_room_for_letters(before: Option<LaneFailure>) -> LaneFailure {
    let kind = FailureKind::DeadLettersFull.as_str();
    let at = now();
    let before = before.filter(|before| before.kind == kind);
    LaneFailure {
        since: before.as_ref().map_or(at, |before| before.since),
        at,
        kind,
        message: "the dead letters are full".to_owned(),
        attempts: before.map_or(0, |before| before.attempts).saturating_add(1),
        remedy: "replay or delete dead letters, or raise dead_letters.max_bytes",
    }
}

/// Reads lanes until the room of their kind, healthy or apart, is used.
fn read(mut reader: Reader, requests: Vec<Request>, mut room: [u64; 2]) -> Read {
    let mut found = Vec::with_capacity(requests.len());
    for mut request in requests {
        let room = &mut room[usize::from(request.is_apart)];
        let records = (*room > 0).then(|| {
            request.bytes = request.bytes.min(*room);
            let (output, topic) = (request.lane.output(), request.lane.topic());
            let read = reader.read(output, Some(topic), request.after, request.records, request.bytes);
            *room = room.saturating_sub(read.as_ref().map_or(0, |records| Batch::bytes(records)));
            read
        });
        found.push(Found { request, records });
    }
    Read { reader, found }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Waits for the running future, if there is one, and removes it.
async fn done<F: Future + Unpin>(running: &mut Option<F>) -> F::Output {
    match running {
        Some(future) => {
            let output = future.await;
            *running = None;
            output
        }
        None => std::future::pending().await,
    }
}

/// Waits until a time, or for ever without one.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
