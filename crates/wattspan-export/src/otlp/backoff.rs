//! The waiting time before a request is repeated: exponential, with a random part, and never before the collector allows it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Limits of the waiting time.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// Before the first repetition.
    pub first: Duration,
    /// Before later ones, at most.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(30) }
    }
}

impl Backoff {
    /// The time before the repetition after `failures` failures. `after`: the time that the collector asked for.
    pub fn delay(&self, failures: u32, after: Option<Duration>) -> Duration {
        self.delay_with(failures, after, random_half())
    }

    /// `random`: from 0 to 1/2. Exporters whose collector fails at one instant do not return at one instant.
    fn delay_with(&self, failures: u32, after: Option<Duration>, random: f64) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(self.longest);
        doubled.mul_f64(0.5 + random).max(after.unwrap_or_default())
    }
}

/// A random number from 0 to 1/2. The keys of std's hasher are random.
fn random_half() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 12;
    bits as f64 / (1_u64 << 52) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_a_limit_and_are_never_shorter_than_the_collector_asks() {
        let backoff = Backoff::default();
        let delay_ms = |failures, after_s: u64, random| {
            backoff.delay_with(failures, Some(Duration::from_secs(after_s)), random).as_millis()
        };
        assert_eq!(
            [1, 2, 3, 6, 40].map(|failures| delay_ms(failures, 0, 0.5)),
            [1000, 2000, 4000, 30_000, 30_000]
        );
        assert_eq!((delay_ms(1, 0, 0.0), delay_ms(1, 7, 0.5), delay_ms(9, 7, 0.5)), (500, 7000, 30_000));
        let random: Vec<f64> = (0..100).map(|_| random_half()).collect();
        assert!(random.iter().all(|part| (0.0..=0.5).contains(part)));
        assert!(random.iter().any(|part| *part != random[0]));
    }
}
