//! GPUs whose time is told apart by process.
//!
//! Owns, for each board, whom its time belonged to so far: of each subject, and of all processes. A board is split from
//! its first answer on; one that does not tell is said so once, and its domain is not split.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::attribution::{Attributor, BasisUsageSample, SubjectUsage};
use crate::domain::{Absent, Domain, DomainKind};
use crate::process_usage::{ProcessWatcher, TargetUsage};
use crate::sources::nvml;
use crate::sources::nvml::process_utilization::{ProcessUtilization, UtilizationReport};

/// One board.
#[derive(Debug)]
struct GpuBoard {
    domain: usize,
    name: String,
    uuid: String,
    /// Made when it is first asked, so that a daemon without spans has no thread for it.
    process_time: Option<ProcessUtilization>,
    used_by_subject: HashMap<u32, u64>,
    busy_total: u64,
    is_reported: bool,
}

/// All boards.
#[derive(Debug)]
pub(crate) struct GpuProcessUsage {
    library: Option<PathBuf>,
    boards: Vec<GpuBoard>,
}

impl GpuProcessUsage {
    /// Of those of these domains that are whole boards of NVIDIA's.
    pub(crate) fn new<'a>(
        domains: impl Iterator<Item = (usize, &'a Domain)>,
        library: Option<PathBuf>,
    ) -> Self {
        let mut shares = Self { library, boards: Vec::new() };
        shares.extend(domains);
        shares
    }

    /// More of them, by their numbers.
    pub(crate) fn extend<'a>(&mut self, domains: impl Iterator<Item = (usize, &'a Domain)>) {
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

    /// Passes on what the boards have told, and asks them again; gives what is to be said of those that do not tell.
    pub(crate) fn sample(
        &mut self,
        watcher: &ProcessWatcher,
        targets: &[TargetUsage],
        attributor: &mut Attributor,
    ) -> Vec<Absent> {
        let mut unavailable = Vec::new();
        for (board, basis) in self.boards.iter_mut().zip(1..) {
            if board.process_time.is_none() {
                board.process_time = ProcessUtilization::spawn(self.library.as_ref(), board.uuid.clone());
            }
            let Some(process_time) = &board.process_time else { continue };
            process_time.request();
            match process_time.take_report() {
                None => {}
                Some(UtilizationReport::Measured(at_ns, used)) => {
                    board.record_usage(at_ns, &used, basis, watcher, targets, attributor)
                }
                Some(UtilizationReport::Unavailable(reason)) if !board.is_reported => {
                    board.is_reported = true;
                    let reason = format!("{}: no part by process: {reason}", board.name);
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

    /// It told once and does not any more: what it does not tell is not known.
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
