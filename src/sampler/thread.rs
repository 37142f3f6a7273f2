//! The sampler thread of one source: waits until the next read is due, and reads.
//!
//! A tick waits for no other thread and allocates nothing. State is shared through atomics; the source is behind a mutex
//! that is only ever tried.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::clock::{Clock, monotonic_ns};

use super::deadlines::Deadlines;
use super::event_count::EventCount;
use super::limits::{LimitReader, SharedLimits};
use super::priority::request_scheduling;
use super::rate_control::{RateController, RateRequest, Speed};
use super::rates::{AtomicRates, Rates};
use super::read_schedule::{ReadDemand, pair_interval_ns};
use super::source_reader::SourceReader;
use super::stats::SamplerStats;

/// The real-time priority that sampler threads request: below the kernel's interrupt threads (50), which a sampler must
/// not delay, and above all ordinary threads.
pub const REALTIME_PRIORITY: i32 = 40;

/// The polling interval of a manual clock, in real time.
const MANUAL_CLOCK_POLL_NS: u64 = 200_000;

/// The delay of a read while another thread reads the source.
const RETRY_NS: u64 = 50_000;

/// A thread that wakes this soon anyway is not woken for an edge.
const WAKE_SLACK_NS: u64 = 100_000;

/// The length of a survey that looks for lost phases, and the distance of the first two. Each one doubles the distance.
const SURVEY_NS: u64 = 100_000_000;
const MIN_SURVEY_INTERVAL_NS: u64 = 1_000_000_000;
const MAX_SURVEY_INTERVAL_NS: u64 = 64_000_000_000;

/// State that the sampler thread shares with [`super::Sampler`].
pub(super) struct SamplerShared {
    pub(super) rate_request: RateRequest,
    pub(super) wakeup: EventCount,
    pub(super) stats: SamplerStats,
    pub(super) stop: AtomicBool,
    pub(super) rates: AtomicRates,
    pub(super) reader: Mutex<SourceReader>,
    pub(super) edges: EdgeNotice,
    pub(super) limits: SharedLimits,
}

/// The edges that callers report to the thread.
#[derive(Default)]
pub(super) struct EdgeNotice {
    /// The newest edge; 0: none.
    newest_ns: AtomicU64,
    count: AtomicU64,
    /// Callers demand reads at the fixed rate.
    fixed_rate_wanted: AtomicBool,
    /// The settings demand reads at the fixed rate.
    fixed_rate_set: AtomicBool,
    /// The thread reads at edges, so that it has to be woken for one.
    is_edge_driven: AtomicBool,
    /// The thread wants to be woken for each edge.
    wakes_wanted: AtomicBool,
}

impl SamplerShared {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The reader, unless another thread reads at this moment.
    pub(super) fn try_reader(&self) -> Option<MutexGuard<'_, SourceReader>> {
        // A panic of a source ends its reads, not those of others: the hook has reported it.
        self.reader.try_lock().ok()
    }

    /// Like [`Self::try_reader`], with more tries while another thread plans a read, which takes less than a
    /// microsecond.
    pub(super) fn try_reader_shortly(&self) -> Option<MutexGuard<'_, SourceReader>> {
        const TRIES: u32 = 64;
        (0..TRIES).find_map(|_| {
            let reader = self.try_reader();
            if reader.is_none() {
                std::hint::spin_loop();
            }
            reader
        })
    }

    /// Whether an edge may need a read of its own: the thread reads at edges, or the last read is older than
    /// `fixed_spacing_ns`. Cheap enough for each of 100,000 edges a second.
    pub(super) fn may_need_edge_read(&self, edge_ns: u64, fixed_spacing_ns: u64) -> bool {
        self.edges.wakes_wanted.load(Ordering::Relaxed)
            || self.stats.last_read_ns().saturating_add(fixed_spacing_ns) < edge_ns
    }

    /// Reports an edge; wakes the thread if it reads at edges and would sleep beyond this one.
    ///
    /// The caller writes the edge and reads the end of the thread's sleep; the thread writes the end of its sleep and
    /// reads the edge. The fences have a total order, so that at least one of them sees the other's write.
    pub(super) fn report_edge(&self, edge_ns: u64) {
        self.edges.newest_ns.fetch_max(edge_ns, Ordering::Relaxed);
        // Release: a thread that sees the count sees the edge.
        self.edges.count.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.edges.wakes_wanted.load(Ordering::Relaxed)
            && self.stats.asleep_until_ns() > edge_ns.saturating_add(WAKE_SLACK_NS)
        {
            self.wakeup.notify();
        }
    }

    /// Sets whether callers demand reads at the fixed rate.
    pub(super) fn set_fixed_rate(&self, wanted: bool) {
        if self.edges.fixed_rate_wanted.swap(wanted, Ordering::Relaxed) != wanted {
            self.wakeup.notify();
        }
    }

    /// Sets whether the settings demand reads at the fixed rate.
    pub(super) fn set_rate_configured(&self, configured: bool) {
        self.edges.fixed_rate_set.store(configured, Ordering::Relaxed);
    }

    pub(super) fn is_edge_driven(&self) -> bool {
        self.edges.is_edge_driven.load(Ordering::Relaxed)
    }
}

/// What the thread does next.
enum NextStep {
    /// Read now, because of an edge, an expected update, or the longest gap.
    Read,
    Sleep(u64),
    /// Keep to the fixed rate.
    FixedRate,
}

pub(super) struct SamplerThread {
    pub(super) cpu: Option<usize>,
    pub(super) clock: Clock,
    pub(super) rates: Rates,
    pub(super) rates_generation: u64,
    /// Of the fixed rate.
    pub(super) deadlines: Deadlines,
    pub(super) was_edge_driven: bool,
    pub(super) rate_controller: RateController,
    pub(super) serves_one_span: bool,
    pub(super) surveys: SurveyTimer,
    /// The next read that the schedule planned.
    pub(super) planned_ns: u64,
    /// The earliest instant of that read: a slow source rests between reads.
    pub(super) rest_until_ns: u64,
    /// The number of edges that the plan knows.
    pub(super) edges_seen: u64,
    pub(super) limit_reader: LimitReader,
    pub(super) shared: Arc<SamplerShared>,
}

impl SamplerThread {
    /// Ticks until stopped.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let scheduling = request_scheduling(self.cpu, REALTIME_PRIORITY);
        shared.stats.set_scheduling(scheduling.realtime, scheduling.pinned);
        loop {
            // Read before the state that a notifier changes, so that a notification from here on ends the wait.
            let count = shared.wakeup.count();
            if shared.is_stopped() {
                return;
            }
            if let Some(until_ns) = self.step() {
                self.sleep(until_ns, count);
            }
        }
    }

    /// Reads once if that is due; otherwise returns the instant until which there is nothing to do.
    pub(super) fn step(&mut self) -> Option<u64> {
        let now_ns = self.clock.now_ns();
        let mut new_speed = self.rate_controller.update(now_ns, &self.shared.rate_request);
        if let Some(rates) = self.shared.rates.load_if_changed(&mut self.rates_generation) {
            self.rates = rates;
            new_speed = new_speed.or(self.rate_controller.speed());
        }
        let step = self.next_step(now_ns);
        let was_edge_driven =
            std::mem::replace(&mut self.was_edge_driven, !matches!(step, NextStep::FixedRate));
        match step {
            NextStep::Read => {
                self.rest_until_ns = self.tick();
                None
            }
            NextStep::Sleep(until_ns) => Some(until_ns),
            NextStep::FixedRate => {
                if was_edge_driven {
                    let speed = self.rate_controller.speed().unwrap_or(Speed::Slow);
                    self.deadlines = Deadlines::starting_at(now_ns, self.rates.period_ns(speed));
                    new_speed = Some(speed);
                }
                self.fixed_rate_step(now_ns, new_speed)
            }
        }
    }

    /// Reads if a deadline of the fixed rate has come; otherwise returns the next one.
    fn fixed_rate_step(&mut self, now_ns: u64, new_speed: Option<Speed>) -> Option<u64> {
        let lateness_ns = self.deadlines.lateness_ns(now_ns);
        if let Some(lateness_ns) = lateness_ns {
            self.shared.stats.record_lateness(lateness_ns, self.deadlines.tolerance_ns());
        }
        if let Some(speed) = new_speed {
            self.deadlines = Deadlines::starting_at(now_ns, self.rates.period_ns(speed));
        }
        let missed = match (lateness_ns, new_speed) {
            (None, None) => return Some(self.deadlines.next_ns()),
            (Some(_), None) => {
                let end_ns = self.tick();
                self.deadlines.advance(end_ns)
            }
            // The new deadlines begin with this tick: its first deadline is still to come, or was missed by the read.
            (_, Some(_)) => {
                let end_ns = self.tick();
                self.deadlines.skip_passed(end_ns)
            }
        };
        self.shared.stats.add_missed(missed);
        None
    }

    /// Decides between the schedule of the source and the fixed rate.
    fn next_step(&mut self, now_ns: u64) -> NextStep {
        if self.is_planned_read_due(now_ns) {
            return NextStep::Read;
        }
        let edges = &self.shared.edges;
        let speed = self.rate_controller.speed().unwrap_or(Speed::Slow);
        let is_fixed =
            edges.fixed_rate_wanted.load(Ordering::Relaxed) || edges.fixed_rate_set.load(Ordering::Relaxed);
        let Some(mut reader) = self.shared.try_reader() else {
            return if self.shared.reader.is_poisoned() {
                NextStep::FixedRate
            } else {
                NextStep::Sleep(now_ns + RETRY_NS)
            };
        };
        self.edges_seen = edges.count.load(Ordering::Acquire);
        reader.schedule.observe_edges(self.edges_seen, now_ns);
        let edge_ns = edges.newest_ns.load(Ordering::Relaxed);
        if self.serves_one_span && !is_fixed {
            let last_read_ns = reader.schedule.last_read_ns();
            if last_read_ns >= edge_ns && reader.schedule.is_unmoved() {
                edges.wakes_wanted.store(true, Ordering::Relaxed);
                self.planned_ns = last_read_ns + self.rates.period_ns(Speed::Slow);
                return NextStep::Sleep(self.planned_ns);
            }
        }
        let demand = ReadDemand {
            // After the last span nothing needs the pairs. The linger keeps a source fast that has a fixed rate.
            pair_interval_ns: if self.rate_controller.is_requested() {
                pair_interval_ns(now_ns.saturating_sub(edge_ns))
            } else {
                self.rates.period_ns(Speed::Slow)
            },
            dense_interval_ns: self.rates.period_ns(Speed::Fast),
            edge_ns,
        };
        let due_ns = if is_fixed || speed == Speed::Characterise {
            None
        } else {
            reader.schedule.next_read_ns(now_ns, &demand)
        };
        edges.wakes_wanted.store(due_ns.is_some() && !reader.schedule.is_dense(), Ordering::Relaxed);
        if speed != Speed::Characterise {
            edges.is_edge_driven.store(due_ns.is_some(), Ordering::Relaxed);
        }
        if speed == Speed::Fast
            && !is_fixed
            && self.surveys.is_due(now_ns, reader.schedule.needs_survey(now_ns))
        {
            self.rate_controller.characterise_for(now_ns, SURVEY_NS);
        }
        match due_ns.map(|due_ns| due_ns.max(self.rest_until_ns)) {
            None => {
                self.planned_ns = 0;
                NextStep::FixedRate
            }
            Some(due_ns) if due_ns <= now_ns => {
                self.planned_ns = 0;
                NextStep::Read
            }
            Some(due_ns) => {
                self.planned_ns = due_ns;
                NextStep::Sleep(due_ns)
            }
        }
    }

    /// Whether the planned read is due and no edge has come since the plan was made, which would be the same again.
    fn is_planned_read_due(&mut self, now_ns: u64) -> bool {
        const TOLERANCE_NS: u64 = 100_000;
        if self.planned_ns == 0
            || now_ns < self.planned_ns
            || self.shared.edges.count.load(Ordering::Relaxed) != self.edges_seen
        {
            return false;
        }
        let lateness_ns = now_ns - std::mem::take(&mut self.planned_ns);
        self.shared.stats.record_lateness(lateness_ns, TOLERANCE_NS);
        true
    }

    /// Sleeps until the instant, a notification, or an edge that came since the plan was made.
    fn sleep(&self, until_ns: u64, count: u32) {
        let wake_ns = match self.clock {
            Clock::Machine => until_ns,
            Clock::Manual(_) => monotonic_ns() + MANUAL_CLOCK_POLL_NS,
        };
        let edges = &self.shared.edges;
        self.shared.stats.set_asleep_until(wake_ns);
        // Pairs with the fence in `SamplerShared::report_edge`.
        fence(Ordering::SeqCst);
        if edges.wakes_wanted.load(Ordering::Relaxed)
            && edges.count.load(Ordering::Relaxed) != self.edges_seen
        {
            return;
        }
        self.shared.wakeup.wait_until(wake_ns, count);
    }

    /// Reads once; returns the earliest instant of the next read. While another thread reads, its reading serves.
    fn tick(&mut self) -> u64 {
        let next_ns = match self.shared.try_reader() {
            Some(mut reader) => reader.read(&self.shared.stats),
            None => self.clock.now_ns() + RETRY_NS,
        };
        self.read_limits_if_due();
        next_ns
    }

    /// Reads the power limits of the domains if that is due: after the first sample, which must not wait for them. A driver
    /// that hangs then is reported like one in a read.
    fn read_limits_if_due(&mut self) {
        let now_ns = self.clock.now_ns();
        if !self.limit_reader.is_due(now_ns) {
            return;
        }
        if let Some(mut reader) = self.shared.try_reader() {
            self.shared.stats.begin_read(now_ns);
            self.limit_reader.read(&mut *reader.source, now_ns, &self.shared.limits);
            self.shared.stats.end_call();
        }
    }
}

/// The times of the surveys that look for lost phases.
#[derive(Default)]
pub(super) struct SurveyTimer {
    next_ns: u64,
    interval_ns: u64,
}

impl SurveyTimer {
    /// Whether a survey begins now. A phase that held for long makes the next survey come soon after its loss.
    fn is_due(&mut self, now_ns: u64, is_needed: bool) -> bool {
        if !is_needed || now_ns < self.next_ns {
            return false;
        }
        let held_ns = now_ns.saturating_sub(self.next_ns);
        self.interval_ns = match self.interval_ns {
            0 => MIN_SURVEY_INTERVAL_NS,
            _ if held_ns > MAX_SURVEY_INTERVAL_NS => MIN_SURVEY_INTERVAL_NS,
            interval_ns => (2 * interval_ns).min(MAX_SURVEY_INTERVAL_NS),
        };
        self.next_ns = now_ns + self.interval_ns;
        true
    }
}
