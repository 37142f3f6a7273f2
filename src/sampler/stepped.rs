//! A sampler without a thread: a simulation takes the thread's steps, at instants of a clock that it sets.

use super::*;

/// What a sampler's thread would run.
pub(crate) struct SteppedSampler {
    thread: SamplerThread,
    /// The number of notifications before the last step.
    count: u32,
    asleep_until_ns: u64,
}

/// Like [`super::start`], without the thread.
pub(crate) fn start(
    opened: OpenedSource,
    settings: &SamplerSettings,
    clock: Clock,
) -> (Sampler, SteppedSampler) {
    let (sampler, thread) = prepare(opened, settings, clock);
    (sampler, SteppedSampler { thread, count: 0, asleep_until_ns: 0 })
}

impl SteppedSampler {
    /// When the thread would wake by itself.
    pub(crate) fn asleep_until_ns(&self) -> u64 {
        self.asleep_until_ns
    }

    /// Whether another thread has woken it.
    pub(crate) fn is_notified(&self) -> bool {
        self.thread.shared.wakeup.count() != self.count
    }

    /// Takes all steps until the thread would sleep.
    pub(crate) fn run_until_asleep(&mut self) {
        loop {
            self.count = self.thread.shared.wakeup.count();
            let Some(until_ns) = self.thread.step() else { continue };
            self.asleep_until_ns = until_ns;
            self.thread.shared.stats.set_asleep_until(until_ns);
            return;
        }
    }
}
