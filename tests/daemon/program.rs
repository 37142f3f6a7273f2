//! `wattspand` as an administrator starts it: configuration, exit statuses, messages.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::{STEADY_MACHINE, TestDaemon, wait_until};

fn wattspand(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wattspand"))
        .env_remove("WATTSPAN_SOCKET")
        .args(arguments)
        .output()
        .unwrap()
}

fn stderr_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn file(dir: &Path, text: &str) -> String {
    let path = dir.join("wattspan.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn check_prints_what_file_and_flags_come_to_and_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = file(dir.path(), "rate_hz = 250\n[idle_w]\npackage-0 = 3.5\n");
    let output = wattspand(&["--check", "--config", &config, "--idle-rate-hz", "2"]);
    assert!(output.status.success(), "{}", stderr_text(&output));
    let effective: toml::Table = String::from_utf8(output.stdout).unwrap().parse().unwrap();
    assert_eq!(effective["rate_hz"].as_float(), Some(250.0));
    assert_eq!(effective["idle_rate_hz"].as_float(), Some(2.0));
    assert_eq!(effective["idle_w"]["package-0"].as_float(), Some(3.5));
    assert_eq!(effective["limits"]["connections"].as_integer(), Some(1024));
    let again = file(dir.path(), &toml::to_string(&effective).unwrap());
    assert!(wattspand(&["--check", "--config", &again]).status.success());
}

#[test]
fn an_invalid_configuration_is_refused_with_file_key_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    for (text, expected) in [
        ("rate_hz = 0\n", vec!["rate_hz = 0", "from 1 to 10000"]),
        ("raet_hz = 5\n", vec!["raet_hz", "rate_hz", "line 1"]),
        ("rate_hz = 'fast'\n", vec!["rate_hz", "line 1"]),
        ("[limits]\nstall_s = -1\n", vec!["limits.stall_s = -1"]),
        ("rate_hz = \n", vec!["line 1"]),
    ] {
        let config = file(dir.path(), text);
        for arguments in [&["--check", "--config", &config][..], &["--config", &config]] {
            let output = wattspand(arguments);
            assert_eq!(output.status.code(), Some(78), "{text}: {}", stderr_text(&output));
            for part in expected.iter().copied().chain([config.as_str()]) {
                assert!(stderr_text(&output).contains(part), "no {part:?} in: {}", stderr_text(&output));
            }
        }
    }
    let output = wattspand(&["--check", "--rate-hz", "1e9"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr_text(&output).contains("in the flags: rate_hz"), "{}", stderr_text(&output));
    let output = wattspand(&["--check", "--config", "/nowhere/wattspan.toml"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr_text(&output).contains("/nowhere/wattspan.toml"), "{}", stderr_text(&output));
}

#[test]
fn a_machine_with_nothing_to_measure_is_refused_with_every_reason() {
    let dir = tempfile::tempdir().unwrap();
    let config = file(dir.path(), "");
    let socket = dir.path().join("wattspan.sock");
    let machine = dir.path().join("no-machine.toml");
    let output = wattspand(&[
        "--config",
        &config,
        "--socket",
        socket.to_str().unwrap(),
        "--replay",
        machine.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(69), "{}", stderr_text(&output));
    assert!(
        stderr_text(&output).contains("no energy source is available")
            && stderr_text(&output).contains("no-machine.toml")
    );
    assert!(!socket.exists());
}

#[test]
fn the_log_says_what_is_measured_and_each_change_once() {
    let machine = "
        [[domain]]
        name = \"package-0\"
        kind = \"package\"
        profile = [[1.0, 80]]
        [[domain]]
        name = \"gpu-0\"
        kind = \"gpu\"
        profile = [[1.0, 200]]
        lost_at_s = 4.0
    ";
    let mut daemon = TestDaemon::start_with_config(machine, "idle_rate_hz = 50\n");
    wait_until("the loss is logged", || daemon.log().contains("gpu-0 is not live"));
    daemon.terminate();
    assert!(daemon.wait().success());
    let without_manager = "started as root without a service manager";
    let log: Vec<String> =
        daemon.log().lines().filter(|line| !line.contains(without_manager)).map(str::to_owned).collect();
    let log = log.join("\n") + "\n";
    assert_eq!(daemon.log().contains(without_manager), rustix::process::geteuid().is_root());
    assert!(log.starts_with("wattspand: measures package-0, gpu-0, listens on "), "{log}");
    assert_eq!(log.matches("gpu-0 is not live").count(), 1, "{log}");
    assert!(log.ends_with("wattspand: stopped\n"), "{log}");
    assert_eq!(log.lines().count(), 3, "{log}");
}

#[test]
fn a_daemon_of_root_says_at_start_which_group_is_missing_and_how_to_create_it() {
    let says = |configuration: &str| {
        let mut daemon = TestDaemon::start_with_config(STEADY_MACHINE, configuration);
        daemon.terminate();
        assert!(daemon.wait().success());
        let lines = daemon.log();
        lines.lines().filter(|line| line.contains("does not exist")).map(str::to_owned).collect::<Vec<_>>()
    };
    let missing = says("[access]\nspan_group = \"no-such-group\"\n");
    if !rustix::process::geteuid().is_root() {
        assert!(missing.is_empty(), "an ordinary user's own meter needs no group: {missing:?}");
        return;
    }
    assert_eq!(missing.len(), 1, "{missing:?}");
    for part in
        ["the group no-such-group does not exist", "-aG no-such-group USER", "--system no-such-group &&"]
    {
        assert!(missing[0].contains(part), "no {part:?} in {missing:?}");
    }
    assert!(says("[access]\nspan_group = \"daemon\"\n").is_empty());
}

#[test]
fn a_user_without_a_system_directory_listens_under_its_own_runtime_directory() {
    let dir = tempfile::tempdir().unwrap();
    let config = file(dir.path(), "");
    let machine = dir.path().join("machine.toml");
    std::fs::write(&machine, STEADY_MACHINE).unwrap();
    let program = dir.path().join("wattspand");
    // Other users may be unable to read the build directory.
    assert!(
        Command::new("cp").arg(env!("CARGO_BIN_EXE_wattspand")).arg(&program).status().unwrap().success()
    );
    let mut command = Command::new(program);
    // Root listens in the system's directory, so under root the daemon runs as another user.
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(dir.path(), Some(65_534), Some(65_534)).unwrap();
        command.uid(65_534).gid(65_534);
    }
    let mut daemon = command
        .env_remove("WATTSPAN_SOCKET")
        .env("XDG_RUNTIME_DIR", dir.path())
        .env("XDG_STATE_HOME", dir.path())
        .args(["--config".as_ref(), config.as_ref(), "--replay".as_ref(), machine.as_os_str()])
        .spawn()
        .unwrap();
    let socket = dir.path().join("wattspan").join("wattspan.sock");
    wait_until("it listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}
