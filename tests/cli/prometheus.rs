//! `wattspan export prometheus` against a real daemon: totals over kills of both, equality with the daemon's own figures,
//! the grid, and the refusals.

use crate::programs;
use crate::support::{
    STEADY_MACHINE, TEST_TIMEOUT, TestClient, TestDaemon, run_spans_until_it_ends, wait_until,
};

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The interval of the grid in these tests, the least one that is allowed.
const GRID: Duration = Duration::from_secs(1);

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A running exporter; killed on drop.
struct Exporter {
    child: Child,
    /// The text about its address.
    said: String,
}

impl Exporter {
    fn command(daemon: &TestDaemon, dir: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(programs::wattspan());
        command.arg("--socket").arg(daemon.socket()).args(["export", "prometheus", "--every", "1s"]);
        command.arg("--state").arg(dir.join("state.json")).args(more);
        command.env_remove("RUNTIME_DIRECTORY").env_remove("STATE_DIRECTORY").env("XDG_RUNTIME_DIR", dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Starts it and waits until it listens.
    fn start(daemon: &TestDaemon, dir: &Path, more: &[&str]) -> Self {
        let mut child = Self::command(daemon, dir, more).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("serving metrics at ") {
            assert!(lines.read_line(&mut said).unwrap() > 0, "it ended: {said}");
        }
        // Its later messages must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self { child, said }
    }

    /// The port of its TCP address.
    fn port(&self) -> u16 {
        let address = self.said.split("http://").nth(1).unwrap().split("/metrics").next().unwrap();
        address.rsplit_once(':').unwrap().1.parse().unwrap()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a request as bytes; returns the status and the whole response.
fn exchange(mut stream: impl Read + Write, request: &str) -> (u16, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let status = response.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    (status, response)
}

fn scrape_text(dir: &Path) -> String {
    let stream = UnixStream::connect(dir.join("wattspan-metrics.sock")).unwrap();
    let (status, response) = exchange(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(status, 200, "{response}");
    response.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// The values of each series.
type Series = BTreeMap<String, f64>;

fn parse(text: &str) -> Series {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(series, value)| (series.to_owned(), value.parse().unwrap()))
        .collect()
}

fn scrape(dir: &Path) -> Series {
    parse(&scrape_text(dir))
}

/// A value that is a whole number of millionths.
fn micro(value: f64) -> u64 {
    let micro = (value * 1e6).round();
    assert!(micro >= 0.0 && (micro - value * 1e6).abs() < 0.01, "{value} has a finer part than a millionth");
    micro as u64
}

/// The sum of the series of a metric with this text in their labels.
fn sum(series: &Series, metric: &str, label: &str) -> f64 {
    let of_metric =
        series.iter().filter(|(name, _)| name.split('{').next() == Some(metric) && name.contains(label));
    of_metric.map(|(_, value)| value).sum()
}

/// The counters of several scrapes; each must stay and never go back.
#[derive(Default)]
struct CounterWatch(Series);

impl CounterWatch {
    fn check(&mut self, series: &Series) {
        let is_counter = |name: &str| {
            let metric = name.split('{').next().unwrap();
            ["_total", "_count", "_sum", "_bucket"].iter().any(|ending| metric.ends_with(ending))
        };
        for (name, last) in &self.0 {
            let now = series.get(name).unwrap_or_else(|| panic!("{name} is gone"));
            assert!(now >= last, "{name} went back from {last} to {now}");
        }
        self.0.extend(
            series.iter().filter(|(name, _)| is_counter(name)).map(|(name, value)| (name.clone(), *value)),
        );
    }
}

/// All stored accounts of the daemon, by number.
fn stored(client: &mut TestClient) -> BTreeMap<u64, Value> {
    let (mut all, mut after) = (BTreeMap::new(), 0);
    loop {
        let page = client.call("ListSpans", json!({ "after": after, "limit": 4096 }));
        for account in page["accounts"].as_array().unwrap() {
            all.insert(account["number"].as_u64().unwrap(), account.clone());
        }
        after = page["after"].as_u64().unwrap();
        if page["at_end"] == true {
            return all;
        }
    }
}

fn snapshot_s(series: &Series) -> f64 {
    series.get("wattspan_snapshot_timestamp_seconds").copied().unwrap_or(0.0)
}

fn unix_s() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}

/// The first snapshot whose reading began after now.
fn next_snapshot(dir: &Path) -> Series {
    let now_s = unix_s();
    let mut series = Series::new();
    wait_until("a snapshot", || {
        series = scrape(dir);
        snapshot_s(&series) > now_s
    });
    series
}

fn open_and_close(client: &mut TestClient, span: &str, model: &str, more: Value) {
    let mut attributes = json!({ "gen_ai.request.model": model, "gen_ai.operation.name": "chat" });
    attributes.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    client.call("OpenSpan", json!({ "span": span, "attributes": attributes }));
    client.close_and_settle(span);
}

/// A machine that uses energy for 8 s, and none after that.
const ENDING_MACHINE: &str = r#"
[[domain]]
name = "package-0"
kind = "package"
profile = [[8.0, 80], [100000, 0]]
quantum_uj = 61
ceiling_w = 400
[[domain]]
name = "dram-0"
kind = "dram"
profile = [[8.0, 20], [100000, 0]]
quantum_uj = 15
ceiling_w = 100
"#;

#[test]
fn at_one_instant_the_sums_are_those_of_the_balance_and_of_the_accounts() {
    // Built before the machine's time begins.
    programs::wattspan();
    let (daemon, dir) = (TestDaemon::start(ENDING_MACHINE), tempfile::tempdir().unwrap());
    let mut client = daemon.client();
    client.open("open");
    let _exporter = Exporter::start(&daemon, dir.path(), &[]);
    let live = next_snapshot(dir.path());
    let of_domain =
        |domain: &str| micro(sum(&live, "wattspan_energy_joules_total", &format!("domain=\"{domain}\"")));
    assert_eq!(sum(&live, "wattspan_domain_info", "counted=\"true\""), 2.0, "both domains count");
    let counted = of_domain("package-0") + of_domain("dram-0");
    assert_eq!(micro(sum(&live, "wattspan_host_energy_joules_total", "")), counted);
    for at in 0..12 {
        let tokens = json!({ "gen_ai.usage.output_tokens": "7", "gen_ai.usage.input_tokens": "3" });
        open_and_close(&mut client, &format!("a{at}"), ["llama", "qwen", "mistral"][at % 3], tokens);
    }
    open_and_close(&mut client, "failed", "llama", json!({ "http.response.status_code": "500" }));
    // A balance that is the same before and after a snapshot was that of its instant. The machine ends, and the daemon takes
    // the last energy over only once no update has followed it for a while.
    let (mut balance, mut series) = (Value::Null, Series::new());
    wait_until("the machine ends", || {
        balance = client.call("GetBalance", json!({}));
        series = next_snapshot(dir.path());
        client.call("GetBalance", json!({})) == balance
    });
    for row in balance["balance"].as_array().unwrap() {
        let label = format!("domain={}", row["domain"]);
        let value = |metric: &str| micro(sum(&series, metric, &label));
        let energy = value("wattspan_energy_joules_total");
        assert_eq!(energy, row["measured_uj"].as_u64().unwrap(), "{label}");
        let (attributed, unattributed) =
            (value("wattspan_attributed_joules_total"), value("wattspan_unattributed_joules_total"));
        assert_eq!(attributed + unattributed, energy, "{label}");
        // The balance rounds the share of an open span down, and counts the fraction of a microjoule as unattributed until
        // it is whole. A counter does not take it back.
        assert!(
            attributed.abs_diff(row["attributed_uj"].as_u64().unwrap()) <= 1,
            "{label}: {attributed}, {row}"
        );
    }
    let accounts = stored(&mut client);
    for model in ["llama", "qwen", "mistral"] {
        let of_model =
            || accounts.values().filter(|account| account["attributes"]["gen_ai.request.model"] == model);
        let total = |field: &str| of_model().map(|account| account[field].as_u64().unwrap_or(0)).sum::<u64>();
        let label = format!("model=\"{model}\"");
        for (metric, field) in [
            ("wattspan_span_energy_joules_total", "share_uj"),
            ("wattspan_span_energy_error_joules_total", "error_uj"),
            ("wattspan_span_energy_idle_joules_total", "idle_uj"),
            ("wattspan_energy_per_span_joules_sum", "share_uj"),
        ] {
            assert_eq!(micro(sum(&series, metric, &label)), total(field), "{metric} {model}");
        }
        assert_eq!(sum(&series, "wattspan_spans_total", &label), of_model().count() as f64);
    }
    let tokens = sum(&series, "wattspan_span_tokens_total", "model=\"qwen\",direction=\"output\"");
    assert_eq!((tokens, sum(&series, "wattspan_failed_spans_total", "model=\"llama\"")), (28.0, 1.0));
    let failed = accounts.values().find(|account| account["span"] == "failed").unwrap();
    let failed_uj = micro(sum(&series, "wattspan_failed_span_energy_joules_total", ""));
    assert_eq!(failed_uj, failed["share_uj"].as_u64().unwrap());
}

#[test]
fn counters_never_go_back_and_no_account_counts_twice_over_kills_of_exporter_and_daemon() {
    programs::wattspan();
    let (mut daemon, dir) = (TestDaemon::start(STEADY_MACHINE), tempfile::tempdir().unwrap());
    let mut watch = CounterWatch::default();
    for round in 0..3 {
        let answered = AtomicUsize::new(0);
        let client = daemon.client();
        std::thread::scope(|scope| {
            let answered = &answered;
            let pause = Duration::from_millis(5);
            scope.spawn(move || run_spans_until_it_ends(client, &format!("{round}-"), pause, answered));
            for kill in 0..2 {
                let before = answered.load(Ordering::Relaxed);
                let mut exporter = Exporter::start(&daemon, dir.path(), &[]);
                let state = || std::fs::read(dir.path().join("state.json")).unwrap_or_default();
                let first = state();
                // Sometimes before it has shown anything of its own, sometimes at once after its state was written.
                if kill == 0 {
                    wait_until("it has stored", || state() != first);
                } else {
                    watch.check(&next_snapshot(dir.path()));
                    wait_until("spans end", || answered.load(Ordering::Relaxed) > before);
                    watch.check(&next_snapshot(dir.path()));
                }
                exporter.child.kill().unwrap();
            }
            rustix::process::kill_process(daemon.pid(), rustix::process::Signal::KILL).unwrap();
        });
        daemon.kill();
        let exporter = Exporter::command(&daemon, dir.path(), &[]).output().unwrap();
        assert_eq!(exporter.status.code(), Some(4), "without a daemon it does not start");
        daemon.restart();
    }
    let _exporter = Exporter::start(&daemon, dir.path(), &[]);
    watch.check(&scrape(dir.path()));
    let series = next_snapshot(dir.path());
    watch.check(&series);
    let accounts = stored(&mut daemon.client());
    let shares = || accounts.values().filter_map(|account| account["share_uj"].as_u64());
    assert_eq!(sum(&series, "wattspan_spans_total", ""), accounts.len() as f64);
    assert_eq!(micro(sum(&series, "wattspan_span_energy_joules_total", "")), shares().sum::<u64>());
    let without = accounts.len() - shares().count();
    assert_eq!(sum(&series, "wattspan_span_without_energy_total", ""), without as f64);
    assert_eq!(sum(&series, "wattspan_exporter_lost_accounts_total", ""), 0.0);
}

#[test]
fn the_counters_stay_while_the_daemon_is_away_and_continue_with_its_next_life() {
    let (mut daemon, dir) = (TestDaemon::start(STEADY_MACHINE), tempfile::tempdir().unwrap());
    let exporter = Exporter::start(&daemon, dir.path(), &[]);
    let mut watch = CounterWatch::default();
    let first = next_snapshot(dir.path());
    watch.check(&first);
    assert_eq!(first["wattspan_daemon_up"], 1.0);
    daemon.kill();
    let away = next_snapshot(dir.path());
    watch.check(&away);
    assert_eq!(away["wattspan_daemon_up"], 0.0);
    assert!(!away.keys().any(|name| name.starts_with("wattspan_power_watts")), "unknown, not 0");
    daemon.restart();
    let back = next_snapshot(dir.path());
    watch.check(&back);
    let energy = |series: &Series| sum(series, "wattspan_host_energy_joules_total", "");
    assert!(back["wattspan_daemon_up"] == 1.0 && energy(&back) > energy(&away));
    // A second exporter with this state would count the same accounts.
    let second: Output =
        Exporter::command(&daemon, dir.path(), &["--listen", "unix:other.sock"]).output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("another process exports with the state"), "{said}");
    drop(exporter);
}

#[test]
fn values_change_on_the_grid_however_often_they_are_read() {
    let (daemon, dir) = (TestDaemon::start(STEADY_MACHINE), tempfile::tempdir().unwrap());
    let _exporter = Exporter::start(&daemon, dir.path(), &[]);
    next_snapshot(dir.path());
    let begun = Instant::now();
    let mut texts = BTreeSet::new();
    let (mut scrapes, mut instants) = (0, BTreeSet::new());
    while begun.elapsed() < 3 * GRID || scrapes < 100 || instants.len() < 2 {
        let text = scrape_text(dir.path());
        instants.insert(snapshot_s(&parse(&text)).to_bits());
        texts.insert(text);
        scrapes += 1;
        assert!(begun.elapsed() < TEST_TIMEOUT, "{} instants in {scrapes} scrapes", instants.len());
    }
    assert_eq!(texts.len(), instants.len(), "one text for each instant");
    // One more for an instant that was late, and one for a part of an interval.
    let most = begun.elapsed().as_secs() as usize + 2;
    assert!(texts.len() <= most, "{} texts of {scrapes} scrapes", texts.len());
}

fn token_file(dir: &Path, mode: u32) -> PathBuf {
    let path = dir.join("token");
    std::fs::write(&path, format!("{TOKEN}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

#[test]
fn a_tcp_address_needs_the_token_and_its_own_name() {
    let (daemon, dir) = (TestDaemon::start(STEADY_MACHINE), tempfile::tempdir().unwrap());
    let listen = ["--listen", "127.0.0.1:0"];
    let refused = Exporter::command(&daemon, dir.path(), &listen).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("--token-file"), "{said}");
    let token = token_file(dir.path(), 0o644);
    let with_token = [listen[0], listen[1], "--token-file", token.to_str().unwrap(), "--host-name", "node-7"];
    let refused = Exporter::command(&daemon, dir.path(), &with_token).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("chmod 600"));
    token_file(dir.path(), 0o600);
    let exporter = Exporter::start(&daemon, dir.path(), &with_token);
    assert!(!exporter.said.contains(TOKEN));
    let connect = || TcpStream::connect(("127.0.0.1", exporter.port())).unwrap();
    let status = |line: &str, host: &str, token: &str| {
        let request = format!("{line} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n");
        exchange(connect(), &request)
    };
    let host = format!("127.0.0.1:{}", exporter.port());
    let (ok, text) = status("GET /metrics", &host, TOKEN);
    assert!(ok == 200 && text.contains("wattspan_build_info"), "{text}");
    assert_eq!(status("GET /metrics", "node-7:80", TOKEN).0, 200);
    assert_eq!(status("HEAD /metrics", &host, TOKEN).0, 200);
    let wrong = TOKEN.replace('f', "e");
    for (line, host, token, expected) in [
        ("GET /metrics", &*host, &*wrong, 401),
        ("GET /", &*host, &*wrong, 401),
        ("GET /metrics", "evil.example", TOKEN, 421),
        ("GET /", &*host, TOKEN, 404),
        ("POST /metrics", &*host, TOKEN, 405),
    ] {
        let (status, text) = status(line, host, token);
        assert_eq!(status, expected, "{line} {host}");
        assert!(!text.contains("wattspan_energy"), "{text}");
    }
    assert_eq!(exchange(connect(), &format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n")).0, 401);
    assert_eq!(exchange(connect(), "GET /metrics HTTP/1.0\r\n\r\n").0, 400, "no Host");
    // A head without an end is cut off by its size, and a connection serves one request.
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "a".repeat(20_000));
    assert!([0, 400, 431].contains(&exchange(connect(), &long).0));
    let twice =
        format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n").repeat(2);
    let (_, text) = exchange(connect(), &twice);
    assert_eq!(text.matches("HTTP/1.1 200").count(), 1);
    // The kernel refuses a connection where nothing listens: no other address was bound.
    assert!(TcpStream::connect(("127.0.0.2", exporter.port())).is_err());
}

#[test]
fn connections_that_send_nothing_do_not_keep_others_away_for_ever() {
    let (daemon, dir) = (TestDaemon::start(STEADY_MACHINE), tempfile::tempdir().unwrap());
    let _exporter = Exporter::start(&daemon, dir.path(), &[]);
    let idle: Vec<UnixStream> =
        (0..80).map(|_| UnixStream::connect(dir.path().join("wattspan-metrics.sock")).unwrap()).collect();
    assert!(scrape_text(dir.path()).contains("wattspan_build_info"));
    drop(idle);
}

#[test]
fn a_unix_socket_is_opened_by_its_owner_and_its_group() {
    let (daemon, dir) = (TestDaemon::start(STEADY_MACHINE), tempfile::tempdir().unwrap());
    let path = dir.path().join("metrics.sock");
    let listen = ["--listen", path.to_str().unwrap(), "--listen-group"];
    let exporter = Exporter::start(&daemon, dir.path(), &[listen[0], listen[1], listen[2], "root"]);
    let found = std::fs::metadata(&path).unwrap();
    if rustix::process::geteuid().is_root() {
        assert_eq!((found.mode() & 0o777, found.gid()), (0o660, 0));
    }
    drop(exporter);
    let refused =
        Exporter::command(&daemon, dir.path(), &[listen[0], listen[1], listen[2], "no-such-group"]).output();
    assert_eq!(refused.unwrap().status.code(), Some(2));
    let token = token_file(dir.path(), 0o600);
    let refused = Exporter::command(&daemon, dir.path(), &["--token-file", token.to_str().unwrap()]).output();
    assert_eq!(refused.unwrap().status.code(), Some(2), "a token on a Unix socket would protect nothing");
}

#[test]
fn models_beyond_64_are_other_and_a_list_admits_only_its_own() {
    let (daemon, dir) = (TestDaemon::start(STEADY_MACHINE), tempfile::tempdir().unwrap());
    let mut client = daemon.client();
    for at in 0..70 {
        open_and_close(&mut client, &format!("s{at}"), &format!("model-{at}"), json!({ "user": "alice" }));
    }
    let exporter = Exporter::start(&daemon, dir.path(), &[]);
    let series = next_snapshot(dir.path());
    let models = series.keys().filter(|name| name.starts_with("wattspan_failed_spans_total{")).count();
    assert_eq!(models, 65);
    assert_eq!(sum(&series, "wattspan_spans_total", "model=\"_other\""), 6.0);
    assert_eq!(sum(&series, "wattspan_spans_total", ""), 70.0);
    assert!(!scrape_text(dir.path()).contains("alice"));
    drop(exporter);
    let other = tempfile::tempdir().unwrap();
    let _exporter = Exporter::start(&daemon, other.path(), &["--model", "model-3", "--model", "absent"]);
    let series = next_snapshot(other.path());
    assert_eq!(sum(&series, "wattspan_spans_total", "model=\"model-3\""), 1.0);
    assert_eq!(sum(&series, "wattspan_spans_total", "model=\"_other\""), 69.0);
}

#[test]
fn another_database_adds_to_the_totals_and_is_counted() {
    let (mut daemon, dir) = (TestDaemon::start(STEADY_MACHINE), tempfile::tempdir().unwrap());
    let exporter = Exporter::start(&daemon, dir.path(), &[]);
    open_and_close(&mut daemon.client(), "a", "llama", json!({}));
    let mut watch = CounterWatch::default();
    watch.check(&next_snapshot(dir.path()));
    drop(exporter);
    daemon.kill();
    std::fs::remove_dir_all(daemon.state()).unwrap();
    daemon.restart();
    open_and_close(&mut daemon.client(), "b", "llama", json!({}));
    let _exporter = Exporter::start(&daemon, dir.path(), &[]);
    let series = next_snapshot(dir.path());
    watch.check(&series);
    assert_eq!(sum(&series, "wattspan_spans_total", "model=\"llama\""), 2.0);
    assert_eq!(series["wattspan_exporter_new_databases_total"], 1.0);
}

#[test]
fn a_state_that_cannot_be_written_or_read_changes_nothing_that_is_shown() {
    let (daemon, dir) = (TestDaemon::start(STEADY_MACHINE), tempfile::tempdir().unwrap());
    let state = dir.path().join("state.json");
    let refuses = |damaged: &str| {
        std::fs::write(&state, damaged).unwrap();
        let refused = Exporter::command(&daemon, dir.path(), &[]).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("cannot read") && said.contains("restore it"), "{said}");
        assert_eq!(std::fs::read_to_string(&state).unwrap(), damaged, "it is kept for a repair");
        std::fs::remove_file(&state).unwrap();
    };
    refuses("{\"after\": 1");
    let exporter = Exporter::start(&daemon, dir.path(), &[]);
    next_snapshot(dir.path());
    drop(exporter);
    let intact = std::fs::read_to_string(&state).unwrap();
    refuses(&intact.replace("\"new_databases\":0", "\"new_databases\":1"));
    let _exporter = Exporter::start(&daemon, dir.path(), &[]);
    let shown = next_snapshot(dir.path());
    // A directory where the file's temporary name would be: no write succeeds, as on a full disk.
    let blocked = dir.path().join(".state.json.tmp");
    wait_until("it writes no file there", || std::fs::create_dir(&blocked).is_ok());
    let mut before = scrape(dir.path());
    wait_until("nothing changes any more", || {
        std::thread::sleep(2 * GRID);
        let last = std::mem::replace(&mut before, scrape(dir.path()));
        last == before
    });
    assert!(snapshot_s(&before) >= snapshot_s(&shown));
    std::fs::remove_dir(&blocked).unwrap();
    next_snapshot(dir.path());
}
