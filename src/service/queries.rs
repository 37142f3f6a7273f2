//! Questions that change nothing: the machine, a span, a window of the past, the balance.
//!
//! Owns what a caller gets to see: another user's account only with telemetry access, no figures without any.

use super::access::Peer;
use super::coarse_grid;
use super::service::{AccountOutcome, Caller, Service};
use super::span_lookup::{MAX_LIST_BYTES, SpanLookup};
use crate::attribution::account::{Account, SpanState};
use crate::attribution::{SpanKey, footprint};
use crate::domain::Domain;
use crate::protocol::{
    Access, Balances, DaemonInfo, DomainSnapshot, DomainStatus, ListSpans, MethodError, ReadWindow,
    SpanAccounts, WindowEnergy,
};
use crate::store::{Filter, StoreQuery};

/// Accounts that ListSpans gives where nothing is asked.
const DEFAULT_LIST_LIMIT: i64 = 20;

/// The most it ever gives.
const MAX_LIST_LIMIT: usize = 256;

/// The most open spans whose accounts one ListSpans computes.
const MAX_OPEN_EXAMINED: usize = 1024;

impl Service {
    /// GetInfo. To a caller without access the domains show their health but no figures.
    pub fn get_info(&mut self, peer: &Peer) -> DaemonInfo {
        let now_ns = self.clock.now_ns();
        self.refresh_if_stale(now_ns);
        let mut domains = self.collector.statuses();
        // How many ticks and accounts there are, and how late, shows when and how much others measure.
        let (mut samplers, mut keeping) = (self.collector.sampler_statuses(), self.durability_status(peer));
        if peer.access < Access::Span {
            domains.iter_mut().for_each(hide_figures);
            (samplers, keeping) = (Vec::new(), None);
        }
        DaemonInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            boot_id: self.boot_id.clone(),
            now_ns,
            horizon_ns: self.settings.attribution.horizon_ns,
            history_ns: self.settings.history_ns,
            domains,
            at_least: self.collector.at_least(),
            absent: self.absent.clone(),
            samplers,
            simulated: self.collector.domains().any(Domain::is_simulated).then_some(true),
            keeping,
            confinement: self.confinement.clone(),
            access: peer.access,
        }
    }

    /// GetSpan: the caller's own, or anybody's for telemetry. One that is no longer remembered is looked for on disk, if
    /// the caller can wait.
    pub fn get_span(
        &mut self,
        caller: &Caller,
        span: &str,
        wait: bool,
    ) -> Result<AccountOutcome, MethodError> {
        let (now_ns, peer) = (self.clock.now_ns(), &caller.peer);
        self.refresh_if_stale(now_ns);
        // What its owner has on disk would come before what others have in memory; but names are random, or their
        // owners' own, and a second look for each question of telemetry would cost more than that is worth.
        let mut lookup = self.find_visible_span(peer, span);
        if lookup.is_err() && peer.access >= Access::Telemetry {
            lookup = self.registry.find_of_any_user(span);
        }
        if lookup.is_err() && wait && self.query_span(peer, caller.reply_to, span)? {
            return Ok(AccountOutcome::Deferred);
        }
        self.current_account(now_ns, span, lookup?).map(|account| AccountOutcome::Ready(Box::new(account)))
    }

    /// The account of a span that is known, as of now.
    pub(crate) fn current_account(
        &self,
        now_ns: u64,
        span: &str,
        lookup: SpanLookup,
    ) -> Result<Account, MethodError> {
        match lookup {
            SpanLookup::Settled(account, store_number) => Ok(self.with_durability(&account, store_number)),
            SpanLookup::Unsettled(key) => {
                let current_account = || self.attributor.account(now_ns, key).ok();
                let missing = || MethodError::NoSuchSpan { span: span.to_owned() };
                self.coarse_spans.provisional_account(key, current_account).ok_or_else(missing)
            }
        }
    }

    /// What is known of the caller's span of this name; to a coarse caller only of its coarse ones.
    pub(crate) fn find_visible_span(&self, peer: &Peer, span: &str) -> Result<SpanLookup, MethodError> {
        let lookup = self.registry.find(peer.uid, span)?;
        let is_visible = peer.access >= Access::Span
            || match &lookup {
                SpanLookup::Unsettled(key) => self.coarse_spans.contains(*key),
                SpanLookup::Settled(account, _) => coarse_grid::is_coarse(account),
            };
        if is_visible { Ok(lookup) } else { Err(MethodError::NoSuchSpan { span: span.to_owned() }) }
    }

    /// ListSpans: the caller's own, or everybody's for telemetry; from the disk, where there is one and the caller can
    /// wait (`None`: the answer comes under its ticket), else from memory.
    pub fn list_spans(
        &mut self,
        caller: &Caller,
        call: &ListSpans,
        wait: bool,
    ) -> Result<Option<SpanAccounts>, MethodError> {
        let (limit, filter) = (list_limit(call)?, list_filter(call)?);
        let (now_ns, peer) = (self.clock.now_ns(), &caller.peer);
        self.refresh_if_stale(now_ns);
        if call.state == Some(SpanState::Open) {
            let accounts =
                if call.before.is_some() { Vec::new() } else { self.list_open_spans(peer, limit, &filter) };
            return Ok(Some(SpanAccounts { accounts, before: None }));
        }
        let before = call.before.map(|cursor| self.decode_cursor(peer, cursor)).transpose()?;
        let question = StoreQuery::List { uid: uid_filter(peer), filter, limit, before };
        if wait && self.query_list(peer, caller.reply_to, call, question)? {
            return Ok(None);
        }
        self.list_remembered_spans(peer, call).map(Some)
    }

    /// The number in a cursor that an earlier answer gave this caller.
    fn decode_cursor(&self, peer: &Peer, cursor: i64) -> Result<u64, MethodError> {
        let invalid =
            |reason: &str| MethodError::InvalidValue { field: "before".into(), reason: reason.to_owned() };
        let cursor = u64::try_from(cursor).map_err(|_| invalid("is negative; leave it out for all"))?;
        let store_number =
            uid_filter(peer).map_or(Some(cursor), |uid| self.cursor_cipher.decrypt(uid, cursor));
        let reason =
            "comes from no answer that this user got since the daemon started; list again without it";
        store_number.ok_or_else(|| invalid(reason))
    }

    /// The cursor with which this caller goes on before the account of this number.
    pub(crate) fn encode_cursor(&self, peer: &Peer, store_number: u64) -> u64 {
        uid_filter(peer).map_or(store_number, |uid| self.cursor_cipher.encrypt(uid, store_number))
    }

    /// The accounts so far of open spans, the latest last: of as many as [`MAX_OPEN_EXAMINED`], those that fit.
    fn list_open_spans(&self, peer: &Peer, limit: usize, filter: &Filter) -> Vec<Account> {
        let now_ns = self.clock.now_ns();
        let may_see = |key: &SpanKey| peer.access >= Access::Span || self.coarse_spans.contains(*key);
        let dated = |(span, key)| Some((self.attributor.requested_ns(key)?, span, key));
        let mut spans: Vec<(u64, &str, SpanKey)> = self
            .registry
            .open_spans(uid_filter(peer))
            .filter(|(_, key)| may_see(key))
            .filter_map(dated)
            .collect();
        spans.sort_unstable_by_key(|&(requested_ns, span, _)| (std::cmp::Reverse(requested_ns), span));
        spans.truncate(MAX_OPEN_EXAMINED);
        let current_account = |(_, span, key): (u64, &str, SpanKey)| {
            self.current_account(now_ns, span, SpanLookup::Unsettled(key)).ok()
        };
        let fits = spans.into_iter().filter_map(current_account).filter(|account| filter.matches(account));
        let within = fits.scan(0, |bytes, account| {
            *bytes += footprint::account_bytes(&account);
            (*bytes <= MAX_LIST_BYTES).then_some(account)
        });
        let mut accounts: Vec<Account> = within.take(limit).collect();
        accounts.reverse();
        accounts
    }

    /// The same from memory alone; there is nothing before it.
    pub(crate) fn list_remembered_spans(
        &self,
        peer: &Peer,
        call: &ListSpans,
    ) -> Result<SpanAccounts, MethodError> {
        let (limit, filter) = (list_limit(call)?, list_filter(call)?);
        let limit = if call.before.is_some() { 0 } else { limit };
        let matches = |account: &Account| filter.matches(account) && is_visible_to(peer, account);
        let latest = self.registry.latest_accounts(uid_filter(peer), limit, matches);
        let accounts = latest
            .iter()
            .map(|(account, store_number)| self.with_durability(account, *store_number))
            .collect();
        Ok(SpanAccounts { accounts, before: None })
    }

    /// ReadWindow.
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
        let window = self.collector.window(from_ns, to_ns, &self.settings.attribution);
        window.ok_or(MethodError::InvalidTime { at_ns: call.to_ns, earliest_ns: from_ns, latest_ns: now_ns })
    }

    /// GetBalance.
    pub fn get_balance(&mut self) -> Balances {
        let now_ns = self.clock.now_ns();
        self.refresh_if_stale(now_ns);
        let mut balance = self.attributor.balance();
        balance.retain(|balance| self.collector.has_readings(&balance.domain));
        Balances { balance }
    }

    /// What WatchDomains tells now.
    pub fn domain_tick(&mut self) -> DomainSnapshot {
        let now_ns = self.clock.now_ns();
        self.refresh_if_stale(now_ns);
        DomainSnapshot { now_ns, domains: self.collector.statuses(), at_least: self.collector.at_least() }
    }
}

/// Whose accounts this caller may see: only its own, or everybody's.
fn uid_filter(peer: &Peer) -> Option<u32> {
    (peer.access < Access::Telemetry).then_some(peer.uid)
}

/// Whether an account may be told to this caller, who may see accounts of its user: to a coarse one only coarse ones.
pub(crate) fn is_visible_to(peer: &Peer, account: &Account) -> bool {
    peer.access >= Access::Span || coarse_grid::is_coarse(account)
}

fn list_limit(call: &ListSpans) -> Result<usize, MethodError> {
    match call.limit.unwrap_or(DEFAULT_LIST_LIMIT) {
        limit @ 1.. => Ok(usize::try_from(limit).unwrap_or(MAX_LIST_LIMIT).min(MAX_LIST_LIMIT)),
        _ => {
            let reason = "must be at least 1; leave it out for 20".to_owned();
            Err(MethodError::InvalidValue { field: "limit".into(), reason })
        }
    }
}

fn list_filter(call: &ListSpans) -> Result<Filter, MethodError> {
    let since = call.since_unix_ns.map(u64::try_from).transpose();
    let negative = || {
        let reason = "is negative; leave it out for all".to_owned();
        MethodError::InvalidValue { field: "since_unix_ns".into(), reason }
    };
    Ok(Filter {
        since_unix_ns: since.map_err(|_| negative())?,
        name: call.name.clone(),
        attributes: call.attributes.clone().unwrap_or_default(),
        state: call.state,
    })
}

/// Takes out of a status whatever tells about energy or power.
fn hide_figures(status: &mut DomainStatus) {
    // The smallest step that was seen is the energy of one update: it tells the least power.
    status.quantum_uj = None;
    // And how often the step is reached tells the power, for a counter that moves by it.
    status.update_interval_ns = None;
    status.energy_uj = None;
    status.power_mw = None;
    status.residual = None;
    // A busy machine takes longer over a reading.
    status.read_cost_ns = None;
}
