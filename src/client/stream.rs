//! Answers without end, as an iterator.
//!
//! Owns a connection for as long as the daemon sends. Ends after the last answer or the first failure.

use std::marker::PhantomData;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::connection::Connection;
use super::failure::Failure;

/// Answers to one call with `more`. A time-out ends it, as any failure does; by default there is the client's.
#[derive(Debug)]
pub struct Stream<T> {
    connection: Connection,
    ended: bool,
    answers: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Stream<T> {
    pub(super) fn new(connection: Connection) -> Self {
        Stream { connection, ended: false, answers: PhantomData }
    }

    /// How long to wait for the next answer; `None`: for ever.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), Failure> {
        self.connection.set_timeout(timeout)
    }
}

impl<T: DeserializeOwned> Iterator for Stream<T> {
    type Item = Result<T, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.connection.receive::<T>().and_then(|answer| answer) {
            Ok(received) => {
                self.ended = !received.continues;
                Some(Ok(received.value))
            }
            Err(failure) => {
                self.ended = true;
                Some(Err(failure))
            }
        }
    }
}
