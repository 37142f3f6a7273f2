//! The parser of `/proc/cpuinfo`: vendor, family, model and stepping of the processor.
//!
//! Every field is optional: other architectures than x86 have other fields, and the values are then empty.

use std::fs;
use std::path::Path;

use crate::domain::Grade;

/// The first processor of `/proc/cpuinfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuInfo {
    /// "GenuineIntel", "AuthenticAMD", "HygonGenuine"; empty where unknown.
    pub vendor: String,
    pub family: u32,
    /// The model within the family.
    pub model: u32,
    /// The revision of the model.
    pub stepping: u32,
    /// Whether its name is that of a processor for servers: Xeon or EPYC.
    pub is_server: bool,
    /// Whether the machine is a virtual machine.
    pub is_guest: bool,
    /// Whether SGX is enabled.
    pub has_sgx: bool,
}

impl CpuInfo {
    /// Reads `cpuinfo` under `proc_root`. All fields are empty if it does not exist.
    pub fn read(proc_root: &Path) -> Self {
        Self::parse(&fs::read_to_string(proc_root.join("cpuinfo")).unwrap_or_default())
    }

    pub(super) fn parse(text: &str) -> Self {
        let first = text.split("\n\n").next().unwrap_or("");
        let field = |name: &str| {
            first.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name)
        };
        let number = |name| field(name).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0);
        let has_flag = |flag: &str| {
            field("flags").is_some_and(|(_, flags)| flags.split_whitespace().any(|name| name == flag))
        };
        let is_server_name = |(_, name): (_, &str)| name.contains("Xeon") || name.contains("EPYC");
        Self {
            vendor: field("vendor_id").map(|(_, value)| value.trim().to_owned()).unwrap_or_default(),
            family: number("cpu family"),
            model: number("model"),
            stepping: number("stepping"),
            is_server: field("model name").is_some_and(is_server_name),
            is_guest: has_flag("hypervisor"),
            has_sgx: has_flag("sgx"),
        }
    }

    /// The grade of this processor's RAPL counters. Intel measures since Haswell and modelled before (Hackenberg et al.
    /// 2015); AMD models (Schöne et al. 2021).
    pub fn rapl_grade(&self) -> Grade {
        // Sandy Bridge, Sandy Bridge-EP, Ivy Bridge, Ivy Bridge-EP.
        let before_haswell = self.family == 6 && matches!(self.model, 0x2A | 0x2D | 0x3A | 0x3E);
        if self.vendor == "GenuineIntel" && !before_haswell { Grade::Measured } else { Grade::Modelled }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amd_is_modelled_and_intel_measured_since_haswell() {
        let grade = |vendor: &str, model: u32| {
            CpuInfo::parse(&format!("vendor_id\t: {vendor}\ncpu family\t: 6\nmodel\t\t: {model}\n"))
                .rapl_grade()
        };
        assert_eq!(grade("GenuineIntel", 0x3C), Grade::Measured);
        assert_eq!(grade("GenuineIntel", 0x2A), Grade::Modelled);
        assert_eq!(grade("AuthenticAMD", 17), Grade::Modelled);
        assert_eq!(grade("HygonGenuine", 1), Grade::Modelled);
    }

    #[test]
    fn a_guest_is_known_by_its_flag_and_an_empty_file_gives_the_default() {
        assert!(CpuInfo::parse("vendor_id : X\nflags : fpu hypervisor rdrand\n").is_guest);
        assert!(!CpuInfo::parse("vendor_id : X\nflags : fpu\n\nflags : hypervisor\n").is_guest);
        assert!(CpuInfo::parse("vendor_id : X\nflags : fpu sgx sgx_lc\n").has_sgx);
        assert!(!CpuInfo::parse("vendor_id : X\nflags : fpu sgx_lc\n").has_sgx);
        assert_eq!(CpuInfo::parse(""), CpuInfo::default());
    }

    #[test]
    fn a_processor_for_servers_is_known_by_its_name() {
        let is_server = |name: &str| CpuInfo::parse(&format!("model\t: 1\nmodel name\t: {name}\n")).is_server;
        assert!(
            is_server("AMD EPYC 7601 32-Core Processor") && is_server("Intel Xeon Processor (Skylake, IBRS)")
        );
        assert!(!is_server("AMD Ryzen 7 1700 Eight-Core Processor") && !is_server(""));
        let stepping = CpuInfo::parse("model\t\t: 85\nmodel name\t: X\nstepping\t: 7\n").stepping;
        assert_eq!(stepping, 7);
    }
}
