//! The state of one span in one domain: the domain's clock at the span's edges.
//!
//! Owns no span and no clock. Invariant: a state holds the clock's readings from the opening until the close, and the
//! results from then on; between two readings only differences mean anything.

use super::virtual_energy::{ENERGY_FRACTION_BITS, VirtualEnergy};

/// Errors are kept in error units of 2^-12 µJ; this one stands for "no guarantee can be given". A few of them can be
/// added up without overflow.
pub(crate) const UNBOUNDED_ERROR: u64 = 1 << 60;
/// Error units in a microjoule, as a power of two.
pub(crate) const ERROR_FRACTION_BITS: u32 = 12;

const IDLE_UNKNOWN: u64 = u64::MAX;
const IDLE_SHIFT: u32 = 12;
const ENERGY_SHIFT: u32 = 24;
const ACCUMULATED_ERROR_SHIFT: u32 = 40;

/// How far one domain has come with one span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpanDomainStage {
    Pending,
    Open,
    /// The results are final.
    Closed,
}

/// A snapshot of a domain's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClockSnapshot {
    /// Energy units per unit of weight.
    pub g: u128,
    /// What the domain used, 2^-8 µJ, wrapping.
    pub energy: u64,
    /// Idle, 2^-20 µJ per unit of weight, wrapping.
    pub idle_g: u64,
    /// Time without readings.
    pub unknown_ns: u64,
}

impl ClockSnapshot {
    #[inline]
    pub(crate) fn of(clock: &VirtualEnergy, unknown_ns: u64) -> Self {
        Self {
            g: clock.g,
            energy: (clock.measured >> ENERGY_SHIFT) as u64,
            idle_g: (clock.idle_g >> IDLE_SHIFT) as u64,
            unknown_ns,
        }
    }

    /// The clock after `g` more.
    #[inline]
    pub(crate) fn advanced_by(&self, measured: u128, g: u64, idle: u128) -> Self {
        Self {
            g: self.g + u128::from(g),
            energy: (measured >> ENERGY_SHIFT) as u64,
            idle_g: (idle >> IDLE_SHIFT) as u64,
            unknown_ns: self.unknown_ns,
        }
    }
}

/// The state of one span in one domain: one cache line, for every edge of a span touches one in each domain.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
pub(crate) struct SpanDomainState {
    /// Open: the clock's `g` at the opening or the last change of weight. Closed: the share, energy units.
    pub g: u128,
    /// Open: the energy at the opening, 2^-8 µJ, wrapping. Closed: the window, µJ.
    pub energy: u64,
    /// Open: the clock's idle part at that edge, 2^-20 µJ per unit. Closed: the idle part, µJ.
    pub idle_g: u64,
    /// Open: the domain's unknown time at the opening. Closed: the span's.
    pub unknown_ns: u64,
    /// Open: the accumulated error after that edge's group, error units·2^12 per unit of weight, wrapping. Closed: the
    /// error, error units.
    pub accumulated_error: u64,
    /// The error of the latest edge's group, error units.
    pub edge_error: u64,
    /// The weight from that edge on (37 bits at most), above the stage in two bits.
    weight_and_stage: u64,
}

/// A domain's accumulated error as span states store it.
#[inline]
pub(crate) fn stored_accumulated_error(accumulated: u128) -> u64 {
    (accumulated >> ACCUMULATED_ERROR_SHIFT) as u64
}

/// The accumulated error between two that span states store, times weight: error units, rounded up.
#[inline]
pub(crate) fn accumulated_error_since(since: u64, accumulated: u64, weight: u64) -> u64 {
    // Both sides were cut off: one unit makes up for it.
    let rise = accumulated.wrapping_sub(since).checked_add(1);
    rise.and_then(|rise| rise.checked_mul(weight)).map_or(UNBOUNDED_ERROR, |error| (error >> 12) + 1)
}

impl SpanDomainState {
    /// The weight from the latest weight edge on.
    #[inline]
    pub(crate) fn weight(&self) -> u64 {
        self.weight_and_stage >> 2
    }

    /// How far the domain is.
    #[inline]
    pub(crate) fn stage(&self) -> SpanDomainStage {
        match self.weight_and_stage & 3 {
            0 => SpanDomainStage::Pending,
            1 => SpanDomainStage::Open,
            _ => SpanDomainStage::Closed,
        }
    }

    /// The slot has a new span: what the old one left is written over when this one opens.
    #[inline]
    pub(crate) fn reset(&mut self) {
        self.weight_and_stage = SpanDomainStage::Pending as u64;
    }

    /// The span opens for this domain.
    #[inline]
    pub(crate) fn open(&mut self, clock: &ClockSnapshot, weight: u64, idle_known: bool) {
        self.g = clock.g;
        self.energy = clock.energy;
        self.idle_g = if idle_known { clock.idle_g } else { IDLE_UNKNOWN };
        self.unknown_ns = clock.unknown_ns;
        self.weight_and_stage = weight << 2 | SpanDomainStage::Open as u64;
    }

    /// From here on the share grows with `weight`.
    pub(crate) fn change_weight(&mut self, clock: &ClockSnapshot, weight: u64) {
        self.g = clock.g;
        if self.idle_g != IDLE_UNKNOWN {
            self.idle_g = clock.idle_g;
        }
        self.weight_and_stage = weight << 2 | SpanDomainStage::Open as u64;
    }

    /// The error so far and the accumulated error: what comes is counted from this group on.
    #[inline]
    pub(crate) fn start_group(&mut self, error: u64, accumulated: u64) {
        (self.edge_error, self.accumulated_error) = (error, accumulated);
    }

    /// The share since the last weight edge, energy units.
    #[inline]
    pub(crate) fn share(&self, clock: &ClockSnapshot) -> u128 {
        u128::from(self.weight()) * (clock.g - self.g)
    }

    /// Of it idle, energy units; `None` where no idle power was known.
    #[inline]
    pub(crate) fn idle_share(&self, clock: &ClockSnapshot) -> Option<u128> {
        (self.idle_g != IDLE_UNKNOWN).then(|| {
            (u128::from(self.weight()) * u128::from(clock.idle_g.wrapping_sub(self.idle_g))) << IDLE_SHIFT
        })
    }

    /// Everything the domain used since the opening, µJ.
    #[inline]
    pub(crate) fn window_uj(&self, clock: &ClockSnapshot) -> u64 {
        clock.energy.wrapping_sub(self.energy) >> (ENERGY_FRACTION_BITS - ENERGY_SHIFT)
    }

    /// Of a closed state, the idle part.
    pub(crate) fn idle_uj(&self) -> Option<u64> {
        (self.idle_g != IDLE_UNKNOWN).then_some(self.idle_g)
    }

    /// The span closes for this domain, with (share, idle) energy units gathered before its last weight edge: from now
    /// on the state holds results, the error first of all.
    #[inline]
    pub(crate) fn close(&mut self, clock: &ClockSnapshot, before: (u128, u128), error: u64) {
        let share = before.0 + self.share(clock);
        let share_uj = whole_uj(share);
        self.idle_g = match self.idle_share(clock) {
            Some(idle) => whole_uj(before.1 + idle).min(share_uj),
            None => IDLE_UNKNOWN,
        };
        self.energy = self.window_uj(clock).max(share_uj);
        self.unknown_ns = clock.unknown_ns.saturating_sub(self.unknown_ns);
        self.g = share;
        self.accumulated_error = error;
        self.weight_and_stage = self.weight() << 2 | SpanDomainStage::Closed as u64;
    }
}

/// Energy units as whole microjoules.
#[inline]
pub(crate) fn whole_uj(energy: u128) -> u64 {
    u64::try_from(energy >> ENERGY_FRACTION_BITS).unwrap_or(u64::MAX)
}
