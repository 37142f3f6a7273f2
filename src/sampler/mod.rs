//! Samplers: one thread per source that reads its counters periodically into a ring.
//!
//! Deadlines are absolute and do not drift; missed ticks are counted, never caught up in a burst. A slow read delays
//! only its own source. A tick allocates nothing and waits for no other thread, so that clients cannot delay it.
//! Sampling is slow while no client needs readings. While one does, a source is read at edges and around its counters'
//! updates where their phases are known, and at a fixed rate otherwise. A suspend begins a new epoch.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::domain::{Domain, PowerLimits};
use crate::ring::{RingReader, Sample, ring};
use crate::sources::OpenedSource;

pub mod counter_profile;

/// When to read a source.
pub mod read_schedule;

pub mod recording;

mod deadlines;
mod event_count;
mod limits;
mod rate_control;
mod rates;
mod source_reader;
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

use deadlines::Deadlines;
use event_count::EventCount;
use limits::{LimitReader, SharedLimits};
use rate_control::{RateController, RateRequest, Speed};
use rates::{AtomicRates, Rates};
use read_schedule::ReadSchedule;
use source_reader::SourceReader;
use stats::SamplerStats;
use suspend_detector::SuspendDetector;
use thread::{EdgeNotice, SamplerShared, SamplerThread, SurveyTimer};

pub use rates::SamplerSettings;
pub use stats::TickStats;
pub use thread::REALTIME_PRIORITY;

/// How long dropping a sampler waits for a read that hangs.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The samples of a source and their description; cheap to clone.
#[derive(Clone)]
pub struct SampleStream {
    /// The name of the source: "perf", "powercap", ...
    pub source: &'static str,
    /// The domains, in the order of the readings.
    pub domains: Arc<[Domain]>,
    /// For each domain, whether discovery saw its counter advance.
    pub advanced: Arc<[bool]>,
    /// Its samples from the first one on, as far as they are not overwritten.
    pub ring: RingReader,
    /// Reads per second while a client needs them, after all limits.
    pub rate_hz: f64,
}

/// A running sampler; dropping it stops the thread.
pub struct Sampler {
    stream: SampleStream,
    shared: Arc<SamplerShared>,
    /// The highest rate of its source.
    source_max_hz: f64,
    /// A thread that reports an edge reads the source itself.
    reads_at_edges: bool,
    /// The distance of two reads at the fixed rate.
    fast_period_ns: AtomicU64,
    /// `None` where a test takes the thread's steps.
    thread: Option<RunningThread>,
}

struct RunningThread {
    handle: JoinHandle<()>,
    /// A channel that closes when the thread ends; nothing is ever sent.
    ended: Receiver<()>,
}

/// Starts a sampler on an opened source. It reads at once, characterises the counters, and then samples at the speed
/// set by [`Sampler::set_fast`].
///
/// # Errors
/// The thread cannot be created.
pub fn start(opened: OpenedSource, settings: &SamplerSettings, clock: Clock) -> io::Result<Sampler> {
    let (mut sampler, sampler_thread) = prepare(opened, settings, clock);
    let (thread_alive, ended) = channel();
    let name = format!("sampler-{}", sampler.stream.source);
    let handle = std::thread::Builder::new().name(name).spawn(move || {
        // Dropped when the thread ends, also by a panic.
        let _thread_alive = thread_alive;
        sampler_thread.run();
    })?;
    sampler.thread = Some(RunningThread { handle, ended });
    Ok(sampler)
}

/// A sampler and what its thread runs.
fn prepare(opened: OpenedSource, settings: &SamplerSettings, clock: Clock) -> (Sampler, SamplerThread) {
    let rates = Rates::new(settings, opened.max_rate_hz);
    let reads_at_edges = !opened.source.can_block();
    let (writer, reader) = ring(settings.ring_samples, opened.domains.len());
    let shared = Arc::new(SamplerShared {
        rate_request: RateRequest::new(),
        wakeup: EventCount::default(),
        stats: SamplerStats::new(),
        stop: AtomicBool::new(false),
        rates: AtomicRates::new(rates),
        edges: EdgeNotice::default(),
        reader: Mutex::new(SourceReader {
            source: opened.source,
            clock: clock.clone(),
            writer,
            sample: Sample::empty(opened.domains.len()),
            suspend_detector: SuspendDetector::default(),
            last_cost_ns: 0,
            schedule: ReadSchedule::new(&opened.domains).with_advanced(&opened.advanced),
        }),
        limits: SharedLimits::new(opened.domains.len()),
    });
    shared.set_rate_configured(settings.fixed_rate);
    let sampler_thread = SamplerThread {
        cpu: opened.cpu,
        // The first update finds the request for characterisation, so the first read comes at once.
        deadlines: Deadlines::starting_at(clock.now_ns(), rates.period_ns(Speed::Slow)),
        was_edge_driven: false,
        clock,
        rate_controller: RateController::new(settings.linger_ns, settings.characterisation_ns),
        serves_one_span: settings.serves_one_span,
        limit_reader: LimitReader::new(opened.domains.len()),
        shared: Arc::clone(&shared),
        rates,
        rates_generation: 0,
        surveys: SurveyTimer::default(),
        planned_ns: 0,
        rest_until_ns: 0,
        edges_seen: 0,
    };
    let source_max_hz = opened.max_rate_hz;
    let stream = SampleStream {
        source: opened.name,
        domains: opened.domains.into(),
        advanced: opened.advanced.into(),
        ring: reader,
        rate_hz: rates.fast_hz,
    };
    let fast_period_ns = AtomicU64::new(rates.period_ns(Speed::Fast));
    let sampler = Sampler { stream, shared, source_max_hz, reads_at_edges, fast_period_ns, thread: None };
    (sampler, sampler_thread)
}

impl Sampler {
    /// Sets whether fast sampling is needed. A change to fast wakes the thread, which reads at once; a change to slow
    /// takes effect after the linger time. Cheap enough for every message: a flag, and a system call only if the
    /// thread is slow.
    pub fn set_fast(&self, fast: bool) {
        if self.shared.rate_request.set_fast(fast) {
            self.shared.wakeup.notify();
        }
    }

    /// Reports an edge at `edge_ns`, of a span that opens, closes or changes. Reads at once if the source never blocks,
    /// and otherwise wakes the thread; either only if no read near the edge serves for it.
    pub fn report_edge(&self, edge_ns: u64) {
        let fixed_spacing_ns = 2 * self.fast_period_ns.load(Ordering::Relaxed);
        if self.reads_at_edges
            && self.shared.may_need_edge_read(edge_ns, fixed_spacing_ns)
            && let Some(mut reader) = self.shared.try_reader_shortly()
        {
            reader.read_for_edge(edge_ns, fixed_spacing_ns, &self.shared.stats);
        }
        self.shared.report_edge(edge_ns);
    }

    /// Sets whether the source is read at its fixed rate even where its counters' phases are known, for a recording.
    pub fn set_fixed_rate(&self, fixed: bool) {
        self.shared.set_fixed_rate(fixed);
    }

    /// Whether the source is read at edges and around updates while spans are open; otherwise at its fixed rate.
    pub fn is_edge_driven(&self) -> bool {
        self.shared.is_edge_driven()
    }

    /// Whether the source is read at most a thousand times a second, short surveys aside.
    pub fn has_few_readings(&self) -> bool {
        self.is_edge_driven() || self.fast_period_ns.load(Ordering::Relaxed) >= 1_000_000
    }

    /// Starts a characterisation: fast reads for a fixed time.
    pub fn characterise(&self) {
        if self.shared.rate_request.request_characterisation() {
            self.shared.wakeup.notify();
        }
    }

    /// Sets the rates; the other settings keep their values from the start.
    pub fn set_rates(&self, settings: &SamplerSettings) {
        let rates = Rates::new(settings, self.source_max_hz);
        self.fast_period_ns.store(rates.period_ns(Speed::Fast), Ordering::Relaxed);
        self.shared.set_rate_configured(settings.fixed_rate);
        self.shared.rates.store(rates);
        self.shared.wakeup.notify();
    }

    /// The limits of each domain's power, with their version, if they were read since `version`; 0: at any time.
    pub fn power_limits_since(&self, version: u64) -> Option<(u64, Vec<PowerLimits>)> {
        self.shared.limits.newer_than(version)
    }

    /// How long, at `now_ns`, the next tick has been overdue while no read is in progress. This detects a thread that
    /// makes no progress, not a driver that hangs.
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

    /// The duration of the read in progress up to `now_ns`; `None` between reads. This detects a driver that hangs.
    pub fn hung_for_ns(&self, now_ns: u64) -> Option<u64> {
        self.shared.stats.hung_for_ns(now_ns)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wakeup.notify();
        let Some(thread) = self.thread.take() else { return };
        // A read that hangs in a driver cannot be interrupted: the thread is detached and ends when the read returns.
        if thread.ended.recv_timeout(JOIN_TIMEOUT) == Err(RecvTimeoutError::Disconnected) {
            // A panic of the thread was reported by the panic hook.
            let _ = thread.handle.join();
        }
    }
}

#[cfg(test)]
pub(crate) mod stepped;
#[cfg(test)]
mod tests;
