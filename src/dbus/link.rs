//! The daemon's life on the bus: there, gone, there again.
//!
//! Owns the connection to the bus and the name on it. A bus that is not there, goes away or keeps the name from us is a line
//! in the log and a try again later, less and less often; nothing else in the daemon notices.

use std::future::Future;
use std::num::NonZeroUsize;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::oneshot;
use zbus::address::Transport;
use zbus::address::transport::UnixSocket;
use zbus::connection::Builder;
use zbus::export::futures_core::Stream;
use zbus::{Address, Connection, Message, MessageStream};

use super::NAME;
use super::credential::BUS;
use super::desk::Desk;
use super::intake::Intake;
use super::line::connected;
use super::liveness;
use super::reception::Reception;
use crate::server::Usher;

/// The first and the longest time from one try to the next.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How long joining the bus may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Messages that zbus may hold; each is bounded by the intake.
const QUEUED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);

/// `DBUS_NAME_FLAG_DO_NOT_QUEUE`, and the reply that the name is ours.
const DO_NOT_QUEUE: u32 = 4;
const PRIMARY_OWNER: u32 = 1;

/// What the daemon is on the bus with.
pub struct Link {
    /// Where the bus is; absent: the system's.
    pub address: Option<String>,
    /// The way into the service.
    pub usher: Arc<Usher>,
    /// Largest message taken, in bytes.
    pub most_bytes: usize,
    /// Where a change of state is told.
    pub tell: fn(&str),
}

/// What came of waiting for the bus.
enum Heard {
    Message(Message),
    Gone,
    Stop,
}

impl Link {
    /// Is on the bus, as far as there is one, until stopped.
    pub async fn hold(self, mut stop: oneshot::Receiver<()>) {
        let (mut wait, mut silent) = (FIRST_WAIT, false);
        loop {
            match tokio::time::timeout(PATIENCE, self.join())
                .await
                .unwrap_or_else(|_| Err("no answer".into()))
            {
                Ok((bus, messages)) => {
                    (self.tell)(&format!("answers on the bus as {NAME}"));
                    if self.attend(bus, messages, &mut stop).await {
                        return;
                    }
                    (self.tell)("the bus is gone; the socket is served as before, the bus is tried again");
                    (wait, silent) = (FIRST_WAIT, true);
                }
                Err(why) if !silent => {
                    silent = true;
                    (self.tell)(&format!("is not on the bus: {why}; the socket is served all the same"));
                }
                Err(_) => {}
            }
            if tokio::time::timeout(wait, &mut stop).await.is_ok() {
                return;
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Connects and takes the name. The messages are caught before the name is asked for, so that none is missed.
    async fn join(&self) -> Result<(Connection, MessageStream), String> {
        let text = |why: zbus::Error| why.to_string();
        let address = match &self.address {
            Some(address) => address.parse().map_err(text)?,
            None => Address::system().map_err(text)?,
        };
        let stream = connect(&address).map_err(|why| format!("cannot connect to {address}: {why}"))?;
        let bus = Builder::socket(Intake::new(stream, self.most_bytes))
            .max_queued(QUEUED)
            .build()
            .await
            .map_err(text)?;
        let messages = MessageStream::from(&bus);
        let asked = bus
            .call_method(Some(BUS), "/org/freedesktop/DBus", Some(BUS), "RequestName", &(NAME, DO_NOT_QUEUE))
            .await
            .map_err(text)?;
        match asked.body().deserialize() {
            Ok(PRIMARY_OWNER) => Ok((bus, messages)),
            _ => Err(format!("another process is {NAME}")),
        }
    }

    /// Serves this bus until it is gone; whether it was told to stop.
    async fn attend(
        &self,
        bus: Connection,
        mut messages: MessageStream,
        stop: &mut oneshot::Receiver<()>,
    ) -> bool {
        let desk = Desk { bus, usher: Arc::clone(&self.usher), most_bytes: self.most_bytes };
        let desk = Arc::new(desk);
        let telling = tokio::spawn(liveness::tell(Arc::clone(&desk)));
        let mut reception = Reception::new(Arc::clone(&desk));
        let stopped = loop {
            match hear(&mut messages, stop).await {
                Heard::Message(message) => reception.take(message).await,
                Heard::Gone => break false,
                Heard::Stop => break true,
            }
        };
        telling.abort();
        if stopped {
            // Somebody has to go on reading, or the last answers of the bus would stand in the way of ours.
            let reading = tokio::spawn(async move { while next(&mut messages).await.is_some() {} });
            reception.farewell().await;
            reading.abort();
        }
        stopped
    }
}

async fn next(messages: &mut MessageStream) -> Option<zbus::Result<Message>> {
    std::future::poll_fn(|context| Pin::new(&mut *messages).poll_next(context)).await
}

async fn hear(messages: &mut MessageStream, stop: &mut oneshot::Receiver<()>) -> Heard {
    std::future::poll_fn(|context| {
        if Pin::new(&mut *stop).poll(context).is_ready() {
            return Poll::Ready(Heard::Stop);
        }
        Pin::new(&mut *messages).poll_next(context).map(|message| match message {
            Some(Ok(message)) => Heard::Message(message),
            _ => Heard::Gone,
        })
    })
    .await
}

/// A socket on the machine itself; other transports are nothing for an energy meter.
fn connect(address: &Address) -> std::io::Result<UnixStream> {
    let unix = match address.transport() {
        Transport::Unix(unix) => unix.path(),
        _ => return Err(std::io::Error::other("it is no Unix socket")),
    };
    let place = match unix {
        UnixSocket::File(path) => SocketAddr::from_pathname(path)?,
        UnixSocket::Abstract(name) => SocketAddr::from_abstract_name(name.as_bytes())?,
        _ => return Err(std::io::Error::other("it names a directory")),
    };
    connected(std::os::unix::net::UnixStream::connect_addr(&place)?)
}
