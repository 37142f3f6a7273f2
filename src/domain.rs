//! Domains, readings and grades: the types that all stages share.
//!
//! Energy is whole microjoules (`_uj`) in `u64` (58 years at 10 kW), power milliwatts (`_mw`), time nanoseconds (`_ns`)
//! of the monotonic clock. There are no floats here.
//!
//! Glossary: a *source* reads hardware; a *domain* is a part of the machine with an energy counter; a *reading* is one
//! domain's cumulative energy at one instant; a *sample* is the result of one read of a source; a *gap* is time that no
//! reading covers; a *counter update* is an instant at which a counter moved; a *span* is a period that a client opens
//! and closes; a *share* is the part of a domain's energy that belongs to a span; an *account* is the report of a span.

pub use wattspan_client::domain::{
    Absent, DomainKind, DomainName, Duplicate, Grade, Liveness, REPLAY_SOURCE,
};

/// The description of a domain, fixed but for its parent.
#[derive(Debug, Clone, PartialEq)]
pub struct Domain {
    /// Unique on this machine: "package-0", "dram-0", "gpu-0".
    pub name: String,
    /// The part of the machine that it measures.
    pub kind: DomainKind,
    /// The source that reads it: "perf", "powercap", "estimate", "replay", ...
    pub source: String,
    /// The device's identifier, stable over reboots: a GPU's UUID, a PCI address.
    pub device: Option<String>,
    /// The name of the domain that contains this one, if known.
    pub parent: Option<String>,
    /// The quality of its values.
    pub grade: Grade,
    /// The domain's maximum power, including transients, as far as its source knows it when it opens. The guaranteed
    /// error between two counter updates rests on it; the machine's [`PowerLimit`]s tighten it. It rejects no reading.
    /// `None`: unknown.
    pub ceiling_mw: Option<u64>,
    /// The publishing lag: the maximum delay from the hardware's update of a counter to its appearance in a reading.
    pub latency_ns: u64,
    /// The amount by which the true energy can exceed the counter's value: the counter's unit, rounded up, at least 1.
    pub quantum_uj: u64,
}

impl Domain {
    /// Whether its energy comes from a file, not from this machine's hardware.
    pub fn is_simulated(&self) -> bool {
        self.source == REPLAY_SOURCE
    }

    /// The lag that places an update between two readings. Of a real counter only the maximum is known, and a long
    /// maximum (up to an update interval) says little about the lag itself. That of a trailing mean, which is twice the
    /// averaging time, and that of a simulated machine apply in full.
    pub fn placement_lag_ns(&self) -> u64 {
        const MAX_COUNTER_LAG_NS: u64 = 20_000_000;
        match self.grade {
            Grade::Measured if !self.is_simulated() => self.latency_ns.min(MAX_COUNTER_LAG_NS),
            _ => self.latency_ns,
        }
    }
}

/// A limit of a domain's power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerLimit {
    /// The mean power over any window of at least `window_ns` is at most this. Shorter windows may exceed it.
    pub limit_mw: u64,
    /// 0: the limit holds at every instant, transients included.
    pub window_ns: u64,
    /// Where it comes from: "powercap peak_power", "memory size", ...
    pub origin: &'static str,
}

/// The number of limits of one domain.
pub const MAX_POWER_LIMITS: usize = 3;

/// The limits of one domain that its source reads on this machine.
pub type PowerLimits = [Option<PowerLimit>; MAX_POWER_LIMITS];

/// One domain's cumulative energy in one read of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EnergyReading {
    /// Whether the domain could be read. If false, only `shape_uj` of the other fields is meaningful.
    pub valid: bool,
    /// Cumulative energy. It never decreases within an epoch, and the next epoch continues from the same value.
    pub energy_uj: u64,
    /// Cumulative half-width of the model's or sensor's own uncertainty of `energy_uj`; 0 for a counter. The true
    /// energy of an interval lies within the difference of `energy_uj` ± the difference of `uncertainty_uj`.
    pub uncertainty_uj: u64,
    /// The instant at which `energy_uj` is exact, if the hardware or the integration provides it. Otherwise 0: only the
    /// times around the read are known.
    pub stamp_ns: u64,
    /// Grows by one whenever the energy since the previous reading is unknown (a reset, an implausible jump, a return
    /// after absence). Readings of different epochs cannot be compared.
    pub epoch: u32,
    /// The integral of a power sensor beside a counter that moves seldom. It shows the distribution of energy *within*
    /// a step of the counter, not the amount; it may be wrong by any factor, and no guarantee depends on it. It is
    /// meaningful in a reading that is not valid too: the counter was not read this time. 0: no such sensor.
    pub shape_uj: u64,
}
