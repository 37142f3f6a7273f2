//! The checksum of stored data: CRC-32 over every field, each with its length.
//!
//! A row's checksum covers its ID too, so that a row under another ID is unsound.

use crc32fast::Hasher;
use rusqlite::types::ValueRef;

/// Most rows are shorter: they are added to the CRC in one or two runs, which is several times faster than field by field.
const BUFFER_BYTES: usize = 256;

/// A checksum that is computed field by field.
pub(super) struct Checksum {
    crc: Hasher,
    /// The first `length` bytes are not in the CRC yet.
    buffer: [u8; BUFFER_BYTES],
    length: usize,
}

impl Default for Checksum {
    fn default() -> Self {
        Self { crc: Hasher::new(), buffer: [0; BUFFER_BYTES], length: 0 }
    }
}

impl Checksum {
    pub fn numbers(mut self, values: &[i64]) -> Self {
        values.iter().for_each(|value| self.add(&value.to_le_bytes()));
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.add(&(bytes.len() as u64).to_le_bytes());
        self.add(bytes);
        self
    }

    /// Adds a column that may be text or bytes; the type is part of the checksum.
    pub fn value(self, value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Text(text) => self.numbers(&[0]).bytes(text),
            ValueRef::Blob(bytes) => self.numbers(&[1]).bytes(bytes),
            _ => self.numbers(&[2]),
        }
    }

    /// The checksum as SQLite stores it, in four bytes.
    pub fn finish(mut self) -> i32 {
        self.crc.update(&self.buffer[..self.length]);
        self.crc.finalize().cast_signed()
    }

    #[inline]
    fn add(&mut self, bytes: &[u8]) {
        if self.length + bytes.len() > BUFFER_BYTES {
            self.crc.update(&self.buffer[..self.length]);
            self.length = 0;
        }
        if bytes.len() > BUFFER_BYTES {
            self.crc.update(bytes);
            return;
        }
        self.buffer[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_all_fields_in_one_run() {
        for length in [0, 1, 231, 232, 233, 240, 256, 257, 5000] {
            let bytes: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let sum = Checksum::default().numbers(&[7, -1]).bytes(&bytes).value(ValueRef::Text(b"ab"));
            let mut whole = Vec::new();
            whole.extend([7_i64, -1].iter().flat_map(|number| number.to_le_bytes()));
            whole.extend((bytes.len() as u64).to_le_bytes());
            whole.extend(&bytes);
            whole.extend([0_u64, 2].iter().flat_map(|number| number.to_le_bytes()));
            whole.extend(b"ab");
            assert_eq!(sum.finish(), crc32fast::hash(&whole).cast_signed(), "{length}");
        }
    }
}
