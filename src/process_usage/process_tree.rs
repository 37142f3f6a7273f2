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
    pub fn of(pid: u32, start: u64, proc_root: &Path) -> Option<Self> {
        let line = PidStat::read(proc_root, pid).filter(|line| line.start_ticks == start)?;
        let clocks = proc_root == Path::new("/proc");
        let without_root = clocks && pid == std::process::id();
        let mut tree = Self {
            root: pid,
            proc_root: proc_root.to_owned(),
            has_process_clocks: clocks,
            is_root_excluded: without_root,
            processes: BTreeMap::new(),
            exited_ns: 0,
            cpu_time_ns: 0,
            sampled_ticks: None,
        };
        let member = tree.read_process(pid, &line);
        tree.processes
            .insert(pid, TreeProcess { before_ns: member.cpu_ns + member.waited_children_ns, ..member });
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

    /// The CPU time of all members since the first look. `now` in ticks since the boot.
    pub fn used_ns(&mut self, kin: &ProcessChildren, now: u64) -> u64 {
        let mut lost: BTreeMap<u32, TreeProcess> = BTreeMap::new();
        let mut waited: BTreeMap<u32, u64> = BTreeMap::new();
        let mut open: Vec<(u32, u64)> = Vec::new();
        for pid in self.processes.keys().copied().collect::<Vec<_>>() {
            let known = self.processes[&pid];
            match PidStat::read(&self.proc_root, pid).filter(|line| line.start_ticks == known.start_ticks) {
                Some(line) => {
                    let fresh = self.read_process(pid, &line);
                    waited.insert(pid, fresh.waited_children_ns.saturating_sub(known.waited_children_ns));
                    self.processes.insert(pid, TreeProcess { before_ns: known.before_ns, ..fresh });
                    open.push((pid, line.threads));
                }
                None => {
                    self.processes.remove(&pid);
                    lost.insert(pid, known);
                }
            }
        }
        self.count_exited(&lost, &waited);
        while let Some((pid, threads)) = open.pop() {
            for child in kin.of(pid, threads) {
                open.extend(self.add_child(child));
            }
        }
        self.sampled_ticks = Some(now);
        let sum = self.processes.values().map(TreeProcess::counted_ns).sum::<u64>() + self.exited_ns;
        self.cpu_time_ns = self.cpu_time_ns.max(sum);
        self.cpu_time_ns
    }

    /// Members that ended: where an ancestor waited for them its count has grown by theirs, else they are kept here.
    fn count_exited(&mut self, lost: &BTreeMap<u32, TreeProcess>, waited: &BTreeMap<u32, u64>) {
        // By the nearest ancestor that goes on: what they used as members, and before.
        let mut heirs: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for member in lost.values() {
            let mut heir = member.parent;
            for _ in 0..lost.len() {
                heir = lost.get(&heir).map_or(heir, |between| between.parent);
            }
            let sums = heirs.entry(heir).or_default();
            *sums = (sums.0 + member.counted_ns(), sums.1 + member.before_ns);
        }
        for (heir, (used_ns, before_ns)) in heirs {
            let inherited_ns = waited.get(&heir).copied().unwrap_or(0);
            // The heir's count shows whole ticks, of user and of system time.
            if inherited_ns + 2 * TICK_NS < used_ns {
                self.exited_ns += used_ns - inherited_ns;
            } else if let Some(heir) = self.processes.get_mut(&heir) {
                heir.before_ns += inherited_ns.saturating_sub(used_ns).min(before_ns);
            }
        }
    }

    /// A child of a member becomes one; what it used before the last look, where it was not seen, is not counted.
    fn add_child(&mut self, pid: u32) -> Option<(u32, u64)> {
        if self.processes.contains_key(&pid) || self.processes.len() >= MAX_PROCESSES {
            return None;
        }
        let line = PidStat::read(&self.proc_root, pid)?;
        let member = self.read_process(pid, &line);
        let born = self.sampled_ticks.is_some_and(|looked| line.start_ticks + 1 >= looked);
        let before_ns = if born { 0 } else { member.cpu_ns + member.waited_children_ns };
        self.processes.insert(pid, TreeProcess { before_ns, ..member });
        Some((pid, line.threads))
    }

    fn read_process(&self, pid: u32, line: &PidStat) -> TreeProcess {
        let clock = if self.has_process_clocks { process_clock::cpu_time_ns(pid) } else { None };
        let own_ns = if self.is_root_excluded && pid == self.root { 0 } else { clock.unwrap_or(line.cpu_ns) };
        TreeProcess {
            start_ticks: line.start_ticks,
            parent: line.parent,
            before_ns: 0,
            cpu_ns: own_ns,
            waited_children_ns: line.waited_children_ns,
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
        fn set(&self, pid: u32, parent: u32, start: u64, own: u64, waited: u64) {
            let folder = self.0.path().join(pid.to_string());
            std::fs::create_dir_all(&folder).unwrap();
            let line =
                format!("{pid} (x) S {parent} 1 1 0 -1 0 0 0 0 0 {own} 0 {waited} 0 20 0 1 0 {start} 0 0\n");
            std::fs::write(folder.join("stat"), line).unwrap();
        }

        fn end(&self, pid: u32) {
            std::fs::remove_dir_all(self.0.path().join(pid.to_string())).unwrap();
        }

        /// Ticks used by then.
        fn sample(&self, tree: &mut ProcessTree, now: u64) -> u64 {
            let mut kin = ProcessChildren::new(self.0.path().to_owned());
            kin.refresh();
            tree.used_ns(&kin, now) / TICK_NS
        }
    }

    #[test]
    fn what_was_used_before_the_first_look_is_not_counted() {
        let machine = FakeProc::new();
        machine.set(10, 1, 5, 1000, 500);
        machine.set(11, 10, 6, 700, 0);
        let mut tree = ProcessTree::of(10, 5, machine.0.path()).unwrap();
        assert_eq!(machine.sample(&mut tree, 100), 0);
        machine.set(10, 1, 5, 1003, 500);
        machine.set(11, 10, 6, 704, 0);
        assert_eq!(machine.sample(&mut tree, 110), 7);
        assert!(tree.contains(11) && !tree.contains(1));
    }

    #[test]
    fn a_child_that_ends_is_counted_once_whether_it_was_seen_or_not() {
        let machine = FakeProc::new();
        machine.set(10, 1, 5, 0, 0);
        machine.set(11, 10, 6, 900, 0);
        let mut tree = ProcessTree::of(10, 5, machine.0.path()).unwrap();
        assert_eq!(machine.sample(&mut tree, 100), 0);
        // The one from before the first look ends after 20 ticks more, another came and went unseen with 30.
        machine.end(11);
        machine.set(10, 1, 5, 0, 950);
        assert_eq!(machine.sample(&mut tree, 110), 50);
        // One that is born and seen, and one below it.
        machine.set(12, 10, 115, 40, 0);
        machine.set(13, 12, 116, 5, 0);
        assert_eq!(machine.sample(&mut tree, 120), 95);
        machine.end(12);
        machine.end(13);
        machine.set(10, 1, 5, 0, 1000);
        assert_eq!(machine.sample(&mut tree, 130), 100);
    }

    #[test]
    fn a_child_that_nobody_waits_for_keeps_what_it_was_seen_with() {
        let machine = FakeProc::new();
        machine.set(10, 1, 5, 0, 0);
        let mut tree = ProcessTree::of(10, 5, machine.0.path()).unwrap();
        machine.sample(&mut tree, 100);
        machine.set(12, 10, 105, 40, 0);
        assert_eq!(machine.sample(&mut tree, 110), 40);
        // Its parent ignores SIGCHLD; then the parent ends too.
        machine.end(12);
        machine.set(10, 1, 5, 3, 0);
        assert_eq!(machine.sample(&mut tree, 120), 43);
        machine.end(10);
        assert_eq!(machine.sample(&mut tree, 130), 43);
    }

    #[test]
    fn an_orphan_stays_a_member_and_a_later_process_of_its_number_does_not_become_one() {
        let machine = FakeProc::new();
        machine.set(10, 1, 5, 0, 0);
        let mut tree = ProcessTree::of(10, 5, machine.0.path()).unwrap();
        machine.sample(&mut tree, 100);
        machine.set(12, 10, 105, 1, 0);
        machine.sample(&mut tree, 110);
        machine.end(10);
        machine.set(12, 1, 105, 9, 0);
        assert_eq!(machine.sample(&mut tree, 120), 9);
        // The number is given to somebody else.
        machine.set(12, 1, 125, 5000, 0);
        assert_eq!(machine.sample(&mut tree, 130), 9);
        assert!(ProcessTree::of(12, 105, machine.0.path()).is_none());
    }

    #[test]
    fn a_kernel_that_lists_children_is_asked_for_those_of_every_thread() {
        let machine = FakeProc::new();
        let tasks = |pid: u32, tid: u32, children: &str| {
            let folder = machine.0.path().join(format!("{pid}/task/{tid}"));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("children"), children).unwrap();
        };
        let own = machine.0.path().join("self/task").join(std::process::id().to_string());
        std::fs::create_dir_all(&own).unwrap();
        std::fs::write(own.join("children"), "").unwrap();
        machine.set(10, 1, 5, 0, 0);
        let line = std::fs::read_to_string(machine.0.path().join("10/stat")).unwrap();
        std::fs::write(machine.0.path().join("10/stat"), line.replace(" 20 0 1 0 ", " 20 0 2 0 ")).unwrap();
        tasks(10, 10, "11 ");
        tasks(10, 20, "12 ");
        machine.set(11, 10, 6, 0, 0);
        tasks(11, 11, "13");
        machine.set(12, 10, 6, 0, 0);
        machine.set(13, 11, 6, 0, 0);
        // A child of nobody in the lists is none, whatever its own line says.
        machine.set(14, 10, 6, 0, 0);
        let mut tree = ProcessTree::of(10, 5, machine.0.path()).unwrap();
        machine.sample(&mut tree, 100);
        assert_eq!([11, 12, 13, 14].map(|pid| tree.contains(pid)), [true, true, true, false]);
    }
}
