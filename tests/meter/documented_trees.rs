//! Machines from public reports, kernel commits and documentation: the domains found, how they nest, which are counted, and
//! the power of the total.

use std::fs;
use std::path::{Path, PathBuf};

use crate::machine_tree::{MachineTree, TreeOrigin};

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/trees");
    let mut fixtures: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    fixtures.sort();
    fixtures
}

#[test]
fn documented_machines_have_the_documented_domains() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 40, "{}", fixtures.len());
    let mut failed = Vec::new();
    for fixture in fixtures {
        let tree = MachineTree::read(&fixture);
        assert!(!tree.name.is_empty() && !tree.sources.is_empty(), "{}", fixture.display());
        match tree.check() {
            None => return,
            Some(Ok(())) => {}
            Some(Err(difference)) => failed.push(format!("{}: {difference}", fixture.display())),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Nothing is counted twice or dropped because of a name: the numbers of chips and zones, control types and names of drivers
/// differ between kernels, boots and forks.
#[test]
fn documented_machines_have_the_same_total_under_other_numbers_and_names() {
    let mut failed = Vec::new();
    for (seed, fixture) in (1..).zip(fixtures()) {
        match MachineTree::read(&fixture).renamed(seed).check_kinds() {
            None => return,
            Some(Ok(())) => {}
            Some(Err(difference)) => failed.push(format!("{}: {difference}", fixture.display())),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Rewrites the page instead of comparing it.
const WRITE_PAGE: &str = "WATTSPAN_WRITE_HARDWARE";

#[test]
fn the_page_of_machines_is_that_of_the_fixtures() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hardware.md");
    let trees: Vec<MachineTree> = fixtures().iter().map(|fixture| MachineTree::read(fixture)).collect();
    let expected = hardware_page(&trees);
    if std::env::var_os(WRITE_PAGE).is_some() {
        fs::write(&page, &expected).unwrap();
    }
    let shown = fs::read_to_string(&page).unwrap_or_default();
    assert!(
        shown == expected,
        "docs/hardware.md is out of date; run {WRITE_PAGE}=1 cargo test --test meter the_page_of_machines"
    );
}

fn hardware_page(trees: &[MachineTree]) -> String {
    let of = |origin: TreeOrigin| trees.iter().filter(move |tree| tree.origin == origin);
    let (reported, derived) = (of(TreeOrigin::Reported).count(), of(TreeOrigin::Derived).count());
    let mut page = format!(
        "# Machines\n\n\
         <!-- Generated from tests/fixtures/trees: WATTSPAN_WRITE_HARDWARE=1 cargo test --test meter the_page_of_machines -->\n\n\
         {reported} machines from public reports, and {derived} derived from drivers and their documentation. None was at hand. A test\n\
         serves the files of each as a file system and checks the domains, their parents, what is counted and the power of the\n\
         total against the source. Powers that a source does not show are stand-ins. NVIDIA GPUs and `perf` have no files to\n\
         serve and are tested elsewhere ([sources.md](sources.md)).\n"
    );
    for (origin, title) in [(TreeOrigin::Reported, "Reported"), (TreeOrigin::Derived, "Derived")] {
        page.push_str(&format!(
            "\n## {title}\n\n| machine | counted | total | not counted | source |\n|---|---|---|---|---|\n"
        ));
        of(origin).for_each(|tree| page.push_str(&table_row(tree)));
    }
    page
}

fn table_row(tree: &MachineTree) -> String {
    let names = |is_counted: bool| {
        let mut names: Vec<&str> = tree
            .domains
            .iter()
            .filter(|domain| domain.ends_with(" counted") == is_counted)
            .filter_map(|domain| domain.split(' ').next())
            .collect();
        names.sort_unstable();
        if names.is_empty() { "–".to_owned() } else { names.join(", ") }
    };
    let total = tree.total_w.map_or("–".to_owned(), |watts| format!("{watts} W"));
    let sources = tree.sources.join("; ").replace('|', "\\|");
    format!("| {} | {} | {total} | {} | {sources} |\n", tree.name, names(true), names(false))
}
