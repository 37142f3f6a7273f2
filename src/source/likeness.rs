//! Whether two counters are one register under two names.
//!
//! Owns the comparison of two energies, look by look. One register only grows, so that what is read of it second lies
//! between what was read first at the look before and at the look after, but for one constant: the two need not have begun
//! at the same count. That holds however long a busy machine keeps the reader between the two reads, and at every look;
//! of two registers it soon fails. Levels that both show then prove that they are one, once there are more of them than
//! chance gives. Invariant: no delay makes one register different from itself. Reads no counter and no clock.

use crate::energy::Reading;

/// Two counters that showed so many levels alike, with so many different distances between them, are one. Small moves of two
/// idle counters are often one and the same step of the register, so that only distances of several sizes prove anything.
const LEVELS: usize = 9;
const SIZES: usize = 4;

/// Energies that began at different counts are rounded down at different places (see `counter`).
const ROUNDING_UJ: i128 = 1;

/// What is known of two counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    /// One moved otherwise than the other.
    Different,
    /// Nothing sets them apart so far, and nothing proves that they are one.
    Suspect,
    /// They are one.
    Same,
}

/// Two counters that are read at each look, the first before the second.
#[derive(Debug)]
pub struct Pair {
    base: Option<(Reading, Reading)>,
    /// Both energies since the base, at each look.
    seen: Vec<(u64, u64)>,
    likeness: Likeness,
}

impl Pair {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self { base: None, seen: Vec::with_capacity(256), likeness: Likeness::Suspect }
    }

    /// How far the two are alike, by all looks so far.
    pub fn likeness(&self) -> Likeness {
        self.likeness
    }

    /// Takes one look. What is known for certain stays.
    pub fn see(&mut self, first: &Reading, second: &Reading) {
        if !first.valid || !second.valid || self.likeness != Likeness::Suspect {
            return;
        }
        let epochs = |of: &(Reading, Reading)| (of.0.epoch, of.1.epoch);
        let (base, other) = match self.base {
            Some(base) if epochs(&base) == (first.epoch, second.epoch) => base,
            // Something began anew: so does the comparison.
            _ => {
                self.seen.clear();
                *self.base.insert((*first, *second))
            }
        };
        self.seen.push((first.energy_uj - base.energy_uj, second.energy_uj - other.energy_uj));
        self.likeness = self.judge();
    }

    fn judge(&self) -> Likeness {
        let (least_uj, most_uj) = self.offsets();
        if least_uj > most_uj + ROUNDING_UJ {
            return Likeness::Different;
        }
        if self.seen.last().is_none_or(|last| last.0 == 0 || last.1 == 0) {
            return Likeness::Suspect;
        }
        let possible = |lead: &i128| (least_uj - ROUNDING_UJ..=most_uj + ROUNDING_UJ).contains(lead);
        let Some(offset_uj) = commonest(self.leads().filter(possible).collect()) else {
            return Likeness::Suspect;
        };
        let first = levels(self.seen.iter().map(|seen| i128::from(seen.0)));
        let second = levels(self.seen.iter().map(|seen| i128::from(seen.1) + offset_uj));
        let shown_by_both = common(&first, &second);
        let many = shown_by_both.len() >= LEVELS && shown_by_both.len() as f64 >= needed(&first, &second);
        if many && sizes(&shown_by_both) >= SIZES { Likeness::Same } else { Likeness::Suspect }
    }

    /// How far the first can be ahead of the second all the time if they are one: the least and the most. A core may see a
    /// register's step a little before another does, so that one look of room is left on either side.
    fn offsets(&self) -> (i128, i128) {
        let two = || self.seen.windows(2).map(|two| (two[0], two[1]));
        let least_uj = two().map(|(before, now)| ahead(before.0, now.1)).max();
        let most_uj = two().map(|(now, after)| ahead(after.0, now.1)).min();
        (least_uj.unwrap_or(i128::MIN / 2), most_uj.unwrap_or(i128::MAX / 2))
    }

    /// How far the first is ahead of the second, at one look and from one to the next: most of them are the offset of two
    /// that are one, since a register stands still for several looks.
    fn leads(&self) -> impl Iterator<Item = i128> + '_ {
        let at_one = self.seen.iter().map(|seen| ahead(seen.0, seen.1));
        at_one.chain(self.seen.windows(2).map(|two| ahead(two[1].0, two[0].1)))
    }
}

fn ahead(first_uj: u64, second_uj: u64) -> i128 {
    i128::from(first_uj) - i128::from(second_uj)
}

/// The value that is there most often.
fn commonest(mut values: Vec<i128>) -> Option<i128> {
    values.sort_unstable();
    values.chunk_by(|a, b| a == b).max_by_key(|alike| alike.len())?.first().copied()
}

/// Each level once; energies only grow.
fn levels(energies: impl Iterator<Item = i128>) -> Vec<i128> {
    let mut levels: Vec<_> = energies.collect();
    levels.dedup();
    levels
}

/// The levels of `first` that `second` has too.
fn common(first: &[i128], second: &[i128]) -> Vec<i128> {
    let mut second = second.iter().peekable();
    let shown = |level: &&i128| {
        while second.next_if(|other| **other < **level - ROUNDING_UJ).is_some() {}
        second.peek().is_some_and(|other| **other <= **level + ROUNDING_UJ)
    };
    first.iter().filter(shown).copied().collect()
}

/// How many levels two must both show to be one. Of two that are not, the more meet by chance the closer they lie, since each
/// level is a number of steps of the register: asked for is what chance would give and four times by how much chance strays
/// from that. And a quarter of all: of two that are one, a reader who is held up at nearly every look sees most levels in
/// one of them only.
fn needed(first: &[i128], second: &[i128]) -> f64 {
    let span = |levels: &[i128]| levels.last().zip(levels.first()).map_or(0, |(last, first)| last - first);
    let (most, fewest) = (first.len().max(second.len()) as f64, first.len().min(second.len()) as f64);
    // Of the places where a level may lie.
    let filled = (step(first, second) as f64 * most / span(first).min(span(second)).max(1) as f64).min(1.0);
    let by_chance = fewest * filled;
    (by_chance + 4.0 * (by_chance * (1.0 - filled)).sqrt()).max(fewest / 4.0)
}

/// A guess at the register's step, too large rather than too small: the least by which distances between levels differ.
fn step(first: &[i128], second: &[i128]) -> i128 {
    let distances = |levels: &[i128]| levels.windows(2).map(|two| two[1] - two[0]).collect::<Vec<_>>();
    let mut distances = [vec![0], distances(first), distances(second)].concat();
    distances.sort_unstable();
    let apart = distances.windows(2).map(|two| two[1] - two[0]).filter(|apart| *apart > 2 * ROUNDING_UJ);
    apart.min().unwrap_or(0)
}

/// How many different distances lie between levels that follow each other.
fn sizes(levels: &[i128]) -> usize {
    let mut sizes: Vec<_> = levels.windows(2).map(|two| two[1] - two[0]).collect();
    sizes.sort_unstable();
    sizes.dedup_by(|larger, size| *larger - *size <= ROUNDING_UJ);
    sizes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(energy_uj: u64) -> Reading {
        Reading { valid: true, energy_uj, ..Reading::default() }
    }

    fn of(looks: impl IntoIterator<Item = (u64, u64)>) -> Pair {
        let mut pair = Pair::new();
        looks.into_iter().for_each(|(first, second)| pair.see(&reading(first), &reading(second)));
        pair
    }

    /// What a register shows that moves by these, the first value included.
    fn register(moves: &[u64]) -> Vec<u64> {
        let mut sum = 0;
        std::iter::once(0)
            .chain(moves.iter().map(|step| {
                sum += step;
                sum
            }))
            .collect()
    }

    /// Numbers of a fixed sequence that looks random.
    struct Noise(u64);

    impl Noise {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    /// A register that moves each millisecond by `step` counts of 61.035 µJ, from `phase_us` on.
    fn counts(noise: &mut Noise, step: impl Fn(&mut Noise) -> u64) -> Vec<u64> {
        register(&(0..2_000).map(|_| step(noise)).collect::<Vec<_>>())
    }

    /// Looks at two registers for 40 ms, each read and each pause as long as the machine likes.
    fn watched(first: &[u64], second: (&[u64], u64), mut read_us: impl FnMut() -> u64) -> Pair {
        let (mut pair, mut at_us, mut bases) = (Pair::new(), 5_300, None);
        let (second, phase_us) = second;
        for _ in 0..190 {
            let one = first[(at_us / 1_000) as usize];
            at_us += read_us();
            let other = second[((at_us + phase_us) / 1_000) as usize];
            at_us += 200 + read_us();
            let (base, begin) = *bases.get_or_insert((one, other));
            let uj = |count: u64| count * 1_000_000 / (1 << 14);
            pair.see(&reading(uj(one - base)), &reading(uj(other - begin)));
        }
        pair
    }

    #[test]
    fn a_move_that_one_of_them_shows_as_two_makes_them_no_different() {
        let first = register(&[5, 7, 9, 4, 6, 8, 3, 2, 10, 11]);
        let mut second = register(&[5, 16, 4, 6, 8, 3, 2, 10, 11]);
        // At the third look the reader was held up before its second read.
        second.insert(3, second[2]);
        assert_eq!(of(first.iter().copied().zip(second)).likeness(), Likeness::Same);
    }

    #[test]
    fn one_that_began_a_look_later_is_still_the_same() {
        let levels = register(&[31, 41, 59, 26, 53, 58, 97, 93, 23, 84]);
        let later = || std::iter::once(0).chain(levels[1..].iter().map(|level| level - levels[1]));
        assert_eq!(of(levels.iter().copied().zip(later())).likeness(), Likeness::Same);
        let mut earlier: Vec<_> = later().zip(levels.iter().copied()).collect();
        // The first read is never ahead of the second by more than a core's view of the register.
        assert_eq!(of(earlier.iter().copied()).likeness(), Likeness::Same);
        earlier[5].1 += 60;
        assert_eq!(of(earlier).likeness(), Likeness::Different);
    }

    #[test]
    fn one_register_is_the_same_however_often_the_reader_is_held_up() {
        let mut noise = Noise(7);
        for watch in 0..300_u64 {
            let counts = counts(&mut noise, |noise| 80 + noise.below(90));
            let held_up = watch % 60;
            let read_us = || match noise.below(100) {
                luck if luck < held_up => 100 + noise.below(6_000),
                _ => 10,
            };
            let pair = watched(&counts, (&counts, 0), read_us);
            assert_eq!(pair.likeness(), Likeness::Same, "held up in {held_up} % of the reads");
        }
    }

    #[test]
    fn two_packages_are_never_one_whatever_they_draw_and_however_seldom_they_are_looked_at() {
        let mut noise = Noise(11);
        for watch in 0..900_u64 {
            // Idle by one or two counts, by a few, and under the same load.
            let (least, spread) = [(1, 2), (1, 4), (2, 5), (0, 3), (150, 9)][(watch % 5) as usize];
            let step = |noise: &mut Noise| least + noise.below(spread);
            let (first, second) = (counts(&mut noise, step), counts(&mut noise, step));
            let (phase_us, held_up) = (watch % 3 * 300, watch / 5 % 4 * 10);
            let read_us = || match noise.below(100) {
                luck if luck < held_up => 100 + noise.below(6_000),
                _ => 10,
            };
            let pair = watched(&first, (&second, phase_us), read_us);
            assert_ne!(pair.likeness(), Likeness::Same, "{least} and {spread}, held up in {held_up} %");
        }
    }

    #[test]
    fn counters_that_take_the_same_single_steps_are_suspect_and_never_the_same() {
        let steps = register(&[61; 100].map(|step| step));
        let pair = of(steps.iter().copied().zip(steps.iter().copied()));
        assert_eq!(pair.likeness(), Likeness::Suspect);
        assert_eq!(of([(0, 0); 50]).likeness(), Likeness::Suspect, "nothing moves");
        assert_eq!(of((0..20).map(|look| (look * 61, 0))).likeness(), Likeness::Different);
    }

    #[test]
    fn a_new_epoch_begins_the_comparison_anew() {
        let levels = register(&[31, 41, 59, 26, 53]);
        let mut pair = of(levels.iter().copied().zip(levels.iter().copied()));
        pair.see(&Reading { epoch: 1, ..reading(215) }, &reading(211));
        assert_eq!(pair.likeness(), Likeness::Suspect);
        pair.see(&Reading { epoch: 1, ..reading(245) }, &reading(241));
        assert_eq!(pair.likeness(), Likeness::Suspect);
    }
}
