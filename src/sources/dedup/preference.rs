//! The choice of one source for each domain.
//!
//! Invariant: after discovery every domain is in one source only. A domain that two mechanisms or two zones show is taken
//! from the first one in which it advances. Of the psys of several packages, those that advance are kept; until one does,
//! all are. The list of absent sources has the reason for each dropped domain and each disagreement of mechanisms. Decides
//! from names and liveness; reads no hardware.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::{Domain, DomainKind, Grade};
use crate::sources::probe::ProbeResult;
use crate::sources::source::DomainIndex;
use crate::sources::source_settings::HWMON;
use crate::sources::{Inventory, OpenedSource};

use super::domain_selection::select_domains;
use super::duplicate_pair::DuplicatePair;

/// Keeps every domain in one source only, and records the dropped ones.
pub fn keep_preferred(found: &mut Inventory, probe_result: ProbeResult) {
    let mut kept: Vec<Vec<bool>> =
        found.opened.iter().map(|source| vec![true; source.domains.len()]).collect();
    report_disagreements(found, &probe_result);
    drop_psys_copies(found, &mut kept);
    drop_repeated_domains(found, &mut kept);
    keep_duplicate_pairs(found, probe_result, &kept);
    let opened = std::mem::take(&mut found.opened);
    found.opened =
        opened.into_iter().zip(kept).filter_map(|(source, kept)| select_domains(source, &kept)).collect();
    resolve_parents(found.opened.iter_mut().flat_map(|source| &mut source.domains).collect());
}

/// A domain that is metered already.
#[derive(Debug, Clone, Copy)]
pub struct PresentDomain<'a> {
    /// The domain, with the parent that discovery gave it.
    pub domain: &'a Domain,
    /// Whether its counter stands still.
    pub is_stuck: bool,
}

/// Keeps the domains of a late source that are not in `present`, and adds the pairs of the new domains with each other and
/// with the present ones. A domain whose present counterpart stands still is kept under another name. `packages`: the
/// physical packages that the kernel lists.
pub fn keep_new(found: &mut Inventory, present: &[PresentDomain<'_>], packages: &BTreeSet<u32>) {
    let mut domains: Vec<PresentDomain<'_>> = present.to_vec();
    let mut opened = std::mem::take(&mut found.opened);
    for source in &mut opened {
        rename_beside_stuck(&mut source.domains, present);
    }
    let mut kept = Vec::new();
    for source in &opened {
        let mut of_source = Vec::new();
        for domain in &source.domains {
            let taken = domains.iter().find(|other| other.domain.name == domain.name);
            of_source.push(taken.is_none());
            if let Some(other) = taken {
                let reason = format!("{} is read by {}", domain.name, other.domain.source);
                found.add_absent(source.name, reason);
                continue;
            }
            let pair = |one: &PresentDomain<'_>| DuplicatePair::candidate(one.domain, domain, packages);
            found.duplicates.extend(domains.iter().filter_map(pair));
            domains.push(PresentDomain { domain, is_stuck: false });
        }
        kept.push(of_source);
    }
    found.opened =
        opened.into_iter().zip(kept).filter_map(|(source, kept)| select_domains(source, &kept)).collect();
}

/// Renames the domains of a source whose name a stuck domain has, and the parents of their parts.
fn rename_beside_stuck(domains: &mut [Domain], present: &[PresentDomain<'_>]) {
    let is_taken = |name: &str| present.iter().any(|other| other.domain.name == name);
    let is_stuck = |name: &str| present.iter().any(|other| other.is_stuck && other.domain.name == name);
    let new_name = |name: &str| {
        let numbered = (2_u32..).map(|number| format!("{name}-{number}"));
        numbered.into_iter().find(|name| !is_taken(name)).unwrap_or_default()
    };
    let renamed: BTreeMap<String, String> = domains
        .iter()
        .filter(|domain| is_stuck(&domain.name))
        .map(|domain| (domain.name.clone(), new_name(&domain.name)))
        .collect();
    let replace = |name: &mut String| {
        if let Some(new) = renamed.get(name) {
            name.clone_from(new);
        }
    };
    for domain in domains {
        replace(&mut domain.name);
        domain.parent.iter_mut().for_each(replace);
    }
}

/// Adds the pairs of kept domains, with their current names.
fn keep_duplicate_pairs(found: &mut Inventory, probe_result: ProbeResult, kept: &[Vec<bool>]) {
    let is_kept = |(source, domain): DomainIndex| kept[source][domain];
    for mut candidate in probe_result.candidates {
        if is_kept(candidate.original) && is_kept(candidate.copy) {
            let name = |(source, domain): DomainIndex| found.opened[source].domains[domain].name.clone();
            (candidate.pair.original, candidate.pair.copy) = (name(candidate.original), name(candidate.copy));
            found.duplicates.push(candidate.pair);
        }
    }
}

fn report_disagreements(found: &mut Inventory, probe_result: &ProbeResult) {
    for disagreement in &probe_result.disagreements {
        let (first, second) = (&found.opened[disagreement.first.0], &found.opened[disagreement.second.0]);
        let name = &first.domains[disagreement.first.1].name;
        let (one_uj, other_uj) = disagreement.energies_uj;
        let reason = format!(
            "{name} does not agree with {}: in the same time {} counted {one_uj} µJ and {} {other_uj} µJ, which \
             differ by more than the kernel's rounding; do not rely on either until the wrong unit is known",
            first.name, first.name, second.name
        );
        let source = second.name;
        found.add_absent(source, reason);
    }
}

/// perf and powercap show psys once for each package, but only the master package's moves (linux commit 838342a6d6b7).
/// Drops the others if one advances. If none has, as on an idle machine whose psys counts whole joules, the sampler finds
/// the one that does. Where several advance, they are compared like other pairs. The first has the name "psys".
fn drop_psys_copies(found: &mut Inventory, kept: &mut [Vec<bool>]) {
    let mut copies = BTreeMap::<&'static str, Vec<DomainIndex>>::new();
    for (source, domain) in domain_indices(found) {
        let opened = &found.opened[source];
        let Domain { kind, grade, .. } = opened.domains[domain];
        if kind == DomainKind::Psys && grade < Grade::Integrated {
            copies.entry(opened.name).or_default().push((source, domain));
        }
    }
    copies.values().for_each(|copies| keep_advancing_psys(found, kept, copies));
}

/// `copies`: the psys domains of one mechanism.
fn keep_advancing_psys(found: &mut Inventory, kept: &mut [Vec<bool>], copies: &[DomainIndex]) {
    let advances = |index: &&DomainIndex| has_advanced(found, **index);
    let advancing: Vec<DomainIndex> = copies.iter().filter(advances).copied().collect();
    let chosen = if advancing.is_empty() { copies.to_vec() } else { advancing };
    let other_names: BTreeSet<String> = chosen
        .iter()
        .skip(1)
        .map(|&(source, domain)| found.opened[source].domains[domain].name.clone())
        .collect();
    for &(source, domain) in copies.iter().filter(|copy| !chosen.contains(copy)) {
        kept[source][domain] = false;
        let opened = &found.opened[source];
        let (mechanism, name) = (opened.name, opened.domains[domain].name.clone());
        let cpu = opened.cpu.map_or(String::new(), |cpu| format!(" on CPU {cpu}"));
        let reason =
            format!("{name}{cpu}: stands still; the platform's energy is in the psys of another package");
        found.add_absent(mechanism, reason);
    }
    if let Some(&(source, domain)) = chosen.first()
        && !other_names.contains("psys")
    {
        found.opened[source].domains[domain].name = "psys".into();
    }
}

fn drop_repeated_domains(found: &mut Inventory, kept: &mut [Vec<bool>]) {
    let mut shown = BTreeMap::<String, Vec<DomainIndex>>::new();
    for (source, domain) in domain_indices(found).filter(|&(source, domain)| kept[source][domain]) {
        shown.entry(found.opened[source].domains[domain].name.clone()).or_default().push((source, domain));
    }
    let mut dropped = BTreeMap::<(&'static str, &'static str), Vec<String>>::new();
    for (name, shown) in shown {
        let Some(&chosen) = shown.iter().find(|index| has_advanced(found, **index)).or(shown.first()) else {
            continue;
        };
        for copy in shown.into_iter().filter(|copy| *copy != chosen) {
            kept[copy.0][copy.1] = false;
            let (dropped_source, kept_source) = (found.opened[copy.0].name, found.opened[chosen.0].name);
            dropped.entry((dropped_source, kept_source)).or_default().push(name.clone());
        }
    }
    for ((dropped_source, kept_source), names) in dropped {
        if dropped_source == kept_source {
            let reason = format!("{}: a second zone or chip shows the same; one is read", names.join(", "));
            found.add_absent(dropped_source, reason);
            continue;
        }
        let all = found
            .opened
            .iter()
            .zip(&*kept)
            .all(|(source, kept)| source.name != dropped_source || !kept.contains(&true));
        let which = if all { "its domains".to_owned() } else { names.join(", ") };
        found.add_absent(
            dropped_source,
            format!("{which} {} read by {kept_source}", if names.len() == 1 && !all { "is" } else { "are" }),
        );
    }
}

/// Replaces missing parents by existing ones of any mechanism: psys contains packages and memory.
pub fn resolve_parents(mut domains: Vec<&mut Domain>) {
    let names: BTreeSet<String> = domains.iter().map(|domain| domain.name.clone()).collect();
    for domain in &mut domains {
        domain.parent = domain.parent.take().filter(|parent| names.contains(parent));
        if matches!(domain.kind, DomainKind::Package | DomainKind::Dram) && domain.parent.is_none() {
            domain.parent = Some("psys".to_owned()).filter(|psys| names.contains(psys));
        }
    }
    assign_gpus_to_modules(domains);
}

/// Assigns GPUs to modules. The modules of Grace Hopper and similar boards contain their GPUs (the board's meter includes
/// both), which another mechanism shows. Both are numbered by position, so each module gets an equal number of GPUs. The
/// last module gets the remainder: a missing joule is better than one counted twice.
fn assign_gpus_to_modules(domains: Vec<&mut Domain>) {
    let is_module = |domain: &Domain| domain.kind == DomainKind::Module && domain.source == HWMON;
    let modules: Vec<String> =
        domains.iter().filter(|domain| is_module(domain)).map(|module| module.name.clone()).collect();
    let Some(last) = modules.len().checked_sub(1) else { return };
    // GPUs that were assigned before another board answered are assigned again.
    let is_outermost = |domain: &Domain| domain.parent.as_ref().is_none_or(|parent| modules.contains(parent));
    let mut cards: Vec<&mut Domain> = domains
        .into_iter()
        .filter(|domain| domain.kind == DomainKind::Gpu && domain.source == NVML && is_outermost(domain))
        .collect();
    let each = (cards.len() / modules.len()).max(1);
    for (nth, card) in cards.iter_mut().enumerate() {
        card.parent = Some(modules[(nth / each).min(last)].clone());
    }
}

/// The name of the mechanism for NVIDIA boards.
const NVML: &str = "nvml";

fn has_advanced(found: &Inventory, (source, domain): DomainIndex) -> bool {
    found.opened[source].advanced[domain]
}

fn domain_indices(found: &Inventory) -> impl Iterator<Item = DomainIndex> + '_ {
    let of =
        |(nth, source): (usize, &OpenedSource)| (0..source.domains.len()).map(move |domain| (nth, domain));
    found.opened.iter().enumerate().flat_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::EnergyReading;
    use crate::sources::Source;
    use crate::sources::dedup::cross_check::Disagreement;
    use crate::sources::probe::DuplicateCandidate;

    /// Returns its own number, so that a test can match readings to domains.
    struct FixedSource(Vec<u64>);

    impl Source for FixedSource {
        fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
            for (reading, energy_uj) in into.iter_mut().zip(&self.0) {
                *reading = EnergyReading { valid: true, energy_uj: *energy_uj, ..EnergyReading::default() };
            }
            None
        }
    }

    fn opened(name: &'static str, domains: &[(&str, DomainKind, bool)]) -> OpenedSource {
        let domain = |&(domain, kind, _): &(&str, DomainKind, bool)| Domain {
            name: domain.into(),
            kind,
            source: name.into(),
            device: None,
            parent: None,
            grade: Grade::Measured,
            ceiling_mw: None,
            latency_ns: 0,
            quantum_uj: 1,
        };
        OpenedSource {
            name,
            source: Box::new(FixedSource((0..domains.len() as u64).collect())),
            domains: domains.iter().map(domain).collect(),
            cpu: None,
            max_rate_hz: 1_000.0,
            advanced: domains.iter().map(|(_, _, advanced)| *advanced).collect(),
        }
    }

    fn inventory(opened: Vec<OpenedSource>) -> Inventory {
        Inventory { opened, ..Inventory::default() }
    }

    fn names(found: &Inventory) -> Vec<(&str, &str)> {
        let name = |(source, domain): DomainIndex| {
            (found.opened[source].name, found.opened[source].domains[domain].name.as_str())
        };
        domain_indices(found).map(name).collect()
    }

    #[test]
    fn what_perf_reads_powercap_does_not_read_again() {
        let domains = [("package-0", DomainKind::Package, true), ("dram-0", DomainKind::Dram, true)];
        let mut found = inventory(vec![opened("perf", &domains), opened("powercap", &domains)]);
        keep_preferred(&mut found, ProbeResult::default());
        assert_eq!(names(&found), [("perf", "package-0"), ("perf", "dram-0")]);
        assert_eq!(found.absent[0].source, "powercap");
        assert_eq!(found.absent[0].reason, "its domains are read by perf");
    }

    #[test]
    fn a_domain_that_only_powercap_sees_moving_is_taken_from_there() {
        let mut found = inventory(vec![
            opened("perf", &[("package-0", DomainKind::Package, true), ("psys", DomainKind::Psys, false)]),
            opened("powercap", &[("package-0", DomainKind::Package, true), ("psys", DomainKind::Psys, true)]),
        ]);
        keep_preferred(&mut found, ProbeResult::default());
        assert_eq!(names(&found), [("perf", "package-0"), ("powercap", "psys")]);
        let mut reading = [EnergyReading::default()];
        found.opened[1].source.read(&mut reading);
        assert_eq!(reading[0].energy_uj, 1, "the reading is that of the second column");
        assert!(found.absent.iter().any(|absent| absent.reason == "psys is read by powercap"));
        assert!(found.absent.iter().any(|absent| absent.reason == "package-0 is read by perf"));
    }

    #[test]
    fn of_several_psys_counters_the_one_that_moves_stays_and_has_the_plain_name() {
        let mut found = inventory(vec![
            opened("perf", &[("package-0", DomainKind::Package, true), ("psys", DomainKind::Psys, false)]),
            opened("perf", &[("package-1", DomainKind::Package, true), ("psys-1", DomainKind::Psys, true)]),
        ]);
        keep_preferred(&mut found, ProbeResult::default());
        assert_eq!(names(&found), [("perf", "package-0"), ("perf", "package-1"), ("perf", "psys")]);
        assert_eq!(found.opened[1].advanced, [true, true]);
    }

    #[test]
    fn a_platform_counter_that_never_moves_stays_visible_as_stuck() {
        let mut found = inventory(vec![opened("perf", &[("psys", DomainKind::Psys, false)])]);
        keep_preferred(&mut found, ProbeResult::default());
        assert_eq!(names(&found), [("perf", "psys")]);
        assert_eq!(found.opened[0].advanced, [false]);
    }

    #[test]
    fn a_parent_is_named_across_mechanisms_and_only_where_it_is_there() {
        let mut found = inventory(vec![
            opened("perf", &[("package-0", DomainKind::Package, true), ("core-1", DomainKind::Core, true)]),
            opened("powercap", &[("psys", DomainKind::Psys, true)]),
        ]);
        found.opened[0].domains[1].parent = Some("package-1".into());
        keep_preferred(&mut found, ProbeResult::default());
        assert_eq!(found.opened[0].domains[0].parent.as_deref(), Some("psys"));
        assert_eq!(found.opened[0].domains[1].parent, None);
    }

    #[test]
    fn a_module_contains_the_nvidia_cards_on_it_and_no_others() {
        let mut found = inventory(vec![
            opened(
                "hwmon",
                &[("module-0", DomainKind::Module, true), ("module-1", DomainKind::Module, true)],
            ),
            opened("nvml", &[("gpu-0", DomainKind::Gpu, true), ("gpu-1", DomainKind::Gpu, true)]),
            opened("amdgpu", &[("amdgpu-0", DomainKind::Gpu, true)]),
        ]);
        keep_preferred(&mut found, ProbeResult::default());
        let parents: Vec<_> = found.opened[1].domains.iter().map(|gpu| gpu.parent.as_deref()).collect();
        assert_eq!(parents, [Some("module-0"), Some("module-1")]);
        assert_eq!(found.opened[2].domains[0].parent, None);
    }

    #[test]
    fn mechanisms_that_disagree_are_reported_with_both_figures() {
        let domains = [("package-0", DomainKind::Package, true)];
        let mut found = inventory(vec![opened("perf", &domains), opened("msr", &domains)]);
        let disagreements = vec![Disagreement { first: (0, 0), second: (1, 0), energies_uj: (100, 200) }];
        keep_preferred(&mut found, ProbeResult { disagreements, ..ProbeResult::default() });
        let reason = &found.absent[0].reason;
        assert!(
            reason.contains("package-0") && reason.contains("100 µJ") && reason.contains("200 µJ"),
            "{reason}"
        );
        assert_eq!(names(&found), [("perf", "package-0")]);
    }

    #[test]
    fn a_pair_stays_where_both_its_domains_do() {
        let domains = [("package-0", DomainKind::Package, true), ("package-1", DomainKind::Package, true)];
        let mut found = inventory(vec![opened("perf", &domains), opened("powercap", &domains)]);
        let pair = |original: DomainIndex, copy: DomainIndex| {
            let of = |(source, domain): DomainIndex| &found.opened[source].domains[domain];
            let pair = DuplicatePair::candidate(of(original), of(copy), &BTreeSet::new()).unwrap();
            DuplicateCandidate { original, copy, pair }
        };
        let candidates = vec![pair((0, 0), (0, 1)), pair((0, 0), (1, 1)), pair((1, 0), (1, 1))];
        keep_preferred(&mut found, ProbeResult { candidates, ..ProbeResult::default() });
        let kept: Vec<_> = found.duplicates.iter().map(|pair| (&*pair.original, &*pair.copy)).collect();
        assert_eq!(kept, [("package-0", "package-1")]);
    }

    #[test]
    fn of_a_source_that_answers_late_a_domain_whose_counterpart_stands_still_is_kept_with_its_parts() {
        let present = opened("perf", &[("package-0", DomainKind::Package, false)]);
        let late = [("package-0", DomainKind::Package, false), ("core-0", DomainKind::Core, false)];
        let mut found = inventory(vec![opened("powercap", &late)]);
        found.opened[0].domains[1].parent = Some("package-0".into());
        let stuck = PresentDomain { domain: &present.domains[0], is_stuck: true };
        keep_new(&mut found, &[stuck], &BTreeSet::from([0]));
        assert_eq!(names(&found), [("powercap", "package-0-2"), ("powercap", "core-0")]);
        assert_eq!(found.opened[0].domains[1].parent.as_deref(), Some("package-0-2"));
        // If the present one moves later and is the same counter, only one counts.
        assert_eq!(
            (&*found.duplicates[0].original, &*found.duplicates[0].copy),
            ("package-0", "package-0-2")
        );
    }

    #[test]
    fn of_a_source_that_answers_late_only_new_domains_are_kept_and_compared() {
        let package = |name| [(name, DomainKind::Package, true)];
        let present = opened("perf", &package("package-0"));
        let late =
            [("package-0", DomainKind::Package, false), ("package-0-die-1", DomainKind::Package, false)];
        let mut found = inventory(vec![opened("powercap", &late)]);
        let live = PresentDomain { domain: &present.domains[0], is_stuck: false };
        keep_new(&mut found, &[live], &BTreeSet::from([0]));
        assert_eq!(names(&found), [("powercap", "package-0-die-1")]);
        assert_eq!(found.absent[0].reason, "package-0 is read by perf");
        assert_eq!(
            (&*found.duplicates[0].original, &*found.duplicates[0].copy),
            ("package-0", "package-0-die-1")
        );
    }
}
