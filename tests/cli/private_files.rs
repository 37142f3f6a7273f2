//! Files that the programs write, and files that a privileged daemon reads: modes, owners, links.

use crate::programs;
use crate::support;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{STEADY_MACHINE, TestDaemon, wait_until};

/// A program under the usual umask, so that files without explicit modes are readable by all.
fn program(path: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "umask 022; exec \"$0\" \"$@\"", path]).env_remove("WATTSPAN_SOCKET");
    command
}

fn wattspan(at: &Path, arguments: &[&str]) -> Output {
    program(programs::wattspan()).args(arguments).current_dir(at).output().unwrap()
}

fn wattspand(arguments: &[&str]) -> Output {
    program(env!("CARGO_BIN_EXE_wattspand")).args(arguments).output().unwrap()
}

fn output_text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display())).mode() & 0o777
}

/// Every path below a directory, including the directory.
fn tree(at: &Path) -> Vec<PathBuf> {
    let mut all = vec![at.to_owned()];
    if at.is_dir() {
        for entry in fs::read_dir(at).unwrap() {
            all.extend(tree(&entry.unwrap().path()));
        }
    }
    all
}

fn assert_private(at: &Path, least_files: usize) {
    let all = tree(at);
    for path in &all {
        assert_eq!(mode(path), if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
    }
    let files = all.iter().filter(|path| path.is_file()).count();
    assert!(files >= least_files, "{files} files below {}", at.display());
}

/// A directory with a machine to replay, and a file that must not change.
fn fixture_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("machine.toml"), STEADY_MACHINE).unwrap();
    fs::write(dir.path().join("precious"), "kept").unwrap();
    symlink("precious", dir.path().join("link")).unwrap();
    dir
}

#[test]
fn the_recording_is_the_owners_alone_and_does_not_follow_a_link() {
    let dir = fixture_dir();
    let socket = dir.path().join("run").join("wattspan.sock");
    let record = |file: &Path| {
        let mut command = program(env!("CARGO_BIN_EXE_wattspand"));
        command.current_dir(dir.path()).args(["--replay", "machine.toml"]).arg("--record").arg(file);
        command.arg("--socket").arg(&socket);
        command.stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let trace = dir.path().join("trace.jsonl");
    let mut daemon = record(&trace);
    wait_until("it records", || fs::metadata(&trace).is_ok_and(|found| found.len() > 0));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert_eq!(mode(&trace), 0o600);
    let _ = fs::remove_file(&socket);
    let mut refused = record(&dir.path().join("link"));
    let mut printed = String::new();
    wait_until("it ends or follows the link", || {
        refused.try_wait().unwrap().is_some() || fs::read(dir.path().join("precious")).unwrap() != b"kept"
    });
    let _ = refused.kill();
    refused.stderr.take().unwrap().read_to_string(&mut printed).unwrap();
    assert!(!refused.wait().unwrap().success());
    assert_eq!(fs::read_to_string(dir.path().join("precious")).unwrap(), "kept");
    assert!(
        printed.contains("link") && printed.contains("is a symbolic link; name the file itself"),
        "{printed}"
    );
}

#[test]
fn the_output_of_run_is_the_owners_alone_and_goes_to_devices_and_descriptors_too() {
    let dir = fixture_dir();
    let run = |output: &str| {
        wattspan(dir.path(), &["--replay", "machine.toml", "run", "--output", output, "--", "true"])
    };
    assert!(run("report.txt").status.success());
    assert_eq!(mode(&dir.path().join("report.txt")), 0o600);
    let refused = run("link");
    assert!(
        !refused.status.success() && output_text(&refused).contains("symbolic link"),
        "{}",
        output_text(&refused)
    );
    assert_eq!(fs::read_to_string(dir.path().join("precious")).unwrap(), "kept");
    for output in ["-", "/dev/stdout", "/dev/stderr", "/dev/fd/1", "/proc/self/fd/2"] {
        let printed = run(output);
        assert!(
            printed.status.success() && output_text(&printed).contains("Energy of: true"),
            "{output}: {}",
            output_text(&printed)
        );
    }
    assert!(run("/dev/null").status.success());
    // Process substitution, and a FIFO.
    let script = format!(
        "mkfifo fifo; {0} --replay machine.toml run --output fifo -- true & cat fifo; wait; \
         {0} --replay machine.toml run --output >(cat) -- true | cat",
        programs::wattspan()
    );
    let printed = Command::new("bash").args(["-c", &script]).current_dir(dir.path()).output().unwrap();
    assert_eq!(output_text(&printed).matches("Energy of: true").count(), 2, "{}", output_text(&printed));
}

#[test]
fn the_output_of_run_keeps_its_content_until_there_is_a_report() {
    let dir = fixture_dir();
    let report = dir.path().join("report.txt");
    let earlier = "an earlier report\n".repeat(1000);
    fs::write(&report, &earlier).unwrap();
    fs::set_permissions(&report, PermissionsExt::from_mode(0o640)).unwrap();
    let without_a_meter = ["--socket", "missing.sock", "run", "-o", "report.txt", "--", "true"];
    let without_a_domain =
        ["--replay", "machine.toml", "run", "-d", "none-9", "-o", "report.txt", "--", "true"];
    let without_a_command = ["--replay", "machine.toml", "run", "-o", "report.txt", "--", "./missing"];
    for (words, status) in [(&without_a_meter[..], 4), (&without_a_domain, 1), (&without_a_command, 127)] {
        let output = wattspan(dir.path(), words);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {}", output_text(&output));
        assert!(fs::read_to_string(&report).unwrap() == earlier, "{words:?}");
    }
    let new = wattspan(dir.path(), &["--socket", "missing.sock", "run", "-o", "new.txt", "--", "true"]);
    assert!(!new.status.success() && !dir.path().join("new.txt").exists(), "{}", output_text(&new));
    let run = |output: &str, script: &str| {
        wattspan(
            dir.path(),
            &["--replay", "machine.toml", "run", "-o", output, "--", "/bin/sh", "-c", script],
        )
    };
    // The command still finds the earlier report; nothing of it is left in the new one, which has the mode of the file.
    let output = run("report.txt", "cp report.txt found.txt");
    assert!(output.status.success(), "{}", output_text(&output));
    assert!(fs::read_to_string(dir.path().join("found.txt")).unwrap() == earlier);
    let text = fs::read_to_string(&report).unwrap();
    assert!(text.contains("Energy of: /bin/sh") && !text.contains("earlier"), "{text}");
    assert_eq!(mode(&report), 0o640);
    // A path that cannot be written is refused before the command starts.
    for path in ["link", "missing/report.txt", "."] {
        assert_eq!(run(path, "touch ran").status.code(), Some(1), "{path}");
        assert!(!dir.path().join("ran").exists(), "{path}");
    }
}

#[test]
fn a_run_and_everything_made_of_it_are_the_owners_alone() {
    let dir = fixture_dir();
    let harness = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ipw/harness");
    let ipw = |words: &[&str]| {
        let output = wattspan(dir.path(), &[&["ipw"], words].concat());
        assert!(
            !output_text(&output).contains("denied") && output.status.code() != Some(2),
            "{}",
            output_text(&output)
        );
        output
    };
    ipw(&["import", harness.to_str().unwrap(), "-o", "deep/run"]);
    assert_private(&dir.path().join("deep"), 4);
    ipw(&["report", "deep/run", "--html", "page.html", "--csv", "figures.csv"]);
    ipw(&["export", "deep/run", "--jsonl", "rows.jsonl", "--harness", "results/of-it"]);
    for file in ["page.html", "figures.csv", "rows.jsonl"] {
        assert_private(&dir.path().join(file), 1);
    }
    assert_private(&dir.path().join("results"), 2);
    for words in [
        &["report", "deep/run", "--html", "link"][..],
        &["report", "deep/run", "--csv", "link"],
        &["export", "deep/run", "--jsonl", "link"],
    ] {
        let output = ipw(words);
        assert!(
            output_text(&output).contains("link: is a symbolic link"),
            "{words:?}: {}",
            output_text(&output)
        );
    }
    assert_eq!(fs::read_to_string(dir.path().join("precious")).unwrap(), "kept");
    assert!(fs::symlink_metadata(dir.path().join("link")).unwrap().is_symlink());
    let printed = ipw(&["export", "deep/run", "--jsonl", "/dev/stdout"]);
    assert!(
        String::from_utf8_lossy(&printed.stdout).lines().filter(|line| line.starts_with('{')).count() > 1
    );
    // A symbolic link in place of the run directory.
    fs::create_dir(dir.path().join("elsewhere")).unwrap();
    symlink("elsewhere", dir.path().join("run")).unwrap();
    let output = ipw(&["import", harness.to_str().unwrap(), "-o", "run"]);
    assert!(output_text(&output).contains("symbolic link"), "{}", output_text(&output));
    assert_eq!(tree(&dir.path().join("elsewhere")).len(), 1);
}

#[test]
fn a_privileged_daemon_takes_no_configuration_and_no_library_that_others_can_write() {
    if !rustix::process::geteuid().is_root() {
        support::skip::skip("root", "a privileged daemon needs it");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let (config, library) = (folder.join("wattspan.toml"), folder.join("library.so"));
    fs::write(&config, "rate_hz = 500\n").unwrap();
    fs::write(&library, "").unwrap();
    let (config, library) = (config.to_str().unwrap(), library.to_str().unwrap());
    let ways = [&["--check", "--config", config][..], &["--check", "--nvml-library", library]];
    let chmod = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    for way in ways {
        assert!(wattspand(way).status.success(), "{way:?}: {}", output_text(&wattspand(way)));
        let file = Path::new(way[2]);
        for (path, sound, open) in [(file, 0o644, 0o664), (file, 0o644, 0o646), (&folder, 0o755, 0o775)] {
            chmod(path, open);
            let refused = wattspand(way);
            assert_eq!(refused.status.code(), Some(78), "{way:?} {open:o}: {}", output_text(&refused));
            let remedy = format!("chmod go-w {}", path.display());
            assert!(output_text(&refused).contains(&remedy), "{way:?}: {}", output_text(&refused));
            chmod(path, sound);
        }
        assert!(wattspand(way).status.success());
    }
}

#[test]
fn a_reload_takes_no_configuration_that_others_can_write_and_the_daemon_goes_on() {
    if !rustix::process::geteuid().is_root() {
        support::skip::skip("root", "a privileged daemon needs it");
        return;
    }
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let config = daemon.socket().parent().unwrap().parent().unwrap().join("wattspan.toml");
    daemon.client().call("Reload", serde_json::json!({}));
    fs::set_permissions(&config, PermissionsExt::from_mode(0o666)).unwrap();
    let (error, refused) = daemon.client().call_error("Reload", serde_json::json!({}));
    assert_eq!(error, "InvalidValue");
    assert!(refused.to_string().contains("chmod go-w"), "{refused}");
    daemon.client().call("GetInfo", serde_json::json!({}));
}

#[test]
fn a_user_with_a_capability_is_privileged_and_one_without_names_its_own_files() {
    if !support::skip::can_change_users() {
        return;
    }
    const USER: u32 = 12_345;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // Other users may be unable to read the build directory. Copied by a separate process: another test's child could
    // inherit our write descriptor, and the copy could not be run.
    let (program, config) = (dir.path().join("wattspand"), dir.path().join("wattspan.toml"));
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_wattspand")).arg(&program).status().unwrap();
    assert!(copied.success());
    fs::write(&config, "rate_hz = 500\n").unwrap();
    let check = |capabilities: &[&str]| {
        let ids = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".to_owned()];
        let mut command = Command::new("setpriv");
        command.args(ids).args(capabilities).arg(&program).args(["--check", "--config"]).arg(&config);
        command.output().unwrap()
    };
    // Any capability serves; containers have this one too.
    let privileged = ["--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service"];
    for capabilities in [&[][..], &privileged] {
        assert!(check(capabilities).status.success(), "{}", output_text(&check(capabilities)));
    }
    std::os::unix::fs::chown(&config, Some(USER), None).unwrap();
    assert!(check(&[]).status.success(), "{}", output_text(&check(&[])));
    let refused = check(&privileged);
    assert_eq!(refused.status.code(), Some(78), "{}", output_text(&refused));
    assert!(output_text(&refused).contains(&format!("belongs to user {USER}")), "{}", output_text(&refused));
}
