//! The sources' names, and the settings of discovery with their defaults.
//!
//! Owns no state and imports no source. Roots and paths are arguments, so that tests can replace the machine.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// RAPL through the kernel's `power` PMU.
pub const PERF: &str = "perf";
/// RAPL through sysfs.
pub const POWERCAP: &str = "powercap";
/// RAPL through `/dev/cpu/N/msr`.
pub const MSR: &str = "msr";
/// NVIDIA GPUs, through the library of their driver.
pub const NVML: &str = "nvml";
/// AMD GPUs, through `gpu_metrics` and hwmon in sysfs.
pub const AMDGPU: &str = "amdgpu";
/// Intel GPUs, through hwmon in sysfs.
pub const INTELGPU: &str = "intelgpu";
/// Power and energy sensors of boards.
pub const HWMON: &str = "hwmon";
/// The discharge of batteries in `/sys/class/power_supply`.
pub const BATTERY: &str = "battery";
/// Apple silicon's energy counters.
pub const IOREPORT: &str = "ioreport";
/// The System Management Controller of a Mac.
pub const SMC: &str = "smc";
/// CPU load times a power model.
pub const ESTIMATE: &str = "estimate";

/// Whether a source of this name reads RAPL's registers.
pub fn reads_rapl(source: &str) -> bool {
    [PERF, POWERCAP, MSR].contains(&source)
}

/// What moves the counters while discovery watches which of them advance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ProbeLoad {
    /// A busy loop on one CPU.
    #[default]
    BusyLoop,
    /// Only what the machine does anyway: discovery sleeps between its reads and ends as early as the counters allow. For
    /// a process that starts the measured command next.
    Background,
}

/// Settings of discovery. Roots and paths are arguments, so that tests can replace the machine.
#[derive(Debug, Clone)]
pub struct SourceSettings {
    /// The mount point of sysfs.
    pub sysfs_root: PathBuf,
    /// The mount point of procfs.
    pub proc_root: PathBuf,
    /// The directory of the CPUs' register files, for `msr`.
    pub msr_root: PathBuf,
    /// The library that replaces the system's `libnvidia-ml.so.1`.
    pub nvml_library: Option<PathBuf>,
    /// The library that replaces Apple's, with the C functions of IOReport, CoreFoundation and IOKit.
    pub apple_library: Option<PathBuf>,
    /// A trace or scripted machine. If set, it is the only source.
    pub replay: Option<PathBuf>,
    /// Names of the sources to try, in order of preference.
    pub enabled: Vec<String>,
    /// Power of all CPUs together when idle and at full load, for machines without a counter. `None`: the published
    /// figures of the processor's family times the number of CPUs.
    pub estimate_mw: Option<(u64, u64)>,
    /// The noise of Intel's energy filtering, in parts per million of the true energy. `None`: as the kernel's SGX flag shows.
    pub energy_filter_ppm: Option<u64>,
    /// The averaging time of power sensors by domain name, for sensors in files. Others: as the driver shows it.
    pub averaging_ns: BTreeMap<String, u64>,
    /// The load under which counters have to advance.
    pub probe_load: ProbeLoad,
    /// Whether devices that appear after discovery are looked for.
    pub finds_new_devices: bool,
}

/// The default mechanisms on Linux, in order of preference.
const LINUX_DEFAULTS: [&str; 8] = [PERF, POWERCAP, NVML, AMDGPU, INTELGPU, HWMON, BATTERY, ESTIMATE];

/// The default mechanisms on macOS, which has none of the others.
const MACOS_DEFAULTS: [&str; 2] = [IOREPORT, SMC];

/// All mechanisms that the configuration may name.
pub(super) const ALL_NAMES: [&str; 11] =
    [PERF, POWERCAP, NVML, AMDGPU, INTELGPU, HWMON, BATTERY, IOREPORT, SMC, ESTIMATE, MSR];

/// The default mechanisms on this operating system.
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
            energy_filter_ppm: None,
            averaging_ns: BTreeMap::new(),
            probe_load: ProbeLoad::default(),
            finds_new_devices: true,
        }
    }
}
