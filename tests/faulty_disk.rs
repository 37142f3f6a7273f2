//! The ledger on disk where the disk is full, read-only, broken or silent: spans are answered all the same, it is said
//! what is wrong, and when the disk is well again everything goes on by itself.
//!
//! The disks are real ones, mounted for the test, which needs root or FUSE; elsewhere the tests say so and stop.

#![cfg(target_os = "linux")]

mod faulty;
mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use faulty::{Disk, Mood};
use serde_json::{Value, json};
use support::{STEADY, TestClient, TestDaemon, pass, until};

fn keeping(daemon: &TestDaemon) -> Value {
    daemon.client().call("GetInfo", json!({}))["keeping"].take()
}

/// Closes a span; how it was answered.
fn billed(client: &mut TestClient, span: &str) -> Value {
    client.call("OpenSpan", json!({ "span": span, "attributes": { "filling": "x".repeat(900) } }));
    client.settle(span)
}

fn on(place: &Path) -> TestDaemon {
    TestDaemon::with(STEADY, &format!("state_dir = {place:?}\n"))
}

/// A file system of its own for the state directory; `None`, with the reason printed, where there can be none.
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

    fn again(&self, options: &str) {
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
fn a_full_disk_holds_up_no_answer_and_what_waited_is_kept_once_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("state");
    let Some(disk) = Mounted::of(&place, "size=1m") else { return };
    let mut daemon = on(&place);
    let mut client = daemon.client();
    let mut kept = Vec::new();
    let mut full = None;
    for at in 0..5000 {
        let account = billed(&mut client, &format!("s{at}"));
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
        assert_eq!(billed(&mut client, &format!("beside{at}"))["durable"], false);
    }
    let found = client.call("GetSpan", json!({ "span": "beside7" }))["account"].take();
    assert_eq!((&found["state"], &found["durable"]), (&json!("settled"), &json!(false)));
    assert!(!client.call("ListSpans", json!({}))["accounts"].as_array().unwrap().is_empty(), "from memory");
    assert_eq!(daemon.log().matches("cannot be written").count(), 1, "{}", daemon.log());
    disk.again("size=16m");
    until("it is written again", || keeping(&daemon)["durable"] == true);
    assert_eq!(billed(&mut client, "after")["durable"], true);
    let found = client.call("GetSpan", json!({ "span": "beside7" }))["account"].take();
    assert_eq!(found["durable"], true, "what waited is on disk now");
    assert_eq!(daemon.log().matches("is written again").count(), 1, "{}", daemon.log());
    daemon.kill();
    daemon.restart();
    let mut client = daemon.client();
    for account in kept.iter().chain([&found]) {
        assert_eq!(&client.call("GetSpan", json!({ "span": account["span"] }))["account"], account);
    }
}

#[test]
fn a_read_only_disk_is_said_so_and_used_again_when_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("state");
    let Some(disk) = Mounted::of(&place, "size=4m") else { return };
    disk.again("ro");
    let daemon = on(&place);
    let mut client = daemon.client();
    until("it is noticed", || keeping(&daemon)["reason"].is_string());
    let account = billed(&mut client, "a");
    assert_eq!(account["durable"], false);
    disk.again("rw");
    until("it is written", || keeping(&daemon)["durable"] == true);
    assert_eq!(client.call("GetSpan", json!({ "span": "a" }))["account"]["durable"], true);
}

#[test]
fn after_an_io_error_the_file_is_opened_anew_and_nothing_that_was_answered_is_lost() {
    let Some(disk) = Disk::mount() else { return };
    let mut daemon = on(disk.path());
    let mut client = daemon.client();
    let before = billed(&mut client, "before");
    assert_eq!(before["durable"], true, "{}", daemon.log());
    for round in 0..3 {
        disk.set(Mood::Failing);
        let during = billed(&mut client, &format!("during{round}"));
        assert_eq!(during["durable"], false);
        assert!(during["share_uj"].is_u64());
        let health = keeping(&daemon);
        assert!(health["reason"].as_str().unwrap().contains("I/O"), "{health}");
        disk.set(Mood::Sound);
        until("it is written again", || keeping(&daemon)["durable"] == true);
        assert_eq!(billed(&mut client, &format!("after{round}"))["durable"], true);
    }
    assert_eq!(daemon.log().matches("cannot be written").count(), 3, "{}", daemon.log());
    assert_eq!(daemon.log().matches("is written again").count(), 3, "{}", daemon.log());
    daemon.kill();
    daemon.restart();
    let mut client = daemon.client();
    assert_eq!(client.call("GetSpan", json!({ "span": "before" }))["account"], before);
    for span in ["during0", "after0", "during2", "after2"] {
        assert_eq!(client.call("GetSpan", json!({ "span": span }))["account"]["durable"], true);
    }
}

#[test]
fn a_span_that_is_open_while_the_disk_fails_has_one_account_in_the_end() {
    let Some(disk) = Disk::mount() else { return };
    let mut daemon = on(disk.path());
    let mut client = daemon.client();
    assert_eq!(billed(&mut client, "before")["durable"], true, "{}", daemon.log());
    client.open("long");
    // It is in the journal by then.
    pass(2500);
    disk.set(Mood::Failing);
    assert_eq!(billed(&mut client, "during")["durable"], false);
    disk.set(Mood::Sound);
    until("it is written again", || keeping(&daemon)["durable"] == true);
    let account = client.settle("long");
    assert_eq!(account["durable"], true);
    daemon.kill();
    daemon.restart();
    let mut client = daemon.client();
    let mut listed = client.call("ListSpans", json!({ "limit": 100 }))["accounts"].take();
    listed.as_array_mut().unwrap().retain(|listed| listed["span"] == "long");
    assert_eq!(listed, json!([account]));
    assert!(!daemon.log().contains("went away while"), "{}", daemon.log());
}

#[test]
fn a_disk_that_does_not_answer_holds_up_no_answer_for_long() {
    let Some(disk) = Disk::mount() else { return };
    let daemon = on(disk.path());
    let mut client = daemon.client();
    assert_eq!(billed(&mut client, "before")["durable"], true, "{}", daemon.log());
    disk.set(Mood::Hanging);
    client.open("other");
    let waits = billed(&mut client, "waits");
    assert_eq!(waits["durable"], false);
    assert_eq!(billed(&mut client, "next")["durable"], false);
    assert_eq!(keeping(&daemon)["durable"], false);
    assert_eq!(client.call("GetSpan", json!({ "span": "waits" }))["account"]["durable"], false);
    assert_eq!(client.call("GetSpan", json!({ "span": "other" }))["account"]["state"], "open");
    disk.set(Mood::Sound);
    until("it answers again", || keeping(&daemon)["durable"] == true);
    assert_eq!(client.call("GetSpan", json!({ "span": "waits" }))["account"]["durable"], true);
    assert_eq!(billed(&mut client, "after")["durable"], true);
    assert_eq!(daemon.log().matches("does not answer").count(), 1, "{}", daemon.log());
    assert_eq!(daemon.log().matches("answers again").count(), 1, "{}", daemon.log());
}

#[test]
fn a_disk_that_does_not_answer_holds_up_no_question_either_and_says_so() {
    let Some(disk) = Disk::mount() else { return };
    let daemon = on(disk.path());
    let mut client = daemon.client();
    let before = billed(&mut client, "before");
    assert_eq!(before["durable"], true, "{}", daemon.log());
    disk.set(Mood::Hanging);
    client.open("unawaited");
    client.call("CloseSpan", json!({ "span": "unawaited" }));
    // Nobody waits for it; but whatever the disk is asked from now on comes behind it.
    until("it is handed to the disk", || keeping(&daemon)["waiting"] == 1);
    let mut other = daemon.client();
    other.send("GetSpan", json!({ "span": "nobody's" }), &[]);
    let listed = client.call("ListSpans", json!({}))["accounts"].take();
    assert!(listed.as_array().unwrap().contains(&before), "from memory: {listed}");
    assert_eq!(support::refusal(other.receive().unwrap()).0, "StoreUnavailable", "it may be on disk");
    let health = keeping(&daemon);
    assert_eq!(health["durable"], false);
    assert!(health["reason"].as_str().unwrap().contains("does not answer"), "{health}");
    disk.set(Mood::Sound);
    until("it answers again", || keeping(&daemon)["durable"] == true);
    let listed = client.call("ListSpans", json!({}))["accounts"].take();
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(daemon.log().matches("does not answer").count(), 1, "{}", daemon.log());
    assert_eq!(daemon.log().matches("answers again").count(), 1, "{}", daemon.log());
}
