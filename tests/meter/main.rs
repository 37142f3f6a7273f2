//! The meter as a library: sources on fake machines, attribution against a known truth, the embedded service.

#[cfg(target_os = "linux")]
#[path = "../support/bundle.rs"]
mod bundle;
#[path = "../fake/mod.rs"]
mod fake;
#[cfg(target_os = "linux")]
#[path = "../fake/apple/mod.rs"]
mod fake_apple;
#[cfg(target_os = "linux")]
#[path = "../fake/nvml/mod.rs"]
mod fake_nvml;
#[cfg(target_os = "linux")]
#[path = "../fuse_sysfs/mod.rs"]
mod fuse_sysfs;
#[path = "../support/ground_truth.rs"]
mod ground_truth;
#[cfg(target_os = "linux")]
#[path = "../support/programs.rs"]
mod programs;
#[path = "../support/simulated_accounts.rs"]
mod simulated_accounts_support;
#[path = "../support/mod.rs"]
mod support;

#[cfg(target_os = "linux")]
mod apple;
#[cfg(target_os = "linux")]
mod bundles;
mod conservation;
mod discovery;
#[cfg(target_os = "linux")]
mod documented_trees;
#[cfg(target_os = "linux")]
mod duplicate_counters;
mod embedded;
mod error_bounds;
mod estimate;
#[cfg(target_os = "linux")]
mod field_reports;
#[cfg(target_os = "linux")]
mod gpu_process_shares;
#[cfg(target_os = "linux")]
mod hotplug;
#[cfg(target_os = "linux")]
mod machine_tree;
#[cfg(target_os = "linux")]
mod mechanism_comparison;
#[cfg(target_os = "linux")]
mod nvml;
#[cfg(target_os = "linux")]
mod perf_source;
#[cfg(target_os = "linux")]
mod power_sensor_assumptions;
mod powercap_trees;
mod process_shares;
mod recorded_machine;
mod simulated_accounts;
mod simulated_machine;
#[cfg(target_os = "linux")]
mod slow_sources;
#[cfg(target_os = "linux")]
mod sysfs_sources;
