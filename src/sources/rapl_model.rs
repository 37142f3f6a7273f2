//! The RAPL registers of each processor model, and their units: one table for all mechanisms.
//!
//! The registers follow linux arch/x86/events/rapl.c and drivers/powercap/intel_rapl_common.c; each unit that differs from
//! the unit register has the kernel commit that states it. Kernels before such a commit show wrong figures, so a mechanism
//! asks here for the true unit. A kernel's version number does not say whether it has a fix, since fixes are backported.

use crate::domain::DomainKind;

use super::cpu_info::CpuInfo;
use super::energy_unit::EnergyUnit;

/// The energy registers of a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaplModel {
    /// The register with the unit in bits 12:8.
    pub(super) unit_register: u64,
    /// The register of each domain kind.
    pub(super) registers: &'static [(DomainKind, u64)],
    quirk: UnitQuirk,
}

/// The unit of one register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RegisterUnit {
    /// That of the unit register: 2^-ESU J.
    Standard,
    /// 2^ESU µJ.
    AtomMicrojoules,
    /// Independent of the unit register: 2^-n J.
    Fixed(u32),
}

/// The first release of the kernel with a unit, and the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UnitFix {
    /// Major and minor version.
    pub(super) release: (u32, u32),
    /// The commit in Linus Torvalds's tree.
    pub(super) commit: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnitQuirk {
    None,
    /// The unit is 2^ESU µJ (Silvermont and Airmont: `rapl_check_unit_atom` in intel_rapl_common.c).
    AtomUnit,
    /// Memory counts in 2^-16 J (`RAPL_UNIT_QUIRK_INTEL_HSW` in rapl.c, `dram_domain_energy_unit` in powercap).
    ServerDram,
    /// Psys counts whole joules (commit 838342a6d6b7). Memory has the standard unit, which older kernels did not know
    /// (commit 80275ca9e525 for perf, 4c081324df56 for powercap).
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

impl RaplModel {
    /// The registers of a processor; `None` if it has none or is unknown.
    pub(super) fn of(cpu_info: &CpuInfo) -> Option<Self> {
        match (cpu_info.vendor.as_str(), cpu_info.family) {
            ("GenuineIntel", 6) => intel_model(cpu_info.model),
            // Zen and later; Hygon's are Zen.
            ("AuthenticAMD", 0x17..) | ("HygonGenuine", 0x18) => {
                Some(Self { unit_register: 0xC001_0299, registers: AMD, quirk: UnitQuirk::None })
            }
            _ => None,
        }
    }

    /// The unit of the register of `kind`.
    pub(super) fn unit(&self, kind: DomainKind) -> RegisterUnit {
        match (self.quirk, kind) {
            (UnitQuirk::AtomUnit, _) => RegisterUnit::AtomMicrojoules,
            (UnitQuirk::ServerDram, DomainKind::Dram) => RegisterUnit::Fixed(16),
            (UnitQuirk::SapphireRapids, DomainKind::Psys) => RegisterUnit::Fixed(0),
            _ => RegisterUnit::Standard,
        }
    }

    /// The energy of one count of `kind`, from the value of the unit register.
    pub(super) fn unit_from_register(&self, kind: DomainKind, register: u64) -> Option<EnergyUnit> {
        let shift = (register >> 8) as u32 & 0x1F;
        match self.unit(kind) {
            RegisterUnit::Standard => EnergyUnit::joules_over_power_of_two(shift),
            RegisterUnit::AtomMicrojoules => EnergyUnit::from_fraction(1 << shift, 1),
            RegisterUnit::Fixed(shift) => EnergyUnit::joules_over_power_of_two(shift),
        }
    }

    /// The commit of perf before which the kernel counts `kind` in a wrong unit; `None` if all kernels are right.
    pub(super) fn perf_fix(&self, kind: DomainKind) -> Option<UnitFix> {
        match (self.quirk, kind) {
            (UnitQuirk::SapphireRapids, DomainKind::Dram) => {
                Some(UnitFix { release: (6, 1), commit: "80275ca9e525" })
            }
            (UnitQuirk::SapphireRapids, DomainKind::Psys) => {
                Some(UnitFix { release: (5, 17), commit: "838342a6d6b7" })
            }
            _ => None,
        }
    }

    /// Whether powercap of some kernels shows `kind` in a wrong unit, which the zone's range then shows.
    pub(super) fn has_powercap_fix(&self, kind: DomainKind) -> bool {
        self.perf_fix(kind).is_some()
    }
}

fn intel_model(model: u32) -> Option<RaplModel> {
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
    Some(RaplModel { unit_register: 0x606, registers, quirk })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(vendor: &str, family: u32, model: u32) -> Option<RaplModel> {
        RaplModel::of(&CpuInfo { vendor: vendor.into(), family, model, ..CpuInfo::default() })
    }

    fn joules(shift: u32) -> Option<EnergyUnit> {
        EnergyUnit::joules_over_power_of_two(shift)
    }

    #[test]
    fn units_follow_the_register_but_for_the_quirks() {
        // 0xA0E03: ESU 14; 0xA1003: ESU 16.
        let client = model("GenuineIntel", 6, 0x9E).unwrap();
        assert_eq!(client.unit_from_register(DomainKind::Package, 0xA_0E03), joules(14));
        let server = model("GenuineIntel", 6, 0x55).unwrap();
        assert_eq!(server.unit_from_register(DomainKind::Package, 0xA_0E03), joules(14));
        assert_eq!(server.unit_from_register(DomainKind::Dram, 0xA_0E03), joules(16));
        for rapids in [0x8F, 0xCF].map(|number| model("GenuineIntel", 6, number).unwrap()) {
            // Linux commit 80275ca9e525: the standard unit. 2^-16 J would be a quarter.
            assert_eq!(rapids.unit_from_register(DomainKind::Dram, 0xA_0E03), joules(14));
            assert_eq!(rapids.unit_from_register(DomainKind::Psys, 0xA_0E03), joules(0));
        }
        let amd = model("AuthenticAMD", 0x19, 1).unwrap();
        assert_eq!(amd.unit_from_register(DomainKind::Package, 0xA_1003), joules(16));
        // 2^5 µJ on Silvermont.
        assert_eq!(
            model("GenuineIntel", 6, 0x37).unwrap().unit_from_register(DomainKind::Package, 0x0505),
            EnergyUnit::from_fraction(32, 1)
        );
    }

    #[test]
    fn unknown_processor_has_no_registers() {
        assert_eq!(model("GenuineIntel", 6, 0x1A), None, "Nehalem");
        assert_eq!(model("GenuineIntel", 15, 4), None);
        assert_eq!(model("AuthenticAMD", 0x15, 2), None, "Bulldozer");
        assert_eq!(model("", 0, 0), None);
    }
}
