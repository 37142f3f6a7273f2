//! Whose use of the machine a span asks for, and when it is looked at.
//!
//! Owns the watch over processes and control groups, and the pace of the looks: one soon after a span of somebody new
//! opened, one before a closed span settles, ten a second while spans are open, none while there is no span; and never
//! so many that they cost more than a fiftieth of a CPU (a tenth while new processes keep coming). A process is watched for its own user, and for whoever may know
//! everybody's accounts; the peer's own process comes from the transport, never from a message.

use std::collections::{HashMap, HashSet};

use super::access::Peer;
use super::gpu_process_usage::GpuProcessUsage;
use super::service::{Caller, Service};
use crate::attribution::{Attributor, BasisUsageSample, CPU_TIME, Subject, SubjectUsage};
use crate::domain::{Absent, Domain};
use crate::process_usage::{KernelRoots, ProcessIdentity, ProcessWatcher, UsageSample, WatchProcessError};
use crate::protocol::{Access, MethodError, OpenSpan};

/// From one look to the next while spans are open, and while some wait for their accounts.
const OPEN_INTERVAL_NS: u64 = 100_000_000;
const CLOSING_INTERVAL_NS: u64 = 10_000_000;
/// A look is followed by so many times its cost without one; by fewer where somebody new waits for the first.
const COST_FACTOR: u64 = 50;
const NEW_TARGET_COST_FACTOR: u64 = 10;
/// Those whom no span names any more are forgotten after this long.
const SWEEP_INTERVAL_NS: u64 = 5_000_000_000;

const UNKNOWN_PEER_REASON: &str = "the peer's process is not known: the transport does not tell it, or /proc hides it from the daemon \
                      (hidepid=, ProtectProc=)";
const LIMIT_REASON: &str = "too many processes are watched at once";

/// Those whom spans ask for.
pub(crate) struct ProcessTracker {
    watcher: ProcessWatcher,
    gpus: GpuProcessUsage,
    /// Subjects of whom nothing can be known, by the reason.
    unavailable: HashMap<&'static str, u32>,
    sampled_ns: Option<u64>,
    sample_cost_ns: u64,
    /// Somebody new is to be looked at.
    has_new_target: bool,
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
            swept_ns: 0,
            unreferenced: HashSet::new(),
        }
    }

    /// GPUs that were found late, by their domains' numbers.
    pub(crate) fn add_gpus<'a>(&mut self, domains: impl Iterator<Item = (usize, &'a Domain)>) {
        self.gpus.extend(domains);
    }

    /// When a look is due; `None` while nobody is asked for.
    fn sample_due_ns(&self, attributor: &Attributor) -> Option<u64> {
        if !attributor.has_subjects() || !attributor.is_busy() {
            return None;
        }
        let (interval_ns, cost_factor) = match (self.has_new_target, attributor.has_closing_spans()) {
            (true, _) => (CLOSING_INTERVAL_NS, NEW_TARGET_COST_FACTOR),
            (false, true) => (CLOSING_INTERVAL_NS, COST_FACTOR),
            (false, false) => (OPEN_INTERVAL_NS, COST_FACTOR),
        };
        Some(
            self.sampled_ns
                .map_or(0, |looked_ns| looked_ns + interval_ns.max(self.sample_cost_ns * cost_factor)),
        )
    }

    fn sample(&mut self, now_ns: u64, attributor: &mut Attributor) -> Vec<Absent> {
        let (UsageSample { busy_ns, targets }, cost_ns) = self.watcher.sample();
        let usage = |target: &crate::process_usage::TargetUsage| {
            let used = target.used_ns;
            SubjectUsage { subject: target.subject, amount: used, disjoint: target.is_disjoint }
        };
        for target in &targets {
            let reason = match (busy_ns, target.used_ns) {
                (None, _) => Some("the machine's own busy time cannot be read in /proc/stat"),
                (_, None) => Some("the control group is gone"),
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
        // One slow look alone is a hiccup.
        self.sample_cost_ns = if self.sample_cost_ns == 0 {
            cost_ns
        } else {
            self.sample_cost_ns.midpoint(cost_ns.min(self.sample_cost_ns * 4))
        };
        self.gpus.sample(&self.watcher, &targets, attributor)
    }

    /// Forgets those whom no span names any more.
    fn sweep(&mut self, now_ns: u64, attributor: &mut Attributor) {
        if now_ns.saturating_sub(self.swept_ns) < SWEEP_INTERVAL_NS {
            return;
        }
        self.swept_ns = now_ns;
        let excused = self.unavailable.values().copied();
        let subjects: Vec<u32> = self.watcher.subjects().into_iter().chain(excused).collect();
        let unreferenced: HashSet<u32> =
            subjects.into_iter().filter(|subject| !attributor.has_spans_of(*subject)).collect();
        for subject in unreferenced.intersection(&self.unreferenced) {
            attributor.remove_subject(*subject);
            self.watcher.remove(*subject);
            self.unavailable.retain(|_, excused| excused != subject);
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
        let pid = pid.ok_or_else(|| {
            field(WatchProcessError::NotFound("must be a process's number, from 1 on".into()))
        })?;
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

impl Service {
    /// The process at the other end, by the number that the transport gave.
    pub fn identify_process(&self, pid: Option<u32>) -> Option<ProcessIdentity> {
        self.process_tracker.watcher.identify(pid?)
    }

    /// Whose use a new span asks for, by the attributor's number.
    pub(crate) fn resolve_subject(&mut self, caller: &Caller, call: &OpenSpan) -> Result<u32, MethodError> {
        let (tracker, attributor, peer) = (&mut self.process_tracker, &mut self.attributor, &caller.peer);
        if peer.access < Access::Span {
            // The looks at CPU times lie on no grid, so the coarse tier has nothing of them.
            let asked = call.process.is_some() || call.cgroup.is_some();
            let denied = MethodError::AccessDenied { needs: Access::Span.as_str().into() };
            return if asked { Err(denied) } else { Ok(0) };
        }
        if call.process_share == Some(false) {
            if call.process.is_some() || call.cgroup.is_some() {
                let reason = "cannot be false beside process or cgroup; leave one of them out".to_owned();
                return Err(MethodError::InvalidValue { field: "process_share".into(), reason });
            }
            return Ok(0);
        }
        match (call.process, &call.cgroup, caller.process) {
            (Some(_), Some(_), _) => {
                let reason = "cannot be named beside process; choose one".to_owned();
                Err(MethodError::InvalidValue { field: "cgroup".into(), reason })
            }
            (Some(pid), None, _) => tracker.requested_process(peer, pid, attributor),
            (None, Some(path), _) => tracker.requested_cgroup(peer, path, attributor),
            (None, None, None) => Ok(tracker.unavailable_subject(UNKNOWN_PEER_REASON, attributor)),
            (None, None, Some(identity)) => Ok(match tracker.process_subject(peer, identity, attributor) {
                Ok(subject) => subject,
                Err(WatchProcessError::LimitReached { .. }) => {
                    tracker.unavailable_subject(LIMIT_REASON, attributor)
                }
                Err(WatchProcessError::NotFound(_)) => {
                    tracker.unavailable_subject(UNKNOWN_PEER_REASON, attributor)
                }
            }),
        }
    }

    /// Looks at who used the machine, if that is due.
    pub(crate) fn sample_process_usage(&mut self, now_ns: u64) {
        if self.process_sample_due_ns().is_some_and(|due_ns| due_ns <= now_ns) {
            let unavailable = self.process_tracker.sample(now_ns, &mut self.attributor);
            self.absent.extend(unavailable);
        }
        self.process_tracker.sweep(now_ns, &mut self.attributor);
    }

    /// When that is due.
    pub(crate) fn process_sample_due_ns(&self) -> Option<u64> {
        self.process_tracker.sample_due_ns(&self.attributor)
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
