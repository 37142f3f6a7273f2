//! The fuzz targets with the inputs of their corpora: what a fuzzer once reached stays reached, without a fuzzer.
#![cfg(target_os = "linux")]

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use wattspan_client::protocol::{METER_DESCRIPTION, METHOD_NAMES, SERVICE_DESCRIPTION};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The names in a directory.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The inputs of a target with their names.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = fuzz().join("corpus").join(target);
    let read = |name: String| (name.clone(), fs::read(directory.join(&name)).unwrap());
    names(&directory).into_iter().map(read).collect()
}

#[test]
fn every_input_of_the_corpora_passes() {
    let (mut inputs, mut failed) = (0, Vec::new());
    for (target, check) in targets::TARGETS {
        for (name, bytes) in corpus(target) {
            if std::panic::catch_unwind(|| check(&bytes)).is_err() {
                failed.push(format!("fuzz/corpus/{target}/{name}"));
            }
            inputs += 1;
        }
    }
    assert!(failed.is_empty(), "these inputs fail:\n{}", failed.join("\n"));
    assert!(inputs > 5 * targets::TARGETS.len(), "only {inputs} inputs");
}

/// A small random number generator (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as usize % limit.max(1)
    }
}

/// Bytes and numbers at which parsers branch.
const TOKENS: [&[u8]; 28] = [
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\n",
    b"\r\n",
    b"\0",
    b" ",
    b"\xff",
    b"\xc3\xa9",
    b"-",
    b".",
    b"e9",
    b"nan",
    b"null",
    b"true",
    b"0",
    b"18446744073709551615",
    b"9223372036854775808",
    b"4294967296",
    b"\\ud83d",
    b"DIE_1_",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x80",
];

/// One to four random changes of an input: bytes, bits, tokens, parts that are removed, repeated or of another input.
fn mutate(input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1).min(bytes.len());
        let end = (at + random.below(16)).min(bytes.len());
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 => drop(bytes.splice(at..at, TOKENS[random.below(TOKENS.len())].iter().copied())),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let part = bytes[at..end].repeat(1 + random.below(3));
                drop(bytes.splice(at..at, part));
            }
            5 => {
                let from = random.below(other.len());
                let part = other[from..].iter().copied().take(random.below(64)).collect::<Vec<u8>>();
                drop(bytes.splice(at..end, part));
            }
            _ => drop(bytes.splice(at..end, TOKENS[random.below(TOKENS.len())].iter().copied())),
        }
    }
    bytes
}

/// What needs no fuzzer: random changes of the corpora's inputs, from a seed. `WATTSPAN_CASES` multiplies their number,
/// `WATTSPAN_SEED` sets the seed, and `WATTSPAN_TARGET` selects one target. A failing input is printed.
#[test]
fn random_changes_of_the_corpora_pass() {
    let number =
        |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap_or(default));
    let (cases, seed) = (number("WATTSPAN_CASES", 1), number("WATTSPAN_SEED", 1));
    let only = std::env::var("WATTSPAN_TARGET").ok();
    let mut failed = Vec::new();
    let selected = |target: &&targets::Target| only.as_deref().is_none_or(|only| only == target.0);
    for (target, check) in targets::TARGETS.iter().filter(selected) {
        let (inputs, mut random) = (corpus(target), Random(seed | 1));
        for _ in 0..cases * 200 {
            let one = &inputs[random.below(inputs.len())].1;
            let changed = mutate(one, &inputs[random.below(inputs.len())].1, &mut random);
            if std::panic::catch_unwind(|| check(&changed)).is_err() {
                failed.push(format!("{target}: b\"{}\"", changed.escape_ascii()));
                break;
            }
        }
    }
    assert!(failed.is_empty(), "these inputs fail:\n{}", failed.join("\n"));
}

#[test]
fn each_target_has_a_program_and_a_small_corpus() {
    let listed: BTreeSet<String> = targets::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(listed.len(), targets::TARGETS.len(), "a name is used twice");
    assert_eq!(names(&fuzz().join("corpus")), listed);
    let programs: BTreeSet<String> = listed.iter().map(|name| format!("{name}.rs")).collect();
    assert_eq!(names(&fuzz().join("fuzz_targets")), programs);
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let mut bytes = 0;
    for target in &listed {
        assert!(
            manifest.contains(&format!("\nname = \"{target}\"\n")),
            "fuzz/Cargo.toml does not build {target}"
        );
        let program = fs::read_to_string(fuzz().join(format!("fuzz_targets/{target}.rs"))).unwrap();
        assert!(
            program.contains(&format!("wattspan_fuzz::{target}::check(")),
            "{target}.rs runs another target"
        );
        let inputs = corpus(target);
        assert!((2..=64).contains(&inputs.len()), "{target} has {} inputs", inputs.len());
        bytes += inputs.iter().map(|(_, input)| input.len()).sum::<usize>();
    }
    assert!(bytes < 1_000_000, "the corpora have {bytes} bytes");
}

/// The methods that an interface description declares.
fn declared_methods(description: &str) -> impl Iterator<Item = String> {
    let interface =
        description.lines().find_map(|line| line.strip_prefix("interface ")).expect("the interface");
    let names = description.lines().filter_map(|line| line.strip_prefix("method ")?.split('(').next());
    names.map(move |name| format!("{interface}.{}", name.trim()))
}

#[test]
fn the_corpus_of_calls_has_an_accepted_call_of_each_method_of_the_contract() {
    let declared: BTreeSet<String> =
        [METER_DESCRIPTION, SERVICE_DESCRIPTION].into_iter().flat_map(declared_methods).collect();
    let known: BTreeSet<String> = METHOD_NAMES.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(known, declared, "the target's methods are not those of the contract");
    let calls = corpus("varlink_call").into_iter().filter_map(|(_, message)| {
        let (method, request) = wattspan::server::fuzz_entry::call(&message)?;
        request?.is_ok().then_some(method)
    });
    assert_eq!(calls.collect::<BTreeSet<String>>(), declared);
}

#[test]
fn the_reference_of_the_schedules_is_reached_by_their_corpus() {
    // Two counters, spans that overlap, a change of weight, a phase, a cancellation, and updates between them.
    let opens = |bytes: &[u8]| bytes.iter().filter(|byte| **byte % 8 == 3).count();
    assert!(corpus("attribution_schedule").iter().any(|(_, bytes)| opens(bytes) > 2 && bytes.len() > 40));
}
