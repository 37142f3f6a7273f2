//! Those who watch: whose stream is due what, and when.
//!
//! Owns the list of streams and the times at which domains are told. Knows no socket: gives places, not connections.
//! A watcher that is late is told from now on; a burst of old figures helps nobody.

use super::dispatch::SubscriptionKind;
use crate::protocol::Access;
use crate::service::access::Peer;
use crate::service::caller::ConnectionId;

/// Until a sampler that rested has read again: a first answer before that would pair this instant with energy of up
/// to a second ago.
const SAMPLER_WAKE_NS: u64 = 5_000_000;

/// Everybody who watches something.
#[derive(Debug, Default)]
pub struct Subscriptions {
    list: Vec<ClientSubscription>,
}

#[derive(Debug)]
struct ClientSubscription {
    index: usize,
    connection: ConnectionId,
    peer: Peer,
    kind: SubscriptionKind,
    /// When the domains are to be told; never for spans.
    due_ns: u64,
}

impl Subscriptions {
    /// Somebody begins to watch, at `now_ns`.
    pub fn add(
        &mut self,
        index: usize,
        connection: ConnectionId,
        peer: Peer,
        kind: SubscriptionKind,
        now_ns: u64,
    ) {
        let due_ns = match kind {
            SubscriptionKind::Spans => u64::MAX,
            SubscriptionKind::Domains { .. } => now_ns + SAMPLER_WAKE_NS,
        };
        self.list.push(ClientSubscription { index, connection, peer, kind, due_ns });
    }

    /// A connection watches no longer; whether it did.
    pub fn remove(&mut self, connection: ConnectionId) -> bool {
        let before = self.list.len();
        self.list.retain(|subscription| subscription.connection != connection);
        self.list.len() < before
    }

    /// How many streams a user has.
    pub fn count_of_user(&self, uid: u32) -> usize {
        self.list.iter().filter(|subscription| subscription.peer.uid == uid).count()
    }

    /// How many watch the domains.
    pub fn domain_subscriber_count(&self) -> usize {
        self.list
            .iter()
            .filter(|subscription| matches!(subscription.kind, SubscriptionKind::Domains { .. }))
            .count()
    }

    /// The places of all who watch spans.
    pub fn span_subscribers(&self) -> Vec<usize> {
        self.list
            .iter()
            .filter(|subscription| subscription.kind == SubscriptionKind::Spans)
            .map(|subscription| subscription.index)
            .collect()
    }

    /// The places of those who may see the account of a span of this user; `coarse`: it is one that a coarse caller may
    /// see.
    pub fn account_subscribers(&self, uid: u32, coarse: bool) -> Vec<usize> {
        let own = |peer: &Peer| peer.uid == uid && (coarse || peer.access >= Access::Span);
        let sees = |peer: &Peer| own(peer) || peer.access >= Access::Telemetry;
        let matching = self
            .list
            .iter()
            .filter(|subscription| subscription.kind == SubscriptionKind::Spans && sees(&subscription.peer));
        matching.map(|subscription| subscription.index).collect()
    }

    /// When the next is to be told of the domains.
    pub fn next_due_ns(&self) -> Option<u64> {
        self.list.iter().map(|subscription| subscription.due_ns).min().filter(|due_ns| *due_ns < u64::MAX)
    }

    /// The places of those who are to be told of the domains now; they are due again a period later.
    pub fn take_due(&mut self, now_ns: u64) -> Vec<usize> {
        let mut indexes = Vec::new();
        for subscription in &mut self.list {
            if let (SubscriptionKind::Domains { period_ns }, true) =
                (subscription.kind, subscription.due_ns <= now_ns)
            {
                subscription.due_ns = (subscription.due_ns + period_ns).max(now_ns);
                indexes.push(subscription.index);
            }
        }
        indexes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, access: Access) -> Peer {
        Peer { uid, access, unlimited: false }
    }

    #[test]
    fn accounts_are_sent_to_their_user_and_to_telemetry_only() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.add(0, 10, peer(1000, Access::Span), SubscriptionKind::Spans, 0);
        subscriptions.add(1, 11, peer(2000, Access::Span), SubscriptionKind::Spans, 0);
        subscriptions.add(2, 12, peer(3000, Access::Telemetry), SubscriptionKind::Spans, 0);
        subscriptions.add(
            3,
            13,
            peer(3000, Access::Telemetry),
            SubscriptionKind::Domains { period_ns: 5 },
            0,
        );
        subscriptions.add(4, 14, peer(1000, Access::Coarse), SubscriptionKind::Spans, 0);
        assert_eq!(subscriptions.account_subscribers(1000, false), [0, 2]);
        assert_eq!(subscriptions.account_subscribers(1000, true), [0, 2, 4]);
        assert_eq!(subscriptions.account_subscribers(2000, true), [1, 2]);
        assert!(subscriptions.remove(14));
        assert_eq!((subscriptions.count_of_user(3000), subscriptions.domain_subscriber_count()), (2, 1));
        assert!(subscriptions.remove(12) && !subscriptions.remove(12));
        assert_eq!(subscriptions.account_subscribers(1000, false), [0]);
    }

    #[test]
    fn domains_are_sent_each_period_and_missed_periods_are_skipped() {
        let mut subscriptions = Subscriptions::default();
        assert_eq!(subscriptions.next_due_ns(), None);
        subscriptions.add(4, 14, peer(0, Access::Admin), SubscriptionKind::Domains { period_ns: 100 }, 1000);
        let begun_ns = 1000 + SAMPLER_WAKE_NS;
        assert!(subscriptions.take_due(begun_ns - 1).is_empty(), "the samplers have not read yet");
        assert_eq!(
            (subscriptions.take_due(begun_ns), subscriptions.next_due_ns()),
            (vec![4], Some(begun_ns + 100))
        );
        assert!(subscriptions.take_due(begun_ns + 99).is_empty());
        assert_eq!(
            (subscriptions.take_due(begun_ns + 450), subscriptions.next_due_ns()),
            (vec![4], Some(begun_ns + 450))
        );
    }
}
