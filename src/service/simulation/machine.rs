//! The service with its samplers and its store on one thread and one virtual clock.
//!
//! Takes the steps of all threads of a daemon: the samplers', the server's and the store's. Each step comes when its thread
//! would wake, plus a delay that the seed decides.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::counter::{self, SharedCounter, SlowReads};
use super::random::Random;
use wattspan_client::protocol::{MethodError, ProcessPrivileges, ReloadReply};

use crate::clock::Clock;
use crate::config::{Config, ConfigError, Limits};
use crate::sampler::SamplerSettings;
use crate::sampler::stepped::{self as stepped_sampler, SteppedSampler};
use crate::service::durability::FinalAccount;
use crate::service::readings::ReadingCollector;
use crate::service::test_parts::store_settings;
use crate::service::{ConfigLoader, DaemonControl, Service, ServiceBuilder, StartupSettings};
use crate::store::stepped::{self as stepped_store, SteppedStore};
use crate::store::{Filter, StoreQuery, StoreSettings, SyncMode};
use crate::systemd::notify::ServiceManager;

const US_NS: u64 = 1_000;
const MS_NS: u64 = 1_000_000;
const SECOND_NS: u64 = 1_000_000_000;

pub(super) const OPEN_SPANS_PER_USER: usize = 10;
pub(super) const PHASES_PER_SPAN: usize = 4;

/// The settings of a run.
#[derive(Debug, Clone)]
pub(super) struct MachineSettings {
    pub(super) sampler: SamplerSettings,
    pub(super) max_age_s: u64,
}

struct SimulatedSampler {
    stepped: SteppedSampler,
    due_ns: u64,
}

/// What fails at present, up to these instants.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) late_samplers_until_ns: u64,
    pub(super) disk_stalls_until_ns: u64,
    pub(super) disk_fails_until_ns: u64,
}

pub(super) struct Machine {
    pub(super) clock: Clock,
    pub(super) service: Service,
    pub(super) faults: Faults,
    pub(super) started_ns: u64,
    samplers: Vec<SimulatedSampler>,
    store: Option<SteppedStore>,
    store_due_ns: u64,
    poll_due_ns: u64,
    random: Random,
    /// The file of the configuration; `None`: it has an error.
    config_file: Arc<Mutex<Option<Config>>>,
}

/// The configuration of a daemon at its start.
pub(super) fn start_config() -> Config {
    Config {
        limits: Limits {
            open_spans_per_user: OPEN_SPANS_PER_USER,
            phases_per_span: PHASES_PER_SPAN,
            remembered_accounts: 100,
            ..Limits::default()
        },
        idle_w: BTreeMap::from([("package-0".to_owned(), 7.0)]),
        ..Config::default()
    }
}

fn read_config(file: &Mutex<Option<Config>>) -> Result<Config, ConfigError> {
    let config = file.lock().expect("no reader panics").clone();
    config.ok_or_else(|| ConfigError::InvalidValue {
        location: "the file".into(),
        key: "horizon_ms".into(),
        value: "-1".into(),
        remedy: "it must not be negative".into(),
    })
}

impl Machine {
    /// Starts the daemon. The first two counters belong to one source, the others to another. `directory`: of the store.
    pub(super) fn start(
        clock: &Clock,
        counters: &[SharedCounter],
        slow: &Arc<Mutex<SlowReads>>,
        directory: Option<&Path>,
        settings: &MachineSettings,
        mut random: Random,
    ) -> Self {
        let (first, second) = counters.split_at(2);
        let (mut samplers, mut stepped) = (Vec::new(), Vec::new());
        for group in [first, second] {
            let opened = counter::open(group, slow, clock, random.fork());
            let (sampler, mut steps) = stepped_sampler::start(opened, &settings.sampler, clock.clone());
            steps.run_until_asleep();
            samplers.push(sampler);
            stepped.push(SimulatedSampler { due_ns: steps.asleep_until_ns(), stepped: steps });
        }
        let config_file = Arc::new(Mutex::new(Some(start_config())));
        let read_file = Arc::clone(&config_file);
        let load_config: ConfigLoader = Box::new(move || read_config(&read_file));
        let service_settings = StartupSettings::from_config(&start_config()).service;
        let collector = ReadingCollector::new(samplers, Vec::new(), |_| ());
        let mut builder =
            ServiceBuilder::with_collector(collector, Vec::new(), service_settings, clock.clone());
        let control = DaemonControl::new(start_config(), load_config, ServiceManager::default(), |_| ());
        builder = builder.daemon(control, ProcessPrivileges::default());
        let mut store = None;
        if let Some(directory) = directory {
            let max_age = std::time::Duration::from_secs(settings.max_age_s);
            let settings = StoreSettings { sync: SyncMode::Off, max_age, ..store_settings(directory) };
            let (front, steps) = stepped_store::start(settings, clock.clone());
            builder = builder.store(front, |_| ());
            store = Some(steps);
        }
        let mut service = builder.build().expect("the random device opens");
        service.set_span_watchers(true);
        let now_ns = clock.now_ns();
        Self {
            clock: clock.clone(),
            service,
            faults: Faults::default(),
            started_ns: now_ns,
            samplers: stepped,
            store,
            store_due_ns: now_ns,
            poll_due_ns: now_ns,
            random,
            config_file,
        }
    }

    /// The instant of the next step.
    pub(super) fn next_step_ns(&self) -> u64 {
        let store_due_ns = self.store.as_ref().map(|_| self.store_due_ns);
        let due = self.samplers.iter().map(|sampler| sampler.due_ns);
        due.chain(store_due_ns).chain([self.poll_due_ns]).min().unwrap_or(u64::MAX)
    }

    /// Takes the steps that are due; appends the final accounts.
    pub(super) fn run_due(&mut self, final_accounts: &mut Vec<FinalAccount>) {
        for at in 0..self.samplers.len() {
            if self.samplers[at].due_ns <= self.clock.now_ns() {
                self.run_sampler(at);
            }
        }
        if self.store.is_some() && self.store_due_ns <= self.clock.now_ns() {
            self.run_store();
        }
        if self.poll_due_ns <= self.clock.now_ns() {
            self.poll_due_ns = u64::MAX;
            self.service.poll(final_accounts);
            self.after_call();
        }
    }

    fn run_sampler(&mut self, at: usize) {
        let is_late = self.clock.now_ns() < self.faults.late_samplers_until_ns;
        let lateness_ns = match is_late {
            true => self.random.below(80 * MS_NS),
            false if self.random.one_in(50) => self.random.below(5 * MS_NS),
            false => self.random.below(100 * US_NS),
        };
        let sampler = &mut self.samplers[at];
        sampler.stepped.run_until_asleep();
        sampler.due_ns = sampler.stepped.asleep_until_ns().max(self.clock.now_ns()) + lateness_ns;
    }

    fn run_store(&mut self) {
        let (now_ns, Some(store)) = (self.clock.now_ns(), &mut self.store) else { return };
        if now_ns < self.faults.disk_stalls_until_ns {
            self.store_due_ns = self.faults.disk_stalls_until_ns;
            return;
        }
        if now_ns < self.faults.disk_fails_until_ns {
            store.run_with_failing_disk();
        } else {
            store.run();
        }
        self.store_due_ns = now_ns + SECOND_NS;
        if self.service.has_store_events() {
            self.poll_due_ns = self.poll_due_ns.min(now_ns + self.random.below(200 * US_NS));
        }
    }

    /// After each use of the service: the threads that it has woken, and its next poll.
    pub(super) fn after_call(&mut self) {
        let now_ns = self.clock.now_ns();
        for sampler in &mut self.samplers {
            if sampler.stepped.is_notified() {
                sampler.due_ns = sampler.due_ns.min(now_ns + self.random.below(60 * US_NS));
            }
        }
        self.store_due_ns = self.store_due_ns.min(now_ns + self.random.between(MS_NS, 12 * MS_NS));
        let poll_ns = self.service.next_poll_ns(now_ns).max(now_ns + US_NS);
        self.poll_due_ns = self.poll_due_ns.min(poll_ns + self.random.below(50 * US_NS));
    }

    /// Replaces the file of the configuration, and reads it again.
    pub(super) fn reload(&mut self, config: Option<Config>) -> Result<ReloadReply, MethodError> {
        *self.config_file.lock().expect("no reader panics") = config;
        self.service.reload()
    }

    /// The server's thread does not run for this time.
    pub(super) fn pause_service(&mut self, ns: u64) {
        self.poll_due_ns = self.clock.now_ns() + ns;
    }

    /// Ends as a crash does. What is not on disk is lost.
    pub(super) fn crash(self) {
        drop(self.service);
        drop(self.store);
    }

    /// Ends in order.
    pub(super) fn stop(mut self) {
        self.service.shut_down();
        drop(self.service);
        if let Some(store) = self.store {
            store.end();
        }
    }
}

/// The owners and names of all accounts in a store that is not open.
pub(super) fn stored_spans(directory: &Path, clock: &Clock) -> BTreeSet<(u32, String)> {
    let settings = StoreSettings { sync: SyncMode::Off, ..store_settings(directory) };
    let settings = StoreSettings { max_age: std::time::Duration::from_secs(86_400 * 365), ..settings };
    let (mut store, mut steps) = stepped_store::start(settings, clock.clone());
    let (mut names, mut before) = (BTreeSet::new(), None);
    loop {
        let query = StoreQuery::List { uid: None, filter: Filter::default(), limit: 1000, before };
        assert!(store.submit_query(1, query));
        steps.run();
        let found = store.take_query_results().remove(0).1.expect("the store is whole");
        names.extend(found.accounts.into_iter().map(|account| (account.uid, account.span)));
        before = found.before;
        if before.is_none() {
            return names;
        }
    }
}
