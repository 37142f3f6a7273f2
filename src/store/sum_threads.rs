//! The threads that compute sums of accounts, one for each running query, each with a connection that only reads.
//!
//! The writer's thread begins a query once everything before it is on disk, and does not wait for it. Invariant: no such thread
//! outlives the writer's connection, because SQLite would not read the write-ahead log anew.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam_channel::Sender;

use super::database::Database;
use super::query::QueryError;
use super::read_access::ReadAccess;
use super::schema::{DatabaseError, open_read_connection};
use super::shared::StoreShared;
use super::sum_query::{NumberedSumQuery, SumQuery};
use super::sum_scan::{SumRange, SumResult, SumScan};

/// The maximum number of sums that are computed at a time.
pub const MAX_RUNNING_SUMS: usize = 4;

/// The result of a query with the query's number.
pub(super) type NumberedSumResult = (u64, Result<SumResult, QueryError>);

/// The running threads.
pub(super) struct SumThreads {
    shared: Arc<StoreShared>,
    access: Arc<ReadAccess>,
    results: Sender<NumberedSumResult>,
    pub(super) running: Vec<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl SumThreads {
    pub fn new(
        shared: Arc<StoreShared>,
        access: Arc<ReadAccess>,
        results: Sender<NumberedSumResult>,
    ) -> Self {
        Self { shared, access, results, running: Vec::new() }
    }

    /// Begins a query over the accounts that the database has now.
    pub fn begin(&mut self, database: &Database, (number, query): NumberedSumQuery) {
        self.running.retain(|(_, thread)| !thread.is_finished());
        let is_cancelled = Arc::clone(&query.is_cancelled);
        let started = match database.connection.path() {
            _ if query.is_cancelled() => Err(cancelled()),
            None => Err(unavailable("the database has no file")),
            Some(file) => {
                let range = SumRange::new(&database.index, database.identity.id, query.uid);
                self.spawn(number, query, PathBuf::from(file), range)
            }
        };
        match started {
            Ok(thread) => self.running.push((is_cancelled, thread)),
            Err(error) => {
                // Fails only if the store was dropped.
                let _ = self.results.send((number, Err(error)));
                self.shared.wake();
            }
        }
    }

    fn spawn(
        &self,
        number: u64,
        query: SumQuery,
        file: PathBuf,
        range: SumRange,
    ) -> Result<JoinHandle<()>, QueryError> {
        let (shared, access, results) =
            (Arc::clone(&self.shared), Arc::clone(&self.access), self.results.clone());
        let thread = thread::Builder::new().name("sums".into()).spawn(move || {
            if std::env::consts::OS == "linux" {
                // There it concerns this thread only (sched(7)). It gives way to those that answer other calls.
                let _ = rustix::process::nice(10);
            }
            let _ = results.send((number, run(query, &file, range, &access)));
            shared.wake();
        });
        thread.map_err(|error| unavailable(&format!("no thread can be created: {error}")))
    }

    /// Ends all queries, each after its present turn.
    pub fn stop(&mut self) {
        self.running.iter().for_each(|(is_cancelled, _)| is_cancelled.store(true, Ordering::Relaxed));
        for (_, thread) in self.running.drain(..) {
            // A panic of the thread was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn run(
    query: SumQuery,
    file: &std::path::Path,
    range: SumRange,
    access: &ReadAccess,
) -> Result<SumResult, QueryError> {
    let is_cancelled = Arc::clone(&query.is_cancelled);
    let sum = || -> Result<Option<SumResult>, DatabaseError> {
        let connection = open_read_connection(file)?;
        let mut scan = {
            let _turn = access.begin_turn();
            SumScan::begin(query, range, &connection)?
        };
        loop {
            if is_cancelled.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let _turn = access.begin_turn();
            if !scan.run_turn(&connection)? {
                return Ok(Some(scan.finish()));
            }
        }
    };
    match sum() {
        Ok(result) => result.ok_or_else(cancelled),
        Err(error) if error.is_corruption() => {
            Err(QueryError::Damaged { reason: "the store on disk is damaged".into(), before: None })
        }
        Err(error) => Err(unavailable(&format!("the store cannot be read: {error}"))),
    }
}

fn cancelled() -> QueryError {
    unavailable("the sums were ended before they were complete; try again")
}

fn unavailable(reason: &str) -> QueryError {
    QueryError::Unavailable { reason: reason.to_owned() }
}
