//! How fast to tick: slow while nobody needs it, fast while somebody does, faster still to learn the counters.
//!
//! Owns the agreement between those who wish and the thread that ticks. A wish that rises while the thread rests must
//! wake it, and one that flickers while it is fast must not: opening ten thousand spans a second costs ten thousand
//! flag reads, not ten thousand wake-ups. Never reads a clock and never waits.
//!
//! That no wish is slept through is checked by a model, like the ring's orderings (see `ring`):
//! `RUSTFLAGS="--cfg loom" cargo test --release --lib pace::model`.

use atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// The machine's atomics, or the model checker's.
mod atomic {
    #[cfg(loom)]
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
    #[cfg(not(loom))]
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
}

/// How fast the sampler ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speed {
    /// Nobody needs readings.
    Slow,
    /// A span is open or somebody watches.
    Fast,
    /// Characterisation: several reads for each counter update.
    Survey,
}

/// What others want of the thread.
///
/// "I wish, do you rest?" and "I rest, do you wish?" must not both be answered with no. So each side first writes its own
/// flag, then fences, then reads the other's; the fences are SeqCst, of which one comes first, and the side whose fence
/// comes second sees what the other wrote. The flags themselves carry nothing else and are Relaxed.
pub(super) struct Wish {
    /// Fast is wanted now.
    fast: AtomicBool,
    /// How often `fast` rose, so that a wish shorter than a tick still counts.
    rises: AtomicU64,
    /// How often a survey was asked for.
    surveys: AtomicU64,
    /// The thread is slow and will not look at the wishes until it is rung.
    resting: AtomicBool,
}

impl Wish {
    /// No wish, but for one survey at the start.
    pub(super) fn new() -> Self {
        Self {
            fast: AtomicBool::new(false),
            rises: AtomicU64::new(0),
            surveys: AtomicU64::new(1),
            resting: AtomicBool::new(false),
        }
    }

    /// Wants fast, or no longer; says whether the thread has to be rung.
    pub(super) fn fast(&self, wanted: bool) -> bool {
        // The common case, and the cheap one: nothing changes.
        if self.fast.load(Ordering::Relaxed) == wanted
            || self.fast.swap(wanted, Ordering::Relaxed) == wanted
            || !wanted
        {
            return false;
        }
        self.rises.fetch_add(1, Ordering::Relaxed);
        self.thread_rests()
    }

    /// Wants a survey; says whether the thread has to be rung.
    pub(super) fn survey(&self) -> bool {
        self.surveys.fetch_add(1, Ordering::Relaxed);
        self.thread_rests()
    }

    /// Asked after a wish was written. Pairs with the fence in `rest`.
    fn thread_rests(&self) -> bool {
        fence(Ordering::SeqCst);
        self.resting.load(Ordering::Relaxed)
    }

    /// Said by the thread before it looks at the wishes for the last time. Pairs with the fence in `thread_rests`.
    fn rest(&self) {
        self.resting.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

/// The thread's side: what speed follows from the wishes.
pub(super) struct Pace {
    /// `None` before the first look.
    speed: Option<Speed>,
    linger_ns: u64,
    survey_ns: u64,
    survey_until_ns: u64,
    /// When fast was last wanted.
    wished_ns: Option<u64>,
    /// How many rises and surveys were seen.
    rises: u64,
    surveys: u64,
}

impl Pace {
    /// The first [`Pace::turn`] always gives a speed. Goes slow `linger_ns` after the last wish; a survey takes `survey_ns`.
    pub(super) fn new(linger_ns: u64, survey_ns: u64) -> Self {
        Self { speed: None, linger_ns, survey_ns, survey_until_ns: 0, wished_ns: None, rises: 0, surveys: 0 }
    }

    /// Looks at the wishes; gives the new speed where it changes.
    pub(super) fn turn(&mut self, now_ns: u64, wish: &Wish) -> Option<Speed> {
        let mut speed = self.due(now_ns, wish);
        if speed == Speed::Slow {
            // Whoever wished too late for the look above either sees `resting` and rings, or is seen by this one.
            wish.rest();
            speed = self.due(now_ns, wish);
        }
        if speed != Speed::Slow {
            wish.resting.store(false, Ordering::Relaxed);
        }
        (self.speed.replace(speed) != Some(speed)).then_some(speed)
    }

    /// The speed that the last [`Pace::turn`] came to.
    pub(super) fn speed(&self) -> Option<Speed> {
        self.speed
    }

    fn due(&mut self, now_ns: u64, wish: &Wish) -> Speed {
        let surveys = wish.surveys.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.surveys, surveys) != surveys {
            self.survey_until_ns = now_ns + self.survey_ns;
        }
        let rises = wish.rises.load(Ordering::Relaxed);
        let rose = std::mem::replace(&mut self.rises, rises) != rises;
        let fast = wish.fast.load(Ordering::Relaxed);
        if fast || rose {
            // A wish that is already over counts as one that ends now.
            self.wished_ns = Some(now_ns);
        }
        let lingers =
            self.wished_ns.is_some_and(|wished_ns| now_ns.saturating_sub(wished_ns) < self.linger_ns);
        if now_ns < self.survey_until_ns {
            Speed::Survey
        } else if fast || rose || lingers {
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

    /// Runs a wish against a thread that is about to rest after its first survey, in every order: afterwards the thread
    /// has to be awake or be rung.
    fn is_never_slept_through(wish_for: fn(&Wish) -> bool) {
        loom::model(move || {
            let (wish, mut pace) = (Arc::new(Wish::new()), Pace::new(0, 500));
            assert_eq!(pace.turn(1_000, &wish), Some(Speed::Survey));
            let wishing = loom::thread::spawn({
                let wish = Arc::clone(&wish);
                move || wish_for(&wish)
            });
            pace.turn(2_000, &wish);
            let rings = wishing.join().unwrap();
            assert!(rings || pace.speed != Some(Speed::Slow), "slept through");
        });
    }

    #[test]
    fn a_wish_for_fast_is_never_slept_through() {
        is_never_slept_through(|wish| wish.fast(true));
    }

    #[test]
    fn a_wish_for_a_survey_is_never_slept_through() {
        is_never_slept_through(Wish::survey);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const LINGER_NS: u64 = 20;
    const SURVEY_NS: u64 = 300;

    /// A pace that has done its first survey and rests at 1000.
    fn rested() -> (Pace, Wish) {
        let (mut pace, wish) = (Pace::new(LINGER_NS, SURVEY_NS), Wish::new());
        assert_eq!(pace.turn(0, &wish), Some(Speed::Survey));
        assert_eq!(pace.turn(1_000, &wish), Some(Speed::Slow));
        (pace, wish)
    }

    #[test]
    fn it_surveys_first_and_then_rests() {
        let (mut pace, wish) = (Pace::new(LINGER_NS, SURVEY_NS), Wish::new());
        assert_eq!(pace.turn(5, &wish), Some(Speed::Survey));
        assert_eq!(pace.turn(304, &wish), None);
        assert_eq!(pace.turn(305, &wish), Some(Speed::Slow));
        assert_eq!(pace.turn(306, &wish), None);
    }

    #[test]
    fn it_begins_at_rest_where_it_has_nothing_to_survey() {
        let mut pace = Pace::new(LINGER_NS, 0);
        assert_eq!(pace.turn(5_000, &Wish::new()), Some(Speed::Slow));
    }

    #[test]
    fn a_wish_at_rest_has_to_ring_and_one_while_fast_has_not() {
        let (mut pace, wish) = rested();
        assert!(wish.fast(true));
        assert_eq!(pace.turn(1_001, &wish), Some(Speed::Fast));
        assert!(!wish.fast(true), "it did not rise");
        assert!(!wish.fast(false));
        assert!(!wish.fast(true), "the thread is awake");
    }

    #[test]
    fn slow_comes_only_after_the_linger() {
        let (mut pace, wish) = rested();
        wish.fast(true);
        assert_eq!(pace.turn(2_000, &wish), Some(Speed::Fast));
        assert_eq!(pace.turn(3_000, &wish), None);
        wish.fast(false);
        assert_eq!(pace.turn(3_001, &wish), None);
        assert_eq!(pace.turn(3_019, &wish), None);
        assert_eq!(pace.turn(3_020, &wish), Some(Speed::Slow));
    }

    #[test]
    fn a_wish_that_is_over_before_the_thread_looks_still_counts() {
        let (mut pace, wish) = rested();
        assert!(wish.fast(true));
        wish.fast(false);
        assert_eq!(pace.turn(2_000, &wish), Some(Speed::Fast));
        assert_eq!(pace.turn(2_019, &wish), None);
        assert_eq!(pace.turn(2_020, &wish), Some(Speed::Slow));
    }

    #[test]
    fn flickering_wishes_keep_it_fast_and_never_ring() {
        let (mut pace, wish) = rested();
        wish.fast(true);
        pace.turn(2_000, &wish);
        for now_ns in (2_010..3_000).step_by(10) {
            wish.fast(false);
            assert!(!wish.fast(true));
            wish.fast(false);
            assert_eq!(pace.turn(now_ns, &wish), None);
        }
    }

    #[test]
    fn a_survey_on_demand_wakes_it_and_ends_by_itself() {
        let (mut pace, wish) = rested();
        assert!(wish.survey());
        assert_eq!(pace.turn(2_000, &wish), Some(Speed::Survey));
        assert_eq!(pace.turn(2_300, &wish), Some(Speed::Slow));
    }

    #[test]
    fn a_survey_gives_way_to_fast_where_that_is_wanted_meanwhile() {
        let (mut pace, wish) = rested();
        wish.survey();
        pace.turn(2_000, &wish);
        assert!(!wish.fast(true));
        assert_eq!(pace.turn(2_300, &wish), Some(Speed::Fast));
    }
}
