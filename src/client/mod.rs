//! A blocking client of the daemon: typed calls, one connection.
//!
//! Owns the client's end of the socket. A daemon that vanishes, stalls or speaks nonsense is a
//! [`Failure`](crate::client::Failure), never a panic; after one the connection is given up, since nobody knows which
//! answer would come next. Knows nothing of hardware and decides nothing: what a figure means is the daemon's word.
//!
//! ```no_run
//! use wattspan::client::{Client, Place};
//!
//! let client = Client::connect(&Place::usual())?;
//! let mut question = client.span("question 17")?;
//! // ... prefill ...
//! question.phase("decode")?;
//! // ... decode ...
//! let account = question.close()?;
//! println!("{:?} µJ", account.share_uj);
//! # Ok::<(), wattspan::client::Failure>(())
//! ```

mod connection;
mod failure;
mod pipeline;
mod place;
mod span;
mod stream;

use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::attribution::account::{Account, Balance};
use crate::protocol::{
    Call, CloseSpan, GetBalance, GetInfo, GetSpan, Info, ListSpans, Method, OpenSpan, ReadWindow,
    WatchDomains, WatchSpans, Window,
};

use connection::Connection;
pub use failure::Failure;
pub use pipeline::Pipeline;
pub use place::{Place, SOCKET_VARIABLE};
pub use span::Span;
pub use stream::Stream;

/// How long an answer may take before the daemon counts as stalled. A settled account may wait for a slow counter
/// (seconds), so this is generous.
pub const USUAL_TIMEOUT: Duration = Duration::from_secs(30);

/// One connection to the daemon. Calls from several threads wait for each other.
#[derive(Debug)]
pub struct Client {
    connection: Mutex<Connection>,
}

impl Client {
    /// Connects to the first place where a daemon answers.
    pub fn connect(place: &Place) -> Result<Self, Failure> {
        place.connect().and_then(Self::over)
    }

    /// A client over a socket that is connected already.
    pub fn over(stream: UnixStream) -> Result<Self, Failure> {
        let client = Client { connection: Mutex::new(Connection::new(stream)) };
        client.set_timeout(Some(USUAL_TIMEOUT))?;
        Ok(client)
    }

    /// How long an answer may take; `None`: for ever.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), Failure> {
        self.lock().set_timeout(timeout)
    }

    /// Asks and waits for the answer.
    pub fn call<M: Method>(&self, parameters: M) -> Result<M::Reply, Failure> {
        let mut connection = self.lock();
        connection.send(&Call::new(parameters))?;
        connection.receive::<M::Reply>()?.map(|reply| reply.value)
    }

    /// Tells, without waiting and without learning of a refusal.
    pub fn oneway<M: Method>(&self, parameters: M) -> Result<(), Failure> {
        self.lock().send(&Call::oneway(parameters))
    }

    /// Many calls of one kind in few writes; their answers come in order.
    pub fn pipeline<M: Method>(&self) -> Pipeline<'_, M> {
        Pipeline::new(self.lock())
    }

    /// Asks for answers without end; the connection belongs to the stream from now on.
    pub fn more<M: Method>(self, parameters: M) -> Result<Stream<M::Reply>, Failure> {
        let mut connection = self.connection.into_inner().unwrap_or_else(PoisonError::into_inner);
        connection.send(&Call::more(parameters))?;
        Ok(Stream::new(connection))
    }

    /// The daemon, its clock, its domains, and what is not there.
    pub fn info(&self) -> Result<Info, Failure> {
        self.call(GetInfo {})
    }

    /// Opens a span that closes when the guard goes.
    pub fn span(&self, name: &str) -> Result<Span<'_>, Failure> {
        self.open(OpenSpan { name: Some(name.to_owned()), ..OpenSpan::default() })
    }

    /// Opens a span as described; it closes when the guard goes.
    pub fn open(&self, opening: OpenSpan) -> Result<Span<'_>, Failure> {
        let opened = self.call(opening)?;
        Ok(Span::new(self, opened.span))
    }

    /// Closes a span by its name in the protocol. With `wait_settled` the account is final.
    pub fn close(&self, closing: CloseSpan) -> Result<Account, Failure> {
        Ok(self.call(closing)?.account)
    }

    /// An open span's account so far, or a closed one's.
    pub fn account(&self, span: &str) -> Result<Account, Failure> {
        Ok(self.call(GetSpan { span: span.to_owned() })?.account)
    }

    /// The latest settled accounts that the daemon still remembers, the latest last.
    pub fn recent(&self, limit: Option<i64>) -> Result<Vec<Account>, Failure> {
        Ok(self.call(ListSpans { limit, ..ListSpans::default() })?.accounts)
    }

    /// The settled accounts as they settle.
    pub fn watch_spans(self) -> Result<Stream<crate::protocol::SpanAccount>, Failure> {
        self.more(WatchSpans {})
    }

    /// Every domain's energy and power, at most `rate_hz` times a second.
    pub fn watch_domains(self, rate_hz: Option<f64>) -> Result<Stream<crate::protocol::DomainTick>, Failure> {
        self.more(WatchDomains { rate_hz })
    }

    /// What the domains used between two instants of the past.
    pub fn window(&self, from_ns: i64, to_ns: i64) -> Result<Window, Failure> {
        self.call(ReadWindow { from_ns, to_ns })
    }

    /// Where the joules went.
    pub fn balance(&self) -> Result<Vec<Balance>, Failure> {
        Ok(self.call(GetBalance {})?.balance)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A thread that panicked between a call and its answer leaves the connection marked as given up.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
