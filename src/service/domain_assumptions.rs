//! What the error bounds assume about a domain, beyond its readings.
//!
//! The update interval of its counter is measured or configured. Its quantum is that of the source or
//! configured. The publishing lag is assumed by the source, measured as one update interval where no document gives it, or
//! configured. The ceilings of its power are in `power_ceiling`. GetInfo shows each assumption with its origin, because a
//! guaranteed error holds only with it.

use std::collections::BTreeMap;

use crate::domain::{Domain, Grade};
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
    /// The averaging time of power sensors, which the sources apply.
    pub averaging_ns: BTreeMap<String, u64>,
    /// The part of the time that a power sensor observes, in parts per million.
    pub sampled_ppm: BTreeMap<String, u64>,
    /// The noise of RAPL's registers, which the sources add to the uncertainty of their readings.
    pub energy_filter: Option<EnergyFilter>,
}

/// Where no document gives the lag, it is not assumed to be shorter than what the source assumes or this, for any update
/// interval.
const MIN_UNDOCUMENTED_LAG_NS: u64 = 20_000_000;

/// The part of the time that the power sensors of A100 and H100 observe (arXiv 2312.02741), the least that was published.
/// It is assumed for every NVIDIA board.
const MIN_SAMPLED_PPM: u64 = 250_000;

/// How the power sensor of a domain sees the time.
#[derive(Debug, Clone, Default)]
pub(super) struct SensorWindow {
    /// The time over which its value is a mean, with its origin.
    pub(super) averaging: Option<(u64, &'static str)>,
    /// The part of the time that it observes in parts per million, with its origin.
    pub(super) sampled: Option<(u64, &'static str)>,
}

impl SensorWindow {
    /// `latency_ns`: of the source, which is twice the averaging time of a sensor.
    pub(super) fn of(domain: &Domain, latency_ns: u64, settings: &AssumptionSettings) -> Self {
        let is_mean = domain.grade == Grade::Integrated && latency_ns > 0;
        let averaging_origin = match settings.averaging_ns.contains_key(&domain.name) {
            _ if domain.is_simulated() => "recorded",
            true => "configured",
            false => "driver",
        };
        let configured = settings.sampled_ppm.get(&domain.name).map(|ppm| (*ppm, "configured"));
        Self {
            averaging: is_mean.then_some((latency_ns / 2, averaging_origin)),
            sampled: (domain.source == sources::nvml::NAME)
                .then(|| configured.unwrap_or((MIN_SAMPLED_PPM, "specification"))),
        }
    }
}

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

    /// What the source assumes.
    pub(super) fn source_ns(&self) -> u64 {
        self.source_ns
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
    use crate::domain::DomainKind;

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
