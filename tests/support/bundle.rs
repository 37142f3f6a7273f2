//! Bundles of `wattspan doctor --bundle` as tests: the tree shows the domains that the bundle lists, and its trace replays.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use wattspan::clock::Clock;
use wattspan::domain::EnergyReading;
use wattspan::embedded::describe_tree;
use wattspan::sources::replay;
use wattspan::sources::replay::trace::RecordedTrace;

/// Checks the bundle at `path`. Returns its domains.
pub fn check(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.starts_with("# wattspan bundle 1\n"), "{}: not a bundle of a known version", path.display());
    let root = tempfile::tempdir().unwrap();
    for top in ["sys", "proc"] {
        fs::create_dir(root.path().join(top)).unwrap();
    }
    let (mut expected, mut trace) = (Vec::new(), String::new());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(domain) = line.strip_prefix("domain ") {
            expected.push(domain.to_owned());
        } else if let Some(line) = line.strip_prefix("trace ") {
            trace += &format!("{line}\n");
        } else {
            add_to_tree(root.path(), line);
        }
    }
    expected.sort();
    let shown = describe_tree(&root.path().join("sys"), &root.path().join("proc"));
    assert_eq!(shown, expected, "{}", path.display());
    if !trace.is_empty() {
        check_trace(&trace);
    }
    expected
}

fn add_to_tree(root: &Path, line: &str) {
    let at = |path: &str| {
        assert!(path.starts_with("sys/") || path.starts_with("proc/"), "{line:?}");
        assert!(!path.split('/').any(|part| part == ".."), "{line:?}");
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    if let Some((path, hex)) = line.split_once(" =hex ") {
        let digits: Vec<u8> = hex.bytes().map(|c| (c as char).to_digit(16).unwrap() as u8).collect();
        let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        fs::write(at(path), bytes).unwrap();
    } else if let Some((path, target)) = line.split_once(" -> ") {
        let target = at(target);
        fs::create_dir_all(&target).unwrap();
        symlink(target, at(path)).unwrap();
    } else {
        let (path, value) = line.split_once(" = ").unwrap_or_else(|| panic!("{line:?}"));
        let value = value.replace("\\\\", "\0").replace("\\n", "\n").replace('\0', "\\");
        fs::write(at(path), format!("{value}\n")).unwrap();
    }
}

/// The recorded energy comes back, and decreases in no epoch.
fn check_trace(trace: &str) {
    let recorded = RecordedTrace::parse(trace.as_bytes()).unwrap();
    let clock = Clock::manual(0);
    let mut opened = replay::start_trace(recorded, &clock);
    let mut last = vec![EnergyReading::default(); opened.domains.len()];
    let mut readings = last.clone();
    for at_ms in 0..20_000 {
        clock.set(at_ms * 1_000_000);
        opened.source.read(&mut readings);
        for (reading, last) in readings.iter().zip(&mut last) {
            if reading.valid && last.valid && reading.epoch == last.epoch {
                assert!(reading.energy_uj >= last.energy_uj);
            }
            if reading.valid {
                *last = *reading;
            }
        }
    }
    assert!(last.iter().any(|reading| reading.valid), "no reading of the trace is valid");
}
