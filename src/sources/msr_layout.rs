//! The energy registers of x86 processors: which there are, and in what units they count.
//!
//! Owns the makers' quirks by family and model, after linux arch/x86/events/rapl.c and
//! drivers/powercap/intel_rapl_common.c. A processor that is not known here has no layout; a unit is never guessed. Pure.

use crate::domain::DomainKind;

use super::cpu_info::CpuInfo;
use super::energy_unit::EnergyUnit;

/// Where a processor counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrLayout {
    /// The register with the unit in bits 12:8.
    pub unit_register: u64,
    /// What is counted in which register.
    pub registers: &'static [(DomainKind, u64)],
    quirk: UnitQuirk,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnitQuirk {
    None,
    /// The unit is 2^ESU µJ (Silvermont and Airmont).
    AtomUnit,
    /// Memory counts in 2^-16 J whatever the unit says.
    ServerDram,
    /// That, and the platform in whole joules (Sapphire and Emerald Rapids).
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

/// The layout of a processor; `None` for one that has no such registers or is not known.
pub fn layout_for(cpu_info: &CpuInfo) -> Option<MsrLayout> {
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
    /// What one count of `kind` stands for, with what the unit's register says.
    pub fn unit_of(&self, kind: DomainKind, register: u64) -> Option<EnergyUnit> {
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
        layout_for(&CpuInfo { vendor: vendor.into(), family, model, is_guest: false })
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
    fn a_processor_that_is_not_known_has_no_layout() {
        assert_eq!(layout("GenuineIntel", 6, 0x1A), None, "Nehalem");
        assert_eq!(layout("GenuineIntel", 15, 4), None);
        assert_eq!(layout("AuthenticAMD", 0x15, 2), None, "Bulldozer");
        assert_eq!(layout("", 0, 0), None);
    }
}
