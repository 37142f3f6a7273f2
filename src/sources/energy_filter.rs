//! Intel's energy filtering: noise that the processor adds to the energy that RAPL's registers show (INTEL-SA-00389).
//!
//! The filter is on where SGX is, or where bit 0 of IA32_MISC_PACKAGE_CTLS is set. The kernel shows SGX as a flag in
//! `/proc/cpuinfo`; no file shows the bit. The uncertainty of a filtered counter's reading is a fixed part of its energy.

use crate::domain::{EnergyReading, PowerLimits};

use super::cpu_info::CpuInfo;
use super::{OpenedSource, Source, SourceSettings, msr, perf, powercap};

/// Up to half of the energy, as Green Coding reads Intel's table (green-coding.io, RAPL and SGX).
const DEFAULT_ERROR_PPM: u64 = 500_000;

/// The noise of this machine's RAPL registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnergyFilter {
    /// The largest deviation in parts per million of the energy shown; 0: not filtered.
    pub error_ppm: u64,
    /// Where it comes from, as in the protocol.
    pub origin: &'static str,
}

impl EnergyFilter {
    /// The configured noise, else what the kernel's flag shows. `None`: the processor has no such filter.
    pub fn detect(settings: &SourceSettings) -> Option<Self> {
        if let Some(error_ppm) = settings.energy_filter_ppm {
            return Some(Self { error_ppm, origin: "configured" });
        }
        let cpu_info = CpuInfo::read(&settings.proc_root);
        let error_ppm = if cpu_info.has_sgx { DEFAULT_ERROR_PPM } else { 0 };
        (cpu_info.vendor == "GenuineIntel").then_some(Self { error_ppm, origin: "driver" })
    }

    /// Whether the filter concerns the domains of this source.
    pub fn concerns(source: &str) -> bool {
        [perf::NAME, powercap::NAME, msr::NAME].contains(&source)
    }
}

/// Adds the noise of the filter, if there is any, to the uncertainty of a source's readings.
pub(super) fn add_uncertainty(opened: OpenedSource, settings: &SourceSettings) -> OpenedSource {
    match EnergyFilter::detect(settings) {
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
            let noise_uj =
                (u128::from(reading.energy_uj) * u128::from(self.error_ppm)).div_ceil(1_000_000) as u64;
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
