//! One thread for each source: ticks into a ring.
//!
//! Owns cadence. Deadlines are absolute, so nothing drifts; a late tick is recorded and skipped over, never caught up
//! in a burst; a read that takes long delays only its own source. The tick allocates nothing, takes no lock and waits for
//! no other thread, so nothing that a client does can make it late. Slow while no client needs readings, fast from the
//! moment one does. Knows no span and interprets no energy; a suspend of the machine is the one thing it adds: a new epoch.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::domain::Domain;
use crate::ring::{RingReader, Sample, ring};
use crate::sources::OpenedSource;

pub mod counter_profile;

pub mod recording;

mod deadlines;
mod event_count;
mod rate_control;
mod rates;
mod stats;
mod suspend_detector;
mod thread;

#[cfg(target_os = "linux")]
mod priority_ffi;

#[cfg(target_os = "linux")]
mod priority;
#[cfg(not(target_os = "linux"))]
#[path = "priority_unsupported.rs"]
mod priority;

use event_count::EventCount;
use rate_control::{RateController, RateRequest};
use rates::{AtomicRates, Rates};
use stats::SamplerStats;
use suspend_detector::SuspendDetector;
use thread::{SamplerShared, SamplerThread};

pub use rates::SamplerSettings;
pub use stats::TickStats;
pub use thread::REALTIME_PRIORITY;

/// How long dropping a sampler waits for a read that hangs.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The samples of a source and their description; cheap to clone.
#[derive(Clone)]
pub struct SampleStream {
    /// The mechanism: "perf", "powercap", ...
    pub source: &'static str,
    /// The domains, in the order of the readings.
    pub domains: Arc<[Domain]>,
    /// For each domain whether it advanced while discovery watched it.
    pub advanced: Arc<[bool]>,
    /// Its samples.
    pub ring: RingReader,
    /// Reads a second while a client needs them, after all limits.
    pub rate_hz: f64,
}

/// A running sampler; dropping it stops the thread.
pub struct Sampler {
    stream: SampleStream,
    shared: Arc<SamplerShared>,
    /// The highest rate of its source.
    source_max_hz: f64,
    /// Closes when the thread is gone; nothing is ever sent.
    thread_ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// Starts a sampler on an opened source. It reads at once, characterises the counters for a while, and then ticks as
/// [`Sampler::set_fast`] says.
///
/// # Errors
/// The system refuses another thread.
pub fn start(opened: OpenedSource, settings: &SamplerSettings, clock: Clock) -> io::Result<Sampler> {
    let rates = Rates::new(settings, opened.max_rate_hz);
    let (writer, reader) = ring(settings.ring_samples, opened.domains.len());
    let shared = Arc::new(SamplerShared {
        rate_request: RateRequest::new(),
        wakeup: EventCount::default(),
        stats: SamplerStats::new(),
        stop: AtomicBool::new(false),
        rates: AtomicRates::new(rates),
    });
    let sampler_thread = SamplerThread {
        source: opened.source,
        cpu: opened.cpu,
        clock,
        writer,
        sample: Sample::empty(opened.domains.len()),
        rate_controller: RateController::new(settings.linger_ns, settings.characterisation_ns),
        suspend_detector: SuspendDetector::default(),
        last_cost_ns: 0,
        shared: Arc::clone(&shared),
        rates,
        rates_generation: 0,
    };
    let source_max_hz = opened.max_rate_hz;
    let stream = SampleStream {
        source: opened.name,
        domains: opened.domains.into(),
        advanced: opened.advanced.into(),
        ring: reader,
        rate_hz: rates.fast_hz,
    };
    let (thread_alive, thread_ended) = channel();
    let thread = std::thread::Builder::new().name(format!("sampler-{}", opened.name)).spawn(move || {
        // Held until the thread ends, however it ends.
        let _thread_alive = thread_alive;
        sampler_thread.run();
    })?;
    Ok(Sampler { stream, shared, source_max_hz, thread_ended, thread: Some(thread) })
}

impl Sampler {
    /// Sets whether readings are needed now. The first need wakes the thread, which reads at once; the end takes effect
    /// after the linger time. Cheap enough to be called for every message: a flag, and a system call only while the
    /// thread sleeps.
    pub fn set_fast(&self, fast: bool) {
        if self.shared.rate_request.set_fast(fast) {
            self.shared.wakeup.notify();
        }
    }

    /// Ticks as fast as characterisation needs for the length of a characterisation.
    pub fn characterise(&self) {
        if self.shared.rate_request.request_characterisation() {
            self.shared.wakeup.notify();
        }
    }

    /// Ticks at these rates from now on; of the settings, everything else stays as it was at the start.
    pub fn set_rates(&self, settings: &SamplerSettings) {
        self.shared.rates.store(Rates::new(settings, self.source_max_hz));
        self.shared.wakeup.notify();
    }

    /// For how long, by `now_ns`, the thread has been neither asleep nor in a read without having come to its next tick:
    /// a thread that makes no progress shows here, a driver that hangs does not.
    pub fn overdue_ns(&self, now_ns: u64) -> u64 {
        self.shared.stats.overdue_ns(now_ns)
    }

    /// The stream that later stages read.
    pub fn stream(&self) -> SampleStream {
        self.stream.clone()
    }

    /// The statistics of the ticks so far.
    pub fn stats(&self) -> TickStats {
        self.shared.stats.snapshot()
    }

    /// How long the read under way has taken by `now_ns`; `None` between reads. A source that hangs shows here.
    pub fn hung_for_ns(&self, now_ns: u64) -> Option<u64> {
        self.shared.stats.hung_for_ns(now_ns)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wakeup.notify();
        let Some(thread) = self.thread.take() else { return };
        // A read that hangs in a driver cannot be interrupted: then the thread is left behind, and ends when it returns.
        if self.thread_ended.recv_timeout(JOIN_TIMEOUT) == Err(RecvTimeoutError::Disconnected) {
            // A panic of the thread was reported where it happened.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
