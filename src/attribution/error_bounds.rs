//! The guaranteed error of a share, from the bounds that the counter's updates set on the true energy.
//!
//! A share is S = ∫ f dE with f = w/W between the span's edges and 0 outside. The computed Ŝ uses the interpolated Ê.
//! Summation by parts gives S − Ŝ = −Σ (E − Ê)(τ)·Δf(τ) over all instants τ at which f jumps: the span's own edges and
//! the edges of every other span between them. E never decreases, so at each τ it lies between the counter's values
//! before and after τ; this bounds |E − Ê|. Edges between the same two updates form a *group*. The sum over a group's
//! jumps is also at most (U − L)·(max f − min f), because E rises from L to U only once. Errors are doubles
//! in µJ. Invariant: an error rounds up, at the latest in [`guaranteed_uj`].

use super::virtual_energy::ENERGY_FRACTION_BITS;
use crate::domain::PowerLimit;

/// The energies that bounds compare are in 2^-12 µJ and wrap, so that the differences are exact.
const BOUND_FRACTION_BITS: u32 = 12;
const BOUND_UNIT_UJ: f64 = 1.0 / (1 << BOUND_FRACTION_BITS) as f64;

/// An error from which no guarantee is given, µJ: far above any energy of a step, far below the largest in an `i64`.
pub(crate) const UNBOUNDED_ERROR_UJ: f64 = (1_u64 << 46) as f64;

/// An error in whole microjoules, rounded up; `None` where no guarantee can be given. An error is the result of far fewer
/// than a thousand operations on doubles, each with a relative rounding of 2^-53; the factor covers all of them.
pub(crate) fn guaranteed_uj(error_uj: f64) -> Option<u64> {
    let error_uj = error_uj * (1.0 + 1e-12);
    // Not `f64::ceil`, which is a call of a function on processors without SSE 4.1; signed, because that converts faster.
    let whole_uj = error_uj as i64;
    let rounded_up_uj = whole_uj as u64 + u64::from(error_uj > whole_uj as f64) + 1;
    (error_uj < UNBOUNDED_ERROR_UJ).then_some(rounded_up_uj)
}

/// Energy units as an energy for bounds, rounded down.
#[inline]
pub(crate) fn bound_energy(energy: u128) -> u64 {
    (energy >> (ENERGY_FRACTION_BITS - BOUND_FRACTION_BITS)) as u64
}

/// An energy for bounds less another, µJ, rounded up where both were rounded down.
#[inline]
fn difference_uj(energy: u64, other: u64) -> f64 {
    (energy.wrapping_sub(other) as i64 + 1) as f64 * BOUND_UNIT_UJ
}

/// A counter update as a bound on the cumulative energy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BoundPoint {
    pub early_ns: u64,
    pub late_ns: u64,
    energy: u64,
}

impl BoundPoint {
    pub(crate) fn new(early_ns: u64, late_ns: u64, energy: u128) -> Self {
        Self { early_ns, late_ns, energy: bound_energy(energy) }
    }
}

/// The largest differences by which the true energy can be below and above the estimate at an instant, µJ.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bound {
    pub estimate: u64,
    pub below: f64,
    pub above: f64,
}

impl Bound {
    /// The larger of `below` and `above`.
    #[inline]
    pub(crate) fn uncertainty(self) -> f64 {
        larger(self.below, self.above)
    }
}

/// The lower and upper bound of the true cumulative energy at any instant.
#[derive(Debug, Default)]
pub(crate) struct ErrorBounds {
    points: Vec<BoundPoint>,
    quantum: u64,
    /// The domain's maximum power, µJ per nanosecond; `None`: unknown.
    max_power: Option<f64>,
    /// Powers in the same unit that hold as a mean over windows of at least so many nanoseconds.
    sustained: Vec<(f64, u64)>,
    cached: CachedBounds,
}

/// An update from which a bound changes with time, by the largest energy that is possible until or since `at_ns`.
#[derive(Debug, Clone, Copy)]
struct BoundLine {
    energy: u64,
    at_ns: u64,
}

/// The distance of an unknown bound from the estimate: no guarantee follows from it.
const UNKNOWN_DISTANCE: u64 = 2 * UNBOUNDED_ERROR_UJ as u64 * (1 << BOUND_FRACTION_BITS);

/// The bounds for a time in which the set of applicable points does not change, computed once for the many edges in it.
#[derive(Debug, Clone, Copy, Default)]
struct CachedBounds {
    /// The end of that time, exclusive.
    valid_until_ns: u64,
    /// The true energy is at least both: from an update that was passed, and from a later one at maximum power.
    lower: u64,
    lower_slope: Option<BoundLine>,
    /// The true energy is at most both: by a later update, and from a passed one at maximum power.
    upper: u64,
    upper_slope: Option<BoundLine>,
}

impl ErrorBounds {
    pub(crate) fn new(quantum_uj: u64, ceiling_mw: Option<u64>) -> Self {
        Self {
            quantum: quantum_uj.clamp(1, 1 << 50) << BOUND_FRACTION_BITS,
            max_power: ceiling_mw.map(uj_per_ns),
            ..Self::default()
        }
    }

    /// Sets the limits of the power, for edges that are not passed yet. A limit without a window holds at every instant.
    pub(crate) fn set_power_limits(&mut self, limits: &[PowerLimit]) {
        let peak = limits.iter().filter(|limit| limit.window_ns == 0).map(|limit| limit.limit_mw).min();
        self.max_power = peak.map(uj_per_ns);
        let sustained = limits.iter().filter(|limit| limit.window_ns != 0 && limit.limit_mw != 0);
        self.sustained = sustained.map(|limit| (uj_per_ns(limit.limit_mw), limit.window_ns)).collect();
        self.cached = CachedBounds::default();
    }

    /// Adds a counter update. A gap invalidates all points before it.
    pub(crate) fn add_point(&mut self, point: BoundPoint, after_gap: bool) {
        if after_gap {
            self.points.clear();
        }
        self.points.push(point);
        self.cached = CachedBounds::default();
    }

    /// Drops the points that no instant from `position_ns` on needs.
    pub(crate) fn drop_before(&mut self, position_ns: u64) {
        while self.points.get(1).is_some_and(|next| next.late_ns <= position_ns) {
            self.points.remove(0);
        }
    }

    /// The largest energy that is possible in this time, µJ; `None` where the maximum power is unknown.
    #[inline]
    pub(crate) fn max_energy_in(&self, duration_ns: u64) -> Option<f64> {
        // Signed, because that is converted by one instruction.
        let peak = self.max_power? * duration_ns as i64 as f64;
        // A window that is no whole number of time constants can begin and end with an excess, and an exponential mean
        // bounds the energy of a window d by power · (d + time constant) too.
        let over_windows = |&(power, window_ns): &(f64, u64)| {
            (duration_ns >= window_ns).then(|| power * duration_ns.saturating_add(window_ns) as f64)
        };
        Some(self.sustained.iter().filter_map(over_windows).fold(peak, smaller))
    }

    /// The bounds at `at_ns`, relative to `estimate`. The last point must be the first whose `early_ns` is not before
    /// `at_ns`. Between two new points, `at_ns` must not decrease from call to call.
    #[inline]
    pub(crate) fn bound_at(&mut self, at_ns: u64, estimate: u64) -> Bound {
        if at_ns >= self.cached.valid_until_ns {
            self.cached = self.bounds_from(at_ns, estimate);
        }
        let CachedBounds { lower, lower_slope, upper, upper_slope, .. } = &self.cached;
        let mut below = difference_uj(estimate, *lower);
        if let Some(line) = lower_slope {
            below = smaller(below, self.below(line, estimate, at_ns));
        }
        let mut above = difference_uj(*upper, estimate);
        if let Some(line) = upper_slope {
            above = smaller(above, self.above(line, estimate, at_ns));
        }
        Bound { estimate, below: larger(below, 0.0), above: larger(above, 0.0) }
    }

    /// An estimate less the lower bound at an instant before that of `line`, µJ.
    #[inline]
    fn below(&self, line: &BoundLine, estimate: u64, at_ns: u64) -> f64 {
        let most = self.max_energy_in(line.at_ns.wrapping_sub(at_ns)).unwrap_or(f64::INFINITY);
        difference_uj(estimate, line.energy) + most
    }

    /// The upper bound at an instant after that of `line` less an estimate, µJ.
    #[inline]
    fn above(&self, line: &BoundLine, estimate: u64, at_ns: u64) -> f64 {
        let most = self.max_energy_in(at_ns.wrapping_sub(line.at_ns)).unwrap_or(f64::INFINITY);
        difference_uj(line.energy, estimate) + most
    }

    /// Computes the bounds from `at_ns` on.
    #[cold]
    fn bounds_from(&self, at_ns: u64, estimate: u64) -> CachedBounds {
        let unknown_lower = estimate.wrapping_sub(UNKNOWN_DISTANCE);
        let unknown_upper = estimate.wrapping_add(UNKNOWN_DISTANCE);
        let reached = self.points.iter().rposition(|point| point.late_ns <= at_ns);
        let ahead = self.points.get(reached.map_or(0, |index| index + 1)..).unwrap_or_default();
        // The point with the tightest slope at the peak power. All slopes are the same, so it is the tightest for the whole
        // time; each point is a valid bound at a sustained power too.
        let known = self.max_power.is_some();
        let lines = ahead.iter().filter(|_| known);
        let lines = lines.map(|point| BoundLine { energy: point.energy, at_ns: point.late_ns });
        let lower_slope =
            lines.min_by(|a, b| self.below(a, estimate, at_ns).total_cmp(&self.below(b, estimate, at_ns)));
        let passed = self.points.iter().rfind(|point| point.early_ns <= at_ns).filter(|_| known);
        let upper_slope =
            passed.map(|point| BoundLine { energy: self.upper_energy(point), at_ns: point.early_ns });
        let changes = self.points.iter().flat_map(|point| [point.early_ns, point.late_ns]);
        CachedBounds {
            valid_until_ns: changes.filter(|&change_ns| change_ns > at_ns).min().unwrap_or(u64::MAX),
            lower: reached.map_or(unknown_lower, |index| self.points[index].energy),
            lower_slope,
            upper: self.points.last().map_or(unknown_upper, |last| self.upper_energy(last)),
            upper_slope,
        }
    }

    /// The counter is less than one quantum below the true energy.
    fn upper_energy(&self, point: &BoundPoint) -> u64 {
        point.energy.wrapping_add(self.quantum)
    }
}

/// The error of G from the remainders of a group's divisions, µJ per unit of weight: (P + 1) · 2^-64 for each of
/// 2^24 / (P + 1) intervals, with P in µJ per nanosecond.
const REMAINDER_ERROR_UJ: f64 = 1.0 / (1_u64 << 40) as f64;

/// A power in µJ per nanosecond.
fn uj_per_ns(mw: u64) -> f64 {
    mw as f64 * 1e-6
}

/// A group of edges that is being passed.
#[derive(Debug, Clone)]
pub(crate) struct EdgeGroup {
    /// Σ d · |Δ(1/W)|.
    edge_errors: f64,
    min_inverse: f64,
    max_inverse: f64,
    /// The bounds of the first and the last edge.
    first: Option<Bound>,
    last: Bound,
}

impl EdgeGroup {
    /// Starts a group where 1/W is `inverse` (0: no weight).
    pub(crate) fn begin(inverse: f64) -> Self {
        let min_inverse = if inverse == 0.0 { f64::INFINITY } else { inverse };
        Self { edge_errors: 0.0, min_inverse, max_inverse: inverse, first: None, last: Bound::default() }
    }

    /// Adds an instant with this bound, at which 1/W changes from `before` to `after`.
    #[inline]
    pub(crate) fn add_edge(&mut self, bound: Bound, before: f64, after: f64) {
        self.first.get_or_insert(bound);
        self.last = bound;
        if after == 0.0 {
            return;
        }
        if before != 0.0 {
            self.edge_errors += bound.uncertainty() * difference(before, after);
        }
        self.min_inverse = smaller(self.min_inverse, after);
        self.max_inverse = larger(self.max_inverse, after);
    }

    /// The group's error, once it is complete.
    pub(crate) fn error(&self) -> GroupError {
        let Self { edge_errors, min_inverse, max_inverse, first, last } = self;
        let first = first.unwrap_or_default();
        // The added unit is more than the remainders of the divisions by W in the group.
        let energy_range =
            difference_uj(last.estimate, first.estimate) + first.below + last.above + BOUND_UNIT_UJ;
        // Before the first weight there is no range.
        let range = if *max_inverse == 0.0 { 0.0 } else { difference(*max_inverse, *min_inverse) };
        let range_error = energy_range * range;
        GroupError {
            edge_errors: *edge_errors,
            range_error,
            own: edge_errors.min(range_error) + REMAINDER_ERROR_UJ,
            energy_range,
            min_inverse: *min_inverse,
            max_inverse: *max_inverse,
        }
    }
}

/// The error of a complete group, µJ. `drift` is the source's own uncertainty of the step.
#[derive(Debug, Clone)]
pub(crate) struct GroupError {
    /// Σ d · |Δ(1/W)|, and (U − L) · (max 1/W − min 1/W), and the smaller one: the error of the share of a span that is
    /// open throughout the group, per unit of weight.
    edge_errors: f64,
    range_error: f64,
    own: f64,
    /// U − L: the largest possible rise of the true energy between the group's first and last edge.
    energy_range: f64,
    min_inverse: f64,
    max_inverse: f64,
}

impl GroupError {
    /// The group's accumulated error, per unit of weight.
    #[inline]
    pub(crate) fn accumulated_error(&self, drift: f64) -> f64 {
        self.own + drift * self.max_inverse
    }

    /// The error from the other spans' edges, for a span of constant weight in one run of the group's edges.
    #[inline]
    pub(crate) fn run_error(&self, weight: u64, drift: f64) -> f64 {
        weight_of(weight) * self.accumulated_error(drift)
    }

    /// The error from the other spans' edges, for a span that has the weight `before` up to one edge of the group, and
    /// `after` from it on. The true energy can leave one run of edges high and the next one low, so the energy range
    /// counts for both runs.
    pub(crate) fn two_runs_error(&self, before: u64, after: u64, drift: f64) -> f64 {
        let max_weight = weight_of(before.max(after));
        (max_weight * self.edge_errors).min(weight_of(before + after) * self.range_error)
            + max_weight * drift * self.max_inverse
    }

    /// The upper limit of the error within the group of a span with weights in this range: the energy range times the
    /// range of its share fraction.
    #[inline]
    pub(crate) fn max_error(&self, min_weight: u64, max_weight: u64, drift: f64) -> f64 {
        let max_fraction = share_fraction(max_weight, self.max_inverse);
        let min_fraction = if min_weight == 0 { 0.0 } else { share_fraction(min_weight, self.min_inverse) };
        self.energy_range * difference(max_fraction, min_fraction) + 2.0 * drift * max_fraction
    }
}

/// V, the sum of a domain's group errors, µJ per unit of weight. An integer in 2^-64 µJ, because a span needs the difference
/// of two sums over a long time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct AccumulatedError(u128);

const ACCUMULATED_FRACTION_BITS: u32 = 64;
/// Span states store it in 2^-24 µJ, wrapping.
const STORED_FRACTION_BITS: u32 = 24;
/// The largest error of one group: no guarantee follows from it.
const MAX_GROUP_ERROR: f64 = (1_u64 << 38) as f64;

impl AccumulatedError {
    /// Adds the error of a group, rounded up.
    pub(crate) fn add(&mut self, error: f64) {
        let units = error.min(MAX_GROUP_ERROR) * 2_f64.powi(ACCUMULATED_FRACTION_BITS as i32);
        self.0 = self.0.wrapping_add(units as u128 + 1);
    }

    /// The form in span states, rounded down.
    pub(crate) fn stored(self) -> u64 {
        (self.0 >> (ACCUMULATED_FRACTION_BITS - STORED_FRACTION_BITS)) as u64
    }

    /// The difference of two stored sums times a weight, µJ.
    #[inline]
    pub(crate) fn since(begin: u64, end: u64, weight: u64) -> f64 {
        // Both values were rounded down: one unit compensates for it, and for 2^40 / (P + 1) remainders besides.
        let rise = end.wrapping_sub(begin) as i64 as f64 + 1.0;
        rise * weight_of(weight) * (1.0 / (1_u64 << STORED_FRACTION_BITS) as f64)
    }
}

/// |a − b| of two rounded quotients, rounded up.
#[inline]
pub(crate) fn difference(a: f64, b: f64) -> f64 {
    (a - b).abs() + 2.0 * f64::EPSILON * larger(a, b)
}

/// f = w/W, at most 1; 0 where 1/W is 0, without weight.
#[inline]
pub(crate) fn share_fraction(weight: u64, inverse: f64) -> f64 {
    smaller(weight_of(weight) * inverse, 1.0)
}

/// A weight as a double. It is below 2^63, for which the conversion is one instruction.
#[inline]
fn weight_of(weight: u64) -> f64 {
    weight as i64 as f64
}

/// Like `f64::min` and `f64::max`, without their rule for NaN, which costs several instructions at each edge.
#[inline]
pub(crate) fn smaller(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}

#[inline]
fn larger(a: f64, b: f64) -> f64 {
    if a > b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guaranteed_error_rounds_up_and_an_unbounded_one_is_absent() {
        assert_eq!(guaranteed_uj(0.0), Some(1));
        assert_eq!(guaranteed_uj(9.5), Some(11));
        // 2^-53 of this error is below the spacing of doubles, but 10^-12 of it is not.
        assert_eq!(guaranteed_uj(1e13), Some(10_000_000_000_011));
        for unbounded in [UNBOUNDED_ERROR_UJ, f64::INFINITY, f64::NAN] {
            assert_eq!(guaranteed_uj(unbounded), None);
        }
    }
}
