//! The process share: the part of a span's share that belongs to a process tree or control group, by its use (CPU time,
//! GPU time).
//!
//! Owns, for each *basis* (a resource whose use is sampled for each subject: 0 is CPU time) its usage samples, and for
//! each *subject* (a process with its descendants, a control group) and domain an accumulator `process_g` beside the
//! domain's `g`: where `g` grows by dE/W, `process_g` grows by dE/W × used/total, with used and total constant between
//! two samples. A span's part is its share × (process_g(close) − process_g(open)) / (g(close) − g(open)). Nothing
//! happens when a span opens or closes; the figures are made when they are asked for. Invariant, in integers: for
//! subjects that have nothing in common the parts of spans with the same edges, and a rest that is never negative, add
//! up to the share. What was not sampled is unknown, which is not 0.
//!
//! That energy goes with time used is a model, whatever the domain's own grade: a vector loop and a wait for memory
//! count alike, and so do a fast and a slow core.

use std::collections::{HashMap, VecDeque};

use super::domain_timeline::DomainTimeline;
use super::domain_tree::DomainTree;
use super::request::{BasisUsageSample, SpanKey, Subject};
use super::usage_history::{BasisUsageHistory, SubjectUsageHistory};

/// The basis of the CPU domains.
pub const CPU_TIME: usize = 0;

/// How far apart two rows of a domain are, at least.
const ROW_INTERVAL_NS: u64 = 20_000_000;
/// Rows kept of each domain; older edges of spans that are still open are kept in `opening_points`.
const MAX_ROWS: usize = 256;
/// Where a domain's clock, and with it a subject's, stood at some instant.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct ProcessPoint {
    pub(super) g: u128,
    pub(super) process_g: u128,
    /// How many times `process_g` was rounded down since the row before.
    pub(super) roundings: u128,
}

/// What one domain gave a span up to some instant, and the part of its subject, both times a common factor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProcessShare {
    /// Where the clocks stood at that instant.
    pub(super) point: ProcessPoint,
    pub(super) numerator: u128,
    pub(super) denominator: u128,
}

#[derive(Debug, Clone, Copy)]
struct VirtualEnergyRow {
    at_ns: u64,
    g: u128,
}

/// One domain that is split.
#[derive(Debug, Default)]
pub(super) struct SplitDomain {
    pub(super) basis: Option<usize>,
    rows: VecDeque<VirtualEnergyRow>,
    /// The number of the first row, and of the first that no subject's clock has reached, for lack of samples.
    first_row: u64,
    next_row: u64,
}

/// One subject's clock in one domain, by row.
#[derive(Debug, Default)]
struct ProcessRows {
    first_row: u64,
    rows: VecDeque<u128>,
}

#[derive(Debug)]
pub(super) struct SubjectEntry {
    pub(super) subject: Subject,
    span_count: usize,
    pub(super) usage: Vec<SubjectUsageHistory>,
    domain_rows: Vec<ProcessRows>,
}

/// All subjects and bases.
#[derive(Debug)]
pub(crate) struct ProcessShares {
    pub(super) split_domains: Vec<SplitDomain>,
    pub(super) bases: Vec<BasisUsageHistory>,
    pub(super) subjects: Vec<Option<SubjectEntry>>,
    subject_count: usize,
    /// Where long spans opened, by domain.
    pub(super) opening_points: HashMap<SpanKey, Vec<Option<ProcessPoint>>>,
    pub(super) domain_tree: DomainTree,
}

impl ProcessShares {
    pub(crate) fn new(timelines: &[DomainTimeline]) -> Self {
        let split_domain = |timeline: &DomainTimeline| SplitDomain {
            basis: default_basis(timeline),
            ..SplitDomain::default()
        };
        Self {
            split_domains: timelines.iter().map(split_domain).collect(),
            bases: vec![BasisUsageHistory::default()],
            subjects: Vec::new(),
            subject_count: 0,
            opening_points: HashMap::new(),
            domain_tree: DomainTree::of(timelines.iter().map(|timeline| &timeline.domain)),
        }
    }

    /// A domain was added after the others.
    pub(crate) fn add_domain(&mut self, timelines: &[DomainTimeline]) {
        let new = timelines.iter().skip(self.split_domains.len());
        self.split_domains.extend(
            new.map(|timeline| SplitDomain { basis: default_basis(timeline), ..SplitDomain::default() }),
        );
        self.opening_points.values_mut().for_each(|points| points.resize(timelines.len(), None));
        self.update_domain_tree(timelines);
    }

    /// Which domain lies in which changed.
    pub(crate) fn update_domain_tree(&mut self, timelines: &[DomainTimeline]) {
        self.domain_tree = DomainTree::of(timelines.iter().map(|timeline| &timeline.domain));
    }

    /// From now on this domain is split by this basis.
    pub(crate) fn set_basis(&mut self, domain: usize, basis: usize) {
        if let Some(split_domain) = self.split_domains.get_mut(domain) {
            split_domain.basis = Some(basis);
            let bases = self.bases.len().max(basis + 1);
            self.bases.resize_with(bases, BasisUsageHistory::default);
        }
    }

    /// Adds a subject; gives its number, which is never 0.
    pub(crate) fn add_subject(&mut self, subject: Subject, timelines: &[DomainTimeline]) -> u32 {
        let entry = SubjectEntry { subject, span_count: 0, usage: Vec::new(), domain_rows: Vec::new() };
        self.subject_count += 1;
        let index = self.subjects.iter().position(Option::is_none).unwrap_or(self.subjects.len());
        if index == self.subjects.len() {
            self.subjects.push(None);
        }
        self.subjects[index] = Some(entry);
        self.record_rows(timelines);
        u32::try_from(index + 1).expect("subjects are few")
    }

    /// Removes a subject that no span refers to; returns whether it did.
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

    /// What is to be said where the subject's use is not known.
    pub(crate) fn set_unknown_reason(&mut self, subject: u32, reason: Option<String>) {
        if let Some(Some(entry)) = self.subjects.get_mut(subject_index(subject)) {
            entry.subject.reason = reason;
        }
    }

    /// A span of this subject opens.
    #[inline]
    pub(crate) fn add_span(&mut self, subject: u32) {
        if let Some(Some(entry)) = self.subjects.get_mut(subject_index(subject)) {
            entry.span_count += 1;
        }
    }

    /// A span of this subject is removed.
    #[inline]
    pub(crate) fn remove_span(&mut self, subject: u32, key: SpanKey) {
        if let Some(Some(entry)) = self.subjects.get_mut(subject_index(subject)) {
            entry.span_count -= 1;
        }
        if !self.opening_points.is_empty() {
            self.opening_points.remove(&key);
        }
    }

    /// Whether there is a subject of this number.
    pub(crate) fn has_subject(&self, subject: u32) -> bool {
        matches!(self.subjects.get(subject_index(subject)), Some(Some(_)))
    }

    /// Whether there is any subject.
    pub(crate) fn is_empty(&self) -> bool {
        self.subject_count == 0
    }

    /// Whether spans of the subject are open or unsettled.
    pub(crate) fn has_spans_of(&self, subject: u32) -> bool {
        matches!(self.subjects.get(subject_index(subject)), Some(Some(entry)) if entry.span_count > 0)
    }

    /// What was used up to an instant.
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

    /// The domains have settled further: notes where their clocks stand. Gives the instant before which spans' opening
    /// points are to be recorded, where the oldest rows are about to be dropped.
    pub(crate) fn record_rows(&mut self, timelines: &[DomainTimeline]) -> Option<(usize, u64)> {
        if self.subject_count == 0 {
            return None;
        }
        let mut full = None;
        for (domain, timeline) in timelines.iter().enumerate() {
            let Some(basis) = self.split_domains[domain].basis else { continue };
            let (at_ns, g) = (timeline.interpolator.position_ns(), timeline.interpolator.virtual_energy.g);
            let last = self.split_domains[domain].rows.back().copied();
            if last.is_none_or(|last| at_ns >= last.at_ns + ROW_INTERVAL_NS) {
                self.split_domains[domain].rows.push_back(VirtualEnergyRow { at_ns, g });
            }
            self.catch_up(domain, basis);
            let split_domain = &self.split_domains[domain];
            if split_domain.rows.len() > MAX_ROWS {
                full = Some((domain, split_domain.rows[MAX_ROWS / 2].at_ns));
            }
        }
        full
    }

    /// Brings the subjects' clocks up to the last row that the samples cover.
    fn catch_up(&mut self, domain: usize, basis: usize) {
        let (split_domain, basis_usage) = (&mut self.split_domains[domain], &self.bases[basis]);
        let Some(covered_ns) = basis_usage.last_sample_ns() else { return };
        while let Some(row) = split_domain
            .rows
            .get((split_domain.next_row - split_domain.first_row) as usize)
            .filter(|row| row.at_ns <= covered_ns)
        {
            let previous = (split_domain.next_row - split_domain.first_row)
                .checked_sub(1)
                .and_then(|index| split_domain.rows.get(index as usize));
            for entry in self.subjects.iter_mut().flatten() {
                let process_energy = match (previous, entry.usage.get(basis)) {
                    (Some(previous), Some(usage)) => {
                        basis_usage
                            .subject_energy_until(
                                usage,
                                (previous.at_ns, row.at_ns),
                                row.at_ns,
                                row.g - previous.g,
                            )
                            .0
                    }
                    _ => 0,
                };
                if entry.domain_rows.len() <= domain {
                    entry.domain_rows.resize_with(domain + 1, ProcessRows::default);
                }
                let process_rows = &mut entry.domain_rows[domain];
                if process_rows.rows.is_empty() {
                    process_rows.first_row = split_domain.next_row;
                }
                let process_g = process_rows.rows.back().copied().unwrap_or(0) + process_energy;
                process_rows.rows.push_back(process_g);
            }
            split_domain.next_row += 1;
        }
    }

    /// Drops the older half of a domain's rows; what older spans need of them is in `opening_points`.
    pub(crate) fn drop_oldest_rows(&mut self, domain: usize) {
        let split_domain = &mut self.split_domains[domain];
        split_domain.rows.drain(..MAX_ROWS / 2);
        split_domain.first_row += (MAX_ROWS / 2) as u64;
        split_domain.next_row = split_domain.next_row.max(split_domain.first_row);
        for entry in self.subjects.iter_mut().flatten() {
            if let Some(process_rows) = entry.domain_rows.get_mut(domain) {
                let dropped = split_domain
                    .first_row
                    .saturating_sub(process_rows.first_row)
                    .min(process_rows.rows.len() as u64);
                process_rows.rows.drain(..dropped as usize);
                process_rows.first_row += dropped;
            }
        }
        for basis in 0..self.bases.len() {
            let split_domains =
                self.split_domains.iter().filter(|split_domain| split_domain.basis == Some(basis));
            let oldest =
                split_domains.filter_map(|split_domain| split_domain.rows.front()).map(|row| row.at_ns).min();
            let first_interval = self.bases[basis].drop_before(oldest.unwrap_or(0));
            for usage in self.subjects.iter_mut().flatten().filter_map(|entry| entry.usage.get_mut(basis)) {
                usage.drop_before(first_interval);
            }
        }
    }

    /// Up to which instant no later reading or sample moves a subject's clock in this domain.
    pub(super) fn settled_ns(&self, domain: usize) -> u64 {
        let split_domain = &self.split_domains[domain];
        let last = (split_domain.next_row - split_domain.first_row)
            .checked_sub(1)
            .and_then(|index| split_domain.rows.get(index as usize));
        last.map_or(0, |row| row.at_ns)
    }

    /// Where a domain's clock and a subject's stood at an instant that the rows, or the interpolant since the last one,
    /// hold.
    pub(super) fn point_at(
        &self,
        domain: usize,
        subject: u32,
        at_ns: u64,
        timeline: &DomainTimeline,
    ) -> Option<ProcessPoint> {
        let (split_domain, entry) =
            (&self.split_domains[domain], self.subjects.get(subject_index(subject))?.as_ref()?);
        let (basis, usage) = (&self.bases[split_domain.basis?], entry.usage.get(split_domain.basis?)?);
        let here = split_domain.rows.partition_point(|row| row.at_ns <= at_ns).checked_sub(1)?;
        let base = (split_domain.next_row - split_domain.first_row)
            .checked_sub(1)
            .map_or(0, |base| here.min(base as usize));
        // Before its first row a subject's clock stood at 0: nothing had been sampled.
        let row_number = split_domain.first_row + base as u64;
        let process_rows = entry.domain_rows.get(domain);
        let base_g = process_rows.and_then(|process_rows| {
            process_rows.rows.get(row_number.checked_sub(process_rows.first_row)? as usize)
        });
        let (mut process_g, mut roundings) = (base_g.copied().unwrap_or(0), 0);
        let now = VirtualEnergyRow {
            at_ns: timeline.interpolator.position_ns(),
            g: timeline.interpolator.virtual_energy.g,
        };
        let mut g = split_domain.rows[here].g;
        for at in base..=here {
            let (row, next) = (split_domain.rows[at], split_domain.rows.get(at + 1).copied().unwrap_or(now));
            let until_ns =
                if at == here { at_ns.clamp(row.at_ns, next.at_ns.max(row.at_ns)) } else { next.at_ns };
            let energy = next.g.saturating_sub(row.g);
            let process_energy = basis.subject_energy_until(usage, (row.at_ns, next.at_ns), until_ns, energy);
            (process_g, roundings) = (process_g + process_energy.0, roundings + process_energy.1);
            if at == here {
                g += mul_div(energy, until_ns - row.at_ns, next.at_ns.saturating_sub(row.at_ns));
            }
        }
        Some(ProcessPoint { g, process_g, roundings })
    }
}

pub(super) fn subject_index(subject: u32) -> usize {
    (subject as usize).wrapping_sub(1)
}

/// What is split by CPU time: what CPUs draw, and the memory beside them, of whose traffic the kernel keeps no account
/// by process. Not the graphics beside the cores, nor a whole board.
fn default_basis(timeline: &DomainTimeline) -> Option<usize> {
    use crate::domain::DomainKind::{Core, Cpu, Dram, Package};
    matches!(timeline.domain.kind, Package | Core | Dram | Cpu).then_some(CPU_TIME)
}

impl SplitDomain {
    fn clear(&mut self) {
        self.first_row += self.rows.len() as u64;
        self.next_row = self.first_row;
        self.rows.clear();
    }
}

/// `of × past / all`, rounded down.
pub(super) fn mul_div(of: u128, past: u64, all: u64) -> u128 {
    if past >= all { of } else { of.saturating_mul(u128::from(past)) / u128::from(all) }
}
