//! A socket that is watched for readiness, level-triggered, as long as it lives.
//!
//! Owns the one promise that makes `polling` safe: what is added is deleted before it is closed. `Poller::add` is
//! unsafe only because nothing else ties the two together; [`RegisteredSocket`] does, by owning both.
#![allow(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use polling::{Event, PollMode, Poller};

/// What can be watched: sockets of the standard library, whose descriptor never changes.
pub trait PollableSocket: std::os::fd::AsFd + std::os::fd::AsRawFd {}

impl PollableSocket for UnixListener {}
impl PollableSocket for UnixStream {}

/// A socket and its place in the poller.
#[derive(Debug)]
pub struct RegisteredSocket<S: PollableSocket> {
    poller: Arc<Poller>,
    socket: S,
    interest: Event,
}

impl<S: PollableSocket> RegisteredSocket<S> {
    /// Watches `socket` for what `interest` says, under its key.
    pub fn new(poller: &Arc<Poller>, socket: S, interest: Event) -> io::Result<Self> {
        // SAFETY: `drop` deletes the socket from this very poller before the socket is closed, the field is
        // private and never moved out, and a `PollableSocket` keeps its descriptor until it is dropped.
        unsafe { poller.add_with_mode(&socket, interest, PollMode::Level)? };
        Ok(Self { poller: Arc::clone(poller), socket, interest })
    }

    /// Watches for something else from now on; costs nothing where that is what it does already.
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
        // Fails only where the socket is not in the poller, which is what is wanted.
        let _ = self.poller.delete(&self.socket);
    }
}
