//! RAPL domains, independent of the mechanism that reads them: names, parents, and properties of their counters.
//!
//! Holds no state. A platform has one psys; discovery drops the copies of the other packages that stand still.

use crate::domain::{Domain, DomainKind, Grade};

use super::counter::plausible_ceiling_mw;

/// Latency from the hardware's update to the register: registers change at once, and firmware in system management mode
/// may delay a reader. An assumption, based on a reported update jitter of tens of microseconds.
pub(super) const LATENCY_NS: u64 = 50_000;

/// The domain of a register in the package called `package`.
pub(super) fn domain(source: &str, kind: DomainKind, package: &str, grade: Grade, quantum_uj: u64) -> Domain {
    let (stem, parent) = match kind {
        DomainKind::Core => ("core", Some(format!("package-{package}"))),
        DomainKind::Uncore => ("uncore", Some(format!("package-{package}"))),
        DomainKind::Dram => ("dram", None),
        DomainKind::Psys => ("psys", None),
        _ => ("package", None),
    };
    Domain {
        name: format!("{stem}-{package}"),
        kind,
        source: source.into(),
        device: None,
        parent,
        grade,
        // Of all machines; the limits of this one (`rapl_limits`) tighten it.
        ceiling_mw: Some(plausible_ceiling_mw(kind)),
        latency_ns: LATENCY_NS,
        quantum_uj,
    }
}

/// Whether a zone's name is that of a platform: "psys" of the first package, "psys-1" of another one.
pub(super) fn is_platform_zone(name: &str) -> bool {
    name == "psys" || name.strip_prefix("psys-").is_some_and(|package| package.parse::<u32>().is_ok())
}
