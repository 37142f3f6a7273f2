//! What one client is still owed, and whether it takes it.
//!
//! Owns the rule of who makes no progress: something is half done (a message incomplete, or answers not taken), and nothing
//! moved since. Changes nothing of what the client is told.

use rustix::io::ioctl_fionread;

use super::connection::Connection;
use super::exchange::Stream;

impl Connection {
    /// Whether it said something that was not heard yet, or has answers to take that are there. What is still awaited is
    /// another matter, and a stream that has no end is owed to nobody.
    pub fn is_owed(&self) -> bool {
        let endless = matches!(self.stream, Some(Stream::Domains { .. }));
        let said = || ioctl_fionread(&*self.socket).is_ok_and(|bytes| bytes > 0);
        let unheard = !self.deaf && (self.stalled || self.yielded || (self.unheard && said()));
        !endless && (unheard || !self.outbox.sendable().is_empty())
    }

    /// Notes, at the end of a turn, whether something is half done, and since when nothing moved.
    pub(crate) fn note_progress(&mut self, now_ns: u64) {
        let half_done =
            !self.outbox.sendable().is_empty() || (!self.rest.is_empty() && !self.stalled && !self.yielded);
        let moved = std::mem::take(&mut self.moved);
        if !half_done {
            self.stuck_since_ns = None;
        } else if moved || self.stuck_since_ns.is_none() {
            self.stuck_since_ns = Some(now_ns);
        }
    }

    /// Whether something has been half done for longer than `stall_ns`.
    pub fn is_stuck(&self, now_ns: u64, stall_ns: u64) -> bool {
        self.stuck_since_ns.is_some_and(|since| now_ns.saturating_sub(since) > stall_ns)
    }
}
