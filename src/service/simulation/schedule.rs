//! A run from a seed: calls, faults and the checks after each step.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use wattspan_client::account::Account;
use wattspan_client::protocol::{Access, MethodError, SpanCounts};

use super::counter::{self, SharedCounter, SimulatedCounter, SlowReads, lock};
use super::machine::{self, Machine, MachineSettings, OPEN_SPANS_PER_USER};
use super::model::{self, CheckedShares, Follower, ModelState, SpanModel, Watcher};
use super::random::Random;
use crate::clock::Clock;
use crate::sampler::SamplerSettings;
use crate::service::access::Peer;
use crate::service::caller::{Caller, ReplyTo};
use crate::service::durability::FinalAccount;
use crate::service::reply::{MethodResult, Reply};

const MS_NS: u64 = 1_000_000;
const SECOND_NS: u64 = 1_000_000_000;
const HOUR_NS: u64 = 3_600 * SECOND_NS;
pub(super) const START_NS: u64 = 5_000_000_000;

/// What a seed decides first, so that each kind of run has a share of the seeds.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunKind {
    pub(super) has_store: bool,
    /// A user has coarse access. The edges of its spans are moved to a grid, so that no truth is computed.
    pub(super) has_coarse: bool,
    /// Counters wrap, threads are late and clients die, but no energy is unknown.
    pub(super) is_clean: bool,
    /// The wall clock jumps.
    pub(super) steps_wall: bool,
    pub(super) duration_ns: u64,
    pub(super) max_age_s: u64,
}

impl RunKind {
    pub(super) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5eed);
        Self {
            has_store: random.one_in(5),
            has_coarse: random.one_in(8),
            is_clean: random.one_in(4),
            steps_wall: true,
            duration_ns: random.between(60, 600) * SECOND_NS,
            max_age_s: 86_400 * 30,
        }
    }

    /// Whether accounts reach their greatest age within a run.
    pub(super) fn deletes_accounts(&self) -> bool {
        self.max_age_s < 86_400
    }
}

/// What a run has checked.
#[derive(Debug, Default, Clone)]
pub(super) struct RunFigures {
    pub(super) simulated_ns: u64,
    pub(super) calls: u64,
    pub(super) refused: u64,
    pub(super) accounts: u64,
    pub(super) restarts: u64,
    /// Accounts in lists after a number, and replies to SumSpans.
    pub(super) listed: u64,
    pub(super) sums: u64,
    /// Items of streams of stored accounts.
    pub(super) watched: u64,
    pub(super) shares: CheckedShares,
}

impl RunFigures {
    pub(super) fn add(&mut self, other: &Self) {
        self.simulated_ns += other.simulated_ns;
        self.calls += other.calls;
        self.refused += other.refused;
        self.accounts += other.accounts;
        self.restarts += other.restarts;
        self.listed += other.listed;
        self.sums += other.sums;
        self.watched += other.watched;
        self.shares.bounded += other.shares.bounded;
        self.shares.unbounded += other.shares.unbounded;
    }

    pub(super) fn describe(&self) -> String {
        format!(
            "{:.2} simulated hours, {} calls ({} refused), {} final accounts, {} restarts, {} accounts listed, {} streamed, {} sums, \
             {} bounds held the truth, {} shares had no bound",
            self.simulated_ns as f64 / HOUR_NS as f64,
            self.calls,
            self.refused,
            self.accounts,
            self.restarts,
            self.listed,
            self.watched,
            self.sums,
            self.shares.bounded,
            self.shares.unbounded
        )
    }
}

/// What a deferred reply must be.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Waiting {
    /// The final account of a closed span.
    Close(u32, String),
    /// A stored account.
    Query(u32, String),
    /// A list of the user's follower.
    After(usize),
    /// Sums for the user.
    Sums(usize),
}

/// A run.
pub(super) struct Simulation {
    pub(super) kind: RunKind,
    make_random_call: fn(&mut Simulation),
    pub(super) machine: Option<Machine>,
    pub(super) clock: Clock,
    pub(super) counters: Vec<SharedCounter>,
    slow: Arc<Mutex<SlowReads>>,
    settings: MachineSettings,
    directory: Option<tempfile::TempDir>,
    pub(super) random: Random,
    pub(super) figures: RunFigures,
    pub(super) spans: Vec<SpanModel>,
    /// The latest span of each name, in `spans`.
    pub(super) latest: HashMap<(u32, String), usize>,
    pub(super) counts: SpanCounts,
    /// The final accounts as they were first reported.
    pub(super) finals: BTreeMap<(u32, String), Account>,
    /// All names that were ever used.
    pub(super) used_names: HashSet<(u32, String)>,
    pub(super) waiting: BTreeMap<(u64, u64), Waiting>,
    /// The limit of open spans of a user that applies now.
    pub(super) open_limit: usize,
    pub(super) next_name: u64,
    pub(super) next_slot: u64,
    /// The current connection of each user.
    pub(super) connections: [u64; 3],
    /// What each user has read of the stored accounts.
    pub(super) followers: [Follower; 3],
    pub(super) watchers: [Watcher; 3],
    final_accounts: Vec<FinalAccount>,
    /// All final accounts, for a comparison of runs.
    pub(super) history: Vec<Account>,
    call_due_ns: u64,
    fault_due_ns: u64,
    burst_ends_ns: u64,
    measured_uj: Vec<u64>,
    is_draining: bool,
    pub(super) wall_steps: u64,
}

impl Simulation {
    pub(super) fn new(seed: u64, kind: RunKind, make_random_call: fn(&mut Simulation)) -> Self {
        let mut random = Random::new(seed);
        let clock = Clock::manual(START_NS);
        // The wall time of the machine must not matter.
        let offset_ns = 1_800_000_000_000_000_000_i64 - clock.unix_ns().cast_signed();
        clock.step_wall(offset_ns);
        let fast_ns = [MS_NS, 990_000][random.below(2) as usize];
        let slow_ns = [20 * MS_NS, 100 * MS_NS][random.below(2) as usize];
        let counters =
            [("package-0", fast_ns), ("dram-0", fast_ns), ("gpu-0", slow_ns)].map(|(name, interval_ns)| {
                Arc::new(Mutex::new(SimulatedCounter::new(
                    name,
                    interval_ns,
                    random.fork(),
                    START_NS,
                    kind.is_clean,
                )))
            });
        let settings = MachineSettings {
            sampler: SamplerSettings {
                ring_samples: if random.one_in(4) && !kind.is_clean { 64 } else { 16_384 },
                fixed_rate: random.one_in(10),
                rate_hz: 250.0,
                ..SamplerSettings::default()
            },
            max_age_s: kind.max_age_s,
        };
        let directory = kind.has_store.then(|| tempfile::tempdir().expect("a temporary directory"));
        let mut simulation = Self {
            kind,
            make_random_call,
            machine: None,
            clock,
            counters: counters.to_vec(),
            slow: Arc::default(),
            settings,
            directory,
            random,
            figures: RunFigures::default(),
            spans: Vec::new(),
            latest: HashMap::new(),
            counts: SpanCounts::default(),
            finals: BTreeMap::new(),
            used_names: HashSet::new(),
            waiting: BTreeMap::new(),
            open_limit: OPEN_SPANS_PER_USER,
            next_name: 0,
            next_slot: 0,
            connections: [100, 200, 300],
            followers: Default::default(),
            watchers: Default::default(),
            final_accounts: Vec::new(),
            history: Vec::new(),
            call_due_ns: START_NS + 2 * SECOND_NS,
            fault_due_ns: START_NS + 3 * SECOND_NS,
            burst_ends_ns: START_NS + 10 * SECOND_NS,
            measured_uj: vec![0; counters.len()],
            is_draining: false,
            wall_steps: 0,
        };
        simulation.start_machine();
        simulation
    }

    fn start_machine(&mut self) {
        let directory: Option<PathBuf> =
            self.directory.as_ref().map(|directory| directory.path().join("state"));
        let random = self.random.fork();
        let machine = Machine::start(
            &self.clock,
            &self.counters,
            &self.slow,
            directory.as_deref(),
            &self.settings,
            random,
        );
        self.machine = Some(machine);
        self.open_limit = OPEN_SPANS_PER_USER;
        (self.counts, self.measured_uj) = (SpanCounts::default(), vec![0; self.counters.len()]);
    }

    pub(super) fn machine(&mut self) -> &mut Machine {
        self.machine.as_mut().expect("it runs")
    }

    /// The users. The last one has coarse access in some runs.
    pub(super) fn peer(&self, user: usize) -> Peer {
        let access = [
            Access::Span,
            Access::Telemetry,
            if self.kind.has_coarse { Access::Coarse } else { Access::Span },
        ][user];
        Peer { uid: 1000 * (user as u32 + 1), access, unlimited: false }
    }

    pub(super) fn is_coarse(&self, user: usize) -> bool {
        user == 2 && self.kind.has_coarse
    }

    /// Whether the disk has worked for long enough that the store knows it.
    pub(super) fn is_disk_well(&self) -> bool {
        let machine = self.machine.as_ref().expect("it runs");
        let faults_ns = machine.faults.disk_stalls_until_ns.max(machine.faults.disk_fails_until_ns);
        self.clock.now_ns() > faults_ns.max(machine.started_ns) + 5 * SECOND_NS
    }

    /// A caller on the user's connection, with the place of a new reply.
    pub(super) fn caller(&mut self, user: usize) -> Caller {
        self.next_slot += 1;
        let reply_to = ReplyTo { connection: self.connections[user], slot: self.next_slot };
        Caller { peer: self.peer(user), reply_to, process: None }
    }

    /// Runs to the end, lets everything settle, and checks what is left.
    pub(super) fn run(&mut self) {
        let end_ns = START_NS + self.kind.duration_ns;
        self.run_until(end_ns);
        self.is_draining = true;
        for user in 0..3 {
            self.close_connection(user);
        }
        self.run_on(15 * SECOND_NS);
        self.check_followers();
        self.check_watchers();
        self.figures.simulated_ns += self.clock.now_ns() - START_NS;
        assert_eq!(self.waiting, BTreeMap::new(), "replies are missing");
        let unsettled: Vec<&SpanModel> = self
            .spans
            .iter()
            .filter(|span| !span.is_final && matches!(span.state, ModelState::Closed | ModelState::Abandoned))
            .collect();
        assert!(unsettled.is_empty(), "accounts are missing: {unsettled:?}");
        assert_eq!(self.counts.open, 0);
    }

    /// Runs for this time.
    pub(super) fn run_on(&mut self, ns: u64) {
        let until_ns = self.clock.now_ns() + ns;
        self.run_until(until_ns);
        // Nothing happens up to there.
        self.clock.set(until_ns.max(self.clock.now_ns()));
    }

    fn run_until(&mut self, end_ns: u64) {
        loop {
            let step_ns = self.machine().next_step_ns();
            let mut next_ns = step_ns;
            if !self.is_draining {
                next_ns = next_ns.min(self.call_due_ns).min(self.fault_due_ns);
            }
            if next_ns.max(self.clock.now_ns()) >= end_ns {
                return;
            }
            self.clock.set(next_ns.max(self.clock.now_ns()));
            let mut final_accounts = std::mem::take(&mut self.final_accounts);
            self.machine().run_due(&mut final_accounts);
            for found in final_accounts.drain(..) {
                self.check_final(found);
            }
            self.final_accounts = final_accounts;
            self.check_store_replies();
            self.advance_watchers();
            if !self.is_draining && self.call_due_ns <= self.clock.now_ns() {
                self.make_call();
            }
            if !self.is_draining && self.fault_due_ns <= self.clock.now_ns() {
                self.make_fault();
            }
            self.check_balance();
        }
    }

    fn make_call(&mut self) {
        self.figures.calls += 1;
        (self.make_random_call)(self);
        self.machine().after_call();
        let now_ns = self.clock.now_ns();
        if now_ns > self.burst_ends_ns {
            // A pause, with or without open spans.
            let pause_ns = (100 * MS_NS) << self.random.below(11);
            self.call_due_ns = now_ns + self.random.below(pause_ns);
            self.burst_ends_ns = self.call_due_ns + self.random.below(3 * SECOND_NS);
        } else {
            let most_ns = (20_000_u64) << self.random.below(13);
            self.call_due_ns = now_ns + self.random.below(most_ns);
        }
    }

    pub(super) fn close_connection(&mut self, user: usize) {
        let (connection, now_ns) = (self.connections[user], self.clock.now_ns());
        self.connections[user] += 1;
        self.machine().service.close_connection(connection);
        self.machine().after_call();
        for span in &mut self.spans {
            if span.state == ModelState::Open && span.connection == connection {
                span.state = ModelState::Abandoned;
                span.closed_ns = Some(now_ns.max(span.requested_ns).max(span.opened_ns));
                self.counts.open -= 1;
                self.counts.abandoned += 1;
            }
        }
    }

    fn make_fault(&mut self) {
        let now_ns = self.clock.now_ns();
        let longest_ns = (300 * MS_NS) << self.random.below(8);
        self.fault_due_ns = now_ns + self.random.below(longest_ns);
        let length_ns = (10 * MS_NS) << self.random.below(10);
        let (fault, length_ns) = (self.random.below(16), self.random.below(length_ns));
        let counter = self.random.below(3) as usize;
        let is_second_way = self.random.one_in(2);
        match fault {
            0 | 1 => self.step_wall(),
            2 => {
                let user = self.random.below(3) as usize;
                self.close_connection(user);
            }
            3 => self.machine().faults.late_samplers_until_ns = now_ns + length_ns,
            4 => self.pause_service(length_ns),
            5 => self.machine().faults.disk_stalls_until_ns = now_ns + length_ns,
            6 => self.machine().faults.disk_fails_until_ns = now_ns + length_ns,
            7 if self.kind.has_store => self.restart(is_second_way),
            _ if self.kind.is_clean => {}
            8 => self.suspend(length_ns + 2 * MS_NS),
            9 => lock(&self.counters[counter]).reset(now_ns),
            10 => lock(&self.counters[counter]).stall(now_ns, now_ns + length_ns),
            11 | 12 => lock(&self.counters[counter]).lose_reads(now_ns + length_ns, is_second_way),
            13 if self.random.one_in(4) => {
                lock(&self.counters[counter]).lose_reads(now_ns + 40 * SECOND_NS, false)
            }
            14 => {
                let mut slow = self.slow.lock().expect("no read panics");
                *slow = SlowReads { until_ns: now_ns + length_ns, cost_ns: 30 * MS_NS };
            }
            15 if self.random.one_in(4) => {
                let mut slow = self.slow.lock().expect("no read panics");
                *slow = SlowReads { until_ns: now_ns + 50 * MS_NS, cost_ns: 4 * SECOND_NS };
            }
            _ => {}
        }
    }

    /// The wall clock is set by up to ten years forward or back.
    fn step_wall(&mut self) {
        let most_ns = SECOND_NS << self.random.below(28);
        let by_ns = self.random.below(most_ns).cast_signed();
        let by_ns = if self.random.one_in(2) { -by_ns } else { by_ns };
        self.wall_steps += 1;
        if self.kind.steps_wall {
            self.clock.step_wall(by_ns);
        }
    }

    fn pause_service(&mut self, ns: u64) {
        self.machine().pause_service(ns);
        self.call_due_ns = self.call_due_ns.max(self.clock.now_ns() + ns);
    }

    fn suspend(&mut self, ns: u64) {
        self.clock.suspend(ns);
        let now_ns = self.clock.now_ns();
        for counter in self.counters.clone() {
            match self.random.below(3) {
                0 => lock(&counter).reset(now_ns),
                1 => lock(&counter).jump(self.random.below(1 << 20)),
                _ => {}
            }
        }
    }

    /// The names of the accounts on disk, after the end of the daemon.
    pub(super) fn stored_spans(mut self) -> BTreeSet<(u32, String)> {
        self.machine.take().into_iter().for_each(Machine::stop);
        let directory = self.directory.as_ref().expect("a store").path().join("state");
        machine::stored_spans(&directory, &self.clock)
    }

    /// The daemon ends, in order or not, and starts again on the same store.
    fn restart(&mut self, in_order: bool) {
        self.figures.restarts += 1;
        let Some(machine) = self.machine.take() else { return };
        if in_order {
            machine.stop()
        } else {
            machine.crash()
        }
        self.start_machine();
        self.waiting.clear();
        self.watchers.iter_mut().for_each(Watcher::disconnect);
        for span in &mut self.spans {
            let is_stored = self
                .finals
                .get(&(span.uid, span.name.clone()))
                .is_some_and(|account| account.durable == Some(true));
            if !is_stored || !span.is_final {
                span.state = ModelState::Lost;
                span.closed_ns = Some(span.closed_ns.unwrap_or(self.clock.now_ns()));
                self.finals.remove(&(span.uid, span.name.clone()));
            }
        }
        self.finals.retain(|_, account| account.durable == Some(true));
        self.latest.clear();
        self.spans.clear();
        for connection in &mut self.connections {
            *connection += 1;
        }
    }

    /// Checks an account at the moment at which it is first reported as final.
    fn check_final(&mut self, found: FinalAccount) {
        self.figures.accounts += 1;
        let account = Account::clone(&found.account);
        let name = (account.uid, account.span.clone());
        let at = *self.latest.get(&name).unwrap_or_else(|| panic!("an unknown span: {account:?}"));
        assert!(!self.spans[at].is_final, "final twice: {account:?}");
        self.spans[at].is_final = true;
        assert_eq!(account.durable.is_some(), self.kind.has_store, "{account:?}");
        model::check_consistency(&account, self.spans[at].is_coarse);
        model::check_times(&self.spans[at], &account);
        if !self.kind.has_coarse {
            let before = self.figures.shares.unbounded;
            let span = &self.spans[at];
            model::check_truth(&self.spans, span, &account, &self.counters, &mut self.figures.shares);
            // Before the first updates of the counters nothing is known.
            let has_counted = account.opened_ns > self.machine().started_ns + SECOND_NS;
            assert!(
                !self.kind.is_clean || !has_counted || before == self.figures.shares.unbounded,
                "no energy is unknown here: {account:?}"
            );
        }
        if let Some(reply_to) = found.reply_to {
            let waiting = self.waiting.remove(&(reply_to.connection, reply_to.slot));
            assert_eq!(waiting, Some(Waiting::Close(name.0, name.1.clone())), "{account:?}");
        }
        self.history.push(account.clone());
        self.finals.insert(name, account);
        self.forget_old_spans();
    }

    /// Forgets spans that no truth depends on any more.
    fn forget_old_spans(&mut self) {
        if self.spans.len() < 400 {
            return;
        }
        let is_over = |span: &SpanModel| {
            span.is_final || matches!(span.state, ModelState::Cancelled | ModelState::Lost)
        };
        let needed_ns = self.spans.iter().filter(|span| !is_over(span)).map(|span| span.opened_ns).min();
        let needed_ns = needed_ns.unwrap_or(u64::MAX).min(self.clock.now_ns().saturating_sub(SECOND_NS));
        self.spans
            .retain(|span| !is_over(span) || span.closed_ns.is_none_or(|closed_ns| closed_ns >= needed_ns));
        let names = self.spans.iter().enumerate();
        self.latest = names.map(|(at, span)| ((span.uid, span.name.clone()), at)).collect();
    }

    /// Compares an account of a later answer with the first one.
    pub(super) fn check_unchanged(&self, account: &Account) {
        let Some(first) = self.finals.get(&(account.uid, account.span.clone())) else { return };
        let mut same = account.clone();
        if first.durable == Some(false) {
            same.durable = first.durable;
        }
        assert_eq!(&same, first, "a settled account has changed");
    }

    fn check_store_replies(&mut self) {
        for (reply_to, result) in self.machine().service.take_store_replies() {
            match self.waiting.remove(&(reply_to.connection, reply_to.slot)) {
                Some(Waiting::Query(uid, span)) => self.check_stored(uid, &span, result),
                Some(waiting) => self.check_stored_reply(&waiting, result),
                None => panic!("{reply_to:?}: {result:?}"),
            }
        }
    }

    /// Checks the reply to GetSpan from the store.
    fn check_stored(&self, uid: u32, span: &str, result: MethodResult) {
        let first = self.finals.get(&(uid, span.to_owned()));
        match result {
            Ok(Reply::Account(reply)) => self.check_unchanged(&reply.account),
            Ok(other) => panic!("{other:?}"),
            Err(MethodError::StoreUnavailable { .. }) => assert!(!self.is_disk_well(), "{result:?}"),
            Err(ref error) => assert!(
                first.is_none_or(|account| account.durable != Some(true)) || self.kind.deletes_accounts(),
                "{error:?} for a durable account: {first:?}"
            ),
        }
    }

    /// Checks the balance and the counts of spans.
    fn check_balance(&mut self) {
        let now_ns = self.clock.now_ns();
        let machine = self.machine.as_ref().expect("it runs");
        for (domain, balance) in machine.service.spans.balance().iter().enumerate() {
            assert_eq!(balance.measured_uj, balance.attributed_uj + balance.unattributed_uj, "{balance:?}");
            let parts = [balance.settled_uj, balance.abandoned_uj, balance.not_kept_uj, balance.open_uj];
            let parts_uj: Option<u64> = parts.into_iter().sum();
            assert_eq!(parts_uj, Some(balance.attributed_uj), "{balance:?}");
            assert!(balance.measured_uj >= self.measured_uj[domain], "measured energy falls: {balance:?}");
            self.measured_uj[domain] = balance.measured_uj;
            if balance.measured_uj > 0 && now_ns < START_NS + counter::KEPT_NS {
                let true_uj = lock(&self.counters[domain]).energy_uj(START_NS, now_ns);
                assert!(
                    balance.measured_uj as f64 <= true_uj + 32.0,
                    "more than was used ({true_uj} µJ): {balance:?}"
                );
            }
        }
        assert_eq!(machine.service.spans.counts(), self.counts);
        assert_eq!(
            self.counts.opened,
            self.counts.closed + self.counts.cancelled + self.counts.abandoned + self.counts.open
        );
    }
}
