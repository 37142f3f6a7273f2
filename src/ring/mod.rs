//! A ring buffer of samples: one writer, many readers, the oldest sample is overwritten.
//!
//! `RingWriter::push` is wait-free and does not allocate. A reader copies a whole sample or reports that it is gone,
//! never parts of two. There is no lock and no `unsafe`: every word is an atomic, and each slot has the sequence number
//! of its sample (a seqlock). Memory is not touched before it is written.
//!
//! A model checker (`model.rs`) explores every interleaving of a writer that laps a reader. Without either fence it
//! must fail:
//!
//! ```text
//! cargo test --release --manifest-path tests/ring_model/Cargo.toml                                        # passes
//! RING_HOLE=ring_without_writer_fence cargo test --release --manifest-path tests/ring_model/Cargo.toml    # must fail
//! RING_HOLE=ring_without_reader_fence cargo test --release --manifest-path tests/ring_model/Cargo.toml    # must fail
//! ```

use crate::domain::EnergyReading;
use atomic::{Arc, AtomicU64, Ordering, reader_fence, writer_fence, zeroed};

/// The standard library's atomics, or the model checker's. Under the model only, the fences can be removed to see it
/// fail.
mod atomic {
    #[cfg(loom)]
    use loom::sync;
    #[cfg(not(loom))]
    use std::sync;

    pub(super) use sync::Arc;
    pub(super) use sync::atomic::{AtomicU64, Ordering};

    #[cfg(loom)]
    pub(super) use super::modelled::zeroed;
    #[cfg(not(loom))]
    pub(super) use bytemuck::zeroed_slice_box as zeroed;

    #[cfg(all(loom, ring_without_reader_fence))]
    pub(super) use super::unfenced::fence as reader_fence;
    #[cfg(all(loom, ring_without_writer_fence))]
    pub(super) use super::unfenced::fence as writer_fence;
    #[cfg(not(all(loom, ring_without_reader_fence)))]
    pub(super) use sync::atomic::fence as reader_fence;
    #[cfg(not(all(loom, ring_without_writer_fence)))]
    pub(super) use sync::atomic::fence as writer_fence;
}

/// The model checker's atomics have no zeroed allocation.
#[cfg(loom)]
mod modelled {
    use super::AtomicU64;

    pub(super) fn zeroed(length: usize) -> Box<[AtomicU64]> {
        (0..length).map(|_| AtomicU64::new(0)).collect()
    }
}

/// A fence without effect: the defect that the model must find.
#[cfg(all(loom, any(ring_without_reader_fence, ring_without_writer_fence)))]
mod unfenced {
    pub(super) fn fence(_: super::Ordering) {}
}

/// The result of one read of a source: all its domains at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The time just before the read.
    pub before_ns: u64,
    /// The time just after the read.
    pub after_ns: u64,
    /// One reading for each domain of the source.
    pub readings: Vec<EnergyReading>,
}

impl Sample {
    /// A sample at time 0 in which no domain is valid, as a buffer for [`RingReader::read`].
    pub fn empty(domains: usize) -> Self {
        Self { before_ns: 0, after_ns: 0, readings: vec![EnergyReading::default(); domains] }
    }
}

/// The single writer of a ring.
pub struct RingWriter {
    buffer: Arc<RingBuffer>,
    /// The index of the next sample, equal to `buffer.write_count` between two pushes.
    next: u64,
}

/// A reader of a ring; any number of clones can read at the same time.
#[derive(Clone)]
pub struct RingReader {
    buffer: Arc<RingBuffer>,
}

struct RingBuffer {
    /// `capacity` slots of `stride` words: sequence, before, after, then [`READING_WORDS`] for each domain.
    words: Box<[AtomicU64]>,
    write_count: WriteCount,
    /// The capacity minus one; the capacity is a power of two.
    mask: u64,
    stride: usize,
    domains: usize,
}

/// The number of samples ever written, on a cache line of its own: every push writes it and every poll reads it.
#[repr(align(64))]
struct WriteCount(AtomicU64);

/// Words before the first reading: sequence, before_ns, after_ns.
const HEADER_WORDS: usize = 3;
/// Words of one reading: energy, uncertainty, stamp, epoch with valid as its lowest bit, shape.
const READING_WORDS: usize = 5;

/// Creates a ring of `capacity` samples, rounded up to a power of two, of `domains` readings each.
pub fn ring(capacity: usize, domains: usize) -> (RingWriter, RingReader) {
    let capacity = capacity.max(1).next_power_of_two();
    let stride = HEADER_WORDS + READING_WORDS * domains;
    // Zeroed memory from the allocator: the kernel backs each page at its first write, so a long ring costs nothing
    // until it is filled. `benches/ring.rs` checks this.
    let words = zeroed(capacity * stride);
    let write_count = WriteCount(AtomicU64::new(0));
    let buffer = Arc::new(RingBuffer { words, write_count, mask: capacity as u64 - 1, stride, domains });
    (RingWriter { buffer: Arc::clone(&buffer), next: 0 }, RingReader { buffer })
}

impl RingBuffer {
    fn slot(&self, index: u64) -> &[AtomicU64] {
        let at = (index & self.mask) as usize * self.stride;
        &self.words[at..at + self.stride]
    }
}

/// A slot's sequence while sample `index` is being written into it.
const fn in_progress(index: u64) -> u64 {
    2 * index + 1
}

/// A slot's sequence when it holds the complete sample `index`; 0 means never written.
const fn complete(index: u64) -> u64 {
    2 * index + 2
}

impl RingWriter {
    /// Appends a sample and overwrites the oldest. Wait-free, without allocation. Missing readings at the end are
    /// stored as not valid; surplus readings are dropped.
    pub fn push(&mut self, sample: &Sample) {
        debug_assert_eq!(
            sample.readings.len(),
            self.buffer.domains,
            "a sample holds one reading for each domain"
        );
        let slot = self.buffer.slot(self.next);
        slot[0].store(in_progress(self.next), Ordering::Relaxed);
        // Release: a reader that sees any word stored below also sees the odd sequence above, or a later one, after its
        // own Acquire fence, and discards its copy. Pairs with `reader_fence` in `RingReader::read_consistent`.
        writer_fence(Ordering::Release);
        slot[1].store(sample.before_ns, Ordering::Relaxed);
        slot[2].store(sample.after_ns, Ordering::Relaxed);
        let readings = sample.readings.iter().copied().chain(std::iter::repeat(EnergyReading::default()));
        for (words, reading) in slot[HEADER_WORDS..].chunks_exact(READING_WORDS).zip(readings) {
            words[0].store(reading.energy_uj, Ordering::Relaxed);
            words[1].store(reading.uncertainty_uj, Ordering::Relaxed);
            words[2].store(reading.stamp_ns, Ordering::Relaxed);
            words[3].store(u64::from(reading.epoch) << 1 | u64::from(reading.valid), Ordering::Relaxed);
            words[4].store(reading.shape_uj, Ordering::Relaxed);
        }
        // Release: a reader that loads this even sequence with Acquire sees every word stored above.
        slot[0].store(complete(self.next), Ordering::Release);
        self.next += 1;
        // Release: a reader that loads this count with Acquire finds its slot complete.
        self.buffer.write_count.0.store(self.next, Ordering::Release);
    }
}

impl RingReader {
    /// The number of samples ever written; the newest has index `written_count() - 1`.
    pub fn written_count(&self) -> u64 {
        self.buffer.write_count.0.load(Ordering::Acquire)
    }

    /// The oldest index that may not be overwritten yet.
    pub fn oldest_index(&self) -> u64 {
        self.written_count().saturating_sub(self.buffer.mask + 1)
    }

    /// The maximum number of samples in the ring; a power of two.
    pub fn capacity(&self) -> u64 {
        self.buffer.mask + 1
    }

    /// The number of readings of a sample.
    pub fn domains(&self) -> usize {
        self.buffer.domains
    }

    /// Copies the whole sample `index` to `into`. Returns false if it is overwritten or not written yet; the content of
    /// `into` is then meaningless. Allocates only if `into` has fewer readings than the ring.
    pub fn read(&self, index: u64, into: &mut Sample) -> bool {
        into.readings.resize(self.buffer.domains, EnergyReading::default());
        let copy = |slot: &[AtomicU64]| {
            into.before_ns = slot[1].load(Ordering::Relaxed);
            into.after_ns = slot[2].load(Ordering::Relaxed);
            for (words, reading) in slot[HEADER_WORDS..].chunks_exact(READING_WORDS).zip(&mut into.readings) {
                let epoch_and_valid = words[3].load(Ordering::Relaxed);
                *reading = EnergyReading {
                    valid: epoch_and_valid & 1 == 1,
                    energy_uj: words[0].load(Ordering::Relaxed),
                    uncertainty_uj: words[1].load(Ordering::Relaxed),
                    stamp_ns: words[2].load(Ordering::Relaxed),
                    epoch: (epoch_and_valid >> 1) as u32,
                    shape_uj: words[4].load(Ordering::Relaxed),
                };
            }
        };
        self.read_consistent(index, copy).is_some()
    }

    /// The index of the last sample whose `after_ns` is at or before `at_ns`; `None` if the ring has no such sample. A
    /// binary search, because samples are in the order of time.
    pub fn find_at_or_before(&self, at_ns: u64) -> Option<u64> {
        let (mut low, mut high) = (self.oldest_index(), self.written_count());
        // Every sample below `low` is at or before `at_ns`, or overwritten; every written one from `high` on is after
        // it.
        while low < high {
            let middle = low + (high - low) / 2;
            match self.after_ns(middle) {
                Some(after_ns) if after_ns > at_ns => high = middle,
                // If a sample is overwritten, all older ones are too.
                Some(_) | None => low = middle + 1,
            }
        }
        let last = low.checked_sub(1)?;
        self.after_ns(last).filter(|&after_ns| after_ns <= at_ns).map(|_| last)
    }

    fn after_ns(&self, index: u64) -> Option<u64> {
        self.read_consistent(index, |slot| slot[2].load(Ordering::Relaxed))
    }

    /// The result of `copy` on the slot of sample `index`; `None` unless the slot held that sample during the whole
    /// copy.
    fn read_consistent<T>(&self, index: u64, copy: impl FnOnce(&[AtomicU64]) -> T) -> Option<T> {
        let slot = self.buffer.slot(index);
        // Acquire: pairs with the Release store of the even sequence, so the words are at least this sample's.
        if slot[0].load(Ordering::Acquire) != complete(index) {
            return None;
        }
        let copied = copy(slot);
        // Acquire: if the copy saw a word of a later sample, the load below sees that sample's odd sequence or a later
        // one. Pairs with `writer_fence` in `RingWriter::push`.
        reader_fence(Ordering::Acquire);
        (slot[0].load(Ordering::Relaxed) == complete(index)).then_some(copied)
    }
}

#[cfg(all(test, loom))]
mod model;

#[cfg(all(test, not(loom)))]
mod tests;
