//! Answers on their way to one client, in the order of its calls.
//!
//! Owns the order: an answer that has to wait (a close that wants the settled account) holds back those behind it,
//! and only those. Invariant: what lies in `ready` may be sent now; `held` begins with an answer that is awaited,
//! or is empty. Knows no socket, so that its order is tested without one.

use std::collections::VecDeque;

/// A later answer's place.
pub type ReplySlot = u64;

#[derive(Debug)]
enum QueuedReply {
    /// The answer to come.
    Pending(ReplySlot),
    /// Answers that are ready but for what lies before them.
    Blocked(Vec<u8>),
}

/// The answers.
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
            _ => unreachable!("the line above put it there"),
        }
    }

    /// Has something written at the end; gives what that gives.
    pub fn write<T>(&mut self, what: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let out = self.tail();
        let before = out.len();
        let given = what(out);
        let wrote = out.len() - before;
        if !self.blocked.is_empty() {
            self.blocked_bytes += wrote;
        }
        given
    }

    /// The place of the answer that will be awaited next, if one will.
    pub fn next_slot(&self) -> ReplySlot {
        self.next_slot
    }

    /// The next answer is to come later, into [`Outbox::next_slot`].
    pub fn push_pending(&mut self) {
        self.blocked.push_back(QueuedReply::Pending(self.next_slot));
        self.pending += 1;
        self.next_slot += 1;
    }

    /// The awaited answer is here.
    pub fn complete(&mut self, slot: ReplySlot, answer: &[u8]) {
        let place =
            self.blocked.iter_mut().find(|held| matches!(held, QueuedReply::Pending(at) if *at == slot));
        let Some(place) = place else { return };
        *place = QueuedReply::Blocked(answer.to_vec());
        self.blocked_bytes += answer.len();
        self.pending -= 1;
        while let Some(QueuedReply::Blocked(bytes)) = self.blocked.front() {
            self.sendable.extend_from_slice(bytes);
            self.blocked_bytes -= bytes.len();
            self.blocked.pop_front();
        }
    }

    /// What may be sent now.
    pub fn sendable(&self) -> &[u8] {
        &self.sendable[self.sent_bytes..]
    }

    /// Takes note of `bytes` sent; what was sent goes as soon as it is more than what is not, so that a client that is
    /// always a little behind costs no more memory than that, and no byte is moved more than once on average.
    pub fn mark_sent(&mut self, bytes: usize) {
        /// Less is not worth the move.
        const WORTH_MOVING: usize = 16 * 1024;
        self.sent_bytes += bytes;
        let left = self.sendable.len() - self.sent_bytes;
        if left == 0 || (self.sent_bytes >= WORTH_MOVING && self.sent_bytes >= left) {
            self.sendable.drain(..self.sent_bytes);
            self.sent_bytes = 0;
        }
    }

    /// Gives memory back that a burst of answers took.
    pub fn shrink(&mut self) {
        self.sendable.shrink_to(self.unsent_bytes().max(4096));
    }

    /// Bytes that the client has not taken.
    pub fn unsent_bytes(&self) -> usize {
        self.sendable.len() - self.sent_bytes + self.blocked_bytes
    }

    /// Answers still awaited.
    pub fn pending(&self) -> usize {
        self.pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(outbox: &mut ReplyQueue, answer: &str) {
        outbox.write(|out| out.extend_from_slice(answer.as_bytes()));
    }

    #[test]
    fn replies_after_a_pending_one_are_held_until_it_completes() {
        let mut outbox = ReplyQueue::default();
        write(&mut outbox, "a");
        let first = outbox.next_slot();
        outbox.push_pending();
        write(&mut outbox, "b");
        let second = outbox.next_slot();
        outbox.push_pending();
        write(&mut outbox, "c");
        write(&mut outbox, "d");
        assert_eq!((outbox.sendable(), outbox.unsent_bytes(), outbox.pending()), (&b"a"[..], 4, 2));
        outbox.complete(second, b"2");
        assert_eq!(outbox.sendable(), b"a");
        outbox.complete(first, b"1");
        assert_eq!((outbox.sendable(), outbox.unsent_bytes(), outbox.pending()), (&b"a1b2cd"[..], 6, 0));
        write(&mut outbox, "e");
        outbox.mark_sent(6);
        assert_eq!((outbox.sendable(), outbox.unsent_bytes()), (&b"e"[..], 1));
    }

    #[test]
    fn a_partial_send_resumes_at_the_next_byte() {
        let mut outbox = ReplyQueue::default();
        write(&mut outbox, "abc");
        outbox.mark_sent(1);
        write(&mut outbox, "d");
        assert_eq!(outbox.sendable(), b"bcd");
        outbox.mark_sent(3);
        assert_eq!(outbox.unsent_bytes(), 0);
    }

    #[test]
    fn memory_is_bounded_by_the_unsent_bytes() {
        let mut outbox = ReplyQueue::default();
        outbox.write(|out| out.extend_from_slice(&[255; 500]));
        for turn in 0..100_000 {
            let (before, now) = ((turn as u8).wrapping_sub(1), turn as u8);
            outbox.write(|out| out.extend_from_slice(&[now; 1000]));
            assert_eq!([outbox.sendable()[0], outbox.sendable()[500]], [before, now]);
            outbox.mark_sent(1000);
            assert_eq!(outbox.unsent_bytes(), 500);
        }
        assert!(outbox.sendable.capacity() < 100_000, "{}", outbox.sendable.capacity());
    }
}
