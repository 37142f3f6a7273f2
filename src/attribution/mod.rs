//! Attribution: splits the energy of each domain among the open spans.
//!
//! Owns the spans, the splitting rule and the accounts. Pure: knows no hardware, no clock, no IPC; time comes in as
//! arguments, so that every test can say what time it is. Invariants: for every domain
//! `measured = attributed + unattributed`, exactly; an account depends on the edges it states and not on the order in
//! which their messages came within the horizon; what is settled never changes. An open or a close costs the same
//! however many spans are open.

use std::collections::BTreeMap;

use crate::domain::{Domain, EnergyReading};

pub mod account;
pub mod footprint;

mod account_builder;
mod domain_timeline;
mod domain_tree;
mod edge_commit;
mod edge_pre_pass;
mod edge_queue;
mod error_bounds;
mod fast_path;
mod idle_power;
mod interpolator;
mod iter_spans;
mod peak_concurrency;
mod power_shape;
mod process_share;
mod request;
mod settle;
mod settled_span;
mod span;
mod span_domain_state;
mod span_process_share;
mod span_table;
mod subject;
mod update_detector;
mod usage_history;
mod virtual_energy;
mod weight;

pub use process_share::CPU_TIME;
pub use request::{
    AttributionError, AttributionSettings, BasisUsageSample, NewSpan, SpanKey, Subject, SubjectUsage,
};
pub use settled_span::SettledSpan;

use account::{Account, Balance};
use domain_timeline::DomainTimeline;
use edge_pre_pass::EdgePrePass;
use edge_queue::{Edge, EdgeKind, EdgeQueue};
use process_share::ProcessShares;
use span::SlotState;
use span_table::SpanTable;
use weight::weight_units;

/// The most domains one attributor can hold: one bit each.
pub const MAX_DOMAINS: usize = 64;

/// Splits the energy of each domain among the open spans.
#[derive(Debug)]
pub struct Attributor {
    settings: AttributionSettings,
    timelines: Vec<DomainTimeline>,
    spans: SpanTable,
    queue: EdgeQueue,
    pre_pass: EdgePrePass,
    process_shares: ProcessShares,
    /// The domains that are live, those whose source has not answered, and those in the host's total, one bit each.
    live_domains: u64,
    starting_domains: u64,
    counted_domains: u64,
    /// Those that are left out of the total although they may be part of it.
    undecided_domains: u64,
    open_count: usize,
    last_settle_ns: u64,
    busy_since_ns: u64,
    oldest_close_ns: Option<u64>,
    settled_slots: Vec<u32>,
}

impl Attributor {
    /// An attributor over these domains (at most [`MAX_DOMAINS`]; more are not metered), in this order for ever.
    pub fn new(domains: Vec<Domain>, settings: AttributionSettings) -> Self {
        let count = domains.len().min(MAX_DOMAINS);
        let all = (0..count).fold(0, |bits, index| bits | 1 << index);
        let timelines: Vec<DomainTimeline> = domains
            .into_iter()
            .take(MAX_DOMAINS)
            .enumerate()
            .map(|(index, domain)| {
                let idle_mw = settings.idle_mw.get(&domain.name).copied();
                DomainTimeline::new(index, domain, settings.counter_timeout_ns, idle_mw)
            })
            .collect();
        Self {
            spans: SpanTable::new(count),
            process_shares: ProcessShares::new(&timelines),
            timelines,
            settings,
            queue: EdgeQueue::default(),
            pre_pass: EdgePrePass::default(),
            live_domains: all,
            starting_domains: 0,
            counted_domains: all,
            undecided_domains: 0,
            open_count: 0,
            last_settle_ns: 0,
            busy_since_ns: 0,
            oldest_close_ns: None,
            settled_slots: Vec::new(),
        }
    }

    /// One reading of one domain, in the order of time; `before_ns..=after_ns` surrounds the read.
    pub fn add_reading(&mut self, domain: usize, before_ns: u64, after_ns: u64, reading: &EnergyReading) {
        if let Some(timeline) = self.timelines.get_mut(domain) {
            timeline.add_reading(before_ns, after_ns, reading);
        }
    }

    /// Takes new figures for what may change while it runs: idle power, the most open spans, the most unsettled changes
    /// of weight. Changes no settled figure.
    pub fn reconfigure(&mut self, idle_mw: BTreeMap<String, u64>, max_open_spans: usize, max_changes: u64) {
        self.timelines.iter_mut().for_each(|timeline| timeline.set_idle_power(&idle_mw));
        (self.settings.idle_mw, self.settings.max_open_spans) = (idle_mw, max_open_spans);
        self.settings.max_pending_weight_changes = max_changes;
    }

    /// How often the domain's counter moves, as characterised: better estimates inside a step; no guarantee rests on
    /// it.
    pub fn set_update_interval(&mut self, domain: usize, interval_ns: u64) {
        if let Some(timeline) = self.timelines.get_mut(domain) {
            timeline.set_update_interval(interval_ns);
        }
    }

    /// Whether the domain is part of the host's total, for spans opened from now on.
    pub fn set_counted(&mut self, domain: usize, counted: bool) {
        if domain < self.timelines.len() {
            set_bit(&mut self.counted_domains, domain, counted);
        }
    }

    /// Whether the domain is left out of the total although it may be part of it: sums of spans opened from now on are
    /// lower bounds.
    pub fn set_undecided(&mut self, domain: usize, undecided: bool) {
        if domain < self.timelines.len() {
            set_bit(&mut self.undecided_domains, domain, undecided);
        }
    }

    /// Takes the domain out of the totals of all spans that are not settled: it was found to be a second name of
    /// another.
    pub fn exclude(&mut self, domain: usize) {
        if domain < self.timelines.len() {
            set_bit(&mut self.counted_domains, domain, false);
            self.spans.iter_mut().for_each(|span| set_bit(&mut span.counted, domain, false));
        }
    }

    /// Takes new parents of its domains, which come in the order of the domains here.
    pub fn set_parents<'a>(&mut self, domains: impl Iterator<Item = &'a Domain>) {
        for (timeline, domain) in self.timelines.iter_mut().zip(domains) {
            timeline.domain.parent.clone_from(&domain.parent);
        }
        self.process_shares.update_domain_tree(&self.timelines);
    }

    /// Whether the domain takes part in the accounts of spans opened from now on. Spans that already use a domain
    /// that stops being live get its time as unknown.
    pub fn set_live(&mut self, domain: usize, live: bool) {
        if domain < self.timelines.len() {
            set_bit(&mut self.live_domains, domain, live);
        }
    }

    /// Whether the domain's source has not answered yet: it takes part in spans opened from now on, all their time
    /// unknown.
    pub fn set_starting(&mut self, domain: usize, starting: bool) {
        if domain < self.timelines.len() {
            set_bit(&mut self.starting_domains, domain, starting);
        }
    }

    /// Adds a domain after the others; beyond [`MAX_DOMAINS`] it is not metered. Spans that are open do not use it.
    pub fn add_domain(&mut self, domain: Domain) {
        let index = self.timelines.len();
        if index == MAX_DOMAINS {
            return;
        }
        let idle_mw = self.settings.idle_mw.get(&domain.name).copied();
        let mut timeline = DomainTimeline::new(index, domain, self.settings.counter_timeout_ns, idle_mw);
        // No edge so far is one of its own.
        (timeline.next_instant, timeline.next_edge) =
            (self.queue.instants.end_index(), self.pre_pass.next_edge);
        self.timelines.push(timeline);
        self.spans.add_domain();
        self.process_shares.add_domain(&self.timelines);
    }

    /// Opens a span; `now_ns` is when the message came. An edge older than the horizon is moved to it.
    ///
    /// # Errors
    /// `LimitReached` at the limit of spans or waiting edges; `InvalidValue` for a weight that means nothing.
    pub fn open(&mut self, now_ns: u64, new_span: NewSpan) -> Result<SpanKey, AttributionError> {
        let weight = weight_units(new_span.weight)?;
        if self.spans.len() >= self.settings.max_open_spans {
            return Err(AttributionError::LimitReached {
                quota: "open spans",
                limit: self.settings.max_open_spans,
            });
        }
        self.check_edge_limit(self.settings.max_pending_edges)?;
        let known = |index: &&usize| **index < self.timelines.len();
        let requested =
            |list: &Vec<usize>| list.iter().filter(known).fold(0, |bits, index| bits | 1 << index);
        let scope = new_span.domains.as_ref().map_or(self.live_domains | self.starting_domains, requested);
        let opened_ns = new_span.at_ns.max(self.horizon_ns(now_ns));
        if self.spans.len() == 0 {
            self.busy_since_ns = now_ns;
        }
        let key = self.spans.insert(new_span, opened_ns, weight, scope);
        let span = self.spans.span_mut(slot_of(key));
        (span.counted, span.undecided) = (scope & self.counted_domains, scope & self.undecided_domains);
        if span.subject != 0 {
            self.process_shares.add_span(span.subject);
        }
        self.open_count += 1;
        self.queue.insert(new_edge(opened_ns, key, scope, EdgeKind::Open, weight));
        Ok(key)
    }

    /// Ends the running phase and begins the next.
    ///
    /// # Errors
    /// `NoSuchSpan`, `AlreadyClosed`, `InvalidTime` before the span's opening, `LimitReached`.
    pub fn begin_phase(
        &mut self,
        now_ns: u64,
        key: SpanKey,
        phase: String,
        at_ns: u64,
    ) -> Result<(), AttributionError> {
        self.check_edge_limit(self.settings.max_pending_edges / 2)?;
        let (requested_ns, at_ns) = (at_ns, self.edge_time_ns(now_ns, key, at_ns)?);
        let domains = self.timelines.len();
        let span = self.spans.get_mut(key).ok_or(AttributionError::NoSuchSpan)?;
        let history = span.history_mut(domains);
        history.moved_ns += at_ns - requested_ns;
        let index = history.phases.partition_point(|(begin_ns, _)| *begin_ns <= at_ns);
        history.phases.insert(index, (at_ns, phase));
        let scope = span.scope;
        self.queue.insert(new_edge(at_ns, key, scope, EdgeKind::Phase, 0));
        Ok(())
    }

    /// From `at_ns` on the span weighs this much.
    ///
    /// # Errors
    /// As for [`Attributor::begin_phase`], and `InvalidValue`.
    pub fn set_weight(
        &mut self,
        now_ns: u64,
        key: SpanKey,
        weight: f64,
        at_ns: u64,
    ) -> Result<(), AttributionError> {
        let weight = weight_units(weight)?;
        self.check_edge_limit(self.settings.max_pending_edges / 2)?;
        let (requested_ns, at_ns) = (at_ns, self.edge_time_ns(now_ns, key, at_ns)?);
        let (domains, max_changes) = (self.timelines.len(), self.settings.max_pending_weight_changes);
        let span = self.spans.get_mut(key).ok_or(AttributionError::NoSuchSpan)?;
        if span.has_unsettled_weight_changes(max_changes) {
            let quota = "unsettled weight changes of one span";
            return Err(AttributionError::LimitReached {
                quota,
                limit: usize::try_from(max_changes).unwrap_or(usize::MAX),
            });
        }
        span.weight = weight;
        let history = span.history_mut(domains);
        history.weight_changes += 1;
        history.moved_ns += at_ns - requested_ns;
        let scope = span.scope;
        self.queue.insert(new_edge(at_ns, key, scope, EdgeKind::Weight, weight));
        Ok(())
    }

    /// Ends a span, with attributes to add; `abandoned` where its client disconnected, which a span that begins
    /// slightly ahead does not outlive.
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
    ) -> Result<(), AttributionError> {
        let at_ns = if abandoned {
            self.requested_ns(key).map_or(at_ns, |requested| requested.max(at_ns))
        } else {
            at_ns
        };
        let edge_ns = self.edge_time_ns(now_ns, key, at_ns)?;
        let span = self.spans.get_mut(key).ok_or(AttributionError::NoSuchSpan)?;
        span.slot_state = SlotState::Closing;
        span.closed_ns = edge_ns;
        span.moved_ns += edge_ns - at_ns.min(edge_ns);
        span::extend_attributes(&mut span.attributes, attributes);
        span.abandoned = abandoned;
        self.open_count -= 1;
        let edge = new_edge(edge_ns, key, span.scope, EdgeKind::Close, 0);
        self.queue.insert(edge);
        self.oldest_close_ns = Some(self.oldest_close_ns.map_or(edge_ns, |oldest| oldest.min(edge_ns)));
        Ok(())
    }

    /// Forgets an open span: what it used up to `at_ns` becomes unattributed.
    ///
    /// # Errors
    /// As for [`Attributor::close`].
    pub fn cancel(&mut self, now_ns: u64, key: SpanKey, at_ns: u64) -> Result<(), AttributionError> {
        self.close(now_ns, key, at_ns, BTreeMap::new(), false)?;
        self.spans.get_mut(key).ok_or(AttributionError::NoSuchSpan)?.cancelled = true;
        Ok(())
    }

    /// Whether readings are needed now: a span is open, or closed and not settled.
    pub fn is_busy(&self) -> bool {
        self.spans.len() > 0
    }

    /// How many spans are open.
    pub fn open_span_count(&self) -> usize {
        self.open_count
    }

    /// The account so far of a span that is open or not yet settled.
    ///
    /// # Errors
    /// `NoSuchSpan`.
    pub fn account(&self, now_ns: u64, key: SpanKey) -> Result<Account, AttributionError> {
        self.spans.get(key).ok_or(AttributionError::NoSuchSpan)?;
        let (span, states) = self.spans.span_and_states(slot_of(key));
        let mut account = account_builder::unsettled_account(span, states, &self.timelines, now_ns);
        self.process_shares.add_to_account(&mut account, span, key, &self.timelines);
        Ok(account)
    }

    /// Each domain's energy balance: `measured = attributed + unattributed`, exactly. The two sides are summed
    /// apart from each other: the one from settled accounts and running shares, the other from energy that met no
    /// open weight, cancelled spans and what rounding to whole microjoules left over.
    pub fn balance(&self) -> Vec<Balance> {
        self.timelines.iter().map(DomainTimeline::balance).collect()
    }

    /// How many edges wait for their counters.
    pub fn pending_edge_count(&self) -> usize {
        self.queue.edges.len()
    }

    /// Gives memory back that many spans took, once they are gone. Costs as much as there are slots: for seldom use.
    pub fn shrink(&mut self) {
        let slot_limit = self.queue.slot_limit();
        self.spans.shrink(slot_limit);
        self.queue.shrink();
        self.pre_pass.shrink();
        self.timelines.iter_mut().for_each(DomainTimeline::shrink);
        self.settled_slots.shrink_to(64);
    }

    /// The time before which nothing changes any more.
    fn horizon_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.settings.horizon_ns)
    }

    /// Phases and changes of weight leave half of the room to openings, so that they cannot keep new spans out.
    fn check_edge_limit(&self, limit: usize) -> Result<(), AttributionError> {
        if self.queue.edges.len() >= limit {
            return Err(AttributionError::LimitReached { quota: "waiting edges", limit });
        }
        Ok(())
    }

    /// Where an edge of an open span lies: not before its opening, not before the horizon.
    fn edge_time_ns(&self, now_ns: u64, key: SpanKey, at_ns: u64) -> Result<u64, AttributionError> {
        let span = self.spans.get(key).ok_or(AttributionError::NoSuchSpan)?;
        if span.slot_state != SlotState::Open {
            return Err(AttributionError::AlreadyClosed);
        }
        if at_ns < span.requested_ns() {
            return Err(AttributionError::InvalidTime {
                earliest_ns: span.requested_ns(),
                latest_ns: now_ns,
            });
        }
        Ok(at_ns.max(self.horizon_ns(now_ns)).max(span.opened_ns))
    }
}

fn set_bit(bits: &mut u64, index: usize, set: bool) {
    *bits = *bits & !(1 << index) | u64::from(set) << index;
}

fn slot_of(key: SpanKey) -> u32 {
    u32::try_from(key.slot()).expect("a key's slot is 32 bits wide")
}

fn new_edge(at_ns: u64, key: SpanKey, scope: u64, kind: EdgeKind, weight: u64) -> Edge {
    Edge {
        at_ns,
        scope,
        weight_before: 0,
        weight_after: weight,
        share_fraction: 0,
        weight_edge: 0,
        slot: slot_of(key),
        generation: key.generation() as u16,
        kind,
        has_history: false,
    }
}

#[cfg(test)]
mod tests;
