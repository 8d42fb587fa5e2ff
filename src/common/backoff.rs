//! Pauses between attempts.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// A pause whose second half is random, so many clients that wait for the same thing do not all retry at once.
pub fn jittered(pause: Duration) -> Duration {
    // The standard library seeds its hash tables at random.
    let number = RandomState::new().hash_one(0);
    let part = f64::from((number >> 32) as u32) / f64::from(u32::MAX);
    pause / 2 + (pause / 2).mul_f64(part)
}

/// Pauses with jitter that double from the first to the longest.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses from `first` up to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { first, longest, next: first }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.longest);
        jittered(pause)
    }

    /// Starts again with the first pause, after an attempt has succeeded.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(4));
        for longest in [1, 2, 4, 4] {
            let pause = backoff.pause().as_secs_f64();
            assert!(pause >= f64::from(longest) / 2.0 && pause <= f64::from(longest), "{pause} {longest}");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_secs(1));
    }
}
