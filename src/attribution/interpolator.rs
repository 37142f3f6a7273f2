//! The interpolant of a domain's energy over time: straight lines between the counter's updates.
//!
//! Owns the steps that are known, how far time has passed along them, and the domain's virtual energy clock, which they
//! drive. Invariant: what has flowed at the end of a step is exactly the step's energy; time never goes back; no energy
//! flows in a gap, whose time counts as unknown. Knows no span: weights come and go from outside.

use std::collections::VecDeque;

use super::edge_commit::EdgeSnapshot;
use super::edge_queue::EdgeInstant;
use super::fast_path::{FastPath, LineSegment};
use super::span_domain_state::ClockSnapshot;
use super::virtual_energy::{ENERGY_FRACTION_BITS, VirtualEnergy};

/// The interpolation between two counter updates.
#[derive(Debug, Clone, Copy, Default)]
struct InterpolationStep {
    from_ns: u64,
    to_ns: u64,
    /// Energy units: all of it, and what has flowed so far.
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
    /// Everything before this instant is final.
    #[inline]
    pub(crate) fn position_ns(&self) -> u64 {
        self.position_ns
    }

    /// The clock at that instant.
    #[inline]
    pub(crate) fn snapshot(&self) -> ClockSnapshot {
        ClockSnapshot::of(&self.virtual_energy, self.unknown_ns)
    }

    /// From now on this much of what flows is idle.
    pub(crate) fn set_idle_power(&mut self, power_mw: Option<u64>) {
        let power = power_mw.map_or(0, |mw| (u128::from(mw) << ENERGY_FRACTION_BITS) / 1_000_000);
        self.idle_power = u64::try_from(power).unwrap_or(u64::MAX);
    }

    /// The next step is known: `energy` energy units between two instants, or a gap.
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

    /// Lets energy flow up to `to_ns` along the steps.
    #[inline]
    pub(crate) fn advance(&mut self, to_ns: u64) {
        if to_ns >= self.step.to_ns {
            self.advance_across_steps(to_ns);
        } else if to_ns > self.position_ns {
            let energy_so_far = u128::from(self.step.power) * u128::from(to_ns - self.step.from_ns);
            self.add_energy_until(to_ns, energy_so_far);
        }
    }

    /// The same, to the end of a step at least.
    #[cold]
    fn advance_across_steps(&mut self, to_ns: u64) {
        while self.position_ns < to_ns {
            if to_ns < self.step.to_ns {
                return self.advance(to_ns);
            }
            // A step of no time can still hold energy.
            self.add_energy_until(self.step.to_ns.max(self.position_ns), self.step.energy);
            if self.position_ns < to_ns {
                let Some(step) = self.pending_steps.pop_front() else { return };
                self.step = step;
            }
        }
    }

    /// Adds what is missing of the step's first `energy_so_far` energy units, up to `to_ns`.
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

    /// Passes as many instants as lie inside this step and concern only spans that use this domain; notes a snapshot
    /// for each and gives how many.
    pub(crate) fn advance_over_edges(
        &mut self,
        domain: usize,
        instants: &[EdgeInstant],
        limit_ns: u64,
        snapshots: &mut Vec<EdgeSnapshot>,
    ) -> usize {
        let step = &self.step;
        if step.gap
            || step.energy >> 61 != 0
            || self.position_ns < step.from_ns
            || self.position_ns >= step.to_ns
        {
            return 0;
        }
        let (limit_ns, energy_so_far) = (limit_ns.min(step.to_ns), step.energy_so_far as u64);
        let (from_ns, position_ns, power, idle_power) =
            (step.from_ns, self.position_ns, step.power, self.idle_power);
        let segment = LineSegment { from_ns, position_ns, energy_so_far, power, idle_power };
        let mut fast_path = FastPath::begin(segment, &self.virtual_energy, self.unknown_ns);
        let count_before = snapshots.len();
        for instant in instants {
            if instant.at_ns >= limit_ns || (instant.all_scope >> domain) & 1 == 0 {
                break;
            }
            fast_path.advance(instant.at_ns);
            snapshots.push(fast_path.apply_edges(instant));
        }
        self.position_ns = fast_path.segment.position_ns;
        self.step.energy_so_far = u128::from(fast_path.segment.energy_so_far);
        fast_path.finish(&mut self.virtual_energy);
        snapshots.len() - count_before
    }
}
