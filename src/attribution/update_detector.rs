//! Detects a counter's updates in a domain's readings.
//!
//! A counter shows the energy of its last update. The update happens at an unknown instant between the last reading
//! with the old value and the first with the new value. Invariant, for a counter update and the true energy E:
//! `E(early) <= energy + quantum` and `E(late) >= energy`; `at` is an estimate between them; none of the three goes
//! back.

use crate::domain::{Domain, EnergyReading};

/// An instant at which a counter moved, or the end of a gap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CounterUpdate {
    /// The counter still showed less than `energy_uj`: the true energy was at most `energy_uj + quantum`.
    pub early_ns: u64,
    /// The estimated instant of the update.
    pub at_ns: u64,
    /// The counter showed `energy_uj`: the true energy was at least `energy_uj`.
    pub late_ns: u64,
    /// The value from this update on.
    pub energy_uj: u64,
    /// The source's own uncertainty, cumulative.
    pub uncertainty_uj: u64,
    /// No reading covers the time between the previous counter update and this one.
    pub gap: bool,
}

/// The instants at which a counter is expected to move, learnt from earlier readings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpectedUpdates {
    /// One of them.
    pub at_ns: u64,
    /// The time between two of them.
    pub interval_ns: f64,
    /// The counter usually moves within this time of them.
    pub uncertainty_ns: u64,
}

impl ExpectedUpdates {
    /// The last one at or before `ns`, to the precision of the interval.
    fn last_until(self, ns: u64) -> u64 {
        let number = ((ns as f64 - self.at_ns as f64) / self.interval_ns).floor();
        self.at_ns.saturating_add_signed((number * self.interval_ns).floor() as i64).min(ns)
    }

    /// The estimate of an update between two instants: the middle of the time in which it is likely and possible.
    fn estimate_between(self, early_ns: u64, late_ns: u64) -> u64 {
        let last_ns = self.last_until(late_ns);
        let next_ns = last_ns.saturating_add(self.interval_ns as u64);
        let middle = |expected_ns: u64| {
            let from_ns = expected_ns.saturating_sub(self.uncertainty_ns).max(early_ns);
            let to_ns = expected_ns.saturating_add(self.uncertainty_ns).min(late_ns);
            (from_ns <= to_ns).then(|| from_ns + (to_ns - from_ns) / 2)
        };
        middle(last_ns).or_else(|| middle(next_ns)).unwrap_or(early_ns)
    }
}

#[derive(Debug, Clone, Copy)]
struct LastReading {
    before_ns: u64,
    /// The end of the first reading with this value.
    last_change_ns: u64,
    reading: EnergyReading,
}

/// Finds the counter updates of one domain in its readings.
#[derive(Debug, Default)]
pub(crate) struct UpdateDetector {
    /// The largest lag of the counter: the bound rests on it. It applies to updates from now on.
    pub latency_ns: u64,
    /// The lag that places an update.
    placement_lag_ns: u64,
    counter_timeout_ns: u64,
    /// The counter's measured update interval: `at` is at most this long before the reading.
    pub update_interval_ns: Option<u64>,
    /// The instants at which the counter is expected to move; `None`: unknown. They improve `at` and nothing else.
    pub expected_updates: Option<ExpectedUpdates>,
    last_reading: Option<LastReading>,
    last_update_ns: u64,
    /// The earliest instant of the last update, 0 after a gap.
    last_early_ns: u64,
    /// The time of the last reading, valid or not.
    pub last_reading_ns: u64,
    timed_out: bool,
}

impl UpdateDetector {
    pub(crate) fn new(domain: &Domain, counter_timeout_ns: u64) -> Self {
        Self {
            latency_ns: domain.latency_ns,
            placement_lag_ns: domain.placement_lag_ns(),
            counter_timeout_ns,
            ..Self::default()
        }
    }

    /// The time without an update after which the counter times out. It includes the latency of the source.
    pub(crate) fn counter_timeout_ns(&self) -> u64 {
        self.counter_timeout_ns
            .saturating_add(self.latency_ns)
            .max(self.update_interval_ns.unwrap_or(0).saturating_mul(10))
    }

    /// The time after an instant in which no reading can show an update that is certainly later: the lag. None where readings
    /// have the instant of their value.
    pub(crate) fn min_wait_ns(&self) -> u64 {
        self.last_reading.filter(|last| last.reading.stamp_ns == 0).map_or(0, |_| self.latency_ns)
    }

    /// Adds a reading. Returns a counter update if the counter moved or timed out.
    pub(crate) fn add_reading(
        &mut self,
        before_ns: u64,
        after_ns: u64,
        reading: &EnergyReading,
    ) -> Option<CounterUpdate> {
        if before_ns < self.last_update_ns || after_ns < before_ns || after_ns == self.last_update_ns {
            return None;
        }
        self.last_reading_ns = after_ns;
        let Some(last) = self.last_reading else {
            return reading.valid.then(|| self.restart(before_ns, after_ns, reading));
        };
        if !reading.valid {
            return self.check_timeout(last, before_ns);
        }
        let previous = last.reading;
        if reading.epoch != previous.epoch || reading.energy_uj < previous.energy_uj {
            return Some(self.restart(before_ns, after_ns, reading));
        }
        let moved = if reading.stamp_ns == 0 {
            reading.energy_uj != previous.energy_uj
        } else {
            reading.stamp_ns > previous.stamp_ns && reading.stamp_ns > self.last_update_ns
        };
        if !moved {
            self.last_reading = Some(LastReading { before_ns, ..last });
            return self.check_timeout(last, before_ns);
        }
        if self.timed_out {
            return Some(self.restart(before_ns, after_ns, reading));
        }
        Some(self.next_update(last, before_ns, after_ns, reading))
    }

    /// Makes the time up to `at_ns` unknown, because no reading came for too long (for example a hung driver).
    pub(crate) fn time_out(&mut self, at_ns: u64) -> Option<CounterUpdate> {
        if at_ns <= self.last_update_ns {
            return None;
        }
        self.timed_out = true;
        self.last_update_ns = at_ns;
        let EnergyReading { energy_uj, uncertainty_uj, .. } =
            self.last_reading.map(|last| last.reading).unwrap_or_default();
        Some(CounterUpdate { early_ns: at_ns, at_ns, late_ns: at_ns, energy_uj, uncertainty_uj, gap: true })
    }

    /// The first reading, or the first after a gap: a baseline without energy.
    fn restart(&mut self, before_ns: u64, after_ns: u64, reading: &EnergyReading) -> CounterUpdate {
        let is_stamped = reading.stamp_ns > self.last_update_ns && reading.stamp_ns <= after_ns;
        let at_ns = if is_stamped { reading.stamp_ns } else { after_ns };
        self.timed_out = false;
        self.last_early_ns = 0;
        self.update((at_ns, at_ns, after_ns.max(at_ns)), before_ns, after_ns, reading, true)
    }

    fn check_timeout(&mut self, last: LastReading, before_ns: u64) -> Option<CounterUpdate> {
        let has_timed_out = before_ns.saturating_sub(last.last_change_ns) > self.counter_timeout_ns();
        has_timed_out.then(|| self.time_out(before_ns)).flatten()
    }

    /// The estimate of an update between two instants: near an expected one where these are known, else the middle of the
    /// time in which it can lie.
    fn estimated_update_ns(&self, early_ns: u64, after_ns: u64) -> u64 {
        if let Some(expected) = self.expected_updates {
            let shown_ns = expected.estimate_between(early_ns, after_ns);
            // The value may be older than the instant from which it is shown, by the latency at most.
            return shown_ns.saturating_sub(self.latency_ns.min(self.placement_lag_ns) / 2).max(early_ns);
        }
        let youngest_ns =
            self.update_interval_ns.map_or(early_ns, |t| after_ns.saturating_sub(t).max(early_ns));
        youngest_ns + (after_ns - youngest_ns) / 2
    }

    fn next_update(
        &mut self,
        last: LastReading,
        before_ns: u64,
        after_ns: u64,
        reading: &EnergyReading,
    ) -> CounterUpdate {
        let times = if reading.stamp_ns != 0 {
            let at_ns = reading.stamp_ns.min(after_ns);
            (at_ns, at_ns, at_ns)
        } else {
            // The largest lag may have grown since the last update.
            let early_ns = last.before_ns.saturating_sub(self.latency_ns).max(self.last_early_ns);
            let oldest_ns =
                last.before_ns.saturating_sub(self.latency_ns.min(self.placement_lag_ns)).max(early_ns);
            let next_ns = self.last_update_ns + 1;
            (early_ns, self.estimated_update_ns(oldest_ns, after_ns).max(next_ns), after_ns.max(next_ns))
        };
        self.last_early_ns = times.0;
        self.update(times, before_ns, after_ns, reading, false)
    }

    /// The update to the value of this reading, at these times: early, at, late.
    fn update(
        &mut self,
        (early_ns, at_ns, late_ns): (u64, u64, u64),
        before_ns: u64,
        after_ns: u64,
        reading: &EnergyReading,
        gap: bool,
    ) -> CounterUpdate {
        self.last_update_ns = at_ns;
        self.last_reading = Some(LastReading { before_ns, last_change_ns: after_ns, reading: *reading });
        let EnergyReading { energy_uj, uncertainty_uj, .. } = *reading;
        CounterUpdate { early_ns, at_ns, late_ns, energy_uj, uncertainty_uj, gap }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{DomainKind, Grade};

    fn detector(latency_ns: u64) -> UpdateDetector {
        let domain = Domain {
            name: "package-0".into(),
            kind: DomainKind::Package,
            source: "simulated".into(),
            device: None,
            parent: None,
            grade: Grade::Measured,
            ceiling_mw: None,
            latency_ns,
            quantum_uj: 1,
        };
        UpdateDetector::new(&domain, 2_000_000_000)
    }

    fn update_between(detector: &mut UpdateDetector, early_ns: u64, late_ns: u64) -> CounterUpdate {
        let reading = |energy_uj| EnergyReading { valid: true, energy_uj, ..EnergyReading::default() };
        detector.add_reading(early_ns, early_ns, &reading(1)).expect("the baseline");
        detector.add_reading(late_ns, late_ns, &reading(2)).expect("an update")
    }

    #[test]
    fn an_update_is_placed_where_it_is_expected_and_its_bounds_stay() {
        for (early_ns, late_ns, expected_ns) in [
            (10_000, 30_000, 29_500),
            (10_000, 29_499, 28_500),
            (10_000, 10_400, 10_000),
            (10_000, 10_600, 10_500),
        ] {
            let mut known = detector(0);
            known.expected_updates =
                Some(ExpectedUpdates { at_ns: 100_500, interval_ns: 1_000.0, uncertainty_ns: 0 });
            let update = update_between(&mut known, early_ns, late_ns);
            assert_eq!(update.at_ns, expected_ns.max(early_ns + 1), "between {early_ns} and {late_ns}");
            let plain = update_between(&mut detector(0), early_ns, late_ns);
            assert_eq!((update.early_ns, update.late_ns), (plain.early_ns, plain.late_ns));
        }
    }

    #[test]
    fn an_update_with_jitter_is_placed_in_the_middle_of_where_it_is_likely_and_possible() {
        for (early_ns, late_ns, at_ns) in [
            (10_000, 30_000, 29_500),
            (29_500, 30_000, 29_550),
            (29_450, 29_480, 29_465),
            (10_000, 29_550, 29_475),
            (29_700, 30_000, 29_701),
        ] {
            let mut known = detector(0);
            known.expected_updates =
                Some(ExpectedUpdates { at_ns: 100_500, interval_ns: 1_000.0, uncertainty_ns: 100 });
            assert_eq!(update_between(&mut known, early_ns, late_ns).at_ns, at_ns, "{early_ns} to {late_ns}");
        }
    }

    #[test]
    fn an_expected_update_is_shown_half_of_the_latency_after_it() {
        let mut known = detector(400);
        known.expected_updates =
            Some(ExpectedUpdates { at_ns: 500, interval_ns: 1_000.0, uncertainty_ns: 0 });
        assert_eq!(update_between(&mut known, 10_000, 30_000).at_ns, 29_300);
    }
}
