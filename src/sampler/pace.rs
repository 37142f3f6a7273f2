//! How fast to tick: slow while nobody needs it, fast while somebody does, faster still to learn the counters.
//!
//! Owns the agreement between those who wish and the thread that ticks. A wish that rises while the thread rests must
//! wake it, and one that flickers while it is fast must not: opening ten thousand spans a second costs ten thousand
//! flag reads, not ten thousand wake-ups. Never reads a clock and never waits.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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

/// What others want of the thread. All orders are SeqCst: "I wish, do you rest?" and "I rest, do you wish?" must not
/// both be answered with no.
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
        let rose = wanted && !self.fast.swap(wanted, Ordering::SeqCst);
        if !wanted {
            self.fast.store(false, Ordering::SeqCst);
        }
        if rose {
            self.rises.fetch_add(1, Ordering::SeqCst);
        }
        rose && self.resting.load(Ordering::SeqCst)
    }

    /// Wants a survey; says whether the thread has to be rung.
    pub(super) fn survey(&self) -> bool {
        self.surveys.fetch_add(1, Ordering::SeqCst);
        self.resting.load(Ordering::SeqCst)
    }
}

/// The thread's side: what speed follows from the wishes.
pub(super) struct Pace {
    /// `None` before the first look.
    speed: Option<Speed>,
    linger_ns: u64,
    survey_ns: u64,
    survey_until_ns: u64,
    /// Since when nobody has wanted fast.
    calm_since_ns: Option<u64>,
    /// How many rises and surveys were seen.
    rises: u64,
    surveys: u64,
}

impl Pace {
    /// The first [`Pace::turn`] always gives a speed. Goes slow `linger_ns` after the last wish; a survey takes `survey_ns`.
    pub(super) fn new(linger_ns: u64, survey_ns: u64) -> Self {
        Self {
            speed: None,
            linger_ns,
            survey_ns,
            survey_until_ns: 0,
            calm_since_ns: None,
            rises: 0,
            surveys: 0,
        }
    }

    /// Looks at the wishes; gives the new speed where it changes.
    pub(super) fn turn(&mut self, now_ns: u64, wish: &Wish) -> Option<Speed> {
        let mut speed = self.due(now_ns, wish);
        wish.resting.store(speed == Speed::Slow, Ordering::SeqCst);
        if speed == Speed::Slow {
            // Whoever wished before reading `resting` as true did not ring: look once more.
            speed = self.due(now_ns, wish);
            wish.resting.store(speed == Speed::Slow, Ordering::SeqCst);
        }
        (self.speed.replace(speed) != Some(speed)).then_some(speed)
    }

    fn due(&mut self, now_ns: u64, wish: &Wish) -> Speed {
        let surveys = wish.surveys.load(Ordering::SeqCst);
        if std::mem::replace(&mut self.surveys, surveys) != surveys {
            self.survey_until_ns = now_ns + self.survey_ns;
        }
        let rises = wish.rises.load(Ordering::SeqCst);
        let rose = std::mem::replace(&mut self.rises, rises) != rises;
        let calm_since_ns = match wish.fast.load(Ordering::SeqCst) || rose {
            // A wish that is already over counts as one that ends now.
            true => now_ns,
            false => self.calm_since_ns.unwrap_or_else(|| now_ns.saturating_sub(self.linger_ns)),
        };
        self.calm_since_ns = Some(calm_since_ns);
        if now_ns < self.survey_until_ns {
            Speed::Survey
        } else if wish.fast.load(Ordering::SeqCst) || now_ns.saturating_sub(calm_since_ns) < self.linger_ns {
            Speed::Fast
        } else {
            Speed::Slow
        }
    }
}

#[cfg(test)]
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
