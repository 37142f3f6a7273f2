//! The Unix-socket door: one thread that takes turns between its clients and the service.
//!
//! Owns the connections, the limits on how many there are, and when to look up. Every turn does a bounded amount for
//! each client (one buffer of input), so that none can keep the others waiting. Sleeps until somebody says something
//! or the service has something due: idle costs nothing.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use polling::{Event, Events, Poller};

use super::audience::Audience;
use super::connection::{Connection, Fate};
use super::doors::Doors;
use super::exchange::Stream;
use super::gate::{Admitted, Gate};
use super::identity::Identity;
use super::readiness_ffi::Watched;
use super::seat::Seats;
use super::turns::Turns;
use crate::protocol::{Access, Refusal};
use crate::service::service::{FinalAccount, Service};
use crate::unix_socket as peer;

const LISTENER: usize = 0;
const STOP: usize = 1;
const ARRIVALS: usize = 2;
const RELOAD: usize = 3;
const FIRST_CONNECTION: usize = 4;

/// What one client's turn may read.
const SCRATCH_BYTES: usize = 64 * 1024;

/// How long waiting closes may still settle when the service ends.
const FAREWELL_NS: u64 = 200_000_000;

/// How long the end then waits for clients that take what they are owed, and for one that takes nothing.
const LONGEST_FAREWELL_NS: u64 = 4_000_000_000;
const UNTAKEN_NS: u64 = 1_000_000_000;

/// How often it looks whether all have it.
const FAREWELL_STEP_NS: u64 = 20_000_000;

/// Serves until told to stop. Fails only where the system gives no poller.
pub fn serve(service: Service, doors: Doors) -> io::Result<()> {
    let mut door = Door::new(service, doors)?;
    let mut events = Events::new();
    door.service.notify_ready();
    while !door.is_done() {
        door.turn(&mut events, u64::MAX)?;
    }
    door.farewell(&mut events)
}

/// Turns of clients between two looks at the sockets; at least one is taken.
const TURNS_NS: u64 = 100_000;

/// How often clients that make no progress are looked for.
const SWEEP_NS: u64 = 500_000_000;

pub(crate) struct Door {
    pub(crate) service: Service,
    pub(crate) poller: Arc<Poller>,
    pub(crate) gate: Option<Gate>,
    pub(crate) stop: Option<Watched<UnixStream>>,
    pub(crate) reload: Option<Watched<UnixStream>>,
    pub(crate) stopping: bool,
    pub(crate) seats: Seats,
    pub(crate) audience: Audience,
    /// Places of those whose turn ended before their messages did.
    pub(crate) yielded: Vec<usize>,
    turns: Turns,
    turn_number: u64,
    pub(crate) scratch: Vec<u8>,
    pub(crate) finals: Vec<FinalAccount>,
    pub(crate) pump_at_ns: u64,
    pub(crate) sweep_at_ns: u64,
}

/// A client that has something to say.
struct Ready {
    rank: (u64, u64),
    place: usize,
    uid: u32,
    /// None where its last turn ended before its messages did.
    event: Option<Event>,
}

impl Door {
    fn new(service: Service, doors: Doors) -> io::Result<Self> {
        let poller = Arc::new(Poller::new()?);
        let (policy, limits) = (*service.policy(), service.limits().clone());
        let waker = Arc::clone(&poller);
        service.set_waker(move || drop(waker.notify()));
        let beside = doors.arrivals.map(|arrivals| (ARRIVALS, arrivals));
        let listeners = Some(doors.listeners).filter(|listeners| !listeners.is_empty());
        let gate = listeners.map(|sockets| Gate::new(&poller, LISTENER, sockets, beside, policy, limits));
        let stop = doors.stop.map(|stop| Watched::new(&poller, stop, Event::readable(STOP)));
        let reload = doors.reload.map(|reload| Watched::new(&poller, reload, Event::readable(RELOAD)));
        let mut door = Self {
            gate: gate.transpose()?,
            stop: stop.transpose()?,
            reload: reload.transpose()?,
            stopping: false,
            poller,
            seats: Seats::default(),
            audience: Audience::default(),
            yielded: Vec::new(),
            turns: Turns::default(),
            turn_number: 0,
            scratch: vec![0; SCRATCH_BYTES],
            finals: Vec::new(),
            pump_at_ns: 0,
            sweep_at_ns: 0,
            service,
        };
        for stream in doors.connections {
            stream.set_nonblocking(true)?;
            let (credentials, pid) = (peer::credentials(stream.as_fd())?, peer::process(stream.as_fd()));
            door.seat(Admitted { stream, peer: policy.daemon_peer(), credentials, pid })?;
        }
        Ok(door)
    }

    fn is_done(&self) -> bool {
        self.stopping || (self.seats.present() == 0 && self.gate.is_none() && self.stop.is_none())
    }

    /// Sleeps until something happens or is due, at most until `latest_ns`, and does it.
    fn turn(&mut self, events: &mut Events, latest_ns: u64) -> io::Result<()> {
        let now_ns = self.service.now_ns();
        self.pump_at_ns = self.pump_at_ns.min(self.service.next_poll_ns(now_ns));
        let wake_at_ns = if self.yielded.is_empty() { self.wake_at_ns() } else { now_ns };
        let sleep = Duration::from_nanos(wake_at_ns.min(latest_ns).saturating_sub(now_ns));
        events.clear();
        self.poller.wait(events, Some(sleep))?;
        let yielded = std::mem::take(&mut self.yielded);
        let mut ready: Vec<Ready> = yielded.into_iter().filter_map(|place| self.ready(place, None)).collect();
        for event in events.iter() {
            match event.key {
                LISTENER | ARRIVALS => self.admit(),
                STOP => self.stopping = true,
                RELOAD => self.reload(),
                key => ready.extend(self.ready(key - FIRST_CONNECTION, Some(event))),
            }
        }
        self.take_turns(ready);
        if self.service.take_new_settings() {
            self.renew();
        }
        let now_ns = self.service.now_ns();
        self.service.notify_watchdog(now_ns);
        if now_ns >= self.pump_at_ns || self.service.has_store_events() {
            self.pump();
        }
        self.tell_domains(now_ns);
        if now_ns >= self.sweep_at_ns {
            self.sweep(now_ns);
        }
        self.gate.as_mut().map_or(Ok(()), |gate| gate.resume(now_ns))
    }

    fn ready(&mut self, place: usize, event: Option<Event>) -> Option<Ready> {
        let connection = self.seats.at(place)?;
        let uid = connection.peer().uid;
        Some(Ready { rank: (self.turns.rank(uid), connection.latest_turn()), place, uid, event })
    }

    /// Turns of those who have something to say, the users first that have used least. Who has to wait is ready again at
    /// the next look, since readiness is level-triggered.
    fn take_turns(&mut self, mut ready: Vec<Ready>) {
        ready.sort_by_key(|ready| ready.rank);
        let mut now_ns = self.service.now_ns();
        // What was said before the end is heard whole.
        let end_ns = if self.stopping { u64::MAX } else { now_ns + TURNS_NS };
        for (number, Ready { place, uid, event, .. }) in ready.into_iter().enumerate() {
            if number > 0 && now_ns >= end_ns {
                if event.is_none() {
                    self.yielded.push(place);
                }
                continue;
            }
            let Some(connection) = self.seats.at(place) else { continue };
            self.turn_number += 1;
            connection.begin_turn(self.turn_number, self.turns.length_ns(now_ns));
            let watched = connection.stream().is_some();
            let fate = match event {
                Some(event) => connection.ready(&event, &mut self.scratch, &mut self.service),
                None => connection.resume(&mut self.service),
            };
            self.after_turn(place, watched, fate);
            let ended_ns = self.service.now_ns();
            self.turns.charge(uid, ended_ns - now_ns, ended_ns);
            now_ns = ended_ns;
        }
    }

    fn wake_at_ns(&self) -> u64 {
        let resume = self.gate.as_ref().and_then(Gate::resume_at_ns);
        [self.audience.due_ns(), resume, self.service.watchdog_due_ns()]
            .into_iter()
            .flatten()
            .fold(self.pump_at_ns, u64::min)
    }

    fn admit(&mut self) {
        let now_ns = self.service.now_ns();
        let admitted = self.gate.as_mut().map_or_else(Vec::new, |gate| gate.admit(now_ns));
        for admitted in admitted {
            let peer = admitted.peer;
            let seated = self.seat(admitted);
            if let (Err(_), Some(gate)) = (seated, &mut self.gate) {
                // The poller could not take it: the socket is closed, and its place is given back.
                gate.left(&peer);
            }
        }
    }

    /// A signal asked for it; however many did, once is enough. What became of it is in the log.
    fn reload(&mut self) {
        let Some(reload) = &self.reload else { return };
        match (&**reload).read(&mut self.scratch) {
            Ok(0) => self.reload = None,
            _ => drop(self.service.reload()),
        }
    }

    /// Other limits and another rule hold, for those who are here already too; who watches and may no longer is let go.
    fn renew(&mut self) {
        let (policy, limits) = (*self.service.policy(), self.service.limits().clone());
        self.gate.iter_mut().for_each(|gate| gate.renew(policy, limits.clone()));
        for place in self.seats.rejudge(&policy) {
            self.conclude(place, Fate::Over);
        }
    }

    /// Gives a client its place.
    fn seat(&mut self, admitted: Admitted) -> io::Result<()> {
        let poller = &self.poller;
        let Admitted { stream, peer, credentials, pid } = admitted;
        // Now, so that a later process of the same number is not taken for it.
        let origin = self.service.identify_process(pid.filter(|_| peer.access >= Access::Coarse));
        self.seats.seat(|place, id| {
            let key = place + FIRST_CONNECTION;
            let socket = Watched::new(poller, stream, Event::readable(key))?;
            Ok(Connection::new(socket, key, id, Identity { peer, credentials, origin }))
        })
    }

    /// What a client's turn means for the next ones.
    pub(crate) fn after_turn(&mut self, place: usize, watched: bool, mut fate: Fate) {
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
        self.service.set_domain_watchers(self.audience.of_domains());
        self.service.set_span_watchers(!self.audience.of_spans().is_empty());
    }

    /// Lets a connection go that is over, or that no longer watches what it watched.
    pub(crate) fn conclude(&mut self, place: usize, fate: Fate) {
        let Some(connection) = self.seats.at(place) else { return };
        let (id, peer) = (connection.id(), *connection.peer());
        let watches = connection.stream().is_some() && fate == Fate::Stays;
        if !watches && self.audience.leave(id) {
            self.tell_of_audience();
        }
        if fate == Fate::Over {
            self.seats.leave(place);
            self.service.close_connection(id);
            if let Some(gate) = &mut self.gate {
                gate.left(&peer);
            }
        }
    }

    /// Gives up clients that make no progress, and memory that they no longer need.
    fn sweep(&mut self, now_ns: u64) {
        self.sweep_at_ns = now_ns + SWEEP_NS;
        for place in self.seats.sweep(now_ns, (self.service.limits().stall_s * 1e9) as u64) {
            self.conclude(place, Fate::Over);
        }
    }

    /// Nobody new comes in. What was said is heard; who waits for a final account gets it if it comes soon, else the account
    /// so far; and who reads gets all of its answers.
    fn farewell(&mut self, events: &mut Events) -> io::Result<()> {
        self.service.notify_stopping();
        (self.gate, self.stop, self.reload) = (None, None, None);
        let begun_ns = self.service.now_ns();
        self.turn(events, begun_ns)?;
        loop {
            let now_ns = self.service.now_ns();
            if now_ns >= begun_ns + FAREWELL_NS {
                self.give_up_waiting();
            }
            let owing = self.service.waiting_replies() > 0 || self.seats.is_anybody_owed(now_ns, UNTAKEN_NS);
            if !owing || now_ns >= begun_ns + LONGEST_FAREWELL_NS {
                break;
            }
            self.turn(events, now_ns + FAREWELL_STEP_NS)?;
        }
        self.service.shut_down();
        Ok(())
    }
}
