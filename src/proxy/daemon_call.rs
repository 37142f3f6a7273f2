//! A message for the daemon, on its way through the lane.
//!
//! Owns the promise that every question is answered once: with the daemon's answer, or, wherever it gets lost, with
//! [`Ending::Lost`]; and that each span's end is counted exactly once.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::counters::ProxyCounters;
use super::server_process::ServerProcessTracker;
use crate::attribution::account::Account;
use crate::protocol::{Call, EmptyReply, IncomingReply, Method, MethodError, ParseReplyError, SpanAccount};

/// How a span ended.
#[derive(Debug)]
pub enum SpanOutcome {
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
pub struct DaemonCall {
    /// The connection it is for.
    pub generation: u64,
    /// The call, its end included.
    pub bytes: Vec<u8>,
    /// What is to be done with the answer; `None` for a call that has none.
    pub reply_handler: Option<ReplyHandler>,
}

/// What the daemon's answer is for.
pub enum ReplyHandler {
    /// A span that names the server's process was opened, or was not.
    Open(Arc<ServerProcessTracker>),
    /// A span's end.
    End(PendingEnd),
}

impl DaemonCall {
    /// A call without an answer.
    pub fn oneway<M: Method>(generation: u64, parameters: M) -> Self {
        let mut bytes = Vec::new();
        Call::oneway(parameters).encode(&mut bytes);
        DaemonCall { generation, bytes, reply_handler: None }
    }

    /// A call with an answer.
    pub fn with_reply<M: Method>(generation: u64, parameters: M, question: ReplyHandler) -> Self {
        let mut bytes = Vec::new();
        Call::new(parameters).encode(&mut bytes);
        DaemonCall { generation, bytes, reply_handler: Some(question) }
    }
}

/// What a question was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndKind {
    /// CloseSpan.
    Close,
    /// CancelSpan.
    Cancel,
}

/// A question that waits for its answer.
pub struct PendingEnd {
    kind: EndKind,
    outcome_sender: Option<oneshot::Sender<SpanOutcome>>,
    counters: Arc<ProxyCounters>,
    /// When it was asked.
    pub queued_at: Instant,
}

impl PendingEnd {
    /// A question, and where its answer comes.
    pub fn new(kind: EndKind, tally: Arc<ProxyCounters>) -> (Self, oneshot::Receiver<SpanOutcome>) {
        let (sender, receiver) = oneshot::channel();
        (
            PendingEnd { kind, outcome_sender: Some(sender), counters: tally, queued_at: Instant::now() },
            receiver,
        )
    }

    /// Reads the daemon's answer, and hands it on.
    ///
    /// # Errors
    /// Why the connection is of no use any more: it is no answer, or the span is still open. Only the connection's end
    /// ends such a span, and one that stays open takes energy from the others for ever.
    pub fn handle_reply(mut self, message: &[u8]) -> Result<(), String> {
        let ending = self.parse_reply(message)?;
        self.resolve(ending);
        Ok(())
    }

    fn parse_reply(&self, message: &[u8]) -> Result<SpanOutcome, String> {
        let nonsense = |error: ParseReplyError| format!("the meter's answer makes no sense: {error}");
        let answer = IncomingReply::parse(message).map_err(nonsense)?;
        let ended = match self.kind {
            EndKind::Close => answer
                .into_result::<SpanAccount>()
                .map(|reply| reply.map(|reply| SpanOutcome::Settled(Box::new(reply.account)))),
            EndKind::Cancel => {
                answer.into_result::<EmptyReply>().map(|reply| reply.map(|_| SpanOutcome::Cancelled))
            }
        };
        match ended.map_err(nonsense)? {
            Ok(ending) => Ok(ending),
            Err(refusal @ (MethodError::NoSuchSpan { .. } | MethodError::AlreadyClosed { .. })) => {
                Ok(SpanOutcome::Refused(refusal.to_string()))
            }
            Err(refusal) => Err(format!("the meter leaves a span open that has ended: {refusal}")),
        }
    }

    fn resolve(&mut self, ending: SpanOutcome) {
        let Some(sender) = self.outcome_sender.take() else { return };
        match &ending {
            SpanOutcome::Settled(_) => self.counters.closed.increment(),
            SpanOutcome::Cancelled => self.counters.cancelled.increment(),
            SpanOutcome::Refused(_) => self.counters.refused.increment(),
            SpanOutcome::Lost => self.counters.abandoned.increment(),
        }
        // Whoever asked may be gone, which is why the counting is done here.
        let _ = sender.send(ending);
    }
}

impl Drop for PendingEnd {
    fn drop(&mut self) {
        self.resolve(SpanOutcome::Lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle_reply(kind: EndKind, message: &str) -> (Result<(), String>, Arc<ProxyCounters>) {
        let tally = Arc::new(ProxyCounters::default());
        let (ask, _answer) = PendingEnd::new(kind, Arc::clone(&tally));
        (ask.handle_reply(message.as_bytes()), tally)
    }

    #[test]
    fn an_error_that_leaves_the_span_open_is_not_an_end() {
        let refusal = |name: &str, parameters: &str| {
            format!(r#"{{"error":"org.wattspan.Meter.{name}","parameters":{parameters}}}"#)
        };
        for kind in [EndKind::Close, EndKind::Cancel] {
            for name in ["NoSuchSpan", "AlreadyClosed"] {
                let (answered, tally) = handle_reply(kind, &refusal(name, r#"{"span":"a"}"#));
                assert_eq!((answered, tally.refused.get()), (Ok(()), 1), "{name}");
            }
            let exceeded = refusal("QuotaExceeded", r#"{"quota":"calls a second","limit":20}"#);
            for message in [exceeded, refusal("OfALaterVersion", "{}"), "{".to_owned()] {
                let (answered, tally) = handle_reply(kind, &message);
                assert!(answered.is_err(), "{message}");
                // The connection ends now, and with it the span.
                assert_eq!((tally.refused.get(), tally.abandoned.get()), (0, 1), "{message}");
            }
        }
    }
}
