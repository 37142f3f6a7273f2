//! The methods of the protocol: spans, queries of accounts, and domains.
//!
//! Each method checks its call, passes each step of a span to [`SpanLifecycle`](super::span_lifecycle::SpanLifecycle), and limits
//! the reply to the caller's access: accounts of other users need telemetry access, figures of domains need span access.

use wattspan_client::protocol::{
    Access, Balances, CloseSpan, DaemonInfo, DomainSnapshot, DomainStatus, ListSpans, MarkPhase, MethodError,
    OpenSpan, OpenedSpan, ReadWindow, SetWeight, SpanAccounts, SumSpans, WatchSpans, WindowEnergy,
};

use super::access::{self, Peer};
use super::caller::{AccountOutcome, Caller, ConnectionId};
use super::durability::QueryKind;
use super::list_request::{ListRequest, StartPosition};
use super::metadata_limits;
use super::meter_service::Service;
use super::sum_request;
use crate::attribution::NewSpan;
use crate::domain::Domain;
use crate::store::StoreQuery;

/// The maximum time by which an edge may lie in the future: clients round, and the clocks of CPUs differ.
const MAX_FUTURE_NS: u64 = 1_000_000;

impl Service {
    /// The method OpenSpan: opens a span, and generates its name if the call has none.
    pub fn open_span(&mut self, caller: &Caller, mut call: OpenSpan) -> Result<OpenedSpan, MethodError> {
        let now_ns = self.clock.now_ns();
        let requested_ns = self.validate_instant(call.at_ns, now_ns)?;
        let weight = call.weight.unwrap_or(1.0);
        access::check_weight(&caller.peer, weight)?;
        let span = self.span_id(call.span.take())?;
        let name = call.name.take().unwrap_or_default();
        metadata_limits::check_text("name", &name, metadata_limits::MAX_NAME_BYTES)?;
        let attributes = call.attributes.take().unwrap_or_default();
        metadata_limits::check_attributes(&attributes, 0)?;
        let domains = call.domains.take().map(|names| self.domain_indices(&names)).transpose()?;
        let new_span =
            NewSpan { name, attributes, weight, domains, ..NewSpan::new(span.clone(), requested_ns) };
        let (clock, collector) = (&self.clock, &self.collector);
        let report_edge = |at_ns| collector.report_edge(at_ns, now_ns);
        self.spans.open(clock, now_ns, caller, &call, new_span, report_edge)?;
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
        let open = self.spans.find_open(peer, &call.span)?;
        metadata_limits::check_identifier("phase", &call.phase, metadata_limits::MAX_PHASE_BYTES)?;
        let requested_ns = self.validate_edge(call.at_ns, now_ns)?;
        let at_ns = self.spans.begin_phase(now_ns, &open, requested_ns, call.phase)?;
        self.collector.report_edge(at_ns, now_ns);
        Ok(())
    }

    /// The method SetWeight: changes the weight of an open span.
    pub fn set_weight(&mut self, peer: &Peer, call: &SetWeight) -> Result<(), MethodError> {
        let now_ns = self.clock.now_ns();
        let open = self.spans.find_open(peer, &call.span)?;
        access::check_weight(peer, call.weight)?;
        let requested_ns = self.validate_edge(call.at_ns, now_ns)?;
        let at_ns = self.spans.set_weight(now_ns, &open, requested_ns, call.weight)?;
        self.collector.report_edge(at_ns, now_ns);
        Ok(())
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
        let open = self.spans.find_open(&caller.peer, &call.span)?;
        let requested_ns = self.validate_edge(call.at_ns, now_ns)?;
        let (attributes, reply_to) = (call.attributes.unwrap_or_default(), wait.then_some(caller.reply_to));
        let at_ns = self.spans.close(now_ns, &open, requested_ns, attributes, reply_to)?;
        self.collector.report_edge(at_ns, now_ns);
        if wait {
            return Ok(AccountOutcome::Deferred);
        }
        self.refresh_if_stale(now_ns);
        let lookup = self.spans.find(caller.peer.uid, &call.span)?;
        let account = self.spans.current_account(now_ns, &call.span, lookup)?;
        Ok(AccountOutcome::Ready(Box::new(account)))
    }

    /// The method CancelSpan: removes an open span without an account.
    pub fn cancel_span(&mut self, peer: &Peer, span: &str) -> Result<(), MethodError> {
        let now_ns = self.clock.now_ns();
        let open = self.spans.find_open(peer, span)?;
        self.spans.cancel(now_ns, &open)?;
        self.collector.report_edge(now_ns, now_ns);
        Ok(())
    }

    /// Closes the open spans of a closed connection as abandoned: a few now, the others in the next polls.
    pub fn close_connection(&mut self, connection: ConnectionId) {
        let now_ns = self.clock.now_ns();
        if self.spans.abandon_connection(now_ns, connection) {
            self.collector.report_edge(now_ns, now_ns);
            self.spans.close_abandoned(now_ns);
        }
    }

    /// The method GetInfo. Without span access the domains have their liveness but no figures.
    pub fn get_info(&mut self, peer: &Peer) -> DaemonInfo {
        let now_ns = self.clock.now_ns();
        self.refresh_if_stale(now_ns);
        let mut domains = self.collector.statuses();
        // The numbers of ticks and accounts, and their lateness, reveal when and how much others measure.
        let mut samplers = self.collector.sampler_statuses();
        let mut keeping = self.spans.store_status(peer);
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
            spans: peer.uid_filter().is_none().then(|| self.spans.counts()),
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
        let mut lookup = self.spans.find_visible(peer, span);
        if lookup.is_err() && peer.access >= Access::Telemetry {
            lookup = self.spans.find_of_any_user(span);
        }
        if lookup.is_err() && wait {
            let all_users = peer.access >= Access::Telemetry;
            let query = StoreQuery::Span { uid: peer.uid, all_users, span: span.to_owned() };
            if self.spans.submit_query(now_ns, caller, query, QueryKind::Span(span.to_owned()))? {
                return Ok(AccountOutcome::Deferred);
            }
        }
        let account = self.spans.current_account(now_ns, span, lookup?)?;
        Ok(AccountOutcome::Ready(Box::new(account)))
    }

    /// The method ListSpans: the spans of the caller or, with telemetry access, of all users. If there is a store and
    /// the caller can wait, the reply comes from the store and is sent later (`None`), else from memory.
    pub fn list_spans(
        &mut self,
        caller: &Caller,
        call: &ListSpans,
        wait: bool,
    ) -> Result<Option<SpanAccounts>, MethodError> {
        let request = ListRequest::parse(&caller.peer, call)?;
        let (now_ns, peer) = (self.clock.now_ns(), &caller.peer);
        self.refresh_if_stale(now_ns);
        if request.is_for_open_spans() {
            let is_first_page = request.cursor.is_none();
            let accounts =
                if is_first_page { self.spans.open_accounts(now_ns, peer, &request) } else { Vec::new() };
            return Ok(Some(SpanAccounts::of_accounts(accounts)));
        }
        if let Some(query) = request.forward_query(peer) {
            if !wait {
                return Ok(Some(SpanAccounts::of_accounts(Vec::new())));
            }
            let query = StoreQuery::Forward(Box::new(query));
            if self.spans.submit_query(now_ns, caller, query, QueryKind::Forward)? {
                return Ok(None);
            }
            return Err(no_store());
        }
        let before = request.cursor.map(|cursor| self.cursor_cipher.decode(peer, cursor)).transpose()?;
        if wait {
            let (uid, filter, limit) = (peer.uid_filter(), request.filter.clone(), request.limit);
            let query = StoreQuery::List { uid, filter, limit, before };
            let kind = QueryKind::List(Box::new(request.clone()));
            if self.spans.submit_query(now_ns, caller, query, kind)? {
                return Ok(None);
            }
        }
        self.spans.remembered_accounts(peer, &request).map(Some)
    }

    /// The method SumSpans: the sums of stored accounts of the caller or, with telemetry access, of all users. The reply is sent
    /// later.
    pub fn sum_spans(&mut self, caller: &Caller, call: &SumSpans) -> Result<(), MethodError> {
        let query = sum_request::parse_query(&caller.peer, call)?;
        let now_ns = self.clock.now_ns();
        if self.spans.begin_sums(caller, query, now_ns)? { Ok(()) } else { Err(no_store()) }
    }

    /// The method WatchSpans: the position at which the stream begins, if it begins with stored accounts.
    pub fn watch_spans(&self, peer: &Peer, call: &WatchSpans) -> Result<Option<StartPosition>, MethodError> {
        let position = StartPosition::parse(peer, call.after, call.database.as_deref())?;
        if position.is_some() && self.spans.last_store_number().is_none() {
            return Err(no_store());
        }
        Ok(position)
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
        self.collector.drain(now_ns, &mut self.spans.domain_inputs());
        let settings = &self.settings.attribution;
        let window = self.collector.window(from_ns, to_ns, settings, self.spans.attributor());
        window.ok_or(MethodError::InvalidTime { at_ns: call.to_ns, earliest_ns: from_ns, latest_ns: now_ns })
    }

    /// The method GetBalance: the energy balance of each domain with readings.
    /// Its parts by the end of the spans are for callers who may see all accounts: a step of one is the energy of a span.
    pub fn get_balance(&mut self, peer: &Peer) -> Balances {
        let now_ns = self.clock.now_ns();
        self.refresh_if_stale(now_ns);
        let mut balance = self.spans.balance();
        if peer.uid_filter().is_some() {
            balance.iter_mut().for_each(|balance| balance.hide_parts());
        }
        balance.retain(|balance| self.collector.has_readings(&balance.domain));
        Balances { balance }
    }

    /// An item of a WatchDomains stream: the status of every domain.
    pub fn domain_tick(&mut self) -> DomainSnapshot {
        let now_ns = self.clock.now_ns();
        self.refresh_if_stale(now_ns);
        DomainSnapshot { now_ns, domains: self.collector.statuses(), at_least: self.collector.at_least() }
    }

    /// Whether the caller has an open span of this name.
    pub fn has_open_span(&self, peer: &Peer, span: &str) -> bool {
        self.spans.find_open(peer, span).is_ok()
    }

    /// The instant in a call about an open span, if it has one.
    fn validate_edge(&self, at_ns: Option<i64>, now_ns: u64) -> Result<Option<u64>, MethodError> {
        at_ns.map(|_| self.validate_instant(at_ns, now_ns)).transpose()
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

fn no_store() -> MethodError {
    MethodError::StoreUnavailable { reason: "this meter keeps no accounts on disk".into() }
}

/// Removes from a status all fields that reveal energy or power.
fn hide_figures(status: &mut DomainStatus) {
    // The quantum is the smallest observed energy of one update, which bounds the power from below.
    status.quantum_uj = None;
    (status.assumed_quantum_uj, status.quantum_origin) = (None, None);
    // For a counter that moves by its quantum, the interval reveals the power.
    (status.update_interval_ns, status.update_interval_origin) = (None, None);
    status.energy_uj = None;
    status.power_mw = None;
    status.residual = None;
    // It may be the update interval.
    (status.lag_ns, status.lag_origin) = (None, None);
    (status.ceilings, status.exceeded) = (None, None);
    // A read takes longer on a busy machine.
    status.read_cost_ns = None;
}
