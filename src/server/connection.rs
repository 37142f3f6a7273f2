//! One client: bytes in, messages out of them, answers back.
//!
//! Owns the framing (JSON up to a NUL, under a cap that is checked before anything is kept) and the client's share of
//! memory: at most one message and the unread answers up to their cap. A client that does not read is not read from;
//! one that makes no progress is given up. Invariant: `rest` holds no whole message unless the client is stalled.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use polling::Event;

use super::exchange::{Outcome, Stream, exchange};
pub use super::fate::Fate;
use super::hearing::{Heard, hear};
use super::identity::Identity;
use super::outbox::Outbox;
use super::readiness_ffi::Watched;
use crate::protocol::{END, Refusal};
use crate::service::access::{AccessPolicy, Peer};
use crate::service::reply_to::{ConnectionId, ReplyTo};
use crate::service::service::{Caller, Service};

/// Most answers of one client that may be awaited at a time.
const MOST_AWAITED: usize = 4096;

/// Most questions of one client that the disk may be asked at a time: an answer may be large.
const MOST_ASKED: usize = 4;

/// Answers of a stream are gathered up to so many bytes before they are sent.
const GATHERED: usize = 16 * 1024;

/// A connected client.
pub struct Connection {
    pub(crate) socket: Watched<UnixStream>,
    key: usize,
    id: ConnectionId,
    who: Identity,
    pub(crate) rest: Vec<u8>,
    scanned: usize,
    pub(crate) outbox: Outbox,
    asked: usize,
    /// How long a turn may take; a message that is being handled is finished.
    turn_ns: u64,
    /// The number of its latest turn.
    latest_turn: u64,
    pub(crate) stream: Option<Stream>,
    /// So many answers are unread that no further message is heard.
    pub(crate) stalled: bool,
    /// The turn was over before all messages were handled; the rest is for the next.
    pub(crate) yielded: bool,
    /// More may have been said than was read.
    pub(crate) unheard: bool,
    /// No further message is read: the client ended its side, or sent what is no message.
    pub(crate) deaf: bool,
    /// A message was completed, or an answer taken, since this was last looked at.
    pub(crate) moved: bool,
    /// Since when nothing moved although something is half done: a message incomplete, or answers not taken.
    pub(crate) stuck_since_ns: Option<u64>,
}

impl Connection {
    /// A client that has just connected; `key` is its place in the poller.
    pub fn new(socket: Watched<UnixStream>, key: usize, id: ConnectionId, who: Identity) -> Self {
        Self {
            socket,
            key,
            id,
            who,
            rest: Vec::new(),
            scanned: 0,
            outbox: Outbox::default(),
            asked: 0,
            turn_ns: 0,
            latest_turn: 0,
            stream: None,
            stalled: false,
            yielded: false,
            unheard: false,
            deaf: false,
            moved: false,
            stuck_since_ns: None,
        }
    }

    /// Its next turn has this number and may take so long.
    pub fn begin_turn(&mut self, number: u64, turn_ns: u64) {
        (self.latest_turn, self.turn_ns) = (number, turn_ns);
    }

    /// The number of its latest turn.
    pub fn latest_turn(&self) -> u64 {
        self.latest_turn
    }

    /// Which connection.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Who is there.
    pub fn peer(&self) -> &Peer {
        &self.who.peer
    }

    /// Judges the peer by another rule; whether it may do something else now.
    pub fn rejudge(&mut self, policy: &AccessPolicy) -> bool {
        self.who.rejudge(policy)
    }

    /// What it watches.
    pub fn stream(&self) -> Option<Stream> {
        self.stream
    }

    /// The socket is ready for something.
    pub fn ready(&mut self, event: &Event, scratch: &mut [u8], service: &mut Service) -> Fate {
        // Both sides are shut, and nothing more would be read: there is nobody left to serve.
        if event.is_interrupt() && (self.deaf || self.stalled) && !self.yielded {
            return Fate::Over;
        }
        let hears = !self.deaf && !self.stalled && !self.yielded;
        if event.readable && hears && self.receive(scratch, service) == Fate::Over {
            return Fate::Over;
        }
        self.progress(service)
    }

    /// Reads once, so that no client has more of a turn than a buffer's worth, and handles what is whole.
    fn receive(&mut self, scratch: &mut [u8], service: &mut Service) -> Fate {
        let read = match hear(&self.socket, scratch) {
            Ok(Heard { descriptors: true, .. }) => {
                let reason = "are not taken here; send messages only".to_owned();
                self.refuse(&Refusal::InvalidValue { field: "descriptors".into(), reason });
                return Fate::Stays;
            }
            heard => heard.map(|heard| heard.length),
        };
        self.unheard = read.as_ref().is_ok_and(|length| *length == scratch.len());
        match read {
            Ok(0) => self.ended(service),
            Ok(length) if self.rest.is_empty() => {
                let used = self.handle(&scratch[..length], service);
                self.rest.extend_from_slice(&scratch[used..length]);
            }
            Ok(length) => {
                self.rest.extend_from_slice(&scratch[..length]);
                self.handle_rest(service);
            }
            Err(cause) if matches!(cause.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => return Fate::Over,
        }
        if !self.deaf && !self.stalled && !self.yielded && self.rest.len() > service.limits().message_bytes {
            let most = service.limits().message_bytes;
            let reason = format!("is longer than {most} bytes");
            self.refuse(&Refusal::InvalidValue { field: "message".into(), reason });
        }
        Fate::Stays
    }

    fn handle_rest(&mut self, service: &mut Service) {
        let mut rest = std::mem::take(&mut self.rest);
        let used = self.handle(&rest, service);
        rest.drain(..used);
        if !rest.is_empty() {
            self.rest = rest;
        }
    }

    /// Handles the whole messages at the start of `bytes`; gives how many bytes they were.
    fn handle(&mut self, bytes: &[u8], service: &mut Service) -> usize {
        let mut used = 0;
        let end_ns = service.now_ns() + self.turn_ns;
        loop {
            if self.deaf {
                return bytes.len();
            }
            let most_unread = service.limits().unread_bytes;
            if self.is_behind(most_unread) && (self.flush() == Fate::Over || self.is_behind(most_unread)) {
                (self.stalled, self.unheard) = (true, true);
                return used;
            }
            // What was looked through before holds no end.
            let Some(length) = memchr::memchr(END, &bytes[used + self.scanned..]) else {
                self.scanned = bytes.len() - used;
                return used;
            };
            let length = length + self.scanned;
            self.scanned = 0;
            self.message(&bytes[used..used + length], service);
            used += length + 1;
            if used < bytes.len() && service.now_ns() >= end_ns {
                self.yielded = true;
                return used;
            }
        }
    }

    /// Whether the client has so many answers to take that no further question is heard.
    fn is_behind(&self, most_unread: usize) -> bool {
        let waits = self.outbox.awaited() >= MOST_AWAITED || self.asked >= MOST_ASKED;
        self.outbox.unsent() > most_unread || waits
    }

    fn message(&mut self, message: &[u8], service: &mut Service) {
        self.moved = true;
        if message.len() > service.limits().message_bytes || self.stream.is_some() {
            let reason = match self.stream {
                Some(_) => {
                    "comes while answers to a call with \"more\" go on; use another connection".to_owned()
                }
                None => format!("is longer than {} bytes", service.limits().message_bytes),
            };
            return self.refuse(&Refusal::InvalidValue { field: "message".into(), reason });
        }
        let ticket = ReplyTo { connection: self.id, slot: self.outbox.next_slot() };
        let caller = Caller { peer: self.who.peer, reply_to: ticket, process: self.who.origin };
        match self.outbox.write(|out| exchange(service, &caller, message, out)) {
            Outcome::Answered => {}
            Outcome::Awaited => self.outbox.await_answer(),
            Outcome::Asked => {
                self.outbox.await_answer();
                self.asked += 1;
            }
            Outcome::Streaming(stream) => self.stream = Some(stream),
            Outcome::Broken => self.turn_deaf(),
        }
    }

    /// Says why and hears no more; the answers so far are still sent.
    pub fn refuse(&mut self, refusal: &Refusal) {
        self.outbox.write(|out| refusal.write(out));
        self.turn_deaf();
    }

    fn turn_deaf(&mut self) {
        self.deaf = true;
        self.yielded = false;
        self.stream = None;
        self.rest = Vec::new();
        self.scanned = 0;
    }

    /// The client sends no more; what it asked for is still answered, what it left open is not left running.
    fn ended(&mut self, service: &mut Service) {
        self.turn_deaf();
        service.close_connection(self.id);
    }

    /// An awaited answer is here; the disk's, where that was `asked`.
    pub fn fill(&mut self, slot: u64, answer: &[u8], asked: bool) {
        self.asked -= usize::from(asked && self.asked > 0);
        self.outbox.fill(slot, answer);
    }

    /// One more answer of the stream. A watcher that does not keep up is dropped: it would rather miss all than be
    /// told old figures as new.
    pub fn push(&mut self, answer: &[u8], most_unread: usize) -> Fate {
        if self.outbox.unsent() + answer.len() > most_unread.max(answer.len()) {
            return Fate::Over;
        }
        self.outbox.write(|out| out.extend_from_slice(answer));
        if self.outbox.unsent() > GATHERED { self.flush() } else { Fate::Stays }
    }

    /// Whether messages are left for the next turn.
    pub fn has_yielded(&self) -> bool {
        self.yielded
    }

    /// The next turn of a client that had to yield.
    pub fn resume(&mut self, service: &mut Service) -> Fate {
        if std::mem::take(&mut self.yielded) {
            self.handle_rest(service);
        }
        self.progress(service)
    }

    /// Sends what can be sent, goes on with messages that were held back, and watches for what comes next.
    pub fn progress(&mut self, service: &mut Service) -> Fate {
        if self.flush() == Fate::Over {
            return Fate::Over;
        }
        if self.stalled && !self.yielded && !self.is_behind(service.limits().unread_bytes / 2) {
            self.stalled = false;
            self.handle_rest(service);
            if self.flush() == Fate::Over {
                return Fate::Over;
            }
        }
        if self.deaf && self.outbox.unsent() == 0 && self.outbox.awaited() == 0 {
            return Fate::Over;
        }
        self.note_progress(service.now_ns());
        let mut interest = Event::none(self.key);
        interest.readable = !self.deaf && !self.stalled && !self.yielded;
        interest.writable = !self.outbox.sendable().is_empty();
        self.socket.watch(interest).map_or(Fate::Over, |()| Fate::Stays)
    }

    fn flush(&mut self) -> Fate {
        while !self.outbox.sendable().is_empty() {
            match (&*self.socket).write(self.outbox.sendable()) {
                Ok(length) if length > 0 => {
                    self.outbox.sent(length);
                    self.moved = true;
                }
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => break,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                _ => return Fate::Over,
            }
        }
        Fate::Stays
    }

    /// Gives memory back that a burst took.
    pub fn trim(&mut self) {
        self.outbox.trim();
    }
}
