//! The CPU time of a process and its descendants.
//!
//! A child that starts and exits between two samples is counted through its parent's time of waited-for children. A member
//! stays in the tree when its parent exits first. Invariant: the CPU time never decreases and does not include time before
//! the first sample. Not counted: the time since the last sample of a child without wait(2) (SIGCHLD ignored, or its
//! parent has exited).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::pid_stat::{PidStat, TICK_NS};
use super::process_clock;

/// Further members are not tracked.
const MAX_PROCESSES: usize = 4096;

#[derive(Debug, Clone, Copy)]
struct TreeProcess {
    start_ticks: u64,
    parent: u32,
    /// The time used before it became a member; 0 for a new process.
    before_ns: u64,
    cpu_ns: u64,
    waited_children_ns: u64,
}

impl TreeProcess {
    fn counted_ns(&self) -> u64 {
        (self.cpu_ns + self.waited_children_ns).saturating_sub(self.before_ns)
    }
}

/// A process with its descendants.
#[derive(Debug)]
pub struct ProcessTree {
    root: u32,
    proc_root: PathBuf,
    /// The members are processes of this machine, so their CPU-time clocks can be read.
    has_process_clocks: bool,
    /// The root's own time is not counted: the meter runs in it.
    is_root_excluded: bool,
    processes: BTreeMap<u32, TreeProcess>,
    /// The time of exited members that is not part of another member's count.
    exited_ns: u64,
    cpu_time_ns: u64,
    sampled_ticks: Option<u64>,
    /// The walks over all processes up to the last sample that read files.
    sampled_walks: u64,
}

impl ProcessTree {
    /// The tree of this process; `None` where it has exited.
    pub fn of(pid: u32, start_ticks: u64, proc_root: &Path) -> Option<Self> {
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
            sampled_walks: 0,
        };
        let (process, _) =
            tree.read_process(pid).filter(|(process, _)| process.start_ticks == start_ticks)?;
        tree.processes
            .insert(pid, TreeProcess { before_ns: process.cpu_ns + process.waited_children_ns, ..process });
        Some(tree)
    }

    /// The number of the root process.
    pub fn root(&self) -> u32 {
        self.root
    }

    /// Whether a process is a member.
    pub fn contains(&self, pid: u32) -> bool {
        self.processes.contains_key(&pid)
    }

    /// Samples the CPU time of all members since the first sample. `now_ticks`: ticks since boot.
    pub fn cpu_time_ns(&mut self, children: &ProcessChildren, now_ticks: u64) -> u64 {
        if !self.has_run(children) {
            self.sampled_ticks = Some(now_ticks);
            return self.cpu_time_ns;
        }
        let mut exited: BTreeMap<u32, TreeProcess> = BTreeMap::new();
        let mut waited_growth_ns: BTreeMap<u32, u64> = BTreeMap::new();
        let mut unvisited: Vec<(u32, u64)> = Vec::new();
        for pid in self.processes.keys().copied().collect::<Vec<_>>() {
            let previous = self.processes[&pid];
            match self.read_process(pid).filter(|(process, _)| process.start_ticks == previous.start_ticks) {
                Some((current, threads)) => {
                    waited_growth_ns
                        .insert(pid, current.waited_children_ns.saturating_sub(previous.waited_children_ns));
                    self.processes.insert(pid, TreeProcess { before_ns: previous.before_ns, ..current });
                    unvisited.push((pid, threads));
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
        self.sampled_walks = children.walks;
        let sum = self.processes.values().map(TreeProcess::counted_ns).sum::<u64>() + self.exited_ns;
        self.cpu_time_ns = self.cpu_time_ns.max(sum);
        self.cpu_time_ns
    }

    /// Whether a member may have used CPU time since the last sample. A process that starts, waits for or loses a child, or
    /// that exits, runs itself, so that otherwise nothing has changed and no file has to be read. The clocks cost a tenth.
    /// Where a walk finds the children, it precedes the clocks: a child that started in between is found by the next walk,
    /// when its parent may rest.
    fn has_run(&self, children: &ProcessChildren) -> bool {
        let is_as_sampled = |(pid, process): (&u32, &TreeProcess)| {
            process_clock::cpu_time_ns(*pid).is_some_and(|now_ns| now_ns == process.cpu_ns)
        };
        self.sampled_ticks.is_none()
            || !self.has_process_clocks
            || self.is_root_excluded
            || self.sampled_walks != children.walks
            || !self.processes.iter().all(is_as_sampled)
    }

    /// Accounts for members that have exited. If an ancestor has waited for them, its count includes theirs; else `exited_ns`
    /// does.
    fn count_exited(&mut self, exited: &BTreeMap<u32, TreeProcess>, waited_growth_ns: &BTreeMap<u32, u64>) {
        // By nearest living ancestor: the time used as members, and before.
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
            // The ancestor's count has whole ticks, of user and of system time.
            if waited_ns + 2 * TICK_NS < used_ns {
                self.exited_ns += used_ns - waited_ns;
            } else if let Some(ancestor) = self.processes.get_mut(&ancestor) {
                ancestor.before_ns += waited_ns.saturating_sub(used_ns).min(before_ns);
            }
        }
    }

    /// Adds a child of a member. Time that it used before the last sample is not counted.
    fn add_child(&mut self, pid: u32) -> Option<(u32, u64)> {
        if self.processes.contains_key(&pid) || self.processes.len() >= MAX_PROCESSES {
            return None;
        }
        let (process, threads) = self.read_process(pid)?;
        let is_new = self.sampled_ticks.is_some_and(|sampled_ticks| process.start_ticks + 1 >= sampled_ticks);
        let before_ns = if is_new { 0 } else { process.cpu_ns + process.waited_children_ns };
        self.processes.insert(pid, TreeProcess { before_ns, ..process });
        Some((pid, threads))
    }

    /// A process as it is now, and the number of its threads.
    fn read_process(&self, pid: u32) -> Option<(TreeProcess, u64)> {
        // The clock comes first: if the process runs between the two, the clock differs at the next sample, and the file is
        // read again.
        let clock = if self.has_process_clocks { process_clock::cpu_time_ns(pid) } else { None };
        let stat = PidStat::read(&self.proc_root, pid)?;
        let own_ns = if self.is_root_excluded && pid == self.root { 0 } else { clock.unwrap_or(stat.cpu_ns) };
        let process = TreeProcess {
            start_ticks: stat.start_ticks,
            parent: stat.parent,
            before_ns: 0,
            cpu_ns: own_ns,
            waited_children_ns: stat.waited_children_ns,
        };
        Some((process, stat.threads))
    }
}

/// Finds the children of processes: in `/proc/PID/task/TID/children` where the kernel has it (CONFIG_PROC_CHILDREN), else by
/// one walk over all processes per sample, and only if a process has started since the last walk.
#[derive(Debug)]
pub struct ProcessChildren {
    root: PathBuf,
    /// The kernel has `children` files.
    has_children_files: bool,
    children_by_parent: HashMap<u32, Vec<u32>>,
    /// The last process number in /proc/loadavg at the last walk.
    last_pid: Option<String>,
    /// The walks so far; 0 where the kernel has `children` files.
    walks: u64,
}

impl ProcessChildren {
    /// `root`: the mount point of `/proc`.
    pub fn new(root: PathBuf) -> Self {
        let own_children = root.join("self/task").join(std::process::id().to_string()).join("children");
        let has_children_files = own_children.exists();
        Self { root, has_children_files, children_by_parent: HashMap::new(), last_pid: None, walks: 0 }
    }

    /// Must be called before each sample.
    pub fn refresh(&mut self) {
        if self.has_children_files {
            return;
        }
        // The last field is the most recent process or thread number (proc_loadavg(5)).
        let last_pid = fs::read_to_string(self.root.join("loadavg")).ok();
        let last_pid = last_pid.and_then(|text| text.split_ascii_whitespace().last().map(str::to_owned));
        if last_pid.is_some() && last_pid == self.last_pid {
            return;
        }
        self.last_pid = last_pid;
        self.walks += 1;
        self.children_by_parent.clear();
        let Ok(entries) = fs::read_dir(&self.root) else { return };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for pid in pids {
            if let Some(stat) = PidStat::read(&self.root, pid) {
                self.children_by_parent.entry(stat.parent).or_default().push(pid);
            }
        }
    }

    /// The children of a process that has this number of threads.
    pub fn of(&self, pid: u32, threads: u64) -> Vec<u32> {
        if !self.has_children_files {
            return self.children_by_parent.get(&pid).cloned().unwrap_or_default();
        }
        let tasks = self.root.join(pid.to_string()).join("task");
        if threads == 1 {
            return read_children_file(&tasks.join(pid.to_string()));
        }
        let threads = fs::read_dir(tasks).into_iter().flatten().flatten();
        threads.flat_map(|thread| read_children_file(&thread.path())).collect()
    }
}

fn read_children_file(task: &Path) -> Vec<u32> {
    let text = fs::read_to_string(task.join("children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
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
        // The older child exits after 20 more ticks; another starts and exits between samples with 30.
        proc.end(11);
        proc.set(10, 1, 5, 0, 950);
        assert_eq!(proc.sample(&mut tree, 110), 50);
        // A child that is sampled, and its child.
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
        // The number is reused by another process.
        proc.set(12, 1, 125, 5000, 0);
        assert_eq!(proc.sample(&mut tree, 130), 9);
        assert!(ProcessTree::of(12, 105, proc.0.path()).is_none());
    }

    /// A shell that starts a process for each line of its input.
    #[cfg_attr(not(target_os = "linux"), ignore = "needs the clocks of processes")]
    #[test]
    fn a_tree_that_rests_is_not_read_and_one_that_starts_a_process_is() {
        use std::io::Write;
        type IsDone = fn(&ProcessTree, &ProcessChildren) -> bool;
        let script = "while read line; do sleep 1000 & done; kill $!";
        let mut shell = std::process::Command::new("sh")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut tree = {
            let stat = PidStat::read(Path::new("/proc"), shell.id()).unwrap();
            ProcessTree::of(shell.id(), stat.start_ticks, Path::new("/proc")).unwrap()
        };
        let mut children = ProcessChildren::new("/proc".into());
        let give_up = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let mut sample_until = |tree: &mut ProcessTree, is_done: IsDone| loop {
            children.refresh();
            tree.cpu_time_ns(&children, crate::clock::boottime_ns() / TICK_NS);
            std::thread::sleep(std::time::Duration::from_millis(20));
            if is_done(tree, &children) {
                break;
            }
            assert!(std::time::Instant::now() < give_up, "{tree:?}");
        };
        sample_until(&mut tree, |tree, children| !tree.has_run(children));
        for members in 2..=3 {
            shell.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
            let is_found: IsDone = match members {
                2 => |tree, _| tree.processes.len() == 2,
                _ => |tree, _| tree.processes.len() == 3,
            };
            sample_until(&mut tree, is_found);
            sample_until(&mut tree, |tree, children| !tree.has_run(children));
        }
        drop(shell.stdin.take());
        shell.wait().unwrap();
        sample_until(&mut tree, |tree, _| tree.processes.len() == 1);
        let left = tree.processes.keys().next().unwrap().to_string();
        std::process::Command::new("kill").arg(left).status().unwrap();
        sample_until(&mut tree, |tree, _| tree.processes.is_empty());
    }

    /// The processes are real, because only these have clocks; which of them is a child is written by hand.
    #[cfg_attr(not(target_os = "linux"), ignore = "needs the clocks of processes")]
    #[test]
    fn a_child_that_only_the_next_walk_finds_is_added_while_its_parent_rests() {
        let spawn = || std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let (mut parent, mut child) = (spawn(), spawn());
        let proc = FakeProc::new();
        let set_last_pid =
            |pid: u32| std::fs::write(proc.0.path().join("loadavg"), format!("0 0 0 1/9 {pid}\n")).unwrap();
        set_last_pid(parent.id());
        let mut children = ProcessChildren::new(proc.0.path().to_owned());
        children.refresh();
        let start_ticks = PidStat::read(Path::new("/proc"), parent.id()).unwrap().start_ticks;
        let mut tree = ProcessTree::of(parent.id(), start_ticks, Path::new("/proc")).unwrap();
        let give_up = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let sample_until_rest = |tree: &mut ProcessTree, children: &ProcessChildren| loop {
            tree.cpu_time_ns(children, crate::clock::boottime_ns() / TICK_NS);
            std::thread::sleep(std::time::Duration::from_millis(20));
            if !tree.has_run(children) {
                break;
            }
            assert!(std::time::Instant::now() < give_up, "{tree:?}");
        };
        sample_until_rest(&mut tree, &children);
        assert!(!tree.contains(child.id()));
        proc.set(child.id(), parent.id(), 5, 0, 0);
        set_last_pid(child.id());
        children.refresh();
        sample_until_rest(&mut tree, &children);
        assert!(tree.contains(child.id()));
        for process in [&mut parent, &mut child] {
            process.kill().unwrap();
            process.wait().unwrap();
        }
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
        // A process that no list contains is no child, whatever its parent field is.
        proc.set(14, 10, 6, 0, 0);
        let mut tree = ProcessTree::of(10, 5, proc.0.path()).unwrap();
        proc.sample(&mut tree, 100);
        assert_eq!([11, 12, 13, 14].map(|pid| tree.contains(pid)), [true, true, true, false]);
    }
}
