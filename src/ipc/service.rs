//! The one place where a request meets the ledger.
//!
//! Owns the ledger, the feeds that fill it, and the register of whose span is which. Knows no transport: callers come
//! with a [`Peer`], answers go out as values, awaited ones under a [`Ticket`]. Everything here runs on one thread and
//! never waits; time comes from the one clock it was given.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use crate::clock::{self, Clock};
use crate::config::Limits;
use crate::energy::Absent;
use crate::ledger::account::Account;
use crate::ledger::{self, Ledger, Opening, Refused, SpanKey};
use crate::protocol::{
    Access, Balances, CloseSpan, DomainStatus, DomainTick, Info, MarkPhase, OpenSpan, OpenedSpan, ReadWindow,
    Refusal, SetWeight, Window,
};

use super::access::{Peer, Policy};
use super::feed::Feeds;
use super::notes;
use super::register::{ConnectionId, Known, Register, Ticket};
use super::token::Tokens;

/// How far ahead of the daemon's clock an edge may lie (clocks of two CPUs, rounding by the client).
const FUTURE_NS: u64 = 1_000_000;

/// How the service is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How the ledger is.
    pub ledger: ledger::Settings,
    /// What one client may take.
    pub limits: Limits,
    /// Who may what.
    pub policy: Policy,
    /// How far back readings are kept, and edges are taken, at least.
    pub history_ns: u64,
}

/// Who calls, through what.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// Who it is.
    pub peer: Peer,
    /// Where an awaited answer would go.
    pub ticket: Ticket,
}

/// What a close gives.
#[derive(Debug)]
pub enum Closed {
    /// The account so far.
    Account(Box<Account>),
    /// The final account will come under the caller's ticket.
    Awaited,
}

/// A final account, and who waited for it.
#[derive(Debug)]
pub struct Final {
    /// The account.
    pub account: Arc<Account>,
    /// Whose answer it is.
    pub ticket: Option<Ticket>,
}

/// The meter as its clients see it.
pub struct Service {
    clock: Clock,
    ledger: Ledger,
    feeds: Feeds,
    absent: Vec<Absent>,
    settings: Settings,
    index: HashMap<String, usize>,
    register: Register,
    tokens: Tokens,
    boot_id: String,
    settled: Vec<(SpanKey, Account)>,
    hurried: bool,
    watchers: usize,
}

impl Service {
    /// A service over feeds that run already. Fails where the kernel's random device cannot be opened.
    pub fn new(feeds: Feeds, absent: Vec<Absent>, settings: Settings, clock: Clock) -> io::Result<Self> {
        let index = feeds.domains().enumerate().map(|(at, domain)| (domain.name.clone(), at)).collect();
        let mut ledger = Ledger::new(feeds.domains().cloned().collect(), settings.ledger.clone());
        feeds.introduce(&mut ledger);
        Ok(Self {
            clock,
            ledger,
            feeds,
            absent,
            register: Register::new(settings.limits.clone()),
            settings,
            index,
            tokens: Tokens::new()?,
            boot_id: boot_id(),
            settled: Vec::new(),
            hurried: false,
            watchers: 0,
        })
    }

    /// The service's clock.
    pub fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// What one client may take.
    pub fn limits(&self) -> &Limits {
        &self.settings.limits
    }

    /// Who may what.
    pub fn policy(&self) -> &Policy {
        &self.settings.policy
    }

    /// GetInfo. To a caller without access the domains show their health but no figures.
    pub fn info(&mut self, peer: &Peer) -> Info {
        let now_ns = self.clock.now_ns();
        self.feeds.drain(now_ns, &mut self.ledger);
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
            access: peer.access,
        }
    }

    /// OpenSpan.
    pub fn open(&mut self, caller: &Caller, call: OpenSpan) -> Result<OpenedSpan, Refusal> {
        let now_ns = self.clock.now_ns();
        let at_ns = self.edge(call.at_ns, now_ns)?;
        let span = match call.span {
            Some(span) => notes::check_word("span", &span, notes::SPAN_BYTES).map(|()| span)?,
            None => self.tokens.next(),
        };
        let name = call.name.unwrap_or_default();
        notes::check_text("name", &name, notes::NAME_BYTES)?;
        let attributes = call.attributes.unwrap_or_default();
        let pairs = attributes.len();
        let noted = notes::check_attributes(&attributes, 0)? + name.len();
        self.register.check_room(&caller.peer, &span, noted)?;
        let opening = Opening {
            span: span.clone(),
            name,
            attributes,
            weight: call.weight.unwrap_or(1.0),
            domains: call.domains.map(|names| self.domain_indices(&names)).transpose()?,
            at_ns,
            uid: caller.peer.uid,
            unix_ns: clock::unix_ns().saturating_sub(now_ns.saturating_sub(at_ns)),
        };
        let key = self.ledger.open(now_ns, opening).map_err(|refused| refusal(refused, &span, at_ns))?;
        self.register.enter(caller.peer.uid, &span, key, caller.ticket.connection, (noted, pairs));
        self.hurry(true);
        Ok(OpenedSpan { span })
    }

    /// MarkPhase.
    pub fn mark(&mut self, peer: &Peer, call: MarkPhase) -> Result<(), Refusal> {
        let now_ns = self.clock.now_ns();
        let open = self.register.open(peer.uid, &call.span)?;
        notes::check_word("phase", &call.phase, notes::PHASE_BYTES)?;
        let at_ns = self.edge(call.at_ns, now_ns)?;
        let bytes = call.phase.len();
        self.register.check_phase(peer, &open, bytes)?;
        let marked = self.ledger.mark(now_ns, open.key, call.phase, at_ns);
        marked.map_err(|refused| refusal(refused, &call.span, at_ns))?;
        self.register.note_phase(peer.uid, &call.span, bytes);
        Ok(())
    }

    /// SetWeight.
    pub fn set_weight(&mut self, peer: &Peer, call: &SetWeight) -> Result<(), Refusal> {
        let now_ns = self.clock.now_ns();
        let open = self.register.open(peer.uid, &call.span)?;
        let at_ns = self.edge(call.at_ns, now_ns)?;
        let set = self.ledger.set_weight(now_ns, open.key, call.weight, at_ns);
        set.map_err(|refused| refusal(refused, &call.span, at_ns))
    }

    /// CloseSpan.
    pub fn close(&mut self, caller: &Caller, call: CloseSpan, wait: bool) -> Result<Closed, Refusal> {
        let now_ns = self.clock.now_ns();
        let peer = &caller.peer;
        let open = self.register.open(peer.uid, &call.span)?;
        let at_ns = self.edge(call.at_ns, now_ns)?;
        let attributes = call.attributes.unwrap_or_default();
        let bytes = notes::check_attributes(&attributes, open.pairs())?;
        self.register.check_notes_of(peer, bytes)?;
        let closed = self.ledger.close(now_ns, open.key, at_ns, attributes, false);
        closed.map_err(|refused| refusal(refused, &call.span, at_ns))?;
        self.register.close(peer.uid, &call.span, bytes, wait.then_some(caller.ticket));
        if wait {
            return Ok(Closed::Awaited);
        }
        let account = self.ledger.account(now_ns, open.key);
        account
            .map(|account| Closed::Account(Box::new(account)))
            .map_err(|refused| refusal(refused, &call.span, at_ns))
    }

    /// CancelSpan.
    pub fn cancel(&mut self, peer: &Peer, span: &str) -> Result<(), Refusal> {
        let now_ns = self.clock.now_ns();
        let open = self.register.open(peer.uid, span)?;
        self.ledger.cancel(now_ns, open.key).map_err(|refused| refusal(refused, span, now_ns))?;
        self.register.cancel(peer.uid, span);
        Ok(())
    }

    /// GetSpan: the caller's own, or anybody's for telemetry.
    pub fn account(&mut self, peer: &Peer, span: &str) -> Result<Account, Refusal> {
        let now_ns = self.clock.now_ns();
        self.feeds.drain(now_ns, &mut self.ledger);
        let mut known = self.register.known(peer.uid, span);
        if known.is_err() && peer.access >= Access::Telemetry {
            known = self.register.known_to_anybody(span);
        }
        match known? {
            Known::Settled(account) => Ok(Account::clone(&account)),
            Known::Held(key) => {
                self.ledger.account(now_ns, key).map_err(|refused| refusal(refused, span, now_ns))
            }
        }
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
        self.feeds.drain(now_ns, &mut self.ledger);
        Balances { balance: self.ledger.balance() }
    }

    /// What WatchDomains tells now.
    pub fn tick(&mut self) -> DomainTick {
        let now_ns = self.clock.now_ns();
        self.feeds.drain(now_ns, &mut self.ledger);
        DomainTick { now_ns, domains: self.feeds.statuses() }
    }

    /// How many watch the domains; while somebody does, the samplers are fast.
    pub fn set_watchers(&mut self, watchers: usize) {
        self.watchers = watchers;
        self.hurry(self.ledger.busy() || watchers > 0);
    }

    /// A connection is gone: its open spans end now, as abandoned.
    pub fn vanished(&mut self, connection: ConnectionId) {
        let now_ns = self.clock.now_ns();
        for key in self.register.abandon(connection) {
            // The only refusal possible is that the span is closed already, which is what is wanted.
            let _ = self.ledger.close(now_ns, key, now_ns, BTreeMap::new(), true);
        }
    }

    /// Takes in new readings, settles what they allow, and appends the final accounts to `finals`.
    pub fn pump(&mut self, finals: &mut Vec<Final>) {
        let now_ns = self.clock.now_ns();
        self.feeds.drain(now_ns, &mut self.ledger);
        self.ledger.settle(now_ns, &mut self.settled);
        for (_, account) in self.settled.drain(..) {
            let account = Arc::new(account);
            let ticket = self.register.settle(&account);
            finals.push(Final { account, ticket });
        }
        self.settled.shrink_to(1024);
        self.hurry(self.ledger.busy() || self.watchers > 0);
    }

    /// When to pump again, if nothing happens before; on the service's clock.
    pub fn next_pump_ns(&self, now_ns: u64) -> u64 {
        /// Soon enough for watchers of spans, seldom enough to cost nothing.
        const RELAXED_NS: u64 = 20_000_000;
        /// Nobody waits: only the slow tick's readings are to be taken in.
        const IDLE_NS: u64 = 1_000_000_000;
        /// An account that is due and has not come waits for a reading; looking more often than they come is vain.
        const EAGER_NS: u64 = 500_000;
        let relaxed_ns = now_ns + if self.hurried { RELAXED_NS } else { IDLE_NS };
        if self.register.waiting() == 0 {
            return relaxed_ns;
        }
        let due_ns = self.ledger.next_due_ns().unwrap_or(relaxed_ns);
        due_ns.clamp(now_ns + EAGER_NS, relaxed_ns)
    }

    /// The accounts so far of all who wait for a final one; for the end of the daemon.
    pub fn give_up_waiting(&mut self) -> Vec<(Ticket, Account)> {
        let now_ns = self.clock.now_ns();
        let waiting = self.register.give_up_waiting();
        let ledger = &self.ledger;
        let so_far = |(ticket, key)| Some((ticket, ledger.account(now_ns, key).ok()?));
        waiting.into_iter().filter_map(so_far).collect()
    }

    /// The domains' names.
    pub fn names(&self) -> Vec<&str> {
        self.feeds.domains().map(|domain| domain.name.as_str()).collect()
    }

    /// The sources that are not there.
    pub fn absent(&self) -> &[Absent] {
        &self.absent
    }

    /// How many closes wait for their final account.
    pub fn waiting(&self) -> usize {
        self.register.waiting()
    }

    /// The samplers are to be fast, or need not be; they linger by themselves.
    fn hurry(&mut self, fast: bool) {
        if fast != self.hurried {
            self.hurried = fast;
            self.feeds.demand(fast);
        }
    }

    /// The instant a client names, or now.
    fn edge(&self, at_ns: Option<i64>, now_ns: u64) -> Result<u64, Refusal> {
        let Some(asked) = at_ns else { return Ok(now_ns) };
        let (earliest_ns, latest_ns) =
            (now_ns.saturating_sub(self.settings.history_ns), now_ns.saturating_add(FUTURE_NS));
        let inside = u64::try_from(asked).ok().filter(|at_ns| (earliest_ns..=latest_ns).contains(at_ns));
        inside.ok_or(Refusal::InvalidTime { at_ns: asked, earliest_ns, latest_ns })
    }

    fn domain_indices(&self, names: &[String]) -> Result<Vec<usize>, Refusal> {
        if names.is_empty() {
            let reason = "is empty; leave it out for all of them".to_owned();
            return Err(Refusal::InvalidValue { field: "domains".into(), reason });
        }
        let index = |name: &String| {
            self.index.get(name).copied().ok_or_else(|| Refusal::NoSuchDomain { domain: name.clone() })
        };
        let mut indices = names.iter().map(index).collect::<Result<Vec<_>, _>>()?;
        indices.sort_unstable();
        indices.dedup();
        Ok(indices)
    }
}

/// The ledger's refusal in the words of the wire.
fn refusal(refused: Refused, span: &str, at_ns: u64) -> Refusal {
    match refused {
        Refused::NoSuchSpan => Refusal::NoSuchSpan { span: span.to_owned() },
        Refused::AlreadyClosed => Refusal::AlreadyClosed { span: span.to_owned() },
        Refused::InvalidTime { earliest_ns, latest_ns } => {
            Refusal::InvalidTime { at_ns: at_ns.try_into().unwrap_or(i64::MAX), earliest_ns, latest_ns }
        }
        Refused::InvalidValue { field, reason } => Refusal::InvalidValue { field: field.to_owned(), reason },
        Refused::Full { quota, limit } => {
            Refusal::QuotaExceeded { quota: quota.to_owned(), limit: limit as u64 }
        }
    }
}

/// Takes out of a status whatever tells about energy or power.
fn hide_figures(status: &mut DomainStatus) {
    status.energy_uj = None;
    status.power_mw = None;
}

/// What tells one boot of the machine from another: the kernel's random id, else the wall time of the boot.
fn boot_id() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    kernel.map_or_else(
        |_| format!("booted-{}", clock::unix_ns().saturating_sub(clock::monotonic_ns()) / 1_000_000_000),
        |id| id.trim().to_owned(),
    )
}
