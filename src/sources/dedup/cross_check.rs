//! Comparison of the energy of mechanisms that show the same domain.
//!
//! perf, powercap and msr read one register, so their values may differ only by the instant of the read and by the
//! kernel's constants: powercap truncates units to whole nanojoules (−51.7 ppm) and uses 15.3 µJ for 2^-16 J of
//! memory (+0.27 %). This program corrects both, but a driver may change. The comparison uses the probe's readings. A
//! disagreement is reported; the first mechanism is still read.

use crate::domain::EnergyReading;
use crate::sources::source::{DomainIndex, OpenedSource};

/// The largest known constant bias with a margin: 15.3 µJ for 2^-16 J is 2,703 ppm.
const BIAS_PPM: u64 = 3_000;

/// Smallest number of reads and of counter steps for a decision.
const MIN_READS: usize = 32;
const MIN_INCREMENTS: usize = 8;

/// The pairs of domains of one name, with their readings.
#[derive(Debug, Default)]
pub struct CrossCheck {
    pairs: Vec<CheckedPair>,
}

/// One domain, shown twice.
#[derive(Debug)]
struct CheckedPair {
    first: DomainIndex,
    second: DomainIndex,
    /// Both energies since the first reading that is valid for both.
    growths_uj: Vec<(u64, u64)>,
    base: Option<(EnergyReading, EnergyReading)>,
}

/// Two mechanisms with different energy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// The domain of the preferred mechanism.
    pub first: DomainIndex,
    /// The domain of the other mechanism.
    pub second: DomainIndex,
    /// The energies of both in the same time, in µJ.
    pub energies_uj: (u64, u64),
}

impl CrossCheck {
    /// Pairs each domain with the first one of its name.
    pub fn new(opened: &[OpenedSource]) -> Self {
        let indices: Vec<DomainIndex> = opened
            .iter()
            .enumerate()
            .flat_map(|(source, opened)| (0..opened.domains.len()).map(move |domain| (source, domain)))
            .collect();
        let name = |index: &DomainIndex| opened[index.0].domains[index.1].name.as_str();
        let pair = |(nth, second): (usize, &DomainIndex)| {
            let first =
                indices[..nth].iter().find(|first| name(first) == name(second) && first.0 != second.0)?;
            Some(CheckedPair {
                first: *first,
                second: *second,
                growths_uj: Vec::with_capacity(256),
                base: None,
            })
        };
        Self { pairs: indices.iter().enumerate().filter_map(pair).collect() }
    }

    /// Adds one reading of all sources.
    pub fn observe(&mut self, readings: &[Vec<EnergyReading>]) {
        for pair in &mut self.pairs {
            let of = |index: DomainIndex| readings[index.0][index.1];
            pair.observe(of(pair.first), of(pair.second));
        }
    }

    /// Whether more readings are needed: a pair advances and has too few readings.
    pub fn needs_more_reads(&self) -> bool {
        self.pairs.iter().any(|pair| pair.base.is_some() && !pair.has_enough_reads())
    }

    /// The pairs that differ by more than the known biases.
    pub fn disagreements(&self, opened: &[OpenedSource]) -> Vec<Disagreement> {
        let quantum_uj = |index: DomainIndex| opened[index.0].domains[index.1].quantum_uj;
        let differs =
            |pair: &&CheckedPair| pair.has_disagreement(quantum_uj(pair.first) + quantum_uj(pair.second));
        let disagreement = |pair: &CheckedPair| Disagreement {
            first: pair.first,
            second: pair.second,
            energies_uj: pair.growths_uj.last().copied().unwrap_or_default(),
        };
        self.pairs.iter().filter(differs).map(disagreement).collect()
    }
}

impl CheckedPair {
    fn observe(&mut self, first: EnergyReading, second: EnergyReading) {
        if !first.valid || !second.valid {
            return;
        }
        let (base, other) = *self.base.get_or_insert((first, second));
        if (first.epoch, second.epoch) != (base.epoch, other.epoch) {
            // A counter began a new epoch, so the comparison restarts.
            self.base = Some((first, second));
            self.growths_uj.clear();
            return;
        }
        self.growths_uj.push((first.energy_uj - base.energy_uj, second.energy_uj - other.energy_uj));
    }

    /// The increases of both since the previous reading, for each reading except the first.
    fn increments(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.growths_uj.windows(2).map(|two| (two[1].0 - two[0].0, two[1].1 - two[0].1))
    }

    fn has_enough_reads(&self) -> bool {
        self.growths_uj.len() >= MIN_READS
            && self.increments().filter(|moved| moved.0 > 0).count() >= MIN_INCREMENTS
            && self.increments().filter(|moved| moved.1 > 0).count() >= MIN_INCREMENTS
    }

    /// Compares both at the start and at the end of the probe. A value of the second lies between the first's values
    /// at the previous and the next reading, for any delay of the reader; only a value outside is a difference.
    /// Medians of many readings ignore outliers. If both advance at the same readings, they read one register, and a
    /// quarter of a step is enough tolerance. Otherwise each may lag by a whole step.
    fn has_disagreement(&self, quanta_uj: u64) -> bool {
        if !self.has_enough_reads() {
            return false;
        }
        let (begin, end) = (
            &self.growths_uj[..self.growths_uj.len() / 4],
            &self.growths_uj[self.growths_uj.len() / 4 * 3..],
        );
        let less_uj = median(end.windows(2).map(|two| lead_uj(two[0], two[1])))
            - median(begin.windows(2).map(|two| lead_uj(two[1], two[0])));
        let more_uj = median(begin.windows(2).map(|two| lead_uj(two[0], two[1])))
            - median(end.windows(2).map(|two| lead_uj(two[1], two[0])));
        let grown_uj = self.growths_uj.last().map_or(0, |growth| growth.0.max(growth.1));
        let bias_uj = u128::from(grown_uj) * u128::from(BIAS_PPM) / 1_000_000;
        let tolerance_uj = bias_uj + u128::from(self.max_skew_uj()) + u128::from(2 * quanta_uj);
        less_uj.max(more_uj) > tolerance_uj.cast_signed()
    }

    /// The tolerance for different instants of the reads.
    fn max_skew_uj(&self) -> u64 {
        let largest = |of: fn((u64, u64)) -> u64| self.increments().map(of).max().unwrap_or(0);
        let (first_uj, second_uj) = (largest(|moved| moved.0), largest(|moved| moved.1));
        let alone = self.increments().filter(|moved| (moved.0 > 0) != (moved.1 > 0)).count();
        let any = self.increments().filter(|moved| moved.0 > 0 || moved.1 > 0).count();
        if alone * 4 <= any { first_uj.min(second_uj) / 4 } else { first_uj + second_uj }
    }
}

/// The difference of the first at one reading and the second at another.
fn lead_uj(first: (u64, u64), second: (u64, u64)) -> i128 {
    i128::from(first.0) - i128::from(second.1)
}

fn median(values: impl Iterator<Item = i128>) -> i128 {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pair whose register advances by `step` every fourth reading. The second reader scales the value and lags in
    /// one of forty readings.
    fn pair(ppm: u64) -> CheckedPair {
        let mut pair = CheckedPair { first: (0, 0), second: (1, 0), growths_uj: Vec::new(), base: None };
        let reading = |energy_uj| EnergyReading { valid: true, energy_uj, ..EnergyReading::default() };
        for read in 0..100_u64 {
            let register = read / 4 * 50_000;
            let late = if read % 40 == 0 { read.saturating_sub(1) } else { read } / 4 * 50_000;
            pair.observe(reading(register), reading(late * ppm / 1_000_000));
        }
        pair
    }

    #[test]
    fn the_kernels_known_biases_are_agreement_and_more_is_not() {
        for ppm in [1_000_000, 999_948, 1_002_703] {
            assert!(!pair(ppm).has_disagreement(62), "{ppm}");
        }
        for ppm in [250_000, 500_000, 950_000, 1_050_000, 4_000_000] {
            assert!(pair(ppm).has_disagreement(62), "{ppm}");
        }
    }

    /// A register that advances by about 5 mJ each millisecond. Both read it with the delays of a busy machine: none
    /// in the first half of the probe, up to seven steps in the second.
    fn delayed(ppm: u64) -> CheckedPair {
        let mut pair = CheckedPair { first: (0, 0), second: (1, 0), growths_uj: Vec::new(), base: None };
        let reading = |energy_uj| EnergyReading { valid: true, energy_uj, ..EnergyReading::default() };
        let register = |at_us: u64| (at_us / 1_000) * 5_000 + (at_us / 7_000) * 2_000;
        let mut at_us = 0;
        for read in 0..120_u64 {
            let first = register(at_us);
            at_us += if read < 60 { 10 } else { 1_300 + read * 977 % 6_000 };
            pair.observe(reading(first), reading(register(at_us) * ppm / 1_000_000));
            at_us += 210;
        }
        pair
    }

    #[test]
    fn a_delay_between_two_reads_is_no_disagreement() {
        for ppm in [1_000_000, 999_948, 1_002_703] {
            assert!(!delayed(ppm).has_disagreement(62), "{ppm}");
        }
        for ppm in [250_000, 900_000, 1_100_000, 4_000_000] {
            assert!(delayed(ppm).has_disagreement(62), "{ppm}");
        }
    }

    #[test]
    fn a_pair_with_a_stuck_counter_or_with_few_reads_is_undecided() {
        assert!(!pair(0).has_disagreement(62), "a stuck counter is reported by the probe");
        let mut short = pair(500_000);
        short.growths_uj.truncate(8);
        assert!(!short.has_disagreement(62));
    }
}
