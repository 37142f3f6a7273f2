//! Fake sysfs trees whose files change over time: the readings are compared with the truth.
//!
//! Each machine's power is a wave in closed form, so the true energy of any interval is known without the meter's code.
//! The shapes of the trees come from the kernel's documentation, named at each; their values are computed, not
//! recorded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::fuse_sysfs::{FuseMachine, MountedMachine, SquareWave};
use wattspan::attribution::{AttributionSettings, Attributor, NewSpan};
use wattspan::clock::{Clock, monotonic_ns};
use wattspan::domain::{Domain, DomainKind, Duplicate, EnergyReading, Grade, PowerLimits};
use wattspan::sources::dedup::domain_tree::counted_in_total;
use wattspan::sources::{Inventory, OpenedSource, SourceSettings, discover};
use wattspan_client::account::Account;

const MS: u64 = 1_000_000;

/// The update interval of the registers.
const UPDATE_NS: u64 = MS;

fn discover_sources(mounted: &MountedMachine, enabled: &[&str]) -> Inventory {
    discover(&mounted.settings(enabled), &Clock::Machine)
}

fn domains(inventory: &Inventory) -> Vec<Domain> {
    inventory.opened.iter().flat_map(|opened| opened.domains.clone()).collect()
}

fn domain(inventory: &Inventory, name: &str) -> Domain {
    let listed = domains(inventory);
    listed.iter().find(|domain| domain.name == name).unwrap_or_else(|| panic!("{name} in {listed:?}")).clone()
}

fn names(inventory: &Inventory) -> Vec<String> {
    domains(inventory).into_iter().map(|domain| domain.name).collect()
}

fn reasons(inventory: &Inventory) -> String {
    inventory.absent.iter().map(|absent| format!("{}: {}\n", absent.source, absent.reason)).collect()
}

/// Names of the domains in the total, if all are live.
fn counted_names(inventory: &Inventory) -> Vec<String> {
    let domains = domains(inventory);
    let counted = counted_in_total(&domains, &vec![true; domains.len()]);
    domains.into_iter().zip(counted).filter(|(_, counted)| *counted).map(|(domain, _)| domain.name).collect()
}

/// The account of a span, with the delays of this machine that its errors contain.
struct MeasuredSpan {
    account: Account,
    described: Vec<Domain>,
    /// The time between readings that were farther apart than [`USUAL_NS`], from the last one before the opening on.
    delayed_ns: u64,
}

impl std::ops::Deref for MeasuredSpan {
    type Target = Account;

    fn deref(&self) -> &Account {
        &self.account
    }
}

/// The longest time from a reading to the end of the next one on a machine that is not busy.
const USUAL_NS: u64 = 4 * MS;

/// Reads everything every millisecond through an attributor, with one span of 120 ms in the middle.
fn account(
    inventory: &mut Inventory,
    read: impl Fn(&mut OpenedSource, &mut [EnergyReading]),
) -> MeasuredSpan {
    let listed = domains(inventory);
    let counts = counted_in_total(&listed, &vec![true; listed.len()]);
    // Where this machine stands still for seconds, the counters do not.
    let settings = AttributionSettings { counter_timeout_ns: 60_000 * MS, ..AttributionSettings::default() };
    let mut attributor = Attributor::new(listed, settings);
    for (nth, counts) in counts.into_iter().enumerate() {
        attributor.domains().set_live(nth, true);
        attributor.domains().set_counted(nth, counts);
    }
    let mut readings: Vec<_> =
        inventory.opened.iter().map(|opened| vec![EnergyReading::default(); opened.domains.len()]).collect();
    let begin_ns = monotonic_ns();
    let (mut key, mut closed, mut settled) = (None, false, Vec::new());
    let (mut last_ns, mut delayed_ns) = (begin_ns, 0);
    while settled.is_empty() {
        let (mut nth, round_ns) = (0, monotonic_ns());
        for (opened, readings) in inventory.opened.iter_mut().zip(&mut readings) {
            let before_ns = monotonic_ns();
            read(opened, readings);
            let after_ns = monotonic_ns();
            for reading in readings.iter() {
                attributor.add_reading(nth, before_ns, after_ns, reading);
                nth += 1;
            }
        }
        let now_ns = monotonic_ns();
        if key.is_none() {
            delayed_ns = 0;
        }
        delayed_ns += Some(now_ns - last_ns).filter(|ns| *ns > USUAL_NS).unwrap_or(0);
        last_ns = round_ns;
        match key {
            None if now_ns > begin_ns + 60 * MS => {
                key = Some((attributor.open(now_ns, NewSpan::new("one", now_ns)).unwrap(), now_ns));
            }
            Some((key, opened_ns)) if !closed && now_ns > opened_ns + 120 * MS => {
                attributor.close(now_ns, key, now_ns, BTreeMap::new(), false).unwrap();
                closed = true;
            }
            _ => {}
        }
        attributor.settle(now_ns, &mut settled);
        assert!(now_ns < begin_ns + 20_000 * MS, "nothing settled");
        sleep(Duration::from_micros(800));
    }
    MeasuredSpan { account: settled.remove(0).1, described: domains(inventory), delayed_ns }
}

fn measure(inventory: &mut Inventory) -> MeasuredSpan {
    account(inventory, |opened, readings| {
        opened.source.read(readings);
    })
}

/// The true energy of several waves over a span.
fn truth_uj(account: &Account, waves: &[SquareWave]) -> f64 {
    let (from, to) = (account.opened_ns, account.closed_ns.unwrap());
    waves.iter().map(|wave| (wave.energy_pj(to) - wave.energy_pj(from)) as f64 / 1e6).sum()
}

/// Asserts that the truth is within the error of a domain's share, and that the error is at most `worth` × the truth, beside
/// what the domain can have used while this machine did not read it.
fn assert_holds(account: &MeasuredSpan, domain: &str, waves: &[SquareWave], worth: f64) {
    let described = account.described.iter().find(|described| described.name == domain).unwrap();
    let most_mw = match described.grade {
        Grade::Measured => waves.iter().map(|wave| wave.low_mw + wave.extra_mw).sum(),
        _ => described.ceiling_mw.unwrap(),
    };
    let unread_uj = most_mw as f64 * account.delayed_ns as f64 / 1e6;
    let account = &account.account;
    let share = account.domains.iter().find(|share| share.domain == domain).unwrap();
    let (shown, error) = (share.share_uj.unwrap() as f64, share.error_uj.unwrap() as f64);
    let truth = truth_uj(account, waves);
    println!("{domain}: {shown} ± {error} µJ, truth {truth:.0}");
    assert!((shown - truth).abs() <= error, "{domain}: {shown} ± {error}, truth {truth}");
    assert!(error <= truth * worth + unread_uj, "{domain}: {shown} ± {error} says nothing, truth {truth}");
}

/// Asserts that the total contains the truth of all counted waves.
fn assert_total_holds(account: &Account, waves: &[SquareWave]) {
    let (shown, error) = (account.share_uj.unwrap() as f64, account.error_uj.unwrap() as f64);
    let truth = truth_uj(account, waves);
    assert!((shown - truth).abs() <= error, "total {shown} ± {error}, truth {truth}");
}

/// A zone with the driver's files (linux drivers/powercap/intel_rapl_common.c), whose 32-bit register wraps `wrap_uj`
/// after the machine was built.
fn zone(
    machine: &mut FuseMachine,
    id: &str,
    name: &str,
    waves: &[SquareWave],
    unit_nj: u64,
    shift: u32,
    wrap_uj: u64,
) {
    let path = format!("sys/class/powercap/{id}");
    machine.text(&format!("{path}/name"), name);
    machine
        .text(&format!("{path}/max_energy_range_uj"), &(u64::from(u32::MAX) * unit_nj / 1_000).to_string());
    let waves = waves.to_vec();
    let counts = move |at: u64| waves.iter().map(|wave| wave.counts(at, UPDATE_NS, shift)).sum::<u64>();
    let wrap = (u128::from(wrap_uj) << shift) / 1_000_000;
    // `counts` depends on the host's uptime, so the offset is computed modulo 2^64, as the register wraps modulo 2^32.
    let offset = 0_u64.wrapping_sub(wrap as u64).wrapping_sub(counts(monotonic_ns()));
    machine.number(&format!("{path}/energy_uj"), move |at| {
        (counts(at).wrapping_add(offset) & 0xFFFF_FFFF) * unit_nj / 1_000
    });
}

const CPU0: SquareWave = SquareWave::new(20_000, 120_000, 7 * MS, 3 * MS);
const CPU1: SquareWave = SquareWave::new(15_000, 80_000, 11 * MS, 5 * MS);
const MEMORY: SquareWave = SquareWave::new(5_000, 9_000, 3 * MS, MS);
const REST: SquareWave = SquareWave::steady(30_000);

/// Two packages, memory, and a platform counter above them. Shape: linux Documentation/power/powercap/powercap.rst.
fn server() -> FuseMachine {
    let mut machine = FuseMachine::new();
    machine
        .text("proc/cpuinfo", "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 106\nflags\t\t: fpu");
    machine.text("sys/class/powercap/intel-rapl/enabled", "1");
    zone(&mut machine, "intel-rapl:0", "package-0", &[CPU0], 61_035, 14, 9_000_000);
    zone(&mut machine, "intel-rapl:0:0", "dram", &[MEMORY], 15_300, 16, 900_000_000);
    zone(&mut machine, "intel-rapl:1", "package-1", &[CPU1], 61_035, 14, 900_000_000);
    zone(&mut machine, "intel-rapl:2", "psys", &[CPU0, CPU1, MEMORY, REST], 61_035, 14, 900_000_000);
    machine
}

#[test]
fn powercap_matches_the_ground_truth_over_wraps_and_counts_the_platform_once() {
    let Some(mounted) = server().mount() else { return };
    let mut inventory = discover_sources(&mounted, &["powercap"]);
    assert_eq!(names(&inventory), ["package-0", "dram-0", "package-1", "psys"], "{}", reasons(&inventory));
    assert_eq!(counted_names(&inventory), ["psys"]);
    let account = measure(&mut inventory);
    for (name, waves) in [
        ("package-0", &[CPU0][..]),
        ("package-1", &[CPU1]),
        ("dram-0", &[MEMORY]),
        ("psys", &[CPU0, CPU1, MEMORY, REST]),
    ] {
        assert_holds(&account, name, waves, 0.3);
    }
    assert_total_holds(&account, &[CPU0, CPU1, MEMORY, REST]);
}

#[test]
fn a_zone_that_wraps_while_it_is_read_goes_on_in_the_same_epoch() {
    let mut machine = FuseMachine::new();
    // 100 W reach the wrap 30 ms from now, and not again during this test.
    let steady = SquareWave::steady(100_000);
    zone(&mut machine, "intel-rapl:0", "package-0", &[steady], 15_258, 16, 3_000_000);
    let Some(mounted) = machine.mount() else { return };
    let mut inventory = discover_sources(&mounted, &["powercap"]);
    let path = mounted.settings(&[]).sysfs_root.join("class/powercap/intel-rapl:0/energy_uj");
    let shown = || std::fs::read_to_string(&path).unwrap().trim().parse::<u64>().unwrap();
    let account = measure(&mut inventory);
    assert!(shown() < 60_000_000_000, "it did wrap: {}", shown());
    assert_holds(&account, "package-0", &[steady], 0.2);
    assert_eq!(account.domains[0].unknown_ns, 0);
}

#[test]
fn mirrored_zones_are_no_independent_pair_and_unreadable_zones_give_a_remedy() {
    let mut machine = FuseMachine::new();
    // The two dies of a Threadripper show one counter.
    zone(&mut machine, "intel-rapl:0", "package-0-die-0", &[CPU0], 15_258, 16, 900_000_000);
    machine_twin(&mut machine, "intel-rapl:1", "package-0-die-1", "intel-rapl:0");
    zone(&mut machine, "intel-rapl:2", "package-1", &[CPU1], 15_258, 16, 900_000_000);
    let Some(mounted) = machine.mount() else { return };
    mounted.deny("sys/class/powercap/intel-rapl:2/energy_uj");
    let inventory = discover_sources(&mounted, &["powercap"]);
    assert_eq!(names(&inventory), ["package-0-die-0", "package-0-die-1"], "{}", reasons(&inventory));
    let [pair] = &inventory.duplicates[..] else { panic!("{:?}", inventory.duplicates) };
    assert_eq!((&*pair.original, &*pair.copy), ("package-0-die-0", "package-0-die-1"));
    assert_ne!(pair.state(), Duplicate::Independent);
    let reasons = reasons(&inventory);
    assert!(reasons.contains("package-1: only root can read energy_uj"), "{reasons}");
}

/// A zone whose counter is a link to another zone's, under a name of its own.
fn machine_twin(machine: &mut FuseMachine, id: &str, name: &str, of: &str) {
    let path = format!("sys/class/powercap/{id}");
    machine.text(&format!("{path}/name"), name);
    machine.text(&format!("{path}/max_energy_range_uj"), "65532610987");
    machine.alias(&format!("{path}/energy_uj"), &format!("sys/class/powercap/{of}/energy_uj"));
}

#[test]
fn a_zone_that_goes_away_leaves_a_gap_and_comes_back_without_extra_energy() {
    let Some(mounted) = server().mount() else { return };
    let mut inventory = discover_sources(&mounted, &["powercap"]);
    let opened = &mut inventory.opened[0];
    let mut readings = vec![EnergyReading::default(); opened.domains.len()];
    opened.source.read(&mut readings);
    let before = readings[0];
    mounted.hide("sys/class/powercap/intel-rapl:0");
    opened.source.read(&mut readings);
    assert!(!readings[0].valid && readings[1].valid && readings[2].valid);
    mounted.show("sys/class/powercap/intel-rapl:0");
    let end = Instant::now() + Duration::from_secs(20);
    while !readings[0].valid && Instant::now() < end {
        sleep(Duration::from_millis(50));
        opened.source.read(&mut readings);
    }
    assert_eq!((readings[0].valid, readings[0].epoch), (true, before.epoch + 1));
    assert!(readings[0].energy_uj - before.energy_uj < 10_000_000, "what passed meanwhile is not known");
}

/// A chip of a PCI card: `sys/class/hwmon/hwmonN` with its files, `device` as a link.
fn chip(machine: &mut FuseMachine, nth: usize, name: &str, device: &str) -> String {
    let path = format!("sys/class/hwmon/hwmon{nth}");
    machine.text(&format!("{path}/name"), name);
    machine.link(&format!("{path}/device"), device);
    path
}

const CARD: SquareWave = SquareWave::new(40_000, 190_000, 9 * MS, 4 * MS);
const DIE: SquareWave = SquareWave::new(30_000, 150_000, 9 * MS, 4 * MS);

#[test]
fn a_card_of_xe_counts_its_package_within_itself() {
    // Shape: linux Documentation/ABI/testing/sysfs-driver-intel-xe-hwmon.
    let mut machine = FuseMachine::new();
    let chip = chip(&mut machine, 4, "xe", "sys/devices/pci0000:00/0000:00:01.0/0000:03:00.0");
    machine.number(&format!("{chip}/energy1_input"), |at| CARD.energy_uj(at / UPDATE_NS * UPDATE_NS));
    machine.number(&format!("{chip}/energy2_input"), |at| DIE.energy_uj(at / UPDATE_NS * UPDATE_NS));
    machine.text(&format!("{chip}/energy1_label"), "card");
    machine.text(&format!("{chip}/energy2_label"), "pkg");
    let Some(mounted) = machine.mount() else { return };
    let mut inventory = discover_sources(&mounted, &["intelgpu", "hwmon"]);
    assert_eq!(names(&inventory), ["intelgpu-0", "intelgpu-0-package"], "{}", reasons(&inventory));
    assert_eq!(domain(&inventory, "intelgpu-0").device.as_deref(), Some("0000:03:00.0"));
    assert_eq!(domain(&inventory, "intelgpu-0").quantum_uj, 63);
    assert_eq!(counted_names(&inventory), ["intelgpu-0"]);
    let account = measure(&mut inventory);
    assert_holds(&account, "intelgpu-0", &[CARD], 0.5);
    assert_holds(&account, "intelgpu-0-package", &[DIE], 0.5);
    assert_total_holds(&account, &[CARD]);
}

#[test]
fn cards_whose_driver_is_loaded_again_are_found_under_their_new_numbers_after_a_gap() {
    const WATTS: [u64; 2] = [40, 200];
    let mut machine = FuseMachine::new();
    // Each card has one number before and another one after; the order of the cards changes.
    for (number, card) in [(1, 0), (2, 1), (5, 1), (6, 0)] {
        let path = chip(&mut machine, number, "xe", &format!("sys/devices/pci0000:00/0000:0{card}:00.0"));
        let wave = SquareWave::steady(WATTS[card] * 1_000);
        machine.number(&format!("{path}/energy1_input"), move |at| wave.energy_uj(at));
    }
    let Some(mounted) = machine.mount() else { return };
    let number = |number: u32| format!("sys/class/hwmon/hwmon{number}");
    [5, 6].iter().for_each(|&nth| mounted.hide(&number(nth)));
    let mut inventory = discover_sources(&mounted, &["intelgpu"]);
    assert_eq!(names(&inventory), ["intelgpu-0", "intelgpu-1"], "{}", reasons(&inventory));
    let mut read = || -> Vec<EnergyReading> {
        let of = |opened: &mut OpenedSource| {
            let mut reading = [EnergyReading::default()];
            opened.source.read(&mut reading);
            reading[0]
        };
        inventory.opened.iter_mut().map(of).collect()
    };
    let before = read();
    [1, 2].iter().for_each(|&nth| mounted.hide(&number(nth)));
    assert!(read().iter().all(|reading| !reading.valid));
    [5, 6].iter().for_each(|&nth| mounted.show(&number(nth)));
    let end = Instant::now() + Duration::from_secs(20);
    let (mut from_ns, mut back) = (monotonic_ns(), read());
    while !back.iter().all(|reading| reading.valid) && Instant::now() < end {
        sleep(Duration::from_millis(50));
        (from_ns, back) = (monotonic_ns(), read());
    }
    sleep(Duration::from_millis(200));
    let (later, to_ns) = (read(), monotonic_ns());
    for (card, watts) in WATTS.into_iter().enumerate() {
        assert!(back[card].valid && later[card].valid, "{back:?}");
        assert_eq!((back[card].epoch, later[card].epoch), (before[card].epoch + 1, before[card].epoch + 1));
        let most_uj = watts * (to_ns - from_ns) / 1_000;
        let grown_uj = later[card].energy_uj - back[card].energy_uj;
        assert!((watts * 200_000..=most_uj).contains(&grown_uj), "card {card}: {grown_uj} µJ of {most_uj}");
    }
}

#[test]
fn the_tiles_of_i915_lie_within_their_card_and_a_sleeping_card_is_left_asleep() {
    // Shape: linux Documentation/ABI/testing/sysfs-driver-intel-i915-hwmon, and the names of i915_hwmon.c.
    let mut machine = FuseMachine::new();
    let device = "sys/devices/pci0000:00/0000:8c:00.0";
    for (nth, name, wave) in [(0, "i915_gt0", DIE), (1, "i915", CARD)] {
        let chip = chip(&mut machine, nth, name, device);
        machine.number(&format!("{chip}/energy1_input"), move |at| wave.energy_uj(at));
    }
    let asleep = Arc::new(AtomicBool::new(false));
    let is_asleep = Arc::clone(&asleep);
    machine.bytes(&format!("{device}/power/runtime_status"), move |_, _| {
        if is_asleep.load(Ordering::Relaxed) { b"suspended\n".to_vec() } else { b"active\n".to_vec() }
    });
    let Some(mounted) = machine.mount() else { return };
    let mut inventory = discover_sources(&mounted, &["intelgpu", "hwmon"]);
    assert_eq!(counted_names(&inventory), ["intelgpu-0"]);
    assert_eq!(domain(&inventory, "intelgpu-0-gt0").parent.as_deref(), Some("intelgpu-0"));
    let mut readings = [EnergyReading::default(); 2];
    inventory.opened[0].source.read(&mut readings);
    assert!(readings.iter().all(|reading| reading.valid));
    asleep.store(true, Ordering::Relaxed);
    inventory.opened[0].source.read(&mut readings);
    assert!(readings.iter().all(|reading| !reading.valid), "missing is not zero");
}

/// `gpu_metrics` 1.3 as the driver fills it once per millisecond (linux kgd_pp_interface.h): the accumulator at byte
/// 24, the driver's stamp at 32, the mean power in watts at 22.
fn gpu_metrics(now_ns: u64, count: u64, power_w: u16) -> Vec<u8> {
    let mut table = vec![0_u8; 120];
    table[..4].copy_from_slice(&[120, 0, 1, 3]);
    table[22..24].copy_from_slice(&power_w.to_le_bytes());
    table[24..32].copy_from_slice(&count.to_le_bytes());
    let boot_ns = now_ns + Clock::Machine.suspended_ns();
    table[32..40].copy_from_slice(&boot_ns.to_le_bytes());
    table
}

/// An AMD GPU with the given accumulator and power.
fn amd_card(
    machine: &mut FuseMachine,
    nth: usize,
    address: &str,
    count: impl Fn(u64) -> (u64, u16) + Send + Sync + 'static,
) {
    let device = format!("sys/devices/pci0000:00/{address}");
    machine.text(&format!("{device}/vendor"), "0x1002");
    machine.text(&format!("{device}/hwmon/hwmon{nth}/name"), "amdgpu");
    machine.link(&format!("{device}/hwmon/hwmon{nth}/device"), &device);
    machine.number(&format!("{device}/hwmon/hwmon{nth}/power1_average"), |at| CARD.power_uw(at));
    machine.text(&format!("{device}/hwmon/hwmon{nth}/power1_cap_max"), "300000000");
    machine.bytes(&format!("{device}/gpu_metrics"), move |now_ns, _| {
        let (count, power_w) = count(now_ns / MS * MS);
        gpu_metrics(now_ns, count, power_w)
    });
    machine.link(&format!("sys/class/drm/card{nth}/device"), &device);
    machine.text(&format!("sys/class/drm/card{nth}-DP-1/status"), "connected");
    machine.link(&format!("sys/class/hwmon/hwmon{nth}"), &format!("{device}/hwmon/hwmon{nth}"));
}

#[test]
fn an_accumulator_of_amd_counts_in_two_to_the_minus_16_joules() {
    let mut machine = FuseMachine::new();
    amd_card(&mut machine, 0, "0000:03:00.0", |at| (CARD.counts(at, MS, 16), 107));
    let Some(mounted) = machine.mount() else { return };
    let mut inventory = discover_sources(&mounted, &["amdgpu", "hwmon"]);
    assert_eq!(names(&inventory), ["amdgpu-0"], "{}", reasons(&inventory));
    let card = domain(&inventory, "amdgpu-0");
    assert_eq!((card.grade, card.device.as_deref()), (Grade::Measured, Some("0000:03:00.0")));
    assert_eq!(inventory.opened[0].advanced, [true]);
    let account = measure(&mut inventory);
    assert_holds(&account, "amdgpu-0", &[CARD], 0.5);
    assert_total_holds(&account, &[CARD]);
}

#[test]
fn four_amd_cards_are_each_read_by_the_best_counter() {
    let mut machine = FuseMachine::new();
    // A live one, its second die without energy and power, one that stands still, and one that counts microjoules.
    amd_card(&mut machine, 0, "0000:03:00.0", |at| (CARD.counts(at, MS, 16), 107));
    amd_card(&mut machine, 1, "0000:04:00.0", |_| (0, 0));
    amd_card(&mut machine, 2, "0000:05:00.0", |_| (77_777, 107));
    amd_card(&mut machine, 3, "0000:06:00.0", |at| (CARD.energy_uj(at), 107));
    let Some(mounted) = machine.mount() else { return };
    let mut inventory = discover_sources(&mounted, &["amdgpu"]);
    let reasons = reasons(&inventory);
    assert_eq!(names(&inventory), ["amdgpu-0", "amdgpu-1", "amdgpu-2"], "{reasons}");
    assert!(reasons.contains("0000:04:00.0: reports neither energy nor power"), "{reasons}");
    assert!(
        reasons.contains(
            "0000:05:00.0: the energy accumulator does not advance; it reads 77777; power1_average is"
        ),
        "{reasons}"
    );
    assert!(reasons.contains("0000:06:00.0") && reasons.contains("its unit is not 2^-16 J"), "{reasons}");
    let grades: Vec<_> = domains(&inventory).iter().map(|domain| domain.grade).collect();
    assert_eq!(grades, [Grade::Measured, Grade::Integrated, Grade::Integrated]);
    let account = measure(&mut inventory);
    // A momentary sensor misses changes, which its uncertainty covers: up to three times the board's limit at any time.
    for name in ["amdgpu-1", "amdgpu-2"] {
        assert_holds(&account, name, &[CARD], 9.0);
    }
    assert_total_holds(&account, &[CARD, CARD, CARD]);
}

#[test]
fn a_card_of_amd_that_is_removed_and_comes_back_is_a_gap_and_no_energy() {
    let mut machine = FuseMachine::new();
    let went_ns = Arc::new(AtomicU64::new(u64::MAX));
    let back_ns = Arc::clone(&went_ns);
    // The accumulator starts at 0 when the card comes back.
    let count = move |at: u64| {
        let start_ns = back_ns.load(Ordering::Relaxed);
        if at < start_ns { CARD.counts(at, MS, 16) } else { CARD.counts(at - start_ns, MS, 16) }
    };
    amd_card(&mut machine, 0, "0000:03:00.0", move |at| (count(at), 107));
    let Some(mounted) = machine.mount() else { return };
    let mut inventory = discover_sources(&mounted, &["amdgpu"]);
    assert_eq!(domain(&inventory, "amdgpu-0").grade, Grade::Measured, "{}", reasons(&inventory));
    let mut read = || {
        let mut reading = [EnergyReading::default()];
        inventory.opened[0].source.read(&mut reading);
        reading[0]
    };
    read();
    sleep(Duration::from_millis(50));
    let before = read();
    assert!(before.valid && before.energy_uj > 0);
    mounted.hide("sys/devices/pci0000:00/0000:03:00.0");
    assert!(!read().valid && !read().valid, "missing is not zero");
    went_ns.store(monotonic_ns() / MS * MS, Ordering::Relaxed);
    mounted.show("sys/devices/pci0000:00/0000:03:00.0");
    let end = Instant::now() + Duration::from_secs(20);
    let mut back = read();
    while !back.valid && Instant::now() < end {
        sleep(Duration::from_millis(50));
        back = read();
    }
    assert_eq!((back.valid, back.epoch, back.energy_uj), (true, before.epoch + 1, before.energy_uj));
    sleep(Duration::from_millis(100));
    let later = read();
    assert!(
        later.epoch == back.epoch && later.energy_uj >= back.energy_uj + 3_500_000,
        "{later:?} after {back:?}"
    );
}

#[test]
fn a_card_that_sleeps_is_not_woken_and_is_metered_once_it_is_awake() {
    let (asleep, reads) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let mut machine = FuseMachine::new();
    let device = "sys/devices/pci0000:00/0000:03:00.0";
    machine.text(&format!("{device}/vendor"), "0x1002");
    machine.text(&format!("{device}/hwmon/hwmon0/name"), "amdgpu");
    for file in ["gpu_metrics", "hwmon/hwmon0/power1_average"] {
        let reads = Arc::clone(&reads);
        machine.number(&format!("{device}/{file}"), move |_| {
            reads.fetch_add(1, Ordering::Relaxed);
            15_000_000
        });
    }
    let status = Arc::clone(&asleep);
    machine.bytes(&format!("{device}/power/runtime_status"), move |_, _| {
        if status.load(Ordering::Relaxed) { b"suspended\n".to_vec() } else { b"active\n".to_vec() }
    });
    machine.link("sys/class/drm/card0/device", device);
    let Some(mounted) = machine.mount() else { return };
    let mut inventory = discover_sources(&mounted, &["amdgpu", "hwmon"]);
    assert_eq!(names(&inventory), ["amdgpu-0"], "{}", reasons(&inventory));
    assert!(reasons(&inventory).contains("the card is suspended"), "{}", reasons(&inventory));
    let mut reading = [EnergyReading::default()];
    inventory.opened[0].source.read(&mut reading);
    assert!(!reading[0].valid, "missing is not zero");
    assert_eq!(reads.load(Ordering::Relaxed), 0, "it was woken");
    asleep.store(false, Ordering::Relaxed);
    inventory.opened[0].source.read(&mut reading);
    sleep(Duration::from_millis(5));
    inventory.opened[0].source.read(&mut reading);
    assert!(reading[0].valid && reading[0].energy_uj >= 5 * 15_000, "{reading:?}");
}

/// A power meter of NVIDIA's Grace, in the layout before Linux 6.13 (`device/`) or after. Shape: linux
/// Documentation/hwmon/acpi_power_meter.rst and the labels of NVIDIA's Grace performance tuning guide.
fn grace_meter(machine: &mut FuseMachine, nth: usize, label: &str, waves: &'static [SquareWave], old: bool) {
    let chip = format!("sys/class/hwmon/hwmon{nth}");
    let device = format!("sys/devices/LNXSYSTM:00/ACPI000D:{nth:02}");
    machine.link(&format!("{chip}/device"), &device);
    let files = if old { device } else { chip };
    machine.text(&format!("{files}/name"), "power_meter");
    machine.text(&format!("{files}/power1_oem_info"), label);
    machine.text(&format!("{files}/power1_average_interval"), "50");
    machine.number(&format!("{files}/power1_average"), move |at| {
        waves.iter().map(|wave| wave.mean_uw(at, 50 * MS)).sum()
    });
    machine.text(&format!("{files}/power1_cap_max"), "1000000000");
}

const HOPPER: SquareWave = SquareWave::new(80_000, 500_000, 13 * MS, 6 * MS);

fn grace_hopper() -> FuseMachine {
    let mut machine = FuseMachine::new();
    grace_meter(&mut machine, 0, "Module Power Socket 0", &[CPU0, MEMORY, REST, HOPPER], false);
    grace_meter(&mut machine, 1, "Grace Power Socket 0", &[CPU0, MEMORY], true);
    grace_meter(&mut machine, 2, "CPU Power Socket 0", &[CPU0], true);
    grace_meter(&mut machine, 3, "SysIO Power Socket 0", &[MEMORY], true);
    machine
}

#[test]
fn grace_is_counted_by_its_module_and_its_means_are_within_their_bound() {
    let Some(mounted) = grace_hopper().mount() else { return };
    let mut inventory = discover_sources(&mounted, &["hwmon"]);
    assert_eq!(names(&inventory), ["module-0", "grace-0", "cpu-0", "sysio-0"], "{}", reasons(&inventory));
    assert_eq!(inventory.opened.len(), 1, "the firmware reads all of its meters for each of them");
    for (name, parent) in [("grace-0", "module-0"), ("cpu-0", "grace-0"), ("sysio-0", "grace-0")] {
        assert_eq!(domain(&inventory, name).parent.as_deref(), Some(parent), "{name}");
    }
    assert_eq!(domain(&inventory, "module-0").grade, Grade::Integrated);
    assert_eq!(counted_names(&inventory), ["module-0"]);
    let account = measure(&mut inventory);
    // Means over 50 ms on a span of 120 ms: the edges are blurred, which the error must cover.
    assert_holds(&account, "module-0", &[CPU0, MEMORY, REST, HOPPER], 5.0);
    assert_holds(&account, "cpu-0", &[CPU0], 5.0);
    assert_total_holds(&account, &[CPU0, MEMORY, REST, HOPPER]);
}

/// An INA3221 as on Jetson boards. Shape: linux Documentation/hwmon/ina3221.rst; labels: the device trees of
/// tegra234-p3767 and -p3701.
fn ina3221(machine: &mut FuseMachine, nth: usize, rails: &[(&str, SquareWave)]) {
    let chip = chip(machine, nth, "ina3221", &format!("sys/devices/platform/c240000.i2c/i2c-1/1-004{nth}"));
    for (channel, (label, wave)) in (1..).zip(rails.iter().copied()) {
        machine.text(&format!("{chip}/in{channel}_label"), label);
        machine.text(&format!("{chip}/in{channel}_enable"), "1");
        machine.text(&format!("{chip}/in{channel}_input"), "5000");
        machine.number(&format!("{chip}/curr{channel}_input"), move |at| wave.power_uw(at) / 5_000);
    }
    machine.text(&format!("{chip}/in7_label"), "sum of shunt voltages");
    machine.text(&format!("{chip}/in7_input"), "123456");
    machine.text(&format!("{chip}/curr4_input"), "99999");
    machine.text(&format!("{chip}/update_interval"), "10");
}

#[test]
fn a_jetson_nano_is_counted_by_its_input() {
    let (input, cpu_gpu, soc) =
        (SquareWave::steady(15_000), SquareWave::steady(8_000), SquareWave::steady(3_000));
    let mut machine = FuseMachine::new();
    ina3221(&mut machine, 0, &[("VDD_IN", input), ("VDD_CPU_GPU_CV", cpu_gpu), ("VDD_SOC", soc)]);
    let Some(mounted) = machine.mount() else { return };
    let mut inventory = discover_sources(&mounted, &["hwmon"]);
    assert_eq!(names(&inventory), ["vdd-in", "vdd-cpu-gpu-cv", "vdd-soc"], "{}", reasons(&inventory));
    assert_eq!(counted_names(&inventory), ["vdd-in"]);
    assert_eq!(inventory.opened[0].max_rate_hz, 100.0);
    assert_eq!(inventory.opened[0].advanced, [true, true, true]);
    let account = measure(&mut inventory);
    let share = account.domains.iter().find(|share| share.domain == "vdd-in").unwrap();
    let truth = truth_uj(&account, &[input]);
    let off = (share.share_uj.unwrap() as f64 - truth).abs();
    assert!(off <= truth * 0.01, "steady power is integrated as it is: {share:?}, truth {truth}");
    assert_total_holds(&account, &[input]);
}

#[test]
fn a_jetson_agx_without_an_input_is_the_sum_of_its_rails_without_the_memory_twice() {
    let rail = SquareWave::steady(10_000);
    let mut machine = FuseMachine::new();
    ina3221(&mut machine, 0, &[("VDD_GPU_SOC", rail), ("VDD_CPU_CV", rail), ("VIN_SYS_5V0", rail)]);
    ina3221(&mut machine, 1, &[("NC", rail), ("VDDQ_VDD2_1V8AO", rail), ("NC", rail)]);
    let Some(mounted) = machine.mount() else { return };
    let inventory = discover_sources(&mounted, &["hwmon"]);
    assert_eq!(
        counted_names(&inventory),
        ["vdd-gpu-soc", "vdd-cpu-cv", "vin-sys-5v0"],
        "{}",
        reasons(&inventory)
    );
    assert_eq!(domain(&inventory, "vddq-vdd2-1v8ao").parent.as_deref(), Some("vin-sys-5v0"));
}

#[test]
fn an_unknown_rail_is_shown_and_never_counted_and_a_graphics_card_is_not_read_twice() {
    let mut machine = FuseMachine::new();
    let ina = chip(&mut machine, 0, "ina226", "sys/devices/platform/i2c-0/0-0040");
    machine.number(&format!("{ina}/power1_input"), |at| REST.power_uw(at));
    let amd = chip(&mut machine, 1, "amdgpu", "sys/devices/pci0000:00/0000:03:00.0");
    machine.number(&format!("{amd}/power1_average"), |at| CARD.power_uw(at));
    let battery = chip(&mut machine, 2, "BAT0", "sys/devices/LNXSYSTM:00/power_supply/BAT0");
    machine.number(&format!("{battery}/power1_input"), |at| CARD.power_uw(at));
    let socket = chip(&mut machine, 3, "amd_energy", "sys/devices/platform/amd_energy.0");
    machine.text(&format!("{socket}/energy1_label"), "Ecore000");
    machine.number(&format!("{socket}/energy1_input"), |at| DIE.energy_uj(at));
    machine.text(&format!("{socket}/energy2_label"), "Esocket0");
    machine.number(&format!("{socket}/energy2_input"), |at| CPU0.energy_uj(at));
    zone(&mut machine, "intel-rapl:0", "package-0", &[CPU0], 15_258, 16, 900_000_000);
    let Some(mounted) = machine.mount() else { return };
    let inventory = discover_sources(&mounted, &["powercap", "hwmon"]);
    assert_eq!(
        names(&inventory),
        ["package-0", "amd-energy-0-ecore000", "ina226-0-power1"],
        "{}",
        reasons(&inventory)
    );
    for rail in ["ina226-0-power1", "amd-energy-0-ecore000"] {
        assert_eq!(domain(&inventory, rail).kind, DomainKind::Rail);
    }
    assert_eq!(counted_names(&inventory), ["package-0"]);
    assert!(reasons(&inventory).contains("hwmon: package-0 is read by powercap"), "{}", reasons(&inventory));
    assert!(!reasons(&inventory).contains("does not agree"), "{}", reasons(&inventory));
}

/// A chip of `amd_energy` with the counter of one socket and those of its cores.
fn amd_energy(machine: &mut FuseMachine, cores: u32) -> String {
    let path = chip(machine, 0, "amd_energy", "sys/devices/platform/amd_energy.0");
    machine.text(&format!("{path}/energy1_label"), "Esocket0");
    machine.number(&format!("{path}/energy1_input"), |at| CPU0.energy_uj(at));
    for core in 0..cores {
        let channel = core + 2;
        machine.text(&format!("{path}/energy{channel}_label"), &format!("Ecore{core:03}"));
        machine.number(&format!("{path}/energy{channel}_input"), |at| DIE.energy_uj(at));
    }
    path
}

#[test]
fn a_core_that_cannot_be_read_does_not_slow_the_counter_of_its_socket() {
    let mut machine = FuseMachine::new();
    let path = amd_energy(&mut machine, 1);
    let Some(mounted) = machine.mount() else { return };
    mounted.deny(&format!("{path}/energy2_input"));
    let inventory = discover_sources(&mounted, &["hwmon"]);
    assert_eq!(names(&inventory), ["package-0"], "{}", reasons(&inventory));
    assert_eq!(inventory.opened[0].max_rate_hz, 1_000.0);
    assert!(reasons(&inventory).contains("only root can read it"), "{}", reasons(&inventory));
}

#[test]
fn the_counters_of_many_cores_are_not_opened_and_have_one_reason() {
    let mut machine = FuseMachine::new();
    let path = amd_energy(&mut machine, 33);
    let Some(mounted) = machine.mount() else { return };
    mounted.deny(&format!("{path}/energy2_input"));
    let inventory = discover_sources(&mounted, &["hwmon"]);
    assert_eq!(names(&inventory), ["package-0"], "{}", reasons(&inventory));
    let reasons = reasons(&inventory);
    assert!(reasons.contains("amd_energy: the counters of its 33 cores are not read"), "{reasons}");
    assert!(!reasons.contains("only root"), "{reasons}");
}

#[test]
fn a_chips_counter_claims_no_finer_step_and_no_less_delay_than_the_register_behind_it() {
    // Shape: linux Documentation/hwmon/amd_energy.rst; its registers are RAPL's.
    let mut machine = FuseMachine::new();
    let socket = chip(&mut machine, 0, "amd_energy", "sys/devices/platform/amd_energy.0");
    machine.text(&format!("{socket}/energy1_label"), "Esocket0");
    machine.number(&format!("{socket}/energy1_input"), |at| CPU0.energy_uj(at / UPDATE_NS * UPDATE_NS));
    let unknown = chip(&mut machine, 1, "ltc4282", "sys/devices/platform/i2c-0/0-0040");
    machine.number(&format!("{unknown}/energy1_input"), |at| REST.energy_uj(at / UPDATE_NS * UPDATE_NS));
    let Some(mounted) = machine.mount() else { return };
    let inventory = discover_sources(&mounted, &["hwmon"]);
    assert_eq!(names(&inventory), ["package-0", "ltc4282-0-energy1"], "{}", reasons(&inventory));
    let of = |name: &str| (domain(&inventory, name).quantum_uj, domain(&inventory, name).latency_ns);
    assert_eq!(of("package-0"), (17, 50_000));
    assert_eq!(of("ltc4282-0-energy1"), (63, MS), "nothing is known of it");
}

#[test]
fn a_battery_is_metered_while_it_discharges_and_never_counted() {
    // Shape: linux Documentation/ABI/testing/sysfs-class-power.
    let draw = SquareWave::steady(12_000);
    let mut machine = FuseMachine::new();
    let charges = Arc::new(AtomicBool::new(false));
    for (name, scope) in [("BAT0", "System"), ("hidpp_battery_0", "Device")] {
        let path = format!("sys/class/power_supply/{name}");
        machine.text(&format!("{path}/type"), "Battery");
        machine.text(&format!("{path}/scope"), scope);
        machine.text(&format!("{path}/voltage_now"), "12000000");
        // Some drivers show the discharge current as negative.
        machine.bytes(&format!("{path}/current_now"), move |at, _| {
            format!("-{}\n", draw.power_uw(at) / 12).into_bytes()
        });
        let is_charging = Arc::clone(&charges);
        machine.bytes(&format!("{path}/status"), move |_, _| {
            if is_charging.load(Ordering::Relaxed) {
                b"Charging\n".to_vec()
            } else {
                b"Discharging\n".to_vec()
            }
        });
    }
    machine.text("sys/class/power_supply/AC/type", "Mains");
    zone(&mut machine, "intel-rapl:0", "package-0", &[CPU0], 61_035, 14, 900_000_000);
    let Some(mounted) = machine.mount() else { return };
    let mut inventory = discover_sources(&mounted, &["powercap", "battery"]);
    assert_eq!(names(&inventory), ["package-0", "battery-0"], "{}", reasons(&inventory));
    assert_eq!(counted_names(&inventory), ["package-0"]);
    let account = measure(&mut inventory);
    assert_total_holds(&account, &[CPU0]);
    let share = account.domains.iter().find(|share| share.domain == "battery-0").unwrap();
    let truth = truth_uj(&account, &[draw]);
    assert!((share.share_uj.unwrap() as f64 - truth).abs() <= truth * 0.01, "{share:?}, truth {truth}");
    charges.store(true, Ordering::Relaxed);
    let mut reading = [EnergyReading::default()];
    inventory.opened[1].source.read(&mut reading);
    assert!(!reading[0].valid, "a charging battery has no valid reading");
}

/// MSR files of CPUs 0 to 3, two per package: the unit register and the energy registers, each at its offset (msr(4);
/// linux arch/x86/include/asm/msr-index.h).
fn registers(machine: &mut FuseMachine, memory_shift: u32) {
    machine.text("proc/cpuinfo", "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nflags\t\t: fpu");
    for cpu in 0..4_usize {
        let (wave, memory) = [(CPU0, MEMORY), (CPU1, CARD)][cpu / 2];
        machine.text(
            &format!("sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id"),
            &(cpu / 2).to_string(),
        );
        machine.bytes(&format!("cpu/{cpu}/msr"), move |at, register| {
            let value = match register {
                0x606 => 0xA_0E03,
                0x611 => wave.counts(at, UPDATE_NS, 14) & 0xFFFF_FFFF,
                0x619 => memory.counts(at, UPDATE_NS, memory_shift) & 0xFFFF_FFFF,
                _ => 0,
            };
            value.to_le_bytes().to_vec()
        });
    }
}

#[test]
fn registers_are_read_where_the_configuration_names_them_with_their_models_units() {
    let mut machine = FuseMachine::new();
    registers(&mut machine, 16);
    let zone = "sys/class/powercap/intel-rapl:1";
    machine.text(&format!("{zone}/name"), "package-1");
    machine.text(&format!("{zone}/constraint_0_name"), "peak_power");
    machine.text(&format!("{zone}/constraint_0_power_limit_uw"), "420000000");
    let Some(mounted) = machine.mount() else { return };
    let defaults = SourceSettings { enabled: SourceSettings::default().enabled, ..mounted.settings(&[]) };
    assert!(!names(&discover(&defaults, &Clock::Machine)).contains(&"package-0".to_owned()));
    let mut inventory = discover_sources(&mounted, &["perf", "powercap", "msr"]);
    assert_eq!(names(&inventory), ["package-0", "dram-0", "package-1", "dram-1"], "{}", reasons(&inventory));
    let account = measure(&mut inventory);
    for (name, wave) in [("package-0", CPU0), ("package-1", CPU1), ("dram-1", CARD)] {
        assert_holds(&account, name, &[wave], 0.5);
    }
    assert_total_holds(&account, &[CPU0, CPU1, MEMORY, CARD]);
    let mut limits = [PowerLimits::default(); 2];
    assert!(inventory.opened[1].source.read_power_limits(&mut limits));
    assert_eq!(limits[0][0].unwrap().limit_mw, 420_000, "that of the zone of the same name");
}

#[test]
fn registers_are_read_on_another_cpu_of_the_package_when_their_own_goes_offline() {
    let mut machine = FuseMachine::new();
    registers(&mut machine, 16);
    let Some(mounted) = machine.mount() else { return };
    let mut inventory = discover_sources(&mounted, &["msr"]);
    let opened = &mut inventory.opened[0];
    let mut readings = vec![EnergyReading::default(); opened.domains.len()];
    opened.source.read(&mut readings);
    let before = readings[0];
    mounted.hide("cpu/0");
    opened.source.read(&mut readings);
    assert!(!readings[0].valid, "the gap is a gap");
    opened.source.read(&mut readings);
    assert_eq!((readings[0].valid, readings[0].epoch), (true, before.epoch + 1));
    assert_eq!(readings[0].energy_uj, before.energy_uj, "what passed meanwhile is not known");
    sleep(Duration::from_millis(20));
    opened.source.read(&mut readings);
    assert!(readings[0].energy_uj > before.energy_uj);
}

#[test]
fn registers_that_may_not_be_read_name_the_capability() {
    let mut machine = FuseMachine::new();
    registers(&mut machine, 16);
    let Some(mounted) = machine.mount() else { return };
    mounted.deny("cpu");
    let inventory = discover_sources(&mounted, &["msr"]);
    assert!(names(&inventory).is_empty());
    assert!(reasons(&inventory).contains("CAP_SYS_RAWIO"), "{}", reasons(&inventory));
}

/// Repeats discovery until a comparison was possible: on a busy machine one observation may see too little.
fn compared(mounted: &MountedMachine) -> Inventory {
    (0..50)
        .map(|_| discover_sources(mounted, &["powercap", "msr"]))
        .find(|inventory| reasons(inventory).contains("does not agree"))
        .unwrap_or_else(|| discover_sources(mounted, &["powercap", "msr"]))
}

#[test]
fn powercap_and_the_registers_agree_but_where_a_unit_is_wrong() {
    for (memory_shift, agrees) in [(16, true), (14, false)] {
        let mut machine = FuseMachine::new();
        registers(&mut machine, memory_shift);
        zone(&mut machine, "intel-rapl:0", "package-0", &[CPU0], 61_035, 14, 900_000_000);
        zone(&mut machine, "intel-rapl:0:0", "dram", &[MEMORY], 15_300, 16, 900_000_000);
        let Some(mounted) = machine.mount() else { return };
        let inventory = compared(&mounted);
        let reasons = reasons(&inventory);
        let chosen = domain(&inventory, "package-0");
        assert_eq!(chosen.source, "powercap", "the first in the order that advances");
        assert_eq!(domain(&inventory, "package-1").source, "msr", "which alone shows it");
        assert_eq!(reasons.contains("dram-0 does not agree with powercap"), !agrees, "{reasons}");
        assert!(!reasons.contains("package-0 does not agree"), "{reasons}");
    }
}
