//! One domain's way through time: its counter's knots and its spans' edges, merged in order.
//!
//! Owns the domain's settled time `pos`. Everything before it is final; an edge is passed only once the counter has
//! moved behind it, so that both sides of the truth are known. Each domain goes at its own pace: a GPU that updates
//! every 100 ms holds up nobody else. Invariant: `pos` never goes back; each edge is passed exactly once.

use std::collections::{BTreeMap, VecDeque};

use crate::domain::{Domain, Reading};

use super::account::Balance;
use super::bound::{Band, Fence, Group, Post, grains, place};
use super::contour::Contour;
use super::course::Course;
use super::idle::Idle;
use super::mark::whole_uj;
use super::passage::{Ground, Moment, Passage, left_over};
use super::queue::{Instant, Queue};
use super::roster::Roster;
use super::share::{FINE_BITS, inverse_of};
use super::update_detector::{CounterUpdate, UpdateDetector};

/// One domain's timeline.
#[derive(Debug)]
pub(crate) struct Track {
    pub domain: Domain,
    pub course: Course,
    pub settled_uj: u64,
    pub dust: u128,
    pub cancelled: u128,
    /// The first instant that is not passed yet, and the first event.
    pub cursor: u64,
    pub passed: u64,
    index: usize,
    finder: UpdateDetector,
    contour: Contour,
    waiting: VecDeque<CounterUpdate>,
    fence: Fence,
    tip: CounterUpdate,
    tip_energy: u128,
    wobble: u128,
    /// The instants of the group being passed.
    moments: Vec<Moment>,
    idle: Idle,
}

impl Track {
    pub(crate) fn new(index: usize, domain: Domain, patience_ns: u64, idle_mw: Option<u64>) -> Self {
        let tip = CounterUpdate { early_ns: 0, at_ns: 0, late_ns: 0, energy_uj: 0, doubt_uj: 0, gap: true };
        Self {
            course: Course::default(),
            settled_uj: 0,
            dust: 0,
            cancelled: 0,
            cursor: 0,
            passed: 0,
            index,
            finder: UpdateDetector::new(&domain, patience_ns),
            contour: Contour::default(),
            waiting: VecDeque::new(),
            fence: Fence::new(domain.quantum_uj, domain.ceiling_mw),
            tip,
            tip_energy: 0,
            wobble: 0,
            moments: Vec::new(),
            idle: Idle::new(idle_mw),
            domain,
        }
    }

    pub(crate) fn set_interval(&mut self, interval_ns: u64) {
        self.finder.set_interval(interval_ns);
    }

    /// Idle power by domain name: this one's is taken out of it.
    pub(crate) fn set_idle(&mut self, idle_mw: &BTreeMap<String, u64>) {
        self.idle.configure(idle_mw.get(&self.domain.name).copied());
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

    /// Gives memory back that a group of many edges took.
    pub(crate) fn shrink(&mut self) {
        self.moments.shrink_to(64);
    }

    /// Where its joules went.
    pub(crate) fn balance(&self) -> Balance {
        let mask = (1_u128 << FINE_BITS) - 1;
        let clock = &self.course.clock;
        let running =
            clock.attributed - (u128::from(self.settled_uj) << FINE_BITS) - self.dust - self.cancelled;
        let rest = clock.alone + u128::from(clock.carry) + self.cancelled + self.dust + (running & mask);
        Balance {
            domain: self.domain.name.clone(),
            measured_uj: whole_uj(clock.measured),
            attributed_uj: self.settled_uj + whole_uj(running),
            unattributed_uj: whole_uj(rest),
        }
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

    fn pass(
        &mut self,
        knot: CounterUpdate,
        limit_ns: u64,
        queue: &Queue,
        roster: &mut Roster,
        done: &mut Vec<u32>,
    ) {
        let duration_ns = knot.at_ns.saturating_sub(self.tip.at_ns);
        let rise_uj = if knot.gap { 0 } else { knot.energy_uj.saturating_sub(self.tip.energy_uj) };
        let drift = self.reach(knot, rise_uj);
        let (quiet, begun_ns) = (self.course.clock.weight() == 0, self.course.pos_ns());
        let (first, inverse) = (self.passed, self.course.clock.inverse());
        self.walk(limit_ns, queue);
        self.course.advance(limit_ns);
        if !self.moments.is_empty() || drift != 0 {
            let group = self.weigh(inverse, knot.gap);
            if drift != 0 {
                self.locate(drift, begun_ns, limit_ns);
            }
            let (gap, storied) = (knot.gap, queue.storied > first);
            let idle_known = self.idle.power_mw().is_some();
            let ground = Ground { domain: self.index, first, gap, idle_known, drift, storied };
            let events = queue.events.rest(first);
            Passage::new(ground, group, &mut self.wobble).tell(&self.moments, events, roster, done);
            self.moments.clear();
        }
        if knot.gap {
            // What a baseline shows may be a whole step of the counter old: no instant is known before which it is too much.
            self.fence.set(Post::new(u64::MAX, knot.late_ns, self.tip_energy), true);
        }
        if quiet && first == self.passed && !knot.gap {
            self.idle.empty(rise_uj, duration_ns);
        } else {
            self.idle.interrupt();
        }
        self.fence.forget(self.course.pos_ns());
        self.contour.forget(self.tip.at_ns);
    }

    /// Adds the step up to the new knot; gives the source's own doubt about it, grains.
    fn reach(&mut self, knot: CounterUpdate, rise_uj: u64) -> u64 {
        let drift_uj = if knot.gap { 0 } else { knot.doubt_uj.saturating_sub(self.tip.doubt_uj) };
        let rise = u128::from(rise_uj) << FINE_BITS;
        self.tip_energy += rise;
        let mut begin = (self.tip.at_ns, 0);
        for bend in self.contour.bends(self.tip.at_ns, knot.at_ns, rise) {
            self.course.lay(begin.0, bend.0, bend.1 - begin.1, knot.gap);
            begin = bend;
        }
        self.course.lay(begin.0, knot.at_ns, rise - begin.1, knot.gap);
        if !knot.gap {
            self.fence.set(Post::new(knot.early_ns, knot.late_ns, self.tip_energy), false);
        }
        self.course.set_idle(self.idle.power_mw());
        self.tip = knot;
        grains(u128::from(drift_uj) << FINE_BITS)
    }

    /// Passes the group of edges that lie before `limit_ns`, noting a moment for each instant that has one in this
    /// domain.
    fn walk(&mut self, limit_ns: u64, queue: &Queue) {
        let mut instants = queue.instants.rest(self.cursor);
        loop {
            let glided = self.course.glide(self.index, instants, limit_ns, &mut self.moments);
            self.passed = instants[..glided].last().map_or(self.passed, |instant| instant.end);
            self.cursor += glided as u64;
            instants = &instants[glided..];
            let Some((instant, rest)) = instants.split_first().filter(|next| next.0.at_ns < limit_ns) else {
                break;
            };
            self.course.advance(instant.at_ns);
            if (instant.any >> self.index) & 1 == 1 {
                self.turn(instant, queue);
            }
            self.cursor += 1;
            self.passed = instant.end;
            instants = rest;
        }
    }

    /// Applies all edges of one instant: no energy flows between them, so their order cannot matter.
    fn turn(&mut self, instant: &Instant, queue: &Queue) {
        let change =
            if (instant.all >> self.index) & 1 == 1 { instant.change } else { self.change(instant, queue) };
        let weight = self.course.clock.weight().wrapping_add(change);
        let before = self.course.clock.inverse();
        let same = weight == instant.total;
        let behind = if same { instant.inverse } else { inverse_of(weight) };
        let left_over = left_over(self.course.clock.carry);
        self.course.clock.reweigh(weight, behind);
        self.moments.push(Moment {
            at_ns: instant.at_ns,
            here: place(self.course.clock.measured),
            stand: self.course.stand(),
            before,
            behind,
            whole: same && change == instant.change,
            doubt: 0,
            drift: (0, 0),
            left_over,
            begin: instant.begin,
            end: instant.end,
        });
    }

    /// Tells each moment how far the truth can be from our figure; `inverse` is 1/W before the first.
    fn weigh(&mut self, inverse: u64, gap: bool) -> Group {
        let fence = &mut self.fence;
        let mut band = |at_ns: u64, here: u64| if gap { Band::default() } else { fence.band(at_ns, here) };
        let first = self.moments.first().map_or(Band::default(), |first| band(first.at_ns, first.here));
        let mut group = Group::begin(inverse, first);
        for moment in &mut self.moments {
            let band = band(moment.at_ns, moment.here);
            moment.doubt = band.doubt();
            group.jump(band, moment.before, moment.behind);
        }
        group
    }

    /// Tells each moment how much of a model's doubt about the step can lie on either side of it: no more than the
    /// hardest draw makes in that time, so that a span does not answer for a quiet hour before it.
    fn locate(&mut self, drift: u64, begun_ns: u64, limit_ns: u64) {
        let fence = &self.fence;
        let within =
            |duration_ns: u64| fence.known_most_in(duration_ns).map_or(drift, |most| most.min(drift));
        for moment in &mut self.moments {
            moment.drift = (
                within(moment.at_ns.saturating_sub(begun_ns)),
                within(limit_ns.saturating_sub(moment.at_ns)),
            );
        }
    }

    /// What an instant adds to the weight where not all of its spans use this domain.
    #[cold]
    fn change(&self, instant: &Instant, queue: &Queue) -> u64 {
        let events = queue.events.rest(instant.begin);
        events[..(instant.end - instant.begin) as usize]
            .iter()
            .filter(|event| (event.scope >> self.index) & 1 == 1)
            .fold(0, |change: u64, event| change.wrapping_add(event.weight).wrapping_sub(event.before))
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
