//! The timeout for a request body of which no byte arrives.
//!
//! The time runs only while the body waits for the client, and not while the server reads slowly.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

/// The timer of one body.
pub struct BodyTimer {
    timeout: Duration,
    /// `None` while the body does not wait for the client.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl BodyTimer {
    pub fn new(timeout: Duration) -> Self {
        BodyTimer { timeout, sleep: None }
    }

    /// Notes that a byte has arrived.
    pub fn reset(&mut self) {
        self.sleep = None;
    }

    /// Completes when the client has sent nothing for the timeout. The first call after a reset starts the time.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeout = self.timeout;
        self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout))).as_mut().poll(cx)
    }
}
