//! Discovery on fake machines: sources tried, stuck counters, duplicates, and when the estimate is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::fake::FakeSysfs;
use crate::support::wait_until;
use wattspan::clock::Clock;
use wattspan::domain::{EnergyReading, Grade};
use wattspan::sources::{Inventory, SourceSettings, discover};

const ESU_14: &str = "262143328850";
const STAT: &str =
    "cpu  100 0 50 800 0 0 0 9 0 0\ncpu0 50 0 25 400 0 0 0 0 0 0\ncpu1 50 0 25 400 0 0 0 9 0 0\nbtime 1\n";

/// Sources and domains found, each with whether its counter advanced.
fn shape(found: &Inventory) -> Vec<(String, bool)> {
    let of = |source: &wattspan::sources::OpenedSource| {
        let pairs = source.domains.iter().zip(&source.advanced);
        pairs
            .map(|(domain, advanced)| (format!("{}:{}", source.name, domain.name), *advanced))
            .collect::<Vec<_>>()
    };
    found.opened.iter().flat_map(of).collect()
}

fn reason<'a>(found: &'a Inventory, source: &str) -> &'a str {
    found.absent.iter().find(|absent| absent.source == source).map_or("", |absent| absent.reason.as_str())
}

/// A thread that adds to the counters of zones every 0.5 ms, until dropped.
struct CounterThread {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl CounterThread {
    fn start(fake_sysfs: &Arc<FakeSysfs>, zones: &'static [(&'static str, u64)]) -> Self {
        let (stop, tree) = (Arc::new(AtomicBool::new(false)), Arc::clone(fake_sysfs));
        let stopped = Arc::clone(&stop);
        let run = move || {
            let mut round = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                round += 1;
                for (zone, power) in zones {
                    // Steps that never repeat, and are the same in every zone of the same power.
                    tree.energy(zone, 1_000_000 + round * power * 61 + (round * round % 97) * 610);
                }
                thread::sleep(Duration::from_micros(500));
            }
        };
        Self { stop, thread: Some(thread::spawn(run)) }
    }
}

impl Drop for CounterThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn a_machine_without_sources_gives_a_reason_for_each() {
    let fake_sysfs = FakeSysfs::new();
    let found = discover(&fake_sysfs.settings(&["perf", "powercap", "estimate"]), &Clock::Machine);
    assert!(found.opened.is_empty());
    for source in ["perf", "powercap", "estimate"] {
        assert!(!reason(&found, source).is_empty(), "{source}: {:?}", found.absent);
    }
    assert!(reason(&found, "estimate").contains("proc/stat"));
}

#[test]
fn an_unknown_source_is_absent_and_not_an_error() {
    let fake_sysfs = FakeSysfs::new();
    let found = discover(&fake_sysfs.settings(&["tea-leaves"]), &Clock::Machine);
    assert_eq!(found.absent.len(), 1);
    assert!(
        reason(&found, "tea-leaves")
            .contains("perf, powercap, nvml, amdgpu, intelgpu, hwmon, battery, ioreport, smc, estimate, msr")
    );
}

#[test]
fn without_counters_the_estimate_steps_in_and_is_graded_so() {
    let fake_sysfs = FakeSysfs::new();
    fake_sysfs.proc_file("stat", STAT);
    let found = discover(&fake_sysfs.settings(&["perf", "powercap", "estimate"]), &Clock::Machine);
    assert_eq!(shape(&found), [("estimate:cpu".to_owned(), true)]);
    assert_eq!(found.opened[0].domains[0].grade, Grade::Estimated);
}

#[test]
fn a_counter_that_never_moves_is_stuck_and_does_not_keep_the_estimate_out() {
    let fake_sysfs = FakeSysfs::new();
    fake_sysfs.proc_file("stat", STAT);
    fake_sysfs.zone("intel-rapl:0", "psys", ESU_14, 0);
    let found = discover(&fake_sysfs.settings(&["powercap", "estimate"]), &Clock::Machine);
    assert_eq!(shape(&found), [("powercap:psys".to_owned(), false), ("estimate:cpu".to_owned(), true)]);
}

#[test]
fn a_live_counter_keeps_the_estimate_out_and_a_dead_one_beside_it_is_stuck() {
    let fake_sysfs = Arc::new(FakeSysfs::new());
    fake_sysfs.proc_file("stat", STAT);
    fake_sysfs.zone("intel-rapl:0", "package-0", ESU_14, 5);
    fake_sysfs.zone("intel-rapl:1", "psys", ESU_14, 77);
    let running = CounterThread::start(&fake_sysfs, &[("intel-rapl:0", 300)]);
    // On a busy machine the other thread may not run during one observation.
    let settings = fake_sysfs.settings(&["powercap", "estimate"]);
    let mut found = discover(&settings, &Clock::Machine);
    wait_until("the counter is seen to advance", || {
        let advanced = found.opened[0].advanced[0];
        if !advanced {
            found = discover(&settings, &Clock::Machine);
        }
        advanced
    });
    drop(running);
    assert_eq!(shape(&found), [("powercap:package-0".to_owned(), true), ("powercap:psys".to_owned(), false)]);
    assert_eq!(reason(&found, "estimate"), "not needed: package-0 has a live counter");
}

#[test]
fn the_configured_power_is_the_estimates_ceiling() {
    let fake_sysfs = FakeSysfs::new();
    fake_sysfs.proc_file("stat", STAT);
    let settings =
        SourceSettings { estimate_mw: Some((5_000, 65_000)), ..fake_sysfs.settings(&["estimate"]) };
    let found = discover(&settings, &Clock::Machine);
    assert_eq!(found.opened[0].domains[0].ceiling_mw, Some(65_000));
    let found = discover(&fake_sysfs.settings(&["estimate"]), &Clock::Machine);
    assert_eq!(found.opened[0].domains[0].ceiling_mw, Some(2 * 8_631), "two CPUs of an unknown family");
}

#[test]
fn this_machine_is_discovered_and_read_without_errors() {
    let mut found = discover(&SourceSettings::default(), &Clock::Machine);
    assert!(!found.opened.is_empty() || !found.absent.is_empty());
    for source in &mut found.opened {
        let mut readings = vec![EnergyReading::default(); source.domains.len()];
        for _ in 0..20 {
            source.source.read(&mut readings);
            thread::sleep(Duration::from_millis(1));
        }
        for (domain, reading) in source.domains.iter().zip(&readings) {
            println!("{}:{} {reading:?}", source.name, domain.name);
            assert!(reading.energy_uj < 20_000_000_000, "{}: {reading:?}", domain.name);
        }
    }
}
