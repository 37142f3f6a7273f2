//! Interpolates a domain's energy over time: straight lines between the counter's updates.
//!
//! Owns the known steps, the position in them, and the domain's virtual energy clock, which they drive. Invariant: the
//! energy at the end of a step is exactly the step's energy; the position never goes back; no energy flows in a gap,
//! and its time counts as unknown.

use std::collections::VecDeque;

use super::edge_queue::Edge;
use super::units::ENERGY_FRACTION_BITS;
use super::virtual_energy::{ClockSnapshot, VirtualEnergy};

/// One instant of a group of edges, as the domain passed it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EdgeSnapshot {
    pub at_ns: u64,
    /// The interpolated energy, in the unit of `bound_energy`.
    pub estimate: u64,
    pub clock: ClockSnapshot,
    /// 1/W before and after the instant.
    pub inverse_before: f64,
    pub inverse_after: f64,
    /// The largest difference between the true energy and the estimate, µJ.
    pub uncertainty: f64,
    /// The parts of the source's own uncertainty of the step that can lie before and after this instant, µJ.
    pub drift: (f64, f64),
    /// The indices of its edges: from `first_edge` up to `end_edge`.
    pub first_edge: u64,
    pub end_edge: u64,
}

impl EdgeSnapshot {
    /// The slice of the group's edges that belong to this instant.
    #[inline]
    pub(crate) fn edges_of<'a>(&self, first_edge: u64, edges: &'a [Edge]) -> &'a [Edge] {
        &edges[(self.first_edge - first_edge) as usize..(self.end_edge - first_edge) as usize]
    }
}

/// The interpolation between two counter updates.
#[derive(Debug, Clone, Copy, Default)]
struct InterpolationStep {
    from_ns: u64,
    to_ns: u64,
    /// Energy units: the whole step, and the part up to the position.
    energy: u128,
    energy_so_far: u128,
    /// Energy units per nanosecond.
    power: u64,
    gap: bool,
}

/// The interpolant of one domain's energy.
#[derive(Debug, Default)]
pub(crate) struct Interpolator {
    pub virtual_energy: VirtualEnergy,
    step: InterpolationStep,
    pending_steps: VecDeque<InterpolationStep>,
    position_ns: u64,
    unknown_ns: u64,
    idle_power: u64,
}

impl Interpolator {
    /// The position: everything before this instant is final.
    #[inline]
    pub(crate) fn position_ns(&self) -> u64 {
        self.position_ns
    }

    /// The clock at the position.
    #[inline]
    pub(crate) fn snapshot(&self) -> ClockSnapshot {
        ClockSnapshot::of(&self.virtual_energy, self.unknown_ns)
    }

    /// Sets the idle power for the time from the position on.
    pub(crate) fn set_idle_power(&mut self, power_mw: Option<u64>) {
        let power = power_mw.map_or(0, |mw| (u128::from(mw) << ENERGY_FRACTION_BITS) / 1_000_000);
        self.idle_power = u64::try_from(power).unwrap_or(u64::MAX);
    }

    /// Adds the next step: `energy` energy units between two instants, or a gap.
    pub(crate) fn add_step(&mut self, from_ns: u64, to_ns: u64, energy: u128, gap: bool) {
        let power = energy.checked_div(u128::from(to_ns.saturating_sub(from_ns)));
        let power = power.map_or(0, |power| u64::try_from(power).unwrap_or(0));
        self.pending_steps.push_back(InterpolationStep {
            from_ns,
            to_ns,
            energy,
            energy_so_far: 0,
            power,
            gap,
        });
    }

    /// Advances the position to `to_ns` along the steps.
    #[inline]
    pub(crate) fn advance(&mut self, to_ns: u64) {
        if to_ns >= self.step.to_ns {
            self.advance_across_steps(to_ns);
        } else if to_ns > self.position_ns {
            let energy_so_far = u128::from(self.step.power) * u128::from(to_ns - self.step.from_ns);
            self.add_energy_until(to_ns, energy_so_far);
        }
    }

    /// Like [`Self::advance`], where `to_ns` is not inside the current step.
    #[cold]
    fn advance_across_steps(&mut self, to_ns: u64) {
        while self.position_ns < to_ns {
            if to_ns < self.step.to_ns {
                return self.advance(to_ns);
            }
            // A step of zero length can still have energy.
            self.add_energy_until(self.step.to_ns.max(self.position_ns), self.step.energy);
            if self.position_ns < to_ns {
                let Some(step) = self.pending_steps.pop_front() else { return };
                self.step = step;
            }
        }
    }

    /// Advances to `to_ns`, where the step's energy is `energy_so_far` energy units.
    #[inline]
    fn add_energy_until(&mut self, to_ns: u64, energy_so_far: u128) {
        let elapsed_ns = to_ns - self.position_ns;
        if self.step.gap {
            self.unknown_ns += elapsed_ns;
        }
        let idle =
            if self.idle_power == 0 { 0 } else { u128::from(self.idle_power) * u128::from(elapsed_ns) };
        self.virtual_energy.add_energy(energy_so_far - self.step.energy_so_far, idle);
        self.step.energy_so_far = energy_so_far;
        self.position_ns = to_ns;
    }
}
