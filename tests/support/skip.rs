//! Skips a test where this machine lacks something it needs.
//!
//! Invariant: with CI=true a skipped test fails, because a check that did not run proves nothing. `.ci/run` installs
//! what tests need.

#![allow(dead_code, reason = "each test uses its own part")]

/// What a CI machine may lack, because no package provides it.
const MAY_LACK: [&str; 2] = ["GPU", "Mac"];

/// Prints that a test is skipped, with what is missing and the reason or the remedy. The test must return after it.
///
/// # Panics
/// With CI=true, unless what is missing is in [`MAY_LACK`].
#[track_caller]
pub fn skip(lacking: &str, reason: impl std::fmt::Display) {
    let line = format!("skipped: this machine lacks {lacking}: {reason}");
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!ci || MAY_LACK.contains(&lacking), "{line}; with CI=true a skipped test fails");
    eprintln!("{line}");
}

/// Whether this process can start processes of other users; skips the test otherwise.
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
