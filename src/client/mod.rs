//! A blocking client of the daemon: typed calls, one connection.
//!
//! Owns the client's end of the socket. A daemon that vanishes, stalls or sends an invalid reply is a
//! [`ClientError`](crate::client::ClientError), never a panic; after one the connection is desynchronized, since the next
//! reply may belong to an earlier call. Knows nothing of hardware and decides nothing: what a figure means is the daemon's word.
//!
//! ```no_run
//! use wattspan::client::{Client, SocketPath};
//!
//! let client = Client::connect(&SocketPath::from_env())?;
//! let mut question = client.open_span("question 17")?;
//! // ... prefill ...
//! question.mark_phase("decode")?;
//! // ... decode ...
//! let account = question.close()?;
//! println!("{:?} µJ", account.share_uj);
//! # Ok::<(), wattspan::client::ClientError>(())
//! ```

mod client_error;
mod pipeline;
mod reply_stream;
mod socket_path;
mod span_guard;
mod varlink_connection;

use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::attribution::account::{Account, Balance};
use crate::protocol::{
    Call, CloseSpan, DaemonInfo, GetBalance, GetInfo, GetSpan, ListSpans, Method, OpenSpan, ReadWindow,
    WatchDomains, WatchSpans, WindowEnergy,
};

pub use client_error::ClientError;
pub use pipeline::Pipeline;
pub use reply_stream::ReplyStream;
pub use socket_path::{SOCKET_ENV, SocketPath};
pub use span_guard::SpanGuard;
use varlink_connection::VarlinkConnection;

/// How long an answer may take before the daemon counts as stalled. A settled account may wait for a slow counter
/// (seconds), so this is generous.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// One connection to the daemon. Calls from several threads wait for each other.
#[derive(Debug)]
pub struct Client {
    connection: Mutex<VarlinkConnection>,
}

impl Client {
    /// Connects to the first socket on which a daemon answers.
    pub fn connect(socket_path: &SocketPath) -> Result<Self, ClientError> {
        socket_path.connect().and_then(Self::from_stream)
    }

    /// A client over a socket that is connected already.
    pub fn from_stream(stream: UnixStream) -> Result<Self, ClientError> {
        let client = Client { connection: Mutex::new(VarlinkConnection::new(stream)) };
        client.set_timeout(Some(DEFAULT_TIMEOUT))?;
        Ok(client)
    }

    /// How long an answer may take; `None`: for ever.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), ClientError> {
        self.lock().set_timeout(timeout)
    }

    /// Asks and waits for the answer.
    pub fn call<M: Method>(&self, parameters: M) -> Result<M::Reply, ClientError> {
        let mut connection = self.lock();
        connection.send(&Call::new(parameters))?;
        connection.receive::<M::Reply>()?.map(|reply| reply.value)
    }

    /// Tells, without waiting and without learning of a refusal.
    pub fn oneway<M: Method>(&self, parameters: M) -> Result<(), ClientError> {
        self.lock().send(&Call::oneway(parameters))
    }

    /// Many calls of one kind in few writes; their answers come in order.
    pub fn pipeline<M: Method>(&self) -> Pipeline<'_, M> {
        Pipeline::new(self.lock())
    }

    /// Asks for answers without end; the connection belongs to the stream from now on.
    pub fn more<M: Method>(self, parameters: M) -> Result<ReplyStream<M::Reply>, ClientError> {
        let mut connection = self.connection.into_inner().unwrap_or_else(PoisonError::into_inner);
        connection.send(&Call::more(parameters))?;
        Ok(ReplyStream::new(connection))
    }

    /// The daemon, its clock, its domains, and what is not there.
    pub fn info(&self) -> Result<DaemonInfo, ClientError> {
        self.call(GetInfo {})
    }

    /// Opens a span that closes when the guard goes.
    pub fn open_span(&self, name: &str) -> Result<SpanGuard<'_>, ClientError> {
        self.open_span_with(OpenSpan { name: Some(name.to_owned()), ..OpenSpan::default() })
    }

    /// Opens a span as described; it closes when the guard goes.
    pub fn open_span_with(&self, request: OpenSpan) -> Result<SpanGuard<'_>, ClientError> {
        let opened = self.call(request)?;
        Ok(SpanGuard::new(self, opened.span))
    }

    /// Closes a span by its name in the protocol. With `wait_settled` the account is final.
    pub fn close_span(&self, request: CloseSpan) -> Result<Account, ClientError> {
        Ok(self.call(request)?.account)
    }

    /// An open span's account so far, or a closed one's.
    pub fn span_account(&self, span: &str) -> Result<Account, ClientError> {
        Ok(self.call(GetSpan { span: span.to_owned() })?.account)
    }

    /// The latest settled accounts that the daemon still remembers, the latest last.
    pub fn recent_accounts(&self, limit: Option<i64>) -> Result<Vec<Account>, ClientError> {
        Ok(self.call(ListSpans { limit, ..ListSpans::default() })?.accounts)
    }

    /// The settled accounts as they settle.
    pub fn watch_spans(self) -> Result<ReplyStream<crate::protocol::SpanAccount>, ClientError> {
        self.more(WatchSpans {})
    }

    /// Every domain's energy and power, at most `rate_hz` times a second.
    pub fn watch_domains(
        self,
        rate_hz: Option<f64>,
    ) -> Result<ReplyStream<crate::protocol::DomainSnapshot>, ClientError> {
        self.more(WatchDomains { rate_hz })
    }

    /// What the domains used between two instants of the past.
    pub fn read_window(&self, from_ns: i64, to_ns: i64) -> Result<WindowEnergy, ClientError> {
        self.call(ReadWindow { from_ns, to_ns })
    }

    /// Where the joules went.
    pub fn balance(&self) -> Result<Vec<Balance>, ClientError> {
        Ok(self.call(GetBalance {})?.balance)
    }

    fn lock(&self) -> MutexGuard<'_, VarlinkConnection> {
        // A thread that panicked between a call and its answer leaves the connection marked as given up.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
