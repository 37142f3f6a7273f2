//! Exports and recordings after a power cut at any operation on their disk: the next run continues, and each account is in
//! the files once, and reaches a collector at least once; the totals for Prometheus never fall below what was shown.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::faulty_fs::FaultyDisk;
use crate::faulty_fs::power_cut::{cuts_and_seed, for_each_cut};
use crate::ground_truth::TestRng;
use crate::http_stub::StubServer;
use crate::programs;
use crate::support::{STEADY_MACHINE, TestClient, TestDaemon, sleep_ms, wait_until};

fn export_command(daemon: &TestDaemon, format: &str, to: &Path) -> Command {
    let mut command = Command::new(programs::wattspan());
    command.arg("--socket").arg(daemon.socket()).args(["export", format, "--host", "node-7", "--to"]).arg(to);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn run_spans(client: &mut TestClient, prefix: &str, count: usize) {
    for at in 0..count {
        let attributes = json!({ "gen_ai.request.model": "llama", "gen_ai.usage.output_tokens": "10" });
        client.call("OpenSpan", json!({ "span": format!("{prefix}{at}"), "attributes": attributes }));
        client.close_and_settle(&format!("{prefix}{at}"));
    }
}

/// The files below a directory whose names do not begin with a dot or an underscore.
fn data_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        match name.to_string_lossy().starts_with(['.', '_']) {
            true => {}
            false if path.is_dir() => found.extend(data_files(&path)),
            false => found.push(path),
        }
    }
    found
}

/// The spans of a file in the order of its rows.
fn spans_of(file: &Path) -> Vec<String> {
    let unreadable = |reason: &dyn std::fmt::Display| -> ! { panic!("{}: {reason}", file.display()) };
    let span = |row: &Value| row["span"].as_str().unwrap_or_else(|| unreadable(row)).to_owned();
    let text = || std::fs::read_to_string(file).unwrap_or_else(|error| unreadable(&error));
    match file.extension().and_then(|ending| ending.to_str()) {
        Some("jsonl") => {
            let row = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| unreadable(&error));
            text().lines().map(|line| span(&row(line))).collect()
        }
        Some("csv") => {
            let text = text();
            let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
            let names = lines.next().unwrap_or_else(|| unreadable(&"no names of columns"));
            // The columns before it have no commas.
            let at = names.iter().position(|name| name == "span").unwrap();
            lines.map(|row| row.get(at).unwrap_or_else(|| unreadable(&"a row is cut off")).clone()).collect()
        }
        Some("parquet") => {
            let mut spans = Vec::new();
            wattspan_columnar::for_each_value(file, |row| spans.push(span(&row)))
                .unwrap_or_else(|error| unreadable(&error));
            spans
        }
        other => unreadable(&format!("another format: {other:?}")),
    }
}

/// How often each span is in the files of an export.
fn exported_spans(directory: &Path) -> BTreeMap<String, usize> {
    let mut spans = BTreeMap::new();
    for span in data_files(directory).iter().flat_map(|file| spans_of(file)) {
        *spans.entry(span).or_default() += 1;
    }
    spans
}

/// Exports in a format, with kills, and again after cuts of the power at any operation.
fn cut_exports(format: &str) {
    let Some(disk) = FaultyDisk::mount() else { return };
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (mut client, to) = (daemon.client(), disk.path().join("out"));
    let (cuts, seed) = cuts_and_seed(15);
    let mut random = TestRng(seed);
    // What a run that reported success has exported, by the number of operations before that.
    let mut claimed = vec![(0, 0)];
    let mut count = 0;
    for round in 0..6 {
        run_spans(&mut client, &format!("r{round}-"), 5);
        count += 5;
        // Some are killed at a random moment: a later run finds their names, which may not be on disk.
        if round % 2 == 0 {
            let mut killed = export_command(&daemon, format, &to).spawn().unwrap();
            wait_until("it works", || {
                killed.try_wait().unwrap().is_some() || disk.operations() > claimed.last().unwrap().0
            });
            sleep_ms(random.range(0, 8));
            killed.kill().unwrap();
            killed.wait().unwrap();
        }
        assert!(export_command(&daemon, format, &to).status().unwrap().success());
        claimed.push((disk.operations(), count));
    }
    let record = disk.take_record();
    for_each_cut(&record, 0, cuts, seed, |operations, left, what| {
        let left = left.join("out");
        let before: usize = exported_spans(&left).values().sum();
        let claim = claimed.iter().rev().find(|(from, _)| *from <= operations).map_or(0, |(_, count)| *count);
        assert!(before >= claim, "{what}: {before} of {claim} accounts are in the files");
        assert!(export_command(&daemon, format, &left).status().unwrap().success(), "{what}");
        let spans = exported_spans(&left);
        assert!(spans.values().all(|times| *times == 1), "{what}: {spans:?}");
        assert_eq!(spans.len(), count, "{what}: {spans:?}");
    });
}

#[test]
fn after_a_power_cut_an_export_continues_and_has_each_account_once() {
    cut_exports("jsonl");
}

#[test]
fn after_a_power_cut_a_csv_export_continues_and_has_each_account_once() {
    cut_exports("csv");
}

#[test]
fn after_a_power_cut_a_parquet_export_continues_and_has_each_account_once() {
    cut_exports("parquet");
}

/// A collector that accepts everything. For the number of each account, the operations on the disk before it came first.
struct Collector {
    server: StubServer,
    accounts: Arc<Mutex<BTreeMap<u64, usize>>>,
}

impl Collector {
    fn start(operations: impl Fn() -> usize + Send + Sync + 'static) -> Self {
        let accounts: Arc<Mutex<BTreeMap<u64, usize>>> = Arc::default();
        let got = Arc::clone(&accounts);
        let server = StubServer::new(move |mut connection| {
            while let Some(request) = connection.read_request() {
                let (body, mut numbers) = (serde_json::from_slice(&request.body).unwrap(), BTreeSet::new());
                account_numbers(&body, &mut numbers);
                let at = operations();
                for number in numbers {
                    got.lock().unwrap().entry(number).or_insert(at);
                }
                let answer =
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
                if !connection.send(answer) {
                    return;
                }
            }
        });
        Self { server, accounts }
    }

    fn export(&self, daemon: &TestDaemon, state: &Path) -> Child {
        let mut command = Command::new(programs::wattspan());
        command.arg("--socket").arg(daemon.socket()).args([
            "export",
            "otlp",
            "--only",
            "traces",
            "--endpoint",
        ]);
        command.arg(format!("http://{}", self.server.address)).arg("--state").arg(state);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn accounts(&self) -> BTreeMap<u64, usize> {
        self.accounts.lock().unwrap().clone()
    }
}

/// Adds the numbers of the accounts in a request.
fn account_numbers(value: &Value, numbers: &mut BTreeSet<u64>) {
    if value["key"] == "wattspan.account.number" {
        numbers.insert(value["value"]["intValue"].as_str().unwrap().parse().unwrap());
    }
    match value {
        Value::Array(values) => values.iter().for_each(|value| account_numbers(value, numbers)),
        Value::Object(fields) => fields.values().for_each(|value| account_numbers(value, numbers)),
        _ => {}
    }
}

#[test]
fn after_a_power_cut_each_account_has_reached_the_collector_or_is_sent() {
    let Some(disk) = FaultyDisk::mount() else { return };
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (mut client, state) = (daemon.client(), disk.path().join("otlp.json"));
    let (cuts, seed) = cuts_and_seed(15);
    let (mut random, collector) = (TestRng(seed), Collector::start(disk.operation_counter()));
    let mut count = 0;
    for round in 0..6 {
        run_spans(&mut client, &format!("r{round}-"), 5);
        count += 5;
        let mut exporter = collector.export(&daemon, &state);
        if round % 2 == 0 {
            sleep_ms(random.range(10, 60));
            let _ = exporter.kill();
            exporter.wait().unwrap();
        } else {
            assert!(exporter.wait().unwrap().success());
            assert_eq!(collector.accounts().len(), count);
        }
    }
    let (record, delivered, mut resumed) = (disk.take_record(), collector.accounts(), 0);
    for_each_cut(&record, 0, cuts, seed, |operations, left, what| {
        let second = Collector::start(|| 0);
        let ended = second.export(&daemon, &left.join("otlp.json")).wait().unwrap();
        assert!(ended.success(), "{what}");
        let sent = second.accounts();
        resumed += usize::from(sent.len() < count);
        // An account whose delivery is in the state came before the last operation.
        let lost: Vec<&u64> = delivered
            .iter()
            .filter(|(number, at)| **at >= operations && !sent.contains_key(number))
            .map(|(number, _)| number)
            .collect();
        assert!(lost.is_empty(), "{what}: neither delivered before nor sent: {lost:?}");
    });
    assert!(resumed > 0, "no state was ever used");
}

/// A running exporter, which is killed when it is dropped, and the socket of its metrics.
struct Exporter(Child, PathBuf);

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Exporter {
    fn start(daemon: &TestDaemon, state: &Path, socket: PathBuf) -> Self {
        let mut command = Command::new(programs::wattspan());
        command.arg("--socket").arg(daemon.socket()).args(["export", "prometheus", "--every", "1s"]);
        command.arg("--listen").arg(format!("unix:{}", socket.display())).arg("--state").arg(state);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self(child, socket)
    }

    /// The number of spans in the totals that are shown.
    fn shown_spans(&self) -> Option<u64> {
        let mut stream = UnixStream::connect(&self.1).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let row = text.lines().find(|line| line.starts_with("wattspan_spans_total{"))?;
        row.rsplit(' ').next()?.parse::<f64>().ok().map(|count| count as u64)
    }
}

#[test]
fn after_a_power_cut_no_total_for_prometheus_is_below_what_was_shown() {
    let Some(disk) = FaultyDisk::mount() else { return };
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let dir = tempfile::tempdir().unwrap();
    let (mut client, state) = (daemon.client(), disk.path().join("totals.json"));
    let mut shown = vec![(0, 0)];
    for round in 0..2 {
        let exporter = Exporter::start(&daemon, &state, dir.path().join("metrics.sock"));
        for batch in 0..2 {
            run_spans(&mut client, &format!("r{round}-{batch}-"), 4);
            wait_until("new accounts are shown", || {
                exporter.shown_spans() >= Some(shown.last().unwrap().1 + 1)
            });
            let spans = exporter.shown_spans().unwrap();
            shown.push((disk.operations(), spans));
        }
    }
    let (cuts, seed) = cuts_and_seed(60);
    let record = disk.take_record();
    for_each_cut(&record, 0, cuts, seed, |operations, left, what| {
        let at_least =
            shown.iter().rev().find(|(from, _)| *from <= operations).map_or(0, |(_, count)| *count);
        let text = std::fs::read(left.join("totals.json")).unwrap_or_default();
        if text.is_empty() && at_least == 0 {
            return;
        }
        let stored: Value = serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{what}: {error}"));
        // All accounts are of one model, and each has a number.
        assert!(
            stored["after"].as_u64().unwrap() >= at_least,
            "{what}: {at_least} were shown, stored {stored}"
        );
    });
}

#[test]
fn a_recording_that_was_said_to_be_complete_survives_a_power_cut() {
    let Some(disk) = FaultyDisk::mount() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (machine, trace) = (dir.path().join("machine.toml"), disk.path().join("trace.jsonl"));
    std::fs::write(&machine, STEADY_MACHINE).unwrap();
    std::fs::write(dir.path().join("wattspan.toml"), "bus = false\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_wattspand"));
    command.arg("--config").arg(dir.path().join("wattspan.toml")).arg("--replay").arg(&machine);
    command.arg("--socket").arg(dir.path().join("run/wattspan.sock")).arg("--record").arg(&trace);
    let mut daemon = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("it records", || std::fs::metadata(&trace).is_ok_and(|file| file.len() > 100_000));
    rustix::process::kill_process(rustix::process::Pid::from_child(&daemon), rustix::process::Signal::TERM)
        .unwrap();
    let mut log = String::new();
    daemon.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(daemon.wait().unwrap().success(), "{log}");
    let samples: usize =
        log.split("recorded ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
    let whole = std::fs::read_to_string(&trace).unwrap();
    assert_eq!(whole.lines().count(), samples + 1, "with the head");
    let record = disk.take_record();
    let (cuts, seed) = cuts_and_seed(10);
    for_each_cut(&record, record.len(), cuts, seed, |_, left, what| {
        let found = std::fs::read_to_string(left.join("trace.jsonl")).unwrap_or_default();
        assert!(found == whole, "{what}: {} of {} bytes are there", found.len(), whole.len());
    });
}
