//! The store's thread, which does all disk access but that of queries.
//!
//! It owns the database and the batches that are not yet on disk. After an error it logs one line, closes all
//! connections (after a failed write the caches of SQLite and the kernel may differ from the file), and reopens the
//! file every second. Invariant: accounts are written in the order in which they were appended, each once.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;

use super::batch::Batch;
use super::database::Database;
use super::high_water_mark::MarkFile;
use super::log_sync::LogSync;
use super::read_access::{OpenedFile, ReadAccess};
use super::retention;
use super::schema::DatabaseError;
use super::settings::{StoreSettings, SyncMode};
use super::shared::{StoreShared, WorkReceiver};
use super::state_dir::{FileIds, StateDir, StateDirError};
use super::sum_threads::SumThreads;
use super::time::ClockReading;
use super::unconfirmed_write::UnconfirmedWrite;
use crate::clock::Clock;

/// The interval between attempts to open the database after a failure.
const RETRY_INTERVAL_NS: u64 = 1_000_000_000;

/// The intervals between checks for accounts to delete, and between two steps of a deletion.
const RETENTION_INTERVAL_NS: u64 = 10_000_000_000;
const RETENTION_STEP_INTERVAL_NS: u64 = 20_000_000;

/// A check also runs after this many write operations.
const RETENTION_OPS: usize = 16_384;

/// The length of the write-ahead log in pages from which on it is copied to the database file: 4 MB.
const CHECKPOINT_PAGES: usize = 1000;

/// The error of an operation of the store's thread.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriterError {
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    #[error("{0}")]
    Database(#[from] DatabaseError),
    #[error("cannot write ledger.mark: {0}")]
    MarkFile(#[from] io::Error),
    #[error("cannot sync ledger.sqlite-wal: {0}")]
    Sync(io::Error),
}

/// The threads that read beside the writer, as far as it controls them.
pub(super) struct Readers {
    pub access: Arc<ReadAccess>,
    /// A channel that closes when the thread for queries ends.
    pub queries_ended: Receiver<Infallible>,
    pub sums: SumThreads,
}

pub(super) struct WriterThread {
    shared: Arc<StoreShared>,
    work: WorkReceiver,
    access: Arc<ReadAccess>,
    /// A channel that closes when the thread for queries ends.
    queries_ended: Receiver<Infallible>,
    pub(super) sums: SumThreads,
    settings: StoreSettings,
    clock: Clock,
    log: fn(&str),
    state_dir: Option<StateDir>,
    database: Option<Database>,
    /// With [`SyncMode::Normal`], from the first commit on.
    log_sync: Option<LogSync>,
    /// Whether there was a commit since the last check for accounts to delete.
    has_committed: bool,
    /// The inodes of the open files.
    open_files: Option<FileIds>,
    /// Database files whose journal this process wrote. After a reopen their journal has spans that are still open,
    /// so that [`Database::recover`] must not run on them.
    own_files: Vec<(u64, u64)>,
    /// Batches that are not on disk yet.
    uncommitted: VecDeque<Batch>,
    /// The last write, until it has succeeded or the database shows whether it has.
    unconfirmed: Option<UnconfirmedWrite>,
    failing: bool,
    retry_at_ns: u64,
    retention_at_ns: u64,
    ops_since_retention: usize,
    quarantined_at_ns: Option<u64>,
}

impl WriterThread {
    pub fn new(
        shared: Arc<StoreShared>,
        work: WorkReceiver,
        readers: Readers,
        settings: StoreSettings,
        clock: Clock,
        log: fn(&str),
    ) -> Self {
        let now_ns = clock.now_ns();
        Self {
            shared,
            work,
            access: readers.access,
            queries_ended: readers.queries_ended,
            sums: readers.sums,
            settings,
            clock,
            log,
            state_dir: None,
            database: None,
            log_sync: None,
            has_committed: false,
            open_files: None,
            own_files: Vec::new(),
            uncommitted: VecDeque::new(),
            unconfirmed: None,
            failing: false,
            retry_at_ns: now_ns,
            retention_at_ns: now_ns + RETENTION_STEP_INTERVAL_NS,
            ops_since_retention: 0,
            quarantined_at_ns: None,
        }
    }

    /// Runs until a shutdown is requested.
    pub fn run(mut self) {
        self.attempt(Self::open);
        while !self.step() {}
        // The channel has no messages: it returns once the last query has its result.
        let _ = self.queries_ended.recv();
        self.end();
    }

    /// Waits for work, or until something else is due, and does it; returns whether a shutdown was requested.
    pub fn step(&mut self) -> bool {
        let due_ns = if self.database.is_some() { self.retention_at_ns } else { self.retry_at_ns };
        let deadline = Instant::now() + self.clock.time_until(due_ns);
        let shutdown = self.work.take_batches(deadline, &mut self.uncommitted);
        let wake = self.uncommitted.iter().any(|batch| batch.urgent);
        if self.database.is_none() && (self.clock.now_ns() >= self.retry_at_ns || shutdown) {
            self.attempt(Self::open);
        }
        self.attempt(Self::write);
        if wake {
            self.shared.wake();
        }
        if shutdown {
            return true;
        }
        if self.clock.now_ns() >= self.retention_at_ns || self.ops_since_retention >= RETENTION_OPS {
            self.attempt(Self::apply_retention);
        }
        self.checkpoint();
        false
    }

    /// Closes all connections. That of the writer is the last one, so that its end empties the write-ahead log.
    fn close(&mut self) {
        self.sums.stop();
        self.access.close();
        self.report_sync_error();
        (self.database, self.log_sync) = (None, None);
    }

    /// Bounds the write-ahead log: copies it to the database file while no query reads, so that the next commit begins at the
    /// start of the log. A failure is one of the disk, which the commits report; a later call repeats it.
    fn checkpoint(&self) {
        if let Some(database) = &self.database
            && database.wal_pages() >= CHECKPOINT_PAGES
        {
            let _pause = self.access.pause();
            let _ = database.checkpoint();
        }
    }

    /// Runs a disk operation and handles its error.
    pub fn attempt(&mut self, operation: fn(&mut Self) -> Result<(), WriterError>) {
        if let Err(error) = operation(self) {
            self.close();
            self.retry_at_ns = self.clock.now_ns() + RETRY_INTERVAL_NS;
            match error {
                WriterError::Database(error) if error.is_corruption() => self.quarantine(&error),
                error => {
                    if matches!(error, WriterError::StateDir(StateDirError::Removed(_))) {
                        self.state_dir = None;
                    }
                    self.set_failing(&error);
                }
            }
        }
    }

    fn open(&mut self) -> Result<(), WriterError> {
        if self.state_dir.is_none() {
            self.state_dir = Some(StateDir::acquire(&self.settings.directory)?);
        }
        let Some(state_dir) = &self.state_dir else { return Ok(()) };
        let (file, mark_file) = (state_dir.database_path()?, MarkFile(state_dir.open_mark_file()?));
        let now = ClockReading::of(&self.clock);
        let mut database = Database::open(&file, mark_file, &self.settings, now)?;
        let open_files = state_dir.file_ids()?;
        let is_written =
            self.unconfirmed.as_ref().is_some_and(|write| write.is_in(&database, &self.uncommitted));
        if is_written {
            // Its sync may have failed, and a second one would succeed without writing the log.
            database.empty_log()?;
        } else {
            self.unconfirmed = None;
        }
        let new_gaps = std::mem::take(&mut database.new_gaps);
        if !self.own_files.contains(&open_files.database) {
            let interrupted = database.recover(now)?;
            self.own_files.push(open_files.database);
            if interrupted > 0 {
                (self.log)(&format!(
                    "the daemon stopped unexpectedly while {interrupted} spans were open; they are \
                     stored as interrupted"
                ));
            }
        }
        self.open_files = Some(state_dir.file_ids()?);
        self.shared.set_gaps(database.describe_gaps());
        if self.shared.health().database != Some(database.identity.id) {
            self.shared.forget_damage();
        }
        let bytes = database.size_bytes()?;
        let identity = database.identity;
        self.shared.set_database(identity.id);
        let opened = OpenedFile { path: file, inode: open_files.database, identity };
        let (_, layouts) = database.take_index_update();
        self.access.open(opened, database.index.full_update(), layouts);
        self.database = Some(database);
        if is_written {
            self.finish_write();
        }
        for gap in new_gaps {
            (self.log)(&format!("the store in {} is incomplete: {gap}", self.directory()));
        }
        if !self.failing || self.uncommitted.is_empty() {
            self.set_durable(bytes);
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), WriterError> {
        let (Some(database), false) = (&mut self.database, self.uncommitted.is_empty()) else {
            return Ok(());
        };
        self.unconfirmed = Some(UnconfirmedWrite::new(database, self.uncommitted.len()));
        database.write(self.uncommitted.make_contiguous(), ClockReading::of(&self.clock))?;
        // If a file was replaced, this commit may be lost: the batches stay queued, and are written again unless the database
        // that is opened next has them.
        self.check_open_files()?;
        let marked = self.database.as_ref().map_or(Ok(()), Database::write_mark);
        self.finish_write();
        marked?;
        self.request_sync()?;
        if let (true, Some(database)) = (self.failing, &self.database) {
            let bytes = database.size_bytes()?;
            self.set_durable(bytes);
        }
        Ok(())
    }

    /// Removes the batches of a write that is in the database, and begins the sums that waited for them.
    fn finish_write(&mut self) {
        let (Some(write), Some(database)) = (self.unconfirmed.take(), &mut self.database) else { return };
        let written: Vec<Batch> = self.uncommitted.drain(..write.batches).collect();
        let last = written.last().map_or(0, |batch| batch.last_number);
        let memory_bytes = written.iter().map(Batch::memory_bytes).sum();
        self.ops_since_retention += written.iter().map(|batch| batch.ops.len()).sum::<usize>();
        for sum in written.into_iter().flat_map(|batch| batch.sums) {
            self.sums.begin(database, sum);
        }
        let (update, layouts) = database.take_index_update();
        self.access.publish(Some(last), update, layouts);
        self.shared.set_committed(last, memory_bytes);
    }

    /// Requests a sync of the commits so far. A failed sync may have lost accounts that were answered as durable, and a
    /// second one would succeed without writing them, so it is reported as damage.
    fn request_sync(&mut self) -> Result<(), WriterError> {
        self.has_committed = true;
        let (SyncMode::Normal, Some(state_dir)) = (self.settings.sync, &self.state_dir) else {
            return Ok(());
        };
        if self.log_sync.is_none()
            && let Some(log) = state_dir.open_log()?
        {
            self.log_sync =
                Some(LogSync::start(log, self.settings.sync_interval).map_err(WriterError::Sync)?);
        }
        if let Some(log_sync) = &self.log_sync {
            log_sync.request();
        }
        self.report_sync_error();
        Ok(())
    }

    /// Reports the error of a sync since the last call; returns whether there was one.
    fn report_sync_error(&self) -> bool {
        let Some(error) = self.log_sync.as_ref().and_then(LogSync::take_error) else { return false };
        self.report_failed_sync(&error);
        true
    }

    fn report_failed_sync(&self, error: &io::Error) {
        let reason =
            format!("a sync of ledger.sqlite-wal failed ({error}); a power cut may lose more than stated");
        if self.shared.report_damage(&reason) {
            (self.log)(&format!("{}: {reason}", self.directory()));
        }
    }

    /// After a time without commits: syncs the log, so that a power cut then loses nothing.
    fn settle_log(&mut self) -> Result<(), WriterError> {
        let has_committed = std::mem::take(&mut self.has_committed);
        if self.report_sync_error() || has_committed || self.settings.sync != SyncMode::Normal {
            return Ok(());
        }
        let (Some(state_dir), Some(database)) = (&self.state_dir, &mut self.database) else { return Ok(()) };
        if database.has_reserved_ids() {
            let synced = state_dir.open_log()?.map_or(Ok(()), |log| log.sync_data());
            if let Err(error) = synced {
                self.report_failed_sync(&error);
                return Ok(());
            }
            database.release_ids()?;
        }
        Ok(())
    }

    /// Closes the database, which checkpoints the write-ahead log, and states in the mark that all is on the disk.
    pub fn end(&mut self) {
        self.sums.stop();
        self.access.close();
        self.log_sync = None;
        let Some(database) = self.database.take() else { return };
        if let Err(error) = database.close() {
            (self.log)(&format!("the store in {} was not closed in order: {error}", self.directory()));
        }
    }

    /// Checks that the open files are still at their paths.
    fn check_open_files(&mut self) -> Result<(), WriterError> {
        let (Some(state_dir), Some(open)) = (&self.state_dir, &mut self.open_files) else { return Ok(()) };
        let current = state_dir.file_ids()?;
        let wal = *open.wal.get_or_insert(current.wal.unwrap_or_default());
        if current.database == open.database && current.wal == Some(wal) {
            return Ok(());
        }
        Err(StateDirError::Removed(self.settings.directory.clone()).into())
    }

    fn apply_retention(&mut self) -> Result<(), WriterError> {
        self.state_dir.as_ref().map_or(Ok(()), StateDir::check_unchanged)?;
        let Some(database) = &mut self.database else { return Ok(()) };
        let now = ClockReading::of(&self.clock);
        let step = retention::run_step(database, &self.settings, now)?;
        let has_more_filters = !step.more && database.build_filters()?;
        let (update, layouts) = database.take_index_update();
        self.access.publish(None, update, layouts);
        database.save_running_time(now)?;
        step.log_lines.iter().for_each(|line| (self.log)(line));
        if !step.more && !has_more_filters {
            self.settle_log()?;
        }
        let Some(database) = &mut self.database else { return Ok(()) };
        let is_complete = !step.more && !has_more_filters;
        self.retention_at_ns = self.clock.now_ns()
            + if is_complete { RETENTION_INTERVAL_NS } else { RETENTION_STEP_INTERVAL_NS };
        self.ops_since_retention = 0;
        if !step.more {
            self.shared.set_forecast(retention::forecast(database, &self.settings, now)?);
            self.shared.set_gaps(database.describe_gaps());
        }
        let bytes = database.size_bytes()?;
        if !self.failing {
            self.shared.set_durable(bytes);
        }
        Ok(())
    }

    fn set_durable(&mut self, bytes: u64) {
        self.shared.set_durable(bytes);
        if std::mem::take(&mut self.failing) {
            (self.log)(&format!("the ledger in {} can be written again", self.directory()));
        }
    }

    fn set_failing(&mut self, error: &WriterError) {
        let reason = format!("the ledger in {} cannot be written: {error}", self.directory());
        if !std::mem::replace(&mut self.failing, true) {
            (self.log)(&format!(
                "{reason}; accounts are returned as not durable; the write is retried every second"
            ));
        }
        self.shared.set_failing(reason);
        self.shared.wake();
    }

    /// Moves a corrupt database away; the next attempt creates a new one.
    fn quarantine(&mut self, error: &DatabaseError) {
        let moved = match &self.state_dir {
            Some(state_dir) => state_dir.quarantine(ClockReading::of(&self.clock).unix_s.max(0) as u64),
            None => return,
        };
        match moved {
            Ok(path) => {
                (self.log)(&format!(
                    "the ledger in {} is damaged ({error}); it is moved to {} and a new one is created",
                    self.directory(),
                    path.display()
                ));
                // Retry at once, unless a database was quarantined moments ago: then the disk itself is failing.
                let now_ns = self.clock.now_ns();
                let before_ns = self.quarantined_at_ns.replace(now_ns);
                if before_ns.is_none_or(|before_ns| now_ns - before_ns > 10 * RETRY_INTERVAL_NS) {
                    self.retry_at_ns = now_ns;
                }
            }
            Err(error) => self.set_failing(&error.into()),
        }
    }

    fn directory(&self) -> std::path::Display<'_> {
        self.settings.directory.display()
    }
}

impl Drop for WriterThread {
    /// Ends the wait of queries for a commit, also after a panic.
    fn drop(&mut self) {
        self.access.close();
    }
}
