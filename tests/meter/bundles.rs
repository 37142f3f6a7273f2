//! Every bundle in tests/fixtures/machines is a test; docs/bundles.md describes how to add one.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bundle;

#[test]
fn every_bundle_shows_its_domains_and_replays() {
    let machines = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/machines");
    let mut bundles: Vec<PathBuf> = fs::read_dir(machines)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "bundle"))
        .collect();
    bundles.sort();
    assert!(!bundles.is_empty());
    for path in bundles {
        bundle::check(&path);
    }
}
