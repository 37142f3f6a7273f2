//! The figures of a set of queries with their intervals, from the values of each query.
//!
//! Invariant: the values are ratios of means over the same queries, and an optional value (tokens, log-probability) is
//! set against the cost of those queries only that have it.

use super::bootstrap::ConfidenceInterval;
use super::intervals::{IntervalSample, MeanCost};

/// The values of a query; `NaN` if unknown.
pub const SCORE: usize = 0;
/// Joules.
pub const ENERGY: usize = 1;
/// Watts of the machine.
pub const POWER: usize = 2;
/// Watts of the query's own share.
pub const ATTRIBUTED_POWER: usize = 3;
/// Output tokens.
pub const TOKENS: usize = 4;
/// Mean log-probability of the output tokens.
pub const LOGPROB: usize = 5;
/// The number of values.
pub const VALUE_COUNT: usize = 6;

/// The values of a query.
pub type QueryValues = [f64; VALUE_COUNT];

/// The queries of a set.
pub type QuerySample = IntervalSample<VALUE_COUNT>;

/// A figure, `NaN` if the queries do not give it, with its interval.
pub type Figure = (f64, Option<ConfidenceInterval>);

/// The figures of a set of queries.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Mean score.
    pub accuracy: Figure,
    /// Mean joules.
    pub energy_j: Figure,
    /// Mean watts of the machine.
    pub power_w: Figure,
    /// Mean watts of the queries' shares.
    pub attributed_power_w: Figure,
    /// IPW.
    pub per_watt: Figure,
    /// IPJ.
    pub per_joule: Figure,
    /// Queries per kilowatt-hour.
    pub queries_per_kwh: Figure,
    /// Output tokens per joule.
    pub tokens_per_joule: Figure,
    /// exp(-mean log-probability).
    pub perplexity: Figure,
    /// 1 / (perplexity × mean power).
    pub perplexity_per_watt: Figure,
    /// 1 / (perplexity × mean energy).
    pub perplexity_per_joule: Figure,
    /// The number of questions from which the intervals hold, if there are fewer.
    pub questions_needed: Option<usize>,
}

/// Computes the figures of a set of queries.
pub fn figures(sample: &QuerySample) -> Figures {
    const JOULES_PER_KWH: f64 = 3.6e6;
    let score = sample.mean(|row| row[SCORE]);
    let mean_cost = |of: usize| (sample.mean(|row| row[of]), sample.mean_cost(|row| row[of]));
    let [energy, power, attributed] = [ENERGY, POWER, ATTRIBUTED_POWER].map(mean_cost);
    let efficiency = |cost: usize, mean: f64| {
        (ratio(score, mean), sample.score_per_cost(|row| row[SCORE], |row| row[cost]))
    };
    let interval_of = |(mean, cost): (f64, Option<MeanCost>)| (mean, cost.map(|cost| cost.interval()));
    let per_kwh = |of: ConfidenceInterval| ConfidenceInterval {
        low: JOULES_PER_KWH / of.high,
        high: JOULES_PER_KWH / of.low,
    };
    let needed = [energy.1, power.1].into_iter().flatten().filter_map(|cost| cost.questions_needed);
    Figures {
        accuracy: (score, sample.score_interval(|row| row[SCORE])),
        energy_j: interval_of(energy),
        power_w: interval_of(power),
        attributed_power_w: interval_of(attributed),
        per_watt: efficiency(POWER, power.0),
        per_joule: efficiency(ENERGY, energy.0),
        queries_per_kwh: (ratio(JOULES_PER_KWH, energy.0), interval_of(energy).1.map(per_kwh)),
        tokens_per_joule: tokens_per_joule(sample),
        perplexity: perplexity(sample, None),
        perplexity_per_watt: perplexity(sample, Some(POWER)),
        perplexity_per_joule: perplexity(sample, Some(ENERGY)),
        questions_needed: needed.max(),
    }
}

/// Returns a ratio if its denominator is positive; energy without its idle part may be zero or negative.
fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator > 0.0 { numerator / denominator } else { f64::NAN }
}

/// Returns a value of the queries that have another one, 0 for the rest.
fn value_where(row: &QueryValues, known: usize, value: usize) -> f64 {
    if row[known].is_nan() { 0.0 } else { row[value] }
}

fn tokens_per_joule(sample: &QuerySample) -> Figure {
    let tokens = sample.mean(|row| value_where(row, TOKENS, TOKENS));
    let energy = sample.mean(|row| value_where(row, TOKENS, ENERGY));
    let value = ratio(tokens, energy);
    let influence = |row: &QueryValues| {
        value_where(row, TOKENS, TOKENS) / tokens - value_where(row, TOKENS, ENERGY) / energy
    };
    (value, sample.log_figure(value, influence))
}

/// Returns the perplexity, or 1 / (perplexity × mean cost), over the queries with a log-probability.
fn perplexity(sample: &QuerySample, cost: Option<usize>) -> Figure {
    let known = sample.mean(|row| f64::from(u8::from(!row[LOGPROB].is_nan())));
    if known <= 0.0 {
        return (f64::NAN, None);
    }
    let logprob = sample.mean(|row| value_where(row, LOGPROB, LOGPROB)) / known;
    let mean_cost = cost.map(|cost| sample.mean(|row| value_where(row, LOGPROB, cost)) / known);
    let value = mean_cost.map_or((-logprob).exp(), |cost| ratio(1.0, (-logprob).exp() * cost));
    let influence = |row: &QueryValues| {
        if row[LOGPROB].is_nan() {
            return 0.0;
        }
        let of_cost = cost.zip(mean_cost).map_or(0.0, |(cost, mean)| row[cost] / mean - 1.0);
        (row[LOGPROB] - logprob - of_cost) / known
    };
    (value, sample.log_figure(value, influence))
}
