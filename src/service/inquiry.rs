//! Questions that change nothing: the machine, a span, a window of the past, the balance.
//!
//! Owns what a caller gets to see: another user's account only with telemetry access, no figures without any.

use super::access::Peer;
use super::coarse;
use super::recall::{Known, MAX_LIST_BYTES};
use super::service::{Caller, Closed, Service};
use crate::attribution::account::{Account, State};
use crate::attribution::{SpanKey, footprint};
use crate::domain::Domain;
use crate::protocol::{
    Access, Balances, DomainStatus, DomainTick, Info, ListSpans, ReadWindow, Refusal, SpanAccounts, Window,
};
use crate::store::{Filter, StoreQuery};

/// Accounts that ListSpans gives where nothing is asked.
const LISTED: i64 = 20;

/// The most it ever gives.
const MOST_LISTED: usize = 256;

/// The most open spans whose accounts one ListSpans computes.
const MAX_OPEN_EXAMINED: usize = 1024;

impl Service {
    /// GetInfo. To a caller without access the domains show their health but no figures.
    pub fn info(&mut self, peer: &Peer) -> Info {
        let now_ns = self.clock.now_ns();
        self.freshen(now_ns);
        let mut domains = self.feeds.statuses();
        // How many ticks and accounts there are, and how late, shows when and how much others measure.
        let (mut samplers, mut keeping) = (self.feeds.samplers(), self.keeping(peer));
        if peer.access < Access::Span {
            domains.iter_mut().for_each(hide_figures);
            (samplers, keeping) = (Vec::new(), None);
        }
        Info {
            version: env!("CARGO_PKG_VERSION").into(),
            boot_id: self.boot_id.clone(),
            now_ns,
            horizon_ns: self.settings.ledger.horizon_ns,
            history_ns: self.settings.history_ns,
            domains,
            at_least: self.feeds.at_least(),
            absent: self.absent.clone(),
            samplers,
            simulated: self.feeds.domains().any(Domain::is_simulated).then_some(true),
            keeping,
            confinement: self.confinement.clone(),
            access: peer.access,
        }
    }

    /// GetSpan: the caller's own, or anybody's for telemetry. One that is no longer remembered is looked for on disk, if
    /// the caller can wait.
    pub fn account(&mut self, caller: &Caller, span: &str, wait: bool) -> Result<Closed, Refusal> {
        let (now_ns, peer) = (self.clock.now_ns(), &caller.peer);
        self.freshen(now_ns);
        // What its owner has on disk would come before what others have in memory; but names are random, or their
        // owners' own, and a second look for each question of telemetry would cost more than that is worth.
        let mut known = self.known_to(peer, span);
        if known.is_err() && peer.access >= Access::Telemetry {
            known = self.register.known_to_anybody(span);
        }
        if known.is_err() && wait && self.ask_for_span(peer, caller.ticket, span)? {
            return Ok(Closed::Awaited);
        }
        self.so_far(now_ns, span, known?).map(|account| Closed::Account(Box::new(account)))
    }

    /// The account of a span that is known, as of now.
    pub(crate) fn so_far(&self, now_ns: u64, span: &str, known: Known) -> Result<Account, Refusal> {
        match known {
            Known::Settled(account, kept) => Ok(self.shown(&account, kept)),
            Known::Held(key) => {
                let so_far = || self.ledger.account(now_ns, key).ok();
                let missing = || Refusal::NoSuchSpan { span: span.to_owned() };
                self.coarse.so_far(key, so_far).ok_or_else(missing)
            }
        }
    }

    /// What is known of the caller's span of this name; to a coarse caller only of its coarse ones.
    pub(crate) fn known_to(&self, peer: &Peer, span: &str) -> Result<Known, Refusal> {
        let known = self.register.known(peer.uid, span)?;
        let shown = peer.access >= Access::Span
            || match &known {
                Known::Held(key) => self.coarse.has(*key),
                Known::Settled(account, _) => coarse::fits(account),
            };
        if shown { Ok(known) } else { Err(Refusal::NoSuchSpan { span: span.to_owned() }) }
    }

    /// ListSpans: the caller's own, or everybody's for telemetry; from the disk, where there is one and the caller can
    /// wait (`None`: the answer comes under its ticket), else from memory.
    pub fn accounts(
        &mut self,
        caller: &Caller,
        call: &ListSpans,
        wait: bool,
    ) -> Result<Option<SpanAccounts>, Refusal> {
        let (limit, filter) = (limit(call)?, filter(call)?);
        let (now_ns, peer) = (self.clock.now_ns(), &caller.peer);
        self.freshen(now_ns);
        if call.state == Some(State::Open) {
            let accounts =
                if call.before.is_some() { Vec::new() } else { self.open_accounts(peer, limit, &filter) };
            return Ok(Some(SpanAccounts { accounts, before: None }));
        }
        let before = call.before.map(|cursor| self.opened(peer, cursor)).transpose()?;
        let question = StoreQuery::List { uid: whose(peer), filter, limit, before };
        if wait && self.ask_for_list(peer, caller.ticket, call, question)? {
            return Ok(None);
        }
        self.remembered(peer, call).map(Some)
    }

    /// The number in a cursor that an earlier answer gave this caller.
    fn opened(&self, peer: &Peer, cursor: i64) -> Result<u64, Refusal> {
        let invalid =
            |reason: &str| Refusal::InvalidValue { field: "before".into(), reason: reason.to_owned() };
        let cursor = u64::try_from(cursor).map_err(|_| invalid("is negative; leave it out for all"))?;
        let number = whose(peer).map_or(Some(cursor), |uid| self.cursors.open(uid, cursor));
        let reason =
            "comes from no answer that this user got since the daemon started; list again without it";
        number.ok_or_else(|| invalid(reason))
    }

    /// The cursor with which this caller goes on before the account of this number.
    pub(crate) fn sealed(&self, peer: &Peer, number: u64) -> u64 {
        whose(peer).map_or(number, |uid| self.cursors.seal(uid, number))
    }

    /// The accounts so far of open spans, the latest last: of as many as [`MAX_OPEN_EXAMINED`], those that fit.
    fn open_accounts(&self, peer: &Peer, limit: usize, filter: &Filter) -> Vec<Account> {
        let now_ns = self.clock.now_ns();
        let may_see = |key: &SpanKey| peer.access >= Access::Span || self.coarse.has(*key);
        let dated = |(span, key)| Some((self.ledger.asked_ns(key)?, span, key));
        let mut spans: Vec<(u64, &str, SpanKey)> =
            self.register.open_spans(whose(peer)).filter(|(_, key)| may_see(key)).filter_map(dated).collect();
        spans.sort_unstable_by_key(|&(asked_ns, span, _)| (std::cmp::Reverse(asked_ns), span));
        spans.truncate(MAX_OPEN_EXAMINED);
        let so_far = |(_, span, key): (u64, &str, SpanKey)| self.so_far(now_ns, span, Known::Held(key)).ok();
        let fits = spans.into_iter().filter_map(so_far).filter(|account| filter.matches(account));
        let within = fits.scan(0, |bytes, account| {
            *bytes += footprint::account(&account);
            (*bytes <= MAX_LIST_BYTES).then_some(account)
        });
        let mut accounts: Vec<Account> = within.take(limit).collect();
        accounts.reverse();
        accounts
    }

    /// The same from memory alone; there is nothing before it.
    pub(crate) fn remembered(&self, peer: &Peer, call: &ListSpans) -> Result<SpanAccounts, Refusal> {
        let (limit, filter) = (limit(call)?, filter(call)?);
        let limit = if call.before.is_some() { 0 } else { limit };
        let takes = |account: &Account| filter.matches(account) && may_see(peer, account);
        let latest = self.register.latest(whose(peer), limit, takes);
        let accounts = latest.iter().map(|(account, kept)| self.shown(account, *kept)).collect();
        Ok(SpanAccounts { accounts, before: None })
    }

    /// ReadWindow.
    pub fn window(&mut self, call: &ReadWindow) -> Result<Window, Refusal> {
        let now_ns = self.clock.now_ns();
        let from_ns = self.edge(Some(call.from_ns), now_ns)?;
        let to_ns = self.edge(Some(call.to_ns), now_ns)?;
        if to_ns < from_ns {
            return Err(Refusal::InvalidTime { at_ns: call.to_ns, earliest_ns: from_ns, latest_ns: now_ns });
        }
        let window = self.feeds.window(from_ns, to_ns, &self.settings.ledger);
        window.ok_or(Refusal::InvalidTime { at_ns: call.to_ns, earliest_ns: from_ns, latest_ns: now_ns })
    }

    /// GetBalance.
    pub fn balance(&mut self) -> Balances {
        let now_ns = self.clock.now_ns();
        self.freshen(now_ns);
        let mut balance = self.ledger.balance();
        balance.retain(|balance| self.feeds.has_readings(&balance.domain));
        Balances { balance }
    }

    /// What WatchDomains tells now.
    pub fn tick(&mut self) -> DomainTick {
        let now_ns = self.clock.now_ns();
        self.freshen(now_ns);
        DomainTick { now_ns, domains: self.feeds.statuses(), at_least: self.feeds.at_least() }
    }
}

/// Whose accounts this caller may see: only its own, or everybody's.
fn whose(peer: &Peer) -> Option<u32> {
    (peer.access < Access::Telemetry).then_some(peer.uid)
}

/// Whether an account may be told to this caller, who may see accounts of its user: to a coarse one only coarse ones.
pub(crate) fn may_see(peer: &Peer, account: &Account) -> bool {
    peer.access >= Access::Span || coarse::fits(account)
}

fn limit(call: &ListSpans) -> Result<usize, Refusal> {
    match call.limit.unwrap_or(LISTED) {
        limit @ 1.. => Ok(usize::try_from(limit).unwrap_or(MOST_LISTED).min(MOST_LISTED)),
        _ => {
            let reason = "must be at least 1; leave it out for 20".to_owned();
            Err(Refusal::InvalidValue { field: "limit".into(), reason })
        }
    }
}

fn filter(call: &ListSpans) -> Result<Filter, Refusal> {
    let since = call.since_unix_ns.map(u64::try_from).transpose();
    let negative = || {
        let reason = "is negative; leave it out for all".to_owned();
        Refusal::InvalidValue { field: "since_unix_ns".into(), reason }
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
