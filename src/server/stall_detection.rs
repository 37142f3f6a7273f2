//! What one client is still owed, and whether it takes it.
//!
//! Owns the rule of who makes no progress: something is half done (a message incomplete, or answers not taken), and nothing
//! moved since. Changes nothing of what the client is told.

use rustix::io::ioctl_fionread;

use super::connection::ClientConnection;
use super::dispatch::SubscriptionKind;

impl ClientConnection {
    /// Whether it said something that was not heard yet, or has answers to take that are there. What is still awaited is
    /// another matter, and a stream that has no end is owed to nobody.
    pub fn has_pending_io(&self) -> bool {
        let is_endless = matches!(self.subscription, Some(SubscriptionKind::Domains { .. }));
        let has_bytes = || ioctl_fionread(&*self.socket).is_ok_and(|bytes| bytes > 0);
        let has_unread_input =
            !self.read_closed && (self.read_paused || self.yielded || (self.has_unread_input && has_bytes()));
        !is_endless && (has_unread_input || !self.reply_queue.sendable().is_empty())
    }

    /// Notes, at the end of a turn, whether something is half done, and since when nothing moved.
    pub(crate) fn update_stall_state(&mut self, now_ns: u64) {
        let is_incomplete = !self.reply_queue.sendable().is_empty()
            || (!self.input.is_empty() && !self.read_paused && !self.yielded);
        let made_progress = std::mem::take(&mut self.made_progress);
        if !is_incomplete {
            self.stalled_since_ns = None;
        } else if made_progress || self.stalled_since_ns.is_none() {
            self.stalled_since_ns = Some(now_ns);
        }
    }

    /// Whether something has been half done for longer than `stall_ns`.
    pub fn is_stalled(&self, now_ns: u64, stall_ns: u64) -> bool {
        self.stalled_since_ns.is_some_and(|since| now_ns.saturating_sub(since) > stall_ns)
    }
}
