//! NVIDIA's per-process utilisation where there is no NVML.
//!
//! Owns nothing.

use std::collections::HashMap;
use std::path::PathBuf;

/// What a board reports; here none does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UtilizationReport {
    /// Never.
    Measured(u64, HashMap<u32, u64>),
    /// Never.
    Unavailable(String),
}

/// One board; here there is none.
#[derive(Debug)]
pub struct ProcessUtilization;

impl ProcessUtilization {
    /// None.
    pub fn spawn(_library: Option<&PathBuf>, _uuid: String) -> Option<Self> {
        None
    }

    /// Does nothing.
    pub fn request(&self) {}

    /// Nothing.
    pub fn take_report(&self) -> Option<UtilizationReport> {
        None
    }
}
