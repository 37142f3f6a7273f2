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

use super::account_result::{
    AccountResult, AccountStatus, DECODE, EndedQuery, PREFILL, account_status, widen_error,
};
use crate::client::{Client, ClientError};
use crate::protocol::{Access, CloseSpan, GetSpan, MarkPhase, Method, OpenSpan};

/// How long an account may take to settle after its close: the slowest counters move every two seconds.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);

/// How often accounts are looked for, and how many together. Meanwhile commands wait, and the meter moves an edge of which it
/// hears behind its horizon (10 ms unless it is set otherwise).
const ACCOUNT_POLL: (Duration, usize) = (Duration::from_millis(15), 32);

/// The same with coarse access: an account leaves at an instant of a grid of 100 ms, and of the 200 calls a second that such
/// a user has, most are to be left to the spans themselves.
const COARSE_ACCOUNT_POLL: (Duration, usize) = (Duration::from_millis(100), 8);

/// How seldom accounts are looked for where calls are used up, at most.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How long to wait before a meter that went away is looked for again.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// How long the meter may take for an answer before it counts as gone away.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How connections to the meter are made.
pub type Connect = Box<dyn Fn() -> Result<Client, ClientError> + Send>;

enum MeterCommand {
    Open(OpenSpan),
    Mark(MarkPhase),
    Close(CloseSpan, u64, oneshot::Sender<AccountResult>),
}

/// The askers' end. Its methods never wait.
#[derive(Clone)]
pub struct MeteringHandle {
    commands: Sender<MeterCommand>,
    prefix: String,
}

impl MeteringHandle {
    /// A metering thread. It ends when every [`MeteringHandle`] is gone and the last accounts are given out.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(prefix: &str, connect: Connect) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (commands, receiver) = channel();
        let thread = thread::Builder::new().name("metering".into()).spawn(move || {
            MeteringThread::new(connect).run(&receiver);
        })?;
        Ok((Self { commands, prefix: prefix.to_owned() }, thread))
    }

    /// Opens the span of a query that begins at `at_ns`; gives its name in the protocol.
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
            // The default would be this process, which only waits for the server.
            process_share: Some(false),
            ..OpenSpan::default()
        };
        self.send(MeterCommand::Open(request));
        self.send(MeterCommand::Mark(MarkPhase { span: span.clone(), phase: PREFILL.into(), at_ns }));
        span
    }

    /// The first token came at `at_ns`.
    pub fn mark_decode(&self, span: &str, at_ns: u64) {
        self.send(MeterCommand::Mark(MarkPhase {
            span: span.into(),
            phase: DECODE.into(),
            at_ns: Some(wire_ns(at_ns)),
        }));
    }

    /// Closes the span of a query that began and ended then; its account comes later.
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
        // The thread outlives every sender; only a panic of its own could end it before, and then nothing is metered.
        let _ = self.commands.send(command);
    }
}

/// A span that was closed and has not settled.
struct PendingAccount {
    span: String,
    query: EndedQuery,
    result_sender: oneshot::Sender<AccountResult>,
}

struct MeteringThread {
    connect: Connect,
    client: Option<Client>,
    /// What the caller may do there.
    access: Access,
    /// When the connection was lost, or looked for in vain.
    disconnected_since: Option<Instant>,
    pending: VecDeque<PendingAccount>,
    /// How long to wait before accounts are looked for again.
    poll_interval: Duration,
    /// What the meter said where calls were used up when accounts were last looked for.
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

    fn run(&mut self, commands: &Receiver<MeterCommand>) {
        let mut next_poll = Instant::now();
        loop {
            let wait = next_poll.saturating_duration_since(Instant::now());
            let command = if self.pending.is_empty() {
                commands.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                commands.recv_timeout(wait)
            };
            match command {
                Ok(command) => {
                    self.execute(command);
                    // Whatever else waits is sent before anything is asked.
                    while let Ok(command) = commands.try_recv() {
                        self.execute(command);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) if self.pending.is_empty() => return,
                Err(RecvTimeoutError::Disconnected) => thread::sleep(wait),
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
                    let _ = result_sender.send(Err("the meter was away".into()));
                }
            }
        }
    }

    /// Tells the meter something, which is connected to where it is not; `false`: it is away.
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

    /// How often accounts are looked for as a rule, and how many together.
    fn default_poll(&self) -> (Duration, usize) {
        if self.access <= Access::Coarse { COARSE_ACCOUNT_POLL } else { ACCOUNT_POLL }
    }

    /// The connection is lost, and every span of it with it: the meter ends them as abandoned. It hangs up, too, on who goes
    /// on calling where calls are used up.
    fn disconnect(&mut self, error: &ClientError) {
        self.disconnected_since = Some(Instant::now());
        self.client = None;
        let reason = self.quota_error.take().unwrap_or_else(|| error.to_string());
        for pending in self.pending.drain(..) {
            let _ = pending.result_sender.send(Err(format!("the meter went away: {reason}").into()));
        }
    }

    /// Looks for some accounts; `true`: all of them were there, and more are waited for.
    fn poll_accounts(&mut self) -> bool {
        // A try that failed may have nobody who waits for its account.
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
        // A call that is refused costs a part of one, so that who asks on at the same pace is refused for ever.
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

    /// What a query is told by a meter of coarse access that gives these answers to questions after its account, and then
    /// hangs up.
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
                    () => panic!("nobody of coarse access may ask that: {message}"),
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
            "nobody may know what the grid costs"
        );
    }

    #[test]
    fn a_disconnect_reports_the_last_quota_error() {
        let reason = |replies| account_for(replies).unwrap_err().into_owned();
        assert_eq!(reason(&[QUOTA]), "the meter went away: the limit of 200 calls a second is reached");
        assert!(reason(&[]).starts_with("the meter went away: the daemon closed the connection"));
    }
}
