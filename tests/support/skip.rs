//! Skipping a test where this machine lacks something.
//!
//! Owns the one line that says so. Invariant: where the environment has CI=true, a skipped test fails, since a check that
//! did not run proves nothing there; `.ci/run` installs what tests need.

#![allow(dead_code, reason = "each test uses its own part")]

/// What a machine that runs CI may lack: no package brings it.
const MAY_LACK: [&str; 2] = ["GPU", "Mac"];

/// Says that a test is skipped: what this machine lacks, and the reason or the remedy. The test returns after it.
///
/// # Panics
/// With CI=true, unless what is lacking stands in [`MAY_LACK`].
#[track_caller]
pub fn skip(lacking: &str, reason: impl std::fmt::Display) {
    let line = format!("skipped: this machine lacks {lacking}: {reason}");
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!ci || MAY_LACK.contains(&lacking), "{line}; with CI=true a skipped test fails");
    eprintln!("{line}");
}

/// Whether this process may start others of other users; skips the test otherwise.
#[track_caller]
pub fn can_change_users() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip("root", "only root starts processes of other users");
    } else if std::process::Command::new("setpriv").arg("--version").output().is_err() {
        skip("setpriv", "install util-linux");
    } else {
        return true;
    }
    false
}
