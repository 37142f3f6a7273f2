//! CPU topology: the packages and dies of the kernel's CPUs.
//!
//! The topology files are optional: a missing file gives `None`, never an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Package and die of a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuLocation {
    /// `physical_package_id` in sysfs: the socket.
    pub package: u32,
    /// The die in the package; 0 if the kernel does not list it.
    pub die: u32,
}

/// Reads the location of `cpu` from `devices/system/cpu/cpuN/topology` under `sysfs_root`.
pub fn cpu_location(sysfs_root: &Path, cpu: usize) -> Option<CpuLocation> {
    let topology = sysfs_root.join(format!("devices/system/cpu/cpu{cpu}/topology"));
    let number = |file: &str| fs::read_to_string(topology.join(file)).ok()?.trim().parse::<u32>().ok();
    Some(CpuLocation { package: number("physical_package_id")?, die: number("die_id").unwrap_or(0) })
}

/// The physical packages of all CPUs that the kernel lists under `sysfs_root`.
pub fn physical_packages(sysfs_root: &Path) -> BTreeSet<u32> {
    let package = |cpu| Some(cpu_location(sysfs_root, cpu)?.package);
    listed_cpus(sysfs_root).filter_map(package).collect()
}

/// The numbers of the CPUs that the kernel lists under `sysfs_root`.
fn listed_cpus(sysfs_root: &Path) -> impl Iterator<Item = usize> {
    let number = |name: &str| name.strip_prefix("cpu")?.parse().ok();
    let folder = fs::read_dir(sysfs_root.join("devices/system/cpu"));
    folder.into_iter().flatten().flatten().filter_map(move |entry| number(entry.file_name().to_str()?))
}

/// Another CPU of the package and die of `cpu`, which can read the same counters: the last one that the kernel lists.
pub fn sibling_cpu(sysfs_root: &Path, cpu: usize) -> Option<usize> {
    let location = cpu_location(sysfs_root, cpu)?;
    let is_sibling = |&other: &usize| other != cpu && cpu_location(sysfs_root, other) == Some(location);
    listed_cpus(sysfs_root).filter(is_sibling).max()
}

/// The package part of domain names for each CPU of the mask: "0" for package 0, "0-die-1" if a package has several dies.
pub fn package_names(sysfs_root: &Path, cpus: &[usize]) -> BTreeMap<usize, String> {
    let locations: Vec<_> = cpus.iter().map(|&cpu| (cpu, cpu_location(sysfs_root, cpu))).collect();
    let named = locations.iter().enumerate().map(|(nth, &(cpu, location))| match location {
        None => (cpu, nth.to_string()),
        Some(location) => {
            let alone = locations
                .iter()
                .filter_map(|other| other.1)
                .filter(|o| o.package == location.package)
                .count()
                == 1;
            let package = location.package;
            (cpu, if alone { package.to_string() } else { format!("{package}-die-{}", location.die) })
        }
    });
    named.collect()
}
