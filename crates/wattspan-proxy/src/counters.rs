//! Counters of the proxy since its start.
//!
//! Invariant while no request is in progress: opened = closed + cancelled + abandoned + refused.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that only rises.
#[derive(Debug, Default)]
pub struct AtomicCounter(AtomicU64);

impl AtomicCounter {
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counters; [`fmt::Display`] gives the line that the proxy logs at its end.
#[derive(Debug, Default)]
pub struct ProxyCounters {
    /// Requests of any kind.
    pub requests: AtomicCounter,
    /// Requests at inference paths.
    pub inferences: AtomicCounter,
    /// Spans whose OpenSpan was queued for the daemon.
    pub opened: AtomicCounter,
    /// Spans of which the daemon returned an account.
    pub closed: AtomicCounter,
    /// Spans that were cancelled, because the request did not reach the server.
    pub cancelled: AtomicCounter,
    /// Spans whose connection to the daemon was lost; the daemon stores those it received as abandoned or interrupted.
    pub abandoned: AtomicCounter,
    /// Spans whose OpenSpan the daemon had refused.
    pub refused: AtomicCounter,
    /// Inference requests without a span: the daemon was unreachable or too slow.
    pub unmeasured: AtomicCounter,
    /// Phase marks and weights that were dropped because the queue was full.
    pub dropped_updates: AtomicCounter,
    /// Responses whose wait for the account timed out.
    pub account_timeouts: AtomicCounter,
    /// Requests without a complete response from the server.
    pub upstream_failures: AtomicCounter,
}

impl ProxyCounters {
    /// Spans that ended in any way.
    pub fn ended_spans(&self) -> u64 {
        self.closed.get() + self.cancelled.get() + self.abandoned.get() + self.refused.get()
    }
}

impl fmt::Display for ProxyCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests, {} of them inferences; spans: {} opened = {} closed + {} cancelled + {} abandoned + {} \
             refused; {} unmeasured, {} updates dropped, {} account timeouts, {} upstream failures",
            self.requests.get(),
            self.inferences.get(),
            self.opened.get(),
            self.closed.get(),
            self.cancelled.get(),
            self.abandoned.get(),
            self.refused.get(),
            self.unmeasured.get(),
            self.dropped_updates.get(),
            self.account_timeouts.get(),
            self.upstream_failures.get(),
        )
    }
}
