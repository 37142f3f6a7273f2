//! The meter's side of a run: spans opened, marked and closed while questions are asked.
//!
//! Owns a thread of its own and its connection to the meter, so that nobody who asks a question ever waits for a socket.
//! Spans are opened oneway with the times at which things happened; a closed span's account is fetched again and again
//! until it is settled. Invariant: an account that was not settled in time or that ended before its query, or a meter that
//! went away, is no energy at all, and the row says why; never a guess. What an edge that the meter heard of too late may
//! have cost is in the account's error.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::row::{Energy, Part};
use crate::client::{Client, Failure};
use crate::ledger::account::{Account, State};
use crate::protocol::{CloseSpan, GetSpan, MarkPhase, Method, OpenSpan};

/// How long an account may take to settle after its close: the slowest counters move every two seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often accounts are looked for.
const LOOK: Duration = Duration::from_millis(15);

/// Accounts that are looked for together. Meanwhile orders wait, and the meter moves an edge of which it hears behind its
/// horizon (10 ms unless it is set otherwise).
const TOGETHER: usize = 32;

/// How long to wait before a meter that went away is looked for again.
const RETRY: Duration = Duration::from_secs(1);

/// How long the meter may take for an answer before it counts as gone away.
const STALLED: Duration = Duration::from_secs(10);

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
    Close(CloseSpan, u64, oneshot::Sender<Settled>),
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
            Meter { connect, client: None, away_since: None, closed: VecDeque::new() }.serve(&taken);
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

    /// Closes the span of a query that began and ended then; its account comes later.
    pub fn close(
        &self,
        span: &str,
        notes: BTreeMap<String, String>,
        (began_ns, at_ns): (u64, u64),
    ) -> oneshot::Receiver<Settled> {
        let (give, take) = oneshot::channel();
        let attributes = Some(notes).filter(|notes| !notes.is_empty());
        let at_ns = Some(whole(at_ns));
        let closing = CloseSpan { span: span.into(), attributes, at_ns, wait_settled: None };
        self.send(Order::Close(closing, began_ns, give));
        take
    }

    fn send(&self, order: Order) {
        // The thread outlives every sender; only a panic of its own could end it before, and then nothing is metered.
        let _ = self.orders.send(order);
    }
}

/// A span that was closed and has not settled.
struct Closed {
    span: String,
    /// When its query began and ended.
    edges_ns: (u64, u64),
    give: oneshot::Sender<Settled>,
    until: Instant,
}

struct Meter {
    connect: Connect,
    client: Option<Client>,
    /// When the connection was lost, or looked for in vain.
    away_since: Option<Instant>,
    closed: VecDeque<Closed>,
}

impl Meter {
    fn serve(&mut self, orders: &Receiver<Order>) {
        let mut next_look = Instant::now();
        loop {
            let wait = next_look.saturating_duration_since(Instant::now());
            let order = if self.closed.is_empty() {
                orders.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                orders.recv_timeout(wait)
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
                Err(RecvTimeoutError::Disconnected) => thread::sleep(wait),
            }
            if Instant::now() >= next_look {
                let more = self.look();
                next_look = Instant::now() + if more { Duration::ZERO } else { LOOK };
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Open(opening) => _ = self.send(opening),
            Order::Mark(marking) => _ = self.send(marking),
            Order::Close(closing, began_ns, give) => {
                let span = closing.span.clone();
                let ended_ns = closing.at_ns.and_then(|at_ns| u64::try_from(at_ns).ok()).unwrap_or(began_ns);
                if self.send(closing) {
                    let (edges_ns, until) = ((began_ns, ended_ns), Instant::now() + PATIENCE);
                    self.closed.push_back(Closed { span, edges_ns, give, until });
                } else {
                    let _ = give.send(Err("the meter was away"));
                }
            }
        }
    }

    /// Tells the meter something, which is connected to where it is not; `false`: it is away.
    fn send<M: Method>(&mut self, what: M) -> bool {
        if self.client.is_none() && self.away_since.is_none_or(|since| since.elapsed() >= RETRY) {
            let client = (self.connect)().ok();
            self.client = client.filter(|client| client.set_timeout(Some(STALLED)).is_ok());
            self.away_since = self.client.is_none().then(Instant::now);
        }
        let sent = self.client.as_ref().map(|client| client.oneway(what).is_ok());
        if sent == Some(false) {
            self.lose();
        }
        sent == Some(true)
    }

    /// The connection is lost, and every span of it with it: the meter ends them as abandoned.
    fn lose(&mut self) {
        self.away_since = Some(Instant::now());
        self.client = None;
        for closed in self.closed.drain(..) {
            let _ = closed.give.send(Err("the meter went away"));
        }
    }

    /// Looks for some accounts; `true`: all of them were there, and more are waited for.
    fn look(&mut self) -> bool {
        // A try that failed may have nobody who waits for its account.
        self.closed.retain(|closed| !closed.give.is_closed());
        let some: Vec<Closed> = self.closed.drain(..self.closed.len().min(TOGETHER)).collect();
        let Some(client) = self.client.as_ref().filter(|_| !some.is_empty()) else { return false };
        let mut asked = client.pipeline::<GetSpan>();
        let told = some
            .iter()
            .try_for_each(|closed| asked.push(GetSpan { span: closed.span.clone() }))
            .and_then(|()| asked.finish());
        let Ok(answers) = told else {
            self.closed.extend(some);
            self.lose();
            return false;
        };
        let before = self.closed.len();
        for (closed, answer) in some.into_iter().zip(answers) {
            let settled = match answer.map(|answer| answer.account) {
                Ok(account) if account.state == State::Settled && is_another(&account, closed.edges_ns) => {
                    Err("the meter heard of the query too late: it was stalled, or this machine is too busy")
                }
                Ok(mut account) if account.state == State::Settled => {
                    widen(client, &mut account, closed.edges_ns);
                    Ok(Box::new(account))
                }
                Ok(account) if matches!(account.state, State::Abandoned | State::Interrupted) => {
                    Err("the meter ended the span before its time")
                }
                Ok(_) if closed.until < Instant::now() => Err("the account did not settle in time"),
                Ok(_) => {
                    self.closed.push_back(closed);
                    continue;
                }
                Err(_) => {
                    Err("the meter does not know the span: it was away when the query began, or refused it")
                }
            };
            let _ = closed.give.send(settled);
        }
        before > 0 && before == self.closed.len()
    }
}

/// Whether so much of a query lies outside its account that the figure would be about something else.
fn is_another(account: &Account, (began_ns, ended_ns): (u64, u64)) -> bool {
    account.moved_ns > ended_ns.saturating_sub(began_ns) / 2
}

/// Where the meter moved an edge, the query may have used up to everything that the machine used between the two: this
/// goes into the error. Where nobody can tell how much that was, nothing is guaranteed any more.
fn widen(client: &Client, account: &mut Account, (began_ns, ended_ns): (u64, u64)) {
    let closed_ns = account.closed_ns.unwrap_or(ended_ns);
    for (asked_ns, got_ns) in [(began_ns, account.opened_ns), (ended_ns, closed_ns)] {
        if asked_ns == got_ns {
            continue;
        }
        let window = client.window(whole(asked_ns.min(got_ns)), whole(asked_ns.max(got_ns))).ok();
        let sum = |error: Option<u64>, used: Option<u64>, doubt: Option<u64>| Some(error? + used? + doubt?);
        let (used_uj, doubt_uj) = window.as_ref().map_or((None, None), |all| (all.window_uj, all.error_uj));
        account.error_uj = sum(account.error_uj, used_uj, doubt_uj);
        for share in &mut account.domains {
            let all = window.iter().flat_map(|all| &all.domains).find(|all| all.domain == share.domain);
            let (used_uj, doubt_uj) = all.map_or((None, None), |all| (all.window_uj, all.error_uj));
            share.error_uj = sum(share.error_uj, used_uj, doubt_uj);
        }
    }
}

/// What a row keeps of an account; `domains` names the run's, in their order.
///
/// # Errors
/// It is no account of the run's machine: the meter measures other domains by now.
pub fn energy(account: &Account, domains: &[String]) -> Result<Energy, &'static str> {
    if !domains.iter().all(|name| account.domains.iter().any(|share| share.domain == *name)) {
        return Err("the meter lacks domains that it had when the run began");
    }
    let part = |name: &String| {
        let share = account.domains.iter().find(|share| share.domain == *name);
        share.map_or_else(Part::default, |share| Part {
            share_uj: share.share_uj,
            error_uj: share.error_uj,
            idle_uj: share.idle_uj,
        })
    };
    let phase = |name: &str| account.phases.iter().find(|phase| phase.name == name);
    // Where the mark came later than the opening, the time between has no name, and was prefill.
    let before = [phase(""), phase(PREFILL)].into_iter().flatten().map(|phase| phase.share_uj);
    Ok(Energy {
        span: account.span.clone(),
        share_uj: account.share_uj,
        error_uj: account.error_uj,
        idle_uj: account.idle_uj,
        window_uj: account.window_uj,
        grade: account.grade,
        span_ns: account.closed_ns.map_or(0, |closed| closed.saturating_sub(account.opened_ns)),
        moved_ns: account.moved_ns,
        at_once: account.peak_concurrency,
        prefill_uj: phase(PREFILL).and_then(|_| before.sum()),
        decode_uj: phase(DECODE).and_then(|phase| phase.share_uj),
        domains: domains.iter().map(part).collect(),
    })
}

fn whole(at_ns: u64) -> i64 {
    i64::try_from(at_ns).unwrap_or(i64::MAX)
}
