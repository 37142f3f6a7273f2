//! What the service does so that an account once answered is kept.
//!
//! Owns the accounts that are final and not yet on disk, and the questions that the disk is asked. Invariant: a final
//! account is shown as final only once it is on disk, or with `durable` false where the disk fails; until then it is
//! provisional. Never waits for the disk. Without a store nothing is kept, and an account is final when it settles.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::access::Peer;
use super::reply_to::ReplyTo;
use super::service::{FinalAccount, Service};
use super::stored_queries::PendingQuery;
use crate::attribution::account::{Account, SpanState};
use crate::attribution::footprint;
use crate::protocol;
use crate::store::Store;

/// A disk that takes longer than this over a commit or an answer fails, as far as those are concerned who wait for it.
const STORE_TIMEOUT_NS: u64 = 2_000_000_000;

/// More than so many bytes of accounts that wait for their commit: the disk does not keep up.
const MAX_PENDING_BYTES: usize = 8 << 20;

/// Spans that are open for longer are journalled, each about once in this time.
const JOURNAL_PERIOD_NS: u64 = 1_000_000_000;

/// How many of the attributor's slots the journal looks at before it looks at the time, how long one step takes, and how long
/// it is to the next: large spans are journalled less often, so that nobody waits for them.
const JOURNAL_STEP_SLOTS: usize = 4;
const JOURNAL_STEP_BUDGET_NS: u64 = 200_000;
const JOURNAL_PAUSE_NS: u64 = 5_000_000;

/// How long the end of the daemon waits for the disk.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// The store, and who waits for it.
pub(crate) struct Durability {
    pub(crate) store: Store,
    log: fn(&str),
    pending: VecDeque<PendingAccount>,
    /// Memory of the accounts in `pending`, by estimate.
    pending_bytes: usize,
    /// By number, so the oldest first.
    pub(crate) pending_queries: BTreeMap<u64, PendingQuery>,
    pub(crate) next_query: u64,
    journal_due_ns: u64,
    journal_slot: usize,
    /// When the disk gave something last, and up to which number it had committed then.
    last_progress_ns: u64,
    committed: u64,
    /// It does not answer.
    is_stalled: bool,
}

struct PendingAccount {
    store_number: u64,
    account: Arc<Account>,
    bytes: usize,
    reply_to: Option<ReplyTo>,
    queued_ns: u64,
}

impl Durability {
    pub(crate) fn is_failing(&self) -> bool {
        self.store.is_failing() || self.is_stalled
    }

    /// Why nothing can be written, or what may be lost.
    pub(crate) fn failure_reason(&self) -> Option<String> {
        let health = self.store.health();
        let silent = self.is_stalled && health.reason.as_ref().is_none_or(|_| health.durable);
        if silent { Some("the disk of the ledger does not answer".into()) } else { health.reason }
    }

    /// Since when the oldest waits in vain: for its commit; or for an answer, where the disk gave nothing meanwhile, since
    /// many questions may be before it.
    fn oldest_wait_ns(&self) -> Option<u64> {
        let pending = self.pending.front().map(|first| first.queued_ns);
        let query =
            self.pending_queries.values().next().map(|first| first.sent_ns.max(self.last_progress_ns));
        pending.into_iter().chain(query).min()
    }

    /// Looks whether the disk answers; `answered`: it has just answered a question.
    fn detect_stall(&mut self, now_ns: u64, answered: bool) {
        let committed = self.store.committed();
        if answered || committed > self.committed {
            (self.last_progress_ns, self.committed) = (now_ns, committed);
            if std::mem::take(&mut self.is_stalled) && !self.store.is_failing() {
                (self.log)("the disk of the ledger answers again");
            }
        }
        let waits_ns = self.oldest_wait_ns().map_or(0, |since_ns| now_ns.saturating_sub(since_ns));
        let slow = waits_ns > STORE_TIMEOUT_NS || self.pending_bytes > MAX_PENDING_BYTES;
        if slow && !self.is_stalled && !self.store.is_failing() {
            self.is_stalled = true;
            (self.log)(
                "the disk of the ledger does not answer; accounts are answered, marked as not durable",
            );
        }
    }
}

impl Service {
    /// Keeps every final account in this store from now on; `log` is told when the disk stops to answer.
    pub fn set_store(&mut self, store: Store, log: fn(&str)) {
        self.durability = Some(Durability {
            store,
            log,
            pending: VecDeque::new(),
            pending_bytes: 0,
            pending_queries: BTreeMap::new(),
            next_query: 0,
            journal_due_ns: self.clock.now_ns() + JOURNAL_PERIOD_NS,
            journal_slot: 0,
            last_progress_ns: 0,
            committed: 0,
            is_stalled: false,
        });
    }

    /// Is called, on another thread, when [`Service::poll`] would have something to give: see [`Service::has_store_events`].
    pub fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        if let Some(durability) = &self.durability {
            durability.store.set_waker(waker);
        }
    }

    /// Whether the disk has given something since the last pump.
    pub fn has_store_events(&self) -> bool {
        self.durability.as_ref().is_some_and(|durability| durability.store.has_updates())
    }

    /// Whether somebody watches the final accounts.
    pub fn set_span_watchers(&mut self, listened: bool) {
        self.has_span_watchers = listened;
    }

    /// An account is final: on to the disk with it, where there is one, and else to whom it concerns.
    pub(crate) fn finalize_span(&mut self, mut account: Account, now_ns: u64) {
        let Some(durability) = &mut self.durability else {
            let account = Arc::new(account);
            let reply_to = self.registry.settle(&account, None).reply_to;
            if reply_to.is_some() || self.has_span_watchers {
                self.final_accounts.push(FinalAccount { account, reply_to });
            }
            return;
        };
        // Shown to nobody before it is so.
        account.durable = Some(true);
        let account = Arc::new(account);
        let number = durability.store.next_number();
        let settled_span = self.registry.settle(&account, Some(number));
        let (reply_to, wanted) =
            (settled_span.reply_to, settled_span.reply_to.is_some() || self.has_span_watchers);
        if !durability.store.append(&account, settled_span.journal_key.map(|key| key.0), wanted) {
            self.registry.clear_store_number(&account);
            if wanted {
                self.final_accounts
                    .push(FinalAccount { account: Arc::new(as_not_durable(&account)), reply_to });
            }
        } else if wanted {
            let bytes = footprint::account_bytes(&account);
            durability.pending_bytes += bytes;
            durability.pending.push_back(PendingAccount {
                store_number: number,
                account,
                bytes,
                reply_to,
                queued_ns: now_ns,
            });
        }
    }

    /// Hands over to the disk, takes what it has done, and notes how far the open spans have come.
    pub(crate) fn poll_store(&mut self, now_ns: u64) {
        let answers =
            self.durability.as_ref().map_or(Vec::new(), |durability| durability.store.take_query_results());
        let answered = !answers.is_empty();
        answers.into_iter().for_each(|(number, found)| self.complete_query(number, found.into()));
        let Some(durability) = &mut self.durability else { return };
        durability.store.flush();
        durability.detect_stall(now_ns, answered);
        let (failing, committed) = (durability.is_failing(), durability.store.committed());
        while let Some(first) = durability.pending.front() {
            let is_committed = first.store_number <= committed;
            if !is_committed && !failing {
                break;
            }
            let Some(PendingAccount { account, bytes, reply_to, .. }) = durability.pending.pop_front() else {
                break;
            };
            durability.pending_bytes -= bytes;
            let account = if is_committed { account } else { Arc::new(as_not_durable(&account)) };
            self.final_accounts.push(FinalAccount { account, reply_to });
        }
        if failing {
            self.answer_from_memory();
        }
        self.journal_open_spans(now_ns);
    }

    /// Memory of accounts that wait for the disk, by estimate.
    pub(crate) fn pending_store_bytes(&self) -> usize {
        self.durability
            .as_ref()
            .map_or(0, |durability| durability.pending_bytes + durability.store.waiting_bytes())
    }

    /// When the disk will have been silent for too long, if somebody waits for it.
    pub(crate) fn store_timeout_at_ns(&self) -> Option<u64> {
        self.durability.as_ref()?.oldest_wait_ns().map(|since_ns| since_ns + STORE_TIMEOUT_NS + 1)
    }

    fn journal_open_spans(&mut self, now_ns: u64) {
        let Self { durability: Some(durability), attributor, registry, clock, .. } = self else {
            return;
        };
        if now_ns < durability.journal_due_ns {
            return;
        }
        let mut journalled = Vec::new();
        let opened_by_ns = now_ns.saturating_sub(JOURNAL_PERIOD_NS);
        let store = &mut durability.store;
        let end_ns = now_ns + JOURNAL_STEP_BUDGET_NS;
        let mut next = Some(durability.journal_slot);
        while let Some(slot) = next {
            next = attributor.iter_spans(slot, JOURNAL_STEP_SLOTS, now_ns, opened_by_ns, |key, account| {
                let account = as_interrupted(account, now_ns);
                if store.write_journal(key.0, &account) {
                    journalled.push((account.uid, account.span));
                }
            });
            if clock.now_ns() >= end_ns {
                break;
            }
        }
        durability.store.flush();
        durability.journal_slot = next.unwrap_or(0);
        durability.journal_due_ns =
            now_ns + if next.is_some() { JOURNAL_PAUSE_NS } else { JOURNAL_PERIOD_NS };
        journalled.iter().for_each(|(uid, span)| registry.set_journalled(*uid, span));
    }

    /// The journal forgets a cancelled span.
    pub(crate) fn remove_from_journal(&mut self, key: Option<crate::attribution::SpanKey>) {
        if let (Some(durability), Some(key)) = (&mut self.durability, key) {
            durability.store.delete_journal(key.0);
        }
    }

    /// A remembered account as it may be shown now.
    pub(crate) fn with_durability(&self, account: &Account, store_number: Option<u64>) -> Account {
        let mut account = account.clone();
        let Some(durability) = &self.durability else { return account };
        match store_number {
            Some(number) if number <= durability.store.committed() => {}
            Some(_) if !durability.is_failing() => {
                (account.state, account.durable) = (SpanState::Provisional, None)
            }
            _ => account.durable = Some(false),
        }
        account
    }

    /// The answers of the disk that have come, each as it goes over the wire.
    pub fn take_store_replies(&mut self) -> Vec<(ReplyTo, Vec<u8>)> {
        std::mem::take(&mut self.store_replies)
    }

    /// How many wait for the disk.
    pub(crate) fn waiting_for_store(&self) -> usize {
        let count_waiting = |durability: &Durability| {
            durability.pending_queries.len()
                + durability.pending.iter().filter(|pending| pending.reply_to.is_some()).count()
        };
        self.durability.as_ref().map_or(0, count_waiting)
    }

    /// The final accounts of all who wait for the disk; they wait no longer.
    pub(crate) fn take_pending_accounts(&mut self) -> Vec<(ReplyTo, Account)> {
        let Some(durability) = &mut self.durability else { return Vec::new() };
        let take = |pending: PendingAccount| Some((pending.reply_to?, as_not_durable(&pending.account)));
        durability.pending_bytes = 0;
        durability.pending.drain(..).filter_map(take).collect()
    }

    /// Accounts up to this number are on disk and can be read there; 0 where none can.
    pub(crate) fn committed_number(&self) -> u64 {
        let readable = self.durability.as_ref().filter(|durability| !durability.is_failing());
        readable.map_or(0, |durability| durability.store.committed())
    }

    /// How the ledger on disk is, if there is one.
    pub(crate) fn durability_status(&self, peer: &Peer) -> Option<protocol::StoreStatus> {
        let durability = self.durability.as_ref()?;
        let health = durability.store.health();
        // The rate of all users together is for those who see the host's totals.
        let outlook = health.forecast.filter(|_| peer.access >= protocol::Access::Span);
        Some(protocol::StoreStatus {
            durable: health.durable && !durability.is_stalled,
            reason: durability.failure_reason(),
            bytes: health.bytes,
            waiting: health.waiting,
            not_kept: health.not_kept,
            keeps_s: outlook.map(|outlook| outlook.retention_s),
            limited_by: outlook
                .map(|outlook| if outlook.limited_by_size { "size" } else { "age" }.to_owned()),
            accounts_per_h: outlook.map(|outlook| outlook.accounts_per_h),
            bytes_per_account: outlook.map(|outlook| outlook.bytes_per_account),
        })
    }

    /// The end: what is open or not settled is kept as interrupted, with what is known.
    pub fn shut_down(&mut self) {
        let now_ns = self.clock.now_ns();
        let Self { durability: Some(durability), attributor, coarse_spans, .. } = self else {
            return;
        };
        let store = &mut durability.store;
        // Final, and held back only until the grid's next instant.
        for (key, account) in coarse_spans.release(u64::MAX) {
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

fn as_not_durable(account: &Account) -> Account {
    Account { durable: Some(false), ..account.clone() }
}

/// The account so far, as it stands if nothing more comes: its figures go to its end, or to now.
fn as_interrupted(mut account: Account, now_ns: u64) -> Account {
    account.state = SpanState::Interrupted;
    account.closed_ns.get_or_insert(now_ns.max(account.opened_ns));
    account
}
