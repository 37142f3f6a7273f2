//! What the service does so that an account once answered is kept.
//!
//! Owns the accounts that are final and not yet on disk, and the questions that the disk is asked. Invariant: a final
//! account is shown as final only once it is on disk, or with `durable` false where the disk fails; until then it is
//! provisional. Never waits for the disk. Without a store nothing is kept, and an account is final when it settles.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::access::Peer;
use super::history::Asked;
use super::service::{Final, Service};
use super::ticket::Ticket;
use crate::attribution::account::{Account, State};
use crate::attribution::footprint;
use crate::protocol;
use crate::store::Store;

/// A disk that takes longer than this over a commit or an answer fails, as far as those are concerned who wait for it.
const PATIENCE_NS: u64 = 2_000_000_000;

/// More than so many bytes of accounts that wait for their commit: the disk does not keep up.
const MOST_PENDING_BYTES: usize = 8 << 20;

/// Spans that are open for longer are journalled, each about once in this time.
const JOURNAL_NS: u64 = 1_000_000_000;

/// How many of the ledger's slots the journal looks at before it looks at the time, how long one step takes, and how long
/// it is to the next: large spans are journalled less often, so that nobody waits for them.
const JOURNAL_SLOTS: usize = 4;
const JOURNAL_STEP_NS: u64 = 200_000;
const JOURNAL_PAUSE_NS: u64 = 5_000_000;

/// How long the end of the daemon waits for the disk.
const FAREWELL: Duration = Duration::from_secs(2);

/// The store, and who waits for it.
pub(crate) struct Keeping {
    pub(crate) store: Store,
    tell: fn(&str),
    pending: VecDeque<Pending>,
    /// Memory of the accounts in `pending`, by estimate.
    pending_bytes: usize,
    /// By number, so the oldest first.
    pub(crate) asked: BTreeMap<u64, Asked>,
    pub(crate) questions: u64,
    journal_at_ns: u64,
    journal_slot: usize,
    /// When the disk gave something last, and up to which number it had committed then.
    heard_ns: u64,
    committed: u64,
    /// It does not answer.
    stalled: bool,
}

struct Pending {
    number: u64,
    account: Arc<Account>,
    bytes: usize,
    ticket: Option<Ticket>,
    since_ns: u64,
}

impl Keeping {
    pub(crate) fn is_failing(&self) -> bool {
        self.store.is_failing() || self.stalled
    }

    /// Why nothing can be written, or what may be lost.
    pub(crate) fn reason(&self) -> Option<String> {
        let health = self.store.health();
        let silent = self.stalled && health.reason.as_ref().is_none_or(|_| health.durable);
        if silent { Some("the disk of the ledger does not answer".into()) } else { health.reason }
    }

    /// Since when the oldest waits in vain: for its commit; or for an answer, where the disk gave nothing meanwhile, since
    /// many questions may be before it.
    fn waits_since_ns(&self) -> Option<u64> {
        let pending = self.pending.front().map(|first| first.since_ns);
        let asked = self.asked.values().next().map(|first| first.since_ns.max(self.heard_ns));
        pending.into_iter().chain(asked).min()
    }

    /// Looks whether the disk answers; `answered`: it has just answered a question.
    fn watch(&mut self, now_ns: u64, answered: bool) {
        let committed = self.store.committed();
        if answered || committed > self.committed {
            (self.heard_ns, self.committed) = (now_ns, committed);
            if std::mem::take(&mut self.stalled) && !self.store.is_failing() {
                (self.tell)("the disk of the ledger answers again");
            }
        }
        let waits_ns = self.waits_since_ns().map_or(0, |since_ns| now_ns.saturating_sub(since_ns));
        let slow = waits_ns > PATIENCE_NS || self.pending_bytes > MOST_PENDING_BYTES;
        if slow && !self.stalled && !self.store.is_failing() {
            self.stalled = true;
            (self.tell)(
                "the disk of the ledger does not answer; accounts are answered, marked as not durable",
            );
        }
    }
}

impl Service {
    /// Keeps every final account in this store from now on; `tell` is told when the disk stops to answer.
    pub fn keep(&mut self, store: Store, tell: fn(&str)) {
        self.keeping = Some(Keeping {
            store,
            tell,
            pending: VecDeque::new(),
            pending_bytes: 0,
            asked: BTreeMap::new(),
            questions: 0,
            journal_at_ns: self.clock.now_ns() + JOURNAL_NS,
            journal_slot: 0,
            heard_ns: 0,
            committed: 0,
            stalled: false,
        });
    }

    /// Is called, on another thread, when [`Service::pump`] would have something to give: see [`Service::has_news`].
    pub fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        if let Some(keeping) = &self.keeping {
            keeping.store.set_waker(waker);
        }
    }

    /// Whether the disk has given something since the last pump.
    pub fn has_news(&self) -> bool {
        self.keeping.as_ref().is_some_and(|keeping| keeping.store.has_updates())
    }

    /// Whether somebody watches the final accounts.
    pub fn set_listened(&mut self, listened: bool) {
        self.listened = listened;
    }

    /// An account is final: on to the disk with it, where there is one, and else to whom it concerns.
    pub(crate) fn finish_span(&mut self, mut account: Account, now_ns: u64) {
        let Some(keeping) = &mut self.keeping else {
            let account = Arc::new(account);
            let ticket = self.register.settle(&account, None).ticket;
            if ticket.is_some() || self.listened {
                self.finals.push(Final { account, ticket });
            }
            return;
        };
        // Shown to nobody before it is so.
        account.durable = Some(true);
        let account = Arc::new(account);
        let number = keeping.store.next_number();
        let left = self.register.settle(&account, Some(number));
        let (ticket, wanted) = (left.ticket, left.ticket.is_some() || self.listened);
        if !keeping.store.append(&account, left.journalled.map(|key| key.0), wanted) {
            self.register.note_not_kept(&account);
            if wanted {
                self.finals.push(Final { account: Arc::new(not_durable(&account)), ticket });
            }
        } else if wanted {
            let bytes = footprint::account(&account);
            keeping.pending_bytes += bytes;
            keeping.pending.push_back(Pending { number, account, bytes, ticket, since_ns: now_ns });
        }
    }

    /// Hands over to the disk, takes what it has done, and notes how far the open spans have come.
    pub(crate) fn attend_to_disk(&mut self, now_ns: u64) {
        let answers = self.keeping.as_ref().map_or(Vec::new(), |keeping| keeping.store.take_query_results());
        let answered = !answers.is_empty();
        answers.into_iter().for_each(|(number, found)| self.answer(number, found.into()));
        let Some(keeping) = &mut self.keeping else { return };
        keeping.store.flush();
        keeping.watch(now_ns, answered);
        let (failing, committed) = (keeping.is_failing(), keeping.store.committed());
        while let Some(first) = keeping.pending.front() {
            let kept = first.number <= committed;
            if !kept && !failing {
                break;
            }
            let Some(Pending { account, bytes, ticket, .. }) = keeping.pending.pop_front() else { break };
            keeping.pending_bytes -= bytes;
            let account = if kept { account } else { Arc::new(not_durable(&account)) };
            self.finals.push(Final { account, ticket });
        }
        if failing {
            self.answer_without_disk();
        }
        self.journal(now_ns);
    }

    /// Memory of accounts that wait for the disk, by estimate.
    pub(crate) fn bytes_for_disk(&self) -> usize {
        self.keeping.as_ref().map_or(0, |keeping| keeping.pending_bytes + keeping.store.waiting_bytes())
    }

    /// When the disk will have been silent for too long, if somebody waits for it.
    pub(crate) fn disk_due_ns(&self) -> Option<u64> {
        self.keeping.as_ref()?.waits_since_ns().map(|since_ns| since_ns + PATIENCE_NS + 1)
    }

    fn journal(&mut self, now_ns: u64) {
        let Self { keeping: Some(keeping), ledger, register, clock, .. } = self else { return };
        if now_ns < keeping.journal_at_ns {
            return;
        }
        let mut noted = Vec::new();
        let opened_by_ns = now_ns.saturating_sub(JOURNAL_NS);
        let store = &mut keeping.store;
        let end_ns = now_ns + JOURNAL_STEP_NS;
        let mut next = Some(keeping.journal_slot);
        while let Some(slot) = next {
            next = ledger.survey(slot, JOURNAL_SLOTS, now_ns, opened_by_ns, |key, account| {
                let account = interrupted(account, now_ns);
                if store.write_journal(key.0, &account) {
                    noted.push((account.uid, account.span));
                }
            });
            if clock.now_ns() >= end_ns {
                break;
            }
        }
        keeping.store.flush();
        keeping.journal_slot = next.unwrap_or(0);
        keeping.journal_at_ns = now_ns + if next.is_some() { JOURNAL_PAUSE_NS } else { JOURNAL_NS };
        noted.iter().for_each(|(uid, span)| register.note_journalled(*uid, span));
    }

    /// The journal forgets a cancelled span.
    pub(crate) fn unjournal(&mut self, key: Option<crate::attribution::SpanKey>) {
        if let (Some(keeping), Some(key)) = (&mut self.keeping, key) {
            keeping.store.delete_journal(key.0);
        }
    }

    /// A remembered account as it may be shown now.
    pub(crate) fn shown(&self, account: &Account, kept: Option<u64>) -> Account {
        let mut account = account.clone();
        let Some(keeping) = &self.keeping else { return account };
        match kept {
            Some(number) if number <= keeping.store.committed() => {}
            Some(_) if !keeping.is_failing() => (account.state, account.durable) = (State::Provisional, None),
            _ => account.durable = Some(false),
        }
        account
    }

    /// The answers of the disk that have come, each as it goes over the wire.
    pub fn take_replies(&mut self) -> Vec<(Ticket, Vec<u8>)> {
        std::mem::take(&mut self.replies)
    }

    /// How many wait for the disk.
    pub(crate) fn waiting_for_disk(&self) -> usize {
        let tickets = |keeping: &Keeping| {
            keeping.asked.len() + keeping.pending.iter().filter(|pending| pending.ticket.is_some()).count()
        };
        self.keeping.as_ref().map_or(0, tickets)
    }

    /// The final accounts of all who wait for the disk; they wait no longer.
    pub(crate) fn give_up_disk(&mut self) -> Vec<(Ticket, Account)> {
        let Some(keeping) = &mut self.keeping else { return Vec::new() };
        let given_up = |pending: Pending| Some((pending.ticket?, not_durable(&pending.account)));
        keeping.pending_bytes = 0;
        keeping.pending.drain(..).filter_map(given_up).collect()
    }

    /// Accounts up to this number are on disk and can be read there; 0 where none can.
    pub(crate) fn committed(&self) -> u64 {
        let readable = self.keeping.as_ref().filter(|keeping| !keeping.is_failing());
        readable.map_or(0, |keeping| keeping.store.committed())
    }

    /// How the ledger on disk is, if there is one.
    pub(crate) fn keeping(&self, peer: &Peer) -> Option<protocol::Keeping> {
        let keeping = self.keeping.as_ref()?;
        let health = keeping.store.health();
        // The rate of all users together is for those who see the host's totals.
        let outlook = health.forecast.filter(|_| peer.access >= protocol::Access::Span);
        Some(protocol::Keeping {
            durable: health.durable && !keeping.stalled,
            reason: keeping.reason(),
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
    pub fn end(&mut self) {
        let now_ns = self.clock.now_ns();
        let Self { keeping: Some(keeping), ledger, coarse, .. } = self else { return };
        let store = &mut keeping.store;
        // Final, and held back only until the grid's next instant.
        for (key, account) in coarse.release(u64::MAX) {
            store.append(&account, Some(key.0), false);
        }
        let mut from = Some(0);
        while let Some(slot) = from {
            from = ledger.survey(slot, usize::MAX, now_ns, u64::MAX, |key, account| {
                store.append(&interrupted(account, now_ns), Some(key.0), false);
            });
        }
        store.shutdown(FAREWELL);
    }
}

fn not_durable(account: &Account) -> Account {
    Account { durable: Some(false), ..account.clone() }
}

/// The account so far, as it stands if nothing more comes: its figures go to its end, or to now.
fn interrupted(mut account: Account, now_ns: u64) -> Account {
    account.state = State::Interrupted;
    account.closed_ns.get_or_insert(now_ns.max(account.opened_ns));
    account
}
