//! RAPL through the model-specific registers in `/dev/cpu/N/msr`, for systems without perf and powercap.
//!
//! Owns one open register file for each package (msr(4)). Off by default: the file needs CAP_SYS_RAWIO, which allows far
//! more than reading energy. Reads only the registers that the processor's model has. A register that reads 0 counts as
//! missing, as in the kernel. The layouts follow linux arch/x86/events/rapl.c and
//! drivers/powercap/intel_rapl_common.c; an unknown processor has no layout.

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
use super::suspend_detector::SuspendDetector;
use super::sysfs_file::SysfsFile;
use super::topology::package_names;
use super::{Inventory, OpenedSource, Source, SourceSettings, rapl};

/// The counts are 32 bits wide.
const MODULUS: u128 = 1 << 32;

/// Opens the registers of every package.
pub fn open(settings: &SourceSettings, clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    let cpu_info = CpuInfo::read(&settings.proc_root);
    let Some(layout) = layout_for(&cpu_info) else {
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
        let path = settings.msr_root.join(cpu.to_string()).join("msr");
        match MsrSource::open(&path, &layout, clock) {
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
    fn open(path: &Path, layout: &MsrLayout, clock: &Clock) -> io::Result<MsrSource> {
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
        // A register that failed in the probe closed the file, so it is opened again.
        let file = SysfsFile::open(path.to_path_buf())?;
        Ok(MsrSource {
            file,
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
            .map(|(kind, _, unit, _)| rapl::domain(NAME, *kind, package, grade, unit.ceil_uj()))
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

    /// A read asks another CPU at most, by an interrupt.
    fn can_block(&self) -> bool {
        false
    }

    fn read_power_limits(&mut self, into: &mut [PowerLimits]) -> bool {
        rapl_limits::read_all(&mut self.limits, self.clock.now_ns(), into);
        true
    }
}

/// The energy registers of a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MsrLayout {
    /// The register with the unit in bits 12:8.
    unit_register: u64,
    /// The register of each domain kind.
    registers: &'static [(DomainKind, u64)],
    quirk: UnitQuirk,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnitQuirk {
    None,
    /// The unit is 2^ESU µJ (Silvermont and Airmont).
    AtomUnit,
    /// Memory counts in 2^-16 J, independent of the unit register.
    ServerDram,
    /// As `ServerDram`, and psys counts whole joules (Sapphire and Emerald Rapids).
    SapphireRapids,
}

const CLIENT: &[(DomainKind, u64)] = &[
    (DomainKind::Package, 0x611),
    (DomainKind::Core, 0x639),
    (DomainKind::Uncore, 0x641),
    (DomainKind::Dram, 0x619),
];
const CLIENT_WITH_PSYS: &[(DomainKind, u64)] = &[
    (DomainKind::Psys, 0x64D),
    (DomainKind::Package, 0x611),
    (DomainKind::Core, 0x639),
    (DomainKind::Uncore, 0x641),
    (DomainKind::Dram, 0x619),
];
const SERVER: &[(DomainKind, u64)] =
    &[(DomainKind::Package, 0x611), (DomainKind::Core, 0x639), (DomainKind::Dram, 0x619)];
const SERVER_WITH_PSYS: &[(DomainKind, u64)] = &[
    (DomainKind::Psys, 0x64D),
    (DomainKind::Package, 0x611),
    (DomainKind::Core, 0x639),
    (DomainKind::Dram, 0x619),
];
const CLIENT_WITHOUT_DRAM: &[(DomainKind, u64)] =
    &[(DomainKind::Package, 0x611), (DomainKind::Core, 0x639), (DomainKind::Uncore, 0x641)];
const ATOM: &[(DomainKind, u64)] = &[(DomainKind::Package, 0x611), (DomainKind::Core, 0x639)];
const XEON_PHI: &[(DomainKind, u64)] = &[(DomainKind::Package, 0x611), (DomainKind::Dram, 0x619)];
const AMD: &[(DomainKind, u64)] = &[(DomainKind::Package, 0xC001_029B)];

/// The layout of a processor; `None` if it has no such registers or is unknown.
fn layout_for(cpu_info: &CpuInfo) -> Option<MsrLayout> {
    match (cpu_info.vendor.as_str(), cpu_info.family) {
        ("GenuineIntel", 6) => intel_layout(cpu_info.model),
        // Zen and later; Hygon's are Zen.
        ("AuthenticAMD", 0x17..) | ("HygonGenuine", 0x18) => {
            Some(MsrLayout { unit_register: 0xC001_0299, registers: AMD, quirk: UnitQuirk::None })
        }
        _ => None,
    }
}

fn intel_layout(model: u32) -> Option<MsrLayout> {
    let (registers, quirk) = match model {
        // Sandy and Ivy Bridge: client, then server.
        0x2A | 0x3A => (CLIENT_WITHOUT_DRAM, UnitQuirk::None),
        0x2D | 0x3E => (SERVER, UnitQuirk::None),
        // Haswell, Broadwell, Goldmont, Goldmont Plus, Tremont.
        0x3C | 0x45 | 0x46 | 0x3D | 0x47 | 0x5C | 0x5F | 0x7A | 0x86 | 0x96 | 0x9C => {
            (CLIENT, UnitQuirk::None)
        }
        // Haswell-X, Broadwell-X and -D, Skylake-X, Ice Lake-X and -D.
        0x3F | 0x4F | 0x56 | 0x55 | 0x6A | 0x6C => (SERVER, UnitQuirk::ServerDram),
        // Xeon Phi.
        0x57 | 0x85 => (XEON_PHI, UnitQuirk::ServerDram),
        // Sapphire and Emerald Rapids.
        0x8F | 0xCF => (SERVER_WITH_PSYS, UnitQuirk::SapphireRapids),
        // Skylake to Lunar Lake, client.
        0x4E | 0x5E | 0x8E | 0x9E | 0xA5 | 0xA6 | 0x66 | 0x7D | 0x7E | 0x8C | 0x8D | 0xA7 | 0x97 | 0x9A
        | 0xB7 | 0xBA | 0xBE | 0xBF | 0xAA | 0xAC | 0xB5 | 0xBD | 0xC5 | 0xC6 => {
            (CLIENT_WITH_PSYS, UnitQuirk::None)
        }
        // Silvermont and Airmont.
        0x37 | 0x4A | 0x4C | 0x4D | 0x5A | 0x5D => (ATOM, UnitQuirk::AtomUnit),
        _ => return None,
    };
    Some(MsrLayout { unit_register: 0x606, registers, quirk })
}

impl MsrLayout {
    /// The energy of one count of `kind`, from the value of the unit register.
    fn unit_of(&self, kind: DomainKind, register: u64) -> Option<EnergyUnit> {
        let shift = (register >> 8) as u32 & 0x1F;
        match (self.quirk, kind) {
            (UnitQuirk::AtomUnit, _) => EnergyUnit::from_fraction(1 << shift, 1),
            (UnitQuirk::ServerDram | UnitQuirk::SapphireRapids, DomainKind::Dram) => {
                Some(EnergyUnit::TWO_TO_THE_MINUS_16_JOULES)
            }
            (UnitQuirk::SapphireRapids, DomainKind::Psys) => EnergyUnit::joules_over_power_of_two(0),
            _ => EnergyUnit::joules_over_power_of_two(shift),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(vendor: &str, family: u32, model: u32) -> Option<MsrLayout> {
        layout_for(&CpuInfo { vendor: vendor.into(), family, model, ..CpuInfo::default() })
    }

    fn joules(shift: u32) -> Option<EnergyUnit> {
        EnergyUnit::joules_over_power_of_two(shift)
    }

    #[test]
    fn units_follow_the_register_but_for_the_quirks() {
        // 0xA0E03: ESU 14; 0xA1003: ESU 16.
        let client = layout("GenuineIntel", 6, 0x9E).unwrap();
        assert_eq!(client.unit_of(DomainKind::Package, 0xA_0E03), joules(14));
        let server = layout("GenuineIntel", 6, 0x55).unwrap();
        assert_eq!(server.unit_of(DomainKind::Package, 0xA_0E03), joules(14));
        assert_eq!(server.unit_of(DomainKind::Dram, 0xA_0E03), joules(16));
        let rapids = layout("GenuineIntel", 6, 0xCF).unwrap();
        assert_eq!(rapids.unit_of(DomainKind::Dram, 0xA_0E03), joules(16));
        assert_eq!(rapids.unit_of(DomainKind::Psys, 0xA_0E03), joules(0));
        assert_eq!(
            layout("AuthenticAMD", 0x19, 1).unwrap().unit_of(DomainKind::Package, 0xA_1003),
            joules(16)
        );
        // 2^5 µJ on Silvermont.
        assert_eq!(
            layout("GenuineIntel", 6, 0x37).unwrap().unit_of(DomainKind::Package, 0x0505),
            EnergyUnit::from_fraction(32, 1)
        );
    }

    #[test]
    fn unknown_processor_has_no_layout() {
        assert_eq!(layout("GenuineIntel", 6, 0x1A), None, "Nehalem");
        assert_eq!(layout("GenuineIntel", 15, 4), None);
        assert_eq!(layout("AuthenticAMD", 0x15, 2), None, "Bulldozer");
        assert_eq!(layout("", 0, 0), None);
    }
}
