//! The versions of Rust that documents, CI and manifests name.

use super::documented_commands::{files, read, root};

/// The text between a prefix and the end of its line, in the first line that has it.
fn value<'a>(text: &'a str, prefix: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(prefix));
    line.unwrap_or_else(|| panic!("there is no {prefix}")).trim_matches('"')
}

fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map(|number| number.parse().unwrap()).collect()
}

#[test]
fn the_tested_toolchain_is_stated_and_not_older_than_the_minimum() {
    let tested = value(&read(&root().join(".github/workflows/ci.yml")), "RUSTUP_TOOLCHAIN: ").to_owned();
    let manifest = read(&root().join("Cargo.toml"));
    let minimum = value(&manifest, "rust-version = ");
    assert!(numbers(&tested) >= numbers(minimum), "{tested} is tested, {minimum} is the minimum");
    let document = read(&root().join("docs/development.md"));
    for version in [&tested, minimum] {
        assert!(
            document.contains(&format!("Rust {version}")),
            "docs/development.md does not name Rust {version}"
        );
    }
}

#[test]
fn every_crate_has_the_minimum_of_the_workspace() {
    for manifest in files("crates", &["toml"]).into_iter().filter(|path| path.ends_with("Cargo.toml")) {
        let text = read(&manifest);
        assert!(text.contains("rust-version.workspace = true"), "{}", manifest.display());
    }
}
