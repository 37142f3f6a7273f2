//! The timeouts for request heads on a client's connection.
//!
//! hyper starts one timer when it begins to wait for a head, and ends it with the head. Here that timer allows a kept
//! connection to be idle, and becomes the shorter timeout for heads with the first byte of one. The first byte of a
//! connection has arrived before this timer starts.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

/// How long a connection may wait for the first byte of a request.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The number of bytes that a client has sent.
#[derive(Debug, Clone, Default)]
pub struct ReceivedBytes(Arc<AtomicU64>);

impl ReceivedBytes {
    pub fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The timer of one connection.
pub struct HeadTimer {
    pub received: ReceivedBytes,
    /// The end of the time for the first head.
    pub first_deadline: Instant,
    pub head_timeout: Duration,
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, idle_deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let received_at_start = self.received.get();
        let is_first = received_at_start == 0;
        let deadline = if is_first { self.first_deadline } else { idle_deadline };
        Box::pin(HeadSleep {
            inner: Box::pin(tokio::time::sleep_until(deadline.into())),
            received: self.received.clone(),
            received_at_start,
            has_begun: is_first,
            head_timeout: self.head_timeout,
        })
    }
}

/// Completes when the client has been too slow. hyper polls it each time it has read a part of a head.
struct HeadSleep {
    inner: Pin<Box<tokio::time::Sleep>>,
    received: ReceivedBytes,
    received_at_start: u64,
    has_begun: bool,
    head_timeout: Duration,
}

impl Future for HeadSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.has_begun && self.received.get() > self.received_at_start {
            self.has_begun = true;
            let deadline = tokio::time::Instant::now() + self.head_timeout;
            self.inner.as_mut().reset(deadline);
        }
        self.inner.as_mut().poll(cx)
    }
}

impl Sleep for HeadSleep {}
