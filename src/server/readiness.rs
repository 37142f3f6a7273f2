//! The wait for the sockets of a poller, and what it reports.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use polling::{Events, Poller};

/// The readiness of one registered socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// The key of its registration.
    pub key: usize,
    /// There is input, the end of the input, or an error.
    pub is_readable: bool,
    /// Both directions are shut down.
    pub is_interrupted: bool,
}

impl From<polling::Event> for Readiness {
    fn from(event: polling::Event) -> Self {
        Self { key: event.key, is_readable: event.readable, is_interrupted: event.is_interrupt() }
    }
}

/// Waits with the poller's own means.
pub struct PollerWaiter {
    /// The poller whose sockets it waits for.
    pub poller: Arc<Poller>,
    events: Events,
}

impl PollerWaiter {
    pub fn new(poller: &Arc<Poller>) -> Self {
        Self { poller: Arc::clone(poller), events: Events::new() }
    }

    /// Waits until a socket is ready, the poller is notified, or `timeout` has passed; replaces `ready` by what is ready.
    pub fn wait(&mut self, timeout: Duration, ready: &mut Vec<Readiness>) -> io::Result<()> {
        ready.clear();
        self.events.clear();
        self.poller.wait(&mut self.events, Some(timeout))?;
        ready.extend(self.events.iter().map(Readiness::from));
        Ok(())
    }
}
