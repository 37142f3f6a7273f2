//! Questions that the disk is asked, and its answers in the words of the wire.
//!
//! Owns who asked what. Whose accounts a caller may see is decided when it asks, and goes with the question.

use super::access::Peer;
use super::inquiry::may_see;
use super::service::Service;
use super::ticket::Ticket;
use crate::protocol::{self, ListSpans, Refusal, Reply, SpanAccount, SpanAccounts};
use crate::store::{Found, MAX_QUESTIONS, Question};

/// A question that the disk was asked, and whose.
pub(super) struct Asked {
    ticket: Ticket,
    peer: Peer,
    what: What,
    pub(super) since_ns: u64,
}

enum What {
    Span(String),
    List(Box<ListSpans>),
}

impl Service {
    /// Asks the disk for a span that is no longer remembered; false where it cannot be asked.
    pub(super) fn ask_for_span(&mut self, peer: &Peer, ticket: Ticket, span: &str) -> Result<bool, Refusal> {
        let anybody = peer.access >= protocol::Access::Telemetry;
        let question = Question::Span { uid: peer.uid, anybody, span: span.to_owned() };
        self.ask(peer, ticket, question, What::Span(span.to_owned()))
    }

    /// Asks the disk for the latest accounts; false where it cannot be asked.
    pub(super) fn ask_for_list(
        &mut self,
        peer: &Peer,
        ticket: Ticket,
        call: &ListSpans,
        question: Question,
    ) -> Result<bool, Refusal> {
        self.ask(peer, ticket, question, What::List(Box::new(call.clone())))
    }

    fn ask(&mut self, peer: &Peer, ticket: Ticket, question: Question, what: What) -> Result<bool, Refusal> {
        /// Of one user: a list may be a megabyte on the wire. Of single spans, each connection has its bound.
        const MOST_LISTS: usize = 8;
        let full = |limit: usize| Refusal::QuotaExceeded {
            quota: "lists of spans at a time".into(),
            limit: limit as u64,
        };
        let Some(keeping) = self.keeping.as_mut().filter(|keeping| !keeping.is_failing()) else {
            return Ok(false);
        };
        let is_list = |asked: &&Asked| matches!(asked.what, What::List(_)) && asked.peer.uid == peer.uid;
        if matches!(what, What::List(_)) && keeping.asked.values().filter(is_list).count() >= MOST_LISTS {
            return Err(full(MOST_LISTS));
        }
        let (number, since_ns) = (keeping.questions, self.clock.now_ns());
        if !keeping.store.ask(number, question) {
            // Not how many wait: those are questions of others.
            return Err(full(MAX_QUESTIONS));
        }
        keeping.questions += 1;
        keeping.asked.insert(number, Asked { ticket, peer: *peer, what, since_ns });
        Ok(true)
    }

    /// Answers from memory what the disk was asked; should its own answers come, nobody waits for them any more.
    pub(super) fn answer_without_disk(&mut self) {
        let asked =
            self.keeping.as_ref().map_or(Vec::new(), |keeping| keeping.asked.keys().copied().collect());
        asked.into_iter().for_each(|number| self.answer(number, None));
    }

    /// The disk's answer, in the words of the wire.
    pub(super) fn answer(&mut self, number: u64, found: Option<Found>) {
        let asked = self.keeping.as_mut().and_then(|keeping| keeping.asked.remove(&number));
        let Some(Asked { ticket, peer, what, .. }) = asked else { return };
        let mut out = Vec::new();
        let seen = |mut found: Found| {
            found.accounts.retain(|account| may_see(&peer, account));
            found
        };
        let found = found.map(seen);
        match (what, found) {
            (What::Span(span), found) => match found.and_then(|found| found.accounts.into_iter().next()) {
                Some(account) => Reply::last(SpanAccount { account }).write(&mut out),
                None => Refusal::NoSuchSpan { span }.write(&mut out),
            },
            (What::List(_), Some(Found { mut accounts, before })) => {
                accounts.reverse();
                let before = before.map(|number| self.sealed(&peer, number));
                Reply::last(SpanAccounts { accounts, before }).write(&mut out);
            }
            (What::List(call), None) => match self.remembered(&peer, &call) {
                Ok(accounts) => Reply::last(accounts).write(&mut out),
                Err(refusal) => refusal.write(&mut out),
            },
        }
        self.replies.push((ticket, out));
    }
}
