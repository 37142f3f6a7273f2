//! Fixed history of samples (skeleton).

use crate::energy::Reading;

/// What one read of a source gave: all its domains at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The clock just before the read.
    pub before_ns: u64,
    /// The clock just after it.
    pub after_ns: u64,
    /// One reading for each domain of the source.
    pub readings: Vec<Reading>,
}

/// The only writer of a ring.
pub struct Writer {}

/// One of many readers.
#[derive(Clone)]
pub struct Reader {}

/// A ring of `capacity` samples (rounded up to a power of two) of `domains` readings each.
pub fn ring(_capacity: usize, _domains: usize) -> (Writer, Reader) {
    (Writer {}, Reader {})
}

impl Writer {
    /// Appends a sample, overwriting the oldest. Wait-free, allocates nothing.
    pub fn push(&mut self, _sample: &Sample) {}
}

impl Reader {
    /// How many samples were ever written; the newest has index `written() - 1`.
    pub fn written(&self) -> u64 {
        0
    }

    /// The oldest index that may still be there.
    pub fn oldest(&self) -> u64 {
        0
    }

    /// Copies sample `index` into `into` whole, or returns false where it is overwritten or not yet written.
    pub fn read(&self, _index: u64, _into: &mut Sample) -> bool {
        false
    }
}
