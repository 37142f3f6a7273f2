//! The queue's head: it passes each edge once, right behind the horizon, before any domain does.
//!
//! Owns what holds for all domains alike: who is open together, and the weight of all spans. What it finds it writes into
//! the edges and their instants, so that no domain has to look at a span. Invariant: edges that the head has passed stand
//! still; a domain passes none that the head has not.

use super::bound::fraction;
use super::crowd::Crowd;
use super::queue::{Edge, Event, Instant, Queue, first_instant};
use super::roster::Roster;
use super::share::inverse_of;

/// The head.
#[derive(Debug, Default)]
pub(crate) struct Head {
    crowd: Crowd,
    /// The index of the first event that it has not passed.
    pub passed: u64,
    /// The open weight of all spans, and its inverse.
    total: u64,
    inverse: u64,
    /// Slots of spans whose weight history is to be folded.
    pub full: Vec<u32>,
}

impl Head {
    /// Passes every edge before `behind_ns`; spans that no domain has to pass go to `done`.
    pub(crate) fn advance(
        &mut self,
        behind_ns: u64,
        queue: &mut Queue,
        roster: &mut Roster,
        done: &mut Vec<u32>,
    ) {
        let begin = self.passed;
        let Queue { events, instants, storied } = queue;
        let mut waiting = events.rest_mut(begin);
        while let Some((at_ns, length)) = first_instant(waiting, behind_ns) {
            let (events, rest) = waiting.split_at_mut(length);
            let mut instant = Instant {
                at_ns,
                begin: self.passed,
                end: self.passed,
                any: 0,
                all: u64::MAX,
                change: 0,
                total: self.total,
                inverse: self.inverse,
            };
            let (mut opened, mut closed) = (0, 0);
            for event in &mut *events {
                match self.pass(event, instant.end, roster) {
                    Some(Edge::Open) => opened += 1,
                    Some(Edge::Close) => closed += 1,
                    Some(Edge::Weight | Edge::Mark) => *storied = instant.end + 1,
                    None => {}
                }
                if event.edge == Edge::Close && event.scope == 0 {
                    done.push(event.slot);
                }
                instant.add(event);
            }
            self.crowd.change(at_ns, opened, closed);
            self.weigh(events, &mut instant);
            instants.push(instant);
            waiting = rest;
        }
        roster.touch(&queue.events.rest(begin)[..(self.passed - begin) as usize]);
    }

    /// Gives memory back that many spans took.
    pub(crate) fn shrink(&mut self) {
        self.crowd.shrink();
        self.full.shrink_to(64);
    }

    /// Tells an edge what its span was before it; `None` where it is stamped behind its span's close, and says nothing.
    #[inline]
    fn pass(&mut self, event: &mut Event, index: u64, roster: &mut Roster) -> Option<Edge> {
        let Some(span) = roster.span_of(event) else {
            (event.scope, event.before, event.weight) = (0, 0, 0);
            return None;
        };
        (event.before, event.turned, event.storied) = (span.headed, span.turned, span.storied);
        match event.edge {
            Edge::Open => span.turned = index,
            Edge::Weight => {
                span.turned = index;
                if span.pass_change(event.at_ns, event.weight) && self.full.last() != Some(&event.slot) {
                    self.full.push(event.slot);
                }
            }
            Edge::Mark => event.weight = span.headed,
            Edge::Close => {
                span.peak = self.crowd.peak(span.opened_ns);
                span.gone = true;
            }
        }
        span.headed = event.weight;
        Some(event.edge)
    }

    /// All edges of an instant are passed: tells them and it what all spans weigh.
    #[inline]
    fn weigh(&mut self, events: &mut [Event], instant: &mut Instant) {
        // An instant that says nothing concerns nobody.
        instant.all &= instant.any;
        if instant.change != 0 {
            instant.total = self.total.wrapping_add(instant.change);
            instant.inverse = inverse_of(instant.total);
        }
        for event in events {
            event.part = match event.edge {
                Edge::Close => fraction(event.before, self.inverse),
                _ => fraction(event.weight, instant.inverse),
            };
        }
        (self.passed, self.total, self.inverse) = (instant.end, instant.total, instant.inverse);
    }
}
