//! CPU and GPU time of the processes and control groups that spans report on.
//!
//! Owns the watched subjects and the sampling schedule: one sample soon after a span with a new subject opens, one
//! after each close before the span settles, ten per second while spans are open, five where their processes rest, none
//! without spans. The samples cost at most a fiftieth of a CPU, or a tenth while new subjects keep coming. A caller may watch
//! its own user's processes, and all with telemetry access; the identity of the caller's process comes from the transport,
//! never from a message.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use wattspan_client::protocol::{Access, MethodError, OpenSpan};

use super::access::Peer;
use super::caller::Caller;
use crate::attribution::{Attributor, BasisUsageSample, CPU_TIME, Subject, SubjectUsage};
use crate::domain::{Absent, Domain, DomainKind};
use crate::process_usage::{
    KernelRoots, ProcessIdentity, ProcessWatcher, TargetUsage, UsageSample, WatchProcessError,
};
use crate::sources::nvml;
use crate::sources::nvml::process_utilization::{ProcessUtilization, UtilizationReport};

/// The time between samples while spans are open, while no subject runs, and while no sample covers the end of a closed
/// span.
const OPEN_INTERVAL_NS: u64 = 100_000_000;
const RESTING_INTERVAL_NS: u64 = 200_000_000;
const CLOSING_INTERVAL_NS: u64 = 10_000_000;
/// The pause after a sample is at least this multiple of its cost; the smaller one while a new subject has no sample.
const COST_FACTOR: u64 = 50;
const NEW_TARGET_COST_FACTOR: u64 = 10;
/// A subject without a span is dropped after one or two of these intervals.
const SWEEP_INTERVAL_NS: u64 = 5_000_000_000;

const UNKNOWN_PEER_REASON: &str = "the peer's process is unknown: the transport does not report it, or /proc hides it from the daemon \
                      (hidepid=, ProtectProc=)";
const LIMIT_REASON: &str = "too many processes are watched at once";

pub(crate) struct ProcessTracker {
    watcher: ProcessWatcher,
    gpus: GpuProcessUsage,
    /// Subjects without data, by the reason that accounts report.
    unavailable: HashMap<&'static str, u32>,
    sampled_ns: Option<u64>,
    sample_cost_ns: u64,
    /// A subject has no sample yet.
    has_new_target: bool,
    /// The subjects at the last sample.
    sampled_targets: Vec<TargetUsage>,
    /// The time that all subjects had used at the last sample.
    used_ns: u64,
    /// No subject had run at the last sample since the one before. Unknown where boards are split.
    is_resting: bool,
    swept_ns: u64,
    unreferenced: HashSet<u32>,
}

impl ProcessTracker {
    pub(crate) fn new(roots: KernelRoots, gpus: GpuProcessUsage) -> Self {
        Self {
            watcher: ProcessWatcher::new(roots),
            gpus,
            unavailable: HashMap::new(),
            sampled_ns: None,
            sample_cost_ns: 0,
            has_new_target: false,
            sampled_targets: Vec::new(),
            used_ns: 0,
            is_resting: false,
            swept_ns: 0,
            unreferenced: HashSet::new(),
        }
    }

    /// Adds the GPUs among domains of sources that started late.
    pub(crate) fn add_gpus<'a>(&mut self, domains: impl Iterator<Item = (usize, &'a Domain)>) {
        self.gpus.extend(domains);
    }

    /// The process of this number now, if it exists and is visible.
    pub(crate) fn identify(&self, pid: u32) -> Option<ProcessIdentity> {
        self.watcher.identify(pid)
    }

    /// The subject whose part a new span reports: the process or control group that the call names, else the caller's
    /// process. 0: none.
    ///
    /// # Errors
    /// The caller may not watch it, it does not exist, or too many are watched.
    pub(crate) fn resolve(
        &mut self,
        caller: &Caller,
        call: &OpenSpan,
        attributor: &mut Attributor,
    ) -> Result<u32, MethodError> {
        let peer = &caller.peer;
        let is_named = call.process.is_some() || call.cgroup.is_some();
        if peer.access < Access::Span {
            // CPU times are sampled off the coarse grid, so the coarse tier gets none.
            let denied = MethodError::AccessDenied { needs: Access::Span.as_str().into() };
            return if is_named { Err(denied) } else { Ok(0) };
        }
        if call.process_share == Some(false) {
            if is_named {
                let reason = "cannot be false together with process or cgroup; omit one of them".to_owned();
                return Err(MethodError::InvalidValue { field: "process_share".into(), reason });
            }
            return Ok(0);
        }
        match (call.process, &call.cgroup, caller.process) {
            (Some(_), Some(_), _) => {
                let reason = "cannot be combined with process; omit one of them".to_owned();
                Err(MethodError::InvalidValue { field: "cgroup".into(), reason })
            }
            (Some(pid), None, _) => self.requested_process(peer, pid, attributor),
            (None, Some(path), _) => self.requested_cgroup(peer, path, attributor),
            (None, None, None) => Ok(self.unavailable_subject(UNKNOWN_PEER_REASON, attributor)),
            (None, None, Some(identity)) => Ok(match self.process_subject(peer, identity, attributor) {
                Ok(subject) => subject,
                Err(WatchProcessError::LimitReached { .. }) => {
                    self.unavailable_subject(LIMIT_REASON, attributor)
                }
                Err(WatchProcessError::NotFound(_)) => {
                    self.unavailable_subject(UNKNOWN_PEER_REASON, attributor)
                }
            }),
        }
    }

    /// Samples the CPU and GPU time of all watched subjects, if that is due. Returns the boards that turn out to
    /// report no time by process.
    pub(crate) fn sample_if_due(&mut self, now_ns: u64, attributor: &mut Attributor) -> Vec<Absent> {
        let is_due = self.sample_due_ns(attributor).is_some_and(|due_ns| due_ns <= now_ns);
        let unavailable = match is_due {
            true => self.sample(now_ns, attributor),
            // A report that has come since counts before the account settles.
            false if attributor.has_closing_spans() => {
                self.gpus.record_reports(&self.watcher, &self.sampled_targets, attributor)
            }
            false => Vec::new(),
        };
        self.sweep(now_ns, attributor);
        unavailable
    }

    /// The time of the next sample; `None` without subjects or spans.
    pub(crate) fn sample_due_ns(&self, attributor: &Attributor) -> Option<u64> {
        if !attributor.has_subjects() || !attributor.is_busy() {
            return None;
        }
        let is_end_uncovered = attributor.has_closed_after(self.sampled_ns.unwrap_or(0));
        let (interval_ns, cost_factor) = match (self.has_new_target, is_end_uncovered) {
            (true, _) => (CLOSING_INTERVAL_NS, NEW_TARGET_COST_FACTOR),
            (false, true) => (CLOSING_INTERVAL_NS, COST_FACTOR),
            (false, false) if self.is_resting => (RESTING_INTERVAL_NS, COST_FACTOR),
            (false, false) => (OPEN_INTERVAL_NS, COST_FACTOR),
        };
        Some(
            self.sampled_ns
                .map_or(0, |sampled_ns| sampled_ns + interval_ns.max(self.sample_cost_ns * cost_factor)),
        )
    }

    fn sample(&mut self, now_ns: u64, attributor: &mut Attributor) -> Vec<Absent> {
        let (UsageSample { busy_ns, targets }, cost_ns) = self.watcher.sample();
        let usage = |target: &TargetUsage| SubjectUsage {
            subject: target.subject,
            amount: target.used_ns,
            disjoint: target.is_disjoint,
        };
        for target in &targets {
            let reason = match (busy_ns, target.used_ns) {
                (None, _) => Some("the machine's busy time cannot be read from /proc/stat"),
                (_, None) => Some("the control group was removed"),
                _ => None,
            };
            attributor.set_unknown_reason(target.subject, reason.map(str::to_owned));
        }
        let used: Vec<SubjectUsage> = targets.iter().map(usage).collect();
        attributor.record_usage(&BasisUsageSample {
            at_ns: now_ns,
            basis: CPU_TIME,
            total: busy_ns,
            subjects: &used,
        });
        (self.sampled_ns, self.has_new_target) = (Some(now_ns), false);
        let used_ns = targets.iter().filter_map(|target| target.used_ns).sum();
        let has_run = std::mem::replace(&mut self.used_ns, used_ns) != used_ns;
        self.is_resting = !has_run && self.gpus.boards.is_empty();
        // A single slow sample counts at most fourfold.
        self.sample_cost_ns = if self.sample_cost_ns == 0 {
            cost_ns
        } else {
            self.sample_cost_ns.midpoint(cost_ns.min(self.sample_cost_ns * 4))
        };
        self.gpus.request_reports();
        let unavailable = self.gpus.record_reports(&self.watcher, &targets, attributor);
        self.sampled_targets = targets;
        unavailable
    }

    /// Drops subjects that have had no span for a whole interval.
    fn sweep(&mut self, now_ns: u64, attributor: &mut Attributor) {
        if now_ns.saturating_sub(self.swept_ns) < SWEEP_INTERVAL_NS {
            return;
        }
        self.swept_ns = now_ns;
        let unavailable = self.unavailable.values().copied();
        let subjects: Vec<u32> = self.watcher.subjects().into_iter().chain(unavailable).collect();
        let unreferenced: HashSet<u32> =
            subjects.into_iter().filter(|subject| !attributor.has_spans_of(*subject)).collect();
        for subject in unreferenced.intersection(&self.unreferenced) {
            attributor.remove_subject(*subject);
            self.watcher.remove(*subject);
            self.unavailable.retain(|_, unavailable| unavailable != subject);
        }
        self.unreferenced =
            unreferenced.into_iter().filter(|subject| attributor.has_subject(*subject)).collect();
    }

    fn unavailable_subject(&mut self, reason: &'static str, attributor: &mut Attributor) -> u32 {
        let subject = || Subject { reason: Some(reason.to_owned()), ..Subject::default() };
        *self.unavailable.entry(reason).or_insert_with(|| attributor.add_subject(subject()))
    }

    fn process_subject(
        &mut self,
        peer: &Peer,
        identity: ProcessIdentity,
        attributor: &mut Attributor,
    ) -> Result<u32, WatchProcessError> {
        if let Some(subject) = self.watcher.find_process(identity) {
            return Ok(subject);
        }
        self.watcher.check_limit(peer.uid, peer.unlimited)?;
        let subject = attributor.add_subject(Subject { process: Some(identity.pid), ..Subject::default() });
        let added = self.watcher.add_process(subject, peer.uid, identity);
        if added.is_err() {
            attributor.remove_subject(subject);
        }
        self.has_new_target = true;
        added.map(|()| subject)
    }

    fn requested_process(
        &mut self,
        peer: &Peer,
        pid: i64,
        attributor: &mut Attributor,
    ) -> Result<u32, MethodError> {
        let field = |error| method_error("process", error);
        let pid = u32::try_from(pid).ok().filter(|pid| *pid > 0);
        let pid = pid
            .ok_or_else(|| field(WatchProcessError::NotFound("must be a process ID, 1 or greater".into())))?;
        let (identity, uid) = self.watcher.identify_with_owner(pid).map_err(field)?;
        if uid != peer.uid && peer.access < Access::Telemetry {
            return Err(MethodError::AccessDenied { needs: "telemetry".into() });
        }
        self.process_subject(peer, identity, attributor).map_err(field)
    }

    fn requested_cgroup(
        &mut self,
        peer: &Peer,
        path: &str,
        attributor: &mut Attributor,
    ) -> Result<u32, MethodError> {
        let field = |error| method_error("cgroup", error);
        let group = self.watcher.open_cgroup(path).map_err(field)?;
        if group.uid != peer.uid && peer.access < Access::Telemetry {
            return Err(MethodError::AccessDenied { needs: "telemetry".into() });
        }
        if let Some(subject) = self.watcher.find_cgroup(&group) {
            return Ok(subject);
        }
        self.watcher.check_limit(peer.uid, peer.unlimited).map_err(field)?;
        let subject = attributor.add_subject(Subject { cgroup: Some(path.to_owned()), ..Subject::default() });
        self.watcher.add_cgroup(subject, peer.uid, group);
        self.has_new_target = true;
        Ok(subject)
    }
}

fn method_error(field: &str, error: WatchProcessError) -> MethodError {
    match error {
        WatchProcessError::NotFound(reason) => MethodError::InvalidValue { field: field.to_owned(), reason },
        WatchProcessError::LimitReached { limit } => MethodError::QuotaExceeded {
            quota: "watched processes and control groups".into(),
            limit: limit as u64,
        },
    }
}

/// An NVIDIA board, and the time that each subject has used of it.
#[derive(Debug)]
struct GpuBoard {
    domain: usize,
    name: String,
    uuid: String,
    /// Started with the first sample: it has a thread, which a daemon without spans does not need.
    process_time: Option<ProcessUtilization>,
    used_by_subject: HashMap<u32, u64>,
    busy_total: u64,
    is_reported: bool,
}

/// The boards whose time is split by process. A board is split from its first answer on. One that does not report
/// process times is reported once, and its domain is not split.
#[derive(Debug)]
pub(crate) struct GpuProcessUsage {
    library: Option<PathBuf>,
    boards: Vec<GpuBoard>,
}

impl GpuProcessUsage {
    pub(crate) fn new<'a>(
        domains: impl Iterator<Item = (usize, &'a Domain)>,
        library: Option<PathBuf>,
    ) -> Self {
        let mut usage = Self { library, boards: Vec::new() };
        usage.extend(domains);
        usage
    }

    /// Adds the domains that are whole NVIDIA boards.
    fn extend<'a>(&mut self, domains: impl Iterator<Item = (usize, &'a Domain)>) {
        let board = |(index, domain): (usize, &Domain)| {
            let uuid = domain
                .device
                .clone()
                .filter(|_| domain.source == nvml::NAME && domain.kind == DomainKind::Gpu)?;
            let name = domain.name.clone();
            Some(GpuBoard {
                domain: index,
                name,
                uuid,
                process_time: None,
                used_by_subject: HashMap::new(),
                busy_total: 0,
                is_reported: false,
            })
        };
        self.boards.extend(domains.filter_map(board));
    }

    /// Requests the next reports of all boards.
    fn request_reports(&mut self) {
        for board in &mut self.boards {
            if board.process_time.is_none() {
                board.process_time = ProcessUtilization::spawn(self.library.as_ref(), board.uuid.clone());
            }
            board.process_time.iter().for_each(ProcessUtilization::request);
        }
    }

    /// Records what the boards have reported since the last call. Returns the boards that report no process times.
    fn record_reports(
        &mut self,
        watcher: &ProcessWatcher,
        targets: &[TargetUsage],
        attributor: &mut Attributor,
    ) -> Vec<Absent> {
        let mut unavailable = Vec::new();
        for (board, basis) in self.boards.iter_mut().zip(1..) {
            let Some(process_time) = &board.process_time else { continue };
            match process_time.take_report() {
                None => {}
                Some(UtilizationReport::Measured(at_ns, used)) => {
                    board.record_usage(at_ns, &used, basis, watcher, targets, attributor)
                }
                Some(UtilizationReport::Unavailable(reason)) if !board.is_reported => {
                    board.is_reported = true;
                    let reason = format!("{}: no process share: {reason}", board.name);
                    unavailable.push(Absent { source: nvml::NAME.into(), reason });
                }
                Some(UtilizationReport::Unavailable(_)) => board.record_unknown(basis, targets, attributor),
            }
        }
        unavailable
    }
}

impl GpuBoard {
    fn record_usage(
        &mut self,
        at_ns: u64,
        used_by_pid: &HashMap<u32, u64>,
        basis: usize,
        watcher: &ProcessWatcher,
        targets: &[TargetUsage],
        attributor: &mut Attributor,
    ) {
        self.busy_total += used_by_pid.values().sum::<u64>();
        let mut usages = Vec::with_capacity(targets.len());
        for target in targets {
            let used_by_target = used_by_pid
                .iter()
                .filter(|(pid, _)| watcher.contains(target.subject, **pid))
                .map(|(_, used)| used);
            let used = self.used_by_subject.entry(target.subject).or_default();
            *used += used_by_target.sum::<u64>();
            usages.push(SubjectUsage {
                subject: target.subject,
                amount: Some(*used),
                disjoint: target.is_disjoint,
            });
        }
        self.used_by_subject.retain(|subject, _| targets.iter().any(|target| target.subject == *subject));
        attributor.set_basis(self.domain, basis);
        attributor.record_usage(&BasisUsageSample {
            at_ns,
            basis,
            total: Some(self.busy_total),
            subjects: &usages,
        });
    }

    /// Records that a board has stopped reporting: its time by process is unknown from here on.
    fn record_unknown(&self, basis: usize, targets: &[TargetUsage], attributor: &mut Attributor) {
        let unknown = |target: &TargetUsage| SubjectUsage {
            subject: target.subject,
            amount: None,
            disjoint: target.is_disjoint,
        };
        let used: Vec<SubjectUsage> = targets.iter().map(unknown).collect();
        attributor.record_usage(&BasisUsageSample {
            at_ns: crate::clock::monotonic_ns(),
            basis,
            total: None,
            subjects: &used,
        });
    }
}
