//! One domain's way through time: its counter's knots and its spans' edges, merged in order.
//!
//! Owns the domain's settled time `pos`. Everything before it is final; an edge is passed only once the counter has
//! moved behind it, so that both sides of the truth are known. Each domain goes at its own pace: a GPU that updates
//! every 100 ms holds up nobody else. Invariant: `pos` never goes back; each edge is passed exactly once.

use std::collections::VecDeque;

use crate::energy::{Domain, Reading};

use super::bound::{Fence, Group, Post, grains, part, weighed};
use super::idle::Idle;
use super::knot::{Knot, KnotFinder};
use super::queue::{Edge, Event, Queue};
use super::share::{FINE_BITS, ShareClock};
use super::span::{Cut, Lane, Mark, NO_BOUND, Roster, Span, Stage, whole_uj};

/// The interpolation between two knots.
#[derive(Debug, Clone, Copy)]
struct Step {
    from_ns: u64,
    to_ns: u64,
    from: u128,
    to: u128,
    /// Fine per nanosecond.
    power: u128,
    gap: bool,
}

/// An edge whose error is still to be told when its group is complete.
#[derive(Debug, Clone, Copy)]
struct Brink {
    event: Event,
    before: u64,
    error: u64,
    left_over: u64,
    cut: usize,
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
    domains: usize,
    finder: KnotFinder,
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
    idle_rate: u128,
}

impl Track {
    pub(crate) fn new(
        index: usize,
        domains: usize,
        domain: Domain,
        patience_ns: u64,
        idle_mw: Option<u64>,
    ) -> Self {
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
            domains,
            finder: KnotFinder::new(&domain, patience_ns),
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
        let drift = self.reach(knot, rise_uj, duration_ns);
        let mut group = Group::begin(self.clock.inverse());
        let quiet = self.clock.weight() == 0;
        let first = self.cursor;
        while let Some(at_ns) = queue.time_at(self.cursor).filter(|&at_ns| at_ns < limit_ns) {
            self.advance(at_ns);
            self.turn(at_ns, knot.gap, queue, roster, &mut group);
        }
        self.advance(limit_ns);
        self.complete(&group, drift, knot.gap, roster, done);
        if knot.gap {
            self.fence
                .set(Post { early_ns: knot.early_ns, late_ns: knot.late_ns, energy: self.tip_energy }, true);
        }
        if quiet && first == self.cursor && !knot.gap {
            self.idle.empty(rise_uj, duration_ns);
        } else {
            self.idle.interrupt();
        }
        self.fence.forget(self.pos_ns);
    }

    /// Adds the step up to the new knot; gives the source's own doubt about it, grains.
    fn reach(&mut self, knot: Knot, rise_uj: u64, duration_ns: u64) -> u64 {
        let from = self.tip_energy;
        let drift_uj = if knot.gap { 0 } else { knot.doubt_uj.saturating_sub(self.tip.doubt_uj) };
        let rise = u128::from(rise_uj) << FINE_BITS;
        self.tip_energy = from + rise;
        self.steps.push_back(Step {
            from_ns: self.tip.at_ns,
            to_ns: knot.at_ns,
            from,
            to: self.tip_energy,
            power: rise.checked_div(u128::from(duration_ns)).unwrap_or(0),
            gap: knot.gap,
        });
        if !knot.gap {
            let post = Post { early_ns: knot.early_ns, late_ns: knot.late_ns, energy: self.tip_energy };
            self.fence.set(post, false);
        }
        self.idle_rate = self.idle.power_mw().map_or(0, |mw| (u128::from(mw) << FINE_BITS) / 1_000_000);
        self.tip = knot;
        grains(u128::from(drift_uj) << FINE_BITS)
    }

    /// Lets energy flow up to `to_ns` along the steps.
    #[inline]
    fn advance(&mut self, to_ns: u64) {
        while self.pos_ns < to_ns {
            let Some(step) = self.steps.front().copied() else { return };
            if step.to_ns <= self.pos_ns && self.clock.measured >= step.to {
                self.steps.pop_front();
                continue;
            }
            let until_ns = to_ns.min(step.to_ns);
            let here = if until_ns >= step.to_ns {
                step.to
            } else {
                step.from + step.power * u128::from(until_ns - step.from_ns.min(until_ns))
            };
            let past_ns = until_ns.saturating_sub(self.pos_ns);
            let flow = here.saturating_sub(self.clock.measured);
            self.clock.flow(flow, self.idle_rate * u128::from(past_ns));
            if step.gap {
                self.unknown_ns += past_ns;
            }
            self.pos_ns = until_ns.max(self.pos_ns);
            if until_ns >= step.to_ns {
                self.steps.pop_front();
            }
        }
    }

    /// Applies all edges of one instant: no energy flows between them, so their order cannot matter.
    fn turn(&mut self, at_ns: u64, gap: bool, queue: &Queue, roster: &mut Roster, group: &mut Group) {
        let before = self.clock.inverse();
        let mut weight = self.clock.weight();
        let first = self.brinks.len();
        while let Some(event) = queue.get(self.cursor).filter(|event| event.at_ns == at_ns) {
            self.cursor += 1;
            if let Some((span, mark)) = roster.meet(event.slot, event.generation, self.index) {
                self.apply(*event, span, mark, &mut weight);
            }
        }
        if self.brinks.len() == first {
            return;
        }
        self.clock.reweigh(weight);
        let behind = self.clock.inverse();
        let band = if gap { (0, 0) } else { self.fence.band(at_ns) };
        let here = self.clock.measured;
        let doubt = grains(band.1.saturating_sub(here).max(here.saturating_sub(band.0)));
        group.jump(band, doubt, before, behind);
        for brink in self.brinks.iter_mut().skip(first) {
            // What the last division left over belongs to spans before this edge and goes to those behind it.
            let left_over = grains(self.clock.carry.max(u128::from(brink.before.max(brink.event.weight))));
            let jump = match brink.event.edge {
                Edge::Open => part(doubt, brink.event.weight, behind),
                Edge::Close => part(doubt, brink.before, before),
                Edge::Mark => part(doubt, brink.before, before.max(behind)),
                Edge::Weight => {
                    let (old, new) =
                        (part(doubt, brink.before, before), part(doubt, brink.event.weight, behind));
                    old.abs_diff(new) + 2
                }
            };
            (brink.error, brink.left_over) = (jump, left_over);
        }
    }

    /// One edge of one span, at this instant.
    fn apply(&mut self, event: Event, span: &mut Span, mark: &mut Mark, weight: &mut u64) {
        let mut brink = Brink { event, before: mark.weight, error: 0, left_over: 0, cut: 0 };
        match (event.edge, mark.stage) {
            (Edge::Open, Stage::Waiting) => {
                mark.begin(&self.clock, event.weight, self.unknown_ns, self.idle.power_mw().is_some());
                *weight += event.weight;
            }
            (Edge::Weight, Stage::Running) => {
                let lane = &mut span.story(self.domains).lanes[self.index];
                lane.share += mark.share(&self.clock);
                lane.idle += mark.idle_part(&self.clock).unwrap_or(0);
                lane.widest = lane.widest.max(mark.weight).max(event.weight);
                mark.turn(&self.clock, event.weight);
                *weight = *weight - brink.before + event.weight;
            }
            (Edge::Mark, Stage::Running) => {
                let lane = &mut span.story(self.domains).lanes[self.index];
                let share = lane.share + mark.share(&self.clock);
                // A weight may have changed at this very instant: the cut must hold for both sides of it.
                brink.before = mark.weight.max(lane.widest);
                brink.cut = lane.cuts.len();
                lane.cuts.push(Cut { share, ..Cut::default() });
            }
            (Edge::Close, Stage::Running) => {
                let none = Lane::default();
                let before =
                    span.story.as_ref().and_then(|story| story.lanes.get(self.index)).unwrap_or(&none);
                mark.finish(&self.clock, before, self.unknown_ns);
                *weight -= brink.before;
                mark.stage = Stage::Done;
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
        let mut brinks = std::mem::take(&mut self.brinks);
        for brink in brinks.drain(..) {
            let Some((span, mark)) = roster.meet(brink.event.slot, brink.event.generation, self.index) else {
                continue;
            };
            let widest = span
                .story
                .as_ref()
                .and_then(|story| story.lanes.get(self.index))
                .map_or(0, |lane| lane.widest);
            let earlier = if mark.group == self.group { widest } else { 0 };
            let weight = brink.before.max(brink.event.weight).max(earlier);
            let cap =
                if gap { NO_BOUND } else { group.cap(weight, drift).saturating_add(2 * brink.left_over) };
            let shaken = weighed(self.wobble - before, weight);
            let error = if gap {
                NO_BOUND
            } else {
                brink.error.saturating_add(shaken).saturating_add(brink.left_over).min(cap)
            };
            let own = Own { error, cap, before, behind: self.wobble };
            self.tell(brink, own, span, mark, done);
        }
        self.brinks = brinks;
    }

    /// Writes an edge's error down; at the close the sum becomes the span's.
    fn tell(&mut self, brink: Brink, own: Own, span: &mut Span, mark: &mut Mark, done: &mut Vec<u32>) {
        let same = mark.group == self.group && brink.event.edge != Edge::Open;
        let together = mark.edge.saturating_add(own.error).min(own.cap);
        let inside = weighed(own.before.saturating_sub(mark.wobble), brink.before);
        let so_far = mark.edge.saturating_add(inside);
        match brink.event.edge {
            Edge::Weight if same => mark.edge = together,
            Edge::Open | Edge::Weight => {
                if brink.event.edge == Edge::Weight {
                    let lane = &mut span.story(self.domains).lanes[self.index];
                    lane.error = lane.error.saturating_add(so_far);
                }
                mark.edge = own.error;
                mark.wobble = own.behind;
                mark.group = self.group;
            }
            Edge::Mark => {
                let lane = &mut span.story(self.domains).lanes[self.index];
                if let Some(cut) = lane.cuts.get_mut(brink.cut) {
                    (cut.edge, cut.wobble) = (own.error, (own.before, own.behind));
                }
            }
            Edge::Close => {
                let lane = span.story.as_ref().and_then(|story| story.lanes.get(self.index));
                let earlier = lane.map_or(0, |lane| lane.error);
                let last = if same { together } else { so_far.saturating_add(own.error) };
                mark.edge = own.error;
                mark.wobble = u128::from(earlier.saturating_add(last));
                span.pending -= 1;
                if span.pending == 0 {
                    done.push(brink.event.slot);
                }
            }
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
