//! What the labels on boards mean: which part of the machine a rail feeds, and which rail it comes out of.
//!
//! Owns the knowledge of board makers' labels and nothing else. Invariant: a label that is not known here has no place,
//! and a rail without a place is never part of a total (`DomainKind::Rail`): it could be inside another one. Pure.

use crate::domain::DomainKind;

/// Where a rail sits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RailPosition {
    /// The domain's name.
    pub name: String,
    /// What it feeds.
    pub kind: DomainKind,
    /// The rails it may lie in, nearest first: the first of them that is there is its parent.
    pub candidate_parents: Vec<String>,
}

impl RailPosition {
    fn new(name: String, kind: DomainKind, within: &[String]) -> Self {
        Self { name, kind, candidate_parents: within.to_vec() }
    }
}

/// What `power1_oem_info` of an ACPI power meter says on NVIDIA's Grace: "Module Power Socket 0" (processor, memory, GPU
/// with its own memory, and the regulators' loss), "Grace Power Socket 0" (the processor's socket), "CPU Power Socket 0"
/// (its cores' rail), "SysIO Power Socket 0" (its fabric's). NVIDIA Grace performance tuning guide, power telemetry. Other
/// firmware says "Total Power in uW socket 0", "CPU Rail Input Power in uW socket 0", "SoC Rail Power in uW socket 0".
pub fn parse_grace_label(label: &str) -> Option<RailPosition> {
    let label = label.to_ascii_lowercase();
    let (what, socket) = label.split_once(" socket ")?;
    let socket = socket.trim().parse::<u32>().ok()?;
    let named = |stem: &str| format!("{stem}-{socket}");
    let (module, whole) = (named("module"), named("grace"));
    match what.trim() {
        "module power" => Some(RailPosition::new(module, DomainKind::Module, &[])),
        "grace power" | "total power in uw" | "total input power in uw" => {
            Some(RailPosition::new(whole, DomainKind::Soc, &[module]))
        }
        "cpu power" | "cpu rail power in uw" | "cpu rail input power in uw" => {
            Some(RailPosition::new(named("cpu"), DomainKind::Package, &[whole, module]))
        }
        "sysio power" | "soc rail power in uw" | "soc rail input power in uw" => {
            Some(RailPosition::new(named("sysio"), DomainKind::Uncore, &[whole, module]))
        }
        _ => None,
    }
}

/// What the INA3221's channels of NVIDIA's Jetson boards are called. The rails of a Nano, NX or TX2 come out of `VDD_IN`,
/// the module's input; an AGX has no such channel: its rails stand side by side, but for the memory's, which comes out of
/// the 5 V of the system (Jetson Linux developer guide, power and performance, the tables of power rails).
pub fn parse_jetson_label(label: &str) -> Option<RailPosition> {
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

/// What the driver `amd_energy` calls its counters: the package's, which RAPL shows too, so it gets RAPL's name and is
/// read once. Each core by itself ("Ecore000") lies in it and is not read.
pub fn parse_amd_energy_label(label: &str) -> Option<RailPosition> {
    let socket = label.strip_prefix("Esocket")?.parse::<u32>().ok()?;
    Some(RailPosition::new(format!("package-{socket}"), DomainKind::Package, &[]))
}

/// A label as a name: small letters, digits and hyphens.
pub fn slugify(label: &str) -> String {
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
        let place =
            |label| parse_grace_label(label).map(|place| (place.name, place.kind, place.candidate_parents));
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
        assert_eq!(place("Total Input Power in uW socket 1"), place("Grace Power Socket 1"));
        assert_eq!(place("CPU Rail Power in uW socket 1"), place("CPU Power Socket 1"));
        assert_eq!(place("SOC Rail Input Power in uW socket 1"), place("SysIO Power Socket 1"));
        assert_eq!(place("Total Power"), None);
        assert_eq!(place("CPU Power Socket x"), None);
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
    fn a_core_of_amd_energy_is_no_domain_and_names_are_slugs() {
        assert_eq!(parse_amd_energy_label("Ecore012"), None);
        assert_eq!(parse_amd_energy_label("Esocket1").unwrap().name, "package-1");
        assert_eq!(slugify("Power +12V (total)"), "power-12v-total");
        assert_eq!(slugify("--"), "");
    }
}
