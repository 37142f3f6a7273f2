//! Cost of storing accounts: accounts per second, bytes per account, the wait of a close for the commit, the time to
//! read history, and the memory of a daemon under load.
//!
//! Prints a table: what, target, value, `ok` or `over`. The disk is that of the temporary directory (`TMPDIR`). Run
//! with `cargo bench --bench store`; it takes about a minute.
//!
//! With `-- --large [ACCOUNTS]` it measures searches of a large store instead (10,000,000 accounts where none is given: some
//! minutes, 2 GB), and the closes beside a search that scans.
//!
//! With `-- --sums [ACCOUNTS]` it measures sums of stored accounts (1,000,000 where no number is given; 10,000,000 need 2 GB), the
//! calls of another client beside them, and what they add to the CPU time of storing an account.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use wattspan::domain::Grade;
use wattspan::store::{Filter, Store, StoreQuery, StoreSettings, SyncMode};
use wattspan_client::Client;
use wattspan_client::account::{Account, Share, SpanState};
use wattspan_client::protocol::{Call, CloseSpan, ListSpans, OpenSpan, SumSpans};

mod daemon;

use daemon::{Daemon, MACHINE};

/// Accounts of the bulk load.
const ACCOUNTS: u64 = 1_000_000;

/// Accounts of the large store, where the command line gives no number.
const LARGE_ACCOUNTS: u64 = 10_000_000;

/// Accounts of the sums, where the command line gives no number.
const SUMMED_ACCOUNTS: u64 = 1_000_000;

/// Accounts per batch: those that settle in 10 ms at 100,000 per second.
const BATCH: u64 = 1000;

fn main() {
    println!("{:<62} {:>16} {:>20}", "what", "target", "value");
    if let Some(accounts) = option("--large", LARGE_ACCOUNTS) {
        return large(accounts);
    }
    if let Some(accounts) = option("--sums", SUMMED_ACCOUNTS) {
        return sums(accounts);
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    bulk(dir.path());
    commits(dir.path());
    steady_load();
}

/// The number after an option of the command line, if the option is there.
fn option(name: &str, default: u64) -> Option<u64> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.next()?;
    Some(arguments.next().and_then(|number| number.parse().ok()).unwrap_or(default))
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
        sync_interval: Duration::from_secs(1),
        boot_id: String::new(),
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

/// Appends accounts and waits until they are on disk. Returns the time that the appends took.
fn fill(store: &mut Store, count: u64) -> Duration {
    let accounts: Vec<Account> = (0..BATCH).map(account).collect();
    fill_with(store, count, |at| Account { span: name(at), ..accounts[(at % BATCH) as usize].clone() })
}

/// As `fill`, with these accounts.
fn fill_with(store: &mut Store, count: u64, account: impl Fn(u64) -> Account) -> Duration {
    let mut append_time = Duration::ZERO;
    for at in 0..count {
        let account = account(at);
        let taken = Instant::now();
        assert!(store.append(&account, None, false), "room");
        append_time += taken.elapsed();
        if (at + 1) % BATCH == 0 {
            store.flush();
            // At most one second ahead of the disk, at 100,000 accounts per second.
            wait(store, (at + 1).saturating_sub(100_000));
        }
    }
    store.flush();
    wait(store, count);
    append_time
}

fn bulk(dir: &Path) {
    let directory = dir.join("bulk");
    let mut store = store(&directory);
    let started = Instant::now();
    let append_time = fill(&mut store, ACCOUNTS);
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

/// Searches of a large store through the daemon, and closes beside a search that scans.
fn large(accounts: u64) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let directory = dir.path().join("state");
    let mut store = store(&directory);
    let started = Instant::now();
    fill(&mut store, accounts);
    note(&format!("{accounts} accounts written in"), format!("{:.0} s", started.elapsed().as_secs_f64()));
    store.shutdown(Duration::from_secs(600));
    drop(store);
    let file = std::fs::metadata(directory.join("ledger.sqlite")).expect("it is there").len();
    row("bytes of an account on disk, all indexes", file as f64 / accounts as f64, 220.0, true, "B");
    let daemon = Daemon::spawn_in(dir, MACHINE, "[ledger]\nmegabytes = 100000\ndays = 1000\n");
    drop(daemon.connect());
    let mut client = daemon.client();
    let by_model = |model: &str| ListSpans {
        attributes: Some([("model".to_owned(), model.to_owned())].into()),
        ..ListSpans::default()
    };
    let by_name = ListSpans { name: Some("no such name".into()), ..ListSpans::default() };
    let (took, _) = search(&mut client, &ListSpans { limit: Some(1), ..ListSpans::default() }, 1);
    note("the latest account, after the start", format!("{:.2} ms", took * 1e3));
    absent(&mut client, "name", &by_name);
    absent(&mut client, "model", &by_model("no such model"));
    let (took, pages) = search(&mut client, &by_model("llama-3.1-8b"), 1);
    note("the latest of a common model", format!("{:.2} ms", took * 1e3 / pages as f64));
    closes_beside_a_scan(&daemon);
}

/// The time of a whole search in seconds, all its pages but at most `max_pages`, and the number of pages.
fn search(client: &mut Client, request: &ListSpans, max_pages: u64) -> (f64, u64) {
    let (started, mut request) = (Instant::now(), request.clone());
    for page in 1.. {
        let found = client.call(request.clone()).expect("a daemon that answers");
        match found.before {
            Some(before) if page < max_pages => request.before = i64::try_from(before).ok(),
            _ => return (started.elapsed().as_secs_f64(), page),
        }
    }
    unreachable!("the loop has no end")
}

/// Searches for what is not there, the first time and later.
fn absent(client: &mut Client, what: &str, request: &ListSpans) {
    let (first, pages) = search(client, request, u64::MAX);
    let mut later: Vec<f64> = (0..21).map(|_| search(client, request, u64::MAX).0).collect();
    later.sort_by(f64::total_cmp);
    row(&format!("an absent {what}, first search ({pages} pages)"), first * 1e3, 50.0, true, "ms");
    row(&format!("an absent {what}, later searches, p50"), later[10] * 1e3, 50.0, true, "ms");
    row(&format!("an absent {what}, later searches, maximum"), later[20] * 1e3, 50.0, true, "ms");
}

/// Closes with and without a client whose searches scan accounts, in turns.
fn closes_beside_a_scan(daemon: &Daemon) {
    let attributes = Some([("another".to_owned(), "none".to_owned())].into());
    let mut request = ListSpans { attributes, ..ListSpans::default() };
    let pages = closes_beside(daemon, "a scan", |client| {
        let found = client.call(request.clone()).expect("a daemon that answers");
        request.before = found.before.and_then(|before| i64::try_from(before).ok());
    });
    note("parts scanned beside the closes (16,384 accounts each)", pages.to_string());
}

/// Opens and closes with and without a client that repeats a call, in turns; returns the number of its calls.
fn closes_beside(daemon: &Daemon, what: &str, mut call: impl FnMut(&mut Client) + Send) -> u64 {
    const TURNS: usize = 20;
    const CLOSES: usize = 100;
    let (calls, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    let histogram = || Histogram::<u64>::new(3).expect("a histogram");
    // Opens, closes, and closes that wait for the disk; each without and with the call.
    let mut times = [0; 3].map(|_| [histogram(), histogram()]);
    let mut count = 0;
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            let mut client = patient_client(daemon);
            let mut count = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                if calls.load(Ordering::Relaxed) {
                    call(&mut client);
                    count += 1;
                } else {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            count
        });
        let client = daemon.client();
        for turn in 0..2 * TURNS {
            let with_call = turn % 2;
            calls.store(with_call == 1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
            for at in 0..CLOSES {
                let (span, waits) = (format!("{what}-{turn}-{at}"), at % 2 == 1);
                let mut record = |kind: usize, started: Instant| {
                    let ns = started.elapsed().as_nanos() as u64;
                    times[kind][with_call].record(ns).expect("a histogram that grows");
                };
                let open = OpenSpan { span: Some(span.clone()), ..OpenSpan::default() };
                let started = Instant::now();
                client.call(open).expect("a span");
                record(0, started);
                let close = CloseSpan { span, wait_settled: Some(waits), ..CloseSpan::default() };
                let started = Instant::now();
                client.call(close).expect("an account");
                record(1 + usize::from(waits), started);
            }
        }
        is_over.store(true, Ordering::Relaxed);
        count = caller.join().expect("a client");
    });
    for (kind, [without, with]) in ["open", "close", "close that waits for the disk"].into_iter().zip(&times)
    {
        for (name, quantile, target) in [("p50", 0.5, 1.5), ("p99", 0.99, 3.0)] {
            let at = |times: &Histogram<u64>| times.value_at_quantile(quantile) as f64;
            note(&format!("{kind}, {name}, alone"), format!("{:.3} ms", at(without) / 1e6));
            row(&format!("{kind}, {name}, beside {what}"), at(with) / at(without), target, true, "x");
        }
    }
    count
}

/// The time between the openings of two accounts of the sums: 100 a second.
const SUMMED_INTERVAL_NS: u64 = 10_000_000;

/// An account of a server for three users with five models: ten names, or a name for each account.
fn summed_account(at: u64, has_own_name: bool) -> Account {
    let model =
        ["llama-3.1-8b", "llama-3.1-70b", "qwen-2.5-7b", "mistral-7b", "gemma-2-9b"][(at / 3 % 5) as usize];
    let operation = if at.is_multiple_of(4) { "embeddings" } else { "chat" };
    let attributes = [
        ("gen_ai.request.model", model.to_owned()),
        ("gen_ai.operation.name", operation.to_owned()),
        ("gen_ai.usage.output_tokens", (100 + at % 400).to_string()),
    ];
    Account {
        name: if has_own_name { format!("request-{at}") } else { format!("POST /v1/chat-{}", at % 10) },
        attributes: attributes.map(|(key, value)| (key.to_owned(), value)).into(),
        opened_unix_ns: 1_763_000_000_000_000_000 + at * SUMMED_INTERVAL_NS,
        ..account(at)
    }
}

/// Sums through the daemon, with names that recur and with names of which each is of one account.
fn sums(accounts: u64) {
    println!("{accounts} accounts, {:.1} hours", accounts as f64 * SUMMED_INTERVAL_NS as f64 / 3.6e12);
    storing_cost(accounts.min(1_000_000));
    let daemon = summed_store(accounts, false);
    let mut client = patient_client(&daemon);
    let by = |fields: &[&str]| SumSpans {
        by: Some(fields.iter().map(|field| (*field).to_owned()).collect()),
        utc_offset_min: fields.contains(&"day").then_some(60),
        ..SumSpans::default()
    };
    for fields in [
        &["model"][..],
        &["user"],
        &["day"],
        &["operation"],
        &["name"],
        &["model", "user", "day", "operation"],
    ] {
        seconds_of(&mut client, &format!("sum by {}", fields.join(",")), by(fields));
    }
    let at_ns =
        |part: u64| Some((1_763_000_000_000_000_000 + accounts / 8 * part * SUMMED_INTERVAL_NS) as i64);
    let everything = by(&["model", "user", "day", "operation"]);
    let filtered = [
        ("since, until", SumSpans { since_unix_ns: at_ns(1), until_unix_ns: at_ns(7), ..everything.clone() }),
        ("a model", SumSpans { model: Some("mistral-7b".into()), ..everything.clone() }),
        ("a user", SumSpans { uid: Some(1001), ..everything.clone() }),
        ("a name", SumSpans { name: Some("POST /v1/chat-3".into()), ..everything.clone() }),
    ];
    for (filter, call) in filtered {
        seconds_of(&mut client, &format!("the same by all four, of {filter}"), call);
    }
    let call = by(&["model", "day"]);
    let sum = closes_beside(&daemon, "sums", |client| drop(client.call(call.clone()).expect("sums")));
    note("sums beside the calls", sum.to_string());
    let attributes = Some([("gen_ai.usage.output_tokens".to_owned(), "100".to_owned())].into());
    let by_rows = SumSpans { attributes, ..SumSpans::default() };
    seconds_of(&mut client, "a sum that reads each account (by an attribute)", by_rows.clone());
    // Short enough to be over when the turns without it begin.
    let from_ns = 1_763_000_000_000_000_000 + accounts.saturating_sub(20_000) * SUMMED_INTERVAL_NS;
    let by_few_rows = SumSpans { since_unix_ns: Some(from_ns as i64), ..by_rows };
    closes_beside(&daemon, "a sum that reads 20,000 accounts", |client| {
        drop(client.call(by_few_rows.clone()).expect("sums"));
    });
    drop((client, daemon));
    let daemon = summed_store(accounts, true);
    let mut client = patient_client(&daemon);
    for fields in [&["name"][..], &["model", "user", "day", "operation"]] {
        let what = format!("names of one account each: sum by {}", fields.join(","));
        seconds_of(&mut client, &what, by(fields));
    }
    let call = SumSpans { name: Some("request-777777".into()), ..SumSpans::default() };
    seconds_of(&mut client, "names of one account each: sum of a name", call);
}

/// A daemon with a store of these accounts.
fn summed_store(accounts: u64, have_own_names: bool) -> Daemon {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let directory = dir.path().join("state");
    let mut store = store(&directory);
    let started = Instant::now();
    fill_with(&mut store, accounts, |at| summed_account(at, have_own_names));
    note(&format!("{accounts} accounts written in"), format!("{:.0} s", started.elapsed().as_secs_f64()));
    store.shutdown(Duration::from_secs(600));
    drop(store);
    let file = std::fs::metadata(directory.join("ledger.sqlite")).expect("it is there").len();
    note("bytes of an account on disk, all indexes", format!("{:.1} B", file as f64 / accounts as f64));
    let daemon = Daemon::spawn_in(dir, MACHINE, "[ledger]\nmegabytes = 100000\ndays = 1000\n");
    drop(daemon.connect());
    // Any query waits until the database is open.
    search(&mut daemon.client(), &ListSpans { limit: Some(1), ..ListSpans::default() }, 1);
    daemon
}

/// A client without a timeout: a sum that reads each account takes long.
fn patient_client(daemon: &Daemon) -> Client {
    let client = daemon.client();
    client.set_timeout(None).expect("a socket");
    client
}

/// The first and the median time of a sum.
fn seconds_of(client: &mut Client, what: &str, call: SumSpans) {
    let mut times: Vec<f64> = (0..5)
        .map(|_| {
            let started = Instant::now();
            client.call(call.clone()).expect("a daemon that answers");
            started.elapsed().as_secs_f64()
        })
        .collect();
    let first = times[0];
    times.sort_by(f64::total_cmp);
    row(&format!("{what}, first"), first, 3.0, true, "s");
    note(&format!("{what}, median"), format!("{:.4} s", times[2]));
}

/// CPU time of the store's thread for each account, with sums, and where a segment has too many groups for them. The accounts
/// differ in one attribute of one length, which no other index has.
fn storing_cost(accounts: u64) {
    let mut costs = [Vec::new(), Vec::new()];
    for round in 0..6 {
        let is_unique = round % 2 == 1;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut store = store(&dir.path().join("state"));
        fill_with(&mut store, accounts / 4, |at| {
            let operation = if is_unique { format!("{:08}", at) } else { format!("{:08}", at % 2) };
            let mut account = summed_account(at, false);
            account.attributes.insert("gen_ai.operation.name".to_owned(), operation);
            account
        });
        let us = cpu_time_of_thread("store").as_secs_f64() * 1e6 / (accounts / 4) as f64;
        costs[usize::from(is_unique)].push(us);
        store.shutdown(Duration::from_secs(60));
    }
    let [with, without] = costs.map(|mut all| {
        all.sort_by(f64::total_cmp);
        all[1]
    });
    note("CPU of the store's thread for an account, with sums", format!("{with:.2} us"));
    note("the same where most accounts are in none", format!("{without:.2} us, {:.3} x", with / without));
}

/// The CPU time of a thread of this process.
fn cpu_time_of_thread(name: &str) -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux").flatten();
    let ns = tasks.filter_map(|task| {
        let comm = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse::<u64>().ok().filter(|_| comm.trim() == name)
    });
    Duration::from_nanos(ns.sum())
}
