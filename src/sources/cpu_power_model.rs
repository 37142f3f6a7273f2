//! Power of the logical CPUs of a server, idle and at full load, by the processor's family: the model of the estimate.
//!
//! The figures are the coefficients of Cloud Carbon Footprint (Apache-2.0; github.com/cloud-carbon-footprint/ccf-coefficients
//! at b0032d928c78, output/coefficients-aws-use.csv): for each family the means of the SPECpower_ssj2008 results, power of
//! the whole server at the mains divided by its threads. A single server of the family may be outside of them.

use super::cpu_info::CpuInfo;

/// The power of all CPUs together, in milliwatts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuPowerModel {
    /// The estimate for idle CPUs, and for busy ones; linear between them.
    pub idle_mw: u64,
    pub busy_mw: u64,
    /// The power is assumed to lie between these.
    pub low_mw: u64,
    pub high_mw: u64,
    /// Where the model comes from, as the protocol shows the origin of a ceiling.
    pub origin: &'static str,
}

impl CpuPowerModel {
    /// The model with these powers of all CPUs together.
    pub fn configured(idle_mw: u64, max_mw: u64) -> Self {
        let max_mw = max_mw.max(idle_mw);
        Self { idle_mw, busy_mw: max_mw, low_mw: idle_mw, high_mw: max_mw, origin: "configured" }
    }

    /// The model of so many logical CPUs of this processor.
    pub fn of(cpu_info: &CpuInfo, cpus: u64) -> Self {
        let model = server_family(cpu_info)
            .and_then(|family| FAMILIES.iter().find(|known| known.name == family))
            .map_or_else(unknown_family, |known| Self {
                idle_mw: known.idle_mw,
                busy_mw: known.max_mw,
                low_mw: known.idle_mw,
                high_mw: known.max_mw,
                origin: known.origin,
            });
        Self {
            idle_mw: cpus * model.idle_mw,
            busy_mw: cpus * model.busy_mw,
            low_mw: cpus * model.low_mw,
            high_mw: cpus * model.high_mw,
            ..model
        }
    }
}

/// A logical CPU of an unknown family: the lowest and the highest of the means over all families that Cloud Carbon Footprint
/// publishes for the large clouds (AWS 0.74 to 3.5, Azure 0.74 to 3.54, Google 0.68 to 4.11 W), between the lowest and the
/// highest figure of any family.
fn unknown_family() -> CpuPowerModel {
    CpuPowerModel {
        idle_mw: 680,
        busy_mw: 4_110,
        low_mw: FAMILIES.iter().map(|family| family.idle_mw).min().unwrap_or(0),
        high_mw: FAMILIES.iter().map(|family| family.max_mw).max().unwrap_or(0),
        origin: "Cloud Carbon Footprint, all families",
    }
}

/// The coefficients of one family: the power of a logical CPU.
struct FamilyCoefficients {
    name: &'static str,
    origin: &'static str,
    idle_mw: u64,
    max_mw: u64,
}

macro_rules! families {
    ($($name:literal: $idle_mw:literal to $max_mw:literal;)*) => {
        [$(FamilyCoefficients {
            name: $name,
            origin: concat!("Cloud Carbon Footprint, ", $name),
            idle_mw: $idle_mw,
            max_mw: $max_mw,
        }),*]
    };
}

/// In milliwatts, rounded. Without "EPYC 5th Gen", whose published value is a mean over processors of all families, and
/// without Graviton, whose values are those of EPYC 2nd Gen.
const FAMILIES: [FamilyCoefficients; 15] = families! {
    "Sandy Bridge": 2_212 to 8_631;
    "Ivy Bridge": 1_707 to 5_557;
    "Haswell": 1_857 to 5_595;
    "Broadwell": 713 to 3_685;
    "Skylake": 613 to 4_104;
    "Cascade Lake": 690 to 4_063;
    "Coffee Lake": 1_138 to 5_422;
    "Ice Lake": 767 to 3_758;
    "Sapphire Rapids": 1_036 to 4_160;
    "Emerald Rapids": 814 to 4_482;
    "Granite Rapids": 582 to 2_527;
    "EPYC 1st Gen": 847 to 2_604;
    "EPYC 2nd Gen": 474 to 1_693;
    "EPYC 3rd Gen": 456 to 1_957;
    "EPYC 4th Gen": 739 to 2_282;
};

/// The family of a server's processor (linux arch/x86/include/asm/intel-family.h, arch/x86/kernel/cpu/amd.c). Processors of
/// one model that are sold for desktops are not what the coefficients describe.
fn server_family(cpu_info: &CpuInfo) -> Option<&'static str> {
    if !cpu_info.is_server {
        return None;
    }
    match (cpu_info.vendor.as_str(), cpu_info.family, cpu_info.model) {
        ("GenuineIntel", 6, 0x2A | 0x2D) => Some("Sandy Bridge"),
        ("GenuineIntel", 6, 0x3A | 0x3E) => Some("Ivy Bridge"),
        ("GenuineIntel", 6, 0x3C | 0x3F) => Some("Haswell"),
        ("GenuineIntel", 6, 0x47 | 0x4F | 0x56) => Some("Broadwell"),
        ("GenuineIntel", 6, 0x5E) => Some("Skylake"),
        // One model for both (linux tools/perf/pmu-events/arch/x86/mapfile.csv).
        ("GenuineIntel", 6, 0x55) if cpu_info.stepping < 5 => Some("Skylake"),
        ("GenuineIntel", 6, 0x55) => Some("Cascade Lake"),
        // Steppings 9 and below are Kaby Lake.
        ("GenuineIntel", 6, 0x9E) if cpu_info.stepping > 9 => Some("Coffee Lake"),
        ("GenuineIntel", 6, 0x6A | 0x6C) => Some("Ice Lake"),
        ("GenuineIntel", 6, 0x8F) => Some("Sapphire Rapids"),
        ("GenuineIntel", 6, 0xCF) => Some("Emerald Rapids"),
        ("GenuineIntel", 6, 0xAD | 0xAE) => Some("Granite Rapids"),
        ("AuthenticAMD", 0x17, 0x00..=0x2F) => Some("EPYC 1st Gen"),
        ("AuthenticAMD", 0x17, 0x30..=0x4F) => Some("EPYC 2nd Gen"),
        ("AuthenticAMD", 0x19, 0x00..=0x0F) => Some("EPYC 3rd Gen"),
        ("AuthenticAMD", 0x19, 0x10..=0x1F | 0xA0..=0xAF) => Some("EPYC 4th Gen"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_known_family_has_coefficients_within_the_interval_of_an_unknown_one() {
        let unknown = unknown_family();
        for (vendor, family) in [("GenuineIntel", 6), ("AuthenticAMD", 0x17), ("AuthenticAMD", 0x19)] {
            for (model, stepping) in (0..=0xFF).flat_map(|model| [(model, 4), (model, 10)]) {
                let cpu_info = CpuInfo {
                    vendor: vendor.into(),
                    family,
                    model,
                    stepping,
                    is_server: true,
                    ..CpuInfo::default()
                };
                let Some(name) = server_family(&cpu_info) else { continue };
                let known = CpuPowerModel::of(&cpu_info, 1);
                assert!(known.origin.ends_with(name), "{name}: {known:?}");
                assert!(known.low_mw < known.high_mw && known.low_mw >= unknown.low_mw, "{name}");
                assert!(known.high_mw <= unknown.high_mw, "{name}");
                assert!(known.high_mw - known.low_mw < unknown.high_mw - unknown.low_mw, "{name}");
            }
        }
    }
}
