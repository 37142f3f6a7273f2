//! The domains of an attributor: their readings and states.
//!
//! For the parts that read counters. It gives no access to spans, whose edges and accounts belong to the attributor's owner.

use super::attributor::Attributor;
use super::update_detector::ExpectedUpdates;
use crate::domain::{Domain, EnergyReading, PowerLimit};

/// Mutable access to the domains of an attributor, without its spans. Each method is that of the same name in [`Attributor`].
#[derive(Debug)]
pub(crate) struct DomainInputs<'a> {
    attributor: &'a mut Attributor,
}

impl<'a> DomainInputs<'a> {
    pub(crate) fn new(attributor: &'a mut Attributor) -> Self {
        Self { attributor }
    }

    pub(crate) fn add_domain(&mut self, domain: Domain) {
        self.attributor.add_domain(domain);
    }

    #[inline]
    pub(crate) fn add_reading(
        &mut self,
        domain: usize,
        before_ns: u64,
        after_ns: u64,
        reading: &EnergyReading,
    ) {
        self.attributor.add_reading(domain, before_ns, after_ns, reading);
    }

    pub(crate) fn set_update_interval(&mut self, domain: usize, interval_ns: u64) {
        self.attributor.set_update_interval(domain, interval_ns);
    }

    #[inline]
    pub(crate) fn set_expected_updates(&mut self, domain: usize, expected: Option<ExpectedUpdates>) {
        self.attributor.set_expected_updates(domain, expected);
    }

    pub(crate) fn set_latency(&mut self, domain: usize, latency_ns: u64) {
        self.attributor.set_latency(domain, latency_ns);
    }

    pub(crate) fn set_power_limits(&mut self, domain: usize, limits: &[PowerLimit]) {
        self.attributor.set_power_limits(domain, limits);
    }

    pub(crate) fn set_counted(&mut self, domain: usize, counted: bool) {
        self.attributor.set_counted(domain, counted);
    }

    pub(crate) fn set_undecided(&mut self, domain: usize, undecided: bool) {
        self.attributor.set_undecided(domain, undecided);
    }

    pub(crate) fn exclude(&mut self, domain: usize) {
        self.attributor.exclude(domain);
    }

    pub(crate) fn set_parents<'b>(&mut self, domains: impl Iterator<Item = &'b Domain>) {
        self.attributor.set_parents(domains);
    }

    pub(crate) fn set_live(&mut self, domain: usize, live: bool) {
        self.attributor.set_live(domain, live);
    }

    pub(crate) fn set_starting(&mut self, domain: usize, starting: bool) {
        self.attributor.set_starting(domain, starting);
    }
}
