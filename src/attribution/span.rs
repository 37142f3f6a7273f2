//! A span while the ledger knows it: who it is, and the rarer half of its memory.
//!
//! Owns what does not depend on the domain; each domain keeps a `Mark` of it. Invariant: its generation tells late
//! events of the slot's old span from those of the new.

use std::collections::BTreeMap;

use super::portion::Portion;
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
    /// Changes of weight that this domain has passed.
    pub changes: u64,
}

/// Time with one weight, or with several that follow each other quickly.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WeightPiece {
    pub until_ns: u64,
    length_ns: u64,
    /// The sum of weight × time.
    weight_ns: u128,
}

impl WeightPiece {
    fn add(&mut self, until_ns: u64, length_ns: u64, weight: u64) {
        self.until_ns = until_ns;
        self.length_ns += length_ns;
        self.weight_ns += u128::from(weight) * u128::from(length_ns);
    }

    fn mean_weight(&self) -> u64 {
        u64::try_from(self.weight_ns / u128::from(self.length_ns.max(1))).unwrap_or(u64::MAX)
    }
}

/// What a span weighed until the queue's head: only a split by process needs it. Pieces that no later reading changes are
/// folded into `folded`, so that the memory does not grow with the number of changes.
#[derive(Debug, Default)]
pub(crate) struct WeightHistory {
    pub pieces: Vec<WeightPiece>,
    /// By domain, the portion up to the first of the pieces; empty before anything is folded.
    pub folded: Vec<Option<Portion>>,
    since_ns: u64,
    weight: u64,
}

/// A split by process resolves no shorter time: its rows are as far apart.
const PIECE_NS: u64 = 20_000_000;
/// Pieces kept at most; beyond them the last one grows, and its weight is a mean.
pub(crate) const MOST_PIECES: usize = 64;
/// From so many pieces on they are folded.
const FOLD_AT: usize = 16;

impl WeightHistory {
    /// At `at_ns` the weight became `weight`; it was `before` since the opening, or the last change.
    fn change(&mut self, opened_ns: u64, at_ns: u64, before: u64, weight: u64) {
        let since_ns = self.since_ns.max(opened_ns);
        let length_ns = at_ns.saturating_sub(since_ns);
        (self.since_ns, self.weight) = (at_ns, weight);
        if length_ns == 0 {
            return;
        }
        let full = self.pieces.len() >= MOST_PIECES;
        match self.pieces.last_mut().filter(|last| full || last.length_ns + length_ns <= PIECE_NS) {
            Some(last) => last.add(at_ns, length_ns, before),
            None => {
                let mut piece = WeightPiece { until_ns: at_ns, length_ns: 0, weight_ns: 0 };
                piece.add(at_ns, length_ns, before);
                self.pieces.push(piece);
            }
        }
    }

    /// Each weight with the instant at which it ends; the last one ends at `end_ns`.
    pub(crate) fn weights(&self, end_ns: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let pieces = self.pieces.iter().map(|piece| (piece.mean_weight(), piece.until_ns));
        pieces.chain([(self.weight, end_ns)])
    }
}

/// The rarer half of a span's memory: phases and changes of weight.
#[derive(Debug, Default)]
pub(crate) struct Story {
    /// Boundaries in the order of time, with the name of what begins there.
    pub phases: Vec<(u64, String)>,
    pub lanes: Vec<Lane>,
    pub weights: WeightHistory,
    /// Changes of weight so far.
    pub changes: u64,
    /// How far phases and changes of weight were moved from where the client asked, together.
    pub moved_ns: u64,
}

impl Story {
    /// Changes of weight that some domain of the scope has not passed.
    fn unsettled_changes(&self, scope: u64) -> u64 {
        let used = self.lanes.iter().enumerate().filter(|(domain, _)| (scope >> domain) & 1 == 1);
        let passed = used.map(|(_, lane)| lane.changes).min();
        self.changes - passed.unwrap_or(self.changes)
    }
}

/// A span. What its close and its settling need comes first and fills one cache line.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Span {
    pub opened_ns: u64,
    pub closed_ns: u64,
    /// How far its opening and closing were moved from where the client asked, together; the story has the other edges.
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

    /// How far all of its edges were moved from where the client asked, together.
    pub(crate) fn all_moved_ns(&self) -> u64 {
        self.moved_ns + self.story.as_ref().map_or(0, |story| story.moved_ns)
    }

    /// Whether so many changes of weight wait for a domain's counter.
    pub(crate) fn has_unsettled_changes(&self, most: u64) -> bool {
        self.story
            .as_ref()
            .is_some_and(|story| story.changes >= most && story.unsettled_changes(self.scope) >= most)
    }

    /// The queue's head passes a change from the present weight to `weight`; whether the history is to be folded.
    #[cold]
    pub(crate) fn pass_change(&mut self, at_ns: u64, weight: u64) -> bool {
        let Some(story) = self.story.as_mut().filter(|_| self.subject != 0) else { return false };
        story.weights.change(self.opened_ns, at_ns, self.headed, weight);
        story.weights.pieces.len() >= FOLD_AT
    }

    /// How many of the weight history's pieces end by `at_ns`, and where the last of them ends.
    pub(crate) fn pieces_until(&self, at_ns: u64) -> (usize, u64) {
        let pieces = self.story.as_ref().map_or(&[][..], |story| &story.weights.pieces);
        let count = pieces.partition_point(|piece| piece.until_ns <= at_ns);
        (count, pieces[..count].last().map_or(0, |last| last.until_ns))
    }

    /// What is folded of its weights for a domain.
    pub(crate) fn folded(&self, domain: usize) -> Option<Portion> {
        self.story.as_ref()?.weights.folded.get(domain).copied().flatten()
    }

    /// The first `count` pieces are in these portions now.
    pub(crate) fn fold(&mut self, count: usize, portions: Vec<(usize, Portion)>, domains: usize) {
        let Some(story) = &mut self.story else { return };
        story.weights.pieces.drain(..count);
        story.weights.folded.resize(domains, None);
        for (domain, portion) in portions {
            story.weights.folded[domain] = Some(portion);
        }
    }

    /// Whether its weight changed in time that is not folded yet.
    pub(crate) fn has_weight_pieces(&self) -> bool {
        self.story.as_ref().is_some_and(|story| !story.weights.pieces.is_empty())
    }

    /// Its weights up to the queue's head, each with the instant at which it ends.
    pub(crate) fn weights(&self, end_ns: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let changed = self.story.as_ref().filter(|story| story.weights.since_ns > 0);
        // A weight that never changed cancels out.
        let only = changed.is_none().then_some((self.weight.max(1), end_ns));
        only.into_iter().chain(changed.into_iter().flat_map(move |story| story.weights.weights(end_ns)))
    }

    /// Frees what a span owns, once it has left the ledger.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.life = Life::Free;
        (self.id, self.name) = (Box::default(), Box::default());
        replace(&mut self.attributes, BTreeMap::new());
        if self.storied {
            (self.storied, self.story) = (false, None);
        }
    }

    /// The span's rarer half, made when first needed.
    pub(crate) fn story(&mut self, domains: usize) -> &mut Story {
        self.storied = true;
        self.story.get_or_insert_with(|| {
            Box::new(Story { lanes: vec![Lane::default(); domains], ..Story::default() })
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
