//! Weights by tokens: who of several streams got how much of the server just now.
//!
//! Owns the list of running streams and their counts. Every tick each stream weighs as many tokens as came on it since
//! the last one, at least 1: a stream in prefill, or one that waits, weighs 1. Only changes are sent. One token is one
//! part with content, which is what servers send by default; the figure is a weight, never told as a count of tokens.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::measured::Measured;

/// How often weights change. The server's own steps are some 10 to 50 ms.
const TICK: Duration = Duration::from_millis(100);

/// A stream that is weighed.
pub struct Weighed {
    /// Tokens since the last tick.
    tokens: AtomicU64,
    weight: AtomicU64,
    span: Mutex<Measured>,
}

impl Weighed {
    /// The span.
    pub fn span(&self) -> std::sync::MutexGuard<'_, Measured> {
        self.span.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many tokens came.
    pub fn count(&self, tokens: u64) {
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    fn tick(&self) {
        let weight = self.tokens.swap(0, Ordering::Relaxed).max(1);
        if self.weight.swap(weight, Ordering::Relaxed) != weight {
            self.span().weigh(weight as f64);
        }
    }
}

/// The streams that run.
#[derive(Clone, Default)]
pub struct Scales(Arc<Mutex<Vec<Weak<Weighed>>>>);

impl Scales {
    /// Puts a span on the scales until it is dropped; it weighs 1.
    pub fn put(&self, span: Measured, weigh: bool) -> Arc<Weighed> {
        let (tokens, weight) = (AtomicU64::new(0), AtomicU64::new(1));
        let weighed = Arc::new(Weighed { tokens, weight, span: Mutex::new(span) });
        if weigh {
            self.list().push(Arc::downgrade(&weighed));
        }
        weighed
    }

    /// Weighs for ever.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.list().retain(|weighed| weighed.upgrade().is_some_and(|weighed| !weighed.span().is_over()));
            let list: Vec<_> = self.list().iter().filter_map(Weak::upgrade).collect();
            list.iter().for_each(|weighed| weighed.tick());
        }
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Weighed>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
