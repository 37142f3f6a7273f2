//! Weights by tokens: who of several streams got how much of the server just now.
//!
//! Owns the list of running streams and their counts. Every tick each stream weighs as many tokens as came on it since
//! the last one, at least 1: a stream in prefill, or one that waits, weighs 1. Only changes are sent. One token is one
//! part with content, which is what servers send by default; the value is a weight, never reported as a count of tokens.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::request_span::RequestSpan;

/// How often weights change. The server's own steps are some 10 to 50 ms.
const UPDATE_INTERVAL: Duration = Duration::from_millis(100);

/// A stream that is weighed.
pub struct WeightedStream {
    /// Tokens since the last tick.
    tokens: AtomicU64,
    weight: AtomicU64,
    span: Mutex<RequestSpan>,
}

impl WeightedStream {
    /// The span.
    pub fn span(&self) -> std::sync::MutexGuard<'_, RequestSpan> {
        self.span.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many tokens came.
    pub fn add_tokens(&self, tokens: u64) {
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    fn update_weight(&self) {
        let weight = self.tokens.swap(0, Ordering::Relaxed).max(1);
        if self.weight.swap(weight, Ordering::Relaxed) != weight {
            self.span().set_weight(weight as f64);
        }
    }
}

/// The streams that run.
#[derive(Clone, Default)]
pub struct TokenWeights(Arc<Mutex<Vec<Weak<WeightedStream>>>>);

impl TokenWeights {
    /// Registers a span until it is dropped; its weight is 1 at first.
    pub fn register(&self, span: RequestSpan, is_weighted: bool) -> Arc<WeightedStream> {
        let (tokens, weight) = (AtomicU64::new(0), AtomicU64::new(1));
        let stream = Arc::new(WeightedStream { tokens, weight, span: Mutex::new(span) });
        if is_weighted {
            self.lock().push(Arc::downgrade(&stream));
        }
        stream
    }

    /// Weighs for ever.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(UPDATE_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.lock().retain(|stream| stream.upgrade().is_some_and(|stream| !stream.span().has_ended()));
            let streams: Vec<_> = self.lock().iter().filter_map(Weak::upgrade).collect();
            streams.iter().for_each(|stream| stream.update_weight());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Weak<WeightedStream>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
