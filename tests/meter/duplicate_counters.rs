//! Two names of one counter are never counted twice, and two counters are never treated as one.
//!
//! Each machine's files are computed when read (see `fuse_sysfs`); each start is a whole meter, as in `wattspan run`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::fuse_sysfs::{FuseMachine, MountedMachine};
use wattspan::clock::monotonic_ns;
use wattspan::config::Config;
use wattspan::domain::{Duplicate, Liveness};
use wattspan::embedded::EmbeddedMeter;
use wattspan_client::Client;
use wattspan_client::account::Account;
use wattspan_client::protocol::{DaemonInfo, DomainStatus};

const MS: u64 = 1_000_000;

/// The time limit for the decision about two independent counters of equal load whose packages the kernel does not
/// number.
const DECIDED_WITHIN: Duration = Duration::from_secs(60);

/// The number of starts; `WATTSPAN_TEST_STARTS=100` overrides the short run.
fn starts(short: usize) -> usize {
    std::env::var("WATTSPAN_TEST_STARTS").map_or(short, |starts| starts.parse().unwrap())
}

/// A register of 2^-14 J units that moves every millisecond by `least` counts plus less than `spread` more;
/// deterministic.
fn register(seed: u64, least: u64, spread: u64) -> impl Fn(u64) -> u64 + Clone + Send + Sync + 'static {
    const PERIOD: u64 = 1 << 14;
    let mut state = seed;
    let mut sums = vec![0_u64];
    for at in 0..PERIOD as usize {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        sums.push(sums[at] + least + (state >> 33) % spread);
    }
    let sums: Arc<[u64]> = sums.into();
    move |at_ns| {
        let update = at_ns / MS;
        update / PERIOD * sums[PERIOD as usize] + sums[(update % PERIOD) as usize]
    }
}

/// A package's zone with the driver's names and units (linux drivers/powercap/intel_rapl_common.c).
fn zone(
    machine: &mut FuseMachine,
    id: &str,
    name: &str,
    counts: impl Fn(u64) -> u64 + Send + Sync + 'static,
) {
    let path = format!("sys/class/powercap/{id}");
    machine.text(&format!("{path}/name"), name);
    machine.text(&format!("{path}/max_energy_range_uj"), "262143328850");
    machine.number(&format!("{path}/energy_uj"), move |at_ns| (counts(at_ns) & 0xFFFF_FFFF) * 61_035 / 1_000);
}

/// CPU topology with this many packages of two CPUs each.
fn topology(machine: &mut FuseMachine, packages: usize) {
    for cpu in 0..2 * packages {
        let path = format!("sys/devices/system/cpu/cpu{cpu}/topology");
        machine.text(&format!("{path}/physical_package_id"), &(cpu / 2).to_string());
    }
}

/// 68 W, with the variation of a real package.
const LOADED: (u64, u64) = (1_080, 70);
/// An idle package, whose steps have two sizes only: its levels prove nothing.
const IDLE: (u64, u64) = (16, 2);

const DIES: [&str; 2] = ["package-0-die-0", "package-0-die-1"];

/// Rare and equal steps: for a second nothing can be concluded about such a counter.
fn seldom(at_ns: u64) -> u64 {
    at_ns / (100 * MS) * 6_100
}

/// One counter under two names: a package's dies, or a mirrored zone named after a package without CPUs.
fn one_counter_twice(names: [&str; 2], load: (u64, u64), packages: usize) -> FuseMachine {
    let mut machine = FuseMachine::new();
    topology(&mut machine, packages);
    let counts = register(7, load.0, load.1);
    zone(&mut machine, "intel-rapl:0", names[0], counts.clone());
    zone(&mut machine, "intel-rapl:1", names[1], counts);
    machine
}

fn seldom_dies() -> FuseMachine {
    let mut machine = FuseMachine::new();
    topology(&mut machine, 1);
    zone(&mut machine, "intel-rapl:0", DIES[0], seldom);
    zone(&mut machine, "intel-rapl:1", DIES[1], seldom);
    machine
}

fn two_packages(load: (u64, u64), packages: usize) -> FuseMachine {
    let mut machine = FuseMachine::new();
    topology(&mut machine, packages);
    zone(&mut machine, "intel-rapl:0", "package-0", register(7, load.0, load.1));
    zone(&mut machine, "intel-rapl:1", "package-1", register(8, load.0, load.1));
    machine
}

struct RunningMeter {
    client: Client,
    _meter: EmbeddedMeter,
}

fn start(mounted: &MountedMachine) -> RunningMeter {
    let settings = mounted.settings(&["powercap"]);
    // Windows begin before a decision, which takes as long as the machine needs.
    let mut config = Config { history_s: 120.0, ..Config::default() };
    config.source.sysfs_root = settings.sysfs_root;
    config.source.proc_root = settings.proc_root;
    config.source.enabled = Some(settings.enabled);
    let meter = EmbeddedMeter::start(&config).unwrap();
    RunningMeter { client: meter.connect().unwrap(), _meter: meter }
}

impl RunningMeter {
    fn info(&self) -> DaemonInfo {
        self.client.info().unwrap()
    }

    /// Polls until the condition holds; fails after `within`.
    fn wait_until(&self, within: Duration, what: &str, holds: impl Fn(&DaemonInfo) -> bool) -> DaemonInfo {
        let end = Instant::now() + within;
        loop {
            let info = self.info();
            if holds(&info) {
                return info;
            }
            assert!(Instant::now() < end, "{what}: {:?}", info.domains);
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn span_of(&self, length: Duration) -> Account {
        let span = self.client.open_span("one").unwrap();
        thread::sleep(length);
        span.close().unwrap()
    }
}

fn counted(info: &DaemonInfo) -> Vec<&str> {
    info.domains.iter().filter(|domain| domain.counted).map(|domain| &*domain.name).collect()
}

fn second(info: &DaemonInfo) -> &DomainStatus {
    &info.domains[1]
}

/// Whether both domains are live and it is undecided if they share a counter.
fn is_in_doubt(info: &DaemonInfo) -> bool {
    let live = info.domains.iter().all(|domain| domain.liveness == Liveness::Live);
    live && second(info).duplicate == Some(Duplicate::Undecided)
}

/// Asserts that the total is the sum of exactly these domains' shares.
fn assert_total_is_of(account: &Account, names: &[&str]) {
    let share =
        |name: &&str| account.domains.iter().find(|share| share.domain == **name).unwrap().share_uj.unwrap();
    let sum: u64 = names.iter().map(share).sum();
    assert_eq!(account.share_uj, Some(sum), "{names:?} of {account:?}");
    assert!(sum > 0, "{account:?}");
}

/// Keeps every CPU busy with eight loops, until dropped.
struct CpuLoad(Arc<AtomicBool>, Vec<thread::JoinHandle<()>>);

impl CpuLoad {
    fn eight_loops() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let spin = |stop: Arc<AtomicBool>| move || while !stop.load(Ordering::Relaxed) {};
        Self(Arc::clone(&stop), (0..8).map(|_| thread::spawn(spin(Arc::clone(&stop)))).collect())
    }
}

impl Drop for CpuLoad {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn two_names_of_one_counter_count_once_in_every_start_on_a_busy_machine() {
    let machines = [
        one_counter_twice(DIES, LOADED, 1),
        one_counter_twice(DIES, IDLE, 1),
        one_counter_twice(["package-0", "package-1"], LOADED, 1),
        one_counter_twice(["package-0", "package-1"], IDLE, 0),
        seldom_dies(),
    ];
    let mounted_machines: Vec<MountedMachine> = machines.into_iter().map_while(FuseMachine::mount).collect();
    let load = CpuLoad::eight_loops();
    for (at, mounted) in
        mounted_machines.iter().cycle().take(starts(10) * mounted_machines.len().min(1)).enumerate()
    {
        let meter = start(mounted);
        let before = meter.wait_until(DECIDED_WITHIN, "one is live", |info| !counted(info).is_empty());
        let account = meter.span_of(Duration::from_millis(110));
        for info in [&before, &meter.info()] {
            assert_eq!(counted(info).len(), 1, "start {at}: {:?}", info.domains);
            assert_ne!(second(info).duplicate, Some(Duplicate::Independent), "start {at}");
            assert_eq!(info.at_least == Some(true), is_in_doubt(info), "start {at}: {info:?}");
        }
        let parts: Vec<_> = account.domains.iter().map(|share| share.share_uj).collect();
        assert!(account.share_uj > Some(0) && parts.contains(&account.share_uj), "start {at}: {account:?}");
        if is_in_doubt(&before) && is_in_doubt(&meter.info()) {
            assert_eq!(account.at_least, Some(true), "start {at}");
        }
    }
    drop(load);
}

#[test]
fn two_packages_that_the_kernel_numbers_apart_are_both_counted_from_every_start() {
    let Some(mounted) = two_packages(LOADED, 2).mount() else { return };
    let load = CpuLoad::eight_loops();
    for at in 0..starts(8) {
        let meter = start(&mounted);
        let account = meter.span_of(Duration::from_millis(30));
        let info = meter.info();
        assert_eq!(counted(&info), ["package-0", "package-1"], "start {at}: {:?}", info.domains);
        assert_eq!((info.at_least, account.at_least), (None, None), "start {at}");
        assert_eq!(second(&info).duplicate, Some(Duplicate::Independent), "start {at}");
        assert_total_is_of(&account, &["package-0", "package-1"]);
    }
    drop(load);
}

#[test]
fn the_readings_decide_where_the_kernel_does_not() {
    let Some(one) = one_counter_twice(DIES, LOADED, 1).mount() else { return };
    let Some(two) = two_packages(LOADED, 0).mount() else { return };
    let meter = start(&one);
    let info = meter.wait_until(DECIDED_WITHIN, "one counter is recognised", |info| {
        second(info).duplicate == Some(Duplicate::Same)
    });
    assert_eq!((counted(&info), info.at_least), (vec!["package-0-die-0"], None));
    assert_eq!(second(&info).duplicate_of.as_deref(), Some("package-0-die-0"));
    assert_eq!(meter.span_of(Duration::from_millis(30)).at_least, None);
    let meter = start(&two);
    let info = meter.wait_until(DECIDED_WITHIN, "two counters are recognised", |info| {
        second(info).duplicate == Some(Duplicate::Independent)
    });
    assert_eq!((counted(&info), info.at_least), (vec!["package-0", "package-1"], None));
}

#[test]
fn a_decision_holds_from_its_instant_on_and_never_backwards() {
    // Both zones show the same rare and equal steps, which prove nothing, until the second diverges.
    let apart_ns = Arc::new(AtomicU64::new(u64::MAX));
    let mut machine = FuseMachine::new();
    let since_ns = Arc::clone(&apart_ns);
    zone(&mut machine, "intel-rapl:0", "package-0", seldom);
    zone(&mut machine, "intel-rapl:1", "package-1", move |at_ns| {
        let alone_ns = at_ns.saturating_sub(since_ns.load(Ordering::Relaxed));
        seldom(at_ns) + alone_ns / MS * 500
    });
    let Some(mounted) = machine.mount() else { return };
    let meter = start(&mounted);
    meter.wait_until(DECIDED_WITHIN, "both live", |info| {
        counted(info).len() == 1 && info.at_least == Some(true)
    });
    let settled = meter.span_of(Duration::from_millis(30));
    let across = meter.client.open_span("across").unwrap();
    let from_ns = meter.info().now_ns;
    assert_eq!(second(&meter.info()).duplicate, Some(Duplicate::Undecided));
    apart_ns.store(wattspan::clock::monotonic_ns(), Ordering::Relaxed);
    meter.wait_until(DECIDED_WITHIN, "two counters are recognised", |info| {
        second(info).duplicate == Some(Duplicate::Independent) && info.at_least.is_none()
    });
    let after_ns = meter.info().now_ns;
    let after = meter.span_of(Duration::from_millis(30));
    let across = across.close().unwrap();
    for account in [&settled, &across] {
        assert_total_is_of(account, &["package-0"]);
        assert_eq!(account.at_least, Some(true), "{account:?}");
    }
    assert_total_is_of(&after, &["package-0", "package-1"]);
    assert_eq!(after.at_least, None);
    assert_eq!(meter.client.span_account(&settled.span).unwrap(), settled, "settled accounts never change");
    let window = |from_ns: u64, to_ns: u64| meter.client.read_window(from_ns as i64, to_ns as i64).unwrap();
    let now_ns = meter.info().now_ns;
    assert_eq!(window(from_ns, now_ns).at_least, Some(true));
    assert_eq!(window(after_ns, now_ns).at_least, None);
}

#[test]
fn one_counter_in_two_numbered_packages_is_counted_once_when_its_levels_show_it() {
    // A virtual machine may show one register of its host in two of its own packages.
    let Some(mounted) = one_counter_twice(["package-0", "package-1"], LOADED, 2).mount() else { return };
    let meter = start(&mounted);
    let across = meter.client.open_span("across").unwrap();
    meter.wait_until(DECIDED_WITHIN, "one counter is recognised", |info| {
        second(info).duplicate == Some(Duplicate::Same)
    });
    let across = across.close().unwrap();
    assert_total_is_of(&across, &["package-0"]);
    assert_eq!(counted(&meter.info()), ["package-0"]);
}

#[test]
fn of_two_platform_zones_that_stand_still_at_the_start_the_one_that_begins_to_move_is_counted() {
    let mut machine = FuseMachine::new();
    topology(&mut machine, 1);
    zone(&mut machine, "intel-rapl:0", "package-0", register(7, LOADED.0, LOADED.1));
    zone(&mut machine, "intel-rapl:1", "psys", |_| 0);
    // It stands still until the platform's load begins.
    let begins = Arc::new(AtomicBool::new(false));
    let (shown, from_ns) = (Arc::clone(&begins), monotonic_ns());
    let platform = register(9, 3 * LOADED.0, LOADED.1);
    zone(&mut machine, "intel-rapl:2", "psys-1", move |at_ns| {
        let moves = shown.load(Ordering::Relaxed);
        platform(if moves { at_ns } else { from_ns })
    });
    let Some(mounted) = machine.mount() else { return };
    let meter = start(&mounted);
    let info = meter
        .wait_until(Duration::from_secs(30), "the package is counted", |info| counted(info) == ["package-0"]);
    let names: Vec<_> = info.domains.iter().map(|domain| &*domain.name).collect();
    assert_eq!(names, ["package-0", "psys", "psys-1"], "both stay until one moves");
    begins.store(true, Ordering::Relaxed);
    meter.wait_until(Duration::from_secs(30), "the platform is counted", |info| counted(info) == ["psys-1"]);
    assert_total_is_of(&meter.span_of(Duration::from_millis(100)), &["psys-1"]);
}
