//! `wattspan doctor --characterise` on a counter that follows a scripted load, with another lag and interval than assumed.
//!
//! The command of `--load` is a process that does nothing; the counter's power depends on whether it is stopped. So the
//! measured values can only come from the counter.

use crate::fuse_sysfs::FuseMachine;
use crate::programs;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use wattspan::clock::monotonic_ns;

const MS: u64 = 1_000_000;

/// The counter: an update each 50 ms, which shows 100 ms later, in steps of 2^-14 J (61.04 µJ).
const INTERVAL_NS: u64 = 50 * MS;
const LAG_NS: u64 = 100 * MS;
const STEPS_PER_JOULE: u64 = 16_384;

/// What the configuration assumes instead.
const ASSUMED: &str =
    "[lag_ms]\npackage-0 = 3.0\n[update_interval_ms]\npackage-0 = 11.0\n[quantum_uj]\npackage-0 = 77\n";

/// The power under load and at rest, in mW.
const LOAD_MW: u64 = 170_003;
const REST_MW: u64 = 40_007;

/// The energy of the machine over time, as often as the state of the load is looked up.
#[derive(Default)]
struct LoadedMachine(Mutex<Vec<(u64, u64)>>);

impl LoadedMachine {
    /// Follows the load until it is over: a process is loaded unless it is stopped.
    fn follow(&self, pid_file: &Path, is_over: &AtomicBool) {
        while !is_over.load(Ordering::Relaxed) {
            let pid = std::fs::read_to_string(pid_file).unwrap_or_default();
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            let is_stopped = stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('T'));
            let mut history = self.0.lock().unwrap();
            let now_ns = monotonic_ns();
            let (last_ns, energy_nj) = history.last().copied().unwrap_or((now_ns, 0));
            let power_mw = if is_stopped { REST_MW } else { LOAD_MW };
            history.push((now_ns, energy_nj + (now_ns - last_ns) * power_mw / 1000));
            drop(history);
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// The value of the counter.
    fn count_uj(&self, now_ns: u64) -> u64 {
        let update_ns = (now_ns - LAG_NS) / INTERVAL_NS * INTERVAL_NS;
        let history = self.0.lock().unwrap();
        let index = history.partition_point(|(at_ns, _)| *at_ns <= update_ns);
        let energy_nj = index.checked_sub(1).map_or(0, |index| history[index].1);
        let steps = energy_nj * STEPS_PER_JOULE / 1_000_000_000;
        steps * 1_000_000 / STEPS_PER_JOULE
    }
}

/// A powercap zone with this counter, and the configuration file for it.
fn machine(
    directory: &Path,
    loaded: &Arc<LoadedMachine>,
) -> Option<(crate::fuse_sysfs::MountedMachine, PathBuf)> {
    let mut machine = FuseMachine::new();
    let zone = "sys/devices/virtual/powercap/intel-rapl/intel-rapl:0";
    machine.text(&format!("{zone}/name"), "package-0");
    machine.text(&format!("{zone}/max_energy_range_uj"), "262143328850");
    let loaded = Arc::clone(loaded);
    machine.number(&format!("{zone}/energy_uj"), move |now_ns| loaded.count_uj(now_ns));
    machine.link("sys/class/powercap/intel-rapl:0", zone);
    let mounted = machine.mount()?;
    let settings = mounted.settings(&["powercap"]);
    let config = format!(
        "[source]\nsysfs_root = {:?}\nproc_root = {:?}\nenabled = [\"powercap\"]\n{ASSUMED}",
        settings.sysfs_root, settings.proc_root
    );
    let file = directory.join("config.toml");
    std::fs::write(&file, config).unwrap();
    Some((mounted, file))
}

#[test]
fn the_lag_interval_and_quantum_of_a_counter_are_measured_whatever_is_assumed() {
    let dir = tempfile::tempdir().unwrap();
    let loaded = Arc::new(LoadedMachine::default());
    let Some((_mounted, config)) = machine(dir.path(), &loaded) else { return };
    let pid_file = dir.path().join("pid");
    let is_over = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        scope.spawn(|| loaded.follow(&pid_file, &is_over));
        let mut command = Command::new(programs::wattspan());
        let load = format!("echo $$ > {}; while :; do sleep 0.01; done", pid_file.display());
        command.arg("--config").arg(&config).args([
            "doctor",
            "--characterise",
            "--json",
            "--load-seconds",
            "8",
        ]);
        let output = command.args(["--load", &load]).output().unwrap();
        is_over.store(true, Ordering::Relaxed);
        output
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let domain = &report["domains"][0];
    let measured = |name: &str| domain[name].as_f64().unwrap_or_else(|| panic!("no {name}: {report}"));
    let near = |name: &str, expected: f64, tolerance: f64| {
        assert!((measured(name) - expected).abs() <= tolerance, "{name}: {report}");
    };
    near("update_interval_ns", INTERVAL_NS as f64, 5e6);
    near("quantum_uj", 1e6 / STEPS_PER_JOULE as f64, 0.1);
    // A busy machine reads late.
    near("lag_ns", LAG_NS as f64, 45e6);
    near("assumed_lag_ns", 3e6, 0.0);
    near("assumed_update_interval_ns", 11e6, 0.0);
    near("assumed_quantum_uj", 77.0, 0.0);
    let configuration: toml::Table = report["configuration"].as_str().unwrap().parse().unwrap();
    assert!(configuration["lag_ms"]["package-0"].as_float().unwrap() > 55.0, "{report}");
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists(), "the load has ended");
}

#[test]
fn a_command_that_ends_early_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let machine = dir.path().join("machine.toml");
    std::fs::write(&machine, include_str!("../fixtures/hundred-watts.toml")).unwrap();
    let mut command = Command::new(programs::wattspan());
    command.arg("--replay").arg(&machine);
    command.args(["doctor", "--characterise", "--load-seconds", "2", "--load", "true"]);
    let output = command.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains("--load ended"), "{message}");
    assert!(output.stdout.is_empty());
}
