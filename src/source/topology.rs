//! Where the kernel's CPUs sit: lists of them, and packages.
//!
//! Owns the parsing of cpu lists and of the topology files. Both are optional: where a stand-in tree or another
//! architecture does not tell, the answer is `None` and never an error.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

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

/// What the domains on each CPU of the mask are called after: "0" for package 0, "0-die-1" where a package has several.
pub fn name_places(sysfs_root: &Path, cpus: &[usize]) -> BTreeMap<usize, String> {
    let places: Vec<_> = cpus.iter().map(|&cpu| (cpu, place_of(sysfs_root, cpu))).collect();
    let named = places.iter().enumerate().map(|(nth, &(cpu, place))| match place {
        None => (cpu, nth.to_string()),
        Some(place) => {
            let alone =
                places.iter().filter_map(|other| other.1).filter(|o| o.package == place.package).count() == 1;
            let package = place.package;
            (cpu, if alone { package.to_string() } else { format!("{package}-die-{}", place.die) })
        }
    });
    named.collect()
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
}
