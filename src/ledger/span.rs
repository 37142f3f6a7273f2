//! A span while the ledger knows it: who it is, and the rarer half of its memory.
//!
//! Owns what does not depend on the domain; each domain keeps a `Mark` of it. Invariant: its generation tells late
//! events of the slot's old span from those of the new.

use std::collections::BTreeMap;

use super::terms::Opening;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Life {
    #[default]
    Free,
    Open,
    Closing,
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
    /// Where a changed weight began to hold, with it, in the order of time; the weight at the opening first.
    pub turns: Vec<(u64, u64)>,
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
    /// Whose use of the domains it asks for; 0: nobody's.
    pub subject: u32,
    /// Of its domains, those in the host's total.
    pub counted: u64,
    /// Those that were left out of the total although they may be part of it.
    pub in_doubt: u64,
    /// The latest weight, 2^-16.
    pub weight: u64,
    pub unix_ns: u64,
    pub id: Box<str>,
    pub name: Box<str>,
    pub attributes: BTreeMap<String, String>,
    pub story: Option<Box<Story>>,
}

impl Span {
    /// When the client says that it began; only while the span is open.
    #[inline]
    pub(crate) fn asked_ns(&self) -> u64 {
        self.opened_ns - self.moved_ns
    }

    /// A new span in this slot; field by field, for a whole new `Span` would be written twice.
    #[inline]
    pub(crate) fn begin(&mut self, opening: Opening, opened_ns: u64, weight: u64, scope: u64) {
        let Opening { span, name, attributes, at_ns, uid, unix_ns, subject, .. } = opening;
        self.generation = self.generation.wrapping_add(1);
        self.life = Life::Open;
        self.id = span.into();
        self.name = name.into();
        replace(&mut self.attributes, attributes);
        (self.uid, self.subject) = (uid, subject);
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

    /// From `at_ns` on it weighs this much.
    pub(crate) fn turn(&mut self, at_ns: u64, weight: u64, domains: usize) {
        let first = (self.opened_ns, std::mem::replace(&mut self.weight, weight));
        let turns = &mut self.story(domains).turns;
        if turns.is_empty() {
            turns.push(first);
        }
        let place = turns.partition_point(|turn| turn.0 <= at_ns);
        turns.insert(place, (at_ns, weight));
    }

    /// Its weights, each with the instant at which it ends.
    pub(crate) fn weights(&self, end_ns: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let turns = self.story.as_ref().map_or(&[][..], |story| &story.turns);
        let only = turns.is_empty().then_some((self.weight, end_ns));
        let ends = turns.iter().skip(1).map(|turn| turn.0).chain([end_ns]);
        only.into_iter().chain(turns.iter().zip(ends).map(|(turn, end_ns)| (turn.1, end_ns)))
    }

    /// The span's rarer half, made when first needed.
    pub(crate) fn story(&mut self, domains: usize) -> &mut Story {
        self.storied = true;
        self.story.get_or_insert_with(|| {
            Box::new(Story { phases: Vec::new(), lanes: vec![Lane::default(); domains], turns: Vec::new() })
        })
    }
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
