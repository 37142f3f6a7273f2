//! Lines for whoever runs the proxy.
//!
//! Owns their rate: the same trouble at every request is told once a second, with how often it was.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::escape::LogSink;

/// The least time between two remarks of this kind.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Says things, not too often.
pub struct RateLimitedLog {
    sink: LogSink,
    last: Mutex<(Option<Instant>, u64)>,
}

impl RateLimitedLog {
    /// Says them in `log`.
    pub fn new(sink: LogSink) -> Self {
        RateLimitedLog { sink, last: Mutex::new((None, 0)) }
    }

    /// Says it, unless something was said just now.
    pub fn log(&self, remark: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (said, kept) = *last;
        if said.is_some_and(|said| said.elapsed() < MIN_INTERVAL) {
            last.1 += 1;
            return;
        }
        match kept {
            0 => self.sink.write_line(remark),
            _ => self.sink.write_line(&format!("{remark} (and {kept} more like it since the last remark)")),
        }
        *last = (Some(Instant::now()), 0);
    }
}
