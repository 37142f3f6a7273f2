//! Who is whose child.
//!
//! Owns the way to the children of a process: `/proc/PID/task/TID/children` where the kernel has it (CONFIG_PROC_CHILDREN),
//! else one walk over all processes for each look, and that only where a process was begun since the last walk.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::pid_stat::PidStat;

/// The children of all processes, as far as they are asked for.
#[derive(Debug)]
pub struct ProcessChildren {
    root: PathBuf,
    /// The kernel lists a process's children.
    has_children_files: bool,
    children_by_parent: HashMap<u32, Vec<u32>>,
    /// The latest process at the last walk, as /proc/loadavg has it.
    last_pid: Option<String>,
}

impl ProcessChildren {
    /// Under this `/proc`.
    pub fn new(root: PathBuf) -> Self {
        let own_children = root.join("self/task").join(std::process::id().to_string()).join("children");
        let has_children_files = own_children.exists();
        Self { root, has_children_files, children_by_parent: HashMap::new(), last_pid: None }
    }

    /// To be said before the children of several processes are asked for.
    pub fn refresh(&mut self) {
        if self.has_children_files {
            return;
        }
        // Its last field is the number that was given last, to a process or a thread (proc_loadavg(5)).
        let last_pid = fs::read_to_string(self.root.join("loadavg")).ok();
        let last_pid = last_pid.and_then(|text| text.split_ascii_whitespace().last().map(str::to_owned));
        if last_pid.is_some() && last_pid == self.last_pid {
            return;
        }
        self.last_pid = last_pid;
        self.children_by_parent.clear();
        let Ok(entries) = fs::read_dir(&self.root) else { return };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for pid in pids {
            if let Some(stat) = PidStat::read(&self.root, pid) {
                self.children_by_parent.entry(stat.parent).or_default().push(pid);
            }
        }
    }

    /// The children of a process with so many threads.
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
