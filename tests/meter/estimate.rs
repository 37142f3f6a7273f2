//! The estimate on a fake `/proc/stat`: the model, its interval, and the kernel's ticks.

use crate::support;

use crate::fake::FakeSysfs;
use proptest::prelude::*;
use wattspan::clock::Clock;
use wattspan::domain::EnergyReading;
use wattspan::sources::{OpenedSource, SourceSettings, estimate};

const MS: u64 = 1_000_000;

/// Two CPUs, 10 W idle and 110 W at full load, with no busy time yet.
fn machine(start_ns: u64) -> (FakeSysfs, Clock, OpenedSource) {
    let (fake_sysfs, clock) = (FakeSysfs::new(), Clock::manual(start_ns));
    busy(&fake_sysfs, 0);
    let settings =
        SourceSettings { estimate_mw: Some((10_000, 110_000)), ..fake_sysfs.settings(&["estimate"]) };
    let found = estimate::open(&settings, &clock);
    assert!(found.absent.is_empty(), "{:?}", found.absent);
    (fake_sysfs, clock, found.opened.into_iter().next().unwrap())
}

/// Adds `ticks` of 10 ms to a CPU's busy time, over the five columns that count; idle, iowait and steal do not count.
fn busy(fake_sysfs: &FakeSysfs, ticks: u64) {
    let (user, nice, system, irq) = (1_000 + ticks, 20, 300, 40);
    let line = format!("{user} {nice} {system} {} 777 {irq} 5 888 30 0", 500_000 - ticks);
    fake_sysfs.proc_file("stat", &format!("cpu  {line}\ncpu0 {line}\ncpu1 {line}\nintr 5 4\nctxt 1\n"));
}

fn read(opened: &mut OpenedSource) -> EnergyReading {
    let mut readings = [EnergyReading::default()];
    assert_eq!(opened.source.read(&mut readings), None);
    readings[0]
}

fn ticks_are_10_ms() -> bool {
    let common = rustix::param::clock_ticks_per_second() == 100;
    if !common {
        support::skip::skip("ticks of 10 ms", "the stand-in's CPU times are in them");
    }
    common
}

#[test]
fn the_first_reading_is_a_baseline_with_its_stamp() {
    let (_stand_in, _clock, mut opened) = machine(5_000 * MS);
    assert_eq!(
        read(&mut opened),
        EnergyReading { valid: true, stamp_ns: 5_000 * MS, ..EnergyReading::default() }
    );
}

#[test]
fn idle_half_load_and_full_load_follow_the_model_with_its_interval_as_uncertainty() {
    if !ticks_are_10_ms() {
        return;
    }
    // Over a second: ticks of both CPUs together, energy in joules, and the distance to the interval's farther end.
    for (ticks, energy_j, doubt_j) in [(0, 10, 100), (100, 60, 50), (200, 110, 100)] {
        let (fake_sysfs, clock, mut opened) = machine(0);
        read(&mut opened);
        clock.set(1_000 * MS);
        busy(&fake_sysfs, ticks);
        let reading = read(&mut opened);
        assert_eq!(
            (reading.energy_uj, reading.uncertainty_uj),
            (energy_j * 1_000_000, doubt_j * 1_000_000),
            "{ticks}"
        );
        assert_eq!((reading.valid, reading.stamp_ns, reading.epoch), (true, 1_000 * MS, 0));
    }
}

#[test]
fn within_a_tick_the_last_reading_stands_with_its_own_stamp() {
    let (fake_sysfs, clock, mut opened) = machine(0);
    read(&mut opened);
    clock.set(100 * MS);
    busy(&fake_sysfs, 7);
    let reading = read(&mut opened);
    clock.set(100 * MS + 1_000);
    busy(&fake_sysfs, 8);
    assert_eq!(read(&mut opened), reading);
}

#[test]
fn excess_busy_time_is_carried_over_and_the_ceiling_never_exceeded() {
    if !ticks_are_10_ms() {
        return;
    }
    let (fake_sysfs, clock, mut opened) = machine(0);
    read(&mut opened);
    // 4 ticks of 10 ms within 10 ms of two CPUs: half of them fit, the others are carried over.
    clock.set(10 * MS);
    busy(&fake_sysfs, 4);
    assert_eq!(read(&mut opened).energy_uj, 1_100_000);
    clock.set(20 * MS);
    assert_eq!(read(&mut opened).energy_uj, 2_200_000);
    clock.set(30 * MS);
    assert_eq!(read(&mut opened).energy_uj, 2_300_000);
}

#[test]
fn a_stat_that_cannot_be_read_is_a_gap_and_then_a_new_epoch() {
    let (fake_sysfs, clock, mut opened) = machine(0);
    read(&mut opened);
    clock.set(100 * MS);
    let before = read(&mut opened);
    clock.set(200 * MS);
    fake_sysfs.proc_file("stat", "garbage\n");
    assert!(!read(&mut opened).valid);
    clock.set(300 * MS);
    busy(&fake_sysfs, 3);
    let after = read(&mut opened);
    assert_eq!((after.valid, after.energy_uj, after.epoch), (true, before.energy_uj, 1));
}

#[test]
fn without_the_files_first_line_there_is_no_estimate() {
    for text in ["", "cpu\n", "cpu  1 2 3\n", "cpu  a b c d e f g\n", "intr 5\n", "cpu0 1 2 3 4 5 6 7\n"] {
        let fake_sysfs = FakeSysfs::new();
        fake_sysfs.proc_file("stat", text);
        let found = estimate::open(&fake_sysfs.settings(&["estimate"]), &Clock::manual(0));
        assert!(found.opened.is_empty(), "{text:?}");
        assert!(found.absent[0].reason.contains("no line of CPU times"), "{:?}", found.absent);
    }
}

/// The files of a machine with two CPUs of a processor: vendor, family, model, stepping and name as `/proc/cpuinfo` shows them.
fn two_cpus(vendor: &str, id: (u32, u32, u32), name: &str) -> FakeSysfs {
    let fake_sysfs = FakeSysfs::new();
    let (family, model, stepping) = id;
    let cpu = |nth: u32| {
        format!(
            "processor\t: {nth}\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n\
             model name\t: {name}\nstepping\t: {stepping}\nflags\t\t: fpu hypervisor\n\n"
        )
    };
    fake_sysfs.proc_file("cpuinfo", &(0..2).map(cpu).collect::<String>());
    busy(&fake_sysfs, 0);
    fake_sysfs
}

/// The energy and uncertainty of one idle and one fully busy second of a machine, in µJ.
fn idle_and_busy_second(fake_sysfs: &FakeSysfs) -> [(u64, u64); 2] {
    let clock = Clock::manual(0);
    let mut opened = estimate::open(&fake_sysfs.settings(&["estimate"]), &clock).opened.remove(0);
    let mut last = read(&mut opened);
    [0, 200].map(|ticks| {
        clock.set(last.stamp_ns + 1_000 * MS);
        busy(fake_sysfs, ticks);
        let before = std::mem::replace(&mut last, read(&mut opened));
        (last.energy_uj - before.energy_uj, last.uncertainty_uj - before.uncertainty_uj)
    })
}

#[test]
fn a_known_family_is_estimated_with_its_published_coefficients() {
    if !ticks_are_10_ms() {
        return;
    }
    // The machines are instance types of clouds; idle and full load of a CPU in milliwatts are the rows of the cited table
    // (github.com/cloud-carbon-footprint/ccf-coefficients b0032d928c78, output/coefficients-aws-use.csv).
    for (vendor, id, name, (idle_mw, max_mw)) in [
        ("GenuineIntel", (6, 79, 1), "Intel(R) Xeon(R) CPU E5-2686 v4 @ 2.30GHz", (713, 3_685)),
        ("GenuineIntel", (6, 85, 4), "Intel(R) Xeon(R) Platinum 8175M CPU @ 2.50GHz", (613, 4_104)),
        ("GenuineIntel", (6, 85, 7), "Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz", (690, 4_063)),
        ("GenuineIntel", (6, 106, 6), "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", (767, 3_758)),
        ("GenuineIntel", (6, 143, 8), "Intel(R) Xeon(R) Platinum 8488C", (1_036, 4_160)),
        ("AuthenticAMD", (23, 1, 2), "AMD EPYC 7571", (847, 2_604)),
        ("AuthenticAMD", (23, 49, 0), "AMD EPYC 7R32", (474, 1_693)),
        ("AuthenticAMD", (25, 1, 1), "AMD EPYC 7R13 Processor", (456, 1_957)),
        ("AuthenticAMD", (25, 17, 1), "AMD EPYC 9R14", (739, 2_282)),
    ] {
        // Two CPUs for a second: µJ are 2,000 times the milliwatts of one.
        let (idle_uj, max_uj) = (idle_mw * 2_000, max_mw * 2_000);
        let expected = [(idle_uj, max_uj - idle_uj), (max_uj, max_uj - idle_uj)];
        assert_eq!(idle_and_busy_second(&two_cpus(vendor, id, name)), expected, "{name}");
    }
}

#[test]
fn an_unknown_family_has_a_wider_interval_than_any_known_one() {
    if !ticks_are_10_ms() {
        return;
    }
    // The interval is from the lowest (EPYC 3rd Gen) to the highest (Sandy Bridge) coefficient, 456 to 8,631 mW.
    let unknown = [(680 * 2_000, (8_631 - 680) * 2_000), (4_110 * 2_000, (8_631 - 4_110) * 2_000)];
    for (vendor, id, name) in [
        ("GenuineIntel", (6, 0xDD, 0), "Intel(R) Xeon(R) of a later year"),
        ("AuthenticAMD", (23, 1, 1), "AMD Ryzen 7 1700 Eight-Core Processor"),
        ("HygonGenuine", (24, 1, 1), "Hygon C86 7185 32-core Processor"),
        ("", (0, 0, 0), ""),
    ] {
        assert_eq!(idle_and_busy_second(&two_cpus(vendor, id, name)), unknown, "{name}");
    }
}

#[test]
fn the_ceiling_of_an_estimate_names_the_model() {
    let origin_of = |settings: SourceSettings| {
        let mut opened = estimate::open(&settings, &Clock::manual(0)).opened.remove(0);
        let mut limits = [wattspan::domain::PowerLimits::default()];
        assert!(opened.source.read_power_limits(&mut limits));
        limits[0][0].map(|limit| (limit.limit_mw, limit.origin)).unwrap()
    };
    let rome = two_cpus("AuthenticAMD", (23, 49, 0), "AMD EPYC 7R32");
    let settings = rome.settings(&["estimate"]);
    assert_eq!(origin_of(settings.clone()), (2 * 1_693, "Cloud Carbon Footprint, EPYC 2nd Gen"));
    let configured = SourceSettings { estimate_mw: Some((10_000, 50_000)), ..settings };
    assert_eq!(origin_of(configured), (50_000, "configured"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_true_power_between_idle_and_full_load_lies_within_the_uncertainty(
        steps in proptest::collection::vec((10_u64..400, 0_u64..60, 10_000_u64..=110_000), 2..40),
        from in 0_usize..40, to in 0_usize..40,
    ) {
        let (fake_sysfs, clock, mut opened) = machine(0);
        let mut points = vec![(0_u128, read(&mut opened))];
        let (mut now_ns, mut ticks, mut truth_pj) = (0, 0, 0);
        for (elapsed_ms, more_ticks, true_mw) in steps {
            now_ns += elapsed_ms * MS;
            ticks += more_ticks;
            truth_pj += u128::from(true_mw) * u128::from(elapsed_ms * MS);
            clock.set(now_ns);
            busy(&fake_sysfs, ticks);
            points.push((truth_pj, read(&mut opened)));
        }
        let (from, to) = (from % points.len(), to % points.len());
        let (from, to) = (points[from.min(to)], points[from.max(to)]);
        let truth_pj = to.0 - from.0;
        let estimate_pj = u128::from(to.1.energy_uj - from.1.energy_uj) * 1_000_000;
        let doubt_pj = u128::from(to.1.uncertainty_uj - from.1.uncertainty_uj + opened.domains[0].quantum_uj) * 1_000_000;
        prop_assert!(truth_pj.abs_diff(estimate_pj) <= doubt_pj);
        // The estimate itself never exceeds full load.
        let most_pj = 110_000 * u128::from(to.1.stamp_ns - from.1.stamp_ns);
        prop_assert!(estimate_pj <= most_pj + 1_000_000);
    }
}
