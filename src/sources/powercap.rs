//! RAPL through the kernel's powercap zones: files that hold microjoules.
//!
//! Owns the kept-open `energy_uj` of every zone under `class/powercap/intel-rapl*` (linux drivers/powercap). A zone that
//! two drivers show (`intel-rapl` and `intel-rapl-mmio`) is taken once. A zone whose range is not told is rejected: its
//! wraps could not be undone. Never walks the tree after the start; a zone that goes away gives invalid readings and is
//! looked for again once a second.

use std::io;

use crate::clock::Clock;
use crate::domain::{Domain, EnergyReading, Grade};

use super::attribute::Attribute;
use super::counter::{Counter, Shape, plausible_ceiling_mw};
use super::powercap_zone::{Count, Zone, zones};
use super::processor::Processor;
use super::rapl;
use super::suspend::Suspend;
use super::{Inventory, Opened, Settings, Source};

/// The mechanism's name.
pub const NAME: &str = "powercap";

/// Opens every zone that there is.
pub fn open(settings: &Settings, clock: &Clock) -> Inventory {
    let class = settings.sysfs_root.join("class/powercap");
    let mut found = Inventory::default();
    let listed = match zones(&class) {
        Ok(listed) if listed.zones.is_empty() && listed.refused.is_empty() => {
            found.miss(
                NAME,
                format!("no RAPL zone in {}; load the driver: sudo modprobe intel_rapl_msr", class.display()),
            );
            return found;
        }
        Ok(listed) => listed,
        Err(error) => {
            let reason =
                format!("{}: {error}; load the driver: sudo modprobe intel_rapl_msr", class.display());
            found.miss(NAME, reason);
            return found;
        }
    };
    for reason in listed.refused {
        found.miss(NAME, reason);
    }
    let mut meters = Vec::new();
    let mut domains = Vec::new();
    let grade = Processor::read(&settings.proc_root).rapl_grade();
    let mut denied = Vec::new();
    for zone in &listed.zones {
        match Meter::open(zone) {
            Ok(meter) => {
                meters.push(meter);
                domains.push(domain_of(zone, &listed.zones, grade));
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                denied.push(zone.domain.as_str())
            }
            Err(error) => found.miss(NAME, format!("{}: {error}", zone.energy_file().display())),
        }
    }
    if !denied.is_empty() {
        found.miss(NAME, refused(&denied));
    }
    if !meters.is_empty() {
        let source = Zones { meters, suspend: Suspend::new(clock), clock: clock.clone() };
        found.opened.push(Opened {
            name: NAME,
            source: Box::new(source),
            cpu: None,
            max_rate_hz: 10_000.0,
            advanced: vec![false; domains.len()],
            domains,
        });
    }
    found
}

/// What to say of zones that are there and closed to us.
fn refused(domains: &[&str]) -> String {
    format!(
        "{}: energy_uj is for root alone since CVE-2020-8694; give the program CAP_PERFMON and it reads them through \
         perf, or run it as root, or with CAP_DAC_READ_SEARCH: sudo setcap cap_dac_read_search=ep PROGRAM",
        domains.join(", ")
    )
}

fn domain_of(zone: &Zone, all: &[Zone], grade: Grade) -> Domain {
    Domain {
        name: zone.domain.clone(),
        kind: zone.kind,
        source: NAME.into(),
        device: None,
        parent: zone.parent(all),
        grade,
        // The zone's constraints limit averages, not power; what the counter refuses as nonsense bounds it.
        ceiling_mw: Some(plausible_ceiling_mw(zone.kind)),
        latency_ns: rapl::LATENCY_NS,
        quantum_uj: zone.count.unit.ceil_uj(),
    }
}

/// All zones, read one after the other.
struct Zones {
    meters: Vec<Meter>,
    suspend: Suspend,
    clock: Clock,
}

impl Source for Zones {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        for (meter, reading) in self.meters.iter_mut().zip(&mut *into) {
            *reading = meter.read(&self.clock);
        }
        if self.suspend.slept() {
            // Each meter may have been read before or after the sleep: neither this reading nor the next may be joined.
            self.meters.iter_mut().for_each(|meter| meter.counter.interrupt());
            into.fill(EnergyReading::default());
        }
        None
    }
}

/// One open zone.
struct Meter {
    energy: Attribute,
    count: Count,
    counter: Counter,
}

impl Meter {
    fn open(zone: &Zone) -> io::Result<Meter> {
        let count = zone.count;
        let range_uj = u64::try_from(count.unit.to_uj(count.modulus)).unwrap_or(u64::MAX);
        let counter = Counter::new(Shape {
            unit: count.unit,
            modulus: count.modulus,
            ceiling_mw: plausible_ceiling_mw(zone.kind),
            staleness_ns: 100_000_000,
            range_uj,
        });
        Ok(Meter { energy: Attribute::open_number(zone.energy_file())?, count, counter })
    }

    fn read(&mut self, clock: &Clock) -> EnergyReading {
        let before_ns = clock.now_ns();
        let Some(microjoules) = self.energy.number(before_ns) else {
            self.counter.interrupt();
            return EnergyReading::default();
        };
        self.counter.advance(self.count.raw(microjoules), before_ns, clock.now_ns())
    }
}
