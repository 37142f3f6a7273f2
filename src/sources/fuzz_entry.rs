//! The parsers of what kernel, drivers and firmware show, under names that the fuzz targets can call (docs/fuzzing.md).

use super::amdgpu::GpuMetrics;
use super::apple::smc_protocol::{self, KeyInfo};
use super::cpu_info::CpuInfo;
use super::{estimate, hwmon, hwmon_label, sysfs_file};

#[cfg(target_os = "linux")]
pub use super::cpu_list::parse_cpu_list;
#[cfg(target_os = "linux")]
pub use super::pmu::parse_config;

/// The energy count, the instant and the power in watts of a `gpu_metrics` table.
pub fn gpu_metrics(table: &[u8]) -> Option<(Option<u64>, Option<u64>, Option<u16>)> {
    let metrics = GpuMetrics::parse(table)?;
    Some((metrics.energy_count, metrics.boot_ns, metrics.power_w))
}

/// The processor of a `/proc/cpuinfo`, as text.
pub fn cpu_info(text: &str) -> String {
    format!("{:?}", CpuInfo::parse(text))
}

/// The domain names that a rail with this label has on a chip of each kind.
pub fn rail_names(label: &str) -> Vec<String> {
    let roles = hwmon_label::ALL_ROLES.iter();
    roles.filter_map(|role| hwmon_label::rail_position(role, Some(label))).map(|rail| rail.name).collect()
}

/// The accuracy of an ACPI meter, parts per million.
pub fn accuracy_ppm(text: &str) -> Option<u64> {
    hwmon::parse_accuracy_ppm(text)
}

/// The busy ticks of a line of CPU times.
pub fn busy_ticks(line: &str) -> Option<u64> {
    estimate::parse_busy_ticks(line)
}

/// The number in a file of sysfs.
pub fn number(text: &[u8]) -> Option<i128> {
    sysfs_file::parse_number(text)
}

/// The power in a value of the System Management Controller, milliwatts.
pub fn smc_power_mw(type_code: [u8; 4], size: u32, bytes: &[u8; 32]) -> Option<u64> {
    let type_code = smc_protocol::four_char_code(&type_code);
    smc_protocol::power_mw(&KeyInfo { size, type_code, attributes: 0 }, bytes)
}
