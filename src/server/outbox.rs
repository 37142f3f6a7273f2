//! Answers on their way to one client, in the order of its calls.
//!
//! Owns the order: an answer that has to wait (a close that wants the settled account) holds back those behind it,
//! and only those. Invariant: what lies in `ready` may be sent now; `held` begins with an answer that is awaited,
//! or is empty. Knows no socket, so that its order is tested without one.

use std::collections::VecDeque;

/// A later answer's place.
pub type Slot = u64;

#[derive(Debug)]
enum Held {
    /// The answer to come.
    Awaited(Slot),
    /// Answers that are ready but for what lies before them.
    Behind(Vec<u8>),
}

/// The answers.
#[derive(Debug, Default)]
pub struct Outbox {
    ready: Vec<u8>,
    sent: usize,
    held: VecDeque<Held>,
    held_bytes: usize,
    awaited: usize,
    next: Slot,
}

impl Outbox {
    fn tail(&mut self) -> &mut Vec<u8> {
        if self.held.is_empty() {
            return &mut self.ready;
        }
        if let Some(Held::Awaited(_)) = self.held.back() {
            self.held.push_back(Held::Behind(Vec::new()));
        }
        match self.held.back_mut() {
            Some(Held::Behind(bytes)) => bytes,
            _ => unreachable!("the line above put it there"),
        }
    }

    /// Has something written at the end; gives what that gives.
    pub fn write<T>(&mut self, what: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let out = self.tail();
        let before = out.len();
        let given = what(out);
        let wrote = out.len() - before;
        if !self.held.is_empty() {
            self.held_bytes += wrote;
        }
        given
    }

    /// The place of the answer that will be awaited next, if one will.
    pub fn next_slot(&self) -> Slot {
        self.next
    }

    /// The next answer is to come later, into [`Outbox::next_slot`].
    pub fn await_answer(&mut self) {
        self.held.push_back(Held::Awaited(self.next));
        self.awaited += 1;
        self.next += 1;
    }

    /// The awaited answer is here.
    pub fn fill(&mut self, slot: Slot, answer: &[u8]) {
        let place = self.held.iter_mut().find(|held| matches!(held, Held::Awaited(at) if *at == slot));
        let Some(place) = place else { return };
        *place = Held::Behind(answer.to_vec());
        self.held_bytes += answer.len();
        self.awaited -= 1;
        while let Some(Held::Behind(bytes)) = self.held.front() {
            self.ready.extend_from_slice(bytes);
            self.held_bytes -= bytes.len();
            self.held.pop_front();
        }
    }

    /// What may be sent now.
    pub fn sendable(&self) -> &[u8] {
        &self.ready[self.sent..]
    }

    /// Takes note of `bytes` sent; what was sent goes as soon as it is more than what is not, so that a client that is
    /// always a little behind costs no more memory than that, and no byte is moved more than once on average.
    pub fn sent(&mut self, bytes: usize) {
        /// Less is not worth the move.
        const WORTH_MOVING: usize = 16 * 1024;
        self.sent += bytes;
        let left = self.ready.len() - self.sent;
        if left == 0 || (self.sent >= WORTH_MOVING && self.sent >= left) {
            self.ready.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Gives memory back that a burst of answers took.
    pub fn trim(&mut self) {
        self.ready.shrink_to(self.unsent().max(4096));
    }

    /// Bytes that the client has not taken.
    pub fn unsent(&self) -> usize {
        self.ready.len() - self.sent + self.held_bytes
    }

    /// Answers still awaited.
    pub fn awaited(&self) -> usize {
        self.awaited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(outbox: &mut Outbox, answer: &str) {
        outbox.write(|out| out.extend_from_slice(answer.as_bytes()));
    }

    #[test]
    fn answers_behind_an_awaited_one_wait_for_it_and_no_other() {
        let mut outbox = Outbox::default();
        write(&mut outbox, "a");
        let first = outbox.next_slot();
        outbox.await_answer();
        write(&mut outbox, "b");
        let second = outbox.next_slot();
        outbox.await_answer();
        write(&mut outbox, "c");
        write(&mut outbox, "d");
        assert_eq!((outbox.sendable(), outbox.unsent(), outbox.awaited()), (&b"a"[..], 4, 2));
        outbox.fill(second, b"2");
        assert_eq!(outbox.sendable(), b"a");
        outbox.fill(first, b"1");
        assert_eq!((outbox.sendable(), outbox.unsent(), outbox.awaited()), (&b"a1b2cd"[..], 6, 0));
        write(&mut outbox, "e");
        outbox.sent(6);
        assert_eq!((outbox.sendable(), outbox.unsent()), (&b"e"[..], 1));
    }

    #[test]
    fn what_was_sent_in_part_goes_on_from_there() {
        let mut outbox = Outbox::default();
        write(&mut outbox, "abc");
        outbox.sent(1);
        write(&mut outbox, "d");
        assert_eq!(outbox.sendable(), b"bcd");
        outbox.sent(3);
        assert_eq!(outbox.unsent(), 0);
    }

    #[test]
    fn memory_is_bounded_by_what_is_unsent_however_much_was_sent() {
        let mut outbox = Outbox::default();
        outbox.write(|out| out.extend_from_slice(&[255; 500]));
        for turn in 0..100_000 {
            let (before, now) = ((turn as u8).wrapping_sub(1), turn as u8);
            outbox.write(|out| out.extend_from_slice(&[now; 1000]));
            assert_eq!([outbox.sendable()[0], outbox.sendable()[500]], [before, now]);
            outbox.sent(1000);
            assert_eq!(outbox.unsent(), 500);
        }
        assert!(outbox.ready.capacity() < 100_000, "{}", outbox.ready.capacity());
    }
}
