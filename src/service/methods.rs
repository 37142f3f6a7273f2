//! The methods of the protocol: spans, queries of accounts, and domains.
//!
//! Each method checks its call before it reaches the attributor, and limits the reply to the caller's access:
//! accounts of other users need telemetry access, figures of domains need span access. Invariant: a span is open in
//! the registry exactly while it is open in the attributor.

use wattspan_client::account::Account;
use wattspan_client::protocol::{
    Access, Balances, CloseSpan, DaemonInfo, DomainSnapshot, DomainStatus, ListSpans, MarkPhase, MethodError,
    OpenSpan, OpenedSpan, ReadWindow, SetWeight, SpanAccounts, WindowEnergy,
};

use super::access::{self, Peer};
use super::caller::{AccountOutcome, Caller, ConnectionId};
use super::durability::QueryKind;
use super::list_request::ListRequest;
use super::metadata_limits;
use super::meter_service::Service;
use super::span_memory::SpanSize;
use super::span_registry::{MAX_LIST_BYTES, OpenSpanEntry, SpanLookup};
use super::tiered_attributor::SpanEdge;
use crate::attribution::{AttributionError, NewSpan, SpanKey, footprint};
use crate::clock;
use crate::domain::Domain;
use crate::store::StoreQuery;

/// The maximum time by which an edge may lie in the future: clients round, and the clocks of CPUs differ.
const MAX_FUTURE_NS: u64 = 1_000_000;

/// The maximum number of open spans whose accounts one ListSpans computes.
const MAX_OPEN_EXAMINED: usize = 1024;

impl Service {
    /// The method OpenSpan: opens a span, and generates its name if the call has none.
    pub fn open_span(&mut self, caller: &Caller, mut call: OpenSpan) -> Result<OpenedSpan, MethodError> {
        let now_ns = self.clock.now_ns();
        let requested_ns = self.validate_instant(call.at_ns, now_ns)?;
        let opening = self.attributor.opening(&caller.peer, requested_ns, now_ns);
        let weight = call.weight.unwrap_or(1.0);
        access::check_weight(&caller.peer, weight)?;
        let span = self.span_id(call.span.take())?;
        let name = call.name.take().unwrap_or_default();
        metadata_limits::check_text("name", &name, metadata_limits::MAX_NAME_BYTES)?;
        let attributes = call.attributes.take().unwrap_or_default();
        metadata_limits::check_attributes(&attributes, 0)?;
        let size = self.registry.estimate_size(&span, &name, &attributes, opening.is_withheld());
        self.registry.check_open(&caller.peer, &span, size)?;
        let subject = self.process_tracker.resolve(caller, &call, self.attributor.inner_mut())?;
        let new_span = NewSpan {
            span_id: span.clone(),
            name,
            attributes,
            weight,
            domains: call.domains.map(|names| self.domain_indices(&names)).transpose()?,
            at_ns: opening.at_ns(),
            uid: caller.peer.uid,
            opened_unix_ns: clock::unix_ns().saturating_add(opening.at_ns()).saturating_sub(now_ns),
            subject,
        };
        let opened = self.attributor.open(now_ns, opening, new_span);
        let key = opened.map_err(|error| method_error(error, &span, opening.at_ns()))?;
        self.registry.insert(caller.peer.uid, &span, key, caller.reply_to.connection, size);
        if let Some(durability) = &mut self.durability {
            durability.add_to_journal(key, now_ns);
        }
        self.report_edge(opening.at_ns(), now_ns);
        self.set_sampling_rate(true);
        Ok(OpenedSpan { span })
    }

    /// The ID in a call, or a new one.
    fn span_id(&mut self, requested: Option<String>) -> Result<String, MethodError> {
        let Some(span) = requested else { return Ok(self.span_ids.generate()) };
        metadata_limits::check_identifier("span", &span, metadata_limits::MAX_SPAN_ID_BYTES)?;
        Ok(span)
    }

    /// The method MarkPhase: begins a phase of an open span.
    pub fn mark_phase(&mut self, peer: &Peer, call: MarkPhase) -> Result<(), MethodError> {
        let now_ns = self.clock.now_ns();
        let open = self.find_open_span(peer, &call.span)?;
        metadata_limits::check_identifier("phase", &call.phase, metadata_limits::MAX_PHASE_BYTES)?;
        let edge = self.validate_edge(&open, &call.span, call.at_ns, now_ns)?;
        let size = self.registry.check_phase(peer, &open, &call.phase)?;
        let marked = self.attributor.begin_phase(now_ns, edge, call.phase);
        marked.map_err(|error| method_error(error, &call.span, edge.requested_ns()))?;
        let is_unqueued = self.registry.record_phase(peer.uid, &call.span, size);
        self.journal_change(open.key, is_unqueued, now_ns);
        self.report_edge(edge.at_ns(), now_ns);
        Ok(())
    }

    /// The method SetWeight: changes the weight of an open span.
    pub fn set_weight(&mut self, peer: &Peer, call: &SetWeight) -> Result<(), MethodError> {
        let now_ns = self.clock.now_ns();
        let open = self.find_open_span(peer, &call.span)?;
        access::check_weight(peer, call.weight)?;
        let edge = self.validate_edge(&open, &call.span, call.at_ns, now_ns)?;
        let size = self.registry.check_weight(peer, &open)?;
        let set = self.attributor.set_weight(now_ns, edge, call.weight);
        set.map_err(|error| method_error(error, &call.span, edge.requested_ns()))?;
        let is_unqueued = self.registry.record_weight_change(peer.uid, &call.span, size);
        self.journal_change(open.key, is_unqueued, now_ns);
        self.report_edge(edge.at_ns(), now_ns);
        Ok(())
    }

    /// Queues a changed span for the journal unless it is queued.
    fn journal_change(&mut self, key: SpanKey, is_unqueued: bool, now_ns: u64) {
        if let (Some(durability), true) = (&mut self.durability, is_unqueued) {
            durability.add_to_journal(key, now_ns);
        }
    }

    /// The method CloseSpan: closes a span. With `wait` the account is sent when it is final; otherwise the account
    /// as of now is returned.
    pub fn close_span(
        &mut self,
        caller: &Caller,
        call: CloseSpan,
        wait: bool,
    ) -> Result<AccountOutcome, MethodError> {
        let now_ns = self.clock.now_ns();
        let peer = &caller.peer;
        let open = self.find_open_span(peer, &call.span)?;
        let edge = self.validate_edge(&open, &call.span, call.at_ns, now_ns)?;
        let attributes = call.attributes.unwrap_or_default();
        let text_bytes = metadata_limits::check_attributes(&attributes, open.attribute_count())?;
        let memory_bytes = footprint::attributes_bytes(&attributes);
        let growth = SpanSize { text_bytes, attribute_count: attributes.len(), memory_bytes };
        if !attributes.is_empty() {
            self.registry.check_growth(peer, growth)?;
        }
        let closed = self.attributor.close(now_ns, edge, attributes);
        closed.map_err(|error| method_error(error, &call.span, edge.requested_ns()))?;
        self.report_edge(edge.at_ns(), now_ns);
        self.registry.begin_close(peer.uid, &call.span, growth, wait.then_some(caller.reply_to));
        if wait {
            return Ok(AccountOutcome::Deferred);
        }
        self.refresh_if_stale(now_ns);
        let lookup = self.registry.find(peer.uid, &call.span)?;
        self.current_account(now_ns, &call.span, lookup)
            .map(|account| AccountOutcome::Ready(Box::new(account)))
    }

    /// The method CancelSpan: removes an open span without an account.
    pub fn cancel_span(&mut self, peer: &Peer, span: &str) -> Result<(), MethodError> {
        let now_ns = self.clock.now_ns();
        let open = self.find_open_span(peer, span)?;
        self.attributor.cancel(now_ns, open.key).map_err(|error| method_error(error, span, now_ns))?;
        self.report_edge(now_ns, now_ns);
        let journal_key = self.registry.remove_open(peer.uid, span);
        if let (Some(durability), Some(key)) = (&mut self.durability, journal_key) {
            durability.remove_from_journal(key);
        }
        Ok(())
    }

    /// Closes the open spans of a closed connection as abandoned: a few now, the others in the next polls, so that no other
    /// client waits for them.
    pub fn close_connection(&mut self, connection: ConnectionId) {
        let now_ns = self.clock.now_ns();
        if self.registry.abandon_connection(connection, now_ns) {
            self.report_edge(now_ns, now_ns);
            self.abandon_spans(now_ns);
        }
    }

    /// Closes some of the abandoned spans. Each ends when its connection was closed, or at the horizon if that is later.
    pub(super) fn abandon_spans(&mut self, now_ns: u64) {
        /// Each takes about 6 µs.
        const ABANDONED_PER_TURN: usize = 32;
        for (key, at_ns) in self.registry.take_abandoned(ABANDONED_PER_TURN) {
            self.attributor.abandon(now_ns, key, at_ns);
        }
    }

    /// The method GetInfo. Without span access the domains have their liveness but no figures.
    pub fn get_info(&mut self, peer: &Peer) -> DaemonInfo {
        let now_ns = self.clock.now_ns();
        self.refresh_if_stale(now_ns);
        let mut domains = self.collector.statuses();
        // The numbers of ticks and accounts, and their lateness, reveal when and how much others measure.
        let mut samplers = self.collector.sampler_statuses();
        let mut keeping = self.durability.as_ref().map(|durability| durability.status(peer));
        if peer.access < Access::Span {
            domains.iter_mut().for_each(hide_figures);
            (samplers, keeping) = (Vec::new(), None);
        }
        DaemonInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            boot_id: self.boot_id.clone(),
            now_ns,
            started_ns: Some(self.started_ns),
            horizon_ns: self.settings.attribution.horizon_ns,
            history_ns: self.settings.history_ns,
            domains,
            at_least: self.collector.at_least(),
            absent: self.absent.clone(),
            samplers,
            simulated: self.collector.domains().any(Domain::is_simulated).then_some(true),
            keeping,
            confinement: self.privileges.clone(),
            access: peer.access,
        }
    }

    /// The method GetSpan: the account of a span of the caller or, with telemetry access, of any user. A span that is
    /// not in memory is looked up on disk if the caller can wait.
    pub fn get_span(
        &mut self,
        caller: &Caller,
        span: &str,
        wait: bool,
    ) -> Result<AccountOutcome, MethodError> {
        let (now_ns, peer) = (self.clock.now_ns(), &caller.peer);
        self.refresh_if_stale(now_ns);
        // The caller's own span on disk would take precedence over another user's in memory. That would cost a second
        // query for each telemetry call, and equal names are rare: names are random or chosen by their owners.
        let mut lookup = self.find_visible_span(peer, span);
        if lookup.is_err() && peer.access >= Access::Telemetry {
            lookup = self.registry.find_of_any_user(span);
        }
        if lookup.is_err() && wait {
            let all_users = peer.access >= Access::Telemetry;
            let query = StoreQuery::Span { uid: peer.uid, all_users, span: span.to_owned() };
            if self.submit_query(caller, query, QueryKind::Span(span.to_owned()))? {
                return Ok(AccountOutcome::Deferred);
            }
        }
        self.current_account(now_ns, span, lookup?).map(|account| AccountOutcome::Ready(Box::new(account)))
    }

    /// The method ListSpans: the spans of the caller or, with telemetry access, of all users. If there is a store and
    /// the caller can wait, the reply comes from the store and is sent later (`None`), else from memory.
    pub fn list_spans(
        &mut self,
        caller: &Caller,
        call: &ListSpans,
        wait: bool,
    ) -> Result<Option<SpanAccounts>, MethodError> {
        let request = ListRequest::parse(call)?;
        let (now_ns, peer) = (self.clock.now_ns(), &caller.peer);
        self.refresh_if_stale(now_ns);
        if request.is_for_open_spans() {
            let accounts =
                if request.cursor.is_some() { Vec::new() } else { self.list_open_spans(peer, &request) };
            return Ok(Some(SpanAccounts { accounts, before: None }));
        }
        let before = request.cursor.map(|cursor| self.cursor_cipher.decode(peer, cursor)).transpose()?;
        if wait {
            let (uid, filter, limit) = (peer.uid_filter(), request.filter.clone(), request.limit);
            let query = StoreQuery::List { uid, filter, limit, before };
            if self.submit_query(caller, query, QueryKind::List(Box::new(request.clone())))? {
                return Ok(None);
            }
        }
        let mark = |account: &Account, number| self.mark_durability(account, number);
        Ok(Some(request.remembered_accounts(peer, &self.registry, mark)))
    }

    /// Submits a query to the store; returns false if there is no store or it cannot answer.
    fn submit_query(
        &mut self,
        caller: &Caller,
        query: StoreQuery,
        kind: QueryKind,
    ) -> Result<bool, MethodError> {
        let Some(durability) = &mut self.durability else { return Ok(false) };
        durability.submit(&caller.peer, caller.reply_to, query, kind, self.clock.now_ns())
    }

    /// A copy of an account in memory with its state as of now.
    fn mark_durability(&self, account: &Account, store_number: Option<u64>) -> Account {
        match &self.durability {
            Some(durability) => durability.mark_durability(account, store_number),
            None => account.clone(),
        }
    }

    /// The accounts as of now of the latest open spans that match and fit into a reply, the latest last.
    fn list_open_spans(&self, peer: &Peer, request: &ListRequest) -> Vec<Account> {
        let now_ns = self.clock.now_ns();
        let dated = |(span, key)| Some((self.attributor.opening_ns(key)?, span, key));
        let mut spans: Vec<(u64, &str, SpanKey)> = self
            .registry
            .open_spans(peer.uid_filter())
            .filter(|(_, key)| self.attributor.is_visible_to(peer, *key))
            .filter_map(dated)
            .collect();
        spans.sort_unstable_by_key(|&(requested_ns, span, _)| (std::cmp::Reverse(requested_ns), span));
        spans.truncate(MAX_OPEN_EXAMINED);
        let current_account = |(_, span, key): (u64, &str, SpanKey)| {
            self.current_account(now_ns, span, SpanLookup::Unsettled(key)).ok()
        };
        let matching =
            spans.into_iter().filter_map(current_account).filter(|account| request.filter.matches(account));
        let within = matching.scan(0, |bytes, account| {
            *bytes += footprint::account_bytes(&account);
            (*bytes <= MAX_LIST_BYTES).then_some(account)
        });
        let mut accounts: Vec<Account> = within.take(request.limit).collect();
        accounts.reverse();
        accounts
    }

    /// The method ReadWindow: the energy of each domain in a window of the history.
    pub fn read_window(&mut self, call: &ReadWindow) -> Result<WindowEnergy, MethodError> {
        let now_ns = self.clock.now_ns();
        let from_ns = self.validate_instant(Some(call.from_ns), now_ns)?;
        let to_ns = self.validate_instant(Some(call.to_ns), now_ns)?;
        if to_ns < from_ns {
            return Err(MethodError::InvalidTime {
                at_ns: call.to_ns,
                earliest_ns: from_ns,
                latest_ns: now_ns,
            });
        }
        self.collector.drain(now_ns, self.attributor.inner_mut());
        let settings = &self.settings.attribution;
        let window = self.collector.window(from_ns, to_ns, settings, self.attributor.inner());
        window.ok_or(MethodError::InvalidTime { at_ns: call.to_ns, earliest_ns: from_ns, latest_ns: now_ns })
    }

    /// The method GetBalance: the energy balance of each domain with readings.
    pub fn get_balance(&mut self) -> Balances {
        let now_ns = self.clock.now_ns();
        self.refresh_if_stale(now_ns);
        let mut balance = self.attributor.inner().balance();
        balance.retain(|balance| self.collector.has_readings(&balance.domain));
        Balances { balance }
    }

    /// An item of a WatchDomains stream: the status of every domain.
    pub fn domain_tick(&mut self) -> DomainSnapshot {
        let now_ns = self.clock.now_ns();
        self.refresh_if_stale(now_ns);
        DomainSnapshot { now_ns, domains: self.collector.statuses(), at_least: self.collector.at_least() }
    }

    /// The account as of now of a span found by name.
    pub(super) fn current_account(
        &self,
        now_ns: u64,
        span: &str,
        lookup: SpanLookup,
    ) -> Result<Account, MethodError> {
        match lookup {
            SpanLookup::Settled(account, store_number) => Ok(self.mark_durability(&account, store_number)),
            SpanLookup::Unsettled(key) => {
                let missing = || MethodError::NoSuchSpan { span: span.to_owned() };
                self.attributor.provisional_account(now_ns, key).ok_or_else(missing)
            }
        }
    }

    /// The caller's span of this name. With coarse access only coarse spans are found.
    fn find_visible_span(&self, peer: &Peer, span: &str) -> Result<SpanLookup, MethodError> {
        let lookup = self.registry.find(peer.uid, span)?;
        let is_visible = match &lookup {
            SpanLookup::Unsettled(key) => self.attributor.is_visible_to(peer, *key),
            SpanLookup::Settled(account, _) => access::is_visible_to(peer, account),
        };
        if is_visible { Ok(lookup) } else { Err(MethodError::NoSuchSpan { span: span.to_owned() }) }
    }

    /// Whether the caller has an open span of this name.
    pub fn has_open_span(&self, peer: &Peer, span: &str) -> bool {
        self.find_open_span(peer, span).is_ok()
    }

    /// An edge of an open span at the instant in the call, else now.
    fn validate_edge(
        &self,
        open: &OpenSpanEntry,
        span: &str,
        at_ns: Option<i64>,
        now_ns: u64,
    ) -> Result<SpanEdge, MethodError> {
        let requested_ns = at_ns.map(|_| self.validate_instant(at_ns, now_ns)).transpose()?;
        let edge = self.attributor.edge(open.key, requested_ns, now_ns);
        edge.map_err(|error| method_error(error, span, requested_ns.unwrap_or(now_ns)))
    }

    /// The caller's open span of this name. With coarse access only coarse spans are found.
    fn find_open_span(&self, peer: &Peer, span: &str) -> Result<OpenSpanEntry, MethodError> {
        let open = self.registry.find_open(peer.uid, span);
        if peer.access >= Access::Span {
            return open;
        }
        let missing = || MethodError::NoSuchSpan { span: span.to_owned() };
        match open {
            Ok(open) if !self.attributor.is_visible_to(peer, open.key) => Err(missing()),
            Err(MethodError::AlreadyClosed { .. }) => self.find_visible_span(peer, span).and(open),
            other => other,
        }
    }

    fn domain_indices(&self, names: &[String]) -> Result<Vec<usize>, MethodError> {
        if names.is_empty() {
            let reason = "is empty; omit it for all domains".to_owned();
            return Err(MethodError::InvalidValue { field: "domains".into(), reason });
        }
        let index = |name: &String| {
            self.domain_index
                .get(name)
                .copied()
                .ok_or_else(|| MethodError::NoSuchDomain { domain: name.clone() })
        };
        let mut indices = names.iter().map(index).collect::<Result<Vec<_>, _>>()?;
        indices.sort_unstable();
        indices.dedup();
        Ok(indices)
    }

    /// The instant in a call, or now.
    ///
    /// # Errors
    /// `InvalidTime`: the instant is older than the history or in the future.
    fn validate_instant(&self, at_ns: Option<i64>, now_ns: u64) -> Result<u64, MethodError> {
        let Some(requested) = at_ns else { return Ok(now_ns) };
        let (earliest_ns, latest_ns) =
            (now_ns.saturating_sub(self.settings.history_ns), now_ns.saturating_add(MAX_FUTURE_NS));
        let inside = u64::try_from(requested).ok().filter(|at_ns| (earliest_ns..=latest_ns).contains(at_ns));
        inside.ok_or(MethodError::InvalidTime { at_ns: requested, earliest_ns, latest_ns })
    }
}

/// Converts an error of the attributor to an error of the protocol.
fn method_error(error: AttributionError, span: &str, at_ns: u64) -> MethodError {
    match error {
        AttributionError::NoSuchSpan => MethodError::NoSuchSpan { span: span.to_owned() },
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

/// Removes from a status all fields that reveal energy or power.
fn hide_figures(status: &mut DomainStatus) {
    // The quantum is the smallest observed energy of one update, which bounds the power from below.
    status.quantum_uj = None;
    // For a counter that moves by its quantum, the interval reveals the power.
    status.update_interval_ns = None;
    status.energy_uj = None;
    status.power_mw = None;
    status.residual = None;
    // It may be the update interval.
    (status.lag_ns, status.lag_origin) = (None, None);
    (status.ceilings, status.exceeded) = (None, None);
    // A read takes longer on a busy machine.
    status.read_cost_ns = None;
}
