//! A fake `libnvidia-ml.so`, built by the test that uses it, and its simulated boards.
//!
//! Each test has its own copy and thus its own boards: a file of words that the library maps and the test changes at
//! run time. The library uses the machine's clock until a test sets it.

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

/// Settings of the whole driver, in the order of `nvml.c`.
#[derive(Debug, Clone, Copy)]
pub enum Driver {
    /// The library's clock; 0: CLOCK_MONOTONIC.
    NowNs,
    Boards,
    /// The status with which `nvmlInit` fails.
    Refusal,
    InitHangs,
    /// Incremented each time the driver is loaded.
    Generation,
    Unloaded,
    /// How many times the library was initialised.
    Inits,
    ShutdownHangs,
}

/// Settings of one board, in the order of `nvml.c`.
#[derive(Debug, Clone, Copy)]
pub enum Knob {
    /// The board's index.
    ShownAt,
    /// The number from which its UUID is made.
    Name,
    /// 0: none; 1: as a field and by its function; 2: by its function only.
    Counter,
    /// Whether it has POWER_INSTANT.
    Instant,
    /// 1: Grace Hopper; 2: a module that may hold several boards.
    Module,
    Memory,
    /// 0: not supported; 1: on; 2: off.
    Mig,
    /// The status with which every call fails.
    Refuses,
    /// Nonzero: every call hangs.
    Hangs,
    UpdateNs,
    PhaseNs,
    SensorNs,
    /// The instant at which the counter starts.
    BaseNs,
    /// CPU time of an energy read.
    BurnNs,
    /// Time asleep in an energy read.
    SleepNs,
    EnergyReads,
    PowerReads,
    LimitMw,
    /// Whether it has `nvmlDeviceGetPowerUsage`.
    Usage,
    Architecture,
    /// The ratio of the sensor's value to the true power, in thousandths.
    SensorPermille,
    /// Calls that hang or have hung.
    BlockedCalls,
    Steps,
    /// Whether the driver reports utilization by process.
    ProcessUsageSupported = 56,
    /// Two processes, and each one's utilization of the board.
    UserA,
    UserAPercent,
    UserB,
    UserBPercent,
    /// The delay from an update of the counter to its appearance.
    LagNs,
    /// The board's utilization in percent, plus 1; 0: not supported.
    LoadPercent,
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
    /// Creates identical boards that repeat 70 W for 300 ms and 400 W for 200 ms; the counter moves every 100 ms and
    /// the sensor every 20 ms.
    pub fn new(boards: u64) -> Self {
        Self::built(boards, &[])
    }

    /// As `new`, with parts left out of the library: `WITHOUT_FIELDS` and others, see `nvml.c`.
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

    pub fn path(&self) -> PathBuf {
        library_in(&self.folder)
    }

    /// Settings that refer only to this library.
    pub fn settings(&self) -> SourceSettings {
        let enabled = vec!["nvml".to_owned()];
        SourceSettings { nvml_library: Some(self.path()), enabled, ..SourceSettings::default() }
    }

    pub fn set_global(&self, knob: Driver, value: u64) {
        self.write(knob as u64, value);
    }

    pub fn get_global(&self, knob: Driver) -> u64 {
        self.read(knob as u64)
    }

    pub fn set(&self, board: u64, knob: Knob, value: u64) {
        self.write(HEAD + BOARD * board + knob as u64, value);
    }

    pub fn get(&self, board: u64, knob: Knob) -> u64 {
        self.read(HEAD + BOARD * board + knob as u64)
    }

    /// Sets a board's power curve: steps of (nanoseconds, milliwatts), repeated.
    pub fn curve(&self, board: u64, steps: &[(u64, u64)]) {
        assert!(steps.len() <= MAX_STEPS);
        for (nth, (ns, mw)) in steps.iter().enumerate() {
            self.write(HEAD + BOARD * board + CURVE + 2 * nth as u64, *ns);
            self.write(HEAD + BOARD * board + CURVE + 2 * nth as u64 + 1, *mw);
        }
        self.set(board, Knob::Steps, steps.len() as u64);
    }

    /// Reloads the driver at `now_ns`: all counters start at 0, and handles of the previous driver are invalid.
    pub fn reload(&self, now_ns: u64) {
        self.set_global(Driver::Generation, self.get_global(Driver::Generation) + 1);
        (0..self.get_global(Driver::Boards)).for_each(|board| self.set(board, Knob::BaseNs, now_ns));
    }

    /// The UUID of a board with this `Name`.
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
    // The library's real name: loaders distinguish libraries by file, not by name.
    folder.path().join("libnvidia-ml.so")
}
