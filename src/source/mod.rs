//! Where joules come from: one file for each mechanism, all behind one trait.
//!
//! Owns discovery: which mechanisms are tried, and what is said of those that are not there. Absent hardware is a
//! shorter list, never an error. Never blocks on a client, never logs for each tick, never interprets a wrap
//! outside `counter`.

use std::path::PathBuf;

use crate::energy::{Absent, Domain, Reading};

/// Gives every domain's cumulative energy now.
pub trait Source: Send {
    /// Fills one reading for each domain, in the order of [`Opened::domains`]. A domain that cannot answer leaves
    /// `valid: false`. Allocates nothing once warm.
    ///
    /// Returns a narrower window, in nanoseconds of the clock, than the one the caller measures around this call,
    /// where the source knows one: every reading was taken between the first instant and the second.
    fn read(&mut self, into: &mut [Reading]) -> Option<(u64, u64)>;
}

/// A source that is there, with what it offers.
pub struct Opened {
    /// The mechanism: "perf", "powercap", ...
    pub name: &'static str,
    /// The reader itself.
    pub source: Box<dyn Source>,
    /// What it meters, in the order of the readings.
    pub domains: Vec<Domain>,
    /// The CPU on which a read is cheapest, if it matters.
    pub cpu: Option<usize>,
    /// Reading faster than this gives nothing new.
    pub max_rate_hz: f64,
    /// For each domain whether it advanced while discovery watched it under load; one that did not is stuck.
    pub advanced: Vec<bool>,
}

/// Everything that discovery found.
#[derive(Default)]
pub struct Inventory {
    /// Sources that opened.
    pub opened: Vec<Opened>,
    /// Sources that are not there, with the reason and the mend.
    pub absent: Vec<Absent>,
}

/// What discovery needs to know; roots and paths are arguments, so that tests can stand in for the machine.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the kernel's `/sys` is.
    pub sysfs_root: PathBuf,
    /// Where the kernel's `/proc` is.
    pub proc_root: PathBuf,
    /// A library to load instead of the system's `libnvidia-ml.so.1`.
    pub nvml_library: Option<PathBuf>,
    /// A trace or scripted machine; where given, it is the only source.
    pub replay: Option<PathBuf>,
    /// Names of the sources to try, in order of preference.
    pub enabled: Vec<String>,
    /// Power of the whole CPU complex at rest and at full load, for machines with no counter; `None`: from the
    /// documented model and the number of CPUs.
    pub estimate_mw: Option<(u64, u64)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sysfs_root: "/sys".into(),
            proc_root: "/proc".into(),
            nvml_library: None,
            replay: None,
            enabled: ["perf", "powercap", "estimate"].map(String::from).to_vec(),
            estimate_mw: None,
        }
    }
}
