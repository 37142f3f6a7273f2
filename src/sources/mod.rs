//! Where joules come from: one file for each mechanism, all behind one trait.
//!
//! Owns the trait and what discovery gives. Absent hardware is a shorter list, never an error. Never blocks on a client, never logs for each tick, never interprets a wrap
//! outside `counter`.
//!
//! | mechanism | what it reads | grade | needs |
//! |---|---|---|---|
//! | `perf` | RAPL through the kernel's `power` PMU | measured; AMD modelled | CAP_PERFMON |
//! | `powercap` | RAPL through sysfs | the same | root |
//! | `nvml` | NVIDIA GPUs through their driver's library | measured; without a counter integrated | /dev/nvidia* |
//! | `msr` | RAPL through `/dev/cpu/N/msr`; off unless configured | the same | CAP_SYS_RAWIO |
//! | `amdgpu` | AMD's `gpu_metrics`, else hwmon | measured; integrated | nothing |
//! | `intelgpu` | hwmon of the drivers xe and i915 | measured | nothing |
//! | `hwmon` | boards' sensors: Grace, Jetson, others | integrated; measured | nothing |
//! | `battery` | `power_supply` while it discharges; never counted | integrated | nothing |
//! | `ioreport` | Apple silicon's counters through IOReport | modelled | macOS |
//! | `smc` | the power that a Mac's controller senses | integrated | macOS |
//! | `estimate` | CPU load times a model | estimated | nothing |
//! | `replay` | a recorded trace or a scripted machine | as told there | a file |

pub use discovery::{discover, discover_within};
pub use source::{Inventory, OpenProgress, OpenedSource, Source, StartingSources};
pub use source_settings::SourceSettings;

/// AMD's graphics cards through the kernel.
pub mod amdgpu;

/// An AMD card's accumulator as a source.
mod amdgpu_accumulator;

/// Apple's Macs: IOReport and the System Management Controller.
pub mod apple;

/// What a battery delivers.
pub mod battery;

/// What the labels on boards mean.
mod board_labels;

/// What a call into a driver costs, and how often it may be made for that.
mod call_cost;

/// Raw counts that wrap and restart, made into energy that only grows.
pub mod counter;

/// Who made the processor.
mod cpu_info;

/// The kernel's lists of CPUs.
#[cfg(target_os = "linux")]
mod cpu_list;

/// Each joule once: duplicates, preference, and which domains make up the total.
pub mod dedup;

/// Which mechanisms are there.
mod discovery;

/// Power integrated over time, with its uncertainty.
pub mod energy_integral;

/// Microjoules in a raw count, exactly.
pub mod energy_unit;

/// CPU load times a power model, where there is no counter at all.
pub mod estimate;

/// AMD's binary table.
mod gpu_metrics;

/// Boards' own sensors.
pub mod hwmon;

/// The chips under `class/hwmon`.
mod hwmon_chip;

/// Intel's graphics cards through the kernel.
pub mod intelgpu;

/// RAPL through the registers themselves.
pub mod msr;

/// Which energy registers a processor has, and in what units.
mod msr_layout;

/// NVIDIA GPUs.
#[cfg(target_os = "linux")]
pub mod nvml;

/// NVIDIA GPUs: not on this system.
#[cfg(not(target_os = "linux"))]
#[path = "nvml/nvml_unsupported.rs"]
pub mod nvml;

/// Opening the sources, each on a thread of its own.
mod parallel_open;

/// RAPL through the kernel's `power` PMU.
#[cfg(target_os = "linux")]
pub mod perf;

/// RAPL through the kernel's `power` PMU: not on this system.
#[cfg(not(target_os = "linux"))]
#[path = "perf_unsupported.rs"]
pub mod perf;

/// What to say where perf is closed.
#[cfg(target_os = "linux")]
mod perf_error_reason;

/// `perf_event_open(2)`.
#[cfg(target_os = "linux")]
mod perf_ffi;

/// Event sources as sysfs describes them.
#[cfg(target_os = "linux")]
mod pmu;

/// A sensor of power, integrated.
mod power_sensor;

/// RAPL through the kernel's powercap zones.
pub mod powercap;

/// The powercap tree: zones, names, units.
mod powercap_zone;

/// A short look under load: which counters move.
mod probe;

/// What RAPL's domains are, whichever mechanism reads them.
mod rapl;

/// Recorded and scripted machines as a source.
pub mod replay;

/// Files that show energy or power, read together.
mod sensor_files;

/// The trait of all sources, and what opening them gives.
mod source;

/// The sources' names, and the settings of discovery.
mod source_settings;

/// Whether the machine slept.
mod suspend_detector;

/// A kernel's file that is kept open.
mod sysfs_file;

/// Where the kernel's CPUs sit.
pub mod topology;

/// The time stamp counter as the time stamp of a read.
#[cfg(target_os = "linux")]
mod tsc;
