//! What the service's thread and the store's thread have in common.
//!
//! Owns the one lock between them; it is held for a few moves of pointers, never over anything that may wait for a disk.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::backlog::Batch;
use super::health::{Health, Outlook};
use super::history::{Fault, Found, Question};

/// So long a commit may wait for more accounts while nobody waits for it.
const LINGER: Duration = Duration::from_millis(10);

/// What lies before the store's thread.
#[derive(Default)]
pub(super) struct Work {
    pub batches: VecDeque<Batch>,
    pub questions: VecDeque<(u64, Question)>,
    pub finish: bool,
    done: bool,
}

impl Work {
    fn is_urgent(&self) -> bool {
        self.finish || !self.questions.is_empty() || self.batches.iter().any(|batch| batch.wanted)
    }

    fn is_nothing(&self) -> bool {
        self.batches.is_empty() && self.questions.is_empty() && !self.finish
    }
}

/// Both threads' common ground.
#[derive(Default)]
pub(super) struct Shared {
    work: Mutex<Work>,
    called: Condvar,
    done: Condvar,
    committed: AtomicU64,
    waiting_bytes: AtomicUsize,
    failing: AtomicBool,
    news: AtomicBool,
    answers: Mutex<Vec<(u64, Result<Found, Fault>)>>,
    health: Mutex<Health>,
    pub waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Shared {
    pub fn hand_over(&self, batch: Batch) {
        self.waiting_bytes.fetch_add(batch.weight(), Ordering::Relaxed);
        let mut work = lock(&self.work);
        // It is awake already, or lingers for more, unless this is the first or somebody waits for it.
        let call = work.batches.is_empty() || batch.wanted;
        work.batches.push_back(batch);
        drop(work);
        if call {
            self.called.notify_one();
        }
    }

    pub fn ask(&self, number: u64, question: Question, most: usize) -> bool {
        let mut work = lock(&self.work);
        if work.questions.len() >= most {
            return false;
        }
        work.questions.push_back((number, question));
        drop(work);
        self.called.notify_one();
        true
    }

    /// Waits for work, or until `until`; takes all batches and one question.
    pub fn take_work(&self, until: Instant, into: &mut VecDeque<Batch>) -> (Option<(u64, Question)>, bool) {
        let mut work = lock(&self.work);
        while work.is_nothing() {
            let Some(rest) = until.checked_duration_since(Instant::now()) else { break };
            work = self.wait(work, rest);
        }
        let linger = Instant::now() + LINGER;
        while !work.batches.is_empty() && !work.is_urgent() {
            let Some(rest) = linger.checked_duration_since(Instant::now()) else { break };
            work = self.wait(work, rest);
        }
        into.append(&mut work.batches);
        let question = work.questions.pop_front();
        let finish = work.finish && work.questions.is_empty();
        (question, finish)
    }

    /// One more question, if there is one.
    pub fn next_question(&self) -> Option<(u64, Question)> {
        lock(&self.work).questions.pop_front()
    }

    fn wait<'a>(&self, work: MutexGuard<'a, Work>, rest: Duration) -> MutexGuard<'a, Work> {
        self.called.wait_timeout(work, rest).map_or_else(|poisoned| poisoned.into_inner().0, |woken| woken.0)
    }

    /// Everything up to `last` is on disk, and `bytes` of memory are free again.
    pub fn note_committed(&self, last: u64, bytes: usize) {
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

    /// It is written; `damage` says what may be lost.
    pub fn set_written(&self, bytes: u64, damage: Option<String>) {
        let mut health = lock(&self.health);
        self.failing.store(false, Ordering::Release);
        (health.durable, health.bytes, health.reason) = (true, bytes, damage);
    }

    /// It cannot be written.
    pub fn set_failing(&self, reason: String) {
        let mut health = lock(&self.health);
        self.failing.store(true, Ordering::Release);
        (health.durable, health.reason) = (false, Some(reason));
    }

    pub fn set_outlook(&self, outlook: Option<Outlook>) {
        lock(&self.health).outlook = outlook;
    }

    pub fn health(&self) -> Health {
        lock(&self.health).clone()
    }

    pub fn answer(&self, number: u64, found: Result<Found, Fault>) {
        lock(&self.answers).push((number, found));
    }

    /// Something came that is waited for.
    pub fn wake(&self) {
        self.news.store(true, Ordering::Release);
        if let Some(waker) = self.waker.get() {
            waker();
        }
    }

    pub fn has_news(&self) -> bool {
        self.news.load(Ordering::Acquire)
    }

    pub fn take_answers(&self) -> Vec<(u64, Result<Found, Fault>)> {
        self.news.store(false, Ordering::Release);
        std::mem::take(&mut *lock(&self.answers))
    }

    /// Asks the store's thread to end; whether it did within `patience`.
    pub fn finish(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut work = lock(&self.work);
        work.finish = true;
        self.called.notify_one();
        while !work.done {
            let Some(rest) = deadline.checked_duration_since(Instant::now()) else { return false };
            let waited = self.done.wait_timeout(work, rest);
            work = waited.map_or_else(|poisoned| poisoned.into_inner().0, |woken| woken.0);
        }
        true
    }

    /// The store's thread has ended its work.
    pub fn note_done(&self) {
        lock(&self.work).done = true;
        self.done.notify_all();
    }
}

/// A thread that panicked while it held the lock left it between two whole moves.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
