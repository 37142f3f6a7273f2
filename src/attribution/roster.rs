//! All spans, by slot, each with one mark for each domain.
//!
//! Owns the slots. Invariant: a slot is given away again only after every domain of its span has passed the span's close.

use std::hint::black_box;

use super::mark::Mark;
use super::queue::{Edge, Event};
use super::span::{Lane, Life, Span};
use super::terms::{Opening, SpanKey};

/// All spans, by slot.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    spans: Vec<Span>,
    marks: Vec<Mark>,
    /// By slot: domains that have not passed the span's close, one bit each.
    pending: Vec<u64>,
    free: Vec<u32>,
    stride: usize,
    /// The generation of the slots that were given up: a later slot of the same number begins after it.
    generation: u32,
}

impl Roster {
    pub(crate) fn new(stride: usize) -> Self {
        Self { stride, ..Self::default() }
    }

    /// Room for one more domain in every slot.
    pub(crate) fn widen(&mut self) {
        let wider = self.stride + 1;
        let mut marks = Vec::with_capacity(self.spans.len() * wider);
        for own in self.marks.chunks(self.stride.max(1)).take(self.spans.len()) {
            marks.extend_from_slice(own);
            marks.push(Mark::default());
        }
        marks.resize(self.spans.len() * wider, Mark::default());
        (self.marks, self.stride) = (marks, wider);
        for span in &mut self.spans {
            if let Some(story) = &mut span.story {
                story.lanes.resize(wider, Lane::default());
            }
        }
    }

    /// How many slots are in use.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.spans.len() - self.free.len()
    }

    /// How many slots there are, in use or not.
    pub(crate) fn slots(&self) -> usize {
        self.spans.len()
    }

    /// Takes a slot for a new span.
    #[inline]
    pub(crate) fn admit(&mut self, opening: Opening, opened_ns: u64, weight: u64, scope: u64) -> SpanKey {
        let slot = self.free.pop().unwrap_or_else(|| self.grow());
        let at = slot as usize;
        self.pending[at] = scope;
        for mark in &mut self.marks[at * self.stride..(at + 1) * self.stride] {
            mark.wait();
        }
        let span = &mut self.spans[at];
        span.begin(opening, opened_ns, weight, scope);
        SpanKey::new(slot, span.generation)
    }

    /// One slot more.
    #[cold]
    fn grow(&mut self) -> u32 {
        let slot = u32::try_from(self.spans.len()).expect("the ledger caps open spans far below 2^32");
        self.spans.push(Span { generation: self.generation, ..Span::default() });
        self.pending.push(0);
        self.marks.resize(self.spans.len() * self.stride, Mark::default());
        slot
    }

    /// Gives the slot away again and hands out what is left of the span.
    #[inline]
    pub(crate) fn release(&mut self, slot: u32) -> &mut Span {
        self.free.push(slot);
        let span = &mut self.spans[slot as usize];
        span.clear();
        span
    }

    /// Gives up the free slots at the end, but none below `least`, to which waiting edges refer.
    pub(crate) fn shrink(&mut self, least: usize) {
        let used = self.spans.iter().rposition(|span| span.life != Life::Free).map_or(0, |last| last + 1);
        let slots = used.max(least).min(self.spans.len());
        let dropped = self.spans[slots..].iter().map(|span| span.generation).max();
        self.generation = self.generation.max(dropped.unwrap_or(0));
        self.spans.truncate(slots);
        self.marks.truncate(slots * self.stride);
        self.pending.truncate(slots);
        self.free.retain(|slot| (*slot as usize) < slots);
        self.spans.shrink_to_fit();
        self.marks.shrink_to_fit();
        self.pending.shrink_to_fit();
        self.free.shrink_to_fit();
    }

    /// The span of a key, unless it is gone.
    #[inline]
    pub(crate) fn find(&self, key: SpanKey) -> Option<&Span> {
        self.spans
            .get(key.slot())
            .filter(|span| span.generation == key.generation() && span.life != Life::Free)
    }

    /// The same, to change it.
    #[inline]
    pub(crate) fn find_mut(&mut self, key: SpanKey) -> Option<&mut Span> {
        self.spans
            .get_mut(key.slot())
            .filter(|span| span.generation == key.generation() && span.life != Life::Free)
    }

    /// The span of an event; `None` where it has left its slot, or closed, before the event's time.
    #[inline]
    pub(crate) fn span_of(&mut self, event: &Event) -> Option<&mut Span> {
        let span = &mut self.spans[event.slot as usize];
        (!span.gone && span.generation as u16 == event.generation).then_some(span)
    }

    /// The mark of a span's domain.
    #[inline]
    pub(crate) fn mark(&mut self, slot: u32, domain: usize) -> &mut Mark {
        &mut self.marks[slot as usize * self.stride + domain]
    }

    /// Looks at all marks of the spans that these events close. They lie anywhere in a large memory: asked for together
    /// they come together, asked for one by one, amid everything else that an edge needs, each would be waited for.
    pub(crate) fn touch(&self, events: &[Event]) {
        for event in events.iter().filter(|event| event.edge == Edge::Close) {
            let at = event.slot as usize * self.stride;
            for mark in &self.marks[at..at + self.stride] {
                black_box(mark.stage());
            }
        }
    }

    /// The mark, and what the span gathered for this domain before.
    pub(crate) fn mark_and_lane(&mut self, slot: u32, domain: usize) -> (&mut Mark, &mut Lane) {
        let span = &mut self.spans[slot as usize];
        let lane = &mut span.story(self.stride).lanes[domain];
        (&mut self.marks[slot as usize * self.stride + domain], lane)
    }

    /// One more domain has passed the span's close; true when it was the last.
    #[inline]
    pub(crate) fn passed(&mut self, slot: u32, domain: usize) -> bool {
        let pending = &mut self.pending[slot as usize];
        *pending &= !(1 << domain);
        *pending == 0
    }

    /// A live slot's span and marks, by domain.
    #[inline]
    pub(crate) fn view(&self, slot: u32) -> (&Span, &[Mark]) {
        let at = slot as usize;
        (&self.spans[at], &self.marks[at * self.stride..(at + 1) * self.stride])
    }

    #[inline]
    pub(crate) fn span_mut(&mut self, slot: u32) -> &mut Span {
        &mut self.spans[slot as usize]
    }

    /// Every span that has a slot.
    pub(crate) fn live(&self) -> impl Iterator<Item = (SpanKey, &Span)> {
        let taken = self.spans.iter().zip(0..).filter(|(span, _)| span.life != Life::Free);
        taken.map(|(span, slot)| (SpanKey::new(slot, span.generation), span))
    }

    /// The same, to change them.
    pub(crate) fn live_mut(&mut self) -> impl Iterator<Item = &mut Span> {
        self.spans.iter_mut().filter(|span| span.life != Life::Free)
    }

    #[inline]
    pub(crate) fn key(&self, slot: u32) -> SpanKey {
        SpanKey::new(slot, self.spans[slot as usize].generation)
    }
}
