//! The calls of SumSpans that the store has not answered.
//!
//! Invariant: one call of a user runs at a time, and [`MAX_RUNNING_SUMS`] in total. A call counts until its thread has ended, also
//! where its client has disconnected, or has got an error because the disk does not respond.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use wattspan_client::protocol::MethodError;

use super::access::{self, Peer};
use super::caller::{Caller, ConnectionId, ReplyTo};
use super::reply::{MethodResult, Reply};
use crate::store::{MAX_RUNNING_SUMS, QueryError, SumQuery, SumResult};

/// A call that reads nothing for so long is answered with an error: the disk does not respond.
const STALL_TIMEOUT_NS: u64 = 5_000_000_000;

/// The running calls, by number.
#[derive(Default)]
pub(crate) struct RunningSums {
    running: BTreeMap<u64, RunningSum>,
    next_number: u64,
}

struct RunningSum {
    peer: Peer,
    reply_to: ReplyTo,
    /// The open spans of the users of the query, at the time of the call.
    open: u64,
    is_cancelled: Arc<AtomicBool>,
    is_answered: bool,
    /// The store's counter, its value when it was last looked at, and the time at which that had changed.
    progress: Arc<AtomicU64>,
    last_progress: u64,
    progress_ns: u64,
}

impl RunningSum {
    /// Ends the call; returns its reply.
    fn fail(&mut self, error: MethodError) -> (ReplyTo, MethodResult) {
        self.is_cancelled.store(true, Ordering::Relaxed);
        self.is_answered = true;
        (self.reply_to, Err(error))
    }
}

impl RunningSums {
    /// Adds a call; returns the number of its query.
    ///
    /// # Errors
    /// `QuotaExceeded`: a call of the same user runs, or too many calls of all users. `StoreUnavailable`: a call of the same
    /// user was answered with an error, and still waits for the disk.
    pub(crate) fn insert(
        &mut self,
        caller: &Caller,
        query: &SumQuery,
        open: u64,
        now_ns: u64,
    ) -> Result<u64, MethodError> {
        let full = |limit: usize| MethodError::QuotaExceeded {
            quota: "sums of spans at a time".into(),
            limit: limit as u64,
        };
        if let Some(sum) = self.running.values().find(|sum| sum.peer.uid == caller.peer.uid) {
            return Err(if sum.is_answered { not_responding() } else { full(1) });
        }
        if self.running.len() >= MAX_RUNNING_SUMS {
            return Err(full(MAX_RUNNING_SUMS));
        }
        let number = self.next_number;
        self.next_number += 1;
        let sum = RunningSum {
            peer: caller.peer,
            reply_to: caller.reply_to,
            open,
            is_cancelled: Arc::clone(&query.is_cancelled),
            is_answered: false,
            progress: Arc::clone(&query.progress),
            last_progress: 0,
            progress_ns: now_ns,
        };
        self.running.insert(number, sum);
        Ok(number)
    }

    /// The number of calls that wait for their reply.
    pub(crate) fn waiting(&self) -> usize {
        self.running.values().filter(|sum| !sum.is_answered).count()
    }

    /// Ends the calls of a closed connection.
    pub(crate) fn cancel_connection(&mut self, connection: ConnectionId) {
        let of_connection = self.running.values().filter(|sum| sum.reply_to.connection == connection);
        of_connection.for_each(|sum| sum.is_cancelled.store(true, Ordering::Relaxed));
    }

    /// Ends all calls, with this error.
    pub(crate) fn fail_all(&mut self, error: &MethodError, replies: &mut Vec<(ReplyTo, MethodResult)>) {
        for sum in self.running.values_mut().filter(|sum| !sum.is_answered) {
            replies.push(sum.fail(error.clone()));
        }
    }

    /// Ends the calls of a connection whose peer has less access now than at the call.
    pub(crate) fn apply_access(
        &mut self,
        connection: ConnectionId,
        peer: &Peer,
        replies: &mut Vec<(ReplyTo, MethodResult)>,
    ) {
        let of_connection = self.running.values_mut().filter(|sum| sum.reply_to.connection == connection);
        for sum in of_connection.filter(|sum| !sum.is_answered) {
            if let Err(error) = access::check_not_reduced(peer, &sum.peer) {
                replies.push(sum.fail(error));
            }
        }
    }

    /// Answers the calls without progress for [`STALL_TIMEOUT_NS`], and ends them once their disk operation returns.
    pub(crate) fn fail_stalled(&mut self, now_ns: u64, replies: &mut Vec<(ReplyTo, MethodResult)>) {
        for sum in self.running.values_mut().filter(|sum| !sum.is_answered) {
            let progress = sum.progress.load(Ordering::Relaxed);
            if progress != sum.last_progress {
                (sum.last_progress, sum.progress_ns) = (progress, now_ns);
            }
            if now_ns.saturating_sub(sum.progress_ns) > STALL_TIMEOUT_NS {
                replies.push(sum.fail(not_responding()));
            }
        }
    }

    /// The time at which [`Self::fail_stalled`] is due.
    pub(crate) fn timeout_at_ns(&self) -> Option<u64> {
        let waiting = self.running.values().filter(|sum| !sum.is_answered);
        waiting.map(|sum| sum.progress_ns + STALL_TIMEOUT_NS + 1).min()
    }

    /// Removes a call whose thread has ended; returns its reply unless it was answered before.
    pub(crate) fn complete(
        &mut self,
        number: u64,
        result: Result<SumResult, QueryError>,
    ) -> Option<(ReplyTo, MethodResult)> {
        let sum = self.running.remove(&number).filter(|sum| !sum.is_answered)?;
        let shows_last = sum.peer.uid_filter().is_none();
        let result = match result {
            Ok(result) => Ok(Reply::Sums(Box::new(result.into_reply(sum.open, shows_last)))),
            Err(QueryError::Damaged { reason, .. }) => {
                Err(MethodError::StoreDamaged { reason, before: None })
            }
            Err(QueryError::Unavailable { reason }) => Err(MethodError::StoreUnavailable { reason }),
            Err(QueryError::Invalid { field, reason }) => {
                Err(MethodError::InvalidValue { field: field.into(), reason })
            }
        };
        Some((sum.reply_to, result))
    }
}

fn not_responding() -> MethodError {
    MethodError::StoreUnavailable { reason: "the disk of the ledger does not respond; try again".into() }
}
