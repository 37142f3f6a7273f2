//! Which client sits where.
//!
//! Owns the table from places to connections. A place is given again after its client left, an id never: whoever holds
//! an id of somebody who left finds nobody, not the next one in that place.

use std::io;

use super::connection::Connection;
use crate::service::access::AccessPolicy;
use crate::service::reply_to::ConnectionId;

/// The bits of an id that are the place; the rest is a serial number.
const PLACE_BITS: u32 = 24;

/// All seats.
#[derive(Default)]
pub struct Seats {
    taken: Vec<Option<Connection>>,
    vacant: Vec<usize>,
    present: usize,
    serial: u64,
}

impl Seats {
    /// Seats the client that `make` makes of a place and an id.
    pub fn seat(
        &mut self,
        make: impl FnOnce(usize, ConnectionId) -> io::Result<Connection>,
    ) -> io::Result<()> {
        let place = self.vacant.last().copied().unwrap_or(self.taken.len());
        self.serial += 1;
        let connection = make(place, self.serial << PLACE_BITS | place as u64)?;
        if self.vacant.pop().is_some() {
            self.taken[place] = Some(connection);
        } else {
            self.taken.push(Some(connection));
        }
        self.present += 1;
        Ok(())
    }

    /// Who sits there.
    pub fn at(&mut self, place: usize) -> Option<&mut Connection> {
        self.taken.get_mut(place)?.as_mut()
    }

    /// Where this client sits, if it is still here.
    pub fn place_of(&self, id: ConnectionId) -> Option<usize> {
        let place = (id & ((1 << PLACE_BITS) - 1)) as usize;
        let connection = self.taken.get(place)?.as_ref()?;
        (connection.id() == id).then_some(place)
    }

    /// Judges everybody by another rule; gives the places of those who watch and may do something else now.
    pub fn rejudge(&mut self, policy: &AccessPolicy) -> Vec<usize> {
        let judged = |(place, seat): (usize, &mut Option<Connection>)| {
            let connection = seat.as_mut()?;
            (connection.rejudge(policy) && connection.stream().is_some()).then_some(place)
        };
        self.taken.iter_mut().enumerate().filter_map(judged).collect()
    }

    /// Gives memory back that bursts took; gives the places of those who make no progress.
    pub fn sweep(&mut self, now_ns: u64, stall_ns: u64) -> Vec<usize> {
        let swept = |(place, seat): (usize, &mut Option<Connection>)| {
            let connection = seat.as_mut()?;
            connection.trim();
            connection.is_stuck(now_ns, stall_ns).then_some(place)
        };
        self.taken.iter_mut().enumerate().filter_map(swept).collect()
    }

    /// Whether somebody is owed something, and has taken some of it within `stall_ns`.
    pub fn is_anybody_owed(&self, now_ns: u64, stall_ns: u64) -> bool {
        self.taken.iter().flatten().any(|seat| seat.is_owed() && !seat.is_stuck(now_ns, stall_ns))
    }

    /// The client leaves; its socket closes.
    pub fn leave(&mut self, place: usize) {
        if self.taken.get_mut(place).and_then(Option::take).is_some() {
            self.vacant.push(place);
            self.present -= 1;
        }
    }

    /// How many there are.
    pub fn present(&self) -> usize {
        self.present
    }
}
