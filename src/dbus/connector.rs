//! The daemon's connection to the bus: connect, serve, reconnect.
//!
//! Owns the connection and the name on the bus. If the bus is unavailable or the name is taken, it logs that
//! once and retries with increasing delays. The rest of the daemon is not affected. It also emits the signal
//! for changed domains.

use std::collections::BTreeMap;
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
use wattspan_client::protocol::{DaemonInfo, GetInfo, MethodName};
use zbus::address::Transport;
use zbus::address::transport::UnixSocket;
use zbus::connection::Builder;
use zbus::export::futures_core::Stream;
use zbus::{Address, Connection, Message, MessageStream, Variant};

use super::capped_socket::CappedSocket;
use super::context::DbusContext;
use super::credentials::{self, DBUS_SERVICE};
use super::dispatcher::DbusDispatcher;
use super::names::{BUS_NAME, INTERFACE, OBJECT_PATH, PROPERTIES_INTERFACE};
use super::service_connection::ServiceConnection;
use crate::server::ForwardedSender;
use crate::service::{Reply, Request};

/// The shortest and the longest delay between two attempts.
const MIN_RECONNECT_DELAY: Duration = Duration::from_millis(250);
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(60);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages that zbus may queue; `CappedSocket` bounds the size of each.
const MAX_QUEUED_MESSAGES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);

/// Interval at which the domains are polled for changes. One poll takes about 0.1 ms.
const SIGNAL_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// `DBUS_NAME_FLAG_DO_NOT_QUEUE` and `DBUS_REQUEST_NAME_REPLY_PRIMARY_OWNER`.
const DO_NOT_QUEUE: u32 = 4;
const PRIMARY_OWNER: u32 = 1;

pub struct DbusConnector {
    /// The address of the bus; absent: the system bus.
    pub address: Option<String>,
    pub service: ForwardedSender,
    pub max_message_bytes: usize,
    /// Called with each change of state.
    pub log: fn(&str),
}

enum DbusEvent {
    Message(Message),
    Disconnected,
    Stop,
}

impl DbusConnector {
    /// Connects and serves until stopped.
    pub async fn run(self, mut stop: oneshot::Receiver<()>) {
        let (mut delay, mut is_logged) = (MIN_RECONNECT_DELAY, false);
        loop {
            match tokio::time::timeout(CONNECT_TIMEOUT, self.connect())
                .await
                .unwrap_or_else(|_| Err("timeout".into()))
            {
                Ok((bus, messages)) => {
                    (self.log)(&format!("connected to the bus as {BUS_NAME}"));
                    if self.serve(bus, messages, &mut stop).await {
                        return;
                    }
                    (self.log)("disconnected from the bus, will reconnect; the socket is not affected");
                    (delay, is_logged) = (MIN_RECONNECT_DELAY, true);
                }
                Err(error) if !is_logged => {
                    is_logged = true;
                    (self.log)(&format!(
                        "not connected to the bus, will retry: {error}; the socket is not affected"
                    ));
                }
                Err(_) => {}
            }
            if tokio::time::timeout(delay, &mut stop).await.is_ok() {
                return;
            }
            delay = (delay * 2).min(MAX_RECONNECT_DELAY);
        }
    }

    /// Connects and requests the name. The message stream is created before the request, so that no message
    /// is lost.
    async fn connect(&self) -> Result<(Connection, MessageStream), String> {
        let text = |error: zbus::Error| error.to_string();
        let address = match &self.address {
            Some(address) => address.parse().map_err(text)?,
            None => Address::system().map_err(text)?,
        };
        let stream =
            connect_socket(&address).map_err(|error| format!("cannot connect to {address}: {error}"))?;
        let bus = Builder::socket(CappedSocket::new(stream, self.max_message_bytes))
            .max_queued(MAX_QUEUED_MESSAGES)
            .build()
            .await
            .map_err(text)?;
        let messages = MessageStream::from(&bus);
        let reply = bus
            .call_method(
                Some(DBUS_SERVICE),
                "/org/freedesktop/DBus",
                Some(DBUS_SERVICE),
                "RequestName",
                &(BUS_NAME, DO_NOT_QUEUE),
            )
            .await
            .map_err(text)?;
        match reply.body().deserialize() {
            Ok(PRIMARY_OWNER) => Ok((bus, messages)),
            _ => Err(format!("another process owns the name {BUS_NAME}")),
        }
    }

    /// Serves until the bus disconnects or `stop` is set. Returns whether it was stopped.
    async fn serve(
        &self,
        bus: Connection,
        mut messages: MessageStream,
        stop: &mut oneshot::Receiver<()>,
    ) -> bool {
        let context =
            DbusContext { bus, service: self.service.clone(), max_message_bytes: self.max_message_bytes };
        let context = Arc::new(context);
        let signal_task = tokio::spawn(emit_domain_changes(Arc::clone(&context)));
        let mut dispatcher = DbusDispatcher::new(Arc::clone(&context));
        let stopped = loop {
            match next_event(&mut messages, stop).await {
                DbusEvent::Message(message) => dispatcher.dispatch(message).await,
                DbusEvent::Disconnected => break false,
                DbusEvent::Stop => break true,
            }
        };
        signal_task.abort();
        if stopped {
            // zbus must continue to read, or unread messages from the bus would block the last replies.
            let reader_task =
                tokio::spawn(async move { while next_message(&mut messages).await.is_some() {} });
            dispatcher.drain().await;
            reader_task.abort();
        }
        stopped
    }
}

async fn next_message(messages: &mut MessageStream) -> Option<zbus::Result<Message>> {
    std::future::poll_fn(|cx| Pin::new(&mut *messages).poll_next(cx)).await
}

async fn next_event(messages: &mut MessageStream, stop: &mut oneshot::Receiver<()>) -> DbusEvent {
    std::future::poll_fn(|cx| {
        if Pin::new(&mut *stop).poll(cx).is_ready() {
            return Poll::Ready(DbusEvent::Stop);
        }
        Pin::new(&mut *messages).poll_next(cx).map(|message| match message {
            Some(Ok(message)) => DbusEvent::Message(message),
            _ => DbusEvent::Disconnected,
        })
    })
    .await
}

/// Connects to a Unix socket. Other transports are not supported.
fn connect_socket(address: &Address) -> std::io::Result<UnixStream> {
    let unix = match address.transport() {
        Transport::Unix(unix) => unix.path(),
        _ => return Err(std::io::Error::other("the address is not a Unix socket")),
    };
    let socket_address = match unix {
        UnixSocket::File(path) => SocketAddr::from_pathname(path)?,
        UnixSocket::Abstract(name) => SocketAddr::from_abstract_name(name.as_bytes())?,
        _ => return Err(std::io::Error::other("the address is a directory")),
    };
    let stream = std::os::unix::net::UnixStream::connect_addr(&socket_address)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Emits PropertiesChanged when a domain becomes or stops being live, until the service ends. The signal has
/// no value, because every client on the bus can receive it.
async fn emit_domain_changes(context: Arc<DbusContext>) {
    let service = ServiceConnection(context.service.connect(credentials::own_credentials(), None));
    let mut last = None;
    while let Ok(Reply::Info(info)) = service.call(MethodName::GetInfo, Request::GetInfo(GetInfo {})).await {
        let current = domain_states(&info);
        if last.as_ref().is_some_and(|last| *last != current) {
            let changed = BTreeMap::<&str, Variant>::new();
            let body = (INTERFACE, changed, ["Domains"].as_slice());
            let emitted = context.bus.emit_signal(
                None::<&str>,
                OBJECT_PATH,
                PROPERTIES_INTERFACE,
                "PropertiesChanged",
                &body,
            );
            if emitted.await.is_err() {
                return;
            }
        }
        last = Some(current);
        tokio::time::sleep(SIGNAL_POLL_INTERVAL).await;
    }
}

/// The name and state of each domain.
fn domain_states(info: &DaemonInfo) -> Vec<(String, impl PartialEq + use<>)> {
    info.domains.iter().map(|domain| (domain.name.clone(), domain.liveness)).collect()
}
