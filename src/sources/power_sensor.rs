//! A sensor that shows power and has no counter: integrated, with the uncertainty that this leaves.
//!
//! Owns what may be believed of such a sensor between two looks. Two kinds:
//!
//! - a *instantaneous* one, or one that averages nobody knows how: between two looks the power can have been anything from
//!   nothing to the most that the device can draw, and the uncertainty says so (metrology: without a bound on the slope only
//!   `[0, most] · L` holds);
//! - an *averaging* one, whose value is the mean of the last τ (hwmon's `powerN_average` with `powerN_average_interval`).
//!   Its integral up to t is the energy of some instant in `[t − 2τ, t]`: τ for the mean, and another for a sensor that
//!   publishes only at the end of each interval. That is a *latency* of the domain, not a uncertainty that grows. What grows is
//!   only what happened between two looks, and a mean over τ cannot change faster than `most / τ`.
//!
//! Never believes a value above the device's ceiling, and never bridges a gap.

use crate::clock::Clock;
use crate::domain::EnergyReading;

use super::energy_integral::{PowerSample, TrapezoidIntegrator};
use super::sysfs_file::SysfsFile;

/// Where the power is read.
#[derive(Debug)]
pub enum PowerInput {
    /// A file in microwatts.
    Microwatts(SysfsFile),
    /// Two files, volts and amperes, whose product divided by the number is microwatts: 1 for mV and mA, a million for µV
    /// and µA. The sign of a current says only how the sensor is wired.
    VoltageTimesCurrent(SysfsFile, SysfsFile, u64),
}

impl PowerInput {
    fn read_mw(&mut self, now_ns: u64) -> Option<u64> {
        let microwatts = match self {
            // Below zero it is a sensor's offset around nothing.
            PowerInput::Microwatts(power) => u128::try_from(power.read_number::<i64>(now_ns)?.max(0)).ok()?,
            PowerInput::VoltageTimesCurrent(volts, amperes, divisor) => {
                let volts = volts.read_number::<i64>(now_ns)?.unsigned_abs();
                let amperes = amperes.read_number::<i64>(now_ns)?.unsigned_abs();
                u128::from(volts) * u128::from(amperes) / u128::from(*divisor)
            }
        };
        u64::try_from((microwatts + 500) / 1_000).ok()
    }
}

/// One sensor, integrated.
#[derive(Debug)]
pub struct PowerSensor {
    input: PowerInput,
    /// More than the device can ever draw.
    ceiling_mw: u64,
    /// Over how long its value is the mean; `None` where that is not known.
    averaging_ns: Option<u64>,
    /// How far the sensor itself may be off, in parts per million of what it shows.
    error_ppm: u64,
    integrator: TrapezoidIntegrator,
    /// The last value and when it was read.
    last: Option<(u64, u64)>,
}

impl PowerSensor {
    /// A sensor of which nothing is known but the most that the device draws.
    pub fn instantaneous(input: PowerInput, ceiling_mw: u64) -> Self {
        Self {
            input,
            ceiling_mw,
            averaging_ns: None,
            error_ppm: 0,
            integrator: TrapezoidIntegrator::default(),
            last: None,
        }
    }

    /// A sensor whose value is the mean of the last `trailing_ns`, off by `error_ppm` at most.
    pub fn averaging(input: PowerInput, ceiling_mw: u64, trailing_ns: u64, error_ppm: u64) -> Self {
        Self { averaging_ns: Some(trailing_ns.max(1)), error_ppm, ..Self::instantaneous(input, ceiling_mw) }
    }

    /// By how much its integral may lag behind: see the head of this file. 0 for an instantaneous sensor, whose uncertainty has it all.
    pub fn latency_ns(&self) -> u64 {
        self.averaging_ns.map_or(0, |trailing_ns| 2 * trailing_ns)
    }

    /// Reads and integrates; invalid while the sensor is away or shows what cannot be.
    pub fn read(&mut self, clock: &Clock) -> EnergyReading {
        let now_ns = clock.now_ns();
        let valid_power = self.input.read_mw(now_ns).filter(|&power_mw| power_mw <= self.ceiling_mw);
        let Some(power_mw) = valid_power else {
            self.interrupt();
            return EnergyReading::default();
        };
        let at_ns = clock.now_ns();
        let (low_mw, high_mw) = self.power_bounds_mw(at_ns, power_mw);
        self.last = Some((at_ns, power_mw));
        let reading = self.integrator.advance(PowerSample { at_ns, power_mw, low_mw, high_mw });
        // A trailing mean is the truth for no instant that anybody could name; the domain's latency has it.
        if self.averaging_ns.is_some() { EnergyReading { stamp_ns: 0, ..reading } } else { reading }
    }

    /// Whatever it shows next, the energy in between is unknown.
    pub fn interrupt(&mut self) {
        self.last = None;
        self.integrator.interrupt();
    }

    /// The least and the most that the mean power since the last look can have been.
    fn power_bounds_mw(&self, at_ns: u64, power_mw: u64) -> (u64, u64) {
        let anything = (0, self.ceiling_mw);
        let (Some(trailing_ns), Some((last_ns, last_mw))) = (self.averaging_ns, self.last) else {
            return anything;
        };
        let step_ns = at_ns.saturating_sub(last_ns);
        if step_ns >= trailing_ns {
            return anything;
        }
        // Half the step where the value jumped at one end of it, or a quarter of what the steepest slope makes of it.
        let slope_mw = u128::from(self.ceiling_mw) * u128::from(step_ns) / u128::from(trailing_ns) / 4 + 1;
        let jump_mw = u128::from(last_mw.abs_diff(power_mw)).div_ceil(2);
        let mean_mw = u128::from(last_mw + power_mw) / 2;
        let sensor_mw = mean_mw * u128::from(self.error_ppm) / 1_000_000 + 1;
        let uncertainty_mw = u64::try_from(slope_mw.max(jump_mw) + sensor_mw).unwrap_or(u64::MAX);
        let mean_mw = last_mw.midpoint(power_mw);
        (mean_mw.saturating_sub(uncertainty_mw), mean_mw.saturating_add(uncertainty_mw))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    fn power_file(folder: &tempfile::TempDir, microwatts: i64) -> SysfsFile {
        let path = folder.path().join("power1_average");
        fs::write(&path, format!("{microwatts}\n")).unwrap();
        SysfsFile::open(path).unwrap()
    }

    #[test]
    fn of_an_instantaneous_sensor_anything_up_to_the_ceiling_may_have_happened_in_between() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(0));
        let mut sensor =
            PowerSensor::instantaneous(PowerInput::Microwatts(power_file(&folder, 50_000_000)), 400_000);
        sensor.read(&clock);
        clock.set(1_000 * MS);
        let reading = sensor.read(&clock);
        assert_eq!((reading.energy_uj, reading.uncertainty_uj), (50_000_000, 350_000_000));
        assert_eq!((reading.stamp_ns, sensor.latency_ns()), (1_000 * MS, 0));
    }

    #[test]
    fn a_value_above_the_ceiling_is_no_reading_and_a_negative_one_is_nothing() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(0));
        let mut sensor =
            PowerSensor::instantaneous(PowerInput::Microwatts(power_file(&folder, 500_000_000)), 400_000);
        assert!(!sensor.read(&clock).valid);
        power_file(&folder, -3_000);
        clock.set(MS);
        assert!(sensor.read(&clock).valid);
        clock.set(2 * MS);
        assert_eq!(sensor.read(&clock).energy_uj, 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// The mean of the last τ of a random power, read each millisecond, continuous or published at the end of blocks.
        #[test]
        fn the_integral_of_a_trailing_mean_lags_by_no_more_than_the_latency_and_is_off_by_no_more_than_the_uncertainty(
            steps in proptest::collection::vec((1_u64..120, 0_u64..=400), 4..30), blocks in any::<bool>(),
        ) {
            const TAU_MS: u64 = 20;
            let folder = tempfile::tempdir().unwrap();
            let clock = Clock::manual(0);
            // Energy in µJ at each millisecond: 1 W for 1 ms is 1 000 µJ.
            let mut energy = vec![0_u64];
            for (length_ms, watts) in steps {
                for _ in 0..length_ms {
                    energy.push(energy.last().unwrap() + watts * 1_000);
                }
            }
            let mean_uw = |at: u64| {
                let until = if blocks { at / TAU_MS * TAU_MS } else { at };
                let from = until.saturating_sub(TAU_MS);
                (energy[until as usize] - energy[from as usize]) * 1_000 / TAU_MS
            };
            let path = folder.path().join("power1_average");
            fs::write(&path, "0\n").unwrap();
            let input = PowerInput::Microwatts(SysfsFile::open(path.clone()).unwrap());
            let mut sensor = PowerSensor::averaging(input, 400_000, TAU_MS * MS, 0);
            for at in 0..energy.len() as u64 {
                clock.set(at * MS + 1);
                fs::write(&path, format!("{}\n", mean_uw(at))).unwrap();
                let reading = sensor.read(&clock);
                prop_assert!(reading.valid && reading.stamp_ns == 0);
                let late = energy[at as usize];
                let early = energy[at.saturating_sub(sensor.latency_ns() / MS) as usize];
                prop_assert!(
                    reading.energy_uj <= late + reading.uncertainty_uj + 2
                        && reading.energy_uj + reading.uncertainty_uj + 2 >= early,
                    "at {at} ms: {reading:?}, the truth in {early}..={late}"
                );
                // And the uncertainty is worth something: a few per cent of what anything-goes would say.
                prop_assert!(reading.uncertainty_uj <= 400_000 * at / 40 + 400_000 * TAU_MS);
            }
        }
    }
}
