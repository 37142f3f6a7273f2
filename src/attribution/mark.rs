//! What one domain remembers of one span: where its clock stood at the edges.
//!
//! Owns no span and no clock. Invariant: a mark holds the clock's readings from the opening until the close, and the
//! results from then on; between two readings only differences mean anything.

use super::share::{FINE_BITS, ShareClock};

/// Errors are kept in grains of 2^-12 µJ; this one stands for "no guarantee can be given". A few of them can be added
/// up without a look at the carry.
pub(crate) const NO_BOUND: u64 = 1 << 60;
/// Grains in a microjoule, as a power of two.
pub(crate) const GRAIN_BITS: u32 = 12;

const IDLE_UNKNOWN: u64 = u64::MAX;
const IDLE_SHIFT: u32 = 12;
const ENERGY_SHIFT: u32 = 24;
const WOBBLE_SHIFT: u32 = 40;

/// How far one domain has come with one span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Waiting,
    Running,
    /// The results stand.
    Done,
}

/// Where a domain's clock stands, as marks keep it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stand {
    /// Fine per unit of weight.
    pub g: u128,
    /// What the domain used, 2^-8 µJ, wrapping.
    pub energy: u64,
    /// Idle, 2^-20 µJ per unit of weight, wrapping.
    pub idle: u64,
    /// Time for which nothing vouches.
    pub unknown_ns: u64,
}

impl Stand {
    #[inline]
    pub(crate) fn of(clock: &ShareClock, unknown_ns: u64) -> Self {
        Self {
            g: clock.g,
            energy: (clock.measured >> ENERGY_SHIFT) as u64,
            idle: (clock.idle >> IDLE_SHIFT) as u64,
            unknown_ns,
        }
    }

    /// Where it stands when `g` more has flowed.
    #[inline]
    pub(crate) fn after(&self, measured: u128, g: u64, idle: u128) -> Self {
        Self {
            g: self.g + u128::from(g),
            energy: (measured >> ENERGY_SHIFT) as u64,
            idle: (idle >> IDLE_SHIFT) as u64,
            unknown_ns: self.unknown_ns,
        }
    }
}

/// What one domain remembers of one span: one cache line, for every edge of a span touches one in each domain.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
pub(crate) struct Mark {
    /// Running: the clock's `g` at the opening or the last change of weight. Done: the share, fine.
    pub g: u128,
    /// Running: the energy at the opening, 2^-8 µJ, wrapping. Done: the window, µJ.
    pub energy: u64,
    /// Running: the clock's idle part at that edge, 2^-20 µJ per unit. Done: the idle part, µJ.
    pub idle: u64,
    /// Running: the domain's unknown time at the opening. Done: the span's.
    pub unknown_ns: u64,
    /// Running: the wobble behind that edge's group, grains·2^12 per unit of weight, wrapping. Done: the error, grains.
    pub wobble: u64,
    /// The error of the latest edge's group, grains.
    pub edge: u64,
    /// The weight from that edge on (37 bits at most), above the stage in two bits.
    heft: u64,
}

/// A domain's wobble as a mark remembers it.
#[inline]
pub(crate) fn remembered(wobble: u128) -> u64 {
    (wobble >> WOBBLE_SHIFT) as u64
}

/// The wobble between two that marks remember, times weight: grains, rounded up.
#[inline]
pub(crate) fn shaken_since(mark_wobble: u64, wobble: u64, weight: u64) -> u64 {
    // Both sides were cut off: one unit makes up for it.
    let rise = wobble.wrapping_sub(mark_wobble).checked_add(1);
    rise.and_then(|rise| rise.checked_mul(weight)).map_or(NO_BOUND, |shaken| (shaken >> 12) + 1)
}

impl Mark {
    /// The weight from the latest turn on.
    #[inline]
    pub(crate) fn weight(&self) -> u64 {
        self.heft >> 2
    }

    /// How far the domain is.
    #[inline]
    pub(crate) fn stage(&self) -> Stage {
        match self.heft & 3 {
            0 => Stage::Waiting,
            1 => Stage::Running,
            _ => Stage::Done,
        }
    }

    /// The slot has a new span: what the old one left is written over when this one opens.
    #[inline]
    pub(crate) fn wait(&mut self) {
        self.heft = Stage::Waiting as u64;
    }

    /// The span opens for this domain.
    #[inline]
    pub(crate) fn begin(&mut self, stand: &Stand, weight: u64, idle_known: bool) {
        self.g = stand.g;
        self.energy = stand.energy;
        self.idle = if idle_known { stand.idle } else { IDLE_UNKNOWN };
        self.unknown_ns = stand.unknown_ns;
        self.heft = weight << 2 | Stage::Running as u64;
    }

    /// From here on the share grows with `weight`.
    pub(crate) fn turn(&mut self, stand: &Stand, weight: u64) {
        self.g = stand.g;
        if self.idle != IDLE_UNKNOWN {
            self.idle = stand.idle;
        }
        self.heft = weight << 2 | Stage::Running as u64;
    }

    /// The error so far and where the wobble stands: what comes is counted from this group on.
    #[inline]
    pub(crate) fn begin_group(&mut self, error: u64, wobble: u64) {
        (self.edge, self.wobble) = (error, wobble);
    }

    /// The share since the last turn, fine.
    #[inline]
    pub(crate) fn share(&self, stand: &Stand) -> u128 {
        u128::from(self.weight()) * (stand.g - self.g)
    }

    /// Of it idle, fine; `None` where no idle power was known.
    #[inline]
    pub(crate) fn idle_part(&self, stand: &Stand) -> Option<u128> {
        (self.idle != IDLE_UNKNOWN).then(|| {
            (u128::from(self.weight()) * u128::from(stand.idle.wrapping_sub(self.idle))) << IDLE_SHIFT
        })
    }

    /// Everything the domain used since the opening, µJ.
    #[inline]
    pub(crate) fn window_uj(&self, stand: &Stand) -> u64 {
        stand.energy.wrapping_sub(self.energy) >> (FINE_BITS - ENERGY_SHIFT)
    }

    /// Of a mark that is done, the idle part.
    pub(crate) fn idle_uj(&self) -> Option<u64> {
        (self.idle != IDLE_UNKNOWN).then_some(self.idle)
    }

    /// The span closes for this domain, with (share, idle) fine gathered before its last turn: from now on the mark
    /// holds results, the error first of all.
    #[inline]
    pub(crate) fn finish(&mut self, stand: &Stand, before: (u128, u128), error: u64) {
        let share = before.0 + self.share(stand);
        let share_uj = whole_uj(share);
        self.idle = match self.idle_part(stand) {
            Some(idle) => whole_uj(before.1 + idle).min(share_uj),
            None => IDLE_UNKNOWN,
        };
        self.energy = self.window_uj(stand).max(share_uj);
        self.unknown_ns = stand.unknown_ns.saturating_sub(self.unknown_ns);
        self.g = share;
        self.wobble = error;
        self.heft = self.weight() << 2 | Stage::Done as u64;
    }
}

/// Fine units as whole microjoules.
#[inline]
pub(crate) fn whole_uj(fine: u128) -> u64 {
    u64::try_from(fine >> FINE_BITS).unwrap_or(u64::MAX)
}
