//! Tests of the sampler thread on scripted sources, with a manual clock if instants matter.
//!
//! The tests wait for events, never for durations.

use std::sync::mpsc::{Sender, SyncSender, sync_channel};

use super::*;
use crate::clock::monotonic_ns;
use crate::domain::{DomainKind, EnergyReading, Grade};
use crate::sources::Source;

const SECOND_NS: u64 = 1_000_000_000;

/// A source whose reads call a function.
struct Scripted<F>(F);

impl<F: FnMut(&mut [EnergyReading]) -> Option<(u64, u64)> + Send> Source for Scripted<F> {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        (self.0)(into)
    }
}

fn opened(
    domains: usize,
    read: impl FnMut(&mut [EnergyReading]) -> Option<(u64, u64)> + Send + 'static,
) -> OpenedSource {
    let domain = |index| Domain {
        name: format!("package-{index}"),
        kind: DomainKind::Package,
        source: "scripted".into(),
        device: None,
        parent: None,
        grade: Grade::Measured,
        ceiling_mw: None,
        latency_ns: 0,
        quantum_uj: 1,
    };
    OpenedSource {
        name: "scripted",
        source: Box::new(Scripted(read)),
        domains: (0..domains).map(domain).collect(),
        cpu: None,
        max_rate_hz: 1000.0,
        advanced: vec![true; domains],
    }
}

/// A source with the readings 1, 2, 3, ...
fn counting() -> impl FnMut(&mut [EnergyReading]) -> Option<(u64, u64)> + Send + 'static {
    let mut energy_uj = 0;
    move |into| {
        energy_uj += 1;
        into.fill(EnergyReading { valid: true, energy_uj, ..EnergyReading::default() });
        None
    }
}

/// Settings with one read at the start and then one in 1000 s, unless a read is requested.
fn slow_settings() -> SamplerSettings {
    SamplerSettings {
        idle_rate_hz: 0.001,
        characterisation_ns: 0,
        ring_samples: 1024,
        ..SamplerSettings::default()
    }
}

fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let give_up_ns = monotonic_ns() + 20 * SECOND_NS;
    while !happened() {
        assert!(monotonic_ns() < give_up_ns, "{what} did not happen");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn sample(stream: &SampleStream, index: u64) -> Sample {
    let mut into = Sample::empty(stream.domains.len());
    assert!(stream.ring.read(index, &mut into), "sample {index} is there");
    into
}

#[test]
fn a_sampler_reads_at_once_and_then_is_slow() {
    let sampler = start(opened(2, counting()), &slow_settings(), Clock::Machine).unwrap();
    let stream = sampler.stream();
    wait_for("the first reading", || stream.ring.written_count() == 1);
    let first = sample(&stream, 0);
    assert!(first.before_ns <= first.after_ns && first.after_ns <= monotonic_ns());
    assert_eq!(first.readings.len(), 2);
    assert_eq!(sampler.stats().ticks, 1);
}

#[test]
fn set_fast_wakes_the_thread_and_its_end_slows_it_down() {
    let sampler = start(opened(1, counting()), &slow_settings(), Clock::Machine).unwrap();
    let ring = sampler.stream().ring;
    wait_for("the first reading", || ring.written_count() == 1);
    sampler.set_fast(true);
    wait_for("fast ticks", || ring.written_count() > 20);
    sampler.set_fast(false);
    wait_for("rest", || {
        let written = ring.written_count();
        std::thread::sleep(Duration::from_millis(30));
        ring.written_count() == written
    });
}

#[test]
fn characterisation_reads_several_times_per_update_and_ends() {
    let clock = Clock::manual(SECOND_NS);
    let settings = SamplerSettings { characterisation_ns: 10_000_000, ..slow_settings() };
    let sampler = start(opened(1, counting()), &settings, clock.clone()).unwrap();
    let ring = sampler.stream().ring;
    wait_for("the first reading", || ring.written_count() == 1);
    // Four times the source's 1000 Hz.
    for tick in 1..=4 {
        clock.set(SECOND_NS + tick * 250_000);
        wait_for("a tick of the survey", || ring.written_count() == 1 + tick);
    }
    clock.set(2 * SECOND_NS);
    wait_for("the tick that ends it", || ring.written_count() == 6);
    sampler.characterise();
    wait_for("the reading that begins another", || ring.written_count() == 7);
}

#[test]
fn a_late_tick_is_counted_and_missed_ticks_are_skipped() {
    let clock = Clock::manual(SECOND_NS);
    let settings = SamplerSettings { idle_rate_hz: 1.0, ..slow_settings() };
    let sampler = start(opened(1, counting()), &settings, clock.clone()).unwrap();
    let stream = sampler.stream();
    wait_for("the first reading", || stream.ring.written_count() == 1);
    clock.set(2 * SECOND_NS);
    wait_for("the tick in time", || stream.ring.written_count() == 2);
    // A tick is due at 3 s; the deadlines at 4 s and 5 s pass too.
    clock.set(11 * SECOND_NS / 2);
    wait_for("the late tick", || sampler.stats().missed == 2);
    let ticks = sampler.stats();
    assert_eq!((ticks.ticks, ticks.late), (3, 1), "one late tick and no burst after it");
    assert_eq!(sample(&stream, 2).before_ns, 11 * SECOND_NS / 2);
    clock.set(6 * SECOND_NS);
    wait_for("the tick on the same grid as before", || stream.ring.written_count() == 4);
}

#[test]
fn a_slow_read_misses_ticks_without_a_burst() {
    let clock = Clock::manual(SECOND_NS);
    let slow = {
        let clock = clock.clone();
        let mut first = true;
        move |_: &mut [EnergyReading]| {
            if !std::mem::take(&mut first) {
                clock.set(clock.now_ns() + 5 * SECOND_NS / 2);
            }
            None
        }
    };
    let settings = SamplerSettings { idle_rate_hz: 1.0, ..slow_settings() };
    let sampler = start(opened(1, slow), &settings, clock.clone()).unwrap();
    wait_for("the first reading", || sampler.stats().ticks == 1);
    clock.set(2 * SECOND_NS);
    wait_for("the long read", || sampler.stats().missed == 2);
    let ticks = sampler.stats();
    assert_eq!((ticks.ticks, ticks.late), (2, 0), "it began in time and the next one is due at 5 s");
}

#[test]
fn a_slow_source_is_read_at_most_half_of_the_time() {
    let clock = Clock::manual(0);
    let slow = {
        let clock = clock.clone();
        move |_: &mut [EnergyReading]| {
            clock.set(clock.now_ns() + 9 * SECOND_NS / 10);
            None
        }
    };
    let settings = SamplerSettings { idle_rate_hz: 1.0, ..slow_settings() };
    let sampler = start(opened(1, slow), &settings, clock.clone()).unwrap();
    let stream = sampler.stream();
    wait_for("the first reading", || sampler.stats().ticks == 1);
    clock.set(SECOND_NS);
    // The read lasts from 1 s to 1.9 s; a tick at 2 s would leave too little rest.
    wait_for("the second reading", || sampler.stats().missed == 1);
    clock.set(3 * SECOND_NS);
    wait_for("the third reading", || stream.ring.written_count() == 3);
    assert_eq!(sample(&stream, 2).before_ns, 3 * SECOND_NS);
}

#[test]
fn a_domain_left_out_of_a_read_is_invalid() {
    let mut reads = 0;
    let source = move |into: &mut [EnergyReading]| {
        reads += 1;
        if reads == 1 {
            into.fill(EnergyReading { valid: true, energy_uj: 5, ..EnergyReading::default() });
        }
        None
    };
    let sampler = start(opened(1, source), &slow_settings(), Clock::Machine).unwrap();
    let stream = sampler.stream();
    sampler.set_fast(true);
    wait_for("two readings", || stream.ring.written_count() >= 2);
    assert!(sample(&stream, 0).readings[0].valid);
    assert_eq!(sample(&stream, 1).readings[0], EnergyReading::default());
}

#[test]
fn the_sources_narrower_window_goes_into_the_sample() {
    let clock = Clock::manual(SECOND_NS);
    let source = {
        let clock = clock.clone();
        move |_: &mut [EnergyReading]| {
            clock.set(SECOND_NS + 100);
            Some((SECOND_NS + 40, SECOND_NS + 60))
        }
    };
    let sampler = start(opened(1, source), &slow_settings(), clock).unwrap();
    let stream = sampler.stream();
    wait_for("the first reading", || stream.ring.written_count() == 1);
    let first = sample(&stream, 0);
    assert_eq!((first.before_ns, first.after_ns), (SECOND_NS + 40, SECOND_NS + 60));
}

/// A sampler whose reads hang until the gate is dropped.
fn hanging() -> (Sampler, SyncSender<()>) {
    let (gate, closed) = sync_channel(0);
    let read = move |_: &mut [EnergyReading]| {
        let _ = closed.recv();
        None
    };
    (start(opened(1, read), &slow_settings(), Clock::Machine).unwrap(), gate)
}

#[test]
fn a_hung_read_is_reported_and_delays_no_other_source() {
    let (stuck, gate) = hanging();
    let other = start(opened(1, counting()), &slow_settings(), Clock::Machine).unwrap();
    wait_for("the hang", || stuck.hung_for_ns(monotonic_ns()).is_some_and(|ns| ns > 1_000_000));
    other.set_fast(true);
    wait_for("the other's ticks", || other.stream().ring.written_count() > 10);
    assert_eq!((stuck.stats().ticks, stuck.stats().last_read_ns), (0, None));
    drop(gate);
    wait_for("the end of the hang", || stuck.hung_for_ns(monotonic_ns()).is_none());
}

struct DropSignal(Sender<()>);

impl Drop for DropSignal {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[test]
fn dropping_a_sampler_ends_its_thread_and_drops_its_source() {
    let (dropped, saw) = channel();
    let drop_signal = DropSignal(dropped);
    let source = move |_: &mut [EnergyReading]| {
        let _held = &drop_signal;
        None
    };
    let sampler = start(opened(1, source), &slow_settings(), Clock::Machine).unwrap();
    wait_for("the first reading", || sampler.stream().ring.written_count() == 1);
    let begin_ns = monotonic_ns();
    drop(sampler);
    // On a busy machine the thread may take longer than the drop waits for it.
    let has_waited_ns = monotonic_ns() - begin_ns;
    if saw.try_recv().is_err() {
        assert!(
            has_waited_ns >= JOIN_TIMEOUT.as_nanos() as u64,
            "it was not joined, so its source may be left"
        );
        saw.recv_timeout(Duration::from_secs(20)).expect("the thread ends all the same");
    }
}

#[test]
fn dropping_a_sampler_with_a_hung_read_detaches_the_thread() {
    let (sampler, gate) = hanging();
    wait_for("the hang", || sampler.hung_for_ns(monotonic_ns()).is_some());
    let shared = Arc::downgrade(&sampler.shared);
    drop(sampler);
    assert!(shared.upgrade().is_some(), "the thread still hangs, and the drop came back all the same");
    drop(gate);
    wait_for("the end of the thread", || shared.upgrade().is_none());
}

/// A counter that moves every millisecond of a manual clock; counts its reads on the thread that made the source.
struct ManualCounter {
    clock: Clock,
    can_block: bool,
    owner: std::thread::ThreadId,
    reads_by_owner: Arc<AtomicU64>,
}

impl Source for ManualCounter {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        if std::thread::current().id() == self.owner {
            self.reads_by_owner.fetch_add(1, Ordering::Relaxed);
        }
        let energy_uj = (self.clock.now_ns() - 337_000) / 1_000_000 * 50_000;
        into.fill(EnergyReading { valid: true, energy_uj, ..EnergyReading::default() });
        None
    }

    fn can_block(&self) -> bool {
        self.can_block
    }
}

/// A sampler on such a counter after a survey that found its phase.
fn surveyed(clock: &Clock, can_block: bool, settings: &SamplerSettings) -> (Sampler, Arc<AtomicU64>) {
    let reads_by_owner = Arc::new(AtomicU64::new(0));
    let counter = ManualCounter {
        clock: clock.clone(),
        can_block,
        owner: std::thread::current().id(),
        reads_by_owner: Arc::clone(&reads_by_owner),
    };
    let mut opened = opened(1, counting());
    opened.domains[0].ceiling_mw = Some(300_000);
    opened.source = Box::new(counter);
    let settings = SamplerSettings { characterisation_ns: 100_000_000, ..settings.clone() };
    let sampler = start(opened, &settings, clock.clone()).unwrap();
    let ring = sampler.stream().ring;
    wait_for("the first reading", || ring.written_count() == 1);
    sampler.set_fast(true);
    for tick in 1..400 {
        // Late by different times, like a real thread: the reads lie at different distances from the updates.
        clock.set(SECOND_NS + tick * 250_000 + tick * 37_000 % 100_000);
        wait_for("a tick of the survey", || ring.written_count() > tick);
    }
    clock.set(SECOND_NS + 100_000_000);
    (sampler, reads_by_owner)
}

/// Advances the clock by a millisecond at a time and gives the thread time to read; returns the number of reads.
fn reads_in(sampler: &Sampler, clock: &Clock, milliseconds: u64) -> u64 {
    let ring = sampler.stream().ring;
    let written = ring.written_count();
    for _ in 0..milliseconds {
        clock.set(clock.now_ns() + 1_000_000);
        std::thread::sleep(Duration::from_millis(1));
    }
    ring.written_count() - written
}

#[test]
fn a_source_with_known_phase_is_read_around_few_updates() {
    let clock = Clock::manual(SECOND_NS);
    let (sampler, _) = surveyed(&clock, true, &slow_settings());
    wait_for("the schedule by edges", || sampler.is_edge_driven());
    // At the fixed rate the thread would read in most of the steps.
    let reads = reads_in(&sampler, &clock, 200);
    assert!(reads <= 40, "{reads} reads in 200 ms");
    let ring = sampler.stream().ring;
    let written = ring.written_count();
    wait_for("an update in a pair", || {
        clock.set(clock.now_ns() + 1_000_000);
        std::thread::sleep(Duration::from_millis(1));
        ring.written_count() > written + 1
    });
}

#[test]
fn after_the_last_span_a_source_with_known_phase_is_not_read_in_pairs() {
    let clock = Clock::manual(SECOND_NS);
    let lingering = SamplerSettings { linger_ns: 60 * SECOND_NS, ..slow_settings() };
    let (sampler, _) = surveyed(&clock, true, &lingering);
    wait_for("the schedule by edges", || sampler.is_edge_driven());
    let ring = sampler.stream().ring;
    let written = ring.written_count();
    wait_for("the reads in pairs while a span is open", || {
        clock.set(clock.now_ns() + 1_000_000);
        std::thread::sleep(Duration::from_millis(1));
        ring.written_count() >= written + 6
    });
    sampler.set_fast(false);
    // In 800 ms there would be some 80 reads in pairs.
    let reads = reads_in(&sampler, &clock, 800);
    assert!(reads <= 8, "{reads} reads in 800 ms");
    assert!(sampler.is_edge_driven());
}

#[test]
fn a_recording_and_a_configured_rate_keep_the_fixed_rate() {
    let clock = Clock::manual(SECOND_NS);
    let fixed = SamplerSettings { fixed_rate: true, ..slow_settings() };
    let (configured, _) = surveyed(&clock, true, &fixed);
    assert!(!configured.is_edge_driven());
    drop(configured);
    let clock = Clock::manual(SECOND_NS);
    let (sampler, _) = surveyed(&clock, true, &slow_settings());
    wait_for("the schedule by edges", || sampler.is_edge_driven());
    sampler.set_fixed_rate(true);
    let ring = sampler.stream().ring;
    for _ in 0..20 {
        let written = ring.written_count();
        clock.set(clock.now_ns() + 1_000_000);
        wait_for("a read in each millisecond", || ring.written_count() > written);
    }
    assert!(!sampler.is_edge_driven());
}

#[test]
fn an_edge_is_read_on_the_reporting_thread_if_the_source_never_blocks() {
    let clock = Clock::manual(SECOND_NS);
    let (sampler, reads_by_owner) = surveyed(&clock, false, &slow_settings());
    wait_for("the schedule by edges", || sampler.is_edge_driven());
    let ring = sampler.stream().ring;
    for edge in 1..=10 {
        clock.set(clock.now_ns() + 7_400_000);
        let edge_ns = clock.now_ns();
        sampler.report_edge(edge_ns);
        assert!(reads_by_owner.load(Ordering::Relaxed) <= edge, "one read for an edge");
        // The sampler's thread reads instead where it was about to read anyway.
        wait_for("a read after the edge", || {
            sample(&sampler.stream(), ring.written_count() - 1).before_ns >= edge_ns
        });
    }
    assert!(reads_by_owner.load(Ordering::Relaxed) >= 1);
    let times: Vec<u64> =
        (0..ring.written_count()).map(|index| sample(&sampler.stream(), index).before_ns).collect();
    assert!(times.is_sorted(), "the ring is in the order of time");
}

#[test]
fn an_edge_wakes_the_thread_of_a_source_that_may_block() {
    let clock = Clock::manual(SECOND_NS);
    let (sampler, reads_by_owner) = surveyed(&clock, true, &slow_settings());
    wait_for("the schedule by edges", || sampler.is_edge_driven());
    let ring = sampler.stream().ring;
    for _ in 0..10 {
        clock.set(clock.now_ns() + 7_400_000);
        let edge_ns = clock.now_ns();
        sampler.report_edge(edge_ns);
        wait_for("a read after the edge", || {
            sample(&sampler.stream(), ring.written_count() - 1).before_ns >= edge_ns
        });
    }
    assert_eq!(reads_by_owner.load(Ordering::Relaxed), 0);
}

/// A sampler during its first survey, without a thread, and the number of its reads until an instant.
struct SurveyedSteps {
    clock: Clock,
    sampler: Sampler,
    steps: stepped::SteppedSampler,
}

impl SurveyedSteps {
    fn reads_for(&mut self, duration_ns: u64) -> u64 {
        let (ring, until_ns) = (self.sampler.stream().ring, self.clock.now_ns() + duration_ns);
        let written = ring.written_count();
        loop {
            self.steps.run_until_asleep();
            self.clock.set(self.steps.asleep_until_ns().min(until_ns));
            if self.clock.now_ns() == until_ns {
                return ring.written_count() - written;
            }
        }
    }

    fn edge(&self) {
        self.sampler.report_edge(self.clock.now_ns());
    }
}

#[test]
fn a_counter_that_stands_still_is_read_at_edges_of_the_only_span_until_it_moves() {
    let clock = Clock::manual(SECOND_NS);
    let energy_uj = Arc::new(AtomicU64::new(7));
    let shown = Arc::clone(&energy_uj);
    let mut opened = opened(1, move |into: &mut [EnergyReading]| {
        let energy_uj = shown.load(Ordering::Relaxed);
        into.fill(EnergyReading { valid: true, energy_uj, ..EnergyReading::default() });
        None
    });
    opened.advanced = vec![false];
    let settings =
        SamplerSettings { characterisation_ns: SECOND_NS, serves_one_span: true, ..slow_settings() };
    let (sampler, steps) = stepped::start(opened, &settings, clock.clone());
    let mut surveyed = SurveyedSteps { clock, sampler, steps };
    assert_eq!(surveyed.reads_for(50_000_000), 1, "at the start");
    for _ in 0..3 {
        surveyed.edge();
        assert_eq!(surveyed.reads_for(50_000_000), 1, "for an edge");
    }
    energy_uj.store(8, Ordering::Relaxed);
    assert_eq!(surveyed.reads_for(50_000_000), 0, "no edge");
    surveyed.edge();
    assert!(surveyed.reads_for(50_000_000) >= 199, "once it has moved");
}
