//! The table of watched processes and control groups, and samples of their CPU time.
//!
//! Owns the table and its limits; the caller assigns the subject numbers. A sample reads a few files per process and reports
//! its own cost.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::clock::thread_cpu_ns;

use super::cgroup::{self, Cgroup};
use super::pid_stat::{PidStat, TICK_NS};
use super::process_tree::{ProcessChildren, ProcessTree};
use super::system_cpu_time::SystemCpuTime;

/// The maximum number of targets, in total and per user.
const MAX_TARGETS: usize = 256;
const MAX_TARGETS_PER_USER: usize = 64;

/// The mount points of the kernel's file systems.
#[derive(Debug, Clone)]
pub struct KernelRoots {
    /// The mount point of procfs: `/proc` but for tests.
    pub proc_root: PathBuf,
    /// The mount point of sysfs: `/sys` but for tests.
    pub sysfs_root: PathBuf,
}

/// A process. The start time distinguishes it from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessIdentity {
    /// As in the PID namespace of the daemon.
    pub pid: u32,
    /// Start time in ticks since boot.
    pub start_ticks: u64,
}

/// The reason why a target is not watched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchProcessError {
    /// The target does not exist or is hidden.
    #[error("{0}")]
    NotFound(String),
    /// The user, or all users together, watch as many targets as they may.
    #[error("{limit} processes and control groups are already watched")]
    LimitReached {
        /// The maximum number of targets.
        limit: usize,
    },
}

/// The CPU time of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetUsage {
    /// The number under which the attributor knows the target.
    pub subject: u32,
    /// CPU time since the first sample; `None` where it is unknown.
    pub used_ns: Option<u64>,
    /// No other target that is disjoint too has a process in common with it.
    pub is_disjoint: bool,
}

/// A sample of all targets.
#[derive(Debug, Clone, Default)]
pub struct UsageSample {
    /// The machine's busy time; `None` where it is unknown.
    pub busy_ns: Option<u64>,
    /// One for each watched target.
    pub targets: Vec<TargetUsage>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum TargetKey {
    Process(ProcessIdentity),
    Cgroup(u64, String),
}

#[derive(Debug)]
enum TargetKind {
    /// With its control group, if that is visible.
    Process(ProcessTree, Option<String>),
    Cgroup(Cgroup),
}

#[derive(Debug)]
struct WatchedTarget {
    key: TargetKey,
    kind: TargetKind,
    user: u32,
}

/// Reads the CPU time of processes with their descendants, and of control groups.
#[derive(Debug)]
pub struct ProcessWatcher {
    roots: KernelRoots,
    cgroup2_mount: Option<PathBuf>,
    system_cpu_time: SystemCpuTime,
    children: ProcessChildren,
    subjects_by_key: HashMap<TargetKey, u32>,
    targets: HashMap<u32, WatchedTarget>,
}

impl ProcessWatcher {
    /// Opens the file of the machine's busy time; reads no process until one is watched.
    pub fn new(roots: KernelRoots) -> Self {
        let cgroup2_mount = cgroup::cgroup2_mount(&roots.sysfs_root);
        let system_cpu_time = SystemCpuTime::open(&roots.proc_root, cgroup2_mount.as_deref());
        let children = ProcessChildren::new(roots.proc_root.clone());
        Self {
            roots,
            cgroup2_mount,
            system_cpu_time,
            children,
            subjects_by_key: HashMap::new(),
            targets: HashMap::new(),
        }
    }

    /// The process that currently has this number.
    pub fn identify(&self, pid: u32) -> Option<ProcessIdentity> {
        Some(ProcessIdentity { pid, start_ticks: PidStat::read(&self.roots.proc_root, pid)?.start_ticks })
    }

    /// The process that currently has this number, and its owner.
    ///
    /// # Errors
    /// It does not exist or is hidden.
    pub fn identify_with_owner(&self, pid: u32) -> Result<(ProcessIdentity, u32), WatchProcessError> {
        let absent = || WatchProcessError::NotFound(format!("there is no process {pid}, or /proc hides it"));
        let identity = self.identify(pid).ok_or_else(absent)?;
        let entry = self.roots.proc_root.join(pid.to_string()).metadata().map_err(|_| absent())?;
        // The number may have been reused between the two reads.
        if self.identify(pid) == Some(identity) { Ok((identity, entry.uid())) } else { Err(absent()) }
    }

    /// Opens the control group at this path.
    ///
    /// # Errors
    /// The path is not valid, or there is no such group.
    pub fn open_cgroup(&self, path: &str) -> Result<Cgroup, WatchProcessError> {
        Cgroup::open(self.cgroup2_mount.as_deref(), path).map_err(WatchProcessError::NotFound)
    }

    /// The subject of a watched process.
    pub fn find_process(&self, identity: ProcessIdentity) -> Option<u32> {
        self.subjects_by_key.get(&TargetKey::Process(identity)).copied()
    }

    /// The subject of a watched control group.
    pub fn find_cgroup(&self, group: &Cgroup) -> Option<u32> {
        self.subjects_by_key.get(&TargetKey::Cgroup(group.inode, group.path.clone())).copied()
    }

    /// Checks that one more target may be watched for this user.
    ///
    /// # Errors
    /// A limit is reached.
    pub fn check_limit(&self, user: u32, unlimited: bool) -> Result<(), WatchProcessError> {
        let of_user = self.targets.values().filter(|watched| watched.user == user).count();
        match () {
            () if self.targets.len() >= MAX_TARGETS => {
                Err(WatchProcessError::LimitReached { limit: MAX_TARGETS })
            }
            () if !unlimited && of_user >= MAX_TARGETS_PER_USER => {
                Err(WatchProcessError::LimitReached { limit: MAX_TARGETS_PER_USER })
            }
            () => Ok(()),
        }
    }

    /// Watches a process as this subject.
    ///
    /// # Errors
    /// It has exited.
    pub fn add_process(
        &mut self,
        subject: u32,
        user: u32,
        identity: ProcessIdentity,
    ) -> Result<(), WatchProcessError> {
        let gone = || WatchProcessError::NotFound("the process exited before it could be read".into());
        let tree =
            ProcessTree::of(identity.pid, identity.start_ticks, &self.roots.proc_root).ok_or_else(gone)?;
        let group = self.cgroup_path(identity.pid);
        self.add(
            subject,
            WatchedTarget { key: TargetKey::Process(identity), kind: TargetKind::Process(tree, group), user },
        );
        Ok(())
    }

    /// Watches a control group as this subject.
    pub fn add_cgroup(&mut self, subject: u32, user: u32, group: Cgroup) {
        let name = TargetKey::Cgroup(group.inode, group.path.clone());
        self.add(subject, WatchedTarget { key: name, kind: TargetKind::Cgroup(group), user });
    }

    fn add(&mut self, subject: u32, watched: WatchedTarget) {
        self.subjects_by_key.insert(watched.key.clone(), subject);
        self.targets.insert(subject, watched);
    }

    /// Stops watching a subject.
    pub fn remove(&mut self, subject: u32) {
        if let Some(watched) = self.targets.remove(&subject) {
            self.subjects_by_key.remove(&watched.key);
        }
    }

    /// The numbers of the watched targets, in no order.
    pub fn subjects(&self) -> Vec<u32> {
        self.targets.keys().copied().collect()
    }

    /// Whether a process belonged to the subject at the last sample.
    pub fn contains(&self, subject: u32, pid: u32) -> bool {
        match self.targets.get(&subject).map(|watched| &watched.kind) {
            Some(TargetKind::Process(tree, _)) => tree.contains(pid),
            Some(TargetKind::Cgroup(group)) => {
                self.cgroup_path(pid).is_some_and(|path| group.contains(&path))
            }
            None => false,
        }
    }

    /// Samples all targets; returns the sample and its cost, the nanoseconds of CPU time that it took. On a busy machine a
    /// sample waits for a CPU too, and that must not make the samples rarer.
    pub fn sample(&mut self) -> (UsageSample, u64) {
        let started_ns = thread_cpu_ns();
        let now_ticks = ticks_since_boot();
        self.children.refresh();
        let mut used: Vec<(u32, Option<u64>)> = Vec::with_capacity(self.targets.len());
        for (subject, watched) in &mut self.targets {
            let used_ns = match &mut watched.kind {
                TargetKind::Process(tree, _) => Some(tree.cpu_time_ns(&self.children, now_ticks)),
                TargetKind::Cgroup(group) => group.cpu_time_ns(),
            };
            used.push((*subject, used_ns));
        }
        // Read after the targets, so that it is not less than their sum.
        let busy_ns = self.system_cpu_time.busy_ns();
        let count =
            |(subject, used_ns)| TargetUsage { subject, used_ns, is_disjoint: self.is_disjoint(subject) };
        let targets = used.into_iter().map(count).collect();
        (UsageSample { busy_ns, targets }, thread_cpu_ns().saturating_sub(started_ns))
    }

    /// Whether no other target contains this one, as far as is visible.
    fn is_disjoint(&self, subject: u32) -> bool {
        let others =
            || self.targets.iter().filter(|(other, _)| **other != subject).map(|(_, watched)| &watched.kind);
        match &self.targets[&subject].kind {
            TargetKind::Process(tree, cgroup) => !others().any(|other| match other {
                TargetKind::Process(other, _) => other.contains(tree.root()),
                TargetKind::Cgroup(group) => cgroup.as_ref().is_some_and(|cgroup| group.contains(cgroup)),
            }),
            TargetKind::Cgroup(group) => !others().any(|other| match other {
                TargetKind::Cgroup(other) => other.contains(&group.path),
                TargetKind::Process(_, Some(cgroup)) => {
                    !group.contains(cgroup) && group.path.starts_with(cgroup.as_str())
                }
                TargetKind::Process(_, None) => false,
            }),
        }
    }

    /// The cgroup2 path of a process: the line `0::PATH`, cgroups(7).
    fn cgroup_path(&self, pid: u32) -> Option<String> {
        let text = std::fs::read_to_string(self.roots.proc_root.join(pid.to_string()).join("cgroup")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
    }
}

/// The time since boot in ticks, the unit of processes' start times.
fn ticks_since_boot() -> u64 {
    crate::clock::boottime_ns() / TICK_NS
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn watcher() -> ProcessWatcher {
        ProcessWatcher::new(KernelRoots { proc_root: "/proc".into(), sysfs_root: "/sys".into() })
    }

    #[test]
    fn the_cost_of_a_sample_does_not_contain_the_time_in_which_other_threads_ran() {
        let mut watcher = watcher();
        let identity = watcher.identify(std::process::id()).unwrap();
        watcher.add_process(1, 7, identity).unwrap();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let cpus = std::thread::available_parallelism().unwrap().get();
            for _ in 0..4 * cpus {
                scope.spawn(|| {
                    while !is_done.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            // Long enough for the scheduler to run other threads in the middle of many samples.
            for _ in 0..500 {
                let before_ns = thread_cpu_ns();
                let (_, cost_ns) = watcher.sample();
                let used_ns = thread_cpu_ns() - before_ns;
                if cost_ns > used_ns {
                    is_done.store(true, Ordering::Relaxed);
                    panic!("a cost of {cost_ns} ns for {used_ns} ns of CPU time");
                }
            }
            is_done.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn one_user_cannot_exhaust_the_total_limit() {
        let mut watcher = watcher();
        let identity = watcher.identify(std::process::id()).unwrap();
        for subject in 1..=MAX_TARGETS_PER_USER as u32 {
            assert_eq!(watcher.check_limit(7, false), Ok(()));
            watcher.add_process(subject, 7, identity).unwrap();
        }
        assert_eq!(
            watcher.check_limit(7, false),
            Err(WatchProcessError::LimitReached { limit: MAX_TARGETS_PER_USER })
        );
        assert_eq!(watcher.check_limit(8, false), Ok(()));
        assert_eq!(watcher.check_limit(7, true), Ok(()));
        for subject in 1000..1000 + (MAX_TARGETS - MAX_TARGETS_PER_USER) as u32 {
            watcher.add_process(subject, 8, identity).unwrap();
        }
        assert_eq!(watcher.check_limit(0, true), Err(WatchProcessError::LimitReached { limit: MAX_TARGETS }));
        watcher.remove(1);
        assert_eq!(watcher.check_limit(0, true), Ok(()));
    }

    #[test]
    fn a_process_inside_another_tree_is_not_disjoint_from_it() {
        let mut watcher = watcher();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        for (subject, pid) in [(1, std::process::id()), (2, child.id())] {
            let identity = watcher.identify(pid).unwrap();
            watcher.add_process(subject, 7, identity).unwrap();
        }
        let (sample, _) = watcher.sample();
        let is_disjoint =
            |subject| sample.targets.iter().find(|target| target.subject == subject).unwrap().is_disjoint;
        assert_eq!((is_disjoint(1), is_disjoint(2)), (true, false));
        assert!(sample.busy_ns.is_some() && sample.targets.iter().all(|target| target.used_ns.is_some()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn an_exited_process_is_not_watched() {
        let mut watcher = watcher();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let identity = watcher.identify(child.id()).unwrap();
        child.wait().unwrap();
        assert!(matches!(watcher.add_process(1, 7, identity), Err(WatchProcessError::NotFound(_))));
        assert!(matches!(watcher.identify_with_owner(identity.pid), Err(WatchProcessError::NotFound(_))));
        assert_eq!(watcher.find_process(identity), None);
    }
}
