//! The checksum of stored data: CRC-32 over every field, each with its length.
//!
//! A row's checksum covers its ID too, so that a row under another ID is unsound.

use crc32fast::Hasher;
use rusqlite::types::ValueRef;

/// A checksum that is computed field by field.
#[derive(Default)]
pub(super) struct Checksum(Hasher);

impl Checksum {
    pub fn numbers(mut self, values: &[i64]) -> Self {
        values.iter().for_each(|value| self.0.update(&value.to_le_bytes()));
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
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
    pub fn finish(self) -> i32 {
        self.0.finalize().cast_signed()
    }
}
