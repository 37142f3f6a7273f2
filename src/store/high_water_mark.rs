//! The high-water mark: the highest ID ever committed, in a file next to the database.
//!
//! The file is one record with a checksum in the first sector, overwritten in place after each commit. A write survives
//! the end of the process, as a commit does. A database that ends at a lower ID has lost accounts.
//!
//! With [`super::SyncMode::Normal`] a power cut may lose the latest commits together with the latest marks. The mark
//! therefore reserves IDs, which is synced before the first of them is used: after a power cut they are not used again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::checksum::Checksum;

/// Three integers and a checksum: the record of older versions, without reserved IDs.
const OLD_RECORD_BYTES: usize = 28;
const RECORD_BYTES: usize = 72;

/// The lengths that the file can have.
pub(super) const RECORD_LENGTHS: [usize; 2] = [OLD_RECORD_BYTES, RECORD_BYTES];

/// The boot in which a mark was written: the beginning of the kernel's boot ID, padded with zeros.
pub(super) type BootKey = [u8; 36];

/// The key of a boot ID.
pub(super) fn boot_key(boot_id: &str) -> BootKey {
    let mut key = [0; 36];
    key.iter_mut().zip(boot_id.bytes()).for_each(|(into, byte)| *into = byte);
    key
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HighWaterMark {
    /// The highest account ID.
    pub last: i64,
    /// The wall time of the commit, in seconds since 1970.
    pub kept_s: i64,
    /// The running time of the store at the commit: see [`super::time`].
    pub running_s: i64,
    /// The last ID that may have been used; 0 after an orderly end, and where each commit is synced.
    pub reserved: i64,
    /// The boot in which it was written.
    pub boot: BootKey,
}

impl HighWaterMark {
    /// The mark of a commit, without reserved IDs.
    pub fn of_commit(last: i64, kept_s: i64, running_s: i64) -> Self {
        Self { last, kept_s, running_s, reserved: 0, boot: [0; 36] }
    }

    /// The last ID that may have been used, in this boot or before a power cut.
    pub fn last_used(&self, boot: &BootKey) -> i64 {
        if self.boot == *boot { self.last } else { self.last.max(self.reserved) }
    }
}

/// The contents of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MarkContents {
    Valid(HighWaterMark),
    /// The file is new.
    Empty,
    /// The length or the checksum is wrong.
    Damaged,
}

#[derive(Debug)]
pub(super) struct MarkFile(pub File);

impl MarkFile {
    pub fn read(&self) -> io::Result<MarkContents> {
        let length = self.0.metadata()?.len();
        if length == 0 {
            return Ok(MarkContents::Empty);
        }
        let mut record = [0; RECORD_BYTES];
        let Some(record) = RECORD_LENGTHS
            .into_iter()
            .find(|bytes| *bytes as u64 == length)
            .map(|bytes| &mut record[..bytes])
        else {
            return Ok(MarkContents::Damaged);
        };
        self.0.read_exact_at(record, 0)?;
        Ok(decode(record).map_or(MarkContents::Damaged, MarkContents::Valid))
    }

    pub fn write(&self, mark: &HighWaterMark) -> io::Result<()> {
        self.0.write_all_at(&encode(mark), 0)
    }

    /// Writes it, and waits until it is on the disk.
    pub fn write_synced(&self, mark: &HighWaterMark) -> io::Result<()> {
        self.write(mark)?;
        self.0.sync_data()
    }
}

fn encode(mark: &HighWaterMark) -> [u8; RECORD_BYTES] {
    let numbers = [mark.last, mark.kept_s, mark.running_s, mark.reserved];
    let checksum = Checksum::default().numbers(&numbers).bytes(&mark.boot).finish().to_le_bytes();
    let bytes = numbers.iter().flat_map(|value| value.to_le_bytes()).chain(mark.boot).chain(checksum);
    let mut record = [0; RECORD_BYTES];
    record.iter_mut().zip(bytes).for_each(|(into, from)| *into = from);
    record
}

/// The mark of a record; `None` if the checksum is wrong.
pub(super) fn decode(record: &[u8]) -> Option<HighWaterMark> {
    let field = |at: usize| i64::from_le_bytes(std::array::from_fn(|byte| record[at + byte]));
    let mark = HighWaterMark::of_commit(field(0), field(8), field(16));
    if record.len() == OLD_RECORD_BYTES {
        let checksum = Checksum::default().numbers(&[mark.last, mark.kept_s, mark.running_s]).finish();
        return (record[24..] == checksum.to_le_bytes()).then_some(mark);
    }
    let mark = HighWaterMark { reserved: field(24), boot: std::array::from_fn(|at| record[32 + at]), ..mark };
    (record == encode(&mark)).then_some(mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back_and_each_flipped_bit_is_detected() {
        let file = MarkFile(tempfile::tempfile().unwrap());
        assert_eq!(file.read().unwrap(), MarkContents::Empty);
        let mark = HighWaterMark {
            last: 600,
            kept_s: 1_763_000_000,
            running_s: 86_400,
            reserved: 4_696,
            boot: boot_key("2f6a-1"),
        };
        file.write(&HighWaterMark { last: 599, ..mark }).unwrap();
        file.write(&mark).unwrap();
        assert_eq!(file.read().unwrap(), MarkContents::Valid(mark));
        let record = encode(&mark);
        for bit in 0..RECORD_BYTES * 8 {
            let mut damaged = record;
            damaged[bit / 8] ^= 1 << (bit % 8);
            file.0.write_all_at(&damaged, 0).unwrap();
            assert_eq!(file.read().unwrap(), MarkContents::Damaged, "bit {bit}");
        }
        file.0.set_len(7).unwrap();
        assert_eq!(file.read().unwrap(), MarkContents::Damaged);
    }
}
