//! Integration of a sensor's or a model's power over time, for sources without a counter.
//!
//! Owns the trapezoidal rule and its uncertainty. Invariant: if the true power is always in `[low, high]`, the true energy
//! of any interval is within the increase of `energy_uj` ± (the increase of `uncertainty_uj` + `ROUNDING_UJ`). A gap is
//! never bridged: the integral continues in a new epoch.

use crate::domain::EnergyReading;

/// Largest rounding error of the difference of two readings, in µJ: both cumulative values are floored.
pub const ROUNDING_UJ: u64 = 2;

/// Cumulative energy and uncertainty, kept in picojoules (mW times ns), so that no rounding accumulates.
#[derive(Debug, Clone, Default)]
pub struct EnergyIntegral {
    energy_pj: u128,
    uncertainty_pj: u128,
    /// The end of the integral; `None` before the first reading and after an interruption.
    integrated_until_ns: Option<u64>,
    has_baseline: bool,
    epoch: u32,
}

/// The energy of one interval with its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntervalEnergy {
    /// In picojoules, within the bounds.
    pub energy_pj: u128,
    /// The energy is at least this.
    pub low_pj: u128,
    /// The energy is at most this.
    pub high_pj: u128,
}

impl EnergyIntegral {
    /// Adds the energy since the last reading, which `slice` computes from the elapsed nanoseconds. The first reading, and
    /// the first after an interruption, is a baseline. A reading that is not later than the last one changes nothing.
    pub fn advance(&mut self, at_ns: u64, slice: impl FnOnce(u128) -> IntervalEnergy) -> EnergyReading {
        match self.integrated_until_ns {
            None if self.has_baseline => self.epoch = self.epoch.wrapping_add(1),
            None => self.has_baseline = true,
            Some(until_ns) if at_ns <= until_ns => return self.reading(until_ns),
            Some(until_ns) => {
                let slice = slice(u128::from(at_ns - until_ns));
                let below_pj = slice.energy_pj.saturating_sub(slice.low_pj);
                self.energy_pj += slice.energy_pj;
                self.uncertainty_pj += below_pj.max(slice.high_pj.saturating_sub(slice.energy_pj));
            }
        }
        self.integrated_until_ns = Some(at_ns);
        self.reading(at_ns)
    }

    /// Records that the sensor was unavailable. The energy until the next reading is unknown.
    pub fn interrupt(&mut self) {
        self.integrated_until_ns = None;
    }

    fn reading(&self, at_ns: u64) -> EnergyReading {
        let whole_uj = |pj: u128| u64::try_from(pj / 1_000_000).unwrap_or(u64::MAX);
        EnergyReading {
            valid: true,
            energy_uj: whole_uj(self.energy_pj),
            uncertainty_uj: whole_uj(self.uncertainty_pj),
            stamp_ns: at_ns,
            epoch: self.epoch,
            shape_uj: 0,
        }
    }
}

/// The trapezoidal rule between the readings of a power sensor.
#[derive(Debug, Clone, Default)]
pub struct TrapezoidIntegrator {
    integral: EnergyIntegral,
    last_mw: u64,
}

/// One value of a power sensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerSample {
    /// The instant of the value.
    pub at_ns: u64,
    /// The power at this instant.
    pub power_mw: u64,
    /// Lower bound of the true power since the previous value.
    pub low_mw: u64,
    /// Upper bound of the true power since the previous value.
    pub high_mw: u64,
}

impl TrapezoidIntegrator {
    /// Adds the trapezoid from the previous value to this one.
    pub fn advance(&mut self, power: PowerSample) -> EnergyReading {
        let doubled_mw = u128::from(self.last_mw) + u128::from(power.power_mw);
        self.last_mw = power.power_mw;
        self.integral.advance(power.at_ns, |elapsed_ns| IntervalEnergy {
            energy_pj: doubled_mw * elapsed_ns / 2,
            low_pj: u128::from(power.low_mw) * elapsed_ns,
            high_pj: u128::from(power.high_mw) * elapsed_ns,
        })
    }

    /// Records that the sensor was unavailable.
    pub fn interrupt(&mut self) {
        self.integral.interrupt();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn power(at_ns: u64, power_mw: u64) -> PowerSample {
        PowerSample { at_ns, power_mw, low_mw: 0, high_mw: 400_000 }
    }

    #[test]
    fn a_ramp_is_integrated_by_its_mean() {
        let mut integral = TrapezoidIntegrator::default();
        integral.advance(power(0, 100_000));
        let reading = integral.advance(power(1_000_000_000, 300_000));
        assert_eq!(reading.energy_uj, 200_000_000);
        assert_eq!(reading.uncertainty_uj, 200_000_000);
        assert_eq!(reading.stamp_ns, 1_000_000_000);
    }

    #[test]
    fn a_gap_adds_nothing_and_opens_an_epoch() {
        let mut integral = TrapezoidIntegrator::default();
        integral.advance(power(0, 100_000));
        let before = integral.advance(power(1_000_000, 100_000));
        integral.interrupt();
        let after = integral.advance(power(9_000_000_000, 100_000));
        assert_eq!(
            (after.energy_uj, after.uncertainty_uj, after.epoch),
            (before.energy_uj, before.uncertainty_uj, 1)
        );
    }

    #[test]
    fn a_reading_from_the_past_changes_nothing() {
        let mut integral = TrapezoidIntegrator::default();
        integral.advance(power(0, 100_000));
        let reading = integral.advance(power(1_000_000, 100_000));
        assert_eq!(integral.advance(power(500_000, 300_000)), reading);
    }

    proptest! {
        #[test]
        fn the_true_energy_lies_within_the_uncertainty_for_every_interval(
            steps in proptest::collection::vec((1_u64..5_000_000, 50_u64..=400, 50_u64..=400), 2..60),
            from in 0_usize..60, to in 0_usize..60,
        ) {
            // The true power of a step is constant at `mean`, within 50..=400 W, for any sensor values at the edges.
            let mut integral = TrapezoidIntegrator::default();
            let mut at_ns = 0;
            let mut truth_pj = 0_u128;
            let mut points = Vec::new();
            for (elapsed_ns, sensed, mean) in steps {
                at_ns += elapsed_ns;
                if !points.is_empty() {
                    truth_pj += u128::from(mean * 1_000) * u128::from(elapsed_ns);
                }
                let reading = integral.advance(PowerSample {
                    at_ns, power_mw: sensed * 1_000, low_mw: 50_000, high_mw: 400_000,
                });
                points.push((truth_pj, reading));
            }
            let (from, to) = (from % points.len(), to % points.len());
            let (from, to) = (points[from.min(to)], points[from.max(to)]);
            let truth_pj = to.0 - from.0;
            let energy_pj = u128::from(to.1.energy_uj - from.1.energy_uj) * 1_000_000;
            let uncertainty_pj = u128::from(to.1.uncertainty_uj - from.1.uncertainty_uj + ROUNDING_UJ) * 1_000_000;
            prop_assert!(truth_pj.abs_diff(energy_pj) <= uncertainty_pj);
        }
    }
}
