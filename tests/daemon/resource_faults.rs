//! A daemon without memory, threads or descriptors: it goes on or ends cleanly, and loses no answered account.
//!
//! A preloaded library fails chosen calls (`tests/fake/faults`); limits do the rest. Rust ends a process whose allocation
//! fails (SIGABRT), and the service manager starts the next one: `WATTSPAN_FAULTS` and `WATTSPAN_SEED` choose how many
//! failures are tried and which.

use std::collections::{BTreeMap, HashMap};
use std::net::Shutdown;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::{Value, json};

use crate::fault_library::{Fault, FaultLibrary};
use crate::ground_truth::TestRng;
use crate::support::{
    STEADY_MACHINE, TestClient, TestDaemon, encode_call, optimised_daemon, sleep_ms, wait_until,
};
use crate::test_bus::{TestBus, block_on};

/// Exit statuses of sysexits.h.
const EX_SOFTWARE: i32 = 70;
const EX_OSERR: i32 = 71;
const EX_NOPERM: i32 = 77;
const SIGABRT: i32 = 6;

/// The final accounts that clients received, by span.
type Answers = HashMap<String, Value>;

fn fault_library() -> FaultLibrary {
    match optimised_daemon() {
        Some(program) => FaultLibrary::new(Path::new(&program)),
        None => FaultLibrary::new(Path::new(env!("CARGO_BIN_EXE_wattspand"))),
    }
}

fn rounds(default: u64) -> u64 {
    std::env::var("WATTSPAN_FAULTS").map_or(default, |rounds| rounds.parse().unwrap())
}

/// Prints the seed, so that a failed test can be repeated.
fn random() -> TestRng {
    let seed = std::env::var("WATTSPAN_SEED").map_or(0x5eed, |seed| seed.parse().unwrap());
    eprintln!("WATTSPAN_SEED={seed}");
    TestRng(seed)
}

fn start(setup: &str, configuration: &str) -> TestDaemon {
    TestDaemon::try_start(STEADY_MACHINE, configuration, setup)
        .unwrap_or_else(|(daemon, status)| panic!("the daemon ended with {status}: {}", daemon.log()))
}

/// Opens and closes spans, lists and sums them until `stop` is set or the daemon ends; returns every final account
/// received. Lists and sums may be refused.
fn run_load(mut client: TestClient, prefix: &str, stop: &AtomicBool, answered: &AtomicUsize) -> Answers {
    let mut answers = Answers::new();
    for batch in 0.. {
        let mut calls = Vec::new();
        for at in 0..4 {
            let span = format!("{prefix}-{batch}-{at}");
            let filling = json!({ "filling": "x".repeat(300 * at) });
            let opening = json!({ "span": span, "name": prefix, "attributes": filling });
            calls.extend(encode_call("OpenSpan", opening, &["oneway"]));
            calls.extend(encode_call("CloseSpan", json!({ "span": span, "wait_settled": true }), &[]));
        }
        calls.extend(encode_call("ListSpans", json!({ "name": prefix, "limit": 4 }), &[]));
        calls.extend(encode_call("SumSpans", json!({ "name": prefix }), &[]));
        if stop.load(Ordering::Relaxed) || !client.send_raw(&calls) {
            return answers;
        }
        for _ in 0..4 {
            let Some(mut answer) = client.receive() else { return answers };
            let account = answer["parameters"]["account"].take();
            assert_eq!(account["state"], "settled", "{answer}");
            answers.insert(account["span"].as_str().unwrap().to_owned(), account);
            answered.fetch_add(1, Ordering::Relaxed);
        }
        if client.receive().is_none() || client.receive().is_none() {
            return answers;
        }
    }
    answers
}

/// Receives accounts until the connection ends; each comes once.
fn watch(mut client: TestClient) {
    client.send("WatchSpans", json!({ "after": 0 }), &["more"]);
    let mut seen = HashMap::new();
    while let Some(mut answer) = client.receive() {
        let account = answer["parameters"]["account"].take();
        if let Some(span) = account["span"].as_str() {
            assert_eq!(seen.insert(span.to_owned(), ()), None, "{span} came twice");
        } else {
            return;
        }
    }
}

/// Runs two clients and a watcher until `trouble` returns.
fn under_load(daemon: &mut TestDaemon, prefix: &str, trouble: impl FnOnce(&mut TestDaemon)) -> Answers {
    /// Stops the clients, also where an assertion fails.
    struct Stop<'a>(&'a AtomicBool, UnixStream);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
            // Fails if the daemon has ended.
            let _ = self.1.shutdown(Shutdown::Both);
        }
    }
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let clients: Vec<TestClient> = (0..2).map(|_| daemon.client()).collect();
    let watched = UnixStream::connect(daemon.socket()).unwrap();
    let watching = watched.try_clone().unwrap();
    std::thread::scope(|scope| {
        let (stop, answered) = (&stop, &answered);
        let stopping = Stop(stop, watched);
        let watcher = scope.spawn(move || watch(TestClient::from_stream(watching)));
        let run =
            |(at, client)| scope.spawn(move || run_load(client, &format!("{prefix}-{at}"), stop, answered));
        let threads: Vec<_> = clients.into_iter().enumerate().map(run).collect();
        wait_until("some accounts are answered", || answered.load(Ordering::Relaxed) >= 8);
        trouble(daemon);
        drop(stopping);
        let answers = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        watcher.join().unwrap();
        answers
    })
}

/// Every account in the store, by span. Each is there once, and none is reported as lost or damaged.
fn stored(daemon: &TestDaemon) -> BTreeMap<String, Value> {
    let mut client = daemon.client();
    let (mut found, mut after) = (BTreeMap::new(), json!(0));
    loop {
        let mut page = Value::Null;
        // The store may notice a failure of its last write only now.
        wait_until("the store can be read", || {
            page = client.call_raw("ListSpans", json!({ "after": after, "limit": 4096 }));
            page["error"] != "org.wattspan.Meter.StoreUnavailable"
        });
        assert!(page.get("error").is_none(), "{page}");
        let mut page = page["parameters"].take();
        assert!(page.get("gaps").is_none_or(|gaps| gaps == &json!([])), "{page}");
        for account in page["accounts"].as_array_mut().unwrap() {
            account.as_object_mut().unwrap().remove("number");
            let span = account["span"].as_str().unwrap().to_owned();
            assert!(found.insert(span, account.take()).is_none(), "an account is there twice");
        }
        if page["at_end"] == true {
            return found;
        }
        after = page["after"].take();
    }
}

/// The answered accounts are in the store of a daemon that was started after the trouble; those that were not durable when
/// they were answered only with `also_pending`.
fn assert_kept(daemon: &TestDaemon, answers: &Answers, also_pending: bool, what: &str) {
    let found = stored(daemon);
    for (span, answer) in answers {
        if answer["durable"] == true || also_pending {
            let mut expected = answer.clone();
            expected["durable"] = json!(true);
            assert_eq!(found.get(span), Some(&expected), "{what}: {span}\n{}", daemon.log());
        }
    }
    let moved_aside = std::fs::read_dir(daemon.state()).unwrap().flatten();
    let moved_aside: Vec<_> =
        moved_aside.filter(|file| file.file_name().to_string_lossy().contains("damaged")).collect();
    assert!(moved_aside.is_empty(), "{what}: {moved_aside:?}\n{}", daemon.log());
}

/// A daemon without memory ends by SIGABRT; any other error is one that it reports in its log.
fn assert_clean_end(status: ExitStatus, log: &str, what: &str) {
    let is_reported = status.code() == Some(EX_SOFTWARE) && !log.is_empty();
    assert!(status.signal() == Some(SIGABRT) || is_reported, "{what}: {status}\n{log}");
    assert!(!log.contains("panicked"), "{what}: {log}");
}

fn wait_for_durable(daemon: &TestDaemon) {
    wait_until("the store can be written", || {
        daemon.client().call("GetInfo", json!({}))["keeping"]["durable"] == true
    });
}

/// Waits until so many calls of this kind failed or the daemon ended, but no longer than a slow machine needs to make many
/// calls.
fn wait_for_failure(daemon: &mut TestDaemon, faults: &FaultLibrary, fault: Fault, failures: u64) {
    wait_for_failure_within(Duration::from_secs(15), daemon, faults, fault, failures);
}

fn wait_for_failure_within(
    timeout: Duration,
    daemon: &mut TestDaemon,
    faults: &FaultLibrary,
    fault: Fault,
    failures: u64,
) {
    let deadline = Instant::now() + timeout;
    while daemon.try_wait().is_none() && faults.calls(fault).1 < failures && Instant::now() < deadline {
        sleep_ms(1);
    }
}

/// Fails one allocation in each round. Returns how many daemons ended of it.
fn fail_allocations(rounds: u64) -> u64 {
    let (faults, mut random) = (fault_library(), random());
    let mut daemon = start(&faults.setup(), "");
    let (mut ended, mut answers) = (0, Answers::new());
    for round in 0..rounds {
        // Small allocations are many, large ones are few.
        let (min_bytes, passes) = [(0, 4_000), (0, 400), (256, 200), (4096, 10)][round as usize % 4];
        let pass = random.range(0, passes);
        let what = format!("round {round}: allocation {pass} of at least {min_bytes} bytes fails");
        answers.extend(under_load(&mut daemon, &format!("r{round}"), |daemon| {
            faults.fail(Fault::Memory, pass, 1, min_bytes);
            wait_for_failure(daemon, &faults, Fault::Memory, 1);
            // It ends now, unless the C library or Rust code handled the failure.
            for _ in 0..200 {
                if daemon.try_wait().is_some() || faults.calls(Fault::Memory).1 == 0 {
                    break;
                }
                sleep_ms(5);
            }
        }));
        faults.clear(Fault::Memory);
        match daemon.try_wait() {
            Some(status) => {
                assert_clean_end(status, &daemon.log(), &what);
                ended += 1;
            }
            None => daemon.kill(),
        }
        daemon.restart();
        assert_kept(&daemon, &answers, false, &what);
    }
    ended
}

#[test]
fn after_a_failed_allocation_the_next_start_has_every_answered_account() {
    let rounds = rounds(12);
    let ended = fail_allocations(rounds);
    assert!(ended * 2 > rounds, "only {ended} of {rounds} daemons were hit");
}

#[test]
#[ignore = "minutes: each allocation of a start, and a thousand under load"]
fn no_failed_allocation_of_a_start_or_under_load_loses_an_account() {
    fail_allocations(rounds(1000));
    fail_allocations_of_starts(rounds(1000), 11);
}

/// Fails each `step`th of the first allocations of a start.
fn fail_allocations_of_starts(rounds: u64, step: u64) {
    let faults = fault_library();
    let mut daemon = start(&faults.setup(), "");
    let answers = under_load(&mut daemon, "before", |_| ());
    daemon.kill();
    let (mut failed, mut ended) = (0, 0);
    for round in 0..rounds {
        faults.fail(Fault::Memory, round * step, 1, 0);
        match daemon.try_restart() {
            Err(status) => {
                ended += 1;
                assert_clean_end(status, &daemon.log(), &format!("start {round}"));
            }
            Ok(()) => daemon.kill(),
        }
        failed += faults.calls(Fault::Memory).1;
    }
    assert!(failed > 0 && ended > 0, "of {rounds} starts {ended} ended; {failed} allocations failed");
    faults.clear(Fault::Memory);
    daemon.restart();
    assert_kept(&daemon, &answers, false, "after the starts");
}

#[test]
fn a_start_whose_allocation_fails_ends_and_the_next_one_has_every_account() {
    // A start makes some 2000 allocations.
    fail_allocations_of_starts(rounds(12), 181);
}

/// Fails allocations of SQLite under load and at starts. The daemon goes on, and stores later what it could not store then.
fn fail_sqlite(rounds: u64) {
    let (faults, mut random) = (fault_library(), random());
    let mut daemon = start(&faults.setup(), "");
    wait_for_durable(&daemon);
    let (mut answers, mut pending, mut failures) = (Answers::new(), 0, 0);
    for round in 0..rounds {
        let fail = [1, 3, 100, u64::MAX][round as usize % 4];
        let pass = random.range(0, 1500);
        let what = format!("round {round}: {fail} allocations of SQLite fail after {pass}");
        let given = under_load(&mut daemon, &format!("r{round}"), |daemon| {
            faults.fail(Fault::Sqlite, pass, fail, 0);
            wait_for_failure(daemon, &faults, Fault::Sqlite, fail.min(20));
            failures += faults.calls(Fault::Sqlite).1.min(1);
            faults.clear(Fault::Sqlite);
            wait_for_durable(daemon);
        });
        pending += given.values().filter(|answer| answer["durable"] == false).count();
        answers.extend(given);
        assert_eq!(daemon.try_wait(), None, "{what}: {}", daemon.log());
        assert_kept(&daemon, &answers, true, &what);
    }
    assert!(failures * 2 > rounds && pending > 0, "{failures} of {rounds} rounds, {pending} accounts waited");
    daemon.kill();
    let mut failures_at_start = 0;
    for round in 0..rounds {
        // All allocations from one on, up to the end of the first attempts to open the database.
        faults.fail(Fault::Sqlite, random.range(0, 600), [1, u64::MAX][round as usize % 2], 0);
        daemon.restart();
        // A start may make fewer allocations.
        wait_for_failure_within(Duration::from_secs(3), &mut daemon, &faults, Fault::Sqlite, 1);
        failures_at_start += faults.calls(Fault::Sqlite).1;
        faults.clear(Fault::Sqlite);
        wait_for_durable(&daemon);
        assert_kept(&daemon, &answers, true, &format!("start {round}"));
        daemon.kill();
    }
    assert!(failures_at_start > 0);
}

#[test]
fn while_sqlite_has_no_memory_spans_are_answered_and_all_accounts_are_stored_afterwards() {
    fail_sqlite(rounds(5));
}

#[test]
#[ignore = "minutes: a thousand failures of SQLite's allocations"]
fn no_failed_allocation_of_sqlite_ends_the_daemon_or_loses_an_account() {
    fail_sqlite(rounds(500));
}

/// A start that fails under a service manager: it says so and waits, also over `signal`; SIGTERM stops it.
fn check_wait(what: &str, setup: &str, fail: impl FnOnce(), clear: impl FnOnce(), signal: Option<Signal>) {
    let dir = tempfile::tempdir().unwrap();
    let (notify, pid_file) = (dir.path().join("notify"), dir.path().join("pid"));
    let _manager = UnixDatagram::bind(&notify).unwrap();
    let (notify, pid) = (notify.display(), pid_file.display());
    let setup = format!("export NOTIFY_SOCKET='{notify}'\necho $$ >'{pid}'\n{setup}");
    let mut daemon = start(&setup, "");
    daemon.kill();
    fail();
    let log = daemon.socket().parent().unwrap().with_file_name("log");
    let stopping = std::thread::spawn(move || {
        wait_until("it waits", || std::fs::read_to_string(&log).unwrap().contains("waits 12 s"));
        let text = std::fs::read_to_string(pid_file).unwrap();
        let pid = Pid::from_raw(text.trim().parse().unwrap()).unwrap();
        signal.into_iter().for_each(|signal| kill_process(pid, signal).unwrap());
        std::thread::sleep(Duration::from_secs(1));
        kill_process(pid, Signal::TERM).expect("it waits still");
    });
    let status = daemon.try_restart().expect_err("it cannot start");
    stopping.join().unwrap();
    clear();
    // After the whole wait it would be that of a failed start.
    assert_eq!(status.code(), Some(0), "{what}: {}", daemon.log());
}

#[test]
fn a_start_without_threads_under_a_service_manager_waits_until_it_is_stopped() {
    let faults = fault_library();
    let fail = || faults.fail(Fault::Thread, 0, u64::MAX, 0);
    check_wait("threads", &faults.setup(), fail, || faults.clear(Fault::Thread), Some(Signal::HUP));
}

/// So few that the second stream for signals fails, and the connection to the service manager would.
#[test]
fn a_start_without_descriptors_under_a_service_manager_waits_until_it_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let few = dir.path().join("few");
    let setup = format!("if [ -e '{}' ]; then ulimit -n 7; fi", few.display());
    check_wait("descriptors", &setup, || std::fs::write(&few, "").unwrap(), || (), None);
}

/// A start without one of its threads, and without any from one on: it says so and ends, or serves.
#[test]
fn a_start_without_a_thread_ends_with_a_message_or_serves() {
    let faults = fault_library();
    let mut daemon = start(&faults.setup(), "bus = \"unix:path=/nonexistent/bus\"\n");
    let mut answers = under_load(&mut daemon, "before", |_| ());
    daemon.kill();
    let (mut ended, mut served) = (0, 0);
    for nth in 0..8 {
        for count in [1, u64::MAX] {
            let what = format!("{count} threads fail after {nth}");
            faults.fail(Fault::Thread, nth, count, 0);
            let log_before = daemon.log().len();
            match daemon.try_restart() {
                Err(status) => {
                    let log = daemon.log().split_off(log_before);
                    assert_eq!(status.code(), Some(EX_OSERR), "{what}: {log}");
                    let last = log.lines().last().unwrap_or_default();
                    assert!(last.contains("cannot start") && last.contains("os error 11"), "{what}: {log}");
                    assert!(!daemon.socket().exists(), "{what}: the socket is left");
                    ended += 1;
                }
                Ok(()) => {
                    let mut client = daemon.client();
                    let span = format!("while {what}");
                    client.open(&span);
                    let account = client.close_and_settle(&span);
                    answers.insert(span, account);
                    daemon.kill();
                    served += 1;
                }
            }
            faults.clear(Fault::Thread);
        }
    }
    assert!(ended >= 4 && served >= 4, "{ended} starts ended, {served} served");
    daemon.restart();
    wait_for_durable(&daemon);
    assert_kept(&daemon, &answers, false, "after the starts");
}

#[test]
fn a_running_daemon_without_threads_refuses_sums_and_opens_its_store_again_later() {
    let faults = fault_library();
    let mut daemon = start(&faults.setup(), "");
    wait_for_durable(&daemon);
    let mut refusal = Value::Null;
    let answers = under_load(&mut daemon, "s", |daemon| {
        faults.fail(Fault::Thread, 0, u64::MAX, 0);
        let mut client = daemon.client();
        wait_until("a sum is refused", || {
            refusal = client.call_raw("SumSpans", json!({}));
            refusal["error"] == "org.wattspan.Meter.StoreUnavailable"
        });
        // The store closes its files and needs its thread for syncs anew.
        wait_until("the store closes", || {
            // Again and again, because a query may take the failure instead of the writer.
            faults.fail(Fault::Sqlite, 0, 1, 0);
            client.call("GetInfo", json!({}))["keeping"]["durable"] == false
        });
        // The file can be opened from now on, and no thread can be created.
        faults.clear(Fault::Sqlite);
        wait_until("the thread for syncs fails", || {
            let keeping = client.call("GetInfo", json!({}))["keeping"].take();
            keeping["reason"].as_str().is_some_and(|reason| reason.contains("temporarily unavailable"))
        });
        client.open("during");
        client.close_and_settle("during");
        faults.clear(Fault::Thread);
        wait_for_durable(daemon);
    });
    assert!(refusal["parameters"]["reason"].as_str().unwrap().contains("no thread"), "{refusal}");
    assert_eq!(daemon.try_wait(), None, "{}", daemon.log());
    assert_kept(&daemon, &answers, true, "without threads");
    daemon.kill();
    daemon.restart();
    assert_kept(&daemon, &answers, true, "after a kill");
    daemon.client().call("SumSpans", json!({}));
}

/// The name of a limit in /proc/PID/limits.
fn row_name(resource: Resource) -> &'static str {
    match resource {
        Resource::Nofile => "Max open files",
        Resource::As => "Max address space",
        other => panic!("{other:?}"),
    }
}

/// Sets the soft limit of a running daemon.
fn limit(daemon: &TestDaemon, resource: Resource, current: Option<u64>) {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid().as_raw_nonzero())).unwrap();
    let row = limits.lines().find_map(|line| line.strip_prefix(row_name(resource))).unwrap();
    let maximum = row.split_whitespace().nth(1).unwrap().parse().ok();
    prlimit(Some(daemon.pid()), resource, Rlimit { current, maximum }).unwrap();
}

fn open_descriptors(daemon: &TestDaemon) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid().as_raw_nonzero())).unwrap().count() as u64
}

/// Lowers the limit of descriptors to what is open and a few more, under load, while the store opens its files again and
/// the bus restarts.
fn exhaust_descriptors(spares: impl Iterator<Item = u64>) {
    let faults = fault_library();
    let Some(mut bus) = TestBus::start() else { return };
    let mut daemon = start(&faults.setup(), &bus.config_line());
    block_on(async { bus.client().await.wait_for_daemon().await });
    wait_for_durable(&daemon);
    let (mut answers, mut failures) = (Answers::new(), 0);
    for (round, spare) in spares.enumerate() {
        let what = format!("{spare} descriptors are left");
        answers.extend(under_load(&mut daemon, &format!("r{round}"), |daemon| {
            let mut held = daemon.client();
            held.call("GetInfo", json!({}));
            // Closed before it where the reserve descriptor needs another one.
            let _newest = connect(daemon);
            limit(daemon, Resource::Nofile, Some(open_descriptors(daemon) + spare));
            let crowd: Vec<UnixStream> =
                (0..30).filter_map(|_| UnixStream::connect(daemon.socket()).ok()).collect();
            bus.restart();
            faults.fail(Fault::Sqlite, 0, 1, 0);
            wait_for_failure(daemon, &faults, Fault::Sqlite, 1);
            failures += faults.calls(Fault::Sqlite).1;
            for at in 0..3 {
                let span = format!("held-{round}-{at}");
                held.open(&span);
                held.close_and_settle(&span);
                for (method, parameters) in
                    [("SumSpans", json!({})), ("ListSpans", json!({ "name": "none" }))]
                {
                    held.call_raw(method, parameters);
                }
            }
            drop(crowd);
            limit(daemon, Resource::Nofile, Some(4096));
            faults.clear(Fault::Sqlite);
            wait_until("connections are accepted again", || {
                let mut client = daemon.client();
                client.send_raw(&encode_call("GetInfo", json!({}), &[]));
                client.receive().is_some_and(|reply| reply["parameters"]["keeping"]["durable"] == true)
            });
        }));
        assert_eq!(daemon.try_wait(), None, "{what}: {}", daemon.log());
        assert_kept(&daemon, &answers, true, &what);
        block_on(async { bus.client().await.wait_for_daemon().await });
    }
    assert!(failures > 0, "the store was never closed");
    daemon.kill();
    daemon.restart();
    assert_kept(&daemon, &answers, true, "after a kill");
}

#[test]
fn without_descriptors_spans_are_answered_and_store_and_bus_come_back() {
    exhaust_descriptors([0, 1, 3, 7].into_iter());
}

#[test]
#[ignore = "minutes: each number of descriptors up to 64"]
fn with_any_number_of_descriptors_no_answered_account_is_lost() {
    exhaust_descriptors(0..64);
}

#[test]
fn a_start_with_few_descriptors_ends_with_a_message_or_serves() {
    let (mut ended, mut served) = (0, 0);
    // Between them are numbers with which it may serve or turn every client away, as the threads come to open their files.
    for descriptors in [4, 8, 12, 16, 64, 128] {
        let setup = format!("ulimit -n {descriptors}");
        match TestDaemon::try_start(STEADY_MACHINE, "bus = \"unix:path=/nonexistent/bus\"\n", &setup) {
            Err((daemon, status)) => {
                let log = daemon.log();
                // With the tests, tokio has its signal driver, which panics without descriptors; the packages build the daemon
                // without it.
                let is_signal_driver =
                    status.code() == Some(101) && log.contains("failed to create UnixStream");
                // 127: the loader opens no library. A status after which the service manager tries no more is none of them.
                let statuses = [EX_SOFTWARE, EX_OSERR, EX_NOPERM, 127].map(Some);
                assert!(
                    statuses.contains(&status.code()) || is_signal_driver,
                    "{descriptors}: {status} {log}"
                );
                let is_explained = log.contains("os error 24") || status.code() == Some(127);
                assert!(is_explained || is_signal_driver, "{descriptors}: {log}");
                assert!(!log.contains("panicked") || is_signal_driver, "{descriptors}: {log}");
                ended += 1;
            }
            Ok(daemon) => {
                let mut client = daemon.client();
                client.open("a");
                client.close_and_settle("a");
                served += 1;
            }
        }
    }
    assert!(ended >= 2 && served >= 2, "{ended} starts ended, {served} served");
}

#[test]
fn with_no_address_space_left_the_daemon_goes_on_or_aborts_and_no_answered_account_is_lost() {
    let mut random = random();
    let mut daemon = start("", "");
    let mut answers = Answers::new();
    for round in 0..rounds(6) {
        let spare = random.range(0, 2 << 20);
        let what = format!("round {round}: {spare} bytes are left");
        answers.extend(under_load(&mut daemon, &format!("r{round}"), |daemon| {
            let used =
                std::fs::read_to_string(format!("/proc/{}/statm", daemon.pid().as_raw_nonzero())).unwrap();
            let pages: u64 = used.split(' ').next().unwrap().parse().unwrap();
            limit(daemon, Resource::As, Some(pages * rustix::param::page_size() as u64 + spare));
            let clients: Vec<_> = (0..50).filter_map(|_| UnixStream::connect(daemon.socket()).ok()).collect();
            sleep_ms(100);
            drop(clients);
        }));
        match daemon.try_wait() {
            Some(status) => assert_clean_end(status, &daemon.log(), &what),
            None => daemon.kill(),
        }
        daemon.restart();
        assert_kept(&daemon, &answers, false, &what);
    }
}

#[test]
fn an_accept_without_memory_is_tried_again_after_a_pause() {
    let faults = fault_library();
    let daemon = start(&faults.setup(), "");
    let mut client = daemon.client();
    client.call("GetInfo", json!({}));
    let begun = Instant::now();
    faults.fail(Fault::Accept, 0, u64::MAX, 0);
    let mut waiting = daemon.client();
    // Calls of a client that is connected: the poller wakes for them, and finds the pending connection each time.
    for at in 0..200 {
        let span = format!("s{at}");
        client.open(&span);
        client.call("CancelSpan", json!({ "span": span }));
    }
    sleep_ms(500);
    let (calls, _) = faults.calls(Fault::Accept);
    // One call after each pause of 100 ms.
    let most = 1 + begun.elapsed().as_millis() as u64 / 100;
    assert!((1..=most).contains(&calls), "{calls} calls of accept for one pending connection");
    faults.clear(Fault::Accept);
    waiting.call("GetInfo", json!({}));
}

/// A new client, and the reply to its first call or the refusal of its connection.
fn connect(daemon: &TestDaemon) -> (TestClient, Value) {
    let mut client = daemon.client();
    client.send_raw(&encode_call("GetInfo", json!({}), &[]));
    let reply = client.receive().expect("a reply or a refusal");
    (client, reply)
}

#[test]
fn a_lost_reserve_descriptor_is_regained_from_the_newest_connection() {
    let faults = fault_library();
    // No thread of a store opens files meanwhile.
    let daemon = start(&faults.setup(), "[ledger]\nkeep = false\n");
    limit(&daemon, Resource::Nofile, Some(open_descriptors(&daemon) + 4));
    let is_refused = |reply: &Value| reply["error"] == "org.wattspan.Meter.QuotaExceeded";
    let mut held = Vec::new();
    let mut take_all = || {
        let (client, reply) = connect(&daemon);
        let is_full = is_refused(&reply);
        held.extend((!is_full).then_some(client));
        is_full
    };
    wait_until("all descriptors are taken", &mut take_all);
    // The next refusal loses the reserve, and a connection takes its descriptor.
    let begun = Instant::now();
    faults.fail(Fault::Reserve, 0, u64::MAX, 0);
    wait_until("a refusal loses the reserve", || {
        take_all();
        faults.calls(Fault::Reserve).1 > 0
    });
    assert!(!take_all(), "accepted");
    faults.clear(Fault::Reserve);
    wait_until("all descriptors are taken again, and the next client is refused", take_all);
    let mut is_closed = held.into_iter().map(|mut client| {
        client.send_raw(&encode_call("GetInfo", json!({}), &[]));
        client.receive().is_none_or(|reply| is_refused(&reply))
    });
    assert_eq!(is_closed.next(), Some(false), "the oldest connection stays");
    // One, and on a slow machine one more after each second without a reserve.
    let closed = is_closed.filter(|is_closed| *is_closed).count() as u64;
    assert!((1..=1 + begun.elapsed().as_secs()).contains(&closed), "{closed} closed");
}
