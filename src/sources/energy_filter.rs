//! Intel's energy filtering: noise that the processor adds to the energy that RAPL's registers show (INTEL-SA-00389).
//!
//! The filter is on where SGX is, or where bit 0 of IA32_MISC_PACKAGE_CTLS is set. The kernel shows SGX as a flag in
//! `/proc/cpuinfo`; no file shows the bit. The uncertainty of a filtered counter's reading is a fixed part of its energy.

use crate::domain::{EnergyReading, PowerLimits};

use super::cpu_info::CpuInfo;
use super::source_settings::reads_rapl;
use super::{OpenedSource, Source, SourceSettings};

/// Up to half of the energy, as Green Coding reads Intel's table (green-coding.io, RAPL and SGX).
const DEFAULT_ERROR_PPM: u64 = 500_000;

/// The noise of this machine's RAPL registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnergyFilter {
    /// The largest deviation of the energy shown in parts per million of the true energy, below a million; 0: not filtered.
    pub error_ppm: u64,
    /// Where it comes from, as in the protocol.
    pub origin: &'static str,
}

impl EnergyFilter {
    /// The configured noise, else what the kernel's flag shows. `None`: the processor has no such filter, or no source reads
    /// RAPL.
    pub fn detect(settings: &SourceSettings) -> Option<Self> {
        if settings.replay.is_some() || !settings.enabled.iter().any(|source| Self::concerns(source)) {
            return None;
        }
        if let Some(error_ppm) = settings.energy_filter_ppm {
            return Some(Self { error_ppm, origin: "configured" });
        }
        let cpu_info = CpuInfo::read(&settings.proc_root);
        let error_ppm = if cpu_info.has_sgx { DEFAULT_ERROR_PPM } else { 0 };
        (cpu_info.vendor == "GenuineIntel").then_some(Self { error_ppm, origin: "driver" })
    }

    /// Whether the filter concerns the domains of this source.
    pub fn concerns(source: &str) -> bool {
        reads_rapl(source)
    }
}

/// Adds the noise of the filter, if there is any, to the uncertainty of a source's readings.
pub(super) fn add_uncertainty(opened: OpenedSource, filter: Option<EnergyFilter>) -> OpenedSource {
    match filter {
        Some(EnergyFilter { error_ppm, .. }) if error_ppm > 0 && EnergyFilter::concerns(opened.name) => {
            let source = Box::new(FilteredSource { source: opened.source, error_ppm });
            OpenedSource { source, ..opened }
        }
        _ => opened,
    }
}

/// A source whose counters the filter changes.
struct FilteredSource {
    source: Box<dyn Source>,
    error_ppm: u64,
}

impl Source for FilteredSource {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        let window = self.source.read(into);
        for reading in into.iter_mut().filter(|reading| reading.valid) {
            let noise_uj = largest_noise_uj(reading.energy_uj, self.error_ppm);
            reading.uncertainty_uj = reading.uncertainty_uj.saturating_add(noise_uj);
        }
        window
    }

    fn can_block(&self) -> bool {
        self.source.can_block()
    }

    fn read_power_limits(&mut self, into: &mut [PowerLimits]) -> bool {
        self.source.read_power_limits(into)
    }
}

/// The largest distance of the true energy from the energy shown, if the shown one deviates by this part of the true one. If
/// half of the true energy is missing, the true one is twice the shown one.
fn largest_noise_uj(shown_uj: u64, error_ppm: u64) -> u64 {
    const MAX_ERROR_PPM: u64 = 990_000;
    let error_ppm = error_ppm.min(MAX_ERROR_PPM);
    let noise_uj = (u128::from(shown_uj) * u128::from(error_ppm)).div_ceil(u128::from(1_000_000 - error_ppm));
    u64::try_from(noise_uj).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_noise_contains_every_true_energy_that_can_show_the_value() {
        for (error_ppm, true_uj) in [(500_000, 1_000_000_u64), (500_000, 7), (125_000, 999_999), (0, 5)] {
            let deviation_uj = true_uj * error_ppm / 1_000_000;
            for shown_uj in [true_uj - deviation_uj, true_uj, true_uj + deviation_uj] {
                assert!(true_uj.abs_diff(shown_uj) <= largest_noise_uj(shown_uj, error_ppm), "{shown_uj}");
            }
        }
        assert_eq!(largest_noise_uj(1_000, 0), 0);
        assert_eq!(largest_noise_uj(1_000, 500_000), 1_000, "and no more");
    }
}
