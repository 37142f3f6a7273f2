//! Members of the span group that use all their quotas, 1, 4 and 32 at once, within default limits. The daemon stays
//! under half of its unit's MemoryMax, serves another user almost as fast as before, and releases the memory.
//!
//! The daemon runs in a memory control group with the unit's limit where one can be created; its own peak is checked in
//! any case. Latency is checked only for an optimised daemon (`WATTSPAN_TEST_DAEMON`), as in `.ci/run`.
//! `WATTSPAN_HOSTILE_S` sets the duration of each attack in seconds.

use crate::other_user;
use crate::support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::TryRecvError;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::other_user::{GROUPS, TestUser};
use crate::support::{STEADY_MACHINE, TestClient, TestDaemon, encode_call};
use serde_json::{Value, json};

/// The installed unit of the daemon.
const UNIT: &str = include_str!("../../systemd/wattspand.service");

/// The default duration of each attack, with an optimised daemon and with another one.
const ATTACK_S: f64 = 6.0;
const BRIEF_ATTACK_S: f64 = 3.0;

/// GetInfo calls of another user in each of several runs, and the pause after each. The best run counts, with and
/// without the attack, because other load on the machine only makes a run slower.
const CALLS: usize = 150;
const RUNS: usize = 5;
const PAUSE: Duration = Duration::from_millis(3);

/// Memory that may remain after the attackers have disconnected: the samplers' history, which fills up meanwhile,
/// SQLite's cache, and pages partly kept by small allocations between spans.
const MAY_STAY: u64 = 12 << 20;

const MIB: u64 = 1 << 20;

/// The calls that a hostile member repeats.
#[derive(Debug, Clone, Copy)]
enum Attack {
    Phases,
    Attributes,
    Weights,
    LongTexts,
    Reopening,
    Mixture,
}

const ATTACKS: [Attack; 6] = [
    Attack::Phases,
    Attack::Attributes,
    Attack::Weights,
    Attack::LongTexts,
    Attack::Reopening,
    Attack::Mixture,
];

/// Default limit of open spans per user.
const SPANS: usize = 4096;

impl Attack {
    /// The encoded call of this number.
    fn call(self, number: usize) -> Vec<u8> {
        let span = format!("s{}", number % SPANS);
        let pairs = || -> Value {
            (0..64).map(|at| (format!("{at:02}"), json!("v"))).collect::<serde_json::Map<_, _>>().into()
        };
        let first_round = number < SPANS;
        match self {
            Self::Phases if first_round => encode_call("OpenSpan", json!({ "span": span }), &[]),
            Self::Phases => encode_call("MarkPhase", json!({ "span": span, "phase": "p" }), &[]),
            Self::Attributes => encode_call("OpenSpan", json!({ "span": span, "attributes": pairs() }), &[]),
            Self::Weights if number == 0 => encode_call("OpenSpan", json!({ "span": "s" }), &[]),
            Self::Weights => encode_call("SetWeight", json!({ "span": "s", "weight": number % 9 + 1 }), &[]),
            Self::LongTexts => {
                let (long, name) = (format!("{span}{}", "x".repeat(120)), "n".repeat(256));
                let values: serde_json::Map<_, _> =
                    (0..40).map(|at| (format!("{at:064}"), json!("v".repeat(1024)))).collect();
                encode_call("OpenSpan", json!({ "span": long, "name": name, "attributes": values }), &[])
            }
            Self::Reopening => {
                let span = format!("r{}", number / 2);
                match number % 2 {
                    0 => encode_call("OpenSpan", json!({ "span": span, "attributes": pairs() }), &[]),
                    _ => encode_call("CloseSpan", json!({ "span": span }), &[]),
                }
            }
            Self::Mixture => match (number / SPANS) % 4 {
                0 => encode_call("OpenSpan", json!({ "span": span, "name": "m".repeat(number % 256) }), &[]),
                1 => encode_call("MarkPhase", json!({ "span": span, "phase": "q".repeat(128) }), &[]),
                2 => encode_call("SetWeight", json!({ "span": span, "weight": 2 }), &[]),
                _ => encode_call("CloseSpan", json!({ "span": span, "attributes": pairs() }), &[]),
            },
        }
    }
}

#[test]
#[ignore = "a helper that other tests start in a process of another user"]
fn a_client_of_another_user() {
    let socket = PathBuf::from(std::env::var_os("SOCKET").expect("the variable that the outer test sets"));
    match std::env::var("ATTACK").map(|attack| attack.parse::<usize>().unwrap()) {
        Ok(first) => attack_until_stdin_closes(&socket, first),
        Err(_) => ask(&socket),
    }
}

/// Sends calls in batches until end of input; then prints which quotas refused calls.
///
/// With `NEXT_AFTER_MS` it changes to the next attack, on a new connection, repeatedly.
fn attack_until_stdin_closes(socket: &Path, first: usize) {
    let next_after = std::env::var("NEXT_AFTER_MS").ok().map(|ms| Duration::from_millis(ms.parse().unwrap()));
    // The attacker should compete for the daemon's memory and service, not for the test machine's few CPUs.
    let _ = rustix::process::nice(15);
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        let _ = ended.send(());
    });
    let mut stream = UnixStream::connect(socket).unwrap();
    let (mut quotas, mut number, mut buffer) = (BTreeSet::new(), 0, vec![0; 1 << 16]);
    let (mut attack, mut begun) = (first, Instant::now());
    let mut is_refused = false;
    while end.try_recv() == Err(TryRecvError::Empty) {
        let goes_on = next_after.is_some_and(|after| begun.elapsed() > after);
        if goes_on {
            (attack, begun) = (attack + 1, Instant::now());
        }
        let kind = ATTACKS[attack % ATTACKS.len()];
        let batch: Vec<u8> = (number..number + 50).flat_map(|number| kind.call(number)).collect();
        number += 50;
        let alive = !goes_on
            && stream.write_all(&batch).is_ok()
            && take_answers(&mut stream, 50, &mut buffer, &mut quotas);
        if !alive {
            // The daemon closed the connection: the spans are gone, so the numbering restarts.
            number = 0;
            std::thread::sleep(Duration::from_millis(5));
            let Ok(again) = UnixStream::connect(socket) else { continue };
            stream = again;
        }
        if !is_refused && !quotas.is_empty() {
            is_refused = true;
            println!("REFUSED");
        }
    }
    println!("ANSWER {}", json!({ "quotas": quotas, "calls": number }));
}

/// Reads `count` replies and collects the quotas in them; `false` if the daemon closed the connection.
fn take_answers(
    stream: &mut UnixStream,
    mut count: usize,
    buffer: &mut [u8],
    quotas: &mut BTreeSet<String>,
) -> bool {
    let mut seen: Vec<u8> = Vec::new();
    while count > 0 {
        match stream.read(buffer) {
            Ok(length) if length > 0 => {
                count = count.saturating_sub(buffer[..length].iter().filter(|byte| **byte == 0).count());
                seen.extend_from_slice(&buffer[..length]);
            }
            _ => return false,
        }
    }
    for answer in
        seen.split(|byte| *byte == 0).filter(|answer| answer.windows(5).any(|part| part == b"quota"))
    {
        let error: Value = serde_json::from_slice(answer).unwrap();
        quotas.extend(error["parameters"]["quota"].as_str().map(str::to_owned));
    }
    true
}

/// An ordinary user: opens a few spans, makes calls from time to time, and prints the median latency.
fn ask(socket: &Path) {
    let mut client = TestClient::from_stream(UnixStream::connect(socket).unwrap());
    let open = |_| client.call("OpenSpan", json!({ "name": "an ordinary span" }))["span"].take();
    let spans: Vec<Value> = (0..5).map(open).collect();
    for span in &spans {
        client.call("MarkPhase", json!({ "span": span, "phase": "decode" }));
        client.call("SetWeight", json!({ "span": span, "weight": 2 }));
    }
    let mut took: Vec<Duration> = (0..CALLS)
        .map(|_| {
            std::thread::sleep(PAUSE);
            let begun = Instant::now();
            client.call("GetInfo", json!({}));
            begun.elapsed()
        })
        .collect();
    for span in &spans {
        client.call("CloseSpan", json!({ "span": span }));
    }
    took.sort_unstable();
    println!("ANSWER {}", json!({ "median_ns": took[CALLS / 2].as_nanos() as u64 }));
}

/// A process of another user that connects to the daemon.
struct UserProcess {
    child: Child,
    /// Set when a quota has refused a call of the process.
    is_refused: Arc<AtomicBool>,
    /// Reads the process's output; returns its result.
    reader: Option<JoinHandle<Value>>,
}

impl UserProcess {
    fn start(daemon: &TestDaemon, uid: u32, attack: Option<usize>, next_after: Option<Duration>) -> Self {
        let socket = daemon.socket();
        let mut command = other_user::command_as(
            module_path!(),
            socket.parent().unwrap(),
            TestUser { uid, groups: "daemon" },
        );
        if let Some(attack) = attack {
            command.env("ATTACK", attack.to_string());
        }
        if let Some(after) = next_after {
            command.env("NEXT_AFTER_MS", after.as_millis().to_string());
        }
        command.env("SOCKET", &socket).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let is_refused = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_refused);
        let reader = std::thread::spawn(move || read_result(out, &seen));
        Self { child, is_refused, reader: Some(reader) }
    }

    /// Closes the process's standard input; returns its result.
    fn end(mut self) -> Value {
        drop(self.child.stdin.take());
        let result = self.reader.take().expect("ended once").join().unwrap();
        assert!(self.child.wait().unwrap().success(), "{result}");
        result
    }
}

/// Reads lines until the end of the process's output; returns its result.
fn read_result(out: BufReader<ChildStdout>, is_refused: &AtomicBool) -> Value {
    let mut result = Value::Null;
    for line in out.lines().map_while(Result::ok) {
        if line.contains("REFUSED") {
            is_refused.store(true, Ordering::Relaxed);
        }
        if let Some((_, answer)) = line.split_once("ANSWER ") {
            result = serde_json::from_str(answer).unwrap();
        }
    }
    result
}

impl Drop for UserProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The median latency of an ordinary user's calls, in the best of several runs.
fn median_ns(daemon: &TestDaemon) -> u64 {
    let runs = if support::optimised_daemon().is_some() { RUNS } else { 1 };
    (0..runs).map(|_| median_of_a_run_ns(daemon)).min().unwrap()
}

fn median_of_a_run_ns(daemon: &TestDaemon) -> u64 {
    let mut user = UserProcess::start(daemon, 12_900, None, None);
    let stdin = user.child.stdin.take();
    let result = user.end();
    drop(stdin);
    result["median_ns"].as_u64().unwrap()
}

/// A memory control group with a limit; removed on drop.
struct ControlGroup(PathBuf);

impl ControlGroup {
    /// Moves a process into a new control group; `None`, with the reason printed, where none can be created.
    fn around(pid: rustix::process::Pid, limit: u64) -> Option<Self> {
        let name = format!("wattspan-test-{}", pid.as_raw_nonzero());
        let limits = ["memory.max", "memory.limit_in_bytes"];
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/memory"] {
            let group = Self(Path::new(root).join(&name));
            let made = std::fs::create_dir(&group.0).is_ok();
            let file = limits.iter().map(|file| group.0.join(file)).find(|file| file.exists());
            let limited = file.is_some_and(|file| std::fs::write(file, limit.to_string()).is_ok());
            let pid = pid.as_raw_nonzero().to_string();
            if made && limited && std::fs::write(group.0.join("cgroup.procs"), pid).is_ok() {
                return Some(group);
            }
        }
        println!("no memory control group can be made here: the peak alone is checked");
        None
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A field of the process's status, in bytes.
fn status_bytes(daemon: &TestDaemon, name: &str) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", daemon.pid().as_raw_nonzero())).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn memory_max() -> u64 {
    let value = UNIT.lines().find_map(|line| line.strip_prefix("MemoryMax=")).expect("the unit has a limit");
    value.strip_suffix('M').expect("in megabytes").parse::<u64>().unwrap() * MIB
}

/// Sets the unit's nice level on every thread, as far as this machine allows it.
fn take_priority(daemon: &TestDaemon) {
    let nice = UNIT.lines().find_map(|line| line.strip_prefix("Nice=")).unwrap();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid().as_raw_nonzero())).unwrap();
    let tasks = tasks.map(|task| task.unwrap().file_name());
    let _ = Command::new("renice").args(["-n", nice, "-p"]).args(tasks).output();
}

/// Serializes the attacks, which would otherwise compete for CPUs.
static ATTACKING: Mutex<()> = Mutex::new(());

fn attack_by(members: usize) {
    if !other_user::is_supported() {
        return;
    }
    let _alone = ATTACKING.lock().unwrap_or_else(PoisonError::into_inner);
    let usual_s = if support::optimised_daemon().is_some() { ATTACK_S } else { BRIEF_ATTACK_S };
    let attack_s = std::env::var("WATTSPAN_HOSTILE_S").map_or(usual_s, |seconds| seconds.parse().unwrap());
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, GROUPS);
    take_priority(&daemon);
    let group = ControlGroup::around(daemon.pid(), memory_max());
    let quiet_ns = median_ns(&daemon);
    let before = status_bytes(&daemon, "VmRSS");
    // A single member runs all attacks in turn; several members run a different one each.
    let next_after = (members == 1).then(|| Duration::from_secs_f64(attack_s / ATTACKS.len() as f64));
    let begun = Instant::now();
    let attackers: Vec<UserProcess> = (0..members)
        .map(|at| UserProcess::start(&daemon, 12_400 + at as u32, Some(at), next_after))
        .collect();
    std::thread::sleep(Duration::from_secs_f64(attack_s / 2.0));
    let attacked_ns = median_ns(&daemon);
    std::thread::sleep(Duration::from_secs_f64(attack_s).saturating_sub(begun.elapsed()));
    // A busy machine may not reach a quota in that time; an attack that reaches none tests nothing.
    let quota_deadline = Instant::now() + Duration::from_secs(60);
    let is_refused = |user: &UserProcess| user.is_refused.load(Ordering::Relaxed);
    while members > 1 && !attackers.iter().any(is_refused) {
        assert!(Instant::now() < quota_deadline, "no quota was reached");
        std::thread::sleep(Duration::from_millis(50));
    }
    let result: Vec<Value> = attackers.into_iter().map(UserProcess::end).collect();
    let peak = status_bytes(&daemon, "VmHWM");
    println!(
        "{members} members: peak {} MiB, median {} µs before, {} µs during: {}",
        peak / MIB,
        quiet_ns / 1000,
        attacked_ns / 1000,
        json!(result)
    );
    let half = memory_max() / 2;
    assert!(peak < half, "the daemon took {} MiB of {}", peak / MIB, half / MIB);
    // One call with 40 KB of text takes an unoptimised daemon 2 ms, and no other call can interrupt it.
    let is_optimised = support::optimised_daemon().is_some();
    assert!(
        !is_optimised || attacked_ns <= 3 * quiet_ns,
        "{attacked_ns} ns during the attack, {quiet_ns} ns without"
    );
    // Memory falls in steps, as spans end and accounts reach the disk.
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut after = status_bytes(&daemon, "VmRSS");
    while after > before + MAY_STAY {
        assert!(Instant::now() < deadline, "{} MiB before, {} MiB stay", before / MIB, after / MIB);
        std::thread::sleep(Duration::from_millis(100));
        after = status_bytes(&daemon, "VmRSS");
    }
    println!("{} MiB before, {} MiB after", before / MIB, after / MIB);
    // The same daemon still serves: it was never killed.
    daemon.client().call("GetInfo", json!({}));
    drop(daemon);
    drop(group);
}

#[test]
fn one_hostile_user() {
    attack_by(1);
}

#[test]
fn four_hostile_users() {
    attack_by(4);
}

#[test]
fn thirty_two_hostile_users() {
    attack_by(32);
}
