//! The idle power of a domain: configured, or learned.
//!
//! The learned value is a low quantile of the power over empty intervals (no span open), because other programs may be
//! busy in some of them. Without an empty interval it is unknown. A new value applies from then on and changes no
//! settled account.

const RECENT_INTERVALS: usize = 32;
const MIN_INTERVAL_NS: u64 = 100_000_000;

#[derive(Debug)]
pub(crate) struct IdlePower {
    configured_mw: Option<u64>,
    learned_mw: Option<u64>,
    recent_mw: Vec<u64>,
    next: usize,
    interval_uj: u64,
    interval_ns: u64,
}

impl IdlePower {
    pub(crate) fn new(configured_mw: Option<u64>) -> Self {
        Self {
            configured_mw,
            learned_mw: None,
            recent_mw: Vec::new(),
            next: 0,
            interval_uj: 0,
            interval_ns: 0,
        }
    }

    pub(crate) fn power_mw(&self) -> Option<u64> {
        self.configured_mw.or(self.learned_mw)
    }

    /// Sets the configured power; `None` returns to the learned power.
    pub(crate) fn configure(&mut self, configured_mw: Option<u64>) {
        self.configured_mw = configured_mw;
        self.reset_interval();
    }

    /// Adds a counter step during which no span was open.
    pub(crate) fn add_empty_interval(&mut self, energy_uj: u64, duration_ns: u64) {
        if self.configured_mw.is_some() {
            return;
        }
        self.interval_uj = self.interval_uj.saturating_add(energy_uj);
        self.interval_ns = self.interval_ns.saturating_add(duration_ns);
        if self.interval_ns >= MIN_INTERVAL_NS {
            let mw = u128::from(self.interval_uj) * 1_000_000 / u128::from(self.interval_ns);
            self.add_sample(u64::try_from(mw).unwrap_or(u64::MAX));
            (self.interval_uj, self.interval_ns) = (0, 0);
        }
    }

    /// Discards the current interval, because a span was open or no reading covers the time.
    pub(crate) fn reset_interval(&mut self) {
        (self.interval_uj, self.interval_ns) = (0, 0);
    }

    fn add_sample(&mut self, mw: u64) {
        if self.recent_mw.len() < RECENT_INTERVALS {
            self.recent_mw.push(mw);
        } else if let Some(oldest) = self.recent_mw.get_mut(self.next) {
            *oldest = mw;
            self.next = (self.next + 1) % RECENT_INTERVALS;
        }
        let mut sorted = self.recent_mw.clone();
        sorted.sort_unstable();
        self.learned_mw = sorted.get(sorted.len() / 5).copied();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_a_low_quantile_of_empty_intervals_and_unknown_without_one() {
        let mut idle = IdlePower::new(None);
        assert_eq!(idle.power_mw(), None);
        for watts in [40, 41, 90, 40, 42, 95, 41, 40, 43, 41] {
            idle.add_empty_interval(watts * 100_000, 100_000_000);
        }
        assert_eq!(idle.power_mw(), Some(40_000));
    }

    #[test]
    fn removing_the_configured_power_restores_the_learned_one() {
        let mut idle = IdlePower::new(None);
        idle.add_empty_interval(4_000_000, 100_000_000);
        idle.configure(Some(7_000));
        assert_eq!(idle.power_mw(), Some(7_000));
        idle.configure(None);
        assert_eq!(idle.power_mw(), Some(40_000));
    }

    #[test]
    fn an_interval_interrupted_by_a_span_is_not_learned() {
        let mut idle = IdlePower::new(None);
        idle.add_empty_interval(50_000, 50_000_000);
        idle.reset_interval();
        idle.add_empty_interval(50_000, 50_000_000);
        assert_eq!(idle.power_mw(), None);
    }
}
