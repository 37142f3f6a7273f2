//! The registry of spans: names, states, and the settled accounts that are remembered.
//!
//! Owns the table from (user, span name) to the attributor's key. Each user has a namespace of its own, so another user's
//! span answers exactly as one that does not exist. Bounded per user and in total: when the memory is full, the oldest
//! account of the user with the most bytes is evicted, so that no user can evict another's.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque, hash_set};
#[cfg(not(test))]
use std::hash::RandomState as NameHashes;
use std::num::NonZeroU64;
use std::sync::Arc;

use wattspan_client::account::Account;
use wattspan_client::protocol::MethodError;

use super::access::Peer;
use super::caller::{ConnectionId, ReplyTo};
use super::span_memory::{SpanMemory, SpanSize, UserMemory, quota_exceeded};
// So that a simulated run depends on its seed alone.
#[cfg(test)]
use super::test_parts::FixedHashes as NameHashes;
use crate::attribution::SpanKey;
use crate::attribution::footprint::{self, Footprint};
use crate::config::Limits;

/// The maximum bytes of accounts, as they are in memory, in one list: the answer stays below a megabyte.
pub(crate) const MAX_LIST_BYTES: usize = 512 * 1024;

/// An open span. One of 100,000: each byte is a tenth of a megabyte.
#[derive(Debug, Clone, Copy)]
pub struct OpenSpanEntry {
    /// Its key in the attributor.
    pub key: SpanKey,
    connection: ConnectionId,
    // Its size: the limits of messages, attributes and phases keep it far below these maxima.
    text_bytes: u32,
    memory_bytes: u32,
    attribute_count: u8,
    /// At most the largest limit of the configuration.
    phases: u16,
    has_weight_change: bool,
    /// The store's journal has it.
    pub(super) is_journalled: bool,
    /// It stands in the queue for the journal, because it has opened or changed.
    is_journal_queued: bool,
}

/// The open spans of a closed connection that are not closed yet.
#[derive(Debug)]
struct AbandonedConnection {
    uid: u32,
    closed_ns: u64,
    spans: hash_set::IntoIter<SpanKey>,
}

#[derive(Debug)]
enum SpanEntry {
    Open(OpenSpanEntry),
    // Boxed, because an entry of a span that stays open would be as large.
    Closing(Box<ClosingSpan>),
    // `store_number`: `None` without a store, or where the store did not take the account.
    Settled { account: Arc<Account>, bytes: u32, store_number: Option<NonZeroU64> },
}

const _: () = assert!(size_of::<SpanEntry>() == 32);

/// A span that is closed in the attributor and not settled.
#[derive(Debug)]
struct ClosingSpan {
    key: SpanKey,
    size: SpanSize,
    reply_to: Option<ReplyTo>,
    is_journalled: bool,
}

/// The state of a span that was found by name.
#[derive(Debug)]
pub enum SpanLookup {
    /// The attributor has the span.
    Unsettled(SpanKey),
    /// The final account, with its number in the store.
    Settled(Arc<Account>, Option<u64>),
}

/// What is left of a span when it settles.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SettledSpan {
    /// The reply that waits for the final account.
    pub reply_to: Option<ReplyTo>,
    /// The key of the span in the store's journal, if it is there.
    pub journal_key: Option<SpanKey>,
}

#[derive(Debug, Default)]
struct UserSpans {
    spans: HashMap<Box<str>, SpanEntry, NameHashes>,
    open_count: usize,
    memory: UserMemory,
    /// The settled accounts in the table, the oldest first.
    remembered: VecDeque<Arc<Account>>,
    remembered_bytes: usize,
}

/// The open spans of each connection, with the user.
type ConnectionSpans = BTreeMap<ConnectionId, (u32, HashSet<SpanKey, NameHashes>)>;

/// The spans of all users.
#[derive(Debug)]
pub struct SpanRegistry {
    limits: Limits,
    users: BTreeMap<u32, UserSpans>,
    connections: ConnectionSpans,
    abandoned: VecDeque<AbandonedConnection>,
    remembered_count: usize,
    remembered_bytes: usize,
    waiting_replies: usize,
    footprint: Footprint,
    memory: SpanMemory,
}

impl SpanRegistry {
    /// An empty registry; `domains` is the number of the attributor's domains.
    pub fn new(limits: Limits, domains: usize) -> Self {
        Self {
            limits,
            users: BTreeMap::new(),
            connections: BTreeMap::new(),
            abandoned: VecDeque::new(),
            remembered_count: 0,
            remembered_bytes: 0,
            waiting_replies: 0,
            footprint: Footprint::new(domains),
            memory: SpanMemory::default(),
        }
    }

    /// Sets the number of domains of spans that open from now on.
    pub fn set_domains(&mut self, domains: usize) {
        self.footprint = Footprint::new(domains);
    }

    /// Sets new limits. Spans and accounts above them stay until they settle or are evicted.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.memory.set_limits(&self.limits, self.users.values().map(|user| user.memory));
    }

    /// The estimated size of a new span. `withheld`: its account will be withheld after it settles.
    pub fn estimate_size(
        &self,
        span: &str,
        name: &str,
        attributes: &BTreeMap<String, String>,
        withheld: bool,
    ) -> SpanSize {
        // An entry in a user's table, beside one in a connection's set while the span is open, and a box while it closes. Both
        // tables are up to twice as large as needed.
        const OPEN_BYTES: usize = 2 * (size_of::<SpanKey>() + 1);
        const CLOSING_BYTES: usize = footprint::allocation_bytes(size_of::<ClosingSpan>());
        const ENTRY_BYTES: usize = 2 * (size_of::<(Box<str>, SpanEntry)>() + 1)
            + if OPEN_BYTES > CLOSING_BYTES { OPEN_BYTES } else { CLOSING_BYTES };
        let texts: usize = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
        let in_attributor = self.footprint.span_bytes(span, name) * if withheld { 2 } else { 1 };
        let memory_bytes = in_attributor
            + footprint::attributes_bytes(attributes)
            + ENTRY_BYTES
            + footprint::allocation_bytes(span.len());
        SpanSize { text_bytes: texts + name.len(), attribute_count: attributes.len(), memory_bytes }
    }

    /// Checks that a peer may open a span of this name and size.
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

    /// Checks that a peer's spans may grow by this size.
    ///
    /// # Errors
    /// `QuotaExceeded`.
    pub fn check_growth(&self, peer: &Peer, size: SpanSize) -> Result<(), MethodError> {
        let of_user = self.users.get(&peer.uid).map(|user| user.memory).unwrap_or_default();
        self.memory.check_growth(&self.limits, peer, of_user, size)
    }

    /// The estimated memory of all spans.
    pub fn memory_bytes(&self) -> usize {
        self.memory.total_bytes()
    }

    /// Adds a span that the attributor has opened.
    pub fn insert(&mut self, uid: u32, span: &str, key: SpanKey, connection: ConnectionId, size: SpanSize) {
        let user = self.users.entry(uid).or_default();
        user.spans.insert(span.into(), SpanEntry::Open(OpenSpanEntry::new(key, connection, size)));
        user.open_count += 1;
        self.add_usage(uid, size);
        self.connections.entry(connection).or_insert_with(|| (uid, HashSet::default())).1.insert(key);
    }

    /// The user's open span of this name.
    pub fn find_open(&self, uid: u32, span: &str) -> Result<OpenSpanEntry, MethodError> {
        match self.users.get(&uid).and_then(|user| user.spans.get(span)) {
            Some(SpanEntry::Open(open)) => Ok(*open),
            Some(_) => Err(MethodError::AlreadyClosed { span: span.to_owned() }),
            None => Err(MethodError::NoSuchSpan { span: span.to_owned() }),
        }
    }

    /// The user's span of this name.
    pub fn find(&self, uid: u32, span: &str) -> Result<SpanLookup, MethodError> {
        let entry = self.users.get(&uid).and_then(|user| user.spans.get(span));
        entry.map(SpanLookup::from).ok_or_else(|| MethodError::NoSuchSpan { span: span.to_owned() })
    }

    /// The span of this name of any user, the lowest uid first.
    pub fn find_of_any_user(&self, span: &str) -> Result<SpanLookup, MethodError> {
        let entry = self.users.values().find_map(|user| user.spans.get(span)).map(SpanLookup::from);
        entry.ok_or_else(|| MethodError::NoSuchSpan { span: span.to_owned() })
    }

    /// The open spans of one user or of all users: name and key, in no order.
    pub fn open_spans(&self, uid_filter: Option<u32>) -> impl Iterator<Item = (&str, SpanKey)> {
        let users = self.users.iter().filter(move |(uid, _)| uid_filter.is_none_or(|wanted| wanted == **uid));
        users.flat_map(|(_, user)| &user.spans).filter_map(|(span, entry)| match entry {
            // Not one of a closed connection, which is about to be closed.
            SpanEntry::Open(open) if self.connections.contains_key(&open.connection) => {
                Some((&**span, open.key))
            }
            _ => None,
        })
    }

    /// The latest remembered accounts of one user or of all users that `matches` accepts, the latest last, each with its number
    /// in the store. At most `limit`, and fewer where [`MAX_LIST_BYTES`] is reached.
    pub fn latest_accounts(
        &self,
        uid_filter: Option<u32>,
        limit: usize,
        matches: impl Fn(&Account) -> bool,
    ) -> Vec<(Arc<Account>, Option<u64>)> {
        let users = self.users.iter().filter(|(uid, _)| uid_filter.is_none_or(|wanted| wanted == **uid));
        let of_user = |user: &'_ UserSpans| {
            let entries = user.remembered.iter().rev().map(|account| user.spans.get(account.span.as_str()));
            let settled = entries.filter_map(|entry| match entry {
                Some(SpanEntry::Settled { account, bytes, store_number }) => {
                    Some((Arc::clone(account), *bytes as usize, store_number.map(NonZeroU64::get)))
                }
                _ => None,
            });
            settled.filter(|(account, ..)| matches(account)).take(limit).collect::<Vec<_>>()
        };
        let mut accounts: Vec<_> = users.flat_map(|(_, user)| of_user(user)).collect();
        accounts.sort_by_key(|(account, ..)| std::cmp::Reverse((account.closed_ns, account.opened_ns)));
        let fits = accounts.into_iter().take(limit).scan(0, |sum, (account, bytes, store_number)| {
            *sum += bytes;
            (*sum <= MAX_LIST_BYTES).then_some((account, store_number))
        });
        let mut latest: Vec<_> = fits.collect();
        latest.reverse();
        latest
    }

    /// The size of one more phase of an open span.
    ///
    /// # Errors
    /// `QuotaExceeded`.
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
        let memory_bytes = self.footprint.phase_bytes(phase) + self.history_bytes(open);
        let size = SpanSize { text_bytes: phase.len(), attribute_count: 0, memory_bytes };
        self.check_growth(peer, size).map(|()| size)
    }

    /// The size of a weight change of an open span; only the first one has a size.
    ///
    /// # Errors
    /// `QuotaExceeded`.
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

    /// Adds a phase of this size to an open span. Returns whether the span is to be queued for the journal.
    pub fn record_phase(&mut self, uid: u32, span: &str, size: SpanSize) -> bool {
        self.update_open(uid, span, size, |open| open.phases += 1)
    }

    /// Adds a weight change of this size to an open span. Returns whether the span is to be queued for the journal.
    pub fn record_weight_change(&mut self, uid: u32, span: &str, size: SpanSize) -> bool {
        self.update_open(uid, span, size, |open| open.has_weight_change = true)
    }

    fn update_open(
        &mut self,
        uid: u32,
        span: &str,
        size: SpanSize,
        change: impl FnOnce(&mut OpenSpanEntry),
    ) -> bool {
        let entry = self.users.get_mut(&uid).and_then(|user| user.spans.get_mut(span));
        let Some(SpanEntry::Open(open)) = entry else { return false };
        change(open);
        open.set_size(open.size().plus(size));
        let is_unqueued = !std::mem::replace(&mut open.is_journal_queued, true);
        if size != SpanSize::default() {
            self.add_usage(uid, size);
        }
        is_unqueued
    }

    fn add_usage(&mut self, uid: u32, size: SpanSize) {
        if let Some(user) = self.users.get_mut(&uid) {
            self.memory.add(&self.limits, &mut user.memory, size);
        }
    }

    fn subtract_usage(&mut self, uid: u32, size: SpanSize) {
        if let Some(user) = self.users.get_mut(&uid) {
            self.memory.subtract(&self.limits, &mut user.memory, size);
        }
    }

    /// Removes remembered accounts up to this number in the store, which has them, and copies the others into adjacent
    /// memory. They were allocated between spans, and each would keep a whole page allocated.
    pub fn compact(&mut self, committed: u64) {
        for user in self.users.values_mut() {
            // All are copied before the first is freed: otherwise each copy would reuse the memory of the one before.
            let mut copies = Vec::new();
            for account in &user.remembered {
                let Some(SpanEntry::Settled { bytes, store_number, .. }) =
                    user.spans.get(account.span.as_str())
                else {
                    continue;
                };
                if store_number.is_some_and(|number| number.get() <= committed) {
                    let bytes = *bytes as usize;
                    user.remembered_bytes -= bytes;
                    self.remembered_count -= 1;
                    self.remembered_bytes -= bytes;
                } else {
                    copies.push((Arc::new(Account::clone(account)), *bytes, *store_number));
                }
            }
            user.remembered.iter().for_each(|account| drop(user.spans.remove(account.span.as_str())));
            user.remembered = copies.iter().map(|(account, ..)| Arc::clone(account)).collect();
            user.spans.shrink_to(2 * (user.spans.len() + copies.len()));
            for (account, bytes, store_number) in copies {
                let name = Box::from(account.span.as_str());
                user.spans.insert(name, SpanEntry::Settled { account, bytes, store_number });
            }
        }
    }

    /// Shrinks the tables to twice their content.
    pub fn shrink(&mut self) {
        for user in self.users.values_mut() {
            user.spans.shrink_to(2 * user.spans.len());
            user.remembered.shrink_to(2 * user.remembered.len());
        }
        self.connections.values_mut().for_each(|(_, spans)| spans.shrink_to(2 * spans.len()));
    }

    /// Marks a span as closed in the attributor. `growth` is the size that the close has added; `reply_to` waits for the final
    /// account.
    pub fn begin_close(&mut self, uid: u32, span: &str, growth: SpanSize, reply_to: Option<ReplyTo>) {
        let Some(user) = self.users.get_mut(&uid) else { return };
        let Some(entry) = user.spans.get_mut(span) else { return };
        if let SpanEntry::Open(open) = *entry {
            remove_from_connection(&mut self.connections, open.connection, open.key);
            let (size, is_journalled) = (open.size().plus(growth), open.is_journalled);
            let closing = ClosingSpan { key: open.key, size, reply_to, is_journalled };
            *entry = SpanEntry::Closing(Box::new(closing));
            user.open_count -= 1;
            self.waiting_replies += usize::from(reply_to.is_some());
            self.add_usage(uid, growth);
        }
    }

    /// Removes an open span; returns its key if the store's journal has it.
    pub fn remove_open(&mut self, uid: u32, span: &str) -> Option<SpanKey> {
        let user = self.users.get_mut(&uid)?;
        let Some(SpanEntry::Open(open)) = user.spans.remove(span) else { return None };
        user.open_count -= 1;
        self.subtract_usage(uid, open.size());
        remove_from_connection(&mut self.connections, open.connection, open.key);
        self.remove_if_empty(uid);
        open.is_journalled.then_some(open.key)
    }

    /// Records that the store's journal has this span, which is open or closing.
    pub fn set_journalled(&mut self, uid: u32, span: &str) {
        let entry = self.users.get_mut(&uid).and_then(|user| user.spans.get_mut(span));
        match entry {
            Some(SpanEntry::Open(open)) => open.is_journalled = true,
            Some(SpanEntry::Closing(closing)) => closing.is_journalled = true,
            _ => {}
        }
    }

    /// Marks whether an open span stands in the queue for the journal; returns whether that is a change. The mark alone
    /// decides, so that a span stands there once.
    pub fn set_journal_queued(&mut self, uid: u32, span: &str, queued: bool) -> bool {
        let entry = self.users.get_mut(&uid).and_then(|user| user.spans.get_mut(span));
        let Some(SpanEntry::Open(open)) = entry else { return false };
        std::mem::replace(&mut open.is_journal_queued, queued) != queued
    }

    /// Records that the store did not take a final account.
    pub fn clear_store_number(&mut self, account: &Account) {
        let entry =
            self.users.get_mut(&account.uid).and_then(|user| user.spans.get_mut(account.span.as_str()));
        if let Some(SpanEntry::Settled { store_number, .. }) = entry {
            *store_number = None;
        }
    }

    /// Notes that the open spans of a connection are abandoned; returns whether there are any. The cost does not depend on
    /// their number: [`Self::take_abandoned`] closes them.
    pub fn abandon_connection(&mut self, connection: ConnectionId, closed_ns: u64) -> bool {
        let Some((uid, spans)) = self.connections.remove(&connection) else { return false };
        let spans = spans.into_iter();
        self.abandoned.push_back(AbandonedConnection { uid, closed_ns, spans });
        true
    }

    /// Whether there are abandoned spans to take.
    pub fn has_abandoned(&self) -> bool {
        !self.abandoned.is_empty()
    }

    /// Marks at most `limit` abandoned spans as closing, and returns them as they were, each with the time at which its
    /// connection was closed. `name_of`: the name of an unsettled span.
    pub fn take_abandoned(
        &mut self,
        limit: usize,
        name_of: impl Fn(SpanKey) -> Option<String>,
    ) -> Vec<(OpenSpanEntry, u64)> {
        let mut taken = Vec::new();
        for _ in 0..limit {
            let Some(first) = self.abandoned.front_mut() else { break };
            let (uid, closed_ns) = (first.uid, first.closed_ns);
            let Some(key) = first.spans.next() else {
                self.abandoned.pop_front();
                continue;
            };
            // The user may have closed the span meanwhile through another connection, and opened another of this name.
            let Some(span) = name_of(key) else { continue };
            if let Ok(open) = self.find_open(uid, &span)
                && open.key == key
            {
                self.begin_close(uid, &span, SpanSize::default(), None);
                taken.push((open, closed_ns));
            }
        }
        if self.abandoned.front().is_some_and(|first| first.spans.len() == 0) {
            self.abandoned.pop_front();
        }
        taken
    }

    /// Remembers the final account of a closing span under its number in the store.
    pub fn settle(&mut self, account: &Arc<Account>, store_number: Option<u64>) -> SettledSpan {
        let Some(user) = self.users.get_mut(&account.uid) else { return SettledSpan::default() };
        let Some(entry) = user.spans.get_mut(account.span.as_str()) else { return SettledSpan::default() };
        let bytes = footprint::account_bytes(account);
        let settled = SpanEntry::Settled {
            account: Arc::clone(account),
            bytes: stored_bytes(bytes),
            store_number: store_number.and_then(NonZeroU64::new),
        };
        let (size, settled_span) = match std::mem::replace(entry, settled) {
            SpanEntry::Closing(closing) => {
                let ClosingSpan { key, size, reply_to, is_journalled } = *closing;
                (size, SettledSpan { reply_to, journal_key: is_journalled.then_some(key) })
            }
            // Does not happen: the attributor settles closed spans only.
            other => {
                *entry = other;
                return SettledSpan::default();
            }
        };
        user.remembered.push_back(Arc::clone(account));
        user.remembered_bytes += bytes;
        self.subtract_usage(account.uid, size);
        self.remembered_count += 1;
        self.remembered_bytes += bytes;
        self.waiting_replies -= usize::from(settled_span.reply_to.is_some());
        self.evict_remembered();
        settled_span
    }

    fn evict_remembered(&mut self) {
        while self.remembered_count > self.limits.remembered_accounts
            || self.remembered_bytes > self.limits.remembered_bytes
        {
            let largest_user = self.users.iter().max_by_key(|(uid, user)| (user.remembered_bytes, **uid));
            let Some(uid) = largest_user.map(|(uid, _)| *uid) else { return };
            let Some(user) = self.users.get_mut(&uid) else { return };
            let Some(account) = user.remembered.pop_front() else { return };
            if let Some(SpanEntry::Settled { bytes, .. }) = user.spans.remove(account.span.as_str()) {
                let bytes = bytes as usize;
                user.remembered_bytes -= bytes;
                self.remembered_count -= 1;
                self.remembered_bytes -= bytes;
            }
            self.remove_if_empty(uid);
        }
    }

    /// Removes a user without spans.
    fn remove_if_empty(&mut self, uid: u32) {
        if self.users.get(&uid).is_some_and(|user| user.spans.is_empty()) {
            self.users.remove(&uid);
        }
    }

    /// The number of replies that wait for a final account.
    pub fn waiting_replies(&self) -> usize {
        self.waiting_replies
    }

    /// Removes and returns all waiting replies, each with the span that it waits for.
    pub fn take_waiting_replies(&mut self) -> Vec<(ReplyTo, SpanKey)> {
        let mut waiting = Vec::new();
        for entry in self.users.values_mut().flat_map(|user| user.spans.values_mut()) {
            if let SpanEntry::Closing(closing) = entry {
                waiting.extend(closing.reply_to.take().map(|reply_to| (reply_to, closing.key)));
            }
        }
        self.waiting_replies = 0;
        waiting
    }
}

/// Removes a span from its connection.
fn remove_from_connection(connections: &mut ConnectionSpans, connection: ConnectionId, key: SpanKey) {
    let Some((_, spans)) = connections.get_mut(&connection) else { return };
    spans.remove(&key);
    if spans.is_empty() {
        connections.remove(&connection);
    }
}

/// A number of bytes as an entry stores it.
fn stored_bytes(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl From<&SpanEntry> for SpanLookup {
    fn from(entry: &SpanEntry) -> Self {
        match entry {
            SpanEntry::Open(open) => SpanLookup::Unsettled(open.key),
            SpanEntry::Closing(closing) => SpanLookup::Unsettled(closing.key),
            SpanEntry::Settled { account, store_number, .. } => {
                SpanLookup::Settled(Arc::clone(account), store_number.map(NonZeroU64::get))
            }
        }
    }
}

impl OpenSpanEntry {
    /// A new span, which is to be queued for the journal.
    fn new(key: SpanKey, connection: ConnectionId, size: SpanSize) -> Self {
        let mut open = Self {
            key,
            connection,
            text_bytes: 0,
            memory_bytes: 0,
            attribute_count: 0,
            phases: 0,
            has_weight_change: false,
            is_journalled: false,
            is_journal_queued: true,
        };
        open.set_size(size);
        open
    }

    /// The number of its attributes.
    pub fn attribute_count(&self) -> usize {
        self.attribute_count.into()
    }

    fn size(&self) -> SpanSize {
        SpanSize {
            text_bytes: self.text_bytes as usize,
            attribute_count: self.attribute_count(),
            memory_bytes: self.memory_bytes as usize,
        }
    }

    fn set_size(&mut self, size: SpanSize) {
        self.text_bytes = stored_bytes(size.text_bytes);
        self.memory_bytes = stored_bytes(size.memory_bytes);
        self.attribute_count = u8::try_from(size.attribute_count).unwrap_or(u8::MAX);
    }
}

#[cfg(test)]
mod tests {
    use wattspan_client::account::SpanState;
    use wattspan_client::protocol::Access;

    use super::*;

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
            number: None,
        })
    }

    fn text_size(bytes: usize) -> SpanSize {
        SpanSize { text_bytes: bytes, ..SpanSize::default() }
    }

    fn memory_size(bytes: usize) -> SpanSize {
        SpanSize { memory_bytes: bytes, ..SpanSize::default() }
    }

    /// The names that the tests with many spans give.
    fn name_by_number(key: SpanKey) -> Option<String> {
        Some(format!("span{}", key.0))
    }

    fn open_key((span, entry): (impl AsRef<str>, &SpanEntry)) -> Option<(SpanKey, String)> {
        if let SpanEntry::Open(open) = entry { Some((open.key, span.as_ref().to_owned())) } else { None }
    }

    fn settle_span(registry: &mut SpanRegistry, peer: &Peer, span: &str, key: u64) {
        registry.insert(peer.uid, span, SpanKey(key), 1, SpanSize::default());
        registry.begin_close(peer.uid, span, SpanSize::default(), None);
        registry.settle(&account(peer.uid, span), None);
    }

    #[test]
    fn another_users_span_is_reported_as_missing() {
        let mut registry = registry(|_| ());
        registry.insert(ANN.uid, "a", SpanKey(1), 1, SpanSize::default());
        let missing = MethodError::NoSuchSpan { span: "a".into() };
        assert_eq!(registry.find_open(BOB.uid, "a").unwrap_err(), missing);
        assert_eq!(registry.find(BOB.uid, "a").unwrap_err(), missing);
        assert!(registry.check_open(&BOB, "a", SpanSize::default()).is_ok());
        assert_eq!(
            registry.check_open(&ANN, "a", SpanSize::default()),
            Err(MethodError::SpanExists { span: "a".into() })
        );
    }

    #[test]
    fn a_closed_span_differs_from_an_unknown_one_while_it_is_remembered() {
        let mut registry = registry(|limits| limits.remembered_accounts = 1);
        settle_span(&mut registry, &ANN, "a", 1);
        assert_eq!(
            registry.find_open(ANN.uid, "a").unwrap_err(),
            MethodError::AlreadyClosed { span: "a".into() }
        );
        settle_span(&mut registry, &ANN, "b", 2);
        assert_eq!(
            registry.find_open(ANN.uid, "a").unwrap_err(),
            MethodError::NoSuchSpan { span: "a".into() }
        );
    }

    #[test]
    fn accounts_of_the_user_with_most_bytes_are_evicted_first() {
        let mut registry = registry(|limits| limits.remembered_accounts = 4);
        settle_span(&mut registry, &BOB, "his", 1);
        for key in 2..10 {
            settle_span(&mut registry, &ANN, &format!("hers{key}"), key);
        }
        assert!(registry.find(BOB.uid, "his").is_ok());
        assert!(registry.find(ANN.uid, "hers9").is_ok());
        assert!(registry.find(ANN.uid, "hers6").is_err());
    }

    #[test]
    fn latest_accounts_respect_the_limit_and_stay_below_a_megabyte() {
        let mut registry = registry(|_| ());
        for (key, peer, value) in
            [(1, ANN, 10), (2, BOB, 10), (3, ANN, 400_000), (4, ANN, 200_000), (5, ANN, 10)]
        {
            let span = format!("span{key}");
            registry.insert(peer.uid, &span, SpanKey(key), 1, SpanSize::default());
            registry.begin_close(peer.uid, &span, SpanSize::default(), None);
            let mut account = Account::clone(&account(peer.uid, &span));
            account.closed_ns = Some(key);
            account.attributes.insert("k".into(), "v".repeat(value));
            registry.settle(&Arc::new(account), None);
        }
        let names = |uid_filter, limit| {
            let latest = registry.latest_accounts(uid_filter, limit, |_| true);
            latest.iter().map(|(account, _)| account.span.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(None, 2), ["span4", "span5"]);
        assert_eq!(names(Some(BOB.uid), 9), ["span2"]);
        assert_eq!(names(Some(ANN.uid), 9), ["span4", "span5"]);
    }

    #[test]
    fn closing_a_connection_closes_only_its_open_spans() {
        let mut registry = registry(|_| ());
        for (key, connection) in [(1, 7), (2, 7), (3, 8)] {
            registry.insert(ANN.uid, &format!("span{key}"), SpanKey(key), connection, SpanSize::default());
        }
        registry.begin_close(ANN.uid, "span1", SpanSize::default(), None);
        assert!(registry.abandon_connection(7, 5) && registry.has_abandoned());
        let taken = registry.take_abandoned(9, name_by_number);
        assert_eq!(
            taken.iter().map(|(open, at_ns)| (open.key, *at_ns)).collect::<Vec<_>>(),
            [(SpanKey(2), 5)]
        );
        assert!(registry.find_open(ANN.uid, "span3").is_ok());
        assert!(!registry.abandon_connection(7, 6) && !registry.has_abandoned());
    }

    #[test]
    fn many_abandoned_spans_are_closed_in_turns_of_bounded_size_and_each_once() {
        let mut registry = registry(|_| ());
        for key in 0..1000 {
            registry.insert(ANN.uid, &format!("span{key}"), SpanKey(key), 7, SpanSize::default());
        }
        assert!(registry.abandon_connection(7, 5));
        let mut keys = Vec::new();
        while registry.has_abandoned() {
            let taken = registry.take_abandoned(32, name_by_number);
            assert!(taken.len() <= 32, "{}", taken.len());
            keys.extend(taken.into_iter().map(|(open, _)| open.key));
        }
        keys.sort_unstable();
        assert_eq!(keys, (0..1000).map(SpanKey).collect::<Vec<_>>());
        assert_eq!(registry.users[&ANN.uid].open_count, 0);
    }

    #[test]
    fn a_span_that_reuses_the_name_of_an_abandoned_one_stays_open() {
        let mut registry = registry(|limits| limits.remembered_accounts = 0);
        registry.insert(ANN.uid, "a", SpanKey(1), 7, SpanSize::default());
        assert!(registry.abandon_connection(7, 5));
        registry.begin_close(ANN.uid, "a", SpanSize::default(), None);
        registry.settle(&account(ANN.uid, "a"), None);
        registry.insert(ANN.uid, "a", SpanKey(2), 8, SpanSize::default());
        // The attributor has no span of the old key any more; even if it had, the names alone must not decide.
        assert!(registry.take_abandoned(9, |_| Some("a".into())).is_empty());
        assert!(registry.find_open(ANN.uid, "a").is_ok());
    }

    #[test]
    fn quotas_are_per_user_and_are_released_on_close() {
        let mut registry = registry(|limits| {
            limits.open_spans_per_user = 1;
            limits.notes_bytes_per_user = 100;
        });
        registry.insert(ANN.uid, "a", SpanKey(1), 1, text_size(90));
        let error = registry.check_open(&ANN, "b", SpanSize::default()).unwrap_err();
        assert_eq!(error, MethodError::QuotaExceeded { quota: "open spans".into(), limit: 1 });
        assert!(registry.check_open(&BOB, "b", SpanSize::default()).is_ok());
        let unlimited = Peer { unlimited: true, ..ANN };
        assert!(registry.check_open(&unlimited, "b", text_size(1000)).is_ok());
        registry.begin_close(ANN.uid, "a", SpanSize::default(), None);
        assert!(registry.check_open(&ANN, "b", text_size(10)).is_ok());
        assert!(registry.check_open(&ANN, "b", text_size(11)).is_err());
        registry.settle(&account(ANN.uid, "a"), None);
        assert!(registry.check_open(&ANN, "b", text_size(100)).is_ok());
    }

    #[test]
    fn settle_returns_the_reply_address_that_waits_for_the_account() {
        let mut registry = registry(|_| ());
        let reply_to = ReplyTo { connection: 7, slot: 3 };
        registry.insert(ANN.uid, "a", SpanKey(1), 7, SpanSize::default());
        registry.begin_close(ANN.uid, "a", SpanSize::default(), Some(reply_to));
        assert_eq!(registry.waiting_replies(), 1);
        assert_eq!(registry.settle(&account(ANN.uid, "a"), None).reply_to, Some(reply_to));
        assert_eq!(registry.waiting_replies(), 0);
    }

    #[test]
    fn users_at_the_memory_limit_leave_others_their_guaranteed_bytes() {
        let mut registry = registry(|limits| {
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
        let mut fill = |registry: &mut SpanRegistry, uid, max_bytes: usize| {
            let peer = Peer { uid, ..ANN };
            let mut taken = 0;
            while taken < max_bytes {
                let span = format!("s{taken}");
                if let Err(error) = registry.check_open(&peer, &span, memory_size(100)) {
                    return (taken, Some(error));
                }
                key += 1;
                registry.insert(uid, &span, SpanKey(key), u64::from(uid), memory_size(100));
                taken += 100;
            }
            (taken, None)
        };
        assert_eq!(fill(&mut registry, 1, usize::MAX), (256_000, Some(own)));
        // Beside the first one's guaranteed part: three quarters of the whole are for all.
        assert_eq!(fill(&mut registry, 2, usize::MAX), (130_000, Some(total.clone())));
        for uid in 3..100 {
            assert_eq!(fill(&mut registry, uid, usize::MAX), (1000, Some(total.clone())), "user {uid}");
        }
        assert_eq!(registry.memory_bytes(), 256_000 + 130_000 + 97_000);
        for uid in 1..100 {
            registry.abandon_connection(u64::from(uid), 0);
            let names: HashMap<SpanKey, String> =
                registry.users[&uid].spans.iter().filter_map(open_key).collect();
            registry.take_abandoned(usize::MAX, |key| names.get(&key).cloned());
            let closing: Vec<Box<str>> = registry.users[&uid].spans.keys().cloned().collect();
            closing.iter().for_each(|span| {
                registry.settle(&account(uid, span), None);
            });
        }
        assert_eq!((registry.memory_bytes(), registry.memory.shared_bytes), (0, 0));
    }

    #[test]
    fn phases_attributes_and_weights_count_towards_memory_and_are_released() {
        let mut registry = registry(|limits| limits.phases_per_span = 2);
        let attributes = (0..64).map(|at| (format!("{at:02}"), String::new())).collect();
        let plain = registry.estimate_size("a", "", &BTreeMap::new(), false).memory_bytes;
        let rich = registry.estimate_size("a", "", &attributes, false).memory_bytes;
        assert!(rich > plain + 64 * 100, "{plain} {rich}");
        registry.insert(ANN.uid, "a", SpanKey(1), 1, registry.estimate_size("a", "", &attributes, false));
        let open = registry.find_open(ANN.uid, "a").unwrap();
        let first = registry.check_phase(&ANN, &open, "p").unwrap();
        registry.record_phase(ANN.uid, "a", first);
        let open = registry.find_open(ANN.uid, "a").unwrap();
        let second = registry.check_phase(&ANN, &open, "p").unwrap();
        assert!(
            first.memory_bytes > second.memory_bytes && second.memory_bytes > 3 * 48,
            "{first:?} {second:?}"
        );
        registry.record_phase(ANN.uid, "a", second);
        let open = registry.find_open(ANN.uid, "a").unwrap();
        let error = registry.check_phase(&ANN, &open, "p").unwrap_err();
        assert_eq!(error, MethodError::QuotaExceeded { quota: "phases of a span".into(), limit: 2 });
        let weight = registry.check_weight(&ANN, &open).unwrap();
        registry.record_weight_change(ANN.uid, "a", weight);
        let open = registry.find_open(ANN.uid, "a").unwrap();
        assert_eq!(registry.check_weight(&ANN, &open), Ok(SpanSize::default()));
        assert_eq!(
            registry.memory_bytes(),
            rich + first.memory_bytes + second.memory_bytes + weight.memory_bytes
        );
        registry.remove_open(ANN.uid, "a");
        assert_eq!(registry.memory_bytes(), 0);
    }
}
