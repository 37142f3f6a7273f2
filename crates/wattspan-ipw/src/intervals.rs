//! 95 % confidence intervals in closed form; docs/ipw.md, section "Intervals", derives and measures them.
//!
//! Accuracy has Agresti's and Coull's interval. A mean cost has Student's on the logarithmic scale, with the larger of
//! the sample's relative error and that of log-normal costs. A ratio of both has MOVER's (Donner & Zou 2012) with their
//! correlation, made monotone in the number of right answers. Where queries overlap, errors are those of the moving
//! block bootstrap over time. Invariants: an interval contains its figure, and the same rows in the same order give the
//! same interval to the last bit; `tests/ipw/recompute_intervals.py` recomputes it.

use std::collections::HashMap;

use super::bootstrap::ConfidenceInterval;
use super::student::{Level, student_quantile};

/// The level of accuracies and of figures other than costs.
const LEVEL_95: Level = Level { between: 0.95, normal: 1.959_963_984_540_054 };

/// The level of mean costs. A mean that depends on the number of a few expensive questions moves in steps; at a nominal
/// 95 % the steps lose up to 1.5 % of coverage, and 96 % returns it.
const COST_LEVEL: Level = Level { between: 0.96, normal: 2.053_748_910_631_822_5 };

/// The log-normal error exceeds the sample's by at most this number / √questions: the sample's own error has a relative
/// error of this order, and costs that are not log-normal must not be charged for more.
const LOG_NORMAL_EXCESS: f64 = 1.1;

/// From this number of questions, a kind that makes up a tenth of them is absent from a sample in less than 5 % of
/// runs (0.9^29).
pub const MIN_QUESTIONS: usize = 29;

/// The fewest questions that may carry a mean cost, as (Σ cost)² / Σ cost². With fewer, single questions decide it.
const MIN_CARRYING: f64 = 8.0;

/// The fewest blocks of time.
const MIN_BLOCKS: usize = 3;

/// A query of a sample: its question, when it was open, and its values.
#[derive(Debug, Clone, Copy)]
pub struct SampleQuery<const N: usize> {
    /// The hash of the question.
    pub question: u64,
    /// The start and the end, seconds.
    pub open_s: [f64; 2],
    pub values: [f64; N],
}

/// Queries in order of their starts, grouped by question and in blocks of time.
#[derive(Debug, Clone)]
pub struct IntervalSample<const N: usize> {
    /// The values of all queries, by column: a pass over millions of queries then reads only what it uses.
    columns: [Vec<f64>; N],
    queries: usize,
    /// The index of each query's question; empty if every query is a question of its own.
    question_of: Vec<u32>,
    questions: usize,
    /// The number of consecutive queries that share windows.
    sharing: usize,
    /// The number of consecutive queries in a block of time: as many as share windows, but at most a third of all.
    block: usize,
}

/// A mean with its interval on the logarithmic scale: mean × exp(± `log_half_width`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanCost {
    /// The mean over the queries.
    pub mean: f64,
    /// Half of the interval's width on the logarithmic scale.
    pub log_half_width: f64,
    /// The number of questions from which the interval holds, if there are fewer now.
    pub questions_needed: Option<usize>,
}

impl MeanCost {
    /// Returns the interval of the mean.
    pub fn interval(&self) -> ConfidenceInterval {
        log_interval(self.mean, self.log_half_width)
    }
}

/// Returns the caveat on the intervals of a set with too few questions.
pub fn describe_shortage(questions_needed: usize) -> String {
    format!(
        "too few questions for these intervals: rare expensive ones may be absent or decide the mean alone, or all \
         queries share their time with most others; {questions_needed} would do"
    )
}

/// Returns value × exp(± half width).
fn log_interval(value: f64, log_half_width: f64) -> ConfidenceInterval {
    ConfidenceInterval { low: value * (-log_half_width).exp(), high: value * log_half_width.exp() }
}

/// Returns the interval of a proportion by Agresti and Coull (*The American Statistician* 52, 1998). It contains
/// Wilson's, which covers less than 93 % near 0 and 1.
pub fn proportion_interval(proportion: f64, trials: f64) -> Option<ConfidenceInterval> {
    if trials < 1.0 || !(0.0..=1.0).contains(&proportion) {
        return None;
    }
    let square = LEVEL_95.normal * LEVEL_95.normal;
    let all = trials + square;
    let center = (proportion * trials + square / 2.0) / all;
    let half_width = LEVEL_95.normal * (center * (1.0 - center) / all).sqrt();
    Some(ConfidenceInterval {
        low: (center - half_width).clamp(0.0, proportion),
        high: (center + half_width).clamp(proportion, 1.0),
    })
}

impl<const N: usize> IntervalSample<N> {
    /// Creates a sample. Questions are identified by their hashes if some are `repeated`.
    pub fn new(queries: impl Iterator<Item = SampleQuery<N>>, repeated: bool) -> Self {
        let mut columns: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
        let (mut open_s, mut hashes) = (Vec::new(), Vec::new());
        for query in queries {
            open_s.push(query.open_s);
            if repeated {
                hashes.push(query.question);
            }
            columns.iter_mut().zip(query.values).for_each(|(column, value)| column.push(value));
        }
        if !open_s.is_sorted_by(|one, other| one[0] <= other[0]) {
            let mut order: Vec<u32> = (0..open_s.len() as u32).collect();
            // Stable: queries that start together keep the order of the file.
            order.sort_by(|one, other| open_s[*one as usize][0].total_cmp(&open_s[*other as usize][0]));
            columns.iter_mut().for_each(|column| *column = reordered(column, &order));
            (open_s, hashes) =
                (reordered(&open_s, &order), if repeated { reordered(&hashes, &order) } else { hashes });
        }
        let queries = open_s.len();
        let sharing = sharing_queries(&open_s);
        let block = sharing.min((queries / MIN_BLOCKS).max(1));
        let (question_of, questions) =
            if repeated { number_questions(&hashes) } else { (Vec::new(), queries) };
        Self { columns, queries, question_of, questions, sharing, block }
    }

    /// The number of questions.
    pub fn question_count(&self) -> usize {
        self.questions
    }

    /// The values of all queries in a column.
    pub fn column(&self, column: usize) -> &[f64] {
        &self.columns[column]
    }

    /// Returns the mean over the queries of a value, given by the query's index.
    pub fn mean(&self, value: impl Fn(usize) -> f64) -> f64 {
        (0..self.queries).map(value).sum::<f64>() / self.queries as f64
    }

    /// Returns the mean of a column.
    pub fn column_mean(&self, column: usize) -> f64 {
        self.columns[column].iter().sum::<f64>() / self.queries as f64
    }

    /// Returns the interval of the mean of scores between 0 and 1, where a question's repeats are one trial.
    pub fn score_interval(&self, score: usize) -> Option<ConfidenceInterval> {
        proportion_interval(self.column_mean(score), self.questions as f64)
    }

    /// Returns the mean of a column of costs with its interval; `None` if the mean is not positive or with fewer than two
    /// questions.
    pub fn mean_cost(&self, cost: usize) -> Option<MeanCost> {
        let mean = self.column_mean(cost);
        if self.questions < 2 || !(mean > 0.0 && mean.is_finite()) {
            return None;
        }
        let costs = self.column(cost);
        let deviation = |at: usize| costs[at] - mean;
        let relative_error = self.error_between_questions(deviation) / mean;
        let excess = 1.0 + LOG_NORMAL_EXCESS / (self.questions as f64).sqrt();
        let log_normal = self.log_normal_error(costs).min(excess * relative_error);
        let in_time = self.error_between_blocks(deviation) / mean;
        let error = relative_error.max(log_normal).max(in_time);
        Some(MeanCost {
            mean,
            log_half_width: student_quantile(COST_LEVEL, self.degrees_of_freedom()) * error,
            questions_needed: self.questions_needed(relative_error),
        })
    }

    /// Returns the interval of mean score / mean cost, from the column of the costs with their mean.
    pub fn score_per_cost(&self, score: usize, cost: usize, mean_cost: MeanCost) -> ConfidenceInterval {
        let (scores, costs) = (self.column(score), self.column(cost));
        let sums = self.question_sums(|at| costs[at] - mean_cost.mean);
        let deviation = |at: usize| match &sums {
            Some(sums) => sums[self.question_of[at] as usize],
            None => costs[at] - mean_cost.mean,
        };
        let (mut wrong, mut right) = (Vec::new(), Vec::new());
        let mut total = ScoreSums::default();
        let (mut square_sum, mut deviation_sum) = (0.0, 0.0);
        for (at, score) in scores.iter().copied().enumerate() {
            let deviation = deviation(at);
            total.add(score, deviation);
            deviation_sum += deviation;
            square_sum += deviation * deviation;
            if score > 0.0 {
                right.push((deviation, score));
            }
            if score < 1.0 {
                wrong.push((-deviation, 1.0 - score));
            }
        }
        if let Some(sums) = &sums {
            square_sum = sums.iter().map(|sum| sum * sum).sum();
        }
        let (queries, questions) = (self.queries as f64, self.questions as f64);
        let scale = queries * (square_sum / questions).sqrt();
        let ratio = ScoreRatio { queries, questions, cost: mean_cost, scale, deviation_sum };
        let high = ratio.monotone_high(total, right);
        let low = ratio.monotone_low(total, wrong);
        ConfidenceInterval { low, high }
    }

    /// Returns the interval of a positive figure from the relative influences of the queries: by how much each changes
    /// the figure's logarithm, × the number of queries. Their mean must be 0.
    pub fn log_figure(
        &self,
        figure: f64,
        influence: impl Fn(usize) -> f64 + Copy,
    ) -> Option<ConfidenceInterval> {
        if self.questions < 2 || figure.is_nan() || figure <= 0.0 {
            return None;
        }
        let error = self.error_between_questions(influence).max(self.error_between_blocks(influence));
        let half_width = student_quantile(LEVEL_95, self.degrees_of_freedom()) * error;
        half_width.is_finite().then(|| log_interval(figure, half_width))
    }

    /// Returns half of the width of the interval of the mean of a column of either sign.
    pub fn half_width(&self, column: usize) -> f64 {
        let (values, mean) = (&self.columns[column], self.column_mean(column));
        self.linear_half_width(|at| values[at] - mean)
    }

    /// Returns the same of what a column has beyond `slope` × another one.
    pub fn residual_half_width(&self, column: usize, other: usize, slope: f64) -> f64 {
        let (values, mean) = (&self.columns[column], self.column_mean(column));
        let (others, other_mean) = (&self.columns[other], self.column_mean(other));
        self.linear_half_width(|at| values[at] - mean - slope * (others[at] - other_mean))
    }

    fn linear_half_width(&self, deviation: impl Fn(usize) -> f64 + Copy) -> f64 {
        if self.questions < 2 {
            return 0.0;
        }
        // The error of log-normal values cannot be read from the logarithms of values of either sign.
        let excess = 1.0 + LOG_NORMAL_EXCESS / (self.questions as f64).sqrt();
        let error =
            (excess * self.error_between_questions(deviation)).max(self.error_between_blocks(deviation));
        student_quantile(COST_LEVEL, self.degrees_of_freedom()) * error
    }

    /// Returns the slope of the least-squares line of a column against another one over the questions, 0 if that does not
    /// vary.
    pub fn slope(&self, against: usize, column: usize) -> f64 {
        let spread = self.co_deviation(against, against);
        if spread > 0.0 { self.co_deviation(against, column) / spread } else { 0.0 }
    }

    /// Returns the correlation of two columns over the questions, 0 if one does not vary.
    pub fn correlation(&self, one: usize, other: usize) -> f64 {
        let spread = (self.co_deviation(one, one) * self.co_deviation(other, other)).sqrt();
        if spread > 0.0 { (self.co_deviation(one, other) / spread).clamp(-1.0, 1.0) } else { 0.0 }
    }

    /// Returns the correlation of two columns of scores. A positive one is reduced by the continuity correction of
    /// Newcombe's method 10 (*Statistics in Medicine* 17, 1998): equal answers to few questions are no full correlation.
    pub fn score_correlation(&self, one: usize, other: usize) -> f64 {
        let spread = (self.co_deviation(one, one) * self.co_deviation(other, other)).sqrt();
        if spread <= 0.0 {
            return 0.0;
        }
        let correlation = self.co_deviation(one, other) / spread;
        let queries_per_question = self.queries as f64 / self.questions as f64;
        let correction = queries_per_question * queries_per_question / 2.0 / spread;
        if correlation > 0.0 { (correlation - correction).clamp(0.0, 1.0) } else { correlation.max(-1.0) }
    }

    /// Returns the sum over the questions of the products of two columns' summed deviations from their means.
    fn co_deviation(&self, one: usize, other: usize) -> f64 {
        let deviation = |column: usize| {
            let (values, mean) = (&self.columns[column], self.column_mean(column));
            move |at: usize| values[at] - mean
        };
        let (one, other) = (deviation(one), deviation(other));
        match self.question_sums(one).zip(self.question_sums(other)) {
            Some((one, other)) => one.iter().zip(&other).map(|(one, other)| one * other).sum(),
            None => (0..self.queries).map(|at| one(at) * other(at)).sum(),
        }
    }

    /// Sums a value over the queries of each question; `None` if every query is a question of its own.
    fn question_sums(&self, value: impl Fn(usize) -> f64) -> Option<Vec<f64>> {
        if self.question_of.is_empty() {
            return None;
        }
        let mut sums = vec![0.0; self.questions];
        for (at, question) in self.question_of.iter().enumerate() {
            sums[*question as usize] += value(at);
        }
        Some(sums)
    }

    /// Returns the standard error of a mean over the queries, from the sums of its deviations by question.
    fn error_between_questions(&self, deviation: impl Fn(usize) -> f64 + Copy) -> f64 {
        let (queries, questions) = (self.queries as f64, self.questions as f64);
        let square_sum = match self.question_sums(deviation) {
            Some(sums) => sums.iter().map(|sum| sum * sum).sum::<f64>(),
            None => (0..self.queries).map(|at| deviation(at).powi(2)).sum(),
        };
        (square_sum * questions / (questions - 1.0)).sqrt() / queries
    }

    /// Returns the standard error that the circular moving block bootstrap has in the limit of infinitely many
    /// resamples (Künsch 1989; Politis & Romano 1992), 0 if no queries overlap.
    fn error_between_blocks(&self, deviation: impl Fn(usize) -> f64) -> f64 {
        let (count, block) = (self.queries, self.block);
        if block < 2 || count <= block {
            return 0.0;
        }
        let mut sum: f64 = (0..block).map(&deviation).sum();
        let mut square_sum = 0.0;
        let next = (block..count).chain(0..block);
        for (at, next) in (0..count).zip(next) {
            square_sum += sum * sum;
            sum += deviation(next) - deviation(at);
        }
        let (count, block) = (count as f64, block as f64);
        (square_sum / block / (count - block)).sqrt() / count.sqrt()
    }

    /// Overlapping blocks have one and a half times the degrees of freedom of disjoint ones (Meketon & Schmeiser 1984).
    fn degrees_of_freedom(&self) -> usize {
        if self.block < 2 {
            return self.questions - 1;
        }
        let of_blocks = (3 * (self.queries - self.block)) / (2 * self.block);
        of_blocks.min(self.questions - 1).max(1)
    }

    /// Returns the relative standard error of the mean of log-normal costs (Cox; Land 1971), from the variance of the
    /// logarithms of the questions' means; 0 if some are not positive.
    fn log_normal_error(&self, costs: &[f64]) -> f64 {
        let variance = match self.question_sums(|at| costs[at]).zip(self.question_sums(|_| 1.0)) {
            Some((sums, counts)) => log_variance(sums.iter().zip(&counts).map(|(sum, count)| sum / count)),
            None => log_variance(costs.iter().copied()),
        };
        let questions = self.questions as f64;
        let variance = variance.unwrap_or(0.0);
        (variance / questions + variance * variance / (2.0 * (questions - 1.0))).sqrt()
    }

    /// Returns the number of questions from which rare expensive ones are neither likely to be absent nor decide the
    /// mean alone, and from which there are enough blocks of time; `None` if there are as many.
    fn questions_needed(&self, relative_error: f64) -> Option<usize> {
        let questions = self.questions as f64;
        let carrying = questions / (1.0 + relative_error * relative_error * questions);
        let for_costs = (questions * MIN_CARRYING / carrying).ceil() as usize;
        let for_blocks = if self.sharing < 2 {
            0
        } else {
            (MIN_BLOCKS * self.sharing * self.questions).div_ceil(self.queries)
        };
        Some(for_costs.max(for_blocks).max(MIN_QUESTIONS)).filter(|needed| *needed > self.questions)
    }
}

fn reordered<T: Copy>(column: &[T], order: &[u32]) -> Vec<T> {
    order.iter().map(|at| column[*at as usize]).collect()
}

/// Returns the variance of the logarithms (Welford 1962); `None` if a value is not positive.
fn log_variance(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut count, mut mean, mut square_sum) = (0.0, 0.0, 0.0);
    for value in values {
        if value <= 0.0 {
            return None;
        }
        let log = value.ln();
        count += 1.0;
        let difference = log - mean;
        mean += difference / count;
        square_sum += difference * (log - mean);
    }
    Some(square_sum / (count - 1.0))
}

/// Returns the number of consecutive queries that share windows with one query on either side, from their starts and
/// ends in order. Without overlaps, or if all begin at once (an import without times), it is 1.
fn sharing_queries(open_s: &[[f64; 2]]) -> usize {
    let (Some(first), Some(last)) = (open_s.first(), open_s.last()) else { return 1 };
    if first[0] >= last[0] {
        return 1;
    }
    let mut overlaps = 0;
    for (at, [_, end]) in open_s.iter().enumerate() {
        let later = &open_s[at + 1..];
        // Doubles the range until it holds the end: most queries overlap few others of a long run.
        let mut range = 8;
        while range < later.len() && later[range - 1][0] < *end {
            range *= 2;
        }
        overlaps += later[..range.min(later.len())].partition_point(|other| other[0] < *end);
    }
    1 + 2 * overlaps.div_ceil(open_s.len())
}

/// Numbers the questions in order of their first queries.
fn number_questions(hashes: &[u64]) -> (Vec<u32>, usize) {
    let mut numbers = HashMap::new();
    let question_of = hashes
        .iter()
        .map(|hash| {
            let next = numbers.len() as u32;
            *numbers.entry(*hash).or_insert(next)
        })
        .collect();
    (question_of, numbers.len())
}

/// Sums over the queries: of the scores, and of score × deviation of the question's cost.
#[derive(Debug, Clone, Copy, Default)]
struct ScoreSums {
    scores: f64,
    products: f64,
}

impl ScoreSums {
    fn add(&mut self, score: f64, deviation: f64) {
        self.scores += score;
        self.products += score * deviation;
    }
}

/// The ratio of a mean score to a mean cost, as a function of the scores.
struct ScoreRatio {
    queries: f64,
    questions: f64,
    cost: MeanCost,
    /// Queries × the root mean square of the questions' deviations.
    scale: f64,
    /// The sum of the deviations over the queries; 0 unless questions have unequal numbers of queries.
    deviation_sum: f64,
}

impl ScoreRatio {
    fn proportion(&self, sums: ScoreSums) -> f64 {
        (sums.scores / self.queries).clamp(0.0, 1.0)
    }

    /// Returns the correlation of score and cost, at most 0: a positive one would narrow the interval.
    fn correlation(&self, sums: ScoreSums) -> f64 {
        let proportion = self.proportion(sums);
        let spread = self.scale * (proportion * (1.0 - proportion)).sqrt();
        if spread <= 0.0 {
            return 0.0;
        }
        ((sums.products - proportion * self.deviation_sum) / spread).clamp(-1.0, 0.0)
    }

    /// Combines the half widths of the score and of the cost.
    fn combined(&self, sums: ScoreSums, of_score: f64) -> f64 {
        let of_cost = self.cost.log_half_width;
        let product = -self.correlation(sums) * of_score * of_cost;
        (of_score * of_score + of_cost * of_cost + 2.0 * product).sqrt()
    }

    fn score_interval(&self, sums: ScoreSums) -> ConfidenceInterval {
        let proportion = self.proportion(sums);
        proportion_interval(proportion, self.questions)
            .unwrap_or(ConfidenceInterval { low: proportion, high: proportion })
    }

    fn high(&self, sums: ScoreSums) -> f64 {
        let (proportion, score) = (self.proportion(sums), self.score_interval(sums));
        if proportion <= 0.0 {
            // The limit of the other case.
            return score.high / self.cost.mean;
        }
        let half_width = self.combined(sums, (score.high / proportion).ln());
        proportion / self.cost.mean * half_width.exp()
    }

    fn low(&self, sums: ScoreSums) -> f64 {
        let (proportion, score) = (self.proportion(sums), self.score_interval(sums));
        if score.low <= 0.0 {
            return 0.0;
        }
        let half_width = self.combined(sums, (proportion / score.low).ln());
        proportion / self.cost.mean * (-half_width).exp()
    }

    /// Returns the highest upper limit over this sample and those with fewer right answers: one more right answer
    /// changes the correlation too, and must not lower the limit. The worst ones turn the most expensive right answers
    /// into wrong ones; `right` has the deviations and scores of all right ones.
    fn monotone_high(&self, mut sums: ScoreSums, right: Vec<(f64, f64)>) -> f64 {
        let mut highest = self.high(sums);
        let most = self.cost.log_half_width.exp() / self.cost.mean;
        for (deviation, score) in largest_first(right) {
            sums.add(-score, deviation);
            highest = highest.max(self.high(sums));
            if self.score_interval(sums).high * most <= highest {
                break;
            }
        }
        highest
    }

    /// Returns the lowest lower limit over this sample and those with more right answers; `wrong` has the negated
    /// deviations and missing scores of all wrong ones.
    fn monotone_low(&self, mut sums: ScoreSums, wrong: Vec<(f64, f64)>) -> f64 {
        let mut lowest = self.low(sums);
        let least = (-self.cost.log_half_width).exp() / self.cost.mean;
        for (deviation, score) in largest_first(wrong) {
            sums.add(score, -deviation);
            lowest = lowest.min(self.low(sums));
            if self.score_interval(sums).low * least >= lowest {
                break;
            }
        }
        lowest
    }
}

/// Iterates from the largest first value to the smallest, and sorts no more of millions than are taken.
fn largest_first(mut pairs: Vec<(f64, f64)>) -> impl Iterator<Item = (f64, f64)> {
    const SORTED_AT_ONCE: usize = 4_096;
    let mut sorted = 0;
    (0..pairs.len()).map(move |at| {
        if at == sorted {
            let descending = |one: &(f64, f64), other: &(f64, f64)| other.0.total_cmp(&one.0);
            let rest = &mut pairs[at..];
            let part = rest.len().min(SORTED_AT_ONCE);
            if part < rest.len() {
                rest.select_nth_unstable_by(part, descending);
            }
            rest[..part].sort_by(descending);
            sorted += part;
        }
        pairs[at]
    })
}

#[cfg(test)]
mod tests {
    use super::super::bootstrap::SplitMix64;
    use super::*;

    /// Queries of one second, one after another: score and cost.
    fn sample(rows: &[[f64; 2]]) -> IntervalSample<2> {
        IntervalSample::new(
            rows.iter().enumerate().map(|(at, row)| query(at as u64, at as f64, 1.0, *row)),
            false,
        )
    }

    fn query(question: u64, start_s: f64, length_s: f64, values: [f64; 2]) -> SampleQuery<2> {
        SampleQuery { question, open_s: [start_s, start_s + length_s], values }
    }

    fn ratio(rows: &[[f64; 2]]) -> ConfidenceInterval {
        let sample = sample(rows);
        sample.score_per_cost(0, 1, sample.mean_cost(1).unwrap())
    }

    fn uniform(random: &mut SplitMix64) -> f64 {
        (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Costs with a few that are much higher, and scores that depend on them.
    fn random_rows(count: usize, random: &mut SplitMix64) -> Vec<[f64; 2]> {
        let accuracy = uniform(random);
        (0..count)
            .map(|_| {
                let cost = (4.0 * uniform(random) * uniform(random)).exp();
                [f64::from(u8::from(uniform(random) < accuracy / cost.sqrt().sqrt())), cost]
            })
            .collect()
    }

    #[test]
    fn one_more_right_answer_lowers_no_limit_and_the_figure_lies_inside() {
        let mut random = SplitMix64::new(13);
        let mut changed_by_correlation = 0;
        for round in 0..300 {
            let rows = random_rows([3, 10, 20, 50][round % 4], &mut random);
            let interval = ratio(&rows);
            let mean = |at: usize| rows.iter().map(|row| row[at]).sum::<f64>() / rows.len() as f64;
            let figure = mean(0) / mean(1);
            assert!(interval.low <= figure && figure <= interval.high, "{interval:?} {figure}");
            for at in 0..rows.len() {
                let mut more = rows.clone();
                if std::mem::replace(&mut more[at][0], 1.0) > 0.0 {
                    continue;
                }
                let with_more = ratio(&more);
                assert!(
                    with_more.low >= interval.low && with_more.high >= interval.high,
                    "{interval:?} became {with_more:?} in {rows:?}"
                );
                changed_by_correlation += usize::from(naive_high(&more) < naive_high(&rows));
            }
        }
        assert!(changed_by_correlation > 0, "the search for the highest limit changed nothing");
    }

    /// The upper limit without the search.
    fn naive_high(rows: &[[f64; 2]]) -> f64 {
        let sample = sample(rows);
        let cost = sample.mean_cost(1).unwrap();
        let square_sum = rows.iter().map(|row| (row[1] - cost.mean).powi(2)).sum::<f64>();
        let count = rows.len() as f64;
        let mut sums = ScoreSums::default();
        rows.iter().for_each(|row| sums.add(row[0], row[1] - cost.mean));
        let scale = (square_sum * count).sqrt();
        ScoreRatio { queries: count, questions: count, cost, scale, deviation_sum: 0.0 }.high(sums)
    }

    #[test]
    fn the_search_stops_where_the_limit_cannot_change() {
        // 6,000 questions: the sorted part is smaller than the number of right answers.
        let rows = random_rows(6_000, &mut SplitMix64::new(5));
        let interval = ratio(&rows);
        let mut more = rows.clone();
        let wrong =
            more.iter_mut().filter(|row| row[0] == 0.0).max_by(|one, other| one[1].total_cmp(&other[1]));
        wrong.unwrap()[0] = 1.0;
        let with_more = ratio(&more);
        assert!(
            with_more.low >= interval.low && with_more.high >= interval.high,
            "{interval:?} {with_more:?}"
        );
        let mut pairs: Vec<(f64, f64)> = rows.iter().map(|row| (row[1], row[0])).collect();
        let taken: Vec<f64> = largest_first(pairs.clone()).map(|pair| pair.0).collect();
        pairs.sort_by(|one, other| other.0.total_cmp(&one.0));
        assert_eq!(taken, pairs.iter().map(|pair| pair.0).collect::<Vec<_>>());
    }

    #[test]
    fn repeats_are_one_trial_and_do_not_narrow() {
        let rows = random_rows(40, &mut SplitMix64::new(2));
        let times = |times: usize| {
            let all = (0..times).flat_map(|_| rows.iter().enumerate());
            let queries =
                all.enumerate().map(|(at, (question, row))| query(question as u64, at as f64, 1.0, *row));
            let sample = IntervalSample::new(queries, times > 1);
            let cost = sample.mean_cost(1).unwrap();
            [sample.score_interval(0).unwrap(), cost.interval(), sample.score_per_cost(0, 1, cost)]
        };
        for (one, other) in times(1).iter().zip(times(10)) {
            let near = |one: f64, other: f64| (one / other - 1.0).abs() < 1e-9;
            assert!(near(one.low, other.low) && near(one.high, other.high), "{one:?} {other:?}");
        }
    }

    #[test]
    fn blocks_are_as_long_as_windows_overlap() {
        let of = |length_s: f64| {
            let all = (0..100).map(|at| query(at, at as f64, length_s, [1.0, 1.0]));
            IntervalSample::new(all, false).block
        };
        // Queries of 3.5 s that begin each second overlap the next three.
        assert_eq!((of(0.9), of(1.0), of(3.5)), (1, 1, 7));
        let few = IntervalSample::new((0..12).map(|at| query(at, at as f64, 99.0, [1.0, 1.0])), false);
        let needed = few.mean_cost(1).unwrap().questions_needed;
        // The mean query overlaps 5.5 later ones, so 13 share windows.
        assert_eq!((few.block, few.degrees_of_freedom(), needed), (4, 3, Some(39)));
        let without_times = (0..100).map(|at| query(at, 0.0, 5.0, [1.0, 1.0]));
        assert_eq!(IntervalSample::new(without_times, false).block, 1);
    }

    /// A server with four queries at once on a machine whose power is shared by the open ones: the cost of a query is its
    /// share, so queries that are open together have similar costs.
    fn side_by_side(count: usize, random: &mut SplitMix64) -> Vec<SampleQuery<2>> {
        const AT_ONCE: usize = 4;
        let mut queries = Vec::new();
        let (mut time, mut watts) = (0.0, 10.0_f64);
        // End, index of each open query.
        let mut open: Vec<(f64, usize)> = Vec::new();
        while queries.len() < count || !open.is_empty() {
            while open.len() < AT_ONCE && queries.len() < count {
                let length_s = 0.5 + uniform(random);
                open.push((time + length_s, queries.len()));
                queries.push(query(queries.len() as u64, time, length_s, [1.0, 0.0]));
            }
            let (next, end) = open
                .iter()
                .enumerate()
                .map(|(at, of)| (at, of.0))
                .min_by(|one, other| one.1.total_cmp(&other.1))
                .unwrap();
            open.iter()
                .for_each(|(_, at)| queries[*at].values[1] += watts * (end - time) / open.len() as f64);
            // The machine's power wanders, and each change lasts for a few ends of queries.
            watts = 10.0 + 0.5 * (watts - 10.0) + 8.0 * (uniform(random) - 0.5);
            (time, _) = (end, open.swap_remove(next));
        }
        queries
    }

    #[test]
    fn where_windows_are_shared_blocks_of_time_cover_and_single_queries_do_not() {
        let mut random = SplitMix64::new(8);
        let mean = |queries: &[SampleQuery<2>]| {
            queries.iter().map(|query| query.values[1]).sum::<f64>() / queries.len() as f64
        };
        let truth = mean(&side_by_side(400_000, &mut random));
        const RUNS: usize = 2_000;
        for count in [40, 100] {
            let (mut blocks, mut single) = (0, 0);
            for _ in 0..RUNS {
                let queries = side_by_side(count, &mut random);
                let holds = |queries: &mut dyn Iterator<Item = SampleQuery<2>>| {
                    let interval = IntervalSample::new(queries, false).mean_cost(1).unwrap().interval();
                    usize::from(interval.low <= truth && truth <= interval.high)
                };
                blocks += holds(&mut queries.iter().copied());
                let apart = queries.iter().enumerate();
                single += holds(&mut apart.map(|(at, of)| query(at as u64, at as f64, 0.5, of.values)));
            }
            let percent = |covered: usize| covered * 100 / RUNS;
            assert!(
                percent(blocks) >= 92 && percent(single) < 88,
                "{count}: {} {}",
                percent(blocks),
                percent(single)
            );
        }
    }

    #[test]
    fn few_questions_and_costs_that_few_carry_need_more() {
        let needed = |rows: &[[f64; 2]]| sample(rows).mean_cost(1).unwrap().questions_needed;
        let even = |count: usize| vec![[1.0, 1.0]; count];
        assert_eq!((needed(&even(10)), needed(&even(28)), needed(&even(29))), (Some(29), Some(29), None));
        let mut one_carries = even(50);
        one_carries[7][1] = 100.0;
        assert!(needed(&one_carries).is_some_and(|needed| (100..400).contains(&needed)));
    }

    #[test]
    fn a_figure_without_two_questions_or_a_positive_cost_has_no_interval() {
        assert_eq!(sample(&[[1.0, 2.0]]).mean_cost(1), None);
        assert_eq!(sample(&[[1.0, 2.0], [1.0, -3.0]]).mean_cost(1), None);
        assert_eq!(sample(&[[1.0, 2.0], [1.0, f64::NAN]]).mean_cost(1), None);
        assert_eq!(sample(&[]).mean_cost(1), None);
        assert_eq!(proportion_interval(0.0, 0.0), None);
        let none = proportion_interval(0.0, 20.0).unwrap();
        assert!(none.low == 0.0 && (0.18..0.20).contains(&none.high), "{none:?}");
    }
}
