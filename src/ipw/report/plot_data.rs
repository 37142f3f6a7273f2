//! The points that the charts show.
//!
//! Owns the sampling of points where there are too many to draw: every n-th query, so that a sample repeats and keeps the
//! order in time.

use serde::Serialize;

use super::super::metrics::MetricOptions;
use super::super::power_series;
use super::super::scope::Scope;
use super::super::table::{RunTable, known};

/// The most points in a chart.
const MAX_QUERY_POINTS: usize = 2_000;

/// The most spans drawn under the power over time.
const MAX_TIMELINE_BARS: usize = 400;

/// One query in a chart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct QueryPoint {
    /// Tokens of prompt and answer.
    pub tokens: Option<f64>,
    /// Tokens of the answer.
    pub tokens_out: Option<f64>,
    /// Its energy.
    pub energy_j: f64,
    /// The machine's power meanwhile.
    pub power_w: f64,
    /// Right or wrong.
    pub score: Option<f64>,
}

/// One query in time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TimelineBar {
    /// Seconds since the first query began.
    pub from_s: f64,
    /// Until its first token.
    pub first_token_s: Option<f64>,
    /// Until its end.
    pub to_s: f64,
    /// Mean power of its share: the open ones add up to the machine's.
    pub attributed_power_w: Option<f64>,
    /// Whether it was answered.
    pub answered: bool,
}

/// What the charts show.
#[derive(Debug, Default)]
pub struct PlotData {
    /// A sample of the queries with a known energy.
    pub queries: Vec<QueryPoint>,
    /// Of how many.
    pub query_count: usize,
    /// The first queries in the order in which they began.
    pub timeline: Vec<TimelineBar>,
    /// The sum of all open shares' powers, at each instant where one began or ended: seconds, watts. A curve of the
    /// load where no domain was watched meanwhile.
    pub attributed_power: Vec<(f64, f64)>,
    /// All that the domains of the scope drew meanwhile, where the power was recorded: seconds, watts.
    pub measured_power: Vec<(f64, f64)>,
}

impl PlotData {
    /// The points of a run.
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

/// The most points of the curve of measured power.
const MAX_POWER_POINTS: usize = 1_200;

/// What was watched while the drawn queries ran, and a little before and after; instants are averaged where they are many.
fn measured_power_curve(table: &RunTable, scope: Scope, start_s: f64, length_s: f64) -> Vec<(f64, f64)> {
    let margin = length_s * 0.02;
    let range = (start_s - margin, start_s + length_s + margin);
    let domains = scope.domain_indices(&table.manifest.domains);
    // A picture is no reason to fail: without this file there is the sum of the shares.
    let curve = power_series::read_power_series(&table.run, &domains, range).unwrap_or_default();
    let mean = |samples: &[(f64, f64)]| {
        let (at, watts) = samples.iter().fold((0.0, 0.0), |(at, watts), of| (at + of.0, watts + of.1));
        ((at / samples.len() as f64 - start_s).max(0.0), watts / samples.len() as f64)
    };
    curve.chunks(curve.len().div_ceil(MAX_POWER_POINTS).max(1)).map(mean).collect()
}

/// The powers of the shares that were open, added up, as a curve of steps.
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
