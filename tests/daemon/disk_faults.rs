//! The store on a full, read-only, broken or hanging disk: spans are answered all the same, the fault is reported, and
//! when the disk recovers everything continues without intervention.
//!
//! The disks are real file systems, mounted for the test, which needs root or FUSE; the tests skip without them.

use crate::support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::faulty_fs::{FaultyDisk, WriteBehavior};
use crate::store::{close_state, keeping, names};
use crate::support::{STEADY_MACHINE, TestClient, TestDaemon, sleep_ms, wait_until};
use serde_json::{Value, json};

fn start_daemon_on(place: &Path) -> TestDaemon {
    TestDaemon::start_with_config(STEADY_MACHINE, &format!("state_dir = {place:?}\n"))
}

/// A file system mounted for the state directory; `None`, with the reason printed, where none can be mounted.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn of(place: &'a Path, options: &str) -> Option<Self> {
        std::fs::create_dir_all(place).unwrap();
        std::fs::set_permissions(place, PermissionsExt::from_mode(0o700)).unwrap();
        let options = format!("mode=0700,{options}");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "wattspan-test"]).arg(place).output();
        match mount {
            Ok(output) if output.status.success() => Some(Mounted(place)),
            other => {
                support::skip::skip("the right to mount a tmpfs", format!("{other:?}"));
                None
            }
        }
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        assert!(Command::new("mount").args(["-o", &options]).arg(self.0).status().unwrap().success());
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_delays_no_answer_and_pending_accounts_are_kept_once_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("state");
    let Some(disk) = Mounted::of(&place, "size=1m") else { return };
    let mut daemon = start_daemon_on(&place);
    let mut client = daemon.client();
    let mut kept = Vec::new();
    let mut full = None;
    for at in 0..5000 {
        let account = close_state(&mut client, &format!("s{at}"));
        if account["durable"] == false {
            full = Some(account);
            break;
        }
        kept.push(account);
    }
    let full = full.expect("a megabyte is full some time");
    assert!(full["share_uj"].is_u64());
    let health = keeping(&daemon);
    assert_eq!(health["durable"], false);
    assert!(health["reason"].as_str().unwrap().contains("full"), "{health}");
    for at in 0..50 {
        assert_eq!(close_state(&mut client, &format!("beside{at}"))["durable"], false);
    }
    let found = client.call("GetSpan", json!({ "span": "beside7" }))["account"].take();
    assert_eq!((&found["state"], &found["durable"]), (&json!("settled"), &json!(false)));
    assert!(!client.call("ListSpans", json!({}))["accounts"].as_array().unwrap().is_empty(), "from memory");
    assert_eq!(daemon.log().matches("cannot be written").count(), 1, "{}", daemon.log());
    disk.remount("size=16m");
    wait_until("it can be written again", || keeping(&daemon)["durable"] == true);
    assert_eq!(close_state(&mut client, "after")["durable"], true);
    let found = client.call("GetSpan", json!({ "span": "beside7" }))["account"].take();
    assert_eq!(found["durable"], true, "what waited is on disk now");
    assert_eq!(daemon.log().matches("can be written again").count(), 1, "{}", daemon.log());
    daemon.kill();
    daemon.restart();
    let mut client = daemon.client();
    for account in kept.iter().chain([&found]) {
        assert_eq!(&client.call("GetSpan", json!({ "span": account["span"] }))["account"], account);
    }
}

#[test]
fn a_read_only_disk_is_reported_and_used_again_once_writable() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("state");
    let Some(disk) = Mounted::of(&place, "size=4m") else { return };
    disk.remount("ro");
    let daemon = start_daemon_on(&place);
    let mut client = daemon.client();
    wait_until("it is noticed", || keeping(&daemon)["reason"].is_string());
    let account = close_state(&mut client, "a");
    assert_eq!(account["durable"], false);
    disk.remount("rw");
    wait_until("it is written", || keeping(&daemon)["durable"] == true);
    assert_eq!(client.call("GetSpan", json!({ "span": "a" }))["account"]["durable"], true);
}

#[test]
fn after_an_io_error_the_file_is_opened_anew_and_nothing_that_was_answered_is_lost() {
    let Some(disk) = FaultyDisk::mount() else { return };
    let mut daemon = start_daemon_on(disk.path());
    let mut client = daemon.client();
    let before = close_state(&mut client, "before");
    assert_eq!(before["durable"], true, "{}", daemon.log());
    for round in 0..3 {
        disk.set(WriteBehavior::Fail);
        let during = close_state(&mut client, &format!("during{round}"));
        assert_eq!(during["durable"], false);
        assert!(during["share_uj"].is_u64());
        let health = keeping(&daemon);
        assert!(health["reason"].as_str().unwrap().contains("I/O"), "{health}");
        disk.set(WriteBehavior::Succeed);
        wait_until("it can be written again", || keeping(&daemon)["durable"] == true);
        assert_eq!(close_state(&mut client, &format!("after{round}"))["durable"], true);
    }
    assert_eq!(daemon.log().matches("cannot be written").count(), 3, "{}", daemon.log());
    assert_eq!(daemon.log().matches("can be written again").count(), 3, "{}", daemon.log());
    daemon.kill();
    daemon.restart();
    let mut client = daemon.client();
    assert_eq!(client.call("GetSpan", json!({ "span": "before" }))["account"], before);
    for span in ["during0", "after0", "during2", "after2"] {
        assert_eq!(client.call("GetSpan", json!({ "span": span }))["account"]["durable"], true);
    }
}

#[test]
fn an_account_whose_sync_failed_is_stored_once() {
    let Some(disk) = FaultyDisk::mount() else { return };
    let config = format!("state_dir = {:?}\n[ledger]\nsync = \"full\"\n", disk.path());
    let mut daemon = TestDaemon::start_with_config(STEADY_MACHINE, &config);
    let mut client = daemon.client();
    assert_eq!(close_state(&mut client, "before")["durable"], true, "{}", daemon.log());
    // All of the commit is written to the log, whose sync fails. So do the syncs of the attempts that follow.
    disk.set(WriteBehavior::FailSync);
    assert_eq!(close_state(&mut client, "during")["durable"], false);
    assert_eq!(close_state(&mut client, "next")["durable"], false);
    sleep_ms(2500);
    assert_eq!(keeping(&daemon)["durable"], false, "a sync is due");
    disk.set(WriteBehavior::Succeed);
    wait_until("it can be written again", || keeping(&daemon)["durable"] == true);
    assert_eq!(close_state(&mut client, "after")["durable"], true);
    daemon.kill();
    daemon.restart();
    let listed = daemon.client().call("ListSpans", json!({ "limit": 100 }))["accounts"].take();
    let spans = listed.as_array().unwrap().iter().map(|account| account["span"].as_str().unwrap());
    assert_eq!(spans.collect::<Vec<_>>(), ["before", "during", "next", "after"]);
    assert!(!daemon.log().contains("incomplete"), "{}", daemon.log());
}

#[test]
fn a_span_that_is_open_while_the_disk_fails_has_one_account_in_the_end() {
    let Some(disk) = FaultyDisk::mount() else { return };
    let mut daemon = start_daemon_on(disk.path());
    let mut client = daemon.client();
    assert_eq!(close_state(&mut client, "before")["durable"], true, "{}", daemon.log());
    client.open("long");
    // Long enough for the open span to be written to disk.
    sleep_ms(2500);
    disk.set(WriteBehavior::Fail);
    assert_eq!(close_state(&mut client, "during")["durable"], false);
    disk.set(WriteBehavior::Succeed);
    wait_until("it can be written again", || keeping(&daemon)["durable"] == true);
    let account = client.close_and_settle("long");
    assert_eq!(account["durable"], true);
    daemon.kill();
    daemon.restart();
    let mut client = daemon.client();
    let mut listed = client.call("ListSpans", json!({ "limit": 100 }))["accounts"].take();
    listed.as_array_mut().unwrap().retain(|listed| listed["span"] == "long");
    assert_eq!(listed, json!([account]));
    assert!(!daemon.log().contains("stopped unexpectedly while"), "{}", daemon.log());
}

#[test]
fn a_span_for_which_there_was_no_room_gets_no_energy_after_its_close() {
    let Some(disk) = FaultyDisk::mount() else { return };
    let configuration = format!("state_dir = {:?}\n[ledger]\nwaiting_megabytes = 1\n", disk.path());
    let mut daemon = TestDaemon::start_with_config(STEADY_MACHINE, &configuration);
    let mut client = daemon.client();
    assert_eq!(close_state(&mut client, "before")["durable"], true, "{}", daemon.log());
    client.open("long");
    client.open("other");
    // Long enough for the open spans to be written to disk.
    sleep_ms(2500);
    disk.set(WriteBehavior::Fail);
    for at in 0.. {
        assert_eq!(close_state(&mut client, &format!("fills{at}"))["durable"], false);
        if keeping(&daemon)["not_kept"].as_u64() > Some(0) {
            break;
        }
    }
    let account = client.close_and_settle("long");
    assert_eq!(account["durable"], false);
    disk.set(WriteBehavior::Succeed);
    wait_until("it can be written again", || keeping(&daemon)["durable"] == true);
    // Long enough for the clocks of the span that is still open to be written.
    sleep_ms(2500);
    daemon.kill();
    daemon.restart();
    wait_until("the open spans are recovered", || daemon.log().contains("stopped unexpectedly"));
    assert!(daemon.log().contains("while 1 spans were open"), "{}", daemon.log());
    let (error, _) = daemon.client().call_error("GetSpan", json!({ "span": "long" }));
    assert_eq!(error, "NoSuchSpan", "its account was answered as not kept: {account}");
}

#[test]
fn a_list_that_goes_on_while_the_disk_fails_is_refused_and_not_ended() {
    let Some(disk) = FaultyDisk::mount() else { return };
    let daemon = start_daemon_on(disk.path());
    let mut client = daemon.client();
    for span in ["first", "second", "third"] {
        assert_eq!(close_state(&mut client, span)["durable"], true, "{}", daemon.log());
    }
    let page = client.call("ListSpans", json!({ "limit": 1 }));
    let next = json!({ "limit": 1, "before": page["before"] });
    assert!(page["before"].is_u64(), "{page}");
    disk.set(WriteBehavior::Fail);
    assert_eq!(close_state(&mut client, "during")["durable"], false);
    assert_eq!(client.call_error("ListSpans", next.clone()).0, "StoreUnavailable");
    assert_eq!(
        client.call("ListSpans", json!({ "limit": 1 }))["accounts"][0]["span"],
        "during",
        "from memory"
    );
    disk.set(WriteBehavior::Succeed);
    wait_until("it can be written again", || keeping(&daemon)["durable"] == true);
    assert_eq!(client.call("ListSpans", next)["accounts"][0]["span"], "second");
}

#[test]
fn a_list_without_an_account_in_memory_is_refused_while_the_disk_fails() {
    let Some(disk) = FaultyDisk::mount() else { return };
    let mut daemon = start_daemon_on(disk.path());
    let mut client = daemon.client();
    assert_eq!(close_state(&mut client, "before")["durable"], true, "{}", daemon.log());
    daemon.kill();
    daemon.restart();
    let mut client = daemon.client();
    disk.set(WriteBehavior::Fail);
    assert_eq!(close_state(&mut client, "during")["durable"], false);
    let list = |client: &mut TestClient, filter: Value| client.call("ListSpans", filter)["accounts"].take();
    assert_eq!(names(list(&mut client, json!({})).as_array().unwrap()), ["during"], "from memory");
    for filter in [json!({ "state": "abandoned" }), json!({ "since_unix_ns": i64::MAX })] {
        assert_eq!(client.call_error("ListSpans", filter).0, "StoreUnavailable");
    }
    disk.set(WriteBehavior::Succeed);
    wait_until("it can be written again", || keeping(&daemon)["durable"] == true);
    assert_eq!(names(list(&mut client, json!({})).as_array().unwrap()), ["before", "during"]);
    assert_eq!(list(&mut client, json!({ "state": "abandoned" })), json!([]), "the disk has none");
}

#[test]
fn a_hanging_disk_delays_no_answer_for_long() {
    let Some(disk) = FaultyDisk::mount() else { return };
    let daemon = start_daemon_on(disk.path());
    let mut client = daemon.client();
    assert_eq!(close_state(&mut client, "before")["durable"], true, "{}", daemon.log());
    disk.set(WriteBehavior::Hang);
    client.open("other");
    let waits = close_state(&mut client, "waits");
    assert_eq!(waits["durable"], false);
    assert_eq!(close_state(&mut client, "next")["durable"], false);
    assert_eq!(keeping(&daemon)["durable"], false);
    assert_eq!(client.call("GetSpan", json!({ "span": "waits" }))["account"]["durable"], false);
    assert_eq!(client.call("GetSpan", json!({ "span": "other" }))["account"]["state"], "open");
    disk.set(WriteBehavior::Succeed);
    wait_until("it responds again", || keeping(&daemon)["durable"] == true);
    assert_eq!(client.call("GetSpan", json!({ "span": "waits" }))["account"]["durable"], true);
    assert_eq!(close_state(&mut client, "after")["durable"], true);
    assert_eq!(daemon.log().matches("does not respond").count(), 1, "{}", daemon.log());
    assert_eq!(daemon.log().matches("responds again").count(), 1, "{}", daemon.log());
}

#[test]
fn a_hanging_disk_delays_no_query_and_is_reported() {
    let Some(disk) = FaultyDisk::mount() else { return };
    let daemon = start_daemon_on(disk.path());
    let mut client = daemon.client();
    let before = close_state(&mut client, "before");
    assert_eq!(before["durable"], true, "{}", daemon.log());
    disk.set(WriteBehavior::Hang);
    client.open("unawaited");
    client.call("CloseSpan", json!({ "span": "unawaited" }));
    // No client waits for this write, but every later disk operation queues after it.
    wait_until("it is handed to the disk", || keeping(&daemon)["waiting"] == 1);
    let mut other = daemon.client();
    other.send("GetSpan", json!({ "span": "unknown" }), &[]);
    let listed = client.call("ListSpans", json!({}))["accounts"].take();
    assert!(listed.as_array().unwrap().contains(&before), "from memory: {listed}");
    assert_eq!(support::error_of(other.receive().unwrap()).0, "StoreUnavailable", "it may be on disk");
    let health = keeping(&daemon);
    assert_eq!(health["durable"], false);
    assert!(health["reason"].as_str().unwrap().contains("does not respond"), "{health}");
    disk.set(WriteBehavior::Succeed);
    wait_until("it responds again", || keeping(&daemon)["durable"] == true);
    let listed = client.call("ListSpans", json!({}))["accounts"].take();
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(daemon.log().matches("does not respond").count(), 1, "{}", daemon.log());
    assert_eq!(daemon.log().matches("responds again").count(), 1, "{}", daemon.log());
}

#[test]
fn sums_on_a_hanging_disk_are_answered_and_run_again_once_it_responds() {
    let Some(disk) = FaultyDisk::mount() else { return };
    let daemon = start_daemon_on(disk.path());
    let mut client = daemon.client();
    assert_eq!(close_state(&mut client, "before")["durable"], true, "{}", daemon.log());
    disk.set(WriteBehavior::Hang);
    // Nothing but the sums waits for the disk.
    for call in ["the first", "one of the same user meanwhile"] {
        let (error, parameters) = client.call_error("SumSpans", json!({}));
        assert_eq!(error, "StoreUnavailable", "{call}");
        assert!(parameters["reason"].as_str().unwrap().contains("does not respond"), "{call}: {parameters}");
    }
    assert!(client.call("GetInfo", json!({}))["version"].is_string(), "other calls are answered");
    disk.set(WriteBehavior::Succeed);
    wait_until("sums run again", || {
        client.call_raw("SumSpans", json!({}))["parameters"]["total"]["accounts"] == 1
    });
}
