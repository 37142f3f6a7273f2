//! Those who watch: whose stream is due what, and when.
//!
//! Owns the list of streams and the times at which domains are told. Knows no socket: gives places, not connections.
//! A watcher that is late is told from now on; a burst of old figures helps nobody.

use super::exchange::Stream;
use crate::protocol::Access;
use crate::service::access::Peer;
use crate::service::reply_to::ConnectionId;

/// Until a sampler that rested has read again: a first answer before that would pair this instant with energy of up
/// to a second ago.
const AWAKE_NS: u64 = 5_000_000;

/// Everybody who watches something.
#[derive(Debug, Default)]
pub struct Audience {
    watchers: Vec<Watcher>,
}

#[derive(Debug)]
struct Watcher {
    place: usize,
    id: ConnectionId,
    peer: Peer,
    what: Stream,
    /// When the domains are to be told; never for spans.
    due_ns: u64,
}

impl Audience {
    /// Somebody begins to watch, at `now_ns`.
    pub fn join(&mut self, place: usize, id: ConnectionId, peer: Peer, what: Stream, now_ns: u64) {
        let due_ns = match what {
            Stream::Spans => u64::MAX,
            Stream::Domains { .. } => now_ns + AWAKE_NS,
        };
        self.watchers.push(Watcher { place, id, peer, what, due_ns });
    }

    /// A connection watches no longer; whether it did.
    pub fn leave(&mut self, id: ConnectionId) -> bool {
        let before = self.watchers.len();
        self.watchers.retain(|watcher| watcher.id != id);
        self.watchers.len() < before
    }

    /// How many streams a user has.
    pub fn streams_of(&self, uid: u32) -> usize {
        self.watchers.iter().filter(|watcher| watcher.peer.uid == uid).count()
    }

    /// How many watch the domains.
    pub fn of_domains(&self) -> usize {
        self.watchers.iter().filter(|watcher| matches!(watcher.what, Stream::Domains { .. })).count()
    }

    /// The places of all who watch spans.
    pub fn of_spans(&self) -> Vec<usize> {
        self.watchers
            .iter()
            .filter(|watcher| watcher.what == Stream::Spans)
            .map(|watcher| watcher.place)
            .collect()
    }

    /// The places of those who may see the account of a span of this user; `coarse`: it is one that a coarse caller may
    /// see.
    pub fn of_span(&self, uid: u32, coarse: bool) -> Vec<usize> {
        let own = |peer: &Peer| peer.uid == uid && (coarse || peer.access >= Access::Span);
        let sees = |peer: &Peer| own(peer) || peer.access >= Access::Telemetry;
        let watchers =
            self.watchers.iter().filter(|watcher| watcher.what == Stream::Spans && sees(&watcher.peer));
        watchers.map(|watcher| watcher.place).collect()
    }

    /// When the next is to be told of the domains.
    pub fn due_ns(&self) -> Option<u64> {
        self.watchers.iter().map(|watcher| watcher.due_ns).min().filter(|due_ns| *due_ns < u64::MAX)
    }

    /// The places of those who are to be told of the domains now; they are due again a period later.
    pub fn take_due(&mut self, now_ns: u64) -> Vec<usize> {
        let mut places = Vec::new();
        for watcher in &mut self.watchers {
            if let (Stream::Domains { period_ns }, true) = (watcher.what, watcher.due_ns <= now_ns) {
                watcher.due_ns = (watcher.due_ns + period_ns).max(now_ns);
                places.push(watcher.place);
            }
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, access: Access) -> Peer {
        Peer { uid, access, unlimited: false }
    }

    #[test]
    fn accounts_are_told_to_their_user_and_to_telemetry_only() {
        let mut audience = Audience::default();
        audience.join(0, 10, peer(1000, Access::Span), Stream::Spans, 0);
        audience.join(1, 11, peer(2000, Access::Span), Stream::Spans, 0);
        audience.join(2, 12, peer(3000, Access::Telemetry), Stream::Spans, 0);
        audience.join(3, 13, peer(3000, Access::Telemetry), Stream::Domains { period_ns: 5 }, 0);
        audience.join(4, 14, peer(1000, Access::Coarse), Stream::Spans, 0);
        assert_eq!(audience.of_span(1000, false), [0, 2]);
        assert_eq!(audience.of_span(1000, true), [0, 2, 4]);
        assert_eq!(audience.of_span(2000, true), [1, 2]);
        assert!(audience.leave(14));
        assert_eq!((audience.streams_of(3000), audience.of_domains()), (2, 1));
        assert!(audience.leave(12) && !audience.leave(12));
        assert_eq!(audience.of_span(1000, false), [0]);
    }

    #[test]
    fn domains_are_told_each_period_and_a_late_turn_is_not_made_up_for() {
        let mut audience = Audience::default();
        assert_eq!(audience.due_ns(), None);
        audience.join(4, 14, peer(0, Access::Admin), Stream::Domains { period_ns: 100 }, 1000);
        let begun_ns = 1000 + AWAKE_NS;
        assert!(audience.take_due(begun_ns - 1).is_empty(), "the samplers have not read yet");
        assert_eq!((audience.take_due(begun_ns), audience.due_ns()), (vec![4], Some(begun_ns + 100)));
        assert!(audience.take_due(begun_ns + 99).is_empty());
        assert_eq!((audience.take_due(begun_ns + 450), audience.due_ns()), (vec![4], Some(begun_ns + 450)));
    }
}
