//! Pairs of domains that may be two names of one counter.
//!
//! Owns the last reported state of each pair, and the schedule of surveys: reads close enough in time to decide a pair.
//! Invariant: of two domains that are not known to be independent, the later one has the earlier one as its parent while that
//! is live, so that only one is counted. Cost per reading: one comparison per undecided pair of its domain.

use crate::domain::{Domain, Duplicate, EnergyReading};
use crate::sources::dedup::domain_tree;
use crate::sources::dedup::duplicate_pair::DuplicatePair;

/// The interval between surveys while a pair is undecided; it doubles from the minimum to the maximum. Reads at the idle rate
/// cannot decide a pair.
const MIN_SURVEY_INTERVAL_NS: u64 = 500_000_000;
const MAX_SURVEY_INTERVAL_NS: u64 = 64_000_000_000;

/// Two domains, by index.
#[derive(Debug)]
pub(crate) struct TrackedPair {
    pub(crate) original: usize,
    pub(crate) copy: usize,
    /// As last reported.
    pub(crate) state: Duplicate,
    readings: DuplicatePair,
}

/// The membership of domains in the host's total, given the pairs.
#[derive(Debug)]
pub(crate) struct TotalMembership {
    /// The current parent of each domain.
    pub(crate) parents: Vec<Option<String>>,
    /// Whether the domain is part of the host's total.
    pub(crate) counted: Vec<bool>,
    /// Whether it would be part of it if all undecided pairs were independent.
    pub(crate) undecided: Vec<bool>,
}

#[derive(Debug, Default)]
pub(crate) struct DuplicateTracker {
    pairs: Vec<TrackedPair>,
    survey_due_ns: Option<u64>,
    survey_interval_ns: u64,
}

impl DuplicateTracker {
    /// Adds pairs; a pair with an unknown name is ignored.
    pub(crate) fn extend(&mut self, pairs: Vec<DuplicatePair>, domains: &[&Domain]) {
        let index_of = |name: &str| domains.iter().position(|domain| domain.name == name);
        let numbered = |readings: DuplicatePair| {
            let (original, copy) = (index_of(&readings.original)?, index_of(&readings.copy)?);
            Some(TrackedPair { original, copy, state: readings.state(), readings })
        };
        let before = self.pairs.len();
        self.pairs.extend(pairs.into_iter().filter_map(numbered));
        if self.pairs.len() > before {
            self.pairs.sort_by_key(|pair| (pair.copy, pair.original));
            (self.survey_due_ns, self.survey_interval_ns) = (None, MIN_SURVEY_INTERVAL_NS);
        }
    }

    /// Adds one reading of one domain.
    pub(crate) fn observe(&mut self, domain: usize, before_ns: u64, after_ns: u64, reading: &EnergyReading) {
        for pair in self.pairs.iter_mut().filter(|pair| pair.readings.is_revisable()) {
            if pair.original == domain {
                pair.readings.observe_original(before_ns, after_ns, reading);
            } else if pair.copy == domain {
                pair.readings.observe_copy(before_ns, after_ns, reading);
            }
        }
    }

    /// Decides pairs as far as the readings allow; calls `show` for each pair whose state has changed.
    pub(crate) fn resolve(&mut self, mut show: impl FnMut(&TrackedPair)) {
        for pair in self.pairs.iter_mut().filter(|pair| pair.readings.is_revisable()) {
            pair.readings.evaluate();
            let state = pair.readings.state();
            if std::mem::replace(&mut pair.state, state) != state {
                show(pair);
            }
        }
    }

    /// Whether a survey is due for an undecided pair of live domains.
    pub(crate) fn is_survey_due(&mut self, now_ns: u64, live: &[bool]) -> bool {
        let undecided =
            |pair: &TrackedPair| pair.state == Duplicate::Undecided && live[pair.original] && live[pair.copy];
        if !self.pairs.iter().any(undecided) {
            return false;
        }
        let due_ns = *self.survey_due_ns.get_or_insert(now_ns + self.survey_interval_ns);
        if now_ns < due_ns {
            return false;
        }
        self.survey_interval_ns = (2 * self.survey_interval_ns).min(MAX_SURVEY_INTERVAL_NS);
        self.survey_due_ns = Some(now_ns + self.survey_interval_ns);
        true
    }

    /// The state of a domain that may duplicate an earlier one, and the index of that one.
    pub(crate) fn state_of(&self, domain: usize) -> Option<(Duplicate, usize)> {
        let pairs = || self.pairs.iter().filter(|pair| pair.copy == domain);
        let in_state = |state: Duplicate| pairs().find(|pair| pair.state == state);
        let first = in_state(Duplicate::Same).or_else(|| in_state(Duplicate::Undecided)).or(pairs().next());
        first.map(|pair| (pair.state, pair.original))
    }

    /// The membership of `domains`, which have the parents that their sources name.
    pub(crate) fn membership(&self, domains: &[Domain], live: &[bool]) -> TotalMembership {
        let with = |is_one: fn(Duplicate) -> bool| {
            let mut domains = domains.to_vec();
            // In reverse, so that the earliest original becomes the parent.
            for pair in self.pairs.iter().rev().filter(|pair| is_one(pair.state) && live[pair.original]) {
                domains[pair.copy].parent = Some(domains[pair.original].name.clone());
            }
            let counted = domain_tree::counted_in_total(&domains, live);
            (domains, counted)
        };
        let (domains, counted) = with(|state| state != Duplicate::Independent);
        let (_, possible) = with(|state| state == Duplicate::Same);
        let undecided =
            possible.iter().zip(&counted).map(|(possible, counted)| *possible && !counted).collect();
        TotalMembership {
            parents: domains.into_iter().map(|domain| domain.parent).collect(),
            counted,
            undecided,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::domain::{DomainKind, Grade};

    fn domain(name: &str, kind: DomainKind, parent: Option<&str>) -> Domain {
        Domain {
            name: name.into(),
            kind,
            source: "perf".into(),
            device: None,
            parent: parent.map(String::from),
            grade: Grade::Measured,
            ceiling_mw: None,
            latency_ns: 0,
            quantum_uj: 1,
        }
    }

    /// Three dies, the last with cores.
    fn dies() -> Vec<Domain> {
        vec![
            domain("package-0-die-0", DomainKind::Package, None),
            domain("package-0-die-1", DomainKind::Package, None),
            domain("package-0-die-2", DomainKind::Package, None),
            domain("core-0-die-2", DomainKind::Core, Some("package-0-die-2")),
        ]
    }

    fn tracker(domains: &[Domain]) -> DuplicateTracker {
        let packages = BTreeSet::from([0]);
        let mut pairs = Vec::new();
        for (nth, original) in domains.iter().enumerate() {
            pairs.extend(
                domains[nth + 1..]
                    .iter()
                    .filter_map(|copy| DuplicatePair::candidate(original, copy, &packages)),
            );
        }
        let mut tracker = DuplicateTracker::default();
        tracker.extend(pairs, &domains.iter().collect::<Vec<_>>());
        tracker
    }

    #[test]
    fn of_undecided_domains_only_the_first_live_one_is_counted() {
        let domains = dies();
        let tracker = tracker(&domains);
        let membership = tracker.membership(&domains, &[true; 4]);
        assert_eq!(membership.counted, [true, false, false, false]);
        assert_eq!(membership.undecided, [false, true, true, false]);
        let first = Some("package-0-die-0".to_owned());
        assert_eq!(membership.parents[..3], [None, first.clone(), first]);
        // Without the first, the second counts for both others; without two, the third and its child are undecided.
        let membership = tracker.membership(&domains, &[false, true, true, true]);
        assert_eq!(membership.counted, [false, true, false, false]);
        let membership = tracker.membership(&domains, &[true, false, false, true]);
        assert_eq!(membership.counted, [true, false, false, false], "the cores may lie within the first die");
        assert_eq!(membership.undecided, [false, false, false, true]);
    }

    #[test]
    fn a_psys_domain_leaves_no_domain_undecided() {
        let mut domains = dies();
        domains.push(domain("psys", DomainKind::Psys, None));
        let membership = tracker(&domains).membership(&domains, &[true; 5]);
        assert_eq!(membership.counted, [false, false, false, false, true]);
        assert_eq!(membership.undecided, [false; 5]);
    }

    #[test]
    fn readings_decide_each_pair_once_and_surveys_end_with_it() {
        let domains = dies();
        let mut tracker = tracker(&domains[..2]);
        assert_eq!(tracker.state_of(1), Some((Duplicate::Undecided, 0)));
        assert!(!tracker.is_survey_due(0, &[true, true]));
        assert!(!tracker.is_survey_due(MIN_SURVEY_INTERVAL_NS, &[true, false]), "one of them counts nothing");
        assert!(tracker.is_survey_due(MIN_SURVEY_INTERVAL_NS, &[true, true]));
        assert!(!tracker.is_survey_due(MIN_SURVEY_INTERVAL_NS + 1, &[true, true]));
        let reading = |energy_uj| EnergyReading { valid: true, energy_uj, ..EnergyReading::default() };
        for look in 0..4_u64 {
            let at_ns = look * 1_000_000;
            tracker.observe(0, at_ns, at_ns, &reading(look * 500));
            tracker.observe(1, at_ns, at_ns, &reading(look * 5_000));
        }
        let mut changes = Vec::new();
        tracker.resolve(|pair| changes.push((pair.original, pair.copy, pair.state)));
        tracker.resolve(|pair| changes.push((pair.original, pair.copy, pair.state)));
        assert_eq!(changes, [(0, 1, Duplicate::Independent)]);
        assert!(!tracker.is_survey_due(u64::MAX, &[true, true]));
        let membership = tracker.membership(&domains[..2], &[true; 2]);
        assert_eq!((membership.counted, membership.undecided), (vec![true, true], vec![false, false]));
    }
}
