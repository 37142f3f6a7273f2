//! The proxy's log lines, and a rate limit for those that every request can cause.
//!
//! Invariant: a line is printable ASCII, whatever text a client, the server or the daemon sent.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use wattspan_system::escape::printable_ascii;

/// The destination of log lines.
#[derive(Debug, Clone, Copy)]
pub struct LogSink(fn(&str));

impl LogSink {
    pub fn new(write: fn(&str)) -> Self {
        LogSink(write)
    }

    /// Writes `text` as one line of printable ASCII.
    pub fn write_line(self, text: &str) {
        (self.0)(&printable_ascii(text));
    }
}

/// The shortest time between two messages.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// A log of at most one message per [`MIN_INTERVAL`], with the number of suppressed ones.
pub struct RateLimitedLog {
    sink: LogSink,
    last: Mutex<(Option<Instant>, u64)>,
}

impl RateLimitedLog {
    pub fn new(sink: LogSink) -> Self {
        RateLimitedLog { sink, last: Mutex::new((None, 0)) }
    }

    pub fn write_line(&self, message: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (logged_at, suppressed) = *last;
        if logged_at.is_some_and(|logged_at| logged_at.elapsed() < MIN_INTERVAL) {
            last.1 += 1;
            return;
        }
        match suppressed {
            0 => self.sink.write_line(message),
            _ => self.sink.write_line(&format!("{message} ({suppressed} messages suppressed)")),
        }
        *last = (Some(Instant::now()), 0);
    }
}
