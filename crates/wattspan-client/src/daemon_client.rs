//! The blocking client of the daemon, and what its methods return: span guards, pipelines, reply streams.
//!
//! Owns one connection. After an error that leaves the next reply unknown, the connection stays desynchronized.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::account_reader::AccountReader;
use super::client_error::ClientError;
use super::socket_path::SocketPath;
use super::varlink_connection::VarlinkConnection;
use crate::account::{Account, Balance};
use crate::clock::monotonic_now_ns;
use crate::protocol::{
    Call, CancelSpan, CloseSpan, DaemonInfo, DomainSnapshot, GetBalance, GetInfo, GetSpan, ListSpans,
    MarkPhase, Method, OpenSpan, ReadWindow, SetWeight, SpanSums, SumSpans, WatchDomains, WatchSpans,
    WatchedSpan, WindowEnergy,
};

/// The default timeout of a reply. A settled account can wait seconds for a slow counter.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The most calls of a pipeline without a reply, so that neither side blocks on a full socket: a reply has some hundred
/// bytes, a socket buffer some hundred thousand.
const MAX_IN_FLIGHT: usize = 64;

/// One connection to the daemon. Calls from several threads are serialized.
#[derive(Debug)]
pub struct Client {
    connection: Mutex<VarlinkConnection>,
}

impl Client {
    /// Connects to the first socket that accepts.
    pub fn connect(socket_path: &SocketPath) -> Result<Self, ClientError> {
        socket_path.connect().and_then(Self::from_stream)
    }

    /// A client over a connected socket.
    pub fn from_stream(stream: UnixStream) -> Result<Self, ClientError> {
        let client = Client { connection: Mutex::new(VarlinkConnection::new(stream)) };
        client.set_timeout(Some(DEFAULT_TIMEOUT))?;
        Ok(client)
    }

    /// Sets the timeout of a reply; `None` for no timeout.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), ClientError> {
        self.lock().set_timeout(timeout)
    }

    /// Sends a call and waits for its reply.
    pub fn call<M: Method>(&self, parameters: M) -> Result<M::Reply, ClientError> {
        let mut connection = self.lock();
        connection.send(&Call::new(parameters))?;
        connection.receive::<M::Reply>()?.map(|reply| reply.value)
    }

    /// Sends a call without a reply; an error of the method is not reported.
    pub fn oneway<M: Method>(&self, parameters: M) -> Result<(), ClientError> {
        self.lock().send(&Call::oneway(parameters))
    }

    /// Starts a pipeline: many calls of one method in few writes.
    pub fn pipeline<M: Method>(&self) -> Pipeline<'_, M> {
        Pipeline::new(self.lock())
    }

    /// A reader of stored accounts, which locks the connection: other calls of the client wait until it is dropped.
    pub fn account_reader(&self) -> AccountReader<'_> {
        AccountReader::new(self.lock())
    }

    /// Sends a call with a stream of replies, which takes over the connection.
    pub fn more<M: Method>(self, parameters: M) -> Result<ReplyStream<M::Reply>, ClientError> {
        let mut connection = self.connection.into_inner().unwrap_or_else(PoisonError::into_inner);
        connection.send(&Call::more(parameters))?;
        Ok(ReplyStream::new(connection))
    }

    /// The daemon, its clock, its domains, and the unavailable sources.
    pub fn info(&self) -> Result<DaemonInfo, ClientError> {
        self.call(GetInfo {})
    }

    /// Opens a span, which closes when the guard is dropped.
    pub fn open_span(&self, name: &str) -> Result<SpanGuard<'_>, ClientError> {
        self.open_span_with(OpenSpan { name: Some(name.to_owned()), ..OpenSpan::default() })
    }

    /// Opens a span with all parameters; it closes when the guard is dropped.
    pub fn open_span_with(&self, request: OpenSpan) -> Result<SpanGuard<'_>, ClientError> {
        let opened = self.call(request)?;
        Ok(SpanGuard::new(self, opened.span))
    }

    /// Closes a span by its id. With `wait_settled` the account is final.
    pub fn close_span(&self, request: CloseSpan) -> Result<Account, ClientError> {
        Ok(self.call(request)?.account)
    }

    /// The account of an open or closed span.
    pub fn span_account(&self, span: &str) -> Result<Account, ClientError> {
        Ok(self.call(GetSpan { span: span.to_owned() })?.account)
    }

    /// The latest settled accounts of the daemon, the latest last.
    pub fn recent_accounts(&self, limit: Option<i64>) -> Result<Vec<Account>, ClientError> {
        Ok(self.call(ListSpans { limit, ..ListSpans::default() })?.accounts)
    }

    /// The sums of stored accounts, in groups. A large store takes seconds.
    pub fn sum_spans(&self, request: SumSpans) -> Result<SpanSums, ClientError> {
        self.call(request)
    }

    /// A stream of the accounts as they settle.
    pub fn watch_spans(self) -> Result<ReplyStream<WatchedSpan>, ClientError> {
        self.more(WatchSpans::default())
    }

    /// A stream of the stored accounts after a number, and then of those that are stored later. `after`: 0, or the `after`
    /// of an earlier reply, from the database with this UUID.
    pub fn watch_stored_spans(
        self,
        after: i64,
        database: Option<String>,
    ) -> Result<ReplyStream<WatchedSpan>, ClientError> {
        self.more(WatchSpans { after: Some(after), database })
    }

    /// A stream of each domain's energy and power, at most `rate_hz` times a second.
    pub fn watch_domains(self, rate_hz: Option<f64>) -> Result<ReplyStream<DomainSnapshot>, ClientError> {
        self.more(WatchDomains { rate_hz })
    }

    /// The energy of the domains between two past instants.
    pub fn read_window(&self, from_ns: i64, to_ns: i64) -> Result<WindowEnergy, ClientError> {
        self.call(ReadWindow { from_ns, to_ns })
    }

    /// The split of each domain's energy since the daemon started.
    pub fn balance(&self) -> Result<Vec<Balance>, ClientError> {
        Ok(self.call(GetBalance {})?.balance)
    }

    fn lock(&self) -> MutexGuard<'_, VarlinkConnection> {
        // A thread that panicked between a call and its reply leaves the connection desynchronized.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open span. The drop of the guard closes it at that instant, without a reply, also during a panic;
/// [`SpanGuard::close`] returns the account.
#[derive(Debug)]
#[must_use = "a span closes when its guard is dropped"]
pub struct SpanGuard<'client> {
    client: &'client Client,
    id: String,
    attributes: BTreeMap<String, String>,
    is_open: bool,
}

impl<'client> SpanGuard<'client> {
    pub(super) fn new(client: &'client Client, id: String) -> Self {
        SpanGuard { client, id, attributes: BTreeMap::new(), is_open: true }
    }

    /// The span id in the protocol.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Sets an attribute, which the close sends.
    pub fn set_attribute(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.attributes.insert(key.into(), value.into());
    }

    /// Ends the current phase now and begins `phase`.
    pub fn mark_phase(&mut self, phase: &str) -> Result<(), ClientError> {
        let request =
            MarkPhase { span: self.id.clone(), phase: phase.to_owned(), at_ns: Some(monotonic_now_ns()) };
        self.client.call(request).map(drop)
    }

    /// Changes the weight of the span from now on.
    pub fn set_weight(&mut self, weight: f64) -> Result<(), ClientError> {
        let request = SetWeight { span: self.id.clone(), weight, at_ns: Some(monotonic_now_ns()) };
        self.client.call(request).map(drop)
    }

    /// Closes the span now and waits for the settled account.
    pub fn close(self) -> Result<Account, ClientError> {
        self.close_at(monotonic_now_ns())
    }

    /// Closes the span at an instant of the monotonic clock and waits for the settled account.
    pub fn close_at(mut self, at_ns: i64) -> Result<Account, ClientError> {
        self.is_open = false;
        self.client.close_span(CloseSpan { wait_settled: Some(true), ..self.close_request(at_ns) })
    }

    /// Cancels the span: the daemon discards it.
    pub fn cancel(mut self) -> Result<(), ClientError> {
        self.is_open = false;
        self.client.call(CancelSpan { span: self.id.clone() }).map(drop)
    }

    fn close_request(&mut self, at_ns: i64) -> CloseSpan {
        let attributes =
            Some(std::mem::take(&mut self.attributes)).filter(|attributes| !attributes.is_empty());
        CloseSpan { span: self.id.clone(), attributes, at_ns: Some(at_ns), wait_settled: None }
    }
}

impl Drop for SpanGuard<'_> {
    fn drop(&mut self) {
        if self.is_open {
            let request = self.close_request(monotonic_now_ns());
            // No caller can receive the error; a daemon that lost the connection closes the span as abandoned.
            let _ = self.client.oneway(request);
        }
    }
}

/// Calls of one method. The pipeline locks the connection: other calls of the client wait until it is dropped.
pub struct Pipeline<'client, M: Method> {
    connection: MutexGuard<'client, VarlinkConnection>,
    in_flight: usize,
    replies: Vec<Result<M::Reply, ClientError>>,
}

impl<'client, M: Method> Pipeline<'client, M> {
    pub(super) fn new(connection: MutexGuard<'client, VarlinkConnection>) -> Self {
        Pipeline { connection, in_flight: 0, replies: Vec::new() }
    }

    /// Adds a call; every 64th waits for the replies to the calls so far.
    pub fn push(&mut self, parameters: M) -> Result<(), ClientError> {
        self.connection.queue(&Call::new(parameters));
        self.in_flight += 1;
        if self.in_flight == MAX_IN_FLIGHT { self.receive_replies() } else { Ok(()) }
    }

    /// Waits for the replies, one for each call, in order. The outer error means that the connection failed.
    pub fn finish(mut self) -> Result<Vec<Result<M::Reply, ClientError>>, ClientError> {
        self.receive_replies()?;
        Ok(std::mem::take(&mut self.replies))
    }

    fn receive_replies(&mut self) -> Result<(), ClientError> {
        if self.connection.queued_bytes() > 0 {
            self.connection.flush()?;
        }
        for _ in 0..std::mem::take(&mut self.in_flight) {
            let reply = self.connection.receive::<M::Reply>()?;
            self.replies.push(reply.map(|received| received.value));
        }
        Ok(())
    }
}

impl<M: Method> Drop for Pipeline<'_, M> {
    fn drop(&mut self) {
        // The replies must be read, or they would be taken for those of later calls. A failure leaves the connection
        // desynchronized, which the next call reports.
        let _ = self.receive_replies();
    }
}

/// The replies to one call with `more`. It ends after the last reply or the first error; the client's timeout applies.
#[derive(Debug)]
pub struct ReplyStream<T> {
    connection: VarlinkConnection,
    ended: bool,
    reply: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> ReplyStream<T> {
    pub(super) fn new(connection: VarlinkConnection) -> Self {
        ReplyStream { connection, ended: false, reply: PhantomData }
    }

    /// Sets the timeout of the next reply; `None` for no timeout.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), ClientError> {
        self.connection.set_timeout(timeout)
    }
}

impl<T: DeserializeOwned> Iterator for ReplyStream<T> {
    type Item = Result<T, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.connection.receive::<T>().and_then(|reply| reply) {
            Ok(received) => {
                self.ended = !received.continues;
                Some(Ok(received.value))
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    //! The client against a thread that plays a daemon from a script.

    use std::io::{Read, Write};
    use std::thread::{self, JoinHandle};

    use super::*;
    use crate::protocol::{Access, MESSAGE_TERMINATOR, MethodError};

    /// Answers the n-th message with the n-th script entry (no, one or several messages), then closes the connection.
    /// Returns the messages it received.
    fn scripted_daemon(script: &[&str]) -> (Client, JoinHandle<Vec<String>>) {
        let (client_end, mut daemon_end) = UnixStream::pair().unwrap();
        let script: Vec<String> = script.iter().map(|text| (*text).to_owned()).collect();
        let thread = thread::spawn(move || {
            let mut received = Vec::new();
            for reply in script {
                let mut message = Vec::new();
                let mut byte = [0];
                while daemon_end.read(&mut byte).unwrap_or(0) == 1 && byte[0] != MESSAGE_TERMINATOR {
                    message.push(byte[0]);
                }
                received.push(String::from_utf8(message).unwrap());
                daemon_end.write_all(reply.replace('|', "\0").as_bytes()).unwrap();
            }
            received
        });
        (Client::from_stream(client_end).unwrap(), thread)
    }

    #[test]
    fn a_method_error_is_typed_and_keeps_the_connection_usable() {
        let error_reply = r#"{"error":"org.wattspan.Meter.NoSuchSpan","parameters":{"span":"a"}}|"#;
        let (client, _daemon) = scripted_daemon(&[error_reply, "{}|"]);
        let error = client.span_account("a").unwrap_err();
        assert!(matches!(error, ClientError::Method(MethodError::NoSuchSpan { span }) if span == "a"));
        client.call(CancelSpan { span: "b".into() }).unwrap();
    }

    #[test]
    fn an_unknown_method_error_keeps_its_name() {
        let (client, _daemon) =
            scripted_daemon(&[r#"{"error":"org.wattspan.Meter.TooHot","parameters":{"c":99}}|"#]);
        let error = client.info().unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"the daemon returned an unknown error: org.wattspan.Meter.TooHot {"c":99}"#
        );
    }

    #[test]
    fn a_closed_connection_stays_unusable() {
        let (client, daemon) = scripted_daemon(&[r#"{"parameters":{"spa"#]);
        assert!(matches!(client.open_span("x").unwrap_err(), ClientError::ConnectionClosed));
        daemon.join().unwrap();
        assert!(matches!(client.info().unwrap_err(), ClientError::Desynchronized));
    }

    #[test]
    fn a_late_reply_is_not_matched_to_the_next_call() {
        let (client_end, _daemon_end) = UnixStream::pair().unwrap();
        let client = Client::from_stream(client_end).unwrap();
        client.set_timeout(Some(Duration::from_millis(5))).unwrap();
        assert!(matches!(client.info().unwrap_err(), ClientError::TimedOut));
        assert!(matches!(client.info().unwrap_err(), ClientError::Desynchronized));
    }

    #[test]
    fn a_malformed_reply_is_an_error() {
        let (client, _daemon) = scripted_daemon(&["not json|"]);
        assert!(matches!(client.info().unwrap_err(), ClientError::InvalidReply(_)));
    }

    #[test]
    fn a_pipeline_returns_one_reply_per_call_in_order() {
        let done = "{}|";
        let error_reply = r#"{"error":"org.wattspan.Meter.AlreadyClosed","parameters":{"span":"s1"}}|"#;
        let (client, daemon) = scripted_daemon(&[done, error_reply, done]);
        let mut pipeline = client.pipeline();
        for span in ["s0", "s1", "s2"] {
            pipeline.push(CancelSpan { span: span.into() }).unwrap();
        }
        let replies = pipeline.finish().unwrap();
        assert_eq!(replies.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(daemon.join().unwrap().len(), 3);
    }

    #[test]
    fn a_stream_ends_with_the_last_reply() {
        let tick = r#"{"continues":true,"parameters":{"now_ns":1,"domains":[]}}|{"continues":true,"parameters":{"now_ns":2,"domains":[]}}|{"parameters":{"now_ns":3,"domains":[]}}|"#;
        let (client, _daemon) = scripted_daemon(&[tick]);
        let times: Vec<u64> = client.watch_domains(None).unwrap().map(|tick| tick.unwrap().now_ns).collect();
        assert_eq!(times, [1, 2, 3]);
    }

    #[test]
    fn a_dropped_guard_closes_its_span_without_waiting() {
        let (client, daemon) = scripted_daemon(&[r#"{"parameters":{"span":"s7"}}|"#, "{}|", ""]);
        let mut span = client.open_span("question").unwrap();
        assert_eq!(span.id(), "s7");
        span.set_attribute("model", "small");
        span.mark_phase("decode").unwrap();
        drop(span);
        let received = daemon.join().unwrap();
        let mark = serde_json::from_str::<serde_json::Value>(&received[1]).unwrap();
        serde_json::from_value::<MarkPhase>(mark["parameters"].clone()).unwrap();
        let close: serde_json::Value = serde_json::from_str(&received[2]).unwrap();
        assert_eq!(close["method"], "org.wattspan.Meter.CloseSpan");
        assert_eq!(close["oneway"], true);
        assert_eq!(close["parameters"]["attributes"]["model"], "small");
        assert!(close["parameters"]["at_ns"].as_u64().unwrap() > 0);
    }

    #[test]
    fn info_is_deserialized() {
        let info = r#"{"parameters":{"version":"1","boot_id":"b","now_ns":1,"horizon_ns":2,"history_ns":3,"domains":[],"absent":[],"access":"telemetry"}}|"#;
        let (client, _daemon) = scripted_daemon(&[info]);
        assert_eq!(client.info().unwrap().access, Access::Telemetry);
    }

    #[test]
    fn an_explicit_socket_path_is_the_only_one_tried() {
        let error = Client::connect(&SocketPath::Explicit("/nonexistent/wattspan.sock".into())).unwrap_err();
        assert!(error.to_string().starts_with("no daemon at /nonexistent/wattspan.sock: "), "{error}");
    }
}
