//! When to read a source: after each edge, around the counter update that follows it, and around an update every 20 ms,
//! less often where no edge comes for seconds. Where another edge is likely soon, also before each update until then.
//!
//! A read carries information beside an edge and beside a counter update, and little elsewhere. The schedule is
//! possible where the phase of each counter that moves is known; otherwise the source keeps its fixed rate. Nothing
//! here reads a clock or waits, and no bound rests on a phase: a wrong one costs precision, never correctness.

use crate::domain::{Domain, EnergyReading, Grade};
use crate::ring::Sample;

use super::counter_profile::{PhaseLock, UpdatePhase};

/// While spans are open, an update of each counter is bracketed at least this often in the first second after an edge.
pub const PAIR_INTERVAL_NS: u64 = 20_000_000;

/// Later the distance is this part of the time since the edge, up to [`QUIET_PAIR_INTERVAL_NS`] after ten seconds: an edge
/// has reads of its own, so that pairs far from edges serve accounts so far alone.
const QUIET_DIVISOR: u64 = 50;
const QUIET_PAIR_INTERVAL_NS: u64 = 200_000_000;

/// A read this short before an edge serves for the edge, unless the counter moved between them.
pub const EDGE_SPACING_NS: u64 = 100_000;

/// Above this uncertainty a third read, at the expected update, narrows the phase.
const NARROW_NS: u64 = 10_000;

/// An edge this soon after another one is expected again where edges followed each other like this before. Until then a
/// read before each update shows that the update is not older: the energy since it is bounded by the ceiling at the
/// edge, which would otherwise lie up to 20 ms after the last read before the update.
const WATCH_NS: u64 = 8_000_000;

/// The distance of a read from the expected update beyond the uncertainty: the time that a read takes, and after an
/// update its way to the reader. The read before the update is earlier by the usual lateness of a thread as well.
const READ_MARGIN_NS: u64 = 15_000;
const LATENESS_MARGIN_NS: u64 = 25_000;

/// A counter that has not moved for this long needs no reads of its own.
const STILL_NS: u64 = 1_000_000_000;

/// No time between two reads is longer than this.
const MAX_GAP_NS: u64 = 1_000_000_000;

/// With more edges than this in [`EDGE_WINDOW_NS`] (250 per second) the fixed rate takes fewer reads.
const MAX_EDGES_PER_WINDOW: u64 = 16;
const EDGE_WINDOW_NS: u64 = 64_000_000;

/// The schedule of reads of one source.
pub struct ReadSchedule {
    domains: Box<[DomainSchedule]>,
    /// Whether the kind of the source allows a schedule by edges.
    is_eligible: bool,
    /// For each domain, what the first valid read showed; empty once one has moved since.
    unmoved: Vec<Option<(u32, u64)>>,
    /// The start of the first and of the newest read.
    first_read_ns: Option<u64>,
    last_read_ns: u64,
    edge_rate: EdgeRate,
    edge_succession: EdgeSuccession,
}

struct DomainSchedule {
    lock: PhaseLock,
    /// The update around which the next reads are planned.
    planned_ns: u64,
    /// The newest planned update that a read followed.
    bracketed_ns: u64,
}

/// The number of edges within a window of time.
#[derive(Default)]
struct EdgeRate {
    window_start_ns: u64,
    edges_at_start: u64,
    is_high: bool,
}

impl EdgeRate {
    /// Records that `edges` edges have come in total by `now_ns`.
    fn observe(&mut self, edges: u64, now_ns: u64) {
        let in_window = edges.saturating_sub(self.edges_at_start);
        let is_over = now_ns.saturating_sub(self.window_start_ns) >= EDGE_WINDOW_NS;
        if is_over || in_window > MAX_EDGES_PER_WINDOW {
            self.is_high = in_window > MAX_EDGES_PER_WINDOW;
        }
        if is_over {
            (self.window_start_ns, self.edges_at_start) = (now_ns, edges);
        }
    }
}

/// How often an edge soon follows another one.
struct EdgeSuccession {
    newest_ns: u64,
    /// Whether each of the two newest edges followed the one before it soon: a bit for each, the newest one the lowest. It
    /// distinguishes the opening of a request, the mark at its first token, and its close.
    context: usize,
    /// For each context, how often another edge followed soon; up to [`Self::ALWAYS`].
    followed: [u32; 4],
}

impl Default for EdgeSuccession {
    fn default() -> Self {
        Self { newest_ns: 0, context: 0, followed: [Self::ALWAYS; 4] }
    }
}

impl EdgeSuccession {
    const ALWAYS: u32 = 64;

    /// Records the newest edge.
    fn observe(&mut self, edge_ns: u64) {
        if edge_ns <= self.newest_ns {
            return;
        }
        let is_soon = edge_ns - self.newest_ns <= WATCH_NS;
        let followed = &mut self.followed[self.context];
        *followed -= *followed / 4;
        *followed += if is_soon { Self::ALWAYS / 4 } else { 0 };
        (self.newest_ns, self.context) = (edge_ns, (self.context << 1 | usize::from(is_soon)) & 0b11);
    }

    /// Until when another edge is likely: more than one in four of such edges was followed by one.
    fn likely_until_ns(&self) -> u64 {
        let is_likely = self.followed[self.context] > Self::ALWAYS / 4;
        if is_likely { self.newest_ns.saturating_add(WATCH_NS) } else { 0 }
    }
}

/// How often an update of each counter is bracketed while spans are open and the newest edge is this old.
pub fn pair_interval_ns(since_edge_ns: u64) -> u64 {
    (since_edge_ns / QUIET_DIVISOR).clamp(PAIR_INTERVAL_NS, QUIET_PAIR_INTERVAL_NS)
}

/// What the next read is for.
#[derive(Debug, Clone, Copy)]
pub struct ReadDemand {
    /// An update of each counter is bracketed at least this often.
    pub pair_interval_ns: u64,
    /// The distance of reads while edges are more frequent than reads by edges are useful for.
    pub dense_interval_ns: u64,
    /// The newest edge; 0: none.
    pub edge_ns: u64,
}

impl ReadSchedule {
    /// A schedule for a source with these domains.
    pub fn new(domains: &[Domain]) -> Self {
        // Sampled power has to be read at its own rate. Without a ceiling the energy between an edge and the next read
        // has no bound.
        let eligible = |domain: &Domain| {
            matches!(domain.grade, Grade::Measured | Grade::Modelled) && domain.ceiling_mw.is_some()
        };
        Self {
            is_eligible: !domains.is_empty() && domains.iter().all(eligible),
            domains: domains
                .iter()
                .map(|_| DomainSchedule { lock: PhaseLock::default(), planned_ns: 0, bracketed_ns: 0 })
                .collect(),
            unmoved: vec![None; domains.len()],
            first_read_ns: None,
            last_read_ns: 0,
            edge_rate: EdgeRate::default(),
            edge_succession: EdgeSuccession::default(),
        }
    }

    /// With what discovery has seen of the counters before: whether each has advanced.
    #[must_use]
    pub fn with_advanced(mut self, advanced: &[bool]) -> Self {
        if advanced.contains(&true) {
            self.unmoved.clear();
        }
        self
    }

    /// Whether a counter was read and none has ever moved.
    pub fn is_unmoved(&self) -> bool {
        self.unmoved.iter().any(Option::is_some)
    }

    /// Records a read. Reads come in the order of time.
    pub fn observe(&mut self, sample: &Sample) {
        let has_moved = |(first, reading): (&mut Option<(u32, u64)>, &EnergyReading)| {
            let shown = (reading.epoch, reading.energy_uj);
            reading.valid && *first.get_or_insert(shown) != shown
        };
        if self.unmoved.iter_mut().zip(&sample.readings).any(has_moved) {
            self.unmoved.clear();
        }
        if !self.is_eligible {
            self.last_read_ns = sample.before_ns;
            return;
        }
        for (domain, reading) in self.domains.iter_mut().zip(&sample.readings) {
            // An integral of sampled power beside the counter needs a fixed rate.
            self.is_eligible &= reading.shape_uj == 0;
            domain.lock.observe(sample.before_ns, sample.after_ns, reading);
            domain.record_bracket(sample.before_ns);
        }
        self.first_read_ns.get_or_insert(sample.before_ns);
        self.last_read_ns = sample.before_ns;
    }

    /// The start of the newest read.
    pub fn last_read_ns(&self) -> u64 {
        self.last_read_ns
    }

    /// Records the total number of edges by `now_ns`.
    pub fn observe_edges(&mut self, edges: u64, now_ns: u64) {
        self.edge_rate.observe(edges, now_ns);
    }

    /// Whether edges are so frequent that they get no reads of their own.
    pub fn is_dense(&self) -> bool {
        self.edge_rate.is_high
    }

    /// Whether the phases are known well enough to read at edges and around updates only.
    pub fn is_edge_driven(&self, now_ns: u64) -> bool {
        let (mut any_locked, mut all_known) = (false, true);
        for domain in &self.domains {
            let is_locked = domain.lock.phase(now_ns).is_some();
            any_locked |= is_locked;
            all_known &= is_locked || self.is_still(domain, now_ns);
        }
        self.is_eligible && any_locked && all_known
    }

    /// Whether a time of frequent reads may find the phase of a counter that moves.
    pub fn needs_survey(&self, now_ns: u64) -> bool {
        let is_unknown = |domain: &DomainSchedule| {
            domain.lock.phase(now_ns).is_none() && !domain.lock.is_stalled() && !self.is_still(domain, now_ns)
        };
        self.is_eligible && self.domains.iter().any(is_unknown)
    }

    /// The largest jitter of the domains' updates; `None` where no phase is known.
    pub fn jitter_ns(&self) -> Option<u64> {
        self.domains.iter().filter_map(|domain| domain.lock.jitter_ns()).max()
    }

    /// Whether the counters have to be read for an edge at `edge_ns`: the last read is too old, or a counter moved
    /// since.
    pub fn needs_edge_read(&self, edge_ns: u64) -> bool {
        let Some(elapsed_ns) = edge_ns.checked_sub(self.last_read_ns) else { return false };
        elapsed_ns > EDGE_SPACING_NS
            || self.phases(edge_ns).any(|(_, phase)| {
                let uncertainty_ns = phase.uncertainty_ns;
                phase.first_after(self.last_read_ns.saturating_sub(uncertainty_ns))
                    <= edge_ns + uncertainty_ns
            })
    }

    /// The instant of the next read; `None` where the source is read at its fixed rate.
    pub fn next_read_ns(&mut self, now_ns: u64, demand: &ReadDemand) -> Option<u64> {
        if !self.is_edge_driven(now_ns) {
            return None;
        }
        let max_gap_ns = if self.is_dense() { demand.dense_interval_ns } else { MAX_GAP_NS };
        let latest_ns = self.last_read_ns.saturating_add(max_gap_ns);
        let edge_ns = Some(demand.edge_ns).filter(|&edge_ns| edge_ns != 0 && !self.is_dense());
        let edge_read_ns = edge_ns.filter(|&edge_ns| self.needs_edge_read(edge_ns)).unwrap_or(u64::MAX);
        self.edge_succession.observe(demand.edge_ns);
        let watched_until_ns = edge_ns.map_or(0, |_| self.edge_succession.likely_until_ns());
        let mut next_ns = latest_ns.min(edge_read_ns);
        for domain in &mut self.domains {
            if let Some(phase) = domain.lock.phase(now_ns) {
                let read_ns =
                    domain.next_read_ns(self.last_read_ns, &phase, demand.pair_interval_ns, edge_ns);
                next_ns = next_ns.min(read_ns);
                if self.last_read_ns < watched_until_ns {
                    let watch_ns = watch_read_ns(&phase, self.last_read_ns);
                    next_ns = if watch_ns < watched_until_ns { next_ns.min(watch_ns) } else { next_ns };
                }
            }
        }
        Some(next_ns)
    }

    fn phases(&self, now_ns: u64) -> impl Iterator<Item = (&DomainSchedule, UpdatePhase)> {
        self.domains.iter().filter_map(move |domain| Some((domain, domain.lock.phase(now_ns)?)))
    }

    fn is_still(&self, domain: &DomainSchedule, now_ns: u64) -> bool {
        let since_ns = domain.lock.last_move_ns().or(self.first_read_ns).unwrap_or(now_ns);
        now_ns.saturating_sub(since_ns) > STILL_NS
    }
}

/// The distance of the read after an update from the expected instant.
fn guard_ns(phase: &UpdatePhase) -> u64 {
    phase.uncertainty_ns + READ_MARGIN_NS
}

/// The distance of the read before an update from the expected instant.
fn ahead_ns(phase: &UpdatePhase) -> u64 {
    guard_ns(phase) + LATENESS_MARGIN_NS
}

/// The first instant of a read before an update that is later than the last read.
fn watch_read_ns(phase: &UpdatePhase, last_read_ns: u64) -> u64 {
    let ahead_ns = ahead_ns(phase);
    phase.first_after(last_read_ns + ahead_ns).saturating_sub(ahead_ns).max(last_read_ns + 1)
}

impl DomainSchedule {
    /// Records that a read followed the planned update. A late read counts too: it is not repeated at the next update.
    fn record_bracket(&mut self, read_ns: u64) {
        // An update that did not come is late or the last one before a stop: the next ones show which.
        let Some(phase) = self.lock.phase(read_ns).filter(|_| !self.lock.is_overdue()) else { return };
        if self.planned_ns.saturating_add(phase.uncertainty_ns) <= read_ns {
            self.bracketed_ns = self.bracketed_ns.max(self.planned_ns);
        }
    }

    /// The next of the reads around the first update that has to be bracketed.
    fn next_read_ns(
        &mut self,
        last_read_ns: u64,
        phase: &UpdatePhase,
        pair_interval_ns: u64,
        edge_ns: Option<u64>,
    ) -> u64 {
        let pair_interval_ns = pair_interval_ns.min(phase.hold_ns);
        let periodic_ns =
            self.bracketed_ns.saturating_add(pair_interval_ns).saturating_sub(phase.interval_ns as u64);
        let pending_edge_ns = edge_ns.filter(|&edge_ns| !self.lock.has_moved_after(edge_ns));
        let from_ns =
            pending_edge_ns.map_or(periodic_ns, |edge_ns| edge_ns.min(periodic_ns)).max(last_read_ns);
        let guard_ns = guard_ns(phase);
        let update_ns = phase.first_after(from_ns.saturating_sub(guard_ns));
        self.planned_ns = update_ns;
        let before_ns = update_ns.saturating_sub(ahead_ns(phase));
        let after_ns = update_ns + guard_ns;
        if last_read_ns < before_ns {
            before_ns
        } else if last_read_ns < update_ns && phase.uncertainty_ns > NARROW_NS {
            update_ns
        } else {
            after_ns
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::DomainKind;

    const US: u64 = 1_000;
    const MS: u64 = 1_000_000;
    const SECOND: u64 = 1_000_000_000;

    /// A simulated source and its schedule.
    struct TestSource {
        schedule: ReadSchedule,
        /// The update interval and the first update of each counter.
        counters: Vec<(u64, u64)>,
        now_ns: u64,
        reads: u64,
    }

    fn domain(grade: Grade, ceiling_mw: Option<u64>) -> Domain {
        Domain {
            name: "package-0".into(),
            kind: DomainKind::Package,
            source: "simulated".into(),
            device: None,
            parent: None,
            grade,
            ceiling_mw,
            latency_ns: 0,
            quantum_uj: 1,
        }
    }

    impl TestSource {
        /// A source after a survey of 300 ms with four reads per update.
        fn surveyed(counters: &[(u64, u64)]) -> Self {
            let domains: Vec<Domain> =
                counters.iter().map(|_| domain(Grade::Measured, Some(300_000))).collect();
            let mut source = Self {
                schedule: ReadSchedule::new(&domains),
                counters: counters.to_vec(),
                now_ns: 10 * SECOND,
                reads: 0,
            };
            for _ in 0..1_200 {
                source.read_at(source.now_ns + 250 * US);
            }
            source.reads = 0;
            source
        }

        fn read_at(&mut self, at_ns: u64) {
            self.now_ns = at_ns;
            self.reads += 1;
            let energy_uj = |(interval_ns, first_ns)| (at_ns - first_ns) / interval_ns * 50_000;
            let reading = |&counter| EnergyReading {
                valid: true,
                energy_uj: energy_uj(counter),
                ..EnergyReading::default()
            };
            self.schedule.observe(&Sample {
                before_ns: at_ns,
                after_ns: at_ns + 2 * US,
                readings: self.counters.iter().map(reading).collect(),
            });
        }

        fn next_read_ns(&mut self, edge_ns: u64) -> Option<u64> {
            let pair_interval_ns = match edge_ns {
                0 => PAIR_INTERVAL_NS,
                _ => pair_interval_ns(self.now_ns.saturating_sub(edge_ns)),
            };
            let demand = ReadDemand { pair_interval_ns, dense_interval_ns: MS, edge_ns };
            self.schedule.next_read_ns(self.now_ns, &demand)
        }

        /// Reads by the schedule until `until_ns`; returns the instants.
        fn run_until(&mut self, until_ns: u64, edge_ns: u64) -> Vec<u64> {
            let mut reads = Vec::new();
            loop {
                let next_ns = self.next_read_ns(edge_ns).expect("a schedule by edges").max(self.now_ns + US);
                if next_ns > until_ns {
                    self.now_ns = until_ns;
                    return reads;
                }
                self.read_at(next_ns);
                reads.push(next_ns);
            }
        }

        /// Whether a read lies within `distance_ns` on either side of an update in a range.
        fn brackets(&self, reads: &[u64], counter: usize, range: (u64, u64), distance_ns: u64) -> bool {
            let (interval_ns, first_ns) = self.counters[counter];
            let mut update_ns = first_ns + (range.0 - first_ns).div_ceil(interval_ns) * interval_ns;
            while update_ns < range.1 {
                let before = reads.iter().any(|&at_ns| at_ns < update_ns && update_ns - at_ns <= distance_ns);
                let after = reads.iter().any(|&at_ns| at_ns >= update_ns && at_ns - update_ns <= distance_ns);
                if before && after {
                    return true;
                }
                update_ns += interval_ns;
            }
            false
        }
    }

    #[test]
    fn without_edges_an_update_is_bracketed_every_20_ms_by_few_reads() {
        for interval_ns in [976_600, 1_000_000, 1_003_000] {
            let mut source = TestSource::surveyed(&[(interval_ns, 3 * SECOND + 337 * US)]);
            source.run_until(11 * SECOND, 0);
            source.reads = 0;
            let reads = source.run_until(12 * SECOND, 0);
            assert!((98..=170).contains(&source.reads), "{} reads in 1 s", source.reads);
            for from_ns in (11 * SECOND..11 * SECOND + 970 * MS).step_by(7 * MS as usize) {
                let range = (from_ns, from_ns + 23 * MS);
                assert!(source.brackets(&reads, 0, range, 150 * US), "{range:?} of {interval_ns}");
            }
        }
    }

    #[test]
    fn without_edges_the_pairs_become_rare_and_the_next_edge_has_its_reads() {
        let mut source = TestSource::surveyed(&[(976_600, 3 * SECOND + 337 * US)]);
        let mut last_edge_ns = source.now_ns;
        for (second, least, most) in [(0, 98, 170), (5, 16, 30), (12, 8, 16), (60, 8, 16)] {
            source.run_until(last_edge_ns + second * SECOND, last_edge_ns);
            source.reads = 0;
            source.run_until(source.now_ns + SECOND, last_edge_ns);
            assert!((least..=most).contains(&source.reads), "{} reads in second {second}", source.reads);
        }
        for _ in 0..5 {
            let edge_ns = source.now_ns + 12 * SECOND + 345_678;
            source.run_until(edge_ns, last_edge_ns);
            last_edge_ns = edge_ns;
            let reads = source.run_until(edge_ns + 2 * MS, edge_ns);
            assert!(reads[0] <= edge_ns + 2 * US, "{reads:?} after {edge_ns}");
            assert!(source.brackets(&reads, 0, (edge_ns, edge_ns + 2 * MS), 150 * US), "{reads:?}");
        }
    }

    #[test]
    fn an_edge_is_followed_by_a_read_and_a_bracket_of_the_next_update() {
        let mut source = TestSource::surveyed(&[(976_600, 3 * SECOND + 337 * US)]);
        source.run_until(11 * SECOND, 0);
        for nth in 0..200 {
            let edge_ns = 11 * SECOND + nth * 31_234_567;
            source.run_until(edge_ns, 0);
            source.reads = 0;
            let reads = source.run_until(edge_ns + 2 * MS, edge_ns);
            assert!(source.reads <= 6, "{reads:?} for an edge at {edge_ns}");
            let recent = source.schedule.domains[0].lock.has_moved_after(edge_ns);
            assert!(
                recent,
                "the update after the edge was seen after two intervals: {reads:?} after {edge_ns}"
            );
        }
    }

    /// Edges in pairs of `near_ns`, each pair `far_ns` after the one before. Returns the reads per pair and how many of
    /// the second edges had a read shortly before the last update, both after some pairs to learn from.
    fn reads_and_bounded_edges(near_ns: u64, far_ns: u64) -> (f64, u64) {
        const PAIRS: u64 = 100;
        let mut source = TestSource::surveyed(&[(976_600, 3 * SECOND + 337 * US)]);
        let (mut last_edge_ns, mut bounded, mut extra_reads) = (0, 0, 0);
        for pair in 0..PAIRS + 10 {
            let first_ns = 10 * SECOND + 500 * MS + pair * (far_ns + near_ns);
            source.run_until(first_ns, last_edge_ns);
            source.reads = 0;
            let reads = source.run_until(first_ns + near_ns, first_ns);
            last_edge_ns = first_ns + near_ns;
            let (interval_ns, phase_ns) = source.counters[0];
            let update_ns = phase_ns + (last_edge_ns - phase_ns) / interval_ns * interval_ns;
            let is_bounded = reads.iter().any(|&at_ns| at_ns < update_ns && update_ns - at_ns <= 150 * US);
            if pair >= 10 {
                (bounded, extra_reads) = (bounded + u64::from(is_bounded), extra_reads + source.reads);
            }
        }
        (extra_reads as f64 / PAIRS as f64, bounded)
    }

    #[test]
    fn where_edges_come_in_pairs_the_update_before_the_second_has_a_read_before_it() {
        let (reads, bounded) = reads_and_bounded_edges(5_300 * US, 113 * MS);
        assert!(bounded >= 95, "{bounded} of 100");
        assert!(reads < 10.0, "{reads} reads in 5.3 ms");
    }

    #[test]
    fn where_a_close_follows_a_mark_late_there_are_no_reads_for_an_edge_after_it() {
        let mut source = TestSource::surveyed(&[(976_600, 3 * SECOND + 337 * US)]);
        let (mut last_edge_ns, mut after_open, mut after_close) = (0, 0, 0);
        for request in 0..60 {
            // The first token comes after 6.3 ms, the end of the reply after 80 ms.
            for (nth, offset_ns) in [0, 6_300 * US, 80 * MS].into_iter().enumerate() {
                let edge_ns = 10 * SECOND + 500 * MS + request * 391_700 * US + offset_ns;
                source.run_until(edge_ns, last_edge_ns);
                source.reads = 0;
                source.run_until(edge_ns + 6 * MS, edge_ns);
                last_edge_ns = edge_ns;
                if request >= 20 {
                    after_open += if nth == 0 { source.reads } else { 0 };
                    after_close += if nth == 2 { source.reads } else { 0 };
                }
            }
        }
        assert!(after_open >= 40 * 5, "{after_open} reads in 40 times 6 ms");
        assert!(after_close <= 40 * 4, "{after_close} reads in 40 times 6 ms");
    }

    #[test]
    fn where_no_edge_comes_soon_there_are_no_reads_for_one() {
        let (reads, bounded) = reads_and_bounded_edges(62 * MS, 63 * MS);
        assert!(reads < 14.0 && bounded < 40, "{reads} reads in 62 ms, {bounded} of 100");
    }

    #[test]
    fn counters_with_phases_of_their_own_are_bracketed_each() {
        let counters = [(1_000_000, 3 * SECOND + 100 * US), (1_000_000, 3 * SECOND + 600 * US)];
        let mut source = TestSource::surveyed(&counters);
        source.run_until(11 * SECOND, 0);
        let edge_ns = 11 * SECOND + 300 * US;
        let reads = source.run_until(edge_ns + 2 * MS, edge_ns);
        for counter in 0..2 {
            assert!(
                source.brackets(&reads, counter, (edge_ns, edge_ns + 2 * MS), 150 * US),
                "{counter}: {reads:?}"
            );
        }
    }

    #[test]
    fn an_old_read_does_not_serve_for_an_edge_and_a_recent_one_does() {
        let mut source = TestSource::surveyed(&[(MS, 3 * SECOND + 337 * US)]);
        source.run_until(11 * SECOND, 0);
        source.read_at(11 * SECOND + 500 * US);
        assert!(!source.schedule.needs_edge_read(11 * SECOND + 500 * US + EDGE_SPACING_NS));
        assert!(source.schedule.needs_edge_read(11 * SECOND + 501 * US + EDGE_SPACING_NS));
        source.read_at(11 * SECOND + 1_300 * US);
        assert!(source.schedule.needs_edge_read(11 * SECOND + 1_338 * US), "the counter moves in between");
    }

    #[test]
    fn with_many_edges_the_reads_keep_to_the_fixed_distance() {
        let mut source = TestSource::surveyed(&[(MS, 3 * SECOND + 337 * US)]);
        for edge in 0..100 {
            source.schedule.observe_edges(edge, source.now_ns + edge * MS);
        }
        assert!(source.schedule.is_dense());
        let from_ns = source.now_ns;
        source.run_until(from_ns + SECOND, from_ns);
        assert!((1_000..=1_250).contains(&source.reads), "{} reads", source.reads);
    }

    #[test]
    fn at_rest_a_pair_a_second_keeps_the_phase() {
        let mut source = TestSource::surveyed(&[(MS, 3 * SECOND + 337 * US)]);
        source.run_until(11 * SECOND, 0);
        source.reads = 0;
        let demand = ReadDemand { pair_interval_ns: SECOND, dense_interval_ns: MS, edge_ns: 0 };
        while source.now_ns < 41 * SECOND {
            let next_ns = source.schedule.next_read_ns(source.now_ns, &demand).expect("the phase is kept");
            assert!(next_ns <= source.schedule.last_read_ns + SECOND);
            source.read_at(next_ns.max(source.now_ns + US));
        }
        assert!(source.reads <= 110, "{} reads in 30 s", source.reads);
    }

    #[test]
    fn a_counter_that_stops_brings_the_fixed_rate_and_one_that_rests_needs_no_reads() {
        let counters = [(MS, 3 * SECOND + 100 * US), (MS, 3 * SECOND + 600 * US)];
        let mut source = TestSource::surveyed(&counters);
        source.run_until(11 * SECOND, 0);
        // The second counter stays where it is.
        source.counters[1] = (SECOND * 1_000_000, 0);
        let stopped_ns = source.now_ns;
        let mut fixed_reads = 0;
        while source.now_ns < stopped_ns + 2 * SECOND {
            let fixed_ns = source.now_ns + MS;
            let next_ns = source.next_read_ns(0);
            fixed_reads += u64::from(next_ns.is_none());
            source.read_at(next_ns.unwrap_or(fixed_ns).max(source.now_ns + US));
        }
        assert!((900..1_100).contains(&fixed_reads), "{fixed_reads} reads at the fixed rate, for a second");
        assert!(source.next_read_ns(0).is_some(), "the first counter's phase is known and the second rests");
    }

    #[test]
    fn sampled_power_and_an_unknown_ceiling_keep_the_fixed_rate() {
        for (grade, ceiling_mw, shape_uj) in [
            (Grade::Integrated, Some(300_000), 0),
            (Grade::Measured, None, 0),
            (Grade::Measured, Some(300_000), 1),
        ] {
            let mut source = TestSource::surveyed(&[(MS, 3 * SECOND)]);
            assert!(source.schedule.is_edge_driven(source.now_ns));
            source.schedule = ReadSchedule::new(&[domain(grade, ceiling_mw)]);
            for read in 0..1_200 {
                let at_ns = source.now_ns + read * 250 * US;
                let reading = EnergyReading {
                    valid: true,
                    energy_uj: at_ns / MS * 50_000,
                    shape_uj,
                    ..EnergyReading::default()
                };
                source.schedule.observe(&Sample {
                    before_ns: at_ns,
                    after_ns: at_ns,
                    readings: vec![reading],
                });
            }
            let now_ns = source.now_ns + 300 * MS;
            assert!(!source.schedule.is_edge_driven(now_ns) && !source.schedule.needs_survey(now_ns));
        }
    }
}
