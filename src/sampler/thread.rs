//! The sampler thread of one source: waits, reads, and writes into the ring.
//!
//! A tick takes no lock, allocates nothing and waits for no other thread; state is shared through atomics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::clock::{Clock, monotonic_ns};
use crate::domain::EnergyReading;
use crate::ring::{RingWriter, Sample};
use crate::sources::Source;

use super::deadlines::Deadlines;
use super::event_count::EventCount;
use super::limits::{LimitReader, SharedLimits};
use super::priority::request_scheduling;
use super::rate_control::{RateController, RateRequest, Speed};
use super::rates::{AtomicRates, Rates};
use super::stats::SamplerStats;
use super::suspend_detector::SuspendDetector;

/// The real-time priority that sampler threads request: below the kernel's interrupt threads (50), which a sampler must
/// not delay, and above all ordinary threads.
pub const REALTIME_PRIORITY: i32 = 40;

/// The polling interval of a manual clock, in real time.
const MANUAL_CLOCK_POLL_NS: u64 = 200_000;

/// State that the sampler thread shares with [`super::Sampler`].
pub(super) struct SamplerShared {
    pub(super) rate_request: RateRequest,
    pub(super) wakeup: EventCount,
    pub(super) stats: SamplerStats,
    pub(super) stop: AtomicBool,
    pub(super) rates: AtomicRates,
    pub(super) limits: SharedLimits,
}

impl SamplerShared {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

pub(super) struct SamplerThread {
    pub(super) source: Box<dyn Source>,
    pub(super) cpu: Option<usize>,
    pub(super) clock: Clock,
    pub(super) writer: RingWriter,
    /// Reused for every read.
    pub(super) sample: Sample,
    pub(super) rates: Rates,
    /// The generation of `rates`.
    pub(super) rates_generation: u64,
    pub(super) rate_controller: RateController,
    pub(super) suspend_detector: SuspendDetector,
    pub(super) last_cost_ns: u64,
    pub(super) limit_reader: LimitReader,
    pub(super) shared: Arc<SamplerShared>,
}

impl SamplerThread {
    /// Ticks until stopped.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let scheduling = request_scheduling(self.cpu, REALTIME_PRIORITY);
        shared.stats.set_scheduling(scheduling.realtime, scheduling.pinned);
        // The first update finds the request for characterisation, so the first read comes at once.
        let mut deadlines = Deadlines::starting_at(self.clock.now_ns(), self.rates.period_ns(Speed::Slow));
        loop {
            // Read before the state that a notifier changes, so that a notification from here on ends the wait.
            let count = shared.wakeup.count();
            if shared.is_stopped() {
                return;
            }
            let now_ns = self.clock.now_ns();
            let mut new_speed = self.rate_controller.update(now_ns, &shared.rate_request);
            if let Some(rates) = shared.rates.load_if_changed(&mut self.rates_generation) {
                self.rates = rates;
                new_speed = new_speed.or(self.rate_controller.speed());
            }
            let lateness_ns = deadlines.lateness_ns(now_ns);
            if let Some(lateness_ns) = lateness_ns {
                shared.stats.record_lateness(lateness_ns, deadlines.tolerance_ns());
            }
            if let Some(speed) = new_speed {
                deadlines = Deadlines::starting_at(now_ns, self.rates.period_ns(speed));
            }
            match (lateness_ns, new_speed) {
                (None, None) => {
                    let wake_ns = self.wake_ns(&deadlines);
                    shared.stats.set_asleep_until(wake_ns);
                    shared.wakeup.wait_until(wake_ns, count);
                }
                (Some(_), None) => shared.stats.add_missed(deadlines.advance(self.tick())),
                // The new deadlines begin with this tick: its first deadline is still to come, or was missed by the
                // read.
                (_, Some(_)) => shared.stats.add_missed(deadlines.skip_passed(self.tick())),
            }
        }
    }

    /// Reads once into the ring; returns the earliest instant of the next read. After two slow reads the thread rests
    /// for the shorter of the two: at a real-time priority it would otherwise starve the other threads of its CPU.
    fn tick(&mut self) -> u64 {
        self.suspend_detector.observe(self.clock.suspended_ns());
        self.sample.readings.fill(EnergyReading::default());
        let before_ns = self.clock.now_ns();
        self.shared.stats.begin_read(before_ns);
        let source_window = self.source.read(&mut self.sample.readings);
        let after_ns = self.clock.now_ns();
        self.shared.stats.end_read(before_ns, after_ns);
        self.suspend_detector.adjust_epochs(&mut self.sample.readings);
        (self.sample.before_ns, self.sample.after_ns) = window((before_ns, after_ns), source_window);
        self.writer.push(&self.sample);
        self.read_limits_if_due(after_ns);
        let cost_ns = after_ns.saturating_sub(before_ns);
        after_ns + std::mem::replace(&mut self.last_cost_ns, cost_ns).min(cost_ns)
    }

    /// Reads the power limits of the domains if that is due: after the first sample, which must not wait for them. A driver
    /// that hangs then is reported like one in a read.
    fn read_limits_if_due(&mut self, now_ns: u64) {
        if self.limit_reader.is_due(now_ns) {
            self.shared.stats.begin_read(now_ns);
            self.limit_reader.read(&mut *self.source, now_ns, &self.shared.limits);
            self.shared.stats.end_call();
        }
    }

    /// The end of the next sleep, on the machine's clock.
    fn wake_ns(&self, deadlines: &Deadlines) -> u64 {
        match self.clock {
            Clock::Machine => deadlines.next_ns(),
            Clock::Manual(_) => monotonic_ns() + MANUAL_CLOCK_POLL_NS,
        }
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
