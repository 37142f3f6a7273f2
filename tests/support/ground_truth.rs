//! A machine whose true energy is known at every instant, and a counter on it that behaves like hardware.
//!
//! Owns a power profile (piecewise constant) and a counter that moves every `update_ns`, in steps of `quantum_uj`.
//! Only tests and benches use it; the attributor sees only readings.

#![allow(dead_code, reason = "each test and bench uses its own part")]

use wattspan::domain::{Domain, DomainKind, EnergyReading, Grade};

/// A small deterministic random number generator.
#[derive(Debug, Clone)]
pub struct TestRng(pub u64);

impl TestRng {
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A random number in `low..=high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.next_u64() % (high - low + 1)
    }
}

/// A domain whose true energy is known.
#[derive(Debug, Clone)]
pub struct GroundTruth {
    /// (from, milliwatts, energy in picojoules up to `from`)
    steps: Vec<(u64, u64, u128)>,
    /// The update interval of the counter.
    pub update_ns: u64,
    /// The instant of the counter's first update.
    pub phase_ns: u64,
    /// The step of the counter.
    pub quantum_uj: u64,
}

impl GroundTruth {
    /// Creates a machine from steps of (duration_ns, milliwatts); the last step never ends.
    pub fn new(steps: &[(u64, u64)], update_ns: u64, phase_ns: u64, quantum_uj: u64) -> Self {
        let (mut at, mut energy, mut list) = (0_u64, 0_u128, Vec::new());
        for &(duration_ns, mw) in steps {
            list.push((at, mw, energy));
            at += duration_ns;
            energy += u128::from(mw) * u128::from(duration_ns);
        }
        Self { steps: list, update_ns, phase_ns, quantum_uj }
    }

    /// True energy since 0 at `at_ns`, in picojoules.
    pub fn energy_pj(&self, at_ns: u64) -> u128 {
        let place = self.steps.partition_point(|step| step.0 <= at_ns).max(1) - 1;
        let (from, mw, energy) = self.steps[place];
        energy + u128::from(mw) * u128::from(at_ns.saturating_sub(from))
    }

    /// The counter's value at `at_ns`, in microjoules.
    pub fn counter_uj(&self, at_ns: u64) -> u64 {
        let updates = at_ns.saturating_sub(self.phase_ns) / self.update_ns;
        let updated_ns = if at_ns < self.phase_ns { 0 } else { self.phase_ns + updates * self.update_ns };
        let exact = u64::try_from(self.energy_pj(updated_ns) / 1_000_000).unwrap();
        exact / self.quantum_uj * self.quantum_uj
    }

    /// A reading of the counter at `at_ns`.
    pub fn reading(&self, at_ns: u64) -> EnergyReading {
        EnergyReading { valid: true, energy_uj: self.counter_uj(at_ns), ..EnergyReading::default() }
    }

    /// Instants at which the power changes.
    pub fn changes(&self) -> impl Iterator<Item = u64> + '_ {
        self.steps.iter().map(|step| step.0)
    }
}

/// Describes a simulated domain.
pub fn domain(name: &str, kind: DomainKind, quantum_uj: u64, ceiling_mw: Option<u64>) -> Domain {
    Domain {
        name: name.into(),
        kind,
        source: "replay".into(),
        device: None,
        parent: None,
        grade: Grade::Measured,
        ceiling_mw,
        latency_ns: 0,
        quantum_uj,
    }
}

/// An interval of constant weight of a span, for computing the true share.
#[derive(Debug, Clone, Copy)]
pub struct WeightInterval {
    pub from_ns: u64,
    pub to_ns: u64,
    pub weight: f64,
}

/// True shares in microjoules: at each instant the power is split by the weights that are open then.
pub fn true_shares_uj(truth: &GroundTruth, spans: &[Vec<WeightInterval>]) -> Vec<f64> {
    let mut edges: Vec<u64> = spans.iter().flatten().flat_map(|held| [held.from_ns, held.to_ns]).collect();
    edges.sort_unstable();
    edges.dedup();
    let mut shares = vec![0.0; spans.len()];
    for pair in edges.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let weight = |span: &Vec<WeightInterval>| -> f64 {
            span.iter().filter(|held| held.from_ns <= from && held.to_ns >= to).map(|held| held.weight).sum()
        };
        let total: f64 = spans.iter().map(weight).sum();
        if total > 0.0 {
            let energy = (truth.energy_pj(to) - truth.energy_pj(from)) as f64 / 1e6;
            for (share, span) in shares.iter_mut().zip(spans) {
                *share += energy * weight(span) / total;
            }
        }
    }
    shares
}
