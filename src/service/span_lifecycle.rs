//! The life cycle of a span: opening, phases, weights, end, settling, storing.
//!
//! Owns every part that knows a span: registry of names, attributor, coarse spans, process tracker, and store with its journal.
//! A method takes one step of a span in all of them: first every check, then the attributor's step, which can still fail, then
//! those of the others, which cannot. Invariants: a span is open in the registry exactly while it is open in the attributor; the
//! journal has no span that was cancelled or whose account the store has; a failed call changes no span.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use wattspan_client::account::{Account, Balance};
use wattspan_client::protocol::{Access, MethodError, OpenSpan, SpanAccounts, SpanCounts, StoreStatus};

use super::access::{self, Peer};
use super::caller::{Caller, ConnectionId, ReplyTo};
use super::coarse_spans::CoarseSpans;
use super::cursor::CursorCipher;
use super::durability::{AccountPage, DeferredReply, Durability, FinalAccount, QueryKind};
use super::list_request::ListRequest;
use super::metadata_limits;
use super::pending_sources::AttachedDomains;
use super::process_tracker::{GpuProcessUsage, ProcessTracker};
use super::readings::ReadingCollector;
use super::span_memory::SpanSize;
use super::span_registry::{MAX_LIST_BYTES, OpenSpanEntry, SpanLookup, SpanRegistry};
use super::startup::ServiceSettings;
use crate::attribution::{
    AttributionError, Attributor, DomainInputs, MAX_DOMAINS, NewSpan, SpanKey, footprint,
};
use crate::clock::Clock;
use crate::domain::Absent;
use crate::process_usage::ProcessIdentity;
use crate::store::{StoreQuery, SumQuery};

/// The maximum number of open spans whose accounts one ListSpans computes.
const MAX_OPEN_EXAMINED: usize = 1024;

/// The maximum number of abandoned spans that one turn closes. Each takes about 6 µs.
const ABANDONED_PER_TURN: usize = 32;

/// All spans, from their opening to their final accounts.
pub(crate) struct SpanLifecycle {
    attributor: Attributor,
    /// The spans of coarse callers among those of the attributor, and their withheld accounts.
    coarse_spans: CoarseSpans,
    registry: SpanRegistry,
    process_tracker: ProcessTracker,
    /// The spans since the start. The open ones are those of the attributor: `open` stays 0 here.
    counts: SpanCounts,
    /// `None` without a store.
    durability: Option<Durability>,
    /// A reused buffer, empty between calls.
    settled_buffer: Vec<Account>,
    /// The attributor has settled spans that are not finalized.
    has_more_settled: bool,
    has_watchers: bool,
    /// Final accounts that are not taken yet.
    final_accounts: Vec<FinalAccount>,
}

/// An open span that was found for a peer. Every step of an open span needs one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenSpanRef<'a> {
    peer: &'a Peer,
    span: &'a str,
    entry: OpenSpanEntry,
}

/// A phase change, weight change or closing of an open span.
#[derive(Debug, Clone, Copy)]
struct SpanEdge {
    key: SpanKey,
    /// The instant that the client requested.
    requested_ns: u64,
    /// The instant at which the edge takes effect: on the grid if the span is coarse.
    at_ns: u64,
    is_coarse: bool,
}

impl SpanLifecycle {
    /// Without spans, over the domains of the collector. `durability` stores the final accounts.
    pub(crate) fn new(
        collector: &ReadingCollector,
        settings: &ServiceSettings,
        durability: Option<Durability>,
    ) -> Self {
        let gpus = GpuProcessUsage::new(collector.domains().enumerate(), settings.nvml_library.clone());
        let mut attributor =
            Attributor::new(collector.domains().cloned().collect(), settings.attribution.clone());
        collector.publish_domain_state(&mut attributor.domains());
        let domains = collector.domains().count().min(MAX_DOMAINS);
        Self {
            attributor,
            coarse_spans: CoarseSpans::new(settings.attribution.horizon_ns),
            registry: SpanRegistry::new(settings.limits.clone(), domains),
            process_tracker: ProcessTracker::new(settings.roots.clone(), gpus),
            counts: SpanCounts::default(),
            durability,
            settled_buffer: Vec::new(),
            has_more_settled: false,
            has_watchers: false,
            final_accounts: Vec::new(),
        }
    }

    /// The attributor, for figures that no coarse caller receives.
    pub(crate) fn attributor(&self) -> &Attributor {
        &self.attributor
    }

    /// The attributor's domains, for their readings and states.
    pub(crate) fn domain_inputs(&mut self) -> DomainInputs<'_> {
        self.attributor.domains()
    }

    /// Adds the domains of sources that have answered since the last call, and of new devices; `None` where there are none.
    pub(crate) fn attach_started_sources(
        &mut self,
        now_ns: u64,
        collector: &mut ReadingCollector,
        absent: &[Absent],
    ) -> Option<AttachedDomains> {
        let attached = collector.attach_started_sources(now_ns, absent, &mut self.domain_inputs())?;
        self.process_tracker.add_gpus(collector.domains().enumerate().skip(attached.first_domain));
        self.registry.set_domains(collector.domains().count().min(MAX_DOMAINS));
        Some(attached)
    }

    /// Applies those new settings that need no restart.
    pub(crate) fn reconfigure(&mut self, settings: &ServiceSettings) {
        let attribution = &settings.attribution;
        self.attributor.reconfigure(
            attribution.idle_mw.clone(),
            attribution.max_open_spans,
            attribution.max_pending_weight_changes,
        );
        self.registry.set_limits(settings.limits.clone());
    }

    /// Sets whether every final account is returned, or only those that a reply waits for.
    pub(crate) fn set_watchers(&mut self, has_watchers: bool) {
        self.has_watchers = has_watchers;
    }

    /// The process of this number at the other end of a connection.
    pub(crate) fn identify_process(&self, pid: u32) -> Option<ProcessIdentity> {
        self.process_tracker.identify(pid)
    }

    /// Opens a span of the caller at its `at_ns`, with the process or control group that the call names. The span gets the
    /// caller's uid; `subject` and `opened_unix_ns` are set here too. `report_edge` gets the instant of the edge.
    ///
    /// # Errors
    /// `SpanExists`, `QuotaExceeded`, those of [`ProcessTracker::resolve`] and of [`Attributor::open`].
    pub(crate) fn open(
        &mut self,
        clock: &Clock,
        now_ns: u64,
        caller: &Caller,
        call: &OpenSpan,
        mut new_span: NewSpan,
        report_edge: impl FnOnce(u64),
    ) -> Result<(), MethodError> {
        let (peer, span, requested_ns) = (&caller.peer, new_span.span_id.clone(), new_span.at_ns);
        let is_coarse = peer.access < Access::Span;
        if is_coarse {
            new_span.at_ns = self.coarse_spans.opening_ns(requested_ns, now_ns);
        }
        let at_ns = new_span.at_ns;
        let size = self.registry.estimate_size(&span, &new_span.name, &new_span.attributes, is_coarse);
        self.registry.check_open(peer, &span, size)?;
        // Beside the reading of the other clock: the counters are read next, which takes time.
        new_span.opened_unix_ns = clock.unix_ns().saturating_add(at_ns).saturating_sub(now_ns);
        // Before what may take long: a subject's use is read from files.
        report_edge(at_ns);
        new_span.uid = peer.uid;
        new_span.subject = self.process_tracker.resolve(caller, call, &mut self.attributor)?;
        let opened = self.attributor.open(now_ns, new_span);
        let key = opened.map_err(|error| method_error(error, &span, at_ns))?;
        self.counts.opened += 1;
        if is_coarse {
            self.coarse_spans.insert(key, requested_ns, at_ns);
        }
        self.registry.insert(peer.uid, &span, key, caller.reply_to.connection, size);
        self.add_to_journal(key, now_ns);
        Ok(())
    }

    /// Ends the current phase of a span and begins the next, at an instant or now. Returns the instant of the edge.
    ///
    /// # Errors
    /// `QuotaExceeded`, and those of [`Attributor::begin_phase`].
    pub(crate) fn begin_phase(
        &mut self,
        now_ns: u64,
        open: &OpenSpanRef<'_>,
        requested_ns: Option<u64>,
        phase: String,
    ) -> Result<u64, MethodError> {
        let edge = self.edge(open, requested_ns, now_ns)?;
        let size = self.registry.check_phase(open.peer, &open.entry, &phase)?;
        let begun = self.attributor.begin_phase(now_ns, edge.key, phase, edge.at_ns);
        begun.map_err(|error| method_error(error, open.span, edge.requested_ns))?;
        let is_unqueued = self.registry.record_phase(open.peer.uid, open.span, size);
        self.record_change(edge, is_unqueued, now_ns);
        Ok(edge.at_ns)
    }

    /// Sets the weight of a span from an instant or from now on. Returns the instant of the edge.
    ///
    /// # Errors
    /// `QuotaExceeded`, and those of [`Attributor::set_weight`].
    pub(crate) fn set_weight(
        &mut self,
        now_ns: u64,
        open: &OpenSpanRef<'_>,
        requested_ns: Option<u64>,
        weight: f64,
    ) -> Result<u64, MethodError> {
        let edge = self.edge(open, requested_ns, now_ns)?;
        let size = self.registry.check_weight(open.peer, &open.entry)?;
        let set = self.attributor.set_weight(now_ns, edge.key, weight, edge.at_ns);
        set.map_err(|error| method_error(error, open.span, edge.requested_ns))?;
        self.hold_in_journal(&open.entry);
        let is_unqueued = self.registry.record_weight_change(open.peer.uid, open.span, size);
        self.record_change(edge, is_unqueued, now_ns);
        Ok(edge.at_ns)
    }

    /// Closes a span at an instant or now, and adds attributes to it. `reply_to` waits for the final account. Returns the
    /// instant of the edge.
    ///
    /// # Errors
    /// `InvalidValue` for the attributes, `QuotaExceeded`, and those of [`Attributor::close`].
    pub(crate) fn close(
        &mut self,
        now_ns: u64,
        open: &OpenSpanRef<'_>,
        requested_ns: Option<u64>,
        attributes: BTreeMap<String, String>,
        reply_to: Option<ReplyTo>,
    ) -> Result<u64, MethodError> {
        let edge = self.edge(open, requested_ns, now_ns)?;
        let text_bytes = metadata_limits::check_attributes(&attributes, open.entry.attribute_count())?;
        let memory_bytes = footprint::attributes_bytes(&attributes);
        let growth = SpanSize { text_bytes, attribute_count: attributes.len(), memory_bytes };
        if !attributes.is_empty() {
            self.registry.check_growth(open.peer, growth)?;
        }
        let closed = self.close_at(now_ns, edge, attributes, false);
        closed.map_err(|error| method_error(error, open.span, edge.requested_ns))?;
        self.counts.closed += 1;
        self.hold_in_journal(&open.entry);
        self.registry.begin_close(open.peer.uid, open.span, growth, reply_to);
        Ok(edge.at_ns)
    }

    /// Cancels a span now: it has no account.
    ///
    /// # Errors
    /// Those of [`Attributor::cancel`].
    pub(crate) fn cancel(&mut self, now_ns: u64, open: &OpenSpanRef<'_>) -> Result<(), MethodError> {
        let edge = self.edge_from(open.entry.key, now_ns, now_ns);
        let cancelled = self.attributor.cancel(now_ns, edge.key, edge.at_ns);
        cancelled.map_err(|error| method_error(error, open.span, now_ns))?;
        self.counts.cancelled += 1;
        if edge.is_coarse {
            self.coarse_spans.remove(edge.key);
        }
        let journal_key = self.registry.remove_open(open.peer.uid, open.span);
        if let (Some(durability), Some(key)) = (&mut self.durability, journal_key) {
            durability.remove_from_journal(key);
        }
        Ok(())
    }

    /// Notes that the open spans of a closed connection are abandoned; returns whether there are any.
    /// [`Self::close_abandoned`] closes them, also as a part of each poll.
    pub(crate) fn abandon_connection(&mut self, now_ns: u64, connection: ConnectionId) -> bool {
        self.registry.abandon_connection(connection, now_ns)
    }

    /// Closes some of the abandoned spans; the others wait for the next polls, so that no client waits for them. Each ends when
    /// its connection was closed, or at the horizon if that is later.
    pub(crate) fn close_abandoned(&mut self, now_ns: u64) {
        let name_of = |key| self.attributor.span_id(key).map(str::to_owned);
        for (open, at_ns) in self.registry.take_abandoned(ABANDONED_PER_TURN, name_of) {
            let edge = self.edge_from(open.key, at_ns, now_ns);
            // Cannot fail: the span is open, and an abandoned close is valid at any instant.
            let closed = self.close_at(now_ns, edge, BTreeMap::new(), true);
            self.counts.abandoned += u64::from(closed.is_ok());
            self.hold_in_journal(&open);
        }
    }

    /// Closes a span in the attributor, and records the move of its edge. The registry closes it for each caller separately.
    fn close_at(
        &mut self,
        now_ns: u64,
        mut edge: SpanEdge,
        attributes: BTreeMap<String, String>,
        abandoned: bool,
    ) -> Result<(), AttributionError> {
        if edge.is_coarse {
            edge.at_ns = self.coarse_spans.close_ns(edge.key, edge.at_ns);
        }
        self.attributor.close(now_ns, edge.key, edge.at_ns, attributes, abandoned)?;
        self.record_move(edge);
        Ok(())
    }

    /// The edge of an open span that is requested for an instant; `None`: for now, or for the opening if that lies in the
    /// future, since no edge is before the opening.
    ///
    /// # Errors
    /// `InvalidTime`: before the opening of a coarse span. For other spans the attributor checks this.
    fn edge(
        &self,
        open: &OpenSpanRef<'_>,
        requested_ns: Option<u64>,
        now_ns: u64,
    ) -> Result<SpanEdge, MethodError> {
        let key = open.entry.key;
        let Some(requested_ns) = requested_ns else { return Ok(self.edge_from(key, now_ns, now_ns)) };
        match self.coarse_spans.requested_ns(key) {
            None => Ok(fine_edge(key, requested_ns)),
            Some(earliest_ns) if requested_ns < earliest_ns => {
                let error = AttributionError::InvalidTime { earliest_ns, latest_ns: now_ns };
                Err(method_error(error, open.span, requested_ns))
            }
            Some(_) => Ok(self.coarse_edge(key, requested_ns, now_ns)),
        }
    }

    /// An edge at an instant, or at the opening if that is later.
    fn edge_from(&self, key: SpanKey, at_ns: u64, now_ns: u64) -> SpanEdge {
        match self.coarse_spans.requested_ns(key) {
            None => {
                let opening_ns = self.attributor.requested_ns(key);
                fine_edge(key, opening_ns.map_or(at_ns, |opening_ns| opening_ns.max(at_ns)))
            }
            Some(opening_ns) => self.coarse_edge(key, opening_ns.max(at_ns), now_ns),
        }
    }

    fn coarse_edge(&self, key: SpanKey, requested_ns: u64, now_ns: u64) -> SpanEdge {
        let at_ns = self.coarse_spans.edge_ns(key, requested_ns, now_ns);
        SpanEdge { key, requested_ns, at_ns, is_coarse: true }
    }

    fn record_move(&mut self, edge: SpanEdge) {
        if edge.is_coarse {
            self.coarse_spans.add_moved_ns(edge.key, edge.requested_ns, edge.at_ns);
        }
    }

    /// Records a change of an open span that is in the attributor and in the registry.
    fn record_change(&mut self, edge: SpanEdge, is_unqueued: bool, now_ns: u64) {
        self.record_move(edge);
        if is_unqueued {
            self.add_to_journal(edge.key, now_ns);
        }
    }

    fn add_to_journal(&mut self, key: SpanKey, now_ns: u64) {
        if let Some(durability) = &mut self.durability {
            durability.add_to_journal(key, now_ns);
        }
    }

    /// Notes a change of weight, or a close, of a span that the journal has: its row no longer holds from there on.
    fn hold_in_journal(&mut self, open: &OpenSpanEntry) {
        if let (Some(durability), true) = (&mut self.durability, open.is_journalled) {
            durability.hold_in_journal(open.key);
        }
    }

    /// Takes the steps that are due: closes abandoned spans, samples processes, settles, releases withheld accounts, and stores.
    /// `since_ns`: the time since the last call. Replies to queries of the store go to `replies`. Returns the boards that turn
    /// out to report no time by process.
    pub(crate) fn poll(
        &mut self,
        clock: &Clock,
        now_ns: u64,
        since_ns: u64,
        cursor_cipher: &CursorCipher,
        replies: &mut Vec<DeferredReply>,
    ) -> Vec<Absent> {
        self.close_abandoned(now_ns);
        let unavailable = self.process_tracker.sample_if_due(now_ns, &mut self.attributor);
        self.attributor.advance(now_ns);
        self.has_more_settled = self.settle_within_budget(clock, now_ns, since_ns);
        for (_, account) in self.coarse_spans.release(now_ns) {
            self.finalize(account, now_ns);
        }
        if let Some(durability) = &mut self.durability {
            durability.poll(now_ns, &self.registry, cursor_cipher, replies, &mut self.final_accounts);
            durability.journal_open_spans(now_ns, &self.attributor, &mut self.registry);
        }
        unavailable
    }

    /// Finalizes settled spans one by one, and returns whether there are more: the accounts of thousands of spans that end
    /// together are never in memory at once. The time budget is the time since the last call; settling a span is cheaper than
    /// the calls that opened and closed it, so no backlog builds up.
    fn settle_within_budget(&mut self, clock: &Clock, now_ns: u64, since_ns: u64) -> bool {
        const MIN_BUDGET_NS: u64 = 100_000;
        const MAX_BUDGET_NS: u64 = 2_000_000;
        let mut settled_buffer = std::mem::take(&mut self.settled_buffer);
        let end_ns = now_ns + since_ns.clamp(MIN_BUDGET_NS, MAX_BUDGET_NS);
        let has_more = loop {
            let coarse_spans = &mut self.coarse_spans;
            let has_more = self.attributor.drain_settled_up_to(1, |settled| {
                settled_buffer.extend(coarse_spans.withhold(settled.key(), settled.account(), now_ns));
            });
            for account in settled_buffer.drain(..) {
                self.finalize(account, now_ns);
            }
            if !has_more || clock.now_ns() >= end_ns {
                break has_more;
            }
        };
        self.settled_buffer = settled_buffer;
        has_more
    }

    /// Stores a settled account, or makes it final at once where there is no store.
    fn finalize(&mut self, account: Account, now_ns: u64) {
        let final_account = match &mut self.durability {
            Some(durability) => durability.finalize(account, &mut self.registry, self.has_watchers, now_ns),
            None => {
                let account = Arc::new(account);
                let reply_to = self.registry.settle(&account, None).reply_to;
                (reply_to.is_some() || self.has_watchers).then_some(FinalAccount { account, reply_to })
            }
        };
        self.final_accounts.extend(final_account);
    }

    /// Moves the final accounts since the last call to `into`.
    pub(crate) fn take_final_accounts(&mut self, into: &mut Vec<FinalAccount>) {
        into.append(&mut self.final_accounts);
        self.final_accounts.shrink_to(1024);
    }

    /// The time of the next poll, at most `latest_ns`, where no event comes earlier.
    pub(crate) fn next_poll_ns(&self, now_ns: u64, latest_ns: u64) -> u64 {
        /// An account that is due waits for a reading; readings are not more frequent than this.
        const MIN_POLL_NS: u64 = 500_000;
        if self.has_more_settled
            || self.registry.has_abandoned()
            || !self.final_accounts.is_empty()
            || self.has_store_events()
            || self.durability.as_ref().is_some_and(Durability::has_account_pages)
        {
            return now_ns;
        }
        let sample_due_ns = self.process_tracker.sample_due_ns(&self.attributor);
        let durability = self.durability.as_ref();
        let store_timeout_ns = durability.and_then(Durability::timeout_at_ns);
        let journal_due_ns = durability.and_then(|durability| durability.journal_due_ns(now_ns));
        let due_times = [self.next_release_ns(), sample_due_ns, store_timeout_ns, journal_due_ns];
        let latest_ns = due_times
            .into_iter()
            .flatten()
            .fold(latest_ns, |soonest_ns, due_ns| soonest_ns.min(due_ns.max(now_ns)));
        if self.registry.waiting_replies() == 0 {
            return latest_ns;
        }
        let due_ns = self.attributor.next_settle_ns().unwrap_or(latest_ns);
        due_ns.max(now_ns + MIN_POLL_NS).min(latest_ns)
    }

    /// The time of the next release of withheld accounts.
    pub(crate) fn next_release_ns(&self) -> Option<u64> {
        self.coarse_spans.next_release_ns()
    }

    /// The peer's open span of this name. With coarse access only coarse spans are found.
    ///
    /// # Errors
    /// `NoSuchSpan`, `AlreadyClosed`.
    pub(crate) fn find_open<'a>(
        &self,
        peer: &'a Peer,
        span: &'a str,
    ) -> Result<OpenSpanRef<'a>, MethodError> {
        let found = match self.registry.find_open(peer.uid, span) {
            Ok(entry) if !self.is_visible_to(peer, entry.key) => Err(no_such_span(span)),
            Err(MethodError::AlreadyClosed { span: closed }) => {
                self.find_visible(peer, span).and(Err(MethodError::AlreadyClosed { span: closed }))
            }
            other => other,
        };
        found.map(|entry| OpenSpanRef { peer, span, entry })
    }

    /// The user's span of this name, whatever the access.
    ///
    /// # Errors
    /// `NoSuchSpan`.
    pub(crate) fn find(&self, uid: u32, span: &str) -> Result<SpanLookup, MethodError> {
        self.registry.find(uid, span)
    }

    /// The peer's span of this name. With coarse access only coarse spans are found.
    ///
    /// # Errors
    /// `NoSuchSpan`.
    pub(crate) fn find_visible(&self, peer: &Peer, span: &str) -> Result<SpanLookup, MethodError> {
        let lookup = self.registry.find(peer.uid, span)?;
        let is_visible = match &lookup {
            SpanLookup::Unsettled(key) => self.is_visible_to(peer, *key),
            SpanLookup::Settled(account, _) => access::is_visible_to(peer, account),
        };
        if is_visible { Ok(lookup) } else { Err(no_such_span(span)) }
    }

    /// The span of this name of any user, the lowest uid first.
    ///
    /// # Errors
    /// `NoSuchSpan`.
    pub(crate) fn find_of_any_user(&self, span: &str) -> Result<SpanLookup, MethodError> {
        self.registry.find_of_any_user(span)
    }

    /// Whether a peer may see an unsettled span of its own or, with telemetry access, of any user. With coarse access only
    /// coarse spans are visible.
    fn is_visible_to(&self, peer: &Peer, key: SpanKey) -> bool {
        peer.access >= Access::Span || self.coarse_spans.contains(key)
    }

    /// The account as of now of a span found by name.
    ///
    /// # Errors
    /// `NoSuchSpan`: the span was cancelled since.
    pub(crate) fn current_account(
        &self,
        now_ns: u64,
        span: &str,
        lookup: SpanLookup,
    ) -> Result<Account, MethodError> {
        match lookup {
            SpanLookup::Settled(account, store_number) => Ok(self.mark_durability(&account, store_number)),
            SpanLookup::Unsettled(key) => {
                self.provisional_account(now_ns, key).ok_or_else(|| no_such_span(span))
            }
        }
    }

    /// The account as of now of a span that is not final; without figures if the span is coarse.
    fn provisional_account(&self, now_ns: u64, key: SpanKey) -> Option<Account> {
        self.coarse_spans.provisional_account(key, || self.attributor.account(now_ns, key).ok())
    }

    /// A copy of an account in memory with its state as of now.
    fn mark_durability(&self, account: &Account, store_number: Option<u64>) -> Account {
        match &self.durability {
            Some(durability) => durability.mark_durability(account, store_number),
            None => account.clone(),
        }
    }

    /// The accounts as of now of the latest open spans that match and fit into a reply, the latest last.
    pub(crate) fn open_accounts(&self, now_ns: u64, peer: &Peer, request: &ListRequest) -> Vec<Account> {
        let dated = |(span, key)| Some((self.attributor.requested_ns(key)?, span, key));
        let mut spans: Vec<(u64, &str, SpanKey)> = self
            .registry
            .open_spans(peer.uid_filter())
            .filter(|(_, key)| self.is_visible_to(peer, *key))
            .filter_map(dated)
            .collect();
        spans.sort_unstable_by_key(|&(requested_ns, span, _)| (Reverse(requested_ns), span));
        spans.truncate(MAX_OPEN_EXAMINED);
        let matching = spans
            .into_iter()
            .filter_map(|(_, _, key)| self.provisional_account(now_ns, key))
            .filter(|account| request.filter.matches(account));
        let within = matching.scan(0, |bytes, account| {
            *bytes += footprint::account_bytes(&account);
            (*bytes <= MAX_LIST_BYTES).then_some(account)
        });
        let mut accounts: Vec<Account> = within.take(request.limit).collect();
        accounts.reverse();
        accounts
    }

    /// The latest remembered accounts that match a request.
    ///
    /// # Errors
    /// `StoreUnavailable`: there is none, and the store, which may have some, fails.
    pub(crate) fn remembered_accounts(
        &self,
        peer: &Peer,
        request: &ListRequest,
    ) -> Result<SpanAccounts, MethodError> {
        let mark = |account: &Account, number| self.mark_durability(account, number);
        let accounts = request.remembered_accounts(peer, &self.registry, mark);
        match &self.durability {
            Some(durability) => durability.check_remembered(accounts),
            None => Ok(accounts),
        }
    }

    /// Submits a query to the store; returns false if there is no store or it cannot answer.
    ///
    /// # Errors
    /// `QuotaExceeded`, `StoreUnavailable`.
    pub(crate) fn submit_query(
        &mut self,
        now_ns: u64,
        caller: &Caller,
        query: StoreQuery,
        kind: QueryKind,
    ) -> Result<bool, MethodError> {
        let Some(durability) = &mut self.durability else { return Ok(false) };
        durability.submit(&caller.peer, caller.reply_to, query, kind, now_ns)
    }

    /// Begins a query for sums, whose reply comes later; returns false if there is no store.
    ///
    /// # Errors
    /// `QuotaExceeded`, `StoreUnavailable`.
    pub(crate) fn begin_sums(
        &mut self,
        caller: &Caller,
        query: SumQuery,
        now_ns: u64,
    ) -> Result<bool, MethodError> {
        let open_spans = self.registry.open_spans(query.uid);
        let open = open_spans.filter(|(_, key)| self.is_visible_to(&caller.peer, *key)).count();
        let Some(durability) = &mut self.durability else { return Ok(false) };
        durability.begin_sums(caller, query, open as u64, now_ns).map(|()| true)
    }

    /// Ends the queries of a connection whose peer has less access now than at the call.
    pub(crate) fn apply_access(
        &mut self,
        connection: ConnectionId,
        peer: &Peer,
        replies: &mut Vec<DeferredReply>,
    ) {
        if let Some(durability) = &mut self.durability {
            durability.apply_access(connection, peer, replies);
        }
    }

    /// Ends the sums that are computed for a closed connection.
    pub(crate) fn cancel_sums(&mut self, connection: ConnectionId) {
        if let Some(durability) = &mut self.durability {
            durability.cancel_sums(connection);
        }
    }

    /// The number of accounts that were passed to the store since the start, if there is a store.
    pub(crate) fn last_store_number(&self) -> Option<u64> {
        self.durability.as_ref().map(Durability::last_store_number)
    }

    /// The pages of the streams of stored accounts that have been completed.
    pub(crate) fn take_account_pages(&mut self) -> Vec<AccountPage> {
        self.durability.as_mut().map_or_else(Vec::new, Durability::take_account_pages)
    }

    /// The energy balance of each domain. The accounts that the store did not keep are taken out of the settled ones.
    pub(crate) fn balance(&self) -> Vec<Balance> {
        let mut balance = self.attributor.balance();
        for domain in &mut balance {
            let durability = self.durability.as_ref();
            let [settled_uj, abandoned_uj] =
                durability.map_or([0, 0], |durability| durability.not_kept_uj(&domain.domain));
            // The rounded share of a coarse account may exceed the exact one.
            let take = |part: &mut Option<u64>, uj: u64| {
                let taken = part.map_or(0, |part| part.min(uj));
                *part = part.map(|part| part - taken);
                taken
            };
            let taken =
                take(&mut domain.settled_uj, settled_uj) + take(&mut domain.abandoned_uj, abandoned_uj);
            domain.not_kept_uj = Some(taken);
            let above_uj = (settled_uj + abandoned_uj - taken).cast_signed();
            domain.rounding_uj = Some(self.coarse_spans.rounding_uj(&domain.domain) - above_uj);
        }
        balance
    }

    /// The numbers of spans since the start.
    pub(crate) fn counts(&self) -> SpanCounts {
        SpanCounts { open: self.attributor.open_span_count() as u64, ..self.counts }
    }

    /// The store's state for GetInfo, if there is a store.
    pub(crate) fn store_status(&self, peer: &Peer) -> Option<StoreStatus> {
        self.durability.as_ref().map(|durability| durability.status(peer))
    }

    /// Sets the function that the store's thread calls when [`Self::has_store_events`] becomes true.
    pub(crate) fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        if let Some(durability) = &self.durability {
            durability.set_waker(waker);
        }
    }

    /// Whether the store has committed or answered since the last poll.
    pub(crate) fn has_store_events(&self) -> bool {
        self.durability.as_ref().is_some_and(Durability::has_events)
    }

    /// The number of replies that wait for a final account or for the store.
    pub(crate) fn waiting_replies(&self) -> usize {
        let for_store = self.durability.as_ref().map_or(0, Durability::waiting_replies);
        self.registry.waiting_replies() + for_store
    }

    /// Ends all waiting for shutdown: returns the accounts so far of all replies that wait for a final one. Pending queries of the
    /// store are completed without it.
    pub(crate) fn take_waiting_replies(
        &mut self,
        now_ns: u64,
        cursor_cipher: &CursorCipher,
        store_replies: &mut Vec<DeferredReply>,
    ) -> Vec<(ReplyTo, Account)> {
        let mut replies = Vec::new();
        if let Some(durability) = &mut self.durability {
            durability.complete_from_memory(&self.registry, cursor_cipher, store_replies);
            replies = durability.take_pending_accounts();
        }
        let waiting = self.registry.take_waiting_replies();
        let current_account = |(reply_to, key)| Some((reply_to, self.provisional_account(now_ns, key)?));
        replies.extend(waiting.into_iter().filter_map(current_account));
        replies
    }

    /// Stores open and unsettled spans as interrupted, and stops the store.
    pub(crate) fn shut_down(&mut self, now_ns: u64) {
        if let Some(durability) = &mut self.durability {
            durability.shut_down(now_ns, self.coarse_spans.release(u64::MAX), &self.attributor);
        }
    }

    /// The estimated memory of spans, their edges, and accounts that wait for the disk, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        const EDGE_BYTES: usize = 128;
        let edge_bytes = self.attributor.pending_edge_count() * EDGE_BYTES;
        let store_bytes = self.durability.as_ref().map_or(0, Durability::pending_bytes);
        self.registry.memory_bytes() + edge_bytes + store_bytes
    }

    /// Frees memory that many spans used.
    pub(crate) fn shrink(&mut self) {
        self.attributor.shrink();
        self.coarse_spans.shrink();
        self.registry.shrink();
        self.durability.iter_mut().for_each(Durability::shrink);
    }

    /// Forgets the remembered accounts that the store has, and copies the others into adjacent memory.
    pub(crate) fn compact(&mut self) {
        self.registry.compact(self.durability.as_ref().map_or(0, Durability::committed_number));
    }
}

/// The edge of a span that is not coarse takes effect when it is requested.
fn fine_edge(key: SpanKey, requested_ns: u64) -> SpanEdge {
    SpanEdge { key, requested_ns, at_ns: requested_ns, is_coarse: false }
}

fn no_such_span(span: &str) -> MethodError {
    MethodError::NoSuchSpan { span: span.to_owned() }
}

/// Converts an error of the attributor to an error of the protocol.
fn method_error(error: AttributionError, span: &str, at_ns: u64) -> MethodError {
    match error {
        AttributionError::NoSuchSpan => no_such_span(span),
        AttributionError::AlreadyClosed => MethodError::AlreadyClosed { span: span.to_owned() },
        AttributionError::InvalidTime { earliest_ns, latest_ns } => {
            MethodError::InvalidTime { at_ns: at_ns.try_into().unwrap_or(i64::MAX), earliest_ns, latest_ns }
        }
        AttributionError::InvalidValue { field, reason } => {
            MethodError::InvalidValue { field: field.to_owned(), reason }
        }
        AttributionError::LimitReached { quota, limit } => {
            MethodError::QuotaExceeded { quota: quota.to_owned(), limit: limit as u64 }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};

    use wattspan_client::account::SpanState;

    use super::*;
    use crate::config::Limits;
    use crate::domain::EnergyReading;
    use crate::service::test_parts::{add_packages, no_readings, service_settings, store_settings};
    use crate::store::{Filter, Store, StoreSettings};

    const MS_NS: u64 = 1_000_000;
    const START_NS: u64 = 5_000_000_000;
    const NAMES: u64 = 12;
    const PHASES_PER_SPAN: usize = 3;

    /// The last one has coarse access.
    const PEERS: [Peer; 3] = [
        Peer { uid: 1000, access: Access::Span, unlimited: false },
        Peer { uid: 2000, access: Access::Telemetry, unlimited: false },
        Peer { uid: 3000, access: Access::Coarse, unlimited: false },
    ];

    /// The spans of a machine whose counters move every 10 ms, with a store.
    struct Machine {
        spans: SpanLifecycle,
        clock: Clock,
        cursor_cipher: CursorCipher,
        directory: tempfile::TempDir,
        energy_uj: u64,
        replies: Vec<DeferredReply>,
        final_accounts: Vec<FinalAccount>,
    }

    impl Machine {
        fn new(change: impl FnOnce(&mut Limits)) -> Self {
            Self::with_room_in_store(1 << 24, change)
        }

        fn with_room_in_store(max_waiting_bytes: usize, change: impl FnOnce(&mut Limits)) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let mut limits = Limits::default();
            change(&mut limits);
            let settings = service_settings(limits);
            let store_settings = StoreSettings { max_waiting_bytes, ..store_settings(directory.path()) };
            let store = Store::start(store_settings, |_| ()).unwrap();
            let durability = Durability::new(store, |_| (), START_NS);
            let mut spans = SpanLifecycle::new(&no_readings(), &settings, Some(durability));
            spans.set_watchers(true);
            add_packages(spans.domain_inputs(), &["package-0"]);
            Self {
                spans,
                clock: Clock::manual(START_NS),
                cursor_cipher: CursorCipher::default(),
                directory,
                energy_uj: 0,
                replies: Vec::new(),
                final_accounts: Vec::new(),
            }
        }

        fn poll(&mut self) {
            let (now_ns, cipher, replies) = (self.clock.now_ns(), &self.cursor_cipher, &mut self.replies);
            self.spans.poll(&self.clock, now_ns, 10 * MS_NS, cipher, replies);
            self.spans.take_final_accounts(&mut self.final_accounts);
        }

        fn advance(&mut self, ms: u64) {
            for _ in 0..ms / 10 {
                let now_ns = self.clock.now_ns() + 10 * MS_NS;
                self.clock.set(now_ns);
                self.energy_uj += 500_000;
                let reading =
                    EnergyReading { valid: true, energy_uj: self.energy_uj, ..EnergyReading::default() };
                self.spans.domain_inputs().add_reading(0, now_ns - 2000, now_ns, &reading);
                self.poll();
            }
        }

        /// Waits until the store has written everything so far, and has answered a query after that. The first poll takes all steps that
        /// are due, so that the others write nothing.
        fn flush_store(&mut self) {
            self.poll();
            let now_ns = self.clock.now_ns();
            let query = StoreQuery::Span { uid: 0, all_users: false, span: String::new() };
            let submitted =
                self.spans.submit_query(now_ns, &caller(0, 9), query, QueryKind::Span(String::new()));
            assert_eq!(submitted, Ok(true));
            wait_until(|| {
                self.poll();
                // A query waits for accounts only.
                let is_written = self.spans.durability.as_ref().is_none_or(|it| it.pending_bytes() == 0);
                !self.replies.is_empty() && is_written
            });
            self.replies.clear();
        }

        /// The spans of the journal on disk: those that a store recovers as interrupted from a copy of it. Sorted.
        fn journal(&self) -> Vec<Account> {
            let copy = tempfile::tempdir().unwrap();
            for file in std::fs::read_dir(self.directory.path()).unwrap().flatten() {
                std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
            }
            let mut store = Store::start(store_settings(copy.path()), |_| ()).unwrap();
            let filter = Filter { state: Some(SpanState::Interrupted), ..Filter::default() };
            assert!(store.submit_query(1, StoreQuery::List { uid: None, filter, limit: 1000, before: None }));
            let mut results = Vec::new();
            wait_until(|| {
                results.append(&mut store.take_query_results());
                !results.is_empty()
            });
            let mut accounts = results.remove(0).1.unwrap().accounts;
            accounts.sort_by(|one, other| (one.uid, &one.span).cmp(&(other.uid, &other.span)));
            accounts
        }

        /// Opens a span now.
        fn open(&mut self, peer: usize, connection: u64, span: &str) {
            self.open_at(peer, connection, span, self.clock.now_ns(), 1.0).unwrap();
        }

        fn open_at(
            &mut self,
            peer: usize,
            connection: u64,
            span: &str,
            at_ns: u64,
            weight: f64,
        ) -> Result<SpanKey, MethodError> {
            let now_ns = self.clock.now_ns();
            let new_span = NewSpan { weight, ..NewSpan::new(span, at_ns) };
            let (caller, call) = (caller(peer, connection), OpenSpan::default());
            self.spans.open(&self.clock, now_ns, &caller, &call, new_span, |_| {})?;
            Ok(self.spans.find_open(&PEERS[peer], span).unwrap().entry.key)
        }

        /// The open spans of the attributor, with their owners and names.
        fn open_in_attributor(&self) -> BTreeSet<(SpanKey, u32, String)> {
            let mut open = BTreeSet::new();
            let next = self.spans.attributor.iter_spans(0, usize::MAX, 0, u64::MAX, |key, account| {
                if account.state == SpanState::Open {
                    open.insert((key, account.uid, account.span));
                }
            });
            assert_eq!(next, None);
            assert_eq!(self.spans.attributor.open_span_count(), open.len());
            open
        }

        /// What a failed call must not change.
        fn state(&self) -> impl PartialEq + std::fmt::Debug + use<> {
            let mut accounts = Vec::new();
            self.spans.attributor.iter_spans(0, usize::MAX, self.clock.now_ns(), u64::MAX, |key, account| {
                let withheld = self.spans.coarse_spans.provisional_account(key, || Some(account.clone()));
                accounts.push((key, self.spans.coarse_spans.requested_ns(key), account, withheld));
            });
            let registry = &self.spans.registry;
            let users = PEERS.iter().flat_map(|peer| (0..NAMES).map(|name| (peer.uid, format!("s{name}"))));
            let names: Vec<String> =
                users.map(|(uid, span)| format!("{:?}", registry.find_open(uid, &span))).collect();
            let edges = self.spans.attributor.pending_edge_count();
            (accounts, names, edges, registry.memory_bytes(), registry.waiting_replies())
        }
    }

    fn wait_until(mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "the store does not answer");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn caller(peer: usize, connection: u64) -> Caller {
        Caller { peer: PEERS[peer], process: None, reply_to: ReplyTo { connection, slot: 0 } }
    }

    /// Every step of a span that has ended must fail, although the caller found it before.
    fn assert_ended(machine: &mut Machine, open: &OpenSpanRef<'_>) {
        let (before, now_ns) = (machine.state(), machine.clock.now_ns());
        let spans = &mut machine.spans;
        assert!(spans.begin_phase(now_ns, open, None, "p".into()).is_err());
        assert!(spans.set_weight(now_ns, open, None, 3.0).is_err());
        assert!(spans.close(now_ns, open, None, BTreeMap::new(), None).is_err());
        assert!(spans.cancel(now_ns, open).is_err());
        assert_eq!(before, machine.state(), "after calls about a span that has ended");
    }

    /// A span of the random schedule that has opened.
    struct ModelSpan {
        key: SpanKey,
        peer: usize,
        connection: u64,
        name: String,
        phases: usize,
        is_open: bool,
    }

    /// Random calls, valid and invalid, and what they must leave behind.
    struct Schedule {
        machine: Machine,
        random: u64,
        /// All spans so far.
        spans: Vec<ModelSpan>,
        closed: usize,
        cancelled: usize,
        abandoned: usize,
        failed: usize,
    }

    impl Schedule {
        fn new(seed: u64) -> Self {
            let machine = Machine::new(|limits| {
                limits.open_spans_per_user = 8;
                limits.phases_per_span = PHASES_PER_SPAN;
                limits.remembered_accounts = 5;
            });
            Self {
                machine,
                random: seed,
                spans: Vec::new(),
                closed: 0,
                cancelled: 0,
                abandoned: 0,
                failed: 0,
            }
        }

        fn below(&mut self, below: u64) -> u64 {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.random >> 33) % below
        }

        /// An instant: none, now, in the past, or before every opening.
        fn instant(&mut self) -> Option<u64> {
            let now_ns = self.machine.clock.now_ns();
            match self.below(4) {
                0 => Some(now_ns),
                1 => Some(now_ns - self.below(20) * MS_NS),
                2 => Some(now_ns - 4_000 * MS_NS),
                _ => None,
            }
        }

        /// Makes one call, and compares the state before and after if it fails.
        fn call(&mut self) {
            let before = self.machine.state();
            let peer = self.below(3) as usize;
            let span = format!("s{}", self.below(NAMES));
            let failed = match self.below(12) {
                0..5 => self.open(peer, span).is_err(),
                5 => self.abandon(),
                _ => self.change(peer, &span).is_err(),
            };
            if failed {
                self.failed += 1;
                assert_eq!(before, self.machine.state(), "after a failed call");
            }
        }

        fn open(&mut self, peer: usize, name: String) -> Result<(), MethodError> {
            let connection = 10 * peer as u64 + self.below(3);
            let at_ns = self.machine.clock.now_ns() - self.below(3) * MS_NS;
            let weight = if self.below(8) == 0 { -1.0 } else { 1.0 };
            let key = self.machine.open_at(peer, connection, &name, at_ns, weight)?;
            self.spans.push(ModelSpan { key, peer, connection, name, phases: 0, is_open: true });
            Ok(())
        }

        /// Closes a connection; returns whether it had no open span.
        fn abandon(&mut self) -> bool {
            let connection = 10 * self.below(3) + self.below(3);
            let now_ns = self.machine.clock.now_ns();
            let of_connection = |span: &&mut ModelSpan| span.is_open && span.connection == connection;
            let abandoned = self.spans.iter_mut().filter(of_connection);
            let count = abandoned.map(|span| span.is_open = false).count();
            assert_eq!(self.machine.spans.abandon_connection(now_ns, connection), count > 0);
            self.machine.spans.close_abandoned(now_ns);
            self.abandoned += count;
            count == 0
        }

        /// Changes or ends an open span. Each step has an edge, and a size for the quotas.
        fn change(&mut self, peer: usize, name: &str) -> Result<(), MethodError> {
            let (instant, step) = (self.instant(), self.below(8));
            let weight = [0.5, 2.0, f64::NAN][self.below(3) as usize];
            let attribute_count = [0, 0, 1, 65][self.below(4) as usize];
            let attributes = (0..attribute_count).map(|at| (format!("k{at}"), "v".into())).collect();
            let reply_to = (self.below(2) == 0).then_some(ReplyTo { connection: 1, slot: 1 });
            let now_ns = self.machine.clock.now_ns();
            let spans = &mut self.machine.spans;
            let sizes = |spans: &SpanLifecycle| {
                (spans.attributor.pending_edge_count(), spans.registry.memory_bytes())
            };
            let (edges, bytes) = sizes(spans);
            let open = spans.find_open(&PEERS[peer], name)?;
            let model = self.spans.iter_mut().find(|span| span.key == open.entry.key).unwrap();
            match step {
                0 | 1 => {
                    spans.begin_phase(now_ns, &open, instant, "p".into())?;
                    model.phases += 1;
                    assert!(model.phases <= PHASES_PER_SPAN);
                    assert!(sizes(spans).1 > bytes, "a phase has a size");
                }
                2 | 3 => {
                    let is_first = spans.registry.check_weight(&PEERS[peer], &open.entry)?.memory_bytes > 0;
                    spans.set_weight(now_ns, &open, instant, weight)?;
                    let has_grown = sizes(spans).1 > bytes;
                    assert_eq!(has_grown, is_first, "the first change of weight has a size");
                    let entry = spans.registry.find_open(PEERS[peer].uid, name)?;
                    assert_eq!(spans.registry.check_weight(&PEERS[peer], &entry)?, SpanSize::default());
                }
                4 | 5 => {
                    spans.cancel(now_ns, &open)?;
                    self.cancelled += 1;
                    model.is_open = false;
                    assert!(sizes(spans).1 < bytes, "a cancelled span frees its memory");
                }
                _ => {
                    spans.close(now_ns, &open, instant, attributes, reply_to)?;
                    self.closed += 1;
                    model.is_open = false;
                    assert_eq!(sizes(spans).1 > bytes, attribute_count > 0, "attributes have a size");
                }
            }
            assert_eq!(sizes(&self.machine.spans).0, edges + 1);
            if !model.is_open {
                assert_ended(&mut self.machine, &open);
            }
            Ok(())
        }

        /// Compares every part with the schedule.
        fn assert_in_step(&self) {
            let Machine { spans, .. } = &self.machine;
            let identity = |span: &ModelSpan| (span.key, PEERS[span.peer].uid, span.name.clone());
            let open: BTreeSet<_> = self.spans.iter().filter(|span| span.is_open).map(identity).collect();
            assert_eq!(self.machine.open_in_attributor(), open, "attributor");
            let listed: BTreeSet<_> = spans.registry.open_spans(None).map(|(_, key)| key).collect();
            assert_eq!(listed, open.iter().map(|(key, ..)| *key).collect(), "list of open spans");
            for span in &self.spans {
                let uid = PEERS[span.peer].uid;
                let entry = spans.registry.find_open(uid, &span.name).ok();
                let is_open = entry.is_some_and(|entry| entry.key == span.key);
                assert_eq!(is_open, span.is_open, "registry: {}", span.name);
                let found = spans.registry.find(uid, &span.name).ok();
                let is_unsettled = matches!(found, Some(SpanLookup::Unsettled(key)) if key == span.key);
                let is_coarse = PEERS[span.peer].access == Access::Coarse;
                assert_eq!(
                    spans.coarse_spans.contains(span.key),
                    is_unsettled && is_coarse,
                    "coarse spans: {}",
                    span.name
                );
                assert!(!is_unsettled || is_coarse || spans.attributor.has_span(span.key), "unsettled");
            }
            let ended = self.closed + self.cancelled + self.abandoned;
            assert_eq!(self.spans.len(), ended + open.len(), "opened = ended + open");
            let counts = SpanCounts {
                opened: self.spans.len() as u64,
                closed: self.closed as u64,
                cancelled: self.cancelled as u64,
                abandoned: self.abandoned as u64,
                open: open.len() as u64,
            };
            assert_eq!(spans.counts(), counts);
        }

        /// Compares the journal and the final accounts with the schedule, once all closed spans have settled.
        fn assert_stored(&mut self) {
            self.machine.flush_store();
            self.machine.advance(1300);
            self.machine.flush_store();
            self.assert_in_step();
            let journal = self.machine.journal();
            let journal: Vec<_> = journal.iter().map(|account| (account.uid, &*account.span)).collect();
            let open = self.spans.iter().filter(|span| span.is_open);
            let mut open: Vec<_> = open.map(|span| (PEERS[span.peer].uid, &*span.name)).collect();
            open.sort_unstable();
            assert_eq!(journal, open, "journal");
            assert_eq!(self.machine.spans.waiting_replies(), 0);
            let count = |state| {
                let accounts = self.machine.final_accounts.iter();
                accounts
                    .filter(|found| found.account.state == state && found.account.durable == Some(true))
                    .count()
            };
            assert_eq!(count(SpanState::Settled), self.closed, "accounts of closed spans");
            assert_eq!(count(SpanState::Abandoned), self.abandoned, "accounts of abandoned spans");
            assert_eq!(self.machine.final_accounts.len(), self.closed + self.abandoned);
            self.assert_balance();
        }

        /// Compares the balance with the final and the open accounts, once all closed spans have settled.
        fn assert_balance(&self) {
            let Machine { spans, final_accounts, .. } = &self.machine;
            let balance = spans.balance().remove(0);
            assert_eq!(balance.measured_uj, balance.attributed_uj + balance.unattributed_uj);
            let part = |uj: Option<u64>| i64::try_from(uj.unwrap()).unwrap();
            let (settled, abandoned) = (part(balance.settled_uj), part(balance.abandoned_uj));
            let open = part(balance.open_uj);
            assert_eq!(part(Some(balance.attributed_uj)), settled + abandoned + open, "{balance:?}");
            assert_eq!(balance.not_kept_uj, Some(0));
            let share = |account: &Account| part(account.domains[0].share_uj);
            let sum = |uid: Option<u32>, state| {
                let accounts = final_accounts.iter().map(|found| &found.account);
                let matching = accounts.filter(|account| account.state == state && uid != Some(account.uid));
                matching.map(|account| share(account)).sum::<i64>()
            };
            let all = sum(None, SpanState::Settled) + sum(None, SpanState::Abandoned);
            assert_eq!(all, settled + abandoned + balance.rounding_uj.unwrap(), "{balance:?}");
            // Those that are not coarse are exact, each kind by itself.
            let coarse = Some(PEERS[2].uid);
            assert!(
                sum(coarse, SpanState::Settled) <= settled && sum(coarse, SpanState::Abandoned) <= abandoned
            );
            let (mut so_far, mut count) = (0, 0);
            spans.attributor.iter_spans(
                0,
                usize::MAX,
                self.machine.clock.now_ns(),
                u64::MAX,
                |_, account| {
                    (so_far, count) = (so_far + share(&account), count + 1);
                },
            );
            // Each account so far is rounded down.
            assert!((so_far..=so_far + count).contains(&open), "{so_far} of {count} spans, {balance:?}");
            assert!(self.cancelled == 0 || balance.cancelled_uj.unwrap() <= balance.unattributed_uj);
        }
    }

    #[test]
    fn the_balance_names_the_energy_of_accounts_that_were_not_kept_and_of_cancelled_spans() {
        let mut machine = Machine::with_room_in_store(0, |_| ());
        for (peer, span) in [(0, "settled"), (0, "abandoned"), (0, "cancelled"), (0, "open")] {
            machine.open(peer, if span == "abandoned" { 2 } else { 1 }, span);
        }
        machine.advance(100);
        let now_ns = machine.clock.now_ns();
        let found = machine.spans.find_open(&PEERS[0], "settled").unwrap();
        machine.spans.close(now_ns, &found, None, BTreeMap::new(), None).unwrap();
        let found = machine.spans.find_open(&PEERS[0], "cancelled").unwrap();
        machine.spans.cancel(now_ns, &found).unwrap();
        machine.spans.abandon_connection(now_ns, 2);
        machine.advance(1300);
        let balance = machine.spans.balance().remove(0);
        let not_kept: Vec<&Account> = machine.final_accounts.iter().map(|found| &*found.account).collect();
        assert_eq!(not_kept.len(), 2);
        assert!(not_kept.iter().all(|account| account.durable == Some(false)));
        let not_kept_uj: u64 = not_kept.iter().map(|account| account.domains[0].share_uj.unwrap()).sum();
        assert!(not_kept_uj > 0 && balance.cancelled_uj.unwrap() > 0 && balance.open_uj.unwrap() > 0);
        assert_eq!(balance.not_kept_uj, Some(not_kept_uj));
        assert_eq!(
            (balance.settled_uj, balance.abandoned_uj, balance.rounding_uj),
            (Some(0), Some(0), Some(0))
        );
        assert_eq!(balance.attributed_uj, not_kept_uj + balance.open_uj.unwrap());
        assert_eq!(balance.measured_uj, balance.attributed_uj + balance.unattributed_uj);
    }

    #[test]
    fn a_change_reaches_the_journal_before_the_refresh_does() {
        let mut machine = Machine::new(|_| ());
        // The refresh goes round this many spans in 5 s.
        let names: Vec<String> = (0..400).map(|at| format!("s{at}")).collect();
        names.iter().for_each(|span| machine.open(0, 1, span));
        machine.advance(1500);
        machine.flush_store();
        assert_eq!(machine.journal().len(), names.len());
        let now_ns = machine.clock.now_ns();
        for (at, span) in names.iter().enumerate() {
            let open = machine.spans.find_open(&PEERS[0], span).unwrap();
            match at % 2 {
                0 => machine.spans.begin_phase(now_ns, &open, None, "p".into()).unwrap(),
                _ => machine.spans.set_weight(now_ns, &open, None, 2.0).unwrap(),
            };
        }
        machine.advance(1500);
        machine.flush_store();
        let journal = machine.journal();
        assert_eq!(journal.len(), names.len());
        let phases = journal.iter().filter(|account| !account.phases.is_empty()).count();
        let weights = journal.iter().filter(|account| account.weight == 2.0).count();
        assert_eq!((phases, weights), (names.len() / 2, names.len() / 2));
    }

    #[test]
    fn a_changing_span_stands_in_the_journals_queue_once_and_reaches_the_journal() {
        // The second store has room for the first rows of a turn only, and refuses the others.
        for max_waiting_bytes in [1 << 24, 1 << 13] {
            let mut machine = Machine::with_room_in_store(max_waiting_bytes, |_| ());
            // More than the refresh goes round meanwhile.
            let names: Vec<String> = (0..64).map(|at| format!("s{at}")).collect();
            names.iter().for_each(|span| machine.open(0, 1, span));
            let queued = |machine: &Machine| {
                let durability = machine.spans.durability.as_ref().unwrap();
                durability.journal.changed.len()
            };
            for step in 0..300 {
                for span in &names {
                    let open = machine.spans.find_open(&PEERS[0], span).unwrap();
                    let weight = f64::from(2 + step % 2);
                    machine.spans.set_weight(machine.clock.now_ns(), &open, None, weight).unwrap();
                }
                machine.advance(10);
                assert!(queued(&machine) <= names.len(), "{} entries in step {step}", queued(&machine));
            }
            let mut turns = 0;
            while queued(&machine) > 0 {
                machine.advance(10);
                machine.flush_store();
                turns += 1;
                assert!(turns < 4_000, "{} entries stay in the queue", queued(&machine));
            }
            machine.flush_store();
            let weights: Vec<f64> = machine.journal().iter().map(|account| account.weight).collect();
            assert_eq!(weights, [3.0; 64], "the last weight of each");
        }
    }

    #[test]
    fn abandoned_spans_stay_in_step_between_the_turns_that_close_them() {
        let mut machine = Machine::new(|_| ());
        let names: Vec<String> = (0..3 * ABANDONED_PER_TURN).map(|at| format!("s{at}")).collect();
        names.iter().for_each(|span| machine.open(0, 1, span));
        machine.advance(20);
        assert!(machine.spans.abandon_connection(machine.clock.now_ns(), 1));
        for turn in 0..=3 {
            let open = machine.open_in_attributor();
            assert_eq!(open.len(), names.len() - turn * ABANDONED_PER_TURN);
            for span in &names {
                let entry = machine.spans.registry.find_open(PEERS[0].uid, span).ok();
                let in_attributor = open.iter().find(|(_, _, name)| name == span).map(|(key, ..)| *key);
                assert_eq!(entry.map(|entry| entry.key), in_attributor, "{span}");
            }
            assert_eq!(machine.spans.next_poll_ns(1, u64::MAX) == 1, turn < 3, "turn {turn}");
            machine.spans.close_abandoned(machine.clock.now_ns());
        }
    }

    #[test]
    fn every_part_knows_the_same_spans_after_any_calls() {
        let mut tried = [0; 4];
        for seed in 1..=3 {
            let mut schedule = Schedule::new(seed);
            for _ in 0..8 {
                for _ in 0..60 {
                    schedule.call();
                    schedule.assert_in_step();
                    let ms = 10 * schedule.below(3);
                    schedule.machine.advance(ms);
                    schedule.assert_in_step();
                }
                schedule.assert_stored();
            }
            let Schedule { closed, cancelled, abandoned, failed, .. } = &schedule;
            for (sum, count) in tried.iter_mut().zip([closed, cancelled, abandoned, failed]) {
                *sum += *count;
            }
            let now_ns = schedule.machine.clock.now_ns();
            for connection in 0..30 {
                schedule.machine.spans.abandon_connection(now_ns, connection);
            }
            schedule.abandoned += schedule
                .spans
                .iter_mut()
                .map(|span| usize::from(std::mem::take(&mut span.is_open)))
                .sum::<usize>();
            schedule.machine.poll();
            schedule.assert_stored();
            assert_eq!(schedule.machine.spans.registry.memory_bytes(), 0);
            assert!(!schedule.machine.spans.attributor.is_busy());
        }
        assert!(tried.iter().all(|count| *count > 10), "the schedules try too little: {tried:?}");
    }
}
