//! Machines from public reports, kernel commits and documentation: the domains found, how they nest, which are counted, and
//! the power of the total.

use std::fs;
use std::path::{Path, PathBuf};

use crate::machine_tree::MachineTree;

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/trees");
    let mut fixtures: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    fixtures.sort();
    fixtures
}

#[test]
fn documented_machines_have_the_documented_domains() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 5, "{fixtures:?}");
    for fixture in fixtures {
        let tree = MachineTree::read(&fixture);
        assert!(!tree.name.is_empty() && !tree.sources.is_empty(), "{}", fixture.display());
        if tree.check().is_none() {
            return;
        }
    }
}
