//! The idle power of a domain: configured, or learned.
//!
//! The learned value is a low quantile *of time*: the power that an empty interval (no span open) does not exceed for a
//! fifth of the empty time, because other programs may be busy in the rest. Each interval weighs as much as it lasts.
//! Without an empty interval the value is unknown. A new value applies from then on and changes no settled account.

/// The number of intervals that are kept.
const MAX_INTERVALS: usize = 32;
/// An empty time must last this long to be an interval.
const MIN_INTERVAL_NS: u64 = 100_000_000;
/// Short intervals are joined up to this length, so that the value does not depend on how often the counter is read:
/// an idle power that changes within a second is averaged, and the bursts of other programs are too.
const JOINED_INTERVAL_NS: u64 = 1_000_000_000;
/// The quantile is one fifth.
const QUANTILE_DIVISOR: u64 = 5;

/// The energy of an empty time.
#[derive(Debug, Clone, Copy, Default)]
struct EmptyInterval {
    energy_uj: u64,
    duration_ns: u64,
}

impl EmptyInterval {
    fn add(&mut self, other: EmptyInterval) {
        self.energy_uj = self.energy_uj.saturating_add(other.energy_uj);
        self.duration_ns = self.duration_ns.saturating_add(other.duration_ns);
    }

    fn power_mw(self) -> u64 {
        let mw = u128::from(self.energy_uj) * 1_000_000 / u128::from(self.duration_ns.max(1));
        u64::try_from(mw).unwrap_or(u64::MAX)
    }
}

#[derive(Debug, Default)]
pub(crate) struct IdlePower {
    configured_mw: Option<u64>,
    learned_mw: Option<u64>,
    /// In the order of time, at most `MAX_INTERVALS`.
    intervals: Vec<EmptyInterval>,
    current: EmptyInterval,
}

impl IdlePower {
    pub(crate) fn new(configured_mw: Option<u64>) -> Self {
        Self { configured_mw, ..Self::default() }
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
        self.current.add(EmptyInterval { energy_uj, duration_ns });
        if self.current.duration_ns >= MIN_INTERVAL_NS {
            let interval = std::mem::take(&mut self.current);
            self.record_interval(interval);
        }
    }

    /// Discards the current interval, because a span was open or no reading covers the time.
    pub(crate) fn reset_interval(&mut self) {
        self.current = EmptyInterval::default();
    }

    fn record_interval(&mut self, interval: EmptyInterval) {
        if self.intervals.len() == MAX_INTERVALS {
            self.free_one_interval();
        }
        self.intervals.push(interval);
        self.learned_mw = Some(low_power_mw(self.intervals.clone()));
    }

    /// Joins the oldest two neighbours that are short, else drops the oldest interval.
    fn free_one_interval(&mut self) {
        let short = |pair: &[EmptyInterval]| {
            pair[0].duration_ns.saturating_add(pair[1].duration_ns) <= JOINED_INTERVAL_NS
        };
        match self.intervals.windows(2).position(short) {
            Some(at) => {
                let next = self.intervals.remove(at + 1);
                self.intervals[at].add(next);
            }
            None => drop(self.intervals.remove(0)),
        }
    }
}

/// The power that the intervals do not exceed for a fifth of their time.
fn low_power_mw(mut intervals: Vec<EmptyInterval>) -> u64 {
    intervals.sort_by_key(|interval| interval.power_mw());
    let total_ns = intervals.iter().fold(0_u64, |sum, interval| sum.saturating_add(interval.duration_ns));
    let mut passed_ns = 0_u64;
    let reached = intervals.iter().find(|interval| {
        passed_ns = passed_ns.saturating_add(interval.duration_ns);
        passed_ns > total_ns / QUANTILE_DIVISOR
    });
    reached.or(intervals.last()).map_or(0, |interval| interval.power_mw())
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

    const MS: u64 = 1_000_000;

    /// Power that alternates each 150 ms between 20 W and 60 W, 40 W in the mean: energy since 0, in microjoules.
    fn flickering_uj(at_ns: u64) -> u64 {
        let (periods, rest_ms) = (at_ns / (300 * MS), at_ns % (300 * MS) / MS);
        periods * 12_000_000 + rest_ms * 20_000 + rest_ms.saturating_sub(150) * 40_000
    }

    /// Adds the flickering power between two instants, read each `read_ns`.
    fn add_flickering(idle: &mut IdlePower, from_ns: u64, to_ns: u64, read_ns: u64) {
        for at_ns in (from_ns..to_ns).step_by(read_ns as usize) {
            idle.add_empty_interval(flickering_uj(at_ns + read_ns) - flickering_uj(at_ns), read_ns);
        }
    }

    #[test]
    fn idle_that_flickers_is_learned_by_time_however_often_the_counter_is_read() {
        // Mostly slow readings, and after each of a few spans some fast ones.
        let mut idle = IdlePower::new(None);
        for second in (0..30_u64).map(|second| second * 1_000 * MS) {
            match second / (1_000 * MS) % 3 {
                0 => add_flickering(&mut idle, second, second + 500 * MS, MS),
                _ => add_flickering(&mut idle, second, second + 1_000 * MS, 1_000 * MS),
            }
        }
        let mixed_mw = idle.power_mw().unwrap();
        assert!((34_000..=42_000).contains(&mixed_mw), "{mixed_mw} mW");
        // Fast readings alone: the mean over each second is within 33 and 47 W.
        let mut idle = IdlePower::new(None);
        add_flickering(&mut idle, 0, 60_000 * MS, MS);
        let fast_mw = idle.power_mw().unwrap();
        assert!((34_000..=42_000).contains(&fast_mw), "{fast_mw} mW");
    }

    #[test]
    fn one_second_weighs_as_much_as_ten_tenths_of_it() {
        let mut idle = IdlePower::new(None);
        idle.add_empty_interval(40_000_000, 1_000 * MS);
        (0..2).for_each(|_| idle.add_empty_interval(2_000_000, 100 * MS));
        assert_eq!(idle.power_mw(), Some(40_000), "0.2 s of 1.2 s are below a fifth");
        idle.add_empty_interval(2_000_000, 100 * MS);
        assert_eq!(idle.power_mw(), Some(20_000), "0.3 s of 1.3 s are more than a fifth");
    }

    #[test]
    fn only_the_recent_half_minute_counts() {
        let mut idle = IdlePower::new(None);
        (0..1_000).for_each(|_| idle.add_empty_interval(2_000_000, 100 * MS));
        assert_eq!(idle.power_mw(), Some(20_000));
        (0..400).for_each(|_| idle.add_empty_interval(6_000_000, 100 * MS));
        assert_eq!(idle.power_mw(), Some(60_000));
        assert!(idle.intervals.len() <= MAX_INTERVALS);
    }
}
