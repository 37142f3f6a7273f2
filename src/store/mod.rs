//! The ledger on disk: accounts that were answered, kept.
//!
//! ```text
//! service ─► batch ─► writer thread ─► database
//! never waits  packed   many to a commit  SQLite
//! ```
//!
//! Owns the one thread that touches the disk. Each account that a caller appends gets a number, and is on disk
//! once `Store::committed` has reached it; no caller waits here. A disk that is full, read-only, broken or slow never
//! holds up an answer: the store says that it is failing, goes on trying, and writes what waited once it can. What it
//! has in memory is bounded; what finds no room is refused and so never called kept. Knows no clients.

mod account_index;
mod account_record;
mod account_table;
mod batch;
mod checksum;
mod database;
mod forecast;
mod high_water_mark;
mod migration;
mod query;
mod retention;
mod retention_state;
mod schema;
mod settings;
mod shared;
mod state_dir;
mod time;
mod writer_thread;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub use forecast::{RetentionForecast, describe_retention};
pub use query::{Filter, QueryError, QueryResult, StoreQuery};
pub use settings::{StoreSettings, SyncMode};
pub use shared::Health;

use crate::attribution::account::Account;
use batch::{Batch, LayoutCache, WriteOp};
use shared::StoreShared;
use writer_thread::WriterThread;

/// Most queries that wait for a result.
pub const MAX_PENDING_QUERIES: usize = 32_768;

/// The ledger on disk, as the one who fills it sees it.
pub struct Store {
    shared: Arc<StoreShared>,
    settings: StoreSettings,
    layouts: LayoutCache,
    batch: Batch,
    last_number: u64,
    not_kept: u64,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Begins in its directory; `log` is called at each change of its state. A directory that cannot be used is such a
    /// state and no error: it is tried again.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(settings: StoreSettings, log: fn(&str)) -> io::Result<Self> {
        let shared = Arc::new(StoreShared::default());
        let writer = WriterThread::new(Arc::clone(&shared), settings.clone(), log);
        let thread = thread::Builder::new().name("store".into()).spawn(move || writer.run())?;
        let (layouts, batch) = (LayoutCache::default(), Batch::default());
        Ok(Self { shared, settings, layouts, batch, last_number: 0, not_kept: 0, thread: Some(thread) })
    }

    /// Is called, on the store's thread, when something that a caller waits for has come: see [`Store::has_updates`].
    pub fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        // A second one would be a second service, which there is not.
        let _ = self.shared.waker.set(Box::new(waker));
    }

    /// The number that the next account would get.
    pub fn next_number(&self) -> u64 {
        self.last_number + 1
    }

    /// Takes a final account, to be written with the next [`Store::flush`], and deletes the journal's entry under
    /// `journal_key`. `urgent`: a caller waits for the commit. False where there is no room: it will not be kept.
    pub fn append(&mut self, account: &Account, journal_key: Option<u64>, urgent: bool) -> bool {
        if !self.has_room() {
            self.not_kept += 1;
            return false;
        }
        let row = self.batch.pack(account, &mut self.layouts);
        self.last_number += 1;
        self.batch.last_number = self.last_number;
        self.batch.urgent |= urgent;
        self.batch.ops.push(WriteOp::InsertAccount { row, journal_key });
        true
    }

    /// Notes how far an open span has come, under its key; false where it was not taken.
    pub fn write_journal(&mut self, key: u64, account: &Account) -> bool {
        // The journal is the first to stand back: what it says now is old news a second later.
        if self.shared.is_failing() || self.waiting_bytes() > self.settings.max_waiting_bytes / 4 {
            return false;
        }
        let row = self.batch.pack(account, &mut self.layouts);
        self.batch.ops.push(WriteOp::UpsertJournal { key, row });
        true
    }

    /// Forgets what the journal has of a span.
    pub fn delete_journal(&mut self, key: u64) {
        self.batch.ops.push(WriteOp::DeleteJournal { key });
    }

    /// Hands over what was taken; cheap where that is nothing.
    pub fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        batch.last_number = self.last_number;
        self.shared.push_batch(batch);
    }

    /// Submits a query under a number that its result will carry; it sees every account that was taken before. False where
    /// too many queries wait.
    pub fn submit_query(&mut self, number: u64, query: StoreQuery) -> bool {
        self.flush();
        self.shared.push_query(number, query, MAX_PENDING_QUERIES)
    }

    /// Every account up to this number is on disk.
    pub fn committed(&self) -> u64 {
        self.shared.committed()
    }

    /// Whether nothing can be written at present.
    pub fn is_failing(&self) -> bool {
        self.shared.is_failing()
    }

    /// Whether there is a commit or a result since the last [`Store::take_query_results`].
    pub fn has_updates(&self) -> bool {
        self.shared.has_updates()
    }

    /// The results that have come, by number.
    pub fn take_query_results(&self) -> Vec<(u64, Result<QueryResult, QueryError>)> {
        self.shared.take_results()
    }

    /// How it is.
    pub fn health(&self) -> Health {
        let mut health = self.shared.health();
        health.waiting = self.last_number - self.committed().min(self.last_number);
        health.not_kept = self.not_kept;
        health
    }

    /// Writes what was taken and ends; gives up on a disk that takes longer than `timeout`.
    pub fn shutdown(&mut self, timeout: Duration) {
        self.flush();
        let Some(thread) = self.thread.take() else { return };
        if self.shared.shutdown(timeout) {
            // A panic of the thread ends the process, or was reported where it happened.
            let _ = thread.join();
        }
    }

    /// Memory of what waits to be written.
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
mod tests;
