//! The deadlines of ticks: an absolute grid of an origin and a period.
//!
//! A late tick does not delay later deadlines. Deadlines that have passed are skipped and counted as missed, never
//! caught up in a burst. Nothing here reads a clock or waits.

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Deadlines {
    /// The next deadline; it advances by whole periods only.
    next_ns: u64,
    /// At least 1.
    period_ns: u64,
}

impl Deadlines {
    /// Creates a grid through `origin_ns`; its first deadline is one period later.
    pub(super) fn starting_at(origin_ns: u64, period_ns: u64) -> Self {
        let period_ns = period_ns.max(1);
        Self { next_ns: origin_ns + period_ns, period_ns }
    }

    pub(super) fn next_ns(&self) -> u64 {
        self.next_ns
    }

    /// The time from the deadline to `now_ns`; `None` before the deadline.
    pub(super) fn lateness_ns(&self, now_ns: u64) -> Option<u64> {
        now_ns.checked_sub(self.next_ns)
    }

    /// The lateness above which a tick counts as late: 100 µs, or half a period if that is less.
    pub(super) fn tolerance_ns(&self) -> u64 {
        (self.period_ns / 2).min(100_000)
    }

    /// After the tick of this deadline, which ended at `now_ns`: advances to the first deadline after `now_ns`, and
    /// returns the number of missed deadlines in between.
    pub(super) fn advance(&mut self, now_ns: u64) -> u64 {
        self.next_ns += self.period_ns;
        self.skip_passed(now_ns)
    }

    /// Without a tick for this deadline: advances to the first deadline after `now_ns`, and returns the number of
    /// missed deadlines, this one included.
    pub(super) fn skip_passed(&mut self, now_ns: u64) -> u64 {
        let Some(late_ns) = now_ns.checked_sub(self.next_ns) else { return 0 };
        let missed = late_ns / self.period_ns + 1;
        self.next_ns += missed * self.period_ns;
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_in_time_advances_by_one_period() {
        let mut deadlines = Deadlines::starting_at(1_000, 100);
        assert_eq!(deadlines.next_ns(), 1_100);
        assert_eq!(deadlines.advance(1_130), 0);
        assert_eq!(deadlines.next_ns(), 1_200, "being 30 late makes the next no later");
    }

    #[test]
    fn passed_deadlines_are_missed_and_not_caught_up() {
        let mut deadlines = Deadlines::starting_at(0, 100);
        assert_eq!(deadlines.advance(350), 2, "200 and 300 passed");
        assert_eq!(deadlines.next_ns(), 400);
    }

    #[test]
    fn a_deadline_exactly_now_is_missed() {
        let mut deadlines = Deadlines::starting_at(0, 100);
        assert_eq!(deadlines.advance(200), 1);
        assert_eq!(deadlines.next_ns(), 300);
    }

    #[test]
    fn lateness_counts_from_the_deadline_and_is_absent_before_it() {
        let deadlines = Deadlines::starting_at(0, 100);
        assert_eq!(deadlines.lateness_ns(99), None);
        assert_eq!(deadlines.lateness_ns(100), Some(0));
        assert_eq!(deadlines.lateness_ns(257), Some(157));
    }

    #[test]
    fn a_zero_period_becomes_one_nanosecond() {
        let mut deadlines = Deadlines::starting_at(10, 0);
        assert_eq!(deadlines.advance(20), 9);
        assert_eq!(deadlines.next_ns(), 21);
    }

    #[test]
    fn ticks_and_misses_cover_every_deadline() {
        let (mut deadlines, mut now_ns, mut points) = (Deadlines::starting_at(0, 1_000), 0, 0);
        for step in 0..500_u64 {
            now_ns = deadlines.next_ns().max(now_ns) + step * step % 3_777;
            points += 1 + deadlines.advance(now_ns);
        }
        assert_eq!(deadlines.next_ns(), (points + 1) * 1_000);
        assert!(deadlines.next_ns() > now_ns);
    }
}
