//! The proxy's client of the daemon: the queue of calls and the replies to them. No request waits for the queue.
//!
//! While the daemon is unreachable or too slow, no span is opened and requests are forwarded unmeasured. A span
//! belongs to the connection (`generation`) on which it was opened: when that is lost, the daemon ends the span as
//! abandoned, and its later calls are discarded. Invariants: the queue is bounded, since only the end of an open span
//! is added to a full queue; every end has one outcome, [`SpanOutcome::Lost`] where its call is dropped, and is
//! counted once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use wattspan_client::account::Account;
use wattspan_client::protocol::{
    Call, CancelSpan, CloseSpan, EmptyReply, IncomingReply, MarkPhase, Method, MethodError, OpenSpan,
    ParseReplyError, SetWeight, SpanAccount,
};

use super::counters::ProxyCounters;
use super::log::{LogSink, RateLimitedLog};
use super::server_process::ServerProcessTracker;

/// The length of the queue from which no more spans are opened. The daemon handles some 100,000 calls a second.
const MAX_QUEUED_CALLS: usize = 16_384;

/// After this many consecutive late accounts, responses do not wait until an account is in time again.
const MAX_CONSECUTIVE_TIMEOUTS: u32 = 3;

/// Why the daemon has no span that the proxy opened. OpenSpan has no reply, except for one that names the server's
/// process, so that the settings stand here with which the daemon limits the proxy's user.
const NOT_OPENED: &str = "it was not opened, most likely because of a limit of the proxy's user \
                          (limits.open_spans_per_user, span_memory_bytes_per_user, notes_bytes_per_user, calls_per_s)";

/// How a span ended.
#[derive(Debug)]
pub enum SpanOutcome {
    /// The daemon returned the account.
    Settled(Box<Account>),
    /// The daemon cancelled the span.
    Cancelled,
    /// The daemon did not open the span, or has closed it already, for this reason.
    Refused(String),
    /// The connection was lost.
    Lost,
}

/// Appends an encoded call to a buffer.
type EncodeCall = Box<dyn FnOnce(&mut Vec<u8>) + Send>;

pub struct DaemonCall {
    /// The connection on which the call may be sent.
    pub generation: u64,
    /// Appends the call with its terminator. The connection's task runs it, so that no request waits for it.
    pub encode: EncodeCall,
    /// `None` for a call without a reply.
    pub reply_handler: Option<ReplyHandler>,
}

/// The receiver of a reply.
pub enum ReplyHandler {
    /// The reply to an OpenSpan that names the server's process.
    Open(Arc<ServerProcessTracker>),
    /// The reply to the call that ends a span.
    End(PendingEnd),
}

impl DaemonCall {
    pub fn oneway<M: Method + Send + 'static>(generation: u64, parameters: M) -> Self {
        let encode = Box::new(|bytes: &mut Vec<u8>| Call::oneway(parameters).encode(bytes));
        DaemonCall { generation, encode, reply_handler: None }
    }

    pub fn with_reply<M: Method + Send + 'static>(
        generation: u64,
        parameters: M,
        reply_handler: ReplyHandler,
    ) -> Self {
        let encode = Box::new(|bytes: &mut Vec<u8>| Call::new(parameters).encode(bytes));
        DaemonCall { generation, encode, reply_handler: Some(reply_handler) }
    }
}

/// Which call ends a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndKind {
    Close,
    Cancel,
}

/// A span's end whose reply is awaited.
pub struct PendingEnd {
    kind: EndKind,
    /// The close without its attributes, where it has any: the daemon limits those, and never the close itself.
    bare_close: Option<BareClose>,
    outcome_sender: Option<oneshot::Sender<SpanOutcome>>,
    client: SpanClient,
    pub queued_at: Instant,
}

/// A CloseSpan without attributes, and the connection of its span.
struct BareClose {
    generation: u64,
    request: CloseSpan,
}

/// The reply to the end of a span.
enum EndReply {
    /// The span has ended, or never existed.
    Ended(SpanOutcome),
    /// The span is still open: its close has attributes that exceed a limit.
    AttributesRefused(MethodError),
}

impl PendingEnd {
    fn new(kind: EndKind, client: SpanClient) -> (Self, oneshot::Receiver<SpanOutcome>) {
        let (sender, receiver) = oneshot::channel();
        let queued_at = Instant::now();
        let bare_close = None;
        (PendingEnd { kind, bare_close, outcome_sender: Some(sender), client, queued_at }, receiver)
    }

    /// Sends the outcome to the receiver, or queues the close again without the attributes that the daemon refused.
    ///
    /// # Errors
    /// The connection must be closed: the reply is invalid, or the span is still open. A span that stays open takes
    /// energy from the others, and only the end of the connection ends it.
    pub fn handle_reply(mut self, message: &[u8]) -> Result<(), String> {
        match (self.parse_reply(message)?, self.bare_close.take()) {
            (EndReply::Ended(outcome), _) => {
                if let SpanOutcome::Refused(reason) = &outcome {
                    self.client.state.log_refused_span(reason);
                }
                self.resolve(outcome);
                Ok(())
            }
            (EndReply::AttributesRefused(error), Some(close)) => {
                self.close_without_attributes(close, &error);
                Ok(())
            }
            (EndReply::AttributesRefused(error), None) => Err(not_ended(&error)),
        }
    }

    fn close_without_attributes(mut self, close: BareClose, error: &MethodError) {
        let client = self.client.clone();
        client.state.refused_attributes_log.write_line(&format!(
            "the daemon refused the attributes of a request, whose span is closed without its attributes: {error}"
        ));
        self.queued_at = Instant::now();
        client.send(DaemonCall::with_reply(close.generation, close.request, ReplyHandler::End(self)));
    }

    fn parse_reply(&self, message: &[u8]) -> Result<EndReply, String> {
        let invalid =
            |error: ParseReplyError| format!("invalid reply of the daemon to the end of a span: {error}");
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
            Ok(outcome) => Ok(EndReply::Ended(outcome)),
            Err(MethodError::NoSuchSpan { .. }) => {
                Ok(EndReply::Ended(SpanOutcome::Refused(NOT_OPENED.to_owned())))
            }
            Err(error @ MethodError::AlreadyClosed { .. }) => {
                Ok(EndReply::Ended(SpanOutcome::Refused(error.to_string())))
            }
            Err(error) if are_attributes_refused(&error) => Ok(EndReply::AttributesRefused(error)),
            Err(error) => Err(not_ended(&error)),
        }
    }

    fn resolve(&mut self, outcome: SpanOutcome) {
        let Some(sender) = self.outcome_sender.take() else { return };
        let counters = &self.client.state.counters;
        match &outcome {
            SpanOutcome::Settled(_) => counters.closed.increment(),
            SpanOutcome::Cancelled => counters.cancelled.increment(),
            SpanOutcome::Refused(_) => counters.refused.increment(),
            SpanOutcome::Lost => counters.abandoned.increment(),
        }
        // The receiver may be dropped already, so the outcome is counted here.
        let _ = sender.send(outcome);
    }
}

impl Drop for PendingEnd {
    fn drop(&mut self) {
        self.resolve(SpanOutcome::Lost);
    }
}

fn not_ended(error: &MethodError) -> String {
    format!("the daemon did not end a span: {error}")
}

/// Whether a close without attributes can succeed. After a refusal for the number of calls it would be one more call.
fn are_attributes_refused(error: &MethodError) -> bool {
    match error {
        MethodError::QuotaExceeded { quota, .. } => !quota.starts_with("calls"),
        MethodError::InvalidValue { field, .. } => field == "attributes",
        _ => false,
    }
}

/// Why a request has no span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnmeasuredReason {
    /// The daemon does not answer.
    DaemonUnavailable,
    /// The daemon is too slow.
    QueueFull,
}

impl UnmeasuredReason {
    pub fn description(self) -> &'static str {
        match self {
            UnmeasuredReason::DaemonUnavailable => "daemon unreachable",
            UnmeasuredReason::QueueFull => "daemon too slow",
        }
    }
}

/// The state that both ends of the queue share.
pub struct SpanClientState {
    /// The number of the current connection, from 1; 0 while there is none.
    generation: AtomicU64,
    queued: AtomicUsize,
    consecutive_timeouts: AtomicU32,
    pub account_timeout: Duration,
    pub counters: Arc<ProxyCounters>,
    refused_attributes_log: RateLimitedLog,
    refused_spans_log: RateLimitedLog,
}

/// The sending end of the queue.
#[derive(Clone)]
pub struct SpanClient {
    calls: mpsc::UnboundedSender<DaemonCall>,
    pub state: Arc<SpanClientState>,
    pub server_process: Arc<ServerProcessTracker>,
}

/// The receiving end of the queue.
pub type CallReceiver = mpsc::UnboundedReceiver<DaemonCall>;

impl SpanClient {
    pub fn new(
        account_timeout: Duration,
        counters: Arc<ProxyCounters>,
        log: LogSink,
        server_process: ServerProcessTracker,
    ) -> (Self, CallReceiver) {
        let (calls, receiver) = mpsc::unbounded_channel();
        let state = SpanClientState {
            generation: AtomicU64::new(0),
            queued: AtomicUsize::new(0),
            consecutive_timeouts: AtomicU32::new(0),
            account_timeout,
            counters,
            refused_attributes_log: RateLimitedLog::new(log),
            refused_spans_log: RateLimitedLog::new(log),
        };
        (SpanClient { calls, state: Arc::new(state), server_process: Arc::new(server_process) }, receiver)
    }

    /// Queues the opening of a span. `request` is called only if the span can be opened.
    pub fn open_span(
        &self,
        span: String,
        request: impl FnOnce() -> OpenSpan,
    ) -> Result<SpanHandle, UnmeasuredReason> {
        let generation = self.state.generation();
        if generation == 0 {
            return Err(UnmeasuredReason::DaemonUnavailable);
        }
        if self.state.is_full() {
            return Err(UnmeasuredReason::QueueFull);
        }
        self.state.counters.opened.increment();
        let mut request = OpenSpan { span: Some(span.clone()), ..request() };
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
            // The channel is closed; the drop of the call reports it.
            self.state.queued.fetch_sub(1, Ordering::Relaxed);
            drop(unsent);
        }
    }
}

impl SpanClientState {
    /// Logs why a request has no span.
    pub fn log_refused_span(&self, reason: &dyn fmt::Display) {
        self.refused_spans_log
            .write_line(&format!("a request is not measured: the daemon refused its span: {reason}"));
    }

    /// The number of the current connection; 0 while there is none.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Sets the current connection; 0 for none.
    pub fn set_generation(&self, generation: u64) {
        self.generation.store(generation, Ordering::Relaxed);
        self.consecutive_timeouts.store(0, Ordering::Relaxed);
    }

    pub fn mark_dequeued(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn record_account_latency(&self, latency: Duration) {
        if latency <= self.account_timeout {
            self.consecutive_timeouts.store(0, Ordering::Relaxed);
        }
    }

    fn is_full(&self) -> bool {
        self.queued.load(Ordering::Relaxed) >= MAX_QUEUED_CALLS
    }

    /// How long to wait for the next account: zero while accounts are late.
    fn current_account_timeout(&self) -> Duration {
        if self.consecutive_timeouts.load(Ordering::Relaxed) >= MAX_CONSECUTIVE_TIMEOUTS {
            Duration::ZERO
        } else {
            self.account_timeout
        }
    }
}

/// An open span on one connection.
pub struct SpanHandle {
    client: SpanClient,
    generation: u64,
    id: String,
}

impl SpanHandle {
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn mark_phase(&self, phase: &str, at_ns: i64) {
        self.send_oneway(MarkPhase { span: self.id.clone(), phase: phase.to_owned(), at_ns: Some(at_ns) });
    }

    pub fn set_weight(&self, weight: f64) {
        self.send_oneway(SetWeight { span: self.id.clone(), weight, at_ns: None });
    }

    /// Queues the close of the span.
    pub fn close(self, request: CloseSpan) -> PendingClose {
        let (mut pending_end, outcome) = PendingEnd::new(EndKind::Close, self.client.clone());
        let request = CloseSpan { span: self.id, wait_settled: Some(true), ..request };
        pending_end.bare_close = request.attributes.is_some().then(|| BareClose {
            generation: self.generation,
            request: CloseSpan { attributes: None, span: request.span.clone(), ..request },
        });
        self.client.send(DaemonCall::with_reply(self.generation, request, ReplyHandler::End(pending_end)));
        PendingClose { outcome, state: Arc::clone(&self.client.state) }
    }

    /// Queues the cancellation of the span.
    pub fn cancel(self) {
        let (pending_end, _) = PendingEnd::new(EndKind::Cancel, self.client.clone());
        self.client.send(DaemonCall::with_reply(
            self.generation,
            CancelSpan { span: self.id },
            ReplyHandler::End(pending_end),
        ));
    }

    fn send_oneway<M: Method + Send + 'static>(&self, parameters: M) {
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

/// A close whose account is awaited.
pub struct PendingClose {
    outcome: oneshot::Receiver<SpanOutcome>,
    state: Arc<SpanClientState>,
}

impl PendingClose {
    /// Waits for the outcome; `None` after the timeout.
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

    fn client() -> (SpanClient, CallReceiver) {
        let log = LogSink::new(|_| ());
        SpanClient::new(Duration::from_millis(5), Arc::default(), log, ServerProcessTracker::new(None, log))
    }

    #[test]
    fn no_span_is_opened_while_the_daemon_is_unavailable() {
        let (client, mut calls) = client();
        assert_eq!(
            client.open_span("a".into(), || panic!("its request is not needed")).err(),
            Some(UnmeasuredReason::DaemonUnavailable)
        );
        assert!(calls.try_recv().is_err());
    }

    #[test]
    fn a_full_queue_accepts_only_span_ends() {
        let (client, mut calls) = client();
        client.state.set_generation(1);
        let span = client.open_span("a".into(), OpenSpan::default).unwrap();
        client.state.queued.store(MAX_QUEUED_CALLS, Ordering::Relaxed);
        span.mark_phase("decode", 1);
        assert_eq!(client.open_span("b".into(), OpenSpan::default).err(), Some(UnmeasuredReason::QueueFull));
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
            client.open_span("a".into(), OpenSpan::default).unwrap().close(CloseSpan::default());
        client.open_span("b".into(), OpenSpan::default).unwrap().cancel();
        drop(calls);
        client.open_span("c".into(), OpenSpan::default).unwrap().cancel();
        drop(pending_close);
        let counters = &client.state.counters;
        assert_eq!((counters.opened.get(), counters.abandoned.get(), counters.ended_spans()), (3, 3, 3));
    }

    #[tokio::test]
    async fn replies_stop_waiting_after_three_late_accounts() {
        let (client, _calls) = client();
        client.state.set_generation(1);
        for _ in 0..3 {
            let span = client.open_span("a".into(), OpenSpan::default).unwrap();
            assert!(span.close(CloseSpan::default()).wait().await.is_none());
        }
        assert_eq!(client.state.current_account_timeout(), Duration::ZERO);
        client.state.record_account_latency(Duration::from_millis(4));
        assert_eq!(client.state.current_account_timeout(), Duration::from_millis(5));
    }

    fn handle_reply(kind: EndKind, message: &str) -> (Result<(), String>, Arc<ProxyCounters>) {
        let (client, _calls) = client();
        let counters = Arc::clone(&client.state.counters);
        let (pending, _outcome) = PendingEnd::new(kind, client);
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
                // The connection is closed, which ends the span.
                assert_eq!((counters.refused.get(), counters.abandoned.get()), (0, 1), "{message}");
            }
        }
    }

    /// The end of a span that the next call in the queue awaits, and that call.
    fn next_end(calls: &mut CallReceiver) -> (PendingEnd, String) {
        let call = calls.try_recv().unwrap();
        let mut bytes = Vec::new();
        (call.encode)(&mut bytes);
        assert_eq!(call.generation, 1);
        let Some(ReplyHandler::End(pending_end)) = call.reply_handler else { panic!("no end of a span") };
        (pending_end, String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn a_close_whose_attributes_are_refused_is_queued_once_more_without_them() {
        let (client, mut calls) = client();
        client.state.set_generation(1);
        let span = client.open_span("a".into(), OpenSpan::default).unwrap();
        let _open = calls.try_recv().unwrap();
        let attributes = Some([("key".to_owned(), "value".to_owned())].into());
        let pending_close = span.close(CloseSpan { attributes, at_ns: Some(7), ..CloseSpan::default() });
        let refusal = r#"{"error":"org.wattspan.Meter.QuotaExceeded","parameters":{"quota":"bytes of memory of one user's spans","limit":20000}}"#;
        let (first, call) = next_end(&mut calls);
        assert!(call.contains(r#""key":"value""#), "{call}");
        first.handle_reply(refusal.as_bytes()).unwrap();
        let (second, call) = next_end(&mut calls);
        assert!(call.contains(r#""at_ns":7"#) && call.contains(r#""wait_settled":true"#), "{call}");
        assert!(!call.contains("attributes"), "{call}");
        assert_eq!(client.state.counters.ended_spans(), 0);
        assert!(second.handle_reply(refusal.as_bytes()).is_err(), "the span is still open");
        assert!(calls.try_recv().is_err());
        assert_eq!((client.state.counters.abandoned.get(), client.state.counters.ended_spans()), (1, 1));
        drop(pending_close);
    }
}
