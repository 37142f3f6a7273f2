//! Per-process attribution in a daemon on a simulated machine, with real processes.

use crate::support;

use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{STEADY_MACHINE, TestClient, TestDaemon, domain_row, error_of, get_u64, sleep_ms};
use serde_json::{Value, json};

/// A child process that is killed and waited for on drop.
struct ChildGuard(Child);

impl ChildGuard {
    fn shell(script: &str) -> Self {
        let quiet = || Stdio::null();
        let child = Command::new("sh").args(["-c", script]).stdin(quiet()).stdout(quiet()).spawn().unwrap();
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        self.end();
    }
}

fn now_ns(client: &mut TestClient) -> u64 {
    get_u64(&client.call("GetInfo", json!({})), "now_ns")
}

/// Opens a span for each process at one instant.
fn open_all(client: &mut TestClient, pids: &[u32]) {
    let at_ns = now_ns(client);
    for pid in pids {
        let span = pid.to_string();
        client.call("OpenSpan", json!({ "span": span, "process": pid, "at_ns": at_ns }));
    }
}

/// Closes the spans at one instant.
fn close_all(client: &mut TestClient, pids: &[u32]) -> Vec<Value> {
    let at_ns = now_ns(client);
    for pid in pids {
        let close = json!({ "span": pid.to_string(), "at_ns": at_ns, "wait_settled": true });
        client.send("CloseSpan", close, &[]);
    }
    pids.iter().map(|_| client.receive().unwrap()["parameters"]["account"].take()).collect()
}

#[test]
fn a_busy_process_gets_more_than_a_sleeping_one_and_both_at_most_the_total() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    let burner = ChildGuard::shell("while :; do :; done");
    let sleeper = ChildGuard::shell("exec sleep 1000");
    let pids = [burner.pid(), sleeper.pid()];
    open_all(&mut client, &pids);
    sleep_ms(1500);
    let accounts = close_all(&mut client, &pids);
    for domain in ["package-0", "core-0", "dram-0"] {
        let rows: Vec<&Value> =
            accounts.iter().map(|account| domain_row(&account["domains"], domain)).collect();
        let shares: Vec<u64> = rows.iter().map(|row| get_u64(row, "share_uj")).collect();
        let parts: Vec<u64> = rows.iter().map(|row| get_u64(row, "process_uj")).collect();
        assert!(parts[0] > 10 * parts[1], "{domain}: {parts:?} of {shares:?}");
        assert!(parts[0] + parts[1] <= shares[0].min(shares[1]), "{domain}: {parts:?} of {shares:?}");
    }
    for (account, pid) in accounts.iter().zip(pids) {
        assert_eq!(account["process"], pid);
        // The total is package plus memory; the cores are part of the package.
        let sum =
            ["package-0", "dram-0"].map(|name| get_u64(domain_row(&account["domains"], name), "process_uj"));
        assert_eq!(get_u64(account, "process_uj"), sum.iter().sum::<u64>());
        assert_eq!(account.get("process_reason"), None);
    }
}

#[test]
fn children_that_start_and_exit_between_two_samples_are_not_lost() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    // Nearly all CPU time belongs to children of a few milliseconds.
    let parent =
        ChildGuard::shell("while :; do sh -c 'i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done'; done");
    let sleeper = ChildGuard::shell("exec sleep 1000");
    let pids = [parent.pid(), sleeper.pid()];
    open_all(&mut client, &pids);
    sleep_ms(1500);
    let accounts = close_all(&mut client, &pids);
    let parts: Vec<u64> = accounts.iter().map(|account| get_u64(account, "process_uj")).collect();
    assert!(parts[0] > 10 * parts[1] && parts[0] > 0, "{parts:?}");
}

#[test]
fn by_default_the_share_is_that_of_the_connecting_process() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    client.open("mine");
    let burner = ChildGuard::shell("while :; do :; done");
    sleep_ms(500);
    let account = client.close_and_settle("mine");
    assert_eq!(account["process"], std::process::id());
    // The burner is a child of this process.
    assert!(get_u64(&account, "process_uj") > 0, "{account}");
    assert!(get_u64(&account, "process_uj") <= get_u64(&account, "share_uj"));
    drop(burner);
}

#[test]
fn a_process_that_dies_has_used_what_it_had_used() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    let mut burner = ChildGuard::shell("while :; do :; done");
    let sleeper = ChildGuard::shell("exec sleep 1000");
    let pids = [burner.pid(), sleeper.pid()];
    open_all(&mut client, &pids);
    sleep_ms(600);
    let midway = client.call("GetSpan", json!({ "span": pids[0].to_string() }))["account"].take();
    burner.end();
    sleep_ms(600);
    let account = close_all(&mut client, &pids).remove(0);
    let (then, in_the_end) = (get_u64(&midway, "process_uj"), get_u64(&account, "process_uj"));
    assert!(then > 0 && in_the_end >= then / 2, "{then} µJ, and in the end {in_the_end} µJ");
    // A span for the exited process is refused.
    let (name, parameters) = client.call_error("OpenSpan", json!({ "process": burner.pid() }));
    assert_eq!(
        (name.as_str(), parameters["field"].as_str()),
        ("InvalidValue", Some("process")),
        "{parameters}"
    );
    assert!(parameters["reason"].as_str().unwrap().contains("no process"), "{parameters}");
}

#[test]
fn numbers_that_name_no_process_are_refused_and_nothing_is_opened() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    for process in [json!(0), json!(-1), json!(4_194_305), json!(1_i64 << 40)] {
        let (name, parameters) = client.call_error("OpenSpan", json!({ "span": "a", "process": process }));
        assert_eq!(
            (name.as_str(), &parameters["field"]),
            ("InvalidValue", &json!("process")),
            "{parameters}"
        );
    }
    let both = json!({ "span": "a", "process": std::process::id(), "cgroup": "/a" });
    assert_eq!(client.call_error("OpenSpan", both).0, "InvalidValue");
    assert_eq!(client.call_error("CloseSpan", json!({ "span": "a" })).0, "NoSuchSpan");
}

/// A fake control group hierarchy with one group, `/a`.
struct CgroupTree(tempfile::TempDir);

impl CgroupTree {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("fs/cgroup");
        std::fs::create_dir_all(top.join("a")).unwrap();
        std::fs::write(top.join("cgroup.controllers"), "cpu\n").unwrap();
        std::fs::write(top.join("cpu.stat"), stat(0)).unwrap();
        std::fs::write(top.join("a/cpu.stat"), stat(0)).unwrap();
        Self(root)
    }

    /// Sets the CPU time of the root and of `/a`, in microseconds.
    fn set(&self, top: u64, a: u64) {
        for (file, value) in [("a/cpu.stat", a), ("cpu.stat", top)] {
            let file = std::fs::File::options().write(true).open(self.0.path().join("fs/cgroup").join(file));
            file.unwrap().write_all_at(stat(value).as_bytes(), 0).unwrap();
        }
    }

    fn configuration(&self) -> String {
        format!("[source]\nsysfs_root = {:?}\n", self.0.path())
    }
}

/// Of constant length, so that it can be overwritten while it is read.
fn stat(usec: u64) -> String {
    format!("usage_usec {usec:012}\nuser_usec {usec:012}\nsystem_usec {:012}\n", 0)
}

#[test]
fn a_control_group_gets_its_share_and_escaping_paths_are_refused() {
    let hierarchy = CgroupTree::new();
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, &hierarchy.configuration());
    let mut client = daemon.client();
    for path in ["/../../../etc", "/a/../../x", "a", "/nowhere", "/./a", ""] {
        let (name, parameters) = client.call_error("OpenSpan", json!({ "cgroup": path }));
        assert_eq!(
            (name.as_str(), &parameters["field"]),
            ("InvalidValue", &json!("cgroup")),
            "{path}: {parameters}"
        );
    }
    client.call("OpenSpan", json!({ "span": "group", "cgroup": "/a" }));
    let (begun, mut written, mut silent) = (Instant::now(), Instant::now(), Duration::ZERO);
    for turn in 1..=60 {
        // A quarter of the CPU time. A sample that sees no use since the one before gives the group no energy, which this
        // process causes where it stands still.
        hierarchy.set(turn * 40_000, turn * 10_000);
        silent += Some(written.elapsed()).filter(|gap| *gap > Duration::from_millis(50)).unwrap_or_default();
        written = Instant::now();
        sleep_ms(10);
    }
    let account = client.close_and_settle("group");
    silent += Some(written.elapsed()).filter(|gap| *gap > Duration::from_millis(50)).unwrap_or_default();
    let least = 0.25 * (1.0 - silent.as_secs_f64() / begun.elapsed().as_secs_f64());
    let part = get_u64(&account, "process_uj") as f64 / get_u64(&account, "share_uj") as f64;
    assert_eq!((&account["cgroup"], account.get("process")), (&json!("/a"), None));
    assert!((least - 0.02..0.27).contains(&part), "{part}, {silent:?} without use");
}

#[test]
fn where_processes_are_hidden_the_share_is_absent_with_the_reason() {
    let empty = tempfile::tempdir().unwrap();
    let daemon =
        TestDaemon::start_with_config(STEADY_MACHINE, &format!("[source]\nproc_root = {:?}\n", empty.path()));
    let mut client = daemon.client();
    client.open("mine");
    sleep_ms(50);
    let account = client.close_and_settle("mine");
    assert_eq!((account.get("process_uj"), account.get("process")), (None, None));
    assert!(account["process_reason"].as_str().unwrap().contains("hidepid"), "{account}");
    assert!(get_u64(&account, "share_uj") > 0);
}

#[test]
fn another_users_process_is_refused_without_telemetry_access() {
    if !support::skip::can_change_users() {
        return;
    }
    // Groups that every Linux has replace those of wattspan.
    let daemon = TestDaemon::start_with_config(
        STEADY_MACHINE,
        "[access]\nspan_group = \"daemon\"\ntelemetry_group = \"bin\"\n",
    );
    let program = daemon.socket().with_file_name("client");
    // Copied by a separate process: another test's child could inherit our write descriptor, and the copy could not be
    // run.
    let own = std::env::current_exe().unwrap();
    assert!(std::process::Command::new("cp").arg(own).arg(&program).status().unwrap().success());
    let theirs = ChildGuard::shell("exec sleep 1000");
    for (groups, refused) in [("daemon", true), ("daemon,bin", false)] {
        let output = Command::new("setpriv")
            .args(["--reuid=12001", "--regid=12001", &format!("--groups={groups}")])
            .arg(&program)
            .args(["--exact", &support::test_name(module_path!(), "a_client_of_another_user")])
            .args(["--ignored", "--nocapture"])
            .env("SOCKET", daemon.socket())
            .env("PROCESS", theirs.pid().to_string())
            .output()
            .unwrap();
        let parameters = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{parameters}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(parameters.contains("ANSWER refused"), refused, "{groups}: {parameters}");
    }
}

#[test]
#[ignore = "a helper that another test starts in a process of another user"]
fn a_client_of_another_user() {
    let socket = std::env::var_os("SOCKET").expect("the variable that the outer test sets");
    let process: u32 = std::env::var("PROCESS").unwrap().parse().unwrap();
    let mut client = TestClient::from_stream(UnixStream::connect(socket).unwrap());
    // A user's own process is always allowed.
    client.call("OpenSpan", json!({ "process": std::process::id() }));
    let answer = client.call_raw("OpenSpan", json!({ "process": process }));
    if answer.get("error").is_some() {
        let (name, parameters) = error_of(answer);
        assert_eq!((name.as_str(), parameters), ("AccessDenied", json!({ "needs": "telemetry" })));
        println!("ANSWER refused");
    }
}

#[test]
fn a_client_that_is_not_the_load_has_no_process_share_where_it_asks_for_none() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    client.call("OpenSpan", json!({ "span": "a", "process_share": false }));
    sleep_ms(150);
    let account = client.close_and_settle("a");
    for field in ["process", "cgroup", "process_uj", "process_reason"] {
        assert_eq!(account.get(field), None, "{field}: {account}");
    }
    assert!(account["domains"].as_array().unwrap().iter().all(|share| share.get("process_uj").is_none()));
    client.call("OpenSpan", json!({ "span": "b", "process_share": true }));
    assert_eq!(client.close_and_settle("b")["process"], std::process::id());
    let both = json!({ "process": std::process::id(), "process_share": false });
    let (name, parameters) = client.call_error("OpenSpan", both);
    assert_eq!(
        (name.as_str(), &parameters["field"]),
        ("InvalidValue", &json!("process_share")),
        "{parameters}"
    );
}
