//! Per-process utilisation of NVIDIA boards on systems without NVML: unavailable.

use std::collections::HashMap;
use std::path::PathBuf;

/// A board's report; never created here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UtilizationReport {
    /// Never.
    Measured(u64, HashMap<u32, u64>),
    /// Never.
    Unavailable(String),
}

/// The utilization reader of one board; never created here.
#[derive(Debug)]
pub struct ProcessUtilization;

impl ProcessUtilization {
    /// Always `None`.
    pub fn spawn(_library: Option<&PathBuf>, _uuid: String) -> Option<Self> {
        None
    }

    /// Does nothing.
    pub fn request(&self) {}

    /// Always `None`.
    pub fn take_report(&self) -> Option<UtilizationReport> {
        None
    }
}
