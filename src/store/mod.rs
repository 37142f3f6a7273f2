//! The store: final accounts on disk.
//!
//! ```text
//! service ─► batch ─► writer thread ─► database
//! never waits  packed   many to a commit  SQLite
//!   └─────► query ──► query thread ───────┘
//!                       in turns, read transactions
//! ```
//!
//! One thread writes, one runs queries, and each sum of accounts has one of its own; no caller waits for them. An appended
//! account gets a sequence number, and is on disk once `Store::committed` has reached that number. If the disk is full,
//! read-only, broken or slow, the store reports that it is failing, retries, and writes the waiting accounts later. Its
//! memory is bounded: an account that finds no room is refused and never reported as durable.

mod account_index;
mod account_json;
mod account_read;
mod account_record;
mod account_sums;
mod account_table;
mod batch;
mod checksum;
mod database;
mod database_identity;
mod filter_build;
mod forecast;
mod forward_scan;
#[doc(hidden)]
pub mod fuzz_entry;
mod group_build;
mod high_water_mark;
mod journal_clock;
mod key_hash;
mod log_sync;
mod migration;
mod position_cipher;
mod query;
mod query_thread;
mod read_access;
mod read_view;
mod retention;
mod retention_state;
mod schema;
mod segment_filter;
mod segment_sums;
mod settings;
mod shared;
mod state_dir;
mod sum_blocks;
mod sum_query;
mod sum_scan;
mod sum_threads;
mod summed_account;
mod time;
mod unconfirmed_write;
mod user_groups;
mod user_walk;
mod writer_thread;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

pub use account_read::Filter;
pub use account_sums::SumField;
pub use database_identity::DatabaseId;
pub use forecast::{RetentionForecast, describe_retention};
pub use forward_scan::{ForwardQuery, ForwardReply, ReplyForm};
pub use journal_clock::{ClockRecord, ClockTick};
pub use position_cipher::PositionCipher;
pub use query::{QueryError, QueryResult, StoreQuery};
pub use settings::{StoreSettings, SyncMode};
pub use shared::Health;
pub use sum_query::SumQuery;
pub use sum_scan::SumResult;
pub use sum_threads::MAX_RUNNING_SUMS;

use wattspan_client::account::Account;

use crate::attribution::ShareBasis;
use crate::clock::Clock;
use batch::{Batch, LayoutCache, WriteOp};
use query_thread::{NumberedResult, QueryThread, SubmittedQuery};
use read_access::ReadAccess;
use shared::{StoreShared, WorkSender, work_queue};
use sum_threads::{NumberedSumResult, SumThreads};
use writer_thread::{Readers, WriterThread};

/// The maximum number of queries that wait for a result.
pub const MAX_PENDING_QUERIES: usize = 32_768;

/// The service's handle of the store.
pub struct Store {
    shared: Arc<StoreShared>,
    settings: StoreSettings,
    layouts: LayoutCache,
    batch: Batch,
    last_number: u64,
    not_kept: u64,
    results: Receiver<NumberedResult>,
    sum_results: Receiver<NumberedSumResult>,
    /// `None` after the shutdown.
    senders: Option<StoreSenders>,
    /// The thread that ends last. `None` after the shutdown, and where a test takes the steps of the threads.
    writer: Option<RunningWriter>,
}

/// The ways to the store's threads. Dropping them requests their end.
struct StoreSenders {
    work: WorkSender,
    queries: Sender<SubmittedQuery>,
}

struct RunningWriter {
    handle: JoinHandle<()>,
    /// A channel that closes when the writer ends.
    ended: Receiver<Infallible>,
}

/// What the store's threads run.
struct StoreWork {
    writer: WriterThread,
    queries: QueryThread,
    /// Dropped when the thread for queries ends.
    queries_alive: Sender<Infallible>,
}

impl Store {
    /// Starts the store's threads; `log` is called at each change of state. A directory that cannot be used is such a
    /// state, not an error: the writer retries.
    ///
    /// # Errors
    /// A thread cannot be created.
    pub fn start(settings: StoreSettings, log: fn(&str)) -> io::Result<Self> {
        let (mut store, StoreWork { writer, queries, queries_alive }) =
            Self::prepare(settings, Clock::Machine, log);
        thread::Builder::new().name("store-queries".into()).spawn(move || {
            let _alive = queries_alive;
            queries.run();
        })?;
        let (alive, ended) = bounded(0);
        let handle = thread::Builder::new().name("store".into()).spawn(move || {
            // Dropped when the thread ends, after the files are closed, and also by a panic.
            let _alive = alive;
            writer.run();
        })?;
        store.writer = Some(RunningWriter { handle, ended });
        Ok(store)
    }

    /// A store and what its threads run.
    fn prepare(settings: StoreSettings, clock: Clock, log: fn(&str)) -> (Self, StoreWork) {
        let (shared, access) = (Arc::new(StoreShared::default()), Arc::new(ReadAccess::default()));
        let (result_sender, results) = unbounded();
        // Unbounded: `submit_query` limits the number. A bounded channel of so many queries allocates 4 MB in advance.
        let (query_sender, submitted) = unbounded();
        let (queries_alive, queries_ended) = bounded(0);
        let queries = QueryThread {
            access: Arc::clone(&access),
            shared: Arc::clone(&shared),
            queries: submitted,
            results: result_sender,
            directory: settings.directory.clone(),
            log,
            running: VecDeque::new(),
        };
        let (work, receiver) = work_queue();
        let (sum_sender, sum_results) = unbounded();
        let sums = SumThreads::new(Arc::clone(&shared), Arc::clone(&access), sum_sender);
        let readers = Readers { access, queries_ended, sums };
        let writer = WriterThread::new(Arc::clone(&shared), receiver, readers, settings.clone(), clock, log);
        let store = Self {
            shared,
            settings,
            layouts: LayoutCache::default(),
            batch: Batch::default(),
            last_number: 0,
            not_kept: 0,
            results,
            sum_results,
            senders: Some(StoreSenders { work, queries: query_sender }),
            writer: None,
        };
        (store, StoreWork { writer, queries, queries_alive })
    }

    /// Sets a function that the store's thread calls after an urgent commit or a query result: see
    /// [`Store::has_updates`].
    pub fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        // Fails only if it is set already; there is one service.
        let _ = self.shared.waker.set(Box::new(waker));
    }

    /// The sequence number that the next account will get.
    pub fn next_number(&self) -> u64 {
        self.last_number + 1
    }

    /// Adds a final account to the batch of the next [`Store::flush`], and deletes the journal entry `journal_key`.
    /// `urgent`: a caller waits for the commit. Returns false if there is no room: the account will not be stored.
    pub fn append(&mut self, account: &Account, journal_key: Option<u64>, urgent: bool) -> bool {
        if !self.has_room() {
            self.not_kept += 1;
            // A row that stayed would be extended by the clocks of later records, although the span has ended.
            journal_key.into_iter().for_each(|key| self.delete_journal(key));
            return false;
        }
        let row = self.batch.pack(account, &mut self.layouts);
        self.last_number += 1;
        self.batch.last_number = self.last_number;
        self.batch.urgent |= urgent;
        self.batch.ops.push(WriteOp::InsertAccount { row, journal_key });
        true
    }

    /// Stores the current state of an open span in the journal under its key; returns false if it was refused. With `bases`
    /// it is extended to the clocks of the last [`Self::write_journal_clocks`].
    pub fn write_journal(&mut self, key: u64, account: &Account, bases: Option<&[ShareBasis]>) -> bool {
        if !self.has_room_for_journal() {
            return false;
        }
        let row = self.batch.pack_journal(account, bases, &mut self.layouts);
        self.batch.ops.push(WriteOp::UpsertJournal { key, row });
        true
    }

    /// Replaces the journal's record of the clocks; returns false if it was refused.
    pub fn write_journal_clocks(&mut self, record: &ClockRecord<'_>) -> bool {
        if !self.has_room_for_journal() {
            return false;
        }
        let bytes = self.batch.pack_clocks(record);
        self.batch.ops.push(WriteOp::SetJournalClocks { bytes });
        true
    }

    /// Whether the journal's rows are taken: they are dropped before accounts.
    pub fn has_room_for_journal(&self) -> bool {
        !self.shared.is_failing() && self.waiting_bytes() <= self.settings.max_waiting_bytes / 4
    }

    /// Deletes the journal entry of a span.
    pub fn delete_journal(&mut self, key: u64) {
        self.batch.ops.push(WriteOp::DeleteJournal { key });
    }

    /// Passes the batch to the store's thread; cheap if the batch is empty.
    pub fn flush(&mut self) {
        let Some(senders) = self.senders.as_ref().filter(|_| !self.batch.is_empty()) else { return };
        let mut batch = std::mem::take(&mut self.batch);
        batch.last_number = self.last_number;
        self.shared.add_waiting_bytes(batch.memory_bytes());
        senders.work.push_batch(batch);
    }

    /// Submits a query; its result carries the same `number`. The query sees every account appended before it. Returns
    /// false if too many queries wait.
    pub fn submit_query(&mut self, number: u64, query: StoreQuery) -> bool {
        self.flush();
        let Some(senders) = &self.senders else { return false };
        let appended = self.last_number;
        if self.committed() < appended {
            senders.work.request_commit();
        }
        let submitted = SubmittedQuery { number, query, appended };
        senders.queries.len() < MAX_PENDING_QUERIES && senders.queries.send(submitted).is_ok()
    }

    /// Begins a query for sums, whose result carries the same `number`. It sees every account appended before it. The caller limits
    /// the number of queries to [`MAX_RUNNING_SUMS`].
    pub fn begin_sums(&mut self, number: u64, query: SumQuery) {
        self.batch.sums.push((number, query));
        self.batch.urgent = true;
        self.flush();
    }

    /// Takes the results of finished queries for sums, each with its number. To be called after [`Store::take_query_results`],
    /// which clears [`Store::has_updates`].
    pub fn take_sum_results(&self) -> Vec<(u64, Result<SumResult, QueryError>)> {
        self.sum_results.try_iter().collect()
    }

    /// The last sequence number on disk: every account up to it is stored.
    pub fn committed(&self) -> u64 {
        self.shared.committed()
    }

    /// Whether writes fail at present.
    pub fn is_failing(&self) -> bool {
        self.shared.is_failing()
    }

    /// Whether there was a commit or a result since the last [`Store::take_query_results`].
    pub fn has_updates(&self) -> bool {
        self.shared.has_updates()
    }

    /// Takes the results of finished queries, each with the number of its query.
    pub fn take_query_results(&self) -> Vec<(u64, Result<QueryResult, QueryError>)> {
        self.shared.clear_updates();
        self.results.try_iter().collect()
    }

    /// The state of the store, for the administrator.
    pub fn health(&self) -> Health {
        let mut health = self.shared.health();
        health.waiting = self.last_number - self.committed().min(self.last_number);
        health.not_kept = self.not_kept;
        health
    }

    /// Writes all appended accounts and ends the threads; returns without it if that takes longer than `timeout`.
    pub fn shutdown(&mut self, timeout: Duration) {
        self.flush();
        drop(self.senders.take());
        let Some(RunningWriter { handle, ended }) = self.writer.take() else { return };
        if ended.recv_timeout(timeout) == Err(RecvTimeoutError::Disconnected) {
            // A panic of the thread was reported by the panic hook.
            let _ = handle.join();
        }
    }

    /// The memory used by accounts that wait to be written.
    pub fn waiting_bytes(&self) -> usize {
        self.shared.waiting_bytes() + self.batch.memory_bytes()
    }

    fn has_room(&self) -> bool {
        self.waiting_bytes() < self.settings.max_waiting_bytes
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shutdown(Duration::from_secs(2));
    }
}

#[cfg(test)]
mod forward_tests;
#[cfg(test)]
mod segment_sum_tests;
#[cfg(test)]
pub(crate) mod stepped;
#[cfg(test)]
mod sum_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod unreadable_page_tests;
