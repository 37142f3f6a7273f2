//! The store's thread, which does all disk access.
//!
//! It owns the database and the batches that are not yet on disk. After an error it logs one line, closes the
//! connection (after a failed write the caches of SQLite and the kernel may differ from the file), and reopens the
//! file every second. Invariant: accounts are written in the order in which they were appended, each once.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::account_index::Damage;
use super::account_read::ReadError;
use super::batch::Batch;
use super::database::Database;
use super::high_water_mark::MarkFile;
use super::query::{QueryError, QueryResult, RunningQuery, StoreQuery};
use super::retention;
use super::schema::DatabaseError;
use super::settings::StoreSettings;
use super::shared::{NumberedResult, StoreShared, WorkReceiver};
use super::state_dir::{FileIds, StateDir, StateDirError};
use super::sum_threads::SumThreads;
use super::time::ClockReading;

/// The interval between attempts to open the database after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The intervals between checks for accounts to delete, and between two steps of a deletion.
const RETENTION_INTERVAL: Duration = Duration::from_secs(10);
const RETENTION_STEP_INTERVAL: Duration = Duration::from_millis(20);

/// A check also runs after this many write operations.
const RETENTION_OPS: usize = 16_384;

/// The maximum time for queries between two commits.
const QUERY_TIME_SLICE: Duration = Duration::from_millis(5);

/// The error of an operation of the store's thread.
#[derive(Debug, thiserror::Error)]
enum WriterError {
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    #[error("{0}")]
    Database(#[from] DatabaseError),
    #[error("cannot write ledger.mark: {0}")]
    MarkFile(#[from] io::Error),
}

pub(super) struct WriterThread {
    shared: Arc<StoreShared>,
    work: WorkReceiver,
    results: Sender<NumberedResult>,
    sums: SumThreads,
    settings: StoreSettings,
    log: fn(&str),
    state_dir: Option<StateDir>,
    database: Option<Database>,
    /// The inodes of the open files.
    open_files: Option<FileIds>,
    /// For the administrator: the accounts that may be lost, and the first damage that a query found.
    gap_report: Option<String>,
    damage_report: Option<String>,
    /// Database files whose journal this process wrote. After a reopen their journal has spans that are still open,
    /// so that [`Database::recover`] must not run on them.
    own_files: Vec<(u64, u64)>,
    /// Batches that are not on disk yet.
    uncommitted: VecDeque<Batch>,
    /// Queries that have begun or wait for their turn, each with its number.
    queries: VecDeque<(u64, RunningQuery)>,
    failing: bool,
    retry_at: Instant,
    retention_at: Instant,
    ops_since_retention: usize,
    quarantined_at: Option<Instant>,
}

impl WriterThread {
    pub fn new(
        shared: Arc<StoreShared>,
        work: WorkReceiver,
        results: Sender<NumberedResult>,
        sums: SumThreads,
        settings: StoreSettings,
        log: fn(&str),
    ) -> Self {
        let now = Instant::now();
        Self {
            shared,
            work,
            results,
            sums,
            settings,
            log,
            state_dir: None,
            database: None,
            open_files: None,
            gap_report: None,
            damage_report: None,
            own_files: Vec::new(),
            uncommitted: VecDeque::new(),
            queries: VecDeque::new(),
            failing: false,
            retry_at: now,
            retention_at: now + RETENTION_STEP_INTERVAL,
            ops_since_retention: 0,
            quarantined_at: None,
        }
    }

    /// Runs until a shutdown is requested.
    pub fn run(mut self) {
        self.attempt(Self::open);
        loop {
            let due = if self.database.is_some() { self.retention_at } else { self.retry_at };
            let due = if self.queries.is_empty() { due } else { Instant::now() };
            let (query, shutdown) = self.work.take_work(due, &mut self.uncommitted);
            self.queries.extend(query.map(|(number, query)| (number, RunningQuery::new(query))));
            if self.database.is_none() && (Instant::now() >= self.retry_at || shutdown) {
                self.attempt(Self::open);
            }
            let mut wake = self.uncommitted.iter().any(|batch| batch.urgent);
            self.attempt(Self::write);
            wake |= self.run_queries();
            if wake {
                self.shared.wake();
            }
            if shutdown && self.queries.is_empty() {
                break;
            }
            if Instant::now() >= self.retention_at || self.ops_since_retention >= RETENTION_OPS {
                self.attempt(Self::apply_retention);
            }
        }
        self.sums.stop();
        // Closing the connection checkpoints the write-ahead log.
        self.database = None;
    }

    /// Runs a disk operation and handles its error.
    fn attempt(&mut self, operation: fn(&mut Self) -> Result<(), WriterError>) {
        if let Err(error) = operation(self) {
            self.sums.stop();
            self.database = None;
            self.retry_at = Instant::now() + RETRY_INTERVAL;
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
        let now = ClockReading::now();
        let mut database = Database::open(&file, mark_file, &self.settings, now)?;
        let open_files = state_dir.file_ids()?;
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
        (self.gap_report, self.damage_report) = (database.describe_gaps(), None);
        let bytes = database.size_bytes()?;
        self.shared.set_database(database.identity.id);
        self.database = Some(database);
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
        database.write(self.uncommitted.make_contiguous(), ClockReading::now())?;
        // If a file was replaced, this commit is lost: the batches stay queued and are written again to the new file.
        self.check_open_files()?;
        let Some(database) = &self.database else { return Ok(()) };
        let marked = database.write_mark();
        let last = self.uncommitted.back().map_or(0, |batch| batch.last_number);
        let memory_bytes = self.uncommitted.iter().map(Batch::memory_bytes).sum();
        self.ops_since_retention += self.uncommitted.iter().map(|batch| batch.ops.len()).sum::<usize>();
        for sum in self.uncommitted.iter_mut().flat_map(|batch| batch.sums.drain(..)) {
            self.sums.begin(database, sum);
        }
        self.uncommitted.clear();
        self.shared.set_committed(last, memory_bytes);
        marked?;
        if self.failing {
            let bytes = database.size_bytes()?;
            self.set_durable(bytes);
        }
        Ok(())
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
        let now = ClockReading::now();
        let step = retention::run_step(database, &self.settings, now)?;
        let has_more_filters = !step.more && database.build_filters()?;
        database.save_running_time(now)?;
        step.log_lines.iter().for_each(|line| (self.log)(line));
        self.retention_at = Instant::now()
            + if step.more || has_more_filters { RETENTION_STEP_INTERVAL } else { RETENTION_INTERVAL };
        self.ops_since_retention = 0;
        if !step.more {
            self.shared.set_forecast(retention::forecast(database, &self.settings, now)?);
            self.gap_report = database.describe_gaps();
        }
        let bytes = database.size_bytes()?;
        if !self.failing {
            self.shared.set_durable(bytes, self.loss_report());
        }
        Ok(())
    }

    /// Runs queries in turns for one time slice, or until a batch waits; returns whether one has ended.
    fn run_queries(&mut self) -> bool {
        let (deadline, mut has_ended) = (Instant::now() + QUERY_TIME_SLICE, false);
        while let Some((number, mut running)) = self.queries.pop_front() {
            match self.run_query(&mut running) {
                Some(result) => {
                    // Fails only if the store was dropped: its shutdown does not wait for a slow disk.
                    let _ = self.results.send((number, result));
                    has_ended = true;
                    let next = self.work.next_query();
                    self.queries.extend(next.map(|(number, query)| (number, RunningQuery::new(query))));
                }
                None => self.queries.push_back((number, running)),
            }
            if self.work.has_batches() || Instant::now() >= deadline {
                break;
            }
        }
        has_ended
    }

    /// Runs a turn of a query; returns its result at the end. A read error does not close the database: writes may still
    /// succeed.
    fn run_query(&mut self, running: &mut RunningQuery) -> Option<Result<QueryResult, QueryError>> {
        let Some(database) = &self.database else {
            let reason =
                self.shared.health().reason.unwrap_or_else(|| "the store is being opened; try again".into());
            return Some(Err(QueryError::Unavailable { reason }));
        };
        match running.run_turn(database) {
            Ok(result) => result.map(Ok),
            Err(error) => Some(Err(self.query_error(&running.query, error))),
        }
    }

    /// Reports an error of a query, and converts it for the client.
    fn query_error(&mut self, query: &StoreQuery, error: ReadError) -> QueryError {
        let error = match error {
            ReadError::Damaged(damage) => {
                let before = matches!(query, StoreQuery::List { .. }).then_some(damage.first().max(1) as u64);
                let reason = damage.reason();
                // A gap was reported when it was found.
                if let Damage::Corrupt { first, last } = damage {
                    self.report_damage(&format!("{reason} (accounts {first} to {last})"));
                }
                return QueryError::Damaged { reason, before };
            }
            ReadError::Invalid { field, reason } => return QueryError::Invalid { field, reason },
            ReadError::Database(error) => error,
        };
        let reason = format!("the store in {} cannot be read: {error}", self.directory());
        if error.is_corruption() {
            self.report_damage(&reason);
            return QueryError::Damaged { reason: "the store on disk is damaged".into(), before: None };
        }
        (self.log)(&reason);
        QueryError::Unavailable { reason }
    }

    /// Logs the first damage that a query found, and adds it to the health report.
    fn report_damage(&mut self, reason: &str) {
        if self.damage_report.is_some() {
            return;
        }
        (self.log)(&format!(
            "{}: {reason}; queries that reach it fail, new accounts are stored",
            self.directory()
        ));
        self.damage_report = Some(reason.to_owned());
        if !self.failing {
            self.shared.set_durable(self.shared.health().bytes, self.loss_report());
        }
    }

    fn loss_report(&self) -> Option<String> {
        let all: Vec<&str> =
            [&self.gap_report, &self.damage_report].into_iter().flatten().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    fn set_durable(&mut self, bytes: u64) {
        self.shared.set_durable(bytes, self.loss_report());
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
            Some(state_dir) => state_dir.quarantine(ClockReading::now().unix_s.max(0) as u64),
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
                let now = Instant::now();
                if self.quarantined_at.replace(now).is_none_or(|before| now - before > 10 * RETRY_INTERVAL) {
                    self.retry_at = now;
                }
            }
            Err(error) => self.set_failing(&error.into()),
        }
    }

    fn directory(&self) -> std::path::Display<'_> {
        self.settings.directory.display()
    }
}
