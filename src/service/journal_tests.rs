//! What a crash leaves of open spans: a service with a store and a clock that the test sets ends without a shutdown.

use std::collections::BTreeMap;
use std::time::Duration;

use wattspan_client::account::{Account, SpanState};
use wattspan_client::protocol::{Access, CloseSpan, OpenSpan, SetWeight};

use super::access::Peer;
use super::caller::{AccountOutcome, Caller, ReplyTo};
use super::test_parts::{add_packages, no_readings, service_settings, store_settings, wait_until_open};
use super::{Service, ServiceBuilder};
use crate::clock::Clock;
use crate::config::Limits;
use crate::domain::EnergyReading;
use crate::store::{Store, StoreQuery};

const MS_NS: u64 = 1_000_000;
const START_NS: u64 = 5_000_000_000;
/// Far more than are written again one by one within a few seconds.
const SPANS: usize = 3000;
/// Of each of the two domains.
const POWER_W: u64 = 90;

struct Machine {
    service: Service,
    clock: Clock,
    at_ms: u64,
    directory: tempfile::TempDir,
}

fn store(directory: &std::path::Path) -> Store {
    Store::start(store_settings(&directory.join("state")), |_| ()).unwrap()
}

fn caller() -> Caller {
    let peer = Peer { uid: 1000, access: Access::Telemetry, unlimited: true };
    Caller { peer, reply_to: ReplyTo { connection: 1, slot: 0 }, process: None }
}

impl Machine {
    fn new() -> Self {
        Self::in_directory(tempfile::tempdir().unwrap())
    }

    fn in_directory(directory: tempfile::TempDir) -> Self {
        let clock = Clock::manual(START_NS);
        let settings = service_settings(Limits { span_memory_bytes: 1 << 30, ..Limits::default() });
        let builder = ServiceBuilder::with_collector(no_readings(), Vec::new(), settings, clock.clone());
        let mut service = builder.store(store(directory.path()), |_| ()).build().unwrap();
        add_packages(service.spans.domain_inputs(), &["package-0", "package-1"]);
        Self { service, clock, at_ms: START_NS / MS_NS, directory }
    }

    /// Runs for this time. The counters change every 5 ms and are read then.
    fn run(&mut self, ms: u64) {
        for at_ms in (self.at_ms..self.at_ms + ms).step_by(5) {
            let at_ns = at_ms * MS_NS;
            for domain in 0..2 {
                let energy_uj = at_ms * POWER_W * 1000;
                let reading = EnergyReading { valid: true, energy_uj, ..EnergyReading::default() };
                self.service.spans.domain_inputs().add_reading(domain, at_ns, at_ns + 2000, &reading);
            }
            self.clock.set(at_ns + 3000);
            self.service.poll(&mut Vec::new());
        }
        self.at_ms += ms;
    }

    fn open(&mut self, span: usize) {
        let call = OpenSpan { span: Some(span.to_string()), ..OpenSpan::default() };
        self.service.open_span(&caller(), call).unwrap();
    }

    fn set_weight(&mut self, span: usize, weight: f64) {
        let call = SetWeight { span: span.to_string(), weight, at_ns: None };
        self.service.set_weight(&caller().peer, &call).unwrap();
    }

    fn account(&mut self, span: usize) -> Account {
        match self.service.get_span(&caller(), &span.to_string(), false).unwrap() {
            AccountOutcome::Ready(account) => *account,
            AccountOutcome::Deferred => panic!("of {span}"),
        }
    }

    /// Ends the service as a crash does, and returns the accounts that the next one finds.
    fn crash(self) -> BTreeMap<String, Account> {
        let Self { service, directory, .. } = self;
        drop(service);
        let mut next = store(directory.path());
        wait_until_open(&next);
        let (mut accounts, mut before) = (BTreeMap::new(), None);
        loop {
            let query = StoreQuery::List { uid: None, filter: Default::default(), limit: SPANS, before };
            assert!(next.submit_query(1, query));
            let mut results = Vec::new();
            while results.is_empty() {
                std::thread::sleep(Duration::from_millis(1));
                results = next.take_query_results();
            }
            let found = results.remove(0).1.unwrap();
            accounts.extend(found.accounts.into_iter().map(|account| (account.span.clone(), account)));
            before = found.before;
            if before.is_none() {
                return accounts;
            }
        }
    }
}

/// Compares the accounts after the crash with those so far at its instant: what is lost is the energy of at most `lost_ns`
/// at 2 × 90 W, and none is added.
fn check(before: &[Account], after: &BTreeMap<String, Account>, lost_ns: u64) {
    for so_far in before {
        let account = &after[&so_far.span];
        let span = &so_far.span;
        assert_eq!(account.state, SpanState::Interrupted, "{span}");
        let covered_ns =
            |account: &Account, end_ns: u64| end_ns - account.opened_ns - account.domains[0].unknown_ns;
        let until_ns = covered_ns(so_far, so_far.closed_ns.unwrap());
        let recovered_ns = covered_ns(account, account.closed_ns.unwrap());
        assert!(recovered_ns <= until_ns && until_ns - recovered_ns <= lost_ns, "{span}: {account:?}");
        for (recovered, so_far) in account.domains.iter().zip(&so_far.domains) {
            let (recovered_uj, uj) = (recovered.share_uj.unwrap(), so_far.share_uj.unwrap());
            assert!(recovered_uj <= uj + 1, "{span}: {recovered_uj} of {uj}");
            // No span has more than a hundredth of the weight.
            assert!(
                uj - recovered_uj.min(uj) <= lost_ns / 1000 * POWER_W / 100,
                "{span}: {recovered_uj} of {uj}"
            );
            let window_uj = so_far.window_uj.unwrap() - recovered.window_uj.unwrap();
            assert!(window_uj <= lost_ns / 1000 * POWER_W + 2, "{span}: {window_uj}");
        }
        assert_eq!(account.share_uj, account.domains.iter().map(|share| share.share_uj).sum::<Option<u64>>());
    }
}

/// The accounts so far, as if the spans ended now.
fn accounts_now(machine: &mut Machine, spans: impl Iterator<Item = usize>) -> Vec<Account> {
    let now_ns = machine.service.now_ns();
    spans.map(|span| Account { closed_ns: Some(now_ns), ..machine.account(span) }).collect()
}

#[test]
fn after_a_crash_the_figures_of_thousands_of_open_spans_are_a_second_old_at_most() {
    let mut machine = Machine::new();
    machine.run(2000);
    (0..SPANS).for_each(|span| machine.open(span));
    machine.run(9_700);
    let before = accounts_now(&mut machine, 0..SPANS);
    check(&before, &machine.crash(), 1_010 * MS_NS);
}

#[test]
fn after_a_crash_a_change_of_weight_and_a_close_count_up_to_the_record_before_them() {
    let mut machine = Machine::new();
    machine.run(2000);
    (0..SPANS).for_each(|span| machine.open(span));
    machine.run(4000);
    (0..SPANS / 2).for_each(|span| machine.set_weight(span, 9.0));
    machine.run(4300);
    // The weights that fall would make extended rows too large, those that rise too small.
    (0..SPANS)
        .filter(|span| span % 3 == 0)
        .for_each(|span| machine.set_weight(span, 1.0 + (span % 2) as f64));
    machine.run(800);
    let closed = CloseSpan { span: "1".into(), ..CloseSpan::default() };
    machine.service.close_span(&caller(), closed, false).unwrap();
    machine.clock.set(machine.service.now_ns() + 5 * MS_NS);
    machine.service.poll(&mut Vec::new());
    let before = accounts_now(&mut machine, (0..SPANS).filter(|span| *span != 1));
    let after = machine.crash();
    check(&before, &after, 1_230 * MS_NS);
    assert!(after.contains_key("1"));
}

#[test]
fn spans_that_opened_while_the_store_failed_are_in_the_journal_after_it() {
    let directory = tempfile::tempdir().unwrap();
    // A file in place of the directory.
    std::fs::write(directory.path().join("state"), "").unwrap();
    let mut machine = Machine::in_directory(directory);
    machine.run(2000);
    (0..200).for_each(|span| machine.open(span));
    let is_durable =
        |machine: &mut Machine| machine.service.get_info(&caller().peer).keeping.unwrap().durable;
    machine.run(3000);
    assert!(!is_durable(&mut machine));
    std::fs::remove_file(machine.directory.path().join("state")).unwrap();
    let give_up = std::time::Instant::now() + Duration::from_secs(20);
    while !is_durable(&mut machine) {
        assert!(std::time::Instant::now() < give_up, "the store stays broken");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Less than a round of the refresh, which takes 80 a second.
    machine.run(1300);
    let before = accounts_now(&mut machine, 0..200);
    assert_eq!(before.len(), 200);
    assert_eq!(machine.crash().len(), 200);
}
