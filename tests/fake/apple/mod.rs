//! A fake of Apple's libraries, built by the test that uses it, and its simulated Mac.
//!
//! Each test has its own copy and thus its own Mac: a file of words that the library maps and the test changes at run
//! time, and a list of channels. The library counts live objects and misuse.

#![allow(dead_code, reason = "each test program uses its part")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;
use wattspan::sources::SourceSettings;

const HEAD: u64 = 64;
const CHANNEL: u64 = 16;
const MAX_CHANNELS: u64 = 512;
const KEYS_AT: u64 = HEAD + CHANNEL * MAX_CHANNELS;
const KEY: u64 = 8;
const MAX_KEYS: u64 = 32;

/// Settings of the whole Mac, in the order of `apple.c`.
#[derive(Debug, Clone, Copy)]
pub enum Mac {
    /// The clock in ticks; 0: the real clock.
    NowTicks,
    /// Nanoseconds per tick: numerator.
    Numerator,
    /// Nanoseconds per tick: denominator.
    Denominator,
    GroupAbsent,
    /// IOReport accepts a subscription to the whole group only.
    RefusesPart,
    RefusesAll,
    NoSamples,
    /// Live objects.
    Live,
    /// Uses of an object that was freed, has another type, or must not be changed by the caller.
    Misused,
    /// Live IOKit entries and connections.
    Entries,
    /// 0: none; 1: Intel's; 2: Apple silicon's.
    Controller,
    /// The status with which opening the controller fails.
    ControllerRefuses,
    ControllerCalls,
    Samples,
    /// Number of channels in the last sample.
    Sampled,
}

/// Settings of one channel.
#[derive(Debug, Clone, Copy)]
pub enum Knob {
    Value,
    /// In ticks; 0: now.
    Stamp,
    /// A combination of `HIDDEN` and the constants after it.
    Flags,
    Id,
    /// The power from which the channel counts by itself.
    PowerMw,
    /// The interval at which that count is published; 0: at each read.
    BatchNs,
    /// Nanojoules per count.
    UnitNj,
}

pub const HIDDEN: u64 = 1;
pub const WITHOUT_ELEMENT: u64 = 2;
pub const NOT_SIMPLE: u64 = 4;
pub const SHORT_ELEMENT: u64 = 8;
pub const FROZEN: u64 = 16;

pub const INTEL: u64 = 1;
pub const SILICON: u64 = 2;

/// Nanoseconds per tick of Apple silicon, as a fraction: 24 MHz.
pub const TICK: (u64, u64) = (125, 3);

/// The list of a chip's channels, from the fixtures.
pub fn fixture(chip: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/ioreport/{chip}.channels"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The libraries, with their simulated Mac.
pub struct Library {
    folder: TempDir,
    memory: File,
    channels: Vec<String>,
}

impl Library {
    /// Creates a Mac with the real clock and these channels; each line has a name, a tab and a unit label.
    pub fn new(list: &str) -> Self {
        static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
        let folder = tempfile::tempdir().unwrap();
        fs::write(library_in(&folder), BUILT.get_or_init(build)).unwrap();
        fs::write(folder.path().join("libapple.so.channels"), list).unwrap();
        let file = folder.path().join("libapple.so.words");
        let memory = OpenOptions::new().read(true).write(true).create_new(true).open(file).unwrap();
        memory.set_len(8 * (KEYS_AT + KEY * MAX_KEYS)).unwrap();
        let named = |line: &str| line.split_once('\t').map(|(name, _)| name.to_owned());
        let channels = list.lines().filter(|line| !line.starts_with('#')).filter_map(named).collect();
        let library = Self { folder, memory, channels };
        library.set_global(Mac::Numerator, TICK.0);
        library.set_global(Mac::Denominator, TICK.1);
        library
    }

    pub fn path(&self) -> PathBuf {
        library_in(&self.folder)
    }

    /// Settings that refer only to this library.
    pub fn settings(&self) -> SourceSettings {
        let enabled = vec!["ioreport".to_owned(), "smc".to_owned()];
        SourceSettings { apple_library: Some(self.path()), enabled, ..SourceSettings::default() }
    }

    pub fn set_global(&self, knob: Mac, value: u64) {
        self.write(knob as u64, value);
    }

    pub fn get_global(&self, knob: Mac) -> u64 {
        self.read(knob as u64)
    }

    pub fn set(&self, channel: &str, knob: Knob, value: u64) {
        let nth = self.channels.iter().position(|name| name == channel);
        let nth = nth.unwrap_or_else(|| panic!("no channel {channel}")) as u64;
        self.write(HEAD + CHANNEL * nth + knob as u64, value);
    }

    /// Publishes a channel's value with the stamp `at_ns`.
    pub fn publish(&self, channel: &str, value: u64, at_ns: u64) {
        self.set(channel, Knob::Value, value);
        self.set(channel, Knob::Stamp, ticks(at_ns));
    }

    pub fn set_clock(&self, now_ns: u64) {
        self.set_global(Mac::NowTicks, ticks(now_ns));
    }

    /// Adds a key to the controller.
    pub fn key(&self, nth: u64, name: &[u8; 4], kind: &[u8; 4], value: &[u8]) {
        let mut bytes = [0; 8];
        bytes[..value.len()].copy_from_slice(value);
        let of = |text: &[u8; 4]| u64::from(u32::from_be_bytes(*text));
        let words = [of(name), of(kind), value.len() as u64, u64::from_le_bytes(bytes)];
        for (at, word) in words.into_iter().enumerate() {
            self.write(KEYS_AT + KEY * nth + at as u64, word);
        }
    }

    /// Sets the status that IOKit returns for a key.
    pub fn key_status(&self, nth: u64, status: u64) {
        self.write(KEYS_AT + KEY * nth + 5, status);
    }

    fn write(&self, word: u64, value: u64) {
        self.memory.write_all_at(&value.to_le_bytes(), 8 * word).unwrap();
    }

    fn read(&self, word: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read_exact_at(&mut bytes, 8 * word).unwrap();
        u64::from_le_bytes(bytes)
    }
}

/// Compiles the library once for each test program.
fn build() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake/apple/apple.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(library_in(&folder)).arg(source);
    let built = compiler.output().expect("a C compiler, which the linker of every Rust program is, too");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    fs::read(library_in(&folder)).unwrap()
}

fn library_in(folder: &TempDir) -> PathBuf {
    folder.path().join("libapple.so")
}

/// An instant in ticks, rounded down.
pub fn ticks(ns: u64) -> u64 {
    u64::try_from(u128::from(ns) * u128::from(TICK.1) / u128::from(TICK.0)).unwrap()
}

/// An instant in nanoseconds after rounding to ticks, as the Mac reports it.
pub fn stamp_ns(ns: u64) -> u64 {
    u64::try_from(u128::from(ticks(ns)) * u128::from(TICK.0) / u128::from(TICK.1)).unwrap()
}
