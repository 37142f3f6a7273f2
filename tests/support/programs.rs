//! The client program under test, which is of another package than the tests.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The path of `wattspan`. Cargo gives a test only the programs of its own package, so the first call of a process builds
/// this one, beside `wattspand`: a program of an earlier build is never used.
pub fn wattspan() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let daemon = Path::new(env!("CARGO_BIN_EXE_wattspand"));
        let profile_dir = daemon.parent().expect("target/PROFILE");
        let profile = match profile_dir.file_name().and_then(|name| name.to_str()).expect("a profile's name")
        {
            "debug" => "dev",
            other => other,
        };
        let mut build = Command::new(env!("CARGO"));
        build.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--locked", "--workspace"]);
        // A test among the targets, so that cargo selects the features as for `cargo test` and compiles no crate twice.
        build.args(["--bins", "--test", "sampler_allocations", "--profile", profile, "--target-dir"]);
        build.arg(profile_dir.parent().expect("the target directory"));
        let output = build.output().expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        profile_dir.join("wattspan").to_str().expect("a path in UTF-8").to_owned()
    })
}
