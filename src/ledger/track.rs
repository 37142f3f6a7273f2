//! One domain's way through time: its counter's knots and its spans' edges, merged in order.
//!
//! Owns the domain's settled time `pos`. Everything before it is final; an edge is passed only once the counter has
//! moved behind it, so that both sides of the truth are known. Each domain goes at its own pace: a GPU that updates
//! every 100 ms holds up nobody else. Invariant: `pos` never goes back; each edge is passed exactly once.

use std::collections::VecDeque;

use crate::energy::{Domain, Reading};

use super::bound::{Band, Fence, Group, Post, grains};
use super::idle::Idle;
use super::knot::{Knot, KnotFinder};
use super::passage::{Ground, Moment, Passage};
use super::queue::{Event, Queue, first_instant};
use super::share::{FINE_BITS, ShareClock, inverse_of};
use super::span::{Roster, Stand, whole_uj};

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

/// One domain's timeline.
#[derive(Debug)]
pub(crate) struct Track {
    pub domain: Domain,
    pub clock: ShareClock,
    pub settled_uj: u64,
    pub dust: u128,
    pub cancelled: u128,
    pub cursor: u64,
    index: usize,
    finder: KnotFinder,
    waiting: VecDeque<Knot>,
    steps: VecDeque<Step>,
    fence: Fence,
    tip: Knot,
    tip_energy: u128,
    pos_ns: u64,
    unknown_ns: u64,
    wobble: u128,
    /// The instants of the group being passed.
    moments: Vec<Moment>,
    idle: Idle,
    idle_rate: u64,
}

impl Track {
    pub(crate) fn new(index: usize, domain: Domain, patience_ns: u64, idle_mw: Option<u64>) -> Self {
        let tip = Knot { early_ns: 0, at_ns: 0, late_ns: 0, energy_uj: 0, doubt_uj: 0, gap: true };
        Self {
            clock: ShareClock::default(),
            settled_uj: 0,
            dust: 0,
            cancelled: 0,
            cursor: 0,
            index,
            finder: KnotFinder::new(&domain, patience_ns),
            waiting: VecDeque::new(),
            steps: VecDeque::new(),
            fence: Fence::new(domain.quantum_uj, domain.ceiling_mw),
            tip,
            tip_energy: 0,
            pos_ns: 0,
            unknown_ns: 0,
            wobble: 0,
            moments: Vec::new(),
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

    /// Where its clock stands there.
    #[inline]
    pub(crate) fn stand(&self) -> Stand {
        Stand::of(&self.clock, self.unknown_ns)
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
        let quiet = self.clock.weight() == 0;
        let first = self.cursor;
        let events = queue.rest(first);
        let (group, passed) = self.walk(events, limit_ns, knot.gap);
        self.cursor += passed as u64;
        self.advance(limit_ns);
        if !self.moments.is_empty() || drift != 0 {
            let idle_known = self.idle.power_mw().is_some();
            let ground = Ground { domain: self.index, first, gap: knot.gap, idle_known, drift };
            Passage::new(ground, group, &mut self.wobble).tell(&self.moments, &events[..passed], roster, done);
            self.moments.clear();
        }
        if knot.gap {
            self.fence.set(Post::new(knot.early_ns, knot.late_ns, self.tip_energy), true);
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
            power: rise
                .checked_div(u128::from(duration_ns))
                .map_or(0, |power| u64::try_from(power).unwrap_or(0)),
            gap: knot.gap,
        });
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
            let Some(&Step { from_ns, to_ns: end_ns, from, to, power, gap }) = self.steps.front() else { return };
            let whole = to_ns >= end_ns;
            let until_ns = to_ns.min(end_ns);
            let here =
                if whole { to } else { from + u128::from(power) * u128::from(until_ns - from_ns) };
            let past_ns = until_ns.saturating_sub(self.pos_ns);
            if gap {
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

    /// Passes the group of edges that lie before `limit_ns`, noting a moment for each instant that has one in this
    /// domain; gives how many edges it passed.
    fn walk(&mut self, events: &[Event], limit_ns: u64, gap: bool) -> (Group, usize) {
        let mut group = Group::begin(self.clock.inverse());
        let mut begin = 0;
        while let Some((at_ns, length)) = first_instant(&events[begin..], limit_ns) {
            let end = begin + length;
            self.advance(at_ns);
            self.turn(&events[begin..end], (begin, end), gap, &mut group);
            begin = end;
        }
        (group, begin)
    }

    /// Applies all edges of one instant: no energy flows between them, so their order cannot matter.
    #[inline]
    fn turn(&mut self, instant: &[Event], (begin, end): (usize, usize), gap: bool, group: &mut Group) {
        let before = self.clock.inverse();
        let mut weight = self.clock.weight();
        let mut touched = false;
        for event in instant.iter().filter(|event| (event.scope >> self.index) & 1 == 1) {
            weight = weight - event.before + event.weight;
            touched = true;
        }
        let Some(event) = instant.first().filter(|_| touched) else { return };
        let behind = if weight == event.total { event.inverse } else { inverse_of(weight) };
        let left_over = grains(u128::from(self.clock.carry));
        self.clock.reweigh(weight, behind);
        let band = if gap { Band::default() } else { self.fence.band(event.at_ns, self.clock.measured) };
        group.jump(band, before, behind);
        let (stand, doubt) = (self.stand(), band.doubt());
        self.moments.push(Moment { stand, before, behind, doubt, left_over, begin, end });
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
