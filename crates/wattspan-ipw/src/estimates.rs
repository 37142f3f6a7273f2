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
    let score = sample.column_mean(SCORE);
    let mean_cost = |of: usize| (sample.column_mean(of), sample.mean_cost(of));
    let [energy, power, attributed] = [ENERGY, POWER, ATTRIBUTED_POWER].map(mean_cost);
    let efficiency = |column: usize, (mean, cost): (f64, Option<MeanCost>)| {
        (ratio(score, mean), cost.map(|cost| sample.score_per_cost(SCORE, column, cost)))
    };
    let interval_of = |(mean, cost): (f64, Option<MeanCost>)| (mean, cost.map(|cost| cost.interval()));
    let per_kwh = |of: ConfidenceInterval| ConfidenceInterval {
        low: JOULES_PER_KWH / of.high,
        high: JOULES_PER_KWH / of.low,
    };
    let needed = [energy.1, power.1].into_iter().flatten().filter_map(|cost| cost.questions_needed);
    Figures {
        accuracy: (score, sample.score_interval(SCORE)),
        energy_j: interval_of(energy),
        power_w: interval_of(power),
        attributed_power_w: interval_of(attributed),
        per_watt: efficiency(POWER, power),
        per_joule: efficiency(ENERGY, energy),
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

/// Returns the values of a column for the queries that have another one, 0 for the rest.
fn where_known<'a>(known: &'a [f64], values: &'a [f64]) -> impl Fn(usize) -> f64 + Copy + 'a {
    move |at| if known[at].is_nan() { 0.0 } else { values[at] }
}

fn tokens_per_joule(sample: &QuerySample) -> Figure {
    let known = sample.column(TOKENS);
    let (tokens, energy) = (where_known(known, known), where_known(known, sample.column(ENERGY)));
    let (tokens_mean, energy_mean) = (sample.mean(tokens), sample.mean(energy));
    let value = ratio(tokens_mean, energy_mean);
    (value, sample.log_figure(value, |at| tokens(at) / tokens_mean - energy(at) / energy_mean))
}

/// Returns the perplexity, or 1 / (perplexity × mean cost), over the queries with a log-probability.
fn perplexity(sample: &QuerySample, cost: Option<usize>) -> Figure {
    let logprobs = sample.column(LOGPROB);
    let known = sample.mean(|at| f64::from(u8::from(!logprobs[at].is_nan())));
    if known <= 0.0 {
        return (f64::NAN, None);
    }
    let logprob = sample.mean(where_known(logprobs, logprobs)) / known;
    let costs = cost.map(|cost| {
        let costs = sample.column(cost);
        (costs, sample.mean(where_known(logprobs, costs)) / known)
    });
    let value = costs.map_or((-logprob).exp(), |(_, mean)| ratio(1.0, (-logprob).exp() * mean));
    let influence = |at: usize| {
        if logprobs[at].is_nan() {
            return 0.0;
        }
        let of_cost = costs.map_or(0.0, |(costs, mean)| costs[at] / mean - 1.0);
        (logprobs[at] - logprob - of_cost) / known
    };
    (value, sample.log_figure(value, influence))
}
