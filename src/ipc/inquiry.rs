//! Questions that change nothing: the machine, a span, a window of the past, the balance.
//!
//! Owns what a caller gets to see: another user's account only with telemetry access, no figures without any.

use super::access::Peer;
use super::coarse;
use super::recall::Known;
use super::service::{Caller, Closed, Service};
use crate::ledger::account::Account;
use crate::protocol::{
    Access, Balances, DomainStatus, DomainTick, Info, ListSpans, ReadWindow, Refusal, SpanAccounts, Window,
};
use crate::store::{Filter, Question};

/// Accounts that ListSpans gives where nothing is asked.
const LISTED: i64 = 20;

/// The most it ever gives.
const MOST_LISTED: usize = 256;

impl Service {
    /// GetInfo. To a caller without access the domains show their health but no figures.
    pub fn info(&mut self, peer: &Peer) -> Info {
        let now_ns = self.clock.now_ns();
        self.freshen(now_ns);
        let mut domains = self.feeds.statuses();
        if peer.access < Access::Span {
            domains.iter_mut().for_each(hide_figures);
        }
        Info {
            version: env!("CARGO_PKG_VERSION").into(),
            boot_id: self.boot_id.clone(),
            now_ns,
            horizon_ns: self.settings.ledger.horizon_ns,
            history_ns: self.settings.history_ns,
            domains,
            absent: self.absent.clone(),
            samplers: self.feeds.samplers(),
            keeping: self.keeping(peer),
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
    pub(super) fn so_far(&self, now_ns: u64, span: &str, known: Known) -> Result<Account, Refusal> {
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
    pub(super) fn known_to(&self, peer: &Peer, span: &str) -> Result<Known, Refusal> {
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
        let before = call.before.map(|before| u64::try_from(before).unwrap_or(0));
        let question = Question::List { whose: whose(peer), filter, limit, before };
        if wait && self.ask_for_list(peer, caller.ticket, call, question)? {
            return Ok(None);
        }
        self.remembered(peer, call).map(Some)
    }

    /// The same from memory alone; there is nothing before it.
    pub(super) fn remembered(&self, peer: &Peer, call: &ListSpans) -> Result<SpanAccounts, Refusal> {
        let (limit, filter) = (limit(call)?, filter(call)?);
        let limit = if call.before.is_some() { 0 } else { limit };
        let takes = |account: &Account| filter.takes(account) && may_see(peer, account);
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
        Balances { balance: self.ledger.balance() }
    }

    /// What WatchDomains tells now.
    pub fn tick(&mut self) -> DomainTick {
        let now_ns = self.clock.now_ns();
        self.freshen(now_ns);
        DomainTick { now_ns, domains: self.feeds.statuses() }
    }
}

/// Whose accounts this caller may see: only its own, or everybody's.
fn whose(peer: &Peer) -> Option<u32> {
    (peer.access < Access::Telemetry).then_some(peer.uid)
}

/// Whether an account may be told to this caller, who may see accounts of its user: to a coarse one only coarse ones.
pub(super) fn may_see(peer: &Peer, account: &Account) -> bool {
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
    let before = call.before.map(u64::try_from).transpose();
    let negative = |field: &str| {
        let reason = "is negative; leave it out for all".to_owned();
        Refusal::InvalidValue { field: field.into(), reason }
    };
    before.map_err(|_| negative("before"))?;
    Ok(Filter {
        since_unix_ns: since.map_err(|_| negative("since_unix_ns"))?,
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
}
