//! What the proxy has counted since it started.
//!
//! Owns the counters. Invariant once no request runs: opened = closed + cancelled + abandoned + refused.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// One counter.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more.
    pub fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// So many.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters.
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests of any kind.
    pub requests: Count,
    /// Requests at inference paths.
    pub inferences: Count,
    /// Spans whose opening was handed to the daemon.
    pub opened: Count,
    /// Spans that the daemon gave an account of.
    pub closed: Count,
    /// Spans forgotten, because the request never reached the server.
    pub cancelled: Count,
    /// Spans whose connection to the daemon was lost; the daemon keeps those that it saw as abandoned or interrupted.
    pub abandoned: Count,
    /// Spans that the daemon knew nothing of when they ended: it had refused their opening.
    pub refused: Count,
    /// Inference requests without a span: the daemon was away or too slow.
    pub unmeasured: Count,
    /// Marks and weights that were left out because too much was waiting for the daemon.
    pub left_out: Count,
    /// Replies that did not wait for their account any longer.
    pub late: Count,
    /// Requests that the server did not answer.
    pub failed: Count,
}

impl Tally {
    /// Spans that ended, one way or the other.
    pub fn ended(&self) -> u64 {
        self.closed.get() + self.cancelled.get() + self.abandoned.get() + self.refused.get()
    }
}

impl fmt::Display for Tally {
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
            self.left_out.get(),
            self.late.get(),
            self.failed.get(),
        )
    }
}
