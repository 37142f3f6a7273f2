//! RAPL through the kernel's `power` PMU: all domains of a package in one system call.
//!
//! Owns one group of events for each CPU in the PMU's `cpumask` (linux arch/x86/events/rapl.c), opened once and kept.
//! The counts are 2^-32 J in 64 bits and fresh at each read. Where the `msr` PMU has `tsc`, it is a member of the
//! group, and its count narrows down when the read took place. Needs CAP_PERFMON at the opening, and nothing after.
//! AMD's `power_core` PMU (each core by itself) is not read: its sum lies within the package's count.

pub use crate::sources::source_settings::PERF as NAME;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, EnergyReading, Grade};

use super::counter::{Counter, CounterSpec, plausible_ceiling_mw};
use super::cpu_info::CpuInfo;
use super::perf_error_reason::{event_error_reason, pmu_error_reason};
use super::perf_ffi::open_counter;
use super::pmu::{self, Pmu, PmuEvent};
use super::rapl;
use super::suspend_detector::SuspendDetector;
use super::topology::package_names;
use super::tsc::Tsc;
use super::{Inventory, OpenedSource, Source, SourceSettings};

/// The count is 64 bits wide, but the register behind it may wrap at 2^32 units of 2^-16 J, and the kernel's own timer
/// catches that only up to 400 W.
const REGISTER_RANGE_UJ: u64 = 65_536_000_000;

/// The same for psys, whose unit is 2^-14 J or more.
const PSYS_REGISTER_RANGE_UJ: u64 = 262_144_000_000;

/// Fields of a group read: their number, the counts of at most five domains, and the time stamp.
const MAX_READ_FIELDS: usize = 8;

/// Opens every group that there is.
pub fn open(settings: &SourceSettings, clock: &Clock) -> Inventory {
    let folder = pmu::pmu_dir(&settings.sysfs_root, "power");
    let mut found = Inventory::default();
    let pmu = match Pmu::read(&folder) {
        Ok(pmu) => pmu,
        Err(error) => {
            found.add_absent(NAME, pmu_error_reason(&error, &folder, &settings.proc_root));
            return found;
        }
    };
    for reason in &pmu.unusable_events {
        found.add_absent(NAME, reason.clone());
    }
    let cpu_info = CpuInfo::read(&settings.proc_root);
    let packages = package_names(&settings.sysfs_root, &pmu.cpus);
    for (&cpu, package) in &packages {
        match EventGroup::open(settings, &pmu, cpu, clock) {
            Ok(group) => found.opened.push(group.into_opened(package, &pmu, cpu_info.rapl_grade())),
            Err(error) => found.add_absent(NAME, event_error_reason(&error, cpu, &settings.proc_root)),
        }
    }
    name_psys(&mut found.opened);
    found
}

/// A platform has one psys, whichever package shows it: the first keeps the plain name until discovery knows which of
/// them advances, and everything outermost is within it.
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
    /// First the leader. Dropping one would close it, so the members stay although only the leader is read.
    events: Vec<OwnedFd>,
    /// Which of the PMU's events are in the group, in the order of the counts, and what they meter.
    members: Vec<(DomainKind, PmuEvent)>,
    counters: Vec<Counter>,
    /// The carrier of the time stamp, the last member of the group.
    tsc: Option<Tsc>,
    suspend: SuspendDetector,
    clock: Clock,
}

impl EventGroup {
    /// Opens the events of `pmu` on `cpu`. An event that the CPU does not have is left out.
    ///
    /// # Errors
    /// The kernel's answer to the last event, where it refused all.
    fn open(settings: &SourceSettings, pmu: &Pmu, cpu: usize, clock: &Clock) -> io::Result<EventGroup> {
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
        let tsc = stamp.is_some().then(Tsc::default);
        events.extend(stamp);
        let counters = members.iter().map(|(kind, event)| Counter::new(counter_spec(*kind, event))).collect();
        Ok(EventGroup {
            cpu,
            events,
            members,
            counters,
            tsc,
            suspend: SuspendDetector::new(clock),
            clock: clock.clone(),
        })
    }

    fn into_opened(self, package: &str, pmu: &Pmu, grade: Grade) -> OpenedSource {
        let is_client = pmu.events.iter().any(|event| event.name == "energy-gpu");
        let domains: Vec<_> = self
            .members
            .iter()
            .map(|(kind, _)| rapl::domain(NAME, *kind, package, grade, quantum_uj(*kind, is_client)))
            .collect();
        OpenedSource {
            name: NAME,
            cpu: Some(self.cpu),
            max_rate_hz: 10_000.0,
            advanced: vec![false; domains.len()],
            domains,
            source: Box::new(self),
        }
    }

    /// The counts of one group read: as many as members, then the time stamp.
    fn read_counts(&self) -> Option<[u64; MAX_READ_FIELDS]> {
        let mut bytes = [0_u8; 8 * MAX_READ_FIELDS];
        let fields = self.events.len() + 1;
        let read = rustix::io::read(self.events.first()?, &mut bytes).ok()?;
        let mut counts = [0; MAX_READ_FIELDS];
        for (count, field) in counts.iter_mut().zip(bytes.chunks_exact(8)) {
            *count = u64::from_ne_bytes(field.try_into().ok()?);
        }
        // An event whose CPU went away reads as nothing.
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
}

/// `msr/tsc/` as a member of the group; its absence only costs precision.
fn open_tsc(settings: &SourceSettings, cpu: usize, leader: &OwnedFd) -> Option<OwnedFd> {
    let folder = pmu::pmu_dir(&settings.sysfs_root, "msr");
    let config = pmu::read_config(&folder.join("events/tsc")).ok()?;
    open_counter(pmu::read_type(&folder).ok()?, config, cpu, Some(leader.as_fd())).ok()
}

/// What an event of the `power` PMU meters; `None` for one that this program does not know.
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

/// The smallest step of a domain: 2^-14 J, the coarsest unit of these registers; but a server's psys may count in whole
/// joules (rapl.c, the quirk of Sapphire Rapids).
fn quantum_uj(kind: DomainKind, is_client: bool) -> u64 {
    if kind == DomainKind::Psys && !is_client { 1_000_000 } else { 62 }
}
