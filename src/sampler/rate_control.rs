//! The sampling speed: slow while no client needs readings, fast while one does, faster for characterisation.
//!
//! A request must wake the sampler thread if it is slow, and must not if it is fast: opening ten thousand spans a
//! second costs ten thousand flag reads, not ten thousand wake-ups. Nothing here reads a clock or waits.
//!
//! A loom model checks that no request is lost, like the ring's orderings (see `ring`):
//! `RUSTFLAGS="--cfg loom" cargo test --release --lib rate_control::model`.

use atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// The atomics of the standard library, or of the model checker loom.
mod atomic {
    #[cfg(loom)]
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
    #[cfg(not(loom))]
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
}

/// The speed of the sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speed {
    /// No caller needs readings.
    Slow,
    /// A span is open or a client watches.
    Fast,
    /// Characterisation: several reads for each counter update.
    Characterise,
}

/// The requests of callers to the sampler thread.
///
/// A caller writes its request and reads `thread_slow`; the thread writes `thread_slow` and reads the requests. At
/// least one of them must see the other's write, or the thread sleeps through a request. So each side issues a SeqCst
/// fence between its write and its read. The fences have a total order: the read after the second fence sees the
/// write before the first. The flags protect no other data and are Relaxed.
pub(super) struct RateRequest {
    /// Fast sampling is requested now.
    fast_wanted: AtomicBool,
    /// The number of requests for fast sampling, so that a request shorter than a tick still counts.
    fast_requests: AtomicU64,
    /// The number of requests for characterisation.
    characterisation_requests: AtomicU64,
    /// The thread is slow and reads no request before its next tick, unless it is woken.
    thread_slow: AtomicBool,
}

impl RateRequest {
    /// Creates a state with one request: the characterisation at the start.
    pub(super) fn new() -> Self {
        Self {
            fast_wanted: AtomicBool::new(false),
            fast_requests: AtomicU64::new(0),
            characterisation_requests: AtomicU64::new(1),
            thread_slow: AtomicBool::new(false),
        }
    }

    /// Requests fast sampling or withdraws the request; returns whether the thread has to be woken.
    pub(super) fn set_fast(&self, wanted: bool) -> bool {
        // The common and cheap case: no change.
        if self.fast_wanted.load(Ordering::Relaxed) == wanted
            || self.fast_wanted.swap(wanted, Ordering::Relaxed) == wanted
            || !wanted
        {
            return false;
        }
        self.fast_requests.fetch_add(1, Ordering::Relaxed);
        self.is_thread_slow()
    }

    /// Requests a characterisation; returns whether the thread has to be woken.
    pub(super) fn request_characterisation(&self) -> bool {
        self.characterisation_requests.fetch_add(1, Ordering::Relaxed);
        self.is_thread_slow()
    }

    /// Called after a request was written. The fence pairs with the one in `set_thread_slow`.
    fn is_thread_slow(&self) -> bool {
        fence(Ordering::SeqCst);
        self.thread_slow.load(Ordering::Relaxed)
    }

    /// Called by the thread before it reads the requests once more. The fence pairs with the one in `is_thread_slow`.
    fn set_thread_slow(&self) {
        self.thread_slow.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

/// The sampler thread's side: computes the speed from the requests.
pub(super) struct RateController {
    /// `None` before the first update.
    speed: Option<Speed>,
    linger_ns: u64,
    characterisation_ns: u64,
    characterise_until_ns: u64,
    /// When fast sampling was last requested, and whether it is now.
    last_request_ns: Option<u64>,
    is_requested: bool,
    /// The values of the request counters at the last update.
    fast_requests_seen: u64,
    characterisation_requests_seen: u64,
}

impl RateController {
    /// The first [`RateController::update`] always returns a speed. Sampling becomes slow `linger_ns` after the last
    /// request; a characterisation takes `characterisation_ns`.
    pub(super) fn new(linger_ns: u64, characterisation_ns: u64) -> Self {
        Self {
            speed: None,
            linger_ns,
            characterisation_ns,
            characterise_until_ns: 0,
            last_request_ns: None,
            is_requested: false,
            fast_requests_seen: 0,
            characterisation_requests_seen: 0,
        }
    }

    /// Reads the requests; returns the new speed if it changes.
    pub(super) fn update(&mut self, now_ns: u64, request: &RateRequest) -> Option<Speed> {
        let mut speed = self.target_speed(now_ns, request);
        if speed == Speed::Slow {
            // A request after the read above either sees `thread_slow`, or is seen by the read below.
            request.set_thread_slow();
            speed = self.target_speed(now_ns, request);
        }
        if speed != Speed::Slow {
            request.thread_slow.store(false, Ordering::Relaxed);
        }
        (self.speed.replace(speed) != Some(speed)).then_some(speed)
    }

    /// Starts a characterisation of this length.
    pub(super) fn characterise_for(&mut self, now_ns: u64, duration_ns: u64) {
        self.characterise_until_ns = self.characterise_until_ns.max(now_ns + duration_ns);
    }

    /// The speed as of the last [`RateController::update`].
    pub(super) fn speed(&self) -> Option<Speed> {
        self.speed
    }

    /// Whether a caller needed readings at the last [`RateController::update`], or since the one before; false while the speed
    /// is fast because the last request is recent.
    pub(super) fn is_requested(&self) -> bool {
        self.is_requested
    }

    fn target_speed(&mut self, now_ns: u64, request: &RateRequest) -> Speed {
        let characterisation_requests = request.characterisation_requests.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.characterisation_requests_seen, characterisation_requests)
            != characterisation_requests
        {
            self.characterise_until_ns = now_ns + self.characterisation_ns;
        }
        let fast_requests = request.fast_requests.load(Ordering::Relaxed);
        let requested = std::mem::replace(&mut self.fast_requests_seen, fast_requests) != fast_requests;
        let fast = request.fast_wanted.load(Ordering::Relaxed);
        self.is_requested = fast || requested;
        if self.is_requested {
            // A request that was withdrawn already counts as one that ends now.
            self.last_request_ns = Some(now_ns);
        }
        let lingers = self
            .last_request_ns
            .is_some_and(|last_request_ns| now_ns.saturating_sub(last_request_ns) < self.linger_ns);
        if now_ns < self.characterise_until_ns {
            Speed::Characterise
        } else if self.is_requested || lingers {
            Speed::Fast
        } else {
            Speed::Slow
        }
    }
}

#[cfg(all(test, loom))]
mod model {
    use loom::sync::Arc;

    use super::*;

    /// Runs a request in every order with a thread that becomes slow after its first characterisation: afterwards the
    /// thread is awake, or the caller has to wake it.
    fn check_no_lost_wake_up(make_request: fn(&RateRequest) -> bool) {
        loom::model(move || {
            let (request, mut controller) = (Arc::new(RateRequest::new()), RateController::new(0, 500));
            assert_eq!(controller.update(1_000, &request), Some(Speed::Characterise));
            let requester = loom::thread::spawn({
                let request = Arc::clone(&request);
                move || make_request(&request)
            });
            controller.update(2_000, &request);
            let must_wake = requester.join().unwrap();
            assert!(must_wake || controller.speed != Some(Speed::Slow), "slept through");
        });
    }

    #[test]
    fn a_fast_request_is_never_lost() {
        check_no_lost_wake_up(|request| request.set_fast(true));
    }

    #[test]
    fn a_characterisation_request_is_never_lost() {
        check_no_lost_wake_up(RateRequest::request_characterisation);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const LINGER_NS: u64 = 20;
    const CHARACTERISATION_NS: u64 = 300;

    /// A controller that has done its first characterisation and is slow at 1000.
    fn slow_controller() -> (RateController, RateRequest) {
        let (mut controller, request) =
            (RateController::new(LINGER_NS, CHARACTERISATION_NS), RateRequest::new());
        assert_eq!(controller.update(0, &request), Some(Speed::Characterise));
        assert_eq!(controller.update(1_000, &request), Some(Speed::Slow));
        (controller, request)
    }

    #[test]
    fn it_characterises_first_and_then_is_slow() {
        let (mut controller, request) =
            (RateController::new(LINGER_NS, CHARACTERISATION_NS), RateRequest::new());
        assert_eq!(controller.update(5, &request), Some(Speed::Characterise));
        assert_eq!(controller.update(304, &request), None);
        assert_eq!(controller.update(305, &request), Some(Speed::Slow));
        assert_eq!(controller.update(306, &request), None);
    }

    #[test]
    fn it_starts_slow_without_characterisation() {
        let mut controller = RateController::new(LINGER_NS, 0);
        assert_eq!(controller.update(5_000, &RateRequest::new()), Some(Speed::Slow));
    }

    #[test]
    fn a_request_while_slow_has_to_wake_the_thread_and_one_while_fast_has_not() {
        let (mut controller, request) = slow_controller();
        assert!(request.set_fast(true));
        assert_eq!(controller.update(1_001, &request), Some(Speed::Fast));
        assert!(!request.set_fast(true), "it did not rise");
        assert!(!request.set_fast(false));
        assert!(!request.set_fast(true), "the thread is awake");
    }

    #[test]
    fn slow_comes_only_after_the_linger() {
        let (mut controller, request) = slow_controller();
        request.set_fast(true);
        assert_eq!(controller.update(2_000, &request), Some(Speed::Fast));
        assert_eq!(controller.update(3_000, &request), None);
        request.set_fast(false);
        assert!(controller.is_requested());
        assert_eq!(controller.update(3_001, &request), None);
        assert_eq!(controller.update(3_019, &request), None);
        assert!(!controller.is_requested());
        assert_eq!(controller.update(3_020, &request), Some(Speed::Slow));
    }

    #[test]
    fn a_request_withdrawn_before_the_update_still_counts() {
        let (mut controller, request) = slow_controller();
        assert!(request.set_fast(true));
        request.set_fast(false);
        assert_eq!(controller.update(2_000, &request), Some(Speed::Fast));
        assert!(controller.is_requested());
        assert_eq!(controller.update(2_019, &request), None);
        assert_eq!(controller.update(2_020, &request), Some(Speed::Slow));
    }

    #[test]
    fn toggled_requests_keep_it_fast_without_wake_ups() {
        let (mut controller, request) = slow_controller();
        request.set_fast(true);
        controller.update(2_000, &request);
        for now_ns in (2_010..3_000).step_by(10) {
            request.set_fast(false);
            assert!(!request.set_fast(true));
            request.set_fast(false);
            assert_eq!(controller.update(now_ns, &request), None);
        }
    }

    #[test]
    fn a_characterisation_request_wakes_the_thread_and_ends_by_itself() {
        let (mut controller, request) = slow_controller();
        assert!(request.request_characterisation());
        assert_eq!(controller.update(2_000, &request), Some(Speed::Characterise));
        assert_eq!(controller.update(2_300, &request), Some(Speed::Slow));
    }

    #[test]
    fn characterisation_is_followed_by_fast_where_requested() {
        let (mut controller, request) = slow_controller();
        request.request_characterisation();
        controller.update(2_000, &request);
        assert!(!request.set_fast(true));
        assert_eq!(controller.update(2_300, &request), Some(Speed::Fast));
    }
}
