//! How far a figure over queries can be trusted: percentile intervals by resampling the questions.
//!
//! Owns the random numbers and the resampling. Seeded, so that a report repeats to the last digit; the generator is SplitMix64
//! (Steele, Lea & Flood, OOPSLA 2014), which is a few lines in any language, and the percentiles are those of numpy's
//! default ("linear"), so that anybody can check a figure (`tests/fixtures/ipw/statistics.py`). A question that was asked
//! several times is drawn with all its queries: asking again tells nothing new about the choice of questions. Over many
//! questions whole groups drawn at random are resampled instead of single ones, which leaves the variance of a mean as it is
//! (the questions are exchangeable) and makes the cost independent of their number.

use std::collections::HashMap;

/// How many times the questions are drawn anew.
pub const RESAMPLES: usize = 2_000;

/// Above this many questions groups are drawn.
pub const SINGLE: usize = 2_048;

/// So many groups: an interval's width is then right to some 2 %, and a figure costs some 20 ms whatever the run.
pub const GROUPS: usize = 1_024;

/// A 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Interval {
    /// 2.5 % of the resamples lie below.
    pub low: f64,
    /// 2.5 % lie above.
    pub high: f64,
}

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed; equal seeds give equal sequences.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `count`, by the high half of a product; the bias is below 2^-44 for a million.
    pub fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.bits()) * count as u128) >> 64) as usize
    }
}

/// Sums of columns over some queries, and how many there were.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sums<const N: usize> {
    /// How many queries.
    pub count: f64,
    /// The sum of each column.
    pub of: [f64; N],
}

impl<const N: usize> Sums<N> {
    const NONE: Self = Self { count: 0.0, of: [0.0; N] };

    fn one(of: [f64; N]) -> Self {
        Self { count: 1.0, of }
    }

    fn add(&mut self, other: &Self) {
        self.count += other.count;
        for (sum, more) in self.of.iter_mut().zip(other.of) {
            *sum += more;
        }
    }

    /// The mean of a column.
    pub fn mean(&self, column: usize) -> f64 {
        self.of[column] / self.count
    }
}

/// What is drawn from: one entry for a question, or for a group of them.
#[derive(Debug, Clone)]
pub struct Pool<const N: usize> {
    entries: Vec<Sums<N>>,
    questions: usize,
    total: Sums<N>,
}

impl<const N: usize> Pool<N> {
    /// A pool over the rows' columns, each of a question of its own.
    pub fn new(rows: impl ExactSizeIterator<Item = [f64; N]>, seed: u64) -> Self {
        Self::of(rows.len(), rows, seed)
    }

    /// A pool over the columns of `count` queries with the hashes of their questions. Where none is `repeated` the hashes are not
    /// looked at, so that millions need no table of them.
    pub fn of_queries(
        count: usize,
        rows: impl Iterator<Item = (u64, [f64; N])>,
        repeated: bool,
        seed: u64,
    ) -> Self {
        if repeated { Self::by_question(rows, seed) } else { Self::of(count, rows.map(|(_, of)| of), seed) }
    }

    /// A pool over the columns of `count` rows, each of a question of its own, that come one by one and need never be in memory
    /// together.
    pub fn of(count: usize, rows: impl Iterator<Item = [f64; N]>, seed: u64) -> Self {
        Self::over(count, rows.map(Sums::one), seed)
    }

    /// A pool over rows of which several may be of one question, which is named by its hash. The questions keep the order of
    /// their first rows.
    pub fn by_question(rows: impl Iterator<Item = (u64, [f64; N])>, seed: u64) -> Self {
        let mut places = HashMap::new();
        let mut questions: Vec<Sums<N>> = Vec::new();
        for (question, of) in rows {
            let place = *places.entry(question).or_insert(questions.len());
            if place == questions.len() {
                questions.push(Sums::NONE);
            }
            questions[place].add(&Sums::one(of));
        }
        Self::over(questions.len(), questions.into_iter(), seed)
    }

    fn over(questions: usize, sums: impl Iterator<Item = Sums<N>>, seed: u64) -> Self {
        let mut total = Sums::NONE;
        if questions <= SINGLE {
            let entries: Vec<_> = sums.collect();
            entries.iter().for_each(|entry| total.add(entry));
            return Self { entries, questions, total };
        }
        let mut random = Random::new(seed ^ 0x67_726F_7570);
        let mut entries = vec![Sums::NONE; GROUPS];
        for entry in sums {
            entries[random.below(GROUPS)].add(&entry);
            total.add(&entry);
        }
        entries.retain(|entry| entry.count > 0.0);
        Self { entries, questions, total }
    }

    /// How many questions there are.
    pub fn questions(&self) -> usize {
        self.questions
    }

    /// The sums over all queries.
    pub fn total(&self) -> &Sums<N> {
        &self.total
    }

    /// The 95 % intervals of `M` figures over the sums, from the same resamples; `None` for a figure that some resample could
    /// not give, or where there are fewer than two questions.
    pub fn intervals<const M: usize>(
        &self,
        seed: u64,
        figures: impl Fn(&Sums<N>) -> [f64; M],
    ) -> [Option<Interval>; M] {
        if self.entries.len() < 2 {
            return [None; M];
        }
        let mut random = Random::new(seed);
        let mut drawn: [Vec<f64>; M] = std::array::from_fn(|_| Vec::with_capacity(RESAMPLES));
        for _ in 0..RESAMPLES {
            let mut sums = Sums::NONE;
            for _ in 0..self.entries.len() {
                sums.add(&self.entries[random.below(self.entries.len())]);
            }
            for (values, value) in drawn.iter_mut().zip(figures(&sums)) {
                values.push(value);
            }
        }
        drawn.map(|mut values| {
            if values.iter().any(|value| !value.is_finite()) {
                return None;
            }
            values.sort_unstable_by(f64::total_cmp);
            Some(Interval { low: percentile(&values, 2.5), high: percentile(&values, 97.5) })
        })
    }
}

/// A percentile of sorted values, between two of them in proportion (numpy's default).
///
/// # Panics
/// There are no values.
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let place = percent / 100.0 * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

/// The 95 % interval of a proportion by Wilson's score (JASA 22, 1927), which stays honest where all or none were right.
pub fn wilson(right: f64, of: f64) -> Option<Interval> {
    const Z: f64 = 1.959_963_984_540_054;
    if of < 1.0 {
        return None;
    }
    let share = right / of;
    let scale = 1.0 + Z * Z / of;
    let middle = (share + Z * Z / (2.0 * of)) / scale;
    let half = Z * (share * (1.0 - share) / of + Z * Z / (4.0 * of * of)).sqrt() / scale;
    Some(Interval { low: (middle - half).max(0.0), high: (middle + half).min(1.0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        let mut random = Random::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.bits()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn a_seed_repeats_and_another_one_does_not() {
        let rows = || (0..50).map(|n| [f64::from(n % 7), f64::from(n)]);
        let interval = |seed| {
            Pool::new(rows().collect::<Vec<_>>().into_iter(), 1).intervals(seed, |sums| [sums.mean(0)])[0]
                .unwrap()
        };
        assert_eq!(interval(5), interval(5));
        assert_ne!(interval(5), interval(6));
    }

    #[test]
    fn groups_give_the_interval_that_single_queries_give() {
        let mut random = Random::new(3);
        let rows: Vec<[f64; 1]> = (0..200_000).map(|_| [(random.bits() >> 40) as f64]).collect();
        let grouped = Pool::new(rows.iter().copied(), 9);
        let interval = grouped.intervals(1, |sums| [sums.mean(0)])[0].unwrap();
        let mean = grouped.total().mean(0);
        let variance = rows.iter().map(|[value]| (value - mean).powi(2)).sum::<f64>() / rows.len() as f64;
        let expected = 2.0 * 1.96 * (variance / rows.len() as f64).sqrt();
        let width = interval.high - interval.low;
        assert!((0.9..1.1).contains(&(width / expected)), "{width} where {expected} is right");
        assert!(interval.low < mean && mean < interval.high);
    }

    #[test]
    fn a_question_is_drawn_with_all_its_queries() {
        let once: Vec<(u64, [f64; 1])> = (0..60_u64).map(|n| (n, [(n * n % 17) as f64])).collect();
        let interval = |pool: Pool<1>| pool.intervals(1, |sums| [sums.mean(0)])[0].unwrap();
        let alone = interval(Pool::new(once.iter().map(|(_, of)| *of), 1));
        assert_eq!(interval(Pool::by_question(once.iter().copied(), 1)), alone);
        let pool = Pool::by_question((0..10).flat_map(|_| once.iter().copied()), 1);
        assert_eq!((pool.questions(), pool.total().count), (60, 600.0));
        assert_eq!(interval(pool), alone);
    }

    #[test]
    fn nothing_and_one_query_have_no_interval() {
        assert_eq!(Pool::<1>::new([].into_iter(), 1).intervals(1, |sums| [sums.mean(0)]), [None]);
        assert_eq!(Pool::new([[1.0]].into_iter(), 1).intervals(1, |sums| [sums.mean(0)]), [None]);
    }

    #[test]
    fn wilson_leaves_room_where_nothing_was_right() {
        let none = wilson(0.0, 20.0).unwrap();
        assert!(none.low == 0.0 && (0.15..0.17).contains(&none.high), "{none:?}");
        let some = wilson(3.0, 20.0).unwrap();
        assert!((0.05..0.06).contains(&some.low) && (0.35..0.37).contains(&some.high), "{some:?}");
        assert_eq!(wilson(0.0, 0.0), None);
    }
}
