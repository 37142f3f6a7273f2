//! The positions of rails in the domain tree, from what a chip under `class/hwmon` shows.
//!
//! Owns the labels of known boards and registers. Reads files only to recognise a power supply and a Jetson's input by
//! what they show. A label without a position belongs to a rail that is never counted.

use crate::domain::DomainKind;

use super::hwmon_chip::HwmonChip;

/// Position of a rail in the domain tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RailPosition {
    /// The domain's name.
    pub(super) name: String,
    /// The kind of the powered part.
    pub(super) kind: DomainKind,
    /// The candidate parents, nearest first. The first existing one is the parent.
    pub(super) candidate_parents: Vec<String>,
}

impl RailPosition {
    pub(super) fn new(name: String, kind: DomainKind, within: &[String]) -> Self {
        Self { name, kind, candidate_parents: within.to_vec() }
    }
}

/// What a chip measures as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ChipRole {
    /// One of the power supplies of the machine, with its number among them.
    PowerSupply(usize),
    /// The input of a Jetson board, whose chip has no label.
    JetsonInput,
    /// The two parts of a processor: "CPU power" and "IO power".
    CpuAndIo,
    /// The power telemetry of NVIDIA GB10.
    Spark,
    /// Rails of a Jetson board, whose labels may be bare words: "GPU".
    JetsonRails,
    /// Shown by its labels.
    Other,
}

/// A chip of each role.
pub(super) const ALL_ROLES: &[ChipRole] = &[
    ChipRole::PowerSupply(0),
    ChipRole::JetsonInput,
    ChipRole::CpuAndIo,
    ChipRole::Spark,
    ChipRole::JetsonRails,
    ChipRole::Other,
];

/// The role of `chip` among `all`.
pub(super) fn chip_role(chip: &HwmonChip, all: &[HwmonChip]) -> ChipRole {
    if is_power_supply(chip) {
        let is_it = |other: &&HwmonChip| other.device() == chip.device() && other.name == chip.name;
        let supplies = all.iter().filter(|other| is_power_supply(other));
        return ChipRole::PowerSupply(supplies.take_while(|other| !is_it(other)).count());
    }
    match chip {
        chip if is_jetson_input(chip, all) => ChipRole::JetsonInput,
        chip if shows_all(chip, &["CPU power", "IO power"]) => ChipRole::CpuAndIo,
        chip if shows_all(chip, &["sys_total", "soc_pkg"]) => ChipRole::Spark,
        chip if chip.name.starts_with("ina3221") => ChipRole::JetsonRails,
        _ => ChipRole::Other,
    }
}

/// Whether a chip has powers with all these labels.
fn shows_all(chip: &HwmonChip, expected: &[&str]) -> bool {
    let label = |channel: u32| chip.read_text(&format!("power{channel}_label"));
    let labels: Vec<String> = chip.channel_numbers("power", "label").into_iter().filter_map(label).collect();
    expected.iter().all(|part| labels.iter().any(|label| label == part))
}

/// The lowest voltage of a mains or high-voltage DC input, in millivolts. A voltage regulator's input has the same label in
/// PMBus drivers.
const MIN_MAINS_MV: u64 = 85_000;

/// Whether a chip is a power supply: its labelled input has the voltage of the mains. The drivers' labels are "vin" (linux
/// drivers/hwmon/pmbus/pmbus_core.c) and "v_in" (corsair-psu.c).
fn is_power_supply(chip: &HwmonChip) -> bool {
    chip.channel_numbers("in", "input").into_iter().any(|channel| {
        let label = chip.read_text(&format!("in{channel}_label")).unwrap_or_default();
        let is_input = label == "vin" || label == "v_in";
        is_input && chip.read_number(&format!("in{channel}_input")).is_some_and(|mv| mv >= MIN_MAINS_MV)
    })
}

/// Whether a chip without labels measures a Jetson's input: the one INA238 of a board whose INA3221 has no channel for the
/// input. It is `VIN` of the developer kits of AGX Thor and AGX Orin (github.com/rbonghi/jetson_stats/pull/900).
fn is_jetson_input(chip: &HwmonChip, all: &[HwmonChip]) -> bool {
    let is_unlabelled = |chip: &HwmonChip| {
        chip.name == "ina238" && chip.find_file("label").is_none() && chip.find_file("power1_label").is_none()
    };
    if !is_unlabelled(chip) || all.iter().filter(|other| is_unlabelled(other)).count() > 1 {
        return false;
    }
    let labels = |chip: &HwmonChip| {
        let label = |channel: u32| chip.read_text(&format!("in{channel}_label"));
        (1..=3).filter_map(label).collect::<Vec<_>>()
    };
    let rails = all.iter().filter(|other| other.name.starts_with("ina3221")).flat_map(labels);
    let mut kinds =
        rails.filter_map(|label| parse_jetson_label(&label)).map(|position| position.kind).peekable();
    kinds.peek().is_some() && kinds.all(|kind| kind != DomainKind::Module)
}

/// The position of a channel of a chip with this role; `None` if it is unknown.
pub(super) fn rail_position(role: &ChipRole, label: Option<&str>) -> Option<RailPosition> {
    match (role, label) {
        // The power drawn from the mains (PMBus), or else the sum of the outputs.
        (ChipRole::PowerSupply(nth), Some("pin" | "power total")) => {
            Some(RailPosition::new(format!("psu-{nth}"), DomainKind::Psys, &[]))
        }
        (ChipRole::JetsonInput, _) => parse_jetson_label("VIN"),
        (ChipRole::CpuAndIo, Some(label)) => parse_cpu_and_io_label(label),
        (ChipRole::Spark, Some(label)) => parse_spark_label(label),
        (ChipRole::JetsonRails, Some(label)) => parse_jetson_label(label),
        (ChipRole::Other, Some(label)) => parse_grace_label(label)
            .or_else(|| parse_amd_energy_label(label))
            .or_else(|| parse_jetson_label(label).filter(|_| !is_bare_word(label)))
            .or_else(|| parse_platform_label(label)),
        _ => None,
    }
}

/// Whether a label may be that of any board.
fn is_bare_word(label: &str) -> bool {
    ["CPU", "GPU", "SOC", "CV"].iter().any(|word| label.trim().eq_ignore_ascii_case(word))
}

/// The labels of X-Gene and Ampere: the power of all cores and that of the rest of the processor, "CPU total power" and "IO
/// total power" (linux drivers/hwmon/xgene-hwmon.c).
fn parse_cpu_and_io_label(label: &str) -> Option<RailPosition> {
    match label {
        "CPU power" => Some(RailPosition::new("cpu-0".into(), DomainKind::Package, &[])),
        "IO power" => Some(RailPosition::new("io-0".into(), DomainKind::Uncore, &[])),
        _ => None,
    }
}

/// The labels in `power1_oem_info` of an ACPI power meter on NVIDIA Grace: "Module Power Socket 0" (processor, memory, GPU
/// with its own memory, and the regulators' loss), "Grace Power Socket 0" (the processor's socket), "CPU Power Socket 0"
/// (its cores' rail), "SysIO Power Socket 0" (its fabric's). NVIDIA Grace performance tuning guide, power telemetry. Other
/// firmware has "Total Power in uW socket 0", "CPU Rail Input Power in uW socket 0", "SoC Rail Power socket 0" and "DRAM
/// Input Power in uW socket 0", each with or without "Input" and "in uW". The output of a rail's regulator is part of its
/// input and has no position.
fn parse_grace_label(label: &str) -> Option<RailPosition> {
    let label = label.to_ascii_lowercase();
    let (what, socket) = label.split_once(" socket ")?;
    let socket = socket.trim().parse::<u32>().ok()?;
    let named = |stem: &str| format!("{stem}-{socket}");
    let (module, whole) = (named("module"), named("grace"));
    let what = what.trim();
    let what = what.strip_suffix(" in uw").unwrap_or(what).replace(" input power", " power");
    match what.as_str() {
        "module power" => Some(RailPosition::new(module, DomainKind::Module, &[])),
        "grace power" | "total power" => Some(RailPosition::new(whole, DomainKind::Soc, &[module])),
        "cpu power" | "cpu rail power" => {
            Some(RailPosition::new(named("cpu"), DomainKind::Package, &[whole, module]))
        }
        "sysio power" | "soc rail power" => {
            Some(RailPosition::new(named("sysio"), DomainKind::Uncore, &[whole, module]))
        }
        "dram power" => Some(RailPosition::new(named("dram"), DomainKind::Dram, &[whole, module])),
        _ => None,
    }
}

/// The labels of the INA3221 channels on NVIDIA Jetson boards. `VDD_IN`, the module's input, feeds the rails of a Nano, NX
/// or TX2. An AGX has no such channel: its rails are independent, except the memory's, which the system's 5 V rail
/// feeds (Jetson Linux developer guide, power and performance, the tables of power rails).
fn parse_jetson_label(label: &str) -> Option<RailPosition> {
    let inputs = ["vdd-in", "vin", "pom-5v-in"].map(String::from);
    let upper = label.trim().to_ascii_uppercase();
    let name = slugify(&upper);
    let outermost = || Some(RailPosition::new(name.clone(), DomainKind::Module, &[]));
    let within = |kind| Some(RailPosition::new(name.clone(), kind, &inputs));
    match upper.as_str() {
        "VDD_IN" | "VIN" | "POM_5V_IN" => outermost(),
        "CPU" | "VDD_CPU" | "VDD_CPU_CV" | "VDD_SYS_CPU" | "POM_5V_CPU" => within(DomainKind::Package),
        "GPU" | "VDD_GPU" | "VDD_SYS_GPU" | "POM_5V_GPU" => within(DomainKind::Gpu),
        "SOC" | "VDD_SOC" | "VDD_SYS_SOC" | "VDD_CPU_GPU_CV" | "VDD_GPU_SOC" | "VDD_CPU_SOC_MSS" => {
            within(DomainKind::Soc)
        }
        "CV" => within(DomainKind::Npu),
        "VDDRQ" | "VDD_SYS_DDR" => within(DomainKind::Dram),
        "SYS5V" | "VIN_SYS_5V0" => within(DomainKind::Uncore),
        "VDDQ_VDD2_1V8AO" => {
            let nearest = std::iter::once("vin-sys-5v0".to_owned()).chain(inputs.clone());
            Some(RailPosition::new(name.clone(), DomainKind::Dram, &nearest.collect::<Vec<_>>()))
        }
        _ => None,
    }
}

/// The labels of AMD's energy registers, which the drivers `amd_energy` and `zenergy` show: "Esocket0". RAPL shows the
/// package's counter too, so it gets RAPL's name and is read once.
fn parse_amd_energy_label(label: &str) -> Option<RailPosition> {
    let socket = label.strip_prefix("Esocket")?.parse::<u32>().ok()?;
    Some(RailPosition::new(format!("package-{socket}"), DomainKind::Package, &[]))
}

/// Whether a label is that of a single core's counter: "Ecore000". Its socket's counter contains it, and it has no position.
pub(super) fn core_counter(label: &str) -> bool {
    label.strip_prefix("Ecore").is_some_and(|core| core.parse::<u32>().is_ok())
}

/// The labels of the power telemetry of NVIDIA GB10 (DGX Spark): "sys_total" is the machine, "pkg" the energy and "soc_pkg"
/// the power of the chip with its CPU and GPU (github.com/antheas/spark_hwmon, README). Limits and budgets ("pl1",
/// "budget_cpu") have no position.
fn parse_spark_label(label: &str) -> Option<RailPosition> {
    let packages = ["pkg", "soc-pkg"].map(String::from);
    let within = |kind| Some(RailPosition::new(slugify(label), kind, &packages));
    match label {
        "sys_total" => Some(RailPosition::new("sys-total".into(), DomainKind::Psys, &[])),
        "pkg" => Some(RailPosition::new("pkg".into(), DomainKind::Module, &[])),
        "soc_pkg" => Some(RailPosition::new("soc-pkg".into(), DomainKind::Module, &packages[..1])),
        "cpu_p" | "cpu_e" => within(DomainKind::Core),
        "gpu" => within(DomainKind::Gpu),
        _ => None,
    }
}

/// The label of a whole machine: "Total System Power" of Apple silicon under Linux (the device trees of macsmc-hwmon).
fn parse_platform_label(label: &str) -> Option<RailPosition> {
    label
        .eq_ignore_ascii_case("total system power")
        .then(|| RailPosition::new("system".into(), DomainKind::Psys, &[]))
}

/// Whether the channel is no power although its file is one's: Grace's firmware shows energies and throttle counts through
/// power meters ("Total CPU Energy In uJ socket 0", "Chipthrot DDR Throttle (samples x1000) socket 0").
pub(super) fn is_no_power(label: &str) -> bool {
    let label = label.to_ascii_lowercase();
    label.contains("energy in uj") || label.contains("throttle")
}

/// Converts a label to a name of lower-case letters, digits and hyphens.
pub(super) fn slugify(label: &str) -> String {
    let mut name = String::new();
    for letter in label.chars() {
        match letter.to_ascii_lowercase() {
            letter if letter.is_ascii_alphanumeric() => name.push(letter),
            _ if !name.is_empty() && !name.ends_with('-') => name.push('-'),
            _ => {}
        }
    }
    name.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_is_a_module_around_a_socket_around_its_rails() {
        let place = |label: &str| {
            parse_grace_label(label).map(|place| (place.name, place.kind, place.candidate_parents))
        };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(place("Module Power Socket 1"), Some(("module-1".into(), DomainKind::Module, vec![])));
        assert_eq!(
            place("Grace Power Socket 0"),
            Some(("grace-0".into(), DomainKind::Soc, names(&["module-0"])))
        );
        assert_eq!(
            place("CPU Power Socket 0"),
            Some(("cpu-0".into(), DomainKind::Package, names(&["grace-0", "module-0"])))
        );
        assert_eq!(
            place("SysIO Power Socket 3"),
            Some(("sysio-3".into(), DomainKind::Uncore, names(&["grace-3", "module-3"])))
        );
        assert_eq!(
            place("DRAM Input Power in uW socket 1"),
            Some(("dram-1".into(), DomainKind::Dram, names(&["grace-1", "module-1"])))
        );
        for label in ["Total Power in uW", "Total Input Power in uW", "Total Power", "Total Input Power"] {
            assert_eq!(place(&format!("{label} socket 1")), place("Grace Power Socket 1"), "{label}");
        }
        for label in ["CPU Rail Power in uW", "CPU Rail Input Power in uW", "CPU Rail Power"] {
            assert_eq!(place(&format!("{label} socket 1")), place("CPU Power Socket 1"), "{label}");
        }
        for label in ["SOC Rail Input Power in uW", "SoC Rail Power", "soc rail power in uw"] {
            assert_eq!(place(&format!("{label} socket 1")), place("SysIO Power Socket 1"), "{label}");
        }
        for label in [
            "Total Power",
            "CPU Power Socket x",
            "CPU Rail Output Power in uW socket 0",
            "Total CPU Energy In uJ socket 0",
            "Module Socket A",
        ] {
            assert_eq!(place(label), None, "{label}");
        }
        assert!(is_no_power("Total CPU Energy In uJ socket 0"));
        assert!(is_no_power("Chipthrot DDR Throttle (samples x1000) socket 0"));
        assert!(!is_no_power("CPU Rail Output Power in uW socket 0"));
    }

    #[test]
    fn a_jetsons_rails_lie_in_its_input_and_the_memory_in_the_system_rail() {
        assert_eq!(parse_jetson_label("VDD_IN").unwrap().candidate_parents, Vec::<String>::new());
        assert_eq!(parse_jetson_label("VDD_CPU_GPU_CV").unwrap().candidate_parents[0], "vdd-in");
        assert_eq!(parse_jetson_label("VDDQ_VDD2_1V8AO").unwrap().candidate_parents[0], "vin-sys-5v0");
        assert_eq!(parse_jetson_label("sum of shunt voltages"), None);
        assert_eq!(parse_jetson_label("NC"), None);
    }

    #[test]
    fn a_core_has_no_position_and_names_are_slugs() {
        assert_eq!(parse_amd_energy_label("Ecore012"), None);
        assert!(core_counter("Ecore012") && !core_counter("Esocket1") && !core_counter("Ecore"));
        assert_eq!(parse_amd_energy_label("Esocket1").unwrap().name, "package-1");
        assert_eq!(slugify("Power +12V (total)"), "power-12v-total");
        assert_eq!(slugify("--"), "");
    }
}
