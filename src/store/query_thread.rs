//! The thread for queries, which read beside the store's thread.
//!
//! Queries run in turns, each with a read transaction of its own: the write-ahead log cannot be reset during one. Invariant: a
//! query begins once every account that was appended before it is on disk, or when the database is closed.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::account_index::Damage;
use super::account_read::ReadError;
use super::query::{QueryError, QueryResult, RunningQuery, StoreQuery};
use super::read_access::ReadAccess;
use super::shared::StoreShared;

/// How long results may wait for those of other queries, so that one wake-up of the service serves several.
const RESULT_DELAY: Duration = Duration::from_millis(1);

/// A query of the service.
pub(super) struct SubmittedQuery {
    /// The number that its result will carry.
    pub number: u64,
    pub query: StoreQuery,
    /// The sequence number of the last account that was appended before it.
    pub appended: u64,
}

/// The result of a query with the query's number.
pub(super) type NumberedResult = (u64, Result<QueryResult, QueryError>);

pub(super) struct QueryThread {
    pub access: Arc<ReadAccess>,
    pub shared: Arc<StoreShared>,
    pub queries: Receiver<SubmittedQuery>,
    pub results: Sender<NumberedResult>,
    /// The state directory, for messages.
    pub directory: PathBuf,
    pub log: fn(&str),
    /// Queries that have begun or wait for their turn.
    pub running: VecDeque<PendingQuery>,
}

/// A query between two turns.
pub(super) struct PendingQuery {
    number: u64,
    pub appended: u64,
    running: RunningQuery,
}

impl QueryThread {
    /// Runs until the service drops its side of the channel and all queries have a result.
    pub fn run(mut self) {
        while self.take_query() {
            let (deadline, mut has_ended) = (Instant::now() + RESULT_DELAY, false);
            while !self.running.is_empty() && Instant::now() < deadline {
                has_ended |= self.run_turn();
                self.take_waiting_query();
            }
            if has_ended {
                self.shared.wake();
            }
        }
    }

    /// Waits for a query if none is running; returns false at the end.
    fn take_query(&mut self) -> bool {
        if self.running.is_empty() {
            self.running.extend(self.queries.recv().ok().map(PendingQuery::new));
        }
        !self.running.is_empty()
    }

    /// Takes one query at a time: so the channel's length bounds how many wait.
    fn take_waiting_query(&mut self) {
        self.running.extend(self.queries.try_recv().ok().map(PendingQuery::new));
    }

    /// Runs a turn of one query; returns whether it has ended.
    pub fn run_turn(&mut self) -> bool {
        let is_ready = |pending: &PendingQuery| self.access.is_ready(pending.appended);
        let Some(at) = self.running.iter().position(is_ready) else {
            if let Some(appended) = self.running.iter().map(|pending| pending.appended).min() {
                // Results that are ready do not wait for the commit.
                self.shared.wake();
                self.access.wait_for(appended);
            }
            return false;
        };
        let Some(mut pending) = self.running.remove(at) else { return false };
        let turn = self.access.run_turn(|view| pending.running.run_turn(view));
        let result = match turn {
            Some(Ok(None)) => {
                self.running.push_back(pending);
                return false;
            }
            Some(Ok(Some(result))) => Ok(result),
            Some(Err(error)) => Err(self.query_error(&pending.running.query, error)),
            None => Err(self.unavailable()),
        };
        // Fails only if the store was dropped: its shutdown does not wait for a slow disk.
        let _ = self.results.send((pending.number, result));
        true
    }

    fn unavailable(&self) -> QueryError {
        let reason =
            self.shared.health().reason.unwrap_or_else(|| "the store is being opened; try again".into());
        QueryError::Unavailable { reason }
    }

    /// Reports an error of a query, and converts it for the client. A read error does not close the database: writes may
    /// still succeed.
    fn query_error(&self, query: &StoreQuery, error: ReadError) -> QueryError {
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
        let reason = format!("the store in {} cannot be read: {error}", self.directory.display());
        if error.is_corruption() {
            self.report_damage(&reason);
            return QueryError::Damaged { reason: "the store on disk is damaged".into(), before: None };
        }
        (self.log)(&reason);
        QueryError::Unavailable { reason }
    }

    /// Logs the first damage that a query found; it is also in the health report.
    fn report_damage(&self, reason: &str) {
        if self.shared.report_damage(reason) {
            (self.log)(&format!(
                "{}: {reason}; queries that reach it fail, new accounts are stored",
                self.directory.display()
            ));
        }
    }
}

impl PendingQuery {
    pub fn new(submitted: SubmittedQuery) -> Self {
        let SubmittedQuery { number, query, appended } = submitted;
        Self { number, appended, running: RunningQuery::new(query) }
    }
}
