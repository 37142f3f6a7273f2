//! The sources' names, and the settings of discovery with their defaults.
//!
//! Owns no state and imports no source. Roots and paths are arguments, so that tests can replace the machine.

use std::path::PathBuf;

/// RAPL through the kernel's `power` PMU.
pub const PERF: &str = "perf";
/// RAPL through sysfs.
pub const POWERCAP: &str = "powercap";
/// RAPL through `/dev/cpu/N/msr`.
pub const MSR: &str = "msr";
/// NVIDIA GPUs.
pub const NVML: &str = "nvml";
/// AMD GPUs.
pub const AMDGPU: &str = "amdgpu";
/// Intel GPUs.
pub const INTELGPU: &str = "intelgpu";
/// Power and energy sensors of boards.
pub const HWMON: &str = "hwmon";
/// Batteries.
pub const BATTERY: &str = "battery";
/// Apple silicon's energy counters.
pub const IOREPORT: &str = "ioreport";
/// The System Management Controller of a Mac.
pub const SMC: &str = "smc";
/// CPU load times a power model.
pub const ESTIMATE: &str = "estimate";

/// What discovery needs to know; roots and paths are arguments, so that tests can stand in for the machine.
#[derive(Debug, Clone)]
pub struct SourceSettings {
    /// Where the kernel's `/sys` is.
    pub sysfs_root: PathBuf,
    /// Where the kernel's `/proc` is.
    pub proc_root: PathBuf,
    /// Where the register files of the CPUs are, for `msr`.
    pub msr_root: PathBuf,
    /// A library to load instead of the system's `libnvidia-ml.so.1`.
    pub nvml_library: Option<PathBuf>,
    /// A library that stands in for Apple's, with the C functions of IOReport, CoreFoundation and IOKit.
    pub apple_library: Option<PathBuf>,
    /// A trace or scripted machine; where given, it is the only source.
    pub replay: Option<PathBuf>,
    /// Names of the sources to try, in order of preference.
    pub enabled: Vec<String>,
    /// Power of the whole CPU complex at rest and at full load, for machines with no counter; `None`: from the
    /// documented model and the number of CPUs.
    pub estimate_mw: Option<(u64, u64)>,
}

/// The mechanisms that are tried unless the configuration says otherwise, in order of preference.
const LINUX_DEFAULTS: [&str; 8] = [PERF, POWERCAP, NVML, AMDGPU, INTELGPU, HWMON, BATTERY, ESTIMATE];

/// Likewise where the system is macOS, which has none of the others.
const MACOS_DEFAULTS: [&str; 2] = [IOREPORT, SMC];

/// Every mechanism that can be named.
pub(super) const ALL_NAMES: [&str; 11] =
    [PERF, POWERCAP, NVML, AMDGPU, INTELGPU, HWMON, BATTERY, IOREPORT, SMC, ESTIMATE, MSR];

/// What is tried on this kind of system.
fn default_names() -> &'static [&'static str] {
    if std::env::consts::OS == "macos" { &MACOS_DEFAULTS } else { &LINUX_DEFAULTS }
}

impl Default for SourceSettings {
    fn default() -> Self {
        Self {
            sysfs_root: "/sys".into(),
            proc_root: "/proc".into(),
            msr_root: "/dev/cpu".into(),
            nvml_library: None,
            apple_library: None,
            replay: None,
            enabled: default_names().iter().copied().map(String::from).collect(),
            estimate_mw: None,
        }
    }
}
