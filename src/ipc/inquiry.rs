//! Questions that change nothing: the machine, a span, a window of the past, the balance.
//!
//! Owns what a caller gets to see: another user's account only with telemetry access, no figures without any.

use super::access::Peer;
use super::life::refusal;
use super::register::Known;
use super::service::Service;
use crate::ledger::account::Account;
use crate::protocol::{
    Access, Balances, DomainStatus, DomainTick, Info, ListSpans, ReadWindow, Refusal, SpanAccounts, Window,
};

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
            confinement: self.confinement.clone(),
            access: peer.access,
        }
    }

    /// GetSpan: the caller's own, or anybody's for telemetry.
    pub fn account(&mut self, peer: &Peer, span: &str) -> Result<Account, Refusal> {
        let now_ns = self.clock.now_ns();
        self.freshen(now_ns);
        let mut known = self.register.known(peer.uid, span);
        if known.is_err() && peer.access >= Access::Telemetry {
            known = self.register.known_to_anybody(span);
        }
        self.so_far(now_ns, span, known?)
    }

    /// The account of a span that is known, as of now.
    pub(super) fn so_far(&self, now_ns: u64, span: &str, known: Known) -> Result<Account, Refusal> {
        match known {
            Known::Settled(account) => Ok(Account::clone(&account)),
            Known::Held(key) => {
                self.ledger.account(now_ns, key).map_err(|refused| refusal(refused, span, now_ns))
            }
        }
    }

    /// ListSpans: the caller's own, or everybody's for telemetry.
    pub fn accounts(&mut self, peer: &Peer, call: &ListSpans) -> Result<SpanAccounts, Refusal> {
        let limit = match call.limit.unwrap_or(LISTED) {
            limit @ 1.. => usize::try_from(limit).unwrap_or(MOST_LISTED).min(MOST_LISTED),
            _ => {
                let reason = "must be at least 1; leave it out for 20".to_owned();
                return Err(Refusal::InvalidValue { field: "limit".into(), reason });
            }
        };
        let now_ns = self.clock.now_ns();
        self.freshen(now_ns);
        let whose = (peer.access < Access::Telemetry).then_some(peer.uid);
        let accounts = self.register.latest(whose, limit);
        Ok(SpanAccounts { accounts: accounts.iter().map(|account| Account::clone(account)).collect() })
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

/// Takes out of a status whatever tells about energy or power.
fn hide_figures(status: &mut DomainStatus) {
    // The smallest step that was seen is the energy of one update: it tells the least power.
    status.quantum_uj = None;
    status.energy_uj = None;
    status.power_mw = None;
    status.residual = None;
}
