//! A group of files with energy or power values that is read as one source.
//!
//! Owns the common rules: a suspended device is not woken, a system suspend interrupts all integrals, and a missing
//! file gives invalid readings of its domain only. Independent of the kind of device.

use std::io;
use std::path::{Path, PathBuf};

use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, EnergyReading};

use super::counter::{Counter, CounterSpec, plausible_ceiling_mw};
use super::energy_unit::EnergyUnit;
use super::power_sensor::PowerSensor;
use super::suspend_detector::SuspendDetector;
use super::sysfs_file::{SysfsFile, read_trimmed};
use super::{OpenedSource, Source};

/// The file, or the voltage and current files, of one domain.
#[derive(Debug)]
pub struct SensorFile {
    kind: SensorKind,
    /// The file is read only while this condition is met.
    condition: Option<ReadCondition>,
}

/// A condition on the content of a state file.
#[derive(Debug)]
pub struct ReadCondition {
    pub file: SysfsFile,
    pub word: &'static str,
    /// Whether the content must equal the word or must differ from it.
    pub must_equal: bool,
}

/// The condition that a device is not suspended: a read would wake it and change the measured power (linux
/// Documentation/ABI/testing/sysfs-devices-power). `None` if the device has no runtime power management.
pub fn not_suspended(device: &Path) -> Option<ReadCondition> {
    let path = runtime_status_file(device);
    read_trimmed(&path)?;
    Some(ReadCondition { file: SysfsFile::open(path).ok()?, word: SUSPENDED, must_equal: false })
}

/// The file with the state of a device's runtime power management.
pub fn runtime_status_file(device: &Path) -> PathBuf {
    device.join(RUNTIME_STATUS)
}

/// Whether a device is suspended.
pub fn is_suspended(device: &Path) -> bool {
    read_trimmed(&runtime_status_file(device)).as_deref() == Some(SUSPENDED)
}

/// Opens a file of a device. Checks that it contains a number, unless the read would wake the device.
///
/// # Errors
/// The file cannot be opened, or contains no number.
pub fn open_unless_suspended(path: PathBuf, device: &Path) -> io::Result<SysfsFile> {
    if is_suspended(device) { SysfsFile::open(path) } else { SysfsFile::open_number(path) }
}

const RUNTIME_STATUS: &str = "power/runtime_status";
const SUSPENDED: &str = "suspended";

#[derive(Debug)]
enum SensorKind {
    Energy(SysfsFile, Counter),
    Power(PowerSensor),
    Charge(ChargeGauge),
}

/// A battery's gauge of what remains: its fall is the energy that the machine took.
#[derive(Debug)]
pub struct ChargeGauge {
    /// `energy_now` in µWh, or `charge_now` in µAh.
    remaining: SysfsFile,
    /// `voltage_now` in µV, for a charge.
    voltage: Option<SysfsFile>,
    last: Option<u64>,
    /// What has left the battery, in picojoules.
    drained_pj: u128,
    counter: Counter,
}

impl ChargeGauge {
    /// A gauge. `voltage`: of a gauge of charge; `None` for one of energy.
    pub fn new(remaining: SysfsFile, voltage: Option<SysfsFile>) -> Self {
        let counter = microjoule_counter(DomainKind::Battery, None);
        Self { remaining, voltage, last: None, drained_pj: 0, counter }
    }

    fn read(&mut self, clock: &Clock) -> EnergyReading {
        let before_ns = clock.now_ns();
        let remaining = self.remaining.read_number::<u64>(before_ns);
        // A unit is 3,600 µJ of energy, or 3,600 µC that leave at the voltage: µC times µV are picojoules.
        let unit_pj = match &mut self.voltage {
            None => Some(3_600_000_000),
            Some(voltage) => {
                voltage.read_number::<u64>(before_ns).map(|microvolts| u128::from(microvolts) * 3_600)
            }
        };
        let Some((remaining, unit_pj)) = remaining.zip(unit_pj) else {
            self.interrupt();
            return EnergyReading::default();
        };
        match self.last.replace(remaining) {
            // The gauge was calibrated, or the battery charged meanwhile.
            Some(last) if remaining > last => self.counter.interrupt(),
            Some(last) => self.drained_pj += u128::from(last - remaining) * unit_pj,
            None => {}
        }
        let drained_uj = u64::try_from(self.drained_pj / 1_000_000).unwrap_or(u64::MAX);
        self.counter.advance(drained_uj, before_ns, clock.now_ns())
    }

    fn interrupt(&mut self) {
        self.last = None;
        self.counter.interrupt();
    }
}

/// A counter of microjoules in 64 bits; `range_uj` as in [`SensorFile::energy`].
fn microjoule_counter(kind: DomainKind, range_uj: Option<u64>) -> Counter {
    Counter::new(CounterSpec {
        unit: EnergyUnit::MICROJOULE,
        modulus: 1 << 64,
        ceiling_mw: plausible_ceiling_mw(kind),
        staleness_ns: 1_000_000_000,
        range_uj: range_uj.unwrap_or(u64::MAX),
    })
}

impl SensorFile {
    /// A file that counts microjoules. `range_uj`: the smallest energy after which the hardware register may have
    /// wrapped unnoticed; `None` if no register limits the file's 64 bits.
    pub fn energy(file: SysfsFile, kind: DomainKind, range_uj: Option<u64>) -> Self {
        Self { kind: SensorKind::Energy(file, microjoule_counter(kind, range_uj)), condition: None }
    }

    /// A battery's gauge.
    pub fn charge(gauge: ChargeGauge) -> Self {
        Self { kind: SensorKind::Charge(gauge), condition: None }
    }

    pub fn power(sensor: PowerSensor) -> Self {
        Self { kind: SensorKind::Power(sensor), condition: None }
    }

    /// Adds the condition for reads.
    pub fn with_condition(self, condition: Option<ReadCondition>) -> Self {
        Self { condition, ..self }
    }

    /// The latency of the value beyond the latency of the hardware's register.
    pub fn latency_ns(&self) -> u64 {
        match &self.kind {
            SensorKind::Energy(..) | SensorKind::Charge(_) => 0,
            SensorKind::Power(sensor) => sensor.latency_ns(),
        }
    }

    fn read(&mut self, clock: &Clock) -> EnergyReading {
        let before_ns = clock.now_ns();
        let is_met = match &mut self.condition {
            None => true,
            Some(condition) => condition.file.equals(before_ns, condition.word) == Some(condition.must_equal),
        };
        if !is_met {
            self.interrupt();
            return EnergyReading::default();
        }
        match &mut self.kind {
            SensorKind::Power(sensor) => sensor.read(clock),
            SensorKind::Charge(gauge) => gauge.read(clock),
            SensorKind::Energy(file, counter) => match file.read_number(before_ns) {
                Some(microjoules) => counter.advance(microjoules, before_ns, clock.now_ns()),
                None => {
                    counter.interrupt();
                    EnergyReading::default()
                }
            },
        }
    }

    fn interrupt(&mut self) {
        match &mut self.kind {
            SensorKind::Energy(_, counter) => counter.interrupt(),
            SensorKind::Power(sensor) => sensor.interrupt(),
            SensorKind::Charge(gauge) => gauge.interrupt(),
        }
    }
}

/// Sensor files that are read in sequence.
pub struct SensorFileGroup {
    sensors: Vec<SensorFile>,
    suspend: SuspendDetector,
    clock: Clock,
}

impl SensorFileGroup {
    /// Creates a source from sensor files with their domains.
    pub fn open_source(
        name: &'static str,
        sensors: Vec<(Domain, SensorFile)>,
        max_rate_hz: f64,
        clock: &Clock,
    ) -> OpenedSource {
        let (domains, sensors): (Vec<_>, Vec<_>) = sensors.into_iter().unzip();
        OpenedSource {
            name,
            cpu: None,
            max_rate_hz,
            advanced: vec![false; domains.len()],
            domains,
            source: Box::new(SensorFileGroup {
                sensors,
                suspend: SuspendDetector::new(clock),
                clock: clock.clone(),
            }),
        }
    }
}

impl Source for SensorFileGroup {
    fn set_averaging(&mut self, domain: usize, averaging_ns: u64) -> Option<u64> {
        match &mut self.sensors.get_mut(domain)?.kind {
            SensorKind::Power(sensor) => {
                sensor.set_averaging(averaging_ns);
                Some(sensor.latency_ns())
            }
            _ => None,
        }
    }

    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        for (sensor, reading) in self.sensors.iter_mut().zip(&mut *into) {
            *reading = sensor.read(&self.clock);
        }
        if self.suspend.has_suspended() {
            // Each file may have been read before or after the suspend, so this reading and the next one are discarded.
            self.sensors.iter_mut().for_each(SensorFile::interrupt);
            into.fill(EnergyReading::default());
        }
        None
    }
}
