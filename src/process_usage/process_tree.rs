//! A process with its descendants, and the CPU time of all of them.
//!
//! Owns the members and the count. A child that comes and goes between two looks is not lost: its parent's time of waited-for
//! children holds it. A member stays one when its parent ends before it. Invariant: the count never falls; CPU time from
//! before the first look is not in it. What is lost: the time of a child that nobody waited for (SIGCHLD ignored, or
//! its parent gone) since the last look at it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::TICK_NS;
use super::pid_stat::PidStat;
use super::process_children::ProcessChildren;
use super::process_clock;

/// More members than this are not followed.
const MAX_PROCESSES: usize = 4096;

#[derive(Debug, Clone, Copy)]
struct TreeProcess {
    start_ticks: u64,
    parent: u32,
    /// What it had used when it became a member, where that was no birth.
    before_ns: u64,
    cpu_ns: u64,
    waited_children_ns: u64,
}

impl TreeProcess {
    fn counted_ns(&self) -> u64 {
        (self.cpu_ns + self.waited_children_ns).saturating_sub(self.before_ns)
    }
}

/// The tree.
#[derive(Debug)]
pub struct ProcessTree {
    root: u32,
    proc_root: PathBuf,
    /// Its members' own clocks may be asked: they are processes of this machine.
    has_process_clocks: bool,
    /// The root's own time is left out: the meter runs in it.
    is_root_excluded: bool,
    processes: BTreeMap<u32, TreeProcess>,
    /// What members had used that are gone, where no other member's count holds it.
    exited_ns: u64,
    cpu_time_ns: u64,
    sampled_ticks: Option<u64>,
}

impl ProcessTree {
    /// The tree of the process with this number and start; `None` where it is gone.
    pub fn of(pid: u32, start_ticks: u64, proc_root: &Path) -> Option<Self> {
        let stat = PidStat::read(proc_root, pid).filter(|stat| stat.start_ticks == start_ticks)?;
        let has_process_clocks = proc_root == Path::new("/proc");
        let is_root_excluded = has_process_clocks && pid == std::process::id();
        let mut tree = Self {
            root: pid,
            proc_root: proc_root.to_owned(),
            has_process_clocks,
            is_root_excluded,
            processes: BTreeMap::new(),
            exited_ns: 0,
            cpu_time_ns: 0,
            sampled_ticks: None,
        };
        let process = tree.read_process(pid, &stat);
        tree.processes
            .insert(pid, TreeProcess { before_ns: process.cpu_ns + process.waited_children_ns, ..process });
        Some(tree)
    }

    /// The process at the root.
    pub fn root(&self) -> u32 {
        self.root
    }

    /// Whether this process is a member.
    pub fn contains(&self, pid: u32) -> bool {
        self.processes.contains_key(&pid)
    }

    /// The CPU time of all members since the first look. `now_ticks` in ticks since the boot.
    pub fn cpu_time_ns(&mut self, children: &ProcessChildren, now_ticks: u64) -> u64 {
        let mut exited: BTreeMap<u32, TreeProcess> = BTreeMap::new();
        let mut waited_growth_ns: BTreeMap<u32, u64> = BTreeMap::new();
        let mut unvisited: Vec<(u32, u64)> = Vec::new();
        for pid in self.processes.keys().copied().collect::<Vec<_>>() {
            let previous = self.processes[&pid];
            match PidStat::read(&self.proc_root, pid).filter(|stat| stat.start_ticks == previous.start_ticks)
            {
                Some(stat) => {
                    let current = self.read_process(pid, &stat);
                    waited_growth_ns
                        .insert(pid, current.waited_children_ns.saturating_sub(previous.waited_children_ns));
                    self.processes.insert(pid, TreeProcess { before_ns: previous.before_ns, ..current });
                    unvisited.push((pid, stat.threads));
                }
                None => {
                    self.processes.remove(&pid);
                    exited.insert(pid, previous);
                }
            }
        }
        self.count_exited(&exited, &waited_growth_ns);
        while let Some((pid, threads)) = unvisited.pop() {
            for child in children.of(pid, threads) {
                unvisited.extend(self.add_child(child));
            }
        }
        self.sampled_ticks = Some(now_ticks);
        let sum = self.processes.values().map(TreeProcess::counted_ns).sum::<u64>() + self.exited_ns;
        self.cpu_time_ns = self.cpu_time_ns.max(sum);
        self.cpu_time_ns
    }

    /// Members that ended: where an ancestor waited for them its count has grown by theirs, else they are kept here.
    fn count_exited(&mut self, exited: &BTreeMap<u32, TreeProcess>, waited_growth_ns: &BTreeMap<u32, u64>) {
        // By the nearest ancestor that goes on: what they used as members, and before.
        let mut ancestors: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for process in exited.values() {
            let mut ancestor = process.parent;
            for _ in 0..exited.len() {
                ancestor = exited.get(&ancestor).map_or(ancestor, |between| between.parent);
            }
            let sums = ancestors.entry(ancestor).or_default();
            *sums = (sums.0 + process.counted_ns(), sums.1 + process.before_ns);
        }
        for (ancestor, (used_ns, before_ns)) in ancestors {
            let waited_ns = waited_growth_ns.get(&ancestor).copied().unwrap_or(0);
            // The heir's count shows whole ticks, of user and of system time.
            if waited_ns + 2 * TICK_NS < used_ns {
                self.exited_ns += used_ns - waited_ns;
            } else if let Some(ancestor) = self.processes.get_mut(&ancestor) {
                ancestor.before_ns += waited_ns.saturating_sub(used_ns).min(before_ns);
            }
        }
    }

    /// A child of a member becomes one; what it used before the last look, where it was not seen, is not counted.
    fn add_child(&mut self, pid: u32) -> Option<(u32, u64)> {
        if self.processes.contains_key(&pid) || self.processes.len() >= MAX_PROCESSES {
            return None;
        }
        let stat = PidStat::read(&self.proc_root, pid)?;
        let process = self.read_process(pid, &stat);
        let is_new = self.sampled_ticks.is_some_and(|sampled_ticks| stat.start_ticks + 1 >= sampled_ticks);
        let before_ns = if is_new { 0 } else { process.cpu_ns + process.waited_children_ns };
        self.processes.insert(pid, TreeProcess { before_ns, ..process });
        Some((pid, stat.threads))
    }

    fn read_process(&self, pid: u32, stat: &PidStat) -> TreeProcess {
        let clock = if self.has_process_clocks { process_clock::cpu_time_ns(pid) } else { None };
        let own_ns = if self.is_root_excluded && pid == self.root { 0 } else { clock.unwrap_or(stat.cpu_ns) };
        TreeProcess {
            start_ticks: stat.start_ticks,
            parent: stat.parent,
            before_ns: 0,
            cpu_ns: own_ns,
            waited_children_ns: stat.waited_children_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stand-in `/proc` whose processes are written by hand.
    struct FakeProc(tempfile::TempDir);

    impl FakeProc {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        /// A process; its own ticks, and those it has waited for.
        fn set(&self, pid: u32, parent: u32, start_ticks: u64, own_ticks: u64, waited_ticks: u64) {
            let folder = self.0.path().join(pid.to_string());
            std::fs::create_dir_all(&folder).unwrap();
            let stat = format!(
                "{pid} (x) S {parent} 1 1 0 -1 0 0 0 0 0 {own_ticks} 0 {waited_ticks} 0 20 0 1 0 {start_ticks} 0 0\n"
            );
            std::fs::write(folder.join("stat"), stat).unwrap();
        }

        fn end(&self, pid: u32) {
            std::fs::remove_dir_all(self.0.path().join(pid.to_string())).unwrap();
        }

        /// Ticks used by then.
        fn sample(&self, tree: &mut ProcessTree, now_ticks: u64) -> u64 {
            let mut children = ProcessChildren::new(self.0.path().to_owned());
            children.refresh();
            tree.cpu_time_ns(&children, now_ticks) / TICK_NS
        }
    }

    #[test]
    fn cpu_time_before_the_first_sample_is_not_counted() {
        let proc = FakeProc::new();
        proc.set(10, 1, 5, 1000, 500);
        proc.set(11, 10, 6, 700, 0);
        let mut tree = ProcessTree::of(10, 5, proc.0.path()).unwrap();
        assert_eq!(proc.sample(&mut tree, 100), 0);
        proc.set(10, 1, 5, 1003, 500);
        proc.set(11, 10, 6, 704, 0);
        assert_eq!(proc.sample(&mut tree, 110), 7);
        assert!(tree.contains(11) && !tree.contains(1));
    }

    #[test]
    fn an_exited_child_is_counted_once_whether_it_was_sampled_or_not() {
        let proc = FakeProc::new();
        proc.set(10, 1, 5, 0, 0);
        proc.set(11, 10, 6, 900, 0);
        let mut tree = ProcessTree::of(10, 5, proc.0.path()).unwrap();
        assert_eq!(proc.sample(&mut tree, 100), 0);
        // The one from before the first look ends after 20 ticks more, another came and went unseen with 30.
        proc.end(11);
        proc.set(10, 1, 5, 0, 950);
        assert_eq!(proc.sample(&mut tree, 110), 50);
        // One that is born and seen, and one below it.
        proc.set(12, 10, 115, 40, 0);
        proc.set(13, 12, 116, 5, 0);
        assert_eq!(proc.sample(&mut tree, 120), 95);
        proc.end(12);
        proc.end(13);
        proc.set(10, 1, 5, 0, 1000);
        assert_eq!(proc.sample(&mut tree, 130), 100);
    }

    #[test]
    fn a_child_without_wait_keeps_its_last_sampled_cpu_time() {
        let proc = FakeProc::new();
        proc.set(10, 1, 5, 0, 0);
        let mut tree = ProcessTree::of(10, 5, proc.0.path()).unwrap();
        proc.sample(&mut tree, 100);
        proc.set(12, 10, 105, 40, 0);
        assert_eq!(proc.sample(&mut tree, 110), 40);
        // Its parent ignores SIGCHLD; then the parent ends too.
        proc.end(12);
        proc.set(10, 1, 5, 3, 0);
        assert_eq!(proc.sample(&mut tree, 120), 43);
        proc.end(10);
        assert_eq!(proc.sample(&mut tree, 130), 43);
    }

    #[test]
    fn an_orphan_stays_in_the_tree_and_a_process_with_a_reused_pid_does_not() {
        let proc = FakeProc::new();
        proc.set(10, 1, 5, 0, 0);
        let mut tree = ProcessTree::of(10, 5, proc.0.path()).unwrap();
        proc.sample(&mut tree, 100);
        proc.set(12, 10, 105, 1, 0);
        proc.sample(&mut tree, 110);
        proc.end(10);
        proc.set(12, 1, 105, 9, 0);
        assert_eq!(proc.sample(&mut tree, 120), 9);
        // The number is given to somebody else.
        proc.set(12, 1, 125, 5000, 0);
        assert_eq!(proc.sample(&mut tree, 130), 9);
        assert!(ProcessTree::of(12, 105, proc.0.path()).is_none());
    }

    #[test]
    fn children_files_are_read_for_every_thread() {
        let proc = FakeProc::new();
        let tasks = |pid: u32, tid: u32, children: &str| {
            let folder = proc.0.path().join(format!("{pid}/task/{tid}"));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("children"), children).unwrap();
        };
        let own_task = proc.0.path().join("self/task").join(std::process::id().to_string());
        std::fs::create_dir_all(&own_task).unwrap();
        std::fs::write(own_task.join("children"), "").unwrap();
        proc.set(10, 1, 5, 0, 0);
        let stat = std::fs::read_to_string(proc.0.path().join("10/stat")).unwrap();
        std::fs::write(proc.0.path().join("10/stat"), stat.replace(" 20 0 1 0 ", " 20 0 2 0 ")).unwrap();
        tasks(10, 10, "11 ");
        tasks(10, 20, "12 ");
        proc.set(11, 10, 6, 0, 0);
        tasks(11, 11, "13");
        proc.set(12, 10, 6, 0, 0);
        proc.set(13, 11, 6, 0, 0);
        // A child of nobody in the lists is none, whatever its own line says.
        proc.set(14, 10, 6, 0, 0);
        let mut tree = ProcessTree::of(10, 5, proc.0.path()).unwrap();
        proc.sample(&mut tree, 100);
        assert_eq!([11, 12, 13, 14].map(|pid| tree.contains(pid)), [true, true, true, false]);
    }
}
