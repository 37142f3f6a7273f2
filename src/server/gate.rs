//! Who comes in: accepting connections within their limits.
//!
//! Owns the listener, the count of connections for each user, and one descriptor in reserve. Whoever is one too many
//! is told so and let go; nobody is left in the queue to be accepted again and again. Invariant: the counts are those
//! of the connections handed out and not yet given back by [`Gate::left`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use polling::{Event, Poller};

use super::arrival::Arrivals;
use super::readiness_ffi::Watched;
use crate::config::Limits;
use crate::protocol::Refusal;
use crate::service::access::{AccessPolicy, Peer};
use crate::unix_socket::{self as peer, Credentials};

/// Most connections accepted in one turn; a flood waits its turn like everybody.
const MOST_A_TURN: usize = 32;

/// How long nobody is accepted after the system had no descriptor even for the reserve.
const PAUSE_NS: u64 = 100_000_000;

/// Somebody who may come in.
#[derive(Debug)]
pub struct Admitted {
    /// The connection.
    pub stream: UnixStream,
    /// What it may do.
    pub peer: Peer,
    /// By what it was judged, as its transport states it; another rule judges by the same.
    pub credentials: Credentials,
    /// Its process, where the transport tells.
    pub pid: Option<u32>,
}

/// The gate.
pub struct Gate {
    listeners: Vec<Watched<UnixListener>>,
    /// Those whom another door brings, and the bell that says so.
    beside: Option<(Arrivals, Watched<UnixStream>)>,
    key: usize,
    reserve: Option<File>,
    resume_at_ns: Option<u64>,
    policy: AccessPolicy,
    limits: Limits,
    present: usize,
    of_user: HashMap<u32, usize>,
}

impl Gate {
    /// Watches the listeners, all under `key`, and under a key of its own the bell of those whom another door brings.
    pub fn new(
        poller: &Arc<Poller>,
        key: usize,
        listeners: Vec<UnixListener>,
        beside: Option<(usize, Arrivals)>,
        policy: AccessPolicy,
        limits: Limits,
    ) -> io::Result<Self> {
        let watch = |listener: UnixListener| {
            listener.set_nonblocking(true)?;
            Watched::new(poller, listener, Event::readable(key))
        };
        let listeners = listeners.into_iter().map(watch).collect::<io::Result<_>>()?;
        let (present, of_user) = (0, HashMap::new());
        let (reserve, resume_at_ns) = (spare(), None);
        let watch = |(key, arrivals): (usize, Arrivals)| {
            let bell = Watched::new(poller, arrivals.bell()?, Event::readable(key))?;
            io::Result::Ok((arrivals, bell))
        };
        let beside = beside.map(watch).transpose()?;
        Ok(Self { listeners, beside, key, reserve, resume_at_ns, policy, limits, present, of_user })
    }

    /// Accepts who is waiting, as many as one turn allows.
    pub fn admit(&mut self, now_ns: u64) -> Vec<Admitted> {
        let mut admitted = self.admit_beside();
        for at in 0..self.listeners.len() {
            self.admit_at(at, now_ns, &mut admitted);
        }
        admitted
    }

    /// Lets in whom another door has brought, by the same rule.
    fn admit_beside(&mut self) -> Vec<Admitted> {
        let Some((arrivals, _)) = &self.beside else { return Vec::new() };
        match arrivals.take() {
            Some(arrived) => arrived
                .into_iter()
                .filter_map(|arrival| self.welcome(arrival.stream, arrival.credentials, arrival.pid))
                .collect(),
            None => {
                self.beside = None;
                Vec::new()
            }
        }
    }

    fn admit_at(&mut self, at: usize, now_ns: u64, admitted: &mut Vec<Admitted>) {
        for _ in 0..MOST_A_TURN {
            match self.listeners[at].accept() {
                Ok((stream, _)) => admitted.extend(self.examine(stream)),
                Err(cause) if no_descriptor(&cause) => return self.shed(at, now_ns),
                // A client that gave up while it waited is no reason to stop.
                Err(cause) if cause.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => return,
            }
        }
    }

    /// Other limits, and another rule, for whoever comes from now on.
    pub fn renew(&mut self, policy: AccessPolicy, limits: Limits) {
        (self.policy, self.limits) = (policy, limits);
    }

    fn examine(&mut self, stream: UnixStream) -> Option<Admitted> {
        let credentials = peer::credentials(stream.as_fd()).ok()?;
        let pid = peer::process(stream.as_fd());
        self.welcome(stream, credentials, pid)
    }

    fn welcome(
        &mut self,
        stream: UnixStream,
        credentials: Credentials,
        pid: Option<u32>,
    ) -> Option<Admitted> {
        stream.set_nonblocking(true).ok()?;
        let peer = self.policy.peer_of(&credentials);
        let theirs = self.of_user.get(&peer.uid).copied().unwrap_or(0);
        let most = self.limits.connections_per_user;
        if !peer.unlimited && theirs >= most {
            refuse(&stream, "connections of one user", most);
            return None;
        }
        if self.present >= self.limits.connections {
            refuse(&stream, "connections", self.limits.connections);
            return None;
        }
        self.present += 1;
        self.of_user.insert(peer.uid, theirs + 1);
        Some(Admitted { stream, peer, credentials, pid })
    }

    /// A connection that was admitted is gone.
    pub fn left(&mut self, peer: &Peer) {
        self.present -= 1;
        if let Some(theirs) = self.of_user.get_mut(&peer.uid) {
            *theirs -= 1;
            if *theirs == 0 {
                self.of_user.remove(&peer.uid);
            }
        }
    }

    /// No descriptor is left: takes the reserve to turn the newest away, so that the queue does not wake us for ever.
    fn shed(&mut self, at: usize, now_ns: u64) {
        if self.reserve.take().is_some()
            && let Ok((stream, _)) = self.listeners[at].accept()
        {
            let _ = stream.set_nonblocking(true);
            refuse(&stream, "descriptors of the daemon", self.present);
        }
        self.reserve = spare();
        if self.reserve.is_none() {
            self.resume_at_ns = Some(now_ns + PAUSE_NS);
            // Where even this fails the poller wakes us at once and the turn comes here again: slow, not wrong.
            let _ = self.watch(Event::none(self.key));
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
            self.reserve = spare();
            self.watch(Event::readable(self.key))?;
        }
        Ok(())
    }

    fn watch(&mut self, interest: Event) -> io::Result<()> {
        self.listeners.iter_mut().try_for_each(|listener| listener.watch(interest))
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

fn no_descriptor(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Tells a client that is one too many; a fresh socket takes so little at once, or the client has gone.
fn refuse(mut stream: &UnixStream, quota: &str, limit: usize) {
    let mut message = Vec::new();
    Refusal::QuotaExceeded { quota: quota.to_owned(), limit: limit as u64 }.write(&mut message);
    let _ = stream.write(&message);
}
