//! Per-process utilisation of NVIDIA boards on systems without NVML: unavailable.

use std::collections::HashMap;
use std::path::PathBuf;

/// A board's report; never created here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UtilizationReport {
    /// As with NVML; never created here.
    Measured(u64, HashMap<u32, u64>),
    /// As with NVML; never created here.
    Unavailable(String),
}

/// The utilization reader of one board; never created here.
#[derive(Debug)]
pub struct ProcessUtilization;

impl ProcessUtilization {
    /// Returns `None`: there is no NVML here.
    pub fn spawn(_library: Option<&PathBuf>, _uuid: String) -> Option<Self> {
        None
    }

    /// Does nothing.
    pub fn request(&self) {}

    /// Returns `None`: there are no reports.
    pub fn take_report(&self) -> Option<UtilizationReport> {
        None
    }
}
