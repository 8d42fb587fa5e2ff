//! The bound on memory: bytes of bodies and envelopes in flight.
//!
//! An input asks for room before it reads a body, because half-read bodies would wait for each other. A full bound is
//! back-pressure: the input waits until its deadline, and then refuses the callback.

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::common::limit::Limit;

/// Bytes of one permit. Permits are counted in 32 bits.
const UNIT: u64 = 1 << 10;

/// Bytes of a callback in addition to its body and its envelope.
const OVERHEAD: u64 = 1 << 10;

/// The bytes that all callbacks share.
#[derive(Clone, Debug)]
pub(super) struct InFlightBytes(Limit);

impl InFlightBytes {
    pub(super) fn new(bytes: u64) -> InFlightBytes {
        InFlightBytes(Limit::new(permits(bytes)))
    }

    /// Changes the bound. Shares that are held stay, and count against it.
    pub(super) fn resize(&self, bytes: u64) {
        self.0.resize(permits(bytes));
    }

    pub(super) fn begin(&self) -> Admission {
        Admission { bound: self.clone(), body_bytes: 0, permit: None }
    }
}

fn permits(bytes: u64) -> usize {
    let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1);
    usize::try_from(units).unwrap_or(usize::MAX)
}

/// The share of one callback. Dropping it returns the share.
#[derive(Debug)]
pub struct Admission {
    bound: InFlightBytes,
    body_bytes: u64,
    permit: Option<OwnedSemaphorePermit>,
}

/// There was no room for more bytes until the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("in-flight limit reached (delivery.max_in_flight_bytes)")]
pub struct NoRoom;

impl Admission {
    /// Adds bytes of the body, and waits for their room until the deadline. A body that is larger than the whole bound
    /// waits until it is alone. May be cancelled.
    ///
    /// # Errors
    /// [`NoRoom`]. The caller refuses the callback.
    pub async fn grow(&mut self, bytes: usize, deadline: Instant) -> Result<(), NoRoom> {
        self.body_bytes = self.body_bytes.saturating_add(bytes as u64);
        // The envelope repeats the body.
        let wanted = self.body_bytes.saturating_mul(2).saturating_add(OVERHEAD).div_ceil(UNIT);
        let most = u32::try_from(self.bound.0.size()).unwrap_or(u32::MAX);
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX).min(most);
        let held = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let Some(more) = wanted.checked_sub(u32::try_from(held).unwrap_or(u32::MAX)).filter(|more| *more > 0) else {
            return Ok(());
        };
        let room = self.bound.0.semaphore();
        let permit = match room.clone().try_acquire_many_owned(more) {
            Ok(permit) => permit,
            Err(_) => match tokio::time::timeout_at(deadline, self.bound.0.acquire(more as usize)).await {
                Ok(Some(permit)) => permit,
                Ok(None) | Err(_) => return Err(NoRoom),
            },
        };
        match &mut self.permit {
            Some(held) => held.merge(permit),
            none => *none = Some(permit),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
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
