//! The power limits of RAPL domains, from the constraints of powercap's zones.
//!
//! A package has PL1 (`long_term`) and PL2 (`short_term`), which hold as means over their time windows, and PL4
//! (`peak_power`), which holds at every instant (linux drivers/powercap/intel_rapl_common.c). perf and the registers read
//! the same domains, so their sources use the zone of the same name. A disabled zone, a limit of 0 and an absurd one are
//! no limits. Memory rarely has a limit: a specification of its modules stands in. Holds open files; a read allocates
//! nothing.

use std::fs;
use std::path::{Path, PathBuf};

use crate::domain::{Domain, DomainKind, PowerLimit, PowerLimits};

use super::SourceSettings;
use super::counter::plausible_ceiling_mw;
use super::rapl::is_platform_zone;
use super::sysfs_file::{SysfsFile, read_trimmed};

/// A longer time window than any processor has; one that is set to it or above limits nothing here.
const MAX_WINDOW_US: u64 = 3_600_000_000;

/// The most constraints of a zone.
const MAX_CONSTRAINTS: usize = 4;

/// A constraint's name, the place of its limit, and the limit's origin.
const CONSTRAINT_NAMES: [(&str, usize, &str); 3] = [
    ("peak_power", 0, "powercap peak_power"),
    ("short_term", 1, "powercap short_term"),
    ("long_term", 2, "powercap long_term"),
];

/// The limits of one RAPL domain.
pub(super) struct RaplLimits {
    kind: DomainKind,
    zones: Vec<ZoneConstraints>,
    memory: Option<PowerLimit>,
}

/// The constraints of one zone. A package may have two zones (`intel-rapl` and `intel-rapl-mmio`), and the limits of both
/// hold.
struct ZoneConstraints {
    enabled: Option<SysfsFile>,
    constraints: Vec<Constraint>,
}

struct Constraint {
    place: usize,
    origin: &'static str,
    limit_uw: SysfsFile,
    window_us: Option<SysfsFile>,
}

impl RaplLimits {
    /// Opens the constraints of the zones that show this domain. A part of a package has the package's limits.
    pub(super) fn open(settings: &SourceSettings, domain: &Domain) -> Self {
        let name = match domain.kind {
            DomainKind::Core | DomainKind::Uncore => domain.parent.clone().unwrap_or_default(),
            DomainKind::Psys => "psys".into(),
            _ => domain.name.clone(),
        };
        let is_memory = domain.kind == DomainKind::Dram;
        Self {
            kind: domain.kind,
            zones: zones_named(&settings.sysfs_root.join("class/powercap"), &name),
            memory: is_memory.then(|| memory_limit(&settings.proc_root)).flatten(),
        }
    }

    /// The limits that apply now.
    pub(super) fn read(&mut self, now_ns: u64) -> PowerLimits {
        let mut limits = PowerLimits::default();
        limits[0] = self.memory;
        let max_mw = plausible_ceiling_mw(self.kind);
        for zone in &mut self.zones {
            zone.read(now_ns, max_mw, &mut limits);
        }
        limits
    }
}

/// Reads the limits of all domains of a source.
pub(super) fn read_all(domains: &mut [RaplLimits], now_ns: u64, into: &mut [PowerLimits]) {
    domains.iter_mut().zip(into).for_each(|(limits, into)| *into = limits.read(now_ns));
}

impl ZoneConstraints {
    fn open(zone: &Path) -> Self {
        let constraint = |number: usize| {
            let file = |name: &str| zone.join(format!("constraint_{number}_{name}"));
            let name = read_trimmed(&file("name"))?;
            let (_, place, origin) = CONSTRAINT_NAMES.into_iter().find(|known| known.0 == name)?;
            let limit_uw = SysfsFile::open(file("power_limit_uw")).ok()?;
            let window_us = SysfsFile::open(file("time_window_us")).ok();
            Some(Constraint { place, origin, limit_uw, window_us })
        };
        Self {
            enabled: SysfsFile::open(zone.join("enabled")).ok(),
            constraints: (0..MAX_CONSTRAINTS).filter_map(constraint).collect(),
        }
    }

    /// Keeps the lower of two zones' limits.
    fn read(&mut self, now_ns: u64, max_mw: u64, limits: &mut PowerLimits) {
        if self.enabled.as_mut().is_some_and(|enabled| enabled.read_number(now_ns) != Some(1_u8)) {
            return;
        }
        for constraint in &mut self.constraints {
            let (Some(limit), place) = (constraint.read(now_ns, max_mw), constraint.place) else { continue };
            if limits[place].is_none_or(|lower| limit.limit_mw < lower.limit_mw) {
                limits[place] = Some(limit);
            }
        }
    }
}

impl Constraint {
    fn read(&mut self, now_ns: u64, max_mw: u64) -> Option<PowerLimit> {
        let limit_uw: u64 = self.limit_uw.read_number(now_ns)?;
        // Rounded up: a limit that is too high is safe.
        let limit_mw = limit_uw.div_ceil(1_000);
        let window_us = match (self.place, &mut self.window_us) {
            (0, _) => 0,
            (_, Some(window)) => window.read_number::<u64>(now_ns).filter(|window| *window > 0)?,
            (_, None) => return None,
        };
        let is_sound = (1..=max_mw).contains(&limit_mw) && window_us < MAX_WINDOW_US;
        is_sound.then_some(PowerLimit { limit_mw, window_ns: window_us * 1_000, origin: self.origin })
    }
}

/// The constraints of every zone with this domain's name.
fn zones_named(class: &Path, domain: &str) -> Vec<ZoneConstraints> {
    let mut zones: Vec<PathBuf> =
        fs::read_dir(class).into_iter().flatten().flatten().map(|e| e.path()).collect();
    zones.retain(|zone| zone_domain(class, zone).as_deref() == Some(domain));
    zones.sort();
    zones.iter().map(|zone| ZoneConstraints::open(zone)).collect()
}

/// The domain of a zone: "package-0", "dram-0" in that package, "psys". Not every zone with limits has a counter.
fn zone_domain(class: &Path, zone: &Path) -> Option<String> {
    let id = zone.file_name()?.to_str()?;
    let (driver, _) = id.split_once(':')?;
    if !driver.starts_with("intel-rapl") {
        return None;
    }
    let name = read_trimmed(&zone.join("name"))?;
    if is_platform_zone(&name) {
        return Some("psys".into());
    }
    if name.starts_with("package-") {
        return Some(name);
    }
    let package = read_trimmed(&class.join(id.rsplit_once(':')?.0).join("name"))?;
    Some(format!("{name}-{}", package.strip_prefix("package-")?))
}

/// The highest power of a machine's memory by the number of its modules: 20 W for each, more than the 15 W of a registered
/// DDR5 module of 128 GB under full load. The number is not readable without root; a module has at least 4 GiB, and a
/// socket at most 24 modules.
fn memory_limit(proc_root: &Path) -> Option<PowerLimit> {
    const MODULE_MW: u64 = 20_000;
    const MIN_MODULE_KIB: u64 = 4 << 20;
    const MAX_MODULES: u64 = 24;
    let meminfo = fs::read_to_string(proc_root.join("meminfo")).ok()?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total_kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let modules = total_kib.div_ceil(MIN_MODULE_KIB).min(MAX_MODULES);
    (modules > 0).then_some(PowerLimit { limit_mw: modules * MODULE_MW, window_ns: 0, origin: "memory size" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Grade;
    use crate::sources::rapl;

    const CLASS: &str = "sys/class/powercap";

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }

        fn constraint(&self, zone: &str, number: usize, name: &str, limit_uw: &str, window_us: Option<&str>) {
            let file = |suffix: &str| format!("{CLASS}/{zone}/constraint_{number}_{suffix}");
            self.write(&file("name"), name);
            self.write(&file("power_limit_uw"), limit_uw);
            window_us.into_iter().for_each(|window_us| self.write(&file("time_window_us"), window_us));
        }

        /// A package with PL1 of 125 W over 28 s, PL2 of 253 W over 2.44 ms, and PL4 of 420 W.
        fn package(&self) {
            let zone = "intel-rapl:0";
            self.write(&format!("{CLASS}/{zone}/name"), "package-0");
            self.write(&format!("{CLASS}/{zone}/enabled"), "1");
            self.constraint(zone, 0, "long_term", "125000000", Some("27983872"));
            self.constraint(zone, 1, "short_term", "253000000", Some("2440"));
            self.constraint(zone, 2, "peak_power", "420000000", None);
        }

        fn limits(&self, kind: DomainKind) -> RaplLimits {
            let domain = rapl::domain("perf", kind, "0", Grade::Measured, 62);
            let (sysfs_root, proc_root) = (self.0.path().join("sys"), self.0.path().join("proc"));
            RaplLimits::open(&SourceSettings { sysfs_root, proc_root, ..SourceSettings::default() }, &domain)
        }

        fn powers_mw(&self, kind: DomainKind) -> [Option<(u64, u64)>; 3] {
            self.limits(kind).read(1).map(|limit| limit.map(|limit| (limit.limit_mw, limit.window_ns)))
        }
    }

    const PL4: Option<(u64, u64)> = Some((420_000, 0));
    const PL2: Option<(u64, u64)> = Some((253_000, 2_440_000));
    const PL1: Option<(u64, u64)> = Some((125_000, 27_983_872_000));

    #[test]
    fn a_package_and_its_cores_have_pl4_pl2_and_pl1() {
        let tree = Tree::new();
        tree.package();
        for kind in [DomainKind::Package, DomainKind::Core] {
            assert_eq!(tree.powers_mw(kind), [PL4, PL2, PL1], "{kind:?}");
        }
        assert_eq!(tree.limits(DomainKind::Package).read(1)[0].unwrap().origin, "powercap peak_power");
    }

    #[test]
    fn a_disabled_a_zero_and_an_absurd_limit_are_none() {
        let tree = Tree::new();
        tree.package();
        tree.constraint("intel-rapl:0", 2, "peak_power", "0", None);
        assert_eq!(tree.powers_mw(DomainKind::Package), [None, PL2, PL1]);
        tree.constraint("intel-rapl:0", 2, "peak_power", "4095875000", None);
        tree.constraint("intel-rapl:0", 1, "short_term", "253000000", Some("0"));
        assert_eq!(tree.powers_mw(DomainKind::Package), [None, None, PL1]);
        tree.write(&format!("{CLASS}/intel-rapl:0/enabled"), "0");
        assert_eq!(tree.powers_mw(DomainKind::Package), [None; 3]);
    }

    #[test]
    fn limits_are_read_again_from_open_files() {
        let tree = Tree::new();
        tree.package();
        let mut limits = tree.limits(DomainKind::Package);
        assert_eq!(limits.read(1)[1].unwrap().limit_mw, 253_000);
        tree.constraint("intel-rapl:0", 1, "short_term", "200000001", Some("2440"));
        assert_eq!(limits.read(2)[1].unwrap().limit_mw, 200_001, "rounded up");
    }

    #[test]
    fn of_two_zones_of_a_package_the_lower_limits_hold() {
        let tree = Tree::new();
        tree.package();
        tree.write(&format!("{CLASS}/intel-rapl-mmio:0/name"), "package-0");
        tree.write(&format!("{CLASS}/intel-rapl-mmio:0/enabled"), "1");
        tree.constraint("intel-rapl-mmio:0", 0, "long_term", "65000000", Some("28000000"));
        assert_eq!(tree.powers_mw(DomainKind::Package), [PL4, PL2, Some((65_000, 28_000_000_000))]);
    }

    #[test]
    fn memory_has_a_specification_and_the_limit_of_its_own_zone() {
        let tree = Tree::new();
        tree.package();
        tree.write("proc/meminfo", "MemTotal:       65612340 kB\nMemFree:        1 kB");
        assert_eq!(tree.powers_mw(DomainKind::Dram), [Some((320_000, 0)), None, None], "16 modules");
        tree.write(&format!("{CLASS}/intel-rapl:0:0/name"), "dram");
        tree.constraint("intel-rapl:0:0", 0, "long_term", "41250000", Some("976"));
        assert_eq!(tree.powers_mw(DomainKind::Dram)[2], Some((41_250, 976_000)));
        assert_eq!(tree.powers_mw(DomainKind::Package), [PL4, PL2, PL1]);
    }

    #[test]
    fn without_zones_there_are_no_limits() {
        assert_eq!(Tree::new().powers_mw(DomainKind::Package), [None; 3]);
    }
}
