//! Who the joules belong to.
//!
//! Owns the spans, the splitting rule and the accounts. Pure: knows no hardware, no clock, no IPC; time comes in as
//! arguments, so that every test can say what time it is. Invariants: for every domain
//! `measured = attributed + unattributed`, exactly; an account depends on the edges it states and not on the order in
//! which their messages came within the horizon; what is settled never changes. An open or a close costs the same
//! however many spans are open.

use std::collections::BTreeMap;

use crate::domain::{Domain, Reading};

pub mod account;
pub mod footprint;

mod bound;
mod contour;
mod course;
mod crowd;
mod glide;
mod head;
mod idle;
mod lineage;
mod mark;
mod part;
mod passage;
mod portion;
mod queue;
mod result;
mod roster;
mod settle;
mod settled;
mod share;
mod span;
mod subject;
mod survey;
mod terms;
mod track;
mod update_detector;
mod usage;
mod weight;

pub use portion::CPU_TIME;
pub use settled::Settled;
pub use terms::{Look, Opening, Refused, Settings, SpanKey, Subject, Used};

use account::{Account, Balance};
use head::Head;
use portion::Portions;
use queue::{Edge, Event, Queue};
use roster::Roster;
use span::Life;
use track::Track;
use weight::units_of;

/// The most domains one ledger can hold: one bit each.
pub const MOST_DOMAINS: usize = 64;

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    settings: Settings,
    tracks: Vec<Track>,
    roster: Roster,
    queue: Queue,
    head: Head,
    portions: Portions,
    /// The domains that are live, those whose source has not answered, and those in the host's total, one bit each.
    live: u64,
    starting: u64,
    counted: u64,
    /// Those that are left out of it although they may be part of it.
    in_doubt: u64,
    open: usize,
    settled_ns: u64,
    busy_since_ns: u64,
    oldest_close_ns: Option<u64>,
    done: Vec<u32>,
}

impl Ledger {
    /// A ledger over these domains (at most [`MOST_DOMAINS`]; more are not metered), in this order for ever.
    pub fn new(domains: Vec<Domain>, settings: Settings) -> Self {
        let count = domains.len().min(MOST_DOMAINS);
        let all = (0..count).fold(0, |bits, index| bits | 1 << index);
        let tracks: Vec<Track> = domains
            .into_iter()
            .take(MOST_DOMAINS)
            .enumerate()
            .map(|(index, domain)| {
                let idle_mw = settings.idle_mw.get(&domain.name).copied();
                Track::new(index, domain, settings.patience_ns, idle_mw)
            })
            .collect();
        Self {
            roster: Roster::new(count),
            portions: Portions::new(&tracks),
            tracks,
            settings,
            queue: Queue::default(),
            head: Head::default(),
            live: all,
            starting: 0,
            counted: all,
            in_doubt: 0,
            open: 0,
            settled_ns: 0,
            busy_since_ns: 0,
            oldest_close_ns: None,
            done: Vec::new(),
        }
    }

    /// One reading of one domain, in the order of time; `before_ns..=after_ns` surrounds the read.
    pub fn feed(&mut self, domain: usize, before_ns: u64, after_ns: u64, reading: &Reading) {
        if let Some(track) = self.tracks.get_mut(domain) {
            track.feed(before_ns, after_ns, reading);
        }
    }

    /// Takes new figures for what may change while it runs: idle power, the most open spans, the most unsettled changes of
    /// weight. Changes no settled figure.
    pub fn reconfigure(&mut self, idle_mw: BTreeMap<String, u64>, max_open: usize, max_changes: u64) {
        self.tracks.iter_mut().for_each(|track| track.set_idle(&idle_mw));
        (self.settings.idle_mw, self.settings.max_open) = (idle_mw, max_open);
        self.settings.max_changes = max_changes;
    }

    /// How often the domain's counter moves, as characterised: better estimates inside a step; no guarantee rests on it.
    pub fn set_interval(&mut self, domain: usize, interval_ns: u64) {
        if let Some(track) = self.tracks.get_mut(domain) {
            track.set_interval(interval_ns);
        }
    }

    /// Whether the domain is part of the host's total, for spans opened from now on.
    pub fn set_counted(&mut self, domain: usize, counted: bool) {
        if domain < self.tracks.len() {
            set_bit(&mut self.counted, domain, counted);
        }
    }

    /// Whether the domain is left out of the total although it may be part of it: sums of spans opened from now on are lower
    /// bounds.
    pub fn set_in_doubt(&mut self, domain: usize, in_doubt: bool) {
        if domain < self.tracks.len() {
            set_bit(&mut self.in_doubt, domain, in_doubt);
        }
    }

    /// Takes the domain out of the totals of all spans that are not settled: it was found to be a second name of another.
    pub fn exclude(&mut self, domain: usize) {
        if domain < self.tracks.len() {
            set_bit(&mut self.counted, domain, false);
            self.roster.live_mut().for_each(|span| set_bit(&mut span.counted, domain, false));
        }
    }

    /// Takes new parents of its domains, which come in the ledger's order.
    pub fn relate<'a>(&mut self, domains: impl Iterator<Item = &'a Domain>) {
        for (track, domain) in self.tracks.iter_mut().zip(domains) {
            track.domain.parent.clone_from(&domain.parent);
        }
        self.portions.relate(&self.tracks);
    }

    /// Whether the domain takes part in the accounts of spans opened from now on. Spans that already use a domain
    /// that stops being live get its time as unknown.
    pub fn set_live(&mut self, domain: usize, live: bool) {
        if domain < self.tracks.len() {
            set_bit(&mut self.live, domain, live);
        }
    }

    /// Whether the domain's source has not answered yet: it takes part in spans opened from now on, all their time unknown.
    pub fn set_starting(&mut self, domain: usize, starting: bool) {
        if domain < self.tracks.len() {
            set_bit(&mut self.starting, domain, starting);
        }
    }

    /// One more domain, behind the others; beyond [`MOST_DOMAINS`] it is not metered. Spans that are open do not use it.
    pub fn add(&mut self, domain: Domain) {
        let index = self.tracks.len();
        if index == MOST_DOMAINS {
            return;
        }
        let idle_mw = self.settings.idle_mw.get(&domain.name).copied();
        let mut track = Track::new(index, domain, self.settings.patience_ns, idle_mw);
        // No edge so far is one of its own.
        (track.cursor, track.passed) = (self.queue.instants.end(), self.head.passed);
        self.tracks.push(track);
        self.roster.widen();
        self.portions.widen(&self.tracks);
    }

    /// Opens a span; `now_ns` is when the message came. An edge older than the horizon is moved to it.
    ///
    /// # Errors
    /// `Full` at the limit of spans or waiting edges; `InvalidValue` for a weight that means nothing.
    pub fn open(&mut self, now_ns: u64, opening: Opening) -> Result<SpanKey, Refused> {
        let weight = units_of(opening.weight)?;
        if self.roster.len() >= self.settings.max_open {
            return Err(Refused::Full { quota: "open spans", limit: self.settings.max_open });
        }
        self.room_for_an_edge(self.settings.max_waiting)?;
        let known = |index: &&usize| **index < self.tracks.len();
        let asked = |list: &Vec<usize>| list.iter().filter(known).fold(0, |bits, index| bits | 1 << index);
        let scope = opening.domains.as_ref().map_or(self.live | self.starting, asked);
        let opened_ns = opening.at_ns.max(self.horizon_ns(now_ns));
        if self.roster.len() == 0 {
            self.busy_since_ns = now_ns;
        }
        let key = self.roster.admit(opening, opened_ns, weight, scope);
        let span = self.roster.span_mut(slot(key));
        (span.counted, span.in_doubt) = (scope & self.counted, scope & self.in_doubt);
        if span.subject != 0 {
            self.portions.hold(span.subject);
        }
        self.open += 1;
        self.queue.insert(event(opened_ns, key, scope, Edge::Open, weight));
        Ok(key)
    }

    /// Ends the running phase and begins the next.
    ///
    /// # Errors
    /// `NoSuchSpan`, `AlreadyClosed`, `InvalidTime` before the span's opening, `Full`.
    pub fn mark(&mut self, now_ns: u64, key: SpanKey, phase: String, at_ns: u64) -> Result<(), Refused> {
        self.room_for_an_edge(self.settings.max_waiting / 2)?;
        let (asked_ns, at_ns) = (at_ns, self.edge_of_open(now_ns, key, at_ns)?);
        let domains = self.tracks.len();
        let span = self.roster.find_mut(key).ok_or(Refused::NoSuchSpan)?;
        let story = span.story(domains);
        story.moved_ns += at_ns - asked_ns;
        let place = story.phases.partition_point(|(begun, _)| *begun <= at_ns);
        story.phases.insert(place, (at_ns, phase));
        let scope = span.scope;
        self.queue.insert(event(at_ns, key, scope, Edge::Mark, 0));
        Ok(())
    }

    /// From `at_ns` on the span weighs this much.
    ///
    /// # Errors
    /// As for [`Ledger::mark`], and `InvalidValue`.
    pub fn set_weight(&mut self, now_ns: u64, key: SpanKey, weight: f64, at_ns: u64) -> Result<(), Refused> {
        let weight = units_of(weight)?;
        self.room_for_an_edge(self.settings.max_waiting / 2)?;
        let (asked_ns, at_ns) = (at_ns, self.edge_of_open(now_ns, key, at_ns)?);
        let (domains, most) = (self.tracks.len(), self.settings.max_changes);
        let span = self.roster.find_mut(key).ok_or(Refused::NoSuchSpan)?;
        if span.has_unsettled_changes(most) {
            let quota = "unsettled weight changes of one span";
            return Err(Refused::Full { quota, limit: usize::try_from(most).unwrap_or(usize::MAX) });
        }
        span.weight = weight;
        let story = span.story(domains);
        story.changes += 1;
        story.moved_ns += at_ns - asked_ns;
        let scope = span.scope;
        self.queue.insert(event(at_ns, key, scope, Edge::Weight, weight));
        Ok(())
    }

    /// Ends a span, with attributes to add; `abandoned` where its client went away, which a span that begins a moment
    /// ahead does not outlive.
    ///
    /// # Errors
    /// `NoSuchSpan`, `AlreadyClosed`, `InvalidTime` before the span's opening.
    pub fn close(
        &mut self,
        now_ns: u64,
        key: SpanKey,
        at_ns: u64,
        attributes: BTreeMap<String, String>,
        abandoned: bool,
    ) -> Result<(), Refused> {
        let at_ns =
            if abandoned { self.asked_ns(key).map_or(at_ns, |asked| asked.max(at_ns)) } else { at_ns };
        let edge_ns = self.edge_of_open(now_ns, key, at_ns)?;
        let span = self.roster.find_mut(key).ok_or(Refused::NoSuchSpan)?;
        span.life = Life::Closing;
        span.closed_ns = edge_ns;
        span.moved_ns += edge_ns - at_ns.min(edge_ns);
        span::extend(&mut span.attributes, attributes);
        span.abandoned = abandoned;
        self.open -= 1;
        let event = event(edge_ns, key, span.scope, Edge::Close, 0);
        self.queue.insert(event);
        self.oldest_close_ns = Some(self.oldest_close_ns.map_or(edge_ns, |oldest| oldest.min(edge_ns)));
        Ok(())
    }

    /// Forgets an open span: what it used up to `at_ns` becomes unattributed.
    ///
    /// # Errors
    /// As for [`Ledger::close`].
    pub fn cancel(&mut self, now_ns: u64, key: SpanKey, at_ns: u64) -> Result<(), Refused> {
        self.close(now_ns, key, at_ns, BTreeMap::new(), false)?;
        self.roster.find_mut(key).ok_or(Refused::NoSuchSpan)?.cancelled = true;
        Ok(())
    }

    /// Whether readings are needed now: a span is open, or closed and not settled.
    pub fn busy(&self) -> bool {
        self.roster.len() > 0
    }

    /// How many spans are open.
    pub fn open_spans(&self) -> usize {
        self.open
    }

    /// The account so far of a span that is open or not yet settled.
    ///
    /// # Errors
    /// `NoSuchSpan`.
    pub fn account(&self, now_ns: u64, key: SpanKey) -> Result<Account, Refused> {
        self.roster.find(key).ok_or(Refused::NoSuchSpan)?;
        let (span, marks) = self.roster.view(slot(key));
        let mut account = result::so_far(span, marks, &self.tracks, now_ns);
        self.portions.tell(&mut account, span, key, &self.tracks);
        Ok(account)
    }

    /// Where each domain's joules went: `measured = attributed + unattributed`, exactly. The two sides are summed
    /// apart from each other: the one from accounts handed out and running shares, the other from energy that met no
    /// open weight, cancelled spans and what rounding to whole microjoules left over.
    pub fn balance(&self) -> Vec<Balance> {
        self.tracks.iter().map(Track::balance).collect()
    }

    /// How many edges wait for their counters.
    pub fn waiting_edges(&self) -> usize {
        self.queue.events.len()
    }

    /// Gives memory back that many spans took, once they are gone. Costs as much as there are slots: for seldom use.
    pub fn shrink(&mut self) {
        let waiting = self.queue.slots();
        self.roster.shrink(waiting);
        self.queue.shrink();
        self.head.shrink();
        self.tracks.iter_mut().for_each(Track::shrink);
        self.done.shrink_to(64);
    }

    /// The time behind which nothing changes any more.
    fn horizon_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.settings.horizon_ns)
    }

    /// Phases and changes of weight leave half of the room to openings, so that they cannot keep new spans out.
    fn room_for_an_edge(&self, limit: usize) -> Result<(), Refused> {
        if self.queue.events.len() >= limit {
            return Err(Refused::Full { quota: "waiting edges", limit });
        }
        Ok(())
    }

    /// Where an edge of an open span lies: not before its opening, not behind the horizon.
    fn edge_of_open(&self, now_ns: u64, key: SpanKey, at_ns: u64) -> Result<u64, Refused> {
        let span = self.roster.find(key).ok_or(Refused::NoSuchSpan)?;
        if span.life != Life::Open {
            return Err(Refused::AlreadyClosed);
        }
        if at_ns < span.asked_ns() {
            return Err(Refused::InvalidTime { earliest_ns: span.asked_ns(), latest_ns: now_ns });
        }
        Ok(at_ns.max(self.horizon_ns(now_ns)).max(span.opened_ns))
    }
}

fn set_bit(bits: &mut u64, place: usize, set: bool) {
    *bits = *bits & !(1 << place) | u64::from(set) << place;
}

fn slot(key: SpanKey) -> u32 {
    u32::try_from(key.slot()).expect("a key's slot is 32 bits wide")
}

fn event(at_ns: u64, key: SpanKey, scope: u64, edge: Edge, weight: u64) -> Event {
    Event {
        at_ns,
        scope,
        before: 0,
        weight,
        part: 0,
        turned: 0,
        slot: slot(key),
        generation: key.generation() as u16,
        edge,
        storied: false,
    }
}

#[cfg(test)]
mod tests;
