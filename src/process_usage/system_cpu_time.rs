//! The busy time of all CPUs of the machine.
//!
//! From the root control group's `cpu.stat` (microseconds), else from the first line of `/proc/stat` (ticks of 10 ms). Time
//! stolen by a hypervisor is not included.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::cgroup::sum_cpu_stat_ns;
use super::pid_stat::TICK_NS;

/// The file that reports the machine's busy time.
#[derive(Debug)]
pub enum SystemCpuTime {
    /// `cpu.stat` of the root control group.
    RootCgroup(File),
    /// The whole machine, in `/proc/stat`.
    ProcStat(File),
    /// Neither is available.
    Unavailable,
}

impl SystemCpuTime {
    /// Opens the best available file.
    pub fn open(proc_root: &Path, cgroup2_mount: Option<&Path>) -> Self {
        // In a container the hierarchy starts at the container's group, which has `cgroup.type`; the real root has none.
        let root = cgroup2_mount.filter(|root| !root.join("cgroup.type").exists());
        let group =
            root.and_then(|root| File::open(root.join("cpu.stat")).ok()).map(SystemCpuTime::RootCgroup);
        let group = group.filter(|busy| busy.busy_ns().is_some());
        let stat =
            || File::open(proc_root.join("stat")).map_or(SystemCpuTime::Unavailable, SystemCpuTime::ProcStat);
        group.unwrap_or_else(stat)
    }

    /// The busy time since boot, all CPUs together.
    pub fn busy_ns(&self) -> Option<u64> {
        let mut text = [0; 512];
        let mut read = |file: &File| {
            let length = file.read_at(&mut text, 0).ok()?;
            String::from_utf8(text[..length].to_vec()).ok()
        };
        match self {
            SystemCpuTime::RootCgroup(file) => sum_cpu_stat_ns(&read(file)?, &["user_usec", "system_usec"]),
            SystemCpuTime::ProcStat(file) => parse_proc_stat(&read(file)?),
            SystemCpuTime::Unavailable => None,
        }
    }
}

/// `cpu user nice system idle iowait irq softirq steal guest guest_nice`, proc_stat(5). user and nice include the guests' time.
pub(super) fn parse_proc_stat(text: &str) -> Option<u64> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
    let busy = [0, 1, 2, 5, 6].map(|index| fields.get(index).copied().unwrap_or(0));
    if fields.len() < 4 {
        return None;
    }
    busy.into_iter().try_fold(0_u64, u64::checked_add)?.checked_mul(TICK_NS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_waiting_and_stolen_time_are_not_busy() {
        assert_eq!(parse_proc_stat("cpu  1 2 3 400 500 6 7 800 9 9\ncpu0 1"), Some(19 * TICK_NS));
        assert_eq!(parse_proc_stat("cpu  1 2 3 4"), Some(6 * TICK_NS));
        assert_eq!(parse_proc_stat("cpu  1 2 3"), None);
        assert_eq!(parse_proc_stat("intr 5"), None);
        assert_eq!(parse_proc_stat("cpu  18446744073709551615 1 3 4"), None, "more than a u64 holds");
    }

    #[test]
    fn the_root_cgroup_is_preferred_outside_containers() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("cpu.stat"), "usage_usec 90\nuser_usec 5\nsystem_usec 2\n").unwrap();
        std::fs::write(root.path().join("stat"), "cpu  1 2 3 4\n").unwrap();
        let busy = || SystemCpuTime::open(root.path(), Some(root.path())).busy_ns();
        assert_eq!(busy(), Some(7_000));
        std::fs::write(root.path().join("cgroup.type"), "domain\n").unwrap();
        assert_eq!(busy(), Some(6 * TICK_NS));
        assert_eq!(SystemCpuTime::open(&root.path().join("nowhere"), None).busy_ns(), None);
    }
}
