//! The open connections: what each of them is doing, and which of them has to go.
//!
//! A connection's task writes into its slot; the sweep and newcomers read it and leave orders there. All of it is
//! relaxed: an order that is late by one poll does no harm, and what an order assumes is looked at again when it is
//! carried out.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::task::AtomicWaker;
use futures_util::{Stream, StreamExt};
use tokio::time::Instant;

use super::{ANSWER_TIMEOUT, Bounds, IDLE_TIMEOUT, Loss};
use crate::common::descriptors;

/// The head of a request is expected or is coming, or the TLS handshake.
const HEAD: u8 = 0;
/// Between requests.
const IDLE: u8 = 1;
/// The head is there; the body may still be coming.
const REQUEST: u8 = 2;
/// A request was accepted, and its answer is being found. It has time limits of its own.
const DELIVERING: u8 = 3;
/// The last answer is written, and the peer has to close.
const LINGERING: u8 = 4;
/// An answer without an end is being written.
const STREAMING: u8 = 5;

/// Orders, as bits.
const FINISH: u8 = 1;
const HEAD_LATE: u8 = 2;
const EVICT: u8 = 4;
const ANSWER_NOT_READ: u8 = 8;
const HAND_OVER: u8 = 16;

/// No write is blocked.
const NOT_BLOCKED: u64 = u64::MAX;

/// Connections of the whole process, of all servers.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// One connection. Times are milliseconds since the server's start.
#[derive(Debug)]
pub(super) struct Slot {
    start: Instant,
    peer: IpAddr,
    phase: AtomicU8,
    /// Since when it is in this phase, or since the last byte of a body. No time matters for [`DELIVERING`].
    since: AtomicU64,
    blocked_since: AtomicU64,
    has_served: AtomicBool,
    was_accepted: AtomicBool,
    orders: AtomicU8,
    is_aborted: AtomicBool,
    /// The task of the connection.
    task: AtomicWaker,
}

/// What a connection has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// Close as soon as no request is being answered.
    pub(super) finish: bool,
    /// End at once.
    pub(super) loss: Option<Loss>,
}

impl Slot {
    fn new(start: Instant, peer: IpAddr) -> Slot {
        let slot = Slot {
            start,
            peer,
            phase: AtomicU8::new(HEAD),
            since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(NOT_BLOCKED),
            has_served: AtomicBool::new(false),
            was_accepted: AtomicBool::new(false),
            orders: AtomicU8::new(0),
            is_aborted: AtomicBool::new(false),
            task: AtomicWaker::new(),
        };
        slot.begin();
        slot
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(NOT_BLOCKED - 1)
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Relaxed)
    }

    fn enter(&self, phase: u8) {
        self.since.store(self.now(), Ordering::Relaxed);
        self.phase.store(phase, Ordering::Relaxed);
    }

    /// The time for a head begins.
    pub(super) fn begin(&self) {
        self.enter(HEAD);
    }

    pub(super) fn bytes_came(&self) {
        match self.phase() {
            IDLE => self.enter(HEAD),
            REQUEST => self.since.store(self.now(), Ordering::Relaxed),
            _ => {}
        }
    }

    pub(super) fn head_is_read(&self) {
        self.has_served.store(true, Ordering::Relaxed);
        self.enter(REQUEST);
    }

    pub(super) fn lingers(&self) {
        self.enter(LINGERING);
    }

    pub(super) fn streams(&self) {
        self.enter(STREAMING);
    }

    /// Makes the task of the connection look for an answer without an end.
    pub(super) fn hand_over(&self) {
        self.order(HAND_OVER);
    }

    pub(super) fn was_accepted(&self) -> bool {
        self.was_accepted.load(Ordering::Relaxed)
    }

    pub(super) fn write_is_blocked(&self) {
        if self.blocked_since.load(Ordering::Relaxed) == NOT_BLOCKED {
            self.blocked_since.store(self.now(), Ordering::Relaxed);
        }
    }

    pub(super) fn all_is_written(&self) {
        if self.blocked_since.load(Ordering::Relaxed) != NOT_BLOCKED {
            self.blocked_since.store(NOT_BLOCKED, Ordering::Relaxed);
        }
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.is_aborted.load(Ordering::Relaxed)
    }

    fn order(&self, order: u8) {
        if order & (EVICT | ANSWER_NOT_READ) != 0 {
            self.is_aborted.store(true, Ordering::Relaxed);
        }
        self.orders.fetch_or(order, Ordering::Release);
        self.task.wake();
    }

    /// Waits for an order. Only the task of the connection may do so.
    pub(super) fn order_given(&self) -> impl Future<Output = Order> {
        poll_fn(|context| self.poll_order(context))
    }

    /// A [`Notify`](tokio::sync::Notify) would take a lock each time that the task wakes up.
    fn poll_order(&self, context: &Context<'_>) -> Poll<Order> {
        self.task.register(context.waker());
        match self.orders.load(Ordering::Relaxed) {
            0 => Poll::Pending,
            _ => Poll::Ready(self.take_order()),
        }
    }

    /// What to do now. Each order is given once.
    fn take_order(&self) -> Order {
        let orders = self.orders.swap(0, Ordering::Acquire);
        let loss = match orders {
            _ if orders & EVICT != 0 => Some(Loss::Evicted),
            _ if orders & ANSWER_NOT_READ != 0 => Some(Loss::AnswerNotRead),
            // A head that has become complete in the meantime is answered.
            _ if orders & HEAD_LATE != 0 && self.phase() == HEAD => Some(Loss::HeadLate),
            _ => None,
        };
        Order { finish: orders & FINISH != 0, loss }
    }

    /// Ends when the connection is lost.
    pub(super) async fn lost(&self) -> Loss {
        loop {
            if let Some(loss) = self.order_given().await.loss {
                return loss;
            }
        }
    }

    /// How soon it may be closed for another connection, the smallest first: its worth, and since when nothing useful has
    /// happened.
    fn rank(&self) -> Option<(u8, u64)> {
        let since = self.since.load(Ordering::Relaxed);
        let blocked = self.blocked_since.load(Ordering::Relaxed);
        match self.phase() {
            // Who does not read has no use for its place, whatever it sent before.
            _ if blocked != NOT_BLOCKED => Some((0, since.min(blocked))),
            LINGERING => Some((0, since)),
            DELIVERING => None,
            // There are few of them, and their peers would come back at once.
            STREAMING => Some((1, since)),
            _ if !self.was_accepted() => Some((0, since)),
            IDLE => Some((1, since)),
            _ => Some((2, since)),
        }
    }
}

/// The pieces of an answer without an end.
pub(super) type Pieces = BoxStream<'static, Bytes>;

/// What a service may learn and say about the connection of the request that it answers.
pub struct Connection {
    slot: Arc<Slot>,
    local: Option<IpAddr>,
    pieces: Mutex<Option<Pieces>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connection").field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(slot: Arc<Slot>, local: Option<IpAddr>) -> Connection {
        Connection { slot, local, pieces: Mutex::default() }
    }

    /// The address of the peer.
    pub fn peer(&self) -> IpAddr {
        self.slot.peer
    }

    /// The address of this machine that the peer has connected to; none if the system did not say it, because the
    /// connection had ended already.
    pub fn local(&self) -> Option<IpAddr> {
        self.local
    }

    /// Says that the request is complete and was let in: from now on the connection is not closed for another one.
    pub fn is_delivering(&self) {
        self.slot.phase.store(DELIVERING, Ordering::Relaxed);
    }

    /// Says that the body of the answer is these pieces, however long they come. The connection ends after the last one,
    /// and when the peer closes its side or does not read.
    pub fn stream(&self, pieces: impl Stream<Item = Bytes> + Send + 'static) {
        *self.pieces.lock().unwrap_or_else(PoisonError::into_inner) = Some(pieces.boxed());
    }

    pub(super) fn take_pieces(&mut self) -> Option<Pieces> {
        self.pieces.get_mut().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn answered(&self, is_accepted: bool) {
        self.slot.was_accepted.store(is_accepted, Ordering::Relaxed);
        self.slot.enter(IDLE);
    }
}

/// All slots of a server.
#[derive(Debug)]
pub(super) struct Slots {
    bounds: Bounds,
    start: Instant,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    slots: HashMap<u64, (IpAddr, Arc<Slot>)>,
    by_address: HashMap<IpAddr, usize>,
    next: u64,
}

/// The place of one connection. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Seat {
    slots: Arc<Slots>,
    number: u64,
    slot: Arc<Slot>,
}

impl Seat {
    pub(super) fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
        self.slots.open().remove(self.number);
    }
}

impl Slots {
    pub(super) fn new(bounds: Bounds) -> Slots {
        Slots { bounds, start: Instant::now(), open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.open().slots.len()
    }

    /// A place for a connection from this address; another connection may have to go for it.
    pub(super) fn enter(self: &Arc<Slots>, peer: IpAddr) -> Result<Seat, Loss> {
        let address = host(peer);
        let mut open = self.open();
        let mine = open.by_address.get(&address).copied().unwrap_or_default();
        if self.bounds.max_per_address.is_some_and(|most| mine >= most) {
            return Err(Loss::NoRoomForAddress);
        }
        let limit = descriptors::limit();
        let descriptors = limit.saturating_sub(self.bounds.spared_descriptors).max(limit / 2);
        let is_full = open.slots.len() >= self.bounds.max_connections || OPEN.load(Ordering::Relaxed) >= descriptors;
        if is_full && !open.evict() {
            return Err(Loss::NoRoom);
        }
        let number = open.next;
        open.next += 1;
        let slot = Arc::new(Slot::new(self.start, peer));
        open.slots.insert(number, (address, slot.clone()));
        *open.by_address.entry(address).or_default() += 1;
        OPEN.fetch_add(1, Ordering::Relaxed);
        Ok(Seat { slots: self.clone(), number, slot })
    }

    /// Closes the connection that is worth least and has been idle longest. Returns whether there was one.
    pub(super) fn evict(&self) -> bool {
        self.open().evict()
    }

    /// Closes connections as soon as they are idle. `spares_new`: not those that have not had a request yet, because their
    /// first one may be on its way.
    pub(super) fn finish(&self, spares_new: bool) {
        for (_, slot) in self.open().slots.values() {
            if !spares_new || slot.has_served.load(Ordering::Relaxed) {
                slot.order(FINISH);
            }
        }
    }

    /// How often [`Slots::sweep`] should run.
    pub(super) fn sweep_interval(&self) -> Duration {
        (self.bounds.header_timeout / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

    /// Gives orders to connections whose time is over.
    pub(super) fn sweep(&self) {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (head, idle) = (millis(self.bounds.header_timeout), millis(IDLE_TIMEOUT));
        for (_, slot) in self.open().slots.values() {
            let now = slot.now();
            // The phase first: the time that belongs to it, or a later one, is read then.
            let phase = slot.phase();
            let waited = now.saturating_sub(slot.since.load(Ordering::Relaxed));
            let blocked = now.saturating_sub(slot.blocked_since.load(Ordering::Relaxed));
            if blocked >= millis(ANSWER_TIMEOUT) {
                slot.order(ANSWER_NOT_READ);
            } else if phase == HEAD && waited >= head {
                slot.order(HEAD_LATE);
            } else if phase == IDLE && waited >= idle {
                slot.order(FINISH);
            }
        }
    }
}

impl Open {
    fn remove(&mut self, number: u64) {
        let Some((address, _)) = self.slots.remove(&number) else { return };
        if let Some(count) = self.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
    }

    fn evict(&mut self) -> bool {
        let candidates = self.slots.iter().filter_map(|(number, (_, slot))| Some((slot.rank()?, *number)));
        let Some((_, number)) = candidates.min() else { return false };
        if let Some((_, slot)) = self.slots.get(&number) {
            slot.order(EVICT);
        }
        self.remove(number);
        true
    }
}

/// What counts as one address: all of an IPv6 network of 64 bits, and an IPv4 address also where it is written as IPv6.
fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(max_connections: usize, max_per_address: Option<usize>) -> Arc<Slots> {
        Arc::new(Slots::new(Bounds {
            max_connections,
            max_per_address,
            header_timeout: Duration::from_secs(5),
            spared_descriptors: 0,
        }))
    }

    fn from(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    fn connection_of(seat: &Seat) -> Connection {
        Connection::new(seat.slot().clone(), None)
    }

    async fn later() {
        tokio::time::advance(Duration::from_millis(10)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_is_worth_least_and_idle_longest_has_to_go() {
        let slots = slots(6, None);
        let mut seats = Vec::new();
        for number in 0..6 {
            seats.push(slots.enter(from(number)).expect("room"));
            later().await;
        }
        let connection = |number: usize| connection_of(&seats[number]);
        connection(0).is_delivering();
        connection(1).answered(true);
        seats[1].slot().bytes_came();
        for number in [2, 3] {
            connection(number).answered(true);
            later().await;
        }
        // The silent ones in their order, then the accepted ones that are idle, then the one whose head is coming.
        for number in [4, 5, 2, 3, 1] {
            let newcomer = slots.enter(from(9)).expect("room");
            assert_eq!(seats[number].slot().take_order().loss, Some(Loss::Evicted), "{number}");
            assert!(seats[number].slot().is_aborted());
            connection_of(&newcomer).is_delivering();
            seats.push(newcomer);
        }
        assert_eq!(slots.enter(from(9)).expect_err("all are delivering"), Loss::NoRoom);
        assert_eq!(slots.len(), 6);
        drop(seats);
        assert_eq!(slots.len(), 0);
        assert!(slots.open().by_address.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_counts_as_idle_since_then() {
        let slots = slots(2, None);
        let (first, second) = (slots.enter(from(1)).expect("room"), slots.enter(from(2)).expect("room"));
        second.slot().write_is_blocked();
        later().await;
        first.slot().head_is_read();
        second.slot().head_is_read();
        let _newcomer = slots.enter(from(3)).expect("room");
        assert_eq!(second.slot().take_order().loss, Some(Loss::Evicted));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_its_share_and_an_ipv6_network_is_one() {
        let slots = slots(10, Some(2));
        let network = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1"]
            .map(|text| text.parse().expect("an address"));
        let seats = [slots.enter(network[0]).expect("room"), slots.enter(network[1]).expect("room")];
        assert_eq!(slots.enter(network[2]).expect_err("the network has two"), Loss::NoRoomForAddress);
        let _other = slots.enter(network[3]).expect("another network");
        drop(seats);
        let _again = slots.enter(network[2]).expect("room again");
        let _v4 =
            (slots.enter(from(1)).expect("room"), slots.enter("::ffff:127.0.0.1".parse().expect("v6")).expect("room"));
        assert_eq!(slots.enter(from(1)).expect_err("both forms are one address"), Loss::NoRoomForAddress);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_read_is_not_idle() {
        let slots = slots(2, None);
        let (stream, probe) = (slots.enter(from(1)).expect("room"), slots.enter(from(2)).expect("room"));
        stream.slot().streams();
        later().await;
        connection_of(&probe).answered(false);
        tokio::time::advance(IDLE_TIMEOUT * 2).await;
        stream.slot().bytes_came();
        slots.sweep();
        assert_eq!(stream.slot().take_order(), Order { finish: false, loss: None });
        let newcomer = slots.enter(from(3)).expect("room");
        assert_eq!(probe.slot().take_order().loss, Some(Loss::Evicted), "a probe is less worth");
        stream.slot().write_is_blocked();
        let _another = slots.enter(from(3)).expect("room");
        assert_eq!(stream.slot().take_order().loss, Some(Loss::Evicted), "unless it is not read");
        drop(newcomer);
    }

    #[tokio::test(start_paused = true)]
    async fn times_are_limited() {
        let slots = slots(10, None);
        let seats = [1, 2, 3, 4].map(|last| slots.enter(from(last)).expect("room"));
        let [head, idle, blocked, delivering] = &seats;
        connection_of(idle).answered(true);
        connection_of(blocked).answered(true);
        blocked.slot().write_is_blocked();
        connection_of(delivering).is_delivering();
        let losses = || seats.each_ref().map(|seat| seat.slot().take_order());
        let nothing = Order { finish: false, loss: None };
        tokio::time::advance(Duration::from_millis(4_999)).await;
        slots.sweep();
        assert_eq!(losses(), [nothing; 4]);
        tokio::time::advance(Duration::from_millis(1)).await;
        slots.sweep();
        assert_eq!(losses(), [Order { finish: false, loss: Some(Loss::HeadLate) }, nothing, nothing, nothing]);
        head.slot().head_is_read();
        tokio::time::advance(ANSWER_TIMEOUT).await;
        slots.sweep();
        assert_eq!(losses(), [nothing, nothing, Order { finish: false, loss: Some(Loss::AnswerNotRead) }, nothing]);
        tokio::time::advance(IDLE_TIMEOUT).await;
        slots.sweep();
        assert!(losses()[1].finish);
    }
}
