//! A message for the daemon, on its way through the lane.
//!
//! Owns the promise that every question is answered once: with the daemon's answer, or, wherever it gets lost, with
//! [`Ending::Lost`]; and that each span's end is counted exactly once.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::tally::Tally;
use crate::ledger::account::Account;
use crate::protocol::{Answer, Call, Done, Method, Refusal, SpanAccount};

/// How a span ended.
#[derive(Debug)]
pub enum Ending {
    /// With this account.
    Settled(Box<Account>),
    /// The daemon forgot it, as asked.
    Cancelled,
    /// The daemon refused, and why.
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
    pub ask: Option<Ask>,
}

impl Order {
    /// A call without an answer.
    pub fn say<M: Method>(generation: u64, parameters: M) -> Self {
        let mut bytes = Vec::new();
        Call::oneway(parameters).write(&mut bytes);
        Order { generation, bytes, ask: None }
    }

    /// A call that ends a span.
    pub fn ask<M: Method>(generation: u64, parameters: M, ask: Ask) -> Self {
        let mut bytes = Vec::new();
        Call::new(parameters).write(&mut bytes);
        Order { generation, bytes, ask: Some(ask) }
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
    /// Why the connection is of no use any more: it is no answer, or the caller's calls are used up, and the span would
    /// stay open, with its part of everybody's energy, for as long as the connection lives.
    pub fn answered(mut self, message: &[u8]) -> Result<(), String> {
        let ending = self.read(message)?;
        self.end(ending);
        Ok(())
    }

    fn read(&self, message: &[u8]) -> Result<Ending, String> {
        let nonsense = |error| format!("the meter's answer makes no sense: {error}");
        let answer = Answer::read(message).map_err(nonsense)?;
        let refused = |refusal: Refusal| match refusal {
            Refusal::QuotaExceeded { .. } => Err(format!("the meter takes no more calls: {refusal}")),
            refusal => Ok(Ending::Refused(refusal.to_string())),
        };
        // A refusal in words of a later version ends the span all the same.
        let strange = |error: crate::protocol::Unintelligible| Ending::Refused(error.to_string());
        Ok(match self.kind {
            Kind::Close => match answer.into_reply::<SpanAccount>() {
                Ok(Ok(reply)) => Ending::Settled(Box::new(reply.account)),
                Ok(Err(refusal)) => refused(refusal)?,
                Err(error) => strange(error),
            },
            Kind::Cancel => match answer.into_reply::<Done>() {
                Ok(Ok(_)) => Ending::Cancelled,
                Ok(Err(refusal)) => refused(refusal)?,
                Err(error) => strange(error),
            },
        })
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

    #[test]
    fn a_close_that_calls_are_used_up_for_costs_the_connection_since_its_span_would_stay_open() {
        let tally = Arc::<Tally>::default();
        let (ask, mut answer) = Ask::new(Kind::Close, Arc::clone(&tally));
        let quota = br#"{"error":"org.wattspan.Meter.QuotaExceeded","parameters":{"quota":"calls a second","limit":200}}"#;
        let reason = ask.answered(quota).unwrap_err();
        assert_eq!(reason, "the meter takes no more calls: the limit of 200 calls a second is reached");
        assert!(matches!(answer.try_recv(), Ok(Ending::Lost)));
        let (ask, mut answer) = Ask::new(Kind::Close, Arc::clone(&tally));
        ask.answered(br#"{"error":"org.wattspan.Meter.NoSuchSpan","parameters":{"span":"s"}}"#).unwrap();
        assert!(matches!(answer.try_recv(), Ok(Ending::Refused(_))));
        assert_eq!((tally.abandoned.get(), tally.refused.get()), (1, 1));
    }
}
