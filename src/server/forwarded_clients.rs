//! The clients of another server of this daemon (D-Bus): their identity, their queued calls and deferred replies.
//!
//! Access, rate limits and quotas are those of a connection to the socket. Invariant: the calls of a client are performed
//! in their order; the user with the lowest start tag comes first.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};

use wattspan_client::protocol::{Access, MethodError, MethodName};
use wattspan_system::unix_socket::PeerCredentials;

use super::acceptor::Acceptor;
use super::connection::PeerIdentity;
use super::dispatch::{CallHead, CallOutcome, CallParameters, perform};
use super::fair_scheduler::FairScheduler;
use super::forwarded_calls::{
    ForwardedCall, ForwardedClientId, ForwardedEvent, ForwardedReceiver, ReplySender,
};
use crate::service::access::{AccessPolicy, Peer};
use crate::service::caller::{Caller, ConnectionId, ReplyTo};
use crate::service::{MethodResult, Request, Service};

/// Distinguishes the IDs of forwarded clients from those of the connections of the socket.
const FORWARDED_ID_BIT: ConnectionId = 1 << 63;

impl CallParameters for Result<Request, MethodError> {
    fn into_request(self, _: MethodName) -> Result<Request, MethodError> {
        self
    }

    fn span(&self) -> Option<Cow<'_, str>> {
        match self.as_ref().ok()? {
            Request::CloseSpan(call) => Some(Cow::Borrowed(&call.span)),
            Request::CancelSpan(call) => Some(Cow::Borrowed(&call.span)),
            _ => None,
        }
    }
}

/// A client that has connected.
struct KnownClient {
    credentials: PeerCredentials,
    pid: Option<u32>,
    /// `None` before the first call, after a call that was over a limit, and after a rejected call.
    connection: Option<(ConnectionId, PeerIdentity)>,
}

/// The parts of the server that a call needs.
pub struct ServerParts<'a> {
    pub service: &'a mut Service,
    pub scheduler: &'a mut FairScheduler,
    /// `None` during the shutdown.
    pub acceptor: Option<&'a mut Acceptor>,
}

pub struct ForwardedClients {
    receiver: ForwardedReceiver,
    clients: HashMap<ForwardedClientId, KnownClient>,
    /// What is to be done, by user.
    queues: BTreeMap<u32, VecDeque<(ForwardedClientId, ForwardedEvent)>>,
    /// By slot; a slot is used once.
    deferred: HashMap<u64, ReplySender>,
    next_slot: u64,
    connections: u64,
}

impl ForwardedClients {
    pub fn new(receiver: ForwardedReceiver) -> Self {
        Self {
            receiver,
            clients: HashMap::new(),
            queues: BTreeMap::new(),
            deferred: HashMap::new(),
            next_slot: 0,
            connections: 0,
        }
    }

    pub fn receiver(&self) -> &ForwardedReceiver {
        &self.receiver
    }

    /// Whether calls are left for the next turn.
    pub fn has_waiting(&self) -> bool {
        !self.queues.is_empty()
    }

    /// Performs queued calls, at least one, until `end_ns`.
    pub fn serve(&mut self, parts: &mut ServerParts<'_>, end_ns: u64) {
        for (client, event) in self.receiver.take_events() {
            self.enqueue(client, event);
        }
        let mut now_ns = parts.service.now_ns();
        while let Some(uid) = self.queues.keys().copied().min_by_key(|uid| parts.scheduler.start_tag(*uid)) {
            let Some(queue) = self.queues.get_mut(&uid) else { break };
            let next = queue.pop_front();
            if queue.is_empty() {
                self.queues.remove(&uid);
            }
            match next {
                Some((client, ForwardedEvent::Called(call))) => self.perform(parts, client, call),
                Some((client, ForwardedEvent::Left)) => self.remove(parts, client),
                _ => {}
            }
            let ended_ns = parts.service.now_ns();
            parts.scheduler.charge(uid, ended_ns - now_ns, ended_ns);
            now_ns = ended_ns;
            if now_ns >= end_ns {
                break;
            }
        }
    }

    fn enqueue(&mut self, client: ForwardedClientId, event: ForwardedEvent) {
        if let ForwardedEvent::Connected { credentials, pid } = event {
            self.clients.insert(client, KnownClient { credentials, pid, connection: None });
        } else if let Some(known) = self.clients.get(&client) {
            self.queues.entry(known.credentials.uid).or_default().push_back((client, event));
        }
    }

    fn perform(&mut self, parts: &mut ServerParts<'_>, client: ForwardedClientId, call: ForwardedCall) {
        let ForwardedCall { method, request, oneway, reply } = call;
        let (connection, caller) = match self.caller(parts, client) {
            Some(Ok(caller)) => (caller.reply_to.connection, caller),
            Some(Err(error)) => return reply(Err(error)),
            None => return,
        };
        let head = CallHead { method: method.as_str(), oneway, more: false, upgrade: false };
        match perform(parts.service, &caller, head, request) {
            CallOutcome::Answered(result) => reply(result),
            CallOutcome::Pending | CallOutcome::PendingQuery => {
                self.deferred.insert(self.next_slot, reply);
                self.next_slot += 1;
            }
            CallOutcome::Subscribed(_) => reply(Err(MethodError::ExpectedMore {})),
            CallOutcome::Rejected(error) => {
                self.disconnect(parts, client, connection);
                reply(Err(error));
            }
        }
    }

    /// The caller of a call, who is admitted if that has not happened yet; `None` where the client is unknown, or the
    /// server stops.
    fn caller(
        &mut self,
        parts: &mut ServerParts<'_>,
        client: ForwardedClientId,
    ) -> Option<Result<Caller, MethodError>> {
        let known = self.clients.get_mut(&client)?;
        if known.connection.is_none() {
            let peer = match parts.acceptor.as_mut()?.admit(&known.credentials) {
                Ok(peer) => peer,
                Err(error) => return Some(Err(error)),
            };
            let pid = known.pid.filter(|_| peer.access >= Access::Coarse);
            let origin = parts.service.identify_process(pid);
            self.connections += 1;
            let identity = PeerIdentity { peer, credentials: known.credentials.clone(), origin };
            known.connection = Some((FORWARDED_ID_BIT | self.connections, identity));
        }
        let (connection, identity) = known.connection.as_ref()?;
        let reply_to = ReplyTo { connection: *connection, slot: self.next_slot };
        Some(Ok(Caller { peer: identity.peer, reply_to, process: identity.origin }))
    }

    fn remove(&mut self, parts: &mut ServerParts<'_>, client: ForwardedClientId) {
        if let Some(KnownClient { connection: Some((connection, _)), .. }) = self.clients.get(&client) {
            self.disconnect(parts, client, *connection);
        }
        self.clients.remove(&client);
    }

    /// Abandons the client's open spans. Its next call counts as that of a new connection.
    fn disconnect(
        &mut self,
        parts: &mut ServerParts<'_>,
        client: ForwardedClientId,
        connection: ConnectionId,
    ) {
        parts.service.close_connection(connection);
        parts.service.cancel_sums(connection);
        let closed = self.clients.get_mut(&client).and_then(|known| known.connection.take());
        if let (Some((_, identity)), Some(acceptor)) = (closed, parts.acceptor.as_mut()) {
            acceptor.release(&identity.peer);
        }
    }

    /// Whether a deferred reply is one to a forwarded call.
    pub fn is_forwarded(reply_to: ReplyTo) -> bool {
        reply_to.connection & FORWARDED_ID_BIT != 0
    }

    /// Sends a deferred reply.
    pub fn complete(&mut self, reply_to: ReplyTo, result: MethodResult) {
        if let Some(reply) = self.deferred.remove(&reply_to.slot) {
            reply(result);
        }
    }

    /// Applies a new policy to the clients. Returns those whose access changed.
    pub fn apply_policy(&mut self, policy: &AccessPolicy) -> Vec<(ConnectionId, Peer)> {
        let connections = self.clients.values_mut().filter_map(|known| known.connection.as_mut());
        let changed = |(id, identity): &mut (ConnectionId, PeerIdentity)| {
            identity.apply_policy(policy).then_some((*id, identity.peer))
        };
        connections.filter_map(changed).collect()
    }
}
