//! The ledger on disk: accounts that were answered, kept.
//!
//! ```text
//! service ─► backlog ─► keeper's thread ─► database
//!  never waits  packed    many to a commit    SQLite
//! ```
//!
//! Owns the one thread that touches the disk. Whoever hands an account over gets a number, and the account is on disk
//! once `Store::committed` has reached it; nobody waits here. A disk that is full, read-only, broken or slow never
//! holds up an answer: the store says that it is failing, goes on trying, and writes what waited once it can. What it
//! has in memory is bounded; what finds no room is refused and so never called kept. Knows no clients.

mod backlog;
mod checksum;
mod clock_reading;
mod database;
mod forecast;
mod gap;
mod health;
mod history;
mod keeper;
mod mark;
mod migration;
mod name_index;
mod place;
mod record;
mod retention;
mod settings;
mod shared;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub use forecast::forecast;
pub use health::{Health, Outlook};
pub use history::{Fault, Filter, Found, Question};
pub use settings::{Settings, Sync};

use crate::attribution::account::Account;
use backlog::{Batch, Layouts, Order};
use keeper::Keeper;
use shared::Shared;

/// Most questions that wait for an answer.
pub const MAX_QUESTIONS: usize = 32_768;

/// The ledger on disk, as the one who fills it sees it.
pub struct Store {
    shared: Arc<Shared>,
    settings: Settings,
    layouts: Layouts,
    batch: Batch,
    last: u64,
    not_kept: u64,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Begins in its directory; `tell` is told of each change of its state. A directory that cannot be used is such a
    /// state and no error: it is tried again.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(settings: Settings, tell: fn(&str)) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let keeper = Keeper::new(Arc::clone(&shared), settings.clone(), tell);
        let thread = thread::Builder::new().name("store".into()).spawn(move || keeper.run())?;
        let (layouts, batch) = (Layouts::default(), Batch::default());
        Ok(Self { shared, settings, layouts, batch, last: 0, not_kept: 0, thread: Some(thread) })
    }

    /// Is called, on the store's thread, when something that somebody waits for has come: see [`Store::has_news`].
    pub fn set_waker(&self, waker: impl Fn() + Send + std::marker::Sync + 'static) {
        // A second one would be a second service, which there is not.
        let _ = self.shared.waker.set(Box::new(waker));
    }

    /// The number that the next account would get.
    pub fn next(&self) -> u64 {
        self.last + 1
    }

    /// Takes a final account, to be written with the next [`Store::flush`], and to forget what the journal has under
    /// `forget`. `wanted`: somebody waits for the commit. False where there is no room: it will not be kept.
    pub fn keep(&mut self, account: &Account, forget: Option<u64>, wanted: bool) -> bool {
        if !self.has_room() {
            self.not_kept += 1;
            return false;
        }
        let row = self.batch.pack(account, &mut self.layouts);
        self.last += 1;
        self.batch.last = self.last;
        self.batch.wanted |= wanted;
        self.batch.orders.push(Order::Keep { row, forget });
        true
    }

    /// Notes how far an open span has come, under its key; false where it was not taken.
    pub fn journal(&mut self, key: u64, account: &Account) -> bool {
        // The journal is the first to stand back: what it says now is old news a second later.
        if self.shared.is_failing() || self.waiting_bytes() > self.settings.waiting_bytes / 4 {
            return false;
        }
        let row = self.batch.pack(account, &mut self.layouts);
        self.batch.orders.push(Order::Journal { key, row });
        true
    }

    /// Forgets what the journal has of a span.
    pub fn forget(&mut self, key: u64) {
        self.batch.orders.push(Order::Forget { key });
    }

    /// Hands over what was taken; cheap where that is nothing.
    pub fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        batch.last = self.last;
        self.shared.hand_over(batch);
    }

    /// Asks, under a number by which the answer will be known; it sees every account that was taken before. False where
    /// too many questions wait.
    pub fn ask(&mut self, number: u64, question: Question) -> bool {
        self.flush();
        self.shared.ask(number, question, MAX_QUESTIONS)
    }

    /// Every account up to this number is on disk.
    pub fn committed(&self) -> u64 {
        self.shared.committed()
    }

    /// Whether nothing can be written at present.
    pub fn is_failing(&self) -> bool {
        self.shared.is_failing()
    }

    /// Whether something came since the last [`Store::answers`].
    pub fn has_news(&self) -> bool {
        self.shared.has_news()
    }

    /// The answers that have come, by number.
    pub fn answers(&self) -> Vec<(u64, Result<Found, Fault>)> {
        self.shared.take_answers()
    }

    /// How it is.
    pub fn health(&self) -> Health {
        let mut health = self.shared.health();
        health.waiting = self.last - self.committed().min(self.last);
        health.not_kept = self.not_kept;
        health
    }

    /// Writes what was taken and ends; gives up on a disk that takes longer than `patience`.
    pub fn finish(&mut self, patience: Duration) {
        self.flush();
        let Some(thread) = self.thread.take() else { return };
        if self.shared.finish(patience) {
            // A panic of the thread ends the process, or was reported where it happened.
            let _ = thread.join();
        }
    }

    /// Memory of what waits to be written.
    pub fn waiting_bytes(&self) -> usize {
        self.shared.waiting_bytes() + self.batch.weight()
    }

    fn has_room(&self) -> bool {
        self.waiting_bytes() < self.settings.waiting_bytes
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.finish(Duration::from_secs(2));
    }
}

#[cfg(test)]
mod tests;
