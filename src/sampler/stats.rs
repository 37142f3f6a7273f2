//! Statistics of the ticks: count, lateness and cost.
//!
//! One thread at a time writes the counters, any thread reads them. Late and missed ticks are counted and reported to
//! users. Recording takes no lock and does not allocate.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A snapshot of the statistics of one sampler since its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TickStats {
    /// Reads: those on the grid, and the immediate ones at a change of speed.
    pub ticks: u64,
    /// Of these, how many began more than 100 µs (or half a period) after they were due.
    pub late: u64,
    /// Grid points at which no read was done because the thread or the source was still busy.
    pub missed: u64,
    /// Half of the reads on the grid began within this time after they were due.
    pub lateness_p50_ns: Option<u64>,
    /// 99 % of the reads on the grid began within this time after they were due.
    pub lateness_p99_ns: Option<u64>,
    /// Half of the reads took no longer than this.
    pub read_cost_ns: Option<u64>,
    /// When the newest read ended.
    pub last_read_ns: Option<u64>,
    /// The thread runs under a real-time policy.
    pub realtime: bool,
    /// The thread is pinned to the CPU that the source requested.
    pub pinned: bool,
}

/// The counters from which [`TickStats`] is computed.
pub(super) struct SamplerStats {
    ticks: AtomicU64,
    late: AtomicU64,
    missed: AtomicU64,
    lateness: Histogram,
    read_cost: Histogram,
    /// 0 before the first read.
    last_read_ns: AtomicU64,
    /// The start of the read in progress; 0 between reads.
    read_began_ns: AtomicU64,
    /// The end of the thread's current or last sleep; 0 before the first sleep.
    asleep_until_ns: AtomicU64,
    realtime: AtomicBool,
    pinned: AtomicBool,
}

impl SamplerStats {
    pub(super) fn new() -> Self {
        Self {
            ticks: AtomicU64::new(0),
            late: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            lateness: Histogram::new(),
            read_cost: Histogram::new(),
            last_read_ns: AtomicU64::new(0),
            read_began_ns: AtomicU64::new(0),
            asleep_until_ns: AtomicU64::new(0),
            realtime: AtomicBool::new(false),
            pinned: AtomicBool::new(false),
        }
    }

    /// Stores the scheduling that the system granted.
    pub(super) fn set_scheduling(&self, realtime: bool, pinned: bool) {
        self.realtime.store(realtime, Ordering::Relaxed);
        self.pinned.store(pinned, Ordering::Relaxed);
    }

    /// Records the lateness of a tick of the grid; above `tolerance_ns` it counts as late.
    pub(super) fn record_lateness(&self, lateness_ns: u64, tolerance_ns: u64) {
        self.lateness.record(lateness_ns);
        add(&self.late, u64::from(lateness_ns > tolerance_ns));
    }

    pub(super) fn begin_read(&self, before_ns: u64) {
        // 0 means "no read in progress", so that an instant of 0 is stored as 1.
        self.read_began_ns.store(before_ns.max(1), Ordering::Relaxed);
    }

    /// Records the end of the read that began at `before_ns`.
    pub(super) fn end_read(&self, before_ns: u64, after_ns: u64) {
        self.read_began_ns.store(0, Ordering::Relaxed);
        self.last_read_ns.store(after_ns, Ordering::Relaxed);
        self.read_cost.record(after_ns.saturating_sub(before_ns));
        add(&self.ticks, 1);
    }

    /// Records the end of a call that was no read of the counters.
    pub(super) fn end_call(&self) {
        self.read_began_ns.store(0, Ordering::Relaxed);
    }

    /// Adds grid points that passed without a read.
    pub(super) fn add_missed(&self, points: u64) {
        add(&self.missed, points);
    }

    /// The duration of the read in progress up to `now_ns`; `None` between reads.
    pub(super) fn hung_for_ns(&self, now_ns: u64) -> Option<u64> {
        let since_ns = self.read_began_ns.load(Ordering::Relaxed);
        (since_ns != 0).then(|| now_ns.saturating_sub(since_ns))
    }

    pub(super) fn set_asleep_until(&self, until_ns: u64) {
        self.asleep_until_ns.store(until_ns, Ordering::Relaxed);
    }

    /// The end of the newest read; 0 before the first.
    pub(super) fn last_read_ns(&self) -> u64 {
        self.last_read_ns.load(Ordering::Relaxed)
    }

    /// The end of the thread's current or last sleep.
    pub(super) fn asleep_until_ns(&self) -> u64 {
        self.asleep_until_ns.load(Ordering::Relaxed)
    }

    /// The time from the end of the thread's sleep to `now_ns`; 0 during a read or a sleep.
    pub(super) fn overdue_ns(&self, now_ns: u64) -> u64 {
        let until_ns = self.asleep_until_ns.load(Ordering::Relaxed);
        if until_ns == 0 || self.hung_for_ns(now_ns).is_some() { 0 } else { now_ns.saturating_sub(until_ns) }
    }

    pub(super) fn snapshot(&self) -> TickStats {
        let ticks = self.ticks.load(Ordering::Relaxed);
        TickStats {
            ticks,
            late: self.late.load(Ordering::Relaxed),
            missed: self.missed.load(Ordering::Relaxed),
            lateness_p50_ns: self.lateness.quantile_ns(500),
            lateness_p99_ns: self.lateness.quantile_ns(990),
            read_cost_ns: self.read_cost.quantile_ns(500),
            last_read_ns: (ticks > 0).then(|| self.last_read_ns.load(Ordering::Relaxed)),
            realtime: self.realtime.load(Ordering::Relaxed),
            pinned: self.pinned.load(Ordering::Relaxed),
        }
    }
}

/// One thread writes at a time, so a load and a store add without a locked instruction. The counters of reads are
/// written by the holder of the source, the others by the sampler thread.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

/// Buckets for each doubling, as a power of two.
const SUB_BUCKET_BITS: u32 = 4;
/// Values of 2^41 ns (37 minutes) and more all count in the last bucket.
const MAX_EXPONENT: u32 = 41;
const BUCKETS: usize = ((MAX_EXPONENT - SUB_BUCKET_BITS + 1) as usize) << SUB_BUCKET_BITS;

/// A histogram of durations in nanoseconds.
///
/// Its table of atomics has a fixed size, with 16 buckets per power of two: a quantile is at most 1/16 too large and
/// never too small. One thread records, any thread reads. Recording is a load and a store, without a lock or an
/// allocation.
pub(super) struct Histogram {
    buckets: Box<[AtomicU64]>,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Counts one duration. Only one thread calls this, so that adding needs no locked instruction.
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

/// The largest duration in this bucket.
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
    fn before_the_first_read_the_figures_are_absent_and_not_zero() {
        let ticks = SamplerStats::new().snapshot();
        assert_eq!((ticks.ticks, ticks.late, ticks.missed), (0, 0, 0));
        assert_eq!((ticks.lateness_p99_ns, ticks.read_cost_ns, ticks.last_read_ns), (None, None, None));
    }

    #[test]
    fn a_thread_that_should_be_awake_is_overdue_unless_it_waits_in_the_driver() {
        let stats = SamplerStats::new();
        assert_eq!(stats.overdue_ns(1_000), 0);
        stats.set_asleep_until(2_000);
        assert_eq!((stats.overdue_ns(1_999), stats.overdue_ns(7_000)), (0, 5_000));
        stats.begin_read(2_001);
        assert_eq!(stats.overdue_ns(7_000), 0);
        stats.end_read(2_001, 6_000);
        assert_eq!(stats.overdue_ns(7_000), 5_000);
    }

    #[test]
    fn a_tick_beyond_the_tolerance_is_late_and_one_at_it_is_not() {
        let stats = SamplerStats::new();
        stats.record_lateness(100, 100);
        stats.record_lateness(101, 100);
        assert_eq!(stats.snapshot().late, 1);
    }

    #[test]
    fn a_read_under_way_shows_for_how_long_and_a_finished_one_does_not() {
        let stats = SamplerStats::new();
        assert_eq!(stats.hung_for_ns(5_000), None);
        stats.begin_read(1_000);
        assert_eq!(stats.hung_for_ns(5_000), Some(4_000));
        stats.end_read(1_000, 6_000);
        assert_eq!(stats.hung_for_ns(7_000), None);
        assert_eq!(stats.snapshot().last_read_ns, Some(6_000));
    }

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
