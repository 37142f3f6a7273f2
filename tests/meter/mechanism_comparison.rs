//! `wattspan doctor --compare` on machines whose mechanisms disagree by a known amount.

use std::thread::sleep;
use std::time::Duration;

use crate::machine_tree::MachineTree;
use wattspan::clock::Clock;
use wattspan::sources::discover_all;
use wattspan::sources::mechanism_comparison::{ComparedMechanism, MechanismPair, compare};

/// A package of 100 W and a platform of 150 W in powercap; the other mechanisms show 110 W of the package, 180 W at the power
/// supply, and 165 W from the battery.
const DISAGREEING: &str = "
    machine A machine whose mechanisms disagree
    sys/class/powercap/intel-rapl:0/name = package-0
    sys/class/powercap/intel-rapl:0/max_energy_range_uj = 262143328850
    sys/class/powercap/intel-rapl:0/energy_uj = @rapl 100 W 61035 14
    sys/class/powercap/intel-rapl:1/name = psys
    sys/class/powercap/intel-rapl:1/max_energy_range_uj = 262143328850
    sys/class/powercap/intel-rapl:1/energy_uj = @rapl 150 W 61035 14
    sys/class/hwmon/hwmon0/name = amd_energy
    sys/class/hwmon/hwmon0/device -> sys/devices/platform/amd_energy.0
    sys/class/hwmon/hwmon0/energy1_label = Esocket0
    sys/class/hwmon/hwmon0/energy1_input = @energy 110 W
    sys/class/hwmon/hwmon4/name = cffps1
    sys/class/hwmon/hwmon4/device -> sys/devices/i2c-4/4-0058
    sys/class/hwmon/hwmon4/in1_label = vin
    sys/class/hwmon/hwmon4/in1_input = 230000
    sys/class/hwmon/hwmon4/power1_label = pin
    sys/class/hwmon/hwmon4/power1_input = 180000000
    sys/class/power_supply/BAT0/type = Battery
    sys/class/power_supply/BAT0/status = Discharging
    sys/class/power_supply/BAT0/power_now = 165000000";

/// The largest deviation of a difference on a busy machine, in millionths.
const TOLERANCE_PPM: u64 = 30_000;

fn text(mechanism: &ComparedMechanism) -> String {
    format!("{} {}", mechanism.source, mechanism.domains.join("+"))
}

#[test]
fn mechanisms_that_show_the_same_energy_are_compared_and_differ_by_what_the_machine_has() {
    let tree = MachineTree::parse(DISAGREEING, "disagreeing");
    let Some(mounted) = tree.mount() else { return };
    let compared = || {
        let found = discover_all(&mounted.settings(&["powercap", "hwmon", "battery"]), &Clock::Machine);
        compare(found.opened, &Clock::Machine, Duration::from_millis(600), sleep)
    };
    let expected = [
        ("powercap package-0", "hwmon package-0", 100_000),
        ("powercap psys", "hwmon psu-0", 200_000),
        ("powercap psys", "battery battery-0", 100_000),
        ("powercap psys", "powercap package-0", -333_333),
    ];
    let difference = |pairs: &[MechanismPair]| {
        let shown: Vec<_> = pairs.iter().map(|pair| (text(&pair.first), text(&pair.second))).collect();
        let names: Vec<_> =
            expected.iter().map(|(first, second, _)| ((*first).to_owned(), (*second).to_owned())).collect();
        assert_eq!(shown, names);
        let is_close = |pair: &MechanismPair, ppm: i64| {
            pair.difference_ppm.is_some_and(|shown| shown.abs_diff(ppm) <= TOLERANCE_PPM)
        };
        pairs.iter().zip(&expected).any(|(pair, (_, _, ppm))| !is_close(pair, *ppm))
    };
    // A busy machine may read a counter too rarely.
    let last = (0..5).map(|_| compared()).find(|pairs| !difference(pairs));
    assert!(last.is_some(), "{:#?}", compared());
    let pairs = last.unwrap();
    let watts = |mechanism: &ComparedMechanism, pair: &MechanismPair| {
        mechanism.energy_uj.unwrap() as f64 * 1e3 / pair.period_ns as f64
    };
    assert!((watts(&pairs[0].first, &pairs[0]) - 100.0).abs() < 3.0, "{:?}", pairs[0]);
    assert!((watts(&pairs[0].second, &pairs[0]) - 110.0).abs() < 3.3, "{:?}", pairs[0]);
}

#[test]
fn the_accumulator_of_an_amd_card_is_compared_with_its_power_sensor() {
    let device = "sys/devices/pci0000:00/0000:03:00.0";
    let tree = MachineTree::parse(
        &format!(
            "machine A card whose sensor shows 10 % more
             sys/class/drm/card0/device -> {device}
             {device}/vendor = 0x1002
             {device}/gpu_metrics = @gpu_metrics 1.3 32 100 W
             {device}/hwmon/hwmon4/name = amdgpu
             {device}/hwmon/hwmon4/power1_average = 110000000"
        ),
        "amd",
    );
    let Some(mounted) = tree.mount() else { return };
    let is_shown = || {
        let found = discover_all(&mounted.settings(&["amdgpu"]), &Clock::Machine);
        let pairs = compare(found.opened, &Clock::Machine, Duration::from_millis(600), sleep);
        let [pair] = pairs.try_into().unwrap();
        assert_eq!(text(&pair.first), "amdgpu amdgpu-0");
        assert_eq!(text(&pair.second), "amdgpu power1_average amdgpu-0");
        assert!(pair.is_gpu);
        pair.difference_ppm.is_some_and(|shown| shown.abs_diff(100_000) <= TOLERANCE_PPM)
    };
    // A busy machine may read a counter too rarely.
    assert!((0..5).any(|_| is_shown()));
}

#[test]
fn a_mechanism_that_is_lost_meanwhile_is_unknown_and_never_0() {
    let tree = MachineTree::parse(DISAGREEING, "disagreeing");
    let Some(mounted) = tree.mount() else { return };
    let found = discover_all(&mounted.settings(&["powercap", "hwmon"]), &Clock::Machine);
    let pairs = compare(found.opened, &Clock::Machine, Duration::from_millis(300), |duration| {
        sleep(duration / 2);
        mounted.hide("sys/class/hwmon/hwmon0/energy1_input");
        sleep(duration / 2);
    });
    assert_eq!((text(&pairs[0].second), pairs[0].second.energy_uj), ("hwmon package-0".into(), None));
    assert_eq!(pairs[0].difference_ppm, None);
}
