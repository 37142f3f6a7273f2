//! The high-water mark: the highest ID ever committed, in a file next to the database.
//!
//! The file is one record of 28 bytes (three integers and a checksum), overwritten in place after each commit. A write
//! survives the end of the process, as a commit does. A database that ends at a lower ID has lost accounts.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::checksum::Checksum;

const RECORD_BYTES: usize = 28;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HighWaterMark {
    /// The highest account ID.
    pub last: i64,
    /// The wall time of the commit, in seconds since 1970.
    pub kept_s: i64,
    /// The running time of the store at the commit: see [`super::time`].
    pub running_s: i64,
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
        if length != RECORD_BYTES as u64 {
            return Ok(MarkContents::Damaged);
        }
        self.0.read_exact_at(&mut record, 0)?;
        let field = |at: usize| i64::from_le_bytes(std::array::from_fn(|byte| record[at + byte]));
        let mark = HighWaterMark { last: field(0), kept_s: field(8), running_s: field(16) };
        Ok(if record == encode(&mark) { MarkContents::Valid(mark) } else { MarkContents::Damaged })
    }

    pub fn write(&self, mark: &HighWaterMark) -> io::Result<()> {
        self.0.write_all_at(&encode(mark), 0)
    }
}

fn encode(mark: &HighWaterMark) -> [u8; RECORD_BYTES] {
    let numbers = [mark.last, mark.kept_s, mark.running_s];
    let checksum = Checksum::default().numbers(&numbers).finish().to_le_bytes();
    let mut record = [0; RECORD_BYTES];
    for (into, from) in
        record.iter_mut().zip(numbers.iter().flat_map(|value| value.to_le_bytes()).chain(checksum))
    {
        *into = from;
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back_and_each_flipped_bit_is_detected() {
        let file = MarkFile(tempfile::tempfile().unwrap());
        assert_eq!(file.read().unwrap(), MarkContents::Empty);
        let mark = HighWaterMark { last: 600, kept_s: 1_763_000_000, running_s: 86_400 };
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
