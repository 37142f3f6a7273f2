//! Sources that block or hang at the start delay neither readiness nor each other, and are not left out of totals.

use std::fs::{self, File};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use crate::fake::FakeSysfs;
use crate::fuse_sysfs::{FuseMachine, MountedMachine, SquareWave};
use crate::support::wait_until;
use wattspan::config::Config;
use wattspan::domain::Liveness;
use wattspan::embedded::EmbeddedMeter;
use wattspan::sources::SourceSettings;
use wattspan_client::Client;
use wattspan_client::account::Account;
use wattspan_client::protocol::{DaemonInfo, DomainStatus};

/// The time after which a waiting test fails. No test expects anything to take this long.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The program itself on such a machine, started as a service manager does.
struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
    manager: UnixDatagram,
}

impl Daemon {
    fn on(settings: &SourceSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let config = format!(
            "bus = false\n[source]\nsysfs_root = {:?}\nproc_root = {:?}\nenabled = {:?}\n",
            settings.sysfs_root, settings.proc_root, settings.enabled
        );
        fs::write(place("wattspan.toml"), config).unwrap();
        let manager = UnixDatagram::bind(place("notify")).unwrap();
        manager.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_wattspand"))
            .args(["--config".as_ref(), place("wattspan.toml").as_os_str()])
            .args(["--socket".as_ref(), place("run/wattspan.sock").as_os_str()])
            .args(["--state-dir".as_ref(), place("state").as_os_str()])
            .env("NOTIFY_SOCKET", place("notify"))
            .stderr(File::create(place("log")).unwrap())
            .spawn()
            .unwrap();
        Self { child, folder, manager }
    }

    /// Waits for READY=1; fails if it does not come.
    fn ready_client(&self) -> Client {
        let mut message = [0; 1_024];
        loop {
            let length = match self.manager.recv(&mut message) {
                // The kernel does not restart a read with a timeout (signal(7)).
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                received => received.expect("READY=1 never came"),
            };
            if message[..length].windows(7).any(|part| part == b"READY=1") {
                break;
            }
        }
        let socket = self.folder.path().join("run/wattspan.sock");
        Client::from_stream(UnixStream::connect(socket).unwrap()).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn named<'a>(info: &'a DaemonInfo, name: &str) -> Option<&'a DomainStatus> {
    info.domains.iter().find(|domain| domain.name == name)
}

fn measure_span(client: &Client, length: Duration) -> Account {
    let span = client.open_span("one").unwrap();
    std::thread::sleep(length);
    span.close().unwrap()
}

/// Asserts that the total is unknown because this domain's energy is unknown throughout.
fn assert_total_unknown_for(account: &Account, domain: &str) {
    assert_eq!((account.share_uj, account.window_uj, account.error_uj), (None, None, None), "{account:?}");
    let share = account.domains.iter().find(|share| share.domain == domain).unwrap();
    assert_eq!(share.unknown_ns, account.closed_ns.unwrap() - account.opened_ns, "{account:?}");
    assert_eq!((share.share_uj, share.window_uj), (None, None), "missing is not zero");
}

const PACKAGE: SquareWave = SquareWave::steady(60_000);
const CARD: SquareWave = SquareWave::steady(90_000);

/// A package's zone and a GPU, read by two mechanisms; opening the zone's counter blocks.
fn package_and_card() -> Option<MountedMachine> {
    let mut machine = FuseMachine::new();
    let zone = "sys/class/powercap/intel-rapl:0";
    machine.text(&format!("{zone}/name"), "package-0");
    machine.text(&format!("{zone}/max_energy_range_uj"), "262143328850");
    machine.number(&format!("{zone}/energy_uj"), |at| {
        (PACKAGE.counts(at, 1_000_000, 14) & 0xFFFF_FFFF) * 61_035 / 1_000
    });
    let chip = "sys/class/hwmon/hwmon4";
    machine.text(&format!("{chip}/name"), "xe");
    machine.link(&format!("{chip}/device"), "sys/devices/pci0000:00/0000:03:00.0");
    machine.number(&format!("{chip}/energy1_input"), |at| CARD.energy_uj(at / 1_000_000 * 1_000_000));
    machine.text(&format!("{chip}/energy1_label"), "card");
    let mounted = machine.mount()?;
    mounted.block(&format!("{zone}/energy_uj"));
    Some(mounted)
}

#[test]
fn a_file_that_blocks_when_opened_delays_no_readiness_and_its_domain_comes_later() {
    let Some(mounted) = package_and_card() else { return };
    let daemon = Daemon::on(&mounted.settings(&["powercap", "intelgpu"]));
    let client = daemon.ready_client();
    let info = client.info().unwrap();
    let powercap = named(&info, "powercap").unwrap();
    assert_eq!((powercap.liveness, powercap.counted), (Liveness::Starting, true), "{info:?}");
    assert!(powercap.reason.as_ref().unwrap().contains("has not answered"), "{powercap:?}");
    wait_until("the card is live", || {
        named(&client.info().unwrap(), "intelgpu-0").unwrap().liveness == Liveness::Live
    });
    let before = measure_span(&client, Duration::from_millis(30));
    assert_total_unknown_for(&before, "powercap");
    let card = &before.domains.iter().find(|share| share.domain == "intelgpu-0");
    assert!(card.is_some_and(|share| share.share_uj > Some(0)), "{before:?}");
    let across = client.open_span("across").unwrap();
    mounted.release();
    wait_until("the package is live", || {
        let info = client.info().unwrap();
        named(&info, "package-0").is_some_and(|domain| domain.liveness == Liveness::Live && domain.counted)
            && named(&info, "powercap").is_none()
    });
    assert_total_unknown_for(&across.close().unwrap(), "powercap");
    // Where the readings at its ends are far apart, as on a busy machine, the error of a short span says nothing.
    wait_until("a span has a small error", || {
        let after = measure_span(&client, Duration::from_millis(100));
        let truth = |wave: SquareWave| {
            (wave.energy_pj(after.closed_ns.unwrap()) - wave.energy_pj(after.opened_ns)) as f64 / 1e6
        };
        let (shown, error) = (after.share_uj.unwrap() as f64, after.error_uj.unwrap() as f64);
        let truth = truth(PACKAGE) + truth(CARD);
        assert!((shown - truth).abs() <= error, "truth {truth}: {after:?}");
        error < truth
    });
    assert_eq!(client.span_account(&before.span).unwrap().share_uj, None, "settled accounts never change");
    let balance = client.balance().unwrap();
    let package = balance.iter().find(|balance| balance.domain == "package-0").unwrap();
    assert_eq!(package.measured_uj, package.attributed_uj + package.unattributed_uj);
    assert!(package.attributed_uj > 0);
}

/// A machine whose only counter is a pipe without a writer: opening it blocks forever.
fn pipe() -> FakeSysfs {
    let fake_sysfs = FakeSysfs::new();
    fake_sysfs.proc_file("stat", "cpu  100 0 50 800 0 0 0 9 0 0\ncpu0 100 0 50 800 0 0 0 9 0 0\nbtime 1\n");
    fake_sysfs.zone("intel-rapl:0", "package-0", "262143328850", 0);
    let energy = fake_sysfs.sysfs().join("class/powercap/intel-rapl:0/energy_uj");
    fs::remove_file(&energy).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &energy,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    fake_sysfs
}

fn pipe_of(fake_sysfs: &FakeSysfs) -> impl AsRef<Path> {
    fake_sysfs.sysfs().join("class/powercap/intel-rapl:0/energy_uj")
}

#[test]
fn a_source_that_ends_without_a_domain_makes_totals_known_again() {
    let fake_sysfs = pipe();
    let daemon = Daemon::on(&fake_sysfs.settings(&["powercap", "estimate"]));
    let client = daemon.ready_client();
    assert_total_unknown_for(&measure_span(&client, Duration::from_millis(30)), "powercap");
    let across = client.open_span("across").unwrap();
    // A writer lets the open succeed, but a pipe cannot be read at an offset.
    drop(fs::OpenOptions::new().write(true).open(pipe_of(&fake_sysfs)).unwrap());
    wait_until("the source has answered", || named(&client.info().unwrap(), "powercap").is_none());
    assert!(client.info().unwrap().absent.iter().any(|absent| absent.source == "powercap"));
    let (across, after) = (across.close().unwrap(), measure_span(&client, Duration::from_millis(30)));
    for account in [across, after] {
        assert!(account.share_uj.is_some(), "{account:?}");
    }
}

#[test]
fn the_embedded_meter_starts_although_a_file_blocks_for_ever() {
    let fake_sysfs = pipe();
    let settings = fake_sysfs.settings(&["powercap", "estimate"]);
    let mut config = Config::default();
    config.source.sysfs_root = settings.sysfs_root;
    config.source.proc_root = settings.proc_root;
    config.source.enabled = Some(settings.enabled);
    let meter = EmbeddedMeter::start(&config).unwrap();
    let client = meter.connect().unwrap();
    assert_eq!(named(&client.info().unwrap(), "powercap").unwrap().liveness, Liveness::Starting);
    assert_total_unknown_for(&measure_span(&client, Duration::from_millis(30)), "powercap");
}
