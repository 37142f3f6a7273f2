//! Conversion of raw counts that wrap, restart and disappear to monotonic microjoules.
//!
//! Handles all wraps and resets of the program. Invariant: the energy never decreases. Within one epoch it is exactly
//! the floor of the true count times the unit; a change of epoch adds no energy. If a wrap cannot be distinguished
//! from a restart or from two wraps, the interval between the two readings counts as unknown.

use crate::domain::{DomainKind, EnergyReading};

use super::energy_unit::EnergyUnit;

/// Unit, width and plausibility limits of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterSpec {
    /// The energy of one count.
    pub unit: EnergyUnit,
    /// The largest count plus 1: 2^32, or 2^64 for the kernel's perf counts.
    pub modulus: u128,
    /// The highest plausible power of this kind of hardware. See [`plausible_ceiling_mw`].
    pub ceiling_mw: u64,
    /// Upper bound of a count's age at the read: update interval plus transport latency.
    pub staleness_ns: u64,
    /// The smallest energy after which the hardware register that feeds this count may have wrapped unnoticed.
    /// Without such a register: the range of the count.
    pub range_uj: u64,
}

/// The state of one counter: the last raw count and the sum since the first one.
#[derive(Debug, Clone)]
pub struct Counter {
    spec: CounterSpec,
    /// `None` before the first reading and after an interruption. The next reading is then a baseline.
    last: Option<LastCount>,
    /// Whether a baseline existed before. Every baseline except the first opens a new epoch.
    has_baseline: bool,
    /// Counts since the first baseline, over all epochs.
    counts: u128,
    epoch: u32,
}

#[derive(Debug, Clone, Copy)]
struct LastCount {
    raw: u64,
    /// The earliest possible instant of the read.
    before_ns: u64,
}

impl Counter {
    /// A counter without readings.
    pub fn new(shape: CounterSpec) -> Self {
        Self { spec: shape, last: None, has_baseline: false, counts: 0, epoch: 0 }
    }

    /// Converts the raw count that was read between `before_ns` and `after_ns`.
    ///
    /// The first count is the baseline. An impossible count (at or above the modulus) gives an invalid reading and counts as
    /// an interruption.
    pub fn advance(&mut self, raw: u64, before_ns: u64, after_ns: u64) -> EnergyReading {
        if u128::from(raw) >= self.spec.modulus {
            self.interrupt();
            return EnergyReading::default();
        }
        match self.last {
            None if self.has_baseline => self.epoch = self.epoch.wrapping_add(1),
            None => self.has_baseline = true,
            Some(last) => match self.plausible_delta(last, raw, after_ns) {
                Some(delta) => self.counts += delta,
                None => self.epoch = self.epoch.wrapping_add(1),
            },
        }
        self.last = Some(LastCount { raw, before_ns });
        EnergyReading {
            valid: true,
            energy_uj: u64::try_from(self.spec.unit.to_uj(self.counts)).unwrap_or(u64::MAX),
            uncertainty_uj: 0,
            stamp_ns: 0,
            epoch: self.epoch,
            shape_uj: 0,
        }
    }

    /// Replaces what is known of the counter: a count proved a larger modulus.
    pub fn set_spec(&mut self, spec: CounterSpec) {
        self.spec = spec;
    }

    /// Records that the counter was unavailable or the machine suspended. The energy up to the next reading is unknown.
    pub fn interrupt(&mut self) {
        self.last = None;
    }

    /// Counts since `last`. `None` if they are unknown: implausible power (a restart that looks like a wrap, a jump),
    /// or a gap in which the counter may have wrapped more than once.
    fn plausible_delta(&self, last: LastCount, raw: u64, after_ns: u64) -> Option<u128> {
        let elapsed_ns = after_ns.saturating_sub(last.before_ns);
        let max_uj = self.max_growth_uj(elapsed_ns);
        if max_uj >= u128::from(self.spec.range_uj) {
            return None;
        }
        let (raw, before) = (u128::from(raw), u128::from(last.raw));
        let delta = if raw >= before { raw - before } else { self.spec.modulus - (before - raw) };
        (self.spec.unit.to_uj(delta) <= max_uj).then_some(delta)
    }

    /// The largest plausible increase between two reads `elapsed_ns` apart. mW times ns are pJ.
    fn max_growth_uj(&self, elapsed_ns: u64) -> u128 {
        let seen_ns = u128::from(elapsed_ns) + u128::from(self.spec.staleness_ns);
        u128::from(self.spec.ceiling_mw) * seen_ns / 1_000_000 + u128::from(self.spec.unit.quantum_uj())
    }
}

/// Several times the highest power of a domain of this kind on any machine, microsecond transients included. Only a
/// broken count exceeds it; such a count is rejected. The guaranteed error uses it only where the limits of this machine
/// are unknown.
pub fn plausible_ceiling_mw(kind: DomainKind) -> u64 {
    match kind {
        DomainKind::Package | DomainKind::Core | DomainKind::Uncore | DomainKind::Soc => 2_000_000,
        DomainKind::Dram | DomainKind::Npu | DomainKind::GpuMemory => 1_000_000,
        DomainKind::Gpu => 4_000_000,
        DomainKind::Module | DomainKind::Cpu => 10_000_000,
        DomainKind::Psys | DomainKind::Battery | DomainKind::Rail => 20_000_000,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    fn rapl(shift: u32) -> Counter {
        let unit = EnergyUnit::joules_over_power_of_two(shift).unwrap();
        Counter::new(CounterSpec {
            unit,
            modulus: 1 << 32,
            ceiling_mw: 2_000_000,
            staleness_ns: 100 * MS,
            range_uj: u64::try_from(unit.to_uj(1 << 32)).unwrap(),
        })
    }

    /// Feeds `raw` counts 1 ms apart and returns the last reading.
    fn advance_all(counter: &mut Counter, raw: &[u64]) -> EnergyReading {
        let mut reading = EnergyReading::default();
        for (tick, raw) in raw.iter().enumerate() {
            let at_ns = tick as u64 * MS;
            reading = counter.advance(*raw, at_ns, at_ns + 1_000);
        }
        reading
    }

    #[test]
    fn the_first_reading_is_a_baseline_and_no_energy() {
        let reading = advance_all(&mut rapl(14), &[4_000_000_000]);
        assert_eq!(reading, EnergyReading { valid: true, ..EnergyReading::default() });
    }

    #[test]
    fn thirty_two_units_over_a_32_bit_wrap_are_1953_uj_with_esu_14() {
        let reading = advance_all(&mut rapl(14), &[0xFFFF_FFF0, 0x10]);
        assert_eq!((reading.energy_uj, reading.epoch), (1_953, 0));
    }

    #[test]
    fn thirty_two_units_over_a_32_bit_wrap_are_488_uj_with_esu_16() {
        let reading = advance_all(&mut rapl(16), &[0xFFFF_FFF0, 0x10]);
        assert_eq!((reading.energy_uj, reading.epoch), (488, 0));
    }

    #[test]
    fn a_perf_count_wraps_at_two_to_the_64() {
        let mut counter = Counter::new(CounterSpec {
            unit: EnergyUnit::joules_over_power_of_two(32).unwrap(),
            modulus: 1 << 64,
            ceiling_mw: 2_000_000,
            staleness_ns: 100 * MS,
            range_uj: 65_536_000_000,
        });
        let reading = advance_all(&mut counter, &[u64::MAX - (1 << 31) + 1, 1 << 31]);
        assert_eq!((reading.energy_uj, reading.epoch), (1_000_000, 0));
    }

    #[test]
    fn no_rounding_accumulates_over_many_small_steps() {
        // 61.035... µJ a step: separate conversion of each step would lose 0.035 µJ a million times.
        let mut counter = rapl(14);
        let mut reading = EnergyReading::default();
        for tick in 0..=1_000_000_u64 {
            reading = counter.advance(tick, tick * MS, tick * MS);
        }
        assert_eq!(reading.energy_uj, 61_035_156);
    }

    #[test]
    fn a_restart_from_zero_opens_an_epoch_and_goes_on_from_the_same_energy() {
        let mut counter = rapl(14);
        let before = advance_all(&mut counter, &[1_000_000, 1_001_000]);
        let after = counter.advance(5, 2 * MS, 2 * MS);
        assert_eq!((after.energy_uj, after.epoch), (before.energy_uj, 1));
        let later = counter.advance(16_389, 3 * MS, 3 * MS);
        assert_eq!(later.epoch, 1);
        assert_eq!(later.energy_uj, (1_000 + 16_384) * 1_000_000 / 16_384);
    }

    #[test]
    fn a_jump_that_no_hardware_can_draw_adds_nothing() {
        let mut counter = rapl(14);
        // 53 kW for a millisecond beyond what staleness could explain.
        let reading = advance_all(&mut counter, &[0, 10, 20_000_000]);
        assert_eq!((reading.energy_uj, reading.epoch), (610, 1));
    }

    #[test]
    fn a_gap_in_which_the_counter_may_have_wrapped_twice_is_given_up() {
        let mut counter = rapl(16);
        advance_all(&mut counter, &[0, 100]);
        // 65 536 J at 2 kW last 32.8 s.
        let reading = counter.advance(200, 40_000 * MS, 40_000 * MS);
        assert_eq!((reading.energy_uj, reading.epoch), (1_525, 1));
    }

    #[test]
    fn a_gap_shorter_than_the_range_is_counted_exactly_even_over_a_wrap() {
        let mut counter = rapl(16);
        advance_all(&mut counter, &[u64::from(u32::MAX)]);
        let reading = counter.advance(65_535, 10_000 * MS, 10_000 * MS);
        assert_eq!((reading.energy_uj, reading.epoch), (1_000_000, 0));
    }

    #[test]
    fn an_interruption_opens_an_epoch_once() {
        let mut counter = rapl(14);
        let before = advance_all(&mut counter, &[0, 1_000]);
        counter.interrupt();
        counter.interrupt();
        let after = counter.advance(9_000, 2 * MS, 2 * MS);
        assert_eq!((after.energy_uj, after.epoch), (before.energy_uj, 1));
        assert_eq!(counter.advance(9_001, 3 * MS, 3 * MS).epoch, 1);
    }

    #[test]
    fn a_count_beyond_the_modulus_is_no_reading() {
        let mut counter = rapl(14);
        advance_all(&mut counter, &[0, 1_000]);
        assert!(!counter.advance(1 << 32, 2 * MS, 2 * MS).valid);
        assert_eq!(counter.advance(1_001, 3 * MS, 3 * MS).epoch, 1);
    }

    #[test]
    fn a_constant_counter_stays_where_it_is() {
        let reading = advance_all(&mut rapl(14), &[77, 77, 77, 77]);
        assert_eq!((reading.energy_uj, reading.epoch), (0, 0));
    }

    proptest! {
        #[test]
        fn under_random_wraps_the_energy_is_the_unwrapped_truth(
            start in any::<u32>(),
            shift in 10_u32..=16,
            bits in 22_u32..=32,
            steps in proptest::collection::vec((0_u32..=1_000, 1_u64..=20), 1..400),
        ) {
            let unit = EnergyUnit::joules_over_power_of_two(shift).unwrap();
            let modulus = 1_u128 << bits;
            let range_uj = u64::try_from(unit.to_uj(modulus)).unwrap();
            let mut counter =
                Counter::new(CounterSpec { unit, modulus, ceiling_mw: 1_000_000, staleness_ns: MS, range_uj });
            let start = u128::from(start) % modulus;
            let (mut truth, mut now_ns, mut last_uj) = (start, 0, 0);
            counter.advance(start as u64, 0, 0);
            for (permille, ticks) in steps {
                // At most the ceiling times the elapsed time, far below the range.
                let max_uj = (u128::from(ticks) * 1_000_000).min(u128::from(range_uj) / 2);
                let counts = max_uj * u128::from(permille) / 1_000 * (1 << shift) / 1_000_000;
                truth += counts;
                now_ns += ticks * MS;
                let reading = counter.advance((truth % modulus) as u64, now_ns, now_ns);
                if max_uj * 2 < u128::from(range_uj) {
                    prop_assert_eq!(reading.epoch, 0);
                    prop_assert_eq!(u128::from(reading.energy_uj), ((truth - start) * 1_000_000) >> shift);
                }
                prop_assert!(reading.energy_uj >= last_uj);
                last_uj = reading.energy_uj;
            }
        }

        #[test]
        fn whatever_the_counts_the_energy_never_decreases_and_never_exceeds_the_ceiling(
            readings in proptest::collection::vec((any::<u32>(), 0_u64..=2_000), 1..200),
        ) {
            let mut counter = rapl(14);
            let (mut now_ns, mut last) = (0, EnergyReading::default());
            for (raw, ticks) in readings {
                now_ns += ticks * MS;
                let reading = counter.advance(u64::from(raw), now_ns, now_ns);
                prop_assert!(reading.energy_uj >= last.energy_uj);
                prop_assert!(reading.epoch >= last.epoch);
                prop_assert!(reading.energy_uj - last.energy_uj <= 2_000_000 * (ticks + 100) / 1_000 * 1_000 + 62);
                last = reading;
            }
        }
    }
}
