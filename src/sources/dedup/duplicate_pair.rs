//! Pairs of domains that may be two names of one counter, with the state of each pair.
//!
//! AMD dies may show one register under several names, and a zone may be mirrored. Owns the choice of the compared
//! domains and the evidence. Two RAPL domains of packages with different `physical_package_id` are independent unless
//! their levels prove the contrary, as on a virtual machine that shows one register under two packages. Any other
//! pair is undecided until its readings decide. The caller supplies the readings.

use std::collections::BTreeSet;

use crate::domain::{Domain, DomainKind, Duplicate, EnergyReading, Grade};
use crate::sources::source_settings::{HWMON, MSR, PERF, POWERCAP};

use super::same_register::{MIN_COMMON_LEVELS, PairSide, RegisterComparison};

/// Number of common levels that outweighs the kernel's package numbers.
const MIN_LEVELS_FOR_SEPARATE_PACKAGES: usize = 64;

/// Largest bias between two RAPL mechanisms, from the kernel's constants: 2,703 ppm for memory, with a margin.
const BIAS_PPM: u64 = 3_000;

/// Two domains of one kind.
#[derive(Debug)]
pub struct DuplicatePair {
    /// The domain that is counted while the pair is undecided.
    pub original: String,
    /// The domain that is left out while the pair is undecided.
    pub copy: String,
    /// The kernel gives their packages different numbers.
    has_separate_packages: bool,
    comparison: RegisterComparison,
}

impl DuplicatePair {
    /// The pair of two domains, the earlier first; `None` if they cannot be one counter. `packages`: the physical
    /// packages that the kernel lists.
    pub fn candidate(original: &Domain, copy: &Domain, packages: &BTreeSet<u32>) -> Option<Self> {
        let counts = |domain: &Domain| domain.grade != Grade::Integrated;
        let one_mechanism = original.source == copy.source;
        // A rail is never counted, so its duplicates do not matter.
        let alike =
            original.kind == copy.kind && original.kind != DomainKind::Rail && original.device == copy.device;
        if !alike
            || !counts(original)
            || !counts(copy)
            || !(one_mechanism || is_rapl(original) && is_rapl(copy) && original.name != copy.name)
        {
            return None;
        }
        let package =
            |domain: &Domain| package_id(domain).filter(|id| is_rapl(domain) && packages.contains(id));
        let separate = package(original).zip(package(copy)).is_some_and(|(one, other)| one != other);
        let needed = if separate { MIN_LEVELS_FOR_SEPARATE_PACKAGES } else { MIN_COMMON_LEVELS };
        let readings = RegisterComparison::new(needed, if one_mechanism { 0 } else { BIAS_PPM });
        Some(Self {
            original: original.name.clone(),
            copy: copy.name.clone(),
            has_separate_packages: separate,
            comparison: readings,
        })
    }

    /// The state of the pair.
    pub fn state(&self) -> Duplicate {
        match self.comparison.state() {
            Duplicate::Undecided if self.has_separate_packages => Duplicate::Independent,
            state => state,
        }
    }

    /// Whether more readings can change the state.
    pub fn is_revisable(&self) -> bool {
        self.comparison.state() != Duplicate::Independent
    }

    /// Adds one reading of the original, in the order of time; `before_ns..=after_ns` contains the read.
    pub fn observe_original(&mut self, before_ns: u64, after_ns: u64, reading: &EnergyReading) {
        self.comparison.observe(PairSide::Original, before_ns, after_ns, reading);
    }

    /// Adds one reading of the copy, in the order of time; `before_ns..=after_ns` contains the read.
    pub fn observe_copy(&mut self, before_ns: u64, after_ns: u64, reading: &EnergyReading) {
        self.comparison.observe(PairSide::Copy, before_ns, after_ns, reading);
    }

    /// Decides the pair as far as the readings allow.
    pub fn evaluate(&mut self) {
        self.comparison.evaluate();
    }
}

/// Mechanisms that read RAPL's registers; hwmon's `amd_energy` is one of them.
fn is_rapl(domain: &Domain) -> bool {
    [PERF, POWERCAP, MSR, HWMON].contains(&domain.source.as_str())
}

/// The package in a domain's name: 1 in "package-1", "dram-1" and "package-1-die-0".
fn package_id(domain: &Domain) -> Option<u32> {
    domain.name.split('-').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(name: &str, source: &str) -> Domain {
        Domain {
            name: name.into(),
            kind: DomainKind::Package,
            source: source.into(),
            device: None,
            parent: None,
            grade: Grade::Measured,
            ceiling_mw: None,
            latency_ns: 0,
            quantum_uj: 1,
        }
    }

    fn state(one: (&str, &str), other: (&str, &str), packages: &[u32]) -> Option<Duplicate> {
        let packages = packages.iter().copied().collect();
        DuplicatePair::candidate(&domain(one.0, one.1), &domain(other.0, other.1), &packages)
            .map(|pair| pair.state())
    }

    #[test]
    fn packages_that_the_kernel_numbers_apart_are_independent_and_their_dies_are_not() {
        let perf = |name| (name, "perf");
        assert_eq!(state(perf("package-0"), perf("package-1"), &[0, 1]), Some(Duplicate::Independent));
        let dies = [perf("package-0-die-0"), perf("package-0-die-1"), perf("package-1-die-0")];
        assert_eq!(state(dies[0], dies[1], &[0, 1]), Some(Duplicate::Undecided));
        assert_eq!(state(dies[0], dies[2], &[0, 1]), Some(Duplicate::Independent));
        // A name alone is no package: the kernel does not list it.
        assert_eq!(state(perf("package-0"), perf("package-1"), &[0]), Some(Duplicate::Undecided));
        assert_eq!(state(perf("package-0"), perf("package-1"), &[]), Some(Duplicate::Undecided));
        assert_eq!(state(("cpu-0", "replay"), ("cpu-1", "replay"), &[0, 1]), Some(Duplicate::Undecided));
    }

    #[test]
    fn mechanisms_of_one_register_are_compared_and_others_are_not() {
        assert_eq!(
            state(("package-0", "perf"), ("package-0-die-1", "powercap"), &[0]),
            Some(Duplicate::Undecided)
        );
        assert_eq!(state(("package-0", "perf"), ("package-0", "powercap"), &[0]), None, "chosen by name");
        assert_eq!(state(("package-0", "perf"), ("package-1", "ioreport"), &[]), None);
    }

    #[test]
    fn two_devices_and_two_integrals_are_never_one() {
        let (one, mut other) = (domain("gpu-0", "amdgpu"), domain("gpu-1", "amdgpu"));
        assert!(DuplicatePair::candidate(&one, &other, &BTreeSet::new()).is_some());
        other.device = Some("0000:04:00.0".into());
        assert!(DuplicatePair::candidate(&one, &other, &BTreeSet::new()).is_none());
        let integral = Domain { grade: Grade::Integrated, ..one.clone() };
        assert!(DuplicatePair::candidate(&integral, &integral, &BTreeSet::new()).is_none());
    }
}
