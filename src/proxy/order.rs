//! A message for the daemon, on its way through the lane.
//!
//! Owns the promise that every question is answered once: with the daemon's answer, or, wherever it gets lost, with
//! [`Ending::Lost`]; and that each span's end is counted exactly once.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::server_process::Named;
use super::tally::Tally;
use crate::attribution::account::Account;
use crate::protocol::{Answer, Call, Done, Method, Refusal, SpanAccount, Unintelligible};

/// How a span ended.
#[derive(Debug)]
pub enum Ending {
    /// With this account.
    Settled(Box<Account>),
    /// The daemon forgot it, as asked.
    Cancelled,
    /// The daemon has no such open span, and why.
    Refused(String),
    /// The connection was lost.
    Lost,
}

/// A message.
pub struct Order {
    /// The connection it is for.
    pub generation: u64,
    /// The call, its end included.
    pub bytes: Vec<u8>,
    /// What is to be done with the answer; `None` for a call that has none.
    pub question: Option<Question>,
}

/// What the daemon's answer is for.
pub enum Question {
    /// A span that names the server's process was opened, or was not.
    Opening(Arc<Named>),
    /// A span's end.
    Ending(Ask),
}

impl Order {
    /// A call without an answer.
    pub fn say<M: Method>(generation: u64, parameters: M) -> Self {
        let mut bytes = Vec::new();
        Call::oneway(parameters).write(&mut bytes);
        Order { generation, bytes, question: None }
    }

    /// A call with an answer.
    pub fn ask<M: Method>(generation: u64, parameters: M, question: Question) -> Self {
        let mut bytes = Vec::new();
        Call::new(parameters).write(&mut bytes);
        Order { generation, bytes, question: Some(question) }
    }
}

/// What a question was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// CloseSpan.
    Close,
    /// CancelSpan.
    Cancel,
}

/// A question that waits for its answer.
pub struct Ask {
    kind: Kind,
    answer: Option<oneshot::Sender<Ending>>,
    tally: Arc<Tally>,
    /// When it was asked.
    pub since: Instant,
}

impl Ask {
    /// A question, and where its answer comes.
    pub fn new(kind: Kind, tally: Arc<Tally>) -> (Self, oneshot::Receiver<Ending>) {
        let (answer, receiver) = oneshot::channel();
        (Ask { kind, answer: Some(answer), tally, since: Instant::now() }, receiver)
    }

    /// Reads the daemon's answer, and hands it on.
    ///
    /// # Errors
    /// Why the connection is of no use any more: it is no answer, or the span is still open. Only the connection's end
    /// ends such a span, and one that stays open takes energy from the others for ever.
    pub fn answered(mut self, message: &[u8]) -> Result<(), String> {
        let ending = self.read(message)?;
        self.end(ending);
        Ok(())
    }

    fn read(&self, message: &[u8]) -> Result<Ending, String> {
        let nonsense = |error: Unintelligible| format!("the meter's answer makes no sense: {error}");
        let answer = Answer::read(message).map_err(nonsense)?;
        let ended = match self.kind {
            Kind::Close => answer
                .into_reply::<SpanAccount>()
                .map(|reply| reply.map(|reply| Ending::Settled(Box::new(reply.account)))),
            Kind::Cancel => answer.into_reply::<Done>().map(|reply| reply.map(|_| Ending::Cancelled)),
        };
        match ended.map_err(nonsense)? {
            Ok(ending) => Ok(ending),
            Err(refusal @ (Refusal::NoSuchSpan { .. } | Refusal::AlreadyClosed { .. })) => {
                Ok(Ending::Refused(refusal.to_string()))
            }
            Err(refusal) => Err(format!("the meter leaves a span open that has ended: {refusal}")),
        }
    }

    fn end(&mut self, ending: Ending) {
        let Some(answer) = self.answer.take() else { return };
        match &ending {
            Ending::Settled(_) => self.tally.closed.up(),
            Ending::Cancelled => self.tally.cancelled.up(),
            Ending::Refused(_) => self.tally.refused.up(),
            Ending::Lost => self.tally.abandoned.up(),
        }
        // Whoever asked may be gone, which is why the counting is done here.
        let _ = answer.send(ending);
    }
}

impl Drop for Ask {
    fn drop(&mut self) {
        self.end(Ending::Lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(kind: Kind, message: &str) -> (Result<(), String>, Arc<Tally>) {
        let tally = Arc::new(Tally::default());
        let (ask, _answer) = Ask::new(kind, Arc::clone(&tally));
        (ask.answered(message.as_bytes()), tally)
    }

    #[test]
    fn a_refusal_that_leaves_the_span_open_is_no_end() {
        let refusal = |name: &str, parameters: &str| {
            format!(r#"{{"error":"org.wattspan.Meter.{name}","parameters":{parameters}}}"#)
        };
        for kind in [Kind::Close, Kind::Cancel] {
            for name in ["NoSuchSpan", "AlreadyClosed"] {
                let (answered, tally) = asked(kind, &refusal(name, r#"{"span":"a"}"#));
                assert_eq!((answered, tally.refused.get()), (Ok(()), 1), "{name}");
            }
            let exceeded = refusal("QuotaExceeded", r#"{"quota":"calls a second","limit":20}"#);
            for message in [exceeded, refusal("OfALaterVersion", "{}"), "{".to_owned()] {
                let (answered, tally) = asked(kind, &message);
                assert!(answered.is_err(), "{message}");
                // The connection ends now, and with it the span.
                assert_eq!((tally.refused.get(), tally.abandoned.get()), (0, 1), "{message}");
            }
        }
    }
}
