//! A short test at discovery: which counters advance, and which pairs may be one counter.
//!
//! A counter may be stuck (cloud machines show a `psys` that always reads 0), and two names may show one counter
//! (`package-0-die-0` and `-die-1` of a Threadripper). The probe is a busy loop on the calling thread, or sleeps where a
//! command that is started next must not wait for it. It ends when all questions are decided, or with the first read after
//! `MAX_PROBE_NS`. The sampler's readings decide the remaining pairs, and whether a counter advances under the command's load.

use std::collections::BTreeSet;
use std::hint::spin_loop;
use std::thread;
use std::time::Duration;

use crate::clock::monotonic_ns;
use crate::domain::{Domain, Duplicate, EnergyReading, Grade};

use super::dedup::cross_check::{CrossCheck, Disagreement};
use super::dedup::duplicate_pair::DuplicatePair;
use super::source::{DomainIndex, OpenedSource};
use super::source_settings::{ProbeLoad, reads_rapl};

/// The time from the end of the first read to the begin of the last one. A domain that has not advanced by then is stuck.
const MAX_PROBE_NS: u64 = 40_000_000;

/// Time between two reads: several reads per update of a RAPL counter, which is about one millisecond.
const READ_INTERVAL_NS: u64 = 200_000;

/// Time after which a RAPL counter that has not advanced is stuck, without load. It is updated about each millisecond
/// (Intel SDM, volume 3B, 16.10), and the idle power of a package or of memory is hundreds of its units in this time.
const RAPL_TIMEOUT_NS: u64 = 5_000_000;

/// Time between two reads after that, without load: only counters with larger intervals are left.
const SLOW_READ_INTERVAL_NS: u64 = 2_000_000;

/// A counter with a larger step may need longer.
const MAX_RAPL_QUANTUM_UJ: u64 = 1_000;

/// Time after which a live integral has advanced.
const MIN_READS: u32 = 4;

/// Number of reads between two evaluations of the pairs.
const READS_PER_DECISION: u32 = 8;

/// Two domains that may show one counter.
#[derive(Debug)]
pub struct DuplicateCandidate {
    pub original: DomainIndex,
    pub copy: DomainIndex,
    /// The comparison of the two.
    pub pair: DuplicatePair,
}

#[derive(Debug, Default)]
pub struct ProbeResult {
    /// Domains that may be two names of one counter.
    pub candidates: Vec<DuplicateCandidate>,
    /// Mechanisms that show different energy for the same domain.
    pub disagreements: Vec<Disagreement>,
}

/// The time of a probe, which a test scripts.
trait ProbeTime {
    fn now_ns(&self) -> u64;
    /// Waits between two reads.
    fn pause(&self, load: ProbeLoad, ns: u64);
}

struct MachineTime;

impl ProbeTime for MachineTime {
    fn now_ns(&self) -> u64 {
        monotonic_ns()
    }

    fn pause(&self, load: ProbeLoad, ns: u64) {
        match load {
            ProbeLoad::BusyLoop => spin(ns),
            ProbeLoad::Background => thread::sleep(Duration::from_nanos(ns)),
        }
    }
}

/// Reads all domains, fills [`OpenedSource::advanced`] and compares domains. `packages`: the physical packages that the
/// kernel lists.
pub fn probe_domains(opened: &mut [OpenedSource], packages: &BTreeSet<u32>, load: ProbeLoad) -> ProbeResult {
    probe_in_time(opened, packages, load, &MachineTime)
}

fn probe_in_time(
    opened: &mut [OpenedSource],
    packages: &BTreeSet<u32>,
    load: ProbeLoad,
    time: &impl ProbeTime,
) -> ProbeResult {
    if opened.is_empty() {
        return ProbeResult::default();
    }
    let mut latest = LatestReadings::new(opened);
    let mut questions = ProbeQuestions::new(opened, packages);
    let mut first_read_ns = None;
    for read in 1.. {
        let begin_ns = time.now_ns();
        latest.read_all(opened, time);
        // Up to the begin of this read: whatever delays the thread between two reads, the last one is late enough.
        let elapsed_ns = begin_ns.saturating_sub(*first_read_ns.get_or_insert_with(|| time.now_ns()));
        questions.observe(&latest);
        if read % READS_PER_DECISION == 0 {
            questions.candidates.iter_mut().for_each(|candidate| candidate.pair.evaluate());
        }
        let is_decided = match load {
            ProbeLoad::BusyLoop => questions.are_decided(),
            ProbeLoad::Background => questions.may_be_left_to_sampler(elapsed_ns),
        };
        if (read >= MIN_READS && is_decided) || elapsed_ns >= MAX_PROBE_NS {
            break;
        }
        let interval_ns = match load {
            ProbeLoad::BusyLoop => READ_INTERVAL_NS,
            ProbeLoad::Background => questions.background_interval_ns(elapsed_ns),
        };
        time.pause(load, interval_ns);
    }
    for domain in &questions.probed {
        opened[domain.index.0].advanced[domain.index.1] = domain.has_moved;
    }
    let disagreements = questions.agreement.disagreements(opened);
    ProbeResult { candidates: questions.candidates, disagreements }
}

/// The latest reading of each domain, and the window of each source's read.
struct LatestReadings {
    readings: Vec<Vec<EnergyReading>>,
    windows_ns: Vec<(u64, u64)>,
}

impl LatestReadings {
    fn new(opened: &[OpenedSource]) -> Self {
        let of_source = |source: &OpenedSource| vec![EnergyReading::default(); source.domains.len()];
        Self { readings: opened.iter().map(of_source).collect(), windows_ns: vec![(0, 0); opened.len()] }
    }

    fn read_all(&mut self, opened: &mut [OpenedSource], time: &impl ProbeTime) {
        let latest = self.readings.iter_mut().zip(&mut self.windows_ns);
        for (source, (readings, window_ns)) in opened.iter_mut().zip(latest) {
            let before_ns = time.now_ns();
            source.source.read(readings);
            *window_ns = (before_ns, time.now_ns());
        }
    }

    fn reading(&self, (source, domain): DomainIndex) -> &EnergyReading {
        &self.readings[source][domain]
    }
}

/// What the probe finds out.
struct ProbeQuestions {
    probed: Vec<ProbedDomain>,
    candidates: Vec<DuplicateCandidate>,
    agreement: CrossCheck,
}

impl ProbeQuestions {
    fn new(opened: &[OpenedSource], packages: &BTreeSet<u32>) -> Self {
        Self {
            probed: probed_domains(opened),
            candidates: duplicate_candidates(opened, packages),
            agreement: CrossCheck::new(opened),
        }
    }

    fn observe(&mut self, latest: &LatestReadings) {
        self.probed.iter_mut().for_each(|domain| domain.observe(latest.reading(domain.index)));
        for DuplicateCandidate { original, copy, pair } in &mut self.candidates {
            let (before_ns, after_ns) = latest.windows_ns[original.0];
            pair.observe_original(before_ns, after_ns, latest.reading(*original));
            let (before_ns, after_ns) = latest.windows_ns[copy.0];
            pair.observe_copy(before_ns, after_ns, latest.reading(*copy));
        }
        self.agreement.observe(&latest.readings);
    }

    fn are_decided(&self) -> bool {
        let undecided = |candidate: &DuplicateCandidate| candidate.pair.state() == Duplicate::Undecided;
        self.probed.iter().all(|domain| !domain.is_counter || domain.has_moved)
            && !self.candidates.iter().any(undecided)
            && !self.agreement.needs_more_reads()
    }

    /// Whether the command may start `elapsed_ns` after the first read. A counter that may be updated less often than RAPL
    /// gets the whole time, since its energy would be missing from the total. So does a pair that advances.
    fn may_be_left_to_sampler(&self, elapsed_ns: u64) -> bool {
        let is_known = |domain: &ProbedDomain| {
            !domain.is_counter || domain.has_moved || (domain.is_rapl && elapsed_ns >= RAPL_TIMEOUT_NS)
        };
        self.probed.iter().all(is_known) && !self.has_open_pair()
    }

    /// Whether a pair of counters that advance is undecided.
    fn has_open_pair(&self) -> bool {
        let has_moved = |index| self.probed.iter().any(|domain| domain.index == index && domain.has_moved);
        let is_open = |candidate: &DuplicateCandidate| {
            candidate.pair.state() == Duplicate::Undecided
                && has_moved(candidate.original)
                && has_moved(candidate.copy)
        };
        self.candidates.iter().any(is_open)
    }

    /// The time until the next read without load.
    fn background_interval_ns(&self, elapsed_ns: u64) -> u64 {
        let is_slow = elapsed_ns >= RAPL_TIMEOUT_NS && !self.has_open_pair();
        if is_slow { SLOW_READ_INTERVAL_NS } else { READ_INTERVAL_NS }
    }
}

struct ProbedDomain {
    index: DomainIndex,
    /// Whether it is a counter. An integral advances at once or not at all.
    is_counter: bool,
    is_rapl: bool,
    last: Option<EnergyReading>,
    has_moved: bool,
}

impl ProbedDomain {
    fn observe(&mut self, reading: &EnergyReading) {
        if !reading.valid {
            return;
        }
        let moved = |last: &EnergyReading| reading.epoch == last.epoch && reading.energy_uj > last.energy_uj;
        self.has_moved |= self.last.as_ref().is_some_and(moved);
        self.last = Some(*reading);
    }
}

fn probed_domains(opened: &[OpenedSource]) -> Vec<ProbedDomain> {
    let of = |(nth, source): (usize, &OpenedSource)| {
        let one = move |(at, domain): (usize, &Domain)| ProbedDomain {
            index: (nth, at),
            is_counter: domain.grade != Grade::Integrated,
            // A server's psys counts whole joules and may stand still for longer.
            is_rapl: reads_rapl(&domain.source) && domain.quantum_uj < MAX_RAPL_QUANTUM_UJ,
            last: None,
            has_moved: false,
        };
        source.domains.iter().enumerate().map(one).collect::<Vec<_>>()
    };
    opened.iter().enumerate().flat_map(of).collect()
}

/// All pairs of domains that may show one counter, the earlier domain first.
fn duplicate_candidates(opened: &[OpenedSource], packages: &BTreeSet<u32>) -> Vec<DuplicateCandidate> {
    let domains: Vec<(DomainIndex, &Domain)> = opened
        .iter()
        .enumerate()
        .flat_map(|(nth, source)| {
            source.domains.iter().enumerate().map(move |(at, domain)| ((nth, at), domain))
        })
        .collect();
    let with_later = |(nth, (original, domain)): (usize, &(DomainIndex, &Domain))| {
        let of = |(copy, other): &(DomainIndex, &Domain)| {
            let pair = DuplicatePair::candidate(domain, other, packages)?;
            Some(DuplicateCandidate { original: *original, copy: *copy, pair })
        };
        domains[nth + 1..].iter().filter_map(of).collect::<Vec<_>>()
    };
    domains.iter().enumerate().flat_map(with_later).collect()
}

/// Keeps this CPU busy, so that live counters advance.
fn spin(for_ns: u64) {
    let end_ns = monotonic_ns() + for_ns;
    while monotonic_ns() < end_ns {
        spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use super::*;
    use crate::domain::DomainKind;
    use crate::sources::Source;
    use crate::sources::source_settings::PERF;

    /// A time that only pauses and slow reads advance.
    #[derive(Clone, Default)]
    struct ScriptedTime(Arc<AtomicU64>);

    impl ScriptedTime {
        fn advance(&self, ns: u64) {
            self.0.fetch_add(ns, Ordering::Relaxed);
        }
    }

    impl ProbeTime for ScriptedTime {
        fn now_ns(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }

        fn pause(&self, _: ProbeLoad, ns: u64) {
            self.advance(ns);
        }
    }

    /// Counters of which the first advances at each read, and the second once: this long after its first read.
    struct DelayedSource {
        time: ScriptedTime,
        delay_ns: u64,
        first_ns: Option<u64>,
        reads: Arc<AtomicUsize>,
    }

    impl Source for DelayedSource {
        fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
            let reads = self.reads.fetch_add(1, Ordering::Relaxed) as u64;
            let now_ns = self.time.now_ns();
            let elapsed_ns = now_ns - *self.first_ns.get_or_insert(now_ns);
            let energies = [reads, u64::from(reads > 0 && elapsed_ns >= self.delay_ns)];
            for (energy_uj, reading) in energies.into_iter().zip(into) {
                *reading = EnergyReading { valid: true, energy_uj, ..EnergyReading::default() };
            }
            None
        }
    }

    /// Counters that add the next of their steps at each read, in a loop. A counter with an empty list is stuck.
    struct SteppingSource(Vec<Vec<u64>>, Vec<u64>, usize);

    impl Source for SteppingSource {
        fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
            for ((moves, sum), reading) in self.0.iter().zip(&mut self.1).zip(into) {
                *sum += moves.get(self.2 % moves.len().max(1)).copied().unwrap_or(0);
                *reading = EnergyReading { valid: true, energy_uj: *sum, ..EnergyReading::default() };
            }
            self.2 += 1;
            None
        }
    }

    fn packages(moves: &[&[u64]]) -> Vec<OpenedSource> {
        let domain = |nth: usize| Domain {
            name: format!("package-{nth}"),
            kind: DomainKind::Package,
            source: "test".into(),
            device: None,
            parent: None,
            grade: Grade::Measured,
            ceiling_mw: None,
            latency_ns: 0,
            quantum_uj: 1,
        };
        vec![OpenedSource {
            name: "test",
            source: Box::new(SteppingSource(
                moves.iter().map(|m| m.to_vec()).collect(),
                vec![0; moves.len()],
                0,
            )),
            domains: (0..moves.len()).map(domain).collect(),
            cpu: None,
            max_rate_hz: 1_000.0,
            advanced: vec![false; moves.len()],
        }]
    }

    /// All pairs of the probed domains with their states.
    fn states(opened: &mut [OpenedSource]) -> Vec<(usize, usize, Duplicate)> {
        let time = ScriptedTime::default();
        let result = probe_in_time(opened, &BTreeSet::new(), ProbeLoad::BusyLoop, &time);
        assert!(result.disagreements.is_empty());
        result.candidates.iter().map(|of| (of.original.1, of.copy.1, of.pair.state())).collect()
    }

    #[test]
    fn a_stuck_counter_is_distinguished_from_a_live_one() {
        let mut opened = packages(&[&[5, 6, 7], &[]]);
        states(&mut opened);
        assert_eq!(opened[0].advanced, [true, false]);
    }

    #[test]
    fn counters_that_move_exactly_alike_are_the_same_and_another_is_not() {
        let moves: &[u64] = &[31, 41, 59, 26, 53, 58, 97];
        let mut opened = packages(&[moves, moves, &[27, 18, 28]]);
        use Duplicate::{Independent, Same};
        assert_eq!(states(&mut opened), [(0, 1, Same), (0, 2, Independent), (1, 2, Independent)]);
    }

    #[test]
    fn idle_counters_that_move_by_single_steps_are_undecided() {
        let mut opened = packages(&[&[61, 61, 61, 61, 61, 61, 61, 62], &[61, 61, 61, 61, 61, 61, 61, 62]]);
        assert_eq!(states(&mut opened), [(0, 1, Duplicate::Undecided)]);
    }

    /// A source whose thread stands still for the whole time of the probe after its first read.
    struct LateSource(SteppingSource, ScriptedTime);

    impl Source for LateSource {
        fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
            let window = self.0.read(into);
            if self.0.2 == 1 {
                self.1.advance(2 * MAX_PROBE_NS);
            }
            window
        }
    }

    #[test]
    fn a_delay_of_the_whole_time_makes_no_live_counter_stuck() {
        for load in [ProbeLoad::BusyLoop, ProbeLoad::Background] {
            let (mut opened, time) = (packages(&[&[], &[]]), ScriptedTime::default());
            let counters = SteppingSource(vec![vec![5, 6, 7], vec![]], vec![0, 0], 0);
            opened[0].source = Box::new(LateSource(counters, time.clone()));
            probe_in_time(&mut opened, &BTreeSet::new(), load, &time);
            assert_eq!(opened[0].advanced, [true, false]);
        }
    }

    #[test]
    fn the_probe_of_this_machine_ends_and_sees_what_advances() {
        for load in [ProbeLoad::BusyLoop, ProbeLoad::Background] {
            let mut opened = packages(&[&[5, 6, 7], &[]]);
            let begin_ns = monotonic_ns();
            probe_domains(&mut opened, &BTreeSet::new(), load);
            assert_eq!(opened[0].advanced, [true, false]);
            assert!(
                monotonic_ns() - begin_ns >= MAX_PROBE_NS,
                "a counter that stands still gets the whole time"
            );
        }
    }

    /// Reads, and whether each domain advanced, of a probe without load.
    fn background_probe(source: &str, delay_ns: u64) -> (u32, Vec<bool>) {
        let (reads, time) = (Arc::new(AtomicUsize::new(0)), ScriptedTime::default());
        let mut opened = packages(&[&[], &[]]);
        opened[0].domains.iter_mut().for_each(|domain| domain.source = source.into());
        let reads_of_source = Arc::clone(&reads);
        opened[0].source =
            Box::new(DelayedSource { time: time.clone(), delay_ns, first_ns: None, reads: reads_of_source });
        probe_in_time(&mut opened, &BTreeSet::from([0, 1]), ProbeLoad::Background, &time);
        (reads.load(Ordering::Relaxed) as u32, opened[0].advanced.clone())
    }

    #[test]
    fn without_load_only_counters_slower_than_rapl_get_the_whole_time() {
        assert_eq!(background_probe(PERF, 0), (MIN_READS, vec![true, true]));
        let quick_reads = (RAPL_TIMEOUT_NS / READ_INTERVAL_NS) as u32 + 1;
        assert_eq!(background_probe(PERF, u64::MAX), (quick_reads, vec![true, false]));
        let slow_reads = (4 * RAPL_TIMEOUT_NS - RAPL_TIMEOUT_NS).div_ceil(SLOW_READ_INTERVAL_NS) as u32;
        assert_eq!(
            background_probe("hwmon", 4 * RAPL_TIMEOUT_NS),
            (quick_reads + slow_reads, vec![true, true])
        );
        let slow_reads = (MAX_PROBE_NS - RAPL_TIMEOUT_NS).div_ceil(SLOW_READ_INTERVAL_NS) as u32;
        assert_eq!(background_probe("hwmon", u64::MAX), (quick_reads + slow_reads, vec![true, false]));
    }

    #[test]
    fn discovery_with_nothing_to_watch_is_over_at_once() {
        assert!(states(&mut []).is_empty());
    }
}
