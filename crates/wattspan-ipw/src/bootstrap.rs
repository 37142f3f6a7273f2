//! Percentile bootstrap over questions: the method with which tests and benches compare the intervals of the figures, which are
//! in closed form (`intervals.rs`).
//!
//! The generator is a seeded SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), so a result is reproducible to the last
//! digit. Percentiles use numpy's default method ("linear"); `tests/fixtures/ipw/statistics.py` recomputes them.
//! Invariant: a repeated question is resampled with all its queries, since repeats carry no information about the
//! choice of questions. Above [`GROUPING_THRESHOLD`] questions, random groups are resampled instead of single questions.
//! Questions are exchangeable, so the variance of a mean is unchanged, and the cost does not depend on their number.

use std::collections::HashMap;

/// The number of resamples.
pub const RESAMPLES: usize = 2_000;

/// The number of resamples that may be undefined: with more than half, the rest are no sample of the questions.
pub const MAX_UNDEFINED: usize = RESAMPLES / 2;

/// Above this number of questions, groups are resampled.
pub const GROUPING_THRESHOLD: usize = 2_048;

/// The number of groups: the width of an interval is then accurate to about 2 %, and a figure takes about 20 ms for
/// any run.
pub const GROUPS: usize = 1_024;

/// A 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ConfidenceInterval {
    /// The lower limit.
    pub low: f64,
    /// The upper limit; infinite if there is none.
    pub high: f64,
}

/// The SplitMix64 random number generator.
#[derive(Debug, Clone)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// Seeds the generator; equal seeds give equal sequences.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `count` from the high half of a product; the bias is below 2^-44 for a million.
    pub fn next_below(&mut self, count: usize) -> usize {
        ((u128::from(self.next_u64()) * count as u128) >> 64) as usize
    }
}

/// Sums of columns over a set of queries, with their number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ColumnSums<const N: usize> {
    /// The number of queries.
    pub count: f64,
    /// The sum of each column.
    pub sums: [f64; N],
}

impl<const N: usize> ColumnSums<N> {
    const ZERO: Self = Self { count: 0.0, sums: [0.0; N] };

    fn from_row(row: [f64; N]) -> Self {
        Self { count: 1.0, sums: row }
    }

    fn add(&mut self, other: &Self) {
        self.count += other.count;
        for (sum, more) in self.sums.iter_mut().zip(other.sums) {
            *sum += more;
        }
    }

    /// Returns the mean of a column.
    pub fn mean(&self, column: usize) -> f64 {
        self.sums[column] / self.count
    }
}

/// The units that are resampled: one entry per question or per group of questions.
#[derive(Debug, Clone)]
pub struct BootstrapSample<const N: usize> {
    entries: Vec<ColumnSums<N>>,
    questions: usize,
    total: ColumnSums<N>,
}

impl<const N: usize> BootstrapSample<N> {
    /// Creates a pool over the rows' columns, with one question per row.
    pub fn new(rows: impl ExactSizeIterator<Item = [f64; N]>, seed: u64) -> Self {
        Self::from_rows(rows.len(), rows, seed)
    }

    /// Creates a pool over the columns of `count` queries with the hashes of their questions. The hashes are not read
    /// unless some question is `repeated`, so no hash table is built for millions of rows.
    pub fn from_queries(
        count: usize,
        rows: impl Iterator<Item = (u64, [f64; N])>,
        repeated: bool,
        seed: u64,
    ) -> Self {
        if repeated {
            Self::clustered(rows, seed)
        } else {
            Self::from_rows(count, rows.map(|(_, row)| row), seed)
        }
    }

    /// Creates a pool from an iterator of `count` rows with one question per row, without collecting the rows.
    pub fn from_rows(count: usize, rows: impl Iterator<Item = [f64; N]>, seed: u64) -> Self {
        Self::from_sums(count, rows.map(ColumnSums::from_row), seed)
    }

    /// Creates a pool over rows of repeated questions, identified by hash. The questions keep the order of their first
    /// rows.
    pub fn clustered(rows: impl Iterator<Item = (u64, [f64; N])>, seed: u64) -> Self {
        let mut indices = HashMap::new();
        let mut questions: Vec<ColumnSums<N>> = Vec::new();
        for (question, row) in rows {
            let index = *indices.entry(question).or_insert(questions.len());
            if index == questions.len() {
                questions.push(ColumnSums::ZERO);
            }
            questions[index].add(&ColumnSums::from_row(row));
        }
        Self::from_sums(questions.len(), questions.into_iter(), seed)
    }

    fn from_sums(questions: usize, sums: impl Iterator<Item = ColumnSums<N>>, seed: u64) -> Self {
        let mut total = ColumnSums::ZERO;
        if questions <= GROUPING_THRESHOLD {
            let entries: Vec<_> = sums.collect();
            entries.iter().for_each(|entry| total.add(entry));
            return Self { entries, questions, total };
        }
        let mut random = SplitMix64::new(seed ^ 0x67_726F_7570);
        let mut entries = vec![ColumnSums::ZERO; GROUPS];
        for entry in sums {
            entries[random.next_below(GROUPS)].add(&entry);
            total.add(&entry);
        }
        entries.retain(|entry| entry.count > 0.0);
        Self { entries, questions, total }
    }

    /// The number of questions.
    pub fn question_count(&self) -> usize {
        self.questions
    }

    /// Returns the sums over all queries.
    pub fn total(&self) -> &ColumnSums<N> {
        &self.total
    }

    /// Computes the 95 % intervals of `M` figures from the same resamples. A resample that is not a number (none right in
    /// either run) says nothing and is left out; an infinite one (none right in the first run) is the largest. A figure
    /// is `None` if more than [`MAX_UNDEFINED`] resamples are left out, or with fewer than two questions.
    pub fn confidence_intervals<const M: usize>(
        &self,
        seed: u64,
        statistics: impl Fn(&ColumnSums<N>) -> [f64; M],
    ) -> [Option<ConfidenceInterval>; M] {
        if self.entries.len() < 2 {
            return [None; M];
        }
        let mut random = SplitMix64::new(seed);
        let mut resampled: [Vec<f64>; M] = std::array::from_fn(|_| Vec::with_capacity(RESAMPLES));
        for _ in 0..RESAMPLES {
            let mut sums = ColumnSums::ZERO;
            for _ in 0..self.entries.len() {
                sums.add(&self.entries[random.next_below(self.entries.len())]);
            }
            for (values, value) in resampled.iter_mut().zip(statistics(&sums)) {
                values.push(value);
            }
        }
        resampled.map(|mut values| {
            values.retain(|value| !value.is_nan());
            if RESAMPLES - values.len() > MAX_UNDEFINED {
                return None;
            }
            values.sort_unstable_by(f64::total_cmp);
            Some(ConfidenceInterval { low: percentile(&values, 2.5), high: percentile(&values, 97.5) })
        })
    }
}

/// Returns a percentile of sorted values by linear interpolation (numpy's default).
///
/// # Panics
/// `sorted` is empty.
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = percent / 100.0 * (sorted.len() - 1) as f64;
    let lower = rank.floor() as usize;
    let upper = (lower + 1).min(sorted.len() - 1);
    if sorted[lower] == sorted[upper] {
        // Both may be infinite.
        return sorted[lower];
    }
    sorted[lower] + (sorted[upper] - sorted[lower]) * (rank - lower as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generates_the_splitmix64_sequence() {
        let mut random = SplitMix64::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next_u64()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn equal_seeds_give_equal_intervals() {
        let rows = || (0..50).map(|n| [f64::from(n % 7), f64::from(n)]);
        let interval = |seed| {
            BootstrapSample::new(rows().collect::<Vec<_>>().into_iter(), 1)
                .confidence_intervals(seed, |sums| [sums.mean(0)])[0]
                .unwrap()
        };
        assert_eq!(interval(5), interval(5));
        assert_ne!(interval(5), interval(6));
    }

    #[test]
    fn grouping_preserves_the_interval_width() {
        let mut random = SplitMix64::new(3);
        let rows: Vec<[f64; 1]> = (0..200_000).map(|_| [(random.next_u64() >> 40) as f64]).collect();
        let grouped = BootstrapSample::new(rows.iter().copied(), 9);
        let interval = grouped.confidence_intervals(1, |sums| [sums.mean(0)])[0].unwrap();
        let mean = grouped.total().mean(0);
        let variance = rows.iter().map(|[value]| (value - mean).powi(2)).sum::<f64>() / rows.len() as f64;
        let expected_width = 2.0 * 1.96 * (variance / rows.len() as f64).sqrt();
        let width = interval.high - interval.low;
        assert!((0.9..1.1).contains(&(width / expected_width)), "{width} where {expected_width} is right");
        assert!(interval.low < mean && mean < interval.high);
    }

    #[test]
    fn queries_of_a_question_are_resampled_together() {
        let once: Vec<(u64, [f64; 1])> = (0..60_u64).map(|n| (n, [(n * n % 17) as f64])).collect();
        let interval =
            |sample: BootstrapSample<1>| sample.confidence_intervals(1, |sums| [sums.mean(0)])[0].unwrap();
        let alone = interval(BootstrapSample::new(once.iter().map(|(_, of)| *of), 1));
        assert_eq!(interval(BootstrapSample::clustered(once.iter().copied(), 1)), alone);
        let sample = BootstrapSample::clustered((0..10).flat_map(|_| once.iter().copied()), 1);
        assert_eq!((sample.question_count(), sample.total().count), (60, 600.0));
        assert_eq!(interval(sample), alone);
    }

    #[test]
    fn undefined_resamples_are_left_out_and_infinite_ones_are_the_largest() {
        // A ratio of the scores of two runs, of which each has one right answer among ten: a third of the resamples have
        // none of the first run, and some have none of either.
        let rows = (0..10).map(|at| [f64::from(u8::from(at == 0)), f64::from(u8::from(at == 1))]);
        let sample = BootstrapSample::new(rows, 1);
        let ratio = |sums: &ColumnSums<2>| [sums.sums[1] / sums.sums[0], f64::NAN];
        let [interval, never] = sample.confidence_intervals(1, ratio);
        assert_eq!((interval, never), (Some(ConfidenceInterval { low: 0.0, high: f64::INFINITY }), None));
        // Three of ten: in a fiftieth of the resamples the first run has none, so the limits are finite.
        let rows = (0..10).map(|at| [f64::from(u8::from(at < 3)), f64::from(u8::from(at > 6))]);
        let sample = BootstrapSample::new(rows, 1);
        let [interval, _] = sample.confidence_intervals(1, |sums| [sums.sums[1] / sums.sums[0], 0.0]);
        let interval = interval.unwrap();
        assert!(interval.low < 1.0 && interval.high > 3.0, "{interval:?}");
    }

    #[test]
    fn fewer_than_two_questions_have_no_interval() {
        assert_eq!(
            BootstrapSample::<1>::new([].into_iter(), 1).confidence_intervals(1, |sums| [sums.mean(0)]),
            [None]
        );
        assert_eq!(
            BootstrapSample::new([[1.0]].into_iter(), 1).confidence_intervals(1, |sums| [sums.mean(0)]),
            [None]
        );
    }
}
