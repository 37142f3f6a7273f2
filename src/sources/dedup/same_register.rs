//! Detection of one register under two names.
//!
//! Owns the comparison of two streams of readings. A register never decreases, so a read that began after the end of
//! a read of the other name shows at least as much, except for a constant offset of the two start counts.
//! Contradictory bounds of that offset prove two registers, for any delay of the reader. More common levels than
//! chance explains prove one register. Memory and work are bounded. Reads no counter and no clock.

use std::collections::VecDeque;

use crate::domain::{Duplicate, EnergyReading};

/// Number of common levels, and of different distances between them, that proves one register. Small increases of two
/// idle counters are often the same step of the register, so only distances of several sizes are evidence.
pub const MIN_COMMON_LEVELS: usize = 9;
const MIN_STEP_SIZES: usize = 4;

/// Rounding difference of energies with different start counts (see `counter`).
const ROUNDING_UJ: i128 = 1;

/// Largest time by which one CPU sees a register's step before another CPU.
const CPU_SKEW_NS: u64 = 200_000;

/// Number of stored levels of each counter, and of stored differences.
const MAX_LEVELS: usize = 512;
const MAX_OFFSETS: usize = 1_024;

/// Largest number of reads of one counter that wait for the other's, which come in batches from another thread's ring.
/// Further reads are dropped: fewer reads give less evidence, never wrong evidence.
const MAX_PENDING_READS: usize = 4_096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairSide {
    /// The counter that is counted while the pair is undecided.
    Original,
    Copy,
}

#[derive(Debug, Clone, Copy)]
struct CounterRead {
    before_ns: u64,
    after_ns: u64,
    energy_uj: u64,
    epoch: u32,
}

/// The reads of one counter since the latest start of an epoch.
#[derive(Debug, Default)]
struct ReadHistory {
    /// Reads that are not compared yet.
    pending: VecDeque<CounterRead>,
    /// Compared reads that may overlap the other's next read.
    recent: VecDeque<CounterRead>,
    /// The latest read that ended before it.
    last_finished: Option<CounterRead>,
    base: Option<CounterRead>,
    last: Option<CounterRead>,
    /// The observed levels, without duplicates.
    levels: VecDeque<u64>,
}

impl ReadHistory {
    fn restart(&mut self) {
        let waiting = std::mem::take(&mut self.pending);
        *self = Self { pending: waiting, ..Self::default() };
    }

    fn growth_uj(&self) -> u64 {
        self.base.zip(self.last).map_or(0, |(base, last)| last.energy_uj - base.energy_uj)
    }
}

/// Two counters with the evidence from their readings.
#[derive(Debug)]
pub struct RegisterComparison {
    original: ReadHistory,
    copy: ReadHistory,
    /// Bounds of the constant offset of original and copy, if they are one register.
    min_offset_uj: i128,
    max_offset_uj: i128,
    /// Offsets at recent reads.
    offsets_uj: VecDeque<i128>,
    /// A level was added since the last decision.
    has_new_level: bool,
    min_common_levels: usize,
    bias_ppm: u64,
    state: Duplicate,
}

impl RegisterComparison {
    /// A comparison without readings. `needed`: required number of common levels. `bias_ppm`: largest difference of
    /// the units with which two mechanisms show one register.
    pub fn new(needed: usize, bias_ppm: u64) -> Self {
        Self {
            original: ReadHistory::default(),
            copy: ReadHistory::default(),
            min_offset_uj: i128::MIN / 2,
            max_offset_uj: i128::MAX / 2,
            offsets_uj: VecDeque::new(),
            has_new_level: false,
            min_common_levels: needed,
            bias_ppm,
            state: Duplicate::Undecided,
        }
    }

    /// The state of the pair. *Independent* is proved and final; *same* holds until *independent* is proved.
    pub fn state(&self) -> Duplicate {
        self.state
    }

    /// Adds one reading of one counter, in its order of time; `before_ns..=after_ns` contains the read.
    pub fn observe(&mut self, side: PairSide, before_ns: u64, after_ns: u64, reading: &EnergyReading) {
        if !reading.valid || self.state == Duplicate::Independent {
            return;
        }
        let EnergyReading { energy_uj, epoch, .. } = *reading;
        let waiting = &mut self.history_mut(side).pending;
        if waiting.len() == MAX_PENDING_READS {
            waiting.pop_front();
        }
        waiting.push_back(CounterRead { before_ns, after_ns, energy_uj, epoch });
        while let Some((original, copy)) = self.original.pending.front().zip(self.copy.pending.front()) {
            let side = if original.after_ns <= copy.after_ns { PairSide::Original } else { PairSide::Copy };
            if let Some(read) = self.history_mut(side).pending.pop_front() {
                self.compare(side, read);
            }
        }
    }

    /// Evaluates all readings. A comparison of levels costs about 100 µs, so it is called rarely.
    pub fn evaluate(&mut self) {
        let has_new_level = std::mem::take(&mut self.has_new_level);
        let grown_uj = self.original.growth_uj().max(self.copy.growth_uj());
        let bias_uj = (u128::from(grown_uj) * u128::from(self.bias_ppm) / 1_000_000).cast_signed();
        if self.min_offset_uj > self.max_offset_uj + ROUNDING_UJ + bias_uj {
            self.state = Duplicate::Independent;
        } else if has_new_level && self.state == Duplicate::Undecided && self.has_common_levels() {
            self.state = Duplicate::Same;
        }
    }

    fn history_mut(&mut self, side: PairSide) -> &mut ReadHistory {
        match side {
            PairSide::Original => &mut self.original,
            PairSide::Copy => &mut self.copy,
        }
    }

    /// Compares the earliest waiting read.
    fn compare(&mut self, side: PairSide, read: CounterRead) {
        if self.history_mut(side).last.is_some_and(|last| last.epoch != read.epoch) {
            // A counter began a new epoch, so the comparison restarts.
            self.original.restart();
            self.copy.restart();
            self.offsets_uj.clear();
            (self.min_offset_uj, self.max_offset_uj) = (i128::MIN / 2, i128::MAX / 2);
        }
        let (own, other) = match side {
            PairSide::Original => (&mut self.original, &mut self.copy),
            PairSide::Copy => (&mut self.copy, &mut self.original),
        };
        while other.recent.front().is_some_and(|earlier| earlier.after_ns + CPU_SKEW_NS <= read.before_ns) {
            other.last_finished = other.recent.pop_front();
        }
        let offset = |other: CounterRead| match side {
            PairSide::Original => difference_uj(read.energy_uj, other.energy_uj),
            PairSide::Copy => difference_uj(other.energy_uj, read.energy_uj),
        };
        match (side, other.last_finished.map(offset)) {
            (PairSide::Original, Some(offset_uj)) => self.max_offset_uj = self.max_offset_uj.min(offset_uj),
            (PairSide::Copy, Some(offset_uj)) => self.min_offset_uj = self.min_offset_uj.max(offset_uj),
            (_, None) => {}
        }
        if let Some(offset_uj) = other.last.map(offset) {
            push_bounded(&mut self.offsets_uj, offset_uj, MAX_OFFSETS);
        }
        if own.levels.back() != Some(&read.energy_uj) {
            push_bounded(&mut own.levels, read.energy_uj, MAX_LEVELS);
            self.has_new_level = true;
        }
        push_bounded(&mut own.recent, read, MAX_PENDING_READS);
        own.base.get_or_insert(read);
        own.last = Some(read);
    }

    fn has_common_levels(&self) -> bool {
        if self.original.levels.len() < 2 || self.copy.levels.len() < 2 {
            return false;
        }
        let possible = |offset: &i128| {
            (self.min_offset_uj - ROUNDING_UJ..=self.max_offset_uj + ROUNDING_UJ).contains(offset)
        };
        let Some(offset_uj) = mode(self.offsets_uj.iter().copied().filter(possible).collect()) else {
            return false;
        };
        let original: Vec<_> = self.original.levels.iter().map(|level| i128::from(*level)).collect();
        let copy: Vec<_> = self.copy.levels.iter().map(|level| i128::from(*level) + offset_uj).collect();
        let shown_by_both = common_levels(&original, &copy);
        let many = shown_by_both.len() >= self.min_common_levels
            && shown_by_both.len() as f64 >= required_common_levels(&original, &copy);
        many && count_step_sizes(&shown_by_both) >= MIN_STEP_SIZES
    }
}

fn push_bounded<T>(into: &mut VecDeque<T>, value: T, max_len: usize) {
    if into.len() == max_len {
        into.pop_front();
    }
    into.push_back(value);
}

fn difference_uj(first_uj: u64, second_uj: u64) -> i128 {
    i128::from(first_uj) - i128::from(second_uj)
}

/// The most frequent value.
fn mode(mut values: Vec<i128>) -> Option<i128> {
    values.sort_unstable();
    values.chunk_by(|a, b| a == b).max_by_key(|alike| alike.len())?.first().copied()
}

/// The common levels of `first` and `second`.
fn common_levels(first: &[i128], second: &[i128]) -> Vec<i128> {
    let mut second = second.iter().peekable();
    let shown = |level: &&i128| {
        while second.next_if(|other| **other < **level - ROUNDING_UJ).is_some() {}
        second.peek().is_some_and(|other| **other <= **level + ROUNDING_UJ)
    };
    first.iter().filter(shown).copied().collect()
}

/// Required number of common levels. Each level is a number of register steps, so levels of two different registers
/// coincide by chance, the more the denser they are. The number is the expected value plus four standard deviations.
/// It is at least a quarter of all levels: a reader that is delayed at almost every read sees most levels in one
/// counter only.
fn required_common_levels(first: &[i128], second: &[i128]) -> f64 {
    let span = |levels: &[i128]| levels.last().zip(levels.first()).map_or(0, |(last, first)| last - first);
    let (most, fewest) = (first.len().max(second.len()) as f64, first.len().min(second.len()) as f64);
    // The share of possible levels that occur.
    let filled = (estimate_register_step(first, second) as f64 * most
        / span(first).min(span(second)).max(1) as f64)
        .min(1.0);
    let by_chance = fewest * filled;
    (by_chance + 4.0 * (by_chance * (1.0 - filled)).sqrt()).max(fewest / 4.0)
}

/// An estimate of the register's step, rather too large than too small: the smallest difference of distances.
fn estimate_register_step(first: &[i128], second: &[i128]) -> i128 {
    let distances = |levels: &[i128]| levels.windows(2).map(|two| two[1] - two[0]).collect::<Vec<_>>();
    let mut distances = [vec![0], distances(first), distances(second)].concat();
    distances.sort_unstable();
    let apart = distances.windows(2).map(|two| two[1] - two[0]).filter(|apart| *apart > 2 * ROUNDING_UJ);
    apart.min().unwrap_or(0)
}

/// The number of different distances between successive levels.
fn count_step_sizes(levels: &[i128]) -> usize {
    let mut sizes: Vec<_> = levels.windows(2).map(|two| two[1] - two[0]).collect();
    sizes.sort_unstable();
    sizes.dedup_by(|larger, size| *larger - *size <= ROUNDING_UJ);
    sizes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(energy_uj: u64) -> EnergyReading {
        EnergyReading { valid: true, energy_uj, ..EnergyReading::default() }
    }

    /// Reads both counters each millisecond.
    fn compare_reads(reads: impl IntoIterator<Item = (u64, u64)>) -> RegisterComparison {
        let mut pair = RegisterComparison::new(MIN_COMMON_LEVELS, 0);
        for (read, (original, copy)) in (1..).zip(reads) {
            observe_both(&mut pair, read, &reading(original), &reading(copy));
        }
        pair
    }

    fn observe_both(
        pair: &mut RegisterComparison,
        read: u64,
        original: &EnergyReading,
        copy: &EnergyReading,
    ) {
        let at_ns = read * 1_000_000;
        pair.observe(PairSide::Original, at_ns, at_ns + 10_000, original);
        pair.observe(PairSide::Copy, at_ns + 10_000, at_ns + 20_000, copy);
        pair.evaluate();
    }

    /// The values of a register with these steps, including the first value.
    fn register(moves: &[u64]) -> Vec<u64> {
        let mut sum = 0;
        std::iter::once(0)
            .chain(moves.iter().map(|step| {
                sum += step;
                sum
            }))
            .collect()
    }

    /// A fixed pseudo-random sequence.
    struct Noise(u64);

    impl Noise {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    /// A register that advances each millisecond by `step` counts of 61.035 µJ, from `phase_us` on.
    fn counts(noise: &mut Noise, step: impl Fn(&mut Noise) -> u64) -> Vec<u64> {
        register(&(0..2_000).map(|_| step(noise)).collect::<Vec<_>>())
    }

    /// Reads two registers for 40 ms with random read times and pauses.
    fn compare_for_40_ms(
        first: &[u64],
        second: (&[u64], u64),
        mut read_us: impl FnMut() -> u64,
    ) -> RegisterComparison {
        let (mut pair, mut at_us, mut bases) = (RegisterComparison::new(MIN_COMMON_LEVELS, 0), 5_300, None);
        let (second, phase_us) = second;
        for _ in 0..190 {
            let (one, began_us) = (first[(at_us / 1_000) as usize], at_us);
            at_us += read_us();
            let (other, between_us) = (second[((at_us + phase_us) / 1_000) as usize], at_us);
            at_us += read_us();
            let (base, begin) = *bases.get_or_insert((one, other));
            let uj = |count: u64| count * 1_000_000 / (1 << 14);
            pair.observe(PairSide::Original, began_us * 1_000, between_us * 1_000, &reading(uj(one - base)));
            pair.observe(PairSide::Copy, between_us * 1_000, at_us * 1_000, &reading(uj(other - begin)));
            at_us += 200;
        }
        pair.evaluate();
        pair
    }

    #[test]
    fn a_move_that_one_of_them_shows_as_two_makes_them_no_different() {
        let first = register(&[5, 7, 9, 4, 6, 8, 3, 2, 10, 11]);
        let mut second = register(&[5, 16, 4, 6, 8, 3, 2, 10, 11]);
        // The reader was delayed before its second read of the third round.
        second.insert(3, second[2]);
        assert_eq!(compare_reads(first.iter().copied().zip(second)).state(), Duplicate::Same);
    }

    #[test]
    fn one_that_began_a_look_later_is_still_the_same() {
        let levels = register(&[31, 41, 59, 26, 53, 58, 97, 93, 23, 84]);
        let later = || std::iter::once(0).chain(levels[1..].iter().map(|level| level - levels[1]));
        assert_eq!(compare_reads(levels.iter().copied().zip(later())).state(), Duplicate::Same);
        let mut earlier: Vec<_> = later().zip(levels.iter().copied()).collect();
        // The first read is never ahead of the second by more than the CPUs' difference in visibility.
        assert_eq!(compare_reads(earlier.iter().copied()).state(), Duplicate::Same);
        earlier[5].1 += 60;
        assert_eq!(compare_reads(earlier).state(), Duplicate::Independent);
    }

    #[test]
    fn one_register_is_the_same_however_often_the_reader_is_held_up() {
        let mut noise = Noise(7);
        for watch in 0..300_u64 {
            let counts = counts(&mut noise, |noise| 80 + noise.below(90));
            let held_up = watch % 60;
            let read_us = || match noise.below(100) {
                dice if dice < held_up => 100 + noise.below(6_000),
                _ => 10,
            };
            let pair = compare_for_40_ms(&counts, (&counts, 0), read_us);
            assert_eq!(pair.state(), Duplicate::Same, "held up in {held_up} % of the reads");
        }
    }

    #[test]
    fn two_packages_are_never_one_whatever_they_draw_and_however_seldom_they_are_looked_at() {
        let mut noise = Noise(11);
        for watch in 0..900_u64 {
            // Idle with one or two counts, with a few counts, and under equal load.
            let (least, spread) = [(1, 2), (1, 4), (2, 5), (0, 3), (150, 9)][(watch % 5) as usize];
            let step = |noise: &mut Noise| least + noise.below(spread);
            let (first, second) = (counts(&mut noise, step), counts(&mut noise, step));
            let (phase_us, held_up) = (watch % 3 * 300, watch / 5 % 4 * 10);
            let read_us = || match noise.below(100) {
                dice if dice < held_up => 100 + noise.below(6_000),
                _ => 10,
            };
            let pair = compare_for_40_ms(&first, (&second, phase_us), read_us);
            assert_ne!(pair.state(), Duplicate::Same, "{least} and {spread}, held up in {held_up} %");
        }
    }

    #[test]
    fn counters_that_take_the_same_single_steps_are_suspect_and_never_the_same() {
        let steps = register(&[61; 100].map(|step| step));
        let pair = compare_reads(steps.iter().copied().zip(steps.iter().copied()));
        assert_eq!(pair.state(), Duplicate::Undecided);
        assert_eq!(compare_reads([(0, 0); 50]).state(), Duplicate::Undecided, "nothing moves");
        assert_eq!(compare_reads((0..20).map(|read| (read * 61, 0))).state(), Duplicate::Independent);
    }

    #[test]
    fn a_new_epoch_begins_the_comparison_anew() {
        let levels = register(&[31, 41, 59, 26, 53]);
        let mut pair = compare_reads(levels.iter().copied().zip(levels.iter().copied()));
        // 40 µJ lost on one side only would prove two registers.
        for (read, uj) in (10..).zip([251, 281, 340]) {
            observe_both(&mut pair, read, &EnergyReading { epoch: 1, ..reading(uj) }, &reading(uj - 40));
            assert_eq!(pair.state(), Duplicate::Undecided);
        }
        observe_both(&mut pair, 14, &EnergyReading { epoch: 1, ..reading(340) }, &reading(401));
        observe_both(&mut pair, 15, &EnergyReading { epoch: 1, ..reading(340) }, &reading(401));
        assert_eq!(pair.state(), Duplicate::Independent);
    }

    #[test]
    fn readings_that_come_in_batches_of_one_counter_are_compared_in_the_order_of_time() {
        let mut noise = Noise(5);
        let step = |noise: &mut Noise| 100 + noise.below(90);
        let one = register(&(0..2_000).map(|_| step(&mut noise)).collect::<Vec<_>>());
        let other = register(&(0..2_000).map(|_| step(&mut noise)).collect::<Vec<_>>());
        for (copy, expected) in [(&one, Duplicate::Same), (&other, Duplicate::Independent)] {
            let mut pair = RegisterComparison::new(MIN_COMMON_LEVELS, 0);
            for batch in (0..2_000).step_by(500) {
                for (side, counts, phase_ns) in
                    [(PairSide::Copy, copy, 300_000), (PairSide::Original, &one, 0)]
                {
                    for (at, uj) in counts.iter().enumerate().skip(batch).take(500) {
                        let at_ns = at as u64 * 1_000_000 + phase_ns;
                        pair.observe(side, at_ns, at_ns + 5_000, &reading(*uj));
                    }
                }
                pair.evaluate();
            }
            assert_eq!(pair.state(), expected);
        }
    }

    #[test]
    fn what_looked_like_one_counter_is_two_once_that_is_proved() {
        let levels = register(&[31, 41, 59, 26, 53, 58, 97, 93, 23, 84]);
        let mut pair = compare_reads(levels.iter().copied().zip(levels.iter().copied()));
        assert_eq!(pair.state(), Duplicate::Same);
        observe_both(&mut pair, 20, &reading(600), &reading(900));
        observe_both(&mut pair, 21, &reading(600), &reading(900));
        assert_eq!(pair.state(), Duplicate::Independent);
    }

    #[test]
    fn a_known_bias_between_two_mechanisms_proves_nothing() {
        let reads = |ppm: u64| (1..3_000_u64).map(move |read| (read * 61_000, read * 61 * ppm / 1_000));
        let of = |ppm| {
            let mut pair = RegisterComparison::new(MIN_COMMON_LEVELS, 3_000);
            for (read, (original, copy)) in (1..).zip(reads(ppm)) {
                observe_both(&mut pair, read, &reading(original), &reading(copy));
            }
            pair.state()
        };
        assert_ne!(of(1_002_703), Duplicate::Independent);
        assert_eq!(of(1_030_000), Duplicate::Independent);
    }

    #[test]
    fn memory_is_bounded_where_one_counter_no_longer_answers() {
        let mut pair = RegisterComparison::new(MIN_COMMON_LEVELS, 0);
        (0..20_000_u64).for_each(|at| pair.observe(PairSide::Copy, at * 1_000, at * 1_000, &reading(at)));
        assert_eq!(pair.copy.pending.len(), MAX_PENDING_READS);
    }
}
