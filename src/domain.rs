//! The terms of the whole program: domains, readings, grades.
//!
//! Owns the words every stage shares. Energy is whole microjoules (`_uj`) in `u64` (58,000 years at 10 kW),
//! power milliwatts (`_mw`), time nanoseconds (`_ns`) of the monotonic clock; there are no floats here.
//!
//! Glossary: a *source* reads hardware; a *domain* is a thing with a meter; a *reading* is one domain's
//! cumulative energy at one instant; a *sample* is what one read of a source gave; a *gap* is time for which no
//! reading vouches; a *counter update* is an instant at which a counter is known to have moved; a *span* is a client's
//! interval; a *share* is the part of a domain's energy that belongs to a span; an *account* is a span's result.

use serde::{Deserialize, Serialize};

/// What kind of thing a domain meters; the contract's `Domain.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainKind {
    /// The whole platform as the charger or board sees it.
    Psys,
    /// A CPU package (socket).
    Package,
    /// The cores of a package (RAPL PP0).
    Core,
    /// The rest of a package's graphics and fabric (RAPL PP1).
    Uncore,
    /// Memory attached to a package.
    Dram,
    /// A graphics card or accelerator.
    Gpu,
    /// The memory of a graphics card.
    GpuMemory,
    /// A neural engine.
    Npu,
    /// A system on a chip as a whole.
    Soc,
    /// A board module (CPU and accelerator together).
    Module,
    /// What a battery delivers.
    Battery,
    /// All CPUs of the machine together, where nothing finer is known.
    Cpu,
    /// A supply rail whose place on the board is unknown: shown, and never part of a total.
    Rail,
}

/// Where a figure comes from, best first, so that the worst of several is their maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grade {
    /// A hardware energy counter.
    Measured,
    /// A vendor's model behind a counter.
    Modelled,
    /// Power readings, integrated over time.
    Integrated,
    /// A model fed by load; no sensor at all.
    Estimated,
}

impl Grade {
    /// The grade's name in the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Grade::Measured => "measured",
            Grade::Modelled => "modelled",
            Grade::Integrated => "integrated",
            Grade::Estimated => "estimated",
        }
    }
}

/// Whether a domain's counter moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Liveness {
    /// It advances.
    Live,
    /// It is present but does not advance.
    Stuck,
    /// It was live and went away.
    Lost,
    /// Its source has not answered yet since the meter started.
    Starting,
}

/// Whether two domains are two names of one counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Duplicate {
    /// Both names show one counter.
    Same,
    /// They are two counters.
    Independent,
    /// Not known yet: until it is, the two count once.
    Undecided,
}

/// The fixed description of one thing with a meter.
#[derive(Debug, Clone, PartialEq)]
pub struct Domain {
    /// Unique on this machine: "package-0", "dram-0", "gpu-0".
    pub name: String,
    /// What it meters.
    pub kind: DomainKind,
    /// The mechanism that reads it: "perf", "powercap", "estimate", "replay", ...
    pub source: String,
    /// What stays the same over reboots: a GPU's UUID, a PCI address.
    pub device: Option<String>,
    /// The name of the domain that contains this one, where the source knows it.
    pub parent: Option<String>,
    /// How far its figures can be trusted.
    pub grade: Grade,
    /// The domain's maximum power, transients included. A reading above it is refused as implausible,
    /// and it tightens the guaranteed error between two counter updates. `None`: unknown, no such help.
    pub ceiling_mw: Option<u64>,
    /// How long a new counter value may take from the hardware to where it can be read.
    pub latency_ns: u64,
    /// The largest amount one counter step can stand for beyond its value (the unit, rounded up), at least 1.
    pub quantum_uj: u64,
}

/// The mechanism that replays a scripted or recorded machine; its figures are *simulated*, whatever their grade.
pub const REPLAY_SOURCE: &str = "replay";

impl Domain {
    /// Whether its energy comes from a file and not from this machine's hardware.
    pub fn is_simulated(&self) -> bool {
        self.source == REPLAY_SOURCE
    }
}

/// One domain's answer in one read of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EnergyReading {
    /// Whether the domain answered at all. When false the other fields mean nothing, `shape_uj` excepted.
    pub valid: bool,
    /// Cumulative energy; never decreases within an epoch, and goes on from the same value in the next.
    pub energy_uj: u64,
    /// Cumulative half-width of the model's or sensor's own uncertainty of `energy_uj`: 0 for a counter. The true
    /// energy of an interval lies within the difference of `energy_uj` ± the difference of `uncertainty_uj`.
    pub uncertainty_uj: u64,
    /// The instant for which `energy_uj` is the truth, where the hardware or the integration says so; else 0,
    /// and only the times around the read are known.
    pub stamp_ns: u64,
    /// Grows by one whenever the energy since the previous reading is unknown (reset, implausible jump,
    /// return after absence): nothing may be concluded across a change of epoch.
    pub epoch: u32,
    /// Where a counter moves seldom and the source can also sense power: that power, integrated. Says how energy lies
    /// *within* a step of the counter, never how much it is; may be off by any factor, and no guarantee leans on it.
    /// Holds in a reading that is not valid too: the counter was not asked this time. 0: no such sensor.
    pub shape_uj: u64,
}

/// A source that was looked for and is not there; the contract's `Absent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    /// The mechanism.
    pub source: String,
    /// What was found instead, and the one command or setting that mends it.
    pub reason: String,
}
