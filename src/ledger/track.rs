//! One domain's way through time: its counter's knots and its spans' edges, merged in order.
//!
//! Owns the domain's settled time `pos`. Everything before it is final; an edge is passed only once the counter has
//! moved behind it, so that both sides of the truth are known. Each domain goes at its own pace: a GPU that updates
//! every 100 ms holds up nobody else. Invariant: `pos` never goes back; each edge is passed exactly once.

use std::collections::VecDeque;

use crate::energy::{Domain, Reading};

use super::bound::{Band, Fence, Group, Post, grains, part, weighed};
use super::contour::Contour;
use super::idle::Idle;
use super::knot::{Knot, KnotFinder};
use super::queue::{Edge, Event, Queue, first_instant};
use super::share::{FINE_BITS, ShareClock, inverse_of};
use super::span::{Cut, Mark, NO_BOUND, Roster, Stage, remembered, shaken_since, whole_uj};

/// The interpolation between two knots.
#[derive(Debug, Clone, Copy)]
struct Step {
    from_ns: u64,
    to_ns: u64,
    from: u128,
    to: u128,
    /// Fine per nanosecond.
    power: u64,
    gap: bool,
}

impl Step {
    fn between((from_ns, from): (u64, u128), (to_ns, to): (u64, u128), gap: bool) -> Self {
        let power = (to - from).checked_div(u128::from(to_ns.saturating_sub(from_ns)));
        let power = power.map_or(0, |power| u64::try_from(power).unwrap_or(0));
        Self { from_ns, to_ns, from, to, power, gap }
    }
}

/// An edge whose error is still to be told when its group is complete.
#[derive(Debug, Clone, Copy)]
struct Brink {
    slot: u32,
    edge: Edge,
    cut: u32,
    /// The weights before and behind the edge.
    before: u64,
    behind: u64,
    error: u64,
    left_over: u64,
}

/// What a group says of one of its edges: its error and the most it can be, grains, and the wobble around the group.
#[derive(Debug, Clone, Copy)]
struct Own {
    error: u64,
    cap: u64,
    before: u128,
    behind: u128,
}

/// One domain's timeline.
#[derive(Debug)]
pub(crate) struct Track {
    pub domain: Domain,
    pub live: bool,
    pub counted: bool,
    pub clock: ShareClock,
    pub settled_uj: u64,
    pub dust: u128,
    pub cancelled: u128,
    pub cursor: u64,
    index: usize,
    finder: KnotFinder,
    contour: Contour,
    waiting: VecDeque<Knot>,
    steps: VecDeque<Step>,
    fence: Fence,
    tip: Knot,
    tip_energy: u128,
    pos_ns: u64,
    unknown_ns: u64,
    wobble: u128,
    group: u32,
    brinks: Vec<Brink>,
    idle: Idle,
    idle_rate: u64,
}

impl Track {
    pub(crate) fn new(index: usize, domain: Domain, patience_ns: u64, idle_mw: Option<u64>) -> Self {
        let tip = Knot { early_ns: 0, at_ns: 0, late_ns: 0, energy_uj: 0, doubt_uj: 0, gap: true };
        Self {
            live: true,
            counted: true,
            clock: ShareClock::default(),
            settled_uj: 0,
            dust: 0,
            cancelled: 0,
            cursor: 0,
            index,
            finder: KnotFinder::new(&domain, patience_ns),
            contour: Contour::default(),
            waiting: VecDeque::new(),
            steps: VecDeque::new(),
            fence: Fence::new(domain.quantum_uj, domain.ceiling_mw),
            tip,
            tip_energy: 0,
            pos_ns: 0,
            unknown_ns: 0,
            wobble: 0,
            group: 0,
            brinks: Vec::new(),
            idle: Idle::new(idle_mw),
            idle_rate: 0,
            domain,
        }
    }

    pub(crate) fn set_interval(&mut self, interval_ns: u64) {
        self.finder.set_interval(interval_ns);
    }

    pub(crate) fn index(&self) -> usize {
        self.index
    }

    pub(crate) fn patience_ns(&self) -> u64 {
        self.finder.patience_ns()
    }

    pub(crate) fn fed_ns(&self) -> u64 {
        self.finder.fed_ns()
    }

    /// Everything before this instant is final.
    pub(crate) fn pos_ns(&self) -> u64 {
        self.pos_ns
    }

    pub(crate) fn unknown_ns(&self) -> u64 {
        self.unknown_ns
    }

    pub(crate) fn feed(&mut self, before_ns: u64, after_ns: u64, reading: &Reading) {
        if reading.shape_uj != 0 {
            self.contour.note(before_ns, reading.shape_uj);
        }
        if let Some(knot) = self.finder.feed(before_ns, after_ns, reading) {
            self.waiting.push_back(knot);
        }
    }

    /// Nothing vouches for the time up to `at_ns`.
    pub(crate) fn give_up(&mut self, at_ns: u64) {
        if let Some(knot) = self.finder.give_up(at_ns) {
            self.waiting.push_back(knot);
        }
    }

    /// Passes every knot and edge that lies behind the horizon; spans that this completes go to `done`.
    pub(crate) fn settle(&mut self, behind_ns: u64, queue: &Queue, roster: &mut Roster, done: &mut Vec<u32>) {
        while let Some(knot) = self.waiting.front().copied() {
            let limit_ns = if knot.gap { knot.at_ns } else { knot.early_ns };
            if limit_ns > behind_ns {
                break;
            }
            self.waiting.pop_front();
            self.pass(knot, limit_ns, queue, roster, done);
        }
    }

    fn pass(&mut self, knot: Knot, limit_ns: u64, queue: &Queue, roster: &mut Roster, done: &mut Vec<u32>) {
        let duration_ns = knot.at_ns.saturating_sub(self.tip.at_ns);
        let rise_uj = if knot.gap { 0 } else { knot.energy_uj.saturating_sub(self.tip.energy_uj) };
        let drift = self.reach(knot, rise_uj);
        let mut group = Group::begin(self.clock.inverse());
        let quiet = self.clock.weight() == 0;
        let first = self.cursor;
        let mut events = queue.rest(first);
        while let Some(at_ns) = events.first().map(|event| event.at_ns).filter(|&at_ns| at_ns < limit_ns) {
            let instant = first_instant(events);
            events = &events[instant.len()..];
            self.cursor += instant.len() as u64;
            self.advance(at_ns);
            self.turn(instant, knot.gap, roster, &mut group);
        }
        self.advance(limit_ns);
        self.complete(&group, drift, knot.gap, roster, done);
        if knot.gap {
            self.fence.set(Post::new(knot.early_ns, knot.late_ns, self.tip_energy), true);
        }
        if quiet && first == self.cursor && !knot.gap {
            self.idle.empty(rise_uj, duration_ns);
        } else {
            self.idle.interrupt();
        }
        self.fence.forget(self.pos_ns);
        self.contour.forget(self.tip.at_ns);
    }

    /// Adds the step up to the new knot; gives the source's own doubt about it, grains.
    fn reach(&mut self, knot: Knot, rise_uj: u64) -> u64 {
        let from = self.tip_energy;
        let drift_uj = if knot.gap { 0 } else { knot.doubt_uj.saturating_sub(self.tip.doubt_uj) };
        let rise = u128::from(rise_uj) << FINE_BITS;
        self.tip_energy = from + rise;
        let mut begin = (self.tip.at_ns, from);
        for (at_ns, risen) in self.contour.bends(self.tip.at_ns, knot.at_ns, rise) {
            self.steps.push_back(Step::between(begin, (at_ns, from + risen), knot.gap));
            begin = (at_ns, from + risen);
        }
        self.steps.push_back(Step::between(begin, (knot.at_ns, self.tip_energy), knot.gap));
        if !knot.gap {
            self.fence.set(Post::new(knot.early_ns, knot.late_ns, self.tip_energy), false);
        }
        self.idle_rate = self.idle.power_mw().map_or(0, idle_rate);
        self.tip = knot;
        grains(u128::from(drift_uj) << FINE_BITS)
    }

    /// Lets energy flow up to `to_ns` along the steps.
    #[inline]
    fn advance(&mut self, to_ns: u64) {
        while self.pos_ns < to_ns {
            let Some(step) = self.steps.front() else { return };
            let whole = to_ns >= step.to_ns;
            let until_ns = if whole { step.to_ns } else { to_ns };
            let here = if whole {
                step.to
            } else {
                step.from + u128::from(step.power) * u128::from(until_ns - step.from_ns)
            };
            let past_ns = until_ns.saturating_sub(self.pos_ns);
            if step.gap {
                self.unknown_ns += past_ns;
            }
            let idle = u128::from(self.idle_rate) * u128::from(past_ns);
            self.clock.flow(here.saturating_sub(self.clock.measured), idle);
            self.pos_ns = until_ns.max(self.pos_ns);
            if whole {
                self.steps.pop_front();
            }
        }
    }

    /// Applies all edges of one instant: no energy flows between them, so their order cannot matter.
    fn turn(&mut self, instant: &[Event], gap: bool, roster: &mut Roster, group: &mut Group) {
        let before = self.clock.inverse();
        let mut weight = self.clock.weight();
        let first = self.brinks.len();
        let (mut at_ns, mut total, mut inverse) = (0, 0, 0);
        for event in instant {
            (at_ns, total, inverse) = (event.at_ns, event.total, event.inverse);
            if (event.scope >> self.index) & 1 == 1 && roster.knows(event) {
                self.apply(event, roster, &mut weight);
            }
        }
        if self.brinks.len() == first {
            return;
        }
        let behind = if weight == total { inverse } else { inverse_of(weight) };
        // What the last division left over belongs to spans before this edge and goes to those behind it.
        let left_over = grains(self.clock.carry);
        self.clock.reweigh(weight, behind);
        let band = if gap { Band::default() } else { self.fence.band(at_ns, self.clock.measured) };
        group.jump(band, before, behind);
        let doubt = band.doubt();
        for brink in &mut self.brinks[first..] {
            brink.left_over = left_over + (brink.before.max(brink.behind) >> 20) + 1;
            brink.error = match brink.edge {
                Edge::Open => part(doubt, brink.behind, behind),
                Edge::Close => part(doubt, brink.before, before),
                Edge::Mark => part(doubt, brink.before, before.max(behind)),
                Edge::Weight => {
                    let (old, new) = (part(doubt, brink.before, before), part(doubt, brink.behind, behind));
                    old.abs_diff(new) + 2
                }
            };
        }
    }

    /// One edge of one span, at this instant.
    #[inline]
    fn apply(&mut self, event: &Event, roster: &mut Roster, weight: &mut u64) {
        let mark = roster.mark(event.slot, self.index);
        let mut brink = Brink {
            slot: event.slot,
            edge: event.edge,
            cut: 0,
            before: mark.weight,
            behind: event.weight,
            error: 0,
            left_over: 0,
        };
        match (event.edge, mark.stage) {
            (Edge::Open, Stage::Waiting) => {
                mark.begin(&self.clock, event.weight, self.unknown_ns, self.idle.power_mw().is_some());
                brink.before = 0;
                *weight += event.weight;
            }
            (Edge::Close, Stage::Running) => {
                *weight -= mark.weight;
                if mark.storied {
                    let (mark, lane) = roster.mark_and_lane(event.slot, self.index);
                    mark.finish(&self.clock, (lane.share, lane.idle), self.unknown_ns);
                } else {
                    mark.finish(&self.clock, (0, 0), self.unknown_ns);
                }
                brink.behind = 0;
            }
            (Edge::Weight, Stage::Running) => {
                *weight = *weight - mark.weight + event.weight;
                let (mark, lane) = roster.mark_and_lane(event.slot, self.index);
                mark.storied = true;
                lane.share += mark.share(&self.clock);
                lane.idle += mark.idle_part(&self.clock).unwrap_or(0);
                lane.widest = lane.widest.max(mark.weight).max(event.weight);
                mark.turn(&self.clock, event.weight);
            }
            (Edge::Mark, Stage::Running) => {
                let (mark, lane) = roster.mark_and_lane(event.slot, self.index);
                mark.storied = true;
                // A weight may have changed at this very instant: the cut must hold for both sides of it.
                brink.before = mark.weight.max(lane.widest);
                brink.cut = u32::try_from(lane.cuts.len()).unwrap_or(u32::MAX);
                let share = lane.share + mark.share(&self.clock);
                lane.cuts.push(Cut { share, ..Cut::default() });
            }
            // A mark or weight stamped behind its span's close says nothing about the span.
            _ => return,
        }
        self.brinks.push(brink);
    }

    /// The group is complete: now every edge's error can be told.
    fn complete(&mut self, group: &Group, drift: u64, gap: bool, roster: &mut Roster, done: &mut Vec<u32>) {
        if self.brinks.is_empty() && drift == 0 {
            return;
        }
        self.group = self.group.wrapping_add(1);
        let before = self.wobble;
        self.wobble = before.saturating_add(group.wobble(drift));
        let wobble = self.wobble - before;
        let mut brinks = std::mem::take(&mut self.brinks);
        for brink in brinks.drain(..) {
            let mark = roster.mark(brink.slot, self.index);
            let mut weight = brink.before.max(brink.behind);
            let storied = mark.storied;
            if storied && mark.group == self.group {
                weight = weight.max(roster.mark_and_lane(brink.slot, self.index).1.widest);
            }
            let own = if gap {
                Own { error: NO_BOUND, cap: NO_BOUND, before, behind: self.wobble }
            } else {
                let cap = group.cap(weight, drift).saturating_add(2 * brink.left_over);
                let error =
                    brink.error.saturating_add(weighed(wobble, weight)).saturating_add(brink.left_over);
                Own { error: error.min(cap), cap, before, behind: self.wobble }
            };
            let mark = roster.mark(brink.slot, self.index);
            match brink.edge {
                Edge::Open => mark.begin_group(own.error, own.behind, self.group),
                Edge::Close => {
                    mark.wobble = self.up_to(mark, &brink, &own);
                    (mark.edge, mark.stage) = (own.error, Stage::Done);
                    if storied {
                        let (mark, lane) = roster.mark_and_lane(brink.slot, self.index);
                        mark.wobble = mark.wobble.saturating_add(lane.error);
                    }
                    if roster.passed(brink.slot) {
                        done.push(brink.slot);
                    }
                }
                Edge::Weight | Edge::Mark => self.tell(&brink, &own, roster),
            }
        }
        self.brinks = brinks;
    }

    /// The error of a span's time since its last turn, this edge included.
    #[inline]
    fn up_to(&self, mark: &Mark, brink: &Brink, own: &Own) -> u64 {
        if mark.group == self.group {
            return mark.edge.saturating_add(own.error).min(own.cap);
        }
        let inside = shaken_since(mark.wobble, own.before, brink.before);
        mark.edge.saturating_add(inside).saturating_add(own.error)
    }

    /// Writes the error of a change of weight or of a phase's cut down.
    fn tell(&self, brink: &Brink, own: &Own, roster: &mut Roster) {
        let (mark, lane) = roster.mark_and_lane(brink.slot, self.index);
        if brink.edge == Edge::Mark {
            if let Some(cut) = lane.cuts.get_mut(brink.cut as usize) {
                (cut.edge, cut.wobble) = (own.error, (remembered(own.before), own.behind));
            }
        } else if mark.group == self.group {
            mark.edge = self.up_to(mark, brink, own);
        } else {
            let inside = shaken_since(mark.wobble, own.before, brink.before);
            lane.error = lane.error.saturating_add(mark.edge).saturating_add(inside);
            mark.begin_group(own.error, own.behind, self.group);
        }
    }

    /// A settled span's share leaves the running sum.
    pub(crate) fn hand_out(&mut self, share: u128, cancelled: bool) {
        if cancelled {
            self.cancelled += share;
        } else {
            self.settled_uj += whole_uj(share);
            self.dust += share & ((1 << FINE_BITS) - 1);
        }
    }
}

/// Milliwatts as fine units per nanosecond.
fn idle_rate(mw: u64) -> u64 {
    u64::try_from((u128::from(mw) << FINE_BITS) / 1_000_000).unwrap_or(u64::MAX)
}
