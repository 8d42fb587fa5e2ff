//! Latencies, counted in buckets: memory does not grow with their number.

use std::time::Duration;

/// How many buckets there are for each doubling. The error is below one in so many.
const PARTS: u64 = 64;

/// Latencies with a resolution of a microsecond, or of 1/64 of their value.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    buckets: Vec<u64>,
    count: u64,
    longest: Duration,
}

impl Latencies {
    pub(super) fn add(&mut self, latency: Duration) {
        let bucket = bucket(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.count += 1;
        self.longest = self.longest.max(latency);
    }

    /// The longest one.
    pub(super) fn longest(&self) -> Duration {
        self.longest
    }

    /// The latency that this part of all did not exceed.
    pub(super) fn percentile(&self, percent: f64) -> Duration {
        let rank = (self.count as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut below = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            below += count;
            if below >= rank {
                return Duration::from_micros(highest(bucket as u64)).min(self.longest);
            }
        }
        self.longest
    }
}

fn bucket(micros: u64) -> usize {
    if micros < PARTS {
        return micros as usize;
    }
    let doublings = u64::from(micros.ilog2() - PARTS.ilog2());
    (PARTS + doublings * PARTS + (micros >> doublings) - PARTS) as usize
}

/// The highest value of a bucket.
fn highest(bucket: u64) -> u64 {
    if bucket < PARTS {
        return bucket;
    }
    let doublings = bucket / PARTS - 1;
    ((bucket % PARTS + PARTS + 1) << doublings) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_narrow_and_holds_its_values() {
        for micros in (0..2_000).chain([10_000, 65_535, 65_536, 1_234_567, 17_000_000]) {
            let highest = highest(bucket(micros) as u64);
            assert!(
                highest >= micros && highest - micros <= micros / PARTS,
                "{micros} is in the bucket up to {highest}"
            );
        }
    }

    #[test]
    fn percentiles_are_those_of_all_latencies() {
        let mut latencies = Latencies::default();
        (1..=1_000).for_each(|millis| latencies.add(Duration::from_millis(millis)));
        for (percent, expected) in [(0.0, 1), (50.0, 500), (90.0, 900), (99.9, 999), (100.0, 1_000)] {
            let found = latencies.percentile(percent).as_secs_f64() * 1_000.0;
            assert!((found - f64::from(expected)).abs() <= f64::from(expected) / 64.0 + 0.001, "{percent}: {found}");
        }
        assert_eq!(latencies.longest(), Duration::from_secs(1));
    }
}
