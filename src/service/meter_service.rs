//! The service: the attributor, the readings that feed it, and the registry of spans.
//!
//! Independent of the transport: a call comes with a [`Peer`] or [`Caller`](super::caller::Caller), and a reply that
//! is sent later goes to a [`ReplyTo`]. Everything runs on one thread and never blocks; all times come from one
//! [`Clock`]. This file has construction and polling; the methods of the protocol are in `methods.rs`.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use wattspan_client::account::Account;
use wattspan_client::protocol::{Method, MethodError, ProcessPrivileges, Reload, ReloadReply};

use super::access::{AccessPolicy, Peer};
use super::allocator;
use super::caller::ReplyTo;
use super::cursor::CursorCipher;
use super::daemon_control::{DaemonControl, ReloadedSettings};
use super::durability::{Durability, EncodedReply, FinalAccount};
use super::process_tracker::{GpuProcessUsage, ProcessTracker};
use super::rate_limit::{CallClass, RateLimitError, RateLimiter};
use super::readings::ReadingCollector;
use super::span_id::SpanIdGenerator;
use super::span_registry::{SpanLookup, SpanRegistry};
use super::startup::{ServiceSettings, StartupSettings};
use super::tiered_attributor::TieredAttributor;
use crate::attribution::MAX_DOMAINS;
use crate::clock::{self, Clock};
use crate::config::Limits;
use crate::domain::Absent;
use crate::process_usage::ProcessIdentity;

/// The parts that [`ServiceBuilder`](super::ServiceBuilder) collects.
pub(crate) struct ServiceParts {
    pub(crate) collector: ReadingCollector,
    pub(crate) absent: Vec<Absent>,
    pub(crate) settings: ServiceSettings,
    pub(crate) clock: Clock,
    pub(crate) durability: Option<Durability>,
    pub(crate) daemon: Option<(DaemonControl, ProcessPrivileges)>,
    /// The samplers run at the full rate from the start to the end.
    pub(crate) is_recording: bool,
}

/// The service: handles the calls of all clients and polls the readings.
pub struct Service {
    /// The instant from which energies and the balance count.
    pub(super) started_ns: u64,
    pub(crate) clock: Clock,
    pub(crate) attributor: TieredAttributor,
    pub(super) collector: ReadingCollector,
    pub(super) absent: Vec<Absent>,
    pub(super) settings: ServiceSettings,
    pub(crate) domain_index: HashMap<String, usize>,
    pub(super) registry: SpanRegistry,
    rate_limiter: RateLimiter,
    pub(super) span_ids: SpanIdGenerator,
    pub(super) cursor_cipher: CursorCipher,
    pub(super) process_tracker: ProcessTracker,
    pub(super) boot_id: String,
    /// `None` in an embedded meter, like `privileges`.
    daemon: Option<DaemonControl>,
    pub(super) privileges: Option<ProcessPrivileges>,
    /// A reused buffer, empty between calls.
    settled_buffer: Vec<Account>,
    /// The attributor has settled spans that are not finalized.
    has_more_settled: bool,
    /// The maximum of the spans' estimated memory since memory was last released.
    peak_span_bytes: usize,
    /// The time of the second release, see [`Service::release_memory`].
    compact_due_ns: Option<u64>,
    /// Final accounts that the next poll returns.
    final_accounts: Vec<FinalAccount>,
    pub(super) durability: Option<Durability>,
    store_replies: Vec<EncodedReply>,
    has_span_watchers: bool,
    refreshed_ns: u64,
    is_fast: bool,
    is_recording: bool,
    domain_watchers: usize,
}

impl Service {
    /// # Errors
    /// The kernel's random device cannot be opened.
    pub(crate) fn new(parts: ServiceParts) -> io::Result<Self> {
        let ServiceParts { mut collector, absent, settings, clock, durability, daemon, is_recording } = parts;
        collector.set_counter_timeout(settings.attribution.counter_timeout_ns);
        let domain_index =
            collector.domains().enumerate().map(|(at, domain)| (domain.name.clone(), at)).collect();
        let mut attributor =
            TieredAttributor::new(collector.domains().cloned().collect(), settings.attribution.clone());
        collector.publish_domain_state(attributor.inner_mut());
        let gpus = GpuProcessUsage::new(collector.domains().enumerate(), settings.nvml_library.clone());
        let domains = collector.domains().count().min(MAX_DOMAINS);
        let (daemon, privileges) = daemon.unzip();
        Ok(Self {
            started_ns: clock.now_ns(),
            clock,
            attributor,
            collector,
            absent,
            registry: SpanRegistry::new(settings.limits.clone(), domains),
            rate_limiter: RateLimiter::default(),
            process_tracker: ProcessTracker::new(settings.roots.clone(), gpus),
            settings,
            domain_index,
            span_ids: SpanIdGenerator::new()?,
            cursor_cipher: CursorCipher::default(),
            boot_id: boot_id(),
            daemon,
            privileges,
            settled_buffer: Vec::new(),
            has_more_settled: false,
            peak_span_bytes: 0,
            compact_due_ns: None,
            final_accounts: Vec::new(),
            durability,
            store_replies: Vec::new(),
            has_span_watchers: false,
            refreshed_ns: 0,
            is_fast: is_recording,
            is_recording,
            domain_watchers: 0,
        })
    }

    /// The current time of the service's clock.
    pub fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// The limits per client, per user and in total.
    pub fn limits(&self) -> &Limits {
        &self.settings.limits
    }

    /// The rule from credentials to access.
    pub fn policy(&self) -> &AccessPolicy {
        &self.settings.policy
    }

    /// The names of the domains.
    pub fn domain_names(&self) -> Vec<&str> {
        self.collector.names().collect()
    }

    /// The process of this number at the other end of a connection.
    pub fn identify_process(&self, pid: Option<u32>) -> Option<ProcessIdentity> {
        self.process_tracker.identify(pid?)
    }

    /// Takes one call from the peer's rate limit.
    ///
    /// # Errors
    /// The rate limit is exceeded.
    pub fn check_rate_limit(&mut self, peer: &Peer, class: CallClass) -> Result<(), RateLimitError> {
        self.rate_limiter.acquire(peer, class, self.clock.now_ns(), &self.settings.limits)
    }

    /// Sets the number of WatchDomains streams; the samplers run at the full rate while there is one.
    pub fn set_domain_watchers(&mut self, watchers: usize) {
        self.domain_watchers = watchers;
        self.collector.set_fixed_rate(self.is_recording || watchers > 0);
        self.update_sampling_rate();
    }

    /// Sets whether there are WatchSpans streams; if so, every final account is returned by a poll.
    pub fn set_span_watchers(&mut self, has_span_watchers: bool) {
        self.has_span_watchers = has_span_watchers;
    }

    /// Sets the function that another thread calls when [`Service::has_store_events`] becomes true.
    pub fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        if let Some(durability) = &self.durability {
            durability.set_waker(waker);
        }
    }

    /// Whether the store has committed or answered since the last poll.
    pub fn has_store_events(&self) -> bool {
        self.durability.as_ref().is_some_and(Durability::has_events)
    }

    /// Processes new readings, settles spans, and appends the final accounts to `final_accounts`.
    pub fn poll(&mut self, final_accounts: &mut Vec<FinalAccount>) {
        self.refresh(self.clock.now_ns());
        final_accounts.append(&mut self.final_accounts);
        self.final_accounts.shrink_to(1024);
    }

    /// Processes new readings unless that was done within the last millisecond. An account so far includes the latest
    /// readings, but a client that calls in a loop costs no more than one that waits.
    pub(super) fn refresh_if_stale(&mut self, now_ns: u64) {
        const FRESH_NS: u64 = 1_000_000;
        if now_ns.saturating_sub(self.refreshed_ns) >= FRESH_NS {
            self.refresh(now_ns);
        }
    }

    fn refresh(&mut self, now_ns: u64) {
        let since_ns = now_ns.saturating_sub(self.refreshed_ns);
        self.refreshed_ns = now_ns;
        self.attach_started_sources();
        self.collector.drain(now_ns, self.attributor.inner_mut());
        self.abandon_spans(now_ns);
        self.absent.extend(self.process_tracker.sample_if_due(now_ns, self.attributor.inner_mut()));
        self.attributor.inner_mut().advance(now_ns);
        self.has_more_settled = self.settle_within_budget(now_ns, since_ns);
        for (_, account) in self.attributor.release_withheld(now_ns) {
            self.finalize_span(account, now_ns);
        }
        self.poll_store(now_ns);
        self.release_memory(now_ns);
        self.update_sampling_rate();
    }

    /// Adds the domains of sources that have started since the last call.
    fn attach_started_sources(&mut self) {
        let attached = self.collector.attach_started_sources(self.attributor.inner_mut());
        let Some(attached) = attached else { return };
        self.absent.extend(attached.absent);
        let new_domains = || self.collector.domains().enumerate().skip(attached.first_domain);
        self.domain_index.extend(new_domains().map(|(at, domain)| (domain.name.clone(), at)));
        self.process_tracker.add_gpus(new_domains());
        self.registry.set_domains(self.collector.domains().count().min(MAX_DOMAINS));
    }

    /// Finalizes settled spans one by one, and returns whether there are more: the accounts of thousands of spans
    /// that end together are never in memory at once. The time budget is the time since the last call; settling a
    /// span is cheaper than the calls that opened and closed it, so no backlog builds up.
    fn settle_within_budget(&mut self, now_ns: u64, since_ns: u64) -> bool {
        const MIN_BUDGET_NS: u64 = 100_000;
        const MAX_BUDGET_NS: u64 = 2_000_000;
        let mut settled_buffer = std::mem::take(&mut self.settled_buffer);
        let end_ns = now_ns + since_ns.clamp(MIN_BUDGET_NS, MAX_BUDGET_NS);
        let has_more = loop {
            let has_more = self.attributor.drain_settled_up_to(1, now_ns, &mut settled_buffer);
            for account in settled_buffer.drain(..) {
                self.finalize_span(account, now_ns);
            }
            if !has_more || self.clock.now_ns() >= end_ns {
                break has_more;
            }
        };
        self.settled_buffer = settled_buffer;
        has_more
    }

    /// Stores a settled account, or makes it final at once where there is no store.
    fn finalize_span(&mut self, account: Account, now_ns: u64) {
        let has_watchers = self.has_span_watchers;
        let final_account = match &mut self.durability {
            Some(durability) => durability.finalize(account, &mut self.registry, has_watchers, now_ns),
            None => {
                let account = Arc::new(account);
                let reply_to = self.registry.settle(&account, None).reply_to;
                (reply_to.is_some() || has_watchers).then_some(FinalAccount { account, reply_to })
            }
        };
        self.final_accounts.extend(final_account);
    }

    fn poll_store(&mut self, now_ns: u64) {
        let Some(durability) = &mut self.durability else { return };
        durability.poll(
            now_ns,
            &self.registry,
            &self.cursor_cipher,
            &mut self.store_replies,
            &mut self.final_accounts,
        );
        durability.journal_open_spans(now_ns, self.attributor.inner(), &mut self.registry);
    }

    /// Shrinks tables and returns free memory to the system once most of the memory of spans and accounts is free.
    /// Takes milliseconds, so it runs only where that is megabytes. A second release follows after the store's thread
    /// has freed its part.
    fn release_memory(&mut self, now_ns: u64) {
        const MIN_RELEASE_BYTES: usize = 2 << 20;
        const EDGE_BYTES: usize = 128;
        const SECOND_RELEASE_NS: u64 = 2_000_000_000;
        let edge_bytes = self.attributor.inner().pending_edge_count() * EDGE_BYTES;
        let store_bytes = self.durability.as_ref().map_or(0, Durability::pending_bytes);
        let span_bytes = self.registry.memory_bytes() + edge_bytes + store_bytes;
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
        self.durability.iter_mut().for_each(Durability::shrink);
        if is_second_release {
            self.registry.compact(self.durability.as_ref().map_or(0, Durability::committed_number));
        }
        self.compact_due_ns = is_large_drop.then_some(now_ns + SECOND_RELEASE_NS);
        allocator::return_free_memory();
    }

    /// The time of the next poll where no event comes earlier.
    pub fn next_poll_ns(&self, now_ns: u64) -> u64 {
        /// While spans are open: the delay of WatchSpans and of readings.
        const ACTIVE_POLL_NS: u64 = 20_000_000;
        /// Otherwise: only the readings of the idle rate are to be processed.
        const IDLE_POLL_NS: u64 = 1_000_000_000;
        /// An account that is due waits for a reading; readings are not more frequent than this.
        const MIN_POLL_NS: u64 = 500_000;
        let latest_ns = now_ns + if self.is_fast { ACTIVE_POLL_NS } else { IDLE_POLL_NS };
        let latest_ns =
            self.attributor.next_release_ns().map_or(latest_ns, |due_ns| due_ns.clamp(now_ns, latest_ns));
        let sample_due_ns = self.process_tracker.sample_due_ns(self.attributor.inner());
        let store_timeout_ns = self.durability.as_ref().and_then(Durability::timeout_at_ns);
        let journal_due_ns =
            self.durability.as_ref().and_then(|durability| durability.journal_due_ns(now_ns));
        let due_times = [sample_due_ns, store_timeout_ns, journal_due_ns].into_iter().flatten();
        let latest_ns = due_times.fold(latest_ns, |soonest_ns, due_ns| soonest_ns.min(due_ns.max(now_ns)));
        if self.has_more_settled
            || self.registry.has_abandoned()
            || !self.final_accounts.is_empty()
            || !self.store_replies.is_empty()
            || self.has_store_events()
        {
            return now_ns;
        }
        if self.registry.waiting_replies() == 0 {
            return latest_ns;
        }
        let due_ns = self.attributor.inner().next_settle_ns().unwrap_or(latest_ns);
        due_ns.max(now_ns + MIN_POLL_NS).min(latest_ns)
    }

    /// The encoded replies to queries of the store that have been completed.
    pub fn take_store_replies(&mut self) -> Vec<(ReplyTo, Vec<u8>)> {
        std::mem::take(&mut self.store_replies)
    }

    /// The number of replies that wait for a final account or for the store.
    pub fn waiting_replies(&self) -> usize {
        let for_store = self.durability.as_ref().map_or(0, Durability::waiting_replies);
        self.registry.waiting_replies() + for_store
    }

    /// Ends all waiting for shutdown: the accounts so far of all replies that wait for a final one. Pending queries
    /// of the store are completed without it.
    pub fn take_waiting_replies(&mut self) -> Vec<(ReplyTo, Account)> {
        let now_ns = self.clock.now_ns();
        let mut replies = Vec::new();
        if let Some(durability) = &mut self.durability {
            durability.complete_from_memory(&self.registry, &self.cursor_cipher, &mut self.store_replies);
            replies = durability.take_pending_accounts();
        }
        let waiting = self.registry.take_waiting_replies();
        let current_account = |(reply_to, key)| {
            Some((reply_to, self.current_account(now_ns, "", SpanLookup::Unsettled(key)).ok()?))
        };
        replies.extend(waiting.into_iter().filter_map(current_account));
        replies
    }

    /// Stores open and unsettled spans as interrupted.
    pub fn shut_down(&mut self) {
        let now_ns = self.clock.now_ns();
        if let Some(durability) = &mut self.durability {
            durability.shut_down(now_ns, &mut self.attributor);
        }
    }

    fn update_sampling_rate(&mut self) {
        self.set_sampling_rate(self.attributor.inner().is_busy() || self.domain_watchers > 0);
    }

    /// Reports an edge to the samplers, which read the counters near it. An edge in the future is read at its instant
    /// only if that is near.
    pub(super) fn report_edge(&self, at_ns: u64, now_ns: u64) {
        const MAX_FUTURE_NS: u64 = 1_000_000;
        self.collector.report_edge(at_ns.min(now_ns + MAX_FUTURE_NS));
    }

    pub(super) fn set_sampling_rate(&mut self, is_fast: bool) {
        let is_fast = is_fast || self.is_recording;
        if is_fast != self.is_fast {
            self.is_fast = is_fast;
            self.collector.set_sampling_rate(is_fast);
        }
    }

    /// Reload.
    ///
    /// # Errors
    /// The configuration is faulty, or this is an embedded meter.
    pub fn reload(&mut self) -> Result<ReloadReply, MethodError> {
        let Some(daemon) = &mut self.daemon else {
            return Err(MethodError::MethodNotImplemented { method: Reload::NAME.into() });
        };
        let result = daemon.reload();
        let result = result.map(|ReloadedSettings { reply, settings, has_new_rates }| {
            self.apply_settings(settings, has_new_rates);
            reply
        });
        self.notify_ready();
        result
    }

    fn apply_settings(&mut self, settings: StartupSettings, has_new_rates: bool) {
        if has_new_rates {
            self.collector.set_rates(&settings.sampler);
        }
        self.collector.set_assumptions(settings.service.assumptions);
        let attribution_settings = &settings.service.attribution;
        self.attributor.inner_mut().reconfigure(
            attribution_settings.idle_mw.clone(),
            attribution_settings.max_open_spans,
            attribution_settings.max_pending_weight_changes,
        );
        self.registry.set_limits(settings.service.limits.clone());
        // The attributor's other settings need a restart, so `settings.attribution` stays.
        self.settings.limits = settings.service.limits;
        self.settings.policy = settings.service.policy;
    }

    /// Whether limits or policy have changed since the last call.
    pub fn take_new_settings(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(DaemonControl::take_new_settings)
    }

    /// Notifies the service manager that all sockets listen.
    pub fn notify_ready(&self) {
        if let Some(daemon) = &self.daemon {
            daemon.notify_ready(&self.domain_names());
        }
    }

    /// Notifies the service manager that the shutdown begins.
    pub fn notify_stopping(&self) {
        if let Some(daemon) = &self.daemon {
            daemon.notify_stopping();
        }
    }

    /// The time of the next watchdog notification, if there is a watchdog.
    pub fn watchdog_due_ns(&self) -> Option<u64> {
        self.daemon.as_ref().and_then(DaemonControl::watchdog_due_ns)
    }

    /// Notifies the watchdog if that is due and every sampler makes progress.
    pub fn notify_watchdog(&mut self, now_ns: u64) {
        if let Some(daemon) = &mut self.daemon {
            daemon.notify_watchdog(now_ns, || self.collector.overdue_ns(now_ns));
        }
    }
}

/// Identifies a boot of the machine: the kernel's random id, else the wall time of the boot.
fn boot_id() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    kernel.map_or_else(
        |_| format!("booted-{}", clock::unix_ns().saturating_sub(clock::monotonic_ns()) / 1_000_000_000),
        |id| id.trim().to_owned(),
    )
}
