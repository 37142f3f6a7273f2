//! The energy accumulator of one AMD card as a source.
//!
//! Owns when an accumulator's count was taken. The driver stamps each table with CLOCK_BOOTTIME when it has read it from the
//! firmware, and hands the same table out again for a millisecond; a stamp that lies within the read narrows down when
//! that was. It is no exact instant of the energy (the firmware's own count is older), so it is never given out as
//! `stamp_ns`; the domain's latency has the rest. Never mistakes a table that was handed out again for a standstill.

use crate::clock::Clock;
use crate::domain::{DomainKind, EnergyReading};

use super::Source;
use super::counter::{Counter, CounterSpec, plausible_ceiling_mw};
use super::energy_unit::EnergyUnit;
use super::gpu_metrics::{GpuMetrics, MAX_READ_BYTES};
use super::sensor_files::ReadCondition;
use super::suspend_detector::SuspendDetector;
use super::sysfs_file::SysfsFile;

/// What one count stands for: 2^-16 J, not the 15.3 µJ of the vendor's libraries.
pub const ACCUMULATOR_UNIT: EnergyUnit = EnergyUnit::TWO_TO_THE_MINUS_16_JOULES;

/// One card's table.
pub struct AccumulatorSource {
    table: SysfsFile,
    /// Whether the card is awake.
    condition: Option<ReadCondition>,
    counter: Counter,
    suspend: SuspendDetector,
    clock: Clock,
}

impl AccumulatorSource {
    /// A source on an open table whose accumulator has so many bits.
    pub fn new(table: SysfsFile, bits: u32, condition: Option<ReadCondition>, clock: &Clock) -> Self {
        let modulus = 1_u128 << bits;
        let counter = Counter::new(CounterSpec {
            unit: ACCUMULATOR_UNIT,
            modulus,
            ceiling_mw: plausible_ceiling_mw(DomainKind::Gpu),
            staleness_ns: 100_000_000,
            range_uj: u64::try_from(ACCUMULATOR_UNIT.to_uj(modulus)).unwrap_or(u64::MAX),
        });
        Self { table, condition, counter, suspend: SuspendDetector::new(clock), clock: clock.clone() }
    }

    fn read_metrics(&mut self, now_ns: u64) -> Option<GpuMetrics> {
        if let Some(condition) = &mut self.condition
            && condition.file.equals(now_ns, condition.word) != Some(condition.must_equal)
        {
            return None;
        }
        let mut bytes = [0; MAX_READ_BYTES];
        let length = self.table.read_bytes(now_ns, &mut bytes)?;
        GpuMetrics::parse(&bytes[..length])
    }
}

impl Source for AccumulatorSource {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        let before_ns = self.clock.now_ns();
        let metrics = self.read_metrics(before_ns);
        let after_ns = self.clock.now_ns();
        let energy = metrics.and_then(|metrics| metrics.energy_count);
        if energy.is_none() || self.suspend.has_suspended() {
            self.counter.interrupt();
        }
        let reading = energy
            .map_or_else(EnergyReading::default, |energy| self.counter.advance(energy, before_ns, after_ns));
        if let Some(into) = into.first_mut() {
            *into = reading;
        }
        let taken_ns = self.suspend.latest_monotonic_ns(metrics?.boot_ns?)?;
        (before_ns..=after_ns).contains(&taken_ns).then_some((before_ns, taken_ns))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const MS: u64 = 1_000_000;

    /// Version 1.1 (64 bits at 24) or 1.0 (32 bits at 36).
    fn write(path: &Path, version: u8, count: u64) {
        let mut table = vec![0_u8; 120];
        table[..4].copy_from_slice(&[120, 0, 1, version]);
        match version {
            0 => table[36..40].copy_from_slice(&(count as u32).to_le_bytes()),
            _ => table[24..32].copy_from_slice(&count.to_le_bytes()),
        }
        fs::write(path, table).unwrap();
    }

    fn reading_after(version: u8, bits: u32, from: u64, to: u64) -> EnergyReading {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gpu_metrics");
        let clock = Clock::manual(0);
        write(&path, version, from);
        let mut source = AccumulatorSource::new(SysfsFile::open(path.clone()).unwrap(), bits, None, &clock);
        let mut reading = [EnergyReading::default()];
        assert_eq!(source.read(&mut reading), None, "a manual clock has no boot clock beside it");
        clock.set(20 * MS);
        write(&path, version, to);
        source.read(&mut reading);
        reading[0]
    }

    #[test]
    fn a_count_is_two_to_the_minus_16_joules_and_not_what_the_vendors_libraries_multiply_with() {
        // 15.3 µJ a count would say 1 004 108.
        assert_eq!(reading_after(1, 64, 7, 65_635).energy_uj, 1_001_403);
    }

    #[test]
    fn the_32_bit_accumulator_of_the_first_version_wraps() {
        let reading = reading_after(0, 32, 0xFFFF_0000, 0x0001_0000);
        assert_eq!((reading.energy_uj, reading.epoch), (2_000_000, 0));
    }

    #[test]
    fn a_count_that_falls_back_is_a_restart_and_no_energy() {
        let reading = reading_after(1, 64, 900_000_000_000, 5);
        assert_eq!((reading.valid, reading.energy_uj, reading.epoch), (true, 0, 1));
    }
}
