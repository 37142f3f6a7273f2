//! Files that show energy or power, read together as one source.
//!
//! Owns what all such files have in common: a device that sleeps is left asleep, a machine that slept begins anew, and a
//! file that is away gives invalid readings while the others go on. Never knows what kind of device it reads.

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

/// One file (or two, volts and amperes) of one domain.
#[derive(Debug)]
pub struct SensorFile {
    kind: SensorKind,
    /// Read only while this file says (or does not say) the word.
    condition: Option<ReadCondition>,
}

/// A file that says whether reading makes sense.
#[derive(Debug)]
pub struct ReadCondition {
    /// The file.
    pub file: SysfsFile,
    /// The word.
    pub word: &'static str,
    /// Whether the word must be there, or must not.
    pub must_equal: bool,
}

/// Lets a device's files be read while it does not sleep: reading would wake it, and cost what it was to measure (linux
/// Documentation/ABI/testing/sysfs-devices-power). `None` where the device tells nothing of sleep.
pub fn not_suspended(device: &Path) -> Option<ReadCondition> {
    let path = device.join(RUNTIME_STATUS);
    read_trimmed(&path)?;
    Some(ReadCondition { file: SysfsFile::open(path).ok()?, word: SUSPENDED, must_equal: false })
}

/// Whether a device sleeps now.
pub fn is_suspended(device: &Path) -> bool {
    read_trimmed(&device.join(RUNTIME_STATUS)).as_deref() == Some(SUSPENDED)
}

/// Opens a file of a device's and sees whether it shows a number, unless that would wake the device.
///
/// # Errors
/// It cannot be opened, or shows no number.
pub fn open_unless_suspended(path: PathBuf, device: &Path) -> io::Result<SysfsFile> {
    if is_suspended(device) { SysfsFile::open(path) } else { SysfsFile::open_number(path) }
}

const RUNTIME_STATUS: &str = "power/runtime_status";
const SUSPENDED: &str = "suspended";

#[derive(Debug)]
enum SensorKind {
    Energy(SysfsFile, Counter),
    Power(PowerSensor),
}

impl SensorFile {
    /// A file that counts microjoules. `range_uj` is the least energy after which a register behind it may have wrapped
    /// unseen; `None` where there is nothing behind it but the file's own 64 bits.
    pub fn energy(file: SysfsFile, kind: DomainKind, range_uj: Option<u64>) -> Self {
        let counter = Counter::new(CounterSpec {
            unit: EnergyUnit::MICROJOULE,
            modulus: 1 << 64,
            ceiling_mw: plausible_ceiling_mw(kind),
            staleness_ns: 1_000_000_000,
            range_uj: range_uj.unwrap_or(u64::MAX),
        });
        Self { kind: SensorKind::Energy(file, counter), condition: None }
    }

    /// A sensor of power.
    pub fn power(sensor: PowerSensor) -> Self {
        Self { kind: SensorKind::Power(sensor), condition: None }
    }

    /// The same file, read only under a condition.
    pub fn with_condition(self, condition: Option<ReadCondition>) -> Self {
        Self { condition, ..self }
    }

    /// How far behind the truth its figure may be beyond what the hardware's register is.
    pub fn latency_ns(&self) -> u64 {
        match &self.kind {
            SensorKind::Energy(..) => 0,
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
        }
    }
}

/// Sensor files that are read one after the other.
pub struct SensorFileGroup {
    sensors: Vec<SensorFile>,
    suspend: SuspendDetector,
    clock: Clock,
}

impl SensorFileGroup {
    /// Makes a source of sensor files and the domains that they show, in the same order.
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
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        for (sensor, reading) in self.sensors.iter_mut().zip(&mut *into) {
            *reading = sensor.read(&self.clock);
        }
        if self.suspend.has_suspended() {
            // Each may have been read before or after the sleep: neither this reading nor the next may be joined.
            self.sensors.iter_mut().for_each(SensorFile::interrupt);
            into.fill(EnergyReading::default());
        }
        None
    }
}
