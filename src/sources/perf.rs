//! RAPL through the kernel's `power` PMU: all domains of a package in one system call.
//!
//! Owns one event group for each CPU in the PMU's `cpumask` (linux arch/x86/events/rapl.c), open for the whole run.
//! The kernel updates the counts at each read: 2^-32 J in 64 bits. If the `msr` PMU has `tsc`, it joins the group,
//! and its count narrows the time window of the read. Opening needs CAP_PERFMON, reading needs no privilege. A second
//! group on another CPU of the package takes over when the first one's CPU goes offline. AMD's `power_core` PMU (one
//! counter per core) is not read: the package's count contains it.

pub use crate::sources::source_settings::PERF as NAME;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, EnergyReading, Grade, PowerLimits};

use super::counter::{Counter, CounterSpec, plausible_ceiling_mw};
use super::cpu_info::CpuInfo;
use super::energy_unit::EnergyUnit;
use super::perf_error_reason::{event_error_reason, pmu_error_reason};
use super::perf_ffi::open_counter;
use super::pmu::{self, Pmu, PmuEvent};
use super::powercap;
use super::rapl;
use super::rapl_limits::{self, RaplLimits};
use super::rapl_model::RaplModel;
use super::suspend_detector::SuspendDetector;
use super::sysfs_file::read_trimmed;
use super::topology::{package_names, sibling_cpu};
use super::tsc::Tsc;
use super::{Inventory, OpenedSource, Source, SourceSettings};

/// The count is 64 bits wide, but the hardware register may wrap at 2^32 units of 2^-16 J, and the kernel's own timer
/// handles such a wrap only up to 400 W.
const REGISTER_RANGE_UJ: u64 = 65_536_000_000;

/// The range of psys, whose unit is 2^-14 J or more.
const PSYS_REGISTER_RANGE_UJ: u64 = 262_144_000_000;

/// Fields of a group read: the number of counts, at most five counts of domains, and the time stamp.
const MAX_READ_FIELDS: usize = 8;

/// Opens one group for each CPU in the PMU's `cpumask`.
pub fn open(settings: &SourceSettings, clock: &Clock) -> Inventory {
    let folder = pmu::pmu_dir(&settings.sysfs_root, "power");
    let mut found = Inventory::default();
    let pmu = match Pmu::read(&folder) {
        Ok(pmu) => pmu,
        Err(error) => {
            found.add_failed(NAME, &error, pmu_error_reason(&error, &folder, &settings.proc_root));
            return found;
        }
    };
    for reason in &pmu.unusable_events {
        found.add_absent(NAME, reason.clone());
    }
    let cpu_info = CpuInfo::read(&settings.proc_root);
    let mut pmu = pmu;
    refuse_wrong_units(settings, &cpu_info, &mut pmu, &mut found);
    let packages = package_names(&settings.sysfs_root, &pmu.cpus);
    for (&cpu, package) in &packages {
        match EventGroup::open(settings, &pmu, cpu, clock) {
            Ok(group) => {
                found.opened.push(group.into_opened(settings, package, &pmu, cpu_info.rapl_grade()));
            }
            Err(error) => {
                found.add_failed(NAME, &error, event_error_reason(&error, cpu, &settings.proc_root));
            }
        }
    }
    name_psys(&mut found.opened);
    report_core_pmu(settings, &mut found);
    found
}

/// Records that AMD's PMU of single cores (`power_core`, rapl.c) is not read.
fn report_core_pmu(settings: &SourceSettings, found: &mut Inventory) {
    let Ok(pmu) = Pmu::read(&pmu::pmu_dir(&settings.sysfs_root, "power_core")) else { return };
    let reason = format!(
        "power_core: the counters of its {} cores are not read; that of their package contains them",
        pmu.cpus.len()
    );
    found.add_absent(NAME, reason);
}

/// Removes events that the kernel may count in a wrong unit: it has the model's quirk only since some commit. A later release
/// has it; an older one may have it too (fixes are backported), which the range of the powercap zone shows.
fn refuse_wrong_units(settings: &SourceSettings, cpu_info: &CpuInfo, pmu: &mut Pmu, found: &mut Inventory) {
    let Some(model) = RaplModel::of(cpu_info) else { return };
    let release = kernel_release(&settings.proc_root);
    pmu.events.retain(|event| {
        let Some((kind, fix)) = domain_kind(&event.name).and_then(|kind| Some((kind, model.perf_fix(kind)?)))
        else {
            return true;
        };
        let has_fix = release.is_some_and(|release| release >= fix.release)
            || powercap::ranges_show_fix(settings, &model, kind) == Some(true);
        if !has_fix {
            let (name, (major, minor), commit) = (&event.name, fix.release, fix.commit);
            let reason = format!(
                "{name}: kernels without commit {commit} count it in a wrong unit on this processor, and nothing shows that this \
                 kernel has it; use Linux {major}.{minor} or later, or the source powercap or msr"
            );
            found.add_absent(NAME, reason);
        }
        has_fix
    });
}

/// Major and minor version of the running kernel.
fn kernel_release(proc_root: &Path) -> Option<(u32, u32)> {
    let text = read_trimmed(&proc_root.join("sys/kernel/osrelease"))?;
    let mut numbers = text.split(['.', '-']).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Names the psys domains. A platform has one psys, but every package may show it. The first one has the plain name
/// until discovery finds the one that advances. Psys is the parent of all outermost domains.
fn name_psys(opened: &mut [OpenedSource]) {
    let mut domains: Vec<&mut Domain> = opened.iter_mut().flat_map(|group| &mut group.domains).collect();
    let Some(first) = domains.iter_mut().find(|domain| domain.kind == DomainKind::Psys) else { return };
    first.name = "psys".into();
    for domain in domains {
        if matches!(domain.kind, DomainKind::Package | DomainKind::Dram) {
            domain.parent = Some("psys".into());
        }
    }
}

/// The open events of one CPU, read together.
struct EventGroup {
    cpu: usize,
    /// The leader is first. Only the leader is read; the members stay here because dropping a descriptor closes its
    /// event.
    events: Vec<OwnedFd>,
    /// The same events on another CPU of the package, for when this one goes offline. Open from the start, because the
    /// privilege to open them is dropped.
    standby: Option<Vec<OwnedFd>>,
    /// The domain and event of each count, in the order of the counts.
    members: Vec<(DomainKind, PmuEvent)>,
    counters: Vec<Counter>,
    /// Of each domain, in the order of the counts.
    limits: Vec<RaplLimits>,
    /// The time stamp event, the last member of the group.
    tsc: Option<Tsc>,
    suspend: SuspendDetector,
    clock: Clock,
}

/// The events of a group, their domains, and whether the last one is the time stamp.
type OpenEvents = (Vec<OwnedFd>, Vec<(DomainKind, PmuEvent)>, bool);

/// Opens the events of `pmu` on `cpu` as one group. Skips events that the CPU does not have.
///
/// # Errors
/// The error of the last event, if no event could be opened.
fn open_events(settings: &SourceSettings, pmu: &Pmu, cpu: usize) -> io::Result<OpenEvents> {
    let mut last_error = io::Error::from(io::ErrorKind::NotFound);
    let (mut events, mut members) = (Vec::<OwnedFd>::new(), Vec::new());
    for event in &pmu.events {
        let Some(kind) = domain_kind(&event.name) else { continue };
        match open_counter(pmu.type_id, event.config, cpu, events.first().map(AsFd::as_fd)) {
            Ok(fd) => {
                events.push(fd);
                members.push((kind, event.clone()));
            }
            Err(error) => last_error = error,
        }
    }
    let Some(leader) = events.first() else { return Err(last_error) };
    let stamp = open_tsc(settings, cpu, leader);
    let has_tsc = stamp.is_some();
    events.extend(stamp);
    Ok((events, members, has_tsc))
}

impl EventGroup {
    /// Opens the events of `pmu` on `cpu`. Skips events that the CPU does not have.
    ///
    /// # Errors
    /// The error of the last event, if no event could be opened.
    fn open(settings: &SourceSettings, pmu: &Pmu, cpu: usize, clock: &Clock) -> io::Result<EventGroup> {
        let (events, members, has_tsc) = open_events(settings, pmu, cpu)?;
        let standby = sibling_cpu(&settings.sysfs_root, cpu)
            .and_then(|other| open_events(settings, pmu, other).ok())
            .filter(|(_, other_members, other_tsc)| *other_members == members && *other_tsc == has_tsc)
            .map(|(events, ..)| events);
        let tsc = has_tsc.then(Tsc::default);
        let counters = members.iter().map(|(kind, event)| Counter::new(counter_spec(*kind, event))).collect();
        Ok(EventGroup {
            cpu,
            events,
            standby,
            members,
            counters,
            limits: Vec::new(),
            tsc,
            suspend: SuspendDetector::new(clock),
            clock: clock.clone(),
        })
    }

    fn into_opened(
        mut self,
        settings: &SourceSettings,
        package: &str,
        pmu: &Pmu,
        grade: Grade,
    ) -> OpenedSource {
        let is_client = pmu.events.iter().any(|event| event.name == "energy-gpu");
        let domains: Vec<_> = self
            .members
            .iter()
            .map(|(kind, _)| rapl::domain(NAME, *kind, package, grade, quantum_uj(*kind, is_client)))
            .collect();
        self.limits = domains.iter().map(|domain| RaplLimits::open(settings, domain)).collect();
        OpenedSource {
            name: NAME,
            cpu: Some(self.cpu),
            max_rate_hz: 10_000.0,
            advanced: vec![false; domains.len()],
            domains,
            source: Box::new(self),
        }
    }

    /// Reads the counts of all members and the time stamp.
    fn read_counts(&self) -> Option<[u64; MAX_READ_FIELDS]> {
        let mut bytes = [0_u8; 8 * MAX_READ_FIELDS];
        let fields = self.events.len() + 1;
        let read = rustix::io::read(self.events.first()?, &mut bytes).ok()?;
        let mut counts = [0; MAX_READ_FIELDS];
        for (count, field) in counts.iter_mut().zip(bytes.chunks_exact(8)) {
            *count = u64::from_ne_bytes(field.try_into().ok()?);
        }
        // An event on an offline CPU reads 0 bytes.
        (read == 8 * fields && counts[0] == self.events.len() as u64).then_some(counts)
    }
}

impl Source for EventGroup {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        let before_ns = self.clock.now_ns();
        let counts = self.read_counts();
        let after_ns = self.clock.now_ns();
        if counts.is_none() || self.suspend.has_suspended() {
            self.counters.iter_mut().for_each(Counter::interrupt);
        }
        if let Some(standby) = self.standby.as_mut().filter(|_| counts.is_none()) {
            // The next read uses the other CPU; the time until then is a gap.
            std::mem::swap(&mut self.events, standby);
        }
        let Some(counts) = counts else {
            into.fill(EnergyReading::default());
            return None;
        };
        let stamp = counts[self.counters.len() + 1];
        let window = self.tsc.as_mut().map(|tsc| tsc.narrow(stamp, before_ns, after_ns));
        let (before_ns, after_ns) = window.unwrap_or((before_ns, after_ns));
        for ((counter, count), reading) in self.counters.iter_mut().zip(&counts[1..]).zip(into) {
            *reading = counter.advance(*count, before_ns, after_ns);
        }
        Some((before_ns, after_ns))
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

/// Opens `msr/tsc/` as a member of the group. Without it, time windows are wider.
fn open_tsc(settings: &SourceSettings, cpu: usize, leader: &OwnedFd) -> Option<OwnedFd> {
    let folder = pmu::pmu_dir(&settings.sysfs_root, "msr");
    let config = pmu::read_config(&folder.join("events/tsc")).ok()?;
    open_counter(pmu::read_type(&folder).ok()?, config, cpu, Some(leader.as_fd())).ok()
}

/// The domain kind of an event of the `power` PMU; `None` for an unknown event.
fn domain_kind(event: &str) -> Option<DomainKind> {
    match event {
        "energy-pkg" => Some(DomainKind::Package),
        "energy-cores" => Some(DomainKind::Core),
        "energy-gpu" => Some(DomainKind::Uncore),
        "energy-ram" => Some(DomainKind::Dram),
        "energy-psys" => Some(DomainKind::Psys),
        _ => None,
    }
}

fn counter_spec(kind: DomainKind, event: &PmuEvent) -> CounterSpec {
    CounterSpec {
        unit: event.unit,
        modulus: 1 << 64,
        ceiling_mw: plausible_ceiling_mw(kind),
        staleness_ns: 100_000_000,
        range_uj: if kind == DomainKind::Psys { PSYS_REGISTER_RANGE_UJ } else { REGISTER_RANGE_UJ },
    }
}

/// The quantum of a domain: that of 2^-14 J, the coarsest unit of these registers. A server's psys may count whole joules
/// (rapl.c, the quirk of Sapphire Rapids).
fn quantum_uj(kind: DomainKind, is_client: bool) -> u64 {
    match kind {
        DomainKind::Psys if !is_client => 1_000_000,
        _ => EnergyUnit::TWO_TO_THE_MINUS_14_JOULES.quantum_uj(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// A descriptor that reads as a group of one event: the number of events and the count at each read, then an error.
    fn group(counts: &[u64]) -> OwnedFd {
        let (reads, writes) = UnixDatagram::pair().unwrap();
        reads.set_nonblocking(true).unwrap();
        for count in counts {
            writes.send(&[1_u64.to_ne_bytes(), count.to_ne_bytes()].concat()).unwrap();
        }
        reads.into()
    }

    /// An event on an offline CPU.
    fn offline() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn package(active: OwnedFd, standby: Option<OwnedFd>) -> EventGroup {
        let unit = EnergyUnit::joules_over_power_of_two(32).unwrap();
        let event = PmuEvent { name: "energy-pkg".into(), config: 2, unit };
        EventGroup {
            cpu: 0,
            events: vec![active],
            standby: standby.map(|events| vec![events]),
            counters: vec![Counter::new(counter_spec(DomainKind::Package, &event))],
            members: vec![(DomainKind::Package, event)],
            limits: Vec::new(),
            tsc: None,
            suspend: SuspendDetector::new(&Clock::Machine),
            clock: Clock::Machine,
        }
    }

    /// Validity, energy in µJ and epoch of each read.
    fn read(group: &mut EventGroup, reads: usize) -> Vec<(bool, u64, u32)> {
        let mut reading = [EnergyReading::default()];
        let mut one = || {
            group.read(&mut reading);
            (reading[0].valid, reading[0].energy_uj, reading[0].epoch)
        };
        (0..reads).map(|_| one()).collect()
    }

    #[test]
    fn the_quantum_is_that_of_the_coarsest_register_in_whole_microjoules() {
        assert_eq!(quantum_uj(DomainKind::Package, true), 63);
        assert_eq!(quantum_uj(DomainKind::Psys, true), 63);
        assert_eq!(quantum_uj(DomainKind::Psys, false), 1_000_000);
    }

    #[test]
    fn the_reader_moves_to_another_cpu_of_the_package_when_its_own_goes_offline_and_the_gap_is_a_gap() {
        const JOULE: u64 = 1 << 32;
        // Two reads on the first CPU, then it is offline.
        let (active, standby) = (group(&[0, JOULE / 64]), group(&[500 * JOULE, 500 * JOULE + JOULE / 32]));
        let mut package = package(active, Some(standby));
        assert_eq!(
            read(&mut package, 5),
            [(true, 0, 0), (true, 15_625, 0), (false, 0, 0), (true, 15_625, 1), (true, 46_875, 1)]
        );
    }

    #[test]
    fn without_another_cpu_the_package_is_unknown_until_its_own_is_back() {
        let mut package = package(offline(), None);
        assert_eq!(read(&mut package, 2), [(false, 0, 0); 2]);
        package.events = vec![group(&[7])];
        assert_eq!(read(&mut package, 1), [(true, 0, 0)]);
    }
}
