//! One thread for each source: ticks into a ring.
//!
//! Owns cadence. Deadlines are absolute, so nothing drifts; a late tick is recorded and skipped over, never caught up
//! in a burst; a read that takes long delays only its own source. The tick allocates nothing, takes no lock and waits for
//! no other thread, so nothing that a client does can make it late. Slow while no client needs readings, fast from the
//! moment one does. Knows no span and interprets no energy; a suspend of the machine is the one thing it adds: a new epoch.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::domain::Domain;
use crate::ring::{RingReader, Sample, ring};
use crate::sources::OpenedSource;

/// What a domain's counter is like, learnt from its readings.
pub mod counter_profile;

/// Hands every sample to a sink, from a thread of its own.
pub mod recording;

mod deadlines;
mod histogram;
mod power;
mod rate_control;
mod residual;
mod running_median;
mod stats;
mod suspend_detector;
mod thread;
mod update_interval;

#[cfg(any(test, not(target_os = "linux")))]
mod condvar;
#[cfg(target_os = "linux")]
mod futex;
#[cfg(not(target_os = "linux"))]
use condvar::EventCount;
#[cfg(target_os = "linux")]
use futex::EventCount;

#[cfg(target_os = "linux")]
mod priority_ffi;

#[cfg(target_os = "linux")]
mod priority;
#[cfg(not(target_os = "linux"))]
#[path = "priority_unsupported.rs"]
mod priority;

use rate_control::{RateController, RateRequest, Speed};
use stats::SamplerStats;
use suspend_detector::SuspendDetector;
use thread::SamplerThread;

pub use stats::TickStats;

/// The fastest that any sampler ticks.
const MAX_RATE_HZ: f64 = 10_000.0;
/// Characterisation reads this often for each counter update that the source expects, to see where the updates lie.
const OVERSAMPLING: f64 = 4.0;
/// The real-time priority that samplers ask for: below the kernel's interrupt threads (50), which a sampler must not hold
/// up; above everything ordinary.
pub const REALTIME_PRIORITY: i32 = 40;
/// How long dropping a sampler waits for a read that hangs.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

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

/// What the stages after the sampler need of it; cheap to clone.
#[derive(Clone)]
pub struct SampleStream {
    /// The mechanism: "perf", "powercap", ...
    pub source: &'static str,
    /// What it meters, in the order of the readings.
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
    /// The fastest that its source can be read.
    source_max_hz: f64,
    /// Closes when the thread is gone; nothing is ever sent.
    thread_ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread shares with those who look at it.
struct SamplerShared {
    rate_request: RateRequest,
    wakeup: EventCount,
    stats: SamplerStats,
    stop: AtomicBool,
    rates: AtomicRates,
}

impl SamplerShared {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
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
    /// Says whether readings are needed now. The first need wakes the thread, which reads at once; the end of it takes
    /// effect after the linger. Cheap enough to be called for every message: a flag, and a system call only where the
    /// thread rests.
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

    /// What the stages after the sampler need.
    pub fn stream(&self) -> SampleStream {
        self.stream.clone()
    }

    /// What became of the ticks so far.
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

/// Reads a second at each speed, after all limits.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rates {
    slow_hz: f64,
    fast_hz: f64,
    characterisation_hz: f64,
}

impl Rates {
    /// Below this a rate is a way of saying "never".
    const MIN_RATE_HZ: f64 = 0.001;

    fn new(settings: &SamplerSettings, source_max_hz: f64) -> Self {
        let clamp = |hz: f64, max_hz: f64| hz.min(max_hz).max(Self::MIN_RATE_HZ);
        let source_max_hz = clamp(source_max_hz, MAX_RATE_HZ);
        let fast_hz = clamp(settings.rate_hz, source_max_hz);
        // `source_max_hz` is about how often the counter moves; seeing when it does takes several reads a move.
        let characterisation_hz = clamp(OVERSAMPLING * source_max_hz, MAX_RATE_HZ).max(fast_hz);
        Self { slow_hz: clamp(settings.idle_rate_hz, fast_hz), fast_hz, characterisation_hz }
    }

    fn period_ns(self, speed: Speed) -> u64 {
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
struct AtomicRates {
    slow_hz: AtomicU64,
    fast_hz: AtomicU64,
    characterisation_hz: AtomicU64,
    /// How often they were set.
    generation: AtomicU64,
}

impl AtomicRates {
    fn new(rates: Rates) -> Self {
        let bits = |hz: f64| AtomicU64::new(hz.to_bits());
        let generation = AtomicU64::new(0);
        Self {
            slow_hz: bits(rates.slow_hz),
            fast_hz: bits(rates.fast_hz),
            characterisation_hz: bits(rates.characterisation_hz),
            generation,
        }
    }

    fn store(&self, rates: Rates) {
        self.slow_hz.store(rates.slow_hz.to_bits(), Ordering::Relaxed);
        self.fast_hz.store(rates.fast_hz.to_bits(), Ordering::Relaxed);
        self.characterisation_hz.store(rates.characterisation_hz.to_bits(), Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The rates, where they were stored since `seen_generation`, which is brought up to date.
    fn load_if_changed(&self, seen_generation: &mut u64) -> Option<Rates> {
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
mod tests;
