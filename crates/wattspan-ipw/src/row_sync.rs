//! Syncs of a run's rows and texts, so that a power cut loses the queries of a bounded time only.
//!
//! Owns a thread, because a sync may take long and would delay the queries that are being timed.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The time between two syncs: what a power cut may lose, besides what the disk needs for a sync.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct SyncState {
    /// Whether there are lines that no sync covers.
    is_dirty: AtomicBool,
    is_ending: AtomicBool,
    /// The error of a sync.
    error: Mutex<Option<io::Error>>,
}

/// The thread that syncs the files. Dropping it syncs them once more.
#[derive(Debug)]
pub(super) struct RowSync {
    state: Arc<SyncState>,
    thread: Option<JoinHandle<()>>,
}

impl RowSync {
    /// Starts the thread. Of each pair of lines, that of the first file is on disk before that of the second one.
    ///
    /// # Errors
    /// The thread cannot be created, or a descriptor.
    pub fn start(first: &File, second: &File) -> io::Result<Self> {
        let state = Arc::new(SyncState::default());
        let files = [first.try_clone()?, second.try_clone()?];
        let shared = Arc::clone(&state);
        let thread = thread::Builder::new().name("run-sync".into()).spawn(move || {
            loop {
                thread::park_timeout(SYNC_INTERVAL);
                let is_ending = shared.is_ending.load(Ordering::Acquire);
                if shared.is_dirty.swap(false, Ordering::AcqRel)
                    && let Err(error) = files.iter().try_for_each(File::sync_data)
                {
                    *shared.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
                if is_ending {
                    return;
                }
            }
        })?;
        Ok(Self { state, thread: Some(thread) })
    }

    /// Requests a sync of the lines up to now, within the interval.
    ///
    /// # Errors
    /// A sync since the last call failed: lines may be lost, and a second sync would succeed without writing them.
    pub fn request(&self) -> io::Result<()> {
        self.state.is_dirty.store(true, Ordering::Release);
        self.take_error()
    }

    /// Syncs everything, and ends the thread.
    ///
    /// # Errors
    /// As for [`Self::request`].
    pub fn finish(&mut self) -> io::Result<()> {
        self.state.is_ending.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic of the thread was reported by the panic hook.
            let _ = thread.join();
        }
        self.take_error()
    }

    fn take_error(&self) -> io::Result<()> {
        self.state.error.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

impl Drop for RowSync {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}
