//! The service: the spans of all clients, and the readings that are attributed to them.
//!
//! Independent of the transport: a call comes with a [`Peer`] or [`Caller`], and a reply that
//! is sent later goes to a [`ReplyTo`]. Everything runs on one thread and never blocks; all times come from one
//! [`Clock`]. This file has construction and polling; the methods of the protocol are in `methods.rs`.

use std::collections::HashMap;
use std::io;

use wattspan_client::account::Account;
use wattspan_client::protocol::{Method, MethodError, ProcessPrivileges, Reload, ReloadReply};

use super::access::{AccessPolicy, Peer};
use super::allocator;
use super::caller::{Caller, ConnectionId, ReplyTo};
use super::cursor::CursorCipher;
use super::daemon_control::{DaemonControl, ReloadedSettings};
use super::durability::{AccountPage, DeferredReply, Durability, FinalAccount, QueryKind};
use super::rate_limit::{CallClass, RateLimitError, RateLimiter};
use super::readings::ReadingCollector;
use super::reply::MethodResult;
use super::span_id::SpanIdGenerator;
use super::span_lifecycle::SpanLifecycle;
use super::startup::{ServiceSettings, StartupSettings};
use crate::clock::{self, Clock};
use crate::config::Limits;
use crate::domain::Absent;
use crate::process_usage::ProcessIdentity;
use crate::store::{ForwardQuery, StoreQuery};

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
    pub(crate) spans: SpanLifecycle,
    pub(super) collector: ReadingCollector,
    pub(super) absent: Vec<Absent>,
    pub(super) settings: ServiceSettings,
    pub(crate) domain_index: HashMap<String, usize>,
    rate_limiter: RateLimiter,
    pub(super) span_ids: SpanIdGenerator,
    pub(super) cursor_cipher: CursorCipher,
    pub(super) boot_id: String,
    /// `None` in an embedded meter, like `privileges`.
    daemon: Option<DaemonControl>,
    pub(super) privileges: Option<ProcessPrivileges>,
    /// The maximum of the spans' estimated memory since memory was last released.
    peak_span_bytes: usize,
    /// The time of the second release, see [`Service::release_memory`].
    compact_due_ns: Option<u64>,
    store_replies: Vec<DeferredReply>,
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
        let (daemon, privileges) = daemon.unzip();
        Ok(Self {
            started_ns: clock.now_ns(),
            clock,
            spans: SpanLifecycle::new(&collector, &settings, durability),
            collector,
            absent,
            rate_limiter: RateLimiter::default(),
            settings,
            domain_index,
            span_ids: SpanIdGenerator::new()?,
            cursor_cipher: CursorCipher::default(),
            boot_id: clock::boot_id(),
            daemon,
            privileges,
            peak_span_bytes: 0,
            compact_due_ns: None,
            store_replies: Vec::new(),
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

    /// All domains, also those of sources that are still starting, in a fixed order.
    pub fn domain_names(&self) -> Vec<&str> {
        self.collector.names().collect()
    }

    /// The process of this number at the other end of a connection.
    pub fn identify_process(&self, pid: Option<u32>) -> Option<ProcessIdentity> {
        self.spans.identify_process(pid?)
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
        self.spans.set_watchers(has_span_watchers);
    }

    /// Sets the function that another thread calls when [`Service::has_store_events`] becomes true.
    pub fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        self.spans.set_waker(waker);
    }

    /// Whether the store has committed or answered since the last poll.
    pub fn has_store_events(&self) -> bool {
        self.spans.has_store_events()
    }

    /// Processes new readings, settles spans, and appends the final accounts to `final_accounts`.
    pub fn poll(&mut self, final_accounts: &mut Vec<FinalAccount>) {
        self.refresh(self.clock.now_ns());
        self.spans.take_final_accounts(final_accounts);
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
        self.attach_started_sources(now_ns);
        self.collector.drain(now_ns, &mut self.spans.domain_inputs());
        let (cipher, replies) = (&self.cursor_cipher, &mut self.store_replies);
        self.absent.extend(self.spans.poll(&self.clock, now_ns, since_ns, cipher, replies));
        self.release_memory(now_ns);
        self.update_sampling_rate();
    }

    /// Adds the domains of sources that have started since the last call, and of new devices.
    fn attach_started_sources(&mut self, now_ns: u64) {
        let attached = self.spans.attach_started_sources(now_ns, &mut self.collector, &self.absent);
        let Some(attached) = attached else { return };
        self.absent.retain(|absent| !attached.outdated.contains(absent));
        for absent in attached.absent {
            // A search for devices is repeated, with the same reasons.
            if !self.absent.contains(&absent) {
                self.absent.push(absent);
            }
        }
        let new_domains = self.collector.domains().enumerate().skip(attached.first_domain);
        self.domain_index.extend(new_domains.map(|(at, domain)| (domain.name.clone(), at)));
    }

    /// Shrinks tables and returns free memory to the system once most of the memory of spans and accounts is free.
    /// Takes milliseconds, so it runs only where that is megabytes. A second release follows after the store's thread
    /// has freed its part.
    fn release_memory(&mut self, now_ns: u64) {
        const MIN_RELEASE_BYTES: usize = 2 << 20;
        const SECOND_RELEASE_NS: u64 = 2_000_000_000;
        let span_bytes = self.spans.memory_bytes();
        self.peak_span_bytes = self.peak_span_bytes.max(span_bytes);
        let is_large_drop =
            self.peak_span_bytes >= MIN_RELEASE_BYTES && span_bytes <= self.peak_span_bytes / 4;
        let is_second_release =
            span_bytes < MIN_RELEASE_BYTES && self.compact_due_ns.is_some_and(|at_ns| now_ns >= at_ns);
        if !is_large_drop && !is_second_release {
            return;
        }
        self.peak_span_bytes = span_bytes;
        self.spans.shrink();
        if is_second_release {
            self.spans.compact();
        }
        self.compact_due_ns = is_large_drop.then_some(now_ns + SECOND_RELEASE_NS);
        allocator::return_free_memory();
    }

    /// The time of the next poll where no event comes earlier.
    pub fn next_poll_ns(&self, now_ns: u64) -> u64 {
        /// While spans are open: the delay of WatchSpans and of readings.
        const ACTIVE_POLL_NS: u64 = 20_000_000;
        /// While nothing happens to the open spans: few readings come, and no account can be due.
        const QUIET_POLL_NS: u64 = 200_000_000;
        /// More edges than this are passed on soon, so that few wait.
        const MAX_WAITING_EDGES: usize = 64;
        /// Otherwise: only the readings of the idle rate are to be processed.
        const IDLE_POLL_NS: u64 = 1_000_000_000;
        if !self.store_replies.is_empty() {
            return now_ns;
        }
        let attributor = self.spans.attributor();
        let is_quiet =
            attributor.pending_edge_count() <= MAX_WAITING_EDGES && self.collector.has_few_readings();
        let latest_ns = match (self.is_fast, is_quiet) {
            (true, false) => now_ns + ACTIVE_POLL_NS,
            (true, true) => {
                let settle_ns = attributor.earliest_settle_ns().unwrap_or(u64::MAX);
                settle_ns.clamp(now_ns + ACTIVE_POLL_NS, now_ns + QUIET_POLL_NS)
            }
            (false, _) => now_ns + IDLE_POLL_NS,
        };
        self.spans.next_poll_ns(now_ns, latest_ns)
    }

    /// The replies to queries of the store that have been completed.
    pub fn take_store_replies(&mut self) -> Vec<(ReplyTo, MethodResult)> {
        std::mem::take(&mut self.store_replies)
    }

    /// Submits the query for the next accounts of a stream of stored ones, whose page follows. Returns false if
    /// the store takes no query now.
    pub fn request_account_page(&mut self, caller: &Caller, query: ForwardQuery) -> bool {
        let query = StoreQuery::Forward(Box::new(query));
        self.spans.submit_query(self.clock.now_ns(), caller, query, QueryKind::Page).unwrap_or(false)
    }

    /// Ends the queries of a connection whose peer has less access now than at the call. The replies come with the next poll.
    pub fn apply_access(&mut self, connection: ConnectionId, peer: &Peer) {
        self.spans.apply_access(connection, peer, &mut self.store_replies);
    }

    /// Ends the sums that are computed for a closed connection.
    pub fn cancel_sums(&mut self, connection: ConnectionId) {
        self.spans.cancel_sums(connection);
    }

    /// The pages of the streams of stored accounts that have been completed.
    pub fn take_account_pages(&mut self) -> Vec<AccountPage> {
        self.spans.take_account_pages()
    }

    /// The number of accounts that were passed to the store since the start; `None` without a store.
    pub fn last_store_number(&self) -> Option<u64> {
        self.spans.last_store_number()
    }

    /// The number of replies that wait for a final account or for the store.
    pub fn waiting_replies(&self) -> usize {
        self.spans.waiting_replies()
    }

    /// Ends all waiting for shutdown: the accounts so far of all replies that wait for a final one. Pending queries
    /// of the store are completed without it.
    pub fn take_waiting_replies(&mut self) -> Vec<(ReplyTo, Account)> {
        let now_ns = self.clock.now_ns();
        self.spans.take_waiting_replies(now_ns, &self.cursor_cipher, &mut self.store_replies)
    }

    /// Stores open and unsettled spans as interrupted.
    pub fn shut_down(&mut self) {
        self.spans.shut_down(self.clock.now_ns());
    }

    fn update_sampling_rate(&mut self) {
        self.set_sampling_rate(self.spans.attributor().is_busy() || self.domain_watchers > 0);
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
        self.spans.reconfigure(&settings.service);
        self.collector.set_assumptions(settings.service.assumptions);
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
