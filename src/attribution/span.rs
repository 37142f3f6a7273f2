//! The unsettled spans: a table of slots, each with a span and its state in each domain.
//!
//! A [`Span`] holds what does not depend on the domain, a [`SpanDomainState`] the domain's clock at the span's edges.
//! Invariants: a slot is reused only after every domain has passed its span's close, and no pending edge of a span is
//! after its close; a key contains a number that no later span of the slot has.

use std::collections::BTreeMap;
use std::hint::black_box;

use super::error_bounds::AccumulatedError;
use super::request::{NewSpan, SpanKey};
use super::virtual_energy::{DomainClock, whole_uj};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum SlotState {
    #[default]
    Free,
    Open,
    Closing,
}

/// The end of a phase as one domain passed it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PhaseEnd {
    /// The span's share up to it, 2^-64 µJ.
    pub share: u128,
    /// The phase's error, µJ.
    pub error: f64,
}

/// The error so far of a step function in one domain, µJ: of a span, or of a phase.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepError {
    /// The error before the latest group with an edge of its own.
    pub error: f64,
    /// The error of that group: the sum over its edges, and the sum limited to the group's maximum.
    pub edge_sum: f64,
    pub edge_error: f64,
    /// The domain's accumulated error after that group.
    pub accumulated_error: u64,
    /// The smallest and the largest weight in that group.
    pub min_weight: u64,
    pub max_weight: u64,
    /// That group, by the begin of its step.
    pub group_ns: u64,
}

impl StepError {
    /// The error before a later group, where the domain's accumulated error is `accumulated`; `weight` is the weight
    /// since the latest edge.
    pub(crate) fn error_before_group(&self, accumulated: u64, weight: u64) -> f64 {
        self.error + self.edge_error + AccumulatedError::since(self.accumulated_error, accumulated, weight)
    }
}

/// A span with phases or changes of weight in one domain: the energy before its last change of weight, 2^-64 µJ,
/// and the errors of the span and of its current phase, as far as the domain has passed such edges.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpanDomainHistory {
    pub share: u128,
    pub idle: u128,
    pub span_error: Option<StepError>,
    pub phase_error: Option<StepError>,
    pub phase_ends: Vec<PhaseEnd>,
    /// The number of changes of weight that the domain has passed.
    pub weight_changes: u64,
}

/// A span's phases and changes of weight. Few spans have a history.
#[derive(Debug, Default)]
pub(crate) struct SpanHistory {
    /// The begin and the name of each phase, in the order of time.
    pub phases: Vec<(u64, String)>,
    pub domains: Vec<SpanDomainHistory>,
    /// The weight at the pre-pass.
    pub pre_pass_weight: u64,
    /// The number of changes of weight so far.
    pub weight_changes: u64,
    /// The sum of the times by which its phase and weight edges were moved from the requested ones.
    pub moved_ns: u64,
    /// The latest of its phase and weight edges.
    pub last_edge_ns: u64,
}

impl SpanHistory {
    /// Records the time of a new edge that was requested at `requested_ns`.
    pub(crate) fn add_edge(&mut self, requested_ns: u64, at_ns: u64) {
        self.moved_ns += at_ns - requested_ns;
        self.last_edge_ns = self.last_edge_ns.max(at_ns);
    }

    /// The number of changes of weight that some domain of the scope has not passed.
    fn unsettled_weight_changes(&self, scope: u64) -> u64 {
        let passed = domains_of(scope).map(|domain| self.domains[domain].weight_changes).min();
        self.weight_changes - passed.unwrap_or(self.weight_changes)
    }
}

/// A span, in two cache lines of a large table. Its closing reads the first, and writes to the second, which loads that one
/// too without a wait.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub(crate) struct Span {
    pub opened_ns: u64,
    /// The sum of the times by which its opening and closing were moved from the requested ones. The history has the
    /// sum of the other edges.
    pub moved_ns: u64,
    /// The domains it uses, one bit each.
    pub scope: u64,
    /// The part of `scope` that is in the host's total.
    pub counted: u64,
    /// The latest weight, 2^-16.
    pub weight: u64,
    pub history: Option<Box<SpanHistory>>,
    /// Its number among all spans, wrapping.
    pub number: u32,
    /// The subject of its process share; 0: none.
    pub subject: u32,
    pub peak_concurrency: u32,
    pub slot_state: SlotState,
    pub cancelled: bool,
    /// Whether a domain of `scope` is left out of the total but may belong to it.
    pub has_undecided: bool,
    /// Whether a domain of `scope` is replayed from a file.
    pub is_simulated: bool,
    // The second line.
    pub closed_ns: u64,
    pub opened_unix_ns: u64,
    pub id: Box<str>,
    pub name: Box<str>,
    /// `None` instead of an empty map.
    #[allow(clippy::box_collection, reason = "nearly all spans have none, and a span fills two cache lines")]
    pub attributes: Option<Box<BTreeMap<String, String>>>,
    pub uid: u32,
    pub abandoned: bool,
}

const _: () = assert!(size_of::<Span>() == 128 && std::mem::offset_of!(Span, closed_ns) == 64);

impl Span {
    /// The opening that the client requested. Valid only while the span is open.
    #[inline]
    pub(crate) fn requested_ns(&self) -> u64 {
        self.opened_ns - self.moved_ns
    }

    #[inline]
    fn has_key(&self, key: SpanKey) -> bool {
        self.number == key.number() && self.slot_state != SlotState::Free
    }

    #[inline]
    pub(crate) fn uses(&self, domain: usize) -> bool {
        (self.scope >> domain) & 1 == 1
    }

    /// Starts a new span in this slot. Assigns field by field, because a whole new `Span` would be written twice.
    #[inline]
    pub(crate) fn begin(&mut self, new_span: NewSpan, opened_ns: u64, weight: u64, scope: u64) {
        let NewSpan { span_id, name, attributes, at_ns, uid, opened_unix_ns, subject, .. } = new_span;
        self.slot_state = SlotState::Open;
        self.id = span_id.into();
        self.name = name.into();
        self.attributes = (!attributes.is_empty()).then(|| Box::new(attributes));
        (self.uid, self.subject) = (uid, subject);
        self.opened_ns = opened_ns;
        self.closed_ns = 0;
        self.moved_ns = opened_ns - at_ns.min(opened_ns);
        self.opened_unix_ns = opened_unix_ns;
        self.weight = weight;
        self.scope = scope;
        self.peak_concurrency = 0;
        (self.abandoned, self.cancelled) = (false, false);
    }

    /// The sum of the times by which all of its edges were moved from the requested ones.
    pub(crate) fn total_moved_ns(&self) -> u64 {
        self.moved_ns + self.history.as_ref().map_or(0, |history| history.moved_ns)
    }

    /// Whether at least `limit` changes of weight wait for a domain's counter.
    pub(crate) fn has_unsettled_weight_changes(&self, limit: u64) -> bool {
        self.history.as_ref().is_some_and(|history| {
            history.weight_changes >= limit && history.unsettled_weight_changes(self.scope) >= limit
        })
    }

    /// The span's history, created on first use.
    pub(crate) fn history_mut(&mut self, domains: usize) -> &mut SpanHistory {
        self.history.get_or_insert_with(|| {
            Box::new(SpanHistory {
                domains: vec![SpanDomainHistory::default(); domains],
                pre_pass_weight: self.weight,
                ..SpanHistory::default()
            })
        })
    }
}

/// The domains of a scope, from its bits.
#[inline]
pub(crate) fn domains_of(mut scope: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let domain = (scope != 0).then(|| scope.trailing_zeros() as usize)?;
        scope &= scope - 1;
        Some(domain)
    })
}

const IDLE_UNKNOWN: u64 = u64::MAX;

/// The progress of one domain with one span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpanDomainStage {
    Pending,
    Open,
    /// The state holds the final results.
    Closed,
}

/// The state of one span in one domain: the clock's values from the opening to the close, then the results. One cache
/// line, because every edge of a span accesses one state in each domain.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
pub(crate) struct SpanDomainState {
    /// Open: the clock's `g` at the opening or the last change of weight. Closed: the share, 2^-64 µJ.
    pub g: u128,
    /// Open: the energy at the opening, 2^-8 µJ, wrapping. Closed: the window, µJ.
    pub energy: u64,
    /// Open: the clock's idle part at that edge, 2^-20 µJ per unit. Closed: the idle part, µJ.
    pub idle_g: u64,
    /// Open: the domain's covered time at the opening. Closed: the time of the span that no reading covers.
    pub uncovered_ns: u64,
    /// The domain's accumulated error after that edge's group, as [`AccumulatedError::stored`] returns it.
    pub accumulated_error: u64,
    /// Open: the error of the latest edge's group, µJ. Closed: the span's error.
    pub edge_error: f64,
    /// The weight from that edge on (at most 37 bits), shifted left by 2; the stage in the lowest 2 bits.
    weight_and_stage: u64,
}

impl SpanDomainState {
    /// The weight from the latest weight edge on.
    #[inline]
    pub(crate) fn weight(&self) -> u64 {
        self.weight_and_stage >> 2
    }

    #[inline]
    pub(crate) fn is_at(&self, stage: SpanDomainStage) -> bool {
        self.weight_and_stage & 3 == stage as u64
    }

    /// Resets the stage for a new span in the slot; [`Self::open`] overwrites the other fields.
    #[inline]
    pub(crate) fn reset(&mut self) {
        self.weight_and_stage = SpanDomainStage::Pending as u64;
    }

    /// Opens the span in this domain.
    #[inline]
    pub(crate) fn open(&mut self, clock: &DomainClock, weight: u64, idle_known: bool) {
        self.g = clock.g;
        self.energy = clock.energy;
        self.idle_g = if idle_known { clock.idle_g } else { IDLE_UNKNOWN };
        self.uncovered_ns = clock.covered_ns;
        self.weight_and_stage = weight << 2 | SpanDomainStage::Open as u64;
    }

    /// Changes the weight from this clock on.
    pub(crate) fn change_weight(&mut self, clock: &DomainClock, weight: u64) {
        self.g = clock.g;
        if self.idle_g != IDLE_UNKNOWN {
            self.idle_g = clock.idle_g;
        }
        self.weight_and_stage = weight << 2 | SpanDomainStage::Open as u64;
    }

    /// The share since the last weight edge, 2^-64 µJ.
    #[inline]
    pub(crate) fn share(&self, clock: &DomainClock) -> u128 {
        u128::from(self.weight()) * (clock.g - self.g)
    }

    /// The idle part of [`Self::share`], 2^-64 µJ; `None` if no idle power was known at the opening.
    #[inline]
    pub(crate) fn idle_share(&self, clock: &DomainClock) -> Option<u128> {
        self.idle_uj().map(|idle_g| clock.idle_since(idle_g, self.weight()))
    }

    /// The idle part of a closed state, µJ; `None` if no idle power was known at the opening.
    #[inline]
    pub(crate) fn idle_uj(&self) -> Option<u64> {
        (self.idle_g != IDLE_UNKNOWN).then_some(self.idle_g)
    }

    /// Closes the span in this domain after `length_ns`, and stores the results. `before` is the (share, idle part) before
    /// the last weight edge, 2^-64 µJ.
    #[inline]
    pub(crate) fn close(&mut self, clock: &DomainClock, before: (u128, u128), length_ns: u64, error: f64) {
        let share = before.0 + self.share(clock);
        let share_uj = whole_uj(share);
        self.idle_g = match self.idle_share(clock) {
            Some(idle) => whole_uj(before.1 + idle).min(share_uj),
            None => IDLE_UNKNOWN,
        };
        self.energy = clock.energy_uj_since(self.energy).max(share_uj);
        self.uncovered_ns = length_ns.saturating_sub(clock.covered_ns.wrapping_sub(self.uncovered_ns));
        self.g = share;
        self.edge_error = error;
        self.weight_and_stage = self.weight() << 2 | SpanDomainStage::Closed as u64;
    }
}

/// All unsettled spans, by slot.
#[derive(Debug, Default)]
pub(crate) struct SpanTable {
    spans: Vec<Span>,
    domain_states: Vec<SpanDomainState>,
    /// By slot: the domains that have not passed the span's close, one bit each.
    pending_domains: Vec<u64>,
    free_slots: Vec<u32>,
    domain_count: usize,
    last_number: u32,
}

impl SpanTable {
    /// Adds a state for one more domain to every slot.
    pub(crate) fn add_domain(&mut self) {
        let domain_count = self.domain_count + 1;
        let mut states = Vec::with_capacity(self.spans.len() * domain_count);
        for slot_states in self.domain_states.chunks(self.domain_count.max(1)).take(self.spans.len()) {
            states.extend_from_slice(slot_states);
            states.push(SpanDomainState::default());
        }
        states.resize(self.spans.len() * domain_count, SpanDomainState::default());
        (self.domain_states, self.domain_count) = (states, domain_count);
        for span in &mut self.spans {
            if let Some(history) = &mut span.history {
                history.domains.resize(domain_count, SpanDomainHistory::default());
            }
        }
    }

    /// The number of slots in use.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.spans.len() - self.free_slots.len()
    }

    /// The number of slots, in use or not.
    pub(crate) fn slot_count(&self) -> usize {
        self.spans.len()
    }

    /// Stores a new span in a free slot.
    #[inline]
    pub(crate) fn insert(
        &mut self,
        new_span: NewSpan,
        opened_ns: u64,
        weight: u64,
        scope: u64,
    ) -> (SpanKey, &mut Span) {
        let slot = self.free_slots.pop().unwrap_or_else(|| self.add_slot());
        let at = slot as usize;
        self.pending_domains[at] = scope;
        for state in &mut self.domain_states[at * self.domain_count..(at + 1) * self.domain_count] {
            state.reset();
        }
        let span = &mut self.spans[at];
        span.begin(new_span, opened_ns, weight, scope);
        self.last_number = self.last_number.wrapping_add(1);
        span.number = self.last_number;
        (SpanKey::new(slot, span.number), span)
    }

    #[cold]
    fn add_slot(&mut self) -> u32 {
        let slot = u32::try_from(self.spans.len()).expect("max_open_spans is far below 2^32");
        self.spans.push(Span::default());
        self.pending_domains.push(0);
        self.domain_states.resize(self.spans.len() * self.domain_count, SpanDomainState::default());
        slot
    }

    /// Clears the span and frees its slot.
    #[inline]
    pub(crate) fn release(&mut self, slot: u32) {
        self.free_slots.push(slot);
        let span = &mut self.spans[slot as usize];
        span.slot_state = SlotState::Free;
        (span.id, span.name) = (Box::default(), Box::default());
        (span.attributes, span.history) = (None, None);
    }

    /// Drops the free slots at the end.
    pub(crate) fn shrink(&mut self) {
        let last = self.spans.iter().rposition(|span| span.slot_state != SlotState::Free);
        let slots = last.map_or(0, |last| last + 1);
        self.spans.truncate(slots);
        self.domain_states.truncate(slots * self.domain_count);
        self.pending_domains.truncate(slots);
        self.free_slots.retain(|slot| (*slot as usize) < slots);
        self.spans.shrink_to_fit();
        self.domain_states.shrink_to_fit();
        self.pending_domains.shrink_to_fit();
        self.free_slots.shrink_to_fit();
    }

    /// The span of a key; `None` if it is settled.
    #[inline]
    pub(crate) fn get(&self, key: SpanKey) -> Option<&Span> {
        self.spans.get(key.slot() as usize).filter(|span| span.has_key(key))
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: SpanKey) -> Option<&mut Span> {
        self.spans.get_mut(key.slot() as usize).filter(|span| span.has_key(key))
    }

    #[inline]
    pub(crate) fn domain_state_mut(&mut self, slot: u32, domain: usize) -> &mut SpanDomainState {
        &mut self.domain_states[slot as usize * self.domain_count + domain]
    }

    /// Reads all cache lines of a span and its states. They are spread over a large memory: if those of many spans are read
    /// together, their cache misses overlap; at the commits and for the account, each would stall.
    #[inline]
    pub(crate) fn prefetch(&self, slot: u32) {
        let (span, states) = self.span_and_states(slot);
        black_box(span.uid);
        states.iter().for_each(|state| {
            black_box(state.weight_and_stage);
        });
    }

    /// A span's state and history in one domain; creates the history on first use.
    pub(crate) fn state_and_history(
        &mut self,
        slot: u32,
        domain: usize,
    ) -> (&mut SpanDomainState, &mut SpanDomainHistory) {
        let span = &mut self.spans[slot as usize];
        let history = &mut span.history_mut(self.domain_count).domains[domain];
        (&mut self.domain_states[slot as usize * self.domain_count + domain], history)
    }

    /// Records that the domain has passed the span's close. Returns whether it was the last domain.
    #[inline]
    pub(crate) fn mark_passed(&mut self, slot: u32, domain: usize) -> bool {
        let pending = &mut self.pending_domains[slot as usize];
        *pending &= !(1 << domain);
        *pending == 0
    }

    /// Like [`Self::span_and_states`], with a span that can be taken apart.
    #[inline]
    pub(crate) fn span_mut_and_states(&mut self, slot: u32) -> (&mut Span, &[SpanDomainState]) {
        let at = slot as usize;
        let states = &self.domain_states[at * self.domain_count..(at + 1) * self.domain_count];
        (&mut self.spans[at], states)
    }

    /// The span of a slot, and its states by domain.
    #[inline]
    pub(crate) fn span_and_states(&self, slot: u32) -> (&Span, &[SpanDomainState]) {
        let at = slot as usize;
        (&self.spans[at], &self.domain_states[at * self.domain_count..(at + 1) * self.domain_count])
    }

    #[inline]
    pub(crate) fn span_mut(&mut self, slot: u32) -> &mut Span {
        &mut self.spans[slot as usize]
    }

    /// All spans with their keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SpanKey, &Span)> {
        let taken = self.spans.iter().zip(0..).filter(|(span, _)| span.slot_state != SlotState::Free);
        taken.map(|(span, slot)| (SpanKey::new(slot, span.number), span))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Span> {
        self.spans.iter_mut().filter(|span| span.slot_state != SlotState::Free)
    }

    #[inline]
    pub(crate) fn key_of(&self, slot: u32) -> SpanKey {
        SpanKey::new(slot, self.spans[slot as usize].number)
    }
}
