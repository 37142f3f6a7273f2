//! Durations counted in buckets whose width grows with the value.
//!
//! Owns a fixed table of atomics: 16 buckets for each doubling, so a quantile is at most 1/16 too large and never too
//! small. One thread records, any thread looks; recording is a load and a store, no lock, no allocation.

use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets for each doubling, as a power of two.
const SUB_BUCKET_BITS: u32 = 4;
/// Values of 2^41 ns (37 minutes) and more all count in the last bucket.
const MAX_EXPONENT: u32 = 41;
const BUCKETS: usize = ((MAX_EXPONENT - SUB_BUCKET_BITS + 1) as usize) << SUB_BUCKET_BITS;

/// Counts of durations in nanoseconds.
pub(super) struct Histogram {
    buckets: Box<[AtomicU64]>,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Counts one duration. Only ever called by one thread, so that adding needs no locked instruction.
    pub(super) fn record(&self, ns: u64) {
        let bucket = &self.buckets[bucket_of(ns)];
        bucket.store(bucket.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The smallest bucket edge that at least `permille` of the durations do not exceed; `None` while there are none.
    pub(super) fn quantile_ns(&self, permille: u64) -> Option<u64> {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        let rank = (total * permille).div_ceil(1000).max(1);
        let mut cumulative = 0;
        let reached = counts.iter().position(|count| {
            cumulative += count;
            cumulative >= rank
        })?;
        Some(upper_bound_ns(reached))
    }
}

fn bucket_of(ns: u64) -> usize {
    let Some(doubling) = ns.checked_ilog2().filter(|&doubling| doubling >= SUB_BUCKET_BITS) else {
        return ns as usize;
    };
    let within = (ns >> (doubling - SUB_BUCKET_BITS)) as usize & ((1 << SUB_BUCKET_BITS) - 1);
    let bucket = (((doubling - SUB_BUCKET_BITS + 1) as usize) << SUB_BUCKET_BITS) + within;
    bucket.min(BUCKETS - 1)
}

/// The largest duration that counts in this bucket.
fn upper_bound_ns(bucket: usize) -> u64 {
    let (doubling, within) = (bucket >> SUB_BUCKET_BITS, bucket & ((1 << SUB_BUCKET_BITS) - 1));
    match doubling.checked_sub(1) {
        None => bucket as u64,
        Some(shift) => (((1 << SUB_BUCKET_BITS) + within as u64 + 1) << shift) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_histogram_has_no_quantile() {
        assert_eq!(Histogram::new().quantile_ns(500), None);
    }

    #[test]
    fn the_upper_bound_exceeds_a_duration_by_at_most_a_sixteenth() {
        let spread = (0..40).flat_map(|doubling| [0, 1, 3].map(|more| (1_u64 << doubling) + more));
        for ns in (0..5_000).chain(spread) {
            let bound_ns = upper_bound_ns(bucket_of(ns));
            assert!(bound_ns >= ns && bound_ns - ns <= ns / 16, "{ns} in a bucket up to {bound_ns}");
        }
    }

    #[test]
    fn buckets_are_contiguous() {
        for bucket in 0..BUCKETS - 1 {
            assert_eq!(bucket_of(upper_bound_ns(bucket)), bucket);
            assert_eq!(bucket_of(upper_bound_ns(bucket) + 1), bucket + 1);
        }
    }

    #[test]
    fn a_duration_beyond_the_table_counts_in_the_last_bucket() {
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_match_the_recorded_durations() {
        let histogram = Histogram::new();
        (0..990).for_each(|_| histogram.record(10));
        (0..10).for_each(|_| histogram.record(100_000));
        assert_eq!(histogram.quantile_ns(500), Some(10));
        assert_eq!(histogram.quantile_ns(990), Some(10));
        let tail_ns = histogram.quantile_ns(991).unwrap();
        assert!((100_000..=106_250).contains(&tail_ns), "{tail_ns}");
    }
}
