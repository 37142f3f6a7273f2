//! The Unix-socket door: one thread that takes turns between its clients and the service.
//!
//! Owns the connections, the limits on how many there are, and when to look up. Every turn does a bounded amount for
//! each client (one buffer of input), so that none can keep the others waiting. Sleeps until somebody says something
//! or the service has something due: idle costs nothing.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use polling::{Event, Events, Poller};

use super::access::Peer;
use super::arrival::Arrivals;
use super::audience::Audience;
use super::coarse;
use super::connection::{Connection, Fate};
use super::exchange::Stream;
use super::gate::Gate;
use super::peer;
use super::readiness_ffi::Watched;
use super::seat::Seats;
use super::service::{Final, Service};
use super::ticket::Ticket;
use super::told;
use crate::ledger::account::Account;
use crate::protocol::{Access, Refusal, Reply};

/// Where clients come from, and what ends the service.
#[derive(Debug, Default)]
pub struct Doors {
    /// New clients, if any come.
    pub listener: Option<UnixListener>,
    /// Clients of another door of this daemon, beside those of the listener.
    pub arrivals: Option<Arrivals>,
    /// Clients that are connected already: ends of pairs made by this very process, trusted as itself.
    pub connections: Vec<UnixStream>,
    /// Serving ends when something can be read here, the end of the stream included. Without it, and without a
    /// listener, it ends with the last client.
    pub stop: Option<UnixStream>,
}

const LISTENER: usize = 0;
const STOP: usize = 1;
const ARRIVALS: usize = 2;
const FIRST_CONNECTION: usize = 3;

/// What one client's turn may read.
const SCRATCH_BYTES: usize = 64 * 1024;

/// How long waiting closes are still answered when the service ends.
const FAREWELL_NS: u64 = 200_000_000;

/// Serves until told to stop. Fails only where the system gives no poller.
pub fn serve(service: Service, doors: Doors) -> io::Result<()> {
    let mut door = Door::new(service, doors)?;
    let mut events = Events::new();
    while !door.is_done() {
        door.turn(&mut events)?;
    }
    door.farewell(&mut events)
}

/// How often clients that make no progress are looked for.
const SWEEP_NS: u64 = 500_000_000;

struct Door {
    service: Service,
    poller: Arc<Poller>,
    gate: Option<Gate>,
    stop: Option<Watched<UnixStream>>,
    stopping: bool,
    seats: Seats,
    audience: Audience,
    /// Places of those whose turn ended before their messages did.
    yielded: Vec<usize>,
    scratch: Vec<u8>,
    finals: Vec<Final>,
    pump_at_ns: u64,
    sweep_at_ns: u64,
}

impl Door {
    fn new(service: Service, doors: Doors) -> io::Result<Self> {
        let poller = Arc::new(Poller::new()?);
        let (policy, limits) = (*service.policy(), service.limits().clone());
        let waker = Arc::clone(&poller);
        service.set_waker(move || drop(waker.notify()));
        let beside = doors.arrivals.map(|arrivals| (ARRIVALS, arrivals));
        let gate =
            doors.listener.map(|listener| Gate::new(&poller, LISTENER, listener, beside, policy, limits));
        let stop = doors.stop.map(|stop| Watched::new(&poller, stop, Event::readable(STOP)));
        let mut door = Self {
            gate: gate.transpose()?,
            stop: stop.transpose()?,
            stopping: false,
            poller,
            seats: Seats::default(),
            audience: Audience::default(),
            yielded: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES],
            finals: Vec::new(),
            pump_at_ns: 0,
            sweep_at_ns: 0,
            service,
        };
        for stream in doors.connections {
            stream.set_nonblocking(true)?;
            let ourselves = policy.ourselves();
            door.seat(stream, ourselves)?;
        }
        Ok(door)
    }

    fn is_done(&self) -> bool {
        self.stopping || (self.seats.present() == 0 && self.gate.is_none() && self.stop.is_none())
    }

    /// Sleeps until something happens or is due, and does it.
    fn turn(&mut self, events: &mut Events) -> io::Result<()> {
        let now_ns = self.service.now_ns();
        self.pump_at_ns = self.pump_at_ns.min(self.service.next_pump_ns(now_ns));
        let wake_at_ns = if self.yielded.is_empty() { self.wake_at_ns() } else { now_ns };
        let sleep = Duration::from_nanos(wake_at_ns.saturating_sub(now_ns));
        events.clear();
        self.poller.wait(events, Some(sleep))?;
        let yielded = std::mem::take(&mut self.yielded);
        for event in events.iter() {
            match event.key {
                LISTENER | ARRIVALS => self.admit(),
                STOP => self.stopping = true,
                key => self.serve_one(key - FIRST_CONNECTION, &event),
            }
        }
        for place in yielded {
            if let Some(connection) = self.seats.at(place) {
                let watched = connection.stream().is_some();
                let fate = connection.resume(&mut self.service);
                self.after_turn(place, watched, fate);
            }
        }
        let now_ns = self.service.now_ns();
        if now_ns >= self.pump_at_ns || self.service.has_news() {
            self.pump();
        }
        self.tell_domains(now_ns);
        if now_ns >= self.sweep_at_ns {
            self.sweep(now_ns);
        }
        self.gate.as_mut().map_or(Ok(()), |gate| gate.resume(now_ns))
    }

    fn wake_at_ns(&self) -> u64 {
        let resume = self.gate.as_ref().and_then(Gate::resume_at_ns);
        [self.audience.due_ns(), resume].into_iter().flatten().fold(self.pump_at_ns, u64::min)
    }

    fn admit(&mut self) {
        let now_ns = self.service.now_ns();
        let admitted = self.gate.as_mut().map_or_else(Vec::new, |gate| gate.admit(now_ns));
        for (stream, peer) in admitted {
            let seated = self.seat(stream, peer);
            if let (Err(_), Some(gate)) = (seated, &mut self.gate) {
                // The poller could not take it: the socket is closed, and its place is given back.
                gate.left(&peer);
            }
        }
    }

    /// Gives a client its place.
    fn seat(&mut self, stream: UnixStream, peer: Peer) -> io::Result<()> {
        let poller = &self.poller;
        // Now, so that a later process of the same number is not taken for it.
        let pid = peer::process(stream.as_fd()).filter(|_| peer.access >= Access::Coarse);
        let origin = self.service.origin_of(pid);
        self.seats.seat(|place, id| {
            let key = place + FIRST_CONNECTION;
            let socket = Watched::new(poller, stream, Event::readable(key))?;
            Ok(Connection::new(socket, key, id, peer, origin))
        })
    }

    fn serve_one(&mut self, place: usize, event: &Event) {
        let Some(connection) = self.seats.at(place) else { return };
        let watched = connection.stream().is_some();
        let fate = connection.ready(event, &mut self.scratch, &mut self.service);
        self.after_turn(place, watched, fate);
    }

    /// What a client's turn means for the next ones.
    fn after_turn(&mut self, place: usize, watched: bool, mut fate: Fate) {
        let Some(connection) = self.seats.at(place) else { return };
        if connection.has_yielded() && !self.yielded.contains(&place) {
            self.yielded.push(place);
        }
        if let (false, Some(what)) = (watched, connection.stream()) {
            fate = self.begin_stream(place, what);
        }
        self.conclude(place, fate);
    }

    fn begin_stream(&mut self, place: usize, what: Stream) -> Fate {
        let Some(connection) = self.seats.at(place) else { return Fate::Stays };
        let (id, peer, most) = (connection.id(), *connection.peer(), self.service.limits().streams_per_user);
        if !peer.unlimited && self.audience.streams_of(peer.uid) >= most {
            connection
                .refuse(&Refusal::QuotaExceeded { quota: "streams of one user".into(), limit: most as u64 });
            return connection.progress(&mut self.service);
        }
        self.audience.join(place, id, peer, what, self.service.now_ns());
        self.tell_of_audience();
        Fate::Stays
    }

    fn tell_of_audience(&mut self) {
        self.service.set_watchers(self.audience.of_domains());
        self.service.set_listened(!self.audience.of_spans().is_empty());
    }

    /// Lets a connection go that is over, or that no longer watches what it watched.
    fn conclude(&mut self, place: usize, fate: Fate) {
        let Some(connection) = self.seats.at(place) else { return };
        let (id, peer) = (connection.id(), *connection.peer());
        let watches = connection.stream().is_some() && fate == Fate::Stays;
        if !watches && self.audience.leave(id) {
            self.tell_of_audience();
        }
        if fate == Fate::Over {
            self.seats.leave(place);
            self.service.vanished(id);
            if let Some(gate) = &mut self.gate {
                gate.left(&peer);
            }
        }
    }

    /// Takes in readings and hands out what became final.
    fn pump(&mut self) {
        let mut finals = std::mem::take(&mut self.finals);
        self.service.pump(&mut finals);
        for Final { account, ticket } in finals.drain(..) {
            self.tell_span(&account);
            if let Some(ticket) = ticket {
                self.answer(ticket, &account);
            }
        }
        for (ticket, answer) in self.service.take_replies() {
            self.fill(ticket, &answer, true);
        }
        for place in self.audience.of_spans() {
            self.progress(place);
        }
        finals.shrink_to(1024);
        self.finals = finals;
        self.pump_at_ns = self.service.next_pump_ns(self.service.now_ns());
    }

    fn progress(&mut self, place: usize) {
        let Some(connection) = self.seats.at(place) else { return };
        let watched = connection.stream().is_some();
        let fate = connection.progress(&mut self.service);
        self.after_turn(place, watched, fate);
    }

    fn answer(&mut self, ticket: Ticket, account: &Account) {
        self.fill(ticket, &told::once(account), false);
    }

    fn fill(&mut self, ticket: Ticket, answer: &[u8], asked: bool) {
        let Some(place) = self.seats.place_of(ticket.connection) else { return };
        let Some(connection) = self.seats.at(place) else { return };
        connection.fill(ticket.slot, answer, asked);
        self.progress(place);
    }

    fn tell_span(&mut self, account: &Account) {
        let places = self.audience.of_span(account.uid, coarse::fits(account));
        if !places.is_empty() {
            self.tell(&told::again(account), &places);
        }
    }

    fn tell_domains(&mut self, now_ns: u64) {
        let places = self.audience.take_due(now_ns);
        if !places.is_empty() {
            let mut answer = Vec::new();
            Reply::one_of_many(self.service.tick()).write(&mut answer);
            self.tell(&answer, &places);
            places.into_iter().for_each(|place| self.progress(place));
        }
    }

    /// One more answer for those who watch; sent with the next progress.
    fn tell(&mut self, answer: &[u8], places: &[usize]) {
        let most_unread = self.service.limits().unread_bytes;
        for &place in places {
            let Some(connection) = self.seats.at(place) else { continue };
            let fate = connection.push(answer, most_unread);
            self.conclude(place, fate);
        }
    }

    /// Gives up clients that make no progress, and memory that they no longer need.
    fn sweep(&mut self, now_ns: u64) {
        self.sweep_at_ns = now_ns + SWEEP_NS;
        let stall_ns = (self.service.limits().stall_s * 1e9) as u64;
        for place in self.seats.places() {
            let Some(connection) = self.seats.at(place) else { continue };
            connection.trim();
            if connection.is_stuck(now_ns, stall_ns) {
                self.conclude(place, Fate::Over);
            }
        }
    }

    /// Nobody new comes in; who waits for a final account gets it if it comes soon, else the account so far.
    fn farewell(&mut self, events: &mut Events) -> io::Result<()> {
        self.gate = None;
        self.stop = None;
        let end_ns = self.service.now_ns() + FAREWELL_NS;
        while self.service.waiting() > 0 && self.service.now_ns() < end_ns {
            self.turn(events)?;
        }
        for (ticket, account) in self.service.give_up_waiting() {
            self.answer(ticket, &account);
        }
        self.service.end();
        Ok(())
    }
}
