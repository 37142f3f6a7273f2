//! When the store's journal receives the account so far of each open span.
//!
//! Owns the queue of spans that are new or have changed, and the position of the refresh. The energy of a span whose row is
//! written grows with the record of the clocks (`journal_clock.rs`). The refresh goes round all spans for what that record does
//! not have, the peak concurrency. Invariant: a turn has a bounded number of spans, and the refresh has a bounded
//! number of turns per second, whatever the number of spans.

use std::collections::VecDeque;

use crate::attribution::SpanKey;

/// A span is journalled this long after its opening or its first change since it was last journalled. Most spans end earlier.
const JOURNAL_DELAY_NS: u64 = 1_000_000_000;

/// The maximum number of changed spans in one turn, and the pause after a turn that leaves some.
const CHANGED_PER_TURN: usize = 32;
/// The maximum number of entries in one turn, with those of spans that have ended. An entry takes some 10 ns.
const ENTRIES_PER_TURN: usize = 16_384;
const TURN_PAUSE_NS: u64 = 5_000_000;
/// A queue with room for fewer entries than this keeps it.
const MIN_SHRUNK_ENTRIES: usize = 4096;

/// The number of slots that are refreshed in one turn, and the interval between these turns: 8 spans a second, with
/// the record of the clocks. The cost does not depend on their number.
const REFRESHED_PER_TURN: usize = 8;
const REFRESH_INTERVAL_NS: u64 = 1_000_000_000;

#[derive(Debug)]
pub(super) struct JournalSchedule {
    /// In the order of time, because the delay is constant.
    pub(super) changed: VecDeque<(u64, SpanKey)>,
    changed_due_ns: u64,
    refresh_due_ns: u64,
    refresh_slot: usize,
}

/// The slots to refresh in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RefreshRange {
    pub(super) slot: usize,
    pub(super) count: usize,
    /// Only spans that opened by then.
    pub(super) opened_by_ns: u64,
}

impl JournalSchedule {
    pub(super) fn new(now_ns: u64) -> Self {
        Self {
            changed: VecDeque::new(),
            changed_due_ns: 0,
            refresh_due_ns: now_ns + JOURNAL_DELAY_NS,
            refresh_slot: 0,
        }
    }

    /// Adds a span that has opened or changed. It is not in the queue: the registry has marks of those that are.
    pub(super) fn add_changed(&mut self, key: SpanKey, now_ns: u64) {
        self.changed.push_back((now_ns + JOURNAL_DELAY_NS, key));
    }

    /// Takes the changed spans of this turn that still exist.
    pub(super) fn take_changed(&mut self, now_ns: u64, exists: impl Fn(SpanKey) -> bool) -> Vec<SpanKey> {
        let mut taken = Vec::new();
        if now_ns < self.changed_due_ns {
            return taken;
        }
        for _ in 0..ENTRIES_PER_TURN {
            let Some(&(_, key)) = self.changed.front().filter(|(due_ns, _)| *due_ns <= now_ns) else { break };
            self.changed.pop_front();
            if exists(key) {
                taken.push(key);
            }
            if taken.len() == CHANGED_PER_TURN {
                self.changed_due_ns = now_ns + TURN_PAUSE_NS;
                break;
            }
        }
        // After many spans opened, most of the queue is free for as long as they stay open.
        if self.changed.capacity() > MIN_SHRUNK_ENTRIES.max(8 * self.changed.len()) {
            self.shrink();
        }
        taken
    }

    /// The time of the next turn of changed spans, if the last one may have left some.
    pub(super) fn changed_due_ns(&self, now_ns: u64) -> Option<u64> {
        (self.changed_due_ns > now_ns).then_some(self.changed_due_ns)
    }

    /// The slots to refresh now, if that is due.
    pub(super) fn refresh_range(&self, now_ns: u64) -> Option<RefreshRange> {
        let opened_by_ns = now_ns.saturating_sub(JOURNAL_DELAY_NS);
        (now_ns >= self.refresh_due_ns).then_some(RefreshRange {
            slot: self.refresh_slot,
            count: REFRESHED_PER_TURN,
            opened_by_ns,
        })
    }

    /// Ends a refresh: the next one starts at `next_slot`, or begins again after the last slot.
    pub(super) fn end_refresh(&mut self, now_ns: u64, next_slot: Option<usize>) {
        self.refresh_slot = next_slot.unwrap_or(0);
        let interval_ns = if next_slot.is_some() { REFRESH_INTERVAL_NS } else { JOURNAL_DELAY_NS };
        self.refresh_due_ns = now_ns + interval_ns;
    }

    /// Frees memory that many changed spans used.
    pub(super) fn shrink(&mut self) {
        self.changed.shrink_to(2 * self.changed.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    /// Polls every 5 ms, as the service does at most, over a table of `slots`; returns the most visits in one turn, and the
    /// visits of changed spans and of slots.
    fn run(schedule: &mut JournalSchedule, slots: usize, from_ns: u64, to_ns: u64) -> (usize, usize, usize) {
        let (mut most, mut changed, mut refreshed) = (0, 0, 0);
        for now_ns in (from_ns..to_ns).step_by(5_000_000) {
            let taken = schedule.take_changed(now_ns, |_| true).len();
            let mut visited = 0;
            if let Some(range) = schedule.refresh_range(now_ns) {
                let end = slots.min(range.slot + range.count);
                visited = end - range.slot;
                schedule.end_refresh(now_ns, (end < slots).then_some(end));
            }
            (most, changed, refreshed) = (most.max(taken + visited), changed + taken, refreshed + visited);
        }
        (most, changed, refreshed)
    }

    #[test]
    fn idle_spans_cost_as_many_visits_at_100_000_as_at_1_000() {
        let visits = |spans: u64| {
            let mut schedule = JournalSchedule::new(0);
            (0..spans).for_each(|key| schedule.add_changed(SpanKey(key), 0));
            let (most, changed, _) = run(&mut schedule, spans as usize, 0, 30 * SECOND_NS);
            assert!(most <= CHANGED_PER_TURN + REFRESHED_PER_TURN, "{most} visits in one turn");
            assert_eq!(changed, spans as usize, "each is journalled once after it opened");
            let (_, changed, refreshed) = run(&mut schedule, spans as usize, 30 * SECOND_NS, 90 * SECOND_NS);
            assert_eq!(changed, 0, "nothing has changed");
            refreshed
        };
        let (few, many) = (visits(1_000), visits(100_000));
        assert!(many <= 60 * 8 && many <= few + few / 10, "{few} {many}");
    }

    #[test]
    fn few_spans_are_refreshed_about_every_second_and_a_change_within_a_second() {
        let mut schedule = JournalSchedule::new(0);
        let (_, _, refreshed) = run(&mut schedule, 8, 0, 60 * SECOND_NS);
        assert!((8 * 55..=8 * 60).contains(&refreshed), "{refreshed}");
        schedule.add_changed(SpanKey(7), 60 * SECOND_NS);
        assert!(
            schedule.take_changed(61 * SECOND_NS - 1, |_| true).is_empty(),
            "most spans end within a second"
        );
        assert_eq!(schedule.take_changed(61 * SECOND_NS, |_| true), [SpanKey(7)]);
        assert!(schedule.take_changed(70 * SECOND_NS, |_| true).is_empty());
    }

    #[test]
    fn the_queue_of_many_spans_frees_its_memory_while_they_stay_open() {
        let mut schedule = JournalSchedule::new(0);
        (0..100_000).for_each(|key| schedule.add_changed(SpanKey(key), 0));
        run(&mut schedule, 100_000, 0, 30 * SECOND_NS);
        let room = schedule.changed.capacity();
        assert!(room <= MIN_SHRUNK_ENTRIES, "room for {room} entries after the last was taken");
    }

    #[test]
    fn entries_of_ended_spans_do_not_accumulate_at_any_rate_of_spans() {
        let mut schedule = JournalSchedule::new(0);
        let mut longest = 0;
        for turn in 0..200_u64 {
            let now_ns = turn * 20_000_000;
            (0..4_000).for_each(|key| schedule.add_changed(SpanKey(key), now_ns));
            assert!(schedule.take_changed(now_ns, |_| false).is_empty());
            longest = longest.max(schedule.changed.len());
        }
        assert!(longest <= 4_000 * 51, "one second of spans: {longest}");
    }
}
