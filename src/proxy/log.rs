//! A log with a rate limit.
//!
//! Owns the rate: an error at every request is logged once a second, with the number of suppressed messages.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::escape::printable_ascii;

/// Where the proxy's lines go.
#[derive(Debug, Clone, Copy)]
pub struct LogSink(fn(&str));

impl LogSink {
    /// Lines go to `write`.
    pub fn new(write: fn(&str)) -> Self {
        LogSink(write)
    }

    /// Writes one line, whatever the text contains.
    pub fn write_line(self, text: &str) {
        (self.0)(&printable_ascii(text));
    }
}

/// The least time between two messages.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Logs at most one message per interval.
pub struct RateLimitedLog {
    sink: LogSink,
    last: Mutex<(Option<Instant>, u64)>,
}

impl RateLimitedLog {
    /// Messages go to `sink`.
    pub fn new(sink: LogSink) -> Self {
        RateLimitedLog { sink, last: Mutex::new((None, 0)) }
    }

    /// Logs `message`, unless another was logged within the interval.
    pub fn write_line(&self, message: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (logged_at, suppressed) = *last;
        if logged_at.is_some_and(|logged_at| logged_at.elapsed() < MIN_INTERVAL) {
            last.1 += 1;
            return;
        }
        match suppressed {
            0 => self.sink.write_line(message),
            _ => self
                .sink
                .write_line(&format!("{message} (and {suppressed} more like it since the last remark)")),
        }
        *last = (Some(Instant::now()), 0);
    }
}
