//! Those who are watched, by number, and one look at all of them.
//!
//! Owns the table and its bounds. Numbers are given by whoever asks for the watch. A look reads a few files for each
//! process that is watched; whoever orders one learns what it took.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::clock::monotonic_ns;

use super::cgroup::{self, Cgroup};
use super::pid_stat::PidStat;
use super::process_children::ProcessChildren;
use super::process_tree::ProcessTree;
use super::system_cpu_time::SystemCpuTime;

/// Who is watched at once at most, and of these how many for one user.
const MAX_TARGETS: usize = 256;
const MAX_TARGETS_PER_USER: usize = 64;

/// Where the kernel shows its processes and control groups.
#[derive(Debug, Clone)]
pub struct KernelRoots {
    /// `/proc`.
    pub proc_root: PathBuf,
    /// `/sys`.
    pub sysfs_root: PathBuf,
}

/// A process, told from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessIdentity {
    /// Its number.
    pub pid: u32,
    /// When it started, in ticks since the boot.
    pub start_ticks: u64,
}

/// Why somebody is not watched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchProcessError {
    /// Nobody of that name, or hidden.
    #[error("{0}")]
    NotFound(String),
    /// The bound is reached.
    #[error("{limit} processes and control groups are watched already")]
    LimitReached {
        /// The bound.
        limit: usize,
    },
}

/// What one of those who are watched has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetUsage {
    /// Its number here.
    pub subject: u32,
    /// CPU time since the first look; `None` where nobody tells.
    pub used_ns: Option<u64>,
    /// Whether it has nothing in common with the others that say so too.
    pub is_disjoint: bool,
}

/// One look.
#[derive(Debug, Clone, Default)]
pub struct UsageSample {
    /// The machine's busy time; `None` where nobody tells.
    pub busy_ns: Option<u64>,
    /// Everybody who is watched.
    pub targets: Vec<TargetUsage>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum TargetKey {
    Process(ProcessIdentity),
    Cgroup(u64, String),
}

#[derive(Debug)]
enum TargetKind {
    /// With the control group it is in, as far as that is shown.
    Process(ProcessTree, Option<String>),
    Cgroup(Cgroup),
}

#[derive(Debug)]
struct WatchedTarget {
    key: TargetKey,
    kind: TargetKind,
    user: u32,
}

/// The table.
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
    /// Over these roots; opens a file or two and reads nothing until somebody is watched.
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

    /// The process that has this number now.
    pub fn identify(&self, pid: u32) -> Option<ProcessIdentity> {
        Some(ProcessIdentity { pid, start_ticks: PidStat::read(&self.roots.proc_root, pid)?.start_ticks })
    }

    /// The process that has this number now, and whose it is.
    ///
    /// # Errors
    /// There is none, or it is hidden.
    pub fn identify_with_owner(&self, pid: u32) -> Result<(ProcessIdentity, u32), WatchProcessError> {
        let absent = || WatchProcessError::NotFound(format!("there is no process {pid}, or /proc hides it"));
        let identity = self.identify(pid).ok_or_else(absent)?;
        let entry = self.roots.proc_root.join(pid.to_string()).metadata().map_err(|_| absent())?;
        // The number may have passed to another process between the two.
        if self.identify(pid) == Some(identity) { Ok((identity, entry.uid())) } else { Err(absent()) }
    }

    /// The control group of this path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open_cgroup(&self, path: &str) -> Result<Cgroup, WatchProcessError> {
        Cgroup::open(self.cgroup2_mount.as_deref(), path).map_err(WatchProcessError::NotFound)
    }

    /// The number under which a process is watched.
    pub fn find_process(&self, identity: ProcessIdentity) -> Option<u32> {
        self.subjects_by_key.get(&TargetKey::Process(identity)).copied()
    }

    /// The number under which a group is watched.
    pub fn find_cgroup(&self, group: &Cgroup) -> Option<u32> {
        self.subjects_by_key.get(&TargetKey::Cgroup(group.inode, group.path.clone())).copied()
    }

    /// Whether there is room for one more, watched for this user.
    ///
    /// # Errors
    /// There is none.
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

    /// Watches a process under this number.
    ///
    /// # Errors
    /// It is gone.
    pub fn add_process(
        &mut self,
        subject: u32,
        user: u32,
        identity: ProcessIdentity,
    ) -> Result<(), WatchProcessError> {
        let gone = || WatchProcessError::NotFound("the process was gone before it could be looked at".into());
        let tree =
            ProcessTree::of(identity.pid, identity.start_ticks, &self.roots.proc_root).ok_or_else(gone)?;
        let group = self.cgroup_path(identity.pid);
        self.add(
            subject,
            WatchedTarget { key: TargetKey::Process(identity), kind: TargetKind::Process(tree, group), user },
        );
        Ok(())
    }

    /// Watches a control group under this number.
    pub fn add_cgroup(&mut self, subject: u32, user: u32, group: Cgroup) {
        let name = TargetKey::Cgroup(group.inode, group.path.clone());
        self.add(subject, WatchedTarget { key: name, kind: TargetKind::Cgroup(group), user });
    }

    fn add(&mut self, subject: u32, watched: WatchedTarget) {
        self.subjects_by_key.insert(watched.key.clone(), subject);
        self.targets.insert(subject, watched);
    }

    /// Watches it no longer.
    pub fn remove(&mut self, subject: u32) {
        if let Some(watched) = self.targets.remove(&subject) {
            self.subjects_by_key.remove(&watched.key);
        }
    }

    /// The numbers of all who are watched.
    pub fn subjects(&self) -> Vec<u32> {
        self.targets.keys().copied().collect()
    }

    /// Whether this process belongs to the one of this number, as of the last look.
    pub fn contains(&self, subject: u32, pid: u32) -> bool {
        match self.targets.get(&subject).map(|watched| &watched.kind) {
            Some(TargetKind::Process(tree, _)) => tree.contains(pid),
            Some(TargetKind::Cgroup(group)) => {
                self.cgroup_path(pid).is_some_and(|path| group.contains(&path))
            }
            None => false,
        }
    }

    /// Looks at everybody, and gives what the look took.
    pub fn sample(&mut self) -> (UsageSample, u64) {
        let started_ns = monotonic_ns();
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
        // After those who are part of it, so that it has not seen less than they have.
        let busy_ns = self.system_cpu_time.busy_ns();
        let count =
            |(subject, used_ns)| TargetUsage { subject, used_ns, is_disjoint: self.is_disjoint(subject) };
        let targets = used.into_iter().map(count).collect();
        (UsageSample { busy_ns, targets }, monotonic_ns().saturating_sub(started_ns))
    }

    /// Whether nobody else who is watched holds this one, as far as can be told.
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

/// The time since the boot in the kernel's ticks, as processes' starts are told.
fn ticks_since_boot() -> u64 {
    crate::clock::boottime_ns() / super::TICK_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watcher() -> ProcessWatcher {
        ProcessWatcher::new(KernelRoots { proc_root: "/proc".into(), sysfs_root: "/sys".into() })
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
