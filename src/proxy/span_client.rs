//! The proxy's client of the daemon: one connection, and a queue for it that never makes a request wait.
//!
//! Owns the connection's life. While the daemon is away or does not take what it is sent, spans are not opened and
//! requests go through unmeasured; it is looked for again and again, and used as soon as it answers. A span belongs to
//! the connection it was opened on: when that is lost, the daemon ends the span as abandoned, and nothing of it is sent
//! on a later one. Invariant: what waits in the queue is bounded, since only open spans may add to a full one, once
//! each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::counters::ProxyCounters;
use super::server_process::ServerProcessTracker;
use crate::attribution::account::Account;
use crate::protocol::{
    Call, CancelSpan, CloseSpan, EmptyReply, IncomingReply, MarkPhase, Method, MethodError, OpenSpan,
    ParseReplyError, SetWeight, SpanAccount,
};

/// Messages that may wait before no more spans are opened. The daemon takes some 100,000 a second.
const MAX_QUEUED_CALLS: usize = 16_384;

/// So many accounts in a row that came too late, and nobody waits for one until one comes in time.
const MAX_CONSECUTIVE_TIMEOUTS: u32 = 3;

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

/// Why a request has no span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnmeasuredReason {
    /// The daemon does not answer.
    DaemonUnavailable,
    /// Too much waits for it already.
    QueueFull,
}

impl UnmeasuredReason {
    /// In a few words.
    pub fn description(self) -> &'static str {
        match self {
            UnmeasuredReason::DaemonUnavailable => "the meter is away",
            UnmeasuredReason::QueueFull => "the meter is too slow",
        }
    }
}

/// What the two ends of the queue share.
pub struct SpanClientState {
    /// The connection that is used, counted from 1; 0 while there is none.
    generation: AtomicU64,
    queued: AtomicUsize,
    consecutive_timeouts: AtomicU32,
    /// How long a reply waits for its account.
    pub account_timeout: Duration,
    /// The counters.
    pub counters: Arc<ProxyCounters>,
}

/// The requests' end of the queue.
#[derive(Clone)]
pub struct SpanClient {
    calls: mpsc::UnboundedSender<DaemonCall>,
    /// What both ends share.
    pub state: Arc<SpanClientState>,
    /// The server's process, which spans name.
    pub server_process: Arc<ServerProcessTracker>,
}

/// The connection's end of the queue.
pub type CallReceiver = mpsc::UnboundedReceiver<DaemonCall>;

impl SpanClient {
    /// A client whose replies wait at most `account_timeout` for an account, and the other end of its queue.
    pub fn new(
        account_timeout: Duration,
        counters: Arc<ProxyCounters>,
        server_process: ServerProcessTracker,
    ) -> (Self, CallReceiver) {
        let (calls, receiver) = mpsc::unbounded_channel();
        let state = SpanClientState {
            generation: AtomicU64::new(0),
            queued: AtomicUsize::new(0),
            consecutive_timeouts: AtomicU32::new(0),
            account_timeout,
            counters,
        };
        (SpanClient { calls, state: Arc::new(state), server_process: Arc::new(server_process) }, receiver)
    }

    /// Opens a span, if there is a daemon that takes it.
    pub fn open_span(&self, span: String, request: OpenSpan) -> Result<SpanHandle, UnmeasuredReason> {
        let generation = self.state.generation();
        if generation == 0 {
            return Err(UnmeasuredReason::DaemonUnavailable);
        }
        if self.state.is_full() {
            return Err(UnmeasuredReason::QueueFull);
        }
        self.state.counters.opened.increment();
        let mut request = OpenSpan { span: Some(span.clone()), ..request };
        self.send(match self.server_process.set_process(&mut request) {
            true => DaemonCall::with_reply(
                generation,
                request,
                ReplyHandler::Open(Arc::clone(&self.server_process)),
            ),
            false => DaemonCall::oneway(generation, request),
        });
        Ok(SpanHandle { client: self.clone(), generation, id: span })
    }

    fn send(&self, call: DaemonCall) {
        self.state.queued.fetch_add(1, Ordering::Relaxed);
        if let Err(unsent) = self.calls.send(call) {
            // The channel is closed; dropping the call reports it.
            self.state.queued.fetch_sub(1, Ordering::Relaxed);
            drop(unsent);
        }
    }
}

impl SpanClientState {
    /// The connection that is used now, or 0.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// From now on this connection is used; 0: none.
    pub fn set_generation(&self, generation: u64) {
        self.generation.store(generation, Ordering::Relaxed);
        self.consecutive_timeouts.store(0, Ordering::Relaxed);
    }

    /// A call left the queue.
    pub fn mark_dequeued(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
    }

    /// Records how long an account took.
    pub fn record_account_latency(&self, latency: Duration) {
        if latency <= self.account_timeout {
            self.consecutive_timeouts.store(0, Ordering::Relaxed);
        }
    }

    fn is_full(&self) -> bool {
        self.queued.load(Ordering::Relaxed) >= MAX_QUEUED_CALLS
    }

    /// How long to wait for an account now: not at all while they come too late anyway.
    fn current_account_timeout(&self) -> Duration {
        if self.consecutive_timeouts.load(Ordering::Relaxed) >= MAX_CONSECUTIVE_TIMEOUTS {
            Duration::ZERO
        } else {
            self.account_timeout
        }
    }
}

/// An open span.
pub struct SpanHandle {
    client: SpanClient,
    generation: u64,
    id: String,
}

impl SpanHandle {
    /// Its name in the protocol.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A phase begins at `at_ns`.
    pub fn mark_phase(&self, phase: &str, at_ns: i64) {
        self.send_oneway(MarkPhase { span: self.id.clone(), phase: phase.to_owned(), at_ns: Some(at_ns) });
    }

    /// It weighs so much from now on.
    pub fn set_weight(&self, weight: f64) {
        self.send_oneway(SetWeight { span: self.id.clone(), weight, at_ns: None });
    }

    /// It ended; the account comes later.
    pub fn close(self, request: CloseSpan) -> PendingClose {
        let (pending_end, outcome) = PendingEnd::new(EndKind::Close, Arc::clone(&self.client.state.counters));
        let request = CloseSpan { span: self.id, wait_settled: Some(true), ..request };
        self.client.send(DaemonCall::with_reply(self.generation, request, ReplyHandler::End(pending_end)));
        PendingClose { outcome, state: Arc::clone(&self.client.state) }
    }

    /// It never was.
    pub fn cancel(self) {
        let (pending_end, _) = PendingEnd::new(EndKind::Cancel, Arc::clone(&self.client.state.counters));
        self.client.send(DaemonCall::with_reply(
            self.generation,
            CancelSpan { span: self.id },
            ReplyHandler::End(pending_end),
        ));
    }

    fn send_oneway<M: Method>(&self, parameters: M) {
        let state = &self.client.state;
        if state.generation() != self.generation {
            return;
        }
        if state.is_full() {
            state.counters.dropped_updates.increment();
            return;
        }
        self.client.send(DaemonCall::oneway(self.generation, parameters));
    }
}

/// A close whose account may come.
pub struct PendingClose {
    outcome: oneshot::Receiver<SpanOutcome>,
    state: Arc<SpanClientState>,
}

impl PendingClose {
    /// The span's end, if it comes within the timeout.
    pub async fn wait(self) -> Option<SpanOutcome> {
        let account_timeout = self.state.current_account_timeout();
        match tokio::time::timeout(account_timeout, self.outcome).await {
            Ok(outcome) => Some(outcome.unwrap_or(SpanOutcome::Lost)),
            Err(_) => {
                self.state.consecutive_timeouts.fetch_add(1, Ordering::Relaxed);
                self.state.counters.account_timeouts.increment();
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::log::LogSink;

    fn client() -> (SpanClient, CallReceiver) {
        SpanClient::new(
            Duration::from_millis(5),
            Arc::default(),
            ServerProcessTracker::new(None, LogSink::new(|_| ())),
        )
    }

    #[test]
    fn no_span_is_opened_while_the_daemon_is_unavailable() {
        let (client, mut calls) = client();
        assert_eq!(
            client.open_span("a".into(), OpenSpan::default()).err(),
            Some(UnmeasuredReason::DaemonUnavailable)
        );
        assert!(calls.try_recv().is_err());
    }

    #[test]
    fn a_full_queue_accepts_only_span_ends() {
        let (client, mut calls) = client();
        client.state.set_generation(1);
        let span = client.open_span("a".into(), OpenSpan::default()).unwrap();
        client.state.queued.store(MAX_QUEUED_CALLS, Ordering::Relaxed);
        span.mark_phase("decode", 1);
        assert_eq!(
            client.open_span("b".into(), OpenSpan::default()).err(),
            Some(UnmeasuredReason::QueueFull)
        );
        assert_eq!(client.state.counters.dropped_updates.get(), 1);
        drop(span.close(CloseSpan::default()));
        assert!(calls.try_recv().unwrap().reply_handler.is_none());
        assert!(calls.try_recv().unwrap().reply_handler.is_some());
    }

    #[test]
    fn a_lost_call_is_counted_once_as_abandoned() {
        let (client, calls) = client();
        client.state.set_generation(1);
        let pending_close =
            client.open_span("a".into(), OpenSpan::default()).unwrap().close(CloseSpan::default());
        client.open_span("b".into(), OpenSpan::default()).unwrap().cancel();
        drop(calls);
        client.open_span("c".into(), OpenSpan::default()).unwrap().cancel();
        drop(pending_close);
        let counters = &client.state.counters;
        assert_eq!((counters.opened.get(), counters.abandoned.get(), counters.ended_spans()), (3, 3, 3));
    }

    #[tokio::test]
    async fn replies_stop_waiting_after_three_late_accounts() {
        let (client, _calls) = client();
        client.state.set_generation(1);
        for _ in 0..3 {
            let span = client.open_span("a".into(), OpenSpan::default()).unwrap();
            assert!(span.close(CloseSpan::default()).wait().await.is_none());
        }
        assert_eq!(client.state.current_account_timeout(), Duration::ZERO);
        client.state.record_account_latency(Duration::from_millis(4));
        assert_eq!(client.state.current_account_timeout(), Duration::from_millis(5));
    }

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
