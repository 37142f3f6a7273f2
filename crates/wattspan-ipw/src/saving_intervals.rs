//! 95 % confidence intervals of the cost that a router saves, in closed form; docs/ipw.md, section "Routes", derives and
//! measures them.
//!
//! The saving is a function of the covered fraction of the questions and of mean costs of the covered and of the other
//! ones. It is computed at the limits of each of these, and MOVER combines the distances. Invariant: an interval contains
//! its figure and does not exceed 1.

use super::bootstrap::ConfidenceInterval;
use super::intervals::{IntervalSample, MIN_QUESTIONS, SampleQuery, proportion_interval};

/// A query with its costs.
#[derive(Debug, Clone, Copy)]
pub struct RoutedCost {
    /// The hash of the question.
    pub question: u64,
    /// Whether a local model covers it.
    pub is_covered: bool,
    /// Its cost at the model to which it is sent.
    pub chosen: f64,
    /// Its cost at the reference.
    pub reference: f64,
}

/// A saved part of a cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SavedCost {
    /// 1 - Σ chosen / Σ reference.
    pub value: f64,
    pub interval: Option<ConfidenceInterval>,
    /// The number of questions from which the interval holds, if there are fewer.
    pub questions_needed: Option<usize>,
}

/// What is saved by a query.
const SAVED: usize = 0;
/// The cost at the reference.
const REFERENCE: usize = 1;
/// The cost at the model to which a query is sent.
const CHOSEN: usize = 2;

/// The largest distance on the logarithmic scale; the saving changes no more beyond it.
const MAX_LOG_DISTANCE: f64 = 50.0;

/// The distance on the logarithmic scale of the limits of a mean over one question.
const SINGLE_QUESTION: f64 = 2.0;

/// A group of queries in the order of each run.
type Group = Vec<IntervalSample<3>>;

/// Returns the saved part of a cost. `open_s` has the starts and ends of the same queries in each run; `repeated`: whether
/// some questions have several queries.
pub fn saved_cost(queries: &[RoutedCost], open_s: &[Vec<[f64; 2]>], repeated: bool) -> SavedCost {
    let group = |of: &dyn Fn(&RoutedCost) -> bool| -> Group {
        let in_run = |times: &Vec<[f64; 2]>| {
            let chosen = queries.iter().zip(times).filter(|(query, _)| of(query));
            let chosen = chosen.map(|(query, open_s)| SampleQuery {
                question: query.question,
                open_s: *open_s,
                values: [query.reference - query.chosen, query.reference, query.chosen],
            });
            IntervalSample::new(chosen, repeated)
        };
        open_s.iter().map(in_run).collect()
    };
    let (all, covered, other) =
        (group(&|_| true), group(&|query| query.is_covered), group(&|query| !query.is_covered));
    let Some(first) = all.first() else {
        return SavedCost { value: f64::NAN, interval: None, questions_needed: None };
    };
    let covered_count = queries.iter().filter(|query| query.is_covered).count();
    let (covered_part, mean_cost) =
        (covered_count as f64 / queries.len() as f64, first.column_mean(REFERENCE));
    let saving = Saving {
        saved: LimitedMean::new(&covered, SAVED, mean_cost),
        reference: covered
            .first()
            .filter(|_| covered_count > 0)
            .map_or(mean_cost, |of| of.column_mean(REFERENCE)),
        slope: covered.first().map_or(0.0, |of| of.slope(SAVED, REFERENCE)),
        other: LimitedMean::new(&other, REFERENCE, mean_cost),
    };
    let value = 1.0 - first.column_mean(CHOSEN) / mean_cost;
    let is_defined = first.question_count() > 1 && mean_cost > 0.0;
    let interval = proportion_interval(covered_part, first.question_count() as f64).filter(|_| is_defined);
    let interval = interval.map(|limits| {
        let residual = covered_part * saving.residual_half_width(&covered);
        saving.interval(value, covered_part, limits, residual)
    });
    SavedCost { value, interval, questions_needed: questions_needed(&all, [&covered, &other]) }
}

/// Returns the number of questions from which there are enough in each group that is not empty, and from which no few
/// questions carry what is saved or what remains; `None` if there are as many.
fn questions_needed(all: &Group, groups: [&Group; 2]) -> Option<usize> {
    let questions = all.first().map_or(0, IntervalSample::question_count);
    let in_groups = groups.into_iter().filter_map(|group| group.first()).map(IntervalSample::question_count);
    let for_groups =
        in_groups.filter(|count| *count > 0).map(|count| (MIN_QUESTIONS * questions).div_ceil(count));
    let costs = all.iter().flat_map(|sample| [SAVED, CHOSEN].map(|cost| sample.mean_cost(cost)));
    let for_costs = costs.flatten().filter_map(|cost| cost.questions_needed);
    for_groups.chain(for_costs).max().filter(|needed| *needed > questions)
}

/// A mean of a group with its limits.
#[derive(Debug, Clone, Copy)]
struct LimitedMean {
    mean: f64,
    limits: [f64; 2],
}

impl LimitedMean {
    /// Returns the mean of a column with the widest limits of all runs' orders; `if_empty` without limits if the group
    /// has no queries.
    fn new(group: &Group, column: usize, if_empty: f64) -> Self {
        let (mut first_mean, mut widest) = (None, [f64::INFINITY, f64::NEG_INFINITY]);
        for sample in group.iter().filter(|sample| sample.question_count() > 0) {
            let mean = sample.column_mean(column);
            let are_positive = sample.column(column).iter().all(|value| *value > 0.0);
            let log_half_width = match sample.mean_cost(column) {
                Some(cost) if are_positive => Some(cost.log_half_width.min(MAX_LOG_DISTANCE)),
                _ if sample.question_count() < 2 => Some(SINGLE_QUESTION),
                _ => None,
            };
            let [low, high] = match log_half_width {
                Some(half_width) => {
                    let ends = [mean * (-half_width).exp(), mean * half_width.exp()];
                    [ends[0].min(ends[1]), ends[0].max(ends[1])]
                }
                None => {
                    let half_width = sample.half_width(column);
                    [mean - half_width, mean + half_width]
                }
            };
            widest = [low.min(widest[0]), high.max(widest[1])];
            first_mean.get_or_insert(mean);
        }
        match first_mean {
            Some(mean) => Self { mean, limits: widest },
            None => Self { mean: if_empty, limits: [if_empty; 2] },
        }
    }
}

/// The means of which the saving is a function.
#[derive(Debug, Clone, Copy)]
struct Saving {
    /// What a covered query saves.
    saved: LimitedMean,
    /// The mean cost of a covered query at the reference.
    reference: f64,
    /// By how much that grows with what is saved.
    slope: f64,
    /// The mean cost of another query.
    other: LimitedMean,
}

impl Saving {
    /// The saving at a covered part and means.
    fn at(&self, covered: f64, saved: f64, other: f64) -> f64 {
        let reference = self.reference + self.slope * (saved - self.saved.mean);
        let cost = covered * reference.max(self.reference * 1e-9) + (1.0 - covered) * other;
        covered * saved / cost
    }

    /// Returns half of the width of the mean cost of a covered query at the reference, apart from what it has in common
    /// with the saving.
    fn residual_half_width(&self, covered: &Group) -> f64 {
        covered
            .iter()
            .map(|sample| sample.residual_half_width(REFERENCE, SAVED, self.slope))
            .fold(0.0, f64::max)
    }

    fn interval(
        &self,
        value: f64,
        covered: f64,
        limits: ConfidenceInterval,
        residual: f64,
    ) -> ConfidenceInterval {
        let (saved, other) = (self.saved, self.other);
        let moved = [
            [limits.low, limits.high].map(|covered| self.at(covered, saved.mean, other.mean)),
            saved.limits.map(|saved| self.at(covered, saved, other.mean)),
            other.limits.map(|other| self.at(covered, saved.mean, other)),
        ];
        let cost = covered * self.reference + (1.0 - covered) * other.mean;
        let residual = value / cost * residual;
        let distance = |sign: f64| {
            let squares = moved.iter().map(|ends| {
                let farthest = ends.iter().map(|end| sign * (end - value)).fold(0.0, f64::max);
                farthest * farthest
            });
            (squares.sum::<f64>() + residual * residual).sqrt()
        };
        ConfidenceInterval { low: value - distance(-1.0), high: (value + distance(1.0)).min(1.0).max(value) }
    }
}
