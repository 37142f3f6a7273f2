//! Answers without end, as an iterator.
//!
//! Owns a connection for as long as the daemon sends. Ends after the last answer or the first failure.

use std::marker::PhantomData;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::client_error::ClientError;
use super::varlink_connection::VarlinkConnection;

/// Answers to one call with `more`. A time-out ends it, as any failure does; by default there is the client's.
#[derive(Debug)]
pub struct ReplyStream<T> {
    connection: VarlinkConnection,
    ended: bool,
    reply: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> ReplyStream<T> {
    pub(super) fn new(connection: VarlinkConnection) -> Self {
        ReplyStream { connection, ended: false, reply: PhantomData }
    }

    /// How long to wait for the next answer; `None`: for ever.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), ClientError> {
        self.connection.set_timeout(timeout)
    }
}

impl<T: DeserializeOwned> Iterator for ReplyStream<T> {
    type Item = Result<T, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.connection.receive::<T>().and_then(|reply| reply) {
            Ok(received) => {
                self.ended = !received.continues;
                Some(Ok(received.value))
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        }
    }
}
