//! The attributor: takes readings and the edges of spans, and returns accounts.
//!
//! Settling has a fixed order: the pre-pass fills in what is the same for all domains, then each domain passes the
//! edges that its counter covers, then edges that all domains have passed are dropped. Invariants: a settled span is
//! returned once, after its last domain; a subject stays as long as a span refers to it.

use std::collections::BTreeMap;

use wattspan_client::account::{Account, Balance};

use super::account_builder::{self, SettledSpan, ShareBasis};
use super::domain_timeline::DomainTimeline;
use super::edge_queue::{Edge, EdgeKind, EdgeQueue};
use super::process_share::{FullRows, ProcessShares};
use super::request::{
    AttributionError, AttributionSettings, BasisUsageSample, NewSpan, SpanKey, Subject, weight_units,
};
use super::span::{SlotState, Span, SpanTable, domains_of};
use super::update_detector::ExpectedUpdates;
use super::virtual_energy::DomainClock;
use crate::domain::{Domain, EnergyReading, PowerLimit};

/// The maximum number of domains of an attributor: each has one bit of a word.
pub const MAX_DOMAINS: usize = 64;

/// Splits the energy of each domain among the open spans.
#[derive(Debug, Default)]
pub struct Attributor {
    settings: AttributionSettings,
    timelines: Vec<DomainTimeline>,
    spans: SpanTable,
    queue: EdgeQueue,
    process_shares: ProcessShares,
    /// The domains that are live, those whose source has not answered yet, and those in the host's total, one bit each.
    live_domains: u64,
    starting_domains: u64,
    counted_domains: u64,
    /// The domains that are left out of the total but may belong to it.
    undecided_domains: u64,
    /// The domains that are measured only since a certain instant.
    later_domains: u64,
    /// The domains that are replayed from a file.
    simulated_domains: u64,
    open_count: usize,
    last_settle_ns: u64,
    busy_since_ns: u64,
    oldest_close_ns: Option<u64>,
    newest_close_ns: u64,
    settled_slots: Vec<u32>,
}

impl Attributor {
    /// Creates an attributor over these domains, at most [`MAX_DOMAINS`]; more are ignored. Their order is fixed. All are
    /// live and in the host's total.
    pub fn new(domains: Vec<Domain>, settings: AttributionSettings) -> Self {
        let mut attributor = Self { settings, ..Self::default() };
        for (index, domain) in domains.into_iter().enumerate() {
            attributor.domains().add_domain(domain);
            attributor.domains().set_live(index, true);
            attributor.domains().set_counted(index, true);
        }
        attributor
    }

    /// The domains, whose readings and states it takes.
    pub fn domains(&mut self) -> DomainInputs<'_> {
        DomainInputs { attributor: self }
    }

    /// Adds a reading of a domain, in the order of time. The read happened within `before_ns..=after_ns`.
    pub fn add_reading(&mut self, domain: usize, before_ns: u64, after_ns: u64, reading: &EnergyReading) {
        if let Some(timeline) = self.timelines.get_mut(domain) {
            timeline.add_reading(before_ns, after_ns, reading);
        }
    }

    /// Changes the settings that can change at run time: idle power, the limit of open spans, and the limit of
    /// unsettled changes of weight. Settled accounts do not change.
    pub fn reconfigure(&mut self, idle_mw: BTreeMap<String, u64>, max_open_spans: usize, max_changes: u64) {
        for timeline in &mut self.timelines {
            timeline.idle_power.configure(idle_mw.get(&timeline.domain.name).copied());
        }
        (self.settings.idle_mw, self.settings.max_open_spans) = (idle_mw, max_open_spans);
        self.settings.max_pending_weight_changes = max_changes;
    }

    /// The domain's idle power at present, configured or learned; `None` if it is unknown.
    pub fn idle_power_mw(&self, domain: usize) -> Option<u64> {
        self.timelines.get(domain)?.idle_power.power_mw()
    }

    /// Opens a span. `now_ns` is the time at which the message came. An edge before the horizon is moved to the
    /// horizon.
    ///
    /// # Errors
    /// `LimitReached` at the limit of spans or pending edges; `InvalidValue` for an invalid weight.
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
        let opened_ns = new_span.at_ns.max(self.horizon_ns(now_ns));
        let present = (self.live_domains | self.starting_domains) & !self.domains_measured_after(opened_ns);
        let scope = new_span.domains.as_ref().map_or(present, requested);
        if self.spans.len() == 0 {
            self.busy_since_ns = now_ns;
        }
        let subject = new_span.subject;
        let (key, span) = self.spans.insert(new_span, opened_ns, weight, scope);
        span.counted = scope & self.counted_domains;
        span.has_undecided = scope & self.undecided_domains != 0;
        span.is_simulated = scope & self.simulated_domains != 0;
        if subject != 0 {
            self.process_shares.add_span(subject);
        }
        self.open_count += 1;
        self.queue.insert(Edge::new(opened_ns, key, span, EdgeKind::Open, weight));
        Ok(key)
    }

    /// The domains of which nothing is measured before or at `at_ns`.
    fn domains_measured_after(&self, at_ns: u64) -> u64 {
        if self.later_domains == 0 {
            return 0;
        }
        let is_later = |timeline: &&DomainTimeline| timeline.measured_since_ns > at_ns;
        self.timelines.iter().filter(is_later).fold(0, |bits, timeline| bits | 1 << timeline.index())
    }

    /// Ends the current phase and begins the next.
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
        let domains = self.timelines.len();
        let (span, edge_ns) = self.open_span(now_ns, key, at_ns)?;
        let history = span.history_mut(domains);
        history.add_edge(at_ns, edge_ns);
        let index = history.phases.partition_point(|(begin_ns, _)| *begin_ns <= edge_ns);
        history.phases.insert(index, (edge_ns, phase));
        let edge = Edge::new(edge_ns, key, span, EdgeKind::Phase, 0);
        self.queue.insert(edge);
        Ok(())
    }

    /// Sets the span's weight from `at_ns` on.
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
        let (domains, max_changes) = (self.timelines.len(), self.settings.max_pending_weight_changes);
        let (span, edge_ns) = self.open_span(now_ns, key, at_ns)?;
        if span.has_unsettled_weight_changes(max_changes) {
            let quota = "unsettled weight changes of one span";
            return Err(AttributionError::LimitReached {
                quota,
                limit: usize::try_from(max_changes).unwrap_or(usize::MAX),
            });
        }
        let history = span.history_mut(domains);
        history.weight_changes += 1;
        history.add_edge(at_ns, edge_ns);
        span.weight = weight;
        let edge = Edge::new(edge_ns, key, span, EdgeKind::Weight, weight);
        self.queue.insert(edge);
        Ok(())
    }

    /// Closes a span and adds attributes to it. `abandoned`: its client disconnected; a span whose opening lies
    /// slightly ahead of `at_ns` then closes at its opening.
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
        let (span, edge_ns) = self.open_span(now_ns, key, at_ns)?;
        let has_later_edges = span.history.as_ref().is_some_and(|history| history.last_edge_ns > edge_ns);
        span.slot_state = SlotState::Closing;
        span.closed_ns = edge_ns;
        span.moved_ns += edge_ns - at_ns.min(edge_ns);
        if !attributes.is_empty() {
            span.attributes.get_or_insert_default().extend(attributes);
        }
        span.abandoned = abandoned;
        let edge = Edge::new(edge_ns, key, span, EdgeKind::Close, 0);
        if has_later_edges {
            self.queue.remove_after(edge.slot, edge_ns);
        }
        self.queue.insert(edge);
        self.open_count -= 1;
        self.oldest_close_ns = Some(self.oldest_close_ns.map_or(edge_ns, |oldest| oldest.min(edge_ns)));
        self.newest_close_ns = self.newest_close_ns.max(edge_ns);
        Ok(())
    }

    /// Cancels an open span: its share up to `at_ns` becomes unattributed.
    ///
    /// # Errors
    /// As for [`Attributor::close`].
    pub fn cancel(&mut self, now_ns: u64, key: SpanKey, at_ns: u64) -> Result<(), AttributionError> {
        self.close(now_ns, key, at_ns, BTreeMap::new(), false)?;
        self.spans.get_mut(key).ok_or(AttributionError::NoSuchSpan)?.cancelled = true;
        Ok(())
    }

    /// Whether readings are needed now: a span is open, or closed but not settled.
    pub fn is_busy(&self) -> bool {
        self.spans.len() > 0
    }

    /// Whether a span with this key is open, or closed but not settled.
    pub fn has_span(&self, key: SpanKey) -> bool {
        self.spans.get(key).is_some()
    }

    /// The number of open spans.
    pub fn open_span_count(&self) -> usize {
        self.open_count
    }

    /// The name by which clients call an unsettled span.
    pub fn span_id(&self, key: SpanKey) -> Option<&str> {
        self.spans.get(key).map(|span| &*span.id)
    }

    /// The account so far of an unsettled span.
    ///
    /// # Errors
    /// `NoSuchSpan`.
    pub fn account(&self, now_ns: u64, key: SpanKey) -> Result<Account, AttributionError> {
        self.spans.get(key).ok_or(AttributionError::NoSuchSpan)?;
        let (span, states) = self.spans.span_and_states(key.slot());
        let process_shares = Some((&self.process_shares, key));
        Ok(account_builder::unsettled_account(span, states, &self.timelines, process_shares, now_ns))
    }

    /// Each domain's energy balance: `measured = attributed + unattributed`, exactly. The two terms are separate sums:
    /// `attributed` of settled accounts and shares so far; `unattributed` of energy without open weight, cancelled
    /// spans, and the remainders of divisions by W and of rounding to whole microjoules. Without what becomes of the accounts:
    /// `not_kept_uj` and `rounding_uj`.
    pub fn balance(&self) -> Vec<Balance> {
        self.timelines.iter().map(DomainTimeline::balance).collect()
    }

    /// The number of pending edges, which wait for a counter update.
    pub fn pending_edge_count(&self) -> usize {
        self.queue.edges.len()
    }

    /// Frees memory that many settled spans used. The cost is linear in the number of slots: call it seldom.
    pub fn shrink(&mut self) {
        self.spans.shrink();
        self.queue.shrink();
        self.process_shares.shrink();
        self.timelines.iter_mut().for_each(DomainTimeline::shrink);
        self.settled_slots.shrink_to(64);
    }

    /// The opening that the client requested; `None` if the span is not open. It may lie slightly after now.
    pub fn requested_ns(&self, key: SpanKey) -> Option<u64> {
        self.spans.get(key).filter(|span| span.slot_state == SlotState::Open).map(|span| span.requested_ns())
    }

    /// Calls `show` with the account so far of each span that opened by `opened_by_ns` and is not cancelled, in up to
    /// `slots` slots from `from` on. Returns the next slot, `None` after the last. An iteration from slot 0 to the end
    /// shows each span once that is unsettled throughout.
    pub fn iter_spans(
        &self,
        from: usize,
        slots: usize,
        now_ns: u64,
        opened_by_ns: u64,
        mut show: impl FnMut(SpanKey, Account),
    ) -> Option<usize> {
        let end = self.spans.slot_count().min(from.saturating_add(slots));
        for slot in from..end {
            let slot = u32::try_from(slot).ok()?;
            let (span, states) = self.spans.span_and_states(slot);
            if span.slot_state != SlotState::Free && !span.cancelled && span.opened_ns <= opened_by_ns {
                show(
                    self.spans.key_of(slot),
                    account_builder::unsettled_account(span, states, &self.timelines, None, now_ns),
                );
            }
        }
        (end < self.spans.slot_count()).then_some(end)
    }

    /// The clock of each domain at its settled time.
    pub(crate) fn domain_clocks(&self) -> Vec<DomainClock> {
        self.timelines.iter().map(|timeline| timeline.virtual_energy.snapshot()).collect()
    }

    /// What the account so far of an open span needs to be extended later, for each of its domains; `None` for a span that
    /// is not open, or while a change of its weight is not settled.
    pub(crate) fn share_bases(&self, key: SpanKey) -> Option<Vec<ShareBasis>> {
        self.spans.get(key).filter(|span| span.slot_state == SlotState::Open)?;
        let (span, states) = self.spans.span_and_states(key.slot());
        account_builder::share_bases(span, states, &self.timelines)
    }

    /// Adds a subject and returns its number for [`NewSpan::subject`], which is never 0.
    pub fn add_subject(&mut self, subject: Subject) -> u32 {
        self.process_shares.add_subject(subject, &self.timelines)
    }

    /// Removes a subject. Returns false, and keeps it, while a span refers to it.
    pub fn remove_subject(&mut self, subject: u32) -> bool {
        self.process_shares.remove_subject(subject)
    }

    /// Sets the reason why a subject's use is unknown; `None` if it is known.
    pub fn set_unknown_reason(&mut self, subject: u32, reason: Option<String>) {
        self.process_shares.set_unknown_reason(subject, reason);
    }

    /// Whether a span of this subject is open or unsettled.
    pub fn has_spans_of(&self, subject: u32) -> bool {
        self.process_shares.has_spans_of(subject)
    }

    /// Whether a subject has this number.
    pub fn has_subject(&self, subject: u32) -> bool {
        self.process_shares.has_subject(subject)
    }

    /// Whether there are any subjects.
    pub fn has_subjects(&self) -> bool {
        !self.process_shares.is_empty()
    }

    /// Whether a span is closed but not settled.
    pub fn has_closing_spans(&self) -> bool {
        self.oldest_close_ns.is_some()
    }

    /// Whether a span is closed after `ns` but not settled: a usage sample at `ns` does not cover its end.
    pub fn has_closed_after(&self, ns: u64) -> bool {
        self.has_closing_spans() && self.newest_close_ns > ns
    }

    /// Adds a usage sample. The samples of a basis come in the order of time.
    pub fn record_usage(&mut self, sample: &BasisUsageSample<'_>) {
        self.process_shares.record_usage(sample);
    }

    /// Sets the basis that splits the domain, in place of the one for its kind. Bases are numbered from 1.
    pub fn set_basis(&mut self, domain: usize, basis: usize) {
        self.process_shares.set_basis(domain, basis);
    }

    /// Settles everything that readings and the horizon allow, and appends the settled accounts to `into`. The key of a
    /// settled span is invalid from then on.
    pub fn settle(&mut self, now_ns: u64, into: &mut Vec<(SpanKey, Account)>) {
        self.advance(now_ns);
        self.drain_settled(|settled| into.push((settled.key(), settled.account())));
    }

    /// Settles everything that readings and the horizon allow. [`Attributor::drain_settled`] returns the settled spans.
    pub fn advance(&mut self, now_ns: u64) {
        let horizon_ns = self.horizon_ns(now_ns);
        self.last_settle_ns = now_ns;
        self.queue.visit_until(horizon_ns, &mut self.spans, &mut self.settled_slots);
        for change in self.queue.take_weight_changes() {
            if self.process_shares.record_weight_change(&change) {
                self.fold_weights(change.key);
            }
        }
        let busy = self.is_busy();
        for timeline in &mut self.timelines {
            let has_pending_edges = self.queue.has_edges_from(timeline.next_instant);
            let waited_ns =
                now_ns.saturating_sub(timeline.update_detector.last_reading_ns.max(self.busy_since_ns));
            if (has_pending_edges && (self.live_domains >> timeline.index()) & 1 == 0)
                || (busy && waited_ns > timeline.update_detector.counter_timeout_ns())
            {
                timeline.time_out(horizon_ns);
            }
            timeline.settle(horizon_ns, &self.queue, &mut self.spans, &mut self.settled_slots);
        }
        if let Some(full) = self.process_shares.record_rows(&self.timelines) {
            self.drop_oldest_rows(full);
        }
        let end = self.queue.instants.end_index();
        let next_instant = self.timelines.iter().map(|timeline| timeline.next_instant).min().unwrap_or(end);
        self.queue.drop_before(next_instant);
    }

    /// Folds a span's final weight intervals into one process share for each domain.
    #[cold]
    fn fold_weights(&mut self, key: SpanKey) {
        if let Some(span) = self.spans.get(key) {
            self.process_shares.fold_weights(span, key, &self.timelines);
        }
    }

    /// Drops a domain's oldest rows, after saving what long spans need of them.
    #[cold]
    fn drop_oldest_rows(&mut self, full: FullRows) {
        let FullRows { domain, opened_ns } = full;
        // One look at each span: the time that this takes is a delay for all clients.
        for (key, span) in self.spans.iter() {
            if span.subject != 0 && span.uses(domain) && opened_ns.contains(&span.opened_ns) {
                self.process_shares.record_opening_point(domain, key, span, &self.timelines);
            }
        }
        for key in self.process_shares.spans_with_weights() {
            self.fold_weights(key);
        }
        self.process_shares.drop_oldest_rows(domain);
    }

    /// Calls `show` with each newly settled span, and removes the spans.
    pub fn drain_settled(&mut self, show: impl FnMut(SettledSpan<'_>)) {
        self.drain_settled_up_to(usize::MAX, show);
    }

    /// Like [`Self::drain_settled`], for at most `limit` spans. Returns whether there are more.
    pub fn drain_settled_up_to(&mut self, limit: usize, mut show: impl FnMut(SettledSpan<'_>)) -> bool {
        let mut settled_slots = std::mem::take(&mut self.settled_slots);
        for slot in settled_slots.drain(..settled_slots.len().min(limit)) {
            let key = self.spans.key_of(slot);
            let (span, states) = self.spans.span_mut_and_states(slot);
            let subject = span.subject;
            for domain in domains_of(span.scope) {
                self.timelines[domain].record_settled_share(states[domain].g, span);
            }
            if !span.cancelled {
                show(SettledSpan {
                    key,
                    span,
                    domain_states: states,
                    timelines: &self.timelines,
                    process_shares: &self.process_shares,
                });
            }
            if subject != 0 {
                self.process_shares.remove_span(subject, key);
            }
            self.spans.release(slot);
        }
        self.settled_slots = settled_slots;
        if self.spans.len() == self.open_count {
            self.oldest_close_ns = None;
        }
        !self.settled_slots.is_empty()
    }

    /// The earliest instant at which [`Attributor::settle`] can return a span; `None` while no span is closing. A span settles
    /// once the horizon has reached the first counter update after its close. While that is unknown, it is looked for the less
    /// often the longer it has waited.
    pub fn next_settle_ns(&self) -> Option<u64> {
        const MIN_PAUSE_NS: u64 = 1_000_000;
        const MAX_PAUSE_NS: u64 = 10_000_000;
        self.oldest_close_ns?;
        // The newest close that may settle by now, and the first of the others.
        let (mut possible_ns, mut next_ns) = (None, u64::MAX);
        for ready_ns in self.pending_settle_times() {
            match ready_ns > self.last_settle_ns {
                true => next_ns = next_ns.min(ready_ns),
                false => possible_ns = possible_ns.max(Some(ready_ns)),
            }
        }
        let Some(possible_ns) = possible_ns else { return Some(next_ns) };
        let known = self.timelines.iter().filter_map(|timeline| timeline.next_horizon_ns(&self.queue)).min();
        let pause_ns = ((self.last_settle_ns - possible_ns) / 4).clamp(MIN_PAUSE_NS, MAX_PAUSE_NS);
        let due_ns = match known {
            Some(limit_ns) => limit_ns + self.settings.horizon_ns,
            None => self.last_settle_ns + pause_ns,
        };
        Some(due_ns.max(self.last_settle_ns + 1).min(next_ns))
    }

    /// The instant before which no span settles; `None` while no span is closing.
    pub fn earliest_settle_ns(&self) -> Option<u64> {
        self.oldest_close_ns.and_then(|_| self.pending_settle_times().min())
    }

    /// For each close that some domain has not passed, the instant before which its span cannot settle: the horizon has
    /// reached it, and a counter of the span can have shown an update that is certainly later. Of many edges only the first
    /// ones are examined.
    fn pending_settle_times(&self) -> impl Iterator<Item = u64> {
        const MAX_EXAMINED: usize = 64;
        let pending = self.queue.edges.items_from(0);
        let mut lag_of_scope = (0, 0);
        let closes = pending.iter().take(MAX_EXAMINED).filter(|edge| edge.kind == EdgeKind::Close);
        let ready_times = closes.map(move |edge| {
            if lag_of_scope.0 != edge.scope {
                lag_of_scope = (edge.scope, self.longest_lag_ns(edge.scope));
            }
            edge.at_ns + lag_of_scope.1.max(self.settings.horizon_ns + 1)
        });
        // No later edge can settle before the first that is not examined, and the newest one waits for the horizon.
        let others = pending.get(MAX_EXAMINED).map(|edge| edge.at_ns);
        let newest = others.map(|_| self.newest_close_ns + self.settings.horizon_ns + 1);
        ready_times.chain(others).chain(newest)
    }

    /// The longest time after an edge in which a counter of these domains cannot show an update that is certainly later.
    fn longest_lag_ns(&self, scope: u64) -> u64 {
        let live = domains_of(scope & self.live_domains);
        let lags = live.map(|domain| self.timelines[domain].update_detector.min_wait_ns());
        lags.max().unwrap_or(0)
    }

    /// The time before which a message has no effect.
    fn horizon_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.settings.horizon_ns)
    }

    /// Fails if the queue has `limit` edges. Phases and changes of weight use half of the limit, so that they cannot
    /// block new spans.
    fn check_edge_limit(&self, limit: usize) -> Result<(), AttributionError> {
        if self.queue.edges.len() >= limit {
            return Err(AttributionError::LimitReached { quota: "waiting edges", limit });
        }
        Ok(())
    }

    /// An open span, and the time of a new edge of it: not before its opening, not before the horizon.
    fn open_span(
        &mut self,
        now_ns: u64,
        key: SpanKey,
        at_ns: u64,
    ) -> Result<(&mut Span, u64), AttributionError> {
        let horizon_ns = self.horizon_ns(now_ns);
        let span = self.spans.get_mut(key).ok_or(AttributionError::NoSuchSpan)?;
        if span.slot_state != SlotState::Open {
            return Err(AttributionError::AlreadyClosed);
        }
        if at_ns < span.requested_ns() {
            return Err(AttributionError::InvalidTime {
                earliest_ns: span.requested_ns(),
                latest_ns: now_ns,
            });
        }
        let edge_ns = at_ns.max(horizon_ns).max(span.opened_ns);
        Ok((span, edge_ns))
    }
}

/// The domains of an attributor, without its spans, whose edges and accounts belong to the attributor's owner. For the
/// parts that read counters.
#[derive(Debug)]
pub struct DomainInputs<'a> {
    attributor: &'a mut Attributor,
}

impl DomainInputs<'_> {
    /// Adds a domain after the others; ignored beyond [`MAX_DOMAINS`]. Open spans do not use it.
    pub fn add_domain(&mut self, domain: Domain) {
        let Attributor { settings, timelines, spans, queue, process_shares, simulated_domains, .. } =
            &mut *self.attributor;
        if timelines.len() == MAX_DOMAINS {
            return;
        }
        *simulated_domains |= u64::from(domain.is_simulated()) << timelines.len();
        let idle_mw = settings.idle_mw.get(&domain.name).copied();
        let mut timeline = DomainTimeline::new(timelines.len(), domain, settings.counter_timeout_ns, idle_mw);
        // Skip the edges so far: none of them uses the new domain.
        timeline.next_instant = queue.instants.end_index();
        timelines.push(timeline);
        spans.add_domain();
        process_shares.add_domain(timelines);
    }

    /// As [`Attributor::add_reading`].
    #[inline]
    pub fn add_reading(&mut self, domain: usize, before_ns: u64, after_ns: u64, reading: &EnergyReading) {
        self.attributor.add_reading(domain, before_ns, after_ns, reading);
    }

    /// Sets the measured update interval of the domain's counter. It improves estimates inside a step; the guaranteed
    /// error does not depend on it.
    pub fn set_update_interval(&mut self, domain: usize, interval_ns: u64) {
        self.change(domain, |timeline| timeline.update_detector.update_interval_ns = Some(interval_ns));
    }

    /// Sets the instants at which the domain's counter is expected to move; `None`: unknown. They improve estimates; the
    /// guaranteed error does not depend on them.
    #[inline]
    pub fn set_expected_updates(&mut self, domain: usize, expected: Option<ExpectedUpdates>) {
        self.change(domain, |timeline| timeline.update_detector.expected_updates = expected);
    }

    /// Sets the largest publishing lag of the domain's counter, for readings from now on. The guaranteed error rests on
    /// it.
    pub fn set_latency(&mut self, domain: usize, latency_ns: u64) {
        self.change(domain, |timeline| timeline.update_detector.latency_ns = latency_ns);
    }

    /// Sets the limits of the domain's power, in place of `Domain::ceiling_mw`. They tighten the guaranteed error of all
    /// that is not settled; without a limit of the peak (`window_ns` 0) none applies.
    pub fn set_power_limits(&mut self, domain: usize, limits: &[PowerLimit]) {
        self.change(domain, |timeline| timeline.error_bounds.set_power_limits(limits));
    }

    fn change(&mut self, domain: usize, change: impl FnMut(&mut DomainTimeline)) {
        self.attributor.timelines.get_mut(domain).into_iter().for_each(change);
    }

    /// Sets whether the domain is part of the host's total, for spans opened from now on.
    pub fn set_counted(&mut self, domain: usize, counted: bool) {
        self.set_bit(domain, counted, |attributor| &mut attributor.counted_domains);
    }

    /// Sets whether the domain is left out of the total but may belong to it. Then the sums of spans opened from now on
    /// are lower bounds.
    pub fn set_undecided(&mut self, domain: usize, undecided: bool) {
        self.set_bit(domain, undecided, |attributor| &mut attributor.undecided_domains);
    }

    /// Sets whether the domain is part of the accounts of spans opened from now on. For spans that already use a domain
    /// that is no longer live, its time is unknown.
    pub fn set_live(&mut self, domain: usize, live: bool) {
        self.set_bit(domain, live, |attributor| &mut attributor.live_domains);
    }

    /// Sets whether the domain's source has not answered yet. The domain is part of spans opened from now on, and all
    /// its time is unknown.
    pub fn set_starting(&mut self, domain: usize, starting: bool) {
        self.set_bit(domain, starting, |attributor| &mut attributor.starting_domains);
    }

    /// Sets the instant before which nothing of the domain is measured. A span that was opened before it includes the domain
    /// only on request.
    pub fn set_measured_since(&mut self, domain: usize, since_ns: u64) {
        self.change(domain, |timeline| timeline.measured_since_ns = since_ns);
        self.set_bit(domain, since_ns > 0, |attributor| &mut attributor.later_domains);
    }

    fn set_bit(&mut self, domain: usize, set: bool, bits: fn(&mut Attributor) -> &mut u64) {
        if domain < self.attributor.timelines.len() {
            let bits = bits(self.attributor);
            *bits = *bits & !(1 << domain) | u64::from(set) << domain;
        }
    }

    /// Removes the domain from the totals of all unsettled spans, because it is a second name of another domain.
    pub fn exclude(&mut self, domain: usize) {
        self.set_counted(domain, false);
        if domain < MAX_DOMAINS {
            self.attributor.spans.iter_mut().for_each(|span| span.counted &= !(1 << domain));
        }
    }

    /// Updates the parents of the domains, from a list in the order of the domains.
    pub fn set_parents<'a>(&mut self, domains: impl Iterator<Item = &'a Domain>) {
        for (timeline, domain) in self.attributor.timelines.iter_mut().zip(domains) {
            timeline.domain.parent.clone_from(&domain.parent);
        }
        self.attributor.process_shares.update_domain_tree(&self.attributor.timelines);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::domain::{DomainKind, Grade};

    const NOW_NS: u64 = 5_000_000_000;
    const AHEAD_NS: u64 = NOW_NS + 900_000;

    fn opened_ahead() -> (Attributor, SpanKey) {
        let mut attributor = Attributor::new(Vec::new(), AttributionSettings::default());
        let key = attributor.open(NOW_NS, NewSpan::new("ahead", AHEAD_NS)).unwrap();
        (attributor, key)
    }

    #[test]
    fn an_abandoned_span_that_opens_later_closes_at_its_opening() {
        let (mut attributor, key) = opened_ahead();
        assert_eq!(attributor.requested_ns(key), Some(AHEAD_NS));
        attributor.close(NOW_NS + 1, key, NOW_NS + 1, BTreeMap::new(), true).unwrap();
        assert_eq!((attributor.open_span_count(), attributor.requested_ns(key)), (0, None));
        let account = attributor.account(NOW_NS + 1, key).unwrap();
        assert_eq!((account.opened_ns, account.closed_ns, account.moved_ns), (AHEAD_NS, Some(AHEAD_NS), 0));
    }

    fn gpu(name: &str) -> Domain {
        Domain {
            name: name.into(),
            kind: DomainKind::Gpu,
            source: "simulated".into(),
            device: None,
            parent: None,
            grade: Grade::Measured,
            ceiling_mw: None,
            latency_ns: 0,
            quantum_uj: 1,
        }
    }

    #[test]
    fn a_span_includes_a_domain_that_is_measured_later_only_on_request() {
        let domains = vec![gpu("gpu-0"), gpu("gpu-1")];
        let mut attributor = Attributor::new(domains, AttributionSettings::default());
        let scope = |attributor: &mut Attributor, at_ns: u64, domains: Option<Vec<usize>>| {
            let key = attributor.open(NOW_NS, NewSpan { domains, ..NewSpan::new("span", at_ns) }).unwrap();
            let span = attributor.spans.get(key).unwrap();
            (span.scope, span.counted)
        };
        attributor.domains().set_measured_since(1, u64::MAX);
        assert_eq!(scope(&mut attributor, NOW_NS, None), (0b01, 0b01));
        attributor.domains().set_measured_since(1, NOW_NS);
        assert_eq!(scope(&mut attributor, NOW_NS - 1, None), (0b01, 0b01));
        assert_eq!(scope(&mut attributor, NOW_NS, None), (0b11, 0b11));
        assert_eq!(scope(&mut attributor, NOW_NS - 1, Some(vec![1])), (0b10, 0b10));
    }

    #[test]
    fn a_span_that_waits_for_a_slow_counter_is_looked_for_seldom_and_a_new_one_soon() {
        let mut attributor = Attributor::new(vec![gpu("gpu-0")], AttributionSettings::default());
        let keys = ["a", "b"].map(|id| attributor.open(NOW_NS, NewSpan::new(id, NOW_NS)).unwrap());
        attributor.close(NOW_NS, keys[0], NOW_NS, BTreeMap::new(), false).unwrap();
        let (mut looks, mut now_ns, mut settled) = (0, NOW_NS, Vec::new());
        while now_ns < NOW_NS + 500_000_000 {
            now_ns = attributor.next_settle_ns().expect("a span that closes");
            attributor.settle(now_ns, &mut settled);
            looks += 1;
        }
        assert!((40..90).contains(&looks) && settled.is_empty(), "{looks} looks in half a second");
        let close_ns = now_ns;
        attributor.close(close_ns, keys[1], close_ns, BTreeMap::new(), false).unwrap();
        // Not before the horizon, then at once and again soon.
        let ready_ns = close_ns + attributor.settings.horizon_ns + 1;
        let mut later = std::iter::from_fn(|| {
            now_ns = attributor.next_settle_ns().expect("both close");
            attributor.settle(now_ns, &mut settled);
            Some(now_ns)
        });
        assert!(later.any(|look_ns| look_ns >= ready_ns));
        assert_eq!(now_ns, ready_ns);
        let wait_ns = attributor.next_settle_ns().expect("both close") - now_ns;
        assert!(wait_ns <= 1_000_000, "{wait_ns}");
    }

    /// Of a counter that moves every 100 ms and shows an update `LAG_NS` later, read every 20 ms.
    const LAG_NS: u64 = 110_000_000;

    fn read_lagging(attributor: &mut Attributor, domain: usize, at_ns: u64) {
        let energy_uj = (at_ns - LAG_NS) / 100_000_000 * 5_000_000;
        let reading = EnergyReading { valid: true, energy_uj, ..EnergyReading::default() };
        attributor.add_reading(domain, at_ns - 100, at_ns, &reading);
    }

    /// An attributor of a counter without lag and one that lags, with readings of both up to `NOW_NS`.
    fn with_lagging_counter() -> Attributor {
        let domains = vec![gpu("quick"), Domain { latency_ns: LAG_NS, ..gpu("gpu-0") }];
        let mut attributor = Attributor::new(domains, AttributionSettings::default());
        read_lagging(&mut attributor, 1, NOW_NS);
        attributor
    }

    #[test]
    fn a_span_on_a_counter_that_lags_is_not_looked_for_before_it_can_settle() {
        let (mut attributor, mut now_ns, mut settled, mut looks) =
            (with_lagging_counter(), NOW_NS, Vec::new(), 0);
        let span = NewSpan { domains: Some(vec![1]), ..NewSpan::new("s", NOW_NS) };
        let key = attributor.open(NOW_NS, span).unwrap();
        let close_ns = NOW_NS + 33_000_000;
        attributor.close(close_ns, key, close_ns, BTreeMap::new(), false).unwrap();
        assert_eq!(attributor.earliest_settle_ns(), Some(close_ns + LAG_NS));
        let mut read_ns = NOW_NS;
        while settled.is_empty() {
            now_ns = attributor.next_settle_ns().expect("a span that closes");
            while read_ns + 20_000_000 <= now_ns {
                read_ns += 20_000_000;
                read_lagging(&mut attributor, 1, read_ns);
            }
            attributor.settle(now_ns, &mut settled);
            looks += 1;
        }
        assert!(now_ns > close_ns + LAG_NS, "{}", now_ns - close_ns);
        // The account settles with the first reading that allows it, at most a hundredth second later.
        assert!(now_ns - read_ns <= 10_000_000, "{} after the reading", now_ns - read_ns);
        assert!((2..30).contains(&looks), "{looks}");
        assert_eq!(attributor.earliest_settle_ns(), None);
    }

    #[test]
    fn a_span_without_the_lagging_counter_or_with_a_lost_one_is_looked_for_at_the_horizon() {
        let mut attributor = with_lagging_counter();
        let horizon_ns = attributor.settings.horizon_ns;
        let open = |attributor: &mut Attributor, domains| {
            attributor.open(NOW_NS, NewSpan { domains, ..NewSpan::new("s", NOW_NS) }).unwrap()
        };
        let (all, quick) = (open(&mut attributor, None), open(&mut attributor, Some(vec![0])));
        attributor.close(NOW_NS + 1, all, NOW_NS + 1, BTreeMap::new(), false).unwrap();
        assert_eq!(attributor.next_settle_ns(), Some(NOW_NS + 1 + LAG_NS));
        attributor.close(NOW_NS + 7, quick, NOW_NS + 7, BTreeMap::new(), false).unwrap();
        assert_eq!(attributor.next_settle_ns(), Some(NOW_NS + 7 + horizon_ns + 1));
        attributor.domains().set_live(1, false);
        assert_eq!(attributor.next_settle_ns(), Some(NOW_NS + 1 + horizon_ns + 1));
    }

    #[test]
    fn no_look_is_too_late_where_many_edges_wait() {
        let mut attributor = with_lagging_counter();
        let open = |attributor: &mut Attributor, domains| {
            attributor.open(NOW_NS, NewSpan { domains, ..NewSpan::new("s", NOW_NS) }).unwrap()
        };
        for _ in 0..200 {
            open(&mut attributor, None);
        }
        let quick = open(&mut attributor, Some(vec![0]));
        attributor.close(NOW_NS + 7, quick, NOW_NS + 7, BTreeMap::new(), false).unwrap();
        let due_ns = attributor.next_settle_ns().expect("a span that closes");
        let ready_ns = NOW_NS + 7 + attributor.settings.horizon_ns + 1;
        assert!(due_ns <= ready_ns, "{}", due_ns - NOW_NS);
        // Much later than the oldest edges, and at once when the newest close may settle.
        let ready_ns = ready_ns + 50_000_000;
        let late = open(&mut attributor, Some(vec![0]));
        let close_ns = NOW_NS + 50_000_007;
        attributor.close(close_ns, late, close_ns, BTreeMap::new(), false).unwrap();
        attributor.settle(ready_ns, &mut Vec::new());
        let pause_ns = attributor.next_settle_ns().expect("a span that closes") - ready_ns;
        assert!(pause_ns <= 1_000_000, "{pause_ns}");
    }

    #[test]
    fn a_total_has_the_worst_grade_of_its_parts() {
        let all = [Grade::Measured, Grade::Modelled, Grade::Integrated, Grade::Estimated];
        for (one, other) in all.into_iter().flat_map(|one| all.map(|other| (one, other))) {
            let domains =
                vec![Domain { grade: one, ..gpu("gpu-0") }, Domain { grade: other, ..gpu("gpu-1") }];
            let mut attributor = Attributor::new(domains, AttributionSettings::default());
            let key = attributor.open(NOW_NS, NewSpan::new("span", NOW_NS)).unwrap();
            let rank = |grade| all.iter().position(|known| *known == grade);
            let worst = if rank(one) > rank(other) { one } else { other };
            assert_eq!(attributor.account(NOW_NS, key).unwrap().grade, Some(worst), "{one:?}, {other:?}");
        }
    }

    #[test]
    fn closing_before_the_opening_is_refused() {
        let (mut attributor, key) = opened_ahead();
        let error = attributor.close(NOW_NS + 1, key, NOW_NS + 1, BTreeMap::new(), false).unwrap_err();
        assert_eq!(error, AttributionError::InvalidTime { earliest_ns: AHEAD_NS, latest_ns: NOW_NS + 1 });
        assert_eq!(attributor.open_span_count(), 1);
    }

    /// Adds readings of a counter that moves every millisecond, and settles, up to an instant.
    fn settle_until(attributor: &mut Attributor, now_ns: &mut u64, end_ns: u64) -> Vec<(SpanKey, Account)> {
        let mut settled = Vec::new();
        while *now_ns < end_ns {
            *now_ns += 1_000_000;
            let reading =
                EnergyReading { valid: true, energy_uj: *now_ns / 1000, ..EnergyReading::default() };
            attributor.add_reading(0, *now_ns - 100, *now_ns, &reading);
            attributor.settle(*now_ns, &mut settled);
        }
        settled
    }

    fn one_domain() -> Attributor {
        let domain = Domain {
            name: "package-0".into(),
            kind: DomainKind::Package,
            source: "replay".into(),
            device: None,
            parent: None,
            grade: Grade::Measured,
            ceiling_mw: None,
            latency_ns: 0,
            quantum_uj: 1,
        };
        Attributor::new(vec![domain], AttributionSettings::default())
    }

    #[test]
    fn the_idle_part_of_an_account_so_far_is_at_most_its_share() {
        let (mut attributor, mut now_ns) = (one_domain(), NOW_NS);
        let idle_mw = BTreeMap::from([("package-0".to_owned(), 1_000_000)]);
        attributor.reconfigure(idle_mw, 100, 100);
        let end_ns = now_ns + 50_000_000;
        settle_until(&mut attributor, &mut now_ns, end_ns);
        // All of the power is idle. A large weight makes the rounding of the idle part visible.
        let span = NewSpan { weight: 999.0, ..NewSpan::new("s", now_ns - 123_457) };
        let key = attributor.open(now_ns, span).unwrap();
        let mut equal = 0;
        for step in 1..60 {
            let end_ns = now_ns + 3_000_000 + step;
            settle_until(&mut attributor, &mut now_ns, end_ns);
            let share = attributor.account(now_ns, key).unwrap().domains.remove(0);
            let (share_uj, idle_uj) = (share.share_uj.unwrap_or(0), share.idle_uj.unwrap_or(0));
            assert!(idle_uj <= share_uj, "{idle_uj} of {share_uj}");
            equal += usize::from(share_uj > 0 && share_uj - idle_uj < 70);
        }
        assert!(equal > 40, "{equal}");
    }

    #[test]
    fn only_unsettled_weight_changes_count_towards_the_limit() {
        let (mut attributor, mut now_ns) = (one_domain(), NOW_NS);
        let subject = attributor.add_subject(Subject::default());
        let key = attributor.open(now_ns, NewSpan { subject, ..NewSpan::new("s", now_ns) }).unwrap();
        let limit = attributor.settings.max_pending_weight_changes;
        // Far more changes than the limit, while the counter moves.
        for step in 0..3 * limit {
            attributor.set_weight(now_ns, key, (step % 7) as f64 + 1.0, now_ns).unwrap();
            if step % 10 == 0 {
                let end_ns = now_ns + 1_000_000;
                settle_until(&mut attributor, &mut now_ns, end_ns);
            }
        }
        let end_ns = now_ns + 50_000_000;
        settle_until(&mut attributor, &mut now_ns, end_ns);
        let intervals =
            |attributor: &Attributor| attributor.process_shares.weight_histories[&key].intervals.len();
        assert!(
            intervals(&attributor) <= super::super::process_history::MAX_WEIGHT_INTERVALS,
            "{}",
            intervals(&attributor)
        );
        // The counter does not move.
        for step in 0..limit {
            attributor.set_weight(now_ns, key, (step % 7) as f64 + 1.0, now_ns).unwrap();
        }
        let full = AttributionError::LimitReached {
            quota: "unsettled weight changes of one span",
            limit: limit as usize,
        };
        assert_eq!(attributor.set_weight(now_ns, key, 1.0, now_ns), Err(full));
        assert_eq!(attributor.account(now_ns, key).unwrap().weight, ((limit - 1) % 7) as f64 + 1.0);
        let other = attributor.open(now_ns, NewSpan::new("other", now_ns)).unwrap();
        attributor.set_weight(now_ns, other, 2.0, now_ns).unwrap();
        attributor.close(now_ns, key, now_ns, BTreeMap::new(), false).unwrap();
    }

    #[test]
    fn a_known_counter_update_after_the_close_tells_when_the_span_settles() {
        let (mut attributor, mut now_ns) = (one_domain(), NOW_NS);
        let key = attributor.open(now_ns, NewSpan::new("s", now_ns)).unwrap();
        settle_until(&mut attributor, &mut now_ns, NOW_NS + 20_000_000);
        let close_ns = now_ns + 300_000;
        attributor.close(close_ns, key, close_ns, BTreeMap::new(), false).unwrap();
        let horizon_ns = attributor.settings.horizon_ns;
        assert_eq!(attributor.next_settle_ns(), Some(close_ns + horizon_ns + 1));
        let read = |attributor: &mut Attributor, at_ns: u64| {
            let reading = EnergyReading { valid: true, energy_uj: at_ns / 1000, ..EnergyReading::default() };
            attributor.add_reading(0, at_ns - 100, at_ns, &reading);
        };
        // Read just before and after the update; it may have been right after the first of them.
        let before_ns = close_ns + 400_000;
        read(&mut attributor, close_ns - 100_000);
        let reading =
            EnergyReading { valid: true, energy_uj: (close_ns - 100_000) / 1000, ..EnergyReading::default() };
        attributor.add_reading(0, before_ns - 100, before_ns, &reading);
        read(&mut attributor, close_ns + 450_000);
        let mut settled = Vec::new();
        attributor.settle(close_ns + horizon_ns + 1, &mut settled);
        let due_ns = attributor.next_settle_ns().unwrap();
        assert!((close_ns + 300_000..close_ns + 450_000).contains(&(due_ns - horizon_ns)), "{due_ns}");
        attributor.settle(due_ns - 1, &mut settled);
        assert!(settled.is_empty(), "too early");
        attributor.settle(due_ns, &mut settled);
        assert_eq!(settled.len(), 1);
        assert_eq!(attributor.next_settle_ns(), None);
    }

    #[test]
    fn phase_and_weight_edges_leave_room_for_new_spans() {
        let (mut attributor, now_ns) = (one_domain(), NOW_NS);
        attributor.settings.max_pending_edges = 100;
        let key = attributor.open(now_ns, NewSpan::new("s", now_ns)).unwrap();
        let error = (0..200).find_map(|_| attributor.set_weight(now_ns, key, 2.0, now_ns).err());
        assert_eq!(error, Some(AttributionError::LimitReached { quota: "waiting edges", limit: 50 }));
        for step in 0..50 {
            attributor.open(now_ns, NewSpan::new(step.to_string(), now_ns)).unwrap();
        }
        let error = attributor.open(now_ns, NewSpan::new("more", now_ns)).unwrap_err();
        assert_eq!(error, AttributionError::LimitReached { quota: "waiting edges", limit: 100 });
    }

    #[test]
    fn shrink_frees_slots_and_never_reuses_keys() {
        let (mut attributor, mut now_ns) = (one_domain(), NOW_NS);
        let open = |attributor: &mut Attributor, now_ns: u64| {
            attributor.open(now_ns, NewSpan::new("s", now_ns)).unwrap()
        };
        let close = |attributor: &mut Attributor, now_ns: u64, key| {
            attributor.close(now_ns, key, now_ns, BTreeMap::new(), false).unwrap();
        };
        let keeps = open(&mut attributor, now_ns);
        let many: Vec<SpanKey> = (0..5000).map(|_| open(&mut attributor, now_ns)).collect();
        // One span in the middle closes later.
        for key in many.iter().filter(|key| **key != many[1000]) {
            close(&mut attributor, now_ns, *key);
        }
        // Pending edges refer to slots, so these slots are kept.
        attributor.shrink();
        let mut end_ns = now_ns + 50_000_000;
        assert_eq!(settle_until(&mut attributor, &mut now_ns, end_ns).len(), 4999);
        attributor.shrink();
        assert_eq!(attributor.spans.slot_count(), 1002);
        close(&mut attributor, now_ns, many[1000]);
        end_ns += 50_000_000;
        assert_eq!(settle_until(&mut attributor, &mut now_ns, end_ns).len(), 1);
        attributor.shrink();
        assert_eq!(attributor.spans.slot_count(), 1);
        let again: Vec<SpanKey> = (0..5000).map(|_| open(&mut attributor, now_ns)).collect();
        let (old, new): (BTreeSet<_>, BTreeSet<_>) = (many.iter().collect(), again.iter().collect());
        assert!(old.is_disjoint(&new) && !new.contains(&keeps));
        assert!(many.iter().all(|key| attributor.account(now_ns, *key) == Err(AttributionError::NoSuchSpan)));
        for key in again.iter().chain([&keeps]) {
            close(&mut attributor, now_ns, *key);
        }
        end_ns += 50_000_000;
        assert_eq!(settle_until(&mut attributor, &mut now_ns, end_ns).len(), 5001);
    }
}
