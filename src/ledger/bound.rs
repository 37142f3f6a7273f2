//! The guaranteed error: what the true share can be, given where the counter is known to have been.
//!
//! A share is S = ∫ f dE with f = w/W between the span's edges and 0 outside. Our figure Ŝ uses the interpolated Ê.
//! Summing by parts, S − Ŝ = −Σ (E − Ê)(τ)·Δf(τ) over all instants τ at which f jumps: the span's own edges and the
//! edges of every other span in between. E never decreases, so at each τ it lies between what the counter showed
//! before and what it showed next; that band bounds |E − Ê|. Edges between the same two updates form a *group*: of
//! a group's jumps the sum is also at most (U − L)·(max f − min f), because E can only climb from L to U once.
//! Invariant: every figure rounds up. Owns no time and no span.

use std::collections::VecDeque;

use super::share::FINE_BITS;
use super::span::{GRAIN_BITS, NO_BOUND};

/// A knot on the axis of vouched energy (fine).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Post {
    pub early_ns: u64,
    pub late_ns: u64,
    pub energy: u128,
}

/// Between which energies the truth can lie at an instant.
#[derive(Debug, Default)]
pub(crate) struct Fence {
    posts: VecDeque<Post>,
    quantum: u128,
    /// The domain's hardest draw, fine per nanosecond, rounded up.
    ceiling: Option<u128>,
}

impl Fence {
    pub(crate) fn new(quantum_uj: u64, ceiling_mw: Option<u64>) -> Self {
        Self {
            posts: VecDeque::new(),
            quantum: u128::from(quantum_uj.max(1)) << FINE_BITS,
            ceiling: ceiling_mw.map(|mw| (u128::from(mw) << FINE_BITS) / 1_000_000 + 1),
        }
    }

    /// A new knot; after a gap everything before it means nothing.
    pub(crate) fn set(&mut self, post: Post, fresh: bool) {
        if fresh {
            self.posts.clear();
        }
        self.posts.push_back(post);
    }

    /// Forgets posts that no instant from `pos_ns` on needs.
    pub(crate) fn forget(&mut self, pos_ns: u64) {
        while self.posts.get(1).is_some_and(|next| next.late_ns <= pos_ns) {
            self.posts.pop_front();
        }
    }

    /// The least and the most the truth can be at `at_ns`, fine. The last post must be the first whose `early_ns`
    /// is not before `at_ns`.
    #[inline]
    pub(crate) fn band(&self, at_ns: u64) -> (u128, u128) {
        let mut low = 0;
        for post in self.posts.iter().rev() {
            if post.late_ns <= at_ns {
                low = low.max(post.energy);
                break;
            }
            if let Some(ceiling) = self.ceiling {
                low = low.max(post.energy.saturating_sub(ceiling * u128::from(post.late_ns - at_ns)));
            }
        }
        let mut high = self.posts.back().map_or(u128::MAX, |post| post.energy + self.quantum);
        if let Some(ceiling) = self.ceiling {
            let begun = self.posts.iter().rev().find(|post| post.early_ns <= at_ns);
            if let Some(post) = begun {
                let rise = ceiling * u128::from(at_ns - post.early_ns);
                high = high.min(post.energy + self.quantum + rise);
            }
        }
        (low, high)
    }
}

/// The wobble of one group of edges: how far it can shift the share of a span that was open throughout, per unit of
/// weight, in grains · 2^52.
#[derive(Debug, Default)]
pub(crate) struct Group {
    jumps: u128,
    least: u64,
    most: u64,
    low: Option<u128>,
    high: u128,
}

impl Group {
    /// A group that begins while `inverse` = 1/W.
    pub(crate) fn begin(inverse: u64) -> Self {
        let least = if inverse == 0 { u64::MAX } else { inverse };
        Self { jumps: 0, least, most: inverse, low: None, high: 0 }
    }

    /// At an instant where the truth lies in `band`, at most `doubt` grains from our figure, 1/W jumps.
    pub(crate) fn jump(&mut self, band: (u128, u128), doubt: u64, before: u64, behind: u64) {
        self.low = self.low.or(Some(band.0));
        self.high = self.high.max(band.1);
        if before != 0 && behind != 0 {
            // 1/W was rounded down on both sides.
            let rise = before.abs_diff(behind) + 1;
            self.jumps = self.jumps.saturating_add(((u128::from(rise) * u128::from(doubt)) >> 11) + 1);
        }
        if behind != 0 {
            self.least = self.least.min(behind);
            self.most = self.most.max(behind);
        }
    }

    /// How far the truth can move between the group's first and last edge, grains.
    fn spread(&self) -> u64 {
        self.low.map_or(0, |low| grains(self.high.saturating_sub(low)))
    }

    /// The group's wobble; `drift` grains are the source's own doubt about the step.
    pub(crate) fn wobble(&self, drift: u64) -> u128 {
        let range = self.most.saturating_sub(self.least);
        let climb = (u128::from(range) * u128::from(self.spread())) >> 11;
        let own = if drift == 0 { 0 } else { ((u128::from(self.most) * u128::from(drift)) >> 11) + 1 };
        self.jumps.min(climb.saturating_add(1)) + own
    }

    /// The most that a span of this weight can be wrong by within the group, whatever happens in it.
    pub(crate) fn cap(&self, weight: u64, drift: u64) -> u64 {
        let all = self.spread().saturating_add(drift).saturating_add(drift);
        part(all, weight, self.most)
    }
}

/// `grains · min(1, weight · inverse)`, rounded up.
pub(crate) fn part(grains: u64, weight: u64, inverse: u64) -> u64 {
    let fraction = (u128::from(weight) * u128::from(inverse)).min(1 << 63);
    if fraction == 0 {
        return 0;
    }
    // 1/W was rounded down: one unit of the 2^-63 for each unit of weight makes up for it.
    let fraction = (fraction + u128::from(weight)).min(1 << 63);
    u64::try_from(((u128::from(grains) * fraction) >> 63) + 1).unwrap_or(NO_BOUND)
}

/// Wobble times weight, in grains, rounded up.
pub(crate) fn weighed(wobble: u128, weight: u64) -> u64 {
    if wobble == 0 || weight == 0 {
        return 0;
    }
    u64::try_from((wobble.saturating_mul(u128::from(weight)) >> 52) + 1).unwrap_or(NO_BOUND)
}

/// Fine units as grains, rounded up.
pub(crate) fn grains(fine: u128) -> u64 {
    u64::try_from(fine.div_ceil(1 << (FINE_BITS - GRAIN_BITS))).unwrap_or(NO_BOUND)
}

/// Grains as whole microjoules, rounded up; `None` where no guarantee can be given.
pub(crate) fn guaranteed_uj(error: u64) -> Option<u64> {
    (error != NO_BOUND).then(|| error.div_ceil(1 << GRAIN_BITS) + 1)
}
