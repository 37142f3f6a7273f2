//! The high-water mark: the highest number that was ever committed, in a file beside the database.
//!
//! Owns the file's form: one record of 28 bytes, overwritten in place after each commit. It survives the end of the process
//! at any moment, as the database does. Its one purpose: a database that ends at a lower number has lost accounts.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::checksum::Checksum;

const LENGTH: usize = 28;

/// How far the store has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reached {
    /// The highest number.
    pub last: i64,
    /// The wall time of its commit.
    pub kept_s: i64,
    /// How long the store has run by then: see [`super::clock_reading`].
    pub running_s: i64,
}

/// What the file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Reached(Reached),
    /// It is new.
    Empty,
    /// It is not what was written.
    Damaged,
}

/// The open file.
#[derive(Debug)]
pub(super) struct Mark(pub File);

impl Mark {
    pub fn read(&self) -> io::Result<Reading> {
        let length = self.0.metadata()?.len();
        if length == 0 {
            return Ok(Reading::Empty);
        }
        let mut record = [0; LENGTH];
        if length != LENGTH as u64 {
            return Ok(Reading::Damaged);
        }
        self.0.read_exact_at(&mut record, 0)?;
        let field = |at: usize| i64::from_le_bytes(std::array::from_fn(|byte| record[at + byte]));
        let reached = Reached { last: field(0), kept_s: field(8), running_s: field(16) };
        Ok(if record == encode(&reached) { Reading::Reached(reached) } else { Reading::Damaged })
    }

    pub fn write(&self, reached: &Reached) -> io::Result<()> {
        self.0.write_all_at(&encode(reached), 0)
    }
}

fn encode(reached: &Reached) -> [u8; LENGTH] {
    let numbers = [reached.last, reached.kept_s, reached.running_s];
    let checksum = Checksum::default().numbers(&numbers).finish().to_le_bytes();
    let mut record = [0; LENGTH];
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
    fn a_mark_reads_back_and_each_flipped_bit_is_noticed() {
        let mark = Mark(tempfile::tempfile().unwrap());
        assert_eq!(mark.read().unwrap(), Reading::Empty);
        let reached = Reached { last: 600, kept_s: 1_763_000_000, running_s: 86_400 };
        mark.write(&Reached { last: 599, ..reached }).unwrap();
        mark.write(&reached).unwrap();
        assert_eq!(mark.read().unwrap(), Reading::Reached(reached));
        let record = encode(&reached);
        for bit in 0..LENGTH * 8 {
            let mut damaged = record;
            damaged[bit / 8] ^= 1 << (bit % 8);
            mark.0.write_all_at(&damaged, 0).unwrap();
            assert_eq!(mark.read().unwrap(), Reading::Damaged, "bit {bit}");
        }
        mark.0.set_len(7).unwrap();
        assert_eq!(mark.read().unwrap(), Reading::Damaged);
    }
}
