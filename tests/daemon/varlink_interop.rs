//! An independent client: the `varlink` package of the Python package index, used as its documentation describes.
//!
//! It comes from the environment (a virtual environment named by `WATTSPAN_VARLINK_PYTHON`, or a `python3` that has the
//! package), else from the package index into a temporary environment. The tests skip where neither works.

use crate::support;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{STEADY_MACHINE, TestDaemon};

/// Pinned: a moving version would test the package index.
const PACKAGE: &str = "varlink==31.0.0";

const CLIENT: &str = r#"
import sys, time, varlink

with varlink.Client.new_with_address("unix:" + sys.argv[1]) as client:
    interfaces = client.get_interfaces()
    assert "org.wattspan.Meter" in interfaces, interfaces
    # Asks for the description, parses it, and makes the methods below from it.
    with client.open("org.wattspan.Meter") as meter:
        info = meter.GetInfo()
        assert info["access"] == "admin" and len(info["domains"]) == 3, info
        span = meter.OpenSpan(name="from python", attributes={"model": "m"}, weight=2.0)["span"]
        meter.MarkPhase(span=span, phase="decode")
        time.sleep(0.05)
        account = meter.CloseSpan(span=span, wait_settled=True)["account"]
        assert account["state"] == "settled" and account["share_uj"] > 0, account
        assert account["attributes"] == {"model": "m"} and account["name"] == "from python", account
        assert meter.GetSpan(span=span)["account"] == account
        for balance in meter.GetBalance()["balance"]:
            assert balance["measured_uj"] == balance["attributed_uj"] + balance["unattributed_uj"], balance
        try:
            meter.CloseSpan(span=span)
            raise AssertionError("closed twice")
        except varlink.VarlinkError as error:
            assert error.error() == "org.wattspan.Meter.AlreadyClosed", error
            assert error.parameters()["span"] == span
        try:
            meter.GetSpan(span="none")
            raise AssertionError("found")
        except varlink.VarlinkError as error:
            assert error.error() == "org.wattspan.Meter.NoSuchSpan", error
    with client.open("org.wattspan.Meter") as meter:
        seen = []
        for tick in meter.WatchDomains(rate_hz=100.0, _more=True):
            seen.append(tick["now_ns"])
            if len(seen) == 3:
                break
        assert seen == sorted(set(seen)), seen
print("the peer is content")
"#;

/// A Python interpreter that has the package.
fn python(dir: &Path) -> Option<PathBuf> {
    let has = |python: &Path| {
        Command::new(python)
            .args(["-c", "import varlink"])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let given = std::env::var_os("WATTSPAN_VARLINK_PYTHON").map(PathBuf::from);
    for python in given.into_iter().chain(["python3".into()]) {
        if has(&python) {
            return Some(python);
        }
    }
    let made = Command::new("python3").args(["-m", "venv"]).arg(dir).output();
    let python = dir.join("bin").join("python");
    if !made.is_ok_and(|output| output.status.success()) {
        support::skip::skip("python3 with venv", "install python3-venv");
        return None;
    }
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", PACKAGE];
    let installed = Command::new(&python).args(pip).output().ok()?;
    if !has(&python) {
        support::skip::skip(PACKAGE, String::from_utf8_lossy(&installed.stderr));
        return None;
    }
    Some(python)
}

#[test]
fn a_third_party_varlink_client_measures_a_span() {
    let dir = tempfile::tempdir().unwrap();
    let Some(python) = python(&dir.path().join("venv")) else { return };
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let output = Command::new(python).args(["-c", CLIENT]).arg(daemon.socket()).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("the peer is content"), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
}
