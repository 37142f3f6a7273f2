//! The interval and the phase of a counter's updates, learnt from the reads around them.
//!
//! Each update that was seen between two reads is an observation: the update happened in that window. The lock keeps
//! the set of instants that agree with all windows so far, widened by the jitter that it measures and by the drift of
//! the interval. It is lost where updates come at other instants, or do not come. It improves estimates and the choice
//! of instants to read at; no guaranteed bound rests on it.

use crate::domain::EnergyReading;

/// A shorter interval cannot be bracketed by two reads.
const MIN_INTERVAL_NS: f64 = 300_000.0;
/// Reads per update at which the interval can be measured.
const MIN_READS_PER_UPDATE: u64 = 3;
/// Consecutive updates that agree before the phase counts as known.
const MIN_AGREED: u32 = 16;
/// Expected updates in a row that did not come before the lock is lost.
const MAX_MISSED: u32 = 3;
/// The largest uncertainty, jitter included, of a known phase, as a part of the interval.
const MAX_UNCERTAINTY: f64 = 0.2;
/// See [`UpdatePhase::hold_ns`].
const HOLD_GROWTH: f64 = 0.05;
/// The relative uncertainty of an interval never counts as smaller than this: clocks drift.
const MIN_DRIFT: f64 = 2e-6;
/// The growth of the interval's uncertainty with each update, so that old measurements lose their weight.
const AGING: f64 = 1.0005;
/// The least growth of the jitter after an expected update that was not seen.
const MIN_WIDENING_NS: f64 = 10_000.0;
/// The part of the measured jitter that one update which agrees removes.
const JITTER_DECAY: f64 = 1.0 / 256.0;

/// The instants at which a counter is expected to move.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdatePhase {
    /// The instant of one update.
    pub at_ns: u64,
    /// The time between two updates.
    pub interval_ns: f64,
    /// Updates are expected within this time of the computed instants, for the time around `at_ns`.
    pub uncertainty_ns: u64,
    /// The time in which the uncertainty grows by a twentieth of the interval, without a look at another update.
    pub hold_ns: u64,
}

impl UpdatePhase {
    /// The first expected update after `ns`.
    pub fn first_after(&self, ns: u64) -> u64 {
        let elapsed_ns = ns as f64 - self.at_ns as f64;
        self.update(elapsed_ns / self.interval_ns, ns, 1)
    }

    /// The last expected update at or before `ns`.
    pub fn last_until(&self, ns: u64) -> u64 {
        let elapsed_ns = ns as f64 - self.at_ns as f64;
        self.update(elapsed_ns / self.interval_ns, ns, 0)
    }

    /// The update with the number `floor(position)` from `at_ns` on, plus `next`. Rounding must not place the update on
    /// the wrong side of `ns`.
    fn update(&self, position: f64, ns: u64, next: i64) -> u64 {
        let number = position.floor() as i64 + next;
        let instant =
            |number: i64| self.at_ns.saturating_add_signed((number as f64 * self.interval_ns).round() as i64);
        let found_ns = instant(number);
        match next {
            0 if found_ns > ns => instant(number - 1),
            0 if instant(number + 1) <= ns => instant(number + 1),
            1 if found_ns <= ns => instant(number + 1),
            _ => found_ns,
        }
    }
}

/// The last valid reading.
#[derive(Debug, Clone, Copy)]
struct LastRead {
    before_ns: u64,
    energy_uj: u64,
    epoch: u32,
}

/// An update from which the interval is measured.
#[derive(Debug, Clone, Copy)]
struct LocatedUpdate {
    at_ns: u64,
    uncertainty_ns: f64,
    /// The number of the update.
    number: u64,
}

/// The updates so far.
#[derive(Debug, Clone, Copy)]
struct UpdateTrack {
    /// The newest update whose instant is known: its estimate, and the distance of the true one.
    newest: LocatedUpdate,
    /// Two older updates; the one that gives the better interval is used.
    references: [LocatedUpdate; 2],
    interval_ns: f64,
    /// The relative uncertainty of the interval.
    drift: f64,
    jitter_ns: f64,
    /// The jitter before the updates that were missed.
    steady_jitter_ns: f64,
    agreed: u32,
    missed: u32,
}

/// Learns the phase of one counter from its readings.
#[derive(Debug, Clone, Default)]
pub struct PhaseLock {
    last_read: Option<LastRead>,
    /// The first update: its window.
    first_window: Option<(u64, u64)>,
    track: Option<UpdateTrack>,
    /// The end of the last read that showed a new value.
    last_move_ns: Option<u64>,
    /// The start of the last read of the old value at that update.
    last_move_early_ns: u64,
    /// Several expected updates in a row did not come.
    is_stalled: bool,
}

impl PhaseLock {
    /// Adds a reading; readings come in the order of time.
    pub fn observe(&mut self, before_ns: u64, after_ns: u64, reading: &EnergyReading) {
        if !reading.valid {
            return;
        }
        let (energy_uj, epoch) = (reading.energy_uj, reading.epoch);
        match self.last_read.replace(LastRead { before_ns, energy_uj, epoch }) {
            Some(last) if last.epoch == epoch && last.energy_uj < energy_uj => {
                (self.last_move_ns, self.last_move_early_ns) = (Some(after_ns), last.before_ns);
                self.is_stalled = false;
                self.record_update(last.before_ns, after_ns);
            }
            Some(last) if last.epoch == epoch && last.energy_uj == energy_uj => {
                self.check_missed(before_ns);
            }
            _ => {}
        }
    }

    /// The expected updates; `None` while they are not known well enough at `now_ns`.
    pub fn phase(&self, now_ns: u64) -> Option<UpdatePhase> {
        let track = self.track.as_ref().filter(|track| track.agreed >= MIN_AGREED && !self.is_stalled)?;
        let elapsed_ns = now_ns.abs_diff(track.newest.at_ns) as f64;
        let uncertainty_ns = track.newest.uncertainty_ns + track.jitter_ns + elapsed_ns * track.drift;
        (uncertainty_ns <= track.interval_ns * MAX_UNCERTAINTY && track.interval_ns >= MIN_INTERVAL_NS)
            .then_some(UpdatePhase {
                at_ns: track.newest.at_ns,
                interval_ns: track.interval_ns,
                uncertainty_ns: uncertainty_ns as u64,
                hold_ns: (track.interval_ns * HOLD_GROWTH / track.drift.max(MIN_DRIFT)) as u64,
            })
    }

    /// The jitter of the updates: their largest distance from even spacing, with the old ones forgotten slowly.
    pub fn jitter_ns(&self) -> Option<u64> {
        self.track.as_ref().filter(|track| track.agreed >= MIN_AGREED).map(|track| track.jitter_ns as u64)
    }

    /// Whether an expected update has not come.
    pub fn is_overdue(&self) -> bool {
        self.track.is_some_and(|track| track.missed > 0)
    }

    /// Whether the counter has stopped while its phase was known. The phase is expected to hold once it moves again.
    pub fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// The end of the last read that showed a new value.
    pub fn last_move_ns(&self) -> Option<u64> {
        self.last_move_ns
    }

    /// Whether the counter has moved after `ns` for certain: a read that began after it still showed the value before
    /// the update.
    pub fn has_moved_after(&self, ns: u64) -> bool {
        self.last_move_ns.is_some() && self.last_move_early_ns > ns
    }

    /// Records that the counter moved between two instants.
    fn record_update(&mut self, early_ns: u64, late_ns: u64) {
        match (self.track.take(), self.first_window) {
            (Some(track), _) => {
                self.track = track.next(early_ns, late_ns);
                if self.track.is_none() {
                    self.first_window = Some((early_ns, late_ns));
                }
            }
            (None, Some(first)) => {
                self.track = UpdateTrack::begin(first, (early_ns, late_ns));
                self.first_window = Some((early_ns, late_ns));
            }
            (None, None) => self.first_window = Some((early_ns, late_ns)),
        }
    }

    /// Counts the expected updates since the last one that a read at `to_ns` does not show. A single one may have come
    /// beside the reads around it, so the jitter grows; several mean that the counter has stopped.
    fn check_missed(&mut self, to_ns: u64) {
        let (Some(phase), Some(moved_ns)) = (self.phase(to_ns), self.last_move_ns) else { return };
        let first_ns = phase.first_after(moved_ns.saturating_add(phase.uncertainty_ns));
        let Some(late_ns) = to_ns.checked_sub(first_ns.saturating_add(phase.uncertainty_ns)) else { return };
        let Some(track) = &mut self.track else { return };
        let missed = 1 + (late_ns as f64 / phase.interval_ns) as u32;
        if missed >= MAX_MISSED {
            // The counter has stopped. Where it goes on, its phase is usually the one before.
            self.is_stalled = true;
            track.jitter_ns = track.steady_jitter_ns.min(track.jitter_ns);
        } else if missed > track.missed {
            if track.missed == 0 {
                track.steady_jitter_ns = track.jitter_ns;
            }
            track.missed = missed;
            track.jitter_ns += (track.jitter_ns / 4.0).max(MIN_WIDENING_NS);
        }
    }
}

fn middle_and_half(early_ns: u64, late_ns: u64) -> (u64, f64) {
    let width_ns = late_ns.saturating_sub(early_ns);
    (early_ns + width_ns / 2, width_ns as f64 / 2.0)
}

impl UpdateTrack {
    /// Starts with two consecutive updates; `None` if the reads were too far apart to see that they are consecutive.
    fn begin(first: (u64, u64), second: (u64, u64)) -> Option<Self> {
        let ((first_ns, first_half_ns), (second_ns, second_half_ns)) =
            (middle_and_half(first.0, first.1), middle_and_half(second.0, second.1));
        let apart_ns = second_ns.saturating_sub(first_ns);
        let widest_ns = (2.0 * first_half_ns.max(second_half_ns)) as u64;
        if apart_ns == 0 || widest_ns * MIN_READS_PER_UPDATE > apart_ns {
            return None;
        }
        let reference = LocatedUpdate { at_ns: first_ns, uncertainty_ns: first_half_ns, number: 0 };
        Some(Self {
            newest: LocatedUpdate { at_ns: second_ns, uncertainty_ns: second_half_ns, number: 1 },
            references: [reference; 2],
            interval_ns: apart_ns as f64,
            drift: (first_half_ns + second_half_ns) / apart_ns as f64,
            jitter_ns: 0.0,
            steady_jitter_ns: f64::INFINITY,
            agreed: 0,
            missed: 0,
        })
    }

    /// The track after an update in this window; `None` if the update contradicts it.
    fn next(mut self, early_ns: u64, late_ns: u64) -> Option<Self> {
        let (middle_ns, half_ns) = middle_and_half(early_ns, late_ns);
        self.missed = 0;
        if half_ns > self.interval_ns / 4.0 {
            // A window this wide neither confirms nor contradicts the phase.
            return Some(self);
        }
        let elapsed_ns = middle_ns as f64 - self.newest.at_ns as f64;
        let steps = (elapsed_ns / self.interval_ns).round();
        if steps < 1.0 {
            return None;
        }
        let expected_ns = steps * self.interval_ns;
        let uncertainty_ns = self.newest.uncertainty_ns + expected_ns * self.drift;
        if uncertainty_ns + self.jitter_ns > self.interval_ns / 2.0 {
            return None;
        }
        // All relative to the newest update.
        let low = (elapsed_ns - half_ns - self.jitter_ns).max(expected_ns - uncertainty_ns);
        let high = (elapsed_ns + half_ns + self.jitter_ns).min(expected_ns + uncertainty_ns);
        if low <= high {
            self.jitter_ns -= self.jitter_ns * JITTER_DECAY;
            self.agreed = self.agreed.saturating_add(1);
        } else {
            self.jitter_ns += low - high;
            // The interval may be as wrong as the jitter is larger than it seemed.
            self.drift += (low - high) / expected_ns;
            if self.jitter_ns > self.interval_ns * MAX_UNCERTAINTY * 0.75 {
                return None;
            }
        }
        let middle = (low + high) / 2.0;
        self.newest = LocatedUpdate {
            at_ns: self.newest.at_ns.saturating_add_signed(middle.round() as i64),
            uncertainty_ns: ((high - low).abs() / 2.0).max(1.0),
            number: self.newest.number + steps as u64,
        };
        self.measure_interval(steps);
        Some(self)
    }

    /// Measures the interval from the better reference, if that is better than the interval known so far.
    fn measure_interval(&mut self, steps: f64) {
        self.drift *= AGING.powf(steps.min(64.0));
        let [far, near] = self.references.map(|reference| {
            let count = (self.newest.number - reference.number) as f64;
            let length_ns = self.newest.at_ns.saturating_sub(reference.at_ns) as f64;
            let uncertainty_ns = reference.uncertainty_ns + self.newest.uncertainty_ns + self.jitter_ns;
            let drift = uncertainty_ns / length_ns.max(1.0);
            (drift, length_ns / count.max(1.0))
        });
        let (drift, interval_ns) = if near.0 < far.0 { near } else { far };
        if drift <= self.drift {
            (self.drift, self.interval_ns) = (drift.max(MIN_DRIFT), interval_ns);
        }
        if near.0 < far.0 {
            self.references = [self.references[1], self.newest];
        } else if self.newest.uncertainty_ns < self.references[1].uncertainty_ns / 2.0 {
            self.references[1] = self.newest;
        }
        const MAX_REFERENCE_AGE_NS: u64 = 10_000_000_000;
        if self.newest.at_ns.saturating_sub(self.references[1].at_ns) > MAX_REFERENCE_AGE_NS {
            self.references = [self.references[1], self.newest];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1_000;
    const MS: u64 = 1_000_000;

    /// A counter with an update at `phase_ns` and each `interval_ns` from it, each late by up to `jitter_ns`.
    struct TestCounter {
        interval_ns: u64,
        phase_ns: u64,
        jitter_ns: u64,
    }

    impl TestCounter {
        fn update_ns(&self, number: u64) -> u64 {
            let random = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
            self.phase_ns + number * self.interval_ns + random % (self.jitter_ns + 1)
        }

        fn reading(&self, at_ns: u64) -> EnergyReading {
            let near = at_ns.saturating_sub(self.phase_ns) / self.interval_ns;
            let updates = if self.update_ns(near) <= at_ns { near + 1 } else { near };
            EnergyReading { valid: true, energy_uj: updates * 50_000, ..EnergyReading::default() }
        }

        fn read(&self, lock: &mut PhaseLock, at_ns: u64) {
            lock.observe(at_ns, at_ns + 2 * US, &self.reading(at_ns + US));
        }

        fn read_range(&self, lock: &mut PhaseLock, from_ns: u64, to_ns: u64, spacing_ns: u64) {
            (from_ns..to_ns).step_by(spacing_ns as usize).for_each(|at_ns| self.read(lock, at_ns));
        }

        /// The distance of the next expected update from the true one.
        fn error_ns(&self, lock: &PhaseLock, now_ns: u64) -> u64 {
            let expected_ns = lock.phase(now_ns).expect("a lock").first_after(now_ns);
            let near = (expected_ns - self.phase_ns) / self.interval_ns;
            (near.saturating_sub(1)..=near + 1)
                .map(|number| self.update_ns(number).abs_diff(expected_ns))
                .min()
                .unwrap()
        }
    }

    fn counter(interval_ns: u64, jitter_ns: u64) -> TestCounter {
        TestCounter { interval_ns, phase_ns: 1_000 * MS + 337 * US, jitter_ns }
    }

    /// A lock after 300 ms of four reads per update.
    fn surveyed(counter: &TestCounter) -> PhaseLock {
        let mut lock = PhaseLock::default();
        counter.read_range(&mut lock, 1_000 * MS, 1_300 * MS, 250 * US);
        lock
    }

    #[test]
    fn the_phase_is_learnt_from_four_reads_per_update() {
        for interval_ns in [976_600, 1_000_000, 1_003_000, 1_024_000] {
            let counter = counter(interval_ns, 0);
            let lock = surveyed(&counter);
            let phase = lock.phase(1_300 * MS).expect("a lock");
            assert!((phase.interval_ns - interval_ns as f64).abs() < 1_500.0, "{phase:?} of {interval_ns}");
            let error_ns = counter.error_ns(&lock, 1_300 * MS);
            assert!(error_ns <= phase.uncertainty_ns, "{error_ns} beyond {phase:?}");
        }
    }

    #[test]
    fn one_read_per_update_gives_no_phase() {
        let mut lock = PhaseLock::default();
        counter(MS, 0).read_range(&mut lock, 1_000 * MS, 3_000 * MS, MS);
        assert_eq!(lock.phase(3_000 * MS), None);
    }

    #[test]
    fn pairs_of_reads_keep_the_phase_and_narrow_it() {
        for (interval_ns, jitter_ns) in [(1_000_000, 0), (976_600, 0), (1_003_000, 0), (1_000_000, 60 * US)] {
            let counter = counter(interval_ns, jitter_ns);
            let mut lock = surveyed(&counter);
            let mut now_ns = 1_300 * MS;
            for _ in 0..500 {
                let phase = lock.phase(now_ns).expect("a lock");
                let expected_ns = phase.first_after(now_ns + 20 * MS);
                let guard_ns = phase.uncertainty_ns + 20 * US;
                counter.read(&mut lock, expected_ns - guard_ns);
                counter.read(&mut lock, expected_ns);
                counter.read(&mut lock, expected_ns + guard_ns);
                now_ns = expected_ns + guard_ns;
            }
            let phase = lock.phase(now_ns).expect("a lock");
            let error_ns = counter.error_ns(&lock, now_ns);
            assert!(
                error_ns <= phase.uncertainty_ns + jitter_ns,
                "{error_ns} beyond {phase:?} ({interval_ns} ± {jitter_ns})"
            );
            assert!(
                phase.uncertainty_ns <= 40 * US + 2 * jitter_ns,
                "{phase:?} ({interval_ns} ± {jitter_ns})"
            );
        }
    }

    #[test]
    fn a_pair_a_second_keeps_the_phase() {
        let counter = counter(976_600, 0);
        let mut lock = surveyed(&counter);
        let mut now_ns = 1_300 * MS;
        for wait_ns in std::iter::repeat_n(20 * MS, 100).chain(std::iter::repeat_n(1_000 * MS, 60)) {
            let phase = lock.phase(now_ns + wait_ns).expect("a lock");
            let expected_ns = phase.first_after(now_ns + wait_ns);
            let guard_ns = phase.uncertainty_ns + 20 * US;
            [expected_ns - guard_ns, expected_ns, expected_ns + guard_ns]
                .into_iter()
                .for_each(|at_ns| counter.read(&mut lock, at_ns));
            now_ns = expected_ns + guard_ns;
        }
        assert!(counter.error_ns(&lock, now_ns) <= 50 * US);
    }

    #[test]
    fn a_counter_with_large_jitter_has_no_phase() {
        let counter = counter(MS, 700 * US);
        let mut lock = PhaseLock::default();
        counter.read_range(&mut lock, 1_000 * MS, 3_000 * MS, 100 * US);
        assert_eq!(lock.phase(3_000 * MS), None);
    }

    #[test]
    fn updates_that_do_not_come_end_the_lock() {
        let counter = counter(MS, 0);
        let mut lock = surveyed(&counter);
        assert!(lock.phase(1_300 * MS).is_some());
        let stalled = counter.reading(1_299 * MS);
        for read in 0..20 {
            let at_ns = 1_300 * MS + read * 500 * US;
            lock.observe(at_ns, at_ns + 2 * US, &stalled);
        }
        assert_eq!(lock.phase(1_310 * MS), None);
    }

    #[test]
    fn the_phase_holds_over_a_stop() {
        for stop_ns in [5 * MS, 20 * MS, 200 * MS] {
            let counter = counter(976_600, 0);
            let mut lock = surveyed(&counter);
            let (stopped, resumed_ns) = (counter.reading(1_299 * MS), 1_300 * MS + stop_ns);
            for at_ns in (1_300 * MS..resumed_ns).step_by(MS as usize) {
                lock.observe(at_ns, at_ns + 2 * US, &stopped);
            }
            assert!(lock.is_stalled() && lock.phase(resumed_ns).is_none(), "{stop_ns}");
            counter.read(&mut lock, resumed_ns);
            let phase = lock.phase(resumed_ns).expect("the phase before the stop");
            assert!(counter.error_ns(&lock, resumed_ns) <= phase.uncertainty_ns, "{phase:?} after {stop_ns}");
            assert_eq!(lock.jitter_ns(), Some(0), "a stop is no jitter");
        }
    }

    #[test]
    fn a_counter_that_goes_on_with_another_phase_loses_the_lock() {
        let mut lock = surveyed(&counter(MS, 0));
        let later = TestCounter { interval_ns: MS, phase_ns: 900 * MS + 800 * US, jitter_ns: 0 };
        let mut now_ns = 1_400 * MS;
        for pair in 0.. {
            let Some(phase) = lock.phase(now_ns) else { break };
            assert!(pair < 20, "{phase:?}");
            let expected_ns = phase.first_after(now_ns + 20 * MS);
            let guard_ns = phase.uncertainty_ns + 20 * US;
            later.read(&mut lock, expected_ns - guard_ns);
            later.read(&mut lock, expected_ns + guard_ns);
            now_ns = expected_ns + guard_ns;
        }
        later.read_range(&mut lock, now_ns, now_ns + 300 * MS, 250 * US);
        assert!(later.error_ns(&lock, now_ns + 300 * MS) <= 100 * US);
    }

    #[test]
    fn a_new_phase_is_learnt_after_the_old_one_ends() {
        let mut lock = surveyed(&counter(MS, 0));
        let later = TestCounter { interval_ns: 1_003_000, phase_ns: 900 * MS, jitter_ns: 0 };
        later.read_range(&mut lock, 1_400 * MS, 1_800 * MS, 250 * US);
        let phase = lock.phase(1_800 * MS).expect("a lock");
        assert!((phase.interval_ns - 1_003_000.0).abs() < 1_500.0, "{phase:?}");
    }

    #[test]
    fn expected_updates_lie_on_the_asked_side() {
        let phase = UpdatePhase { at_ns: 5_000, interval_ns: 976.6, uncertainty_ns: 0, hold_ns: 0 };
        for ns in 1_000..20_000 {
            let (last, next) = (phase.last_until(ns), phase.first_after(ns));
            assert!(last <= ns && ns < next && next - last <= 977, "{last} {ns} {next}");
        }
    }
}
