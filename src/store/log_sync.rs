//! Syncs of the write-ahead log between checkpoints, so that a power cut loses the commits of a bounded time only.
//!
//! Owns a thread, because a sync may take long and no commit waits for it.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

/// The thread that syncs the log. Dropping it ends the thread.
pub(super) struct LogSync {
    /// `None` while it is dropped.
    requests: Option<Sender<()>>,
    /// Closes when this value is dropped, which ends the thread's wait.
    alive: Option<Sender<Infallible>>,
    errors: Receiver<io::Error>,
    thread: Option<JoinHandle<()>>,
}

impl LogSync {
    /// Starts the thread.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn start(log: File, interval: Duration) -> io::Result<Self> {
        let (requests, requested) = bounded::<()>(1);
        let (alive, dropped) = bounded::<Infallible>(0);
        let (failed, errors) = bounded(1);
        let thread = thread::Builder::new().name("store-sync".into()).spawn(move || {
            while requested.recv().is_ok() {
                // Commits during the wait and the sync are covered by this sync, or request the next one.
                if dropped.recv_timeout(interval) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
                if let Err(error) = log.sync_data() {
                    // An earlier error says enough.
                    let _ = failed.try_send(error);
                }
            }
        })?;
        Ok(Self { requests: Some(requests), alive: Some(alive), errors, thread: Some(thread) })
    }

    /// Requests a sync of everything that has been committed, after the interval.
    pub fn request(&self) {
        if let Some(requests) = &self.requests {
            // A request that waits covers this commit too.
            let _ = requests.try_send(());
        }
    }

    /// The error of a sync since the last call.
    pub fn take_error(&self) -> Option<io::Error> {
        self.errors.try_recv().ok()
    }
}

impl Drop for LogSync {
    fn drop(&mut self) {
        (self.requests, self.alive) = (None, None);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by the panic hook.
            let _ = thread.join();
        }
    }
}
