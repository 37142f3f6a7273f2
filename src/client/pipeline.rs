//! Many calls of one kind, written together.
//!
//! Owns the balance between what was asked and what was answered: never more than [`MAX_IN_FLIGHT`] calls are unanswered,
//! so that neither side can wait for the other to read. Replies are kept in the order of the calls.

use std::sync::MutexGuard;

use super::client_error::ClientError;
use super::varlink_connection::VarlinkConnection;
use crate::protocol::{Call, Method};

/// Calls that may wait for their answers. An account has a few hundred bytes, a socket takes a few hundred thousand.
const MAX_IN_FLIGHT: usize = 64;

/// Calls on their way. Holds the connection: other calls of the same client wait until it is gone.
pub struct Pipeline<'client, M: Method> {
    connection: MutexGuard<'client, VarlinkConnection>,
    in_flight: usize,
    replies: Vec<Result<M::Reply, ClientError>>,
}

impl<'client, M: Method> Pipeline<'client, M> {
    pub(super) fn new(connection: MutexGuard<'client, VarlinkConnection>) -> Self {
        Pipeline { connection, in_flight: 0, replies: Vec::new() }
    }

    /// Adds a call; every 64th waits for the answers so far.
    pub fn push(&mut self, parameters: M) -> Result<(), ClientError> {
        self.connection.queue(&Call::new(parameters));
        self.in_flight += 1;
        if self.in_flight == MAX_IN_FLIGHT { self.receive_replies() } else { Ok(()) }
    }

    /// Waits for the answers: one for each call, in order. The outer error means that the connection is gone.
    pub fn finish(mut self) -> Result<Vec<Result<M::Reply, ClientError>>, ClientError> {
        self.receive_replies()?;
        Ok(std::mem::take(&mut self.replies))
    }

    fn receive_replies(&mut self) -> Result<(), ClientError> {
        if self.connection.queued_bytes() > 0 {
            self.connection.flush()?;
        }
        for _ in 0..std::mem::take(&mut self.in_flight) {
            let reply = self.connection.receive::<M::Reply>()?;
            self.replies.push(reply.map(|received| received.value));
        }
        Ok(())
    }
}

impl<M: Method> Drop for Pipeline<'_, M> {
    fn drop(&mut self) {
        // Calls that nobody waits for still happen, and their answers must not be taken for those of later calls. A
        // failure here marks the connection as given up, which the next call reports.
        let _ = self.receive_replies();
    }
}
