//! A Python interpreter with numpy, for independent recomputation of figures, and with jsonschema.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::support::skip::skip;

/// The versions with which the tests were written.
const PACKAGES: [&str; 2] = ["numpy>=1.22", "jsonschema>=4.17"];

/// Returns an interpreter that has both: `WATTSPAN_NUMPY_PYTHON`, the machine's own, or a virtual environment that is
/// made once for this build; skips the test if there is none.
pub fn python() -> Option<PathBuf> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON.get_or_init(|| find().or_else(install)).clone()
}

fn environment() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("numpy")
}

fn find() -> Option<PathBuf> {
    let given = std::env::var_os("WATTSPAN_NUMPY_PYTHON").map(PathBuf::from);
    let known = ["python3".into(), environment().join("bin").join("python")];
    given.into_iter().chain(known).find(|python| has_numpy(python))
}

fn has_numpy(python: &Path) -> bool {
    let import = Command::new(python).args(["-c", "import numpy, jsonschema"]).output();
    import.is_ok_and(|output| output.status.success())
}

fn install() -> Option<PathBuf> {
    let made = Command::new("python3").args(["-m", "venv", "--clear"]).arg(environment()).output();
    if !made.is_ok_and(|output| output.status.success()) {
        skip("python3 with venv", "install python3-venv");
        return None;
    }
    let python = environment().join("bin").join("python");
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    let installed = Command::new(&python).args(pip).args(PACKAGES).output().unwrap();
    if !has_numpy(&python) {
        skip("numpy and jsonschema", String::from_utf8_lossy(&installed.stderr));
        return None;
    }
    Some(python)
}
