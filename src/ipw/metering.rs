//! The meter's side of a run: spans opened, marked and closed while questions are asked.
//!
//! Owns a thread of its own and its connection to the meter, so that nobody who asks a question ever waits for a socket.
//! Spans are opened oneway with the times at which things happened; a closed span's account is fetched again and again
//! until it is settled. Invariant: an account that was not settled in time or that ended before its query, or a meter that
//! went away, is no energy at all, and the row says why; never a guess. A meter that counts the caller's calls is not
//! asked so often that it takes no more spans.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::settling::{DECODE, Ended, PREFILL, Settled, Word, widen, word};
use crate::client::{Client, Failure};
use crate::protocol::{Access, CloseSpan, GetSpan, MarkPhase, Method, OpenSpan};

/// How long an account may take to settle after its close: the slowest counters move every two seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often accounts are looked for, and how many together. Meanwhile orders wait, and the meter moves an edge of which it
/// hears behind its horizon (10 ms unless it is set otherwise).
const LOOK: (Duration, usize) = (Duration::from_millis(15), 32);

/// The same with coarse access: an account leaves at an instant of a grid of 100 ms, and of the 200 calls a second that such
/// a user has, most are to be left to the spans themselves.
const COARSE_LOOK: (Duration, usize) = (Duration::from_millis(100), 8);

/// How seldom accounts are looked for where calls are used up, at most.
const SELDOM: Duration = Duration::from_secs(1);

/// How long to wait before a meter that went away is looked for again.
const RETRY: Duration = Duration::from_secs(1);

/// How long the meter may take for an answer before it counts as gone away.
const STALLED: Duration = Duration::from_secs(10);

/// How connections to the meter are made.
pub type Connect = Box<dyn Fn() -> Result<Client, Failure> + Send>;

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
            Meter::new(connect).serve(&taken);
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
            // The default would be this process, which only waits for the server.
            process_share: Some(false),
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
    query: Ended,
    give: oneshot::Sender<Settled>,
}

struct Meter {
    connect: Connect,
    client: Option<Client>,
    /// What the caller may do there.
    access: Access,
    /// When the connection was lost, or looked for in vain.
    away_since: Option<Instant>,
    closed: VecDeque<Closed>,
    /// How long to wait before accounts are looked for again.
    pause: Duration,
    /// What the meter said where calls were used up when accounts were last looked for.
    too_many: Option<String>,
}

impl Meter {
    fn new(connect: Connect) -> Self {
        let closed = VecDeque::new();
        let (access, pause) = (Access::None, LOOK.0);
        Self { connect, client: None, access, away_since: None, closed, pause, too_many: None }
    }

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
                next_look = Instant::now() + if more { Duration::ZERO } else { self.pause };
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
                    let query = Ended { edges_ns: (began_ns, ended_ns), until: Instant::now() + PATIENCE };
                    self.closed.push_back(Closed { span, query, give });
                } else {
                    let _ = give.send(Err("the meter was away".into()));
                }
            }
        }
    }

    /// Tells the meter something, which is connected to where it is not; `false`: it is away.
    fn send<M: Method>(&mut self, what: M) -> bool {
        if self.client.is_none() && self.away_since.is_none_or(|since| since.elapsed() >= RETRY) {
            self.meet();
        }
        match self.client.as_ref().map(|client| client.oneway(what)) {
            Some(Ok(())) => true,
            Some(Err(failure)) => {
                self.lose(&failure);
                false
            }
            None => false,
        }
    }

    fn meet(&mut self) {
        let met = (self.connect)().and_then(|client| {
            client.set_timeout(Some(STALLED))?;
            let access = client.info()?.access;
            Ok((client, access))
        });
        self.away_since = met.is_err().then(Instant::now);
        if let Ok((client, access)) = met {
            (self.client, self.access, self.too_many) = (Some(client), access, None);
            self.pause = self.usual_look().0;
        }
    }

    /// How often accounts are looked for as a rule, and how many together.
    fn usual_look(&self) -> (Duration, usize) {
        if self.access <= Access::Coarse { COARSE_LOOK } else { LOOK }
    }

    /// The connection is lost, and every span of it with it: the meter ends them as abandoned. It hangs up, too, on who goes
    /// on calling where calls are used up.
    fn lose(&mut self, failure: &Failure) {
        self.away_since = Some(Instant::now());
        self.client = None;
        let why = self.too_many.take().unwrap_or_else(|| failure.to_string());
        for closed in self.closed.drain(..) {
            let _ = closed.give.send(Err(format!("the meter went away: {why}").into()));
        }
    }

    /// Looks for some accounts; `true`: all of them were there, and more are waited for.
    fn look(&mut self) -> bool {
        // A try that failed may have nobody who waits for its account.
        self.closed.retain(|closed| !closed.give.is_closed());
        let (usual_pause, together) = self.usual_look();
        let some: Vec<Closed> = self.closed.drain(..self.closed.len().min(together)).collect();
        let Some(client) = self.client.as_ref().filter(|_| !some.is_empty()) else { return false };
        let mut asked = client.pipeline::<GetSpan>();
        let told = some
            .iter()
            .try_for_each(|closed| asked.push(GetSpan { span: closed.span.clone() }))
            .and_then(|()| asked.finish());
        let answers = match told {
            Ok(answers) => answers,
            Err(failure) => {
                self.closed.extend(some);
                self.lose(&failure);
                return false;
            }
        };
        let before = self.closed.len();
        let mut refused = None;
        for (closed, answer) in some.into_iter().zip(answers) {
            let mut settled = match word(answer.map(|answer| answer.account), closed.query, self.access) {
                Word::Last(settled) => settled,
                Word::NotYet => {
                    self.closed.push_back(closed);
                    continue;
                }
                Word::TooManyCalls(said) => {
                    refused = Some(said);
                    self.closed.push_back(closed);
                    continue;
                }
            };
            if let Ok(account) = &mut settled {
                widen(client, self.access, account, closed.query.edges_ns);
            }
            let _ = closed.give.send(settled);
        }
        // A call that is refused costs a part of one, so that who asks on at the same pace is refused for ever.
        self.pause = if refused.is_some() { (self.pause * 2).min(SELDOM) } else { usual_pause };
        self.too_many = refused;
        before > 0 && before == self.closed.len()
    }
}

fn whole(at_ns: u64) -> i64 {
    i64::try_from(at_ns).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;

    use super::*;

    const QUOTA: &str =
        r#"{"error":"org.wattspan.Meter.QuotaExceeded","parameters":{"quota":"calls a second","limit":200}}"#;
    const INFO: &str = r#"{"parameters":{"version":"0","boot_id":"b","now_ns":0,"horizon_ns":0,"history_ns":0,"domains":[],"absent":[],"access":"coarse"}}"#;
    const SETTLED: &str = r#"{"parameters":{"account":{"span":"t-1","name":"","attributes":{},"state":"settled","uid":1,"opened_ns":100000000,"closed_ns":900000000,"moved_ns":2,"opened_unix_ns":0,"weight":1.0,"share_uj":7,"error_uj":1,"peak_concurrency":1,"domains":[],"phases":[]}}}"#;

    /// What a query is told by a meter of coarse access that gives these answers to questions after its account, and then
    /// hangs up.
    fn told(answers: &'static [&str]) -> Settled {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let meter = thread::spawn(move || {
            let mut answers = answers.iter();
            let mut out = theirs.try_clone().unwrap();
            for message in BufReader::new(theirs).split(0) {
                let message = String::from_utf8(message.unwrap()).unwrap();
                let answer = match () {
                    () if message.contains("oneway") => continue,
                    () if message.contains("GetInfo") => INFO,
                    () if message.contains("GetSpan") => match answers.next() {
                        Some(answer) => answer,
                        None => return,
                    },
                    () => panic!("nobody of coarse access may ask that: {message}"),
                };
                out.write_all(format!("{answer}\0").as_bytes()).unwrap();
            }
        });
        let connection = Mutex::new(Some(Client::over(ours).unwrap()));
        let connect = move || connection.lock().unwrap().take().ok_or(Failure::Gone);
        let (metering, thread) = Metering::start("t", Box::new(connect)).unwrap();
        let span = metering.open(1, "ipw", BTreeMap::new(), 99_999_999);
        let account = metering.close(&span, BTreeMap::new(), (99_999_999, 899_999_999));
        drop(metering);
        thread.join().unwrap();
        meter.join().unwrap();
        account.blocking_recv().unwrap()
    }

    #[test]
    fn an_account_that_calls_are_used_up_for_is_asked_for_again() {
        let account = told(&[QUOTA, QUOTA, SETTLED]).unwrap();
        assert_eq!(
            (account.share_uj, account.error_uj),
            (Some(7), None),
            "nobody may know what the grid costs"
        );
    }

    #[test]
    fn a_meter_that_goes_away_over_used_up_calls_is_quoted() {
        let why = |answers| told(answers).unwrap_err().into_owned();
        assert_eq!(why(&[QUOTA]), "the meter went away: the limit of 200 calls a second is reached");
        assert!(why(&[]).starts_with("the meter went away: the daemon closed the connection"));
    }
}
