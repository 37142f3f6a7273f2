//! What discovery needs to know, and what it tries unasked.
//!
//! Owns no state. Roots and paths are arguments, so that tests can stand in for the machine.

use std::path::PathBuf;

use super::apple::{ioreport, smc};
use super::{amdgpu, battery, estimate, hwmon, intelgpu, msr, nvml, perf, powercap};

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
const LINUX_DEFAULTS: [&str; 8] = [
    perf::NAME,
    powercap::NAME,
    nvml::NAME,
    amdgpu::NAME,
    intelgpu::NAME,
    hwmon::NAME,
    battery::NAME,
    estimate::NAME,
];

/// Likewise where the system is macOS, which has none of the others.
const MACOS_DEFAULTS: [&str; 2] = [ioreport::NAME, smc::NAME];

/// Every mechanism that can be named.
pub(super) const ALL_NAMES: [&str; 11] = [
    perf::NAME,
    powercap::NAME,
    nvml::NAME,
    amdgpu::NAME,
    intelgpu::NAME,
    hwmon::NAME,
    battery::NAME,
    ioreport::NAME,
    smc::NAME,
    estimate::NAME,
    msr::NAME,
];

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
