//! Questions that the disk is asked, and its answers in the words of the wire.
//!
//! Owns who asked what. Whose accounts a caller may see is decided when it asks, and goes with the question.

use super::access::Peer;
use super::inquiry::may_see;
use super::keeping::Keeping;
use super::service::Service;
use super::ticket::Ticket;
use crate::protocol::{self, ListSpans, Refusal, Reply, SpanAccount, SpanAccounts};
use crate::store::{MAX_PENDING_QUERIES, QueryError, QueryResult, StoreQuery};

/// A question that the disk was asked, and whose.
pub(crate) struct Asked {
    ticket: Ticket,
    peer: Peer,
    what: What,
    pub(crate) since_ns: u64,
}

enum What {
    Span(String),
    List(Box<ListSpans>),
}

impl Service {
    /// Asks the disk for a span that is no longer remembered; false where it cannot be asked.
    pub(crate) fn ask_for_span(&mut self, peer: &Peer, ticket: Ticket, span: &str) -> Result<bool, Refusal> {
        let anybody = peer.access >= protocol::Access::Telemetry;
        let question = StoreQuery::Span { uid: peer.uid, all_users: anybody, span: span.to_owned() };
        self.ask(peer, ticket, question, What::Span(span.to_owned()))
    }

    /// Asks the disk for the latest accounts; false where it cannot be asked.
    pub(crate) fn ask_for_list(
        &mut self,
        peer: &Peer,
        ticket: Ticket,
        call: &ListSpans,
        question: StoreQuery,
    ) -> Result<bool, Refusal> {
        self.ask(peer, ticket, question, What::List(Box::new(call.clone())))
    }

    fn ask(
        &mut self,
        peer: &Peer,
        ticket: Ticket,
        question: StoreQuery,
        what: What,
    ) -> Result<bool, Refusal> {
        /// Of one user: a list may be a megabyte on the wire. Of single spans, each connection has its bound.
        const MOST_LISTS: usize = 8;
        let full = |limit: usize| Refusal::QuotaExceeded {
            quota: "lists of spans at a time".into(),
            limit: limit as u64,
        };
        let Some(keeping) = &mut self.keeping else { return Ok(false) };
        if keeping.is_failing() {
            // The latest accounts are in memory, and GetInfo says that it is so; a name that is not may be on disk.
            let is_list = matches!(what, What::List(_));
            return if is_list { Ok(false) } else { Err(unavailable(keeping.reason())) };
        }
        let is_list = |asked: &&Asked| matches!(asked.what, What::List(_)) && asked.peer.uid == peer.uid;
        if matches!(what, What::List(_)) && keeping.asked.values().filter(is_list).count() >= MOST_LISTS {
            return Err(full(MOST_LISTS));
        }
        let (number, since_ns) = (keeping.questions, self.clock.now_ns());
        if !keeping.store.submit_query(number, question) {
            // Not how many wait: those are questions of others.
            return Err(full(MAX_PENDING_QUERIES));
        }
        keeping.questions += 1;
        keeping.asked.insert(number, Asked { ticket, peer: *peer, what, since_ns });
        Ok(true)
    }

    /// Answers from memory what the disk was asked; should its own answers come, nobody waits for them any more.
    pub(crate) fn answer_without_disk(&mut self) {
        let asked =
            self.keeping.as_ref().map_or(Vec::new(), |keeping| keeping.asked.keys().copied().collect());
        let reason = self.keeping.as_ref().and_then(Keeping::reason);
        asked.into_iter().for_each(|number| self.answer(number, Answer::Forgone(reason.clone())));
    }

    /// The disk's answer, in the words of the wire.
    pub(crate) fn answer(&mut self, number: u64, answer: Answer) {
        let asked = self.keeping.as_mut().and_then(|keeping| keeping.asked.remove(&number));
        let Some(Asked { ticket, peer, what, .. }) = asked else { return };
        let mut out = Vec::new();
        match (what, answer) {
            (What::Span(span), Answer::Found(found)) => {
                match found.accounts.into_iter().find(|account| may_see(&peer, account)) {
                    Some(account) => Reply::last(SpanAccount { account }).write(&mut out),
                    None => Refusal::NoSuchSpan { span }.write(&mut out),
                }
            }
            (What::List(_), Answer::Found(QueryResult { mut accounts, before })) => {
                accounts.retain(|account| may_see(&peer, account));
                accounts.reverse();
                let before = before.map(|number| self.sealed(&peer, number));
                Reply::last(SpanAccounts { accounts, before }).write(&mut out);
            }
            (What::List(call), Answer::Forgone(_)) => match self.remembered(&peer, &call) {
                Ok(accounts) => Reply::last(accounts).write(&mut out),
                Err(refusal) => refusal.write(&mut out),
            },
            (What::Span(_), Answer::Forgone(reason)) => unavailable(reason).write(&mut out),
            (_, Answer::Fault(QueryError::Damaged { reason, before })) => {
                let before = before.map(|number| self.sealed(&peer, number));
                Refusal::StoreDamaged { reason, before }.write(&mut out);
            }
            (_, Answer::Fault(QueryError::Unavailable { reason })) => {
                unavailable(Some(reason)).write(&mut out)
            }
        }
        self.replies.push((ticket, out));
    }
}

/// What became of a question.
pub(crate) enum Answer {
    /// The disk answered.
    Found(QueryResult),
    /// The disk could not.
    Fault(QueryError),
    /// The disk fails or is silent, for this reason.
    Forgone(Option<String>),
}

impl From<Result<QueryResult, QueryError>> for Answer {
    fn from(answer: Result<QueryResult, QueryError>) -> Self {
        answer.map_or_else(Answer::Fault, Answer::Found)
    }
}

fn unavailable(reason: Option<String>) -> Refusal {
    Refusal::StoreUnavailable {
        reason: reason.unwrap_or_else(|| "the disk does not answer; ask again".into()),
    }
}
