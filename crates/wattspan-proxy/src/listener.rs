//! The proxy's listening socket and the connections that it accepts, over TCP or a Unix socket.
//!
//! A connection states the user of its client, where the transport reports it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, listen, recv};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use wattspan_system::unix_socket::{self, SocketFile, SocketPermissions};

use super::annotation_policy::PeerUser;
use super::tcp_owner;

/// Connections that the kernel completes before they are accepted. With the 128 of the standard library, the others of a
/// burst are dropped and try again after a second. The system may limit it further (`net.core.somaxconn`, 4,096).
const BACKLOG: i32 = 4096;

pub type ClientReader = Box<dyn AsyncRead + Send + Unpin>;

pub type ClientWriter = Box<dyn AsyncWrite + Send + Unpin>;

/// Where a proxy listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// Host and port; the host can be a name.
    Tcp(String),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// The text is no listen address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an address to listen on; use a form like 127.0.0.1:8088, [::1]:8088 or unix:/run/user/1000/proxy.sock"
)]
pub struct ParseListenAddressError(String);

impl FromStr for ListenAddress {
    type Err = ParseListenAddressError;

    fn from_str(text: &str) -> Result<Self, ParseListenAddressError> {
        match text.strip_prefix("unix:") {
            Some("") => Err(ParseListenAddressError(text.to_owned())),
            Some(path) => Ok(ListenAddress::Unix(path.into())),
            None if text.starts_with(['/', '.']) => Ok(ListenAddress::Unix(text.into())),
            None => {
                let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
                let is_number = port.is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                let address = || ListenAddress::Tcp(text.to_owned());
                is_number.then(address).ok_or_else(|| ParseListenAddressError(text.to_owned()))
            }
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Tcp(address) => f.write_str(address),
            ListenAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound socket outside an async runtime.
pub enum ListenSocket {
    Tcp(std::net::TcpListener),
    /// The drop of the second value removes the socket file.
    Unix(std::os::unix::net::UnixListener, SocketFile),
}

impl ListenSocket {
    /// Binds and listens. The members of `group` may connect to a Unix socket, besides its owner.
    ///
    /// # Errors
    /// The address is in use or not available.
    pub fn bind(address: &ListenAddress, group: Option<u32>) -> io::Result<Self> {
        let failed =
            |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
        match address {
            ListenAddress::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address).map_err(failed)?;
                extend_backlog(&listener)?;
                listener.set_nonblocking(true)?;
                Ok(ListenSocket::Tcp(listener))
            }
            ListenAddress::Unix(path) => {
                let (listener, listening) =
                    unix_socket::bind(path, SocketPermissions::from(group)).map_err(io::Error::other)?;
                if let Some(group) = group
                    && std::os::unix::fs::MetadataExt::gid(&std::fs::metadata(path)?) != group
                {
                    let denied = "this user cannot give the socket to the group, since it is no member of it";
                    return Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, denied)));
                }
                extend_backlog(&listener)?;
                Ok(ListenSocket::Unix(listener, listening))
            }
        }
    }

    /// The address of a TCP socket; `None` for a Unix socket.
    ///
    /// # Errors
    /// The system does not report the address.
    pub fn tcp_address(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            ListenSocket::Tcp(listener) => listener.local_addr().map(Some),
            ListenSocket::Unix(..) => Ok(None),
        }
    }

    /// The URL or path that clients connect to.
    ///
    /// # Errors
    /// The system does not report the address.
    pub fn describe(&self) -> io::Result<String> {
        match self {
            ListenSocket::Tcp(listener) => Ok(format!("http://{}", listener.local_addr()?)),
            ListenSocket::Unix(_, listening) => Ok(format!("unix:{}", listening.path().display())),
        }
    }
}

/// Extends the queue of a socket that listens: a second call of listen(2) changes nothing else.
fn extend_backlog(listener: impl AsFd) -> io::Result<()> {
    listen(listener, BACKLOG).map_err(Into::into)
}

/// A [`ListenSocket`] that is registered with an async runtime.
pub enum ProxyListener {
    Tcp(TcpListener),
    /// The drop of the second value removes the socket file.
    Unix(UnixListener, SocketFile),
}

impl ProxyListener {
    /// Registers the socket with the current runtime.
    ///
    /// # Errors
    /// The system cannot register the socket.
    pub fn new(socket: ListenSocket) -> io::Result<Self> {
        Ok(match socket {
            ListenSocket::Tcp(listener) => ProxyListener::Tcp(TcpListener::from_std(listener)?),
            ListenSocket::Unix(listener, listening) => {
                ProxyListener::Unix(UnixListener::from_std(listener)?, listening)
            }
        })
    }

    /// Waits for a connection, and accepts it and those that are queued after it, at most `max`.
    ///
    /// # Errors
    /// The process has no free descriptor for the first one.
    pub async fn accept_batch(&self, max: usize) -> io::Result<Vec<AcceptedConnection>> {
        std::future::poll_fn(|cx| {
            let mut batch = vec![ready!(self.poll_accept(cx))?];
            while batch.len() < max
                && let Poll::Ready(Ok(connection)) = self.poll_accept(cx)
            {
                batch.push(connection);
            }
            Poll::Ready(Ok(batch))
        })
        .await
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<AcceptedConnection>> {
        match self {
            ProxyListener::Tcp(listener) => {
                listener.poll_accept(cx).map_ok(|(stream, _)| AcceptedConnection::Tcp(stream))
            }
            ProxyListener::Unix(listener, _) => {
                listener.poll_accept(cx).map_ok(|(stream, _)| AcceptedConnection::Unix(stream))
            }
        }
    }
}

pub enum AcceptedConnection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AcceptedConnection {
    /// The user of the client.
    ///
    /// # Errors
    /// The look-up of the user fails.
    pub fn peer_user(&self) -> io::Result<PeerUser> {
        match self {
            AcceptedConnection::Tcp(stream) => {
                let (client, local) = (stream.peer_addr()?, stream.local_addr()?);
                Ok(tcp_owner::uid(client, local)?.map_or(PeerUser::Unknown, PeerUser::Uid))
            }
            AcceptedConnection::Unix(stream) => {
                unix_socket::peer_credentials(stream.as_fd()).map(PeerUser::Credentials)
            }
        }
    }

    /// Sets `TCP_NODELAY`: a small write is sent without delay.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn set_nodelay(&self) -> io::Result<()> {
        match self {
            AcceptedConnection::Tcp(stream) => stream.set_nodelay(true),
            AcceptedConnection::Unix(_) => Ok(()),
        }
    }

    /// Waits for bytes and copies the first of them without consuming them; 0 at the end of the stream.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        fn first(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
            recv(socket, buffer, RecvFlags::PEEK).map(|(count, _)| count).map_err(Into::into)
        }
        match self {
            AcceptedConnection::Tcp(stream) => {
                stream.async_io(Interest::READABLE, || first(stream, buffer)).await
            }
            AcceptedConnection::Unix(stream) => {
                stream.async_io(Interest::READABLE, || first(stream, buffer)).await
            }
        }
    }

    pub fn into_split(self) -> (ClientReader, ClientWriter) {
        match self {
            AcceptedConnection::Tcp(stream) => {
                let (reader, writer) = stream.into_split();
                (Box::new(reader), Box::new(writer))
            }
            AcceptedConnection::Unix(stream) => {
                let (reader, writer) = stream.into_split();
                (Box::new(reader), Box::new(writer))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_with_a_port_or_a_path() {
        let tcp = |text: &str| Ok(ListenAddress::Tcp(text.into()));
        let unix = |path: &str| Ok(ListenAddress::Unix(path.into()));
        for text in ["127.0.0.1:0", "[::1]:8088", "localhost:8088", "0.0.0.0:80"] {
            assert_eq!(text.parse(), tcp(text));
        }
        for (text, path) in [("unix:a/b", "a/b"), ("/run/p", "/run/p"), ("./p", "./p"), ("unix:/p:1", "/p:1")]
        {
            assert_eq!(text.parse(), unix(path));
        }
        for text in ["", "unix:", "8088", ":8088", "host", "host:port", "host:70000"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }
}
