//! The meter's side of a run: spans opened, marked and closed while questions are asked.
//!
//! Owns a thread of its own and its connection to the meter, so that nobody who asks a question ever waits for a socket.
//! Spans are opened oneway with the times at which things happened; a closed span's account is fetched again and again
//! until it is settled. Invariant: an account that was not settled in time, or a meter that went away, is no energy at
//! all, with the reason counted; never a guess.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::row::{Energy, Part};
use crate::client::{Client, Failure};
use crate::ledger::account::{Account, State};
use crate::protocol::{CancelSpan, CloseSpan, MarkPhase, OpenSpan};

/// How long an account may take to settle after its close: the slowest counters move every two seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often accounts are looked for.
const LOOK: Duration = Duration::from_millis(15);

/// How long to wait before a meter that went away is looked for again.
const RETRY: Duration = Duration::from_secs(1);

/// The phase before the first token.
pub const PREFILL: &str = "prefill";
/// The phase from the first token on.
pub const DECODE: &str = "decode";

/// How connections to the meter are made.
pub type Connect = Box<dyn Fn() -> Result<Client, Failure> + Send>;

/// What a closed span gave.
pub type Settled = Result<Box<Account>, &'static str>;

enum Order {
    Open(OpenSpan),
    Mark(MarkPhase),
    Close(CloseSpan, oneshot::Sender<Settled>),
    Cancel(CancelSpan),
}

/// The askers' end. Its methods never wait.
#[derive(Clone)]
pub struct Metering {
    orders: Sender<Order>,
    prefix: String,
}

impl Metering {
    /// A metering thread. It ends when every [`Metering`] is gone and the last accounts are given out.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(prefix: &str, connect: Connect) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (orders, taken) = channel();
        let thread = thread::Builder::new().name("metering".into()).spawn(move || {
            Meter { connect, client: None, away_since: None, closed: Vec::new() }.serve(&taken);
        })?;
        Ok((Self { orders, prefix: prefix.to_owned() }, thread))
    }

    /// Opens the span of a query that begins at `at_ns`; gives its name in the protocol.
    pub fn open(&self, number: u64, name: &str, notes: BTreeMap<String, String>, at_ns: u64) -> String {
        let span = format!("{}-{number}", self.prefix);
        let at_ns = Some(whole(at_ns));
        let opening = OpenSpan {
            span: Some(span.clone()),
            name: Some(name.to_owned()),
            attributes: Some(notes),
            at_ns,
            ..OpenSpan::default()
        };
        self.send(Order::Open(opening));
        self.send(Order::Mark(MarkPhase { span: span.clone(), phase: PREFILL.into(), at_ns }));
        span
    }

    /// The first token came at `at_ns`.
    pub fn decode(&self, span: &str, at_ns: u64) {
        self.send(Order::Mark(MarkPhase {
            span: span.into(),
            phase: DECODE.into(),
            at_ns: Some(whole(at_ns)),
        }));
    }

    /// Closes a span; its account comes later.
    pub fn close(
        &self,
        span: &str,
        notes: BTreeMap<String, String>,
        at_ns: u64,
    ) -> oneshot::Receiver<Settled> {
        let (give, take) = oneshot::channel();
        let attributes = Some(notes).filter(|notes| !notes.is_empty());
        let at_ns = Some(whole(at_ns));
        let closing = CloseSpan { span: span.into(), attributes, at_ns, wait_settled: None };
        self.send(Order::Close(closing, give));
        take
    }

    /// Forgets a span.
    pub fn cancel(&self, span: &str) {
        self.send(Order::Cancel(CancelSpan { span: span.into() }));
    }

    fn send(&self, order: Order) {
        // The thread outlives every sender; only a panic of its own could end it before, and then nothing is metered.
        let _ = self.orders.send(order);
    }
}

/// A span that was closed and has not settled.
struct Closed {
    span: String,
    give: oneshot::Sender<Settled>,
    until: Instant,
}

struct Meter {
    connect: Connect,
    client: Option<Client>,
    away_since: Option<Instant>,
    closed: Vec<Closed>,
}

impl Meter {
    fn serve(&mut self, orders: &Receiver<Order>) {
        loop {
            let order = if self.closed.is_empty() {
                orders.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                orders.recv_timeout(LOOK)
            };
            match order {
                Ok(order) => {
                    self.obey(order);
                    // Whatever else waits is sent before anything is asked.
                    while let Ok(order) = orders.try_recv() {
                        self.obey(order);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) if self.closed.is_empty() => return,
                Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK),
            }
            self.look();
        }
    }

    fn obey(&mut self, order: Order) {
        let sent = match order {
            Order::Open(opening) => self.send(|client| client.oneway(opening)),
            Order::Mark(marking) => self.send(|client| client.oneway(marking)),
            Order::Cancel(cancelling) => self.send(|client| client.oneway(cancelling)),
            Order::Close(closing, give) => {
                let span = closing.span.clone();
                let sent = self.send(|client| client.oneway(closing));
                if sent {
                    self.closed.push(Closed { span, give, until: Instant::now() + PATIENCE });
                } else {
                    let _ = give.send(Err("the meter is away"));
                }
                sent
            }
        };
        if !sent {
            self.lose();
        }
    }

    /// Does something with the connection, which is made where there is none; `false`: it is lost.
    fn send(&mut self, what: impl FnOnce(&Client) -> Result<(), Failure>) -> bool {
        if self.client.is_none() && self.away_since.is_none_or(|since| since.elapsed() >= RETRY) {
            self.client = (self.connect)().ok();
        }
        self.client.as_ref().is_some_and(|client| what(client).is_ok())
    }

    /// The connection is lost, and every span of it with it: the meter ends them as abandoned.
    fn lose(&mut self) {
        self.away_since = Some(Instant::now());
        if self.client.take().is_some() {
            for closed in self.closed.drain(..) {
                let _ = closed.give.send(Err("the meter went away"));
            }
        }
    }

    fn look(&mut self) {
        let mut lost = false;
        let closed = std::mem::take(&mut self.closed);
        for closed in closed {
            match self.client.as_ref().filter(|_| !lost).map(|client| client.account(&closed.span)) {
                Some(Ok(account)) if account.state == State::Settled => {
                    let _ = closed.give.send(Ok(Box::new(account)));
                }
                Some(Ok(_)) if closed.until < Instant::now() => {
                    let _ = closed.give.send(Err("the account did not settle in time"));
                }
                Some(Ok(_)) => self.closed.push(closed),
                Some(Err(Failure::Refused(_))) => {
                    let _ = closed.give.send(Err("the meter does not know the span (a quota?)"));
                }
                Some(Err(_)) => {
                    lost = true;
                    self.closed.push(closed);
                }
                None => self.closed.push(closed),
            }
        }
        if lost {
            self.lose();
        }
    }
}

/// What a row keeps of an account; `domains` names the run's, in their order.
pub fn energy(account: &Account, domains: &[String]) -> Energy {
    let part = |name: &String| {
        let share = account.domains.iter().find(|share| share.domain == *name);
        share.map_or_else(Part::default, |share| Part {
            share_uj: share.share_uj,
            error_uj: share.error_uj,
            idle_uj: share.idle_uj,
        })
    };
    let phase = |name: &str| account.phases.iter().find(|phase| phase.name == name)?.share_uj;
    Energy {
        span: account.span.clone(),
        share_uj: account.share_uj,
        error_uj: account.error_uj,
        idle_uj: account.idle_uj,
        window_uj: account.window_uj,
        grade: account.grade,
        span_ns: account.closed_ns.map_or(0, |closed| closed.saturating_sub(account.opened_ns)),
        at_once: account.peak_concurrency,
        prefill_uj: phase(PREFILL),
        decode_uj: phase(DECODE),
        domains: domains.iter().map(part).collect(),
    }
}

fn whole(at_ns: u64) -> i64 {
    i64::try_from(at_ns).unwrap_or(i64::MAX)
}
