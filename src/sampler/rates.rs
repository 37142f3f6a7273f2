//! The sampling settings, and the rates that follow from them and from the source.
//!
//! Invariant: a rate is within the limits of the source and of this file, and never 0.

use std::sync::atomic::{AtomicU64, Ordering};

use super::rate_control::Speed;

/// The highest rate of any sampler.
const MAX_RATE_HZ: f64 = 10_000.0;
/// Reads per expected counter update during characterisation, so that the instants of the updates can be located.
const OVERSAMPLING: f64 = 4.0;

/// Rates, costs and memory of every sampler.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerSettings {
    /// Reads per second at the fixed rate while a client needs them; at most 10,000 and the source's own maximum.
    pub rate_hz: f64,
    /// Reads per second while no client needs them.
    pub idle_rate_hz: f64,
    /// How long sampling stays fast after the last request.
    pub linger_ns: u64,
    /// Read at `rate_hz` even where reads at edges would do.
    pub fixed_rate: bool,
    /// One span is measured. A source is read at its idle rate and at edges only, also during a characterisation, while none of
    /// its counters has ever moved.
    pub serves_one_span: bool,
    /// The length of a characterisation, at the start or requested later.
    pub characterisation_ns: u64,
    /// The capacity of the ring in samples, rounded up to a power of two. A used sample takes 8 · (3 + 5 · domains)
    /// bytes.
    pub ring_samples: usize,
}

impl Default for SamplerSettings {
    fn default() -> Self {
        Self {
            rate_hz: 1000.0,
            idle_rate_hz: 1.0,
            linger_ns: 20_000_000,
            fixed_rate: false,
            serves_one_span: false,
            characterisation_ns: 300_000_000,
            ring_samples: 32_768,
        }
    }
}

/// Reads per second at each speed, after all limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rates {
    pub(super) slow_hz: f64,
    pub(super) fast_hz: f64,
    pub(super) characterisation_hz: f64,
}

impl Rates {
    /// The minimum rate: one read in 1000 s.
    const MIN_RATE_HZ: f64 = 0.001;

    pub(super) fn new(settings: &SamplerSettings, source_max_hz: f64) -> Self {
        let clamp = |hz: f64, max_hz: f64| hz.min(max_hz).max(Self::MIN_RATE_HZ);
        let source_max_hz = clamp(source_max_hz, MAX_RATE_HZ);
        let fast_hz = clamp(settings.rate_hz, source_max_hz);
        // `source_max_hz` is about the counter's update rate; locating an update takes several reads per update.
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

/// The rates for the sampler thread. They are not stored atomically together: a thread that loads them during a
/// change may use a mixture of old and new rates, all of them valid, until the generation changes.
pub(super) struct AtomicRates {
    slow_hz: AtomicU64,
    fast_hz: AtomicU64,
    characterisation_hz: AtomicU64,
    /// The number of changes.
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

    /// Returns the rates if they changed since `seen_generation`, and updates it.
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
