//! One client: bytes in, messages out of them, answers back.
//!
//! Owns the framing (JSON up to a NUL, under a cap that is checked before anything is kept) and the client's share of
//! memory: at most one message and the unread answers up to their cap. A client that does not read is not read from;
//! one that makes no progress is given up. Invariant: `input` holds no whole message unless reading is paused.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;

use polling::Event;

use super::dispatch::{CallOutcome, SubscriptionKind, dispatch};
use super::peer_identity::PeerIdentity;
use super::readiness_ffi::RegisteredSocket;
use super::recv::{RecvResult, recv};
use super::reply_queue::ReplyQueue;
use crate::protocol::{MESSAGE_TERMINATOR, MethodError};
use crate::service::Service;
use crate::service::access::{AccessPolicy, Peer};
use crate::service::caller::{Caller, ConnectionId, ReplyTo};

/// Most answers of one client that may be awaited at a time.
const MAX_PENDING_REPLIES: usize = 4096;

/// Most questions of one client that the disk may be asked at a time: an answer may be large.
const MAX_PENDING_QUERIES: usize = 4;

/// Answers of a stream are gathered up to so many bytes before they are sent.
const STREAM_FLUSH_BYTES: usize = 16 * 1024;

/// A connected client.
pub struct ClientConnection {
    pub(crate) socket: RegisteredSocket<UnixStream>,
    key: usize,
    id: ConnectionId,
    identity: PeerIdentity,
    pub(crate) input: Vec<u8>,
    scanned_bytes: usize,
    pub(crate) reply_queue: ReplyQueue,
    pending_queries: usize,
    /// How long a turn may take; a message that is being handled is finished.
    slice_ns: u64,
    /// The number of its latest turn.
    slice_number: u64,
    pub(crate) subscription: Option<SubscriptionKind>,
    /// So many answers are unread that no further message is heard.
    pub(crate) read_paused: bool,
    /// The turn was over before all messages were handled; the rest is for the next.
    pub(crate) yielded: bool,
    /// More may have been said than was read.
    pub(crate) has_unread_input: bool,
    /// No further message is read: the client ended its side, or sent what is no message.
    pub(crate) read_closed: bool,
    /// A message was completed, or an answer taken, since this was last looked at.
    pub(crate) made_progress: bool,
    /// Since when nothing moved although something is half done: a message incomplete, or answers not taken.
    pub(crate) stalled_since_ns: Option<u64>,
}

impl ClientConnection {
    /// A client that has just connected; `key` is its place in the poller.
    pub fn new(
        socket: RegisteredSocket<UnixStream>,
        key: usize,
        id: ConnectionId,
        identity: PeerIdentity,
    ) -> Self {
        Self {
            socket,
            key,
            id,
            identity,
            input: Vec::new(),
            scanned_bytes: 0,
            reply_queue: ReplyQueue::default(),
            pending_queries: 0,
            slice_ns: 0,
            slice_number: 0,
            subscription: None,
            read_paused: false,
            yielded: false,
            has_unread_input: false,
            read_closed: false,
            made_progress: false,
            stalled_since_ns: None,
        }
    }

    /// Its next turn has this number and may take so long.
    pub fn begin_slice(&mut self, number: u64, slice_ns: u64) {
        (self.slice_number, self.slice_ns) = (number, slice_ns);
    }

    /// The number of its latest turn.
    pub fn slice_number(&self) -> u64 {
        self.slice_number
    }

    /// Which connection.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Who is there.
    pub fn peer(&self) -> &Peer {
        &self.identity.peer
    }

    /// Judges the peer by another rule; whether it may do something else now.
    pub fn apply_policy(&mut self, policy: &AccessPolicy) -> bool {
        self.identity.apply_policy(policy)
    }

    /// What it watches.
    pub fn subscription(&self) -> Option<SubscriptionKind> {
        self.subscription
    }

    /// The socket is ready for something.
    pub fn handle_event(
        &mut self,
        event: &Event,
        buffer: &mut [u8],
        service: &mut Service,
    ) -> ControlFlow<()> {
        // Both sides are shut, and nothing more would be read: there is nobody left to serve.
        if event.is_interrupt() && (self.read_closed || self.read_paused) && !self.yielded {
            return ControlFlow::Break(());
        }
        let can_read = !self.read_closed && !self.read_paused && !self.yielded;
        if event.readable && can_read && self.read_input(buffer, service).is_break() {
            return ControlFlow::Break(());
        }
        self.progress(service)
    }

    /// Reads once, so that no client has more of a turn than a buffer's worth, and handles what is whole.
    fn read_input(&mut self, buffer: &mut [u8], service: &mut Service) -> ControlFlow<()> {
        let read = match recv(&self.socket, buffer) {
            Ok(RecvResult { has_descriptors: true, .. }) => {
                let reason = "are not taken here; send messages only".to_owned();
                self.reject(&MethodError::InvalidValue { field: "descriptors".into(), reason });
                return ControlFlow::Continue(());
            }
            result => result.map(|result| result.length),
        };
        self.has_unread_input = read.as_ref().is_ok_and(|length| *length == buffer.len());
        match read {
            Ok(0) => self.handle_eof(service),
            Ok(length) if self.input.is_empty() => {
                let used = self.handle_messages(&buffer[..length], service);
                self.input.extend_from_slice(&buffer[used..length]);
            }
            Ok(length) => {
                self.input.extend_from_slice(&buffer[..length]);
                self.handle_buffered(service);
            }
            Err(cause) if matches!(cause.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => return ControlFlow::Break(()),
        }
        if !self.read_closed
            && !self.read_paused
            && !self.yielded
            && self.input.len() > service.limits().message_bytes
        {
            let max_bytes = service.limits().message_bytes;
            let reason = format!("is longer than {max_bytes} bytes");
            self.reject(&MethodError::InvalidValue { field: "message".into(), reason });
        }
        ControlFlow::Continue(())
    }

    fn handle_buffered(&mut self, service: &mut Service) {
        let mut input = std::mem::take(&mut self.input);
        let used = self.handle_messages(&input, service);
        input.drain(..used);
        if !input.is_empty() {
            self.input = input;
        }
    }

    /// Handles the whole messages at the start of `bytes`; gives how many bytes they were.
    fn handle_messages(&mut self, bytes: &[u8], service: &mut Service) -> usize {
        let mut used = 0;
        let end_ns = service.now_ns() + self.slice_ns;
        loop {
            if self.read_closed {
                return bytes.len();
            }
            let max_unread_bytes = service.limits().unread_bytes;
            if self.is_over_reply_limit(max_unread_bytes)
                && (self.flush().is_break() || self.is_over_reply_limit(max_unread_bytes))
            {
                (self.read_paused, self.has_unread_input) = (true, true);
                return used;
            }
            // What was looked through before holds no end.
            let Some(length) = memchr::memchr(MESSAGE_TERMINATOR, &bytes[used + self.scanned_bytes..]) else {
                self.scanned_bytes = bytes.len() - used;
                return used;
            };
            let length = length + self.scanned_bytes;
            self.scanned_bytes = 0;
            self.handle_message(&bytes[used..used + length], service);
            used += length + 1;
            if used < bytes.len() && service.now_ns() >= end_ns {
                self.yielded = true;
                return used;
            }
        }
    }

    /// Whether the client has so many answers to take that no further question is heard.
    fn is_over_reply_limit(&self, max_unread_bytes: usize) -> bool {
        let has_too_many_pending =
            self.reply_queue.pending() >= MAX_PENDING_REPLIES || self.pending_queries >= MAX_PENDING_QUERIES;
        self.reply_queue.unsent_bytes() > max_unread_bytes || has_too_many_pending
    }

    fn handle_message(&mut self, message: &[u8], service: &mut Service) {
        self.made_progress = true;
        if message.len() > service.limits().message_bytes || self.subscription.is_some() {
            let reason = match self.subscription {
                Some(_) => {
                    "comes while answers to a call with \"more\" go on; use another connection".to_owned()
                }
                None => format!("is longer than {} bytes", service.limits().message_bytes),
            };
            return self.reject(&MethodError::InvalidValue { field: "message".into(), reason });
        }
        let reply_to = ReplyTo { connection: self.id, slot: self.reply_queue.next_slot() };
        let caller = Caller { peer: self.identity.peer, reply_to, process: self.identity.origin };
        match self.reply_queue.write(|out| dispatch(service, &caller, message, out)) {
            CallOutcome::Answered => {}
            CallOutcome::Pending => self.reply_queue.push_pending(),
            CallOutcome::PendingQuery => {
                self.reply_queue.push_pending();
                self.pending_queries += 1;
            }
            CallOutcome::Subscribed(subscription) => self.subscription = Some(subscription),
            CallOutcome::ProtocolViolation => self.close_read(),
        }
    }

    /// Says why and hears no more; the answers so far are still sent.
    pub fn reject(&mut self, error: &MethodError) {
        self.reply_queue.write(|out| error.encode(out));
        self.close_read();
    }

    fn close_read(&mut self) {
        self.read_closed = true;
        self.yielded = false;
        self.subscription = None;
        self.input = Vec::new();
        self.scanned_bytes = 0;
    }

    /// The client sends no more; what it asked for is still answered, what it left open is not left running.
    fn handle_eof(&mut self, service: &mut Service) {
        self.close_read();
        service.close_connection(self.id);
    }

    /// An awaited answer is here; the disk's, where `is_query`.
    pub fn complete_reply(&mut self, slot: u64, reply: &[u8], is_query: bool) {
        self.pending_queries -= usize::from(is_query && self.pending_queries > 0);
        self.reply_queue.complete(slot, reply);
    }

    /// One more answer of the stream. A watcher that does not keep up is dropped: it would rather miss all than be
    /// told old figures as new.
    pub fn push_stream_item(&mut self, reply: &[u8], max_unread_bytes: usize) -> ControlFlow<()> {
        if self.reply_queue.unsent_bytes() + reply.len() > max_unread_bytes.max(reply.len()) {
            return ControlFlow::Break(());
        }
        self.reply_queue.write(|out| out.extend_from_slice(reply));
        if self.reply_queue.unsent_bytes() > STREAM_FLUSH_BYTES {
            self.flush()
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Whether messages are left for the next turn.
    pub fn has_yielded(&self) -> bool {
        self.yielded
    }

    /// The next turn of a client that had to yield.
    pub fn resume(&mut self, service: &mut Service) -> ControlFlow<()> {
        if std::mem::take(&mut self.yielded) {
            self.handle_buffered(service);
        }
        self.progress(service)
    }

    /// Sends what can be sent, goes on with messages that were held back, and watches for what comes next.
    pub fn progress(&mut self, service: &mut Service) -> ControlFlow<()> {
        if self.flush().is_break() {
            return ControlFlow::Break(());
        }
        if self.read_paused && !self.yielded && !self.is_over_reply_limit(service.limits().unread_bytes / 2) {
            self.read_paused = false;
            self.handle_buffered(service);
            if self.flush().is_break() {
                return ControlFlow::Break(());
            }
        }
        if self.read_closed && self.reply_queue.unsent_bytes() == 0 && self.reply_queue.pending() == 0 {
            return ControlFlow::Break(());
        }
        self.update_stall_state(service.now_ns());
        let mut interest = Event::none(self.key);
        interest.readable = !self.read_closed && !self.read_paused && !self.yielded;
        interest.writable = !self.reply_queue.sendable().is_empty();
        self.socket.set_interest(interest).map_or(ControlFlow::Break(()), |()| ControlFlow::Continue(()))
    }

    fn flush(&mut self) -> ControlFlow<()> {
        while !self.reply_queue.sendable().is_empty() {
            match (&*self.socket).write(self.reply_queue.sendable()) {
                Ok(length) if length > 0 => {
                    self.reply_queue.mark_sent(length);
                    self.made_progress = true;
                }
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => break,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                _ => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }

    /// Gives memory back that a burst took.
    pub fn shrink_buffers(&mut self) {
        self.reply_queue.shrink();
    }
}
