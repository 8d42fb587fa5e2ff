//! The bounds on memory: bytes of bodies and envelopes in flight, and bytes of bodies that are still arriving.
//!
//! A full bound is back-pressure: the input waits until its deadline, and then refuses the callback. Arriving bodies have
//! a bound of their own, because their senders decide how long they take: whoever sends slowly holds nothing that complete
//! callbacks need.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::common::limit::Limit;

/// Bytes of one permit. Permits are counted in 32 bits.
const UNIT: u64 = 1 << 10;

/// Bytes of a callback in addition to its body and its envelope.
const OVERHEAD: u64 = 1 << 10;

/// Bytes of an arriving body that need no room: a callback of the usual size. They are in the memory of its connection.
const FREE: usize = 16 << 10;

/// The part of the bound that arriving bodies have in addition.
const ARRIVING_SHARE: u64 = 4;

/// The bytes that all callbacks share.
#[derive(Clone, Debug)]
pub(super) struct InFlightBytes {
    complete: Limit,
    arriving: Limit,
}

impl InFlightBytes {
    pub(super) fn new(bytes: u64) -> InFlightBytes {
        InFlightBytes { complete: Limit::new(permits(bytes)), arriving: Limit::new(permits(bytes / ARRIVING_SHARE)) }
    }

    /// Changes the bounds. Shares that are held stay, and count against them.
    pub(super) fn resize(&self, bytes: u64) {
        self.complete.resize(permits(bytes));
        self.arriving.resize(permits(bytes / ARRIVING_SHARE));
    }

    pub(super) fn begin(&self) -> Admission {
        Admission { share: Share::of(&self.complete), body_bytes: 0 }
    }

    pub(super) fn arriving(&self) -> Arriving {
        Arriving(Share::of(&self.arriving))
    }
}

fn permits(bytes: u64) -> usize {
    let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1);
    usize::try_from(units).unwrap_or(usize::MAX)
}

/// Permits of one bound.
#[derive(Debug)]
struct Share {
    bound: Limit,
    permit: Option<OwnedSemaphorePermit>,
}

/// There was no room for more bytes until the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("in-flight limit reached (delivery.max_in_flight_bytes)")]
pub struct NoRoom;

impl Share {
    fn of(bound: &Limit) -> Share {
        Share { bound: bound.clone(), permit: None }
    }

    /// Holds the permits of this many bytes, or all permits if the bound is smaller. Returns how long it has waited for
    /// them. May be cancelled.
    async fn grow_to(&mut self, bytes: u64, longest: Duration) -> Result<Duration, NoRoom> {
        let most = u32::try_from(self.bound.size()).unwrap_or(u32::MAX);
        let wanted = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(most);
        let held = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let Some(more) = wanted.checked_sub(u32::try_from(held).unwrap_or(u32::MAX)).filter(|more| *more > 0) else {
            return Ok(Duration::ZERO);
        };
        // The clock is read only where something is waited for, because nearly all callbacks find room.
        let (permit, waited) = match self.bound.semaphore().clone().try_acquire_many_owned(more) {
            Ok(permit) => (permit, Duration::ZERO),
            Err(_) => {
                let start = Instant::now();
                match tokio::time::timeout(longest, self.bound.acquire(more as usize)).await {
                    Ok(Some(permit)) => (permit, start.elapsed()),
                    Ok(None) | Err(_) => return Err(NoRoom),
                }
            }
        };
        match &mut self.permit {
            Some(held) => held.merge(permit),
            none => *none = Some(permit),
        }
        Ok(waited)
    }
}

/// The share of one callback whose body is complete. Dropping it returns the share.
#[derive(Debug)]
pub struct Admission {
    share: Share,
    body_bytes: u64,
}

impl Admission {
    /// Adds bytes of the body, and waits for their room, but not longer than given. Returns how long it has waited. A body
    /// that is larger than the whole bound waits until it is alone. May be cancelled.
    ///
    /// # Errors
    /// [`NoRoom`]. The caller refuses the callback.
    pub async fn grow(&mut self, bytes: usize, longest: Duration) -> Result<Duration, NoRoom> {
        self.body_bytes = self.body_bytes.saturating_add(bytes as u64);
        // The envelope repeats the body.
        self.share.grow_to(self.body_bytes.saturating_mul(2).saturating_add(OVERHEAD), longest).await
    }
}

/// The share of a body that is arriving. Dropping it returns the share.
#[derive(Debug)]
pub struct Arriving(Share);

impl Arriving {
    /// Makes room for a body of which this many bytes have arrived, and waits for it, but not longer than given. Returns how
    /// long it has waited. If it needs room at all, it gets as much as was declared at once. A body that is larger than the
    /// whole bound waits until it is alone. May be cancelled.
    ///
    /// # Errors
    /// [`NoRoom`]. The caller refuses the callback.
    pub async fn grow_to(&mut self, arrived: usize, declared: usize, longest: Duration) -> Result<Duration, NoRoom> {
        if arrived <= FREE {
            return Ok(Duration::ZERO);
        }
        self.0.grow_to(arrived.max(declared) as u64, longest).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Duration {
        Duration::from_millis(20)
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_in_flight_are_bounded_and_returned() {
        let bound = InFlightBytes::new(64 << 10);
        let mut first = bound.begin();
        first.grow(10 << 10, soon()).await.expect("there is room");
        first.grow(10 << 10, soon()).await.expect("there is room");
        let mut second = bound.begin();
        assert_eq!(second.grow(20 << 10, soon()).await, Err(NoRoom));
        drop(first);
        second.grow(1, soon()).await.expect("there is room again");
    }

    #[tokio::test(start_paused = true)]
    async fn arriving_bodies_hold_nothing_that_complete_ones_need() {
        let bound = InFlightBytes::new(256 << 10);
        let mut small: Vec<_> = (0..1000).map(|_| bound.arriving()).collect();
        for body in &mut small {
            body.grow_to(16 << 10, 256 << 10, soon()).await.expect("needs no room");
        }
        let mut large = bound.arriving();
        large.grow_to(17 << 10, 64 << 10, soon()).await.expect("a quarter of the bound");
        assert_eq!(small[0].grow_to(17 << 10, 0, soon()).await, Err(NoRoom));
        bound.begin().grow(127 << 10, soon()).await.expect("all of the bound");
        drop(large);
        small[0].grow_to(17 << 10, 0, soon()).await.expect("there is room again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_larger_than_the_bound_is_admitted_when_it_is_alone() {
        let bound = InFlightBytes::new(4 << 10);
        let mut other = bound.begin();
        other.grow(1, soon()).await.expect("there is room");
        let mut large = bound.begin();
        assert_eq!(large.grow(1 << 20, soon()).await, Err(NoRoom));
        drop((other, large));
        bound.begin().grow(1 << 20, soon()).await.expect("it is alone");
    }
}
