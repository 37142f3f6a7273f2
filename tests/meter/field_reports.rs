//! Inputs that public reports show and that other meters get wrong: each is one of a kind.

use crate::machine_tree::MachineTree;
use wattspan::domain::Grade;

/// Checks machines that differ in the lines that follow `common`.
fn check(common: &str, cases: &[&str]) {
    for case in cases {
        let tree = MachineTree::parse(&format!("{common}\n{case}"), case);
        match tree.check() {
            None => return,
            Some(result) => result.unwrap_or_else(|difference| panic!("{}: {difference}", tree.name)),
        }
    }
}

/// Two packages with memory: 344 W in all.
const TWO_PACKAGES: &str = "
    machine Two packages of Sapphire Rapids
    proc/cpuinfo = vendor_id : GenuineIntel
    sys/devices/system/cpu/cpu0/topology/physical_package_id = 0
    sys/devices/system/cpu/cpu1/topology/physical_package_id = 1
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
        let found = tree.discover(&mounted);
        let power = found.power("battery-0");
        assert!(power.contains(12.0), "{files}: {power:?}");
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

#[test]
fn amds_registers_are_recognised_by_their_labels_whichever_driver_shows_them() {
    for driver in ["zenergy", "amd_energy", "some_fork_of_zenergy"] {
        let rail = driver.replace('_', "-");
        let chip = format!(
            "machine A Ryzen with {driver}
             proc/cpuinfo = vendor_id : AuthenticAMD
             sys/class/hwmon/hwmon3/name = {driver}
             sys/class/hwmon/hwmon3/energy1_label = Ecore000
             sys/class/hwmon/hwmon3/energy1_input = @energy 4 W
             sys/class/hwmon/hwmon3/energy2_label = Ecore001
             sys/class/hwmon/hwmon3/energy2_input = @energy 3 W
             sys/class/hwmon/hwmon3/energy3_label = Esocket0
             sys/class/hwmon/hwmon3/energy3_input = @energy 95 W
             domain package-0 package - counted
             domain {rail}-0-ecore000 rail - -
             domain {rail}-0-ecore001 rail - -
             total 95 W"
        );
        // RAPL shows the socket's register too: it is counted once, whichever of the two stands still.
        let zone = |energy: &str| {
            format!(
                "sys/class/powercap/intel-rapl:0/name = package-0
                 sys/class/powercap/intel-rapl:0/max_energy_range_uj = 65532610987
                 sys/class/powercap/intel-rapl:0/energy_uj = {energy}"
            )
        };
        check(&chip, &["", &zone("@rapl 95 W 15258 16"), &zone("0")]);
        // No estimate stands beside the socket's counter.
        let stat = "proc/stat = @lines cpu  1 2 3 4 5 6 7 8 0 0 | cpu0 1 2 3 4 5 6 7 8 0 0
                    absent estimate: not needed: package-0 has a live counter";
        check(&chip, &[stat]);
    }
}

#[test]
fn a_jetsons_input_is_counted_whichever_chip_measures_it() {
    let rails = "
        machine A Jetson of the Thor family
        sys/class/hwmon/hwmon1/name = ina3221
        sys/class/hwmon/hwmon1/in1_label = VDD_GPU
        sys/class/hwmon/hwmon1/in1_input = 12000
        sys/class/hwmon/hwmon1/curr1_input = 500
        sys/class/hwmon/hwmon1/in2_label = VDD_CPU_SOC_MSS
        sys/class/hwmon/hwmon1/in2_input = 12000
        sys/class/hwmon/hwmon1/curr2_input = 600
        sys/class/hwmon/hwmon1/in3_label = VIN_SYS_5V0
        sys/class/hwmon/hwmon1/in3_input = 5000
        sys/class/hwmon/hwmon1/curr3_input = 1300";
    let parents = |parent: &str, counted: &str| {
        format!(
            "domain vdd-gpu gpu {parent} {counted}
             domain vdd-cpu-soc-mss soc {parent} {counted}
             domain vin-sys-5v0 uncore {parent} {counted}"
        )
    };
    let input = "sys/class/hwmon/hwmon2/name = ina238
                 sys/class/hwmon/hwmon2/in1_input = 20000
                 sys/class/hwmon/hwmon2/curr1_input = 1350
                 sys/class/hwmon/hwmon2/power1_input = 27000000
                 domain vin module - counted
                 total 27 W";
    let labelled = "sys/class/hwmon/hwmon2/name = ina226
                    sys/class/hwmon/hwmon2/label = VIN
                    sys/class/hwmon/hwmon2/power1_input = 27000000
                    domain vin module - counted
                    total 27 W";
    let two_inputs = "sys/class/hwmon/hwmon2/name = ina238
                      sys/class/hwmon/hwmon2/power1_input = 27000000
                      sys/class/hwmon/hwmon3/name = ina238
                      sys/class/hwmon/hwmon3/power1_input = 9000000
                      domain ina238-0-power1 rail - -
                      domain ina238-1-power1 rail - -
                      total 19.7 W";
    check(
        rails,
        &[
            &format!("{}\n{input}", parents("vin", "-")),
            &format!("{}\n{labelled}", parents("vin", "-")),
            // Which of two unlabelled chips is the input is unknown, so the rails are summed.
            &format!("{}\n{two_inputs}", parents("-", "counted")),
        ],
    );
    check(
        "machine An INA238 alone",
        &["sys/class/hwmon/hwmon2/name = ina238
         sys/class/hwmon/hwmon2/power1_input = 27000000
         domain ina238-0-power1 rail - -
         total 0 W"],
    );
}

#[test]
fn power_supplies_are_the_whole_machine_and_a_regulator_with_the_same_labels_is_not() {
    let supply = |hwmon: u32, name: &str, milliwatts: u64| {
        format!(
            "sys/class/hwmon/hwmon{hwmon}/name = {name}
             sys/class/hwmon/hwmon{hwmon}/device -> sys/devices/i2c-{hwmon}/{hwmon}-0058
             sys/class/hwmon/hwmon{hwmon}/in1_label = vin
             sys/class/hwmon/hwmon{hwmon}/in1_input = 230000
             sys/class/hwmon/hwmon{hwmon}/power1_label = pin
             sys/class/hwmon/hwmon{hwmon}/power1_input = {}
             sys/class/hwmon/hwmon{hwmon}/power2_label = pout1
             sys/class/hwmon/hwmon{hwmon}/power2_input = {}",
            milliwatts * 1_000,
            milliwatts * 930
        )
    };
    let two = format!(
        "machine A server with two power supplies
         {}\n{}
         domain psu-0 psys - COUNTED
         domain psu-1 psys - COUNTED
         domain cffps1-0-pout1 rail - -
         domain crps185-0-pout1 rail - -",
        supply(4, "cffps1", 210_000),
        supply(5, "crps185", 190_000)
    );
    let package = "sys/class/powercap/intel-rapl:0/name = package-0
         sys/class/powercap/intel-rapl:0/max_energy_range_uj = 262143328850
         sys/class/powercap/intel-rapl:0/energy_uj = @rapl 150 W 61035 14
         domain package-0 package - counted
         total 150 W";
    let card = "sys/class/hwmon/hwmon8/name = xe
         sys/class/hwmon/hwmon8/energy1_input = @energy 60 W
         domain intelgpu-0 gpu - -";
    let counted = two.replace("COUNTED", "counted");
    check(&counted, &["total 400 W", &format!("{card}\ntotal 400 W")]);
    // A counter of the CPU is preferred to integrated power.
    check(&two.replace("COUNTED", "-"), &[package]);
    check(
        "machine A voltage regulator of the driver pmbus
         sys/class/hwmon/hwmon4/name = tps53679
         sys/class/hwmon/hwmon4/in1_label = vin
         sys/class/hwmon/hwmon4/in1_input = 12000
         sys/class/hwmon/hwmon4/power1_label = pin
         sys/class/hwmon/hwmon4/power1_input = 80000000
         domain tps53679-0-pin rail - -
         total 0 W",
        &[""],
    );
}

#[test]
fn channels_pair_by_label_and_a_power_is_not_dropped_because_of_its_number() {
    check(
        "machine A DGX Spark
         sys/class/hwmon/hwmon6/name = spbm
         sys/class/hwmon/hwmon6/power1_label = sys_total
         sys/class/hwmon/hwmon6/power1_input = 36000000
         sys/class/hwmon/hwmon6/power2_label = soc_pkg
         sys/class/hwmon/hwmon6/power2_input = 22000000
         sys/class/hwmon/hwmon6/power4_label = cpu_p
         sys/class/hwmon/hwmon6/power4_input = 4500000
         sys/class/hwmon/hwmon6/power16_label = pl1
         sys/class/hwmon/hwmon6/power16_input = 140000000
         sys/class/hwmon/hwmon6/energy1_label = pkg
         sys/class/hwmon/hwmon6/energy1_input = @energy 22 W
         sys/class/hwmon/hwmon6/energy2_label = cpu_p
         sys/class/hwmon/hwmon6/energy2_input = @energy 4.5 W
         domain sys-total psys - -
         domain soc-pkg module pkg -
         domain pkg module - counted
         domain cpu-p core pkg -
         domain spbm-0-pl1 rail - -
         total 22 W",
        &[
            "",
            // A later version of the driver.
            "sys/class/hwmon/hwmon6/power8_label = gpu
             sys/class/hwmon/hwmon6/power8_input = 5000000
             sys/class/hwmon/hwmon6/energy4_label = gpu
             sys/class/hwmon/hwmon6/energy4_input = @energy 5 W
             domain gpu gpu pkg -",
        ],
    );
}

#[test]
fn a_word_that_any_board_may_use_gives_no_position() {
    check(
        "machine A board controller
         sys/class/hwmon/hwmon1/name = board_ec
         sys/class/hwmon/hwmon1/power1_label = CPU
         sys/class/hwmon/hwmon1/power1_input = 30000000
         sys/class/hwmon/hwmon1/power2_label = gpu
         sys/class/hwmon/hwmon1/power2_input = 70000000
         sys/class/hwmon/hwmon2/name = another_ec
         sys/class/hwmon/hwmon2/in1_label = CPU
         sys/class/hwmon/hwmon2/in1_input = 1200
         sys/class/hwmon/hwmon2/curr1_input = 20000
         domain board-ec-0-cpu rail - -
         domain board-ec-0-gpu rail - -
         total 0 W",
        &[""],
    );
}

#[test]
fn what_graces_firmware_shows_through_power_meters_is_a_power_only_where_its_label_says_so() {
    let meter = |nth: u32, label: &str, watts: u64| {
        format!(
            "sys/class/hwmon/hwmon{nth}/name = power_meter
             sys/class/hwmon/hwmon{nth}/device -> sys/devices/LNXSYSTM:00/ACPI000D:0{nth}
             sys/class/hwmon/hwmon{nth}/power1_oem_info = {label}
             sys/class/hwmon/hwmon{nth}/power1_average_interval = 50
             sys/class/hwmon/hwmon{nth}/power1_average = {}\n",
            watts * 1_000_000
        )
    };
    let files = [
        meter(0, "Total Input Power in uW socket 0", 150),
        meter(1, "CPU Rail Input Power in uW socket 0", 70),
        meter(2, "SoC Rail Input Power in uW socket 0", 6),
        meter(3, "DRAM Input Power in uW socket 0", 8),
        meter(4, "CPU Rail Output Power in uW socket 0", 55),
        meter(5, "Total CPU Energy In uJ socket 0", 123_456),
    ]
    .concat();
    check(
        &format!("machine A Grace of another firmware\n{files}"),
        &["domain grace-0 soc - counted
           domain cpu-0 package grace-0 -
           domain sysio-0 uncore grace-0 -
           domain dram-0 dram grace-0 -
           domain power-meter-4-cpu-rail-output-power-in-uw-socket-0 rail - -
           absent \"Total CPU Energy In uJ socket 0\" is no power
           total 150 W"],
    );
}

/// The processor of a machine with these model and vendor.
fn cpuinfo(vendor: &str, family: u32, model: u32) -> String {
    format!(
        "machine Processor {vendor} {family} {model:#x}
         proc/cpuinfo = @lines vendor_id : {vendor} | cpu family : {family} | model : {model}"
    )
}

const SAPPHIRE_RAPIDS: u32 = 0x8F;
const EMERALD_RAPIDS: u32 = 0xCF;
const ICE_LAKE_X: u32 = 0x6A;

#[test]
fn the_registers_of_memory_have_the_unit_of_their_model() {
    for (model, memory_shift) in [(SAPPHIRE_RAPIDS, 14), (EMERALD_RAPIDS, 14), (ICE_LAKE_X, 16)] {
        check(
            &cpuinfo("GenuineIntel", 6, model),
            &[&format!(
                "sys/devices/system/cpu/cpu0/topology/physical_package_id = 0
                 cpu/0/msr = @msr 606=0xa0e03 611=200W/14 619=40W/{memory_shift}
                 domain package-0 package - counted
                 domain dram-0 dram - counted
                 total 240 W"
            )],
        );
    }
}

#[test]
fn a_zone_of_a_kernel_before_a_fix_is_converted_by_the_unit_that_its_range_shows() {
    let zones = |memory: &str, platform: &str| {
        format!(
            "sys/class/powercap/intel-rapl:0/name = package-0
             sys/class/powercap/intel-rapl:0/max_energy_range_uj = 262143328850
             sys/class/powercap/intel-rapl:0/energy_uj = @rapl 200 W 61035 14
             sys/class/powercap/intel-rapl:0:0/name = dram
             sys/class/powercap/intel-rapl:0:0/{memory}
             {platform}"
        )
    };
    let before_fix = "max_energy_range_uj = 65712999613
        sys/class/powercap/intel-rapl:0:0/energy_uj = @rapl 40 W 15300";
    let after_fix = "max_energy_range_uj = 262143328850
        sys/class/powercap/intel-rapl:0:0/energy_uj = @rapl 40 W 61035";
    let found = "domain package-0 package - counted
        domain dram-0 dram - counted
        total 240 W";
    for model in [SAPPHIRE_RAPIDS, EMERALD_RAPIDS] {
        let (old, new) = (format!("{before_fix} 14"), format!("{after_fix} 14"));
        check(&cpuinfo("GenuineIntel", 6, model), &[&zones(&old, found), &zones(&new, found)]);
    }
    // The memory of Ice Lake does count in 2^-16 J.
    check(&cpuinfo("GenuineIntel", 6, ICE_LAKE_X), &[&zones(&format!("{before_fix} 16"), found)]);
    // A platform of whole joules that an old kernel shows with the unit of the package.
    let platform = "sys/class/powercap/intel-rapl:1/name = psys
        sys/class/powercap/intel-rapl:1/max_energy_range_uj = 262143328850
        sys/class/powercap/intel-rapl:1/energy_uj = @rapl 400 W 61035 0
        domain psys psys - counted
        domain package-0 package psys -
        domain dram-0 dram psys -
        total 400 W";
    check(&cpuinfo("GenuineIntel", 6, SAPPHIRE_RAPIDS), &[&zones(&format!("{before_fix} 14"), platform)]);
}
