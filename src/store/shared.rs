//! The queue of batches for the store's thread, and the state that it shares with the service and the queries.
//!
//! Invariant: the service's thread never waits for the store's. The locks protect `Health` and `LossReports`, and no thread
//! holds them during disk access.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};

use super::batch::Batch;
use super::database_identity::DatabaseId;
use super::forecast::RetentionForecast;

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

/// The service's side of the queue. Dropping it requests the end of the store's thread.
pub(super) struct WorkSender {
    // Unbounded: `Store::append` limits the bytes of the batches.
    batches: Sender<Batch>,
    urgent: Sender<()>,
    pub requested: Sender<()>,
}

/// The store's thread's side of the queue.
pub(super) struct WorkReceiver {
    batches: Receiver<Batch>,
    /// A message here ends the delay of a commit; one that waits is enough.
    urgent: Receiver<()>,
    /// The same for a query, which waits for batches that are not urgent.
    requested: Receiver<()>,
}

pub(super) fn work_queue() -> (WorkSender, WorkReceiver) {
    let (batch_sender, batches) = unbounded();
    let (urgent_sender, urgent) = bounded(1);
    let (request_sender, requested) = bounded(1);
    let sender = WorkSender { batches: batch_sender, urgent: urgent_sender, requested: request_sender };
    (sender, WorkReceiver { batches, urgent, requested })
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

    /// Ends the delay of the batches that were pushed, because a query waits for them.
    pub fn request_commit(&self) {
        let _ = self.requested.try_send(());
    }
}

impl WorkReceiver {
    /// Waits for work, or until `deadline`, and takes all batches. Returns whether to shut down: then all batches have been
    /// taken.
    pub fn take_batches(&mut self, deadline: Instant, into: &mut VecDeque<Batch>) -> bool {
        let already_taken = into.len();
        let mut is_closed = false;
        select! {
            recv(self.batches) -> batch => match batch {
                Ok(batch) => into.push_back(batch),
                Err(_) => is_closed = true,
            },
            default(deadline.saturating_duration_since(Instant::now())) => {}
        }
        // The message of a batch that was taken before, or is taken now: it must not end a later delay.
        let _ = self.urgent.try_recv();
        into.extend(self.batches.try_iter());
        let mut new_batches = into.range(already_taken..);
        let is_urgent = self.requested.try_recv().is_ok() || new_batches.any(|batch| batch.urgent);
        if into.len() > already_taken && !is_urgent {
            select! {
                recv(self.urgent) -> _ => {}
                recv(self.requested) -> _ => {}
                default(COMMIT_DELAY) => {}
            }
            into.extend(self.batches.try_iter());
        }
        is_closed
    }
}

/// What may be lost, for the administrator.
#[derive(Default)]
struct LossReports {
    /// The gaps of the database.
    gaps: Option<String>,
    /// The first damage that a query found.
    damage: Option<String>,
}

impl LossReports {
    fn describe(&self) -> Option<String> {
        let all: Vec<&str> = [&self.gaps, &self.damage].into_iter().flatten().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

#[derive(Default)]
pub(super) struct StoreShared {
    committed: AtomicU64,
    waiting_bytes: AtomicUsize,
    failing: AtomicBool,
    updated: AtomicBool,
    health: Mutex<Health>,
    losses: Mutex<LossReports>,
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

    /// Sets the state to durable.
    pub fn set_durable(&self, bytes: u64) {
        let reason = lock(&self.losses).describe();
        let mut health = lock(&self.health);
        self.failing.store(false, Ordering::Release);
        (health.durable, health.bytes, health.reason) = (true, bytes, reason);
    }

    /// Sets the description of the gaps, which the next [`Self::set_durable`] reports.
    pub fn set_gaps(&self, gaps: Option<String>) {
        lock(&self.losses).gaps = gaps;
    }

    /// Notes damage that a query found; returns whether it is the first in this database.
    pub fn report_damage(&self, reason: &str) -> bool {
        let mut losses = lock(&self.losses);
        if losses.damage.is_some() {
            return false;
        }
        losses.damage = Some(reason.to_owned());
        let mut health = lock(&self.health);
        if health.durable {
            health.reason = losses.describe();
        }
        true
    }

    /// Another database was opened, whose damage is unknown.
    pub fn forget_damage(&self) {
        lock(&self.losses).damage = None;
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

    #[test]
    fn a_closed_queue_ends_after_all_its_batches() {
        let (sender, mut receiver) = work_queue();
        for last_number in 1..=3 {
            sender.push_batch(batch(last_number, last_number == 2));
        }
        drop(sender);
        let mut batches = VecDeque::new();
        while !receiver.take_batches(Instant::now(), &mut batches) {}
        assert_eq!(batches.iter().map(|batch| batch.last_number).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn the_first_damage_is_reported_beside_the_gaps() {
        let shared = StoreShared::default();
        shared.set_gaps(Some("gap".into()));
        shared.set_durable(1);
        assert!(shared.report_damage("first") && !shared.report_damage("second"));
        assert_eq!(shared.health().reason.as_deref(), Some("gap; first"));
        shared.set_failing("full".into());
        shared.forget_damage();
        assert!(shared.report_damage("third"));
        assert_eq!(shared.health().reason.as_deref(), Some("full"), "the more urgent one");
        shared.set_durable(1);
        assert_eq!(shared.health().reason.as_deref(), Some("gap; third"));
    }
}
