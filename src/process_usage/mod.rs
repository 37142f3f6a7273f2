//! CPU time of processes and control groups, and of the whole machine.
//!
//! Owns the table of watched targets, each with a CPU time that never decreases. Reads on request only. A process is identified
//! by number and start time, since numbers are reused.

mod cgroup;
#[doc(hidden)]
pub mod fuzz_entry;
mod pid_stat;
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
