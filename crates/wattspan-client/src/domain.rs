//! The words in which the contract describes a domain: its kind, grade and liveness.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of a domain in an account, such as "package-0". Accounts of one meter share its text.
#[derive(Clone)]
pub struct DomainName(NameText);

#[derive(Clone)]
enum NameText {
    /// Until the end of the program. A counted reference costs two atomic operations for each domain of an account.
    Permanent(&'static String),
    Counted(Arc<str>),
}

/// The number of permanent names; a meter has at most 64 domains at a time.
const MAX_PERMANENT_NAMES: usize = 1024;

impl DomainName {
    /// A name of which a copy costs as little as one of a number, since its text stays until the end of the program. For the
    /// domains of a meter: there are few of them, and their names recur.
    pub fn permanent(name: &str) -> Self {
        static NAMES: Mutex<Vec<&'static String>> = Mutex::new(Vec::new());
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.iter().find(|known| **known == name) {
            return Self(NameText::Permanent(known));
        }
        if names.len() == MAX_PERMANENT_NAMES {
            return name.into();
        }
        let text: &'static String = Box::leak(Box::new(name.to_owned()));
        names.push(text);
        Self(NameText::Permanent(text))
    }
}

impl Deref for DomainName {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            NameText::Permanent(text) => text,
            NameText::Counted(text) => text,
        }
    }
}

impl PartialEq for DomainName {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for DomainName {}

impl Hash for DomainName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl PartialOrd for DomainName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for DomainName {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}

impl From<&str> for DomainName {
    fn from(name: &str) -> Self {
        Self(NameText::Counted(name.into()))
    }
}

impl From<String> for DomainName {
    fn from(name: String) -> Self {
        Self(NameText::Counted(name.into()))
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_permanent_name_equals_a_counted_one_and_few_texts_are_kept() {
        let (permanent, counted) = (DomainName::permanent("package-0"), DomainName::from("package-0"));
        assert!(permanent == counted && permanent == "package-0" && permanent.cmp(&counted).is_eq());
        assert!(DomainName::permanent("dram-0") < permanent);
        assert!(HashSet::from([permanent.clone()]).contains(&counted));
        assert_eq!(serde_json::to_string(&permanent).unwrap(), "\"package-0\"");
        assert_eq!(permanent.as_ptr(), DomainName::permanent("package-0").as_ptr());
        assert_eq!(size_of::<DomainName>(), size_of::<Arc<str>>());
        // Beyond the limit the texts are counted.
        for number in 0..2 * MAX_PERMANENT_NAMES {
            assert_eq!(DomainName::permanent(&format!("d{number}")), format!("d{number}"));
        }
        let late = DomainName::permanent("late");
        assert!(matches!(late.0, NameText::Counted(_)) && late == "late");
    }
}
