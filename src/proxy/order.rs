//! A message for the daemon, on its way through the lane.
//!
//! Owns the promise that every question is answered once: with the daemon's answer, or, wherever it gets lost, with
//! [`Ending::Lost`]; and that each span's end is counted exactly once.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::tally::Tally;
use crate::ledger::account::Account;
use crate::protocol::{Answer, Call, Done, Method, SpanAccount};

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
    /// It is no answer: the connection is of no use any more.
    pub fn answered(mut self, message: &[u8]) -> Result<(), String> {
        let ending = self.read(message)?;
        self.end(ending);
        Ok(())
    }

    fn read(&self, message: &[u8]) -> Result<Ending, String> {
        let answer = Answer::read(message).map_err(|error| error.to_string())?;
        let refused = |refusal: crate::protocol::Refusal| Ending::Refused(refusal.to_string());
        // A refusal in words of a later version ends the span all the same.
        let strange = |error: crate::protocol::Unintelligible| Ending::Refused(error.to_string());
        Ok(match self.kind {
            Kind::Close => match answer.into_reply::<SpanAccount>() {
                Ok(Ok(reply)) => Ending::Settled(Box::new(reply.account)),
                Ok(Err(refusal)) => refused(refusal),
                Err(error) => strange(error),
            },
            Kind::Cancel => match answer.into_reply::<Done>() {
                Ok(Ok(_)) => Ending::Cancelled,
                Ok(Err(refusal)) => refused(refusal),
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
