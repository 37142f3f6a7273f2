//! The queue of work for the store's thread, and the state that both threads share.
//!
//! Invariant: the service's thread never waits for the store's. The only lock protects `Health`, and no thread holds it
//! during disk access.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, select, unbounded};

use super::batch::Batch;
use super::database_identity::DatabaseId;
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
    /// The database that was opened last.
    pub database: Option<DatabaseId>,
}

/// A query with the number that its result will carry.
pub(super) type NumberedQuery = (u64, StoreQuery);

/// The result of a query with the query's number.
pub(super) type NumberedResult = (u64, Result<QueryResult, QueryError>);

/// The service's side of the queue. Dropping it requests the end of the store's thread.
pub(super) struct WorkSender {
    // Unbounded channels: `Store::append` limits the bytes of the batches, and `push_query` the number of queries. A
    // bounded channel of so many queries allocates 4 MB in advance.
    batches: Sender<Batch>,
    queries: Sender<NumberedQuery>,
    urgent: Sender<()>,
}

/// The store's thread's side of the queue.
pub(super) struct WorkReceiver {
    batches: Receiver<Batch>,
    queries: Receiver<NumberedQuery>,
    /// A message here ends the delay of a commit; one that waits is enough.
    urgent: Receiver<()>,
    /// The number of waiting queries whose earlier batches have been taken.
    ready_queries: usize,
}

pub(super) fn work_queue() -> (WorkSender, WorkReceiver) {
    let (batch_sender, batches) = unbounded();
    let (query_sender, queries) = unbounded();
    let (urgent_sender, urgent) = bounded(1);
    let sender = WorkSender { batches: batch_sender, queries: query_sender, urgent: urgent_sender };
    (sender, WorkReceiver { batches, queries, urgent, ready_queries: 0 })
}

impl WorkSender {
    /// A batch that is not urgent wakes the store's thread only if the thread has no work.
    pub fn push_batch(&self, batch: Batch) {
        let is_urgent = batch.urgent;
        // Both sends fail only after a panic of the store's thread. The second also fails if a message waits.
        let _ = self.batches.send(batch);
        if is_urgent {
            let _ = self.urgent.try_send(());
        }
    }

    /// Returns false if `max` queries wait.
    pub fn push_query(&self, number: u64, query: StoreQuery, max: usize) -> bool {
        self.queries.len() < max && self.queries.send((number, query)).is_ok()
    }
}

impl WorkReceiver {
    /// Waits for work, or until `deadline`; takes all batches and one query. The batches include all that were pushed
    /// before the query. Also returns whether to shut down: then all work has been taken.
    pub fn take_work(
        &mut self,
        deadline: Instant,
        into: &mut VecDeque<Batch>,
    ) -> (Option<NumberedQuery>, bool) {
        let already_taken = into.len();
        let mut query = None;
        select! {
            recv(self.batches) -> batch => into.extend(batch),
            recv(self.queries) -> received => query = received.ok(),
            default(deadline.saturating_duration_since(Instant::now())) => {}
        }
        // The message of a batch that was taken before, or is taken now: it must not end a later delay.
        let _ = self.urgent.try_recv();
        into.extend(self.batches.try_iter());
        let mut new_batches = into.range(already_taken..);
        let may_delay = query.is_none() && new_batches.len() > 0 && !new_batches.any(|batch| batch.urgent);
        if may_delay {
            select! {
                recv(self.urgent) -> _ => {}
                recv(self.queries) -> received => query = received.ok(),
                default(COMMIT_DELAY) => {}
            }
        }
        let mut is_closed = false;
        if query.is_none() {
            match self.queries.try_recv() {
                Ok(received) => query = Some(received),
                Err(error) => is_closed = error == TryRecvError::Disconnected,
            }
        }
        self.ready_queries = self.queries.len();
        into.extend(self.batches.try_iter());
        (query, is_closed)
    }

    /// Whether a batch waits to be taken.
    pub fn has_batches(&self) -> bool {
        !self.batches.is_empty()
    }

    /// Takes the next query, if it needs no batch that still waits.
    pub fn next_query(&mut self) -> Option<NumberedQuery> {
        if self.ready_queries == 0 {
            // Read in this order: a batch that waits may be older than these queries.
            let waiting = self.queries.len();
            self.ready_queries = if self.batches.is_empty() { waiting } else { 0 };
        }
        self.ready_queries = self.ready_queries.checked_sub(1)?;
        self.queries.try_recv().ok()
    }
}

#[derive(Default)]
pub(super) struct StoreShared {
    committed: AtomicU64,
    waiting_bytes: AtomicUsize,
    failing: AtomicBool,
    updated: AtomicBool,
    health: Mutex<Health>,
    pub waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl StoreShared {
    /// Counts the memory of a batch that waits to be written.
    pub fn add_waiting_bytes(&self, bytes: usize) {
        self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
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

    pub fn set_database(&self, database: DatabaseId) {
        lock(&self.health).database = Some(database);
    }

    pub fn health(&self) -> Health {
        lock(&self.health).clone()
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

    /// Call this before the results are taken, so that a later result counts as an update.
    pub fn clear_updates(&self) {
        self.updated.store(false, Ordering::Release);
    }
}

/// Ignores poisoning: no panic can leave the data inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(last_number: u64, urgent: bool) -> Batch {
        let mut batch = Batch::default();
        (batch.last_number, batch.urgent) = (last_number, urgent);
        batch
    }

    fn push_query(work: &WorkSender, number: u64) -> bool {
        work.push_query(number, StoreQuery::Span { uid: 1, all_users: false, span: "s".into() }, 2)
    }

    fn numbers(batches: &VecDeque<Batch>) -> Vec<u64> {
        batches.iter().map(|batch| batch.last_number).collect()
    }

    #[test]
    fn a_closed_queue_ends_after_all_its_work() {
        let (sender, mut receiver) = work_queue();
        for last_number in 1..=3 {
            sender.push_batch(batch(last_number, last_number == 2));
        }
        assert!(push_query(&sender, 8) && push_query(&sender, 9));
        assert!(!push_query(&sender, 10), "two queries wait");
        drop(sender);
        let (mut batches, mut queries) = (VecDeque::new(), Vec::new());
        let now = Instant::now();
        loop {
            let (query, is_closed) = receiver.take_work(now, &mut batches);
            queries.extend(query.map(|(number, _)| number));
            if is_closed {
                break;
            }
        }
        assert_eq!((numbers(&batches), queries), (vec![1, 2, 3], vec![8, 9]));
    }

    #[test]
    fn a_query_waits_for_the_batches_that_were_pushed_before_it() {
        let (sender, mut receiver) = work_queue();
        let mut batches = VecDeque::new();
        let now = Instant::now();
        assert!(push_query(&sender, 1));
        assert_eq!(receiver.take_work(now, &mut batches).0.unwrap().0, 1);
        assert!(push_query(&sender, 2));
        assert_eq!(receiver.next_query().unwrap().0, 2);
        sender.push_batch(batch(1, false));
        assert!(push_query(&sender, 3) && push_query(&sender, 4));
        assert_eq!(receiver.next_query(), None);
        assert_eq!(receiver.take_work(now, &mut batches).0.unwrap().0, 3);
        sender.push_batch(batch(2, false));
        assert_eq!(numbers(&batches), [1]);
        assert_eq!(receiver.next_query().unwrap().0, 4);
        assert_eq!(receiver.next_query(), None);
    }
}
