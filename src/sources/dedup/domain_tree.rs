//! The choice of the domains in the host's total, so that each joule is counted once.
//!
//! Owns the tree: psys contains packages and memory, a package contains its cores and its graphics, a module contains all
//! its parts. Invariant: the counted domains are the outermost live ones, and none contains another. An estimate is never
//! added to a measurement of the same part. Integrated psys power does not replace counters of its parts. The power
//! supplies of a machine and its board's sum feed everything in it, graphics cards too. Batteries, and rails of unknown
//! position, are never counted.

use crate::domain::{Domain, DomainKind, Grade};
use crate::sources::source_settings::HWMON;

/// For each of `domains`: whether it is part of the host's total. `live`: which domains are reliable now. A domain that is
/// not live is never counted; its parts replace it.
pub fn counted_in_total(domains: &[Domain], live: &[bool]) -> Vec<bool> {
    let live = |at: usize| live.get(at).copied().unwrap_or(false);
    let measured_cpu = (0..domains.len())
        .any(|at| live(at) && is_not_estimated(&domains[at]) && covers_cpu(domains[at].kind));
    let counted_cpu = (0..domains.len())
        .any(|at| live(at) && domains[at].grade < Grade::Integrated && covers_cpu(domains[at].kind));
    let eligible: Vec<bool> = (0..domains.len())
        .map(|at| {
            live(at)
                && !is_never_counted(domains[at].kind)
                && !(counted_cpu
                    && domains[at].kind == DomainKind::Psys
                    && domains[at].grade == Grade::Integrated)
                && !(measured_cpu
                    && domains[at].grade == Grade::Estimated
                    && is_within_psys(domains[at].kind))
        })
        .collect();
    (0..domains.len())
        .map(|at| eligible[at] && !ancestors(domains, at).iter().any(|&above| eligible[above]))
        .collect()
}

/// Kinds that are never part of the total.
fn is_never_counted(kind: DomainKind) -> bool {
    matches!(kind, DomainKind::Battery | DomainKind::Rail)
}

/// Whether a live counter of this kind replaces an estimate of the CPU: it shows all or most of the CPU's energy.
pub fn covers_cpu(kind: DomainKind) -> bool {
    matches!(
        kind,
        DomainKind::Psys
            | DomainKind::Package
            | DomainKind::Core
            | DomainKind::Soc
            | DomainKind::Module
            | DomainKind::Cpu
    )
}

/// Kinds that psys contains even without an explicit parent.
fn is_within_psys(kind: DomainKind) -> bool {
    matches!(
        kind,
        DomainKind::Package
            | DomainKind::Core
            | DomainKind::Uncore
            | DomainKind::Dram
            | DomainKind::Cpu
            | DomainKind::Soc
    )
}

/// Whether the domain is the power of the whole machine, or its part from one of several power supplies, as hwmon shows it.
fn feeds_machine(domain: &Domain) -> bool {
    domain.kind == DomainKind::Psys && domain.source == HWMON
}

fn is_not_estimated(domain: &Domain) -> bool {
    domain.grade != Grade::Estimated
}

/// All domains that contain domain `at`: by the parents' names, and psys for the CPU's parts. A cycle of parents ends at its
/// first repetition.
fn ancestors(domains: &[Domain], at: usize) -> Vec<usize> {
    let mut above: Vec<usize> = Vec::new();
    let mut next = Some(at);
    while let Some(child) = next {
        let parent = domains[child].parent.as_deref();
        next = parent.and_then(|parent| domains.iter().position(|domain| domain.name == parent));
        match next {
            Some(parent) if parent == at || above.contains(&parent) => break,
            Some(parent) => above.push(parent),
            None => {}
        }
    }
    let within_psys = [at].iter().chain(&above).any(|&domain| is_within_psys(domains[domain].kind));
    if !feeds_machine(&domains[at]) {
        above.extend((0..domains.len()).filter(|&feed| feeds_machine(&domains[feed]) && feed != at));
    }
    if within_psys {
        above.extend((0..domains.len()).filter(|&psys| psys != at && domains[psys].kind == DomainKind::Psys));
    }
    above
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn domain(name: &str, kind: DomainKind, parent: Option<&str>) -> Domain {
        Domain {
            name: name.into(),
            kind,
            source: "test".into(),
            device: None,
            parent: parent.map(String::from),
            grade: Grade::Measured,
            ceiling_mw: None,
            latency_ns: 0,
            quantum_uj: 1,
        }
    }

    fn estimated(name: &str) -> Domain {
        Domain { grade: Grade::Estimated, ..domain(name, DomainKind::Cpu, None) }
    }

    /// Two packages with cores and memory under a platform counter, and a graphics card beside it.
    fn server() -> Vec<Domain> {
        vec![
            domain("psys", DomainKind::Psys, None),
            domain("package-0", DomainKind::Package, Some("psys")),
            domain("core-0", DomainKind::Core, Some("package-0")),
            domain("dram-0", DomainKind::Dram, Some("psys")),
            domain("package-1", DomainKind::Package, Some("psys")),
            domain("core-1", DomainKind::Core, Some("package-1")),
            domain("dram-1", DomainKind::Dram, Some("psys")),
            domain("gpu-0", DomainKind::Gpu, None),
        ]
    }

    fn names(domains: &[Domain], live: &[bool]) -> Vec<String> {
        let counted = counted_in_total(domains, live);
        domains
            .iter()
            .zip(counted)
            .filter(|(_, counted)| *counted)
            .map(|(domain, _)| domain.name.clone())
            .collect()
    }

    fn all_but(domains: &[Domain], dead: &[&str]) -> Vec<bool> {
        domains.iter().map(|domain| !dead.contains(&domain.name.as_str())).collect()
    }

    #[test]
    fn psys_is_never_added_to_its_packages() {
        let server = server();
        assert_eq!(names(&server, &all_but(&server, &[])), ["psys", "gpu-0"]);
    }

    #[test]
    fn where_psys_is_stuck_packages_and_memory_stand_in_for_it() {
        let server = server();
        assert_eq!(
            names(&server, &all_but(&server, &["psys"])),
            ["package-0", "dram-0", "package-1", "dram-1", "gpu-0"]
        );
    }

    #[test]
    fn where_a_package_is_stuck_its_cores_stand_in_for_it() {
        let server = server();
        let live = all_but(&server, &["psys", "package-1"]);
        assert_eq!(names(&server, &live), ["package-0", "dram-0", "core-1", "dram-1", "gpu-0"]);
    }

    #[test]
    fn psys_contains_packages_even_without_a_parent() {
        let domains =
            [domain("package-0", DomainKind::Package, None), domain("psys", DomainKind::Psys, None)];
        assert_eq!(names(&domains, &[true, true]), ["psys"]);
    }

    #[test]
    fn an_estimate_is_never_added_to_a_measurement_of_the_cpu() {
        let domains = [estimated("cpu"), domain("package-0", DomainKind::Package, None)];
        assert_eq!(names(&domains, &[true, true]), ["package-0"]);
        assert_eq!(names(&domains, &[true, false]), ["cpu"]);
        let domains = [estimated("cpu"), domain("gpu-0", DomainKind::Gpu, None)];
        assert_eq!(names(&domains, &[true, true]), ["cpu", "gpu-0"]);
    }

    #[test]
    fn a_platforms_power_that_is_only_sensed_is_a_check_on_counters_and_stands_in_for_none() {
        let mac = [
            Domain { grade: Grade::Integrated, ..domain("psys", DomainKind::Psys, None) },
            Domain { grade: Grade::Modelled, ..domain("cpu", DomainKind::Cpu, Some("psys")) },
            Domain { grade: Grade::Modelled, ..domain("gpu", DomainKind::Gpu, Some("psys")) },
        ];
        assert_eq!(names(&mac, &[true, true, true]), ["cpu", "gpu"]);
        // If the processor's counter is stuck, the GPU's counter alone does not replace psys.
        assert_eq!(names(&mac, &[true, false, true]), ["psys"]);
        let intel = [
            Domain { grade: Grade::Integrated, ..domain("psys", DomainKind::Psys, None) },
            Domain { grade: Grade::Integrated, ..domain("package-0", DomainKind::Package, Some("psys")) },
        ];
        assert_eq!(names(&intel, &[true, true]), ["psys"]);
    }

    #[test]
    fn power_supplies_are_summed_and_contain_the_cards_unless_the_cpu_has_a_counter() {
        let supply = |name: &str| Domain {
            grade: Grade::Integrated,
            source: "hwmon".into(),
            ..domain(name, DomainKind::Psys, None)
        };
        let machine = [
            supply("psu-0"),
            supply("psu-1"),
            domain("gpu-0", DomainKind::Gpu, None),
            estimated("cpu"),
            domain("package-0", DomainKind::Package, None),
        ];
        assert_eq!(names(&machine, &[true, true, true, true, false]), ["psu-0", "psu-1"]);
        // One supply is not plugged in.
        assert_eq!(names(&machine, &[true, false, true, true, false]), ["psu-0"]);
        assert_eq!(names(&machine, &[true; 5]), ["gpu-0", "package-0"]);
    }

    #[test]
    fn memory_alone_does_not_stand_for_the_cpu() {
        let domains = [estimated("cpu"), domain("dram-0", DomainKind::Dram, None)];
        assert_eq!(names(&domains, &[true, true]), ["cpu", "dram-0"]);
    }

    #[test]
    fn a_battery_and_a_rail_of_unknown_position_are_never_counted() {
        let domains = [
            domain("battery-0", DomainKind::Battery, None),
            domain("ina226-0-power1", DomainKind::Rail, None),
            domain("package-0", DomainKind::Package, None),
        ];
        assert_eq!(names(&domains, &[true, true, true]), ["package-0"]);
        assert_eq!(names(&domains, &[true, true, false]), Vec::<String>::new());
    }

    #[test]
    fn a_module_contains_the_card_that_names_it() {
        let domains = [
            domain("gpu-0", DomainKind::Gpu, Some("module-0")),
            domain("module-0", DomainKind::Module, None),
        ];
        assert_eq!(names(&domains, &[true, true]), ["module-0"]);
    }

    #[test]
    fn a_circle_of_parents_ends_and_a_parent_that_is_not_there_contains_nothing() {
        let domains = [
            domain("a", DomainKind::Gpu, Some("b")),
            domain("b", DomainKind::Gpu, Some("a")),
            domain("c", DomainKind::Gpu, Some("missing")),
        ];
        assert_eq!(names(&domains, &[true, true, true]), ["c"]);
    }

    proptest! {
        #[test]
        fn whatever_is_live_nothing_counted_lies_within_something_counted(
            live in proptest::collection::vec(any::<bool>(), 8),
        ) {
            let server = server();
            let counted = counted_in_total(&server, &live);
            for at in (0..server.len()).filter(|&at| counted[at]) {
                prop_assert!(live[at]);
                prop_assert!(!ancestors(&server, at).iter().any(|&above| counted[above]));
            }
            // Every uncounted live domain has a counted ancestor.
            for at in (0..server.len()).filter(|&at| live[at] && !counted[at]) {
                prop_assert!(ancestors(&server, at).iter().any(|&above| counted[above]));
            }
        }
    }
}
