//! NVIDIA's per-process utilisation where there is no NVML.
//!
//! Owns nothing.

use std::collections::HashMap;
use std::path::PathBuf;

/// What a board told; here none does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Never.
    Used(u64, HashMap<u32, u64>),
    /// Never.
    Silent(String),
}

/// One board; here there is none.
#[derive(Debug)]
pub struct GpuTime;

impl GpuTime {
    /// None.
    pub fn of(_library: Option<&PathBuf>, _uuid: String) -> Option<Self> {
        None
    }

    /// Asks nobody.
    pub fn ask(&self) {}

    /// Nothing.
    pub fn take(&self) -> Option<Told> {
        None
    }
}
