//! Allow-lists for rules that do not hold everywhere yet: `tests/architecture/allowed/NAME.txt`, one finding per line.
//!
//! Invariant: a list only shrinks. A finding that is not listed fails, and so does a listed one that no longer occurs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

pub struct Allowed {
    path: PathBuf,
    lines: BTreeSet<String>,
}

impl Allowed {
    /// Reads the list; a missing file is an empty list.
    pub fn read(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/architecture/allowed");
        let path = folder.join(name).with_extension("txt");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned);
        Self { lines: lines.collect(), path }
    }

    /// Compares the findings with the list, line by line.
    pub fn check(&self, found: BTreeSet<String>, what: &str) {
        let new: Vec<_> = found.difference(&self.lines).cloned().collect();
        let gone: Vec<_> = self.lines.difference(&found).cloned().collect();
        assert!(new.is_empty(), "{what}:\n  {}", new.join("\n  "));
        let list = self.path.display();
        assert!(gone.is_empty(), "no longer found; remove these lines from {list}:\n  {}", gone.join("\n  "));
    }

    /// Compares findings that end in a count, `TEXT: N`; a listed count is the maximum allowed.
    pub fn check_counts(&self, found: BTreeSet<String>, what: &str) {
        let split = |line: &String| -> (String, usize) {
            let (text, count) = line.rsplit_once(": ").expect("a finding with its count");
            (text.to_owned(), count.parse().expect("a count"))
        };
        let listed: std::collections::BTreeMap<_, _> = self.lines.iter().map(split).collect();
        let now: std::collections::BTreeMap<_, _> = found.iter().map(split).collect();
        let most = |text: &String| listed.get(text).copied().unwrap_or(0);
        let new: Vec<_> = now.iter().filter(|(text, count)| **count > most(text)).collect();
        assert!(new.is_empty(), "{what}, with their number:\n  {new:#?}");
        let fewer: Vec<_> =
            listed.iter().filter(|(text, count)| now.get(*text).copied().unwrap_or(0) < **count).collect();
        let list = self.path.display();
        assert!(fewer.is_empty(), "fewer than listed; lower or remove these lines in {list}:\n  {fewer:#?}");
    }
}
