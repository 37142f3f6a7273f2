//! Whose use of the machine a span asks for, and when it is looked at.
//!
//! Owns the watch over processes and control groups, and the pace of the looks: one soon after a span of somebody new
//! opened, one before a closed span settles, ten a second while spans are open, none while there is no span; and never
//! so many that they cost more than a fiftieth of a CPU (a tenth while new processes keep coming). A process is watched for its own user, and for whoever may know
//! everybody's accounts; the peer's own process comes from the transport, never from a message.

use std::collections::{HashMap, HashSet};

use super::access::Peer;
use super::gpu_share::GpuShares;
use super::service::{Caller, Service};
use crate::attribution::{CPU_TIME, Ledger, Look, Subject, Used};
use crate::domain::{Absent, Domain};
use crate::process_usage::{Glance, Origin, Roots, Unwatched, Watch};
use crate::protocol::{Access, OpenSpan, Refusal};

/// From one look to the next while spans are open, and while some wait for their accounts.
const OPEN_NS: u64 = 100_000_000;
const CLOSING_NS: u64 = 10_000_000;
/// A look is followed by so many times its cost without one; by fewer where somebody new waits for the first.
const RESTS: u64 = 50;
const RESTS_SOON: u64 = 10;
/// Those whom no span names any more are forgotten after this long.
const FORGET_NS: u64 = 5_000_000_000;

const UNTOLD: &str = "the peer's process is not known: the transport does not tell it, or /proc hides it from the daemon \
                      (hidepid=, ProtectProc=)";
const FULL: &str = "too many processes are watched at once";

/// Those whom spans ask for.
pub(crate) struct Subjects {
    watch: Watch,
    gpus: GpuShares,
    /// Subjects of whom nothing can be known, by the reason.
    excused: HashMap<&'static str, u32>,
    looked_ns: Option<u64>,
    cost_ns: u64,
    /// Somebody new is to be looked at.
    soon: bool,
    swept_ns: u64,
    unused: HashSet<u32>,
}

impl Subjects {
    pub(crate) fn new(roots: Roots, gpus: GpuShares) -> Self {
        Self {
            watch: Watch::new(roots),
            gpus,
            excused: HashMap::new(),
            looked_ns: None,
            cost_ns: 0,
            soon: false,
            swept_ns: 0,
            unused: HashSet::new(),
        }
    }

    /// GPUs that were found late, by their domains' numbers.
    pub(crate) fn add_gpus<'a>(&mut self, domains: impl Iterator<Item = (usize, &'a Domain)>) {
        self.gpus.extend(domains);
    }

    /// When a look is due; `None` while nobody is asked for.
    fn due_ns(&self, ledger: &Ledger) -> Option<u64> {
        if !ledger.has_subjects() || !ledger.busy() {
            return None;
        }
        let (pace_ns, rests) = match (self.soon, ledger.is_closing()) {
            (true, _) => (CLOSING_NS, RESTS_SOON),
            (false, true) => (CLOSING_NS, RESTS),
            (false, false) => (OPEN_NS, RESTS),
        };
        Some(self.looked_ns.map_or(0, |looked_ns| looked_ns + pace_ns.max(self.cost_ns * rests)))
    }

    fn look(&mut self, now_ns: u64, ledger: &mut Ledger) -> Vec<Absent> {
        let (Glance { busy_ns, counted }, cost_ns) = self.watch.look();
        let used = |counted: &crate::process_usage::Counted| {
            let used = counted.used_ns;
            Used { subject: counted.number, used, apart: counted.apart }
        };
        for counted in &counted {
            let reason = match (busy_ns, counted.used_ns) {
                (None, _) => Some("the machine's own busy time cannot be read in /proc/stat"),
                (_, None) => Some("the control group is gone"),
                _ => None,
            };
            ledger.excuse(counted.number, reason.map(str::to_owned));
        }
        let used: Vec<Used> = counted.iter().map(used).collect();
        ledger.look(&Look { at_ns: now_ns, basis: CPU_TIME, busy: busy_ns, used: &used });
        (self.looked_ns, self.soon) = (Some(now_ns), false);
        // One slow look alone is a hiccup.
        self.cost_ns =
            if self.cost_ns == 0 { cost_ns } else { self.cost_ns.midpoint(cost_ns.min(self.cost_ns * 4)) };
        self.gpus.look(&self.watch, &counted, ledger)
    }

    /// Forgets those whom no span names any more.
    fn sweep(&mut self, now_ns: u64, ledger: &mut Ledger) {
        if now_ns.saturating_sub(self.swept_ns) < FORGET_NS {
            return;
        }
        self.swept_ns = now_ns;
        let excused = self.excused.values().copied();
        let numbers: Vec<u32> = self.watch.numbers().into_iter().chain(excused).collect();
        let unused: HashSet<u32> = numbers.into_iter().filter(|number| !ledger.refers_to(*number)).collect();
        for number in unused.intersection(&self.unused) {
            ledger.dismiss(*number);
            self.watch.remove(*number);
            self.excused.retain(|_, excused| excused != number);
        }
        self.unused = unused.into_iter().filter(|number| ledger.has(*number)).collect();
    }

    fn excused(&mut self, reason: &'static str, ledger: &mut Ledger) -> u32 {
        let subject = || Subject { reason: Some(reason.to_owned()), ..Subject::default() };
        *self.excused.entry(reason).or_insert_with(|| ledger.admit(subject()))
    }

    fn process(&mut self, peer: &Peer, origin: Origin, ledger: &mut Ledger) -> Result<u32, Unwatched> {
        if let Some(number) = self.watch.number_of(origin) {
            return Ok(number);
        }
        self.watch.check_room(peer.uid, peer.unlimited)?;
        let number = ledger.admit(Subject { process: Some(origin.pid), ..Subject::default() });
        let added = self.watch.add_process(number, peer.uid, origin);
        if added.is_err() {
            ledger.dismiss(number);
        }
        self.soon = true;
        added.map(|()| number)
    }

    fn named_process(&mut self, peer: &Peer, pid: i64, ledger: &mut Ledger) -> Result<u32, Refusal> {
        let field = |wrong| refusal("process", wrong);
        let pid = u32::try_from(pid).ok().filter(|pid| *pid > 0);
        let pid =
            pid.ok_or_else(|| field(Unwatched::Absent("must be a process's number, from 1 on".into())))?;
        let (origin, uid) = self.watch.process(pid).map_err(field)?;
        if uid != peer.uid && peer.access < Access::Telemetry {
            return Err(Refusal::AccessDenied { needs: "telemetry".into() });
        }
        self.process(peer, origin, ledger).map_err(field)
    }

    fn named_group(&mut self, peer: &Peer, path: &str, ledger: &mut Ledger) -> Result<u32, Refusal> {
        let field = |wrong| refusal("cgroup", wrong);
        let group = self.watch.group(path).map_err(field)?;
        if group.uid != peer.uid && peer.access < Access::Telemetry {
            return Err(Refusal::AccessDenied { needs: "telemetry".into() });
        }
        if let Some(number) = self.watch.number_of_group(&group) {
            return Ok(number);
        }
        self.watch.check_room(peer.uid, peer.unlimited).map_err(field)?;
        let number = ledger.admit(Subject { cgroup: Some(path.to_owned()), ..Subject::default() });
        self.watch.add_group(number, peer.uid, group);
        self.soon = true;
        Ok(number)
    }
}

impl Service {
    /// The process at the other end, by the number that the transport gave.
    pub fn origin_of(&self, pid: Option<u32>) -> Option<Origin> {
        self.subjects.watch.origin(pid?)
    }

    /// Whose use a new span asks for, by the ledger's number.
    pub(crate) fn subject_of(&mut self, caller: &Caller, call: &OpenSpan) -> Result<u32, Refusal> {
        let (subjects, ledger, peer) = (&mut self.subjects, &mut self.ledger, &caller.peer);
        if peer.access < Access::Span {
            // The looks at CPU times lie on no grid, so the coarse tier has nothing of them.
            let asked = call.process.is_some() || call.cgroup.is_some();
            let denied = Refusal::AccessDenied { needs: Access::Span.word().into() };
            return if asked { Err(denied) } else { Ok(0) };
        }
        if call.process_share == Some(false) {
            if call.process.is_some() || call.cgroup.is_some() {
                let reason = "cannot be false beside process or cgroup; leave one of them out".to_owned();
                return Err(Refusal::InvalidValue { field: "process_share".into(), reason });
            }
            return Ok(0);
        }
        match (call.process, &call.cgroup, caller.origin) {
            (Some(_), Some(_), _) => {
                let reason = "cannot be named beside process; choose one".to_owned();
                Err(Refusal::InvalidValue { field: "cgroup".into(), reason })
            }
            (Some(pid), None, _) => subjects.named_process(peer, pid, ledger),
            (None, Some(path), _) => subjects.named_group(peer, path, ledger),
            (None, None, None) => Ok(subjects.excused(UNTOLD, ledger)),
            (None, None, Some(origin)) => Ok(match subjects.process(peer, origin, ledger) {
                Ok(number) => number,
                Err(Unwatched::Full { .. }) => subjects.excused(FULL, ledger),
                Err(Unwatched::Absent(_)) => subjects.excused(UNTOLD, ledger),
            }),
        }
    }

    /// Looks at who used the machine, if that is due.
    pub(crate) fn look(&mut self, now_ns: u64) {
        if self.look_due_ns().is_some_and(|due_ns| due_ns <= now_ns) {
            let silent = self.subjects.look(now_ns, &mut self.ledger);
            self.absent.extend(silent);
        }
        self.subjects.sweep(now_ns, &mut self.ledger);
    }

    /// When that is due.
    pub(crate) fn look_due_ns(&self) -> Option<u64> {
        self.subjects.due_ns(&self.ledger)
    }
}

fn refusal(field: &str, wrong: Unwatched) -> Refusal {
    match wrong {
        Unwatched::Absent(reason) => Refusal::InvalidValue { field: field.to_owned(), reason },
        Unwatched::Full { limit } => Refusal::QuotaExceeded {
            quota: "watched processes and control groups".into(),
            limit: limit as u64,
        },
    }
}
