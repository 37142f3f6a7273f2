//! A socket that is registered with a poller, level-triggered, for as long as it lives.
//!
//! `Poller::add` is unsafe because a source must be deleted before it is closed. [`RegisteredSocket`] owns
//! both the socket and its registration, and deletes before it closes.
#![allow(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use polling::{Event, PollMode, Poller};

/// Sockets of the standard library, whose descriptor does not change until they are dropped.
pub trait PollableSocket: std::os::fd::AsFd + std::os::fd::AsRawFd {}

impl PollableSocket for UnixListener {}
impl PollableSocket for UnixStream {}

#[derive(Debug)]
pub struct RegisteredSocket<S: PollableSocket> {
    poller: Arc<Poller>,
    socket: S,
    interest: Event,
}

impl<S: PollableSocket> RegisteredSocket<S> {
    /// Registers `socket` with the key and the events of `interest`.
    pub fn new(poller: &Arc<Poller>, socket: S, interest: Event) -> io::Result<Self> {
        // SAFETY: `drop` deletes the socket from the same poller before the socket is closed. The field is
        // private and never moved out, and a `PollableSocket` keeps its descriptor until it is dropped.
        unsafe { poller.add_with_mode(&socket, interest, PollMode::Level)? };
        Ok(Self { poller: Arc::clone(poller), socket, interest })
    }

    /// Changes the interest. Makes no system call if it is unchanged.
    pub fn set_interest(&mut self, interest: Event) -> io::Result<()> {
        if interest != self.interest {
            self.poller.modify_with_mode(&self.socket, interest, PollMode::Level)?;
            self.interest = interest;
        }
        Ok(())
    }
}

impl<S: PollableSocket> Deref for RegisteredSocket<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.socket
    }
}

impl<S: PollableSocket> Drop for RegisteredSocket<S> {
    fn drop(&mut self) {
        // This fails only if the socket is not registered, which is the intended state.
        let _ = self.poller.delete(&self.socket);
    }
}
