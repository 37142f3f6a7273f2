//! Connections that another server of this daemon (D-Bus) forwards: one end of a socket pair, and the peer's
//! credentials.
//!
//! Owns the channel between the two threads: a queue, and a socket that wakes the poller. A forwarded
//! connection is subject to the same limits and policy as one from the listener. The bytes on the wake socket
//! carry no meaning.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};

use wattspan_system::unix_socket::PeerCredentials;

/// A connection forwarded to the socket server.
#[derive(Debug)]
pub struct ForwardedConnection {
    /// The server's end of the socket pair.
    pub stream: UnixStream,
    /// The credentials that the transport of the other server states.
    pub credentials: PeerCredentials,
    /// The process id, if that transport states it.
    pub pid: Option<u32>,
}

/// The sending side, for the other server.
#[derive(Debug)]
pub struct ConnectionSender {
    queue: Sender<ForwardedConnection>,
    wake_socket: UnixStream,
}

/// The receiving side, for the socket server.
#[derive(Debug)]
pub struct ConnectionReceiver {
    queue: Receiver<ForwardedConnection>,
    wake_socket: UnixStream,
}

/// Creates both sides.
///
/// # Errors
/// The system cannot create a socket pair.
pub fn connection_channel() -> io::Result<(ConnectionSender, ConnectionReceiver)> {
    let (sender_wake, receiver_wake) = UnixStream::pair()?;
    sender_wake.set_nonblocking(true)?;
    receiver_wake.set_nonblocking(true)?;
    let (sender, receiver) = channel();
    Ok((
        ConnectionSender { queue: sender, wake_socket: sender_wake },
        ConnectionReceiver { queue: receiver, wake_socket: receiver_wake },
    ))
}

impl ConnectionSender {
    /// Forwards a new connection and returns the client's end. A connection over a limit gets an error there
    /// and is closed.
    ///
    /// # Errors
    /// The system cannot create a socket pair, or the service has ended.
    pub fn connect(&self, credentials: PeerCredentials, pid: Option<u32>) -> io::Result<UnixStream> {
        let (client_end, stream) = UnixStream::pair()?;
        let ended = |_| io::Error::from(io::ErrorKind::NotConnected);
        self.queue.send(ForwardedConnection { stream, credentials, pid }).map_err(ended)?;
        // If the wake socket is full, the poller wakes up anyway.
        let _ = (&self.wake_socket).write(&[1]);
        Ok(client_end)
    }
}

impl ConnectionReceiver {
    /// The socket that becomes readable when a connection is queued.
    pub fn wake_socket(&self) -> io::Result<UnixStream> {
        self.wake_socket.try_clone()
    }

    /// The queued connections, or `None` if the sender was dropped.
    pub fn drain(&self) -> Option<Vec<ForwardedConnection>> {
        let mut buffer = [0; 256];
        loop {
            match (&self.wake_socket).read(&mut buffer) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(_) => return Some(self.queue.try_iter().collect()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> PeerCredentials {
        PeerCredentials { uid: 7, gid: 8, groups: vec![9] }
    }

    #[test]
    fn a_connection_arrives_with_its_credentials_and_socket() {
        let (sender, receiver) = connection_channel().unwrap();
        assert!(receiver.drain().unwrap().is_empty());
        let mut client_end = sender.connect(credentials(), None).unwrap();
        let mut connection = receiver.drain().unwrap().pop().unwrap();
        assert_eq!(connection.credentials, credentials());
        connection.stream.write_all(b"x").unwrap();
        let mut byte = [0];
        client_end.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn each_side_detects_that_the_other_was_dropped() {
        let (sender, receiver) = super::connection_channel().unwrap();
        drop(sender);
        assert!(receiver.drain().is_none());
        let (sender, receiver) = super::connection_channel().unwrap();
        drop(receiver);
        assert!(sender.connect(credentials(), None).is_err());
    }

    #[test]
    fn a_full_wake_socket_does_not_block_the_sender() {
        let (sender, receiver) = connection_channel().unwrap();
        for _ in 0..300 {
            drop(sender.connect(credentials(), None).unwrap());
        }
        assert_eq!(receiver.drain().unwrap().len(), 300);
    }
}
