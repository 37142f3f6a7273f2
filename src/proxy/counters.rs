//! What the proxy has counted since it started.
//!
//! Owns the counters. Invariant once no request runs: opened = closed + cancelled + abandoned + refused.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// One counter.
#[derive(Debug, Default)]
pub struct AtomicCounter(AtomicU64);

impl AtomicCounter {
    /// One more.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// So many.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters.
#[derive(Debug, Default)]
pub struct ProxyCounters {
    /// Requests of any kind.
    pub requests: AtomicCounter,
    /// Requests at inference paths.
    pub inferences: AtomicCounter,
    /// Spans whose opening was handed to the daemon.
    pub opened: AtomicCounter,
    /// Spans that the daemon gave an account of.
    pub closed: AtomicCounter,
    /// Spans forgotten, because the request never reached the server.
    pub cancelled: AtomicCounter,
    /// Spans whose connection to the daemon was lost; the daemon keeps those that it saw as abandoned or interrupted.
    pub abandoned: AtomicCounter,
    /// Spans that the daemon knew nothing of when they ended: it had refused their opening.
    pub refused: AtomicCounter,
    /// Inference requests without a span: the daemon was away or too slow.
    pub unmeasured: AtomicCounter,
    /// Marks and weights that were left out because too much was waiting for the daemon.
    pub dropped_updates: AtomicCounter,
    /// Replies that did not wait for their account any longer.
    pub account_timeouts: AtomicCounter,
    /// Requests that the server did not answer.
    pub upstream_failures: AtomicCounter,
}

impl ProxyCounters {
    /// Spans that ended, one way or the other.
    pub fn ended_spans(&self) -> u64 {
        self.closed.get() + self.cancelled.get() + self.abandoned.get() + self.refused.get()
    }
}

impl fmt::Display for ProxyCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests, {} of them inferences; spans: {} opened = {} closed + {} cancelled + {} abandoned + {} \
             refused; {} unmeasured, {} marks left out, {} accounts not waited for, {} requests unanswered",
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
