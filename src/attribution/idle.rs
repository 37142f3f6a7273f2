//! What a domain uses when nobody asks anything of it.
//!
//! Owns the idle power of one domain: configured, or a low quantile of the power over empty intervals (no span
//! open), because other programs may have been busy in some of them. Never guesses: without an empty interval it is
//! not known. What is learnt applies from then on and changes no settled figure.

const INTERVALS: usize = 32;
const LEAST_NS: u64 = 100_000_000;

/// A domain's idle power.
#[derive(Debug)]
pub(crate) struct Idle {
    configured_mw: Option<u64>,
    learnt_mw: Option<u64>,
    recent_mw: Vec<u64>,
    next: usize,
    empty_uj: u64,
    empty_ns: u64,
}

impl Idle {
    pub(crate) fn new(configured_mw: Option<u64>) -> Self {
        Self { configured_mw, learnt_mw: None, recent_mw: Vec::new(), next: 0, empty_uj: 0, empty_ns: 0 }
    }

    /// Idle power, milliwatts.
    pub(crate) fn power_mw(&self) -> Option<u64> {
        self.configured_mw.or(self.learnt_mw)
    }

    /// Configures it anew; `None` goes back to what is learnt, from now on where nothing was.
    pub(crate) fn configure(&mut self, configured_mw: Option<u64>) {
        self.configured_mw = configured_mw;
        self.interrupt();
    }

    /// A counter step during which no span was open.
    pub(crate) fn empty(&mut self, energy_uj: u64, duration_ns: u64) {
        if self.configured_mw.is_some() {
            return;
        }
        self.empty_uj = self.empty_uj.saturating_add(energy_uj);
        self.empty_ns = self.empty_ns.saturating_add(duration_ns);
        if self.empty_ns >= LEAST_NS {
            let mw = u128::from(self.empty_uj) * 1_000_000 / u128::from(self.empty_ns);
            self.learn(u64::try_from(mw).unwrap_or(u64::MAX));
            (self.empty_uj, self.empty_ns) = (0, 0);
        }
    }

    /// A span was open, or nothing vouches: what was gathered so far is not one empty interval.
    pub(crate) fn interrupt(&mut self) {
        (self.empty_uj, self.empty_ns) = (0, 0);
    }

    fn learn(&mut self, mw: u64) {
        if self.recent_mw.len() < INTERVALS {
            self.recent_mw.push(mw);
        } else if let Some(oldest) = self.recent_mw.get_mut(self.next) {
            *oldest = mw;
            self.next = (self.next + 1) % INTERVALS;
        }
        let mut sorted = self.recent_mw.clone();
        sorted.sort_unstable();
        self.learnt_mw = sorted.get(sorted.len() / 5).copied();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_a_low_quantile_of_empty_intervals_and_unknown_without_one() {
        let mut idle = Idle::new(None);
        assert_eq!(idle.power_mw(), None);
        for watts in [40, 41, 90, 40, 42, 95, 41, 40, 43, 41] {
            idle.empty(watts * 100_000, 100_000_000);
        }
        assert_eq!(idle.power_mw(), Some(40_000));
    }

    #[test]
    fn a_configured_figure_can_come_and_go_and_what_was_learnt_stays() {
        let mut idle = Idle::new(None);
        idle.empty(4_000_000, 100_000_000);
        idle.configure(Some(7_000));
        assert_eq!(idle.power_mw(), Some(7_000));
        idle.configure(None);
        assert_eq!(idle.power_mw(), Some(40_000));
    }

    #[test]
    fn an_interval_broken_by_a_span_is_not_learnt() {
        let mut idle = Idle::new(None);
        idle.empty(50_000, 50_000_000);
        idle.interrupt();
        idle.empty(50_000, 50_000_000);
        assert_eq!(idle.power_mw(), None);
    }
}
