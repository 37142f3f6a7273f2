//! powercap on fake trees: names, wraps, duplicates, zones that vanish, zones without read permission.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::fake::FakeSysfs;
use proptest::prelude::*;
use wattspan::clock::Clock;
use wattspan::config::Config;
use wattspan::domain::{Domain, DomainKind, EnergyReading, Grade};
use wattspan::embedded::EmbeddedMeter;
use wattspan::sources::{Inventory, OpenedSource, SourceSettings, discover, powercap};
use wattspan_client::protocol::DomainStatus;

const MS: u64 = 1_000_000;

/// max_energy_range_uj of a register of 2^-14 J, of 2^-16 J, and of server memory, as the driver computes it.
const ESU_14: &str = "262143328850";
const ESU_16: &str = "65532610987";
const DRAM: &str = "65712999613";

fn open(fake_sysfs: &FakeSysfs, clock: &Clock) -> Inventory {
    powercap::open(&fake_sysfs.settings(&["powercap"]), clock)
}

fn only(found: Inventory) -> OpenedSource {
    assert_eq!(found.opened.len(), 1, "{:?}", found.absent);
    found.opened.into_iter().next().unwrap()
}

fn domain<'a>(opened: &'a OpenedSource, name: &str) -> &'a Domain {
    opened.domains.iter().find(|domain| domain.name == name).unwrap()
}

fn read(opened: &mut OpenedSource) -> Vec<EnergyReading> {
    let mut readings = vec![EnergyReading::default(); opened.domains.len()];
    assert_eq!(opened.source.read(&mut readings), None);
    readings
}

/// An Intel server with two packages.
fn server() -> FakeSysfs {
    let fake_sysfs = FakeSysfs::new();
    fake_sysfs.vendor("GenuineIntel");
    fake_sysfs.sys_file("class/powercap/intel-rapl/enabled", "1\n");
    fake_sysfs.zone("intel-rapl:0", "package-0", ESU_14, 1_000);
    fake_sysfs.zone("intel-rapl:0:0", "core", ESU_14, 2_000);
    fake_sysfs.zone("intel-rapl:0:1", "dram", DRAM, 3_000);
    fake_sysfs.zone("intel-rapl:1", "package-1", ESU_14, 4_000);
    fake_sysfs.zone("intel-rapl:1:0", "dram", DRAM, 5_000);
    fake_sysfs
}

#[test]
fn zones_get_their_names_kinds_and_parents() {
    let opened = only(open(&server(), &Clock::manual(0)));
    let names: Vec<_> =
        opened.domains.iter().map(|domain| (domain.name.as_str(), domain.parent.as_deref())).collect();
    assert_eq!(
        names,
        [
            ("package-0", None),
            ("core-0", Some("package-0")),
            ("dram-0", None),
            ("package-1", None),
            ("dram-1", None),
        ]
    );
    assert_eq!(domain(&opened, "core-0").kind, DomainKind::Core);
    assert_eq!(
        (domain(&opened, "package-0").grade, domain(&opened, "package-0").quantum_uj),
        (Grade::Measured, 63)
    );
    assert_eq!(domain(&opened, "dram-1").quantum_uj, 17);
}

#[test]
fn psys_contains_packages_and_memory() {
    let fake_sysfs = server();
    fake_sysfs.zone("intel-rapl:2", "psys", ESU_14, 9_000);
    let opened = only(open(&fake_sysfs, &Clock::manual(0)));
    for (name, parent) in [("package-0", "psys"), ("dram-1", "psys"), ("core-0", "package-0")] {
        assert_eq!(domain(&opened, name).parent.as_deref(), Some(parent), "{name}");
    }
    assert_eq!(
        (domain(&opened, "psys").kind, domain(&opened, "psys").parent.as_deref()),
        (DomainKind::Psys, None)
    );
    let live = vec![true; opened.domains.len()];
    let counted = wattspan::sources::dedup::domain_tree::counted_in_total(&opened.domains, &live);
    let counted: Vec<_> = opened.domains.iter().zip(counted).filter(|(_, counted)| *counted).collect();
    assert_eq!(counted.len(), 1);
    assert_eq!(counted[0].0.name, "psys");
}

#[test]
fn what_amd_shows_is_modelled() {
    let fake_sysfs = FakeSysfs::new();
    fake_sysfs.vendor("AuthenticAMD");
    fake_sysfs.zone("intel-rapl:0", "package-0", ESU_16, 0);
    assert_eq!(only(open(&fake_sysfs, &Clock::manual(0))).domains[0].grade, Grade::Modelled);
}

#[test]
fn each_die_of_a_package_has_its_own_name() {
    let fake_sysfs = FakeSysfs::new();
    fake_sysfs.zone("intel-rapl:0", "package-0-die-0", ESU_16, 0);
    fake_sysfs.zone("intel-rapl:0:0", "core", ESU_16, 0);
    fake_sysfs.zone("intel-rapl:1", "package-0-die-1", ESU_16, 0);
    fake_sysfs.zone("intel-rapl:1:0", "core", ESU_16, 0);
    let opened = only(open(&fake_sysfs, &Clock::manual(0)));
    assert_eq!(domain(&opened, "core-0-die-1").parent.as_deref(), Some("package-0-die-1"));
}

#[test]
fn the_first_reading_is_a_baseline_and_the_next_gives_the_difference() {
    let (fake_sysfs, clock) = (server(), Clock::manual(0));
    let mut opened = only(open(&fake_sysfs, &clock));
    assert!(read(&mut opened).iter().all(|reading| reading.valid && reading.energy_uj == 0));
    clock.set(MS);
    fake_sysfs.energy("intel-rapl:0", 1_000 + 61_035);
    let readings = read(&mut opened);
    // 1 000 µJ are 17 counts, 62 035 are 1 017: a difference of a thousand counts of 2^-14 J.
    assert_eq!(readings.iter().map(|reading| reading.energy_uj).collect::<Vec<_>>(), [61_035, 0, 0, 0, 0]);
}

/// The energy between two values of a zone, read 1 ms apart.
fn step(range_uj: &str, before_uj: u64, after_uj: u64) -> EnergyReading {
    let (fake_sysfs, clock) = (FakeSysfs::new(), Clock::manual(0));
    fake_sysfs.zone("intel-rapl:0", "package-0", range_uj, before_uj);
    let mut opened = only(open(&fake_sysfs, &clock));
    read(&mut opened);
    clock.set(MS);
    fake_sysfs.energy("intel-rapl:0", after_uj);
    read(&mut opened)[0]
}

#[test]
fn a_wrap_is_the_range_and_one_unit() {
    // 32 counts over the wrap are 1 953.125 µJ; with the range alone as modulus it would be 1 892.
    let reading = step(ESU_14, 262_143_327_934, 976);
    assert_eq!((reading.energy_uj, reading.epoch), (1_953, 0));
    // An old kernel with the exact unit: 2^32 − 16 and 16 counts.
    let reading = step("262143999938", 262_143_999_023, 976);
    assert_eq!((reading.energy_uj, reading.epoch), (1_953, 0));
    // The same with 2^-16 J: 488.28 µJ, not 473.
    let reading = step(ESU_16, 65_532_610_758, 244);
    assert_eq!((reading.energy_uj, reading.epoch), (488, 0));
}

#[test]
fn the_drivers_rounding_of_the_unit_is_undone() {
    // 2^16 counts are 1 J, although the driver shows 15 258 nJ per count, and 15 300 for memory.
    assert_eq!(step(ESU_16, 0, 65_536 * 15_258 / 1_000).energy_uj, 1_000_000);
    assert_eq!(step(DRAM, 0, 65_536 * 15_300 / 1_000).energy_uj, 1_000_000);
    assert_eq!(step(ESU_14, 0, 16_384 * 61_035 / 1_000).energy_uj, 1_000_000);
}

#[test]
fn a_range_that_is_no_register_is_taken_as_microjoules() {
    let reading = step("1000000000", 999_999_990, 15);
    assert_eq!((reading.energy_uj, reading.epoch), (26, 0));
}

#[test]
fn a_restart_is_no_wrap() {
    let reading = step(ESU_14, 130_000_000_000, 976);
    assert_eq!((reading.energy_uj, reading.epoch), (0, 1));
}

#[test]
fn a_zone_without_its_range_is_rejected_and_the_others_stay() {
    for range in ["0", "", "unknown"] {
        let fake_sysfs = server();
        fake_sysfs.zone("intel-rapl:0", "package-0", range, 7);
        let found = open(&fake_sysfs, &Clock::manual(0));
        assert!(found.absent[0].reason.contains("intel-rapl:0/max_energy_range_uj"), "{:?}", found.absent);
        assert!(
            found.absent[0].reason.contains("wraps of the counter cannot be corrected"),
            "{:?}",
            found.absent
        );
        let opened = only(found);
        assert_eq!(opened.domains[0].name, "core-0");
        assert_eq!(opened.domains[0].parent, None, "its package is missing");
    }
    let fake_sysfs = server();
    fs::remove_file(fake_sysfs.sysfs().join("class/powercap/intel-rapl:1/max_energy_range_uj")).unwrap();
    assert!(open(&fake_sysfs, &Clock::manual(0)).absent[0].reason.contains("intel-rapl:1"));
}

#[test]
fn what_two_drivers_show_is_taken_once() {
    let fake_sysfs = server();
    fake_sysfs.zone("intel-rapl-mmio:0", "package-0", ESU_14, 1_000);
    fake_sysfs.zone("intel-rapl-mmio:0:0", "dram", DRAM, 3_000);
    let found = open(&fake_sysfs, &Clock::manual(0));
    let sizes: Vec<_> = found.opened.iter().map(|opened| opened.domains.len()).collect();
    assert_eq!(sizes, [5, 2], "both are open until it is known which one advances");
    let found = discover(&fake_sysfs.settings(&["powercap"]), &Clock::Machine);
    assert_eq!(found.absent.len(), 1, "{:?}", found.absent);
    assert_eq!(
        found.absent[0].reason,
        "dram-0, package-0: a second zone or chip shows the same; one is read"
    );
    assert_eq!(only(found).domains.len(), 5);
}

#[test]
fn zones_of_other_drivers_and_unknown_parts_are_left_alone() {
    let fake_sysfs = server();
    fake_sysfs.zone("dtpm:0", "cpu0", "1000", 5);
    fake_sysfs.zone("intel-rapl:0:7", "mystery", ESU_14, 5);
    let found = open(&fake_sysfs, &Clock::manual(0));
    assert_eq!(found.absent.len(), 1);
    assert!(found.absent[0].reason.contains("intel-rapl:0:7") && found.absent[0].reason.contains("mystery"));
    assert_eq!(only(found).domains.len(), 5);
}

#[test]
fn a_zone_that_goes_away_is_invalid_and_comes_back_in_a_new_epoch() {
    let (fake_sysfs, clock) = (server(), Clock::manual(0));
    let mut opened = only(open(&fake_sysfs, &clock));
    read(&mut opened);
    clock.set(MS);
    fake_sysfs.energy("intel-rapl:0", 62_035);
    let before = read(&mut opened)[0];
    // The driver is unloaded: the open file returns no data, and the path is gone.
    let path = fake_sysfs.sysfs().join("class/powercap/intel-rapl:0/energy_uj");
    fs::write(&path, "").unwrap();
    fs::remove_file(&path).unwrap();
    clock.set(2 * MS);
    let readings = read(&mut opened);
    assert!(!readings[0].valid && readings[1].valid, "only the one zone is away");
    // The zone is back, but it is looked for at most once per second.
    fake_sysfs.energy("intel-rapl:0", 500_000);
    clock.set(3 * MS);
    assert!(!read(&mut opened)[0].valid);
    clock.set(1_002 * MS);
    let back = read(&mut opened)[0];
    assert_eq!((back.valid, back.energy_uj, back.epoch), (true, before.energy_uj, before.epoch + 1));
    clock.set(1_003 * MS);
    fake_sysfs.energy("intel-rapl:0", 561_035);
    let later = read(&mut opened)[0];
    assert_eq!((later.energy_uj - back.energy_uj, later.epoch), (61_035, back.epoch));
}

#[test]
fn nonsense_in_a_zone_is_no_reading() {
    let (fake_sysfs, clock) = (server(), Clock::manual(0));
    let mut opened = only(open(&fake_sysfs, &clock));
    for text in ["", "\n", "-5\n", "12 34\n", "99999999999999999999999999\n", "0x10\n"] {
        clock.set(clock.now_ns() + 2_000 * MS);
        fake_sysfs.sys_file("class/powercap/intel-rapl:0/energy_uj", text);
        assert!(!read(&mut opened)[0].valid, "{text:?}");
    }
    // A value beyond the range of the register.
    clock.set(clock.now_ns() + 2_000 * MS);
    fake_sysfs.energy("intel-rapl:0", 300_000_000_000);
    assert!(!read(&mut opened)[0].valid);
}

#[test]
fn a_machine_without_zones_says_which_driver_to_load() {
    let fake_sysfs = FakeSysfs::new();
    let missing = open(&fake_sysfs, &Clock::manual(0));
    assert!(missing.opened.is_empty());
    assert!(missing.absent[0].reason.contains("sudo modprobe intel_rapl_msr"), "{:?}", missing.absent);
    fake_sysfs.sys_file("class/powercap/intel-rapl/enabled", "1\n");
    let empty = open(&fake_sysfs, &Clock::manual(0));
    assert!(empty.absent[0].reason.contains("no RAPL zone"), "{:?}", empty.absent);
}

/// Root can read everything, so under root the test runs itself again as user `nobody`.
#[test]
fn root_only_zones_give_a_remedy() {
    if rustix::process::geteuid().is_root() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("test");
        let own = std::env::current_exe().unwrap();
        // Other users may be unable to read the build directory.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Command::new("cp").arg(own).arg(&program).status().unwrap().success());
        let own_name = crate::support::test_name(module_path!(), "root_only_zones_give_a_remedy");
        let child =
            Command::new(program).args(["--exact", &own_name]).uid(65_534).gid(65_534).output().unwrap();
        let stdout = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && stdout.contains("1 passed"), "{stdout}");
        return;
    }
    let fake_sysfs = server();
    for zone in ["intel-rapl:0", "intel-rapl:0:0", "intel-rapl:0:1", "intel-rapl:1", "intel-rapl:1:0"] {
        let path = fake_sysfs.sysfs().join("class/powercap").join(zone).join("energy_uj");
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    }
    let found = open(&fake_sysfs, &Clock::manual(0));
    assert!(found.opened.is_empty());
    let reason = &found.absent[0].reason;
    assert!(reason.starts_with("package-0, core-0, dram-0, package-1, dram-1: "), "{reason}");
    assert!(reason.contains("CAP_PERFMON") && reason.contains("sudo setcap"), "{reason}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_zone_with_random_wraps_gives_the_unwrapped_energy(
        start in any::<u32>(), steps in proptest::collection::vec(0_u64..3_000_000, 1..40),
        shown_nj in prop_oneof![Just((61_035_u64, 14)), Just((15_258, 16)), Just((15_300, 16))],
    ) {
        let (shown_nj, shift) = shown_nj;
        let range = (u64::from(u32::MAX) * shown_nj / 1_000).to_string();
        let (fake_sysfs, clock) = (FakeSysfs::new(), Clock::manual(0));
        // Half of the runs begin just below the wrap.
        let start = u64::from(if start % 2 == 0 { start } else { u32::MAX - start % 1_000_000 });
        let mut counts = start;
        fake_sysfs.zone("intel-rapl:0", "package-0", &range, counts * shown_nj / 1_000);
        let mut opened = only(open(&fake_sysfs, &clock));
        read(&mut opened);
        for step in steps {
            counts += step;
            clock.set(clock.now_ns() + 100 * MS);
            fake_sysfs.energy("intel-rapl:0", (counts & 0xFFFF_FFFF) * shown_nj / 1_000);
            let reading = read(&mut opened)[0];
            prop_assert_eq!(reading.epoch, 0);
            prop_assert_eq!(u128::from(reading.energy_uj), (u128::from(counts - start) * 1_000_000) >> shift);
        }
    }
}

#[test]
fn the_limits_of_the_zones_are_the_ceilings_of_the_domains() {
    let fake_sysfs = server();
    let constraints = [
        ("0", "long_term", 125_000_000, Some(28_000_000)),
        ("1", "short_term", 253_000_000, Some(2_440)),
        ("2", "peak_power", 420_000_000, None),
    ];
    fake_sysfs.sys_file("class/powercap/intel-rapl:0/enabled", "1\n");
    for (number, name, limit_uw, window_us) in constraints {
        let file = |suffix: &str| format!("class/powercap/intel-rapl:0/constraint_{number}_{suffix}");
        fake_sysfs.sys_file(&file("name"), &format!("{name}\n"));
        fake_sysfs.sys_file(&file("power_limit_uw"), &format!("{limit_uw}\n"));
        window_us
            .into_iter()
            .for_each(|window| fake_sysfs.sys_file(&file("time_window_us"), &format!("{window}\n")));
    }
    fake_sysfs.zone("intel-rapl:2", "psys", ESU_14, 6_000);
    fake_sysfs.proc_file("meminfo", "MemTotal:       16000000 kB\n");
    let settings = fake_sysfs.settings(&["powercap"]);
    let mut config = Config::default();
    (config.source.sysfs_root, config.source.proc_root) = (settings.sysfs_root, settings.proc_root);
    config.source.enabled = Some(settings.enabled);
    config.ceiling_w.insert("dram-1".into(), 55.0);
    let meter = EmbeddedMeter::start(&config).unwrap();
    let client = meter.connect().unwrap();
    let ceilings = |name: &str| -> Vec<(u64, u64, String)> {
        let info = client.info().unwrap();
        let domain = info.domains.iter().find(|domain| domain.name == name).unwrap();
        let ceilings = domain.ceilings.clone().unwrap_or_default();
        ceilings.into_iter().map(|limit| (limit.limit_mw, limit.window_ns, limit.origin)).collect()
    };
    let of = |limit_mw, window_ns, origin: &str| (limit_mw, window_ns, origin.to_owned());
    let deadline = Instant::now() + Duration::from_secs(60);
    let wait_for_peak = |limit_mw: u64| {
        while ceilings("package-0")[0].0 != limit_mw {
            assert!(Instant::now() < deadline, "{:?}", ceilings("package-0"));
            sleep(Duration::from_millis(20));
        }
    };
    // Read after the first sample.
    wait_for_peak(420_000);
    let package = [
        of(420_000, 0, "powercap peak_power"),
        of(253_000, 2_440_000, "powercap short_term"),
        of(125_000, 28_000 * MS, "powercap long_term"),
    ];
    assert_eq!(ceilings("package-0"), package);
    assert_eq!(ceilings("core-0"), package, "a part of the package");
    assert_eq!(ceilings("package-1"), [of(2_000_000, 0, "all machines")], "its zone has no constraints");
    assert_eq!(ceilings("dram-0"), [of(80_000, 0, "memory size")]);
    assert_eq!(ceilings("dram-1"), [of(55_000, 0, "configured")]);
    let parts_mw = 420_000 + 2_000_000 + 80_000 + 55_000;
    assert_eq!(ceilings("psys"), [of(parts_mw + 500_000, 0, "sum of the parts")]);
    // Read again while running.
    fake_sysfs.sys_file("class/powercap/intel-rapl:0/constraint_2_power_limit_uw", "500000000\n");
    wait_for_peak(500_000);
}

/// The domain `package-0` of a server with these flags and configured noise, and a reading's energy and uncertainty.
fn filtered(vendor: &str, flags: &str, percent: Option<f64>) -> (DomainStatus, (u64, u64)) {
    let fake_sysfs = server();
    fake_sysfs.proc_file(
        "cpuinfo",
        &format!("vendor_id : {vendor}\ncpu family : 6\nmodel : 85\nflags : {flags}\n"),
    );
    let ppm = percent.map(|percent| (percent * 1e4) as u64);
    let settings = SourceSettings { energy_filter_ppm: ppm, ..fake_sysfs.settings(&["powercap"]) };
    let mut found = discover(&settings, &Clock::Machine);
    let mut readings = vec![EnergyReading::default(); found.opened[0].domains.len()];
    found.opened[0].source.read(&mut readings);
    fake_sysfs.energy("intel-rapl:0", 1_001_000);
    found.opened[0].source.read(&mut readings);
    let at = found.opened[0].domains.iter().position(|domain| domain.name == "package-0").unwrap();
    let mut config = Config::default();
    (config.source.sysfs_root, config.source.proc_root) = (fake_sysfs.sysfs(), fake_sysfs.proc());
    config.source.enabled = Some(settings.enabled);
    config.source.energy_filter_percent = percent;
    let info = EmbeddedMeter::start(&config).unwrap().connect().unwrap().info().unwrap();
    let status = info.domains.into_iter().find(|domain| domain.name == "package-0").unwrap();
    (status, (readings[at].energy_uj, readings[at].uncertainty_uj))
}

#[test]
fn the_noise_of_energy_filtering_is_uncertainty_where_sgx_is_enabled_or_it_is_configured() {
    for (vendor, flags, percent, ppm, origin) in [
        ("GenuineIntel", "fpu sgx sgx_lc", None, Some(500_000), Some("driver")),
        ("GenuineIntel", "fpu sgx_lc", None, Some(0), Some("driver")),
        ("GenuineIntel", "fpu", Some(12.5), Some(125_000), Some("configured")),
        ("GenuineIntel", "fpu sgx", Some(0.0), Some(0), Some("configured")),
        ("AuthenticAMD", "fpu", None, None, None),
    ] {
        let (status, (energy_uj, uncertainty_uj)) = filtered(vendor, flags, percent);
        assert_eq!((status.filter_error_ppm, status.filter_origin.as_deref()), (ppm, origin), "{flags}");
        assert!(energy_uj > 900_000, "{energy_uj}");
        // Shown with half of it missing, the true energy is twice as large.
        let expected_uj = (energy_uj * ppm.unwrap_or(0)).div_ceil(1_000_000 - ppm.unwrap_or(0));
        assert_eq!(uncertainty_uj, expected_uj, "{vendor} {flags} {percent:?}");
    }
}
