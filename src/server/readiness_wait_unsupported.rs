//! The wait for the sockets of a poller, where there is no epoll: the poller's own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use polling::{Events, Poller};

use super::readiness::Readiness;

/// Waits for the sockets that are registered with a poller.
pub struct ReadinessWaiter {
    poller: Arc<Poller>,
    events: Events,
}

impl ReadinessWaiter {
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
