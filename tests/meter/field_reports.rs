//! Inputs that public reports show and that other meters get wrong: each is one of a kind.

use crate::machine_tree::MachineTree;
use wattspan::domain::Grade;

/// Checks machines that differ in the lines that follow `common`.
fn check(common: &str, cases: &[&str]) {
    for case in cases {
        if MachineTree::parse(&format!("{common}\n{case}"), case).check().is_none() {
            return;
        }
    }
}

/// Two packages with memory: 344 W in all.
const TWO_PACKAGES: &str = "
    machine Two packages of Sapphire Rapids
    proc/cpuinfo = vendor_id : GenuineIntel
    sys/class/powercap/intel-rapl:0/name = package-0
    sys/class/powercap/intel-rapl:0/max_energy_range_uj = 262143328850
    sys/class/powercap/intel-rapl:0/energy_uj = @rapl 160 W 61035 14
    sys/class/powercap/intel-rapl:0:0/name = dram
    sys/class/powercap/intel-rapl:0:0/max_energy_range_uj = 262143328850
    sys/class/powercap/intel-rapl:0:0/energy_uj = @rapl 12 W 61035 14
    sys/class/powercap/intel-rapl:2/name = package-1
    sys/class/powercap/intel-rapl:2/max_energy_range_uj = 262143328850
    sys/class/powercap/intel-rapl:2/energy_uj = @rapl 160 W 61035 14
    sys/class/powercap/intel-rapl:2:0/name = dram
    sys/class/powercap/intel-rapl:2:0/max_energy_range_uj = 262143328850
    sys/class/powercap/intel-rapl:2:0/energy_uj = @rapl 12 W 61035 14
    sys/class/powercap/intel-rapl:1/max_energy_range_uj = 4294967295000000
    sys/class/powercap/intel-rapl:3/max_energy_range_uj = 4294967295000000";

const BELOW_PSYS: &str = "
    domain psys psys - counted
    domain package-0 package psys -
    domain dram-0 dram psys -
    domain package-1 package psys -
    domain dram-1 dram psys -
    total 400 W";

#[test]
fn of_the_platform_zones_of_two_packages_the_masters_is_counted_whichever_it_is() {
    let zones = |names: [&str; 2], values: [&str; 2]| {
        format!(
            "sys/class/powercap/intel-rapl:1/name = {}
             sys/class/powercap/intel-rapl:3/name = {}
             sys/class/powercap/intel-rapl:1/energy_uj = {}
             sys/class/powercap/intel-rapl:3/energy_uj = {}
             {BELOW_PSYS}",
            names[0], names[1], values[0], values[1]
        )
    };
    let (moves, still) = ("@rapl 400 W 1000000000 0", "0");
    let second_of_four = zones(["psys-2", "psys-3"], [still, moves]);
    check(
        TWO_PACKAGES,
        &[
            &zones(["psys", "psys-1"], [still, moves]),
            &zones(["psys", "psys-1"], [moves, still]),
            &second_of_four,
        ],
    );
}

#[test]
fn where_no_platform_zone_moves_the_packages_are_counted() {
    check(
        TWO_PACKAGES,
        &["sys/class/powercap/intel-rapl:1/name = psys
           sys/class/powercap/intel-rapl:3/name = psys-1
           sys/class/powercap/intel-rapl:1/energy_uj = 0
           sys/class/powercap/intel-rapl:3/energy_uj = 0
           domain psys psys - -
           domain psys-1 psys - -
           domain package-0 package psys counted
           domain dram-0 dram psys counted
           domain package-1 package psys counted
           domain dram-1 dram psys counted
           stuck psys
           stuck psys-1
           total 344 W"],
    );
}

#[test]
fn a_zone_that_stands_still_does_not_displace_its_mirror_that_moves() {
    let one_package = "
        machine A package under two control types
        proc/cpuinfo = vendor_id : GenuineIntel
        sys/class/powercap/intel-rapl:0/name = package-0
        sys/class/powercap/intel-rapl:0/max_energy_range_uj = 262143328850
        sys/class/powercap/intel-rapl-mmio:0/name = package-0
        sys/class/powercap/intel-rapl-mmio:0/max_energy_range_uj = 262143328850
        domain package-0 package - counted
        absent powercap: package-0: a second zone or chip shows the same
        total 28 W";
    check(
        one_package,
        &[
            "sys/class/powercap/intel-rapl:0/energy_uj = 0
             sys/class/powercap/intel-rapl-mmio:0/energy_uj = @rapl 28 W 61035 14",
            "sys/class/powercap/intel-rapl:0/energy_uj = @rapl 28 W 61035 14
             sys/class/powercap/intel-rapl-mmio:0/energy_uj = 123456",
            "sys/class/powercap/intel-rapl:0/energy_uj = @rapl 28 W 61035 14
             sys/class/powercap/intel-rapl-mmio:0/energy_uj = @rapl 28 W 61035 14",
        ],
    );
    // TPMI registers a control type of its own; so does a driver that this program has never seen.
    check(
        "machine A package under two control types
         proc/cpuinfo = vendor_id : GenuineIntel
         sys/class/powercap/intel-rapl:0/name = package-0
         sys/class/powercap/intel-rapl:0/max_energy_range_uj = 262143328850
         sys/class/powercap/intel-rapl:0/energy_uj = 77
         sys/class/powercap/intel-rapl-tpmi:0/name = package-0
         sys/class/powercap/intel-rapl-tpmi:0/max_energy_range_uj = 262143328850
         sys/class/powercap/intel-rapl-tpmi:0/energy_uj = @rapl 28 W 61035 14
         domain package-0 package - counted
         total 28 W",
        &[""],
    );
}

/// A battery that discharges with 12 W at 12 V.
const BATTERY: &str = "
    machine A laptop on battery
    sys/class/power_supply/BAT0/type = Battery
    sys/class/power_supply/BAT0/status = Discharging
    domain battery-0 battery - -";

#[test]
fn a_discharging_battery_is_metered_whatever_the_sign_and_whichever_family_it_shows() {
    let volts = "sys/class/power_supply/BAT0/voltage_now = 12000000";
    for (files, is_gauge) in [
        ("power_now = 12000000", false),
        ("power_now = -12000000", false),
        ("current_now = -1000000", false),
        ("current_now = 1000000", false),
        ("power_avg = -12000000", false),
        ("current_avg = -1000000", false),
        ("energy_now = @remaining 12 W 50000000 3600", true),
        // 1 µAh at 12 V is 43,200 µJ.
        ("charge_now = @remaining 12 W 4000000 43200", true),
    ] {
        let text = format!("{BATTERY}\n{volts}\nsys/class/power_supply/BAT0/{files}");
        let tree = MachineTree::parse(&text, files);
        let Some(mounted) = tree.mount() else { return };
        let power_w = tree.power_w(&mounted, "battery-0");
        assert!((11.4..12.6).contains(&power_w), "{files}: {power_w} W");
        let found = tree.discover(&mounted);
        assert_eq!(found.inventory.opened[0].domains[0].grade == Grade::Integrated, !is_gauge, "{files}");
    }
}

#[test]
fn a_charging_battery_and_one_without_any_figure_are_not_metered() {
    let power = "sys/class/power_supply/BAT0/power_now = 12000000";
    check(&BATTERY.replace("Discharging", "Charging"), &[&format!("{power}\nstuck battery-0")]);
    check(
        "machine A battery without figures
         sys/class/power_supply/BAT0/type = Battery
         sys/class/power_supply/BAT0/status = Discharging
         sys/class/power_supply/BAT0/capacity = 55",
        &["absent battery: BAT0: has no readable power, current, energy or charge"],
    );
}
