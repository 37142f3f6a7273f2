//! Lines for whoever runs the proxy.
//!
//! Owns their rate: the same trouble at every request is told once a second, with how often it was.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::visible::Log;

/// The least time between two remarks of this kind.
const PAUSE: Duration = Duration::from_secs(1);

/// Says things, not too often.
pub struct Remarks {
    log: Log,
    last: Mutex<(Option<Instant>, u64)>,
}

impl Remarks {
    /// Says them in `log`.
    pub fn new(log: Log) -> Self {
        Remarks { log, last: Mutex::new((None, 0)) }
    }

    /// Says it, unless something was said just now.
    pub fn say(&self, remark: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (said, kept) = *last;
        if said.is_some_and(|said| said.elapsed() < PAUSE) {
            last.1 += 1;
            return;
        }
        match kept {
            0 => self.log.line(remark),
            _ => self.log.line(&format!("{remark} (and {kept} more like it since the last remark)")),
        }
        *last = (Some(Instant::now()), 0);
    }
}
