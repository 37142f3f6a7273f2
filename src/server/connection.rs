//! One client connection: input, message framing and replies.
//!
//! Owns the framing (JSON up to a NUL, under a cap that is checked before anything is stored) and bounds the
//! client's memory: at most one message and the unread replies up to their cap. A client that does not read
//! its replies is not read from; one that makes no progress is closed. Invariant: `input` holds no complete
//! message unless reading is paused.

use std::io::{self, IoSliceMut, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;

use polling::Event;
use rustix::io::ioctl_fionread;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, recvmsg};
use wattspan_client::protocol::{MESSAGE_TERMINATOR, MethodError};
use wattspan_system::unix_socket::PeerCredentials;

use super::dispatch::{CallOutcome, dispatch};
use super::readiness::Readiness;
use super::readiness_ffi::RegisteredSocket;
use super::reply_queue::ReplyQueue;
use super::subscriptions::SubscriptionKind;
use crate::process_usage::ProcessIdentity;
use crate::service::Service;
use crate::service::access::{AccessPolicy, Peer};
use crate::service::caller::{Caller, ConnectionId, ReplyTo};

/// Outstanding replies of one client.
const MAX_PENDING_REPLIES: usize = 4096;

/// Outstanding store queries of one client. The limit is low because a result may be large.
const MAX_PENDING_QUERIES: usize = 4;

/// Stream items are collected up to this size before they are sent.
const STREAM_FLUSH_BYTES: usize = 16 * 1024;

/// The identity of the peer. Its credentials are kept because a later policy is applied to them: the socket
/// of a forwarded connection would state those of the daemon itself.
#[derive(Debug)]
pub struct PeerIdentity {
    pub peer: Peer,
    pub credentials: PeerCredentials,
    pub origin: Option<ProcessIdentity>,
}

impl PeerIdentity {
    /// Applies a new policy. Returns whether the peer's access changed.
    pub fn apply_policy(&mut self, policy: &AccessPolicy) -> bool {
        let judged = policy.peer_of(&self.credentials);
        let changed = judged.access != self.peer.access;
        (self.peer.access, self.peer.unlimited) = (judged.access, judged.unlimited);
        changed
    }
}

/// How long a connection may make no progress.
#[derive(Debug, Clone, Copy)]
pub struct StallTimeouts {
    /// While a message is incomplete.
    pub message_ns: u64,
    /// While replies are unread.
    pub unread_ns: u64,
}

pub struct ClientConnection {
    socket: RegisteredSocket<UnixStream>,
    key: usize,
    id: ConnectionId,
    identity: PeerIdentity,
    input: Vec<u8>,
    scanned_bytes: usize,
    reply_queue: ReplyQueue,
    pending_queries: usize,
    /// Length of the current time slice. A message whose processing has started is completed.
    slice_ns: u64,
    /// Number of the latest time slice.
    slice_number: u64,
    subscription: Option<SubscriptionKind>,
    /// No further message is read, because too many replies are unread.
    read_paused: bool,
    /// The time slice ended before all messages were processed.
    yielded: bool,
    /// The socket may have more input.
    has_unread_input: bool,
    /// No further message is read: the client closed its side, or sent an invalid message.
    read_closed: bool,
    /// A message was completed or reply bytes were sent since the last check.
    made_progress: bool,
    /// The time since which there has been no progress, although a message is incomplete or replies are
    /// unread.
    stalled_since_ns: Option<u64>,
}

impl ClientConnection {
    /// `key` is the connection's key in the poller.
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

    /// Starts a time slice.
    pub fn begin_slice(&mut self, number: u64, slice_ns: u64) {
        (self.slice_number, self.slice_ns) = (number, slice_ns);
    }

    pub fn slice_number(&self) -> u64 {
        self.slice_number
    }

    pub fn id(&self) -> ConnectionId {
        self.id
    }

    pub fn peer(&self) -> &Peer {
        &self.identity.peer
    }

    /// Applies a new policy. Returns whether the peer's access changed.
    pub fn apply_policy(&mut self, policy: &AccessPolicy) -> bool {
        self.identity.apply_policy(policy)
    }

    pub fn subscription(&self) -> Option<SubscriptionKind> {
        self.subscription
    }

    /// Handles a readiness event.
    pub fn handle_event(
        &mut self,
        event: &Readiness,
        buffer: &mut [u8],
        service: &mut Service,
    ) -> ControlFlow<()> {
        // Both directions are shut down and no further input would be read.
        if event.is_interrupted && (self.read_closed || self.read_paused) && !self.yielded {
            return ControlFlow::Break(());
        }
        if event.is_readable && self.can_read() {
            self.read_input(buffer, service)?;
        }
        self.progress(service)
    }

    /// Reads once, so that one client cannot use more than one buffer per slice, and processes complete
    /// messages.
    fn read_input(&mut self, buffer: &mut [u8], service: &mut Service) -> ControlFlow<()> {
        let read = match recv(&self.socket, buffer) {
            Ok(RecvResult { has_descriptors: true, .. }) => {
                let reason = "are not accepted; send messages without descriptors".to_owned();
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
        self.reject_oversized_input(service.limits().message_bytes);
        ControlFlow::Continue(())
    }

    fn can_read(&self) -> bool {
        !self.read_closed && !self.read_paused && !self.yielded
    }

    /// Rejects an incomplete message over the limit, so that no more of it is stored.
    fn reject_oversized_input(&mut self, max_bytes: usize) {
        if self.can_read() && self.input.len() > max_bytes {
            let reason = format!("is longer than {max_bytes} bytes");
            self.reject(&MethodError::InvalidValue { field: "message".into(), reason });
        }
    }

    fn handle_buffered(&mut self, service: &mut Service) {
        let mut input = std::mem::take(&mut self.input);
        let used = self.handle_messages(&input, service);
        input.drain(..used);
        if !input.is_empty() {
            self.input = input;
        }
    }

    /// Processes the complete messages at the start of `bytes`. Returns their length.
    fn handle_messages(&mut self, bytes: &[u8], service: &mut Service) -> usize {
        let mut used = 0;
        let end_ns = service.now_ns() + self.slice_ns;
        loop {
            if self.read_closed {
                return bytes.len();
            }
            if self.pause_over_reply_limit(service.limits().unread_bytes) {
                return used;
            }
            let Some(length) = self.find_message(&bytes[used..]) else { return used };
            self.handle_message(&bytes[used..used + length], service);
            used += length + 1;
            if used < bytes.len() && service.now_ns() >= end_ns {
                self.yielded = true;
                return used;
            }
        }
    }

    /// The length of the complete message at the start of `bytes`, without its terminator.
    fn find_message(&mut self, bytes: &[u8]) -> Option<usize> {
        // The bytes scanned earlier contain no terminator.
        match memchr::memchr(MESSAGE_TERMINATOR, &bytes[self.scanned_bytes..]) {
            Some(position) => Some(position + std::mem::take(&mut self.scanned_bytes)),
            None => {
                self.scanned_bytes = bytes.len();
                None
            }
        }
    }

    /// Pauses reading if the client is over its reply limit, after an attempt to send. Returns whether it is paused.
    fn pause_over_reply_limit(&mut self, max_unread_bytes: usize) -> bool {
        let is_over = self.is_over_reply_limit(max_unread_bytes)
            && (self.flush().is_break() || self.is_over_reply_limit(max_unread_bytes));
        if is_over {
            (self.read_paused, self.has_unread_input) = (true, true);
        }
        is_over
    }

    /// Whether the client has too many unread or outstanding replies to accept another call.
    fn is_over_reply_limit(&self, max_unread_bytes: usize) -> bool {
        let has_too_many_pending =
            self.reply_queue.pending() >= MAX_PENDING_REPLIES || self.pending_queries >= MAX_PENDING_QUERIES;
        self.reply_queue.unsent_bytes() > max_unread_bytes || has_too_many_pending
    }

    fn handle_message(&mut self, message: &[u8], service: &mut Service) {
        self.made_progress = true;
        if message.len() > service.limits().message_bytes || self.subscription.is_some() {
            let reason = match self.subscription {
                Some(_) => "arrived during a streaming call (\"more\"); use another connection".to_owned(),
                None => format!("is longer than {} bytes", service.limits().message_bytes),
            };
            return self.reject(&MethodError::InvalidValue { field: "message".into(), reason });
        }
        let reply_to = ReplyTo { connection: self.id, slot: self.reply_queue.next_slot() };
        let caller = Caller { peer: self.identity.peer, reply_to, process: self.identity.origin };
        match self.reply_queue.write(|out| dispatch(service, &caller, message, out)) {
            CallOutcome::Answered(_) => {}
            CallOutcome::Pending => self.reply_queue.push_pending(),
            CallOutcome::PendingQuery => {
                self.reply_queue.push_pending();
                self.pending_queries += 1;
            }
            CallOutcome::Subscribed(subscription) => self.subscription = Some(subscription),
            CallOutcome::Rejected(_) => self.close_read(),
        }
    }

    /// Writes the error and closes the read side. Earlier replies are still sent.
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

    /// Handles the end of the input: outstanding replies are still sent, open spans are closed as abandoned.
    fn handle_eof(&mut self, service: &mut Service) {
        self.close_read();
        service.close_connection(self.id);
    }

    /// Stores a deferred reply. `is_query` marks the result of a store query.
    pub fn complete_reply(&mut self, slot: u64, reply: &[u8], is_query: bool) {
        self.pending_queries -= usize::from(is_query && self.pending_queries > 0);
        self.reply_queue.complete(slot, reply);
    }

    /// Adds a stream item. A subscriber that falls behind is disconnected, because stale figures would look
    /// current.
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

    /// Whether all replies were sent.
    pub fn is_drained(&self) -> bool {
        self.reply_queue.unsent_bytes() == 0
    }

    /// Whether messages are left for the next slice.
    pub fn has_yielded(&self) -> bool {
        self.yielded
    }

    /// Continues after a slice that ended early.
    pub fn resume(&mut self, service: &mut Service) -> ControlFlow<()> {
        if std::mem::take(&mut self.yielded) {
            self.handle_buffered(service);
        }
        self.progress(service)
    }

    /// Sends what is sendable, resumes paused reading, and updates the registered interest.
    pub fn progress(&mut self, service: &mut Service) -> ControlFlow<()> {
        self.flush()?;
        if self.read_paused && !self.yielded && !self.is_over_reply_limit(service.limits().unread_bytes / 2) {
            self.read_paused = false;
            self.handle_buffered(service);
            self.flush()?;
        }
        if self.read_closed && self.reply_queue.unsent_bytes() == 0 && self.reply_queue.pending() == 0 {
            return ControlFlow::Break(());
        }
        self.update_stall_state(service.now_ns());
        let mut interest = Event::none(self.key);
        interest.readable = self.can_read();
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

    /// Releases memory that a burst used.
    pub fn shrink_buffers(&mut self) {
        self.reply_queue.shrink();
    }

    /// Whether the client has sent input that is not yet read, or has sendable replies. Deferred replies do
    /// not count, and neither does an endless stream.
    pub fn has_pending_io(&self) -> bool {
        let is_endless = matches!(self.subscription, Some(SubscriptionKind::Domains { .. }));
        let has_bytes = || ioctl_fionread(&*self.socket).is_ok_and(|bytes| bytes > 0);
        let has_unread_input =
            !self.read_closed && (self.read_paused || self.yielded || (self.has_unread_input && has_bytes()));
        !is_endless && (has_unread_input || !self.reply_queue.sendable().is_empty())
    }

    /// Records at the end of a slice since when there has been no progress.
    fn update_stall_state(&mut self, now_ns: u64) {
        let is_incomplete = !self.reply_queue.sendable().is_empty()
            || (!self.input.is_empty() && !self.read_paused && !self.yielded);
        let made_progress = std::mem::take(&mut self.made_progress);
        if !is_incomplete {
            self.stalled_since_ns = None;
        } else if made_progress || self.stalled_since_ns.is_none() {
            self.stalled_since_ns = Some(now_ns);
        }
    }

    /// Whether there has been no progress for longer than the timeout.
    pub fn is_stalled(&self, now_ns: u64, timeouts: StallTimeouts) -> bool {
        let has_unread_replies = !self.reply_queue.sendable().is_empty();
        let timeout_ns = if has_unread_replies { timeouts.unread_ns } else { timeouts.message_ns };
        self.stalled_since_ns.is_some_and(|since| now_ns.saturating_sub(since) > timeout_ns)
    }
}

struct RecvResult {
    /// Zero at the end of the stream.
    length: usize,
    /// The message carried descriptors. The kernel closed them.
    has_descriptors: bool,
}

/// Reads once. The call has no room for ancillary data, so the kernel closes any descriptors and sets
/// MSG_CTRUNC (recvmsg(2)). Other ancillary data does not occur, because the sockets request no credentials.
fn recv(socket: &UnixStream, buffer: &mut [u8]) -> io::Result<RecvResult> {
    let (mut buffers, mut no_control) = ([IoSliceMut::new(buffer)], RecvAncillaryBuffer::default());
    let message = recvmsg(socket, &mut buffers, &mut no_control, RecvFlags::empty())?;
    Ok(RecvResult { length: message.bytes, has_descriptors: message.flags.contains(ReturnFlags::CTRUNC) })
}
