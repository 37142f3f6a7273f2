//! Spans while the ledger knows them: who they are, and where each domain's clock stood at their edges.
//!
//! Owns the slots. Invariant: a slot is given away again only after every domain of its span has passed the span's
//! close; its generation tells late events of the old span from those of the new. A `Mark` is what one domain
//! remembers of one span: the clock's readings at the opening until the close, the results from then on.

use std::collections::BTreeMap;
use std::hint::black_box;

use super::queue::{Edge, Event};
use super::share::{FINE_BITS, ShareClock};
use super::terms::{Opening, SpanKey};

/// Errors are kept in grains of 2^-12 µJ; this one stands for "no guarantee can be given". A few of them can be added
/// up without a look at the carry.
pub(crate) const NO_BOUND: u64 = 1 << 60;
/// Grains in a microjoule, as a power of two.
pub(crate) const GRAIN_BITS: u32 = 12;

const IDLE_UNKNOWN: u64 = u64::MAX;
const IDLE_SHIFT: u32 = 12;
const ENERGY_SHIFT: u32 = 24;
const WOBBLE_SHIFT: u32 = 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Life {
    #[default]
    Free,
    Open,
    Closing,
}

/// How far one domain has come with one span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Waiting,
    Running,
    /// The results stand.
    Done,
}

/// Where a domain's clock stands, as marks keep it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stand {
    /// Fine per unit of weight.
    pub g: u128,
    /// What the domain used, 2^-8 µJ, wrapping.
    pub energy: u64,
    /// Idle, 2^-20 µJ per unit of weight, wrapping.
    pub idle: u64,
    /// Time for which nothing vouches.
    pub unknown_ns: u64,
}

impl Stand {
    #[inline]
    pub(crate) fn of(clock: &ShareClock, unknown_ns: u64) -> Self {
        Self {
            g: clock.g,
            energy: (clock.measured >> ENERGY_SHIFT) as u64,
            idle: (clock.idle >> IDLE_SHIFT) as u64,
            unknown_ns,
        }
    }

    /// Where it stands when `g` more has flowed.
    #[inline]
    pub(crate) fn after(&self, measured: u128, g: u64, idle: u128) -> Self {
        Self {
            g: self.g + u128::from(g),
            energy: (measured >> ENERGY_SHIFT) as u64,
            idle: (idle >> IDLE_SHIFT) as u64,
            unknown_ns: self.unknown_ns,
        }
    }
}

/// What one domain remembers of one span: one cache line, for every edge of a span touches one in each domain.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
pub(crate) struct Mark {
    /// Running: the clock's `g` at the opening or the last change of weight. Done: the share, fine.
    pub g: u128,
    /// Running: the energy at the opening, 2^-8 µJ, wrapping. Done: the window, µJ.
    pub energy: u64,
    /// Running: the clock's idle part at that edge, 2^-20 µJ per unit. Done: the idle part, µJ.
    pub idle: u64,
    /// Running: the domain's unknown time at the opening. Done: the span's.
    pub unknown_ns: u64,
    /// Running: the wobble behind that edge's group, grains·2^12 per unit of weight, wrapping. Done: the error, grains.
    pub wobble: u64,
    /// The error of the latest edge's group, grains.
    pub edge: u64,
    /// The weight from that edge on (37 bits at most), above the stage in two bits.
    heft: u64,
}

/// A domain's wobble as a mark remembers it.
#[inline]
pub(crate) fn remembered(wobble: u128) -> u64 {
    (wobble >> WOBBLE_SHIFT) as u64
}

/// The wobble between two that marks remember, times weight: grains, rounded up.
#[inline]
pub(crate) fn shaken_since(mark_wobble: u64, wobble: u64, weight: u64) -> u64 {
    // Both sides were cut off: one unit makes up for it.
    let rise = wobble.wrapping_sub(mark_wobble).checked_add(1);
    rise.and_then(|rise| rise.checked_mul(weight)).map_or(NO_BOUND, |shaken| (shaken >> 12) + 1)
}

impl Mark {
    /// The weight from the latest turn on.
    #[inline]
    pub(crate) fn weight(&self) -> u64 {
        self.heft >> 2
    }

    /// How far the domain is.
    #[inline]
    pub(crate) fn stage(&self) -> Stage {
        match self.heft & 3 {
            0 => Stage::Waiting,
            1 => Stage::Running,
            _ => Stage::Done,
        }
    }

    /// The slot has a new span: what the old one left is written over when this one opens.
    #[inline]
    pub(crate) fn wait(&mut self) {
        self.heft = Stage::Waiting as u64;
    }

    /// The span opens for this domain.
    #[inline]
    pub(crate) fn begin(&mut self, stand: &Stand, weight: u64, idle_known: bool) {
        self.g = stand.g;
        self.energy = stand.energy;
        self.idle = if idle_known { stand.idle } else { IDLE_UNKNOWN };
        self.unknown_ns = stand.unknown_ns;
        self.heft = weight << 2 | Stage::Running as u64;
    }

    /// From here on the share grows with `weight`.
    pub(crate) fn turn(&mut self, stand: &Stand, weight: u64) {
        self.g = stand.g;
        if self.idle != IDLE_UNKNOWN {
            self.idle = stand.idle;
        }
        self.heft = weight << 2 | Stage::Running as u64;
    }

    /// The error so far and where the wobble stands: what comes is counted from this group on.
    #[inline]
    pub(crate) fn begin_group(&mut self, error: u64, wobble: u64) {
        (self.edge, self.wobble) = (error, wobble);
    }

    /// The share since the last turn, fine.
    #[inline]
    pub(crate) fn share(&self, stand: &Stand) -> u128 {
        u128::from(self.weight()) * (stand.g - self.g)
    }

    /// Of it idle, fine; `None` where no idle power was known.
    #[inline]
    pub(crate) fn idle_part(&self, stand: &Stand) -> Option<u128> {
        (self.idle != IDLE_UNKNOWN).then(|| {
            (u128::from(self.weight()) * u128::from(stand.idle.wrapping_sub(self.idle))) << IDLE_SHIFT
        })
    }

    /// Everything the domain used since the opening, µJ.
    #[inline]
    pub(crate) fn window_uj(&self, stand: &Stand) -> u64 {
        stand.energy.wrapping_sub(self.energy) >> (FINE_BITS - ENERGY_SHIFT)
    }

    /// Of a mark that is done, the idle part.
    pub(crate) fn idle_uj(&self) -> Option<u64> {
        (self.idle != IDLE_UNKNOWN).then_some(self.idle)
    }

    /// The span closes for this domain, with (share, idle) fine gathered before its last turn: from now on the mark
    /// holds results, the error first of all.
    #[inline]
    pub(crate) fn finish(&mut self, stand: &Stand, before: (u128, u128), error: u64) {
        let share = before.0 + self.share(stand);
        let share_uj = whole_uj(share);
        self.idle = match self.idle_part(stand) {
            Some(idle) => whole_uj(before.1 + idle).min(share_uj),
            None => IDLE_UNKNOWN,
        };
        self.energy = self.window_uj(stand).max(share_uj);
        self.unknown_ns = stand.unknown_ns.saturating_sub(self.unknown_ns);
        self.g = share;
        self.wobble = error;
        self.heft = self.weight() << 2 | Stage::Done as u64;
    }
}

/// Fine units as whole microjoules.
#[inline]
pub(crate) fn whole_uj(fine: u128) -> u64 {
    u64::try_from(fine >> FINE_BITS).unwrap_or(u64::MAX)
}

/// Puts attributes in the place of others. Nearly all maps are empty and own nothing, but to drop one costs as much as
/// an edge does: those are not dropped.
#[inline]
pub(crate) fn replace(old: &mut BTreeMap<String, String>, new: BTreeMap<String, String>) {
    if old.is_empty() && new.is_empty() {
        std::mem::forget(new);
    } else {
        *old = new;
    }
}

/// Adds attributes to others, likewise.
#[inline]
pub(crate) fn extend(old: &mut BTreeMap<String, String>, new: BTreeMap<String, String>) {
    if new.is_empty() {
        std::mem::forget(new);
    } else {
        old.extend(new);
    }
}

/// A phase's boundary as one domain passed it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cut {
    /// The span's share up to here, fine.
    pub share: u128,
    /// The error of cutting here, grains; until that is told, the most that the span weighs here.
    pub edge: u64,
    /// The wobble before and behind the boundary's group.
    pub wobble: (u64, u64),
}

/// What one domain gathered for a span before its last change of weight.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lane {
    pub share: u128,
    pub idle: u128,
    pub error: u64,
    pub widest: u64,
    pub cuts: Vec<Cut>,
    /// How many of the cuts are told.
    pub told: usize,
}

/// The rarer half of a span's memory: phases and changes of weight.
#[derive(Debug, Default)]
pub(crate) struct Story {
    /// Boundaries in the order of time, with the name of what begins there.
    pub phases: Vec<(u64, String)>,
    pub lanes: Vec<Lane>,
}

/// A span. What its close and its settling need comes first and fills one cache line.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Span {
    pub opened_ns: u64,
    pub closed_ns: u64,
    /// How far its edges were moved from where the client asked, together.
    pub moved_ns: u64,
    /// Domains it uses, one bit each.
    pub scope: u64,
    /// The weight at the queue's head, and the index of the edge that set it.
    pub headed: u64,
    pub turned: u64,
    pub generation: u32,
    pub peak: u32,
    pub life: Life,
    /// Whether the head has passed the close.
    pub gone: bool,
    pub abandoned: bool,
    pub cancelled: bool,
    /// Whether it has a story.
    pub storied: bool,
    pub uid: u32,
    /// Of its domains, those in the host's total.
    pub counted: u64,
    /// The latest weight, 2^-16.
    pub weight: u64,
    pub unix_ns: u64,
    pub id: Box<str>,
    pub name: Box<str>,
    pub attributes: BTreeMap<String, String>,
    pub story: Option<Box<Story>>,
}

/// All spans, by slot.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    spans: Vec<Span>,
    marks: Vec<Mark>,
    /// By slot: domains that have not passed the span's close, one bit each.
    pending: Vec<u64>,
    free: Vec<u32>,
    stride: usize,
}

impl Roster {
    pub(crate) fn new(stride: usize) -> Self {
        Self { stride, ..Self::default() }
    }

    /// How many slots are in use.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.spans.len() - self.free.len()
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
        self.spans.push(Span::default());
        self.pending.push(0);
        self.marks.resize(self.spans.len() * self.stride, Mark::default());
        slot
    }

    /// Gives the slot away again and hands out what is left of the span.
    #[inline]
    pub(crate) fn release(&mut self, slot: u32) -> &mut Span {
        self.free.push(slot);
        let span = &mut self.spans[slot as usize];
        span.life = Life::Free;
        span
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
                black_box(mark.heft);
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

    #[inline]
    pub(crate) fn key(&self, slot: u32) -> SpanKey {
        SpanKey::new(slot, self.spans[slot as usize].generation)
    }
}

impl Span {
    /// When the client says that it began; only while the span is open.
    #[inline]
    pub(crate) fn asked_ns(&self) -> u64 {
        self.opened_ns - self.moved_ns
    }

    /// A new span in this slot; field by field, for a whole new `Span` would be written twice.
    #[inline]
    fn begin(&mut self, opening: Opening, opened_ns: u64, weight: u64, scope: u64) {
        let Opening { span, name, attributes, at_ns, uid, unix_ns, .. } = opening;
        self.generation = self.generation.wrapping_add(1);
        self.life = Life::Open;
        self.id = span.into();
        self.name = name.into();
        replace(&mut self.attributes, attributes);
        self.uid = uid;
        self.opened_ns = opened_ns;
        self.closed_ns = 0;
        self.moved_ns = opened_ns - at_ns.min(opened_ns);
        self.unix_ns = unix_ns;
        self.weight = weight;
        self.scope = scope;
        self.counted = scope;
        self.peak = 0;
        self.headed = 0;
        self.turned = 0;
        (self.gone, self.abandoned, self.cancelled) = (false, false, false);
        if self.storied {
            (self.storied, self.story) = (false, None);
        }
    }

    /// The span's rarer half, made when first needed.
    pub(crate) fn story(&mut self, domains: usize) -> &mut Story {
        self.storied = true;
        self.story.get_or_insert_with(|| {
            Box::new(Story { phases: Vec::new(), lanes: vec![Lane::default(); domains] })
        })
    }
}
