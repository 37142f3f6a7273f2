//! The energy accumulator of one AMD card as a source.
//!
//! Owns when an accumulator's count was taken. The driver stamps each table with CLOCK_BOOTTIME when it has read it from the
//! firmware, and hands the same table out again for a millisecond; a stamp that lies within the read narrows down when
//! that was. It is no exact instant of the energy (the firmware's own count is older), so it is never given out as
//! `stamp_ns`; the domain's latency has the rest. Never mistakes a table that was handed out again for a standstill.

use crate::clock::Clock;
use crate::energy::{Kind, Reading};

use super::Source;
use super::attribute::Attribute;
use super::counter::{Counter, Shape, plausible_ceiling_mw};
use super::gauge::Condition;
use super::gpu_metrics::{Metrics, PREFIX};
use super::suspend::Suspend;
use super::unit::Unit;

/// What one count stands for: 2^-16 J, not the 15.3 µJ of the vendor's libraries.
pub const COUNT: Unit = Unit::TWO_TO_THE_MINUS_16_JOULES;

/// One card's table.
pub struct Accumulator {
    table: Attribute,
    /// Whether the card is awake.
    condition: Option<Condition>,
    counter: Counter,
    suspend: Suspend,
    clock: Clock,
}

impl Accumulator {
    /// A source on an open table whose accumulator has so many bits.
    pub fn new(table: Attribute, bits: u32, condition: Option<Condition>, clock: &Clock) -> Self {
        let modulus = 1_u128 << bits;
        let counter = Counter::new(Shape {
            unit: COUNT,
            modulus,
            ceiling_mw: plausible_ceiling_mw(Kind::Gpu),
            staleness_ns: 100_000_000,
            range_uj: u64::try_from(COUNT.to_uj(modulus)).unwrap_or(u64::MAX),
        });
        Self { table, condition, counter, suspend: Suspend::new(clock), clock: clock.clone() }
    }

    fn metrics(&mut self, now_ns: u64) -> Option<Metrics> {
        if let Some(condition) = &mut self.condition
            && condition.attribute.says(now_ns, condition.word) != Some(condition.wanted)
        {
            return None;
        }
        let mut bytes = [0; PREFIX];
        let length = self.table.bytes(now_ns, &mut bytes)?;
        Metrics::parse(&bytes[..length])
    }
}

impl Source for Accumulator {
    fn read(&mut self, into: &mut [Reading]) -> Option<(u64, u64)> {
        let before_ns = self.clock.now_ns();
        let metrics = self.metrics(before_ns);
        let after_ns = self.clock.now_ns();
        let energy = metrics.and_then(|metrics| metrics.energy);
        if energy.is_none() || self.suspend.slept() {
            self.counter.interrupt();
        }
        let reading =
            energy.map_or_else(Reading::default, |energy| self.counter.advance(energy, before_ns, after_ns));
        if let Some(into) = into.first_mut() {
            *into = reading;
        }
        let taken_ns = self.suspend.monotonic_ns(metrics?.boot_ns?)?;
        (before_ns..=after_ns).contains(&taken_ns).then_some((before_ns, taken_ns))
    }
}
