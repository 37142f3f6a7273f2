//! Energy sources: one file for each mechanism; all implement the trait [`Source`](crate::sources::Source).
//!
//! Absent hardware gives a shorter list, never an error. Only `counter` interprets wraps and resets.
//!
//! | mechanism | what it reads | grade | needs |
//! |---|---|---|---|
//! | `perf` | RAPL through the kernel's `power` PMU | measured; AMD modelled | CAP_PERFMON |
//! | `powercap` | RAPL through sysfs | the same | root |
//! | `nvml` | NVIDIA GPUs through their driver's library | measured; without a counter integrated | /dev/nvidia* |
//! | `msr` | RAPL through `/dev/cpu/N/msr`; off unless configured | the same | CAP_SYS_RAWIO |
//! | `amdgpu` | AMD's `gpu_metrics`, else hwmon | measured; integrated; estimated | nothing |
//! | `intelgpu` | hwmon of the drivers xe and i915 | measured; estimated | nothing |
//! | `hwmon` | board sensors: Grace, Jetson, others | integrated; measured | nothing |
//! | `battery` | `power_supply` while it discharges; never counted | integrated | nothing |
//! | `ioreport` | Apple silicon's counters through IOReport | modelled | macOS |
//! | `smc` | the power sensors of a Mac's controller | integrated | macOS |
//! | `estimate` | CPU load times a model of the processor's family | estimated | nothing |
//! | `replay` | a recorded trace or a scripted machine | as recorded | a file |

pub use device_list::DeviceList;
pub use device_watch::{DeviceWatch, KnownDevices};
pub use discovery::{discover, discover_all, discover_within};
pub use energy_filter::EnergyFilter;
pub use source::{Inventory, OpenProgress, OpenedSource, Source, StartingSources, is_resource_shortage};
pub use source_settings::{ProbeLoad, SourceSettings, reads_rapl};

/// Whether no document gives the publishing lag of this domain's counter. One update interval is assumed then. Of hwmon's
/// chips only those that show RAPL's registers have a known one.
pub fn has_undocumented_lag(domain: &crate::domain::Domain) -> bool {
    let is_unknown = match domain.source.as_str() {
        nvml::NAME | intelgpu::NAME => true,
        hwmon::NAME => domain.latency_ns > rapl::LATENCY_NS,
        _ => false,
    };
    is_unknown && domain.grade == crate::domain::Grade::Measured
}

/// Where the quantum of this domain comes from, as in the protocol. Grade and lag distinguish RAPL's
/// registers from unknown chips.
pub fn quantum_origin(domain: &crate::domain::Domain) -> &'static str {
    use crate::domain::Grade;
    match (domain.grade, domain.source.as_str()) {
        (_, source) if source == crate::domain::REPLAY_SOURCE => "recorded",
        (Grade::Integrated | Grade::Estimated, _) => "rounding",
        (_, powercap::NAME | msr::NAME | source_settings::IOREPORT) => "driver",
        (_, intelgpu::NAME) => "assumed",
        (_, hwmon::NAME) if has_undocumented_lag(domain) => "assumed",
        _ => "specification",
    }
}

/// AMD GPUs through the kernel's driver.
pub mod amdgpu;

/// Apple Macs: IOReport and the System Management Controller.
pub mod apple;

/// Batteries while they discharge.
pub mod battery;

/// The measured cost of a driver call and the call period that follows from it.
mod call_cost;

/// Conversion of raw counts that wrap and restart to monotonic energy.
pub mod counter;

/// Vendor, family and model of the processor.
mod cpu_info;

/// The power of CPUs by the processor's family.
mod cpu_power_model;

/// The parser of the kernel's CPU lists.
#[cfg(target_os = "linux")]
mod cpu_list;

/// Deduplication: duplicate domains, source preference, and the domains of the total.
pub mod dedup;

/// The devices that the kernel lists.
mod device_list;

/// Devices that appear after discovery.
mod device_watch;

/// Discovery of the available sources.
mod discovery;

/// Intel's energy filtering of RAPL's registers.
mod energy_filter;

/// Integration of power over time, with its uncertainty.
pub mod energy_integral;

/// The exact energy of one raw count.
pub mod energy_unit;

/// CPU load times a power model, for machines without an energy counter.
pub mod estimate;

/// The power of GPUs by limit and utilization.
mod gpu_power_model;

/// Entry points of the fuzz targets.
#[doc(hidden)]
pub mod fuzz_entry;

/// Board sensors under `class/hwmon`.
pub mod hwmon;

/// The file layout of chips under `class/hwmon`.
mod hwmon_chip;

/// The positions of rails in the domain tree, from what a chip shows.
mod hwmon_label;

/// Intel GPUs through the kernel's drivers.
pub mod intelgpu;

/// Comparison of mechanisms that show the same energy.
pub mod mechanism_comparison;

/// RAPL through the model-specific registers.
pub mod msr;

#[cfg(target_os = "linux")]
pub mod nvml;

/// NVIDIA GPUs: stub for other systems.
#[cfg(not(target_os = "linux"))]
#[path = "nvml/nvml_unsupported.rs"]
pub mod nvml;

/// Opening of the sources, one thread for each.
mod parallel_open;

/// RAPL through the kernel's `power` PMU.
#[cfg(target_os = "linux")]
pub mod perf;

/// RAPL through the kernel's `power` PMU: stub for other systems.
#[cfg(not(target_os = "linux"))]
#[path = "perf_unsupported.rs"]
pub mod perf;

/// Reasons and remedies for failed perf calls.
#[cfg(target_os = "linux")]
mod perf_error_reason;

/// `perf_event_open(2)`.
#[cfg(target_os = "linux")]
mod perf_ffi;

/// PMUs and their events as sysfs describes them.
#[cfg(target_os = "linux")]
mod pmu;

/// An integrated power sensor.
mod power_sensor;

/// RAPL through the kernel's powercap zones.
pub mod powercap;

/// The short test under load that finds counters that do not advance.
mod probe;

/// RAPL domains, independent of the mechanism that reads them.
mod rapl;

/// The power limits of RAPL domains.
mod rapl_limits;

/// The RAPL registers and units of each processor model.
mod rapl_model;

/// Recorded traces and scripted machines as a source.
pub mod replay;

/// A group of sensor files that is read as one source.
mod sensor_files;

/// The trait of all sources, and what opening them gives.
mod source;

/// The sources' names, and the settings of discovery.
mod source_settings;

/// Detection of system suspend.
mod suspend_detector;

/// A sysfs file that stays open.
mod sysfs_file;

/// CPU topology: packages and dies.
pub mod topology;

/// Time stamps of reads from the time stamp counter.
#[cfg(target_os = "linux")]
mod tsc;
