//! Accepts connections within the limits.
//!
//! Owns the listener, the count of connections for each user, and one descriptor in reserve. Whoever is one too many
//! is told so and let go; nobody is left in the queue to be accepted again and again. Invariant: the counts are those
//! of the connections handed out and not yet given back by [`Acceptor::release`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use polling::{Event, Poller};

use super::connection_channel::ConnectionReceiver;
use super::readiness_ffi::RegisteredSocket;
use crate::config::Limits;
use crate::protocol::MethodError;
use crate::service::access::{AccessPolicy, Peer};
use crate::unix_socket::{self, PeerCredentials};

/// Most connections accepted in one turn; a flood waits its turn like everybody.
const MAX_ACCEPTS_PER_WAKEUP: usize = 32;

/// How long nobody is accepted after the system had no descriptor even for the reserve.
const ACCEPT_PAUSE_NS: u64 = 100_000_000;

/// An accepted connection.
#[derive(Debug)]
pub struct AcceptedConnection {
    /// The connection.
    pub stream: UnixStream,
    /// What it may do.
    pub peer: Peer,
    /// By what it was judged, as its transport states it; another rule judges by the same.
    pub credentials: PeerCredentials,
    /// Its process, where the transport tells.
    pub pid: Option<u32>,
}

/// Accepts connections, and counts them for each user.
pub struct Acceptor {
    listeners: Vec<RegisteredSocket<UnixListener>>,
    /// Connections that another server (D-Bus) forwards, and the socket that becomes readable when one is queued.
    forwarded: Option<(ConnectionReceiver, RegisteredSocket<UnixStream>)>,
    listener_key: usize,
    reserve_fd: Option<File>,
    resume_at_ns: Option<u64>,
    policy: AccessPolicy,
    limits: Limits,
    connections: usize,
    connections_of_user: HashMap<u32, usize>,
}

impl Acceptor {
    /// Registers the listeners, all under `key`, and the wake socket of `forwarded` under its own key.
    pub fn new(
        poller: &Arc<Poller>,
        key: usize,
        listeners: Vec<UnixListener>,
        forwarded: Option<(usize, ConnectionReceiver)>,
        policy: AccessPolicy,
        limits: Limits,
    ) -> io::Result<Self> {
        let watch = |listener: UnixListener| {
            listener.set_nonblocking(true)?;
            RegisteredSocket::new(poller, listener, Event::readable(key))
        };
        let listeners = listeners.into_iter().map(watch).collect::<io::Result<_>>()?;
        let (connections, connections_of_user) = (0, HashMap::new());
        let (reserve_fd, resume_at_ns) = (open_reserve_fd(), None);
        let watch = |(key, receiver): (usize, ConnectionReceiver)| {
            let wake_socket = RegisteredSocket::new(poller, receiver.wake_socket()?, Event::readable(key))?;
            io::Result::Ok((receiver, wake_socket))
        };
        let forwarded = forwarded.map(watch).transpose()?;
        Ok(Self {
            listeners,
            forwarded,
            listener_key: key,
            reserve_fd,
            resume_at_ns,
            policy,
            limits,
            connections,
            connections_of_user,
        })
    }

    /// Accepts who is waiting, as many as one turn allows.
    pub fn accept_all(&mut self, now_ns: u64) -> Vec<AcceptedConnection> {
        let mut accepted = self.accept_forwarded();
        for index in 0..self.listeners.len() {
            self.accept_from(index, now_ns, &mut accepted);
        }
        accepted
    }

    /// Accepts forwarded connections under the same limits.
    fn accept_forwarded(&mut self) -> Vec<AcceptedConnection> {
        let Some((receiver, _)) = &self.forwarded else { return Vec::new() };
        match receiver.drain() {
            Some(connections) => connections
                .into_iter()
                .filter_map(|connection| {
                    self.admit(connection.stream, connection.credentials, connection.pid)
                })
                .collect(),
            None => {
                self.forwarded = None;
                Vec::new()
            }
        }
    }

    fn accept_from(&mut self, index: usize, now_ns: u64, accepted: &mut Vec<AcceptedConnection>) {
        for _ in 0..MAX_ACCEPTS_PER_WAKEUP {
            match self.listeners[index].accept() {
                Ok((stream, _)) => accepted.extend(self.identify(stream)),
                Err(cause) if is_out_of_descriptors(&cause) => return self.shed_newest(index, now_ns),
                // A client that gave up while it waited is no reason to stop.
                Err(cause) if cause.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => return,
            }
        }
    }

    /// Other limits, and another rule, for whoever comes from now on.
    pub fn apply_policy(&mut self, policy: AccessPolicy, limits: Limits) {
        (self.policy, self.limits) = (policy, limits);
    }

    fn identify(&mut self, stream: UnixStream) -> Option<AcceptedConnection> {
        let credentials = unix_socket::peer_credentials(stream.as_fd()).ok()?;
        let pid = unix_socket::peer_pid(stream.as_fd());
        self.admit(stream, credentials, pid)
    }

    fn admit(
        &mut self,
        stream: UnixStream,
        credentials: PeerCredentials,
        pid: Option<u32>,
    ) -> Option<AcceptedConnection> {
        stream.set_nonblocking(true).ok()?;
        let peer = self.policy.peer_of(&credentials);
        let count = self.connections_of_user.get(&peer.uid).copied().unwrap_or(0);
        let limit = self.limits.connections_per_user;
        if !peer.unlimited && count >= limit {
            reject(&stream, "connections of one user", limit);
            return None;
        }
        if self.connections >= self.limits.connections {
            reject(&stream, "connections", self.limits.connections);
            return None;
        }
        self.connections += 1;
        self.connections_of_user.insert(peer.uid, count + 1);
        Some(AcceptedConnection { stream, peer, credentials, pid })
    }

    /// A connection that was admitted is gone.
    pub fn release(&mut self, peer: &Peer) {
        self.connections -= 1;
        if let Some(count) = self.connections_of_user.get_mut(&peer.uid) {
            *count -= 1;
            if *count == 0 {
                self.connections_of_user.remove(&peer.uid);
            }
        }
    }

    /// No descriptor is left: takes the reserve to turn the newest away, so that the queue does not wake us for ever.
    fn shed_newest(&mut self, index: usize, now_ns: u64) {
        if self.reserve_fd.take().is_some()
            && let Ok((stream, _)) = self.listeners[index].accept()
        {
            let _ = stream.set_nonblocking(true);
            reject(&stream, "descriptors of the daemon", self.connections);
        }
        self.reserve_fd = open_reserve_fd();
        if self.reserve_fd.is_none() {
            self.resume_at_ns = Some(now_ns + ACCEPT_PAUSE_NS);
            // Where even this fails the poller wakes us at once and the turn comes here again: slow, not wrong.
            let _ = self.set_interest(Event::none(self.listener_key));
        }
    }

    /// When accepting goes on, if it pauses.
    pub fn resume_at_ns(&self) -> Option<u64> {
        self.resume_at_ns
    }

    /// Goes on accepting where the pause is over.
    pub fn resume(&mut self, now_ns: u64) -> io::Result<()> {
        if self.resume_at_ns.is_some_and(|at_ns| at_ns <= now_ns) {
            self.resume_at_ns = None;
            self.reserve_fd = open_reserve_fd();
            self.set_interest(Event::readable(self.listener_key))?;
        }
        Ok(())
    }

    fn set_interest(&mut self, interest: Event) -> io::Result<()> {
        self.listeners.iter_mut().try_for_each(|listener| listener.set_interest(interest))
    }
}

fn open_reserve_fd() -> Option<File> {
    File::open("/dev/null").ok()
}

fn is_out_of_descriptors(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Tells a client that is one too many; a fresh socket takes so little at once, or the client has gone.
fn reject(mut stream: &UnixStream, quota: &str, limit: usize) {
    let mut message = Vec::new();
    MethodError::QuotaExceeded { quota: quota.to_owned(), limit: limit as u64 }.encode(&mut message);
    let _ = stream.write(&message);
}
