//! Files that show energy or power, read together as one source.
//!
//! Owns what all such files have in common: a device that sleeps is left asleep, a machine that slept begins anew, and a
//! file that is away gives invalid readings while the others go on. Never knows what kind of device it reads.

use std::io;
use std::path::{Path, PathBuf};

use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, EnergyReading};

use super::attribute::{Attribute, text_of};
use super::counter::{Counter, Shape, plausible_ceiling_mw};
use super::suspend::Suspend;
use super::unit::Unit;
use super::wattmeter::Wattmeter;
use super::{Opened, Source};

/// One file (or two, volts and amperes) of one domain.
#[derive(Debug)]
pub struct Gauge {
    sense: Sense,
    /// Read only while this file says (or does not say) the word.
    condition: Option<Condition>,
}

/// A file that says whether reading makes sense.
#[derive(Debug)]
pub struct Condition {
    /// The file.
    pub attribute: Attribute,
    /// The word.
    pub word: &'static str,
    /// Whether the word must be there, or must not.
    pub wanted: bool,
}

/// Lets a device's files be read while it does not sleep: reading would wake it, and cost what it was to measure (linux
/// Documentation/ABI/testing/sysfs-devices-power). `None` where the device tells nothing of sleep.
pub fn awake(device: &Path) -> Option<Condition> {
    let path = device.join(RUNTIME_STATUS);
    text_of(&path)?;
    Some(Condition { attribute: Attribute::open(path).ok()?, word: SUSPENDED, wanted: false })
}

/// Whether a device sleeps now.
pub fn sleeps(device: &Path) -> bool {
    text_of(&device.join(RUNTIME_STATUS)).as_deref() == Some(SUSPENDED)
}

/// Opens a file of a device's and sees whether it shows a number, unless that would wake the device.
///
/// # Errors
/// It cannot be opened, or shows no number.
pub fn open_unless_asleep(path: PathBuf, device: &Path) -> io::Result<Attribute> {
    if sleeps(device) { Attribute::open(path) } else { Attribute::open_number(path) }
}

const RUNTIME_STATUS: &str = "power/runtime_status";
const SUSPENDED: &str = "suspended";

#[derive(Debug)]
enum Sense {
    Energy(Attribute, Counter),
    Power(Wattmeter),
}

impl Gauge {
    /// A file that counts microjoules. `range_uj` is the least energy after which a register behind it may have wrapped
    /// unseen; `None` where there is nothing behind it but the file's own 64 bits.
    pub fn energy(attribute: Attribute, kind: DomainKind, range_uj: Option<u64>) -> Self {
        let counter = Counter::new(Shape {
            unit: Unit::MICROJOULE,
            modulus: 1 << 64,
            ceiling_mw: plausible_ceiling_mw(kind),
            staleness_ns: 1_000_000_000,
            range_uj: range_uj.unwrap_or(u64::MAX),
        });
        Self { sense: Sense::Energy(attribute, counter), condition: None }
    }

    /// A sensor of power.
    pub fn power(meter: Wattmeter) -> Self {
        Self { sense: Sense::Power(meter), condition: None }
    }

    /// The same gauge, read only under a condition.
    pub fn only_while(self, condition: Option<Condition>) -> Self {
        Self { condition, ..self }
    }

    /// How far behind the truth its figure may be beyond what the hardware's register is.
    pub fn latency_ns(&self) -> u64 {
        match &self.sense {
            Sense::Energy(..) => 0,
            Sense::Power(meter) => meter.latency_ns(),
        }
    }

    fn read(&mut self, clock: &Clock) -> EnergyReading {
        let before_ns = clock.now_ns();
        let met = match &mut self.condition {
            None => true,
            Some(condition) => condition.attribute.says(before_ns, condition.word) == Some(condition.wanted),
        };
        if !met {
            self.interrupt();
            return EnergyReading::default();
        }
        match &mut self.sense {
            Sense::Power(meter) => meter.read(clock),
            Sense::Energy(attribute, counter) => match attribute.number(before_ns) {
                Some(microjoules) => counter.advance(microjoules, before_ns, clock.now_ns()),
                None => {
                    counter.interrupt();
                    EnergyReading::default()
                }
            },
        }
    }

    fn interrupt(&mut self) {
        match &mut self.sense {
            Sense::Energy(_, counter) => counter.interrupt(),
            Sense::Power(meter) => meter.interrupt(),
        }
    }
}

/// Gauges that are read one after the other.
pub struct Gauges {
    gauges: Vec<Gauge>,
    suspend: Suspend,
    clock: Clock,
}

impl Gauges {
    /// Makes a source of gauges and the domains that they show, in the same order.
    pub fn offered(
        name: &'static str,
        gauges: Vec<(Domain, Gauge)>,
        max_rate_hz: f64,
        clock: &Clock,
    ) -> Opened {
        let (domains, gauges): (Vec<_>, Vec<_>) = gauges.into_iter().unzip();
        Opened {
            name,
            cpu: None,
            max_rate_hz,
            advanced: vec![false; domains.len()],
            domains,
            source: Box::new(Gauges { gauges, suspend: Suspend::new(clock), clock: clock.clone() }),
        }
    }
}

impl Source for Gauges {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        for (gauge, reading) in self.gauges.iter_mut().zip(&mut *into) {
            *reading = gauge.read(&self.clock);
        }
        if self.suspend.slept() {
            // Each may have been read before or after the sleep: neither this reading nor the next may be joined.
            self.gauges.iter_mut().for_each(Gauge::interrupt);
            into.fill(EnergyReading::default());
        }
        None
    }
}
