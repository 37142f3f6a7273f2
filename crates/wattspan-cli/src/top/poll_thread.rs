//! Polls the meter on a thread of its own, so that a daemon that does not answer delays no key.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::meter_feed::{MeterFeed, MeterUpdate};

/// The wait for a reply before keys are handled again. A daemon that is well replies within a few milliseconds.
const REPLY_WAIT: Duration = Duration::from_millis(100);

/// The time after which a daemon that does not answer counts as unreachable.
const SILENCE_LIMIT: Duration = Duration::from_secs(2);

/// The thread. It ends with this value, once its poll returns.
pub struct PollThread {
    requests: Sender<()>,
    replies: Receiver<Result<MeterUpdate, String>>,
    /// When the poll that runs now was requested.
    requested: Option<Instant>,
}

impl PollThread {
    pub fn start(mut feed: MeterFeed) -> Self {
        let (requests, requested) = channel();
        let (reply_sender, replies) = channel();
        thread::spawn(move || {
            for () in requested {
                let reply = feed.poll().map_err(|error| error.to_string());
                if reply_sender.send(reply).is_err() {
                    return;
                }
            }
        });
        PollThread { requests, replies, requested: None }
    }

    /// Requests a poll, unless one runs, and returns its result; `None` if it has not ended yet.
    pub fn poll(&mut self) -> Option<Result<MeterUpdate, String>> {
        let requested = *self.requested.get_or_insert_with(|| {
            // If the thread has ended, the reply reports it.
            let _ = self.requests.send(());
            Instant::now()
        });
        match self.replies.recv_timeout(REPLY_WAIT) {
            Ok(reply) => {
                self.requested = None;
                Some(reply)
            }
            Err(RecvTimeoutError::Timeout) if requested.elapsed() < SILENCE_LIMIT => None,
            Err(RecvTimeoutError::Timeout) => Some(Err("it does not answer".into())),
            Err(RecvTimeoutError::Disconnected) => Some(Err("the polling thread has ended".into())),
        }
    }
}
