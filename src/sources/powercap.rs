//! RAPL through the kernel's powercap zones: files with microjoules.
//!
//! Owns the open `energy_uj` of every zone under `class/powercap/intel-rapl*` (linux drivers/powercap: the control types
//! of the registers, of MMIO and of TPMI). Zones that show one domain are separate sources, because one of them may stand
//! still; discovery keeps the first that advances. A zone without a range is rejected: its wraps could not be undone. The
//! driver multiplies the register by a unit in whole nanojoules and truncates to µJ. This file reverses that exactly, so
//! that powercap and perf agree to the count. A zone that disappears gives invalid readings until it is back.

pub use crate::sources::source_settings::POWERCAP as NAME;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, EnergyReading, Grade, PowerLimits};

use super::counter::{Counter, CounterSpec, plausible_ceiling_mw};
use super::cpu_info::CpuInfo;
use super::energy_unit::EnergyUnit;
use super::rapl_limits::{self, RaplLimits};
use super::rapl_model::{RaplModel, RegisterUnit};
use super::suspend_detector::SuspendDetector;
use super::sysfs_file::SysfsFile;
use super::{Inventory, OpenedSource, Source, SourceSettings, rapl};

/// The zones of `/sys/class/powercap` with a readable energy counter, each a domain.
pub fn open(settings: &SourceSettings, clock: &Clock) -> Inventory {
    let class = settings.sysfs_root.join("class/powercap");
    let mut found = Inventory::default();
    let remedy = "load the driver: sudo modprobe intel_rapl_msr";
    match list_zones(&class) {
        Ok(listed) if listed.layers.is_empty() && listed.unusable.is_empty() => {
            found.add_absent(NAME, format!("no RAPL zone in {}; {remedy}", class.display()));
        }
        Ok(listed) => open_layers(settings, listed, clock, &mut found),
        Err(error) => found.add_failed(NAME, &error, format!("{}: {error}; {remedy}", class.display())),
    }
    found
}

/// Opens each layer as a source, and records the zones that cannot be read.
fn open_layers(settings: &SourceSettings, listed: ZoneList, clock: &Clock, found: &mut Inventory) {
    listed.unusable.into_iter().for_each(|reason| found.add_absent(NAME, reason));
    let cpu_info = CpuInfo::read(&settings.proc_root);
    let grade = cpu_info.rapl_grade();
    let mut unreadable = Vec::new();
    for mut zones in listed.layers {
        if let Some(model) = RaplModel::of(&cpu_info) {
            correct_units(&mut zones, &model);
        }
        let opened = open_zones(settings, &zones, grade, clock, found, &mut unreadable);
        found.opened.extend(opened);
    }
    if !unreadable.is_empty() {
        found.add_absent(NAME, permission_reason(&unreadable));
    }
}

/// Replaces the unit that a kernel before a fix uses by the true one. The zone's range shows the unit that the kernel uses,
/// so its figures can be converted back to counts of the register.
fn correct_units(zones: &mut [PowercapZone], model: &RaplModel) {
    let scale_of = |kind: DomainKind| zones.iter().find(|zone| zone.kind == kind).map(|zone| zone.scale);
    let package = scale_of(DomainKind::Package).filter(|scale| scale.driver_unit.is_some());
    for zone in zones.iter_mut().filter(|zone| zone.scale.driver_unit.is_some()) {
        let true_unit = match model.unit(zone.kind) {
            _ if !model.has_powercap_fix(zone.kind) => None,
            RegisterUnit::Fixed(shift) => EnergyUnit::joules_over_power_of_two(shift),
            _ => package.map(|scale| scale.unit),
        };
        zone.scale.unit = true_unit.unwrap_or(zone.scale.unit);
    }
}

/// Whether the range of every zone of `kind` shows the true unit, so that the kernel has the fix; `None` without such a zone.
/// The ranges need no privilege.
pub fn ranges_show_fix(settings: &SourceSettings, model: &RaplModel, kind: DomainKind) -> Option<bool> {
    let listed = list_zones(&settings.sysfs_root.join("class/powercap")).ok()?;
    let mut zones: Vec<PowercapZone> = listed.layers.into_iter().flatten().collect();
    let shown: Vec<RegisterScale> = zones.iter().map(|zone| zone.scale).collect();
    correct_units(&mut zones, model);
    let is_right = |(zone, shown): (&PowercapZone, &RegisterScale)| zone.scale == *shown;
    let mut of_kind = zones.iter().zip(&shown).filter(|(zone, _)| zone.kind == kind).peekable();
    of_kind.peek().is_some().then(|| of_kind.all(is_right))
}

/// Opens the zones that can be read as one source, and records the others; `None` if there are none.
fn open_zones(
    settings: &SourceSettings,
    zones: &[PowercapZone],
    grade: Grade,
    clock: &Clock,
    found: &mut Inventory,
    unreadable: &mut Vec<String>,
) -> Option<OpenedSource> {
    let (mut zone_counters, mut domains) = (Vec::new(), Vec::new());
    for zone in zones {
        match ZoneCounter::open(zone) {
            Ok(zone_counter) => {
                zone_counters.push(zone_counter);
                domains.push(zone_domain(zone, zones, grade));
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                if !unreadable.contains(&zone.domain) {
                    unreadable.push(zone.domain.clone());
                }
            }
            Err(error) => {
                found.add_failed(NAME, &error, format!("{}: {error}", zone.energy_file().display()));
            }
        }
    }
    if zone_counters.is_empty() {
        return None;
    }
    let source = PowercapSource {
        zones: zone_counters,
        limits: domains.iter().map(|domain| RaplLimits::open(settings, domain)).collect(),
        suspend: SuspendDetector::new(clock),
        clock: clock.clone(),
    };
    Some(OpenedSource {
        name: NAME,
        source: Box::new(source),
        cpu: None,
        max_rate_hz: 10_000.0,
        advanced: vec![false; domains.len()],
        domains,
    })
}

/// The reason and the remedy for zones without read permission.
fn permission_reason(domains: &[String]) -> String {
    format!(
        "{}: only root can read energy_uj since CVE-2020-8694; give the program CAP_PERFMON, so that it reads \
         the energy through perf, or run it as root, or with CAP_DAC_READ_SEARCH: sudo setcap cap_dac_read_search=ep PROGRAM",
        domains.join(", ")
    )
}

fn zone_domain(zone: &PowercapZone, all: &[PowercapZone], grade: Grade) -> Domain {
    Domain {
        name: zone.domain.clone(),
        kind: zone.kind,
        source: NAME.into(),
        device: None,
        parent: zone.parent(all),
        grade,
        // Of all machines; the zone's constraints tighten it.
        ceiling_mw: Some(plausible_ceiling_mw(zone.kind)),
        latency_ns: rapl::LATENCY_NS,
        quantum_uj: zone.scale.unit.quantum_uj(),
    }
}

/// All zones, read in sequence.
struct PowercapSource {
    zones: Vec<ZoneCounter>,
    /// Of each zone's domain.
    limits: Vec<RaplLimits>,
    suspend: SuspendDetector,
    clock: Clock,
}

impl Source for PowercapSource {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        for (zone, reading) in self.zones.iter_mut().zip(&mut *into) {
            *reading = zone.read(&self.clock);
        }
        if self.suspend.has_suspended() {
            // Each zone may have been read before or after the suspend, so this reading and the next one are discarded.
            self.zones.iter_mut().for_each(|zone| zone.counter.interrupt());
            into.fill(EnergyReading::default());
        }
        None
    }

    fn read_power_limits(&mut self, into: &mut [PowerLimits]) -> bool {
        rapl_limits::read_all(&mut self.limits, self.clock.now_ns(), into);
        true
    }
}

struct ZoneCounter {
    energy: SysfsFile,
    scale: RegisterScale,
    counter: Counter,
}

impl ZoneCounter {
    fn open(zone: &PowercapZone) -> io::Result<ZoneCounter> {
        let count = zone.scale;
        let range_uj = u64::try_from(count.unit.to_uj(count.modulus)).unwrap_or(u64::MAX);
        let counter = Counter::new(CounterSpec {
            unit: count.unit,
            modulus: count.modulus,
            ceiling_mw: plausible_ceiling_mw(zone.kind),
            staleness_ns: 100_000_000,
            range_uj,
        });
        Ok(ZoneCounter { energy: SysfsFile::open_number(zone.energy_file())?, scale: count, counter })
    }

    fn read(&mut self, clock: &Clock) -> EnergyReading {
        let before_ns = clock.now_ns();
        let Some(microjoules) = self.energy.read_number(before_ns) else {
            self.counter.interrupt();
            return EnergyReading::default();
        };
        self.counter.advance(self.scale.register_count(microjoules), before_ns, clock.now_ns())
    }
}

/// The largest value of the 32-bit registers that the zones show.
const REGISTER_MAX: u128 = 0xFFFF_FFFF;

/// One zone that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PowercapZone {
    /// "intel-rapl:0:1".
    id: String,
    kind: DomainKind,
    /// The domain's name: "core-0".
    domain: String,
    /// The relation of microjoules and register counts.
    scale: RegisterScale,
    path: PathBuf,
}

/// The zones of a machine, and the reasons of unusable ones.
#[derive(Debug, Default)]
struct ZoneList {
    /// Packages before their parts. A domain is in a layer once: its second zone is in the second layer.
    layers: Vec<Vec<PowercapZone>>,
    /// One reason for each skipped zone.
    unusable: Vec<String>,
}

impl ZoneList {
    /// Adds a zone to the first layer that does not have its domain.
    fn add(&mut self, zone: PowercapZone) {
        let has_room = |layer: &&mut Vec<PowercapZone>| layer.iter().all(|other| other.domain != zone.domain);
        match self.layers.iter_mut().find(has_room) {
            Some(layer) => layer.push(zone),
            None => self.layers.push(vec![zone]),
        }
    }
}

impl PowercapZone {
    /// The file with the count.
    fn energy_file(&self) -> PathBuf {
        self.path.join("energy_uj")
    }

    /// The parent domain: a package contains its cores, psys contains everything. Memory is listed below its package
    /// but is not part of the package's count.
    fn parent(&self, all: &[PowercapZone]) -> Option<String> {
        let named = |name: String| all.iter().any(|zone| zone.domain == name).then_some(name);
        match self.kind {
            DomainKind::Core | DomainKind::Uncore => {
                self.domain.split_once('-').and_then(|(_, package)| named(format!("package-{package}")))
            }
            DomainKind::Package | DomainKind::Dram => {
                all.iter().find(|zone| zone.kind == DomainKind::Psys).map(|psys| psys.domain.clone())
            }
            _ => None,
        }
    }
}

/// Lists the RAPL zones in `class`.
///
/// # Errors
/// The directory cannot be read.
fn list_zones(class: &Path) -> io::Result<ZoneList> {
    let mut listed = ZoneList::default();
    let mut ids = Vec::new();
    for entry in fs::read_dir(class)? {
        let id = entry?.file_name().to_string_lossy().into_owned();
        if let Some(key) = sort_key(&id) {
            ids.push((key, id));
        }
    }
    ids.sort();
    for (_, id) in ids {
        match read_zone(class, &id) {
            Err(reason) => listed.unusable.push(format!("zone {id}: {reason}")),
            Ok(zone) => listed.add(zone),
        }
    }
    Ok(listed)
}

/// The sort key of a zone's id: `intel-rapl` before `intel-rapl-mmio`, zone 2 before zone 10. `None` if the id is no
/// RAPL zone.
fn sort_key(id: &str) -> Option<(String, Vec<u32>)> {
    let (driver, numbers) = id.split_once(':')?;
    let numbers = numbers.split(':').map(|number| number.parse().ok()).collect::<Option<Vec<u32>>>()?;
    driver.starts_with("intel-rapl").then(|| (driver.to_owned(), numbers))
}

fn read_zone(class: &Path, id: &str) -> Result<PowercapZone, String> {
    let path = class.join(id);
    let name = read_name(&path)?;
    let (kind, domain) = match name.as_str() {
        // Each package may have one (intel_rapl_common.c, rapl_init_domains): "psys", "psys-1".
        platform if rapl::is_platform_zone(platform) => (DomainKind::Psys, name),
        package if package.starts_with("package-") => (DomainKind::Package, name),
        part => {
            let kind = match part {
                "core" => DomainKind::Core,
                "uncore" => DomainKind::Uncore,
                "dram" => DomainKind::Dram,
                _ => return Err(format!("its name {part:?} is unknown")),
            };
            let package = id.rsplit_once(':').map(|(package, _)| read_name(&class.join(package)));
            let package = package.ok_or("it is not inside a package")??;
            let package = package
                .strip_prefix("package-")
                .ok_or_else(|| format!("it is inside {package}, which is not a package"))?;
            (kind, format!("{part}-{package}"))
        }
    };
    let count = RegisterScale::from_range(read_range_uj(&path)?);
    Ok(PowercapZone { id: id.into(), kind, domain, scale: count, path })
}

fn read_name(zone: &Path) -> Result<String, String> {
    let path = zone.join("name");
    let name = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(name.trim().to_owned())
}

/// The largest energy of the zone before it wraps to 0.
fn read_range_uj(zone: &Path) -> Result<u64, String> {
    let path = zone.join("max_energy_range_uj");
    let text = fs::read_to_string(&path).map_err(|error| {
        format!("{}: {error}; without the range, wraps of the counter cannot be corrected", path.display())
    })?;
    match text.trim().parse() {
        Ok(range) if range > 0 => Ok(range),
        _ => Err(format!(
            "{} contains {:?}, not a positive number; without the range, wraps of the counter cannot be corrected",
            path.display(),
            text.trim()
        )),
    }
}

/// The relation of a zone's microjoules to its register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RegisterScale {
    /// The true energy of one count of the register.
    unit: EnergyUnit,
    /// The number of counts after which the register wraps to 0.
    modulus: u128,
    /// The unit that the driver multiplies with; `None` if the zone does not follow its arithmetic.
    driver_unit: Option<EnergyUnit>,
}

impl RegisterScale {
    /// The driver shows `max_energy_range_uj` = (2^32 − 1) · unit / 1000, truncated (linux intel_rapl_common.c): one
    /// unit less than the modulus. The unit follows from it. Old kernels have the exact unit instead of one in whole nJ
    /// (a report of a Core i7-4770S, github.com/intel/thermal_daemon/issues/45). A range of any other form is taken as a
    /// count of µJ.
    fn from_range(range_uj: u64) -> RegisterScale {
        let shown_nj = (u128::from(range_uj) * 1_000).div_ceil(REGISTER_MAX);
        let fits = shown_nj >= 1_000 && REGISTER_MAX * shown_nj / 1_000 == u128::from(range_uj);
        let driver_unit = u64::try_from(shown_nj).ok().and_then(|nj| EnergyUnit::from_fraction(nj, 1_000));
        let of_register = |unit, driver_unit| RegisterScale { unit, modulus: REGISTER_MAX + 1, driver_unit };
        let exact = (0..=31)
            .filter_map(EnergyUnit::joules_over_power_of_two)
            .find(|unit| unit.to_uj(REGISTER_MAX) == u128::from(range_uj));
        match (true_unit(shown_nj), exact) {
            (Some(unit), _) if fits => of_register(unit, driver_unit),
            (_, Some(unit)) => of_register(unit, Some(unit)),
            _ => RegisterScale {
                unit: EnergyUnit::MICROJOULE,
                modulus: u128::from(range_uj) + 1,
                driver_unit: None,
            },
        }
    }

    /// The register's count for `microjoules`.
    fn register_count(&self, microjoules: u64) -> u64 {
        self.driver_unit.map_or(microjoules, |unit| unit.counts_for(microjoules))
    }
}

/// The true unit for the driver's unit in whole nanojoules. Units of 2^-k J lose their fraction in the driver (−51.7
/// ppm at k = 16), and it uses 15.3 µJ for server memory where perf uses 2^-16 J (+0.27 %).
fn true_unit(shown_nj: u128) -> Option<EnergyUnit> {
    if shown_nj == 15_300 {
        return EnergyUnit::joules_over_power_of_two(16);
    }
    let power = (0..=31).find(|shift| 1_000_000_000_u128 >> shift == shown_nj);
    match power {
        Some(shift) => EnergyUnit::joules_over_power_of_two(shift),
        None => EnergyUnit::from_fraction(u64::try_from(shown_nj).ok()?, 1_000),
    }
}
