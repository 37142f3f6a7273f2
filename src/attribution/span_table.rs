//! All spans, by slot, each with its state in each domain.
//!
//! Owns the slots. Invariant: a slot is reused only after every domain of its span has passed the span's close.

use std::hint::black_box;

use super::edge_queue::{Edge, EdgeKind};
use super::request::{NewSpan, SpanKey};
use super::span::{SlotState, Span, SpanDomainHistory};
use super::span_domain_state::SpanDomainState;

/// All spans, by slot.
#[derive(Debug, Default)]
pub(crate) struct SpanTable {
    spans: Vec<Span>,
    domain_states: Vec<SpanDomainState>,
    /// By slot: domains that have not passed the span's close, one bit each.
    pending_domains: Vec<u64>,
    free_slots: Vec<u32>,
    domain_count: usize,
    /// The generation of the slots that were dropped: a later slot of the same number begins after it.
    first_generation: u32,
}

impl SpanTable {
    pub(crate) fn new(domain_count: usize) -> Self {
        Self { domain_count, ..Self::default() }
    }

    /// Room for one more domain in every slot.
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

    /// How many slots are in use.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.spans.len() - self.free_slots.len()
    }

    /// How many slots there are, in use or not.
    pub(crate) fn slot_count(&self) -> usize {
        self.spans.len()
    }

    /// Takes a slot for a new span.
    #[inline]
    pub(crate) fn insert(&mut self, new_span: NewSpan, opened_ns: u64, weight: u64, scope: u64) -> SpanKey {
        let slot = self.free_slots.pop().unwrap_or_else(|| self.add_slot());
        let at = slot as usize;
        self.pending_domains[at] = scope;
        for state in &mut self.domain_states[at * self.domain_count..(at + 1) * self.domain_count] {
            state.reset();
        }
        let span = &mut self.spans[at];
        span.begin(new_span, opened_ns, weight, scope);
        SpanKey::new(slot, span.generation)
    }

    /// One slot more.
    #[cold]
    fn add_slot(&mut self) -> u32 {
        let slot = u32::try_from(self.spans.len()).expect("the ledger caps open spans far below 2^32");
        self.spans.push(Span { generation: self.first_generation, ..Span::default() });
        self.pending_domains.push(0);
        self.domain_states.resize(self.spans.len() * self.domain_count, SpanDomainState::default());
        slot
    }

    /// Frees the slot and returns what is left of the span.
    #[inline]
    pub(crate) fn release(&mut self, slot: u32) -> &mut Span {
        self.free_slots.push(slot);
        let span = &mut self.spans[slot as usize];
        span.clear();
        span
    }

    /// Drops the free slots at the end, but none below `min_slots`, to which waiting edges refer.
    pub(crate) fn shrink(&mut self, min_slots: usize) {
        let used =
            self.spans.iter().rposition(|span| span.slot_state != SlotState::Free).map_or(0, |last| last + 1);
        let slots = used.max(min_slots).min(self.spans.len());
        let dropped = self.spans[slots..].iter().map(|span| span.generation).max();
        self.first_generation = self.first_generation.max(dropped.unwrap_or(0));
        self.spans.truncate(slots);
        self.domain_states.truncate(slots * self.domain_count);
        self.pending_domains.truncate(slots);
        self.free_slots.retain(|slot| (*slot as usize) < slots);
        self.spans.shrink_to_fit();
        self.domain_states.shrink_to_fit();
        self.pending_domains.shrink_to_fit();
        self.free_slots.shrink_to_fit();
    }

    /// The span of a key, unless it is gone.
    #[inline]
    pub(crate) fn get(&self, key: SpanKey) -> Option<&Span> {
        self.spans
            .get(key.slot())
            .filter(|span| span.generation == key.generation() && span.slot_state != SlotState::Free)
    }

    /// The same, to change it.
    #[inline]
    pub(crate) fn get_mut(&mut self, key: SpanKey) -> Option<&mut Span> {
        self.spans
            .get_mut(key.slot())
            .filter(|span| span.generation == key.generation() && span.slot_state != SlotState::Free)
    }

    /// The span of an edge; `None` where it has left its slot, or closed, before the edge's time.
    #[inline]
    pub(crate) fn span_of_edge(&mut self, edge: &Edge) -> Option<&mut Span> {
        let span = &mut self.spans[edge.slot as usize];
        (!span.close_passed && span.generation as u16 == edge.generation).then_some(span)
    }

    /// A span's state in one domain.
    #[inline]
    pub(crate) fn domain_state_mut(&mut self, slot: u32, domain: usize) -> &mut SpanDomainState {
        &mut self.domain_states[slot as usize * self.domain_count + domain]
    }

    /// Reads all states of the spans that these edges close. They lie anywhere in a large memory: loaded together
    /// the cache misses overlap; loaded one by one, amid everything else that an edge needs, each would be a stall.
    pub(crate) fn prefetch_closing(&self, edges: &[Edge]) {
        for edge in edges.iter().filter(|edge| edge.kind == EdgeKind::Close) {
            let at = edge.slot as usize * self.domain_count;
            for state in &self.domain_states[at..at + self.domain_count] {
                black_box(state.stage());
            }
        }
    }

    /// The state, and what the span gathered for this domain before.
    pub(crate) fn state_and_history(
        &mut self,
        slot: u32,
        domain: usize,
    ) -> (&mut SpanDomainState, &mut SpanDomainHistory) {
        let span = &mut self.spans[slot as usize];
        let history = &mut span.history_mut(self.domain_count).domains[domain];
        (&mut self.domain_states[slot as usize * self.domain_count + domain], history)
    }

    /// One more domain has passed the span's close; true when it was the last.
    #[inline]
    pub(crate) fn mark_passed(&mut self, slot: u32, domain: usize) -> bool {
        let pending = &mut self.pending_domains[slot as usize];
        *pending &= !(1 << domain);
        *pending == 0
    }

    /// A live slot's span and states, by domain.
    #[inline]
    pub(crate) fn span_and_states(&self, slot: u32) -> (&Span, &[SpanDomainState]) {
        let at = slot as usize;
        (&self.spans[at], &self.domain_states[at * self.domain_count..(at + 1) * self.domain_count])
    }

    #[inline]
    pub(crate) fn span_mut(&mut self, slot: u32) -> &mut Span {
        &mut self.spans[slot as usize]
    }

    /// Every span that has a slot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SpanKey, &Span)> {
        let taken = self.spans.iter().zip(0..).filter(|(span, _)| span.slot_state != SlotState::Free);
        taken.map(|(span, slot)| (SpanKey::new(slot, span.generation), span))
    }

    /// The same, to change them.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Span> {
        self.spans.iter_mut().filter(|span| span.slot_state != SlotState::Free)
    }

    #[inline]
    pub(crate) fn key_of(&self, slot: u32) -> SpanKey {
        SpanKey::new(slot, self.spans[slot as usize].generation)
    }
}
