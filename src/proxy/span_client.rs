//! The way to the daemon: one connection, and a queue before it that never makes a request wait.
//!
//! Owns the connection's life. While the daemon is away or does not take what it is sent, spans are not opened and
//! requests go through unmeasured; it is looked for again and again, and used as soon as it answers. A span belongs to
//! the connection it was opened on: when that is lost, the daemon ends the span as abandoned, and nothing of it is sent
//! on a later one. Invariant: what waits in the queue is bounded, since only open spans may add to a full one, once
//! each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::counters::ProxyCounters;
use super::daemon_call::{DaemonCall, EndKind, PendingEnd, ReplyHandler, SpanOutcome};
use super::server_process::ServerProcessTracker;
use crate::protocol::{CancelSpan, CloseSpan, MarkPhase, Method, OpenSpan, SetWeight};

/// Messages that may wait before no more spans are opened. The daemon takes some 100,000 a second.
const MAX_QUEUED_CALLS: usize = 16_384;

/// So many accounts in a row that came too late, and nobody waits for one until one comes in time.
const MAX_CONSECUTIVE_TIMEOUTS: u32 = 3;

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

/// What the lane's two ends share.
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

/// The requests' end of the lane.
#[derive(Clone)]
pub struct SpanClient {
    calls: mpsc::UnboundedSender<DaemonCall>,
    /// What both ends know.
    pub state: Arc<SpanClientState>,
    /// The server's process, which spans name.
    pub server_process: Arc<ServerProcessTracker>,
}

/// The daemon's end of the lane.
pub type CallReceiver = mpsc::UnboundedReceiver<DaemonCall>;

impl SpanClient {
    /// A lane whose replies wait at most `patience` for an account, and its other end.
    pub fn new(
        patience: Duration,
        tally: Arc<ProxyCounters>,
        server: ServerProcessTracker,
    ) -> (Self, CallReceiver) {
        let (orders, taken) = mpsc::unbounded_channel();
        let shared = SpanClientState {
            generation: AtomicU64::new(0),
            queued: AtomicUsize::new(0),
            consecutive_timeouts: AtomicU32::new(0),
            account_timeout: patience,
            counters: tally,
        };
        (SpanClient { calls: orders, state: Arc::new(shared), server_process: Arc::new(server) }, taken)
    }

    /// Opens a span, if there is a daemon that takes it.
    pub fn open_span(&self, span: String, opening: OpenSpan) -> Result<SpanHandle, UnmeasuredReason> {
        let generation = self.state.generation();
        if generation == 0 {
            return Err(UnmeasuredReason::DaemonUnavailable);
        }
        if self.state.is_full() {
            return Err(UnmeasuredReason::QueueFull);
        }
        self.state.counters.opened.increment();
        let mut opening = OpenSpan { span: Some(span.clone()), ..opening };
        self.send(match self.server_process.set_process(&mut opening) {
            true => DaemonCall::with_reply(
                generation,
                opening,
                ReplyHandler::Open(Arc::clone(&self.server_process)),
            ),
            false => DaemonCall::oneway(generation, opening),
        });
        Ok(SpanHandle { client: self.clone(), generation, id: span })
    }

    fn send(&self, order: DaemonCall) {
        self.state.queued.fetch_add(1, Ordering::Relaxed);
        if let Err(unsent) = self.calls.send(order) {
            // The lane has ended, which the order's question tells by itself.
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

    /// An order left the queue.
    pub fn mark_dequeued(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
    }

    /// An account came after so long.
    pub fn record_account_latency(&self, after: Duration) {
        if after <= self.account_timeout {
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
    pub fn close(self, closing: CloseSpan) -> PendingClose {
        let (ask, answer) = PendingEnd::new(EndKind::Close, Arc::clone(&self.client.state.counters));
        let closing = CloseSpan { span: self.id, wait_settled: Some(true), ..closing };
        self.client.send(DaemonCall::with_reply(self.generation, closing, ReplyHandler::End(ask)));
        PendingClose { outcome: answer, state: Arc::clone(&self.client.state) }
    }

    /// It never was.
    pub fn cancel(self) {
        let (ask, _) = PendingEnd::new(EndKind::Cancel, Arc::clone(&self.client.state.counters));
        self.client.send(DaemonCall::with_reply(
            self.generation,
            CancelSpan { span: self.id },
            ReplyHandler::End(ask),
        ));
    }

    fn send_oneway<M: Method>(&self, parameters: M) {
        let shared = &self.client.state;
        if shared.generation() != self.generation {
            return;
        }
        if shared.is_full() {
            shared.counters.dropped_updates.increment();
            return;
        }
        self.client.send(DaemonCall::oneway(self.generation, parameters));
    }
}

/// A close whose account may come.
pub struct PendingClose {
    outcome: tokio::sync::oneshot::Receiver<SpanOutcome>,
    state: Arc<SpanClientState>,
}

impl PendingClose {
    /// The span's end, if it is told soon.
    pub async fn wait(self) -> Option<SpanOutcome> {
        let patience = self.state.current_account_timeout();
        match tokio::time::timeout(patience, self.outcome).await {
            Ok(ending) => Some(ending.unwrap_or(SpanOutcome::Lost)),
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
    use crate::proxy::escape::LogSink;

    fn client() -> (SpanClient, CallReceiver) {
        SpanClient::new(
            Duration::from_millis(5),
            Arc::default(),
            ServerProcessTracker::new(None, LogSink::new(|_| ())),
        )
    }

    #[test]
    fn no_span_is_opened_while_the_daemon_is_unavailable() {
        let (lane, mut orders) = client();
        assert_eq!(
            lane.open_span("a".into(), OpenSpan::default()).err(),
            Some(UnmeasuredReason::DaemonUnavailable)
        );
        assert!(orders.try_recv().is_err());
    }

    #[test]
    fn a_full_queue_accepts_only_span_ends() {
        let (lane, mut orders) = client();
        lane.state.set_generation(1);
        let open = lane.open_span("a".into(), OpenSpan::default()).unwrap();
        lane.state.queued.store(MAX_QUEUED_CALLS, Ordering::Relaxed);
        open.mark_phase("decode", 1);
        assert_eq!(lane.open_span("b".into(), OpenSpan::default()).err(), Some(UnmeasuredReason::QueueFull));
        assert_eq!(lane.state.counters.dropped_updates.get(), 1);
        drop(open.close(CloseSpan::default()));
        assert!(orders.try_recv().unwrap().reply_handler.is_none());
        assert!(orders.try_recv().unwrap().reply_handler.is_some());
    }

    #[test]
    fn a_lost_call_is_counted_once_as_abandoned() {
        let (lane, orders) = client();
        lane.state.set_generation(1);
        let pending_close =
            lane.open_span("a".into(), OpenSpan::default()).unwrap().close(CloseSpan::default());
        lane.open_span("b".into(), OpenSpan::default()).unwrap().cancel();
        drop(orders);
        lane.open_span("c".into(), OpenSpan::default()).unwrap().cancel();
        drop(pending_close);
        let tally = &lane.state.counters;
        assert_eq!((tally.opened.get(), tally.abandoned.get(), tally.ended_spans()), (3, 3, 3));
    }

    #[tokio::test]
    async fn replies_stop_waiting_after_three_late_accounts() {
        let (lane, _orders) = client();
        lane.state.set_generation(1);
        for _ in 0..3 {
            let open = lane.open_span("a".into(), OpenSpan::default()).unwrap();
            assert!(open.close(CloseSpan::default()).wait().await.is_none());
        }
        assert_eq!(lane.state.current_account_timeout(), Duration::ZERO);
        lane.state.record_account_latency(Duration::from_millis(4));
        assert_eq!(lane.state.current_account_timeout(), Duration::from_millis(5));
    }
}
