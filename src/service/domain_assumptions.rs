//! What the error bounds assume about a domain, beyond its readings.
//!
//! The update interval of its counter is measured or configured. Its quantum is that of the source or
//! configured. The publishing lag is assumed by the source, measured as one update interval where no document gives it, or
//! configured. The ceilings of its power are in `power_ceiling`. GetInfo shows each assumption with its origin, because a
//! guaranteed error holds only with it.

use std::collections::BTreeMap;

use crate::domain::Domain;
use crate::sources::{self, EnergyFilter};

/// The configured assumptions, by domain name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AssumptionSettings {
    /// The highest power, at every instant.
    pub ceiling_mw: BTreeMap<String, u64>,
    /// The publishing lag of the counter.
    pub lag_ns: BTreeMap<String, u64>,
    /// The time between two updates of the counter.
    pub update_interval_ns: BTreeMap<String, u64>,
    /// The unit of the counter. A change needs a restart: the attribution takes it when it adds the domain.
    pub quantum_uj: BTreeMap<String, u64>,
    /// The noise of RAPL's registers, which the sources add to the uncertainty of their readings.
    pub energy_filter: Option<EnergyFilter>,
}

/// Where no document gives the lag, it is not assumed to be shorter than what the source assumes or this, for any update
/// interval.
const MIN_UNDOCUMENTED_LAG_NS: u64 = 20_000_000;

/// The publishing lag of a domain's counter.
#[derive(Debug, Clone)]
pub(super) struct PublishingLag {
    source_ns: u64,
    is_documented: bool,
    configured_ns: Option<u64>,
}

impl PublishingLag {
    pub(super) fn of(domain: &Domain) -> Self {
        Self {
            source_ns: domain.latency_ns,
            is_documented: !sources::has_undocumented_lag(domain),
            configured_ns: None,
        }
    }

    /// Sets the configured lag; `None` returns to the default.
    pub(super) fn configure(&mut self, configured_ns: Option<u64>) {
        self.configured_ns = configured_ns;
    }

    /// The largest lag, and its origin as in the protocol. Without a document and a configuration it is one update
    /// interval of the counter; until that is measured, what the source assumes.
    pub(super) fn current(&self, update_interval_ns: Option<u64>) -> (u64, &'static str) {
        match (self.configured_ns, update_interval_ns) {
            (Some(lag_ns), _) => (lag_ns, "configured"),
            (None, Some(interval_ns)) if !self.is_documented => {
                let least_ns = self.source_ns.min(MIN_UNDOCUMENTED_LAG_NS);
                (interval_ns.max(least_ns), "update_interval")
            }
            _ => (self.source_ns, "source"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{DomainKind, Grade};

    const MS: u64 = 1_000_000;

    fn domain(source: &str, latency_ns: u64) -> Domain {
        Domain {
            name: "gpu-0".into(),
            kind: DomainKind::Gpu,
            source: source.into(),
            device: None,
            parent: None,
            grade: Grade::Measured,
            ceiling_mw: None,
            latency_ns,
            quantum_uj: 1,
        }
    }

    #[test]
    fn an_undocumented_lag_is_one_update_interval_once_that_is_measured() {
        let mut lag = PublishingLag::of(&domain("nvml", 110 * MS));
        assert_eq!(lag.current(None), (110 * MS, "source"));
        assert_eq!(lag.current(Some(100 * MS)), (100 * MS, "update_interval"));
        assert_eq!(lag.current(Some(5 * MS)), (20 * MS, "update_interval"));
        lag.configure(Some(60 * MS));
        assert_eq!(lag.current(Some(100 * MS)), (60 * MS, "configured"));
        lag.configure(None);
        assert_eq!(lag.current(Some(100 * MS)), (100 * MS, "update_interval"));
    }

    #[test]
    fn cards_and_unknown_chips_lag_by_one_update_interval_where_that_is_longer() {
        for (source, latency_ns, expected_ns) in [
            ("intelgpu", MS, 5 * MS),
            ("hwmon", MS, 5 * MS),
            ("hwmon", MS / 20, MS / 20),
            ("perf", MS / 20, MS / 20),
        ] {
            let lag = PublishingLag::of(&domain(source, latency_ns));
            assert_eq!(lag.current(Some(5 * MS)).0, expected_ns, "{source}");
        }
        let lag = PublishingLag::of(&domain("intelgpu", MS));
        assert_eq!(lag.current(Some(MS / 2)).0, MS);
    }

    #[test]
    fn a_documented_lag_does_not_depend_on_the_update_interval() {
        let lag = PublishingLag::of(&domain("powercap", MS / 20));
        assert_eq!(lag.current(Some(MS)), (MS / 20, "source"));
    }
}
