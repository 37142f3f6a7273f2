//! The metering thread of a run: opens, marks and closes spans while queries run.
//!
//! The thread has its own connection to the daemon, so no query waits for a socket. Spans are opened one-way with
//! explicit timestamps; the account of a closed span is fetched repeatedly until it is settled. Invariant: a query has
//! no energy, and its row has the reason, if the account did not settle in time, ended before the query, or the daemon
//! was unreachable. Fetching is slowed under a call quota, so that new spans can still be opened.

use std::collections::{BTreeMap, VecDeque};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, at, never, select_biased, unbounded};
use tokio::sync::oneshot;
use wattspan_client::protocol::{Access, CloseSpan, GetSpan, MarkPhase, Method, OpenSpan};
use wattspan_client::{Client, ClientError};

use super::account_result::{
    AccountResult, AccountStatus, DECODE, EndedQuery, PREFILL, account_status, widen_error,
};

/// How long an account may take to settle after its close: the slowest counters update every two seconds.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Interval between account polls, and how many accounts per poll. Commands wait during a poll, and the daemon moves
/// an edge that arrives after its horizon (10 ms by default).
const ACCOUNT_POLL: (Duration, usize) = (Duration::from_millis(15), 32);

/// The same at coarse access: an account settles on a grid of 100 ms, and most of such a user's 200 calls per second
/// must remain for the spans.
const COARSE_ACCOUNT_POLL: (Duration, usize) = (Duration::from_millis(100), 8);

/// The longest interval between polls while the call quota is exhausted.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Delay before reconnecting to the daemon.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// How long the daemon may take to reply before it counts as unreachable.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Creates connections to the daemon.
pub type Connect = Box<dyn Fn() -> Result<Client, ClientError> + Send>;

enum MeterCommand {
    Open(OpenSpan),
    Mark(MarkPhase),
    Close(CloseSpan, u64, oneshot::Sender<AccountResult>),
}

/// The sending side of the thread. Its methods never block.
#[derive(Clone)]
pub struct MeteringHandle {
    commands: Sender<MeterCommand>,
    prefix: String,
}

impl MeteringHandle {
    /// Starts a metering thread. It ends after every [`MeteringHandle`] is dropped and the last accounts are
    /// delivered.
    ///
    /// # Errors
    /// The system cannot create a thread.
    pub fn start(prefix: &str, connect: Connect) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (commands, receiver) = unbounded();
        let thread = thread::Builder::new().name("metering".into()).spawn(move || {
            MeteringThread::new(connect).run(receiver);
        })?;
        Ok((Self { commands, prefix: prefix.to_owned() }, thread))
    }

    /// Opens the span of a query that begins at `at_ns`; returns the span's id.
    pub fn open_span(
        &self,
        number: u64,
        name: &str,
        attributes: BTreeMap<String, String>,
        at_ns: u64,
    ) -> String {
        let span = format!("{}-{number}", self.prefix);
        let at_ns = Some(wire_ns(at_ns));
        let request = OpenSpan {
            span: Some(span.clone()),
            name: Some(name.to_owned()),
            attributes: Some(attributes),
            at_ns,
            // The default subject would be this process, which only waits for the server.
            process_share: Some(false),
            ..OpenSpan::default()
        };
        self.send(MeterCommand::Open(request));
        self.send(MeterCommand::Mark(MarkPhase { span: span.clone(), phase: PREFILL.into(), at_ns }));
        span
    }

    /// Marks the first token at `at_ns`.
    pub fn mark_decode(&self, span: &str, at_ns: u64) {
        self.send(MeterCommand::Mark(MarkPhase {
            span: span.into(),
            phase: DECODE.into(),
            at_ns: Some(wire_ns(at_ns)),
        }));
    }

    /// Closes the span of a query; the account is delivered later.
    pub fn close_span(
        &self,
        span: &str,
        attributes: BTreeMap<String, String>,
        (began_ns, at_ns): (u64, u64),
    ) -> oneshot::Receiver<AccountResult> {
        let (sender, receiver) = oneshot::channel();
        let attributes = Some(attributes).filter(|attributes| !attributes.is_empty());
        let at_ns = Some(wire_ns(at_ns));
        let request = CloseSpan { span: span.into(), attributes, at_ns, wait_settled: None };
        self.send(MeterCommand::Close(request, began_ns, sender));
        receiver
    }

    fn send(&self, command: MeterCommand) {
        // The thread outlives all senders unless it panics; then nothing is metered.
        let _ = self.commands.send(command);
    }
}

/// A closed span whose account has not settled.
struct PendingAccount {
    span: String,
    query: EndedQuery,
    result_sender: oneshot::Sender<AccountResult>,
}

struct MeteringThread {
    connect: Connect,
    client: Option<Client>,
    /// The caller's access level on this connection.
    access: Access,
    /// When the connection was lost or last failed to open.
    disconnected_since: Option<Instant>,
    pending: VecDeque<PendingAccount>,
    /// Interval until the next poll.
    poll_interval: Duration,
    /// The quota error of the last poll, if any.
    quota_error: Option<String>,
}

impl MeteringThread {
    fn new(connect: Connect) -> Self {
        let closed = VecDeque::new();
        let (access, pause) = (Access::None, ACCOUNT_POLL.0);
        Self {
            connect,
            client: None,
            access,
            disconnected_since: None,
            pending: closed,
            poll_interval: pause,
            quota_error: None,
        }
    }

    fn run(&mut self, mut commands: Receiver<MeterCommand>) {
        let mut is_open = true;
        let mut next_poll = Instant::now();
        while is_open || !self.pending.is_empty() {
            let poll_due = if self.pending.is_empty() { never() } else { at(next_poll) };
            // Queued commands are sent before accounts are polled.
            select_biased! {
                recv(commands) -> command => match command {
                    Ok(command) => {
                        self.execute(command);
                        while let Ok(command) = commands.try_recv() {
                            self.execute(command);
                        }
                    }
                    Err(_) => (is_open, commands) = (false, never()),
                },
                recv(poll_due) -> _ => {}
            }
            if Instant::now() >= next_poll {
                let has_more = self.poll_accounts();
                next_poll = Instant::now() + if has_more { Duration::ZERO } else { self.poll_interval };
            }
        }
    }

    fn execute(&mut self, command: MeterCommand) {
        match command {
            MeterCommand::Open(request) => _ = self.send(request),
            MeterCommand::Mark(request) => _ = self.send(request),
            MeterCommand::Close(request, began_ns, result_sender) => {
                let span = request.span.clone();
                let ended_ns = request.at_ns.and_then(|at_ns| u64::try_from(at_ns).ok()).unwrap_or(began_ns);
                if self.send(request) {
                    let query = EndedQuery {
                        edges_ns: (began_ns, ended_ns),
                        deadline: Instant::now() + SETTLE_TIMEOUT,
                    };
                    self.pending.push_back(PendingAccount { span, query, result_sender });
                } else {
                    let _ = result_sender.send(Err("the daemon was unreachable".into()));
                }
            }
        }
    }

    /// Sends a call to the daemon, connecting first if needed; `false`: the daemon is unreachable.
    fn send<M: Method>(&mut self, call: M) -> bool {
        if self.client.is_none()
            && self.disconnected_since.is_none_or(|since| since.elapsed() >= RECONNECT_INTERVAL)
        {
            self.connect_client();
        }
        match self.client.as_ref().map(|client| client.oneway(call)) {
            Some(Ok(())) => true,
            Some(Err(failure)) => {
                self.disconnect(&failure);
                false
            }
            None => false,
        }
    }

    fn connect_client(&mut self) {
        let connected = (self.connect)().and_then(|client| {
            client.set_timeout(Some(CALL_TIMEOUT))?;
            let access = client.info()?.access;
            Ok((client, access))
        });
        self.disconnected_since = connected.is_err().then(Instant::now);
        if let Ok((client, access)) = connected {
            (self.client, self.access, self.quota_error) = (Some(client), access, None);
            self.poll_interval = self.default_poll().0;
        }
    }

    /// Default poll interval and number of accounts per poll.
    fn default_poll(&self) -> (Duration, usize) {
        if self.access <= Access::Coarse { COARSE_ACCOUNT_POLL } else { ACCOUNT_POLL }
    }

    /// Handles a lost connection: the daemon ends all its spans as abandoned. The daemon also closes the connection of
    /// a caller that keeps calling after its quota is exhausted.
    fn disconnect(&mut self, error: &ClientError) {
        self.disconnected_since = Some(Instant::now());
        self.client = None;
        let reason = self.quota_error.take().unwrap_or_else(|| error.to_string());
        for pending in self.pending.drain(..) {
            let _ = pending
                .result_sender
                .send(Err(format!("the connection to the daemon was lost: {reason}").into()));
        }
    }

    /// Polls some accounts; `true`: all of them were final, and more are pending.
    fn poll_accounts(&mut self) -> bool {
        // A failed attempt may have no receiver for its account.
        self.pending.retain(|pending| !pending.result_sender.is_closed());
        let (default_interval, batch_size) = self.default_poll();
        let batch: Vec<PendingAccount> = self.pending.drain(..self.pending.len().min(batch_size)).collect();
        let Some(client) = self.client.as_ref().filter(|_| !batch.is_empty()) else { return false };
        let mut pipeline = client.pipeline::<GetSpan>();
        let sent = batch
            .iter()
            .try_for_each(|pending| pipeline.push(GetSpan { span: pending.span.clone() }))
            .and_then(|()| pipeline.finish());
        let replies = match sent {
            Ok(replies) => replies,
            Err(error) => {
                self.pending.extend(batch);
                self.disconnect(&error);
                return false;
            }
        };
        let already_pending = self.pending.len();
        let mut quota_error = None;
        for (pending, reply) in batch.into_iter().zip(replies) {
            let mut settled =
                match account_status(reply.map(|reply| reply.account), pending.query, self.access) {
                    AccountStatus::Final(settled) => settled,
                    AccountStatus::Pending => {
                        self.pending.push_back(pending);
                        continue;
                    }
                    AccountStatus::QuotaExceeded(message) => {
                        quota_error = Some(message);
                        self.pending.push_back(pending);
                        continue;
                    }
                };
            if let Ok(account) = &mut settled {
                widen_error(client, self.access, account, pending.query.edges_ns);
            }
            let _ = pending.result_sender.send(settled);
        }
        // A refused call costs a fraction of a call, so polling at an unchanged rate would be refused forever.
        self.poll_interval = if quota_error.is_some() {
            (self.poll_interval * 2).min(MAX_POLL_INTERVAL)
        } else {
            default_interval
        };
        self.quota_error = quota_error;
        already_pending > 0 && already_pending == self.pending.len()
    }
}

fn wire_ns(at_ns: u64) -> i64 {
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

    /// Returns the result that a query receives from a daemon with coarse access that sends these replies to account
    /// requests and then closes the connection.
    fn account_for(replies: &'static [&str]) -> AccountResult {
        let (ours, peer) = UnixStream::pair().unwrap();
        let meter = thread::spawn(move || {
            let mut replies = replies.iter();
            let mut out = peer.try_clone().unwrap();
            for message in BufReader::new(peer).split(0) {
                let message = String::from_utf8(message.unwrap()).unwrap();
                let reply = match () {
                    () if message.contains("oneway") => continue,
                    () if message.contains("GetInfo") => INFO,
                    () if message.contains("GetSpan") => match replies.next() {
                        Some(reply) => reply,
                        None => return,
                    },
                    () => panic!("a call beyond coarse access: {message}"),
                };
                out.write_all(format!("{reply}\0").as_bytes()).unwrap();
            }
        });
        let connection = Mutex::new(Some(Client::from_stream(ours).unwrap()));
        let connect = move || connection.lock().unwrap().take().ok_or(ClientError::ConnectionClosed);
        let (metering, thread) = MeteringHandle::start("t", Box::new(connect)).unwrap();
        let span = metering.open_span(1, "ipw", BTreeMap::new(), 99_999_999);
        let account = metering.close_span(&span, BTreeMap::new(), (99_999_999, 899_999_999));
        drop(metering);
        thread.join().unwrap();
        meter.join().unwrap();
        account.blocking_recv().unwrap()
    }

    #[test]
    fn an_account_is_polled_again_after_a_quota_error() {
        let account = account_for(&[QUOTA, QUOTA, SETTLED]).unwrap();
        assert_eq!(
            (account.share_uj, account.error_uj),
            (Some(7), None),
            "coarse access cannot read the energy between the edges"
        );
    }

    #[test]
    fn a_disconnect_reports_the_last_quota_error() {
        let reason = |replies| account_for(replies).unwrap_err().into_owned();
        assert_eq!(
            reason(&[QUOTA]),
            "the connection to the daemon was lost: the limit of 200 calls a second is reached"
        );
        assert!(
            reason(&[])
                .starts_with("the connection to the daemon was lost: the daemon closed the connection")
        );
    }
}
