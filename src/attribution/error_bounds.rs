//! The guaranteed error of a share, from the bounds that the counter's updates set on the true energy.
//!
//! A share is S = ∫ f dE with f = w/W between the span's edges and 0 outside. The computed Ŝ uses the interpolated Ê.
//! Summation by parts gives S − Ŝ = −Σ (E − Ê)(τ)·Δf(τ) over all instants τ at which f jumps: the span's own edges and
//! the edges of every other span between them. E never decreases, so at each τ it lies between the counter's values
//! before and after τ; this bounds |E − Ê|. Edges between the same two updates form a *group*. The sum over a group's
//! jumps is also at most (U − L)·(max f − min f), because E rises from L to U only once. Invariant: every error rounds
//! up.

use crate::domain::{MAX_POWER_LIMITS, PowerLimit};

use super::units::{ERROR_FRACTION_BITS, UNBOUNDED_ERROR, wrapping_error_units};

/// A counter update as a bound on the cumulative energy. The energies in this file are in error units and wrap: only
/// their differences are meaningful.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BoundPoint {
    pub early_ns: u64,
    pub late_ns: u64,
    energy: u64,
}

impl BoundPoint {
    pub(crate) fn new(early_ns: u64, late_ns: u64, energy: u128) -> Self {
        Self { early_ns, late_ns, energy: wrapping_error_units(energy) }
    }
}

/// The largest differences by which the true energy can be below and above the estimate at an instant, error units.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bound {
    pub estimate: u64,
    pub below: u64,
    pub above: u64,
}

impl Bound {
    /// The larger of `below` and `above`.
    #[inline]
    pub(crate) fn uncertainty(self) -> u64 {
        self.below.max(self.above).min(UNBOUNDED_ERROR)
    }
}

/// The lower and upper bound of the true cumulative energy at any instant.
#[derive(Debug, Default)]
pub(crate) struct ErrorBounds {
    points: Vec<BoundPoint>,
    quantum: u64,
    /// The domain's maximum power, error units·2^-16 per nanosecond, rounded up; 0: unknown.
    max_power: u64,
    /// Powers in the same unit that hold as a mean over windows of at least so many nanoseconds; 0: no limit.
    sustained: [(u64, u64); MAX_POWER_LIMITS],
    cached: CachedBounds,
}

/// The bounds for a time in which the set of applicable points does not change, computed once for the many edges in it.
/// Unknown bounds are at `UNBOUNDED_DISTANCE`.
#[derive(Debug, Clone, Copy, Default)]
struct CachedBounds {
    /// The end of that time, exclusive.
    valid_until_ns: u64,
    /// The true energy is at least this.
    lower: u64,
    /// (energy, instant): the true energy is at least this energy less maximum power × the time until the instant.
    lower_slope: (u64, u64),
    /// The true energy is at most this.
    upper: u64,
    /// (energy, instant): the true energy is at most this energy plus maximum power × the time since the instant.
    upper_slope: (u64, u64),
}

/// The distance of an unknown bound, larger than that of any known one.
const UNBOUNDED_DISTANCE: u64 = UNBOUNDED_ERROR >> 1;

impl ErrorBounds {
    pub(crate) fn new(quantum_uj: u64, ceiling_mw: Option<u64>) -> Self {
        Self {
            points: Vec::new(),
            quantum: quantum_uj.clamp(1, 1 << 50) << ERROR_FRACTION_BITS,
            max_power: ceiling_mw.map_or(0, units_per_ns),
            sustained: Default::default(),
            cached: CachedBounds::default(),
        }
    }

    /// Sets the limits of the power, for edges that are not passed yet. A limit without a window holds at every instant.
    pub(crate) fn set_power_limits(&mut self, limits: &[PowerLimit]) {
        let peak = limits.iter().filter(|limit| limit.window_ns == 0).map(|limit| limit.limit_mw).min();
        self.max_power = peak.map_or(0, units_per_ns);
        self.sustained = Default::default();
        let sustained = limits.iter().filter(|limit| limit.window_ns != 0);
        for (slot, limit) in self.sustained.iter_mut().zip(sustained) {
            *slot = (units_per_ns(limit.limit_mw), limit.window_ns);
        }
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

    /// The largest energy that is possible in this time, error units.
    #[inline]
    fn max_energy_in(&self, duration_ns: u64) -> i64 {
        let peak = energy_at(self.max_power, duration_ns);
        // A window that is no whole number of time constants can begin and end with an excess, and an exponential mean
        // bounds the energy of a window d by power · (d + time constant) too.
        let over_windows = |&(power, window_ns): &(u64, u64)| {
            (power != 0 && duration_ns >= window_ns)
                .then(|| energy_at(power, duration_ns.saturating_add(window_ns)))
        };
        self.sustained.iter().filter_map(over_windows).fold(peak, i64::min)
    }

    /// Like [`Self::max_energy_in`]; `None` where the maximum power is unknown.
    pub(crate) fn known_max_energy_in(&self, duration_ns: u64) -> Option<u64> {
        (self.max_power != 0).then(|| self.max_energy_in(duration_ns) as u64)
    }

    /// The bounds at `at_ns`, relative to `estimate`. The last point must be the first whose `early_ns` is not before
    /// `at_ns`. Between two new points, `at_ns` must not decrease from call to call.
    #[inline]
    pub(crate) fn bound_at(&mut self, at_ns: u64, estimate: u64) -> Bound {
        if at_ns >= self.cached.valid_until_ns {
            self.cached = self.bounds_from(at_ns, estimate);
        }
        let CachedBounds { lower, lower_slope, upper, upper_slope, .. } = self.cached;
        // One error unit covers rounding the estimate and the points down.
        let over = |energy: u64| estimate.wrapping_sub(energy) as i64 + 1;
        let under = |energy: u64| energy.wrapping_sub(estimate) as i64 + 1;
        let below =
            over(lower).min(over(lower_slope.0) + self.max_energy_in(lower_slope.1.wrapping_sub(at_ns)));
        let above =
            under(upper).min(under(upper_slope.0) + self.max_energy_in(at_ns.wrapping_sub(upper_slope.1)));
        Bound { estimate, below: below.max(0) as u64, above: above.max(0) as u64 }
    }

    /// Computes the bounds from `at_ns` on.
    #[cold]
    fn bounds_from(&self, at_ns: u64, estimate: u64) -> CachedBounds {
        let (lowest, highest) =
            (estimate.wrapping_sub(UNBOUNDED_DISTANCE), estimate.wrapping_add(UNBOUNDED_DISTANCE));
        let reached = self.points.iter().rposition(|point| point.late_ns <= at_ns);
        let ahead = self.points.get(reached.map_or(0, |index| index + 1)..).unwrap_or_default();
        let known = self.max_power != 0;
        // The point with the tightest slope at the peak power. All slopes are the same, so it is the tightest for the whole
        // time, up to one error unit; each point is a valid bound at a sustained power too.
        let steepest = ahead.iter().filter(|_| known).min_by_key(|point| {
            estimate.wrapping_sub(point.energy) as i64 + self.max_energy_in(point.late_ns - at_ns)
        });
        let passed = self.points.iter().rfind(|point| point.early_ns <= at_ns).filter(|_| known);
        let changes = self.points.iter().flat_map(|point| [point.early_ns, point.late_ns]);
        CachedBounds {
            valid_until_ns: changes.filter(|&change_ns| change_ns > at_ns).min().unwrap_or(u64::MAX),
            lower: reached.map_or(lowest, |index| self.points[index].energy),
            lower_slope: steepest.map_or((lowest, at_ns), |point| (point.energy, point.late_ns)),
            upper: self.points.last().map_or(highest, |point| self.upper_energy(point)),
            upper_slope: passed.map_or((highest, at_ns), |point| (self.upper_energy(point), point.early_ns)),
        }
    }

    /// The counter is less than one quantum below the true energy.
    fn upper_energy(&self, point: &BoundPoint) -> u64 {
        point.energy.wrapping_add(self.quantum)
    }
}

/// A power in error units·2^-16 per nanosecond, rounded up.
fn units_per_ns(mw: u64) -> u64 {
    u64::try_from((u128::from(mw) << (16 + ERROR_FRACTION_BITS)) / 1_000_000 + 1).unwrap_or(u64::MAX)
}

/// The energy of a power in this time, error units, rounded up.
#[inline]
fn energy_at(power: u64, duration_ns: u64) -> i64 {
    power.checked_mul(duration_ns).map_or((UNBOUNDED_ERROR >> 2) as i64, |energy| (energy >> 16) as i64 + 1)
}

/// The accumulated error of one group of edges: the error of the share of a span that is open throughout the group, per
/// unit of weight, in error units · 2^52.
#[derive(Debug, Clone, Default)]
pub(crate) struct EdgeGroup {
    edge_errors: u128,
    min_inverse: u64,
    max_inverse: u64,
    lower: u64,
    upper: u64,
}

impl EdgeGroup {
    /// Starts a group where 1/W is `inverse` and the bound of the first edge is `bound`.
    pub(crate) fn begin(inverse: u64, bound: Bound) -> Self {
        let min_inverse = if inverse == 0 { u64::MAX } else { inverse };
        let (lower, upper) =
            (bound.estimate.wrapping_sub(bound.below), bound.estimate.wrapping_sub(bound.below));
        Self { edge_errors: 0, min_inverse, max_inverse: inverse, lower, upper }
    }

    /// Adds an instant with this bound, at which 1/W changes from `before` to `after`.
    #[inline]
    pub(crate) fn add_edge(&mut self, bound: Bound, before: u64, after: u64) {
        self.upper = bound.estimate.wrapping_add(bound.above);
        if after == 0 {
            return;
        }
        if before != 0 {
            // 1/W was rounded down on both sides.
            let rise = before.abs_diff(after) + 1;
            self.edge_errors += ((u128::from(rise) * u128::from(bound.uncertainty())) >> 11) + 1;
        }
        self.min_inverse = self.min_inverse.min(after);
        self.max_inverse = self.max_inverse.max(after);
    }

    /// The largest possible rise of the true energy between the group's first and last edge, error units.
    fn energy_range(&self) -> u64 {
        self.upper.wrapping_sub(self.lower)
    }

    /// The group's accumulated error; `drift` is the source's own uncertainty of the step, error units.
    pub(crate) fn accumulated_error(&self, drift: u64) -> u128 {
        let range = self.max_inverse.saturating_sub(self.min_inverse) + 1;
        let range_error = (u128::from(range) * u128::from(self.energy_range())) >> 11;
        let drift_error =
            if drift == 0 { 0 } else { ((u128::from(self.max_inverse) * u128::from(drift)) >> 11) + 1 };
        self.edge_errors.min(range_error + 1) + drift_error
    }

    /// The upper limit of the error of a span of this weight within the group.
    #[inline]
    pub(crate) fn max_error(&self, weight: u64, drift: u64) -> u64 {
        let max_energy = self.energy_range().saturating_add(drift).saturating_add(drift).min(UNBOUNDED_ERROR);
        scale_error(max_energy, share_fraction(weight, self.max_inverse))
    }
}

/// `min(1, weight · inverse)` in 2^-63, rounded up; 0 where `inverse` is 0.
#[inline]
pub(crate) fn share_fraction(weight: u64, inverse: u64) -> u64 {
    if inverse == 0 {
        return 0;
    }
    // 1/W was rounded down: one unit of 2^-63 for each unit of weight compensates for it.
    weight.checked_mul(inverse).map_or(1 << 63, |product| product.saturating_add(weight).min(1 << 63))
}

/// `error · fraction`, rounded up.
#[inline]
pub(crate) fn scale_error(error: u64, fraction: u64) -> u64 {
    ((u128::from(error) * u128::from(fraction)) >> 63) as u64 + u64::from(fraction != 0)
}

/// Accumulated error times weight, in error units, rounded up.
#[inline]
pub(crate) fn weighted_error(accumulated: u128, weight: u64) -> u64 {
    // Error units·2^12 per unit of weight, as span states store it; the last term rounds up.
    let stored = (accumulated >> 40).min(u128::from(u64::MAX - 1)) as u64 + u64::from(accumulated != 0);
    let error = (u128::from(stored) * u128::from(weight)) >> 12;
    error.min(u128::from(UNBOUNDED_ERROR - 1)) as u64 + u64::from(stored != 0)
}
