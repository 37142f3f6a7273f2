//! RAPL through the kernel's powercap zones: files that hold microjoules.
//!
//! Owns the kept-open `energy_uj` of every zone under `class/powercap/intel-rapl*` (linux drivers/powercap). A zone that
//! two drivers show (`intel-rapl` and `intel-rapl-mmio`) is taken once. A zone whose range is not told is rejected: its
//! wraps could not be undone. Never walks the tree after the start; a zone that goes away gives invalid readings and is
//! looked for again once a second.

pub use crate::sources::source_settings::POWERCAP as NAME;

use std::io;

use crate::clock::Clock;
use crate::domain::{Domain, EnergyReading, Grade};

use super::counter::{Counter, CounterSpec, plausible_ceiling_mw};
use super::cpu_info::CpuInfo;
use super::powercap_zone::{PowercapZone, RegisterScale, list_zones};
use super::rapl;
use super::suspend_detector::SuspendDetector;
use super::sysfs_file::SysfsFile;
use super::{Inventory, OpenedSource, Source, SourceSettings};

/// Opens every zone that there is.
pub fn open(settings: &SourceSettings, clock: &Clock) -> Inventory {
    let class = settings.sysfs_root.join("class/powercap");
    let mut found = Inventory::default();
    let listed = match list_zones(&class) {
        Ok(listed) if listed.zones.is_empty() && listed.unusable.is_empty() => {
            found.add_absent(
                NAME,
                format!("no RAPL zone in {}; load the driver: sudo modprobe intel_rapl_msr", class.display()),
            );
            return found;
        }
        Ok(listed) => listed,
        Err(error) => {
            let reason =
                format!("{}: {error}; load the driver: sudo modprobe intel_rapl_msr", class.display());
            found.add_absent(NAME, reason);
            return found;
        }
    };
    for reason in listed.unusable {
        found.add_absent(NAME, reason);
    }
    let mut zone_counters = Vec::new();
    let mut domains = Vec::new();
    let grade = CpuInfo::read(&settings.proc_root).rapl_grade();
    let mut unreadable = Vec::new();
    for zone in &listed.zones {
        match ZoneCounter::open(zone) {
            Ok(zone_counter) => {
                zone_counters.push(zone_counter);
                domains.push(zone_domain(zone, &listed.zones, grade));
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                unreadable.push(zone.domain.as_str())
            }
            Err(error) => found.add_absent(NAME, format!("{}: {error}", zone.energy_file().display())),
        }
    }
    if !unreadable.is_empty() {
        found.add_absent(NAME, permission_reason(&unreadable));
    }
    if !zone_counters.is_empty() {
        let source = PowercapSource {
            zones: zone_counters,
            suspend: SuspendDetector::new(clock),
            clock: clock.clone(),
        };
        found.opened.push(OpenedSource {
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
fn permission_reason(domains: &[&str]) -> String {
    format!(
        "{}: energy_uj is for root alone since CVE-2020-8694; give the program CAP_PERFMON and it reads them through \
         perf, or run it as root, or with CAP_DAC_READ_SEARCH: sudo setcap cap_dac_read_search=ep PROGRAM",
        domains.join(", ")
    )
}

fn zone_domain(zone: &PowercapZone, all: &[PowercapZone], grade: Grade) -> Domain {
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
        quantum_uj: zone.scale.unit.ceil_uj(),
    }
}

/// All zones, read one after the other.
struct PowercapSource {
    zones: Vec<ZoneCounter>,
    suspend: SuspendDetector,
    clock: Clock,
}

impl Source for PowercapSource {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        for (zone, reading) in self.zones.iter_mut().zip(&mut *into) {
            *reading = zone.read(&self.clock);
        }
        if self.suspend.has_suspended() {
            // Each meter may have been read before or after the sleep: neither this reading nor the next may be joined.
            self.zones.iter_mut().for_each(|zone| zone.counter.interrupt());
            into.fill(EnergyReading::default());
        }
        None
    }
}

/// One open zone.
struct ZoneCounter {
    energy: SysfsFile,
    scale: RegisterScale,
    counter: Counter,
}

impl ZoneCounter {
    fn open(zone: &PowercapZone) -> io::Result<ZoneCounter> {
        let count = zone.scale;
        let range_uj = u64::try_from(count.unit.to_uj(count.modulus)).unwrap_or(u64::MAX);
        let counter = Counter::new(CounterSpec {
            unit: count.unit,
            modulus: count.modulus,
            ceiling_mw: plausible_ceiling_mw(zone.kind),
            staleness_ns: 100_000_000,
            range_uj,
        });
        Ok(ZoneCounter { energy: SysfsFile::open_number(zone.energy_file())?, scale: count, counter })
    }

    fn read(&mut self, clock: &Clock) -> EnergyReading {
        let before_ns = clock.now_ns();
        let Some(microjoules) = self.energy.read_number(before_ns) else {
            self.counter.interrupt();
            return EnergyReading::default();
        };
        self.counter.advance(self.scale.register_count(microjoules), before_ns, clock.now_ns())
    }
}
