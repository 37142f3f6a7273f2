//! The second half of a domain's passage: a group of edges is complete, and each edge is written into its span's mark.
//!
//! An edge's error is known only once its whole group is, so a domain first walks over the group and notes at each
//! instant where its clock stood (a `Moment`); then each mark is touched once. Invariant: edges are told in order, and
//! an edge's error covers the domain's wobble within its own group, so that what lies between two edges is counted from
//! group to group. Owns nothing that outlives the group.

use super::bound::{Group, fraction, part, weighed};
use super::mark::{GRAIN_BITS, Mark, NO_BOUND, Stand, remembered, shaken_since};
use super::queue::{Edge, Event};
use super::roster::Roster;
use super::share::{FINE_BITS, WEIGHT_ONE};
use super::span::Cut;

/// One instant of a group as the domain passed it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub at_ns: u64,
    /// Where our figure lies on the axis of energy, grains.
    pub here: u64,
    pub stand: Stand,
    /// 1/W before and behind,
    pub before: u64,
    pub behind: u64,
    /// and whether W is the weight of all spans, so that the edges know their parts of it.
    pub whole: bool,
    /// How far the truth can be from our figure, grains.
    pub doubt: u64,
    /// Of the source's own doubt about the step, how much can lie before this instant and how much behind it, grains.
    pub drift: (u64, u64),
    /// What the last division left over belongs to spans before this instant and goes to those behind it, grains.
    pub left_over: u64,
    /// The indices of its events.
    pub begin: u64,
    pub end: u64,
}

impl Moment {
    /// Its events, of those of the group.
    #[inline]
    fn of<'a>(&self, first: u64, events: &'a [Event]) -> &'a [Event] {
        &events[(self.begin - first) as usize..(self.end - first) as usize]
    }
}

/// What the last division left over, grains, rounded up.
#[inline]
pub(crate) fn left_over(carry: u64) -> u64 {
    // All weight that can be open is less than 2^60 units.
    (carry + ((1 << (FINE_BITS - GRAIN_BITS)) - 1)) >> (FINE_BITS - GRAIN_BITS)
}

/// What a complete group means for a span of some weight: the most it can be wrong by, and its wobble, grains.
#[derive(Debug, Clone, Copy)]
struct Dues {
    weight: u64,
    drift: u64,
    cap: u64,
    inside: u64,
    /// What rounding 1/W down can leave out, grains.
    left_out: u64,
}

/// What an edge costs: its error, and the most it can be, grains.
#[derive(Debug, Clone, Copy)]
struct Own {
    error: u64,
    cap: u64,
}

/// A complete group of one domain.
#[derive(Debug)]
pub(crate) struct Passage {
    domain: usize,
    /// The index of the group's first event.
    first: u64,
    gap: bool,
    idle_known: bool,
    storied: bool,
    /// The source's own doubt about the step, grains.
    drift: u64,
    group: Group,
    /// The domain's wobble before the group and behind it, as marks remember it.
    before: u64,
    behind: u64,
    /// Of the weight seen last: nearly all spans weigh the same.
    dues: Dues,
}

/// What a passage is told of its domain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ground {
    pub domain: usize,
    pub first: u64,
    pub gap: bool,
    pub idle_known: bool,
    pub drift: u64,
    /// Whether phases or changes of weight are in the group.
    pub storied: bool,
}

impl Passage {
    /// Adds the group's wobble to the domain's.
    pub(crate) fn new(ground: Ground, group: Group, wobble: &mut u128) -> Self {
        let Ground { domain, first, gap, idle_known, drift, storied } = ground;
        let before = *wobble;
        *wobble = before.saturating_add(group.wobble(drift));
        let mut passage = Self {
            domain,
            first,
            gap,
            idle_known,
            storied,
            drift,
            group,
            before: remembered(before),
            behind: remembered(*wobble),
            dues: Dues { weight: WEIGHT_ONE, drift, cap: 0, inside: 0, left_out: 0 },
        };
        passage.dues = passage.dues_of(WEIGHT_ONE, drift);
        passage
    }

    /// Tells the marks of all edges; spans that this completes go to `done`.
    pub(crate) fn tell(
        &mut self,
        moments: &[Moment],
        events: &[Event],
        roster: &mut Roster,
        done: &mut Vec<u32>,
    ) {
        if self.storied {
            self.foresee(moments, events, roster);
        }
        for moment in moments {
            for event in moment.of(self.first, events) {
                if (event.scope >> self.domain) & 1 == 0 {
                    continue;
                }
                match event.edge {
                    Edge::Open => self.open(event, moment, roster.mark(event.slot, self.domain)),
                    Edge::Close if !event.storied => {
                        self.close(event, moment, roster.mark(event.slot, self.domain));
                    }
                    _ => self.storied(event, moment, roster),
                }
                if event.edge == Edge::Close && roster.passed(event.slot, self.domain) {
                    done.push(event.slot);
                }
            }
        }
    }

    #[inline]
    fn open(&mut self, event: &Event, moment: &Moment, mark: &mut Mark) {
        let of_all = if moment.whole { event.part } else { fraction(event.weight, moment.behind) };
        let own = self.own(part(moment.doubt, of_all), event.weight, event.weight, moment, moment.drift.1);
        mark.begin(&moment.stand, event.weight, self.idle_known);
        mark.begin_group(own.error, self.behind);
    }

    #[inline]
    fn close(&mut self, event: &Event, moment: &Moment, mark: &mut Mark) {
        let of_all = if moment.whole { event.part } else { fraction(event.before, moment.before) };
        let own = self.own(part(moment.doubt, of_all), event.before, event.before, moment, moment.drift.0);
        let error = self.up_to(event, mark, own);
        mark.finish(&moment.stand, (0, 0), error);
    }

    /// An edge of a span with phases or changes of weight.
    #[cold]
    fn storied(&mut self, event: &Event, moment: &Moment, roster: &mut Roster) {
        let (mark, lane) = roster.mark_and_lane(event.slot, self.domain);
        let Moment { before, behind, doubt, stand, .. } = moment;
        // A weight may have changed at this very instant: a cut must hold for both sides of it.
        let widest = lane.cuts.get(lane.told).map_or(0, |cut| cut.edge);
        let (old, new) = (fraction(event.before, *before), fraction(event.weight, *behind));
        let (error, weight) = match event.edge {
            Edge::Mark => (part(*doubt, fraction(widest, *before.max(behind))), widest),
            Edge::Close => (part(*doubt, old), event.before),
            Edge::Open | Edge::Weight => {
                (part(*doubt, old).abs_diff(part(*doubt, new)) + 2, event.before.max(event.weight))
            }
        };
        let widened = if self.holds_turn_of(event) { weight.max(lane.widest) } else { weight };
        let own = self.own(error, weight, widened, moment, self.drift);
        match event.edge {
            Edge::Mark => {
                let share = lane.share + mark.share(stand);
                if let Some(cut) = lane.cuts.get_mut(lane.told) {
                    *cut = Cut { share, edge: own.error, wobble: (self.before, self.behind) };
                }
                lane.told += 1;
            }
            Edge::Close => {
                let error = self.up_to(event, mark, own).saturating_add(lane.error);
                mark.finish(stand, (lane.share, lane.idle), error);
            }
            Edge::Open | Edge::Weight => {
                lane.changes += u64::from(event.edge == Edge::Weight);
                lane.share += mark.share(stand);
                lane.idle += mark.idle_part(stand).unwrap_or(0);
                if self.holds_turn_of(event) {
                    mark.edge = self.up_to(event, mark, own);
                } else {
                    let inside = shaken_since(mark.wobble, self.before, event.before);
                    lane.error = lane.error.saturating_add(mark.edge).saturating_add(inside);
                    mark.begin_group(own.error, self.behind);
                }
                mark.turn(stand, event.weight);
            }
        }
    }

    /// Notes in advance what the group does to a span's weight: an edge's error covers all of it.
    #[cold]
    fn foresee(&self, moments: &[Moment], events: &[Event], roster: &mut Roster) {
        for event in moments.iter().flat_map(|moment| moment.of(self.first, events)) {
            if (event.scope >> self.domain) & 1 == 0 || !matches!(event.edge, Edge::Weight | Edge::Mark) {
                continue;
            }
            let (_, lane) = roster.mark_and_lane(event.slot, self.domain);
            if event.edge == Edge::Weight {
                lane.widest = lane.widest.max(event.before).max(event.weight);
            } else {
                lane.cuts.push(Cut { edge: event.before.max(lane.widest), ..Cut::default() });
            }
        }
    }

    /// What this edge's error is: `error` of its own, and what the group does to a span of this weight, of which at most
    /// `drift` is the source's own doubt about the time on the span's side of the edge.
    #[inline]
    fn own(&mut self, error: u64, weight: u64, widened: u64, moment: &Moment, drift: u64) -> Own {
        if widened != self.dues.weight || drift != self.dues.drift {
            self.dues = self.dues_of(widened, drift);
        }
        let left_over =
            moment.left_over + if weight == widened { self.dues.left_out } else { left_out(weight) };
        let cap = self.dues.cap + 2 * left_over;
        Own { error: (error + self.dues.inside + left_over).min(cap), cap }
    }

    #[cold]
    fn dues_of(&self, weight: u64, drift: u64) -> Dues {
        let left_out = left_out(weight);
        if self.gap {
            return Dues { weight, drift, cap: NO_BOUND, inside: NO_BOUND, left_out };
        }
        Dues {
            weight,
            drift,
            cap: self.group.cap(weight, drift),
            inside: weighed(self.group.wobble(drift), weight),
            left_out,
        }
    }

    /// Whether the span's latest turn (its opening or a change of weight) lies in this group too.
    #[inline]
    fn holds_turn_of(&self, event: &Event) -> bool {
        event.turned >= self.first
    }

    /// The error of a span's time since its last turn, this edge included.
    #[inline]
    fn up_to(&self, event: &Event, mark: &Mark, own: Own) -> u64 {
        let error = if self.holds_turn_of(event) {
            (mark.edge + own.error).min(own.cap)
        } else {
            mark.edge + shaken_since(mark.wobble, self.before, event.before) + own.error
        };
        error.min(NO_BOUND)
    }
}

/// What rounding 1/W down can leave out of a share, grains.
#[inline]
fn left_out(weight: u64) -> u64 {
    (weight >> 20) + 1
}
