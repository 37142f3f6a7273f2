//! The one place where a request meets the attributor.
//!
//! Owns the attributor, the feeds that fill it, and the register of whose span is which. Knows no transport: callers come
//! with a [`Peer`], answers go out as values, awaited ones under a [`ReplyTo`]. Everything here runs on one thread and
//! never waits; time comes from the one clock it was given.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::attribution::account::Account;
use crate::attribution::{self, Attributor, MAX_DOMAINS, SpanKey};
use crate::clock::{self, Clock};
use crate::config::Limits;
use crate::domain::Absent;
use crate::privileges::ProcessPrivileges;
use crate::process_usage::{KernelRoots, ProcessIdentity};
use crate::protocol::MethodError;
use crate::sampler;

use super::access::{AccessPolicy, Peer};
use super::allocator;
use super::coarse_spans::CoarseSpans;
use super::cursor::CursorCipher;
use super::durability::Durability;
use super::gpu_process_usage::GpuProcessUsage;
use super::process_tracking::ProcessTracker;
use super::rate_limit::{CallClass, RateLimitError, RateLimiter};
use super::readings::ReadingCollector;
use super::reload::DaemonControl;
use super::reply_to::ReplyTo;
use super::span_id::SpanIdGenerator;
use super::span_lookup::SpanLookup;
use super::span_registry::SpanRegistry;

/// How far ahead of the daemon's clock an edge may lie (clocks of two CPUs, rounding by the client).
const MAX_FUTURE_NS: u64 = 1_000_000;

/// How the service is set up.
#[derive(Debug, Clone)]
pub struct ServiceSettings {
    /// How the attributor is.
    pub attribution: attribution::AttributionSettings,
    /// What one client may take.
    pub limits: Limits,
    /// Who may what.
    pub policy: AccessPolicy,
    /// How far back readings are kept, and edges are taken, at least.
    pub history_ns: u64,
    /// Where processes and control groups are shown.
    pub roots: KernelRoots,
    /// A library to load instead of the system's NVML.
    pub nvml_library: Option<PathBuf>,
}

/// Who calls, through what.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// Who it is.
    pub peer: Peer,
    /// Where an awaited answer would go.
    pub reply_to: ReplyTo,
    /// The process at the other end, where the transport tells it.
    pub process: Option<ProcessIdentity>,
}

/// What a close gives.
#[derive(Debug)]
pub enum AccountOutcome {
    /// The account so far.
    Ready(Box<Account>),
    /// The final account will come under the caller's ticket.
    Deferred,
}

/// A final account, and who waited for it.
#[derive(Debug)]
pub struct FinalAccount {
    /// The account.
    pub account: Arc<Account>,
    /// Whose answer it is.
    pub reply_to: Option<ReplyTo>,
}

/// The meter as its clients see it.
pub struct Service {
    pub(crate) clock: Clock,
    pub(crate) attributor: Attributor,
    pub(crate) collector: ReadingCollector,
    pub(crate) absent: Vec<Absent>,
    pub(crate) settings: ServiceSettings,
    pub(crate) domain_index: HashMap<String, usize>,
    pub(crate) registry: SpanRegistry,
    pub(crate) coarse_spans: CoarseSpans,
    rate_limiter: RateLimiter,
    pub(crate) span_ids: SpanIdGenerator,
    /// Of lists that go on on disk.
    pub(crate) cursor_cipher: CursorCipher,
    pub(crate) process_tracker: ProcessTracker,
    pub(crate) boot_id: String,
    /// What a daemon has and a meter inside a client has not.
    pub(crate) daemon: Option<DaemonControl>,
    pub(crate) confinement: Option<ProcessPrivileges>,
    /// Room to settle into, empty between two calls.
    settled_buffer: Vec<(SpanKey, Account)>,
    /// Some have settled and are not finished.
    has_more_settled: bool,
    /// The most memory that spans took since memory was last given back, by estimate.
    peak_span_bytes: usize,
    /// When it is given back once more.
    compact_due_ns: Option<u64>,
    /// Final, and not yet handed out by a pump.
    pub(crate) final_accounts: Vec<FinalAccount>,
    /// The ledger on disk, where there is one.
    pub(crate) durability: Option<Durability>,
    /// The disk's answers, not yet handed out.
    pub(crate) store_replies: Vec<(ReplyTo, Vec<u8>)>,
    /// Somebody watches the final accounts.
    pub(crate) has_span_watchers: bool,
    refreshed_ns: u64,
    is_fast: bool,
    is_recording: bool,
    domain_watchers: usize,
}

impl Service {
    /// A service over feeds that run already. Fails where the kernel's random device cannot be opened.
    pub fn new(
        collector: ReadingCollector,
        absent: Vec<Absent>,
        settings: ServiceSettings,
        clock: Clock,
    ) -> io::Result<Self> {
        let index = collector.domains().enumerate().map(|(at, domain)| (domain.name.clone(), at)).collect();
        let mut attributor =
            Attributor::new(collector.domains().cloned().collect(), settings.attribution.clone());
        collector.publish_domain_state(&mut attributor);
        let gpus = GpuProcessUsage::new(collector.domains().enumerate(), settings.nvml_library.clone());
        let domains = collector.domains().count().min(MAX_DOMAINS);
        Ok(Self {
            clock,
            attributor,
            collector,
            absent,
            registry: SpanRegistry::new(settings.limits.clone(), domains),
            coarse_spans: CoarseSpans::new(settings.attribution.horizon_ns),
            rate_limiter: RateLimiter::default(),
            process_tracker: ProcessTracker::new(settings.roots.clone(), gpus),
            settings,
            domain_index: index,
            span_ids: SpanIdGenerator::new()?,
            cursor_cipher: CursorCipher::default(),
            boot_id: boot_id(),
            daemon: None,
            confinement: None,
            settled_buffer: Vec::new(),
            has_more_settled: false,
            peak_span_bytes: 0,
            compact_due_ns: None,
            final_accounts: Vec::new(),
            durability: None,
            store_replies: Vec::new(),
            has_span_watchers: false,
            refreshed_ns: 0,
            is_fast: false,
            is_recording: false,
            domain_watchers: 0,
        })
    }

    /// Makes it a daemon's: it can be reloaded, tells the service manager how it is, and shows what it gave up.
    pub fn enable_daemon_mode(&mut self, daemon: DaemonControl, confinement: ProcessPrivileges) {
        (self.daemon, self.confinement) = (Some(daemon), Some(confinement));
    }

    /// The service's clock.
    pub fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// What one client may take.
    pub fn limits(&self) -> &Limits {
        &self.settings.limits
    }

    /// One call of this peer, through whatever door.
    ///
    /// # Errors
    /// The peer's calls are used up.
    pub fn check_rate_limit(&mut self, peer: &Peer, class: CallClass) -> Result<(), RateLimitError> {
        if peer.unlimited {
            return Ok(());
        }
        self.rate_limiter.acquire(peer, class, self.clock.now_ns(), &self.settings.limits)
    }

    /// Who may what.
    pub fn policy(&self) -> &AccessPolicy {
        &self.settings.policy
    }

    /// How many watch the domains; while somebody does, the samplers are fast.
    pub fn set_domain_watchers(&mut self, watchers: usize) {
        self.domain_watchers = watchers;
        self.set_sampling_rate(self.attributor.is_busy() || watchers > 0);
    }

    /// Takes in new readings and settles what they allow, and appends the final accounts to `finals`.
    pub fn poll(&mut self, finals: &mut Vec<FinalAccount>) {
        self.refresh(self.clock.now_ns());
        finals.append(&mut self.final_accounts);
        self.final_accounts.shrink_to(1024);
    }

    /// The same, unless it was done a moment ago: an account so far should be that of now, but a client that asks in a
    /// loop should not cost more than one that waits.
    pub(crate) fn refresh_if_stale(&mut self, now_ns: u64) {
        const FRESH_NS: u64 = 1_000_000;
        if now_ns.saturating_sub(self.refreshed_ns) >= FRESH_NS {
            self.refresh(now_ns);
        }
    }

    fn refresh(&mut self, now_ns: u64) {
        let since_ns = now_ns.saturating_sub(self.refreshed_ns);
        self.refreshed_ns = now_ns;
        self.attach_started_sources();
        self.collector.drain(now_ns, &mut self.attributor);
        self.sample_process_usage(now_ns);
        self.attributor.advance(now_ns);
        self.has_more_settled = self.settle_within_budget(now_ns, since_ns);
        for (_, account) in self.coarse_spans.release(now_ns) {
            self.finalize_span(account, now_ns);
        }
        self.poll_store(now_ns);
        self.release_memory(now_ns);
        self.set_sampling_rate(self.attributor.is_busy() || self.domain_watchers > 0);
    }

    /// Takes up the domains of sources that have answered since.
    fn attach_started_sources(&mut self) {
        let Some(attached) = self.collector.attach_started_sources(&mut self.attributor) else { return };
        self.absent.extend(attached.absent);
        let new_domains = || self.collector.domains().enumerate().skip(attached.first_domain);
        self.domain_index.extend(new_domains().map(|(at, domain)| (domain.name.clone(), at)));
        self.process_tracker.add_gpus(new_domains());
        self.registry.set_domains(self.collector.domains().count().min(MAX_DOMAINS));
    }

    /// Finishes spans that have settled, one by one, so that accounts of thousands that end together are never in memory all
    /// at once, and no call waits for all of them; whether there are more. It may take as long as calls took since it ran
    /// last: settling a span is cheaper than the calls that opened and closed it, so that no backlog builds up.
    fn settle_within_budget(&mut self, now_ns: u64, since_ns: u64) -> bool {
        const MIN_BUDGET_NS: u64 = 100_000;
        const MAX_BUDGET_NS: u64 = 2_000_000;
        let mut settled_buffer = std::mem::take(&mut self.settled_buffer);
        let end_ns = now_ns + since_ns.clamp(MIN_BUDGET_NS, MAX_BUDGET_NS);
        let more = loop {
            let more = self
                .attributor
                .drain_settled_up_to(1, |span| settled_buffer.push((span.key(), span.account())));
            for (key, account) in settled_buffer.drain(..) {
                if let Some(account) = self.coarse_spans.withhold(key, account, now_ns) {
                    self.finalize_span(account, now_ns);
                }
            }
            if !more || self.clock.now_ns() >= end_ns {
                break more;
            }
        };
        self.settled_buffer = settled_buffer;
        more
    }

    /// Shrinks tables and gives free memory back to the system once most of what spans and their accounts took is free. Costs
    /// milliseconds, so only where that is megabytes.
    fn release_memory(&mut self, now_ns: u64) {
        /// By estimate, like what spans take.
        const MIN_RELEASE_BYTES: usize = 2 << 20;
        const EDGE_BYTES: usize = 128;
        /// Then once more: the disk's thread has freed its part too.
        const SECOND_RELEASE_NS: u64 = 2_000_000_000;
        let edge_bytes = self.attributor.pending_edge_count() * EDGE_BYTES;
        let span_bytes = self.registry.memory_bytes() + edge_bytes + self.pending_store_bytes();
        self.peak_span_bytes = self.peak_span_bytes.max(span_bytes);
        let is_large_drop =
            self.peak_span_bytes >= MIN_RELEASE_BYTES && span_bytes <= self.peak_span_bytes / 4;
        let is_second_release =
            span_bytes < MIN_RELEASE_BYTES && self.compact_due_ns.is_some_and(|at_ns| now_ns >= at_ns);
        if !is_large_drop && !is_second_release {
            return;
        }
        self.peak_span_bytes = span_bytes;
        self.attributor.shrink();
        self.registry.shrink();
        self.coarse_spans.shrink();
        if is_second_release {
            self.registry.compact(self.committed_number());
        }
        self.compact_due_ns = is_large_drop.then_some(now_ns + SECOND_RELEASE_NS);
        allocator::return_free_memory();
    }

    /// When to pump again, if nothing happens before; on the service's clock.
    pub fn next_poll_ns(&self, now_ns: u64) -> u64 {
        /// Soon enough for watchers of spans, seldom enough to cost nothing.
        const ACTIVE_POLL_NS: u64 = 20_000_000;
        /// Nobody waits: only the slow tick's readings are to be taken in.
        const IDLE_POLL_NS: u64 = 1_000_000_000;
        /// An account that is due and has not come waits for a reading; looking more often than they come is vain.
        const MIN_POLL_NS: u64 = 500_000;
        let latest_ns = now_ns + if self.is_fast { ACTIVE_POLL_NS } else { IDLE_POLL_NS };
        let latest_ns =
            self.coarse_spans.next_release_ns().map_or(latest_ns, |due_ns| due_ns.clamp(now_ns, latest_ns));
        let due_times = [self.process_sample_due_ns(), self.store_timeout_at_ns()].into_iter().flatten();
        let latest_ns = due_times.fold(latest_ns, |soonest_ns, due_ns| soonest_ns.min(due_ns.max(now_ns)));
        if self.has_more_settled
            || !self.final_accounts.is_empty()
            || !self.store_replies.is_empty()
            || self.has_store_events()
        {
            return now_ns;
        }
        if self.registry.waiting_replies() == 0 {
            return latest_ns;
        }
        let due_ns = self.attributor.next_settle_ns().unwrap_or(latest_ns);
        due_ns.max(now_ns + MIN_POLL_NS).min(latest_ns)
    }

    /// The accounts so far of all who wait for a final one; for the end of the daemon. Questions that the disk has not
    /// answered are answered without it.
    pub fn take_waiting_replies(&mut self) -> Vec<(ReplyTo, Account)> {
        let now_ns = self.clock.now_ns();
        self.answer_from_memory();
        let mut replies = self.take_pending_accounts();
        let waiting = self.registry.take_waiting_replies();
        let current_account = |(reply_to, key)| {
            Some((reply_to, self.current_account(now_ns, "", SpanLookup::Unsettled(key)).ok()?))
        };
        replies.extend(waiting.into_iter().filter_map(current_account));
        replies
    }

    /// What the samplers give, for a recording; they are fast from here on.
    pub fn start_recording(&mut self) -> Vec<sampler::SampleStream> {
        self.is_recording = true;
        self.set_sampling_rate(true);
        self.collector.recording_feeds()
    }

    /// The domains' names.
    pub fn domain_names(&self) -> Vec<&str> {
        self.collector.names().collect()
    }

    /// The sources that are not there.
    pub fn absent(&self) -> &[Absent] {
        &self.absent
    }

    /// How many wait for a final account, or an old one.
    pub fn waiting_replies(&self) -> usize {
        self.registry.waiting_replies() + self.waiting_for_store()
    }

    /// The samplers are to be fast, or need not be; they linger by themselves.
    pub(crate) fn set_sampling_rate(&mut self, is_fast: bool) {
        let is_fast = is_fast || self.is_recording;
        if is_fast != self.is_fast {
            self.is_fast = is_fast;
            self.collector.set_sampling_rate(is_fast);
        }
    }

    /// The instant a client names, or now.
    pub(crate) fn validate_instant(&self, at_ns: Option<i64>, now_ns: u64) -> Result<u64, MethodError> {
        let Some(requested) = at_ns else { return Ok(now_ns) };
        let (earliest_ns, latest_ns) =
            (now_ns.saturating_sub(self.settings.history_ns), now_ns.saturating_add(MAX_FUTURE_NS));
        let inside = u64::try_from(requested).ok().filter(|at_ns| (earliest_ns..=latest_ns).contains(at_ns));
        inside.ok_or(MethodError::InvalidTime { at_ns: requested, earliest_ns, latest_ns })
    }
}

/// What tells one boot of the machine from another: the kernel's random id, else the wall time of the boot.
fn boot_id() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    kernel.map_or_else(
        |_| format!("booted-{}", clock::unix_ns().saturating_sub(clock::monotonic_ns()) / 1_000_000_000),
        |id| id.trim().to_owned(),
    )
}
