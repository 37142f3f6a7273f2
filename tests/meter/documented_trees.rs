//! Machines from public documentation: the domains found, how they nest, and which are counted.
//!
//! Each fixture names the source of its shape. A value that the source does not show is "?" and has no meaning here:
//! these tests check the tree only, not energy.

use std::fs;
use std::path::Path;

use crate::fake::FakeSysfs;
use wattspan::clock::Clock;
use wattspan::sources::dedup::domain_tree::counted_in_total;
use wattspan::sources::{SourceSettings, discover};

/// Replaces a value that the source does not show.
const UNSHOWN: &str = "1000";

/// The fixture as a tree, and the domains expected in it.
fn read(fixture: &Path) -> (FakeSysfs, Vec<String>) {
    let (fake_sysfs, mut expected) = (FakeSysfs::new(), Vec::new());
    for line in fs::read_to_string(fixture).unwrap().lines().filter(|line| !line.starts_with('#')) {
        if let Some(domain) = line.strip_prefix("domain ") {
            expected.push(domain.to_owned());
            continue;
        }
        let (path, value) = line.split_once(" = ").unwrap_or_else(|| panic!("{line:?}"));
        let text = format!("{}\n", if value == "?" { UNSHOWN } else { value });
        match path.split_once('/').unwrap() {
            ("sys", path) => fake_sysfs.sys_file(path, &text),
            ("proc", path) => fake_sysfs.proc_file(path, &text),
            _ => panic!("{path}: neither sys nor proc"),
        }
    }
    (fake_sysfs, expected)
}

#[test]
fn documented_machines_have_the_documented_domains() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/trees");
    let mut fixtures: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    fixtures.sort();
    assert!(fixtures.len() >= 5, "{fixtures:?}");
    for fixture in fixtures {
        let (fake_sysfs, mut expected) = read(&fixture);
        let mut enabled = SourceSettings::default().enabled;
        // These sources would find this machine's own counters.
        enabled.retain(|name| name != "perf" && name != "nvml" && name != "estimate");
        let enabled: Vec<_> = enabled.iter().map(String::as_str).collect();
        let found = discover(&fake_sysfs.settings(&enabled), &Clock::Machine);
        let domains: Vec<_> = found.opened.iter().flat_map(|opened| opened.domains.clone()).collect();
        let counted = counted_in_total(&domains, &vec![true; domains.len()]);
        let mut shown: Vec<String> = domains
            .iter()
            .zip(counted)
            .map(|(domain, counted)| {
                let kind = serde_json::to_value(domain.kind).unwrap();
                let parent = domain.parent.as_deref().unwrap_or("-");
                let counted = if counted { "counted" } else { "-" };
                format!("{} {} {parent} {counted}", domain.name, kind.as_str().unwrap())
            })
            .collect();
        shown.sort();
        expected.sort();
        assert_eq!(shown, expected, "{}: {:?}", fixture.display(), found.absent);
    }
}
