//! RAPL through the model-specific registers in `/dev/cpu/N/msr`, for systems without perf and powercap.
//!
//! Owns one open register file for each package (msr(4)). Off by default: the file needs CAP_SYS_RAWIO, which allows far
//! more than reading energy. Reads only the registers that the processor's model has. A register that reads 0 counts as
//! missing, as in the kernel. The layouts and units are those of `rapl_model`; an unknown processor has none.

pub use crate::sources::source_settings::MSR as NAME;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use crate::clock::Clock;
use crate::domain::{DomainKind, EnergyReading, Grade, PowerLimits};

use super::counter::{Counter, CounterSpec, plausible_ceiling_mw};
use super::cpu_info::CpuInfo;
use super::energy_unit::EnergyUnit;
use super::rapl_limits::{self, RaplLimits};
use super::rapl_model::RaplModel;
use super::suspend_detector::SuspendDetector;
use super::sysfs_file::SysfsFile;
use super::topology::{package_names, sibling_cpu};
use super::{Inventory, OpenedSource, Source, SourceSettings, rapl};

/// The counts are 32 bits wide.
const MODULUS: u128 = 1 << 32;

/// Opens the registers of every package.
pub fn open(settings: &SourceSettings, clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    let cpu_info = CpuInfo::read(&settings.proc_root);
    let Some(layout) = RaplModel::of(&cpu_info) else {
        found.add_absent(NAME, format!(
            "the processor {:?} family {} model {:#x} has no known energy registers; use perf, which a newer kernel \
             may support on it",
            cpu_info.vendor, cpu_info.family, cpu_info.model
        ));
        return found;
    };
    let cpus = match list_cpus(&settings.msr_root) {
        Ok(cpus) if !cpus.is_empty() => cpus,
        Ok(_) => return add_unavailable(found, settings, &io::Error::from(io::ErrorKind::NotFound)),
        Err(error) => return add_unavailable(found, settings, &error),
    };
    // The first CPU of each package.
    let mut packages = BTreeMap::new();
    for (cpu, package) in first_cpu_per_package(settings, &cpus) {
        packages.entry(package).or_insert(cpu);
    }
    for (package, cpu) in packages {
        let path = |cpu: usize| settings.msr_root.join(cpu.to_string()).join("msr");
        let standby = sibling_cpu(&settings.sysfs_root, cpu).map(path);
        match MsrSource::open(&path(cpu), standby.as_deref(), &layout, clock) {
            Ok(registers) => {
                found.opened.push(registers.into_opened(settings, &package, cpu, cpu_info.rapl_grade()));
            }
            Err(error) => found = add_unavailable(found, settings, &error),
        }
    }
    found
}

/// The first CPU of each package or die, with the package part of its domain names.
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
            "the registers need read permission and CAP_SYS_RAWIO, which allows more than reading energy; prefer \
             CAP_PERFMON and the source perf, else: sudo setcap cap_sys_rawio,cap_dac_override=ep PROGRAM"
        }
        _ => "the processor or its host does not allow reads of this register; use perf or powercap",
    };
    found.add_failed(NAME, error, format!("{path}: {error}; {remedy}"));
    found
}

/// The CPUs that have a register file.
fn list_cpus(root: &Path) -> io::Result<Vec<usize>> {
    let mut cpus: Vec<usize> =
        fs::read_dir(root)?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    cpus.sort_unstable();
    Ok(cpus)
}

struct MsrSource {
    file: SysfsFile,
    /// The file of another CPU of the package, for when this one goes offline. Open from the start, because the privilege to
    /// open it is dropped.
    standby: Option<SysfsFile>,
    counters: Vec<(DomainKind, u64, EnergyUnit, Counter)>,
    /// Of each domain, in the order of the counters.
    limits: Vec<RaplLimits>,
    suspend: SuspendDetector,
    clock: Clock,
}

impl MsrSource {
    /// Opens `path` and finds the readable registers of the layout.
    ///
    /// # Errors
    /// The file cannot be opened, or its unit or all of its counters cannot be read.
    fn open(path: &Path, standby: Option<&Path>, layout: &RaplModel, clock: &Clock) -> io::Result<MsrSource> {
        let mut file = SysfsFile::open(path.to_path_buf())?;
        // A direct read gives the error; `SysfsFile` drops it.
        let unit = {
            use std::os::unix::fs::FileExt;
            let mut bytes = [0; 8];
            fs::File::open(path)?.read_exact_at(&mut bytes, layout.unit_register)?;
            u64::from_le_bytes(bytes)
        };
        let mut counters = Vec::new();
        for &(kind, register) in layout.registers {
            let there = read_count(&mut file, 0, register).is_some_and(|count| count != 0);
            let Some(unit) = layout.unit_from_register(kind, unit).filter(|_| there) else { continue };
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
        // A register that failed in the probe closed the file, so it is opened again.
        let file = SysfsFile::open(path.to_path_buf())?;
        Ok(MsrSource {
            file,
            standby: standby.and_then(|path| SysfsFile::open(path.to_path_buf()).ok()),
            counters,
            limits: Vec::new(),
            suspend: SuspendDetector::new(clock),
            clock: clock.clone(),
        })
    }

    fn into_opened(
        mut self,
        settings: &SourceSettings,
        package: &str,
        cpu: usize,
        grade: Grade,
    ) -> OpenedSource {
        let domains: Vec<_> = self
            .counters
            .iter()
            .map(|(kind, _, unit, _)| rapl::domain(NAME, *kind, package, grade, unit.quantum_uj()))
            .collect();
        self.limits = domains.iter().map(|domain| RaplLimits::open(settings, domain)).collect();
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
        let mut is_offline = true;
        for ((_, register, _, counter), reading) in self.counters.iter_mut().zip(&mut *into) {
            let before_ns = self.clock.now_ns();
            *reading = match read_count(&mut self.file, before_ns, *register) {
                Some(count) => {
                    is_offline = false;
                    counter.advance(count, before_ns, self.clock.now_ns())
                }
                None => {
                    counter.interrupt();
                    EnergyReading::default()
                }
            };
        }
        if let Some(standby) = self.standby.as_mut().filter(|_| is_offline) {
            // The next read uses the other CPU; the time until then is a gap.
            std::mem::swap(&mut self.file, standby);
        }
        if self.suspend.has_suspended() {
            self.counters.iter_mut().for_each(|(.., counter)| counter.interrupt());
            into.fill(EnergyReading::default());
        }
        None
    }

    /// A read asks another CPU at most, by an interrupt.
    fn can_block(&self) -> bool {
        false
    }

    fn read_power_limits(&mut self, into: &mut [PowerLimits]) -> bool {
        rapl_limits::read_all(&mut self.limits, self.clock.now_ns(), into);
        true
    }
}
