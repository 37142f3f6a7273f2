//! A Python interpreter with numpy, for independent recomputation of figures.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::support::skip::skip;

/// The version with which the tests were written.
const PACKAGE: &str = "numpy>=1.22";

/// Returns an interpreter that has numpy: `WATTSPAN_NUMPY_PYTHON`, the machine's own, or a new virtual environment in
/// `dir`; skips the test if there is none.
pub fn python(dir: &Path) -> Option<PathBuf> {
    let has = |python: &Path| {
        let import = Command::new(python).args(["-c", "import numpy"]).output();
        import.is_ok_and(|output| output.status.success())
    };
    let given = std::env::var_os("WATTSPAN_NUMPY_PYTHON").map(PathBuf::from);
    if let Some(python) = given.into_iter().chain(["python3".into()]).find(|python| has(python)) {
        return Some(python);
    }
    let made = Command::new("python3").args(["-m", "venv"]).arg(dir).output();
    if !made.is_ok_and(|output| output.status.success()) {
        skip("python3 with venv", "install python3-venv");
        return None;
    }
    let python = dir.join("bin").join("python");
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", PACKAGE];
    let installed = Command::new(&python).args(pip).output().ok()?;
    if !has(&python) {
        skip("numpy", String::from_utf8_lossy(&installed.stderr));
        return None;
    }
    Some(python)
}
