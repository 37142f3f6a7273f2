//! What a power cut may leave of a directory: the operations on a disk in order, and the contents after any of them.
//!
//! Model: what a file held at its last sync stays. Of each later write, each sector of 512 bytes is on the disk or not,
//! independently of all others, and the length changes with what is. Names are created, changed and removed in order; a
//! sync of their directory makes all earlier changes of names in it permanent, else any prefix of them may be.

#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

const SECTOR_BYTES: usize = 512;

/// One operation on a disk. Names are paths below the mount point, whose own is empty.
#[derive(Debug, Clone)]
pub enum DiskOp {
    MakeDirectory { name: OsString },
    Create { name: OsString, ino: u64 },
    Write { ino: u64, offset: usize, data: Vec<u8> },
    Resize { ino: u64, bytes: usize },
    Sync { ino: u64 },
    Unlink { name: OsString },
    Rename { from: OsString, to: OsString },
    SyncDirectory { name: OsString },
}

/// Which part of what was not synced is on the disk after the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsynced {
    Nothing,
    Everything,
    /// All writes up to one of them.
    Prefix,
    /// Any of the writes, each as a whole.
    Writes,
    /// Any of the sectors of any of the writes.
    Sectors,
}

/// All of them, for tests that try each.
pub const UNSYNCED: [Unsynced; 5] =
    [Unsynced::Nothing, Unsynced::Everything, Unsynced::Prefix, Unsynced::Writes, Unsynced::Sectors];

/// The directory after a number of operations: what is permanent, and what may be.
#[derive(Debug, Default)]
pub struct Disk {
    files: BTreeMap<u64, Vec<u8>>,
    unsynced: BTreeMap<u64, Vec<DiskOp>>,
    names: Names,
    /// By directory.
    unsynced_names: BTreeMap<OsString, Vec<DiskOp>>,
}

/// The names of files with their inodes, and those of directories.
#[derive(Debug, Default, Clone)]
struct Names {
    files: BTreeMap<OsString, u64>,
    directories: BTreeSet<OsString>,
}

impl Disk {
    /// Performs the next operation.
    pub fn apply(&mut self, op: &DiskOp) {
        match op {
            DiskOp::MakeDirectory { name }
            | DiskOp::Create { name, .. }
            | DiskOp::Unlink { name }
            | DiskOp::Rename { to: name, .. } => {
                self.unsynced_names.entry(directory_of(name)).or_default().push(op.clone());
            }
            DiskOp::Write { ino, .. } | DiskOp::Resize { ino, .. } => {
                self.unsynced.entry(*ino).or_default().push(op.clone());
            }
            DiskOp::Sync { ino } => {
                let file = self.files.entry(*ino).or_default();
                self.unsynced
                    .remove(ino)
                    .unwrap_or_default()
                    .iter()
                    .for_each(|op| change(file, op, |_| true));
            }
            DiskOp::SyncDirectory { name } => {
                let changes = self.unsynced_names.remove(name).unwrap_or_default();
                changes.iter().for_each(|op| change_names(&mut self.names, op));
            }
        }
    }

    /// The files by name after a power cut at this moment. `random` returns a number below its argument.
    pub fn cut(
        &self,
        unsynced: Unsynced,
        random: &mut impl FnMut(usize) -> usize,
    ) -> BTreeMap<OsString, Vec<u8>> {
        let mut names = self.names.clone();
        for changes in self.unsynced_names.values() {
            let count = match unsynced {
                Unsynced::Nothing => 0,
                Unsynced::Everything => changes.len(),
                _ => random(changes.len() + 1),
            };
            changes[..count].iter().for_each(|op| change_names(&mut names, op));
        }
        let Names { files, directories } = names;
        let is_there = |name: &OsString| {
            let mut above = Path::new(name).ancestors().skip(1).take_while(|at| *at != Path::new(""));
            above.all(|directory| directories.contains(directory.as_os_str()))
        };
        let files = files.into_iter().filter(|(name, _)| is_there(name));
        files.map(|(name, ino)| (name, self.contents(ino, unsynced, random))).collect()
    }

    fn contents(&self, ino: u64, unsynced: Unsynced, random: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
        let mut file = self.files.get(&ino).cloned().unwrap_or_default();
        let ops = self.unsynced.get(&ino).map_or(&[][..], Vec::as_slice);
        let count = match unsynced {
            Unsynced::Nothing => 0,
            Unsynced::Prefix => random(ops.len() + 1),
            _ => ops.len(),
        };
        // From rarely to mostly: a cut soon after the writes, and one much later.
        let tenths = 1 + random(9);
        for op in &ops[..count] {
            match unsynced {
                Unsynced::Writes if random(10) >= tenths => {}
                Unsynced::Sectors => change(&mut file, op, |_| random(10) < tenths),
                _ => change(&mut file, op, |_| true),
            }
        }
        file
    }
}

/// Performs a write or a change of length on a file; of a write, the sectors that `reaches_disk` selects.
fn change(file: &mut Vec<u8>, op: &DiskOp, mut reaches_disk: impl FnMut(usize) -> bool) {
    match op {
        DiskOp::Resize { bytes, .. } if reaches_disk(0) => file.resize(*bytes, 0),
        DiskOp::Write { offset, data, .. } => {
            let (mut from, end) = (*offset, offset + data.len());
            while from < end {
                let to = end.min((from / SECTOR_BYTES + 1) * SECTOR_BYTES);
                if reaches_disk(from) {
                    file.resize(file.len().max(to), 0);
                    file[from..to].copy_from_slice(&data[from - offset..to - offset]);
                }
                from = to;
            }
        }
        _ => {}
    }
}

/// Cuts the power at random moments after `from` operations, `count` of them. `check` gets what is left each time: the number
/// of operations before the cut, a directory with the files, and a description that names the seed.
pub fn for_each_cut(
    record: &[DiskOp],
    from: usize,
    count: usize,
    seed: u64,
    mut check: impl FnMut(usize, &Path, &str),
) {
    let mut rng = crate::ground_truth::TestRng(seed);
    let mut random = move |below: usize| rng.range(0, below as u64 - 1) as usize;
    let mut moments: Vec<usize> = (0..count).map(|_| from + random(record.len() + 1 - from)).collect();
    moments.sort_unstable();
    let (mut disk, mut at) = (Disk::default(), 0);
    for (index, operations) in moments.into_iter().enumerate() {
        record[at..operations].iter().for_each(|op| disk.apply(op));
        at = operations;
        let unsynced = UNSYNCED[index % UNSYNCED.len()];
        let files = disk.cut(unsynced, &mut random);
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        for (name, contents) in &files {
            let path = dir.path().join(name);
            fs::DirBuilder::new().mode(0o700).recursive(true).create(path.parent().unwrap()).unwrap();
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true).mode(0o600).open(path).unwrap().write_all(contents).unwrap();
        }
        let description = format!("seed {seed}, cut {operations} of {} ({unsynced:?})", record.len());
        check(operations, dir.path(), &description);
    }
}

/// The number of cuts, `WATTSPAN_CUTS` or `default`, and the seed, `WATTSPAN_SEED`.
pub fn cuts_and_seed(default: usize) -> (usize, u64) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    (
        number("WATTSPAN_CUTS").map_or(default, |rounds| rounds as usize),
        number("WATTSPAN_SEED").unwrap_or(0x5eed),
    )
}

/// The directory of a name.
pub fn directory_of(name: &OsStr) -> OsString {
    Path::new(name).parent().map(|parent| parent.as_os_str().to_owned()).unwrap_or_default()
}

fn change_names(names: &mut Names, op: &DiskOp) {
    match op {
        DiskOp::MakeDirectory { name } => drop(names.directories.insert(name.clone())),
        DiskOp::Create { name, ino } => drop(names.files.insert(name.clone(), *ino)),
        DiskOp::Unlink { name } => drop(names.files.remove(name)),
        DiskOp::Rename { from, to } => {
            assert_eq!(directory_of(from), directory_of(to), "the model has no moves between directories");
            if let Some(ino) = names.files.remove(from) {
                names.files.insert(to.clone(), ino);
            }
        }
        _ => {}
    }
}
