//! What a power cut may leave of a directory: the operations on a disk in order, and the contents after any of them.
//!
//! Model: what a file held at its last sync stays. Of each later write, each sector of 512 bytes is on the disk or not,
//! independently of all others, and the length changes with what is. Names are created, changed and removed in order; a
//! sync of the directory makes all earlier changes of names permanent, else any prefix of them may be.

use std::collections::BTreeMap;
use std::ffi::OsString;

const SECTOR_BYTES: usize = 512;

/// One operation on the files of a directory.
#[derive(Debug, Clone)]
pub enum DiskOp {
    Create { name: OsString, ino: u64 },
    Write { ino: u64, offset: usize, data: Vec<u8> },
    Resize { ino: u64, bytes: usize },
    Sync { ino: u64 },
    Unlink { name: OsString },
    Rename { from: OsString, to: OsString },
    SyncDirectory,
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
    names: BTreeMap<OsString, u64>,
    unsynced_names: Vec<DiskOp>,
}

impl Disk {
    /// Performs the next operation.
    pub fn apply(&mut self, op: &DiskOp) {
        match op {
            DiskOp::Create { .. } | DiskOp::Unlink { .. } | DiskOp::Rename { .. } => {
                self.unsynced_names.push(op.clone());
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
            DiskOp::SyncDirectory => {
                let changes = std::mem::take(&mut self.unsynced_names);
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
        let changes = match unsynced {
            Unsynced::Nothing => 0,
            Unsynced::Everything => self.unsynced_names.len(),
            _ => random(self.unsynced_names.len() + 1),
        };
        self.unsynced_names[..changes].iter().for_each(|op| change_names(&mut names, op));
        names.into_iter().map(|(name, ino)| (name, self.contents(ino, unsynced, random))).collect()
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

fn change_names(names: &mut BTreeMap<OsString, u64>, op: &DiskOp) {
    match op {
        DiskOp::Create { name, ino } => drop(names.insert(name.clone(), *ino)),
        DiskOp::Unlink { name } => drop(names.remove(name)),
        DiskOp::Rename { from, to } => {
            if let Some(ino) = names.remove(from) {
                names.insert(to.clone(), ino);
            }
        }
        _ => {}
    }
}
