//! Storage of final accounts, and queries of the store.
//!
//! Owns the accounts that are final and not yet on disk, and the queries that the store has not answered. Invariant:
//! an account is reported as final only once it is on disk, or with `durable` false where the store fails; until then
//! it is provisional. Never blocks on the disk. Without a store an account is final when it settles.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use wattspan_client::account::{Account, SpanState};
use wattspan_client::protocol::{self, Access, MethodError, SpanAccounts};

use super::access::{self, Peer, is_visible_to};
use super::caller::{Caller, ConnectionId, ReplyTo};
use super::cursor::CursorCipher;
use super::domain_energy::DomainEnergy;
use super::journal_clock::JournalClock;
use super::journal_schedule::JournalSchedule;
use super::list_request::ListRequest;
use super::reply::{MethodResult, Reply};
use super::running_sums::RunningSums;
use super::span_registry::SpanRegistry;
use crate::attribution::{Attributor, SpanKey, footprint};
use crate::store::{ForwardReply, MAX_PENDING_QUERIES, QueryError, QueryResult, Store, StoreQuery, SumQuery};

/// A commit or an answer that takes longer means that the store is stalled.
const STORE_TIMEOUT_NS: u64 = 2_000_000_000;

/// More bytes of uncommitted accounts mean that the store is stalled.
const MAX_PENDING_BYTES: usize = 8 << 20;

/// How long the shutdown waits for the disk.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Per user: a list may be a megabyte on the wire. Queries of single spans are limited per connection.
const MAX_LISTS_PER_USER: usize = 8;

/// A final account, and the reply that waits for it.
#[derive(Debug)]
pub struct FinalAccount {
    pub account: Arc<Account>,
    /// The address of that reply, if there is one.
    pub reply_to: Option<ReplyTo>,
}

/// The next accounts of a stream of stored ones.
#[derive(Debug)]
pub struct AccountPage {
    pub connection: ConnectionId,
    /// `None`: the store could not answer; the query is to be repeated later. An error ends the stream.
    pub result: Result<Option<ForwardReply>, MethodError>,
}

/// A deferred reply with its address.
pub(crate) type DeferredReply = (ReplyTo, MethodResult);

/// The store with its pending accounts and queries.
pub(crate) struct Durability {
    store: Store,
    log: fn(&str),
    pending: VecDeque<PendingAccount>,
    /// Estimated memory of the accounts in `pending`.
    pending_bytes: usize,
    /// By number, so the oldest first.
    pending_queries: BTreeMap<u64, PendingQuery>,
    next_query: u64,
    account_pages: Vec<AccountPage>,
    sums: RunningSums,
    /// The energy of accounts that the store did not keep: settled ones, and abandoned ones.
    not_kept: [DomainEnergy; 2],
    pub(super) journal: JournalSchedule,
    journal_clock: JournalClock,
    /// The time of the store's last commit or answer, and the last committed number then.
    last_progress_ns: u64,
    committed: u64,
    is_stalled: bool,
}

struct PendingAccount {
    store_number: u64,
    account: Arc<Account>,
    bytes: usize,
    reply_to: Option<ReplyTo>,
    queued_ns: u64,
}

struct PendingQuery {
    reply_to: ReplyTo,
    peer: Peer,
    kind: QueryKind,
    sent_ns: u64,
}

/// What a query looks for; the answer from memory needs it too.
pub(crate) enum QueryKind {
    Span(String),
    List(Box<ListRequest>),
    /// The accounts after a number: the store encodes the reply.
    Forward,
    /// The same, as the next items of a stream.
    Page,
}

/// The end of a query.
enum QueryOutcome {
    Found(QueryResult),
    Failed(QueryError),
    /// The store is failing, for this reason; the answer comes from memory.
    Skipped(Option<String>),
}

impl Durability {
    pub(crate) fn new(store: Store, log: fn(&str), now_ns: u64) -> Self {
        Self {
            store,
            log,
            pending: VecDeque::new(),
            pending_bytes: 0,
            pending_queries: BTreeMap::new(),
            next_query: 0,
            account_pages: Vec::new(),
            sums: RunningSums::default(),
            not_kept: Default::default(),
            journal: JournalSchedule::new(now_ns),
            journal_clock: JournalClock::default(),
            last_progress_ns: 0,
            committed: 0,
            is_stalled: false,
        }
    }

    /// Sets the function that the store's thread calls when [`Durability::has_events`] becomes true.
    pub(crate) fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        self.store.set_waker(waker);
    }

    /// Whether the store has committed or answered since the last poll.
    pub(crate) fn has_events(&self) -> bool {
        self.store.has_updates()
    }

    fn is_failing(&self) -> bool {
        self.store.is_failing() || self.is_stalled
    }

    /// A list of remembered accounts. Where the store fails, an empty one is an error: there may be accounts on disk.
    ///
    /// # Errors
    /// `StoreUnavailable`: there is no account, and the store fails.
    pub(crate) fn check_remembered(&self, accounts: SpanAccounts) -> Result<SpanAccounts, MethodError> {
        if self.is_failing() { refuse_empty(accounts, self.failure_reason()) } else { Ok(accounts) }
    }

    /// Why nothing can be written, or what may be lost.
    fn failure_reason(&self) -> Option<String> {
        let health = self.store.health();
        let silent = self.is_stalled && health.reason.as_ref().is_none_or(|_| health.durable);
        if silent { Some("the disk of the ledger does not respond".into()) } else { health.reason }
    }

    /// Queues a settled account for the disk and enters it into the registry. Returns it if the store does not accept
    /// it and a reply or a watcher needs it.
    pub(crate) fn finalize(
        &mut self,
        mut account: Account,
        registry: &mut SpanRegistry,
        has_watchers: bool,
        now_ns: u64,
    ) -> Option<FinalAccount> {
        // Not reported before the commit.
        account.durable = Some(true);
        let account = Arc::new(account);
        let store_number = self.store.next_number();
        let settled_span = registry.settle(&account, Some(store_number));
        settled_span.journal_key.iter().for_each(|key| self.journal_clock.release(*key));
        let reply_to = settled_span.reply_to;
        let is_wanted = reply_to.is_some() || has_watchers;
        if !self.store.append(&account, settled_span.journal_key.map(|key| key.0), is_wanted) {
            self.not_kept[usize::from(account.state == SpanState::Abandoned)].add(&account);
            registry.clear_store_number(&account);
            return is_wanted.then(|| FinalAccount { account: Arc::new(as_not_durable(&account)), reply_to });
        }
        if is_wanted {
            let bytes = footprint::account_bytes(&account);
            self.pending_bytes += bytes;
            self.pending.push_back(PendingAccount {
                store_number,
                account,
                bytes,
                reply_to,
                queued_ns: now_ns,
            });
        }
        None
    }

    /// Takes the store's answers and commits: replies go to `replies`, committed accounts to
    /// `final_accounts`. While the store fails, all pending ones are completed without it.
    pub(crate) fn poll(
        &mut self,
        now_ns: u64,
        registry: &SpanRegistry,
        cursor_cipher: &CursorCipher,
        replies: &mut Vec<DeferredReply>,
        final_accounts: &mut Vec<FinalAccount>,
    ) {
        let results = self.store.take_query_results();
        let has_answered = !results.is_empty();
        for (number, result) in results {
            let outcome = result.map_or_else(QueryOutcome::Failed, QueryOutcome::Found);
            replies.extend(self.complete(number, outcome, registry, cursor_cipher));
        }
        for (number, result) in self.store.take_sum_results() {
            replies.extend(self.sums.complete(number, result));
        }
        self.sums.fail_stalled(now_ns, replies);
        self.store.flush();
        self.detect_stall(now_ns, has_answered);
        let (is_failing, committed) = (self.is_failing(), self.store.committed());
        while let Some(first) = self.pending.front() {
            let is_committed = first.store_number <= committed;
            if !is_committed && !is_failing {
                break;
            }
            let Some(PendingAccount { account, bytes, reply_to, .. }) = self.pending.pop_front() else {
                break;
            };
            self.pending_bytes -= bytes;
            let account = if is_committed { account } else { Arc::new(as_not_durable(&account)) };
            final_accounts.push(FinalAccount { account, reply_to });
        }
        if is_failing {
            self.complete_from_memory(registry, cursor_cipher, replies);
        }
    }

    /// The time since which the oldest account or query waits. A query counts from the store's last progress, since
    /// many queries may be before it.
    fn oldest_wait_ns(&self) -> Option<u64> {
        let pending = self.pending.front().map(|first| first.queued_ns);
        let query =
            self.pending_queries.values().next().map(|first| first.sent_ns.max(self.last_progress_ns));
        pending.into_iter().chain(query).min()
    }

    /// Updates `is_stalled`, and logs a change.
    fn detect_stall(&mut self, now_ns: u64, has_answered: bool) {
        let committed = self.store.committed();
        if has_answered || committed > self.committed {
            (self.last_progress_ns, self.committed) = (now_ns, committed);
            if std::mem::take(&mut self.is_stalled) && !self.store.is_failing() {
                (self.log)("the disk of the ledger responds again");
            }
        }
        let waits_ns = self.oldest_wait_ns().map_or(0, |since_ns| now_ns.saturating_sub(since_ns));
        let is_slow = waits_ns > STORE_TIMEOUT_NS || self.pending_bytes > MAX_PENDING_BYTES;
        if is_slow && !self.is_stalled && !self.store.is_failing() {
            self.is_stalled = true;
            (self.log)("the disk of the ledger does not respond; accounts are returned as not durable");
        }
    }

    /// The time at which the store, or a query for sums, counts as stalled, if something waits for it.
    pub(crate) fn timeout_at_ns(&self) -> Option<u64> {
        let store = self.oldest_wait_ns().map(|since_ns| since_ns + STORE_TIMEOUT_NS + 1);
        store.into_iter().chain(self.sums.timeout_at_ns()).min()
    }

    /// Submits a query; false where the answer must come from memory.
    ///
    /// # Errors
    /// `QuotaExceeded`: too many queries are pending. `StoreUnavailable`: the store fails and memory has no such span.
    pub(crate) fn submit(
        &mut self,
        peer: &Peer,
        reply_to: ReplyTo,
        query: StoreQuery,
        kind: QueryKind,
        now_ns: u64,
    ) -> Result<bool, MethodError> {
        let full = |limit: usize| MethodError::QuotaExceeded {
            quota: "lists of spans at a time".into(),
            limit: limit as u64,
        };
        let is_list = |kind: &QueryKind| matches!(kind, QueryKind::List(_) | QueryKind::Forward);
        if self.is_failing() {
            // The latest accounts are in memory, and GetInfo reports the failure; a single span may be on disk only.
            return match kind {
                QueryKind::List(request) if request.is_continued() => {
                    Err(store_unavailable(self.failure_reason()))
                }
                QueryKind::List(_) | QueryKind::Page => Ok(false),
                QueryKind::Span(_) | QueryKind::Forward => Err(store_unavailable(self.failure_reason())),
            };
        }
        let is_list_of_user =
            |pending: &&PendingQuery| is_list(&pending.kind) && pending.peer.uid == peer.uid;
        if is_list(&kind)
            && self.pending_queries.values().filter(is_list_of_user).count() >= MAX_LISTS_PER_USER
        {
            return Err(full(MAX_LISTS_PER_USER));
        }
        let number = self.next_query;
        if !self.store.submit_query(number, query) {
            // The limit, not the number of pending queries, which belong to other users.
            return Err(full(MAX_PENDING_QUERIES));
        }
        self.next_query += 1;
        self.pending_queries.insert(number, PendingQuery { reply_to, peer: *peer, kind, sent_ns: now_ns });
        Ok(true)
    }

    /// Completes every pending query without the store. A later answer of the store is dropped.
    pub(crate) fn complete_from_memory(
        &mut self,
        registry: &SpanRegistry,
        cursor_cipher: &CursorCipher,
        replies: &mut Vec<DeferredReply>,
    ) {
        let numbers: Vec<u64> = self.pending_queries.keys().copied().collect();
        let reason = self.failure_reason();
        for number in numbers {
            let outcome = QueryOutcome::Skipped(reason.clone());
            replies.extend(self.complete(number, outcome, registry, cursor_cipher));
        }
        self.sums.fail_all(&store_unavailable(reason), replies);
    }

    /// Begins a query for sums, with the number of open spans for its reply.
    ///
    /// # Errors
    /// `QuotaExceeded`: too many run. `StoreUnavailable`: the store fails.
    pub(crate) fn begin_sums(
        &mut self,
        caller: &Caller,
        query: SumQuery,
        open: u64,
        now_ns: u64,
    ) -> Result<(), MethodError> {
        if self.is_failing() {
            return Err(store_unavailable(self.failure_reason()));
        }
        let number = self.sums.insert(caller, &query, open, now_ns)?;
        self.store.begin_sums(number, query);
        Ok(())
    }

    /// Ends the queries and sums of a connection whose peer has less access now than at the call.
    pub(crate) fn apply_access(
        &mut self,
        connection: ConnectionId,
        peer: &Peer,
        replies: &mut Vec<DeferredReply>,
    ) {
        self.sums.apply_access(connection, peer, replies);
        self.pending_queries.retain(|_, pending| {
            // A page belongs to a stream, which ends with its connection.
            let is_page = matches!(pending.kind, QueryKind::Page);
            if is_page || pending.reply_to.connection != connection {
                return true;
            }
            let checked = access::check_not_reduced(peer, &pending.peer);
            let is_allowed = checked.is_ok();
            replies.extend(checked.err().map(|error| (pending.reply_to, Err(error))));
            is_allowed
        });
    }

    /// Ends the sums that are computed for a closed connection.
    pub(crate) fn cancel_sums(&mut self, connection: ConnectionId) {
        self.sums.cancel_connection(connection);
    }

    /// The reply to a query; `None` where the query has been completed before.
    fn complete(
        &mut self,
        number: u64,
        outcome: QueryOutcome,
        registry: &SpanRegistry,
        cursor_cipher: &CursorCipher,
    ) -> Option<DeferredReply> {
        let PendingQuery { reply_to, peer, kind, .. } = self.pending_queries.remove(&number)?;
        let encode_cursor = |store_number| cursor_cipher.encode(&peer, store_number);
        let result = match (kind, outcome) {
            (QueryKind::Span(span), QueryOutcome::Found(found)) => {
                let visible = found.accounts.into_iter().find(|account| is_visible_to(&peer, account));
                visible.map(Reply::account).ok_or(MethodError::NoSuchSpan { span })
            }
            (QueryKind::List(_), QueryOutcome::Found(QueryResult { mut accounts, before, .. })) => {
                accounts.retain(|account| is_visible_to(&peer, account));
                accounts.reverse();
                let before = before.map(encode_cursor);
                Ok(Reply::Accounts(SpanAccounts { before, ..SpanAccounts::of_accounts(accounts) }))
            }
            (QueryKind::Forward, QueryOutcome::Found(result)) => {
                Ok(Reply::Encoded(result.forward.map_or_else(Vec::new, |reply| reply.messages)))
            }
            (QueryKind::Page, outcome) => {
                let result = match outcome {
                    QueryOutcome::Found(result) => Ok(result.forward),
                    QueryOutcome::Failed(QueryError::Invalid { field, reason }) => {
                        Err(MethodError::InvalidValue { field: field.into(), reason })
                    }
                    QueryOutcome::Failed(_) | QueryOutcome::Skipped(_) => Ok(None),
                };
                self.account_pages.push(AccountPage { connection: reply_to.connection, result });
                return None;
            }
            (QueryKind::List(request), QueryOutcome::Skipped(reason)) if request.is_continued() => {
                Err(store_unavailable(reason))
            }
            (QueryKind::List(request), QueryOutcome::Skipped(reason)) => {
                let mark = |account: &Account, number| self.mark_durability(account, number);
                let remembered = request.remembered_accounts(&peer, registry, mark);
                refuse_empty(remembered, reason).map(Reply::Accounts)
            }
            (QueryKind::Span(_) | QueryKind::Forward, QueryOutcome::Skipped(reason)) => {
                Err(store_unavailable(reason))
            }
            (_, QueryOutcome::Failed(QueryError::Invalid { field, reason })) => {
                Err(MethodError::InvalidValue { field: field.into(), reason })
            }
            (_, QueryOutcome::Failed(QueryError::Damaged { reason, before })) => {
                Err(MethodError::StoreDamaged { reason, before: before.map(encode_cursor) })
            }
            (_, QueryOutcome::Failed(QueryError::Unavailable { reason })) => {
                Err(store_unavailable(Some(reason)))
            }
        };
        Some((reply_to, result))
    }

    /// Whether a page has been completed and not been taken.
    pub(crate) fn has_account_pages(&self) -> bool {
        !self.account_pages.is_empty()
    }

    /// Takes the pages that have been completed.
    pub(crate) fn take_account_pages(&mut self) -> Vec<AccountPage> {
        std::mem::take(&mut self.account_pages)
    }

    /// The number of accounts that were passed to the store since the start.
    pub(crate) fn last_store_number(&self) -> u64 {
        self.store.next_number() - 1
    }

    /// Notes that a span has opened or changed, so that the journal receives it. The registry has marked it as queued.
    pub(crate) fn add_to_journal(&mut self, key: SpanKey, now_ns: u64) {
        self.journal.add_changed(key, now_ns);
    }

    /// Writes accounts of open spans to the store's journal as far as they are due: in each call a bounded number.
    pub(crate) fn journal_open_spans(
        &mut self,
        now_ns: u64,
        attributor: &Attributor,
        registry: &mut SpanRegistry,
    ) {
        // The keys that enter the queue again: their rows were refused, or cannot be extended.
        let (has_room, mut again) = (self.store.has_room_for_journal(), Vec::new());
        let (store, clock) = (&mut self.store, &mut self.journal_clock);
        let mut write = |registry: &mut SpanRegistry, key: SpanKey, account: Account| {
            let account = as_interrupted(account, now_ns);
            let bases = attributor.share_bases(key);
            let is_written = store.write_journal(key.0, &account, bases.as_deref());
            if is_written {
                registry.set_journalled(account.uid, &account.span);
                clock.release(key);
            }
            // Its row cannot be extended before the change of weight has settled and each domain has passed the opening.
            let is_extendable = bases.is_some_and(|bases| bases.iter().all(|basis| basis.clock.is_some()));
            let is_done = is_written && is_extendable;
            if !is_done && registry.set_journal_queued(account.uid, &account.span, true) {
                again.push(key);
            }
        };
        let changed = self.journal.take_changed(now_ns, |key| attributor.has_span(key));
        // Those that wait for room keep their marks.
        let (now, later): (Vec<SpanKey>, Vec<SpanKey>) = changed.into_iter().partition(|_| has_room);
        for key in now {
            attributor.iter_spans(key.slot() as usize, 1, now_ns, u64::MAX, |found, account| {
                if found == key {
                    registry.set_journal_queued(account.uid, &account.span, false);
                    write(registry, key, account);
                }
            });
        }
        if let Some(range) = self.journal.refresh_range(now_ns) {
            let show = |key, account| write(registry, key, account);
            let next = attributor.iter_spans(range.slot, range.count, now_ns, range.opened_by_ns, show);
            self.journal.end_refresh(now_ns, next);
        }
        again.into_iter().chain(later).for_each(|key| self.journal.add_changed(key, now_ns));
        if self.journal_clock.is_due(now_ns) && attributor.is_busy() {
            let store = &mut self.store;
            self.journal_clock
                .record(now_ns, attributor.domain_clocks(), |record| store.write_journal_clocks(record));
        }
        self.store.flush();
    }

    /// The time of the next call of [`Self::journal_open_spans`], if the last one has left spans.
    pub(crate) fn journal_due_ns(&self, now_ns: u64) -> Option<u64> {
        self.journal.changed_due_ns(now_ns)
    }

    /// Notes that the weight of a span has changed, or that it has been closed, after the journal had received it.
    pub(crate) fn hold_in_journal(&mut self, key: SpanKey) {
        self.journal_clock.hold(key);
    }

    /// Frees memory that many open spans used.
    pub(crate) fn shrink(&mut self) {
        self.journal.shrink();
        self.journal_clock.shrink();
    }

    /// Deletes a cancelled span from the journal.
    pub(crate) fn remove_from_journal(&mut self, key: SpanKey) {
        self.journal_clock.release(key);
        self.store.delete_journal(key.0);
    }

    /// A copy of a remembered account with the state that its number in the store implies now.
    pub(crate) fn mark_durability(&self, account: &Account, store_number: Option<u64>) -> Account {
        let mut account = account.clone();
        match store_number {
            Some(number) if number <= self.store.committed() => {}
            Some(_) if !self.is_failing() => {
                (account.state, account.durable) = (SpanState::Provisional, None)
            }
            _ => account.durable = Some(false),
        }
        account
    }

    /// Estimated memory of the accounts that wait for the disk.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending_bytes + self.store.waiting_bytes()
    }

    /// The number of replies that wait for the store.
    pub(crate) fn waiting_replies(&self) -> usize {
        let waiting_for_commit = self.pending.iter().filter(|pending| pending.reply_to.is_some()).count();
        self.pending_queries.len() + self.sums.waiting() + waiting_for_commit
    }

    /// Removes the accounts that wait for their commit; returns those that a reply needs, as not durable.
    pub(crate) fn take_pending_accounts(&mut self) -> Vec<(ReplyTo, Account)> {
        let take = |pending: PendingAccount| Some((pending.reply_to?, as_not_durable(&pending.account)));
        self.pending_bytes = 0;
        self.pending.drain(..).filter_map(take).collect()
    }

    /// Accounts up to this number can be read from disk; 0 while the store fails.
    pub(crate) fn committed_number(&self) -> u64 {
        if self.is_failing() { 0 } else { self.store.committed() }
    }

    /// The energy of a domain in the settled and in the abandoned accounts that the store did not keep, µJ.
    pub(crate) fn not_kept_uj(&self, domain: &str) -> [u64; 2] {
        [0, 1].map(|state| self.not_kept[state].of(domain).unsigned_abs())
    }

    /// The store's state for GetInfo.
    pub(crate) fn status(&self, peer: &Peer) -> protocol::StoreStatus {
        let health = self.store.health();
        // The forecast reveals the rate of all users together.
        let forecast = health.forecast.filter(|_| peer.access >= Access::Span);
        protocol::StoreStatus {
            durable: health.durable && !self.is_stalled,
            reason: self.failure_reason(),
            bytes: health.bytes,
            waiting: health.waiting,
            not_kept: health.not_kept,
            keeps_s: forecast.map(|forecast| forecast.retention_s),
            limited_by: forecast
                .map(|forecast| if forecast.limited_by_size { "size" } else { "age" }.to_owned()),
            accounts_per_h: forecast.map(|forecast| forecast.accounts_per_h),
            bytes_per_account: forecast.map(|forecast| forecast.bytes_per_account),
            database: health.database.map(|database| database.to_string()),
        }
    }

    /// Stores open and unsettled spans as interrupted, and stops the store. The `withheld` accounts are final, and are withheld only
    /// until the next instant of the grid.
    pub(crate) fn shut_down(
        &mut self,
        now_ns: u64,
        withheld: Vec<(SpanKey, Account)>,
        attributor: &Attributor,
    ) {
        let store = &mut self.store;
        for (key, account) in withheld {
            store.append(&account, Some(key.0), false);
        }
        let mut next_slot = Some(0);
        while let Some(slot) = next_slot {
            next_slot = attributor.iter_spans(slot, usize::MAX, now_ns, u64::MAX, |key, account| {
                store.append(&as_interrupted(account, now_ns), Some(key.0), false);
            });
        }
        store.shutdown(SHUTDOWN_TIMEOUT);
    }
}

fn store_unavailable(reason: Option<String>) -> MethodError {
    MethodError::StoreUnavailable {
        reason: reason.unwrap_or_else(|| "the disk does not respond; try again".into()),
    }
}

/// The list, unless it is empty: of a store that was not read, that would mean that there is no account.
fn refuse_empty(accounts: SpanAccounts, reason: Option<String>) -> Result<SpanAccounts, MethodError> {
    if accounts.accounts.is_empty() { Err(store_unavailable(reason)) } else { Ok(accounts) }
}

fn as_not_durable(account: &Account) -> Account {
    Account { durable: Some(false), ..account.clone() }
}

/// The account of a span that ends now, or has ended, without being settled.
fn as_interrupted(mut account: Account, now_ns: u64) -> Account {
    account.state = SpanState::Interrupted;
    account.closed_ns.get_or_insert(now_ns.max(account.opened_ns));
    account
}
