//! Simulated counters over a power that is known at each instant, and the source that reads them.
//!
//! The truth is computed here from the power alone. A counter behaves like a RAPL register: it moves at intervals, shows the
//! energy of a moment ago, and wraps at 32 bits. Faults: resets, stalls, lost and slow reads.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use super::random::Random;
use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, EnergyReading, Grade};
use crate::sources::counter::{Counter, CounterSpec};
use crate::sources::energy_unit::EnergyUnit;
use crate::sources::{OpenedSource, Source};

const MS_NS: u64 = 1_000_000;
const SECOND_NS: u64 = 1_000_000_000;

/// The past for which the truth is kept. No span lasts longer.
pub(super) const KEPT_NS: u64 = 1_200 * SECOND_NS;

/// The highest power of a simulated domain.
pub(super) const CEILING_MW: u64 = 400_000;

const UNIT: EnergyUnit = EnergyUnit::TWO_TO_THE_MINUS_16_JOULES;
const MODULUS: u128 = 1 << 32;

/// Power from an instant on, and the energy before it.
#[derive(Debug, Clone, Copy)]
struct PowerStep {
    from_ns: u64,
    power_mw: u64,
    energy_pj: u128,
}

/// A domain's power over time, which is made up as time goes on.
#[derive(Debug)]
struct PowerProfile {
    random: Random,
    /// The lowest power.
    floor_mw: u64,
    steps: VecDeque<PowerStep>,
    /// Where the last step ends.
    end_ns: u64,
}

impl PowerProfile {
    fn new(random: Random, start_ns: u64, floor_mw: u64) -> Self {
        let first = PowerStep { from_ns: start_ns, power_mw: 20_000, energy_pj: 0 };
        Self { random, floor_mw, steps: VecDeque::from([first]), end_ns: start_ns }
    }

    /// The true energy since the start in pJ, which are mW · ns.
    fn energy_pj(&mut self, at_ns: u64) -> u128 {
        while self.end_ns <= at_ns {
            self.add_step();
        }
        let place = self.steps.partition_point(|step| step.from_ns <= at_ns).max(1) - 1;
        let step = self.steps[place];
        assert!(step.from_ns <= at_ns, "the truth of {at_ns} is forgotten");
        step.energy_pj + u128::from(step.power_mw) * u128::from(at_ns - step.from_ns)
    }

    fn add_step(&mut self) {
        let Some(&last) = self.steps.back() else { return };
        let from_ns = self.end_ns;
        let energy_pj = last.energy_pj + u128::from(last.power_mw) * u128::from(from_ns - last.from_ns);
        let power_mw = match self.random.below(8) {
            0 => self.floor_mw,
            1 => CEILING_MW,
            2..5 => self.random.between(5_000, 30_000),
            _ => self.random.between(self.floor_mw, CEILING_MW),
        };
        self.steps.push_back(PowerStep { from_ns, power_mw, energy_pj });
        self.end_ns += MS_NS << self.random.below(12);
        while self.steps.len() > 2 && self.steps[1].from_ns + KEPT_NS < from_ns {
            self.steps.pop_front();
        }
    }
}

/// A counter, and what happens to it.
#[derive(Debug)]
pub(super) struct SimulatedCounter {
    pub(super) name: &'static str,
    profile: PowerProfile,
    /// Its updates come at multiples of this after `start_ns`, each late by up to an eighth of it.
    pub(super) interval_ns: u64,
    is_regular: bool,
    lag_ns: u64,
    start_ns: u64,
    /// The raw count at `reset_ns`, when it began to count.
    base: u64,
    reset_ns: u64,
    /// It does not move between these instants.
    stalled_ns: (u64, u64),
    /// Reads up to this instant are lost. The flag: as reads of a device that was absent.
    lost_until_ns: (u64, bool),
}

pub(super) type SharedCounter = Arc<Mutex<SimulatedCounter>>;

/// The guard of a counter; all run on one thread.
pub(super) fn lock(counter: &SharedCounter) -> MutexGuard<'_, SimulatedCounter> {
    counter.lock().expect("no read panics")
}

impl SimulatedCounter {
    /// `is_used`: its power is never 0, so that it always moves.
    pub(super) fn new(
        name: &'static str,
        interval_ns: u64,
        mut random: Random,
        start_ns: u64,
        is_used: bool,
    ) -> Self {
        let lag_ns = random.below(interval_ns / 10 + 1);
        // Half of the counters begin shortly before a wrap.
        let base = if random.below(2) == 0 { u64::from(u32::MAX) - random.below(1 << 22) } else { 0 };
        Self {
            name,
            interval_ns,
            is_regular: random.below(3) > 0,
            lag_ns,
            start_ns,
            base,
            reset_ns: start_ns,
            stalled_ns: (0, 0),
            lost_until_ns: (0, false),
            profile: PowerProfile::new(random, start_ns, if is_used { 2_000 } else { 0 }),
        }
    }

    /// The true energy between two instants, µJ.
    pub(super) fn energy_uj(&mut self, from_ns: u64, to_ns: u64) -> f64 {
        (self.profile.energy_pj(to_ns) - self.profile.energy_pj(from_ns)) as f64 / 1e6
    }

    /// The instant of an update.
    fn update_ns(&self, number: u64) -> u64 {
        let late_ns = match self.is_regular {
            true => 0,
            false => Random::new(number ^ self.start_ns).below(self.interval_ns / 8 + 1),
        };
        self.start_ns + number * self.interval_ns + late_ns
    }

    /// The raw count that a read at this instant returns.
    fn raw(&mut self, at_ns: u64) -> u64 {
        (self.unwrapped(at_ns) % MODULUS) as u64
    }

    /// The count at this instant as if it had no end.
    fn unwrapped(&mut self, at_ns: u64) -> u128 {
        let shown_ns = at_ns.saturating_sub(self.lag_ns).max(self.start_ns);
        let mut number = (shown_ns - self.start_ns) / self.interval_ns;
        if number > 0 && self.update_ns(number) > shown_ns {
            number -= 1;
        }
        // The updates during a stall never appear: one that appeared late would break the stated latency.
        let (stalled_ns, moves_ns) = self.stalled_ns;
        if at_ns >= stalled_ns && self.update_ns(number) < moves_ns {
            number = number.min((stalled_ns.max(self.start_ns) - self.start_ns) / self.interval_ns);
        }
        // The first update may come late.
        let updated_ns = self.update_ns(number).min(shown_ns).max(self.reset_ns);
        self.counts(updated_ns) - self.counts(self.reset_ns) + u128::from(self.base)
    }

    fn counts(&mut self, at_ns: u64) -> u128 {
        self.profile.energy_pj(at_ns) * 65_536 / 1_000_000_000_000
    }

    /// Restarts the count, as a driver that is loaded again. It does not where the restart would look like a wrap.
    pub(super) fn reset(&mut self, at_ns: u64) {
        if self.raw(at_ns) < 1 << 30 {
            (self.base, self.reset_ns) = (0, at_ns);
        }
    }

    /// Adds counts without energy that belongs to anybody: those of a suspend.
    pub(super) fn jump(&mut self, counts: u64) {
        self.base += counts;
    }

    pub(super) fn stall(&mut self, from_ns: u64, to_ns: u64) {
        self.stalled_ns = (from_ns, to_ns);
    }

    pub(super) fn lose_reads(&mut self, until_ns: u64, was_absent: bool) {
        self.lost_until_ns = (until_ns, was_absent);
    }

    /// The description of its domain.
    fn domain(&self, kind: DomainKind) -> Domain {
        Domain {
            name: self.name.into(),
            kind,
            source: "simulated".into(),
            device: None,
            parent: None,
            grade: Grade::Measured,
            ceiling_mw: Some(CEILING_MW),
            latency_ns: self.interval_ns / 10,
            quantum_uj: UNIT.quantum_uj(),
        }
    }

    fn spec(&self) -> CounterSpec {
        CounterSpec {
            unit: UNIT,
            modulus: MODULUS,
            ceiling_mw: 2_000_000,
            staleness_ns: 2 * self.interval_ns,
            range_uj: u64::try_from(UNIT.to_uj(MODULUS)).expect("65 kJ"),
        }
    }
}

/// Slow reads of a source: until this instant each takes up to `cost_ns`.
#[derive(Debug, Default)]
pub(super) struct SlowReads {
    pub(super) until_ns: u64,
    pub(super) cost_ns: u64,
}

/// The energy that a counter's readings must show: that of each count within an epoch.
#[derive(Debug, Default)]
struct CheckedCount {
    /// The epoch and the unwrapped count of the last reading.
    last: Option<(u32, u128)>,
    counts: u128,
}

impl CheckedCount {
    fn check(&mut self, unwrapped: u128, reading: &EnergyReading) {
        if let Some((epoch, before)) = self.last
            && epoch == reading.epoch
        {
            self.counts += unwrapped - before;
        }
        self.last = Some((reading.epoch, unwrapped));
        assert_eq!(u128::from(reading.energy_uj), UNIT.to_uj(self.counts), "{self:?} {reading:?}");
    }
}

/// Reads the counters; each read takes time on the virtual clock.
struct SimulatedSource {
    clock: Clock,
    random: Random,
    counters: Vec<(SharedCounter, Counter, CheckedCount)>,
    slow: Arc<Mutex<SlowReads>>,
    can_block: bool,
}

impl Source for SimulatedSource {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        let before_ns = self.clock.now_ns();
        let most_ns = {
            let slow = self.slow.lock().expect("no read panics");
            if before_ns < slow.until_ns { slow.cost_ns } else { 20_000 }
        };
        self.clock.set(before_ns + self.random.below(most_ns));
        for ((counter, converter, checked), reading) in self.counters.iter_mut().zip(into) {
            let mut counter = lock(counter);
            let (lost_until_ns, was_absent) = counter.lost_until_ns;
            if before_ns < lost_until_ns {
                if was_absent {
                    converter.interrupt();
                }
                continue;
            }
            let now_ns = self.clock.now_ns();
            let unwrapped = counter.unwrapped(now_ns);
            *reading = converter.advance((unwrapped % MODULUS) as u64, before_ns, now_ns);
            checked.check(unwrapped, reading);
        }
        self.clock.set(self.clock.now_ns() + self.random.below(5_000));
        None
    }

    fn can_block(&self) -> bool {
        self.can_block
    }
}

/// Opens a source over these counters.
pub(super) fn open(
    counters: &[SharedCounter],
    slow: &Arc<Mutex<SlowReads>>,
    clock: &Clock,
    mut random: Random,
) -> OpenedSource {
    let kind = |name: &str| match name {
        "package-0" | "package-1" => DomainKind::Package,
        "dram-0" => DomainKind::Dram,
        _ => DomainKind::Gpu,
    };
    let domains: Vec<Domain> = counters
        .iter()
        .map(|counter| {
            let counter = lock(counter);
            counter.domain(kind(counter.name))
        })
        .collect();
    let converters = counters.iter().map(|counter| {
        let spec = lock(counter).spec();
        (Arc::clone(counter), Counter::new(spec), CheckedCount::default())
    });
    let interval_ns = counters.iter().map(|counter| lock(counter).interval_ns).min().unwrap_or(MS_NS);
    OpenedSource {
        name: "simulated",
        advanced: vec![true; domains.len()],
        domains,
        cpu: None,
        max_rate_hz: 1e9 / interval_ns as f64,
        source: Box::new(SimulatedSource {
            clock: clock.clone(),
            counters: converters.collect(),
            slow: Arc::clone(slow),
            can_block: random.below(2) == 0,
            random,
        }),
    }
}
