//! One read of a source: from the clock before it to the sample in the ring.
//!
//! Owns what a read changes: the source, the ring's only writer, and the schedule that learns from every reading. It is
//! behind a mutex, so that a thread that receives a message can read a source that never blocks. No thread waits for
//! the mutex: the reading of its holder serves for both.

use crate::clock::Clock;
use crate::domain::EnergyReading;
use crate::ring::{RingWriter, Sample};
use crate::sources::Source;

use super::read_schedule::ReadSchedule;
use super::stats::SamplerStats;
use super::suspend_detector::SuspendDetector;

/// Reads a source into its ring.
pub(super) struct SourceReader {
    pub(super) source: Box<dyn Source>,
    pub(super) clock: Clock,
    pub(super) writer: RingWriter,
    /// Reused for every read.
    pub(super) sample: Sample,
    pub(super) suspend_detector: SuspendDetector,
    pub(super) last_cost_ns: u64,
    pub(super) schedule: ReadSchedule,
}

impl SourceReader {
    /// Reads for an edge that lies at or before now, unless a read near it serves. `fixed_spacing_ns`: how old a read may
    /// be where the source is read at a fixed rate.
    pub(super) fn read_for_edge(&mut self, edge_ns: u64, fixed_spacing_ns: u64, stats: &SamplerStats) {
        let now_ns = self.clock.now_ns();
        let is_needed = if self.schedule.is_edge_driven(now_ns) && !self.schedule.is_dense() {
            self.schedule.needs_edge_read(edge_ns)
        } else {
            self.schedule.last_read_ns().saturating_add(fixed_spacing_ns) < edge_ns
        };
        if is_needed && edge_ns <= now_ns {
            self.read(stats);
        }
    }

    /// Reads once into the ring; returns the earliest instant of the next read. After two slow reads the source rests
    /// for the shorter of the two: a thread at a real-time priority would otherwise starve the other threads of its CPU.
    pub(super) fn read(&mut self, stats: &SamplerStats) -> u64 {
        self.suspend_detector.observe(self.clock.suspended_ns());
        self.sample.readings.fill(EnergyReading::default());
        let before_ns = self.clock.now_ns();
        stats.begin_read(before_ns);
        let source_window = self.source.read(&mut self.sample.readings);
        let after_ns = self.clock.now_ns();
        stats.end_read(before_ns, after_ns);
        self.suspend_detector.adjust_epochs(&mut self.sample.readings);
        (self.sample.before_ns, self.sample.after_ns) = window((before_ns, after_ns), source_window);
        self.writer.push(&self.sample);
        self.schedule.observe(&self.sample);
        let cost_ns = after_ns.saturating_sub(before_ns);
        after_ns + std::mem::replace(&mut self.last_cost_ns, cost_ns).min(cost_ns)
    }
}

/// The source's own clock window if it lies within the measured one; otherwise it is wrong, and the measured one is
/// used.
fn window(measured: (u64, u64), source_window: Option<(u64, u64)>) -> (u64, u64) {
    match source_window {
        Some((from_ns, to_ns)) if measured.0 <= from_ns && from_ns <= to_ns && to_ns <= measured.1 => {
            (from_ns, to_ns)
        }
        _ => measured,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_window_is_used_only_inside_the_measured_one() {
        assert_eq!(window((10, 20), None), (10, 20));
        assert_eq!(window((10, 20), Some((12, 18))), (12, 18));
        assert_eq!(window((10, 20), Some((10, 20))), (10, 20));
        for wrong in [(9, 18), (12, 21), (18, 12), (0, 0)] {
            assert_eq!(window((10, 20), Some(wrong)), (10, 20), "{wrong:?}");
        }
    }
}
