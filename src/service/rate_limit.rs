//! The rate limit of calls per user.
//!
//! One token bucket per user and access, for all connections on both transports together. A full bucket is removed,
//! so that memory is proportional to the users with recent calls. Root and the daemon's own user have no limit.

use std::collections::HashMap;

use wattspan_client::protocol::{Access, MethodError};

use super::access::Peer;
use crate::config::Limits;

/// The cost of a rejected call relative to an executed one, by CPU time. A client at more than four times its rate has
/// no call executed, and is disconnected when its bucket is overdrawn by a whole burst.
const REFUSED_CALL_COST: f64 = 0.25;

/// The number of buckets from which full ones are removed.
const MIN_SWEEP_BUCKETS: usize = 1024;

/// The class of a call for the rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallClass {
    /// A call that ends a span. It may overdraw the bucket by its full cost, so that it can be executed: a span that
    /// cannot be ended would take energy from other spans indefinitely.
    EndSpan,
    Other,
}

/// The rate limit is exceeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitError {
    /// The error of the protocol.
    pub error: MethodError,
    /// The bucket is overdrawn by a whole burst: the connection should be closed without a reply.
    pub is_flood: bool,
}

#[derive(Debug, Clone, Copy)]
struct TokenBucket {
    tokens: f64,
    updated_ns: u64,
}

/// The token buckets of all users.
#[derive(Debug, Default)]
pub struct RateLimiter {
    buckets: HashMap<(u32, Access), TokenBucket>,
    sweep_threshold: usize,
}

impl RateLimiter {
    /// Takes one call of this peer at `now_ns`.
    ///
    /// # Errors
    /// The bucket is empty. The caller decides whether a call that ends a span is executed anyway.
    pub fn acquire(
        &mut self,
        peer: &Peer,
        class: CallClass,
        now_ns: u64,
        limits: &Limits,
    ) -> Result<(), RateLimitError> {
        if peer.unlimited {
            return Ok(());
        }
        let (rate, burst) = rate_and_burst(peer.access, limits);
        self.evict_full_buckets(now_ns, limits);
        let full = TokenBucket { tokens: burst, updated_ns: now_ns };
        let bucket = self.buckets.entry((peer.uid, peer.access)).or_insert(full);
        bucket.tokens = bucket.tokens_at(now_ns, rate, burst);
        bucket.updated_ns = bucket.updated_ns.max(now_ns);
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        let (tokens, is_flood) = match class {
            // A burst of ends is as large as a burst of openings.
            CallClass::EndSpan => (bucket.tokens - 1.0, bucket.tokens - 1.0 < -burst),
            CallClass::Other => {
                (bucket.tokens - REFUSED_CALL_COST, bucket.tokens - REFUSED_CALL_COST <= -burst)
            }
        };
        bucket.tokens = tokens.max(-burst);
        let error =
            MethodError::QuotaExceeded { quota: "calls a second".to_owned(), limit: rate.ceil() as u64 };
        Err(RateLimitError { error, is_flood })
    }

    fn evict_full_buckets(&mut self, now_ns: u64, limits: &Limits) {
        if self.buckets.len() < self.sweep_threshold.max(MIN_SWEEP_BUCKETS) {
            return;
        }
        self.buckets.retain(|(_, access), bucket| {
            let (rate, burst) = rate_and_burst(*access, limits);
            bucket.tokens_at(now_ns, rate, burst) < burst
        });
        // If most buckets are in use, a scan with every call would be too expensive.
        self.sweep_threshold = 2 * self.buckets.len();
    }
}

impl TokenBucket {
    fn tokens_at(&self, now_ns: u64, rate: f64, burst: f64) -> f64 {
        let refilled = now_ns.saturating_sub(self.updated_ns) as f64 * 1e-9 * rate;
        (self.tokens + refilled).min(burst)
    }
}

fn rate_and_burst(access: Access, limits: &Limits) -> (f64, f64) {
    match access {
        Access::None => (limits.stranger_calls_per_s, limits.stranger_calls_burst),
        Access::Coarse => (limits.coarse_calls_per_s, limits.coarse_calls_burst),
        Access::Span | Access::Telemetry | Access::Admin => (limits.calls_per_s, limits.calls_burst),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn peer(uid: u32, access: Access) -> Peer {
        Peer { uid, access, unlimited: false }
    }

    /// The number of accepted calls out of `calls` at one instant.
    fn count_accepted(limiter: &mut RateLimiter, peer: &Peer, now_ns: u64, calls: usize) -> usize {
        let limits = Limits::default();
        (0..calls).filter(|_| limiter.acquire(peer, CallClass::Other, now_ns, &limits).is_ok()).count()
    }

    #[test]
    fn each_user_has_its_own_burst_and_rate() {
        let limits = Limits::default();
        for (access, rate, burst) in [
            (Access::None, limits.stranger_calls_per_s, limits.stranger_calls_burst),
            (Access::Coarse, limits.coarse_calls_per_s, limits.coarse_calls_burst),
            (Access::Span, limits.calls_per_s, limits.calls_burst),
            (Access::Telemetry, limits.calls_per_s, limits.calls_burst),
        ] {
            let mut limiter = RateLimiter::default();
            let (ann, bob) = (peer(1000, access), peer(2000, access));
            let burst = burst as usize;
            assert_eq!(count_accepted(&mut limiter, &ann, 0, burst), burst);
            let error = limiter.acquire(&ann, CallClass::Other, 0, &limits).unwrap_err();
            let expected =
                MethodError::QuotaExceeded { quota: "calls a second".into(), limit: rate.ceil() as u64 };
            assert_eq!((error.error, error.is_flood), (expected, false));
            assert_eq!(count_accepted(&mut limiter, &bob, 0, burst), burst);
            // The refused call cost a quarter of one.
            assert_eq!(count_accepted(&mut limiter, &ann, SECOND_NS, burst), rate as usize - 1);
        }
    }

    #[test]
    fn an_idle_bucket_refills_to_its_burst_and_no_more() {
        let mut limiter = RateLimiter::default();
        let ann = peer(1000, Access::Coarse);
        assert_eq!(count_accepted(&mut limiter, &ann, 0, 400), 400);
        assert_eq!(count_accepted(&mut limiter, &ann, 3600 * SECOND_NS, 500), 400);
    }

    #[test]
    fn a_flood_is_refused_and_marked_and_ends_after_a_pause() {
        let (mut limiter, limits) = (RateLimiter::default(), Limits::default());
        let ann = peer(1000, Access::None);
        let results: Vec<_> = (0..200).map(|_| limiter.acquire(&ann, CallClass::Other, 0, &limits)).collect();
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 20);
        let floods = results.iter().flat_map(|result| result.as_ref().err());
        // The bucket is overdrawn by 20 calls, at a quarter each.
        assert_eq!(floods.filter(|error| error.is_flood).count(), 200 - 20 - 79);
        assert!(limiter.acquire(&ann, CallClass::Other, 10 * SECOND_NS, &limits).is_ok());
    }

    #[test]
    fn end_calls_overdraw_a_bucket_by_one_burst_before_they_are_a_flood() {
        let (mut limiter, limits) = (RateLimiter::default(), Limits::default());
        let ann = peer(1000, Access::Coarse);
        let burst = limits.coarse_calls_burst as usize;
        assert_eq!(count_accepted(&mut limiter, &ann, 0, burst), burst);
        let ends = |limiter: &mut RateLimiter, many| {
            let spend = |_| limiter.acquire(&ann, CallClass::EndSpan, 0, &limits).unwrap_err().is_flood;
            (0..many).map(spend).filter(|is_flood| *is_flood).count()
        };
        assert_eq!(ends(&mut limiter, burst), 0);
        assert_eq!(ends(&mut limiter, 3), 3);
        // The bucket is overdrawn by a burst: after the time of two bursts it is full again.
        let rate = limits.coarse_calls_per_s;
        let later_ns = (2.0 * burst as f64 / rate) as u64 * SECOND_NS;
        assert_eq!(count_accepted(&mut limiter, &ann, later_ns, 2 * burst), burst);
    }

    #[test]
    fn an_unlimited_peer_has_no_bucket() {
        let mut limiter = RateLimiter::default();
        let root = Peer { uid: 0, access: Access::Admin, unlimited: true };
        assert_eq!(count_accepted(&mut limiter, &root, 0, 1_000_000), 1_000_000);
        assert!(limiter.buckets.is_empty());
    }

    #[test]
    fn full_buckets_are_evicted_and_active_ones_are_kept() {
        let mut limiter = RateLimiter::default();
        for uid in 0..100_000 {
            // Each bucket takes a tenth of a second to refill its one call.
            count_accepted(&mut limiter, &peer(uid, Access::None), u64::from(uid) * SECOND_NS / 1000, 1);
        }
        assert!(limiter.buckets.len() < 3 * MIN_SWEEP_BUCKETS, "{}", limiter.buckets.len());
        let mut busy = RateLimiter::default();
        (0..5000).for_each(|uid| assert_eq!(count_accepted(&mut busy, &peer(uid, Access::None), 0, 20), 20));
        assert_eq!(count_accepted(&mut busy, &peer(0, Access::None), 0, 1), 0);
    }
}
