//! The time limits of a request body: without a byte, and in all.
//!
//! The time runs only while the body waits for the client, and not while the server reads slowly. Where the reply begins before
//! the end of the body, which the server may not need, only the limit in all is left, and each piece of the reply renews it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::reply_progress::ReplyProgress;

/// How many times the timeout for one byte a body may wait in all.
const TOTAL_FACTOR: u32 = 10;

/// Why a body has timed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyTimeoutError {
    #[error("the rest of the request's body did not arrive (--body-timeout)")]
    Silent,
    #[error("the request's body arrived too slowly (ten times --body-timeout in all)")]
    Slow,
}

/// The timer of one body.
pub struct BodyTimer {
    timeout: Duration,
    reply: ReplyProgress,
    /// The pieces of the reply at the last renewal of the time.
    seen_pieces: u64,
    /// How long the body may still wait in all.
    rest: Duration,
    /// `None` while the body does not wait for the client.
    wait: Option<BodyWait>,
}

struct BodyWait {
    began: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl BodyTimer {
    pub fn new(timeout: Duration, reply: ReplyProgress) -> Self {
        BodyTimer { timeout, reply, seen_pieces: 0, rest: timeout * TOTAL_FACTOR, wait: None }
    }

    /// Notes that a byte has arrived.
    pub fn reset(&mut self) {
        if let Some(wait) = self.wait.take() {
            self.rest = self.rest.saturating_sub(wait.began.elapsed());
        }
    }

    /// Completes when a limit has passed. The first call after a reset starts the time.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<BodyTimeoutError> {
        loop {
            let limit = if self.reply.pieces() > 0 { self.rest } else { self.rest.min(self.timeout) };
            let wait = self.wait.get_or_insert_with(|| BodyWait::new(limit));
            ready!(wait.sleep.as_mut().poll(cx));
            self.reset();
            let pieces = self.reply.pieces();
            if pieces > std::mem::replace(&mut self.seen_pieces, pieces) {
                self.rest = self.timeout * TOTAL_FACTOR;
            } else if self.rest.is_zero() {
                return Poll::Ready(BodyTimeoutError::Slow);
            } else if pieces == 0 {
                return Poll::Ready(BodyTimeoutError::Silent);
            }
        }
    }
}

impl BodyWait {
    fn new(limit: Duration) -> Self {
        BodyWait { began: Instant::now(), sleep: Box::pin(tokio::time::sleep(limit)) }
    }
}
