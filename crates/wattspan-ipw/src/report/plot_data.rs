//! The points of the charts.
//!
//! If there are too many points to draw, every n-th query is taken, so that the sample is reproducible and keeps the
//! order in time.

use serde::Serialize;

use super::super::metrics::MetricOptions;
use super::super::power_series;
use super::super::scope::Scope;
use super::super::table::{RunTable, known};

/// The maximum number of points in a chart.
const MAX_QUERY_POINTS: usize = 2_000;

/// The maximum number of spans below the chart of power over time.
const MAX_TIMELINE_BARS: usize = 400;

/// One query in a scatter chart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct QueryPoint {
    /// Prompt and output tokens.
    pub tokens: Option<f64>,
    pub tokens_out: Option<f64>,
    pub energy_j: f64,
    /// Mean power of the machine while the query was open, watts.
    pub power_w: f64,
    /// Score: 1 correct, 0 incorrect.
    pub score: Option<f64>,
}

/// One query on the time axis.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TimelineBar {
    /// Start, seconds after the first query's start.
    pub from_s: f64,
    /// End of the prefill phase.
    pub first_token_s: Option<f64>,
    /// End of the query.
    pub to_s: f64,
    /// Mean power of its share, watts; the sum over the open queries is the machine's power.
    pub attributed_power_w: Option<f64>,
    /// Whether it was answered.
    pub answered: bool,
}

/// The data of all charts.
#[derive(Debug, Default)]
pub struct PlotData {
    /// A sample of the queries with a known energy.
    pub queries: Vec<QueryPoint>,
    /// The number of queries from which the sample was taken.
    pub query_count: usize,
    /// The first queries by start time.
    pub timeline: Vec<TimelineBar>,
    /// Sum of the powers of all open shares at each start and end, as (seconds, watts). It approximates the load if no
    /// power was recorded.
    pub attributed_power: Vec<(f64, f64)>,
    /// Recorded power of the scope's domains, as (seconds, watts).
    pub measured_power: Vec<(f64, f64)>,
}

impl PlotData {
    /// Computes the data of a run.
    pub fn new(table: &RunTable, options: &MetricOptions) -> Self {
        let columns = &table.columns;
        let (joules, watts) =
            (columns.energy_j(options.scope, options.idle), columns.power_w(options.scope, options.idle));
        let attributed = columns.attributed_power_w(options.scope, options.idle);
        let metered = || (0..columns.len()).filter(|at| columns.answered[*at] && attributed(*at).is_finite());
        let query_count = metered().count();
        let point = |at: usize| QueryPoint {
            tokens: known(columns.tokens_in[at] + columns.tokens_out[at]),
            tokens_out: known(columns.tokens_out[at]),
            energy_j: joules(at),
            power_w: watts(at),
            score: known(columns.score[at]),
        };
        let step = query_count.div_ceil(MAX_QUERY_POINTS).max(1);
        let mut order: Vec<u32> = (0..columns.len() as u32).collect();
        let earlier = |one: &u32, other: &u32| {
            columns.began_s[*one as usize].total_cmp(&columns.began_s[*other as usize])
        };
        if order.len() > MAX_TIMELINE_BARS {
            order.select_nth_unstable_by(MAX_TIMELINE_BARS, earlier);
            order.truncate(MAX_TIMELINE_BARS);
        }
        order.sort_unstable_by(earlier);
        let start = order.first().map_or(0.0, |at| columns.began_s[*at as usize]);
        let bar = |at: &usize| TimelineBar {
            from_s: columns.began_s[*at] - start,
            first_token_s: known(columns.first_token_s[*at]),
            to_s: columns.began_s[*at] - start + columns.duration_s[*at],
            attributed_power_w: known(attributed(*at)),
            answered: columns.answered[*at],
        };
        let bars: Vec<TimelineBar> = order.iter().map(|at| bar(&(*at as usize))).collect();
        let end = bars.iter().map(|bar| bar.to_s).fold(0.0, f64::max);
        let measured_power = measured_power_curve(table, options.scope, start, end);
        Self {
            measured_power,
            queries: metered().step_by(step).map(point).collect(),
            query_count,
            attributed_power: attributed_power_curve(&bars),
            timeline: bars,
        }
    }
}

/// The maximum number of points of the measured power curve.
const MAX_POWER_POINTS: usize = 1_200;

/// Reads the recorded power around the drawn queries; samples are averaged if there are many.
fn measured_power_curve(table: &RunTable, scope: Scope, start_s: f64, length_s: f64) -> Vec<(f64, f64)> {
    let margin = length_s * 0.02;
    let range = (start_s - margin, start_s + length_s + margin);
    let domains = scope.domain_indices(&table.manifest.domains);
    // An unreadable file does not fail the report; the sum of the shares is drawn instead.
    let curve = power_series::read_power_series(&table.run, &domains, range).unwrap_or_default();
    let mean = |samples: &[(f64, f64)]| {
        let (at, watts) = samples.iter().fold((0.0, 0.0), |(at, watts), of| (at + of.0, watts + of.1));
        ((at / samples.len() as f64 - start_s).max(0.0), watts / samples.len() as f64)
    };
    curve.chunks(curve.len().div_ceil(MAX_POWER_POINTS).max(1)).map(mean).collect()
}

/// Returns the sum of the open shares' powers as a step curve.
fn attributed_power_curve(bars: &[TimelineBar]) -> Vec<(f64, f64)> {
    let mut edges: Vec<(f64, f64)> = Vec::new();
    for (bar, watts) in bars.iter().filter_map(|bar| Some((bar, bar.attributed_power_w?))) {
        edges.extend([(bar.from_s, watts), (bar.to_s, -watts)]);
    }
    edges.sort_unstable_by(|(one, _), (other, _)| one.total_cmp(other));
    let mut sum = 0.0;
    let mut curve = Vec::with_capacity(edges.len() * 2);
    for (at, change) in edges {
        curve.push((at, f64::max(sum, 0.0)));
        sum += change;
        curve.push((at, f64::max(sum, 0.0)));
    }
    curve
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_shares_add_up() {
        let bar = |from_s, to_s, watts| TimelineBar {
            from_s,
            first_token_s: None,
            to_s,
            attributed_power_w: Some(watts),
            answered: true,
        };
        let curve = attributed_power_curve(&[bar(0.0, 2.0, 10.0), bar(1.0, 3.0, 5.0)]);
        assert_eq!(curve[3], (1.0, 15.0));
        assert_eq!(curve[5], (2.0, 5.0));
        assert_eq!(curve.last(), Some(&(3.0, 0.0)));
    }
}
