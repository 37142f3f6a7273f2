//! The guaranteed error: what the true share can be, given where the counter is known to have been.
//!
//! A share is S = ∫ f dE with f = w/W between the span's edges and 0 outside. Our figure Ŝ uses the interpolated Ê.
//! Summing by parts, S − Ŝ = −Σ (E − Ê)(τ)·Δf(τ) over all instants τ at which f jumps: the span's own edges and the
//! edges of every other span in between. E never decreases, so at each τ it lies between what the counter showed
//! before and what it showed next; that band bounds |E − Ê|. Edges between the same two updates form a *group*: of
//! a group's jumps the sum is also at most (U − L)·(max f − min f), because E can only climb from L to U once.
//! Invariant: every figure rounds up. Owns no time and no span.

use super::mark::{GRAIN_BITS, NO_BOUND};
use super::share::FINE_BITS;

/// A knot on the axis of vouched energy. Energies here are grains, wrapping: only differences mean anything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Post {
    pub early_ns: u64,
    pub late_ns: u64,
    energy: u64,
}

impl Post {
    pub(crate) fn new(early_ns: u64, late_ns: u64, energy_fine: u128) -> Self {
        Self { early_ns, late_ns, energy: place(energy_fine) }
    }
}

/// Where an energy lies on the axis, grains, wrapping, rounded down.
#[inline]
pub(crate) fn place(fine: u128) -> u64 {
    (fine >> (FINE_BITS - GRAIN_BITS)) as u64
}

/// How far the truth can be below and above our figure at an instant, grains.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Band {
    pub here: u64,
    pub below: u64,
    pub above: u64,
}

impl Band {
    /// The larger of the two.
    #[inline]
    pub(crate) fn doubt(self) -> u64 {
        self.below.max(self.above).min(NO_BOUND)
    }
}

/// Between which energies the truth can lie at an instant.
#[derive(Debug, Default)]
pub(crate) struct Fence {
    posts: Vec<Post>,
    quantum: u64,
    /// The domain's hardest draw, grains·2^-16 per nanosecond, rounded up; 0: not known.
    ceiling: u64,
    view: View,
}

/// What the posts say of a stretch of time in which none of them begins to count: worked out once for the many edges
/// that lie in it. What they do not say lies out of reach.
#[derive(Debug, Clone, Copy, Default)]
struct View {
    /// The stretch ends before this instant.
    until_ns: u64,
    /// The truth has reached this.
    floor: u64,
    /// It cannot be further below this than the hardest draw makes up for until then.
    slope: (u64, u64),
    /// It has not passed this,
    roof: u64,
    /// and cannot be further above this than the hardest draw has made since then.
    climb: (u64, u64),
}

/// Further than any doubt: where nothing is known.
const OUT_OF_REACH: u64 = NO_BOUND >> 1;

impl Fence {
    pub(crate) fn new(quantum_uj: u64, ceiling_mw: Option<u64>) -> Self {
        let steep = |mw: u64| {
            u64::try_from((u128::from(mw) << (16 + GRAIN_BITS)) / 1_000_000 + 1).unwrap_or(u64::MAX)
        };
        Self {
            posts: Vec::new(),
            quantum: quantum_uj.clamp(1, 1 << 50) << GRAIN_BITS,
            ceiling: ceiling_mw.map_or(0, steep),
            view: View::default(),
        }
    }

    /// A new knot; after a gap everything before it means nothing.
    pub(crate) fn set(&mut self, post: Post, fresh: bool) {
        if fresh {
            self.posts.clear();
        }
        self.posts.push(post);
        self.view = View::default();
    }

    /// Forgets posts that no instant from `pos_ns` on needs.
    pub(crate) fn forget(&mut self, pos_ns: u64) {
        while self.posts.get(1).is_some_and(|next| next.late_ns <= pos_ns) {
            self.posts.remove(0);
        }
    }

    /// The most that can be drawn in this time.
    #[inline]
    fn most_in(&self, duration_ns: u64) -> i64 {
        self.ceiling.checked_mul(duration_ns).map_or((NO_BOUND >> 2) as i64, |climb| (climb >> 16) as i64 + 1)
    }

    /// The same, in grains, where the hardest draw is known.
    pub(crate) fn known_most_in(&self, duration_ns: u64) -> Option<u64> {
        (self.ceiling != 0).then(|| self.most_in(duration_ns) as u64)
    }

    /// How far the truth can be from our figure `here` at `at_ns`. The last post must be the first whose `early_ns`
    /// is not before `at_ns`, and `at_ns` not before that of the last call since the last post.
    #[inline]
    pub(crate) fn band(&mut self, at_ns: u64, here: u64) -> Band {
        if at_ns >= self.view.until_ns {
            self.view = self.look(at_ns, here);
        }
        let View { floor, slope, roof, climb, .. } = self.view;
        // One grain for rounding `here` and the posts down.
        let over = |energy: u64| here.wrapping_sub(energy) as i64 + 1;
        let under = |energy: u64| energy.wrapping_sub(here) as i64 + 1;
        let below = over(floor).min(over(slope.0) + self.most_in(slope.1.wrapping_sub(at_ns)));
        let above = under(roof).min(under(climb.0) + self.most_in(at_ns.wrapping_sub(climb.1)));
        Band { here, below: below.max(0) as u64, above: above.max(0) as u64 }
    }

    /// What the posts say from `at_ns` on.
    #[cold]
    fn look(&self, at_ns: u64, here: u64) -> View {
        let (deep, high) = (here.wrapping_sub(OUT_OF_REACH), here.wrapping_add(OUT_OF_REACH));
        let floor = self.posts.iter().rposition(|post| post.late_ns <= at_ns);
        let ahead = self.posts.get(floor.map_or(0, |floor| floor + 1)..).unwrap_or_default();
        let known = self.ceiling != 0;
        // All slopes are equally steep, so the one that says most here says most all along, but for a grain.
        let steepest = ahead
            .iter()
            .filter(|_| known)
            .min_by_key(|post| here.wrapping_sub(post.energy) as i64 + self.most_in(post.late_ns - at_ns));
        let begun = self.posts.iter().rfind(|post| post.early_ns <= at_ns).filter(|_| known);
        let turns = self.posts.iter().flat_map(|post| [post.early_ns, post.late_ns]);
        View {
            until_ns: turns.filter(|&turn_ns| turn_ns > at_ns).min().unwrap_or(u64::MAX),
            floor: floor.map_or(deep, |floor| self.posts[floor].energy),
            slope: steepest.map_or((deep, at_ns), |post| (post.energy, post.late_ns)),
            roof: self.posts.last().map_or(high, |post| self.most(post)),
            climb: begun.map_or((high, at_ns), |post| (self.most(post), post.early_ns)),
        }
    }

    /// The counter shows less than a quantum too little.
    fn most(&self, post: &Post) -> u64 {
        post.energy.wrapping_add(self.quantum)
    }
}

/// The wobble of one group of edges: how far it can shift the share of a span that was open throughout, per unit of
/// weight, in grains · 2^52.
#[derive(Debug, Clone, Default)]
pub(crate) struct Group {
    jumps: u128,
    least: u64,
    most: u64,
    low: u64,
    high: u64,
}

impl Group {
    /// A group that begins while `inverse` = 1/W; its first edge lies in `band`.
    pub(crate) fn begin(inverse: u64, band: Band) -> Self {
        let least = if inverse == 0 { u64::MAX } else { inverse };
        let (low, high) = (band.here.wrapping_sub(band.below), band.here.wrapping_sub(band.below));
        Self { jumps: 0, least, most: inverse, low, high }
    }

    /// At an instant where the truth lies in `band`, 1/W jumps.
    #[inline]
    pub(crate) fn jump(&mut self, band: Band, before: u64, behind: u64) {
        self.high = band.here.wrapping_add(band.above);
        if behind == 0 {
            return;
        }
        if before != 0 {
            // 1/W was rounded down on both sides.
            let rise = before.abs_diff(behind) + 1;
            self.jumps += ((u128::from(rise) * u128::from(band.doubt())) >> 11) + 1;
        }
        self.least = self.least.min(behind);
        self.most = self.most.max(behind);
    }

    /// How far the truth can move between the group's first and last edge, grains.
    fn spread(&self) -> u64 {
        self.high.wrapping_sub(self.low)
    }

    /// The group's wobble; `drift` grains are the source's own doubt about the step.
    pub(crate) fn wobble(&self, drift: u64) -> u128 {
        let range = self.most.saturating_sub(self.least) + 1;
        let climb = (u128::from(range) * u128::from(self.spread())) >> 11;
        let own = if drift == 0 { 0 } else { ((u128::from(self.most) * u128::from(drift)) >> 11) + 1 };
        self.jumps.min(climb + 1) + own
    }

    /// The most that a span of this weight can be wrong by within the group, whatever happens in it.
    #[inline]
    pub(crate) fn cap(&self, weight: u64, drift: u64) -> u64 {
        let most = self.spread().saturating_add(drift).saturating_add(drift).min(NO_BOUND);
        part(most, fraction(weight, self.most))
    }
}

/// `min(1, weight · inverse)` in 2^-63, rounded up; 0 where there is no weight.
#[inline]
pub(crate) fn fraction(weight: u64, inverse: u64) -> u64 {
    if inverse == 0 {
        return 0;
    }
    // 1/W was rounded down: one unit of the 2^-63 for each unit of weight makes up for it.
    weight.checked_mul(inverse).map_or(1 << 63, |product| product.saturating_add(weight).min(1 << 63))
}

/// `grains · fraction`, rounded up.
#[inline]
pub(crate) fn part(grains: u64, fraction: u64) -> u64 {
    ((u128::from(grains) * u128::from(fraction)) >> 63) as u64 + u64::from(fraction != 0)
}

/// Wobble times weight, in grains, rounded up.
#[inline]
pub(crate) fn weighed(wobble: u128, weight: u64) -> u64 {
    // Grains·2^12 per unit, as marks remember it: what is cut off makes the unit.
    let cut = (wobble >> 40).min(u128::from(u64::MAX - 1)) as u64 + u64::from(wobble != 0);
    let grains = (u128::from(cut) * u128::from(weight)) >> 12;
    grains.min(u128::from(NO_BOUND - 1)) as u64 + u64::from(cut != 0)
}

/// Fine units as grains, rounded up.
#[inline]
pub(crate) fn grains(fine: u128) -> u64 {
    let shift = FINE_BITS - GRAIN_BITS;
    ((fine + ((1 << shift) - 1)) >> shift).min(u128::from(NO_BOUND - 1)) as u64
}

/// Grains as whole microjoules, rounded up; `None` where no guarantee can be given.
pub(crate) fn guaranteed_uj(error: u64) -> Option<u64> {
    (error < NO_BOUND >> 2).then(|| error.div_ceil(1 << GRAIN_BITS) + 1)
}
