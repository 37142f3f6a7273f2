//! Who is whose child.
//!
//! Owns the way to the children of a process: `/proc/PID/task/TID/children` where the kernel has it (CONFIG_PROC_CHILDREN),
//! else one walk over all processes for each look, and that only where a process was begun since the last walk.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::line::Line;

/// The children of all processes, as far as they are asked for.
#[derive(Debug)]
pub struct Kin {
    root: PathBuf,
    /// The kernel lists a process's children.
    listed: bool,
    walked: HashMap<u32, Vec<u32>>,
    /// The latest process at the last walk, as /proc/loadavg has it.
    latest: Option<String>,
}

impl Kin {
    /// Under this `/proc`.
    pub fn new(root: PathBuf) -> Self {
        let own = root.join("self/task").join(std::process::id().to_string()).join("children");
        let listed = own.exists();
        Self { root, listed, walked: HashMap::new(), latest: None }
    }

    /// To be said before the children of several processes are asked for.
    pub fn refresh(&mut self) {
        if self.listed {
            return;
        }
        // Its last field is the number that was given last, to a process or a thread (proc_loadavg(5)).
        let latest = fs::read_to_string(self.root.join("loadavg")).ok();
        let latest = latest.and_then(|text| text.split_ascii_whitespace().last().map(str::to_owned));
        if latest.is_some() && latest == self.latest {
            return;
        }
        self.latest = latest;
        self.walked.clear();
        let Ok(entries) = fs::read_dir(&self.root) else { return };
        let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for pid in numbers {
            if let Some(line) = Line::read(&self.root, pid) {
                self.walked.entry(line.parent).or_default().push(pid);
            }
        }
    }

    /// The children of a process with so many threads.
    pub fn children(&self, pid: u32, threads: u64) -> Vec<u32> {
        if !self.listed {
            return self.walked.get(&pid).cloned().unwrap_or_default();
        }
        let tasks = self.root.join(pid.to_string()).join("task");
        if threads == 1 {
            return listed(&tasks.join(pid.to_string()));
        }
        let threads = fs::read_dir(tasks).into_iter().flatten().flatten();
        threads.flat_map(|thread| listed(&thread.path())).collect()
    }
}

fn listed(task: &Path) -> Vec<u32> {
    let text = fs::read_to_string(task.join("children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
}
