//! Integration of a power sensor without a counter, with its uncertainty.
//!
//! Owns the bounds of the true power between two reads. There are two kinds of sensors:
//!
//! - *Instantaneous*, or with an unknown averaging time: between two reads the power can have any value from 0 to the
//!   ceiling. Without a bound on the slope, only the energy interval `[0, ceiling] · L` is certain.
//! - *Averaging*: the value is the mean of the last τ (hwmon's `powerN_average` with `powerN_average_interval`). Its
//!   integral up to t is the energy at some instant in `[t − 2τ, t]`: τ for the mean, and τ for a sensor that publishes only
//!   at the end of each interval. That is a *latency* of the domain. The uncertainty grows only by the change between
//!   two reads, and a mean over τ cannot change faster than `ceiling / τ`.
//!
//! A value above the assumed ceiling raises it. Rejects implausible values and never bridges a gap.

use crate::clock::Clock;
use crate::domain::EnergyReading;

use super::energy_integral::{PowerSample, TrapezoidIntegrator};
use super::gpu_power_model::GpuLoad;
use super::sysfs_file::SysfsFile;

/// The files of a power sensor.
#[derive(Debug)]
pub enum PowerInput {
    /// A file in microwatts. A negative value is the sensor's offset at zero power.
    Microwatts(SysfsFile),
    /// A file in microwatts whose sign depends on the driver only: that of a battery while it discharges.
    MicrowattsOfEitherSign(SysfsFile),
    /// Voltage and current files and a divisor: product / divisor = microwatts. The divisor is 1 for mV and mA, a million
    /// for µV and µA. The sign of a current depends only on the wiring of the sensor.
    VoltageTimesCurrent(SysfsFile, SysfsFile, u64),
    /// No sensor: the power by the limit and the utilization of a GPU.
    Estimate(GpuLoad),
}

impl PowerInput {
    fn read_mw(&mut self, now_ns: u64) -> Option<u64> {
        let microwatts = match self {
            PowerInput::Estimate(load) => return load.read_mw(now_ns),
            PowerInput::MicrowattsOfEitherSign(power) => {
                u128::from(power.read_number::<i64>(now_ns)?.unsigned_abs())
            }
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

/// A power sensor with its integral.
#[derive(Debug)]
pub struct PowerSensor {
    input: PowerInput,
    /// Upper bound of the device's power. A higher value raises it.
    ceiling_mw: u64,
    /// A higher value is none: the sensor is broken.
    plausible_mw: u64,
    /// The averaging time; `None` if it is unknown.
    averaging_ns: Option<u64>,
    /// The sensor's largest error, in parts per million of its value.
    error_ppm: u64,
    integrator: TrapezoidIntegrator,
    /// The last value and the instant of its read.
    last: Option<(u64, u64)>,
}

impl PowerSensor {
    /// A sensor with an unknown averaging time.
    pub fn instantaneous(input: PowerInput, ceiling_mw: u64) -> Self {
        Self {
            input,
            ceiling_mw,
            plausible_mw: ceiling_mw,
            averaging_ns: None,
            error_ppm: 0,
            integrator: TrapezoidIntegrator::default(),
            last: None,
        }
    }

    /// A sensor whose value is the mean of the last `trailing_ns`, with an error of at most `error_ppm`.
    pub fn averaging(input: PowerInput, ceiling_mw: u64, trailing_ns: u64, error_ppm: u64) -> Self {
        Self { averaging_ns: Some(trailing_ns.max(1)), error_ppm, ..Self::instantaneous(input, ceiling_mw) }
    }

    /// Accepts values up to this, above the assumed ceiling too.
    pub fn with_plausible_power(self, plausible_mw: u64) -> Self {
        Self { plausible_mw, ..self }
    }

    /// Takes the value as the mean of the last `averaging_ns`; 0: as instantaneous.
    pub fn set_averaging(&mut self, averaging_ns: u64) {
        // The interval of a model does not become narrower.
        let is_sensor = !matches!(self.input, PowerInput::Estimate(_));
        self.averaging_ns = (averaging_ns > 0 && is_sensor).then_some(averaging_ns);
    }

    /// The largest lag of the integral (see the head of this file). 0 for an instantaneous sensor, whose uncertainty contains
    /// the lag.
    pub fn latency_ns(&self) -> u64 {
        self.averaging_ns.map_or(0, |trailing_ns| 2 * trailing_ns)
    }

    /// Reads and integrates. Invalid while the sensor is unavailable or shows an implausible value.
    pub fn read(&mut self, clock: &Clock) -> EnergyReading {
        let now_ns = clock.now_ns();
        let valid_power = self.input.read_mw(now_ns).filter(|&power_mw| power_mw <= self.plausible_mw);
        let Some(power_mw) = valid_power else {
            self.interrupt_integral();
            return EnergyReading::default();
        };
        self.ceiling_mw = self.ceiling_mw.max(power_mw);
        let at_ns = clock.now_ns();
        let (low_mw, high_mw) = self.power_bounds_mw(at_ns, power_mw);
        self.last = Some((at_ns, power_mw));
        let reading = self.integrator.advance(PowerSample { at_ns, power_mw, low_mw, high_mw });
        // A trailing mean belongs to no single instant; the domain's latency covers this.
        if self.averaging_ns.is_some() { EnergyReading { stamp_ns: 0, ..reading } } else { reading }
    }

    /// Records a gap. The energy up to the next reading is unknown.
    pub fn interrupt(&mut self) {
        if let PowerInput::Estimate(load) = &mut self.input {
            load.interrupt();
        }
        self.interrupt_integral();
    }

    fn interrupt_integral(&mut self) {
        self.last = None;
        self.integrator.interrupt();
    }

    /// Lower and upper bound of the mean power since the last read.
    fn power_bounds_mw(&self, at_ns: u64, power_mw: u64) -> (u64, u64) {
        let anything = (0, self.ceiling_mw);
        let (Some(trailing_ns), Some((last_ns, last_mw))) = (self.averaging_ns, self.last) else {
            return anything;
        };
        let step_ns = at_ns.saturating_sub(last_ns);
        if step_ns >= trailing_ns {
            return anything;
        }
        // Half the step if the value jumped at one end of the interval, or a quarter of the steepest slope's change.
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
    fn instantaneous_sensor_allows_any_power_up_to_the_ceiling_between_reads() {
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
    fn the_time_of_a_suspended_device_is_no_load_of_its_estimate() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(0));
        let open = |name: &str| SysfsFile::open(folder.path().join(name)).unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("power1_max", "100000000\n");
        write("idle_residency_ms", "1000\n");
        let load = GpuLoad::by_idle_times(open("power1_max"), vec![open("idle_residency_ms")]).unwrap();
        let mut sensor = PowerSensor::instantaneous(PowerInput::Estimate(load), 100_000);
        assert!(!sensor.read(&clock).valid);
        clock.set(100 * MS);
        write("idle_residency_ms", "1100\n");
        assert!(sensor.read(&clock).valid, "idle all the time");
        sensor.interrupt();
        // Neither the counter nor the device runs for 10 s; then it is idle again.
        clock.set(10_100 * MS);
        assert!(!sensor.read(&clock).valid, "the window begins");
        clock.set(10_200 * MS);
        write("idle_residency_ms", "1200\n");
        let first = sensor.read(&clock);
        clock.set(10_300 * MS);
        write("idle_residency_ms", "1300\n");
        let second = sensor.read(&clock);
        assert!(first.valid && second.valid);
        assert_eq!(second.energy_uj - first.energy_uj, 1_130_000, "11.3 W for 100 ms");
    }

    #[test]
    fn a_plausible_value_above_the_ceiling_raises_it() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(0));
        let mut sensor =
            PowerSensor::instantaneous(PowerInput::Microwatts(power_file(&folder, 500_000_000)), 400_000)
                .with_plausible_power(4_000_000);
        assert!(sensor.read(&clock).valid);
        clock.set(1_000 * MS);
        let reading = sensor.read(&clock);
        assert_eq!((reading.energy_uj, reading.uncertainty_uj), (500_000_000, 500_000_000));
        power_file(&folder, 4_000_001_000);
        assert!(!sensor.read(&clock).valid);
    }

    #[test]
    fn value_above_the_ceiling_is_invalid_and_negative_value_is_zero() {
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

        /// The mean of the last τ of a random power, read each millisecond: continuous, or published at the end of blocks.
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
                // The uncertainty is useful: a few per cent of an instantaneous sensor's.
                prop_assert!(reading.uncertainty_uj <= 400_000 * at / 40 + 400_000 * TAU_MS);
            }
        }
    }
}
