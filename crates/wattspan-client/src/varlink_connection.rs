//! Sends and receives Varlink messages over one blocking socket.
//!
//! The connection is synchronized between calls, and desynchronized after an error, a timeout or an incomplete call:
//! it is then unknown which call the next reply belongs to. Invariant: the read buffer holds one message of at most
//! [`MAX_MESSAGE_BYTES`] bytes and the bytes read with it.

use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::client_error::ClientError;
use crate::protocol::{Call, IncomingReply, MESSAGE_TERMINATOR, Method};

/// The longest accepted message.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// The length of the first read of a message. Each further one is as long as what was read so far, up to [`MAX_READ_BYTES`].
const READ_BYTES: usize = 16 << 10;

/// The longest read; the kernel's buffer of a socket has about as much.
const MAX_READ_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub struct VarlinkConnection {
    stream: UnixStream,
    write_buffer: Vec<u8>,
    read_buffer: Vec<u8>,
    /// The length of the part of `read_buffer` that was returned already.
    consumed: usize,
    /// False from the start of an operation until it is complete.
    synchronized: bool,
}

/// The parameters of a reply that is no error.
#[derive(Debug)]
pub struct ReceivedReply<T> {
    pub value: T,
    /// More replies to the same call follow.
    pub continues: bool,
}

impl VarlinkConnection {
    /// `stream` must be blocking.
    pub fn new(stream: UnixStream) -> Self {
        VarlinkConnection {
            stream,
            write_buffer: Vec::new(),
            read_buffer: Vec::new(),
            consumed: 0,
            synchronized: true,
        }
    }

    /// Sets the timeout of one read or write.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), ClientError> {
        // The socket rejects a timeout of zero; the shortest one has the same effect.
        let timeout = timeout.map(|given| given.max(Duration::from_micros(1)));
        let set = self.stream.set_read_timeout(timeout).and_then(|()| self.stream.set_write_timeout(timeout));
        set.map_err(ClientError::Io)
    }

    /// Queues a call for the next [`VarlinkConnection::flush`].
    pub fn queue<M: Method>(&mut self, call: &Call<M>) {
        call.encode(&mut self.write_buffer);
    }

    pub fn send<M: Method>(&mut self, call: &Call<M>) -> Result<(), ClientError> {
        self.queue(call);
        self.flush()
    }

    pub fn queued_bytes(&self) -> usize {
        self.write_buffer.len()
    }

    /// Writes the queued calls.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.begin_operation()?;
        let written = self.stream.write_all(&self.write_buffer);
        self.write_buffer.clear();
        written.map_err(ClientError::from_io)?;
        self.synchronized = true;
        Ok(())
    }

    /// Receives the next reply. After the outer error the connection is desynchronized; the inner error is that of the
    /// method.
    #[allow(clippy::type_complexity)]
    pub fn receive<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Result<ReceivedReply<T>, ClientError>, ClientError> {
        let message = self.receive_message()?;
        self.begin_operation()?;
        let message = self.message(message);
        let reply =
            IncomingReply::parse(message).map_err(|error| ClientError::InvalidReply(error.to_string()))?;
        let continues = reply.continues();
        let outcome = match reply.into_result::<T>() {
            Ok(Ok(value)) => Ok(ReceivedReply { value, continues }),
            Ok(Err(method_error)) => Err(ClientError::Method(method_error)),
            Err(error) => Err(ClientError::from_unknown_reply(message, &error.to_string())),
        };
        self.synchronized = true;
        Ok(outcome)
    }

    /// Receives the next message; [`VarlinkConnection::message`] has it until the next one is received.
    pub fn receive_message(&mut self) -> Result<Range<usize>, ClientError> {
        self.begin_operation()?;
        let (from, to) = self.next_message()?;
        self.consumed = to + 1;
        self.synchronized = true;
        Ok(from..to)
    }

    /// A received message, without its terminator.
    pub fn message(&self, received: Range<usize>) -> &[u8] {
        self.read_buffer.get(received).unwrap_or_default()
    }

    /// Leaves the connection desynchronized until the operation is complete.
    fn begin_operation(&mut self) -> Result<(), ClientError> {
        if !std::mem::replace(&mut self.synchronized, false) {
            return Err(ClientError::Desynchronized);
        }
        Ok(())
    }

    /// The range of the next message in `read_buffer`, without its terminator.
    fn next_message(&mut self) -> Result<(usize, usize), ClientError> {
        let mut searched = self.consumed;
        loop {
            let unsearched = self.read_buffer.get(searched..).unwrap_or_default();
            if let Some(at) = memchr::memchr(MESSAGE_TERMINATOR, unsearched) {
                return Ok((self.consumed, searched + at));
            }
            self.read_buffer.drain(..self.consumed);
            self.consumed = 0;
            searched = self.read_buffer.len();
            if searched > MAX_MESSAGE_BYTES {
                return Err(ClientError::InvalidReply(format!(
                    "a message of more than {MAX_MESSAGE_BYTES} bytes"
                )));
            }
            self.fill_buffer()?;
        }
    }

    fn fill_buffer(&mut self) -> Result<(), ClientError> {
        let filled = self.read_buffer.len();
        self.read_buffer.resize(filled + filled.clamp(READ_BYTES, MAX_READ_BYTES), 0);
        loop {
            let outcome = self.stream.read(self.read_buffer.get_mut(filled..).unwrap_or_default());
            match outcome {
                // The kernel does not restart a read with a timeout after a signal handler (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.read_buffer.truncate(filled);
                    return Err(ClientError::from_io(error));
                }
                Ok(0) => return Err(ClientError::ConnectionClosed),
                Ok(count) => {
                    self.read_buffer.truncate(filled + count);
                    return Ok(());
                }
            }
        }
    }
}
