//! The power that the error bounds of a domain assume at most, and the check of this assumption.
//!
//! The limits come from the configuration, from the machine (PL4, PL2 and PL1 of RAPL, caps of GPUs), from a
//! specification, or from the constant for all machines. A limit that the machine lowers applies one read of the limits
//! later, when what happened under the higher one has settled. A reading that shows more energy than a limit allows
//! refutes it: the limit is raised for what is not settled, and the interval is reported. Rejecting readings is not the
//! task of a ceiling: `sources::counter` does that with its own constant.

use std::collections::VecDeque;

use wattspan_client::protocol::{CeilingStatus, ExceededCeiling};

use crate::domain::{Domain, DomainKind, EnergyReading, MAX_POWER_LIMITS, PowerLimit, PowerLimits};
use crate::sources::counter::plausible_ceiling_mw;

/// The number of refutations that are remembered.
const MAX_EXCEEDED: usize = 8;

/// The shortest window of the check, beside that between two counter updates.
const MIN_CHECK_NS: u64 = 10_000_000;

/// What a platform uses beside its packages, memory and GPUs: drives, fans, display, regulators.
const PLATFORM_REST_MW: u64 = 500_000;

/// A counter update as the earlier end of a window: the energy at `early_ns` was at most `energy_uj` plus a quantum.
#[derive(Debug, Clone, Copy)]
struct WindowStart {
    early_ns: u64,
    energy_uj: u64,
    uncertainty_uj: u64,
}

#[derive(Debug, Clone, Copy)]
struct LastReading {
    before_ns: u64,
    energy_uj: u64,
    epoch: u32,
}

/// The ceilings of one domain.
#[derive(Debug)]
pub(super) struct PowerCeilings {
    kind: DomainKind,
    /// As the source described the domain.
    source_mw: Option<u64>,
    configured_mw: Option<u64>,
    /// The sum of the parts, for psys.
    parts_mw: Option<u64>,
    /// The last two reads of the machine's limits.
    latest: PowerLimits,
    previous: Option<PowerLimits>,
    /// The peak is at least this, since a reading showed more than an earlier one.
    raised_mw: u64,
    /// Limits of longer windows that a reading refuted, by their place.
    refuted: [bool; MAX_POWER_LIMITS],
    exceeded: VecDeque<ExceededCeiling>,
    /// In force: the peak first.
    limits: Vec<PowerLimit>,
    last: Option<LastReading>,
    /// The last update, and one before the window of each limit.
    starts: [Option<WindowStart>; 1 + MAX_POWER_LIMITS],
}

impl PowerCeilings {
    pub(super) fn of(domain: &Domain) -> Self {
        let mut ceilings = Self {
            kind: domain.kind,
            source_mw: domain.ceiling_mw,
            configured_mw: None,
            parts_mw: None,
            latest: PowerLimits::default(),
            previous: None,
            raised_mw: 0,
            refuted: [false; MAX_POWER_LIMITS],
            exceeded: VecDeque::new(),
            limits: Vec::new(),
            last: None,
            starts: Default::default(),
        };
        ceilings.update();
        ceilings
    }

    /// The limits in force, the peak first; empty if none is known.
    pub(super) fn limits(&self) -> &[PowerLimit] {
        &self.limits
    }

    /// The power that is assumed at most at any instant.
    pub(super) fn peak_mw(&self) -> Option<u64> {
        self.limits.iter().find(|limit| limit.window_ns == 0).map(|limit| limit.limit_mw)
    }

    /// Sets the configured ceiling, which replaces all others; `None` returns to them.
    pub(super) fn configure(&mut self, configured_mw: Option<u64>) {
        self.configured_mw = configured_mw;
        self.update();
    }

    /// Sets the sum of the ceilings of a platform's parts.
    pub(super) fn set_parts_mw(&mut self, parts_mw: Option<u64>) {
        if self.parts_mw != parts_mw {
            self.parts_mw = parts_mw;
            self.update();
        }
    }

    /// Adds a read of the machine's limits. One that is lower than the power now is no limit: the hardware does not keep
    /// it.
    pub(super) fn add_limits(&mut self, mut limits: PowerLimits, power_mw: Option<u64>) {
        for limit in &mut limits {
            *limit = limit.filter(|limit| power_mw.is_none_or(|power_mw| limit.limit_mw >= power_mw));
        }
        self.previous = Some(self.previous.map_or(limits, |_| self.latest));
        self.latest = limits;
        self.update();
    }

    fn update(&mut self) {
        let mut limits = Vec::with_capacity(MAX_POWER_LIMITS);
        if let Some(limit_mw) = self.configured_mw {
            limits.push(PowerLimit { limit_mw, window_ns: 0, origin: "configured" });
        } else {
            limits.extend(self.lowest_peak());
            let peak_mw = limits.first().map_or(0, |peak| peak.limit_mw);
            let sustained = (0..MAX_POWER_LIMITS)
                .filter(|&place| !self.refuted[place])
                .filter_map(|place| self.machine_limit(place))
                .filter(|limit| limit.window_ns != 0 && limit.limit_mw < peak_mw);
            limits.extend(sustained.take(MAX_POWER_LIMITS - 1));
        }
        if let Some(peak) = limits.first_mut().filter(|peak| peak.limit_mw < self.raised_mw) {
            (peak.limit_mw, peak.origin) = (self.raised_mw, "raised by a reading");
        }
        self.limits = limits;
    }

    /// The lowest power that holds at every instant.
    fn lowest_peak(&self) -> Option<PowerLimit> {
        let at_every_instant = |limit_mw: u64, origin| PowerLimit { limit_mw, window_ns: 0, origin };
        let source = self.source_mw.map(|limit_mw| {
            let is_general = limit_mw == plausible_ceiling_mw(self.kind);
            at_every_instant(limit_mw, if is_general { "all machines" } else { "source" })
        });
        let parts = self.parts_mw.map(|limit_mw| at_every_instant(limit_mw, "sum of the parts"));
        let machine = (0..MAX_POWER_LIMITS)
            .filter_map(|place| self.machine_limit(place))
            .filter(|limit| limit.window_ns == 0);
        machine.chain(parts).chain(source).min_by_key(|limit| limit.limit_mw)
    }

    /// The higher one of the last two reads of a limit; none if one of them had none.
    fn machine_limit(&self, place: usize) -> Option<PowerLimit> {
        let (latest, previous) = (self.latest[place]?, self.previous?[place]?);
        let higher = if latest.limit_mw >= previous.limit_mw { latest } else { previous };
        Some(PowerLimit { window_ns: latest.window_ns.max(previous.window_ns), ..higher })
    }

    /// Checks the limits with a reading, before it is passed on. Returns the first limit that it refutes.
    pub(super) fn observe(
        &mut self,
        before_ns: u64,
        after_ns: u64,
        reading: &EnergyReading,
        domain: &Domain,
    ) -> Option<&ExceededCeiling> {
        if !reading.valid {
            return None;
        }
        let now = LastReading { before_ns, energy_uj: reading.energy_uj, epoch: reading.epoch };
        let last = self.last.replace(now)?;
        if last.epoch != reading.epoch || reading.energy_uj < last.energy_uj {
            self.starts = Default::default();
            return None;
        }
        if reading.energy_uj == last.energy_uj {
            return None;
        }
        let (early_ns, late_ns) = match reading.stamp_ns {
            0 => (last.before_ns.saturating_sub(domain.latency_ns), after_ns),
            stamp_ns => (stamp_ns, stamp_ns),
        };
        let (energy_uj, uncertainty_uj) = (reading.energy_uj, reading.uncertainty_uj);
        let end = WindowStart { early_ns, energy_uj, uncertainty_uj };
        let is_exceeded = self.check(late_ns, end, domain.quantum_uj);
        self.advance_starts(end, late_ns);
        is_exceeded.then(|| self.exceeded.back()).flatten()
    }

    /// Compares every window that ends at this update with every limit.
    fn check(&mut self, late_ns: u64, end: WindowStart, quantum_uj: u64) -> bool {
        let mut is_exceeded = false;
        for start in self.starts.into_iter().flatten() {
            let window_ns = late_ns.saturating_sub(start.early_ns);
            let unsure_uj = end.uncertainty_uj.saturating_sub(start.uncertainty_uj) + quantum_uj;
            let rise_uj = (end.energy_uj - start.energy_uj).saturating_sub(unsure_uj);
            let exceeded = self.limits.iter().find(|limit| !allows(limit, window_ns, rise_uj)).copied();
            if let Some(limit) = exceeded {
                let power_mw = u128::from(rise_uj) * 1_000_000 / u128::from(window_ns.max(1));
                let power_mw = u64::try_from(power_mw).unwrap_or(u64::MAX);
                self.refute(limit, start.early_ns, late_ns, power_mw);
                is_exceeded = true;
            }
        }
        is_exceeded
    }

    /// Raises the peak to twice the power that was seen: inside of the interval it may have been higher. A limit of a longer
    /// window is none from now on.
    fn refute(&mut self, limit: PowerLimit, from_ns: u64, to_ns: u64, power_mw: u64) {
        if limit.window_ns == 0 {
            self.raised_mw = self.raised_mw.max(power_mw.saturating_mul(2));
        } else {
            for (refuted, read) in self.refuted.iter_mut().zip(&self.latest) {
                *refuted |= read.is_some_and(|read| read.origin == limit.origin);
            }
        }
        if self.exceeded.len() == MAX_EXCEEDED {
            self.exceeded.pop_front();
        }
        let PowerLimit { limit_mw, window_ns, origin } = limit;
        let origin = origin.to_owned();
        self.exceeded.push_back(ExceededCeiling { from_ns, to_ns, power_mw, limit_mw, window_ns, origin });
        self.update();
    }

    /// Begins the windows anew that are long enough.
    fn advance_starts(&mut self, update: WindowStart, late_ns: u64) {
        let [last_update, before_windows @ ..] = &mut self.starts;
        *last_update = Some(update);
        for (start, limit) in before_windows.iter_mut().zip(&self.limits) {
            let is_over = |start: &WindowStart| {
                late_ns.saturating_sub(start.early_ns) >= limit.window_ns.max(MIN_CHECK_NS)
            };
            if start.as_ref().is_none_or(is_over) {
                *start = Some(update);
            }
        }
    }

    /// The limits in force, as GetInfo shows them.
    pub(super) fn statuses(&self) -> Vec<CeilingStatus> {
        let status = |limit: &PowerLimit| CeilingStatus {
            limit_mw: limit.limit_mw,
            window_ns: limit.window_ns,
            origin: limit.origin.to_owned(),
        };
        self.limits.iter().map(status).collect()
    }

    /// The last intervals in which a limit was exceeded, oldest first.
    pub(super) fn exceeded(&self) -> Vec<ExceededCeiling> {
        self.exceeded.iter().cloned().collect()
    }
}

/// Whether a domain with this limit can use this energy in a window; mW times ns are pJ. A limit of longer windows allows as
/// much as the error bounds assume.
fn allows(limit: &PowerLimit, window_ns: u64, rise_uj: u64) -> bool {
    if window_ns < limit.window_ns {
        return true;
    }
    let covered_ns = u128::from(window_ns) + u128::from(limit.window_ns);
    u128::from(rise_uj) * 1_000_000 <= u128::from(limit.limit_mw) * covered_ns
}

/// The sum of the ceilings of a platform's parts, with an allowance for the rest; `None` if one is unknown. A GPU may be
/// outside of the platform's counter; counting it makes the sum higher, which is safe.
pub(super) fn sum_of_parts_mw<'a>(domains: impl Iterator<Item = &'a Domain>) -> Option<u64> {
    use DomainKind::{Cpu, Dram, Gpu, Module, Npu, Package, Soc};
    let parts =
        domains.filter(|domain| matches!(domain.kind, Package | Dram | Gpu | Module | Soc | Npu | Cpu));
    let ceilings: Option<Vec<u64>> = parts.map(|domain| domain.ceiling_mw).collect();
    let ceilings = ceilings.filter(|ceilings| !ceilings.is_empty())?;
    Some(ceilings.into_iter().fold(PLATFORM_REST_MW, u64::saturating_add))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Grade;

    const MS: u64 = 1_000_000;
    const GENERAL: (u64, u64, &str) = (2_000_000, 0, "all machines");

    fn package() -> Domain {
        Domain {
            name: "package-0".into(),
            kind: DomainKind::Package,
            source: "perf".into(),
            device: None,
            parent: None,
            grade: Grade::Measured,
            ceiling_mw: Some(2_000_000),
            latency_ns: 50_000,
            quantum_uj: 61,
        }
    }

    /// PL4, PL2 over 10 ms and PL1 over 1 s; 0: none.
    fn machine(peak_mw: u64, short_mw: u64, long_mw: u64) -> PowerLimits {
        let limit = |limit_mw, window_ns, origin| {
            (limit_mw > 0).then_some(PowerLimit { limit_mw, window_ns, origin })
        };
        [limit(peak_mw, 0, "PL4"), limit(short_mw, 10 * MS, "PL2"), limit(long_mw, 1_000 * MS, "PL1")]
    }

    fn shown(ceilings: &PowerCeilings) -> Vec<(u64, u64, &'static str)> {
        ceilings.limits().iter().map(|limit| (limit.limit_mw, limit.window_ns, limit.origin)).collect()
    }

    /// Feeds a counter that moves every millisecond, with the power of each millisecond in milliwatts. Each call is an epoch.
    fn feed(ceilings: &mut PowerCeilings, from_ms: u64, powers_mw: &[u64]) -> Vec<ExceededCeiling> {
        let (mut energy_uj, domain) = (1_000_000 * from_ms, package());
        let mut exceeded = Vec::new();
        for (at_ms, power_mw) in (from_ms..).zip(powers_mw) {
            energy_uj += power_mw;
            let epoch = from_ms as u32;
            let reading = EnergyReading { valid: true, energy_uj, epoch, ..EnergyReading::default() };
            exceeded.extend(ceilings.observe(at_ms * MS, at_ms * MS + 5_000, &reading, &domain).cloned());
        }
        exceeded
    }

    #[test]
    fn the_lowest_peak_holds_and_the_limits_of_longer_windows_below_it() {
        let mut ceilings = PowerCeilings::of(&package());
        assert_eq!(shown(&ceilings), [GENERAL]);
        ceilings.add_limits(machine(420_000, 253_000, 125_000), Some(90_000));
        let all = [(420_000, 0, "PL4"), (253_000, 10 * MS, "PL2"), (125_000, 1_000 * MS, "PL1")];
        assert_eq!(shown(&ceilings), all);
        ceilings.configure(Some(300_000));
        assert_eq!(shown(&ceilings), [(300_000, 0, "configured")]);
        ceilings.configure(None);
        assert_eq!(shown(&ceilings), all);
    }

    #[test]
    fn without_pl4_a_short_window_has_the_constant_of_all_machines() {
        let mut ceilings = PowerCeilings::of(&package());
        ceilings.add_limits(machine(0, 253_000, 0), None);
        assert_eq!(shown(&ceilings), [GENERAL, (253_000, 10 * MS, "PL2")]);
    }

    #[test]
    fn a_limit_below_the_power_now_is_none() {
        let mut ceilings = PowerCeilings::of(&package());
        ceilings.add_limits(machine(420_000, 253_000, 125_000), Some(130_000));
        assert_eq!(shown(&ceilings).len(), 2, "PL1 is exceeded");
        ceilings.add_limits(machine(420_000, 253_000, 125_000), Some(421_000));
        assert_eq!(shown(&ceilings), [GENERAL]);
    }

    #[test]
    fn a_lower_limit_applies_one_read_later_and_a_higher_one_at_once() {
        let mut ceilings = PowerCeilings::of(&package());
        ceilings.add_limits(machine(400_000, 0, 0), None);
        ceilings.add_limits(machine(300_000, 0, 0), None);
        assert_eq!(ceilings.peak_mw(), Some(400_000));
        ceilings.add_limits(machine(300_000, 0, 0), None);
        assert_eq!(ceilings.peak_mw(), Some(300_000));
        ceilings.add_limits(machine(500_000, 0, 0), None);
        assert_eq!(ceilings.peak_mw(), Some(500_000));
        ceilings.add_limits(machine(0, 0, 0), None);
        assert_eq!(shown(&ceilings), [GENERAL]);
    }

    #[test]
    fn a_reading_above_the_peak_raises_it_and_the_interval_is_reported() {
        let mut ceilings = PowerCeilings::of(&package());
        ceilings.add_limits(machine(200_000, 0, 0), None);
        assert_eq!(feed(&mut ceilings, 100, &[150_000; 50]), []);
        assert_eq!(shown(&ceilings), [(200_000, 0, "PL4")]);
        let mut powers = [150_000; 60];
        powers[30..50].fill(500_000);
        let exceeded = feed(&mut ceilings, 1_000, &powers);
        let first = exceeded.first().expect("20 ms at 500 W");
        assert_eq!((first.limit_mw, first.window_ns, first.origin.as_str()), (200_000, 0, "PL4"));
        assert!(first.from_ns >= 1_018 * MS && first.to_ns <= 1_050 * MS, "{first:?}");
        assert!((200_001..=500_000).contains(&first.power_mw), "{first:?}");
        assert_eq!(ceilings.limits()[0].origin, "raised by a reading");
        assert!(ceilings.peak_mw().unwrap() >= 2 * first.power_mw);
        assert_eq!(ceilings.exceeded(), exceeded);
        // It stays raised.
        ceilings.add_limits(machine(200_000, 0, 0), None);
        assert!(ceilings.peak_mw().unwrap() >= 2 * first.power_mw);
    }

    #[test]
    fn an_excess_shorter_than_the_time_constant_refutes_nothing_and_a_long_one_does() {
        let mut ceilings = PowerCeilings::of(&package());
        ceilings.add_limits(machine(420_000, 0, 125_000), None);
        let mut powers = [100_000; 3_000];
        powers[500..900].fill(300_000);
        assert_eq!(feed(&mut ceilings, 100, &powers), []);
        let exceeded = feed(&mut ceilings, 10_000, &[300_000; 4_000]);
        assert_eq!(exceeded.len(), 1, "{exceeded:?}");
        assert_eq!((exceeded[0].origin.as_str(), exceeded[0].window_ns), ("PL1", 1_000 * MS));
        assert_eq!(shown(&ceilings), [(420_000, 0, "PL4")]);
    }

    #[test]
    fn an_invalid_reading_and_another_epoch_refute_nothing() {
        let (mut ceilings, domain) = (PowerCeilings::of(&package()), package());
        ceilings.add_limits(machine(200_000, 0, 0), None);
        let reading =
            |energy_uj, epoch| EnergyReading { valid: true, energy_uj, epoch, ..Default::default() };
        for (at_ms, reading) in [
            (1, reading(0, 0)),
            (2, reading(100_000, 0)),
            (3, EnergyReading::default()),
            (4, reading(90_000_000, 1)),
            (5, reading(90_100_000, 1)),
        ] {
            assert!(ceilings.observe(at_ms * MS, at_ms * MS + 1_000, &reading, &domain).is_none());
        }
        assert!(ceilings.observe(6 * MS, 6 * MS + 1_000, &reading(190_000_000, 1), &domain).is_some());
    }

    #[test]
    fn a_platform_has_the_sum_of_its_parts_and_an_unknown_part_makes_it_unknown() {
        let part = |kind, ceiling_mw| Domain { kind, ceiling_mw, ..package() };
        let mut parts = vec![
            part(DomainKind::Package, Some(420_000)),
            part(DomainKind::Core, Some(420_000)),
            part(DomainKind::Dram, Some(80_000)),
            part(DomainKind::Psys, Some(20_000_000)),
        ];
        assert_eq!(sum_of_parts_mw(parts.iter()), Some(1_000_000));
        parts.push(part(DomainKind::Gpu, None));
        assert_eq!(sum_of_parts_mw(parts.iter()), None);
        assert_eq!(sum_of_parts_mw([].iter()), None);
    }
}
