//! GPU time by process, through a fake of NVIDIA's library and a whole meter.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::fake_nvml::{Driver, Knob, Library};
use crate::support::wait_until;
use wattspan::config::Config;
use wattspan::embedded::EmbeddedMeter;
use wattspan_client::Client;
use wattspan_client::account::{Account, Share};
use wattspan_client::protocol::OpenSpan;

struct SleepProcess(Child);

impl SleepProcess {
    fn new() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    fn pid(&self) -> u64 {
        u64::from(self.0.id())
    }
}

impl Drop for SleepProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_meter(library: &Library) -> (EmbeddedMeter, Client) {
    let mut config = Config::default();
    config.source.nvml_library = Some(library.path());
    config.source.enabled = Some(vec!["nvml".into()]);
    let meter = EmbeddedMeter::start(&config).unwrap();
    let client = meter.connect().unwrap();
    (meter, client)
}

fn account(client: &Client, pid: u64, ms: u64) -> Account {
    let opening = OpenSpan { process: Some(pid as i64), ..OpenSpan::default() };
    let span = client.open_span_with(opening).unwrap();
    std::thread::sleep(Duration::from_millis(ms));
    span.close().unwrap()
}

fn gpu(account: &Account, number: usize) -> &Share {
    let name = format!("gpu-{number}");
    account.domains.iter().find(|share| share.domain == name).unwrap()
}

/// The first account whose GPU process share is as expected; the driver is first queried while a span is open, and then at
/// intervals.
fn first_account(client: &Client, pid: u64, is_expected: impl Fn(Option<u64>) -> bool) -> Account {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let account = account(client, pid, 600);
        if is_expected(gpu(&account, 0).process_uj) {
            return account;
        }
        assert!(Instant::now() < deadline, "{account:?}");
    }
}

#[test]
fn a_board_is_split_by_what_its_processes_used_of_it() {
    let library = Library::new(2);
    let (one, other) = (SleepProcess::new(), SleepProcess::new());
    for (knob, value) in [
        (Knob::ProcessUsageSupported, 1),
        (Knob::UserA, one.pid()),
        (Knob::UserAPercent, 60),
        (Knob::UserB, other.pid()),
        (Knob::UserBPercent, 20),
    ] {
        library.set(0, knob, value);
    }
    let (_meter, client) = start_meter(&library);
    for (process, fraction) in [(&one, 0.75), (&other, 0.25)] {
        let account = first_account(&client, process.pid(), |process_uj| process_uj.is_some());
        let share = gpu(&account, 0);
        let part = share.process_uj.unwrap() as f64 / share.share_uj.unwrap() as f64;
        assert!((part - fraction).abs() < 0.01, "{part} of {fraction}");
        // The other board has no utilization by process: its energy is not split, and the reason is reported.
        assert_eq!(gpu(&account, 1).process_uj, None);
    }
    let absent = client.info().unwrap().absent;
    let names_the_reason = absent.iter().any(|absent| absent.reason.starts_with("gpu-1: no process share"));
    assert!(names_the_reason, "{absent:?}");
    // No process computes: the process share is a known zero.
    library.set(0, Knob::UserAPercent, 0);
    library.set(0, Knob::UserBPercent, 0);
    first_account(&client, one.pid(), |process_uj| process_uj == Some(0));
}

#[test]
fn under_mig_no_process_has_a_share_of_the_board_and_the_reason_is_given() {
    let library = Library::new(1);
    library.set(0, Knob::Mig, 1);
    library.set(0, Knob::ProcessUsageSupported, 1);
    let (_meter, client) = start_meter(&library);
    let one = SleepProcess::new();
    let opening = OpenSpan { process: Some(one.pid() as i64), ..OpenSpan::default() };
    let span = client.open_span_with(opening).unwrap();
    let names_the_reason = |absent: &wattspan::domain::Absent| {
        absent.reason.contains("no process share") && absent.reason.contains("MIG")
    };
    wait_until("the reason is given", || client.info().unwrap().absent.iter().any(names_the_reason));
    std::thread::sleep(Duration::from_millis(300));
    let account = span.close().unwrap();
    assert_eq!(gpu(&account, 0).process_uj, None);
    assert!(gpu(&account, 0).share_uj.is_some());
}

#[test]
fn a_board_without_utilization_by_process_is_opened_again_after_ever_longer_waits() {
    let library = Library::new(1);
    let (_meter, client) = start_meter(&library);
    let one = SleepProcess::new();
    let is_reported = |client: &Client| {
        let absent = client.info().unwrap().absent;
        absent.iter().any(|absent| absent.reason.starts_with("gpu-0: no process share"))
    };
    let before = library.get_global(Driver::Inits);
    let started = Instant::now();
    let opening = OpenSpan { process: Some(one.pid() as i64), ..OpenSpan::default() };
    let span = client.open_span_with(opening).unwrap();
    wait_until("the reason is reported", || is_reported(&client));
    std::thread::sleep(Duration::from_millis(2500));
    drop(span.close().unwrap());
    let inits = library.get_global(Driver::Inits) - before;
    // At once, after 1 s, 3 s, 7 s and so on; in the seconds since the request, not five times in each.
    let waits = (started.elapsed().as_secs_f64() + 1.0).log2() as u64;
    assert!((1..=waits + 1).contains(&inits), "opened {inits} times in {:?}", started.elapsed());
}

#[test]
fn a_hanging_call_delays_no_account() {
    let library = Library::new(1);
    library.set(0, Knob::ProcessUsageSupported, 1);
    let (_meter, client) = start_meter(&library);
    let one = SleepProcess::new();
    account(&client, one.pid(), 50);
    library.set(0, Knob::Hangs, 1);
    let account = account(&client, one.pid(), 50);
    assert!(account.closed_ns.is_some());
    library.set(0, Knob::Hangs, 0);
}
