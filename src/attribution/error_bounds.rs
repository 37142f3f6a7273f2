//! The guaranteed error of a share, from the bounds that the counter's updates set on the true energy.
//!
//! A share is S = ∫ f dE with f = w/W between the span's edges and 0 outside. The computed Ŝ uses the interpolated Ê.
//! Summation by parts gives S − Ŝ = −Σ (E − Ê)(τ)·Δf(τ) over all instants τ at which f jumps: the span's own edges and
//! the edges of every other span between them. E never decreases, so at each τ it lies between the counter's values
//! before and after τ; this bounds |E − Ê|. Edges between the same two updates form a *group*. The sum over a group's
//! jumps is also at most (U − L)·(max f − min f), because E rises from L to U only once. Errors are doubles
//! in µJ. Invariant: an error rounds up, at the latest in `units::guaranteed_uj`.

use super::units::{ENERGY_FRACTION_BITS, UNBOUNDED_ERROR_UJ};

/// The energies that bounds compare are in 2^-12 µJ and wrap, so that the differences are exact.
const BOUND_FRACTION_BITS: u32 = 12;
const BOUND_UNIT_UJ: f64 = 1.0 / (1 << BOUND_FRACTION_BITS) as f64;

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
    cached: CachedBounds,
}

/// A bound that changes with time: `energy` at `at_ns`, and from there at `power`, µJ per nanosecond. An unknown bound is
/// constant, and far away.
#[derive(Debug, Clone, Copy, Default)]
struct BoundLine {
    energy: u64,
    at_ns: u64,
    power: f64,
}

impl BoundLine {
    fn constant(energy: u64) -> Self {
        Self { energy, at_ns: 0, power: 0.0 }
    }

    /// An estimate less the lower bound at an instant before `self.at_ns`, µJ.
    #[inline]
    fn below(&self, estimate: u64, at_ns: u64) -> f64 {
        difference_uj(estimate, self.energy) + self.at_ns.wrapping_sub(at_ns) as i64 as f64 * self.power
    }

    /// The upper bound at an instant after `self.at_ns` less an estimate, µJ.
    #[inline]
    fn above(&self, estimate: u64, at_ns: u64) -> f64 {
        difference_uj(self.energy, estimate) + at_ns.wrapping_sub(self.at_ns) as i64 as f64 * self.power
    }
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
    lower_slope: BoundLine,
    /// The true energy is at most both: by a later update, and from a passed one at maximum power.
    upper: u64,
    upper_slope: BoundLine,
}

impl ErrorBounds {
    pub(crate) fn new(quantum_uj: u64, ceiling_mw: Option<u64>) -> Self {
        Self {
            points: Vec::new(),
            quantum: quantum_uj.clamp(1, 1 << 50) << BOUND_FRACTION_BITS,
            max_power: ceiling_mw.map(|mw| mw as f64 * 1e-6),
            cached: CachedBounds::default(),
        }
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
    pub(crate) fn max_energy_in(&self, duration_ns: u64) -> Option<f64> {
        self.max_power.map(|power| power * duration_ns as f64)
    }

    /// The bounds at `at_ns`, relative to `estimate`. The last point must be the first whose `early_ns` is not before
    /// `at_ns`. Between two new points, `at_ns` must not decrease from call to call.
    #[inline]
    pub(crate) fn bound_at(&mut self, at_ns: u64, estimate: u64) -> Bound {
        if at_ns >= self.cached.valid_until_ns {
            self.cached = self.bounds_from(at_ns, estimate);
        }
        let CachedBounds { lower, lower_slope, upper, upper_slope, .. } = &self.cached;
        let below = smaller(difference_uj(estimate, *lower), lower_slope.below(estimate, at_ns));
        let above = smaller(difference_uj(*upper, estimate), upper_slope.above(estimate, at_ns));
        Bound { estimate, below: larger(below, 0.0), above: larger(above, 0.0) }
    }

    /// Computes the bounds from `at_ns` on.
    #[cold]
    fn bounds_from(&self, at_ns: u64, estimate: u64) -> CachedBounds {
        let unknown_lower = estimate.wrapping_sub(UNKNOWN_DISTANCE);
        let unknown_upper = estimate.wrapping_add(UNKNOWN_DISTANCE);
        let reached = self.points.iter().rposition(|point| point.late_ns <= at_ns);
        let ahead = self.points.get(reached.map_or(0, |index| index + 1)..).unwrap_or_default();
        // All slopes are the same, so the tightest one here is the tightest for the whole time.
        let lower_slope = self.max_power.and_then(|power| {
            let lines =
                ahead.iter().map(|point| BoundLine { energy: point.energy, at_ns: point.late_ns, power });
            lines.min_by(|a, b| a.below(estimate, at_ns).total_cmp(&b.below(estimate, at_ns)))
        });
        let upper_slope = self.max_power.and_then(|power| {
            let passed = self.points.iter().rfind(|point| point.early_ns <= at_ns)?;
            Some(BoundLine { energy: self.upper_energy(passed), at_ns: passed.early_ns, power })
        });
        let changes = self.points.iter().flat_map(|point| [point.early_ns, point.late_ns]);
        CachedBounds {
            valid_until_ns: changes.filter(|&change_ns| change_ns > at_ns).min().unwrap_or(u64::MAX),
            lower: reached.map_or(unknown_lower, |index| self.points[index].energy),
            lower_slope: lower_slope.unwrap_or(BoundLine::constant(unknown_lower)),
            upper: self.points.last().map_or(unknown_upper, |last| self.upper_energy(last)),
            upper_slope: upper_slope.unwrap_or(BoundLine::constant(unknown_upper)),
        }
    }

    /// The counter is less than one quantum below the true energy.
    fn upper_energy(&self, point: &BoundPoint) -> u64 {
        point.energy.wrapping_add(self.quantum)
    }
}

/// The error of G from the remainders of a group's divisions by W, µJ per unit of weight: 2^-63 for each of 2^23.
const REMAINDER_ERROR_UJ: f64 = 1.0 / (1_u64 << 40) as f64;

/// A group of edges that is being passed.
#[derive(Debug, Clone)]
pub(crate) struct EdgeGroup {
    /// Σ d · |Δ(1/W)|.
    edge_errors: f64,
    min_inverse: f64,
    max_inverse: f64,
    first: Bound,
    last: Bound,
}

impl EdgeGroup {
    /// Starts a group where 1/W is `inverse` (0: no weight) and the bound of the first edge is `bound`.
    pub(crate) fn begin(inverse: f64, bound: Bound) -> Self {
        let min_inverse = if inverse == 0.0 { f64::INFINITY } else { inverse };
        Self { edge_errors: 0.0, min_inverse, max_inverse: inverse, first: bound, last: bound }
    }

    /// Adds an instant with this bound, at which 1/W changes from `before` to `after`.
    #[inline]
    pub(crate) fn add_edge(&mut self, bound: Bound, before: f64, after: f64) {
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
