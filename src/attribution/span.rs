//! An unsettled span, and its history of phases and changes of weight.
//!
//! Owns what does not depend on the domain; each domain keeps a `SpanDomainState` of it. Invariant: its generation
//! distinguishes late edges of the slot's old span from those of the new.

use std::collections::BTreeMap;

use super::process_share::ProcessShare;
use super::request::NewSpan;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum SlotState {
    #[default]
    Free,
    Open,
    Closing,
}

/// A phase's boundary as one domain passed it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PhaseBoundary {
    /// The span's share up to here, energy units.
    pub share: u128,
    /// The error of the boundary, error units; until that is known, the most that the span weighs here.
    pub edge_error: u64,
    /// The accumulated error before and after the boundary's group.
    pub accumulated_error: (u64, u64),
}

/// What one domain gathered for a span before its last change of weight.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpanDomainHistory {
    pub share: u128,
    pub idle: u128,
    pub error: u64,
    pub max_weight: u64,
    pub phase_boundaries: Vec<PhaseBoundary>,
    /// How many of the boundaries are passed.
    pub passed_boundaries: usize,
    /// Changes of weight that this domain has passed.
    pub weight_changes: u64,
}

/// Time with one weight, or with several that follow each other quickly.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WeightInterval {
    pub until_ns: u64,
    length_ns: u64,
    /// The sum of weight × time.
    weight_ns: u128,
}

impl WeightInterval {
    fn add(&mut self, until_ns: u64, length_ns: u64, weight: u64) {
        self.until_ns = until_ns;
        self.length_ns += length_ns;
        self.weight_ns += u128::from(weight) * u128::from(length_ns);
    }

    fn mean_weight(&self) -> u64 {
        u64::try_from(self.weight_ns / u128::from(self.length_ns.max(1))).unwrap_or(u64::MAX)
    }
}

/// What a span weighed until the pre-pass: only a process share needs it. Intervals that no later reading changes are
/// folded into `folded`, so that the memory does not grow with the number of changes.
#[derive(Debug, Default)]
pub(crate) struct WeightHistory {
    pub intervals: Vec<WeightInterval>,
    /// By domain, the process share up to the first of the intervals; empty before anything is folded.
    pub folded: Vec<Option<ProcessShare>>,
    since_ns: u64,
    weight: u64,
}

/// A process share resolves no shorter time: its rows are as far apart.
const WEIGHT_INTERVAL_NS: u64 = 20_000_000;
/// Intervals kept at most; beyond them the last one grows, and its weight is a mean.
pub(crate) const MAX_WEIGHT_INTERVALS: usize = 64;
/// From so many intervals on they are folded.
const FOLD_THRESHOLD: usize = 16;

impl WeightHistory {
    /// At `at_ns` the weight became `weight`; it was `before` since the opening, or the last change.
    fn record_change(&mut self, opened_ns: u64, at_ns: u64, before: u64, weight: u64) {
        let since_ns = self.since_ns.max(opened_ns);
        let length_ns = at_ns.saturating_sub(since_ns);
        (self.since_ns, self.weight) = (at_ns, weight);
        if length_ns == 0 {
            return;
        }
        let full = self.intervals.len() >= MAX_WEIGHT_INTERVALS;
        match self
            .intervals
            .last_mut()
            .filter(|last| full || last.length_ns + length_ns <= WEIGHT_INTERVAL_NS)
        {
            Some(last) => last.add(at_ns, length_ns, before),
            None => {
                let mut interval = WeightInterval { until_ns: at_ns, length_ns: 0, weight_ns: 0 };
                interval.add(at_ns, length_ns, before);
                self.intervals.push(interval);
            }
        }
    }

    /// Each weight with the instant at which it ends; the last one ends at `end_ns`.
    pub(crate) fn weights(&self, end_ns: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let intervals = self.intervals.iter().map(|interval| (interval.mean_weight(), interval.until_ns));
        intervals.chain([(self.weight, end_ns)])
    }
}

/// A span's history: phases and changes of weight; few spans have one.
#[derive(Debug, Default)]
pub(crate) struct SpanHistory {
    /// Boundaries in the order of time, with the name of what begins there.
    pub phases: Vec<(u64, String)>,
    pub domains: Vec<SpanDomainHistory>,
    pub weight_history: WeightHistory,
    /// Changes of weight so far.
    pub weight_changes: u64,
    /// How far phases and changes of weight were moved from where the client asked, together.
    pub moved_ns: u64,
}

impl SpanHistory {
    /// Changes of weight that some domain of the scope has not passed.
    fn unsettled_weight_changes(&self, scope: u64) -> u64 {
        let used = self.domains.iter().enumerate().filter(|(domain, _)| (scope >> domain) & 1 == 1);
        let passed = used.map(|(_, domain_history)| domain_history.weight_changes).min();
        self.weight_changes - passed.unwrap_or(self.weight_changes)
    }
}

/// A span. What its close and its settling need comes first and fills one cache line.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Span {
    pub opened_ns: u64,
    pub closed_ns: u64,
    /// How far its opening and closing were moved from where the client asked, together; the history has the other
    /// edges.
    pub moved_ns: u64,
    /// Domains it uses, one bit each.
    pub scope: u64,
    /// The weight at the pre-pass, and the index of the edge that set it.
    pub pre_pass_weight: u64,
    pub weight_edge: u64,
    pub generation: u32,
    pub peak_concurrency: u32,
    pub slot_state: SlotState,
    /// Whether the pre-pass has passed the close.
    pub close_passed: bool,
    pub abandoned: bool,
    pub cancelled: bool,
    /// Whether it has a history.
    pub has_history: bool,
    pub uid: u32,
    /// The subject of its process share; 0: none.
    pub subject: u32,
    /// Of its domains, those in the host's total.
    pub counted: u64,
    /// Those that were left out of the total although they may be part of it.
    pub undecided: u64,
    /// The latest weight, 2^-16.
    pub weight: u64,
    pub opened_unix_ns: u64,
    pub id: Box<str>,
    pub name: Box<str>,
    pub attributes: BTreeMap<String, String>,
    pub history: Option<Box<SpanHistory>>,
}

impl Span {
    /// The opening that the client requested; only while the span is open.
    #[inline]
    pub(crate) fn requested_ns(&self) -> u64 {
        self.opened_ns - self.moved_ns
    }

    /// A new span in this slot; field by field, for a whole new `Span` would be written twice.
    #[inline]
    pub(crate) fn begin(&mut self, new_span: NewSpan, opened_ns: u64, weight: u64, scope: u64) {
        let NewSpan { span_id, name, attributes, at_ns, uid, opened_unix_ns, subject, .. } = new_span;
        self.generation = self.generation.wrapping_add(1);
        self.slot_state = SlotState::Open;
        self.id = span_id.into();
        self.name = name.into();
        replace_attributes(&mut self.attributes, attributes);
        (self.uid, self.subject) = (uid, subject);
        self.opened_ns = opened_ns;
        self.closed_ns = 0;
        self.moved_ns = opened_ns - at_ns.min(opened_ns);
        self.opened_unix_ns = opened_unix_ns;
        self.weight = weight;
        self.scope = scope;
        self.counted = scope;
        self.peak_concurrency = 0;
        self.pre_pass_weight = 0;
        self.weight_edge = 0;
        (self.close_passed, self.abandoned, self.cancelled) = (false, false, false);
        if self.has_history {
            (self.has_history, self.history) = (false, None);
        }
    }

    /// How far all of its edges were moved from where the client asked, together.
    pub(crate) fn total_moved_ns(&self) -> u64 {
        self.moved_ns + self.history.as_ref().map_or(0, |history| history.moved_ns)
    }

    /// Whether at least `limit` changes of weight wait for a domain's counter.
    pub(crate) fn has_unsettled_weight_changes(&self, limit: u64) -> bool {
        self.history.as_ref().is_some_and(|history| {
            history.weight_changes >= limit && history.unsettled_weight_changes(self.scope) >= limit
        })
    }

    /// The pre-pass passes a change from the present weight to `weight`; whether the history is to be folded.
    #[cold]
    pub(crate) fn record_weight_change(&mut self, at_ns: u64, weight: u64) -> bool {
        let Some(history) = self.history.as_mut().filter(|_| self.subject != 0) else { return false };
        history.weight_history.record_change(self.opened_ns, at_ns, self.pre_pass_weight, weight);
        history.weight_history.intervals.len() >= FOLD_THRESHOLD
    }

    /// How many of the weight history's intervals end by `at_ns`, and where the last of them ends.
    pub(crate) fn weight_intervals_until(&self, at_ns: u64) -> (usize, u64) {
        let intervals = self.history.as_ref().map_or(&[][..], |history| &history.weight_history.intervals);
        let count = intervals.partition_point(|interval| interval.until_ns <= at_ns);
        (count, intervals[..count].last().map_or(0, |last| last.until_ns))
    }

    /// What is folded of its weights for a domain.
    pub(crate) fn folded_share(&self, domain: usize) -> Option<ProcessShare> {
        self.history.as_ref()?.weight_history.folded.get(domain).copied().flatten()
    }

    /// The first `count` intervals are in these process shares now.
    pub(crate) fn fold(&mut self, count: usize, shares: Vec<(usize, ProcessShare)>, domains: usize) {
        let Some(history) = &mut self.history else { return };
        history.weight_history.intervals.drain(..count);
        history.weight_history.folded.resize(domains, None);
        for (domain, share) in shares {
            history.weight_history.folded[domain] = Some(share);
        }
    }

    /// Whether its weight changed in time that is not folded yet.
    pub(crate) fn has_weight_intervals(&self) -> bool {
        self.history.as_ref().is_some_and(|history| !history.weight_history.intervals.is_empty())
    }

    /// Its weights up to the pre-pass, each with the instant at which it ends.
    pub(crate) fn weights(&self, end_ns: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let changed = self.history.as_ref().filter(|history| history.weight_history.since_ns > 0);
        // A weight that never changed cancels out.
        let only = changed.is_none().then_some((self.weight.max(1), end_ns));
        only.into_iter()
            .chain(changed.into_iter().flat_map(move |history| history.weight_history.weights(end_ns)))
    }

    /// Frees what a span owns, once it is settled.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.slot_state = SlotState::Free;
        (self.id, self.name) = (Box::default(), Box::default());
        replace_attributes(&mut self.attributes, BTreeMap::new());
        if self.has_history {
            (self.has_history, self.history) = (false, None);
        }
    }

    /// The span's history, created when first needed.
    pub(crate) fn history_mut(&mut self, domains: usize) -> &mut SpanHistory {
        self.has_history = true;
        self.history.get_or_insert_with(|| {
            Box::new(SpanHistory {
                domains: vec![SpanDomainHistory::default(); domains],
                ..SpanHistory::default()
            })
        })
    }
}

/// Puts attributes in the place of others. Nearly all maps are empty and own nothing, but to drop one costs as much as
/// an edge does: those are not dropped.
#[inline]
pub(crate) fn replace_attributes(old: &mut BTreeMap<String, String>, new: BTreeMap<String, String>) {
    if old.is_empty() && new.is_empty() {
        std::mem::forget(new);
    } else {
        *old = new;
    }
}

/// Adds attributes to others, likewise.
#[inline]
pub(crate) fn extend_attributes(old: &mut BTreeMap<String, String>, new: BTreeMap<String, String>) {
    if new.is_empty() {
        std::mem::forget(new);
    } else {
        old.extend(new);
    }
}
