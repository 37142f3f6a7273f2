//! RAPL through the registers themselves, `/dev/cpu/N/msr`: the last choice, where perf and powercap are missing.
//!
//! Owns one open register file for each package (msr(4)). Off unless the configuration names it: the file needs
//! CAP_SYS_RAWIO, which lets a program do far worse than read energy. Only reads, only the registers that the processor's
//! model is known to have; one that reads 0 is taken for one that is not there, as the kernel takes it.

pub use crate::sources::source_settings::MSR as NAME;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use crate::clock::Clock;
use crate::domain::{DomainKind, EnergyReading, Grade};

use super::counter::{Counter, CounterSpec, plausible_ceiling_mw};
use super::cpu_info::CpuInfo;
use super::energy_unit::EnergyUnit;
use super::msr_layout::{MsrLayout, layout_for};
use super::rapl;
use super::suspend_detector::SuspendDetector;
use super::sysfs_file::SysfsFile;
use super::topology::package_names;
use super::{Inventory, OpenedSource, Source, SourceSettings};

/// The counts are 32 bits wide.
const MODULUS: u128 = 1 << 32;

/// Opens the registers of every package.
pub fn open(settings: &SourceSettings, clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    let cpu_info = CpuInfo::read(&settings.proc_root);
    let Some(layout) = layout_for(&cpu_info) else {
        found.add_absent(NAME, format!(
            "the processor {:?} family {} model {:#x} has no energy registers that are known here; a newer kernel may \
             know it: use perf",
            cpu_info.vendor, cpu_info.family, cpu_info.model
        ));
        return found;
    };
    let cpus = match list_cpus(&settings.msr_root) {
        Ok(cpus) if !cpus.is_empty() => cpus,
        Ok(_) => return add_unavailable(found, settings, &io::Error::from(io::ErrorKind::NotFound)),
        Err(error) => return add_unavailable(found, settings, &error),
    };
    // One CPU for each package: the first that has its name.
    let mut packages = BTreeMap::new();
    for (cpu, package) in first_cpu_per_package(settings, &cpus) {
        packages.entry(package).or_insert(cpu);
    }
    for (package, cpu) in packages {
        let path = settings.msr_root.join(cpu.to_string()).join("msr");
        match MsrSource::open(&path, &layout, clock) {
            Ok(registers) => found.opened.push(registers.into_opened(&package, cpu, cpu_info.rapl_grade())),
            Err(error) => found = add_unavailable(found, settings, &error),
        }
    }
    found
}

/// The first CPU of each package or die, with what its domains are called after.
fn first_cpu_per_package(settings: &SourceSettings, cpus: &[usize]) -> BTreeMap<usize, String> {
    let mut first = BTreeMap::new();
    for &cpu in cpus {
        let location = super::topology::cpu_location(&settings.sysfs_root, cpu);
        first.entry(location.map(|location| (location.package, location.die))).or_insert(cpu);
    }
    let first: Vec<usize> = first.into_values().collect();
    package_names(&settings.sysfs_root, &first)
}

fn add_unavailable(mut found: Inventory, settings: &SourceSettings, error: &io::Error) -> Inventory {
    let path = settings.msr_root.join("N/msr").display().to_string();
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => "load the driver: sudo modprobe msr",
        io::ErrorKind::PermissionDenied => {
            "the registers need root's file mode and CAP_SYS_RAWIO, which is more than reading energy; better give the \
             program CAP_PERFMON and let it read through perf, else: sudo setcap cap_sys_rawio,cap_dac_override=ep PROGRAM"
        }
        _ => "the processor or its host does not let this register be read; use perf or powercap",
    };
    found.add_absent(NAME, format!("{path}: {error}; {remedy}"));
    found
}

/// The CPUs that have a register file.
fn list_cpus(root: &Path) -> io::Result<Vec<usize>> {
    let mut cpus: Vec<usize> =
        fs::read_dir(root)?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    cpus.sort_unstable();
    Ok(cpus)
}

/// One package's registers.
struct MsrSource {
    file: SysfsFile,
    counters: Vec<(DomainKind, u64, EnergyUnit, Counter)>,
    suspend: SuspendDetector,
    clock: Clock,
}

impl MsrSource {
    /// Opens `path` and finds which of the layout's registers answer.
    ///
    /// # Errors
    /// The file cannot be opened, its unit not be read, or none of its counters.
    fn open(path: &Path, layout: &MsrLayout, clock: &Clock) -> io::Result<MsrSource> {
        let mut file = SysfsFile::open(path.to_path_buf())?;
        // The first read tells what is refused; `SysfsFile` only says that something is.
        let unit = {
            use std::os::unix::fs::FileExt;
            let mut bytes = [0; 8];
            fs::File::open(path)?.read_exact_at(&mut bytes, layout.unit_register)?;
            u64::from_le_bytes(bytes)
        };
        let mut counters = Vec::new();
        for &(kind, register) in layout.registers {
            let there = read_count(&mut file, 0, register).is_some_and(|count| count != 0);
            let Some(unit) = layout.unit_of(kind, unit).filter(|_| there) else { continue };
            let range_uj = u64::try_from(unit.to_uj(MODULUS)).unwrap_or(u64::MAX);
            let shape = CounterSpec {
                unit,
                modulus: MODULUS,
                ceiling_mw: plausible_ceiling_mw(kind),
                staleness_ns: 100_000_000,
                range_uj,
            };
            counters.push((kind, register, unit, Counter::new(shape)));
        }
        if counters.is_empty() {
            return Err(io::Error::other("every energy register reads 0, as in most virtual machines"));
        }
        // One that failed while it was probed left the file closed until it is looked for again.
        let file = SysfsFile::open(path.to_path_buf())?;
        Ok(MsrSource { file, counters, suspend: SuspendDetector::new(clock), clock: clock.clone() })
    }

    fn into_opened(self, package: &str, cpu: usize, grade: Grade) -> OpenedSource {
        let domains: Vec<_> = self
            .counters
            .iter()
            .map(|(kind, _, unit, _)| rapl::domain(NAME, *kind, package, grade, unit.ceil_uj()))
            .collect();
        OpenedSource {
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
fn read_count(file: &mut SysfsFile, now_ns: u64, register: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    let length = file.read_bytes_at(now_ns, &mut bytes, register)?;
    // The upper half is reserved.
    (length >= 4).then(|| u64::from_le_bytes(bytes) & 0xFFFF_FFFF)
}

impl Source for MsrSource {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        for ((_, register, _, counter), reading) in self.counters.iter_mut().zip(&mut *into) {
            let before_ns = self.clock.now_ns();
            *reading = match read_count(&mut self.file, before_ns, *register) {
                Some(count) => counter.advance(count, before_ns, self.clock.now_ns()),
                None => {
                    counter.interrupt();
                    EnergyReading::default()
                }
            };
        }
        if self.suspend.has_suspended() {
            self.counters.iter_mut().for_each(|(.., counter)| counter.interrupt());
            into.fill(EnergyReading::default());
        }
        None
    }
}
