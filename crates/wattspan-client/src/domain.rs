//! The words in which the contract describes a domain: its kind, grade and liveness.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of a domain in an account, such as "package-0". Accounts of one meter share its text: with four domains, four
/// copies of names are a seventh of the work for an account.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainName(Arc<str>);

impl Deref for DomainName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl From<&str> for DomainName {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<String> for DomainName {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl PartialEq<str> for DomainName {
    fn eq(&self, other: &str) -> bool {
        **self == *other
    }
}

impl PartialEq<&str> for DomainName {
    fn eq(&self, other: &&str) -> bool {
        **self == **other
    }
}

impl PartialEq<String> for DomainName {
    fn eq(&self, other: &String) -> bool {
        **self == **other
    }
}

impl PartialEq<DomainName> for String {
    fn eq(&self, other: &DomainName) -> bool {
        **self == **other
    }
}

impl Serialize for DomainName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for DomainName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;

        impl Visitor<'_> for NameVisitor {
            type Value = DomainName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a domain")
            }

            // Without a copy of the text in between.
            fn visit_str<E>(self, name: &str) -> Result<DomainName, E> {
                Ok(name.into())
            }
        }

        deserializer.deserialize_str(NameVisitor)
    }
}

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

/// The source that replays a scripted or recorded machine. Its values are *simulated*, whatever their grade.
pub const REPLAY_SOURCE: &str = "replay";

/// A source that is not available; the contract's `Absent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    /// The name of the source.
    pub source: String,
    /// The reason, and the command or setting that makes it available.
    pub reason: String,
}
