//! Whose span is which: names, their state, and the settled accounts that are still remembered.
//!
//! Owns the table from (user, span name) to the ledger's key. Names live for each user, so another user's span is
//! looked up where it is not and answers exactly as one that does not exist. Bounded for each user and in total: a
//! full memory forgets the oldest account of whoever has most in it, so that nobody can push out a neighbour.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::config::Limits;
use crate::ledger::SpanKey;
use crate::ledger::account::Account;
use crate::protocol::Refusal;

use super::access::Peer;
use super::notes;
use super::ticket::{ConnectionId, Ticket};

/// A span that is open.
#[derive(Debug, Clone, Copy)]
pub struct Open {
    /// Its place in the ledger.
    pub key: SpanKey,
    owner: ConnectionId,
    noted: u32,
    pairs: u16,
    phases: u16,
    journalled: bool,
}

#[derive(Debug)]
pub(super) enum Entry {
    Open(Open),
    // Its own name again, so that settling needs one look-up.
    Closing { key: SpanKey, span: Arc<str>, noted: u32, ticket: Option<Ticket>, journalled: bool },
    // Its number in the store; none where nothing is kept, or it was not taken.
    Settled { account: Arc<Account>, bytes: usize, kept: Option<u64> },
}

/// What a span left behind that has settled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    /// Who waits for the final account.
    pub ticket: Option<Ticket>,
    /// The store's journal has it under this key.
    pub journalled: Option<SpanKey>,
}

#[derive(Debug, Default)]
pub(super) struct User {
    pub(super) spans: HashMap<Arc<str>, Entry>,
    open: usize,
    noted: usize,
    pub(super) remembered: VecDeque<Arc<str>>,
    remembered_bytes: usize,
}

/// The open spans that each connection answers for, and whose they are.
type Owned = BTreeMap<ConnectionId, (u32, HashSet<Arc<str>>)>;

/// The table.
#[derive(Debug)]
pub struct Register {
    limits: Limits,
    pub(super) users: BTreeMap<u32, User>,
    pub(super) owned: Owned,
    remembered: usize,
    remembered_bytes: usize,
    waiting: usize,
}

impl Register {
    /// An empty table with these bounds.
    pub fn new(limits: Limits) -> Self {
        let (users, owned) = (BTreeMap::new(), BTreeMap::new());
        Self { limits, users, owned, remembered: 0, remembered_bytes: 0, waiting: 0 }
    }

    /// Other bounds from now on; what is above them goes as it settles or is forgotten.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Whether this peer may open a span of this name with notes of `noted` bytes.
    pub fn check_room(&self, peer: &Peer, span: &str, noted: usize) -> Result<(), Refusal> {
        let Some(user) = self.users.get(&peer.uid) else { return Ok(()) };
        if user.spans.contains_key(span) {
            return Err(Refusal::SpanExists { span: span.to_owned() });
        }
        if !peer.unlimited && user.open >= self.limits.open_spans_per_user {
            return Err(full("open spans", self.limits.open_spans_per_user));
        }
        self.check_notes(peer, user, noted)
    }

    fn check_notes(&self, peer: &Peer, user: &User, noted: usize) -> Result<(), Refusal> {
        if !peer.unlimited && user.noted + noted > self.limits.notes_bytes_per_user {
            return Err(full("bytes of notes on spans", self.limits.notes_bytes_per_user));
        }
        Ok(())
    }

    /// Enters a span that the ledger has opened.
    pub fn enter(&mut self, uid: u32, span: &str, key: SpanKey, owner: ConnectionId, size: (usize, usize)) {
        let (noted, pairs) = size;
        let user = self.users.entry(uid).or_default();
        let span: Arc<str> = span.into();
        let (noted, pairs) = (noted.min(u32::MAX as usize) as u32, pairs.min(notes::PAIRS) as u16);
        user.spans.insert(
            Arc::clone(&span),
            Entry::Open(Open { key, owner, noted, pairs, phases: 0, journalled: false }),
        );
        user.open += 1;
        user.noted += noted as usize;
        self.owned.entry(owner).or_insert_with(|| (uid, HashSet::new())).1.insert(span);
    }

    /// The user's open span of this name.
    pub fn open(&self, uid: u32, span: &str) -> Result<Open, Refusal> {
        match self.users.get(&uid).and_then(|user| user.spans.get(span)) {
            Some(Entry::Open(open)) => Ok(*open),
            Some(_) => Err(Refusal::AlreadyClosed { span: span.to_owned() }),
            None => Err(Refusal::NoSuchSpan { span: span.to_owned() }),
        }
    }

    /// Whether this peer may add `bytes` of notes to a span it has.
    pub fn check_notes_of(&self, peer: &Peer, bytes: usize) -> Result<(), Refusal> {
        self.users.get(&peer.uid).map_or(Ok(()), |user| self.check_notes(peer, user, bytes))
    }

    /// Whether there is room for one more phase of `bytes` on an open span.
    pub fn check_phase(&self, peer: &Peer, open: &Open, bytes: usize) -> Result<(), Refusal> {
        if open.phases >= notes::PHASES {
            return Err(full("phases of a span", usize::from(notes::PHASES)));
        }
        self.check_notes_of(peer, bytes)
    }

    /// An open span has one more phase, of `bytes`.
    pub fn note_phase(&mut self, uid: u32, span: &str, bytes: usize) {
        let Some(user) = self.users.get_mut(&uid) else { return };
        if let Some(Entry::Open(open)) = user.spans.get_mut(span) {
            open.phases += 1;
            open.noted += bytes as u32;
            user.noted += bytes;
        }
    }

    /// An open span is closed in the ledger with `bytes` more of notes, and `ticket` waits for its final account.
    pub fn close(&mut self, uid: u32, span: &str, bytes: usize, ticket: Option<Ticket>) {
        let Some(user) = self.users.get_mut(&uid) else { return };
        let Some(entry) = user.spans.get_mut(span) else { return };
        if let Entry::Open(open) = *entry {
            let span = disown(&mut self.owned, open.owner, span).unwrap_or_else(|| span.into());
            let (noted, journalled) = (open.noted + bytes as u32, open.journalled);
            *entry = Entry::Closing { key: open.key, span, noted, ticket, journalled };
            user.open -= 1;
            user.noted += bytes;
            self.waiting += usize::from(ticket.is_some());
        }
    }

    /// An open span is forgotten; gives its key where the store's journal has it.
    pub fn cancel(&mut self, uid: u32, span: &str) -> Option<SpanKey> {
        let user = self.users.get_mut(&uid)?;
        let Some(Entry::Open(open)) = user.spans.remove(span) else { return None };
        user.open -= 1;
        user.noted -= open.noted as usize;
        disown(&mut self.owned, open.owner, span);
        self.leave(uid);
        open.journalled.then_some(open.key)
    }

    /// The store's journal has this span, which is open or closing.
    pub fn note_journalled(&mut self, uid: u32, span: &str) {
        let entry = self.users.get_mut(&uid).and_then(|user| user.spans.get_mut(span));
        if let Some(Entry::Open(Open { journalled, .. }) | Entry::Closing { journalled, .. }) = entry {
            *journalled = true;
        }
    }

    /// The store had no room for a final account.
    pub fn note_not_kept(&mut self, account: &Account) {
        let entry =
            self.users.get_mut(&account.uid).and_then(|user| user.spans.get_mut(account.span.as_str()));
        if let Some(Entry::Settled { kept, .. }) = entry {
            *kept = None;
        }
    }

    /// The open spans of a connection that is gone; they are closing from here on.
    pub fn abandon(&mut self, connection: ConnectionId) -> Vec<SpanKey> {
        let Some((uid, spans)) = self.owned.remove(&connection) else { return Vec::new() };
        let keys = spans.iter().filter_map(|span| self.open(uid, span).ok()).map(|open| open.key).collect();
        for span in spans {
            self.close(uid, &span, 0, None);
        }
        keys
    }

    /// Remembers a final account, which is to have this number in the store; gives what its span leaves behind.
    pub fn settle(&mut self, account: &Arc<Account>, kept: Option<u64>) -> Left {
        let Some(user) = self.users.get_mut(&account.uid) else { return Left::default() };
        let Some(entry) = user.spans.get_mut(account.span.as_str()) else { return Left::default() };
        let bytes = footprint(account);
        let settled = Entry::Settled { account: Arc::clone(account), bytes, kept };
        let (span, noted, left) = match std::mem::replace(entry, settled) {
            Entry::Closing { span, noted, ticket, key, journalled } => {
                (span, noted as usize, Left { ticket, journalled: journalled.then_some(key) })
            }
            // The ledger settles only what was closed here.
            other => {
                *entry = other;
                return Left::default();
            }
        };
        user.noted -= noted;
        user.remembered.push_back(span);
        user.remembered_bytes += bytes;
        self.remembered += 1;
        self.remembered_bytes += bytes;
        self.waiting -= usize::from(left.ticket.is_some());
        self.forget_surplus();
        left
    }

    fn forget_surplus(&mut self) {
        while self.remembered > self.limits.remembered_accounts
            || self.remembered_bytes > self.limits.remembered_bytes
        {
            let greediest = self.users.iter().max_by_key(|(uid, user)| (user.remembered_bytes, **uid));
            let Some(uid) = greediest.map(|(uid, _)| *uid) else { return };
            let Some(user) = self.users.get_mut(&uid) else { return };
            let Some(span) = user.remembered.pop_front() else { return };
            if let Some(Entry::Settled { bytes, .. }) = user.spans.remove(&span) {
                user.remembered_bytes -= bytes;
                self.remembered -= 1;
                self.remembered_bytes -= bytes;
            }
            self.leave(uid);
        }
    }

    /// Forgets a user of whom nothing is left.
    fn leave(&mut self, uid: u32) {
        if self.users.get(&uid).is_some_and(|user| user.spans.is_empty()) {
            self.users.remove(&uid);
        }
    }

    /// How many closes wait for their final account.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Every ticket that still waits, with the span it waits for; they wait no longer.
    pub fn give_up_waiting(&mut self) -> Vec<(Ticket, SpanKey)> {
        let mut given_up = Vec::new();
        for entry in self.users.values_mut().flat_map(|user| user.spans.values_mut()) {
            if let Entry::Closing { key, ticket, .. } = entry {
                given_up.extend(ticket.take().map(|ticket| (ticket, *key)));
            }
        }
        self.waiting = 0;
        given_up
    }
}

/// Takes a span from its connection; gives its name.
fn disown(owned: &mut Owned, owner: ConnectionId, span: &str) -> Option<Arc<str>> {
    let (_, spans) = owned.get_mut(&owner)?;
    let name = spans.take(span);
    if spans.is_empty() {
        owned.remove(&owner);
    }
    name
}

impl Open {
    /// Attributes it has already.
    pub fn pairs(&self) -> usize {
        usize::from(self.pairs)
    }
}

fn full(quota: &str, limit: usize) -> Refusal {
    Refusal::QuotaExceeded { quota: quota.to_owned(), limit: limit as u64 }
}

/// Roughly what an account takes in memory: its texts, and its rows.
pub(super) fn footprint(account: &Account) -> usize {
    let texts = account.attributes.iter().map(|(key, value)| key.len() + value.len() + 64).sum::<usize>();
    let rows = size_of_val(account.domains.as_slice()) + size_of_val(account.phases.as_slice());
    size_of::<Account>() + account.span.len() * 2 + account.name.len() + texts + rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::account::State;
    use crate::protocol::Access;

    const ANN: Peer = Peer { uid: 1000, access: Access::Span, unlimited: false };
    const BOB: Peer = Peer { uid: 2000, access: Access::Span, unlimited: false };

    fn register(change: impl FnOnce(&mut Limits)) -> Register {
        let mut limits = Limits::default();
        change(&mut limits);
        Register::new(limits)
    }

    fn account(uid: u32, span: &str) -> Arc<Account> {
        Arc::new(Account {
            span: span.into(),
            name: String::new(),
            attributes: Default::default(),
            state: State::Settled,
            uid,
            opened_ns: 0,
            closed_ns: Some(1),
            moved_ns: 0,
            opened_unix_ns: 0,
            weight: 1.0,
            share_uj: None,
            window_uj: None,
            idle_uj: None,
            error_uj: None,
            process: None,
            cgroup: None,
            process_uj: None,
            process_reason: None,
            grade: None,
            simulated: None,
            mean_power_mw: None,
            peak_concurrency: 1,
            domains: vec![],
            phases: vec![],
            at_least: None,
            durable: None,
        })
    }

    fn settled(register: &mut Register, peer: &Peer, span: &str, key: u64) {
        register.enter(peer.uid, span, SpanKey(key), 1, (0, 0));
        register.close(peer.uid, span, 0, None);
        register.settle(&account(peer.uid, span), None);
    }

    #[test]
    fn another_users_span_answers_as_one_that_does_not_exist() {
        let mut register = register(|_| ());
        register.enter(ANN.uid, "a", SpanKey(1), 1, (0, 0));
        let missing = Refusal::NoSuchSpan { span: "a".into() };
        assert_eq!(register.open(BOB.uid, "a").unwrap_err(), missing);
        assert_eq!(register.known(BOB.uid, "a").unwrap_err(), missing);
        assert!(register.check_room(&BOB, "a", 0).is_ok());
        assert_eq!(register.check_room(&ANN, "a", 0), Err(Refusal::SpanExists { span: "a".into() }));
    }

    #[test]
    fn a_closed_span_is_told_from_an_unknown_one_as_long_as_it_is_remembered() {
        let mut register = register(|limits| limits.remembered_accounts = 1);
        settled(&mut register, &ANN, "a", 1);
        assert_eq!(register.open(ANN.uid, "a").unwrap_err(), Refusal::AlreadyClosed { span: "a".into() });
        settled(&mut register, &ANN, "b", 2);
        assert_eq!(register.open(ANN.uid, "a").unwrap_err(), Refusal::NoSuchSpan { span: "a".into() });
    }

    #[test]
    fn whoever_has_most_in_memory_is_forgotten_first() {
        let mut register = register(|limits| limits.remembered_accounts = 4);
        settled(&mut register, &BOB, "his", 1);
        for key in 2..10 {
            settled(&mut register, &ANN, &format!("hers{key}"), key);
        }
        assert!(register.known(BOB.uid, "his").is_ok());
        assert!(register.known(ANN.uid, "hers9").is_ok());
        assert!(register.known(ANN.uid, "hers6").is_err());
    }

    #[test]
    fn the_latest_accounts_are_as_many_as_asked_and_never_a_megabyte() {
        let mut register = register(|_| ());
        for (key, peer, value) in
            [(1, ANN, 10), (2, BOB, 10), (3, ANN, 400_000), (4, ANN, 200_000), (5, ANN, 10)]
        {
            let span = format!("span{key}");
            register.enter(peer.uid, &span, SpanKey(key), 1, (0, 0));
            register.close(peer.uid, &span, 0, None);
            let mut account = Account::clone(&account(peer.uid, &span));
            account.closed_ns = Some(key);
            account.attributes.insert("k".into(), "v".repeat(value));
            register.settle(&Arc::new(account), None);
        }
        let names = |whose, limit| {
            let latest = register.latest(whose, limit, |_| true);
            latest.iter().map(|(account, _)| account.span.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(None, 2), ["span4", "span5"]);
        assert_eq!(names(Some(BOB.uid), 9), ["span2"]);
        assert_eq!(names(Some(ANN.uid), 9), ["span4", "span5"]);
    }

    #[test]
    fn a_vanished_connection_leaves_only_what_it_opened_and_did_not_close() {
        let mut register = register(|_| ());
        for (key, owner) in [(1, 7), (2, 7), (3, 8)] {
            register.enter(ANN.uid, &format!("span{key}"), SpanKey(key), owner, (0, 0));
        }
        register.close(ANN.uid, "span1", 0, None);
        assert_eq!(register.abandon(7), vec![SpanKey(2)]);
        assert!(register.open(ANN.uid, "span3").is_ok());
        assert!(register.abandon(7).is_empty());
    }

    #[test]
    fn the_quotas_are_for_each_user_and_come_back_with_the_close() {
        let mut register = register(|limits| {
            limits.open_spans_per_user = 1;
            limits.notes_bytes_per_user = 100;
        });
        register.enter(ANN.uid, "a", SpanKey(1), 1, (90, 1));
        let refused = register.check_room(&ANN, "b", 0).unwrap_err();
        assert_eq!(refused, Refusal::QuotaExceeded { quota: "open spans".into(), limit: 1 });
        assert!(register.check_room(&BOB, "b", 0).is_ok());
        let unlimited = Peer { unlimited: true, ..ANN };
        assert!(register.check_room(&unlimited, "b", 1000).is_ok());
        register.close(ANN.uid, "a", 0, None);
        assert!(register.check_room(&ANN, "b", 10).is_ok());
        assert!(register.check_room(&ANN, "b", 11).is_err());
        register.settle(&account(ANN.uid, "a"), None);
        assert!(register.check_room(&ANN, "b", 100).is_ok());
    }

    #[test]
    fn a_ticket_comes_back_with_the_account_it_waited_for() {
        let mut register = register(|_| ());
        let ticket = Ticket { connection: 7, slot: 3 };
        register.enter(ANN.uid, "a", SpanKey(1), 7, (0, 0));
        register.close(ANN.uid, "a", 0, Some(ticket));
        assert_eq!(register.waiting(), 1);
        assert_eq!(register.settle(&account(ANN.uid, "a"), None).ticket, Some(ticket));
        assert_eq!(register.waiting(), 0);
    }
}
