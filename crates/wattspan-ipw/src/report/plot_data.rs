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
    /// Power over time: that of the scope's domains if it was recorded, otherwise the sum of the powers of all open shares,
    /// which approximates the load.
    pub power: Vec<PowerPoint>,
    /// Whether `power` was recorded.
    pub has_measured_power: bool,
}

/// The power in a short part of the time axis.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PowerPoint {
    /// The middle of the part, seconds after the first query's start.
    pub at_s: f64,
    pub mean_w: f64,
    pub least_w: f64,
    pub most_w: f64,
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
        let measured = measured_power_curve(table, options.scope, start, end);
        let has_measured_power = !measured.is_empty();
        let curve = if has_measured_power { measured } else { attributed_power_curve(&bars) };
        Self {
            power: reduce_curve(&curve, end),
            has_measured_power,
            queries: metered().step_by(step).map(point).collect(),
            query_count,
            timeline: bars,
        }
    }
}

/// The maximum number of points of the power curve: the width of the chart in pixels.
const MAX_POWER_POINTS: usize = 396;

/// Reads the recorded power around the drawn queries, as (seconds, watts).
fn measured_power_curve(table: &RunTable, scope: Scope, start_s: f64, length_s: f64) -> Vec<(f64, f64)> {
    let margin = length_s * 0.02;
    let range = (start_s - margin, start_s + length_s + margin);
    let domains = scope.domain_indices(&table.manifest.domains);
    // An unreadable file does not fail the report; the sum of the shares is drawn instead.
    let curve = power_series::read_power_series(&table.run, &domains, range).unwrap_or_default();
    curve.into_iter().map(|(at, watts)| ((at - start_s).clamp(0.0, length_s), watts)).collect()
}

/// Reduces a curve of straight lines between its points to one point for each pixel, with the mean over time and the
/// extremes there. A curve with fewer points than pixels keeps them.
fn reduce_curve(curve: &[(f64, f64)], length_s: f64) -> Vec<PowerPoint> {
    let exact = |(at_s, watts): &(f64, f64)| PowerPoint {
        at_s: *at_s,
        mean_w: *watts,
        least_w: *watts,
        most_w: *watts,
    };
    if curve.len() <= MAX_POWER_POINTS || length_s <= 0.0 {
        return curve.iter().map(exact).collect();
    }
    let width_s = length_s / MAX_POWER_POINTS as f64;
    let mut parts = vec![CurvePart::EMPTY; MAX_POWER_POINTS];
    for line in curve.windows(2) {
        let [from, to] = [line[0], line[1]];
        let nth = |at_s: f64| ((at_s / width_s) as usize).min(MAX_POWER_POINTS - 1);
        let first = nth(from.0);
        for (part, of) in parts[first..=nth(to.0)].iter_mut().enumerate() {
            let begin_s = (first + part) as f64 * width_s;
            of.add_line(from, to, (begin_s, begin_s + width_s));
        }
    }
    let point = |(part, of): (usize, &CurvePart)| {
        (of.time_s > 0.0).then(|| PowerPoint {
            at_s: (part as f64 + 0.5) * width_s,
            mean_w: of.energy_j / of.time_s,
            least_w: of.least_w,
            most_w: of.most_w,
        })
    };
    parts.iter().enumerate().filter_map(point).collect()
}

/// What is known of a curve in one pixel.
#[derive(Debug, Clone)]
struct CurvePart {
    energy_j: f64,
    time_s: f64,
    least_w: f64,
    most_w: f64,
}

impl CurvePart {
    const EMPTY: Self =
        Self { energy_j: 0.0, time_s: 0.0, least_w: f64::INFINITY, most_w: f64::NEG_INFINITY };

    /// Adds what of a line lies between two instants.
    fn add_line(
        &mut self,
        (from_s, from_w): (f64, f64),
        (to_s, to_w): (f64, f64),
        (begin_s, end_s): (f64, f64),
    ) {
        let (begin_s, end_s) = (from_s.max(begin_s), to_s.min(end_s));
        let watts_at =
            |at_s: f64| from_w + (to_w - from_w) * ((at_s - from_s) / (to_s - from_s)).clamp(0.0, 1.0);
        // A step has no length and reaches both of its ends.
        let ends = if to_s > from_s { [watts_at(begin_s), watts_at(end_s)] } else { [from_w, to_w] };
        let time_s = (end_s - begin_s).max(0.0);
        self.energy_j += time_s * (ends[0] + ends[1]) / 2.0;
        self.time_s += time_s;
        self.least_w = self.least_w.min(ends[0]).min(ends[1]);
        self.most_w = self.most_w.max(ends[0]).max(ends[1]);
    }
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
    fn a_reduced_curve_keeps_energy_and_extremes() {
        // 1,000 s of 10 W with a peak of 500 W for 0.5 s, which is shorter than a pixel.
        let mut curve: Vec<(f64, f64)> = (0..=10_000).map(|at| (f64::from(at) * 0.1, 10.0)).collect();
        curve.splice(5_001..5_001, [(500.05, 10.0), (500.05, 500.0), (500.55, 500.0), (500.55, 10.0)]);
        curve.retain(|(at, watts)| *watts > 10.0 || *at <= 500.05 || *at >= 500.55);
        let points = reduce_curve(&curve, 1_000.0);
        assert_eq!(points.len(), MAX_POWER_POINTS);
        let width_s = 1_000.0 / MAX_POWER_POINTS as f64;
        let energy_j: f64 = points.iter().map(|point| point.mean_w * width_s).sum();
        assert!((energy_j - 10_245.0).abs() < 0.01, "{energy_j}");
        let peaks: Vec<&PowerPoint> = points.iter().filter(|point| point.most_w > 10.0).collect();
        assert_eq!(peaks.len(), 1);
        assert_eq!((peaks[0].least_w, peaks[0].most_w), (10.0, 500.0));
        assert!(peaks[0].mean_w > 100.0 && peaks[0].mean_w < 120.0, "{peaks:?}");
        // A short curve is drawn as it is.
        let few = reduce_curve(&[(0.0, 1.0), (2.0, 3.0)], 2.0);
        assert_eq!((few[0].mean_w, few[1].most_w, few.len()), (1.0, 3.0, 2));
    }

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
