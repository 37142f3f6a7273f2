//! RAPL through the registers themselves, `/dev/cpu/N/msr`: the last choice, where perf and powercap are missing.
//!
//! Owns one open register file for each package (msr(4)). Off unless the configuration names it: the file needs
//! CAP_SYS_RAWIO, which lets a program do far worse than read energy. Only reads, only the registers that the processor's
//! model is known to have; one that reads 0 is taken for one that is not there, as the kernel takes it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use crate::clock::Clock;
use crate::domain::{DomainKind, EnergyReading, Grade};

use super::attribute::Attribute;
use super::counter::{Counter, Shape, plausible_ceiling_mw};
use super::msr_layout::{Layout, layout_of};
use super::processor::Processor;
use super::rapl;
use super::suspend::Suspend;
use super::topology::name_places;
use super::unit::Unit;
use super::{Inventory, Opened, Settings, Source};

/// The mechanism's name.
pub const NAME: &str = "msr";

/// The counts are 32 bits wide.
const MODULUS: u128 = 1 << 32;

/// Opens the registers of every package.
pub fn open(settings: &Settings, clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    let processor = Processor::read(&settings.proc_root);
    let Some(layout) = layout_of(&processor) else {
        found.miss(NAME, format!(
            "the processor {:?} family {} model {:#x} has no energy registers that are known here; a newer kernel may \
             know it: use perf",
            processor.vendor, processor.family, processor.model
        ));
        return found;
    };
    let cpus = match cpus_in(&settings.msr_root) {
        Ok(cpus) if !cpus.is_empty() => cpus,
        Ok(_) => return missing(found, settings, &io::Error::from(io::ErrorKind::NotFound)),
        Err(error) => return missing(found, settings, &error),
    };
    // One CPU for each package: the first that has its name.
    let mut places = BTreeMap::new();
    for (cpu, place) in first_of_each(settings, &cpus) {
        places.entry(place).or_insert(cpu);
    }
    for (place, cpu) in places {
        let path = settings.msr_root.join(cpu.to_string()).join("msr");
        match Registers::open(&path, &layout, clock) {
            Ok(registers) => found.opened.push(registers.offered(&place, cpu, processor.rapl_grade())),
            Err(error) => found = missing(found, settings, &error),
        }
    }
    found
}

/// The first CPU of each package or die, with what its domains are called after.
fn first_of_each(settings: &Settings, cpus: &[usize]) -> BTreeMap<usize, String> {
    let mut first = BTreeMap::new();
    for &cpu in cpus {
        let place = super::topology::place_of(&settings.sysfs_root, cpu);
        first.entry(place.map(|place| (place.package, place.die))).or_insert(cpu);
    }
    let first: Vec<usize> = first.into_values().collect();
    name_places(&settings.sysfs_root, &first)
}

fn missing(mut found: Inventory, settings: &Settings, error: &io::Error) -> Inventory {
    let place = settings.msr_root.join("N/msr").display().to_string();
    let mend = match error.kind() {
        io::ErrorKind::NotFound => "load the driver: sudo modprobe msr",
        io::ErrorKind::PermissionDenied => {
            "the registers need root's file mode and CAP_SYS_RAWIO, which is more than reading energy; better give the \
             program CAP_PERFMON and let it read through perf, else: sudo setcap cap_sys_rawio,cap_dac_override=ep PROGRAM"
        }
        _ => "the processor or its host does not let this register be read; use perf or powercap",
    };
    found.miss(NAME, format!("{place}: {error}; {mend}"));
    found
}

/// The CPUs that have a register file.
fn cpus_in(root: &Path) -> io::Result<Vec<usize>> {
    let mut cpus: Vec<usize> =
        fs::read_dir(root)?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    cpus.sort_unstable();
    Ok(cpus)
}

/// One package's registers.
struct Registers {
    file: Attribute,
    meters: Vec<(DomainKind, u64, Unit, Counter)>,
    suspend: Suspend,
    clock: Clock,
}

impl Registers {
    /// Opens `path` and finds which of the layout's registers answer.
    ///
    /// # Errors
    /// The file cannot be opened, its unit not be read, or none of its counters.
    fn open(path: &Path, layout: &Layout, clock: &Clock) -> io::Result<Registers> {
        let mut file = Attribute::open(path.to_path_buf())?;
        // The first read tells what is refused; `Attribute` only says that something is.
        let unit = {
            use std::os::unix::fs::FileExt;
            let mut bytes = [0; 8];
            fs::File::open(path)?.read_exact_at(&mut bytes, layout.unit)?;
            u64::from_le_bytes(bytes)
        };
        let mut meters = Vec::new();
        for &(kind, register) in layout.registers {
            let there = count(&mut file, 0, register).is_some_and(|count| count != 0);
            let Some(unit) = layout.unit_of(kind, unit).filter(|_| there) else { continue };
            let range_uj = u64::try_from(unit.to_uj(MODULUS)).unwrap_or(u64::MAX);
            let shape = Shape {
                unit,
                modulus: MODULUS,
                ceiling_mw: plausible_ceiling_mw(kind),
                staleness_ns: 100_000_000,
                range_uj,
            };
            meters.push((kind, register, unit, Counter::new(shape)));
        }
        if meters.is_empty() {
            return Err(io::Error::other("every energy register reads 0, as in most virtual machines"));
        }
        // One that failed while it was probed left the file closed until it is looked for again.
        let file = Attribute::open(path.to_path_buf())?;
        Ok(Registers { file, meters, suspend: Suspend::new(clock), clock: clock.clone() })
    }

    fn offered(self, place: &str, cpu: usize, grade: Grade) -> Opened {
        let domains: Vec<_> = self
            .meters
            .iter()
            .map(|(kind, _, unit, _)| rapl::domain(NAME, *kind, place, grade, unit.ceil_uj()))
            .collect();
        Opened {
            name: NAME,
            cpu: Some(cpu),
            max_rate_hz: 10_000.0,
            advanced: vec![false; domains.len()],
            domains,
            source: Box::new(self),
        }
    }
}

/// The 32-bit count in a register.
fn count(file: &mut Attribute, now_ns: u64, register: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    let length = file.bytes_at(now_ns, &mut bytes, register)?;
    // The upper half is reserved.
    (length >= 4).then(|| u64::from_le_bytes(bytes) & 0xFFFF_FFFF)
}

impl Source for Registers {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        for ((_, register, _, counter), reading) in self.meters.iter_mut().zip(&mut *into) {
            let before_ns = self.clock.now_ns();
            *reading = match count(&mut self.file, before_ns, *register) {
                Some(count) => counter.advance(count, before_ns, self.clock.now_ns()),
                None => {
                    counter.interrupt();
                    EnergyReading::default()
                }
            };
        }
        if self.suspend.slept() {
            self.meters.iter_mut().for_each(|(.., counter)| counter.interrupt());
            into.fill(EnergyReading::default());
        }
        None
    }
}
