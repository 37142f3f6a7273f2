//! Who used the machine: looks at the CPU time of processes and control groups beside the machine's own.
//!
//! ```text
//! /proc, cgroup2 ─► watch ─► look ─► attributor
//!                   table      counts
//! ```
//!
//! Owns the table of those who are watched, and each one's CPU time as a count that only grows. Reads when it is told to,
//! never by itself; attributes nothing. A process is told from a later one with the same number by its time of start.

mod cgroup;
mod pid_stat;
mod process_children;
mod process_tree;
mod process_watcher;
mod system_cpu_time;

#[cfg(target_os = "linux")]
mod process_clock_ffi;
#[cfg(target_os = "linux")]
use process_clock_ffi as process_clock;

#[cfg(not(target_os = "linux"))]
mod process_clock_unsupported;
#[cfg(not(target_os = "linux"))]
use process_clock_unsupported as process_clock;

pub use process_watcher::{
    KernelRoots, ProcessIdentity, ProcessWatcher, TargetUsage, UsageSample, WatchProcessError,
};

/// What the kernel shows CPU time in under `/proc` (USER_HZ, fixed at 100 a second on every port that Linux has: proc(5)).
const TICK_NS: u64 = 10_000_000;
