//! Cost of storing accounts: accounts per second, bytes per account, the wait of a close for the commit, the time to
//! read history, and the memory of a daemon under load.
//!
//! Prints a table: what, target, value, `ok` or `over`. The disk is that of the temporary directory (`TMPDIR`). Run
//! with `cargo bench --bench store`; it takes about a minute.

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use wattspan::domain::Grade;
use wattspan::store::{Filter, Store, StoreQuery, StoreSettings, SyncMode};
use wattspan_client::account::{Account, Share, SpanState};
use wattspan_client::protocol::{Call, CloseSpan, OpenSpan};

mod daemon;

use daemon::{Daemon, MACHINE};

/// Accounts of the bulk load.
const ACCOUNTS: u64 = 1_000_000;

/// Accounts per batch: those that settle in 10 ms at 100,000 per second.
const BATCH: u64 = 1000;

fn main() {
    println!("{:<62} {:>16} {:>20}", "what", "target", "value");
    let dir = tempfile::tempdir().expect("a temporary directory");
    bulk(dir.path());
    commits(dir.path());
    steady_load();
}

fn row(what: &str, value: f64, target: f64, at_most: bool, unit: &str) {
    let good = if at_most { value <= target } else { value >= target };
    let (sign, verdict) = (if at_most { "≤" } else { "≥" }, if good { "ok" } else { "over" });
    println!(
        "{what:<62} {:>16} {:>20}  {verdict}",
        format!("{sign} {target} {unit}"),
        format!("{value:.1} {unit}")
    );
}

fn note(what: &str, value: String) {
    println!("{what:<62} {:>16} {value:>20}", "");
}

fn settings(directory: &Path) -> StoreSettings {
    StoreSettings {
        directory: directory.to_owned(),
        max_age: Duration::from_secs(86_400),
        max_bytes: 1 << 40,
        max_waiting_bytes: 1 << 30,
        sync: SyncMode::Normal,
    }
}

fn store(directory: &Path) -> Store {
    Store::start(settings(directory), |line| println!("{line}")).expect("a thread")
}

/// A span name like those that the daemon generates, in no order.
fn name(at: u64) -> String {
    let mix = |at: u64| {
        at.wrapping_add(1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(31)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9)
    };
    format!("{:016x}{:016x}", mix(at), mix(mix(at)))
}

fn account(at: u64) -> Account {
    let share = |domain: &str, grade, uj| Share {
        domain: domain.into(),
        grade,
        window_uj: Some(uj + at % 1000),
        share_uj: Some(uj / 2 + at % 777),
        idle_uj: Some(uj / 5),
        error_uj: Some(61_000 + at % 61),
        unknown_ns: 0,
        process_uj: None,
    };
    Account {
        span: name(at),
        name: "POST /v1/chat".into(),
        attributes: [("model".to_owned(), "llama-3.1-8b".to_owned())].into(),
        state: SpanState::Settled,
        uid: 1000 + (at % 3) as u32,
        opened_ns: 3_600_000_000_000 + at * 10_000,
        closed_ns: Some(3_600_040_000_000 + at * 10_000),
        moved_ns: 0,
        opened_unix_ns: 1_763_000_000_000_000_000 + at * 10_000,
        weight: 1.0,
        share_uj: Some(6_000_000 + at % 1777),
        window_uj: Some(12_000_000 + at % 5000),
        idle_uj: Some(2_400_000),
        error_uj: Some(183_000 + at % 61),
        grade: Some(Grade::Measured),
        mean_power_mw: Some(150_000 + at % 1777),
        peak_concurrency: 12,
        domains: vec![
            share("package-0", Grade::Measured, 4_000_000),
            share("core-0", Grade::Measured, 3_000_000),
            share("dram-0", Grade::Measured, 500_000),
            share("gpu-0", Grade::Integrated, 8_000_000),
        ],
        phases: vec![],
        simulated: None,
        at_least: None,
        durable: None,
        number: None,
        process: None,
        cgroup: None,
        process_uj: None,
        process_reason: None,
    }
}

fn wait(store: &Store, number: u64) {
    while store.committed() < number {
        std::thread::yield_now();
    }
}

fn run_query(store: &mut Store, query: StoreQuery) -> (usize, Duration) {
    let started = Instant::now();
    assert!(store.submit_query(1, query), "one question");
    loop {
        if let Some((_, found)) = store.take_query_results().pop() {
            return (found.map_or(0, |found| found.accounts.len()), started.elapsed());
        }
        std::thread::yield_now();
    }
}

fn bulk(dir: &Path) {
    let directory = dir.join("bulk");
    let mut store = store(&directory);
    let accounts: Vec<Account> = (0..BATCH).map(account).collect();
    let (started, mut append_time) = (Instant::now(), Duration::ZERO);
    for at in 0..ACCOUNTS {
        let mut account = accounts[(at % BATCH) as usize].clone();
        account.span = name(at);
        let taken = Instant::now();
        assert!(store.append(&account, None, false), "room");
        append_time += taken.elapsed();
        if (at + 1) % BATCH == 0 {
            store.flush();
            // At most one second ahead of the disk, at 100,000 accounts per second.
            wait(&store, (at + 1).saturating_sub(100_000));
        }
    }
    wait(&store, ACCOUNTS);
    let rate = ACCOUNTS as f64 / started.elapsed().as_secs_f64();
    row("accounts kept on disk, a second", rate, 50_000.0, false, "/s");
    note(
        "of the service's thread for each",
        format!("{:.0} ns", append_time.as_nanos() as f64 / ACCOUNTS as f64),
    );
    for (what, span) in
        [("a new name", ACCOUNTS - 5), ("the oldest name", 0), ("a name that is not there", u64::MAX)]
    {
        let query = StoreQuery::Span { uid: 1000, all_users: true, span: name(span) };
        let (_, took) = run_query(&mut store, query);
        note(&format!("found among a million by {what}"), format!("{:.2} ms", took.as_secs_f64() * 1e3));
    }
    let list = |filter| StoreQuery::List { uid: Some(1000), filter, limit: 256, before: None };
    let (found, took) = run_query(&mut store, list(Filter::default()));
    note(&format!("the latest {found} of a user"), format!("{:.2} ms", took.as_secs_f64() * 1e3));
    let nothing = Filter { attributes: [("model".into(), "none".into())].into(), ..Filter::default() };
    let (_, took) = run_query(&mut store, list(nothing));
    row("a search that finds nothing, one part", took.as_secs_f64() * 1e3, 50.0, true, "ms");
    store.shutdown(Duration::from_secs(60));
    let file = std::fs::metadata(directory.join("ledger.sqlite")).expect("it is there").len();
    row("bytes of an account on disk, all indexes", file as f64 / ACCOUNTS as f64, 200.0, true, "B");
    let started = Instant::now();
    let mut again = self::store(&directory);
    run_query(&mut again, StoreQuery::Span { uid: 0, all_users: false, span: String::new() });
    row("start over a million accounts", started.elapsed().as_secs_f64() * 1e3, 100.0, true, "ms");
}

fn commits(dir: &Path) {
    for (what, sync) in [("normal", SyncMode::Normal), ("full", SyncMode::Full)] {
        let settings = StoreSettings { sync, ..settings(&dir.join(what)) };
        let mut store = Store::start(settings, |line| println!("{line}")).expect("a thread");
        let mut times = Histogram::<u64>::new(3).expect("a histogram");
        for at in 0..3000 {
            let account = account(at);
            let started = Instant::now();
            store.append(&account, None, true);
            store.flush();
            wait(&store, at + 1);
            times.record(started.elapsed().as_nanos() as u64).expect("a histogram that grows");
        }
        let at = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
        let value = format!("{:.0} / {:.0} us", at(0.5), at(0.99));
        note(&format!("commit of one account, sync = {what:?}, p50 / p99"), value);
    }
}

/// 10,000 closes per second for half a minute.
fn steady_load() {
    const SECONDS: u64 = 30;
    const EACH_MS: u64 = 10;
    let daemon = Daemon::start(MACHINE, "");
    let mut stream = daemon.connect();
    let mut reading = stream.try_clone().expect("a descriptor");
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while reading.read(&mut buffer).is_ok_and(|length| length > 0) {}
    });
    let started = Instant::now();
    let (mut early, mut peak) = (0.0, 0.0_f64);
    for tick in 0..SECONDS * 1000 / EACH_MS {
        let mut calls = Vec::new();
        for _ in 0..10 * EACH_MS {
            let span = format!("load-{}", calls.len() as u64 + tick * 1_000_000);
            Call::oneway(OpenSpan { span: Some(span.clone()), ..OpenSpan::default() }).encode(&mut calls);
            Call::new(CloseSpan { span, ..CloseSpan::default() }).encode(&mut calls);
        }
        stream.write_all(&calls).expect("a daemon that reads");
        if tick % 100 == 0 && started.elapsed() > Duration::from_secs(5) {
            let resident = daemon.resident_mb();
            if early == 0.0 {
                early = resident;
            }
            peak = peak.max(resident);
        }
        let due = started + Duration::from_millis((tick + 1) * EACH_MS);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let taken = started.elapsed().as_secs_f64();
    note(
        "closes a second asked of a daemon, for half a minute",
        format!("{:.0} /s", SECONDS as f64 * 1e4 / taken),
    );
    note("its memory after 5 s", format!("{early:.1} MB"));
    row("its most memory since, over that", peak / early, 1.05, true, "x");
    std::thread::sleep(Duration::from_millis(500));
    let kept = {
        let mut stream = daemon.connect();
        stream.write_all(b"{\"method\":\"org.wattspan.Meter.GetInfo\"}\0").expect("a daemon that reads");
        let mut buffer = vec![0; 1 << 16];
        let mut length = 0;
        while !buffer[..length].ends_with(&[0]) {
            length += stream.read(&mut buffer[length..]).expect("a daemon that answers");
        }
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let ledger_health =
        kept.split("\"keeping\":").nth(1).and_then(|rest| rest.split('}').next()).unwrap_or("nothing");
    note("what it says of its ledger then", format!("{ledger_health}}}"));
    drop(stream);
    drop(daemon);
    let _ = reader.join();
}
