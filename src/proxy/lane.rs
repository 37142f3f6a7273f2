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

use super::order::{Ask, Ending, Kind, Order, Question};
use super::server_process::Named;
use super::tally::Tally;
use crate::protocol::{CancelSpan, CloseSpan, MarkPhase, Method, OpenSpan, SetWeight};

/// Messages that may wait before no more spans are opened. The daemon takes some 100,000 a second.
const MOST_WAITING: usize = 16_384;

/// So many accounts in a row that came too late, and nobody waits for one until one comes in time.
const LATE_IN_A_ROW: u32 = 3;

/// Why a request has no span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmeasured {
    /// The daemon does not answer.
    Away,
    /// Too much waits for it already.
    Busy,
}

impl Unmeasured {
    /// In a few words.
    pub fn reason(self) -> &'static str {
        match self {
            Unmeasured::Away => "the meter is away",
            Unmeasured::Busy => "the meter is too slow",
        }
    }
}

/// What the lane's two ends share.
pub struct Shared {
    /// The connection that is used, counted from 1; 0 while there is none.
    generation: AtomicU64,
    waiting: AtomicUsize,
    late: AtomicU32,
    /// How long a reply waits for its account.
    pub patience: Duration,
    /// The counters.
    pub tally: Arc<Tally>,
}

/// The requests' end of the lane.
#[derive(Clone)]
pub struct Lane {
    orders: mpsc::UnboundedSender<Order>,
    /// What both ends know.
    pub shared: Arc<Shared>,
    /// The server's process, which spans name.
    pub server: Arc<Named>,
}

/// The daemon's end of the lane.
pub type Orders = mpsc::UnboundedReceiver<Order>;

impl Lane {
    /// A lane whose replies wait at most `patience` for an account, and its other end.
    pub fn new(patience: Duration, tally: Arc<Tally>, server: Named) -> (Self, Orders) {
        let (orders, taken) = mpsc::unbounded_channel();
        let shared = Shared {
            generation: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            late: AtomicU32::new(0),
            patience,
            tally,
        };
        (Lane { orders, shared: Arc::new(shared), server: Arc::new(server) }, taken)
    }

    /// Opens a span, if there is a daemon that takes it.
    pub fn open(&self, span: String, opening: OpenSpan) -> Result<Open, Unmeasured> {
        let generation = self.shared.generation();
        if generation == 0 {
            return Err(Unmeasured::Away);
        }
        if self.shared.is_full() {
            return Err(Unmeasured::Busy);
        }
        self.shared.tally.opened.up();
        let mut opening = OpenSpan { span: Some(span.clone()), ..opening };
        self.send(match self.server.fill(&mut opening) {
            true => Order::ask(generation, opening, Question::Opening(Arc::clone(&self.server))),
            false => Order::say(generation, opening),
        });
        Ok(Open { lane: self.clone(), generation, span })
    }

    fn send(&self, order: Order) {
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        if let Err(unsent) = self.orders.send(order) {
            // The lane has ended, which the order's question tells by itself.
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            drop(unsent);
        }
    }
}

impl Shared {
    /// The connection that is used now, or 0.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// From now on this connection is used; 0: none.
    pub fn set_generation(&self, generation: u64) {
        self.generation.store(generation, Ordering::Relaxed);
        self.late.store(0, Ordering::Relaxed);
    }

    /// An order left the queue.
    pub fn took(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// An account came after so long.
    pub fn came(&self, after: Duration) {
        if after <= self.patience {
            self.late.store(0, Ordering::Relaxed);
        }
    }

    fn is_full(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= MOST_WAITING
    }

    /// How long to wait for an account now: not at all while they come too late anyway.
    fn patience_now(&self) -> Duration {
        if self.late.load(Ordering::Relaxed) >= LATE_IN_A_ROW { Duration::ZERO } else { self.patience }
    }
}

/// An open span.
pub struct Open {
    lane: Lane,
    generation: u64,
    span: String,
}

impl Open {
    /// Its name in the protocol.
    pub fn span(&self) -> &str {
        &self.span
    }

    /// A phase begins at `at_ns`.
    pub fn mark(&self, phase: &str, at_ns: i64) {
        self.say(MarkPhase { span: self.span.clone(), phase: phase.to_owned(), at_ns: Some(at_ns) });
    }

    /// It weighs so much from now on.
    pub fn weigh(&self, weight: f64) {
        self.say(SetWeight { span: self.span.clone(), weight, at_ns: None });
    }

    /// It ended; the account comes later.
    pub fn close(self, closing: CloseSpan) -> Closing {
        let (ask, answer) = Ask::new(Kind::Close, Arc::clone(&self.lane.shared.tally));
        let closing = CloseSpan { span: self.span, wait_settled: Some(true), ..closing };
        self.lane.send(Order::ask(self.generation, closing, Question::Ending(ask)));
        Closing { answer, shared: Arc::clone(&self.lane.shared) }
    }

    /// It never was.
    pub fn cancel(self) {
        let (ask, _) = Ask::new(Kind::Cancel, Arc::clone(&self.lane.shared.tally));
        self.lane.send(Order::ask(self.generation, CancelSpan { span: self.span }, Question::Ending(ask)));
    }

    fn say<M: Method>(&self, parameters: M) {
        let shared = &self.lane.shared;
        if shared.generation() != self.generation {
            return;
        }
        if shared.is_full() {
            shared.tally.left_out.up();
            return;
        }
        self.lane.send(Order::say(self.generation, parameters));
    }
}

/// A close whose account may come.
pub struct Closing {
    answer: tokio::sync::oneshot::Receiver<Ending>,
    shared: Arc<Shared>,
}

impl Closing {
    /// The span's end, if it is told soon.
    pub async fn soon(self) -> Option<Ending> {
        let patience = self.shared.patience_now();
        match tokio::time::timeout(patience, self.answer).await {
            Ok(ending) => Some(ending.unwrap_or(Ending::Lost)),
            Err(_) => {
                self.shared.late.fetch_add(1, Ordering::Relaxed);
                self.shared.tally.late.up();
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::visible::Log;

    fn lane() -> (Lane, Orders) {
        Lane::new(Duration::from_millis(5), Arc::default(), Named::new(None, Log::new(|_| ())))
    }

    #[test]
    fn nothing_is_opened_while_the_daemon_is_away() {
        let (lane, mut orders) = lane();
        assert_eq!(lane.open("a".into(), OpenSpan::default()).err(), Some(Unmeasured::Away));
        assert!(orders.try_recv().is_err());
    }

    #[test]
    fn a_full_queue_takes_ends_and_nothing_else() {
        let (lane, mut orders) = lane();
        lane.shared.set_generation(1);
        let open = lane.open("a".into(), OpenSpan::default()).unwrap();
        lane.shared.waiting.store(MOST_WAITING, Ordering::Relaxed);
        open.mark("decode", 1);
        assert_eq!(lane.open("b".into(), OpenSpan::default()).err(), Some(Unmeasured::Busy));
        assert_eq!(lane.shared.tally.left_out.get(), 1);
        drop(open.close(CloseSpan::default()));
        assert!(orders.try_recv().unwrap().question.is_none());
        assert!(orders.try_recv().unwrap().question.is_some());
    }

    #[test]
    fn a_question_that_gets_lost_is_counted_once_as_abandoned() {
        let (lane, orders) = lane();
        lane.shared.set_generation(1);
        let closing = lane.open("a".into(), OpenSpan::default()).unwrap().close(CloseSpan::default());
        lane.open("b".into(), OpenSpan::default()).unwrap().cancel();
        drop(orders);
        lane.open("c".into(), OpenSpan::default()).unwrap().cancel();
        drop(closing);
        let tally = &lane.shared.tally;
        assert_eq!((tally.opened.get(), tally.abandoned.get(), tally.ended()), (3, 3, 3));
    }

    #[tokio::test]
    async fn nobody_waits_any_more_after_three_accounts_that_came_too_late() {
        let (lane, _orders) = lane();
        lane.shared.set_generation(1);
        for _ in 0..3 {
            let open = lane.open("a".into(), OpenSpan::default()).unwrap();
            assert!(open.close(CloseSpan::default()).soon().await.is_none());
        }
        assert_eq!(lane.shared.patience_now(), Duration::ZERO);
        lane.shared.came(Duration::from_millis(4));
        assert_eq!(lane.shared.patience_now(), Duration::from_millis(5));
    }
}
