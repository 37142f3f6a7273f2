//! A source with a subset of its domains.
//!
//! Owns the scratch readings of the whole source. Keeps the order of the domains.

use crate::domain::{EnergyReading, PowerLimits};
use crate::sources::{OpenedSource, Source};

/// Keeps the domains of `opened` for which `kept` is true; `None` if there are none.
pub fn select_domains(opened: OpenedSource, kept: &[bool]) -> Option<OpenedSource> {
    if kept.iter().all(|kept| *kept) {
        return (!kept.is_empty()).then_some(opened);
    }
    let columns: Vec<usize> = (0..opened.domains.len()).filter(|&column| kept[column]).collect();
    if columns.is_empty() {
        return None;
    }
    Some(OpenedSource {
        domains: columns.iter().map(|&column| opened.domains[column].clone()).collect(),
        advanced: columns.iter().map(|&column| opened.advanced[column]).collect(),
        source: Box::new(DomainSelection {
            scratch: vec![EnergyReading::default(); opened.domains.len()],
            limits: vec![PowerLimits::default(); opened.domains.len()],
            inner: opened.source,
            columns,
        }),
        ..opened
    })
}

struct DomainSelection {
    inner: Box<dyn Source>,
    /// One reading for each domain of the inner source.
    scratch: Vec<EnergyReading>,
    limits: Vec<PowerLimits>,
    /// Indices into `scratch`, ascending.
    columns: Vec<usize>,
}

impl Source for DomainSelection {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        let window = self.inner.read(&mut self.scratch);
        for (reading, &column) in into.iter_mut().zip(&self.columns) {
            *reading = self.scratch[column];
        }
        window
    }

    fn can_block(&self) -> bool {
        self.inner.can_block()
    }

    fn set_averaging(&mut self, domain: usize, averaging_ns: u64) -> Option<u64> {
        self.inner.set_averaging(*self.columns.get(domain)?, averaging_ns)
    }

    fn read_power_limits(&mut self, into: &mut [PowerLimits]) -> bool {
        let is_read = self.inner.read_power_limits(&mut self.limits);
        for (limits, &column) in into.iter_mut().zip(&self.columns) {
            limits.clone_from(&self.limits[column]);
        }
        is_read
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Domain, DomainKind, Grade, PowerLimit};

    /// The second domain has a limit.
    struct Limited;

    impl Source for Limited {
        fn read(&mut self, _into: &mut [EnergyReading]) -> Option<(u64, u64)> {
            None
        }

        fn set_averaging(&mut self, domain: usize, averaging_ns: u64) -> Option<u64> {
            (domain == 1).then_some(averaging_ns)
        }

        fn read_power_limits(&mut self, into: &mut [PowerLimits]) -> bool {
            into.fill(PowerLimits::default());
            into[1][0] = Some(PowerLimit { limit_mw: 5_000, window_ns: 0, origin: "test" });
            true
        }
    }

    #[test]
    fn a_selected_domain_keeps_its_limits_and_its_averaging_time() {
        let domain = |name: &str| Domain {
            name: name.into(),
            kind: DomainKind::Package,
            source: "perf".into(),
            device: None,
            parent: None,
            grade: Grade::Measured,
            ceiling_mw: None,
            latency_ns: 0,
            quantum_uj: 1,
        };
        let opened = OpenedSource {
            name: "perf",
            source: Box::new(Limited),
            domains: ["psys-1", "package-0"].map(domain).to_vec(),
            cpu: None,
            max_rate_hz: 1.0,
            advanced: vec![true; 2],
        };
        let mut selected = select_domains(opened, &[false, true]).unwrap();
        let mut limits = [PowerLimits::default()];
        assert!(selected.source.read_power_limits(&mut limits));
        assert_eq!(limits[0][0].as_ref().map(|limit| limit.limit_mw), Some(5_000));
        assert_eq!(selected.source.set_averaging(0, 7), Some(7));
    }
}
