//! State shared by the service's thread and the store's thread.
//!
//! Invariant: no lock here is held during disk access; it is held only while pointers move.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::forecast::RetentionForecast;
use super::query::{QueryError, QueryResult, StoreQuery};

/// How long a commit may be delayed for more accounts while no caller waits for it.
const COMMIT_DELAY: Duration = Duration::from_millis(10);

/// The state of the store, for the administrator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Accounts are on disk before they are reported as durable.
    pub durable: bool,
    /// Why accounts are not durable and what to do; if `durable`, what may be lost.
    pub reason: Option<String>,
    /// The size on disk at the last check, in bytes.
    pub bytes: u64,
    /// Accounts accepted and not yet on disk.
    pub waiting: u64,
    /// Accounts refused for lack of memory since the start.
    pub not_kept: u64,
    /// The expected retention; absent while there are too few accounts for an estimate.
    pub forecast: Option<RetentionForecast>,
}

/// The work that waits for the store's thread.
#[derive(Default)]
pub(super) struct WorkQueue {
    pub batches: VecDeque<Batch>,
    pub queries: VecDeque<(u64, StoreQuery)>,
    pub shutdown: bool,
    finished: bool,
}

impl WorkQueue {
    fn is_urgent(&self) -> bool {
        self.shutdown || !self.queries.is_empty() || self.batches.iter().any(|batch| batch.urgent)
    }

    fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.queries.is_empty() && !self.shutdown
    }
}

#[derive(Default)]
pub(super) struct StoreShared {
    work: Mutex<WorkQueue>,
    work_ready: Condvar,
    finished: Condvar,
    committed: AtomicU64,
    waiting_bytes: AtomicUsize,
    failing: AtomicBool,
    updated: AtomicBool,
    results: Mutex<Vec<(u64, Result<QueryResult, QueryError>)>>,
    health: Mutex<Health>,
    pub waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl StoreShared {
    pub fn push_batch(&self, batch: Batch) {
        self.waiting_bytes.fetch_add(batch.memory_bytes(), Ordering::Relaxed);
        let mut work = lock(&self.work);
        // The store's thread is awake or collecting already, unless this batch is the first or urgent.
        let notify = work.batches.is_empty() || batch.urgent;
        work.batches.push_back(batch);
        drop(work);
        if notify {
            self.work_ready.notify_one();
        }
    }

    pub fn push_query(&self, number: u64, query: StoreQuery, max: usize) -> bool {
        let mut work = lock(&self.work);
        if work.queries.len() >= max {
            return false;
        }
        work.queries.push_back((number, query));
        drop(work);
        self.work_ready.notify_one();
        true
    }

    /// Waits for work, or until `until`; takes all batches and one query.
    pub fn take_work(&self, until: Instant, into: &mut VecDeque<Batch>) -> (Option<(u64, StoreQuery)>, bool) {
        let mut work = lock(&self.work);
        while work.is_empty() {
            let Some(remaining) = until.checked_duration_since(Instant::now()) else { break };
            work = self.wait(work, remaining);
        }
        let commit_at = Instant::now() + COMMIT_DELAY;
        while !work.batches.is_empty() && !work.is_urgent() {
            let Some(remaining) = commit_at.checked_duration_since(Instant::now()) else { break };
            work = self.wait(work, remaining);
        }
        into.append(&mut work.batches);
        let query = work.queries.pop_front();
        let shutdown = work.shutdown && work.queries.is_empty();
        (query, shutdown)
    }

    /// Takes the next query, if any.
    pub fn next_query(&self) -> Option<(u64, StoreQuery)> {
        lock(&self.work).queries.pop_front()
    }

    fn wait<'a>(&self, work: MutexGuard<'a, WorkQueue>, remaining: Duration) -> MutexGuard<'a, WorkQueue> {
        self.work_ready
            .wait_timeout(work, remaining)
            .map_or_else(|poisoned| poisoned.into_inner().0, |woken| woken.0)
    }

    /// Everything up to `last` is on disk, and `bytes` of memory are free again.
    pub fn set_committed(&self, last: u64, bytes: usize) {
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.committed.store(last, Ordering::Release);
    }

    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes.load(Ordering::Relaxed)
    }

    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Acquire)
    }

    /// Sets the state to durable; `damage` describes what may be lost.
    pub fn set_durable(&self, bytes: u64, damage: Option<String>) {
        let mut health = lock(&self.health);
        self.failing.store(false, Ordering::Release);
        (health.durable, health.bytes, health.reason) = (true, bytes, damage);
    }

    pub fn set_failing(&self, reason: String) {
        let mut health = lock(&self.health);
        self.failing.store(true, Ordering::Release);
        (health.durable, health.reason) = (false, Some(reason));
    }

    pub fn set_forecast(&self, forecast: Option<RetentionForecast>) {
        lock(&self.health).forecast = forecast;
    }

    pub fn health(&self) -> Health {
        lock(&self.health).clone()
    }

    pub fn push_result(&self, number: u64, result: Result<QueryResult, QueryError>) {
        lock(&self.results).push((number, result));
    }

    /// Wakes the service: a commit or a result is ready.
    pub fn wake(&self) {
        self.updated.store(true, Ordering::Release);
        if let Some(waker) = self.waker.get() {
            waker();
        }
    }

    pub fn has_updates(&self) -> bool {
        self.updated.load(Ordering::Acquire)
    }

    pub fn take_results(&self) -> Vec<(u64, Result<QueryResult, QueryError>)> {
        self.updated.store(false, Ordering::Release);
        std::mem::take(&mut *lock(&self.results))
    }

    /// Requests the end of the store's thread; true if it ended within `timeout`.
    pub fn shutdown(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut work = lock(&self.work);
        work.shutdown = true;
        self.work_ready.notify_one();
        while !work.finished {
            let Some(remaining) = deadline.checked_duration_since(Instant::now()) else { return false };
            let waited = self.finished.wait_timeout(work, remaining);
            work = waited.map_or_else(|poisoned| poisoned.into_inner().0, |woken| woken.0);
        }
        true
    }

    pub fn set_finished(&self) {
        lock(&self.work).finished = true;
        self.finished.notify_all();
    }
}

/// Ignores poisoning: no panic can leave the data inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
