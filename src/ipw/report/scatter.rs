//! The points that the pictures show.
//!
//! Owns the sampling of points where there are too many to draw: every n-th query, so that a sample repeats and keeps the
//! order in time.

use serde::Serialize;

use super::super::metric::Terms;
use super::super::power;
use super::super::scope::Scope;
use super::super::table::{Table, known};

/// The most points in a picture.
const MOST: usize = 2_000;

/// The most spans drawn under the power over time.
const SPANS: usize = 400;

/// One query in a picture.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
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
pub struct Bar {
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

/// What the pictures show.
#[derive(Debug, Default)]
pub struct Points {
    /// A sample of the queries with a known energy.
    pub queries: Vec<Point>,
    /// Of how many.
    pub of: usize,
    /// The first queries in the order in which they began.
    pub bars: Vec<Bar>,
    /// The sum of all open shares' powers, at each instant where one began or ended: seconds, watts. A picture of the
    /// load where no domain was watched meanwhile.
    pub power: Vec<(f64, f64)>,
    /// All that the domains of the scope drew meanwhile, where somebody watched: seconds, watts.
    pub watched: Vec<(f64, f64)>,
}

impl Points {
    /// The points of a run.
    pub fn of(table: &Table, terms: &Terms) -> Self {
        let columns = &table.columns;
        let (joules, watts) =
            (columns.joules(terms.scope, terms.idle), columns.watts(terms.scope, terms.idle));
        let attributed = columns.attributed_watts(terms.scope, terms.idle);
        let metered = || (0..columns.len()).filter(|at| columns.answered[*at] && attributed(*at).is_finite());
        let of = metered().count();
        let point = |at: usize| Point {
            tokens: known(columns.tokens_in[at] + columns.tokens_out[at]),
            tokens_out: known(columns.tokens_out[at]),
            energy_j: joules(at),
            power_w: watts(at),
            score: known(columns.score[at]),
        };
        let step = of.div_ceil(MOST).max(1);
        let mut order: Vec<u32> = (0..columns.len() as u32).collect();
        let earlier = |one: &u32, other: &u32| {
            columns.began_s[*one as usize].total_cmp(&columns.began_s[*other as usize])
        };
        if order.len() > SPANS {
            order.select_nth_unstable_by(SPANS, earlier);
            order.truncate(SPANS);
        }
        order.sort_unstable_by(earlier);
        let start = order.first().map_or(0.0, |at| columns.began_s[*at as usize]);
        let bar = |at: &usize| Bar {
            from_s: columns.began_s[*at] - start,
            first_token_s: known(columns.first_token_s[*at]),
            to_s: columns.began_s[*at] - start + columns.duration_s[*at],
            attributed_power_w: known(attributed(*at)),
            answered: columns.answered[*at],
        };
        let bars: Vec<Bar> = order.iter().map(|at| bar(&(*at as usize))).collect();
        let end = bars.iter().map(|bar| bar.to_s).fold(0.0, f64::max);
        let watched = watched(table, terms.scope, start, end);
        Self { watched, queries: metered().step_by(step).map(point).collect(), of, power: power(&bars), bars }
    }
}

/// The most points of the watched curve.
const INSTANTS: usize = 1_200;

/// What was watched while the drawn queries ran, and a little before and after; instants are averaged where they are many.
fn watched(table: &Table, scope: Scope, start_s: f64, length_s: f64) -> Vec<(f64, f64)> {
    let margin = length_s * 0.02;
    let range = (start_s - margin, start_s + length_s + margin);
    let domains = scope.domains(&table.manifest.domains);
    // A picture is no reason to fail: without this file there is the sum of the shares.
    let curve = power::curve(&table.run, &domains, range).unwrap_or_default();
    let mean = |some: &[(f64, f64)]| {
        let (at, watts) = some.iter().fold((0.0, 0.0), |(at, watts), of| (at + of.0, watts + of.1));
        ((at / some.len() as f64 - start_s).max(0.0), watts / some.len() as f64)
    };
    curve.chunks(curve.len().div_ceil(INSTANTS).max(1)).map(mean).collect()
}

/// The powers of the shares that were open, added up, as a curve of steps.
fn power(bars: &[Bar]) -> Vec<(f64, f64)> {
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
    fn overlapping_shares_add_up_and_end_at_nothing() {
        let bar = |from_s, to_s, watts| Bar {
            from_s,
            first_token_s: None,
            to_s,
            attributed_power_w: Some(watts),
            answered: true,
        };
        let curve = power(&[bar(0.0, 2.0, 10.0), bar(1.0, 3.0, 5.0)]);
        assert_eq!(curve[3], (1.0, 15.0));
        assert_eq!(curve[5], (2.0, 5.0));
        assert_eq!(curve.last(), Some(&(3.0, 0.0)));
    }
}
