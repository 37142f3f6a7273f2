//! A domain with its counter's profile, its liveness, and its place in the host's total.
//!
//! The state of one domain; the collector owns the list and decides the totals.

use wattspan_client::protocol::DomainStatus;

use super::counter_moves::CounterMoves;
use super::domain_assumptions::{AssumptionSettings, PublishingLag, SensorWindow};
use super::power_ceiling::PowerCeilings;
use crate::domain::{Domain, DomainKind, EnergyReading, Liveness};
use crate::sampler::counter_profile::CounterProfile;
use crate::sources::{self, EnergyFilter};

/// A domain's state, with the reason where it is not live.
pub(super) type DomainLiveness = (Liveness, Option<String>);

/// The origin of a domain's readings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum DomainOrigin {
    /// The index of the sampler.
    Sampler(usize),
    /// A placeholder for the domains that a source has not reported yet, with the number of those it has reported.
    Placeholder(usize),
    /// A former placeholder.
    Retired,
}

pub(super) struct MeteredDomain {
    /// Its parent may be a domain that it may duplicate. Its lag, ceiling and quantum are those that are assumed now.
    pub(super) domain: Domain,
    pub(super) profile: CounterProfile,
    pub(super) moves: CounterMoves,
    pub(super) origin: DomainOrigin,
    pub(super) liveness: DomainLiveness,
    /// The parent that the source names.
    pub(super) source_parent: Option<String>,
    /// Part of the host's total.
    pub(super) counted: bool,
    /// Perhaps part of the host's total.
    pub(super) is_undecided: bool,
    /// The time at which the domain was found to duplicate no other; `None` if that was never in question.
    pub(super) independent_since_ns: Option<u64>,
    arrival: Arrival,
    /// The end of the first valid read.
    first_reading_ns: Option<u64>,
    base_uj: Option<u64>,
    energy_uj: Option<u64>,
    configured_interval_ns: Option<u64>,
    has_configured_quantum: bool,
    energy_filter: Option<EnergyFilter>,
    sensor_window: SensorWindow,
    lag: PublishingLag,
    pub(super) ceilings: PowerCeilings,
}

/// When a domain was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    AtStart,
    /// Its source responded after the start. Spans include it from then on, with unknown time before its first reading, so
    /// that totals are not too low.
    OfStartingSource,
    /// Its device appeared after the start. Spans include it from its first reading on.
    NewDevice,
}

impl MeteredDomain {
    pub(super) fn new(domain: Domain, advanced: bool, origin: DomainOrigin) -> Self {
        let profile = CounterProfile::new(advanced).with_latency(domain.latency_ns);
        Self {
            liveness: domain_liveness(&domain, &profile),
            source_parent: domain.parent.clone(),
            configured_interval_ns: None,
            has_configured_quantum: false,
            energy_filter: None,
            sensor_window: SensorWindow::default(),
            lag: PublishingLag::of(&domain),
            ceilings: PowerCeilings::of(&domain),
            domain,
            profile,
            moves: CounterMoves::default(),
            origin,
            counted: false,
            is_undecided: false,
            independent_since_ns: None,
            arrival: Arrival::AtStart,
            first_reading_ns: None,
            base_uj: None,
            energy_uj: None,
        }
    }

    /// Records that it was added while the meter runs: it is not shown as live before its first reading.
    pub(super) fn set_arrival(&mut self, arrival: Arrival) {
        self.arrival = arrival;
        self.liveness = self.current_liveness(None);
    }

    /// The instant from which on spans include it: that of the first reading of a new device, `u64::MAX` before it.
    pub(super) fn measured_since_ns(&self) -> u64 {
        if self.arrival == Arrival::NewDevice { self.first_reading_ns.unwrap_or(u64::MAX) } else { 0 }
    }

    /// The domain with the parent that its source names.
    pub(super) fn with_source_parent(&self) -> Domain {
        Domain { parent: self.source_parent.clone(), ..self.domain.clone() }
    }

    /// Applies the configured assumptions.
    pub(super) fn configure_assumptions(&mut self, settings: &AssumptionSettings) {
        self.configured_interval_ns = settings.update_interval_ns.get(&self.domain.name).copied();
        if let Some(quantum_uj) = settings.quantum_uj.get(&self.domain.name) {
            self.domain.quantum_uj = *quantum_uj;
            self.has_configured_quantum = true;
        }
        self.energy_filter = settings.energy_filter.filter(|_| EnergyFilter::concerns(&self.domain.source));
        self.sensor_window = SensorWindow::of(&self.domain, self.lag.source_ns(), settings);
        self.lag.configure(settings.lag_ns.get(&self.domain.name).copied());
        self.ceilings.configure(settings.ceiling_mw.get(&self.domain.name).copied());
        self.update_assumptions();
    }

    /// Updates the assumptions that depend on what was measured.
    pub(super) fn update_assumptions(&mut self) {
        self.domain.latency_ns = self.lag.current(self.update_interval_ns()).0;
        self.domain.ceiling_mw = self.ceilings.peak_mw();
    }

    /// The update interval of the counter that is assumed now: the configured one, else the measured one, if it is known.
    pub(super) fn update_interval_ns(&self) -> Option<u64> {
        self.configured_interval_ns.or_else(|| self.profile.update_interval_ns())
    }

    fn update_interval_origin(&self) -> Option<&'static str> {
        let origin = if self.configured_interval_ns.is_some() { "configured" } else { "measured" };
        self.update_interval_ns().map(|_| origin)
    }

    fn quantum_origin(&self) -> &'static str {
        if self.has_configured_quantum { "configured" } else { sources::quantum_origin(&self.domain) }
    }

    /// Records a reading, whose read ended at `after_ns`.
    pub(super) fn record_reading(&mut self, reading: &EnergyReading, after_ns: u64) {
        if reading.valid {
            self.first_reading_ns.get_or_insert(after_ns);
            self.base_uj.get_or_insert(reading.energy_uj);
            self.energy_uj = Some(reading.energy_uj);
        }
    }

    pub(super) fn status(&self) -> DomainStatus {
        let (domain, profile) = (&self.domain, &self.profile);
        // A counter that has never moved has measured nothing, which differs from 0 J.
        let moved = self.liveness.0 == Liveness::Live || self.energy_uj > self.base_uj;
        let listed = |is_empty: bool| !is_empty && !self.is_placeholder();
        let SensorWindow { averaging, sampled } =
            if self.is_placeholder() { SensorWindow::default() } else { self.sensor_window.clone() };
        let (ceilings, exceeded) = (self.ceilings.statuses(), self.ceilings.exceeded());
        let since_start = |energy_uj: u64| Some(energy_uj - self.base_uj?);
        let (liveness, reason) = self.shown_liveness();
        DomainStatus {
            name: domain.name.clone(),
            kind: domain.kind,
            source: domain.source.clone(),
            device: domain.device.clone(),
            parent: domain.parent.clone(),
            counted: self.counted,
            duplicate: None,
            duplicate_of: None,
            grade: domain.grade,
            liveness,
            reason,
            update_interval_ns: self.update_interval_ns(),
            update_interval_origin: self.update_interval_origin().map(str::to_owned),
            quantum_uj: profile.quantum_uj(),
            assumed_quantum_uj: (!self.is_placeholder()).then_some(domain.quantum_uj),
            quantum_origin: (!self.is_placeholder()).then(|| self.quantum_origin().to_owned()),
            filter_error_ppm: self.energy_filter.map(|filter| filter.error_ppm),
            filter_origin: self.energy_filter.map(|filter| filter.origin.to_owned()),
            averaging_ns: averaging.map(|(ns, _)| ns),
            averaging_origin: averaging.map(|(_, origin)| origin.to_owned()),
            sampled_ppm: sampled.map(|(ppm, _)| ppm),
            sampled_origin: sampled.map(|(_, origin)| origin.to_owned()),
            read_cost_ns: profile.read_cost_ns(),
            residual: profile.residual(),
            lag_ns: (!self.is_placeholder()).then_some(domain.latency_ns),
            lag_origin: (!self.is_placeholder())
                .then(|| self.lag.current(self.update_interval_ns()).1.to_owned()),
            ceilings: listed(ceilings.is_empty()).then_some(ceilings),
            exceeded: listed(exceeded.is_empty()).then_some(exceeded),
            energy_uj: self.energy_uj.filter(|_| moved).and_then(since_start),
            power_mw: profile.power_mw(),
        }
    }

    fn shown_liveness(&self) -> DomainLiveness {
        let is_unread = self.arrival == Arrival::OfStartingSource && self.first_reading_ns.is_none();
        match &self.liveness {
            (Liveness::Live, _) if is_unread => {
                (Liveness::Starting, Some("has not been read since its source responded".into()))
            }
            liveness => liveness.clone(),
        }
    }

    pub(super) fn is_placeholder(&self) -> bool {
        matches!(self.origin, DomainOrigin::Placeholder(_))
    }

    /// The state that the profile implies, or that of a driver that has not answered a read for `hung_ns`.
    pub(super) fn current_liveness(&self, hung_ns: Option<u64>) -> DomainLiveness {
        match hung_ns {
            Some(ns) => (Liveness::Lost, Some(hang_reason(&self.domain.source, ns))),
            None => match domain_liveness(&self.domain, &self.profile) {
                (Liveness::Live, _) if self.measured_since_ns() == u64::MAX => {
                    (Liveness::Stuck, Some("has not been read since it was added".into()))
                }
                liveness => liveness,
            },
        }
    }
}

/// The state that the profile implies. A battery that does not discharge is no faulty counter.
fn domain_liveness(domain: &Domain, profile: &CounterProfile) -> DomainLiveness {
    const BATTERY_IDLE_REASON: &str =
        "is not discharging; a battery is measured only while it powers the machine";
    match profile.liveness() {
        (silent, Some(_)) if domain.kind == DomainKind::Battery && silent != Liveness::Live => {
            (silent, Some(BATTERY_IDLE_REASON.into()))
        }
        state => state,
    }
}

fn hang_reason(source: &str, ns: u64) -> String {
    format!("the {source} driver has not answered for {} s; see the kernel's log", ns / 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu() -> Domain {
        Domain {
            name: "gpu-1".into(),
            kind: DomainKind::Gpu,
            source: "nvml".into(),
            device: None,
            parent: None,
            grade: crate::domain::Grade::Measured,
            ceiling_mw: None,
            latency_ns: 0,
            quantum_uj: 1,
        }
    }

    #[test]
    fn a_new_device_is_live_from_its_first_valid_reading_on() {
        let mut metered = MeteredDomain::new(gpu(), true, DomainOrigin::Sampler(0));
        assert_eq!((metered.liveness.0, metered.measured_since_ns()), (Liveness::Live, 0));
        metered.set_arrival(Arrival::NewDevice);
        assert_eq!((metered.liveness.0, metered.measured_since_ns()), (Liveness::Stuck, u64::MAX));
        metered.record_reading(&EnergyReading::default(), 1_000);
        assert_eq!(metered.current_liveness(None).0, Liveness::Stuck);
        let reading = EnergyReading { valid: true, energy_uj: 7, ..EnergyReading::default() };
        metered.record_reading(&reading, 2_000);
        metered.record_reading(&reading, 3_000);
        assert_eq!((metered.current_liveness(None).0, metered.measured_since_ns()), (Liveness::Live, 2_000));
    }

    #[test]
    fn a_domain_of_a_source_that_responds_late_is_in_spans_at_once_and_shown_as_live_when_it_was_read() {
        let mut metered = MeteredDomain::new(gpu(), true, DomainOrigin::Sampler(0));
        metered.set_arrival(Arrival::OfStartingSource);
        assert_eq!((metered.liveness.0, metered.measured_since_ns()), (Liveness::Live, 0));
        assert_eq!(metered.status().liveness, Liveness::Starting);
        metered.record_reading(&EnergyReading::default(), 1_000);
        assert_eq!(metered.status().liveness, Liveness::Starting);
        let reading = EnergyReading { valid: true, energy_uj: 7, ..EnergyReading::default() };
        metered.record_reading(&reading, 2_000);
        assert_eq!(metered.status().liveness, Liveness::Live);
    }

    #[test]
    fn an_invalid_reading_means_not_discharging_for_a_battery_and_no_answer_otherwise() {
        let domain = |kind| Domain {
            name: "x".into(),
            kind,
            source: "battery".into(),
            device: None,
            parent: None,
            grade: crate::domain::Grade::Integrated,
            ceiling_mw: None,
            latency_ns: 0,
            quantum_uj: 1,
        };
        let mut profile = CounterProfile::new(false);
        profile.observe(1_000, 2_000, &EnergyReading::default());
        let reason = |kind| domain_liveness(&domain(kind), &profile).1.unwrap();
        assert!(reason(DomainKind::Battery).contains("not discharging"), "{}", reason(DomainKind::Battery));
        assert!(reason(DomainKind::Gpu).contains("never answered"), "{}", reason(DomainKind::Gpu));
    }
}
