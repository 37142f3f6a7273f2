//! The program `wattspan`: its commands, output and exit statuses, and the files that both programs write.

#[cfg(target_os = "linux")]
#[path = "../support/bundle.rs"]
mod bundle;
#[cfg(target_os = "linux")]
#[path = "../faulty_fs/mod.rs"]
mod faulty_fs;
#[cfg(target_os = "linux")]
#[path = "../fuse_sysfs/mod.rs"]
mod fuse_sysfs;
#[cfg(target_os = "linux")]
#[path = "../support/ground_truth.rs"]
mod ground_truth;
#[cfg(target_os = "linux")]
#[path = "../http_stub/mod.rs"]
mod http_stub;
#[path = "../support/programs.rs"]
mod programs;
#[path = "../support/mod.rs"]
mod support;

#[cfg(target_os = "linux")]
mod bundles;
#[cfg(target_os = "linux")]
mod characterise;
mod commands;
mod export;
#[cfg(target_os = "linux")]
mod power_cuts;
mod private_files;
mod prometheus;
mod serve;
#[cfg(target_os = "linux")]
mod slow_disks;
mod top;
