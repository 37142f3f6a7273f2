//! perf with real system calls: a fake `power` PMU whose events are the time stamp counter.
//!
//! Few test machines have energy counters, but most have the `msr` PMU. A fake tree names its type as that of `power`
//! and its `tsc` as every energy event, so that the "energy" advances in the kernel.

use crate::support;

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::fake::FakeSysfs;
use wattspan::clock::Clock;
use wattspan::domain::{DomainKind, EnergyReading, Grade, PowerLimits};
use wattspan::sources::{Inventory, OpenedSource, discover, perf};

const SCALE: &str = "2.3283064365386962890625e-10\n";

/// The fake PMU with `events` on `cpumask`, all of them the counter `event`; `None` where this machine has no msr PMU.
fn power(events: &[&str], cpumask: &str, event: &str) -> Option<FakeSysfs> {
    let Ok(kind) = fs::read_to_string("/sys/bus/event_source/devices/msr/type") else {
        support::skip::skip("the msr PMU", "the kernel shows it on x86 processors");
        return None;
    };
    let fake_sysfs = FakeSysfs::new();
    fake_sysfs.vendor("GenuineIntel");
    let devices = "bus/event_source/devices";
    for (file, text) in
        [("power/type", kind.as_str()), ("power/cpumask", cpumask), ("msr/type", kind.as_str())]
    {
        fake_sysfs.sys_file(&format!("{devices}/{file}"), text);
    }
    fake_sysfs.sys_file(&format!("{devices}/msr/events/tsc"), "event=0x00\n");
    for name in events {
        fake_sysfs.sys_file(&format!("{devices}/power/events/{name}"), event);
        fake_sysfs.sys_file(&format!("{devices}/power/events/{name}.scale"), SCALE);
        fake_sysfs.sys_file(&format!("{devices}/power/events/{name}.unit"), "Joules\n");
    }
    fake_sysfs.sys_file("devices/system/cpu/cpu0/topology/physical_package_id", "0\n");
    fake_sysfs.sys_file("devices/system/cpu/cpu1/topology/physical_package_id", "1\n");
    Some(fake_sysfs)
}

/// Opens perf on it; skips the test where this machine does not allow that.
fn open(fake_sysfs: &FakeSysfs) -> Option<Vec<OpenedSource>> {
    let Inventory { opened, absent, .. } = perf::open(&fake_sysfs.settings(&["perf"]), &Clock::Machine);
    if absent.iter().any(|absent| absent.reason.contains("perf_event_open")) {
        support::skip::skip("access to perf_event_open", &absent[0].reason);
        return None;
    }
    assert!(absent.is_empty(), "{absent:?}");
    Some(opened)
}

fn read(opened: &mut OpenedSource) -> (Vec<EnergyReading>, Option<(u64, u64)>) {
    let mut readings = vec![EnergyReading::default(); opened.domains.len()];
    let window = opened.source.read(&mut readings);
    (readings, window)
}

fn names(opened: &[OpenedSource]) -> Vec<(&str, Option<&str>)> {
    let domains = opened.iter().flat_map(|group| &group.domains);
    domains.map(|domain| (domain.name.as_str(), domain.parent.as_deref())).collect()
}

const SERVER: [&str; 4] = ["energy-cores", "energy-pkg", "energy-psys", "energy-ram"];

#[test]
fn all_domains_of_a_package_come_out_of_one_group_read_and_advance() {
    let Some(mut opened) = power(&SERVER, "0\n", "event=0x00\n").and_then(|tree| open(&tree)) else { return };
    let group = &mut opened[0];
    let before = Instant::now();
    let (first, _) = read(group);
    assert!(first.iter().all(|reading| reading.valid && reading.energy_uj == 0));
    sleep(Duration::from_millis(20));
    let (second, _) = read(group);
    // 20 ms at some GHz, in units of 2^-32 J, are more than a millijoule and less than a joule.
    let most_uj = before.elapsed().as_micros() as u64 * 50;
    for reading in &second {
        assert!(reading.valid && reading.epoch == 0 && reading.stamp_ns == 0);
        assert!((1_000..most_uj).contains(&reading.energy_uj), "{reading:?}");
    }
    let (least, most) = (second.iter().map(|r| r.energy_uj).min(), second.iter().map(|r| r.energy_uj).max());
    assert!(most.unwrap() - least.unwrap() < 1_000, "read at one instant: {second:?}");
}

#[test]
fn domains_are_named_after_their_package_and_lie_within_each_other() {
    let Some(opened) = power(&SERVER, "0\n", "event=0x00\n").and_then(|tree| open(&tree)) else { return };
    assert_eq!(
        names(&opened),
        [
            ("core-0", Some("package-0")),
            ("package-0", Some("psys")),
            ("psys", None),
            ("dram-0", Some("psys"))
        ]
    );
    let group = &opened[0];
    assert_eq!((group.name, group.cpu, group.domains[1].kind), ("perf", Some(0), DomainKind::Package));
    assert!(
        group.domains.iter().all(|domain| domain.grade == Grade::Measured && domain.ceiling_mw.is_some())
    );
    assert_eq!(group.domains[2].quantum_uj, 1_000_000, "a server's psys may count in joules");
}

#[test]
fn the_domains_have_the_limits_of_the_powercap_zones_of_their_names() {
    let Some(tree) = power(&SERVER, "0\n", "event=0x00\n") else { return };
    for (zone, name, limit_uw) in
        [("intel-rapl:0", "package-0", 420_000_000), ("intel-rapl:1", "psys", 900_000_000)]
    {
        let file = |name: &str| format!("class/powercap/{zone}/{name}");
        tree.sys_file(&file("name"), &format!("{name}\n"));
        tree.sys_file(&file("constraint_0_name"), "peak_power\n");
        tree.sys_file(&file("constraint_0_power_limit_uw"), &format!("{limit_uw}\n"));
    }
    tree.proc_file("meminfo", "MemTotal:       32000000 kB\n");
    let Some(mut opened) = open(&tree) else { return };
    let group = &mut opened[0];
    let mut limits = vec![PowerLimits::default(); group.domains.len()];
    assert!(group.source.read_power_limits(&mut limits));
    let peaks: Vec<_> = limits.iter().map(|limits| limits[0].unwrap().limit_mw).collect();
    assert_eq!(peaks, [420_000, 420_000, 900_000, 160_000], "core, package, psys, memory");
    tree.sys_file("class/powercap/intel-rapl:0/constraint_0_power_limit_uw", "300000000\n");
    assert!(group.source.read_power_limits(&mut limits));
    assert_eq!(limits[1][0].unwrap().limit_mw, 300_000);
}

#[test]
fn every_cpu_of_the_mask_is_opened_once() {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        support::skip::skip("a second CPU", "one CPU cannot show that each is opened once");
        return;
    }
    let Some(opened) =
        power(&["energy-pkg", "energy-psys"], "0-1\n", "event=0x00\n").and_then(|tree| open(&tree))
    else {
        return;
    };
    assert_eq!(opened.iter().map(|group| group.cpu).collect::<Vec<_>>(), [Some(0), Some(1)]);
    let psys = Some("psys");
    assert_eq!(names(&opened), [("package-0", psys), ("psys", None), ("package-1", psys), ("psys-1", None)]);
}

#[test]
fn the_window_of_a_read_lies_within_the_clocks_around_it() {
    let Some(mut opened) = power(&["energy-pkg"], "0\n", "event=0x00\n").and_then(|tree| open(&tree)) else {
        return;
    };
    let clock = Clock::Machine;
    let mut last_ns = 0;
    for _ in 0..300 {
        let before_ns = clock.now_ns();
        let (_, window) = read(&mut opened[0]);
        let after_ns = clock.now_ns();
        let (from_ns, to_ns) = window.unwrap();
        assert!(before_ns <= from_ns && from_ns <= to_ns && to_ns <= after_ns);
        assert!(to_ns > last_ns);
        last_ns = from_ns;
        sleep(Duration::from_micros(200));
    }
}

#[test]
fn without_the_msr_pmu_there_is_no_stamp_and_still_a_reading() {
    let Some(tree) = power(&["energy-pkg"], "0\n", "event=0x00\n") else { return };
    fs::remove_dir_all(tree.sysfs().join("bus/event_source/devices/msr")).unwrap();
    let Some(mut opened) = open(&tree) else { return };
    assert!(read(&mut opened[0]).0[0].valid);
}

#[test]
fn an_event_that_the_processor_does_not_have_makes_the_pmu_absent_with_the_errno() {
    let Some(tree) = power(&["energy-pkg"], "0\n", "event=0xff\n") else { return };
    let found = perf::open(&tree.settings(&["perf"]), &Clock::Machine);
    assert!(found.opened.is_empty());
    assert!(found.absent[0].reason.contains("perf_event_open on CPU 0"), "{:?}", found.absent);
}

#[test]
fn discovery_sees_the_counters_move_and_needs_no_estimate() {
    let Some(tree) = power(&["energy-pkg", "energy-ram"], "0\n", "event=0x00\n") else { return };
    if open(&tree).is_none() {
        return;
    }
    tree.proc_file("stat", "cpu  1 2 3 4 5 6 7 8 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n");
    tree.zone("intel-rapl:0", "package-0", "262143328850", 5);
    tree.zone("intel-rapl:0:0", "dram", "65712999613", 5);
    let found = discover(&tree.settings(&["perf", "powercap", "estimate"]), &Clock::Machine);
    assert_eq!(found.opened.len(), 1);
    assert_eq!(found.opened[0].advanced, [true, true]);
    let absent: Vec<_> =
        found.absent.iter().map(|absent| (absent.source.as_str(), absent.reason.as_str())).collect();
    assert_eq!(
        absent,
        [
            ("powercap", "its domains are read by perf"),
            ("estimate", "not needed: package-0 has a live counter")
        ]
    );
}

/// The names of the domains of an Emerald Rapids with memory under this kernel, and the reasons of what is missing.
fn emerald_rapids(release: &str, memory_range_uj: Option<&str>) -> Option<(Vec<String>, String)> {
    let tree = power(&["energy-pkg", "energy-ram"], "0\n", "event=0x00\n")?;
    tree.proc_file("cpuinfo", "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 207\n");
    tree.proc_file("sys/kernel/osrelease", &format!("{release}\n"));
    if let Some(range_uj) = memory_range_uj {
        tree.zone("intel-rapl:0", "package-0", "262143328850", 5);
        tree.zone("intel-rapl:0:0", "dram", range_uj, 5);
    }
    let found = perf::open(&tree.settings(&["perf"]), &Clock::Machine);
    let domains = found.opened.iter().flat_map(|group| &group.domains);
    let reasons: String = found.absent.iter().map(|absent| absent.reason.as_str()).collect();
    if reasons.contains("perf_event_open") {
        support::skip::skip("access to perf_event_open", &reasons);
        return None;
    }
    Some((domains.map(|domain| domain.name.clone()).collect(), reasons))
}

#[test]
fn memory_in_a_unit_that_the_kernel_may_not_know_is_refused_unless_the_range_shows_that_it_does() {
    let (all, package) = (vec!["package-0", "dram-0"], vec!["package-0"]);
    for (release, range_uj, expected) in [
        ("6.1.0-13-amd64", None, &all),
        ("6.18.4", Some("262143328850"), &all),
        ("5.15.0-91-generic", None, &package),
        // The fix was backported, or it was not: the number of the version is the same.
        ("5.14.0-427.el9.x86_64", Some("262143328850"), &all),
        ("5.14.0-427.el9.x86_64", Some("65712999613"), &package),
        ("unknown", None, &package),
    ] {
        let Some((names, reasons)) = emerald_rapids(release, range_uj) else { return };
        assert_eq!(&names, expected, "{release} {range_uj:?}");
        let is_refused = expected.len() == 1;
        assert_eq!(reasons.contains("commit 80275ca9e525"), is_refused, "{release}: {reasons}");
    }
}

#[test]
fn amds_core_pmu_is_found_and_its_energy_is_counted_once_in_the_package() {
    let Some(tree) = power(&["energy-pkg"], "0\n", "event=0x00\n") else { return };
    tree.proc_file("cpuinfo", "vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 68\n");
    if open(&tree).is_none() {
        return;
    }
    let core = "bus/event_source/devices/power_core";
    tree.sys_file(&format!("{core}/type"), "13\n");
    tree.sys_file(&format!("{core}/cpumask"), "0-15\n");
    tree.sys_file(&format!("{core}/events/energy-core"), "event=0x01\n");
    tree.sys_file(&format!("{core}/events/energy-core.scale"), SCALE);
    tree.sys_file(&format!("{core}/events/energy-core.unit"), "Joules\n");
    let found = perf::open(&tree.settings(&["perf"]), &Clock::Machine);
    assert_eq!(names(&found.opened), [("package-0", None)]);
    assert_eq!(found.opened[0].domains[0].grade, Grade::Modelled);
    let reason = &found.absent[0].reason;
    assert!(reason.contains("its 16 cores") && reason.contains("package contains them"), "{reason}");
}
