//! 95 % confidence intervals of the differences and ratios of two runs of the same questions, in closed form; docs/ipw.md,
//! section "Two runs", derives and measures them.
//!
//! Each figure is combined from the intervals of the two runs by MOVER (Donner & Zou 2012), with the correlations of
//! their scores and costs over the questions. Invariant: an interval contains its figure, and independent runs are only
//! a case of low correlation.

use super::bootstrap::ConfidenceInterval;
use super::estimates::{ENERGY, Figure, POWER, SCORE};
use super::intervals::{IntervalSample, MeanCost, SampleQuery};

/// The number of a query's values in a run: score, joules, watts.
const VALUE_COUNT: usize = 3;

/// A query that both runs have, the first run before the other.
#[derive(Debug, Clone, Copy)]
pub struct PairedQuery {
    /// The hash of the question.
    pub question: u64,
    /// The starts and the ends, seconds.
    pub open_s: [[f64; 2]; 2],
    pub values: [[f64; VALUE_COUNT]; 2],
}

/// The queries of two runs.
#[derive(Debug)]
pub struct PairedSample {
    /// The values of the first run and then those of the other, in the order of the first run.
    first: IntervalSample<{ 2 * VALUE_COUNT }>,
    /// The values of the other run in its own order.
    other: IntervalSample<VALUE_COUNT>,
}

impl PairedSample {
    /// Creates a sample. Questions are identified by their hashes if some are `repeated`.
    pub fn new(queries: &[PairedQuery], repeated: bool) -> Self {
        let both = queries.iter().map(|query| {
            let mut values = [0.0; 2 * VALUE_COUNT];
            values.copy_from_slice(query.values.as_flattened());
            SampleQuery { question: query.question, open_s: query.open_s[0], values }
        });
        let other = queries.iter().map(|query| SampleQuery {
            question: query.question,
            open_s: query.open_s[1],
            values: query.values[1],
        });
        Self { first: IntervalSample::new(both, repeated), other: IntervalSample::new(other, repeated) }
    }

    /// Returns the difference of the mean scores, the other run's minus the first's.
    pub fn score_difference(&self) -> Figure {
        let means = [self.first.column_mean(SCORE), self.other.column_mean(SCORE)];
        let intervals = self.first.score_interval(SCORE).zip(self.other.score_interval(SCORE));
        let interval = intervals.map(|(first, other)| {
            let correlation = self.first.score_correlation(SCORE, VALUE_COUNT + SCORE);
            difference_interval(means, [first, other], correlation)
        });
        (means[1] - means[0], interval)
    }

    /// Returns the difference of the means of a cost, the other run's minus the first's.
    pub fn cost_difference(&self, cost: usize) -> Figure {
        let means = [self.first.column_mean(cost), self.other.column_mean(cost)];
        let intervals = self.first.mean_cost(cost).zip(self.other.mean_cost(cost));
        let interval = intervals.map(|(first, other)| {
            let correlation = self.first.correlation(cost, VALUE_COUNT + cost);
            difference_interval(means, [first.interval(), other.interval()], correlation)
        });
        (means[1] - means[0], interval)
    }

    /// Returns the ratio of the mean cost of the other run to that of the first: that of the efficiencies with its scores
    /// left out.
    pub fn cost_ratio(&self, cost: usize) -> Figure {
        let ratio = self.other.column_mean(cost) / self.first.column_mean(cost);
        let half_widths = self.first.mean_cost(cost).zip(self.other.mean_cost(cost));
        let interval = half_widths.map(|(first, other)| {
            let correlation = self.first.correlation(cost, VALUE_COUNT + cost);
            let [first, other] = [first.log_half_width, other.log_half_width];
            let half_width =
                (first * first + other * other - 2.0 * correlation * first * other).max(0.0).sqrt();
            ConfidenceInterval { low: ratio * (-half_width).exp(), high: ratio * half_width.exp() }
        });
        (ratio, interval)
    }

    /// Returns the ratio of mean score / mean cost of the other run to that of the first; not finite if the first run has
    /// no right answer.
    pub fn efficiency_ratio(&self, cost: usize) -> Figure {
        let score_per_cost = [
            self.first.column_mean(SCORE) / self.first.column_mean(cost),
            self.other.column_mean(SCORE) / self.other.column_mean(cost),
        ];
        let ratio = score_per_cost[1] / score_per_cost[0];
        let sides = Efficiency::new(&self.first, cost).zip(Efficiency::new(&self.other, cost));
        let interval = sides.filter(|_| ratio.is_finite()).map(|(first, other)| {
            let correlations = Correlations {
                scores: self.first.score_correlation(SCORE, VALUE_COUNT + SCORE),
                costs: self.first.correlation(cost, VALUE_COUNT + cost),
                other_score_first_cost: self.first.correlation(VALUE_COUNT + SCORE, cost),
                other_cost_first_score: self.first.correlation(VALUE_COUNT + cost, SCORE),
            };
            correlations.ratio_interval(ratio, &first, &other)
        });
        (ratio, interval)
    }

    /// Returns the number of questions from which the intervals hold, if there are fewer.
    pub fn questions_needed(&self) -> Option<usize> {
        let first = [ENERGY, POWER].map(|cost| self.first.mean_cost(cost));
        let other = [ENERGY, POWER].map(|cost| self.other.mean_cost(cost));
        first.into_iter().chain(other).flatten().filter_map(|cost| cost.questions_needed).max()
    }
}

/// Returns MOVER's interval of the difference of two means, the other minus the first.
fn difference_interval(
    [first_mean, other_mean]: [f64; 2],
    [first, other]: [ConfidenceInterval; 2],
    correlation: f64,
) -> ConfidenceInterval {
    let combined = |one: f64, another: f64| {
        (one * one + another * another - 2.0 * correlation * one * another).max(0.0).sqrt()
    };
    let difference = other_mean - first_mean;
    ConfidenceInterval {
        low: difference - combined(other_mean - other.low, first.high - first_mean),
        high: difference + combined(other.high - other_mean, first_mean - first.low),
    }
}

/// A run's mean score / mean cost with the intervals of its parts.
struct Efficiency {
    score: f64,
    score_interval: ConfidenceInterval,
    cost: MeanCost,
    interval: ConfidenceInterval,
}

/// Distances on the logarithmic scale from a run's figures to limits of their intervals.
struct LogDistances {
    score: f64,
    cost: f64,
    ratio: f64,
}

impl Efficiency {
    /// The values of the run are the first columns of the sample.
    fn new<const N: usize>(sample: &IntervalSample<N>, cost: usize) -> Option<Self> {
        let mean_cost = sample.mean_cost(cost)?;
        Some(Self {
            score: sample.column_mean(SCORE),
            score_interval: sample.score_interval(SCORE)?,
            cost: mean_cost,
            interval: sample.score_per_cost(SCORE, cost, mean_cost),
        })
    }

    fn upwards(&self) -> LogDistances {
        LogDistances {
            score: (self.score_interval.high / self.score).ln(),
            cost: self.cost.log_half_width,
            ratio: (self.interval.high / (self.score / self.cost.mean)).ln(),
        }
    }

    fn downwards(&self) -> LogDistances {
        LogDistances {
            score: (self.score / self.score_interval.low).ln(),
            cost: self.cost.log_half_width,
            ratio: (self.score / self.cost.mean / self.interval.low).ln(),
        }
    }
}

/// The correlations between two runs over the questions.
struct Correlations {
    scores: f64,
    costs: f64,
    other_score_first_cost: f64,
    other_cost_first_score: f64,
}

impl Correlations {
    /// Combines the distances of the two runs. What raises the ratio is a higher score and a lower cost of the other run,
    /// and the reverse of the first.
    fn combined(&self, first: &LogDistances, other: &LogDistances) -> f64 {
        let common = self.scores * first.score * other.score + self.costs * first.cost * other.cost
            - self.other_score_first_cost * other.score * first.cost
            - self.other_cost_first_score * other.cost * first.score;
        (first.ratio * first.ratio + other.ratio * other.ratio - 2.0 * common).max(0.0).sqrt()
    }

    fn ratio_interval(&self, ratio: f64, first: &Efficiency, other: &Efficiency) -> ConfidenceInterval {
        let high = if first.interval.low <= 0.0 || first.score_interval.low <= 0.0 {
            f64::INFINITY
        } else if other.score <= 0.0 {
            other.interval.high / first.interval.low
        } else {
            ratio * self.combined(&first.downwards(), &other.upwards()).exp()
        };
        let low = if other.interval.low <= 0.0 || other.score_interval.low <= 0.0 {
            0.0
        } else {
            ratio * (-self.combined(&first.upwards(), &other.downwards())).exp()
        };
        ConfidenceInterval { low, high }
    }
}
