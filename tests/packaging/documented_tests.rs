//! Every test that a document names as the proof of a claim exists.

use std::path::{Path, PathBuf};

use super::documented_commands::{files, read, root};

/// The names of tests in a document: `program::module::function` between backticks.
fn named_tests(text: &str) -> Vec<&str> {
    let is_test = |span: &&str| {
        let parts: Vec<&str> = span.split("::").collect();
        let is_name = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        // Test names are sentences; a path of an item of the program is not.
        parts.len() == 3 && parts.iter().all(is_name) && parts[2].matches('_').count() >= 2
    };
    text.split('`').skip(1).step_by(2).filter(is_test).collect()
}

/// Whether the function is a test in a file of the module: `module.rs`, or a file in `module/`.
fn exists(test: &str, sources: &[(PathBuf, String)]) -> bool {
    let parts: Vec<&str> = test.split("::").collect();
    let [area, module, function] = parts[..] else { return false };
    let is_module = |path: &Path| {
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let folders: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
        folders.contains(&area) && (stem == Some(module) || folders.contains(&module))
    };
    let header = format!("fn {function}(");
    let is_test = |text: &str| {
        text.match_indices(&header).any(|(at, _)| {
            text[..at].trim_end().ends_with(']')
                && text[..at].rfind("#[test]").is_some_and(|test| !text[test..at].contains("fn "))
        })
    };
    sources.iter().any(|(path, text)| is_module(path) && is_test(text))
}

fn sources() -> Vec<(PathBuf, String)> {
    let all = ["src", "crates", "tests"].into_iter().flat_map(|directory| files(directory, &["rs"]));
    all.map(|path| (path.strip_prefix(root()).unwrap().to_owned(), read(&path))).collect()
}

#[test]
fn every_test_that_a_document_names_exists() {
    let sources = sources();
    let documents =
        files("docs", &["md"]).into_iter().chain(["README.md", "SECURITY.md"].map(|name| root().join(name)));
    let (mut named, mut missing) = (0, Vec::new());
    for document in documents {
        let text = read(&document);
        for test in named_tests(&text) {
            named += 1;
            if !exists(test, &sources) {
                missing.push(format!("{}: {test}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "these tests do not exist:\n{}", missing.join("\n"));
    assert!(named > 60, "only {named} tests are named");
}

/// The rows of the README's table of claims: the claim, and the tests that it names.
fn claims(text: &str) -> Vec<(&str, Vec<&str>)> {
    let table = text.split("\n| claim | test |\n|---|---|\n").nth(1).unwrap_or_default();
    let rows = table.lines().take_while(|line| line.starts_with("| "));
    rows.map(|row| (row[2..].split(" | ").next().unwrap_or_default(), named_tests(row))).collect()
}

#[test]
fn each_claim_of_the_readme_has_a_test() {
    let text = read(&root().join("README.md"));
    let claims = claims(&text);
    let without: Vec<&str> =
        claims.iter().filter(|(_, tests)| tests.is_empty()).map(|(claim, _)| *claim).collect();
    assert!(without.is_empty(), "no test is named for {without:?}");
    // What the sections on figures and errors claim.
    for part in [
        "measured = attributed + unattributed",
        "within share ± error",
        "absent, never 0",
        "worst grade",
        "refutes",
    ] {
        assert!(claims.iter().any(|(claim, _)| claim.contains(part)), "{part} has no row");
    }
}

/// The numbers of a row of the fault catalogue, such as "33, 34", and the tests that it names.
fn fault_row(line: &str) -> Option<(Vec<u32>, Vec<&str>)> {
    let numbers = line.strip_prefix("| ")?.split(" |").next()?;
    let numbers = numbers.split(", ").map(|number| number.parse().ok()).collect::<Option<_>>()?;
    Some((numbers, named_tests(line)))
}

#[test]
fn each_of_the_40_faults_has_a_test_or_says_how_to_try_it() {
    let text = read(&root().join("docs/faults.md"));
    let rows: Vec<_> = text.lines().filter_map(fault_row).collect();
    let numbers: Vec<u32> = rows.iter().flat_map(|(numbers, _)| numbers.clone()).collect();
    assert_eq!(numbers, (1..=40).collect::<Vec<u32>>());
    let remarks = text.split("**What no test shows.**").nth(1).unwrap();
    for (numbers, tests) in &rows {
        let is_explained = numbers.iter().all(|number| remarks.contains(&format!(" {number}: ")));
        assert!(!tests.is_empty() || is_explained, "{numbers:?} has neither a test nor an explanation");
    }
}

#[test]
fn a_test_that_does_not_exist_is_found() {
    let sources = sources();
    for (test, there) in [
        ("daemon::store::a_damaged_file_is_moved_aside_and_a_fresh_one_begun", true),
        ("sources::counter::the_first_reading_is_a_baseline_and_no_energy", true),
        ("sources::domain_tree::psys_is_never_added_to_its_packages", true),
        // In another module, and a function that is no test.
        ("proxy::store::a_damaged_file_is_moved_aside_and_a_fresh_one_begun", false),
        ("packaging::documented_tests::named_tests", false),
        ("daemon::store::an_account_is_never_lost", false),
    ] {
        assert_eq!(exists(test, &sources), there, "{test}");
    }
    assert_eq!(named_tests("see `daemon::store::a_b_c`, `std::fs::read`, `a::b`"), ["daemon::store::a_b_c"]);
}
