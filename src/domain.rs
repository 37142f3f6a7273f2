//! Domains, readings and grades: the types that all stages share.
//!
//! Energy is whole microjoules (`_uj`) in `u64` (58 years at 10 kW), power milliwatts (`_mw`), time nanoseconds (`_ns`)
//! of the monotonic clock. There are no floats here.
//!
//! Glossary: a *source* reads hardware; a *domain* is a part of the machine with an energy counter; a *reading* is one
//! domain's cumulative energy at one instant; a *sample* is the result of one read of a source; a *gap* is time that no
//! reading covers; a *counter update* is an instant at which a counter moved; a *span* is a period that a client opens
//! and closes; a *share* is the part of a domain's energy that belongs to a span; an *account* is the report of a span.

use serde::{Deserialize, Serialize};

/// The part of the machine that a domain measures; the contract's `Domain.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainKind {
    /// The whole platform, measured at the charger or on the board.
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
    /// The output of a battery.
    Battery,
    /// All CPUs of the machine together, where no finer domain is available.
    Cpu,
    /// A supply rail whose load is unknown: shown, but never part of a total.
    Rail,
}

/// The origin of a value, best first, so that the worst of several grades is their maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grade {
    /// A hardware energy counter.
    Measured,
    /// A vendor's model behind a counter.
    Modelled,
    /// Power readings, integrated over time.
    Integrated,
    /// A model from the load, without a sensor.
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
    /// The counter advances.
    Live,
    /// The counter is present but does not advance.
    Stuck,
    /// The counter was live and disappeared.
    Lost,
    /// The source has not answered since the daemon started.
    Starting,
}

/// Whether two domains show the same counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Duplicate {
    /// Both show one counter.
    Same,
    /// They show two counters.
    Independent,
    /// Not known yet; meanwhile only one of them counts.
    Undecided,
}

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
    /// The domain's maximum power, including transients. A reading above it is rejected as implausible. It also
    /// tightens the guaranteed error between two counter updates. `None`: unknown.
    pub ceiling_mw: Option<u64>,
    /// The maximum delay from the hardware's update of a counter to its appearance in a reading.
    pub latency_ns: u64,
    /// The amount by which the true energy can exceed the counter's value: the counter's unit, rounded up, at least 1.
    pub quantum_uj: u64,
}

/// The source that replays a scripted or recorded machine. Its values are *simulated*, whatever their grade.
pub const REPLAY_SOURCE: &str = "replay";

impl Domain {
    /// Whether its energy comes from a file, not from this machine's hardware.
    pub fn is_simulated(&self) -> bool {
        self.source == REPLAY_SOURCE
    }
}

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

/// A source that is not available; the contract's `Absent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    /// The name of the source.
    pub source: String,
    /// The reason, and the command or setting that makes it available.
    pub reason: String,
}
