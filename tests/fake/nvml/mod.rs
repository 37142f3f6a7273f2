//! A stand-in `libnvidia-ml.so`, built by the test that wants it, and the boards behind it.
//!
//! Each test has a copy of its own, so that its boards are its own too. The boards are words in a file that the library
//! maps: a test turns them while the program reads. The library's clock is the machine's until a test sets it.

#![allow(dead_code, reason = "each test program uses its part")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use wattspan::sources::SourceSettings;

const HEAD: u64 = 16;
const BOARD: u64 = 64;
const CURVE: u64 = 23;
const MAX_STEPS: usize = 16;
const MAX_BOARDS: u64 = 16;

/// Knobs of the whole driver; the order is that of `nvml.c`.
#[derive(Debug, Clone, Copy)]
pub enum Driver {
    /// The library's clock; 0: CLOCK_MONOTONIC.
    NowNs,
    Boards,
    /// What `nvmlInit` answers instead.
    Refusal,
    InitHangs,
    /// Grows with each load of the driver.
    Generation,
    Unloaded,
    /// How often the library was initialised.
    Inits,
}

/// Knobs of one board; the order is that of `nvml.c`.
#[derive(Debug, Clone, Copy)]
pub enum Knob {
    /// Its index.
    ShownAt,
    /// What its UUID is made of.
    Name,
    /// 0: none; 1: as a field and by its call; 2: by its call only.
    Counter,
    /// Whether it has POWER_INSTANT.
    Instant,
    /// 1: Grace Hopper; 2: a module that may hold several boards.
    Module,
    Memory,
    /// 0: not supported; 1: on; 2: off.
    Mig,
    /// What every call answers instead.
    Refuses,
    /// Every call hangs while this is not 0.
    Hangs,
    UpdateNs,
    PhaseNs,
    SensorNs,
    /// The counter counts from here on.
    BaseNs,
    /// What an energy costs: CPU time ...
    BurnNs,
    /// ... and time asleep.
    SleepNs,
    EnergyReads,
    PowerReads,
    LimitMw,
    /// Whether it has `nvmlDeviceGetPowerUsage`.
    Usage,
    Architecture,
    /// The sensor shows so much of the truth.
    SensorPermille,
    /// A call hangs in it, or has.
    BlockedCalls,
    Steps,
    /// Whether the driver tells its use by process.
    ProcessUsageSupported = 56,
    /// Two processes, and what each uses of the board.
    UserA,
    UserAPercent,
    UserB,
    UserBPercent,
}

pub const GPU_IS_LOST: u64 = 15;
pub const LIBRARY_MISMATCH: u64 = 18;
pub const UNKNOWN: u64 = 999;

/// The library, with its boards.
pub struct Library {
    folder: TempDir,
    memory: File,
}

impl Library {
    /// With so many boards, all alike: 70 W for 300 ms and 400 W for 200 ms, over and over; a counter that moves every
    /// 100 ms and a sensor that moves every 20 ms.
    pub fn new(boards: u64) -> Self {
        Self::built(boards, &[])
    }

    /// With parts left out: `WITHOUT_FIELDS`, ...
    pub fn built(boards: u64, without: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake/nvml/nvml.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(library_in(&folder)).arg(source);
        let built = compiler.args(without.iter().map(|part| format!("-D{part}"))).output();
        let built = built.expect("a C compiler, which the linker of every Rust program is, too");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let boards_file = folder.path().join("libnvidia-ml.so.boards");
        let memory = OpenOptions::new().read(true).write(true).create_new(true).open(boards_file).unwrap();
        memory.set_len(8 * (HEAD + BOARD * MAX_BOARDS)).unwrap();
        let library = Self { folder, memory };
        library.set_global(Driver::Boards, boards);
        library.set_global(Driver::Generation, 1);
        for board in 0..boards {
            library.init_board(board);
        }
        library
    }

    fn init_board(&self, board: u64) {
        let knobs = [
            (Knob::ShownAt, board),
            (Knob::Name, 0xA0 + board),
            (Knob::Counter, 1),
            (Knob::Instant, 1),
            (Knob::Mig, 2),
            (Knob::UpdateNs, 100_000_000),
            (Knob::PhaseNs, 7_000_000 * board),
            (Knob::SensorNs, 20_000_000),
            (Knob::LimitMw, 450_000),
            (Knob::Usage, 1),
            (Knob::Architecture, 9),
            (Knob::SensorPermille, 1_000),
        ];
        knobs.into_iter().for_each(|(knob, value)| self.set(board, knob, value));
        self.curve(board, &[(300_000_000, 70_000), (200_000_000, 400_000)]);
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        library_in(&self.folder)
    }

    /// Settings that know nothing but this library.
    pub fn settings(&self) -> SourceSettings {
        let enabled = vec!["nvml".to_owned()];
        SourceSettings { nvml_library: Some(self.path()), enabled, ..SourceSettings::default() }
    }

    /// Turns a knob of the driver.
    pub fn set_global(&self, knob: Driver, value: u64) {
        self.write(knob as u64, value);
    }

    /// A knob of the driver.
    pub fn get_global(&self, knob: Driver) -> u64 {
        self.read(knob as u64)
    }

    /// Turns a knob of a board.
    pub fn set(&self, board: u64, knob: Knob, value: u64) {
        self.write(HEAD + BOARD * board + knob as u64, value);
    }

    /// A knob of a board.
    pub fn get(&self, board: u64, knob: Knob) -> u64 {
        self.read(HEAD + BOARD * board + knob as u64)
    }

    /// Gives a board another power curve: (nanoseconds, milliwatts), over and over.
    pub fn curve(&self, board: u64, steps: &[(u64, u64)]) {
        assert!(steps.len() <= MAX_STEPS);
        for (nth, (ns, mw)) in steps.iter().enumerate() {
            self.write(HEAD + BOARD * board + CURVE + 2 * nth as u64, *ns);
            self.write(HEAD + BOARD * board + CURVE + 2 * nth as u64 + 1, *mw);
        }
        self.set(board, Knob::Steps, steps.len() as u64);
    }

    /// Loads another driver at `now_ns`: all counters are at 0, and handles of the one before are worth nothing.
    pub fn reload(&self, now_ns: u64) {
        self.set_global(Driver::Generation, self.get_global(Driver::Generation) + 1);
        (0..self.get_global(Driver::Boards)).for_each(|board| self.set(board, Knob::BaseNs, now_ns));
    }

    /// The UUID that a board with this name has.
    pub fn uuid(name: u64) -> String {
        format!("GPU-{name:08x}-0000-4000-8000-000000000000")
    }

    fn write(&self, word: u64, value: u64) {
        self.memory.write_all_at(&value.to_ne_bytes(), 8 * word).unwrap();
    }

    fn read(&self, word: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read_exact_at(&mut bytes, 8 * word).unwrap();
        u64::from_ne_bytes(bytes)
    }
}

fn library_in(folder: &TempDir) -> PathBuf {
    // Its real name: loaders tell libraries apart by file, not by name.
    folder.path().join("libnvidia-ml.so")
}
