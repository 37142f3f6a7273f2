//! The event loop of the Unix socket: one thread that gives its clients time slices and polls the service.
//!
//! Owns the connections, the limits on how many there are, and when to look up. Every turn does a bounded amount for
//! each client (one buffer of input), so that none can keep the others waiting. Sleeps until somebody says something
//! or the service has something due: idle costs nothing.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use polling::{Event, Events, Poller};

use super::acceptor::{AcceptedConnection, Acceptor};
use super::connection::ClientConnection;
use super::connection_table::ConnectionTable;
use super::dispatch::SubscriptionKind;
use super::fair_scheduler::FairScheduler;
use super::peer_identity::PeerIdentity;
use super::readiness_ffi::RegisteredSocket;
use super::server_sockets::ServerSockets;
use super::subscriptions::Subscriptions;
use crate::protocol::{Access, MethodError};
use crate::service::Service;
use crate::service::durability::FinalAccount;
use crate::unix_socket;

const LISTENER_KEY: usize = 0;
const STOP_KEY: usize = 1;
const FORWARDED_KEY: usize = 2;
const RELOAD_KEY: usize = 3;
const FIRST_CONNECTION_KEY: usize = 4;

/// What one client's turn may read.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// How long waiting closes may still settle when the service ends.
const SETTLE_TIMEOUT_NS: u64 = 200_000_000;

/// How long the end then waits for clients that take what they are owed, and for one that takes nothing.
const MAX_SHUTDOWN_NS: u64 = 4_000_000_000;
const SHUTDOWN_STALL_NS: u64 = 1_000_000_000;

/// How often it looks whether all have it.
const SHUTDOWN_POLL_NS: u64 = 20_000_000;

/// Serves until told to stop. Fails only where the system gives no poller.
pub fn serve(service: Service, sockets: ServerSockets) -> io::Result<()> {
    let mut server = SocketServer::new(service, sockets)?;
    let mut events = Events::new();
    server.service.notify_ready();
    while !server.is_done() {
        server.run_once(&mut events, u64::MAX)?;
    }
    server.shut_down(&mut events)
}

/// Turns of clients between two looks at the sockets; at least one is taken.
const SERVE_BUDGET_NS: u64 = 100_000;

/// How often clients that make no progress are looked for.
const SWEEP_INTERVAL_NS: u64 = 500_000_000;

pub(crate) struct SocketServer {
    pub(crate) service: Service,
    pub(crate) poller: Arc<Poller>,
    pub(crate) acceptor: Option<Acceptor>,
    pub(crate) stop: Option<RegisteredSocket<UnixStream>>,
    pub(crate) reload: Option<RegisteredSocket<UnixStream>>,
    pub(crate) stopping: bool,
    pub(crate) connections: ConnectionTable,
    pub(crate) subscriptions: Subscriptions,
    /// Places of those whose turn ended before their messages did.
    pub(crate) yielded: Vec<usize>,
    scheduler: FairScheduler,
    slice_number: u64,
    pub(crate) read_buffer: Vec<u8>,
    pub(crate) final_accounts: Vec<FinalAccount>,
    pub(crate) next_poll_ns: u64,
    pub(crate) next_sweep_ns: u64,
}

/// A client that has something to say.
struct ReadyClient {
    order: (u64, u64),
    index: usize,
    uid: u32,
    /// None where its last turn ended before its messages did.
    event: Option<Event>,
}

impl SocketServer {
    fn new(service: Service, sockets: ServerSockets) -> io::Result<Self> {
        let poller = Arc::new(Poller::new()?);
        let (policy, limits) = (*service.policy(), service.limits().clone());
        let waker = Arc::clone(&poller);
        service.set_waker(move || drop(waker.notify()));
        let forwarded = sockets.forwarded.map(|receiver| (FORWARDED_KEY, receiver));
        let listeners = Some(sockets.listeners).filter(|listeners| !listeners.is_empty());
        let acceptor =
            listeners.map(|sockets| Acceptor::new(&poller, LISTENER_KEY, sockets, forwarded, policy, limits));
        let stop = sockets.stop.map(|stop| RegisteredSocket::new(&poller, stop, Event::readable(STOP_KEY)));
        let reload =
            sockets.reload.map(|reload| RegisteredSocket::new(&poller, reload, Event::readable(RELOAD_KEY)));
        let mut server = Self {
            acceptor: acceptor.transpose()?,
            stop: stop.transpose()?,
            reload: reload.transpose()?,
            stopping: false,
            poller,
            connections: ConnectionTable::default(),
            subscriptions: Subscriptions::default(),
            yielded: Vec::new(),
            scheduler: FairScheduler::default(),
            slice_number: 0,
            read_buffer: vec![0; READ_BUFFER_BYTES],
            final_accounts: Vec::new(),
            next_poll_ns: 0,
            next_sweep_ns: 0,
            service,
        };
        for stream in sockets.connections {
            stream.set_nonblocking(true)?;
            let (credentials, pid) =
                (unix_socket::peer_credentials(stream.as_fd())?, unix_socket::peer_pid(stream.as_fd()));
            server.add_connection(AcceptedConnection {
                stream,
                peer: policy.daemon_peer(),
                credentials,
                pid,
            })?;
        }
        Ok(server)
    }

    fn is_done(&self) -> bool {
        self.stopping || (self.connections.len() == 0 && self.acceptor.is_none() && self.stop.is_none())
    }

    /// Sleeps until something happens or is due, at most until `latest_ns`, and does it.
    fn run_once(&mut self, events: &mut Events, latest_ns: u64) -> io::Result<()> {
        let now_ns = self.service.now_ns();
        self.next_poll_ns = self.next_poll_ns.min(self.service.next_poll_ns(now_ns));
        let wakeup_ns = if self.yielded.is_empty() { self.next_wakeup_ns() } else { now_ns };
        let sleep = Duration::from_nanos(wakeup_ns.min(latest_ns).saturating_sub(now_ns));
        events.clear();
        self.poller.wait(events, Some(sleep))?;
        let yielded = std::mem::take(&mut self.yielded);
        let mut ready: Vec<ReadyClient> =
            yielded.into_iter().filter_map(|index| self.ready_client(index, None)).collect();
        for event in events.iter() {
            match event.key {
                LISTENER_KEY | FORWARDED_KEY => self.accept_connections(),
                STOP_KEY => self.stopping = true,
                RELOAD_KEY => self.reload(),
                key => ready.extend(self.ready_client(key - FIRST_CONNECTION_KEY, Some(event))),
            }
        }
        self.serve_ready(ready);
        if self.service.take_new_settings() {
            self.apply_policy();
        }
        let now_ns = self.service.now_ns();
        self.service.notify_watchdog(now_ns);
        if now_ns >= self.next_poll_ns || self.service.has_store_events() {
            self.poll_service();
        }
        self.publish_domains(now_ns);
        if now_ns >= self.next_sweep_ns {
            self.close_stalled(now_ns);
        }
        self.acceptor.as_mut().map_or(Ok(()), |acceptor| acceptor.resume(now_ns))
    }

    fn ready_client(&mut self, index: usize, event: Option<Event>) -> Option<ReadyClient> {
        let connection = self.connections.get_mut(index)?;
        let uid = connection.peer().uid;
        Some(ReadyClient {
            order: (self.scheduler.start_tag(uid), connection.slice_number()),
            index,
            uid,
            event,
        })
    }

    /// Turns of those who have something to say, the users first that have used least. Who has to wait is ready again at
    /// the next look, since readiness is level-triggered.
    fn serve_ready(&mut self, mut ready: Vec<ReadyClient>) {
        ready.sort_by_key(|ready| ready.order);
        let mut now_ns = self.service.now_ns();
        // What was said before the end is heard whole.
        let end_ns = if self.stopping { u64::MAX } else { now_ns + SERVE_BUDGET_NS };
        for (number, ReadyClient { index, uid, event, .. }) in ready.into_iter().enumerate() {
            if number > 0 && now_ns >= end_ns {
                if event.is_none() {
                    self.yielded.push(index);
                }
                continue;
            }
            let Some(connection) = self.connections.get_mut(index) else { continue };
            self.slice_number += 1;
            connection.begin_slice(self.slice_number, self.scheduler.slice_ns(now_ns));
            let was_subscribed = connection.subscription().is_some();
            let flow = match event {
                Some(event) => connection.handle_event(&event, &mut self.read_buffer, &mut self.service),
                None => connection.resume(&mut self.service),
            };
            self.after_slice(index, was_subscribed, flow);
            let ended_ns = self.service.now_ns();
            self.scheduler.charge(uid, ended_ns - now_ns, ended_ns);
            now_ns = ended_ns;
        }
    }

    fn next_wakeup_ns(&self) -> u64 {
        let resume = self.acceptor.as_ref().and_then(Acceptor::resume_at_ns);
        [self.subscriptions.next_due_ns(), resume, self.service.watchdog_due_ns()]
            .into_iter()
            .flatten()
            .fold(self.next_poll_ns, u64::min)
    }

    fn accept_connections(&mut self) {
        let now_ns = self.service.now_ns();
        let accepted = self.acceptor.as_mut().map_or_else(Vec::new, |acceptor| acceptor.accept_all(now_ns));
        for accepted in accepted {
            let peer = accepted.peer;
            let added = self.add_connection(accepted);
            if let (Err(_), Some(acceptor)) = (added, &mut self.acceptor) {
                // The poller could not take it: the socket is closed, and its place is given back.
                acceptor.release(&peer);
            }
        }
    }

    /// A signal asked for it; however many did, once is enough. What became of it is in the log.
    fn reload(&mut self) {
        let Some(reload) = &self.reload else { return };
        match (&**reload).read(&mut self.read_buffer) {
            Ok(0) => self.reload = None,
            _ => drop(self.service.reload()),
        }
    }

    /// Other limits and another rule hold, for those who are here already too; who watches and may no longer is let go.
    fn apply_policy(&mut self) {
        let (policy, limits) = (*self.service.policy(), self.service.limits().clone());
        self.acceptor.iter_mut().for_each(|acceptor| acceptor.apply_policy(policy, limits.clone()));
        for index in self.connections.apply_policy(&policy) {
            self.finish_slice(index, ControlFlow::Break(()));
        }
    }

    /// Gives a client its place.
    fn add_connection(&mut self, accepted: AcceptedConnection) -> io::Result<()> {
        let poller = &self.poller;
        let AcceptedConnection { stream, peer, credentials, pid } = accepted;
        // Now, so that a later process of the same number is not taken for it.
        let origin = self.service.identify_process(pid.filter(|_| peer.access >= Access::Coarse));
        self.connections.insert(|index, id| {
            let key = index + FIRST_CONNECTION_KEY;
            let socket = RegisteredSocket::new(poller, stream, Event::readable(key))?;
            Ok(ClientConnection::new(socket, key, id, PeerIdentity { peer, credentials, origin }))
        })
    }

    /// What a client's turn means for the next ones.
    pub(crate) fn after_slice(&mut self, index: usize, was_subscribed: bool, mut flow: ControlFlow<()>) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        if connection.has_yielded() && !self.yielded.contains(&index) {
            self.yielded.push(index);
        }
        if let (false, Some(kind)) = (was_subscribed, connection.subscription()) {
            flow = self.begin_subscription(index, kind);
        }
        self.finish_slice(index, flow);
    }

    fn begin_subscription(&mut self, index: usize, kind: SubscriptionKind) -> ControlFlow<()> {
        let Some(connection) = self.connections.get_mut(index) else { return ControlFlow::Continue(()) };
        let (id, peer, max_streams) =
            (connection.id(), *connection.peer(), self.service.limits().streams_per_user);
        if !peer.unlimited && self.subscriptions.count_of_user(peer.uid) >= max_streams {
            connection.reject(&MethodError::QuotaExceeded {
                quota: "streams of one user".into(),
                limit: max_streams as u64,
            });
            return connection.progress(&mut self.service);
        }
        self.subscriptions.add(index, id, peer, kind, self.service.now_ns());
        self.update_subscriber_counts();
        ControlFlow::Continue(())
    }

    fn update_subscriber_counts(&mut self) {
        self.service.set_domain_watchers(self.subscriptions.domain_subscriber_count());
        self.service.set_span_watchers(!self.subscriptions.span_subscribers().is_empty());
    }

    /// Lets a connection go that is over, or that no longer watches what it watched.
    pub(crate) fn finish_slice(&mut self, index: usize, flow: ControlFlow<()>) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let (id, peer) = (connection.id(), *connection.peer());
        let watches = connection.subscription().is_some() && flow.is_continue();
        if !watches && self.subscriptions.remove(id) {
            self.update_subscriber_counts();
        }
        if flow.is_break() {
            self.connections.remove(index);
            self.service.close_connection(id);
            if let Some(acceptor) = &mut self.acceptor {
                acceptor.release(&peer);
            }
        }
    }

    /// Gives up clients that make no progress, and memory that they no longer need.
    fn close_stalled(&mut self, now_ns: u64) {
        self.next_sweep_ns = now_ns + SWEEP_INTERVAL_NS;
        for index in
            self.connections.shrink_and_find_stalled(now_ns, (self.service.limits().stall_s * 1e9) as u64)
        {
            self.finish_slice(index, ControlFlow::Break(()));
        }
    }

    /// Nobody new comes in. What was said is heard; who waits for a final account gets it if it comes soon, else the account
    /// so far; and who reads gets all of its answers.
    fn shut_down(&mut self, events: &mut Events) -> io::Result<()> {
        self.service.notify_stopping();
        (self.acceptor, self.stop, self.reload) = (None, None, None);
        let started_ns = self.service.now_ns();
        self.run_once(events, started_ns)?;
        loop {
            let now_ns = self.service.now_ns();
            if now_ns >= started_ns + SETTLE_TIMEOUT_NS {
                self.expire_waiting();
            }
            let is_pending = self.service.waiting_replies() > 0
                || self.connections.has_pending_io(now_ns, SHUTDOWN_STALL_NS);
            if !is_pending || now_ns >= started_ns + MAX_SHUTDOWN_NS {
                break;
            }
            self.run_once(events, now_ns + SHUTDOWN_POLL_NS)?;
        }
        self.service.shut_down();
        Ok(())
    }
}
