//! A call to the daemon, on its way through the queue.
//!
//! Invariant: every span's end has one outcome, the daemon's reply or, wherever the call is lost, [`SpanOutcome::Lost`];
//! and it is counted exactly once.

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

/// A queued call.
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
    pub fn with_reply<M: Method>(generation: u64, parameters: M, reply_handler: ReplyHandler) -> Self {
        let mut bytes = Vec::new();
        Call::new(parameters).encode(&mut bytes);
        DaemonCall { generation, bytes, reply_handler: Some(reply_handler) }
    }
}

/// Which call ends a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndKind {
    /// CloseSpan.
    Close,
    /// CancelSpan.
    Cancel,
}

/// A span's end whose reply is awaited.
pub struct PendingEnd {
    kind: EndKind,
    outcome_sender: Option<oneshot::Sender<SpanOutcome>>,
    counters: Arc<ProxyCounters>,
    /// When it was queued.
    pub queued_at: Instant,
}

impl PendingEnd {
    /// A pending end, and the receiver of its outcome.
    pub fn new(kind: EndKind, counters: Arc<ProxyCounters>) -> (Self, oneshot::Receiver<SpanOutcome>) {
        let (sender, receiver) = oneshot::channel();
        (PendingEnd { kind, outcome_sender: Some(sender), counters, queued_at: Instant::now() }, receiver)
    }

    /// Reads the daemon's answer, and hands it on.
    ///
    /// # Errors
    /// Why the connection is of no use any more: it is no answer, or the span is still open. Only the connection's end
    /// ends such a span, and one that stays open takes energy from the others for ever.
    pub fn handle_reply(mut self, message: &[u8]) -> Result<(), String> {
        let outcome = self.parse_reply(message)?;
        self.resolve(outcome);
        Ok(())
    }

    fn parse_reply(&self, message: &[u8]) -> Result<SpanOutcome, String> {
        let invalid = |error: ParseReplyError| format!("the meter's answer makes no sense: {error}");
        let reply = IncomingReply::parse(message).map_err(invalid)?;
        let outcome = match self.kind {
            EndKind::Close => reply
                .into_result::<SpanAccount>()
                .map(|reply| reply.map(|reply| SpanOutcome::Settled(Box::new(reply.account)))),
            EndKind::Cancel => {
                reply.into_result::<EmptyReply>().map(|reply| reply.map(|_| SpanOutcome::Cancelled))
            }
        };
        match outcome.map_err(invalid)? {
            Ok(outcome) => Ok(outcome),
            Err(error @ (MethodError::NoSuchSpan { .. } | MethodError::AlreadyClosed { .. })) => {
                Ok(SpanOutcome::Refused(error.to_string()))
            }
            Err(error) => Err(format!("the meter leaves a span open that has ended: {error}")),
        }
    }

    fn resolve(&mut self, outcome: SpanOutcome) {
        let Some(sender) = self.outcome_sender.take() else { return };
        match &outcome {
            SpanOutcome::Settled(_) => self.counters.closed.increment(),
            SpanOutcome::Cancelled => self.counters.cancelled.increment(),
            SpanOutcome::Refused(_) => self.counters.refused.increment(),
            SpanOutcome::Lost => self.counters.abandoned.increment(),
        }
        // The receiver may be dropped, which is why the counting is done here.
        let _ = sender.send(outcome);
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
        let counters = Arc::new(ProxyCounters::default());
        let (pending, _outcome) = PendingEnd::new(kind, Arc::clone(&counters));
        (pending.handle_reply(message.as_bytes()), counters)
    }

    #[test]
    fn an_error_that_leaves_the_span_open_is_not_an_end() {
        let error = |name: &str, parameters: &str| {
            format!(r#"{{"error":"org.wattspan.Meter.{name}","parameters":{parameters}}}"#)
        };
        for kind in [EndKind::Close, EndKind::Cancel] {
            for name in ["NoSuchSpan", "AlreadyClosed"] {
                let (result, counters) = handle_reply(kind, &error(name, r#"{"span":"a"}"#));
                assert_eq!((result, counters.refused.get()), (Ok(()), 1), "{name}");
            }
            let exceeded = error("QuotaExceeded", r#"{"quota":"calls a second","limit":20}"#);
            for message in [exceeded, error("OfALaterVersion", "{}"), "{".to_owned()] {
                let (result, counters) = handle_reply(kind, &message);
                assert!(result.is_err(), "{message}");
                // The connection ends now, and with it the span.
                assert_eq!((counters.refused.get(), counters.abandoned.get()), (0, 1), "{message}");
            }
        }
    }
}
