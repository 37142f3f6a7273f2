//! The replies to one client, in the order of its calls.
//!
//! A deferred reply (of a close that waits for the settled account) blocks the replies after it, and only
//! those. Invariant: `sendable` may be sent now; `blocked` is empty or begins with a pending reply.

use std::collections::VecDeque;

/// The number of a deferred reply.
pub type ReplySlot = u64;

#[derive(Debug)]
enum QueuedReply {
    Pending(ReplySlot),
    /// Complete replies after a pending one.
    Blocked(Vec<u8>),
}

#[derive(Debug, Default)]
pub struct ReplyQueue {
    sendable: Vec<u8>,
    sent_bytes: usize,
    blocked: VecDeque<QueuedReply>,
    blocked_bytes: usize,
    pending: usize,
    next_slot: ReplySlot,
}

impl ReplyQueue {
    fn tail(&mut self) -> &mut Vec<u8> {
        if self.blocked.is_empty() {
            return &mut self.sendable;
        }
        if let Some(QueuedReply::Pending(_)) = self.blocked.back() {
            self.blocked.push_back(QueuedReply::Blocked(Vec::new()));
        }
        match self.blocked.back_mut() {
            Some(QueuedReply::Blocked(bytes)) => bytes,
            _ => unreachable!("pushed above"),
        }
    }

    /// Appends what `write` writes, and returns its result.
    pub fn write<T>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let out = self.tail();
        let before = out.len();
        let result = write(out);
        let written = out.len() - before;
        if !self.blocked.is_empty() {
            self.blocked_bytes += written;
        }
        result
    }

    /// The slot of the next deferred reply.
    pub fn next_slot(&self) -> ReplySlot {
        self.next_slot
    }

    /// Defers the next reply to [`ReplyQueue::next_slot`].
    pub fn push_pending(&mut self) {
        self.blocked.push_back(QueuedReply::Pending(self.next_slot));
        self.pending += 1;
        self.next_slot += 1;
    }

    /// Fills the slot of a deferred reply.
    pub fn complete(&mut self, slot: ReplySlot, reply: &[u8]) {
        let entry =
            self.blocked.iter_mut().find(|entry| matches!(entry, QueuedReply::Pending(at) if *at == slot));
        let Some(entry) = entry else { return };
        *entry = QueuedReply::Blocked(reply.to_vec());
        self.blocked_bytes += reply.len();
        self.pending -= 1;
        while let Some(QueuedReply::Blocked(bytes)) = self.blocked.front() {
            self.sendable.extend_from_slice(bytes);
            self.blocked_bytes -= bytes.len();
            self.blocked.pop_front();
        }
    }

    pub fn sendable(&self) -> &[u8] {
        &self.sendable[self.sent_bytes..]
    }

    /// Removes `bytes` from the front. The buffer is compacted when its sent part is larger than the rest,
    /// which bounds its memory and moves each byte at most once on average.
    pub fn mark_sent(&mut self, bytes: usize) {
        /// A smaller move is not worth its cost.
        const COMPACT_MIN_BYTES: usize = 16 * 1024;
        self.sent_bytes += bytes;
        let remaining = self.sendable.len() - self.sent_bytes;
        if remaining == 0 || (self.sent_bytes >= COMPACT_MIN_BYTES && self.sent_bytes >= remaining) {
            self.sendable.drain(..self.sent_bytes);
            self.sent_bytes = 0;
        }
    }

    /// Releases memory that a burst used.
    pub fn shrink(&mut self) {
        self.sendable.shrink_to(self.unsent_bytes().max(4096));
    }

    /// Bytes that are not yet sent, blocked ones included.
    pub fn unsent_bytes(&self) -> usize {
        self.sendable.len() - self.sent_bytes + self.blocked_bytes
    }

    /// Number of deferred replies.
    pub fn pending(&self) -> usize {
        self.pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(queue: &mut ReplyQueue, reply: &str) {
        queue.write(|out| out.extend_from_slice(reply.as_bytes()));
    }

    #[test]
    fn replies_after_a_pending_one_are_held_until_it_completes() {
        let mut queue = ReplyQueue::default();
        write(&mut queue, "a");
        let first = queue.next_slot();
        queue.push_pending();
        write(&mut queue, "b");
        let second = queue.next_slot();
        queue.push_pending();
        write(&mut queue, "c");
        write(&mut queue, "d");
        assert_eq!((queue.sendable(), queue.unsent_bytes(), queue.pending()), (&b"a"[..], 4, 2));
        queue.complete(second, b"2");
        assert_eq!(queue.sendable(), b"a");
        queue.complete(first, b"1");
        assert_eq!((queue.sendable(), queue.unsent_bytes(), queue.pending()), (&b"a1b2cd"[..], 6, 0));
        write(&mut queue, "e");
        queue.mark_sent(6);
        assert_eq!((queue.sendable(), queue.unsent_bytes()), (&b"e"[..], 1));
    }

    #[test]
    fn a_partial_send_resumes_at_the_next_byte() {
        let mut queue = ReplyQueue::default();
        write(&mut queue, "abc");
        queue.mark_sent(1);
        write(&mut queue, "d");
        assert_eq!(queue.sendable(), b"bcd");
        queue.mark_sent(3);
        assert_eq!(queue.unsent_bytes(), 0);
    }

    #[test]
    fn memory_is_bounded_by_the_unsent_bytes() {
        let mut queue = ReplyQueue::default();
        queue.write(|out| out.extend_from_slice(&[255; 500]));
        for turn in 0..100_000 {
            let (before, now) = ((turn as u8).wrapping_sub(1), turn as u8);
            queue.write(|out| out.extend_from_slice(&[now; 1000]));
            assert_eq!([queue.sendable()[0], queue.sendable()[500]], [before, now]);
            queue.mark_sent(1000);
            assert_eq!(queue.unsent_bytes(), 500);
        }
        assert!(queue.sendable.capacity() < 100_000, "{}", queue.sendable.capacity());
    }
}
