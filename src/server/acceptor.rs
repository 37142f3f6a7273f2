//! Accepts connections within the limits.
//!
//! Owns the listeners, the number of connections of each user, and one descriptor in reserve. A connection
//! over a limit gets an error and is closed, so that it does not stay in the accept queue. Invariant: the
//! counts include each connection from its admission until [`Acceptor::release`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use polling::{Event, Poller};
use wattspan_client::protocol::MethodError;
use wattspan_system::unix_socket::{self, PeerCredentials};

use super::readiness_ffi::RegisteredSocket;
use crate::config::Limits;
use crate::service::access::{AccessPolicy, Peer};

/// Connections accepted per wakeup. It bounds how long a flood of connections delays other clients.
const MAX_ACCEPTS_PER_WAKEUP: usize = 32;

/// Pause of accepting after it failed for want of descriptors, the reserve included, or of memory.
const ACCEPT_PAUSE_NS: u64 = 100_000_000;

/// How long the reserve descriptor may be missing while clients wait. Other threads return most of theirs within this time.
const RESERVE_TIMEOUT_NS: u64 = 1_000_000_000;

#[derive(Debug)]
pub struct AcceptedConnection {
    pub stream: UnixStream,
    pub peer: Peer,
    /// The credentials that the transport states. A changed policy is applied to the same credentials.
    pub credentials: PeerCredentials,
    /// Absent where the transport does not state the process id.
    pub pid: Option<u32>,
}

pub struct Acceptor {
    listeners: Vec<RegisteredSocket<UnixListener>>,
    listener_key: usize,
    reserve_fd: Option<File>,
    /// The time since which it is missing, or of the last connection that was closed for it.
    reserve_missing_ns: Option<u64>,
    resume_at_ns: Option<u64>,
    policy: AccessPolicy,
    limits: Limits,
    connections: usize,
    connections_of_user: HashMap<u32, usize>,
}

impl Acceptor {
    /// Registers the listeners, all under `key`.
    pub fn new(
        poller: &Arc<Poller>,
        key: usize,
        listeners: Vec<UnixListener>,
        policy: AccessPolicy,
        limits: Limits,
    ) -> io::Result<Self> {
        let watch = |listener: UnixListener| {
            listener.set_nonblocking(true)?;
            RegisteredSocket::new(poller, listener, Event::readable(key))
        };
        let listeners = listeners.into_iter().map(watch).collect::<io::Result<_>>()?;
        let (connections, connections_of_user) = (0, HashMap::new());
        // Without it a daemon out of descriptors could neither accept connections nor refuse them.
        let (reserve_fd, resume_at_ns) = (Some(open_reserve_fd()?), None);
        Ok(Self {
            listeners,
            listener_key: key,
            reserve_fd,
            reserve_missing_ns: None,
            resume_at_ns,
            policy,
            limits,
            connections,
            connections_of_user,
        })
    }

    /// Accepts pending connections, at most `MAX_ACCEPTS_PER_WAKEUP` for each listener.
    pub fn accept_all(&mut self, now_ns: u64) -> Vec<AcceptedConnection> {
        let mut accepted = Vec::new();
        for index in 0..self.listeners.len() {
            self.accept_from(index, now_ns, &mut accepted);
        }
        accepted
    }

    fn accept_from(&mut self, index: usize, now_ns: u64, accepted: &mut Vec<AcceptedConnection>) {
        for _ in 0..MAX_ACCEPTS_PER_WAKEUP {
            match self.listeners[index].accept() {
                Ok((stream, _)) => accepted.extend(self.identify(stream)),
                Err(cause) if is_out_of_descriptors(&cause) => return self.shed_newest(index, now_ns),
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return,
                // The client closed its connection before it was accepted. Accepting continues.
                Err(cause) if cause.kind() == io::ErrorKind::ConnectionAborted => {}
                // No memory, for example. The connection stays pending and would wake the poller again and again.
                Err(_) => return self.pause(now_ns),
            }
        }
    }

    /// Sets the limits and the policy for later connections.
    pub fn apply_policy(&mut self, policy: AccessPolicy, limits: Limits) {
        (self.policy, self.limits) = (policy, limits);
    }

    fn identify(&mut self, stream: UnixStream) -> Option<AcceptedConnection> {
        let credentials = unix_socket::peer_credentials(stream.as_fd()).ok()?;
        let pid = unix_socket::peer_pid(stream.as_fd());
        stream.set_nonblocking(true).ok()?;
        match self.admit(&credentials) {
            Ok(peer) => Some(AcceptedConnection { stream, peer, credentials, pid }),
            Err(error) => {
                reject(&stream, &error);
                None
            }
        }
    }

    /// Counts a connection, also of a client of another server (D-Bus), until [`Acceptor::release`].
    ///
    /// # Errors
    /// `QuotaExceeded`: a limit is reached.
    pub fn admit(&mut self, credentials: &PeerCredentials) -> Result<Peer, MethodError> {
        let peer = self.policy.peer_of(credentials);
        let count = self.connections_of_user.get(&peer.uid).copied().unwrap_or(0);
        let limit = self.limits.connections_per_user;
        if !peer.unlimited && count >= limit {
            return Err(over_limit("connections of one user", limit));
        }
        if self.connections >= self.limits.connections {
            return Err(over_limit("connections", self.limits.connections));
        }
        self.count(&peer);
        Ok(peer)
    }

    /// Counts a connection that has no limit, until [`Acceptor::release`].
    pub fn count(&mut self, peer: &Peer) {
        self.connections += 1;
        *self.connections_of_user.entry(peer.uid).or_default() += 1;
    }

    /// Removes a closed connection from the counts.
    pub fn release(&mut self, peer: &Peer) {
        self.connections -= 1;
        if let Some(count) = self.connections_of_user.get_mut(&peer.uid) {
            *count -= 1;
            if *count == 0 {
                self.connections_of_user.remove(&peer.uid);
            }
        }
    }

    /// Rejects the newest connection with the reserve descriptor when no other is left. Otherwise the pending
    /// connection would wake the poller again and again.
    fn shed_newest(&mut self, index: usize, now_ns: u64) {
        let accepted = self.reserve_fd.take().and_then(|reserve_fd| {
            drop(reserve_fd);
            self.listeners[index].accept().ok()
        });
        if let Some((stream, _)) = &accepted {
            let _ = stream.set_nonblocking(true);
            reject(stream, &self.out_of_descriptors());
        }
        let is_shed = accepted.is_some();
        drop(accepted);
        // Another thread may have taken the descriptor.
        if self.open_reserve(now_ns).is_err() || !is_shed {
            self.pause(now_ns);
        }
    }

    /// Opens the reserve descriptor if it is missing.
    fn open_reserve(&mut self, now_ns: u64) -> io::Result<()> {
        if self.reserve_fd.is_none() {
            self.reserve_missing_ns.get_or_insert(now_ns);
            self.reserve_fd = Some(open_reserve_fd()?);
        }
        self.reserve_missing_ns = None;
        Ok(())
    }

    /// Opens the reserve descriptor at the end of a pause if it is missing. Returns the refusal with which the newest
    /// connection is to be closed where this process has had no descriptor for it for `RESERVE_TIMEOUT_NS`: while connections
    /// hold all descriptors, new clients would wait without a refusal.
    pub fn regain_reserve(&mut self, now_ns: u64) -> Result<(), MethodError> {
        if self.resume_at_ns.is_none_or(|at_ns| at_ns > now_ns) {
            return Ok(());
        }
        let Err(cause) = self.open_reserve(now_ns) else { return Ok(()) };
        let is_over = self.reserve_missing_ns.is_some_and(|since_ns| now_ns - since_ns >= RESERVE_TIMEOUT_NS);
        if !is_over || cause.raw_os_error() != Some(libc::EMFILE) {
            return Ok(());
        }
        self.reserve_missing_ns = Some(now_ns);
        Err(self.out_of_descriptors())
    }

    fn out_of_descriptors(&self) -> MethodError {
        over_limit("descriptors of the daemon", self.connections)
    }

    fn pause(&mut self, now_ns: u64) {
        self.resume_at_ns = Some(now_ns + ACCEPT_PAUSE_NS);
        // If this fails, the poller returns at once and this code runs again: slow, but correct.
        let _ = self.set_interest(Event::none(self.listener_key));
    }

    /// The end of the pause, if accepting is paused.
    pub fn resume_at_ns(&self) -> Option<u64> {
        self.resume_at_ns
    }

    /// Resumes accepting after the pause.
    pub fn resume(&mut self, now_ns: u64) -> io::Result<()> {
        if self.resume_at_ns.is_some_and(|at_ns| at_ns <= now_ns) {
            self.resume_at_ns = None;
            // Without it, connections are accepted as long as there are descriptors.
            let _ = self.open_reserve(now_ns);
            self.set_interest(Event::readable(self.listener_key))?;
        }
        Ok(())
    }

    fn set_interest(&mut self, interest: Event) -> io::Result<()> {
        self.listeners.iter_mut().try_for_each(|listener| listener.set_interest(interest))
    }
}

fn open_reserve_fd() -> io::Result<File> {
    File::open("/dev/null")
}

fn is_out_of_descriptors(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

fn over_limit(quota: &str, limit: usize) -> MethodError {
    MethodError::QuotaExceeded { quota: quota.to_owned(), limit: limit as u64 }
}

/// Sends the error to a connection over a limit. The send buffer of a new socket has room for it; a failed
/// write means that the client has disconnected.
fn reject(mut stream: &UnixStream, error: &MethodError) {
    let mut message = Vec::new();
    error.encode(&mut message);
    let _ = stream.write(&message);
}
