//! Whose span is which: names, their state, and the settled accounts that are still remembered.
//!
//! Owns the table from (user, span name) to the attributor's key. Names live for each user, so another user's span is
//! looked up where it is not and answers exactly as one that does not exist. Bounded for each user and in total: a
//! full memory forgets the oldest account of whoever has most in it, so that nobody can push out a neighbour.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::attribution::SpanKey;
use crate::attribution::account::Account;
use crate::attribution::footprint::{self, Footprint};
use crate::config::Limits;
use crate::protocol::MethodError;

use super::access::Peer;
use super::reply_to::{ConnectionId, ReplyTo};

/// A span that is open.
#[derive(Debug, Clone, Copy)]
pub struct OpenSpanEntry {
    /// Its place in the attributor.
    pub key: SpanKey,
    connection: ConnectionId,
    size: SpanSize,
    phases: u32,
    has_weight_change: bool,
    is_journalled: bool,
}

/// How large a span is, or becomes by what is added to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpanSize {
    /// Bytes of its texts.
    pub text_bytes: usize,
    /// Its attributes.
    pub attribute_count: usize,
    /// Bytes of memory that it takes, by estimate.
    pub memory_bytes: usize,
}

#[derive(Debug)]
pub(crate) enum SpanEntry {
    Open(OpenSpanEntry),
    // Its own name again, so that settling needs one look-up.
    Closing { key: SpanKey, span: Arc<str>, size: SpanSize, reply_to: Option<ReplyTo>, is_journalled: bool },
    // Its number in the store; none where nothing is kept, or it was not taken.
    Settled { account: Arc<Account>, bytes: usize, store_number: Option<u64> },
}

/// What a span left behind that has settled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SettledSpan {
    /// Who waits for the final account.
    pub reply_to: Option<ReplyTo>,
    /// The store's journal has it under this key.
    pub journal_key: Option<SpanKey>,
}

#[derive(Debug, Default)]
pub(crate) struct UserSpans {
    pub(crate) spans: HashMap<Arc<str>, SpanEntry>,
    open_count: usize,
    text_bytes: usize,
    memory_bytes: usize,
    pub(crate) remembered: VecDeque<Arc<str>>,
    remembered_bytes: usize,
}

/// The open spans that each connection answers for, and whose they are.
type ConnectionSpans = BTreeMap<ConnectionId, (u32, HashSet<Arc<str>>)>;

/// The table.
#[derive(Debug)]
pub struct SpanRegistry {
    limits: Limits,
    pub(crate) users: BTreeMap<u32, UserSpans>,
    pub(crate) connections: ConnectionSpans,
    remembered_count: usize,
    remembered_bytes: usize,
    waiting_replies: usize,
    footprint: Footprint,
    /// Bytes of memory that the spans of all users take, and of them those beyond each user's guaranteed part.
    memory_bytes: usize,
    shared_bytes: usize,
}

impl SpanRegistry {
    /// An empty table with these bounds, for an attributor over so many domains.
    pub fn new(limits: Limits, domains: usize) -> Self {
        Self {
            limits,
            users: BTreeMap::new(),
            connections: BTreeMap::new(),
            remembered_count: 0,
            remembered_bytes: 0,
            waiting_replies: 0,
            footprint: Footprint::new(domains),
            memory_bytes: 0,
            shared_bytes: 0,
        }
    }

    /// Spans that are opened from now on are held over so many domains.
    pub fn set_domains(&mut self, domains: usize) {
        self.footprint = Footprint::new(domains);
    }

    /// Other bounds from now on; what is above them goes as it settles or is forgotten.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        let guaranteed = self.guaranteed_bytes();
        self.shared_bytes =
            self.users.values().map(|user| user.memory_bytes.saturating_sub(guaranteed)).sum();
    }

    /// What a span of this name would take, with these notes; `withheld`: its account is kept back for a while.
    pub fn estimate_size(
        &self,
        span: &str,
        name: &str,
        attributes: &BTreeMap<String, String>,
        withheld: bool,
    ) -> SpanSize {
        /// An entry under its name in a user's table and in a connection's set, both up to twice as large as they need.
        const ENTRY_BYTES: usize = 2 * (size_of::<(Arc<str>, SpanEntry)>() + size_of::<Arc<str>>() + 2);
        let texts: usize = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
        let in_ledger = self.footprint.span_bytes(span, name) * if withheld { 2 } else { 1 };
        let held = in_ledger
            + footprint::attributes_bytes(attributes)
            + ENTRY_BYTES
            + footprint::allocation_bytes(16 + span.len());
        SpanSize { text_bytes: texts + name.len(), attribute_count: attributes.len(), memory_bytes: held }
    }

    /// Whether this peer may open a span of this name and size.
    pub fn check_open(&self, peer: &Peer, span: &str, size: SpanSize) -> Result<(), MethodError> {
        if let Some(user) = self.users.get(&peer.uid) {
            if user.spans.contains_key(span) {
                return Err(MethodError::SpanExists { span: span.to_owned() });
            }
            if !peer.unlimited && user.open_count >= self.limits.open_spans_per_user {
                return Err(quota_exceeded("open spans", self.limits.open_spans_per_user));
            }
        }
        self.check_growth(peer, size)
    }

    /// Whether a peer's spans may grow by so much.
    pub fn check_growth(&self, peer: &Peer, size: SpanSize) -> Result<(), MethodError> {
        let (limits, user) = (&self.limits, self.users.get(&peer.uid));
        let (noted, held) = user.map_or((0, 0), |user| (user.text_bytes, user.memory_bytes));
        if !peer.unlimited && noted + size.text_bytes > limits.notes_bytes_per_user {
            return Err(quota_exceeded("bytes of notes on spans", limits.notes_bytes_per_user));
        }
        if !peer.unlimited && held + size.memory_bytes > limits.span_memory_bytes_per_user {
            return Err(quota_exceeded(
                "bytes of memory of one user's spans",
                limits.span_memory_bytes_per_user,
            ));
        }
        // The last quarter is for guaranteed parts, so that those who take all they can leave room for others.
        let beyond = (held + size.memory_bytes).saturating_sub(self.guaranteed_bytes().max(held));
        let total = limits.span_memory_bytes;
        if self.memory_bytes + size.memory_bytes > total
            || (beyond > 0 && self.shared_bytes + beyond > total / 4 * 3)
        {
            return Err(quota_exceeded("bytes of memory of all spans", total));
        }
        Ok(())
    }

    /// Bytes of memory that each user has beside what all share.
    fn guaranteed_bytes(&self) -> usize {
        self.limits.span_memory_bytes / 512
    }

    /// Bytes of memory that all spans take, by estimate.
    pub fn held(&self) -> usize {
        self.memory_bytes
    }

    /// Enters a span that the attributor has opened.
    pub fn insert(&mut self, uid: u32, span: &str, key: SpanKey, owner: ConnectionId, size: SpanSize) {
        let user = self.users.entry(uid).or_default();
        let span: Arc<str> = span.into();
        let open = OpenSpanEntry {
            key,
            connection: owner,
            size,
            phases: 0,
            has_weight_change: false,
            is_journalled: false,
        };
        user.spans.insert(Arc::clone(&span), SpanEntry::Open(open));
        user.open_count += 1;
        self.add_usage(uid, size);
        self.connections.entry(owner).or_insert_with(|| (uid, HashSet::new())).1.insert(span);
    }

    /// The user's open span of this name.
    pub fn find_open(&self, uid: u32, span: &str) -> Result<OpenSpanEntry, MethodError> {
        match self.users.get(&uid).and_then(|user| user.spans.get(span)) {
            Some(SpanEntry::Open(open)) => Ok(*open),
            Some(_) => Err(MethodError::AlreadyClosed { span: span.to_owned() }),
            None => Err(MethodError::NoSuchSpan { span: span.to_owned() }),
        }
    }

    /// What one more phase of an open span adds to it.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn check_phase(
        &self,
        peer: &Peer,
        open: &OpenSpanEntry,
        phase: &str,
    ) -> Result<SpanSize, MethodError> {
        let limit = self.limits.phases_per_span;
        if open.phases as usize >= limit {
            return Err(quota_exceeded("phases of a span", limit));
        }
        let held = self.footprint.phase_bytes(phase) + self.history_bytes(open);
        let size = SpanSize { text_bytes: phase.len(), attribute_count: 0, memory_bytes: held };
        self.check_growth(peer, size).map(|()| size)
    }

    /// What a change of weight adds to an open span: the first one only.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn check_weight(&self, peer: &Peer, open: &OpenSpanEntry) -> Result<SpanSize, MethodError> {
        if open.has_weight_change {
            return Ok(SpanSize::default());
        }
        let size = SpanSize {
            memory_bytes: self.footprint.weight_history_bytes() + self.history_bytes(open),
            ..SpanSize::default()
        };
        self.check_growth(peer, size).map(|()| size)
    }

    fn history_bytes(&self, open: &OpenSpanEntry) -> usize {
        if open.phases == 0 && !open.has_weight_change { self.footprint.history_bytes() } else { 0 }
    }

    /// An open span has one more phase, of this size.
    pub fn record_phase(&mut self, uid: u32, span: &str, size: SpanSize) {
        self.update_open(uid, span, size, |open| open.phases += 1);
    }

    /// An open span has its first change of weight, of this size.
    pub fn record_weight_change(&mut self, uid: u32, span: &str, size: SpanSize) {
        self.update_open(uid, span, size, |open| open.has_weight_change = true);
    }

    fn update_open(&mut self, uid: u32, span: &str, size: SpanSize, change: impl FnOnce(&mut OpenSpanEntry)) {
        let entry = self.users.get_mut(&uid).and_then(|user| user.spans.get_mut(span));
        if let Some(SpanEntry::Open(open)) = entry {
            change(open);
            open.size.add(size);
            self.add_usage(uid, size);
        }
    }

    /// A user's spans have become larger.
    fn add_usage(&mut self, uid: u32, size: SpanSize) {
        let guaranteed = self.guaranteed_bytes();
        if let Some(user) = self.users.get_mut(&uid) {
            let beyond = user.memory_bytes.saturating_sub(guaranteed);
            user.text_bytes += size.text_bytes;
            user.memory_bytes += size.memory_bytes;
            self.memory_bytes += size.memory_bytes;
            self.shared_bytes += user.memory_bytes.saturating_sub(guaranteed) - beyond;
        }
    }

    /// A span of this size has left the attributor.
    fn subtract_usage(&mut self, uid: u32, size: SpanSize) {
        let guaranteed = self.guaranteed_bytes();
        if let Some(user) = self.users.get_mut(&uid) {
            let beyond = user.memory_bytes.saturating_sub(guaranteed);
            user.text_bytes -= size.text_bytes;
            user.memory_bytes -= size.memory_bytes;
            self.memory_bytes -= size.memory_bytes;
            self.shared_bytes -= beyond - user.memory_bytes.saturating_sub(guaranteed);
        }
    }

    /// Forgets remembered accounts up to this number of the store, which has them, and copies the others with their names next
    /// to each other. They were made while spans lay between them, and each would keep a page of what those took.
    pub fn compact(&mut self, committed: u64) {
        for user in self.users.values_mut() {
            // All are copied before the first is freed: else each copy would take the place of the one before.
            let mut copies = Vec::new();
            for name in &user.remembered {
                let Some(SpanEntry::Settled { account, bytes, store_number: kept }) = user.spans.get(name)
                else {
                    continue;
                };
                if kept.is_some_and(|number| number <= committed) {
                    user.remembered_bytes -= bytes;
                    self.remembered_count -= 1;
                    self.remembered_bytes -= bytes;
                } else {
                    let account = Arc::new(Account::clone(account));
                    let settled = SpanEntry::Settled { account, bytes: *bytes, store_number: *kept };
                    copies.push((Arc::<str>::from(&**name), settled));
                }
            }
            user.remembered.iter().for_each(|name| drop(user.spans.remove(name)));
            user.remembered = copies.iter().map(|(name, _)| Arc::clone(name)).collect();
            user.spans.shrink_to(2 * (user.spans.len() + copies.len()));
            user.spans.extend(copies);
        }
    }

    /// Gives memory back that many spans took, once they are gone.
    pub fn shrink(&mut self) {
        for user in self.users.values_mut() {
            user.spans.shrink_to(2 * user.spans.len());
            user.remembered.shrink_to(2 * user.remembered.len());
        }
        self.connections.values_mut().for_each(|(_, spans)| spans.shrink_to(2 * spans.len()));
    }

    /// An open span is closed in the attributor with so much more of notes, and `ticket` waits for its final account.
    pub fn begin_close(&mut self, uid: u32, span: &str, more: SpanSize, ticket: Option<ReplyTo>) {
        let Some(user) = self.users.get_mut(&uid) else { return };
        let Some(entry) = user.spans.get_mut(span) else { return };
        if let SpanEntry::Open(open) = *entry {
            let span = remove_from_connection(&mut self.connections, open.connection, span)
                .unwrap_or_else(|| span.into());
            let (mut size, journalled) = (open.size, open.is_journalled);
            size.add(more);
            *entry =
                SpanEntry::Closing { key: open.key, span, size, reply_to: ticket, is_journalled: journalled };
            user.open_count -= 1;
            self.waiting_replies += usize::from(ticket.is_some());
            self.add_usage(uid, more);
        }
    }

    /// An open span is forgotten; gives its key where the store's journal has it.
    pub fn remove_open(&mut self, uid: u32, span: &str) -> Option<SpanKey> {
        let user = self.users.get_mut(&uid)?;
        let Some(SpanEntry::Open(open)) = user.spans.remove(span) else { return None };
        user.open_count -= 1;
        self.subtract_usage(uid, open.size);
        remove_from_connection(&mut self.connections, open.connection, span);
        self.remove_if_empty(uid);
        open.is_journalled.then_some(open.key)
    }

    /// The store's journal has this span, which is open or closing.
    pub fn set_journalled(&mut self, uid: u32, span: &str) {
        let entry = self.users.get_mut(&uid).and_then(|user| user.spans.get_mut(span));
        if let Some(
            SpanEntry::Open(OpenSpanEntry { is_journalled: journalled, .. })
            | SpanEntry::Closing { is_journalled: journalled, .. },
        ) = entry
        {
            *journalled = true;
        }
    }

    /// The store had no room for a final account.
    pub fn clear_store_number(&mut self, account: &Account) {
        let entry =
            self.users.get_mut(&account.uid).and_then(|user| user.spans.get_mut(account.span.as_str()));
        if let Some(SpanEntry::Settled { store_number: kept, .. }) = entry {
            *kept = None;
        }
    }

    /// The open spans of a connection that is gone; they are closing from here on.
    pub fn close_connection(&mut self, connection: ConnectionId) -> Vec<SpanKey> {
        let Some((uid, spans)) = self.connections.remove(&connection) else { return Vec::new() };
        let keys =
            spans.iter().filter_map(|span| self.find_open(uid, span).ok()).map(|open| open.key).collect();
        for span in spans {
            self.begin_close(uid, &span, SpanSize::default(), None);
        }
        keys
    }

    /// Remembers a final account, which is to have this number in the store; gives what its span leaves behind.
    pub fn settle(&mut self, account: &Arc<Account>, kept: Option<u64>) -> SettledSpan {
        let Some(user) = self.users.get_mut(&account.uid) else { return SettledSpan::default() };
        let Some(entry) = user.spans.get_mut(account.span.as_str()) else { return SettledSpan::default() };
        let bytes = footprint::account_bytes(account);
        let settled = SpanEntry::Settled { account: Arc::clone(account), bytes, store_number: kept };
        let (span, size, left) = match std::mem::replace(entry, settled) {
            SpanEntry::Closing { span, size, reply_to: ticket, key, is_journalled: journalled } => {
                (span, size, SettledSpan { reply_to: ticket, journal_key: journalled.then_some(key) })
            }
            // The attributor settles only what was closed here.
            other => {
                *entry = other;
                return SettledSpan::default();
            }
        };
        user.remembered.push_back(span);
        user.remembered_bytes += bytes;
        self.subtract_usage(account.uid, size);
        self.remembered_count += 1;
        self.remembered_bytes += bytes;
        self.waiting_replies -= usize::from(left.reply_to.is_some());
        self.evict_remembered();
        left
    }

    fn evict_remembered(&mut self) {
        while self.remembered_count > self.limits.remembered_accounts
            || self.remembered_bytes > self.limits.remembered_bytes
        {
            let greediest = self.users.iter().max_by_key(|(uid, user)| (user.remembered_bytes, **uid));
            let Some(uid) = greediest.map(|(uid, _)| *uid) else { return };
            let Some(user) = self.users.get_mut(&uid) else { return };
            let Some(span) = user.remembered.pop_front() else { return };
            if let Some(SpanEntry::Settled { bytes, .. }) = user.spans.remove(&span) {
                user.remembered_bytes -= bytes;
                self.remembered_count -= 1;
                self.remembered_bytes -= bytes;
            }
            self.remove_if_empty(uid);
        }
    }

    /// Forgets a user of whom nothing is left.
    fn remove_if_empty(&mut self, uid: u32) {
        if self.users.get(&uid).is_some_and(|user| user.spans.is_empty()) {
            self.users.remove(&uid);
        }
    }

    /// How many closes wait for their final account.
    pub fn waiting(&self) -> usize {
        self.waiting_replies
    }

    /// Every ticket that still waits, with the span it waits for; they wait no longer.
    pub fn take_waiting_replies(&mut self) -> Vec<(ReplyTo, SpanKey)> {
        let mut given_up = Vec::new();
        for entry in self.users.values_mut().flat_map(|user| user.spans.values_mut()) {
            if let SpanEntry::Closing { key, reply_to: ticket, .. } = entry {
                given_up.extend(ticket.take().map(|ticket| (ticket, *key)));
            }
        }
        self.waiting_replies = 0;
        given_up
    }
}

/// Takes a span from its connection; gives its name.
fn remove_from_connection(owned: &mut ConnectionSpans, owner: ConnectionId, span: &str) -> Option<Arc<str>> {
    let (_, spans) = owned.get_mut(&owner)?;
    let name = spans.take(span);
    if spans.is_empty() {
        owned.remove(&owner);
    }
    name
}

impl OpenSpanEntry {
    /// Attributes it has already.
    pub fn attribute_count(&self) -> usize {
        self.size.attribute_count
    }
}

impl SpanSize {
    fn add(&mut self, more: Self) {
        self.text_bytes += more.text_bytes;
        self.attribute_count += more.attribute_count;
        self.memory_bytes += more.memory_bytes;
    }
}

fn quota_exceeded(quota: &str, limit: usize) -> MethodError {
    MethodError::QuotaExceeded { quota: quota.to_owned(), limit: limit as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::account::SpanState;
    use crate::protocol::Access;

    const ANN: Peer = Peer { uid: 1000, access: Access::Span, unlimited: false };
    const BOB: Peer = Peer { uid: 2000, access: Access::Span, unlimited: false };

    fn registry(change: impl FnOnce(&mut Limits)) -> SpanRegistry {
        let mut limits = Limits::default();
        change(&mut limits);
        SpanRegistry::new(limits, 3)
    }

    fn account(uid: u32, span: &str) -> Arc<Account> {
        Arc::new(Account {
            span: span.into(),
            name: String::new(),
            attributes: Default::default(),
            state: SpanState::Settled,
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

    fn text_size(bytes: usize) -> SpanSize {
        SpanSize { text_bytes: bytes, ..SpanSize::default() }
    }

    fn memory_size(bytes: usize) -> SpanSize {
        SpanSize { memory_bytes: bytes, ..SpanSize::default() }
    }

    fn settle_span(register: &mut SpanRegistry, peer: &Peer, span: &str, key: u64) {
        register.insert(peer.uid, span, SpanKey(key), 1, SpanSize::default());
        register.begin_close(peer.uid, span, SpanSize::default(), None);
        register.settle(&account(peer.uid, span), None);
    }

    #[test]
    fn another_users_span_answers_as_one_that_does_not_exist() {
        let mut register = registry(|_| ());
        register.insert(ANN.uid, "a", SpanKey(1), 1, SpanSize::default());
        let missing = MethodError::NoSuchSpan { span: "a".into() };
        assert_eq!(register.find_open(BOB.uid, "a").unwrap_err(), missing);
        assert_eq!(register.find(BOB.uid, "a").unwrap_err(), missing);
        assert!(register.check_open(&BOB, "a", SpanSize::default()).is_ok());
        assert_eq!(
            register.check_open(&ANN, "a", SpanSize::default()),
            Err(MethodError::SpanExists { span: "a".into() })
        );
    }

    #[test]
    fn a_closed_span_is_told_from_an_unknown_one_as_long_as_it_is_remembered() {
        let mut register = registry(|limits| limits.remembered_accounts = 1);
        settle_span(&mut register, &ANN, "a", 1);
        assert_eq!(
            register.find_open(ANN.uid, "a").unwrap_err(),
            MethodError::AlreadyClosed { span: "a".into() }
        );
        settle_span(&mut register, &ANN, "b", 2);
        assert_eq!(
            register.find_open(ANN.uid, "a").unwrap_err(),
            MethodError::NoSuchSpan { span: "a".into() }
        );
    }

    #[test]
    fn whoever_has_most_in_memory_is_forgotten_first() {
        let mut register = registry(|limits| limits.remembered_accounts = 4);
        settle_span(&mut register, &BOB, "his", 1);
        for key in 2..10 {
            settle_span(&mut register, &ANN, &format!("hers{key}"), key);
        }
        assert!(register.find(BOB.uid, "his").is_ok());
        assert!(register.find(ANN.uid, "hers9").is_ok());
        assert!(register.find(ANN.uid, "hers6").is_err());
    }

    #[test]
    fn the_latest_accounts_are_as_many_as_asked_and_never_a_megabyte() {
        let mut register = registry(|_| ());
        for (key, peer, value) in
            [(1, ANN, 10), (2, BOB, 10), (3, ANN, 400_000), (4, ANN, 200_000), (5, ANN, 10)]
        {
            let span = format!("span{key}");
            register.insert(peer.uid, &span, SpanKey(key), 1, SpanSize::default());
            register.begin_close(peer.uid, &span, SpanSize::default(), None);
            let mut account = Account::clone(&account(peer.uid, &span));
            account.closed_ns = Some(key);
            account.attributes.insert("k".into(), "v".repeat(value));
            register.settle(&Arc::new(account), None);
        }
        let names = |whose, limit| {
            let latest = register.latest_accounts(whose, limit, |_| true);
            latest.iter().map(|(account, _)| account.span.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(None, 2), ["span4", "span5"]);
        assert_eq!(names(Some(BOB.uid), 9), ["span2"]);
        assert_eq!(names(Some(ANN.uid), 9), ["span4", "span5"]);
    }

    #[test]
    fn a_vanished_connection_leaves_only_what_it_opened_and_did_not_close() {
        let mut register = registry(|_| ());
        for (key, owner) in [(1, 7), (2, 7), (3, 8)] {
            register.insert(ANN.uid, &format!("span{key}"), SpanKey(key), owner, SpanSize::default());
        }
        register.begin_close(ANN.uid, "span1", SpanSize::default(), None);
        assert_eq!(register.close_connection(7), vec![SpanKey(2)]);
        assert!(register.find_open(ANN.uid, "span3").is_ok());
        assert!(register.close_connection(7).is_empty());
    }

    #[test]
    fn the_quotas_are_for_each_user_and_come_back_with_the_close() {
        let mut register = registry(|limits| {
            limits.open_spans_per_user = 1;
            limits.notes_bytes_per_user = 100;
        });
        register.insert(ANN.uid, "a", SpanKey(1), 1, text_size(90));
        let refused = register.check_open(&ANN, "b", SpanSize::default()).unwrap_err();
        assert_eq!(refused, MethodError::QuotaExceeded { quota: "open spans".into(), limit: 1 });
        assert!(register.check_open(&BOB, "b", SpanSize::default()).is_ok());
        let unlimited = Peer { unlimited: true, ..ANN };
        assert!(register.check_open(&unlimited, "b", text_size(1000)).is_ok());
        register.begin_close(ANN.uid, "a", SpanSize::default(), None);
        assert!(register.check_open(&ANN, "b", text_size(10)).is_ok());
        assert!(register.check_open(&ANN, "b", text_size(11)).is_err());
        register.settle(&account(ANN.uid, "a"), None);
        assert!(register.check_open(&ANN, "b", text_size(100)).is_ok());
    }

    #[test]
    fn a_ticket_comes_back_with_the_account_it_waited_for() {
        let mut register = registry(|_| ());
        let ticket = ReplyTo { connection: 7, slot: 3 };
        register.insert(ANN.uid, "a", SpanKey(1), 7, SpanSize::default());
        register.begin_close(ANN.uid, "a", SpanSize::default(), Some(ticket));
        assert_eq!(register.waiting(), 1);
        assert_eq!(register.settle(&account(ANN.uid, "a"), None).reply_to, Some(ticket));
        assert_eq!(register.waiting(), 0);
    }
    #[test]
    fn those_who_take_all_they_can_leave_each_other_user_its_guaranteed_part() {
        let mut register = registry(|limits| {
            limits.span_memory_bytes = 512 * 1000;
            limits.span_memory_bytes_per_user = 256 * 1000;
        });
        let total =
            MethodError::QuotaExceeded { quota: "bytes of memory of all spans".into(), limit: 512_000 };
        let own = MethodError::QuotaExceeded {
            quota: "bytes of memory of one user's spans".into(),
            limit: 256_000,
        };
        let mut key = 0;
        let mut fill = |register: &mut SpanRegistry, uid, most: usize| {
            let peer = Peer { uid, ..ANN };
            let mut taken = 0;
            while taken < most {
                let span = format!("s{taken}");
                if let Err(refusal) = register.check_open(&peer, &span, memory_size(100)) {
                    return (taken, Some(refusal));
                }
                key += 1;
                register.insert(uid, &span, SpanKey(key), u64::from(uid), memory_size(100));
                taken += 100;
            }
            (taken, None)
        };
        assert_eq!(fill(&mut register, 1, usize::MAX), (256_000, Some(own)));
        // Beside the first one's guaranteed part: three quarters of the whole are for all.
        assert_eq!(fill(&mut register, 2, usize::MAX), (130_000, Some(total.clone())));
        for uid in 3..100 {
            assert_eq!(fill(&mut register, uid, usize::MAX), (1000, Some(total.clone())), "user {uid}");
        }
        assert_eq!(register.held(), 256_000 + 130_000 + 97_000);
        for uid in 1..100 {
            register.close_connection(u64::from(uid));
            let closing: Vec<Arc<str>> = register.users[&uid].spans.keys().cloned().collect();
            closing.iter().for_each(|span| {
                register.settle(&account(uid, span), None);
            });
        }
        assert_eq!((register.held(), register.shared_bytes), (0, 0));
    }

    #[test]
    fn phases_attributes_and_weights_count_with_what_they_take_and_come_back() {
        let mut register = registry(|limits| limits.phases_per_span = 2);
        let attributes = (0..64).map(|at| (format!("{at:02}"), String::new())).collect();
        let plain = register.estimate_size("a", "", &BTreeMap::new(), false).memory_bytes;
        let rich = register.estimate_size("a", "", &attributes, false).memory_bytes;
        assert!(rich > plain + 64 * 100, "{plain} {rich}");
        register.insert(ANN.uid, "a", SpanKey(1), 1, register.estimate_size("a", "", &attributes, false));
        let open = register.find_open(ANN.uid, "a").unwrap();
        let first = register.check_phase(&ANN, &open, "p").unwrap();
        register.record_phase(ANN.uid, "a", first);
        let open = register.find_open(ANN.uid, "a").unwrap();
        let second = register.check_phase(&ANN, &open, "p").unwrap();
        assert!(
            first.memory_bytes > second.memory_bytes && second.memory_bytes > 3 * 48,
            "{first:?} {second:?}"
        );
        register.record_phase(ANN.uid, "a", second);
        let open = register.find_open(ANN.uid, "a").unwrap();
        let refused = register.check_phase(&ANN, &open, "p").unwrap_err();
        assert_eq!(refused, MethodError::QuotaExceeded { quota: "phases of a span".into(), limit: 2 });
        let weight = register.check_weight(&ANN, &open).unwrap();
        register.record_weight_change(ANN.uid, "a", weight);
        let open = register.find_open(ANN.uid, "a").unwrap();
        assert_eq!(register.check_weight(&ANN, &open), Ok(SpanSize::default()));
        assert_eq!(register.held(), rich + first.memory_bytes + second.memory_bytes + weight.memory_bytes);
        register.remove_open(ANN.uid, "a");
        assert_eq!(register.held(), 0);
    }
}
