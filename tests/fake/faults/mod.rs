//! Failures of threads, memory, `accept` and the descriptor in reserve in a daemon: a library for LD_PRELOAD, built by the
//! test that uses it.
//!
//! Owns the library, and the file that states which calls of a running daemon fail. See `faults.c`.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// The kinds of calls that can fail, in the order of `faults.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `pthread_create` fails with EAGAIN.
    Thread,
    /// An allocation outside of SQLite.
    Memory,
    /// An allocation of SQLite, which reports SQLITE_NOMEM.
    Sqlite,
    /// `accept4` fails with ENOMEM.
    Accept,
    /// `open` of /dev/null, the descriptor in reserve, fails with EMFILE.
    Reserve,
}

/// The words of each kind, in the order of `faults.c`.
#[derive(Debug, Clone, Copy)]
enum Word {
    Pass,
    Fail,
    MinBytes,
    Calls,
    Failed,
}

const KINDS: u64 = 5;
const BLOCK: u64 = 5;
const SQLITE_ALLOCATORS: [&str; 2] = ["sqlite3MemMalloc", "sqlite3MemRealloc"];
const WORDS: u64 = KINDS * BLOCK + 2 * SQLITE_ALLOCATORS.len() as u64;

pub struct FaultLibrary {
    folder: TempDir,
    words: File,
}

impl FaultLibrary {
    /// Builds it for this program, whose symbols say where SQLite allocates.
    pub fn new(program: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake/faults/faults.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(folder.path().join("faults.so")).arg(source);
        let built = compiler.output().expect("a C compiler, which the linker of every Rust program is, too");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let path = folder.path().join("words");
        let words = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
        words.set_len(8 * WORDS).unwrap();
        let library = Self { folder, words };
        for (at, (from, bytes)) in (KINDS * BLOCK..).step_by(2).zip(functions(program, &SQLITE_ALLOCATORS)) {
            library.write(at, from);
            library.write(at + 1, from + bytes);
        }
        library
    }

    /// The shell commands that load it into the next program.
    pub fn setup(&self) -> String {
        let folder = self.folder.path().display();
        // A backtrace at the end of a process without memory takes a busy machine a second.
        format!(
            "export LD_PRELOAD='{folder}/faults.so' WATTSPAN_TEST_FAULTS='{folder}/words' RUST_BACKTRACE=0"
        )
    }

    /// From now on, of the calls of this kind (allocations of at least `min_bytes`), `fail` fail after the first `pass`.
    pub fn fail(&self, fault: Fault, pass: u64, fail: u64, min_bytes: u64) {
        self.clear(fault);
        // The count begins last, so that no call before it is counted; one may already fail where all later ones do.
        for (word, value) in
            [(Word::MinBytes, min_bytes), (Word::Pass, pass), (Word::Fail, fail), (Word::Calls, 0)]
        {
            self.write(at(fault, word), value);
        }
    }

    /// Lets all calls of this kind succeed, and counts them from 0.
    pub fn clear(&self, fault: Fault) {
        for word in [Word::Fail, Word::Calls, Word::Failed, Word::MinBytes] {
            self.write(at(fault, word), 0);
        }
    }

    /// The calls of this kind since the last [`Self::fail`] or [`Self::clear`], and how many of them failed.
    pub fn calls(&self, fault: Fault) -> (u64, u64) {
        (self.read(at(fault, Word::Calls)), self.read(at(fault, Word::Failed)))
    }

    fn write(&self, word: u64, value: u64) {
        self.words.write_all_at(&value.to_ne_bytes(), 8 * word).unwrap();
    }

    fn read(&self, word: u64) -> u64 {
        let mut bytes = [0; 8];
        self.words.read_exact_at(&mut bytes, 8 * word).unwrap();
        u64::from_ne_bytes(bytes)
    }
}

fn at(fault: Fault, word: Word) -> u64 {
    fault as u64 * BLOCK + word as u64
}

/// Offset and length of these functions in a program.
fn functions(program: &Path, names: &[&str]) -> Vec<(u64, u64)> {
    let output = Command::new("nm").arg("-S").arg(program).output().expect("nm of binutils, as the linker");
    let symbols = String::from_utf8(output.stdout).unwrap();
    let find = |name: &&str| {
        let row: Vec<&str> = symbols
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|row| row.len() == 4 && row[3] == *name)
            .unwrap_or_else(|| panic!("no symbol {name} in {}", program.display()));
        let number = |at: usize| u64::from_str_radix(row[at], 16).unwrap();
        (number(0), number(1))
    };
    names.iter().map(find).collect()
}
