//! Messages in and out of one socket.
//!
//! Owns the framing and the state of the connection: `Ready` between calls, `Given up` after anything that leaves it
//! unknown which answer comes next (an error, a time-out, a call cut short). Never holds more than one message of at
//! most [`LARGEST_MESSAGE`] bytes and what was read with it.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::failure::Failure;
use crate::protocol::{Answer, Call, END, Method};

/// A daemon that sends more than this without an end is not one.
const LARGEST_MESSAGE: usize = 64 << 20;

/// What one read asks for.
const READ_SIZE: usize = 16 << 10;

/// One socket with what was read of it.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    /// Where the unread part of `incoming` begins.
    read_to: usize,
    /// False from the moment a call is begun until its answer is whole.
    in_step: bool,
}

/// An answer, and whether more follow.
#[derive(Debug)]
pub struct Received<T> {
    /// What the method gave.
    pub value: T,
    /// More answers to the same call follow.
    pub continues: bool,
}

impl Connection {
    /// A connection over `stream`, which must be blocking.
    pub fn new(stream: UnixStream) -> Self {
        Connection { stream, outgoing: Vec::new(), incoming: Vec::new(), read_to: 0, in_step: true }
    }

    /// How long one read or write may take.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), Failure> {
        // A zero time-out is refused by the socket; the shortest there is means the same.
        let timeout = timeout.map(|given| given.max(Duration::from_micros(1)));
        let set = self.stream.set_read_timeout(timeout).and_then(|()| self.stream.set_write_timeout(timeout));
        set.map_err(Failure::Socket)
    }

    /// Appends a call to what the next [`Connection::flush`] writes.
    pub fn queue<M: Method>(&mut self, call: &Call<M>) {
        call.write(&mut self.outgoing);
    }

    /// Writes a call at once.
    pub fn send<M: Method>(&mut self, call: &Call<M>) -> Result<(), Failure> {
        self.queue(call);
        self.flush()
    }

    /// Bytes waiting for [`Connection::flush`].
    pub fn queued(&self) -> usize {
        self.outgoing.len()
    }

    /// Writes what was queued.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.begin()?;
        let written = self.stream.write_all(&self.outgoing);
        self.outgoing.clear();
        written.map_err(Failure::of_socket)?;
        self.in_step = true;
        Ok(())
    }

    /// The next answer. The outer error means that the connection is given up, the inner that the call was refused.
    #[allow(clippy::type_complexity)]
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<Result<Received<T>, Failure>, Failure> {
        self.begin()?;
        let (from, to) = self.whole_message()?;
        self.read_to = to + 1;
        let message = self.incoming.get(from..to).unwrap_or_default();
        let answer = Answer::read(message).map_err(|error| Failure::Nonsense(error.to_string()))?;
        let continues = answer.continues();
        let outcome = match answer.into_reply::<T>() {
            Ok(Ok(value)) => Ok(Received { value, continues }),
            Ok(Err(refusal)) => Err(Failure::Refused(refusal)),
            Err(error) => Err(Failure::strange(message, &error.to_string())),
        };
        self.in_step = true;
        Ok(outcome)
    }

    /// Leaves the connection out of step until what follows is done.
    fn begin(&mut self) -> Result<(), Failure> {
        if !std::mem::replace(&mut self.in_step, false) {
            return Err(Failure::GivenUp);
        }
        Ok(())
    }

    /// Where the next message lies in `incoming`, without its end.
    fn whole_message(&mut self) -> Result<(usize, usize), Failure> {
        let mut searched = self.read_to;
        loop {
            let unsearched = self.incoming.get(searched..).unwrap_or_default();
            if let Some(at) = unsearched.iter().position(|&byte| byte == END) {
                return Ok((self.read_to, searched + at));
            }
            self.incoming.drain(..self.read_to);
            self.read_to = 0;
            searched = self.incoming.len();
            if searched > LARGEST_MESSAGE {
                return Err(Failure::Nonsense(format!("a message of more than {LARGEST_MESSAGE} bytes")));
            }
            self.read_some()?;
        }
    }

    fn read_some(&mut self) -> Result<(), Failure> {
        let filled = self.incoming.len();
        self.incoming.resize(filled + READ_SIZE, 0);
        loop {
            let outcome = self.stream.read(self.incoming.get_mut(filled..).unwrap_or_default());
            match outcome {
                // A read with a time-out is not begun again by the kernel when a signal handler ran.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.incoming.truncate(filled);
                    return Err(Failure::of_socket(error));
                }
                Ok(0) => return Err(Failure::Gone),
                Ok(count) => {
                    self.incoming.truncate(filled + count);
                    return Ok(());
                }
            }
        }
    }
}
