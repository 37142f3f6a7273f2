//! The subscriptions of streaming calls, and when each is due.
//!
//! Holds connection indexes, not connections. The ticks of one rate lie on one grid of time, so that an update is encoded
//! once for all its subscribers. A late subscriber skips the missed periods: a burst of old figures has no use.

use wattspan_client::protocol::{Access, MethodError, WatchDomains};

use crate::service::access::Peer;
use crate::service::caller::ConnectionId;
use crate::service::list_request::StartPosition;
use crate::service::stored_stream::StoredStream;
use crate::store::{ForwardQuery, ForwardReply};

/// Delay of the first tick, until a resting sampler has read again. An earlier tick would pair the current
/// time with energy up to one second old.
const SAMPLER_WAKE_NS: u64 = 5_000_000;

/// The kind of a subscription (a call with "more").
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SubscriptionKind {
    Spans,
    /// The stored accounts from a position on, read from the store.
    StoredSpans(StartPosition),
    /// All domains, periodically.
    Domains {
        period_ns: u64,
    },
}

/// Upper limit of the rate of WatchDomains. A higher rate is reduced to it.
const MAX_RATE_HZ: f64 = 1000.0;

/// Rate of WatchDomains if the call states none.
const DEFAULT_RATE_HZ: f64 = 10.0;

pub fn domain_subscription(call: &WatchDomains) -> Result<SubscriptionKind, MethodError> {
    let rate_hz = call.rate_hz.unwrap_or(DEFAULT_RATE_HZ);
    if !(rate_hz.is_finite() && rate_hz >= 0.001) {
        let reason = "is not a valid rate; use a number from 0.001 to 1000".to_owned();
        return Err(MethodError::InvalidValue { field: "rate_hz".into(), reason });
    }
    Ok(SubscriptionKind::Domains { period_ns: (1e9 / rate_hz.min(MAX_RATE_HZ)) as u64 })
}

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
    /// Time of the next domain tick; `u64::MAX` for spans.
    due_ns: u64,
    /// Of a stream of stored accounts.
    stored: Option<StoredStream>,
}

impl Subscriptions {
    pub fn add(
        &mut self,
        index: usize,
        connection: ConnectionId,
        peer: Peer,
        kind: SubscriptionKind,
        now_ns: u64,
    ) {
        let due_ns = match kind {
            SubscriptionKind::Spans | SubscriptionKind::StoredSpans(_) => u64::MAX,
            SubscriptionKind::Domains { .. } => now_ns + SAMPLER_WAKE_NS,
        };
        let stored = match kind {
            SubscriptionKind::StoredSpans(position) => Some(StoredStream::new(position)),
            _ => None,
        };
        self.list.push(ClientSubscription { index, connection, peer, kind, due_ns, stored });
    }

    /// The connection indexes of the streams of stored accounts.
    pub fn stored_subscribers(&self) -> Vec<usize> {
        let is_stored = |subscription: &&ClientSubscription| {
            matches!(subscription.kind, SubscriptionKind::StoredSpans(_))
        };
        self.list.iter().filter(is_stored).map(|subscription| subscription.index).collect()
    }

    /// The query for the next accounts of a stream of stored ones, if it needs one. The caller calls [`Self::begin_query`] if the
    /// store takes it.
    pub fn stored_query(
        &self,
        connection: ConnectionId,
        last_store_number: u64,
        now_ns: u64,
    ) -> Option<(Peer, ForwardQuery)> {
        let subscription = self.list.iter().find(|subscription| subscription.connection == connection)?;
        let (peer, stream) = (subscription.peer, subscription.stored.as_ref()?);
        Some((peer, stream.next_query(peer.uid_filter(), last_store_number, now_ns)?))
    }

    /// Notes that the query of a stream was submitted.
    pub fn begin_query(&mut self, connection: ConnectionId, last_store_number: u64) {
        if let Some(stream) = self.stored_stream(connection) {
            stream.begin_query(last_store_number);
        }
    }

    /// Notes the result of the query of a stream; `None`: it failed.
    pub fn end_query(&mut self, connection: ConnectionId, reply: Option<&ForwardReply>, now_ns: u64) {
        if let Some(stream) = self.stored_stream(connection) {
            stream.end_query(reply, now_ns);
        }
    }

    fn stored_stream(&mut self, connection: ConnectionId) -> Option<&mut StoredStream> {
        self.list.iter_mut().find(|subscription| subscription.connection == connection)?.stored.as_mut()
    }

    /// Removes the subscription of a connection. Returns whether there was one.
    pub fn remove(&mut self, connection: ConnectionId) -> bool {
        let before = self.list.len();
        self.list.retain(|subscription| subscription.connection != connection);
        self.list.len() < before
    }

    pub fn count_of_user(&self, uid: u32) -> usize {
        self.list.iter().filter(|subscription| subscription.peer.uid == uid).count()
    }

    pub fn domain_subscriber_count(&self) -> usize {
        self.list
            .iter()
            .filter(|subscription| matches!(subscription.kind, SubscriptionKind::Domains { .. }))
            .count()
    }

    /// The connection indexes of all span subscribers.
    pub fn span_subscribers(&self) -> Vec<usize> {
        self.list
            .iter()
            .filter(|subscription| subscription.kind == SubscriptionKind::Spans)
            .map(|subscription| subscription.index)
            .collect()
    }

    /// The connection indexes of the subscribers that may see an account of this user. `coarse` states
    /// whether a caller with coarse access may see it.
    pub fn account_subscribers(&self, uid: u32, coarse: bool) -> Vec<usize> {
        let own = |peer: &Peer| peer.uid == uid && (coarse || peer.access >= Access::Span);
        let sees = |peer: &Peer| own(peer) || peer.access >= Access::Telemetry;
        let matching = self
            .list
            .iter()
            .filter(|subscription| subscription.kind == SubscriptionKind::Spans && sees(&subscription.peer));
        matching.map(|subscription| subscription.index).collect()
    }

    /// The time of the next domain tick.
    pub fn next_due_ns(&self) -> Option<u64> {
        self.list.iter().map(|subscription| subscription.due_ns).min().filter(|due_ns| *due_ns < u64::MAX)
    }

    /// The connection indexes of the domain subscribers that are due. Sets their next due time.
    pub fn take_due(&mut self, now_ns: u64) -> Vec<usize> {
        let mut indexes = Vec::new();
        for subscription in &mut self.list {
            if let (SubscriptionKind::Domains { period_ns }, true) =
                (subscription.kind, subscription.due_ns <= now_ns)
            {
                subscription.due_ns = next_tick_ns(subscription.due_ns, now_ns, period_ns);
                indexes.push(subscription.index);
            }
        }
        indexes
    }
}

/// The next instant on the grid of this period: after `now_ns`, and at least a period after the tick that was due.
fn next_tick_ns(due_ns: u64, now_ns: u64, period_ns: u64) -> u64 {
    (due_ns + period_ns).max(now_ns + 1).next_multiple_of(period_ns)
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
            (vec![4], Some(begun_ns + 500))
        );
    }

    #[test]
    fn the_ticks_of_all_subscribers_of_one_rate_are_one_event() {
        let mut subscriptions = Subscriptions::default();
        let period_ns = 10_000_000;
        for index in 0..100 {
            let kind = SubscriptionKind::Domains { period_ns };
            subscriptions.add(
                index,
                index as u64,
                peer(0, Access::Admin),
                kind,
                1_000_000_000 + 777_777 * index as u64,
            );
        }
        // All have had their first tick by then.
        let begin_ns = 1_200_000_000;
        subscriptions.take_due(begin_ns);
        let (mut ticks, mut items) = (0, 0);
        while let Some(due_ns) =
            subscriptions.next_due_ns().filter(|due_ns| *due_ns <= begin_ns + 1_000_000_000)
        {
            ticks += 1;
            items += subscriptions.take_due(due_ns).len();
        }
        assert_eq!((ticks, items), (100, 100 * 100), "100 Hz for one second");
    }

    #[test]
    fn a_high_rate_is_capped_and_an_invalid_rate_is_rejected() {
        let period = |rate_hz| domain_subscription(&WatchDomains { rate_hz });
        assert_eq!(period(Some(1e9)), Ok(SubscriptionKind::Domains { period_ns: 1_000_000 }));
        assert_eq!(period(None), Ok(SubscriptionKind::Domains { period_ns: 100_000_000 }));
        for bad in [0.0, -1.0, f64::NAN] {
            assert!(period(Some(bad)).is_err());
        }
    }
}
