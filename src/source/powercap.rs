//! RAPL through the kernel's powercap zones: files that hold microjoules.
//!
//! Owns the kept-open `energy_uj` of every zone under `class/powercap/intel-rapl*` (linux drivers/powercap). A zone that
//! two drivers show (`intel-rapl` and `intel-rapl-mmio`) is taken once. A zone whose range is not told is rejected: its
//! wraps could not be undone. Never walks the tree after the start; a zone that goes away gives invalid readings and is
//! looked for again once a second.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::clock::Clock;
use crate::energy::{Domain, Grade, Reading};

use super::counter::{Counter, Shape, plausible_ceiling_mw};
use super::powercap_zone::{Count, Zone, zones};
use super::processor::Processor;
use super::suspend::Suspend;
use super::{Inventory, Opened, Settings, Source};

/// The mechanism's name.
pub const NAME: &str = "powercap";

/// How often a zone that went away is looked for.
const RETRY_NS: u64 = 1_000_000_000;

/// From the hardware to the register, as for perf.
const LATENCY_NS: u64 = 50_000;

/// The longest number in a zone's file: 20 digits and a newline.
const LONGEST: usize = 24;

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
        latency_ns: LATENCY_NS,
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
    fn read(&mut self, into: &mut [Reading]) -> Option<(u64, u64)> {
        for (meter, reading) in self.meters.iter_mut().zip(&mut *into) {
            *reading = meter.read(&self.clock);
        }
        if self.suspend.slept() {
            // Each meter may have been read before or after the sleep: neither this reading nor the next may be joined.
            self.meters.iter_mut().for_each(|meter| meter.counter.interrupt());
            into.fill(Reading::default());
        }
        None
    }
}

/// One open zone.
struct Meter {
    path: PathBuf,
    /// `None` while the zone is away.
    file: Option<File>,
    count: Count,
    counter: Counter,
    retry_at_ns: u64,
}

impl Meter {
    fn open(zone: &Zone) -> io::Result<Meter> {
        let path = zone.energy_file();
        let file = File::open(&path)?;
        let count = zone.count;
        let range_uj = u64::try_from(count.unit.to_uj(count.modulus)).unwrap_or(u64::MAX);
        let counter = Counter::new(Shape {
            unit: count.unit,
            modulus: count.modulus,
            ceiling_mw: plausible_ceiling_mw(zone.kind),
            staleness_ns: 100_000_000,
            range_uj,
        });
        // What cannot be read now is not there: a permission may be missing although the file opened.
        number_in(&file)?;
        Ok(Meter { path, file: Some(file), count, counter, retry_at_ns: 0 })
    }

    fn read(&mut self, clock: &Clock) -> Reading {
        let before_ns = clock.now_ns();
        let Some(microjoules) = self.microjoules(before_ns) else { return Reading::default() };
        self.counter.advance(self.count.raw(microjoules), before_ns, clock.now_ns())
    }

    /// What the zone's file says now; `None` while the zone is away.
    fn microjoules(&mut self, now_ns: u64) -> Option<u64> {
        if self.file.is_none() {
            if now_ns < self.retry_at_ns {
                return None;
            }
            self.file = File::open(&self.path).ok();
        }
        let number = self.file.as_ref().and_then(|file| number_in(file).ok());
        if number.is_none() {
            self.counter.interrupt();
            self.file = None;
            self.retry_at_ns = now_ns.saturating_add(RETRY_NS);
        }
        number
    }
}

/// The decimal number at the beginning of `file`, read without moving its offset and without allocating.
fn number_in(file: &File) -> io::Result<u64> {
    let mut text = [0; LONGEST];
    let length = file.read_at(&mut text, 0)?;
    let digits = text[..length].trim_ascii();
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no number of microjoules"))
}
