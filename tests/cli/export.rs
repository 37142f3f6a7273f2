//! `wattspan export` against a real daemon: each stored account once in the files, over kills of both, read with Python.

use crate::programs;
use crate::support::{STEADY_MACHINE, TestClient, TestDaemon, run_spans_until_it_ends, wait_until};

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

fn export_command(daemon: &TestDaemon, format: &str, to: &Path) -> Command {
    export_command_on("node-7", daemon, format, to)
}

fn export_command_on(host: &str, daemon: &TestDaemon, format: &str, to: &Path) -> Command {
    let mut command = Command::new(programs::wattspan());
    command.arg("--socket").arg(daemon.socket()).args(["export", format, "--host", host, "--to"]).arg(to);
    command.stdin(Stdio::null());
    command
}

fn export(daemon: &TestDaemon, format: &str, to: &Path) -> Output {
    let output = export_command(daemon, format, to).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn run_spans(client: &mut TestClient, prefix: &str, count: usize) {
    for at in 0..count {
        let attributes = json!({ "gen_ai.request.model": "llama", "prompt": "secret, \"quoted\"" });
        client.call("OpenSpan", json!({ "span": format!("{prefix}{at}"), "attributes": attributes }));
        client.close_and_settle(&format!("{prefix}{at}"));
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

/// What a Python program prints as JSON, with the files of an export as arguments.
fn python(program: &str, files: &[PathBuf]) -> Value {
    let output = Command::new("python3").args(["-c", program]).args(files).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

const READ_JSONL: &str = "import json, sys
print(json.dumps([json.loads(line) for path in sys.argv[1:] for line in open(path, encoding='utf-8')]))";

const READ_CSV: &str = "import csv, json, sys
print(json.dumps([row for path in sys.argv[1:] for row in csv.DictReader(open(path, encoding='utf-8', newline=''))]))";

/// The files of the partitions, in the order of their names.
fn files(to: &Path) -> Vec<PathBuf> {
    let entries = |path: &Path| {
        let mut all: Vec<PathBuf> =
            std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        // The state begins with a dot, and the balance is beside the partitions.
        all.retain(|path| !path.file_name().unwrap().to_str().unwrap().starts_with(['.', '_']));
        all.sort();
        all
    };
    let hosts: Vec<PathBuf> = entries(to).iter().flat_map(|date| entries(date)).collect();
    hosts.iter().flat_map(|host| entries(host)).collect()
}

/// The numbers of the accounts in files of JSON lines.
fn numbers(files: &[PathBuf]) -> Vec<u64> {
    let rows = python(READ_JSONL, files);
    rows.as_array().unwrap().iter().map(|row| row["number"].as_u64().unwrap()).collect()
}

fn database(client: &mut TestClient) -> String {
    client.call("GetInfo", json!({}))["keeping"]["database"].as_str().unwrap().to_owned()
}

#[test]
fn an_export_writes_what_is_new_to_partitions_that_only_the_group_can_read() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (mut client, dir) = (daemon.client(), tempfile::tempdir().unwrap());
    let to = dir.path().join("deep/out");
    run_spans(&mut client, "a", 3);
    let said = String::from_utf8(export(&daemon, "jsonl", &to).stdout).unwrap();
    assert!(said.starts_with("exported 3 accounts in 1 files"), "{said}");
    run_spans(&mut client, "b", 2);
    export(&daemon, "jsonl", &to);
    export(&daemon, "jsonl", &to);
    let id = database(&mut client);
    let written = files(&to);
    let names: Vec<&str> = written.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, [format!("{id}-1-3.jsonl"), format!("{id}-4-5.jsonl")], "nothing is written twice");
    let partition = written[0].parent().unwrap();
    assert!(partition.ends_with("host=node-7"), "{}", partition.display());
    let date = partition.parent().unwrap().file_name().unwrap().to_str().unwrap();
    assert!(date.len() == 15 && date.starts_with("date=20"), "{date}");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&written[0]), mode(partition)), (0o640, 0o750));
    let rows = python(READ_JSONL, &written);
    let expected = stored(&mut client);
    for (row, (number, account)) in rows.as_array().unwrap().iter().zip(&expected) {
        assert_eq!(row["number"], *number);
        for field in ["span", "uid", "state", "share_uj", "error_uj", "window_uj", "opened_unix_ns"] {
            assert_eq!(row[field], account[field], "{field}");
        }
        assert_eq!(row["domains"].as_array().unwrap().len(), account["domains"].as_array().unwrap().len());
        assert_eq!(row["attributes"], json!({ "gen_ai.request.model": "llama" }), "others are not allowed");
    }
    assert_eq!(rows.as_array().unwrap().len(), 5);
}

#[test]
fn the_balance_of_a_day_is_replaced_and_its_attributed_part_is_that_of_the_accounts() {
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    let dir = tempfile::tempdir().unwrap();
    let read = |dates: &Path, reader| python(reader, &files(&dates.join("_balance")));
    for (prefix, format, reader) in
        [("a", "jsonl", READ_JSONL), ("b", "jsonl", READ_JSONL), ("c", "csv", READ_CSV)]
    {
        run_spans(&mut daemon.client(), prefix, 3);
        let to = dir.path().join(format);
        export(&daemon, format, &to);
        let rows = read(&to, reader);
        let mut attributed: BTreeMap<String, u64> = BTreeMap::new();
        for account in stored(&mut daemon.client()).values() {
            for share in account["domains"].as_array().unwrap() {
                let name = share["domain"].as_str().unwrap().to_owned();
                *attributed.entry(name).or_default() += share["share_uj"].as_u64().unwrap();
            }
        }
        let uj = |row: &Value, name: &str| -> u64 { row[name].to_string().replace('"', "").parse().unwrap() };
        let found: BTreeMap<String, u64> = rows
            .as_array()
            .unwrap()
            .iter()
            .map(|row| {
                assert_eq!(uj(row, "measured_uj"), uj(row, "attributed_uj") + uj(row, "unattributed_uj"));
                (row["domain"].as_str().unwrap().to_owned(), uj(row, "attributed_uj"))
            })
            .collect();
        assert_eq!(found, attributed, "one row of each domain");
        assert_eq!(files(&to.join("_balance")).len(), 1);
    }
    // Another life has a file of its own, whose energies count from 0.
    daemon.kill();
    daemon.restart();
    export(&daemon, "jsonl", &dir.path().join("jsonl"));
    assert_eq!(files(&dir.path().join("jsonl/_balance")).len(), 2);
    export(&daemon, "trace", &dir.path().join("trace"));
    assert!(!dir.path().join("trace/_balance").exists());
}

/// A process that is killed on drop.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_export_with_an_interval_goes_on_when_the_reader_of_its_output_is_gone() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (mut client, dir) = (daemon.client(), tempfile::tempdir().unwrap());
    let said = dir.path().join("said");
    for (prefix, reads_errors) in [("a", true), ("b", false)] {
        let to = dir.path().join(prefix);
        std::fs::create_dir(&to).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = export_command(&daemon, "jsonl", &to);
        if reads_errors {
            command.stderr(std::fs::File::create(&said).unwrap());
        } else {
            command.stderr(writer.try_clone().unwrap());
        }
        run_spans(&mut client, &format!("{prefix}first"), 1);
        let mut exporter = Killed(command.args(["--every", "1s"]).stdout(writer).spawn().unwrap());
        wait_until("the first account is exported", || files(&to).len() == 1);
        run_spans(&mut client, &format!("{prefix}second"), 1);
        wait_until("the second account is exported", || files(&to).len() == 2);
        assert!(exporter.0.try_wait().unwrap().is_none(), "it runs until it is interrupted");
    }
    let said = std::fs::read_to_string(said).unwrap();
    assert!(said.contains("standard output: Broken pipe"), "{said}");
}

#[test]
fn a_relative_directory_is_made_where_the_export_runs() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let dir = tempfile::tempdir().unwrap();
    run_spans(&mut daemon.client(), "a", 1);
    for to in ["out", "new/nested/out"] {
        let mut command = export_command(&daemon, "jsonl", Path::new(to));
        let output = command.current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{to}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(files(&dir.path().join(to)).len(), 1, "{to}");
    }
}

#[test]
fn csv_and_trace_hold_the_accounts_for_python() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (mut client, dir) = (daemon.client(), tempfile::tempdir().unwrap());
    client.call(
        "OpenSpan",
        json!({ "span": "s", "name": "a \"name\", with a comma", "attributes": {"k": "v,\"w\""} }),
    );
    client.call("MarkPhase", json!({ "span": "s", "phase": "decode" }));
    let account = client.close_and_settle("s");
    let to = dir.path().join("csv");
    let output = export_command(&daemon, "csv", &to).args(["--attribute", "k"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let row = python(READ_CSV, &files(&to))[0].take();
    assert_eq!((&row["name"], &row["k"]), (&account["name"], &json!("v,\"w\"")));
    assert_eq!(row["share_uj"], account["share_uj"].to_string());
    let domains: Value = serde_json::from_str(row["domains"].as_str().unwrap()).unwrap();
    assert_eq!(domains[0]["share_uj"], account["domains"][0]["share_uj"]);
    let to = dir.path().join("trace");
    export(&daemon, "trace", &to);
    let trace = python("import json, sys\nprint(json.dumps(json.load(open(sys.argv[1]))))", &files(&to));
    let events = trace["traceEvents"].as_array().unwrap();
    let of_kind = |kind: &str| events.iter().filter(|event| event["ph"] == kind).collect::<Vec<_>>();
    assert_eq!((of_kind("X").len(), of_kind("C").len()), (2, 2), "a span, a phase, and two steps of power");
    assert_eq!(of_kind("X")[0]["args"]["share_uj"], account["share_uj"]);
    assert_eq!(of_kind("X")[0]["ts"], account["opened_unix_ns"].as_u64().unwrap() / 1000);
}

#[test]
fn a_range_in_the_state_is_repeated_unchanged_and_a_complete_file_is_kept() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (mut client, dir) = (daemon.client(), tempfile::tempdir().unwrap());
    run_spans(&mut client, "a", 6);
    let id = database(&mut client);
    let state = dir.path().join(".wattspan-export-jsonl.json");
    // As a kill between the state and the file leaves it.
    let range = json!({ "database": id, "after": 1, "range": { "first": 2, "last": 4 } });
    std::fs::write(&state, range.to_string()).unwrap();
    export(&daemon, "jsonl", dir.path());
    let written = files(dir.path());
    let names: Vec<&str> = written.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, [format!("{id}-2-4.jsonl"), format!("{id}-5-6.jsonl")]);
    assert_eq!(numbers(&written), [2, 3, 4, 5, 6]);
    // As a kill between the file and the state leaves it: the file may have accounts that were deleted since.
    std::fs::write(&written[0], "complete\n").unwrap();
    std::fs::write(&state, range.to_string()).unwrap();
    std::fs::remove_file(&written[1]).unwrap();
    export(&daemon, "jsonl", dir.path());
    assert_eq!(std::fs::read_to_string(&written[0]).unwrap(), "complete\n");
    assert_eq!(numbers(&files(dir.path())[1..]), [5, 6]);
}

#[test]
fn a_repeated_range_stays_with_its_host_when_the_machine_has_another_name() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (mut client, dir) = (daemon.client(), tempfile::tempdir().unwrap());
    run_spans(&mut client, "a", 6);
    let range = json!({ "first": 1, "last": 4, "host": "node-7" });
    let state = json!({ "database": database(&mut client), "after": 0, "range": range }).to_string();
    let state_file = dir.path().join(".wattspan-export-jsonl.json");
    std::fs::write(&state_file, &state).unwrap();
    export(&daemon, "jsonl", dir.path());
    // As a kill between the file of the range and the state leaves it.
    std::fs::write(&state_file, &state).unwrap();
    std::fs::remove_file(&files(dir.path())[1]).unwrap();
    assert!(export_command_on("b", &daemon, "jsonl", dir.path()).output().unwrap().status.success());
    let mut found = numbers(&files(dir.path()));
    found.sort_unstable();
    assert_eq!(found, [1, 2, 3, 4, 5, 6]);
    let hosts = files(dir.path());
    let hosts: Vec<&Path> = hosts.iter().map(|path| path.parent().unwrap()).collect();
    assert!(hosts[0].ends_with("host=b") && hosts[1].ends_with("host=node-7"), "{hosts:?}");
}

#[test]
fn a_damaged_state_is_refused_and_no_account_is_exported_twice() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (mut client, dir) = (daemon.client(), tempfile::tempdir().unwrap());
    run_spans(&mut client, "a", 3);
    export(&daemon, "jsonl", dir.path());
    run_spans(&mut client, "b", 1);
    let state = dir.path().join(".wattspan-export-jsonl.json");
    let intact = std::fs::read_to_string(&state).unwrap();
    let id = database(&mut client);
    let digit = if id.ends_with('0') { "1" } else { "0" };
    let other_id = format!("{}{digit}", &id[..id.len() - 1]);
    for damaged in [
        intact.replace(&id, &other_id),
        intact.replace("\"after\":3", "\"after\":2"),
        intact[..intact.len() - 2].to_owned(),
        String::new(),
    ] {
        assert_ne!(damaged, intact);
        std::fs::write(&state, &damaged).unwrap();
        let output = export_command(&daemon, "jsonl", dir.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{damaged}: {said}");
        assert!(said.contains(state.to_str().unwrap()) && said.contains("restore it"), "{said}");
        assert_eq!(std::fs::read_to_string(&state).unwrap(), damaged, "it is kept for a repair");
        assert_eq!(numbers(&files(dir.path())), [1, 2, 3]);
    }
    std::fs::write(&state, &intact).unwrap();
    export(&daemon, "jsonl", dir.path());
    assert_eq!(numbers(&files(dir.path())), [1, 2, 3, 4]);
    let mut otlp = Command::new(programs::wattspan());
    otlp.args(["export", "otlp", "--endpoint", "http://127.0.0.1:1", "--state"]).arg(&state);
    std::fs::write(&state, "{\"after\":3,\"checksum\":1}").unwrap();
    let output = otlp.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("checksum") && said.contains("restore it"), "{said}");
}

#[test]
fn a_state_whose_range_does_not_follow_its_accounts_is_refused() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (mut client, dir) = (daemon.client(), tempfile::tempdir().unwrap());
    run_spans(&mut client, "a", 4);
    export(&daemon, "jsonl", dir.path());
    let exported = files(dir.path());
    let state = dir.path().join(".wattspan-export-jsonl.json");
    let id = database(&mut client);
    // Without a checksum, as an earlier version wrote it.
    for (first, last) in [(2, 2), (2, 4), (4, 3), (5, 6), (1, u64::MAX)] {
        let range =
            json!({ "database": id, "after": 3, "range": { "first": first, "last": last } }).to_string();
        std::fs::write(&state, &range).unwrap();
        let output = export_command(&daemon, "jsonl", dir.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{range}: {said}");
        let reason = format!("its range {first} to {last} does not follow the account 3");
        assert!(said.contains(&reason) && said.contains("restore it"), "{said}");
        assert!(said.contains(state.to_str().unwrap()), "{said}");
        assert_eq!(std::fs::read_to_string(&state).unwrap(), range, "it is kept for a repair");
        assert_eq!(files(dir.path()), exported);
    }
}

#[test]
fn another_database_is_exported_from_its_first_account() {
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    let dir = tempfile::tempdir().unwrap();
    run_spans(&mut daemon.client(), "a", 3);
    export(&daemon, "jsonl", dir.path());
    daemon.kill();
    std::fs::remove_dir_all(daemon.state()).unwrap();
    daemon.restart();
    run_spans(&mut daemon.client(), "b", 2);
    let output = export(&daemon, "jsonl", dir.path());
    assert!(String::from_utf8_lossy(&output.stderr).contains("another database"));
    let rows = python(READ_JSONL, &files(dir.path()));
    let mut spans: Vec<&str> =
        rows.as_array().unwrap().iter().map(|row| row["span"].as_str().unwrap()).collect();
    spans.sort_unstable();
    assert_eq!(spans, ["a0", "a1", "a2", "b0", "b1"]);
}

/// Between the batches of the load, so that a few accounts stand in each export.
const PAUSE: Duration = Duration::from_millis(5);

/// Three kills of the exporter and one of the daemon in each round: `WATTSPAN_ROUNDS`, 5 by default.
#[test]
fn each_stored_account_stands_once_in_the_files_over_kills_of_exporter_and_daemon() {
    let rounds = std::env::var("WATTSPAN_ROUNDS").map_or(5, |rounds| rounds.parse().unwrap());
    // Built before the load begins, which would fill the store meanwhile.
    programs::wattspan();
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    let dir = tempfile::tempdir().unwrap();
    let mut random = std::process::id();
    let mut next_ms = |most: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Duration::from_millis(u64::from((random >> 8) % most))
    };
    for round in 0..rounds {
        let answered = AtomicUsize::new(0);
        let [one, two] = [0; 2].map(|_| daemon.client());
        std::thread::scope(|scope| {
            let answered = &answered;
            scope.spawn(move || run_spans_until_it_ends(one, &format!("{round}a"), PAUSE, answered));
            scope.spawn(move || run_spans_until_it_ends(two, &format!("{round}b"), PAUSE, answered));
            for kill in 0..3 {
                let before = answered.load(Ordering::Relaxed);
                wait_until("some are answered", || answered.load(Ordering::Relaxed) >= before + 8);
                let mut exporter = export_command(&daemon, "jsonl", dir.path())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                // Half of the kills come at any time after the start, the others while the first files are written.
                if kill % 2 == 0 {
                    let state = dir.path().join(".wattspan-export-jsonl.json");
                    let text = || std::fs::read_to_string(&state).unwrap_or_default();
                    let first = text();
                    wait_until("it writes", || text() != first || exporter.try_wait().unwrap().is_some());
                    std::thread::sleep(next_ms(4));
                } else {
                    std::thread::sleep(next_ms(120));
                }
                exporter.kill().unwrap();
                exporter.wait().unwrap();
            }
            rustix::process::kill_process(daemon.pid(), rustix::process::Signal::KILL).unwrap();
        });
        daemon.kill();
        daemon.restart();
    }
    export(&daemon, "jsonl", dir.path());
    let rows = python(READ_JSONL, &files(dir.path()));
    let mut found: Vec<(u64, &str)> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["number"].as_u64().unwrap(), row["span"].as_str().unwrap()))
        .collect();
    found.sort_unstable();
    let stored = stored(&mut daemon.client());
    let expected: Vec<(u64, &str)> =
        stored.iter().map(|(number, account)| (*number, account["span"].as_str().unwrap())).collect();
    assert!(expected.len() as u64 >= 24 * rounds, "{} accounts", expected.len());
    assert_eq!(found, expected);
}

#[test]
fn the_exported_energy_is_the_kept_part_of_the_balance_and_the_total_of_the_sums() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (mut client, dir) = (daemon.client(), tempfile::tempdir().unwrap());
    run_spans(&mut client, "a", 5);
    let mut gone = daemon.client();
    gone.open("gone");
    run_spans(&mut client, "b", 2);
    drop(gone);
    client.open("cancelled");
    client.call("CancelSpan", json!({ "span": "cancelled" }));
    wait_until("all are stored", || stored(&mut client).len() == 8);
    let balance = client.call("GetBalance", json!({}))["balance"].take();
    export(&daemon, "jsonl", &dir.path().join("jsonl"));
    export(&daemon, "csv", &dir.path().join("csv"));
    let (jsonl, csv) = (
        python(READ_JSONL, &files(&dir.path().join("jsonl"))),
        python(READ_CSV, &files(&dir.path().join("csv"))),
    );
    for domain in balance.as_array().unwrap() {
        let shares = jsonl.as_array().unwrap().iter().flat_map(|row| row["domains"].as_array().unwrap());
        let of_domain = shares.filter(|share| share["domain"] == domain["domain"]);
        let exported_uj: u64 = of_domain.map(|share| share["share_uj"].as_u64().unwrap()).sum();
        let part = |name: &str| domain[name].as_u64().unwrap();
        assert_eq!(exported_uj, part("settled_uj") + part("abandoned_uj"), "{domain}");
        assert_eq!(part("attributed_uj"), exported_uj + part("not_kept_uj") + part("open_uj"), "{domain}");
    }
    let output = Command::new(programs::wattspan())
        .arg("--socket")
        .arg(daemon.socket())
        .args(["--json", "spans", "--sum", "--by", "name,user,day"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sums: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (of_row, of_sum) in
        [("share_uj", "energy_uj"), ("error_uj", "error_uj"), ("duration_ns", "duration_ns")]
    {
        let rows = csv.as_array().unwrap().iter();
        let exported: u64 = rows.map(|row| row[of_row].as_str().unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(sums["total"][of_sum], exported, "{of_sum}");
    }
    assert_eq!(sums["total"]["accounts"], 8);
}
