//! How many calls each user may still make.
//!
//! Owns one token bucket for each user and kind of access, for all its connections on both doors together. Invariant: a
//! bucket that is full again is not kept, so that memory goes with the users that called lately. Root and the daemon's
//! own user have none.

use std::collections::HashMap;

use super::access::Peer;
use crate::config::Limits;
use crate::protocol::{Access, MethodError};

/// A refused call costs this part of one that is done: about what refusing it takes of the CPU. So who floods beyond
/// four times its rate has no call done at all, and is hung up on when a whole burst is owed.
const REFUSED_CALL_COST: f64 = 0.25;

/// From so many buckets on those that are full again are looked for.
const MIN_SWEEP_BUCKETS: usize = 1024;

/// What a call is to the allowance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallClass {
    /// It ends a span. It is owed in full where nothing is left, so that it can be done all the same: the span's opening
    /// was paid for, and a span that nobody may end would take energy from the others for ever.
    EndSpan,
    /// Anything else.
    Other,
}

/// A call too many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitError {
    /// What the caller is told.
    pub error: MethodError,
    /// It goes on so that it is not worth answering any more: hang up.
    pub is_flood: bool,
}

#[derive(Debug, Clone, Copy)]
struct TokenBucket {
    tokens: f64,
    updated_ns: u64,
}

/// All users' allowances.
#[derive(Debug, Default)]
pub struct RateLimiter {
    buckets: HashMap<(u32, Access), TokenBucket>,
    sweep_threshold: usize,
}

impl RateLimiter {
    /// One call of this peer at `now_ns`.
    ///
    /// # Errors
    /// [`RateLimitError`] where its calls are used up; whether an end is done all the same is for those who know its span.
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
            // As many ends as a burst has openings.
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

    /// Forgets whoever has not called for so long that nothing is to be remembered.
    fn evict_full_buckets(&mut self, now_ns: u64, limits: &Limits) {
        if self.buckets.len() < self.sweep_threshold.max(MIN_SWEEP_BUCKETS) {
            return;
        }
        self.buckets.retain(|(_, access), bucket| {
            let (rate, burst) = rate_and_burst(*access, limits);
            bucket.tokens_at(now_ns, rate, burst) < burst
        });
        // Where most are busy, looking at each of them with every call would be the flood.
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

    /// How many of `calls` at one instant are done.
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
        // 20 calls owed at a quarter each.
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
        // All of them are owed: two bursts' time later there is as much as at first.
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
            // A tenth of a second for the one call of each.
            count_accepted(&mut limiter, &peer(uid, Access::None), u64::from(uid) * SECOND_NS / 1000, 1);
        }
        assert!(limiter.buckets.len() < 3 * MIN_SWEEP_BUCKETS, "{}", limiter.buckets.len());
        let mut busy = RateLimiter::default();
        (0..5000).for_each(|uid| assert_eq!(count_accepted(&mut busy, &peer(uid, Access::None), 0, 20), 20));
        assert_eq!(count_accepted(&mut busy, &peer(0, Access::None), 0, 1), 0);
    }
}
