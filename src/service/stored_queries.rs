//! Questions that the disk is asked, and its answers in the words of the wire.
//!
//! Owns who asked what. Whose accounts a caller may see is decided when it asks, and goes with the question.

use super::access::Peer;
use super::durability::Durability;
use super::queries::is_visible_to;
use super::reply_to::ReplyTo;
use super::service::Service;
use crate::protocol::{self, ListSpans, MethodError, MethodReply, SpanAccount, SpanAccounts};
use crate::store::{MAX_PENDING_QUERIES, QueryError, QueryResult, StoreQuery};

/// A question that the disk was asked, and whose.
pub(crate) struct PendingQuery {
    reply_to: ReplyTo,
    peer: Peer,
    kind: QueryKind,
    pub(crate) sent_ns: u64,
}

enum QueryKind {
    Span(String),
    List(Box<ListSpans>),
}

impl Service {
    /// Asks the disk for a span that is no longer remembered; false where it cannot be asked.
    pub(crate) fn query_span(
        &mut self,
        peer: &Peer,
        reply_to: ReplyTo,
        span: &str,
    ) -> Result<bool, MethodError> {
        let anybody = peer.access >= protocol::Access::Telemetry;
        let question = StoreQuery::Span { uid: peer.uid, all_users: anybody, span: span.to_owned() };
        self.submit_query(peer, reply_to, question, QueryKind::Span(span.to_owned()))
    }

    /// Asks the disk for the latest accounts; false where it cannot be asked.
    pub(crate) fn query_list(
        &mut self,
        peer: &Peer,
        reply_to: ReplyTo,
        call: &ListSpans,
        question: StoreQuery,
    ) -> Result<bool, MethodError> {
        self.submit_query(peer, reply_to, question, QueryKind::List(Box::new(call.clone())))
    }

    fn submit_query(
        &mut self,
        peer: &Peer,
        reply_to: ReplyTo,
        question: StoreQuery,
        kind: QueryKind,
    ) -> Result<bool, MethodError> {
        /// Of one user: a list may be a megabyte on the wire. Of single spans, each connection has its bound.
        const MAX_LISTS_PER_USER: usize = 8;
        let full = |limit: usize| MethodError::QuotaExceeded {
            quota: "lists of spans at a time".into(),
            limit: limit as u64,
        };
        let Some(durability) = &mut self.durability else { return Ok(false) };
        if durability.is_failing() {
            // The latest accounts are in memory, and GetInfo says that it is so; a name that is not may be on disk.
            let is_list = matches!(kind, QueryKind::List(_));
            return if is_list { Ok(false) } else { Err(store_unavailable(durability.failure_reason())) };
        }
        let is_list =
            |query: &&PendingQuery| matches!(query.kind, QueryKind::List(_)) && query.peer.uid == peer.uid;
        if matches!(kind, QueryKind::List(_))
            && durability.pending_queries.values().filter(is_list).count() >= MAX_LISTS_PER_USER
        {
            return Err(full(MAX_LISTS_PER_USER));
        }
        let (number, sent_ns) = (durability.next_query, self.clock.now_ns());
        if !durability.store.submit_query(number, question) {
            // Not how many wait: those are questions of others.
            return Err(full(MAX_PENDING_QUERIES));
        }
        durability.next_query += 1;
        durability.pending_queries.insert(number, PendingQuery { reply_to, peer: *peer, kind, sent_ns });
        Ok(true)
    }

    /// Answers from memory what the disk was asked; should its own answers come, nobody waits for them any more.
    pub(crate) fn answer_from_memory(&mut self) {
        let query = self
            .durability
            .as_ref()
            .map_or(Vec::new(), |durability| durability.pending_queries.keys().copied().collect());
        let reason = self.durability.as_ref().and_then(Durability::failure_reason);
        query
            .into_iter()
            .for_each(|number| self.complete_query(number, QueryOutcome::Skipped(reason.clone())));
    }

    /// The disk's answer, in the words of the wire.
    pub(crate) fn complete_query(&mut self, number: u64, outcome: QueryOutcome) {
        let query =
            self.durability.as_mut().and_then(|durability| durability.pending_queries.remove(&number));
        let Some(PendingQuery { reply_to, peer, kind, .. }) = query else { return };
        let mut out = Vec::new();
        match (kind, outcome) {
            (QueryKind::Span(span), QueryOutcome::Found(found)) => {
                match found.accounts.into_iter().find(|account| is_visible_to(&peer, account)) {
                    Some(account) => MethodReply::last(SpanAccount { account }).encode(&mut out),
                    None => MethodError::NoSuchSpan { span }.encode(&mut out),
                }
            }
            (QueryKind::List(_), QueryOutcome::Found(QueryResult { mut accounts, before })) => {
                accounts.retain(|account| is_visible_to(&peer, account));
                accounts.reverse();
                let before = before.map(|number| self.encode_cursor(&peer, number));
                MethodReply::last(SpanAccounts { accounts, before }).encode(&mut out);
            }
            (QueryKind::List(call), QueryOutcome::Skipped(_)) => {
                match self.list_remembered_spans(&peer, &call) {
                    Ok(accounts) => MethodReply::last(accounts).encode(&mut out),
                    Err(error) => error.encode(&mut out),
                }
            }
            (QueryKind::Span(_), QueryOutcome::Skipped(reason)) => store_unavailable(reason).encode(&mut out),
            (_, QueryOutcome::Fault(QueryError::Damaged { reason, before })) => {
                let before = before.map(|number| self.encode_cursor(&peer, number));
                MethodError::StoreDamaged { reason, before }.encode(&mut out);
            }
            (_, QueryOutcome::Fault(QueryError::Unavailable { reason })) => {
                store_unavailable(Some(reason)).encode(&mut out)
            }
        }
        self.store_replies.push((reply_to, out));
    }
}

/// What became of a question.
pub(crate) enum QueryOutcome {
    /// The disk answered.
    Found(QueryResult),
    /// The disk could not.
    Fault(QueryError),
    /// The disk fails or is silent, for this reason.
    Skipped(Option<String>),
}

impl From<Result<QueryResult, QueryError>> for QueryOutcome {
    fn from(outcome: Result<QueryResult, QueryError>) -> Self {
        outcome.map_or_else(QueryOutcome::Fault, QueryOutcome::Found)
    }
}

fn store_unavailable(reason: Option<String>) -> MethodError {
    MethodError::StoreUnavailable {
        reason: reason.unwrap_or_else(|| "the disk does not answer; ask again".into()),
    }
}
