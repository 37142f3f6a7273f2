//! The table of connections.
//!
//! Maps indexes to connections. An index is reused after its connection closes. IDs are never reused, so a
//! stale ID resolves to `None`.

use std::io;

use super::connection::{ClientConnection, StallTimeouts};
use crate::service::access::AccessPolicy;
use crate::service::caller::ConnectionId;

/// The low bits of an ID are the index, the others a serial number.
const INDEX_BITS: u32 = 24;

#[derive(Default)]
pub struct ConnectionTable {
    slots: Vec<Option<ClientConnection>>,
    free_indexes: Vec<usize>,
    len: usize,
    serial: u64,
}

impl ConnectionTable {
    /// Inserts the connection that `create` returns for an index and an id.
    pub fn insert(
        &mut self,
        create: impl FnOnce(usize, ConnectionId) -> io::Result<ClientConnection>,
    ) -> io::Result<()> {
        let index = self.free_indexes.last().copied().unwrap_or(self.slots.len());
        self.serial += 1;
        let connection = create(index, self.serial << INDEX_BITS | index as u64)?;
        if self.free_indexes.pop().is_some() {
            self.slots[index] = Some(connection);
        } else {
            self.slots.push(Some(connection));
        }
        self.len += 1;
        Ok(())
    }

    pub fn get_mut(&mut self, index: usize) -> Option<&mut ClientConnection> {
        self.slots.get_mut(index)?.as_mut()
    }

    /// The index of a connection, if it is still open.
    pub fn index_of(&self, id: ConnectionId) -> Option<usize> {
        let index = (id & ((1 << INDEX_BITS) - 1)) as usize;
        let connection = self.slots.get(index)?.as_ref()?;
        (connection.id() == id).then_some(index)
    }

    /// The index of the connection that was inserted last.
    pub fn newest_index(&self) -> Option<usize> {
        let ids = |(index, slot): (usize, &Option<ClientConnection>)| Some((slot.as_ref()?.id(), index));
        self.slots.iter().enumerate().filter_map(ids).max().map(|(_, index)| index)
    }

    /// Applies a new policy to all connections. Returns the indexes of those whose access changed.
    pub fn apply_policy(&mut self, policy: &AccessPolicy) -> Vec<usize> {
        let changed = |(index, slot): (usize, &mut Option<ClientConnection>)| {
            slot.as_mut()?.apply_policy(policy).then_some(index)
        };
        self.slots.iter_mut().enumerate().filter_map(changed).collect()
    }

    /// Releases unused memory. Returns the indexes of the connections that make no progress.
    pub fn shrink_and_find_stalled(&mut self, now_ns: u64, timeouts: StallTimeouts) -> Vec<usize> {
        let stalled = |(index, slot): (usize, &mut Option<ClientConnection>)| {
            let connection = slot.as_mut()?;
            connection.shrink_buffers();
            connection.is_stalled(now_ns, timeouts).then_some(index)
        };
        self.slots.iter_mut().enumerate().filter_map(stalled).collect()
    }

    /// Whether a connection has pending input or output and made progress within `stall_ns`.
    pub fn has_pending_io(&self, now_ns: u64, stall_ns: u64) -> bool {
        let timeouts = StallTimeouts { message_ns: stall_ns, unread_ns: stall_ns };
        self.slots.iter().flatten().any(|slot| slot.has_pending_io() && !slot.is_stalled(now_ns, timeouts))
    }

    pub fn remove(&mut self, index: usize) {
        if self.slots.get_mut(index).and_then(Option::take).is_some() {
            self.free_indexes.push(index);
            self.len -= 1;
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }
}
