//! The event loop of the Unix socket: one thread that serves its clients in time slices, polls the service
//! and delivers deferred replies and stream items.
//!
//! Owns the connections and the next wakeup time. Each slice reads at most one buffer of a client's input, so
//! that no client can block the others. A client that does not read its replies is closed by the limits of
//! its connection. The loop sleeps until a socket is ready or the service has work due.
//!
//! Calls that another server (D-Bus) forwards are performed on its thread while this loop sleeps: the server is behind a
//! lock, which the loop holds except for its sleep. The other thread never waits for it. Where it cannot have the lock, or
//! where users compete, it wakes the loop, which performs the calls.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use polling::{Event, Poller};
use serde::Serialize;
use wattspan_client::account::Account;
use wattspan_client::protocol::{Access, DomainSnapshot, MethodError, MethodReply};
use wattspan_system::unix_socket;

use super::ReadinessWaiter;
use super::acceptor::{AcceptedConnection, Acceptor};
use super::connection::{ClientConnection, PeerIdentity, StallTimeouts};
use super::connection_table::ConnectionTable;
use super::dispatch::encode_result;
use super::fair_scheduler::FairScheduler;
use super::forwarded_calls::ForwardedReceiver;
use super::forwarded_clients::{ForwardedClients, ServerParts};
use super::readiness::Readiness;
use super::readiness_ffi::RegisteredSocket;
use super::subscriptions::{SubscriptionKind, Subscriptions};
use crate::service::caller::{Caller, ReplyTo};
use crate::service::coarse_grid;
use crate::service::durability::{AccountPage, FinalAccount};
use crate::service::{MethodResult, Reply, Service};

const LISTENER_KEY: usize = 0;
const STOP_KEY: usize = 1;
const RELOAD_KEY: usize = 2;
const FIRST_CONNECTION_KEY: usize = 3;

/// Size of the read buffer, and so the input of one client in one slice.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// Time for client slices between two calls of the poller. At least one slice runs.
const SERVE_BUDGET_NS: u64 = 100_000;

/// Interval of the check for clients that make no progress.
const SWEEP_INTERVAL_NS: u64 = 500_000_000;

/// How long closes that wait for a settled account may take at shutdown.
const SETTLE_TIMEOUT_NS: u64 = 200_000_000;

/// Shutdown waits at most `MAX_SHUTDOWN_NS` for clients to read their replies, and `SHUTDOWN_STALL_NS` for a
/// client that makes no progress.
const MAX_SHUTDOWN_NS: u64 = 4_000_000_000;
const SHUTDOWN_STALL_NS: u64 = 1_000_000_000;

const SHUTDOWN_POLL_NS: u64 = 20_000_000;

/// The sockets of a server: where clients connect, and what stops or reloads it.
#[derive(Debug, Default)]
pub struct ServerSockets {
    /// Listening sockets; may be empty.
    pub listeners: Vec<UnixListener>,
    /// Calls that another server of this daemon (D-Bus) forwards.
    pub forwarded: Option<ForwardedReceiver>,
    /// Connected clients: ends of socket pairs that this process created and trusts as itself.
    pub connections: Vec<UnixStream>,
    /// Serving ends when this socket becomes readable or reaches its end. Without it, and without a listener,
    /// serving ends with the last client.
    pub stop: Option<UnixStream>,
    /// The configuration is reloaded when this socket becomes readable.
    pub reload: Option<UnixStream>,
}

/// Serves clients until the stop socket is readable. Returns an error if the poller fails.
pub fn serve(service: Service, sockets: ServerSockets) -> io::Result<()> {
    let mut event_loop = EventLoop::new(service, sockets)?;
    event_loop.server().service.notify_ready();
    while !event_loop.server().is_done() {
        event_loop.run_once(u64::MAX)?;
    }
    event_loop.shut_down()
}

/// The server's thread: sleeps, and handles events.
struct EventLoop {
    server: Arc<Mutex<SocketServer>>,
    waiter: ReadinessWaiter,
    events: Vec<Readiness>,
    /// Whether the loop has woken up and waits for the server.
    loop_waits: Arc<AtomicBool>,
}

impl EventLoop {
    fn new(service: Service, sockets: ServerSockets) -> io::Result<Self> {
        let server = SocketServer::new(service, sockets)?;
        let (poller, waiter) = (Arc::clone(&server.poller), ReadinessWaiter::new(&server.poller));
        let server = Arc::new(Mutex::new(server));
        let loop_waits = Arc::new(AtomicBool::new(false));
        if let Some(forwarded) = &lock(&server).forwarded {
            // Not an owner: the server owns the receiver, which owns this function.
            let (shared, loop_waits) = (Arc::downgrade(&server), Arc::clone(&loop_waits));
            forwarded.receiver().set_serve(move || {
                // The mutex is not fair: a caller that takes it again and again would keep the loop out. The loop serves the
                // queue as soon as it has it.
                if loop_waits.load(Ordering::SeqCst) {
                    return;
                }
                let Some(server) = shared.upgrade() else { return };
                let is_done = server.try_lock().is_ok_and(|mut server| server.serve_forwarded_now());
                if !is_done {
                    drop(poller.notify());
                }
            });
        }
        Ok(Self { server, waiter, events: Vec::new(), loop_waits })
    }

    fn server(&self) -> MutexGuard<'_, SocketServer> {
        lock(&self.server)
    }

    /// Waits for events, until the next due time and at most until `latest_ns`, and handles them.
    fn run_once(&mut self, latest_ns: u64) -> io::Result<()> {
        let sleep = self.server().begin_wait(latest_ns);
        self.waiter.wait(sleep, &mut self.events)?;
        self.loop_waits.store(true, Ordering::SeqCst);
        let mut server = lock(&self.server);
        self.loop_waits.store(false, Ordering::SeqCst);
        server.handle(&self.events)
    }

    /// Stops accepting, processes the input that was sent, and sends outstanding replies. A close that waits
    /// for a settled account gets it if it settles within `SETTLE_TIMEOUT_NS`, else the provisional account.
    fn shut_down(&mut self) -> io::Result<()> {
        let started_ns = self.server().begin_shutdown();
        self.run_once(started_ns)?;
        loop {
            let latest_ns = match self.server().continue_shutdown(started_ns) {
                Some(latest_ns) => latest_ns,
                None => break,
            };
            self.run_once(latest_ns)?;
        }
        let mut server = self.server();
        // No call comes after this.
        server.forwarded = None;
        server.service.shut_down();
        Ok(())
    }
}

/// A panic in the other thread has ended the daemon, or it was a test's.
fn lock(server: &Mutex<SocketServer>) -> MutexGuard<'_, SocketServer> {
    server.lock().unwrap_or_else(PoisonError::into_inner)
}

struct SocketServer {
    service: Service,
    poller: Arc<Poller>,
    acceptor: Option<Acceptor>,
    stop: Option<RegisteredSocket<UnixStream>>,
    reload: Option<RegisteredSocket<UnixStream>>,
    stopping: bool,
    connections: ConnectionTable,
    forwarded: Option<ForwardedClients>,
    subscriptions: Subscriptions,
    /// Indexes of the connections whose slice ended before all messages were processed.
    yielded: Vec<usize>,
    scheduler: FairScheduler,
    slice_number: u64,
    read_buffer: Vec<u8>,
    final_accounts: Vec<FinalAccount>,
    next_poll_ns: u64,
    next_sweep_ns: u64,
    /// The end of the current or last sleep.
    sleeps_until_ns: u64,
}

struct ReadyClient {
    order: (u64, u64),
    index: usize,
    uid: u32,
    /// `None` if the previous slice ended before all messages were processed.
    event: Option<Readiness>,
}

impl SocketServer {
    fn new(service: Service, sockets: ServerSockets) -> io::Result<Self> {
        let poller = Arc::new(Poller::new()?);
        let (policy, limits) = (*service.policy(), service.limits().clone());
        let waker = Arc::clone(&poller);
        service.set_waker(move || drop(waker.notify()));
        let listeners = Some(sockets.listeners).filter(|listeners| !listeners.is_empty());
        let acceptor = listeners.map(|sockets| Acceptor::new(&poller, LISTENER_KEY, sockets, policy, limits));
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
            forwarded: sockets.forwarded.map(ForwardedClients::new),
            subscriptions: Subscriptions::default(),
            yielded: Vec::new(),
            scheduler: FairScheduler::default(),
            slice_number: 0,
            read_buffer: vec![0; READ_BUFFER_BYTES],
            final_accounts: Vec::new(),
            next_poll_ns: 0,
            next_sweep_ns: 0,
            sleeps_until_ns: 0,
            service,
        };
        sockets.connections.into_iter().try_for_each(|stream| server.add_own_connection(stream))?;
        Ok(server)
    }

    /// Adds a connection of this process, which has the access of the daemon.
    fn add_own_connection(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let (credentials, pid) =
            (unix_socket::peer_credentials(stream.as_fd())?, unix_socket::peer_pid(stream.as_fd()));
        let peer = self.service.policy().daemon_peer();
        if let Some(acceptor) = &mut self.acceptor {
            acceptor.count(&peer);
        }
        self.add_connection(AcceptedConnection { stream, peer, credentials, pid })
    }

    fn is_done(&self) -> bool {
        self.stopping || (self.connections.len() == 0 && self.acceptor.is_none() && self.stop.is_none())
    }

    /// The time to sleep, until the next due time and at most until `latest_ns`.
    fn begin_wait(&mut self, latest_ns: u64) -> Duration {
        let now_ns = self.service.now_ns();
        self.next_poll_ns = self.next_poll_ns.min(self.service.next_poll_ns(now_ns));
        let has_waiting = self.forwarded.as_ref().is_some_and(ForwardedClients::has_waiting);
        let is_idle = self.yielded.is_empty() && !has_waiting;
        self.sleeps_until_ns = if is_idle { self.next_wakeup_ns().min(latest_ns) } else { now_ns };
        Duration::from_nanos(self.sleeps_until_ns.saturating_sub(now_ns))
    }

    /// Handles what happened during the sleep.
    fn handle(&mut self, events: &[Readiness]) -> io::Result<()> {
        let ready = self.handle_events(events);
        self.serve_ready(ready);
        self.serve_forwarded();
        if self.service.take_new_settings() {
            self.apply_policy();
        }
        self.run_due_work()
    }

    /// Performs forwarded calls for at most `SERVE_BUDGET_NS`.
    fn serve_forwarded(&mut self) {
        let Some(forwarded) = &mut self.forwarded else { return };
        // At shutdown, all calls that were sent before are performed.
        let end_ns = if self.stopping { u64::MAX } else { self.service.now_ns() + SERVE_BUDGET_NS };
        let (service, scheduler) = (&mut self.service, &mut self.scheduler);
        let mut parts = ServerParts { service, scheduler, acceptor: self.acceptor.as_mut() };
        forwarded.serve(&mut parts, end_ns);
    }

    /// Performs forwarded calls on the thread of the other server while the loop sleeps. Returns false if the loop must
    /// wake up: for calls that are left, or because something is due earlier than it knows.
    fn serve_forwarded_now(&mut self) -> bool {
        if self.scheduler.is_contended(self.service.now_ns()) {
            return false;
        }
        self.serve_forwarded();
        if self.service.take_new_settings() {
            self.apply_policy();
        }
        let now_ns = self.service.now_ns();
        self.next_poll_ns = self.next_poll_ns.min(self.service.next_poll_ns(now_ns));
        let has_waiting = self.forwarded.as_ref().is_some_and(ForwardedClients::has_waiting);
        !has_waiting && self.next_wakeup_ns() >= self.sleeps_until_ns
    }

    /// Handles the events of the server's own sockets. Returns the clients that are ready.
    fn handle_events(&mut self, events: &[Readiness]) -> Vec<ReadyClient> {
        let yielded = std::mem::take(&mut self.yielded);
        let mut ready: Vec<ReadyClient> =
            yielded.into_iter().filter_map(|index| self.ready_client(index, None)).collect();
        for event in events.iter() {
            match event.key {
                LISTENER_KEY => self.accept_connections(),
                STOP_KEY => self.stopping = true,
                RELOAD_KEY => self.reload(),
                key => ready.extend(self.ready_client(key - FIRST_CONNECTION_KEY, Some(*event))),
            }
        }
        ready
    }

    fn run_due_work(&mut self) -> io::Result<()> {
        let now_ns = self.service.now_ns();
        self.service.notify_watchdog(now_ns);
        if now_ns >= self.next_poll_ns || self.service.has_store_events() {
            self.poll_service();
        }
        self.publish_domains(now_ns);
        if now_ns >= self.next_sweep_ns {
            self.close_stalled(now_ns);
        }
        self.resume_accepting(now_ns)
    }

    /// Resumes accepting after a pause. Closes the newest connection where the reserve descriptor needs its descriptor.
    fn resume_accepting(&mut self, now_ns: u64) -> io::Result<()> {
        let regained = self.acceptor.as_mut().map_or(Ok(()), |acceptor| acceptor.regain_reserve(now_ns));
        if let (Err(refusal), Some(index)) = (regained, self.connections.newest_index()) {
            if let Some(connection) = self.connections.get_mut(index) {
                connection.reject(&refusal);
                // What its client does not read at once is lost.
                let _ = connection.progress(&mut self.service);
            }
            self.finish_slice(index, ControlFlow::Break(()));
        }
        self.acceptor.as_mut().map_or(Ok(()), |acceptor| acceptor.resume(now_ns))
    }

    fn ready_client(&mut self, index: usize, event: Option<Readiness>) -> Option<ReadyClient> {
        let connection = self.connections.get_mut(index)?;
        let uid = connection.peer().uid;
        Some(ReadyClient {
            order: (self.scheduler.start_tag(uid), connection.slice_number()),
            index,
            uid,
            event,
        })
    }

    /// Runs a slice for each ready client, the users with the lowest start tag first. A client that is not
    /// served is ready again at the next call of the poller, since readiness is level-triggered.
    fn serve_ready(&mut self, mut ready: Vec<ReadyClient>) {
        ready.sort_by_key(|ready| ready.order);
        let mut now_ns = self.service.now_ns();
        // At shutdown, all input that was sent before is processed.
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
                // Registration failed and the socket is closed, so its place is released.
                acceptor.release(&peer);
            }
        }
    }

    /// Reloads the configuration once, however many requests are queued. The result is in the log.
    fn reload(&mut self) {
        let Some(reload) = &self.reload else { return };
        match (&**reload).read(&mut self.read_buffer) {
            Ok(0) => self.reload = None,
            _ => drop(self.service.reload()),
        }
    }

    /// Applies new limits and a new policy to existing connections too. Where access changed, closes subscribers, and ends the
    /// queries that may see less now.
    fn apply_policy(&mut self) {
        let (policy, limits) = (*self.service.policy(), self.service.limits().clone());
        self.acceptor.iter_mut().for_each(|acceptor| acceptor.apply_policy(policy, limits.clone()));
        for (id, peer) in self.forwarded.iter_mut().flat_map(|forwarded| forwarded.apply_policy(&policy)) {
            self.service.apply_access(id, &peer);
        }
        for index in self.connections.apply_policy(&policy) {
            let Some(connection) = self.connections.get_mut(index) else { continue };
            self.service.apply_access(connection.id(), connection.peer());
            if connection.subscription().is_some() {
                self.finish_slice(index, ControlFlow::Break(()));
            }
        }
        // The next poll delivers the replies of the calls that were ended.
        self.next_poll_ns = self.service.now_ns();
    }

    fn add_connection(&mut self, accepted: AcceptedConnection) -> io::Result<()> {
        let poller = &self.poller;
        let AcceptedConnection { stream, peer, credentials, pid } = accepted;
        // The process is identified now, so that a later process with the same id is not mistaken for it.
        let origin = self.service.identify_process(pid.filter(|_| peer.access >= Access::Coarse));
        self.connections.insert(|index, id| {
            let key = index + FIRST_CONNECTION_KEY;
            let socket = RegisteredSocket::new(poller, stream, Event::readable(key))?;
            Ok(ClientConnection::new(socket, key, id, PeerIdentity { peer, credentials, origin }))
        })
    }

    /// Updates the queue and the subscriptions after a slice.
    fn after_slice(&mut self, index: usize, was_subscribed: bool, mut flow: ControlFlow<()>) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        if connection.has_yielded() && !self.yielded.contains(&index) {
            self.yielded.push(index);
        }
        if let (false, Some(kind)) = (was_subscribed, connection.subscription()) {
            flow = self.begin_subscription(index, kind);
        }
        self.finish_slice(index, flow);
        self.request_stored_accounts(index);
    }

    /// Requests the next accounts of a stream of stored ones once its client has read the last ones.
    fn request_stored_accounts(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let is_stored = matches!(connection.subscription(), Some(SubscriptionKind::StoredSpans(_)));
        let Some(last_number) = self.service.last_store_number().filter(|_| is_stored) else { return };
        if !connection.is_drained() {
            return;
        }
        let (id, now_ns) = (connection.id(), self.service.now_ns());
        let Some((peer, query)) = self.subscriptions.stored_query(id, last_number, now_ns) else { return };
        let caller = Caller { peer, reply_to: ReplyTo { connection: id, slot: 0 }, process: None };
        if self.service.request_account_page(&caller, query) {
            self.subscriptions.begin_query(id, last_number);
        }
    }

    /// Sends the pages of streams of stored accounts that the store has completed, and requests the next ones.
    fn deliver_account_pages(&mut self) {
        let (max_unread_bytes, now_ns) = (self.service.limits().unread_bytes, self.service.now_ns());
        for AccountPage { connection: id, result } in self.service.take_account_pages() {
            self.subscriptions.end_query(id, result.as_ref().ok().and_then(Option::as_ref), now_ns);
            let Some(index) = self.connections.index_of(id) else { continue };
            let Some(connection) = self.connections.get_mut(index) else { continue };
            match result {
                Ok(page) => {
                    let messages = page.map_or_else(Vec::new, |page| page.messages);
                    let flow = connection.push_stream_item(&messages, max_unread_bytes);
                    self.finish_slice(index, flow);
                }
                Err(error) => connection.reject(&error),
            }
            self.progress(index);
        }
        for index in self.subscriptions.stored_subscribers() {
            self.request_stored_accounts(index);
        }
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

    /// Closes a finished connection, and ends the subscription of one that no longer has any.
    fn finish_slice(&mut self, index: usize, flow: ControlFlow<()>) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let (id, peer) = (connection.id(), *connection.peer());
        let watches = connection.subscription().is_some() && flow.is_continue();
        if !watches && self.subscriptions.remove(id) {
            self.update_subscriber_counts();
        }
        if flow.is_break() {
            self.connections.remove(index);
            self.service.close_connection(id);
            self.service.cancel_sums(id);
            if let Some(acceptor) = &mut self.acceptor {
                acceptor.release(&peer);
            }
        }
    }

    /// Closes clients that make no progress, and releases unused memory.
    fn close_stalled(&mut self, now_ns: u64) {
        self.next_sweep_ns = now_ns + SWEEP_INTERVAL_NS;
        let limits = self.service.limits();
        let timeouts = StallTimeouts {
            message_ns: (limits.message_s * 1e9) as u64,
            unread_ns: (limits.stall_s * 1e9) as u64,
        };
        for index in self.connections.shrink_and_find_stalled(now_ns, timeouts) {
            self.finish_slice(index, ControlFlow::Break(()));
        }
    }

    /// Stops accepting. Returns the time.
    fn begin_shutdown(&mut self) -> u64 {
        self.service.notify_stopping();
        (self.acceptor, self.stop, self.reload) = (None, None, None);
        self.service.now_ns()
    }

    /// The latest time of the next step of a shutdown that started at this time; `None` if it is complete.
    fn continue_shutdown(&mut self, started_ns: u64) -> Option<u64> {
        let now_ns = self.service.now_ns();
        if now_ns >= started_ns + SETTLE_TIMEOUT_NS {
            self.expire_waiting();
        }
        let is_pending =
            self.service.waiting_replies() > 0 || self.connections.has_pending_io(now_ns, SHUTDOWN_STALL_NS);
        (is_pending && now_ns < started_ns + MAX_SHUTDOWN_NS).then_some(now_ns + SHUTDOWN_POLL_NS)
    }

    /// Polls the service and delivers the accounts that became final.
    fn poll_service(&mut self) {
        let mut final_accounts = std::mem::take(&mut self.final_accounts);
        self.service.poll(&mut final_accounts);
        for FinalAccount { account, reply_to } in final_accounts.drain(..) {
            self.publish_account(&account);
            if let Some(reply_to) = reply_to {
                self.deliver_account(reply_to, &account);
            }
        }
        self.deliver_replies();
        self.deliver_account_pages();
        for index in self.subscriptions.span_subscribers() {
            self.progress(index);
        }
        final_accounts.shrink_to(1024);
        self.final_accounts = final_accounts;
        self.next_poll_ns = self.service.next_poll_ns(self.service.now_ns());
    }

    /// Sends the provisional account to each call that still waits.
    fn expire_waiting(&mut self) {
        for (reply_to, account) in self.service.take_waiting_replies() {
            self.deliver_account(reply_to, &account);
        }
        self.deliver_replies();
    }

    fn deliver_replies(&mut self) {
        for (reply_to, result) in self.service.take_store_replies() {
            if ForwardedClients::is_forwarded(reply_to) {
                self.complete_forwarded(reply_to, result);
                continue;
            }
            let mut reply = Vec::new();
            encode_result(&result, &mut reply);
            self.complete_reply(reply_to, &reply, true);
        }
    }

    fn progress(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let was_subscribed = connection.subscription().is_some();
        let flow = connection.progress(&mut self.service);
        self.after_slice(index, was_subscribed, flow);
    }

    fn deliver_account(&mut self, reply_to: ReplyTo, account: &Account) {
        if ForwardedClients::is_forwarded(reply_to) {
            self.complete_forwarded(reply_to, Ok(Reply::account(account.clone())));
        } else {
            self.complete_reply(reply_to, &encode_account_reply(account), false);
        }
    }

    fn complete_forwarded(&mut self, reply_to: ReplyTo, result: MethodResult) {
        if let Some(forwarded) = &mut self.forwarded {
            forwarded.complete(reply_to, result);
        }
    }

    fn complete_reply(&mut self, reply_to: ReplyTo, reply: &[u8], is_query: bool) {
        let Some(index) = self.connections.index_of(reply_to.connection) else { return };
        let Some(connection) = self.connections.get_mut(index) else { return };
        connection.complete_reply(reply_to.slot, reply, is_query);
        self.progress(index);
    }

    fn publish_account(&mut self, account: &Account) {
        let indexes = self.subscriptions.account_subscribers(account.uid, coarse_grid::is_coarse(account));
        if !indexes.is_empty() {
            self.publish(&encode_account_stream_item(account), &indexes);
        }
    }

    fn publish_domains(&mut self, now_ns: u64) {
        let indexes = self.subscriptions.take_due(now_ns);
        if !indexes.is_empty() {
            let tick = encode_domain_stream_item(&self.service.domain_tick());
            self.publish(&tick, &indexes);
            indexes.into_iter().for_each(|index| self.progress(index));
        }
    }

    /// Adds a stream item to each subscriber's queue. The next call of `progress` sends it.
    fn publish(&mut self, reply: &[u8], indexes: &[usize]) {
        let max_unread_bytes = self.service.limits().unread_bytes;
        for &index in indexes {
            let Some(connection) = self.connections.get_mut(index) else { continue };
            let flow = connection.push_stream_item(reply, max_unread_bytes);
            self.finish_slice(index, flow);
        }
    }
}

#[derive(Serialize)]
struct AccountReply<'a> {
    account: &'a Account,
}

fn encode_account_reply(account: &Account) -> Vec<u8> {
    let mut reply = Vec::new();
    MethodReply::last(AccountReply { account }).encode(&mut reply);
    reply
}

fn encode_account_stream_item(account: &Account) -> Vec<u8> {
    let mut reply = Vec::new();
    MethodReply::continued(AccountReply { account }).encode(&mut reply);
    reply
}

fn encode_domain_stream_item(tick: &DomainSnapshot) -> Vec<u8> {
    let mut reply = Vec::new();
    MethodReply::continued(tick).encode(&mut reply);
    reply
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc::channel;

    use wattspan_client::protocol::{MethodName, ProcessPrivileges, SumSpans};
    use wattspan_system::unix_socket::PeerCredentials;

    use super::super::{ForwardedCall, forwarded_calls};
    use super::*;
    use crate::clock::Clock;
    use crate::config::{AccessGroups, Config, gid_by_name};
    use crate::service::test_parts::{no_readings, store_settings};
    use crate::service::{DaemonControl, Request, ServiceBuilder, StartupSettings};
    use crate::store::stepped::{self, SteppedStore};
    use crate::systemd::notify::ServiceManager;

    /// The groups are those that every Linux has.
    fn config(telemetry_group: &str) -> Config {
        let (span_group, telemetry_group) = ("daemon".to_owned(), telemetry_group.to_owned());
        let access = AccessGroups { coarse_group: None, span_group, telemetry_group };
        Config { access, ..Config::default() }
    }

    fn credentials(uid: u32, group: &str) -> PeerCredentials {
        PeerCredentials { uid, gid: uid, groups: vec![gid_by_name(group).unwrap()] }
    }

    /// A server whose configuration gives telemetry access to the group `bin` until a reload, and a store without threads.
    fn server(directory: &std::path::Path, sockets: ServerSockets) -> (SocketServer, SteppedStore) {
        let clock = Clock::manual(5_000_000_000);
        let (store, mut steps) = stepped::start(store_settings(&directory.join("state")), clock.clone());
        steps.run();
        let start = config("bin");
        let control = DaemonControl::new(
            start.clone(),
            Box::new(|| Ok(config("games"))),
            ServiceManager::default(),
            |_| (),
        );
        let settings = StartupSettings::from_config(&start).service;
        let builder = ServiceBuilder::with_collector(no_readings(), Vec::new(), settings, clock);
        let builder = builder.daemon(control, ProcessPrivileges::default()).store(store, |_| ());
        (SocketServer::new(builder.build().unwrap(), sockets).unwrap(), steps)
    }

    /// A connection of a peer with these credentials.
    fn connect(server: &mut SocketServer, credentials: PeerCredentials) -> UnixStream {
        let (client, stream) = UnixStream::pair().unwrap();
        [&client, &stream].into_iter().for_each(|end| end.set_nonblocking(true).unwrap());
        let peer = server.service.policy().peer_of(&credentials);
        server.add_connection(AcceptedConnection { stream, peer, credentials, pid: None }).unwrap();
        client
    }

    /// Performs calls without parameters over the connection of this index.
    fn call(server: &mut SocketServer, mut client: &UnixStream, index: usize, methods: &[&str]) {
        for method in methods {
            write!(client, "{{\"method\":\"org.wattspan.Meter.{method}\",\"parameters\":{{}}}}\0").unwrap();
        }
        let key = FIRST_CONNECTION_KEY + index;
        server.handle(&[Readiness { key, is_readable: true, is_interrupted: false }]).unwrap();
    }

    /// The replies that a client has got since the last call.
    fn replies(mut client: &UnixStream) -> Vec<serde_json::Value> {
        let mut bytes = [0; 4096];
        let length = client.read(&mut bytes).unwrap_or(0);
        let messages = bytes[..length].split(|byte| *byte == 0).filter(|message| !message.is_empty());
        messages.map(|message| serde_json::from_slice(message).unwrap()).collect()
    }

    #[test]
    fn a_reload_that_takes_access_away_ends_the_queries_that_wait_for_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, receiver) = forwarded_calls();
        let listeners = vec![UnixListener::bind(dir.path().join("socket")).unwrap()];
        let sockets = ServerSockets { listeners, forwarded: Some(receiver), ..ServerSockets::default() };
        let (mut server, mut store) = server(dir.path(), sockets);
        let reduced = connect(&mut server, credentials(1000, "bin"));
        let kept = connect(&mut server, credentials(1001, "daemon"));
        let root = connect(&mut server, PeerCredentials { uid: 0, gid: 0, groups: Vec::new() });
        let over_bus = sender.connect(credentials(1002, "bin"), None);
        let (result_sender, results) = channel();
        over_bus.call(ForwardedCall {
            method: MethodName::SumSpans,
            request: Ok(Request::SumSpans(SumSpans::default())),
            oneway: false,
            reply: Box::new(move |result| result_sender.send(result).unwrap()),
        });
        call(&mut server, &reduced, 0, &["SumSpans", "ListSpans"]);
        call(&mut server, &kept, 1, &["SumSpans", "ListSpans"]);
        assert!(
            [&reduced, &kept].into_iter().all(|client| replies(client).is_empty()),
            "the store has not run"
        );
        call(&mut server, &root, 2, &["Reload"]);
        assert_eq!(replies(&root)[0]["parameters"]["changed"][0], "access.telemetry_group");
        let denied = serde_json::json!({
            "error": "org.wattspan.Meter.AccessDenied", "parameters": { "needs": "telemetry" }
        });
        assert_eq!(replies(&reduced), [denied.clone(), denied]);
        assert_eq!(results.try_recv(), Ok(Err(MethodError::AccessDenied { needs: "telemetry".into() })));
        store.run();
        server.handle(&[]).unwrap();
        let answers = replies(&kept);
        assert_eq!(answers[0]["parameters"]["total"]["accounts"], 0, "{answers:?}");
        assert_eq!(answers[1]["parameters"]["accounts"], serde_json::json!([]), "{answers:?}");
        assert!(replies(&reduced).is_empty(), "each call has one reply");
    }
}
