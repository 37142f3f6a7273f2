//! The process share: the part of a span's share that belongs to a process tree or control group, by CPU or GPU time.
//!
//! A *basis* is a resource whose use is sampled for each subject (0: CPU time). A *subject* is a process with its
//! descendants, or a control group. Each subject and domain has an accumulator `process_g` beside the domain's `g`:
//! where `g` grows by dE/W, `process_g` grows by dE/W × used/total, with used and total constant between two samples.
//! The process share is share × (process_g(close) − process_g(open)) / (g(close) − g(open)). Opening or closing a span
//! does no work here; a share is computed for each account. Invariant, in integers: for disjoint subjects, the process
//! shares of spans with the same edges and a rest that is never negative add up to the share. Time without a sample is
//! unknown, not 0.
//!
//! This is a model, whatever the domain's grade: it counts the same energy for each unit of time, for a vector loop and
//! a wait for memory, a fast and a slow core.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use wattspan_client::account::Share;

use super::domain_timeline::DomainTimeline;
use super::edge_queue::{IndexedQueue, WeightChange};
use super::process_history::{
    BasisUsageHistory, FOLD_THRESHOLD, ProcessPoint, ProcessShare, SubjectUsageHistory, WeightHistory,
    mul_div,
};
use super::request::{BasisUsageSample, SpanKey, Subject};
use super::span::{SlotState, Span, domains_of};
use crate::domain::Domain;

/// The basis of the CPU domains.
pub const CPU_TIME: usize = 0;

/// The minimum time between two rows of a domain.
const ROW_INTERVAL_NS: u64 = 20_000_000;
/// The number of rows per domain. For older openings of open spans, see `opening_points`.
const MAX_ROWS: usize = 256;
/// The maximum time of a span before the first or after the last sample of its subject: this time, or this fraction of
/// the span, whichever is longer. The use in that time is taken as the same as in the sampled time.
const MAX_UNSAMPLED_NS: u64 = 50_000_000;
const MAX_UNSAMPLED_DIVISOR: u64 = 8;
const NO_COVERING_SAMPLE: &str = "no usage sample covers the span";
const NO_SPLIT_DOMAIN: &str = "no counted domain of the span is split by CPU time";

#[derive(Debug, Clone, Copy)]
struct VirtualEnergyRow {
    at_ns: u64,
    g: u128,
}

/// A domain and the basis that splits it.
#[derive(Debug, Default)]
struct SplitDomain {
    basis: Option<usize>,
    rows: IndexedQueue<VirtualEnergyRow>,
    /// The first row that the subjects' accumulators have not reached for lack of samples.
    next_row: u64,
}

/// A domain whose rows are full. The spans that opened within these times need the rows that will be dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FullRows {
    pub(crate) domain: usize,
    pub(crate) opened_ns: RangeInclusive<u64>,
}

#[derive(Debug)]
struct SubjectEntry {
    subject: Subject,
    span_count: usize,
    /// By basis.
    usage: Vec<SubjectUsageHistory>,
    /// `process_g` by domain and row.
    domain_rows: Vec<IndexedQueue<u128>>,
}

/// The process share of a span: its subject, and the sum over the domains or the reason why there is none.
#[derive(Debug, Default)]
pub(crate) struct SubjectShare {
    pub process: Option<u32>,
    pub cgroup: Option<String>,
    pub process_uj: Option<u64>,
    pub reason: Option<String>,
}

/// All subjects and bases.
#[derive(Debug, Default)]
pub(crate) struct ProcessShares {
    split_domains: Vec<SplitDomain>,
    bases: Vec<BasisUsageHistory>,
    subjects: Vec<Option<SubjectEntry>>,
    subject_count: usize,
    /// The accumulators at the openings of long spans: a few for each, because 100,000 spans may be open.
    opening_points: HashMap<SpanKey, Vec<ProcessPoint>>,
    /// The weights of the spans of subjects whose weight has changed.
    pub(crate) weight_histories: HashMap<SpanKey, WeightHistory>,
    domain_tree: DomainTree,
}

impl ProcessShares {
    /// Adds the domains at the end that are new.
    pub(crate) fn add_domain(&mut self, timelines: &[DomainTimeline]) {
        for timeline in &timelines[self.split_domains.len()..] {
            self.split_domains.push(SplitDomain::default());
            if let Some(basis) = default_basis(timeline) {
                self.set_basis(timeline.index(), basis);
            }
        }
        self.update_domain_tree(timelines);
    }

    /// Updates the parents of the domains.
    pub(crate) fn update_domain_tree(&mut self, timelines: &[DomainTimeline]) {
        self.domain_tree = DomainTree::of(timelines.iter().map(|timeline| &timeline.domain));
    }

    /// Sets the basis that splits the domain from now on.
    pub(crate) fn set_basis(&mut self, domain: usize, basis: usize) {
        if let Some(split_domain) = self.split_domains.get_mut(domain) {
            split_domain.basis = Some(basis);
            let bases = self.bases.len().max(basis + 1);
            self.bases.resize_with(bases, BasisUsageHistory::default);
        }
    }

    /// Adds a subject and returns its number, which is never 0.
    pub(crate) fn add_subject(&mut self, subject: Subject, timelines: &[DomainTimeline]) -> u32 {
        let entry = SubjectEntry { subject, span_count: 0, usage: Vec::new(), domain_rows: Vec::new() };
        self.subject_count += 1;
        // The basis CPU time is there in any case.
        self.bases.resize_with(self.bases.len().max(CPU_TIME + 1), BasisUsageHistory::default);
        let index = self.subjects.iter().position(Option::is_none).unwrap_or(self.subjects.len());
        if index == self.subjects.len() {
            self.subjects.push(None);
        }
        self.subjects[index] = Some(entry);
        self.record_rows(timelines);
        u32::try_from(index + 1).expect("fewer than 2^32 subjects")
    }

    /// Removes a subject that no span refers to. Returns whether it was removed.
    pub(crate) fn remove_subject(&mut self, subject: u32) -> bool {
        let Some(slot) = self.subjects.get_mut(subject_index(subject)) else { return false };
        if slot.as_ref().is_none_or(|entry| entry.span_count > 0) {
            return false;
        }
        *slot = None;
        self.subject_count -= 1;
        if self.subject_count == 0 {
            self.split_domains.iter_mut().for_each(SplitDomain::clear);
            self.bases.iter_mut().for_each(|basis| *basis = BasisUsageHistory::default());
        }
        true
    }

    fn entry(&self, subject: u32) -> Option<&SubjectEntry> {
        self.subjects.get(subject_index(subject))?.as_ref()
    }

    fn entry_mut(&mut self, subject: u32) -> Option<&mut SubjectEntry> {
        self.subjects.get_mut(subject_index(subject))?.as_mut()
    }

    /// Sets the reason in accounts where the subject's use is unknown.
    pub(crate) fn set_unknown_reason(&mut self, subject: u32, reason: Option<String>) {
        if let Some(entry) = self.entry_mut(subject) {
            entry.subject.reason = reason;
        }
    }

    /// Counts a new span of the subject.
    #[inline]
    pub(crate) fn add_span(&mut self, subject: u32) {
        if let Some(entry) = self.entry_mut(subject) {
            entry.span_count += 1;
        }
    }

    /// Removes a span of the subject.
    #[inline]
    pub(crate) fn remove_span(&mut self, subject: u32, key: SpanKey) {
        if let Some(entry) = self.entry_mut(subject) {
            entry.span_count -= 1;
        }
        // Nearly always, both are empty.
        if !self.opening_points.is_empty() || !self.weight_histories.is_empty() {
            self.opening_points.remove(&key);
            self.weight_histories.remove(&key);
        }
    }

    /// Whether a subject has this number.
    pub(crate) fn has_subject(&self, subject: u32) -> bool {
        self.entry(subject).is_some()
    }

    /// Whether there are no subjects.
    pub(crate) fn is_empty(&self) -> bool {
        self.subject_count == 0
    }

    /// Whether a span of the subject is open or unsettled.
    pub(crate) fn has_spans_of(&self, subject: u32) -> bool {
        self.entry(subject).is_some_and(|entry| entry.span_count > 0)
    }

    /// Adds a sample of the use up to an instant.
    pub(crate) fn record_usage(&mut self, sample: &BasisUsageSample<'_>) {
        let Some(basis) = self.bases.get_mut(sample.basis) else { return };
        let mut sums = (0_u64, 0_u64);
        for subject_usage in sample.subjects {
            let Some(Some(entry)) = self.subjects.get_mut(subject_index(subject_usage.subject)) else {
                continue;
            };
            if entry.usage.len() <= sample.basis {
                entry.usage.resize_with(sample.basis + 1, SubjectUsageHistory::default);
            }
            let usage = &mut entry.usage[sample.basis];
            let rise =
                usage.add_sample(basis.next_interval(), sample.at_ns, sample.total.and(subject_usage.amount));
            sums = (sums.0.max(rise), sums.1.saturating_add(if subject_usage.disjoint { rise } else { 0 }));
        }
        basis.add_sample(sample.at_ns, sample.total, sums.0.max(sums.1));
    }

    /// Records the domains' clocks after they have settled further. Where a domain's rows are full, the caller records the
    /// opening points of the spans that opened within the returned times, then drops the oldest rows.
    pub(crate) fn record_rows(&mut self, timelines: &[DomainTimeline]) -> Option<FullRows> {
        if self.subject_count == 0 {
            return None;
        }
        let mut full = None;
        for (domain, timeline) in timelines.iter().enumerate() {
            let Some(basis) = self.split_domains[domain].basis else { continue };
            let (at_ns, g) = (timeline.virtual_energy.position_ns, timeline.virtual_energy.coarse_g());
            let rows = &mut self.split_domains[domain].rows;
            if rows.all().last().is_none_or(|last| at_ns >= last.at_ns + ROW_INTERVAL_NS) {
                rows.push(VirtualEnergyRow { at_ns, g });
            }
            self.catch_up(domain, basis);
            let rows = &self.split_domains[domain].rows;
            if rows.len() > MAX_ROWS {
                // The spans that opened by the first row got their points when the rows before it were dropped.
                let from_ns = if rows.first_index() == 0 { 0 } else { rows.all()[0].at_ns + 1 };
                full = Some(FullRows { domain, opened_ns: from_ns..=rows.all()[MAX_ROWS / 2].at_ns });
            }
        }
        full
    }

    /// Advances the subjects' accumulators to the last row that the samples cover.
    fn catch_up(&mut self, domain: usize, basis: usize) {
        let (split_domain, basis_usage) = (&mut self.split_domains[domain], &self.bases[basis]);
        let Some(covered_ns) = basis_usage.last_sample_ns() else { return };
        while let Some(row) =
            split_domain.rows.get(split_domain.next_row).filter(|row| row.at_ns <= covered_ns)
        {
            let previous = split_domain.last_reached();
            for entry in self.subjects.iter_mut().flatten() {
                let energy = previous.zip(entry.usage.get(basis)).map(|(previous, usage)| {
                    let times = (previous.at_ns, row.at_ns);
                    basis_usage.subject_energy_until(usage, times, row.at_ns, row.g - previous.g).0
                });
                if entry.domain_rows.len() <= domain {
                    entry.domain_rows.resize_with(domain + 1, IndexedQueue::default);
                }
                let process_rows = &mut entry.domain_rows[domain];
                process_rows.begin_at(split_domain.next_row);
                let process_g = process_rows.all().last().copied().unwrap_or(0) + energy.unwrap_or(0);
                process_rows.push(process_g);
            }
            split_domain.next_row += 1;
        }
    }

    /// Drops the older half of a domain's rows; `opening_points` keeps those that older spans need.
    pub(crate) fn drop_oldest_rows(&mut self, domain: usize) {
        let split_domain = &mut self.split_domains[domain];
        let first_row = split_domain.rows.first_index() + (MAX_ROWS / 2) as u64;
        split_domain.rows.drop_before(first_row);
        split_domain.next_row = split_domain.next_row.max(first_row);
        for process_rows in self.subjects.iter_mut().flatten().filter_map(|s| s.domain_rows.get_mut(domain)) {
            process_rows.drop_before(first_row);
        }
        for basis in 0..self.bases.len() {
            let split_domains =
                self.split_domains.iter().filter(|split_domain| split_domain.basis == Some(basis));
            let oldest = split_domains
                .filter_map(|split_domain| split_domain.rows.all().first())
                .map(|row| row.at_ns)
                .min();
            let first_interval = self.bases[basis].drop_before(oldest.unwrap_or(0));
            for usage in self.subjects.iter_mut().flatten().filter_map(|entry| entry.usage.get_mut(basis)) {
                usage.drop_before(first_interval);
            }
        }
    }

    /// The instant up to which the subjects' accumulators in this domain are final.
    fn settled_ns(&self, domain: usize) -> u64 {
        self.split_domains[domain].last_reached().map_or(0, |row| row.at_ns)
    }

    /// A domain's `g` and a subject's `process_g` at an instant that the rows or the interpolant since the last row
    /// cover.
    fn point_at(&self, timeline: &DomainTimeline, subject: u32, at_ns: u64) -> Option<ProcessPoint> {
        let domain = timeline.index();
        let (split_domain, entry) = (&self.split_domains[domain], self.entry(subject)?);
        let (basis, usage) = (&self.bases[split_domain.basis?], entry.usage.get(split_domain.basis?)?);
        let (rows, first_row) = (split_domain.rows.all(), split_domain.rows.first_index());
        let here = rows.partition_point(|row| row.at_ns <= at_ns).checked_sub(1)?;
        let base = here.min(split_domain.next_row.saturating_sub(first_row + 1) as usize);
        // Before a subject's first row its accumulator is 0: there was no sample.
        let base_g = entry.domain_rows.get(domain).and_then(|rows| rows.get(first_row + base as u64));
        let (mut process_g, mut roundings) = (base_g.copied().unwrap_or(0), 0);
        let now = VirtualEnergyRow {
            at_ns: timeline.virtual_energy.position_ns,
            g: timeline.virtual_energy.coarse_g(),
        };
        let mut g = rows[here].g;
        for at in base..=here {
            let (row, next) = (rows[at], rows.get(at + 1).copied().unwrap_or(now));
            let until_ns =
                if at == here { at_ns.clamp(row.at_ns, next.at_ns.max(row.at_ns)) } else { next.at_ns };
            let energy = next.g.saturating_sub(row.g);
            let process_energy = basis.subject_energy_until(usage, (row.at_ns, next.at_ns), until_ns, energy);
            (process_g, roundings) = (process_g + process_energy.0, roundings + process_energy.1);
            if at == here {
                g += mul_div(energy, until_ns - row.at_ns, next.at_ns.saturating_sub(row.at_ns));
            }
        }
        Some(ProcessPoint { g, process_g, roundings, domain: domain as u32 })
    }

    /// Records the accumulators at a long span's opening, before their row is dropped.
    pub(crate) fn record_opening_point(
        &mut self,
        domain: usize,
        key: SpanKey,
        span: &Span,
        timelines: &[DomainTimeline],
    ) {
        if self.recorded_point(domain, key).is_some() || !self.has_spans_of(span.subject) {
            return;
        }
        if let Some(point) = self.point_at(&timelines[domain], span.subject, span.opened_ns) {
            let points = self.opening_points.entry(key).or_default();
            points.reserve_exact(1);
            points.push(point);
        }
    }

    /// Frees memory that many long spans used.
    pub(crate) fn shrink(&mut self) {
        self.opening_points.shrink_to(2 * self.opening_points.len());
        self.weight_histories.shrink_to(2 * self.weight_histories.len());
    }

    fn recorded_point(&self, domain: usize, key: SpanKey) -> Option<ProcessPoint> {
        let points = self.opening_points.get(&key)?;
        points.iter().find(|point| point.domain as usize == domain).copied()
    }

    /// The subject's part of the span's share of one domain, as a numerator and a denominator.
    fn process_fraction(
        &self,
        span: &Span,
        key: SpanKey,
        timeline: &DomainTimeline,
        end_ns: u64,
    ) -> Option<(u128, u128)> {
        let basis = self.split_domains[timeline.index()].basis?;
        let (usage, basis) = (self.entry(span.subject)?.usage.get(basis)?, &self.bases[basis]);
        let (from_ns, to_ns) =
            (span.opened_ns, end_ns.min(timeline.virtual_energy.position_ns).max(span.opened_ns));
        let (first_ns, last_ns) = (usage.known_since_ns(from_ns, to_ns)?, basis.last_sample_ns()?);
        let lead_ns = MAX_UNSAMPLED_NS.max((to_ns - from_ns) / MAX_UNSAMPLED_DIVISOR);
        let tail_ns = lead_ns.max(basis.sampling_tolerance_ns());
        if first_ns > from_ns.saturating_add(lead_ns) || to_ns > last_ns.saturating_add(tail_ns) {
            return None;
        }
        let (begin_ns, end_ns) = (from_ns.max(first_ns), to_ns.min(last_ns));
        if begin_ns >= end_ns {
            // The whole span lies outside the samples: use the nearest one.
            return basis.nearest_fraction(usage, from_ns);
        }
        let history = self.weight_histories.get(&key);
        // A weight that never changed cancels out.
        let only = history.is_none().then_some((span.weight.max(1), end_ns)).into_iter();
        let weights = only.chain(history.into_iter().flat_map(|history| history.weights(end_ns)));
        let weights = weights.map(|(weight, until_ns)| (weight, until_ns.clamp(begin_ns, end_ns)));
        let ProcessShare { numerator, denominator, .. } =
            self.share_over(span, key, timeline, begin_ns, weights)?;
        if denominator == 0 { basis.nearest_fraction(usage, from_ns) } else { Some((numerator, denominator)) }
    }

    /// The span's process share in a domain from `begin_ns` on, over these weights, each with its end. The weights before
    /// them are folded.
    fn share_over(
        &self,
        span: &Span,
        key: SpanKey,
        timeline: &DomainTimeline,
        begin_ns: u64,
        weights: impl Iterator<Item = (u64, u64)>,
    ) -> Option<ProcessShare> {
        let history = self.weight_histories.get(&key);
        let mut process_share = match history.and_then(|history| history.folded_share(timeline.index())) {
            Some(folded) => folded,
            None => {
                let recorded =
                    self.recorded_point(timeline.index(), key).filter(|_| begin_ns == span.opened_ns);
                ProcessShare::from(recorded.or_else(|| self.point_at(timeline, span.subject, begin_ns))?)
            }
        };
        for (weight, until_ns) in weights {
            process_share.add(weight, self.point_at(timeline, span.subject, until_ns)?);
        }
        Some(process_share)
    }

    /// Records a change of weight. Returns whether the span's weights should be folded.
    pub(crate) fn record_weight_change(&mut self, change: &WeightChange) -> bool {
        let history = self.weight_histories.entry(change.key).or_default();
        history.record_change(change);
        history.intervals.len() >= FOLD_THRESHOLD
    }

    /// The spans with weights that can be folded.
    pub(crate) fn spans_with_weights(&self) -> Vec<SpanKey> {
        let filled = self.weight_histories.iter().filter(|(_, history)| !history.intervals.is_empty());
        filled.map(|(key, _)| *key).collect()
    }

    /// Folds the span's weights up to the instant at which its subject's accumulators are final in every split domain.
    /// Has no effect where the subject's use is unknown: the process share is absent then, and the intervals are
    /// bounded.
    pub(crate) fn fold_weights(&mut self, span: &Span, key: SpanKey, timelines: &[DomainTimeline]) {
        let Some(history) = self.weight_histories.get(&key) else { return };
        let split =
            || domains_of(span.scope).filter_map(|domain| Some((domain, self.split_domains[domain].basis?)));
        let final_ns = split().map(|(domain, _)| self.settled_ns(domain)).min().unwrap_or(0);
        let count = history.intervals.partition_point(|interval| interval.until_ns <= final_ns);
        let Some(last) = count.checked_sub(1).map(|last| history.intervals[last]) else { return };
        let process_share = |(domain, basis): (usize, usize)| {
            let usage = self.entry(span.subject)?.usage.get(basis)?;
            let begin_ns = span.opened_ns.max(usage.known_since_ns(span.opened_ns, last.until_ns)?);
            let weights = history.weights(last.until_ns).take(count);
            let weights = weights.map(|(weight, until_ns)| (weight, until_ns.max(begin_ns)));
            self.share_over(span, key, &timelines[domain], begin_ns, weights)
        };
        let Some(folded) = split().map(process_share).collect::<Option<Vec<_>>>() else { return };
        if let Some(history) = self.weight_histories.get_mut(&key) {
            history.intervals.drain(..count);
            history.folded = folded;
        }
    }

    /// Adds the process share of the span's subject to the shares of the span's domains.
    pub(crate) fn split(
        &self,
        shares: &mut [Share],
        span: &Span,
        key: SpanKey,
        timelines: &[DomainTimeline],
    ) -> SubjectShare {
        let Some(entry) = self.entry(span.subject) else { return SubjectShare::default() };
        let end_ns = if span.slot_state == SlotState::Open { u64::MAX } else { span.closed_ns };
        let mut sum = Some(0_u64);
        let mut any = false;
        for (domain, share) in domains_of(span.scope).zip(shares) {
            let fraction = self.process_fraction(span, key, &timelines[domain], end_ns);
            share.process_uj =
                share.share_uj.zip(fraction).map(|(uj, (part, whole))| mul_fraction(uj, part, whole));
            if self.is_outermost_split(domain, span) {
                any = true;
                sum = sum.zip(share.process_uj).map(|(sum, uj)| sum + uj);
            }
        }
        let Subject { process, cgroup, reason } = entry.subject.clone();
        let process_uj = sum.filter(|_| any);
        let default_reason = if any { NO_COVERING_SAMPLE } else { NO_SPLIT_DOMAIN };
        let reason = process_uj.is_none().then(|| reason.unwrap_or_else(|| default_reason.to_owned()));
        SubjectShare { process, cgroup, process_uj, reason }
    }

    /// Whether the domain is part of the sum: it is split by CPU time, it or an ancestor is in the host's total, and no
    /// ancestor is split by CPU time.
    fn is_outermost_split(&self, domain: usize, span: &Span) -> bool {
        let used = |at: usize| (span.scope >> at) & 1 == 1;
        let split = |at: usize| self.split_domains[at].basis == Some(CPU_TIME) && used(at);
        let counted = |at: usize| (span.counted >> at) & 1 == 1;
        let mut ancestors = self.domain_tree.ancestors(domain);
        split(domain) && (counted(domain) || ancestors.clone().any(counted)) && !ancestors.any(split)
    }
}

fn subject_index(subject: u32) -> usize {
    (subject as usize).wrapping_sub(1)
}

/// CPU time splits the energy of CPUs and of their memory, whose traffic the kernel does not count by process. It does
/// not split integrated graphics or a whole board.
fn default_basis(timeline: &DomainTimeline) -> Option<usize> {
    use crate::domain::DomainKind::{Core, Cpu, Dram, Package};
    matches!(timeline.domain.kind, Package | Core | Dram | Cpu).then_some(CPU_TIME)
}

impl SplitDomain {
    /// The last row that the subjects' accumulators have reached.
    fn last_reached(&self) -> Option<VirtualEnergyRow> {
        self.rows.get(self.next_row.checked_sub(1)?).copied()
    }

    fn clear(&mut self) {
        self.next_row = self.rows.end_index();
        self.rows.drop_before(self.next_row);
    }
}

/// `uj × numerator / denominator`, rounded down.
fn mul_fraction(uj: u64, numerator: u128, denominator: u128) -> u64 {
    let shift = (128 - denominator.leading_zeros()).saturating_sub(63);
    let (numerator, denominator) = (numerator >> shift, (denominator >> shift).max(1));
    u64::try_from(u128::from(uj) * numerator / denominator).unwrap_or(u64::MAX).min(uj)
}

/// The parents of all domains, by index.
#[derive(Debug, Default)]
struct DomainTree {
    parents: Vec<Option<usize>>,
}

impl DomainTree {
    fn of<'a>(domains: impl Iterator<Item = &'a Domain> + Clone) -> Self {
        let number = |name: &String| domains.clone().position(|domain| domain.name == *name);
        Self { parents: domains.clone().map(|domain| domain.parent.as_ref().and_then(number)).collect() }
    }

    /// The domains that contain this one, the nearest first. Bounded by the number of domains, in case sources report a
    /// cycle.
    fn ancestors(&self, domain: usize) -> impl Iterator<Item = usize> + Clone + '_ {
        let parent = |at: &usize| self.parents.get(*at).copied().flatten();
        std::iter::successors(parent(&domain), parent).take(self.parents.len())
    }
}
