//! Where a domain's counter moved in the ring of its source, and which samples a window needs.
//!
//! Owns the indices of those samples, so that the few around an instant are found by binary search. Invariant: an attributor
//! that receives only the selected samples computes the energy that it computes from all of them, and no larger error. The
//! samples left out lie inside counter steps, or in a part of the window where only the difference of the counter counts.

use std::collections::{BTreeMap, VecDeque};

use crate::domain::EnergyReading;
use crate::ring::{RingReader, Sample};

/// The number of moves that are selected before an instant. The last one is a bound of the energy there; the first has a
/// wrong beginning, because the samples before it are left out.
const MOVES_BEFORE: usize = 3;

/// The maximum number of samples around one instant that are selected for the shape of a counter step. The shape of two
/// instants then fits into the attributor's memory. A longer step is a straight line.
const MAX_SHAPE_SAMPLES: u64 = 240;

/// The samples in which a counter moved, of those that the ring may still hold.
#[derive(Debug, Default)]
pub(super) struct CounterMoves {
    moves: VecDeque<CounterMove>,
    /// The moves before which energy or time may be unknown: a new epoch, or a long time without a move.
    restarts: VecDeque<CounterMove>,
    /// The first valid readings after others, moved or not.
    returns: VecDeque<CounterMove>,
    newest: u64,
    last_move: Option<LastMove>,
    last_valid: Option<u64>,
    has_shape: bool,
}

/// The low bits of the indices of two samples: of a move, and of the last valid reading before it. A ring has fewer than
/// 2^32 samples.
#[derive(Debug, Clone, Copy)]
struct CounterMove {
    index: u32,
    previous: u32,
}

#[derive(Debug, Clone, Copy)]
struct LastMove {
    after_ns: u64,
    energy_uj: u64,
    stamp_ns: u64,
    epoch: u32,
}

impl CounterMoves {
    /// Records the domain's reading in the sample of this index. `timeout_ns`: a longer time without a move may be unknown.
    pub(super) fn record(&mut self, index: u64, sample: &Sample, reading: &EnergyReading, timeout_ns: u64) {
        self.has_shape |= reading.shape_uj != 0;
        if !reading.valid {
            return;
        }
        self.newest = index;
        let previous = self.last_valid.replace(index).unwrap_or(index);
        let entry = CounterMove { index: index as u32, previous: previous as u32 };
        if previous + 1 < index {
            self.returns.push_back(entry);
        }
        let is_restart = match self.last_move {
            None => true,
            Some(last) if reading.epoch != last.epoch || reading.energy_uj < last.energy_uj => true,
            Some(last) if reading.stamp_ns == 0 && reading.energy_uj == last.energy_uj => return,
            Some(last) if reading.stamp_ns != 0 && reading.stamp_ns <= last.stamp_ns => return,
            Some(last) => sample.before_ns.saturating_sub(last.after_ns) > timeout_ns,
        };
        let EnergyReading { energy_uj, stamp_ns, epoch, .. } = *reading;
        self.last_move = Some(LastMove { after_ns: sample.after_ns, energy_uj, stamp_ns, epoch });
        self.moves.push_back(entry);
        if is_restart {
            self.restarts.push_back(entry);
        }
    }

    /// Drops the moves in samples before this index, which are overwritten.
    pub(super) fn drop_before(&mut self, oldest: u64) {
        let newest = self.newest;
        for list in [&mut self.moves, &mut self.restarts, &mut self.returns] {
            let kept = list.partition_point(|entry| index_of(entry.index, newest) < oldest);
            list.drain(..kept);
        }
    }

    /// The entries of a list from sample `index` on.
    fn entries_from<'a>(
        &self,
        list: &'a VecDeque<CounterMove>,
        index: u64,
    ) -> impl Iterator<Item = MoveIndices> + use<'a> {
        let newest = self.newest;
        let first = list.partition_point(|entry| index_of(entry.index, newest) < index);
        list.range(first..).map(move |entry| MoveIndices::new(entry, newest))
    }

    /// The moves up to sample `index`, the latest first.
    fn moves_until(&self, index: u64) -> impl Iterator<Item = MoveIndices> + '_ {
        let newest = self.newest;
        let end = self.moves.partition_point(|entry| index_of(entry.index, newest) <= index);
        self.moves.range(..end).rev().map(move |entry| MoveIndices::new(entry, newest))
    }
}

/// The index with these low bits, at most `newest`.
fn index_of(low: u32, newest: u64) -> u64 {
    newest.wrapping_sub(u64::from((newest as u32).wrapping_sub(low)))
}

/// A move with the whole indices of its samples.
#[derive(Debug, Clone, Copy)]
struct MoveIndices {
    index: u64,
    previous: u64,
}

impl MoveIndices {
    fn new(entry: &CounterMove, newest: u64) -> Self {
        Self { index: index_of(entry.index, newest), previous: index_of(entry.previous, newest) }
    }
}

/// The selection of the samples of one ring that a window needs.
pub(super) struct WindowSelection<'a> {
    ring: &'a RingReader,
    first: u64,
    last: u64,
    sample: Sample,
    /// By index: a bit for each domain that needs its reading there. Another reading could look like a long time without a
    /// move, because the moves before it are left out.
    selected: BTreeMap<u64, u64>,
}

impl<'a> WindowSelection<'a> {
    /// Selects from the samples below index `recorded` that were read between two instants, as far as the ring holds them.
    /// `None` if there are none.
    pub(super) fn new(ring: &'a RingReader, recorded: u64, begin_ns: u64, end_ns: u64) -> Option<Self> {
        let first = ring.find_at_or_before(begin_ns).unwrap_or_else(|| ring.oldest_index());
        let mut sample = Sample::empty(ring.domains());
        let last = ring.find_at_or_before(end_ns)?;
        // A read may have begun before the end and ended after it.
        let last = last + u64::from(ring.read(last + 1, &mut sample) && sample.before_ns <= end_ns);
        let last = last.min(recorded.checked_sub(1)?);
        (first <= last).then(|| Self {
            ring,
            first,
            last,
            sample,
            selected: BTreeMap::from([(first, u64::MAX), (last, u64::MAX)]),
        })
    }

    /// Selects what a domain needs for a window. `domain` is its place in a sample.
    pub(super) fn add_domain(
        &mut self,
        moves: &CounterMoves,
        domain: usize,
        latency_ns: u64,
        from_ns: u64,
        to_ns: u64,
    ) {
        // If the first sample is not valid, the next valid one is the counter's baseline.
        let baseline = moves.entries_from(&moves.returns, self.first).next();
        if let Some(baseline) = baseline.filter(|baseline| baseline.index <= self.last) {
            self.select(domain, baseline.index);
        }
        let (begin, _) = self.add_instant(moves, domain, latency_ns, from_ns);
        let (_, end) = self.add_instant(moves, domain, latency_ns, to_ns);
        for restart in moves.entries_from(&moves.restarts, begin) {
            if restart.index > end {
                break;
            }
            self.add_move(domain, restart);
            // The unknown time begins at the move before it.
            self.add_moves_until(moves, domain, latency_ns, restart.index.saturating_sub(1));
            // After a timeout, a reading whose stamp is older than that does not count as the end of the unknown time.
            let last = self.last;
            let later = moves.entries_from(&moves.moves, restart.index + 1).take(2);
            later.take_while(|later| later.index <= last).for_each(|later| self.add_move(domain, later));
        }
    }

    /// Selects the samples that bound the energy at an instant; returns the first and the last of them.
    fn add_instant(
        &mut self,
        moves: &CounterMoves,
        domain: usize,
        latency_ns: u64,
        at_ns: u64,
    ) -> (u64, u64) {
        let reached = self.ring.find_at_or_before(at_ns).unwrap_or(self.first).clamp(self.first, self.last);
        let mut begin = self.add_moves_until(moves, domain, latency_ns, reached);
        let (mut end, mut is_passed) = (reached, false);
        let last = self.last;
        for next in moves.entries_from(&moves.moves, reached + 1).take_while(|next| next.index <= last) {
            self.add_move(domain, next);
            end = next.index;
            is_passed = self.earliest_update_ns(domain, next, latency_ns).is_some_and(|early| early > at_ns);
            if is_passed {
                break;
            }
        }
        if !is_passed {
            // The energy is known up to the earliest instant of the last update, which is the end of what is reported.
            let latest = moves.moves_until(last).next().filter(|latest| latest.index > self.first);
            let known_ns = latest.and_then(|latest| self.earliest_update_ns(domain, latest, latency_ns));
            if let Some(known_ns) = known_ns.filter(|&known_ns| known_ns < at_ns) {
                begin = begin.min(self.add_instant(moves, domain, latency_ns, known_ns).0);
            }
        }
        if moves.has_shape {
            self.add_shape(moves, domain, latency_ns, reached, end);
        }
        (begin, end)
    }

    /// Selects all samples of the counter step that contains an instant: from before the update that precedes `reached`.
    fn add_shape(&mut self, moves: &CounterMoves, domain: usize, latency_ns: u64, reached: u64, end: u64) {
        let last_move = moves.moves_until(reached).next().filter(|last_move| last_move.index > self.first);
        let updated_ns = last_move.and_then(|latest| self.earliest_update_ns(domain, latest, latency_ns));
        let begin = updated_ns.and_then(|updated_ns| self.ring.find_at_or_before(updated_ns));
        let begin = begin.map_or(self.first, |index| index.saturating_sub(1).max(self.first));
        if end - begin <= MAX_SHAPE_SAMPLES {
            (begin..=end).for_each(|index| self.select(domain, index));
        }
    }

    /// Selects the last moves up to a sample, at least those within the latency: until then the estimated instants of
    /// updates depend on the updates before them. Returns the first selected sample.
    fn add_moves_until(&mut self, moves: &CounterMoves, domain: usize, latency_ns: u64, index: u64) -> u64 {
        let first = self.first;
        let (mut begin, mut latest_ns) = (index, None);
        let within = moves.moves_until(index).take_while(|earlier| earlier.index >= first);
        for (number, earlier) in within.enumerate() {
            self.add_move(domain, earlier);
            begin = earlier.previous.max(first);
            let is_read = self.ring.read(earlier.index, &mut self.sample);
            let at_ns = if is_read { self.sample.after_ns } else { 0 };
            let latest_ns = *latest_ns.get_or_insert(at_ns);
            if number + 1 >= MOVES_BEFORE && at_ns.saturating_add(latency_ns) < latest_ns {
                break;
            }
        }
        begin
    }

    /// Selects a move, the last valid reading before it, and the sample just before it, valid or not: that one shows
    /// whether the counter timed out.
    fn add_move(&mut self, domain: usize, added: MoveIndices) {
        for index in [added.previous, added.index.saturating_sub(1), added.index] {
            if index >= self.first {
                self.select(domain, index);
            }
        }
    }

    /// The earliest instant at which the counter can have been updated before a move.
    fn earliest_update_ns(&mut self, domain: usize, latest: MoveIndices, latency_ns: u64) -> Option<u64> {
        let previous = latest.previous.max(self.first);
        let before_ns = self.ring.read(previous, &mut self.sample).then_some(self.sample.before_ns)?;
        let is_read = self.ring.read(latest.index, &mut self.sample);
        let stamp_ns = is_read.then(|| self.sample.readings[domain].stamp_ns)?;
        let early_ns = before_ns.saturating_sub(latency_ns);
        Some(if stamp_ns == 0 { early_ns } else { stamp_ns.min(early_ns) })
    }

    fn select(&mut self, domain: usize, index: u64) {
        *self.selected.entry(index).or_default() |= 1_u64.checked_shl(domain as u32).unwrap_or(0);
    }

    /// The selected samples in the order of time: the index, and a bit for each domain.
    pub(super) fn into_samples(self) -> impl Iterator<Item = (u64, u64)> {
        self.selected.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use wattspan_client::account::{Account, Share};

    use super::*;
    use crate::attribution::{AttributionSettings, Attributor, NewSpan};
    use crate::domain::{Domain, DomainKind, Grade};
    use crate::ring::ring;

    const MS: u64 = 1_000_000;
    const MARGIN_NS: u64 = 3_000 * MS;

    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % limit
        }

        fn one_in(&mut self, count: u64) -> bool {
            self.below(count) == 0
        }
    }

    /// A counter with a known true energy.
    struct Counter {
        domain: Domain,
        period_ns: u64,
        lag_ns: u64,
        is_stamped: bool,
        has_shape: bool,
        is_unreliable: bool,
        uncertainty_per_mille: u64,
        /// The true energy at multiples of 100 µs, µJ.
        energy: Vec<u64>,
    }

    const STEP_NS: u64 = 100_000;

    impl Counter {
        fn new(random: &mut Random, at: usize, steps: u64, may_fail: bool) -> Self {
            let latency_ns = [0, 0, 2 * MS, 20 * MS][random.below(4) as usize];
            let (mut energy, mut sum, mut power) = (Vec::new(), 0, 0);
            for step in 0..steps {
                if step % 37 == 0 {
                    power = [0, 2, 9, 14][random.below(4) as usize];
                }
                energy.push(sum);
                sum += power;
            }
            let is_stamped = random.one_in(4);
            let domain = Domain {
                name: format!("package-{at}"),
                kind: DomainKind::Package,
                source: "replay".into(),
                device: None,
                parent: None,
                grade: Grade::Measured,
                ceiling_mw: random.one_in(2).then_some(140),
                latency_ns,
                quantum_uj: 10,
            };
            Self {
                domain,
                period_ns: [MS, 976_600, 3 * MS, 25 * MS, 100 * MS][random.below(5) as usize],
                lag_ns: if is_stamped { 0 } else { random.below(latency_ns + 1) },
                is_stamped,
                has_shape: false,
                is_unreliable: may_fail && random.one_in(2),
                uncertainty_per_mille: if random.one_in(3) { 20 } else { 0 },
                energy,
            }
        }

        fn energy_at(&self, at_ns: u64) -> u64 {
            let (step, rest) = ((at_ns / STEP_NS) as usize, at_ns % STEP_NS);
            let (here, next) =
                (self.energy[step], self.energy.get(step + 1).copied().unwrap_or(self.energy[step]));
            here + (next - here) * rest / STEP_NS
        }

        fn reading(&self, at_ns: u64, epoch: u32) -> EnergyReading {
            let updated_ns = at_ns.saturating_sub(self.lag_ns) / self.period_ns * self.period_ns;
            let energy_uj = self.energy_at(updated_ns) / 10 * 10;
            EnergyReading {
                valid: true,
                energy_uj,
                uncertainty_uj: energy_uj * self.uncertainty_per_mille / 1000,
                stamp_ns: if self.is_stamped { updated_ns.max(1) } else { 0 },
                epoch,
                shape_uj: if self.has_shape { 1 + self.energy_at(at_ns) } else { 0 },
            }
        }
    }

    /// Samples of random counters in a ring, with the moves recorded.
    struct Machine {
        counters: Vec<Counter>,
        moves: Vec<CounterMoves>,
        ring: RingReader,
        end_ns: u64,
    }

    const TIMEOUT_NS: u64 = 150 * MS;

    impl Machine {
        fn new(random: &mut Random, samples: u64, may_fail: bool, has_shape: bool) -> Self {
            let steps = samples * 40 + 1000;
            let mut counters: Vec<Counter> = (0..1 + random.below(3) as usize)
                .map(|at| Counter::new(random, at, steps, may_fail))
                .collect();
            counters.iter_mut().for_each(|counter| counter.has_shape = has_shape);
            let (mut writer, reader) = ring(1 << (9 + random.below(4)), counters.len());
            let mut moves: Vec<CounterMoves> = counters.iter().map(|_| CounterMoves::default()).collect();
            let (mut at_ns, mut epochs) = (MS, vec![0; counters.len()]);
            let mut invalid_until_ns = vec![0; counters.len()];
            for index in 0..samples {
                at_ns += if may_fail && random.one_in(400) {
                    random.below(300 * MS)
                } else {
                    MS / 2 + random.below(MS)
                };
                let after_ns = at_ns + random.below(60_000);
                let mut readings = Vec::new();
                for (place, counter) in counters.iter().enumerate() {
                    if counter.is_unreliable {
                        epochs[place] += u32::from(random.one_in(300));
                        if random.one_in(200) {
                            invalid_until_ns[place] = at_ns + random.below(200 * MS);
                        }
                    }
                    let read_ns = at_ns + (after_ns - at_ns) / 2;
                    let mut reading = counter.reading(read_ns, epochs[place]);
                    reading.valid = at_ns >= invalid_until_ns[place];
                    readings.push(reading);
                }
                let sample = Sample { before_ns: at_ns, after_ns, readings };
                writer.push(&sample);
                for (moves, reading) in moves.iter_mut().zip(&sample.readings) {
                    moves.record(index, &sample, reading, TIMEOUT_NS);
                }
                at_ns = after_ns;
                if at_ns > (steps - 10) * STEP_NS {
                    break;
                }
            }
            moves.iter_mut().for_each(|moves| moves.drop_before(reader.oldest_index()));
            Self { counters, moves, ring: reader, end_ns: at_ns }
        }

        fn account(&self, from_ns: u64, to_ns: u64, samples: impl Iterator<Item = (u64, u64)>) -> Account {
            let settings = AttributionSettings {
                horizon_ns: 0,
                counter_timeout_ns: TIMEOUT_NS,
                ..AttributionSettings::default()
            };
            let domains = self.counters.iter().map(|counter| counter.domain.clone()).collect();
            let mut attributor = Attributor::new(domains, settings);
            for (place, counter) in self.counters.iter().enumerate() {
                // Domains of integrated sources know their interval, others may not.
                if counter.uncertainty_per_mille == 0 {
                    attributor.domains().set_update_interval(place, counter.period_ns);
                }
            }
            let key = attributor.open(from_ns, NewSpan::new("", from_ns)).unwrap();
            attributor.close(to_ns, key, to_ns, Default::default(), false).unwrap();
            let (mut sample, mut end_ns) = (Sample::empty(self.counters.len()), to_ns + 1);
            for (index, domains) in samples {
                if self.ring.read(index, &mut sample) {
                    for (place, reading) in sample.readings.iter().enumerate() {
                        if domains >> place & 1 == 0 {
                            continue;
                        }
                        attributor.add_reading(place, sample.before_ns, sample.after_ns, reading);
                    }
                    end_ns = end_ns.max(sample.after_ns);
                }
            }
            let mut settled = Vec::new();
            attributor.settle(end_ns, &mut settled);
            settled.pop().map_or_else(|| attributor.account(end_ns, key).unwrap(), |(_, account)| account)
        }

        /// The replay of all samples around the window: the reference.
        fn replayed(&self, from_ns: u64, to_ns: u64) -> Account {
            let begin_ns = from_ns.saturating_sub(MARGIN_NS);
            let first = self.ring.find_at_or_before(begin_ns).unwrap_or_else(|| self.ring.oldest_index());
            let mut sample = Sample::empty(self.counters.len());
            let is_within =
                |index: &u64| !self.ring.read(*index, &mut sample) || sample.before_ns <= to_ns + MARGIN_NS;
            let within: Vec<u64> = (first..self.ring.written_count()).take_while(is_within).collect();
            self.account(from_ns, to_ns, within.into_iter().map(|index| (index, u64::MAX)))
        }

        fn selected(&self, from_ns: u64, to_ns: u64) -> Vec<(u64, u64)> {
            let (begin_ns, end_ns) = (from_ns.saturating_sub(MARGIN_NS), to_ns + MARGIN_NS);
            let count = self.ring.written_count();
            let selection = WindowSelection::new(&self.ring, count, begin_ns, end_ns);
            let Some(mut selection) = selection else { return Vec::new() };
            for (place, (moves, counter)) in self.moves.iter().zip(&self.counters).enumerate() {
                selection.add_domain(moves, place, counter.domain.latency_ns, from_ns, to_ns);
            }
            selection.into_samples().collect()
        }

        fn random_window(&self, random: &mut Random) -> (u64, u64) {
            let longest_ns = [3 * MS, 50 * MS, self.end_ns][random.below(3) as usize];
            let from_ns = random.below(self.end_ns);
            (from_ns, (from_ns + random.below(longest_ns)).min(self.end_ns))
        }
    }

    fn assert_no_worse(found: &Share, reference: &Share, context: &str) {
        let without_error = |share: &Share| Share { error_uj: None, ..share.clone() };
        // The idle power of a window is the meter's; in the reference it is learned from the samples before the window.
        let (mut found_rest, mut reference_rest) = (without_error(found), without_error(reference));
        (found_rest.idle_uj, reference_rest.idle_uj) = (None, None);
        assert_eq!(found_rest, reference_rest, "{context}");
        assert_eq!(found.error_uj.is_some(), reference.error_uj.is_some(), "{context}");
        assert!(found.error_uj <= reference.error_uj, "{context}: {found:?} {reference:?}");
    }

    #[test]
    fn the_selected_samples_give_the_energy_of_all_and_no_larger_error() {
        let (mut known, mut with_gap) = (0, 0);
        for seed in 0..200 {
            let mut random = Random(seed);
            let machine = Machine::new(&mut random, 2500, seed % 2 == 1, false);
            for _ in 0..8 {
                let (from_ns, to_ns) = machine.random_window(&mut random);
                let found = machine.account(from_ns, to_ns, machine.selected(from_ns, to_ns).into_iter());
                let reference = machine.replayed(from_ns, to_ns);
                let context = format!("seed {seed}, window {from_ns} to {to_ns}");
                assert_eq!(found.domains.len(), reference.domains.len());
                for ((found, reference), counter) in
                    found.domains.iter().zip(&reference.domains).zip(&machine.counters)
                {
                    assert_no_worse(found, reference, &context);
                    with_gap += usize::from(found.unknown_ns > 0);
                    let Some((window_uj, error_uj)) = found.window_uj.zip(found.error_uj) else { continue };
                    let truth_uj = counter.energy_at(to_ns) - counter.energy_at(from_ns);
                    let drift_uj = truth_uj * counter.uncertainty_per_mille / 1000;
                    assert!(window_uj.abs_diff(truth_uj) <= error_uj + 1 + drift_uj, "{context}: {found:?}");
                    known += 1;
                }
                assert_eq!(found.window_uj, reference.window_uj, "{context}");
            }
        }
        assert!(known > 500 && with_gap > 500, "{known} known, {with_gap} with a gap");
    }

    #[test]
    fn the_shape_of_the_steps_at_both_ends_is_selected() {
        let mut shaped = 0;
        for seed in 0..200 {
            let mut random = Random(seed);
            // The reference has room for the shape of 512 samples.
            let mut machine = Machine::new(&mut random, 500, false, true);
            if machine.counters.iter().any(|counter| counter.period_ns > 25 * MS) {
                continue;
            }
            let (from_ns, to_ns) = machine.random_window(&mut random);
            let selected = machine.selected(from_ns, to_ns);
            let found = machine.account(from_ns, to_ns, selected.clone().into_iter());
            let reference = machine.replayed(from_ns, to_ns);
            for (found, reference) in found.domains.iter().zip(&reference.domains) {
                assert_no_worse(found, reference, &format!("seed {seed}"));
            }
            machine.moves.iter_mut().for_each(|moves| moves.has_shape = false);
            shaped += usize::from(machine.selected(from_ns, to_ns) != selected);
        }
        assert!(shaped > 20, "{shaped}");
    }

    #[test]
    fn a_long_window_needs_as_few_samples_as_a_short_one() {
        let mut random = Random(5);
        let mut machine = Machine::new(&mut random, 4000, false, false);
        while machine.counters.iter().any(|counter| counter.period_ns > 3 * MS)
            || machine.ring.capacity() < 4000
        {
            machine = Machine::new(&mut random, 4000, false, false);
        }
        let count = |from_ns, to_ns| machine.selected(from_ns, to_ns).len();
        let (short, long) = (count(500 * MS, 540 * MS), count(500 * MS, 3_000 * MS));
        assert!(short.max(long) < 120 && long <= short + 40, "{short} {long}");
    }
}
