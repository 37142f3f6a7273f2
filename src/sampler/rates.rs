//! The sampling settings, and the rates that follow from them and from the source.
//!
//! Invariant: a rate is within the limits of the source and of this file, and never 0.

use std::sync::atomic::{AtomicU64, Ordering};

use super::rate_control::Speed;

/// The highest rate of any sampler.
const MAX_RATE_HZ: f64 = 10_000.0;
/// Reads per expected counter update during characterisation, so that the instants of the updates can be located.
const OVERSAMPLING: f64 = 4.0;

/// How samplers tick.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerSettings {
    /// Reads a second while a client needs them; at most 10,000 and the source's own maximum.
    pub rate_hz: f64,
    /// Reads a second while none does.
    pub idle_rate_hz: f64,
    /// How long after the last need it stays fast.
    pub linger_ns: u64,
    /// How long a characterisation takes, the one at the start and any asked for later.
    pub characterisation_ns: u64,
    /// How many samples the ring keeps, rounded up to a power of two. Memory is 8 · (3 + 5 · domains) bytes for each,
    /// once used.
    pub ring_samples: usize,
}

impl Default for SamplerSettings {
    fn default() -> Self {
        Self {
            rate_hz: 1000.0,
            idle_rate_hz: 1.0,
            linger_ns: 20_000_000,
            characterisation_ns: 300_000_000,
            ring_samples: 32_768,
        }
    }
}

/// Reads a second at each speed, after all limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rates {
    pub(super) slow_hz: f64,
    pub(super) fast_hz: f64,
    pub(super) characterisation_hz: f64,
}

impl Rates {
    /// Below this a rate is a way of saying "never".
    const MIN_RATE_HZ: f64 = 0.001;

    pub(super) fn new(settings: &SamplerSettings, source_max_hz: f64) -> Self {
        let clamp = |hz: f64, max_hz: f64| hz.min(max_hz).max(Self::MIN_RATE_HZ);
        let source_max_hz = clamp(source_max_hz, MAX_RATE_HZ);
        let fast_hz = clamp(settings.rate_hz, source_max_hz);
        // `source_max_hz` is about how often the counter moves; seeing when it does takes several reads a move.
        let characterisation_hz = clamp(OVERSAMPLING * source_max_hz, MAX_RATE_HZ).max(fast_hz);
        Self { slow_hz: clamp(settings.idle_rate_hz, fast_hz), fast_hz, characterisation_hz }
    }

    pub(super) fn period_ns(self, speed: Speed) -> u64 {
        let hz = match speed {
            Speed::Slow => self.slow_hz,
            Speed::Fast => self.fast_hz,
            Speed::Characterise => self.characterisation_hz,
        };
        (1e9 / hz).round() as u64
    }
}

/// The rates as they were last set, for the thread to take up. Three plain figures: a thread that looks in the middle of a
/// change ticks once at a mixture of two sound ones, and looks again.
pub(super) struct AtomicRates {
    slow_hz: AtomicU64,
    fast_hz: AtomicU64,
    characterisation_hz: AtomicU64,
    /// How often they were set.
    generation: AtomicU64,
}

impl AtomicRates {
    pub(super) fn new(rates: Rates) -> Self {
        let bits = |hz: f64| AtomicU64::new(hz.to_bits());
        let generation = AtomicU64::new(0);
        Self {
            slow_hz: bits(rates.slow_hz),
            fast_hz: bits(rates.fast_hz),
            characterisation_hz: bits(rates.characterisation_hz),
            generation,
        }
    }

    pub(super) fn store(&self, rates: Rates) {
        self.slow_hz.store(rates.slow_hz.to_bits(), Ordering::Relaxed);
        self.fast_hz.store(rates.fast_hz.to_bits(), Ordering::Relaxed);
        self.characterisation_hz.store(rates.characterisation_hz.to_bits(), Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The rates, where they were stored since `seen_generation`, which is brought up to date.
    pub(super) fn load_if_changed(&self, seen_generation: &mut u64) -> Option<Rates> {
        let generation = self.generation.load(Ordering::Acquire);
        if std::mem::replace(seen_generation, generation) == generation {
            return None;
        }
        let hz = |bits: &AtomicU64| f64::from_bits(bits.load(Ordering::Relaxed));
        Some(Rates {
            slow_hz: hz(&self.slow_hz),
            fast_hz: hz(&self.fast_hz),
            characterisation_hz: hz(&self.characterisation_hz),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_clamped_to_the_source_and_to_global_limits() {
        let rates = |rate_hz, idle_rate_hz, source_max_hz| {
            let settings = SamplerSettings { rate_hz, idle_rate_hz, ..SamplerSettings::default() };
            let rates = Rates::new(&settings, source_max_hz);
            (rates.slow_hz, rates.fast_hz, rates.characterisation_hz)
        };
        assert_eq!(rates(1000.0, 1.0, 1000.0), (1.0, 1000.0, 4000.0));
        assert_eq!(rates(1e6, 1.0, f64::INFINITY), (1.0, 10_000.0, 10_000.0));
        assert_eq!(rates(1000.0, 1.0, 10.0), (1.0, 10.0, 40.0));
        assert_eq!(rates(1000.0, 50.0, 10.0), (10.0, 10.0, 40.0));
        assert_eq!(rates(0.0, -1.0, 0.0), (0.001, 0.001, 0.004));
    }
}
