//! What the kernel says about the processors: who made them, and which CPU is in which package.
//!
//! Owns the parsing of cpu lists, `/proc/cpuinfo` and the topology files. Everything is optional: a stand-in tree or a
//! machine that is no x86 has none of it, and then the answer is `None` and never an error.

use std::fs;
use std::path::Path;

use crate::energy::Grade;

/// No list of CPUs is longer; the kernel's largest build has 8,192.
const MOST_CPUS: usize = 65_536;

/// Reads a list like `0-3,8,64-67`, as in a PMU's `cpumask`.
pub fn parse_cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        if last < first || last >= MOST_CPUS {
            return None;
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

/// Where a CPU sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The package (socket).
    pub package: u32,
    /// The die in the package; 0 where the kernel does not say.
    pub die: u32,
}

/// Where `cpu` sits, from `devices/system/cpu/cpuN/topology` under `sysfs_root`; `None` where it is not told.
pub fn place_of(sysfs_root: &Path, cpu: usize) -> Option<Place> {
    let topology = sysfs_root.join(format!("devices/system/cpu/cpu{cpu}/topology"));
    let number = |file: &str| fs::read_to_string(topology.join(file)).ok()?.trim().parse::<u32>().ok();
    Some(Place { package: number("physical_package_id")?, die: number("die_id").unwrap_or(0) })
}

/// The first processor of `/proc/cpuinfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Processor {
    /// "GenuineIntel", "AuthenticAMD", "HygonGenuine"; empty where unknown.
    pub vendor: String,
    /// The CPU family.
    pub family: u32,
    /// The model within the family.
    pub model: u32,
    /// Whether the machine is somebody's guest.
    pub guest: bool,
}

impl Processor {
    /// Reads `cpuinfo` under `proc_root`; all fields empty where there is none.
    pub fn read(proc_root: &Path) -> Self {
        Self::parse(&fs::read_to_string(proc_root.join("cpuinfo")).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let first = text.split("\n\n").next().unwrap_or("");
        let field = |name: &str| {
            first.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name)
        };
        let number = |name| field(name).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0);
        Self {
            vendor: field("vendor_id").map(|(_, value)| value.trim().to_owned()).unwrap_or_default(),
            family: number("cpu family"),
            model: number("model"),
            guest: field("flags")
                .is_some_and(|(_, flags)| flags.split_whitespace().any(|f| f == "hypervisor")),
        }
    }

    /// How far this processor's RAPL counters can be trusted: Intel measures since Haswell and modelled before
    /// (Hackenberg et al. 2015), AMD models (Schöne et al. 2021).
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
    fn cpu_lists_of_all_shapes_are_read() {
        assert_eq!(parse_cpu_list("0\n"), Some(vec![0]));
        assert_eq!(parse_cpu_list("0,64"), Some(vec![0, 64]));
        assert_eq!(parse_cpu_list("2-4,0-1,3"), Some(vec![0, 1, 2, 3, 4]));
        assert_eq!(parse_cpu_list(""), Some(vec![]));
    }

    #[test]
    fn what_is_no_cpu_list_is_refused_without_using_memory() {
        for text in ["all", "3-1", "0-99999999999", "0-4294967295", "-1", "1-", "0x3"] {
            assert_eq!(parse_cpu_list(text), None, "{text:?}");
        }
    }

    #[test]
    fn amd_is_modelled_and_intel_measured_since_haswell() {
        let grade = |vendor: &str, model: u32| {
            Processor::parse(&format!("vendor_id\t: {vendor}\ncpu family\t: 6\nmodel\t\t: {model}\n"))
                .rapl_grade()
        };
        assert_eq!(grade("GenuineIntel", 0x3C), Grade::Measured);
        assert_eq!(grade("GenuineIntel", 0x2A), Grade::Modelled);
        assert_eq!(grade("AuthenticAMD", 17), Grade::Modelled);
        assert_eq!(grade("HygonGenuine", 1), Grade::Modelled);
    }

    #[test]
    fn a_guest_is_known_by_its_flag_and_an_empty_file_is_nobody() {
        assert!(Processor::parse("vendor_id : X\nflags : fpu hypervisor rdrand\n").guest);
        assert!(!Processor::parse("vendor_id : X\nflags : fpu\n\nflags : hypervisor\n").guest);
        assert_eq!(Processor::parse(""), Processor::default());
    }
}
