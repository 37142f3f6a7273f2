//! The power limits of a source's domains: read on the sampler's thread, and copied for other threads.
//!
//! A limit changes seldom, so it is read every few seconds, after a tick. Neither side waits for the other: a copy that is
//! in use is written at the next tick.

use std::sync::{Mutex, TryLockError};

use crate::domain::PowerLimits;
use crate::sources::Source;

/// The interval between two reads of the limits.
const READ_INTERVAL_NS: u64 = 5_000_000_000;

/// The latest limits that were read.
#[derive(Debug, Default)]
pub(super) struct SharedLimits {
    latest: Mutex<VersionedLimits>,
}

#[derive(Debug, Default)]
struct VersionedLimits {
    /// The number of reads.
    version: u64,
    limits: Vec<PowerLimits>,
}

impl SharedLimits {
    pub(super) fn new(domains: usize) -> Self {
        let limits = vec![PowerLimits::default(); domains];
        Self { latest: Mutex::new(VersionedLimits { version: 0, limits }) }
    }

    /// The limits with their version if they were read since `version`.
    pub(super) fn newer_than(&self, version: u64) -> Option<(u64, Vec<PowerLimits>)> {
        let latest = self.latest.try_lock().ok()?;
        (latest.version != version).then(|| (latest.version, latest.limits.clone()))
    }

    fn publish(&self, limits: &[PowerLimits]) -> bool {
        match self.latest.try_lock() {
            Ok(mut latest) => {
                latest.version += 1;
                latest.limits.copy_from_slice(limits);
                true
            }
            // A thread that panicked has no use for the limits.
            Err(TryLockError::Poisoned(_)) => true,
            Err(TryLockError::WouldBlock) => false,
        }
    }
}

/// Reads the limits when they are due.
#[derive(Debug)]
pub(super) struct LimitReader {
    /// Reused for every read.
    limits: Vec<PowerLimits>,
    due_ns: u64,
}

impl LimitReader {
    pub(super) fn new(domains: usize) -> Self {
        Self { limits: vec![PowerLimits::default(); domains], due_ns: 0 }
    }

    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.due_ns
    }

    /// Reads and publishes the limits. May block in a driver.
    pub(super) fn read(&mut self, source: &mut dyn Source, now_ns: u64, shared: &SharedLimits) {
        if !source.read_power_limits(&mut self.limits) || shared.publish(&self.limits) {
            self.due_ns = now_ns + READ_INTERVAL_NS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{EnergyReading, PowerLimit};

    /// A source whose limit is the number of its reads, in watts.
    struct CountingSource(u64);

    impl Source for CountingSource {
        fn read(&mut self, _: &mut [EnergyReading]) -> Option<(u64, u64)> {
            None
        }

        fn read_power_limits(&mut self, into: &mut [PowerLimits]) -> bool {
            self.0 += 1;
            into[0][0] = Some(PowerLimit { limit_mw: self.0 * 1_000, window_ns: 0, origin: "test" });
            self.0 != 2
        }
    }

    #[test]
    fn limits_are_read_every_five_seconds_and_a_failed_read_keeps_the_last_ones() {
        let (mut source, mut reader, shared) = (CountingSource(0), LimitReader::new(1), SharedLimits::new(1));
        let mut versions = Vec::new();
        for second in 0..16 {
            if reader.is_due(second * 1_000_000_000) {
                reader.read(&mut source, second * 1_000_000_000, &shared);
            }
            let newer = shared.newer_than(versions.last().map_or(0, |&(version, _)| version));
            versions.extend(newer.map(|(version, limits)| (version, limits[0][0].unwrap().limit_mw)));
        }
        assert_eq!(source.0, 4, "at 0, 5, 10 and 15 s");
        assert_eq!(versions, [(1, 1_000), (2, 3_000), (3, 4_000)]);
    }
}
