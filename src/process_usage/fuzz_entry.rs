//! The parsers of `/proc` and of control groups, under names that the fuzz targets can call (docs/fuzzing.md).

use super::cgroup;
use super::pid_stat::PidStat;
use super::system_cpu_time;

/// The process of a `/proc/PID/stat`, as text.
pub fn pid_stat(text: &str) -> Option<String> {
    PidStat::parse(text).map(|stat| format!("{stat:?}"))
}

/// The busy time of a `/proc/stat`.
pub fn proc_stat_ns(text: &str) -> Option<u64> {
    system_cpu_time::parse_proc_stat(text)
}

/// The CPU time of a `cpu.stat`.
pub fn cpu_stat_ns(text: &str) -> Option<u64> {
    cgroup::sum_cpu_stat_ns(text, &["user_usec", "system_usec"])
}
