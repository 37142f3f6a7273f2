//! IOReport and the System Management Controller through a shared library with the C symbols and reference counts of
//! Apple's, on Macs whose power is known.
//!
//! Discovery, reads, attribution and the calls to Apple's functions are the program's own. The test advances the clock
//! of library and reader, so that nothing depends on the speed of this machine.

use crate::programs;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::fake_apple::{
    FROZEN, HIDDEN, INTEL, Knob, Library, Mac, NOT_SIMPLE, SHORT_ELEMENT, SILICON, WITHOUT_ELEMENT, fixture,
    ticks,
};
use crate::support::wait_until;
use wattspan::attribution::{self, Attributor, NewSpan};
use wattspan::clock::Clock;
use wattspan::domain::{Domain, DomainKind, EnergyReading, Grade, Liveness};
use wattspan::sampler::counter_profile::CounterProfile;
use wattspan::sources::dedup::domain_tree;
use wattspan::sources::replay::power_profile::PowerProfile;
use wattspan::sources::{Inventory, discover};
use wattspan_client::account::{Account, Share};

const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;
/// The start of the manual clock; a batch is published at this instant.
const START_NS: u64 = 1_000 * S;

/// A counter: its channel, its unit in nanojoules, its repeating power curve, and when it is published.
struct FakeCounter {
    channel: &'static str,
    unit_nj: u128,
    curve: PowerProfile,
    /// Nanoseconds between batches, repeated; empty: published at each read.
    batches: &'static [u64],
}

impl FakeCounter {
    fn new(channel: &'static str, unit_nj: u128, curve: &[(u64, u64)], batches: &'static [u64]) -> Self {
        Self { channel, unit_nj, curve: PowerProfile::new(curve.iter().copied()).unwrap(), batches }
    }

    /// The last batch at or before `now_ns`.
    fn batch_ns(&self, now_ns: u64) -> u64 {
        let round_ns: u64 = self.batches.iter().sum();
        if round_ns == 0 {
            return now_ns;
        }
        let mut at_ns = START_NS + (now_ns - START_NS) / round_ns * round_ns;
        for batch_ns in self.batches {
            if at_ns + batch_ns > now_ns {
                break;
            }
            at_ns += batch_ns;
        }
        at_ns
    }

    fn publish(&self, library: &Library, now_ns: u64) {
        let at_ns = self.batch_ns(now_ns);
        let count = self.curve.energy_pj(at_ns) / 1_000 / self.unit_nj;
        library.publish(self.channel, u64::try_from(count).unwrap(), at_ns);
    }

    fn true_uj(&self, from_ns: u64, to_ns: u64) -> f64 {
        (self.curve.energy_pj(to_ns) - self.curve.energy_pj(from_ns)) as f64 / 1e6
    }
}

/// Batch intervals of the M5 Max, and below the uneven ones of the M1 Ultra, with outliers.
const BATCHES: &[u64] = &[2_030 * MS, 2_230 * MS, 2_110 * MS];
const UNEVEN: &[u64] = &[750 * MS, 26 * MS, 1_320 * MS, 910 * MS, 1_190 * MS];

fn m4() -> Vec<FakeCounter> {
    vec![
        FakeCounter::new(
            "CPU Energy",
            1_000_000,
            &[(310 * MS, 4_000), (170 * MS, 38_000), (90 * MS, 11_000)],
            BATCHES,
        ),
        FakeCounter::new("GPU Energy", 1, &[(400 * MS, 20), (130 * MS, 27_000)], &[]),
        FakeCounter::new("ANE", 1_000_000, &[(700 * MS, 0), (60 * MS, 8_000)], BATCHES),
        FakeCounter::new("DRAM", 1_000_000, &[(50 * MS, 600), (55 * MS, 1_900)], UNEVEN),
    ]
}

/// A Mac whose clock stands still until the test advances it.
struct Machine {
    library: Library,
    clock: Clock,
    meters: Vec<FakeCounter>,
    inventory: Inventory,
    now_ns: u64,
}

impl Machine {
    fn new(chip: &str, meters: Vec<FakeCounter>) -> Self {
        Self::with(Library::new(&fixture(chip)), meters)
    }

    fn with(library: Library, meters: Vec<FakeCounter>) -> Self {
        let clock = Clock::manual(START_NS);
        library.set_clock(START_NS);
        meters.iter().for_each(|meter| meter.publish(&library, START_NS));
        let inventory = discover(&library.settings(), &clock);
        Self { library, clock, meters, inventory, now_ns: START_NS }
    }

    fn domains(&self) -> Vec<Domain> {
        self.inventory.opened.iter().flat_map(|source| &source.domains).cloned().collect()
    }

    fn set_clock(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.library.set_clock(now_ns);
        self.clock.set(now_ns);
        self.meters.iter().for_each(|meter| meter.publish(&self.library, now_ns));
    }

    fn read(&mut self) -> Vec<EnergyReading> {
        let read = |source: &mut wattspan::sources::OpenedSource| {
            let mut readings = vec![EnergyReading::default(); source.domains.len()];
            source.source.read(&mut readings);
            readings
        };
        self.inventory.opened.iter_mut().flat_map(read).collect()
    }

    fn read_at(&mut self, now_ns: u64) -> Vec<EnergyReading> {
        self.set_clock(now_ns);
        self.read()
    }

    fn one(&mut self, domain: &str) -> EnergyReading {
        let at = self.domains().iter().position(|inventory| inventory.name == domain).unwrap();
        self.read()[at]
    }

    /// The account of a span of every domain, read every 50 ms from two seconds before it until it settles.
    fn account(&mut self, from_ns: u64, to_ns: u64) -> Account {
        let domains = self.domains();
        let counted = domain_tree::counted_in_total(&domains, &vec![true; domains.len()]);
        let mut attributor = Attributor::new(domains, attribution::AttributionSettings::default());
        counted.iter().enumerate().for_each(|(at, counted)| attributor.domains().set_counted(at, *counted));
        let (mut key, mut closed, mut out) = (None, false, Vec::new());
        while self.now_ns < to_ns + 9 * S && out.is_empty() {
            let next_ns = self.now_ns + 50 * MS;
            let readings = self.read_at(next_ns);
            if key.is_none() && self.now_ns >= from_ns {
                key = Some(attributor.open(from_ns, NewSpan::new("s", from_ns)).unwrap());
            }
            if !closed && self.now_ns >= to_ns {
                attributor.close(to_ns, key.unwrap(), to_ns, BTreeMap::new(), false).unwrap();
                closed = true;
            }
            for (at, reading) in readings.iter().enumerate() {
                attributor.add_reading(at, self.now_ns, self.now_ns, reading);
            }
            attributor.settle(self.now_ns + 100, &mut out);
        }
        out.pop().expect("settled within nine seconds").1
    }
}

fn share<'a>(account: &'a Account, domain: &str) -> &'a Share {
    account.domains.iter().find(|share| share.domain == domain).unwrap_or_else(|| panic!("no {domain}"))
}

fn names(inventory: &Inventory) -> Vec<&str> {
    inventory.opened.iter().flat_map(|source| &source.domains).map(|domain| domain.name.as_str()).collect()
}

fn reasons(inventory: &Inventory, source: &str) -> String {
    let of = inventory.absent.iter().filter(|absent| absent.source == source);
    of.map(|absent| absent.reason.as_str()).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_chip_has_its_roll_ups_as_meters_and_nothing_else() {
    let plain = ["cpu", "gpu", "ane", "dram", "gpu-sram"].as_slice();
    let dies = ["cpu-0", "cpu-1", "gpu", "ane-0", "ane-1", "dram-0", "dram-1", "gpu-sram-0", "gpu-sram-1"]
        .as_slice();
    let chips = ["m1", "m2", "m3", "m4", "m5"].map(|chip| (chip, plain));
    let large =
        ["m1-pro", "m1-max", "m2-pro", "m2-max", "m3-pro", "m3-max", "m4-pro", "m4-max", "m5-pro", "m5-max"]
            .map(|chip| (chip, plain));
    let ultra = ["m1-ultra", "m2-ultra", "m3-ultra"].map(|chip| (chip, dies));
    for (chip, expected) in chips.into_iter().chain(large).chain(ultra) {
        let library = Library::new(&fixture(chip));
        let inventory = discover(&library.settings(), &Clock::Machine);
        assert_eq!(names(&inventory), expected, "{chip}");
        assert_eq!(reasons(&inventory, "ioreport"), "", "{chip}");
        assert_eq!(
            library.get_global(Mac::Sampled),
            expected.len() as u64,
            "{chip}: subscribes to its meters only"
        );
        let cpu = &inventory.opened[0].domains[0];
        assert_eq!((cpu.kind, cpu.grade), (DomainKind::Cpu, Grade::Modelled));
        let counted =
            domain_tree::counted_in_total(&inventory.opened[0].domains, &vec![true; expected.len()]);
        let sram = expected.iter().map(|name| !name.starts_with("gpu-sram")).collect::<Vec<_>>();
        assert_eq!(counted, sram, "{chip}");
        drop(inventory);
        assert_eq!((library.get_global(Mac::Live), library.get_global(Mac::Misused)), (0, 0), "{chip}");
    }
}

#[test]
fn an_intel_mac_reports_missing_counters_and_its_controllers_power() {
    let library = Library::new(&fixture("intel"));
    library.set_global(Mac::GroupAbsent, 1);
    library.set_global(Mac::Controller, INTEL);
    library.key(0, b"PSTR", b"flt ", &31.5_f32.to_le_bytes());
    library.key(1, b"PCPT", b"sp78", &[0x0C, 0x80]);
    library.key(2, b"PCPC", b"sp78", &[0x08, 0x00]);
    let inventory = discover(&library.settings(), &Clock::Machine);
    assert!(reasons(&inventory, "ioreport").contains("Intel Macs, virtual machines and sandboxes have none"));
    assert!(reasons(&inventory, "smc").contains("uncore-0: this Mac's controller has no key PCPG"));
    assert_eq!(names(&inventory), ["psys", "package-0", "core-0"]);
    let domains = &inventory.opened[0].domains;
    assert_eq!(domains[1].parent.as_deref(), Some("psys"));
    assert_eq!(domains[2].parent.as_deref(), Some("package-0"));
    assert!(domains.iter().all(|domain| domain.grade == Grade::Integrated));
    assert_eq!(domain_tree::counted_in_total(domains, &[true; 3]), [true, false, false]);
    assert_eq!(inventory.opened[0].advanced, [true; 3]);
}

#[test]
fn a_hundred_thousand_samples_leak_no_object_and_use_none_that_is_released() {
    let mut machine = Machine::new("m1-ultra", Vec::new());
    let before = machine.library.get_global(Mac::Live);
    for nth in 1..=100_000 {
        if nth % 1_000 == 0 {
            // The list changes during the reads, and the reader examines all names again.
            machine.library.set("ANE0_0", Knob::Flags, nth / 1_000 % 2 * HIDDEN);
        }
        machine.read();
    }
    assert!(machine.library.get_global(Mac::Samples) >= 100_000);
    assert_eq!(
        (machine.library.get_global(Mac::Live), machine.library.get_global(Mac::Misused)),
        (before, 0)
    );
    machine.inventory = Inventory::default();
    assert_eq!((machine.library.get_global(Mac::Live), machine.library.get_global(Mac::Misused)), (0, 0));
}

#[test]
fn energies_lie_within_their_bounds_with_batches_of_two_seconds() {
    // Spans of many lengths, within one batch and over several, with edges unrelated to the batches.
    let spans = [(700, 40), (1_111, 333), (250, 1_900), (1_990, 2_100), (333, 4_321), (1_500, 9_876)];
    for (nth, (offset_ms, length_ms)) in spans.into_iter().enumerate() {
        let mut machine = Machine::new("m4", m4());
        let from_ns = START_NS + 3 * S + offset_ms * MS + nth as u64 * 777;
        let to_ns = from_ns + length_ms * MS + 123;
        let account = machine.account(from_ns, to_ns);
        for (domain, meter) in ["cpu", "gpu", "ane", "dram"].into_iter().zip(m4()) {
            let share = share(&account, domain);
            let (figure, error) = (share.share_uj.unwrap() as f64, share.error_uj.unwrap() as f64);
            let truth = meter.true_uj(from_ns, to_ns);
            assert!(
                (figure - truth).abs() <= error,
                "{domain}, {length_ms} ms: {figure} ± {error} for {truth}"
            );
            // The bound is also tight: no wider than the energy of the batches around the edges.
            let around = meter.true_uj(meter.batch_ns(from_ns), to_ns + 2_300 * MS);
            assert!(error <= around + 2_100.0, "{domain}, {length_ms} ms: ± {error} of {around}");
        }
        assert_eq!(account.grade, Some(Grade::Modelled));
    }
}

#[test]
fn a_reading_is_of_the_instant_of_its_batch_and_not_of_the_time_at_which_it_is_fetched() {
    let mut machine = Machine::new("m4", m4());
    let fetched_ns = START_NS + 3 * S;
    let reading = machine.read_at(fetched_ns);
    let (cpu, gpu) = (reading[0], reading[1]);
    assert!((START_NS + 2_030 * MS).abs_diff(cpu.stamp_ns) <= 84, "{cpu:?}");
    assert!(fetched_ns.abs_diff(gpu.stamp_ns) <= 84, "{gpu:?}");
    let truth = m4()[0].true_uj(START_NS, START_NS + 2_030 * MS);
    assert!((cpu.energy_uj as f64 - truth).abs() <= 2_000.0, "{cpu:?} for {truth}");
}

#[test]
fn nanojoules_are_not_lost_in_rounding_over_many_samples() {
    let mut machine = Machine::new("m4", vec![FakeCounter::new("GPU Energy", 1, &[(S, 1)], &[])]);
    let first = machine.one("gpu");
    for nth in 1..=1_000 {
        machine.read_at(START_NS + nth * 500_000);
    }
    // 1 mW for half a second, half a microjoule per sample.
    assert_eq!(machine.one("gpu").energy_uj - first.energy_uj, 500);
}

#[test]
fn an_idle_neural_engine_is_live_and_a_frozen_one_is_stuck() {
    let idle = FakeCounter::new("ANE", 1_000_000, &[(S, 0)], BATCHES);
    let busy = FakeCounter::new("CPU Energy", 1_000_000, &[(S, 9_000)], BATCHES);
    let mut machine = Machine::new("m4", vec![busy, idle]);
    let (domains, advanced) = (machine.domains(), machine.inventory.opened[0].advanced.clone());
    let mut profiles: Vec<CounterProfile> = domains
        .iter()
        .zip(advanced)
        .map(|(domain, advanced)| CounterProfile::new(advanced).with_latency(domain.latency_ns))
        .collect();
    let place = |name: &str| domains.iter().position(|domain| domain.name == name).unwrap();
    let (cpu, ane) = (place("cpu"), place("ane"));
    let watch = |machine: &mut Machine, until_ns: u64, profiles: &mut Vec<CounterProfile>| {
        while machine.now_ns < until_ns {
            let readings = machine.read_at(machine.now_ns + 100 * MS);
            for (profile, reading) in profiles.iter_mut().zip(&readings) {
                profile.observe(machine.now_ns, machine.now_ns, reading);
            }
        }
    };
    for second in 1..=30 {
        watch(&mut machine, START_NS + second * S, &mut profiles);
        assert_eq!(profiles[cpu].liveness().0, Liveness::Live, "{second} s: {:?}", profiles[cpu].liveness());
        assert_eq!(profiles[ane].liveness().0, Liveness::Live, "{second} s");
    }
    let interval_ns = profiles[cpu].update_interval_ns().expect("it was seen to move in batches");
    assert!((1_900 * MS..2_400 * MS).contains(&interval_ns), "{interval_ns}");
    // As after a sleep, or on macOS 27: value and stamp stand still.
    let last = (machine.one("cpu"), machine.now_ns);
    machine.library.set("CPU Energy", Knob::Flags, FROZEN);
    machine.meters.remove(0);
    watch(&mut machine, START_NS + 60 * S, &mut profiles);
    let (liveness, reason) = profiles[cpu].liveness();
    assert_eq!(liveness, Liveness::Stuck);
    assert!(reason.unwrap().contains("has not moved for"));
    assert_eq!(profiles[cpu].power_mw(), None, "not 0 W");
    assert_eq!(profiles[ane].liveness().0, Liveness::Live);
    let now = machine.one("cpu");
    assert!(now.valid && now.energy_uj == last.0.energy_uj && now.stamp_ns <= last.1, "nothing is made up");
}

#[test]
fn a_counter_that_is_frozen_from_the_start_is_stuck_from_the_start() {
    let library = Library::new(&fixture("m3-max"));
    library.publish("CPU Energy", 123_456, START_NS - 600 * S);
    library.set("CPU Energy", Knob::Flags, FROZEN);
    let machine = Machine::with(library, Vec::new());
    assert_eq!(machine.inventory.opened[0].advanced, [false, true, true, true, true]);
}

#[test]
fn a_counter_that_goes_back_or_jumps_starts_an_epoch_without_energy() {
    let mut machine = Machine::new("m4", Vec::new());
    let mut at_ns = START_NS;
    let mut show = |machine: &mut Machine, count: u64| {
        at_ns += S;
        machine.set_clock(at_ns);
        machine.library.publish("CPU Energy", count, at_ns);
        machine.one("cpu")
    };
    show(&mut machine, 50_000);
    let before = show(&mut machine, 58_000);
    let reset = show(&mut machine, 12);
    assert_eq!((reset.energy_uj, reset.epoch), (before.energy_uj, before.epoch + 1));
    let later = show(&mut machine, 4_012);
    assert_eq!((later.energy_uj - reset.energy_uj, later.epoch), (4_000_000, reset.epoch));
    let jumped = show(&mut machine, 4_000_000_000);
    assert_eq!((jumped.energy_uj, jumped.epoch), (later.energy_uj, later.epoch + 1));
    // A negative count is invalid.
    assert!(!show(&mut machine, u64::MAX).valid);
    assert_eq!(show(&mut machine, 4_000_001_000).epoch, jumped.epoch + 1);
}

#[test]
fn a_channel_that_vanishes_is_invalid_while_the_others_go_on_in_their_new_places() {
    let mut machine = Machine::new("m4", m4());
    machine.read_at(START_NS + 3 * S);
    machine.library.set("GPU Energy", Knob::Flags, HIDDEN);
    let gone = machine.read_at(START_NS + 6 * S);
    assert_eq!(gone.iter().map(|reading| reading.valid).collect::<Vec<_>>(), [true, false, true, true, true]);
    let truth = m4()[3].true_uj(START_NS, START_NS + (750 + 26 + 1_320 + 910 + 1_190 + 750 + 26) * MS);
    assert!((gone[3].energy_uj as f64 - truth).abs() < 3_000.0, "memory is read as memory: {:?}", gone[3]);
    machine.library.set("GPU Energy", Knob::Flags, 0);
    let back = machine.read_at(START_NS + 9 * S);
    assert!(back[1].valid && back[1].epoch == 1, "what it used meanwhile is unknown: {:?}", back[1]);
    assert_eq!(back[0].epoch, 0);
}

#[test]
fn reordered_channels_are_identified_by_their_elements() {
    let mut machine = Machine::new("m4", m4());
    machine.read_at(START_NS + 3 * S);
    // A driver that restarts has its channels under new ids.
    machine.library.set("CPU Energy", Knob::Id, 77);
    let readings = machine.read_at(START_NS + 5 * S);
    assert!(readings.iter().all(|reading| reading.valid && reading.epoch == 0));
}

#[test]
fn an_unknown_unit_is_refused_by_name_and_the_rest_is_metered() {
    let list = fixture("m4").replace("DRAM\tmJ", "DRAM\tqJ");
    let inventory = discover(&Library::new(&list).settings(), &Clock::Machine);
    assert_eq!(names(&inventory), ["cpu", "gpu", "ane", "gpu-sram"]);
    let reason = reasons(&inventory, "ioreport");
    assert!(reason.contains("\"DRAM\" counts in \"qJ\"") && reason.contains("please report"), "{reason}");
    // An empty label is not a unit either; blanks around a label are ignored.
    let list = fixture("m4").replace("DRAM\tmJ", "DRAM\t").replace("CPU Energy\tmJ", "CPU Energy\t mJ ");
    let inventory = discover(&Library::new(&list).settings(), &Clock::Machine);
    assert_eq!(names(&inventory), ["cpu", "gpu", "ane", "gpu-sram"]);
    let library = Library::new(&fixture("m4"));
    library.set("CPU Energy", Knob::Flags, NOT_SIMPLE);
    let inventory = discover(&library.settings(), &Clock::Machine);
    assert_eq!(names(&inventory), ["gpu", "ane", "dram", "gpu-sram"]);
}

#[test]
fn a_subscription_that_fails_is_absent_with_the_reason_and_leaves_nothing_behind() {
    let library = Library::new(&fixture("m4"));
    library.set_global(Mac::RefusesAll, 1);
    let inventory = discover(&library.settings(), &Clock::Machine);
    assert!(inventory.opened.is_empty());
    assert!(reasons(&inventory, "ioreport").contains("refuses a subscription"));
    assert!(reasons(&inventory, "smc").contains("no System Management Controller"));
    assert_eq!(
        (library.get_global(Mac::Live), library.get_global(Mac::Misused), library.get_global(Mac::Entries)),
        (0, 0, 0)
    );
    library.set_global(Mac::RefusesAll, 0);
    library.set_global(Mac::GroupAbsent, 1);
    let inventory = discover(&library.settings(), &Clock::Machine);
    assert!(reasons(&inventory, "ioreport").contains("no group \"Energy Model\""));
    let inventory = discover(&Library::new("PCPU0\tmJ\n").settings(), &Clock::Machine);
    let reason = reasons(&inventory, "ioreport");
    assert!(reason.contains("no channel for cpu") && reason.contains("\"PCPU0\" (mJ)"), "{reason}");
}

#[test]
fn where_a_part_of_the_group_is_refused_the_whole_is_taken() {
    let library = Library::new(&fixture("m2"));
    library.set_global(Mac::RefusesPart, 1);
    let mut machine = Machine::with(library, m4());
    assert_eq!(names(&machine.inventory), ["cpu", "gpu", "ane", "dram", "gpu-sram"]);
    assert_eq!(machine.library.get_global(Mac::Sampled), 136);
    let reading = machine.read_at(START_NS + 3 * S);
    let truth = m4()[0].true_uj(START_NS, START_NS + 2_030 * MS);
    assert!((reading[0].energy_uj as f64 - truth).abs() <= 2_000.0);
    machine.inventory = Inventory::default();
    assert_eq!((machine.library.get_global(Mac::Live), machine.library.get_global(Mac::Misused)), (0, 0));
}

#[test]
fn samples_that_fail_are_gaps_and_their_end_a_new_epoch() {
    let mut machine = Machine::new("m4", m4());
    let before = machine.read_at(START_NS + 3 * S);
    machine.library.set_global(Mac::NoSamples, 1);
    assert!(machine.read_at(START_NS + 4 * S).iter().all(|reading| !reading.valid));
    machine.library.set_global(Mac::NoSamples, 0);
    let after = machine.read_at(START_NS + 6 * S);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((after.energy_uj, after.epoch), (before.energy_uj, before.epoch + 1));
    }
}

#[test]
fn without_stamps_or_with_wrong_ones_the_time_of_the_read_stands_in_and_the_truth_stays_within_the_bound() {
    for broken in [WITHOUT_ELEMENT, SHORT_ELEMENT] {
        let library = Library::new(&fixture("m4"));
        library.set("CPU Energy", Knob::Flags, broken);
        let mut machine = Machine::with(library, m4());
        let (from_ns, to_ns) = (START_NS + 5_100 * MS, START_NS + 9_400 * MS);
        let account = machine.account(from_ns, to_ns);
        let (cpu, truth) = (share(&account, "cpu"), m4()[0].true_uj(from_ns, to_ns));
        let (figure, error) = (cpu.share_uj.unwrap() as f64, cpu.error_uj.unwrap() as f64);
        assert!((figure - truth).abs() <= error, "{broken}: {figure} ± {error} for {truth}");
    }
    // A stamp that stands still while the value moves is ignored from then on.
    let mut machine = Machine::new("m4", Vec::new());
    machine.library.publish("CPU Energy", 10, START_NS + S);
    machine.set_clock(START_NS + 2 * S);
    assert_ne!(machine.one("cpu").stamp_ns, 0);
    machine.library.set("CPU Energy", Knob::Value, 20);
    let wrong = machine.one("cpu");
    assert_eq!((wrong.valid, wrong.stamp_ns), (true, 0));
    machine.library.publish("CPU Energy", 30, START_NS + 2 * S);
    assert_eq!(machine.one("cpu").stamp_ns, 0);
    // A stamp in the future is ignored too.
    machine.library.set("GPU Energy", Knob::Stamp, ticks(START_NS + 50 * S));
    assert_eq!(machine.one("gpu").stamp_ns, 0);
}

#[test]
fn the_systems_total_is_sensed_beside_the_counters_and_not_added_to_them() {
    let library = Library::new(&fixture("m4"));
    library.set_global(Mac::Controller, SILICON);
    library.key(0, b"PSTR", b"flt ", &20.0_f32.to_le_bytes());
    library.key(1, b"PCPT", b"flt ", &9.0_f32.to_le_bytes());
    let mut machine = Machine::with(library, m4());
    assert_eq!(
        names(&machine.inventory),
        ["psys", "cpu", "gpu", "ane", "dram", "gpu-sram"],
        "PCPT is in cpu already"
    );
    let domains = machine.domains();
    assert!(domains[1..5].iter().all(|domain| domain.parent.as_deref() == Some("psys")));
    assert_eq!(domain_tree::counted_in_total(&domains, &[true; 6]), [false, true, true, true, true, false]);
    assert!(domain_tree::counted_in_total(&domains, &[true, false, true, true, true, true])[0]);
    let first = machine.one("psys");
    let later = machine.read_at(machine.now_ns + S)[0];
    assert_eq!(later.energy_uj - first.energy_uj, 20_000_000);
    assert!(
        later.uncertainty_uj - first.uncertainty_uj >= 1_000_000_000,
        "between two looks it can have been anything"
    );
    // The controller goes away, and the message is not repeated.
    machine.library.set_global(Mac::Controller, 0);
    assert!(!machine.read_at(machine.now_ns + S)[0].valid);
    machine.inventory = Inventory::default();
    assert_eq!((machine.library.get_global(Mac::Entries), machine.library.get_global(Mac::Misused)), (0, 0));
}

#[test]
fn a_controller_that_refuses_or_shows_no_power_is_absent_with_the_reason() {
    let library = Library::new(&fixture("m4"));
    library.set_global(Mac::Controller, SILICON);
    library.set_global(Mac::ControllerRefuses, 0xe000_02c1);
    let inventory = discover(&library.settings(), &Clock::Machine);
    assert!(reasons(&inventory, "smc").contains("refuses the System Management Controller (0xe00002c1)"));
    library.set_global(Mac::ControllerRefuses, 0);
    library.key(0, b"PSTR", b"hex_", &[1, 2, 3, 4]);
    let inventory = discover(&library.settings(), &Clock::Machine);
    let reason = reasons(&inventory, "smc");
    assert!(reason.contains("PSTR has no readable power (its type is \"hex_\")"), "{reason}");
    assert!(reason.contains("no known power key"), "{reason}");
    assert_eq!((library.get_global(Mac::Entries), library.get_global(Mac::Misused)), (0, 0));
}

#[test]
fn a_missing_library_is_absent_with_the_loaders_error() {
    let mut settings = Library::new(&fixture("m1")).settings();
    settings.apple_library = Some("/nonexistent/libapple.so".into());
    let inventory = discover(&settings, &Clock::Machine);
    assert!(reasons(&inventory, "ioreport").contains("/nonexistent/libapple.so"));
    settings.apple_library = None;
    let inventory = discover(&settings, &Clock::Machine);
    assert_eq!(reasons(&inventory, "ioreport"), "available on macOS only");
}

#[test]
fn the_daemon_measures_a_fake_mac() {
    let library = Library::new(&fixture("m4-max"));
    for (channel, power_mw, batch_ns, unit_nj) in [
        ("CPU Energy", 30_000, 150 * MS, 1_000_000),
        ("GPU Energy", 12_000, 0, 1),
        ("DRAM0", 3_000, 150 * MS, 1_000_000),
    ] {
        library.set(channel, Knob::UnitNj, unit_nj);
        library.set(channel, Knob::BatchNs, batch_ns);
        library.set(channel, Knob::PowerMw, power_mw);
    }
    let dir = tempfile::tempdir().unwrap();
    let config = format!("[source]\nenabled = [\"ioreport\"]\napple_library = {:?}\n", library.path());
    std::fs::write(dir.path().join("wattspan.toml"), config).unwrap();
    let socket = dir.path().join("wattspan.sock");
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_wattspand"))
        .args(["--config".as_ref(), dir.path().join("wattspan.toml").as_os_str()])
        .args(["--socket".as_ref(), socket.as_os_str()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut call = |method: &str, parameters: serde_json::Value| -> serde_json::Value {
        let words =
            serde_json::json!({ "method": format!("org.wattspan.Meter.{method}"), "parameters": parameters });
        stream.write_all(format!("{words}\0").as_bytes()).unwrap();
        let mut answer = Vec::new();
        while answer.last() != Some(&0) {
            let mut chunk = [0; 65_536];
            let length = stream.read(&mut chunk).unwrap();
            assert!(length > 0, "it hung up");
            answer.extend_from_slice(&chunk[..length]);
        }
        serde_json::from_slice(&answer[..answer.len() - 1]).unwrap()
    };
    // On a busy machine the daemon is ready before the source has answered.
    wait_until("the domains are live", || {
        let info = call("GetInfo", serde_json::json!({}));
        let domains = info["parameters"]["domains"].as_array().unwrap();
        let is_live =
            |name: &str| domains.iter().any(|domain| domain["name"] == name && domain["liveness"] == "live");
        ["cpu", "gpu", "dram"].into_iter().all(is_live)
    });
    call("OpenSpan", serde_json::json!({ "span": "s" }));
    std::thread::sleep(Duration::from_millis(400));
    let account = call("CloseSpan", serde_json::json!({ "span": "s", "wait_settled": true }));
    let account = &account["parameters"]["account"];
    let doctor =
        Command::new(programs::wattspan()).args(["doctor", "--socket"]).arg(&socket).output().unwrap();
    let shown = String::from_utf8_lossy(&doctor.stdout);
    assert!(shown.contains("ioreport") && shown.contains("modelled"), "{shown}");
    assert!(shown.contains("report the results, right or wrong"), "the remedy for macOS is missing: {shown}");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert_eq!(account["grade"], "modelled", "{account}");
    let seconds =
        (account["closed_ns"].as_u64().unwrap() - account["opened_ns"].as_u64().unwrap()) as f64 / 1e9;
    for (domain, watts) in [("cpu", 30.0), ("gpu", 12.0), ("dram", 3.0)] {
        let row = account["domains"].as_array().unwrap().iter().find(|row| row["domain"] == domain).unwrap();
        let (figure, error) = (row["share_uj"].as_f64().unwrap(), row["error_uj"].as_f64().unwrap());
        assert!((figure - watts * seconds * 1e6).abs() <= error, "{domain}: {row} over {seconds} s");
    }
}
