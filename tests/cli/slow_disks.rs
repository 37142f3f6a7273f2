//! An export whose disk hangs: the daemon closes the connection of a client that does not read, and the export continues over a
//! new one.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::faulty_fs::{FaultyDisk, WriteBehavior};
use crate::programs;
use crate::support::{STEADY_MACHINE, TestDaemon, encode_call, wait_until};

fn export_command(daemon: &TestDaemon, to: &Path) -> Command {
    let mut command = Command::new(programs::wattspan());
    command
        .arg("--socket")
        .arg(daemon.socket())
        .args(["export", "jsonl", "--host", "node-7", "--to"])
        .arg(to);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Opens and closes spans, and waits until `all` accounts are stored.
fn store_accounts(daemon: &TestDaemon, count: usize, all: usize) {
    let mut client = daemon.client();
    for batch in 0..count.div_ceil(500) {
        let spans = batch * 500..count.min(batch * 500 + 500);
        let calls: Vec<u8> = spans
            .flat_map(|at| {
                let span = json!({ "span": format!("{all}-{at}") });
                ["OpenSpan", "CloseSpan"].map(|method| encode_call(method, span.clone(), &["oneway"]))
            })
            .flatten()
            .collect();
        assert!(client.send_raw(&calls));
        // The daemon has read them.
        client.call("GetBalance", json!({}));
    }
    wait_until("all are stored", || client.call("SumSpans", json!({}))["total"]["accounts"] == all);
}

/// The number of connections to the daemon.
fn connections(daemon: &TestDaemon) -> usize {
    let directory = daemon.socket().parent().unwrap().to_str().unwrap().to_owned();
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let of_daemon = sockets.lines().filter(|line| line.contains(&directory));
    // A socket that listens has state 01.
    of_daemon.filter(|line| line.split_whitespace().nth(5) != Some("01")).count()
}

/// The numbers of the accounts in the files of an export.
fn exported_numbers(directory: &Path) -> Vec<u64> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        if name.to_string_lossy().starts_with(['.', '_']) {
            continue;
        }
        if path.is_dir() {
            numbers.extend(exported_numbers(&path));
            continue;
        }
        let text = std::fs::read_to_string(path).unwrap();
        numbers.extend(text.lines().map(|line| {
            let account: Value = serde_json::from_str(line).unwrap();
            account["number"].as_u64().unwrap()
        }));
    }
    numbers.sort_unstable();
    numbers
}

#[test]
fn an_export_whose_disk_hangs_until_its_connection_is_closed_continues_and_has_each_account_once() {
    let Some(disk) = FaultyDisk::mount() else { return };
    // Its parent, which an export syncs at its start, is on another disk.
    let to = disk.path().to_owned();
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[limits]\nstall_s = 0.5\n");
    // The first export makes the directories and the lock, so that the next one writes nothing before its first file.
    store_accounts(&daemon, 4, 4);
    assert!(export_command(&daemon, &to).status().unwrap().success());
    // While the file of this short range is written, the next one is read until the pieces that wait are too many.
    const ALL: usize = 16_000;
    store_accounts(&daemon, ALL - 4, ALL);
    let state = to.join(".wattspan-export-jsonl.json");
    let mut range: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    range["range"] = json!({ "first": 5, "last": 8 });
    // The file is that of another state now.
    range.as_object_mut().unwrap().remove("checksum");
    std::fs::write(&state, range.to_string()).unwrap();
    disk.set(WriteBehavior::Hang);
    let exporter = export_command(&daemon, &to).spawn().unwrap();
    // It is connected, and has read the first range.
    wait_until("the disk hangs", || disk.is_hanging());
    wait_until("the daemon closes the connection", || connections(&daemon) == 0);
    disk.set(WriteBehavior::Succeed);
    let output = exporter.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("the daemon closed the connection").count(), 1, "{said}");
    assert_eq!(exported_numbers(&to), (1..=ALL as u64).collect::<Vec<_>>());
}
