//! Devices that appear, go and return while the meter runs: cards that are plugged in and drivers that are loaded later.
//!
//! The meter is the embedded service on a file system whose files are computed when they are read, or on a stand-in for
//! NVIDIA's library. No test expects a device within a certain time.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::fake_nvml::{Driver, GPU_IS_LOST, Knob, Library};
use crate::fuse_sysfs::{FuseMachine, MountedMachine, SquareWave};
use crate::support::wait_until;
use wattspan::clock::Clock;
use wattspan::config::Config;
use wattspan::domain::{Grade, Liveness};
use wattspan::embedded::EmbeddedMeter;
use wattspan_client::Client;
use wattspan_client::account::{Account, Share};
use wattspan_client::protocol::DomainStatus;

const MS: u64 = 1_000_000;
const CARD: SquareWave = SquareWave::new(40_000, 190_000, 9 * MS, 4 * MS);
const OTHER_CARD: SquareWave = SquareWave::new(20_000, 90_000, 7 * MS, 3 * MS);
const PACKAGE: SquareWave = SquareWave::new(20_000, 120_000, 7 * MS, 3 * MS);

/// A meter of its own on the machine.
fn start(mounted: &MountedMachine, enabled: &[&str]) -> EmbeddedMeter {
    start_with(mounted, enabled, Config::default())
}

fn start_with(mounted: &MountedMachine, enabled: &[&str], mut config: Config) -> EmbeddedMeter {
    let settings = mounted.settings(enabled);
    (config.source.sysfs_root, config.source.proc_root) = (settings.sysfs_root, settings.proc_root);
    config.source.enabled = Some(settings.enabled);
    // A window begins before a device is found, which takes as long as the machine needs.
    config.history_s = 120.0;
    EmbeddedMeter::start(&config).unwrap()
}

fn has_reason(client: &Client, part: &str) -> bool {
    client.info().unwrap().absent.iter().any(|absent| absent.reason.contains(part))
}

fn status(client: &Client, name: &str) -> Option<DomainStatus> {
    client.info().unwrap().domains.into_iter().find(|domain| domain.name == name)
}

fn is_live(client: &Client, name: &str) -> bool {
    status(client, name).is_some_and(|domain| domain.liveness == Liveness::Live)
}

/// Names and devices of all domains.
fn devices(client: &Client) -> Vec<(String, String)> {
    let domains = client.info().unwrap().domains;
    domains.into_iter().map(|domain| (domain.name, domain.device.unwrap_or_default())).collect()
}

fn measure_span(client: &Client) -> Account {
    let span = client.open_span("measured").unwrap();
    std::thread::sleep(Duration::from_millis(150));
    span.close().unwrap()
}

fn names(account: &Account) -> Vec<&str> {
    account.domains.iter().map(|share| &*share.domain).collect()
}

/// Asserts that the truth is within the error of the share.
fn assert_holds(account: &Account, name: &str, wave: SquareWave) {
    let share = account.domains.iter().find(|share| share.domain == name).unwrap();
    let (from, to) = (account.opened_ns, account.closed_ns.unwrap());
    let truth = (wave.energy_pj(to) - wave.energy_pj(from)) as f64 / 1e6;
    let (shown, error) = (share.share_uj.unwrap() as f64, share.error_uj.unwrap() as f64);
    assert!((shown - truth).abs() <= error, "{name}: {shown} ± {error}, truth {truth}: {account:?}");
}

/// Asserts that each domain's energy is attributed or not, and none twice.
fn assert_balanced(client: &Client) {
    for balance in client.balance().unwrap() {
        assert_eq!(balance.measured_uj, balance.attributed_uj + balance.unattributed_uj, "{balance:?}");
    }
}

/// A card of the driver xe at this address (linux Documentation/ABI/testing/sysfs-driver-intel-xe-hwmon). Its counter has
/// counted for a long time.
fn xe_card(machine: &mut FuseMachine, nth: usize, address: &str, wave: SquareWave) -> String {
    let path = format!("sys/class/hwmon/hwmon{nth}");
    machine.text(&format!("{path}/name"), "xe");
    machine.link(&format!("{path}/device"), &format!("sys/devices/pci0000:00/{address}"));
    machine.number(&format!("{path}/energy1_input"), move |at| 7_000_000_000 + wave.energy_uj(at));
    path
}

fn package(machine: &mut FuseMachine) {
    machine
        .text("proc/cpuinfo", "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 106\nflags\t\t: fpu");
    machine.text("sys/class/powercap/intel-rapl/enabled", "1");
    machine.text("sys/class/powercap/intel-rapl:0/name", "package-0");
    machine.text("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "262143328850");
    machine.number("sys/class/powercap/intel-rapl:0/energy_uj", |at| PACKAGE.energy_uj(at) % 262_143_328_850);
}

#[test]
fn a_card_that_is_plugged_in_is_a_new_domain_and_open_spans_are_not_billed_for_it() {
    let mut machine = FuseMachine::new();
    package(&mut machine);
    let card = xe_card(&mut machine, 5, "0000:0b:00.0", CARD);
    let lower = xe_card(&mut machine, 6, "0000:03:00.0", OTHER_CARD);
    let Some(mounted) = machine.mount() else { return };
    [&card, &lower].into_iter().for_each(|card| mounted.hide(card));
    let meter = start(&mounted, &["powercap", "intelgpu"]);
    let client = meter.connect().unwrap();
    let is_without_card = |client: &Client| {
        let absent = client.info().unwrap().absent;
        absent.iter().any(|absent| absent.source == "intelgpu" && absent.reason.starts_with("no card"))
    };
    assert!(is_without_card(&client));
    let across = client.open_span("across").unwrap();
    mounted.show(&card);
    wait_until("the card is live", || is_live(&client, "intelgpu-0"));
    assert!(!is_without_card(&client), "the reason no longer holds");
    assert!(status(&client, "intelgpu-0").unwrap().counted);
    std::thread::sleep(Duration::from_millis(300));
    let across = across.close().unwrap();
    assert_eq!(names(&across), ["package-0"]);
    assert_holds(&across, "package-0", PACKAGE);
    assert_eq!(across.share_uj, across.domains[0].share_uj);
    let after = measure_span(&client);
    assert_eq!(names(&after), ["package-0", "intelgpu-0"]);
    assert_holds(&after, "intelgpu-0", CARD);
    let parts: u64 = after.domains.iter().map(|share| share.share_uj.unwrap()).sum();
    assert_eq!(after.share_uj, Some(parts));
    // A window that begins before the card is one of the other domains, with a total.
    let window = |from_ns: u64| {
        let instants = (from_ns, after.closed_ns.unwrap());
        client.read_window(instants.0.try_into().unwrap(), instants.1.try_into().unwrap()).unwrap()
    };
    let (earlier, later) = (window(across.opened_ns), window(after.opened_ns));
    let names_in = |shares: &[Share]| shares.iter().map(|share| share.domain.to_string()).collect::<Vec<_>>();
    assert_eq!(names_in(&earlier.domains), ["package-0"]);
    assert!(earlier.window_uj.is_some() && earlier.window_uj == earlier.domains[0].window_uj, "{earlier:?}");
    assert_eq!(names_in(&later.domains), ["package-0", "intelgpu-0"]);
    assert!(later.window_uj.is_some(), "{later:?}");
    // Its counter had counted 7 kJ before: none of that is measured here.
    let energy_uj = status(&client, "intelgpu-0").unwrap().energy_uj.unwrap();
    assert!(energy_uj < 7_000_000_000, "{energy_uj}");
    assert_balanced(&client);
    // The address of the second one is lower: the first keeps its name.
    mounted.show(&lower);
    wait_until("the second card is live", || is_live(&client, "intelgpu-1"));
    let shown: Vec<(String, String)> = devices(&client).split_off(1);
    let row = |name: &str, device: &str| (name.to_owned(), device.to_owned());
    assert_eq!(shown, [row("intelgpu-0", "0000:0b:00.0"), row("intelgpu-1", "0000:03:00.0")]);
    let both = measure_span(&client);
    assert_holds(&both, "intelgpu-0", CARD);
    assert_holds(&both, "intelgpu-1", OTHER_CARD);
}

#[test]
fn a_card_that_goes_and_returns_is_one_domain_with_a_gap() {
    let mut machine = FuseMachine::new();
    package(&mut machine);
    let card = xe_card(&mut machine, 5, "0000:0b:00.0", CARD);
    let Some(mounted) = machine.mount() else { return };
    let meter = start(&mounted, &["powercap", "intelgpu"]);
    let client = meter.connect().unwrap();
    wait_until("the card is live", || is_live(&client, "intelgpu-0"));
    let across = client.open_span("across").unwrap();
    mounted.hide(&card);
    wait_until("the card is lost", || status(&client, "intelgpu-0").unwrap().liveness == Liveness::Lost);
    // Spans that open now are complete without it.
    let without = measure_span(&client);
    assert_eq!(names(&without), ["package-0"]);
    assert!(without.share_uj.is_some());
    mounted.show(&card);
    wait_until("the card is live again", || is_live(&client, "intelgpu-0"));
    // Two more comparisons of the lists.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(devices(&client).len(), 2, "{:?}", devices(&client));
    let across = across.close().unwrap();
    let share = across.domains.iter().find(|share| share.domain == "intelgpu-0").unwrap();
    assert!(share.unknown_ns > 0 && across.share_uj.is_none(), "{across:?}");
    let again = measure_span(&client);
    assert_holds(&again, "intelgpu-0", CARD);
    assert_balanced(&client);
}

/// `gpu_metrics` 1.4 (linux kgd_pp_interface.h): socket power at byte 12, accumulator at 24, stamp at 40.
fn amd_card(machine: &mut FuseMachine, nth: usize, address: &str, id: &Arc<AtomicU64>, wave: SquareWave) {
    let device = format!("sys/devices/pci0000:00/{address}");
    machine.text(&format!("{device}/vendor"), "0x1002");
    let id = Arc::clone(id);
    machine.number(&format!("{device}/unique_id"), move |_| id.load(Ordering::Relaxed));
    machine.text(&format!("{device}/hwmon/hwmon{nth}/name"), "amdgpu");
    machine.link(&format!("{device}/hwmon/hwmon{nth}/device"), &device);
    machine.number(&format!("{device}/hwmon/hwmon{nth}/power1_average"), move |at| wave.power_uw(at));
    machine.bytes(&format!("{device}/gpu_metrics"), move |now_ns, _| {
        let mut table = vec![0_u8; 120];
        table[..4].copy_from_slice(&[120, 0, 1, 3]);
        table[22..24].copy_from_slice(&100_u16.to_le_bytes());
        let count = u32::try_from(wave.counts(now_ns, MS, 16) & 0xFFFF_FFFF).unwrap();
        table[24..32].copy_from_slice(&u64::from(count).to_le_bytes());
        let boot_ns = now_ns + Clock::Machine.suspended_ns();
        table[32..40].copy_from_slice(&boot_ns.to_le_bytes());
        table
    });
    machine.link(&format!("sys/class/drm/card{nth}/device"), &device);
    machine.link(&format!("sys/class/hwmon/hwmon{nth}"), &format!("{device}/hwmon/hwmon{nth}"));
}

#[test]
fn another_card_of_amd_in_the_slot_is_another_domain_and_the_first_one_stays_lost() {
    let mut machine = FuseMachine::new();
    let id = Arc::new(AtomicU64::new(1_111));
    let steady = SquareWave::steady(100_000);
    amd_card(&mut machine, 4, "0000:03:00.0", &id, steady);
    // Only the comparison of the lists looks here.
    let boards = "sys/bus/pci/drivers/nvidia";
    machine.text(&format!("{boards}/uevent"), "");
    let Some(mounted) = machine.mount() else { return };
    let parts = ["sys/devices/pci0000:00/0000:03:00.0", "sys/class/drm/card4", "sys/class/hwmon/hwmon4"];
    parts.iter().for_each(|part| mounted.hide(part));
    let meter = start(&mounted, &["amdgpu", "hwmon"]);
    let client = meter.connect().unwrap();
    assert!(devices(&client).is_empty());
    parts.iter().for_each(|part| mounted.show(part));
    wait_until("the card is live", || is_live(&client, "amdgpu-0"));
    assert_eq!(status(&client, "amdgpu-0").unwrap().grade, Grade::Measured);
    assert_holds(&measure_span(&client), "amdgpu-0", steady);
    parts.iter().for_each(|part| mounted.hide(part));
    wait_until("it is lost", || !is_live(&client, "amdgpu-0"));
    let listings = mounted.listings(boards);
    // The first of two is complete when the second begins.
    wait_until("the lists are compared while the slot is empty", || mounted.listings(boards) > listings + 1);
    id.store(2_222, Ordering::Relaxed);
    parts.iter().for_each(|part| mounted.show(part));
    wait_until("the other card is live", || is_live(&client, "amdgpu-1"));
    std::thread::sleep(Duration::from_secs(3));
    assert!(!is_live(&client, "amdgpu-0"), "its slot has another card");
    let row = |name: &str, device: &str| (name.to_owned(), device.to_owned());
    assert_eq!(devices(&client), [row("amdgpu-0", "1111"), row("amdgpu-1", "2222")]);
    let account = measure_span(&client);
    assert_eq!(names(&account), ["amdgpu-1"]);
    assert_holds(&account, "amdgpu-1", steady);
}

/// A power supply on USB (linux Documentation/hwmon/corsair-psu.rst), which takes 180 W.
fn power_supply(machine: &mut FuseMachine, nth: usize, device: &str) -> String {
    let supply = format!("sys/class/hwmon/hwmon{nth}");
    machine.text(&format!("{supply}/name"), "corsairpsu");
    machine.text(&format!("{device}/power/runtime_status"), "active");
    machine.link(&format!("{supply}/device"), device);
    machine.text(&format!("{supply}/in0_label"), "v_in");
    machine.text(&format!("{supply}/in0_input"), "230000");
    machine.text(&format!("{supply}/power1_label"), "power total");
    machine.number(&format!("{supply}/power1_input"), |_| 180_000_000);
    supply
}

#[test]
fn a_driver_that_is_loaded_later_and_shows_a_known_counter_counts_nothing_twice() {
    // zenergy beside powercap: one register. corsair-psu beside them: the whole machine.
    let mut machine = FuseMachine::new();
    package(&mut machine);
    let zenergy = "sys/class/hwmon/hwmon2";
    machine.text(&format!("{zenergy}/name"), "zenergy");
    machine.link(&format!("{zenergy}/device"), "sys/devices/platform/zenergy.0");
    machine.text(&format!("{zenergy}/energy1_label"), "Esocket0");
    machine.number(&format!("{zenergy}/energy1_input"), |at| PACKAGE.energy_uj(at));
    // The HID layer numbers devices anew at each connection.
    let device = |instance: &str| format!("sys/devices/pci0000:00/usb1/1-5:1.0/0003:1B1C:1C07.{instance}");
    let supply = power_supply(&mut machine, 3, &device("0005"));
    let again = power_supply(&mut machine, 4, &device("0006"));
    let Some(mounted) = machine.mount() else { return };
    [zenergy, &supply, &again].iter().for_each(|chip| mounted.hide(chip));
    let meter = start(&mounted, &["powercap", "hwmon"]);
    let client = meter.connect().unwrap();
    mounted.show(zenergy);
    let is_reported = || {
        let absent = client.info().unwrap().absent;
        absent.iter().any(|absent| absent.reason == "package-0 is read by powercap")
    };
    wait_until("the second name is reported", is_reported);
    assert_eq!(devices(&client).len(), 1);
    mounted.show(&supply);
    wait_until("the supply is live", || is_live(&client, "psu-0"));
    let account = measure_span(&client);
    // The processor has a counter, so integrated power does not replace it.
    assert_eq!(names(&account), ["package-0", "psu-0"]);
    assert_eq!(account.share_uj, account.domains[0].share_uj, "{account:?}");
    // It is disconnected and connected again.
    [&supply, &device("0005")].iter().for_each(|part| mounted.hide(part));
    wait_until("the supply is lost", || !is_live(&client, "psu-0"));
    mounted.show(&again);
    wait_until("the supply is live again", || is_live(&client, "psu-0"));
    std::thread::sleep(Duration::from_secs(4));
    let row = |name: &str, device: &str| (name.to_owned(), device.to_owned());
    assert_eq!(devices(&client)[1..], [row("psu-0", "1-5:1.0/0003:1B1C:1C07")]);
}

#[test]
fn a_configured_averaging_time_is_that_of_the_device_that_has_the_name() {
    let mut machine = FuseMachine::new();
    let device =
        |port: u32, nth: u32| format!("sys/devices/pci0000:00/usb1/1-{port}:1.0/0003:1B1C:1C07.000{nth}");
    let known = power_supply(&mut machine, 3, &device(2, 5));
    // Its device comes before the known one.
    let new = power_supply(&mut machine, 4, &device(1, 6));
    let Some(mounted) = machine.mount() else { return };
    mounted.hide(&new);
    let averaging_ms = [("psu-1".to_owned(), 100.0)].into();
    let meter = start_with(&mounted, &["hwmon"], Config { averaging_ms, ..Config::default() });
    let client = meter.connect().unwrap();
    wait_until("the first one is live", || is_live(&client, "psu-0"));
    mounted.show(&new);
    wait_until("the second one is live", || is_live(&client, "psu-1"));
    let row = |name: &str, port: u32| (name.to_owned(), format!("1-{port}:1.0/0003:1B1C:1C07"));
    assert_eq!(devices(&client), [row("psu-0", 2), row("psu-1", 1)], "{known}");
    let averaging = |name: &str| {
        let status = status(&client, name).unwrap();
        (status.averaging_ns, status.lag_ns)
    };
    assert_eq!(averaging("psu-1"), (Some(100 * MS), Some(200 * MS)));
    assert_eq!(averaging("psu-0").1, Some(0));
}

#[test]
fn a_driver_that_hangs_hides_no_new_device_of_another_one_and_is_reported() {
    let mut machine = FuseMachine::new();
    let card = xe_card(&mut machine, 5, "0000:03:00.0", CARD);
    let other = xe_card(&mut machine, 6, "0000:0b:00.0", OTHER_CARD);
    let supply = power_supply(&mut machine, 3, "sys/devices/pci0000:00/usb1/1-5:1.0/0003:1B1C:1C07.0005");
    let Some(mounted) = machine.mount() else { return };
    [&other, &supply].iter().for_each(|part| mounted.hide(part));
    let meter = start(&mounted, &["intelgpu", "hwmon"]);
    let client = meter.connect().unwrap();
    wait_until("the card is live", || is_live(&client, "intelgpu-0"));
    mounted.block(&format!("{card}/energy1_input"));
    mounted.show(&supply);
    wait_until("the supply is live", || is_live(&client, "psu-0"));
    let hangs = "new devices of intelgpu are detected once it does";
    wait_until("the driver that hangs is reported", || has_reason(&client, hangs));
    mounted.release();
    wait_until("the reason is withdrawn", || !has_reason(&client, hangs));
    mounted.show(&other);
    wait_until("the other card is live", || is_live(&client, "intelgpu-1"));
}

#[test]
fn a_card_without_counter_and_sensor_is_estimated_within_its_limit() {
    let mut machine = FuseMachine::new();
    let amd = "sys/devices/pci0000:00/0000:03:00.0";
    machine.text(&format!("{amd}/vendor"), "0x1002");
    machine.text(&format!("{amd}/gpu_busy_percent"), "50");
    machine.text(&format!("{amd}/hwmon/hwmon4/name"), "amdgpu");
    machine.link(&format!("{amd}/hwmon/hwmon4/device"), amd);
    machine.text(&format!("{amd}/hwmon/hwmon4/power1_cap"), "200000000");
    machine.link("sys/class/drm/card4/device", amd);
    machine.link("sys/class/hwmon/hwmon4", &format!("{amd}/hwmon/hwmon4"));
    let intel = "sys/devices/pci0000:00/0000:0b:00.0";
    machine.text("sys/class/hwmon/hwmon5/name", "xe");
    machine.link("sys/class/hwmon/hwmon5/device", intel);
    machine.text("sys/class/hwmon/hwmon5/power1_max", "100000000");
    // The first block is idle for a quarter of the time, the second one always.
    machine.number(&format!("{intel}/tile0/gt0/gtidle/idle_residency_ms"), |at| at / 4 / MS);
    machine.number(&format!("{intel}/tile0/gt1/gtidle/idle_residency_ms"), |at| at / MS);
    let Some(mounted) = machine.mount() else { return };
    let meter = start(&mounted, &["amdgpu", "intelgpu"]);
    let client = meter.connect().unwrap();
    let names = ["amdgpu-0", "intelgpu-0"];
    wait_until("both are live", || names.iter().all(|name| is_live(&client, name)));
    // 11.3 % when idle, all of the limit when busy; the interval is from 0 to the limit.
    for (name, expected_w, limit_w, tolerance_w) in
        [("amdgpu-0", 111.3, 200.0, 0.5), ("intelgpu-0", 77.8, 100.0, 5.0)]
    {
        let domain = status(&client, name).unwrap();
        assert_eq!((domain.grade, domain.counted), (Grade::Estimated, true), "{domain:?}");
        // A busy machine delays a read of the idle time, which changes the part of the interval that is busy.
        wait_until("the power is that of the busy part", || {
            let account = measure_span(&client);
            let seconds = (account.closed_ns.unwrap() - account.opened_ns) as f64 / 1e9;
            let share = account.domains.iter().find(|share| share.domain == name).unwrap();
            let watts = |uj: Option<u64>| uj.unwrap() as f64 / 1e6 / seconds;
            let (shown_w, error_w) = (watts(share.share_uj), watts(share.error_uj));
            assert!(shown_w - error_w <= 0.0 && shown_w + error_w >= limit_w * 0.999, "{name}: {error_w} W");
            (shown_w - expected_w).abs() <= tolerance_w
        });
        let reasons = client.info().unwrap().absent;
        let is_told = |reason: &str| reason.contains("it is estimated from its power limit");
        assert!(reasons.iter().any(|absent| name.starts_with(&absent.source) && is_told(&absent.reason)));
    }
}

/// The list of the boards that NVIDIA's driver has.
fn list_boards(sysfs: &Path, addresses: &[&str]) {
    let driver = sysfs.join("bus/pci/drivers/nvidia");
    let _ = fs::remove_dir_all(&driver);
    for address in addresses {
        fs::create_dir_all(driver.join(address)).unwrap();
    }
}

/// A meter of the library's boards only.
fn start_with_boards(library: &Library, sysfs: &Path) -> EmbeddedMeter {
    let mut config = Config::default();
    config.source.sysfs_root = sysfs.to_owned();
    config.source.nvml_library = Some(library.path());
    config.source.enabled = Some(vec!["nvml".into()]);
    EmbeddedMeter::start(&config).unwrap()
}

#[test]
fn the_reason_of_a_board_that_fails_stays_until_the_board_opens() {
    let library = Library::new(2);
    library.set_global(Driver::Refusal, DRIVER_NOT_LOADED);
    library.set(0, Knob::Refuses, GPU_IS_LOST);
    // The other one takes longer.
    library.set(1, Knob::SleepNs, 50 * MS);
    let sysfs = tempfile::tempdir().unwrap();
    let meter = start_with_boards(&library, sysfs.path());
    let client = meter.connect().unwrap();
    library.set_global(Driver::Refusal, 0);
    list_boards(sysfs.path(), &["0000:01:00.0", "0000:41:00.0"]);
    wait_until("the other board is live", || is_live(&client, "gpu-1"));
    wait_until("the board is reported", || has_reason(&client, "gpu-0: "));
    // The search is repeated.
    let inits = library.get_global(Driver::Inits);
    wait_until("the search is repeated", || library.get_global(Driver::Inits) > inits + 1);
    assert!(has_reason(&client, "gpu-0: "));
    library.set(0, Knob::Refuses, 0);
    wait_until("the board is live", || is_live(&client, "gpu-0"));
    assert!(!has_reason(&client, "gpu-0: "), "{:?}", client.info().unwrap().absent);
}

/// The status of `nvmlInit` without a driver.
const DRIVER_NOT_LOADED: u64 = 9;

#[test]
fn boards_of_a_driver_that_is_loaded_later_appear_and_a_new_one_takes_no_name_of_another() {
    let library = Library::new(2);
    library.set_global(Driver::Refusal, DRIVER_NOT_LOADED);
    library.set_global(Driver::Boards, 1);
    let sysfs = tempfile::tempdir().unwrap();
    let meter = start_with_boards(&library, sysfs.path());
    let client = meter.connect().unwrap();
    assert!(devices(&client).is_empty());
    let is_refused = |client: &Client| has_reason(client, "modprobe nvidia");
    assert!(is_refused(&client));
    // The driver is there before its device files are: the search is repeated.
    list_boards(sysfs.path(), &["0000:41:00.0"]);
    std::thread::sleep(Duration::from_secs(4));
    library.set_global(Driver::Refusal, 0);
    wait_until("the board is live", || is_live(&client, "gpu-0"));
    assert!(!is_refused(&client), "the reason no longer holds");
    // A second board, which the library does not list while the first one keeps it initialised.
    library.set_global(Driver::Boards, 2);
    list_boards(sysfs.path(), &["0000:01:00.0", "0000:41:00.0"]);
    let outdated = "the driver has 2 boards and NVML lists 1";
    wait_until("the second board is reported", || has_reason(&client, outdated));
    // Another search would find no more.
    let inits = library.get_global(Driver::Inits);
    std::thread::sleep(Duration::from_secs(9));
    assert_eq!(library.get_global(Driver::Inits), inits);
    assert_eq!(devices(&client), [("gpu-0".to_owned(), Library::uuid(0xA0))]);
    assert!(is_live(&client, "gpu-0"));
    // The driver is loaded again and lists the second board first.
    library.set_global(Driver::Unloaded, 1);
    list_boards(sysfs.path(), &[]);
    wait_until("the first board is lost", || !is_live(&client, "gpu-0"));
    std::thread::sleep(Duration::from_secs(3));
    library.set(0, Knob::ShownAt, 1);
    library.set(1, Knob::ShownAt, 0);
    library.reload(wattspan::clock::monotonic_ns());
    library.set_global(Driver::Unloaded, 0);
    wait_until("the first board is live again", || is_live(&client, "gpu-0"));
    let across = client.open_span("across").unwrap();
    list_boards(sysfs.path(), &["0000:01:00.0", "0000:41:00.0"]);
    wait_until("the second board is live", || is_live(&client, "gpu-1"));
    assert!(!has_reason(&client, outdated), "the reason no longer holds");
    let row = |name: &str, board: u64| (name.to_owned(), Library::uuid(0xA0 + board));
    assert_eq!(devices(&client), [row("gpu-0", 0), row("gpu-1", 1)]);
    let after = measure_span(&client);
    assert_eq!(names(&after), ["gpu-0", "gpu-1"]);
    assert_eq!(names(&across.close().unwrap()), ["gpu-0"]);
    assert_balanced(&client);
    // No more searches once all boards are measured.
    std::thread::sleep(Duration::from_secs(5));
    let inits = library.get_global(Driver::Inits);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(library.get_global(Driver::Inits), inits);
}
